//! `.dockerignore`: patterns, and the question which paths they leave out.
//!
//! The last pattern that matches a path or one of its parents decides; `!` takes a path back in. Patterns are matched by
//! a small automaton of their own, in time proportional to pattern times path whatever the pattern is. A walk keeps one
//! [`WalkState`] per directory and so asks about an entry alone, and only the patterns that an index finds.
//!
//! Paths are relative to the context, with `/` between their parts and none at the ends.
//!
//! Source: Dockerfile reference, ".dockerignore file"; moby/patternmatcher for the behaviour. Differences: `\` makes any
//! next character ordinary (there, `\d` becomes a class of the regular expressions behind it), and `^` is ordinary.

mod index;

use std::sync::Arc;

use self::index::Index;
use crate::glob::{self, Class, Part};

/// A parsed ignore file.
#[derive(Debug, Clone, Default)]
pub struct Ignore {
    patterns: Vec<Pattern>,
    index: Index,
}

/// One pattern.
#[derive(Debug, Clone)]
pub struct Pattern {
    /// The pattern, cleaned, with its `!`: as BuildKit passes it on.
    pub text: String,
    /// Whether it takes paths back in.
    pub is_exception: bool,
    /// Its line, counted from 1; of a list, its position.
    pub line: usize,
    matcher: Matcher,
}

/// Why an ignore file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}: `{pattern}`")]
pub struct IgnoreError {
    /// The line, counted from 1.
    pub line: usize,
    /// The pattern, as far as it was read.
    pub pattern: String,
    /// What is wrong.
    pub reason: &'static str,
}

/// Which patterns matched a directory or one of its parents. The default is the root of the context.
#[derive(Debug, Clone, Default)]
pub struct WalkState {
    /// Their positions, sorted.
    matched: Arc<[usize]>,
}

/// A pattern that changed, or confirmed, what is said about a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The pattern, as an index of [`Ignore::rules`].
    pub rule: usize,
    /// Length of what it matched: the path itself, or one of the directories that it is in.
    pub matched: usize,
}

/// What the patterns say about a path.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Whether the path is left out.
    pub ignored: bool,
    /// The pattern that decided, as an index of [`Ignore::rules`]; none if no pattern matched.
    pub decided_by: Option<usize>,
    /// What entries below the path need.
    pub state: WalkState,
}

