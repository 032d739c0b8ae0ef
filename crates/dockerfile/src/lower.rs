//! From statements to instructions: what each of the 18 instructions accepts.
//!
//! Every mistake is reported; an instruction that is not understood is left out, a `FROM` that is not understood still
//! opens its stage, so that one mistake does not look like many.
//!
//! Source: BuildKit `instructions/parse.go`, whose messages are kept where people search for them.

use crate::{
    Add, ArgPair, Command, Copy, Diagnostic, Dockerfile, Healthcheck, Heredoc, Instruction, InstructionKind, KeyValue,
    Run, Span, Spanned, Stage, Statement, csv,
    duration::parse_duration,
    flags::{Flags, Takes},
    has_errors,
    limits::MAX_STAGES,
    mount, parse_heredoc_word, parse_syntax, suggest, suggest_ignoring_case,
};

/// The instructions, in upper case and alphabetic order.
pub const INSTRUCTION_NAMES: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Parses a Dockerfile. Any text gives a result; whether it can be built, the diagnostics say.
pub fn parse(source: &str) -> (Dockerfile, Vec<Diagnostic>) {
    let (syntax, mut diagnostics) = parse_syntax(source);
    let mut dockerfile = Dockerfile { escape: syntax.escape, directives: syntax.directives, ..Dockerfile::default() };
    for (statement, sound) in syntax.statements.iter().zip(&syntax.sound) {
        if statement.name == "from" {
            if dockerfile.stages.len() == MAX_STAGES {
                let message = format!("the Dockerfile has more than {MAX_STAGES} stages");
                diagnostics.push(Diagnostic::error("limit", message, statement.span));
                break;
            }
            dockerfile.stages.push(stage(statement, &mut diagnostics));
            continue;
        }
        if !sound {
            continue;
        }
        let Some(instruction) = lower(statement, &statement.heredocs, syntax.escape, &mut diagnostics) else {
            continue;
        };
        match dockerfile.stages.last_mut() {
            Some(stage) => stage.instructions.push(instruction),
            None if matches!(instruction.kind, InstructionKind::Arg(_)) => dockerfile.global_args.push(instruction),
            None => diagnostics.push(
                Diagnostic::error("no-stage", "no build stage in current context", statement.span)
                    .with_hint("only ARG may stand before the first FROM"),
            ),
        }
    }
    dockerfile.statements = syntax.statements;
    diagnostics.sort_by_key(|found| found.span.start);
    (dockerfile, diagnostics)
}

/// Parses a trigger that a base image brings along (`OnBuild` of its config). Spans point into `expression`.
///
/// # Errors
/// What is wrong with it; also if it is none or several instructions, or one that triggers cannot be.
pub fn parse_trigger(expression: &str) -> Result<Instruction, Vec<Diagnostic>> {
    let (syntax, mut diagnostics) = parse_syntax(expression);
    if let ([statement], [true]) = (syntax.statements.as_slice(), syntax.sound.as_slice()) {
        check_trigger_name(statement, &mut diagnostics);
        if !has_errors(&diagnostics)
            && let Some(instruction) = lower(statement, &statement.heredocs, syntax.escape, &mut diagnostics)
            && !has_errors(&diagnostics)
        {
            return Ok(instruction);
        }
    } else if !has_errors(&diagnostics) {
        let whole = Span::new(0, expression.len());
        diagnostics.push(Diagnostic::error("onbuild", "an ONBUILD trigger must be a single instruction", whole));
    }
    Err(diagnostics)
}

fn stage(statement: &Statement, diagnostics: &mut Vec<Diagnostic>) -> Stage {
    let mut flags = Flags::parse(statement, &[("platform", Takes::Value)], diagnostics);
    let args = statement.args.as_slice();
    let name = match args {
        [_] => None,
        [_, keyword, name] if keyword.eq_ignore_ascii_case("as") => {
            let lower = name.to_lowercase();
            if !is_stage_name(&lower) {
                let message = format!(
                    "invalid name for build stage: {:?}, name can't start with a number or contain symbols",
                    name.value
                );
                diagnostics.push(Diagnostic::error("stage-name", message, name.span));
            }
            Some(Spanned::new(lower, name.span))
        }
        _ => {
            let message = "FROM requires either one or three arguments";
            diagnostics.push(Diagnostic::error("arguments", message, statement.span));
            None
        }
    };
    Stage {
        base: args.first().cloned().unwrap_or_default(),
        name,
        platform: flags.take_nonempty("platform"),
        span: statement.span,
        text: statement.original.trim().to_owned(),
        comments: statement.comments.clone(),
        instructions: Vec::new(),
    }
}

