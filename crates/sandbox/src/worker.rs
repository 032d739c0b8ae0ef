//! Enters the namespaces that all work of an engine happens in.
//!
//! [`enter`] turns one process into three: the caller stays outside, waits and passes the exit status on; pid 1 of the
//! new pid namespace does nothing but reap orphans; and pid 2 returns from [`enter`] and becomes the worker. A pid 1 of
//! its own, instead of a worker that is pid 1, keeps `waitid` of orphans away from the worker's runtime, which waits
//! for its own children by pid and would lose their status to a reaper in the same process.
//!
//! When the caller's parent dies, the caller kills pid 1, and when the caller dies, the kernel does; the kernel then
//! kills everything in the pid namespace. A death signal of the caller would not do: it fires when the *thread* that
//! started the process ends, and runtimes end idle threads.
//!
//! Neighbours: [`crate::Launcher`] takes the [`Entered`].

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use serde::{Deserialize, Serialize};

use crate::error::SandboxError;
use crate::sys::{self, Cloned};

/// First host id of the steps of a privileged worker: above all that hosts hand out.
pub const SHIFTED_FIRST: u32 = 1 << 31;
/// Number of ids of the steps of a privileged worker. Images with ids above this need the host's user namespace.
pub const SHIFTED_COUNT: u32 = 1 << 30;

/// What [`enter`] is asked to do.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Steps of a privileged worker share the host's user namespace (`--userns=host`).
    pub host_userns: bool,
    /// Does not look for subordinate ids: maps root to the caller and nothing else.
    pub one_uid: bool,
}

/// How a worker represents the ids of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Privileged: any owner can be written; steps run in user namespaces whose ids are shifted by idmapped mounts.
    Root,
    /// Inside a user namespace with a range of ids.
    User,
    /// Inside a user namespace with one id; other owners cannot be represented on disk.
    OneUid,
}

/// How a step's user namespace is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ids {
    /// Maps 0.. to [`SHIFTED_FIRST`].., with idmapped trees.
    Shifted,
    /// Maps each id of the worker to itself.
    Nested,
    /// No user namespace of its own.
    Host,
}

/// The worker's side of [`enter`].
#[derive(Debug)]
pub struct Entered {
    /// How ids are represented.
    pub mode: Mode,
    /// What is less than it could be, with the exact remedy, for the user to read.
    pub notes: Vec<String>,
    /// The user namespace that idmapped mounts of trees take, for a privileged worker.
    pub template_userns: Option<OwnedFd>,
    pub(crate) ids: Ids,
    pub(crate) cgroup_prefix: String,
    /// The host's registry of emulators, from before `/proc` was mounted anew.
    pub(crate) registry: Option<OwnedFd>,
}

impl Entered {
    /// For a process that stays where it is: tests, and tools that start no step.
    pub fn in_place() -> Self {
        Self {
            mode: Mode::Root,
            notes: Vec::new(),
            template_userns: None,
            ids: Ids::Host,
            cgroup_prefix: format!("build-engine-{}-", std::process::id()),
            registry: crate::emulation::open_registry(),
        }
    }
}

