//! Archives of the form that `docker save` wrote before it wrote OCI layouts, and that podman still writes.
//!
//! `manifest.json` lists images: the file of the config, those of the layers, names. There is no manifest, so one is made,
//! which is why the digests of layers have to be computed first.
//!
//! Source: Docker image specification v1.2, "Combined Image JSON + Filesystem Changeset Format".

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use build_engine_oci::{Descriptor, Digest, Hasher, Index, Manifest, Reference, layout, media_type};
use serde::Deserialize;

use crate::layout::{LayoutError, Part};

/// The list of images.
pub(crate) const MANIFEST_FILE: &str = "manifest.json";

/// Largest list, and largest config.
const MAX_DOCUMENT_BYTES: u64 = 8 << 20;

/// The archive as a layout.
#[derive(Debug, Default)]
pub(crate) struct Converted {
    /// Files of the layout that are small.
    pub(crate) documents: HashMap<String, Vec<u8>>,
    /// Where in the archive the other blobs are: offset and size.
    pub(crate) layers: HashMap<String, (u64, u64)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// Why an archive cannot be read.
pub(crate) enum Unreadable {
    Io(io::Error),
    Malformed(serde_json::Error),
    Missing(String),
}

impl Unreadable {
    pub(crate) fn at(self, path: &Path) -> LayoutError {
        match self {
            Self::Io(source) => LayoutError::Read { path: path.to_owned(), source },
            Self::Malformed(source) => LayoutError::Malformed { digest: MANIFEST_FILE.into(), source },
            Self::Missing(name) => LayoutError::Read {
                path: path.to_owned(),
                source: io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("it lists `{}` but does not have it", name.escape_debug()),
                ),
            },
        }
    }
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads an archive whose `files` (offset and size by name) are known.
pub(crate) fn convert(files: &HashMap<String, (u64, u64)>, file: &Arc<File>) -> Result<Converted, Unreadable> {
    let open = |name: &str| match files.get(name) {
        Some((offset, size)) => Ok((Part { file: Arc::clone(file), offset: *offset, left: *size }, *offset, *size)),
        None => Err(Unreadable::Missing(name.to_owned())),
    };
    let document = |name: &str| -> Result<Vec<u8>, Unreadable> {
        let (part, _, size) = open(name)?;
        if size > MAX_DOCUMENT_BYTES {
            let message = format!("`{name}` has {size} bytes, more than {MAX_DOCUMENT_BYTES}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message).into());
        }
        let mut bytes = Vec::new();
        part.take(MAX_DOCUMENT_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let listed: Vec<Listed> = serde_json::from_slice(&document(MANIFEST_FILE)?).map_err(Unreadable::Malformed)?;
    let mut converted = Converted::default();
    let mut known: HashMap<String, Descriptor> = HashMap::new();
    let put = |converted: &mut Converted, media_type: &str, bytes: Vec<u8>| {
        let descriptor = Descriptor::new(media_type, Digest::sha256(&bytes), bytes.len() as u64);
        converted.documents.insert(layout::blob_path(&descriptor.digest), bytes);
        descriptor
    };
    let mut manifests = Vec::new();
    for image in listed {
        let config = put(&mut converted, media_type::DOCKER_CONFIG, document(&image.config)?);
        let mut layers = Vec::new();
        for name in &image.layers {
            let layer = match known.get(name) {
                Some(layer) => layer.clone(),
                None => {
                    let (part, offset, size) = open(name)?;
                    let layer = describe(part, size)?;
                    converted.layers.insert(layout::blob_path(&layer.digest), (offset, size));
                    known.insert(name.clone(), layer.clone());
                    layer
                }
            };
            layers.push(layer);
        }
        let mut manifest = Manifest::new(config, layers);
        manifest.media_type = Some(media_type::DOCKER_MANIFEST.into());
        let bytes = serde_json::to_vec(&manifest).map_err(Unreadable::Malformed)?;
        let descriptor = put(&mut converted, media_type::DOCKER_MANIFEST, bytes);
        let names: Vec<Reference> =
            image.repo_tags.unwrap_or_default().iter().filter_map(|name| name.parse().ok()).collect();
        for name in &names {
            let mut named = descriptor.clone();
            named.annotations.insert(layout::IMAGE_NAME.into(), name.clone().or_latest().to_string());
            named.annotations.insert(layout::REF_NAME.into(), name.tag().unwrap_or("latest").to_owned());
            manifests.push(named);
        }
        if names.is_empty() {
            manifests.push(descriptor);
        }
    }
    let index = serde_json::to_vec(&Index::new(manifests)).map_err(Unreadable::Malformed)?;
    converted.documents.insert(layout::INDEX_FILE.into(), index);
    Ok(converted)
}

fn describe(mut part: Part, size: u64) -> io::Result<Descriptor> {
    let mut hasher = Hasher::new();
    let mut head = [0; 4];
    let mut buffer = vec![0; 128 << 10];
    let mut first = true;
    loop {
        let count = part.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        if std::mem::take(&mut first) {
            let known = count.min(head.len());
            head[..known].copy_from_slice(&buffer[..known]);
        }
        hasher.update(&buffer[..count]);
    }
    let media_type = match head {
        [0x1f, 0x8b, ..] => media_type::DOCKER_LAYER_GZIP,
        [0x28, 0xb5, 0x2f, 0xfd] => media_type::DOCKER_LAYER_ZSTD,
        _ => media_type::DOCKER_LAYER,
    };
    Ok(Descriptor::new(media_type, hasher.finish(), size))
}
