//! The worker's side of prepared networks ([`crate::prepared`]): which are idle, and which are thrown away.
//!
//! A step takes a pair for itself and gives it back if nothing of it can be left there. A pair that was made for
//! another network of the host (another name server, another route) is not used any more.

use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// More than this many are not kept idle.
const MAX_IDLE: usize = 8;

/// A pair and the process that keeps it; may still be in the making.
#[derive(Debug)]
pub(crate) struct Pair {
    keeper: Child,
    control: Arc<OwnedFd>,
    made_for: String,
}

impl Pair {
    /// `keeper` was told to prepare a network through `control`.
    pub(crate) fn new(keeper: Child, control: OwnedFd) -> Self {
        Self { keeper, control: Arc::new(control), made_for: host_network() }
    }

    /// The socket that its keeper listens to.
    pub(crate) fn control(&self) -> &OwnedFd {
        &self.control
    }

    /// Whether its keeper still runs, and the host's network is what it was.
    fn is_usable(&self) -> bool {
        let mut fds = [PollFd::new(&*self.control, PollFlags::IN)];
        let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        fds[0].revents().is_empty() && self.made_for == host_network()
    }
}

/// What `pasta` copies from the host when it starts.
fn host_network() -> String {
    let files = ["/etc/resolv.conf", "/proc/self/net/route", "/proc/self/net/if_inet6"];
    files.iter().map(|file| std::fs::read_to_string(file).unwrap_or_default()).collect()
}

/// The pairs of one worker.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    idle: Mutex<Vec<Pair>>,
    /// Keepers that were told to end, to be reaped.
    ending: Mutex<Vec<Child>>,
    /// Why there are none on this machine.
    broken: OnceLock<String>,
}

impl Pool {
    /// Takes an idle pair.
    pub(crate) fn take(&self) -> Option<Pair> {
        loop {
            let pair = lock(&self.idle).pop()?;
            if pair.is_usable() {
                return Some(pair);
            }
            self.discard(pair);
        }
    }

    /// Keeps `pair` for the next step.
    pub(crate) fn put(&self, pair: Pair) {
        let mut idle = lock(&self.idle);
        if idle.len() < MAX_IDLE {
            idle.push(pair);
        } else {
            drop(idle);
            self.discard(pair);
        }
    }

    /// Whether [`Pool::take`] has something to offer.
    pub(crate) fn has_idle(&self) -> bool {
        !lock(&self.idle).is_empty()
    }

    /// Why steps use the host's network, if a pair could not be made.
    pub(crate) fn broken(&self) -> Option<&str> {
        self.broken.get().map(String::as_str)
    }

    /// Lets `pair` end, without waiting for it.
    fn discard(&self, pair: Pair) {
        let _ = rustix::net::shutdown(&*pair.control, rustix::net::Shutdown::Write);
        let mut ending = lock(&self.ending);
        ending.push(pair.keeper);
        ending.retain_mut(|keeper| matches!(keeper.try_wait(), Ok(None)));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for pair in std::mem::take(&mut *lock(&self.idle)) {
            self.discard(pair);
        }
        for keeper in lock(&self.ending).iter_mut() {
            let _ = keeper.wait();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pair in use by a step; thrown away unless it is given back.
#[derive(Debug)]
pub(crate) struct Taken {
    pool: Arc<Pool>,
    pair: Option<Pair>,
    reusable: bool,
}

impl Taken {
    /// `reusable` tells whether the step cannot change the namespaces.
    pub(crate) fn new(pool: &Arc<Pool>, pair: Pair, reusable: bool) -> Self {
        Self { pool: Arc::clone(pool), pair: Some(pair), reusable }
    }

    /// The socket that the pair's keeper listens to.
    pub(crate) fn control(&self) -> Option<Arc<OwnedFd>> {
        self.pair.as_ref().map(|pair| Arc::clone(&pair.control))
    }

    /// Gives the pair back; nothing is left in it.
    pub(crate) fn give_back(mut self) {
        if self.reusable
            && let Some(pair) = self.pair.take()
        {
            self.pool.put(pair);
        }
    }

    /// Remembers that pairs cannot be made here.
    pub(crate) fn failed(self, note: String) {
        let _ = self.pool.broken.set(note);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(pair) = self.pair.take() {
            self.pool.discard(pair);
        }
    }
}
