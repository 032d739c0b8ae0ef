//! What is put into `Authorization`: passwords, and the tokens that token services give for them.
//!
//! Source: distribution's "Token Authentication Specification" and "OAuth2 Token Authentication".
//!
//! Invariants: credentials are asked for anew whenever a token is needed, and never kept beyond the header made of them;
//! a refresh token that a service sends is not stored; only services that [`realm::judge`] allows are asked.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, Url};
use serde::Deserialize;

use crate::Error;
use crate::auth::{Credential, Credentials};
use crate::challenge::{self, Challenge};
use crate::endpoint::Endpoint;
use crate::realm::{self, Trust};
use crate::redact::{FORM, authority, redact};
use crate::response::Response;
use crate::retry::Patience;
use crate::transport::{Request, Transport, host_label, lock};

/// How we present ourselves to OAuth2 services.
const CLIENT_ID: &str = "build-engine";
/// The lifetime of tokens whose service does not state it, and of headers made of passwords.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// So long before its end a token is not used any more (a quarter of its life, if that is shorter).
const MARGIN: Duration = Duration::from_secs(10);
/// Tokens can be long, but not so long.
const MAX_ANSWER: usize = 1 << 20;

/// What a request needs to be allowed, for example `repository:library/alpine:pull`.
pub(crate) type Scopes = BTreeSet<String>;

/// The scope that allows `actions` (`pull`, `pull,push`) on a repository.
pub(crate) fn scope(repository: &str, actions: &str) -> String {
    format!("repository:{repository}:{actions}")
}

/// A header that a registry may accept.
#[derive(Clone)]
pub(crate) struct Pass {
    header: HeaderValue,
    expires: Instant,
    /// The token service that was not shown the credentials which there are.
    foreign: Option<String>,
}

impl Pass {
    pub(crate) fn header(&self) -> &HeaderValue {
        &self.header
    }

    fn new(text: &str, start: Instant, lifetime: Duration, host: &str) -> Result<Self, Error> {
        let mut header = HeaderValue::from_str(text).map_err(|_| Error::Protocol {
            host: host.to_owned(),
            reason: "a token or password has characters that cannot be sent".to_owned(),
        })?;
        header.set_sensitive(true);
        let expires = start + lifetime.saturating_sub(MARGIN.min(lifetime / 4));
        Ok(Self { header, expires, foreign: None })
    }

    /// Why a registry that refuses this pass does so, where we know better than the registry.
    pub(crate) fn explain(&self, host: &str) -> Option<Error> {
        let realm = self.foreign.clone()?;
        Some(Error::ForeignRealm { host: host.to_owned(), realm })
    }
}

type Slot = Arc<tokio::sync::Mutex<Option<Pass>>>;

/// Answers challenges.
pub(crate) struct Authorizer {
    transport: Arc<Transport>,
    credentials: Arc<dyn Credentials>,
    /// What each registry asked for last.
    challenges: Mutex<HashMap<String, Challenge>>,
    /// By registry and scopes. The lock of a slot is held while its token is fetched, so that it is fetched once.
    passes: Mutex<HashMap<(String, String), Slot>>,
}

impl Authorizer {
    pub(crate) fn new(transport: Arc<Transport>, credentials: Arc<dyn Credentials>) -> Self {
        Self { transport, credentials, challenges: Mutex::default(), passes: Mutex::default() }
    }

    /// What to send with the first try of a request, if the registry is known to ask for something.
    pub(crate) async fn pass(&self, endpoint: &Endpoint, base: &Url, scopes: &Scopes) -> Result<Option<Pass>, Error> {
        let Some(challenge) = lock(&self.challenges).get(&endpoint.authority).cloned() else { return Ok(None) };
        self.obtain(endpoint, base, &challenge, scopes, None).await
    }

