//! The worker's side of a step: starts the helper, hands it the spec, and waits for its report.
//!
//! The helper is started with `posix_spawn` semantics from a sealed copy of the binary in memory, so that neither a
//! replaced file on disk nor a process inside a container can change what runs, and so that it works where the
//! executable is unlinked or unreadable. The control socket is the helper's standard input.
//!
//! Invariant: dropping a [`Step`] kills it and leaves nothing behind.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags};

use crate::emulation::{self, Emulators};
use crate::error::SandboxError;
use crate::helper::{Envelope, HELPER_ARG, Outcome, Task};
use crate::pool::{Pair, Pool, Taken};
use crate::prepared::{After, Order};
use crate::spec::{Capabilities, Confinement, Exit, MountSource, Network, Root, StepFds, StepSpec};
use crate::worker::{Entered, Ids, Mode, duplicate};
use crate::{caps, seccomp, wire};

/// Starts steps. One for each worker; may be shared between threads.
#[derive(Debug)]
pub struct Launcher {
    template_userns: Option<OwnedFd>,
    ids: Ids,
    one_id: bool,
    cgroup_prefix: String,
    executable: OnceLock<Result<OwnedFd, (i32, &'static str)>>,
    /// The program that connects private networks, or why there is none.
    pasta: OnceLock<Result<String, String>>,
    pool: Arc<Pool>,
    emulators: Emulators,
    /// Held while a pair is started, so that the first step and [`Launcher::warm_up`] start one and not two.
    starting: Mutex<()>,
}

impl Launcher {
    /// Makes the launcher of a worker that has entered its namespaces.
    ///
    /// # Errors
    /// [`SandboxError::Helper`] when descriptors run out.
    pub fn new(entered: &Entered) -> Result<Self, SandboxError> {
        let template_userns = entered
            .template_userns
            .as_ref()
            .map(|fd| duplicate(fd.as_fd()))
            .transpose()
            .map_err(|source| SandboxError::Helper { action: "copy a descriptor", source })?;
        let registry = entered.registry.as_ref().map(|fd| duplicate(fd.as_fd())).transpose();
        let registry = registry.map_err(|source| SandboxError::Helper { action: "copy a descriptor", source })?;
        Ok(Self {
            template_userns,
            ids: entered.ids,
            one_id: entered.mode == Mode::OneUid,
            cgroup_prefix: entered.cgroup_prefix.clone(),
            executable: OnceLock::new(),
            pasta: OnceLock::new(),
            pool: Arc::default(),
            emulators: Emulators::new(registry, entered.ids),
            starting: Mutex::new(()),
        })
    }

    /// Begins to make the network of the first step with [`Network::Default`], if there is none yet. Takes a few
    /// milliseconds; the rest happens in the background. A failure is met, and told, by the step.
    pub fn warm_up(&self) {
        let _starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        // Pairs in use refer to the pool: one of them may be free soon.
        let used = Arc::strong_count(&self.pool) > 1;
        if let Ok(pasta) = self.pasta()
            && !used
            && !self.pool.has_idle()
            && let Ok(pair) = self.prepare(pasta)
        {
            self.pool.put(pair);
        }
    }

    /// What runs programs of other architectures.
    pub fn emulators(&self) -> &Emulators {
        &self.emulators
    }

    fn pasta(&self) -> Result<&str, &str> {
        if let Some(note) = self.pool.broken() {
            return Err(note);
        }
        self.pasta.get_or_init(crate::net::find).as_deref().map_err(String::as_str)
    }

    /// Starts the making of a network.
    fn prepare(&self, pasta: &str) -> Result<Pair, SandboxError> {
        let (ours, theirs) = wire::pair().map_err(helper("make a socket pair"))?;
        let keeper = self.start_helper(Stdio::from(theirs), Stdio::null(), Stdio::null())?;
        let pair = Pair::new(keeper, ours);
        let order = Order { pasta: pasta.to_owned(), ids: self.ids };
        // A pair that nobody got ends by itself.
        wire::send(pair.control(), &Task::Prepare(order), &[]).map_err(helper("order a network"))?;
        Ok(pair)
    }

