//! Events that the engine itself emits: its own pieces of work beside the graph's.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use build_engine_graph::{Event, EventSink, Timestamp};
use build_engine_oci::{Descriptor, Digest};

/// Time between two reports of the same thing.
const INTERVAL: Duration = Duration::from_millis(100);

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

    /// The vertex that it is shown as.
    pub(super) fn vertex(&self) -> Digest {
        self.digest.clone()
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

    /// Shows how far one blob is.
    pub(super) fn meter(&self, action: &'static str, blob: &Descriptor) -> Meter {
        Meter::new(&self.sink, &self.digest, action, blob)
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

/// Shows how far one blob of a vertex is, ten times a second at most.
pub(super) struct Meter {
    sink: Arc<dyn EventSink>,
    vertex: Digest,
    action: &'static str,
    id: String,
    total: u64,
    last: Mutex<Option<Instant>>,
}

impl Meter {
    pub(super) fn new(sink: &Arc<dyn EventSink>, vertex: &Digest, action: &'static str, blob: &Descriptor) -> Self {
        Self {
            sink: Arc::clone(sink),
            vertex: vertex.clone(),
            action,
            id: blob.digest.to_string(),
            total: blob.size,
            last: Mutex::default(),
        }
    }

    /// It has come this far, in bytes.
    pub(super) fn at(&self, current: u64) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < INTERVAL) {
            return;
        }
        *last = Some(Instant::now());
        self.emit(current, false);
    }

    /// All of it is done.
    pub(super) fn done(&self) {
        self.emit(self.total, true);
    }

    fn emit(&self, current: u64, done: bool) {
        self.sink.emit(Event::Progress {
            vertex: self.vertex.clone(),
            id: self.id.clone(),
            action: self.action.into(),
            current,
            total: Some(self.total),
            at: now(),
            done,
        });
    }
}
