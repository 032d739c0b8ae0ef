//! The store's directory: opening it, who owns it, what a crash left behind.
//!
//! Neighbours: [`crate::content`], [`crate::snapshot`], [`crate::state`] and [`crate::claims`] fill the directories that
//! this module makes. Everything unfinished is named after its *owner* (`<owner>.<random>` in `ingest/` and `work/`),
//! and every owner holds a lock on `leases/<owner>` for as long as it lives; so whoever can take that lock may sweep.
//!
//! Invariant: a `version` file is written last, so a store that has one is complete.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use build_engine_oci::layout as oci_layout;
use build_engine_rootfs::{Ids, Place, Tree};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::error::{Context, Error, Result};

/// The format that this version reads and writes.
pub const FORMAT: u32 = 1;

/// Features of the format that a reader must know. None so far.
const KNOWN_INCOMPATIBLE: [&str; 0] = [];

/// Space kept back for pruning.
const RESERVE_BYTES: u64 = 1 << 20;

/// How long opening waits for a process that has the store for itself.
const EXCLUSIVE_WAIT: Duration = Duration::from_secs(60);

/// How the file `version` names a way of representing owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum IdMap {
    Full,
    One,
}

impl From<Ids> for IdMap {
    fn from(ids: Ids) -> Self {
        match ids {
            Ids::Full | Ids::Outside => Self::Full,
            Ids::One => Self::One,
        }
    }
}

impl IdMap {
    fn name(self) -> &'static str {
        match self {
            Self::Full => "owners as they are",
            Self::One => "a single owner",
        }
    }
}

/// How to open a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreOptions {
    /// How owners are represented; a store keeps the mode that it was made with.
    pub ids: Ids,
}

/// An open store. Clones share it; any number of threads and processes may have it open.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) root: PathBuf,
    pub(crate) ids: Ids,
    pub(crate) boot: String,
    /// Held shared for as long as the store is open.
    _lock: File,
    pub(crate) owner: Mutex<Option<Owner>>,
    pub(crate) database: Mutex<Option<Connection>>,
    /// Records used since the database was last written.
    pub(crate) touched: Mutex<BTreeSet<String>>,
    pub(crate) live_leases: AtomicUsize,
    /// Whether this process has entered anything as held.
    pub(crate) has_held: AtomicBool,
    /// Whether nothing may be begun any more.
    abandoned: AtomicBool,
}

/// This process's lock in `leases/`.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) id: String,
    path: PathBuf,
    _lock: File,
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Usage counts are worth a try, no more.
        let _ = self.flush_touched();
    }
}

/// The file `version`.
#[derive(Debug, Serialize, Deserialize)]
struct Version {
    format: u32,
    #[serde(default)]
    incompatible: Vec<String>,
    #[serde(default)]
    compatible: Vec<String>,
    owner: u32,
    idmap: IdMap,
    xattr: String,
}

/// The directories of a store, parents first.
const DIRECTORIES: [&str; 13] = [
    "content",
    "content/blobs",
    "content/blobs/sha256",
    "ingest",
    "work",
    "layers",
    "claims",
    "leases",
    "contexts",
    "frames",
    "cachemounts",
    "empty",
    "empty/0",
];

