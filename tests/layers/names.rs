//! L01 to L05, L08, L10, L14: names, links, deletions, duplicates.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;

use build_engine_testkit::archive::{Member, archive};
use build_engine_testkit::engine::Who;

use crate::{Bench, Blob, Case, ESCAPED, Seen, applied, fails, refused, run_within, text};

pub(crate) fn cases(canary: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    let under = canary.trim_start_matches('/');
    cases.extend(escapes());
    cases.extend(links(canary, under));
    cases.extend(roots(canary));
    cases.extend(whiteouts(canary));
    cases.extend(pairs());
    cases.extend(odd_names());
    cases
}

fn escapes() -> Vec<Case> {
    let up = format!("../../../../../../etc/{ESCAPED}");
    let mut cases = vec![
        refused(
            "L01: an entry of `..` components is refused",
            archive([&Member::file(&up, "x")]),
            &["escapes root", &up],
        ),
        refused(
            "L01: `/..` is refused",
            archive([&Member::file(format!("/../{ESCAPED}"), "x")]),
            &["escapes root", ESCAPED],
        ),
        refused(
            "L01: `..` in the middle is refused",
            archive([&Member::file(format!("a/../../{ESCAPED}"), "x")]),
            &["escapes root"],
        ),
        refused(
            "L01: `..` that stays inside is refused too",
            archive([&Member::dir("a/"), &Member::file("a/../x", "x")]),
            &["escapes root"],
        ),
        refused("L01: the entry `..` is refused", archive([&Member::dir("../")]), &["escapes root"]),
        refused(
            "L01: `..` of a PAX path is refused",
            archive([&Member::file("x", "x").pax("path", &up)]),
            &["escapes root"],
        ),
        refused(
            "L01: `..` of a GNU long name is refused",
            archive([&Member::file("x", "x").gnu_name(&up)]),
            &["escapes root"],
        ),
        refused(
            "L01: `..` of a prefix is refused",
            archive([&Member::file(ESCAPED, "x").prefix("../..")]),
            &["escapes root"],
        ),
        refused("L01: `..` in a whiteout is refused", archive([&Member::file("../.wh.x", "")]), &["escapes root"]),
    ];
    for name in [format!("/etc/{ESCAPED}"), format!("//etc/{ESCAPED}"), format!("./etc/./{ESCAPED}")] {
        cases.push(applied(
            format!("L01: `{name}` is taken below the root"),
            vec![archive([&Member::file(&name, "x")])],
            &[(&format!("/etc/{ESCAPED}"), text("x"))],
        ));
    }
    cases
}

