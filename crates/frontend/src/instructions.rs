//! Instructions that change the config, and the door to those that change the tree.

use build_engine_dockerfile::expand::Environment;
use build_engine_dockerfile::{
    ArgPair, Command as CommandLine, Diagnostic, Healthcheck, InstructionKind, KeyValue, Span, Spanned,
};
use build_engine_graph::{FileAction, FileActionKind, FileOp, Metadata, Op, redact_url};
use build_engine_oci::{self as oci, History, ImageConfig};

use crate::convert::{Converter, Fallible, expansion_error};
use crate::copy::{CopyKind, owner};
use crate::env::{self, Env};
use crate::stage::{Command, MEMBER, Stage, StageId};
use crate::{args, gotext, name, paths, ports};

/// What history items say made them; tools look for it.
const HISTORY_COMMENT: &str = "buildkit.dockerfile.v0";

impl Environment for Env {
    fn get(&self, name: &str) -> Option<String> {
        Env::get(self, name).map(str::to_owned)
    }
}

/// Whether an instruction made a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    Made,
    None,
}

impl Stage<'_> {
    /// Enters `path` as `WORKDIR` does.
    pub(crate) fn set_directory(&mut self, path: &str) {
        let windows = self.platform.as_ref().is_some_and(|platform| platform.os == "windows");
        let slashes = |path: &str| if windows { without_drive(path) } else { path.to_owned() };
        let directory = paths::absolute(&paths::join("/", &slashes(&self.image.config.working_dir)), &slashes(path));
        self.image.config.working_dir = if windows { directory.replace('/', "\\") } else { directory.clone() };
        self.state.dir = directory;
    }

    /// Adds a history item. It goes wherever the image goes, so credentials in URLs are hidden; BuildKit keeps them.
    pub(crate) fn remember(&mut self, created_by: &str, layer: Layer, epoch: Option<i64>) {
        self.image.history.push(History {
            created: epoch.map(gotext::rfc3339),
            created_by: redact_url(created_by),
            comment: HISTORY_COMMENT.into(),
            empty_layer: layer == Layer::None,
            ..History::default()
        });
    }
}

/// A path of Windows with slashes and without a drive letter.
fn without_drive(path: &str) -> String {
    let path = path.replace('\\', "/");
    match path.split_once(':') {
        Some((drive, rest)) if drive.len() == 1 => rest.to_owned(),
        _ => path,
    }
}

/// A command line as the config holds it: in shell form with the shell before it.
pub(crate) fn command_line(image: &ImageConfig, command: &CommandLine) -> Vec<String> {
    match command {
        CommandLine::Exec(args) => args.clone(),
        CommandLine::Shell(text) => with_shell(image, text),
    }
}

/// The shell of the image with `text` as its last argument.
pub(crate) fn with_shell(image: &ImageConfig, text: &str) -> Vec<String> {
    let mut line = match (image.config.shell.as_slice(), image.os.as_str()) {
        ([], "windows") => ["cmd", "/S", "/C"].map(str::to_owned).to_vec(),
        ([], _) => ["/bin/sh", "-c"].map(str::to_owned).to_vec(),
        (shell, _) => shell.to_vec(),
    };
    line.push(text.to_owned());
    line
}

