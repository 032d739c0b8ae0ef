//! What vertices do: the solver's operations on store and sandbox.
//!
//! One [`BuildOps`] serves one build: it knows the build's contexts and where its images come from. Blocking work goes to
//! Tokio's blocking threads; a run is a process whose output is read as it comes. Dropping any of the futures undoes what
//! was begun: an active layer removes itself, a step is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use build_engine_graph::{Event, EventSink, ExecOp, LogStream, MountKind, Op, SourceOp, Vertex, Warning};
use build_engine_oci::Digest;
use build_engine_sandbox as sandbox;
use build_engine_sandbox::emulation::Execution;
use build_engine_solver::{CacheMap, ContentSelector, Failure, KeyPart, Ops};
use build_engine_store::{ActiveLayer, CommitInfo, LayerId, Snapshot, StatIndex, Store};
use futures::future::{BoxFuture, try_join_all};
use rustix::fs::{Mode, OFlags};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ahead::Ahead;
use super::face::Caller;
use super::git::{self, Git};
use super::http::{self, Http};
use super::missing::Missing;
use super::remote::Remote;
use super::secrets::{Given, Secrets};
use super::sources::{Images, LocalContext, PinnedImage};
use super::{agent, events as clock, files, keys, leak, materialize, mounts, platforms};
use crate::mask::{Mask, Patterns};
use crate::{ExitKind, Report};

/// How many steps may run at once, whatever they do. Sleeping steps cost nothing, so this only bounds memory.
pub(super) const MAX_RUNNING: usize = 64;

/// How many of a step's last lines its error repeats.
const TAIL_LINES: usize = 20;

/// One output of a vertex.
#[derive(Clone)]
pub(super) enum Output {
    /// A tree in the store, kept alive for the build.
    Snapshot(Snapshot),
    /// Local files, read in place.
    Context(Arc<LocalContext>),
    /// Trees of which some may not be in the store yet: images that nobody has read a file of.
    Lazy(Arc<[Part]>),
}

/// A stack of layers.
#[derive(Clone)]
pub(super) enum Part {
    /// Those of an image, which may still have to be fetched.
    Image(Arc<PinnedImage>),
    /// Those of a snapshot.
    Layers(Snapshot),
}

/// Between the parts of a saved [`Output::Lazy`].
const PART_SEPARATOR: char = '|';

/// Before the digest of the manifest of a saved [`Part::Image`].
const IMAGE_PART: &str = "image:";

/// A failure that knows what kind it is and what to tell.
#[derive(Debug, thiserror::Error)]
#[error("{}", .report.message)]
pub(super) struct StepError {
    pub(super) kind: ExitKind,
    pub(super) report: Box<Report>,
    pub(super) detail: Option<Box<Detail>>,
}

/// What a failure knows besides what it tells.
#[derive(Debug)]
pub(super) enum Detail {
    /// A path that is not there.
    Missing(Missing),
    /// What a failed command left behind (`--rm=false`).
    Left(Snapshot),
}

impl StepError {
    pub(super) fn new(kind: ExitKind, report: Report) -> Self {
        Self { kind, report: Box::new(report), detail: None }
    }

    #[must_use]
    pub(super) fn with(self, detail: Detail) -> Self {
        Self { detail: Some(Box::new(detail)), ..self }
    }

    /// Something of ours that the disk or the kernel refused.
    pub(super) fn store(what: &str, error: &build_engine_store::Error) -> Self {
        use build_engine_store::Error;
        let (kind, rule, hint) = match error {
            Error::NoSpace { .. } => {
                (ExitKind::Io, "no-space", Some("free some space, or run `build-engine cache prune`"))
            }
            Error::Mismatch { .. } | Error::UnknownBlob(_) | Error::UnknownLayer(_) | Error::Document { .. } => (
                ExitKind::Integrity,
                "integrity",
                Some("`build-engine cache verify` drops what is damaged; the next build makes it again"),
            ),
            Error::TooLarge { .. } | Error::TooDeep { .. } => (ExitKind::Limit, "limit", None),
            Error::Layer { source, .. } if source.is_limit() => (ExitKind::Limit, "limit", None),
            Error::Layer { source, .. } if source.is_refusal() => (ExitKind::Integrity, "layer", None),
            _ => (ExitKind::Io, "io", None),
        };
        let mut report = Report::new(rule, what).caused_by(error);
        report.hint = hint.map(str::to_owned);
        Self::new(kind, report)
    }
}

/// The parts that a worker has once, and every build uses.
pub(super) struct Parts {
    pub(super) store: Store,
    pub(super) remote: Arc<Remote>,
    pub(super) launcher: sandbox::Launcher,
    pub(super) running: Arc<Semaphore>,
    /// Notes that were given already: once per worker is enough.
    pub(super) noted: std::sync::Mutex<std::collections::BTreeSet<String>>,
}

