//! A layer that was written as a blob is the one that a copy into a mount commits.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use build_engine_rootfs::{Time, Tree};

use crate::copy::{CopySpec, View, copy, plan};
use crate::layer::compress::Compression;
use crate::layer::{self, TreeEntries, WriteOptions};
use crate::{CommitInfo, Error, Ids, LayerId, Snapshot, Store, StoreOptions};

/// Before all that this test makes, and after all that it has from its sources: the time of what is "now".
const NOW: i64 = 1_000_000;

fn new_store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), &StoreOptions { ids: Ids::Full }).unwrap();
    (dir, store)
}

fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root()
        && rustix::mount::fsopen("overlay", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC).is_ok();
    if !can {
        println!("skipped: streamed layers are compared with those of overlay mounts, which cannot be made here");
    }
    can
}

/// Numbers that look random and are the same in every run (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below
    }

    fn of<'a>(&mut self, items: &[&'a str]) -> &'a str {
        let count = items.len() as u64;
        items[usize::try_from(self.next(count)).unwrap()]
    }
}

const NAMES: [&str; 5] = ["a", "b", "c", "a.txt", "z"];

/// Fills a directory with files, directories and links under few names, so that trees collide.
fn fill(random: &mut Random, dir: &Path, depth: u64) {
    for name in NAMES {
        let path = dir.join(name);
        match random.next(if depth == 0 { 5 } else { 7 }) {
            0 | 1 => continue,
            2 | 3 => {
                fs::write(&path, random.of(&["", "one", "two", "three"])).unwrap();
                let mode = [0o644, 0o600, 0o4755][random.next(3) as usize];
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                if random.next(4) == 0 {
                    let _ = fs::hard_link(&path, dir.join(random.of(&["h1", "h2", "0"])));
                }
            }
            4 => {
                symlink(random.of(&["a", "../b", "/c", "/z/a", "nowhere"]), &path).unwrap();
                continue;
            }
            _ => {
                fs::create_dir(&path).unwrap();
                fill(random, &path, depth - 1);
            }
        }
        if random.next(40) == 0 {
            let file = fs::File::open(&path).unwrap();
            let _ = rustix::fs::fsetxattr(&file, "user.note", b"kept", rustix::fs::XattrFlags::empty());
        }
        let time = fs::FileTimes::new().set_modified(
            std::time::UNIX_EPOCH
                + std::time::Duration::new(10 + random.next(3), u32::try_from(random.next(2)).unwrap()),
        );
        fs::File::open(&path).unwrap().set_times(time).unwrap();
    }
}

fn random_spec(random: &mut Random) -> CopySpec {
    let dest = random.of(&["/", "/a", "/a/", "/b/c", "/new/dir/", "/z/a.txt", "/a/../b/", "/c"]);
    let src = random.of(&["/", "/a", "/b", "/*", "/a/*", "/[ab]*", "/a.txt", "/z/", "/c/."]);
    let dir_copy_contents = random.next(3) > 0;
    let patterns = |random: &mut Random| match random.next(4) {
        0 => vec![random.of(&["**/a", "*.txt", "b", "z/a"]).to_owned()],
        _ => Vec::new(),
    };
    CopySpec {
        src: src.into(),
        dest: dest.into(),
        owner: [Some((0, 0)), Some((1000, 7)), None][random.next(3) as usize],
        mode: [None, None, Some(0o640)][random.next(3) as usize],
        follow_symlink: random.next(2) == 0,
        dir_copy_contents,
        create_dest_path: random.next(4) > 0,
        allow_wildcard: true,
        timestamp: [None, None, Some(Time::from_seconds(7))][random.next(3) as usize],
        include_patterns: patterns(random),
        exclude_patterns: patterns(random),
        always_replace_existing_dest_paths: random.next(3) == 0,
        ..CopySpec::default()
    }
}

/// The archive of a layer's tree and what it lacks, with all that is as new as this test at one time.
fn archive(store: &Store, layer: &LayerId) -> (Vec<u8>, Vec<String>) {
    let mut bytes = Vec::new();
    let tree = store.layer_tree(layer).unwrap();
    layer::write(&mut TreeEntries::new(&tree).unwrap(), WriteOptions { epoch: Some(NOW) }, &mut bytes).unwrap();
    let mut more = Vec::new();
    for step in tree.walk("").unwrap() {
        let step = step.unwrap();
        let entry = step.place().read_entry().unwrap();
        let time = Some(entry.metadata.mtime).filter(|time| time.seconds < NOW);
        more.push(format!("{} {time:?} {:?}", step.path.display(), entry.xattrs));
    }
    (bytes, more)
}