/// What pid 1 is told.
struct Plan {
    mode: Mode,
    ids: Ids,
    flags: i32,
    /// Lines for `newuidmap` and `newgidmap`: (inside, outside, count).
    uid_ranges: Vec<(u32, u32, u32)>,
    gid_ranges: Vec<(u32, u32, u32)>,
    notes: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Failure {
    action: String,
    hint: Option<String>,
    errno: i32,
}

/// Enters the worker's namespaces and returns in the worker, a descendant of the calling process.
///
/// The calling process itself does not return: it exits with the worker's exit status (128 plus the signal if one ended
/// it). Standard streams and all other descriptors stay open in the worker.
///
/// # Errors
/// Returned in the calling process, with nothing left behind; the message says what to change on the machine.
/// Threads that run already are an error.
pub fn enter(options: &Options) -> Result<Entered, SandboxError> {
    if !sys::is_single_threaded() {
        return Err(enter_error("enter namespaces", "the process has threads already", io::ErrorKind::Other.into()));
    }
    let parent = rustix::process::getppid()
        .and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok());
    let registry = crate::emulation::open_registry();
    let mut plan = plan(options);
    loop {
        let (go_read, go_write) = pipe()?;
        let (status_read, status_write) = pipe()?;
        let flags = u64::from(plan.flags as u32);
        let cloned = sys::clone_process(flags).map_err(|e| userns_error("create namespaces", e))?;
        let (pid, pidfd) = match cloned {
            Cloned::Child => {
                drop((go_write, status_read, parent));
                return first_process(plan, registry, go_read, status_write);
            }
            Cloned::Parent { pid, pidfd } => (pid, pidfd),
        };
        drop((go_read, status_write));
        if let Err(note) = write_maps(&plan, pid)? {
            let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
            let _ = sys::wait4(pid, false);
            plan = one_uid_plan(note);
            continue;
        }
        let _ = rustix::io::write(&go_write, format!("{}\n", std::process::id()).as_bytes());
        drop(go_write);
        let mut failure = String::new();
        let _ = std::fs::File::from(status_read).read_to_string(&mut failure);
        if !failure.is_empty() {
            let _ = sys::wait4(pid, false);
            let failure: Failure = serde_json::from_str(&failure).unwrap_or(Failure {
                action: "enter namespaces".into(),
                hint: None,
                errno: 0,
            });
            return Err(SandboxError::Enter {
                action: failure.action,
                hint: failure.hint,
                source: io::Error::from_raw_os_error(failure.errno),
            });
        }
        stand_by(pid, &pidfd, parent.as_ref());
    }
}

