//! Other platforms: commands under emulation, several platforms in one build, and what is refused.
//!
//! Which emulators the host has registered differs; `s390x` is hardly ever among them, so that one shows registration in
//! the step's own user namespace.

use std::fs;
use std::process::Command;

use build_engine_testkit::engine::Who;
use build_engine_testkit::image::image_of_archive;
use build_engine_testkit::{Unavailable, available, foreign, sha256};
use serde_json::Value;

use crate::{Bench, content};

const NEWLINE: &str = "\n";

/// What a step of each platform says about itself.
const DOCKERFILE: &str = "FROM foreign\n\
     RUN uname -m > /machine\n\
     RUN <<SCRIPT\n#!/bin/sh\nuname -m > /shebang\nSCRIPT\n\
     COPY --chmod=755 script /script\n\
     RUN /script > /nested\n\
     RUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo $0 > /name\", \"zero\"]\n\
     USER app\n\
     RUN id -u > /tmp/user\n";

/// A script that starts programs by two further scripts (`env` of the base is one as well).
const SCRIPT: &str = "#!/usr/bin/env sh\nenv sh -c 'uname -m'\n";

fn foreign_bench(who: Who) -> Option<(Bench, String)> {
    let bench = Bench::new(who)?;
    let layout = available(foreign::busybox().and_then(|layout| bench.engine.base(&layout)))?;
    Some((bench, format!("--build-context=foreign=oci-layout://{}:latest", layout.display())))
}

/// Whether an emulator that a step can register is installed.
fn emulator(machine: &str) -> Option<()> {
    let program = format!("/usr/bin/qemu-{machine}-static");
    let found = std::path::Path::new(&program).exists();
    available(if found { Ok(()) } else { Err(Unavailable(format!("{program} is missing (qemu-user-static)")).into()) })
}

fn registered() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir("/proc/sys/fs/binfmt_misc")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn emulated(who: Who, platform: &str, machine: &str, qemu: &str) {
    let Some((bench, base)) = foreign_bench(who) else { return };
    let Some(()) = emulator(qemu) else { return };
    let before = registered();
    let files = [("Dockerfile", DOCKERFILE), ("script", SCRIPT)];
    let out = bench.engine.work().join("out.tar");
    let output = format!("--output=type=oci,dest={}", out.display());
    let args = [base.as_str(), "--platform", platform, &output];
    let run = bench.build("context", &files, &args);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stderr.contains(&format!("commands for {platform} are emulated by")), "{}", run.stderr);
    let image = image_of_archive(&out).unwrap();
    let says = |text: &str| sha256(format!("{text}{NEWLINE}").as_bytes());
    for path in ["/machine", "/shebang", "/nested"] {
        assert_eq!(content(&image, path), says(machine), "{path}");
    }
    assert_eq!(content(&image, "/name"), says("zero"), "the program keeps its own name");
    if who != Who::OneUid {
        assert_eq!(content(&image, "/tmp/user"), says("1000"));
    }
    assert_eq!(registered(), before, "the host's registry is left alone");
}

#[test]
fn f1_058_a_step_registers_an_emulator_of_its_own_for_root() {
    emulated(Who::Root, "linux/s390x", "s390x", "s390x");
}

#[test]
fn f1_058_a_step_registers_an_emulator_of_its_own_for_a_user() {
    emulated(Who::User, "linux/s390x", "s390x", "s390x");
    emulated(Who::User, "linux/ppc64le", "ppc64le", "ppc64le");
}

#[test]
fn f1_058_commands_for_arm_are_emulated() {
    emulated(Who::Root, "linux/arm64", "aarch64", "aarch64");
    emulated(Who::User, "linux/arm64", "aarch64", "aarch64");
    emulated(Who::Root, "linux/arm/v7", "armv7l", "arm");
}

