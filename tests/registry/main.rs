//! Registries: pulling and pushing through the command line, from those that behave and those that do not.
//!
//! Names of tests begin with the row of the security plan that they stand for (R01 to R13). Registries run on loopback:
//! [`build_engine_testkit::registry::FakeRegistry`] in this process, and Debian's `docker-registry`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod credentials;
mod hostile;
mod images;
mod interop;
mod lazy;
mod load;
mod network;
mod origins;
mod real;
mod roundtrip;
mod tls;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use build_engine_testkit::engine::{Engine, Run, Who};
use build_engine_testkit::{available, sha256};
use serde_json::{Value, json};

/// The user whom registries here know.
const USER: &str = "tester";
/// Their password: found again wherever it leaks to.
const PASSWORD: &str = "correct-horse-battery";

/// An engine with settings and credentials of its own.
struct Bench {
    engine: Engine,
    settings: PathBuf,
    /// `DOCKER_CONFIG`, unless it is `.docker` in the home, where it is found without.
    docker_config: PathBuf,
    environment: BTreeMap<String, String>,
}

impl Bench {
    /// Returns `None`, after saying why, where `who` cannot be had. The limits of the network are short, so that a
    /// registry that never answers is found out soon.
    fn new(who: Who) -> Option<Bench> {
        let engine = available(Engine::new(who))?;
        let settings = engine.work().join("config.json");
        let docker_config = engine.work().join("docker-config");
        fs::create_dir(&docker_config).unwrap();
        engine.adopt(&docker_config).unwrap();
        let bench = Bench { engine, settings, docker_config, environment: BTreeMap::new() };
        bench.configure(&json!({}), &json!({}));
        Some(bench)
    }

    /// Writes the settings: `registries`, and `network` over the short limits of the tests.
    fn configure(&self, registries: &Value, network: &Value) {
        let mut limits = json!({
            "connect-seconds": 5, "response-seconds": 20, "stall-seconds": 20, "min-bytes": 1000, "retries": 3,
            "backoff-seconds": 0.02, "max-wait-seconds": 5,
        });
        for (name, value) in network.as_object().unwrap() {
            limits[name] = value.clone();
        }
        self.write(&self.settings, &json!({ "registries": registries, "network": limits }).to_string());
    }

    /// Writes `USER` and `PASSWORD` for `host` to where docker keeps them.
    fn log_in(&self, host: &str) {
        self.docker_config(&json!({ "auths": { (host): { "auth": basic(USER, PASSWORD) } } }));
    }

    /// Writes `config.json` of docker.
    fn docker_config(&self, config: &Value) {
        self.write(&self.docker_config.join("config.json"), &config.to_string());
    }

    /// Writes a file that the engine's user can read.
    fn write(&self, path: &Path, content: &str) {
        fs::write(path, content).unwrap();
        self.engine.adopt(path).unwrap();
    }

    /// `build-engine ARGS…` with the settings, not started yet.
    fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.engine.command(args);
        command.env("BUILD_ENGINE_CONFIG", &self.settings);
        if !self.docker_config.ends_with(".docker") {
            command.env("DOCKER_CONFIG", &self.docker_config);
        }
        command.envs(&self.environment);
        command
    }

    fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Run {
        let run = Run::from(self.command(args).output().unwrap());
        assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
        assert!(!run.stderr.contains(PASSWORD) && !run.stdout.contains(PASSWORD), "the password is shown: {run:?}");
        run
    }

    /// As [`Bench::run`], where the names in [`NAMES`] stand for this machine. Names, unlike addresses of loopback, are
    /// what registries in the field have. For root alone.
    fn run_with_names<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Run {
        let hosts = self.engine.work().join("hosts");
        self.write(&hosts, &format!("127.0.0.1 localhost\n127.0.0.1 {}\n", NAMES.join(" ")));
        let plain = self.command(args);
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]).arg(&hosts);
        command.arg(plain.get_program()).args(plain.get_args()).env_clear();
        for (name, value) in plain.get_envs().filter_map(|(name, value)| Some((name, value?))) {
            command.env(name, value);
        }
        let run = Run::from(command.current_dir(self.engine.work()).output().unwrap());
        assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
        assert!(!run.stderr.contains(PASSWORD) && !run.stdout.contains(PASSWORD), "the password is shown: {run:?}");
        run
    }

    /// Runs what must succeed, and returns its standard output.
    #[track_caller]
    fn ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        let run = self.run(args);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        run.stdout
    }

    /// Runs what must end with one of `codes`, and a message with all of `parts`.
    #[track_caller]
    fn fails<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>, codes: &[i32], parts: &[&str]) -> Run {
        let run = self.run(args);
        assert!(run.code.is_some_and(|code| codes.contains(&code)), "{codes:?}, not {:?}: {}", run.code, run.stderr);
        for part in parts {
            assert!(run.stderr.contains(part), "the message has no `{part}`:\n{}", run.stderr);
        }
        run
    }

    /// `build --progress=plain ARGS… CONTEXT` of a context with these files.
    fn build(&self, name: &str, files: &[(&str, &str)], args: &[&str]) -> Run {
        let context = self.engine.context(name, files).unwrap();
        let mut all = vec!["build", "--progress=plain", "--network=none"];
        all.extend(args);
        let context = context.to_string_lossy();
        all.push(&context);
        self.run(all)
    }

    /// Checks the store: by its own command, and every blob against its name.
    #[track_caller]
    fn verify_store(&self) {
        let run = self.run(["cache", "verify"]);
        assert_eq!(run.code, Some(0), "{}{}", run.stdout, run.stderr);
        for (name, path) in self.blobs() {
            assert_eq!(sha256(&fs::read(path).unwrap()), name, "a blob of the store has not the content of its name");
        }
    }

    /// The blobs of the store, by digest without `sha256:`.
    fn blobs(&self) -> BTreeMap<String, PathBuf> {
        let dir = self.engine.store().join("content/blobs/sha256");
        let entries = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap());
        entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect()
    }

    fn has_blob(&self, digest: &str) -> bool {
        self.blobs().contains_key(digest.trim_start_matches("sha256:"))
    }

    /// Uses an empty store from now on.
    fn empty_store(&mut self, name: &str) {
        let home = self.engine.work().parent().unwrap().join("home");
        self.engine.set_store(home.join(name));
    }

    /// All paths of the engine's home and work directories but those in its store.
    fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.engine.work().parent().unwrap().to_path_buf()];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path == self.engine.store() {
                    continue;
                }
                if path.is_dir() {
                    open.push(path.clone());
                }
                found.push(path);
            }
        }
        found.sort();
        found
    }
}

/// What `auth` holds in docker's configuration.
fn basic(user: &str, password: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
}

/// Runs `action`, and checks that it takes no longer than `limit`.
#[track_caller]
fn within<T>(limit: Duration, action: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = action();
    assert!(start.elapsed() < limit, "it took {:?}, more than {limit:?}", start.elapsed());
    result
}

/// Names that [`Bench::run_with_names`] knows.
const NAMES: [&str; 3] = ["registry.test", "auth.registry.test", "attacker.example"];

/// Everybody for whom the engine works.
const EVERYBODY: [Who; 2] = [Who::Root, Who::User];