fn links(canary: &str, under: &str) -> Vec<Case> {
    let inside = format!("/{under}");
    let x = format!("/{under}/x");
    let mut cases = vec![
        applied(
            "L02: an absolute link to a directory is followed below the root",
            vec![archive([&Member::symlink("d", canary), &Member::file("d/x", "in")])],
            &[("/d", Seen::Link(canary.to_owned())), (&x, text("in"))],
        ),
        applied(
            "L02: the same over two layers",
            vec![archive([&Member::symlink("d", canary)]), archive([&Member::file("d/x", "in")])],
            &[("/d", Seen::Link(canary.to_owned())), (&x, text("in"))],
        ),
        applied(
            "L02: a relative link that climbs is stopped at the root, over two layers too",
            vec![
                archive([&Member::symlink("d", format!("../../../../../..{canary}")), &Member::file("d/x", "in")]),
                archive([&Member::file("d/y", "in")]),
            ],
            &[(&x, text("in")), (&format!("/{under}/y"), text("in"))],
        ),
        applied(
            "L02: links to links over three layers, the middle one absolute",
            vec![
                archive([&Member::dir("usr/lib/"), &Member::symlink("lib", "usr/lib")]),
                archive([&Member::symlink("a", "/lib")]),
                archive([&Member::file("a/x", "in"), &Member::file("lib/y", "in")]),
            ],
            &[
                ("/usr/lib/x", text("in")),
                ("/usr/lib/y", text("in")),
                ("/lib", Seen::Link("usr/lib".to_owned())),
                ("/a", Seen::Link("/lib".to_owned())),
            ],
        ),
        applied(
            "L02: a link of this layer to a directory of the layer below",
            vec![
                archive([&Member::dir("e/").mode(0o700)]),
                archive([&Member::symlink("d", "e"), &Member::file("d/x", "in")]),
            ],
            &[("/e/x", text("in")), ("/e", Seen::Mode(0o700, 0, 0))],
        ),
        applied(
            "L02: a deletion through a link of the layer below",
            vec![
                archive([&Member::file("e/gone", "x"), &Member::file("e/kept", "x"), &Member::symlink("d", "e")]),
                archive([&Member::file("d/.wh.gone", "")]),
            ],
            &[("/e/gone", Seen::Absent), ("/e/kept", text("x")), ("/d", Seen::Link("e".to_owned()))],
        ),
        applied(
            "L02: a deleted link is not followed any more",
            vec![
                archive([&Member::symlink("d", canary)]),
                archive([&Member::file(".wh.d", ""), &Member::file("d/x", "in")]),
            ],
            &[("/d/x", text("in")), (&x, Seen::Absent)],
        ),
        refused(
            "L02: a link to itself on the way is refused",
            archive([&Member::symlink("d", "d"), &Member::file("d/x", "in")]),
            &["`d/x`"],
        ),
        Case {
            name: "L02: links that lead to each other over two layers are refused".to_owned(),
            layers: vec![
                archive([&Member::symlink("a", "b")]),
                archive([&Member::symlink("b", "a"), &Member::file("a/x", "")]),
            ],
            expect: crate::Expect::Refused(vec!["`a/x`".to_owned(), "symbolic links".to_owned()]),
        },
        refused(
            "L02: a file on the way is refused",
            archive([&Member::file("d", "x"), &Member::file("d/x", "in")]),
            &["`d/x`", "at byte 1024"],
        ),
        applied(
            "L03: a directory replaces a link and leaves its target alone",
            vec![archive([
                &Member::symlink("d", format!("../../../../../..{canary}")),
                &Member::dir("d/").mode(0o777),
            ])],
            &[("/d", Seen::Dir), ("/d", Seen::Mode(0o777, 0, 0)), (&inside, Seen::Absent)],
        ),
        applied(
            "L03: the same over two layers",
            vec![archive([&Member::symlink("d", canary)]), archive([&Member::dir("d/").mode(0o777)])],
            &[("/d", Seen::Dir), (&inside, Seen::Absent)],
        ),
        applied(
            "L03: a file replaces a link and is not written through it",
            vec![archive([&Member::symlink("d", format!("{canary}/file")), &Member::file("d", "new").mode(0o4777)])],
            &[("/d", text("new")), (&format!("{inside}/file"), Seen::Absent)],
        ),
        applied(
            "L04: a hard link to a link is another name of the link itself",
            vec![archive([&Member::symlink("l", canary), &Member::hard_link("h", "l")])],
            &[("/h", Seen::Link(canary.to_owned()))],
        ),
        applied(
            "L04: a hard link into a linked directory stays below the root",
            vec![archive([
                &Member::symlink("d", canary),
                &Member::file("d/file", "in"),
                &Member::hard_link("h", "d/file"),
            ])],
            &[("/h", text("in"))],
        ),
        applied(
            "L04: a hard link through a link of the layer below, to a file of it",
            vec![
                archive([&Member::file("e/f", "below"), &Member::symlink("d", "e")]),
                archive([&Member::hard_link("h", "d/f").mode(0o600)]),
            ],
            &[("/h", text("below")), ("/h", Seen::Same("/e/f")), ("/e/f", Seen::Mode(0o600, 0, 0))],
        ),
    ];
    for (what, target) in [
        ("out of the root", "../../../../../../etc/shadow"),
        ("to an absolute path", "/etc/shadow"),
        ("to a canary", &format!("{canary}/file")),
        ("through a link that leaves", "out/file"),
        ("to a file that is missing", "missing"),
        ("to a later entry", "later"),
        ("to itself", "h"),
        ("to a directory", "dir"),
        ("to the root", "/"),
        ("to nothing", ""),
        ("below a file", "file/x"),
        ("to a deletion", "gone"),
    ] {
        cases.push(refused(
            format!("L04: a hard link {what} is refused"),
            archive([
                &Member::symlink("out", canary),
                &Member::dir("dir/"),
                &Member::file("file", "x"),
                &Member::file(".wh.gone", ""),
                &Member::hard_link("h", target),
                &Member::file("later", "x"),
            ]),
            &["`h`"],
        ));
    }
    for (what, deletion) in
        [("an opaque directory", "d/.wh..wh..opq"), ("a deleted directory", ".wh.d"), ("a deletion", "d/.wh.x")]
    {
        cases.push(Case {
            name: format!("L04: a hard link to a file of the layer below that {what} hides is refused"),
            layers: vec![
                archive([&Member::file("d/x", "x")]),
                archive([&Member::file(deletion, ""), &Member::hard_link("h", "d/x")]),
            ],
            expect: crate::Expect::Refused(vec!["`h`".to_owned(), "does not exist".to_owned()]),
        });
    }
    cases
}

