//! A directory that is treated as a root.

#![allow(clippy::redundant_closure_for_method_calls, reason = "`Place::x` names one lifetime, `at` needs all")]

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::{Attributes, Device, Entry, Error, Ids, Kind, Metadata, OwnedPlace, Place, Result, Time, Walk};

/// Symbolic links followed in one path, as BuildKit limits them.
const MAX_LINKS: usize = 255;

/// A directory that is treated as a root: no path leaves it, neither by `..` nor by a symbolic link.
///
/// Paths are cleaned as text first (`a/../b` is `b`, a leading slash means nothing), as BuildKit does with every path
/// of a Dockerfile; symbolic links on the way are then followed by the kernel, inside the tree.
#[derive(Debug)]
pub struct Tree {
    fd: OwnedFd,
    ids: Ids,
}

/// Cleans a path as text: no `.`, no `..`, no double or leading slashes. The root is the empty path.
pub fn clean(path: impl AsRef<Path>) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.as_ref().components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// Where `path` leads when its symbolic links are followed inside a tree, of which `link` tells what a path without links on
/// the way points to if it is a link itself. The last component is followed if `follow_last`. What does not exist is taken as
/// written.
///
/// # Errors
/// Those of `link`, and [`Error::TooManyLinks`].
pub fn follow<E: From<Error>>(
    path: &Path,
    follow_last: bool,
    link: impl Fn(&Path) -> std::result::Result<Option<OsString>, E>,
) -> std::result::Result<PathBuf, E> {
    let mut rest: Vec<OsString> = components_reversed(&clean(path));
    let mut current = PathBuf::new();
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == ".." {
            current.pop();
            continue;
        }
        current.push(&name);
        if rest.is_empty() && !follow_last {
            break;
        }
        let Some(target) = link(&current)? else { continue };
        links += 1;
        if links > MAX_LINKS {
            return Err(Error::TooManyLinks { path: path.to_owned() }.into());
        }
        let target = PathBuf::from(target);
        current.pop();
        if target.is_absolute() {
            current = PathBuf::new();
        }
        rest.extend(components_reversed(&target));
    }
    Ok(current)
}

