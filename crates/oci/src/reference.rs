//! Image references: `[domain/]path[:tag][@digest]`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Digest;

/// A normalised reference to an image: `alpine` is `docker.io/library/alpine`.
///
/// Grammar and normalisation follow `distribution/reference`, which Docker, BuildKit and containerd share.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Text that is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an image reference: {reason}")]
pub struct InvalidReference {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

const DEFAULT_DOMAIN: &str = "docker.io";
const OFFICIAL: &str = "library/";

impl Reference {
    /// Host and port of the registry.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, if one was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Domain and path without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The same with the tag `latest` where neither tag nor digest was given.
    #[must_use]
    pub fn or_latest(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".into());
        }
        self
    }

    /// The same, pinned to `digest`; the tag stays.
    #[must_use]
    pub fn with_digest(mut self, digest: Digest) -> Self {
        self.digest = Some(digest);
        self
    }

    /// The form that people write: without what normalisation added.
    pub fn familiar(&self) -> String {
        let mut text = if self.domain == DEFAULT_DOMAIN {
            let path = self.path.strip_prefix(OFFICIAL).filter(|rest| !rest.contains('/')).unwrap_or(&self.path);
            path.to_owned()
        } else {
            self.name()
        };
        self.write_suffix(&mut text);
        text
    }

    fn write_suffix(&self, text: &mut String) {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let invalid = |reason| InvalidReference { text: text.to_owned(), reason };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                (rest, Some(digest.parse().map_err(|_| invalid("what follows `@` is not a digest"))?))
            }
            None => (text, None),
        };
        // A colon after the last slash separates the tag; one before it belongs to the registry's port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if name.is_empty() {
            return Err(invalid("it has no name"));
        }
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(invalid("the tag may have letters, digits, `_`, `.` and `-`, at most 128 of them"));
        }
        let (domain, path) = split_domain(name);
        if !is_domain(&domain) {
            return Err(invalid("the registry is not a host name"));
        }
        if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(invalid("the repository name must be lower case"));
        }
        if !path.split('/').all(is_path_component) {
            return Err(invalid(
                "each part of the repository name must be lower-case letters and digits, separated by `.`, `_`, `__` or `-`",
            ));
        }
        if path.len() > 255 {
            return Err(invalid("the repository name is longer than 255 characters"));
        }
        Ok(Self { domain, path, tag: tag.map(str::to_owned), digest })
    }
}

/// Splits as distribution/reference does: the first part is a domain if it looks like one.
fn split_domain(name: &str) -> (String, String) {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    };
    let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN } else { domain };
    if domain == DEFAULT_DOMAIN && !path.contains('/') {
        (domain.to_owned(), format!("{OFFICIAL}{path}"))
    } else {
        (domain.to_owned(), path.to_owned())
    }
}

fn is_tag(tag: &str) -> bool {
    let mut bytes = tag.bytes();
    tag.len() <= 128
        && bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            if address.is_empty() || !address.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':') {
                return false;
            }
            match rest {
                "" => return true,
                rest => return rest.strip_prefix(':').is_some_and(is_port),
            }
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        },
    };
    port.is_none_or(is_port)
        && host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        })
}

fn is_port(port: &str) -> bool {
    !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(first) || !alphanumeric(last) {
        return false;
    }
    bytes
        .split(alphanumeric)
        .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-'))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.name();
        self.write_suffix(&mut text);
        f.write_str(&text)
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected forms are those of distribution/reference's `ParseNormalizedNamed`.
    #[test]
    fn names_are_normalised_and_shortened_again() {
        let hex = "a".repeat(64);
        let pinned = format!("alpine:3.20@sha256:{hex}");
        let canonical = format!("docker.io/library/{pinned}");
        for (text, expected, familiar) in [
            ("alpine", "docker.io/library/alpine", "alpine"),
            ("alpine:3.20", "docker.io/library/alpine:3.20", "alpine:3.20"),
            ("user/app", "docker.io/user/app", "user/app"),
            ("index.docker.io/user/app", "docker.io/user/app", "user/app"),
            ("docker.io/library/alpine", "docker.io/library/alpine", "alpine"),
            ("localhost/app", "localhost/app", "localhost/app"),
            ("localhost:5000/a/b/c:x", "localhost:5000/a/b/c:x", "localhost:5000/a/b/c:x"),
            ("127.0.0.1:5000/app", "127.0.0.1:5000/app", "127.0.0.1:5000/app"),
            ("[::1]:5000/app", "[::1]:5000/app", "[::1]:5000/app"),
            ("ghcr.io/o/r-e__p.o", "ghcr.io/o/r-e__p.o", "ghcr.io/o/r-e__p.o"),
            (&pinned, &canonical, &pinned),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), expected);
            assert_eq!(reference.familiar(), familiar);
        }
        assert_eq!("a".parse::<Reference>().unwrap().or_latest().to_string(), "docker.io/library/a:latest");
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = "a".repeat(300);
        for text in [
            "",
            ":x",
            "A",
            "a//b",
            "a:",
            "a:-x",
            "a@sha256:x",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "ex_ample.com:x/a",
            "a b",
            &long,
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
