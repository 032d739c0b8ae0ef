//! `version`.

use build_engine_oci::Platform;
use serde_json::json;

use crate::errors::Failure;
use crate::output::{self, Format};

/// Flags of `version`.
#[derive(Debug, clap::Args)]
pub(crate) struct Flags {
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Prints the version.
pub(crate) fn run(flags: &Flags) -> Result<u8, Failure> {
    let (version, platform) = (env!("CARGO_PKG_VERSION"), Platform::host().to_string());
    match flags.format {
        Format::Table => output::print(&format!("build-engine {version} {platform}\n"))?,
        Format::Json => output::print_json(&json!({ "version": version, "platform": platform }))?,
    }
    Ok(0)
}
