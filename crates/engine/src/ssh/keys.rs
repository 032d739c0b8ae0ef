//! Private keys from files, and what an agent that holds them answers.
//!
//! The forms are those that `ssh-keygen` and `openssl` write: OpenSSH's own, PKCS #8, PKCS #1 and SEC 1, without a
//! passphrase. The curves and RSA are `ring`'s.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::rsa::{KeyPairComponents, PublicKeyComponents};
use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};
use zeroize::Zeroizing;

use super::{FAILURE, IDENTITIES_ANSWER, REQUEST_IDENTITIES, SIGN_RESPONSE, der};

const OPENSSH_MAGIC: &[u8] = b"openssh-key-v1\0";

/// `SSH_AGENT_RSA_SHA2_256` and `SSH_AGENT_RSA_SHA2_512`.
const RSA_SHA2_256: u32 = 2;
const RSA_SHA2_512: u32 = 4;

/// Why a file is no key that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// It has a passphrase.
    #[error("it is encrypted with a passphrase, which cannot be asked for here: add it to an agent with `ssh-add`")]
    Encrypted,
    /// It is something else.
    #[error("it is no private key in the form of OpenSSH or PEM")]
    Unknown,
    /// It is a key of a kind that has no support.
    #[error("keys of this kind are not supported ({0}): add it to an agent with `ssh-add`")]
    Unsupported(String),
}

/// A private key.
pub struct Key {
    pair: Pair,
    /// The public key, as agents list it.
    blob: Vec<u8>,
    comment: Vec<u8>,
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(***)")
    }
}

impl Key {
    /// Parses the content of a private key file.
    ///
    /// # Errors
    /// What is wrong with it, without anything of it.
    pub fn parse(text: &[u8]) -> Result<Self, InvalidKey> {
        let text = std::str::from_utf8(text).map_err(|_| InvalidKey::Unknown)?;
        let (_, rest) = text.split_once("-----BEGIN ").ok_or(InvalidKey::Unknown)?;
        let (label, rest) = rest.split_once("-----").ok_or(InvalidKey::Unknown)?;
        let (body, _) = rest.split_once("-----END ").ok_or(InvalidKey::Unknown)?;
        if body.contains("ENCRYPTED") || label == "ENCRYPTED PRIVATE KEY" {
            return Err(InvalidKey::Encrypted);
        }
        let mut packed = Zeroizing::new(String::with_capacity(body.len()));
        packed.extend(body.chars().filter(|char| !char.is_whitespace()));
        let bytes = Zeroizing::new(STANDARD.decode(packed.as_bytes()).map_err(|_| InvalidKey::Unknown)?);
        match label {
            "OPENSSH PRIVATE KEY" => openssh(&bytes),
            "RSA PRIVATE KEY" => Self::rsa(RsaKeyPair::from_der(&bytes), b""),
            "EC PRIVATE KEY" => Self::pkcs8(&Zeroizing::new(der::pkcs8_of_sec1(&bytes).ok_or(InvalidKey::Unknown)?)),
            "PRIVATE KEY" => Self::pkcs8(&bytes),
            other => Err(InvalidKey::Unsupported(other.to_owned())),
        }
    }

