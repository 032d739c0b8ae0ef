//! One build, from request to outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use build_engine_dockerfile::{Diagnostic, Level};
use build_engine_frontend::{self as frontend, Answer, Answers, Lowered, Lowering, MainContext, Question};
use build_engine_graph::{Event, EventSink, Op, SourceFile, Vertex, Warning, redact_url, walk};
use build_engine_oci::{Digest, Platform, Reference};
use build_engine_registry::Credentials;
use build_engine_sandbox as sandbox;
use build_engine_solver::{Failure, JobOptions, Solver};
use build_engine_store::{Ids, Lease, Store};
use futures::future::{BoxFuture, try_join_all};
use tokio::sync::Semaphore;

use super::ahead::Ahead;
use super::context::{self, Early};
use super::entitled;
use super::events::Work;
use super::export::{Built, Export};
use super::face::Caller;
use super::git::Git;
use super::http::Http;
use super::kept::Kept;
use super::materialize;
use super::missing::{self, Known};
use super::ops::{self, BuildOps, Detail, MAX_RUNNING, Part, Parts, StepError};
use super::records::{StoreClaims, StoreRecords};
use super::remote::{Remote, UNKNOWN_IMAGE};
use super::secrets::Secrets;
use super::sources::{Images, Policy};
use super::{platforms, syntax};
use crate::{
    BuildError, BuildRequest, ContextSource, Entitlement, ExitKind, ImageSummary, Isolation, IsolationReport, NoCache,
    Outcome, Output, Place, Report, StoreOptions, Unsupported,
};

/// Largest ignore file that is read.
const MAX_IGNORE_FILE_BYTES: u64 = 16 << 20;

/// Age after which the kernel has usually written a layer to the disk by itself.
const SETTLED: std::time::Duration = std::time::Duration::from_secs(60);

/// The engine inside a worker: one store, one solver, any number of builds.
pub(super) struct Engine {
    pub(super) parts: Arc<Parts>,
    pub(super) solver: Solver<BuildOps>,
    notes: Vec<String>,
    mode: String,
}

/// What of `request` the embedded engine cannot do.
pub(super) fn unsupported(request: &BuildRequest) -> Vec<Unsupported> {
    let mut found = Vec::new();
    let mut refuse = |flag: &str, reason: &str| found.push(Unsupported { flag: flag.into(), reason: reason.into() });
    for attestation in &request.attestations {
        refuse("--attest", &format!("attestations of type `{}` are not made yet", attestation.kind));
    }
    if is_on(request, "BUILDKIT_INLINE_CACHE") {
        refuse("--build-arg", "`BUILDKIT_INLINE_CACHE`: the cache cannot be written into images yet");
    }
    if request.platforms.len() > 1 {
        for output in &request.outputs {
            match output {
                Output::Tar { .. } => refuse("--output", "type `tar` holds one platform; use `type=local`"),
                Output::Docker { .. } => refuse("--output", "type `docker` holds one platform; use `type=oci`"),
                Output::Load { .. } => refuse("--load", "a daemon takes one platform at a time; use `type=oci`"),
                Output::Image { .. } | Output::Oci { .. } | Output::Local { .. } | Output::CacheOnly => {}
            }
        }
    }
    found
}

/// Says that a name of the build is not kept, where one is given.
fn name_note(request: &BuildRequest) -> Option<Warning> {
    let name = request.build_args.get("BUILDKIT_BUILD_NAME").filter(|name| !name.is_empty())?;
    Some(note_warning(&format!("`BUILDKIT_BUILD_NAME={name}` has no effect yet: builds are not listed by name")))
}

