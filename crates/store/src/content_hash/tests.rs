use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use build_engine_rootfs::Tree;

use super::*;

const FILE_DATA0: &str = "sha256:cd8e75bca50f2d695f220d0cb0997d8ead387e4f926e8669a92d7f104cc9885b";
const FILE_DATA1: &str = "sha256:c2b5e234f5f38fc5864da7def04782f82501a40d46192e4207d5b3f0c3c4732b";
const DIR_D0: &str = "sha256:d47454417d2c554067fbefe5f5719edc49f3cfe969c36b62e34a187a4da0cc9a";
const DIR_D0_BY_FILE: &str = "sha256:6b612ad5c13159112ae26357ef7bd34df29916941ba40ec2ce38dfb70c6c60c3";
const DIR_D0_MODIFIED: &str = "sha256:555ffa3028630d97ba37832b749eda85ab676fd64ffb629fbf0f4ec8c1e3bff1";
const DOUBLE_STAR: &str = "sha256:aa7448215bbf5b837b35ce64467857d8b9747965573d14d4b31b370586370971";

/// `path/` is a directory, `path=data` a file, `path>target` a link; modes as BuildKit's own tests have them.
fn tree(lines: &[&str]) -> (tempfile::TempDir, Tree) {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for line in lines {
        if let Some((path, target)) = line.split_once('>') {
            symlink(target, dir.path().join(path)).unwrap();
        } else if let Some((path, data)) = line.split_once('=') {
            fs::write(dir.path().join(path), data).unwrap();
            fs::set_permissions(dir.path().join(path), fs::Permissions::from_mode(0o644)).unwrap();
        } else {
            fs::create_dir(dir.path().join(line)).unwrap();
            fs::set_permissions(dir.path().join(line), fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    let tree = Tree::open(dir.path()).unwrap();
    (dir, tree)
}

/// Owners count, so the view says root for all, as the tests of BuildKit run as root.
fn ask(tree: &Tree, question: &Question) -> String {
    let root = |_: &Path, _: bool| Visibility::Visible;
    let view = View::context(tree).with_filter(&root);
    let mut hash = ContentHash::new(view, None).unwrap();
    // A snapshot's root has a header of its own.
    let root = hash.records.position(&[0]).unwrap();
    hash.records[root].digest = None;
    match hash.digest(question) {
        Ok(digest) => digest.to_string(),
        Err(error) => error.to_string(),
    }
}

fn question(path: &str, flags: &str) -> Question {
    Question {
        path: path.into(),
        follow_links: flags.contains('f'),
        wildcard: flags.contains('w'),
        ..Question::default()
    }
}

fn check(lines: &[&str], cases: &[(&str, &str, &str)]) {
    let (_dir, tree) = tree(lines);
    for (path, flags, expected) in cases {
        assert_eq!(ask(&tree, &question(path, flags)), *expected, "{path} {flags}");
    }
}

/// F1-093. Digests: `cache/contenthash/checksum_test.go` of BuildKit.
/// D12: a file that goes away, or is written to, between the look at it and its reading.
#[test]
fn d12_what_changes_meanwhile_is_said() {
    for removed in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "z"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let tree = Tree::open(dir.path()).unwrap();
        // `a` was looked at when the filter is asked about `z`.
        let filter = |path: &Path, _: bool| {
            if path == Path::new("z") {
                let a = dir.path().join("a");
                if removed { fs::remove_file(a).unwrap_or_default() } else { fs::write(a, "longer").unwrap() }
            }
            Visibility::Visible
        };
        let question = Question { path: "/".into(), ..Question::default() };
        let mut hash = ContentHash::new(View::new(&tree).with_filter(&filter), None).unwrap();
        let error = hash.digest(&question).unwrap_err();
        assert_eq!(error.to_string(), "`a` changed while reading");
    }
}

#[test]
fn files_and_directories_have_the_digests_of_buildkit() {
    check(
        &["foo=data0", "bar=data1", "d0/", "d0/abc=data0", "d0/def>abc", "d0/ghi>nosuchfile"],
        &[
            ("nosuch", "f", "`/nosuch` not found"),
            ("foo", "f", FILE_DATA0),
            ("bar", "f", FILE_DATA1),
            ("d0/abc", "f", FILE_DATA0),
            ("d0/def", "f", FILE_DATA0),
            ("d0/ghi", "f", "`/d0/ghi` not found"),
            ("/", "f", "sha256:427c9cf9ae98c0f81fb57a3076b965c7c149b6b0a85625ad4e884236649a42c6"),
            ("d0", "f", DIR_D0),
        ],
    );
    check(&["abc=data0", "def>abc", "ghi>nosuchfile"], &[("/", "f", DIR_D0)]);
    check(&["abc=data0", "def>abc"], &[("/", "f", DIR_D0_MODIFIED)]);
    check(
        &["d0/", "d0/foo/", "d0/foo/bar=data0", "d0/foo-subdir/", "d0/foo.subdir=data1"],
        &[("d0", "f", "sha256:14276c302c940a80f82ca5477bf766c98a24702d6a9948ee71bb277cdad3ae05")],
    );
    check(
        &["d0/", "d0/foo/", "d0/foo/bar=data0", "d0/foo/subdir1/", "d0/foo/subdir1/baz=data1", "d0/foo/subdir2/"],
        &[("d0/foo", "", "sha256:e76717544f71725bd759a981554ca17c286b3d222598f46a671b983fd2b8172d")],
    );
}

/// Source: TestChecksumWildcardOrFilter, TestSymlinksNoFollow.
#[test]
fn wildcards_and_links_have_the_digests_of_buildkit() {
    let foo = Digest::sha256(format!("\0foo{FILE_DATA0}").as_bytes()).to_string();
    check(
        &[
            "bar=data1",
            "foo=data0",
            "fox=data2",
            "x/",
            "x/d0/",
            "x/d0/abc=data0",
            "x/d0/def>abc",
            "x/d0/ghi>nosuchfile",
            "y1>foo",
            "y2>fox",
        ],
        &[
            ("f*o", "w", &foo),
            ("f*", "w", "sha256:0b6731924f0a32a812bf8a729202e55e54ded331f9e4ff2397f681e43694e086"),
            ("x/d?", "w", DIR_D0_BY_FILE),
            ("x/d?/def", "fw", FILE_DATA0),
            ("y*", "fw", "sha256:982153600b9653a1decb0f961e09e2bc1be335cfcaac9b39dbd1120b65fdf92c"),
        ],
    );
    let sym = "sha256:a2ba571981f48ec34eb79c9a3ab091b6491e825c2f7e9914ea86e8e958be7fae";
    let broken = "sha256:9b761577efcb1239cf4be971914c5d7404914dd32ff436401af1764dc5446b83";
    let lines = ["target=data0", "sym>target", "sym2>target2", "foo/", "foo/ghi>target", "y1>foo/ghi"];
    check(
        &lines,
        &[
            ("sym", "w", sym),
            ("foo/ghi", "w", sym),
            ("foo/ghi", "fw", "`/foo/ghi` not found"),
            ("y1", "fw", "`/y1` not found"),
            ("sym", "", sym),
            ("foo/ghi", "", sym),
            ("foo", "f", broken),
            ("fo?", "fw", "sha256:2797e710c6d1a89ff2d91c834b828b1dc500f2982430a58241df8e146f4c4bb4"),
        ],
    );
    let (_dir, tree) = tree(&lines);
    let with_exclude = Question { exclude_patterns: vec!["*.git".into()], ..question("foo", "f") };
    assert_eq!(ask(&tree, &with_exclude), broken);
}

/// Source: TestSymlinkThroughParent, TestSymlinkInPathHandleChange.
#[test]
fn links_on_the_way_are_followed_inside_the_tree() {
    check(
        &[
            "d1/",
            "d1/sub/",
            "d1/sub/foo=data0",
            "d1/sub/bar>/link",
            "d1/sub/baz>../../../link",
            "d1/sub/bay>../../../../link/.",
            "d1/def>sub",
            "sub/",
            "sub/d0/",
            "sub/d0/abc=data0",
            "sub/d0/def>abc",
            "sub/d0/ghi>nosuchfile",
            "link>sub/d0",
            "loop>loop",
        ],
        &[
            ("d1/def/foo", "f", FILE_DATA0),
            ("d1/def/bar/abc", "f", FILE_DATA0),
            ("sub/d0", "f", DIR_D0),
            ("d1/def/baz", "f", DIR_D0),
            ("d1/def/bay", "f", DIR_D0),
            ("link", "f", DIR_D0),
            ("loop", "f", "too many symbolic links in `/loop`"),
        ],
    );
}

/// Source: TestChecksumIncludeDoubleStar, testChecksumIncludeExclude, TestChecksumIncludeSymlink.
#[test]
fn patterns_select_as_buildkit_selects() {
    let (_dir, tree) = tree(&[
        "prefix/",
        "prefix/a/",
        "prefix/a/b/",
        "prefix/a/b/c/",
        "prefix/a/b/c/foo/",
        "prefix/a/b/c/foo/bar=abc",
        "link>prefix",
    ]);
    let include = |path: &str, flags: &str, patterns: &[&str]| Question {
        include_patterns: patterns.iter().map(ToString::to_string).collect(),
        ..question(path, flags)
    };
    for flags in ["", "w"] {
        for patterns in [["**/foo/**", "**/report"], ["**/foo", "**/report"]] {
            assert_eq!(ask(&tree, &include("prefix/a", flags, &patterns)), DOUBLE_STAR, "{patterns:?} {flags}");
        }
        let nothing = Digest::sha256(b"").to_string();
        assert_eq!(ask(&tree, &include("prefix/a", flags, &["**/none/**"])), nothing);
        let direct = ask(&tree, &include("prefix/a/b", flags, &["**/bar"]));
        assert_ne!(direct, nothing);
        assert_eq!(ask(&tree, &include("link/a/b", flags, &["**/bar"])), direct);
        let excluded =
            Question { exclude_patterns: vec!["**/bar".into()], ..include("prefix/a", flags, &["**/foo/**"]) };
        assert_ne!(ask(&tree, &excluded), DOUBLE_STAR);
    }
    let required = Question { required_paths: vec!["/prefix/x".into()], ..question("prefix/*", "w") };
    assert_eq!(ask(&tree, &required), "`/prefix/x` not found");
}

#[test]
fn what_a_filter_hides_does_not_count() {
    let (_dir, full) = tree(&["d0/", "d0/abc=data0", "d0/def>abc", "d0/ghi>nosuchfile", "d0/x/", "d0/x/y=1"]);
    let filter = |path: &Path, is_dir: bool| match path.to_str() {
        Some("d0/x") if is_dir => Visibility::Through,
        Some("d0/x/y") => Visibility::Hidden,
        _ => Visibility::Visible,
    };
    let mut hash = ContentHash::new(View::context(&full).with_filter(&filter), None).unwrap();
    assert_eq!(hash.digest(&question("d0", "")).unwrap().to_string(), DIR_D0);
}

/// What differs between what was listed and what is there, and what is no difference to a key.
#[test]
fn a_listing_tells_what_changed_since() {
    type Change = fn(&Path);
    let changes: [(&str, Change, Option<&str>); 12] = [
        ("nothing", |_| {}, None),
        ("content", |dir| fs::write(dir.join("d/a"), "other").unwrap(), Some("d/a")),
        ("mode", |dir| fs::set_permissions(dir.join("d/a"), fs::Permissions::from_mode(0o600)).unwrap(), Some("d/a")),
        ("another inode", |dir| fs::rename(dir.join("d/b"), dir.join("d/a")).unwrap(), Some("d/a")),
        ("added", |dir| fs::write(dir.join("d/new"), "").unwrap(), Some("d/new")),
        ("removed", |dir| fs::remove_file(dir.join("d/b")).unwrap(), Some("d/b")),
        (
            "link",
            |dir| (fs::remove_file(dir.join("d/l")).unwrap(), symlink("b", dir.join("d/l")).unwrap()).1,
            Some("d/l"),
        ),
        (
            "mode of a folder",
            |dir| fs::set_permissions(dir.join("d/e"), fs::Permissions::from_mode(0o700)).unwrap(),
            Some("d/e"),
        ),
        (
            "attribute of a folder",
            |dir| {
                let file = fs::File::open(dir.join("d/e")).unwrap();
                rustix::fs::fsetxattr(&file, "user.note", b"1", rustix::fs::XattrFlags::empty()).unwrap();
            },
            Some("d/e"),
        ),
        (
            "a file that came and went",
            |dir| (fs::write(dir.join("d/x"), "").unwrap(), fs::remove_file(dir.join("d/x")).unwrap()).1,
            None,
        ),
        ("outside", |dir| fs::write(dir.join("other"), "changed").unwrap(), None),
        ("all of it", |dir| fs::remove_dir_all(dir.join("d")).unwrap(), Some("d")),
    ];
    for (name, change, expected) in changes {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("d/e")).unwrap();
        for file in ["d/a", "d/b", "other", "d-more"] {
            fs::write(dir.path().join(file), file).unwrap();
        }
        symlink("a", dir.path().join("d/l")).unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        let view = View::context(&tree);
        let listing = Listing::new(view).unwrap();
        // Times have ticks.
        std::thread::sleep(std::time::Duration::from_millis(12));
        change(dir.path());
        let found = listing.changed(view, Path::new("d")).unwrap();
        assert_eq!(found.as_deref(), expected.map(Path::new), "{name}");
    }
}
