//! Word expansion: `$name`, `${name…}`, quotes and escapes, as Dockerfile instructions apply them.
//!
//! The rules are a subset of the POSIX shell's with bash's `${v/p/r}`. Every result and every nesting is limited: the
//! words come from Dockerfiles, and a value can double with each line.
//!
//! Source: Dockerfile reference, "Environment replacement"; BuildKit `frontend/dockerfile/shell`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use regex::Regex;

use crate::limits::{MAX_EXPANSION_BYTES, MAX_EXPANSION_DEPTH};

/// Where values of variables come from.
pub trait Environment {
    /// Returns the value of `name`; an empty value is a value.
    fn get(&self, name: &str) -> Option<String>;
}

impl<F: Fn(&str) -> Option<String> + ?Sized> Environment for F {
    fn get(&self, name: &str) -> Option<String> {
        self(name)
    }
}

impl Environment for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<String> {
        BTreeMap::get(self, name).cloned()
    }
}

impl Environment for HashMap<String, String> {
    fn get(&self, name: &str) -> Option<String> {
        HashMap::get(self, name).cloned()
    }
}

/// Expands words. The flags are off in ordinary use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lex {
    /// The escape character of the Dockerfile: `\` or a backtick.
    pub escape: char,
    /// Keeps quotes in the result.
    pub raw_quotes: bool,
    /// Keeps escape characters in the result.
    pub raw_escapes: bool,
    /// Treats quotes as ordinary characters (the bodies of heredocs).
    pub skip_quotes: bool,
    /// Leaves references to unset variables as they are written.
    pub skip_unset: bool,
}

impl Default for Lex {
    fn default() -> Self {
        Self::new('\\')
    }
}

/// What became of a word.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expanded {
    /// The expanded text as one word.
    pub text: String,
    /// Variables that were read and have a value.
    pub matched: BTreeSet<String>,
    /// Variables that were read and have none.
    pub unmatched: BTreeSet<String>,
}

/// Why a word cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to process {word:?}: {kind}")]
pub struct ExpandError {
    /// The word, shortened where it is long.
    pub word: String,
    /// The reason.
    pub kind: ExpandErrorKind,
}

impl ExpandError {
    /// Whether the word is not wrong but too large or nested too deeply.
    pub fn is_limit(&self) -> bool {
        matches!(self.kind, ExpandErrorKind::TooLong | ExpandErrorKind::TooDeep)
    }
}

/// Reasons why a word cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandErrorKind {
    /// A `'` or `"` has no partner.
    #[error("unexpected end of statement while looking for matching {0}-quote")]
    OpenQuote(&'static str),
    /// `${` has no `}`.
    #[error("syntax error: missing '}}'")]
    MissingBrace,
    /// `${v/p` has no second `/`.
    #[error("syntax error: missing '/' in ${{}}")]
    MissingSlash,
    /// `${}`, `${{`, `${:`.
    #[error("syntax error: bad substitution")]
    BadSubstitution,
    /// `${v…}` with an operator that does not exist.
    #[error("unsupported modifier ({0}) in substitution")]
    UnsupportedModifier(String),
    /// `${v?message}` and `v` has no value.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// The message given, or a standard one.
        message: String,
    },
    /// The pattern of `#`, `%` or `/` has a stray backslash.
    #[error("invalid pattern ({pattern}) in substitution: {reason}")]
    InvalidPattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The result passes [`MAX_EXPANSION_BYTES`].
    #[error("the result is longer than {MAX_EXPANSION_BYTES} bytes")]
    TooLong,
    /// `${…}` is nested deeper than [`MAX_EXPANSION_DEPTH`].
    #[error("substitutions are nested deeper than {MAX_EXPANSION_DEPTH}")]
    TooDeep,
}

impl Lex {
    /// Makes a lexer for the escape character of a Dockerfile.
    pub fn new(escape: char) -> Self {
        Self { escape, raw_quotes: false, raw_escapes: false, skip_quotes: false, skip_unset: false }
    }

    /// Expands `word` to one word; blanks stay.
    ///
    /// # Errors
    /// [`ExpandError`] for a broken substitution, an unmet `${v?}`, or a limit.
    pub fn word<E: Environment + ?Sized>(&self, word: &str, env: &E) -> Result<Expanded, ExpandError> {
        let (text, _, scanner) = self.process(word, env)?;
        Ok(Expanded { text, matched: scanner.matched, unmatched: scanner.unmatched })
    }

