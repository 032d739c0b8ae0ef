//! Credentials: where they come from, and what they are.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine as _, alphabet};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::{Error, helper};

/// What a registry, or its token service, is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Credential {
    /// A name and a password.
    Basic {
        /// The name.
        username: String,
        /// The password.
        password: String,
    },
    /// A refresh token that the token service changes into others (docker's `identitytoken`).
    Identity {
        /// The token.
        token: String,
    },
    /// A token for the registry itself (docker's `registrytoken`).
    Bearer {
        /// The token.
        token: String,
    },
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Finds credentials. Asked anew whenever a token is needed, so that what was refreshed meanwhile is used.
pub trait Credentials: Send + Sync {
    /// The credential for a repository (`library/debian`) at `host` (`docker.io`, `127.0.0.1:5000`), if there is one.
    fn find<'a>(&'a self, host: &'a str, repository: &'a str) -> BoxFuture<'a, Result<Option<Credential>, Error>>;
}

/// Knows none.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoCredentials;

impl Credentials for NoCredentials {
    fn find<'a>(&'a self, _host: &'a str, _repository: &'a str) -> BoxFuture<'a, Result<Option<Credential>, Error>> {
        Box::pin(async { Ok(None) })
    }
}

/// Credentials from docker's `config.json` and podman's `auth.json`, and from the helpers that they name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthFiles {
    /// The files, in the order in which they are looked at; one that does not exist is skipped.
    pub files: Vec<PathBuf>,
    /// Directories that helpers are looked for in.
    pub path: Vec<PathBuf>,
}

/// So large may a file with credentials be.
const MAX_FILE: u64 = 8 << 20;

