//! What is done once is not done again; what is independent overlaps; what nobody needs does not run.

use std::thread;
use std::time::{Duration, Instant};

use build_engine_testkit::engine::Who;

use crate::{Bench, content};

const RANDOM: &str =
    "FROM base\nRUN head -c 16 /dev/urandom > /random\nCOPY file /file\nRUN head -c 16 /dev/urandom > /after\n";

fn second_build(who: Who) {
    let Some(bench) = Bench::new(who) else { return };
    let files = |file: &'static str| [("Dockerfile", RANDOM), ("file", file)];
    let first = bench.image("context", &files("1"), &[]);
    let second = bench.image("context", &files("1"), &[]);
    // Random bytes that come out twice were made once.
    assert_eq!(content(&first, "/after"), content(&second, "/after"));
    assert_eq!(first.layers.last().unwrap().digest, second.layers.last().unwrap().digest);
    let changed = bench.image("context", &files("2"), &[]);
    assert_eq!(content(&first, "/random"), content(&changed, "/random"), "a step above the change is reused");
    assert_ne!(content(&first, "/after"), content(&changed, "/after"), "a step below the change is not");
    let back = bench.image("context", &files("1"), &[]);
    assert_eq!(content(&first, "/after"), content(&back, "/after"), "an older result is still there");
    let fresh = bench.image("context", &files("1"), &["--no-cache"]);
    assert_ne!(content(&first, "/random"), content(&fresh, "/random"), "--no-cache runs everything");
}

#[test]
fn a_second_identical_build_as_root_executes_nothing() {
    second_build(Who::Root);
}

#[test]
fn a_second_identical_build_as_a_user_executes_nothing() {
    second_build(Who::User);
}

/// F1-093: as in BuildKit, a fresh clone keeps its cache hits.
#[test]
fn a_changed_mtime_is_no_change() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let first = bench.image("context", &[("Dockerfile", RANDOM), ("file", "1")], &[]);
    let file = std::fs::File::open(bench.engine.work().join("context/file")).unwrap();
    file.set_modified(std::time::SystemTime::now() - Duration::from_secs(100_000)).unwrap();
    let args = bench.args(&bench.engine.work().join("context"), &["--output=type=oci,dest=touched.tar"]);
    bench.engine.ok(args).unwrap();
    let touched = build_engine_testkit::image::image_of_archive(&bench.engine.work().join("touched.tar")).unwrap();
    assert_eq!(content(&first, "/after"), content(&touched, "/after"));
}

/// F1-055.
#[test]
fn independent_stages_overlap() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    bench.image("warm", &[("Dockerfile", "FROM base\nRUN true\n")], &[]);
    let dockerfile = "FROM base AS a\nRUN sleep 2 && echo a > /a\nFROM base AS b\nRUN sleep 2 && echo b > /b\n\
                      FROM base AS c\nRUN sleep 2 && echo c > /c\n\
                      FROM base\nCOPY --from=a /a /\nCOPY --from=b /b /\nCOPY --from=c /c /\n";
    let start = Instant::now();
    bench.image("context", &[("Dockerfile", dockerfile)], &[]);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(4), "three stages that sleep 2 s each took {took:?}");
}

/// F1-054.
#[test]
fn a_stage_that_nobody_needs_does_not_run() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    bench.image("context", &[("Dockerfile", "FROM base AS broken\nRUN exit 1\nFROM base\nRUN true\n")], &[]);
}

#[test]
fn builds_at_once_on_one_store_run_a_shared_step_once() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let shared = "FROM base AS shared\nRUN sleep 1; head -c 16 /dev/urandom > /shared\n";
    let randoms: Vec<String> = thread::scope(|scope| {
        let builds: Vec<_> = (0..4)
            .map(|number| {
                let bench = &bench;
                scope.spawn(move || {
                    let name = format!("context-{number}");
                    let dockerfile = format!("{shared}FROM shared\nRUN echo {number} > /own\n");
                    content(&bench.image(&name, &[("Dockerfile", &dockerfile)], &[]), "/shared")
                })
            })
            .collect();
        builds.into_iter().map(|build| build.join().unwrap()).collect()
    });
    assert!(randoms.windows(2).all(|pair| pair[0] == pair[1]), "the shared step ran more than once: {randoms:?}");
    bench.verify_store();
}
