//! Where images are, and what became of those that were brought from one place to another.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use build_engine_oci::{Descriptor, Digest, ImageConfig, Platform, Reference};
use serde::{Deserialize, Serialize};

use crate::InvalidOutput;

/// A place where an image is, or shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "place", rename_all = "kebab-case")]
pub enum ImagePlace {
    /// The store, by name or digest.
    Store {
        /// The name.
        image: String,
    },
    /// A registry.
    Registry {
        /// The name.
        reference: Reference,
    },
    /// An OCI layout directory.
    Layout {
        /// The directory.
        path: PathBuf,
        /// Tag within it.
        tag: Option<String>,
        /// Digest within it.
        digest: Option<Digest>,
    },
    /// A tar archive of an OCI layout.
    OciArchive {
        /// The file.
        path: PathBuf,
        /// Tag within it.
        tag: Option<String>,
    },
    /// A tar archive that `docker load` reads.
    DockerArchive {
        /// The file.
        path: PathBuf,
        /// Name of the image within it.
        reference: Option<Reference>,
    },
}

impl FromStr for ImagePlace {
    type Err = InvalidOutput;

    /// Parses `docker://NAME`, `store:NAME`, `oci:DIR[:TAG]`, `oci-layout://DIR[:TAG][@DIGEST]`, `oci-archive:FILE[:TAG]`,
    /// `docker-archive:FILE[:NAME]`; anything else is a name at a registry.
    fn from_str(text: &str) -> Result<Self, InvalidOutput> {
        let invalid = |reason: String| InvalidOutput { text: text.to_owned(), reason };
        let name = |name: &str| -> Result<Reference, InvalidOutput> {
            name.parse::<Reference>().map(Reference::or_latest).map_err(|error| invalid(error.to_string()))
        };
        let tagged = |rest: &str| match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (PathBuf::from(path), Some(tag.to_owned())),
            _ => (PathBuf::from(rest), None),
        };
        let place = if let Some(rest) = text.strip_prefix("docker://") {
            Self::Registry { reference: name(rest)? }
        } else if let Some(rest) = text.strip_prefix("store:") {
            Self::Store { image: rest.to_owned() }
        } else if let Some(rest) = text.strip_prefix("oci-layout://").or_else(|| text.strip_prefix("oci:")) {
            let (rest, digest) = match rest.split_once('@') {
                Some((rest, digest)) => (rest, Some(digest.parse().map_err(|error| invalid(format!("{error}")))?)),
                None => (rest, None),
            };
            let (path, tag) = tagged(rest);
            Self::Layout { path, tag, digest }
        } else if let Some(rest) = text.strip_prefix("oci-archive:") {
            let (path, tag) = tagged(rest);
            Self::OciArchive { path, tag }
        } else if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (path, reference) = match rest.split_once(':') {
                Some((path, reference)) => (path.into(), Some(name(reference)?)),
                None => (rest.into(), None),
            };
            Self::DockerArchive { path, reference }
        } else {
            Self::Registry { reference: name(text)? }
        };
        match &place {
            Self::Layout { path, .. } | Self::OciArchive { path, .. } | Self::DockerArchive { path, .. }
                if path.as_os_str().is_empty() =>
            {
                Err(invalid("a path is missing".into()))
            }
            _ => Ok(place),
        }
    }
}

impl fmt::Display for ImagePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store { image } => write!(f, "store:{image}"),
            Self::Registry { reference } => write!(f, "{}", reference.familiar()),
            Self::Layout { path, tag, digest } => {
                write!(f, "oci:{}", path.display())?;
                tag.iter().try_for_each(|tag| write!(f, ":{tag}"))?;
                digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
            }
            Self::OciArchive { path, tag } => {
                write!(f, "oci-archive:{}", path.display())?;
                tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
            }
            Self::DockerArchive { path, reference } => {
                write!(f, "docker-archive:{}", path.display())?;
                reference.iter().try_for_each(|reference| write!(f, ":{}", reference.familiar()))
            }
        }
    }
}

/// Which variants of an image are meant.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variants {
    /// All.
    #[default]
    All,
    /// The one for this platform.
    Only(Platform),
}

/// Images to bring from one place to another.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "transfer", rename_all = "kebab-case")]
pub enum TransferRequest {
    /// From, to. Several images for one archive stand in it together.
    Copy {
        /// The pairs.
        images: Vec<(ImagePlace, ImagePlace)>,
        /// Which variants.
        variants: Variants,
    },
    /// All named images of an archive or layout, into the store.
    Load {
        /// The archive or layout.
        path: PathBuf,
    },
}

/// What became of one image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transferred {
    /// Where it is now.
    pub to: ImagePlace,
    /// Its manifest or index.
    pub descriptor: Descriptor,
}

/// What an image is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageDetails {
    /// The manifest or index that the name stands for.
    pub descriptor: Descriptor,
    /// That document, as it is.
    pub document: String,
    /// The image for each platform.
    pub images: Vec<PlatformDetails>,
}

/// One image of an index, or the only one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlatformDetails {
    /// What it runs on.
    pub platform: Platform,
    /// Its manifest.
    pub manifest: Descriptor,
    /// Digest of its config.
    pub config_digest: Digest,
    /// Its config.
    pub config: ImageConfig,
    /// Its layers, lowest first.
    pub layers: Vec<Descriptor>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart_by_their_scheme() {
        for (text, expected) in [
            ("alpine", "alpine:latest"),
            ("docker://127.0.0.1:5000/a/b:1", "127.0.0.1:5000/a/b:1"),
            ("store:app", "store:app"),
            ("oci:dir", "oci:dir"),
            ("oci:./a/dir:tag", "oci:./a/dir:tag"),
            ("oci-layout://dir:tag", "oci:dir:tag"),
            ("oci-archive:/tmp/x.tar:v1", "oci-archive:/tmp/x.tar:v1"),
            ("docker-archive:x.tar", "docker-archive:x.tar"),
            ("docker-archive:x.tar:127.0.0.1:5000/a:1", "docker-archive:x.tar:127.0.0.1:5000/a:1"),
        ] {
            assert_eq!(text.parse::<ImagePlace>().map(|place| place.to_string()), Ok(expected.to_owned()), "{text}");
        }
        for text in ["", "oci:", "docker://", "docker-archive:", "oci:x@sha256:1", "a/UPPER"] {
            assert!(text.parse::<ImagePlace>().is_err(), "{text}");
        }
    }
}
