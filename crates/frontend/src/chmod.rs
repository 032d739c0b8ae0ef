//! `--chmod`: an octal number or the symbolic form of chmod(1).

/// Permission bits, or how they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Exactly these bits.
    Bits(u32),
    /// A change that is applied to each file; its syntax is checked here.
    Symbolic(String),
}

/// Reads the value of `--chmod`.
pub(crate) fn parse(text: &str) -> Result<Mode, String> {
    let octal = || {
        format!(
            "invalid value `{text}` of --chmod: it should be an octal number between 0 and 07777, or symbolic such as `u+x`"
        )
    };
    if text.starts_with(|first: char| first.is_ascii_digit()) {
        return match u32::from_str_radix(text, 8) {
            Ok(bits) if bits <= 0o7777 => Ok(Mode::Bits(bits)),
            _ => Err(octal()),
        };
    }
    if text.split(',').all(is_clause) { Ok(Mode::Symbolic(text.to_owned())) } else { Err(octal()) }
}

/// `[ugoa]*([-+=]([rwxXst]*|[ugo]))+`, a little wider: copies and bits may be mixed, as BSD's `setmode` allows.
fn is_clause(clause: &str) -> bool {
    let actions = clause.trim_start_matches(['u', 'g', 'o', 'a']);
    actions.starts_with(['+', '-', '='])
        && actions
            .chars()
            .all(|character| matches!(character, '+' | '-' | '=' | 'r' | 'w' | 'x' | 'X' | 's' | 't' | 'u' | 'g' | 'o'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_or_symbolic() {
        assert_eq!(parse("755"), Ok(Mode::Bits(0o755)));
        assert_eq!(parse("07777"), Ok(Mode::Bits(0o7777)));
        for text in ["u=rwX,go=rX", "+x", "g=u", "a+r-w", "u+s,+t", "o="] {
            assert_eq!(parse(text), Ok(Mode::Symbolic(text.into())));
        }
        for text in ["8", "10000", "0x1", "rwx", "u", "u+q", "u+x,", ""] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
