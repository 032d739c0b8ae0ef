//! Mounts, by descriptor: the trees that a step is made of, and where they are attached.
//!
//! Nothing here follows a path that an image or a command can influence: sources are descriptors that became detached
//! mounts in the helper, and targets are opened inside the root ([`Target`]) and attached to by descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::error::{Phase, SetupError};
use crate::spec::{Mount, MountSource};
use crate::stubs::{self, Stub};
use crate::sys;
use crate::worker::{SHIFTED_COUNT, SHIFTED_FIRST};

/// Detached mounts that the helper makes in the worker's namespaces, for the step to attach in its own.
#[derive(Debug)]
pub(crate) struct Trees {
    pub(crate) lower: Vec<OwnedFd>,
    pub(crate) active: Option<OwnedFd>,
    pub(crate) binds: Vec<OwnedFd>,
    /// Device nodes of the host, by name.
    pub(crate) devices: Vec<(String, OwnedFd)>,
    /// The emulator that the step registers.
    pub(crate) emulator: Option<OwnedFd>,
    /// The host's `/sys`, where the step cannot have its own.
    pub(crate) sys: Option<OwnedFd>,
    /// Memory that is never swapped, with the files of [`MountSource::File`] by the number of their mount, where only
    /// this side may make such memory.
    pub(crate) files: Option<OwnedFd>,
    /// The host's `/etc/resolv.conf`.
    pub(crate) resolv: String,
}

/// The devices of every container, and their numbers.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

impl Trees {
    /// Clones the trees, mapping their owners with `template` if there is one.
    pub(crate) fn prepare(
        lower: &[OwnedFd],
        active: Option<&OwnedFd>,
        binds: &[OwnedFd],
        template: Option<&OwnedFd>,
        notes: &mut Vec<String>,
    ) -> Result<Self, SetupError> {
        let mapped = |fd: &OwnedFd| -> Result<OwnedFd, SetupError> {
            let tree = clone_tree(fd.as_fd(), false).phase("clone a layer")?;
            if let Some(userns) = template {
                sys::mount_setattr(tree.as_fd(), false, 0, 0, Some(userns.as_fd())).map_err(|e| idmap_error(&e))?;
            }
            Ok(tree)
        };
        let lower = lower.iter().map(mapped).collect::<Result<_, _>>()?;
        let active = active.map(mapped).transpose()?;
        let mut bound = Vec::with_capacity(binds.len());
        for fd in binds {
            let tree = clone_tree(fd.as_fd(), false).phase("clone a mount")?;
            let attrs = u64::from((MountAttrFlags::MOUNT_ATTR_NODEV).bits());
            if let Some(userns) = template
                && let Err(e) = sys::mount_setattr(tree.as_fd(), false, 0, 0, Some(userns.as_fd()))
            {
                notes.push(format!("owners of a bind mount are not mapped: {e}"));
            }
            sys::mount_setattr(tree.as_fd(), false, attrs, 0, None).phase("restrict a mount")?;
            bound.push(tree);
        }
        let mut devices = Vec::new();
        for (name, major, minor) in DEVICES {
            match device(name, major, minor) {
                Ok(fd) => devices.push((name.to_owned(), fd)),
                Err(e) if name == "null" => return Err(e),
                Err(e) => notes.push(e.to_string()),
            }
        }
        let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        Ok(Self { lower, active, binds: bound, devices, emulator: None, sys: None, files: None, resolv })
    }

    /// Adds the host's emulator, by a mount that nobody can write through: programs find it as `/proc/self/exe`.
    pub(crate) fn add_emulator(&mut self, file: &OwnedFd) -> Result<(), SetupError> {
        let phase = "clone the emulator";
        let tree = clone_tree(file.as_fd(), false).phase(phase)?;
        let attrs = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
        sys::mount_setattr(tree.as_fd(), false, u64::from(attrs.bits()), 0, None).phase(phase)?;
        self.emulator = Some(tree);
        Ok(())
    }

