//! A strict reader of tar archives.
//!
//! Whatever two common readers take for different lists of entries is refused here: headers whose checksum is wrong,
//! numbers that are not quite numbers, sizes that contradict the kind of entry, extended headers that belong to nothing
//! or take something back, global headers that speak of entries, an archive without an end or with something after it.
//! A PAX `size` always wins over the header's; names of PAX and GNU headers belong to the next entry and to no other.
//! The readers that are meant are GNU tar, libarchive and Python's tarfile; `tests/layers` compares with them.

use std::collections::BTreeMap;
use std::io::{self, Read};

use build_engine_oci::{DiffId, Hasher};
use build_engine_rootfs::{Kind, Time};

use super::LayerError;
use super::error::escape;
use super::header::{BLOCK, checksum};

/// What a layer may contain at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a name or link target.
    pub name_bytes: usize,
    /// Components of a name.
    pub depth: usize,
    /// Bytes of the extended headers of one entry.
    pub extended_header_bytes: u64,
    /// Bytes of one extended attribute.
    pub xattr_bytes: usize,
    /// Bytes of all extended attributes of one entry.
    pub xattrs_bytes: usize,
    /// Entries.
    pub entries: u64,
    /// Bytes of the content of all files together.
    pub content_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            name_bytes: 4095,
            depth: 1024,
            // Two attributes of 64 KiB and their names must fit; the total of attributes is limited below.
            extended_header_bytes: (1 << 20) + (64 << 10),
            xattr_bytes: 64 << 10,
            xattrs_bytes: 1 << 20,
            entries: 20_000_000,
            content_bytes: 100 << 30,
        }
    }
}

/// What an entry of an archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryKind {
    Node(Kind),
    HardLink,
}

/// An entry of an archive.
#[derive(Debug)]
pub(super) struct TarEntry {
    /// Where its header begins.
    pub(super) offset: u64,
    pub(super) kind: EntryKind,
    /// As written.
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) device: (u32, u32),
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Reads an archive and hashes every byte of it.
pub(super) struct Archive<R> {
    reader: R,
    hasher: Hasher,
    limits: Limits,
    entries: u64,
    content_bytes: u64,
    /// Content of the current entry that was not read yet, and the padding after it.
    left: u64,
    padding: u64,
}

/// Records of extended headers that wait for their entry.
#[derive(Default)]
struct Extended {
    pax: Option<BTreeMap<Vec<u8>, Vec<u8>>>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    bytes: u64,
}

impl Extended {
    fn is_pending(&self) -> bool {
        self.pax.is_some() || self.long_name.is_some() || self.long_link.is_some()
    }
}

