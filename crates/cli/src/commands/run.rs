//! `run`: a quick look at an image.

use build_engine_engine::{NetworkMode, RunRequest, UserNamespace};

use crate::errors::Failure;
use crate::session::with_engine;
use crate::settings::Settings;

/// Flags of `run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Flags {
    /// Set an environment variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// User, instead of the image's
    #[arg(short, long)]
    user: Option<String>,
    /// Working directory, instead of the image's
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Entrypoint, instead of the image's
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Network: default, host or none
    #[arg(long, value_parser = super::build::network, default_value = "default", value_name = "MODE")]
    network: NetworkMode,
    /// Remove the container afterwards (always so; accepted because docker has it)
    #[arg(long, hide = true)]
    rm: bool,
    /// Name or digest of the image
    image: String,
    /// Command and arguments, instead of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs the command; its exit code is ours.
pub(crate) fn run(flags: Flags, settings: &Settings) -> Result<u8, Failure> {
    if let Some(bad) = flags.env.iter().find(|pair| !pair.contains('=') || pair.starts_with('=')) {
        return Err(Failure::input("invalid-flag", format!("`--env {bad}`: expected NAME=value")));
    }
    let request = RunRequest {
        image: flags.image,
        command: flags.command,
        env: flags.env,
        user: flags.user,
        workdir: flags.workdir,
        entrypoint: flags.entrypoint,
        network: flags.network,
    };
    let code = with_engine(settings, UserNamespace::Private, None, |engine| async move { engine.run(request).await })?;
    Ok(u8::try_from(code).unwrap_or(1))
}
