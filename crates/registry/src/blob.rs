//! Reading a blob: in one stream or in several ranges at once, and on after every break.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use build_engine_oci::{Descriptor, Digest, Reference};
use bytes::{Buf as _, Bytes};
use reqwest::header::{HeaderValue, RANGE};
use reqwest::{Method, Url};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::Error;
use crate::api::{Call, Place};
use crate::endpoint::Endpoint;
use crate::pull::{Sources, pull_scopes, tries};
use crate::response::Response;
use crate::retry::Patience;
use crate::transport::lock;

/// Blobs of this size and more are read in ranges.
const RANGES_FROM: u64 = 16 << 20;
/// The size of a range.
const RANGE_BYTES: u64 = 4 << 20;
/// So many ranges are asked for at once; what they bring is in memory until it is read.
const RANGES_AT_ONCE: usize = 3;

/// A blob that is being read. It fails rather than end early; its digest is for the reader to check.
pub struct Blob {
    reading: Reading,
}

enum Reading {
    Stream(Box<Segment>),
    Ranges(Ranges),
}

impl Blob {
    pub(crate) async fn open(
        sources: Sources,
        repository: &Reference,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<Self, Error> {
        let (digest, size) = (descriptor.digest.clone(), descriptor.size);
        let plan = Arc::new(Plan {
            what: format!("read blob {digest} of `{}`", repository.name()),
            places: sources.of(repository)?,
            sources,
            digest,
            size,
            place: AtomicUsize::new(0),
            ranges: AtomicBool::new(true),
            elsewhere: Mutex::new(None),
        });
        let in_ranges = size >= RANGES_FROM && size.saturating_sub(offset) > RANGE_BYTES;
        let end = if in_ranges { offset + RANGE_BYTES } else { size };
        let mut first = Segment::new(plan.clone(), offset.min(size), end);
        if first.position < end || size == 0 {
            first.connect().await?;
        }
        let whole = first.open.as_ref().is_some_and(|open| open.whole);
        let reading = if in_ranges && !whole {
            let mut ranges = Ranges { plan, next: end, running: VecDeque::new() };
            ranges.start(first);
            Reading::Ranges(ranges)
        } else {
            first.end = size;
            if let Some(open) = &mut first.open {
                open.until = if open.whole { size } else { open.until };
            }
            Reading::Stream(Box::new(first))
        };
        Ok(Self { reading })
    }

    /// The next bytes; `None` when all of them were read.
    ///
    /// # Errors
    /// After the last retry.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        match &mut self.reading {
            Reading::Stream(segment) => segment.chunk().await,
            Reading::Ranges(ranges) => ranges.chunk().await,
        }
    }
}

/// What all segments of a blob share.
struct Plan {
    sources: Sources,
    places: Vec<Endpoint>,
    digest: Digest,
    size: u64,
    /// What is being done, for messages.
    what: String,
    /// The place that is asked: later segments need not find out again that a mirror fails.
    place: AtomicUsize,
    /// The server understands ranges, as far as is known.
    ranges: AtomicBool,
    /// Where the registry redirected to, with the place for which it did.
    elsewhere: Mutex<Option<(usize, Url)>>,
}

impl Plan {
    fn wrong_size(&self, host: String, actual: String) -> Error {
        Error::WrongSize { host, digest: self.digest.clone(), expected: self.size, actual }
    }
}

/// Bytes `position..end` of a blob.
struct Segment {
    plan: Arc<Plan>,
    position: u64,
    end: u64,
    place: usize,
    patience: Patience,
    open: Option<Open>,
}

/// A response that is being read.
struct Open {
    response: Response,
    /// So many bytes come before those that are wanted.
    skip: u64,
    /// The response is wanted up to here.
    until: u64,
    /// It brings the whole blob, though perhaps only a part was asked for.
    whole: bool,
}

