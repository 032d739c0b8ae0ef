//! File operations: what `COPY`, `ADD`, `WORKDIR` and their like do, and what their keys hash.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use build_engine_graph::{
    Event, EventSink, FileAction, FileActionKind, FileCopy, FileOp, Owner, UserRef, Vertex, Warning,
};
use build_engine_oci::{Digest, Hasher};
use build_engine_rootfs::{Ids, Time, Tree, users};
use build_engine_solver::ContentSelector;
use build_engine_store::content_hash::{ContentHash, HashError, Index, Question};
use build_engine_store::copy::{self, CopyError, CopySpec, View};
use build_engine_store::layer::compress::Compression;
use build_engine_store::{ActiveLayer, CommitInfo, MountedTree, Snapshot, StatIndex, Store};

use super::bundle::io_error;
use super::missing::Missing;
use super::ops::{Detail, Output, StepError, internal, snapshot_of};
use super::sources::LocalContext;
use crate::context::visibility;
use crate::{ExitKind, Report};

/// Hashes what a vertex selects of `output`.
///
/// The files of a context are listed once per build, and looked up in its stat index where `fast`.
pub(super) fn content_digest(
    store: &Store,
    output: &Output,
    selector: &ContentSelector,
    fast: bool,
) -> Result<Digest, StepError> {
    let readable = Readable::open(store, output)?;
    let mut hashed = match output {
        Output::Context(context) => Some(context.hashed.lock().unwrap_or_else(PoisonError::into_inner)),
        Output::Snapshot(_) | Output::Lazy(_) => None,
    };
    if let (Output::Context(context), Some(hashed)) = (output, hashed.as_deref_mut())
        && hashed.index.is_none()
    {
        hashed.index = fast.then(|| StatIndex::open(store, &context.path, readable.tree()));
    }
    let (listing, index) = match hashed.as_deref_mut() {
        Some(hashed) => (hashed.listing.take(), hashed.index.as_ref()),
        None => (None, None),
    };
    let known = index.filter(|index| index.is_kept()).map(|index| index as &dyn Index);
    let (digest, listing) = readable.with_view(|view| {
        let mut hash = match listing {
            Some(listing) => ContentHash::resume(view, known, listing),
            None => ContentHash::new(view, known).map_err(|error| hash_error(error, "/", output))?,
        };
        let mut digests = Vec::with_capacity(selector.paths.len().max(1));
        for path in &selector.paths {
            digests.push(
                hash.digest(&Question {
                    path: path.path.clone(),
                    follow_links: path.follow_links,
                    wildcard: path.wildcard,
                    include_patterns: path.include.clone(),
                    exclude_patterns: path.exclude.clone(),
                    required_paths: path.required.clone(),
                })
                .map_err(|error| hash_error(error, &path.path, output))?,
            );
        }
        if selector.paths.is_empty() {
            let all = hash.digest(&Question { path: "/".into(), ..Question::default() });
            digests.push(all.map_err(|error| hash_error(error, "/", output))?);
        }
        let listing = hash.into_listing();
        if let Some(index) = index
            && let Err(error) = index.save(&listing)
        {
            // The next build reads the files again.
            tracing::warn!(%error, "digests of the context are not remembered");
        }
        let digest = match &digests[..] {
            [digest] => digest.clone(),
            digests => {
                let mut hasher = Hasher::new();
                digests.iter().for_each(|digest| hasher.update(format!("{digest}\n").as_bytes()));
                hasher.finish()
            }
        };
        Ok((digest, listing))
    })?;
    if let Some(mut hashed) = hashed {
        hashed.listing = Some(listing);
    }
    Ok(digest)
}

/// What of a context is not any more as it was when `selector` was hashed, if anything.
///
/// Asked after a step has read the files: if nothing is different then, the step has read what its key says.
pub(super) fn changed_since(
    store: &Store,
    context: &Arc<LocalContext>,
    selector: &ContentSelector,
) -> Result<Option<PathBuf>, StepError> {
    let hashed = context.hashed.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(listing) = &hashed.listing else { return Ok(None) };
    let output = Output::Context(Arc::clone(context));
    Readable::open(store, &output)?.with_view(|view| {
        let failed = |error, path: &str| hash_error(error, path, &output);
        if selector.paths.is_empty() {
            return listing.changed(view, Path::new("")).map_err(|error| failed(error, "/"));
        }
        for selected in &selector.paths {
            // What a pattern matches may be anywhere.
            let path = if selected.wildcard { "/" } else { &selected.path };
            let Some(found) = copy::find(view, path).map_err(|error| copy_error(error, path, Some(&output)))? else {
                return Ok(Some(PathBuf::from(path)));
            };
            if let Some(changed) = listing.changed(view, &found).map_err(|error| failed(error, path))? {
                return Ok(Some(changed));
            }
        }
        Ok(None)
    })
}

