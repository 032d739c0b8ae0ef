//! Copies between trees, as BuildKit makes them.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use super::*;
use crate::layer::{TreeEntries, WriteOptions, write};

fn source() -> (tempfile::TempDir, Tree) {
    let dir = tempfile::tempdir().unwrap();
    for path in ["src/sub", "src/empty"] {
        fs::create_dir_all(dir.path().join(path)).unwrap();
    }
    for path in ["a.txt", "b.txt", "src/x.rs", "src/sub/y.rs", "src/sub/z.md"] {
        fs::write(dir.path().join(path), path).unwrap();
    }
    fs::hard_link(dir.path().join("src/x.rs"), dir.path().join("src/x2.rs")).unwrap();
    symlink("x.rs", dir.path().join("src/link")).unwrap();
    symlink("/etc/shadow", dir.path().join("shadow")).unwrap();
    let tree = Tree::open(dir.path()).unwrap();
    (dir, tree)
}

fn spec(src: &str, dest: &str) -> CopySpec {
    CopySpec {
        src: src.into(),
        dest: dest.into(),
        follow_symlink: true,
        dir_copy_contents: true,
        create_dest_path: true,
        allow_wildcard: true,
        timestamp: Some(Time::from_seconds(7)),
        owner: Some((0, 0)),
        ..CopySpec::default()
    }
}

/// Paths of what the copies make in an empty tree; the plan must make the same layer.
fn check(specs: &[CopySpec], expected: &[&str]) {
    let (_source, tree) = source();
    let dir = tempfile::tempdir().unwrap();
    let dest = Tree::open(dir.path()).unwrap();
    for spec in specs {
        copy(View::context(&tree), &dest, spec).unwrap();
    }
    let paths: Vec<_> = dest.walk("").unwrap().map(|step| step.unwrap().path).collect();
    assert_eq!(paths, expected.iter().map(PathBuf::from).collect::<Vec<_>>(), "{specs:?}");
    let mut from_tree = Vec::new();
    let options = WriteOptions::default();
    let tree_layer = write(&mut TreeEntries::new(&dest).unwrap(), options, &mut from_tree).unwrap();
    let mut planned = Vec::new();
    let plan_layer =
        write(&mut plan(View::context(&tree), None, specs, Time::default()).unwrap(), options, &mut planned).unwrap();
    assert_eq!(tree_layer, plan_layer, "{specs:?}");
    assert!(from_tree == planned);
}

#[test]
fn sources_get_the_names_that_buildkit_gives_them() {
    check(&[spec("/a.txt", "/app/")], &["app", "app/a.txt"]);
    check(&[spec("/a.txt", "/app")], &["app"]);
    check(&[spec("/*.txt", "/t/")], &["t", "t/a.txt", "t/b.txt"]);
    let src = ["d/empty", "d/link", "d/sub", "d/sub/y.rs", "d/sub/z.md", "d/x.rs", "d/x2.rs"];
    check(&[spec("/src", "/d")], &[&["d"], &src[..]].concat());
    check(&[spec("/src/", "/d/")], &[&["d"], &src[..]].concat());
    check(&[spec("/a.txt", "/d/"), spec("/src", "/d")], &[&["d", "d/a.txt"], &src[..]].concat());
    let whole = CopySpec { dir_copy_contents: false, ..spec("/src/sub", "/d/") };
    check(&[whole], &["d", "d/sub", "d/sub/y.rs", "d/sub/z.md"]);
    let filtered = CopySpec { exclude_patterns: vec!["**/*.md".into(), "empty".into()], ..spec("/src", "/d") };
    check(&[filtered], &["d", "d/link", "d/sub", "d/sub/y.rs", "d/x.rs", "d/x2.rs"]);
    let included = CopySpec { include_patterns: vec!["sub/*.rs".into()], ..spec("/src", "/d") };
    check(&[included], &["d", "d/sub", "d/sub/y.rs"]);
}

