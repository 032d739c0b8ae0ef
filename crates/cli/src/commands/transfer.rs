//! `pull`, `push` and `copy`: images between the store, registries, layouts and archives.

use std::str::FromStr;

use build_engine_engine::{ImagePlace, TransferRequest, Transferred, UserNamespace, Variants};
use build_engine_oci::{Platform, Reference};

use crate::errors::Failure;
use crate::output;
use crate::session::with_engine;
use crate::settings::{ProgressChoice, ProgressMode, Settings};
use crate::ui::{Options, Progress};

/// Flags of commands that show progress.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct ProgressFlags {
    /// Progress display: auto, tty, plain, rawjson, quiet or none [env: BUILDKIT_PROGRESS]
    #[arg(long, value_name = "DISPLAY", value_parser = ProgressChoice::from_str)]
    progress: Option<ProgressChoice>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Flags of `pull`.
#[derive(Debug, clap::Args)]
pub(crate) struct Pull {
    /// Name of the image
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Platform to fetch the layers of [default: the host's]
    #[arg(long, value_name = "OS/ARCH", conflicts_with = "all_platforms")]
    platform: Option<Platform>,
    /// Fetch the layers of all platforms
    #[arg(long)]
    all_platforms: bool,
    #[command(flatten)]
    progress: ProgressFlags,
}

/// Flags of `push`.
#[derive(Debug, clap::Args)]
pub(crate) struct Push {
    /// Name of the image in the store
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Name at the registry [default: the same]
    #[arg(value_name = "AS")]
    target: Option<String>,
    /// Push the variant for this platform alone
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    #[command(flatten)]
    progress: ProgressFlags,
}

/// Flags of `copy`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Places: docker://NAME or NAME (a registry), store:NAME, oci:DIR[:TAG], oci-archive:FILE[:TAG],\n\
                        docker-archive:FILE[:NAME]."
)]
pub(crate) struct Copy {
    /// Where the image is
    #[arg(value_name = "FROM")]
    from: ImagePlace,
    /// Where it shall be
    #[arg(value_name = "TO")]
    to: ImagePlace,
    /// Copy the variant for this platform alone
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    #[command(flatten)]
    progress: ProgressFlags,
}

impl Pull {
    /// Pulls; returns the exit code.
    pub(crate) fn run(self, settings: &Settings) -> Result<u8, Failure> {
        let reference = reference(&self.image)?;
        let variants = match (self.all_platforms, self.platform) {
            (true, _) => Variants::All,
            (false, platform) => Variants::Only(platform.unwrap_or_else(Platform::host)),
        };
        let to = ImagePlace::Store { image: reference.to_string() };
        let images = vec![(ImagePlace::Registry { reference }, to)];
        one(settings, &self.progress, TransferRequest::Copy { images, variants })
    }
}

impl Push {
    /// Pushes; returns the exit code.
    pub(crate) fn run(self, settings: &Settings) -> Result<u8, Failure> {
        let reference = reference(self.target.as_deref().unwrap_or(&self.image))?;
        let images = vec![(ImagePlace::Store { image: self.image }, ImagePlace::Registry { reference })];
        one(settings, &self.progress, TransferRequest::Copy { images, variants: variants(self.platform) })
    }
}

impl Copy {
    /// Copies; returns the exit code.
    pub(crate) fn run(self, settings: &Settings) -> Result<u8, Failure> {
        let images = vec![(absolute(self.from)?, absolute(self.to)?)];
        one(settings, &self.progress, TransferRequest::Copy { images, variants: variants(self.platform) })
    }
}

fn variants(platform: Option<Platform>) -> Variants {
    platform.map_or(Variants::All, Variants::Only)
}

pub(crate) fn reference(text: &str) -> Result<Reference, Failure> {
    match text.strip_prefix("docker://").unwrap_or(text).parse::<Reference>() {
        Ok(reference) => Ok(reference.or_latest()),
        Err(error) => Err(Failure::input("invalid-reference", error.to_string())),
    }
}

/// The same place, whatever directory the worker is in.
pub(crate) fn absolute(mut place: ImagePlace) -> Result<ImagePlace, Failure> {
    match &mut place {
        ImagePlace::Layout { path, .. }
        | ImagePlace::OciArchive { path, .. }
        | ImagePlace::DockerArchive { path, .. }
            if path.as_os_str() != "-" =>
        {
            *path = std::path::absolute(&*path)
                .map_err(|error| Failure::io(format!("cannot use `{}`", path.display()), &error))?;
        }
        _ => {}
    }
    Ok(place)
}

/// Does one transfer, and prints the digest of what it moved.
fn one(settings: &Settings, flags: &ProgressFlags, request: TransferRequest) -> Result<u8, Failure> {
    for image in transfer(settings, flags, request)? {
        output::print(&format!("{}\n", image.descriptor.digest))?;
    }
    Ok(0)
}

/// Does transfers, showing how far they are.
pub(crate) fn transfer(
    settings: &Settings,
    flags: &ProgressFlags,
    request: TransferRequest,
) -> Result<Vec<Transferred>, Failure> {
    let mode = if flags.quiet { ProgressMode::Quiet } else { settings.progress_mode(flags.progress)? };
    let mut display = None;
    let result = with_engine(settings, UserNamespace::Private, None, |engine| {
        // After the worker was started, which wants to be done before there is a second thread.
        let options = Options { colour: settings.colour, verbose: false };
        let events = display.insert(Progress::start(mode, options)).sink();
        async move { engine.transfer(request, events).await }
    });
    if let Some(display) = display {
        display.finish(result.is_ok());
    }
    result
}
