//! The files of a case: what they are, and how they come onto the disk.
//!
//! Used by [`crate::case`]. Invariant: the same case writes the same bytes, modes and times, whatever the umask is.

use std::fs::{self, File, FileTimes};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use build_engine_testkit::Unavailable;
use build_engine_testkit::fixtures::{TarWriter, gzip};

/// When every file of a context was last changed.
const MODIFIED: u64 = 1_500_000_000;

/// A file, folder or link of a case.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Which build it is for: 1, or 2 for a change between the two.
    pub(crate) build: u8,
    /// The path below the context.
    pub(crate) path: String,
    /// What stands between the path and the end of the line.
    pub(crate) attributes: Vec<String>,
    /// The lines.
    pub(crate) content: String,
}

impl Entry {
    /// Whether it is offered over HTTP and lies in no folder of a builder.
    pub(crate) fn is_served(&self) -> bool {
        ["../http/", "../repo/", "../repo."].iter().any(|start| self.path.starts_with(start))
    }

    /// Sets the times of a changed file: builders may take a file of the same size and time for the same file.
    pub(crate) fn touch_changed(&self, context: &Path) -> Result<()> {
        let path = context.join(&self.path);
        let is_there = fs::symlink_metadata(&path).is_ok_and(|metadata| !metadata.is_symlink());
        if is_there { touch(&path, MODIFIED + 60) } else { Ok(()) }
    }

    /// Writes the entry below `context`, with `fill` applied to its text.
    pub(crate) fn write(&self, context: &Path, fill: impl Fn(&str) -> String) -> Result<()> {
        let path = context.join(&self.path);
        if let Some(parent) = path.parent() {
            make_dir(parent)?;
        }
        let mut mode = None;
        let text = fill(&self.content);
        let mut content = text.clone().into_bytes();
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
                "crlf" => content = String::from_utf8(content)?.replace('\n', "\r\n").into_bytes(),
                "bom" => content.splice(..0, *b"\xef\xbb\xbf").for_each(drop),
                "removed" => {
                    return Ok(if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }?);
                }
                "tar" => content = archive(&text)?,
                "tar.gz" => content = gzip(&archive(&text)?)?,
                "tar.bz2" => content = through("bzip2", archive(&text)?)?,
                "tar.xz" => content = through("xz", archive(&text)?)?,
                "tar.zst" => content = through("zstd", archive(&text)?)?,
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
pub(crate) fn make_dir(path: &Path) -> Result<()> {
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
                tar.file(path, u32::from_str_radix(mode, 8)?, owner(ids)?, text.replace("\\n", "\n").as_bytes())?;
            }
            ["l", path, target] => tar.symlink(path, target)?,
            ["h", path, target] => tar.hard_link(path, target)?,
            _ => bail!("`{line}` is no line of an archive"),
        }
    }
    tar.finish()
}

/// What `program` makes of `bytes`.
fn through(program: &str, bytes: Vec<u8>) -> Result<Vec<u8>> {
    let mut command = Command::new(program);
    let child = command.arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| Unavailable(format!("cannot run `{program}`: {error}")))?;
    let mut input = child.stdin.take().context("it was just piped")?;
    let writer = std::thread::spawn(move || input.write_all(&bytes));
    let output = child.wait_with_output()?;
    writer.join().map_err(|_| anyhow!("the writer panicked"))??;
    ensure!(output.status.success(), "`{program}` failed");
    Ok(output.stdout)
}

/// Sets the times of all files and folders, the deepest first, because work inside a folder changes its time.
pub(crate) fn touch_all(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            touch_all(&path)?;
        } else if metadata.is_file() {
            touch(&path, MODIFIED)?;
        }
    }
    touch(dir, MODIFIED)
}

/// Sets the time of one file or folder.
fn touch(path: &Path, seconds: u64) -> Result<()> {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    Ok(File::open(path)?.set_times(FileTimes::new().set_modified(time).set_accessed(time))?)
}
