//! What the frontend is asked, what it asks back, and what it returns.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use build_engine_dockerfile::lint::{self, Linter};
use build_engine_dockerfile::{self as dockerfile, Diagnostic, Span};
use build_engine_graph::{Edge, Network, SourceFile, Ulimit};
use build_engine_oci::{Digest, ImageConfig, Platform};

use crate::args;
use crate::checks::{self, Checked, Checking};
use crate::convert::{Converted, Converter, Done, Settings};
use crate::outline::Outlining;
use crate::remote::MainContext;

/// A Dockerfile and what it is to be built with.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The text of the Dockerfile.
    pub source: &'a str,
    /// Its name, for places in messages. The last element with `.dockerignore` appended names its own ignore file.
    pub file_name: String,
    /// The stage to build, by name or number; the last one if `None`.
    pub target: Option<String>,
    /// What to build for, one result each; empty means the build platform, or what the base image is for.
    pub platforms: Vec<Platform>,
    /// What the build runs on.
    pub build_platform: Platform,
    /// Values for `ARG`s. Proxy variables reach every `RUN` without an `ARG`; `BUILDKIT_*` ones are settings.
    pub build_args: BTreeMap<String, String>,
    /// Labels set on the result, over those of the Dockerfile.
    pub labels: BTreeMap<String, String>,
    /// Contexts by name: `docker-image://REFERENCE`, `oci-layout://PATH[:TAG][@DIGEST]`, a git or http(s) URL, or
    /// anything else for a local directory, which the graph calls `local://NAME`. A name may end in `::PLATFORM`.
    pub named_contexts: BTreeMap<String, String>,
    /// Which stages must not use earlier results.
    pub no_cache: NoCache,
    /// Network of `RUN`s that do not choose one.
    pub network: Network,
    /// Additional lines of `/etc/hosts`: (name, address).
    pub extra_hosts: Vec<(String, String)>,
    /// Resource limits of `RUN`s.
    pub ulimits: Vec<Ulimit>,
    /// Size of `/dev/shm` in bytes; 0 means the default.
    pub shm_size_bytes: u64,
    /// Parent control group of `RUN`s; empty means the default.
    pub cgroup_parent: String,
    /// Host name in `RUN`s; empty means the default.
    pub hostname: String,
    /// `SOURCE_DATE_EPOCH` of the caller's environment, in seconds; a build argument of that name wins.
    pub source_date_epoch: Option<i64>,
    /// What the build context is.
    pub context: MainContext,
    /// Name of the main context's local source, `context` by custom.
    pub main_context: String,
    /// Whether the result is an index even for one platform; vertex names then say their platform.
    pub multi_platform: bool,
}

impl<'a> Request<'a> {
    /// A request with nothing but the text.
    pub fn new(source: &'a str, build_platform: Platform) -> Self {
        Self {
            source,
            file_name: "Dockerfile".into(),
            target: None,
            platforms: Vec::new(),
            build_platform,
            build_args: BTreeMap::new(),
            labels: BTreeMap::new(),
            named_contexts: BTreeMap::new(),
            no_cache: NoCache::Off,
            network: Network::Default,
            extra_hosts: Vec::new(),
            ulimits: Vec::new(),
            shm_size_bytes: 0,
            cgroup_parent: String::new(),
            hostname: String::new(),
            source_date_epoch: None,
            context: MainContext::Local,
            main_context: "context".into(),
            multi_platform: false,
        }
    }
}

/// Which stages must not use earlier results (`--no-cache`, `--no-cache-filter`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NoCache {
    /// None.
    #[default]
    Off,
    /// All.
    All,
    /// Those with these names.
    Stages(Vec<String>),
}

impl NoCache {
    pub(crate) fn covers(&self, stage: Option<&str>) -> bool {
        match self {
            Self::Off => false,
            Self::All => true,
            Self::Stages(names) => stage.is_some_and(|stage| names.iter().any(|name| name.eq_ignore_ascii_case(stage))),
        }
    }
}

/// Something that the frontend must know before it can go on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Question {
    /// The config of an image, and the digest that the name stands for now.
    ImageConfig {
        /// Which image.
        source: ImageSource,
        /// For which platform.
        platform: Platform,
    },
    /// The content of a small file.
    File {
        /// Name of the local source: the main context's, `dockerfile` for the folder that the Dockerfile is in, or a
        /// named context.
        context: String,
        /// Path within it.
        path: String,
    },
    /// When a source was made: the commit of a repository, the last change of a file, the newest file in an archive.
    Time {
        /// The identifier of its operation.
        identifier: String,
        /// The attributes of its operation.
        attrs: BTreeMap<String, String>,
    },
}

