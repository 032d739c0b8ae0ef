//! Reading names and documents: mirrors first, then the registry itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use build_engine_oci::{Descriptor, Digest, Reference, media_type};
use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use serde::Deserialize;

use crate::Error;
use crate::api::{Api, Call, Place};
use crate::endpoint::Endpoint;
use crate::redact::escape;
use crate::response::Response;
use crate::token::{Scopes, scope};
use crate::transport::lock;

/// Most bytes of a manifest or index.
const MAX_MANIFEST: u64 = 4 << 20;
/// Most bytes of any other document.
const MAX_CONFIG: u64 = 8 << 20;
/// So long a mirror is left alone that could not be reached.
const DOWN_TIME: Duration = Duration::from_secs(30);
/// Mirrors are there to make things faster, so waiting for one is not worth much.
const MIRROR_TRIES: u32 = 1;

pub(crate) static DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Where things are read from.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) api: Arc<Api>,
    down: Arc<Mutex<HashMap<String, Instant>>>,
}

/// What pulling from a repository needs.
pub(crate) fn pull_scopes(endpoint: &Endpoint) -> Scopes {
    [scope(&endpoint.repository, "pull")].into()
}

/// How many further tries a request to this endpoint is worth.
pub(crate) fn tries(endpoint: &Endpoint) -> u32 {
    if endpoint.namespace.is_some() { MIRROR_TRIES } else { u32::MAX }
}

impl Sources {
    pub(crate) fn new(api: Arc<Api>) -> Self {
        Self { api, down: Arc::default() }
    }

    /// The places to ask, best first; the last is the registry itself.
    pub(crate) fn of(&self, reference: &Reference) -> Result<Vec<Endpoint>, Error> {
        let mut places = Endpoint::mirrors(reference, self.api.settings())?;
        let down = lock(&self.down);
        places.retain(|mirror| down.get(&mirror.authority).is_none_or(|since| since.elapsed() > DOWN_TIME));
        places.push(Endpoint::origin(reference, self.api.settings()));
        Ok(places)
    }

    /// Notes that the next place has to be asked.
    pub(crate) fn failed(&self, mirror: &Endpoint, error: &Error) {
        tracing::debug!(mirror = mirror.authority, %error, "a mirror failed");
        if error.is_transient() {
            lock(&self.down).insert(mirror.authority.clone(), Instant::now());
        }
    }

    /// Asks what a tag or digest stands for.
    pub(crate) async fn resolve(&self, reference: &Reference) -> Result<Descriptor, Error> {
        let mut places = self.of(reference)?.into_iter().peekable();
        while let Some(place) = places.next() {
            match self.resolve_at(&place, reference).await {
                Err(error) if places.peek().is_some() => self.failed(&place, &error),
                answer => return answer.map_err(|error| error.during(format!("resolve `{reference}`"))),
            }
        }
        unreachable_place(reference)
    }

    async fn resolve_at(&self, place: &Endpoint, reference: &Reference) -> Result<Descriptor, Error> {
        let name = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        let scopes = pull_scopes(place);
        let mut call = Call::new(place, &scopes, Method::HEAD, Place::Path(place.path(&format!("manifests/{name}"))));
        call.headers.insert(ACCEPT, accept());
        let head = self.api.again(&call, tries(place)).await?;
        let status = head.status().as_u16();
        if status == 200 {
            let found = manifest_type(&head)?;
            let digest = given_digest(&head)?;
            if let (Some(media_type), Some(digest), Some(size)) = (found, digest, head.length()) {
                check_digest(&head.host(), reference.digest(), &digest)?;
                return Ok(Descriptor::new(media_type, digest, size));
            }
        } else if !matches!(status, 400 | 403 | 404 | 405 | 501) {
            return Err(head.into_error().await);
        }
        // The server knows no HEAD, or says too little in it: why something is refused stands in a body.
        call.method = Method::GET;
        let mut response = self.api.again(&call, tries(place)).await?;
        if response.status().as_u16() != 200 {
            return Err(response.into_error().await);
        }
        let declared = manifest_type(&response)?;
        let (host, given) = (response.host(), given_digest(&response)?);
        let size = response.length();
        let too_large = |size_bytes| Error::TooLarge {
            what: format!("the manifest of `{reference}`"),
            size_bytes,
            limit_bytes: MAX_MANIFEST,
        };
        if let Some(size) = size.filter(|size| *size > MAX_MANIFEST) {
            return Err(too_large(size));
        }
        let body = response.body(MAX_MANIFEST as usize).await?.ok_or_else(|| too_large(MAX_MANIFEST + 1))?;
        let actual = Digest::sha256(&body);
        check_digest(&host, reference.digest(), &actual)?;
        check_digest(&host, given.as_ref(), &actual)?;
        let media_type = match declared {
            Some(declared) => declared,
            None => stated_type(&body).ok_or_else(|| Error::Protocol {
                host,
                reason: "neither the response nor the manifest says of which type it is".to_owned(),
            })?,
        };
        Ok(Descriptor::new(media_type, actual, body.len() as u64))
    }

