//! Paths inside images and contexts, as text. They follow Go's `path` package, which decides what BuildKit writes into
//! the graph.

/// The shortest equal path: no empty, `.` or inner `..` elements, no trailing slash. The empty path is `.`.
pub(crate) fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut kept: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match kept.last() {
                Some(&last) if last != ".." => {
                    kept.pop();
                }
                _ if rooted => {}
                _ => kept.push(".."),
            },
            part => kept.push(part),
        }
    }
    let joined = kept.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".into(),
        (false, false) => joined,
    }
}

/// `parent` and `child` joined by a slash and cleaned; empty elements are left out.
pub(crate) fn join(parent: &str, child: &str) -> String {
    match (parent.is_empty(), child.is_empty()) {
        (true, true) => String::new(),
        (true, false) => clean(child),
        (false, true) => clean(parent),
        (false, false) => clean(&format!("{parent}/{child}")),
    }
}

/// The last element; `.` for the empty path and `/` for one of slashes only.
pub(crate) fn base(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() {
        return "/";
    }
    trimmed.rsplit('/').next().unwrap_or(trimmed)
}

/// `path` made absolute below `parent`. An absolute one is left as it is, a relative one is cleaned.
pub(crate) fn absolute(parent: &str, path: &str) -> String {
    let path = if path.is_empty() { parent } else { path };
    if path.starts_with('/') { path.to_owned() } else { join(parent, path) }
}

/// Like [`absolute`], with a trailing `/` or `/.` kept: they say that a destination is a directory.
pub(crate) fn absolute_with_slash(parent: &str, path: &str) -> String {
    with_slash(absolute(parent, path), path)
}

/// Cleaned, absolute, with a trailing `/` or `/.` kept.
pub(crate) fn clean_with_slash(path: &str) -> String {
    with_slash(join("/", path), path)
}

fn with_slash(mut path: String, written: &str) -> String {
    if written.ends_with('/') && !path.ends_with('/') {
        path.push('/');
    } else if written.ends_with("/.") && !path.ends_with("/.") {
        if path != "/" {
            path.push('/');
        }
        path.push('.');
    }
    path
}

/// Whether a name has a character that makes it a pattern.
pub(crate) fn is_pattern(name: &str) -> bool {
    let mut characters = name.chars();
    while let Some(character) = characters.next() {
        match character {
            '*' | '?' | '[' => return true,
            '\\' => {
                characters.next();
            }
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values are those of Go's documentation of `path`.
    #[test]
    fn paths_are_cleaned_as_go_does() {
        for (path, expected) in [
            ("", "."),
            ("a//b", "a/b"),
            ("a/./b/../c/", "a/c"),
            ("../../a", "../../a"),
            ("/../a", "/a"),
            ("/", "/"),
            ("a/..", "."),
        ] {
            assert_eq!(clean(path), expected, "{path}");
        }
        assert_eq!((base(""), base("///"), base("/a/b/"), base("a")), (".", "/", "b", "a"));
    }

    #[test]
    fn a_trailing_slash_of_a_destination_stays() {
        for (path, expected) in [("x/", "/w/x/"), ("./", "/w/"), ("x/.", "/w/x/."), ("/a//b/", "/a//b/"), ("x", "/w/x")]
        {
            assert_eq!(absolute_with_slash("/w", path), expected, "{path}");
        }
        assert_eq!(clean_with_slash("/a//b/"), "/a/b/");
        assert_eq!(clean_with_slash("/."), "/.");
    }
}
