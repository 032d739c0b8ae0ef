//! File actions: `COPY` and `ADD`, and what else LLB's file op does to a tree.
//!
//! The rules are BuildKit's (`solver/llbsolver/file`, `tonistiigi/fsutil/copy`): which name a source gets, what happens
//! to what is there already, when links are followed. [`copy`](fn@copy) does it to a tree; [`plan`] computes the entries
//! that a layer would have after it, so that a layer can be written straight from its source.
//!
//! Invariants: neither source nor destination is ever left, whatever their links say; a file that changes while it is
//! read is an error and never torn content.

mod mode;
mod part;
mod plan;
mod sink;
#[cfg(test)]
mod tests;
mod view;

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use build_engine_dockerfile::glob_match;
use build_engine_dockerfile::ignore::{Ignore, IgnoreError, WalkState};
use build_engine_rootfs::{Attributes, Device, Entry, Kind, Metadata, Time, Tree, clean};

use crate::content_hash::PAUSES;
use crate::layer::{ApplyOptions, LayerError, Unpack, compress};

pub use mode::{InvalidMode, ModeChange};
pub use part::{copy_part, find};
pub use plan::{PlannedEntries, plan};
use sink::{Sink, TreeSink};
pub use view::{Filter, View, Visibility};

/// Mode of directories that a copy needs and nobody described.
const DIRECTORY_MODE: u32 = 0o755;

/// A copy: the fields of LLB's `FileActionCopy`, names of users resolved.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CopySpec {
    /// Source path, possibly a pattern.
    pub src: String,
    /// Destination path. A slash at its end means a directory.
    pub dest: String,
    /// New owner and group; `None` keeps the source's.
    pub owner: Option<(u32, u32)>,
    /// New permission bits; `None` keeps the source's.
    pub mode: Option<u32>,
    /// Change of permission bits as `chmod` takes it; `None` means none. It wins over `mode`.
    pub mode_change: Option<ModeChange>,
    /// Whether a symbolic link as the source is followed.
    pub follow_symlink: bool,
    /// Whether a directory's content is copied instead of the directory.
    pub dir_copy_contents: bool,
    /// Whether local archives are unpacked, as `ADD` does.
    pub attempt_unpack: bool,
    /// Whether missing parents of the destination are made.
    pub create_dest_path: bool,
    /// Whether the source is a pattern.
    pub allow_wildcard: bool,
    /// Whether a pattern that matches nothing is no error.
    pub allow_empty_wildcard: bool,
    /// Modification time of all that is made; `None` keeps the source's.
    pub timestamp: Option<Time>,
    /// Patterns of which a file must match one, relative to the source.
    pub include_patterns: Vec<String>,
    /// Patterns of which a file may match none, relative to the source.
    pub exclude_patterns: Vec<String>,
    /// Whether an existing destination of another type is replaced.
    pub always_replace_existing_dest_paths: bool,
}

/// A file action that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// The source does not exist, or a pattern matches nothing.
    #[error("`{}` not found", .path.display())]
    NotFound {
        /// As it was asked for.
        path: PathBuf,
    },
    /// A file where a directory stands.
    #[error("cannot replace directory `{}` with a file", .path.display())]
    DirectoryInTheWay {
        /// The destination.
        path: PathBuf,
    },
    /// A directory where something else stands.
    #[error("cannot copy a directory to `{}`, which is none", .path.display())]
    NotADirectory {
        /// The destination.
        path: PathBuf,
    },
    /// A pattern is malformed.
    #[error("invalid pattern `{pattern}`")]
    Pattern {
        /// The pattern.
        pattern: String,
    },
    /// An include or exclude pattern is malformed.
    #[error("invalid pattern")]
    Patterns(#[from] IgnoreError),
    /// The action names nothing that could be removed.
    #[error("the root cannot be removed")]
    Root,
    /// An archive of `ADD`, or content.
    #[error("cannot copy `{}`", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: LayerError,
    },
    /// The copy is one that [`plan`] has no entries for; [`copy`](fn@copy) can do it.
    #[error("`{}` cannot be planned", .path.display())]
    Unplannable {
        /// The path.
        path: PathBuf,
    },
    /// Something that was in the source is gone.
    #[error("`{}` changed while reading", .path.display())]
    Changed {
        /// The path.
        path: PathBuf,
    },
    /// The source or destination tree refused.
    #[error(transparent)]
    Tree(#[from] build_engine_rootfs::Error),
}

