//! One conformance case: a text file with what to build and what is known about the outcome.
//!
//! ```text
//! # A global ARG is not visible inside a stage.
//! rows: F1-038
//! args: --build-arg TAG=1
//! -- Dockerfile --
//! FROM base
//! COPY tool /tool
//! -- tool mode=0755 --
//! #!/bin/sh
//! ```
//!
//! The head has `key: value` lines; each may be repeated:
//!
//! | key | meaning |
//! |---|---|
//! | `rows` | the rows of the feature table that the case covers |
//! | `args` | arguments for both builders, split at spaces |
//! | `arg` | one argument, taken as it stands |
//! | `args.2`, `arg.2` | arguments for the second build alone |
//! | `env` | `NAME=VALUE` in the environment of both builders |
//! | `context` | what stands for the context in the command, instead of the case's folder: `-`, `{git}#v1`, `{http}/c.tar` |
//! | `stdin` | the file (below the context; `../x` beside it) that is standard input |
//! | `network` | the network of RUN, `none` unless given; `default` passes no flag |
//! | `epoch` | `SOURCE_DATE_EPOCH`, with `rewrite-timestamp`; times, diff IDs and the config's digest are compared then |
//! | `call` | the value of `--call`: nothing is built, and what both print, and whether they succeed, is compared |
//! | `fails` | the build must fail, and the engine's message has this text |
//! | `oracle-fails` | BuildKit's message has this text |
//! | `exit` | the engine's exit code when it fails (2 unless given) |
//! | `needs` | `root` or `user`: the case is not run as the other one, for the reason that follows the word |
//! | `deviates` | `key glob` ` \| ` `reason`: a difference that is meant; it is an error when it does not show. The key `outcome` stands for one builder succeeding and the other failing |
//!
//! Then come the files of the context, each after a line `-- PATH ATTRIBUTES --`. `../x` lies beside the context.
//! Attributes: `mode=0755`; `dir`; `-> TARGET` (symbolic link); `=> PATH` (hard link to an earlier file); `bare` (without
//! the last newline); `crlf` (lines end as on Windows); `bom` (starts with a byte order mark); `tar`, or `tar.` with `gz`,
//! `bz2`, `xz` or `zst` (an archive, whose lines are `d PATH MODE UID:GID`, `f PATH MODE UID:GID TEXT` (`\n` in it is a new line), `l PATH TARGET` and `h PATH TARGET`).
//!
//! **A second build.** A line `-- +2 PATH ATTRIBUTES --` is a file that changes after the first build (`removed`: it goes).
//! Both builders then build again, and the second images are compared, and which steps came from the cache. Results of
//! earlier test runs must not be found, so that such a case has `{nonce}` in its Dockerfile, before the first step.
//!
//! **Over HTTP.** `../http/PATH` is served at `{http}/PATH`, with an `ETag` and a `Last-Modified` of 14 July 2017; what lies
//! in `../http/private/` only with the header `Authorization: Bearer letmein`. `../repo/PATH` is a file in the first commit
//! of the repository `{git}`, `../repo.2/PATH` one that the second commit adds or changes, and so on. The branch `main` is the last commit,
//! `first` the first; tags are `v1`, `v2`, … and, annotated, `release`; `{commit.1}` is an id.
//!
//! **Placeholders** stand in arguments, `env`, `context` and files: `{dir}` (the case's folder; not in files), `{base}` (the base
//! layout; not in files), `{foreign}` (the one for other platforms, with programs; not in files), `{http}`, `{git}`, `{host}` (`127.0.0.1:PORT` of the server, which is a registry too), `{commit.N}`,
//! `{nonce}` (another text in each run of the test program). The outcome of a case that uses one of the last five is not kept.
//!
//! Several platforms (`args: --platform linux/amd64,linux/arm64`) are compared one by one. The named context `multi` is a
//! base for both, without programs: a file `/arch` has the name of the architecture.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use build_engine_testkit::{foreign, sha256};

use crate::files::{Entry, make_dir, touch_all};

