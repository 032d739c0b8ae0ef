//! Secrets that a step left in the layer that it wrote.
//!
//! Only steps that were given secrets are looked at, before their layer is committed. What is looked for is the value as it
//! is, in the content of new files and inside gzip (which is what a compressed archive is, too), in the targets of links
//! and in extended attributes.

use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;

use build_engine_rootfs::{Kind, Tree};
use build_engine_store::ActiveLayer;
use memchr::memmem::Finder;

use super::ops::{StepError, internal};
use super::secrets::Secret;
use crate::ExitKind;
use crate::mask::essence;

/// Shorter values are found by accident, above all in programs.
const MIN_BYTES: usize = 8;

/// How much of what a compressed file unpacks to is read. It bounds what a bomb can cost.
const MAX_UNPACKED_BYTES: u64 = 4 << 30;

/// How many paths are named.
const MAX_PATHS: usize = 10;

const CHUNK_BYTES: usize = 256 << 10;

/// Paths in the layer that hold one of `secrets`, with the id of that secret. Sorted, and no more than a message can take.
pub(super) fn find(active: &ActiveLayer, secrets: &[(String, Secret)]) -> Result<Vec<(String, String)>, StepError> {
    let tree = active.tree().map_err(|error| StepError::store("cannot read the step's layer", &error))?;
    in_tree(&tree, secrets)
}

fn in_tree(tree: &Tree, secrets: &[(String, Secret)]) -> Result<Vec<(String, String)>, StepError> {
    let failed = |error: &dyn std::error::Error| {
        let mut report = crate::Report::new("io", "cannot look for secrets in what the step wrote");
        report.causes.push(error.to_string());
        StepError::new(ExitKind::Io, report)
    };
    let wanted: Vec<(&str, Finder<'_>)> = secrets
        .iter()
        .map(|(id, value)| (id.as_str(), essence(value)))
        .filter(|(_, value)| value.len() >= MIN_BYTES)
        .map(|(id, value)| (id, Finder::new(value)))
        .collect();
    let mut found = Vec::new();
    if wanted.is_empty() {
        return Ok(found);
    }
    let overlap = wanted.iter().map(|(_, finder)| finder.needle().len()).max().unwrap_or(1) - 1;
    let mut walk = tree.walk("").map_err(|error| failed(&error))?;
    while let Some(entry) = walk.step().map_err(|error| failed(&error))? {
        if found.len() == MAX_PATHS {
            break;
        }
        let id = match entry.metadata.kind {
            Kind::File => {
                let mut file = entry.place().open_file().map_err(|error| failed(&error))?;
                in_file(&mut file, &wanted, overlap).map_err(|error| failed(&error))?
            }
            Kind::Symlink => {
                let target = entry.place().read_link().map_err(|error| failed(&error))?;
                in_bytes(target.as_bytes(), &wanted)
            }
            _ => None,
        };
        let id = match id.or_else(|| in_bytes(entry.name().as_bytes(), &wanted)) {
            Some(id) => Some(id),
            None => in_attributes(&entry, &wanted).map_err(|error| failed(&error))?,
        };
        if let Some(id) = id {
            found.push((format!("/{}", entry.path.display()), id));
        }
    }
    Ok(found)
}

fn in_attributes(
    entry: &build_engine_rootfs::Walked,
    wanted: &[(&str, Finder<'_>)],
) -> rustix::io::Result<Option<String>> {
    if matches!(entry.metadata.kind, Kind::Symlink) {
        return Ok(None);
    }
    for name in entry.place().xattr_names()? {
        if let Some(value) = entry.place().xattr(&name)?
            && let Some(id) = in_bytes(&value, wanted)
        {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

fn in_bytes(bytes: &[u8], wanted: &[(&str, Finder<'_>)]) -> Option<String> {
    wanted.iter().find(|(_, finder)| finder.find(bytes).is_some()).map(|(id, _)| (*id).to_owned())
}

fn in_file(
    file: &mut (impl Read + io::Seek),
    wanted: &[(&str, Finder<'_>)],
    overlap: usize,
) -> io::Result<Option<String>> {
    let mut magic = [0; 2];
    let count = file.read(&mut magic)?;
    file.rewind()?;
    if let Some(id) = in_stream(&mut *file, wanted, overlap)? {
        return Ok(Some(id));
    }
    if count == 2 && magic == [0x1f, 0x8b] {
        file.rewind()?;
        let unpacked = flate2::read::MultiGzDecoder::new(io::BufReader::with_capacity(CHUNK_BYTES, file));
        // What does not unpack is no archive, and was looked at as it is.
        return Ok(in_stream(unpacked.take(MAX_UNPACKED_BYTES), wanted, overlap).unwrap_or_default());
    }
    Ok(None)
}

fn in_stream(mut stream: impl Read, wanted: &[(&str, Finder<'_>)], overlap: usize) -> io::Result<Option<String>> {
    let mut buffer = vec![0; CHUNK_BYTES + overlap];
    let mut kept = 0;
    loop {
        let count = match stream.read(&mut buffer[kept..]) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if count == 0 {
            return Ok(None);
        }
        let filled = kept + count;
        if let Some(id) = in_bytes(&buffer[..filled], wanted) {
            return Ok(Some(id));
        }
        kept = overlap.min(filled);
        buffer.copy_within(filled - kept..filled, 0);
    }
}

/// The error of a layer that holds secrets.
pub(super) fn refusal(found: &[(String, String)]) -> StepError {
    let Some((_, id)) = found.first() else { return internal("a leak without a place") };
    let mut report = crate::Report::new("secret-in-layer", message(found, id)).hint(
        "do not copy the secret into the image: read it from its mount when it is needed; \
         if it is meant to be there, `--allow secret.in-layer` permits it",
    );
    report.causes = found.iter().map(|(path, id)| format!("`{path}` contains the secret `{id}`")).collect();
    StepError::new(ExitKind::Denied, report)
}

/// What is wrong, in one line.
pub(super) fn message(found: &[(String, String)], id: &str) -> String {
    match found {
        [(path, _)] => format!("the step left the secret `{id}` in the image, in `{path}`"),
        [(path, _), ..] => format!("the step left secrets in the image, first `{id}` in `{path}`"),
        [] => "the step left no secret in the image".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use super::*;

    /// S02.
    #[test]
    fn a_value_is_found_in_files_links_and_gzip() {
        let dir = tempfile::tempdir().unwrap();
        let value = "canary-0123456789";
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        write("clean", b"nothing");
        let mut border = vec![b'x'; CHUNK_BYTES - 5];
        border.extend_from_slice(value.as_bytes());
        write("border", &border);
        std::os::unix::fs::symlink(format!("to/{value}"), dir.path().join("link")).unwrap();
        std::fs::create_dir(dir.path().join("deep")).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(format!("tar header {value}\n").as_bytes()).unwrap();
        write("deep/a.tgz", &gzip.finish().unwrap());
        write("not.gz", b"\x1f\x8bno archive");
        let tree = Tree::open(dir.path()).unwrap();
        let secret = |text: &str| -> Secret { Arc::new(text.as_bytes().to_vec().into()) };
        let secrets = [("short".to_owned(), secret("nothing")), ("token".to_owned(), secret(&format!("{value}\n")))];
        let found = in_tree(&tree, &secrets).unwrap();
        let paths: Vec<_> = found.iter().map(|(path, id)| (path.as_str(), id.as_str())).collect();
        assert_eq!(paths, [("/border", "token"), ("/deep/a.tgz", "token"), ("/link", "token")]);
    }
}
