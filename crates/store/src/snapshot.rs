//! Snapshots: the file system trees that build steps read and write.
//!
//! A *layer* is a parentless tree of changes; a [`Snapshot`] is an ordered list of layers. This module creates, commits,
//! stacks and compares them. Turning a layer into a blob is [`crate::forms`]'s work, and whether a step may reuse one is for
//! the solver to decide.
//!
//! Invariants: a committed layer is never written again. A layer that was committed here has explicit whiteouts only; one
//! that was unpacked from a blob may have opaque directories, because what they hide is known only in a stack.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use build_engine_oci::Digest;
use build_engine_rootfs::{Kind, Metadata, Place, Time, Tree};
use rustix::fs::Mode;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::error::{Context, Error, Result};
use crate::layout::{Store, now, random_hex, remove_tree};
use crate::merged::{self, DIRECTORY, Merged};
use crate::streamed::Streamed;

/// The most lower layers that the kernel takes in one overlay.
const MOST_LAYERS: usize = 500;
/// How many layers are folded into one when there are more.
const FOLD: usize = 250;
/// No path that a system call takes can name anything deeper.
const MOST_DEPTH: usize = 2048;

/// Names a layer of this store: 128 random bits, never taken from outside.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerId(Box<str>);

impl LayerId {
    pub(crate) fn random() -> Self {
        Self(random_hex().into())
    }

    /// The hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LayerId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let well_formed = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if well_formed {
            Ok(Self(text.into()))
        } else {
            Err(Error::Invalid { what: "layer id", text: text.chars().take(80).collect() })
        }
    }
}

impl TryFrom<String> for LayerId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<LayerId> for String {
    fn from(id: LayerId) -> Self {
        id.0.into()
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A tree as a step sees it: layers, lowest first. No layers is the empty tree, `scratch`.
///
/// Its text, which cache records store, is `layers:` and the ids joined by `+`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Snapshot(Vec<LayerId>);

impl Snapshot {
    /// The empty tree.
    pub fn scratch() -> Self {
        Self::default()
    }

    /// A tree of these layers, lowest first.
    pub fn new(layers: Vec<LayerId>) -> Self {
        Self(layers)
    }

    /// The layers, lowest first.
    pub fn layers(&self) -> &[LayerId] {
        &self.0
    }

    /// This tree with one more layer on top.
    #[must_use]
    pub fn with(&self, layer: LayerId) -> Self {
        let mut layers = self.0.clone();
        layers.push(layer);
        Self(layers)
    }

    /// The layers of all `parts` on top of one another, as `MergeOp` wants it.
    pub fn merge<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut layers: Vec<LayerId> = Vec::new();
        for layer in parts.into_iter().flat_map(|part| &part.0) {
            // The kernel refuses to stack a directory on itself; the upper of two equal layers decides.
            layers.retain(|known| known != layer);
            layers.push(layer.clone());
        }
        Self(layers)
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("layers:")?;
        for (index, layer) in self.0.iter().enumerate() {
            write!(f, "{}{layer}", if index == 0 { "" } else { "+" })?;
        }
        Ok(())
    }
}

impl FromStr for Snapshot {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || Error::Invalid { what: "snapshot", text: text.chars().take(80).collect() };
        let ids = text.strip_prefix("layers:").ok_or_else(invalid)?;
        if ids.is_empty() {
            return Ok(Self::scratch());
        }
        ids.split('+').map(str::parse).collect::<Result<_>>().map(Self).map_err(|_| invalid())
    }
}

impl TryFrom<String> for Snapshot {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Snapshot> for String {
    fn from(snapshot: Snapshot) -> Self {
        snapshot.to_string()
    }
}

/// What is said about a layer when it is committed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommitInfo {
    /// For people who look into the store: the step that made it.
    pub description: String,
    /// When the root of a layer without base was changed; now, where that is left out. Copies of the whole tree have it, no blob does.
    pub root_time: Option<Time>,
}

/// What is known about a layer (`meta.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// Seconds since 1970.
    pub created: i64,
    /// The boot during which it was written.
    pub boot: String,
    /// The step that made it.
    #[serde(default)]
    pub description: String,
    /// Files, directories and whiteouts, without the root.
    pub entries: u64,
    /// Bytes of regular files, an inode counted once.
    pub size_bytes: u64,
    /// The layers that it stands for, if it is a fold of many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub folded: Vec<LayerId>,
    /// What its tree can be made of, if it was written as a blob first; see [`crate::streamed`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streamed: Option<Streamed>,
}

