//! The digest of one file, link or directory header.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use build_engine_oci::{Digest, Hasher};
use build_engine_rootfs::{Entry, Kind, Metadata, Place, is_engine_xattr};
use rustix::io::Errno;

use super::{BUFFER, HashError, Index, PAUSES};
use crate::copy::View;

/// Hashes one thing after the other.
pub(super) struct Reader<'a> {
    pub(super) view: View<'a>,
    pub(super) index: Option<&'a dyn Index>,
    /// The directory that was looked into last.
    pub(super) dir: Option<(PathBuf, OwnedFd)>,
    pub(super) buffer: Vec<u8>,
}

impl Reader<'_> {
    /// The digest of what is at `path`, and what it is: as it was listed, unless it changed since then.
    pub(super) fn digest(&mut self, path: &Path, listed: &Metadata) -> Result<(Digest, Metadata), HashError> {
        if let Some(digest) = self.index.and_then(|index| index.get(path, listed)) {
            return Ok((digest, *listed));
        }
        let mut metadata = *listed;
        let mut pauses = PAUSES.iter();
        loop {
            match (self.once(path, &metadata), pauses.next()) {
                (Ok(digest), _) => {
                    if let Some(index) = self.index {
                        index.put(path, &metadata, &digest);
                    }
                    return Ok((digest, metadata));
                }
                // Somebody writes it; that may be over in a moment.
                (Err(HashError::Changed { .. }), Some(pause)) if self.view.is_context() => {
                    std::thread::sleep(*pause);
                    metadata = self.view.tree().metadata(path, false)?;
                    if metadata.kind != listed.kind {
                        return Err(HashError::Changed { path: path.to_owned() });
                    }
                }
                (Err(error), _) => return Err(error),
            }
        }
    }

    fn once(&mut self, path: &Path, metadata: &Metadata) -> Result<Digest, HashError> {
        let state = |metadata: &Metadata| (metadata.identity(), metadata.size, metadata.mtime, metadata.ctime);
        let changed = || HashError::Changed { path: path.to_owned() };
        let (entry, content) = match self.view.listed(metadata) {
            // One look at a file tells all, and opens it.
            Some(_) => {
                let (mut entry, file) = self.open(path)?;
                if state(&entry.metadata) != state(metadata) {
                    return Err(changed());
                }
                (entry.metadata.uid, entry.metadata.gid) = (0, 0);
                (entry, Some(file))
            }
            None => (self.view.read_entry(path)?, None),
        };
        let stat = &entry.metadata;
        let mut hasher = Hasher::new();
        hash_header(&mut hasher, &entry);
        if stat.kind == Kind::File && stat.size > 0 {
            let mut file = match &content {
                Some(file) => file,
                None => &self.view.open_file(path)?,
            };
            self.buffer.resize(BUFFER, 0);
            let mut left = stat.size;
            while left > 0 {
                let want = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
                match file.read(&mut self.buffer[..want]) {
                    Ok(0) => return Err(changed()),
                    Ok(got) => {
                        hasher.update(&self.buffer[..got]);
                        left -= got as u64;
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(source) => return Err(HashError::Read { path: path.to_owned(), source }),
                }
            }
        }
        if stat.kind == Kind::File || self.index.is_some() {
            let after = match &content {
                Some(file) => {
                    Metadata::of(file).map_err(|errno| build_engine_rootfs::Error::new("read", path, errno))?
                }
                None => self.view.tree().metadata(path, false)?,
            };
            if state(&after) != state(metadata) {
                return Err(changed());
            }
        }
        Ok(hasher.finish())
    }

    /// Opens a regular file of the tree.
    fn open(&mut self, path: &Path) -> Result<(Entry, File), HashError> {
        let tree = self.view.tree();
        let parent = path.parent().unwrap_or(Path::new(""));
        if self.dir.as_ref().is_none_or(|(dir, _)| dir != parent) {
            self.dir = Some((parent.to_owned(), tree.resolve(parent)?));
        }
        let Some((_, dir)) = &self.dir else { unreachable!("it was just set") };
        let name = path.file_name().unwrap_or_default();
        match Place::new(dir.as_fd(), name, tree.ids()).open_entry() {
            Ok(opened) => Ok(opened),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::OPNOTSUPP) => {
                Err(HashError::Changed { path: path.to_owned() })
            }
            Err(errno) => Err(build_engine_rootfs::Error::new("open", path, errno).into()),
        }
    }
}

/// Hashes what BuildKit's content hash has before the content: a tar header's fields, by their names.
fn hash_header(hasher: &mut Hasher, entry: &Entry) {
    let stat = &entry.metadata;
    let (kind, link): (u8, &[u8]) = match stat.kind {
        Kind::File | Kind::Socket => (b'0', b""),
        Kind::Symlink => (b'2', entry.link.as_deref().unwrap_or(OsStr::new("")).as_bytes()),
        Kind::CharDevice => (b'3', b""),
        Kind::BlockDevice => (b'4', b""),
        Kind::Directory => (b'5', b""),
        Kind::Fifo => (b'6', b""),
    };
    let mode = if stat.kind == Kind::Symlink { 0o777 } else { stat.mode };
    let size = if stat.kind == Kind::File { stat.size } else { 0 };
    let header = format!("namemode{mode}uid{}gid{}size{size}typeflag{}linkname", stat.uid, stat.gid, char::from(kind));
    hasher.update(header.as_bytes());
    hasher.update(link);
    hasher.update(format!("unamegnamedevmajor{}devminor{}", stat.device.major, stat.device.minor).as_bytes());
    for (name, value) in &entry.xattrs {
        let bytes = name.as_bytes();
        let is_system = bytes.starts_with(b"security.") || bytes.starts_with(b"system.");
        if is_engine_xattr(name) || is_system && bytes != b"security.capability" {
            continue;
        }
        hasher.update(bytes);
        hasher.update(value);
    }
}
