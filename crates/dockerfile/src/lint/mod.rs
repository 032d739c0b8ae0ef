//! Build checks: the rules, what switches them on and off, and those that need nothing but the text.
//!
//! Whoever checks makes a [`Linter`] of the Dockerfile's [`Options`] and hands it through: [`check_text`] looks at the
//! statements; what depends on stages, arguments and base images is checked by the frontend while it lowers. Whatever a
//! rule finds goes through [`Linter::report`], the one place that knows what is skipped.
//!
//! Invariant: findings have BuildKit's rule names and messages, and cover the lines of the instruction they are about.
//!
//! Source: BuildKit `frontend/dockerfile/linter` and the checks in `instructions/parse.go`.

mod options;
pub mod rules;

use std::collections::BTreeSet;

pub use options::Options;
pub use rules::{RULES, Rule};

use crate::words::is_blank;
use crate::{Diagnostic, Dockerfile, Span, Statement, is_stage_name};

/// Stage names that mean something else already.
const RESERVED: [&str; 2] = ["context", "scratch"];

/// Most findings that are kept. A file with more is generated, or made to be slow; it is as wrong with these.
const MOST_FINDINGS: usize = 2000;
/// Most bytes of their messages, which have names of the file in them.
const MOST_BYTES: usize = 4 << 20;

/// Collects what the rules find.
#[derive(Debug, Clone, Default)]
pub struct Linter {
    options: Options,
    found: Vec<Diagnostic>,
    /// Of the messages.
    bytes: usize,
}

impl Linter {
    /// A linter that leaves out what `options` skip.
    pub fn new(options: Options) -> Self {
        Self { options, found: Vec::new(), bytes: 0 }
    }

    /// Takes a finding about the instruction at `span`, unless the rule is off for the file or by one of `comments`, the
    /// comments directly above it; rules about the file as a whole give none. Of very many, the first ones are kept.
    pub fn report(&mut self, rule: &Rule, span: Span, comments: &[String], message: impl Into<String>) {
        if self.is_full() || !self.options.with_comments(comments).allow(rule) {
            return;
        }
        let mut diagnostic = Diagnostic::warning(rule.name, message, span).with_detail(rule.description);
        diagnostic.url = rule.url();
        self.bytes += diagnostic.message.len();
        self.found.push(diagnostic);
    }

    /// Whether no more findings are kept, so that none need be looked for.
    pub fn is_full(&self) -> bool {
        self.found.len() >= MOST_FINDINGS || self.bytes >= MOST_BYTES
    }

    /// What was found so far, in the order of the checks.
    pub fn found(&self) -> &[Diagnostic] {
        &self.found
    }

    /// What makes a build fail that is to have no findings (`error=true`), naming the rules in the order in which they
    /// were broken.
    pub fn violation(&self) -> Option<Diagnostic> {
        if !self.options.error || self.found.is_empty() {
            return None;
        }
        let mut rules: Vec<&str> = Vec::new();
        for found in &self.found {
            if !rules.contains(&found.rule) {
                rules.push(found.rule);
            }
        }
        let message = format!("lint violation found for rules: {}", rules.join(", "));
        let error = Diagnostic::error(VIOLATION, message, Span::default());
        Some(error.with_hint("`check=error=true` makes findings fail; `check=skip=RULE` leaves a rule out"))
    }
}

/// The rule of [`Linter::violation`].
pub const VIOLATION: &str = "lint-violation";

/// Checks what the text alone shows. `diagnostics` are the parser's; with errors among them, nothing is said about the
/// file as a whole, which was not understood as a whole.
pub fn check_text(dockerfile: &Dockerfile, diagnostics: &[Diagnostic], linter: &mut Linter) {
    for found in diagnostics.iter().filter(|found| found.rule == rules::NO_EMPTY_CONTINUATION.name) {
        linter.report(&rules::NO_EMPTY_CONTINUATION, found.span, &[], found.message.clone());
    }
    for statement in &dockerfile.statements {
        check_statement(statement, linter);
    }
    if !crate::has_errors(diagnostics) {
        check_stage_names(dockerfile, linter);
        check_casing(dockerfile, linter);
    }
}

