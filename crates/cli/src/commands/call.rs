//! `build --call`: questions about a Dockerfile, answered as `docker buildx` prints them.
//!
//! The documents and texts are those of BuildKit's subrequests, so that editors and scripts made for buildx read them.
//! Sources stand in the documents without the graph that BuildKit would read them with.
//!
//! Source: BuildKit `frontend/subrequests`, buildx `util/buildflags/call.go`, `commands/build.go`; the tests have what
//! the peers print.

use std::path::{Path, PathBuf};

use build_engine_dockerfile::{LineIndex, doc_comment, has_errors, parse};
use build_engine_engine::checks::{CheckResult, Finding, Outline, OutlineNeed};
use build_engine_engine::{BuildRequest, ExitKind, Report};
use serde::Serialize;
use serde_json::{Value, json};

use crate::errors::Failure;
use crate::ui::json::base64;
use crate::ui::text;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// The build checks.
    Check,
    /// What can be set.
    Outline,
    /// The stages.
    Targets,
    /// What can be asked.
    Describe,
    /// The graph.
    ConvertLlb,
}

/// The value of `--call`, other than `build`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) json: bool,
    /// Whether findings leave the exit code alone.
    pub(crate) ignore_status: bool,
}

impl Call {
    /// The checks, for people.
    pub(crate) const CHECK: Self = Self { method: Method::Check, json: false, ignore_status: false };
}

/// Parses `METHOD[,format=text|json][,ignorestatus[=BOOL]]`; `None` is `build`.
pub(crate) fn parse_call(text: &str) -> Result<Option<Call>, String> {
    const METHODS: &str = "the methods are build, check, outline, targets, convertllb and subrequests.describe";
    let mut fields = text.split(',').map(str::trim);
    let name = fields.next().unwrap_or_default();
    let name = name.strip_prefix("frontend.").unwrap_or(name);
    let method = match name {
        "" | "build" => None,
        "check" | "lint" => Some(Method::Check),
        "outline" => Some(Method::Outline),
        "targets" => Some(Method::Targets),
        "subrequests.describe" => Some(Method::Describe),
        "convertllb" => Some(Method::ConvertLlb),
        _ => return Err(format!("there is no method `{name}`: {METHODS}")),
    };
    let (mut json, mut ignore_status) = (false, false);
    for field in fields {
        match field.split_once('=').unwrap_or((field, "true")) {
            ("format", "json") => json = true,
            ("format", "text" | "txt") => json = false,
            ("format", other) => return Err(format!("unknown format `{other}`: expected text or json")),
            ("ignorestatus", value) => {
                ignore_status = super::build::boolean(value).map_err(|reason| format!("ignorestatus: {reason}"))?;
            }
            (key, _) => return Err(format!("unknown field `{key}`: expected format or ignorestatus")),
        }
    }
    Ok(method.map(|method| Call { method, json, ignore_status }))
}

/// What is printed, and how it ends.
#[derive(Debug)]
pub(crate) struct Reply {
    /// For standard output.
    pub(crate) stdout: String,
    /// The exit code where nothing is wrong.
    pub(crate) code: u8,
    /// What is wrong with the Dockerfile.
    pub(crate) failure: Option<Failure>,
}

impl Reply {
    fn of(stdout: String) -> Self {
        Self { stdout, code: 0, failure: None }
    }
}

fn pretty(value: &impl Serialize) -> String {
    format!("{:#}\n", serde_json::to_value(value).unwrap_or_default())
}

/// A place in BuildKit's shape: a range for every line.
fn location((first, last): (usize, usize)) -> Value {
    let ranges: Vec<Value> =
        (first..=last.max(first)).map(|line| json!({ "start": { "line": line }, "end": { "line": line } })).collect();
    json!({ "ranges": ranges })
}

/// The Dockerfile as people find it from where they are: below the context where none was named.
pub(crate) fn shown_dockerfile(request: &BuildRequest, context: &str, file: Option<&str>) -> String {
    if file.is_some() {
        return request.dockerfile_name.clone();
    }
    let path: PathBuf = Path::new(context).join(&request.dockerfile_name).components().collect();
    path.strip_prefix(".").unwrap_or(&path).display().to_string()
}

