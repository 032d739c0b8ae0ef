//! Statements as JSON: the stable output of `dockerfile parse --format json`.

use serde_json::{Value, json};

use crate::{Diagnostic, Heredoc, LineIndex, Statement, Syntax};

/// Gives the document `{"escape", "instructions", "warnings"}`; `source` is what `syntax` was parsed from.
///
/// Only the warnings among `diagnostics` are part of it: with an error there is no document.
pub fn to_json(syntax: &Syntax, diagnostics: &[Diagnostic], source: &str) -> Value {
    let lines = LineIndex::new(source);
    let warnings: Vec<Value> = diagnostics
        .iter()
        .filter(|diagnostic| !diagnostic.is_error())
        .map(|found| json!({"rule": found.rule, "line": lines.line(found.span.start), "message": found.message}))
        .collect();
    let instructions: Vec<Value> = syntax.statements.iter().map(statement_to_json).collect();
    json!({"escape": syntax.escape.to_string(), "instructions": instructions, "warnings": warnings})
}

/// Gives one statement.
pub fn statement_to_json(statement: &Statement) -> Value {
    let values = |words: &[crate::Spanned<String>]| words.iter().map(|word| word.value.clone()).collect::<Vec<_>>();
    json!({
        "name": statement.name,
        "flags": values(&statement.flags),
        "args": values(&statement.args),
        "exec_form": statement.exec_form,
        "start_line": statement.start_line,
        "end_line": statement.end_line,
        "comments": statement.comments,
        "original": statement.original,
        "heredocs": statement.heredocs.iter().map(heredoc_to_json).collect::<Vec<_>>(),
        "trigger": statement.trigger.as_deref().map(statement_to_json),
    })
}

fn heredoc_to_json(heredoc: &Heredoc) -> Value {
    json!({
        "name": heredoc.name,
        "fd": heredoc.fd,
        "expand": heredoc.expand,
        "chomp": heredoc.chomp,
        "content": heredoc.content,
    })
}
