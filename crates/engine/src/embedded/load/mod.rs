//! Loading an image into a local daemon: Docker, Podman with its Docker-compatible socket, or containerd.
//!
//! Only what the daemon lacks travels, and nothing where it has the image. What travels to Docker and Podman is the archive that `docker load`
//! reads, with the documents and without the layers that are there; it is written while it is sent. How to learn what is
//! there depends on how the daemon keeps its images:
//!
//! - Docker with containerd's image store tells which blobs it has through the content service of its BuildKit. It would take an
//!   archive with holes for an image all the same, so what was left out is looked for again afterwards.
//! - Docker with a graph driver looks for each layer by its chain ID before it opens the file. It is offered the documents alone and
//!   names the first layer that it lacks; it lacks those above as well, since a chain is never there without its beginning.
//! - Podman looks for each layer, too, but for several at the same time. So the layers that one of its images has are left out.
//!
//! What a daemon refuses with holes, or behind which nobody knows what there is, is sent in full. containerd needs no archive:
//! [`containerd`] writes what is missing.

mod containerd;
mod content;
mod daemon;
mod grpc;

use std::collections::BTreeSet;
use std::io::{self, Write};

use build_engine_oci::{Descriptor, Digest, ImageConfig, Reference};
use build_engine_store::Store;
use futures::StreamExt;
use futures::future::{join_all, try_join_all};
use http_body_util::{BodyExt, StreamBody};
use hyper::StatusCode;
use hyper::body::Frame;
use serde_json::Value;
use tokio::sync::mpsc;

use self::daemon::{ANSWER, Daemon, Keeps, nothing};
use super::bundle::{Blobs, Bundle, write_archive};
use super::events::Work;
use super::export::gone;
use super::ops::{StepError, internal};
use super::remote::on_disk;
use super::sources::Images;
use crate::{ExitKind, LoadTarget, Report};

/// Size of the pieces of the archive.
const PIECE_BYTES: usize = 256 << 10;

/// How many archives with holes a daemon may refuse.
const ATTEMPTS: usize = 3;

/// How many of Podman's images are asked for their layers, the newest first, and how many at the same time.
const MAX_ASKED: usize = 200;
const ASKED_AT_ONCE: usize = 8;

/// What is said where nothing is sent.
const THERE: &str = "the daemon has this image";
const THERE_NAMED: &str = "the daemon has this image; named it";

/// An image on its way into a daemon.
pub(super) struct Load<'a> {
    pub(super) store: &'a Store,
    /// Brings what the store lacks and the daemon as well.
    pub(super) images: &'a Images,
    pub(super) bundle: &'a Bundle,
    pub(super) names: &'a [Reference],
    pub(super) work: &'a Work,
}

/// Indices of layers in [`Bundle::blobs`].
type Layers = BTreeSet<usize>;

