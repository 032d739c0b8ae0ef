//! Mistakes in the user's text: what, where, and what to do about it.

use crate::Span;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The build can go on.
    Warning,
    /// The build cannot start.
    Error,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub level: Level,
    /// The rule it breaks: `kebab-case` for errors, the upstream name (`StageNameCasing`) for lint rules.
    /// `limit` marks what is too large rather than wrong.
    pub rule: &'static str,
    /// One line.
    pub message: String,
    /// Where.
    pub span: Span,
    /// What to do instead.
    pub hint: Option<String>,
    /// Where the rule is explained.
    pub url: Option<String>,
    /// What the rule is about, in general.
    pub detail: Option<String>,
}

impl Diagnostic {
    /// Makes an error.
    pub fn error(rule: &'static str, message: impl Into<String>, span: Span) -> Self {
        Self { level: Level::Error, rule, message: message.into(), span, hint: None, url: None, detail: None }
    }

    /// Makes a warning.
    pub fn warning(rule: &'static str, message: impl Into<String>, span: Span) -> Self {
        Self { level: Level::Warning, ..Self::error(rule, message, span) }
    }

    /// Adds a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the address of an explanation.
    #[must_use]
    pub fn with_url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// Adds a general description.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Whether it stops the build.
    pub fn is_error(&self) -> bool {
        self.level == Level::Error
    }
}

/// Whether any of `diagnostics` stops the build.
pub fn has_errors(diagnostics: &[Diagnostic]) -> bool {
    diagnostics.iter().any(Diagnostic::is_error)
}
