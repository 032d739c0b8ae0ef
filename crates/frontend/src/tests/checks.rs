//! The build checks, as data: `checks.txt` holds Dockerfiles and what BuildKit finds in them.
//!
//! The expected lines were obtained from `docker buildx build --call=check,format=json`; a test of the command line
//! compares the same file with a running BuildKit.

use std::collections::BTreeSet;
use std::fmt::Write;

use build_engine_dockerfile::{Diagnostic, LineIndex, lint};

use super::platform;
use crate::{Answer, Answers, Checking, Outlining, Question, Request, check, outline};

const CASES: &str = include_str!("checks.txt");

/// One case: `=== TITLE`, settings, and files that begin with `--- NAME`; the one named `found` is the expectation.
struct Case<'a> {
    title: &'a str,
    /// `args: K=V …`, `target: NAME`, `crlf`; `newer` says that the expectation is that of BuildKit 1.26's sources.
    settings: Vec<&'a str>,
    files: Vec<(&'a str, String)>,
}

impl<'a> Case<'a> {
    fn parse(block: &'a str) -> Self {
        let (title, rest) = block.split_once('\n').unwrap();
        let mut case = Self { title, settings: Vec::new(), files: Vec::new() };
        for line in rest.split_inclusive('\n') {
            match (line.strip_prefix("--- "), case.files.last_mut()) {
                (Some(name), _) => case.files.push((name.trim_end(), String::new())),
                (None, Some((_, content))) => content.push_str(line),
                (None, None) => case.settings.push(line.trim_end()),
            }
        }
        if case.settings.contains(&"crlf") {
            for (_, content) in case.files.iter_mut().filter(|(name, _)| *name != "found") {
                *content = content.replace('\n', "\r\n");
            }
        }
        case
    }

    fn file(&self, name: &str) -> Option<&str> {
        self.files.iter().find(|(known, _)| *known == name).map(|(_, content)| content.as_str())
    }

    fn request(&self) -> Request<'_> {
        let mut request = Request::new(self.file("Dockerfile").unwrap(), platform("linux/amd64"));
        for setting in &self.settings {
            if let Some(args) = setting.strip_prefix("args: ") {
                let pairs = args.split(' ').map(|pair| pair.split_once('=').unwrap());
                request.build_args = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            }
            request.target = setting.strip_prefix("target: ").map(str::to_owned).or(request.target);
        }
        request
    }

    fn answer(&self, question: &Question) -> Answer {
        match question {
            Question::Time { .. } => Answer::Time(None),
            Question::File { context, path } if context == "context" => {
                Answer::File(self.file(path).map(|text| text.as_bytes().to_vec()))
            }
            Question::File { .. } => Answer::File(None),
            Question::ImageConfig { .. } => super::Case::new("").answer(question),
        }
    }
}

fn line(found: &Diagnostic, lines: &LineIndex<'_>) -> String {
    let (first, last) = (lines.line(found.span.start), lines.line(found.span.end.max(1) - 1));
    let place = if first == last { first.to_string() } else { format!("{first}-{last}") };
    format!("{place} {}: {}", found.rule, found.message)
}

