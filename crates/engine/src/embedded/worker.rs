//! The worker: a process in its own namespaces that serves builds.
//!
//! It is process 1 of its pid namespace, so its end is the end of all that it started. It reads calls, runs each as a
//! task, and sends events and answers through one queue. A call is cancelled by dropping its task.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use build_engine_graph::{Event, EventSink};
use build_engine_sandbox as sandbox;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::build::Engine;
use super::face::{Caller, Face};
use super::frame::{self, Answer, Call, Question};
use crate::{BuildError, ExitKind, Report};

/// Argument that leaves steps in the host's user namespace (`--userns=host`).
pub(super) const HOST_USERNS: &str = "--host-userns";

/// Stack of the threads that work on trees. Only what is used takes memory.
const WALK_STACK_BYTES: usize = 16 << 20;

/// How long cancelled builds may take to clean up once the face is gone.
const CLEAN_UP: Duration = Duration::from_millis(1200);

/// Entry point of the worker process: `argv[2]` is the number of the inherited connection.
pub fn worker_main() -> ! {
    let code = match serve_from_arguments() {
        Ok(()) => 0,
        Err(error) => {
            // The face learns from the closed connection that the worker is gone; this line says why.
            tracing::error!("worker: {error}");
            8
        }
    };
    std::process::exit(code)
}

/// Entry point of the helper process that becomes a build step.
pub fn step_main() -> ! {
    sandbox::helper_main()
}

fn serve_from_arguments() -> Result<(), Box<dyn std::error::Error>> {
    let number = std::env::args().nth(2).ok_or("the number of the connection is missing")?.parse()?;
    let link: OwnedFd = sandbox::inherited_fd(number)?;
    // Before any thread exists: namespaces are entered by the whole process or not at all.
    let host_userns = std::env::args().nth(3).is_some_and(|argument| argument == HOST_USERNS);
    let entered = sandbox::worker::enter(&sandbox::worker::Options { host_userns, ..Default::default() });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 8)))
        .max_blocking_threads(64)
        // Trees are walked by recursion, and may be a thousand directories deep.
        .thread_stack_size(WALK_STACK_BYTES)
        .enable_all()
        .build()?;
    let stream = UnixStream::from(link);
    stream.set_nonblocking(true)?;
    runtime.block_on(serve(stream, entered.map_err(|error| isolation_error(&error))))?;
    // Blocking work of cancelled builds may still be under way; the namespace ends it with this process.
    runtime.shutdown_background();
    Ok(())
}

