//! The build context as the builder would see it: what the ignore files leave.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use build_engine_dockerfile::ignore::{Ignore, WalkState};
use serde::{Deserialize, Serialize};

use crate::{BuildError, ExitKind, Report};

/// One entry of a context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextEntry {
    /// Path within the context, with slashes.
    pub path: String,
    /// `file`, `dir`, `symlink`, or `other` for what cannot be copied.
    #[serde(rename = "type")]
    pub kind: String,
    /// Size in bytes; 0 for directories.
    pub size: u64,
}

/// Lists what a build with this context and Dockerfile could copy, sorted by path.
///
/// `<Dockerfile>.dockerignore` is taken before `.dockerignore`. A kept entry brings the directories above it.
///
/// # Errors
/// [`ExitKind::Input`] for a malformed pattern, with its line, and where the context cannot be read.
pub fn list(context: &Path, dockerfile: Option<&Path>) -> Result<Vec<ContextEntry>, BuildError> {
    let ignore = ignore_of(context, dockerfile)?;
    let mut listing = Listing { root: context, ignore: &ignore, entries: Vec::new(), listed: BTreeSet::new() };
    listing.directory("", &WalkState::default()).map_err(|(path, error)| {
        let message = format!("cannot read `{}` of the build context", path.display());
        BuildError::new(ExitKind::Input, Report::new("context", message).caused_by(&error))
    })?;
    let mut entries = listing.entries;
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

/// The ignore file that a build with this context and Dockerfile uses.
fn ignore_of(context: &Path, dockerfile: Option<&Path>) -> Result<Ignore, BuildError> {
    let own = dockerfile.map(|path| {
        let mut name = path.as_os_str().to_owned();
        name.push(".dockerignore");
        PathBuf::from(name)
    });
    for path in own.into_iter().chain([context.join(".dockerignore")]) {
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                let message = format!("cannot read `{}`", path.display());
                return Err(BuildError::new(ExitKind::Input, Report::new("context", message).caused_by(&error)));
            }
        };
        return Ignore::parse(&text).map_err(|error| {
            let message = format!("{}: {error}", path.display());
            BuildError::new(ExitKind::Input, Report::new("invalid-ignore-file", message))
        });
    }
    Ok(Ignore::default())
}

struct Listing<'a> {
    root: &'a Path,
    ignore: &'a Ignore,
    entries: Vec<ContextEntry>,
    /// Directories that are in `entries` already.
    listed: BTreeSet<String>,
}

impl Listing<'_> {
    fn directory(&mut self, dir: &str, state: &WalkState) -> Result<(), (PathBuf, io::Error)> {
        let path = self.root.join(dir);
        let failed = |error| (path.clone(), error);
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let below = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            let metadata = entry.path().symlink_metadata().map_err(|error| (entry.path(), error))?;
            let verdict = self.ignore.visit(&below, state);
            if !verdict.ignored {
                self.add(&below, &metadata);
            }
            if metadata.is_dir() && !(verdict.ignored && self.ignore.can_prune(&below, &verdict)) {
                self.directory(&below, &verdict.state)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &str, metadata: &fs::Metadata) {
        for (at, _) in path.match_indices('/') {
            self.add_directory(&path[..at]);
        }
        if metadata.is_dir() {
            self.add_directory(path);
            return;
        }
        let kind = if metadata.is_symlink() {
            "symlink"
        } else if metadata.is_file() {
            "file"
        } else {
            "other"
        };
        self.entries.push(ContextEntry { path: path.to_owned(), kind: kind.into(), size: metadata.len() });
    }

    fn add_directory(&mut self, path: &str) {
        if self.listed.insert(path.to_owned()) {
            self.entries.push(ContextEntry { path: path.to_owned(), kind: "dir".into(), size: 0 });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(files: &[&str], ignore: &str) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        fs::write(dir.path().join(".dockerignore"), ignore).unwrap();
        list(dir.path(), None).unwrap().into_iter().map(|entry| format!("{} {}", entry.path, entry.kind)).collect()
    }

    #[test]
    fn f1_014_a_kept_file_brings_the_directories_above_it() {
        let files = ["a/b/keep", "a/b/drop", "c"];
        assert_eq!(listed(&files, "*\n!a/b/keep\n"), ["a dir", "a/b dir", "a/b/keep file"]);
        assert_eq!(listed(&files, ".dockerignore\na/b/drop\n"), ["a dir", "a/b dir", "a/b/keep file", "c file"]);
    }

    #[test]
    fn a_malformed_pattern_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".dockerignore"), "ok\n[\n").unwrap();
        let error = list(dir.path(), None).unwrap_err();
        assert_eq!(error.kind, ExitKind::Input);
        assert!(error.to_string().contains('2'), "{error}");
    }
}
