//! Mount points that had to be made in a root file system, and their removal after the run.
//!
//! A step's tree must not keep what only its mounts needed: an empty `/etc/resolv.conf`, an empty directory of a
//! `--mount`. (An empty `/proc`, `/sys` or `/dev` stays, as in BuildKit, so that trees are equal.) The step
//! makes them and notes parent, name and identity; the helper removes them, by descriptor, only if they are still the
//! same empty file or directory. The parent's modification time is restored both times, so that the tree that is
//! committed does not tell that they ever existed.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use serde::{Deserialize, Serialize};

/// What identifies a stub, besides the descriptor of its parent directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stub {
    pub(crate) name: String,
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) directory: bool,
}

/// Modification time of a directory, and what leaves the access time alone.
pub(crate) fn times_of(directory: impl AsFd) -> rustix::io::Result<Timestamps> {
    let stat = rustix::fs::fstat(directory)?;
    Ok(Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
    })
}

/// Makes the mount point `name` in `parent`, which does not exist.
pub(crate) fn make(parent: &OwnedFd, name: &str, directory: bool) -> rustix::io::Result<(Stub, OwnedFd)> {
    let times = times_of(parent)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if directory {
        rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    } else {
        let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(parent, name, create, Mode::from_raw_mode(0o644))?;
    }
    let made = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&made)?;
    // `parent` is an O_PATH descriptor, which utimensat takes only with a path.
    let _ = rustix::fs::utimensat(parent, ".", &times, AtFlags::SYMLINK_NOFOLLOW);
    Ok((Stub { name: name.to_owned(), dev: stat.st_dev, ino: stat.st_ino, directory }, made))
}

/// Removes `stub` from `parent` if it is still what [`make`] made, and empty.
pub(crate) fn remove(parent: &OwnedFd, stub: &Stub) -> rustix::io::Result<()> {
    let stat = match rustix::fs::statat(parent, &stub.name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e),
    };
    if (stat.st_dev, stat.st_ino) != (stub.dev, stub.ino) || (!stub.directory && stat.st_size != 0) {
        return Ok(());
    }
    let times = times_of(parent)?;
    let flags = if stub.directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    match rustix::fs::unlinkat(parent, &stub.name, flags) {
        Ok(()) => rustix::fs::utimensat(parent, ".", &times, AtFlags::SYMLINK_NOFOLLOW),
        // The command put something into it (or, for a bind of the tree, holds it): then it is the command's.
        Err(rustix::io::Errno::NOTEMPTY | rustix::io::Errno::EXIST | rustix::io::Errno::BUSY) => Ok(()),
        Err(e) => Err(e),
    }
}
