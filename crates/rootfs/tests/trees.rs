//! Trees on a real file system: what leaves them, what is never opened, what survives.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use build_engine_rootfs::{Attributes, Device, Error, Ids, Kind, Time, Tree};

fn new_tree() -> (tempfile::TempDir, Tree) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("root")).unwrap();
    let tree = Tree::open(dir.path().join("root")).unwrap();
    (dir, tree)
}

fn write(tree: &Tree, path: &str, content: &str) {
    tree.create_file(path, 0o644).unwrap().write_all(content.as_bytes()).unwrap();
}

/// D11, D14, L02: links to the host lead into the tree.
#[test]
fn no_path_and_no_link_leaves_the_tree() {
    let (dir, tree) = new_tree();
    fs::write(dir.path().join("canary"), "host").unwrap();
    symlink("../canary", dir.path().join("root/up")).unwrap();
    symlink(dir.path(), dir.path().join("root/absolute")).unwrap();
    symlink("/proc/self/root", dir.path().join("root/magic")).unwrap();
    for path in ["up", "../canary", "/../../canary", "absolute/canary", "magic/etc/passwd", "a/../../canary"] {
        assert!(tree.open_file(path).unwrap_err().is_not_found(), "{path}");
        assert!(tree.find(path, true).unwrap().is_none(), "{path}");
    }
    tree.mkdir_all("absolute/made", 0o755).unwrap();
    assert!(!dir.path().join("made").exists());
    tree.remove_all("absolute").unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("canary")).unwrap(), "host");
}

