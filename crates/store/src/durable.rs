//! Every operation of the store that must survive a crash, in one place.
//!
//! The rule for a file that appears under a name which means something: write it under another name, `fsync` it, rename
//! it, `fsync` the directory. Without the first `fsync` ext4 can leave an empty file under the final name; without
//! the second the temporary name can come back.
//!
//! Each operation first passes a *point*. Tests count the points, and kill the process or fail the operation at the
//! n-th (`failpoints`); in a normal build a point is nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Creates a file that must not exist yet.
pub(crate) fn create_new(path: &Path, mode: u32) -> io::Result<File> {
    point("create")?;
    OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path)
}

/// Writes all of `bytes`.
pub(crate) fn write(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    point("write")?;
    file.write_all(bytes)
}

/// Makes what was written to `file` survive a power cut.
///
/// After an error the content must be thrown away and written anew: the kernel may have dropped the dirty pages.
pub(crate) fn sync(file: &File) -> io::Result<()> {
    point("sync")?;
    file.sync_all()
}

/// Renames, replacing what is at `to`.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    point("rename")?;
    fs::rename(from, to)
}

/// Makes the names inside `directory` survive a power cut.
pub(crate) fn sync_dir(directory: &Path) -> io::Result<()> {
    point("sync_dir")?;
    File::open(directory)?.sync_all()
}

/// Creates one directory that only its owner may enter.
pub(crate) fn create_dir(path: &Path) -> io::Result<()> {
    point("create_dir")?;
    fs::DirBuilder::new().mode(0o700).create(path)
}

/// Removes a file; that it is gone already is no error.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    point("remove")?;
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Replaces the content of `path` in one step that survives a power cut; `temporary` is on the same file system.
pub(crate) fn replace(path: &Path, temporary: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let written = (|| {
        let file = create_new(temporary, mode)?;
        write(&file, bytes)?;
        sync(&file)?;
        rename(temporary, path)
    })();
    if written.is_err() {
        // Best effort: what stays behind is swept at the next start.
        let _ = fs::remove_file(temporary);
    }
    written?;
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// Passes a named point at which a test may kill the process or make the operation fail.
#[cfg(not(any(test, feature = "failpoints")))]
#[inline]
pub(crate) fn point(_name: &'static str) -> io::Result<()> {
    Ok(())
}

#[cfg(any(test, feature = "failpoints"))]
pub(crate) use failpoints::point;

/// Failure injection for tests: what happens at the n-th durable operation.
#[cfg(any(test, feature = "failpoints"))]
pub mod failpoints {
    use std::io;
    use std::sync::Mutex;
    use std::thread::ThreadId;

    /// What happens when the point is reached.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Action {
        /// The process dies as if by `kill -9`.
        Kill,
        /// The operation fails with this `errno`.
        Fail(i32),
        /// Nothing: points are only counted.
        Count,
    }

    struct Plan {
        thread: Option<ThreadId>,
        passed: u64,
        at: u64,
        action: Action,
    }

    static PLANS: Mutex<Vec<Plan>> = Mutex::new(Vec::new());

    fn plans() -> std::sync::MutexGuard<'static, Vec<Plan>> {
        PLANS.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Plans `action` for the `at`-th point (from 1) that this thread passes from now on.
    pub fn arm(at: u64, action: Action) {
        disarm();
        plans().push(Plan { thread: Some(std::thread::current().id()), passed: 0, at, action });
    }

    /// Plans `action` for the `at`-th point (from 1) that any thread passes from now on.
    pub fn arm_process(at: u64, action: Action) {
        plans().push(Plan { thread: None, passed: 0, at, action });
    }

    /// Forgets the plan of this thread; returns how many points it passed.
    pub fn disarm() -> u64 {
        let me = Some(std::thread::current().id());
        let mut plans = plans();
        let passed = plans.iter().find(|plan| plan.thread == me).map_or(0, |plan| plan.passed);
        plans.retain(|plan| plan.thread != me);
        passed
    }

    pub(crate) fn point(_name: &'static str) -> io::Result<()> {
        let me = std::thread::current().id();
        let mut plans = plans();
        for plan in plans.iter_mut().filter(|plan| plan.thread.is_none_or(|thread| thread == me)) {
            plan.passed += 1;
            if plan.passed != plan.at {
                continue;
            }
            match plan.action {
                Action::Kill => {
                    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                    loop {
                        std::thread::park();
                    }
                }
                Action::Fail(errno) => return Err(io::Error::from_raw_os_error(errno)),
                Action::Count => {}
            }
        }
        Ok(())
    }
}
