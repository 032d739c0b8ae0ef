//! Entries to a compressed archive, in frames that are read and compressed on all cores.
//!
//! The archive is planned first, from headers and sizes alone: which bytes and which parts of which files each frame has.
//! A frame is one job of rayon's threads, which reads its files and compresses them ([`super::pack`]). What the jobs give is
//! taken in order: the archive's hash on one thread, the blob on the caller's. The bytes follow from the entries, the kind
//! of compression and its level; never from timing, the number of cores, or what was compressed before.
//!
//! Frames are cut where the path of an entry says so, so that an entry that comes or goes moves its own frame and, at most,
//! the next ones up to such a path. All other frames stay as they are and are found again ([`KnownFrames`]).

use std::io::Write;
use std::mem;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use build_engine_oci::Hasher;

use super::compress::{Compression, FRAME_BYTES, Ordered};
use super::entries::{Opened, Opener};
use super::pack::{self, KnownFrames, Run};
use super::write::{END, Encoded, FileContent, encode_entry};
use super::{Content, Entries, LayerError, WriteOptions, Written};

/// A frame has at least this much, unless a large file comes after it.
const FRAME_LEAST: usize = 256 << 10;
/// An entry of this size begins a frame, whatever its path.
const LARGE: usize = 512 << 10;
/// After [`FRAME_LEAST`], there is one cut in so many bytes of entries on average.
const CUT_EVERY: u64 = 256 << 10;
/// Frames that wait for being hashed.
const HASH_BEHIND: usize = 4;

/// Writes the archive of `entries` to `out`, compressed. Frames that are `known`, which is asked when there is more than one
/// frame, are copied. Returns, besides, where in `out` each frame is that can be copied in turn.
///
/// # Errors
/// As [`super::write`]'s.
pub fn write_blob(
    entries: &mut dyn Entries,
    options: WriteOptions,
    compression: Compression,
    known: &dyn Fn() -> KnownFrames,
    out: &mut dyn Write,
) -> Result<(Written, Vec<pack::FramePlace>), LayerError> {
    let mut planner = Planner {
        frame: Frame::default(),
        running: Ordered::new(),
        compression,
        known: Arc::default(),
        ask: Some(known),
        out: Out { out, hash: ArchiveHash::Here(Hasher::new()), offset: 0, places: Vec::new() },
    };
    let mut header = Vec::new();
    let mut count = 0;
    while let Some(entry) = entries.next_entry()? {
        let path_hash = hash_of(entry.path.as_os_str().as_bytes());
        header.clear();
        let encoded = encode_entry(entry, options, &mut header)?;
        count += encoded.entries;
        planner.entry(&header, encoded, path_hash)?;
    }
    planner.bytes(&[0; END]);
    planner.start()?;
    while planner.take_oldest()? {}
    let Planner { out: Out { hash, places, .. }, .. } = planner;
    let (diff_id, size_bytes) = hash.finish();
    Ok((Written { diff_id, size_bytes, entries: count }, places))
}

/// A hash that is the same everywhere and for ever (FNV-1a, and a finalizer because its high bits are poor).
fn hash_of(path: &[u8]) -> u64 {
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = path.iter().fold(0xcbf2_9ce4_8422_2325, fnv);
    let hash = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}

/// A piece of the archive that is compressed by itself.
#[derive(Default)]
struct Frame {
    parts: Vec<Part>,
    length: usize,
}

enum Part {
    Bytes(Vec<u8>),
    /// All of a file.
    File(FileContent),
    /// A piece of one.
    Piece {
        file: Arc<Opened>,
        offset: u64,
        length: usize,
    },
}

/// A frame that was read and compressed.
struct Packed {
    archive: Vec<u8>,
    /// Empty where the archive itself is what is written.
    runs: Vec<Run>,
}

impl Frame {
    fn pack(self, compression: Compression, known: &KnownFrames) -> Result<Packed, LayerError> {
        let mut archive = Vec::with_capacity(self.length);
        let mut contents = Vec::new();
        let mut opener = Opener::default();
        for part in self.parts {
            let start = archive.len();
            match part {
                Part::Bytes(bytes) => {
                    archive.extend_from_slice(&bytes);
                    continue;
                }
                Part::File(FileContent { content, size, shown }) => {
                    // A frame is no longer than what memory holds.
                    opener.open(content, size, shown)?.read(
                        0,
                        usize::try_from(size).unwrap_or(usize::MAX),
                        &mut archive,
                    )?;
                }
                Part::Piece { file, offset, length } => file.read(offset, length, &mut archive)?,
            }
            contents.push(start..archive.len());
        }
        let runs = pack::pack(&archive, &contents, compression, known).map_err(LayerError::Write)?;
        Ok(Packed { archive, runs })
    }
}

struct Planner<'a> {
    frame: Frame,
    running: Ordered<Result<Packed, LayerError>>,
    compression: Compression,
    known: Arc<KnownFrames>,
    /// Asked when the first of several frames is complete.
    ask: Option<&'a dyn Fn() -> KnownFrames>,
    out: Out<'a>,
}

