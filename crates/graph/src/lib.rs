//! The build graph: what is to be done, and the story of it being done.
//!
//! A [`Vertex`] says one thing to do (an [`Op`]) on the outputs of other vertices ([`Edge`]). The shapes are those of
//! BuildKit's LLB (`solver/pb/ops.proto`), field for field, so that the same graph can run here or on BuildKit;
//! [`llb`] is the only module that knows the wire format. [`event`] is the one stream that everything a person sees is
//! folded from.
//!
//! Invariants: values only, no I/O. A vertex's digest is the SHA-256 of its wire bytes, which it keeps. The digest
//! identifies work within a run; it is not a cache key (those are the solver's).

pub mod event;
pub mod llb;
mod op;
mod redact;
mod vertex;

pub use event::{Event, EventSink, LogStream, Timestamp, Warning};
pub use op::*;
pub use redact::{redact_url, redact_url_in_place};
pub use vertex::{Edge, Metadata, ProgressGroup, SourceFile, SourceSpan, Vertex, walk};
