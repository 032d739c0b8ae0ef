//! What a step is: the values that the worker sends to the helper, and what comes back.
//!
//! A spec names no host path: trees and files are descriptors, listed in [`StepFds`] and referred to by index. Unknown
//! fields and enum values are refused, so that a newer worker never gets less isolation than it asked for.

use std::os::fd::OwnedFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A process to run and all that it sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepSpec {
    /// The root file system.
    pub root: Root,
    /// Whether the root is read-only.
    pub root_readonly: bool,
    /// Further mounts, in order.
    pub mounts: Vec<Mount>,
    /// Program and arguments; the program is looked up in the `PATH` of `env` unless it contains a slash.
    pub args: Vec<String>,
    /// `KEY=value` pairs. Nothing else reaches the process, except `HOME` and `PATH` when they are absent.
    pub env: Vec<String>,
    /// Working directory, made for the user if it does not exist. Empty means `/`.
    pub cwd: String,
    /// `user[:group]`, names or numbers, resolved with the root's own files; empty means root.
    pub user: String,
    /// Host name.
    pub hostname: String,
    /// Which network it sees.
    pub network: Network,
    /// Additional lines of `/etc/hosts`: (name, address).
    pub extra_hosts: Vec<(String, String)>,
    /// Resource limits; never raised above what the worker has.
    pub ulimits: Vec<Ulimit>,
    /// Capabilities, system calls, paths.
    pub confinement: Confinement,
    /// Size of `/dev/shm`; `None` means 64 MiB.
    pub shm_size_bytes: Option<u64>,
    /// Control group limits.
    pub limits: Limits,
    /// Parent control group below the worker's own; empty means none.
    pub cgroup_parent: String,
    /// How willingly the kernel ends it when memory runs out (-1000..=1000).
    pub oom_score_adj: i32,
    /// Architecture (OCI's name) of programs that [`StepFds::emulator`] runs, which the step registers for itself.
    pub emulated: Option<String>,
    /// Whether everything that would be less than asked for is an error, and not a note.
    pub strict: bool,
    /// Whether empty parents of mount points that the step created are removed as well.
    pub remove_stub_parents: bool,
}

impl Default for StepSpec {
    fn default() -> Self {
        Self {
            root: Root::Dir,
            root_readonly: false,
            mounts: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: "/".into(),
            user: String::new(),
            hostname: "buildkitsandbox".into(),
            network: Network::Default,
            extra_hosts: Vec::new(),
            ulimits: Vec::new(),
            confinement: Confinement::default(),
            shm_size_bytes: None,
            limits: Limits::default(),
            cgroup_parent: String::new(),
            oom_score_adj: 500,
            emulated: None,
            strict: false,
            remove_stub_parents: false,
        }
    }
}

/// The root file system of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "snake_case")]
pub enum Root {
    /// [`StepFds::active`] itself is the root, changed in place.
    Dir,
    /// An overlay of [`StepFds::lower`] with the changes going to a directory of [`StepFds::active`].
    ///
    /// The kernel wants both directories below one mount, so they are names inside one descriptor. The overlay is
    /// mounted `volatile`: `work` serves one step and is removed afterwards.
    Overlay {
        /// Name of the directory of changes inside `active`.
        upper: String,
        /// Name of the work directory inside `active`; on the same file system as `upper`, and empty.
        work: String,
    },
    /// An overlay of [`StepFds::lower`] whose changes are kept in memory and thrown away; [`StepFds::active`] is unused.
    Scratch,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Mount point inside the root. Symbolic links in it are followed inside the root, except the last component.
    pub dest: String,
    /// Whether it is read-only.
    pub readonly: bool,
    /// What is mounted.
    pub source: MountSource,
}

/// What a [`Mount`] shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "snake_case")]
pub enum MountSource {
    /// A file, directory or socket of the worker: index into [`StepFds::binds`].
    Bind {
        /// Index into [`StepFds::binds`].
        fd: usize,
    },
    /// An overlay of several trees, whose changes are thrown away: indexes into [`StepFds::binds`], lowest first. (A bind
    /// mount of a snapshot.)
    Layers {
        /// Indexes into [`StepFds::binds`], lowest first.
        fds: Vec<usize>,
        /// Path inside the merged tree that is mounted; empty means its root. Resolved inside the tree.
        selector: String,
        /// Where changes go until then, unless the mount is read-only; `None` means memory.
        changes: Option<Changes>,
    },
    /// Memory.
    Tmpfs {
        /// Limit in bytes; 0 means none of its own.
        size_bytes: u64,
    },
    /// A file that exists for the step alone: secrets, configuration. It lives in memory.
    File {
        /// The content.
        #[serde(with = "hex_bytes")]
        content: Vec<u8>,
        /// Permission bits.
        mode: u32,
        /// Owner inside the container.
        uid: u32,
        /// Group inside the container.
        gid: u32,
    },
}

/// Where the changes of a [`MountSource::Layers`] go, on a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Changes {
    /// A directory: index into [`StepFds::binds`].
    pub fd: usize,
    /// Name of the directory of changes in it.
    pub upper: String,
    /// Name of the work directory in it, which is empty and serves one step.
    pub work: String,
}

/// Which network a step sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// A network of its own with a way out where the machine offers one, else the host's (with a note).
    Default,
    /// A loopback device and nothing else.
    None,
    /// The host's network.
    Host,
}

