//! Control groups of steps: limits, counters, and the proof that nothing is left.
//!
//! Version 2 is used where a directory above the worker's own group may be written (root, or a delegated subtree), the
//! version 1 controllers for root, and both on hybrid machines. Where neither is possible the step runs without, and a
//! note says so if a limit was asked for. A group is removed by the helper that made it; what a killed helper left is
//! removed by `sweep` when the worker ends.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::spec::{Limits, Swap};

/// The control groups of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Version {
    /// One hierarchy.
    V2,
    /// One hierarchy for each controller.
    V1,
    /// Version 1 controllers, and a version 2 hierarchy without them.
    Hybrid,
    /// None is mounted.
    None,
}

/// Which controllers steps can be limited with here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Available {
    /// The version.
    pub version: Version,
    /// Controllers whose groups this process may make: `memory`, `pids`, `cpu`, `cpuset`.
    pub controllers: Vec<String>,
}

/// Reads what the machine offers to this process.
pub fn available() -> Available {
    let places = places();
    let v1 = places.iter().any(|p| !p.unified);
    let unified = unified_mount().is_some();
    let version = match (v1 || v1_mounted(), unified) {
        (true, true) => Version::Hybrid,
        (true, false) => Version::V1,
        (false, true) => Version::V2,
        (false, false) => Version::None,
    };
    let mut controllers: Vec<String> = places.iter().flat_map(|p| p.controllers.iter().cloned()).collect();
    controllers.sort();
    controllers.dedup();
    Available { version, controllers }
}

/// A directory below which groups can be made, and the controllers that they have.
#[derive(Debug, Clone)]
struct Place {
    directory: PathBuf,
    controllers: Vec<String>,
    unified: bool,
}

impl Place {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    /// A version 1 group of processors, which must be told all of them before a process may enter.
    fn is_old_cpuset(&self) -> bool {
        !self.unified && self.has("cpuset")
    }

    /// Gives a new group what its parent has, where the kernel does not.
    fn inherit(&self, directory: &Path) {
        let Some(parent) = directory.parent().filter(|_| self.is_old_cpuset()) else { return };
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(value) = fs::read_to_string(parent.join(file)) {
                let _ = fs::write(directory.join(file), value.trim());
            }
        }
    }
}

/// A value to be written into a control group.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    controller: &'static str,
    file: &'static str,
    value: String,
    /// Whether somebody has to be told where it cannot be set.
    asked: bool,
}

/// What `limits` are in the files of version 2 (`unified`) or 1, in the order in which they are to be written.
fn settings(limits: &Limits, unified: bool) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut add =
        |controller, asked, (new, new_value): (&'static str, String), (old, old_value): (&'static str, String)| {
            let (file, value) = if unified { (new, new_value) } else { (old, old_value) };
            settings.push(Setting { controller, file, value, asked });
        };
    if let Some(pids) = limits.pids {
        add("pids", true, ("pids.max", pids.to_string()), ("pids.max", pids.to_string()));
    }
    if let Some(bytes) = limits.memory_bytes {
        add("memory", true, ("memory.max", bytes.to_string()), ("memory.limit_in_bytes", bytes.to_string()));
        let asked = limits.swap != Swap::None;
        // Version 2 counts swap alone, version 1 both together, and both only where the kernel counts it at all.
        let (swap, both) = match limits.swap {
            Swap::None => ("0".to_owned(), bytes.to_string()),
            Swap::Bytes(swap) => (swap.to_string(), bytes.saturating_add(swap).to_string()),
            Swap::Unlimited => ("max".to_owned(), "-1".to_owned()),
        };
        add("memory", asked, ("memory.swap.max", swap), ("memory.memsw.limit_in_bytes", both));
        add("memory", false, ("memory.oom.group", "1".into()), ("memory.oom_control", "0".into()));
    }
    if let Some(shares) = limits.cpu_shares {
        add("cpu", true, ("cpu.weight", weight(shares).to_string()), ("cpu.shares", shares.to_string()));
    }
    if limits.cpu_quota_micros.is_some() || limits.cpu_period_micros.is_some() {
        let period = limits.cpu_period_micros.unwrap_or(100_000);
        let quota = limits.cpu_quota_micros.map(|quota| quota.to_string());
        let new = format!("{} {period}", quota.as_deref().unwrap_or("max"));
        // Version 1 has two files: the period first, since a quota is checked against it.
        add("cpu", true, ("cpu.max", new.clone()), ("cpu.cfs_period_us", period.to_string()));
        if let Some(quota) = quota {
            add("cpu", true, ("cpu.max", new), ("cpu.cfs_quota_us", quota));
        }
    }
    for (file, list) in [("cpuset.cpus", &limits.cpuset_cpus), ("cpuset.mems", &limits.cpuset_mems)] {
        if !list.is_empty() {
            add("cpuset", true, (file, list.clone()), (file, list.clone()));
        }
    }
    settings.dedup();
    settings
}

