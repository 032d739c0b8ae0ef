//! From snapshots to what was asked for: an image in the store, an archive, a directory.
//!
//! Layers become blobs when an exporter first asks for them, once per layer, compression and epoch; all of them at the
//! same time. Files appear under their names when they are complete, and a name in the store is set last.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use build_engine_graph::EventSink;
use build_engine_oci::{Descriptor, Digest, Hasher, ImageConfig, Platform, Reference, layout};
use build_engine_store::layer::{self, compress};
use build_engine_store::{Lease, Snapshot, Store};
use futures::future::try_join_all;

use super::build::{blocking, is_on};
use super::events::Work;
use super::files;
use super::ops::{Parts, StepError};
use super::sources::Images;
use crate::image::{self, Document, ImageLayer};
use crate::{
    Annotation, AnnotationTarget, BuildError, BuildRequest, Compression, ExitKind, ImageOptions, Outcome, Output,
    OutputDest, Report,
};

/// libdeflate's first level packs better than zlib's and is five times as fast as Go's default.
const GZIP_LEVEL: i32 = 1;
/// What the `zstd` program and BuildKit take.
const ZSTD_LEVEL: i32 = 3;

/// The result for one platform, as a tree and an unfinished config.
pub(super) struct Built {
    pub(super) platform: Platform,
    pub(super) snapshot: Snapshot,
    pub(super) image: ImageConfig,
    /// The config of the image it started from, as it was found.
    pub(super) base: Option<ImageConfig>,
    /// `SOURCE_DATE_EPOCH` in seconds.
    pub(super) epoch: Option<i64>,
}

/// A finished image: what it is called by, its documents, and the layers it needs.
struct Image {
    root: Descriptor,
    documents: Vec<Document>,
    layers: Vec<ImageLayer>,
    configs: Vec<Digest>,
    platforms: Vec<Platform>,
    /// Where there is one platform: the config and the layers of its manifest, for `manifest.json`.
    single: Option<(Descriptor, Vec<Descriptor>)>,
}

/// What exporters work with: one finished build.
pub(super) struct Export<'a> {
    pub(super) parts: &'a Arc<Parts>,
    pub(super) request: &'a BuildRequest,
    pub(super) built: Arc<Vec<Built>>,
    pub(super) images: Arc<Images>,
    pub(super) lease: Arc<Lease>,
}

fn describe(output: &Output) -> &'static str {
    match output {
        Output::Image { .. } => "exporting to image",
        Output::Oci { .. } => "exporting to oci image format",
        Output::Docker { .. } => "exporting to docker image format",
        Output::Tar { .. } => "exporting to tar archive",
        Output::Local { .. } => "exporting to client directory",
        Output::CacheOnly => "keeping the result in the cache",
    }
}

