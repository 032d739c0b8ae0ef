//! Where the entries of a layer come from.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use build_engine_rootfs::{Entry, Error, Ids, Kind, Metadata, Place, Tree, Walk, is_layer_xattr};
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
    /// Bytes.
    Bytes(Vec<u8>),
    /// A file that is opened when it is written, by whichever thread does it.
    Later(Unopened),
}

/// A file that was listed.
#[derive(Debug)]
pub struct Unopened {
    /// The open directory that it is in.
    pub dir: Arc<OwnedFd>,
    /// Its name there.
    pub name: OsString,
    /// What was listed.
    pub listed: Metadata,
}

impl LayerEntry {
    /// The same entry, its content opened and its extended attributes read.
    ///
    /// # Errors
    /// [`LayerError::Changed`] if the file is not the one that was listed, or not as it was; [`LayerError::Refused`] if it
    /// has an extended attribute that a tree would keep and an archive does not.
    pub fn opened(mut self) -> Result<Self, LayerError> {
        let Some(Content::Later(Unopened { dir, name, listed })) = self.content else { return Ok(self) };
        let changed = || LayerError::Changed { path: escape(self.path.as_os_str().as_bytes()) };
        let (entry, file) = match Place::new(dir.as_fd(), &name, Ids::Full).open_entry() {
            Ok(opened) => opened,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::OPNOTSUPP) => return Err(changed()),
            Err(errno) => return Err(Error::new("open", &self.path, errno).into()),
        };
        if entry.metadata != listed {
            return Err(changed());
        }
        if let Some(name) = entry.xattrs.keys().find(|name| !is_layer_xattr(name)) {
            let reason = format!("no archive holds its attribute `{}`", escape(name.as_bytes()));
            return Err(LayerError::Refused { entry: escape(self.path.as_os_str().as_bytes()), reason });
        }
        self.entry.xattrs = entry.xattrs;
        self.content = (self.entry.metadata.size > 0).then_some(Content::File(file));
        Ok(self)
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
    walk: Walk,
    /// First name of each inode that has several.
    links: HashMap<(u64, u64), PathBuf>,
}

impl TreeEntries {
    /// Reads `tree`.
    pub fn new(tree: &Tree) -> Result<Self, LayerError> {
        Ok(Self { walk: tree.walk("")?, links: HashMap::new() })
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
                Some(Content::File(step.place().open_file().map_err(failed)?))
            } else {
                None
            };
            return Ok(Some(LayerEntry { path: step.path, entry, hard_link, content }));
        }
    }
}
