//! What a run mounts beside its root: trees of other vertices, of contexts, and cache mounts.
//!
//! [`prepare`] brings everything that is mounted into the store and takes the cache mounts, waiting where they are locked;
//! [`super::ops`] hands the descriptors to the sandbox. Order of locks: the claim of the step (taken by the solver), then
//! cache mounts, these by key, so that two steps with two of them cannot wait for each other.
//!
//! Invariant: what is mounted was resolved to a descriptor inside its tree; no path of an image, a context or a cache mount
//! is ever followed by name outside of it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use build_engine_graph::{CacheSharing, Event, EventSink, ExecOp, Mount, MountKind, Vertex};
use build_engine_oci::Digest;
use build_engine_sandbox as sandbox;
use build_engine_store::{ActiveLayer, CacheMount, CacheMountSpec, Sharing, Snapshot, Store};

use super::materialize::{self, expect_snapshot};
use super::ops::{Output, Parts, StepError, internal, open_path, spawn};
use super::{events as clock, files};
use crate::{ExitKind, Report};

/// The wait for a locked cache mount that is worth telling.
const WORTH_TELLING: Duration = Duration::from_millis(300);
/// The longest time between two tries to get one.
const PATIENCE: Duration = Duration::from_millis(50);

/// The mounts of a run that have a tree, by their place in the operation; kept until the run has ended.
#[derive(Default)]
pub(super) struct Prepared {
    trees: BTreeMap<usize, Tree>,
    /// What steps write to snapshots until it is thrown away.
    changes: Mutex<Vec<ActiveLayer>>,
}

enum Tree {
    /// A path of a snapshot, read-only or with changes that are thrown away.
    Snapshot(Snapshot, String),
    /// A path of a cache mount.
    Cache(Arc<CacheMount>, String),
}

impl Prepared {
    /// The source of a mount that has a tree; descriptors are added to `binds`.
    pub(super) fn source(
        &self,
        store: &Store,
        index: usize,
        mount: &Mount,
        binds: &mut Vec<OwnedFd>,
    ) -> Result<sandbox::MountSource, StepError> {
        match self.trees.get(&index).ok_or_else(|| internal("a mount was not prepared"))? {
            Tree::Snapshot(snapshot, selector) if snapshot.layers().is_empty() => {
                if !build_engine_rootfs::clean(selector).as_os_str().is_empty() {
                    let message = format!("`{selector}` cannot be mounted at `{}`: its source is empty", mount.dest);
                    return Err(StepError::new(ExitKind::Input, Report::new("not-found", message)));
                }
                let failed = |error| StepError::store("cannot prepare an empty mount", &error);
                let active = store.active_layer(snapshot).map_err(failed)?;
                binds.push(open_path(&active.dir())?);
                self.keep(active);
                Ok(sandbox::MountSource::Bind { fd: binds.len() - 1 })
            }
            Tree::Snapshot(snapshot, selector) => {
                let layers = store.layer_dirs(snapshot);
                let layers = layers.map_err(|error| StepError::store("cannot read what is mounted", &error))?;
                let first = binds.len();
                for layer in &layers {
                    binds.push(open_path(layer)?);
                }
                let fds = (first..binds.len()).collect();
                let changes = if mount.readonly { None } else { Some(self.changes(store, snapshot, binds)?) };
                Ok(sandbox::MountSource::Layers { fds, selector: selector.clone(), changes })
            }
            Tree::Cache(cache, selector) => {
                binds.push(cache.open(selector).map_err(|error| not_there(mount, selector, &error))?);
                Ok(sandbox::MountSource::Bind { fd: binds.len() - 1 })
            }
        }
    }
}

impl Prepared {
    /// Keeps a tree until the run has ended.
    fn keep(&self, active: ActiveLayer) {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).push(active);
    }

    /// A place on the disk for what a step writes to a snapshot: memory would be too small for a build in its sources.
    fn changes(
        &self,
        store: &Store,
        snapshot: &Snapshot,
        binds: &mut Vec<OwnedFd>,
    ) -> Result<sandbox::Changes, StepError> {
        let failed = |error| StepError::store("cannot prepare a writable mount", &error);
        let active = store.active_layer(snapshot).map_err(failed)?;
        let (upper, work) = (active.dir(), active.new_work_dir().map_err(failed)?);
        let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let parent = upper.parent().ok_or_else(|| internal("a layer stands in no directory"))?;
        binds.push(open_path(parent)?);
        let (Some(upper), Some(work)) = (name(&upper), name(&work)) else {
            return Err(internal("a directory of a layer has no name"));
        };
        self.keep(active);
        Ok(sandbox::Changes { fd: binds.len() - 1, upper, work })
    }
}

