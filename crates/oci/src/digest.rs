//! Digests of content, and the two kinds of them that must not be mixed up with blobs' digests.

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// Hash algorithm of a [`Digest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, 64 hexadecimal digits.
    Sha256,
    /// SHA-512, 128 hexadecimal digits.
    Sha512,
}

impl Algorithm {
    /// The name used in digests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// The hash of a blob, as `algorithm:hex`.
///
/// A value of this type is well formed: a registered algorithm and exactly as many lower-case digits as it has. It may
/// therefore stand in a path. Source: OCI image-spec v1.1, descriptor.md, "Digests".
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    hex: Box<str>,
}

/// Text that is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not a digest: expected sha256 or sha512, a colon, and lower-case hexadecimal digits", shorten(.0))]
pub struct InvalidDigest(pub String);

fn shorten(text: &str) -> String {
    let head: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().count() > 80 { format!("{head}…") } else { head }
}

impl Digest {
    /// Hashes `bytes` with SHA-256.
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::from_sha256(Sha256::digest(bytes).into())
    }

    /// The bytes of a SHA-256; `None` for another algorithm.
    pub fn sha256_bytes(&self) -> Option<[u8; 32]> {
        let mut bytes = [0; 32];
        let is_sha256 = self.algorithm == Algorithm::Sha256 && self.hex.len() == 64;
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(self.hex.get(at..at + 2)?, 16).ok()?;
        }
        is_sha256.then_some(bytes)
    }

    /// Wraps a finished SHA-256.
    pub fn from_sha256(hash: [u8; 32]) -> Self {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let hex: String = hash
            .iter()
            .flat_map(|byte| [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]])
            .map(char::from)
            .collect();
        Self { algorithm: Algorithm::Sha256, hex: hex.into() }
    }

    /// The algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.hex
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let invalid = || InvalidDigest(text.to_owned());
        let (name, hex) = text.split_once(':').ok_or_else(invalid)?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(invalid()),
        };
        let well_formed =
            hex.len() == algorithm.hex_len() && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if well_formed { Ok(Self { algorithm, hex: hex.into() }) } else { Err(invalid()) }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

macro_rules! digest_of {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Digest);

        impl $name {
            /// The digest without its meaning.
            pub fn as_digest(&self) -> &Digest {
                &self.0
            }
        }

        impl From<Digest> for $name {
            fn from(digest: Digest) -> Self {
                Self(digest)
            }
        }

        impl FromStr for $name {
            type Err = InvalidDigest;

            fn from_str(text: &str) -> Result<Self, InvalidDigest> {
                text.parse().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

digest_of! {
    /// The hash of a layer's uncompressed tar archive.
    DiffId
}
digest_of! {
    /// The hash of a stack of [`DiffId`]s.
    ChainId
}

/// Returns the chain ID of `diff_id` applied on top of `parent`.
///
/// The bottom layer's chain ID is its diff ID; each further one is the SHA-256 of the text `"<parent> <diff id>"`.
/// Source: OCI image-spec v1.1, config.md, "Layer ChainID".
pub fn chain_id(parent: Option<&ChainId>, diff_id: &DiffId) -> ChainId {
    match parent {
        None => ChainId(diff_id.0.clone()),
        Some(parent) => ChainId(Digest::sha256(format!("{parent} {diff_id}").as_bytes())),
    }
}

/// Hashes a stream with SHA-256 and counts its bytes.
#[derive(Clone, Default)]
pub struct Hasher {
    state: Sha256,
    size_bytes: u64,
}

impl Hasher {
    /// Starts with nothing hashed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Hashes some more.
    pub fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
        self.size_bytes += bytes.len() as u64;
    }

    /// How many bytes were hashed.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The digest of all of them.
    pub fn finish(self) -> Digest {
        Digest::from_sha256(self.state.finalize().into())
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher").field("size_bytes", &self.size_bytes).finish_non_exhaustive()
    }
}

impl io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_empty_blob_has_the_digest_that_fips_180_gives() {
        assert_eq!(Digest::sha256(b"").to_string(), EMPTY);
        assert_eq!(Hasher::new().finish().to_string(), EMPTY);
    }

    #[test]
    fn text_that_could_leave_a_directory_or_is_no_digest_is_refused() {
        let upper = EMPTY.to_uppercase();
        for bad in
            ["", "sha256:", "sha256:../../x", "md5:d41d8cd98f00b204e9800998ecf8427e", &upper, &EMPTY[..70], "sha512:ab"]
        {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        assert_eq!(EMPTY.parse::<Digest>().unwrap().to_string(), EMPTY);
    }

    /// The example of image-spec's config.md, computed with sha256sum.
    #[test]
    fn chain_ids_hash_the_parent_and_the_diff_id() {
        let base: DiffId = EMPTY.parse().unwrap();
        let first = chain_id(None, &base);
        assert_eq!(first.as_digest(), base.as_digest());
        let second = chain_id(Some(&first), &base);
        assert_eq!(second.as_digest(), &Digest::sha256(format!("{EMPTY} {EMPTY}").as_bytes()));
    }
}