fn check_statement(statement: &Statement, linter: &mut Linter) {
    let keyword = statement.keyword.as_str();
    let mut report = |rule, message| linter.report(rule, statement.span, &statement.comments, message);
    match statement.name.as_str() {
        "maintainer" => report(
            &rules::MAINTAINER_DEPRECATED,
            "Maintainer instruction is deprecated in favor of using label".to_owned(),
        ),
        "from" => {
            let [_, word, name] = statement.args.as_slice() else { return };
            if name.to_lowercase() != name.value {
                report(&rules::STAGE_NAME_CASING, format!("Stage name '{name}' should be lowercase"));
            }
            let differs = match keyword {
                _ if keyword == keyword.to_lowercase() => word.value != word.to_lowercase(),
                _ if keyword == keyword.to_uppercase() => word.value != word.to_uppercase(),
                // Of its own casing another rule speaks.
                _ => false,
            };
            if differs {
                report(&rules::FROM_AS_CASING, format!("'{word}' and '{keyword}' keywords' casing do not match"));
            }
            let name = name.to_lowercase();
            if word.eq_ignore_ascii_case("as")
                && is_stage_name(&name)
                && let Some(message) = wrong_description("FROM", &[&name], &statement.comments)
            {
                report(&rules::INVALID_DEFINITION_DESCRIPTION, message);
            }
        }
        "arg" => {
            let names: Vec<&str> = statement
                .args
                .iter()
                .map(|word| word.split_once('=').map_or(word.as_str(), |(name, _)| name))
                .collect();
            if let Some(message) = wrong_description("ARG", &names, &statement.comments) {
                report(&rules::INVALID_DEFINITION_DESCRIPTION, message);
            }
        }
        _ => {}
    }
}

/// The comment directly above a definition begins with the name of what it describes.
fn wrong_description(instruction: &str, names: &[&str], comments: &[String]) -> Option<String> {
    let (last, first) = (comments.last()?, names.first()?);
    let word = last.split(' ').next().unwrap_or_default();
    if names.contains(&word) {
        return None;
    }
    let name = if names.len() > 1 { "<arg_key>" } else { first };
    Some(format!("Comment for {instruction} should follow the format: `# {name} <description>`"))
}

fn check_stage_names(dockerfile: &Dockerfile, linter: &mut Linter) {
    let mut seen = BTreeSet::new();
    for stage in &dockerfile.stages {
        let Some(name) = stage.name.as_ref().map(|name| name.value.as_str()) else { continue };
        if RESERVED.contains(&name) {
            let message = format!("Stage name should not use the same name as reserved stage {name:?}");
            linter.report(&rules::RESERVED_STAGE_NAME, stage.span, &[], message);
        }
        if !seen.insert(name) {
            let message = format!("Duplicate stage name {name:?}, stage names should be unique");
            linter.report(&rules::DUPLICATE_STAGE_NAME, stage.span, &[], message);
        }
    }
}

/// Every instruction of the stages is written in the case that most of them are written in.
fn check_casing(dockerfile: &Dockerfile, linter: &mut Linter) {
    let keywords: Vec<(&str, Span)> = dockerfile
        .stages
        .iter()
        .flat_map(|stage| {
            let instructions = stage.instructions.iter();
            std::iter::once((keyword(&stage.text), stage.span))
                .chain(instructions.map(|instruction| (keyword(&instruction.text), instruction.span)))
        })
        .collect();
    let is_lower = |word: &str| word == word.to_lowercase();
    let is_upper = |word: &str| word == word.to_uppercase();
    let lower = keywords.iter().filter(|(word, _)| is_lower(word)).count();
    let upper = keywords.iter().filter(|(word, _)| !is_lower(word) && is_upper(word)).count();
    for (word, span) in keywords {
        let wanted = match lower > upper {
            true if !is_lower(word) => "lowercase",
            false if !is_upper(word) => "uppercase",
            _ => continue,
        };
        let message = format!("Command '{word}' should match the case of the command majority ({wanted})");
        linter.report(&rules::CONSISTENT_INSTRUCTION_CASING, span, &[], message);
    }
}

/// The name of the instruction that `text` is, as it is written there.
pub fn keyword(text: &str) -> &str {
    let text = text.trim_start();
    &text[..text.find(is_blank).unwrap_or(text.len())]
}
