//! What a build is asked to do, and what came of it.
//!
//! These types cross the border to the worker, so all of them can be serialised. Text from flags becomes one of them in
//! the face; nothing here reads the environment.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use build_engine_graph::{Network, Ulimit};
use build_engine_oci::{Descriptor, Digest, Platform, Reference};
use build_engine_registry::Settings as RegistrySettings;
use serde::{Deserialize, Serialize};

use crate::{Entitlement, Session};

/// One build, as `docker buildx build` would take it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BuildRequest {
    /// Identifies the build: events, history and cancelling name it.
    pub build_id: String,
    /// Text of the Dockerfile.
    pub dockerfile: String,
    /// Name of the Dockerfile shown in messages.
    pub dockerfile_name: String,
    /// Where the Dockerfile was read from; the ignore file beside it (`<Dockerfile>.dockerignore`) comes first.
    pub dockerfile_path: Option<PathBuf>,
    /// The build context where it is a directory; without one and without `remote_context` it is empty.
    pub context: Option<PathBuf>,
    /// The address of a build context that is fetched: a repository, an archive or a single Dockerfile. What begins with
    /// [`UPLOAD`] stands in `uploads`.
    pub remote_context: Option<String>,
    /// Where `dockerfile` comes from.
    pub dockerfile_source: DockerfileSource,
    /// Files of this machine that are taken for what stands at [`UPLOAD`] and their name: what came from standard input.
    pub uploads: BTreeMap<String, PathBuf>,
    /// `--build-context`: further contexts by name.
    pub named_contexts: BTreeMap<String, ContextSource>,
    /// `--tag`.
    pub tags: Vec<Reference>,
    /// `--platform`; empty means the host's.
    pub platforms: Vec<Platform>,
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// `--annotation`.
    pub annotations: Vec<Annotation>,
    /// `--target`.
    pub target: Option<String>,
    /// `--no-cache` and `--no-cache-filter`.
    pub no_cache: NoCache,
    /// `--pull`: registries are asked what names stand for, whatever the store has.
    pub pull: bool,
    /// What stands in the lock file: digests by canonical reference.
    pub lock: BTreeMap<String, Digest>,
    /// `--locked`: a name that the lock file lacks is an error.
    pub locked: bool,
    /// `--network`: what RUN gets where it does not say.
    pub network: NetworkMode,
    /// `--add-host`: (name, address).
    pub extra_hosts: Vec<(String, String)>,
    /// `--ulimit`.
    pub ulimits: Vec<Limit>,
    /// `--shm-size` in bytes; 0 means the default.
    pub shm_size_bytes: u64,
    /// `--cgroup-parent`; empty means the worker's own.
    pub cgroup_parent: String,
    /// `SOURCE_DATE_EPOCH` in seconds.
    pub source_date_epoch: Option<i64>,
    /// `--output`; empty means the image store where there is a tag, and nothing but the cache otherwise.
    pub outputs: Vec<Output>,
    /// `--metadata-file` and `--iidfile` are written by the face; attestations asked for by `--attest` are listed here.
    pub attestations: Vec<Attestation>,
    /// `--resource`.
    pub resources: ResourceLimits,
    /// `--rm=false`: the tree of a failed step becomes an image of the store.
    pub keep_failed: bool,
    /// `--isolation`.
    pub isolation: Isolation,
    /// `--allow-private-urls`: redirects of what is fetched may lead to private addresses.
    pub allow_private_urls: bool,
    /// `--allow`: what the Dockerfile may ask for beyond what every build may.
    pub allow: Vec<Entitlement>,
    /// Whether shortcuts are taken: remembered digests of a context, layers written as blobs at once, compressed or pushed
    /// early. They change no result; without them a build does all that the plain way, for comparison.
    pub fast_paths: bool,
    /// What the build may ask of the face, which keeps it.
    #[serde(skip)]
    pub session: Session,
}

/// How much a build insists on its isolation (`--isolation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// Namespaces, system call filter, capabilities; where the host lacks a part, a note says what was used instead.
    #[default]
    Default,
    /// The same, and what the host lacks is an error.
    Strict,
    /// The same, by a worker without privilege on the host.
    Rootless,
}

