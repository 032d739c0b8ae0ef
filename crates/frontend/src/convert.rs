//! The conversion of one Dockerfile for one platform: stages, what they need, what they start from, the result.
//!
//! The order is BuildKit's, because names, numbers and messages depend on it: stages are read in order, their bases and
//! `--from`s are linked, the bases of those that the target reaches are resolved (until `ONBUILD` triggers bring no new
//! ones), and then the instructions of those are lowered in order.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use build_engine_dockerfile::expand::{ExpandError, Lex};
use build_engine_dockerfile::ignore::Ignore;
use build_engine_dockerfile::lint::Linter;
use build_engine_dockerfile::{
    self as dockerfile, Diagnostic, Dockerfile, Instruction, InstructionKind, LineIndex, Span,
};
use build_engine_graph::{Edge, Metadata, Op, ProxyEnv, SourceFile, SourceOp, SourceSpan};
use build_engine_oci::{Digest, ImageConfig, Platform, Reference};

use crate::args;
use crate::checks::{Subject, check_default_bases};
use crate::context::NamedContexts;
use crate::draft::{Draft, Output, State};
use crate::env::{self, Env};
use crate::name;
use crate::outline::{Captured, Outline};
use crate::remote::MainContext;
use crate::request::{Answer, Answers, BaseImage, PlatformResult, Question, Request};
use crate::stage::{self, Base, Command, Stage, StageId};

/// The name of the empty image.
const SCRATCH: &str = "scratch";
/// The description that holds an instruction's text.
pub(crate) const COMMAND: &str = "com.docker.dockerfile.v1.command";

/// A result that fails with a mistake of the user's.
pub(crate) type Fallible<T> = Result<T, Box<Diagnostic>>;

/// What is the same for every platform.
pub(crate) struct Settings<'a> {
    pub(crate) request: &'a Request<'a>,
    pub(crate) file: Arc<SourceFile>,
    pub(crate) lex: Lex,
    pub(crate) contexts: NamedContexts,
    pub(crate) multi_platform: bool,
    pub(crate) hostname: String,
    pub(crate) cache_namespace: String,
    pub(crate) proxy: Option<ProxyEnv>,
    lines: LineIndex<'a>,
}

impl<'a> Settings<'a> {
    /// Reads the request.
    pub(crate) fn new(request: &'a Request<'a>, parsed: &Dockerfile) -> Fallible<Self> {
        let argument = |name: &str| request.build_args.get(name).filter(|value| !value.is_empty());
        let several = request.platforms.len() > 1;
        let multi_platform = match argument("BUILDKIT_MULTI_PLATFORM").map(String::as_str) {
            None => several || request.multi_platform,
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") if !several => false,
            Some(value) => {
                let message = if several {
                    "several platforms cannot be built with BUILDKIT_MULTI_PLATFORM off".to_owned()
                } else {
                    format!("invalid value `{value}` of BUILDKIT_MULTI_PLATFORM: expected true or false")
                };
                return Err(Diagnostic::error("invalid-build-arg", message, Span::default()).into());
            }
        };
        Ok(Self {
            request,
            file: Arc::new(SourceFile { name: request.file_name.clone(), text: request.source.to_owned() }),
            lex: Lex::new(parsed.escape),
            contexts: NamedContexts::new(&request.named_contexts),
            multi_platform,
            hostname: argument("BUILDKIT_SANDBOX_HOSTNAME").unwrap_or(&request.hostname).clone(),
            cache_namespace: request.build_args.get("BUILDKIT_CACHE_MOUNT_NS").cloned().unwrap_or_default(),
            proxy: args::proxies(&request.build_args),
            lines: LineIndex::new(request.source),
        })
    }
}

/// Where a conversion got to.
pub(crate) enum Converted {
    Needs(BTreeSet<Question>),
    Failed(Vec<Diagnostic>),
    Done(Box<Done>),
}

/// A finished conversion.
pub(crate) struct Done {
    pub(crate) result: PlatformResult,
    pub(crate) local_contexts: BTreeSet<String>,
    pub(crate) declared_args: BTreeSet<String>,
    /// What can be set.
    pub(crate) outline: Outline,
    /// The trees of all stages, where all were looked at.
    pub(crate) further: Vec<Edge>,
}