#[test]
fn only_regular_files_are_opened() {
    let (_dir, tree) = new_tree();
    tree.mknod("pipe", Kind::Fifo, 0o644, Device::default()).unwrap();
    tree.mkdir("dir", 0o755).unwrap();
    tree.symlink("pipe", "link").unwrap();
    for (path, found) in [("pipe", Kind::Fifo), ("link", Kind::Fifo), ("dir", Kind::Directory)] {
        match tree.open_file(path).unwrap_err() {
            Error::WrongKind { found: kind, .. } => assert_eq!(kind, found),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_path_is_resolved_to_one_without_links() {
    let (_dir, tree) = new_tree();
    tree.mkdir_all("a/b", 0o755).unwrap();
    tree.symlink("/a", "abs").unwrap();
    tree.symlink("../a/./b/..", "a/rel").unwrap();
    tree.symlink("loop", "loop").unwrap();
    for (path, follow, canonical) in [
        ("", true, ""),
        ("abs", false, "abs"),
        ("abs", true, "a"),
        ("abs/b/x/y", true, "a/b/x/y"),
        ("a/rel/b", true, "a/b"),
        ("a/rel/../z", false, "a/z"),
        ("/../abs/rel/b", false, "a/b"),
    ] {
        assert_eq!(tree.canonical(path, follow).unwrap(), PathBuf::from(canonical), "{path}");
    }
    assert!(matches!(tree.canonical("loop/x", true), Err(Error::TooManyLinks { .. })));
}

#[test]
fn a_walk_is_sorted_and_follows_no_link() {
    let (_dir, tree) = new_tree();
    for path in ["b/x", "a.d/y", "a/z"] {
        tree.mkdir_all(Path::new(path).parent().unwrap(), 0o755).unwrap();
        write(&tree, path, path);
    }
    tree.symlink("/b", "c").unwrap();
    let paths: Vec<String> =
        tree.walk("").unwrap().map(|step| step.unwrap().path.to_str().unwrap().to_owned()).collect();
    assert_eq!(paths, ["a", "a/z", "a.d", "a.d/y", "b", "b/x", "c"]);
    let mut walk = tree.walk("/").unwrap();
    let mut seen = Vec::new();
    while let Some(step) = walk.step().unwrap() {
        if step.path == Path::new("a") {
            walk.skip_dir();
        }
        seen.push(step.path.to_str().unwrap().to_owned());
    }
    assert_eq!(seen, ["a", "a.d", "a.d/y", "b", "b/x", "c"]);
}

fn nest(tree: &Tree, depth: usize) {
    let mut dir = tree.try_clone().unwrap();
    for level in 0..depth {
        dir.mkdir("d", 0o755).unwrap();
        if level % 1000 == 0 {
            write(&dir, "file", "x");
        }
        dir = dir.subtree("d").unwrap();
    }
}

#[test]
fn twenty_thousand_levels_are_walked_and_removed() {
    let (_dir, tree) = new_tree();
    tree.mkdir("deep", 0o755).unwrap();
    nest(&tree.subtree("deep").unwrap(), 20_000);
    write(&tree, "zz", "after");
    tree.remove_all("deep").unwrap();
    assert_eq!(tree.read_dir("").unwrap(), ["zz"]);
    nest(&tree, 1500);
    let mut deepest = 0;
    let mut last = PathBuf::new();
    for step in tree.walk("").unwrap() {
        last = step.unwrap().path;
        deepest = deepest.max(last.iter().count());
    }
    assert_eq!(deepest, 1500);
    assert_eq!(last, Path::new("zz"));
    tree.remove_all("").unwrap();
    assert!(tree.read_dir("").unwrap().is_empty());
}

#[test]
fn directories_without_permissions_are_removed() {
    let (dir, tree) = new_tree();
    tree.mkdir_all("x/closed/inner", 0o755).unwrap();
    write(&tree, "x/closed/file", "");
    fs::set_permissions(dir.path().join("root/x/closed/inner"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(dir.path().join("root/x/closed"), fs::Permissions::from_mode(0o000)).unwrap();
    tree.remove_all("x").unwrap();
    tree.remove_all("x").unwrap();
    assert!(tree.read_dir("").unwrap().is_empty());
}

/// One-uid mode: nothing but overrides says who owns what, and reading gives it back.
#[test]
fn foreign_owners_and_setuid_are_kept_with_one_uid() {
    let (dir, tree) = new_tree();
    let tree = tree.with_ids(Ids::One);
    write(&tree, "file", "");
    tree.mkdir("dir", 0o755).unwrap();
    tree.symlink("x", "link\nname").unwrap();
    tree.mknod("pipe", Kind::Fifo, 0o644, Device::default()).unwrap();
    for (path, mode) in [("file", 0o4755), ("dir", 0o2750), ("link\nname", 0o777), ("pipe", 0o600)] {
        tree.set_owner(path, 1000, 2000).unwrap();
        tree.set_mode(path, mode).unwrap();
        let metadata = tree.read_entry(path).unwrap().metadata;
        assert_eq!((metadata.uid, metadata.gid, metadata.mode), (1000, 2000, mode), "{path}");
    }
    let on_disk = fs::symlink_metadata(dir.path().join("root/file")).unwrap().permissions().mode();
    assert_eq!(on_disk & 0o7777, 0o755);
    assert!(tree.read_entry("file").unwrap().xattrs.is_empty());
    tree.set_owner("file", 0, 0).unwrap();
    tree.set_owner("link\nname", 0, 0).unwrap();
    assert_eq!(tree.read_entry("link\nname").unwrap().metadata.uid, 0);
    assert_eq!(tree.read_entry("file").unwrap().metadata.mode, 0o4755);
    assert!(tree.xattrs("file").unwrap().is_empty());
}

/// ext4 holds 4 KiB of attributes: a table of thousands of links must still fit.
#[test]
fn thousands_of_links_of_another_owner_fit_into_the_table() {
    let (_dir, tree) = new_tree();
    let tree = tree.with_ids(Ids::One);
    for index in 0..2000 {
        let name = format!("a-link-with-a-long-name-{index}");
        tree.symlink("x", &name).unwrap();
        tree.set_owner(&name, if index % 500 == 7 { 5 } else { 1000 }, 1000).unwrap();
    }
    for index in 0..2000 {
        let owner = tree.read_entry(format!("a-link-with-a-long-name-{index}")).unwrap().metadata.uid;
        assert_eq!(owner, if index % 500 == 7 { 5 } else { 1000 }, "{index}");
    }
    tree.symlink("x", "mine").unwrap();
    tree.set_owner("mine", 0, 0).unwrap();
    assert_eq!(tree.read_entry("mine").unwrap().metadata.uid, 0);
}

#[test]
fn times_and_modes_are_those_of_the_link_itself() {
    let (_dir, tree) = new_tree();
    write(&tree, "file", "");
    tree.symlink("file", "link").unwrap();
    let time = Time { seconds: -5, nanoseconds: 7 };
    tree.set_times("link", time).unwrap();
    assert_eq!(tree.metadata("link", false).unwrap().mtime, time);
    assert_ne!(tree.metadata("file", false).unwrap().mtime, time);
    tree.set_mode("link", 0).unwrap();
    assert_eq!(tree.metadata("link", true).unwrap().mode, 0o644);
}

/// L06, L07. Needs root: device nodes and foreign owners.
#[test]
fn privileged_devices_owners_and_capabilities_are_kept() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root to make device nodes");
        return;
    }
    let (_dir, tree) = new_tree();
    tree.mknod("null", Kind::CharDevice, 0o666, Device { major: 1, minor: 3 }).unwrap();
    let null = tree.read_entry("null").unwrap().metadata;
    assert_eq!((null.kind, null.mode, null.device), (Kind::CharDevice, 0o666, Device { major: 1, minor: 3 }));
    write(&tree, "file", "");
    let place = tree.place("file").unwrap();
    let attributes =
        Attributes { kind: Kind::File, mode: 0o6711, uid: 12, gid: 4_000_000_000, device: Device::default() };
    place.as_place().set_attributes(&attributes).unwrap();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert!(place.as_place().set_image_xattr("security.capability".as_ref(), &capability).unwrap());
    let entry = tree.read_entry("file").unwrap();
    assert_eq!(Attributes::from(&entry.metadata), attributes);
    assert_eq!(entry.xattrs.values().collect::<Vec<_>>(), [&capability.to_vec()]);
    assert!(place.as_place().set_image_xattr("user.overlay.opaque".as_ref(), b"y").is_err());
}

/// A step that changes the mode of a file whose owner is an override, or of a placeholder, must not be overruled.
#[test]
fn a_mode_that_a_step_changes_counts_also_beside_an_override() {
    let (dir, tree) = new_tree();
    let tree = tree.with_ids(Ids::One);
    write(&tree, "file", "");
    tree.set_owner("file", 1000, 2000).unwrap();
    tree.set_mode("file", 0o6755).unwrap();
    tree.mknod("null", Kind::CharDevice, 0o666, Device { major: 1, minor: 3 }).unwrap();
    for (path, mode) in [("file", 0o700), ("file", 0o4711), ("null", 0o600)] {
        fs::set_permissions(dir.path().join("root").join(path), fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(tree.read_entry(path).unwrap().metadata.mode, mode, "{path}");
    }
    let metadata = tree.read_entry("file").unwrap().metadata;
    assert_eq!((metadata.uid, metadata.gid), (1000, 2000));
    assert_eq!(tree.read_entry("null").unwrap().metadata.device, Device { major: 1, minor: 3 });
}
