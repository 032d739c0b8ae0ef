//! Layers: a parentless tree of changes ⇄ an uncompressed tar archive, and the compression around it.
//!
//! [`write`](fn@write) turns [`Entries`] into the archive, in the header forms of Go's `archive/tar` as containerd's differ uses
//! it, so that equal content has BuildKit's diff ID. [`apply()`] turns an archive into a tree, by a strict reader of its
//! own. [`write_blob`] writes an archive in compressed frames, on all cores, with a table of contents where the form has one;
//! [`rewrite_blob`] does so with an archive that exists. [`compress`] frames streams and unframes. Where entries come from (a tree here, a plan in [`crate::copy`]) and where
//! blobs go ([`crate::content`]) is not this module's business.
//!
//! In a tree, a whiteout is a character device 0:0 and an opaque directory has `user.overlay.opaque=y`; in an archive
//! they are `.wh.NAME` and `.wh..wh..opq` (OCI image-spec v1.1, layer.md).

mod apply;
mod below;
pub mod compress;
mod entries;
mod error;
mod frames;
mod header;
mod pack;
mod read;
mod rewrite;
#[cfg(test)]
mod tests;
mod toc;
mod write;

pub use apply::{Applied, ApplyOptions, apply};
pub(crate) use apply::{Unpack, unpack};
pub use entries::{Content, Entries, LayerEntry, Listed, TreeEntries};
pub use error::LayerError;
pub(crate) use error::escape;
pub use frames::{WrittenBlob, write_blob};
pub use pack::{FrameKey, FramePlace, KnownFrames};
pub use read::Limits;
pub use rewrite::rewrite_blob;
pub(crate) use toc::{CHUNKED_DIGEST, ESTARGZ_DIGEST};
pub use write::{WriteOptions, Written, write};

/// Prefix of the name of a whiteout.
const WHITEOUT: &[u8] = b".wh.";
/// Prefix of names that AUFS kept for itself.
const WHITEOUT_META: &[u8] = b".wh..wh.";
/// Name of the marker that makes its directory opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Tells whether `block` begins a tar archive: a header with a right checksum.
pub(crate) fn is_header(block: &[u8]) -> bool {
    read::is_header(block)
}
