//! `--rm=false`: what a failed step left behind, as an image of the store.
//!
//! The tree of the step, with whatever the command had written by then, gets a name, so that `run` opens it and nothing prunes
//! it until that name is removed. The config is the step's own environment: a look at it begins where the command stood.

use std::sync::Arc;

use build_engine_graph::{EventSink, ExecOp, Op, Vertex};
use build_engine_oci::{ImageConfig, Platform, Reference};
use build_engine_store::{Lease, Snapshot};

use super::export::{Built, Export};
use super::ops::{Part, Parts, internal};
use super::sources::Images;
use crate::{BuildError, BuildRequest, Output};

/// The repository of such images; their tag is the build's identifier.
const REPOSITORY: &str = "build-engine/failed";

/// What a failed step left, and where it should go.
pub(super) struct Kept<'a> {
    pub(super) parts: &'a Arc<Parts>,
    pub(super) images: Arc<Images>,
    pub(super) lease: Arc<Lease>,
    pub(super) request: &'a BuildRequest,
}

impl Kept<'_> {
    /// Gives the tree that `vertex` left a name.
    pub(super) async fn name(
        self,
        vertex: &Vertex,
        tree: Snapshot,
        sink: &Arc<dyn EventSink>,
    ) -> Result<Reference, BuildError> {
        let Op::Exec(exec) = vertex.op() else { return Err(internal("only a run can leave a tree behind").into()) };
        let name = format!("{REPOSITORY}:{}", self.request.build_id);
        let name: Reference = name.parse().map_err(|error| BuildError::internal(format!("`{name}`: {error}")))?;
        let platform = vertex.platform().cloned().unwrap_or_else(Platform::host);
        let built = Built {
            image: config(exec, &platform),
            platform,
            parts: vec![Part::Layers(tree)],
            base: None,
            epoch: None,
        };
        let request = BuildRequest {
            tags: vec![name.clone()],
            outputs: vec![Output::image()],
            annotations: Vec::new(),
            ..self.request.clone()
        };
        let built = Arc::new(vec![built]);
        let export = Export { parts: self.parts, request: &request, built, images: self.images, lease: self.lease };
        export.run(sink).await?;
        Ok(name)
    }
}

fn config(exec: &ExecOp, platform: &Platform) -> ImageConfig {
    let mut image = ImageConfig::default();
    image.os.clone_from(&platform.os);
    image.architecture.clone_from(&platform.architecture);
    image.variant = platform.variant.clone().unwrap_or_default();
    image.config.env.clone_from(&exec.meta.env);
    image.config.user.clone_from(&exec.meta.user);
    image.config.working_dir.clone_from(&exec.meta.cwd);
    image.config.cmd = Some(vec!["/bin/sh".into()]);
    image
}
