//! What does not depend on how a layer is compressed, what must stay where it is when a file changes, and how much it may take.

use std::collections::HashSet;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use build_engine_oci::Digest;
use build_engine_rootfs::{Time, Tree};

use super::*;
use crate::layer::compress::decompress;
use crate::layer::{FrameKey, FramePlace, TreeEntries, rewrite_blob, write};

fn new_tree() -> (tempfile::TempDir, Tree) {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::open(dir.path()).unwrap();
    (dir, tree)
}

/// Bytes that look random (SplitMix64).
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bytes.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Words, about as compressible as source text.
fn text(seed: u64, length: usize) -> Vec<u8> {
    let words: Vec<String> = noise(7, 4000)
        .chunks(4)
        .map(|word| format!("{:x} ", (u32::from(word[0]) * 257) ^ u32::from(word[1])))
        .collect();
    let mut out: Vec<u8> = Vec::new();
    for pick in noise(seed, length).chunks_exact(2) {
        out.extend_from_slice(words[usize::from(u16::from_le_bytes([pick[0], pick[1]])) % words.len()].as_bytes());
        if out.len() >= length {
            break;
        }
    }
    out.resize(length, b'.');
    out
}

fn put(dir: &Path, name: &str, content: &[u8]) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    let file = fs::File::open(&path).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(5)).unwrap();
}

fn settle(tree: &Tree) {
    let mut walk = tree.walk("").unwrap();
    let mut dirs = Vec::new();
    while let Some(step) = walk.step().unwrap() {
        dirs.extend(step.metadata.is_dir().then_some(step.path));
    }
    dirs.iter().for_each(|dir| tree.set_times(dir, Time::from_seconds(5)).unwrap());
}

fn blob(tree: &Tree, compression: Compression) -> (Vec<u8>, Written, Vec<FramePlace>) {
    let mut out = Vec::new();
    let mut entries = TreeEntries::new(tree).unwrap();
    let WrittenBlob { archive, frames, .. } =
        write_blob(&mut entries, WriteOptions::default(), compression, &KnownFrames::default, &mut out).unwrap();
    (out, archive, frames)
}

fn archive(tree: &Tree) -> (Vec<u8>, Written) {
    let mut out = Vec::new();
    let written = write(&mut TreeEntries::new(tree).unwrap(), WriteOptions::default(), &mut out).unwrap();
    (out, written)
}

const ALL: [Compression; 5] = [
    Compression::Uncompressed,
    Compression::Gzip { level: 0 },
    Compression::Gzip { level: 1 },
    Compression::ZSTD,
    Compression::Zstd { level: 0 },
];

#[test]
fn every_compression_holds_the_same_archive_on_any_number_of_threads() {
    let (dir, tree) = new_tree();
    for round in ["empty", "small", "large"] {
        match round {
            "small" => {
                (0..700).for_each(|n| put(dir.path(), &format!("d/{}/{n}", n % 7), &text(n, 97 * n as usize % 9000)));
            }
            "large" => {
                for (n, length) in
                    [LARGE - 700, LARGE - 512, LARGE, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 5 << 20]
                        .into_iter()
                        .enumerate()
                {
                    put(dir.path(), &format!("e/text{n}"), &text(n as u64, length));
                    put(dir.path(), &format!("e/noise{n}"), &noise(n as u64, length));
                }
            }
            _ => {}
        }
        let (plain, expected) = archive(&tree);
        for compression in ALL {
            let (bytes, written, places) = blob(&tree, compression);
            assert_eq!(written, expected, "{compression:?} {round}");
            let mut back = Vec::new();
            decompress(&bytes[..]).unwrap().read_to_end(&mut back).unwrap();
            assert!(back == plain, "{compression:?} {round}");
            for FramePlace { offset, length, .. } in places {
                let mut frame = Vec::new();
                let (start, end) = (offset as usize, (offset + length) as usize);
                decompress(&bytes[start..end]).unwrap().read_to_end(&mut frame).unwrap();
                assert!(frame.len() <= FRAME_BYTES + 2048, "{}", frame.len());
            }
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                assert!(pool.install(|| blob(&tree, compression).0) == bytes, "{compression:?} {round} {threads}");
            }
        }
    }
}

