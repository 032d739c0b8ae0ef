//! What a case offers over HTTP: plain files, and a git repository that is made of the case's files.
//!
//! One server on loopback for the whole process, below `http://127.0.0.1:PORT/CASE/`. It is the scripted registry of the
//! testkit, whose hook answers for the files, so that `{http}` can be a registry in a case as well.
//!
//! Invariant: commits have fixed authors, dates and modes, so that their ids depend on the case's text alone.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use build_engine_testkit::peers::output;
use build_engine_testkit::registry::{FakeRegistry, Reply, Request};
use build_engine_testkit::sha256;

/// What files below `private/` are given out for.
pub const AUTHORIZATION: &str = "Bearer letmein";

/// Every file's `Last-Modified`, which is when the files of a context were changed as well.
const LAST_MODIFIED: &str = "Fri, 14 Jul 2017 02:40:00 GMT";

/// The server, with the folders of the cases that use it.
pub struct Served {
    registry: FakeRegistry,
    folders: Arc<Mutex<BTreeMap<String, Folder>>>,
    dir: tempfile::TempDir,
}

#[derive(Clone)]
struct Folder {
    path: PathBuf,
    commits: Vec<String>,
}

impl Served {
    /// Starts the server.
    pub fn start() -> Result<Served> {
        let folders = Arc::<Mutex<BTreeMap<String, Folder>>>::default();
        let registry = FakeRegistry::start();
        let known = Arc::clone(&folders);
        registry.on(move |request| {
            let (case, path) = request.path.strip_prefix('/')?.split_once('/')?;
            let folder = known.lock().unwrap_or_else(PoisonError::into_inner).get(case).cloned()?;
            Some(answer(&folder.path, path, request).unwrap_or_else(|_| Reply::status(404)))
        });
        Ok(Served { registry, folders, dir: tempfile::tempdir()? })
    }

    /// Offers what `write` puts into the folder that it is given: `http` with files, `repo`, `repo.2`, … with the trees of
    /// commits. Only the first call for a `case` does anything.
    ///
    /// Returns the placeholders and what they stand for.
    pub fn offer(&self, case: &str, write: impl FnOnce(&Path) -> Result<()>) -> Result<Vec<(String, String)>> {
        let mut folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
        if !folders.contains_key(case) {
            let path = self.dir.path().join(case);
            fs::create_dir_all(&path)?;
            write(&path)?;
            let commits = repository(&path)?;
            folders.insert(case.to_owned(), Folder { path, commits });
        }
        let origin = format!("http://{}/{case}", self.registry.host());
        let mut values = vec![
            ("{http}".to_owned(), format!("{origin}/http")),
            ("{git}".to_owned(), format!("{origin}/repo.git")),
            ("{host}".to_owned(), self.registry.host().to_owned()),
        ];
        for (index, commit) in folders[case].commits.iter().enumerate() {
            values.push((format!("{{commit.{}}}", index + 1), commit.clone()));
        }
        Ok(values)
    }
}

fn answer(folder: &Path, path: &str, request: &Request) -> Result<Reply> {
    ensure!(!path.split('/').any(|part| part == ".."), "outside");
    if path.starts_with("repo.git/") {
        return backend(folder, path, request);
    }
    if path.starts_with("http/private/") && request.header("Authorization") != Some(AUTHORIZATION) {
        return Ok(Reply::status(401));
    }
    ensure!(path.starts_with("http/"), "not served");
    let bytes = fs::read(folder.join(path))?;
    let etag = format!("\"{}\"", &sha256(&bytes)[..16]);
    let reply = if request.header("If-None-Match") == Some(&etag) {
        Reply::status(304)
    } else {
        Reply::ok("application/octet-stream", bytes)
    };
    Ok(reply.header("ETag", &etag).header("Last-Modified", LAST_MODIFIED))
}

