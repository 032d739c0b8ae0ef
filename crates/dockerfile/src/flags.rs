//! Flags of instructions: `--name=value`, checked against what the instruction knows.
//!
//! Source: BuildKit `instructions/bflag.go`.

use std::collections::BTreeMap;

use crate::{Diagnostic, Span, Spanned, Statement, suggest};

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    /// Nothing, `true` or `false`.
    Bool,
    /// One value; the flag may stand once.
    Value,
    /// One value; the flag may be repeated.
    Values,
}

/// The flags of one statement.
#[derive(Debug, Default)]
pub(crate) struct Flags {
    bools: BTreeMap<&'static str, bool>,
    values: BTreeMap<&'static str, Vec<Spanned<String>>>,
}

impl Flags {
    /// Checks the flags of `statement`; what is wrong is reported and left out.
    pub(crate) fn parse(
        statement: &Statement,
        known: &[(&'static str, Takes)],
        diagnostics: &mut Vec<Diagnostic>,
    ) -> Flags {
        let mut flags = Flags::default();
        for flag in &statement.flags {
            if let Err((rule, message)) = flags.add(flag, known) {
                diagnostics.push(Diagnostic::error(rule, message, flag.span));
            }
        }
        flags
    }

    /// The error is a rule and a message.
    fn add(&mut self, flag: &Spanned<String>, known: &[(&'static str, Takes)]) -> Result<(), (&'static str, String)> {
        let (dashed, value) = match flag.value.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag.value.as_str(), None),
        };
        let name = dashed.strip_prefix("--").unwrap_or(dashed);
        let Some((name, takes)) = known.iter().find(|(known, _)| *known == name) else {
            let mut message = format!("unknown flag: {dashed}");
            if let Some(near) = suggest(name, known.iter().map(|(known, _)| *known)) {
                message.push_str(&format!(" (did you mean {near}?)"));
            }
            return Err(("unknown-flag", message));
        };
        if *takes != Takes::Values && (self.bools.contains_key(name) || self.values.contains_key(name)) {
            return Err(("duplicate-flag", format!("duplicate flag specified: {dashed}")));
        }
        let missing = || ("flag-value", format!("missing a value on flag: {dashed}"));
        match takes {
            Takes::Bool => {
                let given = match value {
                    None => true,
                    Some("") => return Err(missing()),
                    Some(text) if text.eq_ignore_ascii_case("true") => true,
                    Some(text) if text.eq_ignore_ascii_case("false") => false,
                    Some(text) => {
                        let message = format!("expecting boolean value for flag {dashed}, not: {text}");
                        return Err(("flag-value", message));
                    }
                };
                self.bools.insert(name, given);
            }
            Takes::Value | Takes::Values => {
                let value = value.ok_or_else(missing)?;
                self.values.entry(name).or_default().push(Spanned::new(value.to_owned(), value_span(flag, dashed)));
            }
        }
        Ok(())
    }

    /// The value of a flag without a value, where it was given.
    pub(crate) fn bool(&self, name: &str) -> Option<bool> {
        self.bools.get(name).copied()
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<Spanned<String>> {
        self.values.remove(name)?.pop()
    }

    /// As [`Flags::take`], where an empty value means the same as no flag.
    pub(crate) fn take_nonempty(&mut self, name: &str) -> Option<Spanned<String>> {
        self.take(name).filter(|value| !value.is_empty())
    }

    pub(crate) fn take_all(&mut self, name: &str) -> Vec<Spanned<String>> {
        self.values.remove(name).unwrap_or_default()
    }
}

/// Points at the value alone, if the flag was written without quotes, escapes and line breaks.
fn value_span(flag: &Spanned<String>, dashed: &str) -> Span {
    let span = flag.span;
    if span.end - span.start == flag.value.len() { Span::new(span.start + dashed.len() + 1, span.end) } else { span }
}