/// Where the addresses of what a user sends along with a build begin; BuildKit's name for it.
pub const UPLOAD: &str = "http://buildkit-session/";

/// Where the text of a Dockerfile is to be found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DockerfileSource {
    /// In the request.
    #[default]
    Given,
    /// In the context that is fetched, by its path there.
    Context(String),
    /// At a URL.
    Url(String),
}

/// The serialisable form of [`Network`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// A network of its own, with a way out where the host offers one.
    #[default]
    Default,
    /// The host's network.
    Host,
    /// Loopback only.
    None,
}

impl From<NetworkMode> for Network {
    fn from(mode: NetworkMode) -> Self {
        match mode {
            NetworkMode::Default => Self::Default,
            NetworkMode::Host => Self::Host,
            NetworkMode::None => Self::None,
        }
    }
}

/// The serialisable form of [`Ulimit`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Name as in `ulimit`: `nofile`, `nproc`, …
    pub name: String,
    /// Soft limit; -1 means unlimited.
    pub soft: i64,
    /// Hard limit; -1 means unlimited.
    pub hard: i64,
}

impl From<Limit> for Ulimit {
    fn from(limit: Limit) -> Self {
        Self { name: limit.name, soft: limit.soft, hard: limit.hard }
    }
}

/// Limits of every RUN (`--resource`); zero or empty means none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ResourceLimits {
    /// Memory in bytes.
    pub memory_bytes: i64,
    /// Memory and swap in bytes.
    pub memory_swap_bytes: i64,
    /// Relative CPU weight.
    pub cpu_shares: u64,
    /// CFS period in microseconds.
    pub cpu_period: u64,
    /// CFS quota in microseconds.
    pub cpu_quota: i64,
    /// CPUs, for example `0-3`.
    pub cpuset_cpus: String,
    /// Memory nodes, for example `0,1`.
    pub cpuset_mems: String,
}

/// Where a named context comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ContextSource {
    /// A directory.
    Local {
        /// The directory.
        path: PathBuf,
    },
    /// An OCI layout, as a directory or as a tar archive.
    OciLayout {
        /// The layout.
        path: PathBuf,
        /// Tag within it.
        tag: Option<String>,
        /// Digest within it.
        digest: Option<Digest>,
    },
    /// An image.
    Image {
        /// Its name.
        reference: Reference,
    },
    /// Anything else, by its URL; the embedded engine refuses it by name.
    Other {
        /// As given.
        url: String,
    },
}

impl ContextSource {
    /// Parses the right-hand side of `--build-context name=…`; relative paths are left as they are.
    pub fn parse(text: &str) -> Result<Self, InvalidOutput> {
        let invalid = |reason: String| InvalidOutput { text: text.to_owned(), reason };
        if let Some(rest) = text.strip_prefix("oci-layout://") {
            let (rest, digest) = match rest.split_once('@') {
                Some((rest, digest)) => (rest, Some(digest.parse().map_err(|error| invalid(format!("{error}")))?)),
                None => (rest, None),
            };
            let (path, tag) = match rest.rsplit_once(':') {
                Some((path, tag)) if !tag.contains('/') => (path, Some(tag.to_owned())),
                _ => (rest, None),
            };
            if path.is_empty() {
                return Err(invalid("no path follows oci-layout://".into()));
            }
            return Ok(Self::OciLayout { path: path.into(), tag, digest });
        }
        if let Some(rest) = text.strip_prefix("docker-image://") {
            let reference: Reference = rest.parse().map_err(|error| invalid(format!("{error}")))?;
            return Ok(Self::Image { reference: reference.or_latest() });
        }
        if text.contains("://") || text.starts_with("git@") {
            return Ok(Self::Other { url: text.to_owned() });
        }
        Ok(Self::Local { path: text.into() })
    }
}

/// Which cached results must not be used.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoCache {
    /// All may be used.
    #[default]
    Off,
    /// None may be used.
    All,
    /// Those of these stages may not.
    Stages(Vec<String>),
}

/// Whether RUN gets a user namespace of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UserNamespace {
    /// Always.
    #[default]
    Private,
    /// Not for root (`--userns=host`).
    Host,
}

/// An attestation asked for with `--attest`, `--provenance` or `--sbom`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attestation {
    /// `provenance` or `sbom`.
    pub kind: String,
    /// Its attributes.
    pub attrs: BTreeMap<String, String>,
}

