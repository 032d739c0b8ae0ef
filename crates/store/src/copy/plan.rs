//! What copies would write, without writing it: the entries of a layer on top of a tree.
//!
//! The rules of [`super::copy`](fn@super::copy) run against a [`PlanSink`] instead of a tree; what they would change
//! becomes a sorted list of entries, which a layer's blob is written from in one pass over the source.
//!
//! Invariant: the entries are those that the layer of a [`copy`](fn@super::copy) into a mount of the base would have once
//! it is committed. What cannot be planned (archives to unpack, directories of the base that go away) is an error, and
//! nothing has been written then.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use build_engine_rootfs::{Entry, Kind, Metadata, Time, Tree, follow, is_layer_xattr};

use super::sink::Sink;
use super::{CopyError, CopySpec, View, run};
use crate::layer::{Content, Entries, LayerEntry, LayerError, Listed, Unpack};
use crate::merged;

/// Computes what [`copy`](fn@super::copy) would make on top of `base` (nothing: an empty tree), to be written as a layer;
/// content is read when it is written. Times that a copy leaves to the clock are `clock`.
///
/// # Errors
/// Those of [`copy`](fn@super::copy), and [`CopyError::Unplannable`].
pub fn plan<'a>(
    source: View<'a>,
    base: Option<&'a Tree>,
    specs: &[CopySpec],
    clock: Time,
) -> Result<PlannedEntries, CopyError> {
    let mut sink = PlanSink { source, base, clock, planned: ByPath::default(), touched: None };
    for spec in specs {
        run(source, &mut sink, spec)?;
    }
    sink.into_entries()
}

struct PlanSink<'a> {
    source: View<'a>,
    base: Option<&'a Tree>,
    clock: Time,
    planned: ByPath,
    /// The directory that something was put into last, and whether the base has none there.
    touched: Option<(PathBuf, bool)>,
}

/// Entries by path, in the order of an archive.
#[derive(Default)]
struct ByPath(BTreeMap<Key, Planned>);

/// A path with zeros for slashes: comparing the bytes compares paths component by component.
type Key = Box<[u8]>;

fn key(path: &Path) -> Key {
    path.as_os_str().as_bytes().iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect()
}

fn path_of(key: &[u8]) -> PathBuf {
    let bytes: Vec<u8> = key.iter().map(|byte| if *byte == 0 { b'/' } else { *byte }).collect();
    OsString::from_vec(bytes).into()
}

impl ByPath {
    fn get(&self, path: &Path) -> Option<&Planned> {
        self.0.get(&key(path))
    }

    fn get_mut(&mut self, path: &Path) -> Option<&mut Planned> {
        self.0.get_mut(&key(path))
    }

    fn contains(&self, path: &Path) -> bool {
        self.0.contains_key(&key(path))
    }

    fn insert(&mut self, path: &Path, planned: Planned) {
        self.0.insert(key(path), planned);
    }

    fn remove(&mut self, path: &Path) {
        self.0.remove(&key(path));
    }

    /// Removes a directory and everything in it.
    fn remove_all(&mut self, path: &Path) {
        let dir = key(path);
        self.0.retain(|key, _| key.strip_prefix(&*dir).is_none_or(|rest| rest.first().is_some_and(|byte| *byte != 0)));
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = (PathBuf, &Planned)> {
        self.0.iter().map(|(key, planned)| (path_of(key), planned))
    }
}

struct Planned {
    entry: Entry,
    hard_link: Option<PathBuf>,
    from: Option<Box<Path>>,
    /// What was listed, if nothing else was read yet.
    listed: Option<Metadata>,
    /// For a directory: the base has none here, so nothing of the base is below it.
    is_fresh: bool,
    /// Whether the base has something else here.
    replaces: bool,
}

impl Planned {
    fn new(entry: Entry) -> Self {
        Self { entry, hard_link: None, from: None, listed: None, is_fresh: false, replaces: false }
    }

    fn directory(entry: Entry, is_fresh: bool) -> Self {
        Self { is_fresh, ..Self::new(entry) }
    }

