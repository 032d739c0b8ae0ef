//! Mounts of RUN: what steps share through them, and that nothing else is reached through them.

use std::fs;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use build_engine_testkit::engine::Who;
use build_engine_testkit::image::Image;
use build_engine_testkit::sha256;

use crate::{Bench, content};

/// Checks the content of a file of an image.
fn says(image: &Image, path: &str, text: &str) {
    assert_eq!(content(image, path), sha256(text.as_bytes()), "`{path}` does not have {text:?}");
}

/// F1-071.
fn cache_survives(who: Who) {
    let Some(bench) = Bench::new(who) else { return };
    let dockerfile = |number: u32| {
        format!(
            "FROM base\n\
             RUN --mount=type=cache,target=/c echo {number} >> /c/log; cat /c/log > /log\n\
             RUN --mount=type=cache,target=/o,uid=1000,gid=50,mode=0700 stat -c '%a' /o > /mode; ls /o > /list; touch /o/{number}\n\
             RUN ls / > /after\n"
        )
    };
    let first = bench.image("context", &[("Dockerfile", &dockerfile(1))], &[]);
    says(&first, "/log", "1\n");
    says(&first, "/mode", "700\n");
    assert!(first.tree.get("/c").is_none() && first.tree.get("/o").is_none(), "the mount points went again");
    let second = bench.image("context", &[("Dockerfile", &dockerfile(2))], &[]);
    says(&second, "/log", "1\n2\n");
    says(&second, "/list", "1\n");
    bench.engine.ok(["cache", "prune"]).unwrap();
    let third = bench.image("context", &[("Dockerfile", &dockerfile(3))], &[]);
    says(&third, "/log", "1\n2\n3\n");
    bench.engine.ok(["cache", "prune", "--all"]).unwrap();
    assert_eq!(fs::read_dir(bench.engine.store().join("cachemounts")).unwrap().count(), 0);
    let fourth = bench.image("context", &[("Dockerfile", &dockerfile(4))], &[]);
    says(&fourth, "/log", "4\n");
    bench.verify_store();
}

#[test]
fn f1_071_a_cache_mount_survives_builds_as_root() {
    cache_survives(Who::Root);
}

#[test]
fn f1_071_a_cache_mount_survives_builds_as_a_user() {
    cache_survives(Who::User);
}

#[test]
fn f1_071_a_cache_mount_survives_builds_with_one_uid() {
    cache_survives(Who::OneUid);
}

/// What a mount holds decides whether a step runs again, and only that.
#[test]
fn f1_084_a_bind_mount_counts_by_its_content() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let dockerfile = "FROM base\nRUN --mount=source=link,target=/in cat /in/a; head -c 16 /dev/urandom > /random\n";
    let build = |inside: &str, outside: &str| {
        let files = [("Dockerfile", dockerfile), ("d/a", inside), ("other", outside)];
        let context = bench.engine.context("context", &files).unwrap();
        let _ = std::os::unix::fs::symlink("d", context.join("link"));
        content(&bench.image("context", &files, &[]), "/random")
    };
    let first = build("1", "1");
    assert_eq!(build("1", "2"), first, "a file beside what is mounted");
    let file = fs::File::open(bench.engine.work().join("context/d/a")).unwrap();
    file.set_modified(std::time::SystemTime::now() - Duration::from_secs(100_000)).unwrap();
    assert_eq!(build("1", "2"), first, "a time");
    assert_ne!(build("2", "2"), first, "the content, behind a link");
    assert_eq!(build("1", "3"), first, "back again");
}

