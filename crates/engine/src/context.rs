//! The build context as the builder would see it: what the ignore files leave, what it weighs, and why a path is in it
//! or not.
//!
//! Listing and measuring walk the directory once and keep one directory's names in memory at a time, so that a context
//! of half a million files costs no more memory than its deepest path. [`export()`] reads through the eyes of the builder
//! itself (`store::copy`), so that it is no second opinion.

mod export;
mod nearest;
mod size;
mod walk;
mod why;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use build_engine_dockerfile::ignore::Ignore;
use build_engine_store::copy::Visibility;
use serde::{Deserialize, Serialize};

use crate::{BuildError, ExitKind, Report};

pub use export::{ExportTo, export};
pub(crate) use nearest::{Likeness, nearest};
pub use size::{DirectorySize, FileSize, RuleSavings, Sizes, size};
pub use why::{Deciding, Reason, why};

/// Largest ignore file that is read.
const MAX_IGNORE_FILE_BYTES: u64 = 16 << 20;

/// One entry of a context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextEntry {
    /// Path within the context, with slashes.
    pub path: String,
    /// `file`, `dir`, `symlink`, or `other` for what cannot be copied.
    #[serde(rename = "type")]
    pub kind: EntryKind,
    /// Size in bytes; 0 for directories.
    pub size: u64,
}

/// What an entry of a context is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link, which stays one.
    Symlink,
    /// A pipe, a device, a socket.
    Other,
}

impl EntryKind {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Dir => "dir",
            Self::Symlink => "symlink",
            Self::Other => "other",
        }
    }

    fn of(kind: fs::FileType) -> Self {
        if kind.is_dir() {
            Self::Dir
        } else if kind.is_symlink() {
            Self::Symlink
        } else if kind.is_file() {
            Self::File
        } else {
            Self::Other
        }
    }
}

/// The ignore file that counts for a build.
#[derive(Debug, Clone, Default)]
pub struct IgnoreFile {
    /// Where it is; `None` if there is none.
    pub path: Option<PathBuf>,
    /// Its lines.
    lines: Vec<String>,
    pub(crate) ignore: Ignore,
}

impl IgnoreFile {
    /// Finds and reads the ignore file that a build with this context and Dockerfile uses: `<Dockerfile>.dockerignore`,
    /// or else the `.dockerignore` of the context.
    ///
    /// # Errors
    /// [`ExitKind::Input`] for a malformed pattern, with its line, and for a file that cannot be read; [`ExitKind::Limit`] for
    /// one of more than 16 MiB.
    pub fn find(context: &Path, dockerfile: Option<&Path>) -> Result<Self, BuildError> {
        let own = dockerfile.map(|path| {
            let mut name = path.as_os_str().to_owned();
            name.push(".dockerignore");
            PathBuf::from(name)
        });
        for path in own.into_iter().chain([context.join(".dockerignore")]) {
            if let Some(text) = read(&path)? {
                return Self::parse(path, &text);
            }
        }
        Ok(Self::default())
    }

    fn parse(path: PathBuf, text: &str) -> Result<Self, BuildError> {
        let ignore = Ignore::parse(text).map_err(|error| {
            let message = format!("{}: {error}", path.display());
            BuildError::new(ExitKind::Input, Report::new("invalid-ignore-file", message))
        })?;
        Ok(Self { path: Some(path), lines: text.lines().map(str::to_owned).collect(), ignore })
    }

    /// The rule as a person finds it in the file.
    fn deciding(&self, rule: usize, path: &str, matched: usize) -> Option<Deciding> {
        let pattern = self.ignore.rules().get(rule)?;
        let file = self.path.as_deref().unwrap_or(Path::new(".dockerignore"));
        Some(Deciding {
            file: file.display().to_string(),
            line: pattern.line,
            text: self.lines.get(pattern.line.saturating_sub(1)).unwrap_or(&pattern.text).trim().to_owned(),
            keeps: pattern.is_exception,
            matched: path[..matched].to_owned(),
        })
    }

    /// What decides about `path`, a path within the context; `None` if no line has a say.
    pub(crate) fn decides(&self, path: &str) -> Option<Deciding> {
        let step = *self.ignore.trace(path).last()?;
        self.deciding(step.rule, path, step.matched)
    }
}

fn read(path: &Path) -> Result<Option<String>, BuildError> {
    use std::io::Read;
    let failed = |error: io::Error| {
        let message = format!("cannot read `{}`", path.display());
        BuildError::new(ExitKind::Input, Report::new("context", message).caused_by(&error))
    };
    let file = match open_regular(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_IGNORE_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_IGNORE_FILE_BYTES {
        let message = format!("`{}` has more than {MAX_IGNORE_FILE_BYTES} bytes", path.display());
        return Err(BuildError::new(ExitKind::Limit, Report::new("limit", message)));
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Opens a regular file; a pipe, which would wait for somebody to write, is an error.
pub(crate) fn open_regular(path: &Path) -> io::Result<fs::File> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    fs::File::open(path)
}

/// Gives what a build with this context could copy to `each`, sorted by path. A kept entry brings the directories above it.
///
/// # Errors
/// [`ExitKind::Input`] where the context cannot be read; and what `each` returns.
pub fn list(
    context: &Path,
    ignore: &IgnoreFile,
    each: &mut dyn FnMut(ContextEntry) -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    walk::kept(context, &ignore.ignore, each)
}

/// What a copy sees of `path`.
pub(crate) fn visibility(ignore: &Ignore, path: &Path, is_dir: bool) -> Visibility {
    let path = path.to_string_lossy();
    let verdict = ignore.verdict(&path);
    if !verdict.ignored {
        Visibility::Visible
    } else if is_dir && !ignore.can_prune(&path, &verdict) {
        Visibility::Through
    } else {
        Visibility::Hidden
    }
}

fn unreadable(path: &Path, error: &io::Error) -> BuildError {
    let message = format!("cannot read `{}` of the build context", path.display());
    let report = Report::new("context", message).caused_by(error);
    let report = match error.kind() {
        io::ErrorKind::PermissionDenied => report.hint("leave it out with a line in `.dockerignore`"),
        _ => report,
    };
    BuildError::new(ExitKind::Input, report)
}

#[cfg(test)]
mod tests;