impl<'a> Converter<'a> {
    /// Lowers one instruction.
    pub(crate) fn dispatch(&mut self, id: StageId, command: &Command<'a>) -> Fallible<()> {
        let span = command.instruction.span;
        let epoch = self.epoch;
        match &command.instruction.kind {
            InstructionKind::Add(add) => return self.copy(id, command, &CopyKind::Add(add)),
            InstructionKind::Copy(copy) => return self.copy(id, command, &CopyKind::Copy(copy)),
            InstructionKind::Run(run) => return self.run(id, command, run),
            InstructionKind::Workdir(path) => return self.workdir(id, command, path),
            InstructionKind::Arg(pairs) => return self.arg(id, command, pairs),
            InstructionKind::Env(pairs) => {
                let pairs = self.expand_pairs(id, command, pairs)?;
                for (key, _) in &pairs {
                    self.check_secret_name("ENV", key);
                }
                let stage = &mut self.stages[id];
                let mut text = String::from("ENV");
                for (key, value) in pairs {
                    text.push_str(&format!(" {key}={value}"));
                    stage.state.env.set(&key, &value);
                    env::set_in_list(&mut stage.image.config.env, &key, &value);
                }
                stage.remember(&text, Layer::None, epoch);
            }
            InstructionKind::Label(pairs) => {
                let pairs = self.expand_pairs(id, command, pairs)?;
                let stage = &mut self.stages[id];
                let mut text = String::from("LABEL");
                for (key, value) in pairs {
                    text.push_str(&format!(" {key}={value}"));
                    stage.image.config.labels.insert(key, value);
                }
                stage.remember(&text, Layer::None, epoch);
            }
            InstructionKind::Maintainer(author) => {
                let stage = &mut self.stages[id];
                stage.image.author.clone_from(&author.value);
                stage.remember(&format!("MAINTAINER {}", author.value), Layer::None, epoch);
            }
            InstructionKind::Onbuild { expression, .. } => {
                self.stages[id].image.config.on_build.push(expression.clone());
            }
            InstructionKind::Cmd(line) => {
                self.check_once(id, command);
                if matches!(line, CommandLine::Shell(_)) {
                    self.check_shell_form(id, command);
                }
                let stage = &mut self.stages[id];
                let line = command_line(&stage.image, line);
                stage.remember(&format!("CMD {}", gotext::quoted_list(&line)), Layer::None, epoch);
                stage.image.config.cmd = (!line.is_empty()).then_some(line);
                stage.image.config.args_escaped = true;
                stage.cmd_set = true;
            }
            InstructionKind::Entrypoint(line) => {
                self.check_once(id, command);
                if matches!(line, CommandLine::Shell(_)) {
                    self.check_shell_form(id, command);
                }
                let stage = &mut self.stages[id];
                let line = command_line(&stage.image, line);
                stage.remember(&format!("ENTRYPOINT {}", gotext::quoted_list(&line)), Layer::None, epoch);
                stage.image.config.entrypoint = (!line.is_empty()).then_some(line);
                // An inherited command was meant for the inherited entry point.
                if !stage.cmd_set {
                    stage.image.config.cmd = None;
                }
            }
            InstructionKind::Healthcheck(check) => {
                self.check_once(id, command);
                let check = healthcheck(check);
                let text = format!(
                    "HEALTHCHECK {{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
                    gotext::list(&check.test),
                    gotext::duration(check.interval),
                    gotext::duration(check.timeout),
                    gotext::duration(check.start_period),
                    gotext::duration(check.start_interval),
                    check.retries
                );
                let stage = &mut self.stages[id];
                stage.image.config.healthcheck = Some(check);
                stage.remember(&text, Layer::None, epoch);
            }
            InstructionKind::Expose(written) => {
                let mut words: Vec<&str> = written.iter().map(|word| word.value.as_str()).collect();
                words.sort_unstable();
                let mut exposed = Vec::new();
                for word in words {
                    let expanded = self.settings.lex.words(word, &self.stages[id].state.env);
                    for port in expanded.map_err(|error| expansion_error(&error, span))? {
                        let place =
                            written.iter().find(|known| known.value == word).map_or(span, |word| command.at(word.span));
                        let found =
                            ports::parse(&port).map_err(|message| Diagnostic::error("invalid-port", message, place))?;
                        self.check_port(&port);
                        exposed.extend(found);
                    }
                }
                let stage = &mut self.stages[id];
                stage.remember(&format!("EXPOSE {}", gotext::list(&exposed)), Layer::None, epoch);
                stage.image.config.exposed_ports.extend(exposed.into_iter().map(|port| (port, MEMBER)));
            }
            InstructionKind::User(user) => {
                let user = self.expand(id, user, command.at(user.span))?;
                let stage = &mut self.stages[id];
                stage.remember(&format!("USER {user}"), Layer::None, epoch);
                stage.state.user.clone_from(&user);
                stage.image.config.user = user;
            }
            InstructionKind::Volume(written) => {
                let mut volumes = Vec::with_capacity(written.len());
                for volume in written {
                    let place = command.at(volume.span);
                    let path = self.expand(id, volume.value.trim(), place)?;
                    if path.is_empty() {
                        return Err(
                            Diagnostic::error("empty-volume", "a volume cannot be an empty string", place).into()
                        );
                    }
                    volumes.push(path);
                }
                let stage = &mut self.stages[id];
                stage.remember(&format!("VOLUME {}", gotext::list(&volumes)), Layer::None, epoch);
                stage.image.config.volumes.extend(volumes.into_iter().map(|path| (path, MEMBER)));
            }
            InstructionKind::Stopsignal(signal) => {
                let place = command.at(signal.span);
                let signal = self.expand(id, signal, place)?;
                if !is_signal(&signal) {
                    let error = Diagnostic::error("invalid-signal", format!("`{signal}` is not a signal"), place);
                    return Err(error.with_hint("a name such as SIGTERM or a number").into());
                }
                let stage = &mut self.stages[id];
                stage.remember(&format!("STOPSIGNAL {signal}"), Layer::None, epoch);
                stage.image.config.stop_signal = signal;
            }
            InstructionKind::Shell(line) => {
                let stage = &mut self.stages[id];
                stage.remember(&format!("SHELL {}", gotext::list(line)), Layer::None, epoch);
                stage.image.config.shell.clone_from(line);
            }
        }
        Ok(())
    }

