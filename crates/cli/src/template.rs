//! `--format table|json|{{template}}` of listings.
//!
//! A template is text with `{{.Field}}`, `{{json .Field}}` and `{{json .}}`, applied to each row of the JSON form, whose keys are
//! the fields (in any case, with or without `_`). What else Go's templates know is refused, never left in the output.

use std::str::FromStr;

use serde_json::Value;

use crate::errors::Failure;

/// The value of `--format`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum ListFormat {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
    /// A line of one's own for each row.
    Template(Template),
}

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// A field (without its dot; empty for the whole row), and whether it is written as JSON.
    Field {
        name: String,
        json: bool,
    },
}

impl FromStr for ListFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" | "table" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            text if text.contains("{{") => parse(text).map(Self::Template),
            _ => Err("expected table, json or a template such as `{{.Path}}`".into()),
        }
    }
}

fn parse(text: &str) -> Result<Template, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (inside, after) = after.split_once("}}").ok_or("`{{` without `}}`")?;
        pieces.push(Piece::Text(unescape(before)));
        let inside = inside.trim();
        let (json, name) = match inside.strip_prefix("json ") {
            Some(name) => (true, name.trim()),
            None => (false, inside),
        };
        let name = name.strip_prefix('.').filter(|name| {
            name.chars().all(|char| char.is_ascii_alphanumeric() || char == '_') && (json || !name.is_empty())
        });
        let name = name.ok_or_else(|| {
            format!(
                "`{{{{{inside}}}}}` is not understood: `{{{{.Field}}}}`, `{{{{json .Field}}}}` and `{{{{json .}}}}` are"
            )
        })?;
        pieces.push(Piece::Field { name: name.to_owned(), json });
        rest = after;
    }
    pieces.push(Piece::Text(unescape(rest)));
    Ok(Template(pieces))
}

/// `\t` and `\n`, as shells do not write them.
fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

impl Template {
    /// The line for `row`, a JSON object, with its line break.
    ///
    /// # Errors
    /// The row has no such field.
    pub(crate) fn line(&self, row: &Value) -> Result<String, Failure> {
        let mut line = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => line.push_str(text),
                Piece::Field { name, json } => {
                    let value = field(row, name)?;
                    match value {
                        Value::String(text) if !json => line.push_str(text),
                        Value::Null if !json => {}
                        value => line.push_str(&value.to_string()),
                    }
                }
            }
        }
        line.push('\n');
        Ok(line)
    }
}

fn field<'a>(row: &'a Value, name: &str) -> Result<&'a Value, Failure> {
    if name.is_empty() {
        return Ok(row);
    }
    let plain = |key: &str| key.replace('_', "").to_lowercase();
    let fields = row.as_object();
    let found = fields.and_then(|fields| fields.iter().find(|(key, _)| plain(key) == plain(name)));
    found.map(|(_, value)| value).ok_or_else(|| {
        let known: Vec<String> =
            fields.into_iter().flat_map(|fields| fields.keys()).map(|key| format!(".{key}")).collect();
        Failure::input("invalid-flag", format!("`--format`: there is no field `.{name}`"))
            .hint(format!("the fields are {}", known.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_template_is_applied_to_the_json_form() {
        let row = json!({ "path": "a b", "size": 3, "decided_by": null });
        for (template, expected) in [
            ("{{.Path}}", "a b\n"),
            (r"{{.size}}\t{{ .Path }}!", "3\ta b!\n"),
            ("{{json .Path}} {{json .DecidedBy}}{{.decided_by}}", "\"a b\" null\n"),
            ("{{json .}}", "{\"path\":\"a b\",\"size\":3,\"decided_by\":null}\n"),
        ] {
            let Ok(ListFormat::Template(parsed)) = template.parse() else { panic!("{template}") };
            assert_eq!(parsed.line(&row).expect("a line"), expected, "{template}");
        }
        let Ok(ListFormat::Template(unknown)) = "{{.Name}}".parse() else { panic!("a template") };
        assert!(unknown.line(&row).is_err());
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in ["yaml", "{{.Path", "{{range .}}{{end}}", "{{upper .Path}}", "{{}}", "{{.}}"] {
            assert!(text.parse::<ListFormat>().is_err(), "{text}");
        }
    }
}
