//! Where a copy goes: a tree here, a plan of entries in [`super::plan`].

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use build_engine_rootfs::{Attributes, Entry, Error, Kind, Metadata, Place, Time, Tree};
use rustix::io::Errno;

use super::{CopyError, View};
use crate::layer::{LayerError, Unpack, unpack};

/// Where a copy goes. Paths have no links in them, except those given to [`Sink::canonical`].
pub(super) trait Sink {
    fn canonical(&self, path: &Path) -> Result<PathBuf, CopyError>;
    fn find(&self, path: &Path) -> Result<Option<Kind>, CopyError>;
    fn remove(&mut self, path: &Path) -> Result<(), CopyError>;
    fn mkdir(&mut self, path: &Path, entry: &Entry, time: Option<Time>) -> Result<(), CopyError>;
    fn update_dir(&mut self, path: &Path, entry: &Entry) -> Result<(), CopyError>;
    fn set_time(&mut self, path: &Path, time: Time) -> Result<(), CopyError>;
    fn link(&mut self, first: &Path, path: &Path) -> Result<(), CopyError>;
    fn put(&mut self, path: &Path, entry: &Entry, source: View<'_>, from: &Path) -> Result<(), CopyError>;
    /// Takes a file of which nothing was read but what listing it told; `false` if it has to be read.
    fn put_listed(&mut self, _: &Path, _: &Metadata, _listed: &Metadata, _: &Path) -> Result<bool, CopyError> {
        Ok(false)
    }
    fn unpack(&mut self, path: &Path, archive: &mut dyn Read, how: &Unpack<'_>) -> Result<(), LayerError>;
}

/// Writes into a tree.
pub(super) struct TreeSink<'a> {
    tree: &'a Tree,
}

impl<'a> TreeSink<'a> {
    pub(super) fn new(tree: &'a Tree) -> Self {
        Self { tree }
    }

    fn set_xattrs(place: Place<'_>, path: &Path, entry: &Entry) -> Result<(), CopyError> {
        for (name, value) in &entry.xattrs {
            // Like BuildKit: what cannot be kept is left out.
            match place.set_image_xattr(name, value) {
                Ok(_) | Err(Errno::INVAL | Errno::NOSPC | Errno::TOOBIG) => {}
                Err(errno) => return Err(Error::new("copy", path, errno).into()),
            }
        }
        Ok(())
    }
}

impl Sink for TreeSink<'_> {
    fn canonical(&self, path: &Path) -> Result<PathBuf, CopyError> {
        Ok(self.tree.canonical(path, true)?)
    }

    fn find(&self, path: &Path) -> Result<Option<Kind>, CopyError> {
        Ok(self.tree.find(path, false)?.map(|found| found.kind))
    }

    fn remove(&mut self, path: &Path) -> Result<(), CopyError> {
        Ok(self.tree.remove_all(path)?)
    }

    fn mkdir(&mut self, path: &Path, entry: &Entry, time: Option<Time>) -> Result<(), CopyError> {
        self.tree.mkdir(path, 0o700)?;
        self.update_dir(path, entry)?;
        time.map_or(Ok(()), |time| self.set_time(path, time))
    }

    fn update_dir(&mut self, path: &Path, entry: &Entry) -> Result<(), CopyError> {
        let place = self.tree.place(path)?;
        let attributes = Attributes::from(&entry.metadata);
        place.as_place().set_attributes(&attributes).map_err(|errno| Error::new("create", path, errno))?;
        Self::set_xattrs(place.as_place(), path, entry)
    }

    fn set_time(&mut self, path: &Path, time: Time) -> Result<(), CopyError> {
        Ok(self.tree.set_times(path, time)?)
    }

    fn link(&mut self, first: &Path, path: &Path) -> Result<(), CopyError> {
        Ok(self.tree.hard_link(first, path)?)
    }