impl Segment {
    fn new(plan: Arc<Plan>, position: u64, end: u64) -> Self {
        let place = plan.place.load(Ordering::Relaxed);
        let patience = Patience::new(plan.sources.api.limits(), tries(&plan.places[place]));
        Self { plan, position, end, place, patience, open: None }
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let Some(open) = &mut self.open else {
                if self.position == self.end {
                    return Ok(None);
                }
                self.connect().await?;
                continue;
            };
            // Whether the whole ends where it should is seen by reading on.
            if self.position == open.until && open.until < self.plan.size {
                self.open = None;
                continue;
            }
            match open.response.chunk().await {
                Ok(Some(mut bytes)) => {
                    let skipped = open.skip.min(bytes.len() as u64);
                    bytes.advance(skipped as usize);
                    open.skip -= skipped;
                    if bytes.is_empty() {
                        continue;
                    }
                    let wanted = open.until - self.position;
                    if bytes.len() as u64 > wanted {
                        if open.until == self.plan.size {
                            let error = self.plan.wrong_size(open.response.host(), "more".to_owned());
                            self.recover(error).await?;
                            continue;
                        }
                        bytes.truncate(wanted as usize);
                    }
                    self.position += bytes.len() as u64;
                    self.patience.progress();
                    return Ok(Some(bytes));
                }
                Ok(None) => {
                    let short = self.position < open.until;
                    let (whole, host) = (open.whole, open.response.host());
                    self.open = None;
                    if short && whole {
                        let error = self.plan.wrong_size(host, format!("{} bytes", self.position));
                        self.recover(error).await?;
                    } else if short {
                        let source = Box::new(io::Error::from(io::ErrorKind::UnexpectedEof));
                        self.recover(Error::Broken { host, source }).await?;
                    }
                }
                // All of it is here.
                Err(_) if self.position == self.end => self.open = None,
                Err(error) => self.recover(error).await?,
            }
        }
    }

    /// Asks until there is a response that begins at `position`.
    async fn connect(&mut self) -> Result<(), Error> {
        loop {
            match self.request().await {
                Ok(open) => {
                    self.open = Some(open);
                    return Ok(());
                }
                Err(error) => self.recover(error).await?,
            }
        }
    }

    /// Waits and stays, or goes to the next place; fails when there is none.
    async fn recover(&mut self, error: Error) -> Result<(), Error> {
        self.open = None;
        let Err(error) = self.patience.wait(error).await else { return Ok(()) };
        let plan = &self.plan;
        if self.place + 1 == plan.places.len() {
            return Err(error.during(plan.what.clone()));
        }
        plan.sources.failed(&plan.places[self.place], &error);
        self.place += 1;
        plan.place.fetch_max(self.place, Ordering::Relaxed);
        self.patience = Patience::new(plan.sources.api.limits(), tries(&plan.places[self.place]));
        Ok(())
    }

    async fn request(&self) -> Result<Open, Error> {
        let plan = &self.plan;
        loop {
            let part = self.position > 0 || self.end < plan.size;
            let part = part && plan.ranges.load(Ordering::Relaxed);
            let response = self.ask(part).await?;
            match response.status().as_u16() {
                200 => return self.whole(response),
                206 => return self.part(response),
                // The blob is shorter than we think, or the server confused: its size without a range tells.
                416 if part => plan.ranges.store(false, Ordering::Relaxed),
                _ => return Err(response.into_error().await),
            }
        }
    }

    /// Sends the request: to where the last one was redirected, if that still works.
    async fn ask(&self, part: bool) -> Result<Response, Error> {
        let plan = &self.plan;
        let (api, place) = (&plan.sources.api, &plan.places[self.place]);
        let scopes = pull_scopes(place);
        let path = Place::Path(place.path(&format!("blobs/{}", plan.digest)));
        let mut call = Call::new(place, &scopes, Method::GET, path);
        if part {
            // Digits and a hyphen are a header.
            let range = HeaderValue::try_from(format!("bytes={}-{}", self.position, self.end - 1));
            call.headers.extend(range.ok().map(|range| (RANGE, range)));
        }
        let elsewhere = lock(&plan.elsewhere).clone().filter(|(index, _)| *index == self.place);
        if let Some((_, url)) = elsewhere {
            let there = Call { place: Place::Url(url), ..call.clone() };
            let response = api.once(&there).await?;
            // Such addresses are signed, and the signatures end.
            if !matches!(response.status().as_u16(), 400 | 401 | 403 | 404 | 410) {
                return Ok(response);
            }
            *lock(&plan.elsewhere) = None;
        }
        let response = api.once(&call).await?;
        if response.status().is_success() && !api.is_home(place, response.url()) {
            *lock(&plan.elsewhere) = Some((self.place, response.url().clone()));
        }
        Ok(response)
    }

    fn whole(&self, response: Response) -> Result<Open, Error> {
        if let Some(length) = response.length().filter(|length| *length != self.plan.size) {
            return Err(self.plan.wrong_size(response.host(), format!("{length} bytes")));
        }
        Ok(Open { response, skip: self.position, until: self.end, whole: true })
    }

    fn part(&self, response: Response) -> Result<Open, Error> {
        let protocol = |reason: &str| Error::Protocol { host: response.host(), reason: reason.to_owned() };
        let Some((first, last, whole)) = response.content_range() else {
            return Err(protocol("there is no `Content-Range` in it"));
        };
        if let Some(whole) = whole.filter(|whole| *whole != self.plan.size) {
            return Err(self.plan.wrong_size(response.host(), format!("{whole} bytes")));
        }
        if first != self.position || last < first || last >= self.plan.size {
            return Err(protocol("it is another range than the one that was asked for"));
        }
        Ok(Open { response, skip: 0, until: self.end.min(last + 1), whole: false })
    }
}

/// Several segments at once, read in order.
struct Ranges {
    plan: Arc<Plan>,
    /// The first byte that is in no segment yet.
    next: u64,
    running: VecDeque<Running>,
}

/// A segment that a task reads ahead. The channel holds at most one range, since that is all that the task reads.
struct Running {
    chunks: mpsc::UnboundedReceiver<Result<Bytes, Error>>,
    /// So many bytes are still to come.
    missing: u64,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Ranges {
    async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            while self.running.len() < RANGES_AT_ONCE && self.next < self.plan.size {
                let end = (self.next + RANGE_BYTES).min(self.plan.size);
                let segment = Segment::new(self.plan.clone(), self.next, end);
                self.next = end;
                self.start(segment);
            }
            let Some(front) = self.running.front_mut() else { return Ok(None) };
            match front.chunks.recv().await {
                Some(Ok(bytes)) => {
                    front.missing = front.missing.saturating_sub(bytes.len() as u64);
                    return Ok(Some(bytes));
                }
                Some(Err(error)) => return Err(error),
                None if front.missing > 0 => {
                    let host = self.plan.places[self.plan.place.load(Ordering::Relaxed)].host.clone();
                    let source = Box::new(io::Error::other("its reader ended early"));
                    return Err(Error::Broken { host, source }.during(self.plan.what.clone()));
                }
                None => drop(self.running.pop_front()),
            }
        }
    }

    fn start(&mut self, mut segment: Segment) {
        let missing = segment.end - segment.position;
        let (sender, chunks) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            loop {
                let next = segment.chunk().await;
                let last = matches!(next, Err(_) | Ok(None));
                if let Some(next) = next.transpose()
                    && sender.send(next).is_err()
                {
                    return;
                }
                if last {
                    return;
                }
            }
        });
        self.running.push_back(Running { chunks, missing, task: task.abort_handle() });
    }
}
