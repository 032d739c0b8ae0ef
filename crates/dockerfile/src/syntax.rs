//! From text to statements: directives, comments, continuation lines, heredocs, flags and words.
//!
//! What a statement means is [`crate::lower`]'s business; here only its name is looked at, because each instruction
//! splits its arguments in its own way. Nothing makes the parser stop but a limit or a heredoc without an end.
//!
//! Source: BuildKit `frontend/dockerfile/parser`.

use crate::{
    Diagnostic, Directive, Heredoc, Span, Spanned, Statement,
    expand::{ExpandError, Lex},
    has_errors,
    limits::{
        MAX_CONTINUATION_LINES, MAX_HEREDOC_NAME_BYTES, MAX_HEREDOCS, MAX_INSTRUCTIONS, MAX_LINE_BYTES,
        MAX_SOURCE_BYTES,
    },
    lint::rules::NO_EMPTY_CONTINUATION,
    words::{Joined, Json, Slice, json_strings, split_blanks, split_once_blank, split_quoted, take_flags},
};

const BOM: char = '\u{feff}';
const DIRECTIVES: [&str; 3] = ["syntax", "escape", "check"];
/// `ONBUILD ONBUILD …` is refused later; here it must not exhaust the stack.
const MAX_TRIGGER_DEPTH: usize = 8;
/// Comments kept for one instruction.
const MAX_COMMENTS: usize = 10_000;

/// A Dockerfile as statements.
#[derive(Debug, Clone)]
pub struct Syntax {
    /// Escape character.
    pub escape: char,
    /// Directives that are in effect.
    pub directives: Vec<Directive>,
    /// Statements in order.
    pub statements: Vec<Statement>,
    /// For each statement, whether its syntax is right.
    pub(crate) sound: Vec<bool>,
}

/// Splits `source` into statements. Unknown instructions are not errors here.
///
/// The diagnostics are syntax errors, limits, and the warning about empty continuation lines.
pub fn parse_syntax(source: &str) -> (Syntax, Vec<Diagnostic>) {
    let mut parser = Parser {
        lines: Lines { source, at: 0, number: 0 },
        escape: '\\',
        directives: Vec::new(),
        statements: Vec::new(),
        sound: Vec::new(),
        diagnostics: Vec::new(),
    };
    if source.len() > MAX_SOURCE_BYTES {
        parser.limit(format!("the Dockerfile is larger than {MAX_SOURCE_BYTES} bytes"), Span::default());
    } else {
        warn_of_bidi(source, &mut parser.diagnostics);
        // `None` says that a limit ended the work; its diagnostic is there already.
        let _ = parser.run();
        if parser.statements.is_empty() && !has_errors(&parser.diagnostics) {
            let end = Span::new(source.len(), source.len());
            parser.diagnostics.push(Diagnostic::error("empty-dockerfile", "file with no instructions", end));
        }
        parser.add_detached_directives();
    }
    let Parser { escape, directives, statements, sound, mut diagnostics, .. } = parser;
    diagnostics.sort_by_key(|found| found.span.start);
    (Syntax { escape, directives, statements, sound }, diagnostics)
}

/// Finds which frontend the text asks for: `# syntax=`, else `// syntax=`, else `{"syntax": "…"}`. A byte order mark and
/// a `#!` line before it are skipped. The image is the value up to its first blank.
pub fn detect_syntax(source: &str) -> Option<Directive> {
    let (body, offset) = without_preamble(source);
    for marker in ["#", "//"] {
        if let Some(found) = scan_directives(body, offset, marker).into_iter().find(|found| found.name == "syntax") {
            return Some(found);
        }
    }
    if body.len() > MAX_SOURCE_BYTES || !body.trim_start().starts_with('{') {
        return None;
    }
    let document: serde_json::Map<String, serde_json::Value> = serde_json::from_str(body).ok()?;
    let value = document.get("syntax")?.as_str()?.to_owned();
    let start = offset + body.len() - body.trim_start().len();
    Some(Directive { name: "syntax".to_owned(), value: Spanned::new(value, Span::new(start, start + 1)) })
}

