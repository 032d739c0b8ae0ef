//! Bringing images from one place to another without unpacking them: pull, push, copy, save and load are all this.
//!
//! An image is first read as far as its documents go; its blobs then move directly from where they are to where they
//! shall be. What comes from a registry passes through the store, where what arrived is kept if the rest does not.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use build_engine_graph::EventSink;
use build_engine_oci::{
    Descriptor, Digest, ImageConfig, MAX_DESCRIPTORS, Parsed, Reference, media_type, parse_document,
};
use build_engine_store::{Lease, Store};
use futures::StreamExt;
use futures::future::BoxFuture;

use super::build::{Engine, blocking, step_error};
use super::bundle::{Blobs, Bundle, write_layout};
use super::events::Work;
use super::ops::StepError;
use super::push::Push;
use super::remote::{OnProgress, Remote, UNKNOWN_IMAGE, on_disk};
use super::sources::{Images, Policy, import_blob, layout_error};
use crate::image::Document;
use crate::layout::{self, Layout, LayoutError, MAX_INDEX_DEPTH};
use crate::place::{ImageDetails, ImagePlace, PlatformDetails, TransferRequest, Transferred, Variants};
use crate::{BuildError, ExitKind, OutputDest, Report};

/// How many blobs are looked for at once; how many are fetched, [`Remote`] decides.
const FETCHES: usize = 8;

/// A name of the store as people give it: a reference, or a digest alone.
pub(super) fn reference(image: &str) -> Result<Reference, StepError> {
    let text = match image.parse::<Digest>() {
        Ok(digest) => format!("image@{digest}"),
        Err(_) => image.to_owned(),
    };
    text.parse::<Reference>()
        .map(Reference::or_latest)
        .map_err(|error| StepError::new(ExitKind::Input, Report::new("invalid-reference", error.to_string())))
}

/// Where documents and blobs of one image are read.
enum Source {
    Layout(Layout),
    /// The store, and the repositories that have what it lacks.
    Store(Vec<Reference>),
}

impl Source {
    async fn document(&self, remote: &Remote, descriptor: &Descriptor) -> Result<Vec<u8>, StepError> {
        match self {
            Self::Layout(layout) => {
                let (layout, descriptor) = (layout.clone(), descriptor.clone());
                on_disk(move || layout.document(&descriptor).map_err(|error| layout_error(&error))).await
            }
            Self::Store(repositories) => remote.document_of(repositories, descriptor).await,
        }
    }

    fn blobs(&self, store: &Store) -> Blobs {
        match self {
            Self::Layout(layout) => Blobs::Layout(layout.clone()),
            Self::Store(_) => Blobs::Store(store.clone()),
        }
    }
}

impl Engine {
    /// Brings images from one place to another.
    pub(super) async fn transfer(
        &self,
        request: TransferRequest,
        sink: Arc<dyn EventSink>,
    ) -> Result<Vec<Transferred>, BuildError> {
        let lease = self.parts.store.lease().map_err(|error| StepError::store("cannot take a lease", &error))?;
        let transfer = Transfer {
            remote: Arc::clone(&self.parts.remote),
            images: Images::new(Arc::clone(&self.parts.remote), Policy::default()),
            lease: Arc::new(lease),
            sink,
        };
        match request {
            TransferRequest::Load { path } => transfer.load(&path).await,
            TransferRequest::Copy { images, variants } => {
                let mut done = Vec::new();
                let mut images = images.into_iter().peekable();
                while let Some((from, to)) = images.next() {
                    // Archives are written as a whole: what else goes into the same one goes along.
                    let mut together = vec![(from, to.clone())];
                    while let Some(next) = images.next_if(|(_, next)| same_archive(&to, next)) {
                        together.push(next);
                    }
                    done.extend(transfer.copy(together, &variants).await?);
                }
                Ok(done)
            }
        }
    }

    /// Gives an image of the store another name.
    pub(super) async fn tag(&self, image: String, name: Reference) -> Result<(), BuildError> {
        let remote = &self.parts.remote;
        let images = Images::new(Arc::clone(remote), Policy::default());
        let (root, source) = find(remote, &images, &ImagePlace::Store { image }).await.map_err(step_error)?;
        let bundle = collect(remote, &source, &root, &Variants::All).await.map_err(step_error)?;
        let store = self.parts.store.clone();
        blocking(move || {
            store
                .set_name(&name.or_latest(), &root, &bundle.platforms)
                .map_err(|error| StepError::store("cannot name an image", &error))
        })
        .await
    }

