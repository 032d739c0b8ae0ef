//! Loading an image into containerd itself, through its services: content, snapshots, images.
//!
//! Blobs that are not there are written, children before parents, with the labels by which containerd's garbage collection finds
//! from an image what belongs to it. Meanwhile a lease keeps all of that. The layers are unpacked by containerd, which
//! clients expect of an image; the names come last.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

use build_engine_oci::{
    ChainId, Descriptor, DiffId, Digest, ImageConfig, Parsed, chain_id, media_type, parse_document,
};
use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use prost::Message;
use ring::rand::SecureRandom;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::content;
use super::daemon::ANSWER;
use super::grpc::{ALREADY_EXISTS, Client, Failure, NOT_FOUND, framed};
use super::{Load, PIECE_BYTES, sent};
use crate::embedded::bundle::{Blobs, io_error};
use crate::embedded::ops::{StepError, internal};
use crate::{Containerd, ExitKind, Report};

/// How long what an interrupted load has written stays.
const LEASE_HOURS: i64 = 1;

/// Loads the image.
///
/// # Errors
/// [`ExitKind::Source`] where containerd does not answer or does not take it; no name was changed then.
pub(super) async fn load(load: &Load<'_>, to: &Containerd) -> Result<String, StepError> {
    if load.names.is_empty() {
        let report = Report::new("no-name", "an image that is loaded into containerd needs a name");
        return Err(StepError::new(ExitKind::Input, report.hint("give one with `-t NAME:TAG`")));
    }
    let mut client = connect(to).await.map_err(|reason| {
        let message = format!("containerd does not answer at `{}`", to.address.display());
        let mut report = Report::new("no-daemon", message).hint("CONTAINERD_ADDRESS names its socket");
        report.causes.push(reason);
        StepError::new(ExitKind::Source, report)
    })?;
    if (Transfer { load, to, client: &client, lease: "" }).is_there().await? {
        return Ok(super::THERE.into());
    }
    let lease = random_name()?;
    let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(LEASE_HOURS);
    let labels = BTreeMap::from([("containerd.io/gc.expire".to_owned(), expires.to_string())]);
    let refused = |failure| refused(to, &failure);
    let request = CreateLease { id: lease.clone(), labels };
    client.call::<Empty>("containerd.services.leases.v1.Leases/Create", &request).await.map_err(refused)?;
    client.add_metadata("containerd-lease", &lease);
    let result = Transfer { load, to, client: &client, lease: &lease }.run().await;
    // Should it fail, the lease expires.
    let _ = client.call::<Empty>("containerd.services.leases.v1.Leases/Delete", &DeleteLease { id: lease }).await;
    result
}

async fn connect(to: &Containerd) -> Result<Client, String> {
    let connect = async {
        let stream = UnixStream::connect(&to.address).await.map_err(|error| error.to_string())?;
        let mut client = Client::new(TokioIo::new(stream)).await?;
        client.add_metadata("containerd-namespace", &to.namespace);
        let version = client.call::<Empty>("containerd.services.version.v1.Version/Version", &Empty {}).await;
        version.map_err(|failure| failure.to_string())?;
        Ok(client)
    };
    tokio::time::timeout(ANSWER, connect).await.unwrap_or_else(|_| Err("it does not answer".into()))
}

/// A name that nobody else uses.
fn random_name() -> Result<String, StepError> {
    let mut bytes = [0; 16];
    ring::rand::SystemRandom::new().fill(&mut bytes).map_err(|_| internal("the system has no random numbers"))?;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("build-engine-{hex}"))
}

fn refused(to: &Containerd, failure: &Failure) -> StepError {
    let message = format!("containerd at `{}` did not load the image", to.address.display());
    let mut report = Report::new("load", message);
    report.causes.push(failure.to_string());
    StepError::new(ExitKind::Source, report)
}

struct Transfer<'a> {
    load: &'a Load<'a>,
    to: &'a Containerd,
    client: &'a Client,
    /// What keeps that which has no name yet.
    lease: &'a str,
}

