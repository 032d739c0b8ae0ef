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

/// A file that changes after its key was made, and before it is copied, is in no record: the build has what was there when
/// it was copied, says so, and nothing of it is reused.
#[test]
fn a_file_that_changes_while_the_build_runs_is_in_no_record() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let dockerfile = "FROM base\nRUN sleep 2\nCOPY file /file\nRUN cat /file > /seen\n\
                      FROM scratch\nCOPY --from=0 /file /seen /\nCOPY other /other\n";
    let files = [("Dockerfile", dockerfile), ("file", "old"), ("other", "o")];
    let context = bench.engine.context("context", &files).unwrap();
    let build = || {
        let out = bench.engine.work().join("out.tar");
        let output = format!("--output=type=oci,dest={}", out.display());
        let run = bench.engine.run(bench.args(&context, &[&output])).unwrap();
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        (run, build_engine_testkit::image::image_of_archive(&out).unwrap())
    };
    let (run, image) = thread::scope(|scope| {
        let built = scope.spawn(build);
        thread::sleep(Duration::from_millis(1200));
        std::fs::write(context.join("file"), "new content").unwrap();
        built.join().unwrap()
    });
    let sha = |text: &str| build_engine_testkit::sha256(text.as_bytes());
    assert_eq!((content(&image, "/file"), content(&image, "/seen")), (sha("new content"), sha("new content")));
    assert!(run.stderr.contains("`file` changed while it was built with"), "{}", run.stderr);
    // The old content has its own result, and so has the new one.
    std::fs::write(context.join("file"), "old").unwrap();
    let (_, image) = build();
    assert_eq!((content(&image, "/file"), content(&image, "/seen")), (sha("old"), sha("old")));
    std::fs::write(context.join("file"), "new content").unwrap();
    let (run, image) = build();
    assert_eq!((content(&image, "/file"), content(&image, "/seen")), (sha("new content"), sha("new content")));
    assert!(!run.stderr.contains("changed while"), "{}", run.stderr);
}

/// Output that is redirected into the context is no reason to fail.
#[test]
fn a_log_in_the_context_may_grow() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let files = [("Dockerfile", "FROM base\nRUN echo one\nCOPY . /all\nRUN echo two && ls /all\n"), ("file", "1")];
    let context = bench.engine.context("context", &files).unwrap();
    for _ in 0..2 {
        let log = std::fs::File::create(context.join("build.log")).unwrap();
        let mut command = bench.engine.command(bench.args(&context, &[]));
        let status = command.stdout(log.try_clone().unwrap()).stderr(log).status().unwrap();
        assert!(status.success(), "{}", std::fs::read_to_string(context.join("build.log")).unwrap());
    }
}

/// A step that runs again and makes what it made before stops the rebuild: what copies from it is reused.
#[test]
fn an_unchanged_output_cuts_a_rebuild_off() {
    let Some(bench) = Bench::new(Who::User) else { return };
    let dockerfile = "FROM base AS gen\nCOPY list /list\nRUN sort /list > /sorted && head -c 16 /dev/urandom > /gen\n\
                      FROM base\nCOPY --from=gen /sorted /sorted\nRUN head -c 16 /dev/urandom > /random\n\
                      FROM scratch\nCOPY --from=1 /random /sorted /\nCOPY --from=gen /gen /gen\n";
    let files = |list: &'static str| [("Dockerfile", dockerfile), ("list", list)];
    let first = bench.image("context", &files("b\na\n"), &[]);
    let second = bench.image("context", &files("a\nb\n"), &[]);
    assert_ne!(content(&first, "/gen"), content(&second, "/gen"), "the list changed, so the step ran");
    assert_eq!(content(&first, "/random"), content(&second, "/random"), "the sorted list did not");
    let third = bench.image("context", &files("c\n"), &[]);
    assert_ne!(content(&first, "/random"), content(&third, "/random"));
}

/// F1-094: a linked layer is the same on every base, and is not made anew.
#[test]
fn a_linked_layer_is_put_on_another_base() {
    let Some(bench) = Bench::new(Who::User) else { return };
    let dockerfile = "ARG BASE\nFROM base AS one\nRUN echo 1 > /base\nFROM base AS two\nRUN echo 2 > /base\n\
                      FROM $BASE\nCOPY --link file /dir/file\n";
    let files = [("Dockerfile", dockerfile), ("file", "content")];
    let first = bench.image("context", &files, &["--build-arg=BASE=one"]);
    let context = bench.engine.context("context", &files).unwrap();
    let out = bench.engine.work().join("two.tar");
    let output = format!("--output=type=oci,dest={}", out.display());
    let run = bench.engine.run(bench.args(&context, &["--build-arg=BASE=two", &output])).unwrap();
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let copy = run.stderr.lines().find(|line| line.contains("COPY --link")).unwrap_or_default();
    let number = copy.split_whitespace().next().unwrap_or_default();
    assert!(run.stderr.lines().any(|line| line == format!("{number} CACHED")), "{}", run.stderr);
    let second = build_engine_testkit::image::image_of_archive(&out).unwrap();
    assert_eq!(first.layers.last().unwrap().digest, second.layers.last().unwrap().digest);
    assert_ne!(content(&first, "/base"), content(&second, "/base"));
}
