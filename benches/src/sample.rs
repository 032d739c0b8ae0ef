//! One measurement: wall time, CPU seconds, and the most memory that commands and their daemon had at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

/// So often is looked how much memory there is; what ends within milliseconds is looked at more often.
const LOOK_EVERY: Duration = Duration::from_millis(10);
const LOOK_OFTEN: Duration = Duration::from_millis(1);

/// One measurement.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// From the start of the first command to the end of the last.
    pub(crate) wall: Duration,
    /// Of the commands, their children and their daemon.
    pub(crate) cpu: Duration,
    /// The most that the resident memory of all of them came to, where it was asked for.
    pub(crate) memory_bytes: Option<u64>,
    /// What the builder keeps afterwards, where the row asks for it.
    #[serde(default)]
    pub(crate) disk_bytes: Option<u64>,
    /// The size of the file that was written.
    #[serde(default)]
    pub(crate) archive_bytes: Option<u64>,
    /// What `gzip -1` makes of the same files.
    #[serde(default)]
    pub(crate) gzip_bytes: Option<u64>,
}

/// The commands of one measurement.
pub(crate) enum Commands {
    InTurn(Vec<Command>),
    AtOnce(Vec<Command>),
}

/// Whether memory is watched; that costs a few hundredths of a processor, which are not the command's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watch {
    No,
    /// For commands that take a while.
    Memory,
    /// For short ones, whose time is then not counted.
    OnlyMemory,
}

impl Sample {
    /// Runs `commands` and measures them together with their `daemon`.
    ///
    /// # Errors
    /// When one of them fails.
    pub(crate) fn of(commands: Commands, daemon: Option<u32>, watch: Watch) -> Result<Sample> {
        let used = || -> Result<Duration> { Ok(cpu_of_children()? + daemon.map_or(Ok(Duration::ZERO), cpu_of_tree)?) };
        let before = used()?;
        let roots = Mutex::new(daemon.into_iter().collect::<BTreeSet<u32>>());
        let start = Instant::now();
        let (result, wall, memory_bytes) = thread::scope(|scope| {
            let (ended, end) = mpsc::channel::<()>();
            let watcher = (watch != Watch::No).then(|| {
                let every = if watch == Watch::Memory { LOOK_EVERY } else { LOOK_OFTEN };
                let roots = &roots;
                scope.spawn(move || most_memory(roots, every, &end))
            });
            let result = match commands {
                Commands::InTurn(commands) => commands.into_iter().try_for_each(|command| run(command, &roots)),
                Commands::AtOnce(commands) => {
                    let running: Vec<_> =
                        commands.into_iter().map(|command| scope.spawn(|| run(command, &roots))).collect();
                    running.into_iter().try_for_each(|thread| thread.join().expect("`run` does not panic"))
                }
            };
            let wall = start.elapsed();
            drop(ended);
            (result, wall, watcher.and_then(|watcher| watcher.join().ok()))
        });
        result?;
        Ok(Sample { wall, cpu: used()?.saturating_sub(before), memory_bytes, ..Sample::default() })
    }
}

/// Runs one command, whose process is one of the `roots` meanwhile.
fn run(mut command: Command, roots: &Mutex<BTreeSet<u32>>) -> Result<()> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    let pid = child.id();
    let roots = || roots.lock().unwrap_or_else(PoisonError::into_inner);
    roots().insert(pid);
    let mut talk = Vec::new();
    let read = child.stderr.take().map(|mut stderr| stderr.read_to_end(&mut talk));
    let status = child.wait();
    roots().remove(&pid);
    read.transpose()?;
    let status = status?;
    if !status.success() {
        bail!("{command:?} failed ({status}):\n{}", String::from_utf8_lossy(&talk));
    }
    Ok(())
}

/// The most memory that the trees of `roots` had together, until the other end of `end` is dropped.
fn most_memory(roots: &Mutex<BTreeSet<u32>>, every: Duration, end: &mpsc::Receiver<()>) -> u64 {
    let mut most = 0;
    loop {
        let now: Vec<u32> = roots.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        most = most.max(resident_bytes(now));
        if end.recv_timeout(every) != Err(RecvTimeoutError::Timeout) {
            return most;
        }
    }
}

/// The resident memory of some processes and all below them: their own pages, and those of each program once, however
/// many of them run it. Whatever ends meanwhile has none.
fn resident_bytes(mut wanted: Vec<u32>) -> u64 {
    let mut total = 0;
    let mut programs: BTreeMap<PathBuf, u64> = BTreeMap::new();
    while let Some(pid) = wanted.pop() {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let bytes = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"));
            value.and_then(|kilobytes| kilobytes.parse::<u64>().ok()).unwrap_or(0) << 10
        };
        total += bytes("RssAnon:");
        // A program that runs from a sealed copy in memory has its pages there.
        let shared = bytes("RssFile:") + bytes("RssShmem:");
        let program = programs.entry(fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default()).or_default();
        *program = shared.max(*program);
        // A child is listed with the thread that started it.
        for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            wanted.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    total + programs.values().sum::<u64>()
}

/// The fields of `/proc/PID/stat` after the name, which may have spaces.
fn stat(pid: &str) -> Result<Vec<u64>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
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
    let processes: Vec<(u64, Vec<u64>)> = fs::read_dir("/proc")?
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

/// What a folder takes on the disk; a file with several names counts once, and what is mounted below is not looked at.
pub(crate) fn disk_bytes(dir: &Path) -> Result<u64> {
    let device = fs::metadata(dir).with_context(|| format!("cannot read `{}`", dir.display()))?.dev();
    let mut seen = BTreeSet::new();
    let mut total = 0;
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        // A daemon may remove files meanwhile.
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.dev() != device || !seen.insert(metadata.ino()) {
                continue;
            }
            total += metadata.blocks() * 512;
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(total)
}
