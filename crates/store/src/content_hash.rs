//! Content digests of files, directories and selections, equal to BuildKit's.
//!
//! A file's digest covers mode, owner, size, type, link target, device number, extended attributes and content, but
//! neither name nor time; a directory's covers names and digests of what is in it (`cache/contenthash` of BuildKit; the
//! header part is Docker's "tarsum" v1). So a fresh clone of a repository has the digests of the old one.
//!
//! [`ContentHash`] lists the tree once, without opening a file, and hashes only what a question needs. What an
//! [`Index`] knows is not read again.
//!
//! Records are kept by key: the path with `/` as 0, so that the order of keys is the order in which BuildKit hashes
//! them. A directory has two: its key with a 0 at the end is its header, its key alone is everything in it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use build_engine_dockerfile::glob_match;
use build_engine_dockerfile::ignore::{Ignore, IgnoreError, WalkState};
use build_engine_oci::{Digest, Hasher};
use build_engine_rootfs::{Kind, Metadata};
use rayon::prelude::*;

use crate::copy::{View, Visibility, has_wildcard};

mod read;
mod records;

use read::Reader;
use records::Records;

/// Links followed in one path.
const MAX_LINKS: usize = 255;

/// What is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Question {
    /// The path. A slash at its end leaves the directory's own attributes out where patterns are used.
    pub path: String,
    /// Whether a link as the last component is followed.
    pub follow_links: bool,
    /// Whether the path is a pattern.
    pub wildcard: bool,
    /// Patterns of which a path must match one, relative to the path.
    pub include_patterns: Vec<String>,
    /// Patterns of which a path may match none, relative to the path.
    pub exclude_patterns: Vec<String>,
    /// Prefixes that something selected must have.
    pub required_paths: Vec<String>,
}

/// Remembers digests of files, links and directories' headers from one build to the next.
pub trait Index: Sync {
    /// The digest of what is at `path`, if it is known for exactly this metadata.
    fn get(&self, path: &Path, metadata: &Metadata) -> Option<Digest>;
    /// Learns a digest. `metadata` was what `lstat` said before and after it was read.
    fn put(&self, path: &Path, metadata: &Metadata, digest: &Digest);
}

/// A question that has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HashError {
    /// The path, or a required one, does not exist.
    #[error("`{}` not found", .path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// The path has too many links on its way.
    #[error("too many symbolic links in `{}`", .path.display())]
    TooManyLinks {
        /// The path.
        path: PathBuf,
    },
    /// The path is a malformed pattern.
    #[error("invalid pattern `{pattern}`")]
    Pattern {
        /// The pattern.
        pattern: String,
    },
    /// An include or exclude pattern is malformed.
    #[error("invalid pattern")]
    Patterns(#[from] IgnoreError),
    /// A file changed while it was read.
    #[error("`{}` changed while reading", .path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read `{}`", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The tree refused.
    #[error(transparent)]
    Tree(#[from] build_engine_rootfs::Error),
}

/// How many things one thread hashes before it looks whether there are more.
const TOGETHER: usize = 64;

/// How much of a file is read at once.
const BUFFER: usize = 128 << 10;

/// How long a file that changes while it is read is left alone, time after time.
pub(crate) const PAUSES: [Duration; 5] = [
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(20),
    Duration::from_millis(80),
    Duration::from_millis(300),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecordKind {
    File,
    Symlink,
    Directory,
    DirectoryHeader,
}

#[derive(Debug, Clone)]
struct Record {
    kind: RecordKind,
    metadata: Metadata,
    link: Option<Box<[u8]>>,
    /// A SHA-256.
    digest: Option<[u8; 32]>,
}

type Key = Vec<u8>;

/// What is in a tree, and the digests that are known of it.
#[derive(Debug, Clone)]
pub struct Listing {
    records: Records,
}

/// Content digests of one tree, which must not change meanwhile (what does is an error where it is noticed).
pub struct ContentHash<'a> {
    view: View<'a>,
    index: Option<&'a dyn Index>,
    records: Records,
}

impl std::fmt::Debug for ContentHash<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContentHash").field("view", &self.view).field("records", &self.records.len()).finish()
    }
}

/// One of the things that a selection consists of.
#[derive(Debug)]
struct Selected {
    path: Vec<u8>,
    key: Key,
    kind: RecordKind,
    included: bool,
    include: WalkState,
    exclude: WalkState,
    follow: bool,
}

