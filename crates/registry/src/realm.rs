//! Which token services are asked, and which of them are shown credentials.
//!
//! A registry names its token service in the answer to a request that anybody may have tampered with, or is itself the
//! attacker; so the address is judged before it is used.

use std::net::{IpAddr, Ipv4Addr};

use reqwest::Url;

/// What a token service is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// The credentials of the registry.
    Credentials,
    /// Nothing: it is asked for a token that everybody may have.
    Anonymous,
}

/// Judges the token service at `realm`, to which `registry` sends its clients. `auth_hosts` are those that the user
/// trusts with the credentials.
///
/// # Errors
/// Why the service must not be asked at all.
pub(crate) fn judge(registry: &Url, realm: &Url, auth_hosts: &[String]) -> Result<Trust, &'static str> {
    match realm.scheme() {
        "https" => {}
        "http" if registry.scheme() == "http" => {}
        "http" => return Err("it is not https"),
        _ => return Err("it is neither http nor https"),
    }
    let (registry, host) = (Host::of(registry), Host::of(realm));
    let with_port = format!("{}:{}", host.name, realm.port_or_known_default().unwrap_or_default());
    let listed = |entry: &String| [&host.name, &with_port].into_iter().any(|name| entry.eq_ignore_ascii_case(name));
    if auth_hosts.iter().any(listed) || host.name == registry.name || (host.is_loopback() && registry.is_loopback()) {
        return Ok(Trust::Credentials);
    }
    if is_link_local(&host) {
        return Err("it is a link-local address");
    }
    if (host.address.is_some() || host.is_near()) && !registry.is_near() {
        return Err("it is an address or a host of a private network, and the registry is not");
    }
    match (registrable(&host), registrable(&registry)) {
        (Some(one), Some(other)) if one == other => Ok(Trust::Credentials),
        _ => Ok(Trust::Anonymous),
    }
}

/// Whether `host` (without port, IPv6 in brackets) is this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    Host::new(host).is_loopback()
}

/// Whether `url` is a link-local address, where clouds keep the secrets of their machines.
pub(crate) fn is_link_local_url(url: &Url) -> bool {
    is_link_local(&Host::of(url))
}

/// How near to this machine an address is, the farthest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Nearness {
    Public,
    Private,
    Loopback,
    LinkLocal,
}

impl std::fmt::Display for Nearness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Public => "a public address",
            Self::Private => "an address of a private network",
            Self::Loopback => "an address of this machine",
            Self::LinkLocal => "a link-local address",
        })
    }
}

/// Classifies an address.
pub(crate) fn nearness(address: IpAddr) -> Nearness {
    let host = Host { name: String::new(), address: Some(address.to_canonical()) };
    if is_link_local(&host) {
        Nearness::LinkLocal
    } else if host.is_loopback() {
        Nearness::Loopback
    } else if host.is_near() {
        Nearness::Private
    } else {
        Nearness::Public
    }
}

struct Host {
    name: String,
    address: Option<IpAddr>,
}

impl Host {
    fn of(url: &Url) -> Self {
        Self::new(url.host_str().unwrap_or_default())
    }

    fn new(text: &str) -> Self {
        let name = text.trim_end_matches('.').to_ascii_lowercase();
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
        Self { address: address.map(|address| address.to_canonical()), name }
    }

    fn is_loopback(&self) -> bool {
        match self.address {
            Some(address) => address.is_loopback() || address.is_unspecified(),
            None => self.name == "localhost" || self.name.ends_with(".localhost"),
        }
    }

    /// Loopback, link-local or private.
    fn is_near(&self) -> bool {
        self.is_loopback()
            || match self.address {
                Some(IpAddr::V4(address)) => {
                    address.is_private() || address.is_link_local() || is_carrier_grade(address)
                }
                Some(IpAddr::V6(address)) => address.is_unique_local() || address.is_unicast_link_local(),
                None => false,
            }
    }
}

fn is_link_local(host: &Host) -> bool {
    match host.address {
        Some(IpAddr::V4(address)) => address.is_link_local(),
        Some(IpAddr::V6(address)) => address.is_unicast_link_local(),
        None => false,
    }
}

/// 100.64.0.0/10, RFC 6598; some clouds keep their metadata there.
fn is_carrier_grade(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    first == 100 && second & 0xc0 == 64
}

/// Domains under which everybody can get a name.
const SHARED: &[&str] = &[
    "amazonaws.com",
    "azurecr.io",
    "azurewebsites.net",
    "cloudfront.net",
    "cloudapp.net",
    "fly.dev",
    "github.io",
    "gitlab.io",
    "herokuapp.com",
    "netlify.app",
    "ngrok.app",
    "ngrok.io",
    "on.aws",
    "pages.dev",
    "run.app",
    "vercel.app",
    "web.app",
    "windows.net",
    "workers.dev",
];

