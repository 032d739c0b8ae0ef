//! Why a path is in the context or not: which line of which ignore file decides.

use std::path::{Component, Path};

use build_engine_rootfs::Tree;
use serde::Serialize;

use super::walk::{keeps_something, on_disk};
use super::{EntryKind, IgnoreFile, nearest};
use crate::{BuildError, ExitKind, Report};

/// A line of an ignore file, and what it matched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deciding {
    /// The ignore file.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// The line as it stands there.
    pub text: String,
    /// Whether it takes back in (`!`) or leaves out.
    pub keeps: bool,
    /// What it matched: the path itself, or a directory that it is in.
    pub matched: String,
}

/// The answer for one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// The path within the context, cleaned.
    pub path: String,
    /// Whether a build sees it; for a path that does not exist, whether it would.
    pub kept: bool,
    /// What is there; `None` if nothing is.
    #[serde(rename = "type")]
    pub kind: Option<EntryKind>,
    /// The path without the symbolic links on the way, where there are any: that one is what counts.
    pub resolved: Option<String>,
    /// Whether it is a directory that is left out itself, and is there because something in it is kept.
    pub only_for_what_is_in_it: bool,
    /// The line that decides; `None` if no line has a say, so that it is kept.
    pub decided_by: Option<Deciding>,
    /// All lines that had a say, in their order; the last one decides.
    pub steps: Vec<Deciding>,
    /// A path that exists and is spelt nearly so, where this one does not exist.
    pub did_you_mean: Option<String>,
}

/// Says for one path whether a build sees it, and why. `path` is relative to the context, or absolute within it.
///
/// # Errors
/// [`ExitKind::Input`] for a path outside of the context.
pub fn why(context: &Path, ignore: &IgnoreFile, path: &str) -> Result<Reason, BuildError> {
    let path = within(context, path)?;
    let tree = Tree::open(context).map_err(|error| {
        let message = format!("cannot read the build context `{}`", context.display());
        BuildError::new(ExitKind::Input, Report::new("context", message).caused_by(&error))
    })?;
    let resolved = tree.canonical(&path, false).ok().map(|found| found.to_string_lossy().into_owned());
    let resolved = resolved.filter(|found| *found != path);
    let judged = resolved.as_deref().unwrap_or(&path);
    let found = on_disk(context, judged).symlink_metadata().ok();
    let kind = found.map(|found| EntryKind::of(found.file_type()));
    let steps: Vec<Deciding> = ignore
        .ignore
        .trace(judged)
        .into_iter()
        .filter_map(|step| ignore.deciding(step.rule, judged, step.matched))
        .collect();
    let ignored = !judged.is_empty() && ignore.ignore.matches(judged);
    let only_for_what_is_in_it =
        ignored && kind == Some(EntryKind::Dir) && keeps_something(context, &ignore.ignore, judged);
    let did_you_mean = match kind {
        None => nearest(&tree, judged).map(|near| near.path),
        Some(_) => None,
    };
    Ok(Reason {
        kept: !ignored || only_for_what_is_in_it,
        kind,
        resolved,
        only_for_what_is_in_it,
        decided_by: steps.last().cloned(),
        steps,
        did_you_mean,
        path,
    })
}

/// The path relative to the context.
fn within(context: &Path, text: &str) -> Result<String, BuildError> {
    let outside = || {
        let message = format!("`{text}` is not within the build context `{}`", context.display());
        BuildError::new(ExitKind::Input, Report::new("context", message).hint("give a path relative to the context"))
    };
    let path = Path::new(text);
    // An absolute path is one of this machine where it leads into the context, and else one of COPY, which starts at it.
    let absolute = std::path::absolute(context).ok();
    let relative = absolute.as_deref().and_then(|context| path.strip_prefix(context).ok()).unwrap_or(path);
    let mut parts: Vec<String> = Vec::new();
    for part in relative.components() {
        match part {
            Component::Normal(name) => parts.push(name.to_string_lossy().into_owned()),
            Component::ParentDir => {
                parts.pop().ok_or_else(outside)?;
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Ok(parts.join("/"))
}
