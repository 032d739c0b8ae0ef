//! The step itself, from the clone to the exec: mounts, identity, confinement.
//!
//! Runs as pid 1 of its namespaces with all capabilities of its user namespace, and gives them up at the end. The order
//! matters: everything that can be attacked (the image's files) is touched only after the root has been pivoted or by
//! descriptor inside it, and the system call filter comes last but for the exec.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use build_engine_rootfs::Tree;
use build_engine_rootfs::users::{self, Identity};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags};

use crate::error::{Phase, SetupError};
use crate::helper::{FromStep, Go};
use crate::mounts::{Target, Trees, Workbench, attach, clone_tree, new_fs, strict};
use crate::spec::{MountSource, Network, Root, StepSpec};
use crate::worker::Ids;
use crate::{caps, emulation, net, seccomp, sys, wire};

/// What Docker and BuildKit set when an image sets none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_SHM_BYTES: u64 = 64 << 20;

/// Becomes the command. Whatever goes wrong is told to the helper.
pub(crate) fn run(spec: &StepSpec, ids: Ids, trees: Trees, filter: &[u8], helper: &OwnedFd) -> ! {
    let report = match set_up(spec, ids, trees, filter, helper) {
        Ok(NotExecuted { code, message }) => FromStep::NotExecutable { code, message },
        Err(error) => FromStep::Failed(error),
    };
    let _ = wire::send(helper, &report, &[]);
    sys::exit_now(127)
}

/// The command cannot be executed.
struct NotExecuted {
    code: i32,
    message: String,
}

fn set_up(spec: &StepSpec, ids: Ids, trees: Trees, filter: &[u8], helper: &OwnedFd) -> Result<NotExecuted, SetupError> {
    let go = wire::receive::<Go>(helper).phase("wait for the helper")?;
    let Some((Go { network }, _)) = go else { sys::exit_now(1) };
    let mut notes = Vec::new();
    become_root(ids)?;
    if !spec.hostname.is_empty() {
        rustix::system::sethostname(spec.hostname.as_bytes()).phase("set the host name")?;
    }
    if network == Network::None {
        sys::loopback_up().phase("bring up the loopback device")?;
    }
    let _ = sys::new_session_keyring();

    let (mut target, identity, registry) = mount_all(spec, ids, &trees, network, &mut notes)?;
    drop(trees);
    pivot(target.root())?;
    set_ulimits(spec, ids, &mut notes);
    enter_directory(&target, &spec.cwd)?;
    let (args, env, path) = command(spec, &identity)?;

    if spec.strict && !notes.is_empty() {
        return Err(SetupError::strict(&notes));
    }

    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).phase("open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).phase("close standard input")?;
    let stubs = std::mem::take(&mut target.stubs);
    let parents = std::mem::take(&mut target.parents);
    let borrowed: Vec<_> = parents.iter().chain(&registry).map(AsFd::as_fd).collect();
    wire::send(helper, &FromStep::Mounted { stubs, notes }, &borrowed).phase("report to the helper")?;
    drop((parents, registry, target, null));

    confine(spec, &identity, filter)?;
    Ok(execute(&args, &env, &path))
}

/// Root of the user namespace, dumpable, and dying with the helper.
fn become_root(ids: Ids) -> Result<(), SetupError> {
    if ids != Ids::Host {
        sys::set_gid(0).phase("become root")?;
        match sys::set_groups(&[]) {
            // Denied where only one id is mapped: then there are no groups to give up but those of the user.
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
            other => other.phase("give up groups")?,
        }
        sys::set_uid(0).phase("become root")?;
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable).phase("become dumpable")?;
    }
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).phase("tie to the helper")?;
    sys::reset_signals();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // Now that the helper has put this process into its group, so that the group is the root of the namespace.
    sys::unshare_cgroup().phase("create a control group namespace")
}

