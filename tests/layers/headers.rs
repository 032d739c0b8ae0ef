//! L11 to L13, L18: attributes, sizes, broken archives, ids and times.

use build_engine_testkit::archive::{Form, Member, archive, record, without_end};
use build_engine_testkit::engine::Who;

use crate::{Bench, Case, Expect, Seen, applied, limited, owned, refused, text};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = xattrs();
    cases.extend(sizes());
    cases.extend(forms());
    cases.extend(broken());
    cases.extend(ids_and_times());
    cases
}

fn xattrs() -> Vec<Case> {
    let with = |key: &str, value: &[u8]| archive([&Member::dir("d/").pax(format!("SCHILY.xattr.{key}"), value)]);
    let mut cases = Vec::new();
    for key in [
        "user.overlay.opaque",
        "user.overlay.whiteout",
        "trusted.overlay.opaque",
        "trusted.overlay.redirect",
        "trusted.overlay.metacopy",
        "user.build-engine.override",
        "user.build-engine.links",
    ] {
        cases.push(refused(format!("L11: the attribute {key} is refused"), with(key, b"y"), &["`d/`", key]));
    }
    cases.push(limited(
        "L11: an attribute of 70 KiB is too much",
        with("user.x", &vec![b'x'; 70 << 10]),
        &["extended attributes"],
    ));
    cases.push(limited(
        "L11: attributes of more than 1 MiB are too much",
        archive([&(0..20)
            .fold(Member::dir("d/"), |member, n| member.pax(format!("SCHILY.xattr.user.{n}"), vec![b'x'; 60 << 10]))]),
        &["extended"],
    ));
    cases.push(limited(
        "L11: a PAX header of 2 MiB is too much",
        archive([&Member::dir("d/").pax("comment", vec![b'x'; 2 << 20])]),
        &["extended headers"],
    ));
    cases.push(refused("L11: an attribute without a name is refused", with("", b"x"), &["`d/`", "impossible name"]));
    cases.push(refused(
        "L11: a name of 256 bytes is refused",
        with(&format!("user.{}", "n".repeat(251)), b"x"),
        &["impossible name"],
    ));
    cases.push(refused("L11: a name with NUL is refused", with("user.a\0b", b"x"), &["impossible name"]));
    cases.push(applied(
        "L11: security.selinux is the host's own and left out",
        vec![with("security.selinux", b"x\0")],
        &[("/d", Seen::Dir)],
    ));
    cases.push(applied("L11: an unknown namespace is left out", vec![with("nonsense", b"x")], &[("/d", Seen::Dir)]));
    cases
}

