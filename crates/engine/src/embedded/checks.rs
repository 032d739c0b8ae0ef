//! Questions about a Dockerfile that build nothing: checks, outlines and graphs.
//!
//! The frontend finds; this module answers its questions, as for a build (inside the worker, where images can be resolved
//! and a Dockerfile can be fetched; no step is executed) or without a store, a network and a worker: then a base image is taken to set `PATH` and nothing else.

use std::sync::Arc;

use build_engine_dockerfile::{Diagnostic, LineIndex, Span, has_errors, lint};
use build_engine_frontend::{
    self as frontend, Answer, Answers, Checked, Checking, Lowering, MainContext, Outlining, Question,
};
use build_engine_graph::{Edge, Event, EventSink, llb, redact_url, walk};
use build_engine_oci::{Digest, Platform};

use super::build::{self, Engine, Sources};
use super::context::Early;
use super::face::Caller;
use super::ops::BuildOps;
use super::syntax;
use crate::checks::{CheckResult, DockerfileText, Finding, Outline, OutlineArg, OutlineNeed};
use crate::{BuildError, BuildRequest, ExitKind, Place, Report};

/// What a base image is taken to set where none is asked.
const ASSUMED_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Engine {
    /// Checks a request's Dockerfile; bases are resolved as for a build.
    pub(super) async fn check(&self, mut request: BuildRequest, caller: Caller) -> Result<CheckResult, BuildError> {
        let asking = Asking::new(self, &mut request, &caller).await?;
        let input = asking.input(&request);
        let mut answers = Answers::new();
        loop {
            match frontend::check(&input, &answers) {
                Checking::Done(checked) => return Ok(result(checked, &request)),
                Checking::Needs(questions) => answers.extend(asking.answer(questions, &request).await?),
            }
        }
    }

    /// Says what can be set in a build of the request.
    pub(super) async fn outline(&self, mut request: BuildRequest, caller: Caller) -> Result<Outline, BuildError> {
        let asking = Asking::new(self, &mut request, &caller).await?;
        let input = asking.input(&request);
        let mut answers = Answers::new();
        loop {
            match frontend::outline(&input, &answers) {
                Err(errors) => return Err(build::diagnostics_error(&errors, &request)),
                Ok(Outlining::Done(found)) => return Ok(outline(*found, &request)),
                Ok(Outlining::Needs(questions)) => answers.extend(asking.answer(questions, &request).await?),
            }
        }
    }

    /// The graph of a request's target, for the first platform asked for.
    pub(super) async fn graph(
        &self,
        mut request: BuildRequest,
        caller: Caller,
    ) -> Result<serde_json::Value, BuildError> {
        request.platforms.truncate(1);
        let asking = Asking::new(self, &mut request, &caller).await?;
        let input = asking.input(&request);
        let mut answers = Answers::new();
        loop {
            match frontend::lower(&input, &answers) {
                Err(errors) => return Err(build::diagnostics_error(&errors, &request)),
                Ok(Lowering::Done(lowered)) => {
                    let roots: Vec<Edge> = lowered.results.into_iter().filter_map(|result| result.root).collect();
                    return Ok(llb::definition_json(&roots));
                }
                Ok(Lowering::Needs(questions)) => answers.extend(asking.answer(questions, &request).await?),
            }
        }
    }

    /// Returns a request's Dockerfile, fetched where it has to be.
    pub(super) async fn dockerfile(
        &self,
        mut request: BuildRequest,
        caller: Caller,
    ) -> Result<DockerfileText, BuildError> {
        Asking::new(self, &mut request, &caller).await?;
        Ok(text_of(&request))
    }
}

/// What a question is answered with: the means of a build, of which nothing is seen.
struct Asking<'a> {
    engine: &'a Engine,
    sources: Sources,
    ops: Arc<BuildOps>,
    quiet: Arc<dyn EventSink>,
    main: MainContext,
}

impl<'a> Asking<'a> {
    /// Fetches what `request` does not have: its Dockerfile, and what its context is.
    async fn new(engine: &'a Engine, request: &mut BuildRequest, caller: &Caller) -> Result<Self, BuildError> {
        let sources = engine.sources(request, caller)?;
        let ops = engine.ops(&sources, request, None);
        let quiet: Arc<dyn EventSink> = Arc::new(|_: Event| {});
        let mut asking = Self { engine, sources, ops, quiet, main: MainContext::Local };
        asking.main = asking.early().open(request).await?;
        Ok(asking)
    }

    fn early(&self) -> Early<'_> {
        Early { solver: &self.engine.solver, ops: Arc::clone(&self.ops), sink: &self.quiet }
    }

    fn input<'r>(&self, request: &'r BuildRequest) -> frontend::Request<'r> {
        let mut input = build::frontend_request(request);
        input.context = self.main.clone();
        input
    }

    async fn answer(
        &self,
        questions: Vec<Question>,
        request: &BuildRequest,
    ) -> Result<Vec<(Question, Answer)>, BuildError> {
        let (early, missing) = (self.early(), std::sync::Mutex::default());
        let answer = |question| build::answer(question, request, &early, &self.sources.images, &missing, &self.quiet);
        futures::future::try_join_all(questions.into_iter().map(answer)).await
    }
}

fn text_of(request: &BuildRequest) -> DockerfileText {
    DockerfileText { name: request.dockerfile_name.clone(), text: request.dockerfile.clone() }
}

