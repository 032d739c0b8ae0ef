//! The builders from Debian packages that results are compared with: dockerd with BuildKit, buildah, podman, skopeo, umoci.
//!
//! `testkit/peers.sh` installs and starts them; this module calls it and remembers its settings. They keep running after
//! the tests (the next run is then quick) until `testkit/peers.sh stop`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail};

use crate::{Unavailable, workspace};

/// The running peers.
#[derive(Clone, Debug)]
pub struct Peers {
    settings: BTreeMap<String, String>,
}

impl Peers {
    /// Installs what is missing, starts what is not running, and returns the settings. Once per process.
    ///
    /// # Errors
    /// [`Unavailable`] where the peers cannot be had: not root, or no mirror answers.
    pub fn start() -> Result<Peers> {
        static PEERS: OnceLock<Result<Peers, String>> = OnceLock::new();
        PEERS
            .get_or_init(|| start().map_err(|error| format!("{error:#}")))
            .clone()
            .map_err(|reason| Unavailable(reason).into())
    }

    /// `docker ARGS…`, talking to the peers' dockerd.
    pub fn docker(&self) -> Command {
        self.command(&self.settings["PEERS_DOCKER"])
    }

    /// `podman` or `buildah`, with a storage of their own.
    pub fn containers_tool(&self, name: &str) -> Command {
        let mut command = self.command(name);
        command.args(self.settings["PEERS_STORAGE"].split(' '));
        if name == "podman" {
            command.env("CONTAINERS_CONF", &self.settings["PEERS_PODMAN_CONF"]);
        }
        command
    }

    /// Any other program (`skopeo`, `umoci`) with the peers' configuration.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.envs(&self.settings).stdin(Stdio::null());
        command
    }

    /// The OCI runtime that works on this machine's cgroup layout.
    pub fn runtime(&self) -> &str {
        &self.settings["PEERS_RUNTIME"]
    }

    /// `host:port` of the local registry.
    pub fn registry(&self) -> &str {
        &self.settings["PEERS_REGISTRY"]
    }

    /// The process id of dockerd.
    pub fn dockerd(&self) -> Option<u32> {
        self.settings["PEERS_DOCKERD_PID"].parse().ok()
    }

    /// What identifies the oracle: results of another version are not compared with.
    pub fn docker_version(&self) -> Result<String> {
        output(self.docker().args(["version", "--format", "{{.Server.Version}}"]))
    }
}

/// Runs `command`, and returns its standard output.
///
/// # Errors
/// When it cannot be started, or fails: the message has its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn start() -> Result<Peers> {
    let script = workspace().join("testkit/peers.sh");
    let dir = std::env::var_os("BUILD_ENGINE_PEERS").map_or_else(|| workspace().join("target/peers"), PathBuf::from);
    let call = |verb: &str| output(Command::new(&script).arg(verb).arg(&dir));
    call("install")?;
    call("start")?;
    let settings = call("env")?
        .lines()
        .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()))
        .collect();
    Ok(Peers { settings })
}
