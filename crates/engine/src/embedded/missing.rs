//! A source of `COPY` or `ADD` that is not there: was it left out, is it spelt differently, is it somewhere else?
//!
//! The operation that failed ([`super::files`]) only says which path of which tree it looked for ([`Missing`]); here that
//! becomes a report that points at the word in the Dockerfile. All of it is advice: whatever cannot be found out is left out.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use build_engine_dockerfile::{Dockerfile, Instruction, InstructionKind, Span, Spanned};
use build_engine_graph::{FileActionKind, FileCopy, Op, Vertex, walk};
use build_engine_oci::Digest;
use build_engine_rootfs::{Kind, Tree};
use build_engine_store::{Snapshot, Store};

use super::ops::Output;
use crate::context::{IgnoreFile, Likeness, nearest};
use crate::{BuildRequest, Report};

/// What was looked for, and where.
#[derive(Clone)]
pub(super) struct Missing {
    /// The path that is not there.
    pub(super) path: PathBuf,
    /// The path as the operation asks for it.
    pub(super) asked: String,
    /// Where it was looked for.
    pub(super) source: Output,
}

impl fmt::Debug for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Missing").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What is known about the build in which something is missing.
pub(super) struct Known<'a> {
    pub(super) store: &'a Store,
    pub(super) request: &'a BuildRequest,
    /// The trees that this build has made or found, by vertex.
    pub(super) trees: &'a BTreeMap<Digest, Snapshot>,
}

/// Makes the report of a missing source say where the path is, or why it is not there. `vertex` is what failed, `roots` are the
/// build's results.
pub(super) fn explain(
    mut report: Report,
    missing: &Missing,
    vertex: &Vertex,
    roots: &[build_engine_graph::Edge],
    known: &Known<'_>,
) -> Report {
    let (parsed, _) = build_engine_dockerfile::parse(&known.request.dockerfile);
    let instruction = instruction_of(vertex, &parsed);
    let word = instruction.and_then(|instruction| word(instruction, vertex, missing));
    if let (Some(word), Some(place)) = (word, &mut report.place) {
        (place.start, place.end) = (word.span.start, word.span.end);
    }
    let path = missing.path.to_string_lossy().trim_start_matches('/').to_owned();
    let stages = stages(vertex, &parsed, roots, known);
    match &missing.source {
        Output::Context(context) => in_context(&mut report, &context.path, &path, word, &stages, known),
        Output::Snapshot(snapshot) => {
            let from = instruction.and_then(from);
            if let Some(from) = from {
                report.message = format!("`/{path}` does not exist in `{from}`");
            }
            let mounted = known.store.mount(snapshot, None).ok();
            if let Some(target) = mounted.as_ref().and_then(|mounted| dangling(mounted.tree(), &path)) {
                report.hint = Some(format!("it is a symbolic link to `{target}`, which is not there"));
                return report;
            }
            let near = mounted.as_ref().and_then(|mounted| nearest(mounted.tree(), &path));
            let in_context = known.request.context.as_deref().filter(|context| from.is_some() && is_in(context, &path));
            report.hint = match (near, in_context, elsewhere(&stages, from, &path, known.store)) {
                (Some(near), ..) if near.likeness != Likeness::Elsewhere => {
                    Some(did_you_mean(&near.path, near.likeness))
                }
                (_, _, Some(stage)) => Some(format!("stage `{stage}` has it: `--from={stage}`")),
                (_, Some(_), None) => Some("the build context has it: leave out `--from`".into()),
                (Some(near), None, None) => Some(did_you_mean(&near.path, near.likeness)),
                (None, None, None) => report.hint,
            };
        }
        Output::Lazy(_) => {}
    }
    report
}

fn did_you_mean(path: &str, likeness: Likeness) -> String {
    match likeness {
        Likeness::Case => format!("did you mean `{path}`? Upper and lower case are different"),
        Likeness::Spelling => format!("did you mean `{path}`?"),
        Likeness::Elsewhere => format!("did you mean `{path}`, in another directory?"),
    }
}

fn in_context(
    report: &mut Report,
    root: &Path,
    path: &str,
    word: Option<&Spanned<String>>,
    stages: &BTreeMap<String, Snapshot>,
    known: &Known<'_>,
) {
    let request = known.request;
    let is_main = request.context.as_deref() == Some(root);
    let dockerfile = request.dockerfile_path.as_deref().filter(|_| is_main);
    let ignore = IgnoreFile::find(root, dockerfile).unwrap_or_default();
    let Ok(tree) = Tree::open(root) else { return };
    let left_out = |path: &str| ignore.decides(path).filter(|line| !line.keeps);
    let name = |file: &str| {
        let file = Path::new(file);
        file.strip_prefix(root).unwrap_or(file).display().to_string()
    };
    let resolved = tree.canonical(path, true).ok().map(|path| path.to_string_lossy().into_owned());
    let there = resolved.filter(|path| matches!(tree.find(path, false), Ok(Some(_))));
    if let Some(line) = there.as_deref().and_then(left_out) {
        let what = if line.matched == path { "it".into() } else { format!("`{}`", line.matched) };
        report.message = format!(
            "`/{path}` is not in the build context: line {} of `{}`, `{}`, leaves out {what}",
            line.line,
            name(&line.file),
            line.text
        );
        report.hint = Some(format!("take it back in with a line `!{path}` below, or change that line"));
        return;
    }
    if let Some(target) = dangling(&tree, path) {
        report.hint = Some(format!("it is a symbolic link to `{target}`, which the context does not have"));
        return;
    }
    let written = word.map_or("", |word| word.value.as_str());
    if written.split('/').any(|part| part == "..") && root.join(written.trim_start_matches('/')).exists() {
        report.hint = Some(format!(
            "`..` does not lead out of the context, which is `{}`: build with a directory that holds both",
            root.display()
        ));
        return;
    }
    if let Ok(inside) = Path::new("/").join(path).strip_prefix(root) {
        report.hint = Some(format!("paths start at the context: write `{}`", inside.display()));
        return;
    }
    let near = nearest(&tree, path);
    let stage = elsewhere(stages, None, path, known.store);
    report.hint = match (near, stage) {
        (Some(near), stage) if near.likeness != Likeness::Elsewhere || stage.is_none() => {
            let mut hint = did_you_mean(&near.path, near.likeness);
            if let Some(line) = left_out(&near.path) {
                hint.push_str(&format!(
                    " (line {} of `{}`, `{}`, leaves it out)",
                    line.line,
                    name(&line.file),
                    line.text
                ));
            }
            Some(hint)
        }
        (_, Some(stage)) => Some(format!("stage `{stage}` has it: `--from={stage}`")),
        (_, None) => report.hint.take(),
    };
}