    /// What to send after `response` (401) refused `used`; `None` if there is nothing else to try.
    pub(crate) async fn answer(
        &self,
        endpoint: &Endpoint,
        response: &Response,
        scopes: &Scopes,
        used: Option<&Pass>,
    ) -> Result<Option<Pass>, Error> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE).into_iter().filter_map(|value| value.to_str().ok());
        let Some(challenge) = challenge::choose(headers) else { return Ok(None) };
        lock(&self.challenges).insert(endpoint.authority.clone(), challenge.clone());
        let fresh = self.obtain(endpoint, response.url(), &challenge, scopes, used).await?;
        // The same password again would be refused again, and count as another attempt to guess it.
        Ok(fresh.filter(|fresh| used.is_none_or(|used| used.header != fresh.header)))
    }

    async fn obtain(
        &self,
        endpoint: &Endpoint,
        base: &Url,
        challenge: &Challenge,
        scopes: &Scopes,
        refused: Option<&Pass>,
    ) -> Result<Option<Pass>, Error> {
        let wanted: Vec<&str> = scopes.iter().map(String::as_str).collect();
        let slot = lock(&self.passes).entry((endpoint.authority.clone(), wanted.join(" "))).or_default().clone();
        let mut slot = slot.lock().await;
        if let Some(pass) = slot.as_ref()
            && Instant::now() < pass.expires
            && refused.is_none_or(|refused| refused.header != pass.header)
        {
            return Ok(Some(pass.clone()));
        }
        *slot = self.fetch(endpoint, base, challenge, scopes, refused.is_some()).await?;
        Ok(slot.clone())
    }

    async fn fetch(
        &self,
        endpoint: &Endpoint,
        base: &Url,
        challenge: &Challenge,
        scopes: &Scopes,
        after_refusal: bool,
    ) -> Result<Option<Pass>, Error> {
        let credential = self.credentials.find(&endpoint.host, repository(scopes)).await?;
        let start = Instant::now();
        if let Some(Credential::Bearer { token }) = &credential {
            return Pass::new(&format!("Bearer {token}"), start, DEFAULT_LIFETIME, &endpoint.host).map(Some);
        }
        let Challenge::Bearer { realm, service, scope } = challenge else {
            let Some(Credential::Basic { username, password }) = &credential else { return Ok(None) };
            return Pass::new(&basic(username, password), start, DEFAULT_LIFETIME, &endpoint.host).map(Some);
        };
        let url = Url::parse(realm).map_err(|_| Error::Protocol {
            host: endpoint.host.clone(),
            reason: "the address of its token service is not one".to_owned(),
        })?;
        let mut scopes = scopes.clone();
        if after_refusal && let Some(asked) = scope {
            // Some registries name their repositories otherwise than their addresses do.
            let resource = |scope: &str| scope.rsplit_once(':').map(|(resource, _)| resource.to_owned());
            let known: Vec<_> = scopes.iter().map(|scope| resource(scope)).collect();
            scopes.extend(asked.split_whitespace().filter(|scope| !known.contains(&resource(scope))).map(Into::into));
        }
        let service = Service { transport: &self.transport, endpoint, url, service: service.as_deref(), scopes };
        service.token(base, credential).await.map(Some)
    }
}

/// The repository that the scopes are for: the one that is written to, where others are read to mount from them.
fn repository(scopes: &Scopes) -> &str {
    let scope = scopes.iter().find(|scope| scope.ends_with("push")).or_else(|| scopes.first());
    let resource = scope.and_then(|scope| scope.strip_prefix("repository:"));
    resource.and_then(|resource| resource.rsplit_once(':')).map_or("", |(path, _)| path)
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

/// A token service, and what it is asked for.
struct Service<'a> {
    transport: &'a Transport,
    endpoint: &'a Endpoint,
    url: Url,
    service: Option<&'a str>,
    scopes: Scopes,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<f64>,
}

