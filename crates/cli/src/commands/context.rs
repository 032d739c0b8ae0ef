//! `context`: what a build would see of a directory, what it weighs, and why.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use build_engine_engine::context::{self, ContextEntry, Deciding, ExportTo, IgnoreFile, Reason, Sizes};
use build_engine_engine::{BuildError, ExitKind, Report};
use serde_json::{Value, json};

use crate::errors::Failure;
use crate::output;
use crate::template::ListFormat;
use crate::ui::text;

/// Commands of `context`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the files that a build would see, after the ignore file
    Ls {
        #[command(flatten)]
        options: Options,
        /// table, json or a template with .path, .type and .size
        #[arg(long, value_name = "FORMAT", default_value = "table")]
        format: ListFormat,
        /// The context's directory
        #[arg(default_value = ".")]
        context: PathBuf,
    },
    /// What the context weighs: its largest files and directories, and what each line of the ignore file saves
    Size {
        #[command(flatten)]
        options: Options,
        /// How many files and directories are named
        #[arg(long, value_name = "N", default_value_t = 10)]
        top: usize,
        /// table, json or a template for the JSON form
        #[arg(long, value_name = "FORMAT", default_value = "table")]
        format: ListFormat,
        /// The context's directory
        #[arg(default_value = ".")]
        context: PathBuf,
    },
    /// Whether a build would see a path, and which line of which ignore file decides
    Why {
        #[command(flatten)]
        options: Options,
        /// The context's directory
        #[arg(short = 'C', long, value_name = "DIRECTORY", default_value = ".")]
        context: PathBuf,
        /// table, json or a template for each path
        #[arg(long, value_name = "FORMAT", default_value = "table")]
        format: ListFormat,
        /// Paths within the context; they need not exist
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<String>,
    },
    /// Write what a build would see: to a directory, to an archive (*.tar), or as an archive to standard output (-)
    Export {
        #[command(flatten)]
        options: Options,
        /// The context's directory
        #[arg(short = 'C', long, value_name = "DIRECTORY", default_value = ".")]
        context: PathBuf,
        /// Where to
        dest: PathBuf,
    },
}

/// What all commands of `context` know.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Dockerfile; `<Dockerfile>.dockerignore` beside it goes before `.dockerignore` [default: that of the context]
    #[arg(short, long, value_name = "DOCKERFILE")]
    file: Option<PathBuf>,
}

impl Options {
    /// The ignore file of a build with this Dockerfile.
    fn ignore(self, context: &Path) -> Result<IgnoreFile, Failure> {
        // Without `-f`, a build takes the Dockerfile of the context, and the ignore file beside that one.
        let file = self.file.unwrap_or_else(|| {
            let lower = context.join("dockerfile");
            let usual = context.join("Dockerfile");
            if !usual.exists() && lower.exists() { lower } else { usual }
        });
        Ok(IgnoreFile::find(context, Some(&file))?)
    }
}

impl Command {
    /// Does it; returns the exit code.
    pub(crate) fn run(self) -> Result<u8, Failure> {
        match self {
            Self::Ls { options, format, context } => ls(&context, &options.ignore(&context)?, &format)?,
            Self::Size { options, top, format, context } => {
                let sizes = context::size(&context, &options.ignore(&context)?, top)?;
                show(
                    &format,
                    &[json!(sizes)],
                    |rows| rows.first().cloned().unwrap_or_default(),
                    || sizes_text(&sizes),
                )?;
            }
            Self::Why { options, context, format, paths } => {
                let ignore = options.ignore(&context)?;
                let reasons: Result<Vec<_>, _> =
                    paths.iter().map(|path| context::why(&context, &ignore, path)).collect();
                let reasons = reasons?;
                let rows: Vec<Value> = reasons.iter().map(|reason| json!(reason)).collect();
                show(
                    &format,
                    &rows,
                    |rows| json!({ "paths": rows }),
                    || reasons.iter().map(|reason| reason_text(reason, &ignore)).collect(),
                )?;
            }
            Self::Export { options, context, dest } => {
                let ignore = options.ignore(&context)?;
                export(&context, &ignore, &dest)?;
            }
        }
        Ok(0)
    }
}