    fn pkcs8(bytes: &[u8]) -> Result<Self, InvalidKey> {
        if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes) {
            return Ok(Self::ed25519(pair, b""));
        }
        let random = SystemRandom::new();
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, bytes, &random) {
            return Ok(Self::p256(pair, b""));
        }
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P384_SHA384_FIXED_SIGNING, bytes, &random) {
            return Ok(Self::p384(pair, b""));
        }
        Self::rsa(RsaKeyPair::from_pkcs8(bytes), b"")
    }

    fn ed25519(pair: Ed25519KeyPair, comment: &[u8]) -> Self {
        let mut blob = Vec::new();
        put(&mut blob, b"ssh-ed25519");
        put(&mut blob, pair.public_key().as_ref());
        Self { pair: Pair::Ed25519(pair), blob, comment: comment.to_vec() }
    }

    fn p256(pair: EcdsaKeyPair, comment: &[u8]) -> Self {
        let blob = ecdsa_blob("nistp256", pair.public_key().as_ref());
        Self { pair: Pair::P256(pair), blob, comment: comment.to_vec() }
    }

    fn p384(pair: EcdsaKeyPair, comment: &[u8]) -> Self {
        let blob = ecdsa_blob("nistp384", pair.public_key().as_ref());
        Self { pair: Pair::P384(pair), blob, comment: comment.to_vec() }
    }

    fn rsa(pair: Result<RsaKeyPair, ring::error::KeyRejected>, comment: &[u8]) -> Result<Self, InvalidKey> {
        let pair = pair.map_err(|error| InvalidKey::Unsupported(format!("RSA: {error}")))?;
        let public = PublicKeyComponents::<Vec<u8>>::from(pair.public());
        let mut blob = Vec::new();
        put(&mut blob, b"ssh-rsa");
        put_number(&mut blob, &public.e);
        put_number(&mut blob, &public.n);
        Ok(Self { pair: Pair::Rsa(pair), blob, comment: comment.to_vec() })
    }

    /// The signature of `data`, as agents give it; `None` where the key does not make signatures of this kind.
    fn sign(&self, data: &[u8], flags: u32) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        let (name, signature) = match &self.pair {
            Pair::Ed25519(pair) => ("ssh-ed25519", pair.sign(data).as_ref().to_vec()),
            Pair::P256(pair) => ("ecdsa-sha2-nistp256", ecdsa_signature(pair.sign(&random, data).ok()?.as_ref())),
            Pair::P384(pair) => ("ecdsa-sha2-nistp384", ecdsa_signature(pair.sign(&random, data).ok()?.as_ref())),
            Pair::Rsa(pair) => {
                // Without a flag it would be SHA-1, which no server of today takes.
                let (name, padding): (_, &'static dyn signature::RsaEncoding) = if flags & RSA_SHA2_512 != 0 {
                    ("rsa-sha2-512", &signature::RSA_PKCS1_SHA512)
                } else if flags & RSA_SHA2_256 != 0 {
                    ("rsa-sha2-256", &signature::RSA_PKCS1_SHA256)
                } else {
                    return None;
                };
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(padding, &random, data, &mut signature).ok()?;
                (name, signature)
            }
        };
        let mut out = Vec::new();
        put(&mut out, name.as_bytes());
        put(&mut out, &signature);
        Some(out)
    }
}

/// Answers a message that is allowed.
pub(super) fn answer(keys: &[Key], message: &[u8]) -> Vec<u8> {
    if message == [REQUEST_IDENTITIES] {
        let mut out = vec![IDENTITIES_ANSWER];
        out.extend_from_slice(&(keys.len() as u32).to_be_bytes());
        for key in keys {
            put(&mut out, &key.blob);
            put(&mut out, &key.comment);
        }
        return out;
    }
    let signed = || {
        let mut message = Reader(&message[1..]);
        let (blob, data, flags) = (message.string()?, message.string()?, message.number()?);
        keys.iter().find(|key| key.blob == blob)?.sign(data, flags)
    };
    match signed() {
        Some(signature) => {
            let mut out = vec![SIGN_RESPONSE];
            put(&mut out, &signature);
            out
        }
        None => FAILURE.to_vec(),
    }
}

/// Parses OpenSSH's own form (PROTOCOL.key).
fn openssh(bytes: &[u8]) -> Result<Key, InvalidKey> {
    let unknown = || InvalidKey::Unknown;
    let mut outer = Reader(bytes.strip_prefix(OPENSSH_MAGIC).ok_or_else(unknown)?);
    let (cipher, _kdf) = (outer.string().ok_or_else(unknown)?, outer.string().ok_or_else(unknown)?);
    if cipher != b"none" {
        return Err(InvalidKey::Encrypted);
    }
    let _options = outer.string().ok_or_else(unknown)?;
    if outer.number() != Some(1) {
        return Err(unknown());
    }
    let _public = outer.string().ok_or_else(unknown)?;
    let mut key = Reader(outer.string().ok_or_else(unknown)?);
    if key.number().ok_or_else(unknown)? != key.number().ok_or_else(unknown)? {
        return Err(unknown());
    }
    let kind = key.string().ok_or_else(unknown)?;
    match kind {
        b"ssh-ed25519" => {
            let (public, secret) = (key.string().ok_or_else(unknown)?, key.string().ok_or_else(unknown)?);
            let seed = secret.get(..32).ok_or_else(unknown)?;
            let pair = Ed25519KeyPair::from_seed_and_public_key(seed, public).map_err(|_| unknown())?;
            Ok(Key::ed25519(pair, key.string().unwrap_or_default()))
        }
        b"ecdsa-sha2-nistp256" | b"ecdsa-sha2-nistp384" => {
            let _curve = key.string().ok_or_else(unknown)?;
            let (public, secret) = (key.string().ok_or_else(unknown)?, key.positive().ok_or_else(unknown)?);
            let (algorithm, length) = match kind {
                b"ecdsa-sha2-nistp256" => (&signature::ECDSA_P256_SHA256_FIXED_SIGNING, 32usize),
                _ => (&signature::ECDSA_P384_SHA384_FIXED_SIGNING, 48),
            };
            let mut padded = Zeroizing::new(vec![0; length.checked_sub(secret.len()).ok_or_else(unknown)?]);
            padded.reserve_exact(length);
            padded.extend_from_slice(secret);
            let pair = EcdsaKeyPair::from_private_key_and_public_key(algorithm, &padded, public, &SystemRandom::new())
                .map_err(|_| unknown())?;
            let comment = key.string().unwrap_or_default();
            Ok(if length == 32 { Key::p256(pair, comment) } else { Key::p384(pair, comment) })
        }
        b"ssh-rsa" => {
            let mut next = || key.positive().ok_or_else(unknown);
            let (n, e, d, inverse, p, q) = (next()?, next()?, next()?, next()?, next()?, next()?);
            let components = KeyPairComponents {
                public_key: PublicKeyComponents { n, e },
                d,
                p,
                q,
                dP: &remainder_below(d, p)[..],
                dQ: &remainder_below(d, q)[..],
                qInv: inverse,
            };
            Key::rsa(RsaKeyPair::from_components(&components), key.string().unwrap_or_default())
        }
        other => Err(InvalidKey::Unsupported(String::from_utf8_lossy(other).into_owned())),
    }
}

