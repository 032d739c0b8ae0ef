//! The flags of `build`, in the names and forms of `docker buildx build`.

#![allow(rustdoc::broken_intra_doc_links, reason = "the comments are help texts, where brackets mean optional parts")]

use std::path::PathBuf;
use std::str::FromStr;

use build_engine_engine::{NetworkMode, UserNamespace};

use crate::settings::ProgressChoice;

/// Flags of `build`. What this version cannot do is parsed all the same, so that it is refused by name.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(
    args_override_self = true,
    after_help = "These flags of buildx are refused by name in this version, unless their value asks for nothing:\n\
                  --attest --backend --builder --cache-from --cache-to\n\
                  --on-failure --provenance --sbom"
)]
pub(crate) struct Flags {
    /// What COPY and ADD read from: a directory, a git repository, the URL of an archive, or `-` for standard input
    #[arg(value_name = "CONTEXT")]
    pub(crate) context: String,

    /// Dockerfile: a path, a URL, or `-` for standard input [default: CONTEXT/Dockerfile]
    #[arg(short, long, value_name = "FILE", help_heading = "What to build")]
    pub(crate) file: Option<String>,
    /// Stage to build [default: the last one]
    #[arg(long, value_name = "STAGE", help_heading = "What to build")]
    pub(crate) target: Option<String>,
    /// Platform of the result, for example linux/arm64; several with commas
    #[arg(long, value_name = "OS/ARCH", value_delimiter = ',', help_heading = "What to build")]
    pub(crate) platform: Vec<String>,
    /// Set a build argument; without a value it is taken from the environment
    #[arg(long, value_name = "NAME[=VALUE]", help_heading = "What to build")]
    pub(crate) build_arg: Vec<String>,
    /// Read build arguments from a file, one a line
    #[arg(long, value_name = "FILE", help_heading = "What to build")]
    pub(crate) build_arg_file: Vec<PathBuf>,
    /// Further context: a directory, a git repository, a URL, oci-layout://PATH[:TAG][@DIGEST] or docker-image://NAME
    #[arg(long, value_name = "NAME=SOURCE", help_heading = "What to build")]
    pub(crate) build_context: Vec<String>,
    /// Ask registries what the names of images stand for now
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean,
          hide_possible_values = true, value_name = "BOOL", help_heading = "What to build")]
    pub(crate) pull: Option<bool>,
    /// Take no image that is not in build-engine.lock
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean,
          hide_possible_values = true, value_name = "BOOL", help_heading = "What to build")]
    pub(crate) locked: Option<bool>,
    /// Let redirects of what is fetched lead to private and link-local addresses
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean,
          hide_possible_values = true, value_name = "BOOL", help_heading = "What to build")]
    pub(crate) allow_private_urls: Option<bool>,
    /// Stop the build after this time, for example 90s or 1h30m
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = "What to build")]
    pub(crate) timeout: Option<std::time::Duration>,

    /// Name of the image
    #[arg(short, long, value_name = "NAME[:TAG]", help_heading = "What comes out")]
    pub(crate) tag: Vec<String>,
    /// Where the result goes: type=image|registry|oci|docker|tar|local|cacheonly[,dest=PATH][,…], or a directory
    #[arg(short, long, value_name = "OUTPUT", help_heading = "What comes out")]
    pub(crate) output: Vec<String>,
    /// Push the image to the registries of its names
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean,
          hide_possible_values = true, value_name = "BOOL", help_heading = "What comes out")]
    pub(crate) push: Option<bool>,
    /// Load the image into Docker, Podman or containerd
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean,
          hide_possible_values = true, value_name = "BOOL", help_heading = "What comes out")]
    pub(crate) load: Option<bool>,
    /// Set a label of the image
    #[arg(long, value_name = "NAME=VALUE", help_heading = "What comes out")]
    pub(crate) label: Vec<String>,
    /// Add an annotation to the manifest or index
    #[arg(long, value_name = "[TYPE:]NAME=VALUE", help_heading = "What comes out")]
    pub(crate) annotation: Vec<String>,
    /// Write the digest of the image to a file
    #[arg(long, value_name = "FILE", help_heading = "What comes out")]
    pub(crate) iidfile: Option<PathBuf>,
    /// Write what was built to a file, as JSON
    #[arg(long, value_name = "FILE", help_heading = "What comes out")]
    pub(crate) metadata_file: Option<PathBuf>,

    /// Use no result of earlier builds
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean,
          hide_possible_values = true, value_name = "BOOL", help_heading = "Cache")]
    pub(crate) no_cache: Option<bool>,
    /// Use no earlier result for these stages; several with commas
    #[arg(long, value_name = "STAGE", value_delimiter = ',', help_heading = "Cache")]
    pub(crate) no_cache_filter: Vec<String>,

    /// Give a secret to RUN --mount=type=secret: id=ID[,src=FILE|,env=NAME]
    #[arg(long, value_name = "SECRET", help_heading = "RUN")]
    pub(crate) secret: Vec<String>,
    /// Give an SSH agent or keys to RUN --mount=type=ssh: default, or ID[=SOCKET|KEY,…]
    #[arg(long, value_name = "AGENT", help_heading = "RUN")]
    pub(crate) ssh: Vec<String>,
    /// Grant what the Dockerfile asks for: network.host, security.insecure, secret.in-layer, device[=NAME]
    #[arg(long, value_name = "ENTITLEMENT", help_heading = "RUN")]
    pub(crate) allow: Vec<String>,
    /// Network of RUN: default, none or host
    #[arg(long, value_name = "MODE", value_parser = super::network, help_heading = "RUN")]
    pub(crate) network: Option<NetworkMode>,
    /// Add a line to /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS", help_heading = "RUN")]
    pub(crate) add_host: Vec<String>,
    /// Set a limit, for example nofile=1024:4096
    #[arg(long, value_name = "NAME=SOFT[:HARD]", help_heading = "RUN")]
    pub(crate) ulimit: Vec<String>,
    /// Size of /dev/shm, for example 128m
    #[arg(long, value_name = "BYTES", value_parser = byte_size, help_heading = "RUN")]
    pub(crate) shm_size: Option<u64>,
    /// Limit every RUN: memory=, memory-swap=, cpu-shares=, cpu-period=, cpu-quota=, cpuset-cpus=, cpuset-mems=
    #[arg(long, value_name = "LIMIT=VALUE,…", help_heading = "RUN")]
    pub(crate) resource: Vec<String>,
    #[command(flatten)]
    pub(crate) limits: super::limits::LimitFlags,
    /// Isolation of RUN: default, strict (what this host lacks is an error) or rootless
    #[arg(long, value_name = "LEVEL", value_parser = super::limits::isolation, help_heading = "RUN")]
    pub(crate) isolation: Option<build_engine_engine::Isolation>,
    /// Whether shortcuts are taken that change no result; =false is for comparing
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean,
          hide_possible_values = true, value_name = "BOOL", help_heading = "Cache")]
    pub(crate) fast_paths: Option<bool>,
    /// Parent of the control groups
    #[arg(long, value_name = "PATH", help_heading = "RUN")]
    pub(crate) cgroup_parent: Option<String>,
    /// User namespace: private, or host (for root only)
    #[arg(long, value_name = "MODE", value_parser = user_namespace, help_heading = "RUN")]
    pub(crate) userns: Option<UserNamespace>,
    /// Progress display: auto, tty, plain, rawjson, quiet or none [env: BUILDKIT_PROGRESS]
    #[arg(long, value_name = "DISPLAY", value_parser = ProgressChoice::from_str, help_heading = "Progress")]
    pub(crate) progress: Option<ProgressChoice>,
    /// Show no progress and print the digest of the image
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean,
          hide_possible_values = true, value_name = "BOOL", help_heading = "Progress")]
    pub(crate) quiet: Option<bool>,
    /// Explain warnings
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean,
          hide_possible_values = true, value_name = "BOOL", help_heading = "Progress")]
    pub(crate) verbose: Option<bool>,

    #[command(flatten)]
    pub(crate) other: OtherFlags,
}

