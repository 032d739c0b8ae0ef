//! Claims: who does a piece of work that several builds or processes want.
//!
//! A claim is a lock on a file named after the key. The lock goes with its holder, however that ends, so a claim is
//! never stale. The file itself is removed on release; whoever waited for it notices and starts over.
//!
//! Order of locks, everywhere: claim, then cache mount. A claim is taken after the inputs are ready, never before.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use build_engine_oci::Digest;

use crate::error::{Context, Error, Result};
use crate::layout::{Store, is_linked, lock_file};

/// The right to do a piece of work; given up when dropped.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    file: File,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // While still locked: nobody can have taken a file of this name meanwhile.
        if is_linked(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Store {
    /// Takes the claim on `key`, waiting for as long as someone else has it.
    pub fn claim(&self, key: &str) -> Result<Claim> {
        let path = self.claim_path(key);
        loop {
            let file = lock_file(&path)?;
            file.lock().context("lock", &path)?;
            if let Some(claim) = taken(file, &path)? {
                return Ok(claim);
            }
        }
    }

    /// Takes the claim on `key` if nobody has it.
    pub fn try_claim(&self, key: &str) -> Result<Option<Claim>> {
        let path = self.claim_path(key);
        loop {
            let file = lock_file(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(Error::io("lock", path, error)),
            }
            if let Some(claim) = taken(file, &path)? {
                return Ok(Some(claim));
            }
        }
    }

    /// Takes the claim on `key`, asking `cancelled` many times a second, and waiting at most `timeout`.
    ///
    /// # Errors
    /// [`Error::Cancelled`]; [`Error::Busy`], which names the holder's process.
    pub fn claim_unless(
        &self,
        key: &str,
        timeout: Option<Duration>,
        mut cancelled: impl FnMut() -> bool,
    ) -> Result<Claim> {
        let started = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            if cancelled() {
                return Err(Error::Cancelled { path: self.claim_path(key) });
            }
            if let Some(claim) = self.try_claim(key)? {
                return Ok(claim);
            }
            if timeout.is_some_and(|timeout| started.elapsed() >= timeout) {
                return Err(Error::Busy { path: self.claim_path(key), owner: self.claim_owner(key) });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// The process that has the claim on `key`, if it is taken.
    pub fn claim_owner(&self, key: &str) -> Option<u32> {
        let path = self.claim_path(key);
        let file = File::open(&path).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => fs::read_to_string(&path).ok()?.trim().parse().ok(),
            _ => None,
        }
    }

    fn claim_path(&self, key: &str) -> PathBuf {
        self.path("claims").join(Digest::sha256(key.as_bytes()).hex())
    }
}

/// The claim, if the locked file is still the one that `path` names.
fn taken(file: File, path: &Path) -> Result<Option<Claim>> {
    if !is_linked(&file, path) {
        return Ok(None);
    }
    file.set_len(0).context("write", path)?;
    file.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0).context("write", path)?;
    Ok(Some(Claim { path: path.to_owned(), file }))
}
