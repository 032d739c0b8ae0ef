//! `WWW-Authenticate`: what a registry asks its clients for.
//!
//! Source: RFC 9110, 11.6.1, and distribution's token authentication. The parser is total: what it does not understand
//! is skipped, since real servers put the strangest things there.

/// One challenge that can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// Name and password with every request.
    Basic,
    /// A token of a token service.
    Bearer {
        /// Address of the service.
        realm: String,
        /// What the service calls the registry.
        service: Option<String>,
        /// What the request would have needed.
        scope: Option<String>,
    },
}

/// The challenge to answer: the first that asks for a token, else the first that asks for a password.
pub(crate) fn choose<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Challenge> {
    let all: Vec<Challenge> = headers.into_iter().flat_map(parse).collect();
    let bearer = all.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    bearer.or(all.first()).cloned()
}

/// All challenges of one header that we can answer.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    // The name of the scheme, and its parameters so far.
    let mut current: Option<(String, Vec<(String, String)>)> = None;
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches(|c: char| c == ',' || c.is_ascii_whitespace());
        if rest.is_empty() {
            break;
        }
        let (word, after) = token(rest);
        if word.is_empty() {
            // Something that is no token: skip to the next comma.
            rest = rest.split_once(',').map_or("", |(_, rest)| rest);
            continue;
        }
        let spaceless = after.trim_start();
        if let Some(value) = spaceless.strip_prefix('=')
            && let Some((_, parameters)) = &mut current
        {
            let (value, after) = quoted_or_token(value.trim_start());
            parameters.push((word.to_ascii_lowercase(), value));
            rest = after;
        } else {
            found.extend(current.take().and_then(finish));
            current = Some((word.to_ascii_lowercase(), Vec::new()));
            rest = after;
        }
    }
    found.extend(current.and_then(finish));
    found
}

fn finish((scheme, parameters): (String, Vec<(String, String)>)) -> Option<Challenge> {
    let get = |name: &str| {
        parameters.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.clone())
    };
    match scheme.as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer { realm: get("realm")?, service: get("service"), scope: get("scope") }),
        _ => None,
    }
}

fn token(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| c.is_ascii_whitespace() || matches!(c, ',' | '=' | '"')).unwrap_or(text.len());
    text.split_at(end)
}

fn quoted_or_token(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        // Unquoted addresses have `=` in them, so only a comma or white space ends one.
        let end = text.find(|c: char| c == ',' || c.is_ascii_whitespace()).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[index + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.into(), service: service.map(Into::into), scope: scope.map(Into::into) }
    }

    #[test]
    fn challenges_are_read_as_servers_write_them() {
        let hub = bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:a/b:pull,push"));
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                vec![hub.clone()],
            ),
            (
                r#"bearer Realm = "https://auth.docker.io/token" , SERVICE=registry.docker.io,scope="repository:a/b:pull,push",error="invalid_token""#,
                vec![hub],
            ),
            (r#"Basic realm="Registry, with a comma""#, vec![Challenge::Basic]),
            ("Basic", vec![Challenge::Basic]),
            (
                r#"Negotiate, NTLM abc==, Basic realm="x", Bearer realm="https://t/",service="""#,
                vec![Challenge::Basic, bearer("https://t/", None, None)],
            ),
            (r#"Bearer realm="https://t/?a=b\"c""#, vec![bearer("https://t/?a=b\"c", None, None)]),
            ("Bearer realm=https://t/x?a=b,service=s", vec![bearer("https://t/x?a=b", Some("s"), None)]),
            (r#"Bearer realm="https://t/"#, vec![bearer("https://t/", None, None)]),
            (r#"Bearer service="no realm""#, vec![]),
            (r#"realm="x", Basic"#, vec![Challenge::Basic]),
            ("", vec![]),
            (",,, = \" \\", vec![]),
        ] {
            assert_eq!(parse(header), expected, "{header}");
        }
    }

    #[test]
    fn a_token_is_preferred_to_a_password() {
        let chosen = choose(["Basic realm=x", r#"Bearer realm="https://t/""#]);
        assert_eq!(chosen, Some(bearer("https://t/", None, None)));
        assert_eq!(choose(["Basic realm=x"]), Some(Challenge::Basic));
        assert_eq!(choose(["Digest realm=x"]), None);
    }
}
