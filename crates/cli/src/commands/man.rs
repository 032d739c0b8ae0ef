//! `man`: manual pages, for packagers.

use std::path::PathBuf;

use clap::CommandFactory;

use crate::errors::Failure;

/// Flags of `man`.
#[derive(Debug, clap::Args)]
pub(crate) struct Flags {
    /// Directory for the pages; made if it is missing
    dir: PathBuf,
}

/// Writes one page a command.
pub(crate) fn run(flags: &Flags) -> Result<u8, Failure> {
    std::fs::create_dir_all(&flags.dir)
        .and_then(|()| clap_mangen::generate_to(super::Cli::command(), &flags.dir))
        .map_err(|error| Failure::io(format!("cannot write manual pages to `{}`", flags.dir.display()), &error))?;
    Ok(0)
}
