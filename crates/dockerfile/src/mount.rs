//! `RUN --mount`: fields, and which of them belong to which type.
//!
//! Values with variables are checked after expansion: [`check_value`] is for whoever expands them.
//!
//! Source: BuildKit `instructions/commands_runmount.go`.

use std::collections::BTreeSet;

use crate::{Diagnostic, RunMount, RunMountKind, Spanned, csv, suggest};

const RULE: &str = "mount";
const KINDS: [(&str, RunMountKind); 5] = [
    ("bind", RunMountKind::Bind),
    ("cache", RunMountKind::Cache),
    ("tmpfs", RunMountKind::Tmpfs),
    ("secret", RunMountKind::Secret),
    ("ssh", RunMountKind::Ssh),
];
const SHARING: [&str; 3] = ["shared", "private", "locked"];
const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

impl RunMountKind {
    /// Returns the name as in `type=…`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Cache => "cache",
            Self::Tmpfs => "tmpfs",
            Self::Secret => "secret",
            Self::Ssh => "ssh",
        }
    }
}

/// Parses the value of a `--mount`; mistakes are reported with the flag's span.
pub(crate) fn parse(flag: &Spanned<String>, escape: char, diagnostics: &mut Vec<Diagnostic>) -> Option<RunMount> {
    match parse_fields(flag, escape) {
        Ok(mount) => Some(mount),
        Err(problem) => {
            let mut diagnostic = Diagnostic::error(RULE, problem.message, flag.span);
            diagnostic.hint = problem.hint;
            diagnostics.push(diagnostic);
            None
        }
    }
}

struct Problem {
    message: String,
    hint: Option<String>,
}

impl From<String> for Problem {
    fn from(message: String) -> Self {
        Self { message, hint: None }
    }
}

fn parse_fields(flag: &Spanned<String>, escape: char) -> Result<RunMount, Problem> {
    let texts = csv::fields(flag).map_err(|reason| format!("failed to parse csv mounts: {reason}"))?;
    let is_dynamic = |value: &str| value.contains(['$', '\'', '"', escape]);
    let pairs: Vec<(String, Option<&str>, &str)> = texts
        .iter()
        .map(|text| match text.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(value), text.as_str()),
            None => (text.to_lowercase(), None, text.as_str()),
        })
        .collect();

    // The type decides over all other fields, wherever it stands.
    let mut kind = RunMountKind::Bind;
    for (_, value, _) in pairs.iter().filter(|(key, ..)| key == "type") {
        let value = value.unwrap_or_default();
        if is_dynamic(value) {
            return Err(Problem {
                message: "'type' doesn't support variable expansion".to_owned(),
                hint: Some("write the type of the mount as it is".to_owned()),
            });
        }
        kind = KINDS.iter().find(|(name, _)| name.eq_ignore_ascii_case(value)).map(|(_, kind)| *kind).ok_or_else(
            || did_you_mean(format!("unsupported mount type {value:?}"), value, &KINDS.map(|(name, _)| name)),
        )?;
    }

    let mut fields = Vec::new();
    for (key, value, text) in pairs {
        let key = canonical(&key);
        if key == "type" {
            continue;
        }
        match value {
            None if matches!(key, "readonly" | "readwrite" | "required") => check_key(kind, key)?,
            None => return Err(format!("invalid field '{text}' must be a key=value pair").into()),
            Some(value) => {
                if !KEYS.contains(&key) {
                    return Err(did_you_mean(format!("unexpected key '{key}' in '{text}'"), key, &KEYS).into());
                }
                check_key(kind, key)?;
                let dollar = value.find('$').filter(|at| at + 1 != value.len());
                if key == "from" && dollar.is_some() {
                    return Err(Problem {
                        message: "'from' doesn't support variable expansion, define alias stage instead".to_owned(),
                        hint: Some("`FROM $IMAGE AS alias` with a global ARG, and `from=alias`".to_owned()),
                    });
                }
                if !is_dynamic(value) {
                    check_value(key, value)?;
                }
            }
        }
        fields.push((key.to_owned(), value.map(str::to_owned)));
    }
    let mount = RunMount { span: flag.span, kind, fields };
    if kind == RunMountKind::Secret {
        check_secret(&mount)?;
    }
    Ok(mount)
}

