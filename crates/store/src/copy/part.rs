//! Part of a tree, at the place where it stands: what a mount with a source needs of a context or of a seed.

use std::path::{Path, PathBuf};

use build_engine_rootfs::Tree;

use super::{CopyError, CopySpec, View, copy};

/// Where `path` leads in `source`, its symbolic links followed inside; `None` if nothing is there.
///
/// # Errors
/// What the tree refuses, too many links among it.
pub fn find(source: View<'_>, path: impl AsRef<Path>) -> Result<Option<PathBuf>, CopyError> {
    let canonical = source.canonical(path.as_ref(), true)?;
    Ok(source.find(&canonical)?.map(|_| canonical))
}

/// Copies `path`, which has no links in it, from `source` to the same path of `dest`, with everything below it.
///
/// Directories above it that `dest` lacks are made, and say nothing about the source's. Of the root, only the content is
/// copied.
///
/// # Errors
/// Those of [`copy`](fn@copy).
pub fn copy_part(source: View<'_>, path: &Path, dest: &Tree) -> Result<(), CopyError> {
    let text = path.to_str().ok_or_else(|| CopyError::NotFound { path: path.to_owned() })?;
    // Into a directory of that name, one that is copied would become its child.
    let merges = dest.find(path, false)?.is_some_and(|found| found.is_dir());
    let spec = CopySpec {
        src: format!("/{text}"),
        dest: format!("/{text}"),
        create_dest_path: true,
        dir_copy_contents: merges,
        ..CopySpec::default()
    };
    copy(source, dest, &spec)
}