fn roots(canary: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for name in [".", "/", "./", "//", "./."] {
        for (what, member) in [
            ("a link", Member::symlink(name, canary)),
            ("a hard link", Member::hard_link(name, "x")),
            ("a file", Member::file(name, "x")),
            ("a device", Member::device(b'3', name, 1, 3)),
        ] {
            cases.push(refused(
                format!("L05: {what} called `{name}` is refused"),
                archive([&Member::file("x", ""), &member]),
                &["at byte 512"],
            ));
        }
    }
    cases.push(applied(
        "L05: the root as a directory is allowed",
        vec![archive([&Member::dir("./").mode(0o700), &Member::dir("/"), &Member::file("x", "x")])],
        &[("/x", text("x"))],
    ));
    cases.push(refused("L05: an entry without a name is refused", archive([&Member::dir("")]), &["no name"]));
    cases
}

fn whiteouts(canary: &str) -> Vec<Case> {
    let below = || {
        archive([
            &Member::dir("d/"),
            &Member::file("d/x", "below"),
            &Member::file("d/sub/y", "below"),
            &Member::file("f", "below"),
            &Member::symlink("l", canary),
        ])
    };
    let mut cases = Vec::new();
    for name in [".wh.", ".wh..", ".wh...", "d/.wh..", "d/.wh..."] {
        cases.push(refused(
            format!("L08: the deletion `{name}` is refused"),
            archive([&Member::file(name, "")]),
            &[name, "whiteout of nothing"],
        ));
    }
    cases.push(refused(
        "L08: something below a deletion is refused",
        archive([&Member::file(".wh.a/b", "")]),
        &["`.wh.a/b`"],
    ));
    let mut over = |name: &str, members: &[Member], seen: &[(&str, Seen)]| {
        cases.push(applied(format!("L08: {name}"), vec![below(), archive(members)], seen));
    };
    let gone = |name: &str| Member::file(name, "");
    over("a file is deleted", &[gone(".wh.f")], &[("/f", Seen::Absent), ("/d/x", text("below"))]);
    over("a directory is deleted", &[gone(".wh.d")], &[("/d", Seen::Absent), ("/d/x", Seen::Absent)]);
    over("a link is deleted, not what it leads to", &[gone(".wh.l")], &[("/l", Seen::Absent)]);
    over("what is missing is deleted", &[gone("new/.wh.none")], &[("/new", Seen::Dir), ("/new/none", Seen::Absent)]);
    over("a deletion in the form of a directory", &[Member::dir(".wh.f/")], &[("/f", Seen::Absent)]);
    over("a deletion with content", &[Member::file(".wh.f", "x")], &[("/f", Seen::Absent)]);
    over("a deletion, then the same name", &[gone(".wh.f"), Member::file("f", "new")], &[("/f", text("new"))]);
    over("the same name, then its deletion", &[Member::file("f", "new"), gone(".wh.f")], &[("/f", text("new"))]);
    over(
        "a deletion, then a directory of the name",
        &[gone(".wh.d"), Member::dir("d/"), Member::file("d/new", "new")],
        &[("/d/new", text("new")), ("/d/x", Seen::Absent)],
    );
    over(
        "a deletion, then something in a directory of the name that is not mentioned",
        &[gone(".wh.d"), Member::file("d/new", "new")],
        &[("/d/new", text("new")), ("/d/x", Seen::Absent)],
    );
    over(
        "a directory, then its deletion",
        &[Member::dir("d/"), Member::file("d/new", "new"), gone(".wh.d")],
        &[("/d/new", text("new")), ("/d/x", Seen::Absent)],
    );
    over(
        "a deletion, a file, then a directory of the name",
        &[gone(".wh.d"), Member::file("d", ""), Member::dir("d/")],
        &[("/d", Seen::Dir), ("/d/x", Seen::Absent)],
    );
    over(
        "a file in place of a directory, then a directory again",
        &[Member::file("d", ""), Member::dir("d/")],
        &[("/d", Seen::Dir), ("/d/x", Seen::Absent)],
    );
    over(
        "an opaque directory keeps its own",
        &[Member::file("d/own", "own"), gone("d/.wh..wh..opq"), Member::file("d/late", "late")],
        &[
            ("/d/own", text("own")),
            ("/d/late", text("late")),
            ("/d/x", Seen::Absent),
            ("/d/sub", Seen::Absent),
            ("/f", text("below")),
        ],
    );
    over(
        "an opaque root keeps its own",
        &[Member::file("own", "own"), Member::file("d/own", "own"), gone(".wh..wh..opq")],
        &[
            ("/own", text("own")),
            ("/d/own", text("own")),
            ("/d/x", Seen::Absent),
            ("/f", Seen::Absent),
            ("/l", Seen::Absent),
        ],
    );
    over(
        "an opaque root by a link",
        &[Member::symlink("here", "."), gone("here/.wh..wh..opq")],
        &[("/here", Seen::Link(".".to_owned())), ("/f", Seen::Absent), ("/d", Seen::Absent)],
    );
    over(
        "the bookkeeping of AUFS means nothing",
        &[gone(".wh..wh.plnk"), gone(".wh..wh.plnk/1.2"), gone(".wh..wh.aufs")],
        &[("/f", text("below")), ("/.wh..wh.plnk", Seen::Absent)],
    );
    cases
}

