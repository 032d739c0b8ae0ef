//! No display at all.

use build_engine_graph::{Event, EventSink};

/// Hears everything and says nothing.
pub(crate) struct Quiet;

impl EventSink for Quiet {
    fn emit(&self, _event: Event) {}
}
