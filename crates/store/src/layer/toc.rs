//! Tables of contents: which file's bytes are where in a blob, for runtimes that fetch files one by one.
//!
//! Two forms have them. eStargz (containerd's `docs/estargz.md`) is a gzip file whose last entry is the table and whose last
//! member says where that is. zstd:chunked (`pkg/chunked` of containers/storage) is a zstd file that ends in frames which
//! decoders skip. In both, each piece of a file's content is compressed by itself.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use build_engine_oci::Digest;
use serde::Serialize;

use super::LayerError;
use super::compress::Compression;
use super::header::{Header, encode, pad};

/// Name of an eStargz table.
const ESTARGZ_TABLE: &[u8] = b"stargz.index.json";
/// The file of an eStargz blob that says that no file is more urgent than others, and its content.
const NO_PREFETCH: &[u8] = b".no.prefetch.landmark";
const PREFETCH: &[u8] = b".prefetch.landmark";
pub(super) const LANDMARK: &[u8] = &[0x0f];
const XATTR: &[u8] = b"SCHILY.xattr.";
/// Magic number of zstd's first kind of skippable frames (RFC 8878, 3.1.2).
const SKIPPABLE: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];
/// What ends the footer of zstd:chunked.
const CHUNKED: [u8; 8] = *b"GNUlInUx";
/// The kind of table that zstd:chunked has.
const CHUNKED_TABLE: u64 = 1;

/// Digest of an eStargz table.
pub(crate) const ESTARGZ_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
/// Uncompressed size of an eStargz blob.
const ESTARGZ_SIZE: &str = "io.containers.estargz.uncompressed-size";
/// Digest of a compressed zstd:chunked table, and where it is.
pub(crate) const CHUNKED_DIGEST: &str = "io.github.containers.zstd-chunked.manifest-checksum";
const CHUNKED_PLACE: &str = "io.github.containers.zstd-chunked.manifest-position";

/// An entry of a table: of the archive, or a further piece of the content of the one before it.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TocEntry {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(rename = "modtime", skip_serializing_if = "Option::is_none")]
    mtime: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    link_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dev_major: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dev_minor: Option<u32>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) digest: Option<Digest>,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) end_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) chunk_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) chunk_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) chunk_digest: Option<Digest>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl TocEntry {
    pub(super) fn of(header: &Header<'_>) -> Self {
        let kind = match header.kind {
            b'1' => "hardlink",
            b'2' => "symlink",
            b'3' => "char",
            b'4' => "block",
            b'5' => "dir",
            b'6' => "fifo",
            _ => "reg",
        };
        let is_device = matches!(header.kind, b'3' | b'4');
        let xattr =
            |(key, value): (&Vec<u8>, &Vec<u8>)| Some((text(key.strip_prefix(XATTR)?), BASE64_STANDARD.encode(value)));
        Self {
            name: text(header.name),
            kind,
            size: header.size,
            mtime: jiff::Timestamp::from_second(header.mtime).ok().map(|time| time.to_string()),
            link_name: text(header.link),
            mode: Some(header.mode),
            uid: Some(header.uid),
            gid: Some(header.gid),
            dev_major: is_device.then_some(header.device.0),
            dev_minor: is_device.then_some(header.device.1),
            xattrs: header.records.iter().filter_map(xattr).collect(),
            ..Self::default()
        }
    }
}

/// A piece of a file's content in a frame: it is compressed by itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    /// Where in the frame's archive it begins.
    pub(super) start: usize,
    pub(super) length: usize,
    /// Its entry of the table.
    pub(super) entry: usize,
}

/// A table that grows with the archive.
pub(super) struct Contents {
    pub(super) is_estargz: bool,
    pub(super) entries: Vec<TocEntry>,
    /// The entry whose content is being written in several pieces, and its hash so far.
    open: Option<(usize, build_engine_oci::Hasher)>,
}

impl Contents {
    /// The table that a blob of this kind has.
    pub(super) fn of(compression: Compression) -> Option<Self> {
        let is_estargz = match compression {
            Compression::Estargz { .. } => true,
            Compression::ZstdChunked { .. } => false,
            Compression::Uncompressed | Compression::Gzip { .. } | Compression::Zstd { .. } => return None,
        };
        Some(Self { is_estargz, entries: Vec::new(), open: None })
    }

    /// The header of the file that eStargz wants to have first; its content is [`LANDMARK`].
    pub(super) fn landmark(&mut self) -> Option<Vec<u8>> {
        if !self.is_estargz {
            return None;
        }
        let size = LANDMARK.len() as u64;
        let header = Header { name: NO_PREFETCH, kind: b'0', mode: 0o644, size, ..Header::default() };
        self.entries.push(TocEntry::of(&header));
        let mut block = Vec::new();
        encode(&header, &mut block);
        Some(block)
    }

    /// Whether an entry of an archive has no place in one that gets this table.
    pub(super) fn replaces(&self, name: &[u8]) -> bool {
        self.is_estargz && [ESTARGZ_TABLE, NO_PREFETCH, PREFETCH].contains(&name.strip_prefix(b"./").unwrap_or(name))
    }

    /// Makes an entry for a piece from `offset` on of the last entry's content. Returns which one it is.
    pub(super) fn chunk(&mut self, offset: u64, length: usize) -> usize {
        let first = self.entries.iter().rposition(|entry| entry.kind == "reg").unwrap_or_default();
        let size = self.entries[first].size;
        if offset > 0 {
            let name = self.entries[first].name.clone();
            self.entries.push(TocEntry { name, kind: "chunk", chunk_offset: offset, ..TocEntry::default() });
        }
        let entry = self.entries.len() - 1;
        // eStargz leaves the size of the last piece out.
        let (length, is_last) = (length as u64, offset + length as u64 == size);
        if length < size && !(is_last && self.is_estargz) {
            self.entries[entry].chunk_size = length;
        }
        entry
    }