/// Reads a word such as `3<<-'EOF'` as the start of a heredoc, if it is one. Its content is empty.
///
/// # Errors
/// [`ExpandError`] if its quotes do not match.
pub fn parse_heredoc_word(word: &str) -> Result<Option<Heredoc>, ExpandError> {
    let after_digits = word.trim_start_matches(|ch: char| ch.is_ascii_digit());
    let fd = &word[..word.len() - after_digits.len()];
    let Some(rest) = after_digits.strip_prefix("<<") else { return Ok(None) };
    let chomp = rest.starts_with('-');
    let rest = rest.strip_prefix('-').unwrap_or(rest).trim_start_matches(['\t', '\n', '\u{c}', '\r', ' ']);
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    let plain = Lex { skip_unset: true, ..Lex::new('\\') };
    let unset = |_: &str| None;
    let words = plain.words(rest, &unset)?;
    let raw = Lex { raw_quotes: true, ..plain }.words(rest, &unset)?;
    let ([name], [raw]) = (words.as_slice(), raw.as_slice()) else { return Ok(None) };
    // A quote that is there only in the raw reading was a real one: the delimiter is quoted.
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    Ok(Some(Heredoc {
        name: name.clone(),
        fd: if fd.is_empty() { 0 } else { fd.parse().unwrap_or(u32::MAX) },
        expand: quotes(name) == quotes(raw),
        chomp,
        content: String::new(),
    }))
}

#[derive(Clone, Copy)]
struct Line<'a> {
    /// With its line end.
    text: &'a str,
    /// Offset in the source.
    start: usize,
}

impl<'a> Line<'a> {
    fn without_end(self) -> &'a str {
        self.text.trim_end_matches(['\r', '\n'])
    }

    fn is_comment(self) -> bool {
        self.text.trim_start().starts_with('#')
    }

    fn span(self) -> Span {
        Span::new(self.start, self.start + self.without_end().len())
    }
}

struct Lines<'a> {
    source: &'a str,
    at: usize,
    /// Of the line returned last, counted from 1.
    number: usize,
}

impl<'a> Iterator for Lines<'a> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Line<'a>> {
        let rest = &self.source[self.at..];
        if rest.is_empty() {
            return None;
        }
        let text = rest.split_inclusive('\n').next().unwrap_or(rest);
        let line = Line { text, start: self.at };
        self.at += text.len();
        self.number += 1;
        Some(line)
    }
}

struct Parser<'a> {
    lines: Lines<'a>,
    escape: char,
    directives: Vec<Directive>,
    statements: Vec<Statement>,
    sound: Vec<bool>,
    diagnostics: Vec<Diagnostic>,
}

impl<'a> Parser<'a> {
    fn limit(&mut self, message: String, span: Span) {
        self.diagnostics.push(Diagnostic::error("limit", message, span));
    }

