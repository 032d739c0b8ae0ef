//! `dockerfile`: the language without a build. Nothing here reads more than the one file.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use build_engine_dockerfile::expand::Lex;
use build_engine_dockerfile::{Diagnostic, MAX_SOURCE_BYTES, Statement, parse_syntax, syntax_json};
use build_engine_engine::checks::{outline_offline, request_without_context};
use build_engine_engine::{ExitKind, Report};
use serde_json::json;

use crate::errors::Failure;
use crate::output;
use crate::ui::text;

/// Commands of `dockerfile`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show the instructions of a Dockerfile as they are parsed: syntax only
    Parse {
        /// Form of the output
        #[arg(long, value_enum, default_value_t)]
        format: Format,
        /// The Dockerfile; `-` reads standard input
        file: String,
    },
    /// Show what can be set in a build of a target; base images are not looked at
    Outline {
        /// Form of the output, as `build --call=outline` has it
        #[arg(long, value_enum, default_value_t)]
        format: Format,
        /// Stage [default: the last one]
        #[arg(long, value_name = "STAGE")]
        target: Option<String>,
        /// Set a build argument
        #[arg(long, value_name = "NAME=VALUE")]
        build_arg: Vec<String>,
        /// The Dockerfile; `-` reads standard input
        file: String,
    },
    /// Expand the variables of a word as Dockerfile instructions do
    Expand {
        /// Form of the output
        #[arg(long, value_enum, default_value_t)]
        format: Format,
        /// Split the result into words
        #[arg(long)]
        words: bool,
        /// Set a variable
        #[arg(long, value_name = "NAME=VALUE")]
        env: Vec<String>,
        /// Escape character of the Dockerfile
        #[arg(long, default_value_t = '\\', value_name = "CHAR")]
        escape: char,
        /// The word
        #[arg(allow_hyphen_values = true)]
        word: String,
    },
}

/// The value of `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

impl Command {
    /// Does it; returns the exit code.
    pub(crate) fn run(self) -> Result<u8, Failure> {
        match self {
            Self::Parse { format, file } => {
                let (name, source) = match file.as_str() {
                    "-" => ("Dockerfile", read(std::io::stdin().lock(), "standard input")?),
                    path => (path, read_file(Path::new(path))?),
                };
                output::print(&parse(&source, name, format)?)?;
            }
            Self::Outline { format, target, build_arg, file } => {
                let (name, source) = match file.as_str() {
                    "-" => ("Dockerfile", read(std::io::stdin().lock(), "standard input")?),
                    path => (path, read_file(Path::new(path))?),
                };
                let mut request = request_without_context(name.to_owned(), None, source);
                request.target = target;
                request.build_args = variables("--build-arg", &build_arg)?;
                let found = outline_offline(&request)?;
                output::print(&super::call::outline(&found, &request, format == Format::Json).stdout)?;
            }
            Self::Expand { format, words, env, escape, word } => {
                output::print(&expand(&word, &env, escape, words, format)?)?;
            }
        }
        Ok(0)
    }
}

/// Reads a Dockerfile.
pub(crate) fn read_file(path: &Path) -> Result<String, Failure> {
    let name = path.display();
    let file = std::fs::File::open(path).map_err(|error| Failure::io(format!("cannot read `{name}`"), &error))?;
    read(file, &name.to_string())
}

/// Reads the text of a Dockerfile, refusing what is too large or no text.
pub(crate) fn read(source: impl Read, name: &str) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    source
        .take(MAX_SOURCE_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::io(format!("cannot read `{name}`"), &error))?;
    if bytes.len() > MAX_SOURCE_BYTES {
        let message = format!("`{name}` is larger than the {MAX_SOURCE_BYTES} bytes that a Dockerfile may have");
        return Err(Failure::new(ExitKind::Limit, Report::new("limit", message)));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::input("not-text", format!("`{name}` is not UTF-8 text (at byte {at})"))
    })
}

fn parse(source: &str, name: &str, format: Format) -> Result<String, Failure> {
    let (syntax, diagnostics) = parse_syntax(source);
    let errors: Vec<&Diagnostic> = diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).collect();
    if !errors.is_empty() {
        let limit = errors.iter().any(|diagnostic| diagnostic.rule == "limit");
        let reports = errors.into_iter().map(|found| Report::from_diagnostic(found, name, source)).collect();
        let mut failure = Failure::inputs(reports);
        if limit {
            (failure.error.kind, failure.code) = (ExitKind::Limit, ExitKind::Limit.code());
        }
        return Err(failure);
    }
    Ok(match format {
        Format::Json => format!("{:#}\n", syntax_json::to_json(&syntax, &diagnostics, source)),
        Format::Text => syntax.statements.iter().map(|statement| describe(statement, "")).collect(),
    })
}

/// One statement a line, its words as JSON strings so that their ends can be seen.
fn describe(statement: &Statement, indent: &str) -> String {
    let lines = match (statement.start_line, statement.end_line) {
        (start, end) if start == end => format!("{start}"),
        (start, end) => format!("{start}-{end}"),
    };
    let flags = statement.flags.iter().map(|flag| text::clean(&flag.value));
    let args = statement.args.iter().map(|word| json!(word.value).to_string());
    let words: Vec<String> = flags.chain(args).collect();
    let form = if statement.exec_form { " (exec)" } else { "" };
    let name = text::clean(&statement.name);
    let mut out = format!("{indent}{lines:<7} {name}{form} {}", words.join(" ")).trim_end().to_owned();
    out.push('\n');
    for heredoc in &statement.heredocs {
        out.push_str(&format!("{indent}        <<{} {}\n", heredoc.name, json!(heredoc.content)));
    }
    if let Some(trigger) = &statement.trigger {
        out.push_str(&describe(trigger, "        "));
    }
    out
}