    fn is_whiteout(&self) -> bool {
        self.entry.metadata.is_whiteout()
    }
}

impl PlanSink<'_> {
    /// What the base has at a path that is not planned.
    fn below(&self, path: &Path) -> Result<Option<Metadata>, CopyError> {
        let Some(base) = self.base else { return Ok(None) };
        if self.is_in_fresh(path) { Ok(None) } else { Ok(base.find(path, false)?) }
    }

    /// Whether the base has no such directory as the one that `path` is in.
    fn is_in_fresh(&self, path: &Path) -> bool {
        let Some(parent) = path.parent() else { return false };
        match &self.touched {
            Some((dir, is_fresh)) if dir == parent => *is_fresh,
            _ => self.planned.get(parent).is_some_and(|it| it.is_fresh),
        }
    }

    /// Plans a directory of the base as it is, because it, or something in it, changes. Its parents come with it.
    fn copy_up(&mut self, path: &Path) -> Result<(), CopyError> {
        if path.as_os_str().is_empty() || self.planned.contains(path) {
            return Ok(());
        }
        self.copy_up(path.parent().unwrap_or(Path::new("")))?;
        let Some(base) = self.base else { return Err(CopyError::NotFound { path: path.to_owned() }) };
        let entry = base.read_entry(path)?;
        self.planned.insert(path, Planned::directory(entry, false));
        Ok(())
    }

    /// A directory in which something is made or removed changes with it.
    fn touch_parent(&mut self, path: &Path) -> Result<(), CopyError> {
        let parent = path.parent().unwrap_or(Path::new(""));
        if self.touched.as_ref().is_some_and(|(dir, _)| dir == parent) {
            return Ok(());
        }
        self.copy_up(parent)?;
        let mut is_fresh = false;
        if let Some(planned) = self.planned.get_mut(parent) {
            planned.entry.metadata.mtime = self.clock;
            is_fresh = planned.is_fresh;
        }
        self.touched = Some((parent.to_owned(), is_fresh));
        Ok(())
    }

    fn insert(&mut self, path: &Path, mut planned: Planned) -> Result<(), CopyError> {
        self.touch_parent(path)?;
        planned.replaces = self.planned.get(path).is_some_and(Planned::is_whiteout);
        self.planned.insert(path, planned);
        Ok(())
    }
}

impl<'a> PlanSink<'a> {
    /// Leaves out what equals the base, as a commit does.
    fn into_entries(mut self) -> Result<PlannedEntries, CopyError> {
        // Those that users note are part of a tree, but of no blob.
        let noted = |planned: &Planned| planned.entry.xattrs.keys().any(|name| !is_layer_xattr(name));
        if let Some((path, _)) = self.planned.iter().find(|(_, planned)| noted(planned)) {
            return Err(CopyError::Unplannable { path });
        }
        let linked = self.order_links();
        if let Some(base) = self.base {
            let mut same = Vec::new();
            for (path, planned) in self.planned.iter().filter(|(_, planned)| planned.replaces) {
                let is_linked = planned.hard_link.is_some() || linked.contains(&path);
                if !is_linked && self.equals(base, &path, planned)? {
                    same.push(path);
                }
            }
            for path in same {
                self.planned.remove(&path);
            }
            let mut filled: Option<&[u8]> = None;
            let mut unchanged = Vec::new();
            for (key, planned) in self.planned.0.iter().rev() {
                if planned.entry.metadata.is_dir() && !planned.is_fresh {
                    let path = path_of(key);
                    let is_filled = filled.is_some_and(|inside| path_of(inside).starts_with(&path));
                    if !is_filled && merged::same_entry(&planned.entry, &base.read_entry(&path)?) {
                        unchanged.push(path);
                        continue;
                    }
                }
                filled = Some(key);
            }
            for path in unchanged {
                self.planned.remove(&path);
            }
        }
        let tree = Arc::new(self.source.tree().try_clone()?);
        Ok(PlannedEntries { tree, planned: self.planned.0.into_iter(), dir: None })
    }

