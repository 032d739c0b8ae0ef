//! What the file system cannot hold, and reading and writing entries with it.
//!
//! Three things cannot always be written down as they are: owners other than 0 when only one uid exists, owners that a
//! user namespace does not map, and device nodes, which no user namespace may make. They are kept in extended
//! attributes:
//!
//! - `user.build-engine.override` on a regular file or directory: `uid gid mode[ major:minor]`, the mode in octal with
//!   its file type. A regular file whose type is that of a device is the placeholder of that device. The mode on disk
//!   then has neither setuid nor setgid, which would mean another owner. A step sees the mode on disk: where that is not
//!   the one that belongs to the override, the step has changed it, and the new one counts.
//! - `user.build-engine.links` on a directory, for the symbolic links, pipes and sockets in it (the kernel allows them no
//!   user attribute): lines of `uid gid name`, the name with `%`, newline and `/` never raw (`%25`, `%0a`); the name
//!   `/` stands for all that have no line of their own. What has no line is owned as the file system says. When the
//!   table outgrows what the file system can hold, the most frequent owner becomes the line `/`.
//! - `user.build-engine.capability` on a regular file: the value of `security.capability` where setting it is refused.
//!
//! Readers apply them, layers never contain them.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::{Errno, Result};

use crate::place::{ignore_no_data, xattr, xattr_names};
use crate::{Device, Kind, Metadata, Place};

const OVERRIDE: &str = "user.build-engine.override";
const LINKS: &str = "user.build-engine.links";
const CAPABILITY_OVERRIDE: &str = "user.build-engine.capability";
const CAPABILITY: &str = "security.capability";
const OPAQUE: [&str; 2] = ["user.overlay.opaque", "trusted.overlay.opaque"];
/// The name that stands for all links without a line of their own.
const DEFAULT: &[u8] = b"/";

/// How a tree represents owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Ids {
    /// As they are: root, or a user namespace with a range of ids.
    #[default]
    Full,
    /// Only uid and gid 0 exist; all others are overrides.
    One,
    /// As they are, in a tree that leaves the engine: device nodes are real where this process may make them.
    Outside,
}

/// Owner, mode and kind of an entry, as a layer says them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// What it is; a device may be a placeholder on disk.
    pub kind: Kind,
    /// Permission, setuid, setgid and sticky bits (`07777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of a device node.
    pub device: Device,
}

impl From<&Metadata> for Attributes {
    fn from(metadata: &Metadata) -> Self {
        let Metadata { kind, mode, uid, gid, device, .. } = *metadata;
        Self { kind, mode, uid, gid, device }
    }
}

/// Everything a layer says about a name, except content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Metadata, overrides applied.
    pub metadata: Metadata,
    /// Extended attributes without those of the engine, of overlayfs and of SELinux; the capability in its form
    /// without an owner.
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// Target of a symbolic link.
    pub link: Option<OsString>,
    /// Whether it is a directory that hides what lower layers have in it.
    pub opaque: bool,
}

/// Tells whether an extended attribute is the engine's, overlayfs's or SELinux's own: nothing that an image contains.
pub fn is_engine_xattr(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b"user.build-engine.")
        || name.starts_with(b"user.overlay.")
        || name.starts_with(b"trusted.overlay.")
        || name == b"security.selinux"
}

/// Tells whether an extended attribute belongs into a layer that the engine writes: file capabilities, and nothing else.
/// What users note in `user.*` is kept from step to step and lost in the layer, as containerd's differ writes it; the
/// rest depends on the machine or on privileges, and would make images of root and of users differ.
pub fn is_layer_xattr(name: &OsStr) -> bool {
    name == CAPABILITY
}

