//! `build-engine.lock`: which digests the names of images stand for in a project.
//!
//! The file lies in the build context's directory, so that it is checked in beside what it locks. A build takes what
//! stands in it, always; `--locked` also refuses what does not.

use std::collections::BTreeMap;
use std::path::Path;

use build_engine_engine::{ExitKind, Report};
use build_engine_oci::Digest;
use serde::{Deserialize, Serialize};

use crate::errors::Failure;
use crate::output;

/// Name of the file.
pub(crate) const NAME: &str = "build-engine.lock";

/// The version of its form.
const VERSION: u32 = 1;

/// Digests by canonical reference.
pub(crate) type Images = BTreeMap<String, Digest>;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    images: Images,
}

/// Reads the lock file in `context`; `None` if there is none.
///
/// # Errors
/// A file that cannot be read or understood: a lock must not be ignored.
pub(crate) fn read(context: &Path) -> Result<Option<Images>, Failure> {
    let path = context.join(NAME);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::io(format!("cannot read `{}`", path.display()), &error)),
    };
    let refused = |report: Report| Failure::new(ExitKind::Input, report);
    let message = || format!("the lock file `{}` cannot be understood", path.display());
    let file: File =
        serde_json::from_slice(&bytes).map_err(|error| refused(Report::new("lock", message()).caused_by(&error)))?;
    if file.version != VERSION {
        let hint = format!("it has version {}, and this program knows version {VERSION}", file.version);
        return Err(refused(Report::new("lock", message()).hint(hint)));
    }
    Ok(Some(file.images))
}

/// Replaces the lock file in `context`.
///
/// # Errors
/// When it cannot be written; the old one then stays.
pub(crate) fn write(context: &Path, images: &Images) -> Result<(), Failure> {
    let path = context.join(NAME);
    let file = File { version: VERSION, images: images.clone() };
    let mut text = serde_json::to_string_pretty(&file)
        .map_err(|error| build_engine_engine::BuildError::internal(format!("cannot make JSON: {error}")))?;
    text.push('\n');
    output::replace_file(&path, text.as_bytes())
        .map_err(|error| Failure::io(format!("cannot write `{}`", path.display()), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_comes_back_as_it_was_written_and_nothing_else_is_taken_for_one() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(read(dir.path()).expect("no file"), None);
        let images = Images::from([("docker.io/library/debian:12".to_owned(), Digest::sha256(b"x"))]);
        write(dir.path(), &images).expect("written");
        assert_eq!(read(dir.path()).expect("a file"), Some(images));
        for text in ["", "{}", r#"{"version":2,"images":{}}"#, r#"{"version":1,"images":{"a":"b"}}"#] {
            std::fs::write(dir.path().join(NAME), text).expect("written");
            let error = read(dir.path()).expect_err("refused").error.to_string();
            assert!(error.contains("build-engine.lock"), "{error}");
        }
    }
}
