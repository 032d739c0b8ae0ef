//! Build contexts that are fetched: repositories, files of the web, archives.
//!
//! Source: BuildKit `frontend/dockerui/context.go`. Unlike a directory, such a context has no ignore file.

use std::collections::BTreeMap;

use build_engine_graph::{Edge, FileAction, FileActionKind, FileCopy, FileOp, Metadata, Op, SourceOp};

use crate::draft::{Draft, Output};
use crate::git::{self, GitRef};
use crate::{Request, args};

/// The name of the file that a context is fetched as.
const CONTEXT_FILE: &str = "context";

/// What the build context is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum MainContext {
    /// Local files, or none.
    #[default]
    Local,
    /// A repository, by its address with reference, folder and query.
    Git(String),
    /// An archive, by its URL: what is in it.
    Archive(String),
    /// A single file, by its URL; it is named `context`.
    File(String),
}

impl MainContext {
    /// Reads an address that people gave as build context; a URL that is no repository counts as an archive.
    pub fn parse(text: &str) -> Option<Self> {
        if text.starts_with("./") || text.starts_with("../") {
            return None;
        }
        if is_repository(text) {
            return Some(Self::Git(text.to_owned()));
        }
        let is_url = text.starts_with("http://") || text.starts_with("https://");
        is_url.then(|| Self::Archive(text.to_owned()))
    }

    /// The source that it is fetched with.
    ///
    /// # Errors
    /// What is wrong with the address.
    pub fn source(&self, request: &Request<'_>) -> Result<Option<SourceOp>, String> {
        Ok(match self {
            Self::Local => None,
            Self::Git(text) => Some(repository(text, request)?.source()),
            Self::Archive(url) | Self::File(url) => Some(SourceOp {
                identifier: url.clone(),
                attrs: [("http.filename".to_owned(), CONTEXT_FILE.to_owned())].into(),
            }),
        })
    }

    /// Whether the agent of the user is needed to fetch it.
    pub fn needs_agent(&self) -> bool {
        matches!(self, Self::Git(text) if git::parse(text).is_ok_and(|git| git.is_some_and(|git| git.is_ssh())))
    }
}

/// Whether `text` is the address of a repository, well formed or not.
fn is_repository(text: &str) -> bool {
    text.starts_with(GITHUB) || !matches!(git::parse(text), Ok(None))
}

/// Such an address may leave its scheme out.
const GITHUB: &str = "github.com/";

fn repository(text: &str, request: &Request<'_>) -> Result<GitRef, String> {
    let parsed = match text.starts_with(GITHUB) {
        true => git::parse(&format!("git://{text}")),
        false => git::parse(text),
    };
    let mut git = parsed?.ok_or_else(|| "it is not the address of a repository".to_owned())?;
    if let Some(bare) = git.remote.strip_prefix("git://").filter(|_| text.starts_with(GITHUB)) {
        git.remote = bare.to_owned();
    }
    let argument = |name: &str| request.build_args.get(name).map(String::as_str).unwrap_or_default();
    if matches!(argument("BUILDKIT_CONTEXT_KEEP_GIT_DIR"), "1" | "t" | "T" | "true" | "TRUE" | "True") {
        git.keep_git_dir = Some(true);
    }
    if !argument(args::EPOCH).is_empty() || request.source_date_epoch.is_some() {
        git.commit_times();
    }
    Ok(git)
}

/// The context alone, as a graph: its files are wanted before the Dockerfile, which is one of them, is known.
///
/// # Errors
/// What is wrong with the address.
pub fn context_edge(request: &Request<'_>, context: &MainContext) -> Result<Option<Edge>, String> {
    let mut draft = Draft::default();
    let Some(tree) = add(&mut draft, context, request)? else { return Ok(None) };
    Ok(draft.finish(&[Some(tree)]).into_iter().next().flatten())
}

/// Adds the vertices of a context that is fetched.
pub(crate) fn add(draft: &mut Draft, context: &MainContext, request: &Request<'_>) -> Result<Option<Output>, String> {
    let Some(source) = context.source(request)? else { return Ok(None) };
    let named = |name: String| Metadata { name: format!("[internal] {name}"), ..Metadata::default() };
    let metadata = match context {
        MainContext::Git(text) => named(format!("load git source {}", git::without_user(text))),
        _ => named("load remote build context".into()),
    };
    let fetched = draft.add(Op::Source(source), Vec::new(), None, metadata);
    if !matches!(context, MainContext::Archive(_)) {
        return Ok(Some(fetched));
    }
    let copy =
        FileCopy { src: format!("/{CONTEXT_FILE}"), dest: "/".into(), attempt_unpack: true, ..FileCopy::default() };
    let action =
        FileAction { input: None, secondary_input: Some(0), output: Some(0), kind: FileActionKind::Copy(copy) };
    let metadata = Metadata { name: "copy /context /".into(), ..Metadata::default() };
    Ok(Some(draft.add(Op::File(FileOp { actions: vec![action] }), vec![fetched], None, metadata)))
}

/// The attributes of a file that is fetched.
pub(crate) fn file_attributes(name: &str, checksum: Option<String>) -> BTreeMap<String, String> {
    let mut attrs = BTreeMap::from([("http.filename".to_owned(), name.to_owned())]);
    attrs.extend(checksum.map(|checksum| ("http.checksum".to_owned(), checksum)));
    attrs
}