impl CopyError {
    /// Whether a file changed while it was read.
    pub fn is_change(&self) -> bool {
        matches!(self, Self::Changed { .. } | Self::Content { source: LayerError::Changed { .. }, .. })
    }

    /// For a path of the source that was there a moment ago.
    fn reading(path: &Path, error: build_engine_rootfs::Error) -> Self {
        if error.is_not_found() { Self::Changed { path: path.to_owned() } } else { Self::Tree(error) }
    }
}

/// Copies from `source` into `dest`.
///
/// # Errors
/// [`CopyError::NotFound`] if the source is missing. What was copied before stays: the caller throws the tree away.
pub fn copy(source: View<'_>, dest: &Tree, spec: &CopySpec) -> Result<(), CopyError> {
    run(source, &mut TreeSink::new(dest), spec)
}

fn run(source: View<'_>, sink: &mut dyn Sink, spec: &CopySpec) -> Result<(), CopyError> {
    let src = SlashPath::new(&spec.src);
    let dest = SlashPath::new(&spec.dest);
    if !spec.create_dest_path {
        let target = sink.canonical(&dest.path)?;
        let parent = target.parent().unwrap_or(Path::new(""));
        if sink.find(parent)?.is_none() {
            return Err(CopyError::NotFound { path: parent.to_owned() });
        }
    }
    let sources = if spec.allow_wildcard {
        let found = wildcard(source, &spec.src, spec.follow_symlink)?;
        if found.is_empty() {
            return if spec.allow_empty_wildcard {
                Ok(())
            } else {
                Err(CopyError::NotFound { path: spec.src.clone().into() })
            };
        }
        found
    } else {
        vec![src]
    };
    // Times of directories, set when the source is done because filling them changes them. A further source that puts
    // something into one gives it a new time, as in BuildKit; with a timestamp, that is this one for all.
    let mut times = Vec::new();
    for src in sources {
        if !(spec.attempt_unpack && unpack(source, &src, sink, &dest, spec, &mut times)?) {
            one(source, &src, sink, &dest, spec, &mut times)?;
        }
        if spec.timestamp.is_none() {
            times.drain(..).try_for_each(|(path, time)| sink.set_time(&path, time))?;
        }
    }
    times.iter().try_for_each(|(path, time)| sink.set_time(path, *time))
}

/// A clean path, and what the text had at its end.
#[derive(Debug, Clone)]
struct SlashPath {
    path: PathBuf,
    /// `/` or `/.` at the end: a directory is meant.
    is_dir: bool,
    /// `/.` at the end: the content is meant.
    is_dot: bool,
}

impl SlashPath {
    fn new(text: &str) -> Self {
        let path = clean(text);
        let is_dot = text.ends_with("/.");
        let is_root = path.as_os_str().is_empty();
        Self { is_dir: is_dot || is_root || text.ends_with('/'), is_dot, path }
    }
}

fn one(
    source: View<'_>,
    src: &SlashPath,
    sink: &mut dyn Sink,
    dest: &SlashPath,
    spec: &CopySpec,
    times: &mut Vec<(PathBuf, Time)>,
) -> Result<(), CopyError> {
    let mut copier = Copier::new(source, sink, spec)?;
    let ensure = if dest.is_dir { &dest.path } else { dest.path.parent().unwrap_or(Path::new("")) };
    copier.mkdir_all(ensure)?;
    let mut target = copier.sink.canonical(&dest.path)?;
    let from = source.canonical(&src.path, spec.follow_symlink)?;
    let Some(found) = source.find(&from)? else {
        return Err(CopyError::NotFound { path: Path::new("/").join(&src.path) });
    };
    let there = copier.sink.find(&target)?;
    let into = match there {
        Some(_) if found.is_dir() => !spec.dir_copy_contents,
        Some(kind) => kind == Kind::Directory,
        None => false,
    };
    if into
        && !src.is_dot
        && let Some(name) = src.path.file_name()
    {
        target.push(name);
    }
    if spec.dir_copy_contents && found.is_dir() && there.is_none() {
        copier.mkdir_all(&target)?;
    } else {
        copier.mkdir_all(target.parent().unwrap_or(Path::new("")))?;
    }
    copier.copy(&from, &found, Path::new(""), &target, &Parent::default())?;
    times.append(&mut copier.times);
    Ok(())
}