impl Transfer<'_> {
    /// The layers and the documents.
    fn all(&self) -> Vec<Descriptor> {
        let documents = self.load.bundle.documents.iter().map(|document| &document.descriptor);
        let mut seen = BTreeSet::new();
        let all = self.load.bundle.blobs.iter().chain(documents);
        all.filter(|blob| seen.insert(blob.digest.clone())).cloned().collect()
    }

    /// Whether all names stand for the image, nothing of which is missing. Nothing is written to learn that.
    async fn is_there(&self) -> Result<bool, StepError> {
        let root = self.load.bundle.root.digest.to_string();
        for name in self.load.names {
            if self.named(&name.to_string()).await?.is_none_or(|digest| digest != root) {
                return Ok(false);
            }
        }
        let all = self.all();
        let existing = content::existing(self.client, &all).await.map_err(|failure| refused(self.to, &failure))?;
        if existing.len() < all.len() {
            return Ok(false);
        }
        match self.chains()?.last() {
            Some((_, _, top)) => self.has_snapshot(top).await,
            None => Ok(true),
        }
    }

    async fn run(&self) -> Result<String, StepError> {
        let bundle = self.load.bundle;
        let all = self.all();
        // Held before they are looked for, so that what is found stays.
        for blob in &all {
            let resource = Some(Resource { id: blob.digest.to_string(), kind: "content".into() });
            let request = AddResource { id: self.lease.to_owned(), resource };
            self.call::<Empty>("containerd.services.leases.v1.Leases/AddResource", &request).await?;
        }
        let existing = content::existing(self.client, &all).await.map_err(|failure| refused(self.to, &failure))?;
        let (mut layers, mut bytes) = (0, 0);
        for blob in bundle.blobs.iter().filter(|blob| !existing.contains(&blob.digest)) {
            self.load.bring(blob).await?;
            let (blobs, wanted) = (Blobs::Store(self.load.store.clone()), blob.clone());
            self.write(blob, BTreeMap::new(), move || blobs.open(&wanted)).await?;
            layers += 1;
            bytes += blob.size;
        }
        for document in bundle.documents.iter().filter(|document| !existing.contains(&document.descriptor.digest)) {
            let content = document.bytes.clone();
            let labels = references(&document.bytes, &document.descriptor.media_type);
            self.write(&document.descriptor, labels, move || Ok(Box::new(io::Cursor::new(content)))).await?;
        }
        let is_unpacked = self.unpack().await?;
        let named = self.name().await?;
        Ok(match (existing.len() == all.len() && is_unpacked, named) {
            (true, 0) => super::THERE.into(),
            (true, _) => super::THERE_NAMED.into(),
            (false, _) => sent(layers, bundle.blobs.len(), bytes),
        })
    }

    async fn call<M: Message + Default>(&self, method: &str, message: &impl Message) -> Result<M, StepError> {
        let answers = self.client.call(method, message).await.map_err(|failure| refused(self.to, &failure))?;
        Ok(answers.into_iter().next().unwrap_or_default())
    }

    /// Writes a blob, whose bytes `open` gives.
    async fn write(
        &self,
        blob: &Descriptor,
        labels: BTreeMap<String, String>,
        open: impl FnOnce() -> io::Result<Box<dyn Read>> + Send + 'static,
    ) -> Result<(), StepError> {
        let total = i64::try_from(blob.size).unwrap_or(i64::MAX);
        let start = Write {
            action: WRITE,
            name: format!("{}-{}", self.lease, blob.digest.hex()),
            total,
            expected: blob.digest.to_string(),
            ..Write::default()
        };
        let (pieces, mut queue) = mpsc::channel::<io::Result<Bytes>>(2);
        let writer = tokio::task::spawn_blocking(move || {
            let send = |message: &Write| {
                pieces.blocking_send(Ok(framed(message))).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
            };
            let write = || {
                let mut reader = open()?;
                let mut next = start.clone();
                let mut piece = vec![0; PIECE_BYTES];
                loop {
                    let length = reader.read(&mut piece)?;
                    if length == 0 {
                        return send(&Write { action: COMMIT, labels, ..next });
                    }
                    next.data = piece[..length].to_vec();
                    send(&next)?;
                    next.offset += i64::try_from(length).unwrap_or(i64::MAX);
                    next.data.clear();
                }
            };
            let written = write();
            if let Err(error) = &written {
                // Without a commit nothing of it is there.
                let _ = pieces.blocking_send(Err(io::Error::other(error.to_string())));
            }
            written
        });
        let pieces = futures::stream::poll_fn(move |context| queue.poll_recv(context).map_ok(Frame::data));
        let method = "containerd.services.content.v1.Content/Write";
        let answered = self.client.stream::<Empty>(method, BodyExt::boxed(StreamBody::new(pieces))).await;
        let written = writer.await.map_err(|error| internal(format!("a blocking task ended: {error}")))?;
        match (answered, written) {
            (Ok(_), Ok(())) => Ok(()),
            // Somebody else was faster.
            (Err(failure), _) if failure.code == Some(ALREADY_EXISTS) => Ok(()),
            // A pipe that broke is what the answer is about.
            (Err(failure), Ok(())) => Err(refused(self.to, &failure)),
            (Err(failure), Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Err(refused(self.to, &failure)),
            (_, Err(error)) => Err(io_error("cannot write the image for containerd", &error)),
        }
    }

    /// The layers from the bottom up, with their diff and chain IDs.
    fn chains(&self) -> Result<Vec<(&Descriptor, DiffId, ChainId)>, StepError> {
        let bundle = self.load.bundle;
        let Some((config, layers)) = &bundle.single else { return Ok(Vec::new()) };
        let document = bundle.documents.iter().find(|document| document.descriptor.digest == config.digest);
        let document = document.ok_or_else(|| internal("an image without its config"))?;
        let parsed: ImageConfig =
            serde_json::from_slice(&document.bytes).map_err(|error| internal(error.to_string()))?;
        let mut chains: Vec<(&Descriptor, DiffId, ChainId)> = Vec::new();
        for (layer, diff_id) in layers.iter().zip(parsed.rootfs.diff_ids) {
            let chain = chain_id(chains.last().map(|(_, _, below)| below), &diff_id);
            chains.push((layer, diff_id, chain));
        }
        Ok(chains)
    }

    /// Unpacks the layers that are not; whether there were none.
    async fn unpack(&self) -> Result<bool, StepError> {
        let chains = self.chains()?;
        let (Some((config, _)), Some((_, _, top))) = (&self.load.bundle.single, chains.last()) else { return Ok(true) };
        let mut parent = None;
        let mut was_unpacked = true;
        for (layer, diff_id, chain) in &chains {
            if !self.has_snapshot(chain).await? {
                was_unpacked = false;
                self.apply(layer, parent, chain, &diff_id.to_string()).await?;
            }
            parent = Some(chain);
        }
        if !was_unpacked {
            let label = format!("containerd.io/gc.ref.snapshot.{}", self.to.snapshotter);
            let mask = Some(FieldMask { paths: vec![format!("labels.{label}")] });
            let labels = BTreeMap::from([(label, top.to_string())]);
            let request = UpdateContent { info: Some(Info { digest: config.digest.to_string(), labels }), mask };
            self.call::<Empty>("containerd.services.content.v1.Content/Update", &request).await?;
        }
        Ok(was_unpacked)
    }

    fn snapshot(&self, key: &str) -> SnapshotKey {
        SnapshotKey { snapshotter: self.to.snapshotter.clone(), key: key.to_owned() }
    }

    async fn has_snapshot(&self, chain: &ChainId) -> Result<bool, StepError> {
        let method = "containerd.services.snapshots.v1.Snapshots/Stat";
        match self.client.call::<Empty>(method, &self.snapshot(&chain.to_string())).await {
            Ok(_) => Ok(true),
            Err(failure) if failure.code == Some(NOT_FOUND) => Ok(false),
            Err(failure) => Err(refused(self.to, &failure)),
        }
    }

    async fn apply(
        &self,
        layer: &Descriptor,
        parent: Option<&ChainId>,
        chain: &ChainId,
        diff_id: &str,
    ) -> Result<(), StepError> {
        let key = format!("{}-{chain}", self.lease);
        let parent = parent.map(ToString::to_string).unwrap_or_default();
        let prepare = Prepare { snapshotter: self.to.snapshotter.clone(), key: key.clone(), parent };
        let prepared: Mounts = self.call("containerd.services.snapshots.v1.Snapshots/Prepare", &prepare).await?;
        let applied = async {
            let request = Apply { diff: Some(Target::from(layer)), mounts: prepared.mounts };
            let applied: Applied = self.call("containerd.services.diff.v1.Diff/Apply", &request).await?;
            let actual = applied.applied.unwrap_or_default().digest;
            if actual != diff_id {
                let message = format!("layer {} unpacks to {actual}, not to {diff_id}", layer.digest);
                return Err(StepError::new(ExitKind::Integrity, Report::new("integrity", message)));
            }
            let snapshotter = self.to.snapshotter.clone();
            let request = Commit { snapshotter, name: chain.to_string(), key: key.clone() };
            let committed =
                self.client.call::<Empty>("containerd.services.snapshots.v1.Snapshots/Commit", &request).await;
            committed.map(drop).or_else(|failure| {
                // Somebody else was faster; what this one has unpacked goes.
                if failure.code == Some(ALREADY_EXISTS) { Ok(()) } else { Err(refused(self.to, &failure)) }
            })
        }
        .await;
        // There is nothing under this name any more where all went well.
        let remove = "containerd.services.snapshots.v1.Snapshots/Remove";
        let _ = self.client.call::<Empty>(remove, &self.snapshot(&key)).await;
        applied
    }

    /// Sets the names; returns how many were not set before.
    async fn name(&self) -> Result<usize, StepError> {
        let target = Target::from(&self.load.bundle.root);
        let mut named = 0;
        for name in self.load.names {
            let name = name.to_string();
            let found = self.named(&name).await?;
            let image = Some(Image { name, target: Some(target.clone()) });
            match found {
                Some(digest) if digest == target.digest => continue,
                Some(_) => {
                    let mask = Some(FieldMask { paths: vec!["target".into()] });
                    let request = ImageMessage { image, mask };
                    self.call::<Empty>("containerd.services.images.v1.Images/Update", &request).await?;
                }
                None => {
                    let request = ImageMessage { image, mask: None };
                    self.call::<Empty>("containerd.services.images.v1.Images/Create", &request).await?;
                }
            }
            named += 1;
        }
        Ok(named)
    }

    /// The digest that a name stands for.
    async fn named(&self, name: &str) -> Result<Option<String>, StepError> {
        let request = GetImage { name: name.to_owned() };
        match self.client.call::<ImageMessage>("containerd.services.images.v1.Images/Get", &request).await {
            Ok(found) => {
                let image = found.into_iter().next().and_then(|found| found.image);
                Ok(image.and_then(|image| image.target).map(|target| target.digest))
            }
            Err(failure) if failure.code == Some(NOT_FOUND) => Ok(None),
            Err(failure) => Err(refused(self.to, &failure)),
        }
    }
}

