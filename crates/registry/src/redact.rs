//! Addresses and foreign text as they may appear in messages.
//!
//! Invariant: what these functions return has neither user names, passwords, queries nor control characters.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap};

/// Media type of forms.
pub(crate) const FORM: &str = "application/x-www-form-urlencoded";

/// Scheme, host, port and path.
pub(crate) fn redact(url: &Url) -> String {
    let path = if url.cannot_be_a_base() { "…" } else { url.path() };
    escape(&format!("{}://{}{path}", url.scheme(), authority(url)), 300)
}

/// An address that a user wrote, as messages may show it: without user name, password, query and fragment.
pub fn shown(address: &str) -> String {
    match Url::parse(address) {
        Ok(url) if url.has_host() => redact(&url),
        // `user@host:path` has a name in it, which is no secret.
        Ok(_) | Err(_) => escape(address.split(['?', '#']).next().unwrap_or_default(), 300),
    }
}

/// Host, and the port where it is not the scheme's own.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Foreign text in at most `limit` characters, with control characters escaped.
pub(crate) fn escape(text: &str, limit: usize) -> String {
    let mut out = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == limit {
            out.push('…');
            break;
        }
        // Characters that turn the direction of text around are no control characters, and deceive all the same.
        let deceives = matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if character.is_control() || deceives {
            out.extend(character.escape_unicode());
        } else {
            out.push(character);
        }
    }
    out
}

/// What of a request must not come back in a message, should its answer repeat it.
pub(crate) fn secrets(headers: &HeaderMap, body: &[u8]) -> Vec<String> {
    let mut secrets = Vec::new();
    if let Some((scheme, value)) =
        headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| value.split_once(' '))
    {
        secrets.push(value.to_owned());
        let decoded = STANDARD.decode(value).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"));
        if let Some((_, password)) =
            decoded.and_then(|text| String::from_utf8(text).ok()).as_deref().and_then(|text| text.split_once(':'))
        {
            secrets.push(password.to_owned());
        }
    }
    if headers.get(CONTENT_TYPE).is_some_and(|kind| kind == FORM) {
        // Read as what it was written as: the query of an address.
        let form = str::from_utf8(body).ok().and_then(|form| Url::parse(&format!("form:?{form}")).ok());
        let pairs = form.iter().flat_map(Url::query_pairs);
        secrets.extend(
            pairs
                .filter(|(name, _)| matches!(&**name, "password" | "refresh_token"))
                .map(|(_, value)| value.into_owned()),
        );
    }
    // Shorter ones would be found in every word.
    secrets.retain(|secret| secret.len() >= 4);
    secrets
}

/// Foreign text without `secrets`.
pub(crate) fn mask(text: &str, secrets: &[String]) -> String {
    secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "***"))
}

/// Whether two addresses have the same scheme, host and port.
pub(crate) fn same_origin(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host_str() == other.host_str()
        && one.port_or_known_default() == other.port_or_known_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lose_what_may_be_secret() {
        for (url, expected) in [
            ("https://user:secret@cdn.example/a/b?X-Amz-Signature=secret#secret", "https://cdn.example/a/b"),
            ("http://127.0.0.1:5000/v2/?_state=secret", "http://127.0.0.1:5000/v2/"),
            ("https://example.com:443/", "https://example.com/"),
            ("data:secret", "data://…"),
        ] {
            assert_eq!(redact(&Url::parse(url).unwrap()), expected);
        }
    }

    #[test]
    fn what_was_sent_does_not_come_back() {
        let mut headers = HeaderMap::new();
        // user:hunter2
        headers.insert(AUTHORIZATION, "Basic dXNlcjpodW50ZXIy".parse().unwrap());
        headers.insert(CONTENT_TYPE, FORM.parse().unwrap());
        let secrets = secrets(&headers, b"grant_type=password&password=s%20cret&username=u");
        let said = "you said Basic dXNlcjpodW50ZXIy, that is hunter2, and s cret";
        assert_eq!(mask(said, &secrets), "you said Basic ***, that is ***, and ***");
        assert!(super::secrets(&HeaderMap::new(), b"password=hunter2").is_empty());
    }

    #[test]
    fn foreign_text_cannot_steer_a_terminal() {
        assert_eq!(escape("a\x1b[31m\nb\u{202e}", 100), "a\\u{1b}[31m\\u{a}b\\u{202e}");
        assert_eq!(escape("abcdef", 3), "abc…");
    }

    #[test]
    fn origins_are_scheme_host_and_port() {
        let same = |one, other| same_origin(&Url::parse(one).unwrap(), &Url::parse(other).unwrap());
        assert!(same("https://a/x", "https://a:443/y?z"));
        assert!(!same("https://a/x", "http://a:443/x"));
        assert!(!same("https://a/x", "https://a:444/x"));
        assert!(!same("https://a/x", "https://b.a/x"));
    }
}
