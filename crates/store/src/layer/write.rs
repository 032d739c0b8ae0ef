//! Entries to an archive.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use build_engine_oci::{DiffId, Hasher};
use build_engine_rootfs::{Kind, is_layer_xattr};

use super::entries::Opener;
use super::error::escape;
use super::header::{BLOCK, Header, encode, pad};
use super::toc::{Contents, TocEntry};
use super::{Content, Entries, LayerEntry, LayerError, OPAQUE, WHITEOUT};

/// How much is gathered before it is hashed and written.
const BUFFER: usize = 256 << 10;
/// The zeros that end an archive.
pub(super) const END: usize = 2 * BLOCK;

/// How a layer is written.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriteOptions {
    /// Modification times after this (seconds since the epoch) become this: `rewrite-timestamp` with
    /// `SOURCE_DATE_EPOCH`.
    pub epoch: Option<i64>,
}

/// A layer that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Hash of the archive.
    pub diff_id: DiffId,
    /// Size of the archive.
    pub size_bytes: u64,
    /// Number of entries.
    pub entries: u64,
}

/// Writes the uncompressed archive of `entries` to `out`: the bytes follow from the entries and options alone.
///
/// # Errors
/// [`LayerError::Changed`] if a file is not as long as its metadata says or is written to meanwhile; `out` then holds
/// the beginning of an archive.
pub fn write(
    entries: &mut dyn Entries,
    options: WriteOptions,
    out: &mut (impl Write + ?Sized),
) -> Result<Written, LayerError> {
    let mut hasher = Hasher::new();
    let mut buffer = Vec::with_capacity(BUFFER + 2 * BLOCK);
    let mut put = |buffer: &mut Vec<u8>| {
        hasher.update(buffer);
        let written = out.write_all(buffer).map_err(LayerError::Write);
        buffer.clear();
        written
    };
    let mut opener = Opener::default();
    let mut count = 0;
    while let Some(entry) = entries.next_entry()? {
        let Encoded { content, tail, entries } = encode_entry(entry, options, &mut buffer, None)?;
        count += entries;
        if let Some(FileContent { content, size, shown }) = content {
            let file = opener.open(content, size, shown)?;
            let mut offset = 0;
            while offset < size {
                let length = usize::try_from(size - offset).unwrap_or(BUFFER).min(BUFFER);
                file.read(offset, length, &mut buffer)?;
                offset += length as u64;
                if buffer.len() >= BUFFER {
                    put(&mut buffer)?;
                }
            }
        }
        buffer.extend_from_slice(&tail);
        if buffer.len() >= BUFFER {
            put(&mut buffer)?;
        }
    }
    buffer.resize(buffer.len() + END, 0);
    put(&mut buffer)?;
    let size_bytes = hasher.size_bytes();
    Ok(Written { diff_id: hasher.finish().into(), size_bytes, entries: count })
}

/// What follows the header of an entry.
pub(super) struct Encoded {
    pub(super) content: Option<FileContent>,
    /// What comes after the content.
    pub(super) tail: Vec<u8>,
    /// How many entries of the archive it is.
    pub(super) entries: u64,
}

/// The content of a file that is not empty.
pub(super) struct FileContent {
    pub(super) content: Content,
    pub(super) size: u64,
    /// The name, for messages.
    pub(super) shown: String,
}

/// Appends the header of an entry to `out`, and tells what comes after it. A table of contents gets an entry as well.
pub(super) fn encode_entry(
    source: LayerEntry,
    options: WriteOptions,
    out: &mut Vec<u8>,
    mut contents: Option<&mut Contents>,
) -> Result<Encoded, LayerError> {
    let mut encode = |header: &Header<'_>, out: &mut Vec<u8>| {
        if let Some(contents) = &mut contents {
            contents.entries.push(TocEntry::of(header));
        }
        encode(header, out);
    };
    let LayerEntry { path, entry, hard_link, content } = source;
    let metadata = &entry.metadata;
    let nothing = |entries| Encoded { content: None, tail: Vec::new(), entries };
    let mut name = path.as_os_str().as_bytes().to_vec();
    if metadata.is_whiteout() {
        // containerd gives whiteouts neither mode nor time.
        let name = whiteout_name(&path, WHITEOUT, path.file_name().unwrap_or_default().as_bytes());
        encode(&Header { name: &name, kind: b'0', ..Header::default() }, out);
        return Ok(nothing(1));
    }
    if metadata.is_dir() {
        name.push(b'/');
    }
    let link = match (&hard_link, &entry.link) {
        (Some(first), _) => first.as_os_str().as_bytes(),
        (None, Some(target)) => target.as_bytes(),
        (None, None) => b"",
    };
    let kind = match metadata.kind {
        _ if hard_link.is_some() => b'1',
        Kind::File => b'0',
        Kind::Symlink => b'2',
        Kind::CharDevice => b'3',
        Kind::BlockDevice => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
        Kind::Socket => return Ok(nothing(0)),
    };
    let mut records = BTreeMap::new();
    for (key, value) in &entry.xattrs {
        if is_layer_xattr(key) {
            records.insert([b"SCHILY.xattr.", key.as_bytes()].concat(), value.clone());
        }
    }
    let size = if kind == b'0' { metadata.size } else { 0 };
    let header = Header {
        name: &name,
        kind,
        mode: metadata.mode,
        uid: metadata.uid,
        gid: metadata.gid,
        size,
        mtime: options.epoch.map_or(metadata.mtime.seconds, |epoch| metadata.mtime.seconds.min(epoch)),
        link,
        device: (metadata.device.major, metadata.device.minor),
        records,
    };
    encode(&header, out);
    let content = match content {
        _ if size == 0 => None,
        Some(content) => Some(FileContent { content, size, shown: escape(&name) }),
        None => return Err(LayerError::Changed { path: escape(&name) }),
    };
    let mut tail = Vec::new();
    pad(&mut tail, size);
    if entry.opaque {
        let name = [&name[..], OPAQUE].concat();
        encode(&Header { name: &name, kind: b'0', ..Header::default() }, &mut tail);
        return Ok(Encoded { content, tail, entries: 2 });
    }
    Ok(Encoded { content, tail, entries: 1 })
}

/// `DIR/PREFIX NAME`.
fn whiteout_name(path: &Path, prefix: &[u8], name: &[u8]) -> Vec<u8> {
    let mut whiteout = path.parent().map_or(Vec::new(), |parent| parent.as_os_str().as_bytes().to_vec());
    if !whiteout.is_empty() {
        whiteout.push(b'/');
    }
    whiteout.extend_from_slice(prefix);
    whiteout.extend_from_slice(name);
    whiteout
}
