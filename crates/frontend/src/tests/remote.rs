//! Contexts that are fetched, and times that sources have.

use build_engine_graph::{FileActionKind, Op, walk};

use super::{Case, run};
use crate::{Lowered, MainContext};

/// The sources of a graph, and the copies that unpack.
fn sources(lowered: &Lowered) -> Vec<String> {
    let mut found = Vec::new();
    walk(lowered.results.iter().filter_map(|result| result.root.as_ref()), |vertex| match vertex.op() {
        Op::Source(source) => found.push(source.identifier.clone()),
        Op::File(file) => found.extend(file.actions.iter().filter_map(|action| match &action.kind {
            FileActionKind::Copy(copy) if copy.attempt_unpack => Some(format!("unpack {}", copy.src)),
            _ => None,
        })),
        _ => {}
    });
    found.sort();
    found
}

/// F1-013.
#[test]
fn a_context_that_is_fetched_takes_the_place_of_local_files() {
    for (context, expected) in [
        (MainContext::Local, &["local://context"][..]),
        (MainContext::Git("https://h/a.git#dev:sub".into()), &["git://h/a.git#dev:sub"]),
        (MainContext::Git("github.com/a/b".into()), &["git://github.com/a/b"]),
        (MainContext::Archive("https://h/a.tar".into()), &["https://h/a.tar", "unpack /context"]),
        (MainContext::File("https://h/D".into()), &["https://h/D"]),
    ] {
        let (case, lowered) = run("FROM scratch\nCOPY a /a", |case| case.request.context = context.clone());
        assert_eq!(sources(&lowered.unwrap()), expected, "{context:?}");
        let ignore = case.asked.iter().flatten().any(|question| question.ends_with(".dockerignore"));
        assert_eq!(ignore, context == MainContext::Local, "ignore files are those of directories");
    }
}

#[test]
fn addresses_are_told_from_paths() {
    for (text, expected) in [
        ("https://h/a.git#x", Some(MainContext::Git("https://h/a.git#x".into()))),
        ("git@h:a", Some(MainContext::Git("git@h:a".into()))),
        ("github.com/a/b", Some(MainContext::Git("github.com/a/b".into()))),
        ("https://h/a.tar", Some(MainContext::Archive("https://h/a.tar".into()))),
        ("./github.com/a", None),
        ("some/dir", None),
        ("s3://b/c", None),
    ] {
        assert_eq!(MainContext::parse(text), expected, "{text}");
    }
}

/// F1-045.
#[test]
fn an_epoch_may_name_a_source() {
    const STAGE: &str = "FROM scratch AS src\nARG V=1\nADD https://h/$V.tar /\nFROM scratch\nUSER a";
    let git = |case: &mut Case<'_>| case.request.context = MainContext::Git("https://h/a.git".into());
    type Setup<'a> = &'a dyn Fn(&mut Case<'_>);
    for (dockerfile, epoch, setup, expected) in [
        ("FROM scratch\nUSER a", "context", &git as Setup<'_>, Ok(Some(60))),
        ("FROM scratch\nUSER a", "context", &|_| {}, Ok(None)),
        ("FROM scratch\nUSER a", "n", &|case| case.context("n", "https://h/timeless.tar"), Ok(None)),
        ("FROM scratch\nUSER a", "n", &|case| case.context("n", "https://h/a.git"), Ok(Some(60))),
        (STAGE, "src", &|_| {}, Ok(Some(60))),
        ("FROM a AS src\nADD https://h/a /\nFROM scratch", "src", &|_| {}, Err("starts FROM scratch")),
        ("FROM scratch AS src\nADD a /\nFROM scratch", "src", &|_| {}, Err("no remote source")),
        ("FROM scratch AS src\nUSER x\nFROM scratch", "src", &|_| {}, Err("no instructions but")),
        ("FROM scratch AS src\nFROM scratch", "src", &|_| {}, Err("exactly one ADD")),
    ] {
        let (case, lowered) = run(dockerfile, |case| {
            case.request.build_args.insert("SOURCE_DATE_EPOCH".into(), epoch.into());
            setup(case);
        });
        match (lowered, expected) {
            (Ok(lowered), Ok(expected)) => assert_eq!(lowered.results[0].epoch, expected, "{dockerfile} {epoch}"),
            (Err(errors), Err(part)) => assert!(errors.iter().any(|it| it.message.contains(part)), "{errors:?}"),
            (found, _) => panic!("{dockerfile} {epoch}: {found:?} {:?}", case.asked),
        }
    }
}
