//! What the tests share: a client with small limits, content, and what an error says in full.

use std::error::Error as _;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use build_engine_oci::{Descriptor, Digest, Reference, media_type};
use build_engine_registry::{
    Client, Content, Credential, Credentials, Error, HostSettings, Limits, NoCredentials, Settings,
};
use build_engine_testkit::registry::{FakeRegistry, Reply, Request};
use futures::future::BoxFuture;

pub(crate) const PASSWORD: &str = "hunter2-is-secret";

pub(crate) fn limits() -> Limits {
    Limits {
        connect_seconds: 1.0,
        response_seconds: 0.5,
        stall_seconds: 0.3,
        min_bytes: 1000,
        retries: 3,
        backoff_seconds: 0.01,
        max_wait_seconds: 0.05,
    }
}

pub(crate) fn settings() -> Settings {
    Settings { limits: limits(), ..Settings::default() }
}

pub(crate) fn with_host(host: &str, host_settings: HostSettings) -> Settings {
    Settings { hosts: [(host.to_owned(), host_settings)].into(), ..settings() }
}

pub(crate) fn anonymous(settings: Settings) -> Client {
    Client::new(settings, Arc::new(NoCredentials)).unwrap()
}

pub(crate) fn client() -> Client {
    anonymous(settings())
}

pub(crate) fn basic() -> Credential {
    Credential::Basic { username: "user".into(), password: PASSWORD.into() }
}

/// One credential, for one host; counts how often it is asked for.
pub(crate) struct Known {
    pub(crate) host: String,
    pub(crate) credential: Credential,
    pub(crate) asked: AtomicUsize,
}

impl Known {
    pub(crate) fn new(host: &str, credential: Credential) -> Arc<Self> {
        Arc::new(Self { host: host.to_owned(), credential, asked: AtomicUsize::new(0) })
    }
}

impl Credentials for Known {
    fn find<'a>(&'a self, host: &'a str, _repository: &'a str) -> BoxFuture<'a, Result<Option<Credential>, Error>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::Relaxed);
            Ok((host == self.host).then(|| self.credential.clone()))
        })
    }
}

pub(crate) fn client_as(registry: &FakeRegistry, credential: Credential) -> Client {
    Client::new(settings(), Known::new(registry.host(), credential)).unwrap()
}

/// Bytes that look like nothing, the same in every run.
pub(crate) fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

pub(crate) fn layer(bytes: &[u8]) -> Descriptor {
    Descriptor::new(media_type::OCI_LAYER, Digest::sha256(bytes), bytes.len() as u64)
}

pub(crate) fn repository(registry: &FakeRegistry, name: &str) -> Reference {
    format!("{}/{name}", registry.host()).parse().unwrap()
}

/// Reads a blob to its end.
pub(crate) async fn read(
    client: &Client,
    repository: &Reference,
    descriptor: &Descriptor,
    offset: u64,
) -> Result<Vec<u8>, Error> {
    let mut blob = client.blob(repository, descriptor, offset).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = blob.chunk().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

pub(crate) struct Bytes(pub(crate) Arc<Vec<u8>>);

impl Content for Bytes {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let mut cursor = io::Cursor::new(Shared(self.0.clone()));
        cursor.set_position(offset);
        Ok(Box::new(cursor))
    }
}

struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

pub(crate) fn content(bytes: &[u8]) -> Arc<dyn Content> {
    Arc::new(Bytes(Arc::new(bytes.to_vec())))
}

/// An error with all its causes, in every way that it can be shown.
pub(crate) fn story(error: &Error) -> String {
    let mut text = format!("{error}");
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(&format!(": {next}"));
        cause = next.source();
    }
    text
}

/// The same, and what programmers see.
pub(crate) fn whole_story(error: &Error) -> String {
    format!("{}\n{error:?}\n{:?}", story(error), error.hint())
}

/// A bend that changes the first `times` answers to `method` whose path contains `part`.
pub(crate) fn first(
    times: usize,
    method: &'static str,
    part: &'static str,
    change: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
) -> impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static {
    let count = AtomicUsize::new(0);
    move |request, reply| {
        if request.is(method, part) && count.fetch_add(1, Ordering::Relaxed) < times {
            change(request, reply)
        } else {
            reply
        }
    }
}
