//! Entitlements: what a Dockerfile may ask for beyond what every build may, granted by whoever starts the build.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One `--allow`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entitlement {
    /// `network.host`: `RUN --network=host`.
    NetworkHost,
    /// `security.insecure`: `RUN --security=insecure`.
    SecurityInsecure,
    /// `device` and `device=NAME`: `RUN --device`. There are no devices that it could grant yet.
    Device(Option<String>),
    /// `fs`, `fs.read` and `fs.write`, which bake asks for. A build touches only the paths that its flags name, so there
    /// is nothing that they would have to grant.
    Files,
    /// `secret.in-layer`: a step may leave a secret that it was given in its layer.
    SecretInLayer,
}

/// What `--allow` does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown entitlement; known are network.host, security.insecure, device, fs, fs.read, fs.write and secret.in-layer"
)]
pub struct UnknownEntitlement;

impl FromStr for Entitlement {
    type Err = UnknownEntitlement;

    fn from_str(text: &str) -> Result<Self, UnknownEntitlement> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value).filter(|value| !value.is_empty())),
            None => (text, None),
        };
        match (name, value) {
            ("network.host", None) => Ok(Self::NetworkHost),
            ("security.insecure", None) => Ok(Self::SecurityInsecure),
            ("device", name) => Ok(Self::Device(name.map(str::to_owned))),
            ("fs" | "fs.read" | "fs.write", Some(_)) => Ok(Self::Files),
            ("secret.in-layer", None) => Ok(Self::SecretInLayer),
            _ => Err(UnknownEntitlement),
        }
    }
}
