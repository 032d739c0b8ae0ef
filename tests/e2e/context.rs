//! The build context: what is in it (D-12), what is missing from it (D-13), and odd things in it (security plan D12, D13).

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::Command;

use build_engine_testkit::engine::Who;
use build_engine_testkit::peers::output;

use crate::Bench;

const IGNORE: &str = "# what is built\n**/*.o\ndocs\n!docs/keep\n";

#[test]
fn d_12_ls_size_why_and_export_agree() {
    let Some(bench) = Bench::new(Who::User) else { return };
    let files = [
        (".dockerignore", IGNORE),
        ("Dockerfile", "FROM base\n"),
        ("src/main.c", "int main;\n"),
        ("src/main.o", "0123456789"),
        ("docs/a", "a"),
        ("docs/keep/b", "b"),
    ];
    let context = bench.engine.context("context", &files).unwrap();
    let context = context.display().to_string();
    let ls = bench.engine.ok(["context", "ls", "--format={{.Path}}", &context]).unwrap().stdout;
    assert_eq!(ls, ".dockerignore\nDockerfile\ndocs\ndocs/keep\ndocs/keep/b\nsrc\nsrc/main.c\n");
    let json = bench.engine.ok(["context", "ls", "--format=json", &context]).unwrap().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["entries"][6], serde_json::json!({ "path": "src/main.c", "type": "file", "size": 10 }));

    let size = bench.engine.ok(["context", "size", "--format=json", &context]).unwrap().stdout;
    let size: serde_json::Value = serde_json::from_str(&size).unwrap();
    assert_eq!((&size["files"], &size["ignored_files"], &size["ignored_size"]), (&4.into(), &2.into(), &11.into()));
    let people = bench.engine.ok(["context", "size", &context]).unwrap().stdout;
    assert!(people.contains("leaves out 11B in 2 files"), "{people}");

    let why =
        bench.engine.ok(["context", "why", "-C", &context, "src/main.o", "docs/a", "docs/keep/b", "new"]).unwrap();
    for part in [
        "src/main.o: excluded",
        "line 2 of",
        "`**/*.o` leaves out it",
        "`docs` leaves out the directory `docs`",
        "`!docs/keep` takes back in the directory `docs/keep`",
        "new: does not exist; it would be kept",
    ] {
        assert!(why.stdout.contains(part), "no `{part}`:\n{}", why.stdout);
    }

    let archive = bench.engine.work().join("context.tar");
    bench.engine.ok(["context", "export", "-C", &context, &archive.display().to_string()]).unwrap();
    let listed = output(Command::new("tar").arg("-tf").arg(&archive)).unwrap();
    let listed: Vec<&str> = listed.lines().map(|line| line.trim_end_matches('/')).collect();
    assert_eq!(listed.len(), 7, "{listed:?}");
    assert!(listed.contains(&"docs/keep/b"), "{listed:?}");
    let directory = bench.engine.work().join("exported").display().to_string();
    bench.engine.ok(["context", "export", "-C", &context, &directory]).unwrap();
    let again = bench.engine.ok(["context", "ls", "--format={{.Path}}", &directory]).unwrap().stdout;
    assert_eq!(again, ls);
}

/// What is said of a missing source: Dockerfile, the words that must be there.
const MISSING: &[(&str, &[&str])] = &[
    ("FROM base\nCOPY src/Main.c /x\n", &["Dockerfile:2:6", "did you mean `src/main.c`", "case"]),
    ("FROM base\nCOPY Dockerfile scr/main.c /x/\n", &["Dockerfile:2:17", "did you mean `src/main.c`"]),
    ("FROM base\nCOPY main.c /x\n", &["did you mean `src/main.c`, in another directory"]),
    ("FROM base\nCOPY src/main.o /x\n", &["line 2 of `.dockerignore`", "`**/*.o`", "`!src/main.o`"]),
    ("FROM base\nADD docs/a /x\n", &["Dockerfile:2:5", "line 3 of `.dockerignore`", "leaves out `docs`"]),
    ("FROM base\nCOPY ../elsewhere /x\n", &["`..` does not lead out of the context"]),
    ("FROM base\nCOPY link /x\n", &["symbolic link to `/etc/shadow`", "does not have"]),
    ("FROM base\nCOPY --parents src/none /x\n", &["src/none"]),
    (
        "FROM base AS b\nRUN touch /made\nFROM base\nCOPY --from=b /maed /x\n",
        &["`/maed` does not exist in `b`", "`made`", "Dockerfile:4:15"],
    ),
    (
        "FROM base AS one\nRUN touch /only-here\nFROM base AS two\nCOPY --from=one /bin/sh /sh\nFROM base\nCOPY --from=two /only-here /x\n",
        &["stage `one` has it", "`--from=one`"],
    ),
    ("FROM base AS b\nRUN true\nFROM base\nCOPY --from=b src/main.c /x\n", &["the build context has it"]),
];

