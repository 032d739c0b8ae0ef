//! `RUN` and its mounts.

use build_engine_dockerfile::expand::Lex;
use build_engine_dockerfile::mount::{check_value, parse_bool, parse_size, parse_unsigned};
use build_engine_dockerfile::{Command as CommandLine, Diagnostic, Run, RunMount, RunMountKind, parse_heredoc_word};
use build_engine_graph::{
    CacheSharing, ContentCache, Device, ExecMeta, ExecOp, FileAction, FileActionKind, FileFromSession, FileOp,
    Metadata, Mount, MountKind, Network, Op, Owner, SecretEnv, Security, UserRef,
};

use crate::convert::{COMMAND, Converter, Fallible};
use crate::copy::body;
use crate::draft::Output;
use crate::instructions::{Layer, with_shell};
use crate::stage::{Command, Stage, StageId};
use crate::{name, paths};

/// Where a heredoc that is a script is mounted.
const SCRIPTS: &str = "/dev/pipes/";

/// Most bytes that the environments of all runs may take together: every run has its own copy, so a large variable and
/// many runs multiply.
const MAX_ENVIRONMENTS_BYTES: usize = 128 << 20;

/// The mounts of a run while they are collected.
#[derive(Default)]
struct Mounts {
    trees: Vec<Tree>,
    files: Vec<Mount>,
    sockets: Vec<Mount>,
    secret_env: Vec<SecretEnv>,
}

/// A mount of a tree.
struct Tree {
    input: Option<Output>,
    dest: String,
    selector: String,
    readonly: bool,
    has_output: bool,
    kind: MountKind,
}

/// A `--mount`, expanded.
#[derive(Default)]
struct Options {
    source: String,
    target: String,
    id: String,
    readonly: Option<bool>,
    required: bool,
    size: i64,
    sharing: CacheSharing,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    env: Option<String>,
    has_from: bool,
}

impl Options {
    fn has_owner(&self) -> bool {
        self.uid.is_some() || self.gid.is_some() || self.mode.is_some()
    }
}

impl<'a> Converter<'a> {
    /// Lowers `RUN`.
    pub(crate) fn run(&mut self, id: StageId, command: &Command<'a>, run: &Run) -> Fallible<()> {
        let span = command.instruction.span;
        let settings = self.settings;
        let options: Vec<Options> =
            run.mounts.iter().map(|mount| self.mount_options(id, command, mount)).collect::<Result<_, _>>()?;
        // A process can read any file.
        let used = self.stages[id].paths;
        self.use_path(Some(used), "/");

        let mut mounts = Mounts::default();
        let mut title = command.instruction.text.trim().to_owned();
        let args = self.run_args(id, command, run, &mut mounts, &mut title)?;
        for ((mount, options), source) in run.mounts.iter().zip(options).zip(&command.sources) {
            self.mount(id, command, mount, options, *source, &mut mounts)?;
        }
        if settings.request.shm_size_bytes > 0 {
            let size = i64::try_from(settings.request.shm_size_bytes).unwrap_or(i64::MAX);
            mounts.trees.push(Tree::empty("/dev/shm", MountKind::Tmpfs { size }));
        }

        let env = self.stages[id].state.env.clone();
        let masked: Vec<&str> = mounts.secret_env.iter().map(|secret| secret.name.as_str()).collect();
        let visible = |name: &str| {
            if masked.contains(&name) { Some("****".to_owned()) } else { env.get(name).map(str::to_owned) }
        };
        let lex = Lex { raw_quotes: true, skip_unset: true, ..settings.lex };
        let title = lex.word(&title, &visible).map_or(title, |expanded| expanded.text);
        let title = name::upper_first(&title);
        let name = self.count_name(id, &title, &env);

        let environment = env.to_list();
        self.environment_bytes += environment.iter().map(String::len).sum::<usize>();
        if self.environment_bytes > MAX_ENVIRONMENTS_BYTES {
            let message = format!("the environments of all RUNs take more than {} MiB", MAX_ENVIRONMENTS_BYTES >> 20);
            return Err(Diagnostic::error("limit", message, span).into());
        }
        let stage = &self.stages[id];
        let history = history(&args, stage);
        let platform = stage.state.platform.clone().unwrap_or_else(|| self.target_platform.clone());
        let mut meta = ExecMeta {
            args,
            env: environment,
            cwd: stage.state.dir.clone(),
            user: stage.state.user.clone(),
            proxy_env: settings.proxy.clone(),
            extra_hosts: settings.request.extra_hosts.clone(),
            hostname: stage.state.hostname.clone(),
            ulimits: settings.request.ulimits.clone(),
            cgroup_parent: settings.request.cgroup_parent.clone(),
            remove_mount_stubs_recursive: true,
            valid_exit_codes: Vec::new(),
        };
        if let Some(socket) = mounts.sockets.first()
            && env.get("SSH_AUTH_SOCK").is_none()
        {
            meta.env.push(format!("SSH_AUTH_SOCK={}", socket.dest));
        }
        let root = Tree {
            input: stage.state.tree,
            dest: "/".into(),
            selector: String::new(),
            readonly: false,
            has_output: true,
            kind: MountKind::Bind,
        };
        let network = match run.network.as_ref().map(|network| network.value.as_str()) {
            Some("none") => Network::None,
            Some("host") => Network::Host,
            _ => stage.state.network,
        };
        let insecure = run.security.as_ref().is_some_and(|security| security.value == "insecure");
        let description = [(COMMAND.to_owned(), command.instruction.text.trim().to_owned())].into();
        let ignore_cache = stage.ignore_cache;
        let metadata = Metadata { name, description, ignore_cache, progress_group: None, spans: self.place(span) };
        let secret_env = std::mem::take(&mut mounts.secret_env);
        let (mounts, inputs) = mounts.finish(root);
        let exec = ExecOp {
            meta,
            mounts,
            network,
            security: if insecure { Security::Insecure } else { Security::Sandbox },
            secret_env,
            devices: run.devices.iter().map(|device| device_of(device)).collect(),
        };
        let tree = self.draft.add(Op::Exec(exec), inputs, Some(platform), metadata);
        let stage = &mut self.stages[id];
        stage.state.tree = Some(tree);
        stage.remember(&format!("RUN {history} # buildkit"), Layer::Made, self.epoch);
        Ok(())
    }

