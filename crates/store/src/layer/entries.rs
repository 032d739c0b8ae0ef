//! Where the entries of a layer come from.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use build_engine_rootfs::{Entry, Error, Ids, Kind, Metadata, OwnedPlace, Place, Tree, Walk};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{LayerError, escape};

/// One entry of a layer, to be written.
#[derive(Debug)]
pub struct LayerEntry {
    /// Path relative to the root, clean.
    pub path: PathBuf,
    /// Metadata, extended attributes, link target; a character device 0:0 is a whiteout.
    pub entry: Entry,
    /// The earlier entry that has the same inode; then there is no content.
    pub hard_link: Option<PathBuf>,
    /// Content of a regular file; `None` for an empty one.
    pub content: Option<Content>,
}

/// Content of a regular file, as long as its metadata says.
#[derive(Debug)]
pub enum Content {
    /// An open file, read from its beginning.
    File(File),
    /// A file that is opened when it is its turn to be read, on whatever thread: the path has no links on the way, and the
    /// last component is not followed either.
    Later(Arc<Tree>, PathBuf),
    /// A file of which the listing told all but its extended attributes; it is opened as the others are.
    Listed(Listed),
}

/// A file that was listed, and has no extended attribute that a layer keeps.
#[derive(Debug)]
pub struct Listed {
    /// The open directory that it is in.
    pub dir: Arc<OwnedFd>,
    /// Its name there.
    pub name: OsString,
    /// What was listed.
    pub metadata: Metadata,
}

impl Listed {
    /// # Errors
    /// [`LayerError::Changed`] if the file is not the one that was listed, or not as it was; [`LayerError::Refused`] if it
    /// has an extended attribute after all.
    fn open(self, shown: &str) -> Result<File, LayerError> {
        let changed = || LayerError::Changed { path: shown.to_owned() };
        let (entry, file) = match Place::new(self.dir.as_fd(), &self.name, Ids::Full).open_entry() {
            Ok(opened) => opened,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::OPNOTSUPP) => return Err(changed()),
            Err(errno) => return Err(Error::new("open", &self.name, errno).into()),
        };
        if let Some(name) = entry.xattrs.keys().next() {
            let reason = format!("its attribute `{}` was not listed", escape(name.as_bytes()));
            return Err(LayerError::Refused { entry: shown.to_owned(), reason });
        }
        if entry.metadata == self.metadata { Ok(file) } else { Err(changed()) }
    }
}

/// Opens contents, and remembers the last directory: files come in the order of their paths.
#[derive(Default)]
pub(super) struct Opener {
    last: Option<(Arc<Tree>, PathBuf, OwnedPlace)>,
}

impl Opener {
    /// Opens `content`, and looks at it for the first time. `shown` is the name for messages.
    pub(super) fn open(&mut self, content: Content, size: u64, shown: String) -> Result<Opened, LayerError> {
        let file = match content {
            Content::File(file) => file,
            Content::Listed(listed) => {
                let metadata = listed.metadata;
                let before = (
                    metadata.size,
                    metadata.mtime.seconds,
                    i64::from(metadata.mtime.nanoseconds),
                    metadata.ctime.seconds,
                    i64::from(metadata.ctime.nanoseconds),
                );
                let file = listed.open(&shown)?;
                return Ok(Opened { file, size, shown, before });
            }
            Content::Later(tree, path) => self.file(tree, &path)?,
        };
        let mut opened = Opened { file, size, shown, before: State::default() };
        opened.before = opened.state()?;
        Ok(opened)
    }