/// Flags of buildx and of later versions that this version refuses, apart from the values that ask for nothing.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Not supported yet: refused by name")]
pub(crate) struct OtherFlags {
    /// Import a cache
    #[arg(long, hide = true, value_name = "CACHE")]
    pub(crate) cache_from: Vec<String>,
    /// Export the cache
    #[arg(long, hide = true, value_name = "CACHE")]
    pub(crate) cache_to: Vec<String>,
    /// Add an attestation
    #[arg(long, hide = true, value_name = "TYPE")]
    pub(crate) attest: Vec<String>,
    /// Add provenance
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_name = "VALUE")]
    pub(crate) provenance: Option<String>,
    /// Add a bill of materials
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_name = "VALUE")]
    pub(crate) sbom: Option<String>,
    /// Use a builder instance
    #[arg(long, hide = true, value_name = "NAME")]
    pub(crate) builder: Option<String>,
    /// Who builds: embedded
    #[arg(long, hide = true, value_name = "NAME")]
    pub(crate) backend: Option<String>,
    /// Check the Dockerfile instead of building it: short for --call=check
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean,
          hide_possible_values = true, value_name = "BOOL", help_heading = "What to build")]
    pub(crate) check: Option<bool>,
    /// Ask instead of building: check, outline, targets, convertllb or subrequests.describe, with `,format=json`
    #[arg(long, value_name = "METHOD", help_heading = "What to build")]
    pub(crate) call: Option<String>,
    /// `--rm=false` keeps what a failed RUN left, as an image of the store
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean,
          hide_possible_values = true, value_name = "BOOL", help_heading = "RUN")]
    pub(crate) rm: Option<bool>,
    /// Always remove intermediate containers
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean,
          hide = true, value_name = "BOOL")]
    pub(crate) force_rm: Option<bool>,
    /// What to do when a step fails
    #[arg(long, hide = true, value_name = "ACTION")]
    pub(crate) on_failure: Vec<String>,
    /// Give an attribute of BuildKit's Dockerfile frontend, as the flag that it stands for
    #[arg(long, value_name = "NAME=VALUE", help_heading = "What to build")]
    pub(crate) frontend_opt: Vec<String>,
    /// Make one layer of all
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean,
          hide = true, value_name = "BOOL")]
    pub(crate) squash: Option<bool>,
    /// Compress the context
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean,
          hide = true, value_name = "BOOL")]
    pub(crate) compress: Option<bool>,
    /// Security options
    #[arg(long, hide = true, value_name = "OPTION")]
    pub(crate) security_opt: Vec<String>,
}

