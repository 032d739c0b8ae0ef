//! Secret values in what a step writes, replaced by `***` while it streams by.
//!
//! [`Patterns`] knows the values and the forms that tools give them; [`Mask`] applies them to one stream. The patterns are
//! one automaton (Aho and Corasick's), so a byte costs the same however many there are.
//!
//! Invariants: what comes out does not depend on how the input was cut into pieces. No byte of a value is let through
//! before it is sure that the value does not follow; only bytes that begin a value are held back.

use std::borrow::Cow;
use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

/// What is shown in place of a value.
const STARS: &[u8] = b"***";

/// Shorter values are not looked for: they would be found everywhere.
pub(crate) const MIN_VALUE_BYTES: usize = 4;

/// Shorter lines of a value with several lines, and shorter pieces of an encoding, are not looked for by themselves.
const MIN_LINE_BYTES: usize = 8;

/// Above this, only the value, its lines and its base64 are looked for: the automaton grows with all forms together.
const MAX_ALL_FORMS_BYTES: usize = 32 << 10;

/// Widths at which tools break base64 into lines.
const BASE64_WIDTHS: [usize; 2] = [76, 64];

/// The part of a value that is looked for: tools strip the end of a file's last line.
pub(crate) fn essence(value: &[u8]) -> &[u8] {
    let end = value.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |last| last + 1);
    &value[..end]
}

/// Texts to hide.
#[derive(Clone)]
pub(crate) struct Patterns {
    /// The node that each byte leads to from the root.
    first: Box<[u32; 256]>,
    nodes: Vec<Node>,
}

/// A text that some pattern begins with.
#[derive(Clone, Copy, Default)]
struct Node {
    byte: u8,
    /// The first text that is longer by one byte, and the next one of the same length; 0 is none.
    child: u32,
    sibling: u32,
    /// The longest proper suffix that some pattern begins with.
    suffix: u32,
    /// Length.
    depth: u32,
    /// Length of the longest pattern that is a suffix of it, or 0.
    found: u32,
}

impl std::fmt::Debug for Patterns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Patterns(***)")
    }
}

impl Patterns {
    /// The forms of these values. `None` where there is nothing to look for.
    pub(crate) fn of_values<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let mut texts = BTreeSet::new();
        for value in values {
            forms(value, &mut texts);
        }
        Self::new(&texts)
    }

    /// These texts as they are.
    fn new(texts: &BTreeSet<Vec<u8>>) -> Option<Self> {
        let mut patterns = Self { first: Box::new([0; 256]), nodes: vec![Node::default()] };
        for text in texts.iter().filter(|text| !text.is_empty()) {
            patterns.add(text);
        }
        if patterns.nodes.len() == 1 {
            return None;
        }
        patterns.link();
        Some(patterns)
    }

    fn add(&mut self, text: &[u8]) {
        let mut at = 0;
        for &byte in text {
            at = match self.child(at, byte) {
                0 => self.add_child(at, byte),
                known => known,
            };
        }
        let depth = self.nodes[at as usize].depth;
        self.nodes[at as usize].found = depth;
    }

    fn add_child(&mut self, parent: u32, byte: u8) -> u32 {
        let new = u32::try_from(self.nodes.len()).expect("values have a limit far below 4 GiB");
        let above = self.nodes[parent as usize];
        self.nodes.push(Node { byte, depth: above.depth + 1, sibling: above.child, ..Node::default() });
        self.nodes[parent as usize].child = new;
        if parent == 0 {
            self.first[usize::from(byte)] = new;
        }
        new
    }

    fn child(&self, parent: u32, byte: u8) -> u32 {
        if parent == 0 {
            return self.first[usize::from(byte)];
        }
        let mut child = self.nodes[parent as usize].child;
        while child != 0 && self.nodes[child as usize].byte != byte {
            child = self.nodes[child as usize].sibling;
        }
        child
    }

    /// Finds the suffixes, shorter texts first.
    fn link(&mut self) {
        let mut queue = VecDeque::from([0]);
        while let Some(parent) = queue.pop_front() {
            let mut child = self.nodes[parent as usize].child;
            while child != 0 {
                let Node { byte, sibling, .. } = self.nodes[child as usize];
                let suffix = if parent == 0 { 0 } else { self.step(self.nodes[parent as usize].suffix, byte) };
                let below = self.nodes[suffix as usize].found;
                let node = &mut self.nodes[child as usize];
                node.suffix = suffix;
                node.found = node.found.max(below);
                queue.push_back(child);
                child = sibling;
            }
        }
    }

    /// The longest text that some pattern begins with, at the end of what was read.
    fn step(&self, mut at: u32, byte: u8) -> u32 {
        loop {
            let next = self.child(at, byte);
            if next != 0 || at == 0 {
                return next;
            }
            at = self.nodes[at as usize].suffix;
        }
    }

    /// How many of the last bytes begin a pattern that is not complete. What is complete is known already.
    fn waits_for(&self, mut at: u32) -> u32 {
        while at != 0 && self.nodes[at as usize].child == 0 {
            at = self.nodes[at as usize].suffix;
        }
        self.nodes[at as usize].depth
    }
}