    fn file(&mut self, tree: Arc<Tree>, path: &Path) -> Result<File, LayerError> {
        let parent = path.parent().unwrap_or(Path::new(""));
        let last = self.last.take().filter(|(of, last, _)| Arc::ptr_eq(of, &tree) && last == parent);
        let (.., place) = self.last.insert(match last {
            Some(last) => last,
            None => {
                let place = tree.place(path)?;
                (tree, parent.to_owned(), place)
            }
        });
        // It was a regular file when it was listed, so it is opened without looking first, which takes half of the calls.
        // What has taken its place since is not waited for, not followed, and found out by `State`.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let name = path.file_name().unwrap_or_default();
        let opened = rustix::fs::openat(place.as_place().dir(), name, flags, Mode::empty());
        Ok(opened.map_err(|errno| Error::new("open", path, errno))?.into())
    }
}

/// A file that must not change while it is read.
#[derive(Debug)]
pub(super) struct Opened {
    file: File,
    size: u64,
    shown: String,
    before: State,
}

/// Size, and times of the last changes to content and inode.
type State = (u64, i64, i64, i64, i64);

impl Opened {
    fn state(&self) -> Result<State, LayerError> {
        let it = self.file.metadata().map_err(|source| self.unreadable(source))?;
        if !it.is_file() {
            return Err(LayerError::Changed { path: self.shown.clone() });
        }
        Ok((it.size(), it.mtime(), it.mtime_nsec(), it.ctime(), it.ctime_nsec()))
    }

    fn unreadable(&self, source: io::Error) -> LayerError {
        LayerError::Content { action: "read", path: self.shown.clone(), source }
    }

    /// Appends `length` bytes from `offset` on.
    ///
    /// # Errors
    /// [`LayerError::Changed`] if the file is not as it was when it was opened, or not as long as it should be.
    pub(super) fn read(&self, offset: u64, length: usize, out: &mut Vec<u8>) -> Result<(), LayerError> {
        let changed = || LayerError::Changed { path: self.shown.clone() };
        let start = out.len();
        out.resize(start + length, 0);
        match self.file.read_exact_at(&mut out[start..], offset) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(changed()),
            Err(error) => return Err(self.unreadable(error)),
        }
        let now = self.state()?;
        if now.0 == self.size && now == self.before { Ok(()) } else { Err(changed()) }
    }
}

/// A source of entries, sorted by path (component by component, by their bytes), parents first.
pub trait Entries {
    /// Returns the next entry; `None` at the end.
    ///
    /// # Errors
    /// What goes wrong with reading the source; it need not be able to go on after that.
    fn next_entry(&mut self) -> Result<Option<LayerEntry>, LayerError>;
}

/// The entries of a parentless layer tree. Sockets are left out, as in every image builder.
#[derive(Debug)]
pub struct TreeEntries {
    tree: Arc<Tree>,
    walk: Walk,
    /// First name of each inode that has several.
    links: HashMap<(u64, u64), PathBuf>,
}

impl TreeEntries {
    /// Reads `tree`.
    pub fn new(tree: &Tree) -> Result<Self, LayerError> {
        Ok(Self { tree: Arc::new(tree.try_clone()?), walk: tree.walk("")?, links: HashMap::new() })
    }
}

impl Entries for TreeEntries {
    fn next_entry(&mut self) -> Result<Option<LayerEntry>, LayerError> {
        loop {
            let Some(step) = self.walk.step()? else { return Ok(None) };
            if step.metadata.kind == Kind::Socket {
                continue;
            }
            let failed = |errno| Error::new("read", &step.path, errno);
            let entry = step.place().read_entry().map_err(failed)?;
            let mut hard_link = None;
            if step.metadata.nlink > 1 && !step.metadata.is_dir() && !step.metadata.is_whiteout() {
                let first = self.links.entry(step.metadata.identity()).or_insert_with(|| step.path.clone());
                hard_link = (*first != step.path).then(|| first.clone());
            }
            let content = if hard_link.is_none() && entry.metadata.is_file() && entry.metadata.size > 0 {
                Some(Content::Later(Arc::clone(&self.tree), step.path.clone()))
            } else {
                None
            };
            return Ok(Some(LayerEntry { path: step.path, entry, hard_link, content }));
        }
    }
}
