//! Bad input and a bad world: the message names the place, the exit code its kind, and the next build works.

use std::fs;
use std::io::Write as _;
use std::process::Command;

use build_engine_testkit::engine::Who;
use build_engine_testkit::image::image_of_archive;
use build_engine_testkit::peers::output;

use crate::Bench;

struct Bad {
    name: &'static str,
    dockerfile: &'static str,
    args: &'static [&'static str],
    code: i32,
    parts: &'static [&'static str],
}

const BAD: &[Bad] = &[
    Bad {
        name: "unknown-instruction",
        dockerfile: "FROM base\nRUNN x\n",
        args: &[],
        code: 2,
        parts: &["RUNN", "Dockerfile:2", "RUN"],
    },
    Bad {
        name: "unknown-stage",
        dockerfile: "FROM base AS builder\nFROM base\nCOPY --from=biulder /x /x\n",
        args: &[],
        code: 2,
        parts: &["biulder", "Dockerfile:3", "builder"],
    },
    Bad {
        name: "unknown-target",
        dockerfile: "FROM base AS builder\n",
        args: &["--target=biulder"],
        code: 2,
        parts: &["biulder", "builder"],
    },
    Bad {
        name: "missing-source",
        dockerfile: "FROM base\nCOPY missing.txt /\n",
        args: &[],
        code: 2,
        parts: &["missing.txt", "Dockerfile:2"],
    },
    Bad {
        name: "failing-run",
        dockerfile: "FROM base\nRUN echo the last words && exit 7\n",
        args: &[],
        code: 1,
        parts: &["7", "the last words", "Dockerfile:2"],
    },
    Bad {
        name: "unknown-flag",
        dockerfile: "FROM base\n",
        args: &["--no-such-flag"],
        code: 2,
        parts: &["--no-such-flag"],
    },
    Bad { name: "unknown-output", dockerfile: "FROM base\n", args: &["--output=type=nope"], code: 2, parts: &["nope"] },
    Bad {
        name: "missing-dockerfile",
        dockerfile: "FROM base\n",
        args: &["--file=nowhere"],
        code: 2,
        parts: &["nowhere"],
    },
    Bad {
        name: "missing-layout",
        dockerfile: "FROM other\n",
        args: &["--build-context=other=oci-layout:///no/such/layout"],
        code: 3,
        parts: &["/no/such/layout"],
    },
    Bad {
        name: "network-not-granted",
        dockerfile: "FROM base\nRUN --network=host true\n",
        args: &[],
        code: 7,
        parts: &["--network=host", "Dockerfile:2"],
    },
    Bad {
        name: "other-frontend",
        dockerfile: "# syntax=example.com/other:1\nFROM base\n",
        args: &[],
        code: 2,
        parts: &["example.com/other:1", "Dockerfile:1"],
    },
    Bad {
        name: "unreachable-url",
        dockerfile: "FROM base\nRUN true\nADD http://127.0.0.1:1/x /x\n",
        args: &[],
        code: 3,
        parts: &["http://127.0.0.1:1/x", "Dockerfile:3"],
    },
    Bad {
        name: "not-yet-executed",
        dockerfile: "FROM base\nRUN true\nRUN --device=example.com/gpu=all,required true\n",
        args: &[],
        code: 2,
        parts: &["example.com/gpu=all", "Dockerfile:3"],
    },
];

fn bad_input_is_named(who: Who) {
    let Some(bench) = Bench::new(who) else { return };
    for bad in BAD {
        let run = bench.build(bad.name, &[("Dockerfile", bad.dockerfile)], bad.args);
        assert_eq!(run.code, Some(bad.code), "{}: {}", bad.name, run.stderr);
        for part in bad.parts {
            assert!(run.stderr.contains(part), "{}: the message has no `{part}`:\n{}", bad.name, run.stderr);
        }
        assert!(!run.stderr.contains("panicked"), "{}:\n{}", bad.name, run.stderr);
    }
    bench.verify_store();
    bench.image("good", &[("Dockerfile", "FROM base\nRUN echo good > /good\n")], &[]);
}

#[test]
fn bad_input_as_root_is_named_and_the_next_build_works() {
    bad_input_is_named(Who::Root);
}

#[test]
fn bad_input_as_a_user_is_named_and_the_next_build_works() {
    bad_input_is_named(Who::User);
}