/// Each kind after each other kind, under the same name.
fn pairs() -> Vec<Case> {
    let member = |kind: &str| match kind {
        "file" => Member::file("x", "file"),
        "dir" => Member::dir("x/"),
        "link" => Member::symlink("x", "base"),
        _ => Member::hard_link("x", "base"),
    };
    let mut cases = Vec::new();
    for first in ["file", "dir", "link", "hard link"] {
        for second in ["file", "dir", "link", "hard link"] {
            let seen = match second {
                "file" => text("file"),
                "dir" => Seen::Dir,
                "link" => Seen::Link("base".to_owned()),
                _ => Seen::Same("/base"),
            };
            cases.push(applied(
                format!("L10: {first}, then {second}: the last one wins, and nothing is written through the first"),
                vec![archive([&Member::file("base", "base"), &member(first), &member(second)])],
                &[("/x", seen), ("/base", text("base"))],
            ));
        }
    }
    cases.push(applied(
        "L10: a file, then a directory with something in it, then a file",
        vec![archive([
            &Member::file("x", "1"),
            &Member::dir("x/"),
            &Member::file("x/y", "2"),
            &Member::file("x", "3"),
        ])],
        &[("/x", text("3")), ("/x/y", Seen::Absent)],
    ));
    cases.push(refused(
        "L10: the directory on the way is removed by a link that leads above it, and is not used any more",
        archive([
            &Member::symlink("a/b/up", "/"),
            &Member::file("a/b/up/a", "now a file"),
            &Member::file("a/b/up/x", "nowhere"),
        ]),
        &["`a/b/up/x`"],
    ));
    cases
}

