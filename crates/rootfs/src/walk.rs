//! Listing a tree in order.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;

use crate::{Error, Ids, Metadata, Place, Result};

/// Directories kept open at once; deeper ones are opened again from the root when the walk comes back to them.
const OPEN_DIRS: usize = 64;

/// A walk over everything below a directory: sorted by the bytes of names, a directory before what is in it.
///
/// It follows no symbolic link and opens directories only. What disappears while it runs is left out; what is replaced
/// meanwhile is an error where it matters (a directory).
#[derive(Debug)]
pub struct Walk {
    ids: Ids,
    frames: Vec<Frame>,
    path: PathBuf,
    /// The directory that the last step returned: entered by the next step unless it is skipped.
    pending: Option<(OsString, (u64, u64))>,
}

#[derive(Debug)]
struct Frame {
    /// Open for the innermost directories and the outermost one.
    fd: Option<Arc<OwnedFd>>,
    identity: (u64, u64),
    /// Names still to come, the next one last.
    names: Vec<OsString>,
}

/// One step of a [`Walk`].
#[derive(Debug)]
pub struct Walked {
    /// Path relative to where the walk started.
    pub path: PathBuf,
    /// What `lstat` says; overrides are not applied, see [`Place::read_entry`].
    pub metadata: Metadata,
    name: OsString,
    dir: Arc<OwnedFd>,
    ids: Ids,
}

impl Walked {
    /// The place, for reading more than the metadata.
    pub fn place(&self) -> Place<'_> {
        Place::new(self.dir.as_fd(), &self.name, self.ids)
    }

    /// Name inside its directory.
    pub fn name(&self) -> &OsStr {
        &self.name
    }
}

impl Walk {
    pub(crate) fn new(dir: OwnedFd, ids: Ids) -> rustix::io::Result<Self> {
        let frame = Frame::new(dir)?;
        Ok(Self { ids, frames: vec![frame], path: PathBuf::new(), pending: None })
    }

    /// Leaves out what is below the directory that the last step returned.
    pub fn skip_dir(&mut self) {
        self.pending = None;
    }

    /// Returns the next step; `None` at the end.
    ///
    /// # Errors
    /// A directory that cannot be read, or that was replaced while the walk was below it. The walk may go on after.
    pub fn step(&mut self) -> Result<Option<Walked>> {
        if let Some((name, identity)) = self.pending.take() {
            self.enter(&name, identity)?;
        }
        loop {
            let Some(frame) = self.frames.last_mut() else { return Ok(None) };
            let Some(name) = frame.names.pop() else {
                self.frames.pop();
                self.path.pop();
                continue;
            };
            let dir = self.open_last()?;
            let found = Place::new(dir.as_fd(), &name, self.ids).find();
            let path = self.path.join(&name);
            let Some(metadata) = found.map_err(|errno| Error::new("read", &path, errno))? else { continue };
            if metadata.is_dir() {
                self.pending = Some((name.clone(), metadata.identity()));
            }
            return Ok(Some(Walked { path, metadata, name, dir, ids: self.ids }));
        }
    }

    fn enter(&mut self, name: &OsStr, identity: (u64, u64)) -> Result<()> {
        let path = self.path.join(name);
        let dir = self.open_last()?;
        let opened = Place::new(dir.as_fd(), name, self.ids).open_dir().and_then(Frame::new);
        let frame = opened.map_err(|errno| Error::new("open", &path, errno))?;
        if frame.identity != identity {
            return Err(Error::new("open", &path, Errno::STALE));
        }
        if let Some(old) = self.frames.len().checked_sub(OPEN_DIRS).filter(|index| *index > 0) {
            self.frames[old].fd = None;
        }
        self.frames.push(frame);
        self.path = path;
        Ok(())
    }

    /// The innermost directory, opened again if it had to be closed.
    fn open_last(&mut self) -> Result<Arc<OwnedFd>> {
        let last = self.frames.len() - 1;
        if let Some(fd) = &self.frames[last].fd {
            return Ok(fd.clone());
        }
        let nearest = self.frames.iter().rposition(|frame| frame.fd.is_some()).expect("the first frame stays open");
        let names: Vec<OsString> = self.path.iter().skip(nearest).map(OsStr::to_owned).collect();
        let mut fd = self.frames[nearest].fd.clone().expect("that is how it was found");
        for (name, frame) in names.iter().zip(&self.frames[nearest + 1..]) {
            let next = Place::new(fd.as_fd(), name, self.ids).open_dir().and_then(|next| {
                let identity = Metadata::from_stat(&rustix::fs::fstat(&next)?).identity();
                if identity == frame.identity { Ok(next) } else { Err(Errno::STALE) }
            });
            fd = Arc::new(next.map_err(|errno| Error::new("open", &self.path, errno))?);
        }
        self.frames[last].fd = Some(fd.clone());
        Ok(fd)
    }

    /// Path of the directory that the walk is in.
    pub fn current_dir(&self) -> &Path {
        &self.path
    }
}

impl Iterator for Walk {
    type Item = Result<Walked>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

impl Frame {
    fn new(dir: OwnedFd) -> rustix::io::Result<Self> {
        let identity = Metadata::from_stat(&rustix::fs::fstat(&dir)?).identity();
        let mut names = names(dir.as_fd())?;
        names.reverse();
        Ok(Self { fd: Some(Arc::new(dir)), identity, names })
    }
}

/// Names in an open directory, sorted by their bytes.
pub(crate) fn names(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<OsString>> {
    // An fd of its own: reading moves the position, and the caller's fd may be shared.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let own = rustix::fs::openat(dir, ".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::new(own)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    names.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    Ok(names)
}