impl Listing {
    /// Lists `view`, the directories of each depth at once. No file is opened.
    ///
    /// # Errors
    /// What the tree refuses.
    pub fn new(view: View<'_>) -> Result<Self, HashError> {
        let mut records = Self::below(view, Path::new(""), &[])?;
        if view.is_context()
            && let Some(root) = records.position(&[0])
        {
            // BuildKit's clients send what is in a context, not its root.
            records[root].digest = Digest::sha256(b"").sha256_bytes();
        }
        Ok(Self { records })
    }

    /// The records of a directory and of everything in it.
    fn below(view: View<'_>, dir: &Path, dir_key: &[u8]) -> Result<Records, HashError> {
        let mut records = Records::default();
        // Directories that are there only if something in them is, outermost first.
        let mut through: Vec<(Key, Metadata)> = Vec::new();
        records.push_directory(&[dir_key], view.tree().metadata(dir, false)?);
        let mut depth = vec![(dir.to_owned(), dir_key.to_vec())];
        while !depth.is_empty() {
            let one = |(path, key): &(PathBuf, Key)| list(view, path, key);
            // Other threads are worth waking for many directories only.
            let listed: Vec<Listed> = if depth.len() < 8 {
                depth.iter().map(one).collect::<Result<_, HashError>>()?
            } else {
                depth.par_iter().map(one).collect::<Result<_, HashError>>()?
            };
            depth.clear();
            for dir in listed {
                records.append(dir.records);
                through.extend(dir.through);
                depth.extend(dir.dirs);
            }
        }
        records.sort();
        // What fills one is below it, however deep.
        let is_filled = |key: &[u8]| {
            let inside = [key, &[0]].concat();
            records.from(&inside).next().is_some_and(|(key, _)| key.starts_with(&inside))
        };
        through.retain(|(key, _)| is_filled(key));
        if !through.is_empty() {
            through.into_iter().for_each(|(key, metadata)| records.push_directory(&[&key], metadata));
            records.sort();
        }
        Ok(records)
    }

    /// How many things are in the tree, its root included.
    pub fn count(&self) -> usize {
        self.records.len()
    }

    /// The first path at or below `path` (relative to the root, without links) that is not now as it was listed, or not as
    /// it was when its content was hashed. Directories are compared by what is in them.
    ///
    /// # Errors
    /// What the tree refuses.
    pub fn changed(&self, view: View<'_>, path: &Path) -> Result<Option<PathBuf>, HashError> {
        let is_same = |was: &Record, is: &Record| is_unchanged(&was.metadata, &is.metadata) && was.link == is.link;
        let start = key_of_path(path);
        let now = match view.find(path)? {
            None => return Ok(Some(path.to_owned())),
            Some(found) if found.is_dir() => Self::below(view, path, &start)?,
            Some(found) => {
                let link = match found.kind {
                    Kind::Symlink => Some(view.tree().read_link(path)?.as_bytes().into()),
                    _ => None,
                };
                let mut one = Records::default();
                one.push(&[&start], Record { kind: RecordKind::File, metadata: found, link, digest: None });
                one
            }
        };
        let before = self.records.position(&start);
        let mut before =
            before.map_or(0..0, |at| at..self.records.end_of(at)).map(|at| (self.records.key(at), &self.records[at]));
        let mut now = now.from(&[]);
        let shown = |key: &[u8]| {
            let plain = key.strip_suffix(&[0]).unwrap_or(key);
            path_buf(zeros_to_slashes(plain).strip_prefix(b"/").unwrap_or_default())
        };
        loop {
            match (before.next(), now.next()) {
                (None, None) => return Ok(None),
                (Some((key, was)), Some((now_key, is))) if key == now_key && is_same(was, is) => {}
                (Some((key, _)), Some((now_key, _))) => return Ok(Some(shown(key.min(now_key)))),
                (Some((key, _)), None) | (None, Some((key, _))) => return Ok(Some(shown(key))),
            }
        }
    }

    /// Whether what is at this path (relative to the root, without links) is what was listed there.
    pub(crate) fn is_same(&self, path: &Path, found: &Metadata) -> bool {
        self.records.get(&key_of_path(path)).is_some_and(|record| is_unchanged(&record.metadata, found))
    }