    fn next_line(&mut self) -> Option<Option<Line<'a>>> {
        let line = self.lines.next();
        if let Some(line) = line.filter(|line| line.text.len() > MAX_LINE_BYTES) {
            self.limit(format!("the line is longer than {MAX_LINE_BYTES} bytes"), Span::new(line.start, line.start));
            return None;
        }
        Some(line)
    }

    /// Reads everything; `None` when a limit ended it early.
    fn run(&mut self) -> Option<()> {
        let mut comments: Vec<String> = Vec::new();
        let mut scan = DirectiveScan::new("#");
        while let Some(mut line) = self.next_line()? {
            if self.lines.number == 1 && line.text.starts_with(BOM) {
                line = Line { text: &line.text[BOM.len_utf8()..], start: line.start + BOM.len_utf8() };
            }
            let is_directive = self.directive(&mut scan, line);
            if line.is_comment() {
                // The reference drops the first character, which is not the `#` of an indented comment.
                let mut text = line.text.chars();
                text.next();
                match text.as_str().trim() {
                    "" => comments.clear(),
                    _ if is_directive => {}
                    comment => {
                        // Only those nearest to the instruction are of use; a file of comments stays small in memory.
                        if comments.len() == MAX_COMMENTS {
                            comments.drain(..MAX_COMMENTS / 2);
                        }
                        comments.push(comment.to_owned());
                    }
                }
                continue;
            }
            let text = line.without_end().trim_start();
            let start = line.start + line.without_end().len() - text.len();
            if text.is_empty() {
                continue;
            }
            let start_line = self.lines.number;
            let mut joined = Joined::default();
            let empty_line = self.join(&mut joined, text, start)?;
            if self.statements.len() == MAX_INSTRUCTIONS {
                self.limit(format!("the Dockerfile has more than {MAX_INSTRUCTIONS} instructions"), line.span());
                return None;
            }
            self.statement(&joined, start_line, std::mem::take(&mut comments), empty_line)?;
        }
        Some(())
    }

    /// Joins continuation lines; if some of them were empty, returns where the last line of all is.
    fn join(&mut self, joined: &mut Joined, first: &'a str, start: usize) -> Option<Option<Span>> {
        let mut has_empty_line = false;
        let mut last = Span::new(start, start + first.len());
        let (text, mut more) = strip_continuation(first, self.escape);
        joined.push(text, start);
        let mut count = 0;
        while more {
            let Some(line) = self.next_line()? else { break };
            last = line.span();
            if line.is_comment() {
                continue;
            }
            let text = line.without_end();
            if text.trim().is_empty() {
                has_empty_line = true;
                continue;
            }
            count += 1;
            let (text, continues) = strip_continuation(text, self.escape);
            joined.push(text, line.start);
            more = continues;
            if joined.len() > MAX_LINE_BYTES {
                self.limit(
                    format!("the instruction is longer than {MAX_LINE_BYTES} bytes"),
                    Span::new(start, start + first.len()),
                );
                return None;
            }
            if count > MAX_CONTINUATION_LINES {
                self.limit(
                    format!("the instruction has more than {MAX_CONTINUATION_LINES} continuation lines"),
                    Span::new(start, start + first.len()),
                );
                return None;
            }
        }
        Some(has_empty_line.then_some(last))
    }

    fn statement(
        &mut self,
        joined: &Joined,
        start_line: usize,
        comments: Vec<String>,
        empty_line: Option<Span>,
    ) -> Option<()> {
        let all = joined.all();
        let (mut statement, mut sound) = split_statement(all, self.escape, 0, &mut self.diagnostics);
        statement.comments = comments;
        if let Some(span) = empty_line {
            // Upstream reports the last line of the instruction; so that reports agree, so do we.
            self.diagnostics.push(
                Diagnostic::warning(NO_EMPTY_CONTINUATION.name, "Empty continuation line", span)
                    .with_url(NO_EMPTY_CONTINUATION.url().unwrap_or_default())
                    .with_detail(NO_EMPTY_CONTINUATION.description),
            );
        }
        if takes_heredocs(&statement) && all.text().contains("<<") {
            match heredocs_of_line(all) {
                Err(error) => {
                    self.diagnostics.push(Diagnostic::error("syntax", error.to_string(), statement.span));
                    sound = false;
                }
                Ok(heredocs) => {
                    if let Some((_, span)) = heredocs.get(MAX_HEREDOCS) {
                        self.limit(format!("the instruction has more than {MAX_HEREDOCS} heredocs"), *span);
                        return None;
                    }
                    for (mut heredoc, span) in heredocs {
                        if heredoc.name.len() > MAX_HEREDOC_NAME_BYTES {
                            let message =
                                format!("the name of a heredoc is longer than {MAX_HEREDOC_NAME_BYTES} bytes");
                            self.limit(message, Span::new(span.start, span.start));
                            return None;
                        }
                        if let Some(content) = self.heredoc_body(&heredoc)? {
                            heredoc.content = content;
                        } else {
                            let message = format!("unterminated heredoc: no line says `{}`", shorten(&heredoc.name));
                            self.diagnostics.push(Diagnostic::error("unterminated-heredoc", message, span));
                            sound = false;
                            break;
                        }
                        statement.heredocs.push(heredoc);
                    }
                }
            }
        }
        let end = self.lines.source[..self.lines.at].trim_end_matches(['\r', '\n']).len();
        statement.span.end = statement.span.end.max(if statement.heredocs.is_empty() { 0 } else { end });
        statement.start_line = start_line;
        statement.end_line = self.lines.number;
        if let Some(trigger) = &mut statement.trigger {
            set_lines(trigger, start_line, self.lines.number);
        }
        self.statements.push(statement);
        self.sound.push(sound);
        Some(())
    }

    /// Reads up to the line that ends `heredoc`; the inner `None` says that there is none.
    fn heredoc_body(&mut self, heredoc: &Heredoc) -> Option<Option<String>> {
        let start = self.lines.at;
        while let Some(line) = self.next_line()? {
            let text = line.without_end();
            let text = if heredoc.chomp { text.trim_start_matches('\t') } else { text };
            if text == heredoc.name {
                return Some(Some(self.lines.source[start..line.start].to_owned()));
            }
        }
        Some(None)
    }

    /// Takes note of a directive; returns whether the line is one.
    fn directive(&mut self, scan: &mut DirectiveScan, line: Line<'a>) -> bool {
        let text = line.without_end().trim_start();
        let found = match scan.line(text, line.start + line.without_end().len() - text.len()) {
            None => return false,
            Some(Found::Repeated(name)) => {
                let message = format!("only one {name} parser directive can be used");
                self.diagnostics.push(Diagnostic::error("duplicate-directive", message, line.span()));
                return true;
            }
            Some(Found::Directive(found)) => found,
        };
        if found.name == "escape" {
            match found.value.as_str() {
                "\\" => self.escape = '\\',
                "`" => self.escape = '`',
                other => {
                    let message = format!("invalid escape token '{other}' does not match ` or \\");
                    self.diagnostics.push(Diagnostic::error("invalid-escape", message, found.value.span));
                }
            }
        }
        self.directives.push(found);
        true
    }

    /// Adds what only the search for `syntax` and `check` finds: directives after a `#!` line or in another notation.
    fn add_detached_directives(&mut self) {
        let has = |directives: &[Directive], name: &str| directives.iter().any(|found| found.name == name);
        let (body, offset) = without_preamble(self.lines.source);
        for found in scan_directives(body, offset, "#") {
            if found.name == "check" && !has(&self.directives, "check") {
                self.directives.push(found);
            }
        }
        if !has(&self.directives, "syntax") {
            self.directives.extend(detect_syntax(self.lines.source));
        }
    }
}

