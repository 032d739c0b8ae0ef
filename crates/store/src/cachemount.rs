//! Cache mounts: the directories of `RUN --mount=type=cache`, which outlive builds and belong to no layer.
//!
//! A mount is known by its id and by the snapshot that it starts from, as in BuildKit; the hash of both names a directory
//! of `cachemounts/`. In it lie copies, each with its tree and its lock: as long as someone uses a copy exclusively, whoever
//! must not wait gets another one. Locks are `flock` locks, so a killed process gives up its own.
//!
//! What a mount starts from is copied when a path of it is first wanted, and never again: what steps have removed stays
//! removed.
//!
//! Order of locks: the claim of a step, then copies; the short claim that guards a mount's directory is never held while
//! waiting. Nothing here waits: [`Store::try_cache_mount`] is asked again by whoever has the patience, and can be cancelled.
//!
//! Invariant: a copy is removed only by whoever has its lock.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use build_engine_oci::Digest;
use build_engine_rootfs::{Place, Tree, clean};
use serde::{Deserialize, Serialize};

use crate::copy::{View, Visibility, copy_part, find};
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::layout::{Store, entries, lock_file, now, random_hex, remove_tree};
use crate::snapshot::Snapshot;

/// How several users of one cache mount get on with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// All of them use one copy at the same time.
    Shared,
    /// Whoever finds every copy taken gets a new one.
    Private,
    /// Whoever finds every copy taken waits.
    Locked,
}

/// A cache mount that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMountSpec {
    /// What it is called. Any text: only its hash becomes a name.
    pub id: String,
    /// What it starts from. Another seed is another mount.
    pub seed: Snapshot,
    /// The paths of it that will be opened.
    pub paths: Vec<String>,
    /// With whom it is shared.
    pub sharing: Sharing,
}

impl CacheMountSpec {
    /// What tells it from other mounts.
    pub fn key(&self) -> Digest {
        Digest::sha256(format!("{}\n{}", self.id, self.seed).as_bytes())
    }
}

/// A copy of a cache mount, kept from being removed, and from those it is not shared with, until it is dropped.
#[derive(Debug)]
pub struct CacheMount {
    tree: Tree,
    _lock: File,
}

impl CacheMount {
    /// Opens `path` without access (`O_PATH`). Symbolic links, which steps may change at any moment, are followed inside the
    /// mount by the kernel; what counts from then on is the descriptor.
    pub fn open(&self, path: &str) -> Result<OwnedFd, build_engine_rootfs::Error> {
        self.tree.resolve(path)
    }
}

/// The file `meta.json` of a copy.
#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    /// For people who look into the store.
    id: String,
    created: i64,
    /// What was copied from the seed so far: paths without links. The empty one is all of it.
    #[serde(default)]
    seeded: BTreeSet<PathBuf>,
}

enum Taken {
    Free(File),
    Shared(File),
    No,
}

impl Store {
    /// Takes a copy of a cache mount, making it if need be. `None` if it has to be waited for.
    pub fn try_cache_mount(&self, spec: &CacheMountSpec) -> Result<Option<CacheMount>> {
        let hex = spec.key().hex().to_owned();
        let Some(_guard) = self.try_claim(&guard(&hex))? else { return Ok(None) };
        let mount = self.path("cachemounts").join(&hex);
        if !mount.is_dir() {
            durable::create_dir(&mount).context("create", &mount)?;
        }
        let copies = entries(&mount)?;
        let (found, mut free) = (!copies.is_empty(), None);
        for name in copies {
            let copy = mount.join(name);
            match take(&copy)? {
                // Whoever shares joins those who share already, before they take what is free.
                Taken::Shared(lock) if spec.sharing == Sharing::Shared => {
                    return self.ready(&copy, lock, spec).map(Some);
                }
                Taken::Free(lock) if free.is_none() => free = Some((copy, lock)),
                Taken::Free(_) | Taken::Shared(_) | Taken::No => {}
            }
        }
        if free.is_none() && found && spec.sharing == Sharing::Locked {
            return Ok(None);
        }
        let (copy, lock) = match free {
            Some(free) => free,
            None => self.new_copy(&mount, &spec.id)?,
        };
        if spec.sharing == Sharing::Shared {
            // No one else can take it in between: all who want to hold the guard.
            lock.lock_shared().context("lock", &copy)?;
        }
        self.ready(&copy, lock, spec).map(Some)
    }

    fn new_copy(&self, mount: &Path, id: &str) -> Result<(PathBuf, File)> {
        let part = self.temporary("work")?;
        durable::create_dir(&part).context("create", &part)?;
        let made = || -> Result<File> {
            let root = part.join("fs");
            durable::create_dir(&root).context("create", &root)?;
            let tree = Tree::open(&root).context("open", &root)?;
            Place::new(tree.fd(), ".".as_ref(), self.ids()).chmod(0o755).context("create", &root)?;
            write_meta(&part, &Meta { id: id.to_owned(), created: now(), seeded: BTreeSet::new() }, |path, bytes| {
                durable::write(&durable::create_new(path, 0o600)?, bytes)
            })?;
            let lock = lock_file(&part.join("lock"))?;
            lock.lock().context("lock", &part)?;
            Ok(lock)
        };
        let copy = mount.join(random_hex());
        let made = made().and_then(|lock| {
            durable::rename(&part, &copy).context("rename", &part)?;
            Ok(lock)
        });
        match made {
            Ok(lock) => Ok((copy, lock)),
            Err(error) => {
                let _ = remove_tree(&part);
                Err(error)
            }
        }
    }

