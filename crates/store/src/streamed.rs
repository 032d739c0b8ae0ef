//! Layers that are written as a blob first, and get their tree when something reads their files.
//!
//! An image is made of blobs; a tree is needed only where a later step looks into it. Writing a blob straight from a
//! source saves the creation of an inode per file, which is the dearest part of a big copy. Such a layer is a directory
//! with `meta.json` alone; its blob is one of the layer's forms ([`crate::forms`]) and is kept as long as the layer is.
//!
//! Invariant: the tree that is made of the blob is the one that the step would have written.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;

use build_engine_oci::{DiffId, Digest};
use build_engine_rootfs::{Attributes, Device, Entry, Kind, Place, Time, Tree};
use rustix::fs::Mode;
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::error::{Context, Error, Result};
use crate::layer::compress::{Compression, decompress};
use crate::layer::{self, ApplyOptions, Entries, LayerEntry, LayerError};
use crate::layout::{Store, now};
use crate::merged::DIRECTORY;
use crate::snapshot::{CommitInfo, LayerId, LayerInfo, Snapshot};
use crate::state::Form;

/// The file of a layer that says what its blob does not say of modification times: four bytes for each entry of the tree,
/// in order.
const TIMES: &str = "times";

/// What the tree of a layer can be made of (in `meta.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streamed {
    blob: Digest,
    blob_bytes: u64,
    diff_id: Digest,
    root: Root,
}

/// The root directory of the tree: no blob has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Root {
    mode: u32,
    uid: u32,
    gid: u32,
    seconds: i64,
    nanoseconds: u32,
    /// Names and values of the extended attributes, bytes as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Root {
    /// That of a layer on top of a tree whose root is `below`; without one, as a commit has it.
    fn new(below: Option<Entry>, time: Time) -> Self {
        match below {
            Some(Entry { metadata, xattrs, .. }) => Self {
                mode: metadata.mode,
                uid: metadata.uid,
                gid: metadata.gid,
                seconds: metadata.mtime.seconds,
                nanoseconds: metadata.mtime.nanoseconds,
                xattrs: xattrs.into_iter().map(|(name, value)| (name.into_vec(), value)).collect(),
            },
            None => Self {
                mode: 0o755,
                uid: 0,
                gid: 0,
                seconds: time.seconds,
                nanoseconds: time.nanoseconds,
                xattrs: Vec::new(),
            },
        }
    }

    fn apply(&self, root: Place<'_>) -> io::Result<()> {
        for (name, value) in &self.xattrs {
            root.set_image_xattr(&OsString::from_vec(name.clone()), value)?;
        }
        let attributes = Attributes {
            kind: Kind::Directory,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            device: Device::default(),
        };
        root.set_attributes(&attributes)?;
        Ok(root.set_times(Time { seconds: self.seconds, nanoseconds: self.nanoseconds })?)
    }
}

/// Looks at what passes.
struct Noted<'a> {
    entries: &'a mut dyn Entries,
    count: u64,
    size_bytes: u64,
    /// The part of each modification time that an archive does not hold, as nanoseconds.
    nanoseconds: Vec<u8>,
}

impl Entries for Noted<'_> {
    fn next_entry(&mut self) -> Result<Option<LayerEntry>, LayerError> {
        let entry = self.entries.next_entry()?;
        if let Some(entry) = &entry {
            self.count += 1;
            self.nanoseconds.extend(entry.entry.metadata.mtime.nanoseconds.to_le_bytes());
            if entry.hard_link.is_none() && entry.entry.metadata.is_file() {
                self.size_bytes += entry.entry.metadata.size;
            }
        }
        Ok(entry)
    }
}

