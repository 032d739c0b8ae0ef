//! The registry client: OCI distribution-spec v1.1, as real registries speak it.
//!
//! A [`Client`] resolves names, reads documents and blobs, and pushes both. Who may do so is [`auth`]'s business; which
//! host is asked, and how, stands in [`Settings`]. What comes back is verified where it can be (documents by digest,
//! blobs by size); the digest of a blob is computed by whoever writes it down.
//!
//! Invariants: credentials are sent to the origin that they belong to and to no other; nothing here touches a store.

mod api;
pub mod auth;
mod blob;
mod challenge;
mod client;
mod download;
mod endpoint;
mod error;
mod failure;
mod helper;
mod pull;
mod push;
mod realm;
mod redact;
mod response;
mod retry;
mod settings;
mod tls;
mod token;
mod transport;
mod upload;

pub use auth::{AuthFiles, Credential, Credentials, NoCredentials};
pub use blob::Blob;
pub use client::{Client, Content, Pushed};
pub use download::{Again, Download, DownloadRequest, Downloads};
pub use error::{Error, Kind};
pub use redact::shown;
pub use settings::{HostSettings, Limits, Proxies, Settings};
