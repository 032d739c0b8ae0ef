//! Texts that are too large: one diagnostic with rule `limit`, and soon (security.md D01, D02; limits E.9).

use std::time::{Duration, Instant};

use build_engine_dockerfile::{
    MAX_CONTINUATION_LINES, MAX_INSTRUCTIONS, MAX_LINE_BYTES, MAX_SOURCE_BYTES, MAX_STAGES, parse,
};

/// Whether parsing reports a limit.
fn hits_limit(source: &str) -> bool {
    let start = Instant::now();
    let (_, diagnostics) = parse(source);
    assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
    diagnostics.iter().any(|found| found.rule == "limit" && found.is_error())
}

#[test]
fn the_size_of_the_file_is_limited() {
    assert!(hits_limit(&"#".repeat(MAX_SOURCE_BYTES + 1)));
}

#[test]
fn the_length_of_a_line_is_limited() {
    assert!(hits_limit(&format!("FROM a\nRUN {}", "x".repeat(MAX_LINE_BYTES))));
    assert!(!hits_limit(&format!("FROM a\nRUN {}", "x".repeat(MAX_LINE_BYTES - 4))));
    assert!(hits_limit(&format!("FROM a\n#{}\n", "x".repeat(MAX_LINE_BYTES))));
    assert!(hits_limit(&format!("FROM a\nRUN <<E\n{}\nE\n", "x".repeat(MAX_LINE_BYTES))));
}

#[test]
fn joined_lines_are_limited() {
    let line = format!("{}\\\n", "x".repeat(MAX_LINE_BYTES / 2));
    assert!(hits_limit(&format!("FROM a\nRUN {}", line.repeat(3))));
    assert!(hits_limit(&format!("FROM a\nRUN {}", "x \\\n".repeat(MAX_CONTINUATION_LINES * 10))));
    assert!(!hits_limit(&format!("FROM a\nRUN {}", "x \\\n".repeat(MAX_CONTINUATION_LINES / 2))));
}

#[test]
fn instructions_are_limited() {
    assert!(hits_limit(&format!("FROM a\n{}", "RUN b\n".repeat(1_000_000))));
    assert!(!hits_limit(&format!("FROM a\n{}", "RUN b\n".repeat(MAX_INSTRUCTIONS - 1))));
}

#[test]
fn stages_are_limited() {
    assert!(hits_limit(&"FROM a\n".repeat(MAX_INSTRUCTIONS)));
    assert!(!hits_limit(&"FROM a\n".repeat(MAX_STAGES)));
}

#[test]
fn nesting_needs_no_stack() {
    let (_, diagnostics) = parse(&format!("FROM a\n{}RUN b", "ONBUILD ".repeat(100_000)));
    assert!(diagnostics.iter().any(|found| found.rule == "onbuild"));
    let (_, diagnostics) = parse(&format!("FROM a\nRUN {}", "[".repeat(500_000)));
    assert_eq!(diagnostics, []);
}

#[test]
fn many_heredocs_without_an_end_are_one_mistake() {
    let words: String = (0..10_000).map(|n| format!(" <<E{n}")).collect();
    let (_, diagnostics) = parse(&format!("FROM a\nRUN x{words}\nbody\n"));
    assert_eq!(diagnostics.len(), 1, "{diagnostics:?}");
    let (_, diagnostics) = parse(&format!("FROM a\nRUN <<{}\nx", "E".repeat(4_000)));
    assert_eq!(diagnostics[0].rule, "unterminated-heredoc");
}

#[test]
fn a_file_of_comments_keeps_the_last_ones() {
    let (dockerfile, diagnostics) = parse(&format!("{}# last\nFROM a", "#a\n".repeat(4_000_000)));
    assert_eq!(diagnostics, []);
    let comments = &dockerfile.stages[0].comments;
    assert!(comments.len() <= 10_000 && comments.last().is_some_and(|comment| comment == "last"));
}

/// D02: each heredoc is read to its end, and its name stands in messages.
#[test]
fn d02_heredocs_of_an_instruction_and_their_names_are_limited() {
    let many = |count: usize| {
        let words: String = (0..count).map(|number| format!(" <<E{number}")).collect();
        let bodies: String = (0..count).map(|number| format!("E{number}\n")).collect();
        format!("FROM a\nCOPY{words} /x/\n{bodies}")
    };
    assert!(!hits_limit(&many(1_000)));
    assert!(hits_limit(&many(1_001)));
    let named = |length: usize| {
        let name = "E".repeat(length);
        format!("FROM a\nRUN <<{name}\nx\n{name}\n")
    };
    assert!(!hits_limit(&named(4_096)));
    assert!(hits_limit(&named(4_097)));
}