/// Adds everything that `value` may look like.
fn forms(value: &[u8], texts: &mut BTreeSet<Vec<u8>>) {
    let essence = essence(value);
    if essence.len() < MIN_VALUE_BYTES {
        return;
    }
    for text in [essence, value] {
        texts.insert(text.to_vec());
        base64_forms(text, texts);
    }
    let lines = || essence.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    if essence.contains(&b'\n') {
        texts.extend(lines().filter(|line| line.len() >= MIN_LINE_BYTES).map(<[u8]>::to_vec));
    }
    if value.len() > MAX_ALL_FORMS_BYTES {
        return;
    }
    let mut others = vec![essence];
    if essence.contains(&b'\n') {
        others.extend(lines().filter(|line| line.len() >= MIN_LINE_BYTES));
    }
    for text in others {
        texts.insert(hex(text, false).into_bytes());
        texts.insert(hex(text, true).into_bytes());
        for keep in ["-._~", "-._~/", "-_.!~*'()", "-._*"] {
            for upper in [true, false] {
                let encoded = percent(text, keep, upper);
                texts.insert(encoded.replace("%20", "+").into_bytes());
                texts.insert(encoded.into_bytes());
            }
        }
        if let Ok(text) = std::str::from_utf8(text) {
            let quoted = serde_json::to_string(text).expect("a string can be written as JSON");
            let inner = &quoted[1..quoted.len() - 1];
            // Go's encoder also hides what HTML would take for markup; others escape slashes, or all but ASCII.
            let html = inner.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
            let mut ascii = String::with_capacity(inner.len());
            for char in inner.chars() {
                if char.is_ascii() {
                    ascii.push(char);
                } else {
                    for unit in char.encode_utf16(&mut [0; 2]) {
                        write!(ascii, "\\u{unit:04x}").expect("writing to a string");
                    }
                }
            }
            for text in [inner, &html, &inner.replace('/', "\\/"), &ascii] {
                texts.insert(text.as_bytes().to_vec());
            }
        }
    }
}

/// Base64, also where something else was encoded together with the value, before or after it.
fn base64_forms(value: &[u8], texts: &mut BTreeSet<Vec<u8>>) {
    for engine in [STANDARD, URL_SAFE] {
        let whole = engine.encode(value);
        for width in BASE64_WIDTHS {
            if whole.len() > width {
                let lines = whole.as_bytes().chunks(width).filter(|line| line.len() >= MIN_LINE_BYTES);
                texts.extend(lines.map(<[u8]>::to_vec));
            }
        }
        texts.insert(whole.trim_end_matches('=').as_bytes().to_vec());
        texts.insert(whole.into_bytes());
        for before in 0..3usize {
            let mut shifted = vec![0; before];
            shifted.extend_from_slice(value);
            let encoded = engine.encode(&shifted);
            // The characters that depend on the value alone: six bits each.
            let (first, end) = ((before * 8).div_ceil(6), shifted.len() * 8 / 6);
            let inner = encoded.as_bytes().get(first..end).unwrap_or_default();
            if inner.len() >= MIN_VALUE_BYTES {
                texts.insert(inner.to_vec());
            }
        }
    }
}

fn hex(bytes: &[u8], upper: bool) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let written = if upper { write!(text, "{byte:02X}") } else { write!(text, "{byte:02x}") };
        written.expect("writing to a string");
    }
    text
}

fn percent(bytes: &[u8], keep: &str, upper: bool) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || keep.as_bytes().contains(&byte) {
            text.push(char::from(byte));
        } else {
            let written = if upper { write!(text, "%{byte:02X}") } else { write!(text, "%{byte:02x}") };
            written.expect("writing to a string");
        }
    }
    text
}