/// A layer that a running step writes. Dropped without [`Store::commit`], it is removed.
#[derive(Debug)]
pub struct ActiveLayer {
    store: Store,
    base: Snapshot,
    path: PathBuf,
    kept: bool,
}

impl ActiveLayer {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The tree of changes: the upper directory of an overlay.
    pub fn dir(&self) -> PathBuf {
        self.path.join("fs")
    }

    /// What it is written on top of.
    pub fn base(&self) -> &Snapshot {
        &self.base
    }

    /// The tree of changes itself, for writing into it without a mount.
    pub fn tree(&self) -> Result<Tree> {
        let dir = self.dir();
        Ok(Tree::open(&dir).context("open", &dir)?.with_ids(self.store.ids()))
    }

    /// Makes a fresh work directory for one overlay mount. The kernel allows each to be used only once.
    pub fn new_work_dir(&self) -> Result<PathBuf> {
        let path = self.path.join(format!("work.{}", random_hex()));
        durable::create_dir(&path).context("create", &path)?;
        Ok(path)
    }
}

impl Drop for ActiveLayer {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = remove_tree(&self.path)
        {
            tracing::warn!(%error, "could not remove an unfinished layer; the next start will");
        }
    }
}

/// A snapshot as a tree: a detached mount that no mount table lists, and that goes with its last fd.
#[derive(Debug)]
pub struct MountedTree {
    tree: Tree,
}

impl MountedTree {
    /// The tree.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The root of the mount.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.tree.fd()
    }

    /// The tree, which keeps the mount.
    pub fn into_tree(self) -> Tree {
        self.tree
    }
}

impl Store {
    /// Whether all layers of a snapshot are there, as trees or as blobs.
    pub fn exists(&self, snapshot: &Snapshot) -> bool {
        snapshot.0.iter().all(|layer| self.has_layer(layer))
    }

    /// The tree of changes of a layer, whether it is there or not.
    pub fn layer_dir(&self, layer: &LayerId) -> PathBuf {
        self.layer_path(layer).join("fs")
    }

    /// The tree of changes of a layer, opened.
    pub fn layer_tree(&self, layer: &LayerId) -> Result<Tree> {
        self.need_trees(std::slice::from_ref(layer))?;
        let path = self.layer_dir(layer);
        match Tree::open(&path) {
            Err(error) if error.is_not_found() => Err(Error::UnknownLayer(layer.to_string())),
            other => Ok(other.context("open", &path)?.with_ids(self.ids())),
        }
    }

