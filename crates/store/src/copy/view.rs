//! A tree as a copy or a content hash sees it.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::content_hash::Listing;
use build_engine_rootfs::{Entry, Error, Ids, Kind, Metadata, Time, Tree, follow};

/// What a filter says about a path of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    /// It is there.
    Visible,
    /// It is not, nor is anything below it.
    Hidden,
    /// A directory that is there only if something below it is.
    Through,
}

/// Decides about a path (relative, without links) that is, or is not, a directory.
pub type Filter<'a> = dyn Fn(&Path, bool) -> Visibility + Sync + 'a;

/// A tree, with a filter and with owners as its source has them.
#[derive(Clone, Copy)]
pub struct View<'a> {
    tree: &'a Tree,
    filter: Option<&'a Filter<'a>>,
    is_context: bool,
    listing: Option<&'a Listing>,
}

impl std::fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("tree", self.tree).field("is_context", &self.is_context).finish_non_exhaustive()
    }
}

impl<'a> View<'a> {
    /// All of a snapshot.
    pub fn new(tree: &'a Tree) -> Self {
        Self { tree, filter: None, is_context: false, listing: None }
    }

    /// A build context: everything belongs to root, as BuildKit's clients send it.
    pub fn context(tree: &'a Tree) -> Self {
        Self { tree, filter: None, is_context: true, listing: None }
    }

    /// Leaves out what `filter` hides.
    #[must_use]
    pub fn with_filter(mut self, filter: &'a Filter<'a>) -> Self {
        self.filter = Some(filter);
        self
    }

    /// Sees directories as they were listed, which is what this view showed then.
    #[must_use]
    pub fn as_listed(mut self, listing: &'a Listing) -> Self {
        self.listing = Some(listing);
        self
    }

    /// The tree behind it.
    pub fn tree(self) -> &'a Tree {
        self.tree
    }

    pub(crate) fn is_context(self) -> bool {
        self.is_context
    }

    pub(crate) fn visibility(self, path: &Path, is_dir: bool) -> Visibility {
        if path.as_os_str().is_empty() {
            return Visibility::Visible;
        }
        self.filter.map_or(Visibility::Visible, |filter| filter(path, is_dir))
    }

    /// What is at `path`, a path without links; `None` also for what is hidden.
    pub(crate) fn find(self, path: &Path) -> Result<Option<Metadata>, Error> {
        let Some(found) = self.tree.find(path, false)? else { return Ok(None) };
        match self.visibility(path, found.is_dir()) {
            Visibility::Visible => Ok(Some(found)),
            Visibility::Hidden => Ok(None),
            Visibility::Through => {
                for (name, _, visibility) in self.read_dir(path)? {
                    let inside = path.join(name);
                    if visibility == Visibility::Visible || self.find(&inside)?.is_some() {
                        return Ok(Some(found));
                    }
                }
                Ok(None)
            }
        }
    }

    /// Names in a directory that are not hidden, sorted.
    pub(crate) fn read_dir(self, path: &Path) -> Result<Vec<(OsString, Metadata, Visibility)>, Error> {
        let mut names = Vec::new();
        let listed = self.listing.and_then(|listing| listing.children(path));
        let found = match listed {
            Some(listed) => listed,
            None => self.tree.list(path)?,
        };
        for (name, found) in found {
            let visibility = match self.filter {
                Some(_) => self.visibility(&path.join(&name), found.is_dir()),
                None => Visibility::Visible,
            };
            if visibility != Visibility::Hidden {
                names.push((name, found, visibility));
            }
        }
        Ok(names)
    }

    /// Like [`Tree::canonical`], but what is hidden does not exist.
    pub(crate) fn canonical(self, path: &Path, follow_last: bool) -> Result<PathBuf, Error> {
        if self.filter.is_none() {
            return self.tree.canonical(path, follow_last);
        }
        follow(path, follow_last, |current| match self.tree.find(current, false)? {
            Some(found) if found.kind == Kind::Symlink && self.visibility(current, false) != Visibility::Hidden => {
                Ok(Some(self.tree.read_link(current)?))
            }
            _ => Ok(None),
        })
    }

    /// What [`View::read_entry`] says of the regular file that was listed as `found`, if listing it told all but its
    /// extended attributes.
    pub(crate) fn listed(self, found: &Metadata) -> Option<Metadata> {
        let all = self.is_context && found.is_file() && self.tree.ids() != Ids::One;
        all.then_some(Metadata { uid: 0, gid: 0, ..*found })
    }

    /// Whether what was read at `path` is what was listed there, if there is a listing.
    pub(crate) fn is_as_listed(self, path: &Path, found: &Metadata) -> bool {
        self.listing.is_none_or(|listing| listing.is_same(path, found))
    }

    /// Everything about `path` except content.
    pub(crate) fn read_entry(self, path: &Path) -> Result<Entry, Error> {
        let mut entry = self.tree.read_entry(path)?;
        if self.is_context {
            (entry.metadata.uid, entry.metadata.gid) = (0, 0);
        }
        if path.as_os_str().is_empty() && (self.is_context || entry.metadata.mtime == Time::default()) {
            // BuildKit's clients do not send the root itself, so it is as new as the build. The checkout's own time
            // would be a difference between two machines that an epoch could not clamp. The root of an image has no
            // time; in BuildKit it is that of unpacking.
            entry.metadata.mtime = Time::now();
        }
        Ok(entry)
    }

    /// Opens a regular file, a path without links.
    pub(crate) fn open_file(self, path: &Path) -> Result<File, Error> {
        let place = self.tree.place(path)?;
        place.as_place().open_file().map_err(|errno| Error::new("open", path, errno))
    }
}
