//! The face's side of [`super::git`]: the user's `git`, started for a build.
//!
//! Git runs as the user, because what it needs is the user's: agents, proxies, the programs themselves. What a repository
//! and the address of one say is a stranger's, so git is started with an environment and a configuration of ours: no
//! settings of user or system (filters, helpers and hooks are programs), no protocols but those of the web and SSH, no
//! prompts; addresses and names reach it behind `--` or as configuration, never where an option could stand. Credentials
//! travel in the environment, which nobody else can read, never in arguments.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use build_engine_graph::redact_url;
use build_engine_registry::shown;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use super::lent_agent::LentAgent;
use crate::ssh::{AgentSource, DEFAULT_ID};
use crate::{BuildError, ExitKind, Report, Session};

/// Largest output that is read of one command.
const MAX_OUTPUT_BYTES: u64 = 64 << 20;

/// Protocols that git may speak. Submodules come over these too.
const PROTOCOLS: &str = "https:http:git:ssh";

/// Configuration of every command.
const CONFIG: &[(&str, &str)] = &[
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.attributesFile", "/dev/null"),
    ("core.excludesFile", "/dev/null"),
    ("core.autocrlf", "false"),
    ("core.symlinks", "true"),
    ("core.fileMode", "true"),
    ("core.protectHFS", "true"),
    ("core.protectNTFS", "true"),
    ("init.defaultBranch", "master"),
    ("init.templateDir", ""),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("advice.detachedHead", "false"),
    ("fetch.recurseSubmodules", "false"),
    ("submodule.recurse", "false"),
    ("credential.helper", ""),
    ("http.lowSpeedLimit", "1000"),
    ("http.lowSpeedTime", "60"),
    // The store's directories belong to whom they belong; nothing in them is configuration that we did not write.
    ("safe.directory", "*"),
];

/// A repository, and who we are there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remote {
    /// As it was given, but for reference, subdirectory and query.
    pub(super) url: String,
    /// Name of the secret with a value for `Authorization`.
    pub(super) header_secret: Option<String>,
    /// Name of the secret with a token.
    pub(super) token_secret: Option<String>,
}

/// What a reference stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Resolved {
    /// Its full name, or the commit itself.
    pub(super) reference: String,
    /// The object that it names.
    pub(super) object: String,
    /// The commit, where the object is an annotated tag.
    pub(super) commit: Option<String>,
}

/// A tree that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Checkout {
    pub(super) remote: Remote,
    pub(super) resolved: Resolved,
    /// The empty directory that the files go into.
    pub(super) into: PathBuf,
    /// An empty directory for the repository itself; `None` where it is kept in the tree.
    pub(super) repository: Option<PathBuf>,
    pub(super) submodules: bool,
}

/// What was checked out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CheckedOut {
    /// The commit.
    pub(super) commit: String,
    /// When it was committed, in seconds since 1970.
    pub(super) time: i64,
}