/// An image by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageSource {
    /// `docker-image://docker.io/library/alpine:3.20`, normalised, or `oci-layout://…` as the caller gave it.
    pub identifier: String,
}

/// What is known about a [`Question`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// An image was found.
    ImageConfig {
        /// The image that was asked for, with or without scheme and digest; it may be another name where a policy
        /// replaced it.
        identifier: String,
        /// Digest of its manifest or index: what the name stands for.
        digest: Digest,
        /// Its config document, for the platform that was asked for.
        config: Vec<u8>,
    },
    /// A file was looked for; `None` if there is none.
    File(Option<Vec<u8>>),
    /// When a source was made, in seconds since 1970; `None` where it does not say.
    Time(Option<i64>),
    /// It could not be found out, and why.
    Failed(String),
}

/// What is known so far.
pub type Answers = BTreeMap<Question, Answer>;

/// Where [`lower`] got to.
#[derive(Debug)]
pub enum Lowering {
    /// It needs these answers; they do not depend on one another.
    Needs(Vec<Question>),
    /// It is done.
    Done(Lowered),
}

/// A Dockerfile as a graph.
#[derive(Debug)]
pub struct Lowered {
    /// One result per platform, in the order asked for.
    pub results: Vec<PlatformResult>,
    /// What a person should know but what does not stop the build.
    pub warnings: Vec<Diagnostic>,
    /// The text that the vertices' spans point into.
    pub source: Arc<SourceFile>,
    /// Names of the `local://` sources in the graph.
    pub local_contexts: BTreeSet<String>,
}

/// The result for one platform.
#[derive(Debug)]
pub struct PlatformResult {
    /// What it was asked to be for. What it says it is for stands in `image`.
    pub platform: Platform,
    /// The file tree; `None` if it is empty.
    pub root: Option<Edge>,
    /// The config, with the history of base and instructions. Its list of layers is empty: there are none yet. An item
    /// whose `empty_layer` is false stands for one layer each, in order, those of the base first.
    pub image: ImageConfig,
    /// The image that the target's stages start from, if it is one.
    pub base: Option<BaseImage>,
    /// `SOURCE_DATE_EPOCH` in seconds, where it was set.
    pub epoch: Option<i64>,
}

/// A base image.
#[derive(Debug, Clone)]
pub struct BaseImage {
    /// Its source identifier, pinned to a digest.
    pub identifier: String,
    /// Digest of its manifest or index.
    pub digest: Digest,
    /// Its config as it was found.
    pub image: ImageConfig,
    /// The source vertex; `None` if the image has no layers.
    pub edge: Option<Edge>,
}

/// Turns a Dockerfile into a graph, or says what it must know first.
///
/// # Errors
/// The mistakes found in the Dockerfile, the request and the answers, at least one of them an error; warnings come along.
/// With `error=true` among the options of the checks, warnings of theirs are such a mistake.
pub fn lower(request: &Request<'_>, answers: &Answers) -> Result<Lowering, Vec<Diagnostic>> {
    let mut run = Run::new(request);
    match run.convert(answers, Purpose::Build) {
        Some(questions) if run.errors.is_empty() => return Ok(Lowering::Needs(questions)),
        _ => {}
    }
    let Run { mut warnings, mut errors, linter, done, source, .. } = run;
    let linter = linter.into_inner();
    warnings.extend(linter.found().iter().cloned());
    if errors.is_empty() {
        errors.extend(linter.violation());
    }
    if !errors.is_empty() {
        warnings.extend(errors);
        return Err(warnings);
    }
    let mut local_contexts = BTreeSet::new();
    let mut used_args = BTreeSet::new();
    let mut results = Vec::new();
    for done in done {
        local_contexts.extend(done.local_contexts);
        used_args.extend(done.declared_args);
        results.push(done.result);
    }
    warnings.extend(args::unused(&request.build_args, &used_args));
    let source = source.unwrap_or_else(|| Arc::new(SourceFile { name: String::new(), text: String::new() }));
    Ok(Lowering::Done(Lowered { results, warnings, source, local_contexts }))
}