    /// The command line, with what heredocs make of it.
    fn run_args(
        &mut self,
        id: StageId,
        command: &Command<'_>,
        run: &Run,
        mounts: &mut Mounts,
        title: &mut String,
    ) -> Fallible<Vec<String>> {
        let text = match &run.command {
            CommandLine::Exec(args) => return Ok(args.clone()),
            CommandLine::Shell(text) => text,
        };
        let span = command.instruction.span;
        let stage = &self.stages[id];
        let Some(first) = run.heredocs.first() else { return Ok(with_shell(&stage.image, text)) };
        if !matches!(parse_heredoc_word(text), Ok(Some(_))) {
            // The shell is to read the documents itself.
            let mut script = text.clone();
            for heredoc in &run.heredocs {
                script.push('\n');
                script.push_str(&heredoc.content);
                script.push_str(&heredoc.name);
            }
            return Ok(with_shell(&stage.image, &script));
        }
        title.push_str(&format!(" ({})", summary(&first.content)));
        let script = body(first);
        if stage.image.os == "windows" || !script.starts_with("#!") {
            return Ok(with_shell(&stage.image, &script));
        }
        let tree = self.inline_file(first, script, 0o755, span);
        mounts.trees.push(Tree {
            input: Some(tree),
            dest: SCRIPTS.into(),
            selector: "/".into(),
            readonly: true,
            has_output: false,
            kind: MountKind::Bind,
        });
        let path = paths::join(SCRIPTS, &first.name);
        Ok(with_shell(&self.stages[id].image, &path))
    }

    fn mount_options(&self, id: StageId, command: &Command<'_>, mount: &RunMount) -> Fallible<Options> {
        let span = command.at(mount.span);
        let fail = |message: String| Diagnostic::error("mount", message, span);
        let mut options = Options::default();
        for (key, value) in &mount.fields {
            let value = match value {
                Some(value) => self.expand(id, value, span)?,
                // A flag without a value.
                None => "true".to_owned(),
            };
            check_value(key, &value).map_err(fail)?;
            let flag = || parse_bool(&value);
            match key.as_str() {
                "from" => options.has_from = !value.is_empty(),
                "source" => options.source = value,
                "target" => options.target = value,
                "id" => options.id = value,
                "readonly" => options.readonly = flag(),
                "readwrite" => options.readonly = flag().map(|writable| !writable),
                "required" => options.required = flag().unwrap_or_default(),
                "size" => options.size = parse_size(&value).unwrap_or_default(),
                "sharing" => {
                    options.sharing = match value.to_lowercase().as_str() {
                        "private" => CacheSharing::Private,
                        "locked" => CacheSharing::Locked,
                        _ => CacheSharing::Shared,
                    }
                }
                "mode" => options.mode = parse_unsigned(&value, 8),
                "uid" => options.uid = parse_unsigned(&value, 10),
                "gid" => options.gid = parse_unsigned(&value, 10),
                "env" => options.env = Some(value),
                key => return Err(fail(format!("unexpected key `{key}` in a mount")).into()),
            }
        }
        Ok(options)
    }