impl AuthFiles {
    /// Finds the credential for a repository at `host`. Blocks: files are read and helpers run.
    ///
    /// Keys of podman's files may go on with a namespace or a repository, and the longest one that fits is taken. Docker
    /// takes its keys for those of hosts, whatever follows. Source: containers-auth.json(5).
    ///
    /// # Errors
    /// A file or a helper that cannot be used, by name.
    pub fn find(&self, host: &str, repository: &str) -> Result<Option<Credential>, Error> {
        for path in &self.files {
            if let Some(file) = read(path)?
                && let Some(found) = self.find_in(path, &file, host, repository)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The helper for the host, then the helper for all, then the file itself, as docker does.
    fn find_in(
        &self,
        path: &Path,
        file: &ConfigFile,
        host: &str,
        repository: &str,
    ) -> Result<Option<Credential>, Error> {
        let own = spellings(host).find_map(|name| file.cred_helpers.get(name)).filter(|name| !name.is_empty());
        let helper = own.or(file.creds_store.as_ref()).filter(|name| !name.is_empty());
        if let Some(name) = helper {
            let server = if host == DOCKER { DOCKER_KEY } else { host };
            if let Some(found) = helper::get(name, server, &self.path)? {
                return Ok(Some(found));
            }
        }
        let docker = path.file_name().is_some_and(|name| name == "config.json");
        let mut fitting: Vec<(usize, &Entry)> = Vec::new();
        for (key, entry) in &file.auths {
            let (of, namespace) = key_host(key);
            if !spellings(host).any(|spelling| spelling == of || spelling == key) {
                continue;
            }
            let below = repository.strip_prefix(namespace).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            if docker {
                // Keys with a path are only better than nothing.
                fitting.push((usize::from(namespace.is_empty()), entry));
            } else if namespace.is_empty() || below {
                fitting.push((namespace.len(), entry));
            }
        }
        fitting.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        for (_, entry) in fitting {
            if let Some(found) = entry.credential(path, host)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

const DOCKER: &str = "docker.io";
/// Under which docker keeps the credentials of docker.io.
const DOCKER_KEY: &str = "https://index.docker.io/v1/";

/// The names under which a host may be found.
fn spellings(host: &str) -> impl Iterator<Item = &str> {
    let others: &[&str] = if host == DOCKER { &[DOCKER_KEY, "index.docker.io", "registry-1.docker.io"] } else { &[] };
    std::iter::once(host).chain(others.iter().copied())
}

/// The host of a key, and what follows it without meaning the host alone (`https://host/v1/` does).
fn key_host(key: &str) -> (&str, &str) {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, rest) = bare.split_once('/').unwrap_or((bare, ""));
    let rest = rest.trim_end_matches('/');
    (host, if matches!(rest, "v1" | "v2" | "v1/users") { "" } else { rest })
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ConfigFile {
    #[serde(deserialize_with = "null_as_default")]
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "credHelpers", deserialize_with = "null_as_default")]
    cred_helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

fn null_as_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

/// Reads a file; `None` if there is none.
fn read(path: &Path) -> Result<Option<ConfigFile>, Error> {
    let invalid = |reason: String| Error::AuthFile { path: path.to_owned(), reason };
    let mut text = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut text)) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(error) => return Err(invalid(error.to_string())),
        Ok(read) if read as u64 > MAX_FILE => return Err(invalid("it is too large".to_owned())),
        Ok(_) => {}
    }
    if text.trim_ascii().is_empty() {
        return Ok(None);
    }
    // The message of the parser may quote what it does not like, so only its position is told.
    let place = |error: serde_json::Error| {
        invalid(format!("it is not the JSON that it should be (line {}, column {})", error.line(), error.column()))
    };
    serde_json::from_slice(&text).map(Some).map_err(place)
}

impl Entry {
    fn credential(&self, path: &Path, host: &str) -> Result<Option<Credential>, Error> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = given(&self.registrytoken) {
            return Ok(Some(Credential::Bearer { token }));
        }
        if let Some(token) = given(&self.identitytoken) {
            return Ok(Some(Credential::Identity { token }));
        }
        if let Some(auth) = given(&self.auth) {
            let invalid = || Error::AuthFile {
                path: path.to_owned(),
                reason: format!("`auth` of `{host}` is not a name and a password in base64"),
            };
            let bytes = FORGIVING.decode(auth.trim()).map_err(|_| invalid())?;
            // Docker pads passwords with NUL, or did so.
            let text = String::from_utf8(bytes).map_err(|_| invalid())?;
            let (username, password) = text.split_once(':').ok_or_else(invalid)?;
            let password = password.trim_end_matches('\0');
            return Ok(Some(Credential::Basic { username: username.to_owned(), password: password.to_owned() }));
        }
        Ok(match (given(&self.username), given(&self.password)) {
            (Some(username), Some(password)) => Some(Credential::Basic { username, password }),
            _ => None,
        })
    }
}