fn sizes() -> Vec<Case> {
    // Content that is a header and a file, to be taken for entries by who loses count.
    let inner = without_end([&Member::file("smuggled", "smuggled")]);
    let not_smuggled = [("/smuggled", Seen::Absent), ("/x", text(&inner)), ("/y", text("y"))];
    let y = Member::file("y", "y");
    let x = || Member::new(b'0', "x").content(&inner);
    let mut cases = vec![
        applied("L12: the size of PAX wins over 0", vec![archive([&x().pax("size", "1024"), &y])], &not_smuggled),
        applied(
            "L12: the size of PAX wins over a smaller one",
            vec![archive([&x().size(512).pax("size", "1024"), &y])],
            &not_smuggled,
        ),
        applied(
            "L12: the size of PAX wins over a larger one",
            vec![archive([&x().size(1536).pax("size", "1024"), &y])],
            &not_smuggled,
        ),
        applied(
            "L12: a size of 0 in PAX wins",
            vec![archive([&Member::new(b'0', "x").size(1024).pax("size", "0"), &y])],
            &[("/x", text("")), ("/y", text("y"))],
        ),
        applied(
            "L12: PAX before a GNU long name counts for the file, not for the name (CVE-2025-62518)",
            vec![archive([
                &Member::new(b'0', "x")
                    .content(&inner)
                    .after(&Member::extended(b'L', "x\0").after(&Member::extended(b'x', record(b"size", b"1024")))),
                &y,
            ])],
            &not_smuggled,
        ),
        applied(
            "L12: PAX after a GNU long name",
            vec![archive([&x().pax("size", "1024").after(&Member::extended(b'L', "x\0")), &y])],
            &not_smuggled,
        ),
        applied("L12: a size in base 256", vec![archive([&x().base256(124..136, 1024), &y])], &not_smuggled),
        applied(
            "L12: a size in octal without an end",
            vec![archive([&x().field(124, b"000000002000"), &y])],
            &not_smuggled,
        ),
        applied("L12: a size between spaces", vec![archive([&x().field(124, b"       2000 "), &y])], &not_smuggled),
        applied(
            "L12: content that looks like the end",
            vec![archive([&Member::file("x", [0; 1024]), &y])],
            &[("/x", text([0; 1024])), ("/y", text("y"))],
        ),
        refused("L12: a negative size is refused", archive([&x().base256(124..136, -1024)]), &["negative", "byte 0"]),
        limited("L12: a size of 2^63 is too much", archive([&x().base256(124..136, 1 << 63)]), &["content in bytes"]),
        refused("L12: a size of 2^80 is refused", archive([&x().base256(124..136, 1 << 80)]), &["byte"]),
        refused(
            "L12: a base 256 that only some know is refused",
            archive([&x().field(124, &[0x81, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0])]),
            &["size is no number"],
        ),
        refused("L12: a size beyond the end is refused", archive([&x().size(1 << 20)]), &["truncated"]),
        refused("L12: a negative size in PAX is refused", archive([&x().pax("size", "-1024")]), &["size"]),
        refused("L12: an empty size in PAX is refused", archive([&x().size(1024).pax("size", "")]), &["empty `size`"]),
        refused(
            "L12: an empty path in PAX is refused",
            archive([&Member::file("x", "").pax("path", "")]),
            &["empty `path`"],
        ),
        refused("L12: a size of two values is refused", archive([&x().pax("size", "10 24")]), &["size"]),
        refused(
            "L12: digits after a line feed are refused",
            archive([&x().field(124, b"\n0000002000\0")]),
            &["size is no number"],
        ),
        refused(
            "L12: a size of spaces is refused",
            archive([&Member::new(b'0', "x").field(124, b"            ")]),
            &["size is no number"],
        ),
        refused(
            "L12: a size that ends in letters is refused",
            archive([&x().field(124, b"00000002000x")]),
            &["size is no number"],
        ),
        refused(
            "L12: a directory with content is refused",
            archive([&Member::dir("d/").size(1024).content(&inner)]),
            &["`d/`", "content"],
        ),
        refused(
            "L12: a link with content is refused",
            archive([&Member::symlink("l", "x").size(1024).content(&inner)]),
            &["`l`", "content"],
        ),
        refused(
            "L12: a link with content by PAX is refused",
            archive([&Member::symlink("l", "x").pax("size", "1024").content(&inner)]),
            &["`l`"],
        ),
        refused(
            "L12: a hard link with content by PAX is refused",
            archive([&Member::file("x", ""), &Member::hard_link("h", "x").pax("size", "1024").content(&inner)]),
            &["`h`", "content"],
        ),
        refused(
            "L12: a path in PAX and another in GNU's form is refused",
            archive([&Member::file("x", "").pax("path", "a").gnu_name("b")]),
            &["two extended headers"],
        ),
        refused(
            "L12: two PAX headers are refused",
            archive([&Member::file("x", "").pax("path", "a").after(&Member::extended(b'x', record(b"path", b"b")))]),
            &["two extended headers"],
        ),
        refused(
            "L12: two GNU names are refused",
            archive([&Member::file("x", "").gnu_name("a").gnu_name("b")]),
            &["two extended headers"],
        ),
        refused(
            "L12: an extended header without an entry is refused",
            archive([&Member::extended(b'x', record(b"path", b"a"))]),
            &["has no entry"],
        ),
        refused(
            "L12: a GNU name without an entry is refused",
            archive([&Member::extended(b'L', "a\0")]),
            &["has no entry"],
        ),
        refused(
            "L12: a global header between PAX and its entry is refused",
            archive([&Member::file("x", "")
                .after(&Member::extended(b'x', record(b"path", b"a")))
                .after(&Member::extended(b'g', record(b"comment", b"a")))]),
            &["global header"],
        ),
        refused(
            "L12: a global header at the end is refused",
            archive([&y, &Member::extended(b'g', record(b"comment", b"a"))]),
            &["has no entry"],
        ),
        applied(
            "L12: a link target that only PAX has",
            vec![archive([&Member::symlink("x", "").pax("linkpath", "\u{fc}")])],
            &[("/x", Seen::Link("\u{fc}".to_owned()))],
        ),
        refused(
            "L12: a slash that PAX takes away is refused",
            archive([&Member::new(0, "d/").pax("path", "d")]),
            &["`d`", "slash"],
        ),
        applied(
            "L12: a comment in a global header means nothing",
            vec![archive([&Member::extended(b'g', record(b"comment", b"a")), &y])],
            &[("/y", text("y"))],
        ),
    ];
    for key in ["path", "size", "linkpath", "uid", "mtime", "SCHILY.xattr.user.x", "GNU.sparse.name"] {
        cases.push(refused(
            format!("L12: `{key}` in a global header is refused"),
            archive([&Member::extended(b'g', record(key.as_bytes(), b"7")), &y]),
            &["global header", key],
        ));
    }
    for (what, content) in [
        ("too short a length", &b"5 path=a\n"[..]),
        ("too long a length", b"99 path=a\n"),
        ("no length", b"path=a\n"),
        ("no value", b"8 path\n\n"),
        ("no line feed", b"9 path=ab"),
        ("a length of 0", b"0 path=a\n"),
        ("a negative length", b"-9 path=a\n"),
        ("a length of many digits", b"99999999999999999999 path=a\n"),
        ("no key", b"5 =a\n"),
        ("NUL", b"\0\0\0\0"),
    ] {
        cases.push(refused(
            format!("L12: a record with {what} is refused"),
            archive([&Member::file("x", "").after(&Member::extended(b'x', content))]),
            &["invalid layer at byte 0"],
        ));
    }
    cases
}