    fn mount(
        &mut self,
        id: StageId,
        command: &Command<'_>,
        mount: &RunMount,
        options: Options,
        source: Option<StageId>,
        mounts: &mut Mounts,
    ) -> Fallible<()> {
        let span = command.at(mount.span);
        let fail = |message: String| Diagnostic::error("mount", message, span);
        if let Some(source) = source
            && !self.stages[source].dispatched
        {
            let message = format!("cannot mount from stage `{}`: it is defined after this one", self.label(source));
            return Err(Diagnostic::error("stage-order", message, span).with_hint("move it before this stage").into());
        }
        let (kind, input) = match mount.kind {
            RunMountKind::Secret => {
                let required = options.required;
                let name = secret(options, mounts).map_err(fail)?;
                self.stages[id].captured.secret(name, command.instruction.span, required);
                return Ok(());
            }
            RunMountKind::Ssh => {
                ssh(&options, mounts).map_err(fail)?;
                let name = if options.id.is_empty() { "default".to_owned() } else { options.id };
                self.stages[id].captured.ssh(name, command.instruction.span, options.required);
                return Ok(());
            }
            RunMountKind::Tmpfs => (MountKind::Tmpfs { size: options.size }, None),
            RunMountKind::Bind => {
                let tree = match source {
                    Some(source) => self.stages[source].state.tree,
                    None => self.main_context().tree,
                };
                (MountKind::Bind, tree)
            }
            RunMountKind::Cache => {
                let id = if options.id.is_empty() { paths::clean(&options.target) } else { options.id.clone() };
                let id = format!("{}/{id}", self.settings.cache_namespace);
                (
                    MountKind::Cache { id, sharing: options.sharing },
                    source.and_then(|source| self.stages[source].state.tree),
                )
            }
        };
        let by_default = mount.kind == RunMountKind::Bind;
        let target = if options.target.starts_with('/') {
            options.target.clone()
        } else {
            paths::join(&paths::join("/", &self.stages[id].state.dir), &options.target)
        };
        if target == "/" {
            return Err(fail(format!("invalid mount target `{target}`")).into());
        }
        let selected = paths::join("/", &options.source);
        let mut tree = Tree {
            input,
            dest: target,
            selector: String::new(),
            readonly: options.readonly.unwrap_or(by_default),
            has_output: false,
            kind,
        };
        if selected != "/" {
            tree.selector = selected;
        } else if options.has_owner() {
            tree.input = Some(self.cache_root(tree.input, &options, span));
            tree.selector = "/cache".into();
        }
        mounts.trees.push(tree);
        // A cache without a source starts empty. A tmpfs has no source either, but BuildKit counts it as using the
        // whole context; the same paths are followed here, so that the source vertex is the same.
        match source {
            Some(source) => {
                let used = self.stages[source].paths;
                self.use_path(Some(used), &options.source);
            }
            None if mount.kind != RunMountKind::Cache => self.use_path(None, &options.source),
            None => {}
        }
        Ok(())
    }

    /// The directory that a cache with owner or mode starts as.
    fn cache_root(&mut self, base: Option<Output>, options: &Options, span: build_engine_dockerfile::Span) -> Output {
        let kind = FileActionKind::Mkdir {
            path: "/cache".into(),
            mode: options.mode.unwrap_or(0o755) & 0o777,
            make_parents: false,
            owner: Some(Owner {
                user: Some(UserRef::Id(options.uid.unwrap_or(0))),
                group: Some(UserRef::Id(options.gid.unwrap_or(0))),
            }),
            timestamp: None,
        };
        let action = FileAction { input: base.map(|_| 0), secondary_input: None, output: Some(0), kind };
        let metadata = Metadata {
            name: "[internal] setting cache mount permissions".into(),
            spans: self.place(span),
            ..Metadata::default()
        };
        self.draft.add(Op::File(FileOp { actions: vec![action] }), base.into_iter().collect(), None, metadata)
    }
}

impl Tree {
    fn empty(dest: &str, kind: MountKind) -> Self {
        Self { input: None, dest: dest.into(), selector: String::new(), readonly: false, has_output: false, kind }
    }
}