fn mount_all(
    spec: &StepSpec,
    ids: Ids,
    trees: &Trees,
    network: Network,
    notes: &mut Vec<String>,
) -> Result<(Target, Identity, Option<OwnedFd>), SetupError> {
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .phase("make mounts private")?;
    let mut bench = Workbench::new().phase("mount the workbench")?;
    let registry = match (&spec.emulated, &trees.emulator) {
        (Some(architecture), Some(emulator)) => Some(emulation::register(architecture, emulator, bench.directory())?),
        (Some(_) | None, _) => None,
    };
    let root = root(spec, trees, &mut bench)?;
    let mut target = Target::new(root);
    // As BuildKit does it, before anything is mounted in the root: only its own files and directories count.
    let identity = identity(target.root(), &spec.user)?;
    if target.open_nofollow(&spec.cwd).is_err_and(|e| e == Errno::NOENT) {
        let phase = || format!("make the working directory {:?}", spec.cwd);
        target.make_directory(&spec.cwd, identity.uid, identity.gid).phase(phase())?;
    }
    mount_system(spec, ids, trees, network, &mut target, notes)?;

    let private = network == Network::Default;
    let resolv = net::resolv_file(&trees.resolv, private);
    let hosts = net::hosts_file(&spec.hostname, &spec.extra_hosts);
    for (path, content) in [("/etc/resolv.conf", &resolv), ("/etc/hosts", &hosts)] {
        let phase = || format!("mount {path}");
        let file = bench.file(content.as_bytes(), 0o644, 0, 0, true).phase(phase())?;
        let point = target.mount_point(path, false).phase(phase())?;
        attach(&file, &point).phase(phase())?;
    }
    let files = trees.files.as_ref().map(|files| bench.place(files)).transpose().phase("attach the files")?;
    for (index, mount) in spec.mounts.iter().enumerate() {
        let phase = || format!("mount {:?}", mount.dest);
        let (tree, directory) = match (&mount.source, &files) {
            (MountSource::File { .. }, Some(place)) => {
                (bench.placed_file(&format!("{place}/{index}"), mount.readonly).phase(phase())?, false)
            }
            (other, _) => source(other, mount.readonly, trees, &mut bench).phase(phase())?,
        };
        if mount.readonly {
            let attrs = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
            sys::mount_setattr(tree.as_fd(), false, attrs, 0, None).phase(phase())?;
        }
        let point = target.mount_point(&mount.dest, directory).phase(phase())?;
        if is_directory(&point) != directory {
            let (what, on) = if directory { ("a directory", "a file") } else { ("a file", "a directory") };
            let detail = Some(format!("{what} cannot be mounted on {on}"));
            return Err(SetupError { phase: phase(), errno: libc::ENOTDIR, detail, is_limit: false });
        }
        attach(&tree, &point).phase(phase())?;
    }
    restrict(spec, &target)?;
    if spec.root_readonly {
        // A second mount of the same tree: the helper removes the stubs through the first, which stays writable.
        let phase = "make the root read-only";
        let copy = clone_tree(target.root().as_fd(), true).phase(phase)?;
        let attrs = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
        sys::mount_setattr(copy.as_fd(), false, attrs, 0, None).phase(phase)?;
        let (_, point) = bench.make_dir().phase(phase)?;
        attach(&copy, &point).phase(phase)?;
        target.replace_root(copy);
    }
    Ok((target, identity, registry))
}

/// Who the command runs as. The group is always among the supplementary ones, so that giving it up does not help
/// against a file mode that locks it out.
fn identity(root: &OwnedFd, user: &str) -> Result<Identity, SetupError> {
    let phase = "resolve the user";
    let tree = Tree::from_fd(root.try_clone().phase(phase)?);
    let mut identity = users::resolve_user(&tree, user).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        SetupError { is_limit: error.is_limit(), ..SetupError::detail(phase, format!("{error}{cause}")) }
    })?;
    if !identity.groups.contains(&identity.gid) {
        identity.groups.insert(0, identity.gid);
    }
    Ok(identity)
}

