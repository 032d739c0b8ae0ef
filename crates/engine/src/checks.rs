//! What is found out about a Dockerfile without building it.
//!
//! The shapes cross the border to the worker; faces turn them into text or into the documents that other tools read.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{BuildError, BuildRequest, ExitKind, Place, Report};

pub use crate::embedded::{check_offline, outline_offline};

/// A Dockerfile as it was read, or fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerfileText {
    /// Its name, for messages.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// What the build checks found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckResult {
    /// What was looked at.
    pub dockerfile: DockerfileText,
    /// What kind of failure the errors are.
    pub kind: ExitKind,
    /// What does not stop a build, in the order of the checks.
    pub warnings: Vec<Finding>,
    /// What stops every build; with `error=true`, one of them names the rules of the warnings.
    pub errors: Vec<Finding>,
    /// What the Dockerfile asks for and this engine does not execute.
    pub unsupported: Vec<Finding>,
}

impl CheckResult {
    /// Findings of BuildKit's rules, without what only we warn about.
    pub fn rule_warnings(&self) -> impl Iterator<Item = &Finding> {
        self.warnings.iter().filter(|finding| finding.is_rule)
    }

    /// The errors as a failure; `None` without errors.
    pub fn error(&self) -> Option<BuildError> {
        let reports: Vec<Report> = self.errors.iter().map(Finding::report).collect();
        (!reports.is_empty()).then_some(BuildError { kind: self.kind, reports })
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Name of the rule.
    pub rule: String,
    /// Whether the rule is one of BuildKit's.
    pub is_rule: bool,
    /// What is wrong here.
    pub message: String,
    /// What the rule is about, in general; empty where there is none.
    pub description: String,
    /// Where the rule is explained; empty where there is none.
    pub url: String,
    /// The way out.
    pub hint: Option<String>,
    /// First and last line of what it is about, counted from 1.
    pub lines: Option<(usize, usize)>,
    /// The same as a place in the text.
    pub place: Option<Place>,
}

impl Finding {
    /// The finding as a report.
    pub fn report(&self) -> Report {
        let mut report = Report::new(self.rule.clone(), self.message.clone()).at(self.place.clone());
        report.hint.clone_from(&self.hint);
        report
    }
}

/// What can be set in a build of a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outline {
    /// What was looked at.
    pub dockerfile: DockerfileText,
    /// Name of the target's stage; empty where it has none.
    pub name: String,
    /// Its description; empty where it has none.
    pub description: String,
    /// Arguments, in the order of the Dockerfile.
    pub args: Vec<OutlineArg>,
    /// Secrets, in the order of their first use.
    pub secrets: Vec<OutlineNeed>,
    /// SSH agents, in the order of their first use.
    pub ssh: Vec<OutlineNeed>,
}

/// An argument of an outline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutlineArg {
    /// Name.
    pub name: String,
    /// The value it has, given or by default; empty without.
    pub value: String,
    /// Its description; empty where it has none.
    pub description: String,
    /// Lines of its declaration.
    pub lines: (usize, usize),
}

/// A secret or an SSH agent of an outline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutlineNeed {
    /// Its id.
    pub name: String,
    /// Whether the build fails without it.
    pub required: bool,
    /// Lines of the first instruction that uses it.
    pub lines: (usize, usize),
}

/// The request to build a Dockerfile that has no build context.
pub fn request_without_context(name: String, path: Option<PathBuf>, text: String) -> BuildRequest {
    BuildRequest { dockerfile: text, dockerfile_name: name, dockerfile_path: path, ..crate::request::empty("") }
}