impl Planner<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.frame.length += bytes.len();
        match self.frame.parts.last_mut() {
            Some(Part::Bytes(last)) => last.extend_from_slice(bytes),
            _ if bytes.is_empty() => {}
            _ => self.frame.parts.push(Part::Bytes(bytes.to_vec())),
        }
    }

    fn entry(&mut self, header: &[u8], encoded: Encoded, path_hash: u64) -> Result<(), LayerError> {
        let Encoded { content, tail, .. } = encoded;
        let size = content.as_ref().map_or(0, |it| it.size);
        let length = usize::try_from(size).unwrap_or(usize::MAX).saturating_add(header.len() + tail.len());
        // A long entry is as likely to begin a frame as many short ones together.
        let is_cut = (u128::from(path_hash) * u128::from(CUT_EVERY)) >> 64 < length as u128;
        let before = self.frame.length;
        if before > 0
            && (length >= LARGE || before.saturating_add(length) > FRAME_BYTES || (before >= FRAME_LEAST && is_cut))
        {
            self.submit()?;
        }
        self.bytes(header);
        match content {
            None => {}
            Some(content) if length >= LARGE => self.large(content)?,
            Some(FileContent { content: content @ Content::File(_), size, shown }) => {
                // It is open: files that wait in frames would use up the process's descriptors.
                let mut bytes = Vec::new();
                Opener::default().open(content, size, shown)?.read(
                    0,
                    usize::try_from(size).unwrap_or(usize::MAX),
                    &mut bytes,
                )?;
                self.bytes(&bytes);
            }
            Some(content) => {
                self.frame.length += usize::try_from(content.size).unwrap_or(usize::MAX);
                self.frame.parts.push(Part::File(content));
            }
        }
        self.bytes(&tail);
        Ok(())
    }

    /// Cuts a file at multiples of a frame's size, whatever stands before it.
    fn large(&mut self, content: FileContent) -> Result<(), LayerError> {
        let FileContent { content, size, shown } = content;
        let file = Arc::new(Opener::default().open(content, size, shown)?);
        let mut offset = 0;
        while offset < size {
            if offset > 0 {
                self.submit()?;
            }
            let length = usize::try_from(size - offset).unwrap_or(FRAME_BYTES).min(FRAME_BYTES);
            self.frame.length += length;
            self.frame.parts.push(Part::Piece { file: Arc::clone(&file), offset, length });
            offset += length as u64;
        }
        Ok(())
    }

    /// Ends a frame after which another one comes.
    fn submit(&mut self) -> Result<(), LayerError> {
        if let Some(ask) = self.ask.take() {
            self.known = Arc::new(ask());
        }
        self.start()
    }

    fn start(&mut self) -> Result<(), LayerError> {
        let frame = mem::take(&mut self.frame);
        let (compression, known) = (self.compression, Arc::clone(&self.known));
        self.running.start(move || frame.pack(compression, &known));
        while self.running.is_full() {
            self.take_oldest()?;
        }
        Ok(())
    }

    /// Writes the oldest frame that is being compressed; returns whether there was one.
    fn take_oldest(&mut self) -> Result<bool, LayerError> {
        let Some(packed) = self.running.next() else { return Ok(false) };
        let is_last = self.running.is_empty();
        self.out.write(packed.map_err(LayerError::Write)??, is_last)?;
        Ok(true)
    }
}

struct Out<'a> {
    out: &'a mut dyn Write,
    hash: ArchiveHash,
    offset: u64,
    places: Vec<pack::FramePlace>,
}

impl Out<'_> {
    fn write(&mut self, packed: Packed, is_last: bool) -> Result<(), LayerError> {
        let Packed { archive, runs } = packed;
        if runs.is_empty() {
            self.out.write_all(&archive).map_err(LayerError::Write)?;
        }
        // The last frame is hashed here: it is not worth a thread, and with a single one there is none.
        self.hash.update(archive, is_last);
        for Run { bytes, key } in runs {
            self.out.write_all(&bytes).map_err(LayerError::Write)?;
            let length = bytes.len() as u64;
            if let Some(key) = key {
                self.places.push(pack::FramePlace { key, offset: self.offset, length });
            }
            self.offset += length;
        }
        Ok(())
    }
}

/// The hash of the archive, on a thread of its own where there is more than one frame.
enum ArchiveHash {
    Here(Hasher),
    Aside { frames: SyncSender<Vec<u8>>, thread: JoinHandle<Hasher> },
}

impl ArchiveHash {
    fn update(&mut self, archive: Vec<u8>, is_last: bool) {
        match self {
            Self::Here(hasher) if is_last => hasher.update(&archive),
            Self::Here(hasher) => {
                let mut hasher = mem::take(hasher);
                let (frames, waiting) = sync_channel::<Vec<u8>>(HASH_BEHIND);
                let thread = std::thread::spawn(move || {
                    hasher.update(&archive);
                    for archive in waiting {
                        hasher.update(&archive);
                    }
                    hasher
                });
                *self = Self::Aside { frames, thread };
            }
            Self::Aside { frames, .. } => {
                // The thread ends only when this end is gone.
                let _ = frames.send(archive);
            }
        }
    }

    fn finish(self) -> (build_engine_oci::DiffId, u64) {
        let hasher = match self {
            Self::Here(hasher) => hasher,
            Self::Aside { frames, thread } => {
                drop(frames);
                thread.join().expect("hashing does not panic")
            }
        };
        let size_bytes = hasher.size_bytes();
        (hasher.finish().into(), size_bytes)
    }
}

#[cfg(test)]
mod tests;
