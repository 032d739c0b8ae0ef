//! A writer of tar archives that obeys nobody: any field of any header, right or wrong.
//!
//! It makes the archives that readers must refuse, or must agree about, so it shares no code with the engine and checks
//! nothing. What is not said is what an ordinary archiver writes: POSIX headers, mode 0644, root, the year 2001.

/// Size of a header, and what contents are padded to.
pub const BLOCK: usize = 512;

/// Form of a header: what stands in its magic and version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// POSIX: `ustar\0` and `00`.
    Ustar,
    /// GNU: `ustar  \0`.
    Gnu,
    /// Older than both: nothing.
    V7,
}

/// One header, what precedes it and what follows it.
#[derive(Clone, Debug)]
pub struct Member {
    before: Vec<u8>,
    records: Vec<u8>,
    header: [u8; BLOCK],
    checksum: Option<Vec<u8>>,
    content: Vec<u8>,
    padded: bool,
}

impl Member {
    /// An entry of the type `kind`, without content.
    pub fn new(kind: u8, name: impl AsRef<[u8]>) -> Member {
        let mut member = Member {
            before: Vec::new(),
            records: Vec::new(),
            header: [0; BLOCK],
            checksum: None,
            content: Vec::new(),
            padded: true,
        };
        member.header[156] = kind;
        member.name(name).form(Form::Ustar).mode(0o644).owner(0, 0).size(0).mtime(1_000_000_000).numbers(0, 0)
    }

