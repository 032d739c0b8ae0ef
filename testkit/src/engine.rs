//! Runs the `build-engine` binary as its users do: as root, as an ordinary user with subordinate ids, and as one without.
//!
//! Each [`Engine`] has a home and a store of its own below a temporary directory, and nothing of the caller's environment
//! but what is named here.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, lchown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use crate::peers::output;
use crate::{Unavailable, is_root, lock, workspace};

/// Who runs the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Root.
    Root,
    /// An ordinary user with 65,536 subordinate ids (`be-test`).
    User,
    /// An ordinary user without any (`be-test-one`): a single uid inside.
    OneUid,
}

/// A binary, a user, a home and a store.
#[derive(Debug)]
pub struct Engine {
    dir: TempDir,
    ids: Option<(u32, u32)>,
    root: PathBuf,
}

/// What a run of the engine left.
#[derive(Debug)]
pub struct Run {
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// The binary under test: `BUILD_ENGINE_BIN`, or the release build of this workspace.
///
/// # Errors
/// When there is none. This is a failure, not a reason to skip: `make test` builds it.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("BUILD_ENGINE_BIN") {
        let path = PathBuf::from(path);
        ensure!(path.exists(), "BUILD_ENGINE_BIN names `{}`, which is not there", path.display());
        return Ok(path);
    }
    let mut candidates = Vec::new();
    for target in [std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from), Some(workspace().join("target"))]
        .into_iter()
        .flatten()
    {
        candidates.push(target.join("release/build-engine"));
        candidates.push(target.join(format!("{}-unknown-linux-gnu/release/build-engine", std::env::consts::ARCH)));
    }
    // Of several, the newest: whoever has just built one means that.
    candidates
        .into_iter()
        .filter(|path| path.exists())
        .max_by_key(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok())
        .context("there is no release build of build-engine: run `make build`, or set BUILD_ENGINE_BIN")
}

impl Engine {
    /// Prepares a home and an empty store for `who`.
    ///
    /// # Errors
    /// [`Unavailable`] when this process is not root and `who` is somebody else.
    pub fn new(who: Who) -> Result<Engine> {
        let binary = binary()?;
        let ids = match (who, is_root()) {
            (Who::Root, true) | (Who::User, false) => None,
            (Who::Root, false) => return Err(Unavailable("not root".to_owned()).into()),
            (Who::OneUid, false) => return Err(Unavailable("not root, so no second user".to_owned()).into()),
            (Who::User, true) => Some(user("be-test", true)?),
            (Who::OneUid, true) => Some(user("be-test-one", false)?),
        };
        // Directly in /tmp: every user can go there, wherever the checkout lies.
        let dir = tempfile::Builder::new().prefix("build-engine-test-").tempdir_in("/tmp")?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        fs::create_dir(dir.path().join("home"))?;
        fs::create_dir(dir.path().join("work"))?;
        fs::create_dir(dir.path().join("tmp"))?;
        // By a process of its own: a descriptor for writing that this one had open could be inherited by a process that
        // another test starts just then, and "text file busy" be the answer when the copy is executed.
        let copy = dir.path().join("build-engine");
        output(Command::new("install").args(["-m", "755"]).arg(&binary).arg(&copy))?;
        let root = dir.path().join("home/store");
        let engine = Engine { dir, ids, root };
        for name in ["home", "work", "tmp"] {
            engine.adopt(&engine.dir.path().join(name))?;
        }
        Ok(engine)
    }

    /// A folder that the engine's user owns: contexts go here, and results are written here.
    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// The folder for temporary files (`TMPDIR`) of the engine. Empty when no run is in progress.
    pub fn tmp(&self) -> PathBuf {
        self.dir.path().join("tmp")
    }

    /// The store (`BUILD_ENGINE_ROOT`).
    pub fn store(&self) -> &Path {
        &self.root
    }