impl Store {
    /// Opens the store at `path`, making it first if there is none, and clears what dead processes left unfinished.
    ///
    /// # Errors
    /// [`Error::Incompatible`] if a newer version wrote it, [`Error::Owner`] if it is someone else's or was made for
    /// another [`Ids`] mode, [`Error::Busy`] if a process keeps it for itself for more than a minute.
    pub fn open(path: impl AsRef<Path>, options: &StoreOptions) -> Result<Self> {
        let root = path.as_ref();
        if !root.is_dir() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(root).context("create", root)?;
        }
        let root = &root.canonicalize().context("find", root)?;
        let here = fs::metadata(root).context("read", root)?;
        let euid = rustix::process::geteuid().as_raw();
        if here.uid() != euid {
            return Err(Error::Owner {
                path: root.clone(),
                recorded: format!("user {}", here.uid()),
                current: format!("user {euid}"),
            });
        }
        if here.mode() & 0o077 != 0 {
            fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o700)).context("protect", root)?;
        }
        let lock_path = root.join("lock");
        let lock = lock_file(&lock_path)?;
        lock_within(&lock, &lock_path, Mode::Shared, EXCLUSIVE_WAIT)?;
        let version_path = root.join("version");
        let found = read_version(&version_path)?;
        let is_new = found.is_none();
        let version = match found {
            Some(version) => version,
            None => create(root, &version_path, options)?,
        };
        check(root, &version, options)?;
        let boot = boot_id();
        let store = Self {
            inner: Arc::new(Inner {
                root: root.clone(),
                ids: options.ids,
                boot,
                _lock: lock,
                owner: Mutex::new(None),
                database: Mutex::new(None),
                touched: Mutex::new(BTreeSet::new()),
                live_leases: AtomicUsize::new(0),
                has_held: AtomicBool::new(false),
                abandoned: AtomicBool::new(false),
            }),
        };
        if is_new {
            store.inner.make_reserve();
        }
        store.recover_after_boot()?;
        store.sweep()?;
        Ok(store)
    }

    /// The directory of the store.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// How owners are represented.
    pub fn ids(&self) -> Ids {
        self.inner.ids
    }

    /// Makes every layer that was committed at least `settled` ago survive a power cut, with one `syncfs` for all of them.
    ///
    /// Layers that were never part of a checkpoint are dropped at the next boot. Takes as long as the disk needs for all
    /// that is dirty, which is little for what has settled: call it when nobody waits.
    pub fn checkpoint(&self, settled: Duration) -> Result<()> {
        let layers = self.path("layers");
        let is_settled = |layer: &Path| -> bool {
            let changed = fs::metadata(layer).and_then(|metadata| metadata.modified());
            changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|age| age >= settled))
        };
        let unsynced: Vec<PathBuf> = entries(&layers)?
            .into_iter()
            .map(|name| layers.join(name))
            .filter(|layer| is_settled(layer))
            .map(|layer| layer.join("synced"))
            .filter(|marker| !marker.exists())
            .collect();
        if unsynced.is_empty() {
            return Ok(());
        }
        durable::point("syncfs").context("sync", &layers)?;
        rustix::fs::syncfs(File::open(&layers).context("open", &layers)?).context("sync", &layers)?;
        // A layer that got its tree meanwhile is not settled any more.
        for marker in unsynced.into_iter().filter(|marker| marker.parent().is_some_and(is_settled)) {
            match File::create(&marker) {
                Ok(_) => {}
                // Pruned meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("create", marker, error)),
            }
        }
        Ok(())
    }

    /// Removes what processes that no longer live left in `ingest/`, `work/` and `leases/`.
    pub(crate) fn sweep(&self) -> Result<()> {
        let mut owners = BTreeSet::new();
        for place in ["ingest", "work", "leases"] {
            for name in entries(&self.path(place))? {
                if let Some(owner) = owner_of(&name) {
                    owners.insert(owner.to_owned());
                }
            }
        }
        for owner in owners {
            let Some(lock) = self.dead(&owner)? else { continue };
            for place in ["ingest", "work"] {
                for name in entries(&self.path(place))? {
                    if owner_of(&name) == Some(&owner) {
                        remove_tree(&self.path(place).join(name))?;
                    }
                }
            }
            let path = self.path("leases").join(&owner);
            durable::remove_file(&path).context("remove", &path)?;
            drop(lock);
        }
        Ok(())
    }

    /// Removes what this process has begun and not finished, also under the hands of threads that still work on it: the
    /// last thing to do before the process ends. What it fails to remove, the next one to open the store will.
    pub fn abandon(&self) {
        self.inner.abandoned.store(true, Ordering::SeqCst);
        let Some(owner) = lock(&self.inner.owner).as_ref().map(|owner| owner.id.clone()) else { return };
        // The second time for what was being begun while the first one looked.
        for place in ["ingest", "work", "ingest", "work"] {
            for name in entries(&self.path(place)).unwrap_or_default() {
                if owner_of(&name) != Some(&owner) {
                    continue;
                }
                // Under another name first: what a thread commits at this moment is either whole or not there.
                let trash = self.path(place).join(format!("{owner}.{}", random_hex()));
                if fs::rename(self.path(place).join(&name), &trash).is_ok() {
                    // A thread may put something into a directory that is being emptied, but not into one that is gone.
                    let _ = (0..10).any(|_| remove_tree(&trash).is_ok());
                }
            }
        }
    }

    /// Takes the lock of an owner that is dead; `None` if it lives.
    pub(crate) fn dead(&self, owner: &str) -> Result<Option<Option<File>>> {
        let path = self.path("leases").join(owner);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(None)),
            Err(error) => return Err(Error::io("open", path, error)),
        };
        match file.try_lock() {
            Ok(()) => Ok(Some(Some(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(Error::io("lock", path, error)),
        }
    }

    /// This process's owner id, made on first use.
    pub(crate) fn owner(&self) -> Result<String> {
        let mut slot = lock(&self.inner.owner);
        if let Some(owner) = &*slot {
            return Ok(owner.id.clone());
        }
        let owner = loop {
            let id = random_hex();
            let path = self.path("leases").join(&id);
            let file = durable::create_new(&path, 0o600).context("create", &path)?;
            file.lock().context("lock", &path)?;
            durable::write(&file, format!("{}\n", std::process::id()).as_bytes()).context("write", &path)?;
            // Someone may have swept the file between its creation and its lock.
            if is_linked(&file, &path) {
                break Owner { id, path, _lock: file };
            }
        };
        let id = owner.id.clone();
        *slot = Some(owner);
        Ok(id)
    }

    /// A path of this process's own in `place`, which disappears with the process at the latest when the store is
    /// opened the next time.
    pub(crate) fn temporary(&self, place: &str) -> Result<PathBuf> {
        if self.inner.abandoned.load(Ordering::SeqCst) {
            return Err(Error::io("write", self.path(place), io::Error::other("this process is ending")));
        }
        Ok(self.path(place).join(format!("{}.{}", self.owner()?, random_hex())))
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.inner.root.join(relative)
    }

    /// Drops the trees that an unclean stop of the machine may have torn: those that were never synced.
    fn recover_after_boot(&self) -> Result<()> {
        let boot_path = self.path("boot");
        let is_current = || fs::read_to_string(&boot_path).is_ok_and(|text| text.trim_end() == self.inner.boot);
        if is_current() {
            return Ok(());
        }
        let guard_path = self.path("boot.lock");
        let guard = lock_file(&guard_path)?;
        lock_within(&guard, &guard_path, Mode::Exclusive, EXCLUSIVE_WAIT)?;
        if is_current() {
            return Ok(());
        }
        for name in entries(&self.path("layers"))? {
            let layer = self.path("layers").join(&name);
            if !layer.join("synced").exists() {
                tracing::info!(layer = %name, "dropped a layer that was never synced before the machine stopped");
                let trash = self.temporary("work")?;
                durable::rename(&layer, &trash).context("rename", &layer)?;
                remove_tree(&trash)?;
            }
        }
        let temporary = self.temporary("ingest")?;
        durable::replace(&boot_path, &temporary, format!("{}\n", self.inner.boot).as_bytes(), 0o600)
            .context("write", &boot_path)
    }
}

impl Inner {
    /// Keeps some space back for pruning on a full disk, if there is some.
    pub(crate) fn make_reserve(&self) {
        let path = self.root.join("reserve");
        let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        if let Ok(file) = made
            && rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE_BYTES).is_err()
        {
            let _ = fs::remove_file(&path);
        }
    }
}

