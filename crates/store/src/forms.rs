//! The two forms of a layer: a tree, and a blob that can be sent somewhere.
//!
//! A layer that a step wrote becomes a blob when someone asks for it, once per compression. A layer that came as a blob
//! keeps that blob as its form for ever: its bytes are fetched again rather than made from the tree, because no two
//! archivers write the same bytes.
//!
//! What an archive leaves out (the attributes of a parent directory, the target of a hard link) comes from the layers below
//! when it is applied. That is why a tree made from a blob is shared only where the same layers are below it.

use std::io::{self, Read, Write};

use build_engine_oci::{Descriptor, DiffId, Digest, Hasher, media_type};
use build_engine_rootfs::Tree;

use crate::content::BlobWriter;
use crate::error::{Error, Result, is_no_space};
use crate::layer::compress::{Compression, decompress};
use crate::layer::{self, ApplyOptions, Entries, LayerError, TreeEntries, WriteOptions, WrittenBlob};
use crate::layout::Store;
use crate::partial::Following;
use crate::snapshot::{LayerId, Snapshot};
use crate::state::{Form, IMPORTED};

/// Most layers of an image that are unpacked. Other engines stop at 127; an overlay takes 500, and what is more is folded.
const MOST_LAYERS: usize = 1000;

/// How the names of compressions begin whose archives have something that the layer has not.
const WITH_TABLE: &str = "estargz ";

/// A layer as a blob.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerBlob {
    /// Media type, digest and size.
    pub descriptor: Descriptor,
    /// Hash of the uncompressed archive.
    pub diff_id: DiffId,
    /// Size of the uncompressed archive.
    pub uncompressed_bytes: u64,
}

impl From<Form> for LayerBlob {
    fn from(form: Form) -> Self {
        Self { descriptor: form.descriptor, diff_id: form.diff_id.into(), uncompressed_bytes: form.uncompressed_bytes }
    }
}

impl Form {
    /// That of a layer which was written here.
    pub(crate) fn new(layer: &LayerId, compression: Compression, epoch: Option<i64>, blob: LayerBlob) -> Self {
        Self {
            layer: layer.to_string(),
            compression: compression_name(compression),
            epoch: epoch.map(|epoch| epoch.to_string()).unwrap_or_default(),
            diff_id: blob.diff_id.as_digest().clone(),
            descriptor: blob.descriptor,
            uncompressed_bytes: blob.uncompressed_bytes,
            base: String::new(),
        }
    }
}

impl Store {
    /// Returns the blob of a layer, making it if there is none yet. Who asks at the same time waits for the first.
    ///
    /// Times after `epoch` (seconds since 1970) become `epoch`. A layer that came as a blob is that blob, whatever
    /// compression and epoch say; it may be absent from the store ([`Store::has_blob`]) and has to be fetched then.
    pub fn layer_blob(&self, layer: &LayerId, compression: Compression, epoch: Option<i64>) -> Result<LayerBlob> {
        if let Some(form) = self.form(layer.as_str(), IMPORTED, "")? {
            return Ok(form.into());
        }
        let name = compression_name(compression);
        let epoch_text = epoch.map(|epoch| epoch.to_string()).unwrap_or_default();
        let known = || -> Result<Option<LayerBlob>> {
            let Some(form) = self.form(layer.as_str(), &name, &epoch_text)? else { return Ok(None) };
            let (digest, size) = (&form.descriptor.digest, form.descriptor.size);
            self.created("blob", &digest.to_string())?;
            Ok(self.has_blob(digest, Some(size)).then(|| form.into()))
        };
        if let Some(blob) = known()? {
            return Ok(blob);
        }
        let _claim = self.claim(&format!("blob of {layer} {name} {epoch_text}"))?;
        if let Some(blob) = known()? {
            return Ok(blob);
        }
        let tree = self.layer_tree(layer)?;
        let mut entries = TreeEntries::new(&tree).map_err(|error| layer_error(layer.as_str(), error))?;
        let blob = self.write_blob(layer.as_str(), &mut entries, compression, epoch)?;
        self.save_form(&Form::new(layer, compression, epoch, blob.clone()))?;
        Ok(blob)
    }

    /// Writes the blob of a layer, in one pass over its entries.
    pub(crate) fn write_blob(
        &self,
        layer: &str,
        entries: &mut dyn Entries,
        compression: Compression,
        epoch: Option<i64>,
    ) -> Result<LayerBlob> {
        let failed = |error| layer_error(layer, error);
        let known = || self.known_frames(compression);
        let mut writer = self.blob_writer()?;
        let written = layer::write_blob(entries, WriteOptions { epoch }, compression, &known, &mut writer);
        self.finish_written(writer, compression, written.map_err(failed)?)
    }

