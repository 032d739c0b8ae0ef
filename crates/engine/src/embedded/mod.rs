//! The embedded engine, seen from a face: a worker process and a connection to it.
//!
//! The worker is this binary started once more. It enters its namespaces while it has one thread and then serves any
//! number of builds (`worker.rs`). This side only speaks frames, so that the embedded engine looks like every other
//! backend: a remote solve with events.

mod agent;
mod ahead;
mod answers;
mod build;
mod bundle;
mod checks;
mod context;

mod entitled;
mod events;
mod export;
mod face;
mod files;
mod frame;
mod git;
mod git_commands;
mod http;
mod kept;
mod keys;
mod leak;
mod lent_agent;
mod load;
mod materialize;
mod missing;
mod mounts;
mod ops;
mod platforms;
mod push;
mod records;
mod remote;
mod run;
mod secrets;
mod sources;
mod syntax;
mod transfer;
mod worker;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use build_engine_graph::EventSink;
use build_engine_oci::{Digest, Reference};
use build_engine_registry::AuthFiles;
use rustix::io::{FdFlags, fcntl_setfd};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::checks::{CheckResult, DockerfileText, Outline};
use crate::{
    Backend, BuildError, BuildRequest, ExitKind, ImageDetails, ImagePlace, ImageSummary, Outcome, Report, RunRequest,
    Session, StoreOptions, TransferRequest, Transferred, Unsupported, UserNamespace,
};
use frame::{Answer, Call, Question};

pub use build_engine_sandbox::HELPER_ARG as STEP_ARG;
pub use checks::{check_offline, outline_offline};
pub use worker::{step_main, worker_main};

/// First argument of a worker process; a binary that embeds the engine calls [`worker_main`] when it sees it.
pub const WORKER_ARG: &str = "--build-engine-worker";

/// How long an orderly end may take before the worker is killed.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(1500);

/// A running worker. Clones share it; the last one to go ends it.
#[derive(Clone)]
pub struct Embedded {
    shared: Arc<Shared>,
}

struct Shared {
    auth: AuthFiles,
    child: Mutex<Option<Child>>,
    link: Mutex<Link>,
    pending: Arc<Mutex<HashMap<u64, Pending>>>,
    next_id: AtomicU64,
}

/// The connection: made by `start`, handed to tasks by the first call, which has a runtime to put them on.
enum Link {
    Fresh(UnixStream, Box<StoreOptions>),
    Live(mpsc::UnboundedSender<Call>),
    Closed,
}

/// A call that waits for its answer.
struct Pending {
    events: Option<Arc<dyn EventSink>>,
    session: Arc<Session>,
    reply: oneshot::Sender<Result<Value, BuildError>>,
    /// Set when nobody waits any more: programs that run for the call end then.
    ended: Ended,
}

