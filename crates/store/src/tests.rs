//! Tests of the store as a whole: what survives, what is shared, what comes back out.
//!
//! Tests that need another process run this test binary again with `BUILD_ENGINE_STORE_TEST` set.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use build_engine_oci::{Descriptor, Digest, Manifest, media_type};
use build_engine_rootfs::{Device, Kind, Place, Time, Tree};
use rustix::io::Errno;
use serde_json::json;

use crate::durable::failpoints::{Action, arm, disarm};
use crate::forms::is_compressed;
use crate::layer::compress::Compression;
use crate::{ActiveLayer, BlobState, CommitInfo, Error, Ids, LayerId, NewRecord, Snapshot, Store, StoreOptions};

const CHILD: &str = "BUILD_ENGINE_STORE_TEST";
const OPTIONS: StoreOptions = StoreOptions { ids: Ids::Full };

fn open(path: &Path) -> Store {
    Store::open(path, &OPTIONS).unwrap()
}

fn new_store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store"));
    (dir, store)
}

/// A directory in memory where there is one: hundreds of stores wait too long for a disk.
fn memory_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn is_privileged(test: &str) -> bool {
    let can = rustix::process::geteuid().is_root()
        && rustix::mount::fsopen("overlay", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC).is_ok();
    if !can {
        println!("skipped: {test} needs to mount an overlay");
    }
    can
}

/// This test again, in a process of its own.
fn child(test: &str, wrapper: &[&str], store: &Path, argument: &str) -> Command {
    let exe = std::env::current_exe().unwrap();
    let mut command = match wrapper {
        [] => Command::new(exe),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(exe);
            command
        }
    };
    command.args(["--exact", &format!("tests::{test}"), "--nocapture", "--test-threads=1"]);
    command.env(CHILD, argument).env("STORE", store).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn argument() -> Option<(String, PathBuf)> {
    Some((std::env::var(CHILD).ok()?, std::env::var_os("STORE")?.into()))
}

fn layer(store: &Store, base: &Snapshot, write: impl FnOnce(&Path)) -> LayerId {
    let active = store.active_layer(base).unwrap();
    write(&active.dir());
    store.commit(active, &CommitInfo::default()).unwrap()
}

/// Everything a tree says, one line per name, as overlayfs or the store shows it.
fn listing(tree: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    let mut inodes = BTreeMap::new();
    let mut walk = tree.walk("").unwrap();
    while let Some(walked) = walk.step().unwrap() {
        let entry = walked.place().read_entry().unwrap();
        let metadata = &entry.metadata;
        let mut content = String::new();
        if metadata.is_file() {
            walked.place().open_file().unwrap().read_to_string(&mut content).unwrap();
        }
        let first = match metadata.is_file() {
            true => inodes.entry(metadata.ino).or_insert_with(|| walked.path.clone()).clone(),
            false => walked.path.clone(),
        };
        let same = if first == walked.path { String::new() } else { format!(" = {}", first.display()) };
        let link = entry.link.map(|link| format!(" -> {}", link.display())).unwrap_or_default();
        let xattrs: Vec<_> =
            entry.xattrs.iter().map(|(name, value)| format!(" {}={value:02x?}", name.display())).collect();
        lines.push(format!(
            "{} {} {:o} {}:{} {}:{} @{}{link}{same}{} {content}",
            walked.path.display(),
            metadata.kind,
            metadata.mode,
            metadata.uid,
            metadata.gid,
            metadata.device.major,
            metadata.device.minor,
            metadata.mtime.seconds,
            xattrs.concat(),
        ));
    }
    lines.sort();
    lines
}

fn names(tree: &Tree) -> Vec<String> {
    listing(tree).into_iter().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
}

// ----- opening -----

#[test]
fn opening_twice_gives_the_same_store_quickly() {
    let (dir, store) = new_store();
    let digest = store.put_blob(b"hello").unwrap();
    assert!(store.record("none").unwrap().is_none());
    drop(store);
    let started = Instant::now();
    let store = open(&dir.path().join("store"));
    println!("warm open: {:?}", started.elapsed());
    assert!(store.record("none").unwrap().is_none());
    println!("with a first look into the database: {:?}", started.elapsed());
    assert_eq!(store.read_blob(&digest, 100).unwrap().unwrap(), b"hello");
    let mode = fs::metadata(store.root()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o700);
    let mode = fs::metadata(store.blob_path(&digest)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o400);
}

/// F15.
#[test]
fn a_store_of_a_newer_format_is_refused() {
    for version in [
        json!({"format": 2, "something": "else"}),
        json!({"format": 1, "incompatible": ["chunks"], "owner": 0, "idmap": "full", "xattr": "user"}),
    ] {
        let (dir, store) = new_store();
        drop(store);
        let path = dir.path().join("store");
        fs::write(path.join("version"), version.to_string()).unwrap();
        let error = Store::open(&path, &OPTIONS).unwrap_err();
        assert!(matches!(error, Error::Incompatible { .. }), "{error}");
    }
}

#[test]
fn a_store_keeps_its_way_of_representing_owners() {
    let (dir, store) = new_store();
    drop(store);
    let error = Store::open(dir.path().join("store"), &StoreOptions { ids: Ids::One }).unwrap_err();
    assert!(error.to_string().contains("a single owner"), "{error}");
}