fn set_lines(statement: &mut Statement, start: usize, end: usize) {
    (statement.start_line, statement.end_line) = (start, end);
    if let Some(trigger) = &mut statement.trigger {
        set_lines(trigger, start, end);
    }
}

enum Found {
    Directive(Directive),
    Repeated(&'static str),
}

/// Looks for directives line by line until the first line that is none.
struct DirectiveScan {
    marker: &'static str,
    seen: Vec<&'static str>,
    done: bool,
}

impl DirectiveScan {
    fn new(marker: &'static str) -> Self {
        Self { marker, seen: Vec::new(), done: false }
    }

    /// `text` has no leading blanks and no line end.
    fn line(&mut self, text: &str, start: usize) -> Option<Found> {
        if self.done {
            return None;
        }
        let found = self.parse(text, start);
        self.done = found.is_none();
        found
    }

    fn parse(&mut self, text: &str, start: usize) -> Option<Found> {
        const BLANKS: [char; 5] = ['\t', '\n', '\u{c}', '\r', ' '];
        let body = text.strip_prefix(self.marker)?.trim_start();
        let (key, value) = body.split_once('=')?;
        let key = key.trim_end_matches(BLANKS);
        let is_word =
            key.starts_with(|ch: char| ch.is_ascii_alphabetic()) && key.bytes().all(|ch| ch.is_ascii_alphanumeric());
        let name = DIRECTIVES.into_iter().find(|name| is_word && key.eq_ignore_ascii_case(name))?;
        let trimmed = value.trim_matches(BLANKS);
        // The value has at least one character, if need be a blank.
        let value_text = if trimmed.is_empty() { &value[value.char_indices().next_back()?.0..] } else { trimmed };
        if self.seen.contains(&name) {
            return Some(Found::Repeated(name));
        }
        self.seen.push(name);
        let leading = value.len() - value.trim_start_matches(BLANKS).len();
        let at = start + text.len() - value.len() + leading.min(value.len() - value_text.len());
        let span = Span::new(at, at + value_text.len());
        Some(Found::Directive(Directive { name: name.to_owned(), value: Spanned::new(value_text.to_owned(), span) }))
    }
}

/// The value of the directive `name`, if the text of a comment is that directive.
pub(crate) fn directive_of_comment(comment: &str, name: &str) -> Option<String> {
    match DirectiveScan::new("").line(comment, 0) {
        Some(Found::Directive(found)) if found.name == name => Some(found.value.value),
        _ => None,
    }
}

fn scan_directives(body: &str, offset: usize, marker: &'static str) -> Vec<Directive> {
    let mut scan = DirectiveScan::new(marker);
    let mut found = Vec::new();
    let mut start = offset;
    for line in body.split_inclusive('\n') {
        match scan.line(line.trim_end_matches(['\r', '\n']), start) {
            Some(Found::Directive(directive)) => found.push(directive),
            Some(Found::Repeated(_)) | None => break,
        }
        start += line.len();
    }
    found
}

/// Skips a byte order mark and a `#!` line; returns the rest and its offset.
fn without_preamble(source: &str) -> (&str, usize) {
    let body = source.strip_prefix(BOM).unwrap_or(source);
    let body = match body.split_once('\n') {
        Some((first, rest)) if first.starts_with("#!") => rest,
        None if body.starts_with("#!") => "",
        _ => body,
    };
    (body, source.len() - body.len())
}

/// Cuts the escape character off the end of a line that continues on the next one. A doubled one does not continue.
fn strip_continuation(line: &str, escape: char) -> (&str, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(rest) if !rest.ends_with(escape) => (rest, true),
        _ => (line, false),
    }
}

