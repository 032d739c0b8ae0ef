//! The helper: one process for each step, between the worker and the step's namespaces.
//!
//! It has one thread and no state, stays in the worker's namespaces, and never looks into the step's tree except
//! through descriptors that the step handed over ([`crate::stubs`]). It ends the step when the worker says so or is
//! gone.
//!
//! The same program prepares networks ([`crate::prepared`]) when its first message says so.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;
use rustix::thread::move_into_link_name_space;
use serde::{Deserialize, Serialize};

use crate::cgroup::Group;
use crate::error::{Phase, SetupError};
use crate::mounts::Trees;
use crate::prepared::{After, Answer, Order, Question};
use crate::spec::{Exit, ExitStatus, Network, StepSpec, Usage};
use crate::stubs::{self, Stub};
use crate::sys::{self, Cloned, Ended};
use crate::worker::{Ids, SHIFTED_COUNT, SHIFTED_FIRST, write_file};
use crate::{net, prepared, step, wire};

/// The first argument that makes the binary a helper; `main` calls [`helper_main`] when it sees it.
pub const HELPER_ARG: &str = "--sandbox-step";

/// What the worker sends first.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Run a step.
    Step(Box<Envelope>),
    /// Prepare a network and keep it.
    Prepare(Order),
}

/// A step, with its descriptors.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Envelope {
    pub(crate) spec: StepSpec,
    pub(crate) ids: Ids,
    pub(crate) lower: usize,
    pub(crate) active: bool,
    pub(crate) template: bool,
    pub(crate) filter: Vec<u8>,
    pub(crate) cgroup_prefix: String,
    /// Whether a socket to a prepared network is among the descriptors.
    pub(crate) prepared: bool,
    /// Whether an emulator is among the descriptors, after that.
    pub(crate) emulator: bool,
    pub(crate) network_note: Option<String>,
}

/// What the helper reports.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Exited(Exit, After),
    Failed(SetupError),
    Cancelled,
}

/// What the step tells the helper before it executes the command.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromStep {
    /// Mounted; the descriptors are the parents of the stubs and, behind them, the registry of emulators.
    Mounted { stubs: Vec<Stub>, notes: Vec<String> },
    /// The set-up failed.
    Failed(SetupError),
    /// The command cannot be executed.
    NotExecutable { code: i32, message: String },
}

/// What the helper tells the step: go on, with these files.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Go {
    pub(crate) network: Network,
}

/// The main function of a helper process. Call it first thing, before any thread is started.
pub fn helper_main() -> ! {
    let control = match take_control() {
        Ok(control) => control,
        Err(_) => sys::exit_now(1),
    };
    let outcome = match wire::receive::<Task>(&control) {
        Ok(Some((Task::Step(envelope), fds))) => run(&control, *envelope, fds).unwrap_or_else(Outcome::Failed),
        Ok(Some((Task::Prepare(order), _))) => prepared::serve(&control, &order),
        Ok(None) | Err(_) => sys::exit_now(1),
    };
    let sent = wire::send(&control, &outcome, &[]);
    sys::exit_now(i32::from(sent.is_err()))
}

/// Moves the control socket away from standard input.
fn take_control() -> io::Result<OwnedFd> {
    let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(control)
}