/// What a directory knows for the entries in it.
#[derive(Debug, Default)]
struct Parent {
    include: WalkState,
    exclude: WalkState,
    /// Whether existing directories get the source's attributes: all but the topmost.
    overwrite: bool,
}

/// A directory on the way that was not made yet, because nothing in it was copied yet.
#[derive(Debug)]
struct Pending {
    from: PathBuf,
    to: PathBuf,
    made: bool,
}

struct Copier<'a, 'b> {
    source: View<'a>,
    sink: &'b mut dyn Sink,
    spec: &'b CopySpec,
    include: Option<Ignore>,
    exclude: Option<Ignore>,
    parents: Vec<Pending>,
    /// First copy of each inode that has several names.
    links: HashMap<(u64, u64), PathBuf>,
    /// Times of directories that the copy made or described.
    times: Vec<(PathBuf, Time)>,
}

impl<'a, 'b> Copier<'a, 'b> {
    fn new(source: View<'a>, sink: &'b mut dyn Sink, spec: &'b CopySpec) -> Result<Self, CopyError> {
        let patterns = |list: &[String]| (!list.is_empty()).then(|| Ignore::new(list)).transpose();
        let (include, exclude) = (patterns(&spec.include_patterns)?, patterns(&spec.exclude_patterns)?);
        let (parents, links, times) = (Vec::new(), HashMap::new(), Vec::new());
        Ok(Self { source, sink, spec, include, exclude, parents, links, times })
    }

    /// Makes a directory and its missing parents.
    fn mkdir_all(&mut self, path: &Path) -> Result<(), CopyError> {
        let canonical = self.sink.canonical(path)?;
        let mut current = PathBuf::new();
        for name in &canonical {
            current.push(name);
            match self.sink.find(&current)? {
                Some(Kind::Directory) => {}
                Some(_) => return Err(CopyError::NotADirectory { path: current }),
                None => {
                    let mode = self.spec.mode.unwrap_or(DIRECTORY_MODE) & 0o777;
                    self.sink.mkdir(&current, &plain_directory(mode, self.spec.owner), self.spec.timestamp)?;
                    self.times.extend(self.spec.timestamp.map(|time| (current.clone(), time)));
                }
            }
        }
        Ok(())
    }

    /// The entry as it is to be written: owner, mode and time of the copy.
    fn entry(&self, from: &Path) -> Result<Entry, CopyError> {
        let mut entry = self.source.read_entry(from).map_err(|error| CopyError::reading(from, error))?;
        if !self.source.is_as_listed(from, &entry.metadata) {
            return Err(CopyError::Changed { path: from.to_owned() });
        }
        self.describe(&mut entry.metadata);
        Ok(entry)
    }

    fn describe(&self, metadata: &mut Metadata) {
        if let Some((uid, gid)) = self.spec.owner {
            (metadata.uid, metadata.gid) = (uid, gid);
        }
        if metadata.kind != Kind::Symlink {
            if let Some(change) = &self.spec.mode_change {
                metadata.mode = change.apply(metadata.mode, metadata.is_dir());
            } else if let Some(mode) = self.spec.mode {
                metadata.mode = mode & 0o7777;
            }
        }
        if let Some(time) = self.spec.timestamp {
            metadata.mtime = time;
        }
    }

