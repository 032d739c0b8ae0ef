//! Removing a tree of any depth.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::{Errno, Result};

use crate::{Kind, Place};

/// Directories held open at once. Deeper ones are moved up into the directory that is being removed and wait there.
const OPEN_DIRS: usize = 64;

impl Place<'_> {
    /// Removes it and everything below; see [`crate::Tree::remove_all`]. The name `.` empties the directory.
    pub fn remove_all(self) -> Result<()> {
        let root = self.name() == ".";
        if !root && self.metadata()?.kind != Kind::Directory {
            return self.unlink();
        }
        empty(&open_for_removal(self)?)?;
        if root { Ok(()) } else { self.rmdir() }
    }
}

/// Opens a directory, giving its owner the permission to empty it where it is missing.
fn open_for_removal(place: Place<'_>) -> Result<OwnedFd> {
    let dir = match place.open_dir() {
        Err(Errno::ACCESS | Errno::PERM) => {
            place.chmod(0o700)?;
            place.open_dir()?
        }
        opened => opened?,
    };
    let mode = rustix::fs::fstat(&dir)?.st_mode;
    if mode & 0o700 != 0o700 {
        // Not ours to change means that only a capability can help, and then the mode does not matter.
        let _ = rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o700));
    }
    Ok(dir)
}

/// Empties an open directory.
fn empty(root: &OwnedFd) -> Result<()> {
    let mut moved = 0_u64;
    // Each pass removes all but what was deeper than OPEN_DIRS, which it moves up.
    while has_entries(root)? {
        pass(root, &mut moved)?;
    }
    Ok(())
}

fn has_entries(dir: &OwnedFd) -> Result<bool> {
    Ok(!list(dir, 1)?.is_empty())
}

/// Up to `limit` names with what the directory says about their kinds.
fn list(dir: &OwnedFd, limit: usize) -> Result<Vec<OsString>> {
    use std::os::unix::ffi::OsStrExt;
    let own = rustix::fs::openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::new(own)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
            if names.len() == limit {
                break;
            }
        }
    }
    Ok(names)
}

/// Removes everything at most OPEN_DIRS deep and moves the directories below that into `root`.
fn pass(root: &OwnedFd, moved: &mut u64) -> Result<()> {
    let mut frames: Vec<(OwnedFd, OsString, Vec<OsString>)> = Vec::new();
    let mut names = list(root, usize::MAX)?;
    loop {
        let remaining = frames.last_mut().map_or(&mut names, |(_, _, names)| names);
        let Some(name) = remaining.pop() else {
            let Some((_, name, _)) = frames.pop() else { return Ok(()) };
            let parent = frames.last().map_or(root, |(dir, _, _)| dir);
            match place(parent, &name).rmdir() {
                // Something was moved up from here and back in by nobody; a directory that another process fills
                // is met again by the next pass.
                Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY) => continue,
                Err(errno) => return Err(errno),
            }
        };
        let dir = frames.last().map_or(root, |(dir, _, _)| dir);
        let here = place(dir, &name);
        match here.unlink() {
            Ok(()) | Err(Errno::NOENT) => continue,
            // Linux answers EISDIR, other file systems EPERM.
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
        if here.metadata()?.kind != Kind::Directory {
            here.unlink()?;
            continue;
        }
        if frames.len() < OPEN_DIRS {
            let inner = open_for_removal(here)?;
            let inner_names = list(&inner, usize::MAX)?;
            frames.push((inner, name, inner_names));
            continue;
        }
        // Moving a directory needs to write into it, because its `..` changes.
        drop(open_for_removal(here)?);
        loop {
            *moved += 1;
            let to = OsString::from(format!(".build-engine-remove-{moved}"));
            match rustix::fs::renameat_with(dir, &name, root, &to, rustix::fs::RenameFlags::NOREPLACE) {
                Ok(()) | Err(Errno::NOENT) => break,
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

fn place<'a>(dir: &'a OwnedFd, name: &'a OsStr) -> Place<'a> {
    Place::new(dir.as_fd(), name, crate::Ids::Full)
}
