//! One name inside one open directory.
//!
//! Nothing is resolved here: the directory is an fd and the name has no slash, so a symbolic link at the name is
//! always the thing itself. What can only be done to an open inode (mode, extended attributes) is done by fd.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::{Errno, Result};

use crate::{Device, Ids, Kind, Metadata, Time};

/// Flags of every open of something that exists.
const OPEN: OFlags = OFlags::CLOEXEC.union(OFlags::NOFOLLOW).union(OFlags::NOCTTY).union(OFlags::NONBLOCK);

/// One name inside one open directory. The name `.` is the directory itself.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    dir: BorrowedFd<'a>,
    name: &'a OsStr,
    ids: Ids,
}

/// A [`Place`] that owns its directory.
#[derive(Debug)]
pub struct OwnedPlace {
    dir: OwnedFd,
    name: OsString,
    ids: Ids,
}

impl OwnedPlace {
    pub(crate) fn new(dir: OwnedFd, name: OsString, ids: Ids) -> Self {
        Self { dir, name, ids }
    }

    /// Borrows it.
    pub fn as_place(&self) -> Place<'_> {
        Place { dir: self.dir.as_fd(), name: &self.name, ids: self.ids }
    }
}

impl<'a> Place<'a> {
    /// Names `name` in `dir`.
    ///
    /// # Panics
    /// If `name` has a slash: a path is resolved by [`crate::Tree`].
    pub fn new(dir: BorrowedFd<'a>, name: &'a OsStr, ids: Ids) -> Self {
        assert!(!name.as_bytes().contains(&b'/'), "a place is one name, not a path");
        Self { dir, name, ids }
    }

