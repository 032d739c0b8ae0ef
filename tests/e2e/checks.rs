//! The build checks and the other questions about a Dockerfile, as the command line answers them, with BuildKit as judge.
//!
//! The Dockerfiles are those that the frontend's own tests have (`checks.txt`, rows F1-140 to F1-161, F1-008, F1-009).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use build_engine_testkit::available;
use build_engine_testkit::engine::{Engine, Run, Who};
use build_engine_testkit::peers::Peers;
use serde_json::{Value, json};

use crate::Bench;

const CASES: &str = include_str!("../../crates/frontend/src/tests/checks.txt");

/// A case of `checks.txt`: its context's files, its flags, and whether BuildKit may be too old for it.
struct Case {
    title: &'static str,
    files: Vec<(&'static str, String)>,
    flags: Vec<String>,
    newer: bool,
}

fn cases() -> Vec<Case> {
    CASES.split("=== ").skip(1).map(case).collect()
}

fn case(block: &'static str) -> Case {
    let (title, rest) = block.split_once('\n').unwrap();
    let mut case = Case { title, files: Vec::new(), flags: Vec::new(), newer: false };
    let mut crlf = false;
    for line in rest.split_inclusive('\n') {
        match (line.strip_prefix("--- "), case.files.last_mut()) {
            (Some(name), _) => case.files.push((name.trim_end(), String::new())),
            (None, Some((_, content))) => content.push_str(line),
            (None, None) => match line.trim_end().split_once(": ").unwrap_or((line.trim_end(), "")) {
                ("args", args) => case.flags.extend(args.split(' ').map(|arg| format!("--build-arg={arg}"))),
                ("target", target) => case.flags.push(format!("--target={target}")),
                ("crlf", _) => crlf = true,
                ("newer", _) => case.newer = true,
                (other, _) => panic!("{title}: {other}"),
            },
        }
    }
    case.files.retain(|(name, _)| *name != "found");
    if crlf {
        for (_, content) in &mut case.files {
            *content = content.replace('\n', "\r\n");
        }
    }
    case
}

fn write(dir: &Path, files: &[(&str, String)]) {
    fs::create_dir_all(dir).unwrap();
    for (name, content) in files {
        fs::write(dir.join(name), content).unwrap();
    }
}

/// `docker buildx build` with `args` on `context`.
fn buildx(peers: &Peers, context: &Path, args: &[&str]) -> Run {
    let mut command = peers.docker();
    command.args(["buildx", "build"]).args(args).arg(context);
    Run::from(command.output().unwrap())
}

/// The warnings of a document of the checks, without the order that BuildKit does not keep.
fn warnings(document: &Value) -> Vec<String> {
    let mut list: Vec<String> =
        document["warnings"].as_array().into_iter().flatten().map(ToString::to_string).collect();
    list.sort();
    list
}

fn words(error: &Value) -> BTreeSet<String> {
    error["message"].as_str().unwrap_or_default().split([' ', ',']).map(str::to_owned).collect()
}

/// F1-140 to F1-161, F1-008, F1-009: the document of `--call=check,format=json` is BuildKit's, and so is the exit code
/// where the Dockerfile is not wrong.
#[test]
fn checks_find_what_buildkit_finds() {
    let (Some(peers), Some(engine)) = (available(Peers::start()), available(Engine::new(Who::Root))) else { return };
    let mut wrong = Vec::new();
    for (number, case) in cases().into_iter().enumerate().filter(|(_, case)| !case.newer) {
        let dir = engine.work().join(format!("case-{number}"));
        write(&dir, &case.files);
        let mut args = vec!["--call=check,format=json"];
        args.extend(case.flags.iter().map(String::as_str));
        let theirs = buildx(&peers, &dir, &args);
        let mut all = vec!["build"];
        all.extend(&args);
        let context = dir.to_string_lossy().into_owned();
        all.push(&context);
        let ours = engine.run(&all).unwrap();
        let Ok(expected) = serde_json::from_str::<Value>(&theirs.stdout) else {
            // An argument that is not understood: there is no document.
            if ours.code != Some(2) {
                wrong.push(format!("{}: {theirs:?}, {ours:?}", case.title));
            }
            continue;
        };
        let found: Value = serde_json::from_str(&ours.stdout).unwrap_or_else(|_| panic!("{}: {ours:?}", case.title));
        let is_lint = words(&expected["buildError"]).contains("lint");
        let same_error = match (expected.get("buildError"), found.get("buildError")) {
            (Some(theirs), Some(ours)) => !is_lint || words(theirs) == words(ours),
            (None, None) => true,
            _ => false,
        };
        let code = if expected.get("buildError").is_some() && !is_lint { Some(2) } else { theirs.code };
        let same_source = expected["sources"][0]["data"] == found["sources"][0]["data"];
        if warnings(&expected) != warnings(&found) || !same_error || !same_source || ours.code != code {
            wrong.push(format!("{}:\n{:#?}\n{:#?}\n{ours:?}", case.title, warnings(&expected), warnings(&found)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What `--check` prints for people, F1-162, F1-163 and F1-164 in text and JSON: the same bytes, but for sources' graphs.
#[test]
fn answers_are_printed_as_buildx_prints_them() {
    let (Some(peers), Some(engine)) = (available(Peers::start()), available(Engine::new(Who::Root))) else { return };
    let dockerfile = "# VERSION to take\nARG VERSION=1\nFROM scratch AS first\n\n# what all start from\n#\n# second is the one\n\
                      FROM --platform=$BUILDPLATFORM scratch AS second\n# NAME of it\nARG NAME=${VERSION}\nARG LONG_NAME_OF_AN_ARGUMENT\n\
                      RUN --mount=type=secret,id=token,required --mount=type=ssh true\n\
                      COPY --from=first \\\n  a \\\n  b /\n\nFROM scratch AS last\nCOPY --from=second / /\n";
    let bad = "FROM scratch as A\nMAINTAINER <me> & \"you\"\nENV a b\n\nRUN \\\n  x \\\n\n  y\nCMD\tx\n";
    for (name, text) in
        [("outline", dockerfile), ("bad", bad), ("plain", "FROM scratch\n"), ("wrong", "FROM scratch\nCMD x\nCOPY a\n")]
    {
        let dir = engine.work().join(name);
        write(&dir, &[("Dockerfile", text.to_owned()), ("Other", text.to_owned())]);
        for args in [
            &["--check"][..],
            &["--call=check,ignorestatus=1"],
            &["--call=outline"],
            &["--call=outline", "--target=second", "--build-arg=VERSION=9"],
            &["--call=outline,format=json"],
            &["--call=outline,format=json", "--target=second"],
            &["--call=targets"],
            &["--call=targets,format=json"],
            &["--call=subrequests.describe"],
            &["--call=subrequests.describe,format=json"],
        ] {
            let theirs = buildx(&peers, &dir, args);
            let mut all = vec!["build"];
            all.extend(args);
            let context = dir.to_string_lossy().into_owned();
            all.push(&context);
            let ours = engine.run(&all).unwrap();
            if args[0].ends_with("json") && theirs.code == Some(0) {
                let document =
                    |run: &Run| serde_json::from_str::<Value>(&run.stdout).unwrap_or_else(|_| panic!("{run:?}"));
                assert_eq!(document(&ours), document(&theirs), "{name} {args:?}");
            } else {
                assert_eq!(ours.stdout, theirs.stdout, "{name} {args:?}: {}", ours.stderr);
            }
            // What is wrong with a Dockerfile is invalid input here.
            let code = if theirs.stderr.contains("ERROR: ") { Some(2) } else { theirs.code };
            assert_eq!(ours.code, code, "{name} {args:?}: {}\n{}", ours.stderr, theirs.stderr);
        }
    }
}

/// F1-060, F1-153: a base that is for another platform only.
#[test]
fn a_base_for_another_platform_is_found() {
    let (Some(peers), Some(engine)) = (available(Peers::start()), available(Engine::new(Who::Root))) else { return };
    let base = format!("{}/checks/arm64", peers.registry());
    let context = engine.context("arm64", &[("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")]).unwrap();
    let context = context.to_string_lossy().into_owned();
    engine.ok(["build", "--platform=linux/arm64", "--push", "-t", &base, &context]).unwrap();
    let dir = engine.work().join("check");
    let dockerfile = format!("FROM {base} AS a\nFROM --platform=$BUILDPLATFORM {base}\nCOPY --from={base} /x /\n");
    write(&dir, &[("Dockerfile", dockerfile)]);
    let theirs = buildx(&peers, &dir, &["--call=check,format=json"]);
    let dir = dir.to_string_lossy().into_owned();
    let ours = engine.run(["build", "--call=check,format=json", &dir]).unwrap();
    let document = |run: &Run| serde_json::from_str::<Value>(&run.stdout).unwrap_or_else(|_| panic!("{run:?}"));
    let found = warnings(&document(&ours));
    assert_eq!(found, warnings(&document(&theirs)), "{theirs:?}");
    assert_eq!(found.iter().filter(|found| found.contains("InvalidBaseImagePlatform")).count(), 3, "{found:#?}");
}

/// The graph as JSON: what `convertllb` of BuildKit's master prints, of the target and of the bases that a build would take.
#[test]
fn f1_165_the_graph_of_a_target() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let dockerfile = "FROM base AS first\nRUN make\nFROM scratch\nCOPY Dockerfile /\n";
    let ask = |more: &[&str]| {
        let run =
            bench.build("graph", &[("Dockerfile", dockerfile)], &[&["--call=convertllb,format=json"], more].concat());
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        serde_json::from_str::<Value>(&run.stdout).unwrap_or_else(|_| panic!("{run:?}"))
    };
    let ops = |document: &Value, kind: &str| {
        let ops: Vec<Value> =
            document["def"].as_object().unwrap().values().filter_map(|op| op.get(kind).cloned()).collect();
        ops
    };
    let first = ask(&["--target=first"]);
    assert_eq!(first["def"].as_object().unwrap().len(), 3, "{first:#}");
    assert_eq!(ops(&first, "exec")[0]["meta"]["args"], serde_json::json!(["/bin/sh", "-c", "make"]), "{first:#}");
    assert!(ops(&first, "source")[0]["identifier"].as_str().unwrap().contains("@sha256:"), "{first:#}");
    let last = ask(&[]);
    assert_eq!(ops(&last, "file")[0]["actions"][0]["copy"]["dest"], "/", "{last:#}");
    let keys = |part: &str| -> Vec<String> { last[part].as_object().unwrap().keys().cloned().collect() };
    assert_eq!(keys("def"), keys("metadata"));
    assert_eq!(last["source"]["infos"][0]["filename"], "Dockerfile");
}

/// F1-008: with `error=true` a build with findings fails before anything runs, and names the rules.
#[test]
fn findings_fail_a_build_that_asks_for_it() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let dockerfile = "# check=error=true\nFROM base as build\nRUN echo ran >&2\nCMD x\n";
    let run = bench.build("error", &[("Dockerfile", dockerfile)], &[]);
    assert_eq!(run.code, Some(2), "{}", run.stderr);
    assert!(run.stderr.contains("lint violation found for rules: FromAsCasing, JSONArgsRecommended"), "{}", run.stderr);
    assert!(run.stderr.contains("WARN: FromAsCasing: 'as' and 'FROM' keywords' casing do not match (line 2)"));
    assert!(!run.stderr.contains("ran\n"), "{}", run.stderr);
    let run = bench.build("error", &[("Dockerfile", dockerfile)], &["--build-arg=BUILDKIT_DOCKERFILE_CHECK=skip=all"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
}

/// Warnings are shown while a build runs and summed up at its end, once for all platforms.
#[test]
fn a_build_warns_once_for_all_platforms() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let files = [("Dockerfile", "FROM scratch as build\nCOPY Dockerfile /$NOTHING\n")];
    let run = bench.build("warn", &files, &["--platform=linux/amd64,linux/arm64", "--verbose"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(run.stderr.matches("WARN: ").count(), 2, "{}", run.stderr);
    for part in [
        "WARN: UndefinedVar: Usage of undefined variable '$NOTHING' (line 2)",
        " 2 warnings found",
        " - FromAsCasing: 'as' and 'FROM' keywords' casing do not match (line 1)",
        "More info: https://docs.docker.com/go/dockerfile/rule/from-as-casing/",
    ] {
        assert!(run.stderr.contains(part), "{part}\n{}", run.stderr);
    }
    let run = bench.build("warn", &files, &["--progress=rawjson"]);
    let warnings: Vec<Value> = run
        .stderr
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|value| value.get("warnings").cloned())
        .collect();
    assert_eq!(warnings.len(), 2, "{}", run.stderr);
    assert_eq!(warnings[0][0]["url"], "https://docs.docker.com/go/dockerfile/rule/from-as-casing/");
    assert_eq!(warnings[0][0]["range"][0]["start"]["line"], 1);
}

/// `validate`: form 3 of the command line's specification, and the forms for people.
#[test]
fn validate_says_what_is_wrong_without_building() {
    let Some(engine) = available(Engine::new(Who::Root)) else { return };
    let bad = "FROM scratch as A\nCOPY secret $X /\nRUN --mount=type=bind,from=missing-image,target=/m true\n";
    engine
        .context(
            "app",
            &[
                ("Dockerfile", bad),
                (".dockerignore", "secret\n"),
                ("broken", "FROM scratch\nFROZ x\nCOPY --chwon=1 a b\n"),
            ],
        )
        .unwrap();
    let run = engine.run(["validate", "--format", "json", "--offline", "-f", "app/Dockerfile", "app"]).unwrap();
    let line = |rule: &str, line: u32, message: &str| json!({"rule": rule, "level": "warning", "line": line, "message": message});
    let document: Value = serde_json::from_str(&run.stdout).unwrap();
    let expected = json!({"diagnostics": [
        line("StageNameCasing", 1, "Stage name 'A' should be lowercase"),
        line("FromAsCasing", 1, "'as' and 'FROM' keywords' casing do not match"),
        line("UndefinedVar", 2, "Usage of undefined variable '$X'"),
        line("CopyIgnoredFile", 2, "Attempting to Copy file \"secret\" that is excluded by .dockerignore"),
    ]});
    assert_eq!((document, run.code), (expected, Some(0)), "{}", run.stderr);
    assert!(!engine.store().exists(), "no store is made");

    let run = engine.run(["validate", "--strict", "--format=github", "app/Dockerfile"]).unwrap();
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(
        run.stdout.starts_with("::warning file=app/Dockerfile,line=1,endLine=1,title=StageNameCasing::Stage name"),
        "{}",
        run.stdout
    );

    let run = engine.run(["validate", "app/Dockerfile", "app/broken", "app/none"]).unwrap();
    assert_eq!(run.code, Some(2), "{}", run.stderr);
    for part in [
        "app/broken:2: error: unknown instruction: FROZ (did you mean FROM?) [unknown-instruction]",
        "app/broken:3: error: unknown flag: --chwon (did you mean chown?) [unknown-flag]",
        "app/none: error: ",
        "app/Dockerfile:1: warning: ",
    ] {
        assert!(run.stdout.contains(part), "{part}\n{}", run.stdout);
    }
    let run = engine.run(["validate", "--format=sarif", "app/broken"]).unwrap();
    let log: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(log["runs"][0]["results"][0]["ruleId"], "unknown-instruction");

    let run = engine.run(["validate", "-f", "app/Dockerfile", "app/broken"]).unwrap();
    assert_eq!(run.code, Some(2), "{}", run.stderr);
    assert!(run.stderr.contains("build context"), "{}", run.stderr);
}
