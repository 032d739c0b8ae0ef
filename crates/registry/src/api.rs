//! Requests to a registry: with the credentials that it asks for, and again when that makes sense.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use reqwest::{Method, Url};

use crate::endpoint::{Endpoint, Protocol};
use crate::redact::same_origin;
use crate::response::Response;
use crate::retry::Patience;
use crate::settings::Limits;
use crate::token::{Authorizer, Pass, Scopes};
use crate::transport::{Request, Transport};
use crate::upload::Feed;
use crate::{Credentials, Error, Settings};

/// Fresh tokens for one request. More than one, because the first may end before it is used.
const FRESH_TOKENS: u32 = 2;

/// Speaks to all registries.
pub(crate) struct Api {
    transport: Arc<Transport>,
    authorizer: Authorizer,
}

/// Where a call goes.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// Something of the endpoint, by path and query.
    Path(String),
    /// An address that the registry gave, at this or at another origin.
    Url(Url),
}

/// One request to a registry.
#[derive(Debug, Clone)]
pub(crate) struct Call<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) scopes: &'a Scopes,
    pub(crate) method: Method,
    pub(crate) place: Place,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// The answer may take so much longer than others.
    pub(crate) slack: Duration,
}

impl<'a> Call<'a> {
    /// A call without headers and body.
    pub(crate) fn new(endpoint: &'a Endpoint, scopes: &'a Scopes, method: Method, place: Place) -> Self {
        Self { endpoint, scopes, method, place, headers: HeaderMap::new(), body: Bytes::new(), slack: Duration::ZERO }
    }
}

impl Api {
    pub(crate) fn new(settings: Settings, credentials: Arc<dyn Credentials>) -> Result<Self, Error> {
        let transport = Arc::new(Transport::new(Arc::new(settings))?);
        Ok(Self { authorizer: Authorizer::new(transport.clone(), credentials), transport })
    }

    pub(crate) fn settings(&self) -> &Settings {
        self.transport.settings()
    }

    pub(crate) fn transport(&self) -> Arc<Transport> {
        self.transport.clone()
    }

    pub(crate) fn limits(&self) -> &Limits {
        self.transport.limits()
    }

    /// Sends a call and returns the answer, whatever its status. A 401 is answered with a fresh token.
    pub(crate) async fn once(&self, call: &Call<'_>) -> Result<Response, Error> {
        let sent = self.authorized(call).await;
        if let Err(Error::Connect { .. } | Error::Broken { .. }) = &sent {
            self.transport.forget(call.endpoint);
        }
        sent
    }

    async fn authorized(&self, call: &Call<'_>) -> Result<Response, Error> {
        let (request, at_home) = self.request(call)?;
        if !at_home {
            return self.transport.send(request).await;
        }
        let mut pass = self.authorizer.pass(call.endpoint, &request.url, call.scopes).await?;
        let mut request = request;
        let mut fresh = 0;
        loop {
            if let Some(pass) = &pass {
                request.headers.insert(AUTHORIZATION, pass.header().clone());
            }
            let response = self.transport.send(request).await?;
            let refused = response.status().as_u16() == 401 && self.is_home(call.endpoint, response.url());
            if !refused || fresh == FRESH_TOKENS {
                return self.explained(call, response, pass.as_ref());
            }
            let answer = self.authorizer.answer(call.endpoint, &response, call.scopes, pass.as_ref()).await?;
            if answer.is_none() {
                return self.explained(call, response, pass.as_ref());
            }
            pass = answer;
            response.drain().await;
            // What the host speaks is known by now.
            request = self.request(call)?.0;
            fresh += 1;
        }
    }

    /// Says why a pass was refused, where we know better than the registry.
    fn explained(&self, call: &Call<'_>, response: Response, pass: Option<&Pass>) -> Result<Response, Error> {
        let refused = matches!(response.status().as_u16(), 401 | 403) && self.is_home(call.endpoint, response.url());
        match pass.filter(|_| refused).and_then(|pass| pass.explain(&call.endpoint.host)) {
            Some(error) => Err(error),
            None => Ok(response),
        }
    }

    /// The same, again after failures that may pass; `most` further tries at most.
    pub(crate) async fn again(&self, call: &Call<'_>, most: u32) -> Result<Response, Error> {
        let mut patience = Patience::new(self.limits(), most);
        loop {
            let answer = match self.once(call).await {
                Ok(response) => response.transient().await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(response) => return Ok(response),
                Err(error) => patience.wait(error).await?,
            }
        }
    }

    /// Sends a call with a streamed body, once. A 401 makes the registry's token be fetched anew for the next call.
    pub(crate) async fn stream(
        &self,
        call: &Call<'_>,
        feed: Feed,
        on_tick: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Response, Error> {
        let (mut request, at_home) = self.request(call)?;
        if !at_home {
            return self.transport.send_stream(request, feed, on_tick).await;
        }
        let pass = self.authorizer.pass(call.endpoint, &request.url, call.scopes).await?;
        if let Some(pass) = &pass {
            request.headers.insert(AUTHORIZATION, pass.header().clone());
        }
        let response = self.transport.send_stream(request, feed, on_tick).await?;
        if response.status().as_u16() == 401 {
            self.authorizer.answer(call.endpoint, &response, call.scopes, pass.as_ref()).await?;
        }
        Ok(response)
    }

    fn request(&self, call: &Call<'_>) -> Result<(Request, bool), Error> {
        let (mut request, at_home) = match &call.place {
            Place::Path(path) => (self.transport.request(call.method.clone(), call.endpoint, path)?, true),
            Place::Url(url) => (Request::new(call.method.clone(), url.clone()), self.is_home(call.endpoint, url)),
        };
        request.headers.extend(call.headers.clone());
        request.body = call.body.clone();
        request.slack = call.slack;
        Ok((request, at_home))
    }

    /// Whether `url` is at the origin of `endpoint`, to which its credentials belong.
    pub(crate) fn is_home(&self, endpoint: &Endpoint, url: &Url) -> bool {
        let schemes: &[&str] = match endpoint.protocol {
            Protocol::Http => &["http"],
            Protocol::Https => &["https"],
            // From TLS to none no address of the registry leads: see `follow`.
            Protocol::Either => &["http", "https"],
        };
        schemes.iter().any(|scheme| {
            Url::parse(&format!("{scheme}://{}", endpoint.authority)).is_ok_and(|home| same_origin(&home, url))
        })
    }
}