/// What an open file or directory is, overrides applied.
fn entry_of(fd: BorrowedFd<'_>, mut metadata: Metadata) -> Result<Entry> {
    let mut xattrs = BTreeMap::new();
    let mut opaque = false;
    for name in xattr_names(fd)? {
        let Some(value) = xattr(fd, &name)? else { continue };
        if name == OVERRIDE {
            if let Some(overridden) = parse_override(&value) {
                metadata.apply(&overridden.with_mode_on_disk(metadata.mode));
            }
        } else if name == CAPABILITY_OVERRIDE || name == CAPABILITY {
            xattrs.insert(CAPABILITY.into(), plain_capability(&value));
        } else if OPAQUE.iter().any(|opaque| name == *opaque) {
            opaque |= value == b"y";
        } else if !is_engine_xattr(&name) {
            xattrs.insert(name, value);
        }
    }
    Ok(Entry { metadata, xattrs, link: None, opaque })
}

/// The form of a `security.capability` value that names no owner.
///
/// Inside a user namespace the kernel stores revision 3, which ends in the uid of the namespace's root on the host;
/// without that uid it is revision 2. Source: `linux/capability.h`, `struct vfs_ns_cap_data`.
pub fn plain_capability(value: &[u8]) -> Vec<u8> {
    const REVISION_2: u8 = 2;
    match value {
        [flags, a, b, 3, rest @ ..] if rest.len() == 20 => {
            let mut plain = vec![*flags, *a, *b, REVISION_2];
            plain.extend_from_slice(&rest[..16]);
            plain
        }
        _ => value.to_vec(),
    }
}