impl Ignore {
    /// Parses the text of an ignore file.
    ///
    /// # Errors
    /// [`IgnoreError`] for the first malformed pattern.
    pub fn parse(text: &str) -> Result<Self, IgnoreError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut ignore = Self::default();
        for (index, line) in text.lines().enumerate() {
            if line.starts_with('#') {
                continue;
            }
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            let (mark, body) = match line.strip_prefix('!') {
                Some(body) => ("!", body.trim()),
                None => ("", line),
            };
            let cleaned = if body.is_empty() { String::new() } else { clean(body) };
            let relative = if cleaned.len() > 1 { cleaned.strip_prefix('/').unwrap_or(&cleaned) } else { &cleaned };
            ignore.add(format!("{mark}{relative}"), index + 1)?;
        }
        ignore.index = Index::new(&ignore.patterns);
        Ok(ignore)
    }

    /// Makes it from patterns, such as those of `--exclude` or of [`Ignore::patterns`].
    ///
    /// # Errors
    /// [`IgnoreError`] for the first malformed pattern; its line is the position in the list.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self, IgnoreError> {
        let mut ignore = Self::default();
        for (index, pattern) in patterns.iter().enumerate() {
            let pattern = pattern.as_ref().trim();
            if !pattern.is_empty() {
                ignore.add(pattern.to_owned(), index + 1)?;
            }
        }
        ignore.index = Index::new(&ignore.patterns);
        Ok(ignore)
    }

    fn add(&mut self, text: String, line: usize) -> Result<(), IgnoreError> {
        let cleaned = clean(text.trim());
        let (is_exception, body) = match cleaned.strip_prefix('!') {
            Some(body) => (true, body),
            None => (false, cleaned.as_str()),
        };
        let error = |reason| IgnoreError { line, pattern: text.chars().take(200).collect(), reason };
        if body.is_empty() {
            return Err(error("an exception without a pattern"));
        }
        if glob::compile(body).is_err() {
            return Err(error("malformed pattern"));
        }
        let matcher = Matcher::new(body);
        self.patterns.push(Pattern { text, is_exception, line, matcher });
        Ok(())
    }

    /// Returns the patterns, cleaned, as they stand in `local.excludepatterns`.
    pub fn patterns(&self) -> Vec<String> {
        self.patterns.iter().map(|pattern| pattern.text.clone()).collect()
    }

    /// Returns the patterns with their lines.
    pub fn rules(&self) -> &[Pattern] {
        &self.patterns
    }

    /// Whether nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Decides about `path`, an entry of the directory that `parent` belongs to.
    pub fn visit(&self, path: &str, parent: &WalkState) -> Verdict {
        let mut verdict = Verdict::default();
        let mut decide = |index: usize| {
            verdict.ignored = !self.patterns[index].is_exception;
            verdict.decided_by = Some(index);
            verdict.ignored
        };
        let mut ignored = false;
        let mut matched = Vec::new();
        // What a parent matched holds here as well, in its place among the others.
        let mut inherited = &*parent.matched;
        for index in self.index.candidates(&self.patterns, path) {
            let (before, rest) = inherited.split_at(inherited.partition_point(|inherited| *inherited < index));
            if let Some(last) = before.last() {
                ignored = decide(*last);
            }
            inherited = rest;
            let pattern = &self.patterns[index];
            // An exception matters only for what is ignored, another pattern only for what is not.
            if inherited.first() != Some(&index) && pattern.is_exception == ignored && pattern.matcher.is_match(path) {
                ignored = decide(index);
                matched.push(index);
            }
        }
        if let Some(last) = inherited.last() {
            decide(*last);
        }
        verdict.state = if matched.is_empty() {
            parent.clone()
        } else {
            matched.extend(&*parent.matched);
            matched.sort_unstable();
            WalkState { matched: matched.into() }
        };
        verdict
    }

    /// Decides about `path` alone, asking for each of its parents first.
    pub fn verdict(&self, path: &str) -> Verdict {
        let mut verdict = Verdict::default();
        for (end, _) in path.match_indices('/') {
            verdict = self.visit(&path[..end], &verdict.state);
        }
        self.visit(path, &verdict.state)
    }

    /// The patterns that had a say about `path`, in their order; the last one decides. None left it as it was: kept.
    pub fn trace(&self, path: &str) -> Vec<Step> {
        let mut matched: Vec<Option<usize>> = vec![None; self.patterns.len()];
        let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
        for end in ends {
            let mut ignored = false;
            for (pattern, matched) in self.patterns.iter().zip(&mut matched) {
                // As in `visit`: an exception matters only for what is ignored, another pattern only for what is not.
                if matched.is_none() && pattern.is_exception == ignored && pattern.matcher.is_match(&path[..end]) {
                    *matched = Some(end);
                }
                if matched.is_some() {
                    ignored = !pattern.is_exception;
                }
            }
        }
        let steps = matched.into_iter().enumerate();
        steps.filter_map(|(rule, matched)| Some(Step { rule, matched: matched? })).collect()
    }

    /// Whether `path` is left out.
    pub fn matches(&self, path: &str) -> bool {
        self.verdict(path).ignored
    }

    /// Whether nothing below the directory `dir` can be wanted, so that a walk need not enter it.
    pub fn can_prune(&self, dir: &str, verdict: &Verdict) -> bool {
        if !verdict.ignored {
            return false;
        }
        // What the deciding pattern matched stays matched below; only later exceptions can take something back.
        let later = verdict.decided_by.map_or(0, |index| index + 1);
        !self.index.exception_below(&self.patterns, dir, later)
    }
}