    /// What an image is made of.
    pub(super) async fn inspect(&self, place: ImagePlace) -> Result<ImageDetails, BuildError> {
        let remote = &self.parts.remote;
        let images = Images::new(Arc::clone(remote), Policy::default());
        let found = find(remote, &images, &place).await;
        let (root, source) = match (found, &place) {
            // Not in the store: its registry may know it.
            (Err(error), ImagePlace::Store { image }) if error.report.rule == UNKNOWN_IMAGE => {
                let place = ImagePlace::Registry { reference: reference(image)? };
                find(remote, &images, &place).await
            }
            (found, _) => found,
        }
        .map_err(step_error)?;
        let bundle = collect(remote, &source, &root, &Variants::All).await.map_err(step_error)?;
        let broken =
            |error: serde_json::Error| BuildError::internal(format!("a document that was read before: {error}"));
        let bytes_of = |digest: &Digest| {
            bundle.documents.iter().find(|document| document.descriptor.digest == *digest).map(|found| &found.bytes)
        };
        let mut details = Vec::new();
        for document in &bundle.documents {
            if !media_type::is_manifest(&document.descriptor.media_type) {
                continue;
            }
            let manifest: build_engine_oci::Manifest = serde_json::from_slice(&document.bytes).map_err(broken)?;
            let Some(config) = bytes_of(&manifest.config.digest) else { continue };
            let config: ImageConfig = serde_json::from_slice(config).map_err(broken)?;
            let platform = document.descriptor.platform.clone().unwrap_or_else(|| config.platform());
            details.push(PlatformDetails {
                platform,
                manifest: document.descriptor.clone(),
                config_digest: manifest.config.digest,
                config,
                layers: manifest.layers,
            });
        }
        let document = bytes_of(&root.digest).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        Ok(ImageDetails { descriptor: root, document: document.unwrap_or_default(), images: details })
    }
}

/// An image that the store does not have.
pub(super) fn no_image(name: &str) -> StepError {
    let report = Report::new(UNKNOWN_IMAGE, format!("the store has no image named `{name}`"));
    StepError::new(ExitKind::Input, report.hint("`build-engine images ls` lists the images"))
}

fn same_archive(a: &ImagePlace, b: &ImagePlace) -> bool {
    use ImagePlace::{DockerArchive, OciArchive};
    match (a, b) {
        (DockerArchive { path: a, .. }, DockerArchive { path: b, .. })
        | (OciArchive { path: a, .. }, OciArchive { path: b, .. }) => a == b,
        _ => false,
    }
}

/// Finds an image where it is said to be.
async fn find(remote: &Remote, images: &Images, place: &ImagePlace) -> Result<(Descriptor, Source), StepError> {
    let in_layout = |path: &Path, tag: Option<&str>, digest: Option<&Digest>| {
        let (path, tag, digest) = (path.to_owned(), tag.map(str::to_owned), digest.cloned());
        on_disk(move || {
            let layout = Layout::open(&path).map_err(|error| layout_error(&error))?;
            let root = layout.root(tag.as_deref(), digest.as_ref()).map_err(|error| layout_error(&error))?;
            Ok((root, Source::Layout(layout)))
        })
    };
    match place {
        ImagePlace::Registry { reference } => {
            let root = remote.resolve(reference).await?;
            Ok((root, Source::Store(vec![reference.clone()])))
        }
        ImagePlace::Store { image } => {
            let wanted = reference(image)?;
            let found = images.in_store(&wanted).await?.ok_or_else(|| no_image(image))?;
            Ok((found.descriptor, Source::Store(found.repositories)))
        }
        ImagePlace::Layout { path, tag, digest } => in_layout(path, tag.as_deref(), digest.as_ref()).await,
        ImagePlace::OciArchive { path, tag } => in_layout(path, tag.as_deref(), None).await,
        ImagePlace::DockerArchive { path, reference } => {
            let name = reference.as_ref().map(ToString::to_string);
            in_layout(path, name.as_deref(), None).await
        }
    }
}

