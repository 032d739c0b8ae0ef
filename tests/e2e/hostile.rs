//! Hostile steps: images and commands that want out, or want the engine to wait or to swell (cases D14 … D17 of the
//! security plan), and limits that the user sets.

use std::fs;
use std::time::{Duration, Instant};

use build_engine_testkit::engine::{Run, Who};
use build_engine_testkit::image::Kind;

use crate::Bench;

fn run(bench: &Bench, dockerfile: &str, args: &[&str]) -> (Run, Duration) {
    let began = Instant::now();
    let run = bench.build("context", &[("Dockerfile", dockerfile), ("file", "x")], args);
    (run, began.elapsed())
}

/// D14, CVE-2024-21626: a working directory by way of a process's own descriptors does not lead out.
#[test]
fn d14_a_working_directory_through_proc_stays_inside() {
    for who in [Who::Root, Who::User] {
        let Some(bench) = Bench::new(who) else { return };
        let marker = bench.engine.work().join("outside");
        fs::write(&marker, "outside").unwrap();
        let climb = format!("../../../../../../../..{}", marker.display());
        for workdir in ["/proc/self/fd/7", "/proc/self/fd/3", "/proc/self/cwd", "/link/x", "/link"] {
            let dockerfile = format!(
                "FROM base\nRUN ln -s /proc/self/cwd/../../.. /link\nWORKDIR {workdir}\n\
                 RUN pwd -P; if cat {climb} 2>/dev/null; then echo it-is-there; fi\n"
            );
            let (run, _) = run(&bench, &dockerfile, &[]);
            assert!(matches!(run.code, Some(0 | 1)), "{workdir}: {:?}\n{}", run.code, run.stderr);
            let inside = !run.stderr.lines().any(|line| line.ends_with(" it-is-there"));
            assert!(inside, "{who:?} {workdir}\n{}", run.stderr);
        }
    }
}

/// D15, CVE-2024-23652: only what was made for mounts is removed, wherever the command has moved it.
#[test]
fn d15_links_in_the_place_of_mount_points_are_left_alone() {
    for who in [Who::Root, Who::User] {
        let Some(bench) = Bench::new(who) else { return };
        let target = bench.engine.work().join("precious");
        fs::write(&target, "precious").unwrap();
        bench.engine.adopt(&target).unwrap();
        let dockerfile = format!(
            "FROM base\nRUN --mount=type=tmpfs,target=/made/for/mount --mount=type=tmpfs,target=/also \
             mv /made /moved && ln -s {0} /made && (rm -r /also || true) && (rm /etc/hosts || true)\n",
            target.display()
        );
        let image = bench.image("context", &[("Dockerfile", &dockerfile)], &[]);
        let kind = |path: &str| image.tree.get(path).map(|inode| inode.kind.clone());
        assert_eq!(kind("/made"), Some(Kind::Symlink(target.display().to_string())));
        for path in ["/etc/hosts", "/etc/resolv.conf", "/moved/for/mount", "/also"] {
            assert_eq!(kind(path), None, "{path} was made for a mount");
        }
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    }
}

/// D16, CVE-2026-93320: nothing waits for a pipe or a device in the place of the users' file.
#[test]
fn d16_pipes_in_the_place_of_users_are_an_error_and_no_wait() {
    for who in [Who::Root, Who::User] {
        let Some(bench) = Bench::new(who) else { return };
        for special in ["mkfifo", "ln -s /dev/zero", "ln -s /dev/stdin", "mkdir"] {
            for (file, then) in [
                ("/etc/passwd", "USER app\nRUN true"),
                ("/etc/passwd", "COPY --chown=app file /x"),
                ("/etc/group", "USER root:staff\nRUN true"),
                ("/etc/group", "COPY --chown=0:staff file /x"),
            ] {
                let dockerfile = format!("FROM base\nRUN rm {file} && {special} {file}\n{then}\n");
                let (_, before) = run(&bench, dockerfile.split("\nUSER").next().unwrap(), &[]);
                let (run, took) = run(&bench, &dockerfile, &[]);
                // A link to a device of a running step leads to an empty file or to nothing in the tree, so that the
                // name is merely unknown: a warning of COPY, as in BuildKit.
                assert!(matches!(run.code, Some(0..=2)), "{special} {file} {then}: {:?}\n{}", run.code, run.stderr);
                if special.starts_with("mk") {
                    assert_ne!(run.code, Some(0), "{special} {file} {then}\n{}", run.stderr);
                }
                let limit = before + Duration::from_secs(4);
                assert!(took < limit, "{special} {file} {then} took {took:?}");
            }
        }
    }
}

