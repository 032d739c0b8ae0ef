//! The forms in which `validate` reports: text, JSON, SARIF, workflow commands of GitHub.
//!
//! Sources: SARIF 2.1.0 (OASIS); GitHub Actions, "Workflow commands".

use build_engine_dockerfile::lint::Rule;
use build_engine_engine::BuildError;
use build_engine_engine::checks::Finding;
use serde_json::{Value, json};

use crate::ui::text;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Warning,
    Error,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One finding in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Diagnostic {
    pub(super) file: String,
    pub(super) level: Level,
    pub(super) rule: String,
    pub(super) message: String,
    hint: Option<String>,
    url: String,
    /// First line, counted from 1; 0 for what is about no line.
    pub(super) line: usize,
    end_line: usize,
}

impl Diagnostic {
    pub(super) fn new(file: &str, level: Level, found: Finding) -> Self {
        let (line, end_line) = found.lines.unwrap_or((0, 0));
        Self {
            file: file.to_owned(),
            level,
            rule: found.rule,
            message: found.message,
            hint: found.hint,
            url: found.url,
            line,
            end_line,
        }
    }

    /// What there is to say about a file that cannot be checked at all.
    pub(super) fn unreadable(file: &str, error: &BuildError) -> Vec<Self> {
        let of = |report: &build_engine_engine::Report| {
            let mut message = report.message.clone();
            for cause in &report.causes {
                message = format!("{message}: {cause}");
            }
            let rule = if report.rule.is_empty() { "unreadable".to_owned() } else { report.rule.clone() };
            let (file, hint) = (file.to_owned(), report.hint.clone());
            Self { file, level: Level::Error, rule, message, hint, url: String::new(), line: 0, end_line: 0 }
        };
        error.reports.iter().map(of).collect()
    }
}

/// `FILE:LINE: level: message [Rule]`, as compilers write it.
pub(super) fn text(diagnostics: &[Diagnostic]) -> String {
    let mut out = String::new();
    for found in diagnostics {
        let line = if found.line > 0 { format!(":{}", found.line) } else { String::new() };
        let (file, message) = (text::clean(&found.file), text::clean(&found.message));
        out.push_str(&format!("{file}{line}: {}: {message} [{}]\n", found.level.as_str(), found.rule));
        for more in found.hint.iter().map(|hint| format!("hint: {hint}")).chain(Some(found.url.clone())) {
            if !more.is_empty() {
                out.push_str(&format!("  {}\n", text::clean(&more)));
            }
        }
    }
    out
}

/// `{"diagnostics": […]}`; files are named where there may be several.
pub(super) fn json(diagnostics: &[Diagnostic], with_files: bool) -> String {
    let list: Vec<Value> = diagnostics
        .iter()
        .map(|found| {
            let mut value = json!({
                "rule": found.rule,
                "level": found.level.as_str(),
                "line": found.line,
                "message": found.message,
            });
            if with_files {
                value["file"] = found.file.as_str().into();
            }
            value
        })
        .collect();
    format!("{:#}\n", json!({ "diagnostics": list }))
}

/// A SARIF log with one run.
pub(super) fn sarif(diagnostics: &[Diagnostic]) -> String {
    let mut rules: Vec<Value> = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    let mut results = Vec::new();
    for found in diagnostics {
        let index = names.iter().position(|name| *name == found.rule).unwrap_or_else(|| {
            names.push(&found.rule);
            let mut rule = json!({ "id": found.rule });
            if let Some(known) = Rule::named(&found.rule) {
                rule["shortDescription"] = json!({ "text": known.description });
                if let Some(url) = known.url() {
                    rule["helpUri"] = url.into();
                }
            }
            rule["defaultConfiguration"] = json!({ "level": found.level.as_str() });
            rules.push(rule);
            names.len() - 1
        });
        let mut place = json!({ "artifactLocation": { "uri": uri(&found.file) } });
        if found.line > 0 {
            place["region"] = json!({ "startLine": found.line, "endLine": found.end_line });
        }
        results.push(json!({
            "ruleId": found.rule,
            "ruleIndex": index,
            "level": found.level.as_str(),
            "message": { "text": found.message },
            "locations": [{ "physicalLocation": place }],
        }));
    }
    let driver = json!({ "name": "build-engine", "version": env!("CARGO_PKG_VERSION"), "rules": rules });
    let log = json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{ "tool": { "driver": driver }, "results": results }],
    });
    format!("{log:#}\n")
}

