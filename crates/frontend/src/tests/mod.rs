//! Tests of the whole crate: a Dockerfile in, a compact rendering of what came out.
//!
//! Expectations follow BuildKit's `frontend/dockerfile/dockerfile2llb` and its tests; rows of the feature list are named
//! in the tests (`F1-…`).

mod remote;
mod render;

mod bases;
mod checks;
mod configs;
mod copies;
mod mistakes;
mod platforms;
mod runs;
mod scopes;

use std::collections::BTreeMap;

use build_engine_dockerfile::Diagnostic;
use build_engine_oci::{Digest, Platform};
use expect_test::Expect;

use crate::{Answer, Answers, Lowered, Lowering, Question, Request, lower};

/// A request and the world that answers its questions.
struct Case<'a> {
    request: Request<'a>,
    /// Configs by identifier, as JSON; any other image has a small ordinary one.
    images: BTreeMap<&'a str, &'a str>,
    /// Files by local source and path.
    files: BTreeMap<(&'a str, &'a str), &'a str>,
    /// Every question that was asked, by round.
    asked: Vec<Vec<String>>,
}

/// Images whose names contain this do not exist.
const MISSING: &str = "missing";

impl<'a> Case<'a> {
    fn new(dockerfile: &'a str) -> Self {
        let request = Request::new(dockerfile, platform("linux/amd64"));
        Self { request, images: BTreeMap::new(), files: BTreeMap::new(), asked: Vec::new() }
    }

    fn arg(&mut self, name: &str, value: &str) {
        self.request.build_args.insert(name.into(), value.into());
    }

    fn context(&mut self, name: &str, value: &str) {
        self.request.named_contexts.insert(name.into(), value.into());
    }

    fn lower(&mut self) -> Result<Lowered, Vec<Diagnostic>> {
        let mut answers = Answers::new();
        loop {
            match lower(&self.request, &answers)? {
                Lowering::Done(lowered) => return Ok(lowered),
                Lowering::Needs(questions) => {
                    assert!(!questions.is_empty());
                    self.asked.push(questions.iter().map(render::question).collect());
                    for question in questions {
                        let answer = self.answer(&question);
                        assert!(answers.insert(question, answer).is_none(), "a question was asked twice");
                    }
                }
            }
        }
    }

    fn answer(&self, question: &Question) -> Answer {
        match question {
            Question::Time { identifier, .. } => Answer::Time((!identifier.contains("timeless")).then_some(60)),
            Question::File { context, path } => {
                let text = self.files.get(&(context.as_str(), path.as_str()));
                Answer::File(text.map(|text| text.as_bytes().to_vec()))
            }
            Question::ImageConfig { source, platform } => {
                let identifier = source.identifier.clone();
                if identifier.contains(MISSING) || identifier.contains("biulder") {
                    return Answer::Failed("not found".into());
                }
                let config = match self.images.get(identifier.as_str()) {
                    Some(config) => (*config).to_owned(),
                    None => ordinary(platform),
                };
                Answer::ImageConfig { digest: Digest::sha256(identifier.as_bytes()), identifier, config: config.into() }
            }
        }
    }
}

fn ordinary(platform: &Platform) -> String {
    let variant = platform.variant.as_ref().map(|variant| format!(r#","variant":"{variant}""#)).unwrap_or_default();
    let layer = Digest::sha256(b"");
    format!(
        r#"{{"architecture":"{}","os":"{}"{variant},"created":"2020-01-01T00:00:00Z","config":{{"Env":["PATH=/bin"],"Cmd":["sh"]}},
        "rootfs":{{"type":"layers","diff_ids":["{layer}"]}},"history":[{{"created_by":"base"}}],"docker_version":"1"}}"#,
        platform.architecture, platform.os
    )
}

fn platform(text: &str) -> Platform {
    text.parse().unwrap()
}

fn run<'a>(dockerfile: &'a str, setup: impl FnOnce(&mut Case<'a>)) -> (Case<'a>, Result<Lowered, Vec<Diagnostic>>) {
    let mut case = Case::new(dockerfile);
    setup(&mut case);
    let lowered = case.lower();
    (case, lowered)
}

fn lowered<'a>(dockerfile: &'a str, setup: impl FnOnce(&mut Case<'a>)) -> Lowered {
    match run(dockerfile, setup).1 {
        Ok(lowered) => lowered,
        Err(errors) => panic!("{}", render::diagnostics(dockerfile, &errors)),
    }
}

/// Compares the graph.
#[expect(clippy::needless_pass_by_value, reason = "reads better where it is called")]
fn graph(dockerfile: &str, expect: Expect) {
    expect.assert_eq(&render::graph(&lowered(dockerfile, |_| {})));
}

/// Compares the graph of a request that says more.
#[expect(clippy::needless_pass_by_value, reason = "reads better where it is called")]
fn graph_of<'a>(dockerfile: &'a str, setup: impl FnOnce(&mut Case<'a>), expect: Expect) {
    expect.assert_eq(&render::graph(&lowered(dockerfile, setup)));
}

/// Compares the image config, history included.
#[expect(clippy::needless_pass_by_value, reason = "reads better where it is called")]
fn config(dockerfile: &str, expect: Expect) {
    expect.assert_eq(&render::configs(&lowered(dockerfile, |_| {})));
}

/// Compares the image config of a request that says more.
#[expect(clippy::needless_pass_by_value, reason = "reads better where it is called")]
fn config_of<'a>(dockerfile: &'a str, setup: impl FnOnce(&mut Case<'a>), expect: Expect) {
    expect.assert_eq(&render::configs(&lowered(dockerfile, setup)));
}

/// Compares the mistakes.
fn mistake(dockerfile: &str, expect: Expect) {
    mistake_of(dockerfile, |_| {}, expect);
}

/// Compares the mistakes of a request that says more.
#[expect(clippy::needless_pass_by_value, reason = "reads better where it is called")]
fn mistake_of<'a>(dockerfile: &'a str, setup: impl FnOnce(&mut Case<'a>), expect: Expect) {
    let errors = run(dockerfile, setup).1.expect_err("it should fail");
    expect.assert_eq(&render::diagnostics(dockerfile, &errors));
}
