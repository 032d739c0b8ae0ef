//! The wire format: `pb.Op` and `pb.Definition` of BuildKit, and nothing else in this crate knows protobuf.
//!
//! [`encode_op`] writes the bytes that BuildKit's Go client writes (`client/llb`, deterministic marshalling): fields in the order of
//! their numbers, maps sorted by key, proto3 defaults left out, both halves of a map entry always written. A vertex's digest is
//! the hash of these bytes, so the digests here are BuildKit's. [`decode_definition`] is total: whatever the bytes, the answer is a
//! graph that makes sense or a [`DecodeError`].
//!
//! Invariant: a vertex that was decoded keeps the bytes that it was decoded from.
//!
//! Source: `solver/pb/ops.proto`, `client/llb/{marshal,exec,fileop,merge,diff,source,sourcemap}.go` of BuildKit.

mod json;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use build_engine_oci::{Digest, Platform};
use prost::Message;

use crate::{
    BuildOp, CacheSharing, ContentCache, Device, DiffOp, Edge, ExecMeta, ExecOp, FileAction, FileActionKind, FileCopy,
    FileFromSession, FileOp, MergeOp, Metadata, Mount, MountKind, Network, Op, Owner, ProgressGroup, ProxyEnv,
    SecretEnv, Security, SourceFile, SourceOp, SourceSpan, Ulimit, UserRef, Vertex, walk,
};

pub use json::definition_json;

/// Largest definition that is decoded. BuildKit's own limit on a message is 16 MiB.
pub const MAX_DEFINITION_BYTES: usize = 64 << 20;
/// Most vertices of a definition that is decoded.
pub const MAX_VERTICES: usize = 200_000;
/// Most inputs of one vertex that is decoded, and most outputs that may be asked of one.
pub const MAX_EDGES: usize = 10_000;

/// The description under which the name of a vertex travels.
const CUSTOM_NAME: &str = "llb.customname";

/// Why bytes are not a definition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not protobuf, or not of these messages.
    #[error("definition is not well-formed protobuf")]
    Malformed(#[from] prost::DecodeError),
    /// Beyond [`MAX_DEFINITION_BYTES`].
    #[error("definition has {size_bytes} bytes, more than {MAX_DEFINITION_BYTES}")]
    TooLarge {
        /// Its size.
        size_bytes: usize,
    },
    /// Beyond [`MAX_VERTICES`].
    #[error("definition has {count} vertices, more than {MAX_VERTICES}")]
    TooManyVertices {
        /// How many.
        count: usize,
    },
    /// The last operation is not a bare list of inputs.
    #[error("definition does not end with the edges that are asked for")]
    NoTarget,
    /// A vertex names an input that the definition lacks.
    #[error("vertex {vertex} has the input `{input}`, which the definition does not contain")]
    MissingInput {
        /// The vertex.
        vertex: Digest,
        /// What it names.
        input: String,
    },
    /// A vertex is below itself.
    #[error("vertex {vertex} depends on itself")]
    Cycle {
        /// The vertex.
        vertex: Digest,
    },
    /// A source location points to a source that is not there.
    #[error("vertex `{vertex}` has a place in source number {index}, which the definition does not contain")]
    MissingSource {
        /// The vertex.
        vertex: String,
        /// The number.
        index: i32,
    },
    /// A vertex makes no sense or asks for something unknown.
    #[error("vertex {vertex} is invalid")]
    Vertex {
        /// The vertex.
        vertex: Digest,
        /// In which way.
        source: InvalidOp,
    },
}

/// What is wrong with an operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOp {
    /// No operation, or one of a later version of the format.
    #[error("its operation is unknown")]
    UnknownOp,
    /// Fields of a later version of the format, or an encoding that no client writes.
    #[error("it has fields that are not known here")]
    UnknownFields,
    /// Something that the format has but this engine does not.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// An index that is neither -1 nor within range.
    #[error("{field} is {index}, but there are {count} of them")]
    Index {
        /// The field.
        field: &'static str,
        /// What it says.
        index: i64,
        /// How many it may choose from.
        count: usize,
    },
    /// An enum value of a later version of the format.
    #[error("{field} has the unknown value {value}")]
    UnknownValue {
        /// The field.
        field: &'static str,
        /// What it says.
        value: i32,
    },
    /// A message that must be there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A number that is out of range.
    #[error("{field} cannot be {value}")]
    Number {
        /// The field.
        field: &'static str,
        /// What it says.
        value: i64,
    },
    /// More of something than is accepted.
    #[error("it has {count} {what}, more than {MAX_EDGES}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
    },
}

/// The bytes of `pb.Op`, as BuildKit's Go client writes them.
///
/// The empty worker constraints are written because that client always writes them.
pub fn encode_op(op: &Op, inputs: &[Edge], platform: Option<&Platform>) -> Vec<u8> {
    PbOp {
        inputs: inputs.iter().map(pb_input).collect(),
        op: Some(match op {
            Op::Exec(exec) => PbOpKind::Exec(pb_exec(exec)),
            Op::Source(source) => {
                PbOpKind::Source(PbSourceOp { identifier: source.identifier.clone(), attrs: pb_strings(&source.attrs) })
            }
            Op::File(file) => PbOpKind::File(PbFileOp { actions: file.actions.iter().map(pb_action).collect() }),
            Op::Build(build) => PbOpKind::Build(pb_build(build)),
            Op::Merge(merge) => PbOpKind::Merge(PbMergeOp {
                inputs: merge.inputs.iter().map(|input| PbIndex { input: pb_index(*input) }).collect(),
            }),
            Op::Diff(diff) => PbOpKind::Diff(PbDiffOp {
                lower: Some(PbIndex { input: pb_index(diff.lower) }),
                upper: Some(PbIndex { input: pb_index(diff.upper) }),
            }),
        }),
        platform: platform.map(|platform| PbPlatform {
            architecture: platform.architecture.clone(),
            os: platform.os.clone(),
            variant: platform.variant.clone().unwrap_or_default(),
            os_version: platform.os_version.clone().unwrap_or_default(),
            os_features: platform.os_features.clone(),
        }),
        constraints: Some(PbWorkerConstraints::default()),
    }
    .encode_to_vec()
}

/// The bytes of a `pb.Definition` of everything below `edges`; no bytes for no edges, which is how the empty image is written.
///
/// The vertices come inputs first; the last operation has nothing but `edges` as its inputs.
pub fn encode_definition(edges: &[Edge]) -> Vec<u8> {
    definition(edges).encode_to_vec()
}