/// Ids, targets and sources that try to leave.
#[test]
fn d08_a_cache_mount_stays_where_it_belongs() {
    for who in [Who::Root, Who::User] {
        let Some(bench) = Bench::new(who) else { continue };
        let dockerfile = "FROM base\n\
            RUN --mount=type=cache,id=../../x,target=../../c ls / > /root-list; echo d08 > /c/canary; ln -s / /c/root; ln -s ../../../../.. /c/up; ln -s /proc/self/root /c/magic\n\
            RUN --mount=type=cache,id=../../x,source=../../,target=/c ls /c > /climbing\n\
            RUN --mount=type=cache,id=../../x,source=root,target=/c ls /c > /through-root\n\
            RUN --mount=type=cache,id=../../x,source=up,target=/c ls /c > /through-up\n\
            RUN ls / > /after\n";
        let image = bench.image("context", &[("Dockerfile", dockerfile)], &[]);
        for path in ["/climbing", "/through-root", "/through-up"] {
            says(&image, path, "canary\nmagic\nroot\nup\n");
        }
        let names: Vec<_> = fs::read_dir(bench.engine.store().join("cachemounts")).unwrap().collect();
        assert_eq!(names.len(), 1);
        let name = names[0].as_ref().unwrap().file_name().into_string().unwrap();
        assert!(name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
        let magic = "FROM base\nRUN --mount=type=cache,id=../../x,source=magic,target=/c ls /c\n";
        let run = bench.build("context", &[("Dockerfile", magic)], &["--output=type=cacheonly"]);
        assert_ne!(run.code, Some(0), "a magic link was followed");
        for fields in ["uid=-1", "mode=99999", "gid=4294967296"] {
            let dockerfile = format!("FROM base\nRUN --mount=type=cache,target=/c,{fields} true\n");
            let run = bench.build("context", &[("Dockerfile", &dockerfile)], &["--output=type=cacheonly"]);
            assert_eq!(run.code, Some(2), "{fields}: {}", run.stderr);
        }
    }
}

/// One step swaps a directory and a link to `/` while others mount it (CVE-2024-23651).
#[test]
fn d09_a_source_that_changes_into_a_link_leads_nowhere() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let canary = format!("d09-{}", std::process::id());
    fs::write(bench.engine.work().join(&canary), "").unwrap();
    let warm = "FROM base\nRUN --mount=type=cache,id=race,target=/c mkdir -p /c/sub; echo mine > /c/sub/marker; ln -s / /c/link\n";
    bench.image("warm", &[("Dockerfile", warm)], &[]);
    // The attacker ends when the file `stop` is there, or after a minute.
    let attack = "FROM base\n\
        RUN --mount=type=cache,id=race,target=/c for i in $(seq 60); do [ -e /c/stop ] && exit; for j in $(seq 200); do mv -T /c/sub /c/dir; mv -T /c/link /c/sub; mv -T /c/sub /c/link; mv -T /c/dir /c/sub; done; done\n";
    let context = bench.engine.context("attack", &[("Dockerfile", attack)]).unwrap();
    let mut attacker = bench
        .engine
        .command(bench.args(&context, &["--output=type=cacheonly"]))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(8);
    let (bench, canary) = (&bench, &canary);
    let victim = |thread: u32| {
        let mut mounted = 0;
        for round in 0.. {
            if Instant::now() > end {
                break;
            }
            // `/etc` and `/bin` are there only if the image's or the host's root is what was mounted.
            let dockerfile = format!(
                "FROM base\nRUN --mount=type=cache,id=race,source=sub,target=/in : {thread}-{round}; \
                 if [ -e /in/etc ] || [ -e /in/bin ] || [ -n \"$(find /in -maxdepth 3 -name '{canary}')\" ]; then echo ESCAPED; ls /in; fi\n"
            );
            let run =
                bench.build(&format!("victim-{thread}"), &[("Dockerfile", &dockerfile)], &["--output=type=cacheonly"]);
            assert!(!run.stderr.lines().any(|line| line.ends_with(" ESCAPED")), "{}", run.stderr);
            // In between, nothing has the name; that is an error and no escape.
            mounted += u32::from(run.code == Some(0));
        }
        mounted
    };
    let mounted: u32 = thread::scope(|scope| {
        let victims: Vec<_> = (0..3).map(|thread| scope.spawn(move || victim(thread))).collect();
        victims.into_iter().map(|victim| victim.join().unwrap()).sum()
    });
    let stop = "FROM base\nRUN --mount=type=cache,id=race,target=/c touch /c/stop\n";
    bench.image("stop", &[("Dockerfile", stop)], &[]);
    attacker.wait().unwrap();
    assert!(mounted > 0, "no build was in the race at all");
}

/// A link of an image or a context resolves inside of it, and what is written to a mount is thrown away (CVE-2024-1753).
#[test]
fn d10_a_bind_mount_resolves_inside_and_keeps_nothing() {
    for who in [Who::Root, Who::User] {
        let Some(bench) = Bench::new(who) else { continue };
        let dockerfile = "FROM base AS evil\n\
            RUN ln -s / /link; ln -s ../../../../../../.. /up; echo evil > /only-here\n\
            FROM base\n\
            RUN --mount=type=bind,from=evil,source=/link,target=/in,rw ls /in > /list; echo x > /in/written; rm -r /in/etc\n\
            RUN --mount=type=bind,from=evil,source=/up,target=/in ls /in > /again\n\
            RUN --mount=type=bind,source=link,target=/in,rw ls /in > /context; echo x > /in/written; echo x > /in/file; rm -r /in/d\n\
            RUN --mount=type=bind,target=/in ls /in > /context-again\n";
        let context = bench.engine.context("context", &[("file", "kept"), ("d/x", "kept")]).unwrap();
        std::os::unix::fs::symlink("/", context.join("link")).unwrap();
        let image = bench.image("context", &[("Dockerfile", dockerfile)], &[]);
        let root = "bin\ndev\netc\nhome\nlink\nonly-here\nproc\nroot\nrun\nsys\ntmp\nup\nusr\nvar\n";
        says(&image, "/list", root);
        says(&image, "/again", root);
        says(&image, "/context", "Dockerfile\nd\nfile\nlink\n");
        says(&image, "/context-again", "Dockerfile\nd\nfile\nlink\n");
        assert_eq!(fs::read_to_string(context.join("file")).unwrap(), "kept");
        assert_eq!(fs::read_to_string(context.join("d/x")).unwrap(), "kept");
        assert!(!context.join("written").exists());
    }
}

