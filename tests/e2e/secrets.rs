//! Secrets and agents: given to the step that asks, and found nowhere else (S01 to S10, F1-073, F1-074, F2-045, F2-046).

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use build_engine_testkit::engine::Who;
use build_engine_testkit::peers::output;
use build_engine_testkit::{Unavailable, available};

use crate::Bench;

const WHO: [Who; 3] = [Who::Root, Who::User, Who::OneUid];

/// 32 bytes that are nowhere else.
pub(crate) fn canary() -> String {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a file that the engine's user may read.
fn private_file(bench: &Bench, name: &str, content: &str) -> PathBuf {
    let path = bench.engine.work().join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    bench.engine.adopt(&path).unwrap();
    path
}

fn secret_flag(path: &Path) -> String {
    format!("--secret=id=token,src={}", path.display())
}

/// Everything below `dir` that contains one of `needles`: as it is, or unpacked.
pub(crate) fn holders(dir: &Path, needles: &[&[u8]], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            holders(&path, needles, found);
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap_or_default();
            let mut unpacked = Vec::new();
            if bytes.starts_with(&[0x1f, 0x8b]) {
                let _ = flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut unpacked);
            } else if bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
                unpacked = zstd::decode_all(&bytes[..]).unwrap_or_default();
            }
            if needles.iter().any(|needle| contains(&bytes, needle) || contains(&unpacked, needle)) {
                found.push(path);
            }
        }
    }
}

pub(crate) fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(bytes, needle).is_some()
}

/// Looks into the arguments and environments of all processes until it is stopped.
struct Prober {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<String>>,
}

