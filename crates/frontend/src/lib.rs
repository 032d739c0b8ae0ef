//! From a Dockerfile to a graph and an image config.
//!
//! [`lower`] is a pure function: the same request and the same answers give the same graph, down to the digests. What
//! it cannot know (the config of a base image, an ignore file) it asks for by returning [`Lowering::Needs`]; the caller
//! fetches the answers, all at once, and calls again. It stops asking after as many rounds as `ONBUILD` triggers bring
//! new images, plus one.
//!
//! The meaning of every instruction is BuildKit's (`frontend/dockerfile/dockerfile2llb`): the same vertices with the
//! same attributes and names, the same image config, the same history. Text is parsed by [`build_engine_dockerfile`];
//! the graph is [`build_engine_graph`]'s. Whether a vertex can be executed is for the engine to say.
//!
//! Invariants: no I/O, no clock, no environment. A stage that the target does not need is not in the graph.

mod args;
mod checks;
mod chmod;
mod context;
mod convert;
mod copy;
mod draft;
mod env;
mod epoch;
mod git;
mod gotext;
mod instructions;
mod name;
mod outline;
mod paths;
mod ports;
mod remote;
mod request;
mod run;
mod stage;

#[cfg(test)]
mod tests;

pub use checks::{Checked, Checking};
pub use outline::{Outline, OutlineArg, OutlineNeed, Outlining};
pub use remote::{MainContext, context_edge};
pub use request::{
    Answer, Answers, BaseImage, ImageSource, Lowered, Lowering, NoCache, PlatformResult, Question, Request, check,
    lower, outline,
};