impl Store {
    /// Makes a layer of `entries`, which are changes of `base`, by writing its blob. If it fails nothing is left behind.
    ///
    /// # Errors
    /// [`Error::Layer`] with [`LayerError::Changed`] if a file changes while it is read.
    pub fn commit_streamed(
        &self,
        base: &Snapshot,
        entries: &mut dyn Entries,
        compression: Compression,
        info: &CommitInfo,
    ) -> Result<LayerId> {
        let id = LayerId::random();
        let mut entries = Noted { entries, count: 0, size_bytes: 0, nanoseconds: Vec::new() };
        let blob = self.write_blob(id.as_str(), &mut entries, compression, None)?;
        let below = self.merged(base)?.top().map(Place::read_entry).transpose().context("read", self.path("layers"))?;
        let (digest, size) = (blob.descriptor.digest.clone(), blob.descriptor.size);
        let streamed = Streamed {
            blob: digest.clone(),
            blob_bytes: size,
            diff_id: blob.diff_id.as_digest().clone(),
            root: Root::new(below, info.root_time.unwrap_or_else(Time::now)),
        };
        let info = LayerInfo {
            created: now(),
            boot: self.inner.boot.clone(),
            description: info.description.clone(),
            entries: entries.count,
            size_bytes: entries.size_bytes,
            folded: Vec::new(),
            streamed: Some(streamed),
        };
        let mut active = self.empty_layer()?;
        if entries.nanoseconds.iter().any(|byte| *byte != 0) {
            let path = active.path().join(TIMES);
            let file = durable::create_new(&path, 0o600).context("create", &path)?;
            durable::write(&file, &entries.nanoseconds).context("write", &path)?;
        }
        self.save_form(&Form::new(&id, compression, None, blob))?;
        self.install_as(&mut active, &id, &info)?;
        Ok(id)
    }

    /// Whether a layer is there, as a tree or as a blob.
    pub(crate) fn has_layer(&self, layer: &LayerId) -> bool {
        self.layer_dir(layer).is_dir()
            || self
                .layer_info(layer)
                .is_ok_and(|info| info.streamed.is_some_and(|it| self.has_blob(&it.blob, Some(it.blob_bytes))))
    }

    /// Makes those trees that are not there yet.
    pub(crate) fn need_trees(&self, layers: &[LayerId]) -> Result<()> {
        layers.iter().filter(|layer| !self.layer_dir(layer).is_dir()).try_for_each(|layer| self.unpack_streamed(layer))
    }

    fn unpack_streamed(&self, layer: &LayerId) -> Result<()> {
        let unknown = || Error::UnknownLayer(layer.to_string());
        let Some(streamed) = self.layer_info(layer)?.streamed else { return Err(unknown()) };
        let _claim = self.claim(&format!("unpack {layer}"))?;
        let target = self.layer_dir(layer);
        if target.is_dir() {
            return Ok(());
        }
        let Some((file, _)) = self.open_blob(&streamed.blob, Some(streamed.blob_bytes))? else { return Err(unknown()) };
        let active = self.empty_layer()?;
        let dir = active.dir();
        durable::create_dir(&dir).context("create", &dir)?;
        let failed = |source| Error::Layer { layer: layer.to_string(), source };
        let archive = decompress(file).map_err(|error| failed(LayerError::Read(error)))?;
        let diff_id = DiffId::from(streamed.diff_id);
        match layer::apply(archive, &active.tree()?, ApplyOptions::default()) {
            Ok(applied) if applied.diff_id == diff_id => {}
            Err(error) if crate::forms::no_space(&error) => {
                return Err(crate::forms::layer_error(layer.as_str(), error));
            }
            other => {
                // It was written here, so it is damaged. Without it the layer is gone, and is made again when it is wanted.
                self.remove_blob(&streamed.blob)?;
                return Err(Error::Mismatch {
                    what: format!("content of layer {}:", streamed.blob),
                    expected: diff_id.to_string(),
                    actual: other.map_or_else(|error| error.to_string(), |applied| applied.diff_id.to_string()),
                    size_bytes: streamed.blob_bytes,
                });
            }
        }
        self.set_nanoseconds(layer, &active.tree()?)?;
        let root = rustix::fs::open(&dir, DIRECTORY, Mode::empty()).context("open", &dir)?;
        streamed.root.apply(Place::new(root.as_fd(), ".".as_ref(), self.ids())).context("write", &dir)?;
        // The tree is not on disk yet, whatever was of the layer before.
        let marker = self.layer_path(layer).join("synced");
        match fs::remove_file(&marker) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", marker, error)),
            _ => {}
        }
        durable::rename(&dir, &target).context("rename", &dir)
    }

    /// Gives the entries of a tree what the archive does not hold of their times.
    fn set_nanoseconds(&self, layer: &LayerId, tree: &Tree) -> Result<()> {
        let path = self.layer_path(layer).join(TIMES);
        let times = match fs::read(&path) {
            Ok(times) => times,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io("read", path, error)),
        };
        let mut times = times.chunks_exact(4);
        let mut walk = tree.walk("").context("read", &path)?;
        while let Some(step) = walk.step().context("read", &path)? {
            let bytes = times.next().and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
            let nanoseconds = u32::from_le_bytes(bytes);
            if nanoseconds != 0 && !step.metadata.is_whiteout() {
                let time = Time { nanoseconds, ..step.metadata.mtime };
                step.place().set_times(time).context("write", &path)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