#[test]
fn an_unclean_boot_drops_layers_that_were_never_synced() {
    let (dir, store) = new_store();
    let kept = layer(&store, &Snapshot::scratch(), |dir| fs::write(dir.join("a"), "a").unwrap());
    store.checkpoint(Duration::ZERO).unwrap();
    let lost = layer(&store, &Snapshot::scratch(), |dir| fs::write(dir.join("b"), "b").unwrap());
    let record = |key: &str, layer: &LayerId| NewRecord {
        key: key.to_owned(),
        canonical: key.to_owned(),
        outputs: vec![Snapshot::new(vec![layer.clone()]).to_string()],
        parts: json!({}),
        step: String::new(),
    };
    store.save_records(&[record("kept", &kept), record("lost", &lost)]).unwrap();
    drop(store);
    fs::write(dir.path().join("store/boot"), "another\n").unwrap();
    let store = open(&dir.path().join("store"));
    assert!(store.record("kept").unwrap().is_some());
    assert!(store.record("lost").unwrap().is_none());
    assert!(!store.layer_dir(&lost).exists());
}

// ----- blobs -----

#[test]
fn a_blob_appears_only_with_the_digest_that_was_expected() {
    let (_dir, store) = new_store();
    let good = Digest::sha256(b"content");
    let write = |bytes: &[u8], expected: (&Digest, u64)| {
        let mut writer = store.blob_writer().unwrap();
        writer.write_all(bytes).unwrap();
        writer.commit(Some(expected))
    };
    for (bytes, size) in [(&b"contend"[..], 7), (b"content", 6), (b"conten", 7), (b"", 7)] {
        assert!(matches!(write(bytes, (&good, size)).unwrap_err(), Error::Mismatch { .. }));
        assert!(!store.has_blob(&good, None));
    }
    assert_eq!(write(b"content", (&good, 7)).unwrap(), (good.clone(), 7));
    let sha512: Digest = "sha512:b2d1d285b5199c85f988d03649c37e44fd3dde01e5d69c50fef90651962f48110e9340b60d49a479c4c0b53f5f07d690686dd87d2481937a512e8b85ee7c617f"
        .parse()
        .unwrap();
    assert_eq!(write(b"content", (&sha512, 7)).unwrap().0, sha512);
    assert_eq!(fs::read_dir(store.path("ingest")).unwrap().count(), 0);
}

/// F08; also the empty file that a power cut leaves behind on ext4.
#[test]
fn a_damaged_blob_counts_as_absent_and_is_replaced() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 5] = [
        ("empty", |path| fs::write(path, "").unwrap()),
        ("short", |path| fs::write(path, "conte").unwrap()),
        ("flipped", |path| fs::write(path, "cOntent").unwrap()),
        ("symlink", |path| {
            fs::remove_file(path).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", path).unwrap();
        }),
        ("directory", |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
    ];
    for (name, damage) in damages {
        let (_dir, store) = new_store();
        let digest = store.put_blob(b"content").unwrap();
        let path = store.blob_path(&digest);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        damage(&path);
        assert_eq!(store.read_blob(&digest, 100).unwrap(), None, "{name}");
        assert_eq!(store.verify_blob(&digest), BlobState::Bad, "{name}");
        let problems = store.verify().unwrap();
        assert!(problems.iter().any(|problem| problem.repaired), "{name}: {problems:?}");
        assert_eq!(store.verify_blob(&digest), BlobState::Missing, "{name}");
        assert_eq!(store.put_blob(b"content").unwrap(), digest);
        assert_eq!(store.verify_blob(&digest), BlobState::Good, "{name}");
    }
}

#[test]
fn a_large_document_is_not_read() {
    let (_dir, store) = new_store();
    let digest = store.put_blob(&[7; 1000]).unwrap();
    assert!(matches!(store.read_blob(&digest, 999).unwrap_err(), Error::TooLarge { .. }));
}

// ----- layers -----

fn mknod(dir: &Path, name: &str) {
    let dir = Tree::open(dir).unwrap();
    Place::new(dir.fd(), OsStr::new(name), Ids::Full).whiteout().unwrap();
}

fn opaque(path: &Path) {
    rustix::fs::setxattr(path, "user.overlay.opaque", b"y", rustix::fs::XattrFlags::empty()).unwrap();
}

fn write_all(dir: &Path, files: &[&str]) {
    for file in files {
        let path = dir.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, file).unwrap();
    }
}

#[test]
fn opaque_directories_become_whiteouts_all_the_way_down() {
    let (_dir, store) = new_store();
    let lower = layer(&store, &Snapshot::scratch(), |dir| {
        write_all(dir, &["d/gone", "d/both", "d/sub/old", "d/sub/deep/x", "d/kind", "other/x"]);
    });
    let base = Snapshot::new(vec![lower]);
    let upper = layer(&store, &base, |dir| {
        write_all(dir, &["d/both", "d/new", "d/sub/fresh", "d/kind/now-a-directory"]);
        fs::write(dir.join("d/both"), "changed").unwrap();
        opaque(&dir.join("d"));
    });
    let tree = store.layer_tree(&upper).unwrap();
    assert_eq!(
        names(&tree),
        [
            "d directory",
            "d/both regular",
            "d/gone character",
            "d/kind directory",
            "d/kind/now-a-directory regular",
            "d/new regular",
            "d/sub directory",
            "d/sub/deep character",
            "d/sub/fresh regular",
            "d/sub/old character",
        ]
    );
    assert!(!tree.read_entry("d").unwrap().opaque);
}

