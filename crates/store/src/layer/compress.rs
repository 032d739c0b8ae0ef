//! Compression of blobs: out in independent frames, in whatever form it comes.
//!
//! Frames are compressed on all cores and written in order: members of a gzip file, frames of a zstd file. Every reader of
//! either format accepts several. The bytes follow from content, kind and level alone, never from timing. [`FramedWriter`]
//! cuts a stream at every [`FRAME_BYTES`]; an archive is cut where it means something ([`super::write_blob`]).
//! [`decompress`] reads gzip, zstd and plain data by looking at it.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};

use super::pack::{KnownFrames, Run, pack};

/// Jobs that are started before the result of the oldest is taken, besides those that run.
const IN_ADVANCE: usize = 4;
/// Uncompressed size of a frame of a stream, and of the longest one of an archive (a header may come on top).
pub const FRAME_BYTES: usize = 1 << 20;
/// Expansion is not judged before this much came out.
const RATIO_FREE_BYTES: u64 = 100 << 20;
/// Largest expansion after that.
const MAX_RATIO: u64 = 1000;
/// Largest window of a zstd frame, as the `zstd` program allows it.
const ZSTD_WINDOW_LOG: u32 = 27;
/// Most memory that decoding an xz file may take: a dictionary as large as that window, and what the decoder adds.
const XZ_MEMORY_KIB: u32 = (128 << 10) + 1024;

/// How a blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    Uncompressed,
    /// As a gzip file.
    Gzip {
        /// 0 (stored) to 12 (slowest).
        level: i32,
    },
    /// As a zstd file.
    Zstd {
        /// 1 to 22, or 0 for the library's default.
        level: i32,
    },
    /// As a gzip file that has a table of contents (eStargz). The table belongs to the archive, and so does a file that says
    /// that it is one.
    Estargz {
        /// As for gzip.
        level: i32,
    },
    /// As a zstd file that has a table of contents (zstd:chunked), which decoders skip.
    ZstdChunked {
        /// As for zstd.
        level: i32,
    },
}

impl Compression {
    /// Gzip as layers usually have it.
    pub const GZIP: Self = Self::Gzip { level: 6 };
    /// Zstd as layers usually have it.
    pub const ZSTD: Self = Self::Zstd { level: 3 };

    /// Whether the archive is the layer's and nothing else.
    pub fn keeps_archive(self) -> bool {
        !matches!(self, Self::Estargz { .. })
    }
}

/// Jobs on rayon's threads, whose results come in the order in which they were started.
pub(super) struct Ordered<T> {
    running: VecDeque<Receiver<T>>,
}

impl<T: Send + 'static> Ordered<T> {
    pub(super) fn new() -> Self {
        Self { running: VecDeque::new() }
    }

    pub(super) fn start(&mut self, job: impl FnOnce() -> T + Send + 'static) {
        let (sender, receiver) = channel();
        rayon::spawn(move || {
            // Nobody wants it if the receiver is gone.
            let _ = sender.send(job());
        });
        self.running.push_back(receiver);
    }

    /// Whether so many are running that a result should be taken first.
    pub(super) fn is_full(&self) -> bool {
        self.running.len() > rayon::current_num_threads() + IN_ADVANCE
    }

    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Waits for the oldest job; `None` if there is none.
    ///
    /// # Errors
    /// If it was aborted.
    pub(super) fn next(&mut self) -> Option<io::Result<T>> {
        let receiver = self.running.pop_front()?;
        let lost = || io::Error::other("the compression of a frame was aborted");
        Some(loop {
            match receiver.try_recv() {
                Ok(result) => break Ok(result),
                Err(TryRecvError::Disconnected) => break Err(lost()),
                // On one of rayon's own threads, waiting would keep it from the very work that is waited for.
                Err(TryRecvError::Empty) => match rayon::yield_now() {
                    Some(_) => {}
                    None => break receiver.recv().map_err(|_| lost()),
                },
            }
        })
    }
}

/// Compresses a stream, in frames, on rayon's threads.
///
/// [`FramedWriter::finish`] is needed: dropping it loses the last frames.
pub struct FramedWriter<W> {
    out: W,
    compression: Compression,
    frame: Vec<u8>,
    running: Ordered<io::Result<Vec<Run>>>,
    frames: u64,
}

impl<W: fmt::Debug> fmt::Debug for FramedWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FramedWriter").field("out", &self.out).field("compression", &self.compression).finish()
    }
}

impl<W: Write> FramedWriter<W> {
    /// Writes compressed data to `out`.
    pub fn new(out: W, compression: Compression) -> Self {
        Self { out, compression, frame: Vec::new(), running: Ordered::new(), frames: 0 }
    }

    fn submit(&mut self) -> io::Result<()> {
        let content = std::mem::take(&mut self.frame);
        let compression = self.compression;
        self.frames += 1;
        let all = 0..content.len();
        self.running.start(move || pack(&content, &[all], compression, &KnownFrames::default()));
        while self.running.is_full() {
            self.write_oldest()?;
        }
        Ok(())
    }

