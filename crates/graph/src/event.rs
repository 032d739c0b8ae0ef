//! Events: the story of a build, told once.
//!
//! Progress displays, JSON output, metrics and history are folds over this stream; nothing else counts. The shapes
//! follow BuildKit's `SolveStatus`, cut into one event per happening.
//!
//! Order: for one vertex, [`Event::Vertex`] comes first, then [`Event::Started`], then any number of
//! [`Event::Progress`] and [`Event::Log`], then [`Event::Completed`]. What lies below a result that was found is reported
//! as cached along with it; should it be needed after all, because its own result is gone, it is started once more. A
//! vertex whose inputs failed is only announced.

use build_engine_oci::Digest;
use serde::{Deserialize, Serialize};

/// A point in time, in nanoseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A vertex is part of this build.
    Vertex {
        /// Its digest.
        vertex: Digest,
        /// The name shown to people.
        name: String,
        /// Digests of its inputs.
        inputs: Vec<Digest>,
    },
    /// Work on a vertex, or the decision that none is needed, began.
    Started {
        /// The vertex.
        vertex: Digest,
        /// When.
        at: Timestamp,
    },
    /// Some part of a vertex's work moved on.
    Progress {
        /// The vertex.
        vertex: Digest,
        /// Names the part among those of the vertex, for example a layer's digest.
        id: String,
        /// What is being done, for example `extracting`.
        action: String,
        /// Bytes (or items) so far.
        current: u64,
        /// Bytes (or items) in all, where known.
        total: Option<u64>,
        /// When.
        at: Timestamp,
        /// Whether the part is finished.
        done: bool,
    },
    /// The vertex's process wrote something.
    Log {
        /// The vertex.
        vertex: Digest,
        /// Where to.
        stream: LogStream,
        /// The bytes, as text; bytes that are not UTF-8 are replaced.
        text: String,
        /// When.
        at: Timestamp,
    },
    /// A vertex is finished.
    Completed {
        /// The vertex.
        vertex: Digest,
        /// When.
        at: Timestamp,
        /// Whether an earlier result was used.
        cached: bool,
        /// Why it failed; `canceled` where it was told to stop.
        error: Option<String>,
    },
    /// Something that a person should know but that does not stop the build.
    Warning(Warning),
}

/// Where a process wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A warning, for example of a lint rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// The vertex it belongs to, if any.
    pub vertex: Option<Digest>,
    /// The rule, for example `StageNameCasing`; empty for notes of the engine.
    pub rule: String,
    /// One sentence.
    pub message: String,
    /// More about it.
    pub detail: String,
    /// Where to read on.
    pub url: String,
    /// Source file and line, where it has a place.
    pub place: Option<(String, usize)>,
}

/// Takes events. Called from many threads; must not block for long.
pub trait EventSink: Send + Sync {
    /// Takes one event.
    fn emit(&self, event: Event);
}

impl<F: Fn(Event) + Send + Sync> EventSink for F {
    fn emit(&self, event: Event) {
        self(event);
    }
}
