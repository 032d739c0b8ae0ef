//! `completions`.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::errors::Failure;
use crate::output;

/// Flags of `completions`.
#[derive(Debug, clap::Args)]
pub(crate) struct Flags {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script, for example for `source <(build-engine completions bash)`.
pub(crate) fn run(flags: &Flags) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(flags.shell, &mut super::Cli::command(), "build-engine", &mut script);
    output::print_bytes(&script)?;
    Ok(0)
}
