//! Leases, pruning and checking: what may go, and what is wrong.
//!
//! Pruning marks from names, from the leases of running builds and from cache records, and removes the rest. It runs
//! inside one write transaction, during which things only change their name; the bytes go afterwards. Whatever a build
//! makes or finds is entered as held *before* it appears or *before* it is looked at, in a transaction of its own. So
//! either prune sees the entry, or the build sees that the thing is gone.
//!
//! Invariant: nothing that a live lease holds is removed. A lease lives as long as its process.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use build_engine_oci::{Descriptor, Digest, Index, Manifest, media_type};
use rusqlite::{Transaction, params};

use crate::content::BlobState;
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::layout::{Store, entries, is_linked, lock, random_hex, remove_tree};
use crate::snapshot::{LayerId, Snapshot};
use crate::state;

/// Manifests and indexes larger than this name nothing that pruning keeps.
const DOCUMENT_LIMIT: u64 = 8 << 20;

/// Keeps what a running build uses. As long as one lives in this process, whatever the process makes is kept, too.
#[derive(Debug)]
pub struct Lease {
    store: Store,
    id: String,
    known: Mutex<BTreeSet<(&'static str, String)>>,
}

impl Lease {
    /// Keeps the layers of a snapshot. Returns whether all of them are there, now and from now on.
    pub fn hold(&self, snapshot: &Snapshot) -> Result<bool> {
        let held: Vec<_> = snapshot.layers().iter().map(|layer| ("layer", layer.to_string())).collect();
        self.enter(held)?;
        Ok(self.store.exists(snapshot))
    }

    /// Keeps a blob. Returns whether it is there, now and from now on.
    pub fn hold_blob(&self, digest: &Digest) -> Result<bool> {
        self.enter(vec![("blob", digest.to_string())])?;
        Ok(self.store.has_blob(digest, None))
    }

    fn enter(&self, mut held: Vec<(&'static str, String)>) -> Result<()> {
        let mut known = lock(&self.known);
        held.retain(|it| !known.contains(it));
        if held.is_empty() {
            return Ok(());
        }
        self.store.enter(&self.id, &held)?;
        known.extend(held);
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let last = self.store.inner.live_leases.fetch_sub(1, Ordering::SeqCst) == 1;
        let released = self.store.release((!last).then_some(&*self.id));
        if let Err(error) = released {
            tracing::debug!(%error, "a lease stays until the process ends");
        }
    }
}

/// What [`Store::prune`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Layers.
    pub layers: u64,
    /// Blobs.
    pub blobs: u64,
    /// Cache records.
    pub records: u64,
    /// Copies of cache mounts.
    pub cache_mounts: u64,
    /// Bytes of layers, blobs and cache mounts.
    pub size_bytes: u64,
}

/// What the store takes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Layers that exist as trees.
    pub layers: u64,
    /// Bytes of their files.
    pub layer_bytes: u64,
    /// Blobs.
    pub blobs: u64,
    /// Bytes of the blobs.
    pub blob_bytes: u64,
    /// Cache records.
    pub records: u64,
    /// Copies of cache mounts.
    pub cache_mounts: u64,
    /// Bytes of their files.
    pub cache_mount_bytes: u64,
}

/// Something that [`Store::verify`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong with what.
    pub message: String,
    /// Whether it was put right: the next build fetches or makes again what is missing.
    pub repaired: bool,
}