impl Place<'_> {
    /// Owner, mode and kind with overrides applied.
    pub fn read_attributes(self) -> Result<Attributes> {
        let metadata = self.metadata()?;
        let mut attributes = Attributes::from(&metadata);
        match metadata.kind {
            Kind::File | Kind::Directory => {
                let fd = self.open_inode(metadata.kind, OFlags::RDONLY)?;
                if let Some(value) = xattr(fd.as_fd(), OVERRIDE.as_ref())?
                    && let Some(overridden) = parse_override(&value)
                {
                    attributes = overridden.with_mode_on_disk(attributes.mode);
                }
            }
            Kind::Symlink | Kind::CharDevice | Kind::BlockDevice | Kind::Fifo | Kind::Socket => {
                if let Some((uid, gid)) = self.link_owner()? {
                    (attributes.uid, attributes.gid) = (uid, gid);
                }
            }
        }
        Ok(attributes)
    }

    /// Everything a layer says about this name, except content.
    pub fn read_entry(self) -> Result<Entry> {
        let mut metadata = self.metadata()?;
        let mut link = None;
        match metadata.kind {
            Kind::File | Kind::Directory => {
                let fd = self.open_inode(metadata.kind, OFlags::RDONLY)?;
                return entry_of(fd.as_fd(), metadata);
            }
            Kind::Symlink | Kind::CharDevice | Kind::BlockDevice | Kind::Fifo | Kind::Socket => {
                if metadata.kind == Kind::Symlink {
                    link = Some(self.read_link()?);
                }
                if let Some((uid, gid)) = self.link_owner()? {
                    (metadata.uid, metadata.gid) = (uid, gid);
                }
            }
        }
        Ok(Entry { metadata, xattrs: BTreeMap::new(), link, opaque: false })
    }

    /// [`Place::read_entry`] and [`Place::open_file`] at once, for what was just listed as a regular file.
    ///
    /// Unlike these two it opens what it finds before it looks, which for a pipe or device that took the file's place
    /// meanwhile is not without effect; [`Errno::OPNOTSUPP`] then.
    pub fn open_entry(self) -> Result<(Entry, File)> {
        let file = self.open_listed()?;
        let metadata = Metadata::from_stat(&rustix::fs::fstat(&file)?);
        if metadata.kind != Kind::File {
            return Err(Errno::OPNOTSUPP);
        }
        Ok((entry_of(file.as_fd(), metadata)?, File::from(file)))
    }

    /// Sets owner and mode of what is there. What cannot be represented becomes an override.
    ///
    /// Set extended attributes afterwards: changing the owner takes file capabilities away.
    pub fn set_attributes(self, attributes: &Attributes) -> Result<()> {
        let metadata = self.metadata()?;
        match metadata.kind {
            Kind::File | Kind::Directory => {
                let fd = self.open_inode(metadata.kind, OFlags::RDONLY)?;
                self.set_attributes_of(fd.as_fd(), &metadata, attributes, false)
            }
            Kind::Symlink | Kind::CharDevice | Kind::BlockDevice | Kind::Fifo | Kind::Socket => {
                let owner = (attributes.uid, attributes.gid);
                let represented = match self.ids() {
                    Ids::One => owner == (0, 0),
                    Ids::Full | Ids::Outside => {
                        owner == (metadata.uid, metadata.gid) || done(self.chown(owner.0, owner.1))?
                    }
                };
                self.set_link_owner((!represented).then_some(owner))?;
                if metadata.kind != Kind::Symlink && !metadata.is_whiteout() {
                    self.chmod(attributes.mode)?;
                }
                Ok(())
            }
        }
    }

    /// Sets owner and mode of a regular file that was just created and is still open.
    pub fn set_new_attributes(self, file: BorrowedFd<'_>, attributes: &Attributes) -> Result<()> {
        let metadata = Metadata::from_stat(&rustix::fs::fstat(file)?);
        self.set_attributes_of(file, &metadata, attributes, true)
    }

    fn set_attributes_of(self, fd: BorrowedFd<'_>, now: &Metadata, wanted: &Attributes, new: bool) -> Result<()> {
        let represented = wanted.kind == now.kind
            && match self.ids() {
                Ids::One => (wanted.uid, wanted.gid) == (0, 0),
                Ids::Full | Ids::Outside => {
                    (wanted.uid, wanted.gid) == (now.uid, now.gid) || chown_fd(fd, wanted.uid, wanted.gid)?
                }
            };
        if represented {
            // After the owner: changing it clears setuid.
            rustix::fs::fchmod(fd, Mode::from_raw_mode(wanted.mode & 0o7777))?;
            return if new { Ok(()) } else { ignore_no_data(rustix::fs::fremovexattr(fd, OVERRIDE)) };
        }
        rustix::fs::fchmod(fd, Mode::from_raw_mode(wanted.mode & DISK_MODE))?;
        rustix::fs::fsetxattr(fd, OVERRIDE, format_override(wanted).as_bytes(), XattrFlags::empty())
    }

    /// Sets an extended attribute of an image's file or directory. Returns whether it was kept: what the engine and
    /// overlayfs use for themselves is refused with [`Errno::PERM`]; what neither the kind of inode, the file system
    /// nor the privileges allow is not kept, except a file capability, which becomes an override.
    pub fn set_image_xattr(self, name: &OsStr, value: &[u8]) -> Result<bool> {
        if is_engine_xattr(name) {
            return Err(Errno::PERM);
        }
        let kind = self.metadata()?.kind;
        let fd = match self.open_inode(kind, OFlags::RDONLY) {
            Ok(fd) => fd,
            Err(Errno::OPNOTSUPP) => return Ok(false),
            Err(errno) => return Err(errno),
        };
        match rustix::fs::fsetxattr(&fd, name, value, XattrFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL) if name == CAPABILITY => {
                rustix::fs::fsetxattr(&fd, CAPABILITY_OVERRIDE, value, XattrFlags::empty())?;
                Ok(true)
            }
            Err(Errno::PERM | Errno::OPNOTSUPP) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Marks a directory as hiding what lower layers have in it.
    pub fn set_opaque(self) -> Result<()> {
        self.set_xattr(OPAQUE[0].as_ref(), b"y")
    }

    /// Creates a pipe or socket, or the placeholder of a device. A real node is only made [outside](Ids::Outside): an
    /// overlay in a user namespace cannot copy device nodes up, and what a step sees must not depend on who builds.
    pub fn create_special(self, kind: Kind, mode: u32, device: Device) -> Result<()> {
        match kind {
            Kind::Fifo | Kind::Socket => self.mknod(kind, mode, Device::default()),
            Kind::CharDevice if device == Device::default() => self.whiteout(),
            Kind::CharDevice | Kind::BlockDevice => {
                if self.ids() == Ids::Outside {
                    match self.mknod(kind, mode, device) {
                        Err(Errno::PERM) => {}
                        made => return made,
                    }
                }
                let file = self.create_file(0o600)?;
                self.set_new_attributes(file.as_fd(), &Attributes { kind, mode, uid: 0, gid: 0, device })
            }
            Kind::File | Kind::Directory | Kind::Symlink => Err(Errno::INVAL),
        }
    }

    /// Owner of a link, pipe or socket that the directory's table names.
    fn link_owner(self) -> Result<Option<(u32, u32)>> {
        let Some(table) = self.link_table()? else { return Ok(None) };
        Ok(table.get(self.name().as_bytes()).or_else(|| table.get(DEFAULT)).copied())
    }

    fn link_table(self) -> Result<Option<Table>> {
        let dir = Place::new(self.dir(), ".".as_ref(), self.ids()).open_dir()?;
        Ok(xattr(dir.as_fd(), LINKS.as_ref())?.map(|value| parse_table(&value)))
    }

    /// Writes the owner into the directory's table; `None` means that the file system has it.
    fn set_link_owner(self, owner: Option<(u32, u32)>) -> Result<()> {
        let table = self.link_table()?;
        let mut table = match (table, owner) {
            (None, None) => return Ok(()),
            (table, _) => table.unwrap_or_default(),
        };
        let name = self.name().as_bytes();
        match owner.or_else(|| table.contains_key(DEFAULT).then_some((0, 0))) {
            Some(owner) if table.get(name).or_else(|| table.get(DEFAULT)) == Some(&owner) => return Ok(()),
            Some(owner) => {
                table.insert(name.to_vec(), owner);
            }
            None => {
                table.remove(name);
            }
        }
        let dir = Place::new(self.dir(), ".".as_ref(), self.ids()).open_dir()?;
        match rustix::fs::fsetxattr(&dir, LINKS, &format_table(&table), XattrFlags::empty()) {
            Err(Errno::NOSPC | Errno::TOOBIG | Errno::RANGE) => {
                let table = self.with_frequent_default(&table)?;
                rustix::fs::fsetxattr(&dir, LINKS, &format_table(&table), XattrFlags::empty())
            }
            written => written,
        }
    }

    /// The same table with the most frequent owner as the default, and lines only for what exists and differs.
    fn with_frequent_default(self, table: &Table) -> Result<Table> {
        let mut owners: BTreeMap<(u32, u32), Vec<Vec<u8>>> = BTreeMap::new();
        for name in crate::walk::names(self.dir())? {
            let kind = Place::new(self.dir(), &name, self.ids()).metadata()?.kind;
            if matches!(kind, Kind::File | Kind::Directory) {
                continue;
            }
            let owner = table.get(name.as_bytes()).or_else(|| table.get(DEFAULT)).copied().unwrap_or((0, 0));
            owners.entry(owner).or_default().push(name.into_vec());
        }
        let frequent = owners.iter().max_by_key(|(_, names)| names.len()).map(|(owner, _)| *owner).unwrap_or_default();
        let mut compact = Table::from([(DEFAULT.to_vec(), frequent)]);
        for (owner, names) in owners {
            if owner != frequent {
                compact.extend(names.into_iter().map(|name| (name, owner)));
            }
        }
        Ok(compact)
    }
}