    fn put(&mut self, path: &Path, entry: &Entry, source: View<'_>, from: &Path) -> Result<(), CopyError> {
        let owned = self.tree.place(path)?;
        let place = owned.as_place();
        let failed = |errno| CopyError::from(Error::new("create", path, errno));
        let mut attributes = Attributes::from(&entry.metadata);
        match entry.metadata.kind {
            Kind::File | Kind::Socket => {
                // A socket is copied as an empty file, as BuildKit does.
                attributes.kind = Kind::File;
                let file = place.create_file(0o600).map_err(failed)?;
                if entry.metadata.size > 0 {
                    let content = source.open_file(from).map_err(|error| CopyError::reading(from, error))?;
                    copy_content(content, &file, &entry.metadata)
                        .map_err(|source| CopyError::Content { path: from.to_owned(), source: source.of(from) })?;
                }
                place.set_new_attributes(file.as_fd(), &attributes).map_err(failed)?;
            }
            Kind::Symlink => {
                place.symlink(&entry.link.clone().unwrap_or_default()).map_err(failed)?;
                place.set_attributes(&attributes).map_err(failed)?;
            }
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                place.create_special(attributes.kind, attributes.mode, attributes.device).map_err(failed)?;
                place.set_attributes(&attributes).map_err(failed)?;
            }
            Kind::Directory => return self.mkdir(path, entry, Some(entry.metadata.mtime)),
        }
        Self::set_xattrs(place, path, entry)?;
        place.set_times(entry.metadata.mtime).map_err(failed)
    }

    fn unpack(&mut self, path: &Path, archive: &mut dyn Read, how: &Unpack<'_>) -> Result<(), LayerError> {
        unpack(archive, &self.tree.subtree(path)?, how).map(|_| ())
    }
}

enum ContentError {
    Changed,
    Io(io::Error),
}

impl ContentError {
    fn of(self, path: &Path) -> LayerError {
        let path = crate::layer::escape(path.as_os_str().as_bytes());
        match self {
            Self::Changed => LayerError::Changed { path },
            Self::Io(source) => LayerError::Content { action: "copy", path, source },
        }
    }
}

/// Copies the content of a file: by sharing blocks where the file system can, else inside the kernel, else by hand.
///
/// `listed` is what the file was when it was described; what else a file is then changed meanwhile.
fn copy_content(mut source: File, mut target: &File, listed: &Metadata) -> Result<(), ContentError> {
    let state = |file: &File| -> Result<_, ContentError> {
        let found = file.metadata().map_err(ContentError::Io)?;
        Ok((found.size(), found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()))
    };
    let before = state(&source)?;
    let Metadata { size, ctime, .. } = listed;
    if (before.0, before.3, before.4) != (*size, ctime.seconds, i64::from(ctime.nanoseconds)) {
        return Err(ContentError::Changed);
    }
    let copied = if rustix::fs::ioctl_ficlone(target, &source).is_ok() {
        before.0
    } else {
        let mut copied = 0;
        loop {
            match rustix::fs::copy_file_range(&source, None, target, None, 1 << 30) {
                Ok(0) => break,
                Ok(length) => copied += length as u64,
                Err(Errno::INTR) => {}
                Err(Errno::NOSYS | Errno::XDEV | Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL | Errno::IO)
                    if copied == 0 =>
                {
                    break;
                }
                Err(errno) => return Err(ContentError::Io(errno.into())),
            }
        }
        if copied == 0 { by_hand(&mut source, &mut target).map_err(ContentError::Io)? } else { copied }
    };
    if copied != before.0 || state(&source)? != before { Err(ContentError::Changed) } else { Ok(()) }
}

fn by_hand(source: &mut File, target: &mut impl Write) -> io::Result<u64> {
    let mut buffer = vec![0; 128 << 10];
    let mut copied = 0;
    loop {
        let got = source.read(&mut buffer)?;
        if got == 0 {
            return Ok(copied);
        }
        target.write_all(&buffer[..got])?;
        copied += got as u64;
    }
}
