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

use crate::spec::Limits;

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
    /// Controllers whose groups this process may make: `memory`, `pids`, `cpu`.
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
            let Some(base) = below(&place.directory, parent, &mut group.parents) else {
                notes.push(format!("control group parent {parent:?} is not usable"));
                continue;
            };
            let directory = base.join(&name);
            match fs::create_dir(&directory) {
                Ok(()) => group.directories.push((directory, place)),
                Err(e) => tracing::debug!("no control group at {}: {e}", directory.display()),
            }
        }
        let mut limit = |controller: &str, v2: (&str, String), v1: (&str, String), asked: bool| {
            let found = group.directories.iter().find(|(_, p)| p.controllers.iter().any(|c| c == controller));
            let result = match found {
                Some((directory, place)) => {
                    let (file, value) = if place.unified { &v2 } else { &v1 };
                    fs::write(directory.join(file), value)
                }
                None => Err(io::Error::new(io::ErrorKind::Unsupported, "no such control group")),
            };
            match result {
                Err(e) if asked => notes.push(format!("limit {} = {} not set: {e}", v2.0, v2.1)),
                Err(_) | Ok(()) => {}
            }
        };
        if let Some(pids) = limits.pids {
            limit("pids", ("pids.max", pids.to_string()), ("pids.max", pids.to_string()), true);
        }
        if let Some(bytes) = limits.memory_bytes {
            let text = bytes.to_string();
            limit("memory", ("memory.max", text.clone()), ("memory.limit_in_bytes", text.clone()), true);
            // Without swap, where the kernel counts it.
            limit("memory", ("memory.swap.max", "0".into()), ("memory.memsw.limit_in_bytes", text), false);
            limit("memory", ("memory.oom.group", "1".into()), ("memory.oom_control", "0".into()), false);
        }
        if let Some(millis) = limits.cpu_millis {
            let quota = millis.saturating_mul(100);
            limit("cpu", ("cpu.max", format!("{quota} 100000")), ("cpu.cfs_quota_us", quota.to_string()), true);
        }
        group
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
fn below(place: &Path, parent: &str, made: &mut Vec<PathBuf>) -> Option<PathBuf> {
    let mut path = place.to_owned();
    for component in parent.split('/').filter(|c| !c.is_empty()) {
        if component == "." || component == ".." {
            return None;
        }
        path.push(component);
        match fs::create_dir(&path) {
            Ok(()) => made.push(path.clone()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(_) => return None,
        }
    }
    Some(path)
}

const WANTED: [&str; 3] = ["cpu", "memory", "pids"];

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
