//! A daemon with Docker's API behind a socket: Docker, or Podman.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, SERVER, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::super::ops::StepError;
use crate::{ExitKind, Report};

/// How long a socket may take to say that somebody is there.
pub(super) const ANSWER: Duration = Duration::from_secs(5);

/// Longest answer that is read.
const MAX_ANSWER_BYTES: usize = 4 << 20;

pub(super) type Body = BoxBody<Bytes, io::Error>;

/// A daemon that has answered.
pub(super) struct Daemon {
    pub(super) socket: PathBuf,
    /// What it calls itself, as in `Docker/28.5.2 (linux)`.
    pub(super) server: String,
}

/// Where a daemon keeps its images, which decides how to learn what it lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keeps {
    /// Docker with containerd's content store: blobs by digest.
    Blobs,
    /// Docker with a graph driver: layers by chain ID.
    Chains,
    /// Podman: layers by the digests of their blobs, and by diff ID where it has seen the blob before.
    Layers,
    /// Something else that speaks the API.
    Unknown,
}

impl Daemon {
    /// The first daemon that answers.
    pub(super) async fn first_of(sockets: &[PathBuf]) -> Result<Self, StepError> {
        let mut tried = Vec::new();
        for socket in sockets {
            match tokio::time::timeout(ANSWER, Self::find(socket)).await {
                Ok(Ok(daemon)) => return Ok(daemon),
                Ok(Err(reason)) => tried.push(format!("`{}`: {reason}", socket.display())),
                Err(_) => tried.push(format!("`{}`: it does not answer", socket.display())),
            }
        }
        let mut report = Report::new("no-daemon", "no Docker or Podman answers, so nothing can be loaded")
            .hint("start one, name its socket with DOCKER_HOST=unix://PATH, or use `-o type=docker,dest=FILE`");
        report.causes = tried;
        Err(StepError::new(ExitKind::Source, report))
    }

    async fn find(socket: &Path) -> Result<Self, String> {
        let mut daemon = Self { socket: socket.to_owned(), server: String::new() };
        let response = daemon.connect().await?.ask(request("GET", "/_ping", nothing())?).await?;
        if !response.status().is_success() {
            return Err(format!("it answered {}", response.status()));
        }
        let server = response.headers().get(SERVER).and_then(|value| value.to_str().ok());
        daemon.server = server.unwrap_or_default().to_owned();
        Ok(daemon)
    }

    /// Where it keeps its images.
    pub(super) async fn keeps(&self) -> Keeps {
        if self.server.starts_with("Libpod/") {
            return Keeps::Layers;
        }
        let info = if self.server.starts_with("Docker/") { self.get("/info").await } else { None };
        let Some(status) = info.as_ref().and_then(|info| info["DriverStatus"].as_array()) else {
            return Keeps::Unknown;
        };
        let of_containerd = status.iter().any(|pair| {
            let kind = pair[1].as_str().filter(|_| pair[0] == "driver-type");
            kind.is_some_and(|kind| kind.starts_with("io.containerd.snapshotter."))
        });
        if of_containerd { Keeps::Blobs } else { Keeps::Chains }
    }

    /// A document of the daemon; `None` where it has none, or says nothing that can be read.
    pub(super) async fn get(&self, path: &str) -> Option<Value> {
        let answer = tokio::time::timeout(ANSWER, self.send("GET", path, nothing())).await;
        let (status, text) = answer.ok()?.ok()?;
        status.is_success().then(|| serde_json::from_str(&text).ok()).flatten()
    }

    /// One request, on a connection of its own: not every daemon keeps them open.
    pub(super) async fn send(&self, method: &str, path: &str, body: Body) -> Result<(StatusCode, String), String> {
        let mut connection = self.connect().await?;
        let response = connection.ask(request(method, path, body)?).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
        let bytes = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// The connection to the gRPC services that Docker offers at `/grpc`.
    pub(super) async fn grpc(&self) -> Result<Upgraded, String> {
        let mut asked = request("POST", "/grpc", nothing())?;
        let headers = asked.headers_mut();
        headers.insert(CONNECTION, hyper::header::HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, hyper::header::HeaderValue::from_static("h2c"));
        let mut connection = self.connect().await?;
        let response = connection.ask(asked).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(format!("it answered {}", response.status()));
        }
        hyper::upgrade::on(response).await.map_err(|error| error.to_string())
    }

    async fn connect(&self) -> Result<Connection, String> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| error.to_string())?;
        let (requests, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let task = tokio::spawn(async move {
            // Whoever waits for an answer learns of it.
            let _ = connection.with_upgrades().await;
        });
        Ok(Connection { requests, task })
    }
}

/// A body without bytes.
pub(super) fn nothing() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

fn request(method: &str, path: &str, body: Body) -> Result<Request<Body>, String> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "localhost")
        .header(CONTENT_TYPE, "application/x-tar")
        .body(body)
        .map_err(|error| error.to_string())
}

struct Connection {
    requests: SendRequest<Body>,
    task: JoinHandle<()>,
}

impl Connection {
    async fn ask(&mut self, request: Request<Body>) -> Result<Response<hyper::body::Incoming>, String> {
        self.requests.send_request(request).await.map_err(|error| error.to_string())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}