fn run(control: &OwnedFd, envelope: Envelope, mut fds: Vec<OwnedFd>) -> Result<Outcome, SetupError> {
    let Envelope { spec, ids, lower, active, template, filter, cgroup_prefix, prepared, emulator, network_note } =
        envelope;
    // A core file would have the step's secrets in it.
    let _ = sys::set_limit(libc::RLIMIT_CORE, 0, 0);
    let mut notes = Vec::new();
    let before_binds = lower + [active, template, prepared, emulator].map(usize::from).iter().sum::<usize>();
    if fds.len() < before_binds {
        return Err(SetupError::detail("read the step", "descriptors are missing"));
    }
    let binds = fds.split_off(before_binds);
    let emulator = if emulator { fds.pop() } else { None };
    let prepared = if prepared { fds.pop() } else { None };
    let template = if template { fds.pop() } else { None };
    let active = if active { fds.pop() } else { None };

    // 500 layers are 500 descriptors, twice. The step sets its own limits.
    if let Ok((soft, hard)) = sys::limit(libc::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = sys::set_limit(libc::RLIMIT_NOFILE, hard, hard);
    }
    // Inherited by the step. Raising it needs no privilege; lowering it may.
    if let Err(e) = write_file("/proc/self/oom_score_adj", &spec.oom_score_adj.to_string()) {
        notes.push(format!("oom score {} not set: {e}", spec.oom_score_adj));
    }

    let mut trees = Trees::prepare(&fds, active.as_ref(), &binds, template.as_ref(), &mut notes)?;
    if spec.confinement.host_devices {
        trees.add_host_devices();
    }
    if let Some(emulator) = emulator {
        trees.add_emulator(&emulator)?;
    }
    drop((fds, active, binds));
    if ids == Ids::Shifted {
        trees.add_files(&spec.mounts);
    }
    let group = Group::create(&cgroup_prefix, &spec.cgroup_parent, &spec.limits, &mut notes);

    let mut network = spec.network;
    let mut after = After::Gone;
    let mut namespaces = Vec::new();
    match &prepared {
        Some(keeper) => {
            wire::send(keeper, &Question::Enter, &[]).phase("ask for the network")?;
            if !either_readable(keeper, control) {
                return Ok(Outcome::Cancelled);
            }
            match wire::receive::<Answer>(keeper).phase("ask for the network")? {
                Some((Answer::Ready, fds)) => namespaces = fds,
                Some((Answer::Failed(error), _)) => {
                    let note = net::unavailable(&format!("pasta does not work here: {error}"));
                    after = After::Failed(note.clone());
                    notes.push(note);
                    network = Network::Host;
                }
                Some((Answer::Quiet(_), _)) | None => {
                    return Err(SetupError::detail("ask for the network", "its keeper has ended"));
                }
            }
        }
        None if network == Network::Default => {
            notes.extend(network_note);
            network = Network::Host;
        }
        None => {}
    }
    if network == Network::Host {
        trees.add_host_sys();
    }

    let (ours, theirs) = wire::pair().phase("make a socket pair")?;
    let mut flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    if namespaces.is_empty() {
        if ids != Ids::Host {
            flags |= libc::CLONE_NEWUSER;
        }
        if network != Network::Host {
            flags |= libc::CLONE_NEWNET;
        }
    }
    // Any user may write to these through /proc/self/fd/1, as `/dev/stdout` does.
    let _ = rustix::fs::fchmod(rustix::stdio::stdout(), rustix::fs::Mode::from_raw_mode(0o622));
    let _ = rustix::fs::fchmod(rustix::stdio::stderr(), rustix::fs::Mode::from_raw_mode(0o622));
    let flags = flags as u32 as u64;
    let cloned = if namespaces.is_empty() {
        sys::clone_process(flags).phase("create the step's namespaces")?
    } else {
        clone_inside(&namespaces, flags)?
    };
    let child = match cloned {
        Cloned::Child => {
            drop((ours, prepared, namespaces));
            step::run(&spec, ids, trees, &filter, &theirs)
        }
        Cloned::Parent { pid, pidfd } => Child::new(pid, pidfd),
    };
    drop((theirs, trees));
    // The pipes end when the step's processes do.
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    if namespaces.is_empty() {
        write_maps(ids, child.pid())?;
    }
    // The step has what it needs; what is secret in it is nobody's to read here. Not earlier, since the maps of a process
    // that is not dumpable belong to the host's root.
    let strict = spec.strict;
    drop(spec);
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    group.attach(child.pid(), &mut notes);
    if strict && !notes.is_empty() {
        return Err(SetupError::strict(&notes));
    }
    let started = wire::send(&ours, &Go { network }, &[]);
    let mut watch = Watch { control, child, killed: false };
    let report = match started {
        Ok(()) => watch.until_executed(&ours),
        Err(e) => Err(e).phase("start the step"),
    };
    let result = watch.until_ended();
    let (out_of_memory, peak) = group.finish();
    let Setup { mounted, parents, registry: _registry, stubs, failure, mut step_notes } = report?;
    // Innermost first: a stub's parent may be a stub.
    for (parent, stub) in parents.iter().zip(&stubs).rev() {
        stubs::remove(parent, stub).phase(format!("remove the mount point {:?}", stub.name))?;
    }
    drop(parents);
    notes.append(&mut step_notes);
    let ended = result?;
    if let (Some(keeper), false) = (&prepared, namespaces.is_empty())
        && is_clean(keeper)
    {
        after = After::Clean;
    }
    let mut exit = Exit {
        status: sys::decode_status(ended.status).map_or_else(ExitStatus::Signal, ExitStatus::Code),
        message: None,
        out_of_memory,
        usage: Usage {
            user_time: std::time::Duration::from_micros(ended.usage.user_micros),
            system_time: std::time::Duration::from_micros(ended.usage.system_micros),
            peak_rss_bytes: peak.unwrap_or(ended.usage.peak_rss_bytes),
        },
        notes,
        network,
    };
    match failure {
        Some(Failure::Setup(error)) => return Err(error),
        Some(Failure::NotExecutable { code, message }) => {
            exit.status = ExitStatus::Code(code);
            exit.message = Some(message);
        }
        None if mounted => {}
        None if watch.killed => return Ok(Outcome::Cancelled),
        None => return Err(SetupError::detail("start the step", "its first process ended early")),
    }
    Ok(Outcome::Exited(exit, after))
}

