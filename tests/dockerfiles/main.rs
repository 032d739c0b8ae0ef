//! Dockerfiles of other people: the parser understands each of them as BuildKit's own parser does.
//!
//! None is part of this repository. `BUILD_ENGINE_DOCKERFILES` names a folder with any number of them (every file in it, and
//! below, is taken for one); without it the test says that it skips. The judge is the Python module `dockerfile`, which
//! wraps BuildKit's parser: `pip install dockerfile`, into the interpreter that `BUILD_ENGINE_PYTHON` names (`python3`
//! otherwise).
//!
//! A difference becomes a case of its own in `tests/conformance/cases`, in words of our own.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use build_engine_testkit::engine::binary;
use build_engine_testkit::{Unavailable, available, workspace};
use serde_json::{Value, json};

#[test]
#[allow(clippy::print_stderr, reason = "the number of files is the result")]
fn dockerfiles_of_others_are_parsed_as_buildkit_parses_them() {
    let Some((files, python)) = available(prepare()) else { return };
    let expected = oracle(&python, &files).expect("the oracle answers");
    let mut differences = Vec::new();
    let mut instructions = 0;
    for (file, expected) in files.iter().zip(&expected) {
        let actual = parse(file).expect("the binary runs");
        instructions += expected["instructions"].as_array().map_or(0, Vec::len);
        if let Some(difference) = difference(expected, &actual) {
            differences.push(format!("{}: {difference}", file.display()));
        }
    }
    eprintln!("{} Dockerfiles with {instructions} instructions", files.len());
    assert!(differences.is_empty(), "{} differ:\n{}", differences.len(), differences.join("\n"));
}

fn prepare() -> Result<(Vec<PathBuf>, PathBuf)> {
    let dir = std::env::var_os("BUILD_ENGINE_DOCKERFILES")
        .ok_or_else(|| Unavailable("BUILD_ENGINE_DOCKERFILES names no folder with Dockerfiles".to_owned()))?;
    let python = std::env::var_os("BUILD_ENGINE_PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from);
    let status = Command::new(&python).args(["-c", "import dockerfile"]).stderr(Stdio::null()).status();
    if !status.is_ok_and(|status| status.success()) {
        let reason = format!("`{}` has no module `dockerfile` (pip install dockerfile)", python.display());
        return Err(Unavailable(reason).into());
    }
    let mut files = Vec::new();
    collect(Path::new(&dir), &mut files)?;
    files.sort();
    ensure!(!files.is_empty(), "`{}` has no files", Path::new(&dir).display());
    Ok((files, python))
}

/// Every file below `dir` that is text without NUL: the oracle's strings end at one.
fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read `{}`", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if fs::read_to_string(&path).is_ok_and(|text| !text.contains('\0') && !text.contains("\\u0000")) {
            files.push(path);
        }
    }
    Ok(())
}

fn oracle(python: &Path, files: &[PathBuf]) -> Result<Vec<Value>> {
    let mut child = Command::new(python)
        .arg(workspace().join("tests/dockerfiles/oracle.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("it was just piped")?;
    let output = BufReader::new(child.stdout.take().context("it was just piped")?);
    let names: Vec<String> = files.iter().map(|file| format!("{}\n", file.display())).collect();
    let writer = std::thread::spawn(move || names.iter().try_for_each(|name| input.write_all(name.as_bytes())));
    let answers = output.lines().map(|line| Ok(serde_json::from_str(&line?)?)).collect::<Result<Vec<Value>>>()?;
    writer.join().expect("it does not panic")?;
    ensure!(child.wait()?.success() && answers.len() == files.len(), "the oracle ended early");
    Ok(answers)
}

/// What the engine makes of a Dockerfile, in the oracle's form.
fn parse(file: &Path) -> Result<Value> {
    let output = Command::new(binary()?).args(["dockerfile", "parse", "--format", "json"]).arg(file).output()?;
    if !output.status.success() {
        return Ok(json!({ "error": String::from_utf8_lossy(&output.stderr) }));
    }
    let document: Value = serde_json::from_slice(&output.stdout)?;
    let instructions: Vec<Value> =
        document["instructions"].as_array().context("a list of instructions")?.iter().map(instruction).collect();
    Ok(json!({ "instructions": instructions }))
}

fn instruction(value: &Value) -> Value {
    let itself = if value["trigger"].is_null() { value } else { &value["trigger"] };
    let mut args = itself["args"].as_array().cloned().unwrap_or_default();
    if itself["name"] == "env" || itself["name"] == "label" {
        // The module's parser is from before the separator came into the list, as every third word.
        args = args.chunks(3).flat_map(|pair| pair.iter().take(2).cloned()).collect();
    }
    let heredocs: Vec<Value> = value["heredocs"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|doc| json!([doc["name"], doc["fd"], doc["content"]]))
        .collect();
    json!({
        "name": value["name"], "trigger": value["trigger"]["name"].as_str().unwrap_or_default(),
        "exec_form": itself["exec_form"], "start_line": value["start_line"], "end_line": value["end_line"],
        "flags": itself["flags"], "args": args, "heredocs": heredocs,
    })
}

/// The module's parser overlooks what follows a JSON form, and today's takes the whole for a shell form (shown by the
/// conformance case `json-edge-cases`).
fn has_text_after_json(theirs: &Value, ours: &Value) -> bool {
    let words = |value: &Value| value["args"].as_array().cloned().unwrap_or_default();
    let [Value::String(text)] = &words(ours)[..] else { return false };
    let first = serde_json::Deserializer::from_str(text).into_iter::<Vec<Value>>().next();
    theirs["exec_form"] == true
        && ours["exec_form"] == false
        && first.is_some_and(|list| list.is_ok_and(|list| list == words(theirs)))
}

fn difference(expected: &Value, actual: &Value) -> Option<String> {
    let (Some(theirs), Some(ours)) = (expected["instructions"].as_array(), actual["instructions"].as_array()) else {
        let both_fail = expected["instructions"].is_null() && actual["instructions"].is_null();
        return (!both_fail).then(|| format!("expected {}, found {}", expected["error"], actual["error"]));
    };
    let first = theirs.iter().zip(ours).find(|(theirs, ours)| theirs != ours && !has_text_after_json(theirs, ours));
    match first {
        Some((theirs, ours)) => Some(format!("\n  expected {theirs}\n  actual   {ours}")),
        None if theirs.len() != ours.len() => {
            Some(format!("expected {} instructions, found {}", theirs.len(), ours.len()))
        }
        None => None,
    }
}
