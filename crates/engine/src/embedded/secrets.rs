//! Secrets and agents of a build, in the worker: asked for when a step needs them, given to that step, masked in what
//! every step of the build writes.
//!
//! A value goes from the face's frame into memory that is overwritten when it is let go, and from there to the helper of
//! the one step that mounts it. It reaches no key ([`super::keys`] knows ids only), no event ([`crate::mask`]), and no
//! layer ([`super::leak`]).

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use build_engine_graph::{EventSink, ExecOp, FileFromSession, MountKind};
use build_engine_sandbox as sandbox;
use build_engine_store::ActiveLayer;
use zeroize::Zeroizing;

use super::agent::{self, Proxy};
use super::face::Caller;
use super::frame::Wanted;
use super::ops::{BuildOps, StepError, internal};
use crate::mask::{MIN_VALUE_BYTES, Patterns, essence};
use crate::{BuildError, ExitKind, Report};

/// A secret's value.
pub(super) type Secret = Arc<Zeroizing<Vec<u8>>>;

/// The secrets that a build has asked for.
pub(super) struct Secrets {
    caller: Caller,
    /// Held while one is asked for, so that nobody asks twice.
    known: tokio::sync::Mutex<BTreeMap<String, Option<Secret>>>,
    patterns: Mutex<Option<Arc<Patterns>>>,
    /// Ids of values that are too short to be masked, until somebody was told.
    short: Mutex<Vec<String>>,
}

impl Secrets {
    pub(super) fn new(caller: Caller) -> Self {
        Self { caller, known: Default::default(), patterns: Mutex::default(), short: Mutex::default() }
    }

    /// The value of a secret, or `None` where whoever started the build gave none of this id. From now on it is masked
    /// in the output of every step of the build.
    ///
    /// # Errors
    /// The face cannot read it.
    pub(super) async fn find(&self, id: &str) -> Result<Option<Secret>, BuildError> {
        let mut known = self.known.lock().await;
        if let Some(value) = known.get(id) {
            return Ok(value.clone());
        }
        crate::session::keep_memory_private();
        let value: Option<Vec<u8>> = self.caller.ask(Wanted::Secret { id: id.to_owned() }).await?;
        let value = value.map(|value| Arc::new(Zeroizing::new(value)));
        known.insert(id.to_owned(), value.clone());
        if let Some(value) = &value {
            let length = essence(value).len();
            if (1..MIN_VALUE_BYTES).contains(&length) {
                self.short.lock().unwrap_or_else(PoisonError::into_inner).push(id.to_owned());
            }
            let values: Vec<Secret> = known.values().flatten().cloned().collect();
            // Long values take a moment.
            let patterns =
                tokio::task::spawn_blocking(move || Patterns::of_values(values.iter().map(|value| value.as_slice())))
                    .await
                    .map_err(|error| BuildError::internal(format!("a blocking task ended: {error}")))?;
            *self.patterns.lock().unwrap_or_else(PoisonError::into_inner) = patterns.map(Arc::new);
        }
        Ok(value)
    }