/// Git's own program for its HTTP protocol, which is a CGI.
fn backend(folder: &Path, path: &str, request: &Request) -> Result<Reply> {
    let query: Vec<String> = request.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut command = Command::new("git");
    command.arg("http-backend").env("GIT_PROJECT_ROOT", folder).env("GIT_HTTP_EXPORT_ALL", "1");
    command.env("REQUEST_METHOD", &request.method).env("PATH_INFO", format!("/{path}"));
    command.env("QUERY_STRING", query.join("&")).env("CONTENT_LENGTH", request.body.len().to_string());
    for (variable, header) in [
        ("CONTENT_TYPE", "Content-Type"),
        ("HTTP_CONTENT_ENCODING", "Content-Encoding"),
        ("GIT_PROTOCOL", "Git-Protocol"),
    ] {
        if let Some(value) = request.header(header) {
            command.env(variable, value);
        }
    }
    // A repository that root made, read by root: git asks about owners.
    command.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", "safe.directory").env("GIT_CONFIG_VALUE_0", "*");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let (mut input, body) = (child.stdin.take().context("it was just piped")?, request.body.clone());
    let writer = std::thread::spawn(move || input.write_all(&body));
    let bytes = child.wait_with_output()?.stdout;
    // What it does not read of the request does not matter.
    let _ = writer.join();
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").context("a CGI answers with headers")?;
    let mut reply = Reply::status(200).body(&bytes[end + 4..]);
    for line in String::from_utf8_lossy(&bytes[..end]).lines() {
        if let Some((name, value)) = line.split_once(": ") {
            reply = match name {
                "Status" => reply.with_status(value.split(' ').next().unwrap_or_default().parse()?),
                name => reply.header(name, value),
            };
        }
    }
    Ok(reply)
}

/// Makes `repo.git` of the folders `repo`, `repo.2`, …: each adds its files to what the one before had.
///
/// The branch `main` and the annotated tag `release` are the last commit, the branch `first` the first, and the tags `v1`,
/// `v2`, … the commits in their order. Any commit can be fetched by its id.
fn repository(folder: &Path) -> Result<Vec<String>> {
    let trees: Vec<PathBuf> = (1..)
        .map(|number| folder.join(if number == 1 { "repo".to_owned() } else { format!("repo.{number}") }))
        .take_while(|tree| tree.is_dir())
        .collect();
    let mut commits = Vec::new();
    if trees.is_empty() {
        return Ok(commits);
    }
    let work = folder.join("work");
    let git = |args: &[&str], number: u64| -> Result<String> {
        let date = format!("{} +0000", 1_600_000_000 + number);
        let mut command = Command::new("git");
        command.arg("-C").arg(folder).args(args).env("GIT_AUTHOR_DATE", &date).env("GIT_COMMITTER_DATE", &date);
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
        for role in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{role}_NAME"), "Tester").env(format!("GIT_{role}_EMAIL"), "tester@example.com");
        }
        Ok(output(&mut command)?.trim().to_owned())
    };
    git(&["init", "--quiet", "--initial-branch=main", "work"], 0)?;
    for (tree, number) in trees.iter().zip(1..) {
        output(Command::new("cp").arg("-a").arg(tree.join(".")).arg(&work))?;
        git(&["-C", "work", "add", "--all", "--force"], number)?;
        git(&["-C", "work", "commit", "--quiet", "--allow-empty", "--message", &format!("commit {number}")], number)?;
        git(&["-C", "work", "tag", &format!("v{number}")], number)?;
        if number == 1 {
            git(&["-C", "work", "branch", "first"], number)?;
        }
        commits.push(git(&["-C", "work", "rev-parse", "HEAD"], number)?);
    }
    git(&["-C", "work", "tag", "--annotate", "--message", "released", "release"], trees.len() as u64)?;
    git(&["clone", "--quiet", "--bare", "work", "repo.git"], 0)?;
    for key in ["uploadpack.allowAnySHA1InWant", "uploadpack.allowFilter"] {
        git(&["-C", "repo.git", "config", key, "true"], 0)?;
    }
    git(&["-C", "repo.git", "update-server-info"], 0)?;
    Ok(commits)
}