/// The domain that somebody registered: two labels, three where the last two are a public suffix. Addresses have none.
///
/// Deliberately not the public suffix list: what it would let us join, the user can list in `auth-hosts`.
fn registrable(host: &Host) -> Option<String> {
    if host.address.is_some() {
        return None;
    }
    let labels: Vec<&str> = host.name.split('.').collect();
    if labels.len() < 2 || labels.iter().any(|label| label.is_empty()) {
        return None;
    }
    let last = |count: usize| {
        let start = labels.len().checked_sub(count)?;
        Some(labels[start..].join("."))
    };
    let two = last(2)?;
    let (second, top) = (labels[labels.len() - 2], labels[labels.len() - 1]);
    let generic = matches!(second, "ac" | "co" | "com" | "edu" | "go" | "gob" | "gov" | "ne" | "net" | "or" | "org");
    if (top.len() == 2 && generic) || SHARED.contains(&two.as_str()) { last(3) } else { Some(two) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_services_are_judged_by_their_address() {
        let listed = ["tokens.example".to_owned(), "10.1.2.3:8443".to_owned()];
        for (registry, realm, expected) in [
            ("https://registry-1.docker.io", "https://auth.docker.io/token", Some(Trust::Credentials)),
            ("https://ghcr.io", "https://ghcr.io/token", Some(Trust::Credentials)),
            ("https://ghcr.io", "https://GHCR.io:8443/token", Some(Trust::Credentials)),
            ("https://registry.gitlab.com", "https://gitlab.com/jwt/auth", Some(Trust::Credentials)),
            ("https://docker.elastic.co", "https://docker-auth.elastic.co/auth", Some(Trust::Credentials)),
            ("https://r.example.co.uk", "https://auth.example.co.uk/", Some(Trust::Credentials)),
            ("https://r.example.co.uk", "https://evil.co.uk/", Some(Trust::Anonymous)),
            ("https://r.example.com.au", "https://evil.com.au/", Some(Trust::Anonymous)),
            ("https://a.azurecr.io", "https://b.azurecr.io/", Some(Trust::Anonymous)),
            ("https://a.azurecr.io", "https://a.azurecr.io/oauth2/token", Some(Trust::Credentials)),
            ("https://good.example", "https://evil.test/token", Some(Trust::Anonymous)),
            ("https://good.example", "https://good.example.evil.test/", Some(Trust::Anonymous)),
            ("https://good.example", "https://evilgood.example/", Some(Trust::Anonymous)),
            ("https://good.example", "https://tokens.example/", Some(Trust::Credentials)),
            ("https://registry", "https://auth/", Some(Trust::Anonymous)),
            ("https://good.example", "http://good.example/token", None),
            ("http://good.example", "http://good.example/token", Some(Trust::Credentials)),
            ("http://good.example", "https://good.example/token", Some(Trust::Credentials)),
            ("https://good.example", "ftp://good.example/token", None),
            ("https://good.example", "https://169.254.169.254/latest", None),
            ("https://good.example", "https://127.0.0.1/", None),
            ("https://good.example", "https://2130706433/", None),
            ("https://good.example", "https://0x7f.1/", None),
            ("https://good.example", "https://0.0.0.0/", None),
            ("https://good.example", "https://localhost/", None),
            ("https://good.example", "https://x.localhost./", None),
            ("https://good.example", "https://10.1.2.3/", None),
            ("https://good.example", "https://10.1.2.3:8443/", Some(Trust::Credentials)),
            ("https://good.example", "https://8.8.8.8/", None),
            ("https://good.example", "https://[::1]/", None),
            ("https://good.example", "https://[fe80::1]/", None),
            ("https://good.example", "https://[fd00::1]/", None),
            ("https://good.example", "https://[::ffff:127.0.0.1]/", None),
            ("https://good.example", "https://100.100.100.200/", None),
            ("https://203.0.113.5", "https://203.0.113.5/token", Some(Trust::Credentials)),
            ("https://203.0.113.5", "https://203.0.113.6/token", None),
            ("https://127.0.0.1:5000", "https://127.0.0.1:5001/token", Some(Trust::Credentials)),
            ("http://127.0.0.1:5000", "http://localhost:5001/token", Some(Trust::Credentials)),
            ("http://127.0.0.1:5000", "http://10.0.0.1/token", Some(Trust::Anonymous)),
            ("http://127.0.0.1:5000", "http://169.254.169.254/token", None),
            ("http://127.0.0.1:5000", "https://auth.docker.io/token", Some(Trust::Anonymous)),
            ("https://10.0.0.1", "https://10.0.0.2/token", Some(Trust::Anonymous)),
        ] {
            let url = |text| Url::parse(text).unwrap();
            assert_eq!(judge(&url(registry), &url(realm), &listed).ok(), expected, "{registry} -> {realm}");
        }
    }
}
