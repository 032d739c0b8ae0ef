//! Frames: what a face and its worker say to each other.
//!
//! A frame is a length (four bytes, big endian) and that many bytes of JSON. Calls carry an id that their answers and
//! events repeat, so any number of builds share one connection. JSON because every language has it: a face is written
//! in Rust or Python.

use std::io;

use build_engine_graph::Event;
use build_engine_oci::Reference;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::git_commands;
use crate::{BuildError, BuildRequest, ImagePlace, RunRequest, StoreOptions, TransferRequest};

/// Longest frame that is read. A Dockerfile may have 16 MiB; everything else is small.
const MAX_FRAME_BYTES: u32 = 64 << 20;

/// From the face to the worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "kebab-case")]
pub(super) enum Call {
    /// The first frame: which store. Answered by nothing; a store that cannot be opened fails every later call.
    Open {
        /// The store.
        options: StoreOptions,
    },
    /// Builds; answered by an `Outcome`.
    Build {
        /// Names the call.
        id: u64,
        /// What to build.
        request: Box<BuildRequest>,
    },
    /// Brings images from one place to another; answered by a list of `Transferred`.
    Transfer {
        /// Names the call.
        id: u64,
        /// From where, to where.
        request: Box<TransferRequest>,
    },
    /// Runs an image; answered by its exit code.
    Run {
        /// Names the call.
        id: u64,
        /// What to run.
        request: Box<RunRequest>,
    },
    /// Asks something of the store or the host.
    Ask {
        /// Names the call.
        id: u64,
        /// The question.
        question: Question,
    },
    /// Answers [`Answer::Ask`].
    Told {
        /// The question.
        ask: u64,
        /// What was wanted, in the shape that [`Wanted`] says.
        result: Result<Value, BuildError>,
    },
    /// Stops the call of this id.
    Cancel {
        /// Names the call.
        id: u64,
    },
}

/// What can be asked without building.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "question", rename_all = "kebab-case")]
pub(super) enum Question {
    /// Names in the image store.
    Images,
    /// Removes a name.
    RemoveImage {
        /// The name.
        name: String,
    },
    /// What the names in a Dockerfile stand for.
    Lock {
        /// The build that would be done.
        request: Box<BuildRequest>,
    },
    /// Runs the build checks.
    Check {
        /// The build that would be done.
        request: Box<BuildRequest>,
    },
    /// What can be set in a build.
    Outline {
        /// The build that would be done.
        request: Box<BuildRequest>,
    },
    /// A Dockerfile, which may have to be fetched.
    Dockerfile {
        /// The build that would be done.
        request: Box<BuildRequest>,
    },
    /// The graph of a build, as JSON.
    Graph {
        /// The build that would be done.
        request: Box<BuildRequest>,
    },
    /// Gives an image of the store another name.
    Tag {
        /// The image.
        image: String,
        /// The further name.
        name: Reference,
    },
    /// What an image is made of.
    Inspect {
        /// The image.
        place: ImagePlace,
    },
    /// Checks the store and repairs what can be repaired.
    Verify,
    /// Frees space.
    Prune {
        /// Everything that no running build uses, rather than what nothing points at.
        all: bool,
    },
    /// How the worker runs, and what it had to do without.
    WorkerInfo,
}

/// From the worker to the face.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub(super) enum Answer {
    /// Something happened in a build.
    Event {
        /// The call.
        id: u64,
        /// What.
        event: Event,
    },
    /// A call is done.
    Done {
        /// The call.
        id: u64,
        /// Its result.
        result: Value,
    },
    /// A call failed.
    Failed {
        /// The call.
        id: u64,
        /// Why.
        error: BuildError,
    },
    /// The worker wants something that is the face's to find.
    Ask {
        /// Names the question.
        ask: u64,
        /// The call on whose behalf, where it is asked for one.
        call: Option<u64>,
        /// What.
        wanted: Wanted,
    },
}

/// What the worker may want of the face: the user's files, helpers and agents are not its own to touch.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "wanted", rename_all = "kebab-case")]
pub(super) enum Wanted {
    /// Who the user is at a registry; answered by an optional `Credential`.
    Credential {
        /// Host and port, as in references.
        host: String,
        /// The repository there.
        repository: String,
    },
    /// Whether there is an SSH agent of this id; answered by yes or no.
    Agent {
        /// Its id.
        id: String,
    },
    /// The answer of an SSH agent, to a message that [`crate::ssh`] allows; answered by bytes.
    Ssh {
        /// The agent.
        id: String,
        /// The message, without its length.
        message: Vec<u8>,
    },
    /// The value of a secret; answered by optional bytes, `None` where the session has no such secret.
    Secret {
        /// Its id.
        id: String,
    },
    /// What a reference of a repository stands for; answered by a `Resolved`.
    GitResolve {
        /// The repository.
        remote: git_commands::Remote,
        /// The reference; empty for the default branch.
        reference: String,
    },
    /// A commit as files; answered by a `CheckedOut`.
    GitCheckout {
        /// Which, and where to.
        checkout: git_commands::Checkout,
    },
}

/// Writes one frame.
pub(super) async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = u32::try_from(bytes.len() - 4).map_err(|_| io::Error::other("a frame is longer than 4 GiB"))?;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    stream.write_all(&bytes).await
}

/// Reads one frame; `None` at the end of the stream.
pub(super) async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u32::from_be_bytes(length);
    if length > MAX_FRAME_BYTES {
        return Err(io::Error::other(format!("a frame of {length} bytes is longer than {MAX_FRAME_BYTES}")));
    }
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).await?;
    Ok(Some(serde_json::from_slice(&bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_out_as_they_went_in_and_the_end_is_the_end() {
        let (mut near, mut far) = tokio::io::duplex(64);
        let sent = tokio::spawn(async move {
            for id in 0..3 {
                write(&mut near, &Call::Cancel { id }).await.unwrap();
            }
        });
        for expected in 0..3 {
            let Some(Call::Cancel { id }) = read(&mut far).await.unwrap() else { panic!("another call") };
            assert_eq!(id, expected);
        }
        sent.await.unwrap();
        assert!(read::<Call>(&mut far).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_length_that_no_frame_has_is_refused_before_memory_is_taken() {
        let mut bytes: &[u8] = &[0xff, 0xff, 0xff, 0xff, b'{'];
        assert!(read::<Call>(&mut bytes).await.is_err());
    }
}