/// The operations of one build.
pub(super) struct BuildOps {
    pub(super) parts: Arc<Parts>,
    pub(super) images: Arc<Images>,
    /// Whoever started the build.
    pub(super) caller: Caller,
    pub(super) http: Arc<Http>,
    pub(super) git: Arc<Git>,
    /// What whoever started the build gives to its steps.
    pub(super) secrets: Arc<Secrets>,
    /// Whether a step may leave a secret in its layer.
    pub(super) secrets_in_layers: bool,
    /// Directories of the local sources, by name.
    pub(super) contexts: BTreeMap<String, PathBuf>,
    pub(super) limits: sandbox::Limits,
    /// Whether a step that would be less isolated than asked for is an error.
    pub(super) strict: bool,
    /// What steps had to do without.
    pub(super) fallbacks: std::sync::Mutex<BTreeSet<String>>,
    pub(super) shm_size_bytes: u64,
    pub(super) lease: Arc<build_engine_store::Lease>,
    /// Sources whose files some vertex reads: they are fetched as soon as they are wanted. Others may never be.
    pub(super) read_sources: BTreeSet<Digest>,
    /// Whether shortcuts are taken that change no result.
    pub(super) fast_paths: bool,
    /// Layers of which no key says what is in them.
    pub(super) unkeyed: std::sync::Mutex<BTreeSet<LayerId>>,
    /// What can be done for the outputs before the build is done.
    pub(super) ahead: Ahead,
    /// What of that is being done; it ends with the build.
    pub(super) aside: std::sync::Mutex<tokio::task::JoinSet<()>>,
    /// Whether a network should be made when the first vertex runs.
    pub(super) network_wanted: std::sync::atomic::AtomicBool,
    /// Whether the tree of a failed command is kept (`--rm=false`).
    pub(super) keep_failed: bool,
    /// The trees that were made or found so far, by vertex: where else a missing file could be.
    pub(super) trees: std::sync::Mutex<BTreeMap<Digest, Snapshot>>,
}

impl Ops for BuildOps {
    type Output = Output;
    type Permit = OwnedSemaphorePermit;