/// How one pattern is matched.
#[derive(Debug, Clone)]
enum Matcher {
    Exact(String),
    Prefix(String),
    /// What follows a leading `**`.
    Suffix(String),
    Automaton(Box<Automaton>),
}

#[derive(Debug, Clone)]
struct Automaton {
    /// Ordinary characters at the start and at the end: most paths fail there already.
    prefix: String,
    suffix: String,
    tokens: Vec<Token>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Char(char),
    Any,
    Star,
    Class(Class),
    /// `**` at the end: anything.
    Rest,
    /// `**` before more: nothing, or anything that ends with `/`.
    Folders,
}

impl Matcher {
    /// `pattern` is well-formed.
    fn new(pattern: &str) -> Self {
        let mut tokens = Vec::new();
        let mut is_plain = true;
        let mut rest = pattern;
        // A `**` is not known to the other pattern language, so the text is cut at each of them.
        while let Some(at) = find_double_star(rest) {
            is_plain &= push_parts(&rest[..at], &mut tokens);
            let after = &rest[at + 2..];
            rest = after.strip_prefix('/').unwrap_or(after);
            let is_first = at == 0 && tokens.is_empty();
            if rest.is_empty() && is_plain && !tokens.contains(&Token::Folders) && !is_first {
                return Self::Prefix(plain_text(&tokens));
            }
            if is_first && find_double_star(rest).is_none() {
                let mut tail = Vec::new();
                if push_parts(rest, &mut tail) {
                    return Self::Suffix(format!("{}{}", if after.starts_with('/') { "/" } else { "" }, rest));
                }
            }
            let token = if rest.is_empty() { Token::Rest } else { Token::Folders };
            if tokens.last() != Some(&token) {
                tokens.push(token);
            }
        }
        is_plain &= push_parts(rest, &mut tokens);
        if is_plain && !tokens.iter().any(|token| matches!(token, Token::Rest | Token::Folders)) {
            return Self::Exact(pattern.to_owned());
        }
        let chars = |token: &Token| if let Token::Char(ch) = token { Some(*ch) } else { None };
        let prefix = tokens.iter().map_while(chars).collect();
        let mut suffix: Vec<char> = tokens.iter().rev().map_while(chars).collect();
        suffix.reverse();
        Self::Automaton(Box::new(Automaton { prefix, suffix: suffix.into_iter().collect(), tokens }))
    }

    /// What every path that matches starts with.
    fn start(&self) -> &str {
        match self {
            Self::Exact(text) | Self::Prefix(text) => text,
            Self::Suffix(_) => "",
            Self::Automaton(automaton) => &automaton.prefix,
        }
    }

    /// What every path that matches ends with, if `/` is put before it.
    fn end(&self) -> &str {
        match self {
            Self::Exact(text) | Self::Suffix(text) => text,
            Self::Prefix(_) => "",
            Self::Automaton(automaton) => &automaton.suffix,
        }
    }

    fn is_match(&self, path: &str) -> bool {
        match self {
            Self::Exact(text) => path == text,
            Self::Prefix(text) => path.starts_with(text.as_str()),
            // `**/name` matches `name` too.
            Self::Suffix(text) => path.ends_with(text.as_str()) || text.strip_prefix('/') == Some(path),
            Self::Automaton(automaton) => {
                let Automaton { prefix, suffix, tokens } = &**automaton;
                path.starts_with(prefix.as_str()) && path.ends_with(suffix.as_str()) && run(tokens, path).accepts()
            }
        }
    }

    /// Whether some path below `dir` could match.
    fn can_match_below(&self, dir: &str) -> bool {
        let below = |text: &str| text.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'));
        match self {
            Self::Exact(text) => below(text),
            Self::Prefix(text) => below(text) || dir.starts_with(text.as_str()),
            Self::Suffix(_) => true,
            Self::Automaton(automaton) => run(&automaton.tokens, &format!("{dir}/")).is_alive(),
        }
    }
}

