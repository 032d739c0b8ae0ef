//! Git repositories as build sources: which URLs are one, and the source vertex for them.
//!
//! Source: BuildKit `frontend/dockerfile/dfgitutil`, `util/gitutil` and `client/llb/source.go`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use build_engine_graph::SourceOp;
use percent_encoding::percent_decode_str;

use crate::paths;

/// A repository, what to take from it, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct GitRef {
    /// What git fetches from.
    pub(crate) remote: String,
    host: String,
    path: String,
    ssh: bool,
    /// Branch, tag or commit; empty means the default branch.
    pub(crate) reference: String,
    /// Folder within the repository; empty means all.
    pub(crate) subdir: String,
    /// The commit that it must be.
    pub(crate) checksum: Option<String>,
    /// Whether `.git` is kept.
    pub(crate) keep_git_dir: Option<bool>,
    submodules: Option<bool>,
    mtime: Option<String>,
    fetch_by_commit: bool,
}

/// Reads `text` as a git URL. `None` if it is none (it may be a path or an http URL).
///
/// # Errors
/// What is wrong with a URL that is one.
pub(crate) fn parse(text: &str) -> Result<Option<GitRef>, String> {
    let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut git = GitRef { remote: rest.to_owned(), ..GitRef::default() };
    if let Some((scheme, rest)) = rest.split_once("://") {
        match scheme.to_ascii_lowercase().as_str() {
            "git" => {}
            "ssh" => git.ssh = true,
            "http" | "https" if rest.ends_with(".git") => {}
            _ => return Ok(None),
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        git.host = authority.rsplit('@').next().unwrap_or(authority).to_owned();
        git.path = percent_decode(path);
    } else {
        // user@host:path
        let Some((user, rest)) = rest.split_once('@') else { return Ok(None) };
        let Some((host, path)) = rest.split_once(':') else { return Ok(None) };
        let is_name = |name: &str, more: &str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || more.contains(c))
        };
        if !is_name(user, "_") || !is_name(host, ".") {
            return Ok(None);
        }
        git.ssh = true;
        git.host = host.to_owned();
        git.path = path.to_owned();
    }
    let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
    git.reference = percent_decode(reference);
    git.subdir = paths::join("/", &percent_decode(subdir)).trim_start_matches('/').to_owned();
    git.read_query(query)?;
    Ok(Some(git))
}

impl GitRef {
    fn read_query(&mut self, query: &str) -> Result<(), String> {
        let (mut tag, mut branch) = (None, None);
        let mut seen: Vec<String> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, value) = (percent_decode(key), percent_decode(&value.replace('+', " ")));
            if seen.contains(&key) {
                return Err(format!("query `{key}` has multiple values"));
            }
            let flag = || match value.as_str() {
                "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
                value => Err(format!("invalid {key} value: `{value}`")),
            };
            match key.as_str() {
                "submodules" => self.submodules = Some(flag()?),
                "keep-git-dir" => self.keep_git_dir = Some(flag()?),
                "fetch-by-commit" => self.fetch_by_commit = flag()?,
                _ if value.is_empty() => return Err(format!("query `{key}` has no value")),
                "ref" => set(&mut self.reference, &key, value)?,
                "subdir" => set(&mut self.subdir, &key, value)?,
                "tag" => tag = Some(value),
                "branch" => branch = Some(value),
                "checksum" | "commit" => self.checksum = Some(value),
                "mtime" if matches!(value.as_str(), "checkout" | "commit") => self.mtime = Some(value),
                "mtime" => return Err(format!("invalid mtime value: `{value}` (must be `checkout` or `commit`)")),
                _ => return Err(format!("unexpected query `{key}`")),
            }
            seen.push(key);
        }
        if let Some(tag) = &tag {
            set(&mut self.reference, "tag", format!("refs/tags/{}", tag.trim_start_matches("refs/tags/")))?;
        }
        if let Some(branch) = branch {
            if tag.is_some() {
                return Err("tag conflicts with branch".into());
            }
            set(&mut self.reference, "branch", format!("refs/heads/{}", branch.trim_start_matches("refs/heads/")))?;
        }
        Ok(())
    }

    /// Whether it is fetched over SSH.
    pub(crate) fn is_ssh(&self) -> bool {
        self.ssh
    }

    /// Gives the files the time of the commit, unless the address says something else.
    pub(crate) fn commit_times(&mut self) {
        self.mtime.get_or_insert_with(|| "commit".to_owned());
    }

    /// The source operation that fetches it. Keys of SSH hosts are for the engine to find out.
    pub(crate) fn source(&self) -> SourceOp {
        let mut identifier = format!("git://{}{}", self.host, paths::join("/", &self.path));
        if !self.reference.is_empty() || !self.subdir.is_empty() {
            identifier.push('#');
            identifier.push_str(&self.reference);
            if !self.subdir.is_empty() {
                identifier.push(':');
                identifier.push_str(&self.subdir);
            }
        }
        let mut attrs: BTreeMap<String, String> = [
            ("git.fullurl", self.remote.as_str()),
            ("git.authtokensecret", "GIT_AUTH_TOKEN"),
            ("git.authheadersecret", "GIT_AUTH_HEADER"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let mut put = |name: &str, value: &str| attrs.insert(name.to_owned(), value.to_owned());
        if self.keep_git_dir == Some(true) {
            put("git.keepgitdir", "true");
        }
        if self.ssh {
            put("git.mountsshsock", "default");
        }
        if let Some(checksum) = &self.checksum {
            put("git.checksum", checksum);
        }
        if self.submodules == Some(false) {
            put("git.skipsubmodules", "true");
        }
        if let Some(mtime) = &self.mtime {
            put("git.mtime", mtime);
        }
        if self.fetch_by_commit {
            put("git.fetchbycommit", "true");
        }
        SourceOp { identifier, attrs }
    }
}

fn set(place: &mut String, key: &str, value: String) -> Result<(), String> {
    if !place.is_empty() && *place != value {
        return Err(format!("{key} conflicts: `{place}` and `{value}`"));
    }
    *place = value;
    Ok(())
}

/// An address without user name and password, for names that are shown.
pub(crate) fn without_user(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
        None => text.to_owned(),
    }
}

/// Replaces `%41` by `A`; what is not an escape, or not text, stays.
pub(crate) fn percent_decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8().map_or_else(|_| text.to_owned(), Cow::into_owned)
}