    /// Adds the host's own devices, those right below `/dev`. One that cannot be bound is left out.
    pub(crate) fn add_host_devices(&mut self) {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for entry in std::fs::read_dir("/dev").into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            // Terminals of the host are nobody's business, and `console` is where a panic would be read.
            let terminal = name.starts_with("tty") || name.starts_with("vcs") || name == "console" || name == "ptmx";
            if terminal || self.devices.iter().any(|(known, _)| *known == name) {
                continue;
            }
            let Ok(node) = rustix::fs::open(entry.path(), flags, Mode::empty()) else { continue };
            let kind = rustix::fs::fstat(&node).map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode));
            if matches!(kind, Ok(rustix::fs::FileType::CharacterDevice | rustix::fs::FileType::BlockDevice))
                && let Ok(tree) = clone_tree(node.as_fd(), false)
            {
                let attrs = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
                if sys::mount_setattr(tree.as_fd(), false, u64::from(attrs.bits()), 0, None).is_ok() {
                    self.devices.push((name, tree));
                }
            }
        }
    }

    /// Makes the files of `mounts` here: a user namespace may not keep memory from being swapped, its maker may.
    pub(crate) fn add_files(&mut self, mounts: &[Mount]) {
        let files = || -> rustix::io::Result<OwnedFd> {
            let fs = new_fs("tmpfs", &[("mode", "0755"), ("noswap", "")], strict())?;
            for (index, mount) in mounts.iter().enumerate() {
                if let MountSource::File { content, mode, uid, gid } = &mount.source {
                    let id = |id: &u32| {
                        Some(*id).filter(|id| *id < SHIFTED_COUNT).map_or(SHIFTED_FIRST, |id| SHIFTED_FIRST + id)
                    };
                    write_file(&fs, &index.to_string(), content, *mode, Some((id(uid), id(gid))))?;
                }
            }
            Ok(fs)
        };
        if mounts.iter().any(|mount| matches!(mount.source, MountSource::File { .. })) {
            // Kernels before 6.4 do not know such memory: the step makes the files then.
            self.files = files().ok();
        }
    }

    /// Adds the host's `/sys`, for a step that uses the host's network.
    pub(crate) fn add_host_sys(&mut self) {
        self.sys = host_sys().ok();
    }
}

fn idmap_error(error: &std::io::Error) -> SetupError {
    SetupError {
        phase: "map the owners of a layer".into(),
        errno: error.raw_os_error().unwrap_or(0),
        detail: Some(
            "the store's file system does not support idmapped mounts: use another file system, or --userns=host"
                .into(),
        ),
        is_limit: false,
    }
}

/// A detached bind of `/dev/<name>`, which must be the device it is taken for.
fn device(name: &str, major: u32, minor: u32) -> Result<OwnedFd, SetupError> {
    let phase = || format!("bind /dev/{name}");
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::open(format!("/dev/{name}"), flags, Mode::empty()).phase(phase())?;
    let stat = rustix::fs::fstat(&node).phase(phase())?;
    let is_device = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice;
    if !is_device || stat.st_rdev != rustix::fs::makedev(major, minor) {
        return Err(SetupError::detail(phase(), format!("it is not the device {major}:{minor}")));
    }
    let tree = clone_tree(node.as_fd(), false).phase(phase())?;
    let attrs = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    sys::mount_setattr(tree.as_fd(), false, u64::from(attrs.bits()), 0, None).phase(phase())?;
    Ok(tree)
}

fn host_sys() -> std::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, "/sys", flags)?;
    sys::mount_setattr(tree.as_fd(), true, u64::from((strict() | MountAttrFlags::MOUNT_ATTR_RDONLY).bits()), 0, None)?;
    Ok(tree)
}

/// nosuid, noexec, nodev.
pub(crate) fn strict() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_NODEV
}

/// A detached copy of the mount at `fd`, rooted there.
pub(crate) fn clone_tree(fd: BorrowedFd<'_>, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(fd, "", flags)
}

/// A new, detached file system.
pub(crate) fn new_fs(kind: &str, options: &[(&str, &str)], attrs: MountAttrFlags) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        if value.is_empty() {
            fsconfig_set_flag(&context, *key)?;
        } else {
            fsconfig_set_string(&context, *key, *value)?;
        }
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attrs)
}

/// Attaches `mount` to what `target` refers to.
pub(crate) fn attach(mount: impl AsFd, target: impl AsFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags)
}

/// A directory in memory, attached out of the root's sight, in which layers become reachable by short names.
#[derive(Debug)]
pub(crate) struct Workbench {
    directory: OwnedFd,
    next: usize,
}