impl Load<'_> {
    /// Loads the image; returns which daemon has it now.
    ///
    /// # Errors
    /// [`ExitKind::Source`] where no daemon answers, or the one that does refuses the image.
    pub(super) async fn run(&self, target: &LoadTarget) -> Result<String, StepError> {
        let (told, daemon) = match target {
            LoadTarget::Sockets(sockets) => {
                let daemon = Daemon::first_of(sockets).await?;
                let told = match self.by_name(&daemon).await {
                    Some(told) => told.to_owned(),
                    None => self.transfer(&daemon).await?,
                };
                (told, format!("the daemon at {}", daemon.socket.display()))
            }
            LoadTarget::Containerd(to) => {
                let told = containerd::load(self, to).await?;
                (told, format!("namespace {} of containerd at {}", to.namespace, to.address.display()))
            }
        };
        self.work.part(told, true);
        Ok(daemon)
    }

    /// Gives the image its names where the daemon has it, and says so; `None` where something must be sent.
    async fn by_name(&self, daemon: &Daemon) -> Option<&'static str> {
        let paths = self.names.iter().map(|name| name.tag().map(|tag| format!("/images/{}:{tag}/json", name.name())));
        let paths: Vec<String> = paths.collect::<Option<_>>()?;
        let found = join_all(paths.iter().map(|path| daemon.get(path))).await;
        let found: Vec<Option<Digest>> =
            found.iter().map(|image| image.as_ref().and_then(|image| self.id(image))).collect();
        let id = match found.iter().flatten().next() {
            Some(id) => id.clone(),
            None => self.by_id(daemon).await?,
        };
        // An image of containerd's store, whose ID is the manifest's digest, may lack layers.
        if id == self.bundle.root.digest && self.lacks(daemon).await.is_some_and(|lacks| !lacks.is_empty()) {
            return None;
        }
        let unnamed: Vec<&Reference> =
            self.names.iter().zip(&found).filter_map(|(name, found)| found.is_none().then_some(name)).collect();
        for name in &unnamed {
            let path = format!("/images/{id}/tag?repo={}&tag={}", name.name(), name.tag()?);
            let (status, _) = daemon.send("POST", &path, nothing()).await.ok()?;
            if !status.is_success() {
                return None;
            }
        }
        Some(if unnamed.is_empty() { THERE } else { THERE_NAMED })
    }

    async fn by_id(&self, daemon: &Daemon) -> Option<Digest> {
        for id in self.ids() {
            if let Some(image) = daemon.get(&format!("/images/{id}/json")).await {
                return self.id(&image);
            }
        }
        None
    }

    /// What daemons may call the image: graph drivers and Podman take the config, containerd's store takes the manifest.
    fn ids(&self) -> impl Iterator<Item = &Digest> {
        [&self.bundle.root.digest].into_iter().chain(self.bundle.single.as_ref().map(|(config, _)| &config.digest))
    }

    /// The ID of an image of the daemon, if it is this one.
    fn id(&self, image: &Value) -> Option<Digest> {
        let id = image["Id"].as_str()?;
        self.ids().find(|own| own.to_string() == id || own.hex() == id).cloned()
    }

    /// Sends what the daemon lacks, and says how much that was.
    async fn transfer(&self, daemon: &Daemon) -> Result<String, StepError> {
        let count = self.bundle.blobs.len();
        let all: Layers = (0..count).collect();
        let keeps = daemon.keeps().await;
        let mut missing = match keeps {
            Keeps::Blobs => self.lacks(daemon).await.unwrap_or_else(|| all.clone()),
            Keeps::Chains => Layers::new(),
            Keeps::Layers => self.unknown(&podman_layers(daemon).await),
            Keeps::Unknown => all.clone(),
        };
        let mut sent_bytes = 0;
        for _ in 0..ATTEMPTS {
            if missing == all {
                break;
            }
            sent_bytes += self.size(&missing);
            match self.send(daemon, &missing).await? {
                Ok(()) => {
                    let lost = match keeps {
                        Keeps::Blobs => self.lacks(daemon).await.unwrap_or_else(|| all.clone()),
                        Keeps::Chains | Keeps::Layers | Keeps::Unknown => Layers::new(),
                    };
                    if lost.is_empty() {
                        return Ok(sent(missing.len(), count, sent_bytes));
                    }
                    missing.extend(lost);
                }
                Err(reason) => match first_named(&reason, &self.bundle.blobs, &missing) {
                    Some(index) => missing.extend(index..count),
                    // Whatever it is, the complete archive shows whether it has to do with the holes.
                    None => break,
                },
            }
        }
        self.send(daemon, &all).await?.map_err(|reason| {
            let message = format!("the daemon at `{}` did not load the image", daemon.socket.display());
            let mut report = Report::new("load", message);
            report.hint = Some("`-o type=docker,dest=FILE` writes the archive that `docker load` reads".into());
            report.causes.push(reason);
            StepError::new(ExitKind::Source, report)
        })?;
        Ok(sent(count, count, sent_bytes + self.size(&all)))
    }

    fn size(&self, layers: &Layers) -> u64 {
        layers.iter().map(|index| self.bundle.blobs[*index].size).sum()
    }

    /// The layers that a Docker with containerd's image store lacks; `None` where it does not tell.
    async fn lacks(&self, daemon: &Daemon) -> Option<Layers> {
        let blobs = &self.bundle.blobs;
        let asked = async {
            let client = grpc::Client::new(daemon.grpc().await?).await?;
            content::existing(&client, blobs).await.map_err(|failure| failure.to_string())
        };
        let existing = match tokio::time::timeout(ANSWER, asked).await {
            Ok(Ok(existing)) => existing,
            Ok(Err(reason)) => {
                tracing::debug!(reason, "the daemon does not tell which blobs it has");
                return None;
            }
            Err(_) => return None,
        };
        Some((0..blobs.len()).filter(|index| !existing.contains(&blobs[*index].digest)).collect())
    }

    /// The layers whose diff IDs are not among `known`.
    fn unknown(&self, known: &BTreeSet<String>) -> Layers {
        let Some((config, layers)) = &self.bundle.single else { return (0..self.bundle.blobs.len()).collect() };
        let documents = &self.bundle.documents;
        let config = documents.iter().find(|document| document.descriptor.digest == config.digest);
        let config = config.and_then(|document| serde_json::from_slice::<ImageConfig>(&document.bytes).ok());
        let diff_ids = config.map(|config| config.rootfs.diff_ids).unwrap_or_default();
        let is_known = |blob: &Descriptor| {
            let mut pairs = layers.iter().zip(&diff_ids);
            pairs.any(|(layer, diff_id)| layer.digest == blob.digest && known.contains(&diff_id.to_string()))
        };
        let blobs = self.bundle.blobs.iter().enumerate();
        blobs.filter(|(_, blob)| !is_known(blob)).map(|(index, _)| index).collect()
    }

    /// Sends the archive with these layers. The inner error is what the daemon says.
    async fn send(&self, daemon: &Daemon, layers: &Layers) -> Result<Result<(), String>, StepError> {
        let mut bundle = self.bundle.clone();
        bundle.blobs = layers.iter().map(|index| self.bundle.blobs[*index].clone()).collect();
        try_join_all(bundle.blobs.iter().map(|blob| self.bring(blob))).await?;
        let (pieces, mut queue) = mpsc::channel::<io::Result<bytes::Bytes>>(2);
        let (blobs, names) = (Blobs::Store(self.store.clone()), self.names.to_vec());
        let writer = tokio::task::spawn_blocking(move || {
            let mut out = io::BufWriter::with_capacity(PIECE_BYTES, Pieces(pieces.clone()));
            let written = write_archive(&blobs, &[(&bundle, &names)], true, &mut out).and_then(|()| out.flush());
            if let Err(error) = &written {
                // The daemon must not take the archive for complete.
                let _ = pieces.blocking_send(Err(io::Error::other(error.to_string())));
            }
            written
        });
        let pieces = futures::stream::poll_fn(move |context| queue.poll_recv(context).map_ok(Frame::data));
        let body = BodyExt::boxed(StreamBody::new(pieces));
        let answered = match daemon.send("POST", "/images/load?quiet=1", body).await {
            Ok((status, text)) => answer(status, &text),
            Err(reason) => Err(reason),
        };
        let written = writer.await.map_err(|error| internal(format!("a blocking task ended: {error}")))?;
        match (answered, written) {
            (Ok(()), Ok(())) => Ok(Ok(())),
            // What the archive lacks is the reason for what the daemon said.
            (Err(reason), Err(error)) if error.kind() != io::ErrorKind::InvalidData => Ok(Err(reason)),
            (Err(reason), Ok(())) => Ok(Err(reason)),
            (_, Err(error)) => Err(super::bundle::io_error("cannot write the image for the daemon", &error)),
        }
    }

    /// Makes sure that the store has a layer.
    async fn bring(&self, blob: &Descriptor) -> Result<(), StepError> {
        let (store, wanted) = (self.store.clone(), blob.clone());
        let is_there = on_disk(move || Ok(store.has_blob(&wanted.digest, Some(wanted.size)))).await?;
        if is_there || self.images.bring_blob(blob).await? { Ok(()) } else { Err(gone(blob)) }
    }
}

