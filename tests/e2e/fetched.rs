//! Around sources that are fetched: questions about a Dockerfile that is one, credentials in addresses, keys for
//! repositories, and what is left when a build ends while something is on its way.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use build_engine_testkit::engine::{Engine, Run, Who};
use build_engine_testkit::peers::output;
use build_engine_testkit::registry::Reply;
use build_engine_testkit::{Unavailable, available};

use crate::Bench;
use crate::cancel::{processes, wait_until};
use crate::remote::{COMMIT_SECONDS, Web, build, build_of, engine, good, read};
use crate::secrets::{canary, contains, holders};

/// Runs the engine with `input` on standard input.
fn piped(engine: &Engine, args: &[&str], input: &[u8]) -> Run {
    use std::io::Write as _;
    let mut child =
        engine.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Whoever refuses does not read.
    let _ = child.stdin.take().unwrap().write_all(input);
    Run::from(child.wait_with_output().unwrap())
}

fn tar(dir: &Path, args: &[&str]) -> Vec<u8> {
    Command::new("tar").arg("-C").arg(dir).arg("-c").args(args).output().unwrap().stdout
}

/// F1-011, F1-012, F1-013: the same answers, wherever the Dockerfile comes from.
#[test]
fn questions_are_answered_about_dockerfiles_that_are_fetched() {
    let Some(engine) = engine(Who::User) else { return };
    let web = Web::new();
    let text = "# app is a stage\nFROM scratch as app\n# V is a version\nARG V=1\nCOPY a /a\n";
    let files = [("Dockerfile", text), ("a", "a")];
    let repository = web.repository("asked", &files, |_| {});
    let tree = web.dir.path().join("asked.tree");
    let archive = web.put("/asked.tar", tar(&tree, &["Dockerfile", "a"]));
    let single = web.put("/Dockerfile", text);
    let context = engine.context("asked", &files).unwrap().to_string_lossy().into_owned();
    let ask = |call: &str, args: &[&str]| {
        let call = format!("--call={call}");
        let all: Vec<&str> = ["build", &call].into_iter().chain(args.iter().copied()).collect();
        if args == ["-"] { piped(&engine, &all, &tar(&tree, &["Dockerfile", "a"])) } else { engine.run(all).unwrap() }
    };
    for call in ["check", "outline", "targets", "outline,format=json", "targets,format=json"] {
        let expected = ask(call, &[&context]);
        assert!(matches!(expected.code, Some(0 | 1)), "{call}: {}", expected.stderr);
        assert!(expected.stdout.contains("app") || call == "check", "{}", expected.stdout);
        for args in [&[&*repository][..], &[&archive], &[&single], &["-f", &single, &context], &["-"]] {
            let found = ask(call, args);
            assert_eq!(found.code, expected.code, "{call} {args:?}: {}", found.stderr);
            // The frame of a finding names the file, which has no path here.
            let plain = |text: &str| {
                let named = |line: &&str| !line.contains("ockerfile:2") && !line.contains("context:2");
                text.lines().filter(named).collect::<Vec<_>>().join("\n")
            };
            assert_eq!(plain(&found.stdout), plain(&expected.stdout), "{call} {args:?}");
        }
    }
    for context in [&repository, &archive, &single] {
        let run = engine.run(["validate", context]).unwrap();
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let found = format!("{context}:2");
        assert!(run.stdout.contains(&found) && run.stdout.contains("FromAsCasing"), "{}", run.stdout);
        assert_eq!(engine.run(["validate", "--offline", context]).unwrap().code, Some(2));
    }
    let run = engine.run(["build", "--check", &web.url("/git/nowhere.git")]).unwrap();
    assert_eq!(run.code, Some(3), "{}", run.stderr);
    // The time of a context is asked for as in a build.
    let args = ["build", "--check", "--build-arg=SOURCE_DATE_EPOCH=context", &repository];
    assert_eq!(engine.run(args).unwrap().code, Some(1));
}