/// The bits of a mode that stand on disk beside an override.
const DISK_MODE: u32 = 0o1777;

impl Attributes {
    /// What an override means where the mode on disk is `mode`.
    fn with_mode_on_disk(self, mode: u32) -> Self {
        let mode = if mode == self.mode & DISK_MODE { self.mode } else { mode };
        Self { mode, ..self }
    }
}

impl Metadata {
    fn apply(&mut self, attributes: &Attributes) {
        let Attributes { kind, mode, uid, gid, device } = *attributes;
        if kind != self.kind {
            self.size = 0;
        }
        (self.kind, self.mode, self.uid, self.gid, self.device) = (kind, mode, uid, gid, device);
    }
}

/// Owners of links by name.
type Table = BTreeMap<Vec<u8>, (u32, u32)>;

fn done(result: Result<()>) -> Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::PERM | Errno::INVAL) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Changes the owner; `false` if it cannot be represented here.
fn chown_fd(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<bool> {
    if uid == u32::MAX || gid == u32::MAX {
        return Ok(false);
    }
    done(rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))))
}

fn format_override(attributes: &Attributes) -> String {
    let Attributes { kind, mode, uid, gid, device } = attributes;
    let mut text = format!("{uid} {gid} {:o}", kind.mode_bits() | mode & 0o7777);
    if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
        let _ = write!(text, " {}:{}", device.major, device.minor);
    }
    text
}

