//! `--secret` and `--ssh`, as buildx reads them: what a build may ask for becomes a [`Session`].
//!
//! Files are looked for here, so that one that is missing is named before the build starts; they are read when a step
//! asks for them. Values of the environment are taken now.

use std::collections::btree_map::Entry;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use build_engine_engine::ssh::{self, AgentSource};
use build_engine_engine::{MAX_SECRET_BYTES, SecretSource, Session, split_csv};

use super::request::Findings;
use crate::settings::{self, Environment};

/// What a build may ask for.
pub(super) fn session(findings: &mut Findings, secrets: &[String], agents: &[String], env: Environment<'_>) -> Session {
    let mut session = Session::default();
    for text in secrets {
        match secret(text, env) {
            // As in buildx, the last one of an id counts.
            Ok((id, source)) => drop(session.secrets.insert(id, source)),
            Err(reason) => findings.invalid("--secret", text, reason),
        }
    }
    for text in agents {
        match agent(text, env) {
            Ok((id, source)) => match session.agents.entry(id) {
                Entry::Vacant(entry) => drop(entry.insert(source)),
                Entry::Occupied(entry) => {
                    let reason = format!("the id `{}` is given twice", entry.key());
                    findings.invalid("--ssh", text, reason);
                }
            },
            Err(reason) => findings.invalid("--ssh", text, reason),
        }
    }
    session
}

/// Reads `id=…[,src=…|,source=…|,env=…][,type=file|env]`.
fn secret(text: &str, env: Environment<'_>) -> Result<(String, SecretSource), String> {
    let (mut id, mut file, mut variable, mut kind) = (String::new(), String::new(), String::new(), String::new());
    for field in split_csv(text)? {
        let (key, value) = field.split_once('=').ok_or_else(|| format!("field `{field}` has no `=`"))?;
        match key.to_ascii_lowercase().as_str() {
            "type" if matches!(value, "file" | "env") => value.clone_into(&mut kind),
            "type" => return Err(format!("type `{value}` is neither `file` nor `env`")),
            "id" => value.clone_into(&mut id),
            "source" | "src" => value.clone_into(&mut file),
            "env" => value.clone_into(&mut variable),
            _ => return Err(format!("unknown key `{key}`; known are id, src, source, env and type")),
        }
    }
    if id.is_empty() {
        return Err("the id is missing".into());
    }
    if kind == "env" && variable.is_empty() {
        variable = std::mem::take(&mut file);
    }
    if variable.is_empty() && file.is_empty() {
        // Nothing says where it is: a variable of that name, or else a file.
        if env(&id).is_some() {
            variable.clone_from(&id);
        } else {
            file.clone_from(&id);
        }
    }
    if !file.is_empty() {
        let path = Path::new(&file);
        let metadata = path.metadata().map_err(|error| format!("cannot use `{file}`: {error}"))?;
        if metadata.is_dir() {
            return Err(format!("`{file}` is a directory"));
        }
        if metadata.len() > MAX_SECRET_BYTES {
            return Err(format!("`{file}` has more than {MAX_SECRET_BYTES} bytes"));
        }
        let path = std::path::absolute(path).map_err(|error| format!("cannot use `{file}`: {error}"))?;
        if variable.is_empty() {
            return Ok((id, SecretSource::File(path)));
        }
    }
    // A variable that is not set is an empty secret, as in buildx.
    let value = env(&variable).unwrap_or_default().into_vec();
    if value.len() as u64 > MAX_SECRET_BYTES {
        return Err(format!("the variable `{variable}` has more than {MAX_SECRET_BYTES} bytes"));
    }
    Ok((id, SecretSource::Value(value.into())))
}