/// Asks a repository what `reference` stands for; an empty one is the default branch.
pub(super) fn resolve(
    remote: &Remote,
    reference: &str,
    session: &Session,
    ended: &AtomicBool,
) -> Result<Resolved, BuildError> {
    check_reference(reference)?;
    let git = Git::new(remote, session, ended)?;
    let lines = |patterns: &[&str]| -> Result<Vec<(String, String)>, BuildError> {
        // In a directory that is in no repository, and with no way up into one.
        let mut args = vec!["ls-remote", "--symref", "--", "origin"];
        args.extend(patterns);
        let out = git.run(Path::new("/proc"), None, &args)?;
        Ok(out.lines().filter_map(|line| line.split_once('\t')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect())
    };
    if reference.is_empty() {
        let lines = lines(&["HEAD"])?;
        let name = lines.iter().find_map(|(text, name)| text.strip_prefix("ref: ").filter(|_| name == "HEAD"));
        let object = lines.iter().find(|(text, name)| name == "HEAD" && is_commit(text)).map(|(object, _)| object);
        let Some(object) = object else {
            return Err(not_there(remote, "the repository has no default branch"));
        };
        let name = name.unwrap_or("HEAD");
        check_reference(name)?;
        return Ok(Resolved { reference: name.to_owned(), object: object.clone(), commit: None });
    }
    let peeled = format!("{reference}^{{}}");
    let found = lines(&[reference, &peeled])?;
    let of = |name: &str| {
        found.iter().find(|(object, of)| of == name && is_commit(object)).map(|(object, _)| object.clone())
    };
    let full = |prefix: &str| format!("{prefix}{}", reference.strip_prefix(prefix).unwrap_or(reference));
    let tag = full("refs/tags/");
    // Exactly what was written, else a branch, else a tag: git's own order where a name has two meanings.
    for name in [full("refs/"), full("refs/heads/")] {
        if let Some(object) = of(&name) {
            let commit = if name == tag { of(&format!("{tag}^{{}}")) } else { None };
            return Ok(Resolved { reference: name, object, commit });
        }
    }
    match of(&tag) {
        Some(object) => Ok(Resolved { commit: of(&format!("{tag}^{{}}")), reference: tag, object }),
        None => Err(not_there(remote, &format!("the repository has no branch or tag `{}`", reference.escape_debug()))),
    }
}

/// Checks a commit out.
pub(super) fn check_out(wanted: &Checkout, session: &Session, ended: &AtomicBool) -> Result<CheckedOut, BuildError> {
    let Checkout { remote, resolved, into, repository, submodules } = wanted;
    check_reference(&resolved.reference)?;
    if !is_commit(&resolved.object) {
        return Err(BuildError::internal("a commit is no commit"));
    }
    let git = Git::new(remote, session, ended)?;
    let kept = into.join(".git");
    let dir = repository.as_deref().unwrap_or(&kept);
    let here = |args: &[&str]| git.run(into, Some((dir, into)), args);
    let format = if resolved.object.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
    here(&["init", "--quiet", format])?;
    // Relative addresses of submodules start from it, and whoever is given the repository goes on from it.
    here(&["config", "remote.origin.url", &without_user(&remote.url)])?;
    if repository.is_none() {
        here(&["config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*"])?;
    }
    fetch(&here, resolved)?;
    let commit = here(&["rev-parse", "--verify", "--end-of-options", &format!("{}^{{commit}}", resolved.object)])?;
    let commit = commit.trim().to_owned();
    here(&["checkout", "--quiet", "--force", "--detach", &commit, "--"])?;
    if *submodules && std::fs::symlink_metadata(into.join(".gitmodules")).is_ok() {
        here(&["submodule", "--quiet", "update", "--init", "--recursive", "--depth=1"])?;
    }
    let time = here(&["log", "-1", "--format=%ct", &commit, "--"])?;
    let time = time.trim().parse().map_err(|_| BuildError::internal("git gave no time for a commit"))?;
    if repository.is_none() {
        here(&["reflog", "expire", "--all", "--expire=now"])?;
        // Where it came from is no part of what was asked for, and names the moment.
        let _ = std::fs::remove_file(dir.join("FETCH_HEAD"));
    }
    Ok(CheckedOut { commit, time })
}

/// Brings a commit, alone if the server can do that.
fn fetch(here: &dyn Fn(&[&str]) -> Result<String, BuildError>, resolved: &Resolved) -> Result<(), BuildError> {
    let Resolved { reference, object, .. } = resolved;
    let has = || here(&["cat-file", "-e", &format!("{object}^{{commit}}")]).is_ok();
    let named = reference.starts_with("refs/").then(|| format!("+{reference}:{reference}"));
    let mut failure = None;
    let attempts: [Option<Vec<&str>>; 4] = [
        named
            .as_deref()
            .map(|named| vec!["fetch", "--quiet", "--update-head-ok", "--depth=1", "--no-tags", "--", "origin", named]),
        Some(vec!["fetch", "--quiet", "--depth=1", "--no-tags", "--", "origin", object]),
        // Servers of files alone know no depth.
        named.as_deref().map(|named| vec!["fetch", "--quiet", "--update-head-ok", "--no-tags", "--", "origin", named]),
        // Some give only what a name leads to.
        Some(vec![
            "fetch",
            "--quiet",
            "--update-head-ok",
            "--tags",
            "--",
            "origin",
            "+refs/heads/*:refs/remotes/origin/*",
        ]),
    ];
    for attempt in attempts.into_iter().flatten() {
        match here(&attempt) {
            Ok(_) if has() => return Ok(()),
            // The name stands for something else by now.
            Ok(_) => {}
            Err(error) if matches!(error.kind, ExitKind::Denied | ExitKind::Cancelled) => return Err(error),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    let report = Report::new("git", format!("the repository does not give the commit {object}"));
    Err(failure.unwrap_or_else(|| BuildError::new(ExitKind::Source, report)))
}

/// Git, set up for one repository.
struct Git<'a> {
    environment: Vec<(OsString, OsString)>,
    /// Served as long as git may run.
    _agent: Option<LentAgent>,
    shown: String,
    ended: &'a AtomicBool,
}

impl<'a> Git<'a> {
    fn new(remote: &Remote, session: &Session, ended: &'a AtomicBool) -> Result<Self, BuildError> {
        check_url(&remote.url)?;
        let (socket, lent) = agent(remote, session)?;
        let mut config: Vec<(String, String)> =
            CONFIG.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        config.push(("remote.origin.url".to_owned(), without_user(&remote.url)));
        if let Some(header) = authorization(remote, session)? {
            config.push((format!("http.{}.extraHeader", token_scope(&remote.url)), format!("Authorization: {header}")));
        }
        let mut environment: Vec<(OsString, OsString)> =
            session.environment.variables().filter(|(name, _)| is_passed_on(name)).collect();
        environment.extend(socket.map(|socket| ("SSH_AUTH_SOCK".into(), socket.into_os_string())));
        let mut set = |name: &str, value: &str| environment.push((name.into(), value.into()));
        set("HOME", "/dev/null");
        set("GIT_CONFIG_NOSYSTEM", "1");
        set("GIT_CONFIG_GLOBAL", "/dev/null");
        set("GIT_ATTR_NOSYSTEM", "1");
        set("GIT_CEILING_DIRECTORIES", "/");
        set("GIT_TERMINAL_PROMPT", "0");
        set("GIT_ALLOW_PROTOCOL", PROTOCOLS);
        set("GIT_LFS_SKIP_SMUDGE", "1");
        set("GIT_SSH_COMMAND", "ssh -a -x -o BatchMode=yes -o ClearAllForwardings=yes");
        set("LC_ALL", "C");
        set("GIT_CONFIG_COUNT", &config.len().to_string());
        for (index, (name, value)) in config.iter().enumerate() {
            set(&format!("GIT_CONFIG_KEY_{index}"), name);
            set(&format!("GIT_CONFIG_VALUE_{index}"), value);
        }
        Ok(Self { environment, _agent: lent, shown: shown(&remote.url), ended })
    }

    /// Runs git in `cwd`, on a repository and its work tree if there are any, and returns what it writes.
    fn run(&self, cwd: &Path, at: Option<(&Path, &Path)>, args: &[&str]) -> Result<String, BuildError> {
        let mut command = Command::new("git");
        command.current_dir(cwd).env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some((dir, tree)) = at {
            command.env("GIT_DIR", dir).env("GIT_WORK_TREE", tree);
        }
        command.args(args).stdin(Stdio::null());
        let (status, out, said) = run(command, self.ended).map_err(|error| {
            let mut report = Report::new("git", "cannot start `git`").caused_by(&error);
            if error.kind() == std::io::ErrorKind::NotFound {
                report = report.hint("install git: repositories are fetched with it");
            }
            BuildError::new(ExitKind::Source, report)
        })?;
        match status {
            None => Err(BuildError::cancelled()),
            Some(status) if status.success() => Ok(String::from_utf8_lossy(&out).into_owned()),
            Some(status) => Err(self.failure(args, status, &String::from_utf8_lossy(&said))),
        }
    }

    fn failure(&self, args: &[&str], status: ExitStatus, said: &str) -> BuildError {
        let denied = said.contains("not allowed");
        let kind = if denied { ExitKind::Denied } else { ExitKind::Source };
        let command = args.first().copied().unwrap_or_default();
        let mut report = Report::new("git", format!("cannot fetch the repository `{}`", self.shown));
        report.causes.push(format!("`git {command}` failed ({status})"));
        let lines = said.lines().map(str::trim).filter(|line| !line.is_empty()).take(20);
        let plain = |line: &str| line.chars().filter(|char| !char.is_control()).collect::<String>();
        report.causes.extend(lines.map(|line| redact_url(&plain(line))));
        if said.contains("could not read Username") || said.contains("Authentication failed") {
            report.hint = Some("the secret `GIT_AUTH_TOKEN` or `GIT_AUTH_HEADER` says who you are".into());
        } else if denied {
            report.hint =
                Some(format!("repositories and their submodules are fetched over {}", PROTOCOLS.replace(':', ", ")));
        }
        BuildError::new(kind, report)
    }
}

/// Whether a variable of the user's environment is passed on: those that steer git itself are ours.
fn is_passed_on(name: &OsString) -> bool {
    let name = name.to_string_lossy();
    name == "GIT_SSL_CAINFO"
        || !name.starts_with("GIT_") && !matches!(&*name, "HOME" | "XDG_CONFIG_HOME" | "LC_ALL" | "LANGUAGE")
}

/// Runs a command to its end; `None` where nobody waits for it any more, and it was killed with all that it started.
fn run(mut command: Command, ended: &AtomicBool) -> std::io::Result<(Option<ExitStatus>, Vec<u8>, Vec<u8>)> {
    let mut child = command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let read = |pipe: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                // What is too long is cut; the rest has to go somewhere for the command to end.
                let _ = pipe.by_ref().take(MAX_OUTPUT_BYTES).read_to_end(&mut bytes);
                let _ = std::io::copy(&mut pipe, &mut std::io::sink());
            }
            bytes
        })
    };
    let out = read(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    let said = read(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if ended.load(Ordering::Relaxed) {
            if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(3));
    };
    let gone = |_| std::io::Error::other("a reader ended");
    Ok((status, out.join().map_err(gone)?, said.join().map_err(gone)?))
}