/// Base64 with or without padding.
const FORGIVING: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn basic(username: &str, password: &str) -> Credential {
        Credential::Basic { username: username.into(), password: password.into() }
    }

    fn find(text: &str, host: &str) -> Result<Option<Credential>, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, text).unwrap();
        AuthFiles { files: vec![dir.path().join("missing.json"), path], path: vec![] }.find(host, "owner/app")
    }

    #[test]
    fn podmans_keys_are_taken_by_the_longest_that_fits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        let entry = |user: &str| {
            use base64::engine::general_purpose::STANDARD;
            format!(r#"{{"auth": "{}"}}"#, STANDARD.encode(format!("{user}:p")))
        };
        let keys = [("q.io", "host"), ("q.io/a", "a"), ("q.io/a/b", "ab"), ("r.io/a", "other")];
        let entries: Vec<String> = keys.iter().map(|(key, user)| format!(r#""{key}": {}"#, entry(user))).collect();
        fs::write(&path, format!(r#"{{"auths": {{{}}}}}"#, entries.join(","))).unwrap();
        let files = AuthFiles { files: vec![path], path: vec![] };
        for (host, repository, user) in [
            ("q.io", "a/b", Some("ab")),
            ("q.io", "a/b/c", Some("ab")),
            ("q.io", "a/bc", Some("a")),
            ("q.io", "a", Some("a")),
            ("q.io", "ab", Some("host")),
            ("q.io", "", Some("host")),
            ("r.io", "a/x", Some("other")),
            ("r.io", "b", None),
        ] {
            let found = files.find(host, repository).unwrap();
            assert_eq!(found, user.map(|user| basic(user, "p")), "{host}/{repository}");
        }
    }

    #[test]
    fn entries_are_found_under_the_names_that_docker_and_podman_use() {
        let entry = r#"{"auth": "dTpw"}"#; // u:p
        for (key, host, found) in [
            ("https://index.docker.io/v1/", "docker.io", true),
            ("index.docker.io", "docker.io", true),
            ("docker.io", "docker.io", true),
            ("docker.io/library", "docker.io", true),
            ("docker.io", "index.docker.io", false),
            ("ghcr.io", "ghcr.io", true),
            ("https://ghcr.io", "ghcr.io", true),
            ("https://ghcr.io/v1/", "ghcr.io", true),
            ("http://ghcr.io/v2/", "ghcr.io", true),
            ("ghcr.io/owner/app", "ghcr.io", true),
            ("ghcr.io", "evil.ghcr.io", false),
            ("ghcr.io.evil.test", "ghcr.io", false),
            ("127.0.0.1:5000", "127.0.0.1:5000", true),
            ("127.0.0.1:5000", "127.0.0.1", false),
            ("127.0.0.1", "127.0.0.1:5000", false),
        ] {
            let credential = find(&format!(r#"{{"auths": {{"{key}": {entry}}}}}"#), host).unwrap();
            assert_eq!(credential, found.then(|| basic("u", "p")), "{key} for {host}");
        }
    }

    #[test]
    fn entries_have_many_forms() {
        let identity = Credential::Identity { token: "t".into() };
        for (entry, expected) in [
            (r#"{"auth": "dTpwOnE="}"#, Some(basic("u", "p:q"))),
            (r#"{"auth": "dTpwOnE"}"#, Some(basic("u", "p:q"))),
            (r#"{"username": "u", "password": "p"}"#, Some(basic("u", "p"))),
            (r#"{"auth": "dTpw", "identitytoken": "t"}"#, Some(identity)),
            (r#"{"registrytoken": "t"}"#, Some(Credential::Bearer { token: "t".into() })),
            (r#"{}"#, None),
            (r#"{"auth": ""}"#, None),
            (r#"{"auth": null, "email": "x"}"#, None),
        ] {
            let text = format!(r#"{{"auths": {{"r.example": {entry}}}, "credHelpers": null}}"#);
            assert_eq!(find(&text, "r.example").unwrap(), expected, "{entry}");
        }
        assert_eq!(find("{}", "r.example").unwrap(), None);
        assert_eq!(find(" \n", "r.example").unwrap(), None);
    }

    #[test]
    fn the_entry_of_the_host_is_better_than_that_of_a_namespace() {
        let text = r#"{"auths": {"q.io/a": {"auth": "YTph"}, "q.io": {"auth": "dTpw"}, "q.io/b": {"auth": "YTph"}}}"#;
        assert_eq!(find(text, "q.io").unwrap(), Some(basic("u", "p")));
    }

    #[test]
    fn broken_files_are_named_and_not_quoted() {
        for text in [
            r#"{"auths": {"r.example": {"auth": "hunter2"}}}"#,
            r#"{"auths": {"r.example": {"auth": "aHVudGVyMg=="}}}"#,
            r#"{"auths": {"r.example": "hunter2"}}"#,
            r#"{"auths": hunter2"#,
        ] {
            let error = find(text, "r.example").unwrap_err();
            assert_eq!(error.kind(), crate::Kind::Input);
            let message = format!("{error} {error:?}");
            assert!(message.contains("config.json") && !message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn credentials_are_never_shown() {
        assert_eq!(format!("{:?}", basic("u", "hunter2")), "***");
    }
}
