//! `build`: flags become a request, the engine builds it, and what came out is reported.

mod flags;
mod frontend_opt;
mod limits;
mod request;
mod secrets;

use std::path::Path;
use std::time::Duration;

use build_engine_engine::checks::DockerfileText;
use build_engine_engine::{
    Backend, BuildError, BuildRequest, DockerfileSource, ExitKind, NetworkMode, Outcome, Output, Report, UserNamespace,
};
use serde_json::{Map, Value};

pub(crate) use self::flags::Flags;
pub(crate) use self::flags::boolean;
use self::request::Plan;
pub(crate) use self::request::{plan, set_language};
use super::call::{self, Call, Method};
use crate::errors::Failure;
use crate::output;
use crate::session::with_engine;
use crate::settings::{Environment, ProgressMode, Settings};
use crate::ui::{Options, Progress, text, to_stderr};

/// Builds; returns the exit code.
pub(crate) fn run(flags: Flags, settings: &Settings, env: Environment<'_>) -> Result<u8, Failure> {
    let (context, file) = (flags.context.clone(), flags.file.clone());
    let Plan { request, spool, user_namespace, timeout, quiet, verbose, progress, iidfile, metadata_file, call } =
        plan(flags, env)?;
    if let Some(call) = call {
        let shown = match request.dockerfile_source {
            DockerfileSource::Given => Some(call::shown_dockerfile(&request, &context, file.as_deref())),
            DockerfileSource::Context(_) | DockerfileSource::Url(_) => None,
        };
        let code = answer(call, request, shown.as_deref(), user_namespace, timeout, settings);
        drop(spool);
        return code;
    }
    let mode = if quiet { ProgressMode::Quiet } else { settings.progress_mode(progress)? };
    for path in [&iidfile, &metadata_file].into_iter().flatten() {
        forget(path)?;
    }
    let settings = &with_insecure_outputs(settings, &request);
    let tags = request.tags.clone();
    let only_cache = request.outputs.is_empty() && request.tags.is_empty();
    let mut display = None;
    let result = with_engine(settings, user_namespace, timeout, |engine| {
        let unsupported = engine.unsupported(&request);
        // After the worker was started, which wants to be done before there is a second thread.
        let progress = unsupported
            .is_empty()
            .then(|| display.insert(Progress::start(mode, Options { colour: settings.colour, verbose })).sink());
        async move {
            match progress {
                None => Err(refuse(unsupported)),
                Some(events) => engine.build(request, events).await,
            }
        }
    });
    let summary = display.map(|display| display.finish(result.is_ok())).unwrap_or_default();
    drop(spool);
    let outcome = result.map_err(|failure| with_log(failure, summary.failed_log))?;

    if let Some(path) = &iidfile
        && let Some(image) = &outcome.image
    {
        write(path, image.digest.to_string().as_bytes())?;
    }
    if let Some(path) = &metadata_file {
        let names: Vec<String> =
            if outcome.names.is_empty() { &tags } else { &outcome.names }.iter().map(ToString::to_string).collect();
        write(path, format!("{:#}\n", metadata(&outcome, &names)).as_bytes())?;
    }
    if quiet {
        if let Some(image) = &outcome.image {
            output::print(&format!("{}\n", image.digest))?;
        }
    } else if mode != ProgressMode::Quiet && mode != ProgressMode::RawJson && only_cache {
        to_stderr("note: the result is in the cache only; name it with `-t NAME`, or write it somewhere with `-o`\n");
    }
    Ok(0)
}

/// Answers a question about the Dockerfile; nothing is built. `shown` is how a Dockerfile of this machine is called.
fn answer(
    call: Call,
    mut request: BuildRequest,
    shown: Option<&str>,
    user_namespace: UserNamespace,
    timeout: Option<Duration>,
    settings: &Settings,
) -> Result<u8, Failure> {
    let ask = request.clone();
    let fetched = |request: &mut BuildRequest, dockerfile: &DockerfileText| {
        request.dockerfile_name.clone_from(&dockerfile.name);
        request.dockerfile.clone_from(&dockerfile.text);
    };
    let reply =
        match call.method {
            Method::Check => {
                let result =
                    with_engine(settings, user_namespace, timeout, |engine| async move { engine.check(ask).await })?;
                fetched(&mut request, &result.dockerfile);
                call::check(&result, &request, shown.unwrap_or(&request.dockerfile_name), call)
            }
            Method::Outline => {
                let found =
                    with_engine(settings, user_namespace, timeout, |engine| async move { engine.outline(ask).await })?;
                fetched(&mut request, &found.dockerfile);
                call::outline(&found, &request, call.json)
            }
            Method::Targets => {
                if shown.is_none() {
                    let found = with_engine(settings, user_namespace, timeout, |engine| async move {
                        engine.dockerfile(ask).await
                    })?;
                    fetched(&mut request, &found);
                }
                call::targets(&request, call.json)?
            }
            Method::ConvertLlb => {
                let graph =
                    with_engine(settings, user_namespace, timeout, |engine| async move { engine.graph(ask).await })?;
                call::graph(&graph)
            }
            Method::Describe => call::describe(call.json),
        };
    output::print(&reply.stdout)?;
    match reply.failure {
        Some(failure) => Err(failure),
        None => Ok(reply.code),
    }
}

