//! What a path means where a layer is being applied: the tree so far on top of the layers below it.
//!
//! The rules are those of [`crate::merged`], for paths: the topmost entry of a name counts, and directories of one name
//! merge until something that is not a directory, a whiteout or an opaque directory ends the stack. Symbolic links are
//! followed here, step by step, because the next step may be in another layer.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use build_engine_rootfs::{Error, Kind, Metadata, OwnedPlace, Tree};
use rustix::io::Errno;

use super::LayerError;

/// Symbolic links followed in one path, as [`Tree`] limits them.
const MAX_LINKS: usize = 255;
/// Components looked up in layers below while one layer is applied. A layer made by somebody sane needs a few thousand;
/// without a limit, names of a thousand components over hundreds of layers with the same directories are days of work.
const MAX_LOOKUPS: u64 = 100_000_000;

/// The tree that a layer is applied to, and the layers below.
pub(super) struct Below<'a> {
    tree: &'a Tree,
    /// Topmost first.
    lowers: &'a [&'a Tree],
    lookups: u64,
}

/// What is at a path.
pub(super) enum Found {
    /// Something of this layer.
    Here(Metadata),
    /// Something of a layer below, where nothing of this layer is.
    Below(Metadata, OwnedPlace),
    /// This layer deletes it.
    Deleted,
    /// No layer has it, or not any more.
    Nothing,
}

/// The layers below that still count in a directory: those whose directories of that name are merged.
pub(super) struct Way(Vec<usize>);

impl<'a> Below<'a> {
    pub(super) fn new(tree: &'a Tree, lowers: &'a [&'a Tree]) -> Self {
        Self { tree, lowers, lookups: 0 }
    }

    /// Begins at the root.
    pub(super) fn start(&self, root_opaque: bool) -> Way {
        Way(if root_opaque { Vec::new() } else { (0..self.lowers.len()).collect() })
    }

    /// Goes on to `path`, which has one component more than the last step and no symbolic link on the way.
    pub(super) fn step(&mut self, way: &mut Way, path: &Path) -> Result<Found, LayerError> {
        match self.tree.find(path, false)? {
            Some(here) if here.is_whiteout() => {
                way.0.clear();
                Ok(Found::Deleted)
            }
            Some(here) => {
                if !here.is_dir() || (!way.0.is_empty() && is_opaque(self.tree, path)?) {
                    way.0.clear();
                } else {
                    self.lower_step(way, path)?;
                }
                Ok(Found::Here(here))
            }
            None => Ok(match self.lower_step(way, path)? {
                Some((found, level)) => Found::Below(found, self.lowers[level].place(path)?),
                None => Found::Nothing,
            }),
        }
    }

    /// The topmost of the layers below that has `path`; leaves those whose directories merge.
    fn lower_step(&mut self, way: &mut Way, path: &Path) -> Result<Option<(Metadata, usize)>, LayerError> {
        let mut topmost = None;
        let depth = path.iter().count() as u64;
        for level in std::mem::take(&mut way.0) {
            self.lookups += depth;
            if self.lookups > MAX_LOOKUPS {
                return Err(LayerError::Limit { what: "lookups in the layers below", limit: MAX_LOOKUPS });
            }
            let lower = self.lowers[level];
            let Some(found) = lower.find(path, false)? else { continue };
            if found.is_whiteout() {
                break;
            }
            topmost.get_or_insert((found, level));
            if !found.is_dir() {
                break;
            }
            way.0.push(level);
            if is_opaque(lower, path)? {
                break;
            }
        }
        Ok(topmost)
    }

    /// What is at `path`, which has no symbolic link on the way.
    pub(super) fn find(&mut self, path: &Path, root_opaque: bool) -> Result<Found, LayerError> {
        let mut way = self.start(root_opaque);
        let mut current = PathBuf::new();
        let mut found = Found::Nothing;
        for name in path {
            current.push(name);
            found = self.step(&mut way, &current)?;
        }
        Ok(found)
    }

    /// Where `path` leads when the symbolic links of all layers are followed: a path without any. What does not exist is
    /// taken as written.
    pub(super) fn resolve(&mut self, path: &Path, root_opaque: bool) -> Result<PathBuf, LayerError> {
        let mut rest: Vec<OsString> = components_reversed(path.as_os_str());
        let mut current = PathBuf::new();
        let mut way = self.start(root_opaque);
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == ".." {
                current.pop();
                way = self.again(&current, root_opaque)?;
                continue;
            }
            current.push(&name);
            let link = match self.step(&mut way, &current)? {
                Found::Here(found) if found.kind == Kind::Symlink => self.tree.read_link(&current)?,
                Found::Below(found, place) if found.kind == Kind::Symlink => {
                    place.as_place().read_link().map_err(|errno| Error::new("read", &current, errno))?
                }
                Found::Here(_) | Found::Below(..) | Found::Deleted | Found::Nothing => continue,
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(Error::TooManyLinks { path: path.to_owned() }.into());
            }
            current.pop();
            if link.as_bytes().first() == Some(&b'/') {
                current.clear();
            }
            rest.extend(components_reversed(&link));
            if current.as_os_str().len() + rest.iter().map(|name| name.len() + 1).sum::<usize>() > MAX_PATH {
                return Err(Error::new("open", path, Errno::NAMETOOLONG).into());
            }
            way = self.again(&current, root_opaque)?;
        }
        Ok(current)
    }

    /// The way to a path that was gone before.
    fn again(&mut self, path: &Path, root_opaque: bool) -> Result<Way, LayerError> {
        let mut way = self.start(root_opaque);
        let mut current = PathBuf::new();
        for name in path {
            current.push(name);
            self.step(&mut way, &current)?;
        }
        Ok(way)
    }

    /// The names that the layers below have in their roots.
    pub(super) fn root_names(&self) -> Result<BTreeSet<OsString>, LayerError> {
        let mut names = BTreeSet::new();
        for lower in self.lowers {
            names.extend(lower.read_dir("")?);
        }
        Ok(names)
    }
}

/// Longest path that the kernel resolves.
const MAX_PATH: usize = 4096;

fn is_opaque(tree: &Tree, path: &Path) -> Result<bool, LayerError> {
    Ok(tree.read_entry(path)?.opaque)
}

fn components_reversed(path: &OsStr) -> Vec<OsString> {
    path.as_bytes()
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(|name| OsStr::from_bytes(name).to_owned())
        .rev()
        .collect()
}