/// `number` modulo `prime` - 1, which OpenSSH's form leaves out. Big endian, without leading zeros.
fn remainder_below(number: &[u8], prime: &[u8]) -> Zeroizing<Vec<u8>> {
    let length = prime.len() + 1;
    let mut divisor = Zeroizing::new(vec![0; 1]);
    divisor.reserve_exact(length);
    divisor.extend_from_slice(prime);
    // A prime above two is odd.
    if let Some(last) = divisor.last_mut() {
        *last &= !1;
    }
    let mut rest = Zeroizing::new(vec![0u8; length]);
    for bit in number.iter().flat_map(|byte| (0..8).rev().map(move |shift| byte >> shift & 1)) {
        let mut carry = bit;
        for byte in rest.iter_mut().rev() {
            (carry, *byte) = (*byte >> 7, *byte << 1 | carry);
        }
        if *rest >= *divisor {
            let mut borrow = 0;
            for (byte, other) in rest.iter_mut().zip(divisor.iter()).rev() {
                let difference = i16::from(*byte) - i16::from(*other) - borrow;
                borrow = i16::from(difference < 0);
                *byte = difference as u8;
            }
        }
    }
    let first = rest.iter().position(|byte| *byte != 0).unwrap_or(length - 1);
    Zeroizing::new(rest[first..].to_vec())
}

fn ecdsa_blob(curve: &str, point: &[u8]) -> Vec<u8> {
    let mut blob = Vec::new();
    put(&mut blob, format!("ecdsa-sha2-{curve}").as_bytes());
    put(&mut blob, curve.as_bytes());
    put(&mut blob, point);
    blob
}