/// Prints rows in the form that was asked for.
fn show(
    format: &ListFormat,
    rows: &[Value],
    document: impl FnOnce(&[Value]) -> Value,
    people: impl FnOnce() -> String,
) -> Result<(), Failure> {
    match format {
        ListFormat::Table => output::print(&people()),
        ListFormat::Json => output::print_json(&document(rows)),
        ListFormat::Template(template) => {
            let lines: Result<String, Failure> = rows.iter().map(|row| template.line(row)).collect();
            output::print(&lines?)
        }
    }
}

/// How much of a listing is gathered before it is written.
const BUFFER_BYTES: usize = 64 << 10;

fn ls(context: &Path, ignore: &IgnoreFile, format: &ListFormat) -> Result<(), Failure> {
    let mut out = String::new();
    let mut first = true;
    let mut failure = None;
    match format {
        ListFormat::Table => out.push_str("TYPE     SIZE      PATH\n"),
        ListFormat::Json => out.push_str("{\n  \"entries\": ["),
        ListFormat::Template(_) => {}
    }
    let mut each = |entry: ContextEntry| -> Result<(), Failure> {
        match format {
            ListFormat::Table => {
                let _ = writeln!(
                    out,
                    "{:7}  {:8}  {}",
                    entry.kind.as_str(),
                    text::bytes(entry.size),
                    text::clean(&entry.path)
                );
            }
            ListFormat::Json => {
                out.push_str(if first { "\n" } else { ",\n" });
                let _ = write!(
                    out,
                    "    {{\n      \"path\": {},\n      \"type\": \"{}\",\n      \"size\": {}\n    }}",
                    Value::from(entry.path),
                    entry.kind.as_str(),
                    entry.size
                );
            }
            ListFormat::Template(template) => {
                let row = json!({ "path": entry.path, "type": entry.kind.as_str(), "size": entry.size });
                out.push_str(&template.line(&row)?);
            }
        }
        first = false;
        if out.len() >= BUFFER_BYTES {
            output::print(&out)?;
            out.clear();
        }
        Ok(())
    };
    let walked = context::list(context, ignore, &mut |entry| {
        each(entry).map_err(|error| {
            failure = Some(error);
            BuildError::new(ExitKind::Io, Report::new("io", "standard output is gone"))
        })
    });
    if let Some(failure) = failure {
        return Err(failure);
    }
    walked?;
    if *format == ListFormat::Json {
        out.push_str(if first { "]\n}\n" } else { "\n  ]\n}\n" });
    }
    output::print(&out)
}

fn export(context: &Path, ignore: &IgnoreFile, dest: &Path) -> Result<(), Failure> {
    if dest == Path::new("-") {
        if rustix::termios::isatty(rustix::stdio::stdout()) {
            return Err(Failure::input("invalid-flag", "an archive is not written to a terminal")
                .hint("redirect standard output, or name a file that ends in .tar, or a directory"));
        }
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        context::export(context, ignore, ExportTo::Archive(&mut out))?;
        return out.flush().map_err(|error| Failure::io("cannot write to standard output", &error));
    }
    if dest.extension().is_some_and(|extension| extension == "tar") {
        let cannot = |error: std::io::Error| Failure::io(format!("cannot write `{}`", dest.display()), &error);
        let folder = dest.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Beside the target under a name that goes away by itself: an archive that is not complete is never seen.
        let mut file = Unfinished::new(folder, dest).map_err(cannot)?;
        context::export(context, ignore, ExportTo::Archive(&mut file.file))?;
        return file.finish(dest).map_err(cannot);
    }
    Ok(context::export(context, ignore, ExportTo::Directory(dest.to_owned()))?)
}

/// A file that is removed unless it is finished.
struct Unfinished {
    path: Option<PathBuf>,
    file: std::fs::File,
}

impl Unfinished {
    fn new(folder: &Path, dest: &Path) -> std::io::Result<Self> {
        let name = dest.file_name().unwrap_or_default().to_string_lossy();
        let path = folder.join(format!(".{name}.{}.tmp", std::process::id()));
        let file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
        Ok(Self { path: Some(path), file })
    }

