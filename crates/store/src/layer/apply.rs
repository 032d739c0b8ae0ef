//! An archive to a tree.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use build_engine_oci::DiffId;
use build_engine_rootfs::{Attributes, Device, Error, Kind, Metadata, OwnedPlace, Place, Time, Tree, is_engine_xattr};
use rustix::io::Errno;

use super::error::escape;
use super::read::{Archive, EntryKind, TarEntry};
use super::{LayerError, Limits, OPAQUE, WHITEOUT, WHITEOUT_META};

/// Longest name in a directory.
const NAME_BYTES: usize = 255;

/// How a layer is applied.
#[derive(Debug, Clone, Copy, Default)]
pub struct ApplyOptions<'a> {
    /// What the layer may contain at most.
    pub limits: Limits,
    /// The layers below, topmost first. A directory that the layer leaves out gets its attributes from there, and a
    /// hard link to a file that only they have copies it up. Without them such a directory is root's with mode 0755,
    /// and such a link is refused.
    pub lowers: &'a [&'a Tree],
}

/// A layer that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Hash of the archive, all of its bytes.
    pub diff_id: DiffId,
    /// Size of the archive.
    pub size_bytes: u64,
    /// Number of entries.
    pub entries: u64,
    /// Extended attributes that neither file system nor privileges allowed, or that are the host's own
    /// (`security.selinux`), and that are therefore missing.
    pub skipped_xattrs: u64,
}

/// Applies the uncompressed archive `reader` to the empty parentless tree `into`.
///
/// # Errors
/// Whatever the strict profile refuses. What was applied before stays: the caller throws the tree away.
pub fn apply(reader: impl Read, into: &Tree, options: ApplyOptions<'_>) -> Result<Applied, LayerError> {
    unpack(reader, into, &Unpack { options, whiteouts: true, owner: None })
}

/// How an archive is unpacked: as a layer, or as `ADD` does it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unpack<'a> {
    pub(crate) options: ApplyOptions<'a>,
    /// Whether `.wh.` names mean deletion.
    pub(crate) whiteouts: bool,
    /// Owner of everything, whatever the archive says.
    pub(crate) owner: Option<(u32, u32)>,
}

/// See [`apply`].
pub(crate) fn unpack(reader: impl Read, into: &Tree, how: &Unpack<'_>) -> Result<Applied, LayerError> {
    let mut archive = Archive::new(reader, how.options.limits);
    let mut target = Target { tree: into, how, parent: None, dirs: Vec::new(), skipped_xattrs: 0 };
    let mut buffer = vec![0; 128 << 10];
    while let Some(entry) = archive.next()? {
        target.entry(&entry, &mut archive, &mut buffer)?;
    }
    target.finish_dirs()?;
    let skipped_xattrs = target.skipped_xattrs;
    let (diff_id, size_bytes, entries) = archive.finish()?;
    Ok(Applied { diff_id, size_bytes, entries, skipped_xattrs })
}

struct Target<'a> {
    tree: &'a Tree,
    how: &'a Unpack<'a>,
    /// The directory of the last entry, kept open.
    parent: Option<(PathBuf, Tree)>,
    /// Directories and their times, which are set when nothing is created in them any more.
    dirs: Vec<(PathBuf, Time)>,
    skipped_xattrs: u64,
}