fn canonical(key: &str) -> &str {
    match key {
        "dst" | "destination" => "target",
        "src" => "source",
        "rw" => "readwrite",
        "ro" => "readonly",
        other => other,
    }
}

fn check_key(kind: RunMountKind, key: &str) -> Result<(), String> {
    use RunMountKind::{Cache, Secret, Ssh, Tmpfs};
    let name = kind.as_str();
    match key {
        "required" if !matches!(kind, Secret | Ssh) => Err(format!("unexpected key '{key}' for mount type '{name}'")),
        "size" if kind != Tmpfs => Err(format!("unexpected key '{key}' for mount type '{name}'")),
        "mode" | "uid" | "gid" if !matches!(kind, Secret | Ssh | Cache) => {
            Err(format!("{key} not allowed for {name:?} type mounts"))
        }
        "from" if kind == Secret => Err("secret mount should not have a from".to_owned()),
        "sharing" if kind == Secret => Err("secret mount should not define sharing".to_owned()),
        "sharing" if kind != Cache => Err(format!("invalid cache sharing set for {name} mount")),
        _ => Ok(()),
    }
}

fn check_secret(mount: &RunMount) -> Result<(), String> {
    let given: BTreeSet<&str> = mount
        .fields
        .iter()
        .filter(|(_, value)| value.as_deref().is_some_and(|value| !value.is_empty()))
        .map(|(key, _)| key.as_str())
        .collect();
    if ["source", "target", "id"].iter().all(|key| !given.contains(key)) {
        return Err("invalid secret mount. one of source, target required".to_owned());
    }
    if given.contains("source") && given.contains("id") {
        return Err("both source and id can't be set".to_owned());
    }
    Ok(())
}

/// Checks the value of a field after expansion; `key` is canonical as in [`RunMount::fields`].
///
/// # Errors
/// A message in BuildKit's words.
pub fn check_value(key: &str, value: &str) -> Result<(), String> {
    match key {
        "readonly" | "readwrite" | "required" => {
            parse_bool(value).map(drop).ok_or_else(|| format!("invalid value for {key}: {value}"))
        }
        "size" => parse_size(value).map(drop).ok_or_else(|| format!("invalid value for {key}: {value}")),
        "mode" => parse_unsigned(value, 8).map(drop).ok_or_else(|| format!("invalid value {value} for {key}")),
        "uid" | "gid" => parse_unsigned(value, 10).map(drop).ok_or_else(|| format!("invalid value {value} for {key}")),
        "sharing" if !SHARING.iter().any(|mode| mode.eq_ignore_ascii_case(value)) => {
            Err(did_you_mean(format!("unsupported sharing value {value:?}"), value, &SHARING))
        }
        _ => Ok(()),
    }
}

fn did_you_mean(message: String, word: &str, candidates: &[&str]) -> String {
    match suggest(word, candidates.iter().copied()) {
        Some(near) => format!("{message} (did you mean {near}?)"),
        None => message,
    }
}

/// Parses a boolean as Go's `strconv.ParseBool`.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Parses a number of 32 bits without a sign.
pub fn parse_unsigned(text: &str, radix: u32) -> Option<u32> {
    if text.starts_with('+') {
        return None;
    }
    u32::from_str_radix(text, radix).ok()
}

/// Parses a size such as `64m`, `1.5 GiB` or `4096` into bytes; units are powers of 1024.
///
/// Source: docker/go-units `RAMInBytes`.
pub fn parse_size(text: &str) -> Option<i64> {
    let at = text.rfind(|ch: char| ch.is_ascii_digit() || ch == '.' || ch == ' ')?;
    let (number, suffix) = (&text[..at + 1], &text[at + 1..]);
    let number = number.strip_suffix(' ').unwrap_or(number);
    if !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    let number: f64 = number.parse().ok()?;
    let suffix = suffix.to_lowercase();
    let (unit, tail) = suffix.split_at_checked(1).unwrap_or(("", ""));
    let shift = match unit {
        "" | "b" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    let has_right_tail = if matches!(unit, "" | "b") { tail.is_empty() } else { matches!(tail, "" | "b" | "ib") };
    // The cast saturates, which no limit of memory will notice.
    has_right_tail.then_some((number * (1u64 << shift) as f64) as i64)
}
