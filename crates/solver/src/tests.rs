//! The traps of the design, one test each, and random graphs.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use build_engine_graph::{BuildOp, DiffOp, Edge, Event, EventSink, MergeOp, Metadata, Op, Vertex};
use build_engine_oci::Digest;
use futures::future::{BoxFuture, join_all};
use proptest::prelude::*;

use crate::testing::{EventLog, MemoryClaims, MemoryRecords, Step, TestOps, World};
use crate::{Claims, Failure, Job, JobOptions, NewRecord, Probe, Records, Solver};

struct Bench {
    world: Arc<World>,
    records: Arc<MemoryRecords>,
    claims: Arc<MemoryClaims>,
    solver: Solver<TestOps>,
}

impl Bench {
    fn new() -> Self {
        Self::with_permits(64)
    }

    fn with_permits(permits: usize) -> Self {
        let (records, claims) = (Arc::<MemoryRecords>::default(), Arc::<MemoryClaims>::default());
        let solver = Solver::new(records.clone(), claims.clone());
        Self { world: World::new(permits), records, claims, solver }
    }

    fn job(&self) -> (Job<TestOps>, Arc<EventLog>) {
        self.job_with(JobOptions::default())
    }

    fn job_with(&self, options: JobOptions) -> (Job<TestOps>, Arc<EventLog>) {
        let log = EventLog::new();
        let ops = Arc::new(TestOps { world: self.world.clone() });
        (self.solver.job(ops, log.clone(), options), log)
    }

    /// Evaluates in a job of its own; returns the content or the error.
    async fn build(&self, vertex: &Arc<Vertex>) -> Result<String, String> {
        evaluate(&self.job().0, vertex).await
    }
}

async fn evaluate(job: &Job<TestOps>, vertex: &Arc<Vertex>) -> Result<String, String> {
    let refs = job.solve(&[vertex.output()]);
    refs[0].evaluate().await.map(|output| output.content).map_err(|failure| failure.to_string())
}

/// Runs `future`, and fails instead of hanging.
fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let limited = async { tokio::time::timeout(Duration::from_secs(60), future).await.expect("deadlock") };
    runtime.block_on(limited)
}

fn chain(names: &[&str]) -> Arc<Vertex> {
    names
        .iter()
        .fold(None, |below: Option<Arc<Vertex>>, name| Some(below.iter().fold(Step::new(name), Step::input).vertex()))
        .unwrap()
}

fn none() -> Vec<String> {
    Vec::new()
}

#[test]
fn a_second_build_runs_nothing_and_looks_at_nothing_below_the_hit() {
    run(async {
        let bench = Bench::new();
        let top = chain(&["a", "b", "c"]);
        let first = bench.build(&top).await.unwrap();
        assert_eq!(bench.world.take_runs(), ["a", "b", "c"]);
        // The trees below are gone, and nobody notices.
        bench.records.forget("a");
        bench.records.forget("b");
        let (job, log) = bench.job();
        assert_eq!(evaluate(&job, &top).await.unwrap(), first);
        assert_eq!(bench.world.take_runs(), none());
        for name in ["a", "b", "c"] {
            assert_eq!(log.story(name), ["started", "cached"], "{name}");
        }
    });
}

