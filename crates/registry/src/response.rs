//! The answer to a request, read with limits of size and time.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderName};
use reqwest::{StatusCode, Url};
use serde::Deserialize;

use crate::error::is_transient_status;
use crate::redact::{escape, mask};
use crate::settings::{Limits, seconds};
use crate::transport::{follow, host_label};
use crate::{Error, failure, retry};

/// So much is read of an error's explanation.
const MAX_DETAIL: usize = 8 << 10;

/// A response of which the head has been read.
pub(crate) struct Response {
    url: Url,
    inner: reqwest::Response,
    floor: Floor,
    limits: Limits,
    /// What of the request must not be shown.
    secrets: Vec<String>,
}

impl Response {
    /// The answer to a request with these secrets.
    pub(crate) fn new(inner: reqwest::Response, limits: &Limits, secrets: Vec<String>) -> Self {
        Self { url: inner.url().clone(), inner, floor: Floor::new(limits), limits: limits.clone(), secrets }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.inner.status()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.inner.headers()
    }

    /// The address that answered, after redirects.
    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// The host that answered, for messages.
    pub(crate) fn host(&self) -> String {
        host_label(&self.url)
    }

    /// A header as text.
    pub(crate) fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers().get(name).and_then(|value| value.to_str().ok()).map(str::trim)
    }

    /// The size of the body, where the head states it.
    pub(crate) fn length(&self) -> Option<u64> {
        self.header(&CONTENT_LENGTH)?.parse().ok()
    }

    /// First and last byte, and size of the whole where it is stated. Source: RFC 9110, 14.4.
    pub(crate) fn content_range(&self) -> Option<(u64, u64, Option<u64>)> {
        let (range, whole) = self.header(&CONTENT_RANGE)?.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let whole = if whole.trim() == "*" { None } else { Some(whole.trim().parse().ok()?) };
        Some((first.trim().parse().ok()?, last.trim().parse().ok()?, whole))
    }

    /// Where `Location` leads.
    pub(crate) fn location(&self) -> Result<Option<Url>, Error> {
        follow(&self.url, self.headers())
    }

    /// The next bytes of the body.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let mut start = Instant::now();
        loop {
            // The time that nobody asks for bytes is not the server's.
            let left = self.floor.left();
            match tokio::time::timeout(left, self.inner.chunk()).await {
                Ok(Ok(Some(bytes))) => {
                    self.floor.moved(start.elapsed(), bytes.len());
                    return Ok(Some(bytes));
                }
                Ok(Ok(None)) => return Ok(None),
                Ok(Err(error)) => {
                    return Err(match failure::classify(&self.url, error, &self.limits) {
                        // The connection stood already.
                        Error::Connect { host, source } => Error::Broken { host, source },
                        other => other,
                    });
                }
                Err(_) if self.floor.renew() => start = Instant::now(),
                Err(_) => {
                    return Err(Error::Slow {
                        host: self.host(),
                        min_bytes: self.limits.min_bytes,
                        seconds: self.limits.stall_seconds,
                    });
                }
            }
        }
    }

    /// The whole body; `None` if it has more than `limit` bytes.
    pub(crate) async fn body(&mut self, limit: usize) -> Result<Option<Vec<u8>>, Error> {
        let mut whole = Vec::with_capacity(self.length().unwrap_or(0).min(limit as u64) as usize);
        while let Some(bytes) = self.chunk().await? {
            if whole.len() + bytes.len() > limit {
                return Ok(None);
            }
            whole.extend_from_slice(&bytes);
        }
        Ok(Some(whole))
    }

    /// Reads what little there is of the body, so that the connection can be used again.
    pub(crate) async fn drain(mut self) {
        if self.length().is_none_or(|length| length <= MAX_DETAIL as u64) {
            let _ = self.body(MAX_DETAIL).await;
        }
    }

    /// The error that this response is.
    pub(crate) async fn into_error(mut self) -> Error {
        let status = self.status().as_u16();
        let host = self.host();
        let retry_after = retry::retry_after(self.headers(), Timestamp::now());
        let detail = self.detail().await;
        match status {
            404 => Error::NotFound { host, detail },
            401 | 403 => Error::Denied { host, status, detail },
            _ => Error::Status { host, status, detail, retry_after },
        }
    }

    /// The error, if the status is one that is worth another try; the response itself otherwise.
    pub(crate) async fn transient(self) -> Result<Self, Error> {
        if is_transient_status(self.status().as_u16()) { Err(self.into_error().await) } else { Ok(self) }
    }

    /// What the server says about an error: `: CODE: message; CODE: message`, or nothing.
    ///
    /// Source: distribution-spec v1.1, "Error Codes".
    pub(crate) async fn detail(&mut self) -> String {
        let mut head = BytesMut::new();
        while head.len() < MAX_DETAIL {
            match self.chunk().await {
                Ok(Some(bytes)) => head.extend_from_slice(&bytes[..bytes.len().min(MAX_DETAIL - head.len())]),
                Ok(None) | Err(_) => break,
            }
        }
        describe(&head, &self.secrets)
    }
}