/// What an annotation is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnnotationTarget {
    /// The manifest.
    Manifest,
    /// The manifest's descriptor in the index.
    ManifestDescriptor,
    /// The index.
    Index,
    /// The index's descriptor in the layout.
    IndexDescriptor,
}

/// One `--annotation [type[platform],…:]key=value`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Annotation {
    /// What it is attached to.
    pub targets: Vec<AnnotationTarget>,
    /// Only for this platform.
    pub platform: Option<Platform>,
    /// Key.
    pub key: String,
    /// Value.
    pub value: String,
}

impl FromStr for Annotation {
    type Err = InvalidOutput;

    fn from_str(text: &str) -> Result<Self, InvalidOutput> {
        let invalid = |reason: &str| InvalidOutput { text: text.to_owned(), reason: reason.to_owned() };
        let (left, value) = text.split_once('=').ok_or_else(|| invalid("expected key=value"))?;
        let (prefix, key) = match left.split_once(':') {
            // A colon may also be part of the key; only known type names before it make a prefix.
            Some((prefix, key)) if prefix.starts_with("manifest") || prefix.starts_with("index") => (Some(prefix), key),
            _ => (None, left),
        };
        if key.is_empty() {
            return Err(invalid("the key is empty"));
        }
        let mut targets = Vec::new();
        let mut platform = None;
        for part in prefix.unwrap_or("manifest").split(',') {
            let (name, inside) = match part.split_once('[') {
                Some((name, rest)) => {
                    (name, Some(rest.strip_suffix(']').ok_or_else(|| invalid("`[` without `]` in the type"))?))
                }
                None => (part, None),
            };
            targets.push(match name {
                "manifest" => AnnotationTarget::Manifest,
                "manifest-descriptor" => AnnotationTarget::ManifestDescriptor,
                "index" => AnnotationTarget::Index,
                "index-descriptor" => AnnotationTarget::IndexDescriptor,
                _ => return Err(invalid("the type is one of manifest, manifest-descriptor, index, index-descriptor")),
            });
            if let Some(inside) = inside {
                platform = Some(inside.parse().map_err(|_| invalid("what stands in brackets is not a platform"))?);
            }
        }
        Ok(Self { targets, platform, key: key.to_owned(), value: value.to_owned() })
    }
}

/// How layer blobs are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// Not at all.
    Uncompressed,
    /// gzip; level 0 to 9.
    Gzip(Option<u8>),
    /// zstd; level 0 to 22.
    Zstd(Option<u8>),
    /// gzip with a table of contents; level 0 to 9.
    Estargz(Option<u8>),
    /// zstd with a table of contents; level 0 to 22.
    ZstdChunked(Option<u8>),
}

/// How an image is written, whatever it is written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageOptions {
    /// Compression of layers that this build makes.
    pub compression: Compression,
    /// Whether layers that came otherwise compressed, such as those of a base, get this compression too.
    pub force_compression: bool,
    /// OCI media types (the default) or Docker's.
    pub oci_media_types: bool,
    /// Whether timestamps of files in layers are clamped to `SOURCE_DATE_EPOCH`.
    pub rewrite_timestamp: bool,
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self {
            compression: Compression::Gzip(None),
            force_compression: false,
            oci_media_types: true,
            rewrite_timestamp: false,
        }
    }
}

/// Where the bytes of an archive go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputDest {
    /// Standard output of the face.
    Stdout,
    /// A file or directory.
    Path(PathBuf),
}

/// The daemon that an image is loaded into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoadTarget {
    /// Docker or Podman: of these sockets, the first that answers is the one.
    Sockets(Vec<PathBuf>),
    /// containerd itself.
    Containerd(Containerd),
}

impl Default for LoadTarget {
    fn default() -> Self {
        Self::Sockets(Vec::new())
    }
}

/// A containerd, and where in it images go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Containerd {
    /// Its socket.
    pub address: PathBuf,
    /// The namespace of the image.
    pub namespace: String,
    /// The snapshotter that its layers are unpacked into.
    pub snapshotter: String,
}