/// Blocks until `wanted` or `control` is readable; `true` if `wanted` is.
fn either_readable(wanted: &OwnedFd, control: &OwnedFd) -> bool {
    loop {
        let mut fds = [PollFd::new(wanted, PollFlags::IN), PollFd::new(control, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => return !fds[0].revents().is_empty(),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Asks whether the step, which has ended, left nothing in its network.
fn is_clean(keeper: &OwnedFd) -> bool {
    wire::send(keeper, &Question::Quiet, &[]).is_ok()
        && matches!(wire::receive::<Answer>(keeper), Ok(Some((Answer::Quiet(true), _))))
}

/// Clones the step as a child of this process, but inside `namespaces`.
///
/// New namespaces belong to the user namespace of the process that makes them, and this process must not leave its own.
/// So a process in between enters them, makes the step its sibling, and ends.
fn clone_inside(namespaces: &[OwnedFd], flags: u64) -> Result<Cloned, SetupError> {
    let phase = "enter the network";
    let (ours, theirs) = wire::pair().phase("make a socket pair")?;
    let between = match sys::clone_process(0).phase(phase)? {
        Cloned::Child => {
            drop(ours);
            let made = namespaces
                .iter()
                .try_for_each(|fd| move_into_link_name_space(fd.as_fd(), None))
                .phase(phase)
                .and_then(|()| sys::clone_sibling(flags).phase("create the step's namespaces"));
            let report = match made {
                Ok(Cloned::Child) => return Ok(Cloned::Child),
                Ok(Cloned::Parent { pid, .. }) => Ok(pid),
                Err(error) => Err(error),
            };
            let sent = wire::send(&theirs, &report, &[]);
            sys::exit_now(i32::from(sent.is_err()))
        }
        Cloned::Parent { pid, .. } => pid,
    };
    drop(theirs);
    let report = wire::receive::<Result<i32, SetupError>>(&ours).phase(phase);
    let _ = sys::wait4(between, false);
    let Some((pid, _)) = report? else { return Err(SetupError::detail(phase, "a process ended early")) };
    let pid = pid?;
    let known = rustix::process::Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH);
    // Not reaped yet, so the number is still its own.
    let opened = known.and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()));
    Ok(Cloned::Parent { pid, pidfd: opened.phase(phase)? })
}

/// What the step said before it executed the command.
#[derive(Default)]
struct Setup {
    mounted: bool,
    parents: Vec<OwnedFd>,
    /// Held while the step runs: with it ends what is registered.
    registry: Option<OwnedFd>,
    stubs: Vec<Stub>,
    step_notes: Vec<String>,
    failure: Option<Failure>,
}

enum Failure {
    Setup(SetupError),
    NotExecutable { code: i32, message: String },
}

/// Waits for the step and for the worker's word at once.
struct Watch<'a> {
    control: &'a OwnedFd,
    child: Child,
    killed: bool,
}

