//! A stage on its way from text to graph.

use std::borrow::Cow;

use build_engine_dockerfile::{Instruction, InstructionKind, Span};
use build_engine_oci::{ContainerConfig, Digest, Empty, ImageConfig, Platform, Rootfs};

use crate::checks::Once;
use crate::context::NamedContext;
use crate::draft::{Output, State};
use crate::outline::Captured;

/// `PATH` where a base image sets none.
pub(crate) const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Number of a stage in [`crate::convert::Converter`].
pub(crate) type StageId = usize;

/// A stage, or an image or context that is used like one (`COPY --from=alpine`).
pub(crate) struct Stage<'a> {
    /// What it starts from, variables replaced; an image's reference once it is resolved.
    pub(crate) base_name: String,
    /// The name after `AS`.
    pub(crate) name: Option<String>,
    /// The name shown in vertex names; empty where there is only one stage.
    pub(crate) display: String,
    /// The `FROM`, or the instruction that uses it.
    pub(crate) span: Span,
    /// Where `base_name` is written.
    pub(crate) base_span: Span,
    /// The text of the `FROM`.
    pub(crate) text: String,
    /// Whether it stands in the Dockerfile.
    pub(crate) declared: bool,
    /// What it runs on, where that is decided.
    pub(crate) platform: Option<Platform>,
    /// The named context that replaces it.
    pub(crate) context: Option<NamedContext>,
    /// The stage it starts from.
    pub(crate) base: Option<StageId>,
    /// The image it starts from, as it was found; its source where it has layers.
    pub(crate) base_image: Option<Base>,
    pub(crate) state: State,
    pub(crate) image: ImageConfig,
    pub(crate) commands: Vec<Command<'a>>,
    /// Stages that instructions read, and where.
    pub(crate) needs: Vec<(StageId, Span)>,
    /// `ARG`s seen so far, in order.
    pub(crate) args: Vec<(String, Option<String>)>,
    /// Index into the sets of used paths; a stage shares its base's.
    pub(crate) paths: usize,
    pub(crate) ignore_cache: bool,
    /// Whether the base is resolved, or known not to be needed.
    pub(crate) resolved: bool,
    /// Whether its state is final.
    pub(crate) dispatched: bool,
    /// Whether triggers of its base stage were taken over.
    pub(crate) triggers_taken: bool,
    /// Whether the instruction being lowered is a trigger.
    pub(crate) in_trigger: bool,
    /// Whether a `CMD` of this stage was seen.
    pub(crate) cmd_set: bool,
    /// Whether a `WORKDIR` was seen, here or in the stage that it starts from.
    pub(crate) directory_set: bool,
    /// Instructions of which only the last counts.
    pub(crate) once: Once,
    /// What an outline says of it.
    pub(crate) captured: Captured,
    /// Number of the last named vertex.
    pub(crate) index: usize,
    /// How many named vertices it has.
    pub(crate) total: usize,
}

/// A base image before its vertex exists.
#[derive(Debug, Clone)]
pub(crate) struct Base {
    pub(crate) identifier: String,
    pub(crate) digest: Digest,
    pub(crate) image: ImageConfig,
    pub(crate) source: Option<Output>,
}

/// An instruction of a stage, with the stages it reads.
#[derive(Clone)]
pub(crate) struct Command<'a> {
    pub(crate) instruction: Cow<'a, Instruction>,
    /// One per `--from`: a `COPY` has at most one, a `RUN` one per mount.
    pub(crate) sources: Vec<Option<StageId>>,
    /// Whether it comes from `ONBUILD`.
    pub(crate) is_trigger: bool,
}

impl Stage<'_> {
    pub(crate) fn new(base_name: String, span: Span, paths: usize) -> Self {
        Self {
            base_name,
            name: None,
            display: String::new(),
            span,
            base_span: span,
            text: String::new(),
            declared: false,
            platform: None,
            context: None,
            base: None,
            base_image: None,
            state: State::scratch(),
            image: ImageConfig::default(),
            commands: Vec::new(),
            needs: Vec::new(),
            args: Vec::new(),
            paths,
            ignore_cache: false,
            resolved: false,
            dispatched: false,
            triggers_taken: false,
            in_trigger: false,
            cmd_set: false,
            directory_set: false,
            once: Once::default(),
            captured: Captured::default(),
            index: 0,
            total: 0,
        }
    }

    /// What it runs on. Decided before instructions are lowered.
    pub(crate) fn platform_or(&self, target: &Platform) -> Platform {
        self.platform.clone().unwrap_or_else(|| target.clone())
    }
}

/// Whether an instruction makes a vertex that is counted in names (`2/5`).
pub(crate) fn is_counted(kind: &InstructionKind) -> bool {
    use InstructionKind::{Add, Copy, Run, Workdir};
    matches!(kind, Add(_) | Copy(_) | Run(_) | Workdir(_))
}

/// The config that `FROM scratch` begins with.
pub(crate) fn empty_image(platform: &Platform) -> ImageConfig {
    let mut image = ImageConfig { rootfs: Rootfs::default(), ..ImageConfig::default() };
    set_platform(&mut image, platform);
    image.config.working_dir = "/".into();
    if platform.os != "windows" {
        image.config.env = vec![DEFAULT_PATH.into()];
    }
    image
}

/// Writes all of `platform` into a config.
pub(crate) fn set_platform(image: &mut ImageConfig, platform: &Platform) {
    image.os.clone_from(&platform.os);
    image.architecture.clone_from(&platform.architecture);
    image.variant = platform.variant.clone().unwrap_or_default();
    image.os_version = platform.os_version.clone().unwrap_or_default();
    image.os_features.clone_from(&platform.os_features);
}

/// Makes sure that `PATH` is set, except for Windows, whose images leave it to the system.
pub(crate) fn ensure_path(config: &mut ContainerConfig, os: &str) {
    if os == "windows" || config.env.iter().any(|pair| crate::env::split(pair).0 == "PATH") {
        return;
    }
    config.env.push(DEFAULT_PATH.into());
}

/// Reads an image's config as the image that a build starts from: what BuildKit does not know is dropped, because it
/// would be wrong of the new image (`container`, `id`, build information).
pub(crate) fn parse_config(bytes: &[u8]) -> Result<ImageConfig, serde_json::Error> {
    let mut image: ImageConfig = serde_json::from_slice(bytes)?;
    image.rest.clear();
    image.config.rest.clear();
    let none_if_empty = |list: &mut Option<Vec<String>>| {
        if list.as_ref().is_some_and(Vec::is_empty) {
            *list = None;
        }
    };
    none_if_empty(&mut image.config.cmd);
    none_if_empty(&mut image.config.entrypoint);
    Ok(image)
}

/// Whether an image has no layers.
pub(crate) fn is_layerless(image: &ImageConfig) -> bool {
    image.rootfs.diff_ids.is_empty() && image.history.iter().all(|item| item.empty_layer)
}

/// The platform that a config states, if it states one.
pub(crate) fn stated_platform(image: &ImageConfig) -> Option<Platform> {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    (!image.os.is_empty() && !image.architecture.is_empty()).then(|| Platform {
        os: image.os.clone(),
        architecture: image.architecture.clone(),
        variant: some(&image.variant),
        os_version: some(&image.os_version),
        os_features: image.os_features.clone(),
    })
}

/// A member of a set that Docker writes as a map.
pub(crate) const MEMBER: Empty = Empty {};
