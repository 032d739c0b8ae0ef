//! Cache keys: lists of named parts that are hashed last, so that two keys can be compared part by part.

use build_engine_oci::{Digest, Hasher};

/// One reason for a key to be what it is, for example `RUN` = `make` or `input 0` = the key of an input.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyPart {
    /// What it is. Shown to people who ask why something was rebuilt.
    pub name: String,
    /// Its value, or the digest of it. Never a secret.
    pub value: String,
}

impl KeyPart {
    /// A part.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: value.into() }
    }
}

/// Why a result may be reused: everything that it depends on, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CacheKey {
    parts: Vec<KeyPart>,
}

impl CacheKey {
    /// A key of `parts`, in this order.
    pub fn new(parts: Vec<KeyPart>) -> Self {
        Self { parts }
    }

    /// Appends a part.
    pub fn push(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.parts.push(KeyPart::new(name, value));
    }

    /// The parts.
    pub fn parts(&self) -> &[KeyPart] {
        &self.parts
    }

    /// The first part in which `other` differs: of this key, and of the other one.
    ///
    /// Parts are compared by name first; one that only one of the keys has differs from nothing.
    pub fn first_difference<'a>(&'a self, other: &'a Self) -> Option<(Option<&'a KeyPart>, Option<&'a KeyPart>)> {
        let named = |parts: &'a [KeyPart], part: &KeyPart, skip: usize| {
            parts.iter().filter(|candidate| candidate.name == part.name).nth(skip)
        };
        for (at, part) in self.parts.iter().enumerate() {
            // Names may repeat (several `env` parts); the nth of one name is compared with the nth of the other.
            let nth = self.parts[..at].iter().filter(|earlier| earlier.name == part.name).count();
            match named(&other.parts, part, nth) {
                Some(theirs) if theirs.value == part.value => {}
                theirs => return Some((Some(part), theirs)),
            }
        }
        for (at, theirs) in other.parts.iter().enumerate() {
            let nth = other.parts[..at].iter().filter(|earlier| earlier.name == theirs.name).count();
            if named(&self.parts, theirs, nth).is_none() {
                return Some((None, Some(theirs)));
            }
        }
        // The same parts in another order are another key.
        self.parts.iter().zip(&other.parts).find(|(a, b)| a != b).map(|(a, b)| (Some(a), Some(b)))
    }

    /// The hash of the parts. Names and values carry their lengths, so that no two lists of parts are the same bytes.
    pub fn digest(&self) -> Digest {
        let mut hasher = Hasher::new();
        hasher.update(b"build-engine cache key 1\n");
        for part in &self.parts {
            for text in [&part.name, &part.value] {
                hasher.update(&(text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
            }
        }
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(parts: &[(&str, &str)]) -> CacheKey {
        CacheKey::new(parts.iter().map(|(name, value)| KeyPart::new(*name, *value)).collect())
    }

    #[test]
    fn text_that_moves_between_parts_changes_the_digest() {
        let keys = [
            key(&[]),
            key(&[("", "")]),
            key(&[("a", "bc")]),
            key(&[("ab", "c")]),
            key(&[("a", "b"), ("", "c")]),
            key(&[("a", ""), ("b", "c")]),
        ];
        for (i, a) in keys.iter().enumerate() {
            for (j, b) in keys.iter().enumerate() {
                assert_eq!(i == j, a.digest() == b.digest(), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn the_first_difference_is_named() {
        let old = key(&[("RUN", "make"), ("env", "A=1"), ("env", "B=1"), ("input 0", "x")]);
        for (new, expected) in [
            (key(&[("RUN", "make"), ("env", "A=1"), ("env", "B=1"), ("input 0", "x")]), None),
            (key(&[("RUN", "make all"), ("env", "A=1"), ("env", "B=1"), ("input 0", "x")]), Some("RUN")),
            (key(&[("RUN", "make"), ("env", "A=1"), ("env", "B=2"), ("input 0", "x")]), Some("env")),
            (key(&[("RUN", "make"), ("env", "A=1"), ("env", "B=1"), ("input 0", "y")]), Some("input 0")),
            (key(&[("RUN", "make"), ("env", "A=1"), ("env", "B=1")]), Some("input 0")),
            (key(&[("RUN", "make"), ("env", "A=1"), ("env", "B=1"), ("input 0", "x"), ("z", "")]), Some("z")),
        ] {
            let found = new.first_difference(&old).and_then(|(a, b)| a.or(b)).map(|part| part.name.as_str());
            assert_eq!(found, expected, "{new:?}");
        }
    }
}