/// Two numbers, from two halves of equal length.
fn ecdsa_signature(fixed: &[u8]) -> Vec<u8> {
    let (r, s) = fixed.split_at(fixed.len() / 2);
    let mut out = Vec::new();
    put_number(&mut out, r);
    put_number(&mut out, s);
    out
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// A positive number (RFC 4251, `mpint`).
fn put_number(out: &mut Vec<u8>, bytes: &[u8]) {
    let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
    let bytes = &bytes[first..];
    if bytes.first().is_some_and(|byte| byte & 0x80 != 0) {
        put(out, &[&[0], bytes].concat());
    } else {
        put(out, bytes);
    }
}

/// Reads RFC 4251's forms.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn number(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*bytes))
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.number()? as usize;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    /// A positive number without leading zeros.
    fn positive(&mut self) -> Option<&'a [u8]> {
        let bytes = self.string()?;
        let first = bytes.iter().position(|byte| *byte != 0)?;
        Some(&bytes[first..])
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::ssh::is_allowed;

    fn tool(command: &mut Command) -> bool {
        command.output().is_ok_and(|output| output.status.success())
    }

    #[test]
    fn a_remainder_is_what_division_says() {
        for (number, prime, expected) in
            [(1000u64, 7u64, 1000 % 6), (5, 11, 5), (0xffff_ffff_ffff, 65537, 0xffff_ffff_ffff % 65536), (10, 11, 0)]
        {
            let bytes = |number: u64| {
                let bytes = number.to_be_bytes();
                bytes[bytes.iter().position(|byte| *byte != 0).unwrap_or(7)..].to_vec()
            };
            let rest = remainder_below(&bytes(number), &bytes(prime));
            assert_eq!(rest.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)), expected, "{number} {prime}");
        }
    }

    /// S1-36: keys as `ssh-keygen` and `openssl` write them; `ssh-keygen` finds the signatures good.
    #[test]
    fn keys_of_every_kind_sign_what_ssh_keygen_accepts() {
        let dir = tempfile::tempdir().unwrap();
        if !tool(Command::new("ssh-keygen").args(["-t", "ed25519", "-N", "", "-f"]).arg(dir.path().join("probe"))) {
            println!("SKIPPED: keys_of_every_kind_sign_what_ssh_keygen_accepts: there is no ssh-keygen");
            return;
        }
        for (kind, bits, form) in [
            ("ed25519", "", ""),
            ("ecdsa", "256", ""),
            ("ecdsa", "384", ""),
            ("rsa", "2048", ""),
            ("rsa", "3072", ""),
            ("ecdsa", "256", "PEM"),
            ("ecdsa", "384", "PKCS8"),
            ("rsa", "2048", "PEM"),
            ("rsa", "2048", "PKCS8"),
        ] {
            let path = dir.path().join(format!("{kind}{bits}{form}"));
            let mut command = Command::new("ssh-keygen");
            command.args(["-q", "-t", kind, "-N", "", "-C", "comment", "-f"]).arg(&path);
            if !bits.is_empty() {
                command.args(["-b", bits]);
            }
            if !form.is_empty() {
                command.args(["-m", form]);
            }
            assert!(tool(&mut command), "{kind} {bits} {form}");
            let key = Key::parse(&std::fs::read(&path).unwrap()).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            let public = std::fs::read_to_string(path.with_extension("pub")).unwrap();
            let blob = STANDARD.decode(public.split(' ').nth(1).unwrap()).unwrap();
            assert_eq!(key.blob, blob, "{kind} {bits} {form}");
            let keys = [key];
            let listed = answer(&keys, &[REQUEST_IDENTITIES]);
            assert!(listed.windows(blob.len()).any(|window| window == blob));

            // What `ssh-keygen -Y` signs and checks (PROTOCOL.sshsig).
            let hashed = ring::digest::digest(&ring::digest::SHA512, b"hello");
            let mut data = b"SSHSIG".to_vec();
            for part in [b"test".as_slice(), b"", b"sha512", hashed.as_ref()] {
                put(&mut data, part);
            }
            let mut message = vec![super::super::SIGN_REQUEST];
            put(&mut message, &blob);
            put(&mut message, &data);
            message.extend_from_slice(&RSA_SHA2_512.to_be_bytes());
            assert!(is_allowed(&message));
            let reply = answer(&keys, &message);
            assert_eq!(reply[0], SIGN_RESPONSE, "{kind} {bits} {form}");
            let mut signature = b"SSHSIG\0\0\0\x01".to_vec();
            for part in [&blob[..], b"test", b"", b"sha512", Reader(&reply[1..]).string().unwrap()] {
                put(&mut signature, part);
            }
            let armored =
                format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n", STANDARD.encode(signature));
            let (file, allowed) = (dir.path().join("sig"), dir.path().join("allowed"));
            std::fs::write(&file, armored).unwrap();
            std::fs::write(&allowed, format!("me {public}")).unwrap();
            let mut check = Command::new("ssh-keygen");
            check.args(["-Y", "verify", "-I", "me", "-n", "test", "-f"]).arg(&allowed).arg("-s").arg(&file);
            std::fs::write(dir.path().join("data"), "hello").unwrap();
            check.stdin(std::fs::File::open(dir.path().join("data")).unwrap());
            let output = check.output().unwrap();
            assert!(output.status.success(), "{kind} {bits} {form}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }

    #[test]
    fn encrypted_and_unknown_keys_are_refused_with_the_reason() {
        let pem = |label: &str, body: &str| format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
        let mut locked = OPENSSH_MAGIC.to_vec();
        put(&mut locked, b"aes256-ctr");
        put(&mut locked, b"bcrypt");
        for (text, expected) in [
            (pem("OPENSSH PRIVATE KEY", &STANDARD.encode(locked)), InvalidKey::Encrypted),
            (pem("ENCRYPTED PRIVATE KEY", "AAAA"), InvalidKey::Encrypted),
            (pem("RSA PRIVATE KEY", "Proc-Type: 4,ENCRYPTED\n\nAAAA"), InvalidKey::Encrypted),
            (pem("OPENSSH PRIVATE KEY", "AAAA"), InvalidKey::Unknown),
            ("ssh-ed25519 AAAA comment".to_owned(), InvalidKey::Unknown),
            (pem("DSA PRIVATE KEY", "AAAA"), InvalidKey::Unsupported("DSA PRIVATE KEY".into())),
        ] {
            assert_eq!(Key::parse(text.as_bytes()).err(), Some(expected), "{text}");
        }
    }
}