/// One `--output`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Output {
    /// The image store, a registry, or both.
    Image {
        /// Names besides the request's tags.
        names: Vec<Reference>,
        /// How it is written.
        options: ImageOptions,
        /// Whether the names are given in the store.
        store: bool,
        /// Whether it is pushed to the registries of its names.
        push: bool,
        /// Whether it is pushed without its tag.
        push_by_digest: bool,
        /// Whether the registries' certificates are not looked at, for this push.
        insecure: bool,
    },
    /// A local daemon.
    Load {
        /// Which one.
        target: LoadTarget,
        /// Names besides the request's tags.
        names: Vec<Reference>,
        /// How it is written.
        options: ImageOptions,
    },
    /// An OCI layout: an archive, or a directory with `tar=false`.
    Oci {
        /// Where to.
        dest: OutputDest,
        /// Archive or directory.
        tar: bool,
        /// Names besides the request's tags.
        names: Vec<Reference>,
        /// How it is written.
        options: ImageOptions,
    },
    /// An archive that `docker load` reads.
    Docker {
        /// Where to.
        dest: OutputDest,
        /// Archive or directory.
        tar: bool,
        /// Names besides the request's tags.
        names: Vec<Reference>,
        /// How it is written.
        options: ImageOptions,
    },
    /// The files of the result as an archive.
    Tar {
        /// Where to.
        dest: OutputDest,
        /// Whether timestamps are clamped to `SOURCE_DATE_EPOCH`.
        rewrite_timestamp: bool,
    },
    /// The files of the result in a directory.
    Local {
        /// The directory.
        dest: PathBuf,
        /// A directory per platform below it; the default where there are several.
        platform_split: Option<bool>,
    },
    /// Nothing; the cache is filled.
    CacheOnly,
}

impl Output {
    /// The image store, under the request's tags.
    pub fn image() -> Self {
        Self::Image {
            names: Vec::new(),
            options: ImageOptions::default(),
            store: true,
            push: false,
            push_by_digest: false,
            insecure: false,
        }
    }
}

/// A flag's value that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}`: {reason}")]
pub struct InvalidOutput {
    /// As given.
    pub text: String,
    /// What is wrong, and what is expected.
    pub reason: String,
}

impl FromStr for Output {
    type Err = InvalidOutput;

    /// Parses the value of `--output`: CSV fields, or a path alone (`-` is a tar archive on standard output, anything
    /// else a directory), as buildx does.
    fn from_str(text: &str) -> Result<Self, InvalidOutput> {
        let invalid = |reason: String| InvalidOutput { text: text.to_owned(), reason };
        if !text.contains('=') {
            return match text {
                "" => Err(invalid("it is empty".into())),
                "-" => Ok(Self::Tar { dest: OutputDest::Stdout, rewrite_timestamp: false }),
                path => Ok(Self::Local { dest: path.into(), platform_split: None }),
            };
        }
        let mut attrs: BTreeMap<String, String> = BTreeMap::new();
        for field in split_csv(text).map_err(invalid)? {
            let (key, value) = field.split_once('=').ok_or_else(|| invalid(format!("field `{field}` has no `=`")))?;
            let key = key.trim().to_lowercase();
            if attrs.insert(key.clone(), value.to_owned()).is_some() {
                return Err(invalid(format!("`{key}` is given twice")));
            }
        }
        let kind = attrs.remove("type").ok_or_else(|| invalid("`type` is required".into()))?;
        let output = match kind.as_str() {
            "image" => take_image(&mut attrs, false)?,
            "registry" => take_image(&mut attrs, true)?,
            "oci" => {
                let tar = take_bool(&mut attrs, "tar")?.unwrap_or(true);
                Self::Oci {
                    tar,
                    names: take_names(&mut attrs)?,
                    options: take_options(&mut attrs)?,
                    dest: take_dest(&mut attrs)?,
                }
            }
            "docker" => {
                let tar = take_bool(&mut attrs, "tar")?.unwrap_or(true);
                let names = take_names(&mut attrs)?;
                let explicit = attrs.contains_key("oci-mediatypes");
                let mut options = take_options(&mut attrs)?;
                // `docker load` of every version reads Docker's types; OCI's only where asked for.
                if !explicit {
                    options.oci_media_types = false;
                }
                if attrs.contains_key("dest") {
                    Self::Docker { tar, names, options, dest: take_dest(&mut attrs)? }
                } else if tar {
                    // Where daemons listen, the face knows.
                    Self::Load { target: LoadTarget::default(), names, options }
                } else {
                    return Err(invalid("`tar=false` needs a directory as `dest`".into()));
                }
            }
            "tar" => Self::Tar {
                rewrite_timestamp: take_bool(&mut attrs, "rewrite-timestamp")?.unwrap_or(false),
                dest: take_dest(&mut attrs)?,
            },
            "local" => {
                let platform_split = take_bool(&mut attrs, "platform-split")?;
                match take_dest(&mut attrs)? {
                    OutputDest::Path(dest) => Self::Local { dest, platform_split },
                    OutputDest::Stdout => {
                        return Err(invalid("a directory cannot be written to standard output".into()));
                    }
                }
            }
            "cacheonly" => Self::CacheOnly,
            other => {
                return Err(invalid(format!(
                    "unknown type `{other}`: expected image, registry, oci, docker, tar, local or cacheonly"
                )));
            }
        };
        match attrs.keys().next() {
            None => Ok(output),
            Some(key) => Err(invalid(format!("`{key}` is not supported for type `{kind}`"))),
        }
    }
}

