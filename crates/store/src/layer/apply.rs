//! An archive to a tree.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use build_engine_oci::DiffId;
use build_engine_rootfs::{Attributes, Device, Error, Kind, OwnedPlace, Place, Time, Tree, is_engine_xattr};
use rustix::io::Errno;

use super::below::{Below, Found};
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
    /// The layers below, topmost first. A directory that the layer leaves out gets its attributes from there, symbolic
    /// links that they have on the way are followed, and a hard link to a file that only they have copies it up.
    /// Without them such a directory is root's with mode 0755, and such a link is refused.
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
    let mut target = Target {
        tree: into,
        how,
        below: Below::new(into, how.options.lowers),
        parent: None,
        root_opaque: false,
        made_dirs: 0,
        mentioned: BTreeSet::new(),
        copied_bytes: 0,
        skipped_xattrs: 0,
    };
    let mut buffer = vec![0; 128 << 10];
    while let Some(entry) = archive.next()? {
        target.entry(&entry, &mut archive, &mut buffer).map_err(|error| of_entry(error, &entry))?;
    }
    target.finish()?;
    let skipped_xattrs = target.skipped_xattrs;
    let (diff_id, size_bytes, entries) = archive.finish()?;
    Ok(Applied { diff_id, size_bytes, entries, skipped_xattrs })
}

struct Target<'a> {
    tree: &'a Tree,
    how: &'a Unpack<'a>,
    below: Below<'a>,
    /// The directory of the last entry, kept open.
    parent: Option<OpenDir>,
    /// Whether the layer hides everything below it.
    root_opaque: bool,
    /// Directories that no entry mentions. They count as entries: a single name can ask for a thousand.
    made_dirs: u64,
    /// The directories that entries describe, where that matters (`ADD`).
    mentioned: BTreeSet<PathBuf>,
    /// What was copied from the layers below. It counts as content: a link of 512 bytes can ask for any amount.
    copied_bytes: u64,
    skipped_xattrs: u64,
}

/// A directory that entries are put into. Its time is that of its own entry, not that of the last change: it is set
/// again when no more entries follow each other there. `ADD` leaves the time of a directory that the archive does not
/// mention to the file system.
struct OpenDir {
    path: PathBuf,
    tree: Tree,
    mtime: Option<Time>,
    /// Whether a marker was seen here: a million more of them cost nothing.
    opaque: bool,
}

impl OpenDir {
    fn new(path: &Path, tree: Tree) -> Result<Self, LayerError> {
        let itself = Place::new(tree.fd(), OsStr::new("."), tree.ids());
        let mtime = itself.metadata().map_err(|errno| Error::new("read", path, errno))?.mtime;
        Ok(Self { path: path.to_owned(), tree, mtime: Some(mtime), opaque: false })
    }

    fn place<'a>(&'a self, name: &'a OsStr) -> Place<'a> {
        Place::new(self.tree.fd(), name, self.tree.ids())
    }

