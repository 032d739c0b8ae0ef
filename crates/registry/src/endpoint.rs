//! Where a repository is asked for: the registry itself, and its mirrors.

use build_engine_oci::Reference;

use crate::realm::is_loopback;
use crate::{Error, Settings};

/// The host whose registry answers at another name.
const DOCKER: &str = "docker.io";
const DOCKER_REGISTRY: &str = "registry-1.docker.io";

/// What is spoken to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Plain HTTP.
    Http,
    /// HTTP in TLS.
    Https,
    /// HTTP in TLS; plain where the host does not speak TLS at all.
    Either,
}

/// One repository at one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// The host as in settings and credentials.
    pub(crate) host: String,
    /// Host and port to connect to.
    pub(crate) authority: String,
    /// The repository at this host.
    pub(crate) repository: String,
    /// The registry that a mirror stands for.
    pub(crate) namespace: Option<String>,
    /// What is spoken.
    pub(crate) protocol: Protocol,
}

impl Endpoint {
    /// The registry itself.
    pub(crate) fn origin(reference: &Reference, settings: &Settings) -> Self {
        let host = reference.domain();
        Self {
            host: host.to_owned(),
            authority: if host == DOCKER { DOCKER_REGISTRY } else { host }.to_owned(),
            repository: reference.path().to_owned(),
            namespace: None,
            protocol: protocol(host, settings),
        }
    }

    /// The mirrors of the registry, in order.
    pub(crate) fn mirrors(reference: &Reference, settings: &Settings) -> Result<Vec<Self>, Error> {
        let Some(host) = settings.hosts.get(reference.domain()) else { return Ok(Vec::new()) };
        let mirror = |text: &String| {
            let (protocol_given, place) = split_mirror(text).ok_or_else(|| Error::Settings {
                what: format!(
                    "`{}` is not a mirror: expected `host[:port][/prefix]`",
                    crate::redact::escape(text, 100)
                ),
                source: None,
            })?;
            let (authority, prefix) = place.split_once('/').unwrap_or((place, ""));
            let prefix = prefix.trim_matches('/');
            let repository = match prefix {
                "" => reference.path().to_owned(),
                prefix => format!("{prefix}/{}", reference.path()),
            };
            Ok(Self {
                host: authority.to_owned(),
                authority: if authority == DOCKER { DOCKER_REGISTRY } else { authority }.to_owned(),
                repository,
                namespace: Some(reference.domain().to_owned()),
                protocol: protocol_given.unwrap_or_else(|| protocol(authority, settings)),
            })
        };
        host.mirrors.iter().map(mirror).collect()
    }

    /// Path and query of something in this repository: `manifests/latest`, `blobs/sha256:…`.
    pub(crate) fn path(&self, rest: &str) -> String {
        let repository = &self.repository;
        match &self.namespace {
            Some(namespace) => format!("/v2/{repository}/{rest}?ns={}", namespace.replace([' ', '&', '#', '?'], "")),
            None => format!("/v2/{repository}/{rest}"),
        }
    }
}

/// Scheme, if one is given, and host with prefix.
pub(crate) fn split_mirror(text: &str) -> Option<(Option<Protocol>, &str)> {
    let (protocol, place) = match text.split_once("://") {
        Some(("http", place)) => (Some(Protocol::Http), place),
        Some(("https", place)) => (Some(Protocol::Https), place),
        Some(_) => return None,
        None => (None, text),
    };
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']' | '/');
    let traverses = place.split('/').any(|part| part == "." || part == "..");
    (!place.is_empty() && !place.starts_with('/') && place.chars().all(legal) && !traverses)
        .then_some((protocol, place))
}

fn protocol(host: &str, settings: &Settings) -> Protocol {
    match settings.hosts.get(host) {
        Some(settings) if settings.http => Protocol::Http,
        Some(settings) if settings.insecure => Protocol::Either,
        // Who names an authority or shows a certificate wants TLS.
        Some(settings) if !settings.ca.is_empty() || settings.cert.is_some() => Protocol::Https,
        Some(_) | None if is_loopback(without_port(host)) => Protocol::Either,
        Some(_) | None => Protocol::Https,
    }
}

