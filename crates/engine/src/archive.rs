//! Telling archives from other files by how they begin.

/// How much of a file [`is_archive`] wants to see.
pub const ARCHIVE_HEAD: usize = 1024;

/// Whether a file that begins with `head` is a tar archive or something compressed, which a context can only be.
///
/// Source: BuildKit `frontend/dockerui/context.go`; zstd is ours.
pub fn is_archive(head: &[u8]) -> bool {
    const COMPRESSED: &[&[u8]] =
        &[b"BZh", &[0x1f, 0x8b, 0x08], &[0xfd, b'7', b'z', b'X', b'Z', 0], &[0x28, 0xb5, 0x2f, 0xfd]];
    COMPRESSED.iter().any(|magic| head.starts_with(magic)) || is_tar_header(head)
}

/// Whether a block has the checksum of a header. Source: POSIX pax, "ustar Interchange Format".
fn is_tar_header(head: &[u8]) -> bool {
    const CHECKSUM: std::ops::Range<usize> = 148..156;
    let Some(block) = head.get(..512) else { return false };
    let text: Vec<u8> = block[CHECKSUM].iter().copied().filter(u8::is_ascii_digit).collect();
    let Some(stated) = str::from_utf8(&text).ok().and_then(|digits| u32::from_str_radix(digits, 8).ok()) else {
        return false;
    };
    let byte = |(index, byte): (usize, &u8)| if CHECKSUM.contains(&index) { b' ' } else { *byte };
    let bytes: Vec<u8> = block.iter().enumerate().map(byte).collect();
    let unsigned: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    let signed: i32 = bytes.iter().map(|byte| i32::from(byte.cast_signed())).sum();
    stated == unsigned || i32::try_from(stated).is_ok_and(|stated| stated == signed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F1-012, F1-013.
    #[test]
    fn archives_are_told_from_dockerfiles() {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        tar.append_data(&mut header, "Dockerfile", std::io::empty()).unwrap();
        let tar = tar.into_inner().unwrap();
        for (head, expected) in [
            (&tar[..512], true),
            (&tar[..511], false),
            (&[0; 1024], false),
            (b"FROM scratch\n", false),
            (b"", false),
            (b"BZh91AY", true),
            (&[0x1f, 0x8b, 0x08, 0], true),
            (&[0x28, 0xb5, 0x2f, 0xfd, 0], true),
            (b"\xfd7zXZ\0", true),
        ] {
            assert_eq!(is_archive(head), expected, "{:?}", &head[..head.len().min(16)]);
        }
    }
}
