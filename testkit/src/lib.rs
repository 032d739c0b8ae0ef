//! What the tests stand on: other builders to compare with, base images made here, and a reader of images that shares
//! no code with the engine.
//!
//! Nothing here is part of the product. [`peers`] starts the builders that Debian packages offer, [`fixtures`] and [`foreign`] make base
//! images, [`archive`] writes hostile layers, [`engine`] runs the `build-engine` binary as root or as an ordinary user,
//! [`image`] reads what came out and [`report`] compares two of those.
//!
//! Invariant: a test that cannot run here says so with its reason ([`available`]), and never passes in silence.

pub mod archive;
pub mod certs;
pub mod engine;
pub mod fixtures;
pub mod foreign;
pub mod image;
pub mod peers;
pub mod registry;
pub mod report;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The reason why something cannot be tested on this machine.
#[derive(Debug)]
pub struct Unavailable(pub String);

impl std::fmt::Display for Unavailable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

/// Returns what a test needs, or `None` after printing why it is not to be had here.
///
/// With `BUILD_ENGINE_NO_SKIP` in the environment a missing thing is a failure: that is how CI makes sure that nothing
/// is skipped there.
///
/// # Panics
/// On any error that is not [`Unavailable`], and on that one too where skipping is forbidden.
#[allow(clippy::print_stderr, reason = "a skipped test says so")]
pub fn available<T>(thing: Result<T>) -> Option<T> {
    match thing {
        Ok(thing) => Some(thing),
        Err(error) if error.is::<Unavailable>() && std::env::var_os("BUILD_ENGINE_NO_SKIP").is_none() => {
            eprintln!("skipped: {error:#}");
            None
        }
        Err(error) => panic!("{error:#}"),
    }
}

/// Returns whether the tests run as root.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("the testkit is a folder of the workspace").to_path_buf()
}

/// A folder below `target` that outlives a test run, for things that are slow to make.
pub fn cache_dir(name: &str) -> Result<PathBuf> {
    let dir = workspace().join("target/testkit").join(name);
    fs::create_dir_all(&dir).with_context(|| format!("cannot create `{}`", dir.display()))?;
    Ok(dir)
}

/// Takes the lock called `name`, across all processes of all test runs in this checkout. Dropping the file releases it.
pub fn lock(name: &str) -> Result<File> {
    let path = cache_dir("locks")?.join(name);
    let file = File::options().create(true).append(true).open(&path)?;
    file.lock().with_context(|| format!("cannot lock `{}`", path.display()))?;
    Ok(file)
}

/// The SHA-256 of `bytes`, in lower-case hex.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex(&sha2::Sha256::digest(bytes))
}

/// `bytes` in lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes everything");
        text
    })
}
