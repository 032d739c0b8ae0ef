//! As much of gRPC as containerd's services need: messages there, messages back, in one body each.
//!
//! Source: "gRPC over HTTP2", the protocol description of the gRPC project.

use std::{fmt, io};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioExecutor;
use prost::Message;
use tokio::task::JoinHandle;

use super::daemon::Body;

/// Longest answer that is read.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// Length of what stands before each message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// What calls end with, of the codes of gRPC that make a difference here.
pub(super) const NOT_FOUND: u32 = 5;
pub(super) const ALREADY_EXISTS: u32 = 6;

/// A call that did not do what it should.
#[derive(Debug)]
pub(super) struct Failure {
    /// The server's code; `None` where it is not the server that failed.
    pub(super) code: Option<u32>,
    message: String,
}

impl Failure {
    fn transport(message: impl fmt::Display) -> Self {
        Self { code: None, message: message.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// A connection to a server.
pub(super) struct Client {
    requests: SendRequest<Body>,
    connection: JoinHandle<()>,
    metadata: Vec<(&'static str, String)>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Client {
    pub(super) async fn new(stream: impl Read + Write + Unpin + Send + 'static) -> Result<Self, String> {
        let handshake = http2::handshake(TokioExecutor::new(), stream).await;
        let (requests, connection) = handshake.map_err(|error| error.to_string())?;
        let connection = tokio::spawn(async move {
            // Whoever waits for an answer learns of it.
            let _ = connection.await;
        });
        Ok(Self { requests, connection, metadata: Vec::new() })
    }

    /// Sends `name: value` with all calls from now on.
    pub(super) fn add_metadata(&mut self, name: &'static str, value: &str) {
        self.metadata.push((name, value.to_owned()));
    }

    /// Calls `method`, as in `package.Service/Method`, and returns the messages of the answer.
    pub(super) async fn call<M: Message + Default>(
        &self,
        method: &str,
        message: &impl Message,
    ) -> Result<Vec<M>, Failure> {
        self.stream(method, Full::new(framed(message)).map_err(|never| match never {}).boxed()).await
    }

    /// The same with a body of any number of messages, each as [`framed`] gives it.
    pub(super) async fn stream<M: Message + Default>(&self, method: &str, body: Body) -> Result<Vec<M>, Failure> {
        let mut request = Request::post(format!("http://localhost/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in &self.metadata {
            request = request.header(*name, value);
        }
        let request = request.body(body).map_err(Failure::transport)?;
        let response = self.requests.clone().send_request(request).await.map_err(Failure::transport)?;
        if !response.status().is_success() {
            return Err(Failure::transport(format!("it answered {}", response.status())));
        }
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await.map_err(Failure::transport)?;
        // Where there is no message, the trailers may come as the head.
        let trailers = body.trailers().unwrap_or(&head.headers);
        let text = |name| trailers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match text("grpc-status") {
            "0" => messages(body.to_bytes()).map_err(Failure::transport),
            code => {
                let message = format!("{method}: {} (code {code})", text("grpc-message"));
                Err(Failure { code: code.parse().ok(), message })
            }
        }
    }
}

/// A message as it stands in a body.
pub(super) fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + length);
    bytes.put_u8(0);
    // No message here is a thousandth of that.
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    bytes.put_slice(&message.encode_to_vec());
    bytes.freeze()
}

fn messages<M: Message + Default>(mut bytes: Bytes) -> io::Result<Vec<M>> {
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("a gRPC message {what}"));
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        if bytes.len() < PREFIX_BYTES {
            return Err(damaged("is cut off"));
        }
        if bytes.get_u8() != 0 {
            return Err(damaged("is compressed, which was not asked for"));
        }
        let length = bytes.get_u32() as usize;
        if length > bytes.len() {
            return Err(damaged("is cut off"));
        }
        let message = M::decode(bytes.split_to(length));
        messages.push(message.map_err(|error| damaged(&format!("cannot be read: {error}")))?);
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, PartialEq, Message)]
    struct Text {
        #[prost(string, tag = "1")]
        text: String,
    }

    #[test]
    fn messages_come_back_as_they_were_framed() {
        let both = [Text { text: "one".into() }, Text::default()];
        let bytes = [framed(&both[0]), framed(&both[1])].concat();
        assert_eq!(messages::<Text>(bytes.clone().into()).unwrap(), both);
        for (bytes, says) in [
            (&bytes[..3], "cut off"),
            (&bytes[..7], "cut off"),
            (&[1, 0, 0, 0, 0], "compressed"),
            (&[0, 0, 0, 0, 1, 255], "cannot be read"),
        ] {
            let error = messages::<Text>(Bytes::copy_from_slice(bytes)).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
