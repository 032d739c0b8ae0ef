//! One command, measured: wall time, CPU seconds, and the most memory that it and its daemon had at once.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// So often is looked how much memory there is.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// From the start of the command to its end.
    pub(crate) wall: Duration,
    /// Of the command, its children and its daemon.
    pub(crate) cpu: Duration,
    /// The most that the resident memory of all of them came to, where it was asked for.
    pub(crate) memory_bytes: Option<u64>,
}

impl Sample {
    /// Runs `command` and measures it together with its `daemon`.
    ///
    /// # Errors
    /// When the command fails.
    pub(crate) fn of(command: &mut Command, daemon: Option<u32>) -> Result<Sample> {
        Self::measure(command, daemon, false)
    }

    /// The same, watching memory meanwhile; that costs a few hundredths of a processor, which are not the command's.
    ///
    /// # Errors
    /// When the command fails.
    pub(crate) fn with_memory(command: &mut Command, daemon: Option<u32>) -> Result<Sample> {
        Self::measure(command, daemon, true)
    }

    fn measure(command: &mut Command, daemon: Option<u32>, memory: bool) -> Result<Sample> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let used = || -> Result<Duration> { Ok(cpu_of_children()? + daemon.map_or(Ok(Duration::ZERO), cpu_of_tree)?) };
        let before = used()?;
        let start = Instant::now();
        let child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let roots: Vec<u32> = daemon.into_iter().chain([child.id()]).collect();
        let (result, wall, memory_bytes) = thread::scope(|scope| {
            let (ended, end) = mpsc::channel::<()>();
            let watcher = memory.then(|| scope.spawn(move || watch(&roots, &end)));
            let result = child.wait_with_output();
            let wall = start.elapsed();
            drop(ended);
            (result, wall, watcher.and_then(|watcher| watcher.join().ok()))
        });
        let result = result?;
        if !result.status.success() {
            bail!("{command:?} failed ({}):\n{}", result.status, String::from_utf8_lossy(&result.stderr));
        }
        Ok(Sample { wall, cpu: used()?.saturating_sub(before), memory_bytes })
    }
}

/// The most memory that the trees of `roots` had together, until the other end of `end` is dropped.
fn watch(roots: &[u32], end: &mpsc::Receiver<()>) -> u64 {
    let mut most = 0;
    loop {
        most = most.max(resident_bytes(roots));
        if end.recv_timeout(LOOK_EVERY) != Err(RecvTimeoutError::Timeout) {
            return most;
        }
    }
}

/// The resident memory of some processes and all below them. Whatever ends meanwhile has none.
fn resident_bytes(roots: &[u32]) -> u64 {
    let mut wanted = roots.to_vec();
    let mut total = 0;
    while let Some(pid) = wanted.pop() {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        total += resident.and_then(|kilobytes| kilobytes.parse().ok()).unwrap_or(0_u64) << 10;
        // A child is listed with the thread that started it.
        for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            wanted.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    total
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
