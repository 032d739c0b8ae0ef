//! Go's `filepath.Match`: the pattern language of `COPY` sources, and the syntax check of ignore patterns.
//!
//! `*` and `?` match no `/`; `[a-z]`, `[^a-z]` match one character; `\` makes the next character ordinary.

/// The pattern is malformed: an open bracket, an empty or broken range, a `\` at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("syntax error in pattern")]
pub struct BadPattern;

/// Whether all of `name` matches `pattern`.
///
/// # Errors
/// [`BadPattern`], whether or not `name` would have matched before the mistake.
pub fn glob_match(pattern: &str, name: &str) -> Result<bool, BadPattern> {
    Ok(matches(&compile(pattern)?, name))
}

/// One element of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// This character.
    Char(char),
    /// `?`: any character but `/`.
    Any,
    /// `*`: any characters but `/`.
    Star,
    /// `[…]`.
    Class(Class),
}

/// `[…]`: one character of, or not of, some ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Class {
    negated: bool,
    ranges: Vec<(char, char)>,
}

impl Class {
    pub(crate) fn contains(&self, ch: char) -> bool {
        self.ranges.iter().any(|(low, high)| (*low..=*high).contains(&ch)) != self.negated
    }
}

/// Checks and splits a pattern.
pub(crate) fn compile(pattern: &str) -> Result<Vec<Part>, BadPattern> {
    let mut parts = Vec::new();
    let mut chars = pattern.chars().peekable();
    while let Some(ch) = chars.next() {
        parts.push(match ch {
            '*' => Part::Star,
            '?' => Part::Any,
            '\\' => Part::Char(chars.next().ok_or(BadPattern)?),
            '[' => Part::Class(class(&mut chars)?),
            other => Part::Char(other),
        });
    }
    Ok(parts)
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// Reads a class after its `[`.
fn class(chars: &mut Chars<'_>) -> Result<Class, BadPattern> {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty() && chars.next_if_eq(&']').is_some() {
            return Ok(Class { negated, ranges });
        }
        let low = class_char(chars)?;
        let high = if chars.next_if_eq(&'-').is_some() { class_char(chars)? } else { low };
        ranges.push((low, high));
    }
}

fn class_char(chars: &mut Chars<'_>) -> Result<char, BadPattern> {
    let ch = match chars.next() {
        None | Some('-' | ']') => return Err(BadPattern),
        Some('\\') => chars.next().ok_or(BadPattern)?,
        Some(other) => other,
    };
    // A class cannot end the pattern without its bracket.
    if chars.peek().is_none() { Err(BadPattern) } else { Ok(ch) }
}

/// Matches with one retry point: the last `*`. Earlier ones never need another try, so the cost is the product of the
/// lengths at worst.
fn matches(parts: &[Part], name: &str) -> bool {
    let (mut part, mut rest) = (0, name);
    let mut retry: Option<(usize, &str)> = None;
    loop {
        let mut chars = rest.chars();
        let step = match (parts.get(part), chars.next()) {
            (None, None) => return true,
            (Some(Part::Star), _) => {
                retry = Some((part + 1, rest));
                part += 1;
                continue;
            }
            (Some(Part::Char(wanted)), Some(ch)) => *wanted == ch,
            (Some(Part::Any), Some(ch)) => ch != '/',
            (Some(Part::Class(class)), Some(ch)) => class.contains(ch),
            (None, Some(_)) | (Some(_), None) => false,
        };
        if step {
            part += 1;
            rest = chars.as_str();
            continue;
        }
        let Some((after_star, from)) = retry else { return false };
        let mut from = from.chars();
        match from.next() {
            None | Some('/') => return false,
            Some(_) => {
                retry = Some((after_star, from.as_str()));
                (part, rest) = (after_star, from.as_str());
            }
        }
    }
}