/// D17: files of users that are too large, users with too many groups, numbers that no id can be.
#[test]
fn d17_files_of_users_have_limits() {
    for who in [Who::Root, Who::User] {
        let Some(bench) = Bench::new(who) else { return };
        let large = "FROM base\nRUN truncate -s 10G";
        let groups = "FROM base\nRUN seq 2000 68000 | sed 's/.*/g&:x:&:app/' >> /etc/group";
        for (dockerfile, exit, text) in [
            (format!("{large} /etc/passwd\nUSER app\nRUN true\n"), 5, "10 MiB"),
            (format!("{large} /etc/group\nUSER app\nRUN true\n"), 5, "10 MiB"),
            (format!("{large} /etc/passwd\nCOPY --chown=app file /x\n"), 5, "10 MiB"),
            (format!("{large} /etc/group\nCOPY --chown=:app file /x\n"), 5, "10 MiB"),
            (format!("{groups}\nUSER app\nRUN true\n"), 5, "65536 groups"),
            ("FROM base\nUSER 4294967296\nRUN true\n".to_owned(), 5, "4294967296"),
        ] {
            let (run, took) = run(&bench, &dockerfile, &["--output=type=cacheonly"]);
            assert_eq!(run.code, Some(exit), "{dockerfile}\n{}", run.stderr);
            assert!(run.stderr.contains(text), "{dockerfile}\n{}", run.stderr);
            assert!(took < Duration::from_secs(20), "{took:?}");
        }
    }
}

/// A build that takes too long ends with its steps.
#[test]
fn a_build_that_takes_too_long_ends_and_its_step_with_it() {
    let Some(bench) = Bench::new(Who::User) else { return };
    let marker = format!("{}7", std::process::id());
    let (run, took) = run(&bench, &format!("FROM base\nRUN exec sleep {marker}\n"), &["--timeout=2s"]);
    assert_eq!(run.code, Some(124), "{}", run.stderr);
    assert!(took < Duration::from_secs(20), "{took:?}");
    let left = fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).replace('\0', " ").trim_end() == format!("sleep {marker}")
    });
    assert!(!left, "the step is still there");
}

/// Whether groups with `controller` can be made by root here.
fn controlled(controller: &str) -> bool {
    build_engine_testkit::is_root()
        && (fs::metadata(format!("/sys/fs/cgroup/{controller}/tasks")).is_ok()
            || fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
                .is_ok_and(|controllers| controllers.split_whitespace().any(|name| name == controller)))
}

