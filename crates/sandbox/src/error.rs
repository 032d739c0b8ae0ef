//! What can go wrong outside the command itself.

use std::io;

use serde::{Deserialize, Serialize};

/// A failure of the sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The worker could not enter its namespaces.
    #[error("cannot {action}{}", hint.as_ref().map(|h| format!(" ({h})")).unwrap_or_default())]
    Enter {
        /// What was tried.
        action: String,
        /// What the user can do about it.
        hint: Option<String>,
        /// The cause.
        source: io::Error,
    },
    /// The helper process could not be started or spoken to.
    #[error("cannot {action}")]
    Helper {
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The spec makes no sense: an index without a descriptor, an empty command, a NUL in an argument.
    #[error("invalid step: {0}")]
    Spec(String),
    /// The step could not be set up; the command never ran.
    #[error("cannot set up the step: {0}")]
    Setup(SetupError),
    /// The step was killed while it was being set up.
    #[error("step was cancelled before its command started")]
    Cancelled,
}

/// A failed phase of a step's set-up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{phase}: {}", describe(*errno, detail))]
pub struct SetupError {
    /// What was tried: `mount /proc`, `write the user map`, …
    pub phase: String,
    /// The kernel's error number; 0 when the error is not the kernel's.
    pub errno: i32,
    /// What is known beyond the number.
    pub detail: Option<String>,
    /// Whether the image has more of something than is taken.
    #[serde(default)]
    pub is_limit: bool,
}

fn describe(errno: i32, detail: &Option<String>) -> String {
    match (errno, detail) {
        (0, Some(detail)) => detail.clone(),
        (errno, Some(detail)) => format!("{} ({detail})", io::Error::from_raw_os_error(errno)),
        (errno, None) => io::Error::from_raw_os_error(errno).to_string(),
    }
}

impl SetupError {
    /// Whether the image and the step do not fit together, as with a user that the image does not have; otherwise the
    /// host lacks or denies something.
    pub fn is_of_the_image(&self) -> bool {
        let phases = ["resolve the user", "read /etc/", "make the working directory", "enter the working directory"];
        // What a mount shows, or where, is not there, is of another kind, or cannot be made there.
        let missing =
            matches!(self.errno, libc::ENOENT | libc::ENOTDIR | libc::EROFS) && self.phase.starts_with("mount \"");
        missing || phases.iter().any(|phase| self.phase.starts_with(phase))
    }

    /// What a step that is strict may not do without.
    pub(crate) fn strict(notes: &[String]) -> Self {
        Self::detail("isolate the step strictly", notes.join("; "))
    }

    pub(crate) fn detail(phase: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { phase: phase.into(), errno: 0, detail: Some(detail.into()), is_limit: false }
    }
}

/// Names the phase of an I/O error.
pub(crate) trait Phase<T> {
    /// Turns an error into a [`SetupError`] of `phase`.
    fn phase(self, phase: impl Into<String>) -> Result<T, SetupError>;
}

impl<T> Phase<T> for io::Result<T> {
    fn phase(self, phase: impl Into<String>) -> Result<T, SetupError> {
        self.map_err(|e| SetupError {
            phase: phase.into(),
            errno: e.raw_os_error().unwrap_or(0),
            detail: if e.raw_os_error().is_some() { None } else { Some(e.to_string()) },
            is_limit: false,
        })
    }
}

impl<T> Phase<T> for rustix::io::Result<T> {
    fn phase(self, phase: impl Into<String>) -> Result<T, SetupError> {
        self.map_err(|e| SetupError { phase: phase.into(), errno: e.raw_os_error(), detail: None, is_limit: false })
    }
}
