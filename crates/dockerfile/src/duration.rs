//! Durations as Go writes them: `1h30m`, `1.5s`, `300ms`.
//!
//! Source: Go `time.ParseDuration`, the grammar of `HEALTHCHECK` flags.

const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not of the form number and unit, or too large.
    #[error("time: invalid duration {0:?}")]
    Invalid(String),
    /// A number without a unit.
    #[error("time: missing unit in duration {0:?}")]
    MissingUnit(String),
    /// A unit that does not exist.
    #[error("time: unknown unit {unit:?} in duration {text:?}")]
    UnknownUnit {
        /// The unit.
        unit: String,
        /// The whole text.
        text: String,
    },
}

/// Parses a duration; returns nanoseconds.
///
/// # Errors
/// [`DurationError`], with the words of Go.
pub fn parse_duration(text: &str) -> Result<i64, DurationError> {
    let invalid = || DurationError::Invalid(text.to_owned());
    let negative = text.starts_with('-');
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        rest = after;
        let mut fraction = "";
        if let Some(after) = rest.strip_prefix('.') {
            (fraction, rest) = digits(after);
        }
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let end = rest.find(|ch: char| ch == '.' || ch.is_ascii_digit()).unwrap_or(rest.len());
        let unit = &rest[..end];
        rest = &rest[end..];
        if unit.is_empty() {
            return Err(DurationError::MissingUnit(text.to_owned()));
        }
        let Some((_, nanoseconds)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(DurationError::UnknownUnit { unit: unit.to_owned(), text: text.to_owned() });
        };
        let value: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        let part = value.checked_mul(*nanoseconds).ok_or_else(invalid)?;
        total = total
            .checked_add(part)
            .and_then(|sum| sum.checked_add(share(fraction, *nanoseconds)))
            .ok_or_else(invalid)?;
    }
    // The most negative value has no positive twin.
    if negative && total == i64::MIN.unsigned_abs() {
        return Ok(i64::MIN);
    }
    let total = i64::try_from(total).map_err(|_| invalid())?;
    Ok(if negative { -total } else { total })
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|ch: char| !ch.is_ascii_digit()).unwrap_or(text.len()))
}

/// Returns `0.fraction` of `unit`, cut to whole nanoseconds.
fn share(fraction: &str, unit: u64) -> u64 {
    // Eighteen digits are more than any unit can show.
    let digits = &fraction[..fraction.len().min(18)];
    let scale = 10u128.pow(u32::try_from(digits.len()).unwrap_or(0));
    let value: u128 = digits.parse().unwrap_or(0);
    u64::try_from(value * u128::from(unit) / scale).unwrap_or(0)
}
