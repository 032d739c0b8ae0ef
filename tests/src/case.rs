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
//! | `args` | arguments for both builders, split at spaces; `{dir}` is the case's folder, `{base}` the base layout, `{foreign}` the one for other platforms |
//! | `arg` | one argument, taken as it stands |
//! | `network` | the network of RUN, `none` unless given; `default` passes no flag |
//! | `epoch` | `SOURCE_DATE_EPOCH`, with `rewrite-timestamp`; times, diff IDs and the config's digest are compared then |
//! | `fails` | the build must fail, and the engine's message has this text |
//! | `oracle-fails` | BuildKit's message has this text |
//! | `exit` | the engine's exit code when it fails (2 unless given) |
//! | `deviates` | `key glob` ` \| ` `reason`: a difference that is meant; it is an error when it does not show. The key `outcome` stands for one builder succeeding and the other failing |
//!
//! Then come the files of the context, each after a line `-- PATH ATTRIBUTES --`. `../x` lies beside the context.
//! Attributes: `mode=0755`; `dir`; `-> TARGET` (symbolic link); `=> PATH` (hard link to an earlier file); `bare` (without
//! the last newline); `tar` or `tar.gz` (an archive, whose lines are `d PATH MODE UID:GID`, `f PATH MODE UID:GID TEXT`,
//! `l PATH TARGET` and `h PATH TARGET`).

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use build_engine_testkit::fixtures::{TarWriter, gzip};
use build_engine_testkit::{foreign, sha256};

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

#[derive(Clone, Debug)]
struct Entry {
    path: String,
    attributes: Vec<String>,
    content: String,
}

/// Stands for the base for other platforms in arguments.
const FOREIGN: &str = "{foreign}";

/// When every file of a context was last changed.
const MODIFIED: u64 = 1_500_000_000;

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
                let mut words = head.split(' ').map(str::to_owned);
                let path = words.next().context("a file without a name")?;
                case.files.push(Entry { path, attributes: words.collect(), content: String::new() });
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
        Ok(case)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "rows" => self.rows.extend(value.split_whitespace().map(str::to_owned)),
            "args" => self.args.extend(value.split_whitespace().map(str::to_owned)),
            "arg" => self.args.push(value.to_owned()),
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

    /// The arguments of `build` after the name of the program and `build`, with the context as the last.
    pub fn arguments(&self, dir: &Path, base: &Path, out: &Path) -> Vec<String> {
        let mut args = vec!["--progress=plain".to_owned()];
        args.push(format!("--build-context=base=oci-layout://{}:latest", base.display()));
        let mut output = format!("--output=type=oci,dest={}", out.display());
        match self.network.as_deref() {
            None => args.push("--network=none".to_owned()),
            Some("default") => {}
            Some(network) => args.push(format!("--network={network}")),
        }
        if let Some(epoch) = self.epoch {
            args.push(format!("--build-arg=SOURCE_DATE_EPOCH={epoch}"));
            output.push_str(",rewrite-timestamp=true");
        }
        args.push(output);
        for arg in &self.args {
            let arg = arg.replace("{dir}", &dir.to_string_lossy()).replace("{base}", &base.to_string_lossy());
            args.push(arg.replace(FOREIGN, &base.with_file_name(foreign::EDITION).to_string_lossy()));
        }
        args.push(dir.join("context").to_string_lossy().into_owned());
        args
    }

    /// Whether it needs the base for other platforms, beside the usual one.
    pub fn wants_foreign(&self) -> bool {
        self.args.iter().any(|arg| arg.contains(FOREIGN))
    }

    /// Writes the files below `dir`, the context in `dir/context`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let context = dir.join("context");
        make_dir(&context)?;
        for entry in &self.files {
            entry.write(&context).with_context(|| format!("cannot write `{}` of `{}`", entry.path, self.name))?;
        }
        touch_all(dir)
    }
}

impl Entry {
    fn write(&self, context: &Path) -> Result<()> {
        let path = context.join(&self.path);
        if let Some(parent) = path.parent() {
            make_dir(parent)?;
        }
        let mut mode = None;
        let mut content = self.content.clone().into_bytes();
        let mut attributes = self.attributes.iter().map(String::as_str);
        while let Some(attribute) = attributes.next() {
            match attribute {
                "dir" => {
                    make_dir(&path)?;
                    if let Some(mode) = attributes.next().and_then(|text| text.strip_prefix("mode=")) {
                        fs::set_permissions(&path, fs::Permissions::from_mode(u32::from_str_radix(mode, 8)?))?;
                    }
                    return Ok(());
                }
                "->" => return Ok(symlink(attributes.next().context("`->` without a target")?, &path)?),
                "=>" => {
                    return Ok(fs::hard_link(context.join(attributes.next().context("`=>` without a path")?), &path)?);
                }
                "bare" => {
                    content.pop();
                }
                "tar" => content = archive(&self.content)?,
                "tar.gz" => content = gzip(&archive(&self.content)?)?,
                other => match other.strip_prefix("mode=") {
                    Some(text) => mode = Some(u32::from_str_radix(text, 8)?),
                    None => bail!("unknown attribute `{other}`"),
                },
            }
        }
        fs::write(&path, content)?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(mode.unwrap_or(0o644)))?)
    }
}

/// Makes `path` and its parents with mode 0755, whatever the umask.
fn make_dir(path: &Path) -> Result<()> {
    if !path.is_dir() {
        if let Some(parent) = path.parent() {
            make_dir(parent)?;
        }
        fs::create_dir(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn archive(lines: &str) -> Result<Vec<u8>> {
    let mut tar = TarWriter::default();
    for line in lines.lines() {
        let words: Vec<&str> = line.splitn(5, ' ').collect();
        let owner = |text: &str| -> Result<(u64, u64)> {
            let (uid, gid) = text.split_once(':').context("an owner is `UID:GID`")?;
            Ok((uid.parse()?, gid.parse()?))
        };
        match words[..] {
            ["d", path, mode, ids] => tar.directory(path, u32::from_str_radix(mode, 8)?, owner(ids)?)?,
            ["f", path, mode, ids, text] => {
                tar.file(path, u32::from_str_radix(mode, 8)?, owner(ids)?, text.as_bytes())?;
            }
            ["l", path, target] => tar.symlink(path, target)?,
            ["h", path, target] => tar.hard_link(path, target)?,
            _ => bail!("`{line}` is no line of an archive"),
        }
    }
    tar.finish()
}

/// Sets the times of all files and folders, the deepest first, because work inside a folder changes its time.
fn touch_all(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            touch_all(&path)?;
        } else if metadata.is_file() {
            touch(&path)?;
        }
    }
    touch(dir)
}

fn touch(path: &Path) -> Result<()> {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(MODIFIED);
    Ok(File::open(path)?.set_times(FileTimes::new().set_modified(time).set_accessed(time))?)
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
