//! The body of an upload: read on a blocking thread, sent as the network takes it, and watched.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream;
use tokio::sync::mpsc;

use crate::settings::{Limits, seconds};
use crate::transport::lock;
use crate::{Content, Error};

/// So much is read and sent at once.
const CHUNK_BYTES: u64 = 256 << 10;
/// So many chunks wait between the disk and the network.
const CHUNKS_AHEAD: usize = 2;

/// Bytes `offset..size` of some content.
pub(crate) struct Feed {
    pub(crate) content: Arc<dyn Content>,
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

#[derive(Default)]
struct Flow {
    sent: AtomicU64,
    /// The disk is what is waited for, not the network.
    starved: AtomicBool,
    failed: Mutex<Option<io::Error>>,
}

/// Observes a body on its way.
pub(crate) struct Watch {
    flow: Arc<Flow>,
    total: u64,
    limits: Limits,
    since: Instant,
    before: u64,
    complete_since: Option<Instant>,
}

impl Feed {
    /// Starts to read. Must be called within a runtime.
    pub(crate) fn into_body(self, limits: &Limits) -> (reqwest::Body, Watch) {
        let total = self.size - self.offset;
        let flow = Arc::new(Flow::default());
        let (sender, mut receiver) = mpsc::channel::<Result<Bytes, io::Error>>(CHUNKS_AHEAD);
        tokio::task::spawn_blocking(move || self.read(&sender));
        let theirs = flow.clone();
        let chunks = stream::poll_fn(move |context| {
            let next = receiver.poll_recv(context);
            theirs.starved.store(next.is_pending(), Ordering::Relaxed);
            match next {
                Poll::Ready(Some(Ok(bytes))) => {
                    theirs.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    Poll::Ready(Some(Ok(bytes)))
                }
                Poll::Ready(Some(Err(error))) => {
                    let told = io::Error::from(error.kind());
                    *lock(&theirs.failed) = Some(error);
                    Poll::Ready(Some(Err(told)))
                }
                Poll::Ready(None) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        });
        let watch =
            Watch { flow, total, limits: limits.clone(), since: Instant::now(), before: 0, complete_since: None };
        (reqwest::Body::wrap_stream(chunks), watch)
    }

    fn read(&self, sender: &mpsc::Sender<Result<Bytes, io::Error>>) {
        let mut left = self.size - self.offset;
        let mut reader = match self.content.open(self.offset) {
            Ok(reader) => reader,
            Err(error) => {
                // Nobody listens any more if this fails, here and below.
                let _ = sender.blocking_send(Err(error));
                return;
            }
        };
        while left > 0 {
            let want = left.min(CHUNK_BYTES);
            let mut chunk = Vec::with_capacity(want as usize);
            let result = match reader.by_ref().take(want).read_to_end(&mut chunk) {
                Ok(read) if read as u64 == want => Ok(Bytes::from(chunk)),
                Ok(_) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the content is shorter than its size")),
                Err(error) => Err(error),
            };
            left -= want;
            let last = result.is_err();
            if sender.blocking_send(result).is_err() || last {
                return;
            }
        }
    }
}

impl Watch {
    /// How many bytes were taken by the connection.
    pub(crate) fn sent(&self) -> u64 {
        self.flow.sent.load(Ordering::Relaxed)
    }

    /// Why our own content could not be read.
    pub(crate) fn content_error(&self) -> Option<io::Error> {
        lock(&self.flow.failed).take()
    }

    /// Looks whether the body moves fast enough, and once it is sent whether the answer is due.
    pub(crate) fn check(&mut self, host: &str) -> Result<(), Error> {
        let sent = self.sent();
        if sent == self.total {
            let since = *self.complete_since.get_or_insert_with(Instant::now);
            // What is on its way in buffers has its time as well.
            let limit = seconds(self.limits.response_seconds) + seconds(self.limits.stall_seconds);
            return if since.elapsed() < limit {
                Ok(())
            } else {
                Err(Error::Timeout {
                    host: host.to_owned(),
                    phase: "waiting for the answer to an upload",
                    seconds: limit.as_secs_f64(),
                })
            };
        }
        if self.flow.starved.load(Ordering::Relaxed) || sent - self.before >= self.limits.min_bytes.max(1) {
            self.since = Instant::now();
            self.before = sent;
        }
        if self.since.elapsed() > seconds(self.limits.stall_seconds).max(Duration::from_millis(1)) {
            return Err(Error::Slow {
                host: host.to_owned(),
                min_bytes: self.limits.min_bytes,
                seconds: self.limits.stall_seconds,
            });
        }
        Ok(())
    }
}