#[test]
fn a_corrupt_base_is_refused_with_the_code_for_integrity() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let blobs = bench.base.join("blobs/sha256");
    let largest = largest_file(&blobs);
    flip_a_byte(&largest);
    let run = bench.build("context", &[("Dockerfile", "FROM base\nRUN true\n")], &["-t", "x"]);
    assert_eq!(run.code, Some(4), "{}", run.stderr);
    let digest = largest.file_name().unwrap().to_string_lossy().into_owned();
    assert!(run.stderr.contains(&digest), "the message names the blob {digest}:\n{}", run.stderr);
    bench.verify_store();
    flip_a_byte(&largest);
    bench.image("context", &[("Dockerfile", "FROM base\nRUN true\n")], &[]);
}

#[test]
fn a_corrupt_blob_in_the_store_reaches_no_result() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let files: &[(&str, &str)] = &[("Dockerfile", "FROM base\nCOPY . /c\nRUN head -c 4000000 /dev/urandom > /r\n")];
    bench.image("context", files, &[]);
    let victim = largest_file(&bench.engine.store().join("content/blobs/sha256"));
    flip_a_byte(&victim);
    let out = bench.engine.work().join("again.tar");
    let run = bench.build("context", files, &[&format!("--output=type=oci,dest={}", out.display())]);
    match run.code {
        // Made again from the tree; the reader checks every digest.
        Some(0) => drop(image_of_archive(&out).unwrap()),
        Some(4) => {
            let digest = victim.file_name().unwrap().to_string_lossy().into_owned();
            assert!(run.stderr.contains(&digest), "the message names the blob {digest}:\n{}", run.stderr);
        }
        other => panic!("ended with {other:?}:\n{}", run.stderr),
    }
    bench.image("context", files, &[]);
    bench.verify_store();
}

/// A file system of `megabytes`, unmounted on drop.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(dir: std::path::PathBuf, megabytes: u32) -> SmallDisk {
        fs::create_dir_all(&dir).unwrap();
        output(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=755"), "tmpfs"])
                .arg(&dir),
        )
        .unwrap();
        SmallDisk(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_named_and_the_next_build_works() {
    let Some(mut bench) = Bench::new(Who::Root) else { return };
    let disk = SmallDisk::mount(bench.engine.work().join("disk"), 64);
    bench.engine.set_store(disk.0.join("store"));
    let small: &[(&str, &str)] = &[("Dockerfile", "FROM base\nCOPY small /\n"), ("small", "small\n")];
    bench.image("small", small, &[]);

    // Bytes that do not compress, more than the disk holds.
    let big = bench.engine.context("big", &[("Dockerfile", "FROM base\nCOPY big /\n")]).unwrap();
    output(Command::new("sh").args(["-c", "head -c 100000000 /dev/urandom > \"$1\"", "sh"]).arg(big.join("big")))
        .unwrap();
    let run = bench.engine.run(bench.args(&big, &["-t", "big"])).unwrap();
    assert_eq!(run.code, Some(6), "{}", run.stderr);
    assert!(run.stderr.to_lowercase().contains("no space left"), "{}", run.stderr);

    // A command that fills the disk fails like any other command.
    let fill = "FROM base\nRUN dd if=/dev/urandom of=/big bs=1M count=100\n";
    let run = bench.build("fill", &[("Dockerfile", fill)], &["-t", "fill"]);
    assert!(matches!(run.code, Some(1 | 6)), "{:?}: {}", run.code, run.stderr);
    assert!(run.stderr.to_lowercase().contains("no space left"), "{}", run.stderr);

    bench.verify_store();
    bench.image(
        "small",
        &[("Dockerfile", "FROM base\nCOPY small /other\nRUN echo 1 > /one\n"), ("small", "small\n")],
        &[],
    );
}

fn largest_file(dir: &std::path::Path) -> std::path::PathBuf {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.max_by_key(|path| fs::metadata(path).unwrap().len()).expect("there is a blob")
}

fn flip_a_byte(path: &std::path::Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    // In place: the engine may hold the file by its inode.
    let mut permissions = fs::metadata(path).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
    fs::set_permissions(path, permissions).unwrap();
    fs::File::options().write(true).open(path).unwrap().write_all(&bytes).unwrap();
}
