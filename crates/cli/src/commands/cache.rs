//! `cache`: check and clean the store.

use build_engine_engine::UserNamespace;
use serde_json::json;

use crate::errors::Failure;
use crate::output::{self, Format};
use crate::session::with_engine;
use crate::settings::Settings;
use crate::ui::text;

/// Commands of `cache`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Check every blob and record against its digest, and drop what is damaged
    Verify {
        /// Form of the output
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Remove what no image and no recent build needs
    Prune {
        /// Remove all that no image needs, recently used or not
        #[arg(short, long)]
        all: bool,
        /// Do not ask (it never asks; accepted because buildx has it)
        #[arg(short, long, hide = true)]
        force: bool,
        /// Form of the output
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
}

impl Command {
    /// Does it; returns the exit code.
    pub(crate) fn run(self, settings: &Settings) -> Result<u8, Failure> {
        match self {
            Self::Verify { format } => {
                let problems =
                    with_engine(settings, UserNamespace::Private, None, |engine| async move { engine.verify().await })?;
                match format {
                    Format::Json => output::print_json(&json!({ "problems": problems }))?,
                    Format::Table if problems.is_empty() => output::print("the store is sound\n")?,
                    Format::Table => {
                        let lines: String =
                            problems.iter().map(|problem| format!("{}\n", text::clean(problem))).collect();
                        output::print(&lines)?;
                    }
                }
                // What was found has been repaired; it is told by the exit code all the same.
                Ok(if problems.is_empty() { 0 } else { 4 })
            }
            Self::Prune { all, force: _, format } => {
                let freed =
                    with_engine(
                        settings,
                        UserNamespace::Private,
                        None,
                        |engine| async move { engine.prune(all).await },
                    )?;
                match format {
                    Format::Json => output::print_json(&json!({ "freed_bytes": freed }))?,
                    Format::Table => output::print(&format!("freed {}\n", text::bytes(freed)))?,
                }
                Ok(0)
            }
        }
    }
}