fn definition(edges: &[Edge]) -> PbDefinition {
    if edges.is_empty() {
        return PbDefinition::default();
    }
    let mut definition = PbDefinition { source: Some(PbSource::default()), ..PbDefinition::default() };
    let mut metadata = BTreeMap::new();
    let mut locations = BTreeMap::new();
    let mut files: Vec<Arc<SourceFile>> = Vec::new();
    walk(edges, |vertex| {
        definition.def.push(vertex.wire().to_vec());
        metadata.insert(vertex.digest().to_string(), pb_metadata(vertex.metadata()));
        locations.insert(vertex.digest().to_string(), pb_locations(&vertex.metadata().spans, &mut files));
    });
    let target = PbOp { inputs: edges.iter().map(pb_input).collect(), ..PbOp::default() }.encode_to_vec();
    metadata.insert(Digest::sha256(&target).to_string(), PbOpMetadata::default());
    definition.def.push(target);
    definition.metadata =
        metadata.into_iter().map(|(key, value)| PbMetadataEntry { key: Some(key), value: Some(value) }).collect();
    definition.source = Some(PbSource {
        locations: locations
            .into_iter()
            .map(|(key, value)| PbLocationsEntry { key: Some(key), value: Some(value) })
            .collect(),
        infos: files
            .iter()
            .map(|file| PbSourceInfo {
                filename: file.name.clone(),
                data: file.text.clone().into_bytes(),
                ..PbSourceInfo::default()
            })
            .collect(),
    });
    definition
}

/// The edges that a `pb.Definition` asks for, with everything below them.
///
/// Vertices that nothing asked for needs are dropped. What BuildKit treats as a hint and this engine does not know (capabilities,
/// `export_cache`) is dropped as well; unknown fields of operations are refused.
///
/// # Errors
/// [`DecodeError`] names the vertex, where it is one vertex's fault.
pub fn decode_definition(bytes: &[u8]) -> Result<Vec<Edge>, DecodeError> {
    if bytes.len() > MAX_DEFINITION_BYTES {
        return Err(DecodeError::TooLarge { size_bytes: bytes.len() });
    }
    let mut definition = PbDefinition::decode(bytes)?;
    if definition.def.len() > MAX_VERTICES {
        return Err(DecodeError::TooManyVertices { count: definition.def.len() });
    }
    let Some(target) = definition.def.pop() else { return Ok(Vec::new()) };
    let digest = Digest::sha256(&target);
    let target = PbOp::decode(target.as_slice())?;
    if target.op.is_some() || target.inputs.is_empty() {
        return Err(DecodeError::NoTarget);
    }
    let mut loader = Loader::new(definition)?;
    let mut edges = Vec::with_capacity(target.inputs.len());
    for (input, at) in loader.inputs(&digest, &target)? {
        let vertex = loader.load(at)?;
        edges.push(Edge { vertex, output: input });
    }
    Ok(edges)
}

/// Makes vertices of the operations of a definition, inputs first.
struct Loader {
    wire: Vec<Vec<u8>>,
    index: HashMap<Digest, usize>,
    ops: Vec<Loading>,
    metadata: HashMap<String, PbOpMetadata>,
    spans: HashMap<String, Vec<SourceSpan>>,
}

/// An operation whose inputs are being loaded, and these as (output, place of the vertex).
type Opened = (PbOp, Vec<(usize, usize)>);

enum Loading {
    Waiting(Digest),
    Open(Digest),
    Done(Arc<Vertex>),
}

impl Loader {
    fn new(definition: PbDefinition) -> Result<Self, DecodeError> {
        let digests: Vec<Digest> = definition.def.iter().map(|wire| Digest::sha256(wire)).collect();
        Ok(Self {
            index: digests.iter().cloned().enumerate().map(|(at, digest)| (digest, at)).collect(),
            ops: digests.into_iter().map(Loading::Waiting).collect(),
            wire: definition.def,
            metadata: definition
                .metadata
                .into_iter()
                .map(|entry| (entry.key.unwrap_or_default(), entry.value.unwrap_or_default()))
                .collect(),
            spans: definition.source.map(spans).transpose()?.unwrap_or_default(),
        })
    }

    /// The inputs of `op` as (output, place of the vertex).
    fn inputs(&self, vertex: &Digest, op: &PbOp) -> Result<Vec<(usize, usize)>, DecodeError> {
        let invalid = |source| DecodeError::Vertex { vertex: vertex.clone(), source };
        if op.inputs.len() > MAX_EDGES {
            return Err(invalid(InvalidOp::TooMany { what: "inputs", count: op.inputs.len() }));
        }
        let mut inputs = Vec::with_capacity(op.inputs.len());
        for input in &op.inputs {
            let output = usize::try_from(input.index).ok().filter(|output| *output < MAX_EDGES).ok_or_else(|| {
                invalid(InvalidOp::Index { field: "the output of an input", index: input.index, count: MAX_EDGES })
            })?;
            let digest = input.digest.parse::<Digest>().ok();
            let at = digest.and_then(|digest| self.index.get(&digest)).ok_or_else(|| DecodeError::MissingInput {
                vertex: vertex.clone(),
                input: input.digest.chars().take(200).collect(),
            })?;
            inputs.push((output, *at));
        }
        Ok(inputs)
    }

    fn load(&mut self, root: usize) -> Result<Arc<Vertex>, DecodeError> {
        // An explicit stack: depth is the client's choice.
        let mut stack: Vec<(usize, Option<Opened>)> = vec![(root, None)];
        while let Some((at, opened)) = stack.pop() {
            match (&self.ops[at], opened) {
                (Loading::Done(_), _) => {}
                (Loading::Open(digest), None) => return Err(DecodeError::Cycle { vertex: digest.clone() }),
                (Loading::Waiting(digest), _) => {
                    let digest = digest.clone();
                    let op = PbOp::decode(self.wire[at].as_slice())?;
                    // What is not known here was dropped by the decoder, and what it meant with it.
                    if op.encoded_len() != self.wire[at].len() {
                        let source = InvalidOp::UnknownFields;
                        return Err(DecodeError::Vertex { vertex: digest, source });
                    }
                    let inputs = self.inputs(&digest, &op)?;
                    self.ops[at] = Loading::Open(digest);
                    let below: Vec<usize> = inputs.iter().map(|(_, at)| *at).collect();
                    stack.push((at, Some((op, inputs))));
                    stack.extend(
                        below
                            .into_iter()
                            .rev()
                            .filter(|at| !matches!(self.ops[*at], Loading::Done(_)))
                            .map(|at| (at, None)),
                    );
                }
                (Loading::Open(digest), Some((op, inputs))) => {
                    let digest = digest.clone();
                    let platform = op.platform.clone().map(platform);
                    let kind =
                        decode_op(op).map_err(|source| DecodeError::Vertex { vertex: digest.clone(), source })?;
                    let inputs = inputs
                        .into_iter()
                        .filter_map(|(output, at)| match &self.ops[at] {
                            Loading::Done(vertex) => Some(Edge { vertex: Arc::clone(vertex), output }),
                            Loading::Waiting(_) | Loading::Open(_) => None,
                        })
                        .collect();
                    let name = digest.to_string();
                    let metadata = self.metadata.remove(&name).unwrap_or_default();
                    let metadata = metadata_of(metadata, self.spans.remove(&name).unwrap_or_default())
                        .map_err(|source| DecodeError::Vertex { vertex: digest.clone(), source })?;
                    let wire = std::mem::take(&mut self.wire[at]);
                    self.ops[at] = Loading::Done(Vertex::from_wire(kind, inputs, platform, metadata, wire, digest));
                }
            }
        }
        match &self.ops[root] {
            Loading::Done(vertex) => Ok(Arc::clone(vertex)),
            Loading::Waiting(digest) | Loading::Open(digest) => Err(DecodeError::Cycle { vertex: digest.clone() }),
        }
    }
}