/// `^[a-z][a-z0-9-_.]*$`
pub(crate) fn is_stage_name(name: &str) -> bool {
    name.starts_with(|ch: char| ch.is_ascii_lowercase())
        && name.chars().all(|ch| ch.is_ascii_lowercase() || ch.is_ascii_digit() || matches!(ch, '-' | '_' | '.'))
}

/// Gives the meaning of a statement that is not `FROM`, or reports why it has none.
fn lower(
    statement: &Statement,
    heredocs: &[Heredoc],
    escape: char,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<Instruction> {
    let kind = Lowering { statement, heredocs, escape, diagnostics }.kind()?;
    Some(Instruction {
        kind,
        span: statement.span,
        text: statement.original.trim().to_owned(),
        comments: statement.comments.clone(),
    })
}

/// The arguments of `COPY` and `ADD`.
struct Sources {
    paths: Vec<Spanned<String>>,
    heredocs: Vec<Heredoc>,
    dest: Spanned<String>,
}

struct Lowering<'a> {
    statement: &'a Statement,
    heredocs: &'a [Heredoc],
    escape: char,
    diagnostics: &'a mut Vec<Diagnostic>,
}

impl Lowering<'_> {
    fn kind(mut self) -> Option<InstructionKind> {
        Some(match self.statement.name.as_str() {
            "add" => InstructionKind::Add(self.add()?),
            "arg" => InstructionKind::Arg(self.arg()?),
            "cmd" => {
                self.no_flags();
                InstructionKind::Cmd(self.command())
            }
            "copy" => InstructionKind::Copy(self.copy()?),
            "entrypoint" => {
                self.no_flags();
                InstructionKind::Entrypoint(self.command())
            }
            "env" => InstructionKind::Env(self.pairs()?),
            "expose" => {
                self.no_flags();
                self.at_least_one()?;
                let mut ports = self.statement.args.clone();
                // BuildKit sorts them; cache keys and history follow.
                ports.sort_by(|a, b| a.value.cmp(&b.value));
                InstructionKind::Expose(ports)
            }
            "healthcheck" => InstructionKind::Healthcheck(self.healthcheck()?),
            "label" => InstructionKind::Label(self.pairs()?),
            "maintainer" => InstructionKind::Maintainer(self.exactly_one()?),
            "onbuild" => self.onbuild()?,
            "run" => InstructionKind::Run(self.run()?),
            "shell" => InstructionKind::Shell(self.shell()?),
            "stopsignal" => InstructionKind::Stopsignal(self.exactly_one()?),
            "user" => InstructionKind::User(self.exactly_one()?),
            "volume" => InstructionKind::Volume(self.volume()?),
            "workdir" => InstructionKind::Workdir(self.exactly_one()?),
            _ => {
                let keyword = &self.statement.keyword;
                let mut message = format!("unknown instruction: {keyword}");
                if let Some(near) = suggest_ignoring_case(keyword, INSTRUCTION_NAMES) {
                    message.push_str(&format!(" (did you mean {near}?)"));
                }
                self.diagnostics.push(Diagnostic::error("unknown-instruction", message, keyword.span));
                return None;
            }
        })
    }

    /// The name in upper case, as messages say it.
    fn name(&self) -> String {
        self.statement.name.to_uppercase()
    }

    fn error<T>(&mut self, rule: &'static str, message: impl Into<String>, span: Span) -> Option<T> {
        self.diagnostics.push(Diagnostic::error(rule, message, span));
        None
    }

    fn flags(&mut self, known: &[(&'static str, Takes)]) -> Flags {
        Flags::parse(self.statement, known, self.diagnostics)
    }

    fn no_flags(&mut self) {
        self.flags(&[]);
    }

    fn at_least_one(&mut self) -> Option<()> {
        if self.statement.args.is_empty() {
            let message = format!("{} requires at least one argument", self.name());
            return self.error("arguments", message, self.statement.span);
        }
        Some(())
    }

    fn exactly_one(&mut self) -> Option<Spanned<String>> {
        self.no_flags();
        match self.statement.args.as_slice() {
            [one] => Some(one.clone()),
            _ => {
                let message = format!("{} requires exactly one argument", self.name());
                self.error("arguments", message, self.statement.span)
            }
        }
    }

    fn command(&self) -> Command {
        let words = self.statement.args.iter().map(|word| word.value.clone());
        if self.statement.exec_form { Command::Exec(words.collect()) } else { Command::Shell(words.collect()) }
    }

    fn pairs(&mut self) -> Option<Vec<KeyValue>> {
        self.no_flags();
        self.at_least_one()?;
        let mut pairs = Vec::new();
        for triple in self.statement.args.chunks_exact(3) {
            let [key, value, delimiter] = triple else { continue };
            if key.is_empty() {
                let message = format!("{} names can not be blank", self.name());
                return self.error("blank-name", message, value.span);
            }
            pairs.push(KeyValue { key: key.clone(), value: value.clone(), legacy: delimiter.is_empty() });
        }
        Some(pairs)
    }

    fn arg(&mut self) -> Option<Vec<ArgPair>> {
        self.no_flags();
        self.at_least_one()?;
        let mut pairs = Vec::new();
        for word in &self.statement.args {
            let (key, value) = match word.value.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (word.value.as_str(), None),
            };
            if key.is_empty() {
                return self.error("blank-name", "ARG names can not be blank", word.span);
            }
            // Parts have places of their own if the word was written without line breaks in it.
            let is_exact = word.span.end - word.span.start == word.value.len();
            let middle = word.span.start + key.len();
            let (key_span, value_span) = match (is_exact, value) {
                (true, Some(_)) => (Span::new(word.span.start, middle), Span::new(middle + 1, word.span.end)),
                _ => (word.span, word.span),
            };
            pairs.push(ArgPair {
                key: Spanned::new(key.to_owned(), key_span),
                value: value.map(|value| Spanned::new(value.to_owned(), value_span)),
                comment: doc_comment(&self.statement.comments, key),
            });
        }
        Some(pairs)
    }

    fn sources(&mut self) -> Option<Sources> {
        let name = self.name();
        let (dest, words) = match self.statement.args.split_last() {
            Some((dest, words)) if !words.is_empty() => (dest, words),
            _ => {
                let message = format!(
                    "{name} requires at least two arguments, but only one was provided. Destination could not be determined"
                );
                return self.error("arguments", message, self.statement.span);
            }
        };
        if let Ok(Some(_)) = parse_heredoc_word(dest) {
            return self.error("arguments", format!("{name} cannot accept a heredoc as a destination"), dest.span);
        }
        let (mut paths, mut heredocs) = (Vec::new(), Vec::new());
        for word in words {
            match parse_heredoc_word(word) {
                Ok(Some(mut heredoc)) => {
                    // Of several with one name the last one's text counts; in JSON there is no text at all.
                    let body = self.heredocs.iter().rev().find(|found| found.name == heredoc.name);
                    heredoc.content = body.map(|found| found.content.clone()).unwrap_or_default();
                    heredocs.push(heredoc);
                }
                Ok(None) | Err(_) => paths.push(word.clone()),
            }
        }
        Some(Sources { paths, heredocs, dest: dest.clone() })
    }

    fn add(&mut self) -> Option<Add> {
        let mut flags = self.flags(&[
            ("chown", Takes::Value),
            ("chmod", Takes::Value),
            ("link", Takes::Bool),
            ("keep-git-dir", Takes::Bool),
            ("checksum", Takes::Value),
            ("unpack", Takes::Bool),
            ("exclude", Takes::Values),
        ]);
        let Sources { paths: sources, heredocs, dest } = self.sources()?;
        Some(Add {
            sources,
            heredocs,
            dest,
            chown: flags.take_nonempty("chown"),
            chmod: flags.take_nonempty("chmod"),
            link: flags.bool("link") == Some(true),
            exclude: flags.take_all("exclude"),
            keep_git_dir: flags.bool("keep-git-dir"),
            checksum: flags.take_nonempty("checksum"),
            unpack: flags.bool("unpack"),
        })
    }

    fn copy(&mut self) -> Option<Copy> {
        let mut flags = self.flags(&[
            ("chown", Takes::Value),
            ("from", Takes::Value),
            ("chmod", Takes::Value),
            ("link", Takes::Bool),
            ("exclude", Takes::Values),
            ("parents", Takes::Bool),
        ]);
        let Sources { paths: sources, heredocs, dest } = self.sources()?;
        Some(Copy {
            sources,
            heredocs,
            dest,
            from: flags.take_nonempty("from"),
            chown: flags.take_nonempty("chown"),
            chmod: flags.take_nonempty("chmod"),
            link: flags.bool("link") == Some(true),
            parents: flags.bool("parents") == Some(true),
            exclude: flags.take_all("exclude"),
        })
    }

    fn run(&mut self) -> Option<Run> {
        let mut flags = self.flags(&[
            ("mount", Takes::Values),
            ("network", Takes::Value),
            ("security", Takes::Value),
            ("device", Takes::Values),
        ]);
        let mut mounts = Vec::new();
        for flag in flags.take_all("mount") {
            mounts.extend(mount::parse(&flag, self.escape, self.diagnostics));
        }
        let devices = flags.take_all("device");
        for device in &devices {
            if let Err(message) = check_device(device) {
                self.diagnostics.push(Diagnostic::error("device", message, device.span));
            }
        }
        let network = flags.take("network");
        if let Some(mode) = network.as_ref().filter(|mode| !["default", "none", "host"].contains(&mode.as_str())) {
            self.diagnostics.push(Diagnostic::error(
                "flag-value",
                format!("invalid network mode {:?}", mode.value),
                mode.span,
            ));
        }
        let security = flags.take("security");
        if let Some(mode) = security.as_ref().filter(|mode| !["sandbox", "insecure"].contains(&mode.as_str())) {
            self.diagnostics.push(Diagnostic::error(
                "flag-value",
                format!("security {:?} is not valid", mode.value),
                mode.span,
            ));
        }
        Some(Run { command: self.command(), heredocs: self.heredocs.to_vec(), mounts, network, security, devices })
    }

    fn healthcheck(&mut self) -> Option<Healthcheck> {
        let mut flags = self.flags(&[
            ("interval", Takes::Value),
            ("timeout", Takes::Value),
            ("start-period", Takes::Value),
            ("start-interval", Takes::Value),
            ("retries", Takes::Value),
        ]);
        self.at_least_one()?;
        let (kind, words) = self.statement.args.split_first()?;
        match kind.to_uppercase().as_str() {
            "NONE" if words.is_empty() => return Some(Healthcheck::None),
            "NONE" => return self.error("arguments", "HEALTHCHECK NONE takes no arguments", self.statement.span),
            "CMD" if words.is_empty() => {
                return self.error("arguments", "Missing command after HEALTHCHECK CMD", self.statement.span);
            }
            "CMD" => {}
            other => {
                let message = format!("Unknown type {other:?} in HEALTHCHECK (try CMD)");
                return self.error("arguments", message, kind.span);
            }
        }
        let words = words.iter().map(|word| word.value.clone());
        let command =
            if self.statement.exec_form { Command::Exec(words.collect()) } else { Command::Shell(words.collect()) };
        Some(Healthcheck::Cmd {
            command,
            interval: self.duration(&mut flags, "interval"),
            timeout: self.duration(&mut flags, "timeout"),
            start_period: self.duration(&mut flags, "start-period"),
            start_interval: self.duration(&mut flags, "start-interval"),
            retries: self.retries(&mut flags),
        })
    }

    /// Zero means the same as no flag: the default.
    fn duration(&mut self, flags: &mut Flags, name: &str) -> Option<i64> {
        const SHORTEST: i64 = 1_000_000;
        let value = flags.take_nonempty(name)?;
        match parse_duration(&value) {
            Ok(0) => None,
            Ok(nanoseconds) if nanoseconds >= SHORTEST => Some(nanoseconds),
            Ok(_) => self.error("flag-value", format!("Interval {name:?} cannot be less than 1ms"), value.span),
            Err(error) => self.error("flag-value", error.to_string(), value.span),
        }
    }

    fn retries(&mut self, flags: &mut Flags) -> Option<u32> {
        let value = flags.take_nonempty("retries")?;
        match value.parse::<i32>() {
            Ok(0) => None,
            Ok(count) => match u32::try_from(count) {
                Ok(count) => Some(count),
                Err(_) => self.error("flag-value", format!("--retries cannot be negative ({count})"), value.span),
            },
            Err(_) => self.error("flag-value", format!("--retries is not a number: {:?}", value.value), value.span),
        }
    }

    fn shell(&mut self) -> Option<Vec<String>> {
        self.no_flags();
        self.at_least_one()?;
        if !self.statement.exec_form {
            let span = self.statement.args.first().map_or(self.statement.span, |word| word.span);
            return self.error("arguments", "SHELL requires the arguments to be in JSON form", span);
        }
        Some(self.statement.args.iter().map(|word| word.value.clone()).collect())
    }

    fn volume(&mut self) -> Option<Vec<Spanned<String>>> {
        self.no_flags();
        self.at_least_one()?;
        let mut volumes = Vec::new();
        for word in &self.statement.args {
            let path = word.trim();
            if path.is_empty() {
                return self.error("arguments", "VOLUME specified can not be an empty string", word.span);
            }
            volumes.push(Spanned::new(path.to_owned(), word.span));
        }
        Some(volumes)
    }

    fn onbuild(&mut self) -> Option<InstructionKind> {
        self.no_flags();
        let Some(trigger) = self.statement.trigger.as_deref() else {
            return self.error("arguments", "ONBUILD requires at least one argument", self.statement.span);
        };
        let before = self.diagnostics.len();
        check_trigger_name(trigger, self.diagnostics);
        if self.diagnostics.len() > before {
            return None;
        }
        let mut parsed = lower(trigger, self.heredocs, self.escape, self.diagnostics)?;
        parsed.span = parsed.span.to(self.statement.span);
        Some(InstructionKind::Onbuild { expression: self.expression(), trigger: Box::new(parsed) })
    }

    /// The text behind `ONBUILD`, with its heredocs, as it goes into the image's config.
    fn expression(&self) -> String {
        let original = self.statement.original.trim_start();
        let skipped = original.get(self.statement.keyword.len()..).unwrap_or_default();
        let mut text = skipped.trim_start().to_owned();
        for heredoc in self.heredocs {
            text.push('\n');
            text.push_str(&heredoc.content);
            text.push_str(&heredoc.name);
        }
        text
    }
}