/// F1-140 to F1-161, F1-008, F1-009.
#[test]
fn the_checks_find_what_buildkit_finds() {
    let mut wrong = String::new();
    for block in CASES.split("=== ").skip(1) {
        let case = Case::parse(block);
        let request = case.request();
        let mut answers = Answers::new();
        let checked = loop {
            match check(&request, &answers) {
                Checking::Done(checked) => break checked,
                Checking::Needs(questions) => {
                    answers.extend(questions.into_iter().map(|question| {
                        let answer = case.answer(&question);
                        (question, answer)
                    }));
                }
            }
        };
        let lines = LineIndex::new(request.source);
        let mut expected: Vec<&str> = case.file("found").unwrap().lines().collect();
        let error = expected.iter().position(|line| line.starts_with("error ")).map(|at| expected.remove(at));
        let mut found: Vec<String> = checked.warnings.iter().map(|found| line(found, &lines)).collect();
        found.sort();
        expected.sort_unstable();
        if found != expected {
            write!(wrong, "{}\n  expected {expected:#?}\n  found {found:#?}\n", case.title).unwrap();
        }
        let words = |text: &str| text.split([' ', ',']).map(str::to_owned).collect::<BTreeSet<_>>();
        let same = match (error, checked.errors.first()) {
            (None, None) => true,
            // BuildKit names the rules in any order.
            (Some(expected), Some(found)) if found.rule == lint::VIOLATION || found.rule == "invalid-check" => {
                words(&expected["error ".len()..]) == words(&found.message)
            }
            (expected, found) => expected.is_some() == found.is_some(),
        };
        if !same {
            writeln!(wrong, "{}: expected {error:?}, found {:?}", case.title, checked.errors).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Every rule has a file that breaks it and one that does not; the one that needs a base is tested below.
#[test]
fn every_rule_has_cases() {
    for rule in lint::RULES.iter().filter(|rule| rule.name != lint::rules::INVALID_BASE_IMAGE_PLATFORM.name) {
        assert!(CASES.contains(&format!(" {}: ", rule.name)), "{} has no case that breaks it", rule.name);
    }
    for row in (140..=161).filter(|row| *row != 153) {
        assert!(CASES.contains(&format!("=== F1-{row} good")) && CASES.contains(&format!("=== F1-{row} bad")), "{row}");
    }
}

/// F1-060, F1-153: the texts are BuildKit's for a base that has one platform only.
#[test]
fn a_base_for_another_platform_is_found() {
    let arm = r#"{"architecture":"arm64","variant":"v8","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"history":[{"created_by":"x"}]}"#;
    let mut case = super::Case::new(
        "FROM other AS a\nFROM --platform=$BUILDPLATFORM other\nFROM usual\nFROM scratch\nCOPY --from=other a b\n",
    );
    case.images.insert("docker-image://docker.io/library/other:latest", arm);
    let mut answers = Answers::new();
    let found = loop {
        match check(&case.request, &answers) {
            Checking::Done(checked) => break checked,
            Checking::Needs(questions) => {
                let new: Vec<_> = questions.into_iter().map(|question| (case.answer(&question), question)).collect();
                answers.extend(new.into_iter().map(|(answer, question)| (question, answer)));
            }
        }
    };
    let lines = LineIndex::new(case.request.source);
    let found: Vec<String> = found.warnings.iter().map(|found| line(found, &lines)).collect();
    let message = |place| {
        format!(
            "{place} InvalidBaseImagePlatform: Base image other was pulled with platform \"linux/arm64\", expected \"linux/amd64\" for current build"
        )
    };
    assert_eq!(found, [1, 2, 5].map(message));
}

/// F1-023, F1-162: what can be set, with descriptions; values as `buildx build --call=outline` shows them.
#[test]
fn an_outline_says_what_can_be_set() {
    let source = "# TAG of the base\nARG TAG=1\n# BASE to start from\nARG BASE=scratch$TAG\nARG UNUSED=2\nFROM x$BASE AS first\n\
                  # A is a\n# B is b\nARG A=$TAG B\nARG TAG\nRUN --mount=type=secret,id=s,required --mount=type=ssh x\n\
                  FROM scratch AS other\nARG OTHER\n# last is the one\nFROM scratch AS last\nCOPY --from=first a b\n\
                  RUN --mount=type=secret,target=/run/t --mount=type=ssh,id=key x\n";
    let mut case = super::Case::new(source);
    case.arg("B", "given");
    let mut answers = Answers::new();
    let outline = loop {
        match outline(&case.request, &answers).unwrap() {
            Outlining::Done(outline) => break outline,
            Outlining::Needs(questions) => {
                let new: Vec<_> = questions.into_iter().map(|question| (case.answer(&question), question)).collect();
                answers.extend(new.into_iter().map(|(answer, question)| (question, answer)));
            }
        }
    };
    let lines = LineIndex::new(source);
    let mut text = format!("{:?} {:?}\n", outline.name, outline.description);
    for arg in &outline.args {
        writeln!(text, "{} arg {} {:?} {:?}", lines.line(arg.span.start), arg.name, arg.value, arg.description)
            .unwrap();
    }
    for (kind, needs) in [("secret", &outline.secrets), ("ssh", &outline.ssh)] {
        for need in needs {
            writeln!(text, "{} {kind} {} {}", lines.line(need.span.start), need.name, need.required).unwrap();
        }
    }
    expect_test::expect![[r#"
        Some("last") Some("is the one")
        2 arg TAG Some("1") Some("of the base")
        4 arg BASE Some("scratch1") Some("to start from")
        9 arg A Some("") Some("is a")
        9 arg B Some("given") Some("is b")
        11 secret s true
        17 secret t false
        11 ssh default false
        17 ssh key false
    "#]]
    .assert_eq(&text);
}
