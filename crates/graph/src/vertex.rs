//! Vertices and edges.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use build_engine_oci::{Digest, Platform};

use crate::{Op, OutputIndex, llb};

/// A node of the graph: an operation, the edges it consumes, and what is said about it.
///
/// Made by [`Vertex::new`], which computes the wire bytes and the digest; immutable afterwards.
pub struct Vertex {
    op: Op,
    inputs: Vec<Edge>,
    platform: Option<Platform>,
    metadata: Metadata,
    wire: Vec<u8>,
    digest: Digest,
}

/// One output of a vertex.
#[derive(Clone)]
pub struct Edge {
    /// The vertex.
    pub vertex: Arc<Vertex>,
    /// Which of its outputs.
    pub output: OutputIndex,
}

/// What is said about a vertex without being part of its digest (`pb.OpMetadata` and the source map).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// The name shown to people (`llb.customname`), for example `[build 2/5] RUN make`.
    pub name: String,
    /// Other descriptions, in wire form.
    pub description: BTreeMap<String, String>,
    /// Whether a cached result must not be used (`--no-cache`).
    pub ignore_cache: bool,
    /// The group that progress displays fold the vertex into.
    pub progress_group: Option<ProgressGroup>,
    /// Where it stands in the sources.
    pub spans: Vec<SourceSpan>,
}

/// A group of vertices that is shown as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgressGroup {
    /// Identity.
    pub id: String,
    /// Name shown.
    pub name: String,
    /// Whether a group with one visible member is not shown as a group.
    pub weak: bool,
}

/// A source text that vertices point into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Name shown, for example `Dockerfile`.
    pub name: String,
    /// The text.
    pub text: String,
}

/// Lines of a source file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceSpan {
    /// The file.
    pub file: Arc<SourceFile>,
    /// Bytes of it.
    pub bytes: Range<usize>,
    /// First line, from 1.
    pub start_line: usize,
    /// Last line, inclusive.
    pub end_line: usize,
}

impl Vertex {
    /// Makes a vertex. `inputs` are indexed by the op's [`crate::InputIndex`]es.
    pub fn new(op: Op, inputs: Vec<Edge>, platform: Option<Platform>, metadata: Metadata) -> Arc<Self> {
        let wire = llb::encode_op(&op, &inputs, platform.as_ref());
        let digest = Digest::sha256(&wire);
        Arc::new(Self { op, inputs, platform, metadata, wire, digest })
    }

    /// Makes a vertex of what was decoded from `wire`, whose hash is `digest`.
    pub(crate) fn from_wire(
        op: Op,
        inputs: Vec<Edge>,
        platform: Option<Platform>,
        metadata: Metadata,
        wire: Vec<u8>,
        digest: Digest,
    ) -> Arc<Self> {
        Arc::new(Self { op, inputs, platform, metadata, wire, digest })
    }

    /// The operation.
    pub fn op(&self) -> &Op {
        &self.op
    }

    /// The edges consumed.
    pub fn inputs(&self) -> &[Edge] {
        &self.inputs
    }

    /// The platform it runs for, where that matters.
    pub fn platform(&self) -> Option<&Platform> {
        self.platform.as_ref()
    }

    /// Names, spans, flags.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The bytes of `pb.Op`.
    pub fn wire(&self) -> &[u8] {
        &self.wire
    }

    /// SHA-256 of [`Vertex::wire`].
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The name shown to people; the operation in a few words where none was given.
    pub fn name(&self) -> String {
        if !self.metadata.name.is_empty() {
            return self.metadata.name.clone();
        }
        match &self.op {
            Op::Source(source) => source.identifier.clone(),
            Op::Exec(exec) => exec.meta.args.join(" "),
            Op::File(_) => "file operation".into(),
            Op::Merge(_) => "merge".into(),
            Op::Diff(_) => "diff".into(),
            Op::Build(_) => "build".into(),
        }
    }

    /// The first output.
    pub fn output(self: &Arc<Self>) -> Edge {
        Edge { vertex: Arc::clone(self), output: 0 }
    }
}

impl Drop for Vertex {
    /// Takes the graph below apart without recursion: a chain of ten thousand vertices would overflow the stack.
    fn drop(&mut self) {
        let mut orphans = std::mem::take(&mut self.inputs);
        while let Some(edge) = orphans.pop() {
            if let Some(mut vertex) = Arc::into_inner(edge.vertex) {
                orphans.append(&mut vertex.inputs);
            }
        }
    }
}

impl fmt::Debug for Vertex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vertex").field("name", &self.name()).field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl fmt::Debug for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.vertex.digest, self.output)
    }
}

impl PartialEq for Edge {
    fn eq(&self, other: &Self) -> bool {
        self.output == other.output && self.vertex.digest == other.vertex.digest
    }
}

impl Eq for Edge {}

/// Visits every vertex below `roots` once, inputs before the vertices that consume them.
pub fn walk<'a>(roots: impl IntoIterator<Item = &'a Edge>, mut visit: impl FnMut(&'a Arc<Vertex>)) {
    enum Step<'a> {
        Enter(&'a Arc<Vertex>),
        Leave(&'a Arc<Vertex>),
    }
    let mut seen = HashSet::new();
    // An explicit stack: a Dockerfile with ten thousand instructions is a chain ten thousand vertices deep.
    let mut stack: Vec<Step<'a>> = roots.into_iter().map(|edge| Step::Enter(&edge.vertex)).collect();
    stack.reverse();
    while let Some(step) = stack.pop() {
        match step {
            Step::Enter(vertex) => {
                if seen.insert(vertex.digest()) {
                    stack.push(Step::Leave(vertex));
                    stack.extend(vertex.inputs.iter().rev().map(|edge| Step::Enter(&edge.vertex)));
                }
            }
            Step::Leave(vertex) => visit(vertex),
        }
    }
}
