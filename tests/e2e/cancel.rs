//! Ctrl-C and sudden death: nothing stays behind, and the next build works.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use build_engine_testkit::engine::Who;
use build_engine_testkit::peers::output;

use crate::Bench;

/// The processes with `marker` among their arguments, or started from the engine's own binary (a memfd copy of it too).
pub(crate) fn processes(marker: Option<&str>, binary: Option<&str>) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let executable = fs::read_link(entry.path().join("exe")).unwrap_or_default();
        let is_marked = marker.is_some_and(|marker| command.contains(marker));
        if is_marked || binary.is_some_and(|binary| executable.to_string_lossy().contains(binary)) {
            found.push(format!("{name}: {command}"));
        }
    }
    found
}

pub(crate) fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        sleep(Duration::from_millis(10));
    }
    start.elapsed()
}

fn start(bench: &Bench, dockerfile: &str) -> Child {
    let context = bench.engine.context("context", &[("Dockerfile", dockerfile), ("file", "x")]).unwrap();
    let mut command = bench.engine.command(bench.args(&context, &["-t", "x"]));
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn signal(child: &Child, name: &str) {
    output(Command::new("kill").args(["-s", name, &child.id().to_string()])).unwrap();
}

fn nothing_is_left(bench: &Bench, marker: Option<&str>) {
    let home = bench.engine.work().parent().unwrap().to_string_lossy().into_owned();
    wait_until("every process is gone", Duration::from_secs(3), || processes(marker, Some(&home)).is_empty());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&home), "a mount is left:\n{mounts}");
    let left: Vec<_> = fs::read_dir(bench.engine.tmp()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "temporary files are left: {left:?}");
    for unfinished in ["ingest", "work"] {
        let entries = fs::read_dir(bench.engine.store().join(unfinished)).into_iter().flatten();
        let left: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "unfinished work is left in the store: {left:?}");
    }
}

fn interrupt(who: Who, signal_name: &str, code: i32) {
    let Some(bench) = Bench::new(who) else { return };
    // No other test sleeps as long.
    let marker = format!("{}.{code}{}", 6000 + std::process::id() % 1000, who as u8);
    let mut child = start(&bench, &format!("FROM base\nCOPY file /\nRUN sleep {marker}\n"));
    wait_until("the step runs", Duration::from_secs(30), || {
        assert!(child.try_wait().unwrap().is_none(), "the build ended before its step ran");
        processes(Some(&format!("sleep {marker} ")), None).iter().any(|line| !line.contains("build-engine"))
    });
    signal(&child, signal_name);
    let took = wait_until("the build ends", Duration::from_secs(10), || child.try_wait().unwrap().is_some());
    assert!(took < Duration::from_secs(2), "it took {took:?}");
    assert_eq!(child.wait().unwrap().code(), Some(code));
    nothing_is_left(&bench, Some(&marker));
    bench.verify_store();
    bench.image("next", &[("Dockerfile", "FROM base\nRUN echo next > /next\n")], &[]);
}

#[test]
fn ctrl_c_ends_a_build_of_root_and_leaves_nothing() {
    interrupt(Who::Root, "INT", 130);
}

#[test]
fn ctrl_c_ends_a_build_of_a_user_and_leaves_nothing() {
    interrupt(Who::User, "INT", 130);
}

#[test]
fn sigterm_ends_a_build_with_its_own_code() {
    interrupt(Who::Root, "TERM", 143);
}

fn interrupt_anywhere(who: Who) {
    let Some(mut bench) = Bench::new(who) else { return };
    let home = bench.engine.work().parent().unwrap().join("home");
    let dockerfile = "FROM base\nRUN head -c 3000000 /dev/urandom > /a\nCOPY file /\nRUN rm /a; echo b > /b\n";
    let mut length = Duration::ZERO;
    // A new store each time, so that the base is unpacked each time. The first build measures.
    for attempt in 0..=10 {
        bench.engine.set_store(home.join(format!("store-{attempt}")));
        let begin = Instant::now();
        let mut child = start(&bench, dockerfile);
        if attempt == 0 {
            assert!(child.wait().unwrap().success());
            length = begin.elapsed();
            continue;
        }
        sleep(length * attempt / 10);
        if child.try_wait().unwrap().is_none() {
            signal(&child, "INT");
        }
        let took = wait_until("the build ends", Duration::from_secs(10), || child.try_wait().unwrap().is_some());
        assert!(took < Duration::from_secs(2), "it took {took:?}");
        let code = child.wait().unwrap().code();
        // Without a code it was interrupted before it could catch the signal.
        assert!(matches!(code, Some(0 | 130) | None), "{code:?}");
        nothing_is_left(&bench, None);
    }
}