#[test]
fn what_equals_the_base_is_not_part_of_a_layer() {
    let (_dir, store) = new_store();
    let old = Time { seconds: 1_000_000, nanoseconds: 5 };
    let files = ["same", "dir/same", "other-content", "other-time", "other-mode"];
    let fill = |dir: &Path| {
        write_all(dir, &files);
        let tree = Tree::open(dir).unwrap();
        std::os::unix::fs::symlink("same", dir.join("link")).unwrap();
        for name in files.iter().chain(&["link", "dir"]) {
            tree.set_times(name, old).unwrap();
        }
    };
    let base = Snapshot::new(vec![layer(&store, &Snapshot::scratch(), fill)]);
    let upper = layer(&store, &base, |dir| {
        fill(dir);
        let tree = Tree::open(dir).unwrap();
        fs::write(dir.join("other-content"), "Other-content").unwrap();
        tree.set_times("other-content", old).unwrap();
        tree.set_times("other-time", Time { seconds: 2, nanoseconds: 0 }).unwrap();
        tree.set_mode("other-mode", 0o600).unwrap();
        mknod(dir, "whiteout-of-nothing");
    });
    assert_eq!(
        names(&store.layer_tree(&upper).unwrap()),
        ["other-content regular", "other-mode regular", "other-time regular"]
    );
    assert_eq!(store.layer_info(&upper).unwrap().entries, 3);
    // One of two names of an inode stays, although it equals the base: else they would be two files.
    let linked = layer(&store, &base, |dir| {
        fill(dir);
        fs::hard_link(dir.join("same"), dir.join("second-name")).unwrap();
    });
    assert_eq!(names(&store.layer_tree(&linked).unwrap()), ["same regular", "second-name regular"]);
}

#[test]
fn a_dropped_active_layer_leaves_nothing() {
    let (_dir, store) = new_store();
    let active = store.active_layer(&Snapshot::scratch()).unwrap();
    write_all(&active.dir(), &["a/b/c"]);
    drop(active);
    assert_eq!(fs::read_dir(store.path("work")).unwrap().count(), 0);
}

#[test]
fn a_snapshot_is_read_back_from_its_text() {
    let two = Snapshot::new(vec![LayerId::random(), LayerId::random()]);
    for snapshot in [Snapshot::scratch(), two.clone()] {
        assert_eq!(snapshot.to_string().parse::<Snapshot>().unwrap(), snapshot);
    }
    for wrong in ["", "layers", "layers:x", "layers:../../etc", "layers:+"] {
        assert!(wrong.parse::<Snapshot>().is_err(), "{wrong}");
    }
    assert_eq!(Snapshot::merge([&two, &two]), two);
}

#[test]
fn a_difference_leads_from_one_tree_to_the_other() {
    let (_dir, store) = new_store();
    let scratch = Snapshot::scratch();
    let a = layer(&store, &scratch, |dir| write_all(dir, &["keep", "gone", "d/keep", "d/gone", "file", "x/y"]));
    let one = Snapshot::new(vec![a.clone()]);
    let b = layer(&store, &one, |dir| write_all(dir, &["new"]));
    assert_eq!(store.diff(&one, &one.with(b.clone())).unwrap(), Snapshot::new(vec![b]));
    let other = layer(&store, &scratch, |dir| {
        for name in ["keep", "d/keep"] {
            let to = dir.join(name);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::hard_link(store.layer_dir(&a).join(name), to).unwrap();
        }
        write_all(dir, &["d/new", "file/is-a-directory"]);
    });
    let difference = store.diff(&one, &Snapshot::new(vec![other])).unwrap();
    let [id] = difference.layers() else { panic!("{difference}") };
    assert_eq!(
        names(&store.layer_tree(id).unwrap()),
        [
            "d directory",
            "d/gone character",
            "d/new regular",
            "file directory",
            "file/is-a-directory regular",
            "gone character",
            "x character",
        ]
    );
}

/// Writes everything that a layer can hold.
fn fill_with_everything(tree: &Tree) {
    let dir = |name| tree.mkdir(name, 0o755).unwrap();
    let file =
        |name: &str, content: &str, mode| tree.create_file(name, mode).unwrap().write_all(content.as_bytes()).unwrap();
    dir("bin");
    file("bin/su", "su", 0o755);
    tree.set_owner("bin/su", 0, 7).unwrap();
    tree.set_mode("bin/su", 0o6755).unwrap();
    file("bin/ping", "ping", 0o755);
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    tree.set_xattr("bin/ping", "security.capability", &capability).unwrap();
    file("attributes", "x", 0o640);
    file("first-name", "linked", 0o600);
    tree.hard_link("first-name", "second-name").unwrap();
    tree.symlink("first-name", "link").unwrap();
    tree.mknod("pipe", Kind::Fifo, 0o600, Device::default()).unwrap();
    dir("sticky");
    tree.set_mode("sticky", 0o1777).unwrap();
    dir("closed");
    file("closed/inside", "inside", 0o000);
    tree.set_mode("closed", 0o000).unwrap();
    for (index, name) in
        ["bin/su", "bin/ping", "attributes", "first-name", "link", "pipe", "sticky", "closed/inside", "closed", "bin"]
            .iter()
            .enumerate()
    {
        tree.set_times(name, Time { seconds: 1_600_000_000 + index as i64, nanoseconds: 0 }).unwrap();
    }
}

