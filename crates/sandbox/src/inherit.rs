//! Descriptors that a process is started with.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use rustix::io::{FdFlags, fcntl_setfd};

use crate::sys;

static TAKEN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Takes the descriptor `number` that the parent left open for this process, and keeps it from being inherited further.
///
/// # Errors
/// If there is no such descriptor, if it is one of the standard streams, or if it was taken before.
pub fn inherited_fd(number: i32) -> io::Result<OwnedFd> {
    if !TAKEN.lock().unwrap_or_else(PoisonError::into_inner).insert(number) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the descriptor was taken before"));
    }
    let fd = sys::adopt_fd(number)?;
    fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}