/// The diff IDs of the layers that Podman's images have.
async fn podman_layers(daemon: &Daemon) -> BTreeSet<String> {
    let listed = daemon.get("/images/json").await;
    let mut images: Vec<(i64, String)> = listed
        .iter()
        .filter_map(Value::as_array)
        .flatten()
        .filter_map(|image| Some((image["Created"].as_i64().unwrap_or(0), image["Id"].as_str()?.to_owned())))
        .collect();
    images.sort_unstable_by(|a, b| b.cmp(a));
    images.truncate(MAX_ASKED);
    let asked = images.into_iter().map(|(_, id)| async move { daemon.get(&format!("/images/{id}/json")).await });
    let answers: Vec<Option<Value>> = futures::stream::iter(asked).buffer_unordered(ASKED_AT_ONCE).collect().await;
    let layers = answers.iter().flatten().filter_map(|image| image["RootFS"]["Layers"].as_array()).flatten();
    layers.filter_map(|layer| layer.as_str().map(str::to_owned)).collect()
}

/// The lowest layer that was left out and that a daemon's refusal names.
fn first_named(reason: &str, blobs: &[Descriptor], sent: &Layers) -> Option<usize> {
    let left_out = blobs.iter().enumerate().filter(|(index, _)| !sent.contains(index));
    left_out.into_iter().find(|(_, blob)| reason.contains(blob.digest.hex())).map(|(index, _)| index)
}