    /// What is in the directory at this path (relative to the root, without links), sorted; `None` if there is no such one.
    pub(crate) fn children(&self, dir: &Path) -> Option<Vec<(OsString, Metadata)>> {
        let dir = self.records.position(&key_of_path(dir))?;
        let inside = self.records.key(dir).len() + 1;
        (self.records[dir].kind == RecordKind::Directory).then(|| {
            let children =
                self.records.children(dir).filter(|at| self.records[*at].kind != RecordKind::DirectoryHeader);
            let named = children.map(|at| {
                let name = self.records.key(at)[inside..].to_vec();
                (OsString::from_vec(name), self.records[at].metadata)
            });
            named.collect()
        })
    }

    /// Whether there is something at this path, which is relative to the root and without links.
    pub fn contains(&self, path: &Path) -> bool {
        self.records.position(&key_of_path(path)).is_some()
    }
}

/// Whether two looks at one thing tell of no change but in what is in a directory, which tells itself.
fn is_unchanged(one: &Metadata, two: &Metadata) -> bool {
    let whole = |it: &Metadata| (it.identity(), it.size, it.mtime, it.ctime);
    let same = match one.kind {
        // Its modification time is that of what is in it; without that, attributes are all that can have changed.
        Kind::Directory => one.ctime == two.ctime || one.mtime != two.mtime,
        _ => whole(one) == whole(two),
    };
    (one.kind, one.mode) == (two.kind, two.mode) && same
}

/// What one directory holds.
#[derive(Default)]
struct Listed {
    records: Records,
    through: Vec<(Key, Metadata)>,
    dirs: Vec<(PathBuf, Key)>,
}

fn list(view: View<'_>, dir: &Path, dir_key: &[u8]) -> Result<Listed, HashError> {
    let mut listed = Listed::default();
    for (name, metadata, visibility) in view.read_dir(dir).map_err(|error| gone(error.into(), dir))? {
        let key: [&[u8]; 3] = [dir_key, &[0], name.as_bytes()];
        match metadata.kind {
            Kind::Directory => {
                let key = key.concat();
                listed.dirs.push((dir.join(&name), key.clone()));
                if visibility == Visibility::Visible {
                    listed.records.push_directory(&[&key], metadata);
                } else {
                    listed.through.push((key, metadata));
                }
            }
            Kind::Symlink => {
                let link = Some(view.tree().read_link(dir.join(&name))?.as_bytes().into());
                listed.records.push(&key, Record { kind: RecordKind::Symlink, metadata, link, digest: None });
            }
            Kind::File | Kind::CharDevice | Kind::BlockDevice | Kind::Fifo | Kind::Socket => {
                let record = Record { kind: RecordKind::File, metadata, link: None, digest: None };
                listed.records.push(&key, record);
            }
        }
    }
    Ok(listed)
}

impl<'a> ContentHash<'a> {
    /// Lists `view`.
    ///
    /// # Errors
    /// What the tree refuses.
    pub fn new(view: View<'a>, index: Option<&'a dyn Index>) -> Result<Self, HashError> {
        Ok(Self { view, index, records: Listing::new(view)?.records })
    }

    /// Goes on with a listing of `view` that was made before.
    pub fn resume(view: View<'a>, index: Option<&'a dyn Index>, listing: Listing) -> Self {
        Self { view, index, records: listing.records }
    }

    /// The listing, with the digests that were made.
    pub fn into_listing(self) -> Listing {
        Listing { records: self.records }
    }

