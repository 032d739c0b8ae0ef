//! Values of the OCI image specification, and the few that Docker adds.
//!
//! Digests, platforms, references and the documents that name them: descriptors, manifests, indexes, image configs.
//! Everything above this crate speaks in these types; text becomes one of them where it enters.
//!
//! The documents are serde types of our own rather than `oci-spec`'s: the checked newtypes ([`Digest`], [`DiffId`])
//! stand inside them, Docker's additions to the config are fields, and what we do not know survives a round trip.
//!
//! Invariant: no I/O. Source: OCI image-spec v1.1.

mod digest;
mod document;
pub mod layout;
pub mod media_type;
mod parse;
mod platform;
mod reference;

pub use digest::{Algorithm, ChainId, DiffId, Digest, Hasher, InvalidDigest, chain_id};
pub use document::{
    ContainerConfig, Descriptor, Empty, Healthcheck, History, ImageConfig, Index, Manifest, Rootfs, RootfsType,
};
pub use parse::{InvalidDocument, MAX_CONFIG_BYTES, MAX_DESCRIPTORS, MAX_MANIFEST_BYTES, Parsed, parse_document};
pub use platform::{InvalidPlatform, Platform};
pub use reference::{InvalidReference, Reference};