/// The conversion for one platform.
pub(crate) struct Converter<'a> {
    pub(crate) settings: &'a Settings<'a>,
    pub(crate) draft: Draft,
    pub(crate) stages: Vec<Stage<'a>>,
    pub(crate) target_platform: Platform,
    pub(crate) globals: Env,
    pub(crate) build_args: BTreeMap<String, String>,
    pub(crate) epoch: Option<i64>,
    /// Paths used of trees that named contexts may turn out to be.
    pub(crate) used_paths: Vec<BTreeSet<String>>,
    /// Paths used of the build context.
    pub(crate) context_paths: BTreeSet<String>,
    pub(crate) main_local: Option<Output>,
    pub(crate) named_locals: Vec<(Output, usize)>,
    pub(crate) locals: Vec<(String, Output)>,
    pub(crate) declared_args: BTreeSet<String>,
    /// How much the environments of runs take so far.
    pub(crate) environment_bytes: usize,
    /// Takes the findings of this platform's checks, if it is the one that checks.
    pub(crate) linter: Option<&'a RefCell<Linter>>,
    /// What is being lowered.
    pub(crate) subject: Subject,
    /// Names of the global arguments, with and without a value.
    pub(crate) global_names: BTreeSet<String>,
    /// What an outline says of the global arguments.
    pub(crate) captured: Captured,
    /// The ignore file of the build context, once the checks have asked for it.
    pub(crate) ignore: Option<Rc<Ignore>>,
    /// Whether all stages are looked at, needed or not.
    all_stages: bool,
    /// Whether an outline is made.
    pub(crate) outlining: bool,
    parsed: &'a Dockerfile,
    answers: &'a Answers,
    /// Whether no platform was asked for.
    implicit: bool,
    by_name: BTreeMap<String, StageId>,
    /// Sources of mounts that are empty; they count where stages are counted.
    empty_sources: usize,
    questions: BTreeSet<Question>,
    errors: Vec<Diagnostic>,
}

impl<'a> Converter<'a> {
    pub(crate) fn new(
        settings: &'a Settings<'a>,
        parsed: &'a Dockerfile,
        answers: &'a Answers,
        platform: Option<Platform>,
    ) -> Self {
        let request = settings.request;
        let mut build_args = request.build_args.clone();
        if let Some(epoch) = request.source_date_epoch {
            build_args.entry(args::EPOCH.into()).or_insert_with(|| epoch.to_string());
        }
        Self {
            settings,
            draft: Draft::default(),
            stages: Vec::new(),
            implicit: platform.is_none(),
            target_platform: platform.unwrap_or_else(|| request.build_platform.clone()),
            globals: Env::default(),
            build_args,
            epoch: None,
            used_paths: Vec::new(),
            context_paths: BTreeSet::new(),
            main_local: None,
            named_locals: Vec::new(),
            locals: Vec::new(),
            declared_args: BTreeSet::new(),
            environment_bytes: 0,
            linter: None,
            subject: Subject::default(),
            global_names: BTreeSet::new(),
            captured: Captured::default(),
            ignore: None,
            all_stages: false,
            outlining: false,
            parsed,
            answers,
            by_name: BTreeMap::new(),
            empty_sources: 0,
            questions: BTreeSet::new(),
            errors: Vec::new(),
        }
    }

    /// Gives what the checks find to `linter`; without a target, they look at all stages where `all_stages` says so.
    pub(crate) fn checking(mut self, linter: &'a RefCell<Linter>, all_stages: bool) -> Self {
        self.linter = Some(linter);
        self.all_stages = all_stages && self.settings.request.target.is_none();
        self
    }

    /// Makes an outline as well.
    pub(crate) fn outlining(mut self) -> Self {
        self.outlining = true;
        self
    }

