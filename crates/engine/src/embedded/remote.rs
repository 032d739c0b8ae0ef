//! Registries, as the engine sees them: documents and blobs that come into the store.
//!
//! The client speaks to registries, the store writes down; here the two are joined. A blob is fetched once, whoever wants
//! it, and who unpacks it reads along. Credentials are the face's to find: they are asked for over the frames, every
//! time anew, so that what was refreshed during a long build is used.

use std::sync::{Arc, Mutex, PoisonError};

use build_engine_oci::{Descriptor, Digest, Platform, Reference};
use build_engine_registry::{self as registry, Client, Content, Credentials};
use build_engine_store::{Following, PartialBlob, Store};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::ops::{StepError, internal};
use crate::layout::{self, FoundImage, LayoutError};
use crate::{ExitKind, Report};

/// How many blobs are fetched at once. Large ones come in several ranges each.
const DOWNLOADS: usize = 3;

/// Pieces of a blob that may wait to be written.
const WAITING_PIECES: usize = 2;

/// Rule of the report about an image that is nowhere to be had.
pub(super) const UNKNOWN_IMAGE: &str = "unknown-image";

/// Takes how many bytes of a blob are there.
pub(super) type OnProgress = Arc<dyn Fn(u64) + Send + Sync>;

/// Registries and the store together.
pub(super) struct Remote {
    client: Client,
    store: Store,
    downloads: Arc<Semaphore>,
}