/// Shares of version 1 (2 to 262144, usually 1024) as a weight of version 2 (1 to 10000, usually 100).
///
/// Source: opencontainers/cgroups, `ConvertCPUSharesToCgroupV2Value`: a curve through the lowest, the usual and the
/// highest values of both.
fn weight(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    let log = (shares.min(262_144) as f64).log2();
    let exponent = log.mul_add(log, 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

/// The groups of one step.
#[derive(Debug, Default)]
pub(crate) struct Group {
    directories: Vec<(PathBuf, Place)>,
    /// Parents that did not exist before, outermost first.
    parents: Vec<PathBuf>,
}

impl Group {
    /// Makes the groups and sets the limits; what fails becomes a note if it was asked for.
    pub(crate) fn create(prefix: &str, parent: &str, limits: &Limits, notes: &mut Vec<String>) -> Self {
        if *limits == Limits::default() && parent.is_empty() {
            return Self::default();
        }
        let mut random = [0; 8];
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
        let name = format!("{prefix}{:016x}", u64::from_le_bytes(random));
        let mut group = Self::default();
        for place in places() {
            let sets = !limits.cpuset_cpus.is_empty() || !limits.cpuset_mems.is_empty();
            if place.is_old_cpuset() && !sets && parent.is_empty() {
                continue;
            }
            let Some(base) = below(&place, parent, &mut group.parents) else {
                notes.push(format!("control group parent {parent:?} is not usable"));
                continue;
            };
            let directory = base.join(&name);
            match fs::create_dir(&directory) {
                Ok(()) => {
                    place.inherit(&directory);
                    group.directories.push((directory, place));
                }
                Err(e) => tracing::debug!("no control group at {}: {e}", directory.display()),
            }
        }
        group.limit(limits, notes);
        group
    }

    fn limit(&self, limits: &Limits, notes: &mut Vec<String>) {
        // What is asked for is named as in version 2, whichever there is.
        for wanted in settings(limits, true).iter().filter(|setting| setting.asked) {
            if !self.directories.iter().any(|(_, place)| place.has(wanted.controller)) {
                notes.push(format!("limit {} = {} not set: no such control group", wanted.file, wanted.value));
            }
        }
        for (directory, place) in &self.directories {
            for setting in settings(limits, place.unified).iter().filter(|setting| place.has(setting.controller)) {
                match fs::write(directory.join(setting.file), &setting.value) {
                    Err(e) if setting.asked => {
                        notes.push(format!("limit {} = {} not set: {e}", setting.file, setting.value));
                    }
                    Err(_) | Ok(()) => {}
                }
            }
        }
    }

    /// Moves the step into its groups.
    pub(crate) fn attach(&self, pid: i32, notes: &mut Vec<String>) {
        for (directory, _) in &self.directories {
            if let Err(e) = fs::write(directory.join("cgroup.procs"), pid.to_string()) {
                notes.push(format!("step is not in control group {}: {e}", directory.display()));
            }
        }
    }

    /// Reads the counters and removes the groups: (whether memory ran out, peak memory).
    pub(crate) fn finish(mut self) -> (bool, Option<u64>) {
        let (mut out_of_memory, mut peak) = (false, None);
        for (directory, place) in &self.directories {
            if !place.controllers.iter().any(|c| c == "memory") {
                continue;
            }
            let (events, highest) = if place.unified {
                ("memory.events", "memory.peak")
            } else {
                ("memory.oom_control", "memory.max_usage_in_bytes")
            };
            let text = fs::read_to_string(directory.join(events)).unwrap_or_default();
            let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok());
            out_of_memory |= kills.is_some_and(|n| n > 0);
            peak = fs::read_to_string(directory.join(highest)).ok().and_then(|t| t.trim().parse().ok()).or(peak);
        }
        self.remove();
        (out_of_memory, peak)
    }

    fn remove(&mut self) {
        for (directory, _) in self.directories.drain(..) {
            // The last process is gone, but the kernel lets go of the group a moment later.
            for _ in 0..200 {
                match fs::remove_dir(&directory) {
                    Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                    Ok(()) | Err(_) => break,
                }
            }
        }
        // One that another step uses by now is not empty, and stays for it.
        for parent in self.parents.drain(..).rev() {
            let _ = fs::remove_dir(parent);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Removes the empty groups whose name starts with `prefix`.
pub(crate) fn sweep(prefix: &str) {
    for place in places() {
        for entry in fs::read_dir(&place.directory).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

/// `parent` below `place`, made if needed and then added to `made`. No component may leave the place.
fn below(place: &Place, parent: &str, made: &mut Vec<PathBuf>) -> Option<PathBuf> {
    let mut path = place.directory.clone();
    for component in parent.split('/').filter(|c| !c.is_empty()) {
        if component == "." || component == ".." {
            return None;
        }
        path.push(component);
        match fs::create_dir(&path) {
            Ok(()) => {
                place.inherit(&path);
                made.push(path.clone());
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(_) => return None,
        }
    }
    Some(path)
}

const WANTED: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

fn places() -> Vec<Place> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut places = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        if controllers.is_empty() {
            places.extend(unified_mount().and_then(|mount| unified_place(&mount, path)));
            continue;
        }
        for controller in controllers.split(',').filter(|c| WANTED.contains(c)) {
            let mounts = [format!("/sys/fs/cgroup/{controller}"), format!("/sys/fs/cgroup/{controllers}")];
            let found = mounts.iter().map(|mount| Path::new(mount).join(path.trim_start_matches('/')));
            if let Some(directory) = found.into_iter().find(|directory| writable(directory)) {
                places.push(Place { directory, controllers: vec![controller.to_owned()], unified: false });
            }
        }
    }
    places
}

fn unified_mount() -> Option<PathBuf> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .iter()
        .map(PathBuf::from)
        .find(|path| path.join("cgroup.controllers").exists())
}

fn v1_mounted() -> bool {
    WANTED.iter().any(|c| Path::new("/sys/fs/cgroup").join(c).join("tasks").exists())
}

/// The nearest group above the process's own that hands controllers to its children and may be written.
///
/// Not its own: a group that holds processes cannot limit its children.
fn unified_place(mount: &Path, own: &str) -> Option<Place> {
    let own = own.trim_start_matches('/');
    let mut candidate = mount.join(own);
    if own.is_empty() {
        return place_with_controllers(&candidate);
    }
    while candidate != mount {
        candidate = candidate.parent()?.to_owned();
        if let Some(place) = place_with_controllers(&candidate) {
            return Some(place);
        }
    }
    None
}

fn place_with_controllers(directory: &Path) -> Option<Place> {
    if !writable(directory) || !writable(&directory.join("cgroup.procs")) {
        return None;
    }
    let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
    let offered = read("cgroup.controllers");
    for controller in offered.split_whitespace().filter(|c| WANTED.contains(c)) {
        // Refused where the group holds processes and is not the root: then it has what it has.
        let _ = fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    let enabled = read("cgroup.subtree_control");
    let controllers: Vec<String> =
        enabled.split_whitespace().filter(|c| WANTED.contains(c)).map(str::to_owned).collect();
    (!controllers.is_empty()).then(|| Place { directory: directory.to_owned(), controllers, unified: true })
}

fn writable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(limits: &Limits, unified: bool) -> Vec<String> {
        settings(limits, unified).iter().map(|setting| format!("{}={}", setting.file, setting.value)).collect()
    }

    /// F1-083: what runc writes for the same resources (config-linux.md of the OCI runtime-spec).
    #[test]
    fn f1_083_limits_are_the_files_of_either_version() {
        let limits = Limits {
            memory_bytes: Some(64 << 20),
            swap: Swap::Bytes(32 << 20),
            cpu_shares: Some(512),
            cpu_period_micros: Some(50_000),
            cpu_quota_micros: Some(25_000),
            cpuset_cpus: "0-1".into(),
            cpuset_mems: "0".into(),
            ..Limits::default()
        };
        assert_eq!(
            lines(&limits, true),
            [
                "memory.max=67108864",
                "memory.swap.max=33554432",
                "memory.oom.group=1",
                "cpu.weight=59",
                "cpu.max=25000 50000",
                "cpuset.cpus=0-1",
                "cpuset.mems=0"
            ]
        );
        assert_eq!(
            lines(&limits, false),
            [
                "memory.limit_in_bytes=67108864",
                "memory.memsw.limit_in_bytes=100663296",
                "memory.oom_control=0",
                "cpu.shares=512",
                "cpu.cfs_period_us=50000",
                "cpu.cfs_quota_us=25000",
                "cpuset.cpus=0-1",
                "cpuset.mems=0"
            ]
        );
        let unlimited = Limits { memory_bytes: Some(1 << 20), swap: Swap::Unlimited, ..Limits::default() };
        assert!(lines(&unlimited, true).contains(&"memory.swap.max=max".to_owned()));
        assert!(lines(&unlimited, false).contains(&"memory.memsw.limit_in_bytes=-1".to_owned()));
        let quota = Limits { cpu_quota_micros: Some(20_000), ..Limits::default() };
        assert_eq!(lines(&quota, true), ["cpu.max=20000 100000"]);
        assert!(lines(&Limits::default(), true).is_empty());
    }

    #[test]
    fn shares_keep_their_ends_and_their_usual_value() {
        assert_eq!([0, 2, 1024, 262_144, u64::MAX].map(weight), [1, 1, 100, 10_000, 10_000]);
    }
}
