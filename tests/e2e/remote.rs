//! Sources that are fetched: files of the web, git repositories, contexts that are neither directory nor image; and what
//! a stranger who serves them cannot do.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use build_engine_testkit::available;
use build_engine_testkit::engine::{Engine, Run, Who};
use build_engine_testkit::peers::output;
use build_engine_testkit::registry::{FakeRegistry, Reply, Request};
use build_engine_testkit::sha256;

const LAST_MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
const LAST_MODIFIED_SECONDS: i64 = 784_111_777;
const COMMIT_SECONDS: i64 = 1_500_000_000;

/// Names and contents.
type Files = Vec<(String, Vec<u8>)>;

/// A server with files that a test may exchange, and with repositories below `/git/`.
struct Web {
    server: FakeRegistry,
    files: Arc<Mutex<Files>>,
    dir: tempfile::TempDir,
}

impl Web {
    fn new() -> Web {
        let (server, dir) = (FakeRegistry::start(), tempfile::tempdir().unwrap());
        let files: Arc<Mutex<Files>> = Arc::default();
        let (known, repositories) = (Arc::clone(&files), dir.path().to_owned());
        server.on(move |request| {
            if let Some(path) = request.path.strip_prefix("/git/") {
                return Some(git_backend(&repositories, path, request));
            }
            let known = known.lock().unwrap();
            let (_, bytes) = known.iter().rev().find(|(path, _)| *path == request.path)?;
            let tag = format!("\"{}\"", &sha256(bytes)[..16]);
            let reply = if request.header("if-none-match").is_some_and(|tags| tags.contains(&tag)) {
                Reply::status(304)
            } else {
                Reply::ok("application/octet-stream", bytes.clone()).header("Last-Modified", LAST_MODIFIED)
            };
            Some(reply.header("ETag", &tag))
        });
        Web { server, files, dir }
    }

    fn put(&self, path: &str, bytes: impl Into<Vec<u8>>) -> String {
        self.files.lock().unwrap().push((path.to_owned(), bytes.into()));
        self.url(path)
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.server.origin())
    }

    /// Makes a repository of `files` with what `more` adds to the work tree, and returns its address.
    fn repository(&self, name: &str, files: &[(&str, &str)], more: impl FnOnce(&Path)) -> String {
        let tree = self.dir.path().join(format!("{name}.tree"));
        fs::create_dir_all(&tree).unwrap();
        git(&tree, &["init", "-q", "-b", "main"]);
        for (path, content) in files {
            let path = tree.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        more(&tree);
        git(&tree, &["add", "-A"]);
        git(&tree, &["commit", "-q", "-m", "one"]);
        git(&tree, &["tag", "-a", "v1", "-m", "v1"]);
        git(&tree, &["clone", "-q", "--bare", ".", &format!("../{name}.git")]);
        self.url(&format!("/git/{name}.git"))
    }

    fn commit(&self, name: &str) -> String {
        let out =
            output(git_command(&self.dir.path().join(format!("{name}.tree"))).args(["rev-parse", "HEAD"])).unwrap();
        out.trim().to_owned()
    }
}

fn git_command(dir: &Path) -> Command {
    let mut command = Command::new("git");
    command.current_dir(dir).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    for name in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{name}_NAME"), "t").env(format!("GIT_{name}_EMAIL"), "t@example.test");
        command.env(format!("GIT_{name}_DATE"), format!("{COMMIT_SECONDS} +0000"));
    }
    command
}

fn git(dir: &Path, args: &[&str]) {
    output(git_command(dir).args(["-c", "protocol.file.allow=always"]).args(args)).unwrap();
}