fn round_trip(store: &Store) {
    let lower = {
        let active = store.active_layer(&Snapshot::scratch()).unwrap();
        let mounted = store.mount(&Snapshot::scratch(), Some(&active)).unwrap();
        for name in ["etc", "etc/sub", "var"] {
            mounted.tree().mkdir(name, 0o755).unwrap();
        }
        for name in ["etc/a", "etc/sub/b", "var/c"] {
            mounted.tree().create_file(name, 0o644).unwrap().write_all(name.as_bytes()).unwrap();
        }
        drop(mounted);
        store.commit(active, &CommitInfo::default()).unwrap()
    };
    let base = Snapshot::new(vec![lower]);
    let active = store.active_layer(&base).unwrap();
    let mounted = store.mount(&base, Some(&active)).unwrap();
    let tree = mounted.tree();
    fill_with_everything(tree);
    tree.remove_all("var").unwrap();
    tree.remove_all("etc").unwrap();
    tree.mkdir("etc", 0o700).unwrap();
    tree.create_file("etc/new", 0o644).unwrap();
    let expected = listing(tree);
    drop(mounted);
    let layer = store.commit(active, &CommitInfo::default()).unwrap();
    let top = base.with(layer.clone());
    assert_eq!(listing(store.mount(&top, None).unwrap().tree()), expected);
    for compression in [Compression::GZIP, Compression::ZSTD, Compression::Uncompressed] {
        let blob = store.layer_blob(&layer, compression, None).unwrap();
        assert_eq!(store.layer_blob(&layer, compression, None).unwrap(), blob);
        assert_eq!(store.layer_for_diff_id(&blob.diff_id, &base).unwrap(), Some(layer.clone()));
        let elsewhere = tempfile::tempdir().unwrap();
        let other = open(&elsewhere.path().join("store"));
        let (bytes, _) = store.open_blob(&blob.descriptor.digest, None).unwrap().unwrap();
        let base_blob = store.layer_blob(&base.layers()[0], compression, None).unwrap();
        let (base_bytes, _) = store.open_blob(&base_blob.descriptor.digest, None).unwrap().unwrap();
        let scratch = Snapshot::scratch();
        let other_base = other.apply_blob(&base_blob.descriptor, &base_blob.diff_id, &scratch, base_bytes).unwrap();
        let other_base = Snapshot::new(vec![other_base]);
        let applied = other.apply_blob(&blob.descriptor, &blob.diff_id, &other_base, bytes).unwrap();
        let seen = listing(other.mount(&other_base.with(applied.clone()), None).unwrap().tree());
        // Archives keep whole seconds.
        assert_eq!(seen, expected);
        // What was imported is exported as it came, whatever is asked for.
        assert_eq!(
            other.layer_blob(&applied, Compression::ZSTD, Some(0)).unwrap().descriptor.digest,
            blob.descriptor.digest
        );
        let again = other.apply_stored_blob(&blob.descriptor, &blob.diff_id, &other_base).unwrap();
        assert_eq!(again, applied);
    }
}

/// setuid, attributes, hard links, file capabilities, opaque directories and whiteouts survive every form.
#[test]
fn privileged_a_layer_comes_back_the_same_from_its_blob() {
    if !is_privileged("a_layer_comes_back_the_same_from_its_blob") {
        return;
    }
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let (_dir, store) = new_store();
    round_trip(&store);
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
}

