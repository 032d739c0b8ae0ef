//! The stat index: digests of a build context's files by what `lstat` says of them, kept from one build to the next.
//!
//! A file whose inode, size, mode, modification and change time are those of last time has the content of last time, so
//! an unchanged context costs one walk and no read. One file per context, `contexts/<sha256 of its path>`, written anew
//! when something was learnt; it is disposable, and what cannot be read counts as empty.
//!
//! What makes it right: the kernel sets the change time at every change, and nobody can set it to another value. A clock
//! has ticks, though: a file that changed in the tick in which it was read looks as if it had not. So only files that
//! had been left alone for a while before the walk began are written down (git's rule for racy timestamps). File systems
//! of other machines and of user programs, whose inodes and times are those of somebody else, have no index.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use build_engine_oci::Digest;
use build_engine_rootfs::{Kind, Metadata, Time, Tree};

use crate::content_hash::{Index, Listing};
use crate::layout::Store;
use crate::{Error, Result};

/// First bytes of a file: what it is, and its version.
const MAGIC: &[u8; 8] = b"bectx\0\0\x01";

/// How long a file must have been left alone before its digest is remembered. Kernel ticks are at most 10 ms apart.
const SETTLED: i64 = 100_000_000;

/// The same where times have no fractions of a second.
const SETTLED_COARSE: i64 = 2_100_000_000;

/// How many rows may be of files that are not there any more, besides as many as there are files.
const SPARE_ROWS: usize = 1024;

/// Age of an index that a prune takes.
const FORGOTTEN: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// File systems (`f_type` of `statfs`) on which inodes and times are somebody else's: NFS, SMB, CIFS, FUSE, 9p, AFS,
/// Ceph, Coda, VirtualBox' shared folders.
const REMOTE: [(u64, &str); 12] = [
    (0x6969, "NFS"),
    (0x517B, "SMB"),
    (0xFF53_4D42, "CIFS"),
    (0xFE53_4D42, "SMB 2"),
    (0x6573_5546, "FUSE"),
    (0x0102_1997, "9p"),
    (0x5346_414F, "AFS"),
    (0x6B41_4653, "AFS"),
    (0x00C3_6400, "Ceph"),
    (0x7375_7245, "Coda"),
    (0x786F_4256, "a shared folder of VirtualBox"),
    (0x0BD0_0BD0, "Lustre"),
];

/// Digests of the files of one context.
#[derive(Debug)]
pub struct StatIndex {
    store: Store,
    file: PathBuf,
    /// Device and inode of the context's directory; `None` where no index is kept.
    root: Option<(u64, u64)>,
    opened: i128,
    /// Sorted by path.
    rows: Vec<Row>,
    /// The paths of `rows`, one after the other.
    paths: Vec<u8>,
    learnt: Mutex<Vec<(PathBuf, State, [u8; 32])>>,
}

#[derive(Debug)]
struct Row {
    path: std::ops::Range<usize>,
    state: State,
    digest: [u8; 32],
}

/// What must be the same for the content to be the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    kind: u8,
    mode: u16,
    size: u64,
    ino: u64,
    mtime: Time,
    ctime: Time,
}

impl State {
    fn of(metadata: &Metadata) -> Self {
        let kind = match metadata.kind {
            Kind::File => 0,
            Kind::Directory => 1,
            Kind::Symlink => 2,
            Kind::CharDevice => 3,
            Kind::BlockDevice => 4,
            Kind::Fifo => 5,
            Kind::Socket => 6,
        };
        let mode = u16::try_from(metadata.mode).unwrap_or(u16::MAX);
        let Metadata { size, ino, mtime, ctime, .. } = *metadata;
        Self { kind, mode, size, ino, mtime, ctime }
    }
}

impl StatIndex {
    /// The index of the context at `path`, whose open directory is `tree`. Call it before the context is listed.
    pub fn open(store: &Store, path: &Path, tree: &Tree) -> Self {
        let name = Digest::sha256(path.as_os_str().as_bytes());
        let file = store.inner.root.join("contexts").join(name.hex());
        let local = rustix::fs::fstatfs(tree.fd()).is_ok_and(|stat| remote(&stat).is_none());
        let root = tree.metadata("", false).ok().filter(|_| local).map(|metadata| (metadata.dev, metadata.ino));
        let mut index = Self {
            store: store.clone(),
            file,
            root,
            opened: now(),
            rows: Vec::new(),
            paths: Vec::new(),
            learnt: Mutex::default(),
        };
        if index.root.is_some()
            && let Ok(bytes) = fs::read(&index.file)
            && index.load(&bytes).is_none()
        {
            index.rows.clear();
        }
        index
    }