    /// What is known about a layer.
    pub fn layer_info(&self, layer: &LayerId) -> Result<LayerInfo> {
        let path = self.layer_path(layer).join("meta.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::UnknownLayer(layer.to_string()));
            }
            Err(error) => return Err(Error::io("read", path, error)),
        };
        serde_json::from_slice(&bytes).map_err(|source| Error::Document { path, source })
    }

    /// Starts a layer on top of `base`; its root directory looks as the base's does.
    pub fn active_layer(&self, base: &Snapshot) -> Result<ActiveLayer> {
        let mut active = self.empty_layer()?;
        active.base = base.clone();
        let dir = active.dir();
        durable::create_dir(&dir).context("create", &dir)?;
        let tree = active.tree()?;
        let root = Place::new(tree.fd(), ".".as_ref(), self.ids());
        match self.merged(base)?.top() {
            Some(below) => merged::copy_directory_metadata(below, root).context("create", &dir)?,
            None => {
                root.chmod(0o755).context("create", &dir)?;
                root.set_times(Time { seconds: 0, nanoseconds: 0 }).context("create", &dir)?;
            }
        }
        Ok(active)
    }

    /// A layer that has no tree yet.
    pub(crate) fn empty_layer(&self) -> Result<ActiveLayer> {
        let path = self.temporary("work")?;
        durable::create_dir(&path).context("create", &path)?;
        Ok(ActiveLayer { store: self.clone(), base: Snapshot::scratch(), path, kept: false })
    }

    /// Makes a layer of what a step wrote; nothing may be mounted on it any more.
    ///
    /// Opaque directories become explicit whiteouts, the overlay's own attributes go, and so does what equals the base:
    /// same metadata, modification time included, and same content. Sockets go as well, for no layer can hold them. If it
    /// fails nothing is left behind.
    pub fn commit(&self, mut active: ActiveLayer, info: &CommitInfo) -> Result<LayerId> {
        let dir = active.dir();
        let lower = self.merged(&active.base)?;
        let upper = rustix::fs::open(&dir, DIRECTORY, Mode::empty()).context("open", &dir)?;
        let mut commit = Commit { store: self, dir: &dir, seen: BTreeSet::new(), entries: 0, size_bytes: 0 };
        commit.directory(&upper, Some(&lower), false, 0)?;
        if let Some(below) = lower.top() {
            // The root's times say only when something was made in it; no blob has them either.
            let mtime = below.metadata().context("read", &dir)?.mtime;
            Place::new(upper.as_fd(), ".".as_ref(), self.ids()).set_times(mtime).context("write", &dir)?;
        } else {
            let time = info.root_time.unwrap_or_else(Time::now);
            Place::new(upper.as_fd(), ".".as_ref(), self.ids()).set_times(time).context("write", &dir)?;
        }
        let (entries, size_bytes) = (commit.entries, commit.size_bytes);
        let id = LayerId::random();
        self.install(&mut active, &id, entries, size_bytes, &info.description, Vec::new())?;
        Ok(id)
    }

    /// Makes a layer of `active` exactly as it is, for trees that were unpacked or computed rather than mounted.
    pub(crate) fn commit_unchanged(
        &self,
        mut active: ActiveLayer,
        description: &str,
        id: LayerId,
        folded: Vec<LayerId>,
    ) -> Result<LayerId> {
        let dir = active.dir();
        let mut count = Commit { store: self, dir: &dir, seen: BTreeSet::new(), entries: 0, size_bytes: 0 };
        let root = rustix::fs::open(&dir, DIRECTORY, Mode::empty()).context("open", &dir)?;
        count.measure(&root, 0)?;
        let (entries, size_bytes) = (count.entries, count.size_bytes);
        self.install(&mut active, &id, entries, size_bytes, description, folded)?;
        Ok(id)
    }

    fn install(
        &self,
        active: &mut ActiveLayer,
        id: &LayerId,
        entries: u64,
        size_bytes: u64,
        description: &str,
        folded: Vec<LayerId>,
    ) -> Result<()> {
        for name in crate::layout::entries(&active.path)? {
            if name.starts_with("work") {
                remove_tree(&active.path.join(name))?;
            }
        }
        let info = LayerInfo {
            created: now(),
            boot: self.inner.boot.clone(),
            description: description.to_owned(),
            entries,
            size_bytes,
            folded,
            streamed: None,
        };
        self.install_as(active, id, &info)
    }

    pub(crate) fn install_as(&self, active: &mut ActiveLayer, id: &LayerId, info: &LayerInfo) -> Result<()> {
        let meta = active.path.join("meta.json");
        let bytes = serde_json::to_vec(info).map_err(|source| Error::Document { path: meta.clone(), source })?;
        let file = durable::create_new(&meta, 0o600).context("create", &meta)?;
        durable::write(&file, &bytes).context("write", &meta)?;
        self.created("layer", id.as_str())?;
        let target = self.layer_path(id);
        durable::rename(&active.path, &target).context("rename", &active.path)?;
        active.kept = true;
        Ok(())
    }

    /// The directories of a snapshot, lowest first, at most 499 of them, and at least one: what an overlay is made of.
    ///
    /// More layers than that are folded first, which is remembered.
    pub fn layer_dirs(&self, snapshot: &Snapshot) -> Result<Vec<PathBuf>> {
        self.need_trees(&snapshot.0)?;
        let mut layers = snapshot.0.clone();
        if layers.len() >= MOST_LAYERS {
            let mut folded = Vec::new();
            while folded.len() + layers.len() >= MOST_LAYERS && layers.len() >= FOLD {
                let rest = layers.split_off(FOLD);
                folded.push(self.fold(&layers)?);
                layers = rest;
            }
            folded.append(&mut layers);
            layers = folded;
        }
        if layers.is_empty() {
            return Ok(vec![self.path("empty").join("0")]);
        }
        Ok(layers.iter().map(|layer| self.layer_dir(layer)).collect())
    }

    /// Mounts a snapshot, for reading, or with `active` on top for writing into that.
    ///
    /// The mount appears in no mount table. It allows neither device nodes nor set-user-id programs to have effect: it is
    /// for working on the tree, not for running what is in it. Needs `CAP_SYS_ADMIN` in
    /// the user namespace that owns the mount namespace: a worker unshares both.
    pub fn mount(&self, snapshot: &Snapshot, active: Option<&ActiveLayer>) -> Result<MountedTree> {
        let mut dirs = self.layer_dirs(snapshot)?;
        if active.is_none() && dirs.len() == 1 {
            // An overlay that is only read has at least two layers.
            dirs.insert(0, self.path("empty").join("1"));
        }
        let layers = dirs.len();
        let failed = |step: &str, source: io::Error| Error::Mount { layers, step: step.to_owned(), source };
        let overlay = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|errno| failed("fsopen", errno.into()))?;
        let set = |key: &str, value: &str| {
            rustix::mount::fsconfig_set_string(overlay.as_fd(), key, value)
                .map_err(|errno| failed(&format!("{key}={value}"), errno.into()))
        };
        // The kernel takes no value longer than 255 bytes, so a directory is given as an fd.
        let set_dir = |key: &str, path: &Path| {
            let dir = rustix::fs::open(path, DIRECTORY, Mode::empty()).context("open", path)?;
            set(key, &format!("/proc/self/fd/{}", dir.as_raw_fd()))
        };
        rustix::mount::fsconfig_set_flag(overlay.as_fd(), "userxattr")
            .map_err(|errno| failed("userxattr", errno.into()))?;
        for (key, value) in [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off"), ("xino", "off")] {
            set(key, value)?;
        }
        for dir in dirs.iter().rev() {
            set_dir("lowerdir+", dir)?;
        }
        if let Some(active) = active {
            set_dir("upperdir", &active.dir())?;
            set_dir("workdir", &active.new_work_dir()?)?;
            // What an unfinished step wrote is worth no sync.
            rustix::mount::fsconfig_set_flag(overlay.as_fd(), "volatile")
                .map_err(|errno| failed("volatile", errno.into()))?;
        }
        rustix::mount::fsconfig_create(overlay.as_fd()).map_err(|errno| failed("create", errno.into()))?;
        let mut attributes =
            MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOATIME;
        if active.is_none() {
            attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        let mount = rustix::mount::fsmount(overlay.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(|errno| failed("fsmount", errno.into()))?;
        // The mount's fd names it without access; directories are read through one that has it.
        let root =
            rustix::fs::openat(&mount, ".", DIRECTORY, Mode::empty()).map_err(|errno| failed("open", errno.into()))?;
        Ok(MountedTree { tree: Tree::from_fd(root).with_ids(self.ids()) })
    }

    /// The difference that leads from `lower` to `upper`: the layers that `upper` adds, else a layer that is computed
    /// by comparing the trees.
    pub fn diff(&self, lower: &Snapshot, upper: &Snapshot) -> Result<Snapshot> {
        if let Some(added) = upper.0.strip_prefix(&lower.0[..]) {
            return Ok(Snapshot(added.to_vec()));
        }
        let active = self.active_layer(&Snapshot::scratch())?;
        let dir = active.dir();
        let out = rustix::fs::open(&dir, DIRECTORY, Mode::empty()).context("open", &dir)?;
        let (lower, upper) = (self.merged(lower)?, self.merged(upper)?);
        self.difference(Some(&lower), &upper, out.as_fd(), 0).context("write", &dir)?;
        if let Some(top) = upper.top() {
            let root = Place::new(out.as_fd(), ".".as_ref(), self.ids());
            merged::copy_directory_metadata(top, root).context("write", &dir)?;
        }
        let id = self.commit_unchanged(active, "difference", LayerId::random(), Vec::new())?;
        Ok(Snapshot(vec![id]))
    }

    fn difference(
        &self,
        lower: Option<&Merged>,
        upper: &Merged,
        out: BorrowedFd<'_>,
        depth: usize,
    ) -> io::Result<bool> {
        if depth > MOST_DEPTH {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::NAMETOOLONG.raw_os_error()));
        }
        let mut changed = false;
        let names = upper.names()?;
        for (name, (level, metadata)) in &names {
            if metadata.is_whiteout() {
                continue;
            }
            let (from, to) = (upper.place(*level, name), Place::new(out, name, self.ids()));
            let below = lower.map(|lower| lower.find(name)).transpose()?.flatten();
            let is_same = match (lower, &below) {
                (Some(lower), Some((level, _))) => merged::same(from, lower.place(*level, name))?,
                _ => false,
            };
            if !metadata.is_dir() {
                if !is_same {
                    merged::link_or_copy(from, to)?;
                    changed = true;
                }
                continue;
            }
            let Some(child) = upper.child(name)? else { continue };
            let child_below = match lower {
                Some(lower) if below.is_some_and(|(_, metadata)| metadata.is_dir()) => lower.child(name)?,
                _ => None,
            };
            to.mkdir(0o700)?;
            let dir = to.open_dir()?;
            if self.difference(child_below.as_ref(), &child, dir.as_fd(), depth + 1)? || !is_same {
                merged::copy_directory_metadata(from, to)?;
                changed = true;
            } else {
                to.rmdir()?;
            }
        }
        for (name, (_, metadata)) in lower.map(Merged::names).transpose()?.unwrap_or_default() {
            if !metadata.is_whiteout() && names.get(&name).is_none_or(|(_, metadata)| metadata.is_whiteout()) {
                Place::new(out, &name, self.ids()).whiteout()?;
                changed = true;
            }
        }
        Ok(changed)
    }

    /// One layer that stands for several in a mount: whiteouts stay, and what the stack hides becomes opaque.
    fn fold(&self, layers: &[LayerId]) -> Result<LayerId> {
        let text = Snapshot(layers.to_vec()).to_string();
        let id: LayerId = Digest::sha256(text.as_bytes()).hex()[..32].parse()?;
        if self.layer_path(&id).is_dir() {
            return Ok(id);
        }
        let _claim = self.claim(&format!("fold {id}"))?;
        if self.layer_path(&id).is_dir() {
            return Ok(id);
        }
        let active = self.active_layer(&Snapshot::scratch())?;
        let dir = active.dir();
        let out = rustix::fs::open(&dir, DIRECTORY, Mode::empty()).context("open", &dir)?;
        let stack = self.merged(&Snapshot(layers.to_vec()))?;
        self.flatten(&stack, out.as_fd(), 0).context("write", &dir)?;
        if let Some(top) = stack.top() {
            let root = Place::new(out.as_fd(), ".".as_ref(), self.ids());
            merged::copy_directory_metadata(top, root).context("write", &dir)?;
        }
        self.commit_unchanged(active, "fold", id, layers.to_vec())
    }

    fn flatten(&self, stack: &Merged, out: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
        if depth > MOST_DEPTH {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::NAMETOOLONG.raw_os_error()));
        }
        for (name, (level, metadata)) in stack.names()? {
            let (from, to) = (stack.place(level, &name), Place::new(out, &name, self.ids()));
            if metadata.is_whiteout() {
                to.whiteout()?;
            } else if metadata.is_dir()
                && let Some(child) = stack.child(&name)?
            {
                to.mkdir(0o700)?;
                let dir = to.open_dir()?;
                self.flatten(&child, dir.as_fd(), depth + 1)?;
                if child.ended {
                    to.set_opaque()?;
                }
                merged::copy_directory_metadata(from, to)?;
            } else {
                merged::link_or_copy(from, to)?;
            }
        }
        Ok(())
    }

    /// Reads a snapshot without mounting it.
    pub(crate) fn merged(&self, snapshot: &Snapshot) -> Result<Merged> {
        self.need_trees(&snapshot.0)?;
        Merged::open(snapshot.0.iter().rev().map(|layer| self.layer_dir(layer)), self.ids())
            .context("open", self.path("layers"))
    }

    pub(crate) fn layer_path(&self, layer: &LayerId) -> PathBuf {
        self.path("layers").join(layer.as_str())
    }
}

