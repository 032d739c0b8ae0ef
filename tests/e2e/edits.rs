//! Shortcuts change no result: what is built with them, edit by edit in one store, is what is built without any.
//!
//! `BUILD_ENGINE_EDITS` says how many sequences of edits are tried (15 if it is not set), `BUILD_ENGINE_EDITS_SEED` which
//! is the first.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use build_engine_testkit::engine::Who;

use crate::Bench;

/// Numbers that look random and are the same in every run (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % limit as u64).unwrap()
    }

    fn of<'a>(&mut self, items: &[&'a str]) -> &'a str {
        items[self.below(items.len())]
    }
}

/// Layers that nobody reads, that a command reads, that another stage reads, that stand alone.
const DOCKERFILES: [&str; 5] = [
    "FROM scratch\nCOPY . /\n",
    // Directories that a step puts something into are as new as the step.
    "FROM base AS list\nCOPY . /src\nRUN cd /src && find . ! -type d -print0 | sort -z | xargs -0 stat -c '%n %a %h %s %F %y' > /list \\\n\
     && find . -type d -print0 | sort -z | xargs -0 stat -c '%n %a' >> /list && touch -d @0 /list\n\
     FROM scratch\nCOPY --from=list /list /list\nCOPY src /src\n",
    "FROM scratch AS one\nCOPY src/ /one/\nFROM scratch\nCOPY --from=one /one/a* /\nCOPY --link src /two\n",
    "FROM scratch\nCOPY src /\nCOPY other* /\n",
    "FROM base\nCOPY --chmod=640 src /src\nRUN --mount=type=bind,target=/c cat /c/src/a /src/b 2> /dev/null | md5sum > /sum; touch -d @0 /sum\n\
     COPY --chown=7:8 src /src\n",
];
const IGNORES: [&str; 5] = ["", "src/b\n", "**/*.o\n!src/a.o\n", "src/d\n!src/d/a\n", "other\n"];
const PATHS: [&str; 9] =
    ["src/a", "src/b", "src/a.o", "src/d/a", "src/d/b", "src/d/e/f", "src/x.o", "other", "other.txt"];

fn file(random: &mut Random, context: &Path) -> PathBuf {
    let path = context.join(random.of(&PATHS));
    // What is in the way goes.
    for parent in [path.parent().unwrap(), path.parent().unwrap().parent().unwrap()] {
        if fs::symlink_metadata(parent).is_ok_and(|found| !found.is_dir()) {
            fs::remove_file(parent).unwrap();
        }
    }
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    path
}

fn remove(path: &Path) {
    let _ = if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

/// Changes something of the context as people and their tools do, and says what.
fn edit(random: &mut Random, context: &Path) -> String {
    let path = file(random, context);
    let shown = path.strip_prefix(context).unwrap().display().to_string();
    let content = random.of(&["", "one\n", "two\n", "a longer line of text\n"]).repeat(1 + random.below(3));
    match random.below(12) {
        0..=2 => {
            remove(&path);
            fs::write(&path, content).unwrap();
            format!("write {shown}")
        }
        3 => {
            // Of the same size and time.
            if let Ok(text) = fs::read(&path) {
                let time = fs::metadata(&path).unwrap().modified().unwrap();
                fs::write(&path, text.iter().map(|byte| byte ^ 1).collect::<Vec<_>>()).unwrap();
                let times = fs::FileTimes::new().set_modified(time);
                fs::File::open(&path).unwrap().set_times(times).unwrap();
            }
            format!("swap bits of {shown}")
        }
        4 => {
            remove(&path);
            format!("remove {shown}")
        }
        5 => {
            let to = file(random, context);
            if path.exists() && !to.starts_with(&path) && !path.starts_with(&to) {
                remove(&to);
                let _ = fs::rename(&path, &to);
            }
            format!("rename {shown} to {}", to.display())
        }
        6 if path.is_file() && !path.is_symlink() => {
            let mode = [0o644, 0o600, 0o755, 0o4711][random.below(4)];
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            format!("chmod {mode:o} {shown}")
        }
        7 => {
            remove(&path);
            symlink(random.of(&["a", "../other", "/src/b", "d", "nowhere"]), &path).unwrap();
            format!("link {shown}")
        }
        8 => {
            remove(&path);
            fs::create_dir(&path).unwrap();
            format!("mkdir {shown}")
        }
        9 => {
            let to = file(random, context);
            if path.is_file() && !path.is_symlink() && path != to {
                remove(&to);
                let _ = fs::hard_link(&path, &to);
            }
            format!("hard link {shown} to {}", to.display())
        }
        10 => {
            let ignore = random.of(&IGNORES);
            fs::write(context.join(".dockerignore"), ignore).unwrap();
            format!("ignore {ignore:?}")
        }
        _ => {
            let dockerfile = random.of(&DOCKERFILES);
            fs::write(context.join("Dockerfile"), dockerfile).unwrap();
            format!("use {dockerfile:?}")
        }
    }
}

/// The digest of the image, or what the build failed with.
fn outcome(bench: &Bench, context: &Path, fast: bool) -> Result<String, String> {
    let flag = format!("--fast-paths={fast}");
    let run = bench
        .engine
        .run(bench.args(context, &[&flag, "--quiet", "--tag=edited", "--build-arg=SOURCE_DATE_EPOCH=1000000000"]))
        .unwrap();
    let error = run.stderr.lines().find(|line| line.starts_with("error")).unwrap_or_default().to_owned();
    match run.code {
        Some(0) => Ok(run.stdout),
        _ => Err(error),
    }
}

#[test]
fn random_edits_give_the_same_images_with_and_without_shortcuts() {
    let (Some(fast), Some(slow)) = (Bench::new(Who::Root), Bench::new(Who::Root)) else { return };
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (count, first) = (number("BUILD_ENGINE_EDITS").unwrap_or(15), number("BUILD_ENGINE_EDITS_SEED").unwrap_or(0));
    let (mut built, mut failed) = (0, 0);
    for seed in first..first + count {
        let random = &mut Random(seed);
        let files = [("Dockerfile", random.of(&DOCKERFILES)), ("src/a", "a\n"), ("src/b", "b\n"), ("other", "o\n")];
        let context = fast.engine.context(&format!("edits{seed}"), &files).unwrap();
        let mut story = Vec::new();
        for _ in 0..3 {
            let with = outcome(&fast, &context, true);
            let without = outcome(&slow, &context, false);
            assert_eq!(with, without, "seed {seed}, after {story:#?}");
            if with.is_ok() {
                built += 1;
            } else {
                failed += 1;
            }
            for _ in 0..=random.below(3) {
                story.push(edit(random, &context));
            }
        }
        fs::remove_dir_all(&context).unwrap();
    }
    println!("{count} sequences: {built} builds with equal images, {failed} that failed both ways");
    assert!(built > failed, "{built} {failed}");
    fast.verify_store();
}
