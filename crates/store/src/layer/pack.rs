//! One frame: into members of a gzip file or frames of a zstd file, copied where they are known.
//!
//! Content that does not get smaller is stored, not compressed: trying would take most of the time and gain nothing. What
//! is known is not believed: it is decompressed and compared, which is still several times as fast as compressing.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::compress::Compression;
use super::toc::Chunk;

/// What is looked at as a whole when incompressible content is searched for; smaller files are just compressed.
const NOISE_BLOCK: usize = 64 << 10;
/// Most of a block of a zstd frame (RFC 8878, 3.1.1.2.4).
const ZSTD_BLOCK: usize = 128 << 10;

/// Changes whenever libdeflate makes other bytes of the same content; a test compares.
const GZIP_ENCODER: u32 = 1;

/// What a frame is found by: checksums and length of its archive. They need not be safe from forgery, because what is found
/// is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameKey {
    /// CRC-32 and Adler-32.
    pub sums: u64,
    /// Bytes of the archive.
    pub length: u32,
}

impl FrameKey {
    fn of(archive: &[u8]) -> Option<Self> {
        let sums = u64::from(libdeflater::crc32(archive)) << 32 | u64::from(libdeflater::adler32(archive));
        Some(Self { sums, length: u32::try_from(archive.len()).ok()? })
    }
}

/// Where in a blob a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramePlace {
    /// Its archive.
    pub key: FrameKey,
    /// Where it begins.
    pub offset: u64,
    /// Bytes that it takes.
    pub length: u64,
}

/// Frames of other blobs that were made by the same compressor at the same level.
#[derive(Debug, Default)]
pub struct KnownFrames {
    frames: HashMap<FrameKey, (Arc<Path>, u64, u64)>,
}

impl KnownFrames {
    /// Adds those of the file `blob`. Frames that are known already stay where they are.
    pub fn add(&mut self, blob: &Path, places: impl IntoIterator<Item = FramePlace>) {
        let blob: Arc<Path> = blob.into();
        for place in places {
            self.frames.entry(place.key).or_insert_with(|| (Arc::clone(&blob), place.offset, place.length));
        }
    }

    /// The compressed form of `archive`, if there is one that is right.
    fn find(&self, key: FrameKey, archive: &[u8], compression: Compression) -> Option<Vec<u8>> {
        let (blob, offset, length) = self.frames.get(&key)?;
        let length = usize::try_from(*length).ok().filter(|length| *length < 2 * archive.len() + NOISE_BLOCK)?;
        let mut bytes = vec![0; length];
        File::open(blob).ok()?.read_exact_at(&mut bytes, *offset).ok()?;
        let mut back = vec![0; archive.len()];
        let size = match compression {
            Compression::Uncompressed => return None,
            Compression::Gzip { .. } | Compression::Estargz { .. } => {
                libdeflater::Decompressor::new().gzip_decompress(&bytes, &mut back).ok()?
            }
            Compression::Zstd { .. } | Compression::ZstdChunked { .. } => {
                zstd::bulk::decompress_to_buffer(&bytes, &mut back).ok()?
            }
        };
        (size == archive.len() && back == archive).then_some(bytes)
    }
}

/// A member or frame.
pub(super) struct Run {
    /// Where in the frame's archive it begins.
    pub(super) start: usize,
    pub(super) bytes: Vec<u8>,
    /// What it can be found by; `None` for what is stored, which is made as fast as it is found.
    pub(super) key: Option<FrameKey>,
}

/// Compresses a piece of an archive, in which `contents` are the contents of files. Nothing for [`Compression::Uncompressed`].
pub(super) fn pack(
    archive: &[u8],
    contents: &[Range<usize>],
    compression: Compression,
    known: &KnownFrames,
) -> io::Result<Vec<Run>> {
    if compression == Compression::Uncompressed {
        return Ok(Vec::new());
    }
    let mut runs = Vec::new();
    let compress = |range: Range<usize>, runs: &mut Vec<Run>| -> io::Result<()> {
        let start = range.start;
        let piece = &archive[range];
        let key = FrameKey::of(piece);
        let found = key.and_then(|key| known.find(key, piece, compression));
        runs.push(Run { start, bytes: found.map_or_else(|| compression.compress(piece), Ok)?, key });
        Ok(())
    };
    let mut done = 0;
    for range in contents.iter().flat_map(|content| noise(archive, content)) {
        if done < range.start {
            compress(done..range.start, &mut runs)?;
        }
        done = range.end;
        runs.push(Run { start: range.start, bytes: compression.store(&archive[range])?, key: None });
    }
    // No content at all is one empty run: no bytes are neither a gzip nor a zstd file.
    if done < archive.len() || archive.is_empty() {
        compress(done..archive.len(), &mut runs)?;
    }
    Ok(runs)
}

