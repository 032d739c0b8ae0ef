//! An SSH agent for git, where the user gave the build a key file and no agent: a socket of the face's own.
//!
//! The key stays in this process ([`crate::ssh`]); whoever connects may list it and have it sign. The socket lies in a
//! directory that nobody but the user can enter.
//!
//! Invariant: once a [`LentAgent`] is dropped, nothing is served and nothing is left of the socket.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::ssh::{self, AgentSource};

/// Connections that may be open at once; git and its submodules have a few.
const MAX_CONNECTIONS: usize = 64;

/// Longest path of a socket's directory: an address has 108 bytes.
const MAX_PATH_BYTES: usize = 70;

/// A socket that is served until this is dropped.
pub(super) struct LentAgent {
    directory: tempfile::TempDir,
    serving: Arc<Serving>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Serving {
    ended: AtomicBool,
    /// The other ends of all connections, by number.
    open: Mutex<Vec<(usize, UnixStream)>>,
}

impl LentAgent {
    /// Serves `source` on a socket below `temporary`, or below `/tmp` where that is too deep.
    pub(super) fn start(source: AgentSource, temporary: &Path) -> io::Result<Self> {
        let short = temporary.as_os_str().as_bytes().len() <= MAX_PATH_BYTES;
        let directory = tempfile::Builder::new()
            .prefix("build-engine-ssh-")
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir_in(if short { temporary } else { Path::new("/tmp") })?;
        let listener = UnixListener::bind(directory.path().join("agent"))?;
        let serving = Arc::new(Serving::default());
        let served = Arc::clone(&serving);
        let thread = std::thread::Builder::new()
            .name("ssh-agent".into())
            .spawn(move || accept(&listener, &Arc::new(source), &served))?;
        Ok(Self { directory, serving, thread: Some(thread) })
    }

    /// Where it listens.
    pub(super) fn socket(&self) -> PathBuf {
        self.directory.path().join("agent")
    }
}

impl Drop for LentAgent {
    fn drop(&mut self) {
        self.serving.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let woken = UnixStream::connect(self.socket()).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            // A thread that panicked serves nothing either.
            let _ = thread.join();
        }
        for (_, stream) in self.serving.open().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Serving {
    fn open(&self) -> MutexGuard<'_, Vec<(usize, UnixStream)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn accept(listener: &UnixListener, source: &Arc<AgentSource>, serving: &Arc<Serving>) {
    for number in 0.. {
        let accepted = listener.accept();
        if serving.ended.load(Ordering::SeqCst) {
            return;
        }
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely; others will give some back.
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        let Ok(other) = stream.try_clone() else { continue };
        {
            let mut open = serving.open();
            if open.len() >= MAX_CONNECTIONS {
                continue;
            }
            open.push((number, other));
        }
        let (source, serving) = (Arc::clone(source), Arc::clone(serving));
        // A client that goes away in the middle of a message is no failure of anybody's.
        drop(std::thread::spawn(move || {
            let _ = serve(stream, &source);
            serving.open().retain(|(open, _)| *open != number);
        }));
    }
}

/// Answers questions until the client has no more.
fn serve(mut stream: UnixStream, source: &AgentSource) -> io::Result<()> {
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length == 0 || length > ssh::MAX_MESSAGE_BYTES {
            return Ok(());
        }
        let mut message = vec![0; length];
        stream.read_exact(&mut message)?;
        let reply = source.answer(&message).unwrap_or_else(|_| ssh::FAILURE.to_vec());
        let length = u32::try_from(reply.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes(), reply.as_slice()].concat())?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(stream: &mut UnixStream, message: &[u8]) -> Option<Vec<u8>> {
        stream.write_all(&[&(message.len() as u32).to_be_bytes(), message].concat()).ok()?;
        let mut length = [0; 4];
        stream.read_exact(&mut length).ok()?;
        let mut reply = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut reply).ok()?;
        Some(reply)
    }

    /// S07.
    #[test]
    fn keys_are_listed_and_nothing_is_left_when_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let agent = LentAgent::start(AgentSource::Keys(Arc::default()), dir.path()).unwrap();
        let socket = agent.socket();
        let mode = socket.parent().unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let mut stream = UnixStream::connect(&socket).unwrap();
        assert_eq!(question(&mut stream, &[11]).unwrap(), [12, 0, 0, 0, 0]);
        for kind in (0..=255).filter(|kind| *kind != 11) {
            assert_eq!(question(&mut stream, &[kind, 1]).unwrap(), ssh::FAILURE, "{kind}");
        }
        drop(agent);
        assert!(question(&mut stream, &[11]).is_none(), "a connection that is kept is of no use");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
