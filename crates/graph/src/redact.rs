//! URLs as they may be shown.
//!
//! Whoever puts a URL into a name, a message, an event, a record or the history of an image passes it through
//! [`redact_url`] first: git and HTTP URLs carry passwords and tokens.

use std::ops::Range;

/// What stands in place of a user, a password or a token; BuildKit shows the same.
const HIDDEN: &str = "xxxxx";

/// Names of query fields whose values give access, in lower case: as they stand, or after the last `-` or `_`.
const SECRET_FIELDS: [&str; 9] =
    ["token", "secret", "password", "passwd", "signature", "sig", "credential", "key", "auth"];

/// Returns `text` with the credentials of every URL in it hidden: user and password before the host, and the values of
/// query fields that give access. Text without a URL is returned as it is.
///
/// `git@host:path` and `ssh://git@host/path` keep their user: that is the name of an account which everybody shares, and
/// no secret. Neither is a variable, such as `$TOKEN`, whose value stands elsewhere.
pub fn redact_url(text: &str) -> String {
    let (mut out, mut end) = (String::with_capacity(text.len()), 0);
    for range in credentials(text) {
        out.push_str(&text[end..range.start]);
        out.push_str(HIDDEN);
        end = range.end;
    }
    out.push_str(&text[end..]);
    out
}

/// As [`redact_url`], but with one `x` for every byte: whoever points into the text still points at the same thing.
pub fn redact_url_in_place(text: &str) -> String {
    let (mut out, mut end) = (String::with_capacity(text.len()), 0);
    for range in credentials(text) {
        out.push_str(&text[end..range.start]);
        out.extend(std::iter::repeat_n('x', range.len()));
        end = range.end;
    }
    out.push_str(&text[end..]);
    out
}

/// Where credentials stand in a text, in order.
fn credentials(text: &str) -> Vec<Range<usize>> {
    let (mut found, mut start) = (Vec::new(), 0);
    while let Some(at) = text[start..].find("://") {
        let url = start + at + 3;
        let end = text[url..]
            .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>'))
            .map_or(text.len(), |length| url + length);
        let is_ssh = text[..url - 3].ends_with("ssh");
        after_scheme(text, url..end, is_ssh, &mut found);
        start = end;
    }
    found.retain(|range| !is_variable(&text[range.clone()]));
    found
}

fn after_scheme(text: &str, url: Range<usize>, is_ssh: bool, found: &mut Vec<Range<usize>>) {
    let find = |from: usize, pattern: &[char]| text[from..url.end].find(pattern).map(|at| from + at);
    let authority = url.start..find(url.start, &['/', '?', '#']).unwrap_or(url.end);
    // A password may itself have an `@` in it, so the last one counts; and a `/` that was not escaped, so that no `@`
    // comes before it: then what follows is taken for a path, as every client would.
    if let Some(at) = text[authority.clone()].rfind('@') {
        let who = authority.start..authority.start + at;
        match text[who.clone()].find(':') {
            Some(colon) => {
                found.push(who.start..who.start + colon);
                found.push(who.start + colon + 1..who.end);
            }
            None if is_ssh => {}
            None => found.push(who),
        }
    }
    let Some(query) = find(authority.end, &['?']) else { return };
    let end = find(query, &['#']).unwrap_or(url.end);
    let mut start = query + 1;
    for field in text[start..end].split('&') {
        if let Some((name, _)) = field.split_once('=')
            && is_secret_field(name)
        {
            found.push(start + name.len() + 1..start + field.len());
        }
        start += field.len() + 1;
    }
}

fn is_secret_field(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let last = name.rsplit(['-', '_']).next().unwrap_or_default();
    SECRET_FIELDS.contains(&last)
}

/// Whether a text is one variable and nothing else.
fn is_variable(text: &str) -> bool {
    let Some(name) = text.strip_prefix('$') else { return false };
    let name = name.strip_prefix('{').and_then(|name| name.strip_suffix('}')).unwrap_or(name);
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::{redact_url, redact_url_in_place};

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
            ("ssh://git@h/a.git", "ssh://git@h/a.git"),
            ("ssh://git:pass@h/a.git", "ssh://xxxxx:xxxxx@h/a.git"),
            ("https://oauth2:$TOKEN@h/a", "https://xxxxx:$TOKEN@h/a"),
            ("https://${USER}:x$Y@h/a", "https://${USER}:xxxxx@h/a"),
            (
                "cannot fetch `http://a:b@c/d` or http://e:f@g",
                "cannot fetch `http://xxxxx:xxxxx@c/d` or http://xxxxx:xxxxx@g",
            ),
            ("no url: a@b", "no url: a@b"),
            ("://é@", "://xxxxx@"),
            ("", ""),
        ] {
            assert_eq!(redact_url(text), expected);
            let in_place = redact_url_in_place(text);
            assert_eq!(in_place.len(), text.len());
            assert_eq!(redact_url(&in_place), expected);
        }
        assert_eq!(redact_url_in_place("x https://é:abc@h y"), "x https://xx:xxx@h y");
    }
}
