//! SSH agents in steps: a socket for each mount, behind which only keys are listed and signatures made.
//!
//! The socket lies in a directory of the step's unfinished layer beside its tree: nobody else sees it, and it goes with the
//! layer, also when the worker is killed. What a step sends is taken apart here; the face ([`super::answers`]), which
//! reaches the agent, does not believe that and looks again.
//!
//! Invariant: nothing is served once the step has ended.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use build_engine_store::ActiveLayer;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::face::Caller;
use super::frame::Wanted;
use super::ops::{StepError, internal};
use crate::ssh;
use crate::{ExitKind, Report};

/// Connections that a step may have open to one agent at once.
const MAX_CONNECTIONS: usize = 32;

/// Questions that a step may put to one agent.
const MAX_QUESTIONS: usize = 10_000;

/// A socket that listens, and nobody serves yet.
pub(super) struct Proxy {
    id: String,
    listener: UnixListener,
}

/// Makes the socket of the agent `id`; also returns its inode, to be bound into the step. Blocks for a moment.
pub(super) fn listen(
    active: &ActiveLayer,
    id: &str,
    mode: u32,
    (uid, gid): (u32, u32),
) -> Result<(Proxy, OwnedFd), StepError> {
    let failed = |error: io::Error| {
        StepError::new(ExitKind::Io, Report::new("ssh", "cannot make the socket of an ssh agent").caused_by(&error))
    };
    let path =
        active.new_work_dir().map_err(|error| StepError::store("cannot make the socket of an ssh agent", &error))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
    // Through the descriptor: the address of a socket has 107 bytes, and the store may lie deeper.
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/agent", dir.as_raw_fd())).map_err(failed)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let socket = rustix::fs::openat(&dir, "agent", flags, Mode::empty()).map_err(|error| failed(error.into()))?;
    if (uid, gid) != (0, 0) {
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        match rustix::fs::chownat(&dir, "agent", owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW) {
            // An id that is not mapped: no process of the step can have it, so the socket stays root's.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
    rustix::fs::chmodat(&dir, "agent", Mode::from_raw_mode(mode & 0o777), AtFlags::empty())
        .map_err(|error| failed(error.into()))?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok((Proxy { id: id.to_owned(), listener }, socket))
}

/// A socket that is served until this is dropped.
pub(super) struct Serving {
    _task: JoinSet<()>,
}

impl Proxy {
    /// Serves the socket with the agent of whoever started the build.
    pub(super) fn serve(self, caller: Caller) -> Result<Serving, StepError> {
        let listener = tokio::net::UnixListener::from_std(self.listener)
            .map_err(|error| internal(format!("the socket of an ssh agent: {error}")))?;
        let mut task = JoinSet::new();
        task.spawn(accept(listener, move |message| {
            let (caller, id) = (caller.clone(), self.id.clone());
            async move {
                match caller.ask::<Vec<u8>>(Wanted::Ssh { id, message }).await {
                    Ok(reply) => reply,
                    Err(error) => {
                        tracing::debug!(%error, "the ssh agent did not answer");
                        ssh::FAILURE.to_vec()
                    }
                }
            }
        }));
        Ok(Serving { _task: task })
    }
}

async fn accept<F>(listener: tokio::net::UnixListener, ask: impl Fn(Vec<u8>) -> F + Clone + Send + Sync + 'static)
where
    F: Future<Output = Vec<u8>> + Send + 'static,
{
    let questions = Arc::new(AtomicUsize::new(0));
    // Connections end with the set, which ends with this task.
    let mut connections = JoinSet::new();
    loop {
        let accepted = listener.accept().await;
        while connections.try_join_next().is_some() {}
        match accepted {
            // Dropped, which the client takes for an agent that has gone.
            Ok(_) if connections.len() >= MAX_CONNECTIONS => {}
            Ok((stream, _)) => {
                connections.spawn(connection(stream, ask.clone(), Arc::clone(&questions)));
            }
            Err(error) => {
                tracing::debug!(%error, "the socket of an ssh agent");
                // Out of descriptors, most likely; others will give some back.
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection<F>(mut stream: UnixStream, ask: impl Fn(Vec<u8>) -> F, questions: Arc<AtomicUsize>)
where
    F: Future<Output = Vec<u8>>,
{
    loop {
        let Ok(length) = stream.read_u32().await else { return };
        if length == 0 || length as usize > ssh::MAX_MESSAGE_BYTES {
            return;
        }
        let mut message = vec![0; length as usize];
        if stream.read_exact(&mut message).await.is_err() {
            return;
        }
        let reply = match ssh::is_allowed(&message) {
            true if questions.fetch_add(1, Ordering::Relaxed) < MAX_QUESTIONS => ask(message).await,
            _ => ssh::FAILURE.to_vec(),
        };
        let Ok(length) = u32::try_from(reply.len()) else { return };
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend_from_slice(&reply);
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn question(stream: &mut UnixStream, message: &[u8]) -> Option<Vec<u8>> {
        stream.write_u32(message.len() as u32).await.ok()?;
        stream.write_all(message).await.ok()?;
        let mut reply = vec![0; stream.read_u32().await.ok()? as usize];
        stream.read_exact(&mut reply).await.ok()?;
        Some(reply)
    }

    /// S07.
    #[tokio::test]
    async fn keys_are_listed_and_used_and_everything_else_is_refused_until_the_step_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let mut task = JoinSet::new();
        task.spawn(accept(listener, |message: Vec<u8>| async move { [b"asked ".as_slice(), &message].concat() }));
        let mut stream = UnixStream::connect(&path).await.unwrap();
        assert_eq!(question(&mut stream, &[11]).await.unwrap(), b"asked \x0b");
        assert_eq!(question(&mut stream, &[13, 0, 0, 0, 0]).await.unwrap(), b"asked \x0d\0\0\0\0");
        // Add, remove, lock, unlock, constraints, smart cards, extensions, and what nobody has defined.
        for kind in (0..=255).filter(|kind| ![11, 13].contains(kind)) {
            assert_eq!(question(&mut stream, &[kind, 1, 2]).await.unwrap(), ssh::FAILURE, "{kind}");
        }
        let mut other = UnixStream::connect(&path).await.unwrap();
        other.write_u32(u32::MAX).await.unwrap();
        assert_eq!(other.read(&mut [0]).await.unwrap(), 0, "a message of 4 GiB ends the connection");
        let mut many = Vec::new();
        for _ in 0..MAX_CONNECTIONS + 8 {
            many.push(UnixStream::connect(&path).await.unwrap());
        }
        assert_eq!(many.last_mut().unwrap().read(&mut [0]).await.unwrap(), 0);
        drop(many);
        task.shutdown().await;
        assert!(question(&mut stream, &[11]).await.is_none(), "a connection that is kept is of no use");
        assert!(UnixStream::connect(&path).await.is_err());
    }
}