    /// Notes where a piece came to lie. Pieces come in order.
    pub(super) fn place(&mut self, entry: usize, content: &[u8], digest: Digest, offset: u64, end: u64) {
        let is_further = self.entries[entry].kind == "chunk";
        let is_whole = !is_further && self.entries[entry].size == content.len() as u64;
        let it = &mut self.entries[entry];
        it.offset = offset;
        if self.is_estargz || !is_whole {
            it.chunk_digest = Some(digest.clone());
        }
        if is_whole {
            it.digest = Some(digest);
            it.end_offset = if self.is_estargz { 0 } else { end };
            return;
        }
        if !is_further {
            self.open = Some((entry, build_engine_oci::Hasher::new()));
        }
        let Some((first, mut hasher)) = self.open.take() else { return };
        hasher.update(content);
        if hasher.size_bytes() < self.entries[first].size {
            self.open = Some((first, hasher));
            return;
        }
        let it = &mut self.entries[first];
        it.digest = Some(hasher.finish());
        it.end_offset = if self.is_estargz { 0 } else { end };
    }

    fn table(&self) -> Result<Vec<u8>, LayerError> {
        #[derive(Serialize)]
        struct Table<'a> {
            version: u32,
            entries: &'a [TocEntry],
        }
        let table = Table { version: 1, entries: &self.entries };
        serde_json::to_vec(&table).map_err(|error| LayerError::Write(error.into()))
    }

    /// What follows the entries of an archive, uncompressed: the table of eStargz, and `plain`, which ends every archive.
    pub(super) fn archive_end(
        &self,
        plain: &[u8],
        annotations: &mut BTreeMap<String, String>,
    ) -> Result<Vec<u8>, LayerError> {
        let mut end = Vec::new();
        if self.is_estargz {
            let table = self.table()?;
            let size = table.len() as u64;
            encode(&Header { name: ESTARGZ_TABLE, kind: b'0', size, ..Header::default() }, &mut end);
            end.extend_from_slice(&table);
            pad(&mut end, size);
            annotations.insert(ESTARGZ_DIGEST.into(), Digest::sha256(&table).to_string());
        }
        end.extend_from_slice(plain);
        Ok(end)
    }

    /// What follows the archive in the blob. The part that [`Contents::archive_end`] gave begins at `table` and ends at
    /// `end`, and the archive has `uncompressed` bytes.
    pub(super) fn blob_end(
        &self,
        compression: Compression,
        (table, end): (u64, u64),
        uncompressed: u64,
        annotations: &mut BTreeMap<String, String>,
    ) -> Result<Vec<u8>, LayerError> {
        if self.is_estargz {
            annotations.insert(ESTARGZ_SIZE.into(), uncompressed.to_string());
            return Ok(estargz_footer(table));
        }
        let table = self.table()?;
        let packed = compression.compress(&table).map_err(LayerError::Write)?;
        // Behind the magic number and the length of the frame.
        let offset = end + 8;
        annotations.insert(CHUNKED_DIGEST.into(), Digest::sha256(&packed).to_string());
        let place = format!("{offset}:{}:{}:{CHUNKED_TABLE}", packed.len(), table.len());
        annotations.insert(CHUNKED_PLACE.into(), place);
        let mut footer = Vec::new();
        // The last three numbers are those of data that only containers/storage itself makes: there is none here.
        for number in [offset, packed.len() as u64, table.len() as u64, CHUNKED_TABLE, 0, 0, 0] {
            footer.extend_from_slice(&number.to_le_bytes());
        }
        footer.extend_from_slice(&CHUNKED);
        let mut out = Vec::new();
        for content in [&packed, &footer] {
            let length = u32::try_from(content.len())
                .map_err(|_| LayerError::Limit { what: "the table of contents in bytes", limit: u32::MAX.into() })?;
            out.extend_from_slice(&SKIPPABLE);
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(content);
        }
        Ok(out)
    }
}

/// An empty gzip member that says where the table is.
fn estargz_footer(table: u64) -> Vec<u8> {
    let place = format!("{table:016x}STARGZ");
    let length = place.len() as u16;
    let mut footer = vec![0x1f, 0x8b, 0x08, 0x04, 0, 0, 0, 0, 0, 0xff];
    footer.extend_from_slice(&(length + 4).to_le_bytes());
    footer.extend_from_slice(b"SG");
    footer.extend_from_slice(&length.to_le_bytes());
    footer.extend_from_slice(place.as_bytes());
    footer.extend_from_slice(&[1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    footer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_what_its_header_says() {
        let capability = (b"SCHILY.xattr.security.capability".to_vec(), b"x\0y".to_vec());
        let records = BTreeMap::from([capability, (b"mtime".to_vec(), b"1".to_vec())]);
        let header =
            Header { name: b"tty", kind: b'3', mode: 0o4755, uid: 7, device: (5, 1), records, ..Header::default() };
        let entry = serde_json::to_value(TocEntry::of(&header)).unwrap();
        let expected = serde_json::json!({
            "name": "tty", "type": "char", "modtime": "1970-01-01T00:00:00Z", "mode": 0o4755, "uid": 7, "gid": 0,
            "devMajor": 5, "devMinor": 1, "xattrs": { "security.capability": "eAB5" }
        });
        assert_eq!(entry, expected);
    }
}
