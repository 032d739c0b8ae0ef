//! Backends: who builds.

use std::sync::Arc;

use build_engine_graph::EventSink;
use build_engine_oci::{Descriptor, Platform};
use serde::{Deserialize, Serialize};

use crate::{BuildError, BuildRequest, Outcome};

/// A part of a request that a backend cannot do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    /// The flag, for example `--attest`.
    pub flag: String,
    /// Why, and what to do instead.
    pub reason: String,
}

/// Somebody who can build. Dropping the future of [`Backend::build`] cancels the build.
pub trait Backend {
    /// Its name, for messages.
    fn name(&self) -> &'static str;

    /// What of `request` it cannot do; asked before anything starts.
    fn unsupported(&self, request: &BuildRequest) -> Vec<Unsupported>;

    /// Builds, telling the story to `events`.
    ///
    /// # Errors
    /// [`BuildError`], with at least one report.
    fn build(
        &self,
        request: BuildRequest,
        events: Arc<dyn EventSink>,
    ) -> impl Future<Output = Result<Outcome, BuildError>> + Send;
}

/// One name in the image store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageSummary {
    /// The name.
    pub name: String,
    /// What it points at.
    pub descriptor: Descriptor,
    /// Platforms of the image.
    pub platforms: Vec<Platform>,
}
