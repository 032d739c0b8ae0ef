//! Steps, run for real: as root and as an ordinary user, through worker and helper as the product does.
//!
//! This program is all of them: without arguments the test driver, with `worker` the worker that runs the cases, and
//! with the sandbox's own argument the helper. The root file system is busybox.
//!
//! Cases are named after rows of the security plan (I01 … I08) where they cover one.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::type_complexity)] // a test, though not one of the harness

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use build_engine_sandbox::worker::{self, Entered, Mode, Options};
use build_engine_sandbox::{
    Confinement, Exit, ExitStatus, HELPER_ARG, Launcher, Limits, Mount, MountSource, Network, Root, SandboxError, Step,
    StepFds, StepSpec, Ulimit, helper_main,
};

const BUSYBOX: &str = "/bin/busybox";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some(HELPER_ARG) => helper_main(),
        Some("worker") => worker_main(&args[2..]),
        // What nextest asks a test program: what there is, and to run it by that name.
        Some("--list") => {
            if !args.iter().any(|arg| arg == "--ignored") {
                println!("privileged_steps: test");
            }
            ExitCode::SUCCESS
        }
        Some("privileged_steps") => drive(""),
        _ => drive(args.get(1).map_or("", |filter| if filter.starts_with('-') { "" } else { filter })),
    }
}

