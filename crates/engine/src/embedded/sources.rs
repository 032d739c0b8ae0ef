//! Where files come from: images of the store and of OCI layouts, and local contexts.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use build_engine_dockerfile::ignore::Ignore;
use build_engine_frontend::Answer;
use build_engine_graph::{Event, EventSink, SourceOp};
use build_engine_oci::{Descriptor, Digest, ImageConfig, Platform, Reference};
use build_engine_store::{Lease, Snapshot, Store};

use super::events;
use super::export::io_error;
use super::ops::{StepError, internal};
use crate::layout::{self, FoundImage, Layout, LayoutError};
use crate::{ContextSource, ExitKind, Report};

/// Rule of the report about an image that the store does not have.
pub(super) const UNKNOWN_IMAGE: &str = "unknown-image";

/// Largest document read from the store.
const MAX_DOCUMENT_BYTES: u64 = 8 << 20;

/// Local files that a build reads in place.
#[derive(Debug)]
pub(super) struct LocalContext {
    /// The directory.
    pub(super) path: PathBuf,
    /// What of it the build does not see.
    pub(super) ignore: Ignore,
}

impl LocalContext {
    /// The context at `path` as the source vertex wants it seen.
    pub(super) fn new(path: &Path, source: &SourceOp) -> Result<Self, StepError> {
        let patterns: Vec<String> = match source.attrs.get("local.excludepatterns") {
            Some(json) => {
                serde_json::from_str(json).map_err(|error| internal(format!("patterns of a context: {error}")))?
            }
            None => Vec::new(),
        };
        let ignore = Ignore::new(&patterns)
            .map_err(|error| StepError::new(ExitKind::Input, Report::new("invalid-ignore-file", error.to_string())))?;
        Ok(Self { path: path.to_owned(), ignore })
    }
}

/// An image whose name has been resolved.
#[derive(Debug)]
pub(super) struct PinnedImage {
    pub(super) found: FoundImage,
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    Layout(Layout),
    Store,
}

/// The images of one build: each name is resolved once.
#[derive(Debug)]
pub(super) struct Images {
    store: Store,
    pinned: Mutex<HashMap<(Digest, String), Arc<PinnedImage>>>,
}

impl Images {
    pub(super) fn new(store: Store) -> Self {
        Self { store, pinned: Mutex::default() }
    }

    /// Answers the frontend's question for an image.
    pub(super) fn resolve(&self, identifier: &str, platform: &Platform) -> Result<Answer, StepError> {
        let image = self.open(identifier, platform)?;
        Ok(Answer::ImageConfig {
            identifier: identifier.to_owned(),
            digest: image.found.root.clone(),
            config: image.found.config.clone(),
        })
    }

    /// Finds an image by an identifier that people wrote, and remembers what it was found to be.
    pub(super) fn open(&self, identifier: &str, platform: &Platform) -> Result<Arc<PinnedImage>, StepError> {
        let image = if identifier.starts_with("oci-layout://") {
            let source = ContextSource::parse(identifier)
                .map_err(|error| StepError::new(ExitKind::Input, Report::new("invalid-context", error.to_string())))?;
            let ContextSource::OciLayout { path, tag, digest } = source else {
                return Err(internal("an OCI layout is no OCI layout"));
            };
            let layout = Layout::open(&path).map_err(|error| layout_error(&error))?;
            let found = layout.find(tag.as_deref(), digest.as_ref(), platform).map_err(|error| layout_error(&error))?;
            PinnedImage { found, origin: Origin::Layout(layout) }
        } else {
            let name = identifier.strip_prefix("docker-image://").unwrap_or(identifier);
            let reference: Reference =
                name.parse().map_err(|error: build_engine_oci::InvalidReference| internal(error.to_string()))?;
            PinnedImage { found: find_in_store(&self.store, &reference.or_latest(), platform)?, origin: Origin::Store }
        };
        let key = (image.found.root.clone(), platform.to_string());
        let image = Arc::new(image);
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Arc::clone(&image));
        Ok(image)
    }

    /// The image that a pinned source identifier names.
    pub(super) fn pinned(&self, identifier: &str, platform: Option<&Platform>) -> Result<Arc<PinnedImage>, StepError> {
        let unknown = || internal(format!("the image `{identifier}` was not resolved"));
        let digest: Digest =
            identifier.rsplit_once('@').and_then(|(_, digest)| digest.parse().ok()).ok_or_else(unknown)?;
        let platform = platform.map_or_else(|| Platform::host().to_string(), ToString::to_string);
        let pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        pinned.get(&(digest, platform)).cloned().ok_or_else(unknown)
    }

    /// Brings the layers of an image into the store as trees, those that are not there yet.
    pub(super) fn unpack(
        &self,
        store: &Store,
        lease: &Lease,
        image: &PinnedImage,
        vertex: &Digest,
        events: &dyn EventSink,
    ) -> Result<Snapshot, StepError> {
        let config: ImageConfig = serde_json::from_slice(&image.found.config)
            .map_err(|error| internal(format!("a config that was read before does not parse: {error}")))?;
        let (layers, diff_ids) = (&image.found.manifest.layers, &config.rootfs.diff_ids);
        if layers.len() != diff_ids.len() {
            let message = format!(
                "image {} has {} layers in its manifest and {} in its config",
                image.found.manifest_digest,
                layers.len(),
                diff_ids.len()
            );
            return Err(StepError::new(ExitKind::Integrity, Report::new("integrity", message)));
        }
        let mut ids = Vec::with_capacity(layers.len());
        for (descriptor, diff_id) in layers.iter().zip(diff_ids) {
            let report = |current, done| {
                events.emit(Event::Progress {
                    vertex: vertex.clone(),
                    id: format!("extracting {}", descriptor.digest),
                    action: "extracting".into(),
                    current,
                    total: Some(descriptor.size),
                    at: events::now(),
                    done,
                });
            };
            let base = Snapshot::new(ids.clone());
            let known = store.layer_for_diff_id(diff_id, &base).map_err(|error| unpack_error(descriptor, &error))?;
            let id = match known {
                // Found, and kept from now on.
                Some(id)
                    if lease
                        .hold(&Snapshot::new(vec![id.clone()]))
                        .map_err(|error| unpack_error(descriptor, &error))? =>
                {
                    id
                }
                _ => {
                    report(0, false);
                    let reader = image.open_blob(store, descriptor)?;
                    let id = store
                        .apply_blob(descriptor, diff_id, &base, reader)
                        .map_err(|error| unpack_error(descriptor, &error))?;
                    report(descriptor.size, true);
                    id
                }
            };
            ids.push(id);
        }
        Ok(Snapshot::new(ids))
    }
}

