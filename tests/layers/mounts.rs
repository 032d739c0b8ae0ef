//! L19: base images whose mount points are links to the host, and a step that runs on them (CVE-2026-41579 and others).

use std::fs;

use build_engine_testkit::archive::{Member, archive};
use build_engine_testkit::engine::Who;
use build_engine_testkit::{available, fixtures};
use serde_json::{Value, json};

use crate::{Bench, Blob, fingerprint, run_within};

/// The layer of the busybox base.
fn busybox() -> Option<Vec<u8>> {
    let layout = available(fixtures::busybox())?;
    let document = |digest: &str| fs::read(layout.join("blobs").join(digest.replace(':', "/"))).unwrap();
    let manifest: Value = serde_json::from_slice(&document(&fixtures::manifest_digest(&layout).unwrap())).unwrap();
    Some(document(manifest["layers"][0]["digest"].as_str().unwrap()))
}

fn steps(who: Who) {
    let Some(bench) = Bench::new(who) else { return };
    let Some(busybox) = busybox() else { return };
    // Everything that a step of an image writes to by habit, and a check that it runs at all.
    let dockerfile = "FROM base\nRUN echo x > /etc/made; echo x > /run/made; echo x > /tmp/made; echo x > /dev/made; \
                      echo x > /dev/null; chmod 777 /dev/null /etc/hosts /etc/resolv.conf; mkdir -p /job/sub; true\n\
                      WORKDIR /job/deeper\n";
    bench.engine.context("step", &[("Dockerfile", dockerfile)]).unwrap();
    let canary = bench.canary().to_owned();
    let host = ["/dev/null", "/etc/hosts", "/etc/resolv.conf", "/etc"].map(|path| {
        let metadata = fs::metadata(path).ok()?;
        Some((path, metadata.permissions(), metadata.modified().ok().filter(|_| path.starts_with("/etc"))))
    });
    let mut wrong = Vec::new();
    let (mut worked, mut tried) = (0, 0);
    for name in [
        "dev",
        "proc",
        "sys",
        "etc",
        "run",
        "tmp",
        "job",
        "root",
        "dev/null",
        "dev/console",
        "dev/pts",
        "dev/shm",
        "dev/mqueue",
        "dev/fd",
        "sys/fs/cgroup",
        "etc/resolv.conf",
        "etc/hosts",
        "etc/hostname",
        "run/secrets",
        "proc/self",
        "proc/sys",
    ] {
        for (target, what) in [
            (format!("{canary}/dir"), "a folder of the host"),
            (format!("{canary}/file"), "a file of the host"),
            (format!("{canary}/missing"), "something that the host has not"),
            (format!("../../../../../../../..{canary}/dir"), "a folder of the host, relatively"),
            ("/proc/1/root".to_owned(), "the root of the first process"),
            ("/proc/self/fd/1".to_owned(), "a descriptor"),
            (name.to_owned(), "itself"),
        ] {
            tried += 1;
            // Half of them is enough where only the owner of everything is another one.
            if who == Who::User && tried % 2 == 0 {
                continue;
            }
            let link = archive([&Member::symlink(name, &target)]);
            let config = json!({ "Env": ["PATH=/bin"] });
            let base = bench.layout_with("case", &[Blob::new(&busybox), Blob::new(&link)], &config);
            let out = bench.engine.work().join("out.tar");
            let run = run_within(bench.build("step", &base, &format!("--output=type=tar,dest={}", out.display())));
            let case = format!("L19: /{name} is a link to {what} (`{target}`)");
            if let Err(why) = bench.harmless() {
                wrong.push(format!("{case}: {why}"));
            }
            match run.code {
                Some(0) => worked += 1,
                Some(1 | 2 | 4 | 7) if !run.stderr.contains("panicked") => {}
                code => wrong.push(format!("{case}: ended with {code:?}: {}", crate::last_lines(&run.stderr))),
            }
        }
    }
    let after = ["/dev/null", "/etc/hosts", "/etc/resolv.conf", "/etc"].map(|path| {
        let metadata = fs::metadata(path).ok()?;
        Some((path, metadata.permissions(), metadata.modified().ok().filter(|_| path.starts_with("/etc"))))
    });
    assert_eq!(host, after, "the host's own files changed");
    assert_eq!(fingerprint(&bench.canary), bench.before);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    eprintln!(
        "L19 {who:?}: {worked} steps of {tried} images ran; the others failed clearly, or were left out as a user"
    );
    bench.works();
}

#[test]
fn privileged_l19_mount_points_that_are_links_as_root() {
    steps(Who::Root);
}

#[test]
fn privileged_l19_mount_points_that_are_links_as_a_user() {
    steps(Who::User);
}