fn check_trigger_name(trigger: &Statement, diagnostics: &mut Vec<Diagnostic>) {
    let message = match trigger.name.as_str() {
        "onbuild" => "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".to_owned(),
        "from" | "maintainer" => format!("{} isn't allowed as an ONBUILD trigger", trigger.name.to_uppercase()),
        _ => return,
    };
    diagnostics.push(Diagnostic::error("onbuild", message, trigger.keyword.span));
}

/// The description of a stage or argument: what follows `# name ` in the comments directly above it.
pub fn doc_comment(comments: &[String], name: &str) -> Option<String> {
    comments.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::to_owned)
}

/// Checks `name[,required[=bool]]`.
fn check_device(value: &str) -> Result<(), String> {
    let fields = csv::fields(value).map_err(|reason| format!("failed to parse csv devices: {reason}"))?;
    let mut name: Option<&str> = None;
    for field in &fields {
        match field.split_once('=') {
            None if field.eq_ignore_ascii_case("required") => {}
            None if name.is_none() => name = Some(field),
            None => return Err(format!("invalid field '{field}' must be a key=value pair")),
            Some((key, value)) => match key.to_lowercase().as_str() {
                "name" => {
                    if let Some(name) = name {
                        return Err(format!("device name already set to {name}"));
                    }
                    name = Some(value);
                }
                "required" if mount::parse_bool(value).is_some() => {}
                "required" => return Err(format!("invalid value for required: {value}")),
                _ if name.is_none() => name = Some(field),
                key => {
                    let near = suggest(key, ["name", "required"]).map(|near| format!(" (did you mean {near}?)"));
                    return Err(format!("unexpected key '{key}' in '{field}'{}", near.unwrap_or_default()));
                }
            },
        }
    }
    Ok(())
}
