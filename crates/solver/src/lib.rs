//! The solver: from a graph to results, running as little as possible.
//!
//! A [`Solver`] is shared by all builds of a process. Each build opens a [`Job`] with the [`Ops`] that know how to do
//! things for it, hands it edges and gets [`LazyRef`]s back; nothing happens until one of them is evaluated (or its
//! key is asked for). The solver decides *whether* and *when*; what a vertex does, and what a result is, it does not know.
//!
//! # Keys
//!
//! A vertex's digest identifies work within a run; its **canonical key** identifies its result across runs. Both the
//! parts of a key and the order in which they are found out matter:
//!
//! 1. [`Ops::cache_map`] gives the vertex's own parts, and says for each input whether its content counts.
//! 2. No input's content counts: the canonical key is the hash of the parts and of the inputs' canonical keys. Nothing
//!    had to run.
//! 3. Some do: the same formula gives the **fast key**. A record under it knows the canonical key. Else these inputs
//!    are evaluated, [`Ops::content_digest`] hashes what the vertex will see of them, and those digests stand in the
//!    canonical key (*slow key* in BuildKit) in the place of the inputs' keys and selectors.
//! 4. A record under the canonical key, whose results still load, is a **hit**: the inputs never run. Otherwise they are
//!    evaluated, and then the vertex.
//!
//! When an input had to run although its key was known (its tree was gone), and turned out to have another canonical
//! key, the keys above it are computed again before anything is saved: a record never claims what it is not.
//!
//! Two properties travel upwards through inputs whose content does not count:
//!
//! - **unique** ([`CacheMap::unique`], a local context): the key is valid for this job only. Nothing is looked up, saved,
//!   claimed or shared under it.
//! - **fresh** (`ignore_cache` of the vertex, or [`JobOptions::no_cache`]): it must run in this job. Nothing is looked up
//!   and nothing of another job is shared, but the result is saved for later builds.
//!
//! # Running
//!
//! Vertices with equal canonical keys are one *flight*, across all jobs of the process: the first to arrive runs, the others
//! wait and see the same events, those from before they came included. A flight begins when the inputs are ready. It
//! takes the claim of its key ([`Claims`], the lock against other processes), looks for a record again, takes the permit
//! and runs. It ends early when the last one who waits for it is dropped. So: permits are held by running vertices only,
//! a flight never waits for another flight, and claims come before permits.
//!
//! Dropping a future of [`LazyRef::evaluate`] cancels what nobody else waits for. A failed vertex is forgotten with
//! the futures that waited for it; results are kept until the job and its references are dropped.
//!
//! A key that depends on content may have to wait for a run. Once something below a wanted vertex runs, no record can spare
//! its other inputs, short of results that were pruned; so they are begun at once, and stages that are copied from run side by
//! side.
//!
//! # Events
//!
//! [`Job::solve`] announces every vertex, inputs first. Each job then sees, for each vertex that work was done for,
//! `Started`, the vertex's own events, `Completed`; a hit is `Started` and `Completed { cached: true }`. What lies below a hit is
//! reported as cached along with it. Should another target of the job need such a vertex after all, because its own
//! record is gone, it is started a second time. A vertex that was stopped is completed with the error `canceled`; one
//! whose inputs failed is only announced.
//!
//! # Invariants
//!
//! No task polls another's work and no drop descends the graph, so its depth is limited by memory only. All work happens on
//! Tokio tasks: a runtime must be current wherever futures of this crate are polled.

mod failure;
mod flight;
mod job;
mod key;
mod ops;
mod task;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use failure::Failure;
pub use job::{Job, JobOptions, LazyRef, Probe, Probed, Solver};
pub use key::{CacheKey, KeyPart};
pub use ops::{CacheMap, Claims, ContentSelector, InputKey, NewRecord, Ops, Record, Records, SelectedPath};