/// Mounts the root and makes it the working directory.
fn root(spec: &StepSpec, trees: &Trees, bench: &mut Workbench) -> Result<OwnedFd, SetupError> {
    let phase = "mount the root";
    let nodev = MountAttrFlags::MOUNT_ATTR_NODEV;
    let mut lower = Vec::with_capacity(trees.lower.len());
    for layer in &trees.lower {
        lower.push(bench.place(layer).phase("attach a layer")?);
    }
    let active = || trees.active.as_ref().ok_or_else(|| SetupError::detail(phase, "no directory was given"));
    let root = match &spec.root {
        Root::Dir => {
            let tree = active()?.try_clone().phase(phase)?;
            sys::mount_setattr(tree.as_fd(), false, u64::from(nodev.bits()), 0, None).phase(phase)?;
            tree
        }
        Root::Overlay { upper, work } => {
            let place = bench.place(active()?).phase("attach the directory of changes")?;
            for name in [upper, work] {
                if !is_name(name) {
                    return Err(SetupError::detail(phase, format!("{name:?} is not a directory's name")));
                }
            }
            let (upper, work) = (format!("{place}/{upper}"), format!("{place}/{work}"));
            bench.overlay(&lower, Some((&upper, &work)), nodev).phase(phase)?
        }
        Root::Scratch => {
            let (upper, work) = (bench.make_dir().phase(phase)?.0, bench.make_dir().phase(phase)?.0);
            bench.overlay(&lower, Some((&upper, &work)), nodev).phase(phase)?
        }
    };
    let (_, point) = bench.make_dir().phase(phase)?;
    attach(&root, &point).phase(phase)?;
    Ok(root)
}

/// Whether `name` is one name, which leads nowhere else.
fn is_name(name: &str) -> bool {
    !(name.is_empty() || name.contains('/') || name == ".." || name == ".")
}

/// The tree of a mount, and whether it is a directory.
fn source(
    source: &MountSource,
    readonly: bool,
    trees: &Trees,
    bench: &mut Workbench,
) -> std::io::Result<(OwnedFd, bool)> {
    let bind = |index: usize| trees.binds.get(index).ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound));
    match source {
        MountSource::Bind { fd } => {
            let tree = bind(*fd)?;
            // The same descriptor may be mounted at several places.
            let copy = clone_tree(tree.as_fd(), false).or_else(|_| tree.try_clone().map_err(|_| Errno::BADF))?;
            let directory = is_directory(&copy);
            Ok((copy, directory))
        }
        MountSource::Layers { fds, selector, changes } => {
            let mut lower = Vec::new();
            for &fd in fds {
                lower.push(bench.place(bind(fd)?)?);
            }
            let work = match changes {
                _ if readonly => None,
                None => Some((bench.make_dir()?.0, bench.make_dir()?.0)),
                Some(changes) => {
                    let place = bench.place(bind(changes.fd)?)?;
                    if [&changes.upper, &changes.work].iter().any(|name| !is_name(name)) {
                        return Err(std::io::Error::from(std::io::ErrorKind::InvalidInput));
                    }
                    Some((format!("{place}/{}", changes.upper), format!("{place}/{}", changes.work)))
                }
            };
            let changes = work.as_ref().map(|(upper, work)| (upper.as_str(), work.as_str()));
            let merged = bench.overlay(&lower, changes, MountAttrFlags::MOUNT_ATTR_NODEV)?;
            let selector = selector.trim_start_matches('/');
            if selector.is_empty() {
                return Ok((merged, true));
            }
            bench.place(&merged)?;
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            let inside =
                rustix::fs::openat2(&merged, selector, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
            let directory = is_directory(&inside);
            Ok((clone_tree(inside.as_fd(), false)?, directory))
        }
        MountSource::Tmpfs { size_bytes } => {
            let size = size_bytes.to_string();
            let mut options = vec![("mode", "1777")];
            if *size_bytes > 0 {
                options.push(("size", &size));
            }
            let attrs = strict() - MountAttrFlags::MOUNT_ATTR_NOEXEC;
            Ok((new_fs("tmpfs", &options, attrs)?, true))
        }
        MountSource::File { content, mode, uid, gid } => Ok((bench.file(content, *mode, *uid, *gid, readonly)?, false)),
    }
}

