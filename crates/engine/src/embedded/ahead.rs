//! What can be said of an image's blobs before the last step is done: which layers need no tree, and how they are
//! compressed.

use std::collections::BTreeSet;
use std::sync::Arc;

use build_engine_graph::{Op, Vertex, walk};
use build_engine_oci::Digest;
use build_engine_store::layer::compress::Compression;

use super::export::compression;
use crate::{BuildRequest, Output};
use build_engine_frontend::Lowered;

/// The blobs that a build will want.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// How the layers are compressed; `None` where no output is made of blobs, or their times are rewritten.
    pub(super) compression: Option<Compression>,
    /// Vertices whose files nobody reads: their layers are written as blobs at once.
    streamed: BTreeSet<Digest>,
}

impl Ahead {
    pub(super) fn new(request: &BuildRequest, lowered: &Lowered) -> Self {
        let Some(compression) = wanted(request) else { return Self::default() };
        let mut order: Vec<Arc<Vertex>> = Vec::new();
        walk(lowered.results.iter().filter_map(|result| result.root.as_ref()), |vertex| {
            order.push(Arc::clone(vertex));
        });
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
        Self { compression: Some(compression), streamed }
    }

    /// How to compress the layer of `vertex`, if nobody needs its tree.
    pub(super) fn streams(&self, vertex: &Vertex) -> Option<Compression> {
        self.compression.filter(|_| self.streamed.contains(vertex.digest()))
    }
}

/// The compression that the outputs agree on: of the first that has one, if all are made of blobs.
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
