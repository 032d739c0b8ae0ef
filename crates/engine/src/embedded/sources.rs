//! Where files come from: images of the store, of registries and of OCI layouts, and local contexts.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use build_engine_dockerfile::ignore::Ignore;
use build_engine_frontend::Answer;
use build_engine_graph::{EventSink, SourceOp};
use build_engine_oci::{Descriptor, DiffId, Digest, ImageConfig, Platform, Reference, media_type};
use build_engine_store::content_hash::Listing;
use build_engine_store::{Following, Lease, Snapshot, StatIndex, Store};
use tokio::sync::{OnceCell, oneshot};
use tokio::task::JoinHandle;

use super::bundle::io_error;
use super::events::Meter;
use super::ops::{Part, StepError, internal};
use super::remote::{OnProgress, Remote, on_disk};
use crate::layout::{FoundImage, Layout, LayoutError};
use crate::{ContextSource, ExitKind, Report};

/// What was found out about a context for keys.
#[derive(Debug, Default)]
pub(super) struct Hashed {
    /// What is in it, listed once for a build.
    pub(super) listing: Option<Listing>,
    pub(super) index: Option<StatIndex>,
}

/// Local files that a build reads in place.
#[derive(Debug)]
pub(super) struct LocalContext {
    /// The directory.
    pub(super) path: PathBuf,
    /// What of it the build does not see.
    pub(super) ignore: Ignore,
    /// What the source vertex calls it.
    pub(super) name: String,
    /// What keys were made from.
    pub(super) hashed: Mutex<Hashed>,
    /// Whether it is not as it was then.
    pub(super) changed: AtomicBool,
    /// What of it was made a snapshot in this build.
    pub(super) materialized: super::materialize::Materialized,
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
        let name = source.identifier.strip_prefix("local://").unwrap_or(&source.identifier).to_owned();
        Ok(Self {
            path: path.to_owned(),
            ignore,
            name,
            materialized: Default::default(),
            hashed: Mutex::default(),
            changed: AtomicBool::new(false),
        })
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
    /// The store, and the repositories that what it lacks can be fetched from.
    Store(Vec<Reference>),
}

/// How the names of a build's images are resolved.
#[derive(Debug, Clone, Default)]
pub(super) struct Policy {
    /// Registries are asked, whatever the store has.
    pub(super) pull: bool,
    /// What stands in the lock file: digests by canonical reference.
    pub(super) lock: BTreeMap<String, Digest>,
    /// A name that the lock file lacks is an error.
    pub(super) locked: bool,
}

/// The images of one build: each name is resolved once.
pub(super) struct Images {
    remote: Arc<Remote>,
    policy: Policy,
    roots: Mutex<BTreeMap<String, Arc<OnceCell<Root>>>>,
    pinned: Mutex<HashMap<(Digest, String), Arc<PinnedImage>>>,
}

/// What a name stands for in this build.
#[derive(Debug, Clone)]
pub(super) struct Root {
    pub(super) descriptor: Descriptor,
    /// Repositories that have what the store lacks of it.
    pub(super) repositories: Vec<Reference>,
}

impl Images {
    pub(super) fn new(remote: Arc<Remote>, policy: Policy) -> Self {
        Self { remote, policy, roots: Mutex::default(), pinned: Mutex::default() }
    }

    /// Answers the frontend's question for an image.
    pub(super) async fn resolve(&self, identifier: &str, platform: &Platform) -> Result<Answer, StepError> {
        let image = self.open(identifier, platform).await?;
        Ok(Answer::ImageConfig {
            identifier: identifier.to_owned(),
            digest: image.found.root.digest.clone(),
            config: image.found.config.clone(),
        })
    }