#[test]
fn privileged_snapshots_mount_inside_a_user_namespace() {
    const NAME: &str = "privileged_snapshots_mount_inside_a_user_namespace";
    if let Some((_, path)) = argument() {
        let store = Store::open(path, &StoreOptions { ids: Ids::One }).unwrap();
        let layer = {
            let active = store.active_layer(&Snapshot::scratch()).unwrap();
            let mounted = store.mount(&Snapshot::scratch(), Some(&active)).unwrap();
            mounted.tree().create_file("file", 0o644).unwrap().write_all(b"x").unwrap();
            mounted.tree().mkdir("d", 0o755).unwrap();
            mounted.tree().create_file("d/gone", 0o644).unwrap();
            drop(mounted);
            store.commit(active, &CommitInfo::default()).unwrap()
        };
        let base = Snapshot::new(vec![layer]);
        let active = store.active_layer(&base).unwrap();
        let mounted = store.mount(&base, Some(&active)).unwrap();
        mounted.tree().remove_all("d").unwrap();
        mounted.tree().mkdir("d", 0o755).unwrap();
        mounted.tree().create_file("d/new", 0o644).unwrap();
        drop(mounted);
        let upper = store.commit(active, &CommitInfo::default()).unwrap();
        assert_eq!(
            names(store.mount(&base.with(upper), None).unwrap().tree()),
            ["d directory", "d/new regular", "file regular"]
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Ok(output) = child(NAME, &["unshare", "-Urm"], &dir.path().join("store"), "run").output() else {
        println!("skipped: {NAME} needs `unshare`");
        return;
    };
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.starts_with("unshare:") {
        println!("skipped: {NAME}: {stderr}");
        return;
    }
    assert!(output.status.success(), "{stderr}{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn privileged_more_layers_than_the_kernel_takes_are_folded() {
    if !is_privileged("more_layers_than_the_kernel_takes_are_folded") {
        return;
    }
    let (_dir, store) = new_store();
    let mut snapshot = Snapshot::scratch();
    for index in 0..520 {
        let id = layer(&store, &snapshot, |dir| {
            write_all(dir, &[&format!("d/{index}")]);
            match index {
                // A directory that is removed and made again: what was in it stays hidden through the fold.
                100 => write_all(dir, &["e/hidden"]),
                240 => mknod(dir, "e"),
                245 => write_all(dir, &["e/seen"]),
                400 => mknod(&dir.join("d"), "7"),
                _ => {}
            }
        });
        snapshot = snapshot.with(id);
    }
    assert!(store.layer_dirs(&snapshot).unwrap().len() < 500);
    let mounted = store.mount(&snapshot, None).unwrap();
    let seen = names(mounted.tree());
    assert_eq!(seen.iter().filter(|name| name.starts_with("d/")).count(), 519);
    assert!(seen.contains(&"e/seen regular".to_owned()) && !seen.contains(&"e/hidden regular".to_owned()));
    assert_eq!(store.layer_dirs(&snapshot).unwrap(), store.layer_dirs(&snapshot).unwrap());
}

#[test]
fn a_blob_with_the_wrong_bytes_becomes_no_layer() {
    let (_dir, store) = new_store();
    let id = layer(&store, &Snapshot::scratch(), |dir| write_all(dir, &["a", "b"]));
    let blob = store.layer_blob(&id, Compression::GZIP, None).unwrap();
    let bytes = fs::read(store.blob_path(&blob.descriptor.digest)).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let other = open(&elsewhere.path().join("store"));
    let scratch = Snapshot::scratch();
    let mut flipped = bytes.clone();
    flipped[40] ^= 1;
    let mut long = bytes.clone();
    long.push(0);
    for wrong in [&flipped[..], &long, &bytes[..bytes.len() - 1], b""] {
        let error = other.apply_blob(&blob.descriptor, &blob.diff_id, &scratch, wrong).unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }), "{error:?}");
    }
    let other_diff_id = Digest::sha256(b"other").into();
    let error = other.apply_blob(&blob.descriptor, &other_diff_id, &scratch, &bytes[..]).unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error:?}");
    assert_eq!(fs::read_dir(other.path("layers")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(other.path("work")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(other.path("ingest")).unwrap().count(), 0);
    other.apply_blob(&blob.descriptor, &blob.diff_id, &scratch, &bytes[..]).unwrap();
    assert_eq!(other.verify().unwrap(), []);
}

// ----- state -----

fn image(store: &Store) -> (Descriptor, LayerId) {
    let id = layer(store, &Snapshot::scratch(), |dir| {
        write_all(dir, &["file"]);
        Tree::open(dir).unwrap().set_times("file", Time { seconds: 1, nanoseconds: 0 }).unwrap();
    });
    let blob = store.layer_blob(&id, Compression::GZIP, None).unwrap();
    let config = store.put_blob(b"{}").unwrap();
    let manifest = Manifest::new(Descriptor::new(media_type::OCI_CONFIG, config, 2), vec![blob.descriptor]);
    let bytes = serde_json::to_vec(&manifest).unwrap();
    let digest = store.put_blob(&bytes).unwrap();
    (Descriptor::new(media_type::OCI_MANIFEST, digest, bytes.len() as u64), id)
}

#[test]
fn records_are_found_touched_and_explained() {
    let (dir, store) = new_store();
    let record = |key: &str| NewRecord {
        key: key.to_owned(),
        canonical: "c".to_owned(),
        outputs: vec![Snapshot::scratch().to_string(), "something else".to_owned()],
        parts: json!([["op", "sha256:…"]]),
        step: "project/stage/3".to_owned(),
    };
    store.save_records(&[record("fast"), record("slow")]).unwrap();
    store.touch_record("fast");
    drop(store);
    let store = open(&dir.path().join("store"));
    let found = store.record("fast").unwrap().unwrap();
    assert_eq!((found.hits, found.parts, found.outputs.len()), (1, json!([["op", "sha256:…"]]), 2));
    assert_eq!(store.record("other").unwrap(), None);
    assert_eq!(store.records_of_step("project/stage/3", 10).unwrap().len(), 2);
    assert_eq!(store.records_of_canonical("c").unwrap().len(), 2);
}

#[test]
fn a_corrupt_database_is_set_aside_and_names_survive() {
    for damage in ["not a database at all, but long enough to be read as a header of one", ""] {
        let (dir, store) = new_store();
        let (descriptor, _) = image(&store);
        let reference = "example.com/app:1".parse().unwrap();
        store.set_name(&reference, &descriptor, &[]).unwrap();
        let index: serde_json::Value =
            serde_json::from_slice(&fs::read(store.root().join("content/index.json")).unwrap()).unwrap();
        assert_eq!(index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], "1");
        drop(store);
        let path = dir.path().join("store");
        for suffix in ["-wal", "-shm"] {
            let _ = fs::remove_file(path.join(format!("state.db{suffix}")));
        }
        fs::write(path.join("state.db"), damage).unwrap();
        let store = open(&path);
        let name = store.name(&reference).unwrap().expect(damage);
        assert_eq!(name.descriptor, descriptor);
        assert_eq!(store.record("any").unwrap(), None);
    }
}