enum Failure {
    Sqlite(rusqlite::Error),
    Store(Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl Store {
    /// Starts keeping what a build uses; see [`Lease`].
    pub fn lease(&self) -> Result<Lease> {
        self.owner()?;
        self.inner.live_leases.fetch_add(1, Ordering::SeqCst);
        Ok(Lease { store: self.clone(), id: random_hex(), known: Mutex::default() })
    }

    /// Notes that something is about to appear, so that it is kept while a lease lives here.
    pub(crate) fn created(&self, kind: &'static str, value: &str) -> Result<()> {
        if self.inner.live_leases.load(Ordering::SeqCst) == 0 {
            return Ok(());
        }
        self.enter("", &[(kind, value.to_owned())])
    }

    fn enter(&self, lease: &str, held: &[(&'static str, String)]) -> Result<()> {
        let owner = self.owner()?;
        self.inner.has_held.store(true, Ordering::SeqCst);
        self.write(|db| {
            let mut insert = db.prepare_cached("INSERT OR IGNORE INTO held VALUES (?1, ?2, ?3, ?4)")?;
            for (kind, value) in held {
                insert.execute(params![owner, lease, kind, value])?;
            }
            Ok(())
        })
    }

    /// Forgets what one lease holds, or everything that this process does.
    fn release(&self, lease: Option<&str>) -> Result<()> {
        if !self.inner.has_held.load(Ordering::SeqCst) {
            return Ok(());
        }
        let owner = self.owner()?;
        self.write(|db| match lease {
            Some(lease) => {
                db.execute("DELETE FROM held WHERE owner = ?1 AND lease = ?2", params![owner, lease]).map(drop)
            }
            None => db.execute("DELETE FROM held WHERE owner = ?1", [&owner]).map(drop),
        })
    }

    /// Removes layers and blobs that neither a name, nor a lease of any process, nor a cache record leads to. With `all`
    /// the cache records that no lease needs go first, and cache mounts that no step uses go too.
    ///
    /// Works on a full disk. Builds that run meanwhile are not disturbed.
    pub fn prune(&self, all: bool) -> Result<Pruned> {
        // Even removing takes some space first.
        let reserve = self.path("reserve");
        let _ = fs::remove_file(&reserve);
        let pruned = self.prune_with_space(all);
        self.inner.make_reserve();
        pruned
    }

    fn prune_with_space(&self, all: bool) -> Result<Pruned> {
        for name in entries(&self.path("claims"))? {
            // What a killed process left; a claim that is held stays.
            let path = self.path("claims").join(name);
            if let Ok(file) = fs::File::open(&path)
                && file.try_lock().is_ok()
                && is_linked(&file, &path)
            {
                let _ = fs::remove_file(&path);
            }
        }
        let interrupted = self.remove_partial_blobs()?;
        let mut trash = Vec::new();
        let trash_cell = std::cell::RefCell::new(&mut trash);
        let pruned = self.write(|db| {
            let mut trash = trash_cell.borrow_mut();
            match self.mark_and_sweep(db, all, &mut trash) {
                Ok(pruned) => Ok(Ok(pruned)),
                Err(Failure::Sqlite(error)) => Err(error),
                Err(Failure::Store(error)) => Ok(Err(error)),
            }
        })?;
        for path in trash {
            remove_tree(&path)?;
        }
        let (cache_mounts, bytes) = if all { self.remove_cache_mounts()? } else { (0, 0) };
        let indexes = self.remove_stat_indexes(all)?;
        let more = interrupted + bytes + indexes + self.remove_frame_tables()?;
        pruned.map(|pruned| Pruned { cache_mounts, size_bytes: pruned.size_bytes + more, ..pruned })
    }

    fn mark_and_sweep(&self, db: &Transaction<'_>, all: bool, trash: &mut Vec<PathBuf>) -> Result<Pruned, Failure> {
        let mut pruned = Pruned::default();
        let (mut layers, mut blobs) = self.held(db)?;
        let held = layers.clone();
        let mut records = Vec::new();
        {
            let mut select = db.prepare("SELECT key, outputs FROM records")?;
            let mut rows = select.query([])?;
            while let Some(row) = rows.next()? {
                let outputs: String = row.get(1)?;
                records.push((row.get::<_, String>(0)?, serde_json::from_str(&outputs).unwrap_or_default()));
            }
        }
        for (key, outputs) in &records {
            let outputs: &Vec<String> = outputs;
            let snapshots: Vec<Snapshot> = outputs.iter().filter_map(|output| output.parse().ok()).collect();
            let mut used = snapshots.iter().flat_map(Snapshot::layers);
            let gone = if all {
                used.clone().any(|it| !held.contains(it.as_str())) || snapshots.is_empty()
            } else {
                !self.outputs_exist(outputs)
            };
            if gone {
                db.execute("DELETE FROM records WHERE key = ?1", [key])?;
                pruned.records += 1;
            } else {
                layers.extend(used.by_ref().map(LayerId::to_string));
            }
        }
        let mut named = BTreeSet::new();
        {
            let mut select = db.prepare("SELECT descriptor FROM names")?;
            let mut rows = select.query([])?;
            while let Some(row) = rows.next()? {
                if let Ok(descriptor) = serde_json::from_str(&row.get::<_, String>(0)?) {
                    self.reach(&descriptor, &mut named);
                }
            }
        }
        // What registries said is remembered together with its documents, so that the next build need not ask. Layers
        // are kept only as long as something else wants them.
        if all {
            db.execute("DELETE FROM resolved", [])?;
        }
        {
            let mut select = db.prepare("SELECT descriptor FROM resolved")?;
            let mut rows = select.query([])?;
            while let Some(row) = rows.next()? {
                if let Ok(descriptor) = serde_json::from_str(&row.get::<_, String>(0)?) {
                    self.reach_documents(&descriptor, &mut named);
                }
            }
        }
        // What a running build has been given by digest it may follow.
        for digest in blobs.clone() {
            let Ok(digest) = digest.parse::<Digest>() else { continue };
            for kind in [media_type::OCI_INDEX, media_type::OCI_MANIFEST] {
                self.reach(&Descriptor::new(kind, digest.clone(), 0), &mut named);
            }
        }
        blobs.extend(named);
        if all {
            let mut select = db.prepare("SELECT DISTINCT digest FROM origins")?;
            let digests: Vec<String> = select.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
            for digest in digests.iter().filter(|digest| !blobs.contains(*digest)) {
                db.execute("DELETE FROM origins WHERE digest = ?1", [digest])?;
            }
        }
        let mut forms = Vec::new();
        {
            let mut select = db.prepare("SELECT layer, digest FROM forms")?;
            let mut rows = select.query([])?;
            while let Some(row) = rows.next()? {
                forms.push((row.get::<_, String>(0)?, row.get::<_, String>(1)?));
            }
        }
        // A tree that an image's blob can be made of is part of the image, until the blob is there.
        for (layer, digest) in &forms {
            let is_made = digest.parse().is_ok_and(|digest| self.has_blob(&digest, None));
            if blobs.contains(digest) && !(all && is_made) {
                layers.insert(layer.clone());
            }
        }
        // What was made of another blob is nothing without its own.
        for (layer, digest) in forms.iter().filter(|(layer, _)| layer.parse::<Digest>().is_ok()) {
            if !blobs.contains(digest) {
                db.execute("DELETE FROM forms WHERE layer = ?1 AND digest = ?2", [layer, digest])?;
            }
        }
        blobs.extend(forms.into_iter().filter(|(layer, _)| layers.contains(layer)).map(|(_, digest)| digest));
        for name in entries(&self.path("layers"))? {
            let path = self.path("layers").join(&name);
            let info = name.parse().ok().and_then(|id| self.layer_info(&id).ok());
            let folds_kept = info.as_ref().is_some_and(|info| {
                !info.folded.is_empty() && info.folded.iter().all(|it| layers.contains(it.as_str()))
            });
            if layers.contains(&name) || folds_kept {
                continue;
            }
            let gone = self.temporary("work")?;
            durable::rename(&path, &gone).context("remove", &path)?;
            trash.push(gone);
            db.execute("DELETE FROM forms WHERE layer = ?1", [&name])?;
            pruned.layers += 1;
            let has_tree = trash.last().is_some_and(|gone| gone.join("fs").is_dir());
            pruned.size_bytes += info.filter(|_| has_tree).map_or(0, |info| info.size_bytes);
        }
        for (digest, path) in self.blobs()? {
            if !blobs.contains(&digest.to_string()) {
                pruned.size_bytes += fs::symlink_metadata(&path).map_or(0, |metadata| metadata.len());
                pruned.blobs += 1;
                remove_tree(&path)?;
            }
        }
        Ok(pruned)
    }

    /// What live leases hold: layers and blobs. Entries of dead owners go.
    fn held(&self, db: &Transaction<'_>) -> Result<(BTreeSet<String>, BTreeSet<String>), Failure> {
        let mut by_owner: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
        let mut select = db.prepare("SELECT owner, kind, value FROM held")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            by_owner.entry(row.get(0)?).or_default().push((row.get(1)?, row.get(2)?));
        }
        let (mut layers, mut blobs) = (BTreeSet::new(), BTreeSet::new());
        for (owner, held) in by_owner {
            if self.dead(&owner)?.is_some() {
                db.execute("DELETE FROM held WHERE owner = ?1", [&owner])?;
                continue;
            }
            for (kind, value) in held {
                if kind == "layer" {
                    layers.insert(value)
                } else {
                    blobs.insert(value)
                };
            }
        }
        Ok((layers, blobs))
    }

    /// Adds everything that a descriptor leads to.
    fn reach(&self, descriptor: &Descriptor, into: &mut BTreeSet<String>) {
        self.follow(descriptor, true, into);
    }

    /// Adds the manifests and configs that a descriptor leads to.
    fn reach_documents(&self, descriptor: &Descriptor, into: &mut BTreeSet<String>) {
        self.follow(descriptor, false, into);
    }

    fn follow(&self, descriptor: &Descriptor, with_layers: bool, into: &mut BTreeSet<String>) {
        let mut queue = vec![descriptor.clone()];
        let mut followed = BTreeSet::new();
        while let Some(descriptor) = queue.pop() {
            into.insert(descriptor.digest.to_string());
            let kind = &*descriptor.media_type;
            let is_document = media_type::is_index(kind) || media_type::is_manifest(kind);
            if !is_document || !followed.insert(descriptor.digest.clone()) {
                continue;
            }
            let Ok(Some(bytes)) = self.read_blob(&descriptor.digest, DOCUMENT_LIMIT) else { continue };
            if media_type::is_index(kind) {
                queue.extend(serde_json::from_slice::<Index>(&bytes).map(|index| index.manifests).unwrap_or_default());
            } else if let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) {
                queue.push(manifest.config);
                queue.extend(manifest.layers.into_iter().filter(|_| with_layers));
                queue.extend(manifest.subject);
            }
        }
    }

    /// Every file under a digest's name.
    fn blobs(&self) -> Result<Vec<(Digest, PathBuf)>> {
        let root = self.path("content").join("blobs");
        let mut all = Vec::new();
        for algorithm in entries(&root)? {
            let directory = root.join(&algorithm);
            for hex in entries(&directory)? {
                if let Ok(digest) = format!("{algorithm}:{hex}").parse() {
                    all.push((digest, directory.join(hex)));
                }
            }
        }
        Ok(all)
    }

    /// What the store takes on disk.
    pub fn usage(&self) -> Result<Usage> {
        let mut usage = Usage::default();
        for name in entries(&self.path("layers"))? {
            let Ok(id) = name.parse() else { continue };
            if self.layer_dir(&id).is_dir() {
                usage.layers += 1;
                usage.layer_bytes += self.layer_info(&id).map_or(0, |it| it.size_bytes);
            }
        }
        for (_, path) in self.blobs()? {
            usage.blobs += 1;
            usage.blob_bytes += fs::symlink_metadata(&path).map_or(0, |metadata| metadata.len());
        }
        let records =
            self.database(|db| db.query_row("SELECT count(*) FROM records", [], |row| row.get::<_, i64>(0)))?;
        usage.records = u64::try_from(records).unwrap_or_default();
        (usage.cache_mounts, usage.cache_mount_bytes) = self.cache_mount_usage()?;
        Ok(usage)
    }

    /// Reads every blob and looks at every record, layer and name. Damaged blobs, and records and layers that lead
    /// nowhere, are removed, so that the next build fetches or makes them again.
    pub fn verify(&self) -> Result<Vec<Problem>> {
        let mut problems = Vec::new();
        let path = self.path("state.db");
        for message in self.database(|db| state::integrity(db, &path))? {
            problems.push(Problem { message, repaired: false });
        }
        for (digest, _) in self.blobs()? {
            match self.verify_blob(&digest) {
                BlobState::Good | BlobState::Missing => {}
                BlobState::Bad => {
                    self.remove_blob(&digest)?;
                    problems.push(Problem { message: format!("blob {digest} was damaged"), repaired: true });
                }
            }
        }
        for name in entries(&self.path("layers"))? {
            let complete = name.parse().is_ok_and(|id| self.layer_info(&id).is_ok() && self.has_layer(&id));
            if !complete {
                remove_tree(&self.path("layers").join(&name))?;
                problems.push(Problem { message: format!("layer `{name}` was incomplete"), repaired: true });
            }
        }
        let records = self.database(|db| {
            db.prepare("SELECT key, outputs FROM records ORDER BY key")?
                .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        for (key, outputs) in records {
            let complete =
                serde_json::from_str::<Vec<String>>(&outputs).is_ok_and(|outputs| self.outputs_exist(&outputs));
            if !complete {
                self.remove_record(&key)?;
                problems
                    .push(Problem { message: format!("cache record `{key}` led to a missing layer"), repaired: true });
            }
        }
        for name in self.names()? {
            if self.verify_blob(&name.descriptor.digest) != BlobState::Good {
                let message = format!("`{}` names {}, which is missing", name.reference, name.descriptor.digest);
                problems.push(Problem { message, repaired: false });
            }
        }
        Ok(problems)
    }
}
