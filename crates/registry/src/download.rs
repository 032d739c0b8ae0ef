//! Files from anywhere in the web, by the address that a user wrote.
//!
//! Unlike a registry, such a host is chosen by a Dockerfile, which may be a stranger's; so this module guards where its
//! redirects lead. Connections, time limits and retries are those of [`crate::transport`]; where what arrives is put is
//! for the caller to decide.
//!
//! Invariants: addresses are judged where they are connected to (by the resolver of the connection itself), so that a
//! second answer of a name server changes nothing; and credentials go to the origin that they were given for.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, IF_NONE_MATCH};
use reqwest::{Method, Url};

use crate::Error;
use crate::realm::{Nearness, nearness};
use crate::response::Response;
use crate::retry::Patience;
use crate::transport::{Request, Transport, host_label, lock};

/// Asks for files. Clones share connections.
#[derive(Clone)]
pub struct Downloads {
    transport: Arc<Transport>,
}

/// What is asked for.
#[derive(Clone, Default)]
pub struct DownloadRequest {
    /// The address; only `http` and `https`.
    pub url: String,
    /// Only the head of the answer is wanted.
    pub head: bool,
    /// Versions that are known already, by their entity tags.
    pub known: Vec<String>,
    /// Value of the `Authorization` header. A user name and password in the address do without it.
    pub authorization: Option<String>,
    /// Whether redirects may lead to private addresses, and anything to link-local ones.
    pub allow_private: bool,
}

/// An answer whose head has been read.
pub struct Download {
    response: Response,
}

impl Download {
    /// 200, or 304 where a known version is the current one.
    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::trim)
    }

    /// The size of the body, where the head states it.
    pub fn length(&self) -> Option<u64> {
        self.response.length()
    }

    /// The next bytes of the body.
    ///
    /// # Errors
    /// When the connection breaks or is too slow.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        self.response.chunk().await
    }
}

impl Downloads {
    pub(crate) fn new(transport: Arc<Transport>) -> Self {
        Self { transport }
    }

