//! Arguments that exist without an `ARG`: platforms, proxies, settings.

use std::collections::{BTreeMap, BTreeSet};

use build_engine_dockerfile::{Diagnostic, Span, suggest};
use build_engine_graph::ProxyEnv;
use build_engine_oci::Platform;

use crate::env::Env;
use crate::name::format_platform;

/// Arguments that are read by name and never become environment variables.
pub(crate) const NOT_IN_ENV: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// The name of the argument that fixes timestamps.
pub(crate) const EPOCH: &str = "SOURCE_DATE_EPOCH";

const PROXIES: [&str; 5] = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"];

/// The arguments that every `FROM` sees; build arguments override them.
pub(crate) fn predefined(
    build: &Platform,
    target: &Platform,
    stage: &str,
    overrides: &BTreeMap<String, String>,
) -> Env {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let mut env = Env::default();
    for (name, value) in [
        ("BUILDPLATFORM", build.to_string()),
        ("BUILDOS", build.os.clone()),
        ("BUILDOSVERSION", text(&build.os_version)),
        ("BUILDARCH", build.architecture.clone()),
        ("BUILDVARIANT", text(&build.variant)),
        ("TARGETPLATFORM", format_platform(target)),
        ("TARGETOS", target.os.clone()),
        ("TARGETOSVERSION", text(&target.os_version)),
        ("TARGETARCH", target.architecture.clone()),
        ("TARGETVARIANT", text(&target.variant)),
        ("TARGETSTAGE", if stage.is_empty() { "default".to_owned() } else { stage.to_owned() }),
    ] {
        env.set(name, overrides.get(name).unwrap_or(&value));
    }
    env
}

/// Proxy settings among the build arguments. Of both spellings the lower-case one wins.
pub(crate) fn proxies(build_args: &BTreeMap<String, String>) -> Option<ProxyEnv> {
    let mut proxy = ProxyEnv::default();
    let mut found = false;
    for (name, value) in build_args {
        let place = match name.to_ascii_lowercase().as_str() {
            "http_proxy" => &mut proxy.http,
            "https_proxy" => &mut proxy.https,
            "ftp_proxy" => &mut proxy.ftp,
            "no_proxy" => &mut proxy.no,
            "all_proxy" => &mut proxy.all,
            _ => continue,
        };
        place.clone_from(value);
        found = true;
    }
    found.then_some(proxy)
}

/// Warns of build arguments that nothing reads.
pub(crate) fn unused(build_args: &BTreeMap<String, String>, declared: &BTreeSet<String>) -> Vec<Diagnostic> {
    let implied = |name: &str| {
        name == EPOCH
            || name.starts_with("BUILDKIT_")
            || name.starts_with("BUILD") && PLATFORM_PARTS.contains(&&name["BUILD".len()..])
            || name.starts_with("TARGET") && PLATFORM_PARTS.contains(&&name["TARGET".len()..])
            || PROXIES.contains(&name.to_ascii_lowercase().as_str())
    };
    build_args
        .keys()
        .filter(|name| !declared.contains(*name) && !implied(name))
        .map(|name| {
            let warning = Diagnostic::warning(
                "unconsumed-build-arg",
                format!("build argument `{name}` is not declared by any ARG that the target needs"),
                Span::default(),
            );
            match suggest(name, declared.iter().map(String::as_str)) {
                Some(near) => warning.with_hint(format!("did you mean `{near}`?")),
                None => warning,
            }
        })
        .collect()
}

const PLATFORM_PARTS: [&str; 6] = ["PLATFORM", "OS", "OSVERSION", "ARCH", "VARIANT", "STAGE"];