    fn write_oldest(&mut self) -> io::Result<()> {
        let Some(runs) = self.running.next() else { return Ok(()) };
        runs??.iter().try_for_each(|run| self.out.write_all(&run.bytes))
    }

    /// Writes what is left and returns the output, not flushed.
    ///
    /// # Errors
    /// The output's; what it got until then is incomplete.
    pub fn finish(mut self) -> io::Result<W> {
        if self.compression != Compression::Uncompressed && (!self.frame.is_empty() || self.frames == 0) {
            // No content is one empty frame, because no bytes are not a gzip file.
            self.submit()?;
        }
        while !self.running.is_empty() {
            self.write_oldest()?;
        }
        Ok(self.out)
    }
}

impl<W: Write> Write for FramedWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.compression == Compression::Uncompressed {
            return self.out.write(bytes);
        }
        if self.frame.capacity() == 0 {
            self.frame.reserve_exact(FRAME_BYTES);
        }
        let taken = bytes.len().min(FRAME_BYTES - self.frame.len());
        self.frame.extend_from_slice(&bytes[..taken]);
        if self.frame.len() == FRAME_BYTES {
            self.submit()?;
        }
        Ok(taken)
    }

    /// Flushes the output; the frame that is being filled stays, because cutting it would change the bytes.
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Reads `reader` uncompressed: gzip (several members), zstd (several frames), bzip2, xz or plain, by its first bytes.
///
/// The result fails as soon as more than 1000 times the compressed size came out, after the first 100 MiB, and where
/// decoding takes more memory than 128 MiB; layers report that as [`super::LayerError::Limit`].
///
/// # Errors
/// If the first bytes cannot be read.
pub fn decompress<'a>(reader: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let source = Arc::new(Source::default());
    let mut reader = BufReader::with_capacity(128 << 10, Counted { reader, source: source.clone() });
    let mut magic = [0; 6];
    let mut length = 0;
    // A pipe may hand out single bytes.
    let mut head = Vec::new();
    while length < magic.len() {
        let got = reader.read(&mut magic[length..])?;
        if got == 0 {
            break;
        }
        length += got;
    }
    head.extend_from_slice(&magic[..length]);
    let format = Format::of(&head);
    let whole = io::Cursor::new(head).chain(reader);
    let limited = |reader| Limited { reader, source, produced: 0 };
    Ok(match format {
        Format::Plain => Box::new(whole),
        Format::Gzip => Box::new(limited(Decoder::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(whole))))),
        Format::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(limited(Decoder::Zstd(decoder)))
        }
        Format::Bzip2 => {
            let decoder = bzip2::bufread::MultiBzDecoder::new(whole);
            Box::new(limited(Decoder::Bzip2(decoder)))
        }
        Format::Xz => {
            let decoder = lzma_rust2::XzReader::new_mem_limit(whole, true, XZ_MEMORY_KIB);
            Box::new(limited(Decoder::Xz(Box::new(decoder))))
        }
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Plain,
    Gzip,
    Zstd,
    Bzip2,
    Xz,
}

impl Format {
    fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Self::Xz,
            _ => Self::Plain,
        }
    }
}

enum Decoder<R: BufRead> {
    Gzip(Box<flate2::bufread::MultiGzDecoder<R>>),
    Zstd(zstd::stream::read::Decoder<'static, R>),
    Bzip2(bzip2::bufread::MultiBzDecoder<R>),
    Xz(Box<lzma_rust2::XzReader<R>>),
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
            Self::Bzip2(decoder) => decoder.read(buffer),
            Self::Xz(decoder) => decoder.read(buffer),
        }
    }
}

/// What is known of the compressed data.
#[derive(Default)]
struct Source {
    /// Bytes that were read.
    consumed: AtomicU64,
    /// Whether reading it failed, so that the decoder's failure is not the data's.
    failed: AtomicBool,
}

struct Counted<R> {
    reader: R,
    source: Arc<Source>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.reader.read(buffer) {
            Ok(got) => {
                self.source.consumed.fetch_add(got as u64, Ordering::Relaxed);
                Ok(got)
            }
            Err(error) => {
                self.source.failed.fetch_or(error.kind() != io::ErrorKind::Interrupted, Ordering::Relaxed);
                Err(error)
            }
        }
    }
}

struct Limited<R> {
    reader: R,
    source: Arc<Source>,
    produced: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = match self.reader.read(buffer) {
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted || self.source.failed.load(Ordering::Relaxed) => {
                return Err(error);
            }
            Err(error) if is_too_much_memory(&error) => return Err(io::Error::other(ExceededMemory)),
            Err(error) => return Err(io::Error::other(BadData(error))),
        };
        self.produced += got as u64;
        let consumed = self.source.consumed.load(Ordering::Relaxed);
        let allowed = consumed.saturating_mul(MAX_RATIO).max(RATIO_FREE_BYTES);
        if self.produced > allowed { Err(io::Error::other(ExceededRatio)) } else { Ok(got) }
    }
}

