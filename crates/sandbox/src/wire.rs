//! The messages between worker, helper and step: length-prefixed JSON on a socket, with descriptors.
//!
//! A frame is its length (4 bytes), the number of descriptors (4 bytes), the JSON, and then the descriptors, at most
//! [`CHUNK`] with each further byte (the kernel takes 253 in one message).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Serialize, de::DeserializeOwned};

const CHUNK: usize = 200;
/// Secrets and spec together; more than anything real.
const MAX_FRAME: usize = 64 << 20;
const MAX_FDS: usize = 4096;

/// A pair of connected stream sockets, close-on-exec.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?)
}

pub(crate) fn send<T: Serialize>(socket: impl AsFd, value: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let json = serde_json::to_vec(value)?;
    let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "message too long");
    let mut frame = Vec::with_capacity(json.len() + 8);
    frame.extend_from_slice(&u32::try_from(json.len()).map_err(|_| too_long())?.to_le_bytes());
    frame.extend_from_slice(&u32::try_from(fds.len()).map_err(|_| too_long())?.to_le_bytes());
    frame.extend_from_slice(&json);
    let mut rest = &frame[..];
    while !rest.is_empty() {
        let n = retry(|| rustix::net::send(&socket, rest, SendFlags::NOSIGNAL))?;
        rest = &rest[n..];
    }
    for chunk in fds.chunks(CHUNK) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CHUNK))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(chunk)) {
            return Err(too_long());
        }
        retry(|| rustix::net::sendmsg(&socket, &[IoSlice::new(b"f")], &mut ancillary, SendFlags::NOSIGNAL))?;
    }
    Ok(())
}

/// Receives one frame; `None` at the end of the stream.
pub(crate) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut head = [0; 8];
    if !read_full(&socket, &mut head)? {
        return Ok(None);
    }
    let word = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]) as usize;
    let (length, count) = (word(0), word(4));
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    if length > MAX_FRAME || count > MAX_FDS {
        return Err(invalid("message too long"));
    }
    let mut json = vec![0; length];
    if !read_full(&socket, &mut json)? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut fds = Vec::with_capacity(count);
    while fds.len() < count {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CHUNK))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let got = retry(|| {
            rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        })?;
        if got.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let before = fds.len();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        if fds.len() == before {
            return Err(invalid("descriptors were lost (limit of open files?)"));
        }
    }
    Ok(Some((serde_json::from_slice(&json)?, fds)))
}

/// Fills `buffer`; `false` when the stream ends before its first byte.
fn read_full(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<bool> {
    let mut at = 0;
    while at < buffer.len() {
        // A plain read, not a receive: at a frame's head no descriptors are pending.
        let n = match rustix::io::read(&socket, &mut buffer[at..]) {
            Ok(n) => n,
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::CONNRESET) if at == 0 => 0,
            Err(e) => return Err(e.into()),
        };
        if n == 0 {
            return if at == 0 { Ok(false) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        at += n;
    }
    Ok(true)
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return other,
        }
    }
}