    /// Finds an image by an identifier that people wrote, and remembers what it was found to be.
    pub(super) async fn open(&self, identifier: &str, platform: &Platform) -> Result<Arc<PinnedImage>, StepError> {
        let image = if identifier.starts_with("oci-layout://") {
            let (identifier, platform) = (identifier.to_owned(), platform.clone());
            on_disk(move || in_layout(&identifier, &platform)).await?
        } else {
            let name = identifier.strip_prefix("docker-image://").unwrap_or(identifier);
            let reference: Reference =
                name.parse().map_err(|error: build_engine_oci::InvalidReference| internal(error.to_string()))?;
            let root = self.root(&reference.or_latest()).await?;
            let found = self.remote.image(&root.repositories, &root.descriptor, platform).await?;
            PinnedImage { found, origin: Origin::Store(root.repositories) }
        };
        refuse_environment(&image.found)?;
        let key = (image.found.root.digest.clone(), platform.to_string());
        let image = Arc::new(image);
        lock(&self.pinned).insert(key, Arc::clone(&image));
        Ok(image)
    }

    /// What a name stands for. Asked twice, the answer is the same, even if a registry would now give another one.
    async fn root(&self, reference: &Reference) -> Result<Root, StepError> {
        let cell = Arc::clone(lock(&self.roots).entry(reference.to_string()).or_default());
        cell.get_or_try_init(|| self.find_root(reference)).await.cloned()
    }

    /// Digests of all names that were resolved, for a lock file.
    pub(super) fn resolved(&self) -> BTreeMap<String, Digest> {
        let of = |cell: &OnceCell<Root>| cell.get().map(|root| root.descriptor.digest.clone());
        lock(&self.roots).iter().filter_map(|(name, cell)| Some((name.clone(), of(cell)?))).collect()
    }

    async fn find_root(&self, reference: &Reference) -> Result<Root, StepError> {
        let pinned = match (reference.digest(), self.policy.lock.get(&reference.to_string())) {
            (Some(_), _) => Some(reference.clone()),
            (None, Some(digest)) => Some(reference.clone().with_digest(digest.clone())),
            (None, None) if self.policy.locked => {
                let message = format!("`{}` is not in the lock file", reference.familiar());
                let hint = "`build-engine lock` adds what is missing";
                return Err(StepError::new(ExitKind::Input, Report::new("locked", message).hint(hint)));
            }
            (None, None) => None,
        };
        let (store, wanted) = (self.remote.store().clone(), pinned.clone().unwrap_or_else(|| reference.clone()));
        let ask = pinned.is_none() && self.policy.pull;
        let found = on_disk(move || if ask { Ok(None) } else { known(&store, &wanted) }).await?;
        if let Some(root) = found {
            return Ok(root);
        }
        let reference = pinned.as_ref().unwrap_or(reference);
        let descriptor = self.remote.resolve(reference).await?;
        Ok(Root { descriptor, repositories: vec![reference.clone()] })
    }

    /// What the store knows of a name; registries are not asked.
    pub(super) async fn in_store(&self, reference: &Reference) -> Result<Option<Root>, StepError> {
        let (store, reference) = (self.remote.store().clone(), reference.clone());
        on_disk(move || known(&store, &reference)).await
    }

    /// Notes which repositories have the blobs of an image, so that what the store lacks can be brought.
    pub(super) async fn know(&self, repositories: &[Reference], blobs: &[Descriptor]) -> Result<(), StepError> {
        let digests: Vec<Digest> = blobs.iter().map(|blob| blob.digest.clone()).collect();
        let names: Vec<String> = repositories.iter().map(Reference::name).collect();
        let store = self.remote.store().clone();
        on_disk(move || {
            names.iter().try_for_each(|name| {
                store
                    .add_origins(name, &digests)
                    .map_err(|error| StepError::store("cannot remember where blobs come from", &error))
            })
        })
        .await
    }

    /// The image that a pinned source identifier names.
    pub(super) fn pinned(&self, identifier: &str, platform: Option<&Platform>) -> Result<Arc<PinnedImage>, StepError> {
        let unknown = || internal(format!("the image `{identifier}` was not resolved"));
        let digest: Digest =
            identifier.rsplit_once('@').and_then(|(_, digest)| digest.parse().ok()).ok_or_else(unknown)?;
        let platform = platform.map_or_else(|| Platform::host().to_string(), ToString::to_string);
        lock(&self.pinned).get(&(digest, platform)).cloned().ok_or_else(unknown)
    }

