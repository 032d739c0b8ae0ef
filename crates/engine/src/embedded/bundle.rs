//! An image with everything that it names, and the archives and layouts that it is written to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use build_engine_oci::{Descriptor, Digest, Hasher, Platform, Reference, layout};
use build_engine_store::Store;

use super::ops::StepError;
use crate::image::{self, Document};
use crate::layout::Layout;
use crate::{ExitKind, OutputDest, Report};

/// An image: what it is called by, its documents, and the blobs that these name.
#[derive(Debug, Clone)]
pub(super) struct Bundle {
    pub(super) root: Descriptor,
    /// Children before parents, the root last. Configs are among them.
    pub(super) documents: Vec<Document>,
    /// The layers, each once.
    pub(super) blobs: Vec<Descriptor>,
    pub(super) platforms: Vec<Platform>,
    /// Where there is one platform: the config and the layers of its manifest, for `manifest.json`.
    pub(super) single: Option<(Descriptor, Vec<Descriptor>)>,
}

/// An image of an archive, and the names that it has there.
pub(super) type Named<'a> = (&'a Bundle, &'a [Reference]);

/// Where the bytes of blobs come from.
#[derive(Debug, Clone)]
pub(super) enum Blobs {
    Store(Store),
    Layout(Layout),
}

impl Blobs {
    /// Opens a blob, which is verified as it is read.
    pub(super) fn open(&self, descriptor: &Descriptor) -> io::Result<Box<dyn Read>> {
        let reader: Box<dyn Read> = match self {
            Self::Store(store) => match store.open_blob(&descriptor.digest, Some(descriptor.size)) {
                Ok(Some((file, _))) => Box::new(file),
                Ok(None) => return Err(io::Error::other(format!("blob {} is gone", descriptor.digest))),
                Err(error) => return Err(io::Error::other(error)),
            },
            Self::Layout(layout) => layout.open_blob(&descriptor.digest).map_err(io::Error::other)?,
        };
        Ok(Box::new(Verified {
            reader,
            blobs: self.clone(),
            expected: descriptor.digest.clone(),
            left: descriptor.size,
            hasher: Some(Hasher::new()),
        }))
    }
}

/// A blob that fails at its end if its bytes are not what its digest says; the store's is dropped then, to be made again.
struct Verified {
    reader: Box<dyn Read>,
    blobs: Blobs,
    expected: Digest,
    left: u64,
    hasher: Option<Hasher>,
}

impl Read for Verified {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let damaged = |message: String| io::Error::new(io::ErrorKind::InvalidData, message);
        let count = self.reader.read(buffer)?;
        if count > 0 {
            self.left = self
                .left
                .checked_sub(count as u64)
                .ok_or_else(|| damaged(format!("blob {} is longer than its descriptor says", self.expected)))?;
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&buffer[..count]);
            }
            return Ok(count);
        }
        if self.left > 0 && !buffer.is_empty() {
            return Err(damaged(format!("blob {} is shorter than its descriptor says", self.expected)));
        }
        if let Some(hasher) = self.hasher.take().filter(|_| !buffer.is_empty()) {
            let actual = hasher.finish();
            // Blobs of layers that we make, and all that were ever seen, have SHA-256 digests; others were verified on arrival.
            if actual.algorithm() == self.expected.algorithm() && actual != self.expected {
                return Err(damaged(match &self.blobs {
                    Blobs::Store(store) => {
                        store.remove_blob(&self.expected).map_err(io::Error::other)?;
                        format!("blob {} in the store was damaged and is dropped; build or pull again", self.expected)
                    }
                    Blobs::Layout(_) => format!("blob {} arrived as {actual}", self.expected),
                }));
            }
        }
        Ok(0)
    }
}

enum Content {
    Bytes(Vec<u8>),
    Blob(Box<Descriptor>),
}