/// What old headers mean differs from reader to reader.
fn forms() -> Vec<Case> {
    vec![
        applied(
            "L12: old headers are read",
            vec![archive([&Member::file("x", "x").form(Form::V7)])],
            &[("/x", text("x"))],
        ),
        applied(
            "L12: GNU's headers are read",
            vec![archive([&Member::file("x", "x").form(Form::Gnu)])],
            &[("/x", text("x"))],
        ),
        applied(
            "L12: a contiguous file is a file",
            vec![archive([&Member::new(b'7', "x").size(1).content("x")])],
            &[("/x", text("x"))],
        ),
        applied(
            "L12: an old directory is a file with a slash",
            vec![archive([&Member::new(0, "d/").form(Form::V7)])],
            &[("/d", Seen::Dir)],
        ),
        refused("L12: a file with a slash is refused", archive([&Member::file("d/", "")]), &["`d/`", "slash"]),
        refused(
            "L12: an old file with a slash is refused",
            archive([&Member::file("d/", "").form(Form::V7)]),
            &["`d/`", "slash"],
        ),
        refused(
            "L12: a slash that only PAX has is refused",
            archive([&Member::new(0, "d").pax("path", "d/")]),
            &["`d/`", "slash"],
        ),
        refused(
            "L12: a prefix in an old header is refused",
            archive([&Member::file("x", "").form(Form::V7).prefix("dir")]),
            &["prefix"],
        ),
        refused(
            "L12: a time where GNU has one and others a prefix is refused",
            archive([&Member::file("x", "").form(Form::Gnu).field(345, b"07346545000\0")]),
            &["prefix"],
        ),
        refused(
            "L12: half a magic and a prefix is refused",
            archive([&Member::file("x", "").field(257, b"ustar9").prefix("dir")]),
            &["prefix"],
        ),
        refused(
            "L12: a device in an old header is refused",
            archive([&Member::device(b'3', "x", 1, 3).form(Form::V7)]),
            &["`x`", "device number"],
        ),
        refused(
            "L12: a device whose number PAX changes is refused",
            archive([&Member::device(b'3', "x", 1, 3).pax("SCHILY.devmajor", "8")]),
            &["device number"],
        ),
        refused(
            "L12: a file with a link target in PAX is refused",
            archive([&Member::file("x", "").pax("linkpath", "y")]),
            &["`x`", "no link"],
        ),
        refused(
            "L12: a file with a GNU link target is refused",
            archive([&Member::file("x", "").gnu_link("y")]),
            &["`x`", "no link"],
        ),
        refused("L12: a volume label is refused", archive([&Member::new(b'V', "label")]), &["label"]),
        refused("L12: a directory dump is refused", archive([&Member::new(b'D', "dump")]), &["dump"]),
        refused("L12: a continued volume is refused", archive([&Member::new(b'M', "part")]), &["part"]),
    ]
}