/// The settings with the registries that `registry.insecure=true` of an output allows not to verify.
fn with_insecure_outputs(settings: &Settings, request: &BuildRequest) -> Settings {
    let mut settings = settings.clone();
    for output in &request.outputs {
        if let Output::Image { names, insecure: true, .. } = output {
            for name in names.iter().chain(&request.tags) {
                settings.registries.hosts.entry(name.domain().to_owned()).or_default().insecure = true;
            }
        }
    }
    settings
}

/// The value of `--network`.
pub(crate) fn network(value: &str) -> Result<NetworkMode, String> {
    match value {
        "" | "default" => Ok(NetworkMode::Default),
        "host" => Ok(NetworkMode::Host),
        "none" => Ok(NetworkMode::None),
        _ => Err("expected default, none or host".into()),
    }
}

fn refuse(unsupported: Vec<build_engine_engine::Unsupported>) -> BuildError {
    let reports = unsupported
        .into_iter()
        .map(|part| {
            Report::new("unsupported-flag", format!("`{}` is not supported by the embedded engine", part.flag))
                .hint(part.reason)
        })
        .collect();
    BuildError { kind: ExitKind::Input, reports }
}

/// Puts the log that the display kept into the report of the failed step, unless the engine knows more of it.
fn with_log(mut failure: Failure, log: Vec<String>) -> Failure {
    let step = failure.error.kind == ExitKind::Step;
    match failure.error.reports.first_mut() {
        Some(report) if step && log.len() > report.log_tail.len() => report.log_tail = log,
        _ => {}
    }
    failure
}

/// Removes the file of an earlier build: one that fails must not leave it behind.
fn forget(path: &Path) -> Result<(), Failure> {
    if path.metadata().is_ok_and(|metadata| metadata.is_file()) {
        std::fs::remove_file(path)
            .map_err(|error| Failure::io(format!("cannot replace `{}`", path.display()), &error))?;
    }
    Ok(())
}

fn write(path: &Path, content: &[u8]) -> Result<(), Failure> {
    output::replace_file(path, content)
        .map_err(|error| Failure::io(format!("cannot write `{}`", text::clean(&path.display().to_string())), &error))
}

/// What `--metadata-file` says, in the keys of buildx.
fn metadata(outcome: &Outcome, names: &[String]) -> Value {
    let mut value = Map::new();
    value.insert("build-engine.isolation".into(), serde_json::to_value(&outcome.isolation).unwrap_or_default());
    value.insert("buildx.build.ref".into(), format!("build-engine/embedded/{}", outcome.build_id).into());
    if let Some(config) = &outcome.config {
        value.insert("containerimage.config.digest".into(), config.to_string().into());
    }
    if let Some(image) = &outcome.image {
        value.insert("containerimage.descriptor".into(), serde_json::to_value(image).unwrap_or_default());
        value.insert("containerimage.digest".into(), image.digest.to_string().into());
    }
    if !names.is_empty() {
        value.insert("image.name".into(), names.join(",").into());
    }
    value.into()
}

#[cfg(test)]
mod tests {
    use build_engine_engine::IsolationReport;
    use build_engine_oci::{Descriptor, Digest, media_type};
    use expect_test::expect;

    use super::*;

    #[test]
    fn metadata_has_the_keys_of_buildx() {
        let digest = Digest::sha256(b"");
        let outcome = Outcome {
            build_id: "abc".into(),
            image: Some(Descriptor::new(media_type::OCI_MANIFEST, digest.clone(), 7)),
            config: Some(digest),
            names: Vec::new(),
            layers: 1,
            size_bytes: 2,
            isolation: IsolationReport::default(),
        };
        expect![[r#"
            {
              "build-engine.isolation": {
                "level": "default",
                "worker": "",
                "fallbacks": []
              },
              "buildx.build.ref": "build-engine/embedded/abc",
              "containerimage.config.digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
              "containerimage.descriptor": {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                "size": 7
              },
              "containerimage.digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
              "image.name": "docker.io/library/a:latest,docker.io/library/b:latest"
            }"#]]
        .assert_eq(&format!(
            "{:#}",
            metadata(&outcome, &["docker.io/library/a:latest".into(), "docker.io/library/b:latest".into()])
        ));
    }

    #[test]
    fn the_longer_log_is_shown_with_a_failed_step_and_none_with_other_failures() {
        let log = || vec!["one".to_owned(), "two".to_owned()];
        let mut report = Report::new("step-failed", "x");
        report.log_tail = vec!["two".into()];
        let step = with_log(Failure::new(ExitKind::Step, report.clone()), log());
        assert_eq!(step.error.reports[0].log_tail, log());
        let other = with_log(Failure::new(ExitKind::Io, report), log());
        assert_eq!(other.error.reports[0].log_tail, ["two"]);
    }
}