type Attrs = BTreeMap<String, String>;

fn attr_error(key: &str, value: &str, reason: impl Into<String>) -> InvalidOutput {
    InvalidOutput { text: format!("{key}={value}"), reason: reason.into() }
}

fn take_bool(attrs: &mut Attrs, key: &str) -> Result<Option<bool>, InvalidOutput> {
    attrs
        .remove(key)
        .map(|value| match value.to_lowercase().as_str() {
            "true" | "1" | "t" => Ok(true),
            "false" | "0" | "f" => Ok(false),
            _ => Err(attr_error(key, &value, "expected true or false")),
        })
        .transpose()
}

fn take_dest(attrs: &mut Attrs) -> Result<OutputDest, InvalidOutput> {
    match attrs.remove("dest").as_deref() {
        None => Err(attr_error("dest", "", "`dest` is required: a path, or `-` for standard output")),
        Some("-") => Ok(OutputDest::Stdout),
        Some(path) => Ok(OutputDest::Path(path.into())),
    }
}

fn take_names(attrs: &mut Attrs) -> Result<Vec<Reference>, InvalidOutput> {
    let Some(names) = attrs.remove("name") else { return Ok(Vec::new()) };
    names
        .split(',')
        .map(|name| match name.trim().parse::<Reference>() {
            Ok(reference) => Ok(reference.or_latest()),
            Err(error) => Err(attr_error("name", name, error.to_string())),
        })
        .collect()
}

/// The attributes of `type=image`, and of `type=registry`, which is the same but pushed and not kept.
fn take_image(attrs: &mut Attrs, registry: bool) -> Result<Output, InvalidOutput> {
    let push = take_bool(attrs, "push")?.unwrap_or(registry);
    let push_by_digest = take_bool(attrs, "push-by-digest")?.unwrap_or(false);
    if push_by_digest && !push {
        return Err(attr_error("push-by-digest", "true", "it needs `push=true`"));
    }
    Ok(Output::Image {
        names: take_names(attrs)?,
        options: take_options(attrs)?,
        store: take_bool(attrs, "store")?.unwrap_or(!registry),
        push,
        push_by_digest,
        insecure: take_bool(attrs, "registry.insecure")?.unwrap_or(false),
    })
}