/// The files of an OCI layout with these images: small ones with their content, blobs by digest.
fn files(images: &[Named<'_>], docker: bool) -> Vec<(String, Content)> {
    let mut manifests = Vec::new();
    for (bundle, names) in images {
        for name in *names {
            let mut root = bundle.root.clone();
            root.annotations.insert(layout::IMAGE_NAME.into(), name.to_string());
            root.annotations.insert(layout::REF_NAME.into(), name.tag().unwrap_or("latest").to_owned());
            manifests.push(root);
        }
        if names.is_empty() {
            manifests.push(bundle.root.clone());
        }
    }
    let index = image::index(manifests, BTreeMap::new(), true);
    let mut files = vec![
        (layout::MARKER_FILE.to_owned(), Content::Bytes(layout::MARKER.into())),
        (layout::INDEX_FILE.to_owned(), Content::Bytes(index.bytes)),
    ];
    // What `docker load` reads where the daemon has no containerd image store.
    let for_docker: Vec<_> = images
        .iter()
        .filter_map(|(bundle, names)| {
            let (config, layers) = bundle.single.as_ref()?;
            Some(serde_json::json!({
                "Config": layout::blob_path(&config.digest),
                "RepoTags": names.iter().map(Reference::familiar).collect::<Vec<_>>(),
                "Layers": layers.iter().map(|layer| layout::blob_path(&layer.digest)).collect::<Vec<_>>(),
            }))
        })
        .collect();
    if docker && !for_docker.is_empty() {
        let text = serde_json::Value::from(for_docker).to_string();
        files.push(("manifest.json".into(), Content::Bytes(text.into_bytes())));
    }
    let mut blobs: BTreeMap<String, Content> = BTreeMap::new();
    for (bundle, _) in images {
        for document in &bundle.documents {
            blobs.insert(layout::blob_path(&document.descriptor.digest), Content::Bytes(document.bytes.clone()));
        }
        for blob in &bundle.blobs {
            blobs.insert(layout::blob_path(&blob.digest), Content::Blob(Box::new(blob.clone())));
        }
    }
    files.extend(blobs);
    files
}

/// Writes images as an OCI layout, in a directory or (with `tar`) as an archive.
pub(super) fn write_layout(
    blobs: &Blobs,
    images: &[Named<'_>],
    docker: bool,
    dest: &OutputDest,
    tar: bool,
) -> Result<(), StepError> {
    match (dest, tar) {
        (OutputDest::Path(path), false) => write_directory(blobs, path, &files(images, docker)),
        (OutputDest::Stdout, false) => {
            let message = "a layout directory cannot be written to standard output; leave out `tar=false`";
            Err(StepError::new(ExitKind::Input, Report::new("invalid-output", message)))
        }
        (dest, true) => to_dest(dest, |out| write_archive(blobs, images, docker, out)),
    }
}

/// Writes images as an archive of an OCI layout.
pub(super) fn write_archive(blobs: &Blobs, images: &[Named<'_>], docker: bool, out: impl Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(out);
    let mut directories = BTreeSet::new();
    for (name, content) in files(images, docker) {
        for (at, _) in name.match_indices('/') {
            if directories.insert(name[..=at].to_owned()) {
                let mut header = header(tar::EntryType::Directory, 0o755, 0);
                archive.append_data(&mut header, &name[..=at], io::empty())?;
            }
        }
        let mut regular = |size, reader: &mut dyn Read| {
            archive.append_data(&mut header(tar::EntryType::Regular, 0o444, size), &name, reader)
        };
        match content {
            Content::Bytes(bytes) => regular(bytes.len() as u64, &mut &bytes[..])?,
            Content::Blob(blob) => regular(blob.size, &mut blobs.open(&blob)?)?,
        }
    }
    archive.into_inner()?;
    Ok(())
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header
}

fn write_directory(blobs: &Blobs, root: &Path, files: &[(String, Content)]) -> Result<(), StepError> {
    let failed = |path: &Path, error: &io::Error| io_error(&format!("cannot write `{}`", path.display()), error);
    for (name, content) in files {
        let path = root.join(name);
        let parent = path.parent().unwrap_or(root).to_owned();
        std::fs::create_dir_all(&parent).map_err(|error| failed(&parent, &error))?;
        match content {
            Content::Blob(blob) if has_size(&path, blob.size) => {}
            Content::Blob(blob) => {
                let mut reader = blobs.open(blob).map_err(|error| failed(&path, &error))?;
                to_file(&path, |out| io::copy(&mut reader, out).map(drop))?;
            }
            Content::Bytes(bytes) => to_file(&path, |out| out.write_all(bytes))?,
        }
    }
    Ok(())
}

fn has_size(path: &Path, size: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
}

/// Gives a writer to `write`: standard output, or a file that appears when it is complete.
pub(super) fn to_dest(
    dest: &OutputDest,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), StepError> {
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

/// A failure of input and output, with what it was about.
pub(super) fn io_error(message: &str, error: &io::Error) -> StepError {
    if error.kind() == io::ErrorKind::InvalidData {
        return StepError::new(ExitKind::Integrity, Report::new("integrity", message).caused_by(error));
    }
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let mut report = Report::new(if full { "no-space" } else { "io" }, message).caused_by(error);
    if full {
        report.hint = Some("free some space and try again; finished steps are kept".into());
    }
    StepError::new(ExitKind::Io, report)
}
