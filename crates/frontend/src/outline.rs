//! Outlines: what of a target can be set from outside, that is its arguments, secrets and SSH agents.
//!
//! The converter notes what it comes across in each stage's [`Captured`]; the outline of a target is put together from its
//! own stage and all that it needs, the nearest first.
//!
//! Source: BuildKit `dockerfile2llb/outline.go`, `frontend/subrequests/outline`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use build_engine_dockerfile::{ArgPair, Span, doc_comment};

use crate::convert::Converter;
use crate::request::Question;
use crate::stage::StageId;

/// Where [`crate::outline()`] got to.
#[derive(Debug)]
pub enum Outlining {
    /// It needs these answers; they do not depend on one another.
    Needs(Vec<Question>),
    /// It is done.
    Done(Box<Outline>),
}

/// What can be set, in the order of the Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outline {
    /// The name of the target's stage.
    pub name: Option<String>,
    /// Its description, from the comment above it.
    pub description: Option<String>,
    /// Arguments that are declared in the stages that the target needs, and those that their bases are named with.
    pub args: Vec<OutlineArg>,
    /// Secrets.
    pub secrets: Vec<OutlineNeed>,
    /// SSH agents.
    pub ssh: Vec<OutlineNeed>,
}

/// An argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlineArg {
    /// Name.
    pub name: String,
    /// The value it has: given, or the default expanded.
    pub value: Option<String>,
    /// Its description, from the comment above it.
    pub description: Option<String>,
    /// The instruction that declares it.
    pub span: Span,
}

/// A secret or an SSH agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlineNeed {
    /// Its id.
    pub name: String,
    /// Whether the build fails without it.
    pub required: bool,
    /// The instruction that uses it first.
    pub span: Span,
}

/// What a stage, or the part before the first one, declares.
#[derive(Debug, Clone, Default)]
pub(crate) struct Captured {
    globals: Arc<BTreeMap<String, Declared>>,
    own: BTreeMap<String, Declared>,
    used: BTreeSet<String>,
    secrets: BTreeMap<String, (Span, bool)>,
    ssh: BTreeMap<String, (Span, bool)>,
}

#[derive(Debug, Clone)]
struct Declared {
    value: Option<String>,
    description: Option<String>,
    span: Span,
    /// Where its name is written, for the order within one instruction.
    at: usize,
    /// Variables that its default reads.
    reads: BTreeSet<String>,
}

impl Captured {
    /// Notes an argument that stands before the first stage.
    pub(crate) fn global(&mut self, pair: &ArgPair, span: Span, value: Option<String>, mut reads: BTreeSet<String>) {
        let globals = Arc::make_mut(&mut self.globals);
        let name = pair.key.value.clone();
        if reads.remove(&name)
            && let Some(before) = globals.get(&name)
        {
            reads.extend(before.reads.iter().cloned());
        }
        let at = pair.key.span.start;
        globals.insert(name, Declared { value, description: pair.comment.clone(), span, at, reads });
    }

    /// What a stage begins with whose `FROM` reads `names`.
    pub(crate) fn for_stage(&self, names: &BTreeSet<String>) -> Self {
        Self { globals: Arc::clone(&self.globals), used: names.clone(), ..Self::default() }
    }

    /// Notes that variables are read.
    pub(crate) fn read(&mut self, names: &BTreeSet<String>) {
        self.used.extend(names.iter().cloned());
    }

    /// Notes an argument of a stage; one that is inherited keeps the description of the global one.
    pub(crate) fn argument(&mut self, pair: &ArgPair, span: Span, value: Option<String>, is_inherited: bool) {
        let name = &pair.key.value;
        if !is_inherited {
            let (description, at) = (pair.comment.clone(), pair.key.span.start);
            let declared = Declared { value, description, span, at, reads: BTreeSet::new() };
            self.own.insert(name.clone(), declared);
        }
        self.used.insert(name.clone());
    }

    /// Notes a secret.
    pub(crate) fn secret(&mut self, name: String, span: Span, required: bool) {
        self.secrets.entry(name).or_insert((span, required));
    }

    /// Notes an SSH agent.
    pub(crate) fn ssh(&mut self, name: String, span: Span, required: bool) {
        self.ssh.entry(name).or_insert((span, required));
    }

    fn declared(&self, name: &str) -> Option<&Declared> {
        self.own.get(name).or_else(|| self.globals.get(name))
    }

    /// The arguments that are used, those included that the defaults of others read.
    fn all_used(&self) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        let mut open: Vec<&str> = self.used.iter().map(String::as_str).collect();
        while let Some(name) = open.pop() {
            if found.insert(name)
                && let Some(declared) = self.declared(name)
            {
                open.extend(declared.reads.iter().map(String::as_str));
            }
        }
        found
    }
}

impl Converter<'_> {
    /// The outline of a stage.
    pub(crate) fn outline(&self, target: StageId) -> Outline {
        let mut args: BTreeMap<&str, &Declared> = BTreeMap::new();
        let mut secrets: BTreeMap<&str, (Span, bool)> = BTreeMap::new();
        let mut ssh: BTreeMap<&str, (Span, bool)> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let mut open = vec![target];
        while let Some(id) = open.pop() {
            if !seen.insert(id) {
                continue;
            }
            let stage = &self.stages[id];
            let captured = &stage.captured;
            for name in captured.all_used() {
                if let Some(declared) = captured.declared(name) {
                    args.entry(name).or_insert(declared);
                }
            }
            for (name, need) in &captured.secrets {
                secrets.entry(name).or_insert(*need);
            }
            for (name, need) in &captured.ssh {
                ssh.entry(name).or_insert(*need);
            }
            // The stage it starts from goes before those that it only reads.
            open.extend(stage.needs.iter().rev().map(|(need, _)| *need));
            open.extend(stage.base);
        }
        let mut args: Vec<(&str, &Declared)> = args.into_iter().collect();
        args.sort_by_key(|(_, declared)| (declared.span.start, declared.at));
        let args: Vec<OutlineArg> = args
            .into_iter()
            .map(|(name, declared)| OutlineArg {
                name: name.to_owned(),
                value: declared.value.clone(),
                description: declared.description.clone(),
                span: declared.span,
            })
            .collect();
        let needs = |found: BTreeMap<&str, (Span, bool)>| {
            let mut needs: Vec<OutlineNeed> = found
                .into_iter()
                .map(|(name, (span, required))| OutlineNeed { name: name.to_owned(), required, span })
                .collect();
            needs.sort_by_key(|need| need.span.start);
            needs
        };
        let stage = &self.stages[target];
        let comments = self.comments_of(target);
        Outline {
            name: stage.name.clone(),
            description: stage.name.as_ref().and_then(|name| doc_comment(comments, name)),
            args,
            secrets: needs(secrets),
            ssh: needs(ssh),
        }
    }
}
