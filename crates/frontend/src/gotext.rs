//! Text as Go's `fmt` writes it. It stands in image histories and in attributes of the graph, so it is compared byte by
//! byte with what BuildKit makes.

use std::fmt::Write;

/// A list under `%v`: `[a b]`.
pub(crate) fn list(items: &[impl AsRef<str>]) -> String {
    let items: Vec<&str> = items.iter().map(AsRef::as_ref).collect();
    format!("[{}]", items.join(" "))
}

/// A list under `%q`: `["a" "b"]`.
pub(crate) fn quoted_list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| quoted(item)).collect();
    format!("[{}]", items.join(" "))
}

/// A string under `%q`.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        let _ = match character {
            '"' => write!(out, "\\\""),
            '\\' => write!(out, "\\\\"),
            '\x07' => write!(out, "\\a"),
            '\x08' => write!(out, "\\b"),
            '\x0c' => write!(out, "\\f"),
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            '\x0b' => write!(out, "\\v"),
            ' ' => write!(out, " "),
            character if (character as u32) < 0x80 && character.is_control() => {
                write!(out, "\\x{:02x}", character as u32)
            }
            character if unprintable(character) && (character as u32) < 0x1_0000 => {
                write!(out, "\\u{:04x}", character as u32)
            }
            character if unprintable(character) => write!(out, "\\U{:08x}", character as u32),
            character => write!(out, "{character}"),
        };
    }
    out.push('"');
    out
}

/// What Unicode gives no glyph to: controls, spaces other than U+0020, formats, private use, noncharacters.
fn unprintable(character: char) -> bool {
    character.is_control()
        || character.is_whitespace()
        || matches!(character as u32,
            0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x180e | 0x200b..=0x200f | 0x202a..=0x202e
            | 0x2060..=0x206f | 0xe000..=0xf8ff | 0xfeff | 0xfff0..=0xfffb | 0xfffe..=0xffff
            | 0xe_0000..=0x10_ffff)
}

/// A `time.Duration` under `%v`, from nanoseconds.
pub(crate) fn duration(nanoseconds: i64) -> String {
    let negative = nanoseconds < 0;
    let total = nanoseconds.unsigned_abs();
    let text = match total {
        0 => "0s".to_owned(),
        1..1_000 => format!("{total}ns"),
        1_000..1_000_000 => format!("{}µs", decimal(total, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", decimal(total, 1_000_000)),
        _ => {
            let minutes = total / 60_000_000_000;
            let seconds = decimal(total % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    };
    if negative { format!("-{text}") } else { text }
}

fn decimal(value: u64, unit: u64) -> String {
    let (whole, rest) = (value / unit, value % unit);
    if rest == 0 {
        return whole.to_string();
    }
    let width = unit.ilog10() as usize;
    format!("{whole}.{}", format!("{rest:0width$}").trim_end_matches('0'))
}

/// A list of strings as `encoding/json` writes it: `<`, `>`, `&` and the two line separators are escaped.
pub(crate) fn json_list(items: &[String]) -> String {
    let text = serde_json::to_string(items).unwrap_or_default();
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", character as u32);
            }
            character => out.push(character),
        }
    }
    out
}

/// Seconds since the epoch as RFC 3339 in UTC.
pub(crate) fn rfc3339(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Civil date from days, in eras of 400 years that begin on 1 March.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3_600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values were taken from the documentation of Go's `strconv.Quote` and `time.Duration.String`.
    #[test]
    fn text_is_written_as_go_writes_it() {
        assert_eq!(quoted("a\"b\\\n\t\x01é☺\u{a0}\u{feff}"), "\"a\\\"b\\\\\\n\\t\\x01é☺\\u00a0\\ufeff\"");
        for (nanoseconds, expected) in [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1µs"),
            (2_000_000, "2ms"),
            (1_500_000_000, "1.5s"),
            (60_000_000_000, "1m0s"),
            (5_400_000_000_000, "1h30m0s"),
        ] {
            assert_eq!(duration(nanoseconds), expected);
        }
        assert_eq!(json_list(&["a<b&".into(), "é\"".into()]), r#"["a\u003cb\u0026","é\""]"#);
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds), expected);
        }
    }
}
