//! `validate`: what is wrong with Dockerfiles, without building them.
//!
//! A positional argument that is a directory, or an address, is a build context: its Dockerfile is checked as `build --check` does, with
//! bases resolved unless `--offline`. Any other is a Dockerfile by itself, checked with nothing but its text (and the
//! ignore file beside it that bears its name): no store, no network, no worker; what this engine refuses to execute is an
//! error there too, so that a file without errors is one that `build` accepts.

mod report;

use std::path::Path;

use build_engine_engine::checks::{CheckResult, Finding, check_offline, request_without_context};
use build_engine_engine::{BuildRequest, DockerfileSource, ExitKind, MainContext, UserNamespace, shown};

use self::report::{Diagnostic, Level};
use super::build::{Flags as BuildFlags, plan, set_language};
use super::{call, dockerfile};
use crate::errors::Failure;
use crate::output;
use crate::session::with_engine;
use crate::settings::{Environment, Settings};
use crate::ui::to_stderr;

/// Flags of `validate`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Exit codes: 0 no errors, 1 warnings with --strict, 2 errors.")]
pub(crate) struct Flags {
    /// Dockerfiles (`-` is standard input), or build contexts: directories, repositories, URLs
    #[arg(value_name = "FILE|CONTEXT", required = true)]
    paths: Vec<String>,
    /// Dockerfile of the one CONTEXT [default: CONTEXT/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    file: Option<String>,
    /// Stage to check with what it needs [default: all stages]
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Platform that is built for
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    /// Set a build argument
    #[arg(long, value_name = "NAME[=VALUE]")]
    build_arg: Vec<String>,
    /// Resolve no base images: they are taken to set PATH and nothing else
    #[arg(long)]
    offline: bool,
    /// Let warnings fail (exit code 1)
    #[arg(long)]
    strict: bool,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// The value of `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// One line a finding, for people and editors.
    #[default]
    Text,
    /// For programs.
    Json,
    /// SARIF 2.1.0, for code scanning.
    Sarif,
    /// Workflow commands of GitHub Actions.
    Github,
}

/// What is checked.
struct Subject {
    request: BuildRequest,
    /// What the Dockerfile is called.
    file: String,
    /// Whether bases are resolved.
    online: bool,
    /// Whether it is a Dockerfile by itself.
    alone: bool,
}

/// Checks; returns the exit code.
pub(crate) fn run(flags: &Flags, settings: &Settings, env: Environment<'_>) -> Result<u8, Failure> {
    let Flags { format, strict, .. } = *flags;
    if flags.file.is_some() && !matches!(&flags.paths[..], [context] if is_context(context)) {
        return Err(Failure::input("invalid-flag", "with `--file`, `validate` takes one build context")
            .hint("`build-engine validate FILE…` checks Dockerfiles by themselves"));
    }
    let single_context = flags.file.is_some() || matches!(&flags.paths[..], [context] if is_context(context));
    let mut diagnostics = Vec::new();
    let mut subjects = Vec::new();
    for path in &flags.paths {
        match subject(path, flags, env) {
            Ok(subject) => subjects.push(subject),
            // A flag that is wrong is wrong for all of them.
            Err(failure) if failure.error.reports.iter().any(|report| report.rule == "invalid-flag") => {
                return Err(failure);
            }
            Err(failure) => diagnostics.extend(Diagnostic::unreadable(path, &failure.error)),
        }
    }
    let (online, offline): (Vec<Subject>, Vec<Subject>) = subjects.into_iter().partition(|subject| subject.online);
    for Subject { request, file, alone, .. } in offline {
        diagnostics.extend(diagnostics_of(&file, check_offline(&request), alone));
    }
    if !online.is_empty() {
        let checked = with_engine(settings, UserNamespace::Private, None, |engine| async move {
            let mut checked = Vec::new();
            for Subject { request, file, .. } in online {
                checked.push((file, engine.check(request).await?));
            }
            Ok(checked)
        })?;
        for (file, result) in checked {
            diagnostics.extend(diagnostics_of(&file, result, false));
        }
    }
    diagnostics.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    output::print(&match format {
        Format::Text => report::text(&diagnostics),
        Format::Json => report::json(&diagnostics, !single_context),
        Format::Sarif => report::sarif(&diagnostics),
        Format::Github => report::github(&diagnostics),
    })?;
    let count = |level: Level| diagnostics.iter().filter(|found| found.level == level).count();
    let (errors, warnings) = (count(Level::Error), count(Level::Warning));
    if format == Format::Text && errors + warnings > 0 {
        to_stderr(&format!("{errors} {}, {warnings} {}\n", plural("error", errors), plural("warning", warnings)));
    }
    Ok(match (errors, warnings) {
        (0, 0) => 0,
        // A gate that is not passed ends like a step that fails.
        (0, _) => {
            if strict {
                ExitKind::Step.code()
            } else {
                0
            }
        }
        _ => ExitKind::Input.code(),
    })
}

