//! In-memory operations, records and claims, and a sink that remembers: for tests, here and in other crates.
//!
//! A [`Step`] is a vertex whose behaviour stands in its attributes; a [`World`] says what happens when steps run.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use build_engine_graph::{Edge, Event, EventSink, LogStream, Metadata, Op, SourceOp, Timestamp, Vertex};
use build_engine_oci::Digest;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{Notify, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

use crate::flight::lock;
use crate::{CacheMap, Claims, ContentSelector, Failure, InputKey, KeyPart, NewRecord, Ops, Record, Records};

/// Builds a vertex for [`TestOps`].
#[derive(Debug, Clone)]
pub struct Step {
    source: SourceOp,
    inputs: Vec<Edge>,
    metadata: Metadata,
}

impl Step {
    /// A step without inputs; `name` is its name, and its key unless [`Step::key`] says otherwise.
    pub fn new(name: &str) -> Self {
        let source = SourceOp { identifier: name.to_owned(), attrs: BTreeMap::new() };
        Self { source, inputs: Vec::new(), metadata: Metadata { name: name.to_owned(), ..Metadata::default() } }
    }

    fn attr(mut self, name: &str, value: &str) -> Self {
        self.source.attrs.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Sets the own part of the cache key.
    #[must_use]
    pub fn key(self, key: &str) -> Self {
        self.attr("key", key)
    }

    /// Adds the first output of `vertex` as an input whose origin counts.
    #[must_use]
    pub fn input(mut self, vertex: &Arc<Vertex>) -> Self {
        self.inputs.push(vertex.output());
        self
    }

    /// Adds the first output of `vertex` as an input whose content counts.
    #[must_use]
    pub fn content(mut self, vertex: &Arc<Vertex>) -> Self {
        let at = format!("content {}", self.inputs.len());
        self.inputs.push(vertex.output());
        self.attr(&at, "")
    }

    /// Makes the key valid for one job only and the output not recordable: a local context.
    #[must_use]
    pub fn unique(self) -> Self {
        self.attr("unique", "")
    }

    /// Sets `ignore_cache`.
    #[must_use]
    pub fn ignore_cache(mut self) -> Self {
        self.metadata.ignore_cache = true;
        self
    }

    /// The vertex.
    pub fn vertex(self) -> Arc<Vertex> {
        Vertex::new(Op::Source(self.source), self.inputs, None, self.metadata)
    }
}

/// An output: all there is to a tree is its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestOutput {
    /// What is in it.
    pub content: String,
    recordable: bool,
}

/// What happens when steps run, and what has happened. Shared by the [`TestOps`] of several jobs.
pub struct World {
    state: Mutex<WorldState>,
    changed: Notify,
    permits: Arc<Semaphore>,
}

#[derive(Default)]
struct WorldState {
    runs: Vec<String>,
    keys: Vec<String>,
    canceled: Vec<String>,
    running: HashSet<String>,
    held: HashSet<String>,
    failing: HashSet<String>,
    contents: HashMap<String, String>,
    gone: HashSet<String>,
}

impl World {
    /// A world in which `permits` steps may run at once.
    pub fn new(permits: usize) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(permits));
        Arc::new(Self { state: Mutex::default(), changed: Notify::new(), permits })
    }

    fn change(&self, change: impl FnOnce(&mut WorldState)) {
        change(&mut lock(&self.state));
        self.changed.notify_waiters();
    }

    async fn until(&self, mut condition: impl FnMut(&WorldState) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if condition(&lock(&self.state)) {
                return;
            }
            changed.await;
        }
    }

    /// Takes the names of the steps that were run since the last call, in the order in which they began.
    pub fn take_runs(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.state).runs)
    }

    /// Takes the names of the steps whose cache map was asked for since the last call.
    pub fn take_keys(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.state).keys)
    }

    /// Lets the step begin but not end.
    pub fn hold(&self, name: &str) {
        self.change(|state| _ = state.held.insert(name.to_owned()));
    }

    /// Lets the step end.
    pub fn release(&self, name: &str) {
        self.change(|state| _ = state.held.remove(name));
    }

    /// Makes the step fail, or not.
    pub fn fail(&self, name: &str, fails: bool) {
        self.change(|state| {
            if fails {
                state.failing.insert(name.to_owned())
            } else {
                state.failing.remove(name)
            };
        });
    }

    /// Sets what the step's output contains, instead of something made of its key and inputs.
    pub fn content(&self, name: &str, content: &str) {
        self.change(|state| _ = state.contents.insert(name.to_owned(), content.to_owned()));
    }

    /// Loses the tree with this content: records of it no longer load.
    pub fn lose(&self, content: &str) {
        self.change(|state| _ = state.gone.insert(content.to_owned()));
    }

    /// Waits until the step is running.
    pub async fn running(&self, name: &str) {
        self.until(|state| state.running.contains(name)).await;
    }

    /// Waits until a run of the step was canceled.
    pub async fn canceled(&self, name: &str) {
        self.until(|state| state.canceled.iter().any(|canceled| canceled == name)).await;
    }

    /// How many permits are free.
    pub fn free_permits(&self) -> usize {
        self.permits.available_permits()
    }
}

