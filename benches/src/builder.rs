//! The builders, and the commands that each takes for the same work.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use build_engine_testkit::peers::{Peers, output};
use build_engine_testkit::{fixtures, foreign};
use serde::{Deserialize, Serialize};

/// A builder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Tool {
    BuildEngine,
    Buildx,
    Buildah,
    Podman,
}

impl Tool {
    pub(crate) const ALL: [Tool; 4] = [Tool::BuildEngine, Tool::Buildx, Tool::Buildah, Tool::Podman];

    /// The name on the command line of this program.
    pub(crate) fn flag(self) -> &'static str {
        match self {
            Tool::BuildEngine => "build-engine",
            Tool::Buildx => "buildx",
            Tool::Buildah => "buildah",
            Tool::Podman => "podman",
        }
    }
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tool::Buildx => "docker buildx (BuildKit)",
            Tool::Podman => "podman build",
            other => other.flag(),
        })
    }
}

/// Why a builder has no figure in a row.
#[derive(Debug)]
pub(crate) struct Cannot(pub(crate) String);

impl fmt::Display for Cannot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Cannot {}

/// Where the image goes.
#[derive(Clone, Debug)]
pub(crate) enum Output {
    /// Into the builder's own store, under a name.
    Tag(String),
    /// Into an OCI archive; the compression is `gzip` or `zstd`.
    Archive(PathBuf, &'static str),
    /// To a registry that speaks plain HTTP.
    Push(String),
}

/// Where the cache of a build goes, or comes from.
#[derive(Clone, Debug)]
pub(crate) enum Cache {
    To(PathBuf),
    From(PathBuf),
}

/// One build.
#[derive(Clone, Debug)]
pub(crate) struct Build<'a> {
    pub(crate) context: &'a Path,
    pub(crate) output: Output,
    pub(crate) platforms: Option<&'a str>,
    pub(crate) cache: Option<Cache>,
}

impl<'a> Build<'a> {
    /// A build into the builder's own store.
    pub(crate) fn of(context: &'a Path) -> Self {
        Self { context, output: Output::Tag("bench".to_owned()), platforms: None, cache: None }
    }

    pub(crate) fn to(self, output: Output) -> Self {
        Self { output, ..self }
    }
}

/// The builders of this machine, each with a store that no one else uses (BuildKit's is that of the peers' daemon).
pub(crate) struct Builders {
    pub(crate) binary: PathBuf,
    pub(crate) peers: Peers,
    /// The layout of the base image, and of one for several platforms.
    pub(crate) base: PathBuf,
    pub(crate) foreign: Option<PathBuf>,
    /// Stores and contexts.
    pub(crate) dir: PathBuf,
    /// Short, as conmon's sockets are below it.
    run: tempfile::TempDir,
}

impl Builders {
    pub(crate) fn new(binary: &Path, peers: Peers, dir: &Path, tools: &[Tool]) -> Result<Self> {
        let run = tempfile::Builder::new().prefix("be-bench-").tempdir()?;
        let base = fixtures::busybox()?;
        let foreign = foreign::busybox().ok();
        let builders = Self { binary: binary.to_path_buf(), peers, base, foreign, dir: dir.to_path_buf(), run };
        for tool in [Tool::Buildah, Tool::Podman] {
            if tools.contains(&tool) {
                builders.fill_storage(tool)?;
            }
        }
        Ok(builders)
    }

    /// buildah and podman take their base from their own storage.
    fn fill_storage(&self, tool: Tool) -> Result<()> {
        let source = format!("oci:{}:latest", self.base.display());
        let id = output(self.containers(tool).args(["pull", "--quiet", &source]))?;
        output(self.containers(tool).args(["tag", id.trim(), "localhost/base:latest"]))?;
        Ok(())
    }

    /// The daemon that works for `tool`.
    pub(crate) fn daemon(&self, tool: Tool) -> Option<u32> {
        (tool == Tool::Buildx).then(|| self.peers.dockerd()).flatten()
    }

    /// The folder that has everything `tool` keeps.
    pub(crate) fn store(&self, tool: Tool) -> PathBuf {
        if tool == Tool::Buildx {
            let docker = self.peers.docker();
            let config = docker.get_envs().find(|(name, _)| *name == OsStr::new("DOCKER_CONFIG"));
            let config = config.and_then(|(_, value)| value).map(PathBuf::from).unwrap_or_default();
            return config.with_file_name("dockerd");
        }
        self.dir.join(format!("store-{}", tool.flag()))
    }