/// PAX records that a global header must not have: readers apply them to every entry, or to none.
const ENTRY_RECORDS: [&[u8]; 6] = [b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"];
/// Prefixes of such records.
const ENTRY_PREFIXES: [&[u8]; 5] = [b"SCHILY.", b"GNU.", b"LIBARCHIVE.", b"SUN.", b"RHT."];

impl<R: Read> Archive<R> {
    pub(super) fn new(reader: R, limits: Limits) -> Self {
        Self { reader, hasher: Hasher::new(), limits, entries: 0, content_bytes: 0, left: 0, padding: 0 }
    }

    fn offset(&self) -> u64 {
        self.hasher.size_bytes()
    }

    fn invalid<T>(&self, offset: u64, reason: impl Into<String>) -> Result<T, LayerError> {
        Err(LayerError::Invalid { offset, reason: reason.into() })
    }

    /// What the decompressor says about its input is said about the layer; what the system says is not.
    fn read_error(&self, error: io::Error) -> LayerError {
        LayerError::of_reading(error, self.offset())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), LayerError> {
        match self.reader.read_exact(buffer) {
            Ok(()) => {
                self.hasher.update(buffer);
                Ok(())
            }
            // Its own words for an early end; a reader that fails with this kind has others.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && error.get_ref().is_none() => {
                self.invalid(self.offset(), "the archive is truncated")
            }
            Err(error) => Err(self.read_error(error)),
        }
    }

    /// How much content of the current entry was not read yet.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Reads content of the current entry; 0 at its end.
    pub(super) fn content(&mut self, buffer: &mut [u8]) -> Result<usize, LayerError> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let got = loop {
            match self.reader.read(&mut buffer[..want]) {
                Ok(0) => return self.invalid(self.offset(), "the archive is truncated"),
                Ok(got) => break got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.read_error(error)),
            }
        };
        self.hasher.update(&buffer[..got]);
        self.left -= got as u64;
        Ok(got)
    }

    fn skip_content(&mut self) -> Result<(), LayerError> {
        let mut buffer = vec![0; 32 << 10];
        while self.content(&mut buffer)? > 0 {}
        let padding = self.padding as usize;
        self.padding = 0;
        self.fill(&mut buffer[..padding])
    }

    fn whole_content(&mut self, extended: &mut Extended) -> Result<Vec<u8>, LayerError> {
        extended.bytes += self.left;
        if extended.bytes > self.limits.extended_header_bytes {
            return Err(LayerError::Limit {
                what: "extended headers of one entry",
                limit: self.limits.extended_header_bytes,
            });
        }
        let mut content = vec![0; self.left as usize];
        self.fill(&mut content)?;
        self.left = 0;
        self.skip_content()?;
        Ok(content)
    }

    /// Moves to the next entry; `None` at the end, after which [`Archive::finish`] is due.
    pub(super) fn next(&mut self) -> Result<Option<TarEntry>, LayerError> {
        self.skip_content()?;
        let mut extended = Extended::default();
        let mut global = false;
        loop {
            let offset = self.offset();
            let mut block = [0; BLOCK];
            self.fill(&mut block)?;
            if block.iter().all(|byte| *byte == 0) {
                if extended.is_pending() || global {
                    return self.invalid(offset, "an extended header has no entry");
                }
                self.fill(&mut block)?;
                if block.iter().any(|byte| *byte != 0) {
                    return self.invalid(offset, "a zero block stands between entries");
                }
                return Ok(None);
            }
            self.check_sum(&block, offset)?;
            let size = match numeric(&block[124..136]) {
                Some(size) => size,
                None => return self.invalid(offset, "the size is no number"),
            };
            let Ok(size) = u64::try_from(size) else { return self.invalid(offset, "the size is negative") };
            let kind = block[156];
            if matches!(kind, b'x' | b'g' | b'X' | b'L' | b'K') {
                self.set_content(size, offset)?;
                let content = self.whole_content(&mut extended)?;
                let twice = match kind {
                    b'x' | b'X' => extended.pax.replace(self.records(&content, offset)?).is_some(),
                    b'L' => extended.long_name.replace(self.long_text(&content, offset)?).is_some(),
                    b'K' => extended.long_link.replace(self.long_text(&content, offset)?).is_some(),
                    _ => {
                        if extended.is_pending() {
                            return self
                                .invalid(offset, "a global header stands between an entry and its extended header");
                        }
                        self.global(&content, offset)?;
                        extended.bytes = 0;
                        global = true;
                        false
                    }
                };
                if twice {
                    return self.invalid(offset, "an entry has two extended headers of one kind");
                }
                continue;
            }
            return self.entry(&block, size, extended, offset).map(Some);
        }
    }

    /// The text of a GNU header.
    fn long_text(&self, content: &[u8], offset: u64) -> Result<Vec<u8>, LayerError> {
        match until_nul(content) {
            b"" => self.invalid(offset, "a long name is empty"),
            text => Ok(text.to_vec()),
        }
    }

    /// Checks a global header. Comments are all that layers have there (`git archive` writes one); GNU tar and Python
    /// apply the rest to every entry that follows, Go and libarchive do not.
    fn global(&mut self, content: &[u8], offset: u64) -> Result<(), LayerError> {
        self.count_entry()?;
        let speaks_of_entries =
            |key: &[u8]| ENTRY_RECORDS.contains(&key) || ENTRY_PREFIXES.iter().any(|prefix| key.starts_with(prefix));
        match self.records(content, offset)?.keys().find(|key| speaks_of_entries(key)) {
            Some(key) => self.invalid(offset, format!("a global header sets `{}`", escape(key))),
            None => Ok(()),
        }
    }

    /// Counts something that takes work, whatever its size.
    fn count_entry(&mut self) -> Result<(), LayerError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(LayerError::Limit { what: "entries", limit: self.limits.entries });
        }
        Ok(())
    }

    fn check_sum(&self, block: &[u8; BLOCK], offset: u64) -> Result<(), LayerError> {
        // Historic writers summed signed bytes; every reader accepts both.
        let signed = |bytes: &[u8]| bytes.iter().map(|byte| i128::from(*byte as i8)).sum::<i128>();
        let signed = signed(&block[..148]) + 8 * i128::from(b' ') + signed(&block[156..]);
        match numeric(&block[148..156]) {
            Some(sum) if sum == i128::from(checksum(block)) || sum == signed => Ok(()),
            Some(_) | None => self.invalid(offset, "the checksum of a header is wrong"),
        }
    }

    fn set_content(&mut self, size: u64, offset: u64) -> Result<(), LayerError> {
        if size > i64::MAX as u64 {
            return self.invalid(offset, "the size is out of range");
        }
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        Ok(())
    }

    fn records(&self, content: &[u8], offset: u64) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, LayerError> {
        let mut records = BTreeMap::new();
        let mut rest = content;
        while !rest.is_empty() {
            let parsed = (|| {
                let space = rest.iter().take(12).position(|byte| *byte == b' ')?;
                let length: usize = decimal(&rest[..space])?.try_into().ok()?;
                let record = rest.get(space + 1..length)?;
                let (b'\n', record) = record.split_last()? else { return None };
                let equals = record.iter().position(|byte| *byte == b'=')?;
                Some((length, &record[..equals], &record[equals + 1..]))
            })();
            let Some((length, key, value)) = parsed else {
                return self.invalid(offset, "an extended header is malformed");
            };
            if key.is_empty() {
                return self.invalid(offset, "an extended header has a record without a name");
            }
            // POSIX: an empty value takes a record back, and the header's field counts. Few readers know that.
            if value.is_empty() && ENTRY_RECORDS.contains(&key) {
                return self.invalid(offset, format!("an extended header has an empty `{}`", escape(key)));
            }
            records.insert(key.to_vec(), value.to_vec());
            rest = &rest[length..];
        }
        Ok(records)
    }

    /// Why a sparse file that claims this size is not unpacked.
    fn sparse(&self, size: Option<i128>, shown: &str, offset: u64) -> LayerError {
        if size.is_some_and(|size| size > i128::from(self.limits.content_bytes)) {
            return LayerError::Limit { what: "content in bytes", limit: self.limits.content_bytes };
        }
        let reason = format!("sparse entries are not supported (at byte {offset})");
        LayerError::Refused { entry: shown.to_owned(), reason }
    }

    fn entry(
        &mut self,
        block: &[u8; BLOCK],
        header_size: u64,
        extended: Extended,
        offset: u64,
    ) -> Result<TarEntry, LayerError> {
        self.count_entry()?;
        let is_pax = extended.pax.is_some();
        let mut pax = extended.pax.unwrap_or_default();
        let ustar = &block[257..263] == b"ustar\0";
        let gnu = &block[257..265] == b"ustar  \0";
        if !ustar && block[345..500].iter().any(|byte| *byte != 0) {
            // GNU's times and sparse maps stand where others read a prefix.
            return self
                .invalid(offset, "a header of an old form has something where POSIX has the prefix of the name");
        }
        let mut name = until_nul(&block[..100]).to_vec();
        let mut is_plain = extended.long_name.is_none() && !pax.contains_key(&b"path"[..]);
        if block[345] != 0 {
            name = [until_nul(&block[345..500]), b"/", &name].concat();
            is_plain = false;
        }
        let name = self.text(name, extended.long_name, pax.remove(&b"path"[..]), offset)?;
        let has_long_link = extended.long_link.is_some() || pax.contains_key(&b"linkpath"[..]);
        let link = until_nul(&block[157..257]).to_vec();
        let link = self.text(link, extended.long_link, pax.remove(&b"linkpath"[..]), offset)?;
        let shown = escape(&name);
        let refuse =
            |reason: &str| LayerError::Refused { entry: shown.clone(), reason: format!("{reason} (at byte {offset})") };
        if name.is_empty() {
            return self.invalid(offset, "an entry has no name");
        }
        for text in [&name, &link] {
            if text.len() > self.limits.name_bytes {
                return Err(refuse(&format!("a name is longer than {} bytes", self.limits.name_bytes)));
            }
            if text.contains(&0) {
                return Err(refuse("a name contains NUL"));
            }
        }
        let kind = match block[156] {
            // Before POSIX a directory was a file whose name ends in a slash. Readers differ in where they look.
            0 if is_plain && name.ends_with(b"/") => EntryKind::Node(Kind::Directory),
            0 if until_nul(&block[..100]).ends_with(b"/") => return Err(refuse("a file whose name ended in a slash")),
            b'0' | 0 | b'7' if name.ends_with(b"/") => {
                return Err(refuse("a file whose name ends in a slash"));
            }
            b'0' | 0 | b'7' => EntryKind::Node(Kind::File),
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Node(Kind::Symlink),
            b'3' => EntryKind::Node(Kind::CharDevice),
            b'4' => EntryKind::Node(Kind::BlockDevice),
            b'5' => EntryKind::Node(Kind::Directory),
            b'6' => EntryKind::Node(Kind::Fifo),
            b'S' => return Err(self.sparse(numeric(&block[483..495]), &shown, offset)),
            other => return Err(refuse(&format!("its type {:?} is unknown", other as char))),
        };
        // GNU's, star's and Solaris' forms.
        let is_sparse = |key: &Vec<u8>| {
            key.starts_with(b"GNU.sparse.") || key.starts_with(b"SUN.holes") || key == b"SCHILY.realsize"
        };
        if pax.keys().any(is_sparse) {
            let sizes = [&b"GNU.sparse.realsize"[..], b"GNU.sparse.size", b"SCHILY.realsize"];
            let size = sizes.iter().find_map(|key| decimal(pax.get(*key)?));
            return Err(self.sparse(size.map(i128::from), &shown, offset));
        }
        if has_long_link && !matches!(kind, EntryKind::HardLink | EntryKind::Node(Kind::Symlink)) {
            return Err(refuse("it has a link target but is no link"));
        }
        let mut size = header_size;
        let has_pax_size = pax.contains_key(&b"size"[..]);
        if let Some(value) = pax.remove(&b"size"[..]) {
            match decimal(&value).and_then(|size| u64::try_from(size).ok()) {
                Some(value) => size = value,
                None => return self.invalid(offset, "the size in an extended header is no number"),
            }
        }
        match kind {
            EntryKind::Node(Kind::File) => {}
            // Go and GNU tar agree that a hard link has no content, whatever its size says. In the PAX form, libarchive
            // reads content.
            EntryKind::HardLink if size != 0 && (has_pax_size || is_pax) => {
                return Err(refuse("a hard link with content"));
            }
            EntryKind::HardLink => size = 0,
            // They do not agree here.
            EntryKind::Node(_) if size != 0 => return Err(refuse("it has a size but cannot have content")),
            EntryKind::Node(_) => {}
        }
        let mut id = |key: &[u8], field: &[u8]| {
            let value = match pax.remove(key) {
                Some(value) => decimal(&value).map(i128::from),
                None => numeric(field),
            };
            value.and_then(|id| u32::try_from(id).ok()).filter(|id| *id != u32::MAX)
        };
        let (Some(uid), Some(gid)) = (id(b"uid", &block[108..116]), id(b"gid", &block[116..124])) else {
            return Err(refuse("its owner is out of range"));
        };
        let mtime = match pax.remove(&b"mtime"[..]) {
            Some(value) => pax_time(&value),
            None => numeric(&block[136..148]).and_then(|time| i64::try_from(time).ok()).map(Time::from_seconds),
        };
        let Some(mtime) = mtime else { return Err(refuse("its time is out of range")) };
        let Some(mode) = numeric(&block[100..108]) else { return Err(refuse("its mode is no number")) };
        let number = |range: std::ops::Range<usize>| match kind {
            EntryKind::Node(Kind::CharDevice | Kind::BlockDevice) => {
                // Older forms have no such fields, and star overrides them.
                let known = (ustar || gnu) && !pax.keys().any(|key| key.starts_with(b"SCHILY.dev"));
                numeric(&block[range]).and_then(|number| u32::try_from(number).ok()).filter(|_| known)
            }
            EntryKind::Node(_) | EntryKind::HardLink => Some(0),
        };
        let (Some(major), Some(minor)) = (number(329..337), number(337..345)) else {
            return Err(refuse("its device number is out of range"));
        };
        let mut xattrs = BTreeMap::new();
        let mut total = 0;
        for (key, value) in pax {
            let Some(key) = key.strip_prefix(b"SCHILY.xattr.") else { continue };
            if key.is_empty() || key.len() > 255 || key.contains(&0) {
                return Err(refuse("an extended attribute has an impossible name"));
            }
            total += key.len() + value.len();
            if value.len() > self.limits.xattr_bytes || total > self.limits.xattrs_bytes {
                return Err(LayerError::Limit {
                    what: "extended attributes of one entry",
                    limit: self.limits.xattr_bytes as u64,
                });
            }
            xattrs.insert(key.to_vec(), value);
        }
        self.content_bytes = self.content_bytes.saturating_add(size);
        if self.content_bytes > self.limits.content_bytes {
            return Err(LayerError::Limit { what: "content in bytes", limit: self.limits.content_bytes });
        }
        self.set_content(size, offset)?;
        let mode = (mode & 0o7777) as u32;
        Ok(TarEntry { offset, kind, name, link, mode, uid, gid, mtime, device: (major, minor), xattrs })
    }

    /// The one text that header, GNU header and PAX record agree on.
    fn text(
        &self,
        plain: Vec<u8>,
        long: Option<Vec<u8>>,
        pax: Option<Vec<u8>>,
        offset: u64,
    ) -> Result<Vec<u8>, LayerError> {
        match (long, pax) {
            (Some(long), Some(pax)) if long != pax => self.invalid(offset, "two extended headers name an entry"),
            (Some(text), _) | (None, Some(text)) => Ok(text),
            (None, None) => Ok(plain),
        }
    }

    /// Reads what follows the end, which may be zeros only, and returns hash, size and number of entries.
    pub(super) fn finish(mut self) -> Result<(DiffId, u64, u64), LayerError> {
        let mut buffer = vec![0; 32 << 10];
        loop {
            match self.reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(got) => {
                    if buffer[..got].iter().any(|byte| *byte != 0) {
                        return self.invalid(self.offset(), "something follows the end of the archive");
                    }
                    self.hasher.update(&buffer[..got]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.read_error(error)),
            }
        }
        let size_bytes = self.offset();
        Ok((self.hasher.finish().into(), size_bytes, self.entries))
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number in octal, or in base 256 as GNU writes large ones; zero if its first byte is NUL.
///
/// Strict, because readers skip different kinds of white space and stop at different bytes: spaces, digits, and then
/// spaces up to the end or the first NUL.
fn numeric(field: &[u8]) -> Option<i128> {
    if let [first @ (0x80 | 0xff), rest @ ..] = field {
        let sign = if *first == 0xff { -1 } else { 0 };
        return Some(rest.iter().fold(sign, |value, byte| value << 8 | i128::from(*byte)));
    }
    let text = until_nul(field);
    if text.is_empty() {
        return Some(0);
    }
    let digits = text.iter().position(|byte| *byte != b' ').map(|start| &text[start..])?;
    let end = digits.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    digits[..end].iter().try_fold(0_i128, |value, digit| match digit {
        b'0'..=b'7' => Some(value * 8 + i128::from(digit - b'0')),
        _ => None,
    })
}

fn decimal(text: &[u8]) -> Option<i64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with a fraction, possibly negative.
fn pax_time(text: &[u8]) -> Option<Time> {
    let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    let (negative, digits) = whole.strip_prefix(b"-").map_or((false, whole), |digits| (true, digits));
    let seconds = decimal(digits)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let mut nanoseconds = 0;
    for index in 0..9 {
        nanoseconds = nanoseconds * 10 + u32::from(fraction.get(index).map_or(0, |digit| digit - b'0'));
    }
    Some(match (negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time::from_seconds(-seconds),
        (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

/// Tells whether `block` is a header with a right checksum.
pub(super) fn is_header(block: &[u8]) -> bool {
    let Some(block) = block.first_chunk::<BLOCK>() else { return false };
    block.iter().any(|byte| *byte != 0) && numeric(&block[148..156]) == Some(checksum(block).into())
}
