//! The little of DER that old forms of private keys need.

/// The content of the first value of `bytes`, which must have this tag, and what follows it.
pub(super) fn read(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    if found != tag {
        return None;
    }
    let mut length = usize::from(first);
    if first & 0x80 != 0 {
        let count = usize::from(first & 0x7f);
        if count == 0 || count > 3 || rest.len() < count {
            return None;
        }
        length = rest[..count].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        rest = &rest[count..];
    }
    (rest.len() >= length).then(|| rest.split_at(length))
}

/// A value.
pub(super) fn write(tag: u8, content: &[&[u8]]) -> Vec<u8> {
    let length: usize = content.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let bytes = &bytes[bytes.iter().position(|byte| *byte != 0).unwrap_or(0)..];
        out.push(0x80 | bytes.len() as u8);
        out.extend_from_slice(bytes);
    }
    for part in content {
        out.extend_from_slice(part);
    }
    out
}

/// Wraps a SEC 1 key (`EC PRIVATE KEY`) as PKCS #8.
pub(super) fn pkcs8_of_sec1(sec1: &[u8]) -> Option<Vec<u8>> {
    const EC_PUBLIC_KEY: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    let (key, _) = read(sec1, 0x30)?;
    let (_version, rest) = read(key, 0x02)?;
    let (_secret, rest) = read(rest, 0x04)?;
    let (curve, _) = read(rest, 0xa0)?;
    let algorithm = write(0x30, &[EC_PUBLIC_KEY, curve]);
    let version = write(0x02, &[&[0]]);
    Some(write(0x30, &[&version, &algorithm, &write(0x04, &[sec1])]))
}