/// Splits one instruction; the flag says whether its syntax is right.
fn split_statement(
    line: Slice<'_>,
    escape: char,
    depth: usize,
    diagnostics: &mut Vec<Diagnostic>,
) -> (Statement, bool) {
    let trimmed = line.trim();
    let (keyword, rest) = split_once_blank(trimmed);
    let (flags, arguments) = match rest {
        Some(rest) => take_flags(rest, escape),
        None => (Vec::new(), trimmed.from(trimmed.text().len())),
    };
    let mut statement = Statement {
        name: keyword.text().to_lowercase(),
        keyword: keyword.spanned(),
        span: trimmed.span(),
        flags,
        original: line.text().to_owned(),
        ..Statement::default()
    };
    let errors_before = diagnostics.len();
    let sound = split_arguments(&mut statement, arguments.trim(), escape, depth, diagnostics);
    (statement, sound && diagnostics.len() == errors_before)
}

fn split_arguments(
    statement: &mut Statement,
    rest: Slice<'_>,
    escape: char,
    depth: usize,
    diagnostics: &mut Vec<Diagnostic>,
) -> bool {
    let mut json_or = |statement: &mut Statement, rest: Slice<'_>, plain: fn(Slice<'_>) -> Vec<Spanned<String>>| {
        match json_strings(rest) {
            Json::Strings(strings) => {
                statement.exec_form = true;
                statement.args.extend(strings);
            }
            Json::OtherArray => {
                let message = "when using JSON array syntax, arrays must be comprised of strings only";
                diagnostics.push(Diagnostic::error("syntax", message, rest.span()));
                return false;
            }
            Json::No if rest.text().is_empty() => {}
            Json::No => statement.args.extend(plain(rest)),
        }
        true
    };
    let whole = |rest: Slice<'_>| vec![rest.spanned()];
    let is_empty = rest.text().is_empty();
    match statement.name.as_str() {
        "add" | "copy" | "volume" => return json_or(statement, rest, split_blanks),
        "cmd" | "entrypoint" | "run" | "shell" => return json_or(statement, rest, whole),
        "healthcheck" => {
            let text = rest.text();
            let end = text.find(char::is_whitespace).unwrap_or(text.len());
            if end > 0 {
                statement.args.push(rest.part(0..end).spanned());
            }
            return json_or(statement, rest.from(end).trim(), whole);
        }
        "expose" | "from" if !is_empty => statement.args = split_blanks(rest),
        "maintainer" | "stopsignal" | "user" | "workdir" if !is_empty => statement.args = whole(rest),
        "arg" => {
            let words = split_quoted(rest, escape);
            statement.args = words.into_iter().map(|(word, slice)| Spanned::new(word, slice.span())).collect();
        }
        "env" | "label" => return split_pairs(statement, rest, escape, diagnostics),
        "onbuild" if !is_empty && depth < MAX_TRIGGER_DEPTH => {
            let (trigger, sound) = split_statement(rest, escape, depth + 1, diagnostics);
            statement.trigger = Some(Box::new(trigger));
            return sound;
        }
        "expose" | "from" | "maintainer" | "stopsignal" | "user" | "workdir" | "onbuild" => {}
        // The reference keeps one empty word and drops the text of an instruction that it does not know.
        _ => statement.args.push(Spanned::new(String::new(), rest.span())),
    }
    true
}

