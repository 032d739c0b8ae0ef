//! Build checks that need more than the text: stages, arguments, base images, the ignore file.
//!
//! They are made where the converter knows what they ask for; this module says what they find. Only the first platform
//! is looked at, as in BuildKit: the others would say the same again.
//!
//! Source: BuildKit `dockerfile2llb/validations.go`.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use build_engine_dockerfile::expand::{Expanded, Lex};
use build_engine_dockerfile::ignore::Ignore;
use build_engine_dockerfile::lint::{Linter, Options, Rule, keyword, rules};
use build_engine_dockerfile::{Diagnostic, Dockerfile, InstructionKind, Span, Stage as Declared, suggest};
use build_engine_graph::Edge;
use build_engine_oci::{ImageConfig, Platform, Reference};

use crate::args;
use crate::convert::{Converter, Fallible};
use crate::env::Env;
use crate::gotext::quoted;
use crate::name::format_platform;
use crate::paths;
use crate::request::Question;
use crate::stage::{Command, StageId};

/// Where [`crate::check`] got to.
#[derive(Debug)]
pub enum Checking {
    /// It needs these answers; they do not depend on one another.
    Needs(Vec<Question>),
    /// It is done.
    Done(Checked),
}

/// What the checks found.
#[derive(Debug, Default)]
pub struct Checked {
    /// What the rules found, and other warnings about the text, in the order of the checks.
    pub warnings: Vec<Diagnostic>,
    /// What is wrong; with `error=true`, that there are warnings.
    pub errors: Vec<Diagnostic>,
    /// The trees of all stages that were looked at; empty where something is wrong.
    pub roots: Vec<Edge>,
}

/// What the instruction being lowered is, for findings about it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Subject {
    span: Span,
    comments: Vec<String>,
}

/// The last of each instruction of which only the last counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Once {
    cmd: Option<Span>,
    entrypoint: Option<Span>,
    healthcheck: Option<Span>,
}

/// The options of a Dockerfile: those of the build argument, else those of its directive.
pub(crate) fn options(parsed: &Dockerfile, build_arg: Option<&String>) -> Fallible<Options> {
    let directive = parsed.directives.iter().find(|directive| directive.name == "check");
    let (options, origin, span) = match (build_arg, directive) {
        (Some(text), _) => {
            (Options::parse(text), "failed to parse build-arg:BUILDKIT_DOCKERFILE_CHECK", Span::default())
        }
        (None, Some(directive)) => {
            (Options::parse_directive(&directive.value), "failed to parse check options", directive.value.span)
        }
        (None, None) => return Ok(Options::default()),
    };
    options.map_err(|reason| {
        Diagnostic::error("invalid-check", format!("{origin}: {reason}"), span)
            .with_hint("write it without blanks, for example `# check=skip=Rule,Other;error=true`")
            .into()
    })
}

/// Warns of bases that are none unless a build argument is given.
pub(crate) fn check_default_bases(parsed: &Dockerfile, lex: Lex, predefined: &Env, linter: &mut Linter) {
    let mut globals = predefined.clone();
    for instruction in &parsed.global_args {
        let InstructionKind::Arg(pairs) = &instruction.kind else { continue };
        for pair in pairs {
            let Some(default) = &pair.value else { continue };
            // What cannot be expanded is an error of its own.
            let Ok(expanded) = lex.word(default, &globals) else { return };
            globals.set(&pair.key.value, &expanded.text);
        }
    }
    for stage in &parsed.stages {
        let Ok(base) = lex.word(&stage.base, &globals) else { return };
        if base.text.parse::<Reference>().is_err() {
            let message =
                format!("Default value for ARG {} results in empty or invalid base image name", stage.base.value);
            linter.report(&rules::INVALID_DEFAULT_ARG_IN_FROM, stage.span, &[], message);
        }
    }
}