    /// Uses another directory as the store.
    pub fn set_store(&mut self, root: PathBuf) {
        self.root = root;
    }

    /// Gives `path`, and all below it, to the engine's user.
    pub fn adopt(&self, path: &Path) -> Result<()> {
        let Some((uid, gid)) = self.ids else { return Ok(()) };
        let metadata = fs::symlink_metadata(path)?;
        lchown(path, Some(uid), Some(gid)).with_context(|| format!("cannot give `{}` away", path.display()))?;
        if metadata.is_file() {
            // A new owner takes setuid and setgid away.
            fs::set_permissions(path, metadata.permissions())?;
        }
        if metadata.is_dir() {
            for entry in fs::read_dir(path)? {
                self.adopt(&entry?.path())?;
            }
        }
        Ok(())
    }

    /// Makes a folder `name` in [`Engine::work`] with `files` (path, content).
    pub fn context(&self, name: &str, files: &[(&str, &str)]) -> Result<PathBuf> {
        let dir = self.work().join(name);
        fs::create_dir_all(&dir)?;
        crate::fixtures::write_files(&dir, files)?;
        self.adopt(&dir)?;
        Ok(dir)
    }

    /// Copies the OCI layout at `layout` to where the engine's user can read it.
    pub fn base(&self, layout: &Path) -> Result<PathBuf> {
        let name = layout.file_name().context("a layout has a name")?;
        let copy = self.work().join(name);
        if !copy.exists() {
            output(Command::new("cp").arg("-r").arg(layout).arg(&copy))?;
            self.adopt(&copy)?;
        }
        Ok(copy)
    }

    /// `build-engine ARGS…` in [`Engine::work`], as the engine's user, not started yet.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(self.dir.path().join("build-engine"));
        command.args(args).current_dir(self.work()).stdin(Stdio::null()).env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", self.dir.path().join("home")).env("TMPDIR", self.tmp());
        command.env("BUILD_ENGINE_ROOT", &self.root).env("LANG", "C.UTF-8").env("RUST_BACKTRACE", "1");
        if let Some((uid, gid)) = self.ids {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Runs `build-engine ARGS…` to its end.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Run> {
        Ok(Run::from(self.command(args).output().context("cannot start build-engine")?))
    }

    /// Runs `build-engine ARGS…`, which must succeed.
    pub fn ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Run> {
        let run = self.run(args)?;
        ensure!(run.code == Some(0), "build-engine ended with {:?}:\n{}", run.code, run.stderr);
        Ok(run)
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Run {
        Run {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Returns the ids of the test user `name`, which is made when it does not exist yet.
fn user(name: &str, subordinate_ids: bool) -> Result<(u32, u32)> {
    static ONCE: Mutex<()> = Mutex::new(());
    let _once = ONCE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let _lock = lock("users")?;
    if passwd(name)?.is_none() {
        let count = if subordinate_ids { "65536" } else { "0" };
        output(Command::new("useradd").args(["--create-home", "--shell", "/bin/sh", "--user-group"]).args([
            "-K",
            &format!("SUB_UID_COUNT={count}"),
            "-K",
            &format!("SUB_GID_COUNT={count}"),
            name,
        ]))?;
    }
    for file in ["/etc/subuid", "/etc/subgid"] {
        let present =
            fs::read_to_string(file).unwrap_or_default().lines().any(|line| line.starts_with(&format!("{name}:")));
        if present != subordinate_ids {
            bail!("user `{name}` should {} a line in {file}", if subordinate_ids { "have" } else { "not have" });
        }
    }
    passwd(name)?.with_context(|| format!("user `{name}` was not made"))
}

fn passwd(name: &str) -> Result<Option<(u32, u32)>> {
    for line in fs::read_to_string("/etc/passwd")?.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if fields.first() == Some(&name) && fields.len() > 3 {
            return Ok(Some((fields[2].parse()?, fields[3].parse()?)));
        }
    }
    Ok(None)
}