    /// Takes away all that `tool` keeps between builds.
    pub(crate) fn empty(&self, tool: Tool) -> Result<()> {
        match tool {
            Tool::BuildEngine => remove(&self.store(tool)),
            Tool::Buildx => {
                // An image holds the layers that the cache has as well.
                let names = output(self.peers.docker().args(["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]))?;
                for name in names.lines().filter(|name| name.starts_with("bench") || name.contains("/bench")) {
                    output(self.peers.docker().args(["rmi", "--force", name]))?;
                }
                output(self.peers.docker().args(["builder", "prune", "--all", "--force"])).map(drop)
            }
            Tool::Buildah | Tool::Podman => {
                remove_storage(&self.store(tool))?;
                self.fill_storage(tool)
            }
        }
    }

    /// buildah or podman with their storage.
    fn containers(&self, tool: Tool) -> Command {
        let mut command = self.peers.containers_tool(tool.flag());
        command.arg("--root").arg(self.store(tool).join("root"));
        command.arg("--runroot").arg(self.run.path().join(tool.flag()));
        command
    }

    pub(crate) fn build_engine(&self) -> Command {
        let mut command = Command::new(&self.binary);
        // What tests or people have set shall not matter.
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root");
        command.env("BUILD_ENGINE_ROOT", self.store(Tool::BuildEngine));
        command
    }

    /// What has to be run, one after the other, for one build.
    ///
    /// # Errors
    /// [`Cannot`] when the builder does not do this.
    pub(crate) fn commands(&self, tool: Tool, build: &Build<'_>) -> Result<Vec<Command>> {
        match tool {
            Tool::BuildEngine => Ok(vec![self.build_engine_build(build)?]),
            Tool::Buildx => Ok(vec![self.buildx_build(build)?]),
            Tool::Buildah | Tool::Podman => self.containers_build(tool, build),
        }
    }

    /// The layout that `base` stands for.
    fn base_layout(&self, build: &Build<'_>) -> Result<String> {
        let layout = match build.platforms {
            None => &self.base,
            Some(_) => self.foreign.as_ref().ok_or_else(|| Cannot("no base image for several platforms".to_owned()))?,
        };
        Ok(format!("base=oci-layout://{}:latest", layout.display()))
    }

    /// The flags that build-engine and buildx have in common.
    fn common_flags(&self, command: &mut Command, build: &Build<'_>) -> Result<()> {
        command.arg("--network=none").arg("--build-context").arg(self.base_layout(build)?);
        command.args(build.platforms.map(|platforms| format!("--platform={platforms}")));
        command.args(cache_flag(build));
        Ok(())
    }

    fn build_engine_build(&self, build: &Build<'_>) -> Result<Command> {
        let mut command = self.build_engine();
        command.args(["build", "--progress=quiet"]);
        self.common_flags(&mut command, build)?;
        match &build.output {
            Output::Tag(name) => command.arg("--tag").arg(name),
            Output::Archive(path, compression) => {
                command.arg(format!("--output=type=oci,dest={},compression={compression}", path.display()))
            }
            Output::Push(name) => command.arg("--push").arg("--tag").arg(name),
        };
        command.arg(build.context);
        Ok(command)
    }

    fn buildx_build(&self, build: &Build<'_>) -> Result<Command> {
        let mut command = self.peers.docker();
        command.args(["buildx", "build", "--quiet", "--provenance=false"]);
        self.common_flags(&mut command, build)?;
        match &build.output {
            Output::Tag(name) => command.arg("--tag").arg(name),
            Output::Archive(path, compression) => {
                command.arg(format!("--output=type=oci,dest={},compression={compression}", path.display()))
            }
            Output::Push(name) => {
                command.arg(format!("--output=type=image,name={name},push=true,registry.insecure=true"))
            }
        };
        command.arg(build.context);
        Ok(command)
    }

    fn containers_build(&self, tool: Tool, build: &Build<'_>) -> Result<Vec<Command>> {
        if build.cache.is_some() {
            return Err(Cannot("has no cache in a folder".to_owned()).into());
        }
        let name = if let Output::Tag(name) = &build.output { name } else { "bench" };
        let mut command = self.containers(tool);
        command.args(["build", "--quiet", "--layers", "--network=none", "--jobs=16"]);
        if tool == Tool::Buildah {
            command.args(["--runtime", self.peers.runtime()]);
        }
        if let Some(platforms) = build.platforms {
            command.args([format!("--platform={platforms}"), format!("--manifest={name}")]);
            let registry = build.context.join("base");
            let registry = fs::read_to_string(registry).context("the registry of the base is not noted")?;
            command.args(["--tls-verify=false", "--build-context", &format!("base=docker-image://{registry}")]);
        } else {
            let pull = if tool == Tool::Buildah { "--pull-never" } else { "--pull=never" };
            command.args([pull, "--build-context", "base=docker-image://localhost/base:latest", "--tag", name]);
        }
        command.arg(build.context);
        let mut commands = vec![command];
        let (there, compression) = match &build.output {
            Output::Tag(_) => return Ok(commands),
            Output::Archive(path, compression) => (format!("oci-archive:{}", path.display()), *compression),
            Output::Push(name) => (format!("docker://{name}"), "gzip"),
        };
        let mut push = self.containers(tool);
        if build.platforms.is_some() {
            // A manifest of an earlier round would grow.
            let mut forget = self.containers(tool);
            forget.args(["manifest", "rm", name]);
            push.args(["manifest", "push", "--all", "--quiet", name, &there]);
            commands.extend([push, forget]);
        } else {
            push.args(["push", "--quiet", "--tls-verify=false", "--compression-format", compression, name, &there]);
            commands.push(push);
        }
        Ok(commands)
    }

    /// One command that builds all contexts at once.
    pub(crate) fn bake(&self, contexts: &[PathBuf]) -> Result<Command> {
        let targets: serde_json::Map<String, serde_json::Value> = contexts
            .iter()
            .enumerate()
            .map(|(number, context)| {
                let base = format!("oci-layout://{}:latest", self.base.display());
                let target = serde_json::json!({
                    "context": context, "contexts": { "base": base }, "network": "none", "tags": [format!("bench{number}")],
                });
                (format!("t{number}"), target)
            })
            .collect();
        let names: Vec<&String> = targets.keys().collect();
        let file = serde_json::json!({ "group": { "default": { "targets": names } }, "target": targets });
        let path = contexts[0].with_extension("bake.json");
        fs::write(&path, serde_json::to_vec(&file)?)?;
        let mut command = self.peers.docker();
        command.args(["buildx", "bake", "--progress=quiet", "--provenance=false", "--allow=fs.read=/", "--load"]);
        command.arg("--file").arg(path);
        Ok(command)
    }

    /// What was measured, and on what.
    pub(crate) fn versions(&self, tools: &[Tool]) -> Result<Vec<String>> {
        tools
            .iter()
            .map(|tool| {
                let version = match tool {
                    Tool::BuildEngine => output(self.build_engine().arg("--version"))?,
                    Tool::Buildx => {
                        let buildx = output(self.peers.docker().args(["buildx", "version"]))?;
                        format!("Docker {} with {buildx}", self.peers.docker_version()?.trim())
                    }
                    Tool::Buildah | Tool::Podman => output(self.peers.command(tool.flag()).arg("--version"))?,
                };
                Ok(version.trim().to_owned())
            })
            .collect()
    }
}

impl Drop for Builders {
    fn drop(&mut self) {
        // What they leave mounted cannot be removed together with the folder that it is in.
        for tool in [Tool::Buildah, Tool::Podman] {
            let _ = remove_storage(&self.store(tool));
        }
    }
}

fn cache_flag(build: &Build<'_>) -> Option<String> {
    match build.cache.as_ref()? {
        Cache::To(dir) => Some(format!("--cache-to=type=local,mode=max,dest={}", dir.display())),
        Cache::From(dir) => Some(format!("--cache-from=type=local,src={}", dir.display())),
    }
}

/// Removes a folder if it is there.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove `{}`", dir.display()))?;
    }
    Ok(())
}

/// Removes a folder in which buildah or podman has its storage, which they leave mounted upon itself.
pub(crate) fn remove_storage(dir: &Path) -> Result<()> {
    let mounted = dir.join("root/overlay");
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    if mounts.lines().any(|line| line.split(' ').nth(1) == mounted.to_str()) {
        output(Command::new("umount").arg(&mounted))?;
    }
    remove(dir)
}