    /// The kind of file system that `path` is on, if no index is kept there.
    pub fn unreliable(path: &Path) -> Option<&'static str> {
        rustix::fs::statfs(path).ok().and_then(|stat| remote(&stat))
    }

    /// Whether digests are remembered; not on file systems of other machines and of user programs.
    pub fn is_kept(&self) -> bool {
        self.root.is_some()
    }

    /// Writes down what was learnt, if anything was. What was known before and is not in `listing` stays for a while: another
    /// build may have another ignore file.
    ///
    /// # Errors
    /// What the disk refuses; the index of before is then still there.
    pub fn save(&self, listing: &Listing) -> Result<()> {
        let mut learnt = std::mem::take(&mut *self.learnt.lock().unwrap_or_else(PoisonError::into_inner));
        let Some(root) = self.root else { return Ok(()) };
        if learnt.is_empty() {
            return Ok(());
        }
        let crowded = self.rows.len() + learnt.len() > 2 * listing.count() + SPARE_ROWS;
        let exists = |path: &[u8]| !crowded || listing.contains(Path::new(OsStr::from_bytes(path)));
        learnt.sort_by(|a, b| a.0.as_os_str().cmp(b.0.as_os_str()));
        let mut text = Encoder::new(root);
        let mut new =
            learnt.iter().map(|(path, state, digest)| (path.as_os_str().as_bytes(), state, digest)).peekable();
        for row in &self.rows {
            let path = &self.paths[row.path.clone()];
            while let Some(next) = new.next_if(|next| next.0 < path) {
                text.row(next.0, next.1, next.2);
            }
            let replaced = new.peek().is_some_and(|next| next.0 == path);
            if !replaced && exists(path) {
                text.row(path, &row.state, &row.digest);
            }
        }
        for (path, state, digest) in new {
            text.row(path, state, digest);
        }
        let temporary = self.store.temporary("ingest")?;
        // Not synced: a file that a power cut leaves torn has another checksum, and counts as empty.
        let written = fs::write(&temporary, text.finish()).and_then(|()| fs::rename(&temporary, &self.file));
        written.map_err(|source| {
            // It is the owner's, and removed with the rest of what it left unfinished where this fails too.
            let _ = fs::remove_file(&temporary);
            Error::io("write", &self.file, source)
        })
    }

    /// Reads a file; `None` where it is another context's, of another version, or damaged.
    fn load(&mut self, bytes: &[u8]) -> Option<()> {
        let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
        let mut hasher = flate2::Crc::new();
        hasher.update(body);
        if hasher.sum().to_le_bytes() != *sum {
            return None;
        }
        let mut reader = Reader(body.strip_prefix(MAGIC)?);
        if self.root != Some((reader.u64()?, reader.u64()?)) {
            return None;
        }
        let count = usize::try_from(reader.u64()?).ok()?;
        self.rows.reserve(count.min(body.len() / 80));
        let mut previous = 0..0;
        while !reader.0.is_empty() {
            let (shared, rest) = (usize::from(reader.u16()?), usize::from(reader.u16()?));
            let start = self.paths.len();
            if shared > previous.len() {
                return None;
            }
            self.paths.extend_from_within(previous.start..previous.start + shared);
            self.paths.extend_from_slice(reader.take(rest)?);
            let state = State {
                kind: reader.take(1)?[0],
                mode: reader.u16()?,
                size: reader.u64()?,
                ino: reader.u64()?,
                mtime: reader.time()?,
                ctime: reader.time()?,
            };
            let digest = reader.take(32)?.try_into().ok()?;
            previous = start..self.paths.len();
            self.rows.push(Row { path: previous.clone(), state, digest });
        }
        Some(())
    }
}

impl Store {
    /// Removes indexes that nothing was learnt for in a long time, or all. Returns the bytes freed.
    pub(crate) fn remove_stat_indexes(&self, all: bool) -> Result<u64> {
        let folder = self.path("contexts");
        let mut freed = 0;
        for entry in fs::read_dir(&folder).map_err(|source| Error::io("read", &folder, source))? {
            let Ok(entry) = entry else { continue };
            let Ok(metadata) = entry.metadata() else { continue };
            let age = metadata.modified().ok().and_then(|time| time.elapsed().ok()).unwrap_or_default();
            if (all || age > FORGOTTEN) && fs::remove_file(entry.path()).is_ok() {
                freed += metadata.len();
            }
        }
        Ok(freed)
    }
}