    fn cache_map(&self, vertex: &Arc<Vertex>) -> BoxFuture<'_, Result<CacheMap, Failure>> {
        let vertex = Arc::clone(vertex);
        Box::pin(async move {
            let Op::Source(source) = vertex.op() else {
                let mut map = keys::cache_map(&vertex);
                if self.secrets_in_layers && matches!(vertex.op(), Op::Exec(exec) if keys::has_secrets(exec)) {
                    // What was permitted once must not come from the cache where it is not.
                    map.parts.push(KeyPart::new("secrets in the layer", "allowed"));
                }
                return Ok(map);
            };
            if source.identifier.starts_with("local://") {
                return Ok(CacheMap {
                    parts: vec![KeyPart::new("context", &source.identifier)],
                    inputs: vec![],
                    unique: true,
                });
            }
            if http::is_http(&source.identifier) {
                let file = self.http.resolve(source).await.map_err(Failure::new)?;
                return Ok(CacheMap { parts: file.key(), inputs: vec![], unique: false });
            }
            if git::is_git(&source.identifier) {
                let parts = self.git.key(&self.caller, source).await.map_err(Failure::new)?;
                return Ok(CacheMap { parts, inputs: vec![], unique: false });
            }
            let image = self.images.pinned(&source.identifier, vertex.platform()).map_err(Failure::new)?;
            let parts = vec![KeyPart::new("image", image.found.manifest_descriptor.digest.to_string())];
            Ok(CacheMap { parts, inputs: vec![], unique: false })
        })
    }

    fn content_digest(
        &self,
        vertex: &Arc<Vertex>,
        input: usize,
        output: Output,
        selector: &ContentSelector,
    ) -> BoxFuture<'_, Result<Digest, Failure>> {
        if let Some(edge) = vertex.inputs().get(input) {
            self.remember(&edge.vertex, Some(&output));
        }
        let (parts, selector, vertex) = (Arc::clone(&self.parts), selector.clone(), Arc::clone(vertex));
        Box::pin(async move {
            let quiet: Arc<dyn EventSink> = Arc::new(|_: Event| {});
            let output = self.with_files(output, vertex.digest(), &quiet).await.map_err(Failure::new)?;
            let fast = self.fast_paths;
            blocking(move || files::content_digest(&parts.store, &output, &selector, fast)).await
        })
    }

    fn permit(&self, _vertex: &Arc<Vertex>) -> BoxFuture<'_, Self::Permit> {
        let running = Arc::clone(&self.parts.running);
        Box::pin(async move { running.acquire_owned().await.expect("the semaphore is never closed") })
    }

    fn run(
        &self,
        vertex: &Arc<Vertex>,
        inputs: Vec<Output>,
        events: Arc<dyn EventSink>,
    ) -> BoxFuture<'_, Result<Vec<Output>, Failure>> {
        let vertex = Arc::clone(vertex);
        let (given, sink) = (inputs.clone(), Arc::clone(&events));
        Box::pin(async move {
            self.expect_exec(&vertex);
            for (edge, input) in vertex.inputs().iter().zip(&inputs) {
                self.remember(&edge.vertex, Some(input));
            }
            let inputs = if matches!(vertex.op(), Op::Exec(_) | Op::File(_) | Op::Diff(_)) {
                let with_files = inputs.into_iter().map(|input| self.with_files(input, vertex.digest(), &events));
                try_join_all(with_files).await.map_err(Failure::new)?
            } else {
                inputs
            };
            let inputs = materialize::bases(&self.parts, &vertex, inputs).await.map_err(Failure::new)?;
            let result = match vertex.op() {
                Op::Source(source) => match source.identifier.strip_prefix("local://") {
                    Some(name) => self.local(name, source).map(|context| {
                        self.tell_of_file_system(&vertex, &context, &*events);
                        vec![Output::Context(Arc::new(context))]
                    }),
                    None if http::is_http(&source.identifier) => {
                        self.http.tree(source).await.map(|tree| vec![Output::Snapshot(tree)])
                    }
                    None if git::is_git(&source.identifier) => {
                        self.git.tree(&self.caller, source).await.map(|tree| vec![Output::Snapshot(tree)])
                    }
                    None => self.image(&vertex, &source.identifier, &events).await.map(|output| vec![output]),
                },
                Op::Exec(exec) => self.exec(&vertex, exec, inputs, events).await,
                Op::File(_) => {
                    let parts = Arc::clone(&self.parts);
                    let vertex = Arc::clone(&vertex);
                    let streams = self.ahead.streams(&vertex);
                    spawn(move || {
                        let Op::File(file) = vertex.op() else { unreachable!("matched above") };
                        files::run(&parts.store, &vertex, file, &inputs, streams, &*events)
                    })
                    .await
                }
                Op::Merge(merge) => self.merge(merge, &inputs),
                Op::Diff(diff) => {
                    let (parts, diff) = (Arc::clone(&self.parts), diff.clone());
                    spawn(move || run_diff(&parts.store, &diff, &inputs)).await
                }
                Op::Build(_) => Err(internal("a build inside the build was not refused")),
            };
            let outputs = result.map_err(Failure::new)?;
            self.check_contexts(&vertex, &given, &outputs, &sink).await.map_err(Failure::new)?;
            for output in &outputs {
                self.keep(output)?;
            }
            self.remember(&vertex, outputs.first());
            if let Some(Output::Snapshot(snapshot)) = outputs.first()
                && let Some(work) = self.ahead.work(&vertex, snapshot, &self.parts, &self.lease)
            {
                self.aside.lock().unwrap_or_else(std::sync::PoisonError::into_inner).spawn(work);
            }
            Ok(outputs)
        })
    }

    fn save(&self, output: &Output) -> Option<String> {
        if self.is_unkeyed(output) {
            return None;
        }
        match output {
            Output::Snapshot(snapshot) => Some(snapshot.to_string()),
            Output::Context(_) => None,
            Output::Lazy(parts) => {
                let parts = parts.iter().map(|part| match part {
                    Part::Image(image) => format!("{IMAGE_PART}{}", image.found.manifest_descriptor.digest),
                    Part::Layers(snapshot) => snapshot.to_string(),
                });
                Some(parts.collect::<Vec<_>>().join(&PART_SEPARATOR.to_string()))
            }
        }
    }

    fn load(&self, value: &str) -> BoxFuture<'_, Option<Output>> {
        let output = self.saved(value);
        Box::pin(async move {
            let output = output?;
            // Held before it is looked for: what is found then stays.
            self.keep(&output).ok()?;
            let complete = snapshots(&output).all(|snapshot| self.parts.store.exists(snapshot));
            complete.then_some(output)
        })
    }
}

impl BuildOps {
    /// Says that the digests of a context cannot be remembered, where that is so.
    fn tell_of_file_system(&self, vertex: &Vertex, context: &LocalContext, events: &dyn EventSink) {
        if let Some(kind) = StatIndex::unreliable(&context.path).filter(|_| self.fast_paths) {
            let text = format!(
                "`{}` is on {kind}, whose inodes and times are not those of its files: what is needed of it is read anew \
                 in each build\n",
                context.path.display()
            );
            events.emit(Event::Log {
                vertex: vertex.digest().clone(),
                stream: LogStream::Stdout,
                text,
                at: clock::now(),
            });
        }
    }