/// `/proc`, `/dev` and `/sys`.
fn mount_system(
    spec: &StepSpec,
    ids: Ids,
    trees: &Trees,
    network: Network,
    target: &mut Target,
    notes: &mut Vec<String>,
) -> Result<(), SetupError> {
    let proc = new_fs("proc", &[], strict()).phase("mount /proc")?;
    attach(&proc, &target.real_directory("/proc").phase("mount /proc")?).phase("mount /proc")?;

    let nosuid = MountAttrFlags::MOUNT_ATTR_NOSUID;
    let dev = new_fs("tmpfs", &[("mode", "0755"), ("size", "65536k")], nosuid | MountAttrFlags::MOUNT_ATTR_STRICTATIME)
        .phase("mount /dev")?;
    attach(&dev, &target.real_directory("/dev").phase("mount /dev")?).phase("mount /dev")?;
    for (name, device) in &trees.devices {
        let phase = || format!("mount /dev/{name}");
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&dev, name.as_str(), flags, Mode::from_raw_mode(0o666)).phase(phase())?;
        let point = open_beneath(&dev, name).phase(phase())?;
        attach(clone_tree(device.as_fd(), false).as_ref().unwrap_or(device), &point).phase(phase())?;
    }
    for (link, to) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        rustix::fs::symlinkat(to, &dev, link).phase(format!("link /dev/{link}"))?;
    }
    let shm = spec.shm_size_bytes.unwrap_or(DEFAULT_SHM_BYTES).to_string();
    let noexec = nosuid | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let pts = [("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
    let shm_options = [("mode", "1777"), ("size", shm.as_str())];
    let parts = [
        ("pts", "devpts", &pts[..], noexec),
        ("shm", "tmpfs", &shm_options[..], strict()),
        ("mqueue", "mqueue", &[][..], strict()),
    ];
    for (name, kind, options, attrs) in parts {
        let phase = || format!("mount /dev/{name}");
        rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755)).phase(phase())?;
        let fs = match new_fs(kind, options, attrs) {
            // Group 5 (tty) is not mapped where there is one id only.
            Err(Errno::INVAL) if kind == "devpts" => new_fs(kind, &options[..2], attrs).phase(phase())?,
            // A kernel without message queues.
            Err(Errno::NODEV) if kind == "mqueue" => continue,
            other => other.phase(phase())?,
        };
        attach(&fs, &open_beneath(&dev, name).phase(phase())?).phase(phase())?;
    }

    let point = target.real_directory("/sys").phase("mount /sys")?;
    let mut readonly = strict() | MountAttrFlags::MOUNT_ATTR_RDONLY;
    if spec.confinement.writable_sys {
        readonly -= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    let own = match (network, ids) {
        (Network::Host, Ids::Shifted | Ids::Nested) => Err(Errno::PERM),
        (Network::Host, Ids::Host) | (Network::Default | Network::None, _) => new_fs("sysfs", &[], readonly),
    };
    match (own, &trees.sys) {
        (Ok(fs), _) => attach(&fs, &point).phase("mount /sys")?,
        (Err(_), Some(host)) => attach(host, &point).phase("mount /sys")?,
        (Err(e), None) => {
            notes.push(format!("/sys is empty: {e}"));
            let fs = new_fs("tmpfs", &[("mode", "0755")], readonly).phase("mount /sys")?;
            attach(&fs, &point).phase("mount /sys")?;
        }
    }
    if let Ok(point) = target.open_nofollow("/sys/fs/cgroup") {
        let empty = || new_fs("tmpfs", &[("mode", "0755")], readonly);
        let fs = new_fs("cgroup2", &[], readonly).or_else(|_| empty()).phase("mount /sys/fs/cgroup")?;
        attach(&fs, &point).phase("mount /sys/fs/cgroup")?;
    }
    Ok(())
}