/// Whether a build argument that is a setting is switched on, in one of Go's spellings.
pub(super) fn is_on(request: &BuildRequest, setting: &str) -> bool {
    request
        .build_args
        .get(setting)
        .is_some_and(|value| matches!(value.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"))
}

impl Engine {
    /// Opens the store and prepares what all builds share.
    pub(super) fn open(
        options: &StoreOptions,
        entered: &sandbox::worker::Entered,
        credentials: Arc<dyn Credentials>,
    ) -> Result<Self, BuildError> {
        let ids = match entered.mode {
            sandbox::worker::Mode::Root | sandbox::worker::Mode::User => Ids::Full,
            sandbox::worker::Mode::OneUid => Ids::One,
        };
        let store = Store::open(&options.root, &build_engine_store::StoreOptions { ids }).map_err(|error| {
            let error = StepError::store(&format!("cannot open the store `{}`", options.root.display()), &error);
            BuildError::new(error.kind, *error.report)
        })?;
        let (notes, mode) = (entered.notes.clone(), format!("{:?}", entered.mode).to_lowercase());
        let launcher = sandbox::Launcher::new(entered).map_err(|error| step_error(ops::step_failure(&error)))?;
        let remote = Remote::new(store.clone(), options.registries.clone(), credentials).map_err(step_error)?;
        let parts = Arc::new(Parts {
            store: store.clone(),
            remote: Arc::new(remote),
            launcher,
            running: Arc::new(Semaphore::new(MAX_RUNNING)),
            noted: std::sync::Mutex::default(),
        });
        let settled = store.clone();
        // Beside the build: what earlier builds made is mostly on the disk by now, and survives the next boot from then on.
        tokio::task::spawn_blocking(move || {
            if let Err(error) = settled.checkpoint(SETTLED) {
                tracing::warn!(%error, "layers of earlier builds are not yet durable");
            }
        });
        let solver = Solver::new(Arc::new(StoreRecords::new(store.clone())), Arc::new(StoreClaims::new(store)));
        Ok(Self { parts, solver, notes, mode })
    }

    /// Builds.
    pub(super) async fn build(
        &self,
        mut request: BuildRequest,
        caller: Caller,
        sink: Arc<dyn EventSink>,
    ) -> Result<Outcome, BuildError> {
        if let Some(refused) = unsupported(&request).into_iter().next() {
            let message = format!("{}: {}", refused.flag, refused.reason);
            return Err(BuildError::new(ExitKind::Input, Report::new("unsupported", message)));
        }
        self.isolate(request.isolation, &sink)?;
        let sources = self.sources(&request, &caller)?;
        let early = Early { solver: &self.solver, ops: self.ops(&sources, &request, None), sink: &sink };
        let main = early.open(&mut request).await?;
        if let Some(frontend) = syntax::requested(&request)? {
            Work::start(&sink, &format!("[internal] {frontend} is built in")).done(Ok::<(), &String>(()));
        }
        if let Some(note) = name_note(&request) {
            sink.emit(Event::Warning(note));
        }
        for note in &self.notes {
            sink.emit(Event::Warning(note_warning(note)));
        }
        let lowered = self.lower(&request, main, &early, &sources.images, &sink).await?;
        refuse_unsupported_vertices(&lowered)?;
        platforms::refuse_foreign_commands(&lowered, self.parts.launcher.emulators())?;
        entitled::check(&lowered, &request)?;
        for note in entitled::notes(&lowered) {
            sink.emit(Event::Warning(note_warning(&note)));
        }
        let ops = self.ops(&sources, &request, Some(&lowered));
        let Sources { images, lease, .. } = sources;
        let options = JobOptions { no_cache: request.no_cache == NoCache::All };
        let job = self.solver.job(Arc::clone(&ops), Arc::clone(&sink), options);
        let roots: Vec<_> = lowered.results.iter().filter_map(|result| result.root.clone()).collect();
        let refs = job.solve(&roots);
        let outputs = match try_join_all(refs.iter().map(build_engine_solver::LazyRef::evaluate)).await {
            Ok(outputs) => outputs,
            Err(failure) => {
                let kept = Kept { parts: &self.parts, images: Arc::clone(&images), lease, request: &request };
                return Err(explained(&failure, &lowered, &ops, kept, &sink).await);
            }
        };
        let mut outputs = outputs.into_iter();
        let mut built = Vec::with_capacity(lowered.results.len());
        for result in lowered.results {
            let parts = match result.root {
                None => Vec::new(),
                Some(_) => match outputs.next() {
                    Some(ops::Output::Snapshot(snapshot)) => vec![Part::Layers(snapshot)],
                    Some(ops::Output::Lazy(parts)) => parts.to_vec(),
                    Some(ops::Output::Context(context)) => {
                        vec![Part::Layers(materialize::whole(&self.parts, &context).await?)]
                    }
                    None => return Err(BuildError::internal("a result has no output")),
                },
            };
            let base = result.base.map(|base| base.image);
            built.push(Built { platform: result.platform, parts, image: result.image, base, epoch: result.epoch });
        }
        let mut aside = std::mem::take(&mut *ops.aside.lock().unwrap_or_else(PoisonError::into_inner));
        while aside.join_next().await.is_some() {}
        let export = Export { parts: &self.parts, request: &request, built: Arc::new(built), images, lease };
        let mut outcome = export.run(&sink).await?;
        let fallbacks = ops.fallbacks.lock().unwrap_or_else(PoisonError::into_inner);
        outcome.isolation = IsolationReport {
            level: request.isolation,
            worker: self.mode.clone(),
            fallbacks: self.notes.iter().chain(&*fallbacks).cloned().collect(),
        };
        Ok(outcome)
    }

    /// Refuses a level of isolation that this worker does not have.
    fn isolate(&self, wanted: Isolation, sink: &Arc<dyn EventSink>) -> Result<(), BuildError> {
        let refused = |message: &str, hint: &str| Report::new("isolation", message).hint(hint);
        let report = match wanted {
            Isolation::Strict if !self.notes.is_empty() => {
                let mut report = refused(
                    "`--isolation=strict`: this host offers less than builds ask for",
                    "do what the notes say, or leave `--isolation=strict` out",
                );
                report.causes.clone_from(&self.notes);
                report
            }
            Isolation::Rootless if self.mode == "root" => refused(
                "`--isolation=rootless`: this build was started by root",
                "start it as an ordinary user; steps of root have a user namespace of their own as well",
            ),
            Isolation::Default => return Ok(()),
            Isolation::Strict | Isolation::Rootless => {
                let level = if wanted == Isolation::Strict { "strict" } else { "rootless" };
                Work::start(sink, &format!("[internal] isolation {level}, worker {}", self.mode))
                    .done(Ok::<(), &String>(()));
                return Ok(());
            }
        };
        Err(BuildError::new(ExitKind::Denied, report))
    }

    /// Calls the frontend until it has no more questions.
    async fn lower(
        &self,
        request: &BuildRequest,
        main: MainContext,
        early: &Early<'_>,
        images: &Arc<Images>,
        sink: &Arc<dyn EventSink>,
    ) -> Result<Lowered, BuildError> {
        let definition =
            Work::start(sink, &format!("[internal] load build definition from {}", request.dockerfile_name));
        let vertex = definition.vertex();
        let mut input = frontend_request(request);
        input.context = main;
        let missing = Mutex::new(Vec::new());
        let mut answers = Answers::new();
        let mut definition = Some(definition);
        loop {
            let lowering = frontend::lower(&input, &answers);
            let warnings: &[Diagnostic] = match &lowering {
                Err(diagnostics) => diagnostics,
                Ok(Lowering::Done(lowered)) => &lowered.warnings,
                Ok(Lowering::Needs(_)) => &[],
            };
            for warning in warnings.iter().filter(|found| !found.is_error()) {
                sink.emit(Event::Warning(diagnostic_warning(warning, vertex.clone(), request)));
            }
            if let Some(work) = definition.take() {
                work.done(Ok::<(), &String>(()));
            }
            match lowering {
                Err(diagnostics) => {
                    let missing = missing.into_inner().unwrap_or_else(PoisonError::into_inner);
                    return Err(missing_images(&diagnostics, &missing, request)
                        .unwrap_or_else(|| diagnostics_error(&diagnostics, request)));
                }
                Ok(Lowering::Done(lowered)) => return Ok(lowered),
                Ok(Lowering::Needs(questions)) => {
                    let answer = |question| answer(question, request, early, images, &missing, sink);
                    answers.extend(try_join_all(questions.into_iter().map(answer)).await?);
                }
            }
        }
    }

    /// What the names of images in the Dockerfile stand for.
    pub(super) async fn lock(
        &self,
        mut request: BuildRequest,
        caller: Caller,
    ) -> Result<BTreeMap<String, Digest>, BuildError> {
        let sources = self.sources(&request, &caller)?;
        let quiet: Arc<dyn EventSink> = Arc::new(|_: Event| {});
        let early = Early { solver: &self.solver, ops: self.ops(&sources, &request, None), sink: &quiet };
        let main = early.open(&mut request).await?;
        self.lower(&request, main, &early, &sources.images, &quiet).await?;
        Ok(sources.images.resolved())
    }

    /// Names in the image store.
    pub(super) async fn images(&self) -> Result<Vec<ImageSummary>, BuildError> {
        let store = self.parts.store.clone();
        blocking(move || {
            let names = store.names().map_err(|error| StepError::store("cannot list images", &error))?;
            Ok(names
                .into_iter()
                .map(|name| ImageSummary {
                    name: name.reference,
                    descriptor: name.descriptor,
                    platforms: name.platforms,
                })
                .collect())
        })
        .await
    }

    /// Removes a name.
    pub(super) async fn remove_image(&self, name: String) -> Result<bool, BuildError> {
        let store = self.parts.store.clone();
        blocking(move || {
            let reference: Reference = name.parse().map_err(|error: build_engine_oci::InvalidReference| {
                StepError::new(ExitKind::Input, Report::new("invalid-reference", error.to_string()))
            })?;
            store.remove_name(&reference.or_latest()).map_err(|error| StepError::store("cannot remove a name", &error))
        })
        .await
    }

    /// Checks the store.
    pub(super) async fn verify(&self) -> Result<Vec<String>, BuildError> {
        let store = self.parts.store.clone();
        blocking(move || {
            let problems = store.verify().map_err(|error| StepError::store("cannot check the store", &error))?;
            Ok(problems
                .into_iter()
                .map(
                    |problem| if problem.repaired { format!("{} (dropped)", problem.message) } else { problem.message },
                )
                .collect())
        })
        .await
    }

    /// Frees space.
    pub(super) async fn prune(&self, all: bool) -> Result<u64, BuildError> {
        let store = self.parts.store.clone();
        blocking(move || {
            store.prune(all).map(|pruned| pruned.size_bytes).map_err(|error| StepError::store("cannot prune", &error))
        })
        .await
    }

    /// How the worker runs, and what it had to do without.
    pub(super) fn worker_info(&self) -> serde_json::Value {
        serde_json::json!({ "mode": self.mode, "notes": self.notes, "store": self.parts.store.root() })
    }

    /// Waits until no step of a cancelled build is left.
    pub(super) async fn idle(&self) {
        let all = u32::try_from(MAX_RUNNING).unwrap_or(u32::MAX);
        // Permits come back when the work that holds them is gone.
        drop(self.parts.running.acquire_many(all).await);
    }
}

/// Runs blocking work for a call.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StepError> + Send + 'static,
) -> Result<T, BuildError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| BuildError::internal(format!("a blocking task ended: {error}")))?
        .map_err(step_error)
}