/// As [`pack`], but each of `chunks` is a run of its own.
pub(super) fn pack_chunks(archive: &[u8], chunks: &[Chunk], compression: Compression) -> io::Result<Vec<Run>> {
    let mut runs = Vec::new();
    let mut add = |range: Range<usize>, is_stored: bool| -> io::Result<()> {
        let piece = &archive[range.clone()];
        let bytes = if is_stored { compression.store(piece)? } else { compression.compress(piece)? };
        runs.push(Run { start: range.start, bytes, key: None });
        Ok(())
    };
    let mut done = 0;
    for Chunk { start, length, .. } in chunks {
        if done < *start {
            add(done..*start, false)?;
        }
        done = start + length;
        let content = *start..done;
        let is_noise = noise(archive, &content) == [content.clone()];
        add(content, is_noise)?;
    }
    if done < archive.len() || archive.is_empty() {
        add(done..archive.len(), false)?;
    }
    Ok(runs)
}

/// The parts of a file's content that are not worth compressing.
fn noise(archive: &[u8], content: &Range<usize>) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    let mut start = content.start;
    while content.end - start >= NOISE_BLOCK {
        // What is left after the last whole block belongs to that.
        let end = if content.end - start < 2 * NOISE_BLOCK { content.end } else { start + NOISE_BLOCK };
        if is_flat(&archive[start..end]) {
            match found.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => found.push(start..end),
            }
        }
        start = end;
    }
    // Bytes may be evenly distributed and still repeat: the beginning of what looks random is tried.
    found.retain(|range| {
        let block = &archive[range.start..range.start + NOISE_BLOCK];
        let tried = (Compression::Gzip { level: 1 }).compress(block);
        tried.is_ok_and(|tried| tried.len() + NOISE_BLOCK / 128 > NOISE_BLOCK)
    });
    found
}

/// Whether all values of a byte are about as frequent as one another, by a sample.
fn is_flat(block: &[u8]) -> bool {
    const SLICES: usize = 16;
    const SLICE: usize = 256;
    let mut counts = [0_u64; 256];
    for slice in 0..SLICES {
        let start = (block.len() - SLICE) / (SLICES - 1) * slice;
        for byte in &block[start..start + SLICE] {
            counts[usize::from(*byte)] += 1;
        }
    }
    // For random bytes this is about n * n / 256 + n = 69,632; text has several times as much.
    counts.iter().map(|count| count * count).sum::<u64>() < 90_000
}

impl Compression {
    /// Whether the blob has a table of contents.
    pub(crate) fn has_contents(self) -> bool {
        matches!(self, Self::Estargz { .. } | Self::ZstdChunked { .. })
    }

    /// What the bytes of a frame depend on besides its archive. A new one makes all frames that are known unknown.
    pub(crate) fn encoder(self) -> Option<String> {
        match self {
            Self::Uncompressed => None,
            // Their frames are files: too many to be worth a table.
            Self::Estargz { .. } | Self::ZstdChunked { .. } => None,
            Self::Gzip { level } => Some(format!("gzip-{level}-{GZIP_ENCODER}")),
            Self::Zstd { level } => Some(format!("zstd-{level}-{}", zstd::zstd_safe::version_number())),
        }
    }

    /// Compresses `content` as one member or frame.
    pub(crate) fn compress(self, content: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Uncompressed => Ok(content.to_vec()),
            Self::Gzip { level } | Self::Estargz { level } => gzip(content, level),
            Self::Zstd { level } | Self::ZstdChunked { level } => zstd::bulk::compress(content, level),
        }
    }

    /// Frames `content` as it is.
    fn store(self, content: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Uncompressed => Ok(content.to_vec()),
            Self::Gzip { .. } | Self::Estargz { .. } => gzip(content, 0),
            Self::Zstd { .. } | Self::ZstdChunked { .. } => Ok(zstd_stored(content)),
        }
    }
}

fn gzip(content: &[u8], level: i32) -> io::Result<Vec<u8>> {
    let level = libdeflater::CompressionLvl::new(level)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the gzip level is not one of 0 to 12"))?;
    let mut compressor = libdeflater::Compressor::new(level);
    let mut out = vec![0; compressor.gzip_compress_bound(content.len())];
    let length = compressor
        .gzip_compress(content, &mut out)
        .map_err(|error| io::Error::other(format!("cannot compress a frame: {error}")))?;
    out.truncate(length);
    Ok(out)
}

/// A frame of raw blocks: magic number, a descriptor that says "one segment, four bytes of size", the size, the blocks.
fn zstd_stored(content: &[u8]) -> Vec<u8> {
    let size = u32::try_from(content.len()).expect("a frame is much shorter");
    let mut out = Vec::with_capacity(content.len() + 3 * content.len().div_ceil(ZSTD_BLOCK) + 9);
    out.extend_from_slice(&[0x28, 0xb5, 0x2f, 0xfd, 0b1010_0000]);
    out.extend_from_slice(&size.to_le_bytes());
    let mut blocks = content.chunks(ZSTD_BLOCK).peekable();
    while let Some(block) = blocks.next() {
        let header = (block.len() as u32) << 3 | u32::from(blocks.peek().is_none());
        out.extend_from_slice(&header.to_le_bytes()[..3]);
        out.extend_from_slice(block);
    }
    out
}