fn is_directory(fd: impl AsFd) -> bool {
    rustix::fs::fstat(fd)
        .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory)
}

fn open_beneath(directory: &OwnedFd, name: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Hides and write-protects paths of `/proc` and `/sys`.
///
/// Nothing of the image runs yet, and the masks are our own mounts, so nothing can get between look-up and attachment.
fn restrict(spec: &StepSpec, target: &Target) -> Result<(), SetupError> {
    let null = target.open_nofollow("/dev/null").phase("open /dev/null")?;
    let mut empty = None;
    for path in &spec.confinement.masked_paths {
        let phase = || format!("mask {path}");
        let point = match target.open_nofollow(path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => continue,
            other => other.phase(phase())?,
        };
        if is_directory(&point) {
            let fs = match &empty {
                None => {
                    new_fs("tmpfs", &[("mode", "0755"), ("size", "4k")], strict() | MountAttrFlags::MOUNT_ATTR_RDONLY)
                }
                Some(first) => clone_tree(AsFd::as_fd(first), false),
            }
            .phase(phase())?;
            attach(&fs, &point).phase(phase())?;
            empty = Some(fs);
        } else {
            let mask = clone_tree(null.as_fd(), false).phase(phase())?;
            attach(&mask, &point).phase(phase())?;
        }
    }
    for path in &spec.confinement.readonly_paths {
        let phase = || format!("make {path} read-only");
        let point = match target.open_nofollow(path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => continue,
            other => other.phase(phase())?,
        };
        let copy = clone_tree(point.as_fd(), true).phase(phase())?;
        let attrs = u64::from((strict() | MountAttrFlags::MOUNT_ATTR_RDONLY).bits());
        sys::mount_setattr(copy.as_fd(), true, attrs, 0, None).phase(phase())?;
        attach(&copy, &point).phase(phase())?;
    }
    Ok(())
}

/// Makes `root` the root of this process and of its mount namespace, and lets go of the old one.
fn pivot(root: &OwnedFd) -> Result<(), SetupError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = rustix::fs::open("/", flags, Mode::empty()).phase("open the old root")?;
    rustix::process::fchdir(root).phase("enter the root")?;
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => {
            rustix::process::fchdir(&old).phase("enter the old root")?;
            // The old root now lies on top of the new one, and the workbench on top of the old root. An unmount takes
            // the topmost only; whatever stayed would be what `..` below the new root leads to. The end is the old
            // root itself, which is no mount of this namespace any more.
            loop {
                match rustix::mount::unmount(".", UnmountFlags::DETACH) {
                    Ok(()) => {}
                    Err(Errno::INVAL) => break,
                    Err(e) => return Err(e).phase("detach the old root"),
                }
            }
        }
        // The worker's root is an initial ramdisk or a plain chroot.
        Err(Errno::INVAL) => {
            rustix::mount::mount_move(".", "/").phase("move the root")?;
            rustix::process::chroot(".").phase("change the root")?;
        }
        Err(e) => return Err(e).phase("pivot the root"),
    }
    rustix::process::chdir("/").phase("enter the new root")?;
    nothing_above()
}

/// Refuses to go on if the way up from below the root leads to something other than the root.
fn nothing_above() -> Result<(), SetupError> {
    let phase = "leave the old root";
    let (root, above) = (rustix::fs::stat("/").phase(phase)?, rustix::fs::stat("/dev/..").phase(phase)?);
    if (root.st_dev, root.st_ino) != (above.st_dev, above.st_ino) {
        return Err(SetupError::detail(phase, "another tree is still mounted on top of the new root"));
    }
    Ok(())
}