fn broken() -> Vec<Case> {
    let members = [
        Member::file("a", "hello"),
        Member::dir("d/"),
        Member::file("d/long", "x".repeat(1500)).pax("path", format!("d/{}", "l".repeat(150))),
    ];
    let whole = archive(&members);
    let mut cases = vec![
        applied(
            "L13: more zeros than needed are allowed",
            vec![[&whole[..], &[0; 9 * 512]].concat()],
            &[("/a", text("hello"))],
        ),
        applied(
            "L13: zeros that fill no block are allowed",
            vec![[&whole[..], &[0; 100]].concat()],
            &[("/a", text("hello"))],
        ),
        refused("L13: an empty archive is refused", Vec::new(), &["invalid layer at byte 0", "truncated"]),
        refused("L13: no end", without_end(&members), &["truncated"]),
        refused("L13: half an end", [&without_end(&members)[..], &[0; 512]].concat(), &["truncated"]),
        refused("L13: text is no archive", b"hello, world\n".repeat(100), &["checksum", "byte 0"]),
        refused("L13: garbage after the end", [&whole[..], b"garbage"].concat(), &["follows the end"]),
        refused(
            "L13: garbage in a block after the end",
            [&whole[..], &[0; 700], b"garbage"].concat(),
            &["follows the end"],
        ),
        refused("L13: a second archive after the end", [&whole[..], &whole[..]].concat(), &["follows the end"]),
        refused(
            "L13: a single block of zeros between entries",
            [&without_end(&members)[..], &[0; 512], &whole].concat(),
            &["zero block stands between"],
        ),
        applied(
            "L13: what stands in the padding is nobody's",
            vec![archive([&Member::file("a", "hello").unpadded(), &Member::file("b", "")])],
            &[("/a", text("hello")), ("/b", Seen::Absent)],
        ),
        refused(
            "L13: a checksum of zeros",
            archive([&Member::file("a", "").checksum(b"000000\0 ")]),
            &["checksum", "byte 0"],
        ),
        refused(
            "L13: a checksum of spaces",
            archive([&Member::file("a", "").checksum(b"        ")]),
            &["checksum", "byte 0"],
        ),
        refused(
            "L13: a wrong checksum in the second header",
            archive([&Member::file("a", "hello"), &Member::file("b", "").checksum(b"007777\0 ")]),
            &["checksum", "byte 1024"],
        ),
        refused("L13: an unknown type", archive([&Member::new(b'Z', "x")]), &["`x`", "type 'Z'"]),
        refused("L13: a type that is no letter", archive([&Member::new(0xff, "x")]), &["`x`", "unknown"]),
    ];
    // The end of the cut archive is where it breaks, unless an entry ends there.
    for cut in (0..whole.len()).step_by(512).skip(1) {
        cases.push(refused(
            format!("L13: cut at byte {cut}"),
            whole[..cut].to_vec(),
            &["truncated", &format!("invalid layer at byte {cut}")],
        ));
        cases.push(refused(
            format!("L13: cut in the block before byte {cut}"),
            whole[..cut - 7].to_vec(),
            &["truncated"],
        ));
    }
    cases
}

