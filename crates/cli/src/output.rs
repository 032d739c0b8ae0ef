//! Data for standard output: text, JSON and tables.
//!
//! A reader that has seen enough (`| head`) ends the output, not the program: a closed pipe is not an error.

use std::io::{self, Write};

use serde::Serialize;

use crate::errors::Failure;
use crate::ui::text;

/// The value of `--format` of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Writes `text` to standard output.
///
/// # Errors
/// Standard output cannot be written to, other than because its reader is gone.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

/// As [`print()`], for bytes.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::io("cannot write to standard output", &error))
        }
        _ => Ok(()),
    }
}

/// Writes a value as JSON, indented, with a final line break.
///
/// # Errors
/// As [`print()`].
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value).map_err(|error| {
        Failure::from(build_engine_engine::BuildError::internal(format!("cannot make JSON: {error}")))
    })?;
    text.push('\n');
    print(&text)
}

/// Lays out rows in columns; the last column is not padded.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| text::width(cell)).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(text::width(cell));
        }
    }
    let mut out = String::new();
    let header: Vec<String> = header.iter().map(ToString::to_string).collect();
    for row in std::iter::once(&header).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width.saturating_sub(text::width(cell)) + 2));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Replaces the file at `path` as a whole: a reader sees the old content or the new one. What is not a regular file
/// (`/dev/stdout`, a pipe) is written to.
///
/// # Errors
/// The file cannot be written; nothing is left behind.
pub(crate) fn replace_file(path: &std::path::Path, content: &[u8]) -> io::Result<()> {
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        return std::fs::OpenOptions::new().write(true).open(path)?.write_all(content);
    }
    // A symbolic link keeps pointing to the file that is replaced.
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let written = std::fs::write(&temporary, content).and_then(|()| std::fs::rename(&temporary, &path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        expect![[r#"
            NAME       SIZE
            a          1kB
            long-name  2.00MB
        "#]]
        .assert_eq(&table(
            &["NAME", "SIZE"],
            &[vec!["a".into(), "1kB".into()], vec!["long-name".into(), "2.00MB".into()]],
        ));
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("iid");
        replace_file(&path, b"one").expect("written");
        std::os::unix::fs::symlink("iid", dir.path().join("link")).expect("a link");
        replace_file(&dir.path().join("link"), b"two").expect("written");
        assert_eq!(std::fs::read(&path).expect("a file"), b"two");
        assert!(dir.path().join("link").is_symlink());
        assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 2);
        assert!(replace_file(&dir.path().join("missing/iid"), b"x").is_err());
        replace_file(std::path::Path::new("/dev/null"), b"x").expect("written");
    }
}