#[test]
fn d_13_a_missing_source_says_where_it_is_or_why_it_is_not_there() {
    let Some(bench) = Bench::new(Who::User) else { return };
    for (dockerfile, parts) in MISSING {
        let files = [
            (".dockerignore", IGNORE),
            ("Dockerfile", *dockerfile),
            ("src/main.c", "x"),
            ("src/main.o", "x"),
            ("docs/a", "a"),
        ];
        fs::write(bench.engine.work().join("elsewhere"), "x").unwrap();
        let link = bench.engine.work().join("missing/link");
        if link.symlink_metadata().is_err() {
            fs::create_dir_all(bench.engine.work().join("missing")).unwrap();
            std::os::unix::fs::symlink("/etc/shadow", link).unwrap();
        }
        let run = bench.build("missing", &files, &[]);
        assert_eq!(run.code, Some(2), "{dockerfile}\n{}", run.stderr);
        for part in *parts {
            assert!(run.stderr.contains(part), "{dockerfile}: no `{part}`:\n{}", run.stderr);
        }
    }
}

#[test]
fn rm_false_keeps_what_the_failed_step_left() {
    for who in [Who::Root, Who::User] {
        let Some(bench) = Bench::new(who) else { return };
        let dockerfile = "FROM base\nENV A=1\nWORKDIR /w\nRUN echo report > report.txt && exit 3\n";
        let run = bench.build("fails", &[("Dockerfile", dockerfile)], &["--rm=false"]);
        assert_eq!(run.code, Some(1), "{}", run.stderr);
        let name =
            run.stderr.split('`').find(|part| part.starts_with("build-engine/failed:")).expect("a name").to_owned();
        let seen =
            bench.engine.ok(["run", "--network=none", &name, "/bin/sh", "-c", "cat report.txt; echo $A"]).unwrap();
        assert_eq!(seen.stdout, "report\n1\n", "{}", seen.stderr);
        bench.engine.ok(["cache", "prune", "--all"]).unwrap();
        bench.engine.ok(["run", "--network=none", &name, "true"]).unwrap();
        bench.engine.ok(["images", "rm", &name]).unwrap();
        let run = bench.build("fails", &[("Dockerfile", dockerfile)], &["--rm=false", "--force-rm"]);
        assert!(!run.stderr.contains("build-engine/failed:"), "{}", run.stderr);
        bench.verify_store();
    }
}

/// Security plan D12: links stay links, pipes are copied as pipes, a socket is said to be one, what cannot be read is named.
#[test]
fn d12_odd_files_of_a_context_are_copied_or_named_and_nothing_hangs() {
    let Some(bench) = Bench::new(Who::User) else { return };
    let copy_all = "FROM base\nCOPY . /c/\n";
    let context = bench.engine.context("odd", &[("Dockerfile", copy_all), ("one", "1")]).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", context.join("link")).unwrap();
    fs::hard_link(context.join("one"), context.join("two")).unwrap();
    output(Command::new("mkfifo").arg(context.join("pipe"))).unwrap();
    bench.engine.adopt(&context).unwrap();
    let image = bench.image("odd", &[], &[]);
    assert_eq!(image.tree.links("/c/one"), ["/c/one", "/c/two"]);
    assert!(image.tree.get("/c/link").is_some());

    let _socket = UnixListener::bind(context.join("socket")).unwrap();
    bench.image("odd", &[], &[]);
    fs::remove_file(context.join("socket")).unwrap();

    fs::write(context.join("secret"), "x").unwrap();
    bench.engine.adopt(&context).unwrap();
    output(Command::new("chown").arg("0:0").arg(context.join("secret"))).unwrap();
    output(Command::new("chmod").arg("0").arg(context.join("secret"))).unwrap();
    let run = bench.engine.run(bench.args(&context, &[])).unwrap();
    assert_eq!(run.code, Some(2), "{}", run.stderr);
    assert!(run.stderr.contains("secret"), "{}", run.stderr);
}

/// Security plan D13: a Dockerfile that is a pipe does not hang the build, and one that is linked is what was asked for.
#[test]
fn d13_a_dockerfile_that_is_a_pipe_is_refused_at_once() {
    let Some(bench) = Bench::new(Who::User) else { return };
    let context = bench.engine.context("pipe", &[("x", "x")]).unwrap();
    output(Command::new("mkfifo").arg(context.join("Dockerfile"))).unwrap();
    bench.engine.adopt(&context).unwrap();
    let run = bench.engine.run(["build", &context.display().to_string()]).unwrap();
    assert_eq!(run.code, Some(2), "{}", run.stderr);
}
