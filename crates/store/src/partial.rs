//! Blobs that arrive slowly: what came before an interruption is kept, and who unpacks need not wait for the end.
//!
//! The file is called `ingest/<algorithm>-<hex>`, after the digest that it should come to have, so that whoever wants the
//! blob next goes on where the last one stopped. Only the holder of the blob's claim writes to it. It becomes a blob as
//! every other one does: verified, synced, renamed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};

use build_engine_oci::{Algorithm, Descriptor, Hasher};

use crate::claims::Claim;
use crate::content::digest_of;
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::layout::{Store, lock};

/// A blob of which a part is there. Dropped without [`PartialBlob::commit`], it stays for the next attempt.
#[derive(Debug)]
pub struct PartialBlob {
    store: Store,
    descriptor: Descriptor,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    progress: Arc<Progress>,
    _claim: Claim,
}

#[derive(Debug, Default)]
struct Progress {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    written: u64,
    /// Whether it ended well, once it ended.
    ended: Option<bool>,
}

impl Progress {
    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.state));
        self.moved.notify_all();
    }
}

impl Store {
    /// Begins, or goes on with, fetching a blob; `None` if it is there. Waits for whoever fetches it now.
    ///
    /// What an earlier attempt left is read once, because its digest is needed. A part that is longer than the blob can
    /// be is thrown away.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn partial_blob(&self, descriptor: &Descriptor) -> Result<Option<PartialBlob>> {
        let Descriptor { digest, size, .. } = descriptor;
        let is_there = || -> Result<bool> {
            self.created("blob", &digest.to_string())?;
            Ok(self.has_blob(digest, Some(*size)))
        };
        if is_there()? {
            return Ok(None);
        }
        let claim = self.claim(&format!("fetch {digest}"))?;
        if is_there()? {
            return Ok(None);
        }
        let path = self.path("ingest").join(format!("{}-{}", digest.algorithm().name(), digest.hex()));
        let flags = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default();
        durable::point("create").context("create", &path)?;
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(flags)
            .open(&path)
            .context("create", &path)?;
        let mut partial = PartialBlob {
            store: self.clone(),
            descriptor: descriptor.clone(),
            path,
            file,
            hasher: Hasher::new(),
            progress: Arc::default(),
            _claim: claim,
        };
        partial.read_what_is_there()?;
        Ok(Some(partial))
    }

    /// Removes what interrupted fetches left, unless somebody fetches it now. Returns the bytes.
    pub(crate) fn remove_partial_blobs(&self) -> Result<u64> {
        let mut size_bytes = 0;
        for name in crate::layout::entries(&self.path("ingest"))? {
            let Some(digest) = name.replacen('-', ":", 1).parse::<build_engine_oci::Digest>().ok() else { continue };
            let Some(_claim) = self.try_claim(&format!("fetch {digest}"))? else { continue };
            let path = self.path("ingest").join(&name);
            size_bytes += fs::symlink_metadata(&path).map_or(0, |metadata| metadata.len());
            durable::remove_file(&path).context("remove", &path)?;
        }
        Ok(size_bytes)
    }
}

impl PartialBlob {
    fn read_what_is_there(&mut self) -> Result<()> {
        let length = self.file.metadata().context("read", &self.path)?.len();
        if length > self.descriptor.size {
            return self.start_over();
        }
        let mut buffer = vec![0; 128 << 10];
        let mut reader = &self.file;
        loop {
            let count = reader.read(&mut buffer).context("read", &self.path)?;
            if count == 0 {
                break;
            }
            self.hasher.update(&buffer[..count]);
        }
        self.progress.set(|state| state.written = length);
        Ok(())
    }

    /// How many bytes are there.
    pub fn offset(&self) -> u64 {
        self.hasher.size_bytes()
    }

    /// Throws away what is there.
    ///
    /// # Errors
    /// When the file cannot be changed.
    pub fn start_over(&mut self) -> Result<()> {
        self.file.set_len(0).context("write", &self.path)?;
        self.hasher = Hasher::new();
        self.progress.set(|state| state.written = 0);
        Ok(())
    }