/// D11, D19; what a link points to on the host is never read, and never written.
#[test]
fn links_stay_in_their_trees() {
    let (_source, tree) = source();
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), dir.path().join("out")).unwrap();
    let dest = Tree::open(dir.path()).unwrap();
    let error = copy(View::new(&tree), &dest, &spec("/shadow", "/x")).unwrap_err();
    assert!(matches!(error, CopyError::NotFound { .. }), "{error}");
    copy(View::new(&tree), &dest, &spec("/a.txt", "/out/a.txt")).unwrap();
    mkfile(&dest, "out/b", 0o644, b"b", None, None).unwrap();
    mkdir(&dest, "out/c/d", 0o755, true, None, None).unwrap();
    rm(&dest, "out/../../../out/b", false, false).unwrap();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    assert!(matches!(rm(&dest, "/..", true, false), Err(CopyError::Root)));
}

/// D12: what goes away between the look at a directory and the copy of its entries.
#[test]
fn d12_what_is_gone_meanwhile_is_said() {
    for (gone, expected) in [("src/sub/y.rs", "src/sub/y.rs"), ("src/sub", "src/sub"), ("src/link", "src/link")] {
        let (source, tree) = source();
        let looks = std::sync::atomic::AtomicUsize::new(0);
        // The filter is asked when the directory is read, and again when the entry has its turn.
        let filter = |path: &Path, is_dir: bool| {
            if path == Path::new(gone) && looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 1 {
                let path = source.path().join(path);
                if is_dir { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
            }
            Visibility::Visible
        };
        let dir = tempfile::tempdir().unwrap();
        let dest = Tree::open(dir.path()).unwrap();
        let error = copy(View::new(&tree).with_filter(&filter), &dest, &spec("/src", "/d")).unwrap_err();
        assert_eq!(error.to_string(), format!("`{expected}` changed while reading"));
    }
}

/// D12: a file that grows while it is copied, whose bytes say where they stand. What arrives is what it was at some time, or
/// nothing does.
#[test]
fn d12_no_torn_content_of_a_file_that_grows() {
    use std::io::Write as _;
    let (source, tree) = source();
    let path = source.path().join("log");
    let line = |number: usize| format!("{number:015}\n");
    fs::write(&path, (0..100_000).map(line).collect::<String>()).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (mut refused, mut whole) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
            for number in 100_000..1_000_000 {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                file.write_all(line(number).as_bytes()).unwrap();
            }
        });
        for round in 0..200 {
            let dir = tempfile::tempdir().unwrap();
            let dest = Tree::open(dir.path()).unwrap();
            match copy(View::new(&tree), &dest, &spec("/log", "/log")) {
                Ok(()) => {
                    let copied = fs::read(dir.path().join("log")).unwrap();
                    let right = (0..).map(line).take(copied.len().div_ceil(16)).collect::<String>();
                    assert_eq!(copied, right.as_bytes()[..copied.len()]);
                    whole += 1;
                }
                Err(CopyError::Content { source: crate::layer::LayerError::Changed { path }, .. }) => {
                    assert_eq!(path, "log");
                    refused += 1;
                }
                Err(other) => panic!("{other:?}"),
            }
            if refused > 3 && round > 10 {
                break;
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(refused + whole > 0);
}

#[test]
fn conflicts_and_missing_sources_are_named() {
    let (_source, tree) = source();
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("x/a.txt/y")).unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let dest = Tree::open(dir.path()).unwrap();
    let fails = |spec: &CopySpec| copy(View::new(&tree), &dest, spec).unwrap_err().to_string();
    assert_eq!(fails(&spec("/a.txt", "/x/")), "cannot replace directory `x/a.txt` with a file");
    assert_eq!(fails(&spec("/src", "/file")), "cannot copy a directory to `file`, which is none");
    assert_eq!(fails(&spec("/none", "/y")), "`/none` not found");
    assert_eq!(fails(&spec("/n*", "/y")), "`/n*` not found");
    copy(View::new(&tree), &dest, &CopySpec { allow_empty_wildcard: true, ..spec("/n*", "/y") }).unwrap();
    let replace = CopySpec { always_replace_existing_dest_paths: true, ..spec("/a.txt", "/x/") };
    copy(View::new(&tree), &dest, &replace).unwrap();
    assert!(dest.metadata("x/a.txt", false).unwrap().is_file());
}

