//! HTTP, as all of the crate speaks it: one request and its answer.
//!
//! Here are the rules that hold for every request: which TLS a host gets, when plain HTTP is spoken, where redirects may
//! lead, and how long anything may take. Who sends a request again, and with which credentials, is decided above
//! ([`crate::api`]).
//!
//! Invariant: `Authorization` goes to the origin that the request names, and is dropped with the first redirect to
//! another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, COOKIE, HeaderMap, LOCATION};
use reqwest::{Method, NoProxy, Proxy, StatusCode, Url};

use crate::download::Guard;
use crate::endpoint::{Endpoint, Protocol, settings_name};
use crate::realm::is_link_local_url;
use crate::redact::{authority, escape, redact, same_origin, secrets};
use crate::response::Response;
use crate::settings::{Limits, seconds};
use crate::tls::Tls;
use crate::upload::Feed;
use crate::{Error, Settings, failure};

const MAX_REDIRECTS: usize = 5;
/// For files from anywhere: what Go's client, and so BuildKit, follows.
const MAX_REDIRECTS_OF_FILES: usize = 10;
const USER_AGENT: &str = concat!("build-engine/", env!("CARGO_PKG_VERSION"));
/// Hosts that are never spoken to through a proxy.
const NEVER_PROXIED: &str = "localhost,127.0.0.0/8,::1";

/// A request whose body can be sent more than once.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// The host may turn out to speak plain HTTP.
    pub(crate) maybe_plain: bool,
    /// The answer may take so much longer than others.
    pub(crate) slack: Duration,
}

impl Request {
    /// A request without headers and body to an address that was given with its scheme.
    pub(crate) fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: Bytes::new(), maybe_plain: false, slack: Duration::ZERO }
    }
}

/// Which client: they differ in their TLS alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Which {
    Plain,
    Tls,
    /// The TLS of a host with settings of its own.
    Own(String),
}

/// Connections to all hosts.
pub(crate) struct Transport {
    settings: Arc<Settings>,
    tls: Tls,
    proxies: Vec<Proxy>,
    clients: Mutex<HashMap<Which, reqwest::Client>>,
    /// Hosts of which it was found out whether they speak TLS.
    speaks_tls: Mutex<HashMap<String, bool>>,
}

impl Transport {
    /// Reads the files that the settings name.
    pub(crate) fn new(settings: Arc<Settings>) -> Result<Self, Error> {
        let tls = Tls::new(settings.ca_bundle.as_deref());
        let given = &settings.proxies;
        let no = given.no.as_deref().map_or_else(|| NEVER_PROXIED.to_owned(), |no| format!("{no},{NEVER_PROXIED}"));
        let mut proxies = Vec::new();
        for (scheme, address) in [("http", &given.http), ("https", &given.https)] {
            let Some(address) = address.as_deref().filter(|address| !address.is_empty()) else { continue };
            let proxy = if scheme == "http" { Proxy::http(address) } else { Proxy::https(address) };
            // The address may have a password in it, and so may the cause.
            let what = format!("the address of the proxy for {scheme} is not one");
            let proxy = proxy.map_err(|_| Error::Settings { what, source: None })?;
            proxies.push(proxy.no_proxy(NoProxy::from_string(&no)));
        }
        let transport = Self { settings, tls, proxies, clients: Mutex::default(), speaks_tls: Mutex::default() };
        for (host, settings) in &transport.settings.hosts {
            if !settings.ca.is_empty() || settings.cert.is_some() || settings.key.is_some() {
                transport.client(&Which::Own(host.clone()))?;
            }
            for mirror in &settings.mirrors {
                if crate::endpoint::split_mirror(mirror).is_none() {
                    let mirror = escape(mirror, 100);
                    let what = format!("`{mirror}` is not a mirror of `{host}`: expected `host[:port][/prefix]`");
                    return Err(Error::Settings { what, source: None });
                }
            }
        }
        Ok(transport)
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.settings.limits
    }

    /// A request for something at `endpoint`; `path` begins with a slash.
    pub(crate) fn request(&self, method: Method, endpoint: &Endpoint, path: &str) -> Result<Request, Error> {
        let known = lock(&self.speaks_tls).get(&endpoint.authority).copied();
        let (scheme, maybe_plain) = match (endpoint.protocol, known) {
            (Protocol::Http, _) | (Protocol::Either, Some(false)) => ("http", false),
            (Protocol::Https, _) | (Protocol::Either, Some(true)) => ("https", false),
            (Protocol::Either, None) => ("https", true),
        };
        let url =
            Url::parse(&format!("{scheme}://{}{path}", endpoint.authority)).map_err(|source| Error::Settings {
                what: format!("`{}` is not a host", escape(&endpoint.authority, 100)),
                source: Some(Box::new(source)),
            })?;
        Ok(Request { maybe_plain, ..Request::new(method, url) })
    }