#[test]
fn history_is_oldest_first() {
    let (_dir, store) = new_store();
    for (id, started_ms) in [("b", 2), ("c", 3), ("a", 1)] {
        let build =
            crate::Build { id: id.into(), started_ms, ended_ms: None, status: "running".into(), document: json!({}) };
        store.save_build(&build).unwrap();
        store.save_build(&crate::Build { status: "success".into(), ended_ms: Some(9), ..build }).unwrap();
    }
    let builds = store.builds(2).unwrap();
    assert_eq!(builds.iter().map(|build| &*build.id).collect::<Vec<_>>(), ["b", "c"]);
    assert_eq!(builds[0].status, "success");
}

// ----- claims, leases, pruning -----

/// F05, F06.
#[test]
fn a_claim_has_one_holder_and_dies_with_its_process() {
    const NAME: &str = "a_claim_has_one_holder_and_dies_with_its_process";
    if let Some((_, path)) = argument() {
        let store = open(&path);
        let _claim = store.claim("key").unwrap();
        println!("claimed");
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let (_dir, store) = new_store();
    let mut holder = child(NAME, &[], store.root(), "hold").spawn().unwrap();
    let mut stdout = io::BufReader::new(holder.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("claimed") {
        line.clear();
        assert!(io::BufRead::read_line(&mut stdout, &mut line).unwrap() > 0, "the child ended");
    }
    assert!(store.try_claim("key").unwrap().is_none());
    assert_eq!(store.claim_owner("key"), Some(holder.id()));
    let error = store.claim_unless("key", Some(Duration::from_millis(20)), || false).unwrap_err();
    assert!(error.to_string().contains(&format!("by process {}", holder.id())), "{error}");
    assert!(matches!(store.claim_unless("key", None, || true).unwrap_err(), Error::Cancelled { .. }));
    assert!(store.try_claim("another key").unwrap().is_some());
    holder.kill().unwrap();
    holder.wait().unwrap();
    drop(store.claim("key").unwrap());
    let turns = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let _claim = store.claim("busy").unwrap();
                    assert_eq!(turns.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                    turns.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                }
            });
        }
    });
}

/// F07.
#[test]
fn prune_keeps_what_names_records_and_leases_lead_to() {
    let (_dir, store) = new_store();
    let (descriptor, layer_of_image) = image(&store);
    let reference = "example.com/app:1".parse().unwrap();
    store.set_name(&reference, &descriptor, &[]).unwrap();
    let write = |name: &'static str| layer(&store, &Snapshot::scratch(), |dir| write_all(dir, &[name]));
    let (recorded, leased, loose) = (write("recorded"), write("leased"), write("loose"));
    let snapshot = |id: &LayerId| Snapshot::new(vec![id.clone()]);
    let record = NewRecord {
        key: "k".into(),
        canonical: "k".into(),
        outputs: vec![snapshot(&recorded).to_string()],
        parts: json!({}),
        step: String::new(),
    };
    store.save_records(std::slice::from_ref(&record)).unwrap();
    let blob = store.put_blob(b"loose").unwrap();
    let other = open(store.root());
    let lease = other.lease().unwrap();
    assert!(lease.hold(&snapshot(&leased)).unwrap());
    let made_under_lease = layer(&other, &Snapshot::scratch(), |dir| write_all(dir, &["fresh"]));
    let pruned = store.prune(false).unwrap();
    assert_eq!((pruned.layers, pruned.blobs, pruned.records), (1, 1, 0));
    assert!(store.exists(&snapshot(&recorded)) && store.exists(&snapshot(&leased)));
    assert!(store.exists(&snapshot(&layer_of_image)) && store.exists(&snapshot(&made_under_lease)));
    assert!(!store.exists(&snapshot(&loose)) && !store.has_blob(&blob, None));
    assert!(!lease.hold(&snapshot(&loose)).unwrap());
    let pruned = store.prune(true).unwrap();
    assert_eq!((pruned.layers, pruned.blobs, pruned.records), (2, 0, 1));
    assert!(store.exists(&snapshot(&leased)));
    drop(lease);
    assert_eq!(store.prune(true).unwrap().layers, 2);
    assert_eq!(store.verify().unwrap(), []);
    assert!(store.remove_name(&reference).unwrap());
    assert_eq!(store.prune(false).unwrap().blobs, 3);
    assert_eq!(store.usage().unwrap(), crate::Usage::default());
}