    /// Answers a question.
    ///
    /// # Errors
    /// [`HashError::NotFound`] if the path does not exist. A pattern that matches nothing is no error: its digest is
    /// that of no bytes.
    pub fn digest(&mut self, question: &Question) -> Result<Digest, HashError> {
        if !question.wildcard && question.include_patterns.is_empty() && question.exclude_patterns.is_empty() {
            return self.checksum(&key_of(&question.path), question.follow_links);
        }
        let (prefix, selected) = self.select(question)?;
        let mut digests = Vec::with_capacity(selected.len());
        self.fill(selected.iter().filter_map(|selected| self.records.position(&selected.key)).collect())?;
        for selected in &selected {
            let follow = selected.follow && selected.kind == RecordKind::Symlink && question.follow_links;
            let key = if follow { slashes_to_zeros(&selected.path) } else { selected.key.clone() };
            digests.push(self.checksum(&key, follow)?);
        }
        match (&selected[..], &digests[..]) {
            ([], _) => return Ok(Digest::sha256(b"")),
            ([only], [digest]) if base(&key_path(&question.path)) == base(&only.path) => return Ok(digest.clone()),
            _ => {}
        }
        let mut hasher = Hasher::new();
        for (selected, digest) in selected.iter().zip(digests) {
            let path = selected.path.strip_prefix(&prefix[..]).unwrap_or(&selected.path);
            let key = slashes_to_zeros(path);
            hasher.update(if key.is_empty() { &[0] } else { &key });
            hasher.update(digest.to_string().as_bytes());
        }
        Ok(hasher.finish())
    }

    /// What the path and the patterns select, in order, and the part of the paths that does not count.
    fn select(&self, question: &Question) -> Result<(Vec<u8>, Vec<Selected>), HashError> {
        let patterns = |list: &[String]| (!list.is_empty()).then(|| Ignore::new(list)).transpose();
        let (include, exclude) = (patterns(&question.include_patterns)?, patterns(&question.exclude_patterns)?);
        let ends_in_slash = question.path.ends_with('/');
        let path = key_path(&question.path);
        let pattern = String::from_utf8_lossy(&path).into_owned();
        let matches = |name: &[u8]| {
            glob_match(&pattern, &String::from_utf8_lossy(name))
                .map_err(|_| HashError::Pattern { pattern: question.path.clone() })
        };
        if question.wildcard {
            matches(b"")?;
        }
        // The part before the first wildcard is resolved; what lies below it keeps the name that was asked for.
        let (prefix, resolved) = if question.wildcard {
            let (plain, wild) = split_wildcards(&path);
            if plain.is_empty() {
                (plain, Some(Vec::new()))
            } else {
                let found = self.resolve(&slashes_to_zeros(&plain), !wild.is_empty())?;
                (plain, found)
            }
        } else {
            let found = self.resolve(&slashes_to_zeros(&path), false)?;
            (path.clone(), found)
        };
        let Some(start) = resolved else {
            return self.check_required(question, prefix, Vec::new());
        };
        let mut selected: Vec<Selected> = Vec::new();
        // Directory headers on the way, as indices of `selected` or not yet part of it.
        let mut headers: Vec<Selected> = Vec::new();
        let mut stack: Vec<Result<usize, usize>> = Vec::new();
        let mut last_matched: Option<Vec<u8>> = None;
        let resolved_path = zeros_to_slashes(&start);
        for (key, record) in self.records.from(&start) {
            let full = zeros_to_slashes(key);
            if !(full == resolved_path || full.starts_with(&[&resolved_path[..], b"/"].concat())) {
                // Siblings such as `a-b` sort between `a` and nothing of it, because 0 sorts first.
                if !full.starts_with(&resolved_path) {
                    break;
                }
                continue;
            }
            if record.kind == RecordKind::Directory {
                // Contents are selected one by one.
                continue;
            }
            let mut name = [&prefix[..], &full[resolved_path.len()..]].concat();
            let is_header = record.kind == RecordKind::DirectoryHeader;
            if is_header {
                name.pop();
                if name == path && ends_in_slash {
                    continue;
                }
            }
            let path_of = |entry: &Result<usize, usize>| match entry {
                Ok(index) => &selected[*index],
                Err(index) => &headers[*index],
            };
            while stack.last().is_some_and(|top| !name.starts_with(&[&path_of(top).path[..], b"/"].concat())) {
                stack.pop();
            }
            let parent = stack.last().map(path_of);
            let mut item = Selected {
                path: name.clone(),
                key: key.to_vec(),
                kind: record.kind,
                included: false,
                include: WalkState::default(),
                exclude: WalkState::default(),
                follow: parent.is_none() && question.follow_links,
            };
            let relative = if question.wildcard {
                let inside = |dir: &Vec<u8>| name.starts_with(&[&dir[..], b"/"].concat());
                if !path.is_empty() && !last_matched.as_ref().is_some_and(inside) {
                    if !matches(&name)? {
                        continue;
                    }
                    last_matched = Some(name.clone());
                }
                relative_to(&name, last_matched.as_deref().unwrap_or_default())
            } else {
                relative_to(&name, &path)
            };
            let text = String::from_utf8_lossy(&relative);
            let ask = |ignore: &Option<Ignore>, state: Option<&WalkState>| {
                ignore.as_ref().map(|ignore| match state {
                    Some(state) => ignore.visit(&text, state),
                    None => ignore.verdict(&text),
                })
            };
            let mut wanted = true;
            if let Some(verdict) = ask(&include, parent.map(|parent| &parent.include)) {
                wanted = verdict.ignored;
                item.include = verdict.state;
            }
            if wanted && let Some(verdict) = ask(&exclude, parent.map(|parent| &parent.exclude)) {
                wanted = !verdict.ignored;
                item.exclude = verdict.state;
            }
            if wanted {
                for entry in &mut stack {
                    if let Err(index) = *entry {
                        let header = &mut headers[index];
                        if !header.included {
                            header.included = true;
                            selected.push(Selected {
                                path: header.path.clone(),
                                key: header.key.clone(),
                                kind: header.kind,
                                included: true,
                                include: header.include.clone(),
                                exclude: header.exclude.clone(),
                                follow: header.follow,
                            });
                            *entry = Ok(selected.len() - 1);
                        }
                    }
                }
                item.included = true;
                selected.push(item);
                if is_header {
                    stack.push(Ok(selected.len() - 1));
                }
            } else if is_header {
                headers.push(item);
                stack.push(Err(headers.len() - 1));
            }
        }
        self.check_required(question, prefix, selected)
    }