// --- from our types to the wire -----------------------------------------------------------------------------------------------

fn pb_input(edge: &Edge) -> PbInput {
    PbInput { digest: edge.vertex.digest().to_string(), index: pb_index(Some(edge.output)) }
}

/// `pb` writes -1 for nothing.
fn pb_index(index: Option<usize>) -> i64 {
    index.map_or(-1, |index| i64::try_from(index).unwrap_or(i64::MAX))
}

fn pb_strings(map: &BTreeMap<String, String>) -> Vec<PbStringEntry> {
    map.iter().map(|(key, value)| PbStringEntry { key: Some(key.clone()), value: Some(value.clone()) }).collect()
}

fn pb_exec(exec: &ExecOp) -> PbExecOp {
    let meta = &exec.meta;
    PbExecOp {
        meta: Some(PbMeta {
            args: meta.args.clone(),
            env: meta.env.clone(),
            cwd: meta.cwd.clone(),
            user: meta.user.clone(),
            proxy_env: meta.proxy_env.as_ref().map(|proxy| PbProxyEnv {
                http_proxy: proxy.http.clone(),
                https_proxy: proxy.https.clone(),
                ftp_proxy: proxy.ftp.clone(),
                no_proxy: proxy.no.clone(),
                all_proxy: proxy.all.clone(),
            }),
            extra_hosts: meta
                .extra_hosts
                .iter()
                .map(|(host, ip)| PbHostIp { host: host.clone(), ip: ip.clone() })
                .collect(),
            hostname: meta.hostname.clone(),
            ulimit: meta
                .ulimits
                .iter()
                .map(|limit| PbUlimit { name: limit.name.clone(), soft: limit.soft, hard: limit.hard })
                .collect(),
            cgroup_parent: meta.cgroup_parent.clone(),
            remove_mount_stubs_recursive: meta.remove_mount_stubs_recursive,
            valid_exit_codes: meta.valid_exit_codes.clone(),
        }),
        mounts: exec.mounts.iter().map(pb_mount).collect(),
        network: match exec.network {
            Network::Default => 0,
            Network::Host => 1,
            Network::None => 2,
        },
        security: match exec.security {
            Security::Sandbox => 0,
            Security::Insecure => 1,
        },
        secret_env: exec
            .secret_env
            .iter()
            .map(|secret| PbSecretEnv { id: secret.id.clone(), name: secret.name.clone(), optional: secret.optional })
            .collect(),
        cdi_devices: exec
            .devices
            .iter()
            .map(|device| PbCdiDevice { name: device.name.clone(), optional: device.optional })
            .collect(),
    }
}

fn pb_mount(mount: &Mount) -> PbMount {
    let mut pb = PbMount {
        input: pb_index(mount.input),
        selector: mount.selector.clone(),
        dest: mount.dest.clone(),
        output: pb_index(mount.output),
        readonly: mount.readonly,
        content_cache: match mount.content_cache {
            ContentCache::Default => 0,
            ContentCache::On => 1,
            ContentCache::Off => 2,
        },
        ..PbMount::default()
    };
    let session = |file: &FileFromSession| PbSessionOpt {
        id: file.id.clone(),
        uid: file.uid,
        gid: file.gid,
        mode: file.mode,
        optional: file.optional,
    };
    match &mount.kind {
        MountKind::Bind => {}
        MountKind::Secret(file) => {
            pb.mount_type = 1;
            pb.secret_opt = Some(session(file));
        }
        MountKind::Ssh(file) => {
            pb.mount_type = 2;
            pb.ssh_opt = Some(session(file));
        }
        MountKind::Cache { id, sharing } => {
            pb.mount_type = 3;
            let sharing = match sharing {
                CacheSharing::Shared => 0,
                CacheSharing::Private => 1,
                CacheSharing::Locked => 2,
            };
            pb.cache_opt = Some(PbCacheOpt { id: id.clone(), sharing });
        }
        MountKind::Tmpfs { size } => {
            pb.mount_type = 4;
            pb.tmpfs_opt = Some(PbTmpfsOpt { size: *size });
        }
    }
    // The Go client leaves the output of these at its default, 0, where it means nothing.
    if mount.output.is_none() && matches!(mount.kind, MountKind::Secret(_) | MountKind::Ssh(_)) {
        pb.output = 0;
    }
    pb
}