impl Index for StatIndex {
    fn get(&self, path: &Path, metadata: &Metadata) -> Option<Digest> {
        let path = path.as_os_str().as_bytes();
        let found = self.rows.binary_search_by(|row| self.paths[row.path.clone()].cmp(path)).ok()?;
        let row = &self.rows[found];
        let same_device = self.root.is_some_and(|(device, _)| device == metadata.dev);
        (same_device && row.state == State::of(metadata)).then(|| Digest::from_sha256(row.digest))
    }

    fn put(&self, path: &Path, metadata: &Metadata, digest: &Digest) {
        // What is mounted inside a context may be of any kind.
        let same_device = self.root.is_some_and(|(device, _)| device == metadata.dev);
        let coarse = metadata.ctime.nanoseconds == 0 && metadata.mtime.nanoseconds == 0;
        let margin = if coarse { SETTLED_COARSE } else { SETTLED };
        let too_long = path.as_os_str().len() > usize::from(u16::MAX);
        if !same_device || too_long || nanoseconds(metadata.ctime) + i128::from(margin) > self.opened {
            return;
        }
        let Some(digest) = digest.sha256_bytes() else { return };
        let row = (path.to_owned(), State::of(metadata), digest);
        self.learnt.lock().unwrap_or_else(PoisonError::into_inner).push(row);
    }
}

fn remote(stat: &rustix::fs::StatFs) -> Option<&'static str> {
    #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast, reason = "a magic number; its type differs")]
    let kind = stat.f_type as u64 & 0xFFFF_FFFF;
    REMOTE.iter().find(|(magic, _)| *magic == kind).map(|(_, name)| *name)
}

fn nanoseconds(time: Time) -> i128 {
    i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds)
}

fn now() -> i128 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i128::try_from(since.as_nanos()).unwrap_or(i128::MAX)
}

/// Writes rows: each path is the number of bytes that it shares with the one before, and the rest.
struct Encoder {
    bytes: Vec<u8>,
    count: u64,
    previous: Vec<u8>,
}

impl Encoder {
    const COUNT_AT: usize = 24;

    fn new(root: (u64, u64)) -> Self {
        let mut bytes = MAGIC.to_vec();
        for number in [root.0, root.1, 0] {
            bytes.extend(number.to_le_bytes());
        }
        Self { bytes, count: 0, previous: Vec::new() }
    }

    fn row(&mut self, path: &[u8], state: &State, digest: &[u8; 32]) {
        let shared = path.iter().zip(&self.previous).take_while(|(a, b)| a == b).count();
        let length = |count: usize| u16::try_from(count).expect("longer paths are not learnt").to_le_bytes();
        self.bytes.extend(length(shared));
        self.bytes.extend(length(path.len() - shared));
        self.bytes.extend(&path[shared..]);
        self.bytes.push(state.kind);
        self.bytes.extend(state.mode.to_le_bytes());
        self.bytes.extend(state.size.to_le_bytes());
        self.bytes.extend(state.ino.to_le_bytes());
        for time in [state.mtime, state.ctime] {
            self.bytes.extend(time.seconds.to_le_bytes());
            self.bytes.extend(time.nanoseconds.to_le_bytes());
        }
        self.bytes.extend(digest);
        self.previous.clear();
        self.previous.extend(path);
        self.count += 1;
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes[Self::COUNT_AT..Self::COUNT_AT + 8].copy_from_slice(&self.count.to_le_bytes());
        let mut hasher = flate2::Crc::new();
        hasher.update(&self.bytes);
        self.bytes.extend(hasher.sum().to_le_bytes());
        self.bytes
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn time(&mut self) -> Option<Time> {
        let seconds = i64::from_le_bytes(self.take(8)?.try_into().ok()?);
        Some(Time { seconds, nanoseconds: u32::from_le_bytes(self.take(4)?.try_into().ok()?) })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::content_hash::{ContentHash, Question};
    use crate::copy::View;
    use crate::layout::StoreOptions;

    struct Bench {
        dir: tempfile::TempDir,
        store: Store,
    }

    impl Bench {
        fn new(files: &[&str]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path().join("store"), &StoreOptions { ids: crate::Ids::One }).unwrap();
            for file in files {
                let path = dir.path().join("context").join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, file).unwrap();
            }
            Self { dir, store }
        }

        fn path(&self, file: &str) -> PathBuf {
            self.dir.path().join("context").join(file)
        }

        /// Hashes the context; returns its digest, and how many files had to be read.
        fn hash(&self) -> (Digest, usize) {
            let tree = Tree::open(self.path("")).unwrap();
            let index = StatIndex::open(&self.store, &self.path(""), &tree);
            let counted = Counted { index: &index, misses: Mutex::new(0) };
            let mut hash = ContentHash::new(View::context(&tree), Some(&counted)).unwrap();
            let digest = hash.digest(&Question { path: "/".into(), ..Question::default() }).unwrap();
            index.save(&hash.into_listing()).unwrap();
            let plain = ContentHash::new(View::context(&tree), None).unwrap();
            assert_eq!({ plain }.digest(&Question { path: "/".into(), ..Question::default() }).unwrap(), digest);
            let misses = *counted.misses.lock().unwrap();
            (digest, misses)
        }
    }