    fn check_required(
        &self,
        question: &Question,
        prefix: Vec<u8>,
        selected: Vec<Selected>,
    ) -> Result<(Vec<u8>, Vec<Selected>), HashError> {
        for required in &question.required_paths {
            if !selected.iter().any(|selected| selected.path.starts_with(required.as_bytes())) {
                return Err(HashError::NotFound { path: required.into() });
            }
        }
        Ok((prefix, selected))
    }

    /// The key that a key leads to when links are followed; `None` if there is nothing.
    fn resolve(&self, key: &[u8], follow_last: bool) -> Result<Option<Key>, HashError> {
        if let Some(record) = self.records.get(key)
            && !(follow_last && record.kind == RecordKind::Symlink)
        {
            return Ok(Some(key.to_vec()));
        }
        let mut rest: Vec<Vec<u8>> = reversed(key, 0);
        let mut current: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    current.pop();
                    continue;
                }
                _ => current.push(name),
            }
            if rest.is_empty() && !follow_last {
                break;
            }
            let Some(Record { link: Some(link), .. }) = self.records.get(&joined(&current)) else { continue };
            links += 1;
            if links > MAX_LINKS {
                return Err(HashError::TooManyLinks { path: path_buf(&zeros_to_slashes(key)) });
            }
            current.pop();
            if link.starts_with(b"/") {
                current.clear();
            }
            rest.extend(reversed(link, b'/'));
        }
        let key = joined(&current);
        Ok(self.records.position(&key).map(|_| key))
    }

    fn checksum(&mut self, key: &[u8], follow_last: bool) -> Result<Digest, HashError> {
        let Some(key) = self.resolve(key, follow_last)? else {
            return Err(HashError::NotFound { path: path_buf(&zeros_to_slashes(key)) });
        };
        let at = self.records.position(&key).expect("a key that was resolved is there");
        // First all files at once, then the directories above them.
        let is_directory = self.records[at].kind == RecordKind::Directory;
        self.fill(if is_directory { (at..self.records.end_of(at)).collect() } else { vec![at] })?;
        Ok(Digest::from_sha256(self.directory(at)))
    }

    /// The digest of a record whose files are all hashed.
    fn directory(&mut self, at: usize) -> [u8; 32] {
        if let Some(digest) = self.records[at].digest {
            return digest;
        }
        let length = self.records.key(at).len();
        let children: Vec<usize> = self.records.children(at).collect();
        let mut hasher = Hasher::new();
        for child in children {
            let digest = Digest::from_sha256(self.directory(child));
            hasher.update(&self.records.key(child)[length..]);
            hasher.update(digest.to_string().as_bytes());
        }
        let digest = hasher.finish().sha256_bytes().expect("that is what it hashes with");
        self.records[at].digest = Some(digest);
        digest
    }

    /// Hashes files, links and headers that have no digest yet, on all cores.
    fn fill(&mut self, mut todo: Vec<usize>) -> Result<(), HashError> {
        let records = &self.records;
        todo.retain(|at| records[*at].digest.is_none() && records[*at].kind != RecordKind::Directory);
        let (view, index) = (self.view, self.index);
        let some = |positions: &[usize]| {
            let mut reader = Reader { view, index, dir: None, buffer: Vec::new() };
            let digests = positions.iter().map(|at| {
                let key = records.key(*at);
                let plain = key.strip_suffix(&[0]).unwrap_or(key);
                let path = path_buf(zeros_to_slashes(plain).strip_prefix(b"/").unwrap_or_default());
                let listed = &records[*at].metadata;
                let (digest, metadata) = reader.digest(&path, listed).map_err(|error| gone(error, &path))?;
                Ok((digest.sha256_bytes(), (metadata != *listed).then(|| Box::new(metadata))))
            });
            digests.collect::<Result<Vec<_>, HashError>>()
        };
        // Waking other threads for a handful of files takes longer than reading them.
        let done: Vec<Vec<Done>> = if todo.len() <= TOGETHER {
            vec![some(&todo)?]
        } else {
            todo.par_chunks(TOGETHER).map(some).collect::<Result<_, HashError>>()?
        };
        for (at, (digest, changed)) in todo.into_iter().zip(done.into_iter().flatten()) {
            let record = &mut self.records[at];
            record.digest = digest;
            record.metadata = changed.map_or(record.metadata, |metadata| *metadata);
        }
        Ok(())
    }
}

