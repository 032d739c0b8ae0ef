//! What a builder would see of a context, written out.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use build_engine_rootfs::{Ids, Time, Tree};
use build_engine_store::copy::{self, CopySpec, View};
use build_engine_store::layer::{self, WriteOptions};

use super::{IgnoreFile, visibility};
use crate::{BuildError, ExitKind, Report};

/// Where a context is written to.
pub enum ExportTo<'a> {
    /// A directory that is empty or not there yet.
    Directory(PathBuf),
    /// A tar archive.
    Archive(&'a mut dyn Write),
}

/// Writes what a build would see: the files that the ignore file leaves, belonging to root in an archive and to whoever
/// asks in a directory.
///
/// # Errors
/// [`ExitKind::Input`] where the context cannot be read, or the directory is in use or lies within the context;
/// [`ExitKind::Io`] where the result cannot be written. What was written before stays.
pub fn export(context: &Path, ignore: &IgnoreFile, to: ExportTo<'_>) -> Result<(), BuildError> {
    let source = Tree::open(context).map_err(|error| {
        let message = format!("cannot read the build context `{}`", context.display());
        BuildError::new(ExitKind::Input, Report::new("context", message).caused_by(&error))
    })?;
    let filter = |path: &Path, is_dir: bool| visibility(&ignore.ignore, path, is_dir);
    let view = View::context(&source).with_filter(&filter);
    let spec = CopySpec {
        src: "/".into(),
        dest: "/".into(),
        owner: Some((0, 0)),
        dir_copy_contents: true,
        create_dest_path: true,
        ..CopySpec::default()
    };
    match to {
        ExportTo::Archive(out) => {
            let mut entries = copy::plan(view, None, &[spec], Time::default()).map_err(|error| unread(&error))?;
            layer::write(&mut entries, WriteOptions::default(), out).map_err(|error| match error {
                layer::LayerError::Write(error) => unwritten("the archive", &error),
                error => unread(&error),
            })?;
        }
        ExportTo::Directory(path) => {
            let tree = directory(context, &path)?;
            copy::copy(view, &tree, &spec).map_err(|error| {
                let message = format!("cannot write the context to `{}`", path.display());
                BuildError::new(ExitKind::Io, Report::new("export", message).caused_by(&error))
            })?;
        }
    }
    Ok(())
}

fn unread(error: &(dyn std::error::Error + 'static)) -> BuildError {
    BuildError::new(ExitKind::Input, Report::new("context", "cannot read the build context").caused_by(error))
}

fn unwritten(what: &str, error: &std::io::Error) -> BuildError {
    BuildError::new(ExitKind::Io, Report::new("io", format!("cannot write {what}")).caused_by(error))
}

/// Makes the directory, or takes an empty one.
fn directory(context: &Path, path: &Path) -> Result<Tree, BuildError> {
    let shown = format!("`{}`", path.display());
    let refuse =
        |message: String, hint: &str| Err(BuildError::new(ExitKind::Input, Report::new("export", message).hint(hint)));
    let existed = path.exists();
    std::fs::create_dir_all(path).map_err(|error| unwritten(&shown, &error))?;
    let inside = match (path.canonicalize(), context.canonicalize()) {
        (Ok(path), Ok(context)) => path.starts_with(context),
        _ => false,
    };
    if inside {
        if !existed {
            let _ = std::fs::remove_dir(path);
        }
        return refuse(format!("{shown} lies within the build context"), "name a directory outside of it");
    }
    let mut entries = std::fs::read_dir(path).map_err(|error| unwritten(&shown, &error))?;
    if entries.next().is_some() {
        return refuse(format!("{shown} is not empty"), "name a directory that is empty or not there yet");
    }
    let opened = File::open(path).map_err(|error| unwritten(&shown, &error))?;
    Ok(Tree::from_fd(OwnedFd::from(opened)).with_ids(Ids::Outside))
}
