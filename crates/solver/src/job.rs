//! Jobs: solving the graph of one build.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use build_engine_graph::{Edge, Event, EventSink, Timestamp, Vertex, walk};
use build_engine_oci::Digest;
use futures::future::{BoxFuture, try_join, try_join_all};
use tokio::sync::watch;

use crate::Failure;
use crate::flight::{FlightKey, Flights, Hub, Landed, Listener, lock};
use crate::key::{CacheKey, KeyPart};
use crate::ops::{CacheMap, Claims, NewRecord, Ops, Record, Records};
use crate::task::{Slot, Wait};

/// Decides what runs. One per process and store, shared by all builds; clones are the same solver.
pub struct Solver<O: Ops> {
    inner: Arc<SolverInner<O>>,
}

struct SolverInner<O: Ops> {
    records: Arc<dyn Records>,
    claims: Arc<dyn Claims>,
    flights: Arc<Flights<O::Output>>,
    next_job: AtomicU64,
}

/// How a job differs from an ordinary one.
#[derive(Debug, Clone, Default)]
pub struct JobOptions {
    /// Whether every vertex must run (`--no-cache`), as if each had `ignore_cache` set.
    pub no_cache: bool,
}

/// One build's use of the solver. Results are kept until it and its [`LazyRef`]s are dropped.
pub struct Job<O: Ops> {
    inner: Arc<JobInner<O>>,
}

/// An edge that was asked for, and that is worked on when it is evaluated.
pub struct LazyRef<O: Ops> {
    job: Arc<JobInner<O>>,
    edge: Edge,
}

/// What [`Job::probe`] says of one vertex.
#[derive(Debug, Clone)]
pub struct Probed {
    /// The vertex.
    pub vertex: Arc<Vertex>,
    /// Whether its result exists.
    pub probe: Probe,
    /// Whether a solve would want its result: it is asked for, or a needed vertex that is no hit consumes it.
    pub needed: bool,
}

/// Whether a vertex would run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Its result exists.
    Hit {
        /// The canonical key.
        key: Digest,
    },
    /// It would run.
    Miss {
        /// The canonical key.
        key: Digest,
        /// The parts of it, to find out what changed.
        parts: Vec<KeyPart>,
    },
    /// It depends on the content that another vertex would have when it had run.
    Unknown {
        /// That vertex.
        waits_for: Digest,
    },
}

impl<O: Ops> Clone for Solver<O> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<O: Ops> Solver<O> {
    /// A solver that keeps its results in `records`, and stays out of other processes' way by `claims`.
    pub fn new(records: Arc<dyn Records>, claims: Arc<dyn Claims>) -> Self {
        let inner = SolverInner { records, claims, flights: Arc::default(), next_job: AtomicU64::new(1) };
        Self { inner: Arc::new(inner) }
    }

    /// Opens a job. `ops` do the job's work, `sink` gets its events.
    ///
    /// A run that several jobs share is done by the `ops` of the one that came first, even when that job has ended.
    pub fn job(&self, ops: Arc<O>, sink: Arc<dyn EventSink>, options: JobOptions) -> Job<O> {
        Job { inner: self.open(ops, sink, options, false) }
    }

    fn open(&self, ops: Arc<O>, sink: Arc<dyn EventSink>, options: JobOptions, probing: bool) -> Arc<JobInner<O>> {
        Arc::new(JobInner {
            number: self.inner.next_job.fetch_add(1, Ordering::Relaxed),
            solver: self.clone(),
            ops,
            sink,
            options,
            probing,
            nodes: Mutex::default(),
            landed: Mutex::default(),
            story: Mutex::default(),
            ahead: Mutex::default(),
            runs: watch::Sender::new(0),
        })
    }

    #[cfg(test)]
    pub(crate) fn flights(&self) -> usize {
        self.inner.flights.len()
    }
}

impl<O: Ops> Job<O> {
    /// Announces the vertices below `edges` and returns references to them, in order. May be called any number of times.
    pub fn solve(&self, edges: &[Edge]) -> Vec<LazyRef<O>> {
        walk(edges, |vertex| self.inner.announce(vertex));
        edges.iter().map(|edge| LazyRef { job: Arc::clone(&self.inner), edge: edge.clone() }).collect()
    }

