//! The walk of a context: in the order of paths, one directory's names at a time.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use build_engine_dockerfile::ignore::{Ignore, Verdict, WalkState};

use super::{ContextEntry, EntryKind, unreadable};
use crate::BuildError;

/// What is called for each entry.
pub(super) type Each<'a> = &'a mut dyn FnMut(ContextEntry) -> Result<(), BuildError>;

/// A name in a directory.
pub(super) struct Name {
    pub(super) name: OsString,
    pub(super) kind: EntryKind,
    /// Size in bytes; 0 for directories, and what is gone meanwhile.
    pub(super) size: u64,
}

/// The names in a directory, sorted as bytes.
pub(super) fn names(dir: &Path) -> Result<Vec<Name>, BuildError> {
    let failed = |error| unreadable(dir, &error);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let kind = EntryKind::of(entry.file_type().map_err(failed)?);
        let size = match kind {
            EntryKind::Dir => 0,
            EntryKind::File | EntryKind::Symlink | EntryKind::Other => entry.metadata().map_or(0, |found| found.len()),
        };
        names.push(Name { name: entry.file_name(), kind, size });
    }
    names.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(names)
}

/// A path within the context.
pub(super) fn below(dir: &str, name: &Name) -> String {
    let name = name.name.to_string_lossy();
    if dir.is_empty() { name.into_owned() } else { format!("{dir}/{name}") }
}

/// Gives what is kept to `each`, sorted by path.
pub(super) fn kept(root: &Path, ignore: &Ignore, each: Each<'_>) -> Result<(), BuildError> {
    directory(&Walk { root, ignore }, Path::new(""), "", &WalkState::default(), each)
}

/// Whether something below the directory `dir` is kept, though it itself is not.
pub(super) fn keeps_something(root: &Path, ignore: &Ignore, dir: &str) -> bool {
    let verdict = ignore.verdict(dir);
    if ignore.can_prune(dir, &verdict) {
        return false;
    }
    let mut found = false;
    let mut stop = |_: ContextEntry| {
        found = true;
        Err(BuildError::internal("found"))
    };
    let _ = directory(&Walk { root, ignore }, Path::new(dir), dir, &verdict.state, &mut stop);
    found
}

struct Walk<'a> {
    root: &'a Path,
    ignore: &'a Ignore,
}

/// What is still to be done about a subdirectory when its turn comes.
enum Inside {
    Nothing,
    Walk(WalkState),
    /// It had to be walked before it could be said whether the directory is there.
    Found(Vec<ContextEntry>),
}

fn directory(walk: &Walk<'_>, at: &Path, shown: &str, state: &WalkState, each: Each<'_>) -> Result<(), BuildError> {
    let names = names(&walk.root.join(at))?;
    // `a-b` stands between `a` and `a/b`: a directory has its turn twice.
    let mut turns: Vec<(usize, bool)> = Vec::with_capacity(names.len());
    for (index, name) in names.iter().enumerate() {
        turns.push((index, false));
        if name.kind == EntryKind::Dir {
            turns.push((index, true));
        }
    }
    let slash = |inside: bool| inside.then_some(b'/');
    turns.sort_by(|(a, a_inside), (b, b_inside)| {
        let key = |index: usize, inside| names[index].name.as_encoded_bytes().iter().copied().chain(slash(inside));
        key(*a, *a_inside).cmp(key(*b, *b_inside))
    });
    let mut inside: Vec<Inside> = names.iter().map(|_| Inside::Nothing).collect();
    for (index, is_inside) in turns {
        let name = &names[index];
        let path = below(shown, name);
        if is_inside {
            match std::mem::replace(&mut inside[index], Inside::Nothing) {
                Inside::Nothing => {}
                Inside::Walk(state) => directory(walk, &at.join(&name.name), &path, &state, each)?,
                Inside::Found(entries) => entries.into_iter().try_for_each(&mut *each)?,
            }
            continue;
        }
        let verdict = walk.ignore.visit(&path, state);
        if name.kind != EntryKind::Dir {
            if !verdict.ignored {
                each(ContextEntry { path, kind: name.kind, size: name.size })?;
            }
            continue;
        }
        inside[index] = subdirectory(walk, &at.join(&name.name), &path, verdict, each)?;
    }
    Ok(())
}

fn subdirectory(
    walk: &Walk<'_>,
    at: &Path,
    path: &str,
    verdict: Verdict,
    each: Each<'_>,
) -> Result<Inside, BuildError> {
    let entry = || ContextEntry { path: path.to_owned(), kind: EntryKind::Dir, size: 0 };
    if !verdict.ignored {
        each(entry())?;
        return Ok(Inside::Walk(verdict.state));
    }
    if walk.ignore.can_prune(path, &verdict) {
        return Ok(Inside::Nothing);
    }
    let mut found = Vec::new();
    let mut gather = |entry| {
        found.push(entry);
        Ok(())
    };
    directory(walk, at, path, &verdict.state, &mut gather)?;
    if found.is_empty() {
        return Ok(Inside::Nothing);
    }
    each(entry())?;
    Ok(Inside::Found(found))
}

/// The path of `path`, which uses slashes, below `root`.
pub(super) fn on_disk(root: &Path, path: &str) -> PathBuf {
    root.join(path)
}
