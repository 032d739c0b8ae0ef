//! What can go wrong with a build, in the form that faces print.

use std::fmt;

use build_engine_dockerfile::Diagnostic;
use build_engine_graph::{SourceSpan, redact_url, redact_url_in_place};
use serde::{Deserialize, Serialize};

/// What kind of failure it is; decides the exit code of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitKind {
    /// A build step failed.
    Step,
    /// Flags, Dockerfile, context or configuration are not right.
    Input,
    /// A source, a registry, the network or a needed tool is missing.
    Source,
    /// Content is not what its digest says, or the store is damaged.
    Integrity,
    /// A limit was exceeded.
    Limit,
    /// Disk full, or another failure of input and output.
    Io,
    /// Denied by policy, entitlement or isolation.
    Denied,
    /// Our own mistake.
    Internal,
    /// It took too long.
    Timeout,
    /// It was told to stop.
    Cancelled,
}

impl ExitKind {
    /// The exit code of the command line.
    pub fn code(self) -> u8 {
        match self {
            Self::Step => 1,
            Self::Input => 2,
            Self::Source => 3,
            Self::Integrity => 4,
            Self::Limit => 5,
            Self::Io => 6,
            Self::Denied => 7,
            Self::Internal => 8,
            Self::Timeout => 124,
            Self::Cancelled => 130,
        }
    }
}

/// A place in a source file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Name shown, for example `Dockerfile`.
    pub file: String,
    /// Its whole text.
    pub text: String,
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl Place {
    /// The bytes `span` of a file. Credentials in URLs of its text are hidden, byte by byte.
    pub fn new(file: &str, text: &str, span: std::ops::Range<usize>) -> Self {
        Self { file: file.to_owned(), text: redact_url_in_place(text), start: span.start, end: span.end }
    }
}

impl From<&SourceSpan> for Place {
    fn from(span: &SourceSpan) -> Self {
        Self::new(&span.file.name, &span.file.text, span.bytes.clone())
    }
}

/// One finding: what, where, and the way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Rule name in kebab case, or the name of a lint rule; empty where there is none.
    pub rule: String,
    /// What is wrong, one line.
    pub message: String,
    /// Where.
    pub place: Option<Place>,
    /// The way out.
    pub hint: Option<String>,
    /// What led to it, outermost first.
    pub causes: Vec<String>,
    /// The last lines that the failed step wrote.
    pub log_tail: Vec<String>,
}

impl Report {
    /// A report that has only a message. Credentials in its URLs are hidden.
    pub fn new(rule: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            rule: rule.into(),
            message: redact_url(&message.into()),
            place: None,
            hint: None,
            causes: Vec::new(),
            log_tail: Vec::new(),
        }
    }

    /// Adds the way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(redact_url(&hint.into()));
        self
    }

    /// Adds the place.
    #[must_use]
    pub fn at(mut self, place: Option<Place>) -> Self {
        self.place = place;
        self
    }

    /// Adds an error's message and all that it was caused by.
    #[must_use]
    pub fn caused_by(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            self.causes.push(redact_url(&error.to_string()));
            next = error.source();
        }
        self
    }

    /// A report of what the Dockerfile parser or the frontend found.
    pub fn from_diagnostic(diagnostic: &Diagnostic, file: &str, text: &str) -> Self {
        let span = diagnostic.span.start..diagnostic.span.end;
        Self {
            hint: diagnostic.hint.as_deref().map(redact_url),
            ..Self::new(diagnostic.rule, &diagnostic.message).at(Some(Place::new(file, text, span)))
        }
    }
}

/// Why a build has no result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildError {
    /// The kind.
    pub kind: ExitKind,
    /// What was found; at least one.
    pub reports: Vec<Report>,
}

impl BuildError {
    /// An error with one report.
    pub fn new(kind: ExitKind, report: Report) -> Self {
        Self { kind, reports: vec![report] }
    }

    /// The build was told to stop.
    pub fn cancelled() -> Self {
        Self::new(ExitKind::Cancelled, Report::new("cancelled", "the build was cancelled"))
    }

    /// Our own mistake.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ExitKind::Internal, Report::new("internal", message))
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, report) in self.reports.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&report.message)?;
            for cause in &report.causes {
                write!(f, ": {cause}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for BuildError {}
