//! Where files come from outside of images: the build context and named contexts.

use std::collections::BTreeMap;

use build_engine_dockerfile::ignore::Ignore;
use build_engine_dockerfile::{Diagnostic, Span};
use build_engine_graph::{Metadata, Op, SourceOp};
use build_engine_oci::{Platform, Reference};

use crate::convert::{Converter, parse_reference};
use crate::draft::{Output, State};
use crate::name::format_platform;
use crate::remote::{self, MainContext};
use crate::request::{Answer, ImageSource, Question};
use crate::stage::{self, Base};
use crate::{env, git, gotext, paths};

/// Name of the local source that holds the Dockerfile.
const DOCKERFILE_CONTEXT: &str = "dockerfile";
const IGNORE_FILE: &str = ".dockerignore";

/// A named context that takes the place of a stage or an image.
#[derive(Debug, Clone)]
pub(crate) struct NamedContext {
    /// The name of the stage or image that it replaces.
    name: String,
    /// The name it was found under, which may end in a platform.
    key: String,
    /// The name that the request gave it; the graph calls its local source so.
    given: String,
    kind: Kind,
    platform: Platform,
}

#[derive(Debug, Clone)]
enum Kind {
    Scratch,
    Image { given: String, reference: Reference },
    OciLayout { given: String, store: String },
    Git(Box<git::GitRef>),
    Http(String),
    Local,
}

impl NamedContext {
    /// The source that it is fetched with, if it is a repository or a file of the web.
    pub(crate) fn fetched(&self) -> Option<SourceOp> {
        match &self.kind {
            Kind::Git(git) => Some(git.source()),
            Kind::Http(url) => {
                Some(SourceOp { identifier: url.clone(), attrs: remote::file_attributes("context", None) })
            }
            Kind::Scratch | Kind::Image { .. } | Kind::OciLayout { .. } | Kind::Local => None,
        }
    }
}

/// What a named context holds.
pub(crate) struct Loaded {
    pub(crate) state: State,
    pub(crate) image: Option<build_engine_oci::ImageConfig>,
    pub(crate) base: Option<Base>,
}

/// Named contexts under their normalised names.
#[derive(Debug)]
pub(crate) struct NamedContexts {
    /// The name and the value as given, by normalised name.
    by_name: BTreeMap<String, (String, String)>,
}

impl NamedContexts {
    pub(crate) fn new(given: &BTreeMap<String, String>) -> Self {
        let by_name = given.iter().map(|(name, value)| {
            let (bare, platform) = name.split_once("::").map_or((name.as_str(), None), |(bare, p)| (bare, Some(p)));
            let mut key = normal_name(bare).unwrap_or_else(|| bare.to_owned());
            if let Some(platform) = platform {
                key.push_str("::");
                key.push_str(platform);
            }
            (key, (name.clone(), value.clone()))
        });
        Self { by_name: by_name.collect() }
    }

    /// Finds the context that replaces the stage or image `name` on `platform`.
    pub(crate) fn find(&self, name: &str, platform: &Platform) -> Result<Option<NamedContext>, String> {
        if name.eq_ignore_ascii_case("scratch") || name.eq_ignore_ascii_case("context") {
            return Ok(None);
        }
        let Some(name) = normal_name(name) else { return Ok(None) };
        let special = format!("{name}::{}", format_platform(&platform.normalize()));
        let Some((key, (given, value))) =
            self.by_name.get_key_value(&special).or_else(|| self.by_name.get_key_value(&name))
        else {
            return Ok(None);
        };
        let kind = parse(value).map_err(|reason| format!("invalid build context `{key}`: {reason}"))?;
        Ok(Some(NamedContext { name, key: key.clone(), given: given.clone(), kind, platform: platform.clone() }))
    }
}

/// `alpine:latest`, `docker.io/library/alpine` and `alpine` are one name. `None` if no image could have it.
fn normal_name(name: &str) -> Option<String> {
    let familiar = name.parse::<Reference>().ok()?.familiar();
    Some(familiar.strip_suffix(":latest").map_or(familiar.clone(), str::to_owned))
}