/// How the decoders of xz and zstd say that a window is too large. Zstd has a code for it, which its crate hands on as
/// the text alone.
fn is_too_much_memory(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::OutOfMemory || error.to_string().contains("requires too much memory")
}

#[derive(Debug, thiserror::Error)]
#[error("compressed data expands to more than {MAX_RATIO} times its size")]
struct ExceededRatio;

#[derive(Debug, thiserror::Error)]
#[error("compressed data needs more than 128 MiB of memory")]
struct ExceededMemory;

/// The data is not in the format that it begins with.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct BadData(io::Error);

/// What a failed read of [`decompress`] exceeded and its limit, if that is why it failed.
pub(super) fn exceeded_limit(error: &io::Error) -> Option<(&'static str, u64)> {
    let error = error.get_ref()?;
    if error.is::<ExceededRatio>() {
        Some(("expansion (times the compressed size)", MAX_RATIO))
    } else if error.is::<ExceededMemory>() {
        Some(("the memory of a decoder in bytes", 128 << 20))
    } else {
        None
    }
}

/// Whether a read of [`decompress`] failed because of the data, not because of where it comes from.
pub(super) fn is_bad_data(error: &io::Error) -> bool {
    matches!(error.get_ref(), Some(inner) if inner.is::<BadData>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compress(content: &[u8], compression: Compression) -> Vec<u8> {
        let mut writer = FramedWriter::new(Vec::new(), compression);
        for chunk in content.chunks(77_777) {
            writer.write_all(chunk).unwrap();
        }
        writer.finish().unwrap()
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8 & 0x1f
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn everything_comes_back_in_every_form() {
        for length in [0, 1, FRAME_BYTES - 1, FRAME_BYTES, 5 * FRAME_BYTES + 3] {
            let content = noise(length);
            for compression in [Compression::Uncompressed, Compression::GZIP, Compression::ZSTD] {
                let blob = compress(&content, compression);
                let mut back = Vec::new();
                decompress(&blob[..]).unwrap().read_to_end(&mut back).unwrap();
                assert!(back == content, "{compression:?} {length}");
                assert_eq!(blob, compress(&content, compression));
            }
        }
    }

    #[test]
    fn a_frame_compressed_on_a_thread_of_the_pool_does_not_wait_for_itself() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let content = noise(9 * FRAME_BYTES);
        let blob = pool.install(|| compress(&content, Compression::ZSTD));
        assert_eq!(blob, compress(&content, Compression::ZSTD));
    }

    /// L15.
    #[test]
    fn a_bomb_is_stopped() {
        let zeros = vec![0; FRAME_BYTES];
        let member = Compression::Gzip { level: 12 }.compress(&zeros).unwrap();
        let frame = Compression::Zstd { level: 19 }.compress(&zeros).unwrap();
        for (part, bomb) in [(frame, true), (member, false)] {
            let blob = part.repeat(120);
            let result = io::copy(&mut decompress(&blob[..]).unwrap(), &mut io::sink());
            // gzip cannot expand by more than 1032; one that stays below the limit is no bomb.
            let expands = (120 << 20) / blob.len() as u64;
            match result {
                Ok(_) => assert!(expands <= MAX_RATIO),
                Err(error) => assert_eq!(exceeded_limit(&error).unwrap().1, 1000),
            }
            assert_eq!(expands > MAX_RATIO, bomb || expands > MAX_RATIO);
        }
    }

    /// F1-101. The archives are those of Python's `bz2` and `lzma`.
    #[test]
    fn bzip2_and_xz_are_read_several_streams_included() {
        const BZIP2: &[u8] = b"\x42\x5a\x68\x39\x31\x41\x59\x26\x53\x59\xc1\xc0\x80\xe2\x00\x00\x01\x41\x00\x00\x10\x02\x44\xa0\x00\x30\xcd\x00\xc3\x46\x29\x97\x17\x72\x45\x38\x50\x90\xc1\xc0\x80\xe2";
        const XZ: &[u8] = b"\xfd\x37\x7a\x58\x5a\x00\x00\x04\xe6\xd6\xb4\x46\x02\x00\x21\x01\x16\x00\x00\x00\x74\x2f\xe5\xa3\x01\x00\x05\x68\x65\x6c\x6c\x6f\x0a\x00\x00\x00\xa5\x60\x97\xf1\x94\xf6\xfd\xe0\x00\x01\x1e\x06\xc1\x2f\xa4\x1d\x1f\xb6\xf3\x7d\x01\x00\x00\x00\x00\x04\x59\x5a";
        for archive in [BZIP2, XZ] {
            let mut text = String::new();
            decompress(&archive.repeat(2)[..]).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "hello\nhello\n");
            let cut = &archive[..archive.len() - 9];
            assert!(io::copy(&mut decompress(cut).unwrap(), &mut io::sink()).is_err());
        }
    }
}
