//! `SOURCE_DATE_EPOCH` that is no number: the time of a source.
//!
//! It may name the build context (`context`), a named context, or a stage that does nothing but `ADD` one remote source to
//! `scratch`. A source that has no time leaves it unset. Source: BuildKit `dockerfile2llb/epoch.go`.

use build_engine_dockerfile::{Add, Diagnostic, Instruction, InstructionKind, Span, Stage};
use build_engine_graph::SourceOp;

use crate::convert::{Converter, Fallible, expansion_error};
use crate::env::Env;
use crate::request::{Answer, Question};
use crate::{args, copy, git, remote};

impl Converter<'_> {
    /// The time that `value` names. `None` if there is none, an error was reported, or a question must be answered first.
    pub(crate) fn epoch_of(&mut self, value: &str) -> Option<i64> {
        let source = match self.epoch_source(value) {
            Ok(source) => source?,
            Err(error) => {
                self.error(*error);
                return None;
            }
        };
        match self.answer(Question::Time { identifier: source.identifier, attrs: source.attrs })? {
            Answer::Time(time) => *time,
            Answer::Failed(reason) => {
                let message = format!("SOURCE_DATE_EPOCH is `{value}`, whose time cannot be found out: {reason}");
                self.error(Diagnostic::error("invalid-build-arg", message, Span::default()));
                None
            }
            _ => None,
        }
    }

    fn epoch_source(&self, value: &str) -> Fallible<Option<SourceOp>> {
        let wrong = |message: String| Diagnostic::error("invalid-build-arg", message, Span::default());
        if value == "context" {
            let request = self.settings.request;
            return request.context.source(request).map_err(|reason| wrong(reason).into());
        }
        if let Some(context) = self.settings.contexts.find(value, &self.target_platform).map_err(wrong)? {
            return Ok(context.fetched());
        }
        let named = |stage: &&Stage| stage.name.as_ref().is_some_and(|name| name.value.eq_ignore_ascii_case(value));
        match self.parsed().stages.iter().find(named) {
            Some(stage) => self.stage_source(stage).map(Some),
            None => Err(wrong(format!(
                "SOURCE_DATE_EPOCH is `{value}`: it is neither a number of seconds nor the name of a context or stage"
            ))
            .into()),
        }
    }

    fn stage_source(&self, stage: &Stage) -> Fallible<SourceOp> {
        let wrong = |message: &str, span: Span| {
            Diagnostic::error("invalid-build-arg", format!("a stage that SOURCE_DATE_EPOCH names {message}"), span)
        };
        const ONE: &str = "has exactly one ADD, of one remote source";
        let mut env = self.globals.clone();
        env.remove(args::EPOCH);
        let base =
            self.settings.lex.word(&stage.base, &env).map_err(|error| expansion_error(&error, stage.base.span))?;
        if base.text != "scratch" {
            return Err(wrong("starts FROM scratch", stage.base.span).into());
        }
        let mut found = None;
        for instruction in &stage.instructions {
            match &instruction.kind {
                InstructionKind::Arg(pairs) => {
                    for pair in pairs {
                        let value = match (self.build_args.get(&pair.key.value), &pair.value) {
                            (Some(value), _) => value.clone(),
                            (None, Some(default)) => {
                                let expanded = self.settings.lex.word(default, &env);
                                expanded.map_err(|error| expansion_error(&error, instruction.span))?.text
                            }
                            (None, None) => continue,
                        };
                        env.set(&pair.key.value, &value);
                    }
                }
                InstructionKind::Add(add) if found.is_none() => found = Some(self.added(add, instruction, &env)?),
                InstructionKind::Add(_) => return Err(wrong(ONE, instruction.span).into()),
                _ => return Err(wrong("has no instructions but ARG and ADD", instruction.span).into()),
            }
        }
        found.ok_or_else(|| wrong(ONE, stage.span).into())
    }

    fn added(&self, add: &Add, instruction: &Instruction, env: &Env) -> Fallible<SourceOp> {
        let span = instruction.span;
        let word = |text: &str| -> Fallible<String> {
            Ok(self.settings.lex.word(text, env).map_err(|error| expansion_error(&error, span))?.text)
        };
        let wrong = |message: String| Diagnostic::error("invalid-build-arg", message, span);
        let [source] = &add.sources[..] else {
            return Err(wrong("a stage that SOURCE_DATE_EPOCH names adds one remote source".into()).into());
        };
        let source = word(source)?;
        let checksum = add.checksum.as_ref().map(|checksum| word(checksum)).transpose()?;
        if let Some(mut git) = git::parse(&source).map_err(wrong)? {
            git.keep_git_dir = git.keep_git_dir.or(add.keep_git_dir);
            git.checksum = checksum.or(git.checksum);
            return Ok(git.source());
        }
        if !(source.starts_with("http://") || source.starts_with("https://")) {
            return Err(wrong(format!("`{source}` is no remote source, so it has no time")).into());
        }
        Ok(SourceOp { attrs: remote::file_attributes(&copy::url_file_name(&source), checksum), identifier: source })
    }
}
