//! `COPY` and `ADD`.

use build_engine_dockerfile::expand::Lex;
use build_engine_dockerfile::{Add, Copy, Diagnostic, Heredoc, Span, Spanned};
use build_engine_graph::{
    FileAction, FileActionKind, FileCopy, FileOp, MergeOp, Metadata, Op, Owner, ProgressGroup, SourceOp, UserRef,
};
use build_engine_oci::Digest;

use crate::chmod::{self, Mode};
use crate::convert::{COMMAND, Converter, Fallible, expansion_error};
use crate::draft::Output;
use crate::git;
use crate::instructions::Layer;
use crate::name;
use crate::paths;
use crate::stage::{Command, StageId};

/// The instruction.
pub(crate) enum CopyKind<'i> {
    Add(&'i Add),
    Copy(&'i Copy),
}

/// What `ADD` and `COPY` say, expanded.
struct Request<'i> {
    is_add: bool,
    sources: Vec<Spanned<String>>,
    heredocs: Vec<(&'i Heredoc, String)>,
    dest: String,
    chown: String,
    chmod: String,
    checksum: String,
    exclude: Vec<String>,
    link: bool,
    parents: bool,
    keep_git_dir: Option<bool>,
    unpack: Option<bool>,
}

/// File actions under construction: each works on the result of the one before.
struct Actions {
    base: Option<Output>,
    inputs: Vec<Output>,
    kinds: Vec<(Option<usize>, FileActionKind)>,
}

impl Actions {
    fn on(base: Option<Output>) -> Self {
        Self { base, inputs: base.into_iter().collect(), kinds: Vec::new() }
    }

    fn copy(&mut self, source: Option<Output>, copy: FileCopy) {
        let index = source.map(|source| {
            self.inputs.iter().position(|known| *known == source).unwrap_or_else(|| {
                self.inputs.push(source);
                self.inputs.len() - 1
            })
        });
        self.kinds.push((index, FileActionKind::Copy(copy)));
    }

    fn finish(self) -> (Op, Vec<Output>) {
        let (inputs, last) = (self.inputs.len(), self.kinds.len().saturating_sub(1));
        let action = |(number, (secondary_input, kind)): (usize, (Option<usize>, FileActionKind))| FileAction {
            input: if number == 0 { self.base.map(|_| 0) } else { Some(inputs + number - 1) },
            secondary_input,
            output: (number == last).then_some(0),
            kind,
        };
        let actions = self.kinds.into_iter().enumerate().map(action).collect();
        (Op::File(FileOp { actions }), self.inputs)
    }
}

impl<'a> Converter<'a> {
    /// Lowers `COPY` or `ADD`.
    pub(crate) fn copy(&mut self, id: StageId, command: &Command<'a>, kind: &CopyKind<'_>) -> Fallible<()> {
        let span = command.instruction.span;
        let from = command.sources.first().copied().flatten();
        if let (CopyKind::Copy(copy), Some(source)) = (kind, from)
            && !self.stages[source].dispatched
        {
            let place = copy.from.as_ref().map_or(span, |from| command.at(from.span));
            let message = format!("cannot copy from stage `{}`: it is defined after this one", self.label(source));
            return Err(Diagnostic::error("stage-order", message, place).with_hint("move it before this stage").into());
        }
        let request = self.expand_copy(id, command, kind)?;
        let written = request.dest.as_str();
        let written = if matches!(written, "" | ".") { "./" } else { written };
        let dest = paths::clean_with_slash(&paths::absolute_with_slash(&self.stages[id].state.dir, written));
        let mode = match request.chmod.as_str() {
            "" => None,
            text => Some(chmod::parse(text).map_err(|message| Diagnostic::error("invalid-chmod", message, span))?),
        };
        let name = self.next_name(id, command.instruction.text.trim());
        // A linked copy stands on an empty tree, so that it is the same whatever it is put upon.
        let link = request.link && request.chmod.is_empty();
        let below = self.stages[id].state.tree;
        let base = if link { None } else { below };
        let common = FileCopy {
            dest,
            owner: (!request.chown.is_empty()).then(|| owner(&request.chown, base.map(|_| 0))),
            mode: match &mode {
                Some(Mode::Bits(bits)) => Some(*bits),
                Some(Mode::Symbolic(_)) | None => None,
            },
            mode_str: match &mode {
                Some(Mode::Symbolic(text)) => text.clone(),
                Some(Mode::Bits(_)) | None => String::new(),
            },
            create_dest_path: true,
            exclude_patterns: request.exclude.clone(),
            ..FileCopy::default()
        };
        let mut actions = Actions::on(base);
        for source in &request.sources {
            if let Some((tree, src)) = self.remote(&request, source, &name, span)? {
                let attempt_unpack = request.unpack.unwrap_or(false) && !is_git(source);
                actions.copy(Some(tree), FileCopy { src, attempt_unpack, ..common.clone() });
                continue;
            }
            if from.is_none() {
                self.check_copied(request.is_add, source);
            }
            let state = match from {
                Some(source) => self.stages[source].state.clone(),
                None => self.main_context(),
            };
            actions.copy(state.tree, local_copy(&request, source, &common));
        }
        for (heredoc, content) in &request.heredocs {
            let tree = self.inline_file(heredoc, content.clone(), 0o644, span);
            let src = paths::join("/", &heredoc.name);
            actions.copy(Some(tree), FileCopy { src, ..common.clone() });
        }
        self.put_copy(id, command, actions, below, link, &name);
        self.remember_copy(id, &request, from);
        Ok(())
    }

    fn expand_copy<'i>(&self, id: StageId, command: &Command<'_>, kind: &CopyKind<'i>) -> Fallible<Request<'i>> {
        let span = command.instruction.span;
        let word = |word: &Spanned<String>| self.expand(id, word, command.at(word.span));
        let optional = |text: &Option<Spanned<String>>| text.as_ref().map_or(Ok(String::new()), word);
        let sources = |list: &[Spanned<String>]| -> Fallible<Vec<_>> {
            list.iter().map(|source| Ok(Spanned::new(word(source)?, command.at(source.span)))).collect()
        };
        let heredocs = |list: &'i [Heredoc]| -> Fallible<Vec<_>> {
            list.iter().map(|heredoc| Ok((heredoc, self.heredoc_content(id, heredoc, span)?))).collect()
        };
        // Patterns to exclude are taken as they are: BuildKit expands no variables in them.
        let plain = |list: &[Spanned<String>]| list.iter().map(|text| text.value.clone()).collect();
        let request = match *kind {
            CopyKind::Add(add) => Request {
                is_add: true,
                chown: optional(&add.chown)?,
                chmod: optional(&add.chmod)?,
                checksum: optional(&add.checksum)?,
                sources: sources(&add.sources)?,
                heredocs: heredocs(&add.heredocs)?,
                dest: word(&add.dest)?,
                exclude: plain(&add.exclude),
                link: add.link,
                parents: false,
                keep_git_dir: add.keep_git_dir,
                unpack: add.unpack,
            },
            CopyKind::Copy(copy) => Request {
                is_add: false,
                chown: optional(&copy.chown)?,
                chmod: optional(&copy.chmod)?,
                checksum: String::new(),
                sources: sources(&copy.sources)?,
                heredocs: heredocs(&copy.heredocs)?,
                dest: word(&copy.dest)?,
                exclude: plain(&copy.exclude),
                link: copy.link,
                parents: copy.parents,
                keep_git_dir: None,
                unpack: None,
            },
        };
        if !request.checksum.is_empty() {
            let place = match kind {
                CopyKind::Add(Add { checksum: Some(checksum), .. }) => command.at(checksum.span),
                CopyKind::Add(_) | CopyKind::Copy(_) => span,
            };
            let problem = match &request.sources[..] {
                [source] if is_http(source) || is_git(source) => None,
                [_] => Some("--checksum needs an http, https or git source"),
                _ => Some("--checksum cannot be used with several sources"),
            };
            if let Some(problem) = problem {
                return Err(Diagnostic::error("checksum", problem, place).into());
            }
        }
        Ok(request)
    }

    /// The text of a heredoc as the file gets it.
    fn heredoc_content(&self, id: StageId, heredoc: &Heredoc, span: Span) -> Fallible<String> {
        let content = body(heredoc);
        if !heredoc.expand {
            return Ok(content);
        }
        // In a document a backslash escapes whatever the Dockerfile's escape character is, and quotes are text.
        let lex = Lex { skip_quotes: true, ..Lex::new('\\') };
        match lex.word(&content, &self.stages[id].state.env) {
            Ok(expanded) => {
                self.check_variables(id, &expanded.unmatched);
                Ok(expanded.text)
            }
            Err(error) => Err(expansion_error(&error, span).into()),
        }
    }

    /// A tree that holds one file given inline.
    pub(crate) fn inline_file(&mut self, heredoc: &Heredoc, content: String, mode: u32, span: Span) -> Output {
        let path = paths::join("/", &heredoc.name);
        let kind = FileActionKind::Mkfile { path, mode, data: content.into_bytes(), owner: None, timestamp: None };
        let action = FileAction { input: None, secondary_input: None, output: Some(0), kind };
        let metadata = Metadata {
            name: "[internal] preparing inline document".into(),
            spans: self.place(span),
            ..Metadata::default()
        };
        self.draft.add(Op::File(FileOp { actions: vec![action] }), Vec::new(), None, metadata)
    }

    /// The tree of a source that is fetched, and the path in it; `None` if the source is a path.
    fn remote(
        &mut self,
        request: &Request<'_>,
        source: &Spanned<String>,
        name: &str,
        span: Span,
    ) -> Fallible<Option<(Output, String)>> {
        let at = |message: String| Diagnostic::error("invalid-source", message, source.span);
        let only_add =
            |what: &str| at(format!("`{}` is {what}: COPY takes paths only", source.value)).with_hint("use ADD");
        let mut metadata = Metadata { name: name.to_owned(), spans: self.place(span), ..Metadata::default() };
        if let Some(mut git) = git::parse(source).map_err(at)? {
            if !request.is_add {
                return Err(only_add("a git repository").into());
            }
            match (request.keep_git_dir, git.keep_git_dir) {
                (Some(flag), Some(query)) if flag != query => {
                    return Err(at("--keep-git-dir and `keep-git-dir` of the URL contradict each other".into()).into());
                }
                (flag, query) => git.keep_git_dir = query.or(flag),
            }
            match &git.checksum {
                Some(query) if !request.checksum.is_empty() && *query != request.checksum => {
                    return Err(at(format!("--checksum is `{}`, the URL's is `{query}`", request.checksum)).into());
                }
                None if !request.checksum.is_empty() => git.checksum = Some(request.checksum.clone()),
                _ => {}
            }
            let tree = self.draft.add(Op::Source(git.source()), Vec::new(), None, metadata);
            return Ok(Some((tree, "/".into())));
        }
        if !is_http(source) {
            return Ok(None);
        }
        if !request.is_add {
            return Err(only_add("a URL").into());
        }
        let file = url_file_name(source);
        let mut attrs = std::collections::BTreeMap::from([("http.filename".to_owned(), file.clone())]);
        if !request.checksum.is_empty() {
            let digest: Digest =
                request.checksum.parse().map_err(|error| at(format!("invalid --checksum: {error}")))?;
            attrs.insert("http.checksum".into(), digest.to_string());
        }
        metadata.description.insert(COMMAND.into(), String::new());
        let op = Op::Source(SourceOp { identifier: source.value.clone(), attrs });
        let tree = self.draft.add(op, Vec::new(), None, metadata);
        Ok(Some((tree, paths::join("/", &file))))
    }

    /// Puts the copy on the stage's tree.
    fn put_copy(
        &mut self,
        id: StageId,
        command: &Command<'_>,
        actions: Actions,
        below: Option<Output>,
        link: bool,
        name: &str,
    ) {
        let place = self.place(command.instruction.span);
        let stage = &self.stages[id];
        let ignore_cache = stage.ignore_cache;
        let group = |weak| ProgressGroup { id: format!("link {id}.{}", stage.index), name: name.to_owned(), weak };
        let metadata = |name: String, progress_group: Option<ProgressGroup>| Metadata {
            name,
            ignore_cache,
            progress_group,
            spans: place.clone(),
            ..Metadata::default()
        };
        let copied = metadata(name.to_owned(), link.then(|| group(true)));
        let env = stage.state.env.clone();
        let platform = stage.platform_or(&self.target_platform);
        let text = name::of_instruction(self.settings.lex, command.instruction.text.trim(), &env);
        let linked_name = name::current(stage, &format!("LINK {text}"), self.settings.multi_platform, &platform, &env);
        let linked = metadata(linked_name, link.then(|| group(false)));
        let (op, inputs) = actions.finish();
        let tree = self.draft.add(op, inputs, None, copied);
        let tree = match below.filter(|_| link) {
            Some(below) => {
                let op = Op::Merge(MergeOp { inputs: vec![Some(0), Some(1)] });
                self.draft.add(op, vec![below, tree], None, linked)
            }
            None => tree,
        };
        self.stages[id].state.tree = Some(tree);
    }

    fn remember_copy(&mut self, id: StageId, request: &Request<'_>, from: Option<StageId>) {
        let mut text = String::from(if request.is_add { "ADD" } else { "COPY" });
        if request.parents {
            text.push_str(" --parents");
        }
        for (flag, value) in [("chown", &request.chown), ("chmod", &request.chmod)] {
            if !value.is_empty() {
                text.push_str(&format!(" --{flag}={value}"));
            }
        }
        for source in &request.sources {
            text.push(' ');
            text.push_str(source);
        }
        for (heredoc, _) in &request.heredocs {
            text.push_str(&format!(" <<{}", heredoc.name));
        }
        text.push_str(&format!(" {} # buildkit", request.dest));
        self.stages[id].remember(&text, Layer::Made, self.epoch);
        let used = from.map(|source| self.stages[source].paths);
        for source in &request.sources {
            if !(request.is_add && (source.starts_with("http://") || source.starts_with("https://"))) {
                self.use_path(used, source);
            }
        }
    }
}