/// The socket of the agent for a repository that needs one, where it is not the user's own; and who serves it, where that
/// is this process.
fn agent(remote: &Remote, session: &Session) -> Result<(Option<PathBuf>, Option<LentAgent>), BuildError> {
    if is_http(&remote.url) || remote.url.to_ascii_lowercase().starts_with("git://") {
        return Ok((None, None));
    }
    let refuse = |reason: &str, hint: &str| {
        let message = format!("`{}` {reason}", shown(&remote.url));
        Err(BuildError::new(ExitKind::Denied, Report::new("ssh", message).hint(hint)))
    };
    match session.agents.get(DEFAULT_ID) {
        Some(AgentSource::Socket(path)) => Ok((Some(path.clone()), None)),
        Some(keys @ AgentSource::Keys(_)) => {
            let temporary = session.environment.variables().find(|(name, _)| name == "TMPDIR").map(|(_, value)| value);
            let temporary = PathBuf::from(temporary.filter(|path| !path.is_empty()).unwrap_or_else(|| "/tmp".into()));
            let lent = LentAgent::start(keys.clone(), &temporary).map_err(|error| {
                let report = Report::new("ssh", "cannot make the socket of an ssh agent").caused_by(&error);
                BuildError::new(ExitKind::Io, report)
            })?;
            Ok((Some(lent.socket()), Some(lent)))
        }
        None if session.lend_agent => Ok((None, None)),
        None => refuse("needs an SSH agent, which was not given to the build", "give it with `--ssh default`"),
    }
}