/// One file that comes, changes or goes moves the frame that it is in, and few others.
#[test]
fn a_changed_file_leaves_the_other_frames_as_they_are() {
    let (dir, tree) = new_tree();
    for n in 0..6000_u64 {
        put(dir.path(), &format!("d{}/f{n}", n % 40), &text(n, 300 + (n as usize * 37) % 6000));
    }
    put(dir.path(), "big", &text(1, 4 << 20));
    settle(&tree);
    let keys = |tree: &Tree| -> HashSet<FrameKey> { blob(tree, Compression::GZIP).2.iter().map(|it| it.key).collect() };
    let before = keys(&tree);
    assert!(before.len() > 30, "{}", before.len());
    let expect = |what: &str, most: usize| {
        settle(&tree);
        let now = keys(&tree);
        let new = now.difference(&before).count();
        assert!((1..=most).contains(&new), "{what}: {new} of {} frames are new", now.len());
    };
    put(dir.path(), "d17/f17", &text(9, 2000));
    expect("changed", 1);
    put(dir.path(), "d17/f17", &text(9, 20_000));
    expect("longer", 3);
    put(dir.path(), "d17/f17", &text(17, 300 + 17 * 37));
    put(dir.path(), "d2/another", &text(9, 2000));
    expect("added", 3);
    fs::remove_file(dir.path().join("d2/another")).unwrap();
    fs::remove_file(dir.path().join("d0/f40")).unwrap();
    expect("removed", 3);
    put(dir.path(), "d0/f40", &text(40, 300 + 40 * 37));
    let mut big = text(1, 4 << 20);
    big[3_000_000] ^= 1;
    put(dir.path(), "big", &big);
    expect("inside of a large file", 1);
}

/// The judge is `gzip -1`. Content that does not get smaller must not cost more than it does there either.
#[test]
fn an_archive_is_no_larger_than_that_of_gzip() {
    let (dir, tree) = new_tree();
    let repeated = noise(3, 10_000).repeat(90);
    let mixed = [noise(4, 300_000), text(4, 300_000), noise(5, 70_000), vec![0; 100_000]].concat();
    for (name, files) in [
        ("text", vec![text(1, 5 << 20)]),
        ("noise", vec![noise(1, 5 << 20)]),
        ("small noise", (0..200).map(|n| noise(n, 3000)).collect()),
        ("middling noise", (0..60).map(|n| noise(n, 100_000)).collect()),
        ("repeated noise", vec![repeated]),
        ("mixed", vec![mixed]),
    ] {
        let _ = fs::remove_dir_all(dir.path().join("in"));
        files.iter().enumerate().for_each(|(n, file)| put(dir.path(), &format!("in/{n}"), file));
        let (plain, _) = archive(&tree);
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &plain).unwrap();
        let Ok(gzip) = Command::new("gzip").arg("-1nc").arg(file.path()).output() else {
            println!("skipped: there is no gzip to compare with");
            return;
        };
        let own = blob(&tree, Compression::Gzip { level: 1 }).0;
        let zstd = blob(&tree, Compression::ZSTD).0;
        let lengths = (own.len(), zstd.len(), gzip.stdout.len());
        println!("{name}: {lengths:?} of {}", plain.len());
        assert!(own.len() <= gzip.stdout.len(), "{name}: {} > {}", own.len(), gzip.stdout.len());
        let packed = tempfile::NamedTempFile::new().unwrap();
        fs::write(packed.path(), &own).unwrap();
        let unpacked = Command::new("gzip").arg("-dc").stdin(fs::File::open(packed.path()).unwrap()).output().unwrap();
        assert!(unpacked.status.success() && unpacked.stdout == plain, "{name}");
        assert!(zstd.len() < plain.len(), "{name}: {lengths:?}");
    }
}

/// When this fails because the compressor makes other bytes now, give `GZIP_ENCODER` another number (zstd's is its version).
#[test]
fn the_encoder_has_another_name_when_its_bytes_are_others() {
    let content = [text(1, 200_000), noise(1, 1000)].concat();
    let mut named = String::new();
    for level in [1, 6, 9] {
        let compression = Compression::Gzip { level };
        let digest = Digest::sha256(&compression.compress(&content).unwrap());
        named.push_str(&format!("{} {}\n", compression.encoder().unwrap(), &digest.hex()[..16]));
    }
    assert_eq!(named, "gzip-1-1 36938df8d1c55459\ngzip-6-1 31778646dad52577\ngzip-9-1 f4dceaf746dcb0f3\n");
}

