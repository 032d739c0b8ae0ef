//! Whatever the engine accepts is the same list of entries for GNU tar, bsdtar and Python's tarfile.
//!
//! The archives are those of all cases, and a few hundred that a generator of pseudo-random numbers puts together. For
//! each one that the engine applies, the three must accept it and agree on names, types, sizes, targets and content,
//! and a plain model that applies Python's list must have the tree that the engine has. What the engine refuses may be
//! anything; so may what [`DIFFERENCES`] explains.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use build_engine_testkit::archive::{Form, Member, archive, record};
use build_engine_testkit::engine::Who;
use build_engine_testkit::image::{Kind, Tree};
use build_engine_testkit::sha256;

use crate::{Bench, Blob, all_cases};

/// An entry as a reader lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    /// As in `ls -l`, and `h` for a hard link.
    kind: char,
    name: Vec<u8>,
    size: u64,
    link: Vec<u8>,
}

/// What a reader makes of an archive: its entries, and the content of all files one after another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reading {
    entries: Vec<Listed>,
    content: String,
}

/// Archives that the engine applies although one of the others reads something else or refuses, by a part of their
/// name, with the reader and the reason.
const DIFFERENCES: &[(&str, &str, &str)] = &[(
    "a link target that only PAX has",
    "bsdtar",
    "libarchive 3.6 takes a target from PAX only where the header has one too. Go's archive/tar leaves the header's empty for \
     a target without an ASCII character, so that images have such links; GNU tar and Python read them, and so do we",
)];

/// What bsdtar says about a name in PAX that is not UTF-8. It lists the name as it is, as all others do, and Go writes
/// such names too, so this complaint alone is no refusal.
const NOT_UTF_8: [&str; 3] = [
    "bsdtar: Pathname can't be converted from UTF-8 to current locale.",
    "bsdtar: Linkname can't be converted from UTF-8 to current locale.",
    "bsdtar: Error exit delayed from previous errors.",
];

/// Reads an archive, or says why not.
type Reader = fn(&Path) -> Result<Reading, String>;
/// A reading and the digest of each entry's content.
type WithDigests = Result<(Reading, Vec<String>), String>;

const PYTHON: &str = r#"
import hashlib, json, os, sys, tarfile
kinds = {b'0': '-', b'\0': '-', b'7': '-', b'1': 'h', b'2': 'l', b'3': 'c', b'4': 'b', b'5': 'd', b'6': 'p'}
for path in sys.argv[1:]:
    try:
        with tarfile.open(path, 'r:', encoding='utf-8', errors='surrogateescape') as archive:
            entries, whole = [], hashlib.sha256()
            for member in archive:
                kind = kinds.get(member.type, '?')
                content = archive.extractfile(member).read() if kind == '-' else b''
                whole.update(content)
                entries.append([kind, os.fsencode(member.name).hex(), member.size, os.fsencode(member.linkname).hex(),
                                hashlib.sha256(content).hexdigest()])
        print(json.dumps({'entries': entries, 'content': whole.hexdigest()}))
    except Exception as error:
        print(json.dumps({'error': repr(error)}))
"#;

/// Reads archives as Python's tarfile does; beside each listing, the digests of the contents.
fn python(paths: &[&Path]) -> Option<Vec<WithDigests>> {
    // UTF-8 mode: names are bytes to us, whatever the locale of the test.
    let output = Command::new("python3").args(["-X", "utf8", "-c", PYTHON]).args(paths).output().ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let readings: Vec<_> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            if let Some(error) = line["error"].as_str() {
                return Err(error.to_owned());
            }
            let mut digests = Vec::new();
            let mut entries = Vec::new();
            for entry in line["entries"].as_array().unwrap() {
                let kind = entry[0].as_str().unwrap().chars().next().unwrap();
                let link = if matches!(kind, 'l' | 'h') { unhex(entry[3].as_str().unwrap()) } else { Vec::new() };
                let size = if kind == '-' { entry[2].as_u64().unwrap_or(u64::MAX) } else { 0 };
                entries.push(Listed { kind, name: unhex(entry[1].as_str().unwrap()), size, link });
                digests.push(entry[4].as_str().unwrap().to_owned());
            }
            Ok((Reading { entries, content: line["content"].as_str().unwrap().to_owned() }, digests))
        })
        .collect();
    assert_eq!(readings.len(), paths.len());
    Some(readings)
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
}

