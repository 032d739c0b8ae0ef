//! One piece of work of the engine, with everything that can interrupt it: Ctrl-C, SIGTERM, a time limit.
//!
//! Dropping the future of the work cancels it; the worker is then given a moment to undo what it started. A second
//! signal ends the program at once.

use std::future::Future;
use std::time::{Duration, Instant};

use build_engine_engine::embedded::Embedded;
use build_engine_engine::{BuildError, ExitKind, Report, StoreOptions, UserNamespace};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::errors::Failure;
use crate::settings::Settings;
use crate::ui;

/// How long the worker may take to stop. Together with the rest this stays below two seconds.
const PATIENCE: Duration = Duration::from_millis(1700);

/// A signal that follows the first one so soon is the same one: `timeout`, `make` and npm pass on what the terminal has
/// sent to everybody already.
const ECHO: Duration = Duration::from_millis(200);

/// Why the work ended.
enum End<T> {
    Done(Result<T, BuildError>),
    Signal(u8),
    Timeout(Duration),
}

/// Starts the worker, lets `work` use it, and stops it.
///
/// # Errors
/// What `work` found; or that it was told to stop (exit code 130 or 143), or took longer than `limit` (124).
pub(crate) fn with_engine<T, F>(
    settings: &Settings,
    user_namespace: UserNamespace,
    limit: Option<Duration>,
    work: impl FnOnce(Embedded) -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<T, BuildError>>,
{
    // On the main thread, before there is a runtime: the worker's life hangs on the thread that starts it.
    let options = StoreOptions { root: settings.root.clone(), user_namespace, registries: settings.registries.clone() };
    let engine = Embedded::start(options, settings.auth.clone())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("cannot start the event loop", &error))?;
    runtime.block_on(async {
        let mut signals = Signals::new().map_err(|error| Failure::io("cannot listen for signals", &error))?;
        let end = {
            let work = work(engine.clone());
            tokio::pin!(work);
            let timeout = async {
                match limit {
                    Some(limit) => {
                        tokio::time::sleep(limit).await;
                        limit
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                result = &mut work => End::Done(result),
                code = signals.next() => End::Signal(code),
                limit = timeout => End::Timeout(limit),
            }
            // Here the future is dropped, which cancels what it was doing.
        };
        let ended = Instant::now();
        let again = async {
            loop {
                let code = signals.next().await;
                if ended.elapsed() >= ECHO {
                    break code;
                }
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(PATIENCE, engine.shutdown()) => {}
            code = again => {
                ui::tty::restore();
                std::process::exit(i32::from(code));
            }
        }
        match end {
            End::Done(result) => result.map_err(Failure::from),
            End::Signal(code) => Err(Failure { error: BuildError::cancelled(), code }),
            End::Timeout(limit) => {
                let message = format!("it took longer than the {limit:?} that `--timeout` allows, and was stopped");
                Err(Failure::new(ExitKind::Timeout, Report::new("timeout", message)))
            }
        }
    })
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// The exit code that the next signal asks for.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
        }
    }
}
