//! Loading an image into a local daemon: Docker, or Podman with its Docker-compatible socket.
//!
//! The daemon reads an archive, which is written while it is sent. The first socket that answers is the one.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use build_engine_oci::Reference;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Limited, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::bundle::{Blobs, Bundle, write_archive};
use super::ops::{StepError, internal};
use crate::{ExitKind, Report};

/// How long a socket may take to say that somebody is there.
const ANSWER: Duration = Duration::from_secs(5);

/// Longest answer that is read.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// Size of the pieces of the archive.
const PIECE_BYTES: usize = 256 << 10;

/// Loads an image under `names` into the daemon behind the first of `sockets` that answers; returns which it was.
///
/// # Errors
/// [`ExitKind::Source`] where no daemon answers, or the one that does refuses the image.
pub(super) async fn load(
    sockets: &[PathBuf],
    blobs: &Blobs,
    bundle: &Bundle,
    names: &[Reference],
) -> Result<PathBuf, StepError> {
    let (socket, mut daemon) = find(sockets).await?;
    let (pieces, mut queue) = mpsc::channel::<io::Result<bytes::Bytes>>(2);
    let (blobs, bundle, names) = (blobs.clone(), bundle.clone(), names.to_vec());
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
    let answered = match daemon.send("POST", "/images/load?quiet=1", BodyExt::boxed(StreamBody::new(pieces))).await {
        Ok((status, text)) => answer(status, &text),
        Err(reason) => Err(reason),
    };
    let written = writer.await.map_err(|error| internal(format!("a blocking task ended: {error}")))?;
    match (answered, written) {
        (Ok(()), Ok(())) => Ok(socket),
        // What the archive lacks is the reason for what the daemon said.
        (_, Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
            Err(super::bundle::io_error("cannot write the image for the daemon", &error))
        }
        (Err(reason), _) => {
            let message = format!("the daemon at `{}` did not load the image", socket.display());
            let mut report = Report::new("load", message);
            report.hint = Some("`-o type=docker,dest=FILE` writes the archive that `docker load` reads".into());
            report.causes.push(reason);
            Err(StepError::new(ExitKind::Source, report))
        }
        (Ok(()), Err(error)) => Err(super::bundle::io_error("cannot write the image for the daemon", &error)),
    }
}

/// What the daemon's answer says: it is a stream of JSON objects, and a failure stands in one of them.
fn answer(status: StatusCode, text: &str) -> Result<(), String> {
    let objects = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let failure = objects.into_iter().find_map(|object| {
        let message = object.get("error").or_else(|| object.get("message").filter(|_| !status.is_success()));
        message.and_then(|message| message.as_str().map(str::to_owned))
    });
    match failure {
        Some(message) => Err(message),
        None if status.is_success() => Ok(()),
        None => Err(format!("it answered {status}")),
    }
}

/// The first daemon that answers.
async fn find(sockets: &[PathBuf]) -> Result<(PathBuf, Daemon), StepError> {
    let mut tried = Vec::new();
    for socket in sockets {
        match tokio::time::timeout(ANSWER, Daemon::find(socket)).await {
            Ok(Ok(daemon)) => return Ok((socket.clone(), daemon)),
            Ok(Err(reason)) => tried.push(format!("`{}`: {reason}", socket.display())),
            Err(_) => tried.push(format!("`{}`: it does not answer", socket.display())),
        }
    }
    let mut report = Report::new("no-daemon", "no Docker or Podman answers, so nothing can be loaded")
        .hint("start one, name its socket with DOCKER_HOST=unix://PATH, or use `-o type=docker,dest=FILE`");
    report.causes = tried;
    Err(StepError::new(ExitKind::Source, report))
}

type Body = BoxBody<bytes::Bytes, io::Error>;

/// A connection to a daemon.
struct Daemon {
    requests: SendRequest<Body>,
    connection: JoinHandle<()>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Daemon {
    async fn connect(socket: &Path) -> Result<Self, String> {
        let stream = UnixStream::connect(socket).await.map_err(|error| error.to_string())?;
        let (requests, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let connection = tokio::spawn(async move {
            // Whoever waits for an answer learns of it.
            let _ = connection.await;
        });
        Ok(Self { requests, connection })
    }

    /// Connects, and makes sure that somebody is there.
    async fn find(socket: &Path) -> Result<Self, String> {
        let mut daemon = Self::connect(socket).await?;
        let nothing = Empty::new().map_err(|never| match never {}).boxed();
        let (status, _) = daemon.send("GET", "/_ping", nothing).await?;
        if !status.is_success() {
            return Err(format!("it answered {status}"));
        }
        // One connection per request: not every daemon keeps them open.
        Self::connect(socket).await
    }

    async fn send(&mut self, method: &str, path: &str, body: Body) -> Result<(StatusCode, String), String> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/x-tar")
            .body(body)
            .map_err(|error| error.to_string())?;
        let response = self.requests.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
        let bytes = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
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
