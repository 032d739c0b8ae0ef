//! What can go wrong in the store, sorted by what a caller would do about it.

use std::io;
use std::path::{Path, PathBuf};

use build_engine_oci::Digest;

/// Result of the store's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The disk, the quota or the file size limit is exhausted. What was being written is gone; the rest is intact.
    #[error("no space left to {action} `{}`", path.display())]
    NoSpace {
        /// What was being done.
        action: &'static str,
        /// The file concerned.
        path: PathBuf,
        /// `ENOSPC`, `EDQUOT` or `EFBIG`.
        source: io::Error,
    },
    /// A file operation failed.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file concerned.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Content is not what its name or its descriptor says.
    #[error("{what} {expected} arrived as {actual} ({size_bytes} bytes)")]
    Mismatch {
        /// `blob`, `layer`, `size of blob …`
        what: String,
        /// What it should have been: a digest, or a size in bytes.
        expected: String,
        /// What it was.
        actual: String,
        /// How many bytes were seen.
        size_bytes: u64,
    },
    /// A document or a blob exceeds the limit that the caller set.
    #[error("blob {digest} has {size_bytes} bytes, more than the {limit_bytes} allowed here")]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// Its size.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// The store was written by a version of build-engine that this one cannot follow.
    #[error("store `{}` needs a newer build-engine: {reason}", path.display())]
    Incompatible {
        /// The store.
        path: PathBuf,
        /// The format number or the features that are unknown.
        reason: String,
    },
    /// The store belongs to someone else, or was made for another way of representing owners.
    #[error("store `{}` was made for {recorded}, and this process is {current}; use another store directory", path.display())]
    Owner {
        /// The store.
        path: PathBuf,
        /// Whom the store was made for.
        recorded: String,
        /// Who asks.
        current: String,
    },
    /// A layer that a caller named is not there (any more).
    #[error("layer `{0}` is not in the store")]
    UnknownLayer(String),
    /// A blob that must not be made again is not there; it has to be fetched.
    #[error("blob {0} is not in the store")]
    UnknownBlob(Digest),
    /// Text is not what it should be.
    #[error("`{text}` is not a {what}")]
    Invalid {
        /// The kind of thing expected.
        what: &'static str,
        /// What was given.
        text: String,
    },
    /// A lock was not given up in time.
    #[error("`{}` is still locked{}", path.display(), owner.map(|pid| format!(" by process {pid}")).unwrap_or_default())]
    Busy {
        /// The lock file.
        path: PathBuf,
        /// The process that wrote its id into the file.
        owner: Option<u32>,
    },
    /// The caller's cancellation was noticed while waiting.
    #[error("cancelled while waiting for `{}`", path.display())]
    Cancelled {
        /// What was being waited for.
        path: PathBuf,
    },
    /// The database refused.
    #[error("cannot use the database `{}`", path.display())]
    Database {
        /// `state.db`.
        path: PathBuf,
        /// The cause.
        source: rusqlite::Error,
    },
    /// A document inside the store does not parse.
    #[error("`{}` does not parse", path.display())]
    Document {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// A tree is nested more deeply than any archive could name.
    #[error("directories in `{}` are nested more than {limit} deep", path.display())]
    TooDeep {
        /// The layer's tree.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// What a cache mount starts from cannot be copied into it.
    #[error("cannot copy `{}` into a new cache mount", path.display())]
    Seed {
        /// The path in what it starts from.
        path: PathBuf,
        /// The cause.
        source: Box<crate::copy::CopyError>,
    },
    /// A layer cannot be unpacked or written.
    #[error("cannot use layer `{layer}`")]
    Layer {
        /// The layer or its blob.
        layer: String,
        /// The cause.
        source: crate::layer::LayerError,
    },
    /// The kernel refused to mount a snapshot.
    #[error("cannot mount an overlay of {layers} layers ({step})")]
    Mount {
        /// How many layers.
        layers: usize,
        /// Which step of mounting.
        step: String,
        /// The cause.
        source: io::Error,
    },
}

impl Error {
    /// Wraps `source`, telling a full disk from other failures.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        let path = path.as_ref().to_owned();
        if is_no_space(&source) { Self::NoSpace { action, path, source } } else { Self::Io { action, path, source } }
    }

    /// Whether the disk, a quota or a size limit is exhausted.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. })
    }
}

/// Whether `error` says that nothing more can be written.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::FileTooLarge];
    kinds.contains(&error.kind())
}

/// Adds what was being done, and to which file, to an I/O error.
pub(crate) trait Context<T> {
    /// Turns the error into [`Error::Io`] or [`Error::NoSpace`].
    fn context(self, action: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, action: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::io(action, path, source.into()))
    }
}