/// S08: in no output, history, document or file of the store.
#[test]
fn s08_credentials_in_addresses_are_shown_and_kept_nowhere() {
    for who in [Who::Root, Who::User] {
        let Some(bench) = Bench::new(who) else { continue };
        let engine = &bench.engine;
        let base = format!("--build-context=base=oci-layout://{}:latest", bench.base.display());
        let web = Web::new();
        let token = canary();
        let with_user = |url: &str| url.replace("http://", &format!("http://me:{token}@"));
        let file = with_user(&web.put("/f", "f"));
        let repository =
            with_user(&web.repository("s08", &[("Dockerfile", "FROM scratch\nCOPY a /\n"), ("a", "a")], |_| {}));
        let missing = with_user(&web.url("/missing"));
        let query = format!("{}?token={token}", web.put("/q", "q"));
        let good = format!(
            "FROM base\nADD {file} /f\nADD {query} /q\nADD --keep-git-dir=true {repository} /r\n\
             ARG ADDRESS={file}\nRUN : {file}\nRUN --network=none : $ADDRESS\n"
        );
        let failing = format!("FROM scratch\n\nADD {missing} /f\n");
        let wrong = format!("FROM scratch\nADD --checksum=x {file} /f\n");
        let odd = format!("FROM scratch\nADD {file} {repository}\nENV u={file}\nNONSENSE {file}\n");
        let work = engine.work();
        let archive = format!("--output=type=oci,dest={}", work.join("s08.tar").display());
        let metadata = format!("--metadata-file={}", work.join("s08.json").display());
        let mut runs = Vec::new();
        for (text, code) in [(&good, 0), (&failing, 3), (&wrong, 2), (&odd, 2)] {
            let context = engine.context("s08", &[("Dockerfile", text)]).unwrap();
            let context = context.to_string_lossy();
            for progress in ["plain", "rawjson"] {
                let progress = format!("--progress={progress}");
                let run = engine
                    .run(["build", &progress, &base, "-t", "s08", "--output=type=image", &archive, &metadata, &context])
                    .unwrap();
                assert_eq!(run.code, Some(code), "{who:?} {text}: {}", run.stderr);
                runs.push(run);
            }
            runs.push(engine.run(["build", "--check", &base, &context]).unwrap());
        }
        runs.push(engine.run(["build", "--progress=plain", "-t", "s08-git", &repository]).unwrap());
        runs.push(engine.run(["build", "--progress=plain", &missing]).unwrap());
        runs.push(engine.run(["build", "--progress=plain", &with_user(&web.url("/git/none.git"))]).unwrap());
        runs.push(engine.run(["images", "inspect", "--format=json", "s08"]).unwrap());
        let Run { stdout: history, stderr, .. } = runs.last().unwrap();
        assert!(history.contains("xxxxx:xxxxx@"), "{history} {stderr}");
        let encoded = STANDARD.encode(format!("me:{token}"));
        let needles = [token.as_bytes(), &encoded.as_bytes()[..encoded.len() - 4]];
        for run in &runs {
            for text in [&run.stdout, &run.stderr] {
                assert!(!needles.iter().any(|needle| contains(text.as_bytes(), needle)), "{who:?}: {text}");
            }
        }
        fs::remove_dir_all(work.join("s08")).unwrap();
        let mut found = Vec::new();
        holders(work.parent().unwrap(), &needles, &mut found);
        assert!(found.is_empty(), "{who:?}: {found:?}");
    }
}

