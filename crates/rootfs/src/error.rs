//! What goes wrong in a tree.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::Kind;

/// A failed operation on a tree; paths are relative to the tree's root.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused.
    #[error("cannot {action} `{}`", .path.escape())]
    Io {
        /// What was tried: `open`, `create`, …
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something other than what the operation can work on.
    #[error("`{}` is a {found}, not a {wanted}", .path.escape())]
    WrongKind {
        /// Where.
        path: PathBuf,
        /// What is there.
        found: Kind,
        /// What was needed.
        wanted: Kind,
    },
    /// A path has more symbolic links on its way than are followed.
    #[error("too many symbolic links in `{}`", .path.escape())]
    TooManyLinks {
        /// The path.
        path: PathBuf,
    },
}

impl Error {
    /// Makes an error of `errno` while doing `action` to `path`.
    pub fn new(action: &'static str, path: impl AsRef<Path>, errno: Errno) -> Self {
        Self::Io { action, path: path.as_ref().to_owned(), source: errno.into() }
    }

    /// Tells whether the path, or a directory on the way to it, does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self.errno(), Some(Errno::NOENT | Errno::NOTDIR))
    }

    /// Tells whether something is there already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(Errno::EXIST)
    }

    /// The kernel's error number, if it was the kernel that refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Io { source, .. } => Errno::from_io_error(source),
            Self::WrongKind { .. } | Self::TooManyLinks { .. } => None,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Io { source, .. } => source.kind(),
            Error::WrongKind { .. } | Error::TooManyLinks { .. } => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}

/// Shows a path with control characters and invalid UTF-8 escaped, so that no name can write to a terminal.
trait Escape {
    fn escape(&self) -> String;
}

impl Escape for PathBuf {
    fn escape(&self) -> String {
        use std::os::unix::ffi::OsStrExt;
        let mut text = String::new();
        for chunk in self.as_os_str().as_bytes().utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() {
                    text.extend(c.escape_default());
                } else {
                    text.push(c);
                }
            }
            for byte in chunk.invalid() {
                text.push_str(&format!("\\x{byte:02x}"));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_without_control_characters() {
        let error = Error::new("open", "a\u{1b}[31m\nb", Errno::NOENT);
        assert_eq!(error.to_string(), "cannot open `a\\u{1b}[31m\\nb`");
    }
}