/// Where a symbolic link leads that ends nowhere in its tree.
fn dangling(tree: &Tree, path: &str) -> Option<String> {
    let found = tree.find(path, false).ok()??;
    if found.kind != Kind::Symlink {
        return None;
    }
    Some(tree.read_link(path).ok()?.to_string_lossy().into_owned())
}

fn is_in(context: &Path, path: &str) -> bool {
    Tree::open(context).is_ok_and(|tree| matches!(tree.find(path, true), Ok(Some(_))))
}

/// The instruction that `vertex` was made of.
fn instruction_of<'a>(vertex: &Vertex, parsed: &'a Dockerfile) -> Option<&'a Instruction> {
    let span = vertex.metadata().spans.first()?;
    let same = |instruction: &&Instruction| instruction.span == Span { start: span.bytes.start, end: span.bytes.end };
    parsed.stages.iter().flat_map(|stage| &stage.instructions).find(same)
}

/// What `--from` says.
fn from(instruction: &Instruction) -> Option<&str> {
    match &instruction.kind {
        InstructionKind::Copy(copy) => copy.from.as_ref().map(|from| from.value.as_str()),
        _ => None,
    }
}

/// The source that asks for the path: sources and the actions of the operation have one order.
fn word<'a>(instruction: &'a Instruction, vertex: &Vertex, missing: &Missing) -> Option<&'a Spanned<String>> {
    let sources = match &instruction.kind {
        InstructionKind::Copy(copy) => &copy.sources,
        InstructionKind::Add(add) => &add.sources,
        _ => return None,
    };
    let Op::File(file) = vertex.op() else { return None };
    let find = |wanted: &dyn Fn(&FileCopy) -> bool| {
        file.actions.iter().position(|action| matches!(&action.kind, FileActionKind::Copy(copy) if wanted(copy)))
    };
    // With `--parents`, several sources start at one directory and differ in what they require.
    let required = |copy: &FileCopy| copy.required_paths.iter().any(|path| Path::new(path) == missing.path);
    let index = find(&required).or_else(|| find(&|copy| copy.src == missing.asked))?;
    sources.get(index)
}

/// The trees of the stages before the one that `vertex` belongs to, as far as they were made, by the name or number that
/// `--from` takes.
fn stages(
    vertex: &Vertex,
    parsed: &Dockerfile,
    roots: &[build_engine_graph::Edge],
    known: &Known<'_>,
) -> BTreeMap<String, Snapshot> {
    let start = |vertex: &Vertex| vertex.metadata().spans.first().map(|span| span.bytes.start);
    let Some(here) = start(vertex) else { return BTreeMap::new() };
    let own = parsed.stages.iter().rposition(|stage| stage.span.start <= here);
    let mut last: BTreeMap<usize, (usize, Snapshot)> = BTreeMap::new();
    walk(roots, |vertex| {
        let (Some(at), Some(tree)) = (start(vertex), known.trees.get(vertex.digest())) else { return };
        let Some(stage) = parsed.stages.iter().rposition(|stage| stage.span.start <= at) else { return };
        let newer = last.get(&stage).is_none_or(|(known, _)| *known < at);
        if own.is_some_and(|own| stage < own) && newer {
            last.insert(stage, (at, tree.clone()));
        }
    });
    let name = |index: usize| match &parsed.stages[index].name {
        Some(name) => name.value.clone(),
        None => index.to_string(),
    };
    last.into_iter().map(|(index, (_, tree))| (name(index), tree)).collect()
}

/// A stage that has `path`.
fn elsewhere(stages: &BTreeMap<String, Snapshot>, but: Option<&str>, path: &str, store: &Store) -> Option<String> {
    let has = |snapshot: &Snapshot| {
        let mounted = store.mount(snapshot, None);
        mounted.is_ok_and(|mounted| matches!(mounted.tree().find(path, true), Ok(Some(_))))
    };
    let mut others = stages.iter().filter(|(name, _)| Some(name.as_str()) != but);
    others.find(|(_, snapshot)| has(snapshot)).map(|(name, _)| name.clone())
}