/// The labels of a document, by which the garbage collection finds what it names.
fn references(bytes: &[u8], kind: &str) -> BTreeMap<String, String> {
    if !media_type::is_manifest(kind) && !media_type::is_index(kind) {
        return BTreeMap::new();
    }
    let label = |name: String, digest: &Digest| (format!("containerd.io/gc.ref.content.{name}"), digest.to_string());
    match parse_document(bytes, kind) {
        Ok(Parsed::Manifest(manifest)) => {
            let layers = manifest.layers.iter().enumerate();
            let layers = layers.map(|(index, layer)| label(format!("l.{index}"), &layer.digest));
            layers.chain([label("config".into(), &manifest.config.digest)]).collect()
        }
        Ok(Parsed::Index(index)) => {
            let manifests = index.manifests.iter().enumerate();
            manifests.map(|(index, child)| label(format!("m.{index}"), &child.digest)).collect()
        }
        // It was made here.
        Err(_) => BTreeMap::new(),
    }
}

const WRITE: i32 = 1;
const COMMIT: i32 = 2;

/// What nobody looks at.
#[derive(Clone, PartialEq, Message)]
struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct FieldMask {
    #[prost(string, repeated, tag = "1")]
    paths: Vec<String>,
}

/// A descriptor.
#[derive(Clone, PartialEq, Message)]
struct Target {
    #[prost(string, tag = "1")]
    media_type: String,
    #[prost(string, tag = "2")]
    digest: String,
    #[prost(int64, tag = "3")]
    size: i64,
}