#[test]
fn modes_links_and_archives_arrive() {
    let (source, tree) = source();
    let dir = tempfile::tempdir().unwrap();
    let dest = Tree::open(dir.path()).unwrap();
    let change = CopySpec { mode_change: Some("u=rw,go=".parse().unwrap()), ..spec("/src/x*.rs", "/m/") };
    copy(View::new(&tree), &dest, &change).unwrap();
    assert_eq!(fs::metadata(dir.path().join("m/x.rs")).unwrap().permissions().mode() & 0o7777, 0o600);
    copy(View::new(&tree), &dest, &spec("/src", "/h")).unwrap();
    let ino = |path: &str| fs::metadata(dir.path().join(path)).unwrap().ino();
    assert_eq!(ino("h/x.rs"), ino("h/x2.rs"));
    assert_eq!(fs::read_to_string(dir.path().join("h/sub/y.rs")).unwrap(), "src/sub/y.rs");

    let mut archive = Vec::new();
    write(&mut TreeEntries::new(&tree).unwrap(), WriteOptions::default(), &mut archive).unwrap();
    let mut gzip = compress::FramedWriter::new(Vec::new(), compress::Compression::GZIP);
    std::io::Write::write_all(&mut gzip, &archive).unwrap();
    fs::write(source.path().join("all.tar.gz"), gzip.finish().unwrap()).unwrap();
    let add = CopySpec { attempt_unpack: true, ..spec("/all.tar.gz", "/added") };
    copy(View::new(&tree), &dest, &add).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("added/src/sub/z.md")).unwrap(), "src/sub/z.md");
}

/// Somebody writes files while they are copied: each copy is one of the states that its file had, and never a mix.
#[test]
fn what_is_written_meanwhile_is_copied_whole() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let (dir, tree) = source();
    let path = dir.path().join("src/busy");
    let content = |generation: u8| vec![generation; 300_000];
    fs::write(&path, content(0)).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for generation in 1..u8::MAX {
                fs::write(&path, content(generation)).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(4));
            }
            done.store(true, Ordering::SeqCst);
        });
        let (mut copied, mut streamed) = (0, 0);
        while !done.load(Ordering::SeqCst) {
            let dest = tempfile::tempdir().unwrap();
            let view = View::context(&tree);
            match copy(view, &Tree::open(dest.path()).unwrap(), &spec("/src", "/d")) {
                Ok(()) => {
                    let found = fs::read(dest.path().join("d/busy")).unwrap();
                    // Between truncation and writing a file is shorter, which is a state that it had.
                    assert!(found.iter().all(|byte| *byte == found[0]), "torn");
                    copied += 1;
                }
                Err(error) => assert!(error.is_change(), "{error:?}"),
            }
            let mut archive = Vec::new();
            let mut entries = plan(view, None, &[spec("/src", "/d")], Time::default()).unwrap();
            match write(&mut entries, WriteOptions::default(), &mut archive) {
                Ok(_) => {
                    let header = archive.windows(7).position(|name| name == b"d/busy\0").unwrap();
                    let size = std::str::from_utf8(&archive[header + 124..header + 135]).unwrap();
                    let size = usize::from_str_radix(size, 8).unwrap();
                    let found = &archive[header + 512..header + 512 + size];
                    assert!(found.iter().all(|byte| *byte == found[0]), "torn");
                    streamed += 1;
                }
                Err(error) => assert!(matches!(error, LayerError::Changed { .. }), "{error:?}"),
            }
        }
        println!("{copied} copied, {streamed} streamed");
        assert!(copied > 0 && streamed > 0);
    });
}