fn parse(value: &str) -> Result<Kind, String> {
    if let Some(given) = value.strip_prefix("docker-image://") {
        if given == "scratch" {
            return Ok(Kind::Scratch);
        }
        let reference = parse_reference(given)?.or_latest();
        return Ok(Kind::Image { given: given.to_owned(), reference });
    }
    if let Some(rest) = value.strip_prefix("oci-layout://") {
        let path = rest.split_once('@').map_or(rest, |(path, _)| path);
        let slash = path.rfind('/').map_or(0, |slash| slash + 1);
        let store = path[slash..].find(':').map_or(path, |colon| &path[..slash + colon]);
        if store.is_empty() {
            return Err(format!("`{value}` names no folder"));
        }
        return Ok(Kind::OciLayout { given: value.to_owned(), store: store.to_owned() });
    }
    if let Some(git) = git::parse(value)? {
        return Ok(Kind::Git(Box::new(git)));
    }
    if value.starts_with("http://") || value.starts_with("https://") {
        return Ok(Kind::Http(value.to_owned()));
    }
    match value.split_once("://") {
        Some((scheme, _)) if scheme != "local" && scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') => {
            Err(format!("unsupported kind of context `{scheme}`"))
        }
        _ => Ok(Kind::Local),
    }
}

impl<'a> Converter<'a> {
    /// Loads a named context. `None` if a question must be answered first, or if an error was reported.
    pub(crate) fn load_context(&mut self, context: &NamedContext, span: Span, used_paths: usize) -> Option<Loaded> {
        let named = |text: &str| Metadata { name: format!("[context {}] {text}", context.key), ..Metadata::default() };
        let bare = |state| Some(Loaded { state, image: None, base: None });
        match &context.kind {
            Kind::Scratch => bare(State::scratch()),
            Kind::Image { given, reference } => {
                let identifier = format!("docker-image://{reference}");
                let found = self.image_config(&identifier, &context.platform, span)?;
                let pinned = self.pin(&found.0, reference, &found.1, span)?;
                let source = SourceOp { identifier: format!("docker-image://{pinned}"), ..SourceOp::default() };
                let metadata = named(given);
                Some(self.context_image(source, found, &context.platform, metadata))
            }
            Kind::OciLayout { given, store } => {
                let found = self.image_config(given, &context.platform, span)?;
                let name = self.report(parse_reference(&context.name), "invalid-reference", span)?;
                let source = SourceOp {
                    identifier: format!("oci-layout://{}", name.with_digest(found.1.clone())),
                    attrs: [("oci.store".to_owned(), store.clone())].into(),
                };
                Some(self.context_image(source, found, &context.platform, named("OCI load from client")))
            }
            Kind::Git(git) => {
                let metadata = Metadata {
                    name: format!("[internal] load git source {}", git::without_user(&git.remote)),
                    ..Metadata::default()
                };
                bare(State::of(self.draft.add(Op::Source(git.source()), Vec::new(), None, metadata)))
            }
            Kind::Http(url) => {
                let attrs = [("http.filename".to_owned(), "context".to_owned())].into();
                let op = Op::Source(SourceOp { identifier: url.clone(), attrs });
                bare(State::of(self.draft.add(op, Vec::new(), None, named(&git::without_user(url)))))
            }
            Kind::Local => {
                let question = Question::File { context: context.given.clone(), path: IGNORE_FILE.into() };
                let patterns = match self.answer(question) {
                    None => return None,
                    Some(Answer::File(Some(text))) => self.patterns(text, IGNORE_FILE),
                    Some(_) => Vec::new(),
                };
                let source = self.local(
                    &context.given,
                    &format!("context:{}-", context.key),
                    &patterns,
                    named("load from client"),
                );
                self.named_locals.push((source, used_paths));
                bare(State::of(source))
            }
        }
    }

    fn context_image(
        &mut self,
        source: SourceOp,
        (_, digest, image): (String, build_engine_oci::Digest, build_engine_oci::ImageConfig),
        platform: &Platform,
        metadata: Metadata,
    ) -> Loaded {
        let identifier = source.identifier.clone();
        let tree = (!stage::is_layerless(&image))
            .then(|| self.draft.add(Op::Source(source), Vec::new(), Some(platform.clone()), metadata));
        let mut state = State { tree, ..State::scratch() };
        for pair in &image.config.env {
            let (name, value) = env::split(pair);
            if !name.is_empty() {
                state.env.set(name, value);
            }
        }
        state.dir = paths::absolute("/", &image.config.working_dir);
        state.platform = stage::stated_platform(&image).or_else(|| Some(platform.clone()));
        let base = Base { identifier, digest, image: image.clone(), source: tree };
        Loaded { state, image: Some(image), base: Some(base) }
    }

    /// The build context. Its used paths are filled in at the end.
    pub(crate) fn main_context(&mut self) -> State {
        let request = self.settings.request;
        let source = match self.main_local {
            Some(source) => source,
            None if request.context != MainContext::Local => {
                let added = remote::add(&mut self.draft, &request.context, request);
                let Some(source) = self.report(added, "context", Span::default()).flatten() else {
                    return State::scratch();
                };
                self.main_local = Some(source);
                source
            }
            None => {
                let patterns = self.ignore_patterns().unwrap_or_default();
                let name = self.settings.request.main_context.clone();
                let metadata = Metadata { name: "[internal] load build context".into(), ..Metadata::default() };
                let source = self.local(&name, &name, &patterns, metadata);
                self.main_local = Some(source);
                source
            }
        };
        State::of(source)
    }

