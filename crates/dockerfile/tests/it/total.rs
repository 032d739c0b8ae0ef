//! The parser never fails: any text, and Dockerfiles with damage.

use build_engine_dockerfile::{
    Diagnostic, Instruction, LineIndex, Span, Statement, detect_syntax,
    expand::Lex,
    glob_match,
    ignore::Ignore,
    lint::{Linter, Options, check_text},
    parse, parse_duration, parse_syntax, parse_trigger, syntax_json,
};
use proptest::prelude::*;

const SAMPLE: &str = r#"# syntax=docker/dockerfile:1
# escape=\
ARG TAG=3.20
FROM --platform=$BUILDPLATFORM alpine:${TAG:-3} AS build
# name does things
ARG name="x y" other
RUN --mount=type=cache,target=/c,"id=a b" make \
  # comment

  all <<-'EOF' 3<<B
	body $x
	EOF
more
B
COPY --from=build --chown=1:2 ["a b", "/c/"]
ADD <<f https://x/y /d
text
f
ENV a=1 b="c d" e=\ f
LABEL g h
ONBUILD RUN ["a", "\u00e9"]
HEALTHCHECK --interval=1m30s CMD curl -f ${URL?needed}
EXPOSE 80 7000-7010/udp
"#;

fn span_is_valid(source: &str, span: Span) -> bool {
    span.start <= span.end && source.get(span.start..span.end).is_some()
}

fn statement_spans(statement: &Statement) -> Vec<Span> {
    let words = statement.flags.iter().chain(&statement.args).map(|word| word.span);
    let mut spans: Vec<Span> = words.chain([statement.span, statement.keyword.span]).collect();
    spans.extend(statement.trigger.iter().flat_map(|trigger| statement_spans(trigger)));
    spans
}

/// Runs everything that takes text and checks what must hold of any result.
fn exercise(source: &str) {
    let (dockerfile, diagnostics) = parse(source);
    let mut linter = Linter::new(Options::parse(source).unwrap_or_default());
    check_text(&dockerfile, &diagnostics, &mut linter);
    let instructions = dockerfile.stages.iter().flat_map(|stage| &stage.instructions).chain(&dockerfile.global_args);
    let spans = diagnostics
        .iter()
        .chain(linter.found())
        .map(|found: &Diagnostic| found.span)
        .chain(dockerfile.statements.iter().flat_map(statement_spans))
        .chain(instructions.map(|found: &Instruction| found.span))
        .chain(dockerfile.directives.iter().map(|found| found.value.span));
    let index = LineIndex::new(source);
    for span in spans {
        assert!(span_is_valid(source, span), "{span} in {source:?}");
        let (line, column) = index.position(span.start);
        assert!(line >= 1 && column >= 1);
    }
    let mut last = 0;
    for statement in &dockerfile.statements {
        assert!(statement.start_line > last && statement.end_line >= statement.start_line, "{source:?}");
        last = statement.end_line;
    }
    let (syntax, diagnostics) = parse_syntax(source);
    let _ = syntax_json::to_json(&syntax, &diagnostics, source);
    let _ = detect_syntax(source);
    let _ = parse_trigger(source);
    let env = |name: &str| name.len().is_multiple_of(2).then(|| "va*lue".to_owned());
    for lex in [Lex::new('\\'), Lex { raw_quotes: true, raw_escapes: true, skip_unset: true, ..Lex::new('`') }] {
        let _ = lex.word(source, &env);
        let _ = lex.words(source, &env);
    }
    let _ = glob_match(source, "a/b");
    let _ = parse_duration(source);
    if let Ok(ignore) = Ignore::parse(source) {
        let verdict = ignore.verdict("a/b/c.txt");
        let _ = ignore.can_prune("a/b/c.txt", &verdict);
        let _ = Ignore::new(&ignore.patterns());
    }
}

#[test]
fn the_sample_is_right() {
    let (_, diagnostics) = parse(SAMPLE);
    assert!(diagnostics.iter().all(|found| found.rule == "NoEmptyContinuation"), "{diagnostics:?}");
    exercise(SAMPLE);
}

#[test]
fn every_cut_of_the_sample_is_parsed() {
    for (at, _) in SAMPLE.char_indices() {
        exercise(&SAMPLE[..at]);
        exercise(&SAMPLE[at..]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_parsed(source in "\\PC*|[\\s\\S]{0,200}") {
        exercise(&source);
    }

    #[test]
    fn text_of_the_language_s_characters_is_parsed(
        source in "([A-Z]{2,4} |RUN |COPY |ENV |FROM |ONBUILD |<<E|E\n|\\$\\{|[ \t\n\r\\\\`'\"#<>=\\[\\]{}$:?+/%*!,-]|é|[a-z]){0,80}"
    ) {
        exercise(&source);
    }

    #[test]
    fn damaged_dockerfiles_are_parsed(
        edits in proptest::collection::vec((0..SAMPLE.len(), 0..20usize, "[ \\\\\n\"'<$\\{\\}\\[a-zé]{0,4}"), 1..6)
    ) {
        let mut source = SAMPLE.to_owned();
        for (at, length, insert) in edits {
            let start = (0..=at.min(source.len())).rev().find(|at| source.is_char_boundary(*at)).unwrap_or(0);
            let end = (start + length).min(source.len());
            let end = (end..=source.len()).find(|at| source.is_char_boundary(*at)).unwrap_or(source.len());
            source.replace_range(start..end, &insert);
        }
        exercise(&source);
    }
}
