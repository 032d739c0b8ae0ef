//! What can be done for an image before the last step is done: which layers need no tree, and which can be compressed and
//! pushed while later steps run.

use std::collections::BTreeSet;
use std::sync::Arc;

use build_engine_frontend::Lowered;
use build_engine_graph::{Edge, Op, Vertex, walk};
use build_engine_oci::{Digest, Reference};
use build_engine_registry::Content;
use build_engine_store::layer::compress::Compression;
use build_engine_store::{Lease, Snapshot};
use futures::future::BoxFuture;

use super::export::{all_names, compression};
use super::ops::Parts;
use super::push::neighbours;
use super::remote::StoredBlob;
use crate::{BuildRequest, Output};

/// Layers with less than this are left to the end.
const WORTH_IT_BYTES: u64 = 1 << 20;

/// The blobs that a build will want.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// How layers are compressed; `None` where files of the result are wanted, or blobs with other times.
    compression: Option<Compression>,
    /// Vertices whose files nobody reads: their layers are written as blobs at once.
    streamed: BTreeSet<Digest>,
    /// Vertices whose layer becomes part of an image.
    kept: BTreeSet<Digest>,
    /// Where images are pushed to.
    targets: Vec<Reference>,
}

impl Ahead {
    pub(super) fn new(request: &BuildRequest, lowered: &Lowered) -> Self {
        let Some(compression) = wanted(request) else { return Self::default() };
        let roots = || lowered.results.iter().filter_map(|result| result.root.as_ref());
        let mut order: Vec<Arc<Vertex>> = Vec::new();
        walk(roots(), |vertex| order.push(Arc::clone(vertex)));
        // Consumers come after their inputs: from the end, all that need a vertex's files are known before it.
        let mut read: BTreeSet<&Digest> = BTreeSet::new();
        for vertex in order.iter().rev() {
            let reads = match vertex.op() {
                Op::Exec(_) | Op::File(_) | Op::Diff(_) | Op::Build(_) => true,
                // Layers on top of one another: only who reads the result reads them.
                Op::Merge(_) => read.contains(vertex.digest()),
                Op::Source(_) => false,
            };
            if reads {
                read.extend(vertex.inputs().iter().map(|edge| edge.vertex.digest()));
            }
        }
        let unread =
            order.iter().filter(|vertex| matches!(vertex.op(), Op::File(_)) && !read.contains(vertex.digest()));
        let streamed = unread.map(|vertex| vertex.digest().clone()).collect();
        let (mut kept, mut targets) = (BTreeSet::new(), Vec::new());
        if makes_blobs(request) {
            let mut stack: Vec<&Edge> = roots().collect();
            while let Some(edge) = stack.pop() {
                if kept.insert(edge.vertex.digest().clone()) {
                    stack.extend(below(&edge.vertex));
                }
            }
            for output in &request.outputs {
                if let Output::Image { names, push: true, .. } = output {
                    targets.extend(all_names(request, names));
                }
            }
        }
        Self { compression: Some(compression), streamed, kept, targets }
    }

    /// How to compress the layer of `vertex`, if nobody needs its tree.
    pub(super) fn streams(&self, vertex: &Vertex) -> Option<Compression> {
        // A blob that has more than the files of its layer is not one that the tree can be made of.
        self.compression.filter(|it| it.keeps_archive() && self.streamed.contains(vertex.digest()))
    }

    /// The work that the layer which `vertex` has made on top of others gives: compressing it, and pushing it. What goes
    /// wrong is met again, and told, when the image is exported; what is done by then is found there.
    pub(super) fn work(
        &self,
        vertex: &Vertex,
        output: &Snapshot,
        parts: &Arc<Parts>,
        lease: &Arc<Lease>,
    ) -> Option<BoxFuture<'static, ()>> {
        let compression = self.compression.filter(|_| self.kept.contains(vertex.digest()))?;
        let layer = output.layers().last()?.clone();
        // A small one is compressed in no time at the end, and would only be in the way of the next step.
        if parts.store.layer_info(&layer).is_ok_and(|info| info.size_bytes < WORTH_IT_BYTES) {
            return None;
        }
        let (parts, lease, targets) = (Arc::clone(parts), Arc::clone(lease), self.targets.clone());
        Some(Box::pin(async move {
            let store = parts.store.clone();
            let made = tokio::task::spawn_blocking(move || {
                let blob = store.layer_blob(&layer, compression, None)?;
                Ok::<_, build_engine_store::Error>((lease.hold_blob(&blob.descriptor.digest)?, blob.descriptor))
            });
            let Ok(Ok((true, descriptor))) = made.await else { return };
            for target in targets {
                let content: Arc<dyn Content> =
                    Arc::new(StoredBlob { store: parts.store.clone(), descriptor: descriptor.clone() });
                let Ok(others) = neighbours(&parts.store, &target, &descriptor).await else { return };
                let pushed = parts.remote.client().push_blob(&target, &descriptor, &others, content, &|_| {}).await;
                if let Err(error) = pushed {
                    tracing::debug!(%error, "a layer is pushed when the image is");
                    return;
                }
            }
        }))
    }
}

/// The edges whose layers `vertex` builds on.
fn below(vertex: &Vertex) -> Vec<&Edge> {
    let inputs: Vec<usize> = match vertex.op() {
        Op::Exec(exec) => {
            exec.mounts.iter().filter(|mount| mount.dest == "/").filter_map(|mount| mount.input).collect()
        }
        Op::File(file) => file.actions.iter().filter_map(|action| action.input).collect(),
        Op::Merge(_) => (0..vertex.inputs().len()).collect(),
        Op::Source(_) | Op::Diff(_) | Op::Build(_) => Vec::new(),
    };
    inputs.into_iter().filter_map(|input| vertex.inputs().get(input)).collect()
}

/// Whether an output is made of blobs.
fn makes_blobs(request: &BuildRequest) -> bool {
    let is_image = |output: &Output| !matches!(output, Output::CacheOnly | Output::Tar { .. } | Output::Local { .. });
    if request.outputs.is_empty() { !request.tags.is_empty() } else { request.outputs.iter().any(is_image) }
}

/// The compression of the first output that has one, if all are made of blobs.
fn wanted(request: &BuildRequest) -> Option<Compression> {
    if !request.fast_paths {
        return None;
    }
    let mut first = None;
    for output in &request.outputs {
        let options = match output {
            Output::Image { options, .. }
            | Output::Load { options, .. }
            | Output::Oci { options, .. }
            | Output::Docker { options, .. } => options,
            Output::CacheOnly => continue,
            Output::Tar { .. } | Output::Local { .. } => return None,
        };
        // The tree has the times as they are, so it cannot come from a blob that has others.
        if options.rewrite_timestamp {
            return None;
        }
        first.get_or_insert(compression(options.compression));
    }
    Some(first.unwrap_or_else(|| compression(crate::ImageOptions::default().compression)))
}