    /// Appends some bytes.
    ///
    /// # Errors
    /// When they cannot be written, or are more than the blob has.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let size = self.offset() + bytes.len() as u64;
        if size > self.descriptor.size {
            return Err(self.mismatch("size of blob", self.descriptor.size.to_string(), format!("at least {size}")));
        }
        if let Err(error) = durable::write(&self.file, bytes) {
            // How much of it arrived is unknown; what came before is good.
            let _ = self.file.set_len(self.offset());
            return Err(error).context("write", &self.path);
        }
        self.hasher.update(bytes);
        self.progress.set(|state| state.written = size);
        Ok(())
    }

    /// A reader that follows the writer: it waits for bytes that are still to come, and ends well only after the blob
    /// was verified and committed.
    ///
    /// # Errors
    /// When the file cannot be opened once more.
    pub fn follow(&self) -> Result<Following> {
        let file = self.file.try_clone().context("open", &self.path)?;
        Ok(Following { file, offset: 0, progress: Arc::clone(&self.progress) })
    }

    /// Makes it a blob.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if it is not what its descriptor says; what is there is removed then.
    pub fn commit(mut self) -> Result<()> {
        let Descriptor { digest, size, .. } = self.descriptor.clone();
        let actual_size = self.offset();
        if actual_size != size {
            self.remove()?;
            return Err(self.mismatch("size of blob", size.to_string(), actual_size.to_string()));
        }
        let actual = match digest.algorithm() {
            Algorithm::Sha256 => std::mem::take(&mut self.hasher).finish(),
            Algorithm::Sha512 => {
                let file = File::open(&self.path).context("read", &self.path)?;
                digest_of(Algorithm::Sha512, file).context("read", &self.path)?.0
            }
        };
        if actual != digest {
            self.remove()?;
            return Err(self.mismatch("blob", digest.to_string(), actual.to_string()));
        }
        self.store.place_blob(&self.file, &self.path, &digest)?;
        self.progress.set(|state| state.ended = Some(true));
        Ok(())
    }

    fn remove(&self) -> Result<()> {
        durable::remove_file(&self.path).context("remove", &self.path)
    }

    fn mismatch(&self, what: &str, expected: String, actual: String) -> Error {
        let what = match what {
            "blob" => what.to_owned(),
            _ => format!("{what} {}:", self.descriptor.digest),
        };
        Error::Mismatch { what, expected, actual, size_bytes: self.offset() }
    }
}

impl Drop for PartialBlob {
    fn drop(&mut self) {
        self.progress.set(|state| {
            state.ended.get_or_insert(false);
        });
    }
}

/// Reads a [`PartialBlob`] while it is written.
#[derive(Debug)]
pub struct Following {
    file: File,
    offset: u64,
    progress: Arc<Progress>,
}

/// The writer of a blob gave up.
#[derive(Debug, thiserror::Error)]
#[error("the blob did not arrive")]
pub struct NotArrived;

impl Read for Following {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = lock(&self.progress.state);
        loop {
            if state.ended == Some(false) {
                return Err(io::Error::other(NotArrived));
            }
            let there = state.written.saturating_sub(self.offset);
            if there > 0 {
                drop(state);
                let most = usize::try_from(there).unwrap_or(usize::MAX).min(buffer.len());
                let count = self.file.read_at(&mut buffer[..most], self.offset)?;
                self.offset += count as u64;
                return Ok(count);
            }
            if state.ended == Some(true) {
                return Ok(0);
            }
            state = self.progress.moved.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use build_engine_oci::{Descriptor, Digest};

    use super::*;
    use crate::StoreOptions;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store"), &StoreOptions { ids: crate::Ids::Full }).unwrap();
        (dir, store)
    }

    fn blob(bytes: &[u8]) -> Descriptor {
        Descriptor::new("x", Digest::sha256(bytes), bytes.len() as u64)
    }

    /// R07, R09: what arrived before an interruption is not fetched again.
    #[test]
    fn an_interrupted_blob_goes_on_where_it_stopped() {
        let (_dir, store) = store();
        let wanted = blob(b"hello world");
        let mut first = store.partial_blob(&wanted).unwrap().unwrap();
        first.write(b"hello").unwrap();
        drop(first);
        assert!(!store.has_blob(&wanted.digest, None));
        let mut second = store.partial_blob(&wanted).unwrap().unwrap();
        assert_eq!(second.offset(), 5);
        second.write(b" world").unwrap();
        second.commit().unwrap();
        assert_eq!(store.read_blob(&wanted.digest, 100).unwrap().unwrap(), b"hello world");
        assert!(store.partial_blob(&wanted).unwrap().is_none());
        assert_eq!(fs::read_dir(store.path("ingest")).unwrap().count(), 0);
    }