    /// Says for every vertex below `edges` whether it would run, inputs first. Runs nothing but local contexts, emits
    /// no events and saves nothing.
    ///
    /// # Errors
    /// When a key cannot be computed because an operation failed, for example a tag cannot be resolved.
    pub async fn probe(&self, edges: &[Edge]) -> Result<Vec<Probed>, Failure> {
        let job = &self.inner;
        let probe = job.solver.open(Arc::clone(&job.ops), Arc::new(|_| {}), job.options.clone(), true);
        let mut order = Vec::new();
        walk(edges, |vertex| order.push(Arc::clone(vertex)));
        let mut probed = Vec::with_capacity(order.len());
        for vertex in order {
            let outcome = probe.probe(&vertex).await?;
            probed.push(Probed { vertex, probe: outcome, needed: false });
        }
        let mut needed: HashSet<Digest> = edges.iter().map(|edge| edge.vertex.digest().clone()).collect();
        for entry in probed.iter_mut().rev() {
            entry.needed = needed.contains(entry.vertex.digest());
            if entry.needed && !matches!(entry.probe, Probe::Hit { .. }) {
                needed.extend(entry.vertex.inputs().iter().map(|edge| edge.vertex.digest().clone()));
            }
        }
        Ok(probed)
    }
}

impl<O: Ops> Clone for LazyRef<O> {
    fn clone(&self) -> Self {
        Self { job: Arc::clone(&self.job), edge: self.edge.clone() }
    }
}

impl<O: Ops> LazyRef<O> {
    /// The edge.
    pub fn edge(&self) -> &Edge {
        &self.edge
    }

    /// The canonical key of the edge's vertex. Evaluates those inputs whose content decides about it, and nothing else.
    ///
    /// # Errors
    /// The failure of an operation on the way.
    pub async fn key(&self) -> Result<Digest, Failure> {
        Ok(self.job.keyed(&self.edge.vertex).get().await?.canonical.clone())
    }

    /// The result: found, or made by running what it takes. A second call returns the same result.
    ///
    /// Dropping the future cancels what nobody else waits for.
    ///
    /// # Errors
    /// The failure of the first vertex that failed; the others are then canceled, unless someone else waits for them.
    pub async fn evaluate(&self) -> Result<O::Output, Failure> {
        let solved = self.job.solved(&self.edge.vertex).get().await?;
        self.job.completed_at_last(&self.edge.vertex);
        solved.output(&self.edge)
    }
}

struct JobInner<O: Ops> {
    number: u64,
    solver: Solver<O>,
    ops: Arc<O>,
    sink: Arc<dyn EventSink>,
    options: JobOptions,
    /// Whether to give up where something would have to run.
    probing: bool,
    nodes: Mutex<HashMap<Digest, Node<O>>>,
    /// What this job has by key: for vertices that turn out to be the same only by their keys.
    landed: Mutex<HashMap<FlightKey, Arc<Solved<O>>>>,
    story: Mutex<Story>,
    ahead: Mutex<Ahead>,
    /// Counts the changes of `ahead`, for those who wait to hear of one.
    runs: watch::Sender<usize>,
}

/// What decides about beginning inputs ahead of time; see [`JobInner::key_or_ahead`].
#[derive(Default)]
struct Ahead {
    /// Who consumes a vertex.
    consumers: HashMap<Digest, Vec<Digest>>,
    /// Vertices that stand on one that had to run.
    above_a_run: HashSet<Digest>,
}

impl Ahead {
    /// Notes that `vertex` has to run. Whether that is news for any other.
    fn run(&mut self, vertex: &Digest) -> bool {
        let mut news = false;
        let mut above = vec![vertex.clone()];
        while let Some(below) = above.pop() {
            for consumer in self.consumers.get(&below).into_iter().flatten() {
                if self.above_a_run.insert(consumer.clone()) {
                    news = true;
                    above.push(consumer.clone());
                }
            }
        }
        news
    }
}

struct Node<O: Ops> {
    keyed: Slot<Arc<Keyed>>,
    solved: Slot<Arc<Solved<O>>>,
}

impl<O: Ops> Default for Node<O> {
    fn default() -> Self {
        Self { keyed: Slot::Idle, solved: Slot::Idle }
    }
}

