//! A small HTTP/1.1 server whose misbehaviour can be scripted: what it answers, and at what pace, down to the byte.
//!
//! One thread for each connection, keep-alive, bodies by `Content-Length` or in chunks. It knows nothing of registries;
//! [`super::distribution`] does.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Bodies up to this size stay in the record of requests.
const RECORDED_BODY: usize = 64 << 10;
/// More than any client here sends as the head of a request.
const HEAD_LIMIT: u64 = 256 << 10;
/// The first byte of a TLS connection.
const TLS_HANDSHAKE: u8 = 0x16;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`, `HEAD`, …
    pub method: String,
    /// The path, as it was sent (still percent-encoded).
    pub path: String,
    /// The parameters of the query, decoded, in their order.
    pub query: Vec<(String, String)>,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body; in the record of requests only when it is small, and as far as it was read.
    pub body: Vec<u8>,
    /// How many bytes of the body arrived.
    pub body_size: u64,
    /// `host:port` of the listener that received it.
    pub listener: String,
    /// The connection it came on; the first is 1.
    pub connection: u64,
    /// The status that was answered; 0 while there is none.
    pub status: u16,
    /// How many bytes of the answer's body were handed to the kernel.
    pub sent: u64,
}

impl Request {
    /// The first header of this name (any case).
    pub fn header(&self, name: &str) -> Option<&str> {
        let name = name.to_ascii_lowercase();
        self.headers.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str())
    }

    /// The first parameter of this name in the query.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether it is a `method` whose path contains `part`.
    pub fn is(&self, method: &str, part: &str) -> bool {
        self.method == method && self.path.contains(part)
    }

    /// All of it that could carry a credential, as text.
    pub fn text(&self) -> String {
        let mut text = format!("{} {}", self.method, self.path);
        for (name, value) in &self.query {
            text.push_str(&format!("\n?{name}={value}"));
        }
        for (name, value) in &self.headers {
            text.push_str(&format!("\n{name}: {value}"));
        }
        text.push_str("\n\n");
        text.push_str(&String::from_utf8_lossy(&self.body));
        text
    }
}

/// Where in the exchange the server stops to be polite.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Manners {
    /// All of it at once.
    #[default]
    Prompt,
    /// This many bytes of the body, then the connection is closed; with a reset instead of an end if `reset`.
    Cut { after: u64, reset: bool },
    /// `piece` bytes of the body at a time.
    Dribble { piece: usize, every: Duration },
    /// This many bytes of the body, then nothing.
    StallBody { after: u64 },
    /// Nothing at all.
    StallHead,
    /// One header after the other, without end.
    EndlessHead { every: Duration },
    /// The connection is closed without an answer.
    Close,
}

/// What is done with the body of a request for which a reply was given before the body was read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Upload {
    /// Read it later, and throw it away.
    Early,
    /// Read this many bytes, then reset the connection.
    Cut(u64),
    /// Read this many bytes, then no more.
    Stall(u64),
}

/// An answer. Made by [`Reply::status`] and then bent.
#[derive(Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Arc<Vec<u8>>,
    /// The length of the body on the wire: what is there is repeated, or not all is sent.
    length: Option<u64>,
    declared: Option<u64>,
    is_chunked: bool,
    manners: Manners,
    upload: Option<Upload>,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reply({}, {:?}, {} bytes, {:?})", self.status, self.headers, self.body.len(), self.manners)
    }
}

impl Reply {
    /// An answer without body.
    pub fn status(status: u16) -> Reply {
        Reply {
            status,
            headers: Vec::new(),
            body: Arc::default(),
            length: None,
            declared: None,
            is_chunked: false,
            manners: Manners::Prompt,
            upload: None,
        }
    }

    /// 200 with a body.
    pub fn ok(media_type: &str, body: impl Into<Vec<u8>>) -> Reply {
        Reply::status(200).header("Content-Type", media_type).body(body)
    }

    /// An error in the words of the distribution-spec.
    pub fn error(status: u16, code: &str, message: &str) -> Reply {
        let body = serde_json::json!({ "errors": [{ "code": code, "message": message }] });
        Reply::status(status).header("Content-Type", "application/json").body(body.to_string())
    }

    /// A redirect to `location`.
    pub fn redirect(status: u16, location: &str) -> Reply {
        Reply::status(status).header("Location", location)
    }

    /// Closes the connection instead of answering.
    pub fn close() -> Reply {
        Reply { manners: Manners::Close, ..Reply::status(0) }
    }

    /// Never answers; the connection stays open.
    pub fn stall() -> Reply {
        Reply { manners: Manners::StallHead, ..Reply::status(0) }
    }

    /// Sends headers without end, one each `every`.
    pub fn endless_head(every: Duration) -> Reply {
        Reply { manners: Manners::EndlessHead { every }, ..Reply::status(200) }
    }

    /// For [`super::FakeRegistry::on_head`]: reads `bytes` of the body of the request, then resets the connection.
    pub fn cut_upload(bytes: u64) -> Reply {
        Reply { upload: Some(Upload::Cut(bytes)), ..Reply::status(0) }
    }

    /// For [`super::FakeRegistry::on_head`]: reads `bytes` of the body of the request, and then no more.
    pub fn stall_upload(bytes: u64) -> Reply {
        Reply { upload: Some(Upload::Stall(bytes)), ..Reply::status(0) }
    }

    /// Adds a header. `Content-Length` is set by the server unless it is given here.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Reply {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Replaces a header, or adds it.
    #[must_use]
    pub fn replace_header(mut self, name: &str, value: &str) -> Reply {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
        self.header(name, value)
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Reply {
        self.body = Arc::new(body.into());
        self
    }

    /// Replaces the status.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Reply {
        self.status = status;
        self
    }

    pub(super) fn shared_body(mut self, body: Arc<Vec<u8>>) -> Reply {
        self.body = body;
        self
    }

    /// Repeats the body until it is `length` bytes long, without holding them.
    #[must_use]
    pub fn repeated(mut self, length: u64) -> Reply {
        self.length = Some(length);
        self
    }

    /// Declares another length than the body has. A longer one ends in a cut, a shorter one in surplus bytes.
    #[must_use]
    pub fn declaring(mut self, length: u64) -> Reply {
        self.declared = Some(length);
        self
    }

    /// Sends the body in chunks, without its length.
    #[must_use]
    pub fn chunked(mut self) -> Reply {
        self.is_chunked = true;
        self
    }

    /// Closes the connection after `bytes` of the body, as a server that ends does.
    #[must_use]
    pub fn cut_after(mut self, bytes: u64) -> Reply {
        self.manners = Manners::Cut { after: bytes, reset: false };
        self
    }

    /// Resets the connection after `bytes` of the body.
    #[must_use]
    pub fn reset_after(mut self, bytes: u64) -> Reply {
        self.manners = Manners::Cut { after: bytes, reset: true };
        self
    }

    /// Sends the body in pieces of `bytes`, one each `every`.
    #[must_use]
    pub fn dribble(mut self, bytes: usize, every: Duration) -> Reply {
        self.manners = Manners::Dribble { piece: bytes.max(1), every };
        self
    }

    /// Sends `bytes` of the body, and then nothing; the connection stays open.
    #[must_use]
    pub fn stall_after(mut self, bytes: u64) -> Reply {
        self.manners = Manners::StallBody { after: bytes };
        self
    }

    /// For [`super::FakeRegistry::on_head`]: sends this before the body of the request is read.
    #[must_use]
    pub fn early(mut self) -> Reply {
        self.upload = Some(Upload::Early);
        self
    }

    /// The status.
    pub fn code(&self) -> u16 {
        self.status
    }
}

/// What answers requests.
pub(super) trait Handler: Send + Sync + 'static {
    /// Called when the head of a request is there, before its body is read.
    fn head(&self, request: &Request) -> Option<Reply>;
    /// Called when all of it is there.
    fn answer(&self, request: &Request) -> Reply;
}

/// What the threads of a server share.
#[derive(Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    is_stopped: bool,
    requests: Vec<Request>,
    connections: BTreeMap<u64, TcpStream>,
    threads: Vec<JoinHandle<()>>,
    connection_count: u64,
    stalled: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.lock().requests.clone()
    }

    pub(super) fn forget_requests(&self) {
        self.lock().requests.clear();
    }

    pub(super) fn connections(&self) -> u64 {
        self.lock().connection_count
    }

    /// Waits until `done` says so of the requests and the number of stalled answers.
    pub(super) fn wait_until(&self, limit: Duration, done: impl Fn(&[Request], usize) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if done(&state.requests, state.stalled) {
                return true;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits, but not longer than the server lives. Returns whether it still does.
    fn pause(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut state = self.lock();
        while !state.is_stopped {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return true };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }

    /// Keeps silent until the client goes away, or the server ends.
    fn stall(&self, socket: &TcpStream) {
        self.lock().stalled += 1;
        self.changed.notify_all();
        let _ = socket.set_read_timeout(Some(Duration::from_millis(50)));
        while self.pause(Duration::ZERO) {
            // A look without reading: what a client still sends stays where it is, and slows it down.
            match socket.peek(&mut [0]) {
                Ok(0) => break,
                Ok(_) => {
                    if !self.pause(Duration::from_millis(50)) {
                        break;
                    }
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(_) => break,
            }
        }
    }

    fn record(&self, request: &Request) -> usize {
        let mut state = self.lock();
        state.requests.push(request.clone());
        self.changed.notify_all();
        state.requests.len() - 1
    }

    fn update(&self, index: usize, change: impl FnOnce(&mut Request)) {
        if let Some(request) = self.lock().requests.get_mut(index) {
            change(request);
        }
        self.changed.notify_all();
    }
}

/// A listener and its threads; dropping it ends them.
pub(super) struct Server {
    pub(super) host: String,
    pub(super) shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

/// How the connections of a server are protected.
#[derive(Clone)]
pub(super) enum Transport {
    Plain,
    Tls(Arc<rustls::ServerConfig>),
    /// Accepts connections, and says nothing on them.
    Mute,
}

impl Server {
    pub(super) fn start(
        address: &str,
        transport: Transport,
        handler: impl FnOnce(&str) -> Arc<dyn Handler>,
    ) -> io::Result<Server> {
        let listener = TcpListener::bind(address)?;
        let host = listener.local_addr()?.to_string();
        let handler = handler(&host);
        let shared = Arc::new(Shared::default());
        let (threads_shared, threads_host) = (Arc::clone(&shared), host.clone());
        let accept = move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { break };
                let mut state = threads_shared.lock();
                if state.is_stopped {
                    break;
                }
                state.connection_count += 1;
                let number = state.connection_count;
                let Ok(copy) = stream.try_clone() else { continue };
                state.connections.insert(number, copy);
                let connection = Connection {
                    number,
                    host: threads_host.clone(),
                    shared: Arc::clone(&threads_shared),
                    handler: Arc::clone(&handler),
                };
                let transport = transport.clone();
                state.threads.push(thread::spawn(move || connection.serve(stream, transport)));
            }
        };
        Ok(Server { host, shared, listener: Some(thread::spawn(accept)) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.lock().is_stopped = true;
        self.shared.changed.notify_all();
        // The listener looks at the flag when it has accepted something.
        let _ = TcpStream::connect(&self.host);
        if let Some(thread) = self.listener.take() {
            let _ = thread.join();
        }
        let (threads, connections) = {
            let mut state = self.shared.lock();
            (std::mem::take(&mut state.threads), std::mem::take(&mut state.connections))
        };
        for stream in connections.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        for thread in threads {
            let _ = thread.join();
        }
    }
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

struct Connection {
    number: u64,
    host: String,
    shared: Arc<Shared>,
    handler: Arc<dyn Handler>,
}

/// Whether the connection can carry a further request.
#[derive(PartialEq)]
enum After {
    Keep,
    Close,
    /// Let the end be a reset: what is still on its way may be lost, as when a machine dies.
    Reset,
}

impl Connection {
    fn serve(&self, socket: TcpStream, transport: Transport) {
        let _ = socket.set_nodelay(true);
        let stream: Box<dyn Stream> = match (socket.try_clone(), transport) {
            (Err(_), _) => return,
            (Ok(copy), Transport::Plain) => Box::new(copy),
            (Ok(copy), Transport::Tls(config)) => match rustls::ServerConnection::new(config) {
                Ok(connection) => Box::new(rustls::StreamOwned::new(connection, copy)),
                Err(_) => return,
            },
            (Ok(_), Transport::Mute) => return self.shared.stall(&socket),
        };
        let mut stream = BufReader::with_capacity(64 << 10, stream);
        let end = loop {
            match self.exchange(&mut stream, &socket) {
                Ok(After::Keep) => {}
                Ok(end) => break end,
                Err(_) => break After::Close,
            }
        };
        if end == After::Reset {
            // The kernel sends a reset when the last descriptor is closed, and no shutdown came before.
            let _ = rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
        } else {
            let _ = stream.get_mut().flush();
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.shared.lock().connections.remove(&self.number);
        drop(stream);
        drop(socket);
    }

    fn exchange(&self, stream: &mut BufReader<Box<dyn Stream>>, socket: &TcpStream) -> io::Result<After> {
        let Some(mut request) = self.read_head(stream)? else { return Ok(After::Close) };
        let index = self.shared.record(&request);
        let finish = |reply: &Reply| self.shared.update(index, |request| request.status = reply.status);
        if let Some(reply) = self.handler.head(&request) {
            match reply.upload {
                None => {}
                Some(Upload::Early) => {
                    finish(&reply);
                    self.send(stream.get_mut(), socket, (index, &request), &reply)?;
                    let _ = socket.shutdown(Shutdown::Write);
                    // What is left unread would turn the end into a reset, which can overtake the answer.
                    let _ = socket.set_read_timeout(Some(Duration::from_secs(5)));
                    let _ = io::copy(stream, &mut io::sink());
                    return Ok(After::Close);
                }
                Some(Upload::Cut(bytes)) => {
                    let read = io::copy(&mut stream.take(bytes), &mut io::sink())?;
                    self.shared.update(index, |request| request.body_size = read);
                    return Ok(After::Reset);
                }
                Some(Upload::Stall(bytes)) => {
                    let read = io::copy(&mut stream.take(bytes), &mut io::sink())?;
                    self.shared.update(index, |request| request.body_size = read);
                    self.shared.stall(socket);
                    return Ok(After::Close);
                }
            }
            self.read_body(stream, &mut request, index)?;
            finish(&reply);
            return self.send(stream.get_mut(), socket, (index, &request), &reply);
        }
        self.read_body(stream, &mut request, index)?;
        let reply = self.handler.answer(&request);
        finish(&reply);
        self.send(stream.get_mut(), socket, (index, &request), &reply)
    }

    fn read_head(&self, stream: &mut BufReader<Box<dyn Stream>>) -> io::Result<Option<Request>> {
        if stream.fill_buf()?.first() == Some(&TLS_HANDSHAKE) {
            // As others answer who speaks TLS to them: they understand that it is none, and need not wait.
            let out = stream.get_mut();
            out.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")?;
            return Ok(None);
        }
        let mut limited = stream.take(HEAD_LIMIT);
        let mut line = String::new();
        if limited.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let method = words.next().unwrap_or_default().to_owned();
        let target = words.next().unwrap_or_default().to_owned();
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            if limited.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':') {
                headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        Ok(Some(Request {
            method,
            path: path.to_owned(),
            query: parse_form(query),
            headers,
            body: Vec::new(),
            body_size: 0,
            listener: self.host.clone(),
            connection: self.number,
            status: 0,
            sent: 0,
        }))
    }

    fn read_body(
        &self,
        stream: &mut BufReader<Box<dyn Stream>>,
        request: &mut Request,
        index: usize,
    ) -> io::Result<()> {
        if request.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
            let out = stream.get_mut();
            out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            out.flush()?;
        }
        let mut body = Vec::new();
        let outcome = if request.header("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
            read_chunks(stream, &mut body)
        } else {
            let length = request.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
            let read = stream.take(length).read_to_end(&mut body);
            read.and_then(|read| if read as u64 == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) })
        };
        request.body_size = body.len() as u64;
        request.body = body;
        self.shared.update(index, |recorded| {
            recorded.body_size = request.body_size;
            recorded.body = request.body[..request.body.len().min(RECORDED_BODY)].to_vec();
        });
        outcome
    }

    fn send(
        &self,
        stream: &mut Box<dyn Stream>,
        socket: &TcpStream,
        (index, request): (usize, &Request),
        reply: &Reply,
    ) -> io::Result<After> {
        match reply.manners {
            Manners::Close => return Ok(After::Close),
            Manners::StallHead => {
                self.shared.stall(socket);
                return Ok(After::Close);
            }
            _ => {}
        }
        let length = reply.length.unwrap_or(reply.body.len() as u64);
        let declared = reply.declared.unwrap_or(length);
        let mut head = format!("HTTP/1.1 {} {}\r\n", reply.status, reason(reply.status));
        for (name, value) in &reply.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let has_length = reply.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        if reply.is_chunked {
            head.push_str("Transfer-Encoding: chunked\r\n");
        } else if !has_length && reply.status != 204 && reply.status != 304 {
            head.push_str(&format!("Content-Length: {declared}\r\n"));
        }
        if let Manners::EndlessHead { every } = reply.manners {
            stream.write_all(head.as_bytes())?;
            for number in 0_u64.. {
                stream.write_all(format!("X-Filler-{number}: {}\r\n", "x".repeat(64)).as_bytes())?;
                stream.flush()?;
                if !self.shared.pause(every) {
                    break;
                }
            }
            return Ok(After::Close);
        }
        head.push_str("\r\n");
        if request.method == "HEAD" {
            stream.write_all(head.as_bytes())?;
            stream.flush()?;
            return Ok(After::Keep);
        }
        let (limit, piece) = match reply.manners {
            Manners::Cut { after, .. } | Manners::StallBody { after } => (after.min(length), 64 << 10),
            Manners::Dribble { piece, .. } => (length, piece),
            _ => (length, 64 << 10),
        };
        stream.write_all(head.as_bytes())?;
        let mut sent = 0_u64;
        while sent < limit {
            let want = usize::try_from(limit - sent).unwrap_or(usize::MAX).min(piece);
            let start = usize::try_from(sent % (reply.body.len() as u64)).expect("an offset in the body");
            let bytes = &reply.body[start..reply.body.len().min(start + want)];
            if reply.is_chunked {
                stream.write_all(format!("{:x}\r\n", bytes.len()).as_bytes())?;
                stream.write_all(bytes)?;
                stream.write_all(b"\r\n")?;
            } else {
                stream.write_all(bytes)?;
            }
            sent += bytes.len() as u64;
            self.shared.update(index, |request| request.sent = sent);
            if let Manners::Dribble { every, .. } = reply.manners {
                stream.flush()?;
                if !self.shared.pause(every) {
                    return Ok(After::Close);
                }
            }
        }
        stream.flush()?;
        match reply.manners {
            Manners::Cut { reset: true, .. } => return Ok(After::Reset),
            Manners::Cut { .. } => return Ok(After::Close),
            Manners::StallBody { .. } => {
                self.shared.stall(socket);
                return Ok(After::Close);
            }
            _ => {}
        }
        if reply.is_chunked {
            stream.write_all(b"0\r\n\r\n")?;
            stream.flush()?;
        } else if declared != length {
            return Ok(After::Close);
        }
        let wants_close = request.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        Ok(if wants_close { After::Close } else { After::Keep })
    }
}

fn read_chunks(stream: &mut impl io::BufRead, body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(size, 16).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        if (stream.by_ref().take(size).read_to_end(body)? as u64) < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut end = String::new();
        stream.read_line(&mut end)?;
        if size == 0 {
            // Trailers, if any, up to the empty line.
            while !end.trim().is_empty() {
                end.clear();
                stream.read_line(&mut end)?;
            }
            return Ok(());
        }
    }
}

/// Splits and decodes `application/x-www-form-urlencoded` text.
pub(super) fn parse_form(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        let escaped = (first == b'%')
            .then(|| tail.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()))
            .flatten();
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None if first == b'+' => bytes.push(b' '),
            None => bytes.push(first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Status",
    }
}
