//! Tasks that several wait for, that stop when nobody does, and that remember success.
//!
//! Each piece of work is a Tokio task of its own. Waiting for one polls a join handle and nothing behind it; stopping one
//! only tells the runtime to. That is what keeps a graph of any depth off the stack.

use std::sync::{Arc, Weak};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::task::AbortHandle;

use crate::Failure;

/// Work under way. Dropping the last reference cancels it.
pub(crate) struct Task<T: Clone> {
    outcome: Shared<BoxFuture<'static, Result<T, Failure>>>,
    abort: AbortHandle,
}

impl<T: Clone + Send + Sync + 'static> Task<T> {
    pub(crate) fn spawn(work: BoxFuture<'static, Result<T, Failure>>) -> Arc<Self> {
        let handle = tokio::spawn(work);
        let abort = handle.abort_handle();
        let outcome = handle.map(|joined| match joined {
            Ok(outcome) => outcome,
            Err(error) if error.is_cancelled() => Err(Failure::canceled()),
            Err(error) => Err(Failure::internal(match error.into_panic().downcast::<String>() {
                Ok(text) => *text,
                Err(other) => other.downcast_ref::<&str>().map_or("panic", |text| *text).to_owned(),
            })),
        });
        Arc::new(Self { outcome: outcome.boxed().shared(), abort })
    }

    /// Waits. The work goes on as long as one who waits is left.
    pub(crate) async fn wait(self: Arc<Self>) -> Result<T, Failure> {
        self.outcome.clone().await
    }
}

impl<T: Clone> Drop for Task<T> {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

/// What is known of a piece of work.
#[derive(Default)]
pub(crate) enum Slot<T: Clone> {
    /// Nothing, or it was given up, or it failed.
    #[default]
    Idle,
    /// It may be under way.
    Running(Weak<Task<T>>),
    /// It succeeded.
    Done(T),
}

/// What there is to wait for.
#[derive(Clone)]
pub(crate) enum Wait<T: Clone> {
    Done(T),
    Running(Arc<Task<T>>),
}

impl<T: Clone + Send + Sync + 'static> Slot<T> {
    /// The result, or the work under way, or that which `start` starts.
    pub(crate) fn join(&mut self, start: impl FnOnce() -> BoxFuture<'static, Result<T, Failure>>) -> Wait<T> {
        match self {
            Self::Done(value) => return Wait::Done(value.clone()),
            Self::Running(task) => {
                if let Some(task) = task.upgrade() {
                    return Wait::Running(task);
                }
            }
            Self::Idle => {}
        }
        let task = Task::spawn(start());
        *self = Self::Running(Arc::downgrade(&task));
        Wait::Running(task)
    }

    /// Whether someone waits for it now.
    pub(crate) fn is_running(&self) -> bool {
        matches!(self, Self::Running(task) if task.strong_count() > 0)
    }
}

impl<T: Clone + Send + Sync + 'static> Wait<T> {
    pub(crate) async fn get(self) -> Result<T, Failure> {
        match self {
            Self::Done(value) => Ok(value),
            Self::Running(task) => task.wait().await,
        }
    }
}