    /// Gives each inode's content to the first of its names, as an archive needs it. Returns those names.
    fn order_links(&mut self) -> BTreeSet<PathBuf> {
        let mut earliest: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
        for (key, planned) in &self.planned.0 {
            if let Some(first) = &planned.hard_link {
                earliest.entry(first.clone()).or_insert_with(|| path_of(key).min(first.clone()));
            }
        }
        let moved: Vec<(PathBuf, PathBuf)> = earliest
            .iter()
            .filter(|(first, now)| first != now)
            .map(|(first, now)| (first.clone(), now.clone()))
            .collect();
        for (first, now) in moved {
            for planned in self.planned.0.values_mut().filter(|planned| planned.hard_link.as_ref() == Some(&first)) {
                planned.hard_link = Some(now.clone());
            }
            let from = self.planned.get_mut(&first).and_then(|planned| {
                planned.hard_link = Some(now.clone());
                planned.from.take()
            });
            if let Some(planned) = self.planned.get_mut(&now) {
                (planned.hard_link, planned.from) = (None, from);
            }
        }
        earliest.into_values().collect()
    }

    fn equals(&self, base: &Tree, path: &Path, planned: &Planned) -> Result<bool, CopyError> {
        let below = base.read_entry(path)?;
        let is_file = planned.entry.metadata.is_file();
        if !merged::same_entry(&planned.entry, &below)
            || (is_file && planned.entry.metadata.size != below.metadata.size)
        {
            return Ok(false);
        }
        let Some(from) = planned.from.as_ref().filter(|_| is_file) else { return Ok(true) };
        let read = |source| CopyError::Content {
            path: path.to_owned(),
            source: LayerError::Content {
                action: "compare",
                path: crate::layer::escape(path.as_os_str().as_bytes()),
                source,
            },
        };
        merged::same_bytes(self.source.open_file(from)?, base.open_file(path)?).map_err(read)
    }
}

impl Sink for PlanSink<'_> {
    fn canonical(&self, path: &Path) -> Result<PathBuf, CopyError> {
        follow(path, true, |current| -> Result<Option<OsString>, CopyError> {
            if let Some(planned) = self.planned.get(current) {
                return Ok(planned.entry.link.clone());
            }
            match (self.below(current)?, self.base) {
                (Some(found), Some(base)) if found.kind == Kind::Symlink => Ok(Some(base.read_link(current)?)),
                _ => Ok(None),
            }
        })
    }

    fn find(&self, path: &Path) -> Result<Option<Kind>, CopyError> {
        if path.as_os_str().is_empty() {
            return Ok(Some(Kind::Directory));
        }
        match self.planned.get(path) {
            Some(planned) if planned.is_whiteout() => Ok(None),
            Some(planned) => Ok(Some(planned.entry.metadata.kind)),
            None => Ok(self.below(path)?.map(|found| found.kind)),
        }
    }

    fn remove(&mut self, path: &Path) -> Result<(), CopyError> {
        let below = self.base.map(|base| base.find(path, false)).transpose()?.flatten();
        let below = below.filter(|_| !self.is_in_fresh(path));
        if below.is_some_and(|found| found.is_dir()) {
            return Err(CopyError::Unplannable { path: path.to_owned() });
        }
        let is_linked = |planned: &Planned| {
            planned.entry.metadata.nlink > 1
                && self.planned.0.values().any(|other| other.hard_link.as_deref() == Some(path))
        };
        if self.planned.get(path).is_some_and(is_linked) {
            return Err(CopyError::Unplannable { path: path.to_owned() });
        }
        self.touch_parent(path)?;
        if self.planned.get(path).is_some_and(|planned| planned.entry.metadata.is_dir()) {
            self.planned.remove_all(path);
            self.touched = None;
        } else {
            self.planned.remove(path);
        }
        if below.is_some() {
            let entry = super::plain_entry(Kind::CharDevice, 0, None);
            let whiteout = Planned { replaces: true, ..Planned::new(entry) };
            self.planned.insert(path, whiteout);
        }
        Ok(())
    }

    fn mkdir(&mut self, path: &Path, entry: &Entry, time: Option<Time>) -> Result<(), CopyError> {
        let mut entry = entry.clone();
        entry.metadata.mtime = time.unwrap_or(self.clock);
        self.insert(path, Planned::directory(entry, true))
    }

    fn update_dir(&mut self, path: &Path, entry: &Entry) -> Result<(), CopyError> {
        self.touched = None;
        self.copy_up(path)?;
        if let Some(planned) = self.planned.get_mut(path) {
            planned.entry.xattrs.extend(entry.xattrs.clone());
            planned.entry.metadata = entry.metadata;
        }
        Ok(())
    }

    fn set_time(&mut self, path: &Path, time: Time) -> Result<(), CopyError> {
        self.touched = None;
        self.copy_up(path)?;
        if let Some(planned) = self.planned.get_mut(path) {
            planned.entry.metadata.mtime = time;
        }
        Ok(())
    }

    fn link(&mut self, first: &Path, path: &Path) -> Result<(), CopyError> {
        let Some(planned) = self.planned.get(first) else {
            return Err(CopyError::NotFound { path: first.to_owned() });
        };
        let entry = planned.entry.clone();
        let link = Planned { hard_link: Some(first.to_owned()), ..Planned::new(entry) };
        self.insert(path, link)
    }

    fn put(&mut self, path: &Path, entry: &Entry, _: View<'_>, from: &Path) -> Result<(), CopyError> {
        let mut entry = entry.clone();
        if entry.metadata.kind == Kind::Socket {
            // As an empty file, as BuildKit does.
            entry.metadata.kind = Kind::File;
            entry.metadata.size = 0;
        }
        self.insert(path, Planned { from: Some(from.into()), ..Planned::new(entry) })
    }

    fn put_listed(
        &mut self,
        path: &Path,
        metadata: &Metadata,
        listed: &Metadata,
        from: &Path,
    ) -> Result<bool, CopyError> {
        // What may equal the base, or has several names, or is never read, is looked at first.
        if listed.nlink > 1 || listed.size == 0 || self.planned.contains(path) {
            return Ok(false);
        }
        let entry = Entry { metadata: *metadata, xattrs: BTreeMap::new(), link: None, opaque: false };
        self.insert(path, Planned { from: Some(from.into()), listed: Some(*listed), ..Planned::new(entry) })?;
        Ok(true)
    }

    fn unpack(&mut self, path: &Path, _: &mut dyn Read, _: &Unpack<'_>) -> Result<(), LayerError> {
        let entry = crate::layer::escape(path.as_os_str().as_bytes());
        Err(LayerError::Refused { entry, reason: String::from("an archive is unpacked into a tree only") })
    }
}