impl Prober {
    fn start(needle: &str) -> Self {
        let (stop, needle) = (Arc::new(AtomicBool::new(false)), needle.to_owned());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut found = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                for process in fs::read_dir("/proc").unwrap().flatten() {
                    for name in ["cmdline", "environ"] {
                        let path = process.path().join(name);
                        if contains(&fs::read(&path).unwrap_or_default(), needle.as_bytes()) {
                            found.push(path.display().to_string());
                        }
                    }
                }
            }
            found
        });
        Self { stop, thread }
    }

    fn found(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

const ECHOES: &str = r#"FROM base
RUN --mount=type=secret,id=token cat /run/secrets/token; cat /run/secrets/token >&2
RUN --mount=type=secret,id=token base64 /run/secrets/token; (echo -n user:; cat /run/secrets/token) | base64 -w0
RUN --mount=type=secret,id=token T=$(cat /run/secrets/token); a=${T%????????????????}; printf %s $a; sleep 0.2; echo ${T#$a}
RUN --mount=type=secret,id=token printf '{"t":"%s"}\n' $(cat /run/secrets/token); od -An -v -tx1 /run/secrets/token | tr -d ' \n'
RUN --mount=type=secret,id=token,target=/t cp /t /dev/shm/t && stat -c %a /t && rm /dev/shm/t && sleep 0.3
"#;

/// S01, S04, S08, S10, and the canary of G2.
#[test]
fn s01_s04_a_secret_is_in_no_output_file_or_process() {
    for who in WHO {
        let Some(bench) = Bench::new(who) else { continue };
        let token = canary();
        let file = private_file(&bench, "token", &format!("{token}\n"));
        let encoded = STANDARD.encode(&token);
        let shifted = STANDARD.encode(format!("user:{token}"));
        let hex: String = token.bytes().map(|byte| format!("{byte:02x}")).collect();
        let needles: Vec<&[u8]> = vec![
            token.as_bytes(),
            &encoded.as_bytes()[..encoded.len() - 4],
            &shifted.as_bytes()[8..shifted.len() - 4],
            hex.as_bytes(),
        ];
        let failing = format!("{ECHOES}RUN --mount=type=secret,id=token cat /run/secrets/token && exit 3\n");
        let mut outputs = Vec::new();
        let prober = Prober::start(&token);
        for (progress, dockerfile, code) in
            [("plain", ECHOES, 0), ("rawjson", ECHOES, 0), ("plain", &failing, 1), ("rawjson", &failing, 1)]
        {
            let progress = format!("--progress={progress}");
            let archive = format!("--output=type=oci,dest={}", bench.engine.work().join("out.tar").display());
            let args =
                [&secret_flag(&file), progress.as_str(), "--no-cache", "--tag=canary", "--output=type=image", &archive];
            let run = bench.build("canary", &[("Dockerfile", dockerfile)], &args);
            assert_eq!(run.code, Some(code), "{who:?}: {}", run.stderr);
            assert!(run.stderr.contains("***") || progress.contains("rawjson"), "{}", run.stderr);
            outputs.push(run);
        }
        let processes = prober.found();
        assert!(processes.is_empty(), "{who:?}: {processes:?}");
        for run in &outputs {
            for text in [&run.stdout, &run.stderr] {
                let mut text = text.clone().into_bytes();
                // Bytes of logs are base64 in the JSON form.
                for line in String::from_utf8_lossy(&text.clone()).lines() {
                    let Ok(value) = serde_json::from_str::<serde_json::Value>(line) else { continue };
                    for log in value["logs"].as_array().into_iter().flatten() {
                        text.extend(STANDARD.decode(log["data"].as_str().unwrap_or_default()).unwrap());
                    }
                }
                for needle in &needles {
                    assert!(!contains(&text, needle), "{who:?}: {}", String::from_utf8_lossy(&text));
                }
            }
        }
        fs::remove_file(&file).unwrap();
        let mut found = Vec::new();
        let dir = bench.engine.work();
        holders(dir.parent().unwrap(), &needles, &mut found);
        assert!(found.is_empty(), "{who:?}: {found:?}");
    }
}

/// S04: a variable that a secret comes from is in the environment of the process that was given it, and in no other.
#[test]
fn s04_a_variable_stays_with_the_process_that_was_given_it() {
    for who in WHO {
        let Some(bench) = Bench::new(who) else { continue };
        let token = canary();
        let dockerfile = "FROM base\nRUN --mount=type=secret,id=TOKEN test -s /run/secrets/TOKEN; echo on; sleep 2\n";
        let context = bench.engine.context("variable", &[("Dockerfile", dockerfile)]).unwrap();
        let log = bench.engine.work().join("log");
        let mut command = bench.engine.command(bench.args(&context, &["--secret=id=TOKEN"]));
        let mut child = command.env("TOKEN", &token).stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
        while !fs::read_to_string(&log).unwrap().lines().any(|line| line.ends_with(" on")) {
            assert!(child.try_wait().unwrap().is_none(), "{who:?}: {}", fs::read_to_string(&log).unwrap());
            std::thread::yield_now();
        }
        let mut found = Vec::new();
        for process in fs::read_dir("/proc").unwrap().flatten() {
            if contains(&fs::read(process.path().join("environ")).unwrap_or_default(), token.as_bytes()) {
                found.push(process.file_name().to_string_lossy().into_owned());
            }
        }
        assert_eq!(found, [child.id().to_string()], "{who:?}");
        assert!(child.wait().unwrap().success(), "{who:?}: {}", fs::read_to_string(&log).unwrap());
    }
}

/// S02.
#[test]
fn s02_a_secret_in_the_layer_is_an_error_unless_it_is_permitted() {
    for who in WHO {
        let Some(bench) = Bench::new(who) else { continue };
        let file = private_file(&bench, "token", &canary());
        let copied = "FROM base\nRUN --mount=type=secret,id=token mkdir /d && cp /run/secrets/token /d/copy\n";
        let packed = "FROM base\nRUN --mount=type=secret,id=token tar -czf /a.tgz -C /run/secrets token\n";
        let variable = "FROM base\nRUN --mount=type=secret,id=token,env=T echo $T > /var-copy\n";
        for (dockerfile, path) in [(copied, "/d/copy"), (packed, "/a.tgz"), (variable, "/var-copy")] {
            let files = [("Dockerfile", dockerfile)];
            let run = bench.build("leak", &files, &[&secret_flag(&file)]);
            assert_eq!(run.code, Some(7), "{who:?}: {}", run.stderr);
            for part in [path, "token", "Dockerfile:2", "--allow secret.in-layer"] {
                assert!(run.stderr.contains(part), "{who:?}: no `{part}`: {}", run.stderr);
            }
            let run = bench.build("leak", &files, &[&secret_flag(&file), "--allow=secret.in-layer"]);
            assert_eq!(run.code, Some(0), "{who:?}: {}", run.stderr);
            assert!(run.stderr.contains(path), "{who:?}: {}", run.stderr);
            // What was permitted once is not taken from the cache where it is not.
            let run = bench.build("leak", &files, &[&secret_flag(&file)]);
            assert_eq!(run.code, Some(7), "{who:?}: {}", run.stderr);
        }
    }
}

/// S05: another value, or none any more, is the same step.
#[test]
fn s05_the_value_of_a_secret_decides_nothing_about_the_cache() {
    let Some(bench) = Bench::new(Who::User) else { return };
    let dockerfile =
        "FROM base\nRUN --mount=type=secret,id=token,env=T --mount=type=secret,id=token date +%N > /when\n";
    let mut digests = Vec::new();
    for value in ["first-value", "second-value"] {
        let file = private_file(&bench, "token", value);
        let run = bench.build("cached", &[("Dockerfile", dockerfile)], &[&secret_flag(&file), "--quiet"]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        digests.push(run.stdout);
    }
    assert_eq!(digests[0], digests[1]);
}

/// S06: what a sibling sees, and what is left when everything is killed.
#[test]
fn s06_siblings_see_no_secret_and_nothing_is_left_after_a_kill() {
    for who in WHO {
        let Some(bench) = Bench::new(who) else { continue };
        let token = canary();
        let file = private_file(&bench, "token", &token);
        let dockerfile = "FROM base AS a\n\
            RUN --mount=type=secret,id=token sleep 1; echo a > /a\n\
            FROM base AS b\n\
            RUN sleep 0.4; ls -A /run > /seen; cat /proc/[0-9]*/root/run/secrets/token >> /seen 2>/dev/null; true\n\
            FROM scratch\nCOPY --from=a /a /\nCOPY --from=b /seen /\n";
        let out = bench.engine.work().join("seen");
        let output = format!("--output={}", out.display());
        let run = bench.build("siblings", &[("Dockerfile", dockerfile)], &[&secret_flag(&file), &output]);
        assert_eq!(run.code, Some(0), "{who:?}: {}", run.stderr);
        assert_eq!(fs::read_to_string(out.join("seen")).unwrap(), "", "{who:?}");

        let context = bench
            .engine
            .context(
                "killed",
                &[("Dockerfile", "FROM base\nRUN --mount=type=secret,id=token --mount=type=ssh echo on; sleep 60\n")],
            )
            .unwrap();
        let agent = Agent::start(&bench);
        let ssh = agent.as_ref().map(|agent| format!("--ssh=default={}", agent.socket.display()));
        let flag = secret_flag(&file);
        let args: Vec<&str> = [flag.as_str()].into_iter().chain(ssh.as_deref()).collect();
        let log = bench.engine.work().join("log");
        let mut child =
            bench.engine.command(bench.args(&context, &args)).stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
        while !fs::read_to_string(&log).unwrap().lines().any(|line| line.ends_with(" on")) {
            assert!(child.try_wait().unwrap().is_none(), "{who:?}: {}", fs::read_to_string(&log).unwrap());
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        fs::remove_file(&file).unwrap();
        let mut found = Vec::new();
        holders(bench.engine.work().parent().unwrap(), &[token.as_bytes()], &mut found);
        assert!(found.is_empty(), "{who:?}: {found:?}");
        // The next start removes the unfinished layer, with the socket in it.
        bench.verify_store();
    }
}

/// An agent of the machine's own, with one key.
struct Agent {
    child: Child,
    socket: PathBuf,
    key: PathBuf,
}

impl Agent {
    /// `None`, after saying so, where the machine has no OpenSSH.
    fn start(bench: &Bench) -> Option<Agent> {
        let (socket, key) = (bench.engine.work().join("agent"), bench.engine.work().join("id"));
        let _ = fs::remove_file(&key);
        let mut keygen = Command::new("ssh-keygen");
        let made = output(keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "canary", "-f"]).arg(&key));
        available(made.map_err(|error| Unavailable(format!("no ssh-keygen: {error:#}")).into()))?;
        let child =
            Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(std::process::Stdio::null()).spawn();
        let agent = Agent { child: child.unwrap(), socket, key };
        while !agent.socket.exists() {
            std::thread::yield_now();
        }
        output(Command::new("ssh-add").arg("-q").arg(&agent.key).env("SSH_AUTH_SOCK", &agent.socket)).unwrap();
        // OpenSSH's agent serves its own user and root; the engine's user reaches it where both are the same.
        bench.engine.adopt(&agent.key).unwrap();
        Some(agent)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `ssh-add` and `ssh-keygen` of this machine with their libraries, as files of a context.
fn openssh(context: &Path) -> Option<()> {
    for program in ["/usr/bin/ssh-add", "/usr/bin/ssh-keygen"] {
        let listed = output(Command::new("ldd").arg(program)).ok()?;
        let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
        for path in libraries.chain([program]) {
            let target = context.join("tools").join(path.trim_start_matches('/'));
            fs::create_dir_all(target.parent()?).ok()?;
            fs::copy(path, target).ok()?;
        }
    }
    Some(())
}

/// F1-074, S07, S1-36: `ssh-add` and `ssh-keygen` in a step, with an agent and with a key file.
#[test]
fn s07_a_step_lists_keys_and_signs_and_can_do_nothing_else() {
    for who in WHO {
        let Some(bench) = Bench::new(who) else { continue };
        let Some(agent) = Agent::start(&bench) else { return };
        let public = fs::read_to_string(agent.key.with_extension("pub")).unwrap();
        let dockerfile = "FROM base\n\
            COPY tools /\n\
            COPY id.pub /id.pub\n\
            RUN echo root:x:0:0::/root:/bin/sh > /etc/passwd; mkdir -p /root; echo data > /data\n\
            RUN --mount=type=ssh stat -c '%a %u %g' $SSH_AUTH_SOCK; ssh-add -l && ssh-add -L; \
                ssh-add -D && echo deleted; ssh-add -x </dev/null && echo locked; ssh-add -l\n\
            RUN --mount=type=ssh,target=/deep/sock,mode=0666 ssh-keygen -q -Y sign -f /id.pub -n test /data && ls /data.sig\n\
            RUN test ! -e /run/buildkit && test ! -e /deep\n";
        let context = bench.engine.context("ssh", &[("Dockerfile", dockerfile), ("id.pub", &public)]).unwrap();
        let tools =
            openssh(&context).ok_or_else(|| Unavailable("OpenSSH of this machine cannot be copied".into()).into());
        if available(tools).is_none() {
            return;
        }
        bench.engine.adopt(&context).unwrap();
        // The agent serves root's processes and those of its own user, which is root here.
        let sources: &[&Path] = if who == Who::Root { &[&agent.socket, &agent.key] } else { &[&agent.key] };
        for source in sources {
            let out = format!("--output={}", bench.engine.work().join("ssh-out").display());
            let flag = format!("--ssh=default={}", source.display());
            let run = bench.engine.run(bench.args(&context, &["--no-cache", &flag, &out])).unwrap();
            assert_eq!(run.code, Some(0), "{who:?}: {}", run.stderr);
            for part in ["600 0 0", "256 SHA256:", "(ED25519)", public.split(' ').nth(1).unwrap(), "/data.sig"] {
                assert!(run.stderr.contains(part), "{who:?}: no `{part}`: {}", run.stderr);
            }
            for line in ["deleted", "locked"] {
                let said = run.stderr.lines().any(|text| text.ends_with(&format!(" {line}")));
                assert!(!said, "{who:?}: {}", run.stderr);
            }
            // The signature is good, by the judgement of OpenSSH outside.
            let (work, signature) = (bench.engine.work(), bench.engine.work().join("ssh-out/data.sig"));
            fs::write(work.join("allowed"), format!("me {public}")).unwrap();
            let mut verify = Command::new("ssh-keygen");
            verify
                .args(["-Y", "verify", "-I", "me", "-n", "test", "-f"])
                .arg(work.join("allowed"))
                .arg("-s")
                .arg(signature);
            output(verify.stdin(fs::File::open(work.join("ssh-out/data")).unwrap())).unwrap();
        }
        // The private key is in no file but its own.
        let text = fs::read_to_string(&agent.key).unwrap();
        let line = text.lines().nth(2).unwrap().to_owned();
        fs::remove_file(&agent.key).unwrap();
        let mut found = Vec::new();
        holders(bench.engine.work().parent().unwrap(), &[line.as_bytes()], &mut found);
        assert!(found.is_empty(), "{who:?}: {found:?}");
    }
}

/// What is wrong with a secret or agent is named before the build starts.
#[test]
fn f2_046_what_cannot_be_given_is_named_before_the_build_starts() {
    let Some(bench) = Bench::new(Who::User) else { return };
    for (arg, part) in [
        ("--secret=id=a,src=/no/such/file", "/no/such/file"),
        ("--secret=src=/etc/hostname", "id"),
        ("--ssh=default=/no/such/socket", "/no/such/socket"),
        ("--ssh=default", "SSH_AUTH_SOCK"),
        ("--allow=everything", "network.host"),
    ] {
        let run = bench.build("bad", &[("Dockerfile", "FROM base\nRUN true\n")], &[arg]);
        assert_eq!(run.code, Some(2), "{arg}: {}", run.stderr);
        assert!(run.stderr.contains(part) && !run.stderr.contains("[1/"), "{arg}: {}", run.stderr);
    }
}

/// Values that are too short to be told from other text are let through, and that is said.
#[test]
fn s01_a_short_secret_is_not_masked_and_that_is_said_once() {
    let Some(bench) = Bench::new(Who::User) else { return };
    let file = private_file(&bench, "token", "abc\n");
    let dockerfile = "FROM base\nRUN --mount=type=secret,id=token cat /run/secrets/token\n\
        RUN --mount=type=secret,id=token,target=/t cat /t\n";
    let run = bench.build("short", &[("Dockerfile", dockerfile)], &[&secret_flag(&file)]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stderr.contains("fewer than 4 bytes") && !run.stderr.contains("***"), "{}", run.stderr);
}