    fn is_unkeyed(&self, output: &Output) -> bool {
        let unkeyed = self.unkeyed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        !unkeyed.is_empty() && snapshots(output).flat_map(Snapshot::layers).any(|layer| unkeyed.contains(layer))
    }

    /// Makes sure that files of a context which changed between hashing and reading are in no record: neither the layer
    /// that has them, nor what is built on it.
    async fn check_contexts(
        &self,
        vertex: &Arc<Vertex>,
        inputs: &[Output],
        outputs: &[Output],
        events: &Arc<dyn EventSink>,
    ) -> Result<(), StepError> {
        let mut is_unkeyed = inputs.iter().any(|input| self.is_unkeyed(input));
        // A layer that was streamed is made of what was listed for the key, or it would not have been made.
        let streamed = |output: &Output| {
            let layer = snapshots(output).next().and_then(|made| made.layers().last());
            layer.is_some_and(|layer| self.parts.store.layer_info(layer).is_ok_and(|info| info.streamed.is_some()))
        };
        let to_check = if outputs.iter().all(streamed) { &[] } else { inputs };
        for (input, key) in to_check.iter().zip(keys::cache_map(vertex).inputs) {
            let (Output::Context(context), Some(selector)) = (input, key.content) else { continue };
            if !context.changed.load(Ordering::Relaxed) {
                let (parts, found) = (Arc::clone(&self.parts), Arc::clone(context));
                let changed = spawn(move || files::changed_since(&parts.store, &found, &selector)).await?;
                let Some(path) = changed else { continue };
                context.changed.store(true, Ordering::Relaxed);
                let message =
                    format!("`{}` changed while it was built with, so the result is not cached", path.display());
                let detail = "A file that is written during the build is better named in the ignore file.".to_owned();
                let (vertex, rule, url) = (Some(vertex.digest().clone()), String::new(), String::new());
                events.emit(Event::Warning(Warning { vertex, rule, message, detail, url, place: None }));
            }
            is_unkeyed = true;
        }
        if is_unkeyed {
            let mut unkeyed = self.unkeyed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            unkeyed.extend(outputs.iter().flat_map(snapshots).filter_map(|made| made.layers().last().cloned()));
        }
        Ok(())
    }

    /// Begins to make the network of the first command, now that something is not cached: a command may follow.
    fn expect_exec(&self, vertex: &Vertex) {
        // Local sources run in every build.
        let local = matches!(vertex.op(), Op::Source(source) if source.identifier.starts_with("local://"));
        if !local && self.network_wanted.swap(false, std::sync::atomic::Ordering::Relaxed) {
            let parts = Arc::clone(&self.parts);
            drop(tokio::task::spawn_blocking(move || parts.launcher.warm_up()));
        }
    }

    fn remember(&self, vertex: &Vertex, output: Option<&Output>) {
        if let Some(Output::Snapshot(snapshot)) = output {
            let mut trees = self.trees.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            trees.insert(vertex.digest().clone(), snapshot.clone());
        }
    }

    fn keep(&self, output: &Output) -> Result<(), Failure> {
        for snapshot in snapshots(output) {
            self.lease
                .hold(snapshot)
                .map_err(|error| Failure::new(StepError::store("cannot hold a snapshot", &error)))?;
        }
        Ok(())
    }

    /// The output that was saved as `value`; an image must be one of this build's.
    fn saved(&self, value: &str) -> Option<Output> {
        if let Ok(snapshot) = value.parse() {
            return Some(Output::Snapshot(snapshot));
        }
        let parts = value.split(PART_SEPARATOR).map(|part| match part.strip_prefix(IMAGE_PART) {
            Some(digest) => self.images.with_manifest(&digest.parse().ok()?).map(Part::Image),
            None => part.parse().ok().map(Part::Layers),
        });
        parts.collect::<Option<Arc<[Part]>>>().map(Output::Lazy)
    }

    /// The same output with all its files in the store.
    async fn with_files(
        &self,
        output: Output,
        vertex: &Digest,
        events: &Arc<dyn EventSink>,
    ) -> Result<Output, StepError> {
        match output {
            Output::Snapshot(_) | Output::Context(_) => Ok(output),
            Output::Lazy(parts) => {
                self.images.materialize(&self.lease, &parts, vertex, events).await.map(Output::Snapshot)
            }
        }
    }

    fn local(&self, name: &str, source: &SourceOp) -> Result<LocalContext, StepError> {
        let path = self.contexts.get(name).ok_or_else(|| internal(format!("there is no context `{name}`")))?;
        LocalContext::new(path, source)
    }

