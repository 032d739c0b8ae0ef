//! Text that others wrote: terminal control removed, lines cut, widths measured.
//!
//! What a step prints must not be able to move the cursor or set the title of the terminal that shows it.

use unicode_width::UnicodeWidthChar;

/// Longest line that is kept, in bytes; what is longer is cut.
const LONGEST_LINE: usize = 16 * 1024;

/// Removes terminal control sequences and control characters from one line.
pub(crate) fn clean(line: &str) -> String {
    if !line.chars().any(char::is_control) {
        return line.to_owned();
    }
    let mut lines = Lines::default();
    let mut out = Vec::new();
    lines.push(line, &mut out);
    out.extend(lines.finish());
    out.join(" ")
}

/// Cuts a stream of text into lines. A carriage return starts the line again, as on a terminal.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    line: String,
    escape: Escape,
    returned: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    /// After ESC.
    Start,
    /// Within `ESC [ …`.
    Csi,
    /// Within a string (OSC, DCS, …) that ends with BEL or `ESC \`.
    Text,
    /// After an ESC within a string.
    Closing,
}

impl Lines {
    /// Takes more text; finished lines are added to `out`.
    pub(crate) fn push(&mut self, text: &str, out: &mut Vec<String>) {
        for char in text.chars() {
            if let Some(char) = self.visible(char) {
                self.take(char, out);
            }
        }
    }

    /// The line that was not ended, if there is one.
    pub(crate) fn finish(&mut self) -> Option<String> {
        self.returned = false;
        (!self.line.is_empty()).then(|| std::mem::take(&mut self.line))
    }

    /// The line that is not ended yet.
    pub(crate) fn open(&self) -> &str {
        &self.line
    }

    fn visible(&mut self, char: char) -> Option<char> {
        use Escape::{Closing, Csi, None as Outside, Start, Text};
        let (next, shown) = match (self.escape, char) {
            (Outside, '\x1b') | (Csi, '\x1b') => (Start, None),
            (Outside, '\u{9b}') => (Csi, None),
            (Outside, char) => (Outside, Some(char)),
            (Start, '[') => (Csi, None),
            (Start, ']' | 'P' | '^' | '_' | 'X') => (Text, None),
            // Intermediate bytes, as in `ESC ( B`.
            (Start, '\x20'..='\x2f') => (Start, None),
            (Start, '\n') => (Outside, Some('\n')),
            (Start, _) => (Outside, None),
            (Csi, '\x40'..='\x7e') => (Outside, None),
            (Csi, '\n') => (Outside, Some('\n')),
            (Csi, _) => (Csi, None),
            (Text, '\x07') => (Outside, None),
            (Text, '\x1b') => (Closing, None),
            // A string that is never closed must not swallow the rest of the log.
            (Text | Closing, '\n') => (Outside, Some('\n')),
            (Text, _) => (Text, None),
            (Closing, _) => (Outside, None),
        };
        self.escape = next;
        shown
    }

    fn take(&mut self, char: char, out: &mut Vec<String>) {
        match char {
            '\n' => {
                self.returned = false;
                out.push(std::mem::take(&mut self.line));
            }
            '\r' => self.returned = true,
            char => {
                if self.returned {
                    self.returned = false;
                    self.line.clear();
                }
                match char {
                    '\x08' => {
                        self.line.pop();
                    }
                    '\t' => self.line.push('\t'),
                    char if is_unsafe(char) => {}
                    char if self.line.len() < LONGEST_LINE => self.line.push(char),
                    _ => {}
                }
            }
        }
    }
}

/// Control characters, and those that turn the direction of the text around.
fn is_unsafe(char: char) -> bool {
    char.is_control() || matches!(char, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Columns that `text` takes.
pub(crate) fn width(text: &str) -> usize {
    text.chars().map(|char| char.width().unwrap_or(0)).sum()
}

/// Cuts `text` to `columns`; what is cut is marked with `...` where there is room for that. Tabs become spaces.
pub(crate) fn fit(text: &str, columns: usize) -> String {
    let mut out = String::new();
    let mut used = 0;
    // The last place where `...` still fits.
    let mut mark = 0;
    for char in text.chars() {
        let (char, size) = match char {
            '\t' => (' ', 8 - used % 8),
            char => (char, char.width().unwrap_or(0)),
        };
        if used + size > columns {
            if columns >= 8 {
                out.truncate(mark);
                out.push_str("...");
            }
            return out;
        }
        if char == ' ' && size > 1 {
            out.extend(std::iter::repeat_n(' ', size));
        } else {
            out.push(char);
        }
        used += size;
        if used + 3 <= columns {
            mark = out.len();
        }
    }
    out
}

/// A number of bytes for people, in powers of 1000, as buildx writes them.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 1000 {
        return format!("{count}B");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.995 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.2}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_control_is_removed() {
        for (text, expected) in [
            ("plain", "plain"),
            ("\x1b[1;31mred\x1b[0m", "red"),
            ("\x1b]0;title\x07after", "after"),
            ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
            ("\x1b(Bx", "x"),
            ("a\x08b", "b"),
            ("10%\r20%\r30%", "30%"),
            ("line\r", "line"),
            ("\u{9b}31mx\u{202e}y\0", "xy"),
            ("two\nlines", "two lines"),
            ("tab\tstays", "tab\tstays"),
        ] {
            assert_eq!(clean(text), expected, "{text:?}");
        }
    }

    #[test]
    fn lines_and_sequences_may_be_cut_anywhere() {
        let text = "one\r\ntwo\x1b[31m red\x1b[0m\n\nhalf";
        for cut in 0..text.len() {
            let (mut lines, mut out) = (Lines::default(), Vec::new());
            lines.push(&text[..cut], &mut out);
            lines.push(&text[cut..], &mut out);
            assert_eq!(out, ["one", "two red", ""], "cut at {cut}");
            assert_eq!(lines.finish().as_deref(), Some("half"));
        }
    }

    #[test]
    fn text_is_cut_by_columns_not_by_characters() {
        for (text, columns, expected) in [
            ("short", 10, "short"),
            ("exactly 10", 10, "exactly 10"),
            ("longer than that", 10, "longer ..."),
            ("日本語日本語", 12, "日本語日本語"),
            ("日本語日本語", 11, "日本語日..."),
            ("a\tb", 12, "a       b"),
            ("longer", 3, "lon"),
            ("x", 0, ""),
        ] {
            assert_eq!(fit(text, columns), expected);
            assert!(width(&fit(text, columns)) <= columns);
        }
    }

    #[test]
    fn sizes_are_written_as_buildx_writes_them() {
        for (count, expected) in [
            (0, "0B"),
            (2, "2B"),
            (999, "999B"),
            (1000, "1.00kB"),
            (1234, "1.23kB"),
            (29_150_000, "29.15MB"),
            (999_999_999, "1.00GB"),
            (u64::MAX, "18.45EB"),
        ] {
            assert_eq!(bytes(count), expected);
        }
    }
}
