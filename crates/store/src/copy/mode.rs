//! Symbolic modes, as `chmod` takes them.

/// A mode that cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid mode `{0}`")]
pub struct InvalidMode(pub String);

/// A parsed mode: octal, or a list of symbolic changes.
///
/// The rules are those of BSD's `setmode(3)` with an umask of 0, which BuildKit follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModeChange(Vec<Change>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Set(u32),
    Clear(u32),
    /// Set if it is a directory or somebody could already execute it.
    SetExecute(u32),
    /// Copy the permissions of one class (given by its shift) to the classes in `who`.
    Copy {
        from: u32,
        who: u32,
        op: u8,
    },
}

const STANDARD: u32 = 0o6777;
const STICKY: u32 = 0o1000;

impl std::str::FromStr for ModeChange {
    type Err = InvalidMode;

    fn from_str(text: &str) -> Result<Self, InvalidMode> {
        parse(text.as_bytes()).map(Self).ok_or_else(|| InvalidMode(text.to_owned()))
    }
}

impl ModeChange {
    /// Applies the changes to permission bits.
    pub fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        let mut new = mode;
        for change in &self.0 {
            match *change {
                Change::Set(bits) => new |= bits,
                Change::Clear(bits) => new &= !bits,
                Change::SetExecute(bits) if is_dir || mode & 0o111 != 0 => new |= bits,
                Change::SetExecute(_) => {}
                Change::Copy { from, who, op } => {
                    let value = new >> from & 7;
                    for shift in [0, 3, 6] {
                        if who & 4 << shift == 0 {
                            continue;
                        }
                        match op {
                            b'+' => new |= value << shift,
                            b'-' => new &= !(value << shift),
                            _ => new = new & !(7 << shift) | value << shift,
                        }
                    }
                }
            }
        }
        new
    }
}

fn parse(text: &[u8]) -> Option<Vec<Change>> {
    if text.first()?.is_ascii_digit() {
        let value = u32::from_str_radix(str::from_utf8(text).ok()?, 8).ok()?;
        return (value <= 0o7777).then(|| vec![Change::Clear(0o7777), Change::Set(value)]);
    }
    let mut changes = Vec::new();
    for clause in text.split(|byte| *byte == b',') {
        let actions = clause.iter().position(|byte| !b"augo".contains(byte))?;
        let who = clause[..actions].iter().fold(0, |who, class| {
            who | match class {
                b'a' => STANDARD,
                b'u' => 0o4700,
                b'g' => 0o2070,
                _ => 0o007,
            }
        });
        let mut rest = &clause[actions..];
        let mut who = who;
        while let Some((op, after)) = rest.split_first() {
            if !b"+-=".contains(op) {
                return None;
            }
            who &= !STICKY;
            rest = action(*op, &mut who, after, &mut changes);
        }
    }
    Some(changes)
}

/// Parses the permissions after one operator and returns what follows them.
fn action<'a>(op: u8, who: &mut u32, mut rest: &'a [u8], changes: &mut Vec<Change>) -> &'a [u8] {
    let mut cleared = op != b'=';
    let (mut bits, mut execute) = (0, 0);
    let flush = |who: u32, bits: &mut u32, execute: &mut u32, clear: bool, changes: &mut Vec<Change>| {
        let limit = |bits: u32| if who == 0 { bits } else { who & bits };
        if *bits != 0 || clear {
            if op == b'=' {
                changes.push(Change::Clear(if who == 0 { STANDARD } else { who }));
            }
            changes.push(if op == b'-' { Change::Clear(limit(*bits)) } else { Change::Set(limit(*bits)) });
        }
        if *execute != 0 {
            changes.push(Change::SetExecute(limit(*execute)));
        }
        (*bits, *execute) = (0, 0);
    };
    while let Some((permission, after)) = rest.split_first() {
        let special = *who == 0 || *who & !0o007 != 0;
        match permission {
            b'r' => bits |= 0o444,
            b'w' => bits |= 0o222,
            b'x' => bits |= 0o111,
            b'X' if op == b'-' => bits |= 0o111,
            b'X' => execute = 0o111,
            b's' if special => bits |= 0o6000,
            b't' if special => {
                *who |= STICKY;
                bits |= STICKY;
            }
            b's' | b't' => {}
            b'u' | b'g' | b'o' => {
                flush(*who, &mut bits, &mut execute, false, changes);
                cleared = true;
                let from = match permission {
                    b'u' => 6,
                    b'g' => 3,
                    _ => 0,
                };
                changes.push(Change::Copy { from, who: if *who == 0 { 0o777 } else { *who }, op });
            }
            _ => break,
        }
        rest = after;
    }
    flush(*who, &mut bits, &mut execute, !cleared, changes);
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expectations: chmod(1) of coreutils with umask 0, and setmode(3).
    #[test]
    fn symbolic_modes_change_what_chmod_changes() {
        for (text, mode, is_dir, expected) in [
            ("644", 0o777, false, 0o644),
            ("4755", 0o600, false, 0o4755),
            ("go-w", 0o666, false, 0o644),
            ("=rw,+X", 0o755, false, 0o777),
            ("=rw,+X", 0o644, false, 0o666),
            ("=rw,+X", 0o644, true, 0o777),
            ("+X", 0o600, true, 0o711),
            ("u=rwx,go=rx", 0o000, false, 0o755),
            ("u=rwx,go=u-w", 0o000, false, 0o755),
            ("go=", 0o777, false, 0o700),
            ("g=u-w", 0o700, false, 0o750),
            ("u+s,g+s", 0o755, false, 0o6755),
            ("+t", 0o755, true, 0o1755),
            ("a+rx", 0o600, false, 0o755),
            ("o=g", 0o750, false, 0o755),
            ("u-x+w", 0o500, false, 0o600),
            ("a-X", 0o755, false, 0o644),
        ] {
            let change: ModeChange = text.parse().unwrap();
            assert_eq!(change.apply(mode, is_dir), expected, "{text} of {mode:o}: {change:?}");
        }
        for text in ["", "9", "77777", "u", "z+x", "u+z", "u+x,", "+x=", "u%x"] {
            let parsed = text.parse::<ModeChange>();
            assert_eq!(parsed.is_err(), text != "+x=", "{text}");
        }
    }
}
