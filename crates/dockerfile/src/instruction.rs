//! Instructions: what each statement means, with its words still unexpanded.
//!
//! [`crate::parse`] gives a [`Dockerfile`]: the syntax (statements with words) and, made from it, stages of typed
//! instructions. Variables are expanded later, by the frontend, because their values depend on the build.
//!
//! Source: Dockerfile reference; BuildKit `frontend/dockerfile/instructions`.

use crate::{Span, Spanned, Statement};

/// A parsed Dockerfile.
#[derive(Debug, Clone, Default)]
pub struct Dockerfile {
    /// Escape character: `\` or a backtick.
    pub escape: char,
    /// Parser directives found at the top, in order: (`syntax` | `escape` | `check`, value).
    pub directives: Vec<Directive>,
    /// Every statement, in order, as words.
    pub statements: Vec<Statement>,
    /// `ARG` instructions before the first `FROM`.
    pub global_args: Vec<Instruction>,
    /// Stages, in order.
    pub stages: Vec<Stage>,
}

/// A parser directive such as `# syntax=docker/dockerfile:1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// Name in lower case.
    pub name: String,
    /// Value.
    pub value: Spanned<String>,
}

/// `FROM` to the next `FROM`.
#[derive(Debug, Clone)]
pub struct Stage {
    /// The image or stage it starts from, unexpanded.
    pub base: Spanned<String>,
    /// The name after `AS`, in lower case.
    pub name: Option<Spanned<String>>,
    /// `--platform`, unexpanded.
    pub platform: Option<Spanned<String>>,
    /// The `FROM` statement.
    pub span: Span,
    /// The text of the `FROM` statement.
    pub text: String,
    /// Doc comment directly above.
    pub comments: Vec<String>,
    /// What follows `FROM`.
    pub instructions: Vec<Instruction>,
}

/// One instruction of a stage (or a global `ARG`).
#[derive(Debug, Clone, PartialEq)]
pub struct Instruction {
    /// What it says.
    pub kind: InstructionKind,
    /// The whole statement, heredocs included.
    pub span: Span,
    /// Its text as written, continuation lines joined, heredoc bodies left out.
    pub text: String,
    /// Comments directly above.
    pub comments: Vec<String>,
}

/// The instructions (all but `FROM`, which makes a [`Stage`]).
#[derive(Debug, Clone, PartialEq)]
pub enum InstructionKind {
    /// `ADD`.
    Add(Add),
    /// `ARG name[=value] …`.
    Arg(Vec<ArgPair>),
    /// `CMD`.
    Cmd(Command),
    /// `COPY`.
    Copy(Copy),
    /// `ENTRYPOINT`.
    Entrypoint(Command),
    /// `ENV`.
    Env(Vec<KeyValue>),
    /// `EXPOSE`.
    Expose(Vec<Spanned<String>>),
    /// `HEALTHCHECK`.
    Healthcheck(Healthcheck),
    /// `LABEL`.
    Label(Vec<KeyValue>),
    /// `MAINTAINER`.
    Maintainer(Spanned<String>),
    /// `ONBUILD`, with the text of the trigger; it is parsed and checked as well.
    Onbuild {
        /// The trigger as it is stored in the image's config.
        expression: String,
        /// The trigger, parsed.
        trigger: Box<Instruction>,
    },
    /// `RUN`.
    Run(Run),
    /// `SHELL`.
    Shell(Vec<String>),
    /// `STOPSIGNAL`.
    Stopsignal(Spanned<String>),
    /// `USER`.
    User(Spanned<String>),
    /// `VOLUME`.
    Volume(Vec<Spanned<String>>),
    /// `WORKDIR`.
    Workdir(Spanned<String>),
}

/// One name of `ARG`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgPair {
    /// The name.
    pub key: Spanned<String>,
    /// The default, unexpanded.
    pub value: Option<Spanned<String>>,
    /// Doc comment (`# name text` directly above).
    pub comment: Option<String>,
}

/// One pair of `ENV` or `LABEL`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// Key, unexpanded.
    pub key: Spanned<String>,
    /// Value, unexpanded, with its quotes.
    pub value: Spanned<String>,
    /// Whether it was written `KEY value`, the old form.
    pub legacy: bool,
}

/// A command of `RUN`, `CMD`, `ENTRYPOINT` or `HEALTHCHECK`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// One string for the shell.
    Shell(String),
    /// Arguments, from a JSON array.
    Exec(Vec<String>),
}