    /// An image: its files, where somebody reads them; else only what it is.
    async fn image(
        &self,
        vertex: &Arc<Vertex>,
        identifier: &str,
        events: &Arc<dyn EventSink>,
    ) -> Result<Output, StepError> {
        let image = self.images.pinned(identifier, vertex.platform())?;
        if !self.read_sources.contains(vertex.digest()) {
            return Ok(Output::Lazy([Part::Image(image)].into()));
        }
        self.images.unpack(&self.lease, &image, vertex.digest(), events).await.map(Output::Snapshot)
    }

    fn merge(&self, merge: &build_engine_graph::MergeOp, inputs: &[Output]) -> Result<Vec<Output>, StepError> {
        let mut parts: Vec<Part> = Vec::new();
        for input in &merge.inputs {
            match input.and_then(|input| inputs.get(input)) {
                Some(Output::Lazy(lazy)) => parts.extend(lazy.iter().cloned()),
                _ => parts.push(Part::Layers(snapshot_of(inputs, *input)?)),
            }
        }
        let snapshots: Option<Vec<Snapshot>> = parts
            .iter()
            .map(|part| match part {
                Part::Layers(snapshot) => Some(snapshot.clone()),
                Part::Image(_) => None,
            })
            .collect();
        Ok(vec![match snapshots {
            Some(snapshots) => Output::Snapshot(Snapshot::merge(&snapshots)),
            None => Output::Lazy(parts.into()),
        }])
    }

    async fn exec(
        &self,
        vertex: &Arc<Vertex>,
        exec: &ExecOp,
        inputs: Vec<Output>,
        events: Arc<dyn EventSink>,
    ) -> Result<Vec<Output>, StepError> {
        let root = exec.mounts.iter().find(|mount| mount.dest == "/").ok_or_else(|| internal("a run has no root"))?;
        let base = snapshot_of(&inputs, root.input)?;
        let prepared = Arc::new(mounts::prepare(&self.parts, vertex, exec, &inputs, &events).await?);
        let in_use = Arc::clone(&prepared);
        let (parts, below, step) = (Arc::clone(&self.parts), base.clone(), Arc::clone(vertex));
        let given = self.secrets.for_step(exec).await?;
        self.warn_of_short_secrets(vertex, &*events);
        let ((active, mut fds, work, mounts), given, proxies) = spawn(move || {
            let (active, mut fds, work) = begin(&parts.store, &below)?;
            let Op::Exec(exec) = step.op() else { return Err(internal("a run is no run")) };
            let mut proxies = Vec::new();
            let mounts = mounts_of(&parts.store, &active, exec, &prepared, &given, &mut fds.binds, &mut proxies)?;
            Ok(((active, fds, work, mounts), given, proxies))
        })
        .await?;
        // Until the step has ended.
        let serving = self.serve_agents(proxies)?;
        let mut spec = self.step_spec(exec, work, mounts);
        spec.env.extend(given.env.iter().cloned());
        self.emulate(vertex, &mut spec, &mut fds, &*events)?;
        let step = self.parts.launcher.spawn(&spec, &fds).map_err(|error| step_failure(&error))?;
        let mut tail = Tail::default();
        let exit = watch(
            step,
            || self.secrets.patterns(),
            |stream, text| {
                tail.push(&text);
                events.emit(Event::Log { vertex: vertex.digest().clone(), stream, text, at: clock::now() });
            },
        )
        .await?;
        drop((spec, serving));
        spawn(move || {
            // Cache mounts are free from here on, and what was written to others goes.
            drop(in_use);
            Ok(())
        })
        .await?;
        self.note(vertex, &exit.notes, &*events);
        self.fallbacks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend(exit.notes.iter().cloned());
        let code = exit.status.code();
        let valid: &[i32] = if exec.meta.valid_exit_codes.is_empty() { &[0] } else { &exec.meta.valid_exit_codes };
        let failed = (!valid.contains(&code)).then(|| exit_error(exec, &exit, tail));
        let failed = match failed {
            Some(error) if !self.keep_failed => return Err(error),
            failed => failed,
        };
        let (parts, info) =
            (Arc::clone(&self.parts), CommitInfo { description: vertex.name(), ..CommitInfo::default() });
        let allowed = self.secrets_in_layers;
        let (layer, leaks) = spawn(move || {
            let leaks = leak::find(&active, &given.secrets)?;
            if !leaks.is_empty() && !allowed {
                return Ok((None, leaks));
            }
            let layer = parts
                .store
                .commit(active, &info)
                .map_err(|error| StepError::store("cannot keep what the step wrote", &error))?;
            Ok((Some(layer), leaks))
        })
        .await?;
        let Some(layer) = layer else {
            // What the step left holds a secret, so that it is not kept.
            return Err(failed.unwrap_or_else(|| leak::refusal(&leaks)));
        };
        let snapshot = base.with(layer);
        if let Some(error) = failed {
            let held = self.lease.hold(&snapshot);
            held.map_err(|error| StepError::store("cannot hold what the step left", &error))?;
            return Err(error.with(Detail::Left(snapshot)));
        }
        for (path, id) in &leaks {
            let message =
                format!("the secret `{id}` is in the image, in `{path}`, as `--allow secret.in-layer` permits");
            self.note(vertex, &[message], &*events);
        }
        // Outputs other than the root belong to mounts that were refused before the build began.
        Ok(vec![Output::Snapshot(snapshot)])
    }