/// The value of `Authorization`: the user's secret for the host, or in general, or what stands in the address.
fn authorization(remote: &Remote, session: &Session) -> Result<Option<String>, BuildError> {
    let host = authority(&remote.url);
    let bare = host.rsplit('@').next().unwrap_or_default();
    for suffix in [format!(".{bare}"), String::new()] {
        for (secret, is_token) in [(&remote.header_secret, false), (&remote.token_secret, true)] {
            let Some(name) = secret else { continue };
            let Some(value) = super::answers::secret(&format!("{name}{suffix}"), session)? else { continue };
            let value = String::from_utf8_lossy(&value).trim_end_matches(['\r', '\n']).to_owned();
            return Ok(Some(if is_token { basic("x-access-token", &value) } else { value }));
        }
    }
    if !is_http(&remote.url) {
        return Ok(None);
    }
    Ok(host.rsplit_once('@').map(|(user, _)| {
        let (name, password) = user.split_once(':').unwrap_or((user, ""));
        let plain = |text| percent_decode_str(text).decode_utf8_lossy();
        basic(&plain(name), &plain(password))
    }))
}

fn basic(user: &str, password: &str) -> String {
    format!("basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn is_http(url: &str) -> bool {
    let url = url.to_ascii_lowercase();
    url.starts_with("http://") || url.starts_with("https://")
}

/// What stands between the scheme and the path.
fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    &rest[..rest.find('/').unwrap_or(rest.len())]
}