    /// Expands `word` and splits the result at blanks outside of quotes.
    ///
    /// # Errors
    /// As [`Lex::word`].
    pub fn words<E: Environment + ?Sized>(&self, word: &str, env: &E) -> Result<Vec<String>, ExpandError> {
        Ok(self.process(word, env)?.1)
    }

    fn process<'a, E: Environment + ?Sized>(
        &self,
        word: &'a str,
        env: &'a E,
    ) -> Result<(String, Vec<String>, Scanner<'a, E>), ExpandError> {
        let mut scanner = Scanner {
            lex: *self,
            // Go's scanner, which defines the behaviour, drops a byte order mark at the start.
            rest: word.strip_prefix('\u{feff}').unwrap_or(word),
            env,
            depth: 0,
            matched: BTreeSet::new(),
            unmatched: BTreeSet::new(),
        };
        match scanner.until(None, self.raw_escapes) {
            Ok((text, words)) => Ok((text, words, scanner)),
            Err(kind) => Err(ExpandError { word: shorten(word), kind }),
        }
    }
}

/// Keeps error messages readable when the word is the attack.
fn shorten(word: &str) -> String {
    const LONGEST: usize = 200;
    match word.char_indices().nth(LONGEST) {
        None => word.to_owned(),
        Some((end, _)) => format!("{}…", &word[..end]),
    }
}

type Fallible<T> = Result<T, ExpandErrorKind>;

/// Collects words while text is produced: quoted text never splits, expanded and plain text does.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    current: String,
}

impl Words {
    fn push_split(&mut self, text: &str) {
        for ch in text.chars() {
            if !ch.is_whitespace() {
                self.current.push(ch);
            } else if !self.current.is_empty() {
                self.done.push(std::mem::take(&mut self.current));
            }
        }
    }

    fn finish(mut self) -> Vec<String> {
        if !self.current.is_empty() {
            self.done.push(self.current);
        }
        self.done
    }
}

struct Scanner<'a, E: ?Sized> {
    lex: Lex,
    rest: &'a str,
    env: &'a E,
    depth: usize,
    matched: BTreeSet<String>,
    unmatched: BTreeSet<String>,
}

