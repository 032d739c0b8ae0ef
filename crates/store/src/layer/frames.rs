//! Entries to a compressed archive, in frames that are read and compressed on all cores.
//!
//! The archive is planned first, from headers and sizes alone: which bytes and which parts of which files each frame has.
//! A frame is one job of rayon's threads, which reads its files and compresses them ([`super::pack`]). What the jobs give is
//! taken in order: the archive's hash on one thread, the blob on the caller's. The bytes follow from the entries, the kind
//! of compression and its level; never from timing, the number of cores, or what was compressed before.
//!
//! Frames are cut where the path of an entry says so, so that an entry that comes or goes moves its own frame and, at most,
//! the next ones up to such a path. All other frames stay as they are and are found again ([`KnownFrames`]).

use std::collections::BTreeMap;
use std::io::Write;
use std::mem;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use build_engine_oci::{Digest, Hasher};

use super::compress::{Compression, FRAME_BYTES, Ordered};
use super::entries::{Opened, Opener};
use super::header::pad;
use super::pack::{self, KnownFrames, Run};
use super::toc::{Chunk, Contents, LANDMARK, TocEntry};
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
/// frame, are copied. A table of contents is part of the archive where the form wants that (eStargz).
///
/// # Errors
/// As [`super::write`]'s.
pub fn write_blob(
    entries: &mut dyn Entries,
    options: WriteOptions,
    compression: Compression,
    known: &dyn Fn() -> KnownFrames,
    out: &mut dyn Write,
) -> Result<WrittenBlob, LayerError> {
    let mut planner = Planner::new(compression, known, out);
    let mut header = Vec::new();
    let mut count = planner.landmark();
    while let Some(entry) = entries.next_entry()? {
        let path = entry.path.clone();
        header.clear();
        let encoded = encode_entry(entry, options, &mut header, planner.out.contents.as_mut())?;
        count += encoded.entries;
        planner.entry(&header, encoded, path.as_os_str().as_bytes())?;
    }
    planner.finish(count, &[0; END])
}

/// A blob that was written.
#[derive(Debug)]
pub struct WrittenBlob {
    /// What is in it.
    pub archive: Written,
    /// Where in the blob each frame is that can be copied into the next one.
    pub frames: Vec<pack::FramePlace>,
    /// What a descriptor has to say of the blob.
    pub annotations: BTreeMap<String, String>,
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
    /// What a table of contents names.
    chunks: Vec<Chunk>,
}

enum Part {
    /// Headers, and what fills blocks.
    Bytes(Vec<u8>),
    /// Content that was read already.
    Content(Vec<u8>),
    /// All of a file.
    File(FileContent),
    /// A piece of one.
    Piece { file: Arc<Opened>, offset: u64, length: usize },
}

/// A frame that was read and compressed.
struct Packed {
    archive: Vec<u8>,
    /// Empty where the archive itself is what is written.
    runs: Vec<Run>,
    chunks: Vec<(Chunk, Digest)>,
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
                Part::Content(bytes) => archive.extend_from_slice(&bytes),
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
        let runs = if compression.has_contents() {
            pack::pack_chunks(&archive, &self.chunks, compression)
        } else {
            pack::pack(&archive, &contents, compression, known)
        };
        let digest = |chunk: Chunk| (chunk, Digest::sha256(&archive[chunk.start..chunk.start + chunk.length]));
        let chunks = self.chunks.into_iter().map(digest).collect();
        Ok(Packed { runs: runs.map_err(LayerError::Write)?, chunks, archive })
    }
}

/// Takes an archive piece by piece, and starts the work on a frame when it is complete.
pub(super) struct Planner<'a> {
    frame: Frame,
    running: Ordered<Result<Packed, LayerError>>,
    compression: Compression,
    known: Arc<KnownFrames>,
    /// Asked when the first of several frames is complete.
    ask: Option<&'a dyn Fn() -> KnownFrames>,
    out: Out<'a>,
}

impl<'a> Planner<'a> {
    pub(super) fn new(compression: Compression, known: &'a dyn Fn() -> KnownFrames, out: &'a mut dyn Write) -> Self {
        Self {
            frame: Frame::default(),
            running: Ordered::new(),
            compression,
            known: Arc::default(),
            ask: Some(known),
            out: Out {
                out,
                hash: ArchiveHash::Here(Hasher::new()),
                offset: 0,
                places: Vec::new(),
                contents: Contents::of(compression),
            },
        }
    }

    /// Begins with what the form wants to have first. Returns how many entries that is.
    pub(super) fn landmark(&mut self) -> u64 {
        let Some(header) = self.out.contents.as_mut().and_then(Contents::landmark) else { return 0 };
        self.bytes(&header);
        self.chunk(0, LANDMARK.len());
        self.bytes(LANDMARK);
        let mut padding = Vec::new();
        pad(&mut padding, LANDMARK.len() as u64);
        self.bytes(&padding);
        1
    }

    /// Whether an entry has to go because the form has its own of this name.
    pub(super) fn replaces(&self, name: &[u8]) -> bool {
        self.out.contents.as_ref().is_some_and(|contents| contents.replaces(name))
    }

    /// Adds an entry to the table of contents, if there is one.
    pub(super) fn note(&mut self, entry: impl FnOnce() -> TocEntry) {
        if let Some(contents) = &mut self.out.contents {
            contents.entries.push(entry());
        }
    }

