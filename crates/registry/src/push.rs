//! Pushing: a blob is there, is mounted, or is uploaded; a document is put under its name.
//!
//! Source: OCI distribution-spec v1.1, "Push". An upload is one streamed PATCH and a PUT that closes it; what breaks
//! goes on from where the registry says it is, and begins anew where the registry has lost it.

use std::sync::Arc;
use std::time::Duration;

use build_engine_oci::{Descriptor, Reference};
use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Url};

use crate::Error;
use crate::api::{Api, Call, Place};
use crate::client::{Content, Pushed};
use crate::endpoint::Endpoint;
use crate::pull::{accept, given_digest};
use crate::response::Response;
use crate::retry::Patience;
use crate::token::{Scopes, scope};
use crate::upload::Feed;

/// So many other repositories are tried as sources of a mount.
const MAX_MOUNTS: usize = 4;
/// So often an upload begins anew, beside the first time.
const MAX_RESTARTS: u32 = 2;

/// So many bytes a second a registry works through at least when it closes an upload.
const CLOSED_A_SECOND: u64 = 20 << 20;

/// A repository that is pushed to.
pub(crate) struct Target<'a> {
    api: &'a Api,
    endpoint: Endpoint,
    scopes: Scopes,
    name: String,
}

/// What is left to do for a blob.
enum Begun {
    Mounted,
    Session(Url),
}

/// How far an upload came.
enum Step {
    Complete,
    /// The session is gone or makes no sense.
    Lost(Error),
}

impl<'a> Target<'a> {
    pub(crate) fn new(api: &'a Api, reference: &Reference) -> Self {
        let endpoint = Endpoint::origin(reference, api.settings());
        let scopes = [scope(&endpoint.repository, "pull,push")].into();
        Self { api, endpoint, scopes, name: reference.name() }
    }