impl Converter<'_> {
    /// Takes a finding, if this conversion is the one that checks.
    fn finding(&self, rule: &Rule, span: Span, comments: &[String], message: String) {
        if let Some(linter) = self.linter {
            RefCell::borrow_mut(linter).report(rule, span, comments, message);
        }
    }

    /// Whether further findings are of no use: nobody takes them.
    fn is_deaf(&self) -> bool {
        self.linter.is_none_or(|linter| RefCell::borrow(linter).is_full())
    }

    /// Takes a finding about the instruction being lowered.
    fn found_here(&self, rule: &Rule, message: String) {
        self.finding(rule, self.subject.span, &self.subject.comments, message);
    }

    /// Remembers what is lowered next, and checks what its kind shows.
    pub(crate) fn begin(&mut self, command: &Command<'_>) {
        let instruction = &command.instruction;
        self.subject = Subject { span: instruction.span, comments: instruction.comments.clone() };
    }

    /// Checks the variables in a `FROM`.
    pub(crate) fn check_from(&self, stage: &Declared, expanded: &Expanded) {
        for name in &expanded.unmatched {
            if self.is_deaf() {
                return;
            }
            let known = || self.globals.names().chain(self.global_names.iter().map(String::as_str));
            if known().any(|known| known == name) {
                continue;
            }
            let mut message = format!("FROM argument '{name}' is not declared");
            if let Some(near) = suggest(name, known()) {
                message.push_str(&format!(" (did you mean {near}?)"));
            }
            self.finding(&rules::UNDEFINED_ARG_IN_FROM, stage.span, &stage.comments, message);
        }
    }

    /// Checks a `--platform` of `FROM`.
    pub(crate) fn check_platform(&self, stage: &Declared, written: &str, expanded: &Expanded) {
        const TARGET: &str = "TARGETPLATFORM";
        if expanded.matched.is_empty() && expanded.unmatched.is_empty() {
            let Ok(platform) = expanded.text.parse::<Platform>() else { return };
            let name = stage.name.as_ref().map_or("", |name| name.value.as_str());
            if !name.contains(&platform.os) && !name.contains(&platform.architecture) {
                let message = format!("FROM --platform flag should not use constant value {}", quoted(&expanded.text));
                self.finding(&rules::FROM_PLATFORM_FLAG_CONST_DISALLOWED, stage.span, &stage.comments, message);
            }
        } else if expanded.unmatched.is_empty()
            && expanded.matched.iter().eq([TARGET])
            && self.globals.get(TARGET).unwrap_or_default() == expanded.text
        {
            let message = format!(
                "Setting platform to predefined {written} in FROM is redundant as this is the default behavior"
            );
            self.finding(&rules::REDUNDANT_TARGET_PLATFORM, stage.span, &stage.comments, message);
        }
    }

    /// Checks that a base is for the platform that was asked for.
    pub(crate) fn check_base_platform(&self, written: &str, expected: &Platform, image: &ImageConfig, span: Span) {
        if expected.os == image.os && expected.architecture == image.architecture {
            return;
        }
        let message = format!(
            "Base image {written} was pulled with platform {}, expected {} for current build",
            quoted(&format_platform(&image.platform().normalize())),
            quoted(&format_platform(&expected.clone().normalize())),
        );
        self.finding(&rules::INVALID_BASE_IMAGE_PLATFORM, span, &[], message);
    }

    /// Checks the variables in a word of an instruction.
    pub(crate) fn check_variables(&self, id: StageId, unmatched: &BTreeSet<String>) {
        let stage = &self.stages[id];
        for name in unmatched {
            if self.is_deaf() {
                return;
            }
            // An argument without a value is declared all the same.
            if stage.args.iter().any(|(known, _)| known == name) || args::NOT_IN_ENV.contains(&name.as_str()) {
                continue;
            }
            let mut message = format!("Usage of undefined variable '${name}'");
            if let Some(near) = suggest(name, stage.state.env.names()) {
                message.push_str(&format!(" (did you mean ${near}?)"));
            }
            self.found_here(&rules::UNDEFINED_VAR, message);
        }
    }

    /// Checks one key of `ENV` or `LABEL`.
    pub(crate) fn check_legacy_pair(&self, command: &Command<'_>) {
        let name = keyword(&command.instruction.text);
        let message = format!("\"{name} key=value\" should be used instead of legacy \"{name} key value\" format");
        self.found_here(&rules::LEGACY_KEY_VALUE_FORMAT, message);
    }

    /// Checks that a name of `ARG` or `ENV` does not sound like a secret.
    pub(crate) fn check_secret_name(&self, instruction: &str, name: &str) {
        if sounds_secret(name) {
            let message =
                format!("Do not use ARG or ENV instructions for sensitive data ({instruction} {})", quoted(name));
            self.found_here(&rules::SECRETS_USED_IN_ARG_OR_ENV, message);
        }
    }

    /// Checks an instruction of which a stage has one, and notes that it has it.
    pub(crate) fn check_once(&mut self, id: StageId, command: &Command<'_>) {
        let once = &mut self.stages[id].once;
        let place = match &command.instruction.kind {
            InstructionKind::Cmd(_) => &mut once.cmd,
            InstructionKind::Entrypoint(_) => &mut once.entrypoint,
            _ => &mut once.healthcheck,
        };
        // The one before is meant: it is the one without effect.
        let Some(before) = place.replace(command.instruction.span) else { return };
        let name = keyword(&command.instruction.text);
        let message = format!(
            "Multiple {name} instructions should not be used in the same stage because only the last one will be used"
        );
        self.finding(&rules::MULTIPLE_INSTRUCTIONS_DISALLOWED, before, &self.subject.comments, message);
    }

    /// Checks the shell form of `CMD` or `ENTRYPOINT`: its shell gets the signals, unless the image says which shell it
    /// wants.
    pub(crate) fn check_shell_form(&self, id: StageId, command: &Command<'_>) {
        if self.stages[id].image.config.shell.is_empty() {
            let name = keyword(&command.instruction.text);
            let message =
                format!("JSON arguments recommended for {name} to prevent unintended behavior related to OS signals");
            self.found_here(&rules::JSON_ARGS_RECOMMENDED, message);
        }
    }

    /// Checks the first `WORKDIR` of a stage and of those that it starts from.
    pub(crate) fn check_directory(&mut self, id: StageId, path: &str) {
        let stage = &mut self.stages[id];
        let is_first = !std::mem::replace(&mut stage.directory_set, true);
        let windows = stage.platform.as_ref().is_some_and(|platform| platform.os == "windows");
        if is_first && !is_absolute(path, windows) {
            let message =
                format!("Relative workdir {} can have unexpected results if the base image changes", quoted(path));
            self.found_here(&rules::WORKDIR_RELATIVE_PATH, message);
        }
    }

    /// Checks one port of `EXPOSE`, which is known to be one.
    pub(crate) fn check_port(&self, port: &str) {
        let protocol = port.rsplit_once('/').map_or("", |(_, protocol)| protocol);
        if protocol.to_lowercase() != protocol {
            let message = format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase");
            self.found_here(&rules::EXPOSE_PROTO_CASING, message);
        }
        if port.rsplit(':').skip(1).any(|part| !part.is_empty()) {
            let message =
                format!("EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'");
            self.found_here(&rules::EXPOSE_INVALID_FORMAT, message);
        }
    }

    /// The ignore file that [`Self::check_copied`] asks: none if there is no list of exclusions alone.
    fn ignore_file(&mut self) -> Option<Rc<Ignore>> {
        self.linter?;
        if let Some(known) = &self.ignore {
            return Some(Rc::clone(known));
        }
        let patterns = self.ignore_patterns()?;
        // Whether an exception applies cannot be told without looking at the files. A mistake in the patterns was reported
        // when they were read.
        let has_exceptions = patterns.iter().any(|pattern| pattern.starts_with('!'));
        let ignore = if has_exceptions { Ignore::default() } else { Ignore::new(&patterns).unwrap_or_default() };
        Some(Rc::clone(self.ignore.insert(Rc::new(ignore))))
    }

    /// Checks a path that is copied from the build context.
    pub(crate) fn check_copied(&mut self, is_add: bool, source: &str) {
        let Some(ignore) = self.ignore_file() else { return };
        let path = paths::clean(source);
        let excludes = |all: &[&str]| ignore.patterns().iter().any(|pattern| all.contains(&pattern.as_str()));
        let is_excluded = match path.as_str() {
            // The root is no entry that a pattern could name; it is excluded with all that it holds.
            "." => excludes(&["*", "**", "**/*"]),
            "/" => excludes(&["**", "**/*"]),
            path => ignore.matches(path),
        };
        if is_excluded {
            let verb = if is_add { "Add" } else { "Copy" };
            let message = format!("Attempting to {verb} file {} that is excluded by .dockerignore", quoted(&path));
            self.found_here(&rules::COPY_IGNORED_FILE, message);
        }
    }
}

/// Whether a path starts at a root.
fn is_absolute(path: &str, windows: bool) -> bool {
    let is_drive =
        |path: &str| path.as_bytes().get(1) == Some(&b':') && path.starts_with(|ch: char| ch.is_ascii_alphabetic());
    if windows { path.starts_with(['/', '\\']) || is_drive(path) } else { path.starts_with('/') }
}

/// Whether a name has a word of secrets in it, and none that says that it is no secret.
fn sounds_secret(name: &str) -> bool {
    const SECRET: [&str; 10] =
        ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
    const HARMLESS: [&str; 3] = ["public", "file", "version"];
    let name = name.to_lowercase();
    let has = |words: &[&str]| name.split('_').any(|part| words.contains(&part));
    has(&SECRET) && !has(&HARMLESS)
}