/// S1-63, F1-107: a repository over SSH, with a key that is a file. The other end of `ssh` is a script on this machine.
#[test]
fn s1_63_repositories_over_ssh_are_fetched_with_a_key_file() {
    for who in [Who::Root, Who::User] {
        let Some(engine) = engine(who) else { continue };
        let web = Web::new();
        web.repository("ssh", &[("Dockerfile", "FROM scratch\nCOPY a /a\n"), ("a", "a")], |_| {});
        let work = engine.work();
        let (bin, key, log) = (work.join("bin"), work.join("id"), work.join("keys"));
        fs::create_dir_all(&bin).unwrap();
        let mut keygen = Command::new("ssh-keygen");
        let made = output(keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "canary", "-f"]).arg(&key));
        let made = made.map_err(|error| Unavailable(format!("no ssh-keygen: {error:#}")).into());
        if available(made).is_none() {
            return;
        }
        let script = format!(
            "#!/bin/sh\n(echo $SSH_AUTH_SOCK; ssh-add -l; ssh-add -D) >> {} 2>&1\nfor last; do :; done\n\
             export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'\nexec sh -c \"$last\"\n",
            log.display()
        );
        fs::write(bin.join("ssh"), script).unwrap();
        fs::set_permissions(bin.join("ssh"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(web.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for path in [&bin, &key] {
            engine.adopt(path).unwrap();
        }
        let repository = format!("git@localhost:{}/ssh.git", web.dir.path().display());
        let dockerfile = format!("FROM scratch\nADD {repository} /r\n");
        let context = engine.context("ssh", &[("Dockerfile", &dockerfile)]).unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        let given = format!("--ssh=default={}", key.display());
        for (source, file) in [(context.to_string_lossy().into_owned(), "r/a"), (repository, "a")] {
            let dest = work.join("ssh-out");
            let out = format!("--output={}", dest.display());
            let mut command = engine.command(["build", "--progress=plain", &given, &out, &source]);
            let run = Run::from(command.env("PATH", &path).output().unwrap());
            assert_eq!(run.code, Some(0), "{who:?} {source}: {}", run.stderr);
            assert_eq!(read(&dest.join(file)), "a");
        }
        let said = read(&log);
        assert!(said.contains("canary (ED25519)") && !said.contains("All identities removed"), "{said}");
        let socket = Path::new(said.lines().next().unwrap());
        assert!(!socket.exists() && !socket.parent().unwrap().exists(), "{}", socket.display());
        assert_eq!(fs::read_dir(engine.tmp()).unwrap().count(), 0, "a file was left behind");
    }
}

/// F1-045: the newest file of an archive says when it was made.
#[test]
fn the_epoch_of_an_archive_is_that_of_its_newest_file() {
    let Some(engine) = engine(Who::User) else { return };
    let web = Web::new();
    let dir = tempfile::tempdir().unwrap();
    const ECHO: &str = "FROM scratch\nARG SOURCE_DATE_EPOCH\nCOPY <<EOF /epoch\n$SOURCE_DATE_EPOCH\nEOF\n";
    for (path, content, date) in
        [("Dockerfile", ECHO, "@1000000000"), ("old", "", "@5"), ("d/new", "", "@1234567890"), ("d", "", "@1500000000")]
    {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if !path.is_dir() {
            fs::write(&path, content).unwrap();
        }
        output(Command::new("touch").args(["-d", date]).arg(&path)).unwrap();
    }
    let archive = tar(dir.path(), &["Dockerfile", "old", "d"]);
    let arg = "--build-arg=SOURCE_DATE_EPOCH=context";
    let dest = engine.work().join("epoch-out");
    let out = format!("--output={}", dest.display());
    let run = piped(&engine, &["build", arg, &out, "-"], &archive);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(read(&dest.join("epoch")).trim(), "1234567890");
    // A server that says when goes before what is in the archive.
    let url = web.put("/epoch.tar", archive.clone());
    let out = good(build(&engine, "epoch-url", &[arg, &url]));
    assert_eq!(read(&out.join("epoch")).trim(), crate::remote::LAST_MODIFIED_SECONDS.to_string());
    web.server.on(move |request| {
        request.path.ends_with("silent.tar").then(|| Reply::ok("application/x-tar", archive.clone()))
    });
    let out = good(build(&engine, "epoch-silent", &[arg, &web.url("/silent.tar")]));
    assert_eq!(read(&out.join("epoch")).trim(), "1234567890");
}

/// F1-106: the directory that a repository becomes is as new as its checkout, or as its commit; never of 1970.
#[test]
fn the_root_of_what_is_fetched_has_a_time() {
    let Some(engine) = engine(Who::User) else { return };
    let web = Web::new();
    let url = web.repository("root", &[("Dockerfile", "FROM scratch\nCOPY . /x\n"), ("a", "a")], |_| {});
    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let dockerfile = format!(
        "FROM scratch AS s\nADD {url} /r\nADD {url}?mtime=commit /c\nFROM scratch\nCOPY --from=s / /s\n\
         COPY --from=s /r /r\nCOPY --from=s /c /c\n"
    );
    let out = good(build_of(&engine, "root", &dockerfile, &[]));
    let time = |path: &Path| path.metadata().unwrap().mtime();
    for path in ["r", "s"] {
        assert!(time(&out.join(path)) >= began, "{path} is of {}", time(&out.join(path)));
    }
    assert_eq!(time(&out.join("c")), COMMIT_SECONDS);
    let tree = web.dir.path().join("root.tree");
    let archive = web.put("/root.tar", tar(&tree, &["Dockerfile", "a"]));
    for (name, context) in [("root-git", &url), ("root-tar", &archive)] {
        let out = good(build(&engine, name, &[context]));
        assert!(time(&out.join("x")) >= began, "{name}");
    }
}

/// F1-070: so is a build context that a step sees.
#[test]
fn the_root_of_a_mounted_context_has_a_time() {
    let Some(bench) = Bench::new(Who::User) else { return };
    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let dockerfile = format!("FROM base\nRUN --mount=type=bind,target=/m test $(stat -c %Y /m) -ge {began}\n");
    let run = bench.build("mounted", &[("Dockerfile", &dockerfile)], &[]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
}

/// A build that ends takes what it fetches with it: programs, connections, files.
#[test]
fn what_is_on_its_way_ends_with_the_build() {
    for who in [Who::Root, Who::User] {
        let Some(engine) = engine(who) else { continue };
        let web = Web::new();
        web.server.on(|request| request.path.contains("slow").then(Reply::stall));
        for (name, url) in [("slow-file", web.url("/slow")), ("slow-git", web.url("/git/slow.git"))] {
            let context = engine.context(name, &[("Dockerfile", &format!("FROM scratch\nADD {url} /x\n"))]).unwrap();
            let mut command = engine.command(["build".as_ref(), context.as_os_str()]);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            web.server.forget_requests();
            web.server.wait_for("the request", |requests| requests.iter().any(|it| it.path.contains("slow")));
            let began = Instant::now();
            output(Command::new("kill").args(["-s", "INT", &child.id().to_string()])).unwrap();
            wait_until("the build ends", Duration::from_secs(10), || child.try_wait().unwrap().is_some());
            assert!(began.elapsed() < Duration::from_secs(2), "{name}: it took {:?}", began.elapsed());
            assert_eq!(child.wait().unwrap().code(), Some(130));
            wait_until("git is gone", Duration::from_secs(1), || {
                processes(Some(&web.url("/git/slow")), None).is_empty()
            });
            assert_eq!(fs::read_dir(engine.tmp()).unwrap().count(), 0, "a file was left behind");
            for unfinished in ["ingest", "work"] {
                let left = fs::read_dir(engine.store().join(unfinished)).into_iter().flatten().count();
                assert_eq!(left, 0, "{name}: unfinished work is left in the store");
            }
        }
    }
}

/// R12: large files stay pointers, and hooks are not run: neither the repository's, nor those that the user's own settings
/// would bring.
#[test]
fn r12_large_files_and_hooks_start_no_program() {
    const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    let Some(engine) = engine(Who::User) else { return };
    let web = Web::new();
    let work = engine.work();
    let (canary, bin, home) = (work.join("canary"), work.join("bin"), work.join("home"));
    let script = format!("#!/bin/sh\necho \"$0 $@\" >> {}\n", canary.display());
    let executable = |path: &Path| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &script).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let hooks = ["post-checkout", "post-merge", "reference-transaction", "post-index-change", "fsmonitor-watchman"];
    for hook in hooks {
        executable(&home.join("template/hooks").join(hook));
    }
    for program in ["git-lfs", "git-credential-canary"] {
        executable(&bin.join(program));
    }
    let filter = "[filter \"lfs\"]\n\tsmudge = git-lfs smudge\n\tprocess = git-lfs filter-process\n\trequired = true\n";
    let config = format!(
        "{filter}[init]\n\ttemplateDir = {0}/template\n[core]\n\thooksPath = {0}/template/hooks\n\tfsmonitor = git-lfs\n\
         [credential]\n\thelper = canary\n",
        home.display()
    );
    fs::write(home.join(".gitconfig"), &config).unwrap();
    let attributes = "*.bin filter=lfs diff=lfs merge=lfs -text\n";
    let repository = web.repository("lfs", &[(".gitattributes", attributes), ("a.bin", POINTER)], |tree| {
        for hook in hooks {
            executable(&tree.join("hooks").join(hook));
            executable(&tree.join(".githooks").join(hook));
        }
        fs::write(tree.join("config"), format!("[core]\n\thooksPath = hooks\n{filter}")).unwrap();
    });
    for path in [&bin, &home] {
        engine.adopt(path).unwrap();
    }
    let dest = work.join("lfs-out");
    let dockerfile = format!("FROM scratch\nADD {repository} /r\nADD --keep-git-dir=true {repository} /k\n");
    let context = engine.context("lfs", &[("Dockerfile", &dockerfile)]).unwrap();
    let out = format!("--output={}", dest.display());
    let mut command = engine.command(["build", "--progress=plain", &out, &context.to_string_lossy()]);
    command.env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default()));
    command
        .env("HOME", &home)
        .env("GIT_TEMPLATE_DIR", home.join("template"))
        .env("GIT_CONFIG_GLOBAL", home.join(".gitconfig"));
    command
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "core.hooksPath")
        .env("GIT_CONFIG_VALUE_0", home.join("template/hooks"));
    let run = Run::from(command.output().unwrap());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(!canary.exists(), "{}", read(&canary));
    assert_eq!(read(&dest.join("r/a.bin")), POINTER);
    assert!(fs::read_dir(dest.join("k/.git/hooks")).map_or(0, Iterator::count) == 0);
}

