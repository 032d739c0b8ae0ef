//! Paths and documents of an OCI image layout.
//!
//! Source: OCI image-spec v1.1, image-layout.md.

use crate::Digest;

/// Name of the file that marks a layout.
pub const MARKER_FILE: &str = "oci-layout";
/// What stands in it.
pub const MARKER: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
/// Name of the entry point.
pub const INDEX_FILE: &str = "index.json";
/// Annotation of a descriptor in the entry point that carries a tag.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation that containerd and BuildKit write beside it: the full reference.
pub const IMAGE_NAME: &str = "io.containerd.image.name";

/// Path of a blob below the layout's root.
pub fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}