    /// Forgets what `endpoint` speaks: it may have been started anew with another configuration.
    pub(crate) fn forget(&self, endpoint: &Endpoint) {
        lock(&self.speaks_tls).remove(&endpoint.authority);
    }

    /// Sends a request, follows redirects, and waits for the head of the answer. Any status is an answer.
    pub(crate) async fn send(&self, mut request: Request) -> Result<Response, Error> {
        let mut hops = 0;
        loop {
            let response = match self.send_here(&request).await {
                Err(error) if request.maybe_plain && failure::is_not_tls(&error) => {
                    let host = authority(&request.url);
                    // Both schemes are special ones, between which an address may always change.
                    let _ = request.url.set_scheme("http");
                    let response = self.send_here(&request).await?;
                    lock(&self.speaks_tls).insert(host, false);
                    response
                }
                answer => {
                    let response = answer?;
                    if request.maybe_plain {
                        lock(&self.speaks_tls).insert(authority(&request.url), true);
                    }
                    response
                }
            };
            request.maybe_plain = false;
            let Some(target) = redirect(&request.method, &response)? else { return Ok(response) };
            hops += 1;
            if hops > MAX_REDIRECTS {
                return Err(refused(&request.url, &target, "there are more than 5 redirects in a row"));
            }
            if !same_origin(&request.url, &target) {
                request.headers.remove(AUTHORIZATION);
                request.headers.remove(COOKIE);
            }
            response.drain().await;
            request.url = target;
        }
    }

    /// Sends a request and follows redirects, as far as `guard` lets it. Every hop is a new connection, whose address the
    /// guard sees.
    pub(crate) async fn send_guarded(&self, mut request: Request, guard: Guard) -> Result<Response, Error> {
        for _ in 0..=MAX_REDIRECTS_OF_FILES {
            guard.enter(&request.url)?;
            let client = self.make_client(&self.which(&request.url), Some(guard.clone()))?;
            let response = self.send_with(&client, &request).await?;
            if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED {
                return Ok(response);
            }
            let Some(target) = target(&request.url, response.headers())? else { return Ok(response) };
            if !matches!(target.scheme(), "http" | "https") {
                return Err(refused(&request.url, &target, "it is neither http nor https"));
            }
            if !same_origin(&request.url, &target) {
                request.headers.remove(AUTHORIZATION);
                request.headers.remove(COOKIE);
            }
            response.drain().await;
            request.url = target;
        }
        Err(Error::Protocol {
            host: host_label(&request.url),
            reason: format!("there are more than {MAX_REDIRECTS_OF_FILES} redirects in a row"),
        })
    }

    /// Sends a request and follows no redirect.
    pub(crate) async fn send_here(&self, request: &Request) -> Result<Response, Error> {
        self.send_with(&self.client(&self.which(&request.url))?, request).await
    }

    async fn send_with(&self, client: &reqwest::Client, request: &Request) -> Result<Response, Error> {
        let Request { method, url, headers, body, slack, .. } = request;
        let mut outgoing = client.request(method.clone(), url.clone()).headers(headers.clone());
        if !body.is_empty() {
            outgoing = outgoing.body(body.clone());
        }
        let limits = self.limits();
        let limit = seconds(limits.response_seconds) + *slack;
        let result = match tokio::time::timeout(seconds(limits.connect_seconds) + limit, outgoing.send()).await {
            Err(_) => Err(Error::Timeout {
                host: host_label(url),
                phase: "waiting for the head of the response",
                seconds: limit.as_secs_f64(),
            }),
            Ok(Err(error)) => Err(failure::classify(url, error, limits)),
            Ok(Ok(response)) => Ok(Response::new(response, limits, secrets(headers, body))),
        };
        trace(method, url, &result);
        result
    }

    /// Sends a request with a streamed body of known size. It cannot be repeated, and redirects are not followed.
    pub(crate) async fn send_stream(
        &self,
        request: Request,
        feed: Feed,
        on_tick: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Response, Error> {
        let Request { method, url, headers, .. } = request;
        let client = self.client(&self.which(&url))?;
        let limits = self.limits();
        let hidden = secrets(&headers, &[]);
        let (body, mut watch) = feed.into_body(limits);
        let mut sending =
            std::pin::pin!(client.request(method.clone(), url.clone()).headers(headers).body(body).send());
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        let answer = loop {
            tokio::select! {
                answer = &mut sending => break answer.map_err(|error| failure::classify(&url, error, limits)),
                _ = ticks.tick() => {
                    on_tick(watch.sent());
                    if let Err(stall) = watch.check(&host_label(&url)) {
                        break Err(stall);
                    }
                }
            }
        };
        let result = match (watch.content_error(), answer) {
            (Some(error), _) => Err(Error::Content(error)),
            (None, Ok(response)) => Ok(Response::new(response, limits, hidden)),
            (None, Err(error)) => Err(error),
        };
        on_tick(watch.sent());
        trace(&method, &url, &result);
        result
    }

    fn which(&self, url: &Url) -> Which {
        let name = authority(url);
        let name = settings_name(&name);
        if url.scheme() == "http" {
            // A proxy may speak TLS.
            let proxy = self.settings.proxies.http.as_deref();
            return if proxy.is_some_and(|proxy| proxy.starts_with("https:")) { Which::Tls } else { Which::Plain };
        }
        let with_port =
            format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(443));
        for name in [name, &with_port] {
            if let Some(settings) = self.settings.hosts.get(name)
                && (settings.insecure || !settings.ca.is_empty() || settings.cert.is_some())
            {
                return Which::Own(name.to_owned());
            }
        }
        Which::Tls
    }