/// Shows what the checks found; `file` is how the Dockerfile is called.
pub(crate) fn check(result: &CheckResult, request: &BuildRequest, file: &str, call: Call) -> Reply {
    let warnings: Vec<&Finding> = result.rule_warnings().collect();
    let stdout = if call.json {
        check_json(&warnings, result, request)
    } else {
        check_text(warnings.clone(), result, &request.dockerfile, file)
    };
    let violated = |finding: &Finding| finding.rule == build_engine_dockerfile::lint::VIOLATION;
    let failure = result.error().map(|error| {
        let mut failure = Failure::from(error);
        // It says no more than the warnings, so it ends as they do.
        if result.errors.iter().all(violated) {
            failure.code = ExitKind::Step.code();
        }
        failure
    });
    Reply { stdout, code: u8::from(!warnings.is_empty() && !call.ignore_status), failure }
}

fn check_json(warnings: &[&Finding], result: &CheckResult, request: &BuildRequest) -> String {
    let warning = |found: &&Finding| {
        let mut value = json!({ "ruleName": found.rule, "description": found.description });
        if !found.url.is_empty() {
            value["url"] = found.url.as_str().into();
        }
        value["detail"] = found.message.as_str().into();
        value["location"] = found.lines.map_or_else(|| json!({}), location);
        value
    };
    let list: Vec<Value> = warnings.iter().map(warning).collect();
    let file = request.dockerfile_path.as_deref().and_then(|path| path.file_name()).map(|name| name.to_string_lossy());
    let source = json!({
        "filename": file.as_deref().unwrap_or(&request.dockerfile_name),
        "data": base64(request.dockerfile.as_bytes()),
        "language": "Dockerfile",
    });
    let mut value = json!({ "warnings": if list.is_empty() { Value::Null } else { list.into() }, "sources": [source] });
    if let Some(error) = result.errors.first() {
        value["buildError"] =
            json!({ "message": error.message, "location": error.lines.map_or_else(|| json!({}), location) });
    }
    pretty(&value)
}

fn check_text(mut warnings: Vec<&Finding>, result: &CheckResult, source: &str, file: &str) -> String {
    let mut out = String::new();
    match warnings.len() {
        0 if result.errors.is_empty() => out.push_str("Check complete, no warnings found.\n"),
        0 => {}
        1 => out.push_str("Check complete, 1 warning has been found!\n"),
        count => out.push_str(&format!("Check complete, {count} warnings have been found!\n")),
    }
    warnings.sort_by_key(|found| found.lines);
    for found in warnings {
        out.push_str(&format!("\nWARNING: {}", found.rule));
        if !found.url.is_empty() {
            out.push_str(&format!(" - {}", found.url));
        }
        out.push_str(&format!("\n{}\n", text::clean(&found.message)));
        if let Some(lines) = found.lines {
            out.push_str(&frame(file, source, lines));
        }
    }
    out
}

/// The lines of a place, with a few around them: two before and after a single line, one before and after several.
fn frame(file: &str, source: &str, (first, last): (usize, usize)) -> String {
    const RULE: &str = "--------------------\n";
    let lines: Vec<&str> = source.split('\n').collect();
    let last = last.clamp(first, lines.len().max(first));
    if first == 0 || first > lines.len() {
        return String::new();
    }
    let around = if first == last { 2 } else { 1 };
    let mut out = format!("{}:{first}\n{RULE}", text::clean(file));
    for number in first.saturating_sub(around).max(1)..=(last + around).min(lines.len()) {
        let mark = if (first..=last).contains(&number) { ">>>" } else { "   " };
        // Control characters of the Dockerfile do not reach the terminal; tabs are as wide as people wrote them.
        let line: Vec<String> = lines[number - 1].split('\t').map(text::clean).collect();
        out.push_str(&format!(" {number:3} | {mark} {}\n", line.join("\t")));
    }
    out.push_str(RULE);
    out
}

/// Shows the graph; it has no form for people, in BuildKit neither.
pub(crate) fn graph(graph: &Value) -> Reply {
    Reply::of(pretty(graph))
}

/// Shows what can be set.
pub(crate) fn outline(outline: &Outline, request: &BuildRequest, json: bool) -> Reply {
    Reply::of(if json { outline_json(outline, request) } else { outline_text(outline) })
}