    fn leave(self) -> Result<(), LayerError> {
        let Some(mtime) = self.mtime else { return Ok(()) };
        let restored = self.place(OsStr::new(".")).set_times(mtime);
        Ok(restored.map_err(|errno| Error::new("change time of", &self.path, errno))?)
    }
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
        if self.how.whiteouts {
            match parent.iter().find(|name| name.as_bytes().starts_with(WHITEOUT)) {
                // Bookkeeping of AUFS.
                Some(reserved) if reserved.as_bytes().starts_with(WHITEOUT_META) => return Ok(()),
                Some(_) => return Err(refused(entry, "something in a whiteout")),
                None => {}
            }
            if name.as_bytes().starts_with(WHITEOUT) {
                return self.whiteout(entry, parent, name);
            }
        }
        let failed = |errno| LayerError::from(Error::new("create", &path, errno));
        let dir = self.enter(parent)?;
        let place = dir.place(name);
        let mut removed_dir = false;
        // A new directory in place of something else shows nothing of a directory that the layers below have there.
        let mut hides_lower = false;
        if let Some(found) = place.find().map_err(failed)? {
            let merges = found.is_dir() && entry.kind == EntryKind::Node(Kind::Directory);
            if !merges {
                // A hard link to itself would remove its own target.
                if entry.kind == EntryKind::HardLink && self.entry_path(&entry.link, entry)? == path {
                    return Err(refused(entry, "a hard link to itself"));
                }
                place.remove_all().map_err(failed)?;
                removed_dir = found.is_dir();
                hides_lower = true;
            }
        }
        match entry.kind {
            EntryKind::HardLink => self.hard_link(entry, place)?,
            EntryKind::Node(kind) => {
                self.node(entry, kind, place, hides_lower, archive, buffer).map_err(|error| match error {
                    NodeError::Layer(error) => error,
                    NodeError::Errno(errno) => failed(errno),
                })?;
            }
        }
        if !self.how.whiteouts && entry.kind == EntryKind::Node(Kind::Directory) {
            self.mentioned.insert(path);
        }
        if removed_dir {
            // The way to this directory may have led through the one that was removed.
            return dir.leave();
        }
        self.parent = Some(dir);
        Ok(())
    }

    /// Creates what an entry describes.
    fn node<R: Read>(
        &mut self,
        entry: &TarEntry,
        kind: Kind,
        place: Place<'_>,
        hides_lower: bool,
        archive: &mut Archive<R>,
        buffer: &mut [u8],
    ) -> Result<(), NodeError> {
        let (uid, gid) = self.how.owner.unwrap_or((entry.uid, entry.gid));
        let device = Device { major: entry.device.0, minor: entry.device.1 };
        let attributes = Attributes { kind, mode: entry.mode, uid, gid, device };
        match kind {
            Kind::File => {
                let file = place.create_file(0o600)?;
                self.write_content(entry, archive, &file, buffer)?;
                place.set_new_attributes(file.as_fd(), &attributes)?;
            }
            Kind::Directory => {
                match place.mkdir(0o700) {
                    Ok(()) if hides_lower => place.set_opaque()?,
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                place.set_attributes(&attributes)?;
            }
            Kind::Symlink => {
                if entry.link.is_empty() {
                    return Err(refused(entry, "a symbolic link without a target").into());
                }
                place.symlink(OsStr::from_bytes(&entry.link))?;
                place.set_attributes(&attributes)?;
            }
            Kind::CharDevice if device == Device::default() => {
                let reason = "the device 0:0 stands for a deletion, which has another form in a layer";
                return Err(refused(entry, reason).into());
            }
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo | Kind::Socket => {
                place.create_special(kind, entry.mode, device)?;
                place.set_attributes(&attributes)?;
            }
        }
        self.set_xattrs(entry, place)?;
        set_times(entry, place)
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

    /// Opens the directory for an entry, making what is missing, and leaves the one before.
    fn enter(&mut self, path: &Path) -> Result<OpenDir, LayerError> {
        if let Some(last) = self.parent.take() {
            if last.path == path {
                return Ok(last);
            }
            last.leave()?;
        }
        // Symbolic links that the layer itself has on the way are followed inside the tree.
        match self.tree.subtree(path) {
            Ok(dir) => self.open(path, dir),
            Err(error) if error.is_not_found() => self.make_dirs(path),
            Err(error) => Err(error.into()),
        }
    }

    fn open(&self, path: &Path, tree: Tree) -> Result<OpenDir, LayerError> {
        let mut dir = OpenDir::new(path, tree)?;
        if !self.how.whiteouts && !self.mentioned.contains(path) {
            dir.mtime = None;
        }
        Ok(dir)
    }

    /// Makes a directory and those on the way to it, as the layers together show the way.
    fn make_dirs(&mut self, path: &Path) -> Result<OpenDir, LayerError> {
        let path_there = self.below.resolve(path, self.root_opaque)?;
        let mut dir = self.open(Path::new(""), self.tree.try_clone()?)?;
        let mut way = self.below.start(self.root_opaque);
        for name in &path_there {
            let current = dir.path.join(name);
            let failed = |errno| LayerError::from(Error::new("create", &current, errno));
            let found = self.below.step(&mut way, &current)?;
            let place = dir.place(name);
            match &found {
                Found::Here(metadata) if metadata.is_dir() => {}
                Found::Here(metadata) => {
                    return Err(
                        Error::WrongKind { path: current, found: metadata.kind, wanted: Kind::Directory }.into()
                    );
                }
                Found::Deleted | Found::Nothing | Found::Below(..) => {
                    self.made_dirs += 1;
                    let limit = self.how.options.limits.entries;
                    if self.made_dirs > limit {
                        return Err(LayerError::Limit { what: "entries", limit });
                    }
                    if matches!(found, Found::Deleted) {
                        place.unlink().map_err(failed)?;
                    }
                    place.mkdir(0o755).map_err(failed)?;
                    if matches!(found, Found::Deleted) {
                        place.set_opaque().map_err(failed)?;
                    }
                }
            }
            let tree = dir.tree.subtree(name)?;
            if let Found::Below(metadata, lower) = &found
                && metadata.is_dir()
            {
                copy_attributes(lower.as_place(), place).map_err(failed)?;
            }
            let next = self.open(&current, tree)?;
            std::mem::replace(&mut dir, next).leave()?;
        }
        // The next entry asks for it by the name that this one had.
        path.clone_into(&mut dir.path);
        Ok(dir)
    }

    /// `.wh.NAME` deletes `NAME` of the layers below, `.wh..wh..opq` everything that they have in this directory. What
    /// this layer itself has under the name stays, in whichever order they come (OCI image-spec, layer.md).
    fn whiteout(&mut self, entry: &TarEntry, parent: &Path, name: &OsStr) -> Result<(), LayerError> {
        let deleted = &name.as_bytes()[WHITEOUT.len()..];
        if name.as_bytes() == OPAQUE {
            let mut dir = self.enter(parent)?;
            if !dir.opaque {
                let itself = dir.place(OsStr::new("."));
                let failed = |errno| Error::new("create", parent, errno);
                let root = Place::new(self.tree.fd(), OsStr::new("."), self.tree.ids()).metadata().map_err(failed)?;
                if itself.metadata().map_err(failed)?.identity() == root.identity() {
                    self.root_opaque = true;
                } else {
                    itself.set_opaque().map_err(failed)?;
                }
                dir.opaque = true;
            }
            self.parent = Some(dir);
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
        let dir = self.enter(parent)?;
        let place = dir.place(OsStr::from_bytes(deleted));
        let done = match place.find() {
            Ok(None) => place.whiteout(),
            Ok(Some(found)) if found.is_dir() => place.set_opaque(),
            Ok(Some(_)) => Ok(()),
            Err(errno) => Err(errno),
        };
        done.map_err(|errno| Error::new("create", &path, errno))?;
        self.parent = Some(dir);
        Ok(())
    }

    /// An opaque root, for which a tree has no mark: everything that the layers below have there is deleted by name.
    fn hide_all_below(&self) -> Result<(), LayerError> {
        for name in self.below.root_names()? {
            let place = Place::new(self.tree.fd(), &name, self.tree.ids());
            let done = match place.find() {
                Ok(None) => place.whiteout(),
                Ok(Some(found)) if found.is_dir() => place.set_opaque(),
                Ok(Some(_)) => Ok(()),
                Err(errno) => Err(errno),
            };
            done.map_err(|errno| Error::new("create", &name, errno))?;
        }
        Ok(())
    }

    fn hard_link(&mut self, entry: &TarEntry, place: Place<'_>) -> Result<(), LayerError> {
        let target = self.entry_path(&entry.link, entry)?;
        if target.as_os_str().is_empty() {
            return Err(refused(entry, "a hard link to the root"));
        }
        let missing = || refused(entry, &format!("its target `{}` does not exist", escape(&entry.link)));
        let here = match self.tree.place(&target) {
            Ok(here) => here.as_place().find().map_err(|errno| Error::new("open", &target, errno))?.map(|_| here),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error.into()),
        };
        let existing = match here {
            Some(here) => here,
            None => self.copy_up(&target)?.ok_or_else(missing)?,
        };
        let failed = |errno| LayerError::from(Error::new("create", &target, errno));
        let metadata = existing.as_place().metadata().map_err(failed)?;
        if metadata.is_dir() {
            return Err(refused(entry, "a hard link to a directory"));
        }
        if metadata.is_whiteout() {
            return Err(missing());
        }
        // A placeholder of a device stays one.
        let Attributes { kind, device, .. } = existing.as_place().read_attributes().map_err(failed)?;
        place.hard_link(existing.as_place()).map_err(failed)?;
        // The entry describes the inode once more, and the last description counts, as in containerd.
        let (uid, gid) = self.how.owner.unwrap_or((entry.uid, entry.gid));
        place.set_attributes(&Attributes { kind, mode: entry.mode, uid, gid, device }).map_err(failed)?;
        self.set_xattrs(entry, place)?;
        set_times(entry, place).map_err(|error| match error {
            NodeError::Layer(error) => error,
            NodeError::Errno(errno) => failed(errno),
        })
    }

    /// Copies what the layers below have at `target` to the same path here, as overlayfs does before it links it.
    fn copy_up(&mut self, target: &Path) -> Result<Option<OwnedPlace>, LayerError> {
        let (parent, name) = (target.parent().unwrap_or(Path::new("")), target.file_name().unwrap_or_default());
        let path = self.below.resolve(parent, self.root_opaque)?.join(name);
        let (found, lower) = match self.below.find(&path, self.root_opaque)? {
            Found::Here(_) => return Ok(Some(self.tree.place(&path)?)),
            Found::Below(found, lower) if !found.is_dir() => (found, lower),
            Found::Below(..) | Found::Deleted | Found::Nothing => return Ok(None),
        };
        self.copied_bytes = self.copied_bytes.saturating_add(found.size);
        let limit = self.how.options.limits.content_bytes;
        if self.copied_bytes > limit {
            return Err(LayerError::Limit { what: "content in bytes", limit });
        }
        let failed = |errno| LayerError::from(Error::new("copy", &path, errno));
        let lower = lower.as_place();
        let entry = lower.read_entry().map_err(failed)?;
        let dir = self.enter(path.parent().unwrap_or(Path::new("")))?;
        let place = dir.place(name);
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
        place.set_times(entry.metadata.mtime).map_err(failed)?;
        dir.leave()?;
        Ok(Some(self.tree.place(&path)?))
    }

    fn write_content<R: Read>(
        &self,
        entry: &TarEntry,
        archive: &mut Archive<R>,
        mut file: &File,
        buffer: &mut [u8],
    ) -> Result<(), LayerError> {
        loop {
            // Decoders hand out small pieces; few large writes make few large pages of them.
            let mut filled = 0;
            while filled < buffer.len() {
                match archive.content(&mut buffer[filled..])? {
                    0 => break,
                    got => filled += got,
                }
            }
            if filled == 0 {
                return Ok(());
            }
            file.write_all(&buffer[..filled]).map_err(|source| LayerError::Content {
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

    fn finish(&mut self) -> Result<(), LayerError> {
        if let Some(last) = self.parent.take() {
            last.leave()?;
        }
        if self.root_opaque { self.hide_all_below() } else { Ok(()) }
    }
}

/// Gives a directory that the layer did not mention what it has in the layers below.
fn copy_attributes(lower: Place<'_>, place: Place<'_>) -> rustix::io::Result<()> {
    let entry = lower.read_entry()?;
    place.set_attributes(&Attributes::from(&entry.metadata))?;
    for (name, value) in &entry.xattrs {
        place.set_image_xattr(name, value)?;
    }
    place.set_times(entry.metadata.mtime)
}

/// Times that every file system in use keeps.
const COMMON_TIMES: std::ops::Range<i64> = -(1 << 31)..1 << 31;

fn set_times(entry: &TarEntry, place: Place<'_>) -> Result<(), NodeError> {
    place.set_times(entry.mtime)?;
    // The kernel puts a time that the file system cannot keep to the nearest one that it can, without a word.
    if !COMMON_TIMES.contains(&entry.mtime.seconds) && place.metadata()?.mtime != entry.mtime {
        let reason = format!("the file system cannot keep its time, {} seconds since 1970", entry.mtime.seconds);
        return Err(refused(entry, &reason).into());
    }
    Ok(())
}

/// A failure whose path is not known yet.
enum NodeError {
    Errno(Errno),
    Layer(LayerError),
}

impl From<Errno> for NodeError {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl From<LayerError> for NodeError {
    fn from(error: LayerError) -> Self {
        Self::Layer(error)
    }
}

/// Tells what the layer is to blame for from failures of the system: no tree has a file below a file.
fn of_entry(error: LayerError, entry: &TarEntry) -> LayerError {
    const OF_THE_LAYER: [Errno; 6] =
        [Errno::NOTDIR, Errno::ISDIR, Errno::LOOP, Errno::NAMETOOLONG, Errno::EXIST, Errno::MLINK];
    let LayerError::Tree(tree) = &error else { return error };
    match tree.errno() {
        Some(errno) if !OF_THE_LAYER.contains(&errno) => error,
        Some(errno) => refused(entry, &format!("{tree}: {}", std::io::Error::from(errno))),
        None => refused(entry, &tree.to_string()),
    }
}

fn refused(entry: &TarEntry, reason: &str) -> LayerError {
    LayerError::Refused { entry: escape(&entry.name), reason: format!("{reason} (at byte {})", entry.offset) }
}
