//! L09, L15, L16, L20, L21: too much of something. Time, memory and disk stay bounded.

use std::fs;
use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use build_engine_testkit::archive::{Member, archive, without_end};
use build_engine_testkit::engine::{Run, Who};
use build_engine_testkit::sha256;

use crate::{Bench, Blob, Seen, fails, full, has, last_lines, owned, run_within, text};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// Prints the peak of the memory of the largest process that a command starts, and hands on how it ended.
const MEASURE: &str = "import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
open(sys.argv[1], 'w').write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)";

struct Measured {
    run: Run,
    took: Duration,
    /// `None` where there is no Python to measure.
    peak_mib: Option<u64>,
}

/// Builds a tar of the base, or the context's image into the store.
fn measured(bench: &Bench, base: &str, output: &str) -> Measured {
    let command = bench.build("context", base, output);
    let report = bench.engine.work().join("peak");
    let mut wrapped = Command::new("python3");
    wrapped.args(["-c", MEASURE]).arg(&report).arg(command.get_program()).args(command.get_args());
    wrapped.current_dir(bench.engine.work()).env_clear();
    for (name, value) in command.get_envs() {
        wrapped.envs(value.map(|value| (name, value)));
    }
    let python = Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success());
    let began = Instant::now();
    if !python {
        eprintln!("skipped: memory is not measured without python3");
    }
    let run = run_within(if python { wrapped } else { command });
    let took = began.elapsed();
    let peak_mib = fs::read_to_string(&report).ok().and_then(|kib| kib.parse::<u64>().ok()).map(|kib| kib >> 10);
    Measured { run, took, peak_mib }
}

impl Measured {
    fn within(&self, name: &str, seconds: u64, mib: u64) {
        eprintln!("{name}: {:.1} s, {} MiB at most", self.took.as_secs_f64(), self.peak_mib.unwrap_or_default());
        assert!(self.took < Duration::from_secs(seconds), "{name} took {:?}", self.took);
        assert!(self.peak_mib.is_none_or(|peak| peak < mib), "{name} took {:?} MiB", self.peak_mib);
    }
}

/// Bytes of the files of the store, as they lie on the disk.
fn disk_usage(bench: &Bench) -> u64 {
    let output = Command::new("du").args(["-sk"]).arg(bench.engine.store()).output().unwrap();
    // There is no store before the first build.
    String::from_utf8_lossy(&output.stdout).split_whitespace().next().map_or(0, |kib| kib.parse::<u64>().unwrap() << 10)
}

fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A layer whose tar is compressed in one gzip member.
fn gzip_blob(tar: &[u8]) -> Blob {
    Blob::compressed(gzip(tar, 1), GZIP, sha256(tar))
}

const TO_TAR: &str = "--output=type=tar,dest=out.tar";

fn refused_as_too_much(bench: &Bench, name: &str, blob: Blob, codes: &[i32], parts: &[&str]) {
    let before = disk_usage(bench);
    let blobs = [blob];
    let base = bench.layout("case", &blobs);
    let measured = measured(bench, &base, TO_TAR);
    let parts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
    let outcome = codes.iter().map(|code| fails(&measured.run, *code, &parts)).find(Result::is_ok);
    assert!(outcome.is_some(), "{name}: {:?}: {}", measured.run.code, last_lines(&measured.run.stderr));
    bench.harmless().unwrap();
    bench.left_no_blob(&blobs).unwrap();
    // Other tests run at the same time: this is about hanging, and about memory.
    measured.within(name, 100, 256);
    let grown = disk_usage(bench).saturating_sub(before);
    assert!(grown < 1 << 20, "{name}: the store has grown by {grown} bytes");
}

fn header_of(size: u64) -> Vec<u8> {
    without_end([&Member::new(b'0', "big").base256(124..136, size.into())])
}