/// A path as a relative reference: what is not allowed in one is escaped.
fn uri(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.trim_start_matches("./").bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Lines that GitHub Actions turns into annotations.
pub(super) fn github(diagnostics: &[Diagnostic]) -> String {
    let mut out = String::new();
    for found in diagnostics {
        let mut properties = format!("file={}", property(&found.file));
        if found.line > 0 {
            properties.push_str(&format!(",line={},endLine={}", found.line, found.end_line));
        }
        let title = property(&found.rule);
        out.push_str(&format!("::{} {properties},title={title}::{}\n", found.level.as_str(), data(&found.message)));
    }
    out
}

fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn diagnostics() -> Vec<Diagnostic> {
        let found = |rule: &str, message: &str, lines| Finding {
            rule: rule.into(),
            is_rule: true,
            message: message.into(),
            description: String::new(),
            url: Rule::named(rule).and_then(Rule::url).unwrap_or_default(),
            hint: None,
            lines,
            place: None,
        };
        vec![
            Diagnostic::new(
                "a,b: c/Dockerfile",
                Level::Warning,
                found("StageNameCasing", "Stage name 'A' should be lowercase", Some((2, 3))),
            ),
            Diagnostic::new("Dockerfile", Level::Error, found("syntax", "50%\nof it", None)),
        ]
    }

    #[test]
    fn people_get_a_line_each() {
        expect![[r#"
            a,b: c/Dockerfile:2: warning: Stage name 'A' should be lowercase [StageNameCasing]
              https://docs.docker.com/go/dockerfile/rule/stage-name-casing/
            Dockerfile: error: 50% of it [syntax]
        "#]]
        .assert_eq(&text(&diagnostics()));
    }

    #[test]
    fn github_gets_annotations_whose_separators_are_escaped() {
        expect![[r#"
            ::warning file=a%2Cb%3A c/Dockerfile,line=2,endLine=3,title=StageNameCasing::Stage name 'A' should be lowercase
            ::error file=Dockerfile,title=syntax::50%25%0Aof it
        "#]]
        .assert_eq(&github(&diagnostics()));
    }

    #[test]
    fn sarif_names_every_rule_once() {
        let log: Value = serde_json::from_str(&sarif(&[diagnostics(), diagnostics()].concat())).expect("JSON");
        let run = &log["runs"][0];
        assert_eq!(run["tool"]["driver"]["rules"].as_array().map(Vec::len), Some(2));
        assert_eq!(run["results"].as_array().map(Vec::len), Some(4));
        assert_eq!(run["results"][2]["ruleIndex"], 0);
        expect![[r#"{"ruleId":"StageNameCasing","ruleIndex":0,"level":"warning","message":{"text":"Stage name 'A' should be lowercase"},"locations":[{"physicalLocation":{"artifactLocation":{"uri":"a%2Cb%3A%20c/Dockerfile"},"region":{"startLine":2,"endLine":3}}}]}"#]]
            .assert_eq(&run["results"][0].to_string());
    }

    #[test]
    fn programs_get_four_fields_and_the_file_where_there_may_be_several() {
        let value =
            |files| serde_json::from_str::<Value>(&json(&diagnostics(), files)).expect("JSON")["diagnostics"].clone();
        assert_eq!(
            value(false)[0],
            json!({"rule": "StageNameCasing", "level": "warning", "line": 2, "message": "Stage name 'A' should be lowercase"})
        );
        assert_eq!(value(true)[1]["file"], "Dockerfile");
    }
}
