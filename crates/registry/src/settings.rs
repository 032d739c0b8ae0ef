//! How hosts are spoken to. Gathered by the face; nothing here reads the environment.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Everything that a [`Client`](crate::Client) needs to know beside credentials.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Settings {
    /// By host and port as they stand in references (`docker.io`, `127.0.0.1:5000`).
    pub hosts: BTreeMap<String, HostSettings>,
    /// HTTP proxies. Loopback addresses never go through one.
    pub proxies: Proxies,
    /// File with the certificate authorities to trust, instead of the system's.
    pub ca_bundle: Option<PathBuf>,
    /// Time limits and retries.
    pub limits: Limits,
}

/// How one registry is spoken to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct HostSettings {
    /// Where to pull from first, in this order: `host[:port][/prefix]`, with `http://` in front for plain HTTP.
    pub mirrors: Vec<String>,
    /// Speak plain HTTP.
    pub http: bool,
    /// Do not verify the certificate; plain HTTP where the host does not speak TLS.
    pub insecure: bool,
    /// Files with further certificate authorities, for this host alone.
    pub ca: Vec<PathBuf>,
    /// File with the client's certificate.
    pub cert: Option<PathBuf>,
    /// File with the key of the client's certificate.
    pub key: Option<PathBuf>,
    /// Other hosts that may be given the credentials of this one when it sends its clients there for tokens.
    pub auth_hosts: Vec<String>,
}

/// Addresses of proxies, as the usual variables give them.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Proxies {
    /// For `http`.
    pub http: Option<String>,
    /// For `https`.
    pub https: Option<String>,
    /// Hosts that are spoken to directly, separated by commas.
    pub no: Option<String>,
}

impl fmt::Debug for Proxies {
    /// Does not show the addresses: they may have passwords in them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hide = |address: &Option<String>| address.as_ref().map(|_| "***");
        let (http, https) = (hide(&self.http), hide(&self.https));
        f.debug_struct("Proxies").field("http", &http).field("https", &https).field("no", &self.no).finish()
    }
}

/// Time limits and retries of all requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Limits {
    /// Seconds to connect, TLS included.
    pub connect_seconds: f64,
    /// Seconds until the head of a response is complete.
    pub response_seconds: f64,
    /// A transfer that moves fewer than `min_bytes` in this many seconds is broken off.
    pub stall_seconds: f64,
    /// See `stall_seconds`.
    pub min_bytes: u64,
    /// How often a request is tried again.
    pub retries: u32,
    /// Seconds before the first further try; it doubles each time, with jitter.
    pub backoff_seconds: f64,
    /// Longest wait between two tries, whatever the server asks for.
    pub max_wait_seconds: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect_seconds: 10.0,
            response_seconds: 30.0,
            stall_seconds: 30.0,
            min_bytes: 30 << 10,
            retries: 5,
            backoff_seconds: 0.5,
            max_wait_seconds: 60.0,
        }
    }
}

/// A number of seconds as settings give it; what is no sensible number is none at all, or very long.
pub(crate) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.clamp(0.0, 1e9)).unwrap_or_default()
}