/// `KEY=value …`, or the old form `KEY value`.
fn split_pairs(statement: &mut Statement, rest: Slice<'_>, escape: char, diagnostics: &mut Vec<Diagnostic>) -> bool {
    let words = split_quoted(rest, escape);
    let Some((first, _)) = words.first() else { return true };
    if !first.contains('=') {
        let (key, Some(value)) = split_once_blank(rest) else {
            let message = format!("{} must have two arguments", statement.name.to_uppercase());
            diagnostics.push(Diagnostic::error("syntax", message, rest.span()));
            return false;
        };
        let end = Span::new(value.span().end, value.span().end);
        statement.args = vec![key.spanned(), value.spanned(), Spanned::new(String::new(), end)];
        return true;
    }
    let mut sound = true;
    for (word, slice) in words {
        let Some((key, value)) = word.split_once('=') else {
            let message =
                format!("Syntax error - can't find = in {:?}. Must be of the form: name=value", shorten(&word));
            diagnostics.push(Diagnostic::error("syntax", message, slice.span()));
            sound = false;
            continue;
        };
        // A word that lost nothing has the length of its text, so its parts have places of their own.
        let at = if slice.text().len() == word.len() { key.len() } else { 0 };
        let (key_slice, value_slice) = if at > 0 { (slice.part(0..at), slice.from(at + 1)) } else { (slice, slice) };
        statement.args.push(Spanned::new(key.to_owned(), key_slice.span()));
        statement.args.push(Spanned::new(value.to_owned(), value_slice.span()));
        statement.args.push(Spanned::new("=".to_owned(), slice.span()));
    }
    sound
}

fn takes_heredocs(statement: &Statement) -> bool {
    let inner = match &statement.trigger {
        Some(trigger) if statement.name == "onbuild" => trigger,
        _ => statement,
    };
    matches!(inner.name.as_str(), "add" | "copy" | "run") && !inner.exec_form
}

fn heredocs_of_line(line: Slice<'_>) -> Result<Vec<(Heredoc, Span)>, ExpandError> {
    let lex = Lex { raw_quotes: true, raw_escapes: true, skip_unset: true, ..Lex::new('\\') };
    // Text that is no valid word for the lexer has no heredocs; its shell may understand it.
    let words = lex.words(line.text(), &|_: &str| None).unwrap_or_default();
    let mut found = Vec::new();
    let mut at = 0;
    for word in words {
        let offset = line.text()[at..].find(&word).map(|offset| at + offset);
        if let Some(offset) = offset {
            at = offset + word.len();
        }
        if let Some(heredoc) = parse_heredoc_word(&word)? {
            let span = offset.map_or(line.trim().span(), |offset| line.part(offset..offset + word.len()).span());
            found.push((heredoc, span));
        }
    }
    Ok(found)
}

/// Direction overrides make text look like other text.
fn warn_of_bidi(source: &str, diagnostics: &mut Vec<Diagnostic>) {
    const MOST: usize = 20;
    let is_bidi = |ch: char| matches!(ch, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    for (at, found) in source.match_indices(is_bidi).take(MOST) {
        let code = found.chars().next().map_or(0, u32::from);
        let message = format!("bidirectional control character U+{code:04X}: the text may not be what it looks like");
        diagnostics.push(Diagnostic::warning("bidi-control", message, Span::new(at, at + found.len())));
    }
}

fn shorten(text: &str) -> &str {
    const LONGEST: usize = 80;
    text.char_indices().nth(LONGEST).map_or(text, |(end, _)| &text[..end])
}