#[derive(Deserialize)]
struct Explanation {
    #[serde(default)]
    errors: Vec<Cause>,
}

#[derive(Deserialize)]
struct Cause {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

fn describe(body: &[u8], secrets: &[String]) -> String {
    // Other bodies are pages for people with browsers.
    let Ok(explanation) = serde_json::from_slice::<Explanation>(body) else { return String::new() };
    let causes: Vec<String> = explanation
        .errors
        .iter()
        .take(5)
        .map(|cause| (mask(&cause.code, secrets), mask(&cause.message, secrets)))
        .map(|(code, message)| match (code.as_str(), message.as_str()) {
            ("", message) => escape(message, 300),
            (code, "") => escape(code, 100),
            (code, message) => format!("{}: {}", escape(code, 100), escape(message, 300)),
        })
        .filter(|cause| !cause.is_empty())
        .collect();
    if causes.is_empty() { String::new() } else { format!(": {}", causes.join("; ")) }
}

/// Notices when a body comes too slowly.
#[derive(Debug)]
struct Floor {
    window: Duration,
    min_bytes: u64,
    waited: Duration,
    bytes: u64,
}

impl Floor {
    fn new(limits: &Limits) -> Self {
        let window = seconds(limits.stall_seconds).max(Duration::from_millis(1));
        Self { window, min_bytes: limits.min_bytes.max(1), waited: Duration::ZERO, bytes: 0 }
    }

    /// How much longer may be waited in this window.
    fn left(&self) -> Duration {
        self.window.saturating_sub(self.waited).max(Duration::from_millis(1))
    }

    fn moved(&mut self, waited: Duration, bytes: usize) {
        self.waited += waited;
        self.bytes += bytes as u64;
        if self.bytes >= self.min_bytes {
            self.renew();
        }
    }

    /// Begins the next window; `false` if too little came in this one.
    fn renew(&mut self) -> bool {
        let enough = self.bytes >= self.min_bytes;
        self.waited = Duration::ZERO;
        self.bytes = 0;
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_explained_in_the_words_of_the_registry() {
        for (body, expected) in [
            (r#"{"errors":[{"code":"DENIED","message":"no\u001b[31m","detail":{"x":1}}]}"#, ": DENIED: no\\u{1b}[31m"),
            (r#"{"errors":[{"code":"A"},{"message":"b"}]}"#, ": A; b"),
            (r#"{"errors":[]}"#, ""),
            ("<html>", ""),
            ("", ""),
        ] {
            assert_eq!(describe(body.as_bytes(), &[]), expected);
        }
    }

    #[test]
    fn a_body_that_moves_a_little_is_still_too_slow() {
        let limits = Limits { stall_seconds: 10.0, min_bytes: 100, ..Limits::default() };
        let mut floor = Floor::new(&limits);
        floor.moved(Duration::from_secs(4), 50);
        assert_eq!(floor.left(), Duration::from_secs(6));
        floor.moved(Duration::from_secs(4), 50);
        assert_eq!(floor.left(), Duration::from_secs(10));
        floor.moved(Duration::from_secs(9), 1);
        assert_eq!(floor.left(), Duration::from_secs(1));
        assert!(!floor.renew());
    }
}