/// Waits for the worker's pid 1, and ends with it.
fn stand_by(pid: i32, child: &OwnedFd, parent: Option<&OwnedFd>) -> ! {
    loop {
        let mut fds = vec![PollFd::new(child, PollFlags::IN)];
        fds.extend(parent.map(|fd| PollFd::new(fd, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => break,
        }
        if fds[0].revents().contains(PollFlags::IN) {
            break;
        }
        if fds.get(1).is_some_and(|fd| fd.revents().contains(PollFlags::IN)) {
            let _ = rustix::process::pidfd_send_signal(child, rustix::process::Signal::KILL);
        }
    }
    let code = match sys::wait4(pid, false) {
        Ok(Some(ended)) => sys::decode_status(ended.status).unwrap_or_else(|signal| 128 + signal),
        Ok(None) | Err(_) => 1,
    };
    crate::cgroup::sweep(&format!("build-engine-{}-", std::process::id()));
    sys::exit_now(code)
}

/// Pid 1 of the new namespaces: finishes the set-up, forks the worker (which returns), and reaps until it ends.
fn first_process(plan: Plan, registry: Option<OwnedFd>, go: OwnedFd, status: OwnedFd) -> Result<Entered, SandboxError> {
    let fail = |status: &OwnedFd, failure: &Failure| -> ! {
        let text = serde_json::to_string(failure).unwrap_or_default();
        let _ = rustix::io::write(status, text.as_bytes());
        sys::exit_now(1)
    };
    let mut outer = String::new();
    let _ = std::fs::File::from(go).read_to_string(&mut outer);
    if outer.is_empty() {
        // The outer process died, or wants another attempt.
        sys::exit_now(1);
    }
    let template = match settle(&plan) {
        Ok(template) => template,
        Err(failure) => fail(&status, &failure),
    };
    match sys::clone_process(0) {
        Ok(Cloned::Child) => {
            drop(status);
            let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
            Ok(Entered {
                mode: plan.mode,
                notes: plan.notes,
                template_userns: template,
                ids: plan.ids,
                cgroup_prefix: format!("build-engine-{}-", outer.trim()),
                registry,
            })
        }
        Ok(Cloned::Parent { pid, .. }) => {
            drop((status, template));
            reap_until(pid)
        }
        Err(e) => fail(&status, &failure("start the worker", None, &e)),
    }
}

/// Reaps everything that ends, until `worker` does; then ends, and the namespace with it.
fn reap_until(worker: i32) -> ! {
    loop {
        match sys::wait4(-1, false) {
            Ok(Some(ended)) if ended.pid == worker => {
                sys::exit_now(sys::decode_status(ended.status).unwrap_or_else(|signal| 128 + signal))
            }
            Ok(_) => {}
            Err(_) => sys::exit_now(1),
        }
    }
}

/// Identity, mounts and `/proc` of the new namespaces.
fn settle(plan: &Plan) -> Result<Option<OwnedFd>, Failure> {
    let in_userns = plan.flags & libc::CLONE_NEWUSER != 0;
    if in_userns {
        sys::set_gid(0).map_err(|e| failure("become root in the user namespace", None, &e))?;
        sys::set_uid(0).map_err(|e| failure("become root in the user namespace", None, &e))?;
        if plan.mode != Mode::OneUid {
            let _ = sys::set_groups(&[]);
        }
        // The change of ids made this process undumpable, and its own files in /proc root's.
        let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable);
    }
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let io = |e: Errno| io::Error::from(e);
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .map_err(|e| failure("make mounts private", None, &io(e)))?;
    rustix::mount::mount("proc", "/proc", "proc", MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV, None)
        .map_err(|e| {
            let hint = "the container that this runs in hides parts of /proc: start it with \
                        `--security-opt systempaths=unconfined` (docker) or `--security-opt unmask=ALL` (podman)";
            failure("mount /proc", Some(hint), &io(e))
        })?;
    if plan.ids == Ids::Shifted { template_userns().map(Some) } else { Ok(None) }
}

/// A user namespace with the map of shifted steps, held by its descriptor alone.
fn template_userns() -> Result<OwnedFd, Failure> {
    let action = "make the user namespace of idmapped mounts";
    let (wait_read, wait_write) = pipe().map_err(|e| failure(action, None, &io::Error::other(e)))?;
    let cloned = sys::clone_process(libc::CLONE_NEWUSER as u64).map_err(|e| failure(action, Some(USERNS_HINT), &e))?;
    match cloned {
        Cloned::Child => {
            drop(wait_write);
            let _ = rustix::io::read(&wait_read, &mut [0; 1]);
            sys::exit_now(0)
        }
        Cloned::Parent { pid, .. } => {
            let result = (|| {
                let line = format!("0 {SHIFTED_FIRST} {SHIFTED_COUNT}");
                write_file(&format!("/proc/{pid}/uid_map"), &line)?;
                write_file(&format!("/proc/{pid}/gid_map"), &line)?;
                std::fs::File::open(format!("/proc/{pid}/ns/user")).map(OwnedFd::from)
            })();
            drop(wait_write);
            let _ = sys::wait4(pid, false);
            result.map_err(|e| failure(action, None, &e))
        }
    }
}

const USERNS_HINT: &str = "user namespaces are not available: check `sysctl user.max_user_namespaces`, \
     `kernel.unprivileged_userns_clone` and, on Ubuntu, `kernel.apparmor_restrict_unprivileged_userns=0`";

fn plan(options: &Options) -> Plan {
    let base = libc::CLONE_NEWNS | libc::CLONE_NEWPID;
    let plain =
        |mode, ids, notes| Plan { mode, ids, flags: base, uid_ranges: Vec::new(), gid_ranges: Vec::new(), notes };
    if options.one_uid {
        return one_uid_plan(None);
    }
    if has_sys_admin() && rustix::process::geteuid().is_root() {
        let whole = std::fs::read_to_string("/proc/self/uid_map")
            .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]));
        return match (whole, options.host_userns) {
            (true, true) => {
                let note = "build steps share the host's user namespace (--userns=host)".to_owned();
                plain(Mode::Root, Ids::Host, vec![note])
            }
            (true, false) => plain(Mode::Root, Ids::Shifted, Vec::new()),
            // Root of a container: its ids are a range already, and steps nest in it.
            (false, _) => plain(if own_id_count() > 1 { Mode::User } else { Mode::OneUid }, Ids::Nested, Vec::new()),
        };
    }
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = user_name(&passwd, uid);
    let ranges = |file: &str, own: u32| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let mut next = 1;
        let mut ranges = vec![(0, own, 1)];
        for (first, count) in subordinate_ids(&text, name, uid) {
            ranges.push((next, first, count));
            next += count;
        }
        ranges
    };
    let (uid_ranges, gid_ranges) = (ranges("/etc/subuid", uid), ranges("/etc/subgid", gid));
    if uid_ranges.len() < 2 || gid_ranges.len() < 2 {
        let who = name.map_or_else(|| uid.to_string(), str::to_owned);
        return one_uid_plan(Some(format!(
            "no subordinate ids for {who}: files keep one owner; fix: sudo usermod --add-subuids 100000-165535 \
             --add-subgids 100000-165535 {who}"
        )));
    }
    Plan {
        mode: Mode::User,
        ids: Ids::Nested,
        flags: base | libc::CLONE_NEWUSER,
        uid_ranges,
        gid_ranges,
        notes: Vec::new(),
    }
}

