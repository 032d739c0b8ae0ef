//! `build-engine run`: a quick look at an image, with the sandbox that builds have.

use std::io::Write;
use std::sync::Arc;

use super::build::{Engine, blocking, step_error};
use super::ops::{self, StepError};
use super::sources::{Images, Policy};
use super::transfer::{no_image, reference};
use crate::{BuildError, ExitKind, ImagePlace, NetworkMode, Report, RunRequest, TransferRequest, Variants};
use build_engine_graph::{Event, EventSink, LogStream};
use build_engine_oci::{Digest, ImageConfig, Platform};
use build_engine_sandbox as sandbox;
use build_engine_store::Snapshot;

impl Engine {
    /// Runs a command in an image of the store; what it writes to the image is thrown away. Returns its exit code.
    pub(super) async fn run(&self, request: RunRequest) -> Result<i32, BuildError> {
        let reference = reference(&request.image)?;
        let images = Images::new(Arc::clone(&self.parts.remote), Policy::default());
        if images.in_store(&reference).await?.is_none() {
            if request.image.parse::<Digest>().is_ok() {
                return Err(step_error(no_image(&request.image)));
            }
            // As docker does: what had to be fetched has a name from then on.
            let to = ImagePlace::Store { image: reference.to_string() };
            let pair = (ImagePlace::Registry { reference: reference.clone() }, to);
            let variants = Variants::Only(Platform::host());
            let pull = TransferRequest::Copy { images: vec![pair], variants };
            self.transfer(pull, Arc::new(|_: Event| {})).await?;
        }
        let pinned = images.open(&format!("docker-image://{reference}"), &Platform::host()).await?;
        let lease = self.parts.store.lease().map_err(|error| StepError::store("cannot take a lease", &error))?;
        let lease = Arc::new(lease);
        let quiet: Arc<dyn EventSink> = Arc::new(|_: Event| {});
        let snapshot = images.unpack(&lease, &pinned, &Digest::sha256(b"run"), &quiet).await?;
        let config: ImageConfig = serde_json::from_slice(&pinned.found.config)
            .map_err(|error| ops::internal(format!("a config that was read before does not parse: {error}")))
            .map_err(step_error)?;
        let code = self.run_step(&request, &snapshot, &config).await;
        drop(lease);
        code
    }

    async fn run_step(
        &self,
        request: &RunRequest,
        snapshot: &Snapshot,
        config: &ImageConfig,
    ) -> Result<i32, BuildError> {
        let (parts, base) = (Arc::clone(&self.parts), snapshot.clone());
        // Dropped at the end, and with it what the command wrote.
        let (_active, fds, work) = blocking(move || ops::begin(&parts.store, &base)).await?;
        let spec = spec(request, config, work)?;
        let step = self.parts.launcher.spawn(&spec, &fds).map_err(|error| step_error(ops::step_failure(&error)))?;
        let exit = ops::watch(
            step,
            || None,
            |stream, text| {
                // A closed terminal is no reason to end the command.
                let _ = match stream {
                    LogStream::Stdout => pass(&text, &mut std::io::stdout()),
                    LogStream::Stderr => pass(&text, &mut std::io::stderr()),
                };
            },
        )
        .await
        .map_err(step_error)?;
        if let Some(message) = exit.message {
            // As a shell does: the reason on standard error, the code as it is.
            let _ = writeln!(std::io::stderr(), "{message}");
        }
        Ok(exit.status.code())
    }
}

fn pass(text: &str, to: &mut impl Write) -> std::io::Result<()> {
    to.write_all(text.as_bytes()).and_then(|()| to.flush())
}

fn spec(request: &RunRequest, config: &ImageConfig, work: String) -> Result<sandbox::StepSpec, BuildError> {
    let config = &config.config;
    let entrypoint = match &request.entrypoint {
        Some(program) if program.is_empty() => Vec::new(),
        Some(program) => vec![program.clone()],
        None => config.entrypoint.clone().unwrap_or_default(),
    };
    let command = if request.command.is_empty() && request.entrypoint.is_none() {
        config.cmd.clone().unwrap_or_default()
    } else {
        request.command.clone()
    };
    let args: Vec<String> = entrypoint.into_iter().chain(command).collect();
    if args.is_empty() {
        let report = Report::new("no-command", format!("the image `{}` says no command to run", request.image))
            .hint("name one: `build-engine run IMAGE COMMAND…`");
        return Err(BuildError::new(ExitKind::Input, report));
    }
    // An entry without a name is no variable; none is ever taken from the host.
    let mut env: Vec<String> =
        config.env.iter().filter(|pair| pair.find('=').is_some_and(|at| at > 0)).cloned().collect();
    env.extend(request.env.iter().cloned());
    let cwd = request.workdir.clone().unwrap_or_else(|| config.working_dir.clone());
    Ok(sandbox::StepSpec {
        root: sandbox::Root::Overlay { upper: "fs".into(), work },
        args,
        env,
        cwd: if cwd.is_empty() { "/".into() } else { cwd },
        user: request.user.clone().unwrap_or_else(|| config.user.clone()),
        network: match request.network {
            NetworkMode::Default => sandbox::Network::Default,
            NetworkMode::Host => sandbox::Network::Host,
            NetworkMode::None => sandbox::Network::None,
        },
        ..sandbox::StepSpec::default()
    })
}