    fn client(&self, which: &Which) -> Result<reqwest::Client, Error> {
        let mut clients = lock(&self.clients);
        if let Some(client) = clients.get(which) {
            return Ok(client.clone());
        }
        let client = self.make_client(which, None)?;
        clients.insert(which.clone(), client.clone());
        Ok(client)
    }

    /// A client; with a guard, one whose names are resolved by it.
    fn make_client(&self, which: &Which, guard: Option<Guard>) -> Result<reqwest::Client, Error> {
        let tls = match which {
            Which::Plain => self.tls.none()?,
            Which::Tls => self.tls.config(None)?,
            Which::Own(host) => self.tls.config(self.settings.hosts.get(host))?,
        };
        let loopback = [([127, 0, 0, 1], 0).into(), ([0_u16, 0, 0, 0, 0, 0, 0, 1], 0).into()];
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .http1_only()
            .tcp_nodelay(true)
            .connect_timeout(seconds(self.limits().connect_seconds))
            .pool_idle_timeout(Duration::from_secs(60))
            .referer(false)
            .user_agent(USER_AGENT);
        builder = match guard {
            Some(guard) => builder.dns_resolver(Arc::new(guard)),
            None => builder.resolve_to_addrs("localhost", &loopback),
        };
        for proxy in &self.proxies {
            builder = builder.proxy(proxy.clone());
        }
        builder.build().map_err(|source| Error::Settings {
            what: "the HTTP client cannot be set up".to_owned(),
            source: Some(Box::new(source.without_url())),
        })
    }
}

/// The host of `url` as people write it.
pub(crate) fn host_label(url: &Url) -> String {
    settings_name(&authority(url)).to_owned()
}

fn trace(method: &Method, url: &Url, result: &Result<Response, Error>) {
    match result {
        Ok(response) => tracing::debug!(%method, url = redact(url), status = response.status().as_u16(), "answered"),
        Err(error) => tracing::debug!(%method, url = redact(url), %error, "failed"),
    }
}

fn refused(from: &Url, target: &Url, reason: &'static str) -> Error {
    Error::Redirect { host: host_label(from), target: redact(target), reason }
}

/// Where a response sends us, if its request may be sent again.
fn redirect(method: &Method, response: &Response) -> Result<Option<Url>, Error> {
    let follow = match response.status() {
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER => {
            matches!(*method, Method::GET | Method::HEAD)
        }
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => true,
        _ => false,
    };
    if follow { response.location() } else { Ok(None) }
}

/// Follows a `Location` that `from` gave.
///
/// # Errors
/// [`Error::Redirect`] for places that are never gone to.
pub(crate) fn follow(from: &Url, headers: &HeaderMap) -> Result<Option<Url>, Error> {
    let Some(target) = target(from, headers)? else { return Ok(None) };
    match (from.scheme(), target.scheme()) {
        (_, "https") | ("http", "http") => {}
        (_, "http") => return Err(refused(from, &target, "it leads from https to http")),
        _ => return Err(refused(from, &target, "it is neither http nor https")),
    }
    if target.host_str() != from.host_str() && is_link_local_url(&target) {
        return Err(refused(from, &target, "it is a link-local address"));
    }
    Ok(Some(target))
}

/// The address in a `Location`, whatever it is.
fn target(from: &Url, headers: &HeaderMap) -> Result<Option<Url>, Error> {
    let Some(location) = headers.get(LOCATION) else { return Ok(None) };
    let target = location.to_str().ok().and_then(|location| from.join(location).ok());
    let Some(mut target) = target else {
        return Err(Error::Protocol { host: host_label(from), reason: "its `Location` is not an address".to_owned() });
    };
    // Names in addresses become credentials of the request, and we have been given none for that host.
    let _ = target.set_username("");
    let _ = target.set_password(None);
    target.set_fragment(None);
    Ok(Some(target))
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