fn plural(word: &str, count: usize) -> String {
    format!("{word}{}", if count == 1 { "" } else { "s" })
}

/// Whether a positional argument is a build context: a directory, or one that is fetched.
fn is_context(path: &str) -> bool {
    match Path::new(path).metadata() {
        _ if path == "-" => false,
        Ok(metadata) => metadata.is_dir(),
        Err(_) => MainContext::parse(path).is_some(),
    }
}

/// The request that a positional argument stands for.
fn subject(path: &str, flags: &Flags, env: Environment<'_>) -> Result<Subject, Failure> {
    let is_context = is_context(path);
    let build = BuildFlags {
        // The flags are understood in one place; the directory of a Dockerfile by itself is not looked at.
        context: if is_context { path.to_owned() } else { ".".to_owned() },
        file: if is_context { flags.file.clone() } else { Some(path.to_owned()) },
        target: flags.target.clone(),
        platform: flags.platform.iter().cloned().collect(),
        build_arg: flags.build_arg.clone(),
        ..BuildFlags::default()
    };
    if is_context {
        let request = plan(build, env)?.request;
        let file = match request.dockerfile_source {
            DockerfileSource::Given => call::shown_dockerfile(&request, path, flags.file.as_deref()),
            _ if flags.offline => {
                let message = format!("the Dockerfile of `{}` has to be fetched", shown(path));
                return Err(Failure::input("invalid-flag", message).hint("leave `--offline` out"));
            }
            DockerfileSource::Context(_) => shown(path),
            DockerfileSource::Url(ref url) => shown(url),
        };
        return Ok(Subject { request, file, online: !flags.offline, alone: false });
    }
    let (name, file, text) = match path {
        "-" => ("Dockerfile".to_owned(), None, dockerfile::read(std::io::stdin().lock(), "standard input")?),
        path => {
            let absolute = std::path::absolute(path)
                .map_err(|error| Failure::io(format!("cannot use `{path}` as Dockerfile"), &error))?;
            (path.to_owned(), Some(absolute), dockerfile::read_file(Path::new(path))?)
        }
    };
    let mut request = request_without_context(name, file, text);
    set_language(&mut request, build, env)?;
    let file = request.dockerfile_name.clone();
    Ok(Subject { request, file, online: false, alone: true })
}

fn diagnostics_of(file: &str, result: CheckResult, alone: bool) -> Vec<Diagnostic> {
    let CheckResult { warnings, errors, unsupported, .. } = result;
    let of = |level| move |found: Finding| Diagnostic::new(file, level, found);
    let refused = if alone { unsupported } else { Vec::new() };
    let mut list: Vec<Diagnostic> = warnings.into_iter().map(of(Level::Warning)).collect();
    list.extend(errors.into_iter().chain(refused).map(of(Level::Error)));
    list
}
