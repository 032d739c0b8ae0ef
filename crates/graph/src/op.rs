//! Operations: the `oneof` of `pb.Op` and everything below it.
//!
//! Field names and meanings follow `solver/pb/ops.proto` of BuildKit; what protobuf leaves open (an index that may be
//! -1, an enum that may hold any number) is a Rust type here, so that a graph that was decoded is a graph that makes
//! sense.

use std::collections::BTreeMap;

/// What a vertex does.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "each lives in the Arc of its vertex; most are of the large kind")]
pub enum Op {
    /// Brings content in from outside: an image, local files, git, HTTP.
    Source(SourceOp),
    /// Runs a process on mounts.
    Exec(ExecOp),
    /// Manipulates files without running a process.
    File(FileOp),
    /// Stacks the layers of its inputs on one another.
    Merge(MergeOp),
    /// Takes the difference between two snapshots as a snapshot of its own.
    Diff(DiffOp),
    /// Solves a definition that an input contains.
    Build(BuildOp),
}

/// Index of an input in [`crate::Vertex::inputs`].
pub type InputIndex = usize;
/// Index of an output of a vertex.
pub type OutputIndex = usize;

/// A source: `docker-image://…`, `local://…`, `oci-layout://…`, `git://…`, `https://…`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceOp {
    /// Scheme and name.
    pub identifier: String,
    /// Attributes of the scheme, for example `local.includepattern`.
    pub attrs: BTreeMap<String, String>,
}

/// A process to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOp {
    /// Arguments, environment, identity.
    pub meta: ExecMeta,
    /// Mounts; the one at `/` is the root file system.
    pub mounts: Vec<Mount>,
    /// Which network it sees.
    pub network: Network,
    /// How confined it is.
    pub security: Security,
    /// Secrets given as environment variables.
    pub secret_env: Vec<SecretEnv>,
    /// CDI devices by name.
    pub devices: Vec<Device>,
}

/// How the process is started (`pb.Meta`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecMeta {
    /// Program and arguments.
    pub args: Vec<String>,
    /// `KEY=value` pairs, in order.
    pub env: Vec<String>,
    /// Working directory inside the root.
    pub cwd: String,
    /// `user[:group]`, names or numbers; empty means root.
    pub user: String,
    /// Proxy variables that reach the process but no cache key.
    pub proxy_env: Option<ProxyEnv>,
    /// Additional lines of `/etc/hosts`: (name, address).
    pub extra_hosts: Vec<(String, String)>,
    /// Host name inside the UTS namespace; empty means the default.
    pub hostname: String,
    /// Resource limits.
    pub ulimits: Vec<Ulimit>,
    /// Parent control group; empty means the worker's own.
    pub cgroup_parent: String,
    /// Whether empty parents of mount points that the run created are removed as well.
    pub remove_mount_stubs_recursive: bool,
    /// Exit codes taken for success; empty means only 0.
    pub valid_exit_codes: Vec<i32>,
}

/// Proxy settings of the host (`pb.ProxyEnv`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProxyEnv {
    /// `http_proxy`.
    pub http: String,
    /// `https_proxy`.
    pub https: String,
    /// `ftp_proxy`.
    pub ftp: String,
    /// `no_proxy`.
    pub no: String,
    /// `all_proxy`.
    pub all: String,
}

/// One resource limit, as `setrlimit` takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// Name as in `ulimit`: `nofile`, `nproc`, …
    pub name: String,
    /// Soft limit; -1 means unlimited.
    pub soft: i64,
    /// Hard limit; -1 means unlimited.
    pub hard: i64,
}

/// Which network a process sees (`pb.NetMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Network {
    /// A network of its own, with a way out where the host offers one.
    #[default]
    Default,
    /// The host's network.
    Host,
    /// An isolated loopback device and nothing else.
    None,
}

/// How confined a process is (`pb.SecurityMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Security {
    /// The default profile.
    #[default]
    Sandbox,
    /// All capabilities and devices; needs an entitlement.
    Insecure,
}

/// A secret given as an environment variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretEnv {
    /// Secret id.
    pub id: String,
    /// Name of the variable.
    pub name: String,
    /// Whether the run may go on without it.
    pub optional: bool,
}

/// A CDI device request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Fully qualified device name.
    pub name: String,
    /// Whether the run may go on without it.
    pub optional: bool,
}

/// A mount of an [`ExecOp`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// What is mounted; `None` means an empty directory (`pb` writes -1).
    pub input: Option<InputIndex>,
    /// Path inside the input.
    pub selector: String,
    /// Mount point.
    pub dest: String,
    /// Output that the mount's content becomes; `None` means that changes are thrown away (`pb` writes -1).
    pub output: Option<OutputIndex>,
    /// Whether it is read-only.
    pub readonly: bool,
    /// The kind of mount.
    pub kind: MountKind,
    /// Whether the cache key takes the content into account (`pb.MountContentCache`).
    pub content_cache: ContentCache,
}

/// The kind of a [`Mount`], with what only that kind has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// A snapshot.
    Bind,
    /// A secret as a file.
    Secret(FileFromSession),
    /// A socket of an SSH agent.
    Ssh(FileFromSession),
    /// A directory that outlives the build.
    Cache {
        /// Cache id.
        id: String,
        /// How several builds share it.
        sharing: CacheSharing,
    },
    /// Memory; `size` in bytes, 0 means no limit of its own.
    Tmpfs {
        /// Limit in bytes.
        size: i64,
    },
}