    fn start_helper(&self, stdin: Stdio, stdout: Stdio, stderr: Stdio) -> Result<Child, SandboxError> {
        let executable = match self.executable.get_or_init(sealed_copy) {
            Ok(fd) => fd,
            &Err((errno, action)) => {
                return Err(SandboxError::Helper { action, source: io::Error::from_raw_os_error(errno) });
            }
        };
        let mut command = Command::new(format!("/proc/self/fd/{}", executable.as_raw_fd()));
        command.arg(HELPER_ARG).env_clear().stdin(stdin).stdout(stdout).stderr(stderr);
        loop {
            match command.spawn() {
                // Another thread started a process while the copy was being written, and it has not executed yet.
                Err(e) if e.raw_os_error() == Some(libc::ETXTBSY) => {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                other => return other.map_err(helper("start the step's helper")),
            }
        }
    }

    /// Starts a step. Blocks for about a millisecond; everything else is reported by [`Step::wait`]. The helper has
    /// copies of `fds`; the caller may close them.
    ///
    /// # Errors
    /// [`SandboxError::Spec`] or [`SandboxError::Helper`]; nothing has run then.
    pub fn spawn(&self, spec: &StepSpec, fds: &StepFds) -> Result<Step, SandboxError> {
        check(spec, fds)?;
        let errno = |action| move |e: rustix::io::Errno| SandboxError::Helper { action, source: e.into() };
        let (ours, theirs) = wire::pair().map_err(helper("make a socket pair"))?;
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(errno("make a pipe"));
        let (stdout, stdout_write) = pipe()?;
        let (stderr, stderr_write) = pipe()?;

        let mut network_note = None;
        let mut network = None;
        if spec.network == Network::Default {
            match self.pasta() {
                Ok(pasta) => {
                    let _starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
                    let pair = self.pool.take().map_or_else(|| self.prepare(pasta), Ok)?;
                    // A registry of emulators stays with the user namespace, and hides the host's from the next step.
                    let reusable = cannot_change_networks(&spec.confinement) && spec.emulated.is_none();
                    network = Some(Taken::new(&self.pool, pair, reusable));
                }
                Err(note) => network_note = Some(note.to_owned()),
            }
        }
        let keeper = network.as_ref().and_then(Taken::control);
        let envelope = Envelope {
            spec: spec.clone(),
            ids: self.ids,
            lower: fds.lower.len(),
            active: fds.active.is_some(),
            template: self.template_userns.is_some(),
            filter: if spec.confinement.seccomp {
                seccomp::cached(caps::set(spec.confinement.capabilities), self.one_id)
                    .map_err(|e| SandboxError::Spec(format!("no system call filter: {e}")))?
                    .to_bytes()
            } else {
                Vec::new()
            },
            cgroup_prefix: self.cgroup_prefix.clone(),
            prepared: keeper.is_some(),
            emulator: fds.emulator.is_some(),
            network_note,
        };
        let (stdin, out, err) = (Stdio::from(theirs), Stdio::from(stdout_write), Stdio::from(stderr_write));
        let child = self.start_helper(stdin, out, err)?;
        let control = Arc::new(ours);
        let step = Step { child: Some(child), control, network, stdout: Some(stdout), stderr: Some(stderr) };
        let all = fds.lower.iter().chain(&fds.active).chain(&self.template_userns);
        let all = all.chain(keeper.as_deref()).chain(&fds.emulator).chain(&fds.binds);
        let all: Vec<_> = all.map(AsFd::as_fd).collect();
        // A step that is not handed out is killed by its drop.
        wire::send(&*step.control, &Task::Step(Box::new(envelope)), &all)
            .map_err(helper("send the step to its helper"))?;
        Ok(step)
    }
}

/// A step that was started.
#[derive(Debug)]
pub struct Step {
    child: Option<Child>,
    control: Arc<OwnedFd>,
    network: Option<Taken>,
    /// Reading end of the command's standard output; taken by the caller.
    pub stdout: Option<OwnedFd>,
    /// Reading end of the command's standard error; taken by the caller.
    pub stderr: Option<OwnedFd>,
}

impl Step {
    /// A handle that kills the step from elsewhere while [`Step::wait`] blocks.
    pub fn killer(&self) -> Killer {
        Killer { control: Arc::clone(&self.control) }
    }

    /// Kills all processes of the step; [`Step::wait`] then returns within milliseconds.
    pub fn kill(&self) {
        self.killer().kill();
    }