    /// Returns the archive of a blob of this store, compressed in another way. Who asks at the same time waits for the first.
    ///
    /// # Errors
    /// [`Error::UnknownBlob`] if it is not there; [`Error::Layer`] if it is no layer; [`Error::Mismatch`] if its archive has
    /// another hash than `diff_id`.
    pub fn recompressed_blob(
        &self,
        from: &Descriptor,
        diff_id: &DiffId,
        compression: Compression,
    ) -> Result<LayerBlob> {
        let Descriptor { digest, size, .. } = from;
        let name = compression_name(compression);
        let layer = digest.to_string();
        let known = || -> Result<Option<LayerBlob>> {
            let Some(form) = self.form(&layer, &name, "")? else { return Ok(None) };
            let (digest, size) = (&form.descriptor.digest, form.descriptor.size);
            self.created("blob", &digest.to_string())?;
            Ok(self.has_blob(digest, Some(size)).then(|| form.into()))
        };
        if let Some(blob) = known()? {
            return Ok(blob);
        }
        let _claim = self.claim(&format!("blob of {layer} {name}"))?;
        if let Some(blob) = known()? {
            return Ok(blob);
        }
        let failed = |error| layer_error(&layer, error);
        let Some((file, _)) = self.open_blob(digest, Some(*size))? else {
            return Err(Error::UnknownBlob(digest.clone()));
        };
        let plain = decompress(file).map_err(|error| failed(LayerError::of_reading(error, 0)))?;
        let mut hashed = Tee { reader: plain, sink: Sink::Hash(Hasher::new()) };
        let mut writer = self.blob_writer()?;
        let frames = || self.known_frames(compression);
        let written = layer::rewrite_blob(&mut hashed, compression, &frames, &mut writer).map_err(failed)?;
        if let Sink::Hash(hasher) = hashed.sink {
            let size_bytes = hasher.size_bytes();
            let actual = hasher.finish();
            if actual != *diff_id.as_digest() {
                let (expected, actual) = (diff_id.to_string(), actual.to_string());
                return Err(Error::Mismatch {
                    what: format!("content of layer {digest}:"),
                    expected,
                    actual,
                    size_bytes,
                });
            }
        }
        let blob = self.finish_written(writer, compression, written)?;
        self.save_form(&Form {
            layer,
            compression: name,
            epoch: String::new(),
            diff_id: blob.diff_id.as_digest().clone(),
            descriptor: blob.descriptor.clone(),
            uncompressed_bytes: blob.uncompressed_bytes,
            base: String::new(),
        })?;
        Ok(blob)
    }

    fn finish_written(&self, writer: BlobWriter, compression: Compression, written: WrittenBlob) -> Result<LayerBlob> {
        let WrittenBlob { archive, frames, annotations } = written;
        let (digest, size) = writer.commit(None)?;
        self.save_frames(compression, &digest, &frames);
        let mut descriptor = Descriptor::new(media_type_of(compression), digest, size);
        descriptor.annotations = annotations;
        Ok(LayerBlob { descriptor, diff_id: archive.diff_id, uncompressed_bytes: archive.size_bytes })
    }

    /// Returns a layer with this diff ID that can stand on top of `base`, if there is one.
    pub fn layer_for_diff_id(&self, diff_id: &DiffId, base: &Snapshot) -> Result<Option<LayerId>> {
        let base = base_name(base);
        for form in self.forms_of_diff_id(diff_id.as_digest())? {
            // A form with rewritten times, or with a table of contents, is another archive than its tree would give.
            if form.epoch.is_empty()
                && !form.compression.starts_with(WITH_TABLE)
                && (form.base.is_empty() || form.base == base)
                && let Ok(layer) = form.layer.parse()
                && self.has_layer(&layer)
            {
                return Ok(Some(layer));
            }
        }
        Ok(None)
    }

    /// Stores a blob and unpacks it on top of `base` in one pass, verifying digest, size and diff ID. The blob is the
    /// layer's form from then on. If the layer is there already, `reader` is not read.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if it is not what `descriptor` and `diff_id` say; [`Error::Layer`] if it is, but is refused.
    /// The blob is kept in neither case.
    pub fn apply_blob(
        &self,
        descriptor: &Descriptor,
        diff_id: &DiffId,
        base: &Snapshot,
        reader: impl Read + Send,
    ) -> Result<LayerId> {
        self.apply(descriptor, diff_id, base, |store| Ok((Sink::Blob(store.blob_writer()?), reader)))
    }