#[test]
fn ctrl_c_at_any_moment_leaves_nothing_of_root() {
    interrupt_anywhere(Who::Root);
}

#[test]
fn ctrl_c_at_any_moment_leaves_nothing_of_a_user() {
    interrupt_anywhere(Who::User);
}

/// Who dies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Victim {
    /// The process that the user started.
    Face,
    /// The process that does the work: of those with the worker's argument, the one that was started last.
    Worker,
}

fn kill(child: &mut Child, victim: Victim, home: &str) {
    match victim {
        Victim::Face => drop(child.kill()),
        Victim::Worker => {
            let workers = processes(None, Some(home)).into_iter().filter(|line| line.contains("--build-engine-worker"));
            let worker = workers.filter_map(|line| line.split(':').next()?.parse::<u32>().ok()).max();
            // Without one it has not begun, or has ended already.
            if let Some(worker) = worker {
                let _ = Command::new("kill").args(["-s", "KILL", &worker.to_string()]).stderr(Stdio::null()).status();
            }
        }
    }
}

fn kill_anywhere(who: Who, victim: Victim) {
    let Some(bench) = Bench::new(who) else { return };
    // Every attempt has other commands, so that it has all of its work before it.
    let dockerfile = |attempt: usize| {
        format!(
            "FROM base\nRUN : {attempt}; head -c 3000000 /dev/urandom > /a\nCOPY file /\nRUN rm /a; echo b > /b\nRUN echo c > /c\n"
        )
    };
    let begin = Instant::now();
    assert!(start(&bench, &dockerfile(0)).wait().unwrap().success());
    let length = begin.elapsed();
    let home = bench.engine.work().parent().unwrap().to_string_lossy().into_owned();
    for attempt in 1..=12 {
        let mut child = start(&bench, &dockerfile(attempt));
        sleep(length * u32::try_from(attempt).unwrap() / 12);
        kill(&mut child, victim, &home);
        wait_until("the face ends", Duration::from_secs(10), || child.try_wait().unwrap().is_some());
        let code = child.wait().unwrap().code();
        match victim {
            Victim::Face => assert!(matches!(code, None | Some(0)), "{code:?}"),
            // 7: it was still entering its namespaces.
            Victim::Worker => assert!(matches!(code, Some(0 | 7 | 8)), "{code:?}"),
        }
    }
    wait_until("every process is gone", Duration::from_secs(3), || processes(None, Some(&home)).is_empty());
    bench.verify_store();
    for attempt in [0, 6, 12] {
        bench.image("next", &[("Dockerfile", &dockerfile(attempt)), ("file", "x")], &[]);
    }
    bench.verify_store();
}

#[test]
fn kill_9_anywhere_leaves_a_store_that_the_next_build_of_root_can_use() {
    kill_anywhere(Who::Root, Victim::Face);
}

#[test]
fn kill_9_anywhere_leaves_a_store_that_the_next_build_of_a_user_can_use() {
    kill_anywhere(Who::User, Victim::Face);
}

#[test]
fn kill_9_of_the_worker_ends_a_build_of_root_and_the_next_one_works() {
    kill_anywhere(Who::Root, Victim::Worker);
}

#[test]
fn kill_9_of_the_worker_ends_a_build_of_a_user_and_the_next_one_works() {
    kill_anywhere(Who::User, Victim::Worker);
}

#[test]
fn kill_9_anywhere_leaves_a_store_that_the_next_build_with_one_uid_can_use() {
    kill_anywhere(Who::OneUid, Victim::Face);
}