/// Reads `ID[=PATH[,PATH…]]`.
fn agent(text: &str, env: Environment<'_>) -> Result<(String, AgentSource), String> {
    let (id, paths) = text.split_once('=').unwrap_or((text, ""));
    let id = if id.is_empty() { ssh::DEFAULT_ID } else { id };
    let paths: Vec<PathBuf> = if paths.is_empty() {
        let socket = settings::ssh_agent(env);
        vec![socket.ok_or("no socket is named, and SSH_AUTH_SOCK is not set: is an ssh agent running?")?]
    } else {
        paths.split(',').map(PathBuf::from).collect()
    };
    match AgentSource::open(&paths) {
        Ok(source) => Ok((id.to_owned(), source)),
        Err(error) => Err(match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    /// F2-046.
    #[test]
    fn secrets_are_found_where_buildx_finds_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("file");
        std::fs::write(&file, "x").expect("a file");
        std::fs::write(dir.path().join("large"), vec![0; MAX_SECRET_BYTES as usize + 1]).expect("a file");
        let dir = dir.path().display().to_string();
        let env = |name: &str| [("TOKEN", "t0ken"), ("id", "by name")].into_iter().find(|(key, _)| *key == name);
        let env = |name: &str| env(name).map(|(_, value)| OsString::from(value));
        let shown = |text: &str| match secret(&text.replace("DIR", &dir), &env) {
            Ok((id, SecretSource::File(path))) => format!("{id} file {}", path.display()).replace(&dir, "DIR"),
            Ok((id, SecretSource::Value(value))) => format!("{id} value {}", String::from_utf8_lossy(&value)),
            Err(reason) => format!("error: {}", reason.replace(&dir, "DIR")),
        };
        for (text, expected) in [
            ("id=a,src=DIR/file", "a file DIR/file"),
            ("ID=a,SOURCE=DIR/file,type=file", "a file DIR/file"),
            ("id=a,env=TOKEN", "a value t0ken"),
            ("id=a,type=env,src=TOKEN", "a value t0ken"),
            ("id=a,env=TOKEN,src=DIR/file", "a value t0ken"),
            ("id=TOKEN", "TOKEN value t0ken"),
            ("id=id", "id value by name"),
            ("id=DIR/file", "DIR/file file DIR/file"),
            ("id=a,env=UNSET", "a value "),
            ("\"id=a\",\"src=DIR/file\"", "a file DIR/file"),
            ("id=a,src=DIR/none", "error: cannot use `DIR/none`: No such file or directory (os error 2)"),
            ("id=a,src=DIR", "error: `DIR` is a directory"),
            ("id=a,src=DIR/large", "error: `DIR/large` has more than 512000 bytes"),
            ("src=DIR/file", "error: the id is missing"),
            ("id=a,type=vault", "error: type `vault` is neither `file` nor `env`"),
            ("id=a,from=x", "error: unknown key `from`; known are id, src, source, env and type"),
            ("a", "error: field `a` has no `=`"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    /// F2-046.
    #[test]
    fn agents_are_sockets_or_keys_and_what_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        std::fs::write(dir.path().join("text"), "no key").expect("a file");
        let dir = dir.path().display().to_string();
        let shown = |text: &str, variable: Option<&str>| {
            let env = |name: &str| variable.filter(|_| name == "SSH_AUTH_SOCK").map(OsString::from);
            match agent(&text.replace("DIR", &dir), &env) {
                Ok((id, source)) => format!("{id} {source:?}").replace(&dir, "DIR"),
                Err(reason) => format!("error: {}", reason.replace(&dir, "DIR")),
            }
        };
        let from_env = format!("{dir}/socket");
        assert_eq!(shown("default", Some(&from_env)), "default Socket(\"DIR/socket\")");
        assert_eq!(shown("other=DIR/socket", None), "other Socket(\"DIR/socket\")");
        assert_eq!(shown("=DIR/socket", None), "default Socket(\"DIR/socket\")");
        for (text, part) in [
            ("default", "SSH_AUTH_SOCK is not set"),
            ("a=DIR/none", "`DIR/none`: No such file"),
            ("a=DIR/text", "`DIR/text`: it is no private key"),
            ("a=DIR/socket,DIR/text", "`DIR/socket` is a socket: an agent is one socket"),
            ("a=DIR", "neither a socket nor a file"),
        ] {
            let error = shown(text, None);
            assert!(error.starts_with("error: ") && error.contains(part), "{text}: {error}");
        }
    }
}