    /// The directory.
    pub fn dir(self) -> BorrowedFd<'a> {
        self.dir
    }

    /// The name in it.
    pub fn name(self) -> &'a OsStr {
        self.name
    }

    /// How owners are represented here.
    pub fn ids(self) -> Ids {
        self.ids
    }

    /// What `lstat` says.
    pub fn metadata(self) -> Result<Metadata> {
        Ok(Metadata::from_stat(&rustix::fs::statat(self.dir, self.name, AtFlags::SYMLINK_NOFOLLOW)?))
    }

    /// Like [`Place::metadata`], `None` if nothing is there.
    pub fn find(self) -> Result<Option<Metadata>> {
        match self.metadata() {
            Ok(metadata) => Ok(Some(metadata)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Opens it without access (`O_PATH`), whatever it is.
    pub fn open_path(self) -> Result<OwnedFd> {
        rustix::fs::openat(self.dir, self.name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
    }

    /// Opens a directory for reading.
    pub fn open_dir(self) -> Result<OwnedFd> {
        rustix::fs::openat(self.dir, self.name, OPEN | OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())
    }

    /// Opens a regular file for reading; [`Errno::OPNOTSUPP`] for everything else, which is never opened.
    pub fn open_file(self) -> Result<File> {
        self.open_inode(Kind::File, OFlags::RDONLY).map(File::from)
    }

    /// Opens a regular file or a directory, whichever `kind` says; refuses the rest.
    pub(crate) fn open_inode(self, kind: Kind, access: OFlags) -> Result<OwnedFd> {
        match kind {
            Kind::Directory => return self.open_dir(),
            Kind::File => {}
            Kind::Symlink | Kind::CharDevice | Kind::BlockDevice | Kind::Fifo | Kind::Socket => {
                return Err(Errno::OPNOTSUPP);
            }
        }
        // First without access: opening a device or a pipe has effects, looking at it has none.
        let path = self.open_path()?;
        let seen = Metadata::from_stat(&rustix::fs::fstat(&path)?);
        if seen.kind != Kind::File {
            return Err(Errno::OPNOTSUPP);
        }
        match rustix::fs::open(proc_path(path.as_fd()), access | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()) {
            Ok(file) => Ok(file),
            // Without /proc the name is opened again, and what comes is compared with what was seen.
            Err(Errno::NOENT) => {
                let file = rustix::fs::openat(self.dir, self.name, OPEN | access, Mode::empty())?;
                let opened = Metadata::from_stat(&rustix::fs::fstat(&file)?);
                if opened.identity() == seen.identity() { Ok(file) } else { Err(Errno::STALE) }
            }
            Err(errno) => Err(errno),
        }
    }

    /// Opens what is there for reading, without waiting and without following a link.
    pub(crate) fn open_listed(self) -> Result<OwnedFd> {
        rustix::fs::openat(self.dir, self.name, OPEN | OFlags::RDONLY, Mode::empty())
    }

    /// Target of a symbolic link.
    pub fn read_link(self) -> Result<OsString> {
        let target = rustix::fs::readlinkat(self.dir, self.name, Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// Creates a regular file that must not exist, and opens it for reading and writing.
    pub fn create_file(self, mode: u32) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.dir, self.name, flags, Mode::from_raw_mode(0o600))?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777))?;
        Ok(File::from(file))
    }

    /// Creates a directory; the mode is exact, whatever the umask.
    pub fn mkdir(self, mode: u32) -> Result<()> {
        rustix::fs::mkdirat(self.dir, self.name, Mode::from_raw_mode(0o700))?;
        if mode & 0o7777 != 0o700 {
            rustix::fs::fchmod(self.open_dir()?, Mode::from_raw_mode(mode & 0o7777))?;
        }
        Ok(())
    }

    /// Creates a symbolic link.
    pub fn symlink(self, target: &OsStr) -> Result<()> {
        rustix::fs::symlinkat(target, self.dir, self.name)
    }

    /// Creates another name for the inode at `existing`; a symbolic link there is linked itself.
    pub fn hard_link(self, existing: Place<'_>) -> Result<()> {
        rustix::fs::linkat(existing.dir, existing.name, self.dir, self.name, AtFlags::empty())
    }

    /// Creates a device node, pipe or socket exactly as said, without any fallback; see [`Place::create_special`].
    pub fn mknod(self, kind: Kind, mode: u32, device: Device) -> Result<()> {
        let dev = rustix::fs::makedev(device.major, device.minor);
        rustix::fs::mknodat(self.dir, self.name, kind.file_type(), Mode::from_raw_mode(mode & 0o7777), dev)?;
        self.chmod_special(mode)
    }

    /// Creates an overlay whiteout.
    pub fn whiteout(self) -> Result<()> {
        rustix::fs::mknodat(self.dir, self.name, Kind::CharDevice.file_type(), Mode::empty(), 0)
    }

    /// Moves it to `to`, replacing what is there as `rename` does.
    pub fn rename(self, to: Place<'_>) -> Result<()> {
        rustix::fs::renameat(self.dir, self.name, to.dir, to.name)
    }

    /// Removes anything but a directory.
    pub fn unlink(self) -> Result<()> {
        rustix::fs::unlinkat(self.dir, self.name, AtFlags::empty())
    }

    /// Removes an empty directory.
    pub fn rmdir(self) -> Result<()> {
        rustix::fs::unlinkat(self.dir, self.name, AtFlags::REMOVEDIR)
    }

    /// Sets the owner of the inode itself, without any fallback; see [`Place::set_attributes`].
    pub fn chown(self, uid: u32, gid: u32) -> Result<()> {
        if uid == u32::MAX || gid == u32::MAX {
            return Err(Errno::INVAL);
        }
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::chownat(self.dir, self.name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Sets the permission bits of the inode itself; does nothing to a symbolic link, which has none.
    pub fn chmod(self, mode: u32) -> Result<()> {
        match self.metadata()?.kind {
            Kind::Symlink => Ok(()),
            Kind::Directory => rustix::fs::fchmod(self.open_dir()?, Mode::from_raw_mode(mode & 0o7777)),
            Kind::File | Kind::CharDevice | Kind::BlockDevice | Kind::Fifo | Kind::Socket => self.chmod_special(mode),
        }
    }

    /// `fchmod` for what must not be opened.
    fn chmod_special(self, mode: u32) -> Result<()> {
        let path = self.open_path()?;
        let mode = Mode::from_raw_mode(mode & 0o7777);
        if Metadata::from_stat(&rustix::fs::fstat(&path)?).kind == Kind::Symlink {
            return Err(Errno::LOOP);
        }
        match rustix::fs::chmod(proc_path(path.as_fd()), mode) {
            Err(Errno::NOENT) => rustix::fs::chmodat(self.dir, self.name, mode, AtFlags::empty()),
            done => done,
        }
    }

    /// Sets the modification time (and the access time to the same) of the inode itself.
    pub fn set_times(self, mtime: Time) -> Result<()> {
        self.set_times_at(mtime.timespec(), mtime.timespec())
    }

    fn set_times_at(self, last_access: Timespec, last_modification: Timespec) -> Result<()> {
        let times = Timestamps { last_access, last_modification };
        rustix::fs::utimensat(self.dir, self.name, &times, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Names of the extended attributes of a regular file or directory, sorted; nothing for the rest.
    pub fn xattr_names(self) -> Result<Vec<OsString>> {
        match self.open_for_xattr()? {
            Some(fd) => xattr_names(fd.as_fd()),
            None => Ok(Vec::new()),
        }
    }

    /// Value of an extended attribute; `None` if it is not there.
    pub fn xattr(self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        match self.open_for_xattr()? {
            Some(fd) => xattr(fd.as_fd(), name),
            None => Ok(None),
        }
    }

    /// Sets an extended attribute of a regular file or directory.
    pub fn set_xattr(self, name: &OsStr, value: &[u8]) -> Result<()> {
        let fd = self.open_for_xattr()?.ok_or(Errno::OPNOTSUPP)?;
        rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())
    }

    /// Removes an extended attribute; it is no error if it is not there.
    pub fn remove_xattr(self, name: &OsStr) -> Result<()> {
        let Some(fd) = self.open_for_xattr()? else { return Ok(()) };
        ignore_no_data(rustix::fs::fremovexattr(fd, name))
    }

    fn open_for_xattr(self) -> Result<Option<OwnedFd>> {
        let kind = self.metadata()?.kind;
        match self.open_inode(kind, OFlags::RDONLY) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::OPNOTSUPP) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

/// Path under which /proc shows an fd of this process.
pub(crate) fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Removing what is not there is done.
pub(crate) fn ignore_no_data(result: Result<()>) -> Result<()> {
    match result {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

/// Names of the extended attributes of an open file, sorted. None where the file system has no such thing.
pub(crate) fn xattr_names(fd: BorrowedFd<'_>) -> Result<Vec<OsString>> {
    let mut list = vec![0; 1024];
    let length = loop {
        match rustix::fs::flistxattr(fd, &mut list[..]) {
            Ok(length) => break length,
            // The kernel's own limit of a list is 64 KiB.
            Err(Errno::RANGE) if list.len() < 1 << 17 => list.resize(list.len() * 8, 0),
            Err(Errno::OPNOTSUPP) => break 0,
            Err(errno) => return Err(errno),
        }
    };
    list.truncate(length);
    let mut names: Vec<_> = list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| OsString::from_vec(name.to_vec()))
        .collect();
    names.sort_unstable();
    Ok(names)
}

/// Value of an extended attribute of an open file; `None` if it is not there.
pub(crate) fn xattr(fd: BorrowedFd<'_>, name: &OsStr) -> Result<Option<Vec<u8>>> {
    let mut value = vec![0; 256];
    loop {
        match rustix::fs::fgetxattr(fd, name, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                return Ok(Some(value));
            }
            // The kernel's own limit of a value is 64 KiB.
            Err(Errno::RANGE) if value.len() < 1 << 17 => value.resize(value.len() * 8, 0),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(errno) => return Err(errno),
        }
    }
}
