//! Reading manifests and indexes that somebody else wrote.
//!
//! What kind of document it is, is said three times: by whoever led to it, by the document itself, and by its members.
//! They must agree, because two readers that believe different ones see different images (CVE-2021-41190).

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::{Index, Manifest, media_type};

/// Largest manifest or index, in bytes, as registries have it.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Largest image config, in bytes.
pub const MAX_CONFIG_BYTES: u64 = 8 << 20;
/// Most descriptors in one document.
pub const MAX_DESCRIPTORS: usize = 10_000;

/// A manifest or an index.
#[derive(Debug, Clone, PartialEq)]
pub enum Parsed {
    /// One image.
    Manifest(Box<Manifest>),
    /// Several.
    Index(Box<Index>),
}

/// A document that is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum InvalidDocument {
    /// It is not JSON, or lacks a member.
    #[error("it is not a document of the type `{media_type}`")]
    Malformed {
        /// What it was said to be.
        media_type: String,
        /// Why it is not.
        source: serde_json::Error,
    },
    /// It says of itself that it is something else.
    #[error("it was announced as `{announced}` but says that it is `{own}`")]
    Disagrees {
        /// What led to it.
        announced: String,
        /// What it says.
        own: String,
    },
    /// It has the members of both a manifest and an index.
    #[error("it has both `manifests` and `layers`, so that it can be taken for two things")]
    Ambiguous,
    /// It is no image.
    #[error("its media type `{media_type}` is not that of an image")]
    NotAnImage {
        /// What it is.
        media_type: String,
    },
    /// It names too much.
    #[error("it has {count} descriptors, more than the {MAX_DESCRIPTORS} that are followed")]
    TooMany {
        /// How many.
        count: usize,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<IgnoredAny>,
    #[serde(default)]
    layers: Option<IgnoredAny>,
}

/// Reads a document that was announced as `media_type`; an empty one means that nothing was announced.
///
/// # Errors
/// When announcement, document and members do not agree, or something is missing.
pub fn parse_document(bytes: &[u8], media_type: &str) -> Result<Parsed, InvalidDocument> {
    let malformed = |source| InvalidDocument::Malformed { media_type: media_type.to_owned(), source };
    let shape: Shape = serde_json::from_slice(bytes).map_err(malformed)?;
    if shape.manifests.is_some() && shape.layers.is_some() {
        return Err(InvalidDocument::Ambiguous);
    }
    let kind = match (media_type, &shape.media_type) {
        ("", Some(own)) => own.as_str(),
        // OCI's documents may leave their own type out.
        ("", None) if shape.manifests.is_some() => media_type::OCI_INDEX,
        ("", None) => media_type::OCI_MANIFEST,
        (announced, Some(own)) if own != announced => {
            return Err(InvalidDocument::Disagrees { announced: announced.to_owned(), own: own.clone() });
        }
        (announced, _) => announced,
    };
    let (parsed, count) = if media_type::is_index(kind) {
        let index: Index = serde_json::from_slice(bytes).map_err(malformed)?;
        let count = index.manifests.len();
        (Parsed::Index(Box::new(index)), count)
    } else if media_type::is_manifest(kind) {
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(malformed)?;
        let count = manifest.layers.len();
        (Parsed::Manifest(Box::new(manifest)), count)
    } else {
        return Err(InvalidDocument::NotAnImage { media_type: kind.to_owned() });
    };
    if count > MAX_DESCRIPTORS { Err(InvalidDocument::TooMany { count }) } else { Ok(parsed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R02, R03.
    #[test]
    fn a_document_is_one_thing_and_says_so() {
        let config = format!(r#""config":{{"mediaType":"x","digest":"sha256:{}","size":1}}"#, "a".repeat(64));
        let manifest = format!(r#"{{"schemaVersion":2,{config},"layers":[]}}"#);
        let typed = |kind: &str| format!(r#"{{"schemaVersion":2,"mediaType":"{kind}",{config},"layers":[]}}"#);
        let index = r#"{"schemaVersion":2,"manifests":[]}"#.to_owned();
        let both = format!(r#"{{"schemaVersion":2,{config},"layers":[],"manifests":[]}}"#);
        let twice = format!(r#"{{"schemaVersion":2,{config},"layers":[],"layers":[]}}"#);
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        for (text, announced, expected) in [
            (&manifest, media_type::OCI_MANIFEST, "manifest"),
            (&manifest, "", "manifest"),
            (&typed(media_type::DOCKER_MANIFEST), "", "manifest"),
            (&typed(media_type::DOCKER_MANIFEST), media_type::DOCKER_MANIFEST, "manifest"),
            (&typed(media_type::DOCKER_MANIFEST), media_type::OCI_MANIFEST, "says that it is"),
            (&typed(media_type::OCI_INDEX), media_type::OCI_MANIFEST, "says that it is"),
            (&index, media_type::OCI_INDEX, "index"),
            (&index, "", "index"),
            (&index, media_type::OCI_MANIFEST, "not a document"),
            (&both, media_type::OCI_MANIFEST, "both"),
            (&both, "", "both"),
            (&twice, "", "not a document"),
            (&deep, "", "not a document"),
            (&"{}".to_owned(), media_type::OCI_MANIFEST, "not a document"),
            (&"null".to_owned(), "", "not a document"),
            (&manifest, "text/html", "not that of an image"),
        ] {
            let found = match parse_document(text.as_bytes(), announced) {
                Ok(Parsed::Manifest(_)) => "manifest".to_owned(),
                Ok(Parsed::Index(_)) => "index".to_owned(),
                Err(error) => error.to_string(),
            };
            assert!(found.contains(expected), "{announced} {}: {found}", &text[..text.len().min(80)]);
        }
    }
}