/// `pb.SecretOpt` and `pb.SSHOpt`, which have the same fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFromSession {
    /// Secret or agent id.
    pub id: String,
    /// Owner inside the container.
    pub uid: u32,
    /// Group inside the container.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// Whether the run may go on without it.
    pub optional: bool,
}

/// How builds share a cache mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum CacheSharing {
    /// Any number of writers at once.
    #[default]
    Shared,
    /// A writer that finds it taken gets another one.
    Private,
    /// A second writer waits.
    Locked,
}

/// Whether a mount's content is part of the cache key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum ContentCache {
    /// Yes for read-only mounts.
    #[default]
    Default,
    /// Yes.
    On,
    /// No.
    Off,
}

/// File manipulations, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileOp {
    /// The actions.
    pub actions: Vec<FileAction>,
}

/// One manipulation.
///
/// `input` and `secondary_input` count the vertex's inputs first and then the results of earlier actions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileAction {
    /// The tree that is changed; `None` means an empty one.
    pub input: Option<usize>,
    /// The tree that is read (copy); `None` for the others.
    pub secondary_input: Option<usize>,
    /// Output of the vertex that this result becomes, if any.
    pub output: Option<OutputIndex>,
    /// What is done.
    pub kind: FileActionKind,
}

/// The kinds of manipulation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileActionKind {
    /// Copies files from the secondary input.
    Copy(FileCopy),
    /// Writes a file.
    Mkfile {
        /// Path.
        path: String,
        /// Permission bits.
        mode: u32,
        /// Content.
        data: Vec<u8>,
        /// Owner; `None` means root.
        owner: Option<Owner>,
        /// Modification time in nanoseconds since the epoch; `None` means now.
        timestamp: Option<i64>,
    },
    /// Makes a directory.
    Mkdir {
        /// Path.
        path: String,
        /// Permission bits.
        mode: u32,
        /// Whether parents are made as well.
        make_parents: bool,
        /// Owner; `None` means root.
        owner: Option<Owner>,
        /// Modification time in nanoseconds since the epoch; `None` means now.
        timestamp: Option<i64>,
    },
    /// Removes a path.
    Rm {
        /// Path, possibly a pattern.
        path: String,
        /// Whether a missing path is no error.
        allow_not_found: bool,
        /// Whether the path is a pattern.
        allow_wildcard: bool,
    },
    /// Makes a symbolic link.
    Symlink {
        /// Target.
        old_path: String,
        /// The link.
        new_path: String,
        /// Owner; `None` means root.
        owner: Option<Owner>,
        /// Modification time in nanoseconds since the epoch; `None` means now.
        timestamp: Option<i64>,
    },
}

/// A copy (`pb.FileActionCopy`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileCopy {
    /// Source path, possibly a pattern.
    pub src: String,
    /// Destination path.
    pub dest: String,
    /// New owner; `None` keeps the source's.
    pub owner: Option<Owner>,
    /// New permission bits; `None` keeps the source's (`pb` writes -1).
    pub mode: Option<u32>,
    /// Symbolic change of permission bits, as `chmod` takes it; empty means none.
    pub mode_str: String,
    /// Whether a symbolic link as the source is followed.
    pub follow_symlink: bool,
    /// Whether a directory's content is copied instead of the directory.
    pub dir_copy_contents: bool,
    /// Whether local archives are unpacked, as `ADD` does.
    pub attempt_unpack: bool,
    /// Whether missing parents of the destination are made.
    pub create_dest_path: bool,
    /// Whether the source is a pattern.
    pub allow_wildcard: bool,
    /// Whether a pattern that matches nothing is no error.
    pub allow_empty_wildcard: bool,
    /// Modification time of what is copied in nanoseconds since the epoch; `None` keeps the source's.
    pub timestamp: Option<i64>,
    /// Patterns of which a file must match one.
    pub include_patterns: Vec<String>,
    /// Patterns of which a file may match none.
    pub exclude_patterns: Vec<String>,
    /// Whether an existing destination of another type is replaced (`--link`).
    pub always_replace_existing_dest_paths: bool,
    /// Paths that must exist in the source.
    pub required_paths: Vec<String>,
}

/// Owner and group of a file action.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Owner {
    /// The user.
    pub user: Option<UserRef>,
    /// The group.
    pub group: Option<UserRef>,
}

/// A user or group, by number or by a name that an input's `/etc/passwd` or `/etc/group` resolves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserRef {
    /// A number.
    Id(u32),
    /// A name.
    Name {
        /// The name.
        name: String,
        /// The input whose files resolve it; `None` means that there are none.
        input: Option<usize>,
    },
}

/// Stacks the layers of inputs, lowest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MergeOp {
    /// Inputs; `None` (an empty tree) contributes nothing.
    pub inputs: Vec<Option<InputIndex>>,
}

/// What `upper` changes in `lower`; `None` means the empty tree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiffOp {
    /// The snapshot to compare with.
    pub lower: Option<InputIndex>,
    /// The snapshot whose changes are taken.
    pub upper: Option<InputIndex>,
}

/// A build inside the build. Kept for the wire; the embedded engine refuses it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BuildOp {
    /// Input that holds the builder, or `pb.LLBBuilder` (-1).
    pub builder: i64,
    /// Named inputs.
    pub inputs: BTreeMap<String, i64>,
    /// The definition to solve, in wire form.
    pub definition: Vec<u8>,
    /// Options.
    pub attrs: BTreeMap<String, String>,
}