    /// Brings what of the seed is wanted and not there yet.
    fn ready(&self, copy: &Path, lock: File, spec: &CacheMountSpec) -> Result<CacheMount> {
        let root = copy.join("fs");
        let tree = Tree::open(&root).context("open", &root)?.with_ids(self.ids());
        if !spec.seed.layers().is_empty() {
            self.plant(copy, &tree, spec)?;
        }
        Ok(CacheMount { tree, _lock: lock })
    }

    fn plant(&self, copy: &Path, tree: &Tree, spec: &CacheMountSpec) -> Result<()> {
        let mut meta = read_meta(copy)?;
        let is_there = |path: &Path, meta: &Meta| path.ancestors().any(|above| meta.seeded.contains(above));
        let wanted: Vec<PathBuf> = spec.paths.iter().map(clean).filter(|path| !is_there(path, &meta)).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let seed = self.mount(&spec.seed, None)?;
        for path in wanted {
            let failed = |source| Error::Seed { path: Path::new("/").join(&path), source: Box::new(source) };
            // What does not exist there is reported by whoever opens it, for a step may have made it here.
            let Some(found) = find(View::new(seed.tree()), &path).map_err(failed)? else { continue };
            // A link has to be there too, and may lead elsewhere one day.
            let path = if found == path { path.clone() } else { PathBuf::new() };
            if is_there(&path, &meta) {
                continue;
            }
            let hidden = |path: &Path, _: bool| match meta.seeded.contains(path) {
                true => Visibility::Hidden,
                false => Visibility::Visible,
            };
            copy_part(View::new(seed.tree()).with_filter(&hidden), &path, tree).map_err(failed)?;
            if path.as_os_str().is_empty() {
                self.plant_root(&spec.seed, tree).context("create", copy)?;
            }
            meta.seeded.insert(path);
            write_meta(copy, &meta, |path, bytes| {
                let temporary = self.temporary("work").map_err(std::io::Error::other)?;
                durable::replace(path, &temporary, bytes, 0o600)
            })?;
        }
        Ok(())
    }

    /// Gives the root the seed's attributes.
    fn plant_root(&self, seed: &Snapshot, tree: &Tree) -> std::io::Result<()> {
        let Some(top) = seed.layers().last() else { return Ok(()) };
        let from = self.layer_tree(top).map_err(std::io::Error::other)?;
        let from = Place::new(from.fd(), ".".as_ref(), self.ids());
        crate::merged::copy_directory_metadata(from, Place::new(tree.fd(), ".".as_ref(), self.ids()))
    }

    /// How many copies of cache mounts there are, and the bytes of their files.
    pub(crate) fn cache_mount_usage(&self) -> Result<(u64, u64)> {
        let mut usage = (0, 0);
        for mount in entries(&self.path("cachemounts"))? {
            let mount = self.path("cachemounts").join(mount);
            for copy in entries(&mount)? {
                usage = (usage.0 + 1, usage.1 + size(&mount.join(copy)));
            }
        }
        Ok(usage)
    }

    /// Removes every copy that nobody uses; returns how many, and their bytes.
    pub(crate) fn remove_cache_mounts(&self) -> Result<(u64, u64)> {
        let mut removed = (0, 0);
        for hex in entries(&self.path("cachemounts"))? {
            // In use, or about to be.
            let Some(_guard) = self.try_claim(&guard(&hex))? else { continue };
            let mount = self.path("cachemounts").join(hex);
            let mut left = false;
            for name in entries(&mount)? {
                let copy = mount.join(name);
                match take(&copy)? {
                    Taken::Free(lock) => {
                        let bytes = size(&copy);
                        let trash = self.temporary("work")?;
                        durable::rename(&copy, &trash).context("remove", &copy)?;
                        remove_tree(&trash)?;
                        drop(lock);
                        removed = (removed.0 + 1, removed.1 + bytes);
                    }
                    Taken::Shared(_) | Taken::No => left = true,
                }
            }
            if !left {
                remove_tree(&mount)?;
            }
        }
        Ok(removed)
    }
}

/// The claim that guards the directory of a mount.
fn guard(hex: &str) -> String {
    format!("cache mount {hex}")
}

/// Tries to lock a copy: for itself alone, else together with those who share it.
fn take(copy: &Path) -> Result<Taken> {
    let path = copy.join("lock");
    let file = lock_file(&path)?;
    match file.try_lock() {
        Ok(()) => return Ok(Taken::Free(file)),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(Error::io("lock", path, error)),
    }
    match file.try_lock_shared() {
        Ok(()) => Ok(Taken::Shared(file)),
        Err(TryLockError::WouldBlock) => Ok(Taken::No),
        Err(TryLockError::Error(error)) => Err(Error::io("lock", path, error)),
    }
}