    /// Asks, follows redirects, and waits for the head of the answer; again after failures that may pass.
    ///
    /// # Errors
    /// Any status that is neither success nor 304; addresses that are refused.
    pub async fn open(&self, request: &DownloadRequest) -> Result<Download, Error> {
        let mut patience = Patience::new(self.transport.limits(), u32::MAX);
        loop {
            let error = match self.once(request).await {
                Ok(response) => match response.transient().await {
                    Ok(response) if response.status().is_success() || response.status().as_u16() == 304 => {
                        return Ok(Download { response });
                    }
                    Ok(response) => return Err(response.into_error().await),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            patience.wait(error).await?;
        }
    }

    /// When a body that broke off may be asked for again.
    pub fn patience(&self) -> Again {
        Again(Patience::new(self.transport.limits(), u32::MAX))
    }

    async fn once(&self, request: &DownloadRequest) -> Result<Response, Error> {
        let invalid = |reason: String| Error::Settings { what: reason, source: None };
        let url = Url::parse(&request.url).map_err(|error| invalid(format!("the address is none: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err(invalid("the address is neither http nor https".to_owned()));
        }
        let mut headers = HeaderMap::new();
        // A server may have another tag for another encoding, and what is compressed on the way is not what is meant.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if !request.known.is_empty() {
            let known = HeaderValue::from_str(&request.known.join(", "));
            headers.insert(IF_NONE_MATCH, known.map_err(|_| invalid("an entity tag has odd characters".to_owned()))?);
        }
        if let Some(authorization) = &request.authorization {
            let mut value = HeaderValue::from_str(authorization.trim_end_matches(['\r', '\n'])).map_err(|_| {
                invalid("the secret for the `Authorization` header has characters that it cannot have".to_owned())
            })?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let method = if request.head { Method::HEAD } else { Method::GET };
        let mut outgoing = Request::new(method, url);
        outgoing.headers = headers;
        self.transport.send_guarded(outgoing, Guard::new(request.allow_private)).await
    }
}

/// See [`Downloads::patience`].
pub struct Again(Patience);

impl Again {
    /// Waits before the next try.
    ///
    /// # Errors
    /// `error` itself where another try makes no sense, or there were enough of them.
    pub async fn wait(&mut self, error: Error) -> Result<(), Error> {
        self.0.wait(error).await
    }
}

/// Judges every host and address of one request and of the redirects that follow.
///
/// The host that a user named may be anywhere but at a link-local address, where clouds keep the secrets of their
/// machines. A redirect may not lead nearer than that: not from the world into a private network, and not from there to
/// this machine itself.
#[derive(Clone)]
pub(crate) struct Guard {
    state: Arc<Mutex<State>>,
    allow_private: bool,
}

#[derive(Default)]
struct State {
    /// The host of the first request, and how near it was found to be.
    first: Option<(String, Nearness)>,
    /// The host that is spoken to now; others that are resolved are proxies, which the user set.
    host: String,
}

/// Why an address was not connected to.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{address} is {nearness}")]
pub(crate) struct Refused {
    pub(crate) address: IpAddr,
    pub(crate) nearness: Nearness,
}

impl Guard {
    fn new(allow_private: bool) -> Self {
        Self { state: Arc::default(), allow_private }
    }

    /// Judges the host of the next request where it is an address; names are judged when they are resolved.
    pub(crate) fn enter(&self, url: &Url) -> Result<(), Error> {
        let host = bare(url.host_str().unwrap_or_default());
        lock(&self.state).host.clone_from(&host);
        let address = match host.parse::<IpAddr>() {
            Ok(address) => address,
            Err(_) if is_localhost(&host) => IpAddr::from([127, 0, 0, 1]),
            Err(_) => return Ok(()),
        };
        self.judge(&host, address)
            .map_err(|refused| Error::NearAddress { host: host_label(url), reason: refused.to_string() })
    }

    fn judge(&self, host: &str, address: IpAddr) -> Result<(), Refused> {
        let found = nearness(address);
        let mut state = lock(&self.state);
        let first = match &state.first {
            None => {
                state.first = Some((host.to_owned(), found));
                found
            }
            // Several addresses of one name: it is as near as its nearest was at first.
            Some((_, first)) => *first,
        };
        let refused = !self.allow_private && (found == Nearness::LinkLocal || found > first);
        if refused { Err(Refused { address, nearness: found }) } else { Ok(()) }
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move {
            let host = bare(name.as_str());
            let is_target = lock(&guard.state).host == host;
            let found: Vec<SocketAddr> = if is_localhost(&host) {
                vec![([127, 0, 0, 1], 0).into(), ([0_u16, 0, 0, 0, 0, 0, 0, 1], 0).into()]
            } else {
                tokio::net::lookup_host((host.as_str(), 0)).await?.collect()
            };
            if !is_target {
                return Ok(Box::new(found.into_iter()) as Addrs);
            }
            // The farthest first, so that the first address says how near the host is.
            let mut found = found;
            found.sort_by_key(|address| nearness(address.ip()));
            let mut allowed = Vec::new();
            let mut refusal = None;
            for address in found {
                match guard.judge(&host, address.ip()) {
                    Ok(()) => allowed.push(address),
                    Err(refused) => refusal = Some(refused),
                }
            }
            match refusal {
                Some(refused) if allowed.is_empty() => {
                    Err(Box::new(refused) as Box<dyn std::error::Error + Send + Sync>)
                }
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

fn bare(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase()
}

fn is_localhost(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R06: where the first address was found decides how near redirects may lead.
    #[test]
    fn redirects_never_lead_nearer() {
        for (hops, expected) in [
            (&["http://127.0.0.1/"][..], true),
            (&["http://10.0.0.1/"], true),
            (&["http://169.254.169.254/"], false),
            (&["http://[fe80::1]/"], false),
            (&["http://203.0.113.1/", "http://203.0.113.2/"], true),
            (&["http://203.0.113.1/", "http://10.0.0.1/"], false),
            (&["http://203.0.113.1/", "http://127.0.0.1/"], false),
            (&["http://203.0.113.1/", "http://localhost/"], false),
            (&["http://203.0.113.1/", "http://0.0.0.0/"], false),
            (&["http://203.0.113.1/", "http://[::ffff:10.0.0.1]/"], false),
            (&["http://203.0.113.1/", "http://2130706433/"], false),
            (&["http://203.0.113.1/", "http://100.100.100.200/"], false),
            (&["http://10.0.0.1/", "http://10.0.0.2/"], true),
            (&["http://10.0.0.1/", "http://203.0.113.1/", "http://10.0.0.1/"], true),
            (&["http://10.0.0.1/", "http://127.0.0.1/"], false),
            (&["http://127.0.0.1:1/", "http://127.0.0.1:2/", "http://localhost:3/"], true),
            (&["http://127.0.0.1/", "http://169.254.169.254/"], false),
        ] {
            let guard = Guard::new(false);
            let judged: Result<Vec<()>, Error> =
                hops.iter().map(|hop| guard.enter(&Url::parse(hop).unwrap())).collect();
            assert_eq!(judged.is_ok(), expected, "{hops:?}");
            let granted = Guard::new(true);
            assert!(hops.iter().all(|hop| granted.enter(&Url::parse(hop).unwrap()).is_ok()), "{hops:?}");
        }
    }

    /// R06: a name is judged by every answer of the name server, not by the first.
    #[test]
    fn a_second_answer_changes_nothing() {
        let guard = Guard::new(false);
        assert!(guard.judge("rebind.test", IpAddr::from([203, 0, 113, 1])).is_ok());
        assert!(guard.judge("rebind.test", IpAddr::from([127, 0, 0, 1])).is_err());
        assert!(guard.judge("rebind.test", IpAddr::from([203, 0, 113, 9])).is_ok());
    }
}