/// Reads the documents of an image, as many as `variants` asks for.
async fn collect(
    remote: &Remote,
    source: &Source,
    root: &Descriptor,
    variants: &Variants,
) -> Result<Bundle, StepError> {
    let mut bundle =
        Bundle { root: root.clone(), documents: Vec::new(), blobs: Vec::new(), platforms: Vec::new(), single: None };
    let mut seen = BTreeSet::new();
    let mut blobs = BTreeSet::new();
    // Depth first: (document, how deep it stands).
    let mut queue = vec![(root.clone(), 0)];
    let mut manifests = Vec::new();
    let mut indexes = Vec::new();
    let limit = |error: LayoutError| layout_error(&error);
    while let Some((descriptor, depth)) = queue.pop() {
        if !seen.insert(descriptor.digest.clone()) {
            continue;
        }
        if depth > MAX_INDEX_DEPTH {
            return Err(limit(LayoutError::TooDeep));
        }
        if seen.len() > MAX_DESCRIPTORS {
            let message = format!("the image has more than {MAX_DESCRIPTORS} documents");
            return Err(StepError::new(ExitKind::Limit, Report::new("limit", message)));
        }
        let bytes = source.document(remote, &descriptor).await?;
        let parsed = parse_document(&bytes, &descriptor.media_type)
            .map_err(|error| limit(LayoutError::Invalid { digest: descriptor.digest.clone(), source: error }))?;
        let document = Document { descriptor: descriptor.clone(), bytes };
        match parsed {
            Parsed::Index(index) => {
                match variants {
                    Variants::All => queue.extend(index.manifests.into_iter().map(|child| (child, depth + 1))),
                    Variants::Only(platform) => {
                        let child = layout::choose(&index, platform).map_err(limit)?;
                        queue.push((child, depth + 1));
                    }
                }
                indexes.push(document);
            }
            Parsed::Manifest(manifest) => {
                let manifest = *manifest;
                let config = source.document(remote, &manifest.config).await?;
                if media_type::is_config(&manifest.config.media_type) {
                    let parsed: ImageConfig = serde_json::from_slice(&config).map_err(|error| {
                        limit(LayoutError::Malformed { digest: manifest.config.digest.to_string(), source: error })
                    })?;
                    let platform = descriptor.platform.clone().unwrap_or_else(|| parsed.platform());
                    // Attestations stand beside images as if they ran on something that nobody knows.
                    if platform.os != "unknown" {
                        bundle.platforms.push(platform);
                    }
                }
                for layer in &manifest.layers {
                    if blobs.insert(layer.digest.clone()) {
                        bundle.blobs.push(layer.clone());
                    }
                }
                let config = Document { descriptor: manifest.config.clone(), bytes: config };
                bundle.single = Some((manifest.config, manifest.layers));
                manifests.extend([config, document]);
            }
        }
    }
    if matches!(variants, Variants::Only(_)) {
        // An index whose other manifests are left out would lead nowhere.
        if let Some(manifest) = manifests.last() {
            bundle.root = manifest.descriptor.clone();
        }
        indexes.clear();
    }
    bundle.single = bundle.single.filter(|_| manifests.len() == 2);
    bundle.documents = manifests;
    bundle.documents.extend(indexes.into_iter().rev());
    Ok(bundle)
}

struct Transfer {
    remote: Arc<Remote>,
    images: Images,
    lease: Arc<Lease>,
    sink: Arc<dyn EventSink>,
}

impl Transfer {
    /// Brings images to one target each, or to one archive together.
    async fn copy(
        &self,
        images: Vec<(ImagePlace, ImagePlace)>,
        variants: &Variants,
    ) -> Result<Vec<Transferred>, BuildError> {
        let names: Vec<String> = images.iter().map(|(from, to)| format!("{from} to {to}")).collect();
        let work = Work::start(&self.sink, &format!("copying {}", names.join(", ")));
        let result = self.copy_all(images, variants, &work).await;
        work.done(result.as_ref().map(|_| ()));
        result.map_err(step_error)
    }