fn outline_json(outline: &Outline, request: &BuildRequest) -> String {
    let mut value = json!({});
    for (key, text) in [("name", &outline.name), ("description", &outline.description)] {
        if !text.is_empty() {
            value[key] = text.as_str().into();
        }
    }
    let args: Vec<Value> = outline
        .args
        .iter()
        .map(|arg| {
            let mut value = json!({ "name": arg.name });
            for (key, text) in [("description", &arg.description), ("value", &arg.value)] {
                if !text.is_empty() {
                    value[key] = text.as_str().into();
                }
            }
            value["location"] = location(arg.lines);
            value
        })
        .collect();
    let needs = |needs: &[OutlineNeed]| -> Vec<Value> {
        let need = |need: &OutlineNeed| {
            let mut value = json!({ "name": need.name });
            if need.required {
                value["required"] = true.into();
            }
            value["location"] = location(need.lines);
            value
        };
        needs.iter().map(need).collect()
    };
    for (key, list) in [("args", args), ("secrets", needs(&outline.secrets)), ("ssh", needs(&outline.ssh))] {
        if !list.is_empty() {
            value[key] = list.into();
        }
    }
    value["sources"] = json!([base64(request.dockerfile.as_bytes())]);
    pretty(&value)
}

fn outline_text(outline: &Outline) -> String {
    let mut out = String::new();
    if !outline.name.is_empty() || !outline.description.is_empty() {
        let name = if outline.name.is_empty() { "(default)" } else { &outline.name };
        let mut rows = vec![vec!["TARGET:".to_owned(), text::clean(name)]];
        if !outline.description.is_empty() {
            rows.push(vec!["DESCRIPTION:".to_owned(), text::clean(&outline.description)]);
        }
        out.push_str(&columns(&rows, 1));
        out.push('\n');
    }
    let needs = |title: &str, needs: &[OutlineNeed]| {
        if needs.is_empty() {
            return String::new();
        }
        let mut rows = vec![vec![title.to_owned(), "REQUIRED".to_owned()]];
        rows.extend(
            needs.iter().map(|need| vec![text::clean(&need.name), if need.required { "true" } else { "" }.to_owned()]),
        );
        columns(&rows, 3) + "\n"
    };
    if !outline.args.is_empty() {
        let mut rows = vec![["BUILD ARG", "VALUE", "DESCRIPTION"].map(str::to_owned).to_vec()];
        rows.extend(
            outline
                .args
                .iter()
                .map(|arg| vec![text::clean(&arg.name), text::clean(&arg.value), text::clean(&arg.description)]),
        );
        out.push_str(&columns(&rows, 3));
        out.push('\n');
    }
    out.push_str(&needs("SECRET", &outline.secrets));
    out.push_str(&needs("SSH", &outline.ssh));
    out
}

/// Lays out rows as Go's tabwriter does: all columns but the last are padded, also in empty rows.
fn columns(rows: &[Vec<String>], padding: usize) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count.saturating_sub(1))
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| text::width(cell)).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in rows {
        for (index, cell) in row.iter().enumerate() {
            out.push_str(cell);
            if let Some(width) = widths.get(index) {
                out.extend(std::iter::repeat_n(' ', width + padding - text::width(cell).min(*width)));
            }
        }
        out.push('\n');
    }
    out
}

/// Lists the stages; needs nothing but the text.
///
/// # Errors
/// What is wrong with the text.
pub(crate) fn targets(request: &BuildRequest, as_json: bool) -> Result<Reply, Failure> {
    let (parsed, diagnostics) = parse(&request.dockerfile);
    if has_errors(&diagnostics) {
        let reports = diagnostics
            .iter()
            .filter(|found| found.is_error())
            .map(|found| Report::from_diagnostic(found, &request.dockerfile_name, &request.dockerfile));
        return Err(Failure::inputs(reports.collect()));
    }
    let lines = LineIndex::new(&request.dockerfile);
    let last = parsed.stages.len().saturating_sub(1);
    let mut list = Vec::new();
    let mut rows = vec![vec!["TARGET".to_owned(), "DESCRIPTION".to_owned()]];
    for (index, stage) in parsed.stages.iter().enumerate() {
        let name = stage.name.as_ref().map_or("", |name| name.value.as_str());
        let description = (!name.is_empty()).then(|| doc_comment(&stage.comments, name)).flatten();
        let mut value = json!({});
        if !name.is_empty() {
            value["name"] = name.into();
        }
        if index == last {
            value["default"] = true.into();
        }
        if let Some(description) = &description {
            value["description"] = description.as_str().into();
        }
        value["base"] = stage.base.value.as_str().into();
        if let Some(platform) = &stage.platform {
            value["platform"] = platform.value.as_str().into();
        }
        let end = stage.span.end.saturating_sub(1).max(stage.span.start);
        value["location"] = location((lines.line(stage.span.start), lines.line(end)));
        list.push(value);
        let shown = match (name, index == last) {
            ("", true) => "(default)".to_owned(),
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_owned(),
        };
        rows.push(vec![text::clean(&shown), text::clean(&description.unwrap_or_default())]);
    }
    let document = json!({ "targets": list, "sources": [base64(request.dockerfile.as_bytes())] });
    Ok(Reply::of(if as_json { pretty(&document) } else { columns(&rows, 1) }))
}

