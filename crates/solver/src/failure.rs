//! Failures: why a vertex has no result, and which one it was.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use build_engine_oci::Digest;

/// Why a vertex, or one that it needs, has no result. Cheap to clone, since everyone who waited gets it.
///
/// Displays as the error that it wraps; the vertex is for looking up the place in the sources.
#[derive(Clone)]
pub struct Failure {
    vertex: Option<Digest>,
    error: Arc<dyn Error + Send + Sync>,
}

#[derive(Debug, thiserror::Error)]
#[error("canceled")]
struct Canceled;

/// In a probe: the vertex would have to run to say more.
#[derive(Debug, thiserror::Error)]
#[error("not known without running it")]
struct WouldRun;

#[derive(Debug, thiserror::Error)]
#[error("internal error: {0}")]
struct Internal(String);

impl Failure {
    /// Wraps `error`. The solver adds the vertex that it was working on.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { vertex: None, error: Arc::from(error.into()) }
    }

    /// The failure of something that was told to stop.
    pub fn canceled() -> Self {
        Self::new(Canceled)
    }

    pub(crate) fn would_run(vertex: &Digest) -> Self {
        Self { vertex: Some(vertex.clone()), error: Arc::new(WouldRun) }
    }

    pub(crate) fn internal(what: impl Into<String>) -> Self {
        Self::new(Internal(what.into()))
    }

    /// Names the vertex, unless one is named already.
    #[must_use]
    pub fn at(mut self, vertex: &Digest) -> Self {
        self.vertex.get_or_insert_with(|| vertex.clone());
        self
    }

    pub(crate) fn moved_to(mut self, vertex: &Digest) -> Self {
        self.vertex = Some(vertex.clone());
        self
    }

    /// The vertex that failed; `None` only for a failure that did not pass through the solver yet.
    pub fn vertex(&self) -> Option<&Digest> {
        self.vertex.as_ref()
    }

    /// The error itself, for example to downcast it.
    pub fn error(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.error
    }

    /// Whether it was told to stop, rather than failing by itself.
    pub fn is_canceled(&self) -> bool {
        self.error.is::<Canceled>()
    }

    pub(crate) fn is_would_run(&self) -> bool {
        self.error.is::<WouldRun>()
    }

    /// The error and its causes in one line.
    pub fn chain(&self) -> String {
        let mut text = self.error.to_string();
        let mut cause = self.error.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failure").field("vertex", &self.vertex).field("error", &self.error).finish()
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}
