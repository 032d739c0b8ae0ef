//! What a build may ask of the one who started it, while it runs.
//!
//! A [`Session`] stays in the face: it is no part of the request that goes to the worker. The worker asks for one thing
//! at a time, by its id, when a step needs it.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// What a build may ask for.
#[derive(Debug, Clone, Default)]
pub struct Session {
    /// Secrets by id (`--secret`).
    pub secrets: BTreeMap<String, SecretSource>,
}

/// Where a secret's value is.
#[derive(Clone)]
pub enum SecretSource {
    /// In a file, which is read when the secret is asked for.
    File(PathBuf),
    /// Here.
    Value(Vec<u8>),
}

impl std::fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Value(_) => f.write_str("Value(***)"),
        }
    }
}
