//! What the errors of the HTTP library mean.

use std::error::Error as StdError;
use std::io::{self, ErrorKind};

use reqwest::Url;

use crate::Error;
use crate::error::Cause;
use crate::settings::Limits;
use crate::transport::host_label;

/// Says what went wrong with a request to `url`.
pub(crate) fn classify(url: &Url, error: reqwest::Error, limits: &Limits) -> Error {
    let host = host_label(url);
    let error = error.without_url();
    let tls = find::<rustls::Error>(&error).cloned();
    if error.is_timeout() {
        return Error::Timeout { host, phase: "connecting", seconds: limits.connect_seconds };
    }
    match tls {
        Some(rustls::Error::InvalidMessage(_)) if error.is_connect() => return Error::NotTls { host },
        Some(source @ rustls::Error::InvalidCertificate(_)) => {
            return Error::Certificate { host, source: Box::new(source) };
        }
        Some(source) => return Error::Tls { host, source: Box::new(source) },
        None => {}
    }
    if let Some(refused) = find::<crate::download::Refused>(&error) {
        return Error::NearAddress { host, reason: refused.to_string() };
    }
    if error.is_connect() && is_unknown_name(&error) {
        return Error::UnknownHost { host, source: deepest(&error) };
    }
    if error.is_connect() {
        return Error::Connect { host, source: deepest(&error) };
    }
    Error::Broken { host, source: deepest(&error) }
}

/// The innermost cause: what is around it only says that a request failed, in the words of several libraries.
fn deepest(error: &reqwest::Error) -> Cause {
    let mut innermost: &(dyn StdError + 'static) = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    match innermost.downcast_ref::<io::Error>() {
        Some(error) => Box::new(io::Error::new(error.kind(), error.to_string())),
        None => innermost.to_string().into(),
    }
}

/// Whether the name server says that there is no such host. The type of its error is not ours to name, so its text has to
/// do; should that change, the request is tried again like others.
fn is_unknown_name(error: &reqwest::Error) -> bool {
    let mut next: Option<&dyn StdError> = Some(error);
    while let Some(cause) = next {
        let said = cause.to_string();
        let answers = ["no records found", "failed to lookup address information: Name"];
        if answers.iter().any(|answer| said.starts_with(answer)) {
            return true;
        }
        next = cause.source();
    }
    false
}

/// Whether a connection failed because the peer speaks no TLS at all: it answered in something else, or hung up when it
/// saw our greeting.
pub(crate) fn is_not_tls(error: &Error) -> bool {
    match error {
        Error::NotTls { .. } => true,
        Error::Connect { source, .. } => find::<io::Error>(source.as_ref()).is_some_and(|error| {
            matches!(
                error.kind(),
                ErrorKind::UnexpectedEof
                    | ErrorKind::ConnectionReset
                    | ErrorKind::ConnectionAborted
                    | ErrorKind::BrokenPipe
            )
        }),
        _ => false,
    }
}

/// The first cause of this type. An `io::Error` hides the error that it wraps from `source`, so it is looked into.
fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
    None
}