fn pb_action(action: &FileAction) -> PbFileAction {
    fn mode(mode: u32) -> i32 {
        i32::try_from(mode).unwrap_or(i32::MAX)
    }
    PbFileAction {
        input: pb_index(action.input),
        secondary_input: pb_index(action.secondary_input),
        output: pb_index(action.output),
        action: Some(match &action.kind {
            FileActionKind::Copy(copy) => PbAction::Copy(PbFileCopy {
                src: copy.src.clone(),
                dest: copy.dest.clone(),
                owner: copy.owner.as_ref().map(pb_owner),
                // A symbolic mode takes the number's place.
                mode: copy.mode.map_or(if copy.mode_str.is_empty() { -1 } else { 0 }, mode),
                follow_symlink: copy.follow_symlink,
                dir_copy_contents: copy.dir_copy_contents,
                attempt_unpack: copy.attempt_unpack,
                create_dest_path: copy.create_dest_path,
                allow_wildcard: copy.allow_wildcard,
                allow_empty_wildcard: copy.allow_empty_wildcard,
                timestamp: copy.timestamp.unwrap_or(-1),
                include_patterns: copy.include_patterns.clone(),
                exclude_patterns: copy.exclude_patterns.clone(),
                always_replace_existing_dest_paths: copy.always_replace_existing_dest_paths,
                mode_str: copy.mode_str.clone(),
                required_paths: copy.required_paths.clone(),
            }),
            FileActionKind::Mkfile { path, mode: bits, data, owner, timestamp } => PbAction::Mkfile(PbFileMkfile {
                path: path.clone(),
                mode: mode(*bits),
                data: data.clone(),
                owner: owner.as_ref().map(pb_owner),
                timestamp: timestamp.unwrap_or(-1),
            }),
            FileActionKind::Mkdir { path, mode: bits, make_parents, owner, timestamp } => {
                PbAction::Mkdir(PbFileMkdir {
                    path: path.clone(),
                    mode: mode(*bits),
                    make_parents: *make_parents,
                    owner: owner.as_ref().map(pb_owner),
                    timestamp: timestamp.unwrap_or(-1),
                })
            }
            FileActionKind::Rm { path, allow_not_found, allow_wildcard } => PbAction::Rm(PbFileRm {
                path: path.clone(),
                allow_not_found: *allow_not_found,
                allow_wildcard: *allow_wildcard,
            }),
            FileActionKind::Symlink { old_path, new_path, owner, timestamp } => PbAction::Symlink(PbFileSymlink {
                old_path: old_path.clone(),
                new_path: new_path.clone(),
                owner: owner.as_ref().map(pb_owner),
                timestamp: timestamp.unwrap_or(-1),
            }),
        }),
    }
}

fn pb_owner(owner: &Owner) -> PbChownOpt {
    fn user(user: &UserRef) -> PbUserOpt {
        PbUserOpt {
            user: Some(match user {
                UserRef::Id(id) => PbUser::ById(*id),
                UserRef::Name { name, input } => {
                    PbUser::ByName(PbNamedUserOpt { name: name.clone(), input: pb_index(*input) })
                }
            }),
        }
    }
    PbChownOpt { user: owner.user.as_ref().map(user), group: owner.group.as_ref().map(user) }
}

fn pb_build(build: &BuildOp) -> PbBuildOp {
    PbBuildOp {
        builder: build.builder,
        inputs: build
            .inputs
            .iter()
            .map(|(key, input)| PbBuildInputEntry { key: Some(key.clone()), value: Some(PbIndex { input: *input }) })
            .collect(),
        def: (!build.definition.is_empty()).then(|| build.definition.clone()),
        attrs: pb_strings(&build.attrs),
    }
}

fn pb_metadata(metadata: &Metadata) -> PbOpMetadata {
    let mut description = metadata.description.clone();
    if !metadata.name.is_empty() {
        description.insert(CUSTOM_NAME.into(), metadata.name.clone());
    }
    PbOpMetadata {
        ignore_cache: metadata.ignore_cache,
        description: pb_strings(&description),
        progress_group: metadata.progress_group.as_ref().map(|group| PbProgressGroup {
            id: group.id.clone(),
            name: group.name.clone(),
            weak: group.weak,
        }),
        ..PbOpMetadata::default()
    }
}

/// The places of one vertex; sources that are new are added to `files`.
fn pb_locations(spans: &[SourceSpan], files: &mut Vec<Arc<SourceFile>>) -> PbLocations {
    let mut locations: Vec<PbLocation> = Vec::new();
    for span in spans {
        let same = |file: &Arc<SourceFile>| Arc::ptr_eq(file, &span.file) || **file == *span.file;
        let at = files.iter().position(same).unwrap_or_else(|| {
            files.push(Arc::clone(&span.file));
            files.len() - 1
        });
        let source_index = i32::try_from(at).unwrap_or(i32::MAX);
        let position = |line: usize| PbPosition { line: i32::try_from(line).unwrap_or(i32::MAX), character: 0 };
        let range = PbRange { start: Some(position(span.start_line)), end: Some(position(span.end_line)) };
        match locations.last_mut() {
            Some(last) if last.source_index == source_index => last.ranges.push(range),
            Some(_) | None => locations.push(PbLocation { source_index, ranges: vec![range] }),
        }
    }
    PbLocations { locations }
}

// --- from the wire to our types -----------------------------------------------------------------------------------------------

fn decode_op(op: PbOp) -> Result<Op, InvalidOp> {
    let inputs = op.inputs.len();
    if op.constraints.is_some_and(|constraints| !constraints.filter.is_empty()) {
        return Err(InvalidOp::Unsupported("a worker constraint"));
    }
    Ok(match op.op.ok_or(InvalidOp::UnknownOp)? {
        PbOpKind::Exec(exec) => Op::Exec(exec_op(exec, inputs)?),
        PbOpKind::Source(source) => {
            Op::Source(SourceOp { identifier: source.identifier, attrs: strings(source.attrs) })
        }
        PbOpKind::File(file) => Op::File(file_op(file, inputs)?),
        PbOpKind::Build(build) => Op::Build(BuildOp {
            builder: build.builder,
            inputs: build
                .inputs
                .into_iter()
                .map(|entry| (entry.key.unwrap_or_default(), entry.value.unwrap_or_default().input))
                .collect(),
            definition: build.def.unwrap_or_default(),
            attrs: strings(build.attrs),
        }),
        PbOpKind::Merge(merge) => Op::Merge(MergeOp {
            inputs: merge
                .inputs
                .into_iter()
                .map(|input| index("an input of the merge", input.input, inputs))
                .collect::<Result<_, _>>()?,
        }),
        PbOpKind::Diff(diff) => Op::Diff(DiffOp {
            lower: index("the lower input", diff.lower.ok_or(InvalidOp::Missing("the lower input"))?.input, inputs)?,
            upper: index("the upper input", diff.upper.ok_or(InvalidOp::Missing("the upper input"))?.input, inputs)?,
        }),
        PbOpKind::Passthrough(_) => return Err(InvalidOp::Unsupported("a passthrough operation")),
    })
}

fn index(field: &'static str, index: i64, count: usize) -> Result<Option<usize>, InvalidOp> {
    match usize::try_from(index) {
        Ok(at) if at < count => Ok(Some(at)),
        Err(_) if index == -1 => Ok(None),
        Ok(_) | Err(_) => Err(InvalidOp::Index { field, index, count }),
    }
}

fn strings(entries: Vec<PbStringEntry>) -> BTreeMap<String, String> {
    entries.into_iter().map(|entry| (entry.key.unwrap_or_default(), entry.value.unwrap_or_default())).collect()
}

