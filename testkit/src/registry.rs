//! Registries for tests: a scripted one in this process, and Debian's `docker-registry`.
//!
//! [`FakeRegistry`] follows the distribution-spec until a test tells it otherwise: hooks see each request first, replies
//! can be bent on their way out, and a [`Reply`] can be cut, dribbled or held back at any byte. It listens on loopback
//! only, and keeps a record of all that it received, so that a test can tell what a client gave away. [`RealRegistry`]
//! shows that both the client and the fake one mean what others mean.

mod auth;
mod distribution;
mod http;
mod real;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub use self::auth::TokenOptions;
use self::auth::{Door, Policy};
use self::distribution::{Content, Distribution, Switches};
use self::http::{Handler, Server, Transport};
pub use self::http::{Reply, Request};
pub use self::real::{Access, REAL_PASSWORD, REAL_USER, RealRegistry};
use crate::certs::Certificate;
use crate::sha256;

/// How long [`FakeRegistry::wait_for`] waits before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

type Hook = Arc<dyn Fn(&Request) -> Option<Reply> + Send + Sync>;
type Bend = Arc<dyn Fn(&Request, Reply) -> Reply + Send + Sync>;

/// A scripted registry on loopback. Dropping it ends its threads and connections.
pub struct FakeRegistry {
    server: Server,
    core: Arc<Core>,
}

struct Core {
    host: String,
    distribution: Distribution,
    door: Door,
    hooks: RwLock<Hooks>,
    queues: Mutex<Vec<Queue>>,
}

#[derive(Default)]
struct Hooks {
    head: Vec<Hook>,
    before: Vec<Hook>,
    authorized: Vec<Hook>,
    bends: Vec<Bend>,
}

struct Queue {
    method: String,
    part: String,
    replies: VecDeque<Reply>,
}

impl FakeRegistry {
    /// Starts a registry that speaks plain HTTP.
    ///
    /// # Panics
    /// When it cannot listen on loopback, as all that start one do.
    pub fn start() -> FakeRegistry {
        Self::listen("127.0.0.1:0", Transport::Plain)
    }

    /// Starts a registry that speaks TLS with `certificate`.
    pub fn start_tls(certificate: &Certificate) -> FakeRegistry {
        let config = tls_config(certificate).expect("a certificate made here is usable");
        Self::listen("127.0.0.1:0", Transport::Tls(Arc::new(config)))
    }

    /// Starts a listener that accepts connections and says nothing: a TLS handshake with it never ends.
    pub fn start_mute() -> FakeRegistry {
        Self::listen("127.0.0.1:0", Transport::Mute)
    }