impl<E: Environment + ?Sized> Scanner<'_, E> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let ch = self.peek()?;
        self.rest = &self.rest[ch.len_utf8()..];
        Some(ch)
    }

    fn next_if(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.next();
        }
        found
    }

    /// Reads up to `stop` and past it, or to the end where there is none.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Fallible<(String, Vec<String>)> {
        let mut text = String::new();
        let mut words = Words::default();
        while let Some(ch) = self.peek() {
            if Some(ch) == stop {
                self.next();
                return Ok((text, words.finish()));
            }
            match ch {
                '$' => {
                    let value = self.dollar()?;
                    append(&mut text, &value)?;
                    words.push_split(&value);
                }
                '\'' | '"' if !self.lex.skip_quotes => {
                    let value = if ch == '"' { self.double_quoted(raw_escapes)? } else { self.single_quoted()? };
                    append(&mut text, &value)?;
                    words.current.push_str(&value);
                }
                '<' => {
                    let value = self.less_than();
                    append(&mut text, &value)?;
                    words.current.push_str(&value);
                }
                _ => {
                    self.next();
                    if ch != self.lex.escape {
                        append_char(&mut text, ch)?;
                        words.push_split(ch.encode_utf8(&mut [0; 4]));
                        continue;
                    }
                    if raw_escapes {
                        append_char(&mut text, ch)?;
                        words.current.push(ch);
                    }
                    // An escape character at the very end disappears.
                    let Some(escaped) = self.next() else { break };
                    append_char(&mut text, escaped)?;
                    words.current.push(escaped);
                }
            }
        }
        match stop {
            None => Ok((text, words.finish())),
            Some(_) => Err(ExpandErrorKind::MissingBrace),
        }
    }

    fn single_quoted(&mut self) -> Fallible<String> {
        self.next();
        let Some(end) = self.rest.find('\'') else {
            self.rest = "";
            return Err(ExpandErrorKind::OpenQuote("single"));
        };
        let inner = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Ok(if self.lex.raw_quotes { format!("'{inner}'") } else { inner.to_owned() })
    }

    fn double_quoted(&mut self, raw_escapes: bool) -> Fallible<String> {
        self.next();
        let mut text = String::new();
        if self.lex.raw_quotes {
            text.push('"');
        }
        loop {
            match self.peek() {
                None => return Err(ExpandErrorKind::OpenQuote("double")),
                Some('"') => {
                    self.next();
                    if self.lex.raw_quotes {
                        text.push('"');
                    }
                    return Ok(text);
                }
                Some('$') => {
                    let value = self.dollar()?;
                    append(&mut text, &value)?;
                }
                Some(mut ch) => {
                    self.next();
                    if ch == self.lex.escape {
                        if raw_escapes {
                            append_char(&mut text, ch)?;
                        }
                        match self.peek() {
                            None => continue,
                            // Only these can be escaped here; before others the escape character is kept.
                            Some(next) if next == '"' || next == '$' || next == self.lex.escape => {
                                ch = next;
                                self.next();
                            }
                            Some(_) => {}
                        }
                    }
                    append_char(&mut text, ch)?;
                }
            }
        }
    }

    /// Keeps the blanks between `<<` and the word of a heredoc from splitting the two.
    fn less_than(&mut self) -> String {
        self.next();
        let mut text = String::from("<");
        if self.next_if('<') {
            text.push('<');
            while let Some(blank @ ('\t' | '\r' | ' ')) = self.peek() {
                text.push(blank);
                self.next();
            }
        }
        text
    }

    fn dollar(&mut self) -> Fallible<String> {
        self.next();
        if !self.next_if('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.value(&name) {
                None if self.lex.skip_unset => format!("${name}"),
                value => value.unwrap_or_default(),
            });
        }
        if self.depth == MAX_EXPANSION_DEPTH {
            return Err(ExpandErrorKind::TooDeep);
        }
        self.depth += 1;
        let value = self.braces();
        self.depth -= 1;
        value
    }

    /// What follows `${`.
    fn braces(&mut self) -> Fallible<String> {
        match self.peek() {
            None => return Err(ExpandErrorKind::MissingBrace),
            Some('{' | '}' | ':') => return Err(ExpandErrorKind::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        let Some(first) = self.next() else { return Err(ExpandErrorKind::MissingBrace) };
        match first {
            '}' => Ok(match self.value(&name) {
                None if self.lex.skip_unset => format!("${{{name}}}"),
                value => value.unwrap_or_default(),
            }),
            ':' => {
                let Some(operator) = self.next() else { return Err(ExpandErrorKind::MissingBrace) };
                if matches!(operator, '#' | '%') {
                    return Err(ExpandErrorKind::UnsupportedModifier(format!(":{operator}")));
                }
                self.operator(&name, operator, true)
            }
            '+' | '-' | '?' | '#' | '%' => self.operator(&name, first, false),
            '/' => self.replace(&name),
            other => Err(ExpandErrorKind::UnsupportedModifier(other.to_string())),
        }
    }

    /// `operator` is what follows the name; `or_empty` says whether a colon stood before it.
    fn operator(&mut self, name: &str, operator: char, or_empty: bool) -> Fallible<String> {
        // The word is expanded whether it is used or not: its errors are errors of the Dockerfile.
        let is_pattern = matches!(operator, '#' | '%');
        let (word, _) = self.until(Some('}'), is_pattern)?;
        let value = self.value(name);
        let colon = if or_empty { ":" } else { "" };
        if value.is_none() && self.lex.skip_unset {
            return bounded(format!("${{{name}{colon}{operator}{word}}}"));
        }
        let present = value.as_ref().is_some_and(|value| !or_empty || !value.is_empty());
        match operator {
            '-' => Ok(if present { value.unwrap_or_default() } else { word }),
            '+' => Ok(if present { word } else { String::new() }),
            '?' if present => Ok(value.unwrap_or_default()),
            '?' => {
                let standard =
                    if value.is_none() { "is not allowed to be unset" } else { "is not allowed to be empty" };
                let message = if word.is_empty() { standard.to_owned() } else { word };
                Err(ExpandErrorKind::Required { name: name.to_owned(), message })
            }
            '#' | '%' => {
                let (pattern, greedy) = match word.strip_prefix(operator) {
                    Some(pattern) => (pattern, true),
                    None => (word.as_str(), false),
                };
                trim(&value.unwrap_or_default(), pattern, greedy, operator == '%')
            }
            other => Err(ExpandErrorKind::UnsupportedModifier(format!("{colon}{other}"))),
        }
    }

    /// `${name/pattern/replacement}`, after the first slash.
    fn replace(&mut self, name: &str) -> Fallible<String> {
        let all = self.next_if('/');
        let (pattern, _) = self.until(Some('/'), true).map_err(|error| match error {
            ExpandErrorKind::MissingBrace if self.rest.is_empty() => ExpandErrorKind::MissingSlash,
            other => other,
        })?;
        let (replacement, _) = self.until(Some('}'), true)?;
        let value = self.value(name);
        if value.is_none() && self.lex.skip_unset {
            return bounded(format!("${{{name}/{pattern}/{replacement}}}"));
        }
        let value = value.unwrap_or_default();
        let regex = compile(&pattern, &tokens(&pattern)?, true, false)?;
        let mut result = String::new();
        let mut copied = 0;
        for found in regex.find_iter(&value).take(if all { usize::MAX } else { 1 }) {
            append(&mut result, &value[copied..found.start()])?;
            append(&mut result, &replacement)?;
            copied = found.end();
        }
        append(&mut result, &value[copied..])?;
        Ok(result)
    }

    /// Reads a name: letters, digits and `_`; or digits; or one of the shell's special parameters.
    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.peek() {
            Some(first) if first.is_ascii_digit() => {
                while let Some(digit) = self.peek().filter(char::is_ascii_digit) {
                    name.push(digit);
                    self.next();
                }
            }
            Some(special @ ('@' | '*' | '#' | '?' | '-' | '$' | '!')) => {
                name.push(special);
                self.next();
            }
            _ => {
                while let Some(ch) = self.peek().filter(|ch| ch.is_alphanumeric() || *ch == '_') {
                    name.push(ch);
                    self.next();
                }
            }
        }
        name
    }

    fn value(&mut self, name: &str) -> Option<String> {
        let value = self.env.get(name);
        let seen = if value.is_some() { &mut self.matched } else { &mut self.unmatched };
        seen.insert(name.to_owned());
        value
    }
}

