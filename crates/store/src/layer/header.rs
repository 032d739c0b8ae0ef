//! Tar headers in the forms that Go's `archive/tar` writes when asked for PAX.
//!
//! That is: plain USTAR when everything fits, with the name split into prefix and name if it is ASCII and longer than
//! 100 bytes; otherwise a PAX record block named `DIR/PaxHeaders.0/BASE`, followed by a USTAR header with what fits.
//! Byte equality with Go is what makes diff IDs of equal content equal to BuildKit's.

use std::collections::BTreeMap;

pub(super) const BLOCK: usize = 512;

/// What a header says.
#[derive(Debug, Default)]
pub(super) struct Header<'a> {
    /// Name; a directory's ends in a slash.
    pub(super) name: &'a [u8],
    pub(super) kind: u8,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    /// Whole seconds since the epoch.
    pub(super) mtime: i64,
    pub(super) link: &'a [u8],
    pub(super) device: (u32, u32),
    /// Further PAX records.
    pub(super) records: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Appends the blocks of `header` to `out`.
pub(super) fn encode(header: &Header<'_>, out: &mut Vec<u8>) {
    let mut records = header.records.clone();
    let split = split_name(header.name);
    if (!is_ascii(header.name) || header.name.len() > 100) && split.is_none() {
        records.insert(b"path".to_vec(), header.name.to_vec());
    }
    if !is_ascii(header.link) || header.link.len() > 100 {
        records.insert(b"linkpath".to_vec(), header.link.to_vec());
    }
    for (key, value, width) in [
        ("uid", i128::from(header.uid), 8),
        ("gid", i128::from(header.gid), 8),
        ("size", i128::from(header.size), 12),
        ("mtime", i128::from(header.mtime), 12),
    ] {
        if !fits_octal(value, width) {
            records.insert(key.as_bytes().to_vec(), value.to_string().into_bytes());
        }
    }
    if records.is_empty() {
        let (prefix, name) = split.unwrap_or((b"", header.name));
        let mut block = main_block(header, name, header.link);
        put_text(&mut block[345..500], prefix);
        finish(&mut block);
        out.extend_from_slice(&block);
        return;
    }
    let mut body = Vec::new();
    for (key, value) in &records {
        put_record(&mut body, key, value);
    }
    let mut block = [0; BLOCK];
    let mut name = to_ascii(&pax_name(header.name));
    name.truncate(100);
    while name.last() == Some(&b'/') {
        name.pop();
    }
    put_text(&mut block[..100], &name);
    put_octal(&mut block[100..108], 0);
    put_octal(&mut block[108..116], 0);
    put_octal(&mut block[116..124], 0);
    put_octal(&mut block[124..136], body.len() as i128);
    put_octal(&mut block[136..148], 0);
    block[156] = b'x';
    finish(&mut block);
    out.extend_from_slice(&block);
    out.extend_from_slice(&body);
    pad(out, body.len() as u64);

    let mut block = main_block(header, &to_ascii(header.name), &to_ascii(header.link));
    finish(&mut block);
    out.extend_from_slice(&block);
}

/// Appends the zeros that fill the last block of `size` bytes of content.
pub(super) fn pad(out: &mut Vec<u8>, size: u64) {
    let used = (size % BLOCK as u64) as usize;
    if used != 0 {
        out.resize(out.len() + BLOCK - used, 0);
    }
}

fn main_block(header: &Header<'_>, name: &[u8], link: &[u8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    put_text(&mut block[..100], name);
    put_octal(&mut block[100..108], header.mode.into());
    put_octal(&mut block[108..116], header.uid.into());
    put_octal(&mut block[116..124], header.gid.into());
    put_octal(&mut block[124..136], header.size.into());
    put_octal(&mut block[136..148], header.mtime.into());
    block[156] = header.kind;
    put_text(&mut block[157..257], link);
    put_octal(&mut block[329..337], header.device.0.into());
    put_octal(&mut block[337..345], header.device.1.into());
    block
}

fn finish(block: &mut [u8; BLOCK]) {
    block[257..265].copy_from_slice(b"ustar\x0000");
    let sum = checksum(block);
    put_octal(&mut block[148..155], sum.into());
    block[155] = b' ';
}

/// Sum of the bytes of a header, those of the sum itself taken as spaces.
pub(super) fn checksum(block: &[u8; BLOCK]) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    sum(&block[..148]) + 8 * u32::from(b' ') + sum(&block[156..])
}

/// Go leaves a name that does not fit without the slash it would be cut at: some readers take that for a directory.
fn put_text(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
    if text.len() > field.len() && field.last() == Some(&b'/') {
        let cut = text[..field.len() - 1].iter().rposition(|byte| *byte != b'/').map_or(0, |index| index + 1);
        field[cut] = 0;
    }
}

/// Zero-padded octal with a final NUL; zero for what does not fit, which then stands in a PAX record.
fn put_octal(field: &mut [u8], value: i128) {
    let value = if fits_octal(value, field.len()) { value } else { 0 };
    let width = field.len() - 1;
    field[..width].copy_from_slice(format!("{value:0width$o}").as_bytes());
    field[width] = 0;
}

fn fits_octal(value: i128, width: usize) -> bool {
    value >= 0 && value < 1 << (3 * (width - 1))
}

fn put_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    // One digit more may be needed for the digit that was added.
    if rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn pax_name(name: &[u8]) -> Vec<u8> {
    let slash = name.iter().rposition(|byte| *byte == b'/');
    let (dir, base) = slash.map_or((&b""[..], name), |index| (&name[..index], &name[index + 1..]));
    let mut path = Vec::new();
    for part in [dir, b"PaxHeaders.0", base] {
        if !part.is_empty() {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(part);
        }
    }
    path
}

fn is_ascii(text: &[u8]) -> bool {
    text.iter().all(|byte| *byte < 0x80 && *byte != 0)
}

fn to_ascii(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(|byte| *byte < 0x80 && *byte != 0).collect()
}

/// Splits a long ASCII name at a slash into USTAR's prefix (155 bytes) and name (100 bytes).
fn split_name(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if name.len() <= 100 || !is_ascii(name) {
        return None;
    }
    let end = if name.len() > 156 {
        156
    } else if name.last() == Some(&b'/') {
        name.len() - 1
    } else {
        name.len()
    };
    let slash = name[..end].iter().rposition(|byte| *byte == b'/')?;
    let suffix = name.len() - slash - 1;
    (slash > 0 && slash <= 155 && (1..=100).contains(&suffix)).then(|| (&name[..slash], &name[slash + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule of the PAX format: the length counts its own digits.
    #[test]
    fn a_record_counts_its_own_length() {
        for value in [1, 2, 3, 4, 5, 6, 90, 92, 93, 94, 95, 990, 993, 994, 995] {
            let mut out = Vec::new();
            put_record(&mut out, b"k", &vec![b'v'; value]);
            let text = String::from_utf8(out).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), text.len());
        }
    }
}