/// One resource limit, as `setrlimit` takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ulimit {
    /// Name as in `ulimit`: `nofile`, `nproc`, …
    pub name: String,
    /// Soft limit; -1 means unlimited.
    pub soft: i64,
    /// Hard limit; -1 means unlimited.
    pub hard: i64,
}

/// Which capabilities a step has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capabilities {
    /// The 14 of Docker, containerd and BuildKit.
    Docker,
    /// The 11 that podman leaves: without `AUDIT_WRITE`, `MKNOD` and `NET_RAW`.
    Hardened,
    /// All that the user namespace has (`RUN --security=insecure`).
    All,
}

/// How confined a step is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confinement {
    /// Capabilities.
    pub capabilities: Capabilities,
    /// Whether system calls are filtered.
    pub seccomp: bool,
    /// Whether set-user-id programs are without effect. BuildKit leaves them their effect, for `sudo`.
    pub no_new_privileges: bool,
    /// Paths that are hidden.
    pub masked_paths: Vec<String>,
    /// Paths that are made read-only.
    pub readonly_paths: Vec<String>,
    /// Whether `/sys` and the control groups can be written, as far as the user namespace allows.
    pub writable_sys: bool,
    /// Whether `/dev` has the host's devices, of which the user namespace opens those that everybody may.
    pub host_devices: bool,
}

impl Default for Confinement {
    fn default() -> Self {
        let list = |paths: &[&str]| paths.iter().map(|&p| p.to_owned()).collect();
        Self {
            capabilities: Capabilities::Docker,
            seccomp: true,
            no_new_privileges: false,
            masked_paths: list(MASKED_PATHS),
            readonly_paths: list(READONLY_PATHS),
            writable_sys: false,
            host_devices: false,
        }
    }
}

impl Confinement {
    /// What `RUN --security=insecure` means: nothing beyond the namespaces.
    pub fn insecure() -> Self {
        Self {
            capabilities: Capabilities::All,
            seccomp: false,
            no_new_privileges: false,
            masked_paths: Vec::new(),
            readonly_paths: Vec::new(),
            writable_sys: true,
            host_devices: true,
        }
    }
}

/// containerd's list, and `/proc/kallsyms`.
const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Control group limits of a step.
///
/// Without any, and without a parent, a step gets no control group: moving a process into one makes the kernel wait for
/// all processors, which costs more than the rest of a small step. Fork bombs are stopped by a resource limit then.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Number of processes and threads; `None` means 4096 for each user, by `RLIMIT_NPROC`.
    pub pids: Option<u64>,
    /// Memory in bytes; `None` means no limit.
    pub memory_bytes: Option<u64>,
    /// Swap beyond that: none unless it is said.
    pub swap: Swap,
    /// Weight against other groups, where 1024 is usual; `None` means usual.
    pub cpu_shares: Option<u64>,
    /// Length of the period of `cpu_quota_micros`; `None` means 100 ms.
    pub cpu_period_micros: Option<u64>,
    /// Processor time in each period, of all processors together; `None` means no limit.
    pub cpu_quota_micros: Option<u64>,
    /// Processors, as in `0-3,5`; empty means all.
    pub cpuset_cpus: String,
    /// Memory nodes, as in `0-1`; empty means all.
    pub cpuset_mems: String,
}

/// How much swap a step may use that has a limit of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Swap {
    /// None, where the kernel counts it.
    #[default]
    None,
    /// So many bytes.
    Bytes(u64),
    /// As much as there is.
    Unlimited,
}

/// The descriptors of a [`StepSpec`]: `O_PATH` directories or files of the worker.
#[derive(Debug, Default)]
pub struct StepFds {
    /// Layer trees of the root, lowest first.
    pub lower: Vec<OwnedFd>,
    /// The directory that [`Root`] changes.
    pub active: Option<OwnedFd>,
    /// What [`MountSource::Bind`] and [`MountSource::Layers`] count.
    pub binds: Vec<OwnedFd>,
    /// The emulator of [`StepSpec::emulated`]; a statically linked program of the host.
    pub emulator: Option<OwnedFd>,
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code or signal.
    pub status: ExitStatus,
    /// Why the command could not be started, for codes 126 and 127 that come from us and not from the command.
    pub message: Option<String>,
    /// Whether the kernel ended a process of the step because the step's memory limit was reached.
    pub out_of_memory: bool,
    /// What it used.
    pub usage: Usage,
    /// What was less than asked for, for the user to read: limits that could not be set, the network that was used.
    pub notes: Vec<String>,
    /// The network that it really had; [`Network::Default`] means a private one with a way out.
    pub network: Network,
}

/// Exit code or signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// The command exited.
    Code(i32),
    /// A signal ended the command.
    Signal(i32),
}

impl ExitStatus {
    /// The code that a shell would show: the exit code, or 128 plus the signal.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// What a step used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time in user mode.
    pub user_time: Duration,
    /// Processor time in the kernel.
    pub system_time: Duration,
    /// Largest resident size of one process, or of the whole step where a memory control group counted it.
    pub peak_rss_bytes: u64,
}

/// Bytes as hexadecimal text: secrets are not always UTF-8, and JSON arrays of numbers are four times as long.
mod hex_bytes {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |n: u8| char::from(DIGITS[usize::from(n & 15)]);
        let text: String = bytes.iter().flat_map(|&b| [digit(b >> 4), digit(b)]).collect();
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.len() % 2 != 0 || !text.is_ascii() {
            return Err(D::Error::custom("odd number of hexadecimal digits"));
        }
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).map_err(D::Error::custom)).collect()
    }
}