    fn local(&mut self, name: &str, shared_key: &str, patterns: &[String], metadata: Metadata) -> Output {
        let mut attrs: BTreeMap<String, String> = [("local.sharedkeyhint".to_owned(), shared_key.to_owned())].into();
        if !patterns.is_empty() {
            attrs.insert("local.excludepatterns".into(), gotext::json_list(patterns));
        }
        let op = Op::Source(SourceOp { identifier: format!("local://{name}"), attrs });
        let source = self.draft.add(op, Vec::new(), None, metadata);
        self.locals.push((name.to_owned(), source));
        source
    }

    /// What the build context leaves out. `None` if the ignore files must be read first.
    pub(crate) fn ignore_patterns(&mut self) -> Option<Vec<String>> {
        let own = format!("{}{IGNORE_FILE}", paths::base(&self.settings.request.file_name));
        let main = self.settings.request.main_context.clone();
        let special = self.answer(Question::File { context: DOCKERFILE_CONTEXT.into(), path: own.clone() });
        let general = self.answer(Question::File { context: main, path: IGNORE_FILE.into() });
        match (special?, general?) {
            (Answer::File(Some(text)), _) => Some(self.patterns(text, &own)),
            (_, Answer::File(Some(text))) => Some(self.patterns(text, IGNORE_FILE)),
            (_, Answer::Failed(reason)) => {
                let message = format!("cannot read `{IGNORE_FILE}` of the build context: {reason}");
                self.error(Diagnostic::error("context", message, Span::default()));
                Some(Vec::new())
            }
            _ => Some(Vec::new()),
        }
    }

    fn patterns(&mut self, text: &[u8], file: &str) -> Vec<String> {
        match Ignore::parse(&String::from_utf8_lossy(text)) {
            Ok(ignore) => ignore.patterns().to_vec(),
            Err(error) => {
                let message = format!("invalid pattern in `{file}`: {error}");
                self.error(Diagnostic::error("invalid-ignore-file", message, Span::default()));
                Vec::new()
            }
        }
    }

    /// Writes the used paths into the local sources, so that no others are looked at.
    pub(crate) fn set_followed_paths(&mut self) {
        let mut locals: Vec<(Output, Option<String>)> = Vec::new();
        for (source, used) in &self.named_locals {
            locals.push((*source, followed(&self.used_paths[*used])));
        }
        if let Some(source) = self.main_local.filter(|_| self.settings.request.context == MainContext::Local) {
            locals.push((source, followed(&self.context_paths)));
        }
        for (source, list) in locals {
            if let Some(list) = list {
                self.draft.set_attribute(source, "local.followpaths", list);
            }
        }
    }

    /// Records that `path` of a tree is used.
    pub(crate) fn use_path(&mut self, used: Option<usize>, path: &str) {
        let path = paths::join("/", path);
        match used {
            Some(set) => self.used_paths[set].insert(path),
            None => self.context_paths.insert(path),
        };
    }

    /// Asks for the config of an image.
    pub(crate) fn image_config(
        &mut self,
        identifier: &str,
        platform: &Platform,
        span: Span,
    ) -> Option<(String, build_engine_oci::Digest, build_engine_oci::ImageConfig)> {
        let source = ImageSource { identifier: identifier.to_owned() };
        match self.answer(Question::ImageConfig { source, platform: platform.clone() })? {
            Answer::ImageConfig { identifier, digest, config } => match stage::parse_config(config) {
                Ok(image) => Some((identifier.clone(), digest.clone(), image)),
                Err(error) => {
                    let message = format!("the config of `{identifier}` cannot be read: {error}");
                    self.error(Diagnostic::error("invalid-image", message, span));
                    None
                }
            },
            Answer::Failed(reason) => {
                let shown = identifier.strip_prefix("docker-image://").unwrap_or(identifier);
                let message = format!("cannot use `{shown}`: {reason}");
                self.error(Diagnostic::error("unresolved-image", message, span));
                None
            }
            Answer::File(_) | Answer::Time(_) => {
                let message = format!("no config was given for `{identifier}`");
                self.error(Diagnostic::error("unresolved-image", message, span));
                None
            }
        }
    }
}

/// The attribute's value, or nothing where everything is used.
fn followed(used: &std::collections::BTreeSet<String>) -> Option<String> {
    if used.is_empty() || used.contains("/") {
        return None;
    }
    let list: Vec<String> = used.iter().map(|path| path.trim_start_matches('/').to_owned()).collect();
    Some(gotext::json_list(&list))
}