impl Workbench {
    /// Attaches the workbench over `/` of the step's own mount namespace and makes it the working directory.
    pub(crate) fn new() -> rustix::io::Result<Self> {
        // Never swapped where that may be asked for: outside of user namespaces, since 6.4.
        let noswap = new_fs("tmpfs", &[("mode", "0700"), ("noswap", "")], strict());
        let directory = noswap.or_else(|_| new_fs("tmpfs", &[("mode", "0700")], strict()))?;
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        attach(&directory, &root)?;
        rustix::process::fchdir(&directory)?;
        Ok(Self { directory, next: 0 })
    }

    /// The directory itself.
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    pub(crate) fn make_dir(&mut self) -> rustix::io::Result<(String, OwnedFd)> {
        let name = self.next.to_string();
        self.next += 1;
        rustix::fs::mkdirat(&self.directory, &name, Mode::from_raw_mode(0o755))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.directory, &name, flags, Mode::empty())?;
        Ok((name, fd))
    }

    /// Attaches `mount` under a name.
    pub(crate) fn place(&mut self, mount: &OwnedFd) -> rustix::io::Result<String> {
        let (name, fd) = self.make_dir()?;
        attach(mount, &fd)?;
        Ok(name)
    }

    /// A detached mount of a file with this content.
    pub(crate) fn file(
        &mut self,
        content: &[u8],
        mode: u32,
        uid: u32,
        gid: u32,
        readonly: bool,
    ) -> rustix::io::Result<OwnedFd> {
        let name = self.next.to_string();
        self.next += 1;
        write_file(&self.directory, &name, content, mode, ((uid, gid) != (0, 0)).then_some((uid, gid)))?;
        self.placed_file(&name, readonly)
    }

    /// A detached mount of a file that has this name on the workbench.
    pub(crate) fn placed_file(&self, name: &str, readonly: bool) -> rustix::io::Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(&self.directory, name, flags)?;
        let attrs = if readonly { strict() | MountAttrFlags::MOUNT_ATTR_RDONLY } else { strict() };
        sys::mount_setattr(tree.as_fd(), false, u64::from(attrs.bits()), 0, None)
            .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        Ok(tree)
    }

    /// Mounts an overlay of `lower` (lowest first); `changes` are the paths of upper and work directory.
    pub(crate) fn overlay(
        &mut self,
        lower: &[String],
        changes: Option<(&str, &str)>,
        attrs: MountAttrFlags,
    ) -> rustix::io::Result<OwnedFd> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        // Trusted attributes belong to the host's root; a user namespace has `user.overlay.*`.
        fsconfig_set_flag(&context, "userxattr")?;
        let mut layers: Vec<String> = lower.iter().rev().cloned().collect();
        if layers.is_empty() || (changes.is_none() && layers.len() == 1) {
            layers.push(self.make_dir()?.0);
        }
        let mut first = true;
        for layer in &layers {
            match fsconfig_set_string(&context, "lowerdir+", layer) {
                // Before 6.7 all layers are one string, of at most 255 bytes here.
                Err(Errno::INVAL) if first => {
                    fsconfig_set_string(&context, "lowerdir", layers.join(":"))?;
                    break;
                }
                other => other?,
            }
            first = false;
        }
        if let Some((upper, work)) = changes {
            fsconfig_set_string(&context, "upperdir", upper)?;
            fsconfig_set_string(&context, "workdir", work)?;
            // The tree is synchronised once, when it is committed, or never.
            fsconfig_set_flag(&context, "volatile")?;
        }
        for (key, value) in [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off")] {
            fsconfig_set_string(&context, key, value)?;
        }
        fsconfig_create(&context).map_err(|e| log_of(&context, e))?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attrs)
    }
}

/// Makes a file. An owner that is not mapped is nobody that the step could be, so that its root has the file then.
fn write_file(
    directory: &OwnedFd,
    name: &str,
    content: &[u8],
    mode: u32,
    owner: Option<(u32, u32)>,
) -> rustix::io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o600))?;
    let mut rest = content;
    while !rest.is_empty() {
        let n = rustix::io::write(&file, rest)?;
        rest = &rest[n..];
    }
    if let Some((uid, gid)) = owner {
        match rustix::fs::fchown(&file, Some(rustix::fs::Uid::from_raw(uid)), Some(rustix::fs::Gid::from_raw(gid))) {
            Err(Errno::INVAL | Errno::PERM) | Ok(()) => {}
            Err(e) => return Err(e),
        }
    }
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777))
}