impl Export<'_> {
    /// Does what the request's outputs say, one after the other.
    pub(super) async fn run(&self, sink: &Arc<dyn EventSink>) -> Result<Outcome, BuildError> {
        let default = if self.request.tags.is_empty() {
            Output::CacheOnly
        } else {
            Output::Image { names: Vec::new(), options: ImageOptions::default() }
        };
        let outputs =
            if self.request.outputs.is_empty() { std::slice::from_ref(&default) } else { &self.request.outputs[..] };
        let mut outcome = Outcome {
            build_id: self.request.build_id.clone(),
            image: None,
            config: None,
            names: Vec::new(),
            layers: 0,
            size_bytes: 0,
        };
        for output in outputs {
            let work = Work::start(sink, describe(output));
            let result = self.one(output, &work, &mut outcome).await;
            work.done(result.as_ref().copied());
            result?;
        }
        Ok(outcome)
    }

    async fn one(&self, output: &Output, work: &Work, outcome: &mut Outcome) -> Result<(), BuildError> {
        let store = self.parts.store.clone();
        let built = Arc::clone(&self.built);
        match output {
            Output::CacheOnly => Ok(()),
            Output::Image { names, options } => {
                let image = self.assemble(options, work).await?;
                let names = all_names(self.request, names);
                tell(outcome, &image);
                outcome.names.extend(names.iter().cloned());
                for name in &names {
                    work.part(format!("naming to {name}"), false);
                }
                blocking(move || keep(&store, &image, &names)).await
            }
            Output::Oci { dest, tar, names, options } | Output::Docker { dest, tar, names, options } => {
                let docker = matches!(output, Output::Docker { .. });
                let image = self.assemble(options, work).await?;
                let names = all_names(self.request, names);
                tell(outcome, &image);
                work.part("writing the layout", false);
                let (dest, tar) = (dest.clone(), *tar);
                blocking(move || write_layout(&store, &image, &names, docker, &dest, tar)).await
            }
            Output::Tar { dest, rewrite_timestamp } => {
                let dest = dest.clone();
                // Several platforms were refused before the build began.
                let epoch = built.first().and_then(|built| built.epoch).filter(|_| *rewrite_timestamp);
                blocking(move || built.iter().try_for_each(|one| write_tar(&store, &one.snapshot, epoch, &dest))).await
            }
            Output::Local { dest, platform_split } => {
                let split = platform_split.unwrap_or(built.len() > 1);
                let dest = dest.clone();
                blocking(move || {
                    for one in built.iter() {
                        let below = one.platform.to_string().replace('/', "_");
                        let dest = if split { dest.join(below) } else { dest.clone() };
                        files::export_tree(&store, &one.snapshot, &dest, one.epoch)?;
                    }
                    Ok(())
                })
                .await
            }
        }
    }

    /// Makes blobs of all layers, and the documents that lead to them.
    async fn assemble(&self, options: &ImageOptions, work: &Work) -> Result<Image, BuildError> {
        let (request, built) = (self.request, &self.built);
        work.part("exporting layers", false);
        let layers = try_join_all(built.iter().map(|one| self.layers(one, options))).await?;
        work.part("exporting layers", true);
        let oci = options.oci_media_types;
        let mut image = Image {
            root: Descriptor::new("", Digest::sha256(b""), 0),
            documents: Vec::new(),
            layers: Vec::new(),
            configs: Vec::new(),
            platforms: Vec::new(),
            single: None,
        };
        let mut manifests = Vec::new();
        for (one, layers) in built.iter().zip(layers) {
            let epoch = one.epoch.map(rfc3339);
            let base_history = one.base.as_ref().map_or(0, |base| base.history.len());
            let config = image::config(one.image.clone(), &layers, epoch.as_deref(), base_history, oci);
            let annotations = |target| annotations(&request.annotations, target, &one.platform);
            let manifest = image::manifest(&config, &layers, annotations(AnnotationTarget::Manifest), oci);
            let mut descriptor = manifest.descriptor.clone();
            descriptor.annotations = annotations(AnnotationTarget::ManifestDescriptor);
            let platform = one.image.platform();
            descriptor.platform = Some(platform.clone());
            work.part(format!("exporting manifest {}", descriptor.digest), true);
            work.part(format!("exporting config {}", config.descriptor.digest), true);
            image.configs.push(config.descriptor.digest.clone());
            image.single =
                Some((config.descriptor.clone(), layers.iter().map(|layer| layer.descriptor.clone()).collect()));
            image.documents.extend([config, manifest]);
            image.layers.extend(layers);
            image.platforms.push(platform);
            manifests.push(descriptor);
        }
        let wants_index = is_on(request, "BUILDKIT_MULTI_PLATFORM")
            || request.annotations.iter().any(|annotation| annotation.targets.contains(&AnnotationTarget::Index));
        image.root = match &manifests[..] {
            [only] if !wants_index => only.clone(),
            _ => {
                let own = all_annotations(&request.annotations, AnnotationTarget::Index);
                let index = image::index(manifests, own, oci);
                let mut root = index.descriptor.clone();
                root.annotations = all_annotations(&request.annotations, AnnotationTarget::IndexDescriptor);
                work.part(format!("exporting manifest list {}", root.digest), true);
                image.documents.push(index);
                image.single = image.single.filter(|_| built.len() == 1);
                root
            }
        };
        Ok(image)
    }

    /// The layers of one result as blobs.
    async fn layers(&self, built: &Built, options: &ImageOptions) -> Result<Vec<ImageLayer>, BuildError> {
        let (parts, images, lease) = (self.parts, &self.images, &self.lease);
        // What came with the base keeps its bytes, unless other ones are forced.
        let base_layers = built.base.as_ref().map_or(0, |base| base.rootfs.diff_ids.len());
        let made = built.snapshot.layers().iter().enumerate().map(|(index, id)| {
            let of_base = index < base_layers;
            let compression = compression(options.compression);
            let epoch = built.epoch.filter(|_| options.rewrite_timestamp && !of_base);
            let (store, lease, images, id) = (parts.store.clone(), Arc::clone(lease), Arc::clone(images), id.clone());
            blocking(move || {
                let failed = |error: &build_engine_store::Error| StepError::store("cannot make a layer's blob", error);
                let blob = store.layer_blob(&id, compression, epoch).map_err(|error| failed(&error))?;
                let there = lease.hold_blob(&blob.descriptor.digest).map_err(|error| failed(&error))?
                    && store.has_blob(&blob.descriptor.digest, Some(blob.descriptor.size));
                // Only a layer that came as a blob can be without one: it is fetched again, never made anew.
                if !there && !images.fetch_again(&blob.descriptor)? {
                    let message = format!("blob {} of the base image is gone from the store", blob.descriptor.digest);
                    let hint = "import or build the base image again";
                    return Err(StepError::new(ExitKind::Integrity, Report::new("integrity", message).hint(hint)));
                }
                let info = store.layer_info(&id).map_err(|error| failed(&error))?;
                Ok(ImageLayer {
                    descriptor: blob.descriptor,
                    diff_id: blob.diff_id,
                    size_bytes: blob.uncompressed_bytes,
                    created: rfc3339(info.created),
                    description: info.description,
                })
            })
        });
        try_join_all(made).await
    }
}