#[test]
fn announcements_come_first_and_inputs_before_what_consumes_them() {
    run(async {
        let bench = Bench::new();
        let base = chain(&["a"]);
        let top = Step::new("top").input(&base).input(&base).vertex();
        let (job, log) = bench.job();
        let _refs = job.solve(&[top.output(), base.output()]);
        let _again = job.solve(&[top.output()]);
        let names: Vec<(String, usize)> = log
            .all()
            .into_iter()
            .map(|event| match event {
                Event::Vertex { name, inputs, .. } => (name, inputs.len()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(names, [("a".to_owned(), 0), ("top".to_owned(), 1)]);
    });
}

/// Trap: a permit held while waiting for inputs.
#[test]
fn one_permit_is_enough_for_any_graph() {
    run(async {
        let bench = Bench::with_permits(1);
        let base = chain(&["base"]);
        let arms: Vec<_> = (0..8).map(|at| Step::new(&format!("arm {at}")).input(&base).vertex()).collect();
        let top = arms.iter().fold(Step::new("top"), Step::content).vertex();
        bench.build(&top).await.unwrap();
        assert_eq!(bench.world.take_runs().len(), 10);
        assert_eq!(bench.world.free_permits(), 1);
    });
}

/// Trap: one of two waiters cancelled.
#[test]
fn a_waiter_that_gives_up_does_not_take_the_run_from_the_other() {
    run(async {
        for same_job in [true, false] {
            let bench = Bench::new();
            let top = chain(&["a", "b"]);
            bench.world.hold("b");
            let (job, log) = bench.job();
            let other = if same_job { None } else { Some(bench.job()) };
            let (second_job, second_log) = other.as_ref().map_or((&job, &log), |(job, log)| (job, log));
            let first = job.solve(&[top.output()])[0].clone();
            let second = second_job.solve(&[top.output()])[0].clone();
            let first = tokio::spawn(async move { first.evaluate().await });
            bench.world.running("b").await;
            let mut second = Box::pin(async move { second.evaluate().await });
            assert!(futures::poll!(&mut second).is_pending());
            let second = tokio::spawn(second);
            while second_log.story("b").len() < 2 {
                tokio::task::yield_now().await;
            }
            first.abort();
            drop(first.await);
            drop(job);
            bench.world.release("b");
            second.await.unwrap().unwrap();
            assert_eq!(bench.world.take_runs(), ["a", "b"], "same job: {same_job}");
        }
    });
}

/// The keys of both copies depend on what the stages come to; the stages must not wait for one another for that.
#[test]
fn stages_that_are_copied_from_run_side_by_side_and_so_does_the_stage_that_copies() {
    run(async {
        let bench = Bench::new();
        let base = Step::new("base").vertex();
        let one = Step::new("one").input(&base).vertex();
        let two = Step::new("two").input(&base).vertex();
        let own = Step::new("own").input(&base).vertex();
        let first = Step::new("copy one").input(&own).content(&one).vertex();
        let second = Step::new("copy two").input(&first).content(&two).vertex();
        for name in ["one", "two", "own"] {
            bench.world.hold(name);
        }
        let (job, _) = bench.job();
        let top = job.solve(&[second.output()])[0].clone();
        let build = tokio::spawn(async move { top.evaluate().await });
        for name in ["one", "two", "own"] {
            bench.world.running(name).await;
        }
        for name in ["one", "two", "own"] {
            bench.world.release(name);
        }
        build.await.unwrap().unwrap();
        drop(job);
        assert_eq!(bench.world.take_runs().len(), 6);
        bench.build(&second).await.unwrap();
        assert_eq!(bench.world.take_runs(), none());
    });
}

#[test]
fn the_last_waiter_that_gives_up_cancels_the_run_and_frees_its_permit() {
    run(async {
        let bench = Bench::with_permits(1);
        let top = chain(&["a", "b"]);
        bench.world.hold("a");
        let (job, log) = bench.job();
        let lazy = job.solve(&[top.output()])[0].clone();
        let task = tokio::spawn(async move { lazy.evaluate().await });
        bench.world.running("a").await;
        task.abort();
        bench.world.canceled("a").await;
        while log.story("a").last().map(String::as_str) != Some("error: canceled") {
            tokio::task::yield_now().await;
        }
        assert_eq!(log.story("b"), none());
        while bench.world.free_permits() == 0 || bench.solver.flights() > 0 {
            tokio::task::yield_now().await;
        }
        // And the same job may try again.
        bench.world.release("a");
        evaluate(&job, &top).await.unwrap();
        assert_eq!(bench.world.take_runs(), ["a", "a", "b"]);
    });
}

/// Trap: a failed vertex remembered across builds.
#[test]
fn a_failure_is_told_to_all_who_waited_and_then_forgotten() {
    run(async {
        let bench = Bench::new();
        let top = chain(&["a", "b"]);
        bench.world.fail("a", true);
        let (job, log) = bench.job();
        assert_eq!(evaluate(&job, &top).await, Err("a failed".to_owned()));
        let failure = job.solve(&[top.output()])[0].evaluate().await.unwrap_err();
        assert_eq!(failure.vertex(), Some(top.inputs()[0].vertex.digest()));
        assert_eq!(log.story("a")[..3], ["started", "begin a", "error: a failed"]);
        assert_eq!(log.story("b"), none());
        bench.world.fail("a", false);
        bench.world.take_runs();
        bench.build(&top).await.unwrap();
        evaluate(&job, &top).await.unwrap();
        assert_eq!(bench.world.take_runs(), ["a", "b"]);
    });
}

#[test]
fn a_key_that_cannot_be_computed_is_a_failure_of_its_vertex() {
    run(async {
        let bench = Bench::new();
        let top = chain(&["a", "b"]);
        bench.world.fail("key of a", true);
        let (job, log) = bench.job();
        assert_eq!(evaluate(&job, &top).await, Err("no key of a".to_owned()));
        assert_eq!(log.story("a"), ["started", "error: no key of a"]);
        assert!(job.probe(&[top.output()]).await.is_err());
    });
}

/// Trap: a `--no-cache` vertex merged with an old result.
#[test]
fn without_cache_everything_runs_and_the_new_results_are_the_ones_kept() {
    run(async {
        let bench = Bench::new();
        let top = chain(&["a", "b"]);
        bench.world.content("a", "old");
        bench.build(&top).await.unwrap();
        bench.world.take_runs();
        bench.world.content("a", "new");
        bench.world.content("b", "new b");
        let (job, _) = bench.job_with(JobOptions { no_cache: true });
        assert_eq!(evaluate(&job, &top).await.unwrap(), "new b");
        assert_eq!(bench.world.take_runs(), ["a", "b"]);
        // Within that job it ran, so that it need not run again.
        assert_eq!(evaluate(&job, &top).await.unwrap(), "new b");
        assert_eq!(bench.build(&top).await.unwrap(), "new b");
        assert_eq!(bench.world.take_runs(), none());
    });
}

#[test]
fn a_run_without_cache_does_not_join_a_run_that_began_before_it() {
    run(async {
        let bench = Bench::new();
        let top = chain(&["a"]);
        bench.world.hold("a");
        let (job, _) = bench.job();
        let first = job.solve(&[top.output()])[0].clone();
        let first = tokio::spawn(async move { first.evaluate().await });
        bench.world.running("a").await;
        let (fresh, _) = bench.job_with(JobOptions { no_cache: true });
        let second = fresh.solve(&[top.output()])[0].clone();
        let second = tokio::spawn(async move { second.evaluate().await });
        bench.world.release("a");
        first.await.unwrap().unwrap();
        second.await.unwrap().unwrap();
        assert_eq!(bench.world.take_runs(), ["a", "a"]);
    });
}

#[test]
fn what_stands_on_a_vertex_that_must_run_is_not_taken_from_records_unless_its_content_is_the_same() {
    run(async {
        let bench = Bench::new();
        let graph = |ignore: bool| {
            let stage = Step::new("stage");
            let stage = if ignore { stage.ignore_cache() } else { stage }.vertex();
            let run = Step::new("run").input(&stage).vertex();
            let copy = Step::new("copy").content(&stage).vertex();
            Step::new("top").input(&run).input(&copy).vertex()
        };
        bench.world.content("stage", "one");
        bench.build(&graph(false)).await.unwrap();
        bench.world.take_runs();
        bench.build(&graph(true)).await.unwrap();
        let runs = bench.world.take_runs();
        assert_eq!(runs, ["stage", "run", "top"], "the copy is the same by content");
        bench.world.content("stage", "two");
        bench.build(&graph(true)).await.unwrap();
        let mut runs = bench.world.take_runs();
        runs.sort();
        assert_eq!(runs, ["copy", "run", "stage", "top"]);
    });
}

/// Trap: events of a shared vertex missing from one of its builds.
#[test]
fn both_builds_see_all_of_a_shared_run_also_under_another_vertex() {
    run(async {
        let bench = Bench::new();
        // As with `alpine:latest` and `alpine@sha256:…`: two vertices, one key.
        let one = Step::new("x").key("same").vertex();
        let two = Step::new("y").key("same").vertex();
        bench.world.hold("x");
        let (first, first_log) = bench.job();
        let (second, second_log) = bench.job();
        let a = first.solve(&[one.output()])[0].clone();
        let a = tokio::spawn(async move { a.evaluate().await });
        bench.world.running("x").await;
        let b = second.solve(&[two.output()])[0].clone();
        let b = tokio::spawn(async move { b.evaluate().await });
        while second_log.story("y").len() < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(second_log.story("y"), ["started", "begin x"], "what happened before it came");
        bench.world.release("x");
        assert_eq!(a.await.unwrap().unwrap(), b.await.unwrap().unwrap());
        assert_eq!(first_log.story("x"), ["started", "begin x", "end x", "done"]);
        assert_eq!(second_log.story("y"), ["started", "begin x", "end x", "done"]);
        assert_eq!(bench.world.take_runs(), ["x"]);
    });
}

/// The copy is begun as soon as the stage runs, and given up when the hit above it is found.
#[test]
fn what_was_begun_ahead_and_given_up_below_a_hit_is_said_to_be_cached() {
    run(async {
        let bench = Bench::new();
        let graph = |stage: &str| {
            let stage = Step::new("stage").key(stage).vertex();
            let copy = Step::new("copy").input(&Step::new("own").vertex()).content(&stage).vertex();
            Step::new("last").input(&Step::new("top").input(&copy).vertex()).vertex()
        };
        bench.world.content("stage", "bytes");
        bench.build(&graph("1")).await.unwrap();
        bench.world.hold("stage");
        let (job, log) = bench.job();
        let last = job.solve(&[graph("2").output()])[0].clone();
        let build = tokio::spawn(async move { last.evaluate().await });
        bench.world.running("stage").await;
        bench.world.release("stage");
        build.await.unwrap().unwrap();
        for name in ["own", "copy", "top", "last"] {
            assert_eq!(log.story(name).last().map(String::as_str), Some("cached"), "{name}");
        }
    });
}

#[test]
fn a_fast_key_saves_hashing_and_a_slow_key_saves_running() {
    run(async {
        let bench = Bench::new();
        let graph = |stage: &str| {
            let stage = Step::new("stage").key(stage).vertex();
            Step::new("top").input(&Step::new("copy").content(&stage).vertex()).vertex()
        };
        bench.world.content("stage", "bytes");
        bench.build(&graph("1")).await.unwrap();
        assert_eq!(bench.world.take_runs(), ["stage", "copy", "top"]);
        // Nothing changed: not even the stage is looked for.
        bench.records.forget("stage");
        bench.build(&graph("1")).await.unwrap();
        assert_eq!(bench.world.take_runs(), none());
        // Another origin, the same content.
        bench.build(&graph("2")).await.unwrap();
        assert_eq!(bench.world.take_runs(), ["stage"]);
        // The way there is remembered, too.
        bench.records.forget("stage");
        bench.build(&graph("2")).await.unwrap();
        assert_eq!(bench.world.take_runs(), none());
    });
}

#[test]
fn a_local_context_is_looked_at_by_every_job_and_recorded_by_none() {
    run(async {
        let bench = Bench::new();
        let context = Step::new("context").unique().vertex();
        let bound = Step::new("bound").input(&context).vertex();
        let top = Step::new("top").content(&context).input(&bound).vertex();
        let copy = Step::new("copy").content(&context).vertex();
        bench.world.content("context", "v1");
        bench.build(&copy).await.unwrap();
        bench.build(&top).await.unwrap();
        assert_eq!(bench.world.take_runs(), ["context", "copy", "context", "bound", "top"]);
        assert_eq!(bench.records.all().len(), 1, "only the copy can be recorded");
        bench.build(&copy).await.unwrap();
        assert_eq!(bench.world.take_runs(), ["context"]);
        bench.world.content("context", "v2");
        bench.build(&copy).await.unwrap();
        assert_eq!(bench.world.take_runs(), ["context", "copy"]);
    });
}

#[test]
fn a_record_whose_tree_is_gone_is_a_miss() {
    run(async {
        let bench = Bench::new();
        let stage = chain(&["stage"]);
        let copy = Step::new("copy").content(&stage).vertex();
        let top = Step::new("top").input(&copy).vertex();
        for name in ["stage", "copy", "top"] {
            bench.world.content(name, &format!("tree of {name}"));
        }
        bench.build(&top).await.unwrap();
        bench.world.take_runs();
        for (lost, expected) in [
            (&["stage", "copy"][..], &[][..]),
            (&["top"], &["stage", "copy", "top"]),
            (&["top"], &["top"]),
            (&["top", "copy"], &["copy", "top"]),
            (&[], &[]),
        ] {
            for name in lost {
                bench.world.lose(&format!("tree of {name}"));
            }
            bench.build(&top).await.unwrap();
            assert_eq!(bench.world.take_runs(), expected, "{lost:?}");
        }
    });
}

/// The stage's tree was lost, and making it again gave something else. What stood on the old one keeps its key; what is
/// built now must not be saved under it.
#[test]
fn a_step_that_comes_out_differently_when_it_is_made_again_poisons_no_record() {
    run(async {
        let bench = Bench::new();
        let stage = chain(&["stage"]);
        let copy = Step::new("copy").content(&stage).vertex();
        let top = Step::new("top").input(&copy).vertex();
        bench.world.content("stage", "monday");
        bench.build(&top).await.unwrap();
        let on_monday = bench.job().0.solve(&[top.output()])[0].key().await.unwrap();
        // Everything is lost; today is another day.
        for record in bench.records.all().values() {
            bench.world.lose(&record.outputs[0]);
        }
        bench.world.content("stage", "tuesday");
        bench.build(&top).await.unwrap();
        let all = bench.records.all();
        let on_tuesday = bench.job().0.solve(&[top.output()])[0].key().await.unwrap();
        assert_ne!(on_monday, on_tuesday);
        assert_ne!(all[&on_monday].outputs, all[&on_tuesday].outputs);
        // Someone else has Monday's content, by another way.
        bench.world.take_runs();
        bench.world.content("other", "monday");
        let copy = Step::new("copy").content(&chain(&["other"])).vertex();
        let top = Step::new("top").input(&copy).vertex();
        bench.build(&top).await.unwrap();
        assert_eq!(bench.world.take_runs(), ["other", "copy", "top"]);
    });
}

/// Found by the random graphs: the fast key of the one was the canonical key of the other.
#[test]
fn a_fast_key_is_never_the_canonical_key_of_another_vertex() {
    run(async {
        let bench = Bench::new();
        let base = chain(&["base"]);
        let by_origin = Step::new("x").key("same").input(&base).vertex();
        let by_content = Step::new("y").key("same").content(&base).vertex();
        bench.build(&by_origin).await.unwrap();
        bench.build(&by_content).await.unwrap();
        assert_eq!(bench.world.take_runs(), ["base", "x", "y"]);
        let records = bench.records.all();
        assert_eq!(records.len(), 4, "three results, one of them under a fast key as well");
        assert!(records.iter().all(|(key, record)| *key == record.key));
    });
}

/// Another process makes the result while this one waits for the claim.
#[test]
fn after_the_claim_the_records_are_looked_at_again() {
    run(async {
        let bench = Bench::with_permits(0);
        let top = chain(&["a"]);
        let (job, log) = bench.job();
        let lazy = job.solve(&[top.output()])[0].clone();
        let key = lazy.key().await.unwrap();
        let claim = bench.claims.claim(&key).await.unwrap();
        let waiting = tokio::spawn(async move { lazy.evaluate().await });
        while log.story("a").is_empty() {
            tokio::task::yield_now().await;
        }
        bench.records.save(NewRecord {
            key: key.clone(),
            canonical: key,
            outputs: vec!["theirs".into()],
            parts: Vec::new(),
            vertex: top.digest().clone(),
            name: "a".into(),
            made: true,
        });
        drop(claim);
        assert_eq!(waiting.await.unwrap().unwrap().content, "theirs");
        assert_eq!(bench.world.take_runs(), none());
        assert_eq!(log.story("a"), ["started", "cached"]);
    });
}

#[test]
fn a_failing_claim_fails_the_vertex() {
    struct Broken;
    impl Claims for Broken {
        fn claim(&self, _: &Digest) -> BoxFuture<'static, Result<Box<dyn Send>, Failure>> {
            Box::pin(async { Err(Failure::new("no locks left")) })
        }
    }
    run(async {
        let solver = Solver::new(Arc::new(MemoryRecords::default()), Arc::new(Broken));
        let top = chain(&["a"]);
        let (world, log) = (World::new(1), EventLog::new());
        let sink: Arc<dyn EventSink> = log.clone();
        let job = solver.job(Arc::new(TestOps { world }), sink, JobOptions::default());
        let failure = job.solve(&[top.output()])[0].evaluate().await.unwrap_err();
        assert_eq!((failure.to_string().as_str(), failure.vertex()), ("no locks left", Some(top.digest())));
        assert_eq!(log.story("a"), ["started", "error: no locks left"]);
    });
}

#[test]
fn a_graph_ten_thousand_vertices_deep_is_solved_found_probed_and_dropped() {
    run(async {
        tokio::spawn(async {
            let bench = Bench::new();
            let mut top = Step::new("0").vertex();
            for at in 1..10_000 {
                let step = Step::new(&at.to_string());
                top = if at % 10 == 0 { step.content(&top) } else { step.input(&top) }.vertex();
            }
            bench.build(&top).await.unwrap();
            assert_eq!(bench.world.take_runs().len(), 10_000);
            bench.build(&top).await.unwrap();
            assert_eq!(bench.world.take_runs(), none());
            let probed = bench.job().0.probe(&[top.output()]).await.unwrap();
            assert!(probed.iter().all(|probed| matches!(probed.probe, Probe::Hit { .. })));
            // Canceled half-way: the whole chain of waiters falls.
            let other = Step::new("other").input(&top).vertex();
            bench.world.hold("5000");
            let (job, _) = bench.job_with(JobOptions { no_cache: true });
            let lazy = job.solve(&[other.output()])[0].clone();
            let task = tokio::spawn(async move { lazy.evaluate().await });
            bench.world.running("5000").await;
            task.abort();
            bench.world.canceled("5000").await;
        })
        .await
        .unwrap();
    });
}

#[test]
fn a_panic_is_a_failure_and_not_a_hang() {
    run(async {
        let bench = Bench::new();
        // Not a test step: the operations panic.
        let build = Vertex::new(Op::Build(BuildOp::default()), vec![], None, Metadata::default());
        let top = Step::new("top").input(&build).vertex();
        let error = bench.build(&top).await.unwrap_err();
        assert!(error.contains("not a test step"), "{error}");
    });
}

#[test]
fn a_vertex_that_was_cached_below_a_hit_starts_again_when_it_is_needed_after_all() {
    run(async {
        let bench = Bench::new();
        let base = chain(&["base"]);
        let one = Step::new("one").input(&base).vertex();
        let two = Step::new("two").input(&base).vertex();
        bench.build(&one).await.unwrap();
        bench.records.forget("base");
        let (job, log) = bench.job();
        evaluate(&job, &one).await.unwrap();
        assert_eq!(log.story("base"), ["started", "cached"]);
        evaluate(&job, &two).await.unwrap();
        assert_eq!(log.story("base"), ["started", "cached", "started", "begin base", "end base", "done"]);
    });
}

#[test]
fn a_probe_says_what_would_run_and_runs_nothing() {
    run(async {
        let bench = Bench::new();
        let context = Step::new("context").unique().vertex();
        let base = chain(&["base"]);
        let graph = |stage: &str| {
            let copy = Step::new("copy").input(&base).content(&context).vertex();
            let stage = Step::new("stage").key(stage).input(&copy).vertex();
            let from = Step::new("from").input(&base).content(&stage).vertex();
            Step::new("top").input(&from).vertex()
        };
        let probe = async |top: &Arc<Vertex>| -> Vec<String> {
            let probed = bench.job().0.probe(&[top.output()]).await.unwrap();
            let say = |entry: &crate::Probed| {
                let kind = match &entry.probe {
                    Probe::Hit { .. } => "hit",
                    Probe::Miss { .. } => "miss",
                    Probe::Unknown { .. } => "unknown",
                };
                format!("{} {kind}{}", entry.vertex.name(), if entry.needed { "" } else { " unneeded" })
            };
            probed.iter().map(say).collect()
        };
        let top = graph("1");
        assert_eq!(
            probe(&top).await,
            ["base miss", "context hit", "copy miss", "stage miss", "from unknown", "top unknown"]
        );
        assert_eq!(bench.world.take_runs(), ["context"]);
        bench.build(&top).await.unwrap();
        bench.records.forget("stage");
        let expected = ["base", "context", "copy"].map(|name| format!("{name} hit unneeded"));
        let found = probe(&top).await;
        assert_eq!(found[..3], expected);
        assert_eq!(found[3..], ["stage miss unneeded", "from hit unneeded", "top hit"]);
        let found = probe(&graph("2")).await;
        assert_eq!(found[..3], ["base hit", "context hit unneeded", "copy hit"]);
        assert_eq!(found[3..], ["stage miss", "from unknown", "top unknown"]);
    });
}

#[derive(Debug, Clone)]
struct Random {
    /// Per step: inputs as (how far back, by content), and the number of its key.
    steps: Vec<(Vec<(usize, bool)>, u8)>,
    failing: Vec<bool>,
    /// Which of the jobs are canceled, and after how many turns.
    cancels: Vec<Option<u8>>,
    permits: usize,
}

fn random() -> impl Strategy<Value = Random> {
    let step = (prop::collection::vec((1usize..6, any::<bool>()), 0..4), 0u8..12);
    (
        prop::collection::vec(step, 1..24),
        prop::collection::vec(prop::bool::weighted(0.08), 24),
        prop::collection::vec(prop::option::of(0u8..40), 1..5),
        1usize..4,
    )
        .prop_map(|(steps, failing, cancels, permits)| Random { steps, failing, cancels, permits })
}

/// The keys of those steps that are Merge and Diff vertices.
const MERGES: (u8, u8) = (10, 11);
const DIFFS: u8 = 9;

impl Random {
    fn vertices(&self) -> Vec<Arc<Vertex>> {
        let mut made: Vec<Arc<Vertex>> = Vec::new();
        for (at, (inputs, key)) in self.steps.iter().enumerate() {
            let below = |back: &usize| at.checked_sub(*back).map(|below| made[below].output());
            let edges: Vec<Edge> = inputs.iter().filter_map(|(back, _)| below(back)).collect();
            let named = Metadata { name: format!("step {at}"), ..Metadata::default() };
            // One in six of each, as far as the number of inputs allows.
            if *key == MERGES.0 || *key == MERGES.1 {
                let op = Op::Merge(MergeOp { inputs: (0..edges.len()).map(Some).collect() });
                made.push(Vertex::new(op, edges, None, named));
                continue;
            }
            if *key == DIFFS && edges.len() == 2 {
                made.push(Vertex::new(Op::Diff(DiffOp { lower: Some(0), upper: Some(1) }), edges, None, named));
                continue;
            }
            let mut step = Step::new(&format!("step {at}")).key(&key.to_string());
            for (back, content) in inputs {
                if let Some(below) = at.checked_sub(*back) {
                    step = if *content { step.content(&made[below]) } else { step.input(&made[below]) };
                }
            }
            made.push(step.vertex());
        }
        made
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Several jobs over one graph, some canceled, some steps failing: everyone gets an answer, no result is made twice, and
    /// what succeeded is not run again.
    #[test]
    fn random_graphs_neither_hang_nor_run_twice(graph in random()) {
        run(async {
            let bench = Bench::with_permits(graph.permits);
            let vertices = graph.vertices();
            // By key, so that steps with equal keys agree on what happens to them.
            for (at, (_, key)) in graph.steps.iter().enumerate() {
                let key = if *key == MERGES.1 { MERGES.0 } else { *key };
                bench.world.fail(&format!("step {at}"), graph.failing[usize::from(key)]);
                bench.world.content(&format!("step {at}"), &format!("content {}", key / 2));
            }
            let edges: Vec<_> = vertices.iter().rev().take(3).map(Vertex::output).collect();
            let jobs: Vec<_> = graph.cancels.iter().map(|_| bench.job()).collect();
            let outcomes = join_all(jobs.iter().zip(&graph.cancels).map(|((job, _), cancel)| {
                let refs = job.solve(&edges);
                async move {
                    let work = join_all(refs.iter().map(crate::LazyRef::evaluate));
                    match cancel {
                        None => Some(work.await),
                        Some(turns) => {
                            let turns = async { for _ in 0..*turns { tokio::task::yield_now().await } };
                            tokio::select! { outcome = work => Some(outcome), () = turns => None }
                        }
                    }
                }
            }))
            .await;
            let any_failing = graph.failing[..12].contains(&true);
            let canceled = outcomes.iter().any(Option::is_none);
            if !any_failing {
                for outcome in outcomes.iter().flatten().flatten() {
                    assert!(outcome.is_ok(), "{outcome:?}");
                }
            }
            for (_, log) in &jobs {
                check_stories(&log.all());
            }
            drop(jobs);
            if !any_failing {
                let runs = bench.world.take_runs();
                if !canceled {
                    let records = bench.records.all();
                    let made: HashSet<&Digest> =
                        records.values().filter(|record| record.made).map(|record| &record.canonical).collect();
                    assert_eq!(runs.len(), made.len(), "every key once: {runs:?}");
                }
                for again in [canceled, false] {
                    let (job, _) = bench.job();
                    for lazy in job.solve(&edges) {
                        lazy.evaluate().await.unwrap();
                    }
                    let runs = bench.world.take_runs();
                    assert!(again || runs.is_empty(), "ran again: {runs:?}");
                }
            }
            while bench.solver.flights() > 0 || bench.world.free_permits() < graph.permits {
                tokio::task::yield_now().await;
            }
        });
    }
}

/// Nothing is told before its beginning or after its end.
fn check_stories(events: &[Event]) {
    let mut state = HashMap::new();
    for event in events {
        match event {
            Event::Vertex { vertex, .. } => assert!(state.insert(vertex.clone(), "announced").is_none()),
            Event::Started { vertex, .. } => {
                let before = state.insert(vertex.clone(), "started");
                assert!(before.is_some_and(|before| before != "started"), "{before:?}");
            }
            Event::Log { vertex, .. } => assert_eq!(state.get(vertex), Some(&"started")),
            Event::Completed { vertex, .. } => assert_eq!(state.insert(vertex.clone(), "completed"), Some("started")),
            Event::Progress { .. } | Event::Warning(_) => {}
        }
    }
}
