//! Blobs: bytes under their digest, in an OCI image layout.
//!
//! A blob is written to `ingest/`, hashed on the way, and appears in `content/blobs/` by a rename after it is on disk.
//! Who is named, and what keeps a blob alive, is [`crate::state`]'s and [`crate::gc`]'s business.
//!
//! Invariant: what stands under a digest once had that digest. Readers still expect rot: an empty or short blob counts
//! as absent, so that it is fetched or made again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use build_engine_oci::layout::blob_path;
use build_engine_oci::{Algorithm, Digest, Hasher};
use sha2::Digest as _;

use crate::durable;
use crate::error::{Context, Error, Result};
use crate::layout::{Store, remove_tree};

const CHUNK: usize = 128 * 1024;

/// What [`Store::verify_blob`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobState {
    /// The bytes have the digest.
    Good,
    /// There is no such blob.
    Missing,
    /// The bytes have another digest, or cannot be read.
    Bad,
}

impl Store {
    /// Starts a blob whose digest is not known yet.
    pub fn blob_writer(&self) -> Result<BlobWriter> {
        let path = self.temporary("ingest")?;
        let file = durable::create_new(&path, 0o600).context("create", &path)?;
        Ok(BlobWriter { store: self.clone(), path, file: Some(file), hasher: Hasher::new() })
    }

    /// Stores `bytes` and returns their digest.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::sha256(bytes);
        if self.has_blob(&digest, Some(bytes.len() as u64)) {
            // What is there is kept alive as if it had just been made.
            self.created("blob", &digest.to_string())?;
            if self.has_blob(&digest, Some(bytes.len() as u64)) {
                return Ok(digest);
            }
        }
        let mut writer = self.blob_writer()?;
        let path = writer.path.clone();
        writer.write_all(bytes).context("write", path)?;
        Ok(writer.commit(None)?.0)
    }

    /// Opens a blob and returns its size; `None` if it is absent, empty, or not as long as `size_bytes` says.
    pub fn open_blob(&self, digest: &Digest, size_bytes: Option<u64>) -> Result<Option<(File, u64)>> {
        let path = self.blob_path(digest);
        // Not through a symlink, and not waiting for a pipe: a blob is a regular file or it is none.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).unwrap_or_default();
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Ok(file) => file,
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(Error::io("open", path, error)),
        };
        let metadata = file.metadata().context("read", &path)?;
        let is_empty = metadata.len() == 0 && *digest != Digest::sha256(b"");
        if !metadata.is_file() || is_empty || size_bytes.is_some_and(|size| size != metadata.len()) {
            return Ok(None);
        }
        Ok(Some((file, metadata.len())))
    }

    /// Whether a blob is there, with the size that it should have. Its bytes are not looked at.
    pub fn has_blob(&self, digest: &Digest, size_bytes: Option<u64>) -> bool {
        matches!(self.open_blob(digest, size_bytes), Ok(Some(_)))
    }

    /// Reads a whole blob of at most `limit_bytes` and verifies it; `None` if it is absent or rotten.
    pub fn read_blob(&self, digest: &Digest, limit_bytes: u64) -> Result<Option<Vec<u8>>> {
        let Some((file, size_bytes)) = self.open_blob(digest, None)? else { return Ok(None) };
        if size_bytes > limit_bytes {
            return Err(Error::TooLarge { digest: digest.clone(), size_bytes, limit_bytes });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size_bytes).unwrap_or_default());
        file.take(limit_bytes).read_to_end(&mut bytes).context("read", self.blob_path(digest))?;
        let (actual, _) = digest_of(digest.algorithm(), &bytes[..]).context("read", self.blob_path(digest))?;
        if actual != *digest {
            tracing::warn!(%digest, %actual, "a blob is damaged");
            return Ok(None);
        }
        Ok(Some(bytes))
    }

    /// Reads a blob through and compares its digest.
    pub fn verify_blob(&self, digest: &Digest) -> BlobState {
        match self.open_blob(digest, None) {
            Ok(Some((file, _))) => match digest_of(digest.algorithm(), file) {
                Ok((actual, _)) if actual == *digest => BlobState::Good,
                _ => BlobState::Bad,
            },
            Ok(None) if fs::symlink_metadata(self.blob_path(digest)).is_err() => BlobState::Missing,
            _ => BlobState::Bad,
        }
    }

    /// Removes a blob; that it is gone already is no error.
    pub fn remove_blob(&self, digest: &Digest) -> Result<()> {
        remove_tree(&self.blob_path(digest))
    }

    /// Puts a file that has been verified under its digest: protected, synced, renamed, synced.
    pub(crate) fn place_blob(&self, file: &File, path: &Path, digest: &Digest) -> Result<()> {
        durable::point("chmod").context("protect", path)?;
        rustix::fs::fchmod(file, rustix::fs::Mode::from_raw_mode(0o400)).context("protect", path)?;
        durable::sync(file).context("write", path)?;
        let target = self.blob_path(digest);
        let directory = target.parent().unwrap_or(Path::new("/"));
        if !directory.is_dir() {
            durable::create_dir(directory).context("create", directory)?;
        }
        if fs::symlink_metadata(&target).is_ok_and(|found| found.is_dir()) {
            remove_tree(&target)?;
        }
        self.created("blob", &digest.to_string())?;
        durable::rename(path, &target).context("rename", path)?;
        durable::sync_dir(directory).context("write", directory)
    }

    /// Where a blob is, or would be.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path("content").join(blob_path(digest))
    }
}