fn optional(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn platform(platform: PbPlatform) -> Platform {
    Platform {
        architecture: platform.architecture,
        os: platform.os,
        variant: optional(platform.variant),
        os_version: optional(platform.os_version),
        os_features: platform.os_features,
    }
}

fn exec_op(exec: PbExecOp, inputs: usize) -> Result<ExecOp, InvalidOp> {
    let meta = exec.meta.ok_or(InvalidOp::Missing("what to run"))?;
    if meta.args.is_empty() {
        return Err(InvalidOp::Missing("the program to run"));
    }
    if exec.mounts.len() > MAX_EDGES {
        return Err(InvalidOp::TooMany { what: "mounts", count: exec.mounts.len() });
    }
    if !exec.mounts.iter().any(|mount| mount.dest == "/") {
        return Err(InvalidOp::Missing("the mount at `/`"));
    }
    Ok(ExecOp {
        meta: ExecMeta {
            args: meta.args,
            env: meta.env,
            cwd: meta.cwd,
            user: meta.user,
            proxy_env: meta.proxy_env.map(|proxy| ProxyEnv {
                http: proxy.http_proxy,
                https: proxy.https_proxy,
                ftp: proxy.ftp_proxy,
                no: proxy.no_proxy,
                all: proxy.all_proxy,
            }),
            extra_hosts: meta.extra_hosts.into_iter().map(|host| (host.host, host.ip)).collect(),
            hostname: meta.hostname,
            ulimits: meta
                .ulimit
                .into_iter()
                .map(|limit| Ulimit { name: limit.name, soft: limit.soft, hard: limit.hard })
                .collect(),
            cgroup_parent: meta.cgroup_parent,
            remove_mount_stubs_recursive: meta.remove_mount_stubs_recursive,
            valid_exit_codes: meta.valid_exit_codes,
        },
        mounts: exec.mounts.into_iter().map(|mount| mount_of(mount, inputs)).collect::<Result<_, _>>()?,
        network: match exec.network {
            0 => Network::Default,
            1 => Network::Host,
            2 => Network::None,
            value => return Err(InvalidOp::UnknownValue { field: "the network mode", value }),
        },
        security: match exec.security {
            0 => Security::Sandbox,
            1 => Security::Insecure,
            value => return Err(InvalidOp::UnknownValue { field: "the security mode", value }),
        },
        secret_env: exec
            .secret_env
            .into_iter()
            .map(|secret| SecretEnv { id: secret.id, name: secret.name, optional: secret.optional })
            .collect(),
        devices: exec
            .cdi_devices
            .into_iter()
            .map(|device| Device { name: device.name, optional: device.optional })
            .collect(),
    })
}

fn mount_of(mount: PbMount, inputs: usize) -> Result<Mount, InvalidOp> {
    let session = |file: PbSessionOpt| FileFromSession {
        id: file.id,
        uid: file.uid,
        gid: file.gid,
        mode: file.mode,
        optional: file.optional,
    };
    let kind = match mount.mount_type {
        0 => MountKind::Bind,
        1 => MountKind::Secret(session(mount.secret_opt.ok_or(InvalidOp::Missing("the secret of a mount"))?)),
        2 => MountKind::Ssh(session(mount.ssh_opt.ok_or(InvalidOp::Missing("the agent of a mount"))?)),
        3 => {
            let cache = mount.cache_opt.ok_or(InvalidOp::Missing("the cache of a mount"))?;
            let sharing = match cache.sharing {
                0 => CacheSharing::Shared,
                1 => CacheSharing::Private,
                2 => CacheSharing::Locked,
                value => return Err(InvalidOp::UnknownValue { field: "the sharing of a cache mount", value }),
            };
            MountKind::Cache { id: cache.id, sharing }
        }
        4 => MountKind::Tmpfs { size: mount.tmpfs_opt.unwrap_or_default().size },
        value => return Err(InvalidOp::UnknownValue { field: "the type of a mount", value }),
    };
    if !mount.result_id.is_empty() {
        return Err(InvalidOp::Unsupported("a mount of a result"));
    }
    let output = index("the output of a mount", mount.output, MAX_EDGES)?;
    Ok(Mount {
        input: index("the input of a mount", mount.input, inputs)?,
        selector: mount.selector,
        dest: mount.dest,
        // Only what is bound can come out; elsewhere BuildKit does not look at the field.
        output: output.filter(|_| kind == MountKind::Bind),
        readonly: mount.readonly,
        kind,
        content_cache: match mount.content_cache {
            0 => ContentCache::Default,
            1 => ContentCache::On,
            2 => ContentCache::Off,
            value => return Err(InvalidOp::UnknownValue { field: "the content cache of a mount", value }),
        },
    })
}

fn file_op(file: PbFileOp, inputs: usize) -> Result<FileOp, InvalidOp> {
    if file.actions.is_empty() {
        return Err(InvalidOp::Missing("the action"));
    }
    if file.actions.len() > MAX_EDGES {
        return Err(InvalidOp::TooMany { what: "actions", count: file.actions.len() });
    }
    let mut actions = Vec::with_capacity(file.actions.len());
    for (at, action) in file.actions.into_iter().enumerate() {
        // The inputs of the vertex, then the results of the actions before this one.
        let trees = inputs + at;
        actions.push(FileAction {
            input: index("the input of an action", action.input, trees)?,
            secondary_input: index("the secondary input of an action", action.secondary_input, trees)?,
            output: index("the output of an action", action.output, MAX_EDGES)?,
            kind: action_of(action.action.ok_or(InvalidOp::Missing("the kind of an action"))?, trees)?,
        });
    }
    Ok(FileOp { actions })
}

fn action_of(action: PbAction, trees: usize) -> Result<FileActionKind, InvalidOp> {
    let mode = |mode: i32| {
        u32::try_from(mode).map_err(|_| InvalidOp::Number { field: "the mode of an action", value: mode.into() })
    };
    let time = |timestamp: i64| (timestamp != -1).then_some(timestamp);
    let owner = |owner: Option<PbChownOpt>| owner.map(|owner| owner_of(owner, trees)).transpose();
    Ok(match action {
        PbAction::Copy(copy) => FileActionKind::Copy(FileCopy {
            mode: match copy.mode {
                -1 => None,
                0 if !copy.mode_str.is_empty() => None,
                bits => Some(mode(bits)?),
            },
            src: copy.src,
            dest: copy.dest,
            owner: owner(copy.owner)?,
            mode_str: copy.mode_str,
            follow_symlink: copy.follow_symlink,
            dir_copy_contents: copy.dir_copy_contents,
            attempt_unpack: copy.attempt_unpack,
            create_dest_path: copy.create_dest_path,
            allow_wildcard: copy.allow_wildcard,
            allow_empty_wildcard: copy.allow_empty_wildcard,
            timestamp: time(copy.timestamp),
            include_patterns: copy.include_patterns,
            exclude_patterns: copy.exclude_patterns,
            always_replace_existing_dest_paths: copy.always_replace_existing_dest_paths,
            required_paths: copy.required_paths,
        }),
        PbAction::Mkfile(file) => FileActionKind::Mkfile {
            path: file.path,
            mode: mode(file.mode)?,
            data: file.data,
            owner: owner(file.owner)?,
            timestamp: time(file.timestamp),
        },
        PbAction::Mkdir(dir) => FileActionKind::Mkdir {
            path: dir.path,
            mode: mode(dir.mode)?,
            make_parents: dir.make_parents,
            owner: owner(dir.owner)?,
            timestamp: time(dir.timestamp),
        },
        PbAction::Rm(rm) => {
            FileActionKind::Rm { path: rm.path, allow_not_found: rm.allow_not_found, allow_wildcard: rm.allow_wildcard }
        }
        PbAction::Symlink(link) => FileActionKind::Symlink {
            old_path: link.old_path,
            new_path: link.new_path,
            owner: owner(link.owner)?,
            timestamp: time(link.timestamp),
        },
    })
}

fn owner_of(owner: PbChownOpt, trees: usize) -> Result<Owner, InvalidOp> {
    let user = |user: Option<PbUserOpt>| {
        Ok(match user.and_then(|user| user.user) {
            None => None,
            Some(PbUser::ById(id)) => Some(UserRef::Id(id)),
            Some(PbUser::ByName(named)) => Some(UserRef::Name {
                name: named.name,
                input: index("the input that resolves a name", named.input, trees)?,
            }),
        })
    };
    Ok(Owner { user: user(owner.user)?, group: user(owner.group)? })
}

fn metadata_of(metadata: PbOpMetadata, spans: Vec<SourceSpan>) -> Result<Metadata, InvalidOp> {
    if metadata.linux_resources.is_some() {
        return Err(InvalidOp::Unsupported("a limit on Linux resources"));
    }
    let mut description = strings(metadata.description);
    Ok(Metadata {
        name: description.remove(CUSTOM_NAME).unwrap_or_default(),
        description,
        ignore_cache: metadata.ignore_cache,
        progress_group: metadata.progress_group.map(|group| ProgressGroup {
            id: group.id,
            name: group.name,
            weak: group.weak,
        }),
        spans,
    })
}

/// The places of all vertices, by digest.
fn spans(source: PbSource) -> Result<HashMap<String, Vec<SourceSpan>>, DecodeError> {
    let files: Vec<(Arc<SourceFile>, Vec<usize>)> = source
        .infos
        .into_iter()
        .map(|info| {
            let text = String::from_utf8_lossy(&info.data).into_owned();
            // Where each line begins, and the end.
            let mut lines = vec![0];
            lines.extend(text.match_indices('\n').map(|(at, _)| at + 1));
            lines.push(text.len() + 1);
            (Arc::new(SourceFile { name: info.filename, text }), lines)
        })
        .collect();
    let mut spans = HashMap::new();
    for entry in source.locations {
        let vertex = entry.key.unwrap_or_default();
        let mut places = Vec::new();
        for location in entry.value.unwrap_or_default().locations {
            let index = location.source_index;
            let (file, lines) = usize::try_from(index)
                .ok()
                .and_then(|at| files.get(at))
                .ok_or_else(|| DecodeError::MissingSource { vertex: vertex.chars().take(200).collect(), index })?;
            for range in location.ranges {
                // Places are for people: one that lies outside of the text is moved to its edge.
                let line = |position: Option<PbPosition>| {
                    usize::try_from(position.unwrap_or_default().line).unwrap_or(0).clamp(1, lines.len() - 1)
                };
                let start_line = line(range.start);
                let end_line = line(range.end).max(start_line);
                let bytes = lines[start_line - 1]..lines[end_line] - 1;
                places.push(SourceSpan { file: Arc::clone(file), bytes, start_line, end_line });
            }
        }
        spans.insert(vertex, places);
    }
    Ok(spans)
}

// --- the messages -------------------------------------------------------------------------------------------------------------
//
// Maps are lists of entries with optional halves: prost's maps leave out empty values, Go writes them. Enums are numbers:
// which of them are known is for the conversion to say.

#[derive(Clone, PartialEq, Message)]
struct PbOp {
    #[prost(message, repeated, tag = "1")]
    inputs: Vec<PbInput>,
    #[prost(oneof = "PbOpKind", tags = "2, 3, 4, 5, 6, 7, 8")]
    op: Option<PbOpKind>,
    #[prost(message, optional, tag = "10")]
    platform: Option<PbPlatform>,
    #[prost(message, optional, tag = "11")]
    constraints: Option<PbWorkerConstraints>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
#[allow(clippy::large_enum_variant, reason = "one exists at a time, for as long as it takes to encode or decode it")]
enum PbOpKind {
    #[prost(message, tag = "2")]
    Exec(PbExecOp),
    #[prost(message, tag = "3")]
    Source(PbSourceOp),
    #[prost(message, tag = "4")]
    File(PbFileOp),
    #[prost(message, tag = "5")]
    Build(PbBuildOp),
    #[prost(message, tag = "6")]
    Merge(PbMergeOp),
    #[prost(message, tag = "7")]
    Diff(PbDiffOp),
    #[prost(bytes, tag = "8")]
    Passthrough(Vec<u8>),
}

#[derive(Clone, PartialEq, Message)]
struct PbPlatform {
    #[prost(string, tag = "1")]
    architecture: String,
    #[prost(string, tag = "2")]
    os: String,
    #[prost(string, tag = "3")]
    variant: String,
    #[prost(string, tag = "4")]
    os_version: String,
    #[prost(string, repeated, tag = "5")]
    os_features: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct PbWorkerConstraints {
    #[prost(string, repeated, tag = "1")]
    filter: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct PbInput {
    #[prost(string, tag = "1")]
    digest: String,
    #[prost(int64, tag = "2")]
    index: i64,
}

#[derive(Clone, PartialEq, Message)]
struct PbExecOp {
    #[prost(message, optional, tag = "1")]
    meta: Option<PbMeta>,
    #[prost(message, repeated, tag = "2")]
    mounts: Vec<PbMount>,
    #[prost(int32, tag = "3")]
    network: i32,
    #[prost(int32, tag = "4")]
    security: i32,
    #[prost(message, repeated, tag = "5")]
    secret_env: Vec<PbSecretEnv>,
    #[prost(message, repeated, tag = "6")]
    cdi_devices: Vec<PbCdiDevice>,
}

#[derive(Clone, PartialEq, Message)]
struct PbMeta {
    #[prost(string, repeated, tag = "1")]
    args: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    env: Vec<String>,
    #[prost(string, tag = "3")]
    cwd: String,
    #[prost(string, tag = "4")]
    user: String,
    #[prost(message, optional, tag = "5")]
    proxy_env: Option<PbProxyEnv>,
    #[prost(message, repeated, tag = "6")]
    extra_hosts: Vec<PbHostIp>,
    #[prost(string, tag = "7")]
    hostname: String,
    #[prost(message, repeated, tag = "9")]
    ulimit: Vec<PbUlimit>,
    #[prost(string, tag = "10")]
    cgroup_parent: String,
    #[prost(bool, tag = "11")]
    remove_mount_stubs_recursive: bool,
    #[prost(int32, repeated, tag = "12")]
    valid_exit_codes: Vec<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct PbProxyEnv {
    #[prost(string, tag = "1")]
    http_proxy: String,
    #[prost(string, tag = "2")]
    https_proxy: String,
    #[prost(string, tag = "3")]
    ftp_proxy: String,
    #[prost(string, tag = "4")]
    no_proxy: String,
    #[prost(string, tag = "5")]
    all_proxy: String,
}

#[derive(Clone, PartialEq, Message)]
struct PbHostIp {
    #[prost(string, tag = "1")]
    host: String,
    #[prost(string, tag = "2")]
    ip: String,
}

#[derive(Clone, PartialEq, Message)]
struct PbUlimit {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int64, tag = "2")]
    soft: i64,
    #[prost(int64, tag = "3")]
    hard: i64,
}

#[derive(Clone, PartialEq, Message)]
struct PbSecretEnv {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(bool, tag = "3")]
    optional: bool,
}

#[derive(Clone, PartialEq, Message)]
struct PbCdiDevice {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bool, tag = "2")]
    optional: bool,
}

