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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::{CommitInfo, Ids, LayerBlob, Snapshot, StoreOptions};

    const LEVEL: Compression = Compression::Gzip { level: 1 };

    fn new_store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store"), &StoreOptions { ids: Ids::Full }).unwrap();
        (dir, store)
    }

    /// Makes the blob of a layer of three large files, the last of which is `last` all over.
    fn blob(store: &Store, last: u8) -> LayerBlob {
        let active = store.active_layer(&Snapshot::scratch()).unwrap();
        for (name, byte) in [("a", 1), ("b", 2), ("c", last)] {
            let content: Vec<u8> = (0..1_500_000_u32).map(|n| (n.wrapping_mul(n) >> 13) as u8 & 7 ^ byte).collect();
            let path = active.dir().join(name);
            fs::write(&path, content).unwrap();
            fs::File::open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        }
        let layer = store.commit(active, &CommitInfo::default()).unwrap();
        store.layer_blob(&layer, LEVEL, None).unwrap()
    }

    fn bytes(store: &Store, blob: &LayerBlob) -> Vec<u8> {
        fs::read(store.path("content").join(blob_path(&blob.descriptor.digest))).unwrap()
    }

    /// Puts a blob into the store that has the frames of `blob`, compressed at another level, and a table for it that says
    /// they were made at the same one. Who copies them gives himself away.
    fn plant(store: &Store, blob: &LayerBlob, damage: Option<usize>) -> Digest {
        let table = store.path("frames").join(format!("{}{}", prefix(LEVEL).unwrap(), blob.descriptor.digest.hex()));
        let places: Vec<FramePlace> = decode(&fs::read(&table).unwrap()).unwrap().collect();
        let from = bytes(store, blob);
        let (mut planted, mut at) = (Vec::new(), Vec::new());
        for FramePlace { key, offset, length } in places {
            let frame = &from[offset as usize..(offset + length) as usize];
            let mut archive = Vec::new();
            std::io::copy(&mut crate::layer::compress::decompress(frame).unwrap(), &mut archive).unwrap();
            let frame = Compression::Gzip { level: 9 }.compress(&archive).unwrap();
            at.push(FramePlace { key, offset: planted.len() as u64, length: frame.len() as u64 });
            planted.extend_from_slice(&frame);
        }
        let digest = store.put_blob(&planted).unwrap();
        if let Some(step) = damage {
            planted.iter_mut().step_by(step).for_each(|byte| *byte ^= 0x10);
            let path = store.path("content").join(blob_path(&digest));
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            fs::write(&path, planted).unwrap();
        }
        fs::remove_file(table).unwrap();
        store.save_frames(LEVEL, &digest, &at);
        digest
    }

    #[test]
    fn frames_that_a_blob_has_are_copied_and_damaged_ones_are_not() {
        let (_plain_dir, plain) = new_store();
        let expected = blob(&plain, 4);
        for (damage, copies) in [(None, true), (Some(1000), false)] {
            let (_dir, store) = new_store();
            let first = blob(&store, 3);
            plant(&store, &first, damage);
            let second = blob(&store, 4);
            assert_eq!(second.diff_id, expected.diff_id);
            assert_eq!(second.descriptor != expected.descriptor, copies, "{damage:?}");
            let mut archive = Vec::new();
            let unpacked = crate::layer::compress::decompress(
                fs::File::open(store.path("content").join(blob_path(&second.descriptor.digest))).unwrap(),
            );
            std::io::copy(&mut unpacked.unwrap(), &mut archive).unwrap();
            assert_eq!(Digest::sha256(&archive), *expected.diff_id.as_digest());
        }
    }

    #[test]
    fn what_is_copied_changes_no_byte() {
        let (_dir, store) = new_store();
        let (_plain_dir, plain) = new_store();
        blob(&store, 3);
        assert_eq!(blob(&store, 4), blob(&plain, 4));
    }

    #[test]
    fn tables_go_with_their_blobs_and_do_not_pile_up() {
        let (_dir, store) = new_store();
        let first = blob(&store, 3);
        let places = [FramePlace { key: FrameKey { sums: 1, length: 2 }, offset: 3, length: 4 }; 2];
        for n in 0..MOST_TABLES + 5 {
            store.save_frames(LEVEL, &Digest::sha256(&n.to_le_bytes()), &places);
        }
        assert_eq!(entries(&store.path("frames")).unwrap().len(), MOST_TABLES);
        store.save_frames(LEVEL, &first.descriptor.digest, &places);
        store.save_frames(Compression::Uncompressed, &first.descriptor.digest, &places);
        store.remove_frame_tables().unwrap();
        assert_eq!(entries(&store.path("frames")).unwrap().len(), 1);
        store.prune(true).unwrap();
        assert_eq!(entries(&store.path("frames")).unwrap(), Vec::<String>::new());
        fs::write(store.path("frames").join("nonsense"), "x").unwrap();
        fs::write(store.path("frames").join(format!("{}zz", prefix(LEVEL).unwrap())), "x").unwrap();
        blob(&store, 3);
    }
}
