//! `images`: list and remove images of the store.

use build_engine_engine::{ImageSummary, UserNamespace};
use serde_json::json;

use crate::errors::Failure;
use crate::output::{self, Format};
use crate::session::with_engine;
use crate::settings::Settings;

/// Commands of `images`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List images
    Ls {
        /// Form of the output
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Remove the names of images; `cache prune` then frees their space
    Rm {
        /// The names
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
}

impl Command {
    /// Does it; returns the exit code.
    pub(crate) fn run(self, settings: &Settings) -> Result<u8, Failure> {
        match self {
            Self::Ls { format } => {
                let images =
                    with_engine(settings, UserNamespace::Private, None, |engine| async move { engine.images().await })?;
                match format {
                    Format::Json => output::print_json(&json!({ "images": images }))?,
                    Format::Table => output::print(&table(&images))?,
                }
                Ok(0)
            }
            Self::Rm { images } => {
                let missing = with_engine(settings, UserNamespace::Private, None, |engine| async move {
                    let mut missing = Vec::new();
                    for image in images {
                        if !engine.remove_image(image.clone()).await? {
                            missing.push(image);
                        }
                    }
                    Ok(missing)
                })?;
                match missing.as_slice() {
                    [] => Ok(0),
                    [one] => Err(no_image(one)),
                    several => Err(no_image(&several.join("`, `"))),
                }
            }
        }
    }
}

fn no_image(name: &str) -> Failure {
    Failure::input("unknown-image", format!("the store has no image named `{name}`"))
        .hint("`build-engine images ls` lists the images")
}

fn table(images: &[ImageSummary]) -> String {
    let rows: Vec<Vec<String>> = images
        .iter()
        .map(|image| {
            let digest = image.descriptor.digest.to_string();
            let platforms: Vec<String> = image.platforms.iter().map(ToString::to_string).collect();
            let name =
                image.name.parse::<build_engine_oci::Reference>().map_or(image.name.clone(), |name| name.familiar());
            vec![name, digest.chars().take(19).collect(), platforms.join(",")]
        })
        .collect();
    output::table(&["NAME", "DIGEST", "PLATFORMS"], &rows)
}