/// A blob that is being written. Dropped without [`BlobWriter::commit`], it leaves nothing behind.
#[derive(Debug)]
pub struct BlobWriter {
    store: Store,
    path: PathBuf,
    file: Option<File>,
    hasher: Hasher,
}

impl BlobWriter {
    /// How many bytes were written so far.
    pub fn size_bytes(&self) -> u64 {
        self.hasher.size_bytes()
    }

    /// Puts the blob on disk under its digest, and returns that and the size.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if it is not what was `expected`; [`Error::NoSpace`]. Nothing is left behind in either case.
    pub fn commit(mut self, expected: Option<(&Digest, u64)>) -> Result<(Digest, u64)> {
        let size_bytes = self.hasher.size_bytes();
        let mut digest = std::mem::take(&mut self.hasher).finish();
        let Some(file) = self.file.take() else {
            // A failed write already told the caller.
            let error = io::Error::other("an earlier write failed");
            return Err(Error::io("write", &self.path, error));
        };
        if let Some((wanted, wanted_size)) = expected {
            if wanted_size != size_bytes {
                return Err(Error::Mismatch {
                    what: format!("size of blob {wanted}:"),
                    expected: wanted_size.to_string(),
                    actual: size_bytes.to_string(),
                    size_bytes,
                });
            }
            if wanted.algorithm() != digest.algorithm() {
                let again = File::open(&self.path).context("read", &self.path)?;
                digest = digest_of(wanted.algorithm(), again).context("read", &self.path)?.0;
            }
            if *wanted != digest {
                return Err(Error::Mismatch {
                    what: "blob".to_owned(),
                    expected: wanted.to_string(),
                    actual: digest.to_string(),
                    size_bytes,
                });
            }
        }
        self.store.place_blob(&file, &self.path, &digest)?;
        Ok((digest, size_bytes))
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(file) = &self.file else { return Err(io::Error::other("an earlier write failed")) };
        match durable::write(file, bytes) {
            Ok(()) => {
                self.hasher.update(bytes);
                Ok(bytes.len())
            }
            Err(error) => {
                // How much of it arrived is unknown: the file can no longer become a blob.
                self.file = None;
                Err(error)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        // After a commit there is nothing of this name.
        let _ = fs::remove_file(&self.path);
    }
}

/// Hashes a stream; returns its digest and length.
pub(crate) fn digest_of(algorithm: Algorithm, mut from: impl Read) -> io::Result<(Digest, u64)> {
    let mut buffer = vec![0_u8; CHUNK];
    let mut sha256 = Hasher::new();
    let mut sha512 = sha2::Sha512::new();
    let mut size_bytes = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        size_bytes += count as u64;
        match algorithm {
            Algorithm::Sha256 => sha256.update(&buffer[..count]),
            Algorithm::Sha512 => sha512.update(&buffer[..count]),
        }
    }
    let digest = match algorithm {
        Algorithm::Sha256 => sha256.finish(),
        Algorithm::Sha512 => {
            let hex: String = sha512.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            format!("sha512:{hex}").parse().map_err(io::Error::other)?
        }
    };
    Ok((digest, size_bytes))
}
