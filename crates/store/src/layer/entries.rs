//! Where the entries of a layer come from.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;

use build_engine_rootfs::{Entry, Error, Kind, Tree, Walk};

use super::LayerError;

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