/// Makes a new store; whoever comes second finds the first one's `version`.
fn create(root: &Path, version_path: &Path, options: &StoreOptions) -> Result<Version> {
    let guard_path = root.join("boot.lock");
    let guard = lock_file(&guard_path)?;
    lock_within(&guard, &guard_path, Mode::Exclusive, EXCLUSIVE_WAIT)?;
    if let Some(version) = read_version(version_path)? {
        return Ok(version);
    }
    for directory in DIRECTORIES.into_iter().chain(["empty/1"]) {
        let path = root.join(directory);
        match durable::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io("create", path, error)),
            _ => {}
        }
    }
    let write = |path: PathBuf, bytes: &[u8]| {
        let temporary = root.join("ingest").join(random_hex());
        durable::replace(&path, &temporary, bytes, 0o600).context("write", &path)
    };
    let content = root.join("content");
    write(content.join(oci_layout::MARKER_FILE), oci_layout::MARKER.as_bytes())?;
    let index = content.join(oci_layout::INDEX_FILE);
    if !index.exists() {
        write(index, br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#)?;
    }
    write(root.join("boot"), format!("{}\n", boot_id()).as_bytes())?;
    let version = Version {
        format: FORMAT,
        incompatible: Vec::new(),
        compatible: Vec::new(),
        owner: outer_uid(),
        idmap: options.ids.into(),
        xattr: "user".to_owned(),
    };
    let mut bytes =
        serde_json::to_vec(&version).map_err(|source| Error::Document { path: version_path.to_owned(), source })?;
    bytes.push(b'\n');
    write(version_path.to_owned(), &bytes)?;
    Ok(version)
}