    fn listen(address: &str, transport: Transport) -> FakeRegistry {
        let scheme = if matches!(transport, Transport::Plain) { "http" } else { "https" };
        let mut core = None;
        let server = Server::start(address, transport, |host| {
            let made = Arc::new(Core {
                host: host.to_owned(),
                distribution: Distribution {
                    origin: format!("{scheme}://{host}"),
                    content: Mutex::new(Content::default()),
                    switches: Mutex::new(Switches { refuses_dangling: true, ..Switches::default() }),
                },
                door: Door::default(),
                hooks: RwLock::default(),
                queues: Mutex::default(),
            });
            core = Some(Arc::clone(&made));
            made
        })
        .expect("loopback can be listened on");
        FakeRegistry { server, core: core.expect("a server makes its handler") }
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> &str {
        &self.server.host
    }

    /// `http://127.0.0.1:PORT`, or with `https`.
    pub fn origin(&self) -> &str {
        &self.core.distribution.origin
    }

    /// `127.0.0.1:PORT/REPOSITORY:TAG`, or with `@` for a digest.
    pub fn reference(&self, repository: &str, tag: &str) -> String {
        let separator = if tag.contains(':') { '@' } else { ':' };
        format!("{}/{repository}{separator}{tag}", self.host())
    }

    // Content.

    /// Stores a blob, and returns its digest.
    pub fn put_blob(&self, repository: &str, bytes: impl Into<Vec<u8>>) -> String {
        let bytes = bytes.into();
        let digest = format!("sha256:{}", sha256(&bytes));
        self.put_blob_as(repository, &digest, bytes);
        digest
    }

    /// Stores a blob under a digest that need not be its own.
    pub fn put_blob_as(&self, repository: &str, digest: &str, bytes: impl Into<Vec<u8>>) {
        let mut content = self.core.distribution.content();
        let target = content.repositories.entry(repository.to_owned()).or_default();
        target.blobs.insert(digest.to_owned(), Arc::new(bytes.into()));
    }

    /// Forgets a blob.
    pub fn remove_blob(&self, repository: &str, digest: &str) {
        if let Some(target) = self.core.distribution.content().repositories.get_mut(repository) {
            target.blobs.remove(digest);
        }
    }

    /// Stores a manifest, whatever it is, gives it the tag unless that is empty, and returns its digest.
    pub fn put_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: impl Into<Vec<u8>>) -> String {
        let bytes = bytes.into();
        let digest = format!("sha256:{}", sha256(&bytes));
        self.put_manifest_as(repository, &digest, media_type, bytes);
        if !tag.is_empty() {
            self.set_tag(repository, tag, &digest);
        }
        digest
    }

    /// Stores a manifest under a digest that need not be its own.
    pub fn put_manifest_as(&self, repository: &str, digest: &str, media_type: &str, bytes: impl Into<Vec<u8>>) {
        let mut content = self.core.distribution.content();
        let target = content.repositories.entry(repository.to_owned()).or_default();
        target.manifests.insert(digest.to_owned(), (media_type.to_owned(), Arc::new(bytes.into())));
    }

    /// Lets a tag point to `digest`.
    pub fn set_tag(&self, repository: &str, tag: &str, digest: &str) {
        let mut content = self.core.distribution.content();
        let target = content.repositories.entry(repository.to_owned()).or_default();
        target.tags.insert(tag.to_owned(), digest.to_owned());
    }

    /// The blob of this digest.
    pub fn blob(&self, repository: &str, digest: &str) -> Option<Vec<u8>> {
        let content = self.core.distribution.content();
        content.repositories.get(repository)?.blobs.get(digest).map(|bytes| bytes.to_vec())
    }

    /// The digests of all blobs of a repository, in order.
    pub fn blobs(&self, repository: &str) -> Vec<String> {
        let content = self.core.distribution.content();
        content.repositories.get(repository).map(|found| found.blobs.keys().cloned().collect()).unwrap_or_default()
    }

    /// Media type and bytes of the manifest with this tag or digest.
    pub fn manifest(&self, repository: &str, reference: &str) -> Option<(String, Vec<u8>)> {
        let content = self.core.distribution.content();
        let repository = content.repositories.get(repository)?;
        let digest = repository.tags.get(reference).map_or(reference, String::as_str);
        repository.manifests.get(digest).map(|(media_type, bytes)| (media_type.clone(), bytes.to_vec()))
    }

    /// The digest that a tag points to.
    pub fn tag(&self, repository: &str, tag: &str) -> Option<String> {
        self.core.distribution.content().repositories.get(repository)?.tags.get(tag).cloned()
    }

    /// All tags of a repository, in order.
    pub fn tags(&self, repository: &str) -> BTreeMap<String, String> {
        let content = self.core.distribution.content();
        content.repositories.get(repository).map(|found| found.tags.clone()).unwrap_or_default()
    }

    // Rules.

    /// Answers only those who show `user` and `password`.
    pub fn require_basic(&self, user: &str, password: &str) {
        self.core.door.set(Policy::Basic { user: user.to_owned(), password: password.to_owned() });
    }