/// Runs a reader twice: for its listing, and for the contents.
fn listing_and_content(
    program: &str,
    list: &[&str],
    content: &[&str],
    path: &Path,
) -> Result<(Vec<u8>, String), String> {
    let run = |args: &[&str]| {
        let mut command = Command::new(program);
        command.env_clear().env("LC_ALL", "C.UTF-8").env("PATH", "/usr/bin:/bin").env("TZ", "UTC").args(args).arg(path);
        let output = command.output().map_err(|error| error.to_string())?;
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        let harmless = complaint.lines().all(|line| NOT_UTF_8.contains(&line));
        if output.status.success() || (harmless && !complaint.is_empty()) { Ok(output.stdout) } else { Err(complaint) }
    };
    Ok((run(list)?, sha256(&run(content)?)))
}

/// GNU tar: `-rw-r--r-- 0/0               5 2001-09-09 01:46:40 "name" -> "target"`.
fn gnu_tar(path: &Path) -> Result<Reading, String> {
    let list = ["--quoting-style=c", "-P", "--numeric-owner", "--full-time", "-tvf"];
    let (listing, content) = listing_and_content("tar", &list, &["-P", "-xOf"], path)?;
    let mut entries = Vec::new();
    for line in listing.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let (words, rest) = words(line, 5)?;
        let kind = if words[0].starts_with('C') { '-' } else { words[0].chars().next().unwrap_or('?') };
        let (name, rest) = quoted(rest)?;
        let link = match rest {
            b"" => Vec::new(),
            _ => {
                let target =
                    rest.strip_prefix(b" -> ").or_else(|| rest.strip_prefix(b" link to ")).ok_or("no target")?;
                quoted(target)?.0
            }
        };
        entries.push(Listed { kind, name, size: size_of(kind, &words[2])?, link });
    }
    Ok(Reading { entries, content })
}

/// bsdtar: `-rw-r--r--  0 0      0           5 Sep  9  2001 name -> target`, names escaped as in C.
fn bsdtar(path: &Path) -> Result<Reading, String> {
    let (listing, content) = listing_and_content("bsdtar", &["--numeric-owner", "-tvf"], &["-P", "-xOf"], path)?;
    let mut entries = Vec::new();
    for line in listing.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let (words, rest) = words(line, 8)?;
        let kind = words[0].chars().next().unwrap_or('?');
        let separator: &[u8] = match kind {
            'l' => b" -> ",
            'h' => b" link to ",
            _ => b"",
        };
        let (name, link) = match separator {
            b"" => (rest, &b""[..]),
            _ => match rest.windows(separator.len()).position(|window| window == separator) {
                Some(at) => (&rest[..at], &rest[at + separator.len()..]),
                None => (rest, &b""[..]),
            },
        };
        entries.push(Listed { kind, name: unescape(name), size: size_of(kind, &words[4])?, link: unescape(link) });
    }
    Ok(Reading { entries, content })
}

/// The first words of a line, and what follows one space after them.
fn words(line: &[u8], count: usize) -> Result<(Vec<String>, &[u8]), String> {
    let mut words = Vec::new();
    let mut rest = line;
    for _ in 0..count {
        let start = rest.iter().position(|byte| *byte != b' ').ok_or("a short line")?;
        let end = rest[start..].iter().position(|byte| *byte == b' ').ok_or("a short line")? + start;
        words.push(String::from_utf8_lossy(&rest[start..end]).into_owned());
        rest = &rest[end..];
    }
    Ok((words, &rest[1..]))
}

fn size_of(kind: char, word: &str) -> Result<u64, String> {
    if kind == '-' { word.parse().map_err(|_| format!("`{word}` is no size")) } else { Ok(0) }
}

/// The text between the quotes that `text` begins with, and the rest.
fn quoted(text: &[u8]) -> Result<(Vec<u8>, &[u8]), String> {
    let inner = text.strip_prefix(b"\"").ok_or("no quote")?;
    let mut at = 0;
    while *inner.get(at).ok_or("no end of a quote")? != b'"' {
        at += if inner[at] == b'\\' { 2 } else { 1 };
    }
    Ok((unescape(&inner[..at]), &inner[at + 1..]))
}

fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'\\' {
            plain.push(*byte);
            continue;
        }
        let (meant, used) = match after {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
                ((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'), 3)
            }
            [b'a', ..] => (7, 1),
            [b'b', ..] => (8, 1),
            [b't', ..] => (b'\t', 1),
            [b'n', ..] => (b'\n', 1),
            [b'v', ..] => (11, 1),
            [b'f', ..] => (12, 1),
            [b'r', ..] => (b'\r', 1),
            [other, ..] => (*other, 1),
            [] => (b'\\', 0),
        };
        plain.push(meant);
        rest = &after[used..];
    }
    plain
}

/// Readers differ in whether they show `./` and a directory's slash.
fn normal(reading: &Reading) -> Reading {
    let mut reading = reading.clone();
    for entry in &mut reading.entries {
        let parts: Vec<&[u8]> =
            entry.name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
        entry.name = parts.join(&b'/');
    }
    reading
}

/// Applies Python's list as a layer without layers below. `None` where that depends on links on the way.
fn model(reading: &Reading, digests: &[String]) -> Option<BTreeMap<String, Kind>> {
    let mut paths: BTreeMap<String, Kind> = BTreeMap::new();
    let path_of = |name: &[u8]| {
        let name = String::from_utf8_lossy(name).into_owned();
        let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        parts.iter().map(|part| format!("/{part}")).collect::<String>()
    };
    for (entry, digest) in reading.entries.iter().zip(digests) {
        let path = path_of(&entry.name);
        let Some((parent, base)) = path.rsplit_once('/') else { continue };
        let ways: Vec<usize> = path.match_indices('/').map(|(at, _)| at).skip(1).collect();
        if path.contains("/.wh..wh.") {
            continue;
        }
        for way in ways {
            match paths.entry(path[..way].to_owned()).or_insert(Kind::Directory) {
                Kind::Directory => {}
                _ => return None,
            }
        }
        if base.starts_with(".wh.") {
            let _ = parent;
            continue;
        }
        let kind = match entry.kind {
            '-' => Kind::File { size: entry.size, sha256: digest.clone() },
            'd' => Kind::Directory,
            'l' => Kind::Symlink(String::from_utf8_lossy(&entry.link).into_owned()),
            'p' => Kind::Fifo,
            'h' => match paths.get(&path_of(&entry.link)) {
                Some(kind) => kind.clone(),
                None => return None,
            },
            // The numbers of devices are compared by the cases.
            _ => return None,
        };
        if kind != Kind::Directory || paths.get(&path).is_some_and(|found| *found != Kind::Directory) {
            let below = format!("{path}/");
            paths.retain(|other, _| *other != path && !other.starts_with(&below));
        }
        paths.insert(path, kind);
    }
    Some(paths)
}

fn tree_of(tree: &Tree) -> BTreeMap<String, Kind> {
    tree.iter().map(|(path, inode)| (path.to_owned(), inode.kind.clone())).filter(|(path, _)| path != "/").collect()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).unwrap()).unwrap()
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn of<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

fn generated(random: &mut Random) -> Vec<u8> {
    let mut members = Vec::new();
    let tame = random.one_in(3);
    for _ in 0..1 + random.below(6) {
        let member = some_member(random);
        let member = if tame || !random.one_in(2) { member } else { twisted(member, random) };
        members.push(member);
        if !tame && random.one_in(12) {
            let key = random.of(&["comment", "path", "size", "VENDOR.x", "uname"]);
            members.push(Member::extended(b'g', record(key.as_bytes(), b"7")));
        }
    }
    let mut bytes = archive(&members);
    if !tame && random.one_in(20) {
        bytes.extend(random.of(&[vec![0; 512], vec![0; 77], b"x".to_vec(), archive(&members)]));
    }
    if !tame && random.one_in(20) {
        bytes.truncate(random.below(bytes.len() / 512 + 1) * 512);
    }
    bytes
}