/// Changes to `cwd`, which must be a directory inside the root.
fn enter_directory(target: &Target, cwd: &str) -> Result<(), SetupError> {
    let phase = || format!("enter the working directory {cwd:?}");
    let relative = cwd.trim_start_matches('/');
    let relative = if relative.is_empty() { "." } else { relative };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let directory = rustix::fs::openat2(target.root(), relative, flags, Mode::empty(), resolve).phase(phase())?;
    rustix::process::fchdir(&directory).phase(phase())
}

/// Processes and threads that one user of a step may have, where no control group counts them.
const MAX_PROCESSES: u64 = 4096;

fn set_ulimits(spec: &StepSpec, ids: Ids, notes: &mut Vec<String>) {
    // Counted in the step's own user namespace; in the host's it would count the host's processes.
    if ids != Ids::Host
        && let Ok((_, hard)) = sys::limit(libc::RLIMIT_NPROC)
    {
        let most = hard.min(MAX_PROCESSES);
        let _ = sys::set_limit(libc::RLIMIT_NPROC, most, most);
    }
    let nofile = libc::RLIMIT_NOFILE;
    let _ = sys::set_limit(libc::RLIMIT_CORE, 0, 0);
    if let Ok((_, hard)) = sys::limit(nofile) {
        let hard = hard.min(524_288);
        let _ = sys::set_limit(nofile, hard.min(1024), hard);
    }
    for ulimit in &spec.ulimits {
        let Some(resource) = resource(&ulimit.name) else {
            notes.push(format!("ulimit {:?} is unknown", ulimit.name));
            continue;
        };
        let wanted = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
        let (soft, hard) = (wanted(ulimit.soft), wanted(ulimit.hard));
        let result = match sys::set_limit(resource, soft, hard) {
            // Above the worker's own limit: as much as it has.
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
                let most = sys::limit(resource).map_or(hard, |(_, most)| most);
                notes.push(format!("ulimit {} is {most} at most here, not {hard}", ulimit.name));
                sys::set_limit(resource, soft.min(most), hard.min(most))
            }
            other => other,
        };
        if let Err(e) = result {
            notes.push(format!("ulimit {} not set: {e}", ulimit.name));
        }
    }
}

fn resource(name: &str) -> Option<u32> {
    let resource = match name.to_ascii_lowercase().trim_start_matches("rlimit_") {
        "as" => libc::RLIMIT_AS,
        "core" => libc::RLIMIT_CORE,
        "cpu" => libc::RLIMIT_CPU,
        "data" => libc::RLIMIT_DATA,
        "fsize" => libc::RLIMIT_FSIZE,
        "locks" => libc::RLIMIT_LOCKS,
        "memlock" => libc::RLIMIT_MEMLOCK,
        "msgqueue" => libc::RLIMIT_MSGQUEUE,
        "nice" => libc::RLIMIT_NICE,
        "nofile" => libc::RLIMIT_NOFILE,
        "nproc" => libc::RLIMIT_NPROC,
        "rss" => libc::RLIMIT_RSS,
        "rtprio" => libc::RLIMIT_RTPRIO,
        "rttime" => libc::RLIMIT_RTTIME,
        "sigpending" => libc::RLIMIT_SIGPENDING,
        "stack" => libc::RLIMIT_STACK,
        _ => return None,
    };
    Some(resource)
}