/// Checks a request's Dockerfile without a store, a network and a worker: a base is taken to set `PATH` alone, and to be
/// for the platform that was asked for. Reads nothing but the ignore files.
pub fn check_offline(request: &BuildRequest) -> CheckResult {
    let input = build::frontend_request(request);
    let mut answers = Answers::new();
    loop {
        match frontend::check(&input, &answers) {
            Checking::Done(checked) => return result(checked, request),
            Checking::Needs(questions) => {
                answers.extend(questions.into_iter().map(|question| assume(question, request)));
            }
        }
    }
}

/// Says what can be set in a build, under the assumptions of [`check_offline`].
///
/// # Errors
/// What is wrong with the Dockerfile.
pub fn outline_offline(request: &BuildRequest) -> Result<Outline, BuildError> {
    let input = build::frontend_request(request);
    let mut answers = Answers::new();
    loop {
        match frontend::outline(&input, &answers) {
            Err(errors) => return Err(build::diagnostics_error(&errors, request)),
            Ok(Outlining::Done(found)) => return Ok(outline(*found, request)),
            Ok(Outlining::Needs(questions)) => {
                answers.extend(questions.into_iter().map(|question| assume(question, request)));
            }
        }
    }
}

fn assume(question: Question, request: &BuildRequest) -> (Question, Answer) {
    let answer = match &question {
        Question::ImageConfig { source, platform } => Answer::ImageConfig {
            identifier: source.identifier.clone(),
            digest: Digest::sha256(source.identifier.as_bytes()),
            config: assumed_config(platform),
        },
        Question::File { context, path } => build::local_file(request, context, path),
        Question::Time { .. } => Answer::Time(None),
    };
    (question, answer)
}

fn assumed_config(platform: &Platform) -> Vec<u8> {
    let mut config = serde_json::json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": { "Env": [ASSUMED_PATH] },
        "rootfs": { "type": "layers", "diff_ids": [Digest::sha256(b"").to_string()] },
        "history": [{ "created_by": "assumed" }],
    });
    if let Some(variant) = &platform.variant {
        config["variant"] = variant.as_str().into();
    }
    config.to_string().into_bytes()
}

fn result(checked: Checked, request: &BuildRequest) -> CheckResult {
    let Checked { warnings, mut errors, roots } = checked;
    if let Err(refused) = syntax::requested(request) {
        errors.splice(0..0, refused.reports.into_iter().map(as_diagnostic));
    }
    let lines = LineIndex::new(&request.dockerfile);
    let mut unsupported = Vec::new();
    if !has_errors(&errors) {
        walk(&roots, |vertex| {
            for message in build::refusals(vertex) {
                let span = vertex.metadata().spans.first();
                let span = span.map_or(Span::default(), |span| Span::new(span.bytes.start, span.bytes.end));
                let error = Diagnostic::error("unsupported", message, span);
                if !unsupported.contains(&error) {
                    unsupported.push(error);
                }
            }
        });
    }
    let limit = errors.iter().any(|error| error.rule == "limit");
    let kind = if limit { ExitKind::Limit } else { ExitKind::Input };
    let finding = |found: Diagnostic| finding(found, &lines, request);
    CheckResult {
        dockerfile: text_of(request),
        kind,
        warnings: warnings.into_iter().map(finding).collect(),
        errors: errors.into_iter().map(finding).collect(),
        unsupported: unsupported.into_iter().map(finding).collect(),
    }
}

fn as_diagnostic(report: Report) -> Diagnostic {
    let span = report.place.map_or(Span::default(), |place| Span::new(place.start, place.end));
    let error = Diagnostic::error("unsupported", report.message, span);
    Diagnostic { hint: report.hint, ..error }
}

fn finding(found: Diagnostic, lines: &LineIndex<'_>, request: &BuildRequest) -> Finding {
    // What is not about a place, such as a build argument, has the empty span at the start.
    let is_placed = found.span != Span::default();
    let (start, end) = line_range(found.span, lines);
    Finding {
        rule: found.rule.to_owned(),
        is_rule: lint::Rule::named(found.rule).is_some(),
        message: redact_url(&found.message),
        description: found.detail.unwrap_or_default(),
        url: found.url.unwrap_or_default(),
        hint: found.hint.as_deref().map(redact_url),
        lines: is_placed.then_some((start, end)),
        place: is_placed
            .then(|| Place::new(&request.dockerfile_name, &request.dockerfile, found.span.start..found.span.end)),
    }
}

/// First and last line of a span.
pub(super) fn line_range(span: Span, lines: &LineIndex<'_>) -> (usize, usize) {
    (lines.line(span.start), lines.line(span.end.saturating_sub(1).max(span.start)))
}

fn outline(found: frontend::Outline, request: &BuildRequest) -> Outline {
    let lines = LineIndex::new(&request.dockerfile);
    let need = |need: frontend::OutlineNeed| OutlineNeed {
        name: need.name,
        required: need.required,
        lines: line_range(need.span, &lines),
    };
    Outline {
        dockerfile: text_of(request),
        name: found.name.unwrap_or_default(),
        description: found.description.unwrap_or_default(),
        args: found
            .args
            .into_iter()
            .map(|arg| OutlineArg {
                name: arg.name,
                value: arg.value.unwrap_or_default(),
                description: arg.description.unwrap_or_default(),
                lines: line_range(arg.span, &lines),
            })
            .collect(),
        secrets: found.secrets.into_iter().map(need).collect(),
        ssh: found.ssh.into_iter().map(need).collect(),
    }
}