fn some_name(random: &mut Random) -> Vec<u8> {
    let long = "l".repeat(120);
    let deep = format!("{}/{}", "p".repeat(60), "q".repeat(80));
    random.of(&[
        b"a".to_vec(),
        b"b".to_vec(),
        b"d".to_vec(),
        b"d/x".to_vec(),
        b"./d/y".to_vec(),
        b"/e//f".to_vec(),
        b"g/h/i".to_vec(),
        "\u{fc}n\u{ef}".as_bytes().to_vec(),
        b"bad\xff".to_vec(),
        b"sp ace\ttab".to_vec(),
        b".wh.gone".to_vec(),
        long.into_bytes(),
        deep.into_bytes(),
    ])
}

fn some_member(random: &mut Random) -> Member {
    let name = some_name(random);
    let content = vec![b'c'; random.of(&[0, 1, 5, 511, 512, 513, 1024])];
    let member = match random.below(10) {
        0..=4 => Member::file(&name, &content),
        5 | 6 => Member::dir([&name[..], b"/"].concat()),
        7 => Member::symlink(&name, random.of(&["a", "d/x", "/nowhere", "../up"])),
        8 => Member::hard_link(&name, random.of(&["a", "b", "d/x"])),
        _ => Member::new(b'6', &name),
    };
    let member = member.mode(random.next() & 0o7777).mtime(random.next() & 0x7fff_ffff);
    let member = member.owner(random.next() & 0xffff, random.next() & 0xffff);
    if name.len() > 100 || random.one_in(8) {
        match random.below(3) {
            0 => member.gnu_name(&name),
            1 if name.contains(&b'/') && name.len() > 100 => {
                let slash = name.iter().rposition(|byte| *byte == b'/').unwrap();
                member.name(&name[slash + 1..]).prefix(&name[..slash])
            }
            _ => member.pax("path", &name),
        }
    } else {
        member
    }
}

/// One thing that is strange, or wrong.
fn twisted(member: Member, random: &mut Random) -> Member {
    let number = random.of(&[0_u64, 1, 5, 512, 513, 1024, 1536]);
    let padded = format!("{number:>11o} ");
    let size_record = record(b"size", number.to_string().as_bytes());
    match random.below(34) {
        0 => member.size(number),
        1 => member.pax("size", number.to_string()),
        2 => member.base256(124..136, number.into()),
        3 => member.field(124, padded.as_bytes()),
        4 => member.field(124, b"            "),
        5 => member.field(124, b"\0\0\0\0\0\0\0\0\0\0\0\0"),
        6 => member.field(124, b"0000000001x\0"),
        7 => member.field(124, b"\n0000000010\0"),
        8 => member.form(Form::Gnu),
        9 => member.form(Form::V7),
        10 => member.form(random.of(&[Form::Gnu, Form::V7])).prefix("pre"),
        11 => member.prefix("pre/fix"),
        12 => member.field(257, b"ustar9"),
        13 => member
            .field(156, &[random.of(&[0, b'0', b'7', b'1', b'2', b'5', b'S', b'V', b'D', b'M', b'N', b'A', b's'])]),
        14 => member.name("dir/").field(156, &[random.of(&[0, b'0', b'7', b'1', b'2', b'6'])]),
        15 => member.pax("path", random.of(&["p", "p/", "./p", "", "/p"])),
        16 => member.pax("linkpath", random.of(&["a", "", "d"])),
        17 => member.gnu_name(random.of(&["n", "n/", "", "d/n"])),
        18 => member.gnu_link(random.of(&["a", "", "d"])),
        19 => member.gnu_name("one").gnu_name("two"),
        20 => member.gnu_name("one").pax("path", random.of(&["one", "two"])),
        21 => member.pax("path", "one").pax("path", "two"),
        22 => member.after(&Member::extended(b'x', &size_record)),
        23 => member.after(&Member::extended(b'L', "moved\0").after(&Member::extended(b'x', &size_record))),
        24 => member.after(&Member::extended(b'x', &size_record).after(&Member::extended(b'L', "moved\0"))),
        25 => member.after(&Member::extended(random.of(b"XxgLK"), random.of(&[&b""[..], b"\0", b"x", b"9 path=ab"]))),
        26 => member.checksum(random.of(&[b"000000\0 ", b"        ", b"0000000\0"])),
        27 => member.pax("mtime", random.of(&["1.5", "-1", "", "x", "1e3", " 5"])),
        28 => member.pax("uid", random.of(&["5", "-5", "", "x", "5.0"])),
        29 => member.pax(random.of(&["SCHILY.realsize", "GNU.sparse.size", "GNU.sparse.name", "SUN.holesdata"]), "3"),
        30 => member.pax("hdrcharset", random.of(&["BINARY", "ISO-IR 10646 2000 UTF-8"])),
        31 => member
            .field(108, random.of(&[b"       \0", b"        ", b"-1\0\0\0\0\0\0", b"1 2\0\0\0\0\0", b" 12    \0"])),
        32 => member.link("a"),
        _ => member.unpadded(),
    }
}

