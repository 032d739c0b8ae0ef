//! The graph while it is being written.
//!
//! A [`graph::Vertex`] is immutable and knows its digest, but two things are only known when the last instruction has
//! been read: which paths of a local directory are used, and which inputs turn out to be equal. So instructions append
//! nodes to a [`Draft`], and [`Draft::finish`] turns what the result reaches into vertices.
//!
//! Invariant: a node's inputs stand before it.

use std::collections::BTreeMap;
use std::sync::Arc;

use build_engine_graph as graph;
use build_engine_oci::Platform;
use graph::{Edge, FileActionKind, Metadata, Op, Owner, UserRef, Vertex};

use crate::env::Env;

/// One output of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Output {
    node: usize,
    output: usize,
}

/// A file tree together with how processes are started in it (`llb.State`).
#[derive(Debug, Clone)]
pub(crate) struct State {
    /// The tree; `None` is the empty one.
    pub(crate) tree: Option<Output>,
    /// What it runs on, where that was said.
    pub(crate) platform: Option<Platform>,
    pub(crate) env: Env,
    pub(crate) dir: String,
    pub(crate) user: String,
    pub(crate) hostname: String,
    pub(crate) network: graph::Network,
}

impl State {
    /// The empty tree.
    pub(crate) fn scratch() -> Self {
        Self {
            tree: None,
            platform: None,
            env: Env::default(),
            dir: "/".into(),
            user: String::new(),
            hostname: String::new(),
            network: graph::Network::Default,
        }
    }

    /// A tree without further settings.
    pub(crate) fn of(tree: Output) -> Self {
        Self { tree: Some(tree), ..Self::scratch() }
    }
}

#[derive(Debug)]
struct Node {
    op: Op,
    inputs: Vec<Output>,
    platform: Option<Platform>,
    metadata: Metadata,
}

/// A graph to which nodes are appended.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    nodes: Vec<Node>,
}

impl Draft {
    /// Appends a node and returns its first output. `inputs` may hold equal outputs; they become one input. Its name is
    /// shown to everybody, so credentials in the URLs of it are hidden.
    pub(crate) fn add(
        &mut self,
        op: Op,
        inputs: Vec<Output>,
        platform: Option<Platform>,
        metadata: Metadata,
    ) -> Output {
        let mut metadata = metadata;
        let group = metadata.progress_group.iter_mut().map(|group| &mut group.name);
        for text in group.chain([&mut metadata.name]).chain(metadata.description.values_mut()) {
            *text = graph::redact_url(text);
        }
        self.nodes.push(Node { op, inputs, platform, metadata });
        Output { node: self.nodes.len() - 1, output: 0 }
    }

    /// Sets an attribute of a source that was appended earlier.
    pub(crate) fn set_attribute(&mut self, source: Output, name: &str, value: String) {
        if let Op::Source(source) = &mut self.nodes[source.node].op {
            source.attrs.insert(name.into(), value);
        }
    }

    /// Makes vertices of everything that `roots` reach; a root that is `None` stays so.
    pub(crate) fn finish(self, roots: &[Option<Output>]) -> Vec<Option<Edge>> {
        let mut needed = vec![false; self.nodes.len()];
        for root in roots.iter().flatten() {
            needed[root.node] = true;
        }
        for (index, node) in self.nodes.iter().enumerate().rev() {
            if needed[index] {
                for input in &node.inputs {
                    needed[input.node] = true;
                }
            }
        }
        let mut vertices: BTreeMap<usize, Arc<Vertex>> = BTreeMap::new();
        for (index, node) in self.nodes.into_iter().enumerate() {
            if !needed[index] {
                continue;
            }
            let edges = node
                .inputs
                .iter()
                .map(|input| Edge { vertex: Arc::clone(&vertices[&input.node]), output: input.output });
            let vertex = build(node.op, edges.collect(), node.platform, node.metadata);
            vertices.insert(index, vertex);
        }
        let edge = |root: &Output| Edge { vertex: Arc::clone(&vertices[&root.node]), output: root.output };
        roots.iter().map(|root| root.as_ref().map(edge)).collect()
    }
}

/// Makes a vertex; inputs that are equal become one, as in LLB (but for a merge, whose inputs are a list).
fn build(mut op: Op, edges: Vec<Edge>, platform: Option<Platform>, metadata: Metadata) -> Arc<Vertex> {
    if matches!(op, Op::Merge(_)) {
        return Vertex::new(op, edges, platform, metadata);
    }
    let before = edges.len();
    let mut inputs: Vec<Edge> = Vec::with_capacity(before);
    let places: Vec<usize> = edges
        .into_iter()
        .map(|edge| match inputs.iter().position(|known| *known == edge) {
            Some(place) => place,
            None => {
                inputs.push(edge);
                inputs.len() - 1
            }
        })
        .collect();
    if inputs.len() < before {
        let after = inputs.len();
        // Indexes beyond the inputs name the results of earlier actions.
        let moved = |index: usize| places.get(index).copied().unwrap_or_else(|| index - before + after);
        renumber(&mut op, &moved);
    }
    Vertex::new(op, inputs, platform, metadata)
}

fn renumber(op: &mut Op, moved: &dyn Fn(usize) -> usize) {
    match op {
        Op::Exec(exec) => {
            for mount in &mut exec.mounts {
                mount.input = mount.input.map(moved);
            }
        }
        Op::File(file) => {
            for action in &mut file.actions {
                action.input = action.input.map(moved);
                action.secondary_input = action.secondary_input.map(moved);
                match &mut action.kind {
                    FileActionKind::Copy(copy) => renumber_owner(copy.owner.as_mut(), moved),
                    FileActionKind::Mkfile { owner, .. }
                    | FileActionKind::Mkdir { owner, .. }
                    | FileActionKind::Symlink { owner, .. } => renumber_owner(owner.as_mut(), moved),
                    FileActionKind::Rm { .. } => {}
                }
            }
        }
        // Sources have no inputs; the frontend makes no diffs and no nested builds.
        Op::Source(_) | Op::Merge(_) | Op::Diff(_) | Op::Build(_) => {}
    }
}

fn renumber_owner(owner: Option<&mut Owner>, moved: &dyn Fn(usize) -> usize) {
    let Some(owner) = owner else { return };
    for reference in [&mut owner.user, &mut owner.group].into_iter().flatten() {
        if let UserRef::Name { input, .. } = reference {
            *input = input.map(moved);
        }
    }
}
