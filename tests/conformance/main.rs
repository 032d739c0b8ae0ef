//! Conformance: every case of `conformance/cases` is built by BuildKit and by the engine, and the two images are compared.
//!
//! Compared are the config, the shape of the history, the number of layers and the whole file tree (owners, modes, links,
//! content, extended attributes), or, where the build must fail, that both fail. BuildKit's outcome is kept below
//! `target/testkit/oracle`, by the hash of the case, of the base image and of BuildKit's version.
//!
//! `BUILD_ENGINE_CONFORMANCE=oracle` builds with BuildKit alone, to check the cases themselves; `=user` or `=root` runs the
//! engine as that user only. `cargo test -p build-engine-tests --test conformance -- copy` runs the cases with `copy` in
//! their names.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, bail, ensure};
use build_engine_testkit::engine::{Engine, Who};
use build_engine_testkit::image::image_of_archive;
use build_engine_testkit::peers::Peers;
use build_engine_testkit::report::{Difference, Report, differences, report};
use build_engine_testkit::{Unavailable, cache_dir, sha256, workspace};
use build_engine_testkit::{fixtures, foreign};
use build_engine_tests::case::{Case, matches};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use serde_json::{Value, json};

/// What a builder made of a case.
enum Outcome {
    Image(Report),
    Failed(String),
}

/// Bumped when a report of the same image has other lines than before.
const REPORT_EDITION: u32 = 3;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let cases = Case::all(&workspace().join("tests/conformance/cases")).expect("the cases can be read");
    let whos: &[Option<Who>] = match std::env::var("BUILD_ENGINE_CONFORMANCE").as_deref() {
        Ok("oracle") => &[None],
        Ok("root") => &[Some(Who::Root)],
        Ok("user") => &[Some(Who::User)],
        _ => &[Some(Who::Root), Some(Who::User)],
    };
    let mut trials = Vec::new();
    for case in cases {
        let case = Arc::new(case);
        for &who in whos {
            let case = Arc::clone(&case);
            let kind = who.map_or("oracle", |who| if who == Who::Root { "root" } else { "user" });
            trials.push(Trial::ignorable_test(case.name.clone(), move || run(&case, who)).with_kind(kind));
        }
    }
    let code = libtest_mimic::run(&arguments, trials).exit_code();
    // Statics are not dropped; their stores would stay.
    for shared in [&ROOT, &USER] {
        shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    }
    code
}

fn run(case: &Case, who: Option<Who>) -> Result<Completion, Failed> {
    match check(case, who) {
        Ok(()) => Ok(Completion::Completed),
        Err(error) if error.is::<Unavailable>() && std::env::var_os("BUILD_ENGINE_NO_SKIP").is_none() => {
            Ok(Completion::ignored_with(format!("{error:#}")))
        }
        Err(error) => Err(format!("{} ({})\n{error:#}", case.title, case.rows.join(" ")).into()),
    }
}

fn check(case: &Case, who: Option<Who>) -> Result<()> {
    let expected = oracle(case)?;
    match (&expected, case.must_fail()) {
        (Outcome::Image(_), true) => bail!("the case says that the build fails, and BuildKit succeeds"),
        (Outcome::Failed(message), false) => bail!("BuildKit fails:\n{message}"),
        (Outcome::Failed(message), true) => {
            for part in &case.oracle_fails {
                ensure!(message.contains(part), "BuildKit's message has no `{part}`:\n{message}");
            }
        }
        (Outcome::Image(_), false) => {}
    }
    let Some(who) = who else { return Ok(()) };
    let (actual, code) = engine(case, who)?;
    let found = match (&expected, &actual) {
        (Outcome::Image(expected), Outcome::Image(actual)) => differences(expected, actual),
        (Outcome::Failed(_), Outcome::Failed(message)) => {
            for part in &case.fails {
                ensure!(message.contains(part), "the engine's message has no `{part}`:\n{message}");
            }
            let exit = case.exit.unwrap_or(2);
            ensure!(code == Some(exit), "the engine ended with {code:?}, not with {exit}:\n{message}");
            Vec::new()
        }
        (Outcome::Image(_), Outcome::Failed(message)) => {
            vec![outcome("an image".to_owned(), format!("exit code {code:?}:\n{message}"))]
        }
        (Outcome::Failed(message), Outcome::Image(_)) => {
            vec![outcome(format!("a failure:\n{message}"), "an image".to_owned())]
        }
    };
    for deviation in &case.deviations {
        let shows = found.iter().any(|difference| matches(&deviation.keys, &difference.key));
        ensure!(shows, "the deviation `{}` ({}) does not show any more: take it out", deviation.keys, deviation.reason);
    }
    let unexpected: Vec<String> = found
        .iter()
        .filter(|difference| !case.deviations.iter().any(|deviation| matches(&deviation.keys, &difference.key)))
        .map(ToString::to_string)
        .collect();
    ensure!(unexpected.is_empty(), "the engine's image differs from BuildKit's:\n{}", unexpected.join("\n"));
    Ok(())
}