/// Operations that run in a [`World`]: of [`Step`]s, and of Merge and Diff vertices, whose inputs count by origin.
pub struct TestOps {
    /// The world.
    pub world: Arc<World>,
}

struct Running<'a> {
    world: &'a World,
    name: &'a str,
    ended: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.world.change(|state| {
            state.running.remove(self.name);
            if !self.ended {
                state.canceled.push(self.name.to_owned());
            }
        });
    }
}

fn attrs(vertex: &Vertex) -> &BTreeMap<String, String> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    match vertex.op() {
        Op::Source(source) => &source.attrs,
        Op::Merge(_) | Op::Diff(_) => &NONE,
        Op::Exec(_) | Op::File(_) | Op::Build(_) => panic!("`{}` is not a test step", vertex.name()),
    }
}

fn key_of(vertex: &Vertex) -> String {
    match vertex.op() {
        Op::Merge(_) => "merge".to_owned(),
        Op::Diff(_) => "diff".to_owned(),
        _ => attrs(vertex).get("key").cloned().unwrap_or_else(|| vertex.name()),
    }
}

impl Ops for TestOps {
    type Output = TestOutput;
    type Permit = OwnedSemaphorePermit;

    fn cache_map(&self, vertex: &Arc<Vertex>) -> BoxFuture<'_, Result<CacheMap, Failure>> {
        let attrs = attrs(vertex);
        let inputs = (0..vertex.inputs().len())
            .map(|at| InputKey {
                selector: None,
                content: attrs.contains_key(&format!("content {at}")).then(ContentSelector::default),
            })
            .collect();
        let map = CacheMap {
            parts: vec![KeyPart::new("step", key_of(vertex))],
            inputs,
            unique: attrs.contains_key("unique"),
        };
        let name = vertex.name();
        let fails = lock(&self.world.state).failing.contains(&format!("key of {name}"));
        self.world.change(|state| state.keys.push(name.clone()));
        async move { if fails { Err(Failure::new(format!("no key of {name}"))) } else { Ok(map) } }.boxed()
    }

    fn content_digest(
        &self,
        _vertex: &Arc<Vertex>,
        _input: usize,
        output: TestOutput,
        _selector: &ContentSelector,
    ) -> BoxFuture<'_, Result<Digest, Failure>> {
        async move { Ok(Digest::sha256(output.content.as_bytes())) }.boxed()
    }

    fn permit(&self, _vertex: &Arc<Vertex>) -> BoxFuture<'_, OwnedSemaphorePermit> {
        let permits = Arc::clone(&self.world.permits);
        async move { permits.acquire_owned().await.expect("the semaphore is never closed") }.boxed()
    }

    fn run(
        &self,
        vertex: &Arc<Vertex>,
        inputs: Vec<TestOutput>,
        events: Arc<dyn EventSink>,
    ) -> BoxFuture<'_, Result<Vec<TestOutput>, Failure>> {
        let vertex = Arc::clone(vertex);
        async move {
            let name = &vertex.name();
            self.world.change(|state| {
                state.runs.push(name.clone());
                state.running.insert(name.clone());
            });
            let mut running = Running { world: &self.world, name, ended: false };
            let log = |text: &str| {
                let text = format!("{text} {name}");
                let at = Timestamp(0);
                events.emit(Event::Log { vertex: vertex.digest().clone(), stream: LogStream::Stdout, text, at });
            };
            log("begin");
            self.world.until(|state| !state.held.contains(name)).await;
            running.ended = true;
            if lock(&self.world.state).failing.contains(name) {
                return Err(Failure::new(format!("{name} failed")));
            }
            log("end");
            let made = || {
                let below: String = inputs.iter().map(|input| format!(" {}", input.content)).collect();
                format!("{} of {}", &Digest::sha256(format!("{}{below}", key_of(&vertex)).as_bytes()).hex()[..16], name)
            };
            let set = lock(&self.world.state).contents.get(name).cloned();
            let recordable = !attrs(&vertex).contains_key("unique");
            let content = set.unwrap_or_else(made);
            // What was lost and is made again is there again.
            self.world.change(|state| _ = state.gone.remove(&content));
            Ok(vec![TestOutput { content, recordable }])
        }
        .boxed()
    }

    fn save(&self, output: &TestOutput) -> Option<String> {
        output.recordable.then(|| output.content.clone())
    }

    fn load(&self, value: &str) -> BoxFuture<'_, Option<TestOutput>> {
        let gone = lock(&self.world.state).gone.contains(value);
        let content = value.to_owned();
        async move { (!gone).then_some(TestOutput { content, recordable: true }) }.boxed()
    }
}