fn read_version(path: &Path) -> Result<Option<Version>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path, error)),
    };
    // The number alone first: a newer format may have changed everything else.
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let parse = |source| Error::Document { path: path.to_owned(), source };
    let Format { format } = serde_json::from_slice(&bytes).map_err(parse)?;
    if format > FORMAT {
        let root = path.parent().unwrap_or(path).to_owned();
        return Err(Error::Incompatible { path: root, reason: format!("it has format {format}, not {FORMAT}") });
    }
    serde_json::from_slice(&bytes).map(Some).map_err(parse)
}

fn check(root: &Path, version: &Version, options: &StoreOptions) -> Result<()> {
    let unknown: Vec<&str> = version
        .incompatible
        .iter()
        .map(String::as_str)
        .filter(|feature| !KNOWN_INCOMPATIBLE.contains(feature))
        .collect();
    if !unknown.is_empty() {
        let reason = format!("it uses {}", unknown.join(", "));
        return Err(Error::Incompatible { path: root.to_owned(), reason });
    }
    let describe = |uid: u32, ids: IdMap| format!("user {uid} with {}", ids.name());
    let ids = IdMap::from(options.ids);
    let uid = outer_uid();
    if version.owner != uid || version.idmap != ids {
        return Err(Error::Owner {
            path: root.to_owned(),
            recorded: describe(version.owner, version.idmap),
            current: describe(uid, ids),
        });
    }
    Ok(())
}

/// The effective user as the parent of the user namespace sees it, so that a store has one owner, whether it is opened
/// from inside or from outside of the worker's namespace.
fn outer_uid() -> u32 {
    let euid = rustix::process::geteuid().as_raw();
    let Ok(map) = fs::read_to_string("/proc/self/uid_map") else { return euid };
    for line in map.lines() {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
        if let (Some(Ok(inside)), Some(Ok(outside)), Some(Ok(count))) = (numbers.next(), numbers.next(), numbers.next())
            && euid >= inside
            && euid - inside < count
        {
            return outside + (euid - inside);
        }
    }
    euid
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| "unknown".to_owned(), |id| id.trim().to_owned())
}

#[derive(Clone, Copy)]
enum Mode {
    Shared,
    Exclusive,
}

pub(crate) fn lock_file(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path).context("open", path)
}

fn lock_within(file: &File, path: &Path, mode: Mode, wait: Duration) -> Result<()> {
    let deadline = Instant::now() + wait;
    loop {
        let taken = match mode {
            Mode::Shared => file.try_lock_shared(),
            Mode::Exclusive => file.try_lock(),
        };
        match taken {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(TryLockError::WouldBlock) => return Err(Error::Busy { path: path.to_owned(), owner: None }),
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", path, error)),
        }
    }
}

/// Whether `path` still names the open `file`.
pub(crate) fn is_linked(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(named)) => open.ino() == named.ino() && open.dev() == named.dev(),
        _ => false,
    }
}

fn owner_of(name: &str) -> Option<&str> {
    let owner = name.split('.').next()?;
    (owner.len() == 32 && owner.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(owner)
}

/// The names in a directory of the store, sorted; names that are not UTF-8 are none of ours.
pub(crate) fn entries(directory: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).context("list", directory)? {
        if let Ok(name) = entry.context("list", directory)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Removes a file or a whole tree, whatever an image has put there; that it is gone already is no error.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    durable::point("remove_tree").context("remove", path)?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let parent = Tree::open(parent).context("open", parent)?;
    match Place::new(parent.fd(), name, Ids::Full).remove_all() {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        other => other.context("remove", path),
    }
}

/// 128 random bits in hexadecimal.
pub(crate) fn random_hex() -> String {
    let mut bytes = [0_u8; 16];
    // The kernel's generator answers requests this small completely, and never fails once the system is up.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    bytes.iter().fold(String::with_capacity(32), |mut text, byte| {
        use std::fmt::Write;
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| i64::try_from(age.as_secs()).unwrap_or(0))
}
