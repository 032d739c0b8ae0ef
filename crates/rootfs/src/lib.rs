//! File system work on trees that an image or a build can influence: by directory fd only, never by path.
//!
//! [`Tree`] is a directory that is treated as a root: names are resolved inside it by `openat2(RESOLVE_IN_ROOT)`, so
//! that neither `..` nor a symbolic link leaves it. [`Place`] is one name inside one open directory, where nothing is
//! left to resolve. [`Walk`] lists a tree in order. `overrides` keeps what a file system cannot hold: owners when only
//! one uid exists, device nodes of ordinary users. [`users`] reads `/etc/passwd` and `/etc/group` of a tree.
//!
//! Invariants: a symbolic link is followed only while a path of the caller is resolved, and then never out of the
//! tree; an inode that is not a regular file or a directory is never opened for reading or writing.

mod error;
mod metadata;
mod overrides;
mod place;
mod remove;
mod tree;
pub mod users;
mod walk;

pub use error::Error;
pub use metadata::{Device, Kind, Metadata, Time};
pub use overrides::{Attributes, Entry, Ids, is_engine_xattr, is_layer_xattr, plain_capability};
pub use place::{OwnedPlace, Place};
pub use tree::{Tree, clean, follow};
pub use walk::{Walk, Walked};

/// Result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;
