//! Word expansion, ignore files and paths of `COPY` against BuildKit: random input, the same for both, the results compared.
//!
//! One build holds some hundreds of inputs, so that a run takes seconds. `BUILD_ENGINE_SEED=N` takes other inputs than the usual
//! ones, `BUILD_ENGINE_ROUNDS=N` more of them; a failure names its seed and its smallest part. Without peers, the tests say so
//! and pass.

mod copies;
mod ignores;
mod words;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use build_engine_testkit::available;
use build_engine_testkit::engine::{Engine, Who};
use build_engine_testkit::image::{Image, image_of_archive};
use build_engine_testkit::peers::Peers;

/// Both builders.
struct Bench {
    peers: Peers,
    engine: Engine,
}

impl Bench {
    /// `None` where there is no BuildKit to compare with.
    fn start() -> Option<Self> {
        let peers = available(Peers::start())?;
        let engine = available(Engine::new(Who::Root))?;
        Some(Self { peers, engine })
    }

    /// Builds `dir` with BuildKit; the error is its message.
    fn reference(&self, dir: &Path, contexts: &[(String, PathBuf)]) -> Result<Image> {
        let out = self.engine.work().join("reference.tar");
        let mut command = self.peers.docker();
        command.args(["buildx", "build", "--provenance=false", "--progress=plain"]);
        command.args(arguments(dir, contexts, &out));
        let output = command.output().context("cannot run docker")?;
        ensure!(output.status.success(), "BuildKit fails:\n{}", String::from_utf8_lossy(&output.stderr));
        image_of_archive(&out)
    }

    /// Builds `dir` with the engine.
    fn ours(&self, dir: &Path, contexts: &[(String, PathBuf)]) -> Result<Image> {
        let out = self.engine.work().join("ours.tar");
        let mut args = vec!["build".to_owned()];
        args.extend(arguments(dir, contexts, &out));
        let run = self.engine.run(&args)?;
        ensure!(run.code == Some(0), "the engine fails:\n{}", run.stderr);
        image_of_archive(&out)
    }

    /// An empty directory below the engine's folder.
    fn directory(&self, name: &str) -> Result<PathBuf> {
        let dir = self.engine.work().join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}

fn arguments(dir: &Path, contexts: &[(String, PathBuf)], out: &Path) -> Vec<String> {
    let mut args = vec![format!("--output=type=oci,dest={}", out.display())];
    args.extend(contexts.iter().map(|(name, path)| format!("--build-context={name}={}", path.display())));
    args.push(dir.display().to_string());
    args
}

/// A sequence of numbers that follows from its seed (xorshift64*).
struct Random(u64);

impl Random {
    /// From `BUILD_ENGINE_SEED`, or always the same. `salt` keeps tests apart.
    fn new(salt: u64) -> Self {
        let seed = number("BUILD_ENGINE_SEED").unwrap_or(20_240_601);
        Self((seed ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15)).max(1))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap_or(0) % limit
    }

    /// True once in `times`.
    fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// How many builds a test makes.
fn rounds(usual: u64) -> u64 {
    number("BUILD_ENGINE_ROUNDS").unwrap_or(usual)
}
