//! The engine: a build request goes in, an image comes out.
//!
//! This is the only crate that joins the parts. A [`BuildRequest`] says what to build; a [`Backend`] builds it and tells
//! the story as [`graph::Event`](build_engine_graph::Event)s. The [`embedded`] backend is our own: a worker process that
//! this binary starts from itself, spoken to in frames.
//!
//! Invariants: a request is checked against what the backend can do before anything starts; dropping a build's future
//! cancels it.

mod archive;
mod backend;
pub mod checks;
pub mod context;
mod docker_archive;
pub mod embedded;
mod entitlement;
mod error;
mod image;
mod layout;
mod mask;
mod place;
mod request;
mod session;
pub mod ssh;

pub use archive::{ARCHIVE_HEAD, is_archive};
pub use backend::{Backend, ImageSummary, Unsupported};
pub use build_engine_frontend::MainContext;
pub use build_engine_registry::shown;
pub use build_engine_registry::{
    AuthFiles, HostSettings as RegistryHost, Limits as NetworkLimits, Proxies, Settings as RegistrySettings,
};
pub use entitlement::{Entitlement, UnknownEntitlement};
pub use error::{BuildError, ExitKind, Place, Report};
pub use place::{ImageDetails, ImagePlace, PlatformDetails, TransferRequest, Transferred, Variants};
pub use request::{
    Annotation, AnnotationTarget, Attestation, BuildRequest, Compression, Containerd, ContextSource, DockerfileSource,
    ImageOptions, InvalidOutput, Isolation, IsolationReport, Limit, LoadTarget, NetworkMode, NoCache, Outcome, Output,
    OutputDest, ResourceLimits, RunRequest, StoreOptions, UPLOAD, UserNamespace, split_csv,
};
pub use session::{MAX_SECRET_BYTES, SecretSource, Session, Variables};