    /// The image with this manifest, if it is one of this build's.
    pub(super) fn with_manifest(&self, digest: &Digest) -> Option<Arc<PinnedImage>> {
        lock(&self.pinned).values().find(|image| image.found.manifest_descriptor.digest == *digest).cloned()
    }

    /// Brings the layers of an image into the store as trees, those that are not there yet. What is missing is fetched,
    /// and unpacked while it arrives.
    pub(super) async fn unpack(
        &self,
        lease: &Arc<Lease>,
        image: &Arc<PinnedImage>,
        vertex: &Digest,
        events: &Arc<dyn EventSink>,
    ) -> Result<Snapshot, StepError> {
        let (diff_ids, store) = (image.diff_ids()?, self.remote.store().clone());
        let layers = &image.found.manifest.layers;
        let (mut ids, mut first) = (Vec::new(), 0);
        // From the first that is missing on, those above it have other layers below them than any tree there is.
        while let Some(diff_id) = diff_ids.get(first) {
            let (store, lease, diff_id, base) =
                (store.clone(), Arc::clone(lease), diff_id.clone(), Snapshot::new(ids.clone()));
            let failed = unpack_failed(&layers[first]);
            let known = on_disk(move || {
                // Found, and kept from now on.
                let known = store.layer_for_diff_id(&diff_id, &base).map_err(|error| failed(&error))?;
                let Some(id) = known else { return Ok(None) };
                let held = lease.hold(&Snapshot::new(vec![id.clone()])).map_err(|error| failed(&error))?;
                Ok(held.then_some(id))
            });
            match known.await? {
                Some(id) => ids.push(id),
                None => break,
            }
            first += 1;
        }
        let mut fetches = Fetches::start(&self.remote, image, first, vertex, events);
        for (index, (descriptor, diff_id)) in layers.iter().zip(diff_ids).enumerate().skip(first) {
            let meter = Meter::new(events, vertex, "extracting", descriptor);
            let base = Snapshot::new(ids.clone());
            let following = fetches.reader(index).await?;
            meter.at(0);
            let read_along = following.is_some();
            let apply = |following: Option<Following>| {
                let (store, image, layer) = (store.clone(), Arc::clone(image), descriptor.clone());
                let (diff_id, base) = (diff_id.clone(), base.clone());
                on_disk(move || {
                    let applied = match (following, &image.origin) {
                        (Some(following), _) => store.apply_following(&layer, &diff_id, &base, following),
                        (None, Origin::Layout(layout)) => {
                            let reader = layout.open_blob(&layer.digest).map_err(|error| layout_error(&error))?;
                            store.apply_blob(&layer, &diff_id, &base, reader)
                        }
                        (None, Origin::Store(_)) => store.apply_stored_blob(&layer, &diff_id, &base),
                    };
                    applied.map_err(|error| unpack_error(&layer, &error))
                })
            };
            let id = match apply(following).await {
                Ok(id) => id,
                Err(error) => match fetches.failure(index).await {
                    // That a blob did not arrive is what the one who fetched it can explain.
                    Some(reason) => return Err(reason),
                    // It did: what was read along was thrown away, and it was fetched once more from the start.
                    None if read_along && error.kind != ExitKind::Integrity => apply(None).await?,
                    None => return Err(error),
                },
            };
            ids.push(id);
            meter.done();
        }
        fetches.finish().await?;
        Ok(Snapshot::new(ids))
    }

    /// Brings all parts of a tree into the store and stacks them.
    pub(super) async fn materialize(
        &self,
        lease: &Arc<Lease>,
        parts: &[Part],
        vertex: &Digest,
        events: &Arc<dyn EventSink>,
    ) -> Result<Snapshot, StepError> {
        let mut snapshots = Vec::with_capacity(parts.len());
        for part in parts {
            snapshots.push(match part {
                Part::Image(image) => self.unpack(lease, image, vertex, events).await?,
                Part::Layers(snapshot) => snapshot.clone(),
            });
        }
        Ok(Snapshot::merge(&snapshots))
    }