impl Service<'_> {
    async fn token(self, registry: &Url, credential: Option<Credential>) -> Result<Pass, Error> {
        let nothing = Vec::new();
        let settings = self.transport.settings().hosts.get(&self.endpoint.host);
        let auth_hosts = settings.map_or(&nothing, |settings| &settings.auth_hosts);
        let trust = realm::judge(registry, &self.url, auth_hosts).map_err(|reason| Error::RealmRefused {
            host: self.endpoint.host.clone(),
            realm: if self.url.has_host() { authority(&self.url) } else { redact(&self.url) },
            reason,
        })?;
        let foreign = (trust == Trust::Anonymous && credential.is_some()).then(|| authority(&self.url));
        let credential = credential.filter(|_| trust == Trust::Credentials);
        let anonymous = credential.is_none();
        let start = Instant::now();
        let mut response = match &credential {
            None => self.get(None).await?,
            Some(Credential::Basic { username, password }) => {
                let response = self.get(Some(&basic(username, password))).await?;
                if matches!(response.status().as_u16(), 404 | 405) {
                    response.drain().await;
                    self.post(&[("grant_type", "password"), ("username", username), ("password", password)]).await?
                } else {
                    response
                }
            }
            Some(Credential::Identity { token }) => {
                self.post(&[("grant_type", "refresh_token"), ("refresh_token", token)]).await?
            }
            // Sent to the registry itself, by the caller.
            Some(Credential::Bearer { .. }) => self.get(None).await?,
        };
        let status = response.status().as_u16();
        if status != 200 {
            if let (Some(realm), 401 | 403) = (foreign, status) {
                return Err(Error::ForeignRealm { host: self.endpoint.host.clone(), realm });
            }
            if matches!(status, 400 | 401 | 403) && !anonymous {
                let (host, realm) = (self.endpoint.host.clone(), authority(&self.url));
                return Err(Error::Login { host, realm, status, detail: response.detail().await });
            }
            return Err(response.into_error().await);
        }
        let body = response.body(MAX_ANSWER).await?;
        let answer = body.and_then(|body| serde_json::from_slice::<Answer>(&body).ok());
        let token = answer.as_ref().and_then(|answer| {
            let tokens = [&answer.token, &answer.access_token];
            tokens.into_iter().flatten().find(|token| !token.is_empty())
        });
        let Some(token) = token else {
            let reason = "there is no token in it".to_owned();
            return Err(Error::Protocol { host: host_label(&self.url), reason });
        };
        let lifetime = answer.as_ref().and_then(|answer| answer.expires_in).filter(|seconds| *seconds > 0.0);
        let lifetime = lifetime.map_or(DEFAULT_LIFETIME, crate::settings::seconds);
        let pass = Pass::new(&format!("Bearer {token}"), start, lifetime, &host_label(&self.url))?;
        Ok(Pass { foreign, ..pass })
    }

    async fn get(&self, authorization: Option<&str>) -> Result<Response, Error> {
        let mut url = self.url.clone();
        {
            let mut query = url.query_pairs_mut();
            query.extend_pairs(self.service.map(|service| ("service", service)));
            query.extend_pairs(self.scopes.iter().map(|scope| ("scope", scope)));
        }
        let mut request = Request::new(Method::GET, url);
        if let Some(authorization) = authorization {
            let pass = Pass::new(authorization, Instant::now(), DEFAULT_LIFETIME, &self.endpoint.host)?;
            request.headers.insert(AUTHORIZATION, pass.header);
        }
        self.send(request).await
    }

    async fn post(&self, grant: &[(&str, &str)]) -> Result<Response, Error> {
        let scopes: Vec<&str> = self.scopes.iter().map(String::as_str).collect();
        let scopes = scopes.join(" ");
        let mut form = Url::parse("form:").map_err(|_| Error::Protocol {
            host: self.endpoint.host.clone(),
            reason: "a form cannot be made".to_owned(),
        })?;
        {
            let mut fields = form.query_pairs_mut();
            fields.extend_pairs(grant);
            fields.append_pair("client_id", CLIENT_ID);
            fields.extend_pairs(self.service.map(|service| ("service", service)));
            if !scopes.is_empty() {
                fields.append_pair("scope", &scopes);
            }
        }
        let mut request = Request::new(Method::POST, self.url.clone());
        request.headers.insert(CONTENT_TYPE, HeaderValue::from_static(FORM));
        request.body = form.query().unwrap_or_default().to_owned().into();
        self.send(request).await
    }

    async fn send(&self, mut request: Request) -> Result<Response, Error> {
        // Names in addresses would become credentials.
        let _ = request.url.set_username("");
        let _ = request.url.set_password(None);
        let mut patience = Patience::new(self.transport.limits(), u32::MAX);
        loop {
            let sent = match request.method {
                // A form with a password must not be sent on to where a redirect leads.
                Method::POST => self.transport.send_here(&request).await,
                _ => self.transport.send(request.clone()).await,
            };
            let answer = match sent {
                Ok(response) => response.transient().await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(response) => return Ok(response),
                Err(error) => patience.wait(error).await?,
            }
        }
    }
}
