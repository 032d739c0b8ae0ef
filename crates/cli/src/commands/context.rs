//! `context`: what a build would see of a directory.

use std::path::PathBuf;

use build_engine_engine::context;
use serde_json::json;

use crate::errors::Failure;
use crate::output::{self, Format};
use crate::ui::text;

/// Commands of `context`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the files that a build would see, after the ignore file
    Ls {
        /// Dockerfile; `<Dockerfile>.dockerignore` beside it goes before `.dockerignore`
        #[arg(short, long, value_name = "DOCKERFILE")]
        file: Option<PathBuf>,
        /// Form of the output
        #[arg(long, value_enum, default_value_t)]
        format: Format,
        /// The context's directory
        context: PathBuf,
    },
}

impl Command {
    /// Does it; returns the exit code.
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let Self::Ls { file, format, context } = self;
        // Without `-f`, a build takes the Dockerfile of the context, and the ignore file beside that one.
        let file = file.unwrap_or_else(|| context.join("Dockerfile"));
        let entries = context::list(&context, Some(&file))?;
        match format {
            Format::Json => {
                let entries: Vec<_> = entries
                    .iter()
                    .map(|entry| json!({ "path": entry.path, "type": entry.kind, "size": entry.size }))
                    .collect();
                output::print_json(&json!({ "entries": entries }))?;
            }
            Format::Table => {
                let rows: Vec<Vec<String>> = entries
                    .iter()
                    .map(|entry| vec![text::clean(&entry.kind), text::bytes(entry.size), text::clean(&entry.path)])
                    .collect();
                output::print(&output::table(&["TYPE", "SIZE", "PATH"], &rows))?;
            }
        }
        Ok(0)
    }
}