impl Watch<'_> {
    /// Blocks until `other` is readable, killing the step when the worker asks for it.
    fn wait_for(&mut self, other: &OwnedFd) {
        loop {
            let mut fds = vec![PollFd::new(other, PollFlags::IN)];
            if !self.killed {
                fds.push(PollFd::new(self.control, PollFlags::IN));
            }
            if poll(&mut fds, None).is_err_and(|e| e != rustix::io::Errno::INTR) {
                return;
            }
            let ready = |i: usize| fds.get(i).is_some_and(|fd| !fd.revents().is_empty());
            let (other_ready, control_ready) = (ready(0), ready(1));
            if control_ready {
                // A byte or the end of the stream: both mean the same.
                self.killed = true;
                self.child.kill();
            }
            if other_ready {
                return;
            }
        }
    }

    fn until_executed(&mut self, step: &OwnedFd) -> Result<Setup, SetupError> {
        let mut setup = Setup::default();
        loop {
            self.wait_for(step);
            match wire::receive::<FromStep>(step).phase("listen to the step")? {
                Some((FromStep::Mounted { stubs, notes }, mut parents)) => {
                    let registry = if parents.len() > stubs.len() { parents.pop() } else { None };
                    setup = Setup { mounted: true, parents, registry, stubs, step_notes: notes, failure: None };
                }
                Some((FromStep::Failed(error), _)) => setup.failure = Some(Failure::Setup(error)),
                Some((FromStep::NotExecutable { code, message }, _)) => {
                    setup.failure = Some(Failure::NotExecutable { code, message });
                }
                None => return Ok(setup),
            }
        }
    }

    fn until_ended(&mut self) -> Result<Ended, SetupError> {
        let pidfd = self.child.pidfd.try_clone().phase("copy a descriptor")?;
        self.wait_for(&pidfd);
        self.child.reap()
    }
}

/// Maps the ids of the user namespace of `pid`.
pub(crate) fn write_maps(ids: Ids, pid: i32) -> Result<(), SetupError> {
    let nested = |file: &str| -> io::Result<String> {
        let text = std::fs::read_to_string(file)?;
        let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        Ok(words.filter(|w| w.len() == 3).map(|w| format!("{0} {0} {1}\n", w[0], w[2])).collect())
    };
    let (uids, gids) = match ids {
        Ids::Host => return Ok(()),
        Ids::Shifted => {
            let line = format!("0 {SHIFTED_FIRST} {SHIFTED_COUNT}\n");
            (line.clone(), line)
        }
        Ids::Nested => (
            nested("/proc/self/uid_map").phase("read the worker's user map")?,
            nested("/proc/self/gid_map").phase("read the worker's group map")?,
        ),
    };
    write_file(&format!("/proc/{pid}/uid_map"), &uids).phase("write the user map")?;
    write_file(&format!("/proc/{pid}/gid_map"), &gids).phase("write the group map")
}

/// A process that was cloned; killed and reaped when it is dropped early.
pub(crate) struct Child {
    pid: i32,
    pidfd: OwnedFd,
    reaped: bool,
}

impl Child {
    pub(crate) fn new(pid: i32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd, reaped: false }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    fn reap(&mut self) -> Result<Ended, SetupError> {
        let ended = sys::wait4(self.pid, false).phase("wait for the step")?;
        self.reaped = true;
        ended.ok_or_else(|| SetupError::detail("wait for the step", "it is not a child"))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            let _ = sys::wait4(self.pid, false);
        }
    }
}