pub(super) fn step_error(error: StepError) -> BuildError {
    BuildError::new(error.kind, *error.report)
}

pub(super) fn frontend_request(request: &BuildRequest) -> frontend::Request<'_> {
    let mut input = frontend::Request::new(&request.dockerfile, Platform::host());
    input.file_name.clone_from(&request.dockerfile_name);
    input.target.clone_from(&request.target);
    input.platforms.clone_from(&request.platforms);
    input.build_args.clone_from(&request.build_args);
    input.labels.clone_from(&request.labels);
    input.named_contexts =
        request.named_contexts.iter().map(|(name, source)| (name.clone(), context_text(source))).collect();
    input.no_cache = match &request.no_cache {
        NoCache::Off => frontend::NoCache::Off,
        NoCache::All => frontend::NoCache::All,
        NoCache::Stages(stages) => frontend::NoCache::Stages(stages.clone()),
    };
    input.network = request.network.into();
    input.extra_hosts.clone_from(&request.extra_hosts);
    input.ulimits = request.ulimits.iter().cloned().map(Into::into).collect();
    input.shm_size_bytes = request.shm_size_bytes;
    input.cgroup_parent.clone_from(&request.cgroup_parent);
    input.source_date_epoch = request.source_date_epoch;
    input.multi_platform = request.platforms.len() > 1;
    input
}

