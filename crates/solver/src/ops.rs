//! What the solver needs from the world: operations, records and claims.

use std::sync::Arc;

use build_engine_graph::{EventSink, Vertex};
use build_engine_oci::Digest;
use futures::future::BoxFuture;

use crate::{Failure, KeyPart};

/// How a vertex is cached.
#[derive(Debug, Clone, Default)]
pub struct CacheMap {
    /// The vertex's own parts of the key. For a source this is what pins it: a manifest digest, a commit.
    pub parts: Vec<KeyPart>,
    /// What the vertex sees of each input; as many as the vertex has inputs.
    pub inputs: Vec<InputKey>,
    /// Whether the key is valid for this job only, as that of a local context is.
    pub unique: bool,
}

/// What a vertex sees of one input.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InputKey {
    /// Which part of the input is used, where the key of the input stands for its content.
    pub selector: Option<String>,
    /// What to hash of the input when its content, not its origin, decides. `None` means that the origin does.
    pub content: Option<ContentSelector>,
}

/// What to hash of an input.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ContentSelector {
    /// The paths, in order; none means the whole tree.
    pub paths: Vec<SelectedPath>,
}

/// One path of a [`ContentSelector`] (`opsutils.Selector` of BuildKit).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct SelectedPath {
    /// Path or pattern inside the input.
    pub path: String,
    /// Whether it is a pattern.
    pub wildcard: bool,
    /// Whether a symbolic link at its end is followed.
    pub follow_links: bool,
    /// Patterns of which a file below the path must match one, if there are any.
    pub include: Vec<String>,
    /// Patterns of which a file below the path may match none.
    pub exclude: Vec<String>,
    /// Paths that must exist.
    pub required: Vec<String>,
}

/// How vertices of one build are done. One value per job: it knows the build's contexts, secrets and session.
///
/// All futures are dropped on cancel, at any await; what must be undone is undone by that.
pub trait Ops: Send + Sync + 'static {
    /// One output of a vertex: a snapshot, a context, … A handle: cloned often, and kept until the job ends.
    type Output: Clone + Send + Sync + 'static;
    /// Permission to do work now, given back when dropped.
    type Permit: Send + 'static;

    /// Says how `vertex` is cached, without running anything. May ask other machines (what is this tag today?).
    fn cache_map(&self, vertex: &Arc<Vertex>) -> BoxFuture<'_, Result<CacheMap, Failure>>;

    /// Hashes what `vertex` will see of `output`, its input number `input`.
    fn content_digest(
        &self,
        vertex: &Arc<Vertex>,
        input: usize,
        output: Self::Output,
        selector: &ContentSelector,
    ) -> BoxFuture<'_, Result<Digest, Failure>>;

    /// Waits until `vertex` may run. Held around [`Ops::run`] only.
    fn permit(&self, vertex: &Arc<Vertex>) -> BoxFuture<'_, Self::Permit>;

    /// Does what `vertex` says and returns all its outputs, which are complete and immutable by then.
    ///
    /// `inputs` are in the vertex's order. `events` takes the vertex's progress, logs and warnings and brings them to every
    /// job that waits; [`Started` and `Completed`](build_engine_graph::Event) are the solver's.
    fn run(
        &self,
        vertex: &Arc<Vertex>,
        inputs: Vec<Self::Output>,
        events: Arc<dyn EventSink>,
    ) -> BoxFuture<'_, Result<Vec<Self::Output>, Failure>>;

    /// What a record says of `output`, for [`Ops::load`]; `None` if it cannot be recorded, as a context cannot.
    fn save(&self, output: &Self::Output) -> Option<String>;

    /// Gets back what was saved. `None` means that it is gone: a miss, no error.
    fn load(&self, value: &str) -> BoxFuture<'_, Option<Self::Output>>;
}

/// A result that may be reused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The canonical key of the result.
    pub canonical: Digest,
    /// All outputs, as [`Ops::save`] gave them.
    pub outputs: Vec<String>,
}

/// A record to be saved. A result is saved once under its canonical key and once under its fast key, where it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRecord {
    /// The key to save under.
    pub key: Digest,
    /// The canonical key; equal to `key` for all but fast keys.
    pub canonical: Digest,
    /// All outputs, as [`Ops::save`] gave them.
    pub outputs: Vec<String>,
    /// The parts that hash to `key`.
    pub parts: Vec<KeyPart>,
    /// Digest of the vertex: finds its place in the sources.
    pub vertex: Digest,
    /// The name of the vertex, for example `[build 2/5] RUN make`.
    pub name: String,
    /// Whether it was just made (rather than found by another key).
    pub made: bool,
}

/// Results of earlier runs. Called on async threads: lookups must be short. [`Records::save`] may block.
pub trait Records: Send + Sync + 'static {
    /// The newest record under `key`.
    fn lookup(&self, key: &Digest) -> Option<Record>;

    /// Saves a record, replacing what is under its key. Losing one is allowed.
    fn save(&self, record: NewRecord);
}

/// Locks on keys against other processes.
pub trait Claims: Send + Sync + 'static {
    /// Waits for the lock on `key`, which the result holds until it is dropped.
    fn claim(&self, key: &Digest) -> BoxFuture<'static, Result<Box<dyn Send>, Failure>>;
}