fn tell(outcome: &mut Outcome, image: &Image) {
    outcome.image = Some(image.root.clone());
    outcome.config = match &image.configs[..] {
        [config] => Some(config.clone()),
        _ => None,
    };
    outcome.layers = image.layers.len();
    outcome.size_bytes = image.layers.iter().map(|layer| layer.size_bytes).sum();
}

fn all_names(request: &BuildRequest, names: &[Reference]) -> Vec<Reference> {
    let mut all: Vec<Reference> = request.tags.iter().chain(names).cloned().map(Reference::or_latest).collect();
    all.dedup();
    all
}

fn annotations(all: &[Annotation], target: AnnotationTarget, platform: &Platform) -> BTreeMap<String, String> {
    all.iter()
        .filter(|annotation| annotation.targets.contains(&target))
        .filter(|annotation| annotation.platform.as_ref().is_none_or(|wanted| wanted.matches(platform)))
        .map(|annotation| (annotation.key.clone(), annotation.value.clone()))
        .collect()
}

fn all_annotations(all: &[Annotation], target: AnnotationTarget) -> BTreeMap<String, String> {
    all.iter()
        .filter(|annotation| annotation.targets.contains(&target))
        .map(|annotation| (annotation.key.clone(), annotation.value.clone()))
        .collect()
}

fn compression(compression: Compression) -> compress::Compression {
    match compression {
        Compression::Uncompressed => compress::Compression::Uncompressed,
        Compression::Gzip(level) => compress::Compression::Gzip { level: level.map_or(GZIP_LEVEL, i32::from) },
        Compression::Zstd(level) => compress::Compression::Zstd { level: level.map_or(ZSTD_LEVEL, i32::from) },
    }
}