/// The canonical key of a vertex and how it was found.
struct Keyed {
    map: CacheMap,
    /// The canonical keys of the inputs that it was computed from.
    inputs: Vec<InputState>,
    canonical: Digest,
    /// The parts that hash to `canonical`; those of the fast key where a record told the canonical one.
    key: CacheKey,
    /// The fast key, if there is one (some input's content counts) and it may be used.
    fast: Option<CacheKey>,
    /// The record found under the fast key, without anything having been hashed.
    found: Option<Record>,
    state: InputState,
}

/// What a key is to those above it.
#[derive(Clone, PartialEq, Eq)]
struct InputState {
    canonical: Digest,
    /// Must run in this job.
    fresh: bool,
    /// Valid for this job only.
    unique: bool,
}

struct Solved<O: Ops> {
    outputs: Vec<O::Output>,
    state: InputState,
}

impl<O: Ops> Solved<O> {
    fn output(&self, edge: &Edge) -> Result<O::Output, Failure> {
        self.outputs.get(edge.output).cloned().ok_or_else(|| {
            let (asked, has) = (edge.output, self.outputs.len());
            Failure::internal(format!("output {asked} was asked for, but there are {has}")).at(edge.vertex.digest())
        })
    }
}

impl InputState {
    /// The job that the result is for, if it is for one only.
    fn flight_key(&self, job: u64) -> FlightKey {
        FlightKey { canonical: self.canonical.clone(), job: (self.fresh || self.unique).then_some(job) }
    }
}

impl<O: Ops> JobInner<O> {
    fn keyed(self: &Arc<Self>, vertex: &Arc<Vertex>) -> Wait<Arc<Keyed>> {
        let mut nodes = lock(&self.nodes);
        nodes.entry(vertex.digest().clone()).or_default().keyed.join(|| {
            let (job, vertex) = (Arc::clone(self), Arc::clone(vertex));
            Box::pin(async move {
                let keyed = job.compute_key(&vertex).await?;
                job.node(&vertex, |node| node.keyed = Slot::Done(Arc::clone(&keyed)));
                Ok(keyed)
            })
        })
    }

    fn solved(self: &Arc<Self>, vertex: &Arc<Vertex>) -> Wait<Arc<Solved<O>>> {
        let mut nodes = lock(&self.nodes);
        nodes.entry(vertex.digest().clone()).or_default().solved.join(|| {
            let (job, vertex) = (Arc::clone(self), Arc::clone(vertex));
            Box::pin(async move {
                let solved = job.compute_result(&vertex).await?;
                lock(&job.landed).insert(solved.state.flight_key(job.number), Arc::clone(&solved));
                job.node(&vertex, |node| node.solved = Slot::Done(Arc::clone(&solved)));
                Ok(solved)
            })
        })
    }

    fn node<R>(&self, vertex: &Vertex, use_it: impl FnOnce(&mut Node<O>) -> R) -> R {
        use_it(lock(&self.nodes).entry(vertex.digest().clone()).or_default())
    }

    async fn probe(self: &Arc<Self>, vertex: &Arc<Vertex>) -> Result<Probe, Failure> {
        let keyed = match self.keyed(vertex).get().await {
            Ok(keyed) => keyed,
            Err(failure) => {
                return match failure.vertex() {
                    Some(vertex) if failure.is_would_run() => Ok(Probe::Unknown { waits_for: vertex.clone() }),
                    Some(_) | None => Err(failure),
                };
            }
        };
        let key = keyed.canonical.clone();
        match self.solved(vertex).get().await {
            Ok(_) => Ok(Probe::Hit { key }),
            Err(failure) if failure.is_would_run() => Ok(Probe::Miss { key, parts: keyed.key.parts().to_vec() }),
            Err(failure) => Err(failure),
        }
    }