/// The entries of a plan; see [`plan`].
pub struct PlannedEntries {
    tree: Arc<Tree>,
    planned: std::collections::btree_map::IntoIter<Key, Planned>,
    /// The directory of the source that was looked into last.
    dir: Option<(PathBuf, Arc<OwnedFd>)>,
}

impl PlannedEntries {
    fn listed(&mut self, from: &Path, metadata: Metadata) -> Result<Content, LayerError> {
        let parent = from.parent().unwrap_or(Path::new(""));
        let dir = match &self.dir {
            Some((path, dir)) if path == parent => Arc::clone(dir),
            _ => {
                let dir = Arc::new(self.tree.resolve(parent)?);
                self.dir = Some((parent.to_owned(), Arc::clone(&dir)));
                dir
            }
        };
        Ok(Content::Listed(Listed { dir, name: from.file_name().unwrap_or_default().to_owned(), metadata }))
    }
}

impl std::fmt::Debug for PlannedEntries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlannedEntries").field("left", &self.planned.len()).finish_non_exhaustive()
    }
}

impl Entries for PlannedEntries {
    fn next_entry(&mut self) -> Result<Option<LayerEntry>, LayerError> {
        let Some((key, Planned { entry, hard_link, from, listed, .. })) = self.planned.next() else {
            return Ok(None);
        };
        let path = path_of(&key);
        let content = match from {
            Some(from) if listed.is_some() => listed.map(|listed| self.listed(&from, listed)).transpose()?,
            Some(from) if entry.metadata.is_file() && entry.metadata.size > 0 => {
                Some(Content::Later(Arc::clone(&self.tree), from.into()))
            }
            Some(_) | None => None,
        };
        Ok(Some(LayerEntry { path, entry, hard_link, content }))
    }
}