    /// Expands a word with the variables of a stage.
    pub(crate) fn expand(&self, id: StageId, word: &str, span: Span) -> Fallible<String> {
        match self.settings.lex.word(word, &self.stages[id].state.env) {
            Ok(expanded) => {
                self.check_variables(id, &expanded.unmatched);
                Ok(expanded.text)
            }
            Err(error) => Err(expansion_error(&error, span).into()),
        }
    }

    /// Expands all pairs with the values from before the instruction.
    fn expand_pairs(&self, id: StageId, command: &Command<'_>, pairs: &[KeyValue]) -> Fallible<Vec<(String, String)>> {
        let word = |word: &Spanned<String>| self.expand(id, word, command.at(word.span));
        let expanded = pairs.iter().map(|pair| Ok((word(&pair.key)?, word(&pair.value)?))).collect();
        for _ in pairs.iter().filter(|pair| pair.legacy) {
            self.check_legacy_pair(command);
        }
        expanded
    }

    fn arg(&mut self, id: StageId, command: &Command<'_>, pairs: &[ArgPair]) -> Fallible<()> {
        let mut texts = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let key = &pair.key.value;
            self.declared_args.insert(key.clone());
            self.check_secret_name("ARG", key);
            let is_inherited = !self.build_args.contains_key(key) && pair.value.is_none();
            let is_inherited = is_inherited && self.globals.get(key).is_some();
            let value = match (self.build_args.get(key), &pair.value) {
                (Some(value), _) => Some(value.clone()),
                (None, Some(default)) => Some(self.expand(id, default, command.at(default.span))?),
                (None, None) => self.globals.get(key).map(str::to_owned),
            };
            let outlining = self.outlining;
            let stage = &mut self.stages[id];
            if outlining {
                stage.captured.argument(pair, command.instruction.span, value.clone(), is_inherited);
            }
            match &value {
                Some(value) => {
                    if !args::NOT_IN_ENV.contains(&key.as_str()) {
                        stage.state.env.set(key, value);
                    }
                    texts.push(format!("{key}={value}"));
                }
                None => texts.push(key.clone()),
            }
            stage.args.push((key.clone(), value));
        }
        self.stages[id].remember(&format!("ARG {}", texts.join(" ")), Layer::None, self.epoch);
        Ok(())
    }

    fn workdir(&mut self, id: StageId, command: &Command<'a>, path: &Spanned<String>) -> Fallible<()> {
        let expanded = self.expand(id, path, command.at(path.span))?;
        self.check_directory(id, &expanded);
        self.stages[id].set_directory(&expanded);
        let directory = self.stages[id].state.dir.clone();
        let mut layer = Layer::None;
        if directory != "/" {
            layer = Layer::Made;
            let name = self.next_name(id, command.instruction.text.trim());
            let stage = &self.stages[id];
            let base = stage.state.tree;
            let user = stage.image.config.user.as_str();
            let kind = FileActionKind::Mkdir {
                path: paths::join("/", &directory),
                mode: 0o755,
                make_parents: true,
                owner: (!user.is_empty()).then(|| owner(user, base.map(|_| 0))),
                timestamp: self.epoch.map(|seconds| seconds.saturating_mul(1_000_000_000)),
            };
            let action = FileAction { input: base.map(|_| 0), secondary_input: None, output: Some(0), kind };
            let metadata = Metadata { name, spans: self.place(command.instruction.span), ..Metadata::default() };
            let op = Op::File(FileOp { actions: vec![action] });
            let tree = self.draft.add(op, base.into_iter().collect(), None, metadata);
            self.stages[id].state.tree = Some(tree);
        }
        self.stages[id].remember(&format!("WORKDIR {directory}"), layer, self.epoch);
        Ok(())
    }

    /// The name of the next vertex of a stage, for an instruction whose variables are replaced.
    pub(crate) fn next_name(&mut self, id: StageId, text: &str) -> String {
        let env = self.stages[id].state.env.clone();
        let text = name::of_instruction(self.settings.lex, text, &env);
        self.count_name(id, &text, &env)
    }

    /// The name of the next vertex of a stage.
    pub(crate) fn count_name(&mut self, id: StageId, text: &str, env: &Env) -> String {
        let platform = self.stages[id].platform_or(&self.target_platform);
        name::next(&mut self.stages[id], text, self.settings.multi_platform, &platform, env)
    }
}

