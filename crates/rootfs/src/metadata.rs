//! What `stat` says about an inode, in types.

use std::fmt;
use std::os::fd::AsFd;
use std::time::SystemTime;

use rustix::fs::{FileType, Stat, Timespec};

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device; with number 0:0 an overlay whiteout.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl Kind {
    /// Bits of the file type as in `st_mode`.
    pub fn mode_bits(self) -> u32 {
        match self {
            Self::File => 0o100_000,
            Self::Directory => 0o040_000,
            Self::Symlink => 0o120_000,
            Self::CharDevice => 0o020_000,
            Self::BlockDevice => 0o060_000,
            Self::Fifo => 0o010_000,
            Self::Socket => 0o140_000,
        }
    }

    /// The kind in the file type bits of `st_mode`; `None` for a type that Linux does not have.
    pub fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode & 0o170_000 {
            0o100_000 => Self::File,
            0o040_000 => Self::Directory,
            0o120_000 => Self::Symlink,
            0o020_000 => Self::CharDevice,
            0o060_000 => Self::BlockDevice,
            0o010_000 => Self::Fifo,
            0o140_000 => Self::Socket,
            _ => return None,
        })
    }

    pub(crate) fn file_type(self) -> FileType {
        FileType::from_raw_mode(self.mode_bits())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "regular file",
            Self::Directory => "directory",
            Self::Symlink => "symbolic link",
            Self::CharDevice => "character device",
            Self::BlockDevice => "block device",
            Self::Fifo => "named pipe",
            Self::Socket => "socket",
        })
    }
}

/// A point in time, as file systems keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Time {
    /// Seconds since the epoch.
    pub seconds: i64,
    /// Nanoseconds after that, below 10⁹.
    pub nanoseconds: u32,
}

impl Time {
    /// A whole number of seconds since the epoch.
    pub const fn from_seconds(seconds: i64) -> Self {
        Self { seconds, nanoseconds: 0 }
    }

    /// Nanoseconds since the epoch, as LLB writes timestamps.
    pub const fn from_nanoseconds(nanoseconds: i64) -> Self {
        Self {
            seconds: nanoseconds.div_euclid(1_000_000_000),
            nanoseconds: nanoseconds.rem_euclid(1_000_000_000) as u32,
        }
    }

    /// The present.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        Self { seconds, nanoseconds: since.subsec_nanos() }
    }

    pub(crate) fn timespec(self) -> Timespec {
        Timespec { tv_sec: self.seconds, tv_nsec: self.nanoseconds.into() }
    }
}

/// The number of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// What `stat` says about an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: Kind,
    /// Permission, setuid, setgid and sticky bits (`07777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes; 0 for what has no content.
    pub size: u64,
    /// Modification time.
    pub mtime: Time,
    /// Change time.
    pub ctime: Time,
    /// Number of a device node; 0:0 for everything else.
    pub device: Device,
    /// Number of names.
    pub nlink: u64,
    /// File system.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
}

impl Metadata {
    /// Tells whether this is an overlay whiteout (a character device 0:0).
    pub fn is_whiteout(&self) -> bool {
        self.kind == Kind::CharDevice && self.device == Device::default()
    }

    /// Tells whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Directory
    }

    /// Tells whether this is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind == Kind::File
    }

    /// Identifies the inode while it exists.
    pub fn identity(&self) -> (u64, u64) {
        (self.dev, self.ino)
    }

    /// That of an open file.
    pub fn of(file: impl AsFd) -> rustix::io::Result<Self> {
        Ok(Self::from_stat(&rustix::fs::fstat(file)?))
    }

    pub(crate) fn from_stat(stat: &Stat) -> Self {
        // Linux has no type outside of the seven; an unknown one is treated as what is never opened.
        let kind = Kind::from_mode(stat.st_mode).unwrap_or(Kind::Socket);
        let device = match kind {
            Kind::CharDevice | Kind::BlockDevice => {
                Device { major: rustix::fs::major(stat.st_rdev), minor: rustix::fs::minor(stat.st_rdev) }
            }
            Kind::File | Kind::Directory | Kind::Symlink | Kind::Fifo | Kind::Socket => Device::default(),
        };
        #[allow(clippy::useless_conversion, reason = "not everywhere the same type")]
        let nlink = stat.st_nlink.into();
        Self {
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: match kind {
                Kind::File | Kind::Symlink => u64::try_from(stat.st_size).unwrap_or_default(),
                Kind::Directory | Kind::CharDevice | Kind::BlockDevice | Kind::Fifo | Kind::Socket => 0,
            },
            mtime: Time { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 },
            ctime: Time { seconds: stat.st_ctime, nanoseconds: stat.st_ctime_nsec as u32 },
            device,
            nlink,
            dev: stat.st_dev,
            ino: stat.st_ino,
        }
    }
}