/// Git's own server, over CGI.
fn git_backend(root: &Path, path: &str, request: &Request) -> Reply {
    let query: Vec<String> = request.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("PATH_INFO", format!("/{path}"))
        .env("QUERY_STRING", query.join("&"))
        .env("REQUEST_METHOD", &request.method)
        .env("CONTENT_TYPE", request.header("content-type").unwrap_or_default())
        .env("CONTENT_LENGTH", request.body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", request.header("content-encoding").unwrap_or_default())
        .env("GIT_PROTOCOL", request.header("git-protocol").unwrap_or_default())
        .env("REMOTE_ADDR", "127.0.0.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&request.body).unwrap();
    let out = child.wait_with_output().unwrap().stdout;
    let end = out.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&out[..end]).into_owned();
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let status = field("Status").and_then(|status| status.split(' ').next()?.parse().ok()).unwrap_or(200);
    Reply::ok(field("Content-Type").unwrap_or("text/plain"), &out[end + 4..]).with_status(status)
}

/// Builds to a folder.
fn build(engine: &Engine, name: &str, args: &[&str]) -> (Run, PathBuf) {
    let dest = engine.work().join(format!("{name}.out"));
    let output = format!("--output=type=local,dest={}", dest.display());
    let run = engine.run(["build", "--progress=plain", &output].iter().chain(args)).unwrap();
    (run, dest)
}

fn build_of(engine: &Engine, name: &str, dockerfile: &str, args: &[&str]) -> (Run, PathBuf) {
    let context = engine.context(name, &[("Dockerfile", dockerfile)]).unwrap();
    let context = context.to_string_lossy().into_owned();
    let args: Vec<&str> = args.iter().copied().chain([&*context]).collect();
    build(engine, name, &args)
}

fn good((run, dest): (Run, PathBuf)) -> PathBuf {
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    dest
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().permissions().mode() & 0o7777
}

fn engine(who: Who) -> Option<Engine> {
    available(Engine::new(who))
}

/// F1-102, F1-103.
#[test]
fn files_of_the_web_are_fetched_once_while_they_stay_the_same() {
    for who in [Who::Root, Who::User] {
        let Some(engine) = engine(who) else { continue };
        let web = Web::new();
        let url = web.put("/dir/file.txt", "one");
        let dockerfile = format!("FROM scratch\nADD {url} /d/\nADD --chmod=755 {url}?x=1 /d/g\n");
        let out = good(build_of(&engine, "http", &dockerfile, &[]));
        assert_eq!(read(&out.join("d/file.txt")), "one");
        assert_eq!(mode(&out.join("d/file.txt")), 0o600);
        assert_eq!(mode(&out.join("d/g")), 0o755);
        assert_eq!(out.join("d/g").metadata().unwrap().mtime(), LAST_MODIFIED_SECONDS);
        let fetched = || web.server.requests_of("GET", "/dir/").iter().filter(|request| request.status == 200).count();
        assert_eq!(fetched(), 2);
        let (again, _) = build_of(&engine, "http", &dockerfile, &[]);
        assert_eq!(again.stderr.matches("CACHED").count(), 4, "{}", again.stderr);
        assert_eq!(fetched(), 2);
        web.put("/dir/file.txt", "two");
        let out = good(build_of(&engine, "http", &dockerfile, &[]));
        assert_eq!(read(&out.join("d/file.txt")), "two");
    }
}

/// F1-105, D18: what is not as it should be is not kept.
#[test]
fn checksums_are_verified_and_errors_say_what_and_where() {
    let Some(engine) = engine(Who::User) else { return };
    let web = Web::new();
    let url = web.put("/f", "content");
    let right = sha256(b"content");
    good(build_of(&engine, "right", &format!("FROM scratch\nADD --checksum=sha256:{right} {url} /f\n"), &[]));
    let wrong = "0".repeat(64);
    let missing = web.url("/missing");
    let secret = url.replace("http://", "http://me:hunter2-is-secret@").replace("/f", "/missing");
    let repository = web.repository("r", &[("a", "a")], |_| {});
    for (name, line, code, parts) in [
        ("wrong", format!("ADD --checksum=sha256:{wrong} {url} /f"), 4, vec![right.as_str(), &wrong, "Dockerfile:2"]),
        ("both", format!("ADD {url} /f\nADD --checksum=sha256:{wrong} {url} /g"), 4, vec![&wrong, "Dockerfile:3"]),
        ("missing", format!("ADD {missing} /f"), 3, vec!["404", "/missing", "Dockerfile:2"]),
        ("secret", format!("ADD {secret} /f"), 3, vec!["404"]),
        ("commit", format!("ADD --checksum={} {repository} /r", &wrong[..40]), 4, vec!["commit", "Dockerfile:2"]),
        ("branch", format!("ADD {repository}#nowhere /r"), 3, vec!["nowhere"]),
        ("folder", format!("ADD {repository}#main:nowhere /r"), 2, vec!["nowhere"]),
        ("ssh", "ADD git@localhost:r.git /r".to_owned(), 7, vec!["--ssh"]),
    ] {
        let (run, _) = build_of(&engine, name, &format!("FROM scratch\n{line}\n"), &[]);
        assert_eq!(run.code, Some(code), "{name}: {}", run.stderr);
        for part in parts {
            assert!(run.stderr.contains(part), "{name}: `{part}` is not in {}", run.stderr);
        }
    }
}

/// F1-104: to the host of the address, and to no other.
#[test]
fn secrets_for_a_host_are_sent_to_that_host_alone() {
    let Some(engine) = engine(Who::User) else { return };
    let (web, other) = (Web::new(), Web::new());
    let target = other.put("/f", "content");
    web.server.on(move |request| request.is("GET", "/away").then(|| Reply::redirect(302, &target)));
    let url = web.url("/away");
    let secret = engine.work().join("token");
    fs::write(&secret, "hunter2-is-secret").unwrap();
    engine.adopt(&secret).unwrap();
    let given = format!("--secret=id=HTTP_AUTH_TOKEN_127.0.0.1,src={}", secret.display());
    let out = good(build_of(&engine, "auth", &format!("FROM scratch\nADD {url} /f\n"), &[&given]));
    assert_eq!(read(&out.join("f")), "content");
    let sent = |web: &Web| {
        web.server.requests().iter().filter_map(|it| it.header("authorization").map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(sent(&web), ["Bearer hunter2-is-secret"]);
    assert!(sent(&other).is_empty());
}

/// R06.
#[test]
fn redirects_lead_to_the_web_and_nowhere_nearer() {
    let Some(engine) = engine(Who::User) else { return };
    let web = Web::new();
    for (name, target, code) in [
        ("file", "file:///etc/passwd", 3),
        ("gopher", "gopher://127.0.0.1/", 3),
        ("metadata", "http://169.254.169.254/latest/meta-data/", 7),
        ("endless", "/endless", 3),
    ] {
        web.server.on(move |request| request.path.ends_with(name).then(|| Reply::redirect(302, target)));
        let (run, out) =
            build_of(&engine, name, &format!("FROM scratch\nADD {} /f\n", web.url(&format!("/{name}"))), &[]);
        assert_eq!(run.code, Some(code), "{name}: {}", run.stderr);
        assert!(!out.join("f").exists());
    }
}

/// F1-106, F1-107, F1-013.
#[test]
fn repositories_are_files_of_a_commit() {
    for who in [Who::Root, Who::User, Who::OneUid] {
        let Some(engine) = engine(who) else { continue };
        let web = Web::new();
        web.repository("sub", &[("s", "sub")], |_| {});
        let url = web.repository("r", &[("d/a", "a"), ("x", "x")], |tree| {
            fs::set_permissions(tree.join("x"), fs::Permissions::from_mode(0o700)).unwrap();
            std::os::unix::fs::symlink("d", tree.join("l")).unwrap();
            git(tree, &["submodule", "-q", "add", "../sub.git", "sm"]);
            git(tree, &["config", "-f", ".gitmodules", "submodule.sm.url", "../sub.git"]);
        });
        let commit = web.commit("r");
        let dockerfile = format!(
            "FROM scratch\nADD {url} /r/\nADD {url}#v1:d /d/\nADD --keep-git-dir=true {url}#v1 /k/\n\
             ADD --checksum={} {url}?submodules=false&mtime=commit /q/\nADD {url}#{commit} /c/\n",
            &commit[..8]
        );
        let out = good(build_of(&engine, "git", &dockerfile, &[]));
        for (path, content) in
            [("r/d/a", "a"), ("r/sm/s", "sub"), ("d/a", "a"), ("k/d/a", "a"), ("q/x", "x"), ("c/x", "x")]
        {
            assert_eq!(read(&out.join(path)), content);
        }
        assert_eq!((mode(&out.join("r/x")), mode(&out.join("r/d/a"))), (0o755, 0o644));
        assert_eq!(out.join("r/l").read_link().unwrap(), Path::new("d"));
        assert!(out.join("k/.git/HEAD").exists() && !out.join("r/.git").exists() && !out.join("r/sm/.git").exists());
        assert!(!out.join("q/sm/s").exists());
        assert_eq!(out.join("q/d/a").metadata().unwrap().mtime(), COMMIT_SECONDS);
        let before = web.server.requests_of("POST", "git-upload-pack").len();
        let (again, _) = build_of(&engine, "git", &dockerfile, &[]);
        assert_eq!(again.stderr.matches("CACHED").count(), 10, "{}", again.stderr);
        let asked = web.server.requests_of("POST", "git-upload-pack").len() - before;
        assert!(asked <= 3, "a known commit is not fetched: {asked} requests");
    }
}

/// R12: no command of a stranger's is executed, and nothing outside of the repository is read.
#[test]
fn repositories_cannot_run_programs_or_read_files() {
    let Some(engine) = engine(Who::User) else { return };
    let web = Web::new();
    let canary = engine.work().join("canary");
    let touch = format!("touch {}", canary.display());
    let repository = web.repository("evil", &[(".gitattributes", "* filter=evil diff=evil\n"), ("a", "a")], |tree| {
        std::os::unix::fs::symlink("/", tree.join("root")).unwrap();
        fs::write(tree.join(".lfsconfig"), "[lfs]\n\turl = http://127.0.0.1:1/\n").unwrap();
        fs::write(tree.join(".git/config.worktree"), format!("[filter \"evil\"]\n\tsmudge = {touch}\n")).unwrap();
    });
    let file =
        web.repository("file", &[(".gitmodules", "[submodule \"s\"]\n\tpath = s\n\turl = file:///etc\n")], |tree| {
            git(tree, &["update-index", "--add", "--cacheinfo", &format!("160000,{},s", "1".repeat(40))]);
            fs::create_dir(tree.join("s")).unwrap();
        });
    let ext = web.repository(
        "ext",
        &[(
            ".gitmodules",
            &format!("[submodule \"s\"]\n\tpath = s\n\turl = ext::sh -c {}\n", touch.replace(' ', "% ")),
        )],
        |tree| {
            git(tree, &["update-index", "--add", "--cacheinfo", &format!("160000,{},s", "1".repeat(40))]);
            fs::create_dir(tree.join("s")).unwrap();
        },
    );
    for (name, source, codes) in [
        ("plain", repository.clone(), &[0][..]),
        ("option", format!("{repository}#--upload-pack={}", canary.display()), &[2]),
        ("hyphen", format!("{repository}#-x"), &[2]),
        ("parents", format!("{repository}#main:../../etc"), &[2]),
        ("link", format!("{repository}#main:root"), &[2]),
        ("file-submodule", file, &[3, 7]),
        ("ext-submodule", ext, &[3, 7]),
        ("proxy", "ssh://-oProxyCommand=touch/x.git".to_owned(), &[2]),
    ] {
        let (run, _) = build_of(&engine, name, &format!("FROM scratch\nADD {source} /x/\n"), &[]);
        assert!(run.code.is_some_and(|code| codes.contains(&code)), "{name}: {:?} {}", run.code, run.stderr);
        assert!(!canary.exists(), "{name} ran a program");
    }
}

/// F1-011, F1-012, F1-013.
#[test]
fn contexts_are_what_buildx_takes() {
    let Some(engine) = engine(Who::User) else { return };
    let web = Web::new();
    const DOCKERFILE: &str = "FROM scratch\nCOPY d /d\n";
    let files = &[
        ("Dockerfile", DOCKERFILE),
        ("d/a", "a"),
        (".dockerignore", "d/a\n"),
        ("sub/Other", "FROM scratch\nCOPY d /o\n"),
    ];
    let repository = web.repository("ctx", files, |_| {});
    let tree = web.dir.path().join("ctx.tree");
    let tar = |flag: &str| {
        let out =
            Command::new("tar").args(["-c", flag, "-C"]).arg(&tree).args(["Dockerfile", "d", "sub"]).output().unwrap();
        out.stdout
    };
    let archive = web.put("/ctx.tar.gz", tar("-z"));
    let single = web.put("/one", format!("FROM scratch\nADD {} /a\n", web.put("/a", "a")));
    // An ignore file means nothing in a context that is fetched.
    assert_eq!(read(&good(build(&engine, "repository", &[&repository])).join("d/a")), "a");
    assert_eq!(read(&good(build(&engine, "other", &["-f", "sub/Other", &repository])).join("o/a")), "a");
    assert_eq!(read(&good(build(&engine, "archive", &[&archive])).join("d/a")), "a");
    assert_eq!(read(&good(build(&engine, "single", &[&single])).join("a")), "a");
    let remote = web.put("/Dockerfile", "FROM scratch\nCOPY Dockerfile /y\n");
    let context = engine.context("dir", &[("Dockerfile", "FROM nowhere\n")]).unwrap();
    let context = context.to_string_lossy();
    assert_eq!(read(&good(build(&engine, "remote-file", &["-f", &remote, &context])).join("y")), "FROM nowhere\n");
    let named = format!("--build-context=other={repository}");
    let out = good(build_of(&engine, "named", "FROM scratch\nCOPY --from=other d /d\n", &[&named]));
    assert_eq!(read(&out.join("d/a")), "a");

    let piped = |name: &str, args: &[&str], input: &[u8]| {
        let dest = engine.work().join(format!("{name}.out"));
        let output = format!("--output=type=local,dest={}", dest.display());
        let all: Vec<&str> = ["build", "--progress=plain", &output].into_iter().chain(args.iter().copied()).collect();
        let mut child =
            engine.command(all).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Whoever refuses does not read.
        let _ = child.stdin.take().unwrap().write_all(input);
        (Run::from(child.wait_with_output().unwrap()), dest)
    };
    for (name, flag) in [("tar", "-b20"), ("gz", "-z"), ("bz2", "-j"), ("xz", "-J"), ("zst", "--zstd")] {
        assert_eq!(read(&good(piped(name, &["-"], &tar(flag))).join("d/a")), "a", "{name}");
    }
    assert_eq!(read(&good(piped("in-tar", &["-f", "sub/Other", "-"], &tar("-z"))).join("o/a")), "a");
    let alone = format!("FROM scratch\nADD {} /a\n", web.url("/a"));
    assert_eq!(read(&good(piped("alone", &["-"], alone.as_bytes())).join("a")), "a");
    for (name, args, input, code, part) in [
        ("no-context", &["-"][..], "FROM scratch\nCOPY a /a\n", 2, "no context"),
        ("both", &["-f", "-", "-"], "FROM scratch\n", 2, "standard input"),
        ("two", &["-f", "x", "-"], "FROM scratch\n", 2, "Dockerfiles"),
        ("missing", &["-f", "nowhere", repository.as_str()], "", 2, "nowhere"),
    ] {
        let (run, _) = piped(name, args, input.as_bytes());
        assert_eq!(run.code, Some(code), "{name}: {}", run.stderr);
        assert!(run.stderr.contains(part), "{name}: {}", run.stderr);
    }
    assert_eq!(fs::read_dir(engine.tmp()).unwrap().count(), 0, "a file was left behind");
}

/// D18: an archive that is fetched is read as strictly as a layer.
#[test]
fn hostile_archives_are_refused_wherever_they_come_from() {
    let Some(engine) = engine(Who::User) else { return };
    let web = Web::new();
    let dir = web.dir.path();
    fs::write(dir.join("f"), "f").unwrap();
    let out = Command::new("tar")
        .args(["-c", "--transform=s,^f$,../../escaped,", "-P", "-C"])
        .arg(dir)
        .arg("f")
        .output()
        .unwrap();
    let url = web.put("/evil.tar", out.stdout.clone());
    let (run, _) = build_of(&engine, "added", &format!("FROM scratch\nADD --unpack=true {url} /x/\n"), &[]);
    assert!(matches!(run.code, Some(2 | 4)), "{:?} {}", run.code, run.stderr);
    let (run, _) = build(&engine, "context", &[&url]);
    assert!(matches!(run.code, Some(2 | 4)), "{:?} {}", run.code, run.stderr);
}

/// F1-045.
#[test]
fn the_epoch_may_be_that_of_a_source() {
    let Some(engine) = engine(Who::User) else { return };
    let web = Web::new();
    let url = web.put("/f", "f");
    const ECHO: &str = "FROM scratch AS last\nARG SOURCE_DATE_EPOCH\nCOPY <<EOF /epoch\n$SOURCE_DATE_EPOCH\nEOF\n";
    let repository = web.repository("epoch", &[("Dockerfile", ECHO)], |_| {});
    let stage = format!("ARG SOURCE_DATE_EPOCH=src\nFROM scratch AS src\nADD {url} /\n{ECHO}");
    let out = good(build(&engine, "context", &["--build-arg=SOURCE_DATE_EPOCH=context", &repository]));
    assert_eq!(read(&out.join("epoch")).trim(), COMMIT_SECONDS.to_string());
    let out = good(build_of(&engine, "stage", &stage, &[]));
    assert_eq!(read(&out.join("epoch")).trim(), LAST_MODIFIED_SECONDS.to_string());
    let named = format!("--build-context=r={repository}");
    let out = good(build_of(&engine, "named", ECHO, &["--build-arg=SOURCE_DATE_EPOCH=r", &named]));
    assert_eq!(read(&out.join("epoch")).trim(), COMMIT_SECONDS.to_string());
    let (run, _) = build_of(&engine, "nothing", ECHO, &["--build-arg=SOURCE_DATE_EPOCH=nothing"]);
    assert_eq!(run.code, Some(2), "{}", run.stderr);
}