/// One builder succeeds, and the other fails.
fn outcome(expected: String, actual: String) -> Difference {
    Difference { key: "outcome".to_owned(), expected: Some(expected), actual: Some(actual) }
}

/// BuildKit's outcome, from an earlier run if the case has not changed since.
fn oracle(case: &Case) -> Result<Outcome> {
    let base = fixtures::busybox()?;
    if case.wants_foreign() {
        foreign::busybox()?;
    }
    let peers = Peers::start()?;
    let version = oracle_version(&peers)?;
    let key =
        sha256(format!("{REPORT_EDITION} {} {} {version}", case.hash, fixtures::manifest_digest(&base)?).as_bytes());
    let kept = cache_dir("oracle")?.join(format!("{}-{}.json", case.name, &key[..16]));
    if let Ok(bytes) = fs::read(&kept) {
        return parse_outcome(&serde_json::from_slice(&bytes)?);
    }
    let dir = tempfile::tempdir()?;
    case.write(dir.path())?;
    let out = dir.path().join("out.tar");
    let output = peers
        .docker()
        .args(["buildx", "build", "--provenance=false"])
        .args(case.arguments(dir.path(), &base, &out))
        .output()
        .context("cannot run docker")?;
    let outcome = if output.status.success() {
        Outcome::Image(report(&image_of_archive(&out)?, case.epoch.is_some()))
    } else {
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        // Not an answer about the case, so nothing to keep.
        ensure!(!message.contains("Cannot connect to the Docker daemon"), "{message}");
        Outcome::Failed(message)
    };
    let document = match &outcome {
        Outcome::Image(report) => json!({ "image": report }),
        Outcome::Failed(message) => json!({ "failed": message }),
    };
    // Root's and the user's trial of one case may both get here.
    let mut part = tempfile::NamedTempFile::new_in(cache_dir("oracle")?)?;
    part.write_all(&serde_json::to_vec_pretty(&document)?)?;
    part.persist(&kept)?;
    Ok(outcome)
}

fn oracle_version(peers: &Peers) -> Result<String> {
    static VERSION: Mutex<Option<String>> = Mutex::new(None);
    let mut version = VERSION.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if version.is_none() {
        *version = Some(peers.docker_version()?);
    }
    version.clone().context("the version was just set")
}

fn parse_outcome(document: &Value) -> Result<Outcome> {
    if let Some(message) = document["failed"].as_str() {
        return Ok(Outcome::Failed(message.to_owned()));
    }
    let lines = document["image"].as_object().context("a kept outcome is an image or a failure")?;
    let line = |(key, value): (&String, &Value)| (key.clone(), value.as_str().unwrap_or_default().to_owned());
    Ok(Outcome::Image(lines.iter().map(line).collect()))
}

/// The engine's outcome, with its exit code. All cases of this process share one store for each user.
fn engine(case: &Case, who: Who) -> Result<(Outcome, Option<i32>)> {
    let (engine, base) = shared_engine(who)?;
    if case.wants_foreign() {
        engine.base(&foreign::busybox()?)?;
    }
    let dir = engine.work().join(&case.name);
    case.write(&dir)?;
    engine.adopt(&dir)?;
    let out = dir.join("out.tar");
    let mut args = vec!["build".to_owned()];
    args.extend(case.arguments(&dir, &base, &out));
    let run = engine.run(&args)?;
    let outcome = if run.code == Some(0) {
        Outcome::Image(report(&image_of_archive(&out)?, case.epoch.is_some()))
    } else {
        Outcome::Failed(run.stderr)
    };
    fs::remove_dir_all(&dir)?;
    Ok((outcome, run.code))
}

/// One engine, with its store, and the base image that it was given.
type Shared = Option<Result<(Arc<Engine>, PathBuf), String>>;

static ROOT: Mutex<Shared> = Mutex::new(None);
static USER: Mutex<Shared> = Mutex::new(None);

fn shared_engine(who: Who) -> Result<(Arc<Engine>, PathBuf)> {
    let shared = if who == Who::Root { &ROOT } else { &USER };
    let mut shared = shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let made = shared.get_or_insert_with(|| {
        prepare(who, &fixtures::busybox().map_err(|e| format!("{e:#}"))?).map_err(|e| format!("{e:#}"))
    });
    made.clone().map_err(|reason| anyhow::anyhow!(reason))
}

fn prepare(who: Who, base: &Path) -> Result<(Arc<Engine>, PathBuf)> {
    let engine = Engine::new(who)?;
    let base = engine.base(base)?;
    Ok((Arc::new(engine), base))
}
