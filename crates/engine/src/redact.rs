//! URLs as they may be shown.
//!
//! Whoever puts a URL into a message, an event or a record passes it through [`redact_url`] first: git and HTTP URLs carry
//! passwords and tokens.

/// What stands in place of a user, a password or a token; BuildKit shows the same.
const HIDDEN: &str = "xxxxx";

/// Names of query fields whose values give access, in lower case: as they stand, or after the last `-` or `_`.
const SECRET_FIELDS: [&str; 9] =
    ["token", "secret", "password", "passwd", "signature", "sig", "credential", "key", "auth"];

/// Returns `text` with the credentials of every URL in it hidden: user and password before the host, and the values of
/// query fields that give access. Text without a URL is returned as it is.
///
/// `git@host:path` keeps its user: that is the name of an account which everybody shares, and no secret.
pub fn redact_url(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end =
            after.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>')).unwrap_or(after.len());
        redact_after_scheme(&after[..end], &mut out);
        rest = &after[end..];
    }
    out.push_str(rest);
    out
}

fn redact_after_scheme(url: &str, out: &mut String) {
    let authority = url.find(['/', '?', '#']).unwrap_or(url.len());
    let (mut host, rest) = url.split_at(authority);
    // A password may itself have an `@` in it, so the last one counts; and a `/` that was not escaped, so that no `@`
    // comes before it: then what follows is taken for a path, as every client would.
    if let Some(at) = host.rfind('@') {
        out.push_str(if host[..at].contains(':') { "xxxxx:xxxxx@" } else { "xxxxx@" });
        host = &host[at + 1..];
    }
    out.push_str(host);
    let Some(query) = rest.find('?') else { return out.push_str(rest) };
    let (path, query) = rest.split_at(query + 1);
    out.push_str(path);
    let (query, fragment) = query.split_at(query.find('#').unwrap_or(query.len()));
    for (index, field) in query.split('&').enumerate() {
        if index > 0 {
            out.push('&');
        }
        match field.split_once('=') {
            Some((name, _)) if is_secret_field(name) => {
                out.push_str(name);
                out.push('=');
                out.push_str(HIDDEN);
            }
            _ => out.push_str(field),
        }
    }
    out.push_str(fragment);
}

fn is_secret_field(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let last = name.rsplit(['-', '_']).next().unwrap_or_default();
    SECRET_FIELDS.contains(&last)
}

#[cfg(test)]
mod tests {
    use super::redact_url;

    /// S08.
    #[test]
    fn credentials_of_urls_are_hidden_and_the_rest_stays() {
        for (text, expected) in [
            ("https://user:pass@h.example/p.git#main", "https://xxxxx:xxxxx@h.example/p.git#main"),
            ("https://ghp_token@h.example:8443/p", "https://xxxxx@h.example:8443/p"),
            ("https://u:p@ss@h.example", "https://xxxxx:xxxxx@h.example"),
            ("https://h.example/p@v1?a=b@c", "https://h.example/p@v1?a=b@c"),
            (
                "https://h/x?a=1&X-Amz-Signature=deadbeef&access_token=t#f",
                "https://h/x?a=1&X-Amz-Signature=xxxxx&access_token=xxxxx#f",
            ),
            ("https://h/x?keyword=1&tokens=2", "https://h/x?keyword=1&tokens=2"),
            ("git@github.com:a/b.git", "git@github.com:a/b.git"),
            ("ssh://git@h/a.git", "ssh://xxxxx@h/a.git"),
            (
                "cannot fetch `http://a:b@c/d` or http://e:f@g",
                "cannot fetch `http://xxxxx:xxxxx@c/d` or http://xxxxx:xxxxx@g",
            ),
            ("no url: a@b", "no url: a@b"),
            ("://@", "://xxxxx@"),
            ("", ""),
        ] {
            assert_eq!(redact_url(text), expected);
        }
    }
}