fn bombs(who: Who) {
    let Some(bench) = Bench::new(who) else { return };
    // The database of the store is made by the first build.
    bench.works();
    let no_diff_id = || sha256(b"never computed");
    let zeros = vec![0; 64 << 20];
    // 10 GiB of zeros in 10 MiB, as members of 64 MiB (shorter ones do not reach 1000 to 1), and some in a single member.
    let mut bomb = gzip(&header_of(10 << 30), 9);
    bomb.extend(gzip(&zeros, 9).repeat(160));
    let blob = Blob::compressed(bomb, GZIP, no_diff_id());
    refused_as_too_much(&bench, "L15: 10 GiB in 10 MiB of gzip", blob, &[5], &["expansion"]);
    let mut long = header_of(400 << 20);
    long.resize(300 << 20, 0);
    let blob = Blob::compressed(gzip(&long, 9), GZIP, no_diff_id());
    refused_as_too_much(&bench, "L15: 300 MiB in one gzip member", blob, &[5, 4], &[]);
    // Blocks of one repeated byte: a magic, a window of 1 MiB, and blocks of 128 KiB in four bytes each.
    let mut rle = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 10 << 3];
    let header = header_of(10 << 30);
    rle.extend((u32::try_from(header.len()).unwrap() << 3).to_le_bytes()[..3].iter());
    rle.extend(&header);
    for _ in 0..80 << 10 {
        rle.extend(((128_u32 << 10 << 3) | (1 << 1)).to_le_bytes()[..3].iter());
        rle.push(0);
    }
    let blob = Blob::compressed(rle, ZSTD, no_diff_id());
    refused_as_too_much(&bench, "L15: 10 GiB in 320 KiB of zstd", blob, &[5], &["expansion"]);
    // A frame of one raw block whose header asks for a window of 2 GiB.
    let tar = archive([&Member::file("x", "x")]);
    let mut wide = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3];
    wide.extend(((u32::try_from(tar.len()).unwrap() << 3) | 1).to_le_bytes()[..3].iter());
    wide.extend(&tar);
    let blob = Blob::compressed(wide, ZSTD, sha256(&tar));
    refused_as_too_much(&bench, "L15: zstd with a window of 2 GiB", blob, &[5], &["memory"]);
    let blob = Blob::compressed(xz_with_dictionary(40), GZIP, no_diff_id());
    refused_as_too_much(&bench, "L15: xz with a dictionary of 4 GiB", blob, &[5], &["memory"]);
    let mut named = vec![0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 255];
    named.extend(vec![b'n'; 1 << 20]);
    named.push(0);
    named.extend(&gzip(&tar, 1)[10..]);
    let blob = Blob::compressed(named, GZIP, sha256(&tar));
    refused_as_too_much(&bench, "L15: gzip with a name of 1 MiB", blob, &[4, 5], &["decompressed"]);
    let blob = Blob::compressed(gzip(b"", 1), GZIP, sha256(b""));
    refused_as_too_much(&bench, "L15: gzip of nothing", blob, &[4], &["truncated"]);
    let blob = Blob::compressed(gzip(&gzip(&tar, 1), 1), GZIP, sha256(&tar));
    refused_as_too_much(&bench, "L15: gzip in gzip", blob, &[4], &["invalid layer"]);
    let cut = gzip(&tar, 1);
    let blob = Blob::compressed(cut[..cut.len() - 5].to_vec(), GZIP, sha256(&tar));
    refused_as_too_much(&bench, "L15: gzip cut before its checksum", blob, &[4], &["decompressed"]);
    let blob = Blob::compressed([&gzip(&tar, 1)[..], b"garbage"].concat(), GZIP, sha256(&tar));
    refused_as_too_much(&bench, "L15: garbage after gzip", blob, &[4], &["invalid layer"]);

    // Many small members are slow, not wrong.
    let count = 100_000;
    let mut content = header_of(512 * (count - 1));
    content.resize(512 * usize::try_from(count).unwrap() + 1024, 0);
    let mut members = gzip(&content[..512], 1);
    members.extend(gzip(&content[512..1024], 1).repeat(usize::try_from(count).unwrap() - 1));
    members.extend(gzip(&[0; 1024], 1));
    let base = bench.layout("case", &[Blob::compressed(members, GZIP, sha256(&content))]);
    let many = measured(&bench, &base, TO_TAR);
    assert_eq!(many.run.code, Some(0), "{}", many.run.stderr);
    many.within("L15: 100,000 gzip members", 100, 256);

    for (name, blob, codes) in [
        ("L16: a file of 1 TiB that has one block", [header_of(1 << 40), vec![0; 512]].concat(), &[5][..]),
        ("L16: a file of 8 EiB that has one block", [header_of((1 << 63) - 1), vec![0; 512]].concat(), &[5]),
        ("L16: 1 TiB by PAX", archive([&Member::new(b'0', "big").pax("size", (1_u64 << 40).to_string())]), &[5]),
        ("L16: 200 files of 1 GiB that have nothing", sum_of_files(), &[4, 5]),
        (
            "L16: a sparse file of 8 EiB in GNU's form",
            archive([&Member::new(b'S', "big").base256(483..495, 1 << 62)]),
            &[5],
        ),
        (
            "L16: a sparse file of 8 EiB in PAX",
            archive([&Member::new(b'0', "big")
                .pax("GNU.sparse.major", "1")
                .pax("GNU.sparse.realsize", (1_u64 << 62).to_string())]),
            &[5],
        ),
    ] {
        refused_as_too_much(&bench, name, Blob::new(&blob), codes, &[]);
    }
    bench.works();
}