fn context_text(source: &ContextSource) -> String {
    match source {
        ContextSource::Local { path } => path.display().to_string(),
        ContextSource::OciLayout { path, tag, digest } => {
            let mut text = format!("oci-layout://{}", path.display());
            if let Some(tag) = tag {
                text = format!("{text}:{tag}");
            }
            if let Some(digest) = digest {
                text = format!("{text}@{digest}");
            }
            text
        }
        ContextSource::Image { reference } => format!("docker-image://{reference}"),
        ContextSource::Other { url } => url.clone(),
    }
}

/// What the sources of one build, or of one question, share.
pub(super) struct Sources {
    caller: Caller,
    pub(super) images: Arc<Images>,
    lease: Arc<Lease>,
    http: Arc<Http>,
    git: Arc<Git>,
}

impl Engine {
    /// Prepares to fetch what a request names.
    pub(super) fn sources(&self, request: &BuildRequest, caller: &Caller) -> Result<Sources, BuildError> {
        let lease =
            self.parts.store.lease().map_err(|error| step_error(StepError::store("cannot take a lease", &error)))?;
        let lease = Arc::new(lease);
        let http = Http::new(
            Arc::clone(&self.parts),
            caller.clone(),
            Arc::clone(&lease),
            request.allow_private_urls,
            request.uploads.clone(),
        );
        Ok(Sources {
            caller: caller.clone(),
            images: Arc::new(Images::new(Arc::clone(&self.parts.remote), policy(request))),
            http: Arc::new(http),
            git: Arc::new(Git::new(Arc::clone(&self.parts), Arc::clone(&lease))),
            lease,
        })
    }