/// A boolean as Go's `strconv.ParseBool` reads it.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".into()),
    }
}

/// A number of bytes with a unit in powers of 1024: `128m`, `1.5GiB`, `64`.
pub(crate) fn byte_size(text: &str) -> Result<u64, String> {
    let wrong = || "expected a number of bytes such as 64m or 1g".to_owned();
    let lower = text.trim().to_ascii_lowercase();
    let end = lower.find(|char: char| !(char.is_ascii_digit() || char == '.')).unwrap_or(lower.len());
    let (number, unit) = lower.split_at(end);
    let unit = unit.trim_start();
    let unit = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(unit);
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err(wrong()),
    };
    let factor = 1u64 << shift;
    match number.parse::<u64>() {
        Ok(number) => number.checked_mul(factor).ok_or_else(wrong),
        Err(_) => match number.parse::<f64>() {
            Ok(number) if number.is_finite() && number * (factor as f64) < 9e18 => Ok((number * factor as f64) as u64),
            _ => Err(wrong()),
        },
    }
}

/// A length of time as Go writes it (`1h30m`, `90s`), or a number of seconds.
pub(crate) fn duration(text: &str) -> Result<std::time::Duration, String> {
    let wrong = || "expected a time such as 90s, 10m or 1h30m".to_owned();
    if let Ok(seconds) = text.parse::<u32>() {
        return if seconds == 0 { Err(wrong()) } else { Ok(std::time::Duration::from_secs(seconds.into())) };
    }
    let nanoseconds = build_engine_dockerfile::parse_duration(text).map_err(|_| wrong())?;
    match u64::try_from(nanoseconds) {
        Ok(nanoseconds) if nanoseconds > 0 => Ok(std::time::Duration::from_nanos(nanoseconds)),
        _ => Err(wrong()),
    }
}

fn user_namespace(text: &str) -> Result<UserNamespace, String> {
    match text {
        "private" => Ok(UserNamespace::Private),
        "host" => Ok(UserNamespace::Host),
        _ => Err("expected private or host".into()),
    }
}