/// Turns what an overlay left in its upper directory into a layer.
struct Commit<'a> {
    store: &'a Store,
    dir: &'a Path,
    /// Inodes with several names whose size is counted.
    seen: BTreeSet<(u64, u64)>,
    entries: u64,
    size_bytes: u64,
}

impl Commit<'_> {
    /// Cleans one directory. `hides` says that nothing of `lower` shines through. Returns how many entries remain.
    fn directory(&mut self, upper: &OwnedFd, lower: Option<&Merged>, hides: bool, depth: usize) -> Result<usize> {
        self.check_depth(depth)?;
        let ids = self.store.ids();
        let dir = self.dir;
        let itself = Place::new(upper.as_fd(), ".".as_ref(), ids);
        let before = itself.metadata().context("read", dir)?;
        strip(itself).context("write", dir)?;
        let mut remaining = 0;
        let mut touched = false;
        let names = merged::names(upper.as_fd()).context("list", dir)?;
        if hides && let Some(lower) = lower {
            for (name, (_, metadata)) in lower.names().context("list", dir)? {
                if !metadata.is_whiteout() && !names.contains(&name) {
                    Place::new(upper.as_fd(), &name, ids).whiteout().context("write", dir)?;
                    remaining += 1;
                    self.entries += 1;
                    touched = true;
                }
            }
        }
        for name in names {
            let place = Place::new(upper.as_fd(), &name, ids);
            let metadata = place.metadata().context("read", dir)?;
            let below = match lower {
                Some(lower) => lower.find(&name).context("read", dir)?.map(|(level, found)| (lower, level, found)),
                None => None,
            };
            let kept = if metadata.is_dir() {
                self.subdirectory(place, below, hides, depth)?
            } else {
                self.leaf(place, &metadata, below)?
            };
            match kept {
                true => {
                    remaining += 1;
                    self.entries += 1;
                }
                false => touched = true,
            }
        }
        if touched {
            itself.set_times(before.mtime).context("write", dir)?;
        }
        Ok(remaining)
    }

    fn subdirectory(
        &mut self,
        place: Place<'_>,
        below: Option<(&Merged, usize, Metadata)>,
        hides: bool,
        depth: usize,
    ) -> Result<bool> {
        let dir = self.dir;
        let below = below.filter(|(_, _, metadata)| metadata.is_dir());
        let child_below = match &below {
            Some((lower, _, _)) => lower.child(place.name()).context("read", dir)?,
            None => None,
        };
        let child = place.open_dir().context("open", dir)?;
        let hides = hides || merged::is_opaque(child.as_fd()).context("read", dir)?;
        let remaining = self.directory(&child, child_below.as_ref(), hides, depth + 1)?;
        if remaining == 0
            && let Some((lower, level, _)) = below
            && merged::same(place, lower.place(level, place.name())).context("read", dir)?
        {
            place.rmdir().context("remove", dir)?;
            return Ok(false);
        }
        Ok(true)
    }

    fn leaf(
        &mut self,
        place: Place<'_>,
        metadata: &Metadata,
        below: Option<(&Merged, usize, Metadata)>,
    ) -> Result<bool> {
        let dir = self.dir;
        if metadata.is_whiteout() || metadata.kind == Kind::Socket {
            if metadata.is_whiteout() && below.is_some() {
                return Ok(true);
            }
            place.unlink().context("remove", dir)?;
            if below.is_none() {
                return Ok(false);
            }
            place.whiteout().context("write", dir)?;
            return Ok(true);
        }
        strip(place).context("write", dir)?;
        // One of several names keeps its inode with the others, even if it alone did not change.
        let shared = metadata.is_file() && metadata.nlink > 1;
        if !shared
            && let Some((lower, level, _)) = below
            && merged::same(place, lower.place(level, place.name())).context("read", dir)?
        {
            place.unlink().context("remove", dir)?;
            return Ok(false);
        }
        self.count(metadata);
        Ok(true)
    }

    fn count(&mut self, metadata: &Metadata) {
        if metadata.is_file() && (metadata.nlink == 1 || self.seen.insert(metadata.identity())) {
            self.size_bytes += metadata.size;
        }
    }

    /// Counts what is there.
    fn measure(&mut self, dir: &OwnedFd, depth: usize) -> Result<()> {
        self.check_depth(depth)?;
        for name in merged::names(dir.as_fd()).context("list", self.dir)? {
            let place = Place::new(dir.as_fd(), &name, self.store.ids());
            let metadata = place.metadata().context("read", self.dir)?;
            self.entries += 1;
            self.count(&metadata);
            if metadata.is_dir() {
                self.measure(&place.open_dir().context("open", self.dir)?, depth + 1)?;
            }
        }
        Ok(())
    }

    fn check_depth(&self, depth: usize) -> Result<()> {
        if depth > MOST_DEPTH {
            return Err(Error::TooDeep { path: self.dir.to_owned(), limit: MOST_DEPTH });
        }
        Ok(())
    }
}

/// Takes the overlay's own attributes off a file or directory.
fn strip(place: Place<'_>) -> rustix::io::Result<()> {
    for name in place.xattr_names()? {
        let bytes = name.as_bytes();
        if bytes.starts_with(b"user.overlay.") || bytes.starts_with(b"trusted.overlay.") {
            place.remove_xattr(&name)?;
        }
    }
    Ok(())
}