/// The digest of a file, and what it is if that is not what was listed.
type Done = (Option<[u8; 32]>, Option<Box<Metadata>>);

/// What was found, and is not there any more, changed.
fn gone(error: HashError, path: &Path) -> HashError {
    match error {
        HashError::Tree(error) if error.is_not_found() => HashError::Changed { path: path.to_owned() },
        other => other,
    }
}

/// The clean absolute path, the root as the empty one.
fn key_path(path: &str) -> Vec<u8> {
    let clean = build_engine_rootfs::clean(path);
    if clean.as_os_str().is_empty() {
        return Vec::new();
    }
    [b"/", clean.as_os_str().as_bytes()].concat()
}

/// The key of a path that is relative to the root and clean.
fn key_of_path(path: &Path) -> Key {
    if path.as_os_str().is_empty() {
        return Key::new();
    }
    slashes_to_zeros(&[b"/", path.as_os_str().as_bytes()].concat())
}

fn key_of(path: &str) -> Key {
    slashes_to_zeros(&key_path(path))
}

fn slashes_to_zeros(path: &[u8]) -> Vec<u8> {
    path.iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect()
}

fn zeros_to_slashes(key: &[u8]) -> Vec<u8> {
    key.iter().map(|byte| if *byte == 0 { b'/' } else { *byte }).collect()
}

fn path_buf(path: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(path))
}

fn base(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

fn relative_to(name: &[u8], dir: &[u8]) -> Vec<u8> {
    let name = [name, b"/"].concat();
    let dir = [dir, b"/"].concat();
    let relative = name.strip_prefix(&dir[..]).unwrap_or(&name);
    relative.strip_suffix(b"/").unwrap_or(relative).to_vec()
}

fn reversed(path: &[u8], separator: u8) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == separator).rev().map(<[u8]>::to_vec).collect()
}

fn joined(components: &[Vec<u8>]) -> Key {
    let mut key = Key::new();
    for component in components {
        key.push(0);
        key.extend_from_slice(component);
    }
    key
}

/// The part of a clean absolute path before its first wildcard, and the rest.
fn split_wildcards(path: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let components: Vec<&[u8]> = path.split(|byte| *byte == b'/').skip(1).collect();
    let first = components.iter().position(|name| has_wildcard(&String::from_utf8_lossy(name)));
    let (plain, wild) = components.split_at(first.unwrap_or(components.len()));
    let join = |parts: &[&[u8]]| parts.iter().flat_map(|part| [b"/", *part].concat()).collect::<Vec<u8>>();
    (join(plain), join(wild))
}

#[cfg(test)]
mod tests;
