//! `lock`: write down which digests the names of a Dockerfile's images stand for.

use std::path::PathBuf;

use super::build::{Flags as BuildFlags, plan};
use super::lock_file;
use crate::errors::Failure;
use crate::output;
use crate::session::with_engine;
use crate::settings::{Environment, Settings};
use build_engine_engine::UserNamespace;

/// Flags of `lock`.
#[derive(Debug, clap::Args)]
#[command(after_help = "`build-engine lock update CONTEXT` is the same as `build-engine lock --update CONTEXT`.")]
pub(crate) struct Flags {
    /// Directory that COPY and ADD read from; the lock file is written into it
    #[arg(value_name = "CONTEXT", num_args = 1..=2, required = true)]
    context: Vec<String>,
    /// Dockerfile [default: CONTEXT/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    file: Option<String>,
    /// Ask registries again for what is locked already
    #[arg(long)]
    update: bool,
    /// Stage to lock the images of [default: the last one]
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Platform, where names depend on it; several with commas
    #[arg(long, value_name = "OS/ARCH", value_delimiter = ',')]
    platform: Vec<String>,
    /// Set a build argument, where names depend on it
    #[arg(long, value_name = "NAME[=VALUE]")]
    build_arg: Vec<String>,
}

/// Locks; returns the exit code.
pub(crate) fn run(flags: Flags, settings: &Settings, env: Environment<'_>) -> Result<u8, Failure> {
    let (update, context) = match &flags.context[..] {
        [update, context] if update == "update" => (true, context.clone()),
        [context] => (flags.update, context.clone()),
        _ => {
            return Err(
                Failure::input("invalid-flag", "`lock` takes one CONTEXT").hint("`build-engine lock [update] CONTEXT`")
            );
        }
    };
    let build = BuildFlags {
        context: context.clone(),
        file: flags.file,
        target: flags.target,
        platform: flags.platform,
        build_arg: flags.build_arg,
        ..BuildFlags::default()
    };
    let mut request = plan(build, env)?.request;
    if request.context.is_none() {
        return Err(Failure::input("invalid-context", "the lock file stands in the context: `lock` needs a directory"));
    }
    let before = std::mem::take(&mut request.lock);
    request.pull = true;
    if !update {
        request.lock.clone_from(&before);
    }
    let found = with_engine(settings, UserNamespace::Private, None, |engine| engine_lock(engine, request))?;
    let mut after = before.clone();
    // What has its digest in the Dockerfile is locked there.
    after.extend(found.into_iter().filter(|(name, _)| !name.contains('@')));
    lock_file::write(&PathBuf::from(&context), &after)?;
    let rows: Vec<Vec<String>> = after
        .iter()
        .map(|(name, digest)| {
            let state = match before.get(name) {
                None => "added",
                Some(old) if old != digest => "updated",
                Some(_) => "kept",
            };
            vec![name.clone(), state.to_owned(), digest.to_string()]
        })
        .collect();
    output::print(&output::table(&["IMAGE", "STATE", "DIGEST"], &rows))?;
    Ok(0)
}

async fn engine_lock(
    engine: build_engine_engine::embedded::Embedded,
    request: build_engine_engine::BuildRequest,
) -> Result<lock_file::Images, build_engine_engine::BuildError> {
    engine.lock(request).await
}