fn sum_of_files() -> Vec<u8> {
    let first = header_of(50 << 30);
    [first, vec![0; 512]].concat()
}

#[test]
fn l15_l16_bombs_as_root() {
    bombs(Who::Root);
}

/// An xz file whose only block says that it needs the dictionary `property`; `40` is 4 GiB.
fn xz_with_dictionary(property: u8) -> Vec<u8> {
    let mut file = b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4\x46".to_vec();
    let header = [0x02, 0x00, 0x21, 0x01, property, 0, 0, 0];
    file.extend(header);
    file.extend(crc32(&header).to_le_bytes());
    file.extend([0x01, 0x00, 0x05]);
    file.extend(b"hello\n\0\0");
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

/// L09 (CVE-2026-95838): the time is linear in the number of markers.
#[test]
fn l09_opaque_markers_without_end() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let count = if full() { 1_000_000 } else { 50_000 };
    let below = archive(&(0..1000).map(|n| Member::file(format!("d/{n}"), "x")).collect::<Vec<_>>());
    for (name, path) in [("a directory", "d/.wh..wh..opq"), ("the root", ".wh..wh..opq")] {
        let mut tar = Member::file("d/own", "own").bytes();
        tar.extend(Member::file(path, "").bytes().repeat(count));
        tar.resize(tar.len() + 1024, 0);
        let base = bench.layout("case", &[Blob::new(&below), gzip_blob(&tar)]);
        let measured = measured(&bench, &base, TO_TAR);
        assert_eq!(measured.run.code, Some(0), "{}", measured.run.stderr);
        let out = fs::File::open(bench.engine.work().join("out.tar")).unwrap();
        let tree = build_engine_testkit::image::Tree::from_tar(out).unwrap();
        has(&tree, &owned(&[("/d/own", text("own")), ("/d/1", Seen::Absent)])).unwrap();
        measured.within(&format!("L09: {count} opaque markers for {name}"), 100, 256);
    }
    bench.works();
}

/// L21: memory does not grow with the number of entries.
#[test]
fn l21_empty_files_without_end() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let count = if full() { 2_000_000 } else { 50_000 };
    let mut tar = Vec::new();
    for n in 0..count {
        tar.extend(Member::file(format!("d{}/{n}", n / 10_000), "").bytes());
    }
    // Directories, whose times are set when nothing comes into them any more, and names that ask for directories.
    for n in 0..count / 20 {
        tar.extend(Member::dir(format!("e/{n}/")).bytes());
        tar.extend(Member::file(format!("f/{n}/x"), "").bytes());
    }
    tar.resize(tar.len() + 1024, 0);
    let base = bench.layout("case", &[gzip_blob(&tar)]);
    drop(tar);
    let measured = measured(&bench, &base, "--tag=many");
    assert_eq!(measured.run.code, Some(0), "{}", measured.run.stderr);
    measured.within(&format!("L21: {count} empty files"), if full() { 600 } else { 100 }, 200);
    bench.works();
}

/// L20: an overlay takes 500 layers; more are folded, and far more are refused.
fn many_layers(who: Who, counts: &[usize]) {
    let Some(bench) = Bench::new(who) else { return };
    for &count in counts {
        let blobs: Vec<Blob> = (0..count)
            .map(|n| {
                Blob::new(&archive([
                    &Member::file(format!("f{n}"), n.to_string()),
                    &Member::file("last", n.to_string()),
                ]))
            })
            .collect();
        let base = bench.layout("case", &blobs);
        let began = Instant::now();
        let (run, tree) = bench.tree(&base);
        eprintln!("L20 {who:?}: {count} layers: {:.1} s", began.elapsed().as_secs_f64());
        match tree {
            Some(tree) => {
                let last = (count - 1).to_string();
                has(&tree, &owned(&[("/f0", text("0")), (&format!("/f{last}"), text(&last)), ("/last", text(&last))]))
                    .unwrap();
            }
            None => {
                assert!(count > 1000, "{count} layers: {}", run.stderr);
                fails(&run, 5, &["layers of one image".to_owned()]).unwrap();
            }
        }
    }
    bench.works();
}

#[test]
fn l20_hundreds_of_layers_as_root() {
    many_layers(Who::Root, &[499, 500, 501, if full() { 10_000 } else { 1_010 }]);
}

#[test]
fn l20_hundreds_of_layers_as_a_user() {
    if full() {
        many_layers(Who::User, &[501]);
    } else {
        eprintln!("skipped: L20 as a user, without BUILD_ENGINE_FULL=1");
    }
}