impl Command<'_> {
    /// The place of a part of it. Parts of a trigger stand in another text, so the `FROM` that runs it is meant.
    pub(crate) fn at(&self, part: Span) -> Span {
        if self.is_trigger { self.instruction.span } else { part }
    }
}

fn healthcheck(check: &Healthcheck) -> oci::Healthcheck {
    match check {
        Healthcheck::None => oci::Healthcheck { test: vec!["NONE".into()], ..oci::Healthcheck::default() },
        Healthcheck::Cmd { command, interval, timeout, start_period, start_interval, retries } => {
            let mut test = vec![];
            match command {
                CommandLine::Shell(text) => test.extend(["CMD-SHELL".to_owned(), text.clone()]),
                CommandLine::Exec(args) => {
                    test.push("CMD".to_owned());
                    test.extend(args.iter().cloned());
                }
            }
            oci::Healthcheck {
                test,
                interval: interval.unwrap_or_default(),
                timeout: timeout.unwrap_or_default(),
                start_period: start_period.unwrap_or_default(),
                start_interval: start_interval.unwrap_or_default(),
                retries: i64::from(retries.unwrap_or_default()),
            }
        }
    }
}

/// Whether `text` names a signal of Linux, or is a number other than 0.
fn is_signal(text: &str) -> bool {
    const NAMES: [&str; 36] = [
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
        "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
        "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
    ];
    if let Ok(number) = text.parse::<i32>() {
        return number != 0;
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |prefix: &str, last: u32| {
        let offset = name.strip_prefix(prefix).filter(|digits| !digits.starts_with(['0', '+']));
        offset.and_then(|digits| digits.parse().ok()).is_some_and(|offset: u32| (1..=last).contains(&offset))
    };
    NAMES.contains(&name) || real_time("RTMIN+", 15) || real_time("RTMAX-", 14)
}