    /// What executes the vertices of a request; without a graph, those that are fetched before there is one.
    pub(super) fn ops(&self, sources: &Sources, request: &BuildRequest, lowered: Option<&Lowered>) -> Arc<BuildOps> {
        Arc::new(BuildOps {
            parts: Arc::clone(&self.parts),
            images: Arc::clone(&sources.images),
            secrets: Arc::new(Secrets::new(sources.caller.clone())),
            secrets_in_layers: request.allow.contains(&Entitlement::SecretInLayer),
            caller: sources.caller.clone(),
            http: Arc::clone(&sources.http),
            git: Arc::clone(&sources.git),
            contexts: self.contexts(request),
            limits: limits(request),
            strict: request.isolation == Isolation::Strict,
            keep_failed: request.keep_failed,
            trees: Mutex::default(),
            fallbacks: Mutex::default(),
            shm_size_bytes: request.shm_size_bytes,
            lease: Arc::clone(&sources.lease),
            read_sources: lowered.map(read_sources).unwrap_or_default(),
            ahead: lowered.map(|lowered| Ahead::new(request, lowered)).unwrap_or_default(),
            fast_paths: request.fast_paths,
            unkeyed: Mutex::default(),
            aside: Mutex::default(),
            network_wanted: lowered.is_some_and(runs_in_default_network).into(),
        })
    }
}

impl Engine {
    /// See [`contexts`]; a build without context has an empty one.
    fn contexts(&self, request: &BuildRequest) -> BTreeMap<String, PathBuf> {
        let mut contexts = contexts(request);
        let empty = self.parts.store.layer_dirs(&build_engine_store::Snapshot::scratch());
        if let Some(empty) = empty.ok().and_then(|dirs| dirs.into_iter().next()) {
            contexts.entry("context".into()).or_insert(empty);
        }
        contexts
    }
}

/// The directories of local sources: the main context, the Dockerfile's own, and named ones.
fn contexts(request: &BuildRequest) -> BTreeMap<String, PathBuf> {
    let mut contexts = BTreeMap::new();
    for (name, source) in &request.named_contexts {
        if let ContextSource::Local { path } = source {
            contexts.insert(local_name(name), path.clone());
            contexts.insert(name.clone(), path.clone());
        }
    }
    if let Some(context) = &request.context {
        contexts.insert("context".into(), context.clone());
    }
    if let Some(folder) = request.dockerfile_path.as_deref().and_then(Path::parent) {
        contexts.insert("dockerfile".into(), folder.to_owned());
    }
    contexts
}

/// What the frontend calls the local source of a named context: the name as an image's is shortened.
fn local_name(name: &str) -> String {
    let bare = name.split_once("::").map_or(name, |(bare, _)| bare);
    match bare.parse::<Reference>() {
        Ok(reference) => {
            let familiar = reference.familiar();
            familiar.strip_suffix(":latest").map_or(familiar.clone(), str::to_owned)
        }
        Err(_) => bare.to_owned(),
    }
}

fn limits(request: &BuildRequest) -> sandbox::Limits {
    let resources = &request.resources;
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let memory = positive(resources.memory_bytes);
    sandbox::Limits {
        pids: None,
        memory_bytes: memory,
        swap: match (memory, resources.memory_swap_bytes) {
            (_, 0) => sandbox::Swap::None,
            (Some(memory), both) => match u64::try_from(both) {
                Ok(both) => sandbox::Swap::Bytes(both.saturating_sub(memory)),
                Err(_) => sandbox::Swap::Unlimited,
            },
            (None, _) => sandbox::Swap::Unlimited,
        },
        cpu_shares: (resources.cpu_shares > 0).then_some(resources.cpu_shares),
        cpu_period_micros: (resources.cpu_period > 0).then_some(resources.cpu_period),
        cpu_quota_micros: positive(resources.cpu_quota),
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
    }
}

