//! Ignore files and trees: F1-014. Without `\` before letters, which the guide lists as different on purpose.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use build_engine_testkit::image::Image;

use crate::{Bench, Random, rounds};

/// Contexts of one build, each with a tree and an ignore file of its own.
const CONTEXTS: usize = 60;

const NAMES: &[&str] = &["a", "b", "ab", "a.go", "b.md", "x-y", "ä", ".h", "a b", "[x]", "c\\d"];

const PARTS: &[&str] = &[
    "*", "**", "?", "a", "b", "ab", "*.go", "*.md", "a*", "[ab]", "[^a]", "[a-c]", "ä", ".*", "x-y", "\\*", "b?", "..",
    ".", "**.go", "a**", "\\[x\\]", "c\\\\d",
];

fn pattern(random: &mut Random) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for _ in 0..=random.below(3) {
        parts.push(random.pick(PARTS));
    }
    let mut text = parts.join("/");
    match random.below(12) {
        0 => text.insert(0, '/'),
        1 => text.push('/'),
        2 => text.insert_str(0, "./"),
        3 => text.push_str("//"),
        4 => text.insert(0, ' '),
        _ => {}
    }
    if random.once_in(3) {
        text.insert_str(0, if random.once_in(6) { "! " } else { "!" });
    }
    text
}

fn ignore_file(random: &mut Random) -> String {
    let mut lines: Vec<String> = (0..=random.below(5)).map(|_| pattern(random)).collect();
    if random.once_in(4) {
        lines.insert(0, "*".into());
    }
    if random.once_in(8) {
        lines.push("# comment".into());
    }
    lines.join(random.pick(&["\n", "\n", "\n", "\r\n", "\n\n"]))
}

fn tree(random: &mut Random, dir: &Path, depth: usize) -> Result<()> {
    for _ in 0..=random.below(5) {
        let path = dir.join(random.pick(NAMES));
        if path.symlink_metadata().is_ok() {
            continue;
        }
        match random.below(5) {
            0..=1 if depth > 0 => {
                fs::create_dir(&path)?;
                tree(random, &path, depth - 1)?;
            }
            2 if random.once_in(3) => std::os::unix::fs::symlink(random.pick(NAMES), &path)?,
            _ => fs::write(&path, "x")?,
        }
    }
    Ok(())
}

struct Case {
    path: PathBuf,
    ignore: String,
}

fn contexts(cases: &[Case]) -> Vec<(String, PathBuf)> {
    cases.iter().enumerate().map(|(number, case)| (format!("c{number}"), case.path.clone())).collect()
}

/// The paths of each context that a copy of all of it brings.
fn copied(bench: &Bench, cases: &[Case], theirs: bool) -> Result<Vec<Vec<String>>> {
    let dir = bench.directory("main")?;
    let copies: String = (0..cases.len()).map(|number| format!("COPY --from=c{number} . /{number}/\n")).collect();
    fs::write(dir.join("Dockerfile"), format!("FROM scratch\n{copies}"))?;
    let contexts = contexts(cases);
    let image = if theirs { bench.reference(&dir, &contexts)? } else { bench.ours(&dir, &contexts)? };
    Ok((0..cases.len()).map(|number| below(&image, &format!("{number}/"))).collect())
}

pub(crate) fn below(image: &Image, dir: &str) -> Vec<String> {
    let mut paths: Vec<String> = image
        .tree
        .iter()
        .filter_map(|(path, inode)| {
            let path = path.trim_start_matches('/').strip_prefix(dir)?;
            Some(format!("{path} {}", build_engine_testkit::report::describe(inode)))
        })
        .collect();
    paths.sort();
    paths
}

/// As [`copied`], in halves where a build fails; an ignore file that fails gives `None`.
fn seen(bench: &Bench, cases: &[Case], theirs: bool) -> Vec<Option<Vec<String>>> {
    match copied(bench, cases, theirs) {
        Ok(lists) => lists.into_iter().map(Some).collect(),
        Err(_) if cases.len() == 1 => vec![None],
        Err(_) => {
            let (left, right) = cases.split_at(cases.len() / 2);
            let mut lists = seen(bench, left, theirs);
            lists.extend(seen(bench, right, theirs));
            lists
        }
    }
}

#[test]
fn f1_014_random_ignore_files_leave_out_what_buildkit_leaves_out() {
    let Some(bench) = Bench::start() else { return };
    let mut random = Random::new(2);
    let mut found = Vec::new();
    for _ in 0..rounds(2) {
        let root = bench.directory("contexts").expect("a directory");
        let mut cases = Vec::new();
        for number in 0..CONTEXTS {
            let path = root.join(number.to_string());
            fs::create_dir(&path).expect("a directory");
            tree(&mut random, &path, 3).expect("a tree");
            let ignore = ignore_file(&mut random);
            fs::write(path.join(".dockerignore"), &ignore).expect("written");
            cases.push(Case { path, ignore });
        }
        let (theirs, ours) = (seen(&bench, &cases, true), seen(&bench, &cases, false));
        for ((case, theirs), ours) in cases.iter().zip(theirs).zip(ours) {
            if theirs != ours {
                let only = |a: &Option<Vec<String>>, b: &Option<Vec<String>>| -> Vec<String> {
                    let b = b.clone().unwrap_or_default();
                    a.clone()
                        .map_or(vec!["(fails)".into()], |a| a.into_iter().filter(|path| !b.contains(path)).collect())
                };
                found.push(format!(
                    "{:?}\n  only BuildKit: {:?}\n  only engine:   {:?}",
                    case.ignore,
                    only(&theirs, &ours),
                    only(&ours, &theirs)
                ));
            }
        }
    }
    assert!(found.is_empty(), "{} ignore files differ:\n{}", found.len(), found.join("\n"));
}