    /// What is masked now.
    pub(super) fn patterns(&self) -> Option<Arc<Patterns>> {
        self.patterns.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ids of secrets that are too short to be masked; each is told once.
    fn short(&self) -> Vec<String> {
        std::mem::take(&mut *self.short.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Everything that `exec` wants of the session.
    ///
    /// # Errors
    /// Something that it cannot do without was not given.
    pub(super) async fn for_step(&self, exec: &ExecOp) -> Result<Given, StepError> {
        let mut given = Given::default();
        for mount in &exec.mounts {
            match &mount.kind {
                MountKind::Secret(wanted) => {
                    if let Some(value) = self.wanted(&wanted.id, wanted.optional).await? {
                        given.add(&wanted.id, &value);
                        given.files.insert(mount.dest.clone(), value);
                    }
                }
                MountKind::Ssh(wanted) => {
                    let id = agent_id(wanted);
                    let found: bool = self.caller.ask(Wanted::Agent { id: id.to_owned() }).await.map_err(of_step)?;
                    if found {
                        given.agents.insert(mount.dest.clone(), id.to_owned());
                    } else if !wanted.optional {
                        return Err(missing("ssh agent", id, &format!("`--ssh {id}`")));
                    }
                }
                MountKind::Bind | MountKind::Cache { .. } | MountKind::Tmpfs { .. } => {}
            }
        }
        for wanted in &exec.secret_env {
            let Some(value) = self.wanted(&wanted.id, wanted.optional).await? else {
                // As in BuildKit: the variable is there all the same, and wins over the image's.
                given.env.push(format!("{}=", wanted.name));
                continue;
            };
            let text = std::str::from_utf8(&value).ok().filter(|text| !text.contains('\0'));
            let Some(text) = text else {
                let message = format!(
                    "the secret `{}` cannot be an environment variable: it is no text, or has a NUL",
                    wanted.id
                );
                let report = Report::new("secret", message).hint("mount it as a file: leave out `env=`");
                return Err(StepError::new(ExitKind::Input, report));
            };
            given.env.push(format!("{}={text}", wanted.name));
            given.add(&wanted.id, &value);
        }
        Ok(given)
    }

    async fn wanted(&self, id: &str, optional: bool) -> Result<Option<Secret>, StepError> {
        match self.find(id).await.map_err(of_step)? {
            None if !optional => Err(missing("secret", id, &format!("`--secret id={id},src=FILE`"))),
            value => Ok(value),
        }
    }

    /// The caller's agents.
    fn caller(&self) -> &Caller {
        &self.caller
    }
}

/// The face's error, as the step's.
fn of_step(mut error: BuildError) -> StepError {
    match error.reports.pop() {
        Some(report) => StepError::new(error.kind, report),
        None => internal("an error without a report"),
    }
}

fn agent_id(wanted: &FileFromSession) -> &str {
    if wanted.id.is_empty() { crate::ssh::DEFAULT_ID } else { &wanted.id }
}

fn missing(what: &str, id: &str, flag: &str) -> StepError {
    let report = Report::new("secret", format!("the {what} `{id}` is required and was not given: not found"))
        .hint(format!("give it with {flag}, or leave out `required`"));
    StepError::new(ExitKind::Input, report)
}

/// What one step gets of the session.
#[derive(Default)]
pub(super) struct Given {
    /// Values by mount point.
    files: BTreeMap<String, Secret>,
    /// Agents by mount point.
    agents: BTreeMap<String, String>,
    /// `NAME=value`, after the step's own environment, which they win over.
    pub(super) env: Vec<String>,
    /// All values, by id.
    pub(super) secrets: Vec<(String, Secret)>,
}

impl Given {
    fn add(&mut self, id: &str, value: &Secret) {
        if !self.secrets.iter().any(|(known, _)| known == id) {
            self.secrets.push((id.to_owned(), Arc::clone(value)));
        }
    }

    /// The mount at `dest`, or `None` where it is left out. Sockets go to `proxies`, and their descriptors to `binds`.
    pub(super) fn mount(
        &self,
        active: &ActiveLayer,
        mount: &build_engine_graph::Mount,
        binds: &mut Vec<OwnedFd>,
        proxies: &mut Vec<Proxy>,
    ) -> Result<Option<sandbox::Mount>, StepError> {
        let (source, readonly) = match &mount.kind {
            MountKind::Secret(wanted) => {
                let Some(value) = self.files.get(&mount.dest) else { return Ok(None) };
                let content = value.to_vec();
                let (mode, uid, gid) = (wanted.mode, wanted.uid, wanted.gid);
                (sandbox::MountSource::File { content, mode, uid, gid }, true)
            }
            MountKind::Ssh(wanted) => {
                let Some(id) = self.agents.get(&mount.dest) else { return Ok(None) };
                let (proxy, socket) = agent::listen(active, id, wanted.mode, (wanted.uid, wanted.gid))?;
                proxies.push(proxy);
                binds.push(socket);
                (sandbox::MountSource::Bind { fd: binds.len() - 1 }, false)
            }
            MountKind::Bind | MountKind::Cache { .. } | MountKind::Tmpfs { .. } => {
                return Err(internal("a mount that the session has no part in"));
            }
        };
        Ok(Some(sandbox::Mount { dest: mount.dest.clone(), readonly, source }))
    }
}

impl BuildOps {
    /// Starts to serve the sockets of a step, until what is returned is dropped.
    pub(super) fn serve_agents(&self, proxies: Vec<Proxy>) -> Result<Vec<agent::Serving>, StepError> {
        proxies.into_iter().map(|proxy| proxy.serve(self.secrets.caller().clone())).collect()
    }

    /// Says which secrets are not masked.
    pub(super) fn warn_of_short_secrets(&self, vertex: &build_engine_graph::Vertex, events: &dyn EventSink) {
        for id in self.secrets.short() {
            let message = format!(
                "the secret `{id}` has fewer than {MIN_VALUE_BYTES} bytes: it is not masked in the output of steps"
            );
            self.note(vertex, &[message], events);
        }
    }
}
