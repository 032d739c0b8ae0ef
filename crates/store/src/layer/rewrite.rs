//! An archive that somebody else has written, compressed anew: every byte of it stays.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::rc::Rc;

use build_engine_rootfs::Kind;

use super::compress::{Compression, FRAME_BYTES};
use super::frames::{Planner, WrittenBlob};
use super::header::{BLOCK, Header};
use super::pack::KnownFrames;
use super::read::{Archive, EntryKind, TarEntry};
use super::toc::TocEntry;
use super::{LayerError, Limits};

/// Writes the archive that `reader` gives to `out`, compressed; see [`super::write_blob`]. The table of contents of eStargz
/// replaces one that is there, and is the only thing that makes another archive of it.
///
/// # Errors
/// As those of [`super::apply`] about the archive, and [`LayerError::Write`].
pub fn rewrite_blob(
    reader: impl Read,
    compression: Compression,
    known: &dyn Fn() -> KnownFrames,
    out: &mut dyn Write,
) -> Result<WrittenBlob, LayerError> {
    let mut planner = Planner::new(compression, known, out);
    let mut count = planner.landmark();
    let seen = Rc::new(RefCell::new(Vec::new()));
    let mut archive = Archive::new(Seen { reader, seen: Rc::clone(&seen) }, Limits::default());
    let mut buffer = Vec::new();
    // Bytes that fill the last block of the content before, and whether its entry stays.
    let (mut padding, mut stays) = (0, true);
    loop {
        let entry = archive.next()?;
        let header = seen.take();
        if stays {
            planner.bytes(&header[..padding]);
        }
        let header = &header[padding..];
        let Some(entry) = entry else {
            let seen = Rc::clone(&seen);
            archive.finish()?;
            return planner.finish(count, &[header, &seen.take()].concat());
        };
        let size = archive.left();
        padding = (BLOCK - (size % BLOCK as u64) as usize) % BLOCK;
        stays = !planner.replaces(&entry.name);
        if stays {
            count += 1;
            planner.note(|| toc_entry(&entry, size));
            let length = usize::try_from(size).unwrap_or(usize::MAX).saturating_add(header.len() + padding);
            planner.begin(header, length, &entry.name)?;
        }
        let mut offset = 0;
        while offset < size {
            let length = usize::try_from(size - offset).unwrap_or(FRAME_BYTES).min(FRAME_BYTES);
            buffer.resize(length, 0);
            let mut filled = 0;
            while filled < length {
                filled += archive.content(&mut buffer[filled..])?;
            }
            seen.take();
            if stays {
                planner.content(offset, buffer.clone())?;
            }
            offset += length as u64;
        }
    }
}

fn toc_entry(entry: &TarEntry, size: u64) -> TocEntry {
    let kind = match entry.kind {
        EntryKind::HardLink => b'1',
        EntryKind::Node(kind) => match kind {
            Kind::File | Kind::Socket => b'0',
            Kind::Symlink => b'2',
            Kind::CharDevice => b'3',
            Kind::BlockDevice => b'4',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
        },
    };
    let records: BTreeMap<_, _> =
        entry.xattrs.iter().map(|(name, value)| ([b"SCHILY.xattr.", &name[..]].concat(), value.clone())).collect();
    TocEntry::of(&Header {
        name: &entry.name,
        kind,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        size,
        mtime: entry.mtime.seconds,
        link: &entry.link,
        device: entry.device,
        records,
    })
}

/// Keeps what is read until somebody takes it.
struct Seen<R> {
    reader: R,
    seen: Rc<RefCell<Vec<u8>>>,
}

impl<R: Read> Read for Seen<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.reader.read(buffer)?;
        self.seen.borrow_mut().extend_from_slice(&buffer[..got]);
        Ok(got)
    }
}