#[derive(Clone, PartialEq, Message)]
struct PbMount {
    #[prost(int64, tag = "1")]
    input: i64,
    #[prost(string, tag = "2")]
    selector: String,
    #[prost(string, tag = "3")]
    dest: String,
    #[prost(int64, tag = "4")]
    output: i64,
    #[prost(bool, tag = "5")]
    readonly: bool,
    #[prost(int32, tag = "6")]
    mount_type: i32,
    #[prost(message, optional, tag = "19")]
    tmpfs_opt: Option<PbTmpfsOpt>,
    #[prost(message, optional, tag = "20")]
    cache_opt: Option<PbCacheOpt>,
    #[prost(message, optional, tag = "21")]
    secret_opt: Option<PbSessionOpt>,
    #[prost(message, optional, tag = "22")]
    ssh_opt: Option<PbSessionOpt>,
    #[prost(string, tag = "23")]
    result_id: String,
    #[prost(int32, tag = "24")]
    content_cache: i32,
}

#[derive(Clone, PartialEq, Message)]
struct PbTmpfsOpt {
    #[prost(int64, tag = "1")]
    size: i64,
}

#[derive(Clone, PartialEq, Message)]
struct PbCacheOpt {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(int32, tag = "2")]
    sharing: i32,
}

/// `pb.SecretOpt` and `pb.SSHOpt`.
#[derive(Clone, PartialEq, Message)]
struct PbSessionOpt {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(uint32, tag = "2")]
    uid: u32,
    #[prost(uint32, tag = "3")]
    gid: u32,
    #[prost(uint32, tag = "4")]
    mode: u32,
    #[prost(bool, tag = "5")]
    optional: bool,
}