    struct Counted<'a> {
        index: &'a StatIndex,
        misses: Mutex<usize>,
    }

    impl Index for Counted<'_> {
        fn get(&self, path: &Path, metadata: &Metadata) -> Option<Digest> {
            let found = self.index.get(path, metadata);
            if found.is_none() && metadata.is_file() {
                *self.misses.lock().unwrap() += 1;
            }
            found
        }

        fn put(&self, path: &Path, metadata: &Metadata, digest: &Digest) {
            self.index.put(path, metadata, digest);
        }
    }

    fn settle() {
        std::thread::sleep(Duration::from_millis(150));
    }

    /// DESIGN 7.1.
    #[test]
    fn what_did_not_change_is_not_read_and_what_did_is() {
        let bench = Bench::new(&["a", "b", "d/c", "d/d", "e/f/g"]);
        settle();
        let (first, read) = bench.hash();
        assert_eq!(read, 5);
        assert_eq!(bench.hash(), (first.clone(), 0));
        // Of the same size, with the old time.
        let before = fs::metadata(bench.path("d/c")).unwrap().modified().unwrap();
        fs::write(bench.path("d/c"), "XXX").unwrap();
        fs::File::options().write(true).open(bench.path("d/c")).unwrap().set_modified(before).unwrap();
        let (second, read) = bench.hash();
        assert_eq!(read, 1);
        assert_ne!(first, second);
        fs::set_permissions(bench.path("a"), fs::Permissions::from_mode(0o600)).unwrap();
        settle();
        let (third, _) = bench.hash();
        assert_ne!(second, third);
        // Renamed over another one: it has another inode.
        fs::write(bench.path("new"), "b").unwrap();
        fs::rename(bench.path("new"), bench.path("b")).unwrap();
        fs::remove_file(bench.path("d/d")).unwrap();
        settle();
        let (fourth, read) = bench.hash();
        assert_eq!(read, 1, "the one that was renamed");
        assert_ne!(third, fourth);
        assert_eq!(bench.hash(), (fourth, 0));
    }

    /// Git's rule for racy timestamps.
    #[test]
    fn what_has_just_been_written_is_read_again() {
        let bench = Bench::new(&["a"]);
        let (first, _) = bench.hash();
        assert_eq!(bench.hash(), (first, 1), "it may have changed in the tick in which it was read");
        settle();
        assert_eq!(bench.hash().1, 1);
        assert_eq!(bench.hash().1, 0);
    }

    #[test]
    fn a_damaged_file_counts_as_empty() {
        let bench = Bench::new(&["a", "b/c"]);
        settle();
        let (digest, _) = bench.hash();
        let file = fs::read_dir(bench.dir.path().join("store/contexts")).unwrap().next().unwrap().unwrap().path();
        let good = fs::read(&file).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            fs::write(&file, bad).unwrap();
            assert_eq!(bench.hash(), (digest.clone(), 2), "byte {at}");
        }
        for length in 0..good.len() {
            fs::write(&file, &good[..length]).unwrap();
            assert_eq!(bench.hash(), (digest.clone(), 2), "{length} bytes");
        }
    }
}
