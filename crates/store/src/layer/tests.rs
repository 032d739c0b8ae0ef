//! Round trips of trees, and archives that must be refused.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::process::Command;

use build_engine_rootfs::{Device, Ids, Kind, Time, Tree};

use super::header::{Header, encode, pad};
use super::*;

fn new_tree() -> (tempfile::TempDir, Tree) {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::open(dir.path()).unwrap();
    (dir, tree)
}

fn archive(entries: &[(u8, &str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, name, text) in entries {
        let is_file = *kind == b'0';
        let header = Header {
            name: name.as_bytes(),
            kind: *kind,
            mode: 0o644,
            size: if is_file { text.len() as u64 } else { 0 },
            link: if is_file { b"" } else { text.as_bytes() },
            ..Header::default()
        };
        encode(&header, &mut out);
        if is_file {
            out.extend_from_slice(text.as_bytes());
            pad(&mut out, text.len() as u64);
        }
    }
    out.resize(out.len() + 1024, 0);
    out
}

fn written(tree: &Tree) -> (Vec<u8>, Written) {
    let mut out = Vec::new();
    let done = write(&mut TreeEntries::new(tree).unwrap(), WriteOptions::default(), &mut out).unwrap();
    (out, done)
}

fn fill(tree: &Tree) {
    let long = "n".repeat(120);
    tree.mkdir("dir", 0o1777).unwrap();
    for (path, content) in [("dir/a", "hello"), ("empty", ""), (&long, "long name"), ("ünï", "x")] {
        tree.create_file(path, 0o644).unwrap().write_all(content.as_bytes()).unwrap();
    }
    tree.create_file(std::ffi::OsStr::from_bytes(b"bad\xff"), 0o600).unwrap();
    tree.hard_link("dir/a", "dir/b").unwrap();
    tree.symlink("t".repeat(150), "link").unwrap();
    tree.mknod("pipe", Kind::Fifo, 0o620, Device::default()).unwrap();
    tree.mknod("gone", Kind::CharDevice, 0, Device::default()).unwrap();
    tree.set_xattr("empty", "user.note", b"a\0b").unwrap();
    tree.set_xattr("empty", "user.overlay.origin", b"x").unwrap();
    for path in ["dir/a", "empty", &long, "ünï", "link", "pipe", "dir"] {
        tree.set_times(path, Time::from_seconds(1_600_000_000)).unwrap();
    }
    tree.set_times(std::ffi::OsStr::from_bytes(b"bad\xff"), Time::from_seconds(-1)).unwrap();
}

/// L07, L18: what goes out comes back, and GNU tar reads the same list.
#[test]
fn a_tree_survives_the_round_trip() {
    let (_dir, tree) = new_tree();
    fill(&tree);
    let (bytes, done) = written(&tree);
    let (_second, back) = new_tree();
    let applied = apply(&bytes[..], &back, ApplyOptions::default()).unwrap();
    assert_eq!((&applied.diff_id, applied.size_bytes), (&done.diff_id, done.size_bytes));
    assert!(written(&back).0 == bytes);
    assert_eq!(back.metadata("dir/a", false).unwrap().ino, back.metadata("dir/b", false).unwrap().ino);
    assert!(back.metadata("gone", false).unwrap().is_whiteout());

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    let Ok(listed) = Command::new("tar").arg("-tvf").arg(file.path()).output() else { return };
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    assert_eq!(String::from_utf8_lossy(&listed.stdout).lines().count() as u64, done.entries);
}

/// The form of Go's `archive/tar`; Python's tarfile writes the same for these fields, except that it leaves device numbers empty.
#[test]
fn a_header_is_the_one_that_go_writes() {
    let mut out = Vec::new();
    encode(&Header { name: b"etc/", kind: b'5', mode: 0o755, mtime: 1, ..Header::default() }, &mut out);
    assert_eq!(&out[..5], b"etc/\0");
    assert_eq!(&out[100..157], b"0000755\x000000000\x000000000\x0000000000000\x0000000000001\x00007761\x00 5");
    assert_eq!(&out[257..265], b"ustar\x0000");
    assert_eq!(&out[329..345], b"0000000\x000000000\0");
}

/// L01, L04, L05, L06, L08, L11: archives that are refused, and by what reason.
#[test]
fn hostile_archives_are_refused() {
    let (kind, link) = (b'0', b'1');
    for (entries, reason) in [
        (vec![(kind, "../../etc/x", "")], "escapes root"),
        (vec![(kind, "a/../../x", "")], "escapes root"),
        (vec![(link, "x", "../../etc/shadow")], "escapes root"),
        (vec![(link, "x", "/etc/shadow")], "does not exist"),
        (vec![(link, "x", "later"), (kind, "later", "")], "does not exist"),
        (vec![(kind, "x", ""), (link, "x", "x")], "itself"),
        (vec![(b'2', ".", "/canary")], "root of a layer"),
        (vec![(b'2', "/", "/canary")], "root of a layer"),
        (vec![(kind, "./", "")], "slash"),
        (vec![(b'3', "x", "")], "deletion"),
        (vec![(kind, ".wh.", "")], "whiteout of nothing"),
        (vec![(kind, "a/.wh..", "")], "whiteout of nothing"),
        (vec![(kind, ".wh...", "")], "whiteout of nothing"),
        (vec![(b'S', "x", "")], "sparse"),
        (vec![(b'Z', "x", "")], "unknown"),
    ] {
        let (_dir, tree) = new_tree();
        let error = apply(&archive(&entries)[..], &tree, ApplyOptions::default()).unwrap_err().to_string();
        assert!(error.contains(reason), "{entries:?}: {error}");
    }
    let records = |key: &str| BTreeMap::from([(format!("SCHILY.xattr.{key}").into_bytes(), b"y".to_vec())]);
    for key in ["user.overlay.opaque", "trusted.overlay.redirect", "user.build-engine.override"] {
        let mut out = Vec::new();
        encode(&Header { name: b"d/", kind: b'5', mode: 0o755, records: records(key), ..Header::default() }, &mut out);
        out.resize(out.len() + 1024, 0);
        let (_dir, tree) = new_tree();
        assert!(apply(&out[..], &tree, ApplyOptions::default()).unwrap_err().to_string().contains(key));
    }
}

/// L13: cut anywhere at a block, without an end, with something after it, with a wrong sum.
#[test]
fn broken_archives_are_refused() {
    let good = archive(&[(b'0', "a", "hello"), (b'5', "d/", "")]);
    let refused = |bytes: &[u8]| {
        let (_dir, tree) = new_tree();
        apply(bytes, &tree, ApplyOptions::default()).is_err()
    };
    assert!(!refused(&good));
    assert!(!refused(&[&good[..], &[0; 4096]].concat()));
    for cut in 1..good.len() / 512 {
        assert!(refused(&good[..cut * 512]), "{cut}");
    }
    assert!(refused(&[&good[..], &good[..]].concat()));
    for byte in [0, 100, 130, 156, 260] {
        let mut wrong = good.clone();
        wrong[byte] ^= 1;
        assert!(refused(&wrong), "{byte}");
    }
}

/// L02, L03, L10: links of the layer lead into the layer; the last of two entries wins.
#[test]
fn links_lead_into_the_tree_and_the_last_entry_wins() {
    let (dir, tree) = new_tree();
    let canary = tempfile::tempdir().unwrap();
    let outside = canary.path().to_str().unwrap();
    let bytes = archive(&[(b'2', "d", outside), (b'0', "d/x", "in"), (b'2', "e", outside), (b'5', "e/", "")]);
    apply(&bytes[..], &tree, ApplyOptions::default()).unwrap();
    assert_eq!(std::fs::read_dir(canary.path()).unwrap().count(), 0);
    assert!(dir.path().join(outside.trim_start_matches('/')).join("x").exists());
    assert!(tree.metadata("e", false).unwrap().is_dir());
    let kinds = [(b'0', "file"), (b'5', ""), (b'2', "to"), (b'1', "base")];
    for (first, a) in kinds {
        for (second, b) in kinds {
            let (_dir, tree) = new_tree();
            let bytes = archive(&[(b'0', "base", "base"), (first, "x", a), (second, "x", b)]);
            apply(&bytes[..], &tree, ApplyOptions::default()).unwrap();
            let found = tree.metadata("x", false).unwrap();
            let expected = match second {
                b'5' => Kind::Directory,
                b'2' => Kind::Symlink,
                _ => Kind::File,
            };
            assert_eq!(found.kind, expected, "{first} {second}");
            let base = std::io::read_to_string(tree.open_file("base").unwrap()).unwrap();
            assert_eq!(base, "base", "{first} {second}");
        }
    }
}

/// L08: a whiteout deletes what is below, never what its own layer has.
#[test]
fn whiteouts_mean_the_layers_below() {
    let (_dir, tree) = new_tree();
    let bytes = archive(&[
        (b'0', ".wh.x", ""),
        (b'5', "x/", ""),
        (b'5', "y/", ""),
        (b'0', ".wh.y", ""),
        (b'0', "f", "1"),
        (b'0', ".wh.f", ""),
        (b'0', "sub/.wh..wh..opq", ""),
        (b'0', ".wh..wh.plnk", ""),
        (b'0', "p/q/.wh.none", ""),
    ]);
    apply(&bytes[..], &tree, ApplyOptions::default()).unwrap();
    for path in ["x", "y", "sub"] {
        assert!(tree.read_entry(path).unwrap().opaque, "{path}");
    }
    assert!(tree.metadata("f", false).unwrap().is_file());
    assert!(tree.metadata("p/q/none", false).unwrap().is_whiteout());
    assert_eq!(tree.read_dir("").unwrap(), ["f", "p", "sub", "x", "y"]);
}

#[test]
fn lower_layers_give_attributes_and_hard_link_targets() {
    let (_lower_dir, lower) = new_tree();
    lower.mkdir("etc", 0o750).unwrap();
    lower.create_file("etc/old", 0o640).unwrap().write_all(b"old").unwrap();
    let (_dir, tree) = new_tree();
    let bytes = archive(&[(b'0', "etc/new", "new"), (b'1', "link", "etc/old")]);
    let options = ApplyOptions { lowers: &[&lower], ..ApplyOptions::default() };
    apply(&bytes[..], &tree, options).unwrap();
    assert_eq!(tree.metadata("etc", false).unwrap().mode, 0o750);
    assert_eq!(tree.metadata("link", false).unwrap().ino, tree.metadata("etc/old", false).unwrap().ino);
}

/// G8: owners, setuid and capabilities make the same layer when only one uid exists.
#[test]
fn privileged_one_uid_gives_the_same_layer_as_root() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root to represent foreign owners");
        return;
    }
    let mut bytes = Vec::new();
    let capability = vec![1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let records = BTreeMap::from([(b"SCHILY.xattr.security.capability".to_vec(), capability)]);
    let mut add = |header: Header<'_>| encode(&header, &mut bytes);
    add(Header { name: b"d/", kind: b'5', mode: 0o2755, uid: 5, gid: 6, mtime: 9, ..Header::default() });
    add(Header { name: b"d/link", kind: b'2', mode: 0o777, uid: 7, gid: 8, link: b"x", mtime: 9, ..Header::default() });
    add(Header { name: b"ping", kind: b'0', mode: 0o755, records, mtime: 9, ..Header::default() });
    add(Header { name: b"su", kind: b'0', mode: 0o4755, uid: 1, gid: 3_000_000, mtime: 9, ..Header::default() });
    add(Header { name: b"tty", kind: b'3', mode: 0o666, device: (5, 0), mtime: 9, ..Header::default() });
    bytes.resize(bytes.len() + 1024, 0);
    for ids in [Ids::Full, Ids::One] {
        let (_dir, tree) = new_tree();
        let tree = tree.with_ids(ids);
        apply(&bytes[..], &tree, ApplyOptions::default()).unwrap();
        assert!(written(&tree).0 == bytes, "{ids:?}");
    }
}