fn take_options(attrs: &mut Attrs) -> Result<ImageOptions, InvalidOutput> {
    let level = match attrs.remove("compression-level") {
        None => None,
        Some(text) => {
            Some(text.parse::<u8>().map_err(|_| attr_error("compression-level", &text, "expected a small number"))?)
        }
    };
    let within = |most: u8| match level {
        Some(level) if level > most => {
            Err(attr_error("compression-level", &level.to_string(), format!("the highest level is {most}")))
        }
        level => Ok(level),
    };
    let compression = match attrs.remove("compression").as_deref() {
        None | Some("gzip") => Compression::Gzip(within(9)?),
        Some("zstd") => Compression::Zstd(within(22)?),
        Some("estargz") => Compression::Estargz(within(9)?),
        Some("zstd:chunked") => Compression::ZstdChunked(within(22)?),
        Some("uncompressed") => match level {
            None => Compression::Uncompressed,
            Some(level) => {
                return Err(attr_error("compression-level", &level.to_string(), "nothing is compressed"));
            }
        },
        Some(other) => {
            let expected = "expected gzip, zstd, estargz, zstd:chunked or uncompressed";
            return Err(attr_error("compression", other, expected));
        }
    };
    Ok(ImageOptions {
        compression,
        force_compression: take_bool(attrs, "force-compression")?.unwrap_or(false),
        oci_media_types: take_bool(attrs, "oci-mediatypes")?.unwrap_or(true),
        rewrite_timestamp: take_bool(attrs, "rewrite-timestamp")?.unwrap_or(false),
    })
}

/// Splits one CSV record (RFC 4180 quotes), as buildx reads its flags.
pub fn split_csv(text: &str) -> Result<Vec<String>, String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        let field = fields.last_mut().expect("there is always one field");
        match char {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if field.is_empty() => quoted = true,
            ',' if !quoted => fields.push(String::new()),
            char => field.push(char),
        }
    }
    if quoted { Err("a quote is not closed".into()) } else { Ok(fields) }
}

/// What a build came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// The build.
    pub build_id: String,
    /// The image: a manifest, or an index for several platforms. `None` where no output made one.
    pub image: Option<Descriptor>,
    /// The config, where there is one platform.
    pub config: Option<Digest>,
    /// Names given in the store.
    pub names: Vec<Reference>,
    /// Layers of the image (all platforms).
    pub layers: usize,
    /// Sum of the uncompressed sizes of its layers.
    pub size_bytes: u64,
    /// How isolated its commands were.
    pub isolation: IsolationReport,
}

/// How isolated the commands of a build were.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IsolationReport {
    /// The level asked for.
    pub level: Isolation,
    /// How the worker ran: `root`, `user` or `oneuid`.
    pub worker: String,
    /// What was less than usual on this host, or than asked for; empty with [`Isolation::Strict`].
    pub fallbacks: Vec<String>,
}

/// `build-engine run`: a quick look at an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunRequest {
    /// Name or digest of the image.
    pub image: String,
    /// Command; empty means the image's.
    pub command: Vec<String>,
    /// Further environment, as `NAME=value`.
    pub env: Vec<String>,
    /// User instead of the image's.
    pub user: Option<String>,
    /// Working directory instead of the image's.
    pub workdir: Option<String>,
    /// Entrypoint instead of the image's.
    pub entrypoint: Option<String>,
    /// Its network.
    pub network: NetworkMode,
}

/// Which store, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoreOptions {
    /// The store's directory.
    pub root: PathBuf,
    /// User namespaces of RUN.
    pub user_namespace: UserNamespace,
    /// How registries are spoken to.
    pub registries: RegistrySettings,
}

/// A request for nothing yet.
pub(crate) fn empty(build_id: &str) -> BuildRequest {
    BuildRequest {
        build_id: build_id.to_owned(),
        dockerfile: String::new(),
        dockerfile_name: "Dockerfile".into(),
        dockerfile_path: None,
        context: None,
        remote_context: None,
        dockerfile_source: DockerfileSource::Given,
        uploads: BTreeMap::new(),
        named_contexts: BTreeMap::new(),
        tags: Vec::new(),
        platforms: Vec::new(),
        build_args: BTreeMap::new(),
        labels: BTreeMap::new(),
        annotations: Vec::new(),
        target: None,
        no_cache: NoCache::Off,
        pull: false,
        lock: BTreeMap::new(),
        locked: false,
        network: NetworkMode::Default,
        extra_hosts: Vec::new(),
        ulimits: Vec::new(),
        shm_size_bytes: 0,
        cgroup_parent: String::new(),
        source_date_epoch: None,
        outputs: Vec::new(),
        attestations: Vec::new(),
        resources: ResourceLimits::default(),
        allow_private_urls: false,
        allow: Vec::new(),
        session: Session::default(),
        isolation: Isolation::Default,
        keep_failed: false,
        fast_paths: true,
    }
}

#[cfg(test)]
mod tests;