fn one_uid_plan(note: Option<String>) -> Plan {
    Plan {
        mode: Mode::OneUid,
        ids: Ids::Nested,
        flags: libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID,
        uid_ranges: vec![(0, rustix::process::geteuid().as_raw(), 1)],
        gid_ranges: vec![(0, rustix::process::getegid().as_raw(), 1)],
        notes: note.into_iter().collect(),
    }
}

/// Writes the maps of `pid`. The inner error is the note of a fallback to one id.
fn write_maps(plan: &Plan, pid: i32) -> Result<Result<(), Option<String>>, SandboxError> {
    match (plan.flags & libc::CLONE_NEWUSER != 0, plan.mode) {
        (false, _) => Ok(Ok(())),
        (true, Mode::Root | Mode::User) => {
            let uids = start_mapper("newuidmap", pid, &plan.uid_ranges);
            let gids = start_mapper("newgidmap", pid, &plan.gid_ranges);
            Ok(finish_mapper("newuidmap", uids).and(finish_mapper("newgidmap", gids)).map_err(Some))
        }
        (true, Mode::OneUid) => {
            let line = |ranges: &[(u32, u32, u32)]| {
                ranges.iter().map(|(a, b, n)| format!("{a} {b} {n}\n")).collect::<String>()
            };
            write_file(&format!("/proc/{pid}/setgroups"), "deny")
                .and_then(|()| write_file(&format!("/proc/{pid}/uid_map"), &line(&plan.uid_ranges)))
                .and_then(|()| write_file(&format!("/proc/{pid}/gid_map"), &line(&plan.gid_ranges)))
                .map_err(|e| userns_error("map the user into the user namespace", e))?;
            Ok(Ok(()))
        }
    }
}

fn start_mapper(program: &str, pid: i32, ranges: &[(u32, u32, u32)]) -> io::Result<std::process::Child> {
    let numbers = ranges.iter().flat_map(|(a, b, n)| [a, b, n]).map(u32::to_string);
    Command::new(program)
        .arg(pid.to_string())
        .args(numbers)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
}

fn finish_mapper(program: &str, child: io::Result<std::process::Child>) -> Result<(), String> {
    let output = child.and_then(std::process::Child::wait_with_output);
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!(
            "{program} failed ({}): files keep one owner; check /etc/subuid and /etc/subgid",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(_) => Err(format!(
            "{program} is not installed: files keep one owner; fix: install the package `uidmap` (Debian, Ubuntu) or \
             `shadow-utils` (Fedora)"
        )),
    }
}

/// The name of `uid` in the text of a passwd file.
fn user_name(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse::<u32>().ok()? == uid).then_some(name)
    })
}

/// The ranges of a user in the text of `/etc/subuid` or `/etc/subgid`: (first, count).
pub(crate) fn subordinate_ids(text: &str, name: Option<&str>, uid: u32) -> Vec<(u32, u32)> {
    let uid = uid.to_string();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let owner = fields.next()?;
            let (first, count) = (fields.next()?.parse::<u32>().ok()?, fields.next()?.parse::<u32>().ok()?);
            (owner == uid || Some(owner) == name).then_some((first, count))
        })
        .filter(|&(_, count)| count > 0)
        .take(100)
        .collect()
}

fn own_id_count() -> u64 {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok()).sum()
}

pub(crate) fn has_sys_admin() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN))
}

fn pipe() -> Result<(OwnedFd, OwnedFd), SandboxError> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| SandboxError::Helper { action: "make a pipe", source: e.into() })
}

pub(crate) fn write_file(path: &str, text: &str) -> io::Result<()> {
    std::fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

fn failure(action: &str, hint: Option<&str>, error: &io::Error) -> Failure {
    Failure {
        action: action.to_owned(),
        hint: hint.map(str::to_owned),
        errno: error.raw_os_error().unwrap_or(libc::EIO),
    }
}

fn enter_error(action: &str, hint: &str, source: io::Error) -> SandboxError {
    SandboxError::Enter { action: action.into(), hint: Some(hint.into()), source }
}

fn userns_error(action: &str, source: io::Error) -> SandboxError {
    enter_error(action, USERNS_HINT, source)
}

/// Copies a descriptor, close-on-exec.
pub(crate) fn duplicate(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}
