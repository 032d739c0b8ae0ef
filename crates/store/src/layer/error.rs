//! What is wrong with a layer.

use std::io;

/// A layer that cannot be written or applied. Names of entries are shown escaped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The archive is not one, or is one that readers disagree about.
    #[error("invalid layer at byte {offset}: {reason}")]
    Invalid {
        /// Where in the uncompressed archive the header begins.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// An entry's name or link target leads out of the layer.
    #[error("layer entry `{entry}` escapes root: {reason}")]
    Escapes {
        /// The entry.
        entry: String,
        /// How.
        reason: &'static str,
    },
    /// An entry that a layer must not have.
    #[error("layer entry `{entry}`: {reason}")]
    Refused {
        /// The entry.
        entry: String,
        /// Why.
        reason: String,
    },
    /// More than the limits allow.
    #[error("layer exceeds the limit of {limit} for {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// A file changed while it was read.
    #[error("`{path}` changed while reading")]
    Changed {
        /// The file.
        path: String,
    },
    /// The archive ended or could not be read or decompressed.
    #[error("cannot read layer")]
    Read(#[source] io::Error),
    /// The output refused.
    #[error("cannot write layer")]
    Write(#[source] io::Error),
    /// A file's content could not be read or written.
    #[error("cannot {action} `{path}`")]
    Content {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The tree refused.
    #[error(transparent)]
    Tree(#[from] build_engine_rootfs::Error),
}

impl LayerError {
    /// Whether the layer is more than is allowed, rather than wrong.
    pub fn is_limit(&self) -> bool {
        matches!(self, Self::Limit { .. })
    }

    /// Whether the layer itself is at fault, so that reading it again cannot help.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Invalid { .. } | Self::Escapes { .. } | Self::Refused { .. })
    }

    /// A failed read at `offset` of the uncompressed archive: a limit, data that cannot be decompressed, or the system's
    /// failure.
    pub(crate) fn of_reading(error: io::Error, offset: u64) -> Self {
        if let Some((what, limit)) = super::compress::exceeded_limit(&error) {
            Self::Limit { what, limit }
        } else if super::compress::is_bad_data(&error) {
            Self::Invalid { offset, reason: format!("the data cannot be decompressed: {error}") }
        } else {
            Self::Read(error)
        }
    }
}

/// Shows a name with control characters and invalid UTF-8 escaped.
pub(crate) fn escape(name: &[u8]) -> String {
    let mut text = String::new();
    for chunk in name.utf8_chunks() {
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
    if text.len() > 300 {
        let cut = (0..=300).rev().find(|index| text.is_char_boundary(*index)).unwrap_or_default();
        text.truncate(cut);
        text.push('…');
    }
    text
}
