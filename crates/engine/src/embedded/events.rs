//! Events that the engine itself emits: its own pieces of work beside the graph's.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use build_engine_graph::{Event, EventSink, Timestamp};
use build_engine_oci::Digest;

/// The present time.
pub(super) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// A piece of the engine's work that is shown like a vertex. Dropped without [`Work::done`], it is shown as canceled.
pub(super) struct Work {
    sink: Arc<dyn EventSink>,
    digest: Digest,
    finished: bool,
}

impl Work {
    /// Announces and starts it. `name` must be the only one of its kind in the build.
    pub(super) fn start(sink: &Arc<dyn EventSink>, name: &str) -> Self {
        let digest = Digest::sha256(name.as_bytes());
        sink.emit(Event::Vertex { vertex: digest.clone(), name: name.to_owned(), inputs: Vec::new() });
        sink.emit(Event::Started { vertex: digest.clone(), at: now() });
        Self { sink: Arc::clone(sink), digest, finished: false }
    }

    /// Shows one part of it, begun or finished.
    pub(super) fn part(&self, id: impl Into<String>, done: bool) {
        let id = id.into();
        self.sink.emit(Event::Progress {
            vertex: self.digest.clone(),
            action: id.clone(),
            id,
            current: 0,
            total: None,
            at: now(),
            done,
        });
    }

    /// Ends it, well or with an error.
    pub(super) fn done<E: std::fmt::Display>(mut self, result: Result<(), &E>) {
        self.finish(result.err().map(ToString::to_string));
    }

    fn finish(&mut self, error: Option<String>) {
        if !std::mem::replace(&mut self.finished, true) {
            self.sink.emit(Event::Completed { vertex: self.digest.clone(), at: now(), cached: false, error });
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.finish(Some("canceled".into()));
    }
}