/// A file that is written to between two of its frames is not the file that was begun.
#[test]
fn a_large_file_that_changes_while_it_is_read_is_an_error() {
    struct Touch(std::path::PathBuf);
    impl Write for Touch {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            fs::OpenOptions::new().append(true).open(&self.0)?.write_all(b"x")?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (dir, tree) = new_tree();
    put(dir.path(), "file", &text(1, 64 << 20));
    let mut out = Touch(dir.path().join("file"));
    let mut entries = TreeEntries::new(&tree).unwrap();
    let result = write_blob(&mut entries, WriteOptions::default(), Compression::GZIP, &KnownFrames::default, &mut out);
    assert!(matches!(result.unwrap_err(), LayerError::Changed { path } if path == "file"));
}

/// A tree with all kinds of entries that a table can name, and files of one and of several pieces.
fn varied() -> (tempfile::TempDir, Tree) {
    let (dir, tree) = new_tree();
    for (name, length) in
        [("a", 5), ("d/empty", 0), ("d/middling", 200_000), ("d/pieces", 2 * FRAME_BYTES + 77), ("ünï", 512)]
    {
        put(dir.path(), name, &text(length as u64, length));
    }
    put(dir.path(), "d/noise", &noise(1, 300_000));
    tree.hard_link("a", "b").unwrap();
    tree.symlink("a", "link").unwrap();
    settle(&tree);
    (dir, tree)
}

fn unpacked(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    decompress(bytes).unwrap().read_to_end(&mut out).unwrap();
    out
}

/// Reads every file through the table, and compares what it says with the tree. Returns the names of the entries.
fn check_table(dir: &Path, blob: &[u8], table: &[u8], has_ends: bool) -> Vec<String> {
    let table: serde_json::Value = serde_json::from_slice(table).unwrap();
    assert_eq!(table["version"], 1);
    let entries = table["entries"].as_array().unwrap();
    let mut names = Vec::new();
    let mut index = 0;
    while index < entries.len() {
        let file = &entries[index];
        let name = file["name"].as_str().unwrap();
        names.push(name.to_owned());
        index += 1;
        if file["type"] != "reg" {
            continue;
        }
        let size = file["size"].as_u64().unwrap_or(0);
        let mut content = Vec::new();
        let mut piece = file;
        while (content.len() as u64) < size {
            let at = piece["offset"].as_u64().unwrap() as usize;
            // Without a size it is the last piece.
            let length = piece["chunkSize"].as_u64().unwrap_or(size - content.len() as u64);
            let mut bytes = vec![0; length as usize];
            decompress(&blob[at..]).unwrap().read_exact(&mut bytes).unwrap();
            assert_eq!(piece["chunkOffset"].as_u64().unwrap_or(0), content.len() as u64, "{name}");
            if let Some(digest) = piece["chunkDigest"].as_str() {
                assert_eq!(digest, Digest::sha256(&bytes).to_string(), "{name}");
            }
            content.extend_from_slice(&bytes);
            if content.len() as u64 == size {
                break;
            }
            piece = &entries[index];
            assert_eq!((piece["type"].as_str(), piece["name"].as_str()), (Some("chunk"), Some(name)));
            index += 1;
        }
        if has_ends && size > 0 {
            let (at, end) = (file["offset"].as_u64().unwrap() as usize, file["endOffset"].as_u64().unwrap() as usize);
            assert!(unpacked(&blob[at..end]) == content, "{name}");
        }
        let expected = if name == ".no.prefetch.landmark" { vec![0xf] } else { fs::read(dir.join(name)).unwrap() };
        assert!(content == expected, "{name}");
        if size > 0 {
            assert_eq!(file["digest"], Digest::sha256(&content).to_string(), "{name}");
        }
    }
    let of = |name: &str| entries.iter().find(|entry| entry["name"] == name).unwrap();
    assert_eq!((of("b")["type"].as_str(), of("b")["linkName"].as_str()), (Some("hardlink"), Some("a")));
    assert_eq!((of("link")["type"].as_str(), of("link")["linkName"].as_str()), (Some("symlink"), Some("a")));
    assert_eq!((of("d/")["type"].as_str(), of("a")["modtime"].as_str()), (Some("dir"), Some("1970-01-01T00:00:05Z")));
    names
}

fn blob_of(tree: &Tree, compression: Compression) -> (Vec<u8>, WrittenBlob) {
    let mut out = Vec::new();
    let mut entries = TreeEntries::new(tree).unwrap();
    let written = write_blob(&mut entries, WriteOptions::default(), compression, &KnownFrames::default, &mut out);
    (out, written.unwrap())
}

/// F2-008. The form is that of containerd's `docs/estargz.md`.
#[test]
fn f2_008_every_file_of_an_estargz_blob_is_found_through_its_table() {
    let (dir, tree) = varied();
    let (blob, written) = blob_of(&tree, Compression::Estargz { level: 1 });
    let archive = unpacked(&blob);
    assert_eq!(Digest::sha256(&archive), *written.archive.diff_id.as_digest());
    assert_eq!(written.annotations["io.containers.estargz.uncompressed-size"], archive.len().to_string());

    let footer = &blob[blob.len() - 51..];
    assert_eq!(footer[..16], [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0, b'S', b'G', 22, 0]);
    assert_eq!(&footer[32..38], b"STARGZ");
    let at = u64::from_str_radix(std::str::from_utf8(&footer[16..32]).unwrap(), 16).unwrap() as usize;
    let end = unpacked(&blob[at..]);
    assert!(archive.ends_with(&end));
    assert!(end.starts_with(b"stargz.index.json\0"));
    let size = usize::from_str_radix(std::str::from_utf8(&end[124..135]).unwrap(), 8).unwrap();
    let table = &end[512..512 + size];
    assert_eq!(written.annotations["containerd.io/snapshot/stargz/toc.digest"], Digest::sha256(table).to_string());

    let names = check_table(dir.path(), &blob, table, false);
    assert_eq!(names.iter().filter(|name| *name == ".no.prefetch.landmark").count(), 1);
    assert_eq!(names.len() as u64 + 1, written.archive.entries);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &blob).unwrap();
    let listed = Command::new("tar").arg("-tzf").arg(file.path()).output().unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.ends_with("\nstargz.index.json\n") && listed.lines().count() == names.len() + 1, "{listed}");
}

