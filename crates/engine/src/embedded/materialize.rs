//! Local files as snapshots: what a step mounts of a context, and what a stage that starts from a directory is built on.
//!
//! A context is read in place by [`super::files`] as long as it is only copied from. A process must not see the live
//! directory, though: it would see what the ignore file hides, and its writes would reach the user's files. So what is
//! mounted is copied first, by [`build_engine_store::copy`]: root owns everything, modes, times and links stay, and a file
//! that changes meanwhile is read again, or an error if it never holds still.
//!
//! Each part of a context is copied once per build, however many vertices mount it, and only that part: a bind mount of one
//! folder costs that folder.
//!
//! Invariant: nothing here writes to a context.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use build_engine_graph::{FileOp, Op, Owner, UserRef, Vertex};
use build_engine_store::copy::{self, View};
use build_engine_store::{CommitInfo, Snapshot, Store};
use tokio::sync::OnceCell;

use super::files;
use super::ops::{Output, Parts, StepError, internal, spawn};
use super::sources::LocalContext;

/// The parts of one context that were made snapshots in this build, by their path.
#[derive(Debug, Default)]
pub(super) struct Materialized(Mutex<BTreeMap<PathBuf, Arc<OnceCell<Snapshot>>>>);

impl Materialized {
    fn cell(&self, path: PathBuf) -> Arc<OnceCell<Snapshot>> {
        let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // All of it has every part.
        if let Some(whole) = cells.get(&PathBuf::new()).filter(|whole| whole.initialized()) {
            return Arc::clone(whole);
        }
        Arc::clone(cells.entry(path).or_default())
    }
}

/// What `selector` leads to in a context, as a snapshot that has it (and perhaps nothing else) at the returned path.
///
/// # Errors
/// [`crate::ExitKind::Input`] if nothing is there, or if a file cannot be read or changes while it is.
pub(super) async fn part(
    parts: &Arc<Parts>,
    context: &Arc<LocalContext>,
    selector: &str,
) -> Result<(Snapshot, String), StepError> {
    let (all, found, wanted) = (Arc::clone(parts), Arc::clone(context), selector.to_owned());
    let path = spawn(move || {
        let output = Output::Context(found);
        let found = files::with_view(&all.store, &output, |view| copy::find(view, &wanted))?;
        found
            .and_then(|found| found.ok_or_else(|| copy::CopyError::NotFound { path: PathBuf::from(&wanted) }))
            .map_err(|error| files::copy_error(error, "", Some(&output)))
    })
    .await?;
    let cell = context.materialized.cell(path.clone());
    let snapshot = cell.get_or_try_init(|| {
        let (parts, context, path) = (Arc::clone(parts), Arc::clone(context), path.clone());
        spawn(move || {
            let description = format!("local source for {}", context.name);
            let output = Output::Context(context);
            files::with_view(&parts.store, &output, |view| snapshot(&parts.store, view, &path, description))?
                .map_err(|error| error.step_error(&output))
        })
    });
    Ok((snapshot.await?.clone(), format!("/{}", path.to_string_lossy())))
}

/// All of a context as a snapshot.
pub(super) async fn whole(parts: &Arc<Parts>, context: &Arc<LocalContext>) -> Result<Snapshot, StepError> {
    part(parts, context, "/").await.map(|(snapshot, _)| snapshot)
}

/// The inputs of a vertex, with snapshots in the place of the contexts that it builds on.
pub(super) async fn bases(parts: &Arc<Parts>, vertex: &Vertex, inputs: Vec<Output>) -> Result<Vec<Output>, StepError> {
    let mut outputs = Vec::with_capacity(inputs.len());
    for (index, input) in inputs.into_iter().enumerate() {
        outputs.push(match input {
            Output::Context(context) if is_base(vertex.op(), index) => Output::Snapshot(whole(parts, &context).await?),
            other => other,
        });
    }
    Ok(outputs)
}

/// Whether the vertex needs layers of its input, rather than files that it can read where they are.
fn is_base(op: &Op, index: usize) -> bool {
    match op {
        Op::Exec(exec) => exec.mounts.iter().any(|mount| mount.dest == "/" && mount.input == Some(index)),
        Op::File(file) => changes(file, index),
        Op::Merge(_) | Op::Diff(_) => true,
        Op::Source(_) | Op::Build(_) => false,
    }
}

/// Whether a file operation changes an input, or looks names of owners up in it.
fn changes(file: &FileOp, index: usize) -> bool {
    use build_engine_graph::FileActionKind::{Copy, Mkdir, Mkfile, Rm, Symlink};
    let named =
        |user: &Option<UserRef>| matches!(user, Some(UserRef::Name { input: Some(input), .. }) if *input == index);
    let names = |owner: &Option<Owner>| owner.as_ref().is_some_and(|owner| named(&owner.user) || named(&owner.group));
    file.actions.iter().any(|action| {
        action.input == Some(index)
            || match &action.kind {
                Copy(copy) => names(&copy.owner),
                Mkfile { owner, .. } | Mkdir { owner, .. } | Symlink { owner, .. } => names(owner),
                Rm { .. } => false,
            }
    })
}

/// Why a view did not become a snapshot.
pub(super) enum Failed {
    Copy(copy::CopyError),
    Store(build_engine_store::Error),
}

impl From<copy::CopyError> for Failed {
    fn from(error: copy::CopyError) -> Self {
        Self::Copy(error)
    }
}

impl From<build_engine_store::Error> for Failed {
    fn from(error: build_engine_store::Error) -> Self {
        Self::Store(error)
    }
}

impl Failed {
    /// What to tell about `source`.
    pub(super) fn step_error(self, source: &Output) -> StepError {
        match self {
            Self::Copy(error) => files::copy_error(error, "", Some(source)),
            Self::Store(error) => StepError::store("cannot keep local files for a step", &error),
        }
    }
}

/// Makes a snapshot of one layer that has `path` (without links; empty for everything) of `view`.
///
/// `description` is what the history of an image that is nothing but this says of it.
pub(super) fn snapshot(store: &Store, view: View<'_>, path: &Path, description: String) -> Result<Snapshot, Failed> {
    let active = store.active_layer(&Snapshot::scratch())?;
    copy::copy_part(view, path, &active.tree()?)?;
    let layer = store.commit(active, &CommitInfo { description, ..CommitInfo::default() })?;
    Ok(Snapshot::new(vec![layer]))
}

/// The snapshot of an output that is one by now.
pub(super) fn expect_snapshot(output: &Output) -> Result<&Snapshot, StepError> {
    match output {
        Output::Snapshot(snapshot) => Ok(snapshot),
        Output::Context(_) | Output::Lazy(_) => Err(internal("what is mounted has no files in the store")),
    }
}
