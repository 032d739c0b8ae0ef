//! Entries to an archive.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use build_engine_oci::{DiffId, Hasher};
use build_engine_rootfs::{Kind, is_layer_xattr};

use super::error::escape;
use super::header::{BLOCK, Header, encode, pad};
use super::{Content, Entries, LayerEntry, LayerError, OPAQUE, WHITEOUT};

/// How much is gathered before it is hashed and written.
const BUFFER: usize = 256 << 10;

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
    let mut archive = Archive { out, hasher: Hasher::new(), buffer: Vec::with_capacity(BUFFER + 2 * BLOCK) };
    let mut count = 0;
    while let Some(entry) = entries.next_entry()? {
        count += archive.entry(entry, options)?;
    }
    archive.buffer.resize(archive.buffer.len() + 2 * BLOCK, 0);
    archive.flush()?;
    let size_bytes = archive.hasher.size_bytes();
    Ok(Written { diff_id: archive.hasher.finish().into(), size_bytes, entries: count })
}

struct Archive<'a, W: ?Sized> {
    out: &'a mut W,
    hasher: Hasher,
    buffer: Vec<u8>,
}

impl<W: Write + ?Sized> Archive<'_, W> {
    fn flush(&mut self) -> Result<(), LayerError> {
        self.hasher.update(&self.buffer);
        self.out.write_all(&self.buffer).map_err(LayerError::Write)?;
        self.buffer.clear();
        Ok(())
    }

    fn header(&mut self, header: &Header<'_>) -> Result<(), LayerError> {
        encode(header, &mut self.buffer);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Writes one entry and returns how many the archive got for it.
    fn entry(&mut self, source: LayerEntry, options: WriteOptions) -> Result<u64, LayerError> {
        let LayerEntry { path, entry, hard_link, content } = source.opened()?;
        let metadata = &entry.metadata;
        let mut name = path.as_os_str().as_bytes().to_vec();
        if metadata.is_whiteout() {
            // containerd gives whiteouts neither mode nor time.
            let name = whiteout_name(&path, WHITEOUT, path.file_name().unwrap_or_default().as_bytes());
            self.header(&Header { name: &name, kind: b'0', ..Header::default() })?;
            return Ok(1);
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
            Kind::Socket => return Ok(0),
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
        self.header(&header)?;
        match content {
            _ if size == 0 => {}
            Some(Content::Bytes(bytes)) if bytes.len() as u64 == size => {
                self.buffer.extend_from_slice(&bytes);
                pad(&mut self.buffer, size);
            }
            Some(Content::File(file)) => self.file(file, size, &path)?,
            Some(Content::Bytes(_) | Content::Later(_)) | None => {
                return Err(LayerError::Changed { path: escape(&name) });
            }
        }
        if entry.opaque {
            let name = [&name[..], OPAQUE].concat();
            self.header(&Header { name: &name, kind: b'0', ..Header::default() })?;
            return Ok(2);
        }
        Ok(1)
    }

    fn file(&mut self, mut file: File, size: u64, path: &Path) -> Result<(), LayerError> {
        let shown = || escape(path.as_os_str().as_bytes());
        let unreadable = |source: io::Error| LayerError::Content { action: "read", path: shown(), source };
        let before = file.metadata().map_err(unreadable)?;
        let mut left = size;
        while left > 0 {
            let start = self.buffer.len();
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(BUFFER);
            self.buffer.resize(start + want, 0);
            let got = file.read(&mut self.buffer[start..]).map_err(unreadable)?;
            self.buffer.truncate(start + got);
            if got == 0 {
                return Err(LayerError::Changed { path: shown() });
            }
            left -= got as u64;
            if self.buffer.len() >= BUFFER {
                self.flush()?;
            }
        }
        let after = file.metadata().map_err(unreadable)?;
        let state = |metadata: &std::fs::Metadata| {
            (metadata.size(), metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec())
        };
        if after.size() != size || state(&before) != state(&after) {
            return Err(LayerError::Changed { path: shown() });
        }
        pad(&mut self.buffer, size);
        Ok(())
    }
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
