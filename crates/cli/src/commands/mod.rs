//! The commands, one file each.

mod build;
mod cache;
mod call;
mod completions;
mod context;
mod dockerfile;
mod images;
mod info;
mod lock;
mod lock_file;
mod man;
mod run;
mod transfer;
mod validate;
mod version;

use clap::{Parser, Subcommand};

use crate::errors::Failure;
use crate::settings::{Environment, GlobalFlags, Settings};

/// Builds OCI images from Dockerfiles, without a daemon and without root.
#[derive(Debug, Parser)]
#[command(
    name = "build-engine",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 a step failed, 2 usage or input, 3 source or tool missing, 4 integrity,\n\
                  5 limit, 6 disk or I/O, 7 denied, 8 internal error, 124 timeout, 130 or 143 stopped."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalFlags,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build an image from a Dockerfile
    Build(Box<build::Flags>),
    /// Run a command in an image: a quick look, not a container manager
    Run(run::Flags),
    /// Fetch an image from a registry into the store
    Pull(transfer::Pull),
    /// Send an image of the store to a registry
    Push(transfer::Push),
    /// Copy an image between registries, layouts, archives and the store
    Copy(transfer::Copy),
    /// Write down what digests the names of images stand for
    Lock(lock::Flags),
    /// List, look at, name, remove, save and load images of the store
    #[command(subcommand)]
    Images(images::Command),
    /// Check and clean the store
    #[command(subcommand)]
    Cache(cache::Command),
    /// Say what is wrong with Dockerfiles, without building them
    Validate(validate::Flags),
    /// Look into Dockerfiles
    #[command(subcommand)]
    Dockerfile(dockerfile::Command),
    /// Look into build contexts
    #[command(subcommand)]
    Context(context::Command),
    /// Show what this host offers to builds
    Info(info::Flags),
    /// Show the version
    Version(version::Flags),
    /// Print a completion script for a shell
    Completions(completions::Flags),
    /// Write manual pages
    #[command(hide = true)]
    Man(man::Flags),
}

impl Command {
    /// Does it; returns the exit code.
    pub(crate) fn run(self, settings: &Settings, env: Environment<'_>) -> Result<u8, Failure> {
        match self {
            Self::Build(flags) => build::run(*flags, settings, env),
            Self::Run(flags) => run::run(flags, settings),
            Self::Pull(flags) => flags.run(settings),
            Self::Push(flags) => flags.run(settings),
            Self::Copy(flags) => flags.run(settings),
            Self::Lock(flags) => lock::run(flags, settings, env),
            Self::Images(command) => command.run(settings),
            Self::Cache(command) => command.run(settings),
            Self::Validate(flags) => validate::run(&flags, settings, env),
            Self::Dockerfile(command) => command.run(),
            Self::Context(command) => command.run(),
            Self::Info(flags) => info::run(&flags, settings),
            Self::Version(flags) => version::run(&flags),
            Self::Completions(flags) => completions::run(&flags),
            Self::Man(flags) => man::run(&flags),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_fits_into_a_hundred_columns() {
        let mut root = Cli::command().term_width(100);
        root.build();
        let mut commands = vec![root];
        while let Some(mut command) = commands.pop() {
            let help = command.clone().term_width(100).render_long_help().to_string();
            for line in help.lines() {
                assert!(line.chars().count() <= 100, "{}: {line}", command.get_name());
            }
            commands.extend(command.get_subcommands_mut().map(|command| command.clone()));
        }
    }
}