/// One identity: `USER` cannot be another one, everything else works.
#[test]
fn f1_058_a_step_registers_an_emulator_where_there_is_one_id() {
    let Some((bench, base)) = foreign_bench(Who::OneUid) else { return };
    let Some(()) = emulator("s390x") else { return };
    let files = [("Dockerfile", "FROM foreign\nRUN uname -m\n")];
    let run = bench.build("context", &files, &[&base, "--platform=linux/s390x"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stderr.contains(" s390x"), "{}", run.stderr);
}

/// F1-053, F1-058: what does not depend on the platform runs once; the rest once for each.
#[test]
fn f1_058_several_platforms_share_what_does_not_depend_on_them() {
    let Some((bench, base)) = foreign_bench(Who::User) else { return };
    let Some(()) = emulator("arm") else { return };
    let dockerfile = "FROM --platform=$BUILDPLATFORM foreign AS build\n\
                      RUN echo once-only; uname -m > /built-on\n\
                      FROM --platform=$BUILDPLATFORM build AS cross\n\
                      ARG TARGETPLATFORM\n\
                      RUN echo \"for $TARGETPLATFORM\" > /target\n\
                      FROM foreign\n\
                      RUN uname -m > /machine\n\
                      COPY --from=build /built-on /\n\
                      COPY --from=cross /target /\n";
    let out = bench.engine.work().join("out");
    let platforms = "--platform=linux/amd64,linux/arm64,linux/arm/v7";
    let output = format!("--output=type=local,dest={}", out.display());
    let archive = bench.engine.work().join("index.tar");
    let index = format!("--output=type=oci,dest={}", archive.display());
    let run = bench.build("context", &[("Dockerfile", dockerfile)], &[&base, platforms, &output, &index]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let lines = run.stderr.lines().filter(|line| line.ends_with(" once-only")).count();
    assert_eq!(lines, 1, "the step for the build platform runs once:\n{}", run.stderr);
    for (name, platform, machine) in [
        ("linux_amd64", "linux/amd64", "x86_64"),
        ("linux_arm64", "linux/arm64", "aarch64"),
        ("linux_arm_v7", "linux/arm/v7", "armv7l"),
    ] {
        let read = |file: &str| fs::read_to_string(out.join(name).join(file)).unwrap();
        assert_eq!(read("machine"), format!("{machine}\n"));
        assert_eq!(read("built-on"), "x86_64\n");
        assert_eq!(read("target"), format!("for {platform}\n"));
    }
    let listed = Command::new("tar").args(["-xOf"]).arg(&archive).arg("index.json").output().unwrap();
    let layout: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let blob = layout["manifests"][0]["digest"].as_str().unwrap().replace(':', "/");
    let index = Command::new("tar").args(["-xOf"]).arg(&archive).arg(format!("blobs/{blob}")).output().unwrap();
    let index: Value = serde_json::from_slice(&index.stdout).unwrap();
    let platforms: Vec<String> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|manifest| {
            let platform = &manifest["platform"];
            let variant = platform["variant"].as_str().map(|v| format!("/{v}")).unwrap_or_default();
            format!("{}{variant}", platform["architecture"].as_str().unwrap())
        })
        .collect();
    assert_eq!(platforms, ["amd64", "arm64", "arm/v7"]);
}

#[test]
fn a_command_that_nothing_here_runs_is_refused_before_any_other_runs() {
    let Some((bench, base)) = foreign_bench(Who::Root) else { return };
    let dockerfile = "FROM --platform=$BUILDPLATFORM foreign AS first\nRUN echo it-ran\nFROM --platform=linux/z80 scratch\nCOPY --from=first / /\nRUN x\n";
    let run = bench.build("context", &[("Dockerfile", dockerfile)], &[&base, "--platform=linux/z80"]);
    assert_eq!(run.code, Some(2), "{}", run.stderr);
    assert!(run.stderr.contains("cannot run commands for linux/z80"), "{}", run.stderr);
    assert!(run.stderr.contains("Dockerfile:5"), "{}", run.stderr);
    assert!(!run.stderr.contains("it-ran"), "{}", run.stderr);
}

/// F1-042: any platform can be copied for.
#[test]
fn f1_058_files_are_copied_for_platforms_that_nothing_here_runs() {
    let Some(bench) = Bench::new(Who::User) else { return };
    for (platform, expected) in [
        ("windows/amd64", ["windows", "amd64", "-"]),
        ("freebsd/arm64/v8", ["freebsd", "arm64", "-"]),
        ("linux/riscv64", ["linux", "riscv64", "-"]),
        ("linux/arm/6", ["linux", "arm", "v6"]),
        ("local", ["linux", "amd64", "-"]),
    ] {
        let files = [("Dockerfile", "FROM scratch\nCOPY file /file\n"), ("file", "x")];
        let image = bench.image("context", &files, &["--platform", platform]);
        let word = |key: &str| image.config[key].as_str().unwrap_or("-").to_owned();
        assert_eq!([word("os"), word("architecture"), word("variant")], expected, "{platform}");
    }
}

/// `info` tells which platforms run here.
#[test]
fn f1_058_info_names_the_platforms_that_run_here() {
    let Some(bench) = Bench::new(Who::User) else { return };
    let run = bench.engine.run(["info", "--format=json"]).unwrap();
    let info: Value = serde_json::from_str(&run.stdout).unwrap();
    let platforms: Vec<&str> = info["platforms"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(platforms.contains(&"linux/amd64"), "{platforms:?}");
    if emulator("s390x").is_some() {
        assert!(platforms.iter().any(|platform| platform.starts_with("linux/s390x (")), "{platforms:?}");
    }
}
