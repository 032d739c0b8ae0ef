//! Frame tables: where in a blob of this store each frame is, so that the next blob copies the frames that it has too.
//!
//! One file per blob that was made here in several frames, `frames/<compressor>.<hex>`. It is not known which blob came
//! before a new one, so all tables of the same compressor are looked at; the newest [`MOST_TABLES`] of them are kept.
//!
//! Invariant: tables are disposable and never believed. What one leads to is compared with what is to be compressed
//! ([`crate::layer::KnownFrames`]).

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use build_engine_oci::layout::blob_path;
use build_engine_oci::{Algorithm, Digest};

use crate::error::{Context, Result};
use crate::layer::compress::Compression;
use crate::layer::{FrameKey, FramePlace, KnownFrames};
use crate::layout::{Store, entries};

/// Tables per compressor.
const MOST_TABLES: usize = 64;
/// The beginning of a table.
const MAGIC: &[u8] = b"build-engine frames 1\n";
/// Checksums, length of the archive, offset, length in the blob.
const RECORD: usize = 8 + 4 + 8 + 8;

/// The frames that a new blob may copy. Without a name there are none: the blob is not compressed.
fn prefix(compression: Compression) -> Option<String> {
    Some(format!("{}.", compression.encoder()?))
}

impl Store {
    /// The frames of the blobs that were made as `compression` says.
    pub(crate) fn known_frames(&self, compression: Compression) -> KnownFrames {
        let mut known = KnownFrames::default();
        for (_, path, digest) in prefix(compression).map(|prefix| self.tables(&prefix)).unwrap_or_default() {
            let blob = self.path("content").join(blob_path(&digest));
            if blob.is_file()
                && let Ok(bytes) = fs::read(&path)
                && let Some(places) = decode(&bytes)
            {
                known.add(&blob, places);
            }
        }
        known
    }

    /// Keeps the table of a blob. That it cannot be kept makes the next blob slower, and nothing else.
    pub(crate) fn save_frames(&self, compression: Compression, digest: &Digest, places: &[FramePlace]) {
        let Some(prefix) = prefix(compression).filter(|_| places.len() > 1) else { return };
        let path = self.path("frames").join(format!("{prefix}{}", digest.hex()));
        let Ok(temporary) = self.temporary("ingest") else { return };
        let written = fs::write(&temporary, encode(places)).and_then(|()| fs::rename(&temporary, &path));
        if let Err(error) = written {
            tracing::debug!(%error, "the frames of a blob are not remembered");
            let _ = fs::remove_file(&temporary);
            return;
        }
        for (_, path, _) in self.tables(&prefix).into_iter().skip(MOST_TABLES) {
            let _ = fs::remove_file(path);
        }
    }

    /// The tables whose name begins so, the newest first.
    fn tables(&self, prefix: &str) -> Vec<(SystemTime, PathBuf, Digest)> {
        let folder = self.path("frames");
        let mut tables: Vec<_> = entries(&folder)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|name| {
                let digest = format!("{}:{}", Algorithm::Sha256.name(), name.strip_prefix(prefix)?).parse().ok()?;
                let path = folder.join(&name);
                let modified = fs::symlink_metadata(&path).and_then(|metadata| metadata.modified());
                Some((modified.unwrap_or(SystemTime::UNIX_EPOCH), path, digest))
            })
            .collect();
        tables.sort_by(|a, b| b.cmp(a));
        tables
    }

    /// Removes the tables of blobs that are gone. Returns the bytes freed.
    pub(crate) fn remove_frame_tables(&self) -> Result<u64> {
        let folder = self.path("frames");
        let mut freed = 0;
        for name in entries(&folder)? {
            let hex = name.rsplit('.').next().unwrap_or_default();
            let blob = format!("{}:{hex}", Algorithm::Sha256.name()).parse::<Digest>();
            if blob.is_ok_and(|blob| self.has_blob(&blob, None)) {
                continue;
            }
            let path = folder.join(&name);
            let size = fs::symlink_metadata(&path).map_or(0, |metadata| metadata.len());
            crate::durable::remove_file(&path).context("remove", &path)?;
            freed += size;
        }
        Ok(freed)
    }
}

fn encode(places: &[FramePlace]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for FramePlace { key, offset, length } in places {
        bytes.extend_from_slice(&key.sums.to_le_bytes());
        bytes.extend_from_slice(&key.length.to_le_bytes());
        bytes.extend_from_slice(&offset.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
    }
    bytes
}

fn decode(bytes: &[u8]) -> Option<impl Iterator<Item = FramePlace>> {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    Some(bytes.strip_prefix(MAGIC)?.chunks_exact(RECORD).map(move |record| FramePlace {
        key: FrameKey { sums: number(&record[..8]), length: number(&record[8..12]) as u32 },
        offset: number(&record[12..20]),
        length: number(&record[20..28]),
    }))
}