#[test]
fn leases_of_the_dead_hold_nothing() {
    const NAME: &str = "leases_of_the_dead_hold_nothing";
    if let Some((_, path)) = argument() {
        let store = open(&path);
        let lease = store.lease().unwrap();
        let id = layer(&store, &Snapshot::scratch(), |dir| write_all(dir, &["x"]));
        assert!(lease.hold(&Snapshot::new(vec![id])).unwrap());
        let _active: ActiveLayer = store.active_layer(&Snapshot::scratch()).unwrap();
        let _writer = store.blob_writer().unwrap();
        arm(1, Action::Kill);
        let _ = store.put_blob(b"never");
        return;
    }
    let (_dir, store) = new_store();
    assert!(!child(NAME, &[], store.root(), "die").output().unwrap().status.success());
    assert_eq!(fs::read_dir(store.path("work")).unwrap().count(), 1);
    store.sweep().unwrap();
    assert_eq!(fs::read_dir(store.path("work")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(store.path("ingest")).unwrap().count(), 0);
    assert_eq!(store.prune(false).unwrap().layers, 1);
}

// ----- failures -----

/// A little of everything that writes; returns a digest that must always be the same.
fn scenario(store: &Store) -> Result<Digest, Error> {
    let lease = store.lease()?;
    let active = store.active_layer(&Snapshot::scratch())?;
    write_all(&active.dir(), &["a/b", "c"]);
    for name in ["a/b", "c", "a"] {
        active.tree()?.set_times(name, Time { seconds: 1, nanoseconds: 0 }).unwrap();
    }
    let base = Snapshot::new(vec![store.commit(active, &CommitInfo::default())?]);
    let active = store.active_layer(&base)?;
    mknod(&active.dir(), "c");
    let upper = base.with(store.commit(active, &CommitInfo::default())?);
    assert!(lease.hold(&upper)?);
    store.save_records(&[NewRecord {
        key: "k".into(),
        canonical: "k".into(),
        outputs: vec![upper.to_string()],
        parts: json!({}),
        step: "s".into(),
    }])?;
    let layers = upper.layers().iter();
    let layers = layers.map(|id| Ok(store.layer_blob(id, Compression::GZIP, None)?.descriptor));
    let fetched = b"a blob from far away".repeat(1000);
    let blob = Descriptor::new("x", Digest::sha256(&fetched), fetched.len() as u64);
    if let Some(mut partial) = store.partial_blob(&blob)? {
        // What an earlier attempt left is a part of it, whenever that was stopped.
        let rest = &fetched[usize::try_from(partial.offset()).unwrap()..];
        for piece in rest.chunks(7000) {
            partial.write(piece)?;
        }
        partial.commit()?;
    }
    let name = "example.com/base:1".parse().unwrap();
    store.set_resolved(&name, &blob)?;
    store.add_origins("example.com/base", [&blob.digest])?;
    let config = Descriptor::new(media_type::OCI_CONFIG, store.put_blob(b"{}")?, 2);
    let bytes = serde_json::to_vec(&Manifest::new(config, layers.collect::<Result<_, Error>>()?)).unwrap();
    let digest = store.put_blob(&bytes)?;
    let descriptor = Descriptor::new(media_type::OCI_MANIFEST, digest.clone(), bytes.len() as u64);
    store.set_name(&"example.com/app:1".parse().unwrap(), &descriptor, &[])?;
    store.checkpoint(Duration::ZERO)?;
    drop(lease);
    store.prune(false)?;
    Ok(digest)
}

/// What must hold of a store whatever happened to it.
fn check_after_failure(path: &Path, what: &str, expected: Option<&Digest>) -> Digest {
    let store = open(path);
    for place in ["ingest", "work"] {
        let names = crate::layout::entries(&store.path(place)).unwrap();
        // Parts of what is fetched are kept on purpose.
        let left: Vec<_> = names.iter().filter(|name| !name.starts_with("sha256-")).collect();
        assert!(left.is_empty(), "{what}: {place}: {left:?}");
    }
    assert_eq!(store.verify().unwrap(), [], "{what}");
    let digest = scenario(&store).unwrap();
    assert!(expected.is_none_or(|expected| *expected == digest), "{what}");
    assert_eq!(store.verify().unwrap(), [], "{what}");
    store.prune(true).unwrap();
    assert!(store.has_blob(&digest, None));
    digest
}

/// F01: kill -9 at every operation of the store.
#[test]
fn a_store_survives_being_killed_at_every_write() {
    const NAME: &str = "a_store_survives_being_killed_at_every_write";
    if let Some((at, path)) = argument() {
        arm(at.parse().unwrap(), Action::Kill);
        scenario(&open(&path)).unwrap();
        return;
    }
    let mut expected = None;
    let mut kills = 0;
    for at in 1.. {
        let dir = memory_dir();
        let path = dir.path().join("store");
        let output = child(NAME, &[], &path, &at.to_string()).output().unwrap();
        let digest = check_after_failure(&path, &format!("killed at {at}"), expected.as_ref());
        expected = Some(digest);
        if output.status.success() {
            break;
        }
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
        assert_eq!(signal, Some(9), "{at}: {}", String::from_utf8_lossy(&output.stderr));
        kills += 1;
    }
    println!("killed {kills} times");
    assert!(kills > 60, "{kills}");
}

/// F02: an error at every operation of the store.
#[test]
fn a_store_survives_an_error_at_every_write() {
    for errno in [Errno::NOSPC, Errno::IO] {
        for at in 1.. {
            let dir = memory_dir();
            let path = dir.path().join("store");
            arm(at, Action::Fail(errno.raw_os_error()));
            let result = Store::open(&path, &OPTIONS).and_then(|store| scenario(&store));
            let passed = disarm();
            match result {
                Err(error) => {
                    assert_eq!(error.is_no_space(), errno == Errno::NOSPC, "{at}: {error:?}");
                }
                // What is cleaned up at the end may fail in silence: the next start does it.
                Ok(_) if passed >= at => {}
                Ok(_) => break,
            }
            check_after_failure(&path, &format!("{errno:?} at {at}"), None);
        }
    }
}

/// F03.
#[test]
fn privileged_a_full_disk_is_said_so_and_prune_still_works() {
    const NAME: &str = "privileged_a_full_disk_is_said_so_and_prune_still_works";
    if let Some((_, path)) = argument() {
        fs::create_dir(&path).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=6m,mode=700", "tmpfs"]).arg(&path).status();
        assert!(mounted.unwrap().success());
        let path = path.join("store");
        let digest = scenario(&open(&path)).unwrap();
        let store = open(&path);
        let mut failures = 0;
        for size in (1..40).map(|step| step * 150_000) {
            let failed = (|| {
                let active = store.active_layer(&Snapshot::scratch())?;
                let noise: Vec<u8> =
                    (0..size).map(|i: u64| (i.wrapping_mul(i) >> 7) as u8 ^ (size >> 3) as u8).collect();
                if fs::write(active.dir().join("noise"), noise).is_err() {
                    drop(active);
                    return store.prune(false).map(drop);
                }
                let id = store.commit(active, &CommitInfo::default())?;
                store.layer_blob(&id, Compression::Uncompressed, None).map(drop)
            })();
            if let Err(error) = failed {
                assert!(Error::is_no_space(&error), "{error:?}");
                failures += 1;
                store.prune(false).unwrap();
            }
        }
        assert!(failures > 0);
        let loose = store.put_blob(&[1; 5000]).unwrap();
        let mut filler = fs::File::create(path.join("filler")).unwrap();
        while filler.write(&[1; 4096]).is_ok() {}
        drop(filler);
        assert!(store.put_blob(b"more").unwrap_err().is_no_space());
        drop(store);
        let store = open(&path);
        store.prune(false).unwrap();
        assert!(!store.has_blob(&loose, None));
        fs::remove_file(path.join("filler")).unwrap();
        assert_eq!(store.verify_blob(&digest), BlobState::Good);
        store.prune(false).unwrap();
        assert_eq!(store.verify().unwrap(), []);
        scenario(&store).unwrap();
        return;
    }
    if !is_privileged(NAME) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let output = child(NAME, &["unshare", "-m"], &dir.path().join("disk"), "run").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stdout));
}