fn ids_and_times() -> Vec<Case> {
    let file = || Member::file("x", "x");
    let time = |seconds: i64| [("/x", Seen::Time(seconds))];
    let mut cases = vec![
        applied(
            "L18: names that differ in case alone, or in how a letter is composed, are two",
            vec![archive([
                &Member::file("a", "1"),
                &Member::file("A", "2"),
                &Member::file("\u{e9}", "3"),
                &Member::file("e\u{301}", "4"),
                &Member::file("ß", "5"),
                &Member::file("SS", "6"),
            ])],
            &[
                ("/a", text("1")),
                ("/A", text("2")),
                ("/\u{e9}", text("3")),
                ("/e\u{301}", text("4")),
                ("/ß", text("5")),
                ("/SS", text("6")),
            ],
        ),
        refused(
            "L18: the id 2^32-1 is refused",
            archive([&file().pax("uid", "4294967295")]),
            &["`x`", "owner is out of range"],
        ),
        refused("L18: the id 2^32 is refused", archive([&file().pax("gid", "4294967296")]), &["owner is out of range"]),
        refused("L18: a negative id is refused", archive([&file().base256(108..116, -2)]), &["owner is out of range"]),
        refused(
            "L18: an id that is no number is refused",
            archive([&file().pax("uid", "root")]),
            &["owner is out of range"],
        ),
        refused(
            "L18: a time that is no number is refused",
            archive([&file().pax("mtime", "now")]),
            &["time is out of range"],
        ),
        refused(
            "L18: a time of two fractions is refused",
            archive([&file().pax("mtime", "1.2.3")]),
            &["time is out of range"],
        ),
        refused(
            "L18: a time of 2^70 is refused",
            archive([&file().base256(136..148, 1 << 70)]),
            &["time is out of range"],
        ),
        applied("L18: a time before 1970 is kept", vec![archive([&file().base256(136..148, -1)])], &time(-1)),
        applied(
            "L18: a time before 1970 in PAX is kept",
            vec![archive([&file().pax("mtime", "-1000000000")])],
            &time(-1_000_000_000),
        ),
        applied(
            "L18: nanoseconds are no reason to refuse",
            vec![archive([&file().pax("mtime", "1234567890.123456789")])],
            &time(1_234_567_890),
        ),
        applied("L18: nanoseconds before 1970", vec![archive([&file().pax("mtime", "-1.5")])], &time(-2)),
        applied(
            "L18: a directory keeps its time, whatever comes into it later",
            vec![archive([
                &Member::dir("d/").mtime(1_111_111_111),
                &Member::file("d/a", "a"),
                &Member::file("e/b", "b"),
                &Member::file("d/c", "c"),
                &Member::hard_link("d/h", "e/b"),
                &Member::file("d/.wh.gone", ""),
            ])],
            &[("/d", Seen::Time(1_111_111_111)), ("/d/h", text("b"))],
        ),
    ];
    for id in [1000_u64, 65_534, 100_000, 1 << 31, (1 << 32) - 2] {
        for (form, member) in [
            ("PAX", file().pax("uid", id.to_string()).pax("gid", id.to_string())),
            ("base 256", file().base256(108..116, id.into()).base256(116..124, id.into())),
        ] {
            cases.push(applied(
                format!("L18: the id {id} of {form} is kept"),
                vec![archive([&member])],
                &[("/x", Seen::Mode(0o644, id, id))],
            ));
        }
    }
    for (what, seconds) in [
        ("year 2300", 10_413_792_000_i64),
        ("year 3000", 32_503_680_000),
        ("year 1800", -5_364_662_400),
        ("2^60", 1 << 60),
    ] {
        cases.push(Case {
            name: format!("L18: the {what} is kept, or the file system cannot"),
            layers: vec![archive([&file().pax("mtime", seconds.to_string())])],
            expect: Expect::Either(owned(&time(seconds)), vec!["`x`".to_owned(), "cannot keep its time".to_owned()]),
        });
    }
    cases
}

fn run(who: Who) {
    if let Some(bench) = Bench::new(who) {
        bench.check_all(&cases());
    }
}

#[test]
fn headers_as_root() {
    run(Who::Root);
}

#[test]
fn headers_as_a_user() {
    run(Who::User);
}