impl Mounts {
    /// The mounts in LLB's order: trees by destination, then secrets, then sockets.
    fn finish(mut self, root: Tree) -> (Vec<Mount>, Vec<Output>) {
        self.trees.insert(0, root);
        self.trees.sort_by(|a, b| a.dest.cmp(&b.dest));
        let mut inputs: Vec<Output> = Vec::new();
        let mut outputs = 0..;
        let mut mounts = Vec::with_capacity(self.trees.len() + self.files.len() + self.sockets.len());
        for tree in self.trees {
            let input = tree.input.map(|input| {
                inputs.iter().position(|known| *known == input).unwrap_or_else(|| {
                    inputs.push(input);
                    inputs.len() - 1
                })
            });
            mounts.push(Mount {
                input,
                selector: tree.selector,
                dest: tree.dest,
                output: if tree.has_output { outputs.next() } else { None },
                readonly: tree.readonly,
                kind: tree.kind,
                content_cache: ContentCache::Default,
            });
        }
        mounts.extend(self.files);
        mounts.extend(self.sockets);
        (mounts, inputs)
    }
}

/// A mount of something that the session holds.
fn session_mount(dest: String, kind: MountKind) -> Mount {
    Mount {
        input: None,
        selector: String::new(),
        dest,
        output: None,
        readonly: false,
        kind,
        content_cache: ContentCache::Default,
    }
}

/// Adds a secret's mounts; returns its name.
fn secret(options: Options, mounts: &mut Mounts) -> Result<String, String> {
    let mut id = if options.source.is_empty() { options.id.clone() } else { options.source.clone() };
    if id.is_empty() {
        if options.target.is_empty() {
            return Err("a secret mount needs id, source or target".into());
        }
        id = paths::base(&options.target).to_owned();
    }
    let optional = !options.required;
    let dest = match (options.target.is_empty(), &options.env) {
        (false, _) => Some(options.target.clone()),
        (true, None) => Some(format!("/run/secrets/{}", paths::base(&id))),
        (true, Some(_)) => None,
    };
    if let Some(dest) = dest {
        let file = file_from_session(&options, id.clone(), 0o400);
        mounts.files.push(session_mount(dest, MountKind::Secret(file)));
    }
    if let Some(name) = options.env {
        mounts.secret_env.push(SecretEnv { id: id.clone(), name, optional });
    }
    Ok(id)
}

fn ssh(options: &Options, mounts: &mut Mounts) -> Result<(), String> {
    if !options.source.is_empty() {
        return Err("an ssh mount has no source".into());
    }
    let dest = if options.target.is_empty() {
        format!("/run/buildkit/ssh_agent.{}", mounts.sockets.len())
    } else {
        options.target.clone()
    };
    let socket = file_from_session(options, options.id.clone(), 0o600);
    mounts.sockets.push(session_mount(dest, MountKind::Ssh(socket)));
    Ok(())
}

fn file_from_session(options: &Options, id: String, mode: u32) -> FileFromSession {
    FileFromSession {
        id,
        uid: options.uid.unwrap_or(0),
        gid: options.gid.unwrap_or(0),
        mode: options.mode.unwrap_or(mode),
        optional: !options.required,
    }
}

/// Reads `[name=]NAME[,required[=bool]]`; the parser has checked it.
fn device_of(text: &str) -> Device {
    let mut device = Device { name: String::new(), optional: true };
    for field in text.split(',') {
        match field.split_once('=') {
            None if field == "required" => device.optional = false,
            Some(("required", value)) => device.optional = parse_bool(value) == Some(false),
            Some(("name", name)) => device.name = name.to_owned(),
            // `vendor.com/class=name`
            Some(_) | None => device.name = field.to_owned(),
        }
    }
    device
}

/// The first line of a document.
fn summary(document: &str) -> String {
    let document = document.trim().replace("\r\n", "\n");
    match document.split_once('\n') {
        Some((first, _)) => format!("{first}..."),
        None => document,
    }
}

/// The command line with the build arguments that it saw, as histories have shown it since Docker's first builder.
fn history(args: &[String], stage: &Stage<'_>) -> String {
    let mut seen: Vec<(&str, String)> = Vec::new();
    for (name, default) in &stage.args {
        let value = stage.state.env.get(name).or(default.as_deref()).unwrap_or_default();
        let pair = format!("{name}={value}");
        match seen.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = pair,
            None => seen.push((name, pair)),
        }
    }
    let mut words: Vec<String> = Vec::new();
    if !seen.is_empty() {
        words.push(format!("|{}", seen.len()));
        words.extend(seen.into_iter().map(|(_, pair)| pair));
    }
    words.extend(args.iter().cloned());
    words.join(" ")
}