/// A case, as its file says it.
#[derive(Clone, Debug, Default)]
pub struct Case {
    /// The file's name without its ending.
    pub name: String,
    /// What the case shows, in a sentence.
    pub title: String,
    /// Rows of the feature table.
    pub rows: Vec<String>,
    /// Arguments for both builders.
    pub args: Vec<String>,
    /// Further arguments of the second build.
    pub second_args: Vec<String>,
    /// The environment of both builders.
    pub env: Vec<(String, String)>,
    /// What stands for the context in the command.
    pub context: Option<String>,
    /// The file that is standard input.
    pub stdin: Option<String>,
    /// The value of `--call`.
    pub call: Option<String>,
    /// Who runs it, if not everyone, and why.
    pub needs: Option<(String, String)>,
    /// The network of RUN.
    pub network: Option<String>,
    /// `SOURCE_DATE_EPOCH`.
    pub epoch: Option<u64>,
    /// Texts in the engine's message; the build must fail if there is one.
    pub fails: Vec<String>,
    /// Texts in BuildKit's message.
    pub oracle_fails: Vec<String>,
    /// The engine's exit code when it fails.
    pub exit: Option<i32>,
    /// Differences that are meant.
    pub deviations: Vec<Deviation>,
    /// The SHA-256 of the file.
    pub hash: String,
    files: Vec<Entry>,
}

/// A difference that is meant.
#[derive(Clone, Debug)]
pub struct Deviation {
    /// Which keys of the report; `*` stands for any text.
    pub keys: String,
    /// Why.
    pub reason: String,
}

/// Where the parts of one run lie.
#[derive(Clone, Debug)]
pub struct Place<'a> {
    /// The case's folder.
    pub dir: &'a Path,
    /// The context in the command: `dir/context`, or another name of it.
    pub context: &'a Path,
    /// The layout of the base.
    pub base: &'a Path,
    /// The layout of the base for several platforms.
    pub multi: &'a Path,
    /// The archive that is written.
    pub out: &'a Path,
    /// Placeholders and what they stand for.
    pub values: &'a [(String, String)],
}

/// Stands for the base for other platforms in arguments.
const FOREIGN: &str = "{foreign}";

impl Place<'_> {
    /// `text` with all placeholders filled.
    pub fn fill(&self, text: &str) -> String {
        let text = text.replace("{dir}", &self.dir.to_string_lossy()).replace("{base}", &self.base.to_string_lossy());
        let text = text.replace(FOREIGN, &self.base.with_file_name(foreign::EDITION).to_string_lossy());
        fill(&text, self.values)
    }

    /// `text` without what differs between two runs.
    pub fn hide(&self, text: &str) -> String {
        let values = self.values.iter().rev().fold(text.to_owned(), |text, (name, value)| text.replace(value, name));
        let values = values.replace(&*self.context.to_string_lossy(), "{dir}/context");
        values.replace(&*self.dir.to_string_lossy(), "{dir}").replace(&*self.base.to_string_lossy(), "{base}")
    }
}

fn fill(text: &str, values: &[(String, String)]) -> String {
    values.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
}