    /// Makes sure that a blob of one of the build's images is in the store. Whether it could.
    pub(super) async fn bring_blob(&self, descriptor: &Descriptor) -> Result<bool, StepError> {
        let (store, wanted) = (self.remote.store().clone(), descriptor.clone());
        let has = |image: &&Arc<PinnedImage>| {
            image.found.manifest.layers.iter().any(|layer| layer.digest == descriptor.digest)
        };
        let images: Vec<_> = lock(&self.pinned).values().filter(has).cloned().collect();
        for image in images {
            match &image.origin {
                Origin::Layout(layout) => {
                    let (store, layout, wanted) = (store.clone(), layout.clone(), wanted.clone());
                    on_disk(move || import_blob(&store, &layout, &wanted)).await?;
                    return Ok(true);
                }
                Origin::Store(repositories) if !repositories.is_empty() => {
                    let nobody: OnProgress = Arc::new(|_| {});
                    self.remote.fetch(repositories, descriptor, None, &nobody).await?;
                    return Ok(true);
                }
                Origin::Store(_) => {}
            }
        }
        let repositories = on_disk(move || {
            let known = store.origins(&wanted.digest);
            known.map_err(|error| StepError::store("cannot look for a blob's origin", &error))
        })
        .await?;
        let repositories: Vec<Reference> = repositories.iter().filter_map(|name| name.parse().ok()).collect();
        if repositories.is_empty() {
            return Ok(false);
        }
        let nobody: OnProgress = Arc::new(|_| {});
        self.remote.fetch(&repositories, descriptor, None, &nobody).await?;
        Ok(true)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn in_layout(identifier: &str, platform: &Platform) -> Result<PinnedImage, StepError> {
    let source = ContextSource::parse(identifier)
        .map_err(|error| StepError::new(ExitKind::Input, Report::new("invalid-context", error.to_string())))?;
    let ContextSource::OciLayout { path, tag, digest } = source else {
        return Err(internal("an OCI layout is no OCI layout"));
    };
    let layout = Layout::open(&path).map_err(|error| layout_error(&error))?;
    let found = layout.find(tag.as_deref(), digest.as_ref(), platform).map_err(|error| layout_error(&error))?;
    Ok(PinnedImage { found, origin: Origin::Layout(layout) })
}

/// Copies a blob from a layout into the store.
pub(super) fn import_blob(store: &Store, layout: &Layout, descriptor: &Descriptor) -> Result<(), StepError> {
    if store.has_blob(&descriptor.digest, Some(descriptor.size)) {
        return Ok(());
    }
    let failed = unpack_failed(descriptor);
    let mut reader = layout.open_blob(&descriptor.digest).map_err(|error| layout_error(&error))?;
    let mut writer = store.blob_writer().map_err(|error| failed(&error))?;
    std::io::copy(&mut reader, &mut writer)
        .map_err(|error| io_error(&format!("cannot copy blob {}", descriptor.digest), &error))?;
    writer.commit(Some((&descriptor.digest, descriptor.size))).map_err(|error| failed(&error))?;
    Ok(())
}

/// An environment that is none would be read in two ways: what has no value must not be taken from ours.
fn refuse_environment(found: &FoundImage) -> Result<(), StepError> {
    let config: ImageConfig = serde_json::from_slice(&found.config)
        .map_err(|error| internal(format!("a config that was read before does not parse: {error}")))?;
    let wrong = |entry: &&String| entry.contains('\0') || entry.split_once('=').is_none_or(|(name, _)| name.is_empty());
    match config.config.env.iter().find(wrong) {
        None => Ok(()),
        Some(entry) => {
            let message = format!(
                "the config {} has the entry `{}` in its environment, which is not NAME=value",
                found.manifest.config.digest,
                entry.escape_debug()
            );
            Err(StepError::new(ExitKind::Integrity, Report::new("integrity", message)))
        }
    }
}

impl PinnedImage {
    /// Whether what the store lacks of it can be fetched at any time.
    pub(super) fn is_remote(&self) -> bool {
        matches!(&self.origin, Origin::Store(repositories) if !repositories.is_empty())
    }

    /// The diff IDs of the layers, as many as there are layers.
    pub(super) fn diff_ids(&self) -> Result<Vec<DiffId>, StepError> {
        let config: ImageConfig = serde_json::from_slice(&self.found.config)
            .map_err(|error| internal(format!("a config that was read before does not parse: {error}")))?;
        let (layers, diff_ids) = (&self.found.manifest.layers, config.rootfs.diff_ids);
        if let Some(layer) = layers.iter().find(|layer| !media_type::is_layer(&layer.media_type)) {
            let message = format!(
                "blob {} of the image has the media type `{}`, which is no layer",
                layer.digest,
                layer.media_type.escape_debug()
            );
            return Err(StepError::new(ExitKind::Integrity, Report::new("integrity", message)));
        }
        if layers.len() == diff_ids.len() {
            return Ok(diff_ids);
        }
        let message = format!(
            "image {} has {} layers in its manifest and {} in its config",
            self.found.manifest_descriptor.digest,
            layers.len(),
            diff_ids.len()
        );
        Err(StepError::new(ExitKind::Integrity, Report::new("integrity", message)))
    }
}

/// The layers of one image on their way into the store. Dropped, it stops them.
struct Fetches {
    running: BTreeMap<usize, Fetch>,
}

struct Fetch {
    task: JoinHandle<Result<(), StepError>>,
    reader: Option<oneshot::Receiver<Option<Following>>>,
}

impl Drop for Fetches {
    fn drop(&mut self) {
        for fetch in self.running.values() {
            fetch.task.abort();
        }
    }
}

impl Fetches {
    /// Begins to fetch the layers from `first` on that are not in the store. Those of a layout are read where they are.
    fn start(
        remote: &Arc<Remote>,
        image: &Arc<PinnedImage>,
        first: usize,
        vertex: &Digest,
        events: &Arc<dyn EventSink>,
    ) -> Self {
        let Origin::Store(repositories) = &image.origin else { return Self { running: BTreeMap::new() } };
        let mut running = BTreeMap::new();
        for (index, layer) in image.found.manifest.layers.iter().enumerate().skip(first) {
            let meter = Arc::new(Meter::new(events, vertex, "downloading", layer));
            let (sender, reader) = oneshot::channel();
            let (remote, repositories, layer) = (Arc::clone(remote), repositories.clone(), layer.clone());
            let task = tokio::spawn(async move {
                let arriving = Arc::clone(&meter);
                let progress: OnProgress = Arc::new(move |current| arriving.at(current));
                let repositories = match &repositories[..] {
                    // An image that was made here, whose lower layers may still be where its base is.
                    [] => missing_from(&remote, &layer).await?,
                    _ => repositories,
                };
                if repositories.is_empty() {
                    return Ok(());
                }
                remote.fetch(&repositories, &layer, Some(sender), &progress).await?;
                meter.done();
                Ok(())
            });
            running.insert(index, Fetch { task, reader: Some(reader) });
        }
        Self { running }
    }

    /// A reader of what arrives of a layer; `None` where it is there already.
    async fn reader(&mut self, index: usize) -> Result<Option<Following>, StepError> {
        let Some(fetch) = self.running.get_mut(&index) else { return Ok(None) };
        let Some(reader) = fetch.reader.take() else { return Ok(None) };
        match reader.await {
            Ok(following) => Ok(following),
            // It ended before there was anything to read.
            Err(_) => match self.failure(index).await {
                Some(error) => Err(error),
                None => Ok(None),
            },
        }
    }

    /// Why a layer did not arrive, if that is so.
    async fn failure(&mut self, index: usize) -> Option<StepError> {
        let mut fetch = self.running.remove(&index)?;
        match (&mut fetch.task).await {
            Ok(result) => result.err(),
            Err(error) => Some(internal(format!("a download ended: {error}"))),
        }
    }

    async fn finish(&mut self) -> Result<(), StepError> {
        while let Some(index) = self.running.keys().next().copied() {
            if let Some(error) = self.failure(index).await {
                return Err(error);
            }
        }
        Ok(())
    }
}

/// The repositories that have a layer which the store lacks; none if it is there.
async fn missing_from(remote: &Remote, layer: &Descriptor) -> Result<Vec<Reference>, StepError> {
    let (store, layer) = (remote.store().clone(), layer.clone());
    on_disk(move || {
        if store.has_blob(&layer.digest, Some(layer.size)) {
            return Ok(Vec::new());
        }
        let known = origins(&store, &layer.digest)?;
        if known.is_empty() {
            let message = format!("layer {} of an image in the store is gone or damaged", layer.digest);
            let hint = "build the image again, or load it from where it came";
            return Err(StepError::new(ExitKind::Integrity, Report::new("integrity", message).hint(hint)));
        }
        Ok(known)
    })
    .await
}

fn unpack_failed(descriptor: &Descriptor) -> impl Fn(&build_engine_store::Error) -> StepError + use<> {
    let descriptor = descriptor.clone();
    move |error| unpack_error(&descriptor, error)
}

fn unpack_error(descriptor: &Descriptor, error: &build_engine_store::Error) -> StepError {
    StepError::store(&format!("cannot unpack layer {}", descriptor.digest), error)
}

/// What the store knows of a reference: a blob of that digest, what a registry said, or a name; whichever is newest.
fn known(store: &Store, reference: &Reference) -> Result<Option<Root>, StepError> {
    let failed = |error: build_engine_store::Error| StepError::store("cannot look for an image in the store", &error);
    let descriptor = match reference.digest() {
        Some(digest) => {
            // The media type stands in the document itself.
            let bytes = store.read_blob(digest, build_engine_oci::MAX_CONFIG_BYTES).map_err(failed)?;
            let parsed = bytes.map(|bytes| {
                let parsed = build_engine_oci::parse_document(&bytes, "");
                parsed.map(|parsed| Descriptor::new(media_type_of(&parsed), digest.clone(), bytes.len() as u64))
            });
            parsed
                .transpose()
                .map_err(|source| layout_error(&LayoutError::Invalid { digest: digest.clone(), source }))?
        }
        None => match store.resolved(reference).map_err(failed)? {
            Some(descriptor) => Some(descriptor),
            None => {
                let Some(name) = store.name(reference).map_err(failed)? else { return Ok(None) };
                // A name that was given here may stand for something else at the registry of that name.
                let repositories = origins(store, &name.descriptor.digest)?;
                return Ok(Some(Root { descriptor: name.descriptor, repositories }));
            }
        },
    };
    let Some(descriptor) = descriptor else { return Ok(None) };
    let mut repositories = origins(store, &descriptor.digest)?;
    // Whoever names an image by digest alone has no repository in mind, and the store has all of what was made here.
    let named = reference.digest().is_none() || repositories.is_empty();
    if named && !repositories.iter().any(|known| known.name() == reference.name()) {
        repositories.insert(0, reference.clone());
    }
    Ok(Some(Root { descriptor, repositories }))
}

/// Repositories that have had a blob.
pub(super) fn origins(store: &Store, digest: &Digest) -> Result<Vec<Reference>, StepError> {
    let known = store.origins(digest).map_err(|error| StepError::store("cannot look for a blob's origin", &error))?;
    Ok(known.iter().filter_map(|name| name.parse().ok()).collect())
}

fn media_type_of(parsed: &build_engine_oci::Parsed) -> String {
    use build_engine_oci::Parsed;
    match parsed {
        Parsed::Manifest(manifest) => manifest.media_type.clone().unwrap_or_else(|| media_type::OCI_MANIFEST.into()),
        Parsed::Index(index) => index.media_type.clone().unwrap_or_else(|| media_type::OCI_INDEX.into()),
    }
}

pub(super) fn layout_error(error: &LayoutError) -> StepError {
    let (kind, rule) = match error {
        error if error.is_limit() => (ExitKind::Limit, "limit"),
        error if error.is_integrity() => (ExitKind::Integrity, "integrity"),
        _ => (ExitKind::Source, "image"),
    };
    let mut report = Report::new(rule, "cannot use an image");
    let mut causes = Report::new("", "").caused_by(error).causes.into_iter();
    // The first cause is the finding itself.
    if let Some(first) = causes.next() {
        report.message = first;
    }
    report.causes = causes.collect();
    StepError::new(kind, report)
}