/// The host of `host[:port]`.
pub(crate) fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') && !port.is_empty() => host,
        _ => authority,
    }
}

/// The name in settings and credentials of the host at `authority`.
pub(crate) fn settings_name(authority: &str) -> &str {
    if authority == DOCKER_REGISTRY { DOCKER } else { authority }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostSettings;

    fn settings(host: &str, host_settings: HostSettings) -> Settings {
        Settings { hosts: [(host.to_owned(), host_settings)].into(), ..Settings::default() }
    }

    #[test]
    fn hosts_are_spoken_to_as_the_settings_say() {
        let plain = HostSettings::default;
        for (host, host_settings, expected) in [
            ("example.com", plain(), Protocol::Https),
            ("10.0.0.1:5000", plain(), Protocol::Https),
            ("127.0.0.1:5000", plain(), Protocol::Either),
            ("127.9.9.9", plain(), Protocol::Either),
            ("localhost:5000", plain(), Protocol::Either),
            ("[::1]:5000", plain(), Protocol::Either),
            ("localhost.example.com", plain(), Protocol::Https),
            ("127.0.0.1:5000", HostSettings { ca: vec!["x".into()], ..plain() }, Protocol::Https),
            ("127.0.0.1:5000", HostSettings { http: true, ..plain() }, Protocol::Http),
            ("example.com", HostSettings { http: true, insecure: true, ..plain() }, Protocol::Http),
            ("example.com", HostSettings { insecure: true, ..plain() }, Protocol::Either),
        ] {
            let reference: Reference = format!("{host}/app").parse().unwrap();
            assert_eq!(Endpoint::origin(&reference, &settings(host, host_settings)).protocol, expected, "{host}");
            if expected != Protocol::Http {
                continue;
            }
            assert_eq!(Endpoint::origin(&reference, &Settings::default()).namespace, None);
        }
    }

    #[test]
    fn mirrors_have_a_scheme_a_port_and_a_prefix_or_not() {
        for (mirror, expected) in [
            ("mirror.example", Some(("mirror.example", "library/alpine", Protocol::Https))),
            ("mirror.example:5000/hub", Some(("mirror.example:5000", "hub/library/alpine", Protocol::Https))),
            ("http://mirror.example/a/b/", Some(("mirror.example", "a/b/library/alpine", Protocol::Http))),
            ("https://127.0.0.1:5000", Some(("127.0.0.1:5000", "library/alpine", Protocol::Https))),
            ("127.0.0.1:5000", Some(("127.0.0.1:5000", "library/alpine", Protocol::Either))),
            ("[::1]:5000", Some(("[::1]:5000", "library/alpine", Protocol::Either))),
            ("ftp://mirror.example", None),
            ("user@mirror.example", None),
            ("mirror.example/../x", None),
            ("", None),
            ("/x", None),
        ] {
            let host = HostSettings { mirrors: vec![mirror.to_owned()], ..HostSettings::default() };
            let found = Endpoint::mirrors(&"alpine".parse().unwrap(), &settings("docker.io", host));
            match expected {
                None => assert!(found.is_err(), "{mirror}"),
                Some((authority, repository, protocol)) => {
                    let found = found.unwrap().remove(0);
                    assert_eq!(
                        (&*found.authority, &*found.repository, found.protocol),
                        (authority, repository, protocol)
                    );
                    let path = found.path("manifests/latest");
                    assert_eq!(path, format!("/v2/{repository}/manifests/latest?ns=docker.io"));
                }
            }
        }
    }

    #[test]
    fn docker_io_is_another_host_on_the_wire() {
        let endpoint = Endpoint::origin(&"alpine".parse().unwrap(), &Settings::default());
        assert_eq!((&*endpoint.host, &*endpoint.authority), ("docker.io", "registry-1.docker.io"));
        assert_eq!(settings_name("registry-1.docker.io"), "docker.io");
        assert_eq!(without_port("[::1]:5000"), "[::1]");
        assert_eq!(without_port("[::1]"), "[::1]");
    }
}