impl Images {
    /// Brings a blob of one of the build's images back into the store, where it went missing. Whether it could.
    pub(super) fn fetch_again(&self, descriptor: &Descriptor) -> Result<bool, StepError> {
        let pinned: Vec<_> = self.pinned.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let has = |image: &&Arc<PinnedImage>| {
            matches!(image.origin, Origin::Layout(_))
                && image.found.manifest.layers.iter().any(|layer| layer.digest == descriptor.digest)
        };
        let Some(image) = pinned.iter().find(has) else { return Ok(false) };
        let failed = |error: &build_engine_store::Error| unpack_error(descriptor, error);
        let mut reader = image.open_blob(&self.store, descriptor)?;
        let mut writer = self.store.blob_writer().map_err(|error| failed(&error))?;
        std::io::copy(&mut reader, &mut writer)
            .map_err(|error| io_error(&format!("cannot copy blob {}", descriptor.digest), &error))?;
        writer.commit(Some((&descriptor.digest, descriptor.size))).map_err(|error| failed(&error))?;
        Ok(true)
    }
}

impl PinnedImage {
    fn open_blob(&self, store: &Store, descriptor: &Descriptor) -> Result<Box<dyn std::io::Read + Send>, StepError> {
        match &self.origin {
            Origin::Layout(layout) => layout.open_blob(&descriptor.digest).map_err(|error| layout_error(&error)),
            Origin::Store => match store.open_blob(&descriptor.digest, Some(descriptor.size)) {
                Ok(Some((file, _))) => Ok(Box::new(file)),
                Ok(None) => {
                    let message = format!("layer {} of an image in the store is gone or damaged", descriptor.digest);
                    let hint = "build the image again, or load it from where it came";
                    Err(StepError::new(ExitKind::Integrity, Report::new("integrity", message).hint(hint)))
                }
                Err(error) => Err(unpack_error(descriptor, &error)),
            },
        }
    }
}

fn unpack_error(descriptor: &Descriptor, error: &build_engine_store::Error) -> StepError {
    StepError::store(&format!("cannot unpack layer {}", descriptor.digest), error)
}

/// Finds an image of the store by name or digest.
pub(super) fn find_in_store(
    store: &Store,
    reference: &Reference,
    platform: &Platform,
) -> Result<FoundImage, StepError> {
    let failed = |error: &build_engine_store::Error| StepError::store("cannot look for an image in the store", error);
    let root = match reference.digest() {
        Some(digest) => {
            // The media type stands in the document itself.
            let bytes = store.read_blob(digest, MAX_DOCUMENT_BYTES).map_err(|error| failed(&error))?;
            bytes.map(|bytes| Descriptor::new(media_type_of(&bytes), digest.clone(), bytes.len() as u64))
        }
        None => store.name(reference).map_err(|error| failed(&error))?.map(|name| name.descriptor),
    };
    let Some(root) = root else {
        let message = format!("no image in the store is named `{}`", reference.familiar());
        let hint = "this version does not pull from registries; build or import the image first, or give it with \
                    `--build-context NAME=oci-layout://PATH`";
        return Err(StepError::new(ExitKind::Source, Report::new(UNKNOWN_IMAGE, message).hint(hint)));
    };
    let document = |descriptor: &Descriptor| match store.read_blob(&descriptor.digest, MAX_DOCUMENT_BYTES) {
        Ok(Some(bytes)) => {
            let actual = Digest::sha256(&bytes);
            if actual == descriptor.digest {
                Ok(bytes)
            } else {
                let (path, expected) = (store.root().to_owned(), descriptor.digest.clone());
                Err(LayoutError::Mismatch { path, expected, actual })
            }
        }
        Ok(None) => Err(LayoutError::NoSuchBlob { path: store.root().to_owned(), digest: descriptor.digest.clone() }),
        Err(error) => Err(LayoutError::Read { path: store.root().to_owned(), source: std::io::Error::other(error) }),
    };
    layout::find(&root, platform, &document).map_err(|error| layout_error(&error))
}

fn media_type_of(document: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
    }
    serde_json::from_slice::<Typed>(document)
        .ok()
        .and_then(|typed| typed.media_type)
        .unwrap_or_else(|| build_engine_oci::media_type::OCI_MANIFEST.into())
}

fn layout_error(error: &LayoutError) -> StepError {
    let (kind, rule) =
        if error.is_integrity() { (ExitKind::Integrity, "integrity") } else { (ExitKind::Source, "image") };
    let mut report = Report::new(rule, "cannot use an image");
    let mut causes = Report::new("", "").caused_by(error).causes.into_iter();
    // The first cause is the finding itself.
    if let Some(first) = causes.next() {
        report.message = first;
    }
    report.causes = causes.collect();
    StepError::new(kind, report)
}