    /// Reads and verifies a document.
    pub(crate) async fn document(&self, repository: &Reference, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let what = format!("read {} of `{}`", descriptor.digest, repository.name());
        let limit = if is_manifest(descriptor) { MAX_MANIFEST } else { MAX_CONFIG };
        if descriptor.size > limit {
            let (what, size_bytes) = (format!("{} of `{}`", descriptor.digest, repository.name()), descriptor.size);
            return Err(Error::TooLarge { what, size_bytes, limit_bytes: limit });
        }
        let mut places = self.of(repository)?.into_iter().peekable();
        while let Some(place) = places.next() {
            match self.document_at(&place, descriptor).await {
                Err(error) if places.peek().is_some() => self.failed(&place, &error),
                answer => return answer.map_err(|error| error.during(what)),
            }
        }
        unreachable_place(repository)
    }

    async fn document_at(&self, place: &Endpoint, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let scopes = pull_scopes(place);
        let kind = if is_manifest(descriptor) { "manifests" } else { "blobs" };
        let path = place.path(&format!("{kind}/{}", descriptor.digest));
        let mut call = Call::new(place, &scopes, Method::GET, Place::Path(path));
        if is_manifest(descriptor) {
            call.headers.insert(ACCEPT, accept());
        }
        let mut patience = crate::retry::Patience::new(self.api.limits(), tries(place));
        loop {
            let read = match self.api.once(&call).await {
                Ok(response) => read_document(response, descriptor).await,
                Err(error) => Err(error),
            };
            match read {
                Ok(bytes) => return Ok(bytes),
                Err(error) => patience.wait(error).await?,
            }
        }
    }
}

/// There is always the registry itself; but the compiler cannot know.
fn unreachable_place<T>(reference: &Reference) -> Result<T, Error> {
    Err(Error::Settings { what: format!("there is no place to get `{reference}` from"), source: None })
}

async fn read_document(mut response: Response, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
    if response.status().as_u16() != 200 {
        return Err(response.into_error().await);
    }
    let host = response.host();
    let expected = descriptor.size;
    let wrong_size =
        |actual| Error::WrongSize { host: host.clone(), digest: descriptor.digest.clone(), expected, actual };
    if let Some(length) = response.length().filter(|length| *length != expected) {
        return Err(wrong_size(format!("{length} bytes")));
    }
    if is_manifest(descriptor)
        && let Some(declared) = response.header(&CONTENT_TYPE)
        && !essence(declared).eq_ignore_ascii_case(&descriptor.media_type)
    {
        return Err(Error::WrongType {
            digest: descriptor.digest.clone(),
            expected: descriptor.media_type.clone(),
            actual: escape(essence(declared), 100),
            host,
        });
    }
    let body = response.body(expected as usize).await?.ok_or_else(|| wrong_size("more".to_owned()))?;
    if body.len() as u64 != expected {
        return Err(wrong_size(format!("{} bytes", body.len())));
    }
    check_digest(&host, Some(&descriptor.digest), &computed(&descriptor.digest, &body)?)?;
    Ok(body)
}

/// The digest of `body` in the algorithm of `expected`.
fn computed(expected: &Digest, body: &[u8]) -> Result<Digest, Error> {
    match expected.algorithm() {
        build_engine_oci::Algorithm::Sha256 => Ok(Digest::sha256(body)),
        build_engine_oci::Algorithm::Sha512 => Err(Error::Algorithm { digest: expected.clone() }),
    }
}

fn check_digest(host: &str, expected: Option<&Digest>, actual: &Digest) -> Result<(), Error> {
    match expected {
        Some(expected) if expected != actual => {
            Err(Error::WrongDigest { host: host.to_owned(), expected: expected.clone(), actual: actual.to_string() })
        }
        _ => Ok(()),
    }
}

/// The digest that a response states.
pub(crate) fn given_digest(response: &Response) -> Result<Option<Digest>, Error> {
    let Some(value) = response.headers().get(&DOCKER_CONTENT_DIGEST) else { return Ok(None) };
    let text = String::from_utf8_lossy(value.as_bytes());
    text.parse().map(Some).map_err(|_| Error::WrongFormat {
        host: response.host(),
        what: format!("`{}`, which is not a digest", escape(&text, 100)),
    })
}

/// The media type of a manifest or index; `None` if the response declares nothing that is one.
fn manifest_type(response: &Response) -> Result<Option<String>, Error> {
    let Some(declared) = response.header(&CONTENT_TYPE).map(essence) else { return Ok(None) };
    if declared.starts_with("application/vnd.docker.distribution.manifest.v1+") {
        return Err(Error::Schema1 { host: response.host() });
    }
    let known = media_type::is_index(declared) || media_type::is_manifest(declared);
    Ok(known.then(|| declared.to_owned()))
}

/// The media type that a manifest states of itself.
fn stated_type(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Stated {
        media_type: String,
    }
    let stated: Stated = serde_json::from_slice(body).ok()?;
    let known = media_type::is_index(&stated.media_type) || media_type::is_manifest(&stated.media_type);
    known.then_some(stated.media_type)
}

pub(crate) fn is_manifest(descriptor: &Descriptor) -> bool {
    media_type::is_manifest(&descriptor.media_type) || media_type::is_index(&descriptor.media_type)
}

/// A media type without parameters.
fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

pub(crate) fn accept() -> HeaderValue {
    HeaderValue::from_static(
        "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
         application/vnd.docker.distribution.manifest.list.v2+json, \
         application/vnd.docker.distribution.manifest.v2+json",
    )
}