    async fn copy_all(
        &self,
        images: Vec<(ImagePlace, ImagePlace)>,
        variants: &Variants,
        work: &Work,
    ) -> Result<Vec<Transferred>, StepError> {
        let store = self.remote.store();
        let mut done = Vec::new();
        let mut archived: Vec<(Bundle, Vec<Reference>, Blobs)> = Vec::new();
        let mut archive = None;
        for (from, to) in images {
            let (root, source) = find(&self.remote, &self.images, &from).await?;
            work.part(format!("resolved {}", root.digest), true);
            let bundle = collect(&self.remote, &source, &root, variants).await?;
            let descriptor = match &to {
                // The name keeps standing for all variants; those that were not asked for come when they are wanted.
                ImagePlace::Store { .. } => root.clone(),
                _ => bundle.root.clone(),
            };
            match &to {
                ImagePlace::Store { image } => {
                    let name = reference(image)?;
                    self.keep(&source, &root, &bundle, &name, work).await?;
                }
                ImagePlace::Registry { reference } => {
                    let push = Push { remote: &self.remote, blobs: &source.blobs(store), images: &self.images, work };
                    if let Source::Store(repositories) = &source {
                        self.images.know(repositories, &bundle.blobs).await?;
                    }
                    push.push(reference, &bundle, reference.digest().is_some() && reference.tag().is_none()).await?;
                }
                ImagePlace::Layout { path, tag, .. } => {
                    self.bring(&source, &bundle, work).await?;
                    let names: Vec<Reference> = tag.iter().filter_map(|tag| layout_name(&from, tag)).collect();
                    let (blobs, path) = (source.blobs(store), path.clone());
                    on_disk(move || write_layout(&blobs, &[(&bundle, &names)], false, &OutputDest::Path(path), false))
                        .await?;
                }
                ImagePlace::OciArchive { tag, .. } => {
                    self.bring(&source, &bundle, work).await?;
                    let names = match tag {
                        Some(tag) => layout_name(&from, tag).into_iter().collect(),
                        None => name_of(&from).into_iter().collect(),
                    };
                    archived.push((bundle, names, source.blobs(store)));
                    archive = Some((to.clone(), false));
                }
                ImagePlace::DockerArchive { reference, .. } => {
                    if bundle.single.is_none() {
                        let message = format!("`{from}` has several platforms, and a docker archive holds one");
                        let hint = "choose one with `--platform`, or write an `oci-archive:`";
                        let report = Report::new("several-platforms", message).hint(hint);
                        return Err(StepError::new(ExitKind::Input, report));
                    }
                    self.bring(&source, &bundle, work).await?;
                    let names = reference.clone().or_else(|| name_of(&from)).into_iter().collect();
                    archived.push((bundle, names, source.blobs(store)));
                    archive = Some((to.clone(), true));
                }
            }
            done.push(Transferred { to, descriptor });
        }
        if let Some((to, docker)) = archive {
            self.archive(archived, &to, docker).await?;
        }
        Ok(done)
    }

    async fn archive(
        &self,
        images: Vec<(Bundle, Vec<Reference>, Blobs)>,
        to: &ImagePlace,
        docker: bool,
    ) -> Result<(), StepError> {
        let (ImagePlace::OciArchive { path, .. } | ImagePlace::DockerArchive { path, .. }) = to else {
            return Ok(());
        };
        let dest = if path.as_os_str() == "-" { OutputDest::Stdout } else { OutputDest::Path(path.clone()) };
        on_disk(move || {
            // Those that come from the store come together; anything else comes alone.
            let named: Vec<_> = images.iter().map(|(bundle, names, _)| (bundle, &names[..])).collect();
            let Some((_, _, blobs)) = images.first() else { return Ok(()) };
            write_layout(blobs, &named, docker, &dest, true)
        })
        .await
    }

    /// Makes sure that the store has the blobs that come from it or through it.
    async fn bring(&self, source: &Source, bundle: &Bundle, work: &Work) -> Result<(), StepError> {
        let Source::Store(repositories) = source else { return Ok(()) };
        let mut blobs: Vec<BoxFuture<'_, Result<(), StepError>>> = Vec::new();
        for blob in &bundle.blobs {
            blobs.push(Box::pin(self.bring_one(repositories, blob, work)));
        }
        let mut fetches = futures::stream::iter(blobs).buffer_unordered(FETCHES);
        while let Some(fetched) = fetches.next().await {
            fetched?;
        }
        Ok(())
    }

