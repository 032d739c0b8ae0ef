//! Conformance: every case of `conformance/cases` is built by BuildKit and by the engine, and the two images are compared.
//!
//! Compared are the config, the shape of the history, the manifest, the names in each layer and the whole file tree
//! (owners, modes, links, content, extended attributes, times that the build did not set), of each platform; with a second
//! build, which steps came from the cache; with `call`, what is printed; or, where the build must fail, that both fail.
//! BuildKit's outcome is kept below `target/testkit/oracle`, by the hash of the case, of the bases and of BuildKit's version.
//!
//! `BUILD_ENGINE_CONFORMANCE=oracle` builds with BuildKit alone, to check the cases themselves; `=user` or `=root` runs the
//! engine as that user only, `=plain` as root without its shortcuts (`--fast-paths=false`), which may change no image; `=write` runs everything and, if all of it passed, writes the table of the rows,
//! `docs/conformance.md` (`make conformance`); `=table` writes that table and runs nothing. `cargo test -p build-engine-tests --test conformance -- copy` runs the cases with `copy` in
//! their names.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use anyhow::{Context as _, Result, bail, ensure};
use build_engine_testkit::engine::{Engine, Who};
use build_engine_testkit::image::images_of_archive;
use build_engine_testkit::peers::Peers;
use build_engine_testkit::report::{Difference, Report, differences, report};
use build_engine_testkit::{Unavailable, cache_dir, fixtures, foreign, sha256, workspace};
use build_engine_tests::case::{Case, Place, matches};
use build_engine_tests::evidence::Evidence;
use build_engine_tests::served::Served;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use serde_json::{Value, json};

/// What a builder made of a case.
enum Outcome {
    Image(Report),
    Answer(Report),
    Failed(String),
}

impl Outcome {
    fn describe(&self) -> String {
        match self {
            Outcome::Image(_) => "an image".to_owned(),
            Outcome::Answer(_) => "an answer".to_owned(),
            Outcome::Failed(message) => format!("a failure:\n{message}"),
        }
    }
}