pub(super) fn answer<'a>(
    question: Question,
    request: &'a BuildRequest,
    early: &'a Early<'_>,
    images: &'a Arc<Images>,
    missing: &'a Mutex<Vec<Report>>,
    sink: &'a Arc<dyn EventSink>,
) -> BoxFuture<'a, Result<(Question, Answer), BuildError>> {
    Box::pin(async move {
        let answer = match &question {
            Question::ImageConfig { source, platform } => {
                let name = source.identifier.split_once("://").map_or(source.identifier.as_str(), |(_, name)| name);
                let work = Work::start(sink, &format!("[internal] load metadata for {name}"));
                let result = images.resolve(&source.identifier, platform).await;
                work.done(result.as_ref().map(|_| ()));
                match result {
                    Ok(answer) => answer,
                    // Whether a stage was meant is for the frontend to see.
                    Err(error) if error.report.rule == UNKNOWN_IMAGE => {
                        let message = error.report.message.clone();
                        missing.lock().unwrap_or_else(PoisonError::into_inner).push(*error.report);
                        Answer::Failed(message)
                    }
                    Err(error) => return Err(image_error(error, &source.identifier, request)),
                }
            }
            Question::Time { identifier, attrs } => {
                Answer::Time(early.time(&context::source_of(identifier, attrs)).await?)
            }
            Question::File { context, path } => local_file(request, context, path),
        };
        Ok((question, answer))
    })
}

/// A small file of a local source.
pub(super) fn local_file(request: &BuildRequest, context: &str, path: &str) -> Answer {
    let root = contexts(request).get(context).cloned();
    match root.map(|root| read_small(&root.join(path))) {
        None => Answer::File(None),
        Some(Ok(bytes)) => Answer::File(bytes),
        Some(Err(error)) => Answer::Failed(error.to_string()),
    }
}

/// The error of a Dockerfile with nothing wrong but images that are not there; each says how to get it.
fn missing_images(diagnostics: &[Diagnostic], missing: &[Report], request: &BuildRequest) -> Option<BuildError> {
    let reports = diagnostics.iter().filter(|diagnostic| diagnostic.level == Level::Error).map(|diagnostic| {
        let report = missing.iter().find(|report| diagnostic.message.ends_with(&report.message));
        let unresolved = report.filter(|_| diagnostic.rule == "unresolved-image")?.clone();
        let place = Report::from_diagnostic(diagnostic, &request.dockerfile_name, &request.dockerfile).place;
        Some(unresolved.at(place))
    });
    let reports: Vec<Report> = reports.collect::<Option<_>>()?;
    (!reports.is_empty()).then_some(BuildError { kind: ExitKind::Source, reports })
}

/// Adds the place in the Dockerfile that named the image, where it can be found.
fn image_error(error: StepError, identifier: &str, request: &BuildRequest) -> BuildError {
    let mut report = *error.report;
    let wanted = identifier.strip_prefix("docker-image://").and_then(|name| name.parse::<Reference>().ok());
    let (parsed, _) = build_engine_dockerfile::parse(&request.dockerfile);
    let stage = parsed.stages.iter().find(|stage| {
        stage
            .base
            .value
            .parse::<Reference>()
            .is_ok_and(|base| Some(base.or_latest()) == wanted.clone().map(Reference::or_latest))
    });
    report.place = stage.map(|stage| {
        let span = stage.base.span.start..stage.base.span.end;
        Place::new(&request.dockerfile_name, &request.dockerfile, span)
    });
    BuildError::new(error.kind, report)
}