    // Boxed with its type spelt out: the futures of a recursion cannot name themselves.
    fn compute_key<'a>(self: &'a Arc<Self>, vertex: &'a Arc<Vertex>) -> BoxFuture<'a, Result<Arc<Keyed>, Failure>> {
        Box::pin(async move {
            let map = async {
                let map = self.ops.cache_map(vertex).await.and_then(|map| {
                    let (has, wants) = (map.inputs.len(), vertex.inputs().len());
                    if has == wants {
                        Ok(map)
                    } else {
                        Err(Failure::internal(format!("cache map of {has} inputs for a vertex of {wants}")))
                    }
                });
                map.map_err(|failure| self.failed(vertex, failure))
            };
            let inputs = try_join_all(vertex.inputs().iter().map(|edge| self.keyed(&edge.vertex).get()));
            let (map, inputs) = try_join(map, inputs).await?;
            let inputs: Vec<InputState> = inputs.iter().map(|keyed| keyed.state.clone()).collect();
            if map.inputs.iter().all(|input| input.content.is_none()) {
                return Ok(self.key_by_origin(vertex, map, inputs));
            }
            let (fast, state) = self.key_of(vertex, &map, &inputs, |_| None);
            if state.fresh || state.unique {
                return self.key_by_content(vertex, map, inputs, None).await;
            }
            if let Some(record) = self.solver.inner.records.lookup(&state.canonical) {
                let canonical = record.canonical.clone();
                let state = InputState { canonical: canonical.clone(), ..state };
                let (key, found) = (fast.clone(), Some(record));
                return Ok(Arc::new(Keyed { map, inputs, canonical, key, fast: Some(fast), found, state }));
            }
            self.key_by_content(vertex, map, inputs, Some(fast)).await
        })
    }

    fn key_by_origin(&self, vertex: &Vertex, map: CacheMap, inputs: Vec<InputState>) -> Arc<Keyed> {
        let (key, state) = self.key_of(vertex, &map, &inputs, |_| None);
        let canonical = state.canonical.clone();
        Arc::new(Keyed { map, inputs, canonical, key, fast: None, found: None, state })
    }

    /// Evaluates the inputs whose content counts, hashes them, and computes the canonical key.
    async fn key_by_content(
        self: &Arc<Self>,
        vertex: &Arc<Vertex>,
        map: CacheMap,
        mut inputs: Vec<InputState>,
        fast: Option<CacheKey>,
    ) -> Result<Arc<Keyed>, Failure> {
        let contents = vertex.inputs().iter().zip(&map.inputs).enumerate().map(|(at, (edge, input))| async move {
            let Some(selector) = &input.content else { return Ok(None) };
            let solved = self.solved(&edge.vertex).get().await?;
            let output = solved.output(edge)?;
            let digest = self.ops.content_digest(vertex, at, output, selector).await;
            let digest = digest.map_err(|failure| self.failed(vertex, failure))?;
            Ok(Some((digest, solved.state.clone())))
        });
        let contents: Vec<Option<(Digest, InputState)>> = try_join_all(contents).await?;
        for (input, content) in inputs.iter_mut().zip(&contents) {
            if let Some((_, state)) = content {
                *input = state.clone();
            }
        }
        let digest_of = |at: usize| contents[at].as_ref().map(|(digest, _)| digest);
        let (key, state) = self.key_of(vertex, &map, &inputs, digest_of);
        let canonical = state.canonical.clone();
        if let (Some(fast), false) = (&fast, self.probing || state.fresh || state.unique) {
            let records = &self.solver.inner.records;
            if let Some(record) = records.lookup(&canonical) {
                // The same content by another way: next time, that way need not be walked.
                save(records, vec![new_record(vertex, fast, &canonical, &record.outputs, false)]).await;
            }
        }
        Ok(Arc::new(Keyed { map, inputs, canonical, key, fast, found: None, state }))
    }