    /// Answers only those who show a token, which `user` gets for `password` at [`FakeRegistry::origin`]`/token`.
    pub fn require_token(&self, user: &str, password: &str, options: TokenOptions) {
        let options = Box::new(options);
        self.core.door.set(Policy::Token { user: user.to_owned(), password: password.to_owned(), options });
    }

    /// Lets no token be valid any longer that was given out so far.
    pub fn revoke_tokens(&self) {
        self.core.door.revoke();
    }

    /// How many tokens were given out.
    pub fn token_count(&self) -> u64 {
        self.core.door.token_count()
    }

    /// Blobs are always sent whole, whatever range is asked for.
    pub fn ignore_range(&self, ignore: bool) {
        self.core.distribution.switches().ignores_range = ignore;
    }

    /// `Location` is an URL with this host; otherwise only a path.
    pub fn absolute_locations(&self, absolute: bool) {
        self.core.distribution.switches().absolute_locations = absolute;
    }

    /// A request to mount a blob begins an upload instead, as the spec allows.
    pub fn refuse_mounts(&self, refuse: bool) {
        self.core.distribution.switches().refuses_mounts = refuse;
    }

    /// Uploads are answered with 201, and thrown away.
    pub fn lose_uploads(&self, lose: bool) {
        self.core.distribution.switches().loses_uploads = lose;
    }

    /// Whether a manifest is refused while a blob or manifest that it names is missing. It is, unless told otherwise.
    pub fn refuse_dangling(&self, refuse: bool) {
        self.core.distribution.switches().refuses_dangling = refuse;
    }

    /// The smallest chunk that clients are asked to send (`OCI-Chunk-Min-Length`).
    pub fn minimum_chunk(&self, bytes: Option<u64>) {
        self.core.distribution.switches().minimum_chunk = bytes;
    }

    // Scripts. Of several hooks the latest is asked first.

    /// Asks `hook` before anything else is done with a request whose body is there; `None` goes on as usual.
    pub fn on(&self, hook: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) {
        self.core.hooks.write().unwrap_or_else(PoisonError::into_inner).before.push(Arc::new(hook));
    }

    /// As [`FakeRegistry::on`], but before the body of the request is read; see [`Reply::early`] and
    /// [`Reply::cut_upload`]. A reply that says nothing of the body is sent after it.
    pub fn on_head(&self, hook: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) {
        self.core.hooks.write().unwrap_or_else(PoisonError::into_inner).head.push(Arc::new(hook));
    }

    /// As [`FakeRegistry::on`], but only for requests that have shown the credentials which are required.
    pub fn on_authorized(&self, hook: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) {
        self.core.hooks.write().unwrap_or_else(PoisonError::into_inner).authorized.push(Arc::new(hook));
    }

    /// Changes replies on their way out: those of the usual behaviour and of
    /// [`FakeRegistry::on_authorized`], not those of other hooks and queues.
    pub fn bend(&self, bend: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) {
        self.core.hooks.write().unwrap_or_else(PoisonError::into_inner).bends.push(Arc::new(bend));
    }

    /// Gives these replies, one after the other, to the next requests with `method` whose path contains `part`.
    pub fn queue(&self, method: &str, part: &str, replies: impl IntoIterator<Item = Reply>) {
        let replies = replies.into_iter().collect();
        let queue = Queue { method: method.to_owned(), part: part.to_owned(), replies };
        self.core.queues.lock().unwrap_or_else(PoisonError::into_inner).push(queue);
    }