fn rfc3339(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

/// Puts the documents into the store, then sets the names.
fn keep(store: &Store, image: &Image, names: &[Reference]) -> Result<(), StepError> {
    for document in &image.documents {
        store.put_blob(&document.bytes).map_err(|error| StepError::store("cannot write the image", &error))?;
    }
    for name in names {
        store
            .set_name(name, &image.root, &image.platforms)
            .map_err(|error| StepError::store(&format!("cannot name the image `{name}`"), &error))?;
    }
    Ok(())
}

/// The files of an OCI layout: small ones with their content, blobs by digest.
fn layout_files(image: &Image, names: &[Reference], docker: bool) -> Vec<(String, Content)> {
    let mut manifests = Vec::new();
    for name in names {
        let mut root = image.root.clone();
        root.annotations.insert(layout::IMAGE_NAME.into(), name.to_string());
        root.annotations.insert(layout::REF_NAME.into(), name.tag().unwrap_or("latest").to_owned());
        manifests.push(root);
    }
    if manifests.is_empty() {
        manifests.push(image.root.clone());
    }
    let index = image::index(manifests, BTreeMap::new(), true);
    let mut files = vec![
        (layout::MARKER_FILE.to_owned(), Content::Bytes(layout::MARKER.into())),
        (layout::INDEX_FILE.to_owned(), Content::Bytes(index.bytes)),
    ];
    if docker && let Some((config, layers)) = &image.single {
        // What `docker load` reads where the daemon has no containerd image store.
        let manifest = serde_json::json!([{
            "Config": layout::blob_path(&config.digest),
            "RepoTags": names.iter().map(Reference::familiar).collect::<Vec<_>>(),
            "Layers": layers.iter().map(|layer| layout::blob_path(&layer.digest)).collect::<Vec<_>>(),
        }]);
        files.push(("manifest.json".into(), Content::Bytes(manifest.to_string().into_bytes())));
    }
    let mut blobs: BTreeMap<String, Content> = BTreeMap::new();
    for document in &image.documents {
        blobs.insert(layout::blob_path(&document.descriptor.digest), Content::Bytes(document.bytes.clone()));
    }
    for layer in &image.layers {
        blobs.insert(
            layout::blob_path(&layer.descriptor.digest),
            Content::Blob { digest: layer.descriptor.digest.clone(), size: layer.descriptor.size },
        );
    }
    files.extend(blobs);
    files
}

enum Content {
    Bytes(Vec<u8>),
    Blob { digest: Digest, size: u64 },
}

fn write_layout(
    store: &Store,
    image: &Image,
    names: &[Reference],
    docker: bool,
    dest: &OutputDest,
    tar: bool,
) -> Result<(), StepError> {
    let files = layout_files(image, names, docker);
    match (dest, tar) {
        (OutputDest::Path(path), false) => write_directory(store, path, &files),
        (OutputDest::Stdout, false) => {
            let message = "a layout directory cannot be written to standard output; leave out `tar=false`";
            Err(StepError::new(ExitKind::Input, Report::new("invalid-output", message)))
        }
        (dest, true) => to_dest(dest, |out| {
            let mut archive = tar::Builder::new(out);
            let mut directories = std::collections::BTreeSet::new();
            for (name, content) in &files {
                for (at, _) in name.match_indices('/') {
                    if directories.insert(name[..=at].to_owned()) {
                        let mut header = header(tar::EntryType::Directory, 0o755, 0);
                        archive.append_data(&mut header, &name[..=at], io::empty())?;
                    }
                }
                let (reader, size) = open(store, content)?;
                archive.append_data(&mut header(tar::EntryType::Regular, 0o444, size), name, reader)?;
            }
            archive.into_inner()?;
            Ok(())
        }),
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header
}

fn open(store: &Store, content: &Content) -> io::Result<(Box<dyn Read>, u64)> {
    match content {
        Content::Bytes(bytes) => Ok((Box::new(io::Cursor::new(bytes.clone())), bytes.len() as u64)),
        Content::Blob { digest, size } => match store.open_blob(digest, Some(*size)) {
            Ok(Some((file, size))) => {
                let reader =
                    Verified { file, store: store.clone(), expected: digest.clone(), hasher: Some(Hasher::new()) };
                Ok((Box::new(reader), size))
            }
            Ok(None) => Err(io::Error::other(format!("blob {digest} is gone"))),
            Err(error) => Err(io::Error::other(error)),
        },
    }
}

/// A blob that fails at its end if its bytes are not what its digest says; it is dropped then, to be made again.
struct Verified {
    file: File,
    store: Store,
    expected: Digest,
    hasher: Option<Hasher>,
}

impl Read for Verified {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        if count > 0 {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&buffer[..count]);
            }
            return Ok(count);
        }
        if let Some(hasher) = self.hasher.take().filter(|_| !buffer.is_empty()) {
            let actual = hasher.finish();
            // Blobs of layers that we make, and all that were ever seen, have SHA-256 digests; others were verified on arrival.
            if actual.algorithm() == self.expected.algorithm() && actual != self.expected {
                self.store.remove_blob(&self.expected).map_err(io::Error::other)?;
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("blob {} in the store was damaged and is dropped; build again", self.expected),
                ));
            }
        }
        Ok(0)
    }
}