impl Case {
    /// Reads every case below `dir`, in the order of their names.
    pub fn all(dir: &Path) -> Result<Vec<Case>> {
        let mut paths: Vec<PathBuf> = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "case"));
        paths.sort();
        paths.iter().map(|path| Self::read(path).with_context(|| format!("in `{}`", path.display()))).collect()
    }

    fn read(path: &Path) -> Result<Case> {
        let text = fs::read_to_string(path)?;
        let name = path.file_stem().context("a case has a name")?.to_string_lossy().into_owned();
        Self::parse(&name, &text)
    }

    /// Parses the text of a case.
    pub fn parse(name: &str, text: &str) -> Result<Case> {
        let mut case = Case { name: name.to_owned(), hash: sha256(text.as_bytes()), ..Case::default() };
        let mut titles = Vec::new();
        for line in text.split_inclusive('\n') {
            if let Some(head) = line.trim_end().strip_prefix("-- ").and_then(|line| line.strip_suffix(" --")) {
                let (build, head) = head.strip_prefix("+2 ").map_or((1, head), |head| (2, head));
                let mut words = head.split(' ').map(str::to_owned);
                let path = words.next().context("a file without a name")?;
                case.files.push(Entry { build, path, attributes: words.collect(), content: String::new() });
            } else if let Some(file) = case.files.last_mut() {
                file.content.push_str(line);
            } else if let Some(title) = line.strip_prefix('#') {
                titles.push(title.trim().to_owned());
            } else if !line.trim().is_empty() {
                let (key, value) = line
                    .trim_end()
                    .split_once(": ")
                    .with_context(|| format!("`{}` is no `key: value`", line.trim()))?;
                case.set(key, value)?;
            }
        }
        case.title = titles.join(" ");
        ensure!(!case.title.is_empty(), "a case starts with a title (`# …`)");
        ensure!(!case.rows.is_empty(), "a case names the rows that it covers (`rows: F1-…`)");
        let fresh = case.files.iter().any(|file| file.content.contains("{nonce}"));
        ensure!(fresh || !case.is_twice(), "a case with a second build has `{{nonce}}` in its Dockerfile");
        Ok(case)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "rows" => self.rows.extend(value.split_whitespace().map(str::to_owned)),
            "args" => self.args.extend(value.split_whitespace().map(str::to_owned)),
            "arg" => self.args.push(value.to_owned()),
            "args.2" => self.second_args.extend(value.split_whitespace().map(str::to_owned)),
            "arg.2" => self.second_args.push(value.to_owned()),
            "env" => {
                let (name, value) = value.split_once('=').context("`env: NAME=VALUE`")?;
                self.env.push((name.to_owned(), value.to_owned()));
            }
            "context" => self.context = Some(value.to_owned()),
            "stdin" => self.stdin = Some(value.to_owned()),
            "call" => self.call = Some(value.to_owned()),
            "needs" => {
                let (who, reason) = value.split_once(' ').context("`needs: root REASON`")?;
                ensure!(["root", "user"].contains(&who), "`needs` names `root` or `user`");
                self.needs = Some((who.to_owned(), reason.to_owned()));
            }
            "network" => self.network = Some(value.to_owned()),
            "epoch" => self.epoch = Some(value.parse()?),
            "fails" => self.fails.push(value.to_owned()),
            "oracle-fails" => self.oracle_fails.push(value.to_owned()),
            "exit" => self.exit = Some(value.parse()?),
            "deviates" => {
                let (keys, reason) = value.split_once(" | ").context("`deviates: KEYS | REASON`")?;
                self.deviations.push(Deviation { keys: keys.to_owned(), reason: reason.to_owned() });
            }
            other => bail!("unknown key `{other}`"),
        }
        Ok(())
    }

    /// Whether the build must fail.
    pub fn must_fail(&self) -> bool {
        !self.fails.is_empty() || !self.oracle_fails.is_empty()
    }

    /// Whether something changes and a second build follows.
    pub fn is_twice(&self) -> bool {
        !self.second_args.is_empty() || self.files.iter().any(|file| file.build == 2)
    }

    /// Whether it wants something over HTTP.
    pub fn is_served(&self) -> bool {
        self.files.iter().any(Entry::is_served) || self.uses(&["{http}", "{git}", "{host}", "{commit."])
    }

    /// Whether BuildKit's outcome is the same in the next run of the test program.
    pub fn is_kept(&self) -> bool {
        !self.is_served() && !self.uses(&["{nonce}"])
    }

    fn uses(&self, placeholders: &[&str]) -> bool {
        let texts = self
            .args
            .iter()
            .chain(&self.second_args)
            .chain(&self.context)
            .chain(self.env.iter().map(|(_, value)| value));
        texts
            .chain(self.files.iter().map(|file| &file.content))
            .any(|text| placeholders.iter().any(|name| text.contains(name)))
    }

    /// The arguments of `build` after the name of the program and `build`, with the context as the last.
    pub fn arguments(&self, place: &Place<'_>, is_second: bool) -> Vec<String> {
        let progress = if self.is_twice() { "rawjson" } else { "plain" };
        let mut args = vec![format!("--progress={progress}")];
        args.push(format!("--build-context=base=oci-layout://{}:latest", place.base.display()));
        if self.args.iter().any(|arg| arg.starts_with("--platform")) || self.uses(&["FROM multi", "from=multi"]) {
            args.push(format!("--build-context=multi=oci-layout://{}:latest", place.multi.display()));
        }
        let mut output = format!("--output=type=oci,dest={}", place.out.display());
        match self.network.as_deref() {
            None => args.push("--network=none".to_owned()),
            Some("default") => {}
            Some(network) => args.push(format!("--network={network}")),
        }
        if let Some(epoch) = self.epoch {
            args.push(format!("--build-arg=SOURCE_DATE_EPOCH={epoch}"));
            output.push_str(",rewrite-timestamp=true");
        }
        args.push(self.call.as_ref().map_or(output, |call| format!("--call={call}")));
        args.extend(self.args.iter().map(|arg| place.fill(arg)));
        if is_second {
            args.extend(self.second_args.iter().map(|arg| place.fill(arg)));
        }
        args.push(match &self.context {
            Some(context) => place.fill(context),
            None => place.context.to_string_lossy().into_owned(),
        });
        args
    }

    /// Whether it needs the base for other platforms, beside the usual one.
    pub fn wants_foreign(&self) -> bool {
        self.args.iter().any(|arg| arg.contains(FOREIGN))
    }

    /// Writes the files of the first build below `dir`, the context in `dir/context`.
    pub fn write(&self, dir: &Path, values: &[(String, String)]) -> Result<()> {
        self.write_those(dir, values, |file| file.build == 1 && !file.is_served())?;
        touch_all(dir)
    }

    /// Changes what the second build finds changed.
    pub fn change(&self, dir: &Path, values: &[(String, String)]) -> Result<()> {
        self.write_those(dir, values, |file| file.build == 2)?;
        self.files.iter().filter(|file| file.build == 2).try_for_each(|file| file.touch_changed(&dir.join("context")))
    }

    /// Writes what is served below `dir`.
    pub fn write_served(&self, dir: &Path) -> Result<()> {
        self.write_those(dir, &[], Entry::is_served)?;
        touch_all(dir)
    }

    fn write_those(&self, dir: &Path, values: &[(String, String)], which: impl Fn(&Entry) -> bool) -> Result<()> {
        let context = dir.join("context");
        make_dir(&context)?;
        for entry in self.files.iter().filter(|entry| which(entry)) {
            let written = entry.write(&context, |text| fill(text, values));
            written.with_context(|| format!("cannot write `{}` of `{}`", entry.path, self.name))?;
        }
        Ok(())
    }
}

/// Whether `text` matches `glob`, in which `*` stands for any text.
pub fn matches(glob: &str, text: &str) -> bool {
    match glob.split_once('*') {
        None => glob == text,
        Some((head, rest)) => text
            .strip_prefix(head)
            .is_some_and(|text| (0..=text.len()).any(|at| text.is_char_boundary(at) && matches(rest, &text[at..]))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_in_a_deviation_stands_for_any_text() {
        assert!(matches("history[*].comment", "history[12].comment"));
        assert!(matches("file /a*", "file /a/b"));
        assert!(!matches("history[*].comment", "history[12].created_by"));
    }

    #[test]
    fn a_case_has_a_head_and_files() {
        let case =
            Case::parse("x", "# Title.\nrows: F1-001\nargs: --target a\n-- Dockerfile --\nFROM base\n-- l -> t --\n")
                .unwrap();
        assert_eq!((case.title.as_str(), case.args.len(), case.files.len()), ("Title.", 2, 2));
        assert_eq!(case.files[0].content, "FROM base\n");
    }
}