fn read_small(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    use std::io::Read;
    let file = match crate::context::open_regular(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX_IGNORE_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_IGNORE_FILE_BYTES {
        return Err(std::io::Error::other(format!("it has more than {MAX_IGNORE_FILE_BYTES} bytes")));
    }
    Ok(Some(bytes))
}

pub(super) fn diagnostics_error(diagnostics: &[Diagnostic], request: &BuildRequest) -> BuildError {
    let errors = diagnostics.iter().filter(|diagnostic| diagnostic.level == Level::Error);
    let mut reports: Vec<Report> = errors
        .map(|diagnostic| Report::from_diagnostic(diagnostic, &request.dockerfile_name, &request.dockerfile))
        .collect();
    if reports.is_empty() {
        reports.push(Report::new("internal", "the Dockerfile was refused without a reason"));
    }
    let limit = reports.iter().all(|report| report.rule == "limit");
    BuildError { kind: if limit { ExitKind::Limit } else { ExitKind::Input }, reports }
}

fn note_warning(note: &str) -> Warning {
    Warning {
        vertex: None,
        rule: String::new(),
        message: redact_url(note),
        detail: String::new(),
        url: String::new(),
        place: None,
    }
}

/// A warning about the text, which belongs to the vertex that stands for reading it.
fn diagnostic_warning(diagnostic: &Diagnostic, vertex: Digest, request: &BuildRequest) -> Warning {
    let lines = build_engine_dockerfile::LineIndex::new(&request.dockerfile);
    let is_placed = diagnostic.span != build_engine_dockerfile::Span::default();
    Warning {
        vertex: Some(vertex),
        rule: diagnostic.rule.to_string(),
        detail: diagnostic.detail.as_deref().map(redact_url).unwrap_or_default(),
        url: diagnostic.url.clone().unwrap_or_default(),
        place: is_placed.then(|| (request.dockerfile_name.clone(), lines.line(diagnostic.span.start))),
        ..note_warning(&diagnostic.message)
    }
}

/// Refuses, by name and place, what the graph asks for and the engine does not execute yet.
fn refuse_unsupported_vertices(lowered: &Lowered) -> Result<(), BuildError> {
    let mut reports = Vec::new();
    let mut seen = BTreeSet::new();
    let roots = lowered.results.iter().filter_map(|result| result.root.as_ref());
    walk(roots, |vertex| {
        for message in refusals(vertex) {
            let place = vertex.metadata().spans.first().map(Place::from);
            if seen.insert((message.clone(), place.as_ref().map(|place| place.start))) {
                reports.push(Report::new("unsupported", message).at(place));
            }
        }
    });
    if reports.is_empty() { Ok(()) } else { Err(BuildError { kind: ExitKind::Input, reports }) }
}

/// How names are resolved in a build.
pub(super) fn policy(request: &BuildRequest) -> Policy {
    Policy { pull: request.pull, lock: request.lock.clone(), locked: request.locked }
}

/// The images whose files some vertex reads, whatever else uses them.
fn read_sources(lowered: &Lowered) -> BTreeSet<Digest> {
    let mut found = BTreeSet::new();
    walk(lowered.results.iter().filter_map(|result| result.root.as_ref()), |vertex| {
        if matches!(vertex.op(), Op::Exec(_) | Op::File(_) | Op::Diff(_)) {
            let sources = vertex.inputs().iter().filter(|edge| matches!(edge.vertex.op(), Op::Source(_)));
            found.extend(sources.map(|edge| edge.vertex.digest().clone()));
        }
    });
    found
}

/// Whether a command may run for which the sandbox has to make a network.
fn runs_in_default_network(lowered: &Lowered) -> bool {
    let mut found = false;
    walk(lowered.results.iter().filter_map(|result| result.root.as_ref()), |vertex| {
        if let Op::Exec(exec) = vertex.op() {
            found |= exec.network == build_engine_graph::Network::Default;
        }
    });
    found
}

pub(super) fn refusals(vertex: &Vertex) -> Vec<String> {
    let mut found = Vec::new();
    match vertex.op() {
        Op::Source(source) => {
            let scheme = source.identifier.split_once("://").map_or("", |(scheme, _)| scheme);
            match scheme {
                "local" | "docker-image" | "oci-layout" => {}
                "http" | "https" | "git" => {}
                other => found.push(format!("sources of kind `{other}` are not supported")),
            }
        }
        Op::Exec(exec) => {
            found.extend(exec.devices.iter().filter(|device| !device.optional).map(entitled::no_device));
        }
        Op::Build(_) => found.push("a build inside the build is not supported".into()),
        Op::File(_) | Op::Merge(_) | Op::Diff(_) => {}
    }
    found
}

/// A failed vertex, with its place in the Dockerfile.
fn failed(failure: &Failure, lowered: &Lowered) -> BuildError {
    if failure.is_canceled() {
        return BuildError::cancelled();
    }
    let (kind, mut report) = match failure.error().downcast_ref::<StepError>() {
        Some(error) => (error.kind, (*error.report).clone()),
        None => (ExitKind::Internal, Report::new("internal", failure.chain())),
    };
    if report.place.is_none()
        && let Some(wanted) = failure.vertex()
    {
        report.place = place_of(wanted, lowered);
    }
    BuildError::new(kind, report)
}

/// A vertex that failed before the Dockerfile was known.
pub(super) fn failed_alone(failure: &Failure) -> BuildError {
    let nothing = Lowered {
        results: Vec::new(),
        warnings: Vec::new(),
        source: Arc::new(SourceFile { name: String::new(), text: String::new() }),
        local_contexts: BTreeSet::new(),
    };
    failed(failure, &nothing)
}

/// A failed vertex, with what can be found out about it: where a missing source is, what a failed command left.
async fn explained(
    failure: &Failure,
    lowered: &Lowered,
    ops: &Arc<BuildOps>,
    kept: Kept<'_>,
    sink: &Arc<dyn EventSink>,
) -> BuildError {
    let mut error = failed(failure, lowered);
    let detail = failure.error().downcast_ref::<StepError>().and_then(|error| error.detail.as_deref());
    let roots: Vec<_> = lowered.results.iter().filter_map(|result| result.root.clone()).collect();
    let mut vertex = None;
    walk(&roots, |one| {
        if Some(one.digest()) == failure.vertex() {
            vertex = Some(Arc::clone(one));
        }
    });
    let (Some(detail), Some(vertex), Some(report)) = (detail, vertex, error.reports.first_mut()) else { return error };
    match detail {
        Detail::Missing(missing) => {
            let (missing, first) = (missing.clone(), report.clone());
            let (ops, request) = (Arc::clone(ops), kept.request.clone());
            let explain = move || {
                let trees = ops.trees.lock().unwrap_or_else(PoisonError::into_inner);
                let known = Known { store: &ops.parts.store, request: &request, trees: &trees };
                Ok(missing::explain(first, &missing, &vertex, &roots, &known))
            };
            if let Ok(better) = blocking(explain).await {
                *report = better;
            }
        }
        Detail::Left(tree) => match kept.name(&vertex, tree.clone(), sink).await {
            Ok(name) => {
                let name = name.familiar();
                report.hint = Some(format!(
                    "what the step left is the image `{name}`: look at it with `build-engine run {name} COMMAND`, and drop it \
                     with `build-engine images rm {name}`"
                ));
            }
            Err(other) => error.reports.extend(other.reports),
        },
    }
    error
}

fn place_of(wanted: &Digest, lowered: &Lowered) -> Option<Place> {
    let mut place = None;
    walk(lowered.results.iter().filter_map(|result| result.root.as_ref()), |vertex| {
        if vertex.digest() == wanted {
            place = vertex.metadata().spans.first().map(Place::from);
        }
    });
    place
}

impl From<StepError> for BuildError {
    fn from(error: StepError) -> Self {
        step_error(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(dockerfile: &str, args: &[(&str, &str)]) -> BuildRequest {
        let mut request = crate::request::empty("test");
        request.dockerfile = dockerfile.to_owned();
        request.build_args = args.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        request
    }

    /// F1-044: what would be ignored is refused.
    #[test]
    fn settings_that_cannot_be_followed_are_refused_by_name() {
        let refused = |args: &[(&str, &str)]| unsupported(&request("", args)).len();
        assert_eq!(refused(&[("BUILDKIT_INLINE_CACHE", "1")]), 1);
        assert_eq!(refused(&[("BUILDKIT_INLINE_CACHE", "0")]), 0);
        assert_eq!(refused(&[("BUILDKIT_MULTI_PLATFORM", "true"), ("BUILDKIT_SANDBOX_HOSTNAME", "x")]), 0);
    }

    /// F1-044: a name for a list of builds that does not exist yet.
    #[test]
    fn f1_044_a_name_for_the_build_is_answered() {
        assert!(name_note(&request("", &[("BUILDKIT_BUILD_NAME", "x")])).is_some());
        assert!(name_note(&request("", &[("BUILDKIT_BUILD_NAME", "")])).is_none());
    }
}