/// F2-008. The form is that of `pkg/chunked` of containers/storage.
#[test]
fn f2_008_every_file_of_a_zstd_chunked_blob_is_found_through_its_table() {
    let (dir, tree) = varied();
    let (blob, written) = blob_of(&tree, Compression::ZstdChunked { level: 3 });
    let (plain, expected) = archive(&tree);
    assert_eq!(written.archive, expected);
    assert!(unpacked(&blob) == plain);

    let footer = &blob[blob.len() - 64..];
    let number = |index: usize| u64::from_le_bytes(footer[8 * index..8 * index + 8].try_into().unwrap());
    assert_eq!((number(3), &footer[56..]), (1, &b"GNUlInUx"[..]));
    let place = &written.annotations["io.github.containers.zstd-chunked.manifest-position"];
    assert_eq!(*place, format!("{}:{}:{}:1", number(0), number(1), number(2)));
    let packed = &blob[number(0) as usize..(number(0) + number(1)) as usize];
    let digest = &written.annotations["io.github.containers.zstd-chunked.manifest-checksum"];
    assert_eq!(*digest, Digest::sha256(packed).to_string());
    let table = unpacked(packed);
    assert_eq!(table.len() as u64, number(2));
    let names = check_table(dir.path(), &blob, &table, true);
    assert_eq!(names.len() as u64, expected.entries);
}

/// F2-008, `force-compression`: what others have written keeps its bytes, and its diff ID unless a table is added.
#[test]
fn f2_008_an_archive_is_compressed_anew_without_a_change() {
    let (dir, tree) = varied();
    put(dir.path(), &format!("d/{}", "long".repeat(40)), b"x");
    put(dir.path(), "d/large", &noise(3, 3 << 20));
    let (mut plain, expected) = archive(&tree);
    plain.resize(plain.len() + 8192, 0);
    let rewrite = |archive: &[u8], compression| {
        let mut out = Vec::new();
        let written = rewrite_blob(archive, compression, &KnownFrames::default, &mut out).unwrap();
        (out, written)
    };
    for compression in ALL {
        let (blob, written) = rewrite(&plain, compression);
        assert!(unpacked(&blob) == plain, "{compression:?}");
        assert_eq!(*written.archive.diff_id.as_digest(), Digest::sha256(&plain));
        assert_eq!(written.archive.entries, expected.entries);
    }
    let chunked = Compression::ZstdChunked { level: 1 };
    let (blob, written) = rewrite(&plain, chunked);
    assert!(unpacked(&blob) == plain);
    let place = &written.annotations["io.github.containers.zstd-chunked.manifest-position"];
    let at: usize = place.split(':').next().unwrap().parse().unwrap();
    check_table(dir.path(), &blob, &unpacked(&blob[at..blob.len() - 72]), true);

    // Of what was written here, it is the same blob, and an eStargz blob is made of another one as of its files.
    let (plain, _) = archive(&tree);
    for compression in [Compression::GZIP, Compression::Estargz { level: 6 }, chunked] {
        let (blob, written) = blob_of(&tree, compression);
        assert!(rewrite(&plain, compression).0 == blob, "{compression:?}");
        let again = rewrite(&unpacked(&blob), compression);
        assert_eq!(again.1.annotations, written.annotations);
        assert!(again.0 == blob, "{compression:?}");
    }
    let mut out = Vec::new();
    assert!(rewrite_blob(&plain[..5000], chunked, &KnownFrames::default, &mut out).is_err());
}
