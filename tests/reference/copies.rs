//! Sources and destinations of COPY: F1-090 to F1-096. Without `--parents`, which released frontends of BuildKit do not have.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::Result;

use crate::ignores::below;
use crate::{Bench, Random, rounds};

/// Copies of one build, each in a stage of its own.
const COPIES: usize = 60;

const SOURCES: &[&str] = &[
    "*",
    "*.go",
    "?",
    "a",
    "a/",
    "a/.",
    "a/*",
    "*/*",
    "*/b",
    "a/b",
    "a/?",
    "[ab]",
    "[^a]*",
    "a*",
    "link",
    "link/",
    "link/*",
    "file",
    "./file",
    "/file",
    "../file",
    "a/../file",
    ".",
    "/",
    "*.none",
    "a/*.go",
    "dangling",
    "*link",
    "[a-c]/b",
    "\\*",
    "a\\*",
    "**",
    "**/b",
    "a/**",
    "star\\*",
    "star*",
    "deep/*/x",
    "deep/?/*",
    "a/./b",
    "deep/./a/x",
    "[x]",
    "[[]x]",
];

const DESTINATIONS: &[&str] = &["/t/", "/t", "/t/new", "/t/new/", "/t/.", "/t/a/..", "t/", "./t/new", "/t//x/"];

const FLAGS: &[&str] = &["", "", "", "--exclude=*.go ", "--exclude=a ", "--exclude=**/b ", "--link ", "--chmod=640 "];

fn context(dir: &Path) -> Result<()> {
    for path in
        ["a/b", "a/c.go", "b/b", "file", "x.go", "y.go", "star*", "deep/a/x", "deep/b/x", "deep/b/y.go", "[x]", "c/b/b"]
    {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap_or(dir))?;
        fs::write(&path, path.file_name().unwrap_or_default().as_encoded_bytes())?;
    }
    fs::create_dir(dir.join("empty"))?;
    symlink("a", dir.join("link"))?;
    symlink("file", dir.join("filelink"))?;
    symlink("nowhere", dir.join("dangling"))?;
    symlink("../file", dir.join("a/up"))?;
    Ok(())
}

fn dockerfile(lines: &[String]) -> String {
    let mut stages = String::new();
    let mut last = String::from("FROM scratch\n");
    for (number, line) in lines.iter().enumerate() {
        stages.push_str(&format!("FROM scratch AS s{number}\n{line}\n"));
        last.push_str(&format!("COPY --from=s{number} / /{number}/\n"));
    }
    stages + &last
}

fn copied(bench: &Bench, dir: &Path, lines: &[String], theirs: bool) -> Result<Vec<Vec<String>>> {
    fs::write(dir.join("Dockerfile"), dockerfile(lines))?;
    fs::write(dir.join(".dockerignore"), ".dockerignore\nDockerfile\n")?;
    let image = if theirs { bench.reference(dir, &[])? } else { bench.ours(dir, &[])? };
    Ok((0..lines.len()).map(|number| below(&image, &format!("{number}/"))).collect())
}

fn made(bench: &Bench, dir: &Path, lines: &[String], theirs: bool) -> Vec<Option<Vec<String>>> {
    match copied(bench, dir, lines, theirs) {
        Ok(lists) => lists.into_iter().map(Some).collect(),
        Err(_) if lines.len() == 1 => vec![None],
        Err(_) => {
            let (left, right) = lines.split_at(lines.len() / 2);
            let mut lists = made(bench, dir, left, theirs);
            lists.extend(made(bench, dir, right, theirs));
            lists
        }
    }
}

#[test]
fn f1_090_to_f1_096_random_copies_make_what_buildkit_makes() {
    let Some(bench) = Bench::start() else { return };
    let mut random = Random::new(3);
    let mut found = Vec::new();
    for _ in 0..rounds(1) {
        let dir = bench.directory("copies").expect("a directory");
        context(&dir).expect("a context");
        let lines: Vec<String> = (0..COPIES)
            .map(|_| {
                let mut sources = vec![random.pick(SOURCES)];
                let mut dest = random.pick(DESTINATIONS);
                if random.once_in(4) {
                    sources.push(random.pick(SOURCES));
                    dest = "/t/";
                }
                let before = if random.once_in(4) { "COPY file /t/a\n" } else { "" };
                format!("{before}COPY {}{} {dest}", random.pick(FLAGS), sources.join(" "))
            })
            .collect();
        let ours = made(&bench, &dir, &lines, false);
        // What fails here is asked one by one: a failure among many costs BuildKit several builds to find.
        let good: Vec<String> =
            lines.iter().zip(&ours).filter(|(_, ours)| ours.is_some()).map(|(line, _)| line.clone()).collect();
        let mut good = made(&bench, &dir, &good, true).into_iter();
        let mut theirs = Vec::new();
        for (line, ours) in lines.iter().zip(&ours) {
            let one =
                if ours.is_some() { good.next() } else { made(&bench, &dir, std::slice::from_ref(line), true).pop() };
            theirs.push(one.flatten());
        }
        for ((line, theirs), ours) in lines.iter().zip(theirs).zip(ours) {
            if theirs != ours {
                found.push(format!("{line}\n  BuildKit: {theirs:?}\n  engine:   {ours:?}"));
            }
        }
    }
    assert!(found.is_empty(), "{} copies differ:\n{}", found.len(), found.join("\n"));
}
