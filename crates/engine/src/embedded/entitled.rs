//! What a Dockerfile asks for beyond what every build may, against what whoever started the build has granted.
//!
//! It is checked before anything runs, also for steps that would come from the cache, and never answered with less than
//! was asked for.

use build_engine_frontend::Lowered;
use build_engine_graph::{Device, ExecOp, Network, Op, Security, walk};

use crate::{BuildError, BuildRequest, Entitlement, ExitKind, NetworkMode, Place, Report};

/// Refuses, with their places, what was not granted.
pub(super) fn check(lowered: &Lowered, request: &BuildRequest) -> Result<(), BuildError> {
    let mut reports = Vec::new();
    walk(lowered.results.iter().filter_map(|result| result.root.as_ref()), |vertex| {
        let Op::Exec(exec) = vertex.op() else { return };
        for (what, hint) in missing(exec, request) {
            let report = Report::new("denied", format!("`{what}` was not granted by whoever started the build"))
                .at(vertex.metadata().spans.first().map(Place::from))
                .hint(format!("grant it with {hint}"));
            if !reports.contains(&report) {
                reports.push(report);
            }
        }
    });
    if reports.is_empty() { Ok(()) } else { Err(BuildError { kind: ExitKind::Denied, reports }) }
}

fn missing(exec: &ExecOp, request: &BuildRequest) -> Vec<(&'static str, &'static str)> {
    let mut missing = Vec::new();
    let granted = |entitlement| request.allow.contains(&entitlement);
    let host = match exec.network {
        Network::Host => true,
        Network::Default | Network::None => false,
    };
    // A step would see what listens on the host's loopback device.
    if host && request.network != NetworkMode::Host && !granted(Entitlement::NetworkHost) {
        missing.push(("RUN --network=host", "`--allow network.host` or `--network=host`"));
    }
    match exec.security {
        Security::Sandbox => {}
        Security::Insecure if granted(Entitlement::SecurityInsecure) => {}
        Security::Insecure => missing.push(("RUN --security=insecure", "`--allow security.insecure`")),
    }
    missing
}

/// Why a required device is refused.
pub(super) fn no_device(device: &Device) -> String {
    format!(
        "`RUN --device`: the device `{}` is required, and devices of the host (CDI) are not available to steps",
        device.name
    )
}

/// What steps do without.
pub(super) fn notes(lowered: &Lowered) -> Vec<String> {
    let mut notes = Vec::new();
    walk(lowered.results.iter().filter_map(|result| result.root.as_ref()), |vertex| {
        if let Op::Exec(exec) = vertex.op() {
            for device in exec.devices.iter().filter(|device| device.optional) {
                let note = format!("the device `{}` is not there: the step runs without it", device.name);
                if !notes.contains(&note) {
                    notes.push(note);
                }
            }
        }
    });
    notes
}