impl Remote {
    pub(super) fn new(
        store: Store,
        settings: registry::Settings,
        credentials: Arc<dyn Credentials>,
    ) -> Result<Self, StepError> {
        let client = Client::new(settings, credentials).map_err(|error| registry_error(&error))?;
        Ok(Self { client, store, downloads: Arc::new(Semaphore::new(DOWNLOADS)) })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Asks the registry what a name stands for, and remembers the answer.
    pub(super) async fn resolve(&self, reference: &Reference) -> Result<Descriptor, StepError> {
        let descriptor = self.client.resolve(reference).await.map_err(|error| unresolved(&error))?;
        let (store, reference, found) = (self.store.clone(), reference.clone(), descriptor.clone());
        on_disk(move || {
            store
                .set_resolved(&reference, &found)
                .map_err(|error| StepError::store("cannot remember what a name stands for", &error))
        })
        .await?;
        Ok(descriptor)
    }

    /// A document: the store's, or else that of one of the repositories, which the store then keeps.
    pub(super) async fn document_of(
        &self,
        repositories: &[Reference],
        descriptor: &Descriptor,
    ) -> Result<Vec<u8>, StepError> {
        let (store, wanted) = (self.store.clone(), descriptor.clone());
        match on_disk(move || stored_document(&store, &wanted)).await? {
            Some(bytes) => Ok(bytes),
            None if repositories.is_empty() => {
                Err(super::sources::layout_error(&LayoutError::Gone { digest: descriptor.digest.clone() }))
            }
            None => self.ask_any(repositories, descriptor).await,
        }
    }

    async fn fetch_document(&self, repository: &Reference, descriptor: &Descriptor) -> Result<Vec<u8>, StepError> {
        let bytes = self.client.document(repository, descriptor).await.map_err(|error| registry_error(&error))?;
        let (store, repository, digest) = (self.store.clone(), repository.name(), descriptor.digest.clone());
        on_disk(move || {
            let failed = |error| StepError::store("cannot keep a document of an image", &error);
            // Under the digest that the client compared it with: it takes no other than SHA-256's.
            store.put_blob(&bytes).map_err(failed)?;
            store.add_origins(&repository, [&digest]).map_err(failed)?;
            Ok(bytes)
        })
        .await
    }

    /// The image for `platform` that `root` leads to. Documents that the store lacks come from one of `repositories`.
    pub(super) async fn image(
        &self,
        repositories: &[Reference],
        root: &Descriptor,
        platform: &Platform,
    ) -> Result<FoundImage, StepError> {
        let mut fetched = false;
        loop {
            let (store, start, platform) = (self.store.clone(), root.clone(), platform.clone());
            let (found, missing) = on_disk(move || {
                let missing = Mutex::new(None);
                let found = layout::find(&start, &platform, &|descriptor| {
                    let document = stored_document(&store, descriptor)
                        .map_err(|error| LayoutError::Store { source: std::io::Error::other(error) })?;
                    document.ok_or_else(|| {
                        *missing.lock().unwrap_or_else(PoisonError::into_inner) = Some(descriptor.clone());
                        LayoutError::Gone { digest: descriptor.digest.clone() }
                    })
                });
                Ok((found, missing.into_inner().unwrap_or_else(PoisonError::into_inner)))
            })
            .await?;
            match (found, missing) {
                (Ok(found), _) if fetched => return self.remember(repositories, found).await,
                (Ok(found), _) => return Ok(found),
                (Err(LayoutError::Gone { .. }), Some(descriptor)) if !repositories.is_empty() => {
                    self.ask_any(repositories, &descriptor).await?;
                    fetched = true;
                }
                (Err(error), _) => return Err(super::sources::layout_error(&error)),
            }
        }
    }

    /// Notes where the layers of an image can be had, for whoever builds upon it.
    async fn remember(&self, repositories: &[Reference], found: FoundImage) -> Result<FoundImage, StepError> {
        let Some(repository) = repositories.first().map(Reference::name) else { return Ok(found) };
        let store = self.store.clone();
        on_disk(move || {
            let layers = found.manifest.layers.iter().map(|layer| &layer.digest);
            store
                .add_origins(&repository, layers)
                .map_err(|error| StepError::store("cannot remember where layers come from", &error))?;
            Ok(found)
        })
        .await
    }

    async fn ask_any(&self, repositories: &[Reference], descriptor: &Descriptor) -> Result<Vec<u8>, StepError> {
        let mut failure = internal("no repository was given");
        for repository in repositories {
            match self.fetch_document(repository, descriptor).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Brings a blob into the store, from the first of `repositories` that gives it. `follow` receives a reader of what
    /// arrives, or nothing where the blob is there already.
    ///
    /// # Errors
    /// When none of them gives it, or what came is not what it should be. What arrived is kept for the next attempt.
    pub(super) async fn fetch(
        &self,
        repositories: &[Reference],
        descriptor: &Descriptor,
        follow: Option<oneshot::Sender<Option<Following>>>,
        progress: &OnProgress,
    ) -> Result<(), StepError> {
        let _permit = self.downloads.acquire().await.expect("the semaphore is never closed");
        let failed = fetch_failed(descriptor);
        let (store, wanted) = (self.store.clone(), descriptor.clone());
        let partial =
            on_disk(move || store.partial_blob(&wanted).map_err(|error| fetch_failed(&wanted)(&error))).await?;
        let Some(mut partial) = partial else {
            if let Some(follow) = follow {
                // Whoever wanted it may have gone.
                let _ = follow.send(None);
            }
            return Ok(());
        };
        if let Some(follow) = follow {
            let _ = follow.send(Some(partial.follow().map_err(|error| failed(&error))?));
        }
        let mut error = internal(format!("nobody was asked for blob {}", descriptor.digest));
        for repository in repositories {
            let resumed = partial.offset() > 0;
            let outcome = self.receive(repository, descriptor, partial, progress).await;
            let arrived = match outcome {
                Ok(arrived) => arrived,
                Err((kept, reason)) => {
                    error = reason;
                    match kept {
                        Some(kept) => partial = kept,
                        None => return Err(error),
                    }
                    continue;
                }
            };
            match commit(arrived).await {
                Ok(()) => {
                    let (store, repository, digest) =
                        (self.store.clone(), repository.name(), descriptor.digest.clone());
                    return on_disk(move || {
                        store.add_origins(&repository, [&digest]).map_err(|error| fetch_error(&digest, &error))
                    })
                    .await;
                }
                // What an earlier attempt left may have been wrong: once more, from the start.
                Err(reason) if resumed && reason.kind == ExitKind::Integrity => {
                    return Box::pin(self.fetch_again(repository, descriptor, progress)).await;
                }
                Err(reason) => return Err(named(reason, repository, descriptor)),
            }
        }
        Err(error)
    }

    async fn fetch_again(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
        progress: &OnProgress,
    ) -> Result<(), StepError> {
        let (store, wanted) = (self.store.clone(), descriptor.clone());
        let partial =
            on_disk(move || store.partial_blob(&wanted).map_err(|error| fetch_failed(&wanted)(&error))).await?;
        let Some(partial) = partial else { return Ok(()) };
        let arrived = self.receive(repository, descriptor, partial, progress).await.map_err(|(_, reason)| reason)?;
        commit(arrived).await.map_err(|reason| named(reason, repository, descriptor))
    }

    /// Receives the rest of a blob. A failure gives the part back, unless it was the disk's.
    async fn receive(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
        mut partial: PartialBlob,
        progress: &OnProgress,
    ) -> Result<PartialBlob, (Option<PartialBlob>, StepError)> {
        let mut current = partial.offset();
        let mut blob = match self.client.blob(repository, descriptor, current).await {
            Ok(blob) => blob,
            Err(error) => return Err((Some(partial), registry_error(&error))),
        };
        progress(current);
        let (pieces, mut queue) = mpsc::channel::<bytes::Bytes>(WAITING_PIECES);
        let wanted = descriptor.clone();
        let writer = tokio::task::spawn_blocking(move || {
            while let Some(piece) = queue.blocking_recv() {
                partial.write(&piece).map_err(|error| fetch_failed(&wanted)(&error))?;
            }
            Ok(partial)
        });
        let mut failure = None;
        loop {
            match blob.chunk().await {
                Ok(Some(piece)) => {
                    current += piece.len() as u64;
                    if pieces.send(piece).await.is_err() {
                        // The writer says why.
                        break;
                    }
                    progress(current);
                }
                Ok(None) => break,
                Err(error) => {
                    failure = Some(registry_error(&error));
                    break;
                }
            }
        }
        drop(pieces);
        let written = match writer.await {
            Ok(written) => written,
            Err(error) => Err(internal(format!("a blocking task ended: {error}"))),
        };
        match (written, failure) {
            (Err(error), _) => Err((None, error)),
            (Ok(partial), Some(failure)) => Err((Some(partial), failure)),
            (Ok(partial), None) => Ok(partial),
        }
    }
}

async fn commit(arrived: PartialBlob) -> Result<(), StepError> {
    on_disk(move || arrived.commit().map_err(|error| StepError::store("cannot keep a blob that arrived", &error))).await
}

/// A document of the store, if it is there and good.
pub(super) fn stored_document(store: &Store, descriptor: &Descriptor) -> Result<Option<Vec<u8>>, StepError> {
    store
        .read_blob(&descriptor.digest, build_engine_oci::MAX_CONFIG_BYTES)
        .map_err(|error| StepError::store("cannot read a document of an image", &error))
}

fn fetch_failed(descriptor: &Descriptor) -> impl Fn(&build_engine_store::Error) -> StepError + use<> {
    let digest = descriptor.digest.clone();
    move |error| fetch_error(&digest, error)
}

fn fetch_error(digest: &Digest, error: &build_engine_store::Error) -> StepError {
    StepError::store(&format!("cannot fetch blob {digest}"), error)
}

fn named(mut error: StepError, repository: &Reference, descriptor: &Descriptor) -> StepError {
    if error.kind == ExitKind::Integrity {
        error.report.message =
            format!("blob {} of `{}` is not what its digest says", descriptor.digest, repository.name());
        error.report.hint = Some("nothing of it was kept; if it stays so, the registry's copy is damaged".into());
    }
    error
}

/// Runs work on the disk where it may block.
pub(super) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StepError> + Send + 'static,
) -> Result<T, StepError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(internal(format!("a blocking task ended: {error}"))),
    }
}

