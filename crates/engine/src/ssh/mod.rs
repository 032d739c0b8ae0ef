//! SSH agents: what a build may ask of one, and who answers.
//!
//! The protocol is that of draft-ietf-sshm-ssh-agent: a length, a byte that says what is asked, and the rest. A build may
//! list keys and have something signed; both ends of the frames, worker and face, let nothing else through. The answer
//! comes from the user's agent, or from keys in files, which stay in the face (`keys`).

mod der;
mod keys;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use keys::{InvalidKey, Key};

/// The agent of a mount that names none.
pub const DEFAULT_ID: &str = "default";

/// Longest message, in either direction: OpenSSH's own limit.
pub(crate) const MAX_MESSAGE_BYTES: usize = 256 << 10;

/// `SSH_AGENT_FAILURE`: the answer to everything that is not allowed.
pub(crate) const FAILURE: &[u8] = &[5];

const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;

/// How long an agent may take: somebody may have to touch a token first.
const PATIENCE: Duration = Duration::from_secs(120);

/// Largest private key file: BuildKit's limit.
const MAX_KEY_FILE_BYTES: u64 = 100 << 10;

/// Who answers for an agent.
#[derive(Debug, Clone)]
pub enum AgentSource {
    /// An agent that listens on a socket.
    Socket(PathBuf),
    /// Keys that were read from files.
    Keys(Arc<Vec<Key>>),
}

/// Why an agent cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A file or socket cannot be used.
    #[error("cannot use `{path}`")]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is no private key that can be used.
    #[error("cannot use the key `{path}`")]
    Key {
        /// The path.
        path: PathBuf,
        /// Why.
        source: InvalidKey,
    },
    /// A socket together with something else.
    #[error("`{0}` is a socket: an agent is one socket, or keys and no socket")]
    Mixed(PathBuf),
    /// Nothing was named.
    #[error("no socket or key is named")]
    Empty,
}

impl AgentSource {
    /// Opens what `paths` name: one socket, or any number of private keys.
    ///
    /// # Errors
    /// A path that cannot be used; nothing else has happened then.
    pub fn open(paths: &[PathBuf]) -> Result<Self, AgentError> {
        use std::os::unix::fs::FileTypeExt;
        let mut keys = Vec::new();
        for path in paths {
            let failed = |source| AgentError::Io { path: path.clone(), source };
            let metadata = std::fs::metadata(path).map_err(failed)?;
            if metadata.file_type().is_socket() {
                if paths.len() > 1 {
                    return Err(AgentError::Mixed(path.clone()));
                }
                return Ok(Self::Socket(std::path::absolute(path).map_err(failed)?));
            }
            if !metadata.is_file() {
                return Err(failed(io::Error::other("it is neither a socket nor a file")));
            }
            let text = read_limited(path).map_err(failed)?;
            let key = Key::parse(&text).map_err(|source| AgentError::Key { path: path.clone(), source })?;
            keys.push(key);
        }
        if keys.is_empty() { Err(AgentError::Empty) } else { Ok(Self::Keys(Arc::new(keys))) }
    }

    /// Answers one message. Blocks until the agent has answered.
    ///
    /// # Errors
    /// The agent cannot be reached, or answers something that was not asked.
    pub(crate) fn answer(&self, message: &[u8]) -> io::Result<Vec<u8>> {
        if !is_allowed(message) {
            return Ok(FAILURE.to_vec());
        }
        match self {
            Self::Keys(keys) => Ok(keys::answer(keys, message)),
            Self::Socket(path) => {
                let reply = ask(path, message)?;
                match reply.first() {
                    Some(&IDENTITIES_ANSWER) if message[0] == REQUEST_IDENTITIES => Ok(reply),
                    Some(&SIGN_RESPONSE) if message[0] == SIGN_REQUEST => Ok(reply),
                    _ => Ok(FAILURE.to_vec()),
                }
            }
        }
    }
}

/// Whether a build may ask this.
pub(crate) fn is_allowed(message: &[u8]) -> bool {
    match message.first() {
        Some(&REQUEST_IDENTITIES) => message.len() == 1,
        Some(&SIGN_REQUEST) => message.len() <= MAX_MESSAGE_BYTES,
        _ => false,
    }
}

fn ask(path: &Path, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat())?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_MESSAGE_BYTES {
        return Err(io::Error::other("the agent's answer is too long"));
    }
    let mut reply = vec![0; length];
    stream.read_exact(&mut reply)?;
    Ok(reply)
}

fn read_limited(path: &Path) -> io::Result<zeroize::Zeroizing<Vec<u8>>> {
    // Room for all of it at once: what grows leaves copies behind.
    let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(MAX_KEY_FILE_BYTES as usize + 1));
    std::fs::File::open(path)?.take(MAX_KEY_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_KEY_FILE_BYTES {
        return Err(io::Error::other(format!("it has more than {MAX_KEY_FILE_BYTES} bytes")));
    }
    Ok(bytes)
}