/// A copy of a path of the context or of a stage.
fn local_copy(request: &Request<'_>, source: &str, common: &FileCopy) -> FileCopy {
    let mut copy = FileCopy {
        follow_symlink: true,
        dir_copy_contents: true,
        attempt_unpack: request.unpack.unwrap_or(request.is_add),
        allow_wildcard: true,
        allow_empty_wildcard: true,
        ..common.clone()
    };
    let mut src = source;
    if request.parents {
        // `/./` divides what is only walked through from what is kept.
        let (parent, pattern) = source.split_once("/./").unwrap_or(("/", source));
        let kept = paths::absolute("/", pattern);
        copy.include_patterns = vec![kept.strip_prefix('/').unwrap_or(&kept).to_owned()];
        if !paths::is_pattern(parent) && !paths::is_pattern(&kept) {
            copy.required_paths = vec![paths::join("/", &paths::join(parent, &kept))];
        }
        src = parent;
    }
    copy.src = paths::join("/", src);
    copy
}

/// The body of a heredoc, without leading tabs where `<<-` asks for that.
pub(crate) fn body(heredoc: &Heredoc) -> String {
    if !heredoc.chomp {
        return heredoc.content.clone();
    }
    heredoc.content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
}

/// Reads `user[:group]`; names are looked up in the input `names`.
pub(crate) fn owner(text: &str, names: Option<usize>) -> Owner {
    let reference = |name: &str| match name {
        "" | "root" => UserRef::Id(0),
        name => match name.parse::<i32>() {
            Ok(number) => UserRef::Id(number.cast_unsigned()),
            Err(_) => UserRef::Name { name: name.to_owned(), input: names },
        },
    };
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    Owner { user: Some(reference(user)), group: group.map(reference) }
}

fn is_git(source: &str) -> bool {
    !matches!(git::parse(source), Ok(None))
}

fn is_http(source: &str) -> bool {
    (source.starts_with("http://") || source.starts_with("https://")) && !is_git(source)
}

/// The name under which a download is kept.
pub(crate) fn url_file_name(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = &rest[..rest.find(['?', '#']).unwrap_or(rest.len())];
    let path = rest.split_once('/').map_or("", |(_, path)| path);
    let path = git::percent_decode(path);
    match paths::base(&path) {
        "." | "/" => "__unnamed__".into(),
        name => name.to_owned(),
    }
}