    fn step_spec(&self, exec: &ExecOp, work: String, mounts: Vec<sandbox::Mount>) -> sandbox::StepSpec {
        let meta = &exec.meta;
        let mut env = meta.env.clone();
        for (name, value) in meta.proxy_env.iter().flat_map(|proxy| {
            [
                ("HTTP_PROXY", &proxy.http),
                ("HTTPS_PROXY", &proxy.https),
                ("FTP_PROXY", &proxy.ftp),
                ("NO_PROXY", &proxy.no),
                ("ALL_PROXY", &proxy.all),
            ]
        }) {
            if !value.is_empty() {
                env.push(format!("{name}={value}"));
                env.push(format!("{}={value}", name.to_lowercase()));
            }
        }
        let root_readonly = exec.mounts.iter().any(|mount| mount.dest == "/" && mount.readonly);
        let defaults = sandbox::StepSpec::default();
        sandbox::StepSpec {
            root: sandbox::Root::Overlay { upper: "fs".into(), work },
            root_readonly,
            mounts,
            args: meta.args.clone(),
            env,
            cwd: meta.cwd.clone(),
            user: meta.user.clone(),
            hostname: if meta.hostname.is_empty() { defaults.hostname.clone() } else { meta.hostname.clone() },
            network: match exec.network {
                build_engine_graph::Network::Default => sandbox::Network::Default,
                build_engine_graph::Network::Host => sandbox::Network::Host,
                build_engine_graph::Network::None => sandbox::Network::None,
            },
            extra_hosts: meta.extra_hosts.clone(),
            ulimits: meta
                .ulimits
                .iter()
                .map(|limit| sandbox::Ulimit { name: limit.name.clone(), soft: limit.soft, hard: limit.hard })
                .collect(),
            shm_size_bytes: (self.shm_size_bytes > 0).then_some(self.shm_size_bytes),
            confinement: match exec.security {
                build_engine_graph::Security::Sandbox => defaults.confinement.clone(),
                build_engine_graph::Security::Insecure => sandbox::Confinement::insecure(),
            },
            limits: self.limits.clone(),
            strict: self.strict,
            cgroup_parent: meta.cgroup_parent.clone(),
            remove_stub_parents: meta.remove_mount_stubs_recursive,
            ..defaults
        }
    }

    /// Gives a step the emulator that its platform needs.
    fn emulate(
        &self,
        vertex: &Vertex,
        spec: &mut sandbox::StepSpec,
        fds: &mut sandbox::StepFds,
        events: &dyn EventSink,
    ) -> Result<(), StepError> {
        let Some(platform) = vertex.platform() else { return Ok(()) };
        let execution = platforms::execution(self.parts.launcher.emulators(), platform)?;
        self.note(vertex, platforms::note(platform, &execution).as_slice(), events);
        if let Execution::Own(emulator) = execution {
            spec.emulated = Some(platform.architecture.clone());
            fds.emulator = Some(emulator.file);
        }
        Ok(())
    }

    /// Passes on what a step did not get as asked for, once per worker.
    pub(super) fn note(&self, vertex: &Vertex, notes: &[String], events: &dyn EventSink) {
        for note in notes {
            let new = self.parts.noted.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(note.clone());
            if new {
                events.emit(Event::Warning(Warning {
                    vertex: Some(vertex.digest().clone()),
                    rule: String::new(),
                    message: note.clone(),
                    detail: String::new(),
                    url: String::new(),
                    place: None,
                }));
            }
        }
    }
}

/// Runs blocking work, whose failure becomes the vertex's.
fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StepError> + Send + 'static,
) -> BoxFuture<'static, Result<T, Failure>> {
    Box::pin(async move { spawn(work).await.map_err(Failure::new) })
}

pub(super) async fn spawn<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StepError> + Send + 'static,
) -> Result<T, StepError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(internal(format!("a blocking task ended: {error}"))),
    }
}

/// The snapshots of an output that are in the store.
fn snapshots(output: &Output) -> impl Iterator<Item = &Snapshot> {
    let (one, parts): (Option<&Snapshot>, &[Part]) = match output {
        Output::Snapshot(snapshot) => (Some(snapshot), &[]),
        Output::Context(_) => (None, &[]),
        Output::Lazy(parts) => (None, parts),
    };
    one.into_iter().chain(parts.iter().filter_map(|part| match part {
        Part::Layers(snapshot) => Some(snapshot),
        Part::Image(_) => None,
    }))
}

