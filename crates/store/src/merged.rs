//! Reading a stack of layers as one tree, without mounting it.
//!
//! The rules are overlayfs's: the topmost entry of a name counts; directories of one name merge until something that is
//! not a directory, a whiteout, or an opaque directory ends the stack. Every step goes from an open directory to one
//! name in it, so nothing that an image contains can lead outside.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use build_engine_rootfs::{Attributes, Entry, Ids, Kind, Metadata, Place};
use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::{Errno, Result};

/// The attribute of a directory that hides what lower layers have in it.
const OPAQUE: &str = "user.overlay.opaque";

/// A directory as a stack of layers shows it.
#[derive(Debug)]
pub(crate) struct Merged {
    /// Topmost first.
    dirs: Vec<OwnedFd>,
    ids: Ids,
    /// Whether something below the last one is hidden.
    pub(crate) ended: bool,
}

impl Merged {
    /// Opens the roots of layers, topmost first.
    pub(crate) fn open(roots: impl Iterator<Item = PathBuf>, ids: Ids) -> Result<Self> {
        let dirs = roots.map(|root| rustix::fs::open(root, DIRECTORY, Mode::empty())).collect::<Result<_>>()?;
        Ok(Self { dirs, ids, ended: false })
    }

    pub(crate) fn place<'a>(&'a self, level: usize, name: &'a OsStr) -> Place<'a> {
        Place::new(self.dirs[level].as_fd(), name, self.ids)
    }

    /// The directory itself, in its topmost layer.
    pub(crate) fn top(&self) -> Option<Place<'_>> {
        self.dirs.first().map(|dir| Place::new(dir.as_fd(), OsStr::new("."), self.ids))
    }

    /// What `name` is, and in which layer.
    pub(crate) fn find(&self, name: &OsStr) -> Result<Option<(usize, Metadata)>> {
        for level in 0..self.dirs.len() {
            if let Some(metadata) = self.place(level, name).find()? {
                return Ok((!metadata.is_whiteout()).then_some((level, metadata)));
            }
        }
        Ok(None)
    }

    /// The directory `name`; `None` if there is none.
    pub(crate) fn child(&self, name: &OsStr) -> Result<Option<Self>> {
        let mut dirs = Vec::new();
        let mut ended = false;
        for level in 0..self.dirs.len() {
            let place = self.place(level, name);
            match place.find()? {
                None => continue,
                Some(metadata) if metadata.is_dir() => {
                    let dir = place.open_dir()?;
                    ended = is_opaque(dir.as_fd())?;
                    dirs.push(dir);
                }
                Some(_) => ended = true,
            }
            if ended {
                break;
            }
        }
        Ok((!dirs.is_empty()).then_some(Self { dirs, ids: self.ids, ended }))
    }

    /// All names, each with its topmost layer and metadata; whiteouts included.
    pub(crate) fn names(&self) -> Result<BTreeMap<OsString, (usize, Metadata)>> {
        let mut all = BTreeMap::new();
        for (level, dir) in self.dirs.iter().enumerate() {
            for name in names(dir.as_fd())? {
                let metadata = match all.contains_key(&name) {
                    true => continue,
                    false => self.place(level, &name).metadata()?,
                };
                all.insert(name, (level, metadata));
            }
        }
        Ok(all)
    }
}

pub(crate) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Whether a directory hides what lower layers have in it.
pub(crate) fn is_opaque(dir: BorrowedFd<'_>) -> Result<bool> {
    let mut value = [0_u8; 8];
    match rustix::fs::fgetxattr(dir, OPAQUE, &mut value[..]) {
        Ok(length) => Ok(&value[..length] == b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The names in an open directory, in no order.
pub(crate) fn names(dir: BorrowedFd<'_>) -> Result<Vec<OsString>> {
    // An fd of its own, because reading moves the position.
    let own = rustix::fs::openat(dir, ".", DIRECTORY, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::new(own)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

/// Whether a layer would say the same about both, content included.
///
/// The time of a directory does not count: whoever makes a temporary file in `/tmp` changes it, and containerd's differ
/// leaves such directories out.
pub(crate) fn same(a: Place<'_>, b: Place<'_>) -> std::io::Result<bool> {
    let (one, two) = (a.metadata()?, b.metadata()?);
    if one.identity() == two.identity() {
        return Ok(true);
    }
    // Cheap first: most entries of an upper layer differ in one of these.
    if one.kind != two.kind || !same_time(&one, &two) || (one.is_file() && one.size != two.size) {
        return Ok(false);
    }
    let (one, two) = (a.read_entry()?, b.read_entry()?);
    if !same_entry(&one, &two) {
        return Ok(false);
    }
    Ok(one.metadata.kind != Kind::File || same_bytes(a.open_file()?, b.open_file()?)?)
}

/// Whether two entries, apart from content, are the same to a commit.
pub(crate) fn same_entry(one: &Entry, two: &Entry) -> bool {
    Attributes::from(&one.metadata) == Attributes::from(&two.metadata)
        && same_time(&one.metadata, &two.metadata)
        && one.xattrs == two.xattrs
        && one.link == two.link
}

fn same_time(one: &Metadata, two: &Metadata) -> bool {
    one.is_dir() || one.mtime == two.mtime
}

pub(crate) fn same_bytes(mut one: File, mut two: File) -> std::io::Result<bool> {
    let (mut left, mut right) = (vec![0_u8; 64 * 1024], vec![0_u8; 64 * 1024]);
    loop {
        let count = one.read(&mut left)?;
        if count == 0 {
            return Ok(two.read(&mut right)? == 0);
        }
        match two.read_exact(&mut right[..count]) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
        if left[..count] != right[..count] {
            return Ok(false);
        }
    }
}

/// Makes `to` the same as `from`, which is not a directory: by a hard link, else by a copy.
///
/// Layers are immutable, so that sharing an inode between two of them is safe.
pub(crate) fn link_or_copy(from: Place<'_>, to: Place<'_>) -> std::io::Result<()> {
    match to.hard_link(from) {
        Ok(()) => {}
        Err(Errno::MLINK | Errno::XDEV | Errno::PERM) => {
            let entry = from.read_entry()?;
            match entry.metadata.kind {
                Kind::File => {
                    let mut file = to.create_file(0o600)?;
                    std::io::copy(&mut from.open_file()?, &mut file)?;
                    to.set_new_attributes(file.as_fd(), &Attributes::from(&entry.metadata))?;
                    for (name, value) in &entry.xattrs {
                        to.set_image_xattr(name, value)?;
                    }
                }
                Kind::Symlink => to.symlink(entry.link.as_deref().unwrap_or_default())?,
                kind => to.create_special(kind, entry.metadata.mode, entry.metadata.device)?,
            }
            to.set_times(entry.metadata.mtime)?;
        }
        Err(errno) => return Err(errno.into()),
    }
    // Owners of what can carry no attribute stand in the directory, and this is another directory.
    if to.ids() == Ids::One && !from.metadata()?.is_file() {
        to.set_attributes(&from.read_attributes()?)?;
        to.set_times(from.metadata()?.mtime)?;
    }
    Ok(())
}

/// Gives the directory `to` what a layer says about `from`; to be called when nothing more is put into it.
pub(crate) fn copy_directory_metadata(from: Place<'_>, to: Place<'_>) -> std::io::Result<()> {
    let entry = from.read_entry()?;
    for (name, value) in &entry.xattrs {
        to.set_image_xattr(name, value)?;
    }
    to.set_attributes(&Attributes::from(&entry.metadata))?;
    to.set_times(entry.metadata.mtime)?;
    Ok(())
}