struct Ended(Arc<AtomicBool>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Embedded {
    /// Starts a worker on the store that `options` name. Credentials for registries come from `auth`, read by this
    /// process whenever the worker needs one.
    ///
    /// Call it on the main thread, before any other thread exists: the worker dies with the thread that started it,
    /// and it inherits one end of the connection.
    ///
    /// # Errors
    /// [`ExitKind::Internal`] where the process cannot be started.
    pub fn start(options: StoreOptions, auth: AuthFiles) -> Result<Self, BuildError> {
        let failed = |error: &std::io::Error| {
            BuildError::new(
                ExitKind::Internal,
                Report::new("worker", "cannot start the worker process").caused_by(error),
            )
        };
        let (near, far) = UnixStream::pair().map_err(|error| failed(&error))?;
        let far = OwnedFd::from(far);
        fcntl_setfd(&far, FdFlags::empty()).map_err(|error| failed(&error.into()))?;
        // The worker reads no variable; what may be secret in them stays here. Programs are still found as here.
        let path = std::env::join_paths(&auth.path).ok().filter(|path| !path.is_empty());
        let child = Command::new("/proc/self/exe")
            .env_clear()
            .envs(path.map(|path| ("PATH", path)))
            .arg(WORKER_ARG)
            .arg(far.as_raw_fd().to_string())
            .args((options.user_namespace == UserNamespace::Host).then_some(worker::HOST_USERNS))
            .spawn()
            .map_err(|error| failed(&error))?;
        Ok(Self {
            shared: Arc::new(Shared {
                auth,
                child: Mutex::new(Some(child)),
                link: Mutex::new(Link::Fresh(near, Box::new(options))),
                pending: Arc::default(),
                next_id: AtomicU64::new(1),
            }),
        })
    }

    /// Runs a command in an image, with the face's own standard streams; returns its exit code.
    ///
    /// # Errors
    /// As [`Backend::build`].
    pub async fn run(&self, request: RunRequest) -> Result<i32, BuildError> {
        self.call(None, |id| Call::Run { id, request: Box::new(request) }).await
    }

    /// Brings images from one place to another. Returns what became of each.
    ///
    /// # Errors
    /// As [`Backend::build`].
    pub async fn transfer(
        &self,
        request: TransferRequest,
        events: Arc<dyn EventSink>,
    ) -> Result<Vec<Transferred>, BuildError> {
        self.call(Some(events), |id| Call::Transfer { id, request: Box::new(request) }).await
    }

    /// What an image is made of: its documents, for every platform.
    ///
    /// # Errors
    /// [`BuildError`] where it is not to be had.
    pub async fn inspect(&self, place: ImagePlace) -> Result<ImageDetails, BuildError> {
        self.ask(Question::Inspect { place }).await
    }

    /// Gives an image of the store another name.
    ///
    /// # Errors
    /// [`BuildError`] where there is no such image.
    pub async fn tag(&self, image: String, name: Reference) -> Result<(), BuildError> {
        self.ask(Question::Tag { image, name }).await
    }

    /// What the names of images in a request's Dockerfile stand for, by canonical reference.
    ///
    /// # Errors
    /// As [`Backend::build`].
    pub async fn lock(&self, request: BuildRequest) -> Result<BTreeMap<String, Digest>, BuildError> {
        self.ask_in_session(request, |request| Question::Lock { request }).await
    }

    /// Runs the build checks on a request's Dockerfile: all stages, unless it names a target. No step is executed.
    ///
    /// # Errors
    /// [`BuildError`] where a base cannot be asked for; what is wrong with the Dockerfile is part of the result.
    pub async fn check(&self, request: BuildRequest) -> Result<CheckResult, BuildError> {
        self.ask_in_session(request, |request| Question::Check { request }).await
    }

    /// Says what can be set in a build of a request.
    ///
    /// # Errors
    /// As [`Backend::build`].
    pub async fn outline(&self, request: BuildRequest) -> Result<Outline, BuildError> {
        self.ask_in_session(request, |request| Question::Outline { request }).await
    }

    /// Returns a request's Dockerfile, fetched where it has to be.
    ///
    /// # Errors
    /// [`BuildError`] where it cannot be had.
    pub async fn dockerfile(&self, request: BuildRequest) -> Result<DockerfileText, BuildError> {
        self.ask_in_session(request, |request| Question::Dockerfile { request }).await
    }

    /// The graph of a request's target for its first platform, as BuildKit's subrequest `frontend.convertllb` writes it.
    ///
    /// # Errors
    /// As [`Backend::build`].
    pub async fn graph(&self, request: BuildRequest) -> Result<serde_json::Value, BuildError> {
        self.ask(Question::Graph { request: Box::new(request) }).await
    }

    /// Lists the names in the image store, sorted.
    ///
    /// # Errors
    /// [`BuildError`] where the store cannot be read.
    pub async fn images(&self) -> Result<Vec<ImageSummary>, BuildError> {
        self.ask(Question::Images).await
    }

    /// Removes a name from the image store; whether there was one. What it pointed at goes with the next prune.
    ///
    /// # Errors
    /// [`BuildError`] where the store cannot be changed.
    pub async fn remove_image(&self, name: String) -> Result<bool, BuildError> {
        self.ask(Question::RemoveImage { name }).await
    }

    /// Checks every blob and record; what is bad is dropped, so that it is made again. Returns what was found.
    ///
    /// # Errors
    /// [`BuildError`] where the store cannot be read.
    pub async fn verify(&self) -> Result<Vec<String>, BuildError> {
        self.ask(Question::Verify).await
    }

    /// Frees space; returns the bytes freed.
    ///
    /// # Errors
    /// [`BuildError`] where the store cannot be changed.
    pub async fn prune(&self, all: bool) -> Result<u64, BuildError> {
        self.ask(Question::Prune { all }).await
    }

    /// What this host offers: namespaces, overlay, subordinate ids, control groups, emulators.
    ///
    /// # Errors
    /// [`BuildError`] where the worker is gone.
    pub async fn host_info(&self) -> Result<Value, BuildError> {
        // Asked here: inside its namespaces the worker is root, whoever started it.
        let mut info = serde_json::to_value(build_engine_sandbox::host::probe())
            .map_err(|error| BuildError::internal(format!("what the host offers: {error}")))?;
        let worker: serde_json::Map<String, Value> = self.ask(Question::WorkerInfo).await?;
        if let Value::Object(info) = &mut info {
            info.extend(worker);
        }
        Ok(info)
    }

    /// Ends the worker: what runs is cancelled and cleaned up, for at most one and a half seconds.
    pub async fn shutdown(self) {
        *lock(&self.shared.link) = Link::Closed;
        let Some(mut child) = lock(&self.shared.child).take() else { return };
        let deadline = Instant::now() + SHUTDOWN_GRACE;
        while Instant::now() < deadline {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            // The worker is a child of this process and no runtime watches it; its end takes a few milliseconds.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        end(child);
    }

    async fn ask<T: DeserializeOwned>(&self, question: Question) -> Result<T, BuildError> {
        self.call(None, |id| Call::Ask { id, question }).await
    }

    /// Asks about a request, whose sources may need its secrets and agents.
    async fn ask_in_session<T: DeserializeOwned>(
        &self,
        request: BuildRequest,
        question: impl FnOnce(Box<BuildRequest>) -> Question,
    ) -> Result<T, BuildError> {
        let session = session_of(&request);
        let question = question(Box::new(request));
        self.call_with(None, session, |id| Call::Ask { id, question }).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        events: Option<Arc<dyn EventSink>>,
        call: impl FnOnce(u64) -> Call,
    ) -> Result<T, BuildError> {
        self.call_with(events, Arc::default(), call).await
    }

    async fn call_with<T: DeserializeOwned>(
        &self,
        events: Option<Arc<dyn EventSink>>,
        session: Arc<Session>,
        call: impl FnOnce(u64) -> Call,
    ) -> Result<T, BuildError> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        lock(&self.shared.pending).insert(id, Pending { events, session, reply, ended: Ended(Arc::default()) });
        let calls = self.calls().inspect_err(|_| {
            lock(&self.shared.pending).remove(&id);
        })?;
        let guard = CancelOnDrop { id, shared: Arc::clone(&self.shared), armed: true };
        if calls.send(call(id)).is_err() {
            return Err(self.worker_ended());
        }
        let result = answer.await;
        guard.disarm();
        let value = result.map_err(|_| self.worker_ended())??;
        serde_json::from_value(value).map_err(|error| BuildError::internal(format!("the worker's answer: {error}")))
    }

    /// The way to the worker; starts the two tasks of the connection at the first use.
    fn calls(&self) -> Result<mpsc::UnboundedSender<Call>, BuildError> {
        let mut link = lock(&self.shared.link);
        match std::mem::replace(&mut *link, Link::Closed) {
            Link::Closed => Err(self.worker_ended()),
            Link::Live(calls) => {
                *link = Link::Live(calls.clone());
                Ok(calls)
            }
            Link::Fresh(stream, options) => {
                let (auth, pending) = (self.shared.auth.clone(), Arc::clone(&self.shared.pending));
                let calls = connect(stream, *options, auth, pending).map_err(|error| {
                    BuildError::new(
                        ExitKind::Internal,
                        Report::new("worker", "cannot speak to the worker process").caused_by(&error),
                    )
                })?;
                *link = Link::Live(calls.clone());
                Ok(calls)
            }
        }
    }

    fn worker_ended(&self) -> BuildError {
        let status = lock(&self.shared.child).as_mut().and_then(wait_briefly);
        let mut message = "the worker process ended unexpectedly".to_owned();
        if let Some(status) = status {
            message = format!("{message} ({status})");
        }
        BuildError::internal(message)
    }
}

/// What a request may ask of this process, whose memory is private from then on if there are secrets in it.
fn session_of(request: &BuildRequest) -> Arc<Session> {
    if !request.session.is_empty() {
        crate::session::keep_memory_private();
    }
    Arc::new(request.session.clone())
}

/// The exit status of a child whose connection has just closed.
fn wait_briefly(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + Duration::from_millis(200);
    loop {
        match child.try_wait() {
            Ok(None) if Instant::now() < deadline => std::thread::yield_now(),
            result => return result.ok().flatten(),
        }
    }
}

fn end(mut child: Child) {
    // Both fail only where the child is gone already.
    let _ = child.kill();
    let _ = child.wait();
}

fn connect(
    stream: UnixStream,
    options: StoreOptions,
    auth: AuthFiles,
    pending: Arc<Mutex<HashMap<u64, Pending>>>,
) -> std::io::Result<mpsc::UnboundedSender<Call>> {
    stream.set_nonblocking(true)?;
    let (mut reader, mut writer) = tokio::net::UnixStream::from_std(stream)?.into_split();
    let (calls, mut queue) = mpsc::unbounded_channel();
    // Weak: a connection that only answers questions is no reason to keep it.
    let replies = mpsc::UnboundedSender::downgrade(&calls);
    tokio::spawn(async move {
        let mut next = Some(Call::Open { options });
        while let Some(call) = next {
            if frame::write(&mut writer, &call).await.is_err() {
                break;
            }
            next = queue.recv().await;
        }
    });
    tokio::spawn(async move {
        while let Ok(Some(answer)) = frame::read(&mut reader).await {
            match answer {
                Answer::Event { id, event } => {
                    let sink = lock(&pending).get(&id).and_then(|call| call.events.clone());
                    if let Some(sink) = sink {
                        sink.emit(event);
                    }
                }
                Answer::Done { id, result } => reply(&pending, id, Ok(result)),
                Answer::Failed { id, error } => reply(&pending, id, Err(error)),
                Answer::Ask { ask, call, wanted } => {
                    let of = |call: &Pending| (Arc::clone(&call.session), Arc::clone(&call.ended.0));
                    let (session, ended) = call.and_then(|id| lock(&pending).get(&id).map(of)).unwrap_or_default();
                    let (auth, replies) = (auth.clone(), replies.clone());
                    // The runtime's end waits for blocking tasks, so that what they started is cleaned up. An agent starts
                    // nothing, and may wait for its user: its thread is not waited for.
                    let asks_agent = matches!(wanted, frame::Wanted::Ssh { .. });
                    let work = move || {
                        let result = answers::answer(wanted, &session, &auth, &ended);
                        if let Some(replies) = replies.upgrade() {
                            // A closed channel means that the worker is gone.
                            let _ = replies.send(Call::Told { ask, result });
                        }
                    };
                    if asks_agent {
                        drop(std::thread::spawn(work));
                    } else {
                        drop(tokio::task::spawn_blocking(work));
                    }
                }
            }
        }
        // Whoever still waits learns from the dropped sender that no answer will come.
        lock(&pending).clear();
    });
    Ok(calls)
}

fn reply(pending: &Mutex<HashMap<u64, Pending>>, id: u64, result: Result<Value, BuildError>) {
    if let Some(call) = lock(pending).remove(&id) {
        // The caller may have gone; then nobody wants to know.
        let _ = call.reply.send(result);
    }
}

/// Tells the worker that nobody waits for a call any more.
struct CancelOnDrop {
    id: u64,
    shared: Arc<Shared>,
    armed: bool,
}

impl CancelOnDrop {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        lock(&self.shared.pending).remove(&self.id);
        if self.armed
            && let Link::Live(calls) = &*lock(&self.shared.link)
        {
            // A closed channel means that the worker is gone, and the call with it.
            let _ = calls.send(Call::Cancel { id: self.id });
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        *lock(&self.link) = Link::Closed;
        if let Some(child) = lock(&self.child).take() {
            end(child);
        }
    }
}

impl Backend for Embedded {
    fn name(&self) -> &'static str {
        "embedded"
    }

    fn unsupported(&self, request: &BuildRequest) -> Vec<Unsupported> {
        build::unsupported(request)
    }

    async fn build(&self, request: BuildRequest, events: Arc<dyn EventSink>) -> Result<Outcome, BuildError> {
        let session = session_of(&request);
        self.call_with(Some(events), session, |id| Call::Build { id, request: Box::new(request) }).await
    }
}