/// Records in memory.
#[derive(Default)]
pub struct MemoryRecords {
    map: Mutex<HashMap<Digest, NewRecord>>,
}

impl MemoryRecords {
    /// All records, by key.
    pub fn all(&self) -> HashMap<Digest, NewRecord> {
        lock(&self.map).clone()
    }

    /// Forgets the records of steps with this name.
    pub fn forget(&self, name: &str) {
        lock(&self.map).retain(|_, record| record.name != name);
    }
}

impl Records for MemoryRecords {
    fn lookup(&self, key: &Digest) -> Option<Record> {
        let map = lock(&self.map);
        let record = map.get(key)?;
        Some(Record { canonical: record.canonical.clone(), outputs: record.outputs.clone() })
    }

    fn save(&self, record: NewRecord) {
        lock(&self.map).insert(record.key.clone(), record);
    }
}

/// Claims in memory.
#[derive(Default)]
pub struct MemoryClaims {
    map: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

struct Held(#[expect(dead_code, reason = "held for its drop")] OwnedMutexGuard<()>);

impl Claims for MemoryClaims {
    fn claim(&self, key: &Digest) -> BoxFuture<'static, Result<Box<dyn Send>, Failure>> {
        let mutex = Arc::clone(lock(&self.map).entry(key.clone()).or_default());
        async move { Ok(Box::new(Held(mutex.lock_owned().await)) as Box<dyn Send>) }.boxed()
    }
}

/// A sink that remembers everything.
#[derive(Default)]
pub struct EventLog {
    events: Mutex<Vec<Event>>,
}

impl EventLog {
    /// A new one.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// All events so far.
    pub fn all(&self) -> Vec<Event> {
        lock(&self.events).clone()
    }

    /// The story of the vertex with this name, one line per event.
    pub fn story(&self, name: &str) -> Vec<String> {
        let events = lock(&self.events);
        let digests: HashSet<&Digest> = events
            .iter()
            .filter_map(|event| match event {
                Event::Vertex { vertex, name: other, .. } if other == name => Some(vertex),
                _ => None,
            })
            .collect();
        events
            .iter()
            .filter_map(|event| match event {
                Event::Started { vertex, .. } if digests.contains(vertex) => Some("started".to_owned()),
                Event::Log { vertex, text, .. } if digests.contains(vertex) => Some(text.clone()),
                Event::Completed { vertex, cached, error, .. } if digests.contains(vertex) => Some(match error {
                    Some(error) => format!("error: {error}"),
                    None if *cached => "cached".to_owned(),
                    None => "done".to_owned(),
                }),
                _ => None,
            })
            .collect()
    }
}

impl EventSink for EventLog {
    fn emit(&self, event: Event) {
        lock(&self.events).push(event);
    }
}