    /// As [`Store::apply_blob`], for a blob that is in the store.
    ///
    /// # Errors
    /// [`Error::UnknownBlob`] if it is not. [`Error::Mismatch`] if it is damaged: it is removed then, to be fetched again.
    pub fn apply_stored_blob(&self, descriptor: &Descriptor, diff_id: &DiffId, base: &Snapshot) -> Result<LayerId> {
        self.apply(descriptor, diff_id, base, |store| {
            match store.open_blob(&descriptor.digest, Some(descriptor.size))? {
                Some((file, _)) => Ok((Sink::Hash(Hasher::new()), file)),
                None => Err(Error::UnknownBlob(descriptor.digest.clone())),
            }
        })
    }

    /// As [`Store::apply_blob`], for a blob that somebody else writes down and verifies meanwhile.
    ///
    /// # Errors
    /// As [`Store::apply_blob`]; and if the blob does not arrive.
    pub fn apply_following(
        &self,
        descriptor: &Descriptor,
        diff_id: &DiffId,
        base: &Snapshot,
        following: Following,
    ) -> Result<LayerId> {
        self.apply(descriptor, diff_id, base, |_| Ok((Sink::Verified, following)))
    }

    fn apply<R: Read + Send>(
        &self,
        descriptor: &Descriptor,
        diff_id: &DiffId,
        base: &Snapshot,
        open: impl FnOnce(&Self) -> Result<(Sink, R)>,
    ) -> Result<LayerId> {
        let _claim = self.claim(&format!("apply {diff_id} {base}"))?;
        if let Some(layer) = self.layer_for_diff_id(diff_id, base)? {
            self.created("layer", layer.as_str())?;
            if self.has_layer(&layer) {
                return Ok(layer);
            }
        }
        let failed = |error| layer_error(&descriptor.digest.to_string(), error);
        if base.layers().len() >= MOST_LAYERS {
            return Err(failed(LayerError::Limit { what: "layers of one image", limit: MOST_LAYERS as u64 }));
        }
        let active = self.active_layer(base)?;
        let was_there = self.has_blob(&descriptor.digest, Some(descriptor.size));
        let (sink, reader) = open(self)?;
        let mut tee = Tee { reader: reader.take(descriptor.size.saturating_add(1)), sink };
        // Folded where they are many, so that not all of them are open at once.
        let lowers: Vec<Tree> = self
            .layer_dirs(base)?
            .iter()
            .rev()
            .map(|dir| Ok(Tree::open(dir).map_err(LayerError::from).map_err(failed)?.with_ids(self.ids())))
            .collect::<Result<_>>()?;
        let lowers: Vec<&Tree> = lowers.iter().collect();
        let applied = match decompress(&mut tee) {
            Ok(archive) => {
                let options = ApplyOptions { lowers: &lowers, ..ApplyOptions::default() };
                layer::apply(archive, &active.tree()?, options)
            }
            Err(error) => Err(LayerError::of_reading(error, 0)),
        };
        if let Err(error) = &applied
            && no_space(error)
        {
            return Err(failed(applied.expect_err("just matched")));
        }
        // The rest of the blob belongs to its digest. And if the bytes are wrong, that is the reason for all else.
        io::copy(&mut tee, &mut io::sink()).map_err(|error| failed(LayerError::Read(error)))?;
        self.finish_blob(tee.sink, descriptor)?;
        let applied = match applied {
            Ok(applied) if applied.diff_id == *diff_id => Ok(applied),
            Ok(applied) => Err(Error::Mismatch {
                what: format!("content of layer {}:", descriptor.digest),
                expected: diff_id.to_string(),
                actual: applied.diff_id.to_string(),
                size_bytes: applied.size_bytes,
            }),
            Err(error) => Err(failed(error)),
        };
        if applied.is_err() && !was_there {
            // Nothing can be made of it. What was in the store before is there for another reason.
            self.remove_blob(&descriptor.digest)?;
        }
        let applied = applied?;
        let description = format!("unpacked {}", descriptor.digest);
        let layer = self.commit_unchanged(active, &description, LayerId::random(), Vec::new())?;
        self.save_form(&Form {
            layer: layer.to_string(),
            compression: IMPORTED.to_owned(),
            epoch: String::new(),
            diff_id: diff_id.as_digest().clone(),
            descriptor: descriptor.clone(),
            uncompressed_bytes: applied.size_bytes,
            base: base_name(base),
        })?;
        Ok(layer)
    }

