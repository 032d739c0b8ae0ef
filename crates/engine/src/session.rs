//! What a build may ask of the one who started it, while it runs.
//!
//! A [`Session`] stays in the face: it is no part of the request that goes to the worker. The worker asks for one thing
//! at a time, by its id, when a step needs it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use rustix::process::{DumpableBehavior, Resource, Rlimit};
use zeroize::Zeroizing;

use crate::ssh::AgentSource;

/// Largest secret: BuildKit's limit, 500 KiB.
pub const MAX_SECRET_BYTES: u64 = 500 << 10;

/// What a build may ask for.
#[derive(Debug, Clone, Default)]
pub struct Session {
    /// Secrets by id (`--secret`).
    pub secrets: BTreeMap<String, SecretSource>,
    /// SSH agents by id (`--ssh`).
    pub agents: BTreeMap<String, AgentSource>,
    /// What programs of the user (git) are started with.
    pub environment: Variables,
    /// Whether git may use the user's own SSH agent and keys: the user named a repository that needs them.
    pub lend_agent: bool,
}

impl Session {
    /// Whether it holds nothing that is secret.
    pub fn is_empty(&self) -> bool {
        self.secrets.is_empty() && self.agents.is_empty()
    }
}

/// Environment variables. Their values are not shown: some are secrets.
#[derive(Clone, Default)]
pub struct Variables(Vec<(OsString, OsString)>);

impl Variables {
    /// These variables.
    pub fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        Self(variables.into_iter().collect())
    }

    pub(crate) fn variables(&self) -> impl Iterator<Item = (OsString, OsString)> {
        self.0.iter().cloned()
    }
}

impl std::fmt::Debug for Variables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// Where a secret's value is.
#[derive(Clone)]
pub enum SecretSource {
    /// In a file, which is read when the secret is asked for.
    File(PathBuf),
    /// Here.
    Value(Zeroizing<Vec<u8>>),
}

impl std::fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Value(_) => f.write_str("Value(***)"),
        }
    }
}

/// Keeps this process's memory from core files and from other processes of the same user, from now on.
pub(crate) fn keep_memory_private() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    // Neither fails for one's own process; and a build is not worth less where one of them does.
    if let Err(error) = rustix::process::setrlimit(Resource::Core, none) {
        tracing::debug!(%error, "core files are not switched off");
    }
    if let Err(error) = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::debug!(%error, "memory is not private");
    }
}
