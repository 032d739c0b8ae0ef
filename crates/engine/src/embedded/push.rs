//! Pushing: blobs first, several at once, then the documents that name them, the tag last.
//!
//! What the registry has is not sent, what another of its repositories has is mounted. A layer of a base that was never
//! fetched is fetched only if the registry cannot get at it by itself.

use std::io;
use std::sync::Arc;

use build_engine_oci::{Descriptor, Reference, media_type};
use build_engine_registry::{self as registry, Content, Pushed};
use build_engine_store::Store;
use futures::StreamExt;
use futures::future::BoxFuture;

use super::bundle::{Blobs, Bundle};
use super::events::Work;
use super::ops::StepError;
use super::remote::{Remote, StoredBlob, on_disk, registry_error};
use super::sources::{Images, origins};
use crate::image::Document;
use crate::layout::Layout;

/// How many blobs are pushed at once.
const UPLOADS: usize = 4;

/// Pushes one image.
pub(super) struct Push<'a> {
    pub(super) remote: &'a Remote,
    pub(super) blobs: &'a Blobs,
    /// Brings what the store lacks.
    pub(super) images: &'a Images,
    pub(super) work: &'a Work,
}

impl Push<'_> {
    /// Pushes `bundle` under the tag of `target`; `by_digest` leaves the tag out.
    ///
    /// # Errors
    /// When the registry does not take it. What it took stays there, without a name.
    pub(super) async fn push(&self, target: &Reference, bundle: &Bundle, by_digest: bool) -> Result<(), StepError> {
        let (configs, manifests): (Vec<&Document>, Vec<&Document>) = bundle.documents.iter().partition(|document| {
            let kind = &document.descriptor.media_type;
            !media_type::is_manifest(kind) && !media_type::is_index(kind)
        });
        let mut blobs: Vec<BoxFuture<'_, Result<(), StepError>>> = Vec::new();
        for blob in &bundle.blobs {
            blobs.push(Box::pin(self.blob(target, blob, self.content(blob))));
        }
        for config in configs {
            let content: Arc<dyn Content> = Arc::new(Bytes(config.bytes.clone()));
            blobs.push(Box::pin(self.blob(target, &config.descriptor, content)));
        }
        let mut pushes = futures::stream::iter(blobs).buffer_unordered(UPLOADS);
        while let Some(pushed) = pushes.next().await {
            pushed?;
        }
        drop(pushes);
        for document in manifests {
            let descriptor = &document.descriptor;
            let is_root = descriptor.digest == bundle.root.digest;
            let name = if is_root && !by_digest {
                target.clone()
            } else {
                target.clone().with_digest(descriptor.digest.clone())
            };
            self.remote
                .client()
                .push_document(&name, descriptor, document.bytes.clone())
                .await
                .map_err(|error| registry_error(&error))?;
            self.work.part(format!("pushing manifest {}", descriptor.digest), true);
        }
        let digests: Vec<_> = bundle
            .blobs
            .iter()
            .chain(bundle.documents.iter().map(|document| &document.descriptor))
            .map(|descriptor| descriptor.digest.clone())
            .collect();
        let (store, repository) = (self.remote.store().clone(), target.name());
        on_disk(move || {
            store
                .add_origins(&repository, &digests)
                .map_err(|error| StepError::store("cannot remember where an image was pushed to", &error))
        })
        .await
    }

    fn content(&self, blob: &Descriptor) -> Arc<dyn Content> {
        match self.blobs {
            Blobs::Store(store) => Arc::new(StoredBlob { store: store.clone(), descriptor: blob.clone() }),
            Blobs::Layout(layout) => Arc::new(LayoutBlob { layout: layout.clone(), descriptor: blob.clone() }),
        }
    }

    async fn blob(&self, target: &Reference, blob: &Descriptor, content: Arc<dyn Content>) -> Result<(), StepError> {
        let meter = self.work.meter("pushing", blob);
        let progress = |sent| {
            if sent > 0 {
                meter.at(sent);
            }
        };
        let others = neighbours(self.remote.store(), target, blob).await?;
        let client = self.remote.client();
        let mut pushed = client.push_blob(target, blob, &others, Arc::clone(&content), &progress).await;
        if pushed.as_ref().is_err_and(is_missing) && self.images.bring_blob(blob).await? {
            pushed = client.push_blob(target, blob, &others, content, &progress).await;
        }
        match pushed.map_err(|error| registry_error(&error))? {
            Pushed::Existed => self.work.meter("already there", blob).done(),
            Pushed::Mounted => self.work.meter("mounted", blob).done(),
            Pushed::Uploaded => meter.done(),
        }
        Ok(())
    }
}

/// The other repositories of the registry of `target` that are known to have `blob`: it is mounted from there.
pub(super) async fn neighbours(
    store: &Store,
    target: &Reference,
    blob: &Descriptor,
) -> Result<Vec<Reference>, StepError> {
    let (store, digest) = (store.clone(), blob.digest.clone());
    let known = on_disk(move || origins(&store, &digest)).await?;
    Ok(known.into_iter().filter(|other| other.domain() == target.domain() && other.path() != target.path()).collect())
}

/// Whether a push failed because the store does not have what was to be pushed.
fn is_missing(error: &registry::Error) -> bool {
    match error {
        registry::Error::Content(error) => error.kind() == io::ErrorKind::NotFound,
        registry::Error::Operation { source, .. } => is_missing(source),
        _ => false,
    }
}

struct Bytes(Vec<u8>);

impl Content for Bytes {
    fn open(&self, offset: u64) -> io::Result<Box<dyn io::Read + Send>> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        Ok(Box::new(io::Cursor::new(self.0[start..].to_vec())))
    }
}

struct LayoutBlob {
    layout: Layout,
    descriptor: Descriptor,
}

impl Content for LayoutBlob {
    fn open(&self, offset: u64) -> io::Result<Box<dyn io::Read + Send>> {
        self.layout.open_blob_at(&self.descriptor.digest, offset).map_err(io::Error::other)
    }
}
