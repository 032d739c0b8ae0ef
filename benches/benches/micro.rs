//! The parts that a build's time goes into, one by one: `cargo bench -p build-engine-bench`.

use std::fs;
use std::hint::black_box;

use build_engine_oci::Digest;
use build_engine_rootfs::Tree;
use build_engine_solver::{CacheKey, KeyPart};
use build_engine_store::content_hash::{ContentHash, Listing, Question};
use build_engine_store::copy::View;
use build_engine_store::layer::compress::Compression;
use build_engine_store::layer::{self, KnownFrames, TreeEntries, WriteOptions};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};

const MEBIBYTE: usize = 1 << 20;

fn main() {
    divan::main();
}

/// A tree of small files, 100 in a folder.
fn files(count: usize) -> (tempfile::TempDir, Tree) {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    for number in 0..count {
        let folder = dir.path().join(format!("d{}", number / 100));
        if number % 100 == 0 {
            fs::create_dir(&folder).expect("folders can be made");
        }
        let text = format!("line {number}\n").repeat(300);
        fs::write(folder.join(format!("f{number}")), text).expect("files can be written");
    }
    let tree = Tree::open(dir.path()).expect("the folder can be opened");
    (dir, tree)
}

/// A file that is half text and half noise.
fn large() -> (tempfile::TempDir, Tree) {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let mut state = 1_u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    let mut content = Vec::with_capacity(64 * MEBIBYTE);
    for mebibyte in 0..64 {
        if mebibyte % 2 == 0 {
            content.extend((0..MEBIBYTE).map(|_| noise()));
        } else {
            content.extend((0..MEBIBYTE).map(|_| b"abcdefgh"[usize::from(noise() % 8)]));
        }
    }
    fs::write(dir.path().join("file"), content).expect("files can be written");
    let tree = Tree::open(dir.path()).expect("the folder can be opened");
    (dir, tree)
}

#[divan::bench]
fn parse_a_dockerfile_of_1000_instructions(bencher: Bencher<'_, '_>) {
    let step = "RUN apt-get update && \\\n    apt-get install -y --no-install-recommends curl=\"$VERSION\" # why\nCOPY --chown=1:1 a b /c/\n";
    let text = format!("FROM debian AS one\nARG VERSION=1\n{}", step.repeat(500));
    bencher.counter(ItemsCount::new(1000_usize)).bench(|| build_engine_dockerfile::parse(black_box(&text)));
}

#[divan::bench]
fn sha256_of_64_mib(bencher: Bencher<'_, '_>) {
    let content = vec![7; 64 * MEBIBYTE];
    bencher.counter(BytesCount::new(content.len())).bench(|| Digest::sha256(black_box(&content)));
}

#[divan::bench]
fn tar_of_10000_entries(bencher: Bencher<'_, '_>) {
    let (_dir, tree) = files(10_000);
    bencher.counter(ItemsCount::new(10_000_usize)).bench(|| {
        let mut entries = TreeEntries::new(&tree).expect("the tree can be read");
        layer::write(&mut entries, WriteOptions::default(), &mut std::io::sink()).expect("nothing changes")
    });
}

#[divan::bench(args = ["gzip 1", "gzip 6", "zstd 3", "uncompressed"])]
fn blob_of_64_mib(bencher: Bencher<'_, '_>, compression: &str) {
    let compression = match compression {
        "gzip 1" => Compression::Gzip { level: 1 },
        "gzip 6" => Compression::Gzip { level: 6 },
        "zstd 3" => Compression::Zstd { level: 3 },
        _ => Compression::Uncompressed,
    };
    let (_dir, tree) = large();
    bencher.counter(BytesCount::new(64 * MEBIBYTE)).bench(|| {
        let mut entries = TreeEntries::new(&tree).expect("the tree can be read");
        let options = WriteOptions::default();
        layer::write_blob(&mut entries, options, compression, &KnownFrames::default, &mut std::io::sink())
            .expect("nothing changes")
    });
}

#[divan::bench]
fn list_10000_files(bencher: Bencher<'_, '_>) {
    let (_dir, tree) = files(10_000);
    bencher
        .counter(ItemsCount::new(10_000_usize))
        .bench(|| Listing::new(View::context(&tree)).expect("nothing changes"));
}

#[divan::bench]
fn content_digest_of_10000_files(bencher: Bencher<'_, '_>) {
    let (_dir, tree) = files(10_000);
    let all = Question { path: "/".into(), ..Question::default() };
    bencher.counter(ItemsCount::new(10_000_usize)).bench(|| {
        let mut hash = ContentHash::new(View::context(&tree), None).expect("nothing changes");
        hash.digest(&all).expect("nothing changes")
    });
}

#[divan::bench]
fn cache_key_of_20_parts(bencher: Bencher<'_, '_>) {
    let parts: Vec<KeyPart> = (0..20).map(|n| KeyPart::new(format!("environment V{n}"), "value of it")).collect();
    let key = CacheKey::new(parts);
    bencher.bench(|| black_box(&key).digest());
}