/// What to say of `count` layers that were sent.
fn sent(count: usize, of: usize, bytes: u64) -> String {
    let (unit, divisor) = match bytes {
        0..1_000_000 => ("kB", 1e3),
        1_000_000..1_000_000_000 => ("MB", 1e6),
        _ => ("GB", 1e9),
    };
    #[allow(clippy::cast_precision_loss, reason = "it is rounded for display")]
    let amount = bytes as f64 / divisor;
    format!("{count} of {of} layers sent, {amount:.1} {unit}")
}

/// What the daemon's answer says: it is a stream of JSON objects, and a failure stands in one of them.
fn answer(status: StatusCode, text: &str) -> Result<(), String> {
    let objects = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let failure = objects.into_iter().find_map(|object| {
        let message = object.get("error").or_else(|| object.get("message").filter(|_| !status.is_success()));
        // Docker with containerd's store takes an image that it cannot unpack, and mentions that.
        let mentioned =
            || object.get("stream").filter(|text| text.as_str().is_some_and(|text| text.starts_with("Error ")));
        message.or_else(mentioned).and_then(|message| message.as_str().map(|text| text.trim().to_owned()))
    });
    match failure {
        Some(message) => Err(message),
        None if status.is_success() => Ok(()),
        None => Err(format!("it answered {status}")),
    }
}

/// Hands what is written on as pieces of a stream.
struct Pieces(mpsc::Sender<io::Result<bytes::Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = bytes::Bytes::copy_from_slice(bytes);
        self.0.blocking_send(Ok(piece)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_daemons_are_understood() {
        for (status, text, expected) in [
            (200, r#"{"stream":"Loaded image: app:1\n"}"#, Ok(())),
            (200, "", Ok(())),
            (
                200,
                "{\"stream\":\"Loaded image: app:1\\n\"}\n{\"stream\":\"Error unpacking image app:1: no\\n\"}",
                Err("Error unpacking image app:1: no"),
            ),
            (
                200,
                r#"{"errorDetail":{"message":"open x: no such file"},"error":"open x: no such file"}"#,
                Err("open x: no such file"),
            ),
            (500, r#"{"cause":"none","message":"failed to load image","response":500}"#, Err("failed to load image")),
            (502, "gateway", Err("it answered 502 Bad Gateway")),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(answer(status, text), expected.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn the_lowest_layer_that_was_left_out_and_is_named_counts() {
        let blobs: Vec<Descriptor> =
            [b"a", b"b", b"c"].iter().map(|bytes| Descriptor::new("", Digest::sha256(*bytes), 1)).collect();
        let names = |named: &[usize]| -> String {
            named.iter().map(|index| format!("open /tmp/blobs/sha256/{}: gone; ", blobs[*index].digest.hex())).collect()
        };
        for (named, sent, expected) in
            [(&[2, 1][..], &[][..], Some(1)), (&[1, 2], &[1], Some(2)), (&[1], &[1], None), (&[], &[], None)]
        {
            let sent = sent.iter().copied().collect();
            assert_eq!(first_named(&names(named), &blobs, &sent), expected, "{named:?}");
        }
    }

    #[test]
    fn what_was_sent_is_told_in_a_line() {
        assert_eq!(sent(2, 14, 3_140_000), "2 of 14 layers sent, 3.1 MB");
        assert_eq!(sent(0, 3, 0), "0 of 3 layers sent, 0.0 kB");
        assert_eq!(sent(3, 3, 2_000_000_000), "3 of 3 layers sent, 2.0 GB");
    }
}
