//! Credential helpers: programs named `docker-credential-NAME` that know secrets.
//!
//! A helper is a program that a file names, so the name is held to be hostile: it is a plain word, it is looked for in
//! the given directories alone, and it gets neither much time nor much room.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;

use crate::redact::escape;
use crate::{Credential, Error};

/// So long a helper may take.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// So much it may write.
const MAX_OUTPUT: u64 = 1 << 20;
/// What helpers write when they know nothing.
const NOT_FOUND: &str = "credentials not found in native keychain";

/// Asks the helper `name`, which is looked for in `directories`, for the credential of `server`.
///
/// # Errors
/// [`Error::Helper`], which quotes what a helper says about its failure but not what it says otherwise.
pub(crate) fn get(name: &str, server: &str, directories: &[PathBuf]) -> Result<Option<Credential>, Error> {
    get_within(name, server, directories, TIME_LIMIT)
}

fn get_within(name: &str, server: &str, directories: &[PathBuf], limit: Duration) -> Result<Option<Credential>, Error> {
    let helper = format!("docker-credential-{}", escape(name, 100));
    let failed = |reason: String| Error::Helper { helper: helper.clone(), reason };
    if !is_legal(name) {
        return Err(failed("its name must be letters, digits, `.`, `_` and `-`".to_owned()));
    }
    let program = directories.iter().map(|directory| directory.join(&helper)).find(|path| is_program(path));
    let program = program.ok_or_else(|| failed("there is no such program".to_owned()))?;
    let (succeeded, output) = run(&program, server, limit).map_err(failed)?;
    let text = String::from_utf8(output).map_err(|_| failed("its output is not text".to_owned()))?;
    if !succeeded {
        let said = text.trim();
        if said.contains(NOT_FOUND) {
            return Ok(None);
        }
        // Helpers explain themselves where the secret would be, so nothing that looks like one is shown.
        let said =
            if said.is_empty() || said.contains('{') { String::new() } else { format!(": {}", escape(said, 300)) };
        return Err(failed(format!("it failed{said}")));
    }
    if text.trim() == NOT_FOUND {
        return Ok(None);
    }
    let answer: Answer = serde_json::from_str(&text).map_err(|_| failed("its output is not an answer".to_owned()))?;
    Ok(match (answer.username.as_str(), answer.secret) {
        (_, secret) if secret.is_empty() => None,
        ("<token>", token) => Some(Credential::Identity { token }),
        (username, password) => Some(Credential::Basic { username: username.to_owned(), password }),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

fn is_legal(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 100
        && !name.starts_with(['-', '.'])
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn is_program(path: &Path) -> bool {
    path.is_absolute()
        && path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Runs a helper; returns whether it succeeded, and what it wrote.
fn run(program: &Path, server: &str, limit: Duration) -> Result<(bool, Vec<u8>), String> {
    let end = Instant::now() + limit;
    let child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // A group of its own, so that what it starts can be ended with it.
        .process_group(0)
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut group = Group { child, ended: false };
    let stdin = group.child.stdin.take();
    let stdout = group.child.stdout.take();
    let line = format!("{server}\n");
    let (sender, output) = mpsc::channel();
    // Reads until the helper, and all that it started, has closed its output or is killed.
    thread::spawn(move || {
        if let Some(mut stdin) = stdin {
            // A helper that does not want to know is free to say what it likes.
            let _ = stdin.write_all(line.as_bytes());
        }
        let mut bytes = Vec::new();
        let read = stdout.map(|stdout| stdout.take(MAX_OUTPUT + 1).read_to_end(&mut bytes));
        let _ = sender.send(read.transpose().map(|_| bytes));
    });
    let too_slow = || format!("it did not answer within {} s", limit.as_secs_f64());
    let bytes = match output.recv_timeout(limit) {
        Err(_) => return Err(too_slow()),
        Ok(Err(error)) => return Err(error.to_string()),
        Ok(Ok(bytes)) if bytes.len() as u64 > MAX_OUTPUT => {
            return Err(format!("it wrote more than {MAX_OUTPUT} bytes"));
        }
        Ok(Ok(bytes)) => bytes,
    };
    loop {
        match group.child.try_wait() {
            Err(error) => return Err(error.to_string()),
            Ok(Some(status)) => {
                group.ended = true;
                return Ok((status.success(), bytes));
            }
            Ok(None) if Instant::now() > end => return Err(too_slow()),
            Ok(None) => thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// A helper and what it started; killed when dropped, unless the helper ended by itself.
struct Group {
    child: Child,
    ended: bool,
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // The helper is not waited for yet, so that its number, which is the group's, belongs to nobody else.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::Kind;

    /// Runs a shell script as the helper `test`.
    fn ask(script: &str, limit: Duration) -> Result<Option<Credential>, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker-credential-test");
        // Written by another process: an executable that this one had open for writing may still be so in a child
        // that another test is just starting.
        let mut child = Command::new("/bin/sh")
            .args(["-c", "cat >\"$1\" && chmod 755 \"$1\"", "sh"])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
        get_within("test", "https://r.example", &["relative".into(), dir.path().into()], limit)
    }

    #[test]
    fn answers_become_credentials() {
        let identity = Credential::Identity { token: "t".into() };
        let basic = Credential::Basic { username: "u".into(), password: "https://r.example".into() };
        for (script, expected) in [
            (r#"read server; echo "{\"ServerURL\":\"x\",\"Username\":\"u\",\"Secret\":\"$server\"}""#, Some(basic)),
            (r#"echo '{"Username":"<token>","Secret":"t"}'"#, Some(identity)),
            (r#"echo '{"Username":"","Secret":""}'"#, None),
            ("echo credentials not found in native keychain; exit 1", None),
            ("echo credentials not found in native keychain", None),
        ] {
            assert_eq!(ask(script, TIME_LIMIT).unwrap(), expected, "{script}");
        }
    }

    #[test]
    fn helpers_that_misbehave_are_named() {
        for (script, limit, reason) in [
            ("echo pass is not initialised; exit 1", 10.0, "it failed: pass is not initialised"),
            (r#"echo '{"Secret":"hunter2"}'; exit 1"#, 10.0, "it failed"),
            ("echo hunter2", 10.0, "its output is not an answer"),
            ("sleep 100", 0.2, "it did not answer within 0.2 s"),
            ("sleep 100 & exit 0", 0.2, "it did not answer within 0.2 s"),
            ("exec >&-; sleep 100", 0.2, "it did not answer within 0.2 s"),
            ("head -c 1000000000 /dev/zero", 10.0, "it wrote more than 1048576 bytes"),
        ] {
            let start = Instant::now();
            let error = ask(script, Duration::from_secs_f64(limit)).unwrap_err();
            let expected = format!("cannot use the credential helper `docker-credential-test`: {reason}");
            assert_eq!((error.to_string(), error.kind()), (expected, Kind::Input), "{script}");
            assert!(start.elapsed() < Duration::from_secs(5), "{script}");
        }
    }

    #[test]
    fn what_a_helper_left_behind_is_ended_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let note = dir.path().join("pid");
        ask(&format!("sleep 100 & echo $! >{}; exit 0", note.display()), Duration::from_millis(300)).unwrap_err();
        let pid = fs::read_to_string(note).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        let is_gone = || fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "));
        let end = Instant::now() + Duration::from_secs(5);
        while !is_gone() {
            assert!(Instant::now() < end, "it still runs");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn names_that_are_no_words_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("docker-credential-")).unwrap();
        for name in ["", "../x", "/bin/sh", "a/b", "-x", ".x", "a b", "a\0", "a\n", "ä"] {
            let error = get(name, "r.example", &[dir.path().into()]).unwrap_err();
            assert!(error.to_string().contains("its name must be"), "{name:?}: {error}");
        }
        let error = get("missing", "r.example", &[dir.path().into()]).unwrap_err();
        assert!(error.to_string().contains("there is no such program"), "{error}");
    }
}
