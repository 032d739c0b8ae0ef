//! From text to statements.

use build_engine_dockerfile::{LineIndex, detect_syntax, parse_heredoc_word, parse_syntax, syntax_json};
use expect_test::{Expect, expect};

use crate::render;

#[expect(clippy::needless_pass_by_value, reason = "expectations are written where they are used")]
fn check(source: &str, expected: Expect) {
    expected.assert_eq(&render::syntax(source));
}

/// F1-001.
#[test]
fn keywords_are_case_insensitive() {
    check(
        "from a\nRUN b\nCopy c d",
        expect![[r#"
        1-1 from "a"
        2-2 run "b"
        3-3 copy "c" "d"
    "#]],
    );
}

/// F1-002.
#[test]
fn an_unknown_instruction_is_no_syntax_error() {
    check(
        "FROM a\nRUNN make",
        expect![[r#"
        1-1 from "a"
        2-2 runn ""
    "#]],
    );
}

/// F1-003.
#[test]
fn comments_inside_a_continued_instruction_are_dropped() {
    check(
        "FROM a\nRUN one \\\n  # not this\n  two # but this",
        expect![[r#"
        1-1 from "a"
        2-4 run "one   two # but this"
    "#]],
    );
}

/// F1-009.
#[test]
fn comments_stay_with_the_next_instruction_across_blank_lines() {
    check(
        "# a\n\n# b\nFROM x\n# gone\n#\n# kept\nRUN y\nRUN z",
        expect![[r#"
        4-4 from "x" ["a", "b"]
        8-8 run "y" ["kept"]
        9-9 run "z"
    "#]],
    );
}

#[test]
fn an_indented_comment_keeps_its_hash() {
    check(
        "  # note\nFROM a",
        expect![[r##"
        2-2 from "a" ["# note"]
    "##]],
    );
}

/// F1-004.
#[test]
fn continuation_joins_lines_and_keeps_inner_blanks() {
    check(
        "RUN a && \\\n    b && \\ \t\n\tc",
        expect![[r#"
        1-3 run "a &&     b && \tc"
    "#]],
    );
}

/// F1-004.
#[test]
fn empty_continuation_lines_warn() {
    check(
        "FROM a\nRUN one \\\n\n  two",
        expect![[r#"
            1-1 from "a"
            2-4 run "one   two"
            warn NoEmptyContinuation 4:1..4:6 Empty continuation line
        "#]],
    );
}

/// F1-004.
#[test]
fn a_doubled_escape_does_not_continue() {
    check(
        "RUN a \\\\\nRUN b",
        expect![[r#"
        1-1 run "a \\\\"
        2-2 run "b"
    "#]],
    );
}

#[test]
fn a_lone_escape_continues() {
    check(
        "\\\nRUN a\\\n",
        expect![[r#"
        1-2 run "a"
    "#]],
    );
}

#[test]
fn continuation_at_the_end_of_the_file_is_harmless() {
    check(
        "RUN a \\",
        expect![[r#"
        1-1 run "a"
    "#]],
    );
}

#[test]
fn continuation_may_split_a_keyword() {
    check(
        "RU\\\nN a",
        expect![[r#"
        1-2 run "a"
    "#]],
    );
}

/// F1-005.
#[test]
fn the_escape_directive_changes_continuation() {
    check(
        "# escape=`\nFROM a\nRUN dir C:\\ `\n  more",
        expect![[r#"
        escape `
        # escape="`" 1:10..1:11
        2-2 from "a"
        3-4 run "dir C:\\   more"
    "#]],
    );
}

/// F1-005.
#[test]
fn an_invalid_escape_is_an_error() {
    check(
        "# escape=x\nFROM a",
        expect![[r##"
        # escape="x" 1:10..1:11
        2-2 from "a"
        error invalid-escape 1:10..1:11 invalid escape token 'x' does not match ` or \
    "##]],
    );
}

/// F1-005, F1-010.
#[test]
fn a_repeated_directive_is_an_error() {
    check(
        "# escape=`\n# Escape = \\\nFROM a",
        expect![[r#"
        escape `
        # escape="`" 1:10..1:11
        3-3 from "a"
        error duplicate-directive 2:1..2:13 only one escape parser directive can be used
    "#]],
    );
}

/// F1-010.
#[test]
fn directives_stop_at_the_first_other_line() {
    check(
        "# comment\n# escape=`\nFROM a",
        expect![[r#"
        3-3 from "a" ["comment", "escape=`"]
    "#]],
    );
}

/// F1-010.
#[test]
fn directives_stop_at_a_blank_line() {
    check(
        "\n# escape=`\nFROM a",
        expect![[r#"
        3-3 from "a" ["escape=`"]
    "#]],
    );
}

/// F1-010.
#[test]
fn an_unknown_directive_is_a_comment() {
    check(
        "# other=1\n# escape=`\nFROM a",
        expect![[r#"
        3-3 from "a" ["other=1", "escape=`"]
    "#]],
    );
}

/// F1-006, F1-008, F1-010.
#[test]
fn directive_keys_ignore_case_and_blanks() {
    check(
        "#  SYNTAX  =  docker/dockerfile:1  \n# check=skip=all;error=true\nFROM a",
        expect![[r##"
        # syntax="docker/dockerfile:1" 1:15..1:34
        # check="skip=all;error=true" 2:9..2:28
        3-3 from "a"
    "##]],
    );
}

/// F1-007.
#[test]
fn syntax_is_found_after_a_shebang() {
    check(
        "#!/usr/bin/env docker\n# syntax=x/y\n# escape=`\nFROM a",
        expect![[r##"
        # syntax="x/y" 2:10..2:13
        4-4 from "a" ["!/usr/bin/env docker", "syntax=x/y", "escape=`"]
    "##]],
    );
}

/// F1-007.
#[test]
fn syntax_is_found_in_slash_comments() {
    check(
        "// syntax=x/y\nFROM a",
        expect![[r##"
        # syntax="x/y" 1:11..1:14
        1-1 // ""
        2-2 from "a"
    "##]],
    );
}

/// F1-007.
#[test]
fn syntax_is_found_in_json() {
    check(
        "{\"syntax\": \"x/y:1\"}",
        expect![[r##"
        # syntax="x/y:1" 1:1..1:2
        1-1 {"syntax": ""
    "##]],
    );
}

/// F1-007.
#[test]
fn a_byte_order_mark_is_skipped() {
    check(
        "\u{feff}# syntax=x/y\nFROM a",
        expect![[r##"
        # syntax="x/y" 1:11..1:14
        2-2 from "a"
    "##]],
    );
}

#[test]
fn line_ends_of_windows_are_ignored() {
    check(
        "FROM a\r\nRUN b \\\r\n  c\r\n",
        expect![[r#"
        1-1 from "a"
        2-3 run "b   c"
    "#]],
    );
}

/// F1-020.
#[test]
fn json_arguments() {
    check(
        "CMD [\"a\", \"b c\", \"\\u00e9\\n\\\"\\ud83d\\ude00\"]\nRUN []\nCOPY [\"a b\", \"c\"]\nVOLUME [ \"/a\" , \"/b\" ]",
        expect![[r#"
        1-1 cmd "a" "b c" "é\n\"😀" json
        2-2 run json
        3-3 copy "a b" "c" json
        4-4 volume "/a" "/b" json
    "#]],
    );
}

/// F1-020.
#[test]
fn broken_json_falls_back_to_the_shell_form() {
    check(
        "CMD ['a', 'b']\nRUN [\"a\\x\"]\nRUN [\"a\"] b\nRUN [\"a\",]\nCOPY [a b]\nRUN [ -f x ] && y",
        expect![[r#"
        1-1 cmd "['a', 'b']"
        2-2 run "[\"a\\x\"]"
        3-3 run "[\"a\"] b"
        4-4 run "[\"a\",]"
        5-5 copy "[a" "b]"
        6-6 run "[ -f x ] && y"
    "#]],
    );
}

/// F1-020.
#[test]
fn json_with_other_values_is_an_error() {
    check(
        "CMD [\"a\", 1]\nRUN [[\"a\"]]\nRUN [null]",
        expect![[r#"
        1-1 cmd
        2-2 run
        3-3 run
        error syntax 1:5..1:13 when using JSON array syntax, arrays must be comprised of strings only
        error syntax 2:5..2:12 when using JSON array syntax, arrays must be comprised of strings only
        error syntax 3:5..3:11 when using JSON array syntax, arrays must be comprised of strings only
    "#]],
    );
}

/// F1-090.
#[test]
fn flags_end_at_the_first_other_word() {
    check(
        "COPY --from=a --chown=b c --d e",
        expect![[r#"
        1-1 copy [--from=a] [--chown=b] "c" "--d" "e"
    "#]],
    );
}

/// F1-090.
#[test]
fn flags_may_be_quoted_and_escaped() {
    check(
        "COPY --a=\"x y\" --b=\\\"q --c=d''e --\"f\" z\nRUN -- --notaflag",
        expect![[r#"
        1-1 copy [--a=x y] [--b="q] [--c=de] [--f] "z"
        2-2 run "--notaflag"
    "#]],
    );
}

#[test]
fn flags_keep_characters_beyond_ascii() {
    check(
        "COPY --chown=jürgen:à a b",
        expect![[r#"
        1-1 copy [--chown=jürgen:à] "a" "b"
    "#]],
    );
}

/// F1-121.
#[test]
fn env_pairs_keep_their_quotes() {
    check(
        "ENV a=1 b=\"x y\" c=\\ d e='f g'",
        expect![[r#"
        1-1 env "a" "1" "=" "b" "\"x y\"" "=" "c" "\\ d" "=" "e" "'f g'" "="
    "#]],
    );
}

/// F1-121.
#[test]
fn env_old_form_takes_the_rest_of_the_line() {
    check(
        "ENV key  some  value = x\nLABEL a b",
        expect![[r#"
        1-1 env "key" "some  value = x" ""
        2-2 label "a" "b" ""
    "#]],
    );
}

/// F1-121.
#[test]
fn env_mistakes_are_reported() {
    check(
        "ENV key\nENV a=1 b\nENV",
        expect![[r#"
        1-1 env
        2-2 env "a" "1" "="
        3-3 env
        error syntax 1:5..1:8 ENV must have two arguments
        error syntax 2:9..2:10 Syntax error - can't find = in "b". Must be of the form: name=value
    "#]],
    );
}

/// F1-039.
#[test]
fn arg_words() {
    check(
        "ARG\nARG a b=1 c=\"x y\"",
        expect![[r#"
        1-1 arg
        2-2 arg "a" "b=1" "c=\"x y\""
    "#]],
    );
}

/// F1-122.
#[test]
fn label_keys_may_be_quoted() {
    check(
        "LABEL \"com.example.a b\"=\"c d\" e=f",
        expect![[r#"
        1-1 label "\"com.example.a b\"" "\"c d\"" "=" "e" "f" "="
    "#]],
    );
}

/// F1-123.
#[test]
fn words_split_at_blanks_only() {
    check(
        "EXPOSE 80  81/udp\t82\nFROM a  AS  b\nVOLUME /a /b",
        expect![[r#"
        1-1 expose "80" "81/udp" "82"
        2-2 from "a" "AS" "b"
        3-3 volume "/a" "/b"
    "#]],
    );
}

/// F1-125.
#[test]
fn one_word_instructions_take_the_whole_line() {
    check(
        "USER a b\nWORKDIR /a b\nMAINTAINER Me <me@x>\nSTOPSIGNAL SIGINT",
        expect![[r#"
        1-1 user "a b"
        2-2 workdir "/a b"
        3-3 maintainer "Me <me@x>"
        4-4 stopsignal "SIGINT"
    "#]],
    );
}

/// F1-128.
#[test]
fn healthcheck_splits_off_its_type() {
    check(
        "HEALTHCHECK --interval=5s CMD curl -f x\nHEALTHCHECK CMD [\"a\"]\nHEALTHCHECK NONE\nHEALTHCHECK",
        expect![[r#"
        1-1 healthcheck [--interval=5s] "CMD" "curl -f x"
        2-2 healthcheck "CMD" "a" json
        3-3 healthcheck "NONE"
        4-4 healthcheck
    "#]],
    );
}

/// F1-126.
#[test]
fn onbuild_nests_a_statement() {
    check(
        "ONBUILD RUN --mount=type=cache,target=/c make all\nONBUILD COPY [\"a\",\"b\"]\nONBUILD",
        expect![[r#"
        1-1 onbuild (run [--mount=type=cache,target=/c] "make all")
        2-2 onbuild (copy "a" "b" json)
        3-3 onbuild
    "#]],
    );
}

/// F1-017.
#[test]
fn heredoc_in_run() {
    check(
        "RUN <<EOT\n  echo $a\n# kept\n\nEOT\nRUN b",
        expect![[r#"
        1-5 run "<<EOT" <<EOT "  echo $a\n# kept\n\n"
        6-6 run "b"
    "#]],
    );
}

/// F1-017.
#[test]
fn several_heredocs_in_one_line() {
    check(
        "RUN 3<<A cat <<-\"B\" /dev/fd/3\na\nA\n\tb\n\tB",
        expect![[r#"
        1-5 run "3<<A cat <<-\"B\" /dev/fd/3" 3<<A "a\n" <<-"B" "\tb\n"
    "#]],
    );
}

/// F1-017.
#[test]
fn heredoc_words_may_be_separated_and_quoted() {
    check(
        "RUN <<  EOF > x\nEOF\nRUN <<'one two'\nbody\none two\nRUN <<eo'f'\neof\nRUN <<$EOF\n$EOF",
        expect![[r#"
        1-2 run "<<  EOF > x" <<EOF ""
        3-5 run "<<'one two'" <<"one two" "body\n"
        6-7 run "<<eo'f'" <<"eof" ""
        8-9 run "<<$EOF" <<$EOF ""
    "#]],
    );
}

/// F1-017.
#[test]
fn heredocs_do_not_start_in_quotes_or_here_strings() {
    check(
        "RUN \"<<A\" <<<B\nRUN [\"<<C\"]\nUSER <<D",
        expect![[r#"
        1-1 run "\"<<A\" <<<B"
        2-2 run "<<C" json
        3-3 user "<<D"
    "#]],
    );
}

/// F1-018.
#[test]
fn heredoc_in_copy_and_add() {
    check(
        "COPY <<a <<\"b\" /x/\n1\na\n2\nb\nADD <<c /y\n3\nc",
        expect![[r#"
        1-5 copy "<<a" "<<\"b\"" "/x/" <<a "1\n" <<"b" "2\n"
        6-8 add "<<c" "/y" <<c "3\n"
    "#]],
    );
}

/// F1-019.
#[test]
fn heredoc_in_onbuild() {
    check(
        "ONBUILD COPY <<a /x\nbody\na",
        expect![[r#"
        1-3 onbuild (copy "<<a" "/x") <<a "body\n"
    "#]],
    );
}

#[test]
fn heredoc_ends_with_windows_line_ends() {
    check(
        "RUN <<E\r\na\r\nE\r\nRUN b",
        expect![[r#"
        1-3 run "<<E" <<E "a\r\n"
        4-4 run "b"
    "#]],
    );
}

#[test]
fn heredoc_line_must_be_the_word_alone() {
    check(
        "RUN <<E\n E\nE \nE",
        expect![[r#"
        1-4 run "<<E" <<E " E\nE \n"
    "#]],
    );
}

/// D02.
#[test]
fn an_unterminated_heredoc_points_at_its_word() {
    check(
        "FROM a\nRUN cat <<ONE \\\n  <<TWO\nx\nONE\ny",
        expect![[r#"
        1-1 from "a"
        2-6 run "cat <<ONE   <<TWO" <<ONE "x\n"
        error unterminated-heredoc 3:3..3:8 unterminated heredoc: no line says `TWO`
    "#]],
    );
}

#[test]
fn a_heredoc_with_unbalanced_quotes_is_left_to_the_shell() {
    check(
        "RUN echo it's <<E\nE",
        expect![[r#"
        1-1 run "echo it's <<E"
        2-2 e ""
    "#]],
    );
}

/// F1-021.
#[test]
fn an_empty_file_is_an_error() {
    check(
        "",
        expect![[r#"
        error empty-dockerfile 1:1..1:1 file with no instructions
    "#]],
    );
}

/// F1-021.
#[test]
fn a_file_of_comments_is_an_error() {
    check(
        "# a\n\n# b\n",
        expect![[r#"
        error empty-dockerfile 4:1..4:1 file with no instructions
    "#]],
    );
}

/// D05.
#[test]
fn bidirectional_controls_warn() {
    check(
        "FROM a\nRUN echo \u{202e}",
        expect![[r#"
        1-1 from "a"
        2-2 run "echo \u{202e}"
        warn bidi-control 2:10..2:11 bidirectional control character U+202E: the text may not be what it looks like
    "#]],
    );
}

/// D05.
#[test]
fn nul_is_an_ordinary_character() {
    check(
        "FROM a\nRUN b\0c",
        expect![[r#"
            1-1 from "a"
            2-2 run "b\0c"
        "#]],
    );
}

#[test]
fn json_has_the_documented_shape() {
    let source =
        "# escape=`\n# note\nFROM a\nONBUILD RUN --mount=target=/b make <<-X\n\tx\nX\nCMD [\"a\"]\nENV `\n\n  a b\n";
    let (syntax, diagnostics) = parse_syntax(source);
    let json = syntax_json::to_json(&syntax, &diagnostics, source);
    expect![[r#"
        {
          "escape": "`",
          "instructions": [
            {
              "name": "from",
              "flags": [],
              "args": [
                "a"
              ],
              "exec_form": false,
              "start_line": 3,
              "end_line": 3,
              "comments": [
                "note"
              ],
              "original": "FROM a",
              "heredocs": [],
              "trigger": null
            },
            {
              "name": "onbuild",
              "flags": [],
              "args": [],
              "exec_form": false,
              "start_line": 4,
              "end_line": 6,
              "comments": [],
              "original": "ONBUILD RUN --mount=target=/b make <<-X",
              "heredocs": [
                {
                  "name": "X",
                  "fd": 0,
                  "expand": true,
                  "chomp": true,
                  "content": "\tx\n"
                }
              ],
              "trigger": {
                "name": "run",
                "flags": [
                  "--mount=target=/b"
                ],
                "args": [
                  "make <<-X"
                ],
                "exec_form": false,
                "start_line": 4,
                "end_line": 6,
                "comments": [],
                "original": "RUN --mount=target=/b make <<-X",
                "heredocs": [],
                "trigger": null
              }
            },
            {
              "name": "cmd",
              "flags": [],
              "args": [
                "a"
              ],
              "exec_form": true,
              "start_line": 7,
              "end_line": 7,
              "comments": [],
              "original": "CMD [\"a\"]",
              "heredocs": [],
              "trigger": null
            },
            {
              "name": "env",
              "flags": [],
              "args": [
                "a",
                "b",
                ""
              ],
              "exec_form": false,
              "start_line": 8,
              "end_line": 10,
              "comments": [],
              "original": "ENV   a b",
              "heredocs": [],
              "trigger": null
            }
          ],
          "warnings": [
            {
              "rule": "NoEmptyContinuation",
              "line": 10,
              "message": "Empty continuation line"
            }
          ]
        }"#]]
    .assert_eq(&format!("{json:#}"));
}

#[test]
fn heredoc_words_f1_017() {
    for word in ["<<EOF", "<<'EOF'", "<<\"EOF\"", "<<-EOF", "<<-'EOF'", "<<EO\"F\"", "<< EOF", "<<- EOF", "12<<EOF"] {
        assert_eq!(parse_heredoc_word(word).unwrap().unwrap().name, "EOF", "{word}");
    }
    for word in ["", "EOF", "<<", "<<-", "<EOF", "<<<EOF", "<<EOF sh", "x<<EOF"] {
        assert_eq!(parse_heredoc_word(word).unwrap(), None, "{word}");
    }
    for word in ["<<'EOF", "<<\"EOF", "<<EOF'", "<<EOF\""] {
        assert!(parse_heredoc_word(word).is_err(), "{word}");
    }
}

#[test]
fn heredoc_text_loses_its_tabs_f1_018() {
    let mut heredoc = parse_heredoc_word("<<-E").unwrap().unwrap();
    heredoc.content = "\t\ta\n b\n\tc\td\n".to_owned();
    assert_eq!(heredoc.text(), "a\n b\nc\td\n");
}

#[test]
fn the_wanted_frontend_is_detected_f1_007() {
    let cases = [
        ("# syntax = a/b:1 with options\nFROM x", Some("a/b:1 with options")),
        ("#!/bin/x\n// syntax=a\n", Some("a")),
        ("\u{feff}{\n \"syntax\": \"a\", \"other\": [1]}", Some("a")),
        ("// check=skip=all\n// syntax=a", Some("a")),
        ("FROM x\n# syntax=a", None),
        ("# comment\n# syntax=a", None),
        ("{\"syntax\": 1}", None),
        ("{\"syntax\": \"a\"", None),
        ("#syntax=", None),
        ("", None),
    ];
    for (source, expected) in cases {
        assert_eq!(detect_syntax(source).map(|found| found.value.value).as_deref(), expected, "{source:?}");
    }
}

#[test]
fn positions_count_lines_and_characters_from_one() {
    let index = LineIndex::new("ab\nüx\n");
    assert_eq!(
        [0, 2, 3, 5, 6, 7, 99].map(|at| index.position(at)),
        [(1, 1), (1, 3), (2, 1), (2, 2), (2, 3), (3, 1), (3, 1)]
    );
}