/// Checks a Dockerfile, all stages of it unless the request names a target. What is wrong is part of the result: the
/// checks say what they can about any text.
pub fn check(request: &Request<'_>, answers: &Answers) -> Checking {
    let mut run = Run::new(request);
    match run.convert(answers, Purpose::Check) {
        Some(questions) if run.errors.is_empty() => return Checking::Needs(questions),
        _ => {}
    }
    let Run { mut warnings, mut errors, linter, done, .. } = run;
    let linter = linter.into_inner();
    warnings.extend(linter.found().iter().cloned());
    if errors.is_empty() {
        errors.extend(linter.violation());
    }
    let roots = done.into_iter().flat_map(|done| done.result.root.into_iter().chain(done.further)).collect();
    Checking::Done(Checked { warnings, errors, roots })
}

/// Says what can be set in a build of the request's target.
///
/// # Errors
/// As [`lower`].
pub fn outline(request: &Request<'_>, answers: &Answers) -> Result<Outlining, Vec<Diagnostic>> {
    let mut run = Run::new(request);
    match run.convert(answers, Purpose::Outline) {
        Some(questions) if run.errors.is_empty() => return Ok(Outlining::Needs(questions)),
        _ => {}
    }
    match run.done.into_iter().next() {
        Some(done) if run.errors.is_empty() => Ok(Outlining::Done(Box::new(done.outline))),
        _ => Err(run.errors),
    }
}

/// What a conversion is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Build,
    Check,
    Outline,
}

/// One conversion of all platforms, as far as it got.
struct Run<'a> {
    request: &'a Request<'a>,
    warnings: Vec<Diagnostic>,
    errors: Vec<Diagnostic>,
    linter: RefCell<Linter>,
    done: Vec<Done>,
    source: Option<Arc<SourceFile>>,
}

impl<'a> Run<'a> {
    fn new(request: &'a Request<'a>) -> Self {
        Self {
            request,
            warnings: Vec::new(),
            errors: Vec::new(),
            linter: RefCell::default(),
            done: Vec::new(),
            source: None,
        }
    }

    /// Converts; returns what must be known first.
    fn convert(&mut self, answers: &Answers, purpose: Purpose) -> Option<Vec<Question>> {
        let request = self.request;
        let (parsed, found) = dockerfile::parse(request.source);
        match checks::options(&parsed, request.build_args.get("BUILDKIT_DOCKERFILE_CHECK")) {
            Ok(options) => {
                self.linter = RefCell::new(Linter::new(options));
                lint::check_text(&parsed, &found, self.linter.get_mut());
            }
            // What is to be checked is not known.
            Err(error) => self.errors.push(*error),
        }
        for diagnostic in found {
            if diagnostic.is_error() {
                self.errors.push(diagnostic);
            } else if diagnostic.rule != lint::rules::NO_EMPTY_CONTINUATION.name {
                self.warnings.push(diagnostic);
            }
        }
        if parsed.stages.is_empty() && self.errors.is_empty() {
            self.errors.push(
                Diagnostic::error("no-stage", "the Dockerfile has no stage to build", Span::default())
                    .with_hint("a stage begins with FROM; `FROM scratch` starts from nothing"),
            );
        }
        if !self.errors.is_empty() {
            return None;
        }
        let settings = match Settings::new(request, &parsed) {
            Ok(settings) => settings,
            Err(error) => {
                self.errors.push(*error);
                return None;
            }
        };
        let mut questions: BTreeSet<Question> = BTreeSet::new();
        let mut platforms: Vec<Option<Platform>> = request.platforms.iter().cloned().map(Some).collect();
        if platforms.is_empty() {
            platforms.push(None);
        }
        if purpose != Purpose::Build {
            platforms.truncate(1);
        }
        for (index, platform) in platforms.into_iter().enumerate() {
            let mut converter = Converter::new(&settings, &parsed, answers, platform);
            match purpose {
                // The other platforms would say the same again.
                Purpose::Build if index == 0 => converter = converter.checking(&self.linter, false),
                Purpose::Build => {}
                Purpose::Check => converter = converter.checking(&self.linter, true),
                Purpose::Outline => converter = converter.outlining(),
            }
            match converter.convert() {
                Converted::Needs(asked) => questions.extend(asked),
                Converted::Failed(found) => {
                    // Most mistakes are the same for every platform.
                    let new: Vec<Diagnostic> = found.into_iter().filter(|error| !self.errors.contains(error)).collect();
                    self.errors.extend(new);
                }
                Converted::Done(done) => self.done.push(*done),
            }
        }
        self.source = Some(settings.file);
        (!questions.is_empty()).then(|| questions.into_iter().collect())
    }
}