pub(super) fn internal(message: impl Into<String>) -> StepError {
    StepError::new(ExitKind::Internal, Report::new("internal", message))
}

pub(super) fn snapshot_of(outputs: &[Output], input: Option<usize>) -> Result<Snapshot, StepError> {
    let Some(input) = input else { return Ok(Snapshot::scratch()) };
    match outputs.get(input) {
        Some(Output::Snapshot(snapshot)) => Ok(snapshot.clone()),
        Some(Output::Context(_)) => Err(internal("local files cannot be changed in place")),
        Some(Output::Lazy(_)) => Err(internal("an image whose files are wanted was not fetched")),
        None => Err(internal(format!("there is no input {input}"))),
    }
}

/// The directories and descriptors of a run, and the layer that it writes.
pub(super) fn begin(store: &Store, base: &Snapshot) -> Result<(ActiveLayer, sandbox::StepFds, String), StepError> {
    let failed = |error: build_engine_store::Error| StepError::store("cannot prepare a layer for the step", &error);
    let active = store.active_layer(base).map_err(failed)?;
    let lower = if base.layers().is_empty() { Vec::new() } else { store.layer_dirs(base).map_err(failed)? };
    let work = active.new_work_dir().map_err(failed)?;
    let upper = active.dir();
    let parent = upper.parent().ok_or_else(|| internal("a layer stands in no directory"))?;
    let name = work.file_name().map(|name| name.to_string_lossy().into_owned());
    let fds = sandbox::StepFds {
        lower: lower.iter().map(|dir| open_path(dir)).collect::<Result<_, _>>()?,
        active: Some(open_path(parent)?),
        binds: Vec::new(),
        emulator: None,
    };
    Ok((active, fds, name.ok_or_else(|| internal("a work directory has no name"))?))
}

/// What a run sees besides its root. The trees of what is mounted become descriptors in `binds`.
fn mounts_of(
    store: &Store,
    active: &ActiveLayer,
    exec: &ExecOp,
    prepared: &mounts::Prepared,
    given: &Given,
    binds: &mut Vec<OwnedFd>,
    proxies: &mut Vec<agent::Proxy>,
) -> Result<Vec<sandbox::Mount>, StepError> {
    let mut found = Vec::new();
    for (index, mount) in exec.mounts.iter().enumerate().filter(|(_, mount)| mount.dest != "/") {
        let source = match &mount.kind {
            MountKind::Tmpfs { size } => sandbox::MountSource::Tmpfs { size_bytes: u64::try_from(*size).unwrap_or(0) },
            MountKind::Bind | MountKind::Cache { .. } => prepared.source(store, index, mount, binds)?,
            MountKind::Secret(_) | MountKind::Ssh(_) => {
                found.extend(given.mount(active, mount, binds, proxies)?);
                continue;
            }
        };
        found.push(sandbox::Mount { dest: mounts::target(mount)?, readonly: mount.readonly, source });
    }
    Ok(found)
}

pub(super) fn open_path(path: &Path) -> Result<OwnedFd, StepError> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(|error| {
        let report =
            Report::new("io", format!("cannot open `{}`", path.display())).caused_by(&std::io::Error::from(error));
        StepError::new(ExitKind::Io, report)
    })
}

/// Kills a step when whoever waits for it goes away.
struct KillOnDrop(sandbox::Killer);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.0.kill();
    }
}