/// The address without user name and password, which would be seen in git's arguments.
fn without_user(url: &str) -> String {
    let authority = authority(url);
    match authority.rsplit_once('@') {
        Some((user, _)) if is_http(url) => url.replacen(&format!("{user}@"), "", 1),
        _ => url.to_owned(),
    }
}

/// Below which address the credentials are sent: the repository, on GitHub all repositories, as BuildKit does it.
fn token_scope(url: &str) -> String {
    let url = without_user(url);
    let github = ["https://github.com/", "https://www.github.com/"];
    github.into_iter().find(|prefix| url.starts_with(prefix)).map_or(url.clone(), str::to_owned)
}

pub(super) fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn check_url(url: &str) -> Result<(), BuildError> {
    let refuse = |kind, reason: &str| {
        Err(BuildError::new(kind, Report::new("git", format!("`{}` is not fetched: {reason}", shown(url)))))
    };
    if url.starts_with('-') || url.chars().any(|char| char.is_control() || char.is_whitespace()) {
        return refuse(ExitKind::Input, "it is no address of a repository");
    }
    let host = match url.split_once("://") {
        Some((scheme, _)) => {
            if !PROTOCOLS.split(':').any(|allowed| scheme.eq_ignore_ascii_case(allowed)) {
                return refuse(ExitKind::Denied, "repositories come over https, http, git and ssh");
            }
            authority(url)
        }
        None => match url.split_once(':') {
            // `ext::sh -c …`
            Some((_, rest)) if rest.starts_with(':') => return refuse(ExitKind::Denied, "it would start a program"),
            Some((host, path)) if !path.starts_with('-') && host.contains('@') => host,
            _ => return refuse(ExitKind::Denied, "repositories come over https, http, git and ssh"),
        },
    };
    if host.is_empty()
        || host.rsplit('@').next().is_none_or(|host| host.is_empty() || host.starts_with('-'))
        || host.starts_with('-')
    {
        return refuse(ExitKind::Input, "its host is none");
    }
    Ok(())
}