/// Lists what can be asked.
pub(crate) fn describe(as_json: bool) -> Reply {
    let methods = [
        (
            "outline",
            "List all parameters current build target supports",
            json!([{ "name": "target", "description": "Target build stage" }]),
        ),
        ("targets", "List all targets current build supports", json!([])),
        ("subrequests.describe", "List available subrequest types", Value::Null),
    ];
    if !as_json {
        let mut rows = vec![["NAME", "VERSION", "DESCRIPTION"].map(str::to_owned).to_vec()];
        rows.extend(methods.map(|(name, description, _)| [name, "1.0.0", description].map(str::to_owned).to_vec()));
        return Reply::of(columns(&rows, 1));
    }
    let list: Vec<Value> = methods
        .into_iter()
        .map(|(name, description, opts)| {
            json!({
                "name": format!("frontend.{name}"),
                "version": "1.0.0",
                "type": "rpc",
                "description": description,
                "opts": opts,
                "inputs": null,
                "metadata": [{ "name": "result.json", "description": "" }, { "name": "result.txt", "description": "" }],
                "refs": null,
            })
        })
        .collect();
    Reply::of(pretty(&list))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn methods_are_named_as_buildx_names_them() {
        for (text, expected) in [
            ("", None),
            ("build", None),
            ("check", Some(Call::CHECK)),
            ("lint,format=text", Some(Call::CHECK)),
            ("check,format=json", Some(Call { json: true, ..Call::CHECK })),
            ("check,ignorestatus=1", Some(Call { ignore_status: true, ..Call::CHECK })),
            ("outline", Some(Call { method: Method::Outline, ..Call::CHECK })),
            ("frontend.targets", Some(Call { method: Method::Targets, ..Call::CHECK })),
            ("subrequests.describe", Some(Call { method: Method::Describe, ..Call::CHECK })),
            ("convertllb,format=json", Some(Call { method: Method::ConvertLlb, json: true, ..Call::CHECK })),
        ] {
            assert_eq!(parse_call(text), Ok(expected), "{text:?}");
        }
        for text in ["converttollb", "check,format=xml", "check,fun=1", "check,ignorestatus=maybe"] {
            assert!(parse_call(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_place_is_shown_with_the_lines_around_it() {
        let source = "FROM scratch\nENV A=1\nENV \u{1b}[31mB=2\n\tC=3\nLAST\n";
        expect![[r#"
            Dockerfile:3
            --------------------
               1 |     FROM scratch
               2 |     ENV A=1
               3 | >>> ENV B=2
               4 |     	C=3
               5 |     LAST
            --------------------
        "#]]
        .assert_eq(&frame("Dockerfile", source, (3, 3)));
        expect![[r#"
            Dockerfile:4
            --------------------
               3 |     ENV B=2
               4 | >>> 	C=3
               5 | >>> LAST
               6 |     
            --------------------
        "#]]
        .assert_eq(&frame("Dockerfile", source, (4, 5)));
        assert_eq!(frame("Dockerfile", source, (9, 9)), "");
    }

    #[test]
    fn the_dockerfile_is_called_as_it_is_found_from_here() {
        let request = build_engine_engine::checks::request_without_context("Dockerfile".into(), None, String::new());
        for (context, expected) in [
            (".", "Dockerfile"),
            ("./", "Dockerfile"),
            ("a/b/", "a/b/Dockerfile"),
            ("./a", "a/Dockerfile"),
            ("/a", "/a/Dockerfile"),
        ] {
            assert_eq!(shown_dockerfile(&request, context, None), expected, "{context}");
        }
        assert_eq!(shown_dockerfile(&request, "a", Some("Dockerfile")), "Dockerfile");
    }
}