    /// Forgets all hooks, bends and queues.
    pub fn behave(&self) {
        *self.core.hooks.write().unwrap_or_else(PoisonError::into_inner) = Hooks::default();
        self.core.queues.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    // The record.

    /// All requests so far, in the order in which their heads arrived.
    pub fn requests(&self) -> Vec<Request> {
        self.server.shared.requests()
    }

    /// The requests with `method` whose path contains `part`.
    pub fn requests_of(&self, method: &str, part: &str) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.is(method, part)).collect()
    }

    /// Empties the record.
    pub fn forget_requests(&self) {
        self.server.shared.forget_requests();
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> u64 {
        self.server.shared.connections()
    }

    /// Waits until `done` is true of the record.
    ///
    /// # Panics
    /// After a minute.
    pub fn wait_for(&self, what: &str, done: impl Fn(&[Request]) -> bool) {
        let came = self.server.shared.wait_until(PATIENCE, |requests, _| done(requests));
        assert!(came, "{what}: not within {PATIENCE:?}; requests: {:#?}", self.requests());
    }

    /// Waits until `count` answers have come to the point where they stall.
    ///
    /// # Panics
    /// After a minute.
    pub fn wait_until_stalled(&self, count: usize) {
        let came = self.server.shared.wait_until(PATIENCE, |_, stalled| stalled >= count);
        assert!(came, "no answer stalled within {PATIENCE:?}; requests: {:#?}", self.requests());
    }

    /// The requests that carry a credential: an `Authorization` or `Cookie` header, or one of `secrets` (as it is, or in
    /// base64 with a user in front as in Basic) anywhere in head or body.
    pub fn leaks(&self, secrets: &[&str]) -> Vec<Request> {
        let encoded: Vec<String> = secrets
            .iter()
            .flat_map(|secret| {
                // Where base64 falls depends on the length of what stands before: each of three shifts, without its rim.
                (0..3).map(move |shift| {
                    let text = STANDARD.encode(format!("{}{secret}", &"   "[..shift]));
                    text.trim_end_matches('=').chars().skip(4).take(text.len().saturating_sub(8)).collect::<String>()
                })
            })
            .filter(|text| text.len() >= 6)
            .chain(secrets.iter().map(|&secret| secret.to_owned()))
            .collect();
        let carries = |request: &Request| {
            let text = request.text();
            request.header("authorization").is_some()
                || request.header("cookie").is_some()
                || encoded.iter().any(|secret| text.contains(secret))
        };
        self.requests().into_iter().filter(carries).collect()
    }
}

impl Handler for Core {
    fn head(&self, request: &Request) -> Option<Reply> {
        ask(&self.hooks.read().unwrap_or_else(PoisonError::into_inner).head.clone(), request)
    }

    fn answer(&self, request: &Request) -> Reply {
        // Hooks are called without the lock, so that they may add hooks.
        let (before, authorized, bends) = {
            let hooks = self.hooks.read().unwrap_or_else(PoisonError::into_inner);
            (hooks.before.clone(), hooks.authorized.clone(), hooks.bends.clone())
        };
        if let Some(reply) = ask(&before, request).or_else(|| self.queued(request)) {
            return reply;
        }
        let reply = self.door.token(request).unwrap_or_else(|| {
            match self.door.check(request, &self.distribution.origin, &self.host) {
                Err(refusal) => refusal,
                Ok(()) => ask(&authorized, request).unwrap_or_else(|| {
                    self.distribution.answer(request, |repository| self.door.may_pull(request, repository))
                }),
            }
        });
        bends.iter().fold(reply, |reply, bend| bend(request, reply))
    }
}

impl Core {
    fn queued(&self, request: &Request) -> Option<Reply> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues
            .iter_mut()
            .filter(|queue| request.is(&queue.method, &queue.part))
            .find_map(|queue| queue.replies.pop_front())
    }
}

fn ask(hooks: &[Hook], request: &Request) -> Option<Reply> {
    hooks.iter().rev().find_map(|hook| hook(request))
}

fn tls_config(certificate: &Certificate) -> Result<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        rustls::ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match &certificate.client_authority {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from(authority.clone()))?;
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build()?)
        }
    };
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).context("the key is no PEM")?;
    let mut config = builder.with_single_cert(vec![CertificateDer::from(certificate.der.clone())], key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests;