fn read_meta(copy: &Path) -> Result<Meta> {
    let path = copy.join("meta.json");
    let bytes = fs::read(&path).context("read", &path)?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Document { path, source })
}

fn write_meta(copy: &Path, meta: &Meta, write: impl FnOnce(&Path, &[u8]) -> std::io::Result<()>) -> Result<()> {
    let path = copy.join("meta.json");
    let bytes = serde_json::to_vec(meta).map_err(|source| Error::Document { path: path.clone(), source })?;
    write(&path, &bytes).context("write", &path)
}

/// Bytes of the regular files of a copy, an inode counted once. Others may be writing meanwhile, so it is an estimate.
fn size(copy: &Path) -> u64 {
    let (mut bytes, mut seen) = (0, BTreeSet::new());
    let Ok(mut walk) = Tree::open(copy.join("fs")).and_then(|tree| tree.walk("")) else { return 0 };
    while let Ok(Some(walked)) = walk.step() {
        let metadata = &walked.metadata;
        if metadata.is_file() && (metadata.nlink == 1 || seen.insert(metadata.identity())) {
            bytes += metadata.size;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ids, StoreOptions};

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store"), &StoreOptions { ids: Ids::Full }).unwrap();
        (dir, store)
    }

    fn spec(id: &str, sharing: Sharing) -> CacheMountSpec {
        CacheMountSpec { id: id.into(), seed: Snapshot::scratch(), paths: vec!["/".into()], sharing }
    }

    fn write(mount: &CacheMount, name: &str) {
        mount.tree.create_file(name, 0o644).unwrap();
    }

    fn has(mount: &CacheMount, name: &str) -> bool {
        mount.tree.find(name, false).unwrap().is_some()
    }

    /// F1-071. Two openings of the store stand for two processes: locks belong to open files.
    #[test]
    fn f1_071_who_gets_which_copy() {
        let (dir, one) = store();
        let other = Store::open(dir.path().join("store"), &StoreOptions { ids: Ids::Full }).unwrap();
        let take = |store: &Store, sharing| store.try_cache_mount(&spec("x", sharing)).unwrap();
        let locked = take(&one, Sharing::Locked).unwrap();
        write(&locked, "first");
        assert!(take(&other, Sharing::Locked).is_none(), "a locked mount is waited for");
        let private = take(&other, Sharing::Private).unwrap();
        assert!(!has(&private, "first"), "a private mount is another one while the first is taken");
        let shared = take(&other, Sharing::Shared).unwrap();
        assert!(!has(&shared, "first"));
        write(&shared, "shared");
        let too = take(&one, Sharing::Shared).unwrap();
        assert!(has(&too, "shared"), "who shares joins who shares");
        drop((locked, private));
        assert!(has(&take(&one, Sharing::Shared).unwrap(), "shared"), "even if another copy is free");
        assert!(!has(&take(&one, Sharing::Locked).unwrap(), "shared"), "the shared copy is taken");
        drop((shared, too));
        assert!(take(&other, Sharing::Locked).is_some());
        assert_eq!(one.usage().unwrap().cache_mounts, 3);
    }

    #[test]
    fn f1_071_content_stays_and_ids_are_apart() {
        let (dir, store) = store();
        write(&store.try_cache_mount(&spec("../../x", Sharing::Shared)).unwrap().unwrap(), "file");
        drop(store);
        let store = Store::open(dir.path().join("store"), &StoreOptions { ids: Ids::Full }).unwrap();
        assert!(has(&store.try_cache_mount(&spec("../../x", Sharing::Locked)).unwrap().unwrap(), "file"));
        assert!(!has(&store.try_cache_mount(&spec("x", Sharing::Shared)).unwrap().unwrap(), "file"));
        let names = entries(&store.path("cachemounts")).unwrap();
        assert!(names.len() == 2 && names.iter().all(|name| name.len() == 64), "{names:?}");
    }

    #[test]
    fn f1_071_what_is_in_use_is_not_pruned() {
        let (_dir, store) = store();
        let used = store.try_cache_mount(&spec("used", Sharing::Shared)).unwrap().unwrap();
        write(&used, "file");
        drop(store.try_cache_mount(&spec("free", Sharing::Shared)).unwrap());
        assert_eq!(store.prune(false).unwrap().cache_mounts, 0, "only `all` removes cache mounts");
        assert_eq!(store.prune(true).unwrap().cache_mounts, 1);
        assert!(has(&used, "file"));
        drop(used);
        assert_eq!(store.prune(true).unwrap().cache_mounts, 1);
        assert!(entries(&store.path("cachemounts")).unwrap().is_empty());
        assert!(entries(&store.path("claims")).unwrap().is_empty());
        assert!(entries(&store.path("work")).unwrap().is_empty());
    }
}