/// Finds the first `**` that is not part of an escape or a class.
fn find_double_star(text: &str) -> Option<usize> {
    let mut in_class = false;
    let mut chars = text.char_indices();
    while let Some((at, ch)) = chars.next() {
        match ch {
            '\\' => {
                chars.next();
            }
            '[' => in_class = true,
            ']' => in_class = false,
            '*' if !in_class && text[at + 1..].starts_with('*') => return Some(at),
            _ => {}
        }
    }
    None
}

/// Appends the tokens of a pattern without `**`; returns whether all of it was ordinary characters without escapes.
fn push_parts(pattern: &str, tokens: &mut Vec<Token>) -> bool {
    // The whole pattern was checked, and it was cut where no class or escape is open.
    for part in glob::compile(pattern).unwrap_or_default() {
        tokens.push(match part {
            Part::Char(ch) => Token::Char(ch),
            Part::Any => Token::Any,
            Part::Star => Token::Star,
            Part::Class(class) => Token::Class(class),
        });
    }
    !pattern.contains(['*', '?', '[', ']', '\\'])
}

fn plain_text(tokens: &[Token]) -> String {
    tokens.iter().filter_map(|token| if let Token::Char(ch) = token { Some(*ch) } else { None }).collect()
}

/// The automaton's states after some input: state `n` has `tokens[..n]` behind it.
struct States {
    active: Vec<bool>,
}

impl States {
    fn accepts(&self) -> bool {
        self.active.last() == Some(&true)
    }

    /// Whether more input can still lead to a match.
    fn is_alive(&self) -> bool {
        self.active[..self.active.len() - 1].contains(&true)
    }
}

/// Follows all states at once. Loops are part of their token: `*`, `**` stay where they are and may be skipped.
fn run(tokens: &[Token], input: &str) -> States {
    let mut active = vec![false; tokens.len() + 1];
    // Inside the `.*/` of a `Folders` token, which may end only after a slash.
    let mut inside = vec![false; tokens.len()];
    let mut next = active.clone();
    active[0] = true;
    close(tokens, &mut active);
    for ch in input.chars() {
        next.fill(false);
        let mut is_alive = false;
        for (state, token) in tokens.iter().enumerate() {
            if let Token::Folders = token {
                inside[state] |= active[state];
                next[state + 1] |= inside[state] && ch == '/';
                is_alive |= inside[state];
                continue;
            }
            if !active[state] {
                continue;
            }
            let (stay, step) = match token {
                Token::Char(wanted) => (false, *wanted == ch),
                Token::Any => (false, ch != '/'),
                Token::Class(class) => (false, class.contains(ch)),
                Token::Star => (ch != '/', false),
                Token::Rest => (true, false),
                Token::Folders => (false, false),
            };
            next[state] |= stay;
            next[state + 1] |= step;
            is_alive |= stay || step;
        }
        std::mem::swap(&mut active, &mut next);
        close(tokens, &mut active);
        if !is_alive {
            active.fill(false);
            break;
        }
    }
    for (state, inside) in inside.iter().enumerate() {
        active[state] |= *inside;
    }
    States { active }
}

/// Adds the states that are reached without input.
fn close(tokens: &[Token], active: &mut [bool]) {
    for (state, token) in tokens.iter().enumerate() {
        if active[state] && matches!(token, Token::Star | Token::Rest | Token::Folders) {
            active[state + 1] = true;
        }
    }
}

/// Shortens a path as Go's `filepath.Clean`: no empty parts, no `.`, no `..` that has something to take away.
pub(crate) fn clean(path: &str) -> String {
    let is_rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if is_rooted => {}
            other => parts.push(other),
        }
    }
    match (is_rooted, parts.join("/")) {
        (true, rest) => format!("/{rest}"),
        (false, rest) if rest.is_empty() => ".".to_owned(),
        (false, rest) => rest,
    }
}