fn write_directory(store: &Store, root: &Path, files: &[(String, Content)]) -> Result<(), StepError> {
    let failed = |path: &Path, error: &io::Error| io_error(&format!("cannot write `{}`", path.display()), error);
    for (name, content) in files {
        let path = root.join(name);
        let parent = path.parent().unwrap_or(root).to_owned();
        std::fs::create_dir_all(&parent).map_err(|error| failed(&parent, &error))?;
        if matches!(content, Content::Blob { size, .. } if has_size(&path, *size)) {
            continue;
        }
        let (mut reader, _) = open(store, content).map_err(|error| failed(&path, &error))?;
        to_file(&path, |out| io::copy(&mut reader, out).map(|_| ()))?;
    }
    Ok(())
}

fn has_size(path: &Path, size: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
}

fn write_tar(store: &Store, snapshot: &Snapshot, epoch: Option<i64>, dest: &OutputDest) -> Result<(), StepError> {
    let mounted = store.mount(snapshot, None).map_err(|error| StepError::store("cannot read the result", &error))?;
    to_dest(dest, |out| {
        let mut entries = layer::TreeEntries::new(mounted.tree()).map_err(io::Error::other)?;
        layer::write(&mut entries, layer::WriteOptions { epoch }, out).map(|_| ()).map_err(io::Error::other)
    })
}

fn to_dest(dest: &OutputDest, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), StepError> {
    match dest {
        OutputDest::Stdout => {
            let mut out = io::BufWriter::with_capacity(1 << 20, io::stdout());
            write(&mut out)
                .and_then(|()| out.flush())
                .map_err(|error| io_error("cannot write to standard output", &error))
        }
        OutputDest::Path(path) => to_file(path, write),
    }
}

/// Writes a file that appears when it is complete; what is no regular file (a pipe, a device) is written to directly.
fn to_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), StepError> {
    let failed = |error: io::Error| io_error(&format!("cannot write `{}`", path.display()), &error);
    if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
        let file = File::options().write(true).open(path).map_err(failed)?;
        let mut out = io::BufWriter::with_capacity(1 << 20, file);
        return write(&mut out).and_then(|()| out.flush()).map_err(failed);
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".build-engine-");
    let partial = builder
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(&parent)
        .map_err(failed)?;
    let mut out = io::BufWriter::with_capacity(1 << 20, partial);
    write(&mut out).map_err(failed)?;
    let partial = out.into_inner().map_err(|error| failed(error.into_error()))?;
    partial.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

pub(super) fn io_error(message: &str, error: &io::Error) -> StepError {
    if error.kind() == io::ErrorKind::InvalidData {
        return StepError::new(ExitKind::Integrity, Report::new("integrity", message).caused_by(error));
    }
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let mut report = Report::new(if full { "no-space" } else { "io" }, message).caused_by(error);
    if full {
        report.hint = Some("free some space and build again; finished steps are kept".into());
    }
    StepError::new(ExitKind::Io, report)
}
