//! Dockerfiles as values: text to statements, statements to instructions, words to expanded words.
//!
//! Layers, each usable alone:
//!
//! - `syntax`: lines, directives, continuations, heredocs and flags become [`Statement`]s. It knows no instruction's
//!   meaning, so an unknown instruction is not an error here.
//! - [`parse`]: statements become stages of typed [`Instruction`]s, with every mistake reported at once.
//! - [`lint`]: the build checks; those that need only the text are made here.
//! - [`expand`] and [`ignore`]: what a build applies to the words later (variables, patterns).
//!
//! Nothing here does I/O. The parser is total: any text gives a [`Dockerfile`] and a list of [`Diagnostic`]s.
//!
//! Source: Dockerfile reference; BuildKit `frontend/dockerfile/{parser,instructions,shell}` for the behaviour.

mod csv;
mod diagnostic;
mod duration;
pub mod expand;
mod flags;
mod glob;
pub mod ignore;
mod instruction;
mod limits;
pub mod lint;
mod lower;
pub mod mount;
mod span;
mod statement;
mod suggest;
mod syntax;
pub mod syntax_json;
mod words;

pub use diagnostic::{Diagnostic, Level, has_errors};
pub use duration::{DurationError, parse_duration};
pub use glob::{BadPattern, glob_match};
pub use instruction::{
    Add, ArgPair, Command, Copy, Directive, Dockerfile, Healthcheck, Heredoc, Instruction, InstructionKind, KeyValue,
    Run, RunMount, RunMountKind, Stage,
};
pub use limits::{
    MAX_CONTINUATION_LINES, MAX_EXPANSION_BYTES, MAX_EXPANSION_DEPTH, MAX_HEREDOC_NAME_BYTES, MAX_HEREDOCS,
    MAX_INSTRUCTIONS, MAX_LINE_BYTES, MAX_SOURCE_BYTES, MAX_STAGES,
};
pub(crate) use lower::is_stage_name;
pub use lower::{INSTRUCTION_NAMES, doc_comment, parse, parse_trigger};
pub use span::{LineIndex, Span, Spanned};
pub use statement::Statement;
pub use suggest::{suggest, suggest_ignoring_case};
pub use syntax::{Syntax, detect_syntax, parse_heredoc_word, parse_syntax};