    async fn bring_one(&self, repositories: &[Reference], blob: &Descriptor, work: &Work) -> Result<(), StepError> {
        let (store, wanted, lease) = (self.remote.store().clone(), blob.clone(), Arc::clone(&self.lease));
        let there = on_disk(move || {
            lease.hold_blob(&wanted.digest).map_err(|error| StepError::store("cannot hold a blob", &error))?;
            Ok(store.has_blob(&wanted.digest, Some(wanted.size)))
        })
        .await?;
        if there {
            work.meter("already there", blob).done();
            return Ok(());
        }
        if repositories.is_empty() {
            return if self.images.bring_blob(blob).await? { Ok(()) } else { Err(super::export::gone(blob)) };
        }
        let meter = Arc::new(work.meter("downloading", blob));
        let arriving = Arc::clone(&meter);
        let progress: OnProgress = Arc::new(move |current| arriving.at(current));
        self.remote.fetch(repositories, blob, None, &progress).await?;
        meter.done();
        Ok(())
    }

    /// Puts an image into the store, and names it.
    async fn keep(
        &self,
        source: &Source,
        root: &Descriptor,
        bundle: &Bundle,
        name: &Reference,
        work: &Work,
    ) -> Result<(), StepError> {
        self.bring(source, bundle, work).await?;
        if let Source::Layout(layout) = source {
            for blob in &bundle.blobs {
                let (store, layout, blob) = (self.remote.store().clone(), layout.clone(), blob.clone());
                on_disk(move || import_blob(&store, &layout, &blob)).await?;
            }
        }
        // With one variant chosen, the index above it has not been collected.
        let index = source.document(&self.remote, root).await?;
        let (store, documents, root) = (self.remote.store().clone(), bundle.documents.clone(), root.clone());
        let (named, platforms) = (name.clone(), bundle.platforms.clone());
        on_disk(move || {
            let failed = |error| StepError::store("cannot keep an image", &error);
            for bytes in documents.iter().map(|document| &document.bytes).chain([&index]) {
                store.put_blob(bytes).map_err(failed)?;
            }
            store.set_name(&named, &root, &platforms).map_err(failed)
        })
        .await?;
        work.part(format!("naming to {name}"), true);
        Ok(())
    }

    /// Brings all images of an archive or layout into the store, under the names that they have there.
    async fn load(&self, path: &Path) -> Result<Vec<Transferred>, BuildError> {
        let work = Work::start(&self.sink, &format!("loading {}", path.display()));
        let result = self.load_all(path, &work).await;
        work.done(result.as_ref().map(|_| ()));
        result.map_err(step_error)
    }

    async fn load_all(&self, path: &Path, work: &Work) -> Result<Vec<Transferred>, StepError> {
        let file = path.to_owned();
        let (layout, images) = on_disk(move || {
            let layout = Layout::open(&file).map_err(|error| layout_error(&error))?;
            let images = layout.images().map_err(|error| layout_error(&error))?;
            Ok((layout, images))
        })
        .await?;
        let source = Source::Layout(layout);
        let mut done = Vec::new();
        for (names, root) in images {
            let bundle = collect(&self.remote, &source, &root, &Variants::All).await?;
            if names.is_empty() {
                let message = format!("image {} of `{}` has no name", root.digest, path.display());
                let hint = format!("give it one: `build-engine copy oci-archive:{} store:NAME`", path.display());
                return Err(StepError::new(ExitKind::Input, Report::new("nameless", message).hint(hint)));
            }
            for name in names {
                self.keep(&source, &root, &bundle, &name, work).await?;
                let to = ImagePlace::Store { image: name.to_string() };
                done.push(Transferred { to, descriptor: root.clone() });
            }
        }
        Ok(done)
    }
}

/// The name that an image has where it comes from.
fn name_of(from: &ImagePlace) -> Option<Reference> {
    match from {
        ImagePlace::Registry { reference } => Some(reference.clone()),
        ImagePlace::Store { image } => image.parse::<Reference>().ok().map(Reference::or_latest),
        ImagePlace::DockerArchive { reference, .. } => reference.clone(),
        ImagePlace::Layout { .. } | ImagePlace::OciArchive { .. } => None,
    }
    .filter(|name| name.tag().is_some())
}

/// The name under which a layout lists an image with this tag.
fn layout_name(from: &ImagePlace, tag: &str) -> Option<Reference> {
    // A tag may itself be a whole name.
    let name = name_of(from).map_or_else(|| format!("image:{tag}"), |name| format!("{}:{tag}", name.name()));
    name.parse().ok()
}