/// Bumped when a report of the same image has other lines than before.
const REPORT_EDITION: u32 = 7;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mode = std::env::var("BUILD_ENGINE_CONFORMANCE").unwrap_or_default();
    if mode == "table" {
        return written("no case was run");
    }
    let cases = Case::all(&workspace().join("tests/conformance/cases")).expect("the cases can be read");
    let whos: &[Option<Who>] = match mode.as_str() {
        "oracle" => &[None],
        "root" | "plain" => &[Some(Who::Root)],
        "user" => &[Some(Who::User)],
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
    if mode != "write" {
        trials.push(Trial::test("every-row-has-evidence", every_row_has_evidence));
        trials.push(Trial::test("the-table-is-not-stale", table_is_not_stale));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Statics are not dropped; their stores would stay.
    for shared in [&ROOT, &USER] {
        shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    }
    SERVED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    let skipped = SKIPPED.load(Ordering::Relaxed);
    if mode == "write" && !conclusion.has_failed() {
        if skipped > 0 || conclusion.num_filtered_out > 0 {
            say(&format!(
                "the table was not written: {skipped} cases were skipped, {} left out",
                conclusion.num_filtered_out
            ));
            return ExitCode::FAILURE;
        }
        return written("every case was compared with BuildKit");
    }
    conclusion.exit_code()
}

/// How many cases could not be compared on this machine.
static SKIPPED: AtomicUsize = AtomicUsize::new(0);

#[allow(clippy::print_stderr, reason = "a test program says what it did")]
fn say(text: &str) {
    eprintln!("{text}");
}

fn table_path() -> PathBuf {
    workspace().join("docs/conformance.md")
}

fn written(how: &str) -> ExitCode {
    let write = || -> Result<()> { Ok(fs::write(table_path(), Evidence::read(&workspace())?.table())?) };
    match write() {
        Ok(()) => {
            say(&format!("wrote docs/conformance.md; {how}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("cannot write docs/conformance.md: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn every_row_has_evidence() -> Result<(), Failed> {
    let evidence = Evidence::read(&workspace()).map_err(|error| format!("{error:#}"))?;
    match evidence.missing()[..] {
        [] => Ok(()),
        ref rows => {
            Err(format!("no test shows {}, and tests/conformance/pending.txt has no such line", rows.join(" ")).into())
        }
    }
}

fn table_is_not_stale() -> Result<(), Failed> {
    let evidence = Evidence::read(&workspace()).map_err(|error| format!("{error:#}"))?;
    if fs::read_to_string(table_path()).unwrap_or_default() == evidence.table() {
        return Ok(());
    }
    Err("docs/conformance.md is not what the tests make: run `make conformance`, or, where all of them pass, the same with \
         `BUILD_ENGINE_CONFORMANCE=table`"
        .into())
}

fn run(case: &Case, who: Option<Who>) -> Result<Completion, Failed> {
    match check(case, who) {
        Ok(()) => Ok(Completion::Completed),
        Err(error) if error.is::<NotForThem>() => Ok(Completion::ignored_with(format!("{error}"))),
        Err(error) if error.is::<Unavailable>() && std::env::var_os("BUILD_ENGINE_NO_SKIP").is_none() => {
            SKIPPED.fetch_add(1, Ordering::Relaxed);
            Ok(Completion::ignored_with(format!("{error:#}")))
        }
        Err(error) => Err(format!("{} ({})\n{error:#}", case.title, case.rows.join(" ")).into()),
    }
}

fn check(case: &Case, who: Option<Who>) -> Result<()> {
    let expected = oracle(case)?;
    match (&expected, case.must_fail()) {
        (Outcome::Image(_) | Outcome::Answer(_), true) => {
            bail!("the case says that the build fails, and BuildKit succeeds")
        }
        (Outcome::Failed(message), false) => bail!("BuildKit fails:\n{message}"),
        (Outcome::Failed(message), true) => {
            for part in &case.oracle_fails {
                ensure!(message.contains(part), "BuildKit's message has no `{part}`:\n{message}");
            }
        }
        (Outcome::Image(_) | Outcome::Answer(_), false) => {}
    }
    let Some(who) = who else { return Ok(()) };
    if let Some((needed, reason)) = &case.needs
        && (needed == "root") != (who == Who::Root)
    {
        return Err(NotForThem(reason.clone()).into());
    }
    let (actual, code) = engine(case, who)?;
    let found = match (&expected, &actual) {
        (Outcome::Image(expected), Outcome::Image(actual)) | (Outcome::Answer(expected), Outcome::Answer(actual)) => {
            differences(expected, actual)
        }
        (Outcome::Failed(_), Outcome::Failed(message)) => {
            for part in &case.fails {
                ensure!(message.contains(part), "the engine's message has no `{part}`:\n{message}");
            }
            let exit = case.exit.unwrap_or(2);
            ensure!(code == Some(exit), "the engine ended with {code:?}, not with {exit}:\n{message}");
            Vec::new()
        }
        (expected, actual) => vec![outcome(expected.describe(), format!("{} (exit code {code:?})", actual.describe()))],
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

/// The case is for the other user. Meant, so that it is no skipped test.
#[derive(Debug)]
struct NotForThem(String);

impl std::fmt::Display for NotForThem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotForThem {}

/// One builder succeeds, and the other fails.
fn outcome(expected: String, actual: String) -> Difference {
    Difference { key: "outcome".to_owned(), expected: Some(expected), actual: Some(actual) }
}

/// BuildKit's outcome, from an earlier run if the case has not changed since.
fn oracle(case: &Case) -> Result<Outcome> {
    if case.wants_foreign() {
        foreign::busybox()?;
    }
    static FRESH: Mutex<BTreeMap<String, Value>> = Mutex::new(BTreeMap::new());
    if !case.is_kept() {
        // Root's and the user's trial of one case are compared with the same outcome.
        let mut fresh = FRESH.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !fresh.contains_key(&case.name) {
            fresh.insert(case.name.clone(), document(&ask_oracle(case, &fixtures::busybox()?, &fixtures::multi()?)?));
        }
        return parse_outcome(&fresh[&case.name]);
    }
    let (base, multi) = (fixtures::busybox()?, fixtures::multi()?);
    let version = oracle_version(&Peers::start()?)?;
    let (digest, multi_digest) = (fixtures::manifest_digest(&base)?, fixtures::manifest_digest(&multi)?);
    let key = sha256(format!("{REPORT_EDITION} {} {digest} {multi_digest} {version}", case.hash).as_bytes());
    let kept = cache_dir("oracle")?.join(format!("{}-{}.json", case.name, &key[..16]));
    if let Ok(bytes) = fs::read(&kept) {
        return parse_outcome(&serde_json::from_slice(&bytes)?);
    }
    let outcome = ask_oracle(case, &base, &multi)?;
    // Root's and the user's trial of one case may both get here.
    let mut part = tempfile::NamedTempFile::new_in(cache_dir("oracle")?)?;
    part.write_all(&serde_json::to_vec_pretty(&document(&outcome))?)?;
    part.persist(&kept)?;
    Ok(outcome)
}

fn ask_oracle(case: &Case, base: &Path, multi: &Path) -> Result<Outcome> {
    let peers = Peers::start()?;
    let dir = tempfile::tempdir()?;
    let values = values(case)?;
    // BuildKit takes contexts of one name for states of one context, and the folders of what it then leaves alone get new
    // times: so another name each time.
    let context = dir.path().join(dir.path().file_name().context("a temporary folder has a name")?);
    std::os::unix::fs::symlink("context", &context)?;
    let out = dir.path().join("out.tar");
    let place = Place { dir: dir.path(), context: &context, base, multi, out: &out, values: &values };
    let mut command = |is_second: bool| {
        let mut command = peers.docker();
        command.args(["buildx", "build", "--provenance=false"]);
        if !is_second {
            // What an earlier build left in the cache has that build's times.
            command.arg("--no-cache");
        }
        command.args(case.arguments(&place, is_second));
        Ok(command)
    };
    let (outcome, _) = outcome_of(case, &place, &mut command, &|_| Ok(()))?;
    if let Outcome::Failed(message) = &outcome {
        // Not an answer about the case, so nothing to keep.
        ensure!(!message.contains("Cannot connect to the Docker daemon"), "{message}");
    }
    Ok(outcome)
}

/// Writes the case, runs one builder once or twice, and reads what it made, with the exit code.
fn outcome_of(
    case: &Case,
    place: &Place<'_>,
    command: &mut dyn FnMut(bool) -> Result<Command>,
    adopt: &dyn Fn(&Path) -> Result<()>,
) -> Result<(Outcome, Option<i32>)> {
    case.write(place.dir, place.values)?;
    adopt(place.dir)?;
    let mut run = |is_second: bool| -> Result<Output> {
        let mut command = command(is_second)?;
        command.envs(case.env.iter().map(|(name, value)| (name, place.fill(value))));
        if let Some(path) = &case.stdin {
            command.stdin(fs::File::open(place.dir.join("context").join(path))?);
        }
        command.output().with_context(|| format!("cannot run {command:?}"))
    };
    let mut output = run(false)?;
    if case.call.is_some() {
        let stdout = place.hide(&String::from_utf8_lossy(&output.stdout));
        let mut report = answer_report(&stdout);
        report.insert("succeeds".to_owned(), output.status.success().to_string());
        if report.len() > 1 {
            return Ok((Outcome::Answer(report), output.status.code()));
        }
    }
    let mut steps = Report::new();
    if output.status.success() && case.is_twice() {
        case.change(place.dir, place.values)?;
        adopt(place.dir)?;
        output = run(true)?;
        steps = steps_report(&String::from_utf8_lossy(&output.stderr));
    }
    if !output.status.success() {
        return Ok((Outcome::Failed(String::from_utf8_lossy(&output.stderr).into_owned()), output.status.code()));
    }
    let images = images_of_archive(place.out)?;
    let mut whole = steps;
    for (platform, image) in &images {
        let report = report(image, case.epoch.is_some());
        let prefix = if images.len() == 1 { String::new() } else { format!("[{platform}] ") };
        whole.extend(report.into_iter().map(|(key, value)| (format!("{prefix}{key}"), value)));
    }
    Ok((Outcome::Image(whole), output.status.code()))
}

/// The placeholders of `case`, after a start of the server if it wants one.
fn values(case: &Case) -> Result<Vec<(String, String)>> {
    let nonce = format!(
        "{}-{}",
        std::process::id(),
        NONCE.get_or_init(|| std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |time| time.as_nanos()))
    );
    let mut values = vec![("{nonce}".to_owned(), nonce)];
    if case.is_served() {
        let mut served = SERVED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if served.is_none() {
            *served = Some(Served::start()?);
        }
        let served = served.as_ref().context("the server was just started")?;
        values.extend(served.offer(&case.name, |dir| case.write_served(dir))?);
    }
    Ok(values)
}

static NONCE: OnceLock<u128> = OnceLock::new();
static SERVED: Mutex<Option<Served>> = Mutex::new(None);

/// What `--call` printed, line by line, or value by value where it is JSON.
fn answer_report(stdout: &str) -> Report {
    fn flatten(report: &mut Report, key: &str, value: &Value) {
        match value {
            Value::Object(members) => {
                // How BuildKit got the Dockerfile, with the session's id, is no answer to the question.
                members
                    .iter()
                    .filter(|(name, _)| *name != "definition")
                    .for_each(|(name, value)| flatten(report, &format!("{key}.{name}"), value));
            }
            Value::Array(values) => {
                values.iter().enumerate().for_each(|(index, value)| flatten(report, &format!("{key}[{index}]"), value));
            }
            other => drop(report.insert(key.to_owned(), other.to_string())),
        }
    }
    let mut report = Report::new();
    match serde_json::from_str::<Value>(stdout) {
        Ok(value) => flatten(&mut report, "answer", &value),
        Err(_) => report
            .extend(stdout.lines().enumerate().map(|(n, line)| (format!("line {n:03}"), line.trim_end().to_owned()))),
    }
    report
}

/// Whether each step of a Dockerfile came from the cache, as `--progress=rawjson` tells it.
fn steps_report(stderr: &str) -> Report {
    let mut report = Report::new();
    for status in stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        for vertex in status["vertexes"].as_array().into_iter().flatten() {
            let name = vertex["name"].as_str().unwrap_or_default();
            if name.starts_with('[')
                && !["[internal]", "[context "].iter().any(|start| name.starts_with(start))
                && !name.contains(" FROM ")
                && !vertex["completed"].is_null()
            {
                let cached = vertex["cached"].as_bool().unwrap_or_default();
                report.insert(format!("step {name}"), if cached { "cached" } else { "executed" }.to_owned());
            }
        }
    }
    report
}

fn document(outcome: &Outcome) -> Value {
    match outcome {
        Outcome::Image(report) => json!({ "image": report }),
        Outcome::Answer(report) => json!({ "answer": report }),
        Outcome::Failed(message) => json!({ "failed": message }),
    }
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
    let read = |name: &str| -> Option<Report> {
        let lines = document[name].as_object()?;
        Some(lines.iter().map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect())
    };
    let image = read("image").map(Outcome::Image);
    image.or_else(|| read("answer").map(Outcome::Answer)).context("a kept outcome is an image, an answer or a failure")
}

/// The engine's outcome, with its exit code. All cases of this process share one store for each user.
fn engine(case: &Case, who: Who) -> Result<(Outcome, Option<i32>)> {
    let shared = shared_engine(who)?;
    if case.wants_foreign() {
        shared.engine.base(&foreign::busybox()?)?;
    }
    let dir = shared.engine.work().join(&case.name);
    let values = values(case)?;
    let (context, out) = (dir.join("context"), dir.join("out.tar"));
    let (base, multi) = (&shared.base, &shared.multi);
    let place = Place { dir: &dir, context: &context, base, multi, out: &out, values: &values };
    let mut command = |is_second| {
        let mut args = vec!["build".to_owned()];
        if std::env::var("BUILD_ENGINE_CONFORMANCE").is_ok_and(|mode| mode == "plain") {
            args.push("--fast-paths=false".to_owned());
        }
        args.extend(case.arguments(&place, is_second));
        Ok(shared.engine.command(args))
    };
    let found = outcome_of(case, &place, &mut command, &|dir| shared.engine.adopt(dir))?;
    fs::remove_dir_all(&dir)?;
    Ok(found)
}

/// One engine, with its store, and the bases that it was given.
#[derive(Clone)]
struct Shared {
    engine: Arc<Engine>,
    base: PathBuf,
    multi: PathBuf,
}

type Made = Option<Result<Shared, String>>;

static ROOT: Mutex<Made> = Mutex::new(None);
static USER: Mutex<Made> = Mutex::new(None);

fn shared_engine(who: Who) -> Result<Shared> {
    let shared = if who == Who::Root { &ROOT } else { &USER };
    let mut shared = shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let made = shared.get_or_insert_with(|| prepare(who).map_err(|error| format!("{error:#}")));
    made.clone().map_err(|reason| anyhow::anyhow!(reason))
}

fn prepare(who: Who) -> Result<Shared> {
    let (base, multi) = (fixtures::busybox()?, fixtures::multi()?);
    let engine = Engine::new(who)?;
    let (base, multi) = (engine.base(&base)?, engine.base(&multi)?);
    Ok(Shared { engine: Arc::new(engine), base, multi })
}