fn parse_override(value: &[u8]) -> Option<Attributes> {
    let text = str::from_utf8(value).ok()?;
    let mut words = text.split(' ');
    let uid = words.next()?.parse().ok()?;
    let gid = words.next()?.parse().ok()?;
    let mode = u32::from_str_radix(words.next()?, 8).ok()?;
    let device = match words.next() {
        Some(number) => {
            let (major, minor) = number.split_once(':')?;
            Device { major: major.parse().ok()?, minor: minor.parse().ok()? }
        }
        None => Device::default(),
    };
    Some(Attributes { kind: Kind::from_mode(mode)?, mode: mode & 0o7777, uid, gid, device })
}

fn format_table(table: &Table) -> Vec<u8> {
    let mut text = Vec::new();
    for (name, (uid, gid)) in table {
        text.extend_from_slice(format!("{uid} {gid} ").as_bytes());
        for byte in name {
            match byte {
                b'%' => text.extend_from_slice(b"%25"),
                b'\n' => text.extend_from_slice(b"%0a"),
                other => text.push(*other),
            }
        }
        text.push(b'\n');
    }
    text
}

fn parse_table(text: &[u8]) -> Table {
    let mut table = Table::new();
    for line in text.split(|byte| *byte == b'\n') {
        let mut words = line.splitn(3, |byte| *byte == b' ');
        let mut number = || str::from_utf8(words.next()?).ok()?.parse::<u32>().ok();
        let (Some(uid), Some(gid)) = (number(), number()) else { continue };
        let Some(name) = words.next() else { continue };
        let mut plain = Vec::with_capacity(name.len());
        let mut rest = name;
        while let Some((byte, after)) = rest.split_first() {
            (rest, _) = match (byte, after) {
                (b'%', [b'2', b'5', after @ ..]) => (after, plain.push(b'%')),
                (b'%', [b'0', b'a', after @ ..]) => (after, plain.push(b'\n')),
                _ => (after, plain.push(*byte)),
            };
        }
        table.insert(plain, (uid, gid));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_links_keeps_every_name() {
        let table = Table::from([
            (b"a b%0a".to_vec(), (1, 2)),
            (b"new\nline".to_vec(), (3, 4)),
            (b"\xff%".to_vec(), (u32::MAX - 1, 0)),
        ]);
        assert_eq!(parse_table(&format_table(&table)), table);
    }

    #[test]
    fn an_override_says_owner_mode_kind_and_device() {
        for (kind, device) in [
            (Kind::File, Device::default()),
            (Kind::CharDevice, Device { major: 1, minor: 3 }),
            (Kind::Directory, Device::default()),
        ] {
            let attributes = Attributes { kind, mode: 0o4755, uid: 1000, gid: 7, device };
            assert_eq!(parse_override(format_override(&attributes).as_bytes()), Some(attributes));
        }
        assert_eq!(
            format_override(&Attributes {
                kind: Kind::CharDevice,
                mode: 0o666,
                uid: 0,
                gid: 0,
                device: Device { major: 1, minor: 3 },
            }),
            "0 0 20666 1:3"
        );
        for wrong in ["", "1", "1 2", "1 2 9", "1 2 644", "x 2 100644", "1 2 100644 5"] {
            assert_eq!(parse_override(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn a_capability_loses_the_uid_of_its_namespace() {
        let v2 = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut v3 = v2.to_vec();
        v3[3] = 3;
        v3.extend_from_slice(&100_000_u32.to_le_bytes());
        assert_eq!(plain_capability(&v3), v2);
        assert_eq!(plain_capability(&v2), v2);
    }
}