    /// Makes sure that the repository has a blob.
    pub(crate) async fn blob(
        &self,
        descriptor: &Descriptor,
        others: &[Reference],
        content: &Arc<dyn Content>,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Pushed, Error> {
        let what = || format!("push blob {} to `{}`", descriptor.digest, self.name);
        self.try_blob(descriptor, others, content, progress).await.map_err(|error| error.during(what()))
    }

    async fn try_blob(
        &self,
        descriptor: &Descriptor,
        others: &[Reference],
        content: &Arc<dyn Content>,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Pushed, Error> {
        let head = self.head_blob(descriptor).await?;
        match head.status().as_u16() {
            200 if head.length().is_none_or(|length| length == descriptor.size) => return Ok(Pushed::Existed),
            401 | 403 if self.api.is_home(&self.endpoint, head.url()) => return Err(head.into_error().await),
            // What is redirected to is there, though the signature may not be for a HEAD.
            400 | 401 | 403 | 405 if !self.api.is_home(&self.endpoint, head.url()) => return Ok(Pushed::Existed),
            _ => head.drain().await,
        }
        let mut session = match self.mount(descriptor, others).await? {
            Begun::Mounted => return Ok(Pushed::Mounted),
            Begun::Session(url) => url,
        };
        let mut restarts = 0;
        loop {
            let upload = Upload { target: self, descriptor, content, progress };
            let failure = match upload.run(session).await? {
                Step::Complete if self.is_stored(descriptor).await? => {
                    progress(descriptor.size);
                    return Ok(Pushed::Uploaded);
                }
                Step::Complete => {
                    // Once more in case that it was an accident, and not again.
                    restarts = restarts.max(MAX_RESTARTS - 1);
                    Error::NotStored { host: self.endpoint.host.clone(), digest: descriptor.digest.clone() }
                }
                Step::Lost(error) => error,
            };
            if restarts == MAX_RESTARTS {
                return Err(failure);
            }
            restarts += 1;
            tracing::debug!(digest = %descriptor.digest, %failure, "the upload begins anew");
            session = self.begin().await?;
        }
    }

    async fn head_blob(&self, descriptor: &Descriptor) -> Result<Response, Error> {
        let path = self.endpoint.path(&format!("blobs/{}", descriptor.digest));
        self.api.again(&self.call(Method::HEAD, Place::Path(path)), u32::MAX).await
    }

    /// Whether the registry has what it said it took. One that lets us push but not look is believed.
    async fn is_stored(&self, descriptor: &Descriptor) -> Result<bool, Error> {
        let head = self.head_blob(descriptor).await?;
        Ok(match head.status().as_u16() {
            200 => head.length().is_none_or(|length| length == descriptor.size),
            404 => false,
            _ => true,
        })
    }

    async fn mount(&self, descriptor: &Descriptor, others: &[Reference]) -> Result<Begun, Error> {
        let here =
            |other: &&Reference| other.domain() == self.endpoint.host && other.path() != self.endpoint.repository;
        let mut session: Option<Url> = None;
        for other in others.iter().filter(here).take(MAX_MOUNTS) {
            let mut scopes = self.scopes.clone();
            scopes.insert(scope(other.path(), "pull"));
            // Neither digests nor the names of repositories have characters that need escapes.
            let path = format!("blobs/uploads/?mount={}&from={}", descriptor.digest, other.path());
            let mut call = self.call(Method::POST, Place::Path(self.endpoint.path(&path)));
            call.scopes = &scopes;
            call.headers = no_content();
            // A mount is a favour: whatever fails, there is the upload, whose failure is the one to tell.
            let Ok(response) = self.api.again(&call, 1).await else { break };
            match response.status().as_u16() {
                201 => {
                    self.abandon(session).await;
                    return Ok(Begun::Mounted);
                }
                202 => {
                    self.abandon(session.take()).await;
                    session = response.location().unwrap_or_default();
                    response.drain().await;
                }
                _ => response.drain().await,
            }
        }
        match session {
            Some(session) => Ok(Begun::Session(session)),
            None => self.begin().await.map(Begun::Session),
        }
    }

    /// Ends a session that is not needed.
    async fn abandon(&self, session: Option<Url>) {
        if let Some(url) = session
            && let Ok(response) = self.api.once(&self.call(Method::DELETE, Place::Url(url))).await
        {
            response.drain().await;
        }
    }

    /// Begins an upload session.
    async fn begin(&self) -> Result<Url, Error> {
        let mut call = self.call(Method::POST, Place::Path(self.endpoint.path("blobs/uploads/")));
        call.headers = no_content();
        let response = self.api.again(&call, u32::MAX).await?;
        if response.status().as_u16() != 202 {
            return Err(response.into_error().await);
        }
        let host = response.host();
        let session = response.location()?;
        response.drain().await;
        session.ok_or_else(|| Error::Protocol { host, reason: "an upload without a `Location`".to_owned() })
    }

    fn call(&self, method: Method, place: Place) -> Call<'_> {
        Call::new(&self.endpoint, &self.scopes, method, place)
    }

    /// Puts a manifest or index under the tag or digest of `reference`.
    pub(crate) async fn document(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        bytes: Vec<u8>,
    ) -> Result<Pushed, Error> {
        let name = match (reference.tag(), reference.digest()) {
            (_, Some(digest)) => digest.to_string(),
            (Some(tag), None) => tag.to_owned(),
            (None, None) => descriptor.digest.to_string(),
        };
        let what = || format!("push manifest {} to `{}` as `{name}`", descriptor.digest, self.name);
        self.try_document(&name, descriptor, bytes.into()).await.map_err(|error| error.during(what()))
    }

    async fn try_document(&self, name: &str, descriptor: &Descriptor, bytes: Bytes) -> Result<Pushed, Error> {
        let path = self.endpoint.path(&format!("manifests/{name}"));
        let mut head = self.call(Method::HEAD, Place::Path(path.clone()));
        head.headers.insert(ACCEPT, accept());
        let there = self.api.again(&head, u32::MAX).await?;
        if there.status().as_u16() == 200
            && given_digest(&there).ok().flatten().is_some_and(|digest| digest == descriptor.digest)
        {
            return Ok(Pushed::Existed);
        }
        there.drain().await;
        let mut put = self.call(Method::PUT, Place::Path(path));
        let media_type = HeaderValue::from_str(&descriptor.media_type).map_err(|source| Error::Settings {
            what: format!("`{}` is not a media type", descriptor.media_type.escape_debug()),
            source: Some(Box::new(source)),
        })?;
        put.headers.insert(CONTENT_TYPE, media_type);
        put.body = bytes;
        let response = self.api.again(&put, u32::MAX).await?;
        if !response.status().is_success() {
            return Err(response.into_error().await);
        }
        let stated = given_digest(&response)?;
        let host = response.host();
        response.drain().await;
        match stated {
            Some(actual) if actual != descriptor.digest => {
                Err(Error::WrongDigest { host, expected: descriptor.digest.clone(), actual: actual.to_string() })
            }
            _ => Ok(Pushed::Uploaded),
        }
    }
}

/// The headers of a request that has a body by its method, but nothing in it.
fn no_content() -> HeaderMap {
    HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from_static("0"))])
}

/// One upload in one session.
struct Upload<'a> {
    target: &'a Target<'a>,
    descriptor: &'a Descriptor,
    content: &'a Arc<dyn Content>,
    progress: &'a (dyn Fn(u64) + Send + Sync),
}