impl Target<'_> {
    fn entry<R: Read>(
        &mut self,
        entry: &TarEntry,
        archive: &mut Archive<R>,
        buffer: &mut [u8],
    ) -> Result<(), LayerError> {
        let path = self.entry_path(&entry.name, entry)?;
        let Some(name) = path.file_name() else {
            return if entry.kind == EntryKind::Node(Kind::Directory) {
                // The root belongs to the snapshot, as in containerd.
                Ok(())
            } else {
                Err(refused(entry, "the root of a layer can only be a directory"))
            };
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        if self.how.whiteouts && name.as_bytes().starts_with(WHITEOUT) {
            return self.whiteout(entry, parent, name);
        }
        let failed = |errno| LayerError::from(Error::new("create", &path, errno));
        let dir = self.parent_dir(parent)?;
        let place = Place::new(dir.fd(), name, self.tree.ids());
        let mut hides_lower = false;
        if let Some(found) = place.find().map_err(failed)? {
            hides_lower = found.is_whiteout();
            let merges = found.is_dir() && entry.kind == EntryKind::Node(Kind::Directory);
            if !merges {
                // A hard link to itself would remove its own target.
                if entry.kind == EntryKind::HardLink && self.entry_path(&entry.link, entry)? == path {
                    return Err(refused(entry, "a hard link to itself"));
                }
                place.remove_all().map_err(failed)?;
            }
        }
        let kind = match entry.kind {
            EntryKind::HardLink => {
                let result = self.hard_link(entry, place);
                self.restore_parent(parent, dir);
                return result;
            }
            EntryKind::Node(kind) => kind,
        };
        let (uid, gid) = self.how.owner.unwrap_or((entry.uid, entry.gid));
        let device = Device { major: entry.device.0, minor: entry.device.1 };
        let attributes = Attributes { kind, mode: entry.mode, uid, gid, device };
        match kind {
            Kind::File => {
                let file = place.create_file(0o600).map_err(failed)?;
                self.write_content(entry, archive, &file, buffer)?;
                place.set_new_attributes(file.as_fd(), &attributes).map_err(failed)?;
            }
            Kind::Directory => {
                match place.mkdir(0o700) {
                    Ok(()) if hides_lower => place.set_opaque().map_err(failed)?,
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(failed(errno)),
                }
                place.set_attributes(&attributes).map_err(failed)?;
            }
            Kind::Symlink => {
                if entry.link.is_empty() {
                    return Err(refused(entry, "a symbolic link without a target"));
                }
                place.symlink(OsStr::from_bytes(&entry.link)).map_err(failed)?;
                place.set_attributes(&attributes).map_err(failed)?;
            }
            Kind::CharDevice if device == Device::default() => {
                return Err(refused(entry, "the device 0:0 stands for a deletion, which has another form in a layer"));
            }
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo | Kind::Socket => {
                place.create_special(kind, entry.mode, device).map_err(failed)?;
                place.set_attributes(&attributes).map_err(failed)?;
            }
        }
        self.set_xattrs(entry, place)?;
        if kind == Kind::Directory {
            self.dirs.push((path.clone(), entry.mtime));
        } else {
            place.set_times(entry.mtime).map_err(failed)?;
        }
        self.restore_parent(parent, dir);
        Ok(())
    }

    /// The path that a name in the archive means; the root is the empty path.
    fn entry_path(&self, name: &[u8], entry: &TarEntry) -> Result<PathBuf, LayerError> {
        let mut path = PathBuf::new();
        let mut depth = 0;
        for component in name.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => continue,
                b".." => {
                    return Err(LayerError::Escapes {
                        entry: escape(&entry.name),
                        reason: "a name or link target has a component `..`",
                    });
                }
                _ if component.len() > NAME_BYTES => {
                    return Err(refused(entry, "a component of a name is longer than 255 bytes"));
                }
                _ => path.push(OsStr::from_bytes(component)),
            }
            depth += 1;
        }
        if depth > self.how.options.limits.depth {
            return Err(refused(entry, "a name has too many components"));
        }
        Ok(path)
    }

    /// Opens the directory for an entry, making what is missing. Symbolic links that the layer itself has on the way
    /// are followed inside the tree.
    fn parent_dir(&mut self, path: &Path) -> Result<Tree, LayerError> {
        if let Some((last, dir)) = self.parent.take()
            && last == path
        {
            return Ok(dir);
        }
        match self.tree.subtree(path) {
            Ok(dir) => return Ok(dir),
            Err(error) if error.errno() == Some(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        for made in self.tree.mkdir_all(path, 0o755)? {
            self.copy_dir_attributes(&made)?;
        }
        Ok(self.tree.subtree(path)?)
    }

    /// Keeps the directory open for the next entry. What removes or replaces directories does not.
    fn restore_parent(&mut self, path: &Path, dir: Tree) {
        self.parent = Some((path.to_owned(), dir));
    }

    /// Gives a directory that the layer did not mention the attributes that it has in the layers below.
    fn copy_dir_attributes(&mut self, path: &Path) -> Result<(), LayerError> {
        let Some((_, lower)) = self.find_lower(path)? else { return Ok(()) };
        let entry = lower.as_place().read_entry().map_err(|errno| Error::new("read", path, errno))?;
        if !entry.metadata.is_dir() {
            return Ok(());
        }
        let failed = |errno| Error::new("create", path, errno);
        let place = self.tree.place(path)?;
        place.as_place().set_attributes(&Attributes::from(&entry.metadata)).map_err(failed)?;
        for (name, value) in &entry.xattrs {
            place.as_place().set_image_xattr(name, value).map_err(failed)?;
        }
        self.dirs.push((path.to_owned(), entry.metadata.mtime));
        Ok(())
    }

    /// The topmost lower layer's inode at `path`, if no layer above it deletes it.
    fn find_lower(&self, path: &Path) -> Result<Option<(Metadata, OwnedPlace)>, LayerError> {
        'lowers: for lower in self.how.options.lowers {
            let mut prefix = PathBuf::new();
            for name in path {
                prefix.push(name);
                let last = prefix.as_os_str().len() == path.as_os_str().len();
                match lower.find(&prefix, false)? {
                    Some(found) if found.is_whiteout() => return Ok(None),
                    Some(found) if last => return Ok(Some((found, lower.place(&prefix)?))),
                    Some(found) if found.is_dir() => {
                        if lower.place(&prefix)?.as_place().read_entry().is_ok_and(|entry| entry.opaque)
                            && lower.find(path, false)?.is_none()
                        {
                            return Ok(None);
                        }
                    }
                    // Something else hides the directory that the layers below it may have.
                    Some(_) => return Ok(None),
                    None => continue 'lowers,
                }
            }
        }
        Ok(None)
    }

    /// `.wh.NAME` deletes `NAME` of the layers below, `.wh..wh..opq` everything that they have in this directory. What
    /// this layer itself has under the name stays, in whichever order they come (OCI image-spec, layer.md).
    fn whiteout(&mut self, entry: &TarEntry, parent: &Path, name: &OsStr) -> Result<(), LayerError> {
        let deleted = &name.as_bytes()[WHITEOUT.len()..];
        if name.as_bytes() == OPAQUE {
            let dir = self.parent_dir(parent)?;
            let place = Place::new(dir.fd(), OsStr::new("."), self.tree.ids());
            place.set_opaque().map_err(|errno| Error::new("create", parent, errno))?;
            self.restore_parent(parent, dir);
            return Ok(());
        }
        if name.as_bytes().starts_with(WHITEOUT_META) {
            // Bookkeeping of AUFS, which no other implementation gives a meaning.
            return Ok(());
        }
        if matches!(deleted, b"" | b"." | b"..") {
            return Err(refused(entry, "a whiteout of nothing"));
        }
        let path = parent.join(OsStr::from_bytes(deleted));
        let dir = self.parent_dir(parent)?;
        let place = Place::new(dir.fd(), OsStr::from_bytes(deleted), self.tree.ids());
        let done = match place.find() {
            Ok(None) => place.whiteout(),
            Ok(Some(found)) if found.is_dir() => place.set_opaque(),
            Ok(Some(_)) => Ok(()),
            Err(errno) => Err(errno),
        };
        done.map_err(|errno| Error::new("create", &path, errno))?;
        self.restore_parent(parent, dir);
        Ok(())
    }

    fn hard_link(&mut self, entry: &TarEntry, place: Place<'_>) -> Result<(), LayerError> {
        let target = self.entry_path(&entry.link, entry)?;
        if target.as_os_str().is_empty() {
            return Err(refused(entry, "a hard link to the root"));
        }
        let failed = |errno| LayerError::from(Error::new("create", &target, errno));
        let mut found = match self.tree.place(&target) {
            Ok(found) => found.as_place().find().map_err(failed)?.map(|metadata| (metadata, found)),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error.into()),
        };
        if found.is_none()
            && let Some((metadata, lower)) = self.find_lower(&target)?
            && !metadata.is_dir()
        {
            self.copy_up(&target, lower.as_place())?;
            found = Some((metadata, self.tree.place(&target)?));
        }
        match found {
            None => Err(refused(entry, &format!("its target `{}` does not exist", escape(&entry.link)))),
            Some((metadata, _)) if metadata.is_dir() => Err(refused(entry, "a hard link to a directory")),
            Some((metadata, _)) if metadata.is_whiteout() => {
                Err(refused(entry, &format!("its target `{}` does not exist", escape(&entry.link))))
            }
            Some((metadata, existing)) => {
                place.hard_link(existing.as_place()).map_err(failed)?;
                // The entry describes the inode once more, and the last description counts, as in containerd.
                let (uid, gid) = self.how.owner.unwrap_or((entry.uid, entry.gid));
                let Metadata { kind, device, .. } = metadata;
                let attributes = Attributes { kind, mode: entry.mode, uid, gid, device };
                place.set_attributes(&attributes).map_err(failed)?;
                self.set_xattrs(entry, place)?;
                place.set_times(entry.mtime).map_err(failed)
            }
        }
    }

    /// Copies what a lower layer has at `path` to the same path here, as overlayfs does before it links it.
    fn copy_up(&mut self, path: &Path, lower: Place<'_>) -> Result<(), LayerError> {
        let failed = |errno| LayerError::from(Error::new("copy", path, errno));
        let entry = lower.read_entry().map_err(failed)?;
        let dir = self.parent_dir(path.parent().unwrap_or(Path::new("")))?;
        let name = path.file_name().unwrap_or_default();
        let place = Place::new(dir.fd(), name, self.tree.ids());
        let attributes = Attributes::from(&entry.metadata);
        match entry.metadata.kind {
            Kind::File => {
                let mut source = lower.open_file().map_err(failed)?;
                let mut file = place.create_file(0o600).map_err(failed)?;
                std::io::copy(&mut source, &mut file).map_err(|source| LayerError::Content {
                    action: "copy",
                    path: escape(path.as_os_str().as_bytes()),
                    source,
                })?;
                place.set_new_attributes(file.as_fd(), &attributes).map_err(failed)?;
            }
            Kind::Symlink => {
                place.symlink(&entry.link.unwrap_or_default()).map_err(failed)?;
                place.set_attributes(&attributes).map_err(failed)?;
            }
            Kind::Directory | Kind::CharDevice | Kind::BlockDevice | Kind::Fifo | Kind::Socket => {
                place.create_special(attributes.kind, attributes.mode, attributes.device).map_err(failed)?;
                place.set_attributes(&attributes).map_err(failed)?;
            }
        }
        for (name, value) in &entry.xattrs {
            place.set_image_xattr(name, value).map_err(failed)?;
        }
        place.set_times(entry.metadata.mtime).map_err(failed)
    }

    fn write_content<R: Read>(
        &self,
        entry: &TarEntry,
        archive: &mut Archive<R>,
        mut file: &File,
        buffer: &mut [u8],
    ) -> Result<(), LayerError> {
        loop {
            let got = archive.content(buffer)?;
            if got == 0 {
                return Ok(());
            }
            file.write_all(&buffer[..got]).map_err(|source| LayerError::Content {
                action: "write",
                path: escape(&entry.name),
                source,
            })?;
        }
    }

    fn set_xattrs(&mut self, entry: &TarEntry, place: Place<'_>) -> Result<(), LayerError> {
        let xattrs: &BTreeMap<Vec<u8>, Vec<u8>> = &entry.xattrs;
        for (name, value) in xattrs {
            let name = OsString::from(OsStr::from_bytes(name));
            if is_engine_xattr(&name) {
                if name == "security.selinux" {
                    self.skipped_xattrs += 1;
                    continue;
                }
                let shown = escape(name.as_bytes());
                return Err(refused(entry, &format!("the attribute `{shown}` would change what the layer means")));
            }
            match place.set_image_xattr(&name, value) {
                Ok(kept) => self.skipped_xattrs += u64::from(!kept),
                Err(errno) => {
                    let reason = format!("cannot set the attribute `{}`: {errno}", escape(name.as_bytes()));
                    return Err(refused(entry, &reason));
                }
            }
        }
        Ok(())
    }

    /// Sets the times of directories, innermost and latest first; a later entry of the same directory wins.
    fn finish_dirs(&mut self) -> Result<(), LayerError> {
        for (path, time) in std::mem::take(&mut self.dirs) {
            let place = match self.tree.place(&path) {
                Ok(place) => place,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error.into()),
            };
            // A later entry may have replaced it.
            if place.as_place().find().is_ok_and(|found| found.is_some_and(|found| found.is_dir())) {
                place.as_place().set_times(time).map_err(|errno| Error::new("change time of", &path, errno))?;
            }
        }
        Ok(())
    }
}

fn refused(entry: &TarEntry, reason: &str) -> LayerError {
    LayerError::Refused { entry: escape(&entry.name), reason: format!("{reason} (at byte {})", entry.offset) }
}
