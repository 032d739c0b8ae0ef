//! The path that somebody may have meant: one that differs in the case of its letters, by a slip of the finger, or that
//! stands in another directory.

use std::collections::VecDeque;

use build_engine_rootfs::{Kind, Tree};

/// How many names are looked at, at most.
const MAX_NAMES: usize = 20_000;

/// How deep another directory is looked for.
const MAX_DEPTH: usize = 6;

/// In which way a path that exists is like one that does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Likeness {
    /// Upper and lower case are different.
    Case,
    /// Some letters are.
    Spelling,
    /// The name is the same, in another directory.
    Elsewhere,
}

/// A path that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Near {
    /// The path, without a slash at its start.
    pub(crate) path: String,
    /// How it is like the one that was looked for.
    pub(crate) likeness: Likeness,
}

/// Finds the path in `tree` that is most like `path`, which does not exist there.
pub(crate) fn nearest(tree: &Tree, path: &str) -> Option<Near> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.is_empty() || parts.iter().any(|part| *part == ".." || part.contains(['*', '?', '['])) {
        return None;
    }
    let mut left = MAX_NAMES;
    // A link that leads nowhere is there, under its own name.
    let other = |near: &Near| near.path != parts.join("/");
    spelt(tree, "", &parts, false, &mut left).filter(other).or_else(|| elsewhere(tree, &parts).filter(other))
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

fn list(tree: &Tree, dir: &str) -> Vec<String> {
    let names = tree.read_dir(dir).unwrap_or_default();
    names.into_iter().filter_map(|name| name.into_string().ok()).collect()
}

fn exists(tree: &Tree, path: &str) -> bool {
    matches!(tree.find(path, false), Ok(Some(_)))
}

/// Follows `parts` below `dir`, taking another name where the one that is wanted is not there.
fn spelt(tree: &Tree, dir: &str, parts: &[&str], corrected: bool, left: &mut usize) -> Option<Near> {
    let Some((first, rest)) = parts.split_first() else {
        let likeness = if corrected { Likeness::Spelling } else { Likeness::Case };
        return Some(Near { path: dir.to_owned(), likeness });
    };
    let same = join(dir, first);
    if exists(tree, &same)
        && let Some(found) = spelt(tree, &same, rest, corrected, left)
    {
        return Some(found);
    }
    let mut names: Vec<(bool, usize, String)> = Vec::new();
    for name in list(tree, dir) {
        *left = left.checked_sub(1)?;
        if name == *first {
            continue;
        }
        let case = name.to_lowercase() == first.to_lowercase();
        let distance = if case { 0 } else { distance(&name.to_lowercase(), &first.to_lowercase()) };
        if case || distance <= allowed(first) {
            names.push((!case, distance, name));
        }
    }
    names.sort();
    names.into_iter().take(8).find_map(|(misspelt, _, name)| {
        // One slip in a path is likely; two are another path.
        if misspelt && corrected {
            return None;
        }
        spelt(tree, &join(dir, &name), rest, corrected || misspelt, left)
    })
}

/// How many letters may differ in a name.
fn allowed(name: &str) -> usize {
    match name.chars().count() {
        0..=2 => 0,
        3..=5 => 1,
        6..=11 => 2,
        _ => 3,
    }
}

/// Looks for the last name in other directories, those that are near first.
fn elsewhere(tree: &Tree, parts: &[&str]) -> Option<Near> {
    let wanted = *parts.last()?;
    let mut waiting = VecDeque::from([(String::new(), 0)]);
    let mut left = MAX_NAMES;
    while let Some((dir, depth)) = waiting.pop_front() {
        let mut names = list(tree, &dir);
        names.sort();
        for name in names {
            left = left.checked_sub(1)?;
            let path = join(&dir, &name);
            if name == wanted {
                return Some(Near { path, likeness: Likeness::Elsewhere });
            }
            if depth < MAX_DEPTH && matches!(tree.find(&path, false), Ok(Some(found)) if found.kind == Kind::Directory)
            {
                waiting.push_back((path, depth + 1));
            }
        }
    }
    None
}

/// How many letters must be changed, added, left out or swapped with their neighbour to make `a` of `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > 3 {
        return usize::MAX;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            row[j] = (above[j] + 1).min(row[j - 1] + 1).min(above[j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        (before, above) = (above, row);
    }
    above[b.len()]
}