#[derive(Clone, PartialEq, Message)]
struct PbSourceOp {
    #[prost(string, tag = "1")]
    identifier: String,
    #[prost(message, repeated, tag = "2")]
    attrs: Vec<PbStringEntry>,
}

#[derive(Clone, PartialEq, Message)]
struct PbStringEntry {
    #[prost(string, optional, tag = "1")]
    key: Option<String>,
    #[prost(string, optional, tag = "2")]
    value: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct PbBoolEntry {
    #[prost(string, optional, tag = "1")]
    key: Option<String>,
    #[prost(bool, optional, tag = "2")]
    value: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct PbBuildOp {
    #[prost(int64, tag = "1")]
    builder: i64,
    #[prost(message, repeated, tag = "2")]
    inputs: Vec<PbBuildInputEntry>,
    /// A `pb.Definition`, left as it is: bytes and messages look the same on the wire.
    #[prost(bytes = "vec", optional, tag = "3")]
    def: Option<Vec<u8>>,
    #[prost(message, repeated, tag = "4")]
    attrs: Vec<PbStringEntry>,
}

#[derive(Clone, PartialEq, Message)]
struct PbBuildInputEntry {
    #[prost(string, optional, tag = "1")]
    key: Option<String>,
    #[prost(message, optional, tag = "2")]
    value: Option<PbIndex>,
}

/// `pb.BuildInput`, `pb.MergeInput`, `pb.LowerDiffInput`, `pb.UpperDiffInput`.
#[derive(Clone, PartialEq, Message)]
struct PbIndex {
    #[prost(int64, tag = "1")]
    input: i64,
}

#[derive(Clone, PartialEq, Message)]
struct PbMergeOp {
    #[prost(message, repeated, tag = "1")]
    inputs: Vec<PbIndex>,
}

#[derive(Clone, PartialEq, Message)]
struct PbDiffOp {
    #[prost(message, optional, tag = "1")]
    lower: Option<PbIndex>,
    #[prost(message, optional, tag = "2")]
    upper: Option<PbIndex>,
}

#[derive(Clone, PartialEq, Message)]
struct PbFileOp {
    #[prost(message, repeated, tag = "2")]
    actions: Vec<PbFileAction>,
}

#[derive(Clone, PartialEq, Message)]
struct PbFileAction {
    #[prost(int64, tag = "1")]
    input: i64,
    #[prost(int64, tag = "2")]
    secondary_input: i64,
    #[prost(int64, tag = "3")]
    output: i64,
    #[prost(oneof = "PbAction", tags = "4, 5, 6, 7, 8")]
    action: Option<PbAction>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum PbAction {
    #[prost(message, tag = "4")]
    Copy(PbFileCopy),
    #[prost(message, tag = "5")]
    Mkfile(PbFileMkfile),
    #[prost(message, tag = "6")]
    Mkdir(PbFileMkdir),
    #[prost(message, tag = "7")]
    Rm(PbFileRm),
    #[prost(message, tag = "8")]
    Symlink(PbFileSymlink),
}

#[derive(Clone, PartialEq, Message)]
struct PbFileCopy {
    #[prost(string, tag = "1")]
    src: String,
    #[prost(string, tag = "2")]
    dest: String,
    #[prost(message, optional, tag = "3")]
    owner: Option<PbChownOpt>,
    #[prost(int32, tag = "4")]
    mode: i32,
    #[prost(bool, tag = "5")]
    follow_symlink: bool,
    #[prost(bool, tag = "6")]
    dir_copy_contents: bool,
    #[prost(bool, tag = "7")]
    attempt_unpack: bool,
    #[prost(bool, tag = "8")]
    create_dest_path: bool,
    #[prost(bool, tag = "9")]
    allow_wildcard: bool,
    #[prost(bool, tag = "10")]
    allow_empty_wildcard: bool,
    #[prost(int64, tag = "11")]
    timestamp: i64,
    #[prost(string, repeated, tag = "12")]
    include_patterns: Vec<String>,
    #[prost(string, repeated, tag = "13")]
    exclude_patterns: Vec<String>,
    #[prost(bool, tag = "14")]
    always_replace_existing_dest_paths: bool,
    #[prost(string, tag = "15")]
    mode_str: String,
    #[prost(string, repeated, tag = "16")]
    required_paths: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct PbFileMkfile {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(int32, tag = "2")]
    mode: i32,
    #[prost(bytes = "vec", tag = "3")]
    data: Vec<u8>,
    #[prost(message, optional, tag = "4")]
    owner: Option<PbChownOpt>,
    #[prost(int64, tag = "5")]
    timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
struct PbFileSymlink {
    #[prost(string, tag = "1")]
    old_path: String,
    #[prost(string, tag = "2")]
    new_path: String,
    #[prost(message, optional, tag = "3")]
    owner: Option<PbChownOpt>,
    #[prost(int64, tag = "4")]
    timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
struct PbFileMkdir {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(int32, tag = "2")]
    mode: i32,
    #[prost(bool, tag = "3")]
    make_parents: bool,
    #[prost(message, optional, tag = "4")]
    owner: Option<PbChownOpt>,
    #[prost(int64, tag = "5")]
    timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
struct PbFileRm {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(bool, tag = "2")]
    allow_not_found: bool,
    #[prost(bool, tag = "3")]
    allow_wildcard: bool,
}

#[derive(Clone, PartialEq, Message)]
struct PbChownOpt {
    #[prost(message, optional, tag = "1")]
    user: Option<PbUserOpt>,
    #[prost(message, optional, tag = "2")]
    group: Option<PbUserOpt>,
}

#[derive(Clone, PartialEq, Message)]
struct PbUserOpt {
    #[prost(oneof = "PbUser", tags = "1, 2")]
    user: Option<PbUser>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum PbUser {
    #[prost(message, tag = "1")]
    ByName(PbNamedUserOpt),
    #[prost(uint32, tag = "2")]
    ById(u32),
}

#[derive(Clone, PartialEq, Message)]
struct PbNamedUserOpt {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int64, tag = "2")]
    input: i64,
}

#[derive(Clone, PartialEq, Message)]
struct PbDefinition {
    #[prost(bytes = "vec", repeated, tag = "1")]
    def: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "2")]
    metadata: Vec<PbMetadataEntry>,
    #[prost(message, optional, tag = "3")]
    source: Option<PbSource>,
}

#[derive(Clone, PartialEq, Message)]
struct PbMetadataEntry {
    #[prost(string, optional, tag = "1")]
    key: Option<String>,
    #[prost(message, optional, tag = "2")]
    value: Option<PbOpMetadata>,
}

#[derive(Clone, PartialEq, Message)]
struct PbOpMetadata {
    #[prost(bool, tag = "1")]
    ignore_cache: bool,
    #[prost(message, repeated, tag = "2")]
    description: Vec<PbStringEntry>,
    #[prost(message, optional, tag = "4")]
    export_cache: Option<PbExportCache>,
    #[prost(message, repeated, tag = "5")]
    caps: Vec<PbBoolEntry>,
    #[prost(message, optional, tag = "6")]
    progress_group: Option<PbProgressGroup>,
    /// A `pb.LinuxResources`; that it is there is all that is asked.
    #[prost(bytes = "vec", optional, tag = "7")]
    linux_resources: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct PbExportCache {
    #[prost(bool, tag = "1")]
    value: bool,
}

#[derive(Clone, PartialEq, Message)]
struct PbProgressGroup {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(bool, tag = "3")]
    weak: bool,
}

#[derive(Clone, PartialEq, Message)]
struct PbSource {
    #[prost(message, repeated, tag = "1")]
    locations: Vec<PbLocationsEntry>,
    #[prost(message, repeated, tag = "2")]
    infos: Vec<PbSourceInfo>,
}

#[derive(Clone, PartialEq, Message)]
struct PbLocationsEntry {
    #[prost(string, optional, tag = "1")]
    key: Option<String>,
    #[prost(message, optional, tag = "2")]
    value: Option<PbLocations>,
}

#[derive(Clone, PartialEq, Message)]
struct PbLocations {
    #[prost(message, repeated, tag = "1")]
    locations: Vec<PbLocation>,
}

#[derive(Clone, PartialEq, Message)]
struct PbSourceInfo {
    #[prost(string, tag = "1")]
    filename: String,
    #[prost(bytes = "vec", tag = "2")]
    data: Vec<u8>,
    #[prost(bytes = "vec", optional, tag = "3")]
    definition: Option<Vec<u8>>,
    #[prost(string, tag = "4")]
    language: String,
}

#[derive(Clone, PartialEq, Message)]
struct PbLocation {
    #[prost(int32, tag = "1")]
    source_index: i32,
    #[prost(message, repeated, tag = "2")]
    ranges: Vec<PbRange>,
}

#[derive(Clone, PartialEq, Message)]
struct PbRange {
    #[prost(message, optional, tag = "1")]
    start: Option<PbPosition>,
    #[prost(message, optional, tag = "2")]
    end: Option<PbPosition>,
}

#[derive(Clone, PartialEq, Message)]
struct PbPosition {
    #[prost(int32, tag = "1")]
    line: i32,
    #[prost(int32, tag = "2")]
    character: i32,
}