/// Runs a build for each of `numbers` at once; `step` is a RUN with the number in it. Returns what each left in `/out`.
fn at_once(bench: &Bench, step: &str) -> Vec<String> {
    thread::scope(|scope| {
        let builds: Vec<_> = (0..3)
            .map(|number| {
                scope.spawn(move || {
                    let dockerfile = format!("FROM base\nRUN {}\n", step.replace("NUMBER", &number.to_string()));
                    content(&bench.image(&format!("context-{number}"), &[("Dockerfile", &dockerfile)], &[]), "/out")
                })
            })
            .collect();
        builds.into_iter().map(|build| build.join().unwrap()).collect()
    })
}

/// F1-071: `sharing`, between processes that share a store.
#[test]
fn f1_071_sharing_holds_between_processes() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    bench.image("warm", &[("Dockerfile", "FROM base\nRUN true\n")], &[]);
    let expect = |text: &str| vec![sha256(text.as_bytes()); 3];
    let locked = at_once(
        &bench,
        "--mount=type=cache,id=locked,sharing=locked,target=/c : NUMBER; if mkdir /c/taken; then sleep 0.5; rmdir /c/taken; echo alone > /out; else echo together > /out; fi",
    );
    assert_eq!(locked, expect("alone\n"));
    let private = at_once(
        &bench,
        "--mount=type=cache,id=private,sharing=private,target=/c : NUMBER; if mkdir /c/taken; then sleep 2; rmdir /c/taken; echo alone > /out; else echo together > /out; fi",
    );
    assert_eq!(private, expect("alone\n"));
    let shared = at_once(
        &bench,
        "--mount=type=cache,id=shared,target=/c touch /c/NUMBER; for i in $(seq 200); do [ $(ls /c | wc -l) = 3 ] && break; sleep 0.1; done; ls /c > /out",
    );
    assert_eq!(shared, expect("0\n1\n2\n"));
    bench.engine.ok(["cache", "prune", "--all"]).unwrap();
    assert_eq!(fs::read_dir(bench.engine.store().join("cachemounts")).unwrap().count(), 0);
}

/// A step that waits for a cache mount says so, can be cancelled, and gets it when its holder is killed.
#[test]
fn f1_071_a_locked_cache_mount_is_waited_for() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    bench.image("warm", &[("Dockerfile", "FROM base\nRUN true\n")], &[]);
    let locked = |command: &str| format!("FROM base\nRUN --mount=type=cache,id=l,sharing=locked,target=/c {command}\n");
    let start = |name: &str, command: &str| {
        let context = bench.engine.context(name, &[("Dockerfile", &locked(command))]).unwrap();
        let mut command = bench.engine.command(bench.args(&context, &["--output=type=cacheonly"]));
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut holder = start("holder", "touch /c/held; sleep 60");
    let held = || {
        let mounts = fs::read_dir(bench.engine.store().join("cachemounts")).into_iter().flatten().flatten();
        let mut copies = mounts.flat_map(|mount| fs::read_dir(mount.path()).unwrap().flatten());
        copies.any(|copy| copy.path().join("fs/held").exists())
    };
    let end = Instant::now() + Duration::from_secs(60);
    while !held() {
        assert!(Instant::now() < end, "the holder does not run");
        thread::sleep(Duration::from_millis(20));
    }
    let prune = bench.engine.ok(["cache", "prune", "--all"]).unwrap();
    assert!(held(), "a cache mount in use was pruned: {}", prune.stdout);
    let waiting = start("waiting", "touch /c/never");
    thread::sleep(Duration::from_secs(3));
    build_engine_testkit::peers::output(std::process::Command::new("kill").args([
        "-s",
        "INT",
        &waiting.id().to_string(),
    ]))
    .unwrap();
    let interrupted = Instant::now();
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(interrupted.elapsed() < Duration::from_secs(3), "it took {:?}", interrupted.elapsed());
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("waiting for the cache mount /c"), "{told}");
    let next = start("next", "[ -e /c/held ] && [ ! -e /c/never ]");
    thread::sleep(Duration::from_millis(500));
    holder.kill().unwrap();
    holder.wait().unwrap();
    let output = next.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// D12: a directory that is mounted is read once; a link stays a link, and nothing of the host is read through it.
#[test]
fn d12_links_of_a_context_stay_links_in_a_mount() {
    let Some(bench) = Bench::new(Who::User) else { return };
    let context = bench.engine.context("context", &[("file", "x")]).unwrap();
    std::os::unix::fs::symlink("/etc/shadow", context.join("shadow")).unwrap();
    let dockerfile = "FROM base\n\
        RUN --mount=target=/in readlink /in/shadow > /link; cat /in/shadow 2>/dev/null || echo nothing >> /link\n\
        FROM base\nCOPY --from=0 /link /link\n";
    let image = bench.image("context", &[("Dockerfile", dockerfile)], &[]);
    says(&image, "/link", "/etc/shadow\nnothing\n");
}