/// F1-102: a file that a server keeps gzipped is what it was before, as for BuildKit; any other encoding is left alone.
#[test]
fn files_that_are_sent_gzipped_are_unpacked() {
    use std::io::Write as _;
    let Some(engine) = engine(Who::User) else { return };
    let web = Web::new();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(b"plain").unwrap();
    let packed = encoder.finish().unwrap();
    let sent = packed.clone();
    web.server.on(move |request| {
        let (body, encoding) = match &*request.path {
            "/gzip" => (sent.clone(), "gzip"),
            "/br" => (b"br".to_vec(), "br"),
            "/cut" => (sent[..sent.len() - 4].to_vec(), "gzip"),
            _ => return None,
        };
        Some(Reply::ok("text/plain", body).header("Content-Encoding", encoding))
    });
    let sum = build_engine_testkit::sha256(b"plain");
    let (url, other) = (web.url("/gzip"), web.url("/br"));
    let dockerfile = format!("FROM scratch\nADD --checksum=sha256:{sum} {url} /a\nADD {url} /b\nADD {other} /c\n");
    let out = good(build_of(&engine, "gzip", &dockerfile, &[]));
    for (file, content) in [("a", "plain"), ("b", "plain"), ("c", "br")] {
        assert_eq!(read(&out.join(file)), content);
    }
    let (run, _) = build_of(&engine, "cut", &format!("FROM scratch\nADD {} /a\n", web.url("/cut")), &[]);
    assert_eq!(run.code, Some(3), "{}", run.stderr);
}