/// One stream that is being masked.
#[derive(Debug, Default)]
pub(crate) struct Mask {
    patterns: Option<Arc<Patterns>>,
    at: u32,
    /// Position in the stream of the next byte that is read, and the bytes before it that were not let through yet.
    position: u64,
    held: VecDeque<u8>,
    /// What is to be hidden, not behind what was let through. Ordered; no two touch.
    hidden: VecDeque<(u64, u64)>,
    /// Where the last hidden part ended: what follows it at once belongs to it.
    hidden_until: Option<u64>,
}

impl Mask {
    /// Looks for other patterns from now on, also in what is still held.
    pub(crate) fn look_for(&mut self, patterns: &Arc<Patterns>) {
        if self.patterns.as_ref().is_some_and(|known| Arc::ptr_eq(known, patterns)) {
            return;
        }
        self.patterns = Some(Arc::clone(patterns));
        self.at = 0;
        let held: Vec<u8> = self.held.drain(..).collect();
        self.position -= held.len() as u64;
        // What was found in it is kept.
        self.read(&held);
    }

    /// Takes the next bytes, none at the end, and returns those that are sure.
    pub(crate) fn pass<'a>(&mut self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        if self.patterns.is_none() {
            return Cow::Borrowed(bytes);
        }
        self.read(bytes);
        let depth = self.patterns.as_ref().map_or(0, |patterns| patterns.waits_for(self.at));
        let sure = if bytes.is_empty() { self.position } else { self.position - u64::from(depth) };
        Cow::Owned(self.release(sure))
    }

    fn read(&mut self, bytes: &[u8]) {
        let Some(patterns) = &self.patterns else { return };
        for &byte in bytes {
            self.at = patterns.step(self.at, byte);
            self.position += 1;
            self.held.push_back(byte);
            let found = u64::from(patterns.nodes[self.at as usize].found);
            if found > 0 {
                let (mut start, mut end) = (self.position - found, self.position);
                while let Some(&(known_start, known_end)) = self.hidden.back()
                    && start <= known_end
                {
                    (start, end) = (start.min(known_start), end.max(known_end));
                    self.hidden.pop_back();
                }
                self.hidden.push_back((start, end));
            }
        }
    }

    /// Lets through what comes before `sure`.
    fn release(&mut self, sure: u64) -> Vec<u8> {
        let mut position = self.position - self.held.len() as u64;
        let mut out = Vec::with_capacity(usize::try_from(sure - position).unwrap_or_default());
        while position < sure {
            match self.hidden.front().copied() {
                Some((start, end)) if start <= position => {
                    if self.hidden_until != Some(start) {
                        out.extend_from_slice(STARS);
                    }
                    let stop = end.min(sure);
                    self.held.drain(..(stop - position) as usize);
                    position = stop;
                    self.hidden_until = Some(stop);
                    self.hidden.pop_front();
                    if stop < end {
                        self.hidden.push_front((stop, end));
                    }
                }
                next => {
                    let stop = next.map_or(sure, |(start, _)| start.min(sure));
                    out.extend(self.held.drain(..(stop - position) as usize));
                    position = stop;
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mask(values: &[&str], pieces: &[&[u8]]) -> String {
        let patterns = Patterns::of_values(values.iter().map(|value| value.as_bytes())).map(Arc::new);
        let mut mask = Mask::default();
        if let Some(patterns) = &patterns {
            mask.look_for(patterns);
        }
        let mut out = Vec::new();
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            out.extend_from_slice(&mask.pass(piece));
        }
        out.extend_from_slice(&mask.pass(b""));
        String::from_utf8_lossy(&out).into_owned()
    }

    /// S01.
    #[test]
    fn values_are_hidden_in_every_form() {
        let value = "p@ss \"w/rd\"<&>é1";
        for (text, expected) in [
            ("p@ss \"w/rd\"<&>é1", "***"),
            ("x p@ss \"w/rd\"<&>é1 y p@ss", "x *** y p@ss"),
            ("p%40ss%20%22w%2Frd%22%3C%26%3E%C3%A91", "***"),
            ("p%40ss+%22w%2frd%22%3c%26%3e%c3%a91", "***"),
            (r#"{"k":"p@ss \"w/rd\"<&>é1"}"#, r#"{"k":"***"}"#),
            (r#"p@ss \"w/rd\"\u003c\u0026\u003eé1"#, "***"),
            (r#"p@ss \"w/rd\"<&>\u00e91"#, "***"),
        ] {
            assert_eq!(mask(&[value], &[text.as_bytes()]), expected, "{text}");
        }
        for (before, after) in [("", ""), ("u:", ""), ("a", "z"), ("ab", "\n"), ("abc", "xy"), ("", "\n")] {
            for engine in [STANDARD, URL_SAFE] {
                let encoded = engine.encode(format!("{before}{value}{after}"));
                let masked = mask(&[value], &[encoded.as_bytes()]);
                // At the edges a character may hold bits of both.
                assert!(masked.contains("***") && masked.len() <= 3 + (before.len() + after.len()) * 2 + 4, "{masked}");
            }
        }
        assert_eq!(mask(&["abcdefgh"], &[b"6162636465666768 6162636465666768".as_slice()]), "*** ***");
    }

    #[test]
    fn lines_and_wrapped_base64_of_long_values_are_hidden() {
        let value = format!("-----BEGIN KEY-----\n{}\n{}\n-----END KEY-----\n", "Ab1".repeat(20), "Cd2".repeat(20));
        assert_eq!(mask(&[&value], &[b"x ", "Cd2".repeat(20).as_bytes(), b" y"]), "x *** y");
        let encoded = STANDARD.encode(&value);
        let wrapped: Vec<String> =
            encoded.as_bytes().chunks(76).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        let masked = mask(&[&value], &[wrapped.join("\n").as_bytes()]);
        assert!(masked.split('\n').all(|line| line == "***" || line.len() < 8), "{masked}");
        assert_eq!(mask(&[&value], &[value.as_bytes()]), "***");
    }

    #[test]
    fn short_values_are_let_through_and_nothing_is_held_that_begins_no_value() {
        assert_eq!(mask(&["abc", "abc\n"], &[b"abc"]), "abc");
        let patterns = Arc::new(Patterns::of_values([b"secret".as_slice()]).unwrap());
        let mut mask = Mask::default();
        assert_eq!(&*mask.pass(b"early "), b"early ");
        mask.look_for(&patterns);
        assert_eq!(&*mask.pass(b"password? "), b"password? ");
        assert_eq!(&*mask.pass(b"se"), b"");
        assert_eq!(&*mask.pass(b"t"), b"set");
        assert_eq!(&*mask.pass(b"secret"), b"***");
        assert_eq!(&*mask.pass(b"sec"), b"");
        assert_eq!(&*mask.pass(b""), b"sec");
    }

    #[test]
    fn values_that_overlap_or_touch_are_one() {
        assert_eq!(mask(&["abcde", "defgh"], &[b"-abcdefgh-"]), "-***-");
        assert_eq!(mask(&["abcd"], &[b"abcd", b"abcd", b"!"]), "***!");
        assert_eq!(mask(&["abcd", "abcdefgh"], &[b"abcd", b"efg", b"x"]), "***efgx");
    }

    proptest! {
        /// S01: the chunks that the kernel makes decide nothing.
        #[test]
        fn any_chunking_gives_the_same_output(
            values in prop::collection::vec("[ab]{4,6}", 1..4),
            text in "[abc]{0,40}",
            cuts in prop::collection::vec(0usize..40, 0..12),
            switch in prop::option::of(0usize..6),
        ) {
            let whole = mask(&values.iter().map(String::as_str).collect::<Vec<_>>(), &[text.as_bytes()]);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
            // Equal patterns under another address, as when a further secret is asked for, change nothing either.
            let patterns = || Arc::new(Patterns::of_values(values.iter().map(String::as_bytes)).unwrap());
            let mut mask = Mask::default();
            mask.look_for(&patterns());
            let mut out = Vec::new();
            for (index, piece) in pieces.iter().filter(|piece| !piece.is_empty()).enumerate() {
                if Some(index) == switch {
                    mask.look_for(&patterns());
                }
                out.extend_from_slice(&mask.pass(piece));
            }
            out.extend_from_slice(&mask.pass(b""));
            prop_assert_eq!(String::from_utf8_lossy(&out), whole.as_str());
            for value in &values {
                prop_assert!(!whole.contains(value.as_str()));
            }
        }
    }
}