/// Reads what a step writes, as text and without what is `hidden`, until it ends. Dropped before that, it kills the step.
pub(super) async fn watch(
    mut step: sandbox::Step,
    hidden: impl Fn() -> Option<Arc<Patterns>>,
    mut output: impl FnMut(LogStream, String),
) -> Result<sandbox::Exit, StepError> {
    use tokio::io::AsyncReadExt;
    use tokio::net::unix::pipe::Receiver;
    let broken = |error: std::io::Error| internal(format!("a step's output cannot be read: {error}"));
    let _killer = KillOnDrop(step.killer());
    let pipe = |fd: Option<OwnedFd>| {
        fd.ok_or_else(|| internal("a step's output is taken"))
            .and_then(|fd| Receiver::from_owned_fd(fd).map_err(broken))
    };
    let (mut stdout, mut stderr) = (pipe(step.stdout.take())?, pipe(step.stderr.take())?);
    // What the command started may hold the pipes open longer than it runs; the step's end is what counts.
    let mut ended = tokio::task::spawn_blocking(move || step.wait());
    let (mut out, mut err) = (vec![0; 32 << 10], vec![0; 32 << 10]);
    let (mut out_open, mut err_open) = (true, true);
    let (mut out_text, mut err_text) = (Utf8::default(), Utf8::default());
    let (mut out_mask, mut err_mask) = (Mask::default(), Mask::default());
    let mut exit = None;
    while out_open || err_open {
        let (stream, count) = tokio::select! {
            biased;
            count = stdout.read(&mut out), if out_open => (LogStream::Stdout, count),
            count = stderr.read(&mut err), if err_open => (LogStream::Stderr, count),
            result = &mut ended, if exit.is_none() => {
                exit = Some(result);
                continue;
            }
        };
        let count = count.map_err(broken)?;
        let (bytes, mask, utf8) = match stream {
            LogStream::Stdout => (&out[..count], &mut out_mask, &mut out_text),
            LogStream::Stderr => (&err[..count], &mut err_mask, &mut err_text),
        };
        // Another step of the build may have been given a secret meanwhile, and left it where this one finds it.
        if let Some(patterns) = hidden() {
            mask.look_for(&patterns);
        }
        let text = utf8.push(&mask.pass(bytes), count == 0);
        match stream {
            LogStream::Stdout => out_open = count > 0,
            LogStream::Stderr => err_open = count > 0,
        }
        if !text.is_empty() {
            output(stream, text);
        }
    }
    let exit = match exit {
        Some(exit) => exit,
        None => ended.await,
    };
    exit.map_err(|error| internal(format!("waiting for a step: {error}")))?.map_err(|error| step_failure(&error))
}

/// Bytes that arrive in pieces, as text: a character that is cut in two waits for its other half.
#[derive(Default)]
struct Utf8 {
    kept: Vec<u8>,
}

impl Utf8 {
    /// Takes some bytes, at the end the last ones, and returns the text that is complete.
    fn push(&mut self, bytes: &[u8], end: bool) -> String {
        self.kept.extend_from_slice(bytes);
        let keep = if end { 0 } else { incomplete_suffix(&self.kept) };
        let rest = self.kept.split_off(self.kept.len() - keep);
        let text = String::from_utf8_lossy(&self.kept).into_owned();
        self.kept = rest;
        text
    }
}

/// How many bytes at the end begin a character that needs more of them.
fn incomplete_suffix(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let byte = bytes[bytes.len() - back];
        let needs = match byte {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            0x80..=0xbf => continue,
            _ => return 0,
        };
        return if needs > back { back } else { 0 };
    }
    0
}

/// The last lines that a step wrote.
#[derive(Default)]
struct Tail {
    lines: std::collections::VecDeque<String>,
    open: String,
}

impl Tail {
    fn push(&mut self, text: &str) {
        for piece in text.split_inclusive('\n') {
            // A line without end must not fill memory.
            if self.open.len() < 4096 {
                self.open.push_str(piece.trim_end_matches(['\n', '\r']));
            }
            if piece.ends_with('\n') {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        if self.lines.len() == TAIL_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(std::mem::take(&mut self.open));
    }

    fn into_lines(mut self) -> Vec<String> {
        if !self.open.is_empty() {
            self.end_line();
        }
        self.lines.into()
    }
}

fn exit_error(exec: &ExecOp, exit: &sandbox::Exit, tail: Tail) -> StepError {
    let command = exec.meta.args.join(" ");
    let how = if exit.out_of_memory {
        "out of memory".to_owned()
    } else {
        match exit.status {
            sandbox::ExitStatus::Code(code) => format!("exit code: {code}"),
            sandbox::ExitStatus::Signal(signal) => format!("killed by signal {signal}"),
        }
    };
    let mut report = Report::new("run-failed", format!("process \"{command}\" did not complete successfully: {how}"));
    report.causes.extend(exit.message.clone());
    report.log_tail = tail.into_lines();
    StepError::new(ExitKind::Step, report)
}

/// The step could not be set up, which is not the command's fault.
pub(super) fn step_failure(error: &sandbox::SandboxError) -> StepError {
    use sandbox::SandboxError;
    let kind = match error {
        SandboxError::Spec(_) => ExitKind::Input,
        SandboxError::Setup(error) if error.is_limit => ExitKind::Limit,
        SandboxError::Setup(error) if error.is_of_the_image() => ExitKind::Step,
        SandboxError::Cancelled => ExitKind::Cancelled,
        _ => ExitKind::Denied,
    };
    StepError::new(kind, Report::new("sandbox", "cannot start the step").caused_by(error))
}

fn run_diff(store: &Store, diff: &build_engine_graph::DiffOp, inputs: &[Output]) -> Result<Vec<Output>, StepError> {
    let lower = snapshot_of(inputs, diff.lower)?;
    let upper = snapshot_of(inputs, diff.upper)?;
    store
        .diff(&lower, &upper)
        .map(|snapshot| vec![Output::Snapshot(snapshot)])
        .map_err(|error| StepError::store("cannot compare two snapshots", &error))
}
