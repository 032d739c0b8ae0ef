//! Compares the engine with BuildKit, buildah and skopeo, on workloads that it makes itself.
//!
//! `make bench` runs it. All builders run in one go and in turns (A B C A B C …), so that a busy machine slows all of them
//! alike. What a measurement is says [`sample`]; builds are in [`workload`], images to and from a registry in [`transfer`].

mod sample;
mod table;
mod transfer;
mod workload;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use build_engine_testkit::fixtures;
use build_engine_testkit::peers::{Peers, output};

use crate::sample::Sample;
use crate::table::Row;
use crate::workload::Workload;

/// The builders, in the order of the table.
const BUILDERS: &[&str] = &["build-engine", "docker buildx (BuildKit)", "buildah"];
/// How often a build is measured.
const BUILDS: usize = 7;
/// How often an image is moved; each time takes many seconds.
const TRANSFERS: usize = 3;

struct Options {
    binary: PathBuf,
    write: Option<PathBuf>,
    repetitions: Option<usize>,
    /// Rows to measure, with commas between them.
    only: Option<String>,
}

#[allow(clippy::print_stderr, clippy::print_stdout, reason = "a program for people")]
fn main() -> Result<()> {
    let options = options()?;
    let peers = Peers::start()?;
    let base = fixtures::busybox()?;
    let dir = tempfile::Builder::new().prefix("build-engine-bench-").tempdir()?;
    let builders = Builders::new(&options.binary, peers, base, dir.path())?;
    let wanted = |id: &str| options.only.as_deref().is_none_or(|only| only.split(',').any(|only| only == id));
    let mut rows = Vec::new();
    for workload in workload::all() {
        if !wanted(workload.id) {
            continue;
        }
        eprintln!("{}: {}", workload.id, workload.title);
        let samples =
            measure(&builders, &workload, &dir.path().join(workload.id), options.repetitions.unwrap_or(BUILDS))?;
        rows.push(Row { id: workload.id, title: workload.title, samples });
    }
    let mut transfers = Vec::new();
    if transfer::are_wanted(wanted) {
        let (Builders { binary, peers, base, .. }, dir) = (&builders, dir.path().join("transfers"));
        transfers = transfer::rows(binary, peers, base, &dir, options.repetitions.unwrap_or(TRANSFERS), wanted)?;
    }
    let text = table::render(&rows, &transfers, &builders.versions()?);
    print!("{text}");
    if let Some(path) = options.write {
        std::fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    Ok(())
}

fn options() -> Result<Options> {
    let mut options =
        Options { binary: PathBuf::from("target/release/build-engine"), write: None, repetitions: None, only: None };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("`{arg}` takes a value"));
        match arg.as_str() {
            "--binary" => options.binary = PathBuf::from(value()?),
            "--write" => options.write = Some(PathBuf::from(value()?)),
            "--repetitions" => options.repetitions = Some(value()?.parse()?),
            "--only" => options.only = Some(value()?),
            other => bail!("unknown option `{other}`: --binary, --write, --repetitions, --only"),
        }
    }
    options.binary =
        options.binary.canonicalize().with_context(|| format!("no binary at `{}`", options.binary.display()))?;
    Ok(options)
}

/// Warms every builder up, then measures them in turns.
fn measure(builders: &Builders, workload: &Workload, dir: &Path, repetitions: usize) -> Result<Vec<Vec<Sample>>> {
    let mut samples = vec![Vec::new(); BUILDERS.len()];
    for round in 0..=repetitions {
        for (index, name) in BUILDERS.iter().enumerate() {
            let context = dir.join(format!("{index}-{}", if workload.fresh { round } else { 0 }));
            (workload.write)(&context, round)?;
            let sample = builders.build(index, &context).with_context(|| format!("{name} on {}", workload.id))?;
            // The first round fills caches.
            if round > 0 {
                samples[index].push(sample);
            }
        }
    }
    Ok(samples)
}

struct Builders {
    binary: PathBuf,
    peers: Peers,
    base: PathBuf,
    state: PathBuf,
    daemon: Option<u32>,
}

impl Builders {
    fn new(binary: &Path, peers: Peers, base: PathBuf, dir: &Path) -> Result<Builders> {
        let state = dir.join("state");
        std::fs::create_dir_all(&state)?;
        // buildah takes its base from its own storage.
        let source = format!("oci:{}:latest", base.display());
        let buildah = output(peers.containers_tool("buildah").args(["pull", "--quiet", &source]))?;
        output(peers.containers_tool("buildah").args(["tag", buildah.trim(), "localhost/base:latest"]))?;
        let daemon = peers.dockerd();
        Ok(Builders { binary: binary.to_path_buf(), peers, base, state, daemon })
    }

    /// One build by the builder `index`; the image stays in the builder's own store.
    fn build(&self, index: usize, context: &Path) -> Result<Sample> {
        let base = format!("base=oci-layout://{}:latest", self.base.display());
        let context = context.to_string_lossy().into_owned();
        let mut command = match index {
            0 => {
                let mut command = Command::new(&self.binary);
                command.env("BUILD_ENGINE_ROOT", self.state.join("store"));
                command.args([
                    "build",
                    "--progress=quiet",
                    "--network=none",
                    "--tag=bench",
                    "--build-context",
                    &base,
                    &context,
                ]);
                command
            }
            1 => {
                let mut command = self.peers.docker();
                command.args(["buildx", "build", "--quiet", "--provenance=false", "--network=none", "--tag=bench"]);
                command.args(["--build-context", &base, &context]);
                command
            }
            _ => {
                let mut command = self.peers.containers_tool("buildah");
                command.args(["build", "--quiet", "--layers", "--network=none", "--runtime", self.peers.runtime()]);
                command.args([
                    "--pull-never",
                    "--build-context",
                    "base=docker-image://localhost/base:latest",
                    "--tag=bench",
                    &context,
                ]);
                command
            }
        };
        let daemon = if index == 1 { self.daemon } else { None };
        Sample::of(&mut command, daemon)
    }

    fn versions(&self) -> Result<String> {
        let docker = self.peers.docker_version()?;
        let buildah = output(self.peers.containers_tool("buildah").arg("--version"))?;
        let skopeo = output(self.peers.command("skopeo").arg("--version"))?;
        let (docker, buildah, skopeo) = (docker.trim(), buildah.trim(), skopeo.trim());
        let processors = std::thread::available_parallelism()?;
        Ok(format!("Docker {docker}, {buildah}, {skopeo}, on {processors} processors, Linux {}", kernel()?))
    }
}

fn kernel() -> Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned())
}