    fn copy(
        &mut self,
        from: &Path,
        found: &Metadata,
        relative: &Path,
        to: &Path,
        parent: &Parent,
    ) -> Result<(), CopyError> {
        let mut here = Parent { overwrite: true, ..Parent::default() };
        let mut included = self.source.visibility(from, found.is_dir()) == Visibility::Visible;
        let mut excluded = false;
        if !relative.as_os_str().is_empty() {
            let text = relative.to_string_lossy();
            if let Some(include) = &self.include {
                let verdict = include.visit(&text, &parent.include);
                included &= verdict.ignored;
                here.include = verdict.state;
            }
            if let Some(exclude) = &self.exclude {
                let verdict = exclude.visit(&text, &parent.exclude);
                excluded = verdict.ignored && exclude.can_prune(&text, &verdict);
                included &= !verdict.ignored;
                here.exclude = verdict.state;
            }
        }
        if found.is_dir() {
            if excluded {
                return Ok(());
            }
            return self.directory(from, relative, to, parent.overwrite, &here, included);
        }
        if !included {
            return Ok(());
        }
        if let Some(kind) = self.sink.find(to)? {
            if kind == Kind::Directory && !self.spec.always_replace_existing_dest_paths {
                return Err(CopyError::DirectoryInTheWay { path: to.to_owned() });
            }
            self.sink.remove(to)?;
        }
        self.make_parents()?;
        if found.kind == Kind::File && found.nlink > 1 {
            match self.links.get(&found.identity()) {
                Some(first) => return self.sink.link(&first.clone(), to),
                None => {
                    self.links.insert(found.identity(), to.to_owned());
                }
            }
        }
        if let Some(mut metadata) = self.source.listed(found) {
            self.describe(&mut metadata);
            if self.sink.put_listed(to, &metadata, found, from)? {
                return Ok(());
            }
        }
        let mut pauses = PAUSES.iter();
        loop {
            let put = self.entry(from).and_then(|entry| self.sink.put(to, &entry, self.source, from));
            match (put, pauses.next()) {
                // Somebody writes it; that may be over in a moment.
                (Err(error), Some(pause)) if error.is_change() && self.source.is_context() => {
                    std::thread::sleep(*pause);
                    if self.sink.find(to)?.is_some() {
                        self.sink.remove(to)?;
                    }
                }
                (put, _) => return put,
            }
        }
    }

    fn directory(
        &mut self,
        from: &Path,
        relative: &Path,
        to: &Path,
        overwrite: bool,
        here: &Parent,
        included: bool,
    ) -> Result<(), CopyError> {
        // The topmost directory always stands for itself; one that an include pattern does not name waits until
        // something in it is copied.
        let mut created = false;
        if included {
            self.make_parents()?;
            created = self.make_directory(from, to)?;
        }
        self.parents.push(Pending { from: from.to_owned(), to: to.to_owned(), made: included });
        let names = self.source.read_dir(from).map_err(|error| CopyError::reading(from, error))?;
        for (name, found, _) in names {
            self.copy(&from.join(&name), &found, &relative.join(&name), &to.join(&name), here)?;
        }
        self.parents.pop();
        if included {
            let entry = self.entry(from)?;
            if !created && overwrite {
                self.sink.update_dir(to, &entry)?;
            }
            self.times.push((to.to_owned(), entry.metadata.mtime));
        }
        Ok(())
    }

    /// Makes a directory with the source's attributes unless it is there.
    fn make_directory(&mut self, from: &Path, to: &Path) -> Result<bool, CopyError> {
        match self.sink.find(to)? {
            Some(Kind::Directory) => return Ok(false),
            Some(_) if self.spec.always_replace_existing_dest_paths => self.sink.remove(to)?,
            Some(_) => return Err(CopyError::NotADirectory { path: to.to_owned() }),
            None => {}
        }
        let entry = self.entry(from)?;
        self.sink.mkdir(to, &entry, Some(entry.metadata.mtime))?;
        Ok(true)
    }

    fn make_parents(&mut self) -> Result<(), CopyError> {
        for index in 0..self.parents.len() {
            if self.parents[index].made {
                continue;
            }
            let (from, to) = (self.parents[index].from.clone(), self.parents[index].to.clone());
            if self.make_directory(&from, &to)? {
                let time = self.entry(&from)?.metadata.mtime;
                self.times.push((to, time));
            }
            self.parents[index].made = true;
        }
        Ok(())
    }
}

/// A directory that nobody described.
fn plain_directory(mode: u32, owner: Option<(u32, u32)>) -> Entry {
    plain_entry(Kind::Directory, mode, owner)
}