    /// Notes that the next `length` bytes are a file's content from `offset` on.
    fn chunk(&mut self, offset: u64, length: usize) {
        if let Some(contents) = &mut self.out.contents {
            let entry = contents.chunk(offset, length);
            self.frame.chunks.push(Chunk { start: self.frame.length, length, entry });
        }
    }

    /// Ends the archive with `end`, and the blob with what its form wants.
    pub(super) fn finish(mut self, entries: u64, end: &[u8]) -> Result<WrittenBlob, LayerError> {
        let mut annotations = BTreeMap::new();
        if self.out.contents.is_none() {
            self.bytes(end);
            self.start()?;
            while self.take_oldest()? {}
        } else if self.frame.length > 0 {
            self.start()?;
            // Where everything is, is known when all of it is written.
            while self.take_oldest()? {}
        }
        let Self { out: mut blob, compression, .. } = self;
        let Some(contents) = blob.contents.take() else {
            let (diff_id, size_bytes) = blob.hash.finish();
            let archive = Written { diff_id, size_bytes, entries };
            return Ok(WrittenBlob { archive, frames: blob.places, annotations });
        };
        let end = contents.archive_end(end, &mut annotations)?;
        let packed = compression.compress(&end).map_err(LayerError::Write)?;
        blob.out.write_all(&packed).map_err(LayerError::Write)?;
        blob.hash.update(end, true);
        let table = (blob.offset, blob.offset + packed.len() as u64);
        let (diff_id, size_bytes) = blob.hash.finish();
        let end = contents.blob_end(compression, table, size_bytes, &mut annotations)?;
        blob.out.write_all(&end).map_err(LayerError::Write)?;
        // The table is an entry of its own in one of the two forms.
        let entries = entries + u64::from(contents.is_estargz);
        Ok(WrittenBlob { archive: Written { diff_id, size_bytes, entries }, frames: blob.places, annotations })
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.frame.length += bytes.len();
        match self.frame.parts.last_mut() {
            Some(Part::Bytes(last)) => last.extend_from_slice(bytes),
            _ if bytes.is_empty() => {}
            _ => self.frame.parts.push(Part::Bytes(bytes.to_vec())),
        }
    }

    /// Begins an entry that is `length` bytes long with its header: in a new frame, if that is where one is cut.
    pub(super) fn begin(&mut self, header: &[u8], length: usize, path: &[u8]) -> Result<(), LayerError> {
        // A long entry is as likely to begin a frame as many short ones together.
        let is_cut = (u128::from(hash_of(path)) * u128::from(CUT_EVERY)) >> 64 < length as u128;
        let before = self.frame.length;
        if before > 0
            && (length >= LARGE || before.saturating_add(length) > FRAME_BYTES || (before >= FRAME_LEAST && is_cut))
        {
            self.submit()?;
        }
        self.bytes(header);
        Ok(())
    }

    /// Goes on with content that begins at `offset` of its file; at most [`FRAME_BYTES`], and that much but for the last.
    pub(super) fn content(&mut self, offset: u64, content: Vec<u8>) -> Result<(), LayerError> {
        if offset > 0 {
            self.submit()?;
        }
        self.chunk(offset, content.len());
        self.frame.length += content.len();
        self.frame.parts.push(Part::Content(content));
        Ok(())
    }

    fn entry(&mut self, header: &[u8], encoded: Encoded, path: &[u8]) -> Result<(), LayerError> {
        let Encoded { content, tail, .. } = encoded;
        let size = content.as_ref().map_or(0, |it| usize::try_from(it.size).unwrap_or(usize::MAX));
        let length = size.saturating_add(header.len() + tail.len());
        self.begin(header, length, path)?;
        match content {
            None => {}
            Some(content) if length >= LARGE => self.large(content)?,
            Some(FileContent { content: content @ Content::File(_), size: size_bytes, shown }) => {
                // It is open: files that wait in frames would use up the process's descriptors.
                let mut bytes = Vec::new();
                Opener::default().open(content, size_bytes, shown)?.read(0, size, &mut bytes)?;
                self.content(0, bytes)?;
            }
            Some(content) => {
                self.chunk(0, size);
                self.frame.length += size;
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
            self.chunk(offset, length);
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
    contents: Option<Contents>,
}

impl Out<'_> {
    fn write(&mut self, packed: Packed, is_last: bool) -> Result<(), LayerError> {
        let Packed { archive, runs, chunks } = packed;
        if runs.is_empty() {
            self.out.write_all(&archive).map_err(LayerError::Write)?;
        }
        let mut chunks = chunks.into_iter().peekable();
        let mut offset = self.offset;
        for run in &runs {
            let end = offset + run.bytes.len() as u64;
            if let Some(contents) = &mut self.contents
                && let Some((chunk, digest)) = chunks.next_if(|(chunk, _)| chunk.start == run.start)
            {
                let content = &archive[chunk.start..chunk.start + chunk.length];
                contents.place(chunk.entry, content, digest, offset, end);
            }
            offset = end;
        }
        // The last frame is hashed here: it is not worth a thread, and with a single one there is none.
        self.hash.update(archive, is_last);
        for Run { bytes, key, .. } in runs {
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
