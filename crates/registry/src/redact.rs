//! Addresses and foreign text as they may appear in messages.
//!
//! Invariant: what these functions return has neither user names, passwords, queries nor control characters.

use reqwest::Url;

/// Scheme, host, port and path.
pub(crate) fn redact(url: &Url) -> String {
    let path = if url.cannot_be_a_base() { "…" } else { url.path() };
    escape(&format!("{}://{}{path}", url.scheme(), authority(url)), 300)
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