    /// Blocks until the command has ended, all that it started is gone, and the tree is clean.
    ///
    /// Someone else must read [`Step::stdout`] and [`Step::stderr`] meanwhile, or the command waits on a full pipe.
    ///
    /// # Errors
    /// [`SandboxError::Setup`] when the command never ran, [`SandboxError::Cancelled`] when it was killed before that,
    /// [`SandboxError::Helper`] when the helper itself died.
    pub fn wait(mut self) -> Result<Exit, SandboxError> {
        let outcome = wire::receive::<Outcome>(&*self.control);
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
        match outcome {
            Ok(Some((Outcome::Exited(exit, after), _))) => {
                match (self.network.take(), after) {
                    (Some(network), After::Clean) => network.give_back(),
                    (Some(network), After::Failed(note)) => network.failed(note),
                    (Some(_) | None, _) => {}
                }
                Ok(exit)
            }
            Ok(Some((Outcome::Failed(error), _))) => Err(SandboxError::Setup(error)),
            Ok(Some((Outcome::Cancelled, _))) => Err(SandboxError::Cancelled),
            Ok(None) => {
                let source = io::Error::new(io::ErrorKind::UnexpectedEof, "the helper ended without a report");
                Err(SandboxError::Helper { action: "wait for the step", source })
            }
            Err(source) => Err(SandboxError::Helper { action: "wait for the step", source }),
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // The helper kills the step when the socket ends, cleans up and exits.
            let _ = rustix::net::shutdown(&*self.control, rustix::net::Shutdown::Write);
            let _ = child.wait();
        }
    }
}

/// Kills a step; cheap to clone and harmless after the step has ended.
#[derive(Debug, Clone)]
pub struct Killer {
    control: Arc<OwnedFd>,
}

impl Killer {
    /// Kills all processes of the step.
    pub fn kill(&self) {
        let _ = rustix::net::send(&*self.control, b"k", rustix::net::SendFlags::NOSIGNAL);
    }
}

fn helper(action: &'static str) -> impl Fn(io::Error) -> SandboxError {
    move |source| SandboxError::Helper { action, source }
}

/// Whether a step leaves nothing in namespaces that outlive it: no address, no setting, no key.
fn cannot_change_networks(confinement: &Confinement) -> bool {
    let settings = |path: &String| path == "/proc/sys";
    confinement.capabilities != Capabilities::All
        && confinement.seccomp
        && confinement.readonly_paths.iter().any(settings)
}

fn check(spec: &StepSpec, fds: &StepFds) -> Result<(), SandboxError> {
    let refuse = |text: String| Err(SandboxError::Spec(text));
    if spec.args.is_empty() {
        return refuse("no command".into());
    }
    if let Some(text) = spec.args.iter().chain([&spec.cwd]).find(|text| text.contains('\0')) {
        return refuse(format!("a NUL character in {text:?}"));
    }
    // Values of the environment may be secrets, so only names are shown.
    let name = |text: &str| text.split(['=', '\0']).next().unwrap_or_default().to_owned();
    if let Some(text) = spec.env.iter().find(|text| text.contains('\0')) {
        return refuse(format!("a NUL character in the environment entry of {:?}", name(text)));
    }
    if let Some(text) = spec.env.iter().find(|text| text.find('=').is_none_or(|at| at == 0)) {
        return refuse(format!("environment entry without a name or value, of {:?}", name(text)));
    }
    match &spec.root {
        Root::Dir if fds.active.is_none() || !fds.lower.is_empty() => {
            return refuse("a plain root needs one directory and no layers".into());
        }
        Root::Overlay { .. } if fds.active.is_none() => return refuse("an overlay root needs a directory".into()),
        Root::Dir | Root::Overlay { .. } | Root::Scratch => {}
    }
    match (&spec.emulated, &fds.emulator) {
        (None, None) => {}
        (Some(architecture), Some(_)) if emulation::is_known(architecture) => {}
        (Some(architecture), Some(_)) => return refuse(format!("{architecture:?} cannot be emulated")),
        (Some(_), None) | (None, Some(_)) => return refuse("an emulator and what it emulates go together".into()),
    }
    if fds.lower.len() > 500 {
        return refuse(format!("{} layers in one mount (the kernel takes 500)", fds.lower.len()));
    }
    for mount in &spec.mounts {
        let indexes: &[usize] = match &mount.source {
            MountSource::Bind { fd } => std::slice::from_ref(fd),
            MountSource::Layers { fds, .. } => fds,
            MountSource::Tmpfs { .. } | MountSource::File { .. } => &[],
        };
        let changes = match &mount.source {
            MountSource::Layers { changes: Some(changes), .. } => Some(changes.fd),
            _ => None,
        };
        if indexes.iter().chain(&changes).any(|&index| index >= fds.binds.len()) {
            return refuse(format!("mount at {:?} refers to a descriptor that was not given", mount.dest));
        }
        if matches!(&mount.source, MountSource::Layers { fds, .. } if fds.is_empty()) {
            return refuse(format!("mount at {:?} has no layers", mount.dest));
        }
    }
    Ok(())
}

/// Copies the running executable into sealed memory.
fn sealed_copy() -> Result<OwnedFd, (i32, &'static str)> {
    let action = "copy the executable into memory";
    let failed = |e: io::Error| (e.raw_os_error().unwrap_or(libc::EIO), action);
    let errno = |e: rustix::io::Errno| (e.raw_os_error(), action);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know MFD_EXEC; later ones may want to be told (`vm.memfd_noexec`).
    let memory = rustix::fs::memfd_create("build-engine", flags | MemfdFlags::EXEC)
        .or_else(|_| rustix::fs::memfd_create("build-engine", flags))
        .map_err(errno)?;
    let mut source = std::fs::File::open("/proc/self/exe").map_err(failed)?;
    let mut copy = std::fs::File::from(memory);
    io::copy(&mut source, &mut copy).map_err(failed)?;
    // FUTURE_WRITE forbids every write and writable mapping from now on, and nobody has mapped it before. WRITE would
    // also wait until the kernel lets go of each page (milliseconds), and fail with EBUSY where it does not soon.
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE;
    rustix::fs::fcntl_add_seals(&copy, seals).map_err(errno)?;
    // A descriptor that is open for writing cannot be executed (ETXTBSY): reopen it for reading.
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    std::fs::File::open(path).map(OwnedFd::from).map_err(failed)
}