    fn finish_blob(&self, sink: Sink, descriptor: &Descriptor) -> Result<()> {
        let Descriptor { digest, size, .. } = descriptor;
        match sink {
            Sink::Blob(writer) => writer.commit(Some((digest, *size))).map(drop),
            // It came to its end, which it does only when it has been verified.
            Sink::Verified => Ok(()),
            Sink::Hash(hasher) => {
                let size_bytes = hasher.size_bytes();
                let actual = hasher.finish();
                // A digest of another algorithm is checked by reading once more.
                let is_good = if digest.algorithm() == actual.algorithm() {
                    actual == *digest
                } else {
                    self.verify_blob(digest) == crate::BlobState::Good
                };
                if is_good {
                    return Ok(());
                }
                self.remove_blob(digest)?;
                Err(Error::Mismatch {
                    what: "stored blob".to_owned(),
                    expected: digest.to_string(),
                    actual: actual.to_string(),
                    size_bytes,
                })
            }
        }
    }
}

/// Where the bytes of a blob go while it is unpacked.
enum Sink {
    Blob(BlobWriter),
    Hash(Hasher),
    /// Nowhere: the reader fails if it is not what it should be.
    Verified,
}

/// Reads a blob and hands on what was read.
struct Tee<R> {
    reader: R,
    sink: Sink,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        match &mut self.sink {
            Sink::Blob(writer) => writer.write_all(&buffer[..count])?,
            Sink::Hash(hasher) => hasher.update(&buffer[..count]),
            Sink::Verified => {}
        }
        Ok(count)
    }
}

fn base_name(base: &Snapshot) -> String {
    Digest::sha256(base.to_string().as_bytes()).hex().to_owned()
}

fn compression_name(compression: Compression) -> String {
    match compression {
        Compression::Uncompressed => "uncompressed".to_owned(),
        Compression::Gzip { level } => format!("gzip {level}"),
        Compression::Zstd { level } => format!("zstd {level}"),
        Compression::Estargz { level } => format!("{WITH_TABLE}{level}"),
        Compression::ZstdChunked { level } => format!("zstd:chunked {level}"),
    }
}

/// Whether a blob is compressed as `compression` says, at whatever level.
pub fn is_compressed(descriptor: &Descriptor, compression: Compression) -> bool {
    let has = |key: &str| descriptor.annotations.contains_key(key);
    let (estargz, chunked) = (has(layer::ESTARGZ_DIGEST), has(layer::CHUNKED_DIGEST));
    media_type::to_oci(&descriptor.media_type) == media_type_of(compression)
        && match compression {
            Compression::Uncompressed => true,
            Compression::Gzip { .. } => !estargz,
            Compression::Zstd { .. } => !chunked,
            Compression::Estargz { .. } => estargz,
            Compression::ZstdChunked { .. } => chunked,
        }
}

fn media_type_of(compression: Compression) -> &'static str {
    match compression {
        Compression::Uncompressed => media_type::OCI_LAYER,
        Compression::Gzip { .. } | Compression::Estargz { .. } => media_type::OCI_LAYER_GZIP,
        Compression::Zstd { .. } | Compression::ZstdChunked { .. } => media_type::OCI_LAYER_ZSTD,
    }
}

/// The failure of the system behind a layer's, if there is one.
fn io_of(error: &LayerError) -> Option<&io::Error> {
    match error {
        LayerError::Read(source) | LayerError::Write(source) | LayerError::Content { source, .. } => Some(source),
        LayerError::Tree(build_engine_rootfs::Error::Io { source, .. }) => Some(source),
        _ => None,
    }
}

pub(crate) fn no_space(error: &LayerError) -> bool {
    io_of(error).is_some_and(is_no_space)
}

pub(crate) fn layer_error(layer: &str, error: LayerError) -> Error {
    match io_of(&error) {
        Some(source) if is_no_space(source) => {
            // The error itself cannot be taken out of its enum without copying; its code says all.
            let source = source.raw_os_error().map_or_else(|| source.kind().into(), io::Error::from_raw_os_error);
            Error::NoSpace { action: "write layer", path: layer.into(), source }
        }
        _ => Error::Layer { layer: layer.to_owned(), source: error },
    }
}
