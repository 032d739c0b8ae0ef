//! The system call filter of steps: moby's default profile, compiled to classic BPF.
//!
//! The profile is data (`data/seccomp-default.json`, see the notice beside it). Where this compiler differs from
//! libseccomp, it is stricter, on purpose:
//!
//! - arguments are compared by their low 32 bits. The kernel reads the arguments that the profile compares (`socket`'s
//!   domain, `personality`, `clone`'s namespace flags) as 32-bit numbers, and a comparison of 64 bits lets
//!   `socket(AF_VSOCK | 1 << 32)` through;
//! - `socketcall`, whose arguments no filter can see, is `ENOSYS`: every C library since 2016 then makes the direct
//!   call;
//! - calls that the tables do not know are `ENOSYS`, not `EPERM`, so that programs fall back to older ones; and so are
//!   foreign architectures, x32 among them.
//!
//! Where a step has one id only, `chown` to any other would fail, and with it every package that has a file of its own
//! user. There it does nothing and says that it worked; the worker's note says that files keep one owner.
//!
//! A program is a binary search over ranges of call numbers, about ten jumps deep; the kernel skips even that for calls
//! that are always allowed.

mod bpf;
mod profile;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

pub use bpf::Instruction;
pub use profile::{Architecture, Verdict, rules};
use rustix::thread::CapabilitySet;

/// A program for the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    instructions: Vec<Instruction>,
}

/// Why a profile cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The document is not a profile.
    #[error("the profile is malformed")]
    Json(#[from] serde_json::Error),
    /// A rule uses something that this compiler does not know; it is never skipped.
    #[error("the profile's rule for `{name}` has {what}")]
    Unsupported {
        /// First call of the rule.
        name: String,
        /// What is not understood.
        what: String,
    },
    /// The machine's architecture has no tables.
    #[error("no system call tables for this architecture")]
    Architecture,
}

impl Filter {
    /// Compiles the default profile for processes with the capabilities `caps` (bits by number) on `kernel`
    /// (major, minor).
    ///
    /// # Errors
    /// Only if the profile's data and this compiler disagree, which the tests exclude for all architectures.
    pub fn compile(
        architecture: Architecture,
        caps: u64,
        kernel: (u32, u32),
        one_id: bool,
    ) -> Result<Self, CompileError> {
        let rules = rules(architecture, caps, kernel, one_id)?;
        Ok(Self { instructions: bpf::assemble(architecture, &rules) })
    }

    /// The instructions.
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let bytes = |i: &Instruction| {
            let mut bytes = [0; 8];
            bytes[..2].copy_from_slice(&i.code.to_le_bytes());
            bytes[2] = i.jump_true;
            bytes[3] = i.jump_false;
            bytes[4..].copy_from_slice(&i.k.to_le_bytes());
            bytes
        };
        self.instructions.iter().flat_map(bytes).collect()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Vec<libc::sock_filter> {
        let word = |b: &[u8]| libc::sock_filter {
            code: u16::from_le_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
        };
        bytes.chunks_exact(8).map(word).collect()
    }
}

/// The filter for this machine, compiled once for each set of capabilities. With `one_id` a change to another owner
/// than the only one there is seems to succeed and does nothing.
pub(crate) fn cached(caps: CapabilitySet, one_id: bool) -> Result<Arc<Filter>, CompileError> {
    /// By capabilities, and whether there is one id.
    type Filters = BTreeMap<(u64, bool), Arc<Filter>>;
    static CACHE: Mutex<Filters> = Mutex::new(BTreeMap::new());
    let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(filter) = cache.get(&(caps.bits(), one_id)) {
        return Ok(Arc::clone(filter));
    }
    let architecture = Architecture::native().ok_or(CompileError::Architecture)?;
    let filter = Arc::new(Filter::compile(architecture, caps.bits(), kernel_version(), one_id)?);
    cache.insert((caps.bits(), one_id), Arc::clone(&filter));
    Ok(filter)
}

/// Major and minor version of the running kernel.
pub(crate) fn kernel_version() -> (u32, u32) {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
