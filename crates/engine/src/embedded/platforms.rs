//! Commands for other platforms: what runs them, and the refusal of those that nothing here runs.
//!
//! Which ways there are is the sandbox's to know; which platform a step has stands in its vertex.

use std::collections::BTreeSet;

use build_engine_frontend::Lowered;
use build_engine_graph::{Op, walk};
use build_engine_oci::Platform;
use build_engine_sandbox::emulation::{Emulators, Execution};

use super::ops::StepError;
use crate::{BuildError, ExitKind, Place, Report};

/// How commands for `platform` run here.
pub(super) fn execution(emulators: &Emulators, platform: &Platform) -> Result<Execution, StepError> {
    let refused = |message: String| {
        StepError::new(
            ExitKind::Input,
            Report::new("unsupported", format!("cannot run commands for {platform}: {message}")),
        )
    };
    let host = Platform::host();
    if platform.os != host.os {
        let mut error = refused(format!("this host runs programs of {} only", host.os));
        error.report.hint = Some("COPY and ADD work for every platform; RUN needs the platform's own kernel".into());
        return Err(error);
    }
    emulators.execution(&platform.architecture).map_err(|reason| {
        let mut error = refused(reason.to_string());
        error.report.hint = Some(reason.hint());
        error
    })
}

/// Refuses, with their places, the commands that nothing here can run.
pub(super) fn refuse_foreign_commands(lowered: &Lowered, emulators: &Emulators) -> Result<(), BuildError> {
    let (mut reports, mut seen) = (Vec::new(), BTreeSet::new());
    walk(lowered.results.iter().filter_map(|result| result.root.as_ref()), |vertex| {
        if matches!(vertex.op(), Op::Exec(_))
            && let Some(platform) = vertex.platform()
            && seen.insert(platform.clone())
            && let Err(error) = execution(emulators, platform)
        {
            // One command of each platform is enough to say it.
            reports.push(error.report.at(vertex.metadata().spans.first().map(Place::from)));
        }
    });
    if reports.is_empty() { Ok(()) } else { Err(BuildError { kind: ExitKind::Input, reports }) }
}

/// What tells a user that commands of `platform` are emulated.
pub(super) fn note(platform: &Platform, execution: &Execution) -> Option<String> {
    match execution {
        Execution::Native => None,
        Execution::Registered(_) | Execution::Own(_) => {
            Some(format!("commands for {platform} are emulated by {execution}: they run, but slowly"))
        }
    }
}