impl From<&Descriptor> for Target {
    fn from(descriptor: &Descriptor) -> Self {
        let size = i64::try_from(descriptor.size).unwrap_or(i64::MAX);
        Self { media_type: descriptor.media_type.clone(), digest: descriptor.digest.to_string(), size }
    }
}

#[derive(Clone, PartialEq, Message)]
struct CreateLease {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(btree_map = "string, string", tag = "3")]
    labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct DeleteLease {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    kind: String,
}

#[derive(Clone, PartialEq, Message)]
struct AddResource {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "2")]
    resource: Option<Resource>,
}

#[derive(Clone, PartialEq, Message)]
struct Write {
    #[prost(int32, tag = "1")]
    action: i32,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(int64, tag = "3")]
    total: i64,
    #[prost(string, tag = "4")]
    expected: String,
    #[prost(int64, tag = "5")]
    offset: i64,
    #[prost(bytes = "vec", tag = "6")]
    data: Vec<u8>,
    #[prost(btree_map = "string, string", tag = "7")]
    labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct Info {
    #[prost(string, tag = "1")]
    digest: String,
    #[prost(btree_map = "string, string", tag = "5")]
    labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct UpdateContent {
    #[prost(message, optional, tag = "1")]
    info: Option<Info>,
    #[prost(message, optional, tag = "2")]
    mask: Option<FieldMask>,
}

#[derive(Clone, PartialEq, Message)]
struct SnapshotKey {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    key: String,
}

#[derive(Clone, PartialEq, Message)]
struct Prepare {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    key: String,
    #[prost(string, tag = "3")]
    parent: String,
}

/// How containerd shall mount a snapshot: what it says is handed back to it.
#[derive(Clone, PartialEq, Message)]
struct Mount {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    source: String,
    #[prost(string, tag = "3")]
    target: String,
    #[prost(string, repeated, tag = "4")]
    options: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Mounts {
    #[prost(message, repeated, tag = "1")]
    mounts: Vec<Mount>,
}

#[derive(Clone, PartialEq, Message)]
struct Apply {
    #[prost(message, optional, tag = "1")]
    diff: Option<Target>,
    #[prost(message, repeated, tag = "2")]
    mounts: Vec<Mount>,
}

#[derive(Clone, PartialEq, Message)]
struct Applied {
    #[prost(message, optional, tag = "1")]
    applied: Option<Target>,
}

#[derive(Clone, PartialEq, Message)]
struct Commit {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    key: String,
}

#[derive(Clone, PartialEq, Message)]
struct GetImage {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "3")]
    target: Option<Target>,
}

/// What images are created and changed with, and what they come back in.
#[derive(Clone, PartialEq, Message)]
struct ImageMessage {
    #[prost(message, optional, tag = "1")]
    image: Option<Image>,
    #[prost(message, optional, tag = "2")]
    mask: Option<FieldMask>,
}