/// Arguments and environment as the kernel takes them, and the search path.
fn command(spec: &StepSpec, identity: &Identity) -> Result<(Vec<CString>, Vec<CString>, String), SetupError> {
    let text = |s: &str| CString::new(s).map_err(|_| SetupError::detail("start the command", "a NUL character"));
    let variable = |name: &str| {
        spec.env.iter().rev().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
    };
    let path = variable("PATH");
    let mut env = spec.env.iter().map(|entry| text(entry)).collect::<Result<Vec<_>, _>>()?;
    if path.is_none() {
        env.push(text(&format!("PATH={DEFAULT_PATH}"))?);
    }
    if variable("HOME").is_none_or(|home| home.is_empty()) {
        env.retain(|entry| !entry.as_bytes().starts_with(b"HOME="));
        env.push(text(&format!("HOME={}", identity.home))?);
    }
    let args = spec.args.iter().map(|arg| text(arg)).collect::<Result<Vec<_>, _>>()?;
    Ok((args, env, path.unwrap_or_else(|| DEFAULT_PATH.to_owned())))
}

/// Gives up everything that the command must not have.
fn confine(spec: &StepSpec, identity: &Identity, filter: &[u8]) -> Result<(), SetupError> {
    let confinement = &spec.confinement;
    let program = seccomp::Filter::from_bytes(filter);
    caps::limit_bounding(confinement.capabilities).phase("limit capabilities")?;
    let _ = sys::clear_ambient();
    sys::keep_capabilities(true).phase("keep capabilities")?;
    match sys::set_groups(&identity.groups) {
        // Denied where only one id is mapped: then its group is the only one there is.
        Err(e) if e.raw_os_error() == Some(libc::EPERM) && identity.groups == [identity.gid] => {}
        other => other.phase("set the groups")?,
    }
    let id = |what: &str, id: u32| format!("become {what} {id} (is it mapped into the user namespace?)");
    sys::set_gid(identity.gid).phase(id("group", identity.gid))?;
    sys::set_uid(identity.uid).phase(id("user", identity.uid))?;
    caps::raise().phase("raise capabilities")?;
    if confinement.no_new_privileges {
        rustix::thread::set_no_new_privs(true).phase("set no_new_privs")?;
    }
    // Every descriptor but the standard streams; the helper's socket tells by its end that the exec succeeded.
    sys::close_on_exec_from(3).phase("close descriptors")?;
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    if !program.is_empty() {
        sys::install_filter(&program).phase("install the system call filter")?;
    }
    caps::give_up(confinement.capabilities, identity.uid == 0).phase("give up capabilities")
}

/// Looks the program up and executes it; returns what a shell would say.
fn execute(args: &[CString], env: &[CString], path: &str) -> NotExecuted {
    let name = args.first().map(|a| a.to_string_lossy().into_owned()).unwrap_or_default();
    if name.contains('/') {
        let error = sys::exec(&args[0], args, env);
        let code = if error.raw_os_error() == Some(libc::ENOENT) { 127 } else { 126 };
        return NotExecuted { code, message: format!("exec: {name:?}: {}", plain(&error)) };
    }
    let mut denied = None;
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let Ok(candidate) = CString::new(format!("{directory}/{name}")) else { continue };
        let regular = rustix::fs::stat(candidate.as_c_str())
            .is_ok_and(|s| rustix::fs::FileType::from_raw_mode(s.st_mode) == rustix::fs::FileType::RegularFile);
        if name.is_empty() || !regular {
            continue;
        }
        if rustix::fs::access(candidate.as_c_str(), rustix::fs::Access::EXEC_OK).is_err() {
            denied = Some(format!("exec: {name:?}: permission denied"));
            continue;
        }
        let error = sys::exec(&candidate, args, env);
        let code = if error.raw_os_error() == Some(libc::ENOENT) { 127 } else { 126 };
        return NotExecuted { code, message: format!("exec: {:?}: {}", candidate.to_string_lossy(), plain(&error)) };
    }
    match denied {
        Some(message) => NotExecuted { code: 126, message },
        None => NotExecuted { code: 127, message: format!("exec: {name:?}: executable file not found in $PATH") },
    }
}

/// An error without "(os error 2)".
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    text[..end].to_lowercase()
}