impl Upload<'_> {
    /// Sends everything, and closes the session.
    async fn run(&self, mut session: Url) -> Result<Step, Error> {
        let size = self.descriptor.size;
        let mut patience = Patience::new(self.target.api.limits(), u32::MAX);
        let mut offset = 0;
        while offset < size {
            let error = match self.patch(&session, offset).await {
                Ok(response) if response.status().is_success() => {
                    let reached = match reached(&response) {
                        // See there.
                        Some(0) if size == 1 => Some(1),
                        reached => reached,
                    };
                    session = response.location()?.unwrap_or(session);
                    let host = response.host();
                    response.drain().await;
                    match reached {
                        None => break,
                        Some(reached) if reached == size => break,
                        Some(reached) if reached > size => return Ok(Step::Lost(nonsense(host))),
                        Some(_) => nonsense(host),
                    }
                }
                // The token ended on the way: there is a fresh one now.
                Ok(response) => match response.status().as_u16() {
                    404 | 410 | 416 => return Ok(Step::Lost(response.into_error().await)),
                    400 if offset > 0 => return Ok(Step::Lost(response.into_error().await)),
                    _ => response.into_error().await,
                },
                Err(error) => error,
            };
            // A 401 here, and anything else that a broken upload brings about, is settled by asking for the status.
            let again = matches!(error, Error::Denied { status: 401, .. } | Error::Protocol { .. });
            if again {
                patience.again(error).await?;
            } else {
                patience.wait(error).await?;
            }
            let before = offset;
            match self.status(&session).await? {
                Ok((url, reached)) if reached <= size => (session, offset) = (url, reached),
                Ok((url, _)) => return Ok(Step::Lost(nonsense(crate::transport::host_label(&url)))),
                Err(lost) => return Ok(Step::Lost(lost)),
            }
            if offset > before {
                patience.progress();
            }
        }
        self.close(session).await
    }

    async fn patch(&self, session: &Url, offset: u64) -> Result<Response, Error> {
        let size = self.descriptor.size;
        let mut call = self.target.call(Method::PATCH, Place::Url(session.clone()));
        call.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        call.headers.insert(CONTENT_LENGTH, HeaderValue::from(size - offset));
        if offset > 0 {
            // Digits and a hyphen are a header. The first request goes without: some registries do not like it there.
            let range = HeaderValue::try_from(format!("{offset}-{}", size - 1));
            call.headers.extend(range.ok().map(|range| (CONTENT_RANGE, range)));
        }
        let feed = Feed { content: self.content.clone(), offset, size };
        self.target.api.stream(&call, feed, &|sent| (self.progress)(offset + sent)).await
    }

    /// Where the session goes on, and at which offset; the inner error is that of a session that does not.
    async fn status(&self, session: &Url) -> Result<Result<(Url, u64), Error>, Error> {
        let call = self.target.call(Method::GET, Place::Url(session.clone()));
        let response = self.target.api.again(&call, u32::MAX).await?;
        match response.status().as_u16() {
            200..=299 => {
                let url = response.location()?.unwrap_or_else(|| session.clone());
                let reached = match (response.header(&RANGE), reached(&response)) {
                    (None, _) => 0,
                    (Some(_), Some(reached)) => reached,
                    (Some(_), None) => return Ok(Err(nonsense(response.host()))),
                };
                response.drain().await;
                Ok(Ok((url, reached)))
            }
            // Registries that know no status, and sessions that are gone.
            400 | 404 | 405 | 410 | 416 | 501 => Ok(Err(response.into_error().await)),
            _ => Err(response.into_error().await),
        }
    }

    /// Closes the session: the registry verifies what it got.
    async fn close(&self, mut session: Url) -> Result<Step, Error> {
        session.query_pairs_mut().append_pair("digest", &self.descriptor.digest.to_string());
        let mut call = self.target.call(Method::PUT, Place::Url(session));
        call.headers = no_content();
        // Registries hash what they got, and some copy it to another place.
        call.slack = Duration::from_secs(self.descriptor.size / CLOSED_A_SECOND);
        let mut patience = Patience::new(self.target.api.limits(), u32::MAX);
        loop {
            let answer = match self.target.api.once(&call).await {
                Ok(response) => response.transient().await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(response) if response.status().is_success() => {
                    let stated = given_digest(&response)?;
                    let host = response.host();
                    response.drain().await;
                    return match stated {
                        Some(actual) if actual != self.descriptor.digest => Err(Error::WrongDigest {
                            host,
                            expected: self.descriptor.digest.clone(),
                            actual: actual.to_string(),
                        }),
                        _ => Ok(Step::Complete),
                    };
                }
                Ok(response) => match response.status().as_u16() {
                    // It may have been taken, and only the answer been lost.
                    404 if self.target.is_stored(self.descriptor).await? => return Ok(Step::Complete),
                    400 | 404 | 410 | 416 => return Ok(Step::Lost(response.into_error().await)),
                    _ => return Err(response.into_error().await),
                },
                Err(error) => patience.wait(error).await?,
            }
        }
    }
}

fn nonsense(host: String) -> Error {
    Error::Protocol { host, reason: "it has another part of the upload than it can have".to_owned() }
}

/// How many bytes a registry says it has, in a `Range: 0-N` that makes sense.
fn reached(response: &Response) -> Option<u64> {
    let range = response.header(&RANGE)?;
    let range = range.strip_prefix("bytes=").unwrap_or(range);
    let (first, last) = range.split_once('-')?;
    match (first.trim().parse().ok()?, last.trim().parse().ok()?) {
        // Some registries say this of nothing, too. Of one byte it is harmless: that byte is sent again, refused, and the
        // upload begins anew.
        (0, 0_u64) => Some(0),
        (0_u64, last) => last.checked_add(1),
        _ => None,
    }
}