    /// The comments above a stage.
    pub(crate) fn comments_of(&self, id: StageId) -> &'a [String] {
        self.parsed.stages.get(id).map_or(&[], |stage| stage.comments.as_slice())
    }

    /// Converts.
    pub(crate) fn convert(mut self) -> Converted {
        if let Some(linter) = self.linter {
            self.predefine();
            let predefined = std::mem::take(&mut self.globals);
            check_default_bases(self.parsed, self.settings.lex, &predefined, &mut linter.borrow_mut());
        }
        self.read_globals();
        if !self.errors.is_empty() {
            return Converted::Failed(self.errors);
        }
        self.read_stages();
        let target = self.find_target();
        self.link_stages();
        self.check_circles();
        let Some(target) = target.filter(|_| self.errors.is_empty()) else { return Converted::Failed(self.errors) };
        let reachable = self.resolve_bases(target);
        if !self.errors.is_empty() {
            return Converted::Failed(self.errors);
        }
        if !self.questions.is_empty() {
            return Converted::Needs(self.questions);
        }
        for id in 0..self.stages.len() {
            if reachable.contains(&id) && !self.stages[id].dispatched {
                self.dispatch_stage(id);
            }
        }
        if !self.errors.is_empty() {
            return Converted::Failed(self.errors);
        }
        Converted::Done(Box::new(self.finish(target)))
    }

    // Reporting

    pub(crate) fn error(&mut self, error: Diagnostic) {
        if !self.errors.contains(&error) {
            self.errors.push(error);
        }
    }

    /// Reports a failure as an error at `span`.
    pub(crate) fn report<T>(&mut self, result: Result<T, String>, rule: &'static str, span: Span) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(message) => {
                self.error(Diagnostic::error(rule, message, span));
                None
            }
        }
    }

    fn report_expansion<T>(&mut self, result: Result<T, ExpandError>, span: Span) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.error(expansion_error(&error, span));
                None
            }
        }
    }

    /// What is known about `question`; it is noted as asked if nothing is.
    pub(crate) fn answer(&mut self, question: Question) -> Option<&'a Answer> {
        let answer = self.answers.get(&question);
        if answer.is_none() {
            self.questions.insert(question);
        }
        answer
    }

    /// The part of a vertex's metadata that says where it comes from.
    pub(crate) fn place(&self, span: Span) -> Vec<SourceSpan> {
        let end = span.end.max(span.start);
        vec![SourceSpan {
            file: Arc::clone(&self.settings.file),
            bytes: span.start..end,
            start_line: self.settings.lines.line(span.start),
            end_line: self.settings.lines.line(end.saturating_sub(1).max(span.start)),
        }]
    }

    pub(crate) fn parsed(&self) -> &'a Dockerfile {
        self.parsed
    }

    // Global arguments

    /// Sets the arguments that every `FROM` sees.
    fn predefine(&mut self) {
        let target = match &self.settings.request.target {
            Some(target) => target.clone(),
            None => self
                .parsed
                .stages
                .last()
                .and_then(|stage| stage.name.as_ref())
                .map(|name| name.value.clone())
                .unwrap_or_default(),
        };
        self.globals =
            args::predefined(&self.settings.request.build_platform, &self.target_platform, &target, &self.build_args);
    }

    fn read_globals(&mut self) {
        self.predefine();
        for instruction in &self.parsed.global_args {
            let InstructionKind::Arg(pairs) = &instruction.kind else { continue };
            for pair in pairs {
                self.declared_args.insert(pair.key.value.clone());
                self.global_names.insert(pair.key.value.clone());
                let mut reads = BTreeSet::new();
                let value = match (self.build_args.get(&pair.key.value), &pair.value) {
                    (Some(value), _) => Some(value.clone()),
                    (None, Some(default)) => {
                        let expanded = self.settings.lex.word(default, &self.globals);
                        self.report_expansion(expanded, instruction.span).map(|expanded| {
                            reads = expanded.matched;
                            expanded.text
                        })
                    }
                    (None, None) => None,
                };
                if self.outlining {
                    self.captured.global(pair, instruction.span, value.clone(), reads);
                }
                if let Some(value) = value {
                    self.globals.set(&pair.key.value, &value);
                }
            }
        }
        self.read_epoch();
    }

    fn read_epoch(&mut self) {
        let from_global = || self.globals.get(args::EPOCH).filter(|value| !value.is_empty()).map(str::to_owned);
        let Some(value) = self.build_args.get(args::EPOCH).cloned().or_else(from_global) else { return };
        if value.is_empty() {
            self.build_args.remove(args::EPOCH);
            self.globals.remove(args::EPOCH);
            return;
        }
        let Some(seconds) = value.parse::<i64>().ok().or_else(|| self.epoch_of(&value)) else {
            self.build_args.remove(args::EPOCH);
            self.globals.remove(args::EPOCH);
            return;
        };
        self.epoch = Some(seconds);
        // As a number it may have been written in another way, such as `+1`.
        let value = seconds.to_string();
        if self.globals.get(args::EPOCH).is_some() {
            self.globals.set(args::EPOCH, &value);
        }
        if let Some(argument) = self.build_args.get_mut(args::EPOCH) {
            *argument = value;
        }
    }

    // Stages

    fn read_stages(&mut self) {
        for (number, declared) in self.parsed.stages.iter().enumerate() {
            let paths = self.new_paths();
            let mut stage = Stage::new(String::new(), declared.span, paths);
            stage.declared = true;
            stage.base_span = declared.base.span;
            stage.text = declared.text.trim().to_owned();
            stage.name = declared.name.as_ref().map(|name| name.value.clone());
            stage.ignore_cache = self.settings.request.no_cache.covers(stage.name.as_deref());
            let base = self.settings.lex.word(&declared.base, &self.globals);
            let base = self.report_expansion(base, declared.base.span);
            if let Some(base) = &base {
                self.check_from(declared, base);
                stage.captured = self.captured.for_stage(&base.matched);
            }
            match base {
                Some(base) if base.text.is_empty() => {
                    let message = format!("base name `{}` is empty", declared.base.value);
                    let near = self.near_global(&base.unmatched);
                    self.error(with_near(Diagnostic::error("empty-base", message, declared.base.span), near));
                }
                Some(base) => stage.base_name = base.text,
                None => {}
            }
            if let Some(platform) = &declared.platform {
                stage.platform = self.stage_platform(declared, platform, &mut stage.captured);
            }
            if let Some(name) = &stage.name {
                let platform = stage.platform_or(&self.target_platform);
                let found = self.settings.contexts.find(name, &platform);
                stage.context = self.report(found, "invalid-context", declared.span).flatten();
            }
            if stage.context.is_none() {
                stage.display = stage.name.clone().unwrap_or_else(|| format!("stage-{number}"));
                stage.base = self.by_name.get(&stage.base_name).copied();
                stage.total = usize::from(stage.base_name != SCRATCH && stage.base.is_none());
                stage.total += declared.instructions.iter().filter(|command| stage::is_counted(&command.kind)).count();
                stage.commands =
                    declared.instructions.iter().map(|instruction| Command::of(Cow::Borrowed(instruction))).collect();
            }
            if let Some(name) = &stage.name {
                self.by_name.insert(name.to_lowercase(), number);
            }
            self.stages.push(stage);
        }
    }

    fn stage_platform(
        &mut self,
        declared: &dockerfile::Stage,
        written: &dockerfile::Spanned<String>,
        captured: &mut Captured,
    ) -> Option<Platform> {
        let expanded = self.settings.lex.word(written, &self.globals);
        let expanded = self.report_expansion(expanded, written.span)?;
        self.check_from(declared, &expanded);
        self.check_platform(declared, written, &expanded);
        captured.read(&expanded.matched);
        let near = self.near_global(&expanded.unmatched);
        let message = if expanded.text.is_empty() {
            format!("empty platform value from expression `{}`", written.value)
        } else {
            match expanded.text.parse::<Platform>() {
                Ok(platform) => return Some(platform),
                Err(error) => error.to_string(),
            }
        };
        self.error(with_near(Diagnostic::error("invalid-platform", message, written.span), near));
        None
    }

    fn near_global(&self, unmatched: &BTreeSet<String>) -> Option<String> {
        unmatched.iter().find_map(|name| dockerfile::suggest(name, self.globals.names())).map(str::to_owned)
    }

    pub(crate) fn new_paths(&mut self) -> usize {
        self.used_paths.push(BTreeSet::new());
        self.used_paths.len() - 1
    }

    fn find_target(&mut self) -> Option<StageId> {
        let declared = self.stages.len();
        let Some(target) = &self.settings.request.target else { return declared.checked_sub(1) };
        if let Some(id) = self.by_name.get(&target.to_lowercase()) {
            return Some(*id);
        }
        if let Some(id) = target.parse::<usize>().ok().filter(|id| *id < declared) {
            return Some(id);
        }
        let near = dockerfile::suggest(target, self.stages.iter().filter_map(|stage| stage.name.as_deref()));
        let error = Diagnostic::error("unknown-target", format!("no stage is named `{target}`"), Span::default());
        let error = match near.and_then(|near| Some((near, *self.by_name.get(near)?))) {
            Some((near, id)) => {
                let line = self.settings.lines.line(self.stages[id].span.start);
                error.with_hint(format!("did you mean `{near}`, which starts at line {line}?"))
            }
            None => error,
        };
        self.error(error);
        None
    }

    // Links between stages

    fn link_stages(&mut self) {
        for id in 0..self.stages.len() {
            let mut commands = std::mem::take(&mut self.stages[id].commands);
            for command in &mut commands {
                self.link(id, command);
            }
            self.stages[id].commands = commands;
        }
        if self.stages.len() + self.empty_sources == 1 {
            self.stages[0].display.clear();
        }
    }

    /// Finds the stages, images and contexts that an instruction reads.
    fn link(&mut self, id: StageId, command: &mut Command<'a>) {
        // Places in a trigger of an image are not places in this file.
        let here = self.stages[id].span;
        let is_trigger = command.is_trigger;
        let place = |span: Span| if is_trigger { here } else { span };
        match &command.instruction.kind {
            InstructionKind::Copy(copy) => {
                let Some(from) = &copy.from else { return };
                let span = place(from.span);
                let source = self.copy_source(from, span);
                if let Some(source) = source {
                    self.stages[id].needs.push((source, span));
                }
                command.sources = vec![source];
            }
            InstructionKind::Run(run) => {
                let mut sources = Vec::with_capacity(run.mounts.len());
                for mount in &run.mounts {
                    let from = mount
                        .fields
                        .iter()
                        .rev()
                        .find(|(key, _)| key == "from")
                        .and_then(|(_, value)| value.as_deref());
                    let source = match from.filter(|from| !from.is_empty()) {
                        None => {
                            self.empty_sources += 1;
                            None
                        }
                        Some(from) => {
                            let span = place(mount.span);
                            let known = self.by_name.get(&from.to_lowercase()).copied();
                            let source = known.unwrap_or_else(|| self.external(from, span));
                            self.stages[id].needs.push((source, span));
                            Some(source)
                        }
                    };
                    sources.push(source);
                }
                command.sources = sources;
            }
            InstructionKind::Add(_)
            | InstructionKind::Arg(_)
            | InstructionKind::Cmd(_)
            | InstructionKind::Entrypoint(_)
            | InstructionKind::Env(_)
            | InstructionKind::Expose(_)
            | InstructionKind::Healthcheck(_)
            | InstructionKind::Label(_)
            | InstructionKind::Maintainer(_)
            | InstructionKind::Onbuild { .. }
            | InstructionKind::Shell(_)
            | InstructionKind::Stopsignal(_)
            | InstructionKind::User(_)
            | InstructionKind::Volume(_)
            | InstructionKind::Workdir(_) => {}
        }
    }

    fn copy_source(&mut self, from: &str, span: Span) -> Option<StageId> {
        let plain = self.settings.lex.word(from, &Env::default());
        if self.report_expansion(plain, span)?.text != from {
            self.error(
                Diagnostic::error("variable-in-from", "variables are not expanded in --from", span)
                    .with_hint("define a stage with FROM and a global ARG, and name that stage"),
            );
            return None;
        }
        if let Ok(number) = from.parse::<i64>() {
            let found =
                usize::try_from(number).ok().filter(|id| self.stages.get(*id).is_some_and(|stage| stage.declared));
            if found.is_none() {
                let count = self.parsed.stages.len();
                let message = format!("there is no stage number {number}");
                let hint = format!("stages are numbered from 0 to {}", count - 1);
                self.error(Diagnostic::error("unknown-stage", message, span).with_hint(hint));
            }
            return found;
        }
        if let Some(id) = self.by_name.get(&from.to_lowercase()) {
            return Some(*id);
        }
        Some(self.external(from, span))
    }

    /// An image or context that is used like a stage.
    fn external(&mut self, name: &str, span: Span) -> StageId {
        let paths = self.new_paths();
        self.stages.push(Stage::new(name.to_owned(), span, paths));
        self.stages.len() - 1
    }

    fn check_circles(&mut self) {
        const NEW: u8 = 0;
        const OPEN: u8 = 1;
        const DONE: u8 = 2;
        let mut marks = vec![NEW; self.stages.len()];
        for start in 0..self.stages.len() {
            if marks[start] != NEW {
                continue;
            }
            marks[start] = OPEN;
            let mut path = vec![(start, 0)];
            while let Some((id, next)) = path.last_mut() {
                let Some((need, span)) = self.stages[*id].needs.get(*next).copied() else {
                    marks[*id] = DONE;
                    path.pop();
                    continue;
                };
                *next += 1;
                match marks[need] {
                    NEW => {
                        marks[need] = OPEN;
                        path.push((need, 0));
                    }
                    OPEN => {
                        let from = path.iter().position(|(id, _)| *id == need).unwrap_or(0);
                        let names: Vec<String> = path[from..]
                            .iter()
                            .map(|(id, _)| *id)
                            .chain([need])
                            .map(|id| format!("`{}`", self.label(id)))
                            .collect();
                        let message = format!("circular dependency between stages: {}", names.join(" needs "));
                        self.error(Diagnostic::error("circular-dependency", message, span));
                    }
                    _ => {}
                }
            }
        }
    }

    /// How messages call a stage.
    pub(crate) fn label(&self, id: StageId) -> String {
        let stage = &self.stages[id];
        match &stage.name {
            Some(name) => name.clone(),
            None if stage.declared => format!("stage-{id}"),
            None => stage.base_name.clone(),
        }
    }

    fn reachable(&self, target: StageId) -> BTreeSet<StageId> {
        if self.all_stages {
            return (0..self.stages.len()).collect();
        }
        let mut found = BTreeSet::new();
        let mut open = vec![target];
        while let Some(id) = open.pop() {
            if found.insert(id) {
                open.extend(self.stages[id].base);
                open.extend(self.stages[id].needs.iter().map(|(need, _)| *need));
            }
        }
        found
    }

    // Bases

    /// Resolves what the stages that `target` needs start from, and returns those stages.
    fn resolve_bases(&mut self, target: StageId) -> BTreeSet<StageId> {
        loop {
            let reachable = self.reachable(target);
            for id in 0..self.stages.len() {
                let stage = &self.stages[id];
                if stage.base.is_none() && !stage.dispatched && !stage.resolved {
                    let reached = reachable.contains(&id);
                    self.stages[id].resolved = reached;
                    self.resolve_base(id, reached);
                }
            }
            let mut new = false;
            for id in &reachable {
                new |= self.take_triggers(*id);
            }
            if !new {
                if self.settings.request.context == MainContext::Local && self.uses_context(&reachable) {
                    let _ = self.ignore_patterns();
                }
                return reachable;
            }
        }
    }

    fn uses_context(&self, reachable: &BTreeSet<StageId>) -> bool {
        reachable.iter().flat_map(|id| &self.stages[*id].commands).any(|command| match &command.instruction.kind {
            InstructionKind::Copy(copy) => copy.from.is_none() && !copy.sources.is_empty(),
            InstructionKind::Add(add) => !add.sources.is_empty(),
            InstructionKind::Run(run) => command
                .sources
                .iter()
                .zip(&run.mounts)
                .any(|(source, mount)| source.is_none() && mount.kind == dockerfile::RunMountKind::Bind),
            _ => false,
        })
    }

    fn resolve_base(&mut self, id: StageId, reached: bool) {
        let stage = &mut self.stages[id];
        let (span, declared) = (stage.base_span, stage.declared);
        if stage.base_name == SCRATCH && stage.context.is_none() {
            stage.image = stage::empty_image(&self.target_platform);
            stage.platform = Some(self.target_platform.clone());
            stage.dispatched = !declared;
            return;
        }
        stage.dispatched = !declared;
        let written = stage.base_name.clone();
        let platform = stage.platform_or(&self.target_platform);
        if let Some(context) = stage.context.clone() {
            if reached {
                self.replace_stage(id, &context);
            }
            return;
        }
        let Some(reference) = self.report(parse_reference(&written), "invalid-reference", span) else { return };
        if !reached {
            return;
        }
        let reference = reference.or_latest();
        let found = self.settings.contexts.find(&reference.to_string(), &platform);
        let Some(context) = self.report(found, "invalid-context", span) else { return };
        if let Some(context) = context {
            let used = self.stages[id].paths;
            let Some(loaded) = self.load_context(&context, span, used) else { return };
            let stage = &mut self.stages[id];
            stage.image = loaded.image.unwrap_or_else(|| stage::empty_image(&platform));
            stage.image.created = None;
            stage.base_image = loaded.base;
            stage.state = State { platform: Some(platform.clone()), ..loaded.state };
            stage.platform = Some(platform);
            return;
        }
        self.resolve_image(id, &written, &reference, platform);
    }

    fn resolve_image(&mut self, id: StageId, written: &str, reference: &Reference, mut platform: Platform) {
        let span = self.stages[id].base_span;
        let Some((identifier, digest, image)) =
            self.image_config(&format!("docker-image://{reference}"), &platform, span)
        else {
            self.hint_at_stage(id, written);
            return;
        };
        let Some(pinned) = self.pin(&identifier, reference, &digest, span) else { return };
        if self.stages[id].platform.is_none() && self.implicit {
            let build = &self.settings.request.build_platform;
            let states = |platform: &Platform| platform.os == image.os && platform.architecture == image.architecture;
            if !states(&platform) && states(build) {
                platform = build.clone();
            }
        }
        let identifier = format!("docker-image://{pinned}");
        let source = (!stage::is_layerless(&image)).then(|| {
            let multi_platform = self.settings.multi_platform;
            let stage = &mut self.stages[id];
            let name = name::next(stage, &format!("FROM {pinned}"), multi_platform, &platform, &Env::default());
            let description = [(COMMAND.to_owned(), stage.text.clone())].into();
            let place = stage.span;
            self.check_base_platform(written, &platform, &image, place);
            let spans = self.place(place);
            let metadata = Metadata { name, description, spans, ..Metadata::default() };
            let op = Op::Source(SourceOp { identifier: identifier.clone(), ..SourceOp::default() });
            self.draft.add(op, Vec::new(), Some(platform.clone()), metadata)
        });
        let stage = &mut self.stages[id];
        stage.base_name = pinned.to_string();
        stage.state = State { tree: source, platform: source.map(|_| platform.clone()), ..State::scratch() };
        stage.platform = Some(platform);
        stage.base_image = Some(Base { identifier, digest, image: image.clone(), source });
        stage.image = ImageConfig { created: None, ..image };
    }

    /// Adds to an error about an image that a stage has nearly its name.
    fn hint_at_stage(&mut self, id: StageId, written: &str) {
        let span = self.stages[id].base_span;
        let names = self.stages.iter().filter(|stage| stage.declared).filter_map(|stage| stage.name.as_deref());
        let Some(near) = dockerfile::suggest(written, names) else { return };
        let hint = match self.by_name.get(near) {
            Some(known) => {
                format!(
                    "a stage named `{near}` starts at line {}",
                    self.settings.lines.line(self.stages[*known].span.start)
                )
            }
            None => return,
        };
        if let Some(error) = self.errors.last_mut().filter(|error| error.span == span && error.hint.is_none()) {
            error.rule = "unknown-stage";
            error.message = format!("no stage or image is named `{written}`: {}", error.message);
            error.hint = Some(hint);
        }
    }

    /// The reference that an answer stands for, pinned to its digest.
    pub(crate) fn pin(
        &mut self,
        identifier: &str,
        asked: &Reference,
        digest: &Digest,
        span: Span,
    ) -> Option<Reference> {
        let text = identifier.strip_prefix("docker-image://").unwrap_or(identifier);
        let found = if text.is_empty() { Ok(asked.clone()) } else { parse_reference(text) };
        Some(self.report(found, "invalid-reference", span)?.with_digest(digest.clone()))
    }

    fn replace_stage(&mut self, id: StageId, context: &crate::context::NamedContext) {
        let (span, used) = (self.stages[id].base_span, self.stages[id].paths);
        let Some(loaded) = self.load_context(context, span, used) else { return };
        let stage = &mut self.stages[id];
        stage.dispatched = true;
        stage.state = loaded.state;
        stage.base_image = loaded.base;
        if let Some(image) = loaded.image {
            stage.platform = stage::stated_platform(&image).or(stage.platform.take());
            stage.image = ImageConfig { created: None, ..image };
        }
    }

    // Triggers

    /// Puts the `ONBUILD` triggers of a stage's base before its instructions. Returns whether they need other stages.
    fn take_triggers(&mut self, id: StageId) -> bool {
        let mut expressions = std::mem::take(&mut self.stages[id].image.config.on_build);
        if let Some(base) = self.stages[id].base.filter(|_| !self.stages[id].triggers_taken) {
            self.stages[id].triggers_taken = true;
            for command in &self.stages[base].commands {
                if let InstructionKind::Onbuild { expression, .. } = &command.instruction.kind {
                    expressions.push(expression.clone());
                }
            }
        }
        if self.stages[id].context.is_some() || expressions.is_empty() {
            return false;
        }
        let span = self.stages[id].span;
        let before = self.stages[id].needs.len();
        let mut commands = Vec::new();
        for expression in expressions {
            let Some(instruction) = self.parse_trigger(&expression, span) else { continue };
            let mut command = Command { is_trigger: true, ..Command::of(Cow::Owned(instruction)) };
            self.link(id, &mut command);
            commands.push(command);
        }
        let stage = &mut self.stages[id];
        stage.total += commands.len();
        commands.append(&mut stage.commands);
        stage.commands = commands;
        stage.needs.len() > before
    }

    fn parse_trigger(&mut self, expression: &str, span: Span) -> Option<Instruction> {
        let mut instruction = match dockerfile::parse_trigger(expression) {
            Ok(instruction) => instruction,
            Err(found) => {
                for error in found {
                    let message = format!("trigger `{expression}` of the base: {}", error.message);
                    self.error(Diagnostic { message, span, ..error });
                }
                return None;
            }
        };
        instruction.span = span;
        Some(instruction)
    }

    // Instructions

    /// Takes over what a stage inherits from the stage it starts from.
    fn inherit(&mut self, id: StageId) {
        let Some(base) = self.stages[id].base else { return };
        let base = &self.stages[base];
        let (state, platform, mut image) = (base.state.clone(), base.platform.clone(), base.image.clone());
        let (base_image, paths, args) = (base.base_image.clone(), base.paths, base.args.clone());
        let directory_set = base.directory_set;
        image.config.on_build.clear();
        let stage = &mut self.stages[id];
        stage.state = state;
        stage.platform = platform;
        stage.image = image;
        stage.base_image = base_image;
        stage.paths = paths;
        stage.args = args;
        stage.directory_set = directory_set;
    }

    fn dispatch_stage(&mut self, id: StageId) {
        self.inherit(id);
        let settings = self.settings;
        let platform = self.stages[id].platform_or(&self.target_platform);
        let stage = &mut self.stages[id];
        stage.dispatched = true;
        stage::ensure_path(&mut stage.image.config, &platform.os);
        stage.platform = Some(platform);
        for pair in &stage.image.config.env {
            let (name, value) = env::split(pair);
            stage.state.env.set(name, value);
        }
        if !settings.hostname.is_empty() {
            stage.state.hostname.clone_from(&settings.hostname);
        }
        if !stage.image.config.working_dir.is_empty() {
            let directory = stage.image.config.working_dir.clone();
            stage.set_directory(&directory);
        }
        if !stage.image.config.user.is_empty() {
            stage.state.user.clone_from(&stage.image.config.user);
        }
        stage.state.network = settings.request.network;
        let commands = std::mem::take(&mut stage.commands);
        for command in &commands {
            self.stages[id].in_trigger = command.is_trigger;
            self.begin(command);
            if let Err(error) = self.dispatch(id, command) {
                self.error(*error);
            }
        }
        // Kept: the triggers among them are looked at by stages that start from this one.
        self.stages[id].commands = commands;
    }

    // The result

    fn finish(mut self, target: StageId) -> Done {
        let used = self.stages[target].paths;
        self.use_path(Some(used), "/");
        self.set_followed_paths();
        let stage = &mut self.stages[target];
        let platform = &self.target_platform;
        stage.image.config.labels.extend(self.settings.request.labels.clone());
        let image = &mut stage.image;
        if self.implicit {
            // A local directory in place of a stage states no platform.
            if image.os.is_empty() && image.architecture.is_empty() {
                stage::set_platform(image, platform);
            }
        } else {
            let same = platform.os == image.os && platform.architecture == image.architecture;
            image.os.clone_from(&platform.os);
            image.architecture.clone_from(&platform.architecture);
            if platform.variant.is_some() || !same {
                image.variant = platform.variant.clone().unwrap_or_default();
            }
            if platform.os_version.is_some() || !same {
                image.os_version = platform.os_version.clone().unwrap_or_default();
            }
            if !platform.os_features.is_empty() {
                image.os_features.clone_from(&platform.os_features);
            }
        }
        let normal = image.platform();
        stage::set_platform(image, &normal);
        image.rootfs.diff_ids.clear();
        let mut image = std::mem::take(&mut stage.image);
        image.created = None;
        let base = stage.base_image.take();
        let mut roots = vec![stage.state.tree, base.as_ref().and_then(|base| base.source)];
        if self.all_stages {
            roots.extend(self.stages.iter().map(|stage| stage.state.tree));
        }
        let outline = if self.outlining { self.outline(target) } else { Outline::default() };
        let mut edges = self.draft.finish(&roots).into_iter();
        let root = edges.next().flatten();
        let base_edge = edges.next().flatten();
        let further = edges.flatten().collect();
        let mut local_contexts = BTreeSet::new();
        build_engine_graph::walk(&root, |vertex| {
            if let Op::Source(source) = vertex.op()
                && let Some(name) = source.identifier.strip_prefix("local://")
            {
                local_contexts.insert(name.to_owned());
            }
        });
        let base = base.map(|base| BaseImage {
            identifier: base.identifier,
            digest: base.digest,
            image: base.image,
            edge: base_edge,
        });
        Done {
            result: PlatformResult { platform: self.target_platform, root, image, base, epoch: self.epoch },
            local_contexts,
            declared_args: self.declared_args,
            outline,
            further,
        }
    }
}

impl<'a> Command<'a> {
    fn of(instruction: Cow<'a, Instruction>) -> Self {
        Self { instruction, sources: Vec::new(), is_trigger: false }
    }
}

/// Reads an image reference.
pub(crate) fn parse_reference(text: &str) -> Result<Reference, String> {
    text.parse::<Reference>().map_err(|error| error.to_string())
}

/// An error about a word that cannot be expanded.
pub(crate) fn expansion_error(error: &ExpandError, span: Span) -> Diagnostic {
    Diagnostic::error(if error.is_limit() { "limit" } else { "expansion" }, error.to_string(), span)
}

fn with_near(error: Diagnostic, near: Option<String>) -> Diagnostic {
    match near {
        Some(near) => error.with_hint(format!("did you mean `${near}`?")),
        None => error,
    }
}
