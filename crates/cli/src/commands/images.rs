//! `images`: list, look at, name, remove, save and load images of the store.

use std::path::PathBuf;

use build_engine_engine::{ImageDetails, ImagePlace, ImageSummary, TransferRequest, UserNamespace, Variants};
use build_engine_oci::Platform;
use serde_json::json;

use super::transfer::{ProgressFlags, absolute, reference, transfer};
use crate::errors::Failure;
use crate::output::{self, Format};
use crate::session::with_engine;
use crate::settings::Settings;
use crate::ui::text::clean;

/// Commands of `images`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List images
    Ls {
        /// Form of the output
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Show what an image is made of; one that is not in the store is looked at in its registry
    Inspect {
        /// The image: a name, or a place as `copy` takes it
        #[arg(value_name = "IMAGE")]
        image: String,
        /// Print the manifest or index as it is
        #[arg(long, conflicts_with = "format")]
        raw: bool,
        /// Form of the output
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Give an image a further name
    Tag {
        /// The image
        #[arg(value_name = "IMAGE")]
        image: String,
        /// The further name
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Remove the names of images; `cache prune` then frees their space
    Rm {
        /// The names
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Write images to an archive that docker, podman and this program load
    Save {
        /// The images
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        /// The archive [default: standard output]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Form of the archive: docker holds one platform of each image, oci all of them
        #[arg(long, value_name = "FORM", default_value = "docker", value_parser = ["docker", "oci"])]
        archive: String,
        /// Save the variant for this platform
        #[arg(long, value_name = "OS/ARCH")]
        platform: Option<Platform>,
        #[command(flatten)]
        progress: ProgressFlags,
    },
    /// Take the images of an archive or an OCI layout into the store
    Load {
        /// The archive or directory
        #[arg(short, long, value_name = "PATH")]
        input: PathBuf,
        #[command(flatten)]
        progress: ProgressFlags,
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
            Self::Inspect { image, raw, format } => {
                let place = place(&image)?;
                let details = with_engine(settings, UserNamespace::Private, None, |engine| async move {
                    engine.inspect(place).await
                })?;
                match format {
                    _ if raw => output::print(&details.document)?,
                    Format::Json => output::print_json(&json!({ "version": 1, "name": image, "image": details }))?,
                    Format::Table => output::print(&describe(&image, &details))?,
                }
                Ok(0)
            }
            Self::Tag { image, name } => {
                let name = reference(&name)?;
                if name.digest().is_some() {
                    return Err(Failure::input("invalid-reference", "a digest cannot be given as a name"));
                }
                with_engine(
                    settings,
                    UserNamespace::Private,
                    None,
                    |engine| async move { engine.tag(image, name).await },
                )?;
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
            Self::Save { images, output, archive, platform, progress } => {
                let path = output.unwrap_or_else(|| "-".into());
                if path.as_os_str() == "-" && rustix::termios::isatty(rustix::stdio::stdout()) {
                    return Err(Failure::input("invalid-flag", "an archive is not written to a terminal")
                        .hint("redirect standard output, or name a file with `-o FILE`"));
                }
                let docker = archive == "docker";
                let platform = platform.or_else(|| docker.then(Platform::host));
                let mut pairs = Vec::new();
                for image in images {
                    let to = if docker {
                        ImagePlace::DockerArchive { path: path.clone(), reference: None }
                    } else {
                        ImagePlace::OciArchive { path: path.clone(), tag: None }
                    };
                    pairs.push((ImagePlace::Store { image }, absolute(to)?));
                }
                let variants = platform.map_or(Variants::All, Variants::Only);
                transfer(settings, &progress, TransferRequest::Copy { images: pairs, variants })?;
                Ok(0)
            }
            Self::Load { input, progress } => {
                let path = std::path::absolute(&input)
                    .map_err(|error| Failure::io(format!("cannot use `{}`", input.display()), &error))?;
                for loaded in transfer(settings, &progress, TransferRequest::Load { path })? {
                    if let ImagePlace::Store { image } = loaded.to {
                        output::print(&format!("{image}\n"))?;
                    }
                }
                Ok(0)
            }
        }
    }
}

/// What `inspect` looks at: without a scheme, the store comes first.
fn place(image: &str) -> Result<ImagePlace, Failure> {
    let schemes = ["docker://", "oci:", "oci-layout://", "oci-archive:", "docker-archive:", "store:"];
    if schemes.iter().any(|scheme| image.starts_with(scheme)) {
        let place = image.parse::<ImagePlace>();
        return absolute(place.map_err(|error| Failure::input("invalid-place", error.to_string()))?);
    }
    Ok(ImagePlace::Store { image: image.to_owned() })
}

/// An image, for people.
fn describe(name: &str, details: &ImageDetails) -> String {
    let mut text = format!("Name:        {name}\nDigest:      {}\n", details.descriptor.digest);
    text.push_str(&format!("Media type:  {}\n", details.descriptor.media_type));
    for image in &details.images {
        let config = &image.config.config;
        text.push_str(&format!("\nPlatform:    {}\n", image.platform));
        let mut line = |label: &str, value: String| {
            if !value.is_empty() {
                text.push_str(&format!("{:<13}{}\n", format!("{label}:"), clean(&value)));
            }
        };
        line("Manifest", image.manifest.digest.to_string());
        line("Config", image.config_digest.to_string());
        line("Created", image.config.created.clone().unwrap_or_default());
        line("Entrypoint", config.entrypoint.clone().unwrap_or_default().join(" "));
        line("Command", config.cmd.clone().unwrap_or_default().join(" "));
        line("User", config.user.clone());
        line("Directory", config.working_dir.clone());
        let size: u64 = image.layers.iter().map(|layer| layer.size).sum();
        line("Layers", format!("{}, {size} bytes compressed", image.layers.len()));
        for layer in &image.layers {
            text.push_str(&format!("  {}  {:>12}  {}\n", layer.digest, layer.size, clean(&layer.media_type)));
        }
    }
    text
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
