//! Joined lines and their splitting into words, with every word traced back to the source.

use std::ops::Range;

use crate::{Span, Spanned};

/// An instruction's lines, joined.
#[derive(Debug, Default)]
pub(crate) struct Joined {
    text: String,
    /// (offset in the text, offset in the source) where each piece starts.
    pieces: Vec<(usize, usize)>,
}

impl Joined {
    pub(crate) fn push(&mut self, text: &str, source_offset: usize) {
        self.pieces.push((self.text.len(), source_offset));
        self.text.push_str(text);
    }

    pub(crate) fn len(&self) -> usize {
        self.text.len()
    }

    pub(crate) fn all(&self) -> Slice<'_> {
        Slice { joined: self, start: 0, end: self.text.len() }
    }

    fn source_offset(&self, offset: usize) -> usize {
        let after = self.pieces.partition_point(|(start, _)| *start <= offset);
        match after.checked_sub(1).and_then(|at| self.pieces.get(at)) {
            Some((start, source)) => source + (offset - start),
            None => 0,
        }
    }
}

/// A part of joined lines.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slice<'a> {
    joined: &'a Joined,
    start: usize,
    end: usize,
}

impl<'a> Slice<'a> {
    pub(crate) fn text(self) -> &'a str {
        &self.joined.text[self.start..self.end]
    }

    /// Takes a part of it; offsets count from its start.
    pub(crate) fn part(self, range: Range<usize>) -> Slice<'a> {
        Slice { start: self.start + range.start, end: self.start + range.end, ..self }
    }

    pub(crate) fn from(self, start: usize) -> Slice<'a> {
        self.part(start..self.end - self.start)
    }

    pub(crate) fn trim(self) -> Slice<'a> {
        let text = self.text();
        let start = text.len() - text.trim_start().len();
        self.part(start..start + text.trim().len())
    }

    pub(crate) fn span(self) -> Span {
        let start = self.joined.source_offset(self.start);
        // The end belongs to the piece of the last byte: the next piece may start on another line.
        let end = if self.end > self.start { self.joined.source_offset(self.end - 1) + 1 } else { start };
        Span::new(start, end)
    }

    pub(crate) fn spanned(self) -> Spanned<String> {
        Spanned::new(self.text().to_owned(), self.span())
    }
}

