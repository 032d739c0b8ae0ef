//! The face's side of [`super::face`]: what it does with a question of the worker.
//!
//! This runs in the user's own process, with the user's files, helpers and environment; nothing here believes more of a
//! question than that it came from the worker, and nothing is answered that the call's [`Session`] does not hold.

use std::io;
use std::sync::atomic::AtomicBool;

use build_engine_registry::AuthFiles;
use serde_json::Value;

use super::frame::Wanted;
use super::git_commands;
use crate::{BuildError, ExitKind, MAX_SECRET_BYTES, Report, SecretSource, Session};

/// Answers one question. Blocks while files are read and helpers run.
///
/// `ended` is set when nobody waits for the call any more.
pub(super) fn answer(
    wanted: Wanted,
    session: &Session,
    auth: &AuthFiles,
    ended: &AtomicBool,
) -> Result<Value, BuildError> {
    match wanted {
        Wanted::Credential { host, repository } => {
            let found = auth.find(&host, &repository);
            to_value(found.map_err(|error| BuildError::internal(explain(&error)))?)
        }
        Wanted::Secret { id } => to_value(secret(&id, session)?),
        Wanted::GitResolve { remote, reference } => {
            to_value(git_commands::resolve(&remote, &reference, session, ended)?)
        }
        Wanted::GitCheckout { checkout } => to_value(git_commands::check_out(&checkout, session, ended)?),
        Wanted::Agent { id } => to_value(session.agents.contains_key(&id)),
        Wanted::Ssh { id, message } => {
            let failed = |error: io::Error| {
                let report = Report::new("ssh", format!("the ssh agent `{id}` does not answer")).caused_by(&error);
                BuildError::new(ExitKind::Source, report)
            };
            let agent = session.agents.get(&id);
            let agent = agent.ok_or_else(|| failed(io::Error::other("there is no agent of this id")))?;
            to_value(agent.answer(&message).map_err(failed)?)
        }
    }
}

/// The value of a secret of the session.
pub(super) fn secret(id: &str, session: &Session) -> Result<Option<Vec<u8>>, BuildError> {
    Ok(match session.secrets.get(id) {
        None => None,
        Some(SecretSource::Value(value)) => Some(value.to_vec()),
        Some(SecretSource::File(path)) => Some(read_secret(path).map_err(|error| {
            let report = Report::new("secret", format!("cannot read the secret `{id}`")).caused_by(&error);
            BuildError::new(ExitKind::Input, report)
        })?),
    })
}

fn read_secret(path: &std::path::Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_SECRET_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_SECRET_BYTES {
        return Err(io::Error::other(format!("it has more than {MAX_SECRET_BYTES} bytes")));
    }
    Ok(bytes)
}

fn to_value(value: impl serde::Serialize) -> Result<Value, BuildError> {
    serde_json::to_value(value).map_err(|_| BuildError::internal("an answer cannot be written"))
}

/// An error with all its causes, on one line.
fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
