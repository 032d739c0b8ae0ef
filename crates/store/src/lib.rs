//! The store: what survives between builds, and what running builds share.
//!
//! Blobs ([`content`]), trees ([`snapshot`], [`layer`], [`copy`]), what is known about them ([`state`]), and who uses
//! them right now ([`claims`], [`gc`]). Plain blocking functions on files; whoever is async decides where they run.
//!
//! ```text
//! version               format, features, owner, way of representing owners; written last when a store is made
//! lock, boot, boot.lock shared by all who have the store open; the boot during which trees were written
//! content/              an OCI image layout: oci-layout, index.json (the names), blobs/<algorithm>/<hex>
//! ingest/<owner>.<id>   blobs that are being written; ingest/<algorithm>-<hex>: blobs that are being fetched
//! work/<owner>.<id>/    layers that are being written: fs/ and work directories of overlays
//! layers/<id>/          fs/ (a parentless tree of changes; absent while only the blob was written), meta.json,
//!                       synced (it survives a power cut)
//! leases/<owner>        locked for as long as a process has something unfinished or in use
//! claims/<sha256>       locked while the work that the key stands for is being done
//! contexts/, cachemounts/  stat indexes of build contexts; trees of cache mounts
//! frames/              where the frames of blobs are, to be copied
//! reserve, empty/       space for pruning a full disk; what an overlay of nothing is made of
//! state.db              SQLite: names, cache records, forms of layers, history
//! ```
//!
//! `docs/store-format.md` is the reference of the format.
//!
//! Invariants: committed means immutable; a blob or a layer appears by rename, complete; cache records are disposable.

pub mod cachemount;
pub mod claims;
pub mod content;
pub mod content_hash;
pub mod copy;
mod durable;
mod error;
pub mod forms;
mod frame_tables;
pub mod gc;
pub mod layer;
pub mod layout;
mod merged;
mod partial;
pub mod snapshot;
mod stat_index;
pub mod state;
mod streamed;

pub use build_engine_rootfs::Ids;
pub use cachemount::{CacheMount, CacheMountSpec, Sharing};
pub use claims::Claim;
pub use content::{BlobState, BlobWriter};
#[cfg(any(test, feature = "failpoints"))]
pub use durable::failpoints;
pub use error::{Error, Result};
pub use forms::LayerBlob;
pub use gc::{Lease, Problem, Pruned, Usage};
pub use layout::{Store, StoreOptions};
pub use partial::{Following, NotArrived, PartialBlob};
pub use snapshot::{ActiveLayer, CommitInfo, LayerId, LayerInfo, MountedTree, Snapshot};
pub use stat_index::StatIndex;
pub use state::{Build, Name, NewRecord, Record};
pub use streamed::Streamed;

#[cfg(test)]
mod tests;