/// Reads the `NAME=value` pairs of a flag.
fn variables(flag: &str, pairs: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    pairs
        .iter()
        .map(|pair| match pair.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(Failure::input("invalid-flag", format!("`{flag} {pair}`: expected NAME=value"))),
        })
        .collect()
}

fn expand(word: &str, env: &[String], escape: char, words: bool, format: Format) -> Result<String, Failure> {
    let variables = variables("--env", env)?;
    let lex = Lex::new(escape);
    let value = if words {
        json!({ "words": lex.words(word, &variables).map_err(|error| refused(&error))? })
    } else {
        json!({ "result": lex.word(word, &variables).map_err(|error| refused(&error))?.text })
    };
    Ok(match (format, &value["words"]) {
        (Format::Json, _) => format!("{value}\n"),
        (Format::Text, serde_json::Value::Array(words)) => {
            words.iter().map(|word| format!("{}\n", word.as_str().unwrap_or_default())).collect()
        }
        (Format::Text, _) => format!("{}\n", value["result"].as_str().unwrap_or_default()),
    })
}

fn refused(error: &build_engine_dockerfile::expand::ExpandError) -> Failure {
    let (kind, rule) = if error.is_limit() { (ExitKind::Limit, "limit") } else { (ExitKind::Input, "expansion") };
    Failure::new(kind, Report::new(rule, error.to_string()))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    const SOURCE: &str = "# about the base\nFROM scratch AS base\nENV A=1 B=\"two words\"\nRUN --mount=type=cache,target=/c <<EOF\nmake\nEOF\nCMD [\"a\", \"b\"]\nONBUILD COPY a b\nFROBNICATE x\n";

    fn failure(result: Result<String, Failure>) -> (u8, String) {
        let failure = result.expect_err("it is refused");
        (failure.code, failure.error.to_string())
    }

    #[test]
    fn a_dockerfile_is_printed_as_the_documented_json() {
        let text = parse(SOURCE, "Dockerfile", Format::Json).expect("it parses");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["escape"], "\\");
        assert_eq!(value["warnings"], json!([]));
        assert_eq!(
            value["instructions"][1],
            json!({ "name": "env", "flags": [], "args": ["A", "1", "=", "B", "\"two words\"", "="], "exec_form": false,
                    "start_line": 3, "end_line": 3, "comments": [], "original": "ENV A=1 B=\"two words\"",
                    "heredocs": [], "trigger": null })
        );
        assert_eq!(
            value["instructions"][2]["heredocs"],
            json!([{ "name": "EOF", "fd": 0, "expand": true, "chomp": false, "content": "make\n" }])
        );
        assert_eq!(value["instructions"][4]["trigger"]["name"], "copy");
        assert_eq!(value["instructions"][5]["name"], "frobnicate", "an unknown instruction is no mistake of syntax");
    }

    #[test]
    fn people_get_a_statement_a_line() {
        expect![[r#"
            2       from "scratch" "AS" "base"
            3       env "A" "1" "=" "B" "\"two words\"" "="
            4-6     run --mount=type=cache,target=/c "<<EOF"
                    <<EOF "make\n"
            7       cmd (exec) "a" "b"
            8       onbuild
                    8       copy "a" "b"
            9       frobnicate ""
        "#]]
        .assert_eq(&parse(SOURCE, "Dockerfile", Format::Text).expect("it parses"));
    }

    #[test]
    fn a_mistake_of_syntax_is_invalid_input() {
        let (code, message) = failure(parse("FROM scratch\nRUN <<EOF\nnever ended\n", "Dockerfile", Format::Json));
        assert_eq!(code, 2);
        assert!(message.contains("EOF"), "{message}");
    }

    #[test]
    fn words_are_expanded_as_the_documented_json() {
        let env = ["A=1 2".to_owned(), "EMPTY=".to_owned()];
        let json = |word, words| expand(word, &env, '\\', words, Format::Json).expect("it expands");
        assert_eq!(json("x${A}y", false), "{\"result\":\"x1 2y\"}\n");
        assert_eq!(json("x$A \"$A\"", true), "{\"words\":[\"x1\",\"2\",\"1 2\"]}\n");
        assert_eq!(json("${EMPTY:-none}${UNSET}", false), "{\"result\":\"none\"}\n");
        assert_eq!(expand("a $A", &env, '\\', true, Format::Text).expect("it expands"), "a\n1\n2\n");
        assert_eq!(failure(expand("${A", &env, '\\', false, Format::Json)).0, 2);
        assert_eq!(failure(expand("x", &["=1".to_owned()], '\\', false, Format::Json)).0, 2);
    }

    #[test]
    fn what_is_no_text_is_refused_with_its_place() {
        let failure = read(&b"FROM \xff"[..], "Dockerfile").expect_err("it is refused");
        assert_eq!((failure.code, failure.error.to_string().contains("byte 5")), (2, true));
        let failure = read(std::io::repeat(b'#'), "Dockerfile").expect_err("it is refused");
        assert_eq!(failure.code, 5);
    }
}