/// What a registry, or the way to it, refused.
pub(super) fn registry_error(error: &registry::Error) -> StepError {
    let (kind, rule) = match error.kind() {
        registry::Kind::Input => (ExitKind::Input, "registry"),
        registry::Kind::Source => (ExitKind::Source, "registry"),
        registry::Kind::Integrity => (ExitKind::Integrity, "integrity"),
        registry::Kind::Limit => (ExitKind::Limit, "limit"),
        registry::Kind::Io => (ExitKind::Io, "io"),
        registry::Kind::Denied => (ExitKind::Denied, "denied"),
    };
    let mut report = Report::new(rule, error.to_string());
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        report.causes.push(cause.to_string());
        next = cause.source();
    }
    report.hint = error.hint();
    StepError::new(kind, report)
}

/// As [`registry_error`], for a name that may have been meant as that of a stage.
fn unresolved(error: &registry::Error) -> StepError {
    let mut failure = registry_error(error);
    if failure.kind == ExitKind::Source {
        failure.report.rule = UNKNOWN_IMAGE.into();
    }
    failure
}

/// A blob of the store, as what is pushed.
pub(super) struct StoredBlob {
    pub(super) store: Store,
    pub(super) descriptor: Descriptor,
}

impl Content for StoredBlob {
    fn open(&self, offset: u64) -> std::io::Result<Box<dyn std::io::Read + Send>> {
        use std::io::Seek;
        let found =
            self.store.open_blob(&self.descriptor.digest, Some(self.descriptor.size)).map_err(std::io::Error::other)?;
        let Some((mut file, _)) = found else { return Err(std::io::ErrorKind::NotFound.into()) };
        file.seek(std::io::SeekFrom::Start(offset))?;
        Ok(Box::new(file))
    }
}