/// Where a mount goes: its target, cleaned as text, as runc does it. (`/..` is the root, whatever links there are.)
pub(super) fn target(mount: &Mount) -> Result<String, StepError> {
    let clean = build_engine_rootfs::clean(&mount.dest);
    if clean.as_os_str().is_empty() {
        let report = Report::new("mount", format!("invalid mount target `{}`: it is the root", mount.dest));
        return Err(StepError::new(ExitKind::Input, report));
    }
    Ok(format!("/{}", clean.to_string_lossy()))
}

fn not_there(mount: &Mount, selector: &str, error: &build_engine_rootfs::Error) -> StepError {
    let message = format!("cannot mount `{selector}` of the cache mount at `{}`", mount.dest);
    let report = Report::new("not-found", message).caused_by(error);
    StepError::new(ExitKind::Input, report.hint("a cache mount begins empty, unless `from` says what it starts with"))
}

/// Brings what a run mounts into the store, and takes its cache mounts.
pub(super) async fn prepare(
    parts: &Arc<Parts>,
    vertex: &Vertex,
    exec: &ExecOp,
    inputs: &[Output],
    events: &Arc<dyn EventSink>,
) -> Result<Prepared, StepError> {
    let mut prepared = Prepared::default();
    let mut wanted: BTreeMap<Digest, (CacheMountSpec, Vec<(usize, String)>)> = BTreeMap::new();
    for (index, mount) in exec.mounts.iter().enumerate().filter(|(_, mount)| mount.dest != "/") {
        match &mount.kind {
            MountKind::Bind => {
                let (snapshot, selector) = tree(parts, mount, inputs).await?;
                prepared.trees.insert(index, Tree::Snapshot(snapshot, selector));
            }
            MountKind::Cache { id, sharing } => {
                let (seed, selector) = tree(parts, mount, inputs).await?;
                let spec = CacheMountSpec { id: id.clone(), seed, paths: Vec::new(), sharing: sharing_of(*sharing) };
                // Two mounts of one cache are one user of it, as the first of them says.
                let (spec, places) = wanted.entry(spec.key()).or_insert((spec, Vec::new()));
                spec.paths.push(selector.clone());
                places.push((index, selector));
            }
            MountKind::Tmpfs { .. } | MountKind::Secret(_) | MountKind::Ssh(_) => {}
        }
    }
    for (spec, places) in wanted.into_values() {
        let shown = places.first().and_then(|(index, _)| exec.mounts.get(*index)).map_or("", |mount| &mount.dest);
        let cache = Arc::new(take(parts, vertex, shown, spec, events).await?);
        for (index, selector) in places {
            prepared.trees.insert(index, Tree::Cache(Arc::clone(&cache), selector));
        }
    }
    Ok(prepared)
}

/// The snapshot that is mounted, and which path of it.
async fn tree(parts: &Arc<Parts>, mount: &Mount, inputs: &[Output]) -> Result<(Snapshot, String), StepError> {
    let Some(input) = mount.input else { return Ok((Snapshot::scratch(), mount.selector.clone())) };
    match inputs.get(input).ok_or_else(|| internal(format!("there is no input {input}")))? {
        Output::Context(context) => materialize::part(parts, context, &mount.selector).await,
        output => Ok((expect_snapshot(output)?.clone(), mount.selector.clone())),
    }
}

fn sharing_of(sharing: CacheSharing) -> Sharing {
    match sharing {
        CacheSharing::Shared => Sharing::Shared,
        CacheSharing::Private => Sharing::Private,
        CacheSharing::Locked => Sharing::Locked,
    }
}

/// Takes a cache mount, and says so where that has to wait. Dropped meanwhile, it gives up.
async fn take(
    parts: &Arc<Parts>,
    vertex: &Vertex,
    dest: &str,
    spec: CacheMountSpec,
    events: &Arc<dyn EventSink>,
) -> Result<CacheMount, StepError> {
    let (started, mut pause, mut told) = (Instant::now(), Duration::from_millis(1), false);
    let tell = |done: bool| {
        let action = format!("waiting for the cache mount {dest}, which another step has locked");
        let (vertex, id) = (vertex.digest().clone(), format!("cache mount {dest}"));
        events.emit(Event::Progress { vertex, id, action, current: 0, total: None, at: clock::now(), done });
    };
    let spec = Arc::new(spec);
    loop {
        let (parts, wanted) = (Arc::clone(parts), Arc::clone(&spec));
        let tried = spawn(move || {
            parts.store.try_cache_mount(&wanted).map_err(|error| match error {
                build_engine_store::Error::Seed { source, .. } => files::copy_error(*source, "", None),
                error => StepError::store("cannot prepare a cache mount", &error),
            })
        });
        if let Some(cache) = tried.await? {
            if told {
                tell(true);
            }
            return Ok(cache);
        }
        if !told && started.elapsed() >= WORTH_TELLING {
            told = true;
            tell(false);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PATIENCE);
    }
}
