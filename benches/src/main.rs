//! Compares the engine with BuildKit and buildah, on workloads that it makes itself.
//!
//! `make bench` runs it. All builders run in one go and in turns (A B C A B C …), so that a busy machine slows all of them
//! alike. Wall time is that of the command; CPU seconds are those of the command with its children, and of the daemon where
//! there is one.

mod table;
mod workload;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use build_engine_testkit::fixtures;
use build_engine_testkit::peers::{Peers, output};

use crate::table::Row;
use crate::workload::Workload;

/// The builders, in the order of the table.
const BUILDERS: &[&str] = &["build-engine", "docker buildx (BuildKit)", "buildah"];

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    wall: Duration,
    cpu: Duration,
}

struct Options {
    binary: PathBuf,
    write: Option<PathBuf>,
    repetitions: usize,
    only: Option<String>,
}

#[allow(clippy::print_stderr, clippy::print_stdout, reason = "a program for people")]
fn main() -> Result<()> {
    let options = options()?;
    let peers = Peers::start()?;
    let base = fixtures::busybox()?;
    let dir = tempfile::Builder::new().prefix("build-engine-bench-").tempdir()?;
    let builders = Builders::new(&options.binary, peers, base, dir.path())?;
    let mut rows = Vec::new();
    for workload in workload::all() {
        if options.only.as_deref().is_some_and(|only| only != workload.id) {
            continue;
        }
        eprintln!("{}: {}", workload.id, workload.title);
        let samples = measure(&builders, &workload, &dir.path().join(workload.id), options.repetitions)?;
        rows.push(Row { id: workload.id, title: workload.title, samples });
    }
    let text = table::render(&rows, BUILDERS, &builders.versions()?);
    print!("{text}");
    if let Some(path) = options.write {
        std::fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    Ok(())
}

fn options() -> Result<Options> {
    let mut options =
        Options { binary: PathBuf::from("target/release/build-engine"), write: None, repetitions: 7, only: None };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("`{arg}` takes a value"));
        match arg.as_str() {
            "--binary" => options.binary = PathBuf::from(value()?),
            "--write" => options.write = Some(PathBuf::from(value()?)),
            "--repetitions" => options.repetitions = value()?.parse()?,
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
        let before = (cpu_of_children()?, daemon.map_or(Ok(Duration::ZERO), cpu_of_tree)?);
        let start = Instant::now();
        let result = command.stdin(Stdio::null()).output()?;
        let wall = start.elapsed();
        if !result.status.success() {
            bail!("{}", String::from_utf8_lossy(&result.stderr));
        }
        let after = (cpu_of_children()?, daemon.map_or(Ok(Duration::ZERO), cpu_of_tree)?);
        Ok(Sample { wall, cpu: after.0.saturating_sub(before.0) + after.1.saturating_sub(before.1) })
    }

    fn versions(&self) -> Result<String> {
        let docker = self.peers.docker_version()?;
        let buildah = output(self.peers.containers_tool("buildah").arg("--version"))?;
        let processors = std::thread::available_parallelism()?;
        Ok(format!("Docker {}, {}, on {processors} processors, Linux {}", docker.trim(), buildah.trim(), kernel()?))
    }
}

fn kernel() -> Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned())
}

/// The fields of `/proc/PID/stat` after the name, which may have spaces.
fn stat(pid: &str) -> Result<Vec<u64>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = text.rsplit_once(") ").context("a stat line has a name")?.1;
    Ok(rest.split(' ').map(|field| field.trim().parse().unwrap_or(0)).collect())
}

fn ticks(count: u64) -> Duration {
    // The kernel's USER_HZ is 100 on every architecture that we build for.
    Duration::from_millis(count * 10)
}

/// The CPU time of all children of this process that have ended, theirs included.
fn cpu_of_children() -> Result<Duration> {
    let stat = stat("self")?;
    Ok(ticks(stat[13] + stat[14]))
}

/// The CPU time of a daemon and of what it has running and has waited for.
fn cpu_of_tree(root: u32) -> Result<Duration> {
    let mut total = 0;
    let mut wanted = vec![u64::from(root)];
    let processes: Vec<(u64, Vec<u64>)> = std::fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            Some((name.parse().ok()?, stat(&name).ok()?))
        })
        .collect();
    while let Some(pid) = wanted.pop() {
        for (child, stat) in &processes {
            if *child == pid {
                total += stat[11] + stat[12] + stat[13] + stat[14];
            }
            if stat[1] == pid {
                wanted.push(*child);
            }
        }
    }
    Ok(ticks(total))
}