/// F1-083: the limits act, in both spellings, and change no cache key.
#[test]
fn f1_083_limits_of_steps_act_and_are_in_no_key() {
    if !controlled("memory") || !controlled("cpuset") {
        return;
    }
    let Some(bench) = Bench::new(Who::Root) else { return };
    let greedy = "FROM base\nRUN head -c 300000000 /dev/zero | tail > /dev/null\n";
    for flag in ["--resource=memory=64m", "--memory=64m", "--resource=memory=64m,memory-swap=64m"] {
        let (run, _) = run(&bench, greedy, &[flag]);
        assert_eq!(run.code, Some(1), "{flag}\n{}", run.stderr);
        assert!(run.stderr.contains("out of memory"), "{flag}\n{}", run.stderr);
    }
    let count = "FROM base\nRUN echo \"processors: $(nproc)\"\n";
    for flag in ["--resource=cpuset-cpus=0", "--cpuset-cpus=0"] {
        let (run, _) = run(&bench, count, &[flag, "--no-cache"]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        assert!(run.stderr.contains("processors: 1"), "{}", run.stderr);
    }
    let args = ["--cpu-shares=512", "--cpu-period=50000", "--cpu-quota=25000", "--cpuset-mems=0"];
    let (limited, _) = run(&bench, count, &args);
    assert!(limited.stderr.contains("CACHED"), "limits are in no key:\n{}", limited.stderr);
    let (limited, _) = run(&bench, count, &[&args[..], &["--no-cache"]].concat());
    assert_eq!(limited.code, Some(0), "{}", limited.stderr);
    assert!(!limited.stderr.contains("not set"), "{}", limited.stderr);
}

/// F1-083: where there is no control group, that is said once, and strict builds fail.
#[test]
fn f16_a_limit_that_cannot_be_set_is_said_and_strict_builds_fail() {
    let Some(bench) = Bench::new(Who::User) else { return };
    let two = "FROM base\nRUN echo one\nRUN echo two\n";
    let (plain, _) = run(&bench, two, &["--memory=1g"]);
    assert_eq!(plain.code, Some(0), "{}", plain.stderr);
    // Shown as it comes, and again in the summary of warnings.
    let said = plain.stderr.matches("limit memory.max = 1073741824 not set").count();
    if said == 0 {
        // A delegated subtree, as systemd gives to users: the limit acts.
        return;
    }
    let (strict, _) = run(&bench, two, &["--memory=1g", "--isolation=strict", "--no-cache"]);
    assert_eq!(strict.code, Some(7), "{}", strict.stderr);
    assert!(strict.stderr.contains("memory.max"), "{}", strict.stderr);
    let (without, _) = run(&bench, two, &["--isolation=strict", "--no-cache"]);
    assert_eq!(without.code, Some(0), "{}", without.stderr);
}

/// F16: without a private network a step has the host's, which is said, and is an error where the build is strict.
#[test]
fn f16_a_strict_build_does_not_fall_back_to_the_hosts_network() {
    for who in [Who::Root, Who::User] {
        let Some(bench) = Bench::new(who) else { return };
        let dockerfile = "FROM base\nRUN echo it-'ran'\n";
        let (plain, _) = run(&bench, dockerfile, &["--network=default", "--no-cache"]);
        assert_eq!(plain.code, Some(0), "{}", plain.stderr);
        let falls_back = plain.stderr.contains("build steps use the host's network");
        let (strict, _) = run(&bench, dockerfile, &["--network=default", "--no-cache", "--isolation=strict"]);
        assert_eq!(strict.code, Some(if falls_back { 7 } else { 0 }), "{who:?}\n{}", strict.stderr);
        assert_eq!(strict.stderr.lines().any(|line| line.ends_with(" it-ran")), !falls_back, "{}", strict.stderr);
    }
}

/// G12, S1-35: a level that this worker does not have is refused.
#[test]
fn g12_levels_of_isolation_are_kept_or_refused() {
    for (who, level, exit) in [
        (Who::Root, "strict", 0),
        (Who::Root, "rootless", 7),
        (Who::User, "rootless", 0),
        (Who::OneUid, "default", 0),
        (Who::OneUid, "strict", 7),
        (Who::User, "hyperv", 2),
        (Who::User, "process", 2),
        (Who::User, "none", 2),
        (Who::User, "any", 2),
    ] {
        let Some(bench) = Bench::new(who) else { return };
        let (run, _) = run(&bench, "FROM base\nRUN true\n", &[&format!("--isolation={level}")]);
        assert_eq!(run.code, Some(exit), "{who:?} {level}\n{}", run.stderr);
        if exit == 0 && level != "default" {
            assert!(run.stderr.contains(&format!("[internal] isolation {level}")), "{}", run.stderr);
        }
    }
}

/// G12, F16: what a host lacks is printed, and written down with the result.
#[test]
fn g12_fallbacks_are_printed_and_stored() {
    let Some(bench) = Bench::new(Who::OneUid) else { return };
    let file = bench.engine.work().join("metadata.json");
    let (run, _) = run(&bench, "FROM base\nRUN true\n", &["-t", "x", &format!("--metadata-file={}", file.display())]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let metadata: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let isolation = &metadata["build-engine.isolation"];
    assert_eq!((isolation["level"].as_str(), isolation["worker"].as_str()), (Some("default"), Some("oneuid")));
    let fallbacks: Vec<&str> = isolation["fallbacks"].as_array().unwrap().iter().filter_map(|f| f.as_str()).collect();
    let ids = fallbacks.iter().find(|fallback| fallback.contains("subordinate ids")).unwrap();
    assert!(run.stderr.contains(ids), "{ids}\n{}", run.stderr);
}