/// The blanks between words; unlike Unicode's white space, without line ends.
pub(crate) fn is_blank(ch: char) -> bool {
    matches!(ch, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ')
}

/// Splits at the first run of blanks.
pub(crate) fn split_once_blank(slice: Slice<'_>) -> (Slice<'_>, Option<Slice<'_>>) {
    let text = slice.text();
    match text.find(is_blank) {
        None => (slice, None),
        Some(at) => {
            let rest = text.len() - text[at..].trim_start_matches(is_blank).len();
            (slice.part(0..at), Some(slice.from(rest)))
        }
    }
}

/// Splits at runs of blanks; quotes mean nothing.
pub(crate) fn split_blanks(slice: Slice<'_>) -> Vec<Spanned<String>> {
    let mut words = Vec::new();
    let mut rest = Some(slice);
    while let Some(slice) = rest {
        let (word, more) = split_once_blank(slice);
        words.push(word.spanned());
        rest = more;
    }
    words
}

/// Takes the words that start with `--` off the front; quotes and escapes in them are resolved. A bare `--` ends them.
pub(crate) fn take_flags(slice: Slice<'_>, escape: char) -> (Vec<Spanned<String>>, Slice<'_>) {
    let text = slice.text();
    let mut flags = Vec::new();
    let mut at = 0;
    loop {
        at += text[at..].len() - text[at..].trim_start().len();
        if !text[at..].starts_with("--") {
            return (flags, slice.from(at));
        }
        let start = at;
        let (mut word, mut quote, mut was_quoted) = (String::new(), None, false);
        let mut chars = text[start..].char_indices();
        at = text.len();
        while let Some((offset, mut ch)) = chars.next() {
            match quote {
                None if ch.is_whitespace() => {
                    at = start + offset;
                    break;
                }
                None if ch == '\'' || ch == '"' => {
                    quote = Some(ch);
                    was_quoted = true;
                    continue;
                }
                Some(open) if ch == open => {
                    quote = None;
                    continue;
                }
                _ => {}
            }
            if ch == escape {
                let Some((_, escaped)) = chars.next() else { break };
                ch = escaped;
            }
            word.push(ch);
        }
        if word == "--" {
            return (flags, slice.from(at));
        }
        if was_quoted || !word.is_empty() {
            flags.push(Spanned::new(word, slice.part(start..at).span()));
        }
    }
}

/// Splits at blanks outside of quotes. Quotes and escapes stay in the words: expansion resolves them later.
pub(crate) fn split_quoted(slice: Slice<'_>, escape: char) -> Vec<(String, Slice<'_>)> {
    let text = slice.text();
    let mut words = Vec::new();
    let mut at = 0;
    loop {
        at += text[at..].len() - text[at..].trim_start().len();
        if at == text.len() {
            return words;
        }
        let start = at;
        let (mut word, mut quote) = (String::new(), None);
        let mut chars = text[start..].char_indices();
        at = text.len();
        while let Some((offset, ch)) = chars.next() {
            match quote {
                None if ch.is_whitespace() => {
                    at = start + offset;
                    break;
                }
                None if ch == '\'' || ch == '"' => quote = Some(ch),
                Some(open) if ch == open => quote = None,
                _ => {}
            }
            // Nothing can be escaped between single quotes.
            if ch == escape && quote != Some('\'') {
                let Some((_, escaped)) = chars.next() else { break };
                word.push(ch);
                word.push(escaped);
                continue;
            }
            word.push(ch);
        }
        if !word.is_empty() {
            words.push((word, slice.part(start..at)));
        }
    }
}

/// What an argument that may be JSON turned out to be.
pub(crate) enum Json {
    /// An array of strings.
    Strings(Vec<Spanned<String>>),
    /// An array with something else in it.
    OtherArray,
    /// Anything else: the shell form.
    No,
}

/// Reads a JSON array of strings. Written by hand for the spans, and because lone surrogates become U+FFFD as in Go.
pub(crate) fn json_strings(slice: Slice<'_>) -> Json {
    let text = slice.text();
    let start = text.len() - text.trim_start().len();
    if !text[start..].starts_with('[') {
        return Json::No;
    }
    match strings(slice, start + 1) {
        Some(strings) => Json::Strings(strings),
        None => match serde_json::from_str::<Vec<serde_json::Value>>(text.trim()) {
            Ok(values) if values.iter().any(|value| !value.is_string()) => Json::OtherArray,
            _ => Json::No,
        },
    }
}

fn strings(slice: Slice<'_>, mut at: usize) -> Option<Vec<Spanned<String>>> {
    let text = slice.text();
    let skip = |at: usize| at + (text[at..].len() - text[at..].trim_start_matches([' ', '\t', '\r', '\n']).len());
    let mut found = Vec::new();
    at = skip(at);
    if text[at..].starts_with(']') {
        return (skip(at + 1) == text.len()).then_some(found);
    }
    loop {
        let (value, end) = string(text, at)?;
        found.push(Spanned::new(value, slice.part(at..end).span()));
        at = skip(end);
        match text[at..].chars().next()? {
            ',' => at = skip(at + 1),
            ']' => return (skip(at + 1) == text.len()).then_some(found),
            _ => return None,
        }
    }
}

/// Reads the JSON string at `at`; returns it and the offset after its closing quote.
fn string(text: &str, at: usize) -> Option<(String, usize)> {
    let mut value = String::new();
    let mut chars = text[at..].strip_prefix('"')?.char_indices();
    while let Some((offset, ch)) = chars.next() {
        match ch {
            '"' => return Some((value, at + 1 + offset + 1)),
            '\\' => match chars.next()?.1 {
                simple @ ('"' | '\\' | '/') => value.push(simple),
                'b' => value.push('\u{8}'),
                'f' => value.push('\u{c}'),
                'n' => value.push('\n'),
                'r' => value.push('\r'),
                't' => value.push('\t'),
                'u' => {
                    let unit = hex4(chars.as_str())?;
                    chars.nth(3);
                    let low = chars.as_str().strip_prefix("\\u").and_then(hex4);
                    match (unit, low) {
                        (0xD800..0xDC00, Some(low @ 0xDC00..0xE000)) => {
                            let code = 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
                            value.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                            chars.nth(5);
                        }
                        _ => value.push(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER)),
                    }
                }
                _ => return None,
            },
            control if u32::from(control) < 0x20 => return None,
            other => value.push(other),
        }
    }
    None
}

fn hex4(text: &str) -> Option<u32> {
    let digits = text.get(..4).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    u32::from_str_radix(digits, 16).ok()
}