#[test]
fn privileged_streamed_layers_are_those_that_copies_commit() {
    if !can_mount() {
        return;
    }
    let (_dir, store) = new_store();
    let (mut streamed, mut refused, mut failed) = (0, 0, 0);
    for seed in 0..500 {
        let random = &mut Random(seed);
        let (below, from) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fill(random, from.path(), 2);
        let source = Tree::open(from.path()).unwrap();
        let base = if random.next(4) == 0 {
            Snapshot::scratch()
        } else {
            fill(random, below.path(), 2);
            let active = store.active_layer(&Snapshot::scratch()).unwrap();
            let all = CopySpec { src: "/".into(), dest: "/".into(), dir_copy_contents: true, ..CopySpec::default() };
            copy(View::new(&Tree::open(below.path()).unwrap()), &active.tree().unwrap(), &all).unwrap();
            Snapshot::new(vec![store.commit(active, &CommitInfo::default()).unwrap()])
        };
        let specs: Vec<CopySpec> = (0..=random.next(2)).map(|_| random_spec(random)).collect();
        let view = View::context(&source);

        let plain = (|| {
            let active = store.active_layer(&base).unwrap();
            let mounted = store.mount(&base, Some(&active)).unwrap();
            specs.iter().try_for_each(|spec| copy(view, mounted.tree(), spec))?;
            drop(mounted);
            Ok::<_, crate::copy::CopyError>(store.commit(active, &CommitInfo::default()).unwrap())
        })();
        let mounted = store.mount(&base, None).unwrap();
        let on_top = (!base.layers().is_empty()).then(|| mounted.tree());
        let mut entries = match (plan(view, on_top, &specs, Time::now()), &plain) {
            (Ok(entries), Ok(_)) => entries,
            (Err(_), Err(_)) => {
                failed += 1;
                continue;
            }
            // It is done the plain way then.
            (Err(crate::copy::CopyError::Unplannable { .. }), Ok(_)) => {
                refused += 1;
                continue;
            }
            (planned, plain) => panic!("seed {seed}: {:?} {plain:?} {specs:?}", planned.map(drop)),
        };
        let info = CommitInfo::default();
        let layer = match store.commit_streamed(&base, &mut entries, Compression::GZIP, &info) {
            Err(Error::Layer { source: layer::LayerError::Refused { .. }, .. }) => {
                refused += 1;
                continue;
            }
            layer => layer.unwrap(),
        };
        assert!(!store.layer_dir(&layer).exists() && store.exists(&base.with(layer.clone())));
        let plain = plain.unwrap();
        let (one, two) = (archive(&store, &layer), archive(&store, &plain));
        assert_eq!(one.1, two.1, "seed {seed}: {specs:#?}");
        assert!(one.0 == two.0, "seed {seed}: {specs:#?}");
        // Mounted, the roots are the same as well.
        let root = |layer: &LayerId| {
            let mounted = store.mount(&base.with(layer.clone()), None).unwrap();
            let mut entry = mounted.tree().read_entry("").unwrap();
            entry.metadata.mtime.seconds = entry.metadata.mtime.seconds.min(NOW);
            entry.metadata.mtime.nanoseconds = 0;
            (entry.metadata.mode, entry.metadata.uid, entry.metadata.mtime, entry.xattrs)
        };
        assert_eq!(root(&layer), root(&plain), "seed {seed}");
        let (one, two) = (store.layer_info(&layer).unwrap(), store.layer_info(&plain).unwrap());
        assert_eq!((one.entries, one.size_bytes), (two.entries, two.size_bytes), "seed {seed}");
        streamed += 1;
    }
    println!("{streamed} streamed, {refused} left to the plain way, {failed} failed both ways");
    assert!(streamed > 80 && failed > 10, "{streamed} {refused} {failed}");
}

/// Without its blob such a layer is gone; with a damaged one it is never served.
#[test]
fn a_streamed_layer_lives_and_dies_with_its_blob() {
    let (_dir, store) = new_store();
    let from = tempfile::tempdir().unwrap();
    fs::write(from.path().join("file"), vec![7; 100_000]).unwrap();
    let source = Tree::open(from.path()).unwrap();
    let spec = CopySpec { src: "/".into(), dest: "/".into(), dir_copy_contents: true, ..CopySpec::default() };
    let make = || {
        let mut entries = plan(View::context(&source), None, std::slice::from_ref(&spec), Time::default()).unwrap();
        store
            .commit_streamed(&Snapshot::scratch(), &mut entries, Compression::Uncompressed, &CommitInfo::default())
            .unwrap()
    };
    let layer = make();
    let snapshot = Snapshot::new(vec![layer.clone()]);
    assert_eq!(store.usage().unwrap().layers, 0);
    let blob = store.layer_blob(&layer, Compression::Uncompressed, None).unwrap().descriptor.digest;
    assert!(!store.layer_dir(&layer).exists(), "its blob was there");

    // What a lease holds is kept, blob and all.
    let lease = store.lease().unwrap();
    lease.hold(&snapshot).unwrap();
    store.prune(true).unwrap();
    assert!(store.exists(&snapshot) && store.has_blob(&blob, None));
    drop(lease);

    let path = store.blob_path(&blob);
    let mut bytes = fs::read(&path).unwrap();
    bytes[5000] ^= 1;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&path, bytes).unwrap();
    assert!(matches!(store.layer_tree(&layer).unwrap_err(), Error::Mismatch { .. }));
    assert!(!store.exists(&snapshot) && !store.layer_dir(&layer).exists());
    let problems = store.verify().unwrap();
    assert!(problems.iter().any(|problem| problem.message.contains("incomplete")), "{problems:?}");

    let again = make();
    assert_eq!(fs::read(store.layer_dir_of_tree(&again).join("file")).unwrap(), vec![7; 100_000]);
    assert_eq!(store.usage().unwrap().layers, 1);
}

impl Store {
    fn layer_dir_of_tree(&self, layer: &LayerId) -> std::path::PathBuf {
        self.layer_tree(layer).unwrap();
        self.layer_dir(layer)
    }
}