/// `RUN`.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The command; in shell form without the bodies of its heredocs.
    pub command: Command,
    /// Heredocs, in order.
    pub heredocs: Vec<Heredoc>,
    /// `--mount` values, parsed; variables unexpanded.
    pub mounts: Vec<RunMount>,
    /// `--network`: `default`, `none` or `host` (checked by the parser).
    pub network: Option<Spanned<String>>,
    /// `--security`: `sandbox` or `insecure` (checked by the parser).
    pub security: Option<Spanned<String>>,
    /// `--device` values as written.
    pub devices: Vec<Spanned<String>>,
}

/// One `--mount`, as key-value fields in the order written (checked for known keys of the type by the parser).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunMount {
    /// The flag.
    pub span: Span,
    /// `bind` (default), `cache`, `tmpfs`, `secret` or `ssh`.
    pub kind: RunMountKind,
    /// The other fields: (canonical lower-case key, value); flags without a value carry `None`. Aliases are resolved:
    /// `dst`, `destination` → `target`; `src` → `source`; `rw` → `readwrite`; `ro` → `readonly`.
    pub fields: Vec<(String, Option<String>)>,
}

/// Types of `RUN --mount`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunMountKind {
    /// `type=bind`.
    Bind,
    /// `type=cache`.
    Cache,
    /// `type=tmpfs`.
    Tmpfs,
    /// `type=secret`.
    Secret,
    /// `type=ssh`.
    Ssh,
}

/// A heredoc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// The delimiter word, without quotes.
    pub name: String,
    /// File descriptor number, 0 where none was written.
    pub fd: u32,
    /// Whether variables are expanded (the delimiter was not quoted).
    pub expand: bool,
    /// Whether leading tabs are stripped (`<<-`).
    pub chomp: bool,
    /// The body, as written (tabs not yet stripped).
    pub content: String,
}

impl Heredoc {
    /// Returns the body as the command or file gets it: without the tabs at the start of lines, if it says `<<-`.
    pub fn text(&self) -> String {
        if !self.chomp {
            return self.content.clone();
        }
        self.content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

/// `COPY`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Copy {
    /// Source paths, unexpanded; heredocs are not among them.
    pub sources: Vec<Spanned<String>>,
    /// Files given inline: the delimiter is the name of the file.
    pub heredocs: Vec<Heredoc>,
    /// Destination, unexpanded.
    pub dest: Spanned<String>,
    /// `--from`, as written.
    pub from: Option<Spanned<String>>,
    /// `--chown`, unexpanded.
    pub chown: Option<Spanned<String>>,
    /// `--chmod`, unexpanded.
    pub chmod: Option<Spanned<String>>,
    /// `--link`.
    pub link: bool,
    /// `--parents`.
    pub parents: bool,
    /// `--exclude` patterns, unexpanded.
    pub exclude: Vec<Spanned<String>>,
}

/// `ADD`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Add {
    /// Source paths and URLs, unexpanded; heredocs are not among them.
    pub sources: Vec<Spanned<String>>,
    /// Files given inline.
    pub heredocs: Vec<Heredoc>,
    /// Destination, unexpanded.
    pub dest: Spanned<String>,
    /// `--chown`, unexpanded.
    pub chown: Option<Spanned<String>>,
    /// `--chmod`, unexpanded.
    pub chmod: Option<Spanned<String>>,
    /// `--link`.
    pub link: bool,
    /// `--exclude` patterns, unexpanded.
    pub exclude: Vec<Spanned<String>>,
    /// `--keep-git-dir`.
    pub keep_git_dir: Option<bool>,
    /// `--checksum`, unexpanded.
    pub checksum: Option<Spanned<String>>,
    /// `--unpack`.
    pub unpack: Option<bool>,
}

/// `HEALTHCHECK`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Healthcheck {
    /// `HEALTHCHECK NONE`.
    None,
    /// `HEALTHCHECK … CMD …`; durations in nanoseconds, `None` where not given.
    Cmd {
        /// The command.
        command: Command,
        /// `--interval`.
        interval: Option<i64>,
        /// `--timeout`.
        timeout: Option<i64>,
        /// `--start-period`.
        start_period: Option<i64>,
        /// `--start-interval`.
        start_interval: Option<i64>,
        /// `--retries`.
        retries: Option<u32>,
    },
}