impl Tree {
    /// Opens the directory `path`, which the caller chose: its own name is resolved as the host does.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| Error::new("open", path, errno))?;
        Ok(Self::from_fd(fd))
    }

    /// Takes a directory that is already open.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd, ids: Ids::Full }
    }

    /// Says how owners are represented in this tree; without it, as [`Ids::Full`].
    #[must_use]
    pub fn with_ids(mut self, ids: Ids) -> Self {
        self.ids = ids;
        self
    }

    /// The same tree once more.
    pub fn try_clone(&self) -> Result<Self> {
        let fd = self.fd.try_clone().map_err(|source| Error::Io { action: "open", path: PathBuf::new(), source })?;
        Ok(Self { fd, ids: self.ids })
    }

    /// How owners are represented in this tree.
    pub fn ids(&self) -> Ids {
        self.ids
    }

    /// The directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens `path` without access (`O_PATH`), following symbolic links inside the tree, the last one too.
    pub fn resolve(&self, path: impl AsRef<Path>) -> Result<OwnedFd> {
        self.openat2(path.as_ref(), OFlags::PATH)
    }

    /// A tree whose root is the directory `path` of this one, symbolic links followed inside this tree.
    pub fn subtree(&self, path: impl AsRef<Path>) -> Result<Self> {
        let fd = self.openat2(path.as_ref(), OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(Self { fd, ids: self.ids })
    }

    fn openat2(&self, path: &Path, flags: OFlags) -> Result<OwnedFd> {
        let clean = clean(path);
        let name = if clean.as_os_str().is_empty() { Path::new(".") } else { &clean };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match rustix::fs::openat2(&self.fd, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Ok(fd) => return Ok(fd),
                // A rename somewhere on the machine made the kernel give up on `..` in a link; it asks to try again.
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(Error::new("open", path, errno)),
            }
        }
    }

    /// The place that `path` names: its parent is resolved and opened, its last component is not followed.
    pub fn place(&self, path: impl AsRef<Path>) -> Result<OwnedPlace> {
        let clean = clean(path.as_ref());
        let Some(name) = clean.file_name() else {
            return Ok(OwnedPlace::new(self.openat2(Path::new(""), OFlags::PATH)?, OsString::from("."), self.ids));
        };
        let parent = clean.parent().unwrap_or(Path::new(""));
        // With a trailing slash for the kernel: a parent that is a symbolic link must lead to a directory.
        let dir = self.openat2(parent, OFlags::PATH | OFlags::DIRECTORY).map_err(|error| match error {
            Error::Io { source, .. } => Error::Io { action: "open", path: path.as_ref().to_owned(), source },
            other => other,
        })?;
        Ok(OwnedPlace::new(dir, name.to_owned(), self.ids))
    }

    fn at<T>(
        &self,
        action: &'static str,
        path: &Path,
        act: impl FnOnce(Place<'_>) -> rustix::io::Result<T>,
    ) -> Result<T> {
        act(self.place(path)?.as_place()).map_err(|errno| Error::new(action, path, errno))
    }

    /// Where `path` leads when its symbolic links are followed inside the tree: a path without symbolic links on the
    /// way, relative to the root. The last component is followed if `follow_last`. What does not exist is taken as
    /// written, so that the path of something to be made can be resolved.
    pub fn canonical(&self, path: impl AsRef<Path>, follow_last: bool) -> Result<PathBuf> {
        follow(path.as_ref(), follow_last, |current| {
            let target = match self.place(current) {
                Ok(place) => match place.as_place().metadata() {
                    Ok(metadata) if metadata.kind == Kind::Symlink => place.as_place().read_link().map(Some),
                    Ok(_) | Err(Errno::NOENT) => Ok(None),
                    Err(errno) => Err(errno),
                },
                // Once a component is missing, everything below it is missing.
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => return Err(error),
            };
            target.map_err(|errno| Error::new("read", current, errno))
        })
    }

    /// Opens a regular file for reading, symbolic links followed inside the tree. Nothing else is ever opened.
    pub fn open_file(&self, path: impl AsRef<Path>) -> Result<File> {
        let path = path.as_ref();
        let seen = self.resolve(path)?;
        let stat = rustix::fs::fstat(&seen).map_err(|errno| Error::new("read", path, errno))?;
        let found = Metadata::from_stat(&stat);
        if found.kind != Kind::File {
            return Err(Error::WrongKind { path: path.to_owned(), found: found.kind, wanted: Kind::File });
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::open(crate::place::proc_path(seen.as_fd()), flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                let file = self.openat2(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
                let stat = rustix::fs::fstat(&file).map_err(|errno| Error::new("read", path, errno))?;
                if Metadata::from_stat(&stat).identity() != found.identity() {
                    return Err(Error::new("open", path, Errno::STALE));
                }
                file
            }
            opened => opened.map_err(|errno| Error::new("open", path, errno))?,
        };
        Ok(File::from(file))
    }

    /// What `stat` (if `follow`) or `lstat` says.
    pub fn metadata(&self, path: impl AsRef<Path>, follow: bool) -> Result<Metadata> {
        let path = path.as_ref();
        if !follow {
            return self.at("read", path, |place| place.metadata());
        }
        let stat = rustix::fs::statat(self.resolve(path)?, "", AtFlags::EMPTY_PATH);
        Ok(Metadata::from_stat(&stat.map_err(|errno| Error::new("read", path, errno))?))
    }

    /// Like [`Tree::metadata`], `None` if nothing is there.
    pub fn find(&self, path: impl AsRef<Path>, follow: bool) -> Result<Option<Metadata>> {
        match self.metadata(path, follow) {
            Ok(metadata) => Ok(Some(metadata)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Everything a layer says about `path`: overrides applied, extended attributes, link target. Follows nothing.
    pub fn read_entry(&self, path: impl AsRef<Path>) -> Result<Entry> {
        self.at("read", path.as_ref(), |place| place.read_entry())
    }

    /// Target of a symbolic link.
    pub fn read_link(&self, path: impl AsRef<Path>) -> Result<OsString> {
        self.at("read", path.as_ref(), |place| place.read_link())
    }

    /// Names in a directory, sorted.
    pub fn read_dir(&self, path: impl AsRef<Path>) -> Result<Vec<OsString>> {
        let path = path.as_ref();
        let dir = self.openat2(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        crate::walk::names(dir.as_fd()).map_err(|errno| Error::new("read", path, errno))
    }

    /// Names in a directory and what `lstat` says of each, sorted. What disappears meanwhile is left out.
    pub fn list(&self, path: impl AsRef<Path>) -> Result<Vec<(OsString, Metadata)>> {
        let path = path.as_ref();
        let dir = self.openat2(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let failed = |errno| Error::new("read", path, errno);
        let names = crate::walk::names(dir.as_fd()).map_err(failed)?;
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            if let Some(metadata) = Place::new(dir.as_fd(), &name, self.ids).find().map_err(failed)? {
                found.push((name, metadata));
            }
        }
        Ok(found)
    }

    /// Creates a regular file that must not exist.
    pub fn create_file(&self, path: impl AsRef<Path>, mode: u32) -> Result<File> {
        self.at("create", path.as_ref(), |place| place.create_file(mode))
    }

    /// Creates a directory that must not exist.
    pub fn mkdir(&self, path: impl AsRef<Path>, mode: u32) -> Result<()> {
        self.at("create", path.as_ref(), |place| place.mkdir(mode))
    }

    /// Creates a directory and its missing parents, and returns those it made, outermost first. Symbolic links on the
    /// way are followed inside the tree; the paths returned have none.
    pub fn mkdir_all(&self, path: impl AsRef<Path>, mode: u32) -> Result<Vec<PathBuf>> {
        let path = path.as_ref();
        let canonical = self.canonical(path, true)?;
        let mut made = Vec::new();
        let mut current = PathBuf::new();
        for name in &canonical {
            current.push(name);
            let place = self.place(&current)?;
            match place.as_place().mkdir(mode) {
                Ok(()) => made.push(current.clone()),
                Err(Errno::EXIST) => {
                    let found = place.as_place().metadata().map_err(|errno| Error::new("read", &current, errno))?.kind;
                    if found != Kind::Directory {
                        return Err(Error::WrongKind { path: current, found, wanted: Kind::Directory });
                    }
                }
                Err(errno) => return Err(Error::new("create", &current, errno)),
            }
        }
        Ok(made)
    }

    /// Creates a symbolic link.
    pub fn symlink(&self, target: impl AsRef<OsStr>, path: impl AsRef<Path>) -> Result<()> {
        self.at("create", path.as_ref(), |place| place.symlink(target.as_ref()))
    }

    /// Creates the name `path` for the inode at `existing`; a symbolic link there is linked itself.
    pub fn hard_link(&self, existing: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<()> {
        let existing = self.place(existing)?;
        self.at("create", path.as_ref(), |place| place.hard_link(existing.as_place()))
    }

    /// Creates a pipe or socket, or the placeholder of a device ([`Place::create_special`](crate::Place::create_special)).
    pub fn mknod(&self, path: impl AsRef<Path>, kind: Kind, mode: u32, device: Device) -> Result<()> {
        self.at("create", path.as_ref(), |place| place.create_special(kind, mode, device))
    }

    /// Moves `from` to `to` inside the tree, replacing what is there as `rename` does.
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let target = self.place(to)?;
        self.at("rename", from.as_ref(), |place| place.rename(target.as_place()))
    }

    /// Removes `path` and everything below it; follows no link, needs no permission on the directories, and works at
    /// any depth. It is no error if nothing is there. Removing the root empties it.
    pub fn remove_all(&self, path: impl AsRef<Path>) -> Result<()> {
        match self.at("remove", path.as_ref(), |place| place.remove_all()) {
            Err(error) if error.is_not_found() => Ok(()),
            done => done,
        }
    }

    /// Sets the owner of the inode itself; what this process cannot set becomes an override.
    pub fn set_owner(&self, path: impl AsRef<Path>, uid: u32, gid: u32) -> Result<()> {
        self.at("change owner of", path.as_ref(), |place| {
            let entry = place.read_attributes()?;
            place.set_attributes(&Attributes { uid, gid, ..entry })
        })
    }

    /// Sets the permission bits of the inode itself.
    pub fn set_mode(&self, path: impl AsRef<Path>, mode: u32) -> Result<()> {
        self.at("change mode of", path.as_ref(), |place| {
            let entry = place.read_attributes()?;
            place.set_attributes(&Attributes { mode: mode & 0o7777, ..entry })
        })
    }

    /// Sets the modification time (and the access time to the same) of the inode itself.
    pub fn set_times(&self, path: impl AsRef<Path>, mtime: Time) -> Result<()> {
        self.at("change time of", path.as_ref(), |place| place.set_times(mtime))
    }

    /// Names of the extended attributes, sorted, those of the engine and of overlayfs among them.
    pub fn xattrs(&self, path: impl AsRef<Path>) -> Result<Vec<OsString>> {
        self.at("read", path.as_ref(), |place| place.xattr_names())
    }

    /// Value of an extended attribute; `None` if it is not there.
    pub fn xattr(&self, path: impl AsRef<Path>, name: impl AsRef<OsStr>) -> Result<Option<Vec<u8>>> {
        self.at("read", path.as_ref(), |place| place.xattr(name.as_ref()))
    }

    /// Sets an extended attribute of a regular file or directory.
    pub fn set_xattr(&self, path: impl AsRef<Path>, name: impl AsRef<OsStr>, value: &[u8]) -> Result<()> {
        self.at("change attribute of", path.as_ref(), |place| place.set_xattr(name.as_ref(), value))
    }

    /// Removes an extended attribute; it is no error if it is not there.
    pub fn remove_xattr(&self, path: impl AsRef<Path>, name: impl AsRef<OsStr>) -> Result<()> {
        self.at("change attribute of", path.as_ref(), |place| place.remove_xattr(name.as_ref()))
    }

    /// Lists everything below `path`, sorted by the bytes of names, a directory before what is in it. `path` itself is
    /// not listed; symbolic links on the way to it are followed inside the tree, those below it are not.
    pub fn walk(&self, path: impl AsRef<Path>) -> Result<Walk> {
        let path = path.as_ref();
        let dir = self.openat2(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Walk::new(dir, self.ids).map_err(|errno| Error::new("read", path, errno))
    }
}

fn components_reversed(path: &Path) -> Vec<OsString> {
    // Not `clean`: in the target of a link, `..` is applied to where the link has led so far.
    path.as_os_str()
        .as_bytes()
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(|name| OsStr::from_bytes(name).to_owned())
        .rev()
        .collect()
}