fn odd_names() -> Vec<Case> {
    let long = "n".repeat(4096);
    let name255 = "n".repeat(255);
    let deep = "a/".repeat(1000);
    let mut cases = vec![
        refused(
            "L14: a component of 4,096 bytes is refused",
            archive([&Member::file("x", "").pax("path", &long)]),
            &["longer than"],
        ),
        refused(
            "L14: a component of 256 bytes is refused",
            archive([&Member::file("x", "").pax("path", "n".repeat(256))]),
            &["255 bytes"],
        ),
        refused(
            "L14: a path of 32 KiB is refused",
            archive([&Member::file("x", "").pax("path", "abc/".repeat(8192))]),
            &["4095 bytes"],
        ),
        refused(
            "L14: a GNU name of 32 KiB is refused",
            archive([&Member::file("x", "").gnu_name("abc/".repeat(8192))]),
            &["4095 bytes"],
        ),
        refused(
            "L14: 20,000 components are refused",
            archive([&Member::dir("x").pax("path", "a/".repeat(20_000))]),
            &["4095 bytes"],
        ),
        refused(
            "L14: 1,025 components are refused",
            archive([&Member::dir("x").pax("path", "a/".repeat(1025))]),
            &["components"],
        ),
        refused(
            "L14: a link target of 5,000 bytes is refused",
            archive([&Member::symlink("x", "").pax("linkpath", "t".repeat(5000))]),
            &["`x`", "4095 bytes"],
        ),
        refused(
            "L14: NUL in a PAX path is refused",
            archive([&Member::file("x", "").pax("path", "a\0b")]),
            &["a\\u{0}b", "NUL"],
        ),
        refused(
            "L14: escape sequences of a refused entry are shown escaped",
            archive([&Member::file("\x1b[2Jx\n\u{85}\u{202e}/../y", "")]),
            &["\\u{1b}[2Jx\\n", "escapes root"],
        ),
        applied(
            "L14: a component of 255 bytes is kept",
            vec![archive([&Member::file("x", "in").pax("path", &name255)])],
            &[(&format!("/{name255}"), text("in"))],
        ),
        applied(
            "L14: 1,001 components are kept",
            vec![archive([&Member::file("x", "in").pax("path", format!("{deep}x"))])],
            &[(&format!("/{deep}x"), text("in"))],
        ),
        applied(
            "L14: a link target of 1,000 bytes is kept",
            vec![archive([&Member::symlink("x", "t".repeat(1000)).pax("linkpath", "t".repeat(1000))])],
            &[("/x", Seen::Link("t".repeat(1000)))],
        ),
    ];
    for (what, name) in [
        ("a newline", &b"new\nline"[..]),
        ("an escape sequence", b"\x1b]0;title\x07"),
        ("spaces and quotes", b" '\" \\ "),
        ("a dash", b"-rf"),
        ("three dots", b"..."),
        ("two spaces and dots", b".. "),
        ("a backslash", b"..\\..\\x"),
    ] {
        let shown = format!("/{}", String::from_utf8_lossy(name));
        cases.push(applied(
            format!("L14: {what} in a name is kept"),
            vec![archive([&Member::file(name, "in")])],
            &[(&shown, text("in"))],
        ));
    }
    cases
}

fn run(who: Who) {
    if let Some(bench) = Bench::new(who) {
        bench.check_all(&cases(bench.canary()));
    }
}

/// L14: the reader of results takes names for text, so this one is looked for in a folder.
#[test]
fn l14_names_that_are_not_utf_8_are_kept() {
    for who in [Who::Root, Who::User] {
        let Some(bench) = Bench::new(who) else { continue };
        let long = [&b"\xff"[..], &[b'n'; 150]].concat();
        let members = [Member::file(b"bad\xff\xfename", "in"), Member::file("x", "in").pax("path", &long)];
        let base = bench.layout("case", &[Blob::new(&archive(&members))]);
        let run = run_within(bench.build("context", &base, "--output=type=local,dest=folder"));
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let folder = bench.engine.work().join("folder");
        for name in [&b"bad\xff\xfename"[..], &long] {
            assert_eq!(fs::read(folder.join(OsStr::from_bytes(name))).unwrap(), b"in");
        }
        let bad = archive([&Member::file(b"bad\xff/../x", "")]);
        let run = run_within(bench.build(
            "context",
            &bench.layout("case", &[Blob::new(&bad)]),
            "--output=type=local,dest=no",
        ));
        fails(&run, 4, &["`bad\\xff/../x`".to_owned()]).unwrap();
        bench.works();
    }
}

#[test]
fn names_as_root() {
    run(Who::Root);
}

#[test]
fn names_as_a_user() {
    run(Who::User);
}

#[test]
fn names_with_one_uid() {
    run(Who::OneUid);
}