fn plain_entry(kind: Kind, mode: u32, owner: Option<(u32, u32)>) -> Entry {
    let (uid, gid) = owner.unwrap_or_default();
    let metadata = Metadata {
        kind,
        mode,
        uid,
        gid,
        size: 0,
        mtime: Time::default(),
        ctime: Time::default(),
        device: Device::default(),
        nlink: 1,
        dev: 0,
        ino: 0,
    };
    Entry { metadata, xattrs: std::collections::BTreeMap::new(), link: None, opaque: false }
}

/// What a pattern matches: everything before its first wildcard is resolved, the rest is matched against what is below;
/// a directory that matches hides what is in it.
fn wildcard(source: View<'_>, src: &str, follow: bool) -> Result<Vec<SlashPath>, CopyError> {
    let path = clean(src);
    let is_wild = |name: &std::ffi::OsStr| has_wildcard(&name.to_string_lossy());
    let plain: PathBuf = path.iter().take_while(|name| !is_wild(name)).collect();
    let pattern = path.strip_prefix(&plain).unwrap_or(Path::new("")).to_string_lossy().into_owned();
    let slash = |path: PathBuf| SlashPath { path, is_dir: false, is_dot: false };
    if pattern.is_empty() {
        return Ok(vec![slash(plain)]);
    }
    let bad = |_| CopyError::Pattern { pattern: src.to_owned() };
    glob_match(&pattern, "").map_err(bad)?;
    let base = source.canonical(&plain, follow || plain != path)?;
    match source.find(&base)? {
        None => return Err(CopyError::NotFound { path: Path::new("/").join(plain) }),
        Some(found) if !found.is_dir() => return Ok(Vec::new()),
        Some(_) => {}
    }
    let depth = pattern.split('/').count();
    let mut matches = Vec::new();
    // Depth first, names in order; a pattern matches at exactly one depth.
    let mut todo = vec![PathBuf::new()];
    while let Some(relative) = todo.pop() {
        if relative.as_os_str().is_empty() || relative.iter().count() < depth {
            let full = base.join(&relative);
            if !relative.as_os_str().is_empty() && !source.find(&full)?.is_some_and(|found| found.is_dir()) {
                continue;
            }
            todo.extend(source.read_dir(&full)?.into_iter().rev().map(|(name, _, _)| relative.join(name)));
        } else if glob_match(&pattern, &relative.to_string_lossy()).map_err(bad)?
            && source.find(&base.join(&relative))?.is_some()
        {
            matches.push(slash(base.join(relative)));
        }
    }
    Ok(matches)
}