fn append(text: &mut String, more: &str) -> Fallible<()> {
    if text.len() + more.len() > MAX_EXPANSION_BYTES {
        return Err(ExpandErrorKind::TooLong);
    }
    text.push_str(more);
    Ok(())
}

fn append_char(text: &mut String, ch: char) -> Fallible<()> {
    append(text, ch.encode_utf8(&mut [0; 4]))
}

fn bounded(text: String) -> Fallible<String> {
    if text.len() > MAX_EXPANSION_BYTES { Err(ExpandErrorKind::TooLong) } else { Ok(text) }
}

/// One element of a shell pattern. Brackets are ordinary characters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Star,
    Any,
    Char(char),
}

fn tokens(pattern: &str) -> Fallible<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut chars = pattern.chars().peekable();
    while let Some(ch) = chars.next() {
        tokens.push(match ch {
            '*' => Token::Star,
            '?' => Token::Any,
            // `\}` and `\/` were escaped for the sake of `${…}`, not of the pattern.
            '\\' if matches!(chars.peek(), Some('}' | '/')) => continue,
            '\\' => match chars.next() {
                Some(escaped @ ('*' | '?' | '\\')) => Token::Char(escaped),
                other => {
                    let reason = match other {
                        Some(other) => format!("invalid escape '\\{other}'"),
                        None => "trailing backslash".to_owned(),
                    };
                    return Err(ExpandErrorKind::InvalidPattern { pattern: shorten(pattern), reason });
                }
            },
            other => Token::Char(other),
        });
    }
    Ok(tokens)
}

fn compile(pattern: &str, tokens: &[Token], greedy: bool, anchored: bool) -> Fallible<Regex> {
    let mut source = String::from(if anchored { "^" } else { "" });
    for token in tokens {
        match token {
            Token::Star => source.push_str(if greedy { ".*" } else { ".*?" }),
            Token::Any => source.push('.'),
            Token::Char(ch) => source.push_str(&regex::escape(ch.encode_utf8(&mut [0; 4]))),
        }
    }
    Regex::new(&source).map_err(|_| ExpandErrorKind::InvalidPattern {
        pattern: shorten(pattern),
        reason: "the pattern is too large".to_owned(),
    })
}

/// Removes what `pattern` matches at the start, or at the end, of `value`.
fn trim(value: &str, pattern: &str, greedy: bool, at_end: bool) -> Fallible<String> {
    let mut tokens = tokens(pattern)?;
    if !at_end {
        let regex = compile(pattern, &tokens, greedy, true)?;
        return Ok(regex.find(value).map_or(value, |found| &value[found.end()..]).to_owned());
    }
    // The shortest match at the end is the shortest match at the start of everything reversed.
    tokens.reverse();
    let regex = compile(pattern, &tokens, greedy, true)?;
    let reversed: String = value.chars().rev().collect();
    let rest = regex.find(&reversed).map_or(reversed.as_str(), |found| &reversed[found.end()..]);
    Ok(rest.chars().rev().collect())
}
