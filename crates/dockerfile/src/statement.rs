//! Statements: one instruction as words, before its meaning is known.

use crate::{Heredoc, Span, Spanned};

/// One instruction with its continuation lines and heredocs, split into words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Statement {
    /// The instruction's name in lower case, known or not.
    pub name: String,
    /// The name as written.
    pub keyword: Spanned<String>,
    /// From the name to the end of the last line, heredocs included.
    pub span: Span,
    /// Line of the name, counted from 1.
    pub start_line: usize,
    /// Last line.
    pub end_line: usize,
    /// Words that start with `--`, before the arguments, without their quotes.
    pub flags: Vec<Spanned<String>>,
    /// The arguments, split as the instruction wants it: the shell form of a command is one word; `ENV` and `LABEL`
    /// give key, value and `=` (empty for the old form) per pair; a JSON array gives its strings. Empty for `ONBUILD`.
    pub args: Vec<Spanned<String>>,
    /// Whether the arguments were a JSON array.
    pub exec_form: bool,
    /// The text as written, continuation lines joined, heredoc bodies left out.
    pub original: String,
    /// Comments above it, without `#`.
    pub comments: Vec<String>,
    /// Heredocs in order. Those of a trigger are listed at the `ONBUILD` statement.
    pub heredocs: Vec<Heredoc>,
    /// The instruction after `ONBUILD`.
    pub trigger: Option<Box<Statement>>,
}
