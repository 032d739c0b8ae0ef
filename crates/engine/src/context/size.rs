//! What a context weighs: the largest files and directories, and what the ignore file saves.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::Path;

use build_engine_dockerfile::ignore::WalkState;
use serde::Serialize;

use super::walk::{below, names};
use super::{EntryKind, IgnoreFile};
use crate::BuildError;

/// A file and its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileSize {
    /// Path within the context.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
}

/// A directory and all that is kept below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DirectorySize {
    /// Path within the context.
    pub path: String,
    /// Size in bytes of all files.
    pub size: u64,
    /// Number of files.
    pub files: u64,
}

/// What one line of the ignore file leaves out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleSavings {
    /// Its line, counted from 1.
    pub line: usize,
    /// The line.
    pub text: String,
    /// Size in bytes of what it leaves out; for an exception, of what it takes back.
    pub size: u64,
    /// Number of files.
    pub files: u64,
}

/// What a context weighs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Sizes {
    /// Size in bytes of all files that are kept.
    pub size: u64,
    /// Number of files that are kept.
    pub files: u64,
    /// Number of directories that are kept or have something in them that is.
    pub directories: u64,
    /// The largest files, largest first.
    pub largest_files: Vec<FileSize>,
    /// The largest directories, by path. With each, all directories above it are listed.
    pub largest_directories: Vec<DirectorySize>,
    /// The ignore file; `None` if there is none.
    pub ignore_file: Option<String>,
    /// Size in bytes of what the ignore file leaves out.
    pub ignored_size: u64,
    /// Number of files that the ignore file leaves out.
    pub ignored_files: u64,
    /// What each of its lines decides, in their order.
    pub rules: Vec<RuleSavings>,
}

/// Measures a context. Names `top` files and `top` directories.
///
/// # Errors
/// [`crate::ExitKind::Input`] where what is kept cannot be read. What is left out need not be readable.
pub fn size(context: &Path, ignore: &IgnoreFile, top: usize) -> Result<Sizes, BuildError> {
    let rules = ignore.ignore.rules().len();
    let mut walk = Measure {
        ignore,
        top,
        sums: vec![Sum::default(); rules],
        files: BinaryHeap::new(),
        directories: BinaryHeap::new(),
        count: 0,
        ignored: Sum::default(),
    };
    let total = walk.directory(context, "", &WalkState::default())?;
    let mut largest_files: Vec<FileSize> =
        walk.files.into_iter().map(|Reverse((size, Reverse(path)))| FileSize { path, size }).collect();
    largest_files.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.path.cmp(&b.path)));
    let directories = walk.directories.into_iter();
    let mut largest_directories: Vec<DirectorySize> =
        directories.map(|Reverse((size, Reverse(path), files))| DirectorySize { path, size, files }).collect();
    largest_directories.sort_by(|a, b| a.path.split('/').cmp(b.path.split('/')));
    let lines = ignore.ignore.rules().iter().zip(&walk.sums).enumerate();
    let rules = lines.map(|(index, (rule, sum))| RuleSavings {
        line: rule.line,
        text: ignore.deciding(index, "", 0).map(|rule| rule.text).unwrap_or_default(),
        size: sum.size,
        files: sum.files,
    });
    Ok(Sizes {
        size: total.size,
        files: total.files,
        directories: walk.count,
        largest_files,
        largest_directories,
        ignore_file: ignore.path.as_ref().map(|path| path.display().to_string()),
        ignored_size: walk.ignored.size,
        ignored_files: walk.ignored.files,
        rules: rules.collect(),
    })
}

#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    size: u64,
    files: u64,
}

impl Sum {
    fn add(&mut self, other: Self) {
        self.size = self.size.saturating_add(other.size);
        self.files += other.files;
    }
}

/// The smallest of the largest comes out first; of two that are alike, the one with the later path.
type Largest<T> = BinaryHeap<Reverse<T>>;

struct Measure<'a> {
    ignore: &'a IgnoreFile,
    top: usize,
    /// Per rule.
    sums: Vec<Sum>,
    files: Largest<(u64, Reverse<String>)>,
    /// A directory is never smaller than one in it and its path comes first, so what is kept here is a tree.
    directories: Largest<(u64, Reverse<String>, u64)>,
    count: u64,
    ignored: Sum,
}

fn push<T: Ord>(heap: &mut Largest<T>, top: usize, item: T) {
    heap.push(Reverse(item));
    if heap.len() > top {
        heap.pop();
    }
}

impl Measure<'_> {
    fn directory(&mut self, dir: &Path, shown: &str, state: &WalkState) -> Result<Sum, BuildError> {
        let mut total = Sum::default();
        for name in names(dir)? {
            let path = below(shown, &name);
            let verdict = self.ignore.ignore.visit(&path, state);
            let sum = match name.kind {
                EntryKind::Dir if self.ignore.ignore.can_prune(&path, &verdict) => {
                    let lost = ignored(&dir.join(&name.name));
                    self.note(verdict.decided_by, lost);
                    self.ignored.add(lost);
                    continue;
                }
                EntryKind::Dir => {
                    let sum = self.directory(&dir.join(&name.name), &path, &verdict.state)?;
                    if !verdict.ignored || sum.files > 0 {
                        self.count += 1;
                        push(&mut self.directories, self.top, (sum.size, Reverse(path), sum.files));
                    }
                    sum
                }
                EntryKind::File | EntryKind::Symlink | EntryKind::Other => {
                    let sum = Sum { size: name.size, files: 1 };
                    self.note(verdict.decided_by, sum);
                    if verdict.ignored {
                        self.ignored.add(sum);
                        continue;
                    }
                    push(&mut self.files, self.top, (name.size, Reverse(path)));
                    sum
                }
            };
            total.add(sum);
        }
        Ok(total)
    }

    fn note(&mut self, rule: Option<usize>, sum: Sum) {
        if let Some(known) = rule.and_then(|rule| self.sums.get_mut(rule)) {
            known.add(sum);
        }
    }
}

/// What is in a directory that is left out as a whole; what cannot be read counts as nothing.
fn ignored(dir: &Path) -> Sum {
    let mut total = Sum::default();
    for name in names(dir).unwrap_or_default() {
        match name.kind {
            EntryKind::Dir => total.add(ignored(&dir.join(&name.name))),
            EntryKind::File | EntryKind::Symlink | EntryKind::Other => total.add(Sum { size: name.size, files: 1 }),
        }
    }
    total
}