fn isolation_error(error: &(dyn std::error::Error + 'static)) -> BuildError {
    BuildError::new(
        ExitKind::Denied,
        Report::new("isolation", "cannot enter the namespaces that builds need")
            .caused_by(error)
            .hint("`build-engine info` says what this host offers"),
    )
}

type Calls = HashMap<u64, JoinHandle<()>>;

async fn serve(stream: UnixStream, entered: Result<sandbox::worker::Entered, BuildError>) -> std::io::Result<()> {
    let (mut reader, mut writer) = tokio::net::UnixStream::from_std(stream)?.into_split();
    let (answers, mut queue) = mpsc::unbounded_channel::<Answer>();
    let sender = tokio::spawn(async move {
        while let Some(answer) = queue.recv().await {
            if frame::write(&mut writer, &answer).await.is_err() {
                break;
            }
        }
    });
    let mut calls = Calls::new();
    let mut entered = Some(entered);
    let face = Arc::new(Face::new(answers.clone()));
    let mut engine: Result<Arc<Engine>, BuildError> = Err(BuildError::internal("no store was opened"));
    while let Ok(Some(call)) = frame::read::<Call>(&mut reader).await {
        calls.retain(|_, task| !task.is_finished());
        match call {
            Call::Open { options } => {
                if let Some(entered) = entered.take() {
                    engine = entered.and_then(|entered| Engine::open(&options, &entered, face.clone())).map(Arc::new);
                }
            }
            Call::Build { id, request } => {
                let events = Arc::new(Events { id, answers: answers.clone() });
                let engine = engine.clone();
                let caller = face.caller(id);
                calls.insert(
                    id,
                    answer(id, &answers, async move { to_value(engine?.build(*request, caller, events).await?) }),
                );
            }
            Call::Transfer { id, request } => {
                let events = Arc::new(Events { id, answers: answers.clone() });
                let engine = engine.clone();
                calls.insert(
                    id,
                    answer(id, &answers, async move { to_value(engine?.transfer(*request, events).await?) }),
                );
            }
            Call::Told { ask, result } => face.told(ask, result),
            Call::Run { id, request } => {
                let engine = engine.clone();
                calls.insert(id, answer(id, &answers, async move { to_value(engine?.run(*request).await?) }));
            }
            Call::Ask { id, question } => {
                let (engine, caller) = (engine.clone(), face.caller(id));
                calls.insert(id, answer(id, &answers, async move { ask(&*engine?, question, caller).await }));
            }
            Call::Cancel { id } => {
                if let Some(task) = calls.remove(&id) {
                    task.abort();
                }
            }
        }
    }
    for task in calls.values() {
        task.abort();
    }
    let store = engine.as_ref().ok().map(|engine| engine.parts.store.clone());
    let ended = async {
        for task in calls.into_values() {
            // An aborted task ends with an error that says so.
            let _ = task.await;
        }
        if let Ok(engine) = engine {
            engine.idle().await;
        }
    };
    if tokio::time::timeout(CLEAN_UP, ended).await.is_err() {
        tracing::warn!("cancelled builds did not end in time; their processes are killed");
    }
    // Threads cannot be cancelled: one may still unpack a layer that nobody wants.
    if let Some(store) = store {
        store.abandon();
    }
    drop(answers);
    sender.abort();
    Ok(())
}

fn answer(
    id: u64,
    answers: &mpsc::UnboundedSender<Answer>,
    work: impl Future<Output = Result<Value, BuildError>> + Send + 'static,
) -> JoinHandle<()> {
    let answers = answers.clone();
    tokio::spawn(async move {
        // A panic in one build is an internal error of that build and no concern of the others.
        let mut task = AbortOnDrop(tokio::spawn(work));
        let result = match (&mut task.0).await {
            Ok(result) => result,
            Err(panic) => Err(BuildError::internal(format!("a build panicked: {panic}"))),
        };
        let answer = match result {
            Ok(result) => Answer::Done { id, result },
            Err(error) => Answer::Failed { id, error },
        };
        // The queue is closed only when the face is gone.
        let _ = answers.send(answer);
    })
}

/// A task that is aborted when whoever waits for it goes away.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn to_value(value: impl serde::Serialize) -> Result<Value, BuildError> {
    serde_json::to_value(value).map_err(|error| BuildError::internal(format!("an answer cannot be written: {error}")))
}

async fn ask(engine: &Engine, question: Question, caller: Caller) -> Result<Value, BuildError> {
    match question {
        Question::Images => to_value(engine.images().await?),
        Question::RemoveImage { name } => to_value(engine.remove_image(name).await?),
        Question::Lock { request } => to_value(engine.lock(*request, caller).await?),
        Question::Check { request } => to_value(engine.check(*request, caller).await?),
        Question::Outline { request } => to_value(engine.outline(*request, caller).await?),
        Question::Dockerfile { request } => to_value(engine.dockerfile(*request, caller).await?),
        Question::Graph { request } => engine.graph(*request, caller).await,
        Question::Tag { image, name } => to_value(engine.tag(image, name).await?),
        Question::Inspect { place } => to_value(engine.inspect(place).await?),
        Question::Verify => to_value(engine.verify().await?),
        Question::Prune { all } => to_value(engine.prune(all).await?),
        Question::WorkerInfo => to_value(engine.worker_info()),
    }
}

/// Sends the events of one build.
struct Events {
    id: u64,
    answers: mpsc::UnboundedSender<Answer>,
}

impl EventSink for Events {
    fn emit(&self, event: Event) {
        // The queue is closed only when the face is gone.
        let _ = self.answers.send(Answer::Event { id: self.id, event });
    }
}