    /// The key of a vertex, given the content digests of some inputs; the keys of the others stand for these.
    fn key_of<'a>(
        &self,
        vertex: &Vertex,
        map: &CacheMap,
        inputs: &[InputState],
        content: impl Fn(usize) -> Option<&'a Digest>,
    ) -> (CacheKey, InputState) {
        let mut key = CacheKey::new(map.parts.clone());
        let mut unique = map.unique;
        let mut fresh = self.options.no_cache || vertex.metadata().ignore_cache;
        for (at, ((input, state), edge)) in map.inputs.iter().zip(inputs).zip(vertex.inputs()).enumerate() {
            if let Some(digest) = content(at) {
                key.push(format!("input {at} content"), digest.to_string());
                continue;
            }
            unique |= state.unique;
            fresh |= state.fresh;
            // Named apart, so that no fast key is another vertex's canonical key.
            let name = if input.content.is_some() { format!("input {at} origin") } else { format!("input {at}") };
            key.push(name, format!("{}#{}", state.canonical, edge.output));
            if let Some(selector) = &input.selector {
                key.push(format!("input {at} selector"), selector);
            }
        }
        if map.unique {
            key.push("job", self.number.to_string());
        }
        let canonical = key.digest();
        (key, InputState { canonical, fresh, unique })
    }

    fn compute_result<'a>(
        self: &'a Arc<Self>,
        vertex: &'a Arc<Vertex>,
    ) -> BoxFuture<'a, Result<Arc<Solved<O>>, Failure>> {
        Box::pin(async move {
            // Kept until the inputs are asked for below: nobody else may be waiting for them yet.
            let mut ahead = Vec::new();
            let mut keyed = self.key_or_ahead(vertex, &mut ahead).await?;
            if let Some(solved) = self.reuse(vertex, &keyed).await? {
                return Ok(solved);
            }
            // A local context is the one thing that a probe may look into.
            if self.probing && !(keyed.map.unique && vertex.inputs().is_empty()) {
                return Err(Failure::would_run(vertex.digest()));
            }
            let inputs = try_join_all(vertex.inputs().iter().map(|edge| self.solved(&edge.vertex).get())).await?;
            let outputs: Vec<O::Output> = vertex
                .inputs()
                .iter()
                .zip(&inputs)
                .map(|(edge, solved)| solved.output(edge))
                .collect::<Result<_, _>>()?;
            drop(ahead);
            // The key so far is what records said of the inputs. Where one of them had to run again and came out
            // different, or where only a lost result told the key, it is computed from what is there now.
            let changed = inputs.iter().zip(&keyed.inputs).any(|(solved, then)| solved.state != *then);
            if changed || keyed.found.is_some() {
                let states = inputs.iter().map(|solved| solved.state.clone()).collect();
                let again = self.key_again(vertex, &keyed, states).await?;
                let other = again.canonical != keyed.canonical;
                keyed = again;
                if other && let Some(solved) = self.reuse(vertex, &keyed).await? {
                    return Ok(solved);
                }
            }
            self.fly(vertex, &keyed, outputs).await
        })
    }

    /// The key of a vertex whose result is wanted.
    ///
    /// A key may depend on the content of an input that has to run first. As soon as one below does, there is no hope that
    /// a record spares the other inputs, so they are begun as well: two stages that are copied from run side by side.
    async fn key_or_ahead(
        self: &Arc<Self>,
        vertex: &Arc<Vertex>,
        ahead: &mut Vec<Wait<Arc<Solved<O>>>>,
    ) -> Result<Arc<Keyed>, Failure> {
        let mut runs = self.runs.subscribe();
        let mut key = std::pin::pin!(self.keyed(vertex).get());
        // Mostly it is known by now, and then there is no need to look below.
        if let std::task::Poll::Ready(keyed) = futures::poll!(&mut key) {
            return keyed;
        }
        while !self.has_run_below(vertex) {
            tokio::select! {
                biased;
                keyed = &mut key => return keyed,
                changed = runs.changed() => debug_assert!(changed.is_ok(), "the job holds the sender"),
            }
        }
        ahead.extend(vertex.inputs().iter().map(|edge| self.solved(&edge.vertex)));
        let begun = try_join_all(ahead.iter().cloned().map(Wait::get));
        tokio::select! {
            biased;
            keyed = &mut key => keyed,
            begun = begun => match begun {
                Ok(_) => key.await,
                Err(failure) => Err(failure),
            },
        }
    }

    /// Whether anything that `vertex` depends on had to run in this job.
    fn has_run_below(&self, vertex: &Vertex) -> bool {
        lock(&self.ahead).above_a_run.contains(vertex.digest())
    }

    async fn key_again(
        self: &Arc<Self>,
        vertex: &Arc<Vertex>,
        keyed: &Keyed,
        inputs: Vec<InputState>,
    ) -> Result<Arc<Keyed>, Failure> {
        let map = keyed.map.clone();
        if map.inputs.iter().all(|input| input.content.is_none()) {
            return Ok(self.key_by_origin(vertex, map, inputs));
        }
        let (fast, state) = self.key_of(vertex, &map, &inputs, |_| None);
        let usable = !state.fresh && !state.unique;
        self.key_by_content(vertex, map, inputs, usable.then_some(fast)).await
    }

    /// The result, if it exists or is being made.
    async fn reuse(self: &Arc<Self>, vertex: &Arc<Vertex>, keyed: &Keyed) -> Result<Option<Arc<Solved<O>>>, Failure> {
        let flight_key = keyed.state.flight_key(self.number);
        let earlier = lock(&self.landed).get(&flight_key).cloned();
        if let Some(solved) = earlier {
            self.completed(vertex, true, None);
            return Ok(Some(solved));
        }
        if flight_key.job.is_none() {
            let records = &self.solver.inner.records;
            // The canonical record first: it is the newest. The one under the fast key may be all that is left.
            for record in [records.lookup(&keyed.canonical), keyed.found.clone()].into_iter().flatten() {
                let Some(outputs) = load(&*self.ops, &record).await else { continue };
                self.completed(vertex, true, None);
                self.completed_below(vertex);
                return Ok(Some(Arc::new(Solved { outputs, state: keyed.state.clone() })));
            }
        }
        match self.solver.inner.flights.find(&flight_key) {
            Some(flight) if !self.probing => {
                let mut report = Report { job: self, vertex, finished: false };
                let landed = flight.wait(self.listener(vertex)).await;
                Ok(Some(report.landed(keyed, landed)?))
            }
            Some(_) | None => Ok(None),
        }
    }

    /// Runs the vertex, or waits for whoever does.
    async fn fly(
        self: &Arc<Self>,
        vertex: &Arc<Vertex>,
        keyed: &Arc<Keyed>,
        inputs: Vec<O::Output>,
    ) -> Result<Arc<Solved<O>>, Failure> {
        // What is read in place (a local context) is no work.
        if !keyed.state.unique && lock(&self.ahead).run(vertex.digest()) {
            self.runs.send_modify(|runs| *runs += 1);
        }
        let mut report = Report { job: self, vertex, finished: false };
        let flight = self.solver.inner.flights.join(keyed.state.flight_key(self.number), |hub| {
            let run = Run {
                solver: self.solver.clone(),
                ops: Arc::clone(&self.ops),
                vertex: Arc::clone(vertex),
                keyed: Arc::clone(keyed),
                hub,
            };
            Box::pin(run.run(inputs))
        });
        let landed = flight.wait(self.listener(vertex)).await;
        report.landed(keyed, landed)
    }

    fn listener(self: &Arc<Self>, vertex: &Arc<Vertex>) -> Listener {
        let (job, digest) = (Arc::clone(self), vertex.digest().clone());
        Box::new(move |event| job.overheard(&digest, event))
    }
}