/// An output that can be read from.
enum Readable<'a> {
    Mounted(MountedTree),
    Context(Tree, &'a LocalContext),
}

impl<'a> Readable<'a> {
    fn open(store: &Store, output: &'a Output) -> Result<Self, StepError> {
        match output {
            Output::Snapshot(snapshot) => {
                let mounted =
                    store.mount(snapshot, None).map_err(|error| StepError::store("cannot read a snapshot", &error))?;
                Ok(Self::Mounted(mounted))
            }
            Output::Context(context) => {
                let tree = Tree::open(&context.path).map_err(|error| {
                    let message = format!("cannot read the build context `{}`", context.path.display());
                    StepError::new(ExitKind::Input, Report::new("context", message).caused_by(&error))
                })?;
                Ok(Self::Context(tree, context))
            }
            Output::Lazy(_) => Err(internal("an image whose files are wanted was not fetched")),
        }
    }

    fn tree(&self) -> &Tree {
        match self {
            Self::Mounted(mounted) => mounted.tree(),
            Self::Context(tree, _) => tree,
        }
    }

    fn with_view<T>(&self, use_it: impl FnOnce(View<'_>) -> T) -> T {
        match self {
            Self::Mounted(mounted) => use_it(View::new(mounted.tree())),
            Self::Context(tree, context) if context.ignore.is_empty() => use_it(View::context(tree)),
            Self::Context(tree, context) => {
                let filter = |path: &Path, is_dir: bool| visibility(&context.ignore, path, is_dir);
                use_it(View::context(tree).with_filter(&filter))
            }
        }
    }
}

/// Reads an output as copies do.
pub(super) fn with_view<T>(store: &Store, output: &Output, use_it: impl FnOnce(View<'_>) -> T) -> Result<T, StepError> {
    Ok(Readable::open(store, output)?.with_view(use_it))
}

/// Does all actions of a file operation and returns its outputs.
///
/// Actions that build on one another write into one layer, which is committed where an output is asked for. Nobody reads
/// the files of an operation that `streams`: where it only copies, its layer is written as a blob.
pub(super) fn run(
    store: &Store,
    vertex: &Vertex,
    file: &FileOp,
    inputs: &[Output],
    streams: Option<Compression>,
    events: &dyn EventSink,
) -> Result<Vec<Output>, StepError> {
    if let Some(compression) = streams
        && let Some(output) = stream(store, vertex, file, inputs, compression)?
    {
        return Ok(vec![output]);
    }
    let warn = |message: String| {
        events.emit(Event::Warning(Warning {
            vertex: Some(vertex.digest().clone()),
            rule: String::new(),
            message,
            detail: String::new(),
            url: String::new(),
            place: None,
        }));
    };
    let count = inputs.len();
    let mut open: Option<Open> = None;
    let mut outputs: Vec<Option<Output>> = Vec::new();
    for (index, action) in file.actions.iter().enumerate() {
        match action.input {
            // The result of the action before: goes on in the same layer.
            Some(input) if input >= count => {
                if open.as_ref().is_none_or(|open| open.result != input) {
                    return Err(internal("a file action builds on a result that is committed already"));
                }
            }
            input => {
                let base = snapshot_of(inputs, input)?;
                open = Some(Open::begin(store, base)?);
            }
        }
        let current = open.as_mut().ok_or_else(|| internal("a file action has nothing to work on"))?;
        current.result = count + index;
        act(store, action, inputs, current.tree(), &warn)?;
        if let Some(output) = action.output {
            let done = open.take().ok_or_else(|| internal("a file action has nothing to commit"))?;
            let snapshot = done.commit(store, vertex)?;
            if outputs.len() <= output {
                outputs.resize(output + 1, None);
            }
            outputs[output] = Some(Output::Snapshot(snapshot));
        }
    }
    outputs.into_iter().map(|output| output.ok_or_else(|| internal("a file operation leaves out an output"))).collect()
}

/// Writes the layer of copies as a blob, without making its tree. `None` where that cannot be done, or went wrong: the plain
/// way knows what to say then.
fn stream(
    store: &Store,
    vertex: &Vertex,
    file: &FileOp,
    inputs: &[Output],
    compression: Compression,
) -> Result<Option<Output>, StepError> {
    let [first, ..] = &file.actions[..] else { return Ok(None) };
    let one_layer = file.actions.iter().enumerate().all(|(index, action)| {
        let continues = index == 0 || action.input == Some(inputs.len() + index - 1);
        let ends = index + 1 == file.actions.len();
        continues && action.output == ends.then_some(0) && action.secondary_input == first.secondary_input
    });
    let Some(source) = first.secondary_input.and_then(|input| inputs.get(input)).filter(|_| one_layer) else {
        return Ok(None);
    };
    let mut specs = Vec::with_capacity(file.actions.len());
    // Who has a warning to give gives it once, the plain way.
    let warned = std::cell::Cell::new(false);
    for action in &file.actions {
        let FileActionKind::Copy(copy) = &action.kind else { return Ok(None) };
        let owner = copy.owner.as_ref().map(|owner| ids(store, owner, inputs, &|_| warned.set(true))).transpose()?;
        specs.push(copy_spec(copy, owner)?);
    }
    if warned.get() {
        return Ok(None);
    }
    let base = snapshot_of(inputs, first.input)?;
    let mounted = if base.layers().is_empty() {
        None
    } else {
        Some(store.mount(&base, None).map_err(|error| StepError::store("cannot read a snapshot", &error))?)
    };
    let readable = Readable::open(store, source)?;
    readable.with_view(|view| {
        let on_top = mounted.as_ref().map(MountedTree::tree);
        let planned = match source {
            // What was listed for the key need not be listed again.
            Output::Context(context) => {
                let hashed = context.hashed.lock().unwrap_or_else(PoisonError::into_inner);
                let view = hashed.listing.as_ref().map_or(view, |listing| view.as_listed(listing));
                copy::plan(view, on_top, &specs, Time::now())
            }
            Output::Snapshot(_) | Output::Lazy(_) => copy::plan(view, on_top, &specs, Time::now()),
        };
        let Ok(mut entries) = planned else { return Ok(None) };
        let info = CommitInfo { description: vertex.name(), ..CommitInfo::default() };
        match store.commit_streamed(&base, &mut entries, compression, &info) {
            Ok(layer) => Ok(Some(Output::Snapshot(base.with(layer)))),
            Err(error @ build_engine_store::Error::NoSpace { .. }) => {
                Err(StepError::store("cannot keep a layer", &error))
            }
            Err(error) => {
                tracing::debug!(%error, "a layer is written the plain way");
                Ok(None)
            }
        }
    })
}

/// A layer that is being written.
struct Open {
    base: Snapshot,
    active: ActiveLayer,
    /// The base with the layer on top; without a base, the layer itself.
    mounted: Mounted,
    /// Which action's result it is, counted as inputs are.
    result: usize,
}

enum Mounted {
    Overlay(MountedTree),
    Plain(Tree),
}

impl Open {
    fn begin(store: &Store, base: Snapshot) -> Result<Self, StepError> {
        let failed = |error: build_engine_store::Error| StepError::store("cannot prepare a layer", &error);
        let active = store.active_layer(&base).map_err(failed)?;
        let mounted = if base.layers().is_empty() {
            Mounted::Plain(active.tree().map_err(failed)?)
        } else {
            Mounted::Overlay(store.mount(&base, Some(&active)).map_err(failed)?)
        };
        Ok(Self { base, active, mounted, result: usize::MAX })
    }

    fn tree(&self) -> &Tree {
        match &self.mounted {
            Mounted::Overlay(mounted) => mounted.tree(),
            Mounted::Plain(tree) => tree,
        }
    }

    fn commit(self, store: &Store, vertex: &Vertex) -> Result<Snapshot, StepError> {
        let Self { base, active, mounted, .. } = self;
        // Nothing may be mounted on a layer that is committed.
        drop(mounted);
        let info = CommitInfo { description: vertex.name(), ..CommitInfo::default() };
        let layer = store.commit(active, &info).map_err(|error| StepError::store("cannot keep a layer", &error))?;
        Ok(base.with(layer))
    }
}

fn act(
    store: &Store,
    action: &FileAction,
    inputs: &[Output],
    tree: &Tree,
    warn: &dyn Fn(String),
) -> Result<(), StepError> {
    let owner = |owner: &Option<Owner>| owner.as_ref().map(|owner| ids(store, owner, inputs, warn)).transpose();
    let time = |timestamp: &Option<i64>| timestamp.map(time_of);
    let result = match &action.kind {
        FileActionKind::Copy(spec) => {
            let source = action.secondary_input.ok_or_else(|| internal("a copy has no source"))?;
            let source = inputs.get(source).ok_or_else(|| internal("a copy from another action's result"))?;
            let readable = Readable::open(store, source)?;
            let spec = copy_spec(spec, owner(&spec.owner)?)?;
            return readable
                .with_view(|view| copy::copy(view, tree, &spec))
                .map_err(|error| copy_error(error, &spec.src, Some(source)));
        }
        FileActionKind::Mkfile { path, mode, data, owner: who, timestamp } => {
            copy::mkfile(tree, path, *mode, data, owner(who)?, time(timestamp))
        }
        FileActionKind::Mkdir { path, mode, make_parents, owner: who, timestamp } => {
            copy::mkdir(tree, path, *mode, *make_parents, owner(who)?, time(timestamp))
        }
        FileActionKind::Symlink { old_path, new_path, owner: who, timestamp } => {
            copy::symlink(tree, old_path, new_path, owner(who)?, time(timestamp))
        }
        FileActionKind::Rm { path, allow_not_found, allow_wildcard } => {
            copy::rm(tree, path, *allow_not_found, *allow_wildcard)
        }
    };
    result.map_err(|error| copy_error(error, "", None))
}

fn copy_spec(copy: &FileCopy, owner: Option<(u32, u32)>) -> Result<CopySpec, StepError> {
    let mode_change = if copy.mode_str.is_empty() {
        None
    } else {
        let change = copy.mode_str.parse().map_err(|error: copy::InvalidMode| {
            StepError::new(ExitKind::Input, Report::new("invalid-chmod", error.to_string()))
        })?;
        Some(change)
    };
    Ok(CopySpec {
        src: copy.src.clone(),
        dest: copy.dest.clone(),
        owner,
        mode: copy.mode,
        mode_change,
        follow_symlink: copy.follow_symlink,
        dir_copy_contents: copy.dir_copy_contents,
        attempt_unpack: copy.attempt_unpack,
        create_dest_path: copy.create_dest_path,
        allow_wildcard: copy.allow_wildcard,
        allow_empty_wildcard: copy.allow_empty_wildcard,
        timestamp: copy.timestamp.map(time_of),
        include_patterns: copy.include_patterns.clone(),
        exclude_patterns: copy.exclude_patterns.clone(),
        always_replace_existing_dest_paths: copy.always_replace_existing_dest_paths,
    })
}

fn time_of(nanoseconds: i64) -> Time {
    const SECOND: i64 = 1_000_000_000;
    let within = u32::try_from(nanoseconds.rem_euclid(SECOND)).expect("a remainder of a billion fits");
    Time { seconds: nanoseconds.div_euclid(SECOND), nanoseconds: within }
}

/// Numbers for an owner; names are looked up in the files of the input that the graph says.
///
/// A name that the image does not have counts as root, or as the user's own group: BuildKit does that in silence, and
/// Dockerfiles rely on it without knowing. So `warn` says it.
fn ids(store: &Store, owner: &Owner, inputs: &[Output], warn: &dyn Fn(String)) -> Result<(u32, u32), StepError> {
    let open = |input: Option<usize>, what: &str, name: &str| -> Result<MountedTree, StepError> {
        let snapshot = snapshot_of(inputs, input)?;
        if snapshot.layers().is_empty() {
            let message = format!("there is no {what} `{name}` in an empty image");
            let report = Report::new("unknown-user", message).hint("a number needs no look-up");
            return Err(StepError::new(ExitKind::Input, report));
        }
        store.mount(&snapshot, None).map_err(|error| StepError::store("cannot read a snapshot", &error))
    };
    let failed = |error: users::UserError| {
        let (kind, rule) =
            if error.is_limit() { (ExitKind::Limit, "limit") } else { (ExitKind::Input, "unknown-user") };
        StepError::new(kind, Report::new(rule, error.to_string()))
    };
    let (uid, mut gid) = match &owner.user {
        None => (0, 0),
        // As BuildKit: the group of a number is the same number.
        Some(UserRef::Id(id)) => (*id, *id),
        Some(UserRef::Name { name, input }) => {
            let tree = open(*input, "user", name)?;
            match users::find_user(tree.tree(), name).map_err(failed)? {
                Some(user) => (user.uid, user.gid),
                None => {
                    warn(format!("there is no user `{name}` in the image; the files belong to root instead"));
                    (0, 0)
                }
            }
        }
    };
    match &owner.group {
        None => {}
        Some(UserRef::Id(id)) => gid = *id,
        Some(UserRef::Name { name, input }) => {
            let tree = open(*input, "group", name)?;
            match users::resolve_group(tree.tree(), name) {
                Ok(found) => gid = found,
                Err(users::UserError::NoGroup { .. }) => {
                    warn(format!("there is no group `{name}` in the image; the files belong to group {gid} instead"));
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }
    Ok((uid, gid))
}

pub(super) fn copy_error(error: CopyError, asked: &str, source: Option<&Output>) -> StepError {
    let error = match error {
        CopyError::NotFound { path } => return not_found(&path, asked, source),
        error => error,
    };
    let mut next = std::error::Error::source(&error);
    while let Some(cause) = next {
        if let Some(cause) = cause.downcast_ref::<io::Error>().filter(|cause| is_io(cause)) {
            return io_error(&error.to_string(), cause);
        }
        next = cause.source();
    }
    let (kind, rule) = match &error {
        // An archive is read as strictly as a layer, and what is wrong with one ends a build in the same way.
        CopyError::Content { source, .. } if source.is_limit() => (ExitKind::Limit, "limit"),
        CopyError::Content { source, .. } if source.is_refusal() => (ExitKind::Integrity, "invalid-archive"),
        _ => (ExitKind::Input, "copy-failed"),
    };
    let mut report = Report::new(rule, "cannot copy").caused_by(&error);
    if error.is_change() {
        report.hint = Some(HOLD_STILL.into());
    }
    StepError::new(kind, report)
}

fn hash_error(error: HashError, asked: &str, output: &Output) -> StepError {
    match error {
        HashError::NotFound { path } => not_found(&path, asked, Some(output)),
        error => {
            let mut report = Report::new("content", "cannot read what is to be copied").caused_by(&error);
            if matches!(error, HashError::Changed { .. }) {
                report.hint = Some(HOLD_STILL.into());
            }
            StepError::new(ExitKind::Input, report)
        }
    }
}

/// The way out where a file never holds still.
const HOLD_STILL: &str = "a file that is written during the build is better named in the ignore file";

/// Whether the disk is the reason.
fn is_io(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::ReadOnlyFilesystem
    ) || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// A source that is missing. What else there is to say needs the Dockerfile: see [`super::missing`].
fn not_found(path: &Path, asked: &str, source: Option<&Output>) -> StepError {
    let shown = Path::new("/").join(path);
    let shown = shown.display();
    let report = match source {
        Some(Output::Context(context)) => {
            let report = Report::new("not-found", format!("`{shown}` is not in the build context"));
            match context.path.parent().and_then(Path::file_name) {
                // The store's own empty directory.
                Some(name) if name == "empty" => report.hint("the build has no context: only its Dockerfile was given"),
                _ => report.hint(format!("the context is `{}`", context.path.display())),
            }
        }
        Some(Output::Snapshot(_) | Output::Lazy(_)) | None => {
            Report::new("not-found", format!("`{shown}` does not exist in the source"))
        }
    };
    let error = StepError::new(ExitKind::Input, report);
    match source {
        Some(source) => error.with(Detail::Missing(Missing {
            path: path.to_owned(),
            asked: asked.to_owned(),
            source: source.clone(),
        })),
        None => error,
    }
}

/// Writes the files of a snapshot to a directory of the user's. They belong to whoever asked.
pub(super) fn export_tree(
    store: &Store,
    snapshot: &Snapshot,
    dest: &Path,
    epoch: Option<i64>,
) -> Result<(), StepError> {
    std::fs::create_dir_all(dest).map_err(|error| io_error(&format!("cannot make `{}`", dest.display()), &error))?;
    let directory = File::open(dest).map_err(|error| io_error(&format!("cannot open `{}`", dest.display()), &error))?;
    let tree = Tree::from_fd(OwnedFd::from(directory)).with_ids(Ids::Outside);
    let mounted = store.mount(snapshot, None).map_err(|error| StepError::store("cannot read the result", &error))?;
    let spec = CopySpec {
        src: "/".into(),
        dest: "/".into(),
        owner: Some((0, 0)),
        dir_copy_contents: true,
        create_dest_path: true,
        timestamp: epoch.map(|seconds| time_of(seconds.saturating_mul(1_000_000_000))),
        ..CopySpec::default()
    };
    copy::copy(View::new(mounted.tree()), &tree, &spec).map_err(|error| {
        let report =
            Report::new("export", format!("cannot write the result to `{}`", dest.display())).caused_by(&error);
        StepError::new(ExitKind::Io, report)
    })
}