#[test]
fn whatever_is_accepted_is_the_same_list_for_every_reader() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let dir = bench.engine.work().join("archives");
    fs::create_dir(&dir).unwrap();
    let mut archives: Vec<(String, Vec<u8>)> = Vec::new();
    for case in all_cases(bench.canary()) {
        for (index, layer) in case.layers.into_iter().enumerate() {
            archives.push((format!("{} (layer {index})", case.name), layer));
        }
    }
    let mut random = Random(20_261_126);
    archives.extend((0..300).map(|n| (format!("generated archive {n}"), generated(&mut random))));

    // Which ones the engine accepts, alone.
    let mut accepted = Vec::new();
    for (index, (name, bytes)) in archives.iter().enumerate() {
        let base = bench.layout("case", &[Blob::new(bytes)]);
        let (run, tree) = bench.tree(&base);
        match (run.code, tree) {
            (Some(0), Some(tree)) => {
                let path = dir.join(format!("{index}.tar"));
                fs::write(&path, bytes).unwrap();
                accepted.push((name, path, tree));
            }
            (Some(4 | 5), _) => {}
            (code, _) => panic!("{name}: ended with {code:?}: {}", run.stderr),
        }
    }
    bench.harmless().unwrap();

    let paths: Vec<&Path> = accepted.iter().map(|(_, path, _)| path.as_path()).collect();
    let python = python(&paths);
    let has = |program: &str| {
        let there = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
        if !there {
            eprintln!("skipped: nothing is compared with {program}, which is not installed");
        }
        there
    };
    let readers: Vec<(&str, Reader)> =
        [("tar", gnu_tar as Reader), ("bsdtar", bsdtar)].into_iter().filter(|(program, _)| has(program)).collect();
    if python.is_none() {
        eprintln!("skipped: nothing is compared with Python's tarfile: there is no python3");
    }
    let mut wrong = Vec::new();
    let mut modelled = 0;
    for (index, (name, path, tree)) in accepted.iter().enumerate() {
        let mut readings: Vec<(&str, Result<Reading, String>)> =
            readers.iter().map(|(program, read)| (*program, read(path).map(|reading| normal(&reading)))).collect();
        if let Some(python) = &python {
            if let Ok((reading, digests)) = &python[index]
                && reading.entries.iter().all(|entry| str::from_utf8(&entry.name).is_ok())
                && let Some(model) = model(reading, digests)
            {
                modelled += 1;
                let ours = tree_of(tree);
                if ours != model {
                    wrong.push(format!("{name}: the engine has\n    {ours:?}\nnot\n    {model:?}"));
                }
            }
            readings.push(("python", python[index].as_ref().map(|(reading, _)| normal(reading)).map_err(Clone::clone)));
        }
        readings.retain(|(program, _)| {
            !DIFFERENCES.iter().any(|(part, reader, _)| name.contains(part) && program == reader)
        });
        for pair in readings.windows(2) {
            if pair[0].1.is_err() || pair[0].1 != pair[1].1 {
                wrong.push(format!(
                    "{name}: {} reads\n    {:?}\n{} reads\n    {:?}",
                    pair[0].0, pair[0].1, pair[1].0, pair[1].1
                ));
                break;
            }
        }
    }
    eprintln!(
        "{} archives: {} accepted, {} refused; {modelled} of the accepted compared with the model",
        archives.len(),
        accepted.len(),
        archives.len() - accepted.len()
    );
    assert!(wrong.is_empty(), "{} archives are read differently:\n{}", wrong.len(), wrong.join("\n\n"));
}