/// One run, from the claim to the record. Belongs to no job: it outlives the one that began it when another waits.
struct Run<O: Ops> {
    solver: Solver<O>,
    ops: Arc<O>,
    vertex: Arc<Vertex>,
    keyed: Arc<Keyed>,
    hub: Arc<Hub>,
}

impl<O: Ops> Run<O> {
    async fn run(self, inputs: Vec<O::Output>) -> Result<Arc<Landed<O::Output>>, Failure> {
        let Self { solver, ops, vertex, keyed, hub } = self;
        let started = || hub.emit(Event::Started { vertex: vertex.digest().clone(), at: now() });
        let at_vertex = |failure: Failure| failure.at(vertex.digest());
        let mut waited = false;
        let mut claim = None;
        if !keyed.state.unique {
            let mut waiting = solver.inner.claims.claim(&keyed.canonical);
            claim = Some(match futures::poll!(&mut waiting) {
                std::task::Poll::Ready(claim) => claim.map_err(at_vertex)?,
                std::task::Poll::Pending => {
                    // Another process runs it: for the people who look on, work on it has begun.
                    waited = true;
                    started();
                    waiting.await.map_err(at_vertex)?
                }
            });
            if !keyed.state.fresh
                && let Some(record) = solver.inner.records.lookup(&keyed.canonical)
                && let Some(outputs) = load(&*ops, &record).await
            {
                return Ok(Arc::new(Landed { outputs, cached: true }));
            }
        }
        let permit = ops.permit(&vertex).await;
        if !waited {
            started();
        }
        let events: Arc<dyn EventSink> = Arc::<Hub>::clone(&hub);
        let outputs = ops.run(&vertex, inputs, events).await.map_err(at_vertex)?;
        drop(permit);
        let saved: Option<Vec<String>> = outputs.iter().map(|output| ops.save(output)).collect();
        if let (Some(saved), false) = (saved, keyed.state.unique) {
            let mut new = vec![new_record(&vertex, &keyed.key, &keyed.canonical, &saved, true)];
            new.extend(keyed.fast.as_ref().map(|fast| new_record(&vertex, fast, &keyed.canonical, &saved, true)));
            save(&solver.inner.records, new).await;
        }
        drop(claim);
        Ok(Arc::new(Landed { outputs, cached: false }))
    }
}