fn log_of(context: &OwnedFd, error: Errno) -> Errno {
    let mut buffer = [0; 512];
    while let Ok(n) = rustix::io::read(context, &mut buffer) {
        if n == 0 {
            break;
        }
        tracing::debug!("overlay: {}", String::from_utf8_lossy(&buffer[..n]).trim());
    }
    error
}

/// The mount points inside one root, and those of them that had to be made.
#[derive(Debug)]
pub(crate) struct Target {
    root: OwnedFd,
    pub(crate) stubs: Vec<Stub>,
    pub(crate) parents: Vec<OwnedFd>,
}

/// As many symbolic links as the kernel follows.
const MAX_LINKS: usize = 40;

impl Target {
    pub(crate) fn new(root: OwnedFd) -> Self {
        Self { root, stubs: Vec::new(), parents: Vec::new() }
    }

    pub(crate) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Goes on with another mount of the same tree.
    pub(crate) fn replace_root(&mut self, root: OwnedFd) {
        self.root = root;
    }

    /// Opens `path` inside the root without following its last component.
    pub(crate) fn open_nofollow(&self, path: &str) -> rustix::io::Result<OwnedFd> {
        self.open(path, OFlags::NOFOLLOW)
    }

    fn open(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let relative = path.trim_start_matches('/');
        let relative = if relative.is_empty() { "." } else { relative };
        rustix::fs::openat2(
            &self.root,
            relative,
            OFlags::PATH | OFlags::CLOEXEC | flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    }

    /// Opens the mount point `path`, making it and its parents if they are missing.
    ///
    /// Symbolic links are followed inside the root, also as the last component (as runc and BuildKit do): what counts
    /// is the descriptor, which cannot be outside.
    pub(crate) fn mount_point(&mut self, path: &str, directory: bool) -> rustix::io::Result<OwnedFd> {
        self.find_or_make(path, directory, MAX_LINKS)
    }

    /// As [`Target::mount_point`], but a symbolic link as the last component is refused, and what is made stays: for
    /// `/proc`, `/sys`, `/dev`, which runc makes and BuildKit keeps.
    pub(crate) fn real_directory(&mut self, path: &str) -> rustix::io::Result<OwnedFd> {
        match self.open_nofollow(path) {
            Ok(fd) => {
                let stat = rustix::fs::fstat(&fd)?;
                match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
                    rustix::fs::FileType::Directory => Ok(fd),
                    rustix::fs::FileType::Symlink => Err(Errno::LOOP),
                    _ => Err(Errno::NOTDIR),
                }
            }
            Err(Errno::NOENT) => {
                self.make_directory(path, 0, 0)?;
                self.open_nofollow(path)
            }
            Err(e) => Err(e),
        }
    }

    /// Makes the directory `path` and its missing parents, which stay, for the user and group.
    pub(crate) fn make_directory(&mut self, path: &str, uid: u32, gid: u32) -> rustix::io::Result<()> {
        let before = self.stubs.len();
        self.find_or_make(path, true, MAX_LINKS)?;
        let (owner, group) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        for (stub, parent) in self.stubs.split_off(before).iter().zip(self.parents.split_off(before)) {
            rustix::fs::chownat(&parent, &stub.name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    fn find_or_make(&mut self, path: &str, directory: bool, links: usize) -> rustix::io::Result<OwnedFd> {
        match self.open(path, OFlags::empty()) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        if links == 0 {
            return Err(Errno::LOOP);
        }
        let trimmed = path.trim_end_matches('/');
        let (parent_path, name) = trimmed.rsplit_once('/').unwrap_or(("", trimmed));
        if name.is_empty() || name == "." || name == ".." {
            return Err(Errno::NOENT);
        }
        let parent = self.find_or_make(parent_path, true, links - 1)?;
        match rustix::fs::readlinkat(&parent, name, Vec::new()) {
            Ok(target) => {
                let target = target.to_str().map_err(|_| Errno::ILSEQ)?.to_owned();
                let next = if target.starts_with('/') { target } else { format!("{parent_path}/{target}") };
                return self.find_or_make(&next, directory, links - 1);
            }
            Err(Errno::NOENT | Errno::INVAL) => {}
            Err(e) => return Err(e),
        }
        let (stub, made) = stubs::make(&parent, name, directory)?;
        self.stubs.push(stub);
        self.parents.push(parent);
        Ok(made)
    }
}