/// A blob that came from elsewhere is compressed anew once, as long as it is used.
#[test]
fn f2_008_a_blob_is_compressed_anew_and_remembered() {
    let (_dir, store) = new_store();
    let id = layer(&store, &Snapshot::scratch(), |dir| fs::write(dir.join("f"), vec![7; 100_000]).unwrap());
    let from = store.layer_blob(&id, Compression::Uncompressed, None).unwrap();
    let rows = || -> i64 {
        store
            .database(|db| db.query_row("SELECT count(*) FROM forms WHERE layer LIKE 'sha256:%'", [], |row| row.get(0)))
            .unwrap()
    };
    let lease = store.lease().unwrap();
    lease.hold_blob(&from.descriptor.digest).unwrap();
    let estargz = Compression::Estargz { level: 1 };
    for compression in [Compression::GZIP, Compression::ZSTD, estargz, Compression::ZstdChunked { level: 1 }] {
        assert!(!is_compressed(&from.descriptor, compression));
        let blob = store.recompressed_blob(&from.descriptor, &from.diff_id, compression).unwrap();
        assert!(is_compressed(&blob.descriptor, compression), "{:?}", blob.descriptor);
        assert_eq!(blob.diff_id != from.diff_id, compression == estargz);
        assert_eq!(store.layer_blob(&id, compression, None).unwrap(), blob);
        // From the form that it has now, too, and without reading the first one again.
        let path = store.blob_path(&from.descriptor.digest);
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(store.recompressed_blob(&from.descriptor, &from.diff_id, compression).unwrap(), blob);
        fs::write(&path, bytes).unwrap();
    }
    let wrong = Digest::sha256(b"other").into();
    let error = store.recompressed_blob(&from.descriptor, &wrong, Compression::Zstd { level: 9 }).unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error:?}");
    let unknown = Descriptor::new(media_type::OCI_LAYER, Digest::sha256(b"none"), 5);
    let error = store.recompressed_blob(&unknown, &from.diff_id, Compression::GZIP).unwrap_err();
    assert!(matches!(error, Error::UnknownBlob(_)), "{error:?}");
    assert_eq!(rows(), 4);
    drop(lease);
    store.prune(true).unwrap();
    assert_eq!(rows(), 0);
}

/// F05, F07: several processes build on one store while another prunes.
#[test]
fn processes_share_a_store_while_it_is_pruned() {
    const NAME: &str = "processes_share_a_store_while_it_is_pruned";
    if let Some((_, path)) = argument() {
        for _ in 0..6 {
            let store = open(&path);
            let digest = scenario(&store).unwrap();
            println!("digest {digest}");
        }
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    // The store itself is made by whoever comes first.
    let mut children: Vec<_> = (0..4).map(|_| child(NAME, &[], &path, "run").spawn().unwrap()).collect();
    let store = open(&path);
    while children.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
        store.prune(true).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut digests = std::collections::BTreeSet::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        digests.extend(text.lines().filter_map(|line| line.split_once("digest ")).map(|(_, digest)| digest.to_owned()));
    }
    assert_eq!(digests.len(), 1);
    assert_eq!(store.verify().unwrap(), []);
}

#[test]
fn a_file_name_of_any_bytes_survives() {
    let (_dir, store) = new_store();
    let name = OsStr::from_bytes(b"\xff\xfe new\nline");
    let id = layer(&store, &Snapshot::scratch(), |dir| fs::write(dir.join(name), "x").unwrap());
    let tree = store.layer_tree(&id).unwrap();
    assert!(Place::new(tree.fd().as_fd(), name, Ids::Full).metadata().unwrap().is_file());
}