    fn finish(mut self, dest: &Path) -> std::io::Result<()> {
        self.file.flush()?;
        if let Some(path) = &self.path {
            std::fs::rename(path, dest)?;
        }
        self.path = None;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn plural(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn files(count: u64) -> String {
    plural(count, "file", "files")
}

fn sizes_text(sizes: &Sizes) -> String {
    let mut out = String::new();
    let directories = plural(sizes.directories, "directory", "directories");
    let _ = writeln!(out, "{} in {}, {directories}", text::bytes(sizes.size), files(sizes.files));
    match &sizes.ignore_file {
        None => out.push_str("no ignore file\n"),
        Some(file) => {
            let saved = text::bytes(sizes.ignored_size);
            let _ = writeln!(out, "{} leaves out {saved} in {}", text::clean(file), files(sizes.ignored_files));
        }
    }
    if !sizes.largest_files.is_empty() {
        let rows: Vec<Vec<String>> =
            sizes.largest_files.iter().map(|file| vec![text::bytes(file.size), text::clean(&file.path)]).collect();
        let _ = write!(out, "\n{}", output::table(&["SIZE", "LARGEST FILES"], &rows));
    }
    if !sizes.largest_directories.is_empty() {
        let mut rows = vec![vec![text::bytes(sizes.size), sizes.files.to_string(), ".".to_owned()]];
        rows.extend(sizes.largest_directories.iter().map(|dir| {
            let depth = dir.path.matches('/').count() + 1;
            let name = dir.path.rsplit('/').next().unwrap_or_default();
            let shown = format!("{}{}/", "  ".repeat(depth), text::clean(name));
            vec![text::bytes(dir.size), dir.files.to_string(), shown]
        }));
        let _ = write!(out, "\n{}", output::table(&["SIZE", "FILES", "LARGEST DIRECTORIES"], &rows));
    }
    if !sizes.rules.is_empty() {
        let rows: Vec<Vec<String>> = sizes
            .rules
            .iter()
            .map(|rule| {
                vec![rule.line.to_string(), text::bytes(rule.size), rule.files.to_string(), text::clean(&rule.text)]
            })
            .collect();
        let _ = write!(out, "\n{}", output::table(&["LINE", "SIZE", "FILES", "DECIDED BY"], &rows));
    }
    out
}

fn line_text(line: &Deciding) -> String {
    format!("line {} of {}: `{}`", line.line, text::clean(&line.file), text::clean(&line.text))
}

fn reason_text(reason: &Reason, ignore: &IgnoreFile) -> String {
    let mut out = String::new();
    let path = if reason.path.is_empty() { "." } else { &reason.path };
    let verdict = match (reason.kind.is_some(), reason.kept) {
        (true, true) => "kept",
        (true, false) => "excluded",
        (false, true) => "does not exist; it would be kept",
        (false, false) => "does not exist; it would be excluded",
    };
    let _ = writeln!(out, "{}: {verdict}", text::clean(path));
    if let Some(resolved) = &reason.resolved {
        let _ = writeln!(out, "  through symbolic links it is `{}`", text::clean(resolved));
    }
    let judged = reason.resolved.as_ref().unwrap_or(&reason.path);
    match &reason.decided_by {
        None if ignore.path.is_none() => out.push_str("  there is no ignore file\n"),
        None => {
            let _ =
                writeln!(out, "  no line of {} matches it", ignore.path.as_deref().unwrap_or(Path::new("")).display());
        }
        Some(_) => {
            for step in &reason.steps {
                let what = if step.keeps { "takes back in" } else { "leaves out" };
                let whose = match step.matched == *judged {
                    true => "it".to_owned(),
                    false => format!("the directory `{}`", text::clean(&step.matched)),
                };
                let _ = writeln!(out, "  {} {what} {whose}", line_text(step));
            }
        }
    }
    if reason.only_for_what_is_in_it {
        out.push_str("  the directory is there because something in it is kept\n");
    }
    if let Some(near) = &reason.did_you_mean {
        let _ = writeln!(out, "  did you mean `{}`?", text::clean(near));
    }
    out
}
