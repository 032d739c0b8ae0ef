//! Flights: runs that are under way, shared by everyone who needs the same key, and the fan-out of their events.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use build_engine_graph::{Event, EventSink};
use build_engine_oci::Digest;
use futures::future::BoxFuture;

use crate::Failure;
use crate::task::Task;

/// How much of a flight's log is kept for those who join later; the oldest goes first.
const REPLAY_BYTES: usize = 4 << 20;

/// Locks, also after a panic elsewhere: what these locks guard is consistent between any two statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is shared under: the canonical key, and the job where the result is for that job only.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct FlightKey {
    pub(crate) canonical: Digest,
    pub(crate) job: Option<u64>,
}

/// What a flight brings.
pub(crate) struct Landed<T> {
    pub(crate) outputs: Vec<T>,
    /// Whether a record was found after all, so that nothing ran.
    pub(crate) cached: bool,
}

/// A run under way. Dropping the last reference cancels it.
pub(crate) struct Flight<T> {
    key: FlightKey,
    number: u64,
    hub: Arc<Hub>,
    task: Arc<Task<Arc<Landed<T>>>>,
    flights: Weak<Flights<T>>,
}

/// A flight and its number.
type Entry<T> = (u64, Weak<Flight<T>>);

/// All flights of a solver.
pub(crate) struct Flights<T> {
    map: Mutex<HashMap<FlightKey, Entry<T>>>,
    next: AtomicU64,
}

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self { map: Mutex::default(), next: AtomicU64::default() }
    }
}

impl<T> Flights<T> {
    /// Forgets the flight with this number: its successor under the same key stays.
    fn forget(&self, key: &FlightKey, number: u64) {
        let mut map = lock(&self.map);
        if map.get(key).is_some_and(|(found, _)| *found == number) {
            map.remove(key);
        }
    }

    /// How many flights there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        lock(&self.map).len()
    }
}

impl<T: Send + Sync + 'static> Flights<T> {
    /// The flight of `key`, if there is one.
    pub(crate) fn find(&self, key: &FlightKey) -> Option<Arc<Flight<T>>> {
        lock(&self.map).get(key).and_then(|(_, flight)| flight.upgrade())
    }

    /// The flight of `key`, or the one that `start` starts.
    pub(crate) fn join(
        self: &Arc<Self>,
        key: FlightKey,
        start: impl FnOnce(Arc<Hub>) -> BoxFuture<'static, Result<Arc<Landed<T>>, Failure>>,
    ) -> Arc<Flight<T>> {
        let mut map = lock(&self.map);
        if let Some(flight) = map.get(&key).and_then(|(_, flight)| flight.upgrade()) {
            return flight;
        }
        let hub = Arc::new(Hub::default());
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let work = start(Arc::clone(&hub));
        let (flights, landing) = (Arc::downgrade(self), key.clone());
        let task = Task::spawn(Box::pin(async move {
            let outcome = work.await;
            // Whoever comes now finds the record; and a failure is for those who waited, not for later builds.
            if let Some(flights) = flights.upgrade() {
                flights.forget(&landing, number);
            }
            outcome
        }));
        let flight = Arc::new(Flight { key: key.clone(), number, hub, task, flights: Arc::downgrade(self) });
        map.insert(key, (number, Arc::downgrade(&flight)));
        flight
    }
}

impl<T: Send + Sync + 'static> Flight<T> {
    /// Waits for the landing. `listener` gets the flight's events, first those that it missed.
    pub(crate) async fn wait(self: Arc<Self>, listener: Listener) -> Result<Arc<Landed<T>>, Failure> {
        let _subscription = Hub::subscribe(&self.hub, listener);
        Arc::clone(&self.task).wait().await
    }
}

impl<T> Drop for Flight<T> {
    fn drop(&mut self) {
        if let Some(flights) = self.flights.upgrade() {
            flights.forget(&self.key, self.number);
        }
    }
}

/// Takes the events of a flight for one vertex of one job.
pub(crate) type Listener = Box<dyn Fn(Event) + Send + Sync>;

/// Brings the events of a flight to all who wait for it.
#[derive(Default)]
pub(crate) struct Hub {
    state: Mutex<HubState>,
}

#[derive(Default)]
struct HubState {
    history: VecDeque<Event>,
    log_bytes: usize,
    listeners: Vec<(u64, Arc<Listener>)>,
    next: u64,
}

struct Subscription {
    hub: Arc<Hub>,
    number: u64,
}

impl Hub {
    fn subscribe(hub: &Arc<Self>, listener: Listener) -> Subscription {
        let mut state = lock(&hub.state);
        // Under the lock, so that nothing is missed, doubled or out of order.
        for event in &state.history {
            listener(event.clone());
        }
        let number = state.next;
        state.next += 1;
        state.listeners.push((number, Arc::new(listener)));
        Subscription { hub: Arc::clone(hub), number }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let gone = {
            let mut state = lock(&self.hub.state);
            let at = state.listeners.iter().position(|(number, _)| *number == self.number);
            at.map(|at| state.listeners.remove(at))
        };
        // Outside the lock: a listener may hold the last reference to a job.
        drop(gone);
    }
}

impl EventSink for Hub {
    fn emit(&self, event: Event) {
        let mut state = lock(&self.state);
        for (_, listener) in &state.listeners {
            listener(event.clone());
        }
        match &event {
            Event::Log { text, .. } => {
                state.log_bytes += text.len();
                state.history.push_back(event);
                while state.log_bytes > REPLAY_BYTES {
                    let oldest = state.history.iter().position(|event| matches!(event, Event::Log { .. }));
                    let Some(Event::Log { text, .. }) = oldest.and_then(|at| state.history.remove(at)) else { break };
                    state.log_bytes -= text.len();
                }
            }
            Event::Progress { id, .. } => {
                // Of each part only the latest state matters to someone who comes later.
                state.history.retain(|earlier| !matches!(earlier, Event::Progress { id: other, .. } if other == id));
                state.history.push_back(event);
            }
            Event::Vertex { .. } | Event::Started { .. } | Event::Completed { .. } | Event::Warning(_) => {
                state.history.push_back(event);
            }
        }
    }
}