    /// L17, R01: wrong, too short, too long.
    #[test]
    fn what_is_not_what_it_should_be_becomes_no_blob_and_leaves_nothing() {
        let (_dir, store) = store();
        let wanted = blob(b"hello");
        for wrong in ["HELLO", "hell"] {
            let mut partial = store.partial_blob(&wanted).unwrap().unwrap();
            partial.write(wrong.as_bytes()).unwrap();
            assert!(matches!(partial.commit().unwrap_err(), Error::Mismatch { .. }), "{wrong}");
            assert!(!store.has_blob(&wanted.digest, None));
            assert_eq!(fs::read_dir(store.path("ingest")).unwrap().count(), 0, "{wrong}");
        }
        let mut partial = store.partial_blob(&wanted).unwrap().unwrap();
        assert!(matches!(partial.write(b"hello!").unwrap_err(), Error::Mismatch { .. }));
        assert_eq!(partial.offset(), 0);
    }

    #[test]
    fn a_part_that_is_longer_than_the_blob_is_thrown_away() {
        let (_dir, store) = store();
        let wanted = blob(b"hello");
        fs::write(store.path("ingest").join(format!("sha256-{}", wanted.digest.hex())), "much too long").unwrap();
        assert_eq!(store.partial_blob(&wanted).unwrap().unwrap().offset(), 0);
    }

    #[test]
    fn who_reads_along_gets_every_byte_and_no_end_before_the_blob_is_verified() {
        let (_dir, store) = store();
        let content: Vec<u8> = (0..1_000_000_u32).map(|it| it.to_le_bytes()[0]).collect();
        for good in [true, false] {
            let mut wanted = blob(&content);
            if !good {
                wanted.digest = Digest::sha256(b"something else");
            }
            let mut partial = store.partial_blob(&wanted).unwrap().unwrap();
            let mut following = partial.follow().unwrap();
            let reader = std::thread::spawn(move || {
                let mut read = Vec::new();
                following.read_to_end(&mut read).map(|_| read)
            });
            for piece in content.chunks(70_001) {
                partial.write(piece).unwrap();
            }
            assert_eq!(partial.commit().is_ok(), good);
            let read = reader.join().unwrap();
            match good {
                true => assert!(read.unwrap() == content),
                false => assert!(read.unwrap_err().get_ref().unwrap().is::<NotArrived>()),
            }
            store.remove_blob(&wanted.digest).unwrap();
        }
    }

    #[test]
    fn prune_removes_what_nobody_fetches_and_nothing_else() {
        let (_dir, store) = store();
        let (mut busy, mut left) = (
            store.partial_blob(&blob(b"busy")).unwrap().unwrap(),
            store.partial_blob(&blob(b"left")).unwrap().unwrap(),
        );
        busy.write(b"bu").unwrap();
        left.write(b"lef").unwrap();
        drop(left);
        assert_eq!(store.prune(false).unwrap().size_bytes, 3);
        assert_eq!(store.partial_blob(&blob(b"left")).unwrap().unwrap().offset(), 0);
        busy.write(b"sy").unwrap();
        busy.commit().unwrap();
    }

    #[test]
    fn what_a_registry_said_holds_until_a_name_is_set_and_origins_are_remembered() {
        let (_dir, store) = store();
        let name = "example.com/a:1".parse().unwrap();
        let said = blob(b"said");
        assert_eq!(store.resolved(&name).unwrap(), None);
        store.set_resolved(&name, &said).unwrap();
        assert_eq!(store.resolved(&name).unwrap(), Some(said.clone()));
        store.add_origins("example.com/a", [&said.digest]).unwrap();
        store.add_origins("example.com/a", [&said.digest]).unwrap();
        assert_eq!(store.origins(&said.digest).unwrap(), ["example.com/a"]);
        store.set_name(&name, &blob(b"made here"), &[]).unwrap();
        assert_eq!(store.resolved(&name).unwrap(), None);
        store.prune(true).unwrap();
        assert_eq!(store.origins(&said.digest).unwrap(), [""; 0]);
    }
}