async fn load<O: Ops>(ops: &O, record: &Record) -> Option<Vec<O::Output>> {
    let mut outputs = Vec::with_capacity(record.outputs.len());
    for value in &record.outputs {
        outputs.push(ops.load(value).await?);
    }
    Some(outputs)
}

fn new_record(vertex: &Vertex, key: &CacheKey, canonical: &Digest, outputs: &[String], made: bool) -> NewRecord {
    NewRecord {
        key: key.digest(),
        canonical: canonical.clone(),
        outputs: outputs.to_vec(),
        parts: key.parts().to_vec(),
        vertex: vertex.digest().clone(),
        name: vertex.name(),
        made,
    }
}

/// Saves off the async threads; on cancel the save goes on, which is as good.
async fn save(records: &Arc<dyn Records>, new: Vec<NewRecord>) {
    let records = Arc::clone(records);
    let saved = tokio::task::spawn_blocking(move || new.into_iter().for_each(|record| records.save(record))).await;
    if let Err(error) = saved {
        tracing::warn!(%error, "a cache record was not saved");
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// What the job's sink was told, so that each vertex has one beginning and one end.
#[derive(Default)]
struct Story {
    vertices: HashMap<Digest, Chapter>,
    /// Vertices whose inputs have been looked at by [`JobInner::completed_below`].
    below: HashSet<Digest>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Chapter {
    Announced,
    Started,
    Completed,
}

impl<O: Ops> JobInner<O> {
    fn announce(&self, vertex: &Arc<Vertex>) {
        let mut story = lock(&self.story);
        if story.vertices.contains_key(vertex.digest()) {
            return;
        }
        story.vertices.insert(vertex.digest().clone(), Chapter::Announced);
        // Several outputs of one vertex are one input here.
        let mut inputs: Vec<Digest> = Vec::new();
        for edge in vertex.inputs() {
            if !inputs.contains(edge.vertex.digest()) {
                inputs.push(edge.vertex.digest().clone());
            }
        }
        let mut ahead = lock(&self.ahead);
        for input in &inputs {
            ahead.consumers.entry(input.clone()).or_default().push(vertex.digest().clone());
        }
        drop(ahead);
        self.sink.emit(Event::Vertex { vertex: vertex.digest().clone(), name: vertex.name(), inputs });
    }

    /// Passes on what happened in a flight, as having happened to `vertex`.
    fn overheard(&self, vertex: &Digest, event: Event) {
        let vertex = vertex.clone();
        let event = match event {
            Event::Started { at, .. } => {
                let mut story = lock(&self.story);
                return self.start(&mut story, &vertex, at);
            }
            Event::Progress { id, action, current, total, at, done, .. } => {
                Event::Progress { vertex, id, action, current, total, at, done }
            }
            Event::Log { stream, text, at, .. } => Event::Log { vertex, stream, text, at },
            Event::Warning(warning) => {
                let vertex = warning.vertex.as_ref().map(|_| vertex);
                Event::Warning(build_engine_graph::Warning { vertex, ..warning })
            }
            // Not an operation's to say.
            Event::Vertex { .. } | Event::Completed { .. } => return,
        };
        self.sink.emit(event);
    }

    fn start(&self, story: &mut Story, vertex: &Digest, at: Timestamp) {
        if story.vertices.get(vertex) != Some(&Chapter::Started) {
            story.vertices.insert(vertex.clone(), Chapter::Started);
            self.sink.emit(Event::Started { vertex: vertex.clone(), at });
        }
    }

    fn end(&self, story: &mut Story, vertex: &Digest, cached: bool, error: Option<String>) {
        if story.vertices.get(vertex) != Some(&Chapter::Completed) {
            let at = now();
            self.start(story, vertex, at);
            story.vertices.insert(vertex.clone(), Chapter::Completed);
            self.sink.emit(Event::Completed { vertex: vertex.clone(), at, cached, error });
        }
    }

    fn completed(&self, vertex: &Vertex, cached: bool, error: Option<String>) {
        self.end(&mut lock(&self.story), vertex.digest(), cached, error);
    }

    /// Says that `vertex` failed, and which vertex the failure is of.
    fn failed(&self, vertex: &Vertex, failure: Failure) -> Failure {
        let failure = failure.moved_to(vertex.digest());
        self.completed(vertex, false, Some(failure.chain()));
        failure
    }

    /// Says that what lies below a hit is cached as well, unless it has a story of its own.
    fn completed_below(&self, hit: &Arc<Vertex>) {
        let order = below(hit, &mut lock(&self.story).below);
        self.completed_unseen(order);
    }

    /// Says at the end what no hit could say: what was begun ahead of time and given up when it turned out to be cached.
    fn completed_at_last(&self, target: &Arc<Vertex>) {
        self.completed_unseen(below(target, &mut HashSet::new()));
    }

    fn completed_unseen(&self, vertices: Vec<&Arc<Vertex>>) {
        for vertex in vertices {
            if self.node(vertex, |node| node.solved.is_running()) {
                continue;
            }
            let mut story = lock(&self.story);
            if story.vertices.get(vertex.digest()).is_none_or(|chapter| *chapter == Chapter::Announced) {
                self.end(&mut story, vertex.digest(), true, None);
            }
        }
    }
}

/// The vertices below `vertex` that are not `seen` yet, inputs first.
fn below<'a>(vertex: &'a Arc<Vertex>, seen: &mut HashSet<Digest>) -> Vec<&'a Arc<Vertex>> {
    enum Step<'a> {
        Enter(&'a Arc<Vertex>),
        Leave(&'a Arc<Vertex>),
    }
    let mut order = Vec::new();
    let mut stack: Vec<Step<'_>> = vertex.inputs().iter().rev().map(|edge| Step::Enter(&edge.vertex)).collect();
    while let Some(step) = stack.pop() {
        match step {
            Step::Enter(vertex) => {
                if seen.insert(vertex.digest().clone()) {
                    stack.push(Step::Leave(vertex));
                    stack.extend(vertex.inputs().iter().rev().map(|edge| Step::Enter(&edge.vertex)));
                }
            }
            Step::Leave(vertex) => order.push(vertex),
        }
    }
    order
}

/// Ends the story of a vertex when its flight lands, or when nobody waits any more.
struct Report<'a, O: Ops> {
    job: &'a Arc<JobInner<O>>,
    vertex: &'a Arc<Vertex>,
    finished: bool,
}

impl<O: Ops> Report<'_, O> {
    fn landed(
        &mut self,
        keyed: &Keyed,
        landed: Result<Arc<Landed<O::Output>>, Failure>,
    ) -> Result<Arc<Solved<O>>, Failure> {
        self.finished = true;
        match landed {
            Ok(landed) => {
                self.job.completed(self.vertex, landed.cached, None);
                if landed.cached {
                    self.job.completed_below(self.vertex);
                }
                Ok(Arc::new(Solved { outputs: landed.outputs.clone(), state: keyed.state.clone() }))
            }
            Err(failure) => Err(self.job.failed(self.vertex, failure)),
        }
    }
}

impl<O: Ops> Drop for Report<'_, O> {
    fn drop(&mut self) {
        if !self.finished {
            let mut story = lock(&self.job.story);
            if story.vertices.get(self.vertex.digest()) == Some(&Chapter::Started) {
                self.job.end(&mut story, self.vertex.digest(), false, Some("canceled".into()));
            }
        }
    }
}