/// Source: `git check-ref-format`; what begins with a hyphen could be taken for an option.
fn check_reference(name: &str) -> Result<(), BuildError> {
    let odd = |char: char| char.is_control() || " ~^:?*[\\".contains(char);
    let part = |part: &str| part.is_empty() || part.starts_with('.') || part.ends_with(".lock");
    let wrong = name.starts_with('-')
        || name.contains("..")
        || name.contains("@{")
        || name.ends_with('.')
        || name.chars().any(odd)
        || (!name.is_empty() && name.split('/').any(part));
    if wrong {
        let message = format!("`{}` cannot be the name of a branch, tag or commit", name.escape_debug());
        return Err(BuildError::new(ExitKind::Input, Report::new("git", message)));
    }
    Ok(())
}

fn not_there(remote: &Remote, reason: &str) -> BuildError {
    let mut report = Report::new("git", format!("cannot fetch the repository `{}`", shown(&remote.url)));
    report.causes.push(reason.to_owned());
    BuildError::new(ExitKind::Source, report)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R12.
    #[test]
    fn addresses_that_are_programs_or_options_are_refused() {
        for (url, expected) in [
            ("https://example.com/a.git", None),
            ("ssh://git@example.com/a.git", None),
            ("git@example.com:a.git", None),
            ("git://example.com/a", None),
            ("ext::sh -c touch% /tmp/x", Some(ExitKind::Input)),
            ("ext::sh", Some(ExitKind::Denied)),
            ("file:///etc", Some(ExitKind::Denied)),
            ("/etc", Some(ExitKind::Denied)),
            ("--upload-pack=x", Some(ExitKind::Input)),
            ("ssh://-oProxyCommand=x/a.git", Some(ExitKind::Input)),
            ("ssh://git@-oProxyCommand=x/a.git", Some(ExitKind::Input)),
            ("git@-oProxyCommand=x:a.git", Some(ExitKind::Input)),
            ("git@example.com:-x", Some(ExitKind::Denied)),
            ("https:///a.git", Some(ExitKind::Input)),
            ("https://example.com/a\n.git", Some(ExitKind::Input)),
        ] {
            assert_eq!(check_url(url).err().map(|error| error.kind), expected, "{url}");
        }
    }

    /// R12.
    #[test]
    fn references_follow_gits_grammar() {
        for good in ["", "main", "refs/tags/v1.0", "feature/x-y", "0123456789abcdef0123456789abcdef01234567", "HEAD"] {
            assert!(check_reference(good).is_ok(), "{good}");
        }
        for bad in [
            "-x",
            "--upload-pack=x",
            "../x",
            "a..b",
            "a b",
            "a:b",
            "a\\b",
            "x.lock",
            "/a",
            "a/",
            ".a",
            "a^{}",
            "a@{1}",
            "a\n",
        ] {
            assert!(check_reference(bad).is_err(), "{bad}");
        }
    }

    /// S08.
    #[test]
    fn credentials_leave_the_address_before_git_sees_it() {
        let remote =
            Remote { url: "https://me:p%40ss@example.com/a.git".into(), header_secret: None, token_secret: None };
        assert_eq!(without_user(&remote.url), "https://example.com/a.git");
        let header = authorization(&remote, &Session::default()).unwrap();
        assert_eq!(header.as_deref(), Some("basic bWU6cEBzcw=="));
        let ssh = Remote { url: "ssh://git@example.com/a.git".into(), ..remote };
        assert_eq!(without_user(&ssh.url), ssh.url);
        assert_eq!(authorization(&ssh, &Session::default()).unwrap(), None);
    }

    #[test]
    fn tokens_are_sent_to_one_repository_or_to_github() {
        assert_eq!(token_scope("https://github.com/a/b.git"), "https://github.com/");
        assert_eq!(token_scope("https://x@example.com/a/b.git"), "https://example.com/a/b.git");
    }
}