    /// A regular file.
    pub fn file(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Member {
        let content = content.as_ref();
        Member::new(b'0', name).size(content.len() as u64).content(content)
    }

    /// A directory.
    pub fn dir(name: impl AsRef<[u8]>) -> Member {
        Member::new(b'5', name).mode(0o755)
    }

    /// A symbolic link.
    pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Member {
        Member::new(b'2', name).mode(0o777).link(target)
    }

    /// A hard link.
    pub fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Member {
        Member::new(b'1', name).link(target)
    }

    /// A device: `b'3'` for a character device, `b'4'` for a block device.
    pub fn device(kind: u8, name: impl AsRef<[u8]>, major: u32, minor: u32) -> Member {
        Member::new(kind, name).numbers(major, minor)
    }

    /// An extended header of the type `kind` (`x`, `g`, `L`, `K`), as an entry of its own.
    pub fn extended(kind: u8, content: impl AsRef<[u8]>) -> Member {
        let content = content.as_ref();
        Member::new(kind, "././@Extended").size(content.len() as u64).content(content)
    }

    /// The name, cut to the field.
    pub fn name(self, name: impl AsRef<[u8]>) -> Member {
        self.text(0..100, name.as_ref())
    }

    /// What stands before the name in a POSIX header.
    pub fn prefix(self, prefix: impl AsRef<[u8]>) -> Member {
        self.text(345..500, prefix.as_ref())
    }

    /// The target of a link, cut to the field.
    pub fn link(self, target: impl AsRef<[u8]>) -> Member {
        self.text(157..257, target.as_ref())
    }

    /// The form of the header.
    pub fn form(self, form: Form) -> Member {
        self.field(
            257,
            match form {
                Form::Ustar => b"ustar\x0000",
                Form::Gnu => b"ustar  \0",
                Form::V7 => &[0; 8],
            },
        )
    }

    /// The mode.
    pub fn mode(self, mode: u64) -> Member {
        self.octal(100..108, mode)
    }

    /// Owner and group.
    pub fn owner(self, uid: u64, gid: u64) -> Member {
        self.octal(108..116, uid).octal(116..124, gid)
    }

    /// The size that the header declares, whatever the content is.
    pub fn size(self, size: u64) -> Member {
        self.octal(124..136, size)
    }

    /// The time of the last change.
    pub fn mtime(self, mtime: u64) -> Member {
        self.octal(136..148, mtime)
    }

    /// The number of a device.
    pub fn numbers(self, major: u32, minor: u32) -> Member {
        self.octal(329..337, major.into()).octal(337..345, minor.into())
    }

    /// The bytes `bytes` at `offset` of the header.
    pub fn field(mut self, offset: usize, bytes: &[u8]) -> Member {
        self.header[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// A number in base 256, as GNU writes what octal cannot hold.
    pub fn base256(self, field: std::ops::Range<usize>, value: i128) -> Member {
        let bytes = value.to_be_bytes();
        let mut number = bytes[bytes.len() - field.len()..].to_vec();
        number[0] = if value < 0 { 0xff } else { 0x80 };
        self.field(field.start, &number)
    }

    /// These eight bytes instead of the checksum.
    pub fn checksum(mut self, bytes: &[u8; 8]) -> Member {
        self.checksum = Some(bytes.to_vec());
        self
    }

    /// What follows the header, whatever size it declares.
    pub fn content(mut self, content: impl AsRef<[u8]>) -> Member {
        self.content = content.as_ref().to_vec();
        self
    }

    /// No padding after the content.
    pub fn unpadded(mut self) -> Member {
        self.padded = false;
        self
    }

    /// A record of the PAX header before this entry.
    pub fn pax(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Member {
        self.records.extend(record(key.as_ref(), value.as_ref()));
        self
    }

    /// `member` right before this one.
    pub fn after(mut self, member: &Member) -> Member {
        self.before.extend(member.bytes());
        self
    }

    /// A long name in the GNU form.
    pub fn gnu_name(self, name: impl AsRef<[u8]>) -> Member {
        let long = Member::extended(b'L', [name.as_ref(), b"\0"].concat()).form(Form::Gnu);
        self.form(Form::Gnu).after(&long)
    }

    /// A long link target in the GNU form.
    pub fn gnu_link(self, target: impl AsRef<[u8]>) -> Member {
        let long = Member::extended(b'K', [target.as_ref(), b"\0"].concat()).form(Form::Gnu);
        self.form(Form::Gnu).after(&long)
    }

    fn text(self, field: std::ops::Range<usize>, text: &[u8]) -> Member {
        let mut bytes = text[..text.len().min(field.len())].to_vec();
        bytes.resize(field.len(), 0);
        self.field(field.start, &bytes)
    }

    fn octal(self, field: std::ops::Range<usize>, value: u64) -> Member {
        let width = field.len() - 1;
        let mut text = format!("{value:0width$o}").into_bytes();
        // What does not fit takes the place of the NUL, and then loses its first digits.
        if text.len() == width {
            text.push(0);
        }
        let start = text.len() - field.len();
        self.field(field.start, &text[start..])
    }

    /// The blocks of this entry.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.before.clone();
        if !self.records.is_empty() {
            bytes.extend(Member::extended(b'x', &self.records).bytes());
        }
        let mut header = self.header;
        match &self.checksum {
            Some(checksum) => header[148..156].copy_from_slice(checksum),
            None => {
                header[148..156].fill(b' ');
                let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
                header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        bytes.extend(header);
        bytes.extend(&self.content);
        if self.padded {
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        }
        bytes
    }
}

/// A record of a PAX header.
pub fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length += 1;
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// The members and the end of the archive.
pub fn archive<'a>(members: impl IntoIterator<Item = &'a Member>) -> Vec<u8> {
    let mut bytes = without_end(members);
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    bytes
}

/// The members alone.
pub fn without_end<'a>(members: impl IntoIterator<Item = &'a Member>) -> Vec<u8> {
    members.into_iter().flat_map(Member::bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_archive_is_read_by_the_tar_crate() {
        let long = "n".repeat(200);
        let members = [
            Member::dir("d/"),
            Member::file("d/f", "hello"),
            Member::symlink("l", "d/f"),
            Member::file("short", "x").pax("path", &long),
            Member::file("short", "y").gnu_name(format!("{long}2")),
        ];
        let bytes = archive(&members);
        let names: Vec<String> = tar::Archive::new(&bytes[..])
            .entries()
            .expect("an archive")
            .map(|entry| entry.expect("an entry").path().expect("a name").to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["d/", "d/f", "l", long.as_str(), &format!("{long}2")]);
    }

    #[test]
    fn a_record_counts_its_own_digits() {
        for length in [1, 5, 6, 92, 93, 94, 991, 992] {
            let record = record(b"k", &vec![b'v'; length]);
            let text = String::from_utf8(record).expect("text");
            assert_eq!(text.split(' ').next().expect("a length").parse(), Ok(text.len()));
        }
    }
}