/// Tells whether a name has a wildcard that is not escaped.
pub(crate) fn has_wildcard(name: &str) -> bool {
    let mut chars = name.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => {
                chars.next();
            }
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

/// Unpacks the source if it is an archive; returns whether it was one.
fn unpack(
    source: View<'_>,
    src: &SlashPath,
    sink: &mut dyn Sink,
    dest: &SlashPath,
    spec: &CopySpec,
    times: &mut Vec<(PathBuf, Time)>,
) -> Result<bool, CopyError> {
    let from = source.canonical(&src.path, true)?;
    if !source.find(&from)?.is_some_and(|found| found.is_file()) {
        return Ok(false);
    }
    let content = |source| CopyError::Content { path: from.clone(), source };
    let open = || -> Result<_, CopyError> {
        compress::decompress(source.open_file(&from)?).map_err(|error| content(LayerError::Read(error)))
    };
    let mut head = Vec::new();
    if open()?.take(512).read_to_end(&mut head).is_err() || !crate::layer::is_header(&head) {
        return Ok(false);
    }
    let mut copier = Copier::new(source, sink, spec)?;
    let target = copier.sink.canonical(&dest.path)?;
    let spec = CopySpec { mode: None, ..spec.clone() };
    copier.spec = &spec;
    copier.mkdir_all(&target)?;
    times.append(&mut copier.times);
    let how = Unpack { options: ApplyOptions::default(), whiteouts: false, owner: spec.owner };
    sink.unpack(&target, &mut *open()?, &how).map_err(content)?;
    Ok(true)
}

/// Makes a directory; one that is there is left alone.
pub fn mkdir(
    tree: &Tree,
    path: impl AsRef<Path>,
    mode: u32,
    make_parents: bool,
    owner: Option<(u32, u32)>,
    timestamp: Option<Time>,
) -> Result<(), CopyError> {
    let mut sink = TreeSink::new(tree);
    let target = sink.canonical(path.as_ref())?;
    let entry = plain_directory(mode & 0o777, owner);
    let mut made = Vec::new();
    let first = if make_parents { 1 } else { target.iter().count() };
    for count in first..=target.iter().count() {
        let current: PathBuf = target.iter().take(count).collect();
        match sink.find(&current)? {
            Some(Kind::Directory) => {}
            Some(_) if !make_parents => {}
            Some(_) => return Err(CopyError::NotADirectory { path: current }),
            None if current.as_os_str().is_empty() => {}
            None => {
                sink.mkdir(&current, &entry, timestamp)?;
                made.push(current);
            }
        }
    }
    if let Some(time) = timestamp {
        made.iter().rev().try_for_each(|path| sink.set_time(path, time))?;
    }
    Ok(())
}

/// Writes a file, in the place of one that is there; a symbolic link as the last component is followed inside the tree.
pub fn mkfile(
    tree: &Tree,
    path: impl AsRef<Path>,
    mode: u32,
    data: &[u8],
    owner: Option<(u32, u32)>,
    timestamp: Option<Time>,
) -> Result<(), CopyError> {
    use std::io::Write as _;
    use std::os::fd::AsFd as _;
    let target = tree.canonical(path, true)?;
    let mut attributes = Attributes::from(&plain_entry(Kind::File, mode & 0o777, owner).metadata);
    match tree.find(&target, false)? {
        Some(found) if found.is_dir() => return Err(CopyError::DirectoryInTheWay { path: target }),
        Some(_) => {
            // Like a write to the file that is there: its mode stays.
            attributes.mode = tree.read_entry(&target)?.metadata.mode;
            tree.remove_all(&target)?;
        }
        None => {}
    }
    let mut file = tree.create_file(&target, 0o600)?;
    file.write_all(data)
        .map_err(|error| CopyError::Content { path: target.clone(), source: LayerError::Write(error) })?;
    let failed = |errno| build_engine_rootfs::Error::new("create", &target, errno);
    let place = tree.place(&target)?;
    place.as_place().set_new_attributes(file.as_fd(), &attributes).map_err(failed)?;
    if let Some(time) = timestamp {
        tree.set_times(&target, time)?;
    }
    Ok(())
}

/// Makes a symbolic link; it is an error if something is there.
pub fn symlink(
    tree: &Tree,
    target: &str,
    path: impl AsRef<Path>,
    owner: Option<(u32, u32)>,
    timestamp: Option<Time>,
) -> Result<(), CopyError> {
    let path = tree.canonical(path, true)?;
    tree.symlink(target, &path)?;
    let (uid, gid) = owner.unwrap_or_default();
    tree.set_owner(&path, uid, gid)?;
    if let Some(time) = timestamp {
        tree.set_times(&path, time)?;
    }
    Ok(())
}

/// Removes a path and everything below it; as a pattern, everything that matches.
pub fn rm(tree: &Tree, path: impl AsRef<Path>, allow_not_found: bool, allow_wildcard: bool) -> Result<(), CopyError> {
    let path = path.as_ref();
    let paths = if allow_wildcard {
        let found = wildcard(View::new(tree), &path.to_string_lossy(), false);
        match found {
            Err(CopyError::NotFound { .. }) if allow_not_found => Vec::new(),
            found => found?.into_iter().map(|found| found.path).collect(),
        }
    } else {
        vec![clean(path)]
    };
    for path in paths {
        let Some(name) = path.file_name() else { return Err(CopyError::Root) };
        let target = tree.canonical(path.parent().unwrap_or(Path::new("")), true)?.join(name);
        if !allow_not_found && tree.find(&target, false)?.is_none() {
            return Err(CopyError::NotFound { path: Path::new("/").join(path) });
        }
        tree.remove_all(&target)?;
    }
    Ok(())
}