/// Runs the cases once for each kind of user that this machine has.
fn drive(filter: &str) -> ExitCode {
    if !Path::new(BUSYBOX).exists() {
        println!("SKIPPED: privileged_steps: {BUSYBOX} is missing (package busybox-static)");
        return ExitCode::SUCCESS;
    }
    let root = rustix::process::geteuid().is_root();
    let mut runs: Vec<(&str, Option<(u32, u32)>, &[&str])> = Vec::new();
    if root {
        runs.push(("root", None, &[]));
        runs.push(("root with the host's user namespace", None, &["host"]));
        match user_with_subordinate_ids() {
            Some(ids) => {
                runs.push(("user", Some(ids), &[]));
                runs.push(("user with one id", Some(ids), &["one"]));
            }
            None => {
                println!("SKIPPED: privileged_steps as an ordinary user: no user has subordinate ids (/etc/subuid)");
                runs.push(("nobody with one id", Some((65534, 65534)), &["one"]));
            }
        }
    } else {
        println!("SKIPPED: privileged_steps as root: not root");
        runs.push(("user", None, &[]));
        runs.push(("user with one id", None, &["one"]));
    }
    let mut failed = false;
    for (name, ids, flags) in runs {
        let base = tempfile::tempdir().unwrap();
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let program = base.path().join("steps");
        fs::copy("/proc/self/exe", &program).unwrap();
        let store = base.path().join("store");
        fs::create_dir(&store).unwrap();
        let mut command = Command::new(&program);
        command.arg("worker").arg(&store).arg(filter).args(flags);
        if let Some((uid, gid)) = ids {
            std::os::unix::fs::chown(&store, Some(uid), Some(gid)).unwrap();
            command.uid(uid).gid(gid);
        }
        println!("--- as {name}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let groups = control_groups();
        let status = command.status().unwrap();
        failed |= !status.success();
        if !status.success() {
            println!("FAILED as {name}: {status}");
        }
        if fs::read_to_string("/proc/self/mountinfo").unwrap() != mounts {
            println!("FAILED as {name}: mounts are left");
            failed = true;
        }
        if control_groups() != groups {
            println!("FAILED as {name}: control groups are left: {:?}", control_groups());
            failed = true;
        }
        let left = processes_of(&program, &fs::read_to_string(store.join("pid namespace")).unwrap_or_default());
        if !left.is_empty() {
            println!("FAILED as {name}: processes are left: {left:?}");
            failed = true;
        }
    }
    ExitCode::from(u8::from(failed))
}

fn user_with_subordinate_ids() -> Option<(u32, u32)> {
    let subuid = fs::read_to_string("/etc/subuid").ok()?;
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    subuid.lines().find_map(|line| {
        let name = line.split(':').next()?;
        let entry = passwd.lines().find(|l| l.split(':').next() == Some(name))?;
        let mut fields = entry.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}

fn control_groups() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut stack = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = stack.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                if entry.file_name().to_string_lossy().starts_with("build-engine-") {
                    found.push(entry.path());
                }
                stack.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// Processes whose executable is `program`, and all of the worker's pid namespace: helpers, and what they started.
fn processes_of(program: &Path, namespace: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid.parse::<u32>().is_err() || pid == std::process::id().to_string() {
            continue;
        }
        let link = |name: &str| fs::read_link(entry.path().join(name)).unwrap_or_default();
        if link("exe").starts_with(program.parent().unwrap())
            || (link("ns/pid").to_str() == Some(namespace) && !namespace.is_empty())
        {
            found.push(pid);
        }
    }
    found
}

struct Lab {
    entered: Entered,
    launcher: Launcher,
    store: PathBuf,
    next: std::cell::Cell<u32>,
}

/// One finished step.
struct Ran {
    exit: Result<Exit, SandboxError>,
    out: String,
    err: String,
    upper: PathBuf,
}

impl Ran {
    #[track_caller]
    fn ok(&self) -> &str {
        match &self.exit {
            Ok(exit) if exit.status == ExitStatus::Code(0) => self.out.trim_end(),
            other => panic!("{other:?}\nstdout: {}\nstderr: {}", self.out, self.err),
        }
    }

    #[track_caller]
    fn exit(&self) -> &Exit {
        self.exit.as_ref().unwrap_or_else(|e| panic!("{e}: {:?}", std::error::Error::source(e)))
    }
}

fn open(path: &Path) -> OwnedFd {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap()
}

fn spec(script: &str) -> StepSpec {
    StepSpec {
        args: vec!["/bin/sh".into(), "-c".into(), script.into()],
        root: Root::Overlay { upper: "fs".into(), work: "work".into() },
        network: Network::None,
        ..StepSpec::default()
    }
}

impl Lab {
    fn layer(&self, name: &str) -> PathBuf {
        let path = self.store.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn active(&self) -> PathBuf {
        let n = self.next.get();
        self.next.set(n + 1);
        let active = self.layer(&format!("active{n}"));
        fs::create_dir(active.join("fs")).unwrap();
        fs::create_dir(active.join("work")).unwrap();
        active
    }

    fn start(&self, spec: &StepSpec, lower: &[&Path], binds: &[&Path]) -> (Result<Step, SandboxError>, PathBuf) {
        let active = self.active();
        let fds = StepFds {
            lower: lower.iter().map(|p| open(p)).collect(),
            active: Some(open(&active)),
            binds: binds.iter().map(|p| open(p)).collect(),
            emulator: None,
        };
        (self.launcher.spawn(spec, &fds), active.join("fs"))
    }

    fn run_on(&self, spec: &StepSpec, lower: &[&Path], binds: &[&Path]) -> Ran {
        let (step, upper) = self.start(spec, lower, binds);
        let mut step = match step {
            Ok(step) => step,
            Err(e) => return Ran { exit: Err(e), out: String::new(), err: String::new(), upper },
        };
        let stderr = step.stderr.take().unwrap();
        let stdout = step.stdout.take().unwrap();
        let err = std::thread::spawn(move || read_all(stderr));
        let out = read_all(stdout);
        let err = err.join().unwrap();
        Ran { exit: step.wait(), out, err, upper }
    }

    fn run(&self, spec: &StepSpec) -> Ran {
        self.run_on(spec, &[&self.store.join("base")], &[])
    }

    fn sh(&self, script: &str) -> Ran {
        self.run(&spec(script))
    }

    /// Runs a script in a private network; `None`, with a message, where there is none on this machine.
    fn private(&self, script: &str) -> Option<Ran> {
        let ran = self.run(&StepSpec { network: Network::Default, ..spec(script) });
        let exit = ran.exit();
        if exit.network == Network::Host {
            println!("SKIPPED: private network: {:?}", exit.notes);
            return None;
        }
        Some(ran)
    }

    /// Whether steps have no user namespace of their own.
    fn shares_userns(&self) -> bool {
        self.entered.mode == Mode::Root && self.entered.template_userns.is_none()
    }

    fn one_uid(&self) -> bool {
        self.entered.mode == Mode::OneUid
    }
}

/// Prints the namespaces that a step enters.
const NAMESPACES: &str = "for n in user net; do readlink /proc/self/ns/$n; done";

/// Waits until something listens at port 8080.
const LISTENING: &str = "until grep -q ':1F90 .* 0A ' /proc/net/tcp /proc/net/tcp6; do :; done";

/// Live processes of the worker's pid namespace whose name starts with `name`.
fn count_of(name: &str) -> usize {
    let named = |pid: &Path| {
        let status = fs::read_to_string(pid.join("status")).unwrap_or_default();
        status.starts_with(&format!("Name:\t{name}")) && !status.contains("State:\tZ")
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter(|e| e.file_name().to_string_lossy().parse::<u32>().is_ok() && named(&e.path())).count()
}

/// Whether no more than `most` processes of this name are left within five seconds.
fn sinks(name: &str, most: usize) -> bool {
    let began = Instant::now();
    while count_of(name) > most {
        if began.elapsed().as_secs() >= 5 {
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    true
}

fn read_all(fd: OwnedFd) -> String {
    let mut bytes = Vec::new();
    fs::File::from(fd).read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A root file system of busybox, with some accounts.
fn make_base(base: &Path) {
    for directory in ["bin", "etc", "tmp", "work dir", "home/app", "proc", "sys", "dev"] {
        fs::create_dir_all(base.join(directory)).unwrap();
    }
    fs::set_permissions(base.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::copy(BUSYBOX, base.join("bin/busybox")).unwrap();
    let list = Command::new(BUSYBOX).arg("--list").output().unwrap();
    for applet in String::from_utf8(list.stdout).unwrap().lines().filter(|a| *a != "busybox") {
        let _ = std::os::unix::fs::symlink("busybox", base.join("bin").join(applet));
    }
    fs::write(base.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n").unwrap();
    fs::write(base.join("etc/group"), "root:x:0:\napps:x:1001:\nextra:x:44:app\n").unwrap();
    fs::write(base.join("old"), "old").unwrap();
    fs::create_dir(base.join("olddir")).unwrap();
    fs::write(base.join("olddir/inner"), "inner").unwrap();
}

type Case = (&'static str, fn(&Lab));

fn worker_main(args: &[String]) -> ExitCode {
    let began = Instant::now();
    let options = Options {
        host_userns: args.iter().skip(2).any(|a| a == "host"),
        one_uid: args.iter().skip(2).any(|a| a == "one"),
    };
    let entered = match worker::enter(&options) {
        Ok(entered) => entered,
        Err(e) => {
            println!("FAILED to enter: {e}: {:?}", std::error::Error::source(&e));
            return ExitCode::FAILURE;
        }
    };
    println!("entered as {:?} in {:?}; notes: {:?}", entered.mode, began.elapsed(), entered.notes);
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap();
    fs::write(Path::new(&args[0]).join("pid namespace"), namespace.to_str().unwrap()).unwrap();
    let launcher = Launcher::new(&entered).unwrap();
    let lab = Lab { entered, launcher, store: PathBuf::from(&args[0]), next: 0.into() };
    make_base(&lab.layer("base"));
    let mut failed = 0;
    for (name, case) in CASES {
        if !name.contains(args[1].as_str()) {
            continue;
        }
        let began = Instant::now();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(&lab)));
        let verdict = if result.is_ok() { "ok" } else { "FAILED" };
        println!("{verdict:6} {name} ({:?})", began.elapsed());
        failed += u32::from(result.is_err());
    }
    drop(lab);
    // Pid 1 and this process.
    if !sinks("", 2) {
        println!("FAILED: processes are left");
        failed += 1;
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

const CASES: &[Case] = &[
    ("a_command_runs_and_its_output_and_code_come_back", |lab| {
        let ran = lab.sh("echo out; echo err >&2; exit 7");
        assert_eq!((ran.out.as_str(), ran.err.as_str()), ("out\n", "err\n"));
        assert_eq!(ran.exit().status, ExitStatus::Code(7));
        assert_eq!(lab.sh("kill -9 $$; kill -s SEGV $$; exit 3").exit().status.code(), 3, "pid 1 ignores its own");
    }),
    ("a_command_that_is_not_there_is_127_and_one_that_cannot_run_126", |lab| {
        let run = |args: &[&str]| {
            let spec = StepSpec { args: args.iter().map(|a| (*a).to_owned()).collect(), ..spec("") };
            let ran = lab.run(&spec);
            (ran.exit().status.code(), ran.exit().message.clone().unwrap_or_default())
        };
        assert_eq!(run(&["nope"]), (127, "exec: \"nope\": executable file not found in $PATH".into()));
        assert_eq!(run(&["/nope"]), (127, "exec: \"/nope\": no such file or directory".into()));
        assert_eq!(run(&["/etc/passwd"]), (126, "exec: \"/etc/passwd\": permission denied".into()));
        assert_eq!(run(&["/tmp"]).0, 126);
        assert_eq!(run(&["true"]).0, 0);
    }),
    ("set_up_failures_are_typed_and_say_which_phase", |lab| {
        let ran = lab.run(&StepSpec { cwd: "/old".into(), ..spec("true") });
        let Err(SandboxError::Setup(error)) = &ran.exit else { panic!("{:?}", ran.exit) };
        assert_eq!((error.phase.as_str(), error.errno), ("enter the working directory \"/old\"", 20));
        let ran = lab.run(&StepSpec { user: "ghost".into(), ..spec("true") });
        let Err(SandboxError::Setup(error)) = &ran.exit else { panic!("{:?}", ran.exit) };
        assert_eq!(
            error.to_string(),
            "resolve the user: unable to find user ghost: no matching entries in passwd file"
        );
    }),
    ("the_working_directory_host_name_and_environment_are_those_of_the_spec", |lab| {
        let spec = StepSpec {
            cwd: "/work dir".into(),
            hostname: "boxed".into(),
            env: vec!["A=b c".into()],
            ..spec("pwd; hostname; env | sort")
        };
        assert_eq!(
            lab.run(&spec).ok(),
            "/work dir\nboxed\nA=b c\nHOME=/root\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
             PWD=/work dir\nSHLVL=1"
        );
    }),
    ("a_user_by_name_has_its_groups_and_home_and_no_capabilities", |lab| {
        if lab.one_uid() {
            let ran = lab.run(&StepSpec { user: "app".into(), ..spec("id") });
            let Err(SandboxError::Setup(error)) = &ran.exit else { panic!("{:?}", ran.exit) };
            assert!(
                error.phase.contains("mapped into the user namespace") || error.phase.contains("groups"),
                "{error}"
            );
            return;
        }
        let spec = StepSpec {
            user: "app".into(),
            ..spec(
                "id -u; id -G; echo $HOME; grep -E 'Cap(Inh|Prm|Eff|Amb|Bnd)' /proc/self/status; echo x >/dev/stdout",
            )
        };
        assert_eq!(
            lab.run(&spec).ok(),
            "1000\n1001 44\n/home/app\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\n\
             CapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\nx"
        );
    }),
    ("i01_root_has_the_fourteen_capabilities_and_its_namespaces_are_its_own", |lab| {
        let out = lab.sh("grep -E 'Cap|Seccomp:|NoNewPrivs' /proc/self/status; for n in user pid mnt ipc uts cgroup net; do readlink /proc/self/ns/$n; done");
        let out = out.ok();
        for line in [
            "CapEff:\t00000000a80425fb",
            "CapPrm:\t00000000a80425fb",
            "CapBnd:\t00000000a80425fb",
            "CapInh:\t0000000000000000",
            "CapAmb:\t0000000000000000",
            "Seccomp:\t2",
            "NoNewPrivs:\t0",
        ] {
            assert!(out.contains(line), "{line} in {out}");
        }
        for name in ["user", "pid", "mnt", "ipc", "uts", "cgroup", "net"] {
            let ours = fs::read_link(format!("/proc/self/ns/{name}")).unwrap().to_string_lossy().into_owned();
            assert_eq!(out.contains(&ours), name == "user" && lab.shares_userns(), "{ours} in {out}");
        }
    }),
    ("i07_unprivileged_namespaces_and_mounts_are_denied", |lab| {
        let out = lab.sh("unshare -U true 2>&1; unshare -m true 2>&1; mount -t tmpfs t /tmp 2>&1; true");
        for line in out.ok().lines() {
            assert!(line.contains("not permitted") || line.contains("denied"), "{line}");
        }
        assert_eq!(out.ok().lines().count(), 3, "{}", out.out);
    }),
    ("i04_masked_and_read_only_paths_and_devices_are_out_of_reach", |lab| {
        let out = lab.sh(
            "for p in /proc/kcore /proc/keys /proc/timer_list /proc/kallsyms /proc/interrupts; do [ -s $p ] && head -c 1 $p 2>/dev/null | wc -c; done
             for d in /sys/firmware /proc/acpi /proc/scsi; do [ -d $d ] && ls $d; done
             echo x 2>/dev/null >/proc/sys/kernel/core_pattern && echo wrote core_pattern
             echo x 2>/dev/null >/proc/sysrq-trigger && echo wrote sysrq
             echo x 2>/dev/null >/sys/kernel/mm/ksm/run && echo wrote sys
             touch /sys/x 2>/dev/null && echo touched sys
             [ -e /dev/mem ] && echo mem; [ -e /dev/kmsg ] && echo kmsg
             mknod /tmp/mem c 1 1 2>/dev/null && cat /tmp/mem 2>/dev/null | head -c 1 | wc -c
             ls /proc/1/root/ >/dev/null || echo no root
             ls /dev | sort | tr '\\n' ' '",
        );
        let out = out.ok();
        let last = out.lines().last().unwrap();
        assert_eq!(last.trim(), "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero");
        for line in out.lines().filter(|l| *l != last) {
            assert_eq!(line, "0", "{out}");
        }
    }),
    ("i05_no_descriptor_and_no_process_of_the_host_is_visible", |lab| {
        let out = lab.sh("exec ls -l /proc/self/fd");
        let fds: Vec<_> = out.ok().lines().filter_map(|l| l.split(" -> ").nth(1)).collect();
        assert_eq!(fds[0], "/dev/null", "{fds:?}");
        assert!(fds[1].starts_with("pipe:") && fds[2].starts_with("pipe:"), "{fds:?}");
        // `ls` itself has the directory open, which is gone when it looks at it.
        assert!(fds.len() == 3 || fds[3].starts_with("/proc/"), "{fds:?}");
        let out = lab.sh("set -- /proc/[0-9]*; echo $#; echo $$; grep -c . /proc/self/mountinfo >/dev/null; cut -d' ' -f5 /proc/self/mountinfo | sort | uniq | head -1");
        assert_eq!(out.ok(), "1\n1\n/", "{}", out.out);
        let mounts = lab.sh("cat /proc/self/mountinfo");
        assert!(!mounts.ok().contains(lab.store.to_str().unwrap()), "{}", mounts.out);
    }),
    ("i07_keys_namespaces_and_mounts_are_denied_but_chroot_works", |lab| {
        let out = lab.sh("chroot / true && echo chroot; unshare -n true 2>/dev/null || echo no unshare; umount /proc 2>/dev/null || echo no umount");
        assert_eq!(out.ok(), "chroot\nno unshare\nno umount");
    }),
    ("i08_daemons_end_with_the_command", |lab| {
        let began = Instant::now();
        let ran = lab.sh("for i in $(seq 1 50); do (trap '' TERM HUP; setsid sleep 1000 >/dev/null 2>&1 &) ; done; (sleep 1000 &); echo done");
        assert_eq!(ran.ok(), "done");
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }),
    ("kill_ends_five_hundred_daemons_within_moments", |lab| {
        let spec =
            spec("for i in $(seq 1 500); do (trap '' TERM; sleep 1000 >/dev/null 2>&1 &) ; done; echo up; sleep 1000");
        let (step, _) = lab.start(&spec, &[&lab.store.join("base")], &[]);
        let mut step = step.unwrap();
        let mut out = fs::File::from(step.stdout.take().unwrap());
        let mut up = [0; 3];
        out.read_exact(&mut up).unwrap();
        let killer = step.killer();
        let began = Instant::now();
        killer.kill();
        let exit = step.wait().unwrap();
        assert_eq!(exit.status, ExitStatus::Signal(9));
        assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    }),
    ("a_dropped_step_is_killed", |lab| {
        let (step, _) = lab.start(&spec("sleep 1000"), &[&lab.store.join("base")], &[]);
        let mut step = step.unwrap();
        let out = step.stdout.take().unwrap();
        drop(step);
        assert_eq!(read_all(out), "", "the pipe ends because every writer is gone");
    }),
    ("changes_are_whiteouts_opaque_directories_and_owners_on_disk", |lab| {
        let ran = lab.sh("rm old; rm -r olddir; mkdir olddir; echo new > new; chmod 4755 new; ln -s x link");
        ran.ok();
        let meta = |name: &str| fs::symlink_metadata(ran.upper.join(name)).unwrap();
        assert!(meta("old").file_type().is_char_device() && meta("old").rdev() == 0);
        assert_eq!(meta("new").mode() & 0o7777, 0o4755);
        let mut value = [0; 8];
        let n = rustix::fs::lgetxattr(ran.upper.join("olddir"), "user.overlay.opaque", &mut value).unwrap();
        assert_eq!(&value[..n], b"y");
        // The worker sees the image's ids: as root because that is what is on disk, as a user through its namespace.
        assert_eq!((meta("new").uid(), meta("new").gid(), meta("old").uid()), (0, 0, 0));
        if !lab.one_uid() {
            let ran = lab.sh("echo x > f; chown 1000:1001 f; chown 60000 /tmp/ || true");
            ran.ok();
            let meta = fs::metadata(ran.upper.join("f")).unwrap();
            assert_eq!((meta.uid(), meta.gid()), (1000, 1001));
        }
    }),
    ("file_capabilities_read_back_without_a_root_id", |lab| {
        // VFS_CAP_REVISION_2, cap_net_raw=ep: what setcap writes.
        let v2 = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let lower = lab.layer("capable");
        let file = lower.join("tool");
        fs::copy(BUSYBOX, &file).unwrap();
        if rustix::fs::setxattr(&file, "security.capability", &v2, rustix::fs::XattrFlags::empty()).is_err() {
            assert!(lab.one_uid(), "only one id forbids this");
            return;
        }
        // Appending copies the file up (and drops the capability); a change of mode copies it with it.
        let ran = lab.run_on(&spec("chmod 755 /tool"), &[&lab.store.join("base"), &lower], &[]);
        ran.ok();
        let mut value = [0; 64];
        let n = rustix::fs::getxattr(ran.upper.join("tool"), "security.capability", &mut value).unwrap();
        assert_eq!(value[..n], v2, "as the differ reads it");
    }),
    ("device_nodes_of_lower_layers_survive_but_can_be_neither_opened_nor_changed", |lab| {
        let lower = lab.layer("devices");
        let made = rustix::fs::mknodat(
            rustix::fs::CWD,
            lower.join("mem"),
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::from_raw_mode(0o666),
            rustix::fs::makedev(1, 1),
        );
        if made.is_err() {
            assert!(lab.entered.mode != Mode::Root);
            return;
        }
        let ran = lab.run_on(&spec("stat -c %t:%T /mem; cat /mem"), &[&lab.store.join("base"), &lower], &[]);
        assert_eq!(ran.out.trim(), "1:1");
        let changes = "for c in 'chmod 600' 'chown 5'; do $c /mem 2>/dev/null || echo $c; done; mv /mem /other 2>/dev/null || echo mv";
        let refused = lab.run_on(&spec(changes), &[&lab.store.join("base"), &lower], &[]);
        // docs/rootless.md: the overlay of a user namespace cannot copy it up.
        let expected = if lab.entered.template_userns.is_some() { "chmod 600\nchown 5\nmv" } else { "" };
        assert_eq!(refused.out.trim(), expected);
        assert!(ran.err.contains("denied") || ran.err.contains("not permitted"), "{}", ran.err);
        assert_eq!(fs::symlink_metadata(lower.join("mem")).unwrap().rdev(), rustix::fs::makedev(1, 1));
    }),
    ("mount_stubs_leave_no_trace_in_the_upper_layer", |lab| {
        let before = fs::metadata(lab.store.join("base/etc")).unwrap();
        let cache = lab.layer("cache");
        let mut spec =
            spec("echo hit > /var/deep/cache/file; cat /etc/hosts | head -1; cat /run/secret; stat -c %a /run/secret");
        spec.remove_stub_parents = true;
        spec.mounts.push(Mount {
            dest: "/var/deep/cache".into(),
            readonly: false,
            source: MountSource::Bind { fd: 0 },
        });
        spec.mounts.push(Mount {
            dest: "/run/secret".into(),
            readonly: true,
            source: MountSource::File { content: b"s3cret\n".to_vec(), mode: 0o400, uid: 0, gid: 0 },
        });
        let ran = lab.run_on(&spec, &[&lab.store.join("base")], &[&cache]);
        assert_eq!(ran.ok(), "127.0.0.1\tlocalhost buildkitsandbox\ns3cret\n400");
        let left = tree(&ran.upper);
        // Overlayfs copies the parent directory up; it is equal to the lower one, which the differ does not count.
        assert_eq!(left, ["etc"]);
        let after = fs::metadata(ran.upper.join("etc")).unwrap();
        assert_eq!((after.mode(), after.uid(), after.gid()), (before.mode(), before.uid(), before.gid()));
        assert_eq!((after.mtime(), after.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
        assert_eq!(fs::read_to_string(cache.join("file")).unwrap(), "hit\n");
        assert_eq!(fs::metadata(cache.join("file")).unwrap().uid(), 0);
    }),
    ("s06_files_are_in_memory_with_their_owner_and_never_swapped_where_that_can_be", |lab| {
        let mut spec = spec("stat -c '%a %u %g' /f /g; grep ' /f ' /proc/self/mountinfo; echo x > /f; cat /g");
        for (dest, uid) in [("/f", 0), ("/g", 7)] {
            let source = MountSource::File { content: dest.into(), mode: 0o440, uid, gid: uid };
            spec.mounts.push(Mount { dest: dest.into(), readonly: true, source });
        }
        let ran = lab.run_on(&spec, &[&lab.store.join("base")], &[]);
        let lines: Vec<&str> = ran.out.lines().collect();
        let owner = if lab.entered.mode == Mode::OneUid { "440 0 0" } else { "440 7 7" };
        assert_eq!(lines[..2], ["440 0 0", owner]);
        assert!(lines[2].contains(" ro,nosuid,nodev,noexec") && lines[2].contains(" - tmpfs "), "{}", lines[2]);
        assert_eq!(lines[3], "/g");
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut version = release.split('.').map(|part| part.parse().unwrap_or(0u32));
        let knows_noswap = (version.next(), version.next()) >= (Some(6), Some(4));
        if lab.entered.mode == Mode::Root && knows_noswap {
            assert!(lines[2].contains("noswap"), "{}", lines[2]);
        }
    }),
    ("stubs_that_the_command_fills_or_replaces_are_its_own", |lab| {
        let ran = lab.sh("echo kept > /etc/kept; mkdir -p /var/x");
        ran.ok();
        assert_eq!(tree(&ran.upper), ["etc", "etc/kept", "var", "var/x"]);
    }),
    ("mounts_are_read_only_temporary_or_merged_as_asked", |lab| {
        let (a, b) = (lab.layer("a"), lab.layer("b"));
        fs::create_dir_all(a.join("sub")).unwrap();
        fs::write(a.join("sub/one"), "1").unwrap();
        fs::create_dir_all(b.join("sub")).unwrap();
        fs::write(b.join("sub/two"), "2").unwrap();
        let mut spec = spec(
            "ls /merged; echo x > /merged/three; ls /merged; touch /ro/x 2>/dev/null || echo ro; df -k /t | tail -1 | awk '{print $2}'; echo x > /t/x",
        );
        let mount = |dest: &str, readonly, source| Mount { dest: dest.into(), readonly, source };
        spec.mounts = vec![
            mount("/merged", false, MountSource::Layers { fds: vec![0, 1], selector: "/sub".into(), changes: None }),
            mount("/ro", true, MountSource::Bind { fd: 0 }),
            mount("/t", false, MountSource::Tmpfs { size_bytes: 1 << 20 }),
        ];
        let ran = lab.run_on(&spec, &[&lab.store.join("base")], &[&a, &b]);
        assert_eq!(ran.ok(), "one\ntwo\none\nthree\ntwo\nro\n1024");
        assert!(!a.join("sub/three").exists() && !b.join("sub/three").exists());
    }),
    ("l19_links_in_the_place_of_mount_points_do_not_leave_the_root", |lab| {
        let canary = lab.layer("canary");
        let evil = lab.layer("evil");
        fs::create_dir_all(evil.join("etc")).unwrap();
        std::os::unix::fs::symlink(canary.join("hosts"), evil.join("etc/hosts")).unwrap();
        std::os::unix::fs::symlink("../../../../run/resolv", evil.join("etc/resolv.conf")).unwrap();
        let ran =
            lab.run_on(&spec("cat /run/resolv >/dev/null; head -1 /etc/hosts"), &[&lab.store.join("base"), &evil], &[]);
        assert!(ran.ok().starts_with("127.0.0.1"));
        assert_eq!(tree(&canary), Vec::<String>::new());
        for name in ["proc", "sys", "dev"] {
            let evil = lab.layer(&format!("evil{name}"));
            std::os::unix::fs::symlink(&canary, evil.join(name)).unwrap();
            let ran = lab.run_on(&spec("true"), &[&lab.store.join("base"), &evil], &[]);
            let Err(SandboxError::Setup(error)) = &ran.exit else { panic!("{name}: {:?}", ran.exit) };
            assert_eq!((error.phase.as_str(), error.errno), (format!("mount /{name}").as_str(), 40));
        }
        assert_eq!(tree(&canary), Vec::<String>::new());
        let ran =
            lab.run_on(&StepSpec { cwd: "/proc/self/fd/3".into(), ..spec("true") }, &[&lab.store.join("base")], &[]);
        assert!(matches!(ran.exit, Err(SandboxError::Setup(_))), "CVE-2024-21626: {:?}", ran.exit);
    }),
    ("the_way_up_ends_at_the_root", |lab| {
        // What `..` finds crosses mounts: nothing may lie on top of the root, least of all the old one.
        let script = "for d in /etc /proc /dev /sys /tmp; do [ $d/.. -ef / ] || echo $d; done; ls -d /etc/../old; \
                      awk '$5 == \"/\"' /proc/self/mountinfo | wc -l";
        assert_eq!(lab.sh(script).ok(), "/etc/../old\n1");
        assert_eq!(lab.run(&StepSpec { root_readonly: true, ..spec(script) }).ok(), "/etc/../old\n1");
    }),
    ("a_working_directory_that_is_missing_is_made_for_the_user", |lab| {
        let (cwd, user) = ("/missing/deep".into(), if lab.one_uid() { "" } else { "app" }.to_owned());
        let ran = lab.run(&StepSpec { cwd, user, ..spec("pwd; id -u; stat -c %u:%g:%a . ..") });
        let (id, owner) = if lab.one_uid() { ("0", "0:0:755") } else { ("1000", "1000:1001:755") };
        assert_eq!(ran.ok(), format!("/missing/deep\n{id}\n{owner}\n{owner}"));
        assert!(ran.upper.join("missing/deep").is_dir() && !ran.upper.join("proc").exists());
    }),
    ("a_read_only_root_and_a_plain_directory_root_work", |lab| {
        let ran =
            lab.run(&StepSpec { root_readonly: true, ..spec("touch /x 2>/dev/null || echo ro; touch /dev/shm/x") });
        assert_eq!(ran.ok(), "ro");
        let fds = StepFds { active: Some(open(&lab.store.join("base"))), ..StepFds::default() };
        let mut step = lab.launcher.spawn(&StepSpec { root: Root::Dir, ..spec("echo made > /made") }, &fds).unwrap();
        let err = read_all(step.stderr.take().unwrap());
        assert_eq!(step.wait().unwrap().status, ExitStatus::Code(0), "{err}");
        let made = lab.store.join("base/made");
        assert_eq!(fs::read_to_string(&made).unwrap(), "made\n");
        fs::remove_file(made).unwrap();
        assert!(!lab.store.join("base/etc/hosts").exists());
    }),
    ("many_layers_are_one_root", |lab| {
        let layers: Vec<PathBuf> = (0..120)
            .map(|i| {
                let layer = lab.layer(&format!("many{i}"));
                fs::write(layer.join(format!("f{i}")), "x").unwrap();
                layer
            })
            .collect();
        let base = lab.store.join("base");
        let all: Vec<&Path> = std::iter::once(base.as_path()).chain(layers.iter().map(PathBuf::as_path)).collect();
        assert_eq!(lab.run_on(&spec("ls / | grep -c '^f[0-9]'"), &all, &[]).ok(), "120");
    }),
    ("the_network_is_none_or_the_hosts", |lab| {
        let out =
            lab.sh("ls /sys/class/net; cat /sys/class/net/lo/operstate; ping -c1 -w1 127.0.0.1 >/dev/null && echo up");
        assert_eq!(out.ok(), "lo\nunknown\nup");
        let host = lab.run(&StepSpec { network: Network::Host, ..spec("ls /sys/class/net; cat /etc/resolv.conf") });
        let resolv = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        assert!(host.ok().ends_with(resolv.trim_end()), "{}", host.out);
        let default = lab.run(&StepSpec { network: Network::Default, ..spec("cat /proc/net/route | wc -l") });
        default.ok();
        let exit = default.exit();
        match exit.network {
            Network::Host => {
                assert!(exit.notes.iter().any(|n| n.contains("use the host's network")), "{:?}", exit.notes);
            }
            Network::Default => assert!(default.out.trim() != "1"),
            Network::None => panic!("never"),
        }
        println!("       default network: {:?} {:?}", exit.network, exit.notes);
    }),
    ("a_prepared_network_serves_one_step_after_another", |lab| {
        let Some(first) = lab.private(NAMESPACES) else { return };
        let began = Instant::now();
        let second = lab.private(NAMESPACES).unwrap();
        println!("       second step {:?}", began.elapsed());
        assert_eq!(first.ok(), second.ok());
        for line in first.ok().lines() {
            let name = line.split(':').next().unwrap();
            let ours = fs::read_link(format!("/proc/self/ns/{name}")).unwrap().to_string_lossy().into_owned();
            assert_eq!(ours == line, name == "user" && lab.shares_userns(), "{line}");
        }
        let mut times: Vec<Duration> = (0..20)
            .map(|_| {
                let began = Instant::now();
                lab.private("true").unwrap().ok();
                began.elapsed()
            })
            .collect();
        times.sort();
        println!("       median {:?}, fastest {:?}", times[times.len() / 2], times[0]);
        assert!(times[0] < Duration::from_millis(50));
    }),
    ("a_private_network_is_the_steps_own_in_every_respect", |lab| {
        let script = "ls /sys/class/net | tr '\\n' ' '; ip -4 addr show lo | grep -c 127.0.0.1/8; ping -c1 -w1 127.0.0.1 \
                      >/dev/null && echo up; grep -c ' /sys sysfs ro' /proc/mounts; id -u; hostname";
        let Some(ran) = lab.private(script) else { return };
        let lines: Vec<_> = ran.ok().lines().collect();
        assert!(lines[0].contains("lo ") && lines[0].split_whitespace().count() == 3, "{}", ran.out);
        assert_eq!(lines[1..], ["up", "1", "0", "buildkitsandbox"], "{}", ran.err);
        let denied = "ip link set lo down 2>/dev/null && echo down; ip addr add 10.9.9.9/32 dev lo 2>/dev/null && echo \
                      added; echo 1 2>/dev/null >/proc/sys/net/ipv4/ip_forward && echo set; echo end";
        assert_eq!(lab.private(denied).unwrap().ok(), "end");
    }),
    ("steps_at_the_same_time_have_networks_of_their_own", |lab| {
        let Some(_) = lab.private("true") else { return };
        let script = format!("{NAMESPACES}; (nc -l -p 8080 </dev/null &); {LISTENING}; echo up; sleep 1000");
        let spec = StepSpec { network: Network::Default, ..spec(&script) };
        let (step, _) = lab.start(&spec, &[&lab.store.join("base")], &[]);
        let mut step = step.unwrap();
        let mut out = std::io::BufReader::new(fs::File::from(step.stdout.take().unwrap()));
        let mut listening = String::new();
        while !listening.ends_with("up\n") {
            assert_ne!(out.read_line(&mut listening).unwrap(), 0, "{listening}");
        }
        let ran = lab.private(&format!("{NAMESPACES}; nc -w 1 127.0.0.1 8080 </dev/null || echo alone")).unwrap();
        assert!(ran.ok().ends_with("alone"), "{}", ran.out);
        for line in listening.lines().filter(|line| line.contains(":[")) {
            let shared = line.starts_with("user") && lab.shares_userns();
            assert_eq!(ran.out.contains(line), shared, "{line} in {}", ran.out);
        }
        let began = Instant::now();
        step.kill();
        assert_eq!(step.wait().unwrap().status, ExitStatus::Signal(9));
        assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
        lab.private("nc -w 1 127.0.0.1 8080 </dev/null && exit 1; exit 0").unwrap().ok();
    }),
    ("a_network_that_a_step_could_change_or_that_is_still_busy_is_not_used_again", |lab| {
        let Some(first) = lab.private(NAMESPACES) else { return };
        assert_eq!(lab.private(NAMESPACES).unwrap().ok(), first.ok());
        let insecure = StepSpec {
            confinement: Confinement::insecure(),
            network: Network::Default,
            ..spec(&format!("{NAMESPACES}; ip addr add 10.9.9.9/32 dev lo"))
        };
        assert_eq!(lab.run(&insecure).ok(), first.ok());
        let second = lab.private(&format!("{NAMESPACES}; ip addr show lo | grep 10.9.9.9; true")).unwrap();
        let network = |ran: &Ran| ran.ok().lines().find(|line| line.starts_with("net:")).unwrap().to_owned();
        assert_ne!(network(&second), network(&first));
        assert!(!second.out.contains("10.9.9.9"));
        // The side that closes first keeps the connection for a minute.
        let closing = format!(
            "{NAMESPACES}; (nc -l -p 8080 -e true >/dev/null &); {LISTENING}; nc -w 1 127.0.0.1 8080 </dev/null"
        );
        let third = lab.private(&closing).unwrap();
        assert_eq!(network(&third), network(&second), "{}", third.err);
        assert_ne!(network(&lab.private(NAMESPACES).unwrap()), network(&third));
    }),
    ("the_hosts_loopback_and_its_abstract_sockets_are_out_of_reach", |lab| {
        use std::os::linux::net::SocketAddrExt;
        let Some(_) = lab.private("true") else { return };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let name = format!("build-engine-test-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let _abstract = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
        let ran = lab.private(&format!(
            "for host in 127.0.0.1 $(ip route | awk '/^default/ {{print $3}}') 169.254.1.53; do
                 nc -w 1 $host {port} </dev/null 2>/dev/null && echo reached $host
             done; cat /proc/net/unix"
        ));
        let out = ran.unwrap();
        assert!(!out.ok().contains("reached") && !out.out.contains(&name), "{}", out.out);
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err());
    }),
    ("names_resolve_through_the_forwarder_where_the_host_resolves_them", |lab| {
        let Some(_) = lab.private("true") else { return };
        let query = "nslookup -type=a localhost. 2>&1 | grep -E '^Name:|^Address|NXDOMAIN' | grep -vE ':53$' | sort";
        let host = lab.run(&StepSpec { network: Network::Host, ..spec(query) });
        if host.ok().is_empty() {
            println!("SKIPPED: names of private networks: the host's name server does not answer");
            return;
        }
        println!("       the host's name server says {:?}", host.ok());
        assert_eq!(lab.private(query).unwrap().ok(), host.ok());
    }),
    ("warming_up_makes_the_network_that_the_next_step_enters", |lab| {
        let Some(_) = lab.private("true") else { return };
        let before = count_of("pas");
        let launcher = Launcher::new(&lab.entered).unwrap();
        launcher.warm_up();
        launcher.warm_up();
        let fds = StepFds { lower: vec![open(&lab.store.join("base"))], ..StepFds::default() };
        let spec = StepSpec { network: Network::Default, root: Root::Scratch, ..spec("true") };
        let step = launcher.spawn(&spec, &fds).unwrap();
        assert_eq!(step.wait().unwrap().network, Network::Default);
        drop(launcher);
        // pasta has short-lived children of its own, which outlive it for a moment.
        assert!(sinks("pas", before), "the network that was warmed up is still there");
    }),
    ("ulimits_are_set_and_never_raised", |lab| {
        let mut spec = spec("ulimit -n; ulimit -Hn; ulimit -c");
        spec.ulimits = vec![Ulimit { name: "nofile".into(), soft: 100, hard: 200 }];
        assert_eq!(lab.run(&spec).ok(), "100\n200\n0");
        spec.ulimits = vec![Ulimit { name: "nofile".into(), soft: 64, hard: 10_000_000 }];
        let ran = lab.run(&spec);
        ran.ok();
        assert!(ran.exit().notes.iter().any(|n| n.contains("at most here")) || ran.out.contains("10000000"));
    }),
    ("limits_of_memory_and_processes_hold_where_control_groups_can_be_made", |lab| {
        let available = build_engine_sandbox::cgroup::available();
        let mut spec = spec("head -c 200000000 /dev/zero | tail");
        spec.limits = Limits { memory_bytes: Some(32 << 20), ..Limits::default() };
        if available.controllers.iter().any(|c| c == "memory") {
            let ran = lab.run(&spec);
            assert!(ran.exit().out_of_memory, "{:?} {}", ran.exit(), ran.err);
        } else {
            println!("SKIPPED: memory limit: no control group can be made here ({available:?})");
            assert!(
                lab.run(&StepSpec { args: vec!["true".into()], ..spec })
                    .exit()
                    .notes
                    .iter()
                    .any(|n| n.contains("memory.max"))
            );
        }
    }),
    ("f1_083_processors_are_limited_where_control_groups_can_be_made", |lab| {
        let available = build_engine_sandbox::cgroup::available();
        let limits = Limits {
            cpuset_cpus: "0".into(),
            cpu_shares: Some(512),
            cpu_period_micros: Some(50_000),
            cpu_quota_micros: Some(25_000),
            ..Limits::default()
        };
        let ran = lab.run(&StepSpec { limits, ..spec("nproc") });
        if ["cpu", "cpuset"].iter().all(|wanted| available.controllers.iter().any(|c| c == wanted)) {
            assert_eq!((ran.ok(), &ran.exit().notes[..]), ("1", &[][..]));
        } else {
            println!("SKIPPED: limits of processors: no control group can be made here ({available:?})");
            ran.ok();
            assert_eq!(ran.exit().notes.len(), 3, "{:?}", ran.exit().notes);
        }
    }),
    ("g12_a_strict_step_fails_where_another_one_has_a_note", |lab| {
        let unknown = vec![Ulimit { name: "nothing".into(), soft: 1, hard: 1 }];
        let plain = lab.run(&StepSpec { ulimits: unknown.clone(), ..spec("true") });
        assert!(plain.exit().notes.iter().any(|note| note.contains("nothing")), "{:?}", plain.exit());
        let strict = lab.run(&StepSpec { ulimits: unknown, strict: true, ..spec("echo ran") });
        let Err(SandboxError::Setup(error)) = &strict.exit else { panic!("{:?}", strict.exit) };
        assert!(error.phase.contains("strictly") && strict.out.is_empty(), "{error}");
        if plain.exit().notes.len() == 1 {
            lab.run(&StepSpec { strict: true, ..spec("true") }).ok();
        }
    }),
    ("f1_058_an_emulator_is_registered_in_the_namespace_of_its_step_alone", |lab| {
        // Any static program can be registered; what it would do as an emulator does not matter here.
        let emulated = |script: &str, network| {
            let active = lab.active();
            let fds = StepFds {
                lower: vec![open(&lab.store.join("base"))],
                active: Some(open(&active)),
                emulator: Some(fs::File::open(BUSYBOX).unwrap().into()),
                ..StepFds::default()
            };
            let confinement = Confinement::insecure();
            let spec = StepSpec { emulated: Some("s390x".into()), network, confinement, ..spec(script) };
            let mut step = lab.launcher.spawn(&spec, &fds).unwrap();
            let out = read_all(step.stdout.take().unwrap());
            (step.wait(), out)
        };
        let script = "mount -t binfmt_misc registry /tmp && cat /tmp/s390x";
        if lab.shares_userns() {
            println!("SKIPPED: emulators: steps share the host's user namespace");
            return;
        }
        for network in [Network::None, Network::Default] {
            let (exit, out) = emulated(script, network);
            if let Err(SandboxError::Setup(error)) = &exit
                && error.phase == "mount a registry of emulators"
            {
                println!("SKIPPED: emulators: {error}");
                return;
            }
            exit.unwrap();
            assert!(out.contains("interpreter qemu-s390x\nflags: POCF"), "{out}");
        }
        // The next step in a private network has another namespace, with the host's registry.
        let spec = StepSpec { confinement: Confinement::insecure(), network: Network::Default, ..spec("ls /tmp") };
        let script = "mount -t binfmt_misc registry /tmp && ls /tmp";
        let next = lab.run(&StepSpec { args: vec!["/bin/sh".into(), "-c".into(), script.into()], ..spec });
        assert!(!next.ok().contains("s390x"), "{}", next.out);
    }),
    ("insecure_steps_see_devices_that_everybody_may_open_and_a_writable_sys", |lab| {
        let script = "test -c /dev/fuse && echo fuse; grep -c ' /sys sysfs rw' /proc/self/mounts";
        let insecure = lab.run(&StepSpec { confinement: Confinement::insecure(), ..spec(script) });
        let fuse = if Path::new("/dev/fuse").exists() { "fuse\n" } else { "" };
        assert_eq!(insecure.out.trim_end(), format!("{fuse}1"), "{}", insecure.err);
        let usual = lab.sh(script);
        assert_eq!(usual.out.trim_end(), "0", "{}", usual.err);
    }),
    ("a_parent_of_control_groups_that_was_made_goes_with_the_step", |lab| {
        let name = format!("parent-of-{}", std::process::id());
        let spec = StepSpec { cgroup_parent: format!("{name}/inner"), ..spec("true") };
        assert_eq!(lab.run(&spec).ok(), "");
        let found = std::process::Command::new("find").args(["/sys/fs/cgroup", "-name", &name]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    }),
    ("insecure_steps_have_all_capabilities_of_their_namespace", |lab| {
        let spec = StepSpec {
            confinement: Confinement::insecure(),
            ..spec("mount -t tmpfs t /tmp && grep -E 'CapEff|Seccomp:' /proc/self/status")
        };
        let ran = lab.run(&spec);
        let out = ran.ok();
        assert!(out.contains("Seccomp:\t0") && !out.contains("a80425fb"), "{out}");
    }),
    ("usage_is_measured", |lab| {
        let ran = lab.sh("i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done");
        let usage = ran.exit().usage;
        assert!(usage.user_time + usage.system_time > Duration::from_millis(1), "{usage:?}");
        assert!(usage.peak_rss_bytes > 100_000, "{usage:?}");
    }),
    ("specs_that_make_no_sense_are_refused_before_anything_starts", |lab| {
        for spec in [
            StepSpec { args: Vec::new(), ..spec("") },
            StepSpec { env: vec!["NAME".into()], ..spec("") },
            StepSpec { env: vec!["=x".into()], ..spec("") },
            StepSpec { cwd: "a\0b".into(), ..spec("") },
        ] {
            assert!(matches!(lab.run(&spec).exit, Err(SandboxError::Spec(_))));
        }
    }),
    ("a_trivial_step_takes_milliseconds", |lab| {
        let mut times: Vec<Duration> = (0..40)
            .map(|_| {
                let spec = StepSpec { args: vec!["/bin/true".into()], network: Network::Host, ..spec("") };
                let began = Instant::now();
                lab.run(&spec).ok();
                began.elapsed()
            })
            .collect();
        times.sort();
        println!("       median {:?}, fastest {:?}", times[times.len() / 2], times[0]);
        assert!(times[0] < Duration::from_millis(50));
    }),
];

/// Paths below `root`, sorted.
fn tree(root: &Path) -> Vec<String> {
    fn walk(root: &Path, at: &Path, out: &mut BTreeMap<String, ()>) {
        for entry in fs::read_dir(at).unwrap().flatten() {
            out.insert(entry.path().strip_prefix(root).unwrap().to_string_lossy().into_owned(), ());
            if entry.file_type().unwrap().is_dir() {
                walk(root, &entry.path(), out);
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(root, root, &mut out);
    let _ = std::io::stdout().flush();
    out.into_keys().collect()
}
