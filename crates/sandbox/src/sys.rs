//! System calls that `rustix` does not offer as safe functions. Every `unsafe` block of the project is in this file.
//!
//! Two rules make the blocks sound. Processes are cloned only by single-threaded processes (the worker before its
//! runtime starts, the helper, the step), so that the child may allocate and take locks. And every pointer that is
//! handed to the kernel points to a live value of the size that the call names.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// What [`clone_process`] returns.
pub(crate) enum Cloned {
    /// In the new process.
    Child,
    /// In the caller.
    Parent {
        /// Process id of the new process, in the caller's pid namespace.
        pid: i32,
        /// Refers to the new process until it is closed.
        pidfd: OwnedFd,
    },
}

/// Whether the calling process has one thread; cloning is refused otherwise.
pub(crate) fn is_single_threaded() -> bool {
    std::fs::read_dir("/proc/self/task").map(|tasks| tasks.count() == 1).unwrap_or(true)
}

/// Forks with the namespaces of `flags` (`CLONE_NEW…`). The child gets `SIGCHLD` semantics and a copy of all memory.
///
/// The caller must have a single thread: every caller checks or is a fresh process of ours.
pub(crate) fn clone_process(flags: u64) -> io::Result<Cloned> {
    clone(flags, libc::SIGCHLD as u64)
}

/// As [`clone_process`], but the new process is a child of the caller's parent, with the caller's own exit signal.
pub(crate) fn clone_sibling(flags: u64) -> io::Result<Cloned> {
    clone(flags | libc::CLONE_PARENT as u64, 0)
}

fn clone(flags: u64, exit_signal: u64) -> io::Result<Cloned> {
    #[repr(C, align(8))]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
    }
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: flags | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal,
        ..CloneArgs::default()
    };
    // SAFETY: `args` is a `struct clone_args` of version 0 (64 bytes) that lives across the call; without CLONE_VM and
    // with a zero stack this is fork, which a single-threaded process may follow with any code.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: CLONE_PIDFD makes the kernel store a new descriptor, owned by nobody else, in `pidfd` on success.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent { pid: pid as i32, pidfd })
}

/// Whether the processor runs 32-bit programs, on kernels that refuse the personality where it does not (arm64).
pub(crate) fn runs_32_bit() -> bool {
    const QUERY: libc::c_ulong = 0xffff_ffff;
    const PER_LINUX32: libc::c_ulong = 0x0008;
    // SAFETY: `personality` takes no pointers, and changes nothing but the calling thread's, which is set back.
    unsafe {
        let before = libc::personality(QUERY);
        let possible = before >= 0 && libc::personality(PER_LINUX32) >= 0;
        if possible {
            libc::personality(before as libc::c_ulong);
        }
        possible
    }
}

/// Ends the calling process at once, without running destructors or `atexit` functions.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` takes no pointers and does not return.
    unsafe { libc::_exit(code) }
}

/// How a child ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub(crate) pid: i32,
    pub(crate) status: i32,
    pub(crate) usage: RawUsage,
}

/// What the kernel counted for a child and the descendants that it waited for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RawUsage {
    pub(crate) user_micros: u64,
    pub(crate) system_micros: u64,
    pub(crate) peak_rss_bytes: u64,
}

/// Waits for `pid` (or any child when -1) to end.
pub(crate) fn wait4(pid: i32, no_hang: bool) -> io::Result<Option<Ended>> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    let options = libc::__WALL | if no_hang { libc::WNOHANG } else { 0 };
    loop {
        // SAFETY: both pointers refer to live values of the types that wait4(2) names.
        let got = unsafe { libc::wait4(pid, &raw mut status, options, usage.as_mut_ptr()) };
        if got < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        if got == 0 {
            return Ok(None);
        }
        // SAFETY: zeroed is a valid `rusage` (integers only), and the kernel has filled it in.
        let usage = unsafe { usage.assume_init() };
        let micros = |t: libc::timeval| (t.tv_sec as u64) * 1_000_000 + t.tv_usec as u64;
        return Ok(Some(Ended {
            pid: got,
            status,
            usage: RawUsage {
                user_micros: micros(usage.ru_utime),
                system_micros: micros(usage.ru_stime),
                peak_rss_bytes: (usage.ru_maxrss as u64) * 1024,
            },
        }));
    }
}

/// The exit code of a wait status, or the signal that ended the process.
pub(crate) fn decode_status(status: i32) -> Result<i32, i32> {
    if libc::WIFEXITED(status) { Ok(libc::WEXITSTATUS(status)) } else { Err(libc::WTERMSIG(status)) }
}

/// Applies mount attributes to the mount that `mount` refers to; `userns` maps its owners.
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    recursive: bool,
    set: u64,
    clear: u64,
    userns: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    #[repr(C)]
    struct MountAttr {
        attr_set: u64,
        attr_clr: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let mut attr = MountAttr {
        attr_set: set | if userns.is_some() { libc::MOUNT_ATTR_IDMAP } else { 0 },
        attr_clr: clear,
        propagation: 0,
        userns_fd: userns.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated literal, `attr` is a `struct mount_attr` of version 0 with its size.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags as libc::c_uint,
            &raw mut attr,
            size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

/// Sets real, effective and saved user id.
pub(crate) fn set_uid(uid: u32) -> io::Result<()> {
    // SAFETY: takes numbers only; the process has one thread, so the raw call (this thread only) is the whole process.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// Sets real, effective and saved group id.
pub(crate) fn set_gid(gid: u32) -> io::Result<()> {
    // SAFETY: as in `set_uid`.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(drop)
}

/// Sets the supplementary groups.
pub(crate) fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer and the count describe `groups`; `gid_t` is `u32` on Linux.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// Installs a classic BPF program as the seccomp filter of this process.
pub(crate) fn install_filter(program: &[libc::sock_filter]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let prog = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: `prog` describes `program`, which the kernel copies before returning and does not write to.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const prog) }).map(drop)
}

/// Joins a new, empty session keyring.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) })
        .map(drop)
}

/// Marks every descriptor from `first` on close-on-exec.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: takes numbers only; marking a descriptor close-on-exec invalidates none.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// Drops `capability` from the bounding set.
pub(crate) fn drop_bounding(capability: u32) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) }.into()).map(drop)
}

/// Clears the ambient capabilities.
pub(crate) fn clear_ambient() -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) }.into()).map(drop)
}

/// Keeps permitted capabilities across a change of user id (until exec).
pub(crate) fn keep_capabilities(keep: bool) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(keep), 0, 0, 0) }.into()).map(drop)
}

/// Resets all signal dispositions to their default and empties the signal mask.
pub(crate) fn reset_signals() {
    for signal in 1..65 {
        // SAFETY: SIG_DFL is a valid disposition for every signal; numbers that have none are refused with EINVAL.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initialises `set`, which `sigprocmask` then reads.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut());
    }
}

/// Replaces the process image; returns only the error.
pub(crate) fn exec(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers =
        |list: &[CString]| list.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect::<Vec<_>>();
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both lists are null-terminated arrays of NUL-terminated strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Sets a resource limit of this process. `resource` is one of `libc::RLIMIT_*`.
pub(crate) fn set_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is live, and a null pointer asks for no old value.
    check(unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, std::ptr::null_mut::<libc::rlimit64>())
    })
    .map(drop)
}

/// Reads a resource limit of this process: (soft, hard).
pub(crate) fn limit(resource: u32) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is live and writable, and a null pointer sets nothing.
    check(unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, resource, std::ptr::null::<libc::rlimit64>(), &raw mut limit)
    })?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// Brings up the loopback device of the current network namespace.
pub(crate) fn loopback_up() -> io::Result<()> {
    #[repr(C)]
    struct IfReq {
        name: [u8; libc::IFNAMSIZ],
        flags: libc::c_short,
        rest: [u8; 22],
    }
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    let mut request = IfReq { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    request.flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: `request` has the size and layout of `struct ifreq` with its flags member.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) }.into()).map(drop)
}

/// Moves this process into a control group namespace of its own, rooted at its present groups.
pub(crate) fn unshare_cgroup() -> io::Result<()> {
    // SAFETY: takes a number only, and affects the view of /proc and cgroup mounts alone.
    check(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) }.into()).map(drop)
}

/// Takes over a descriptor that this process inherited under a known number.
pub(crate) fn adopt_fd(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD takes no pointer; it tells whether the number is a descriptor at all.
    if number <= 2 || unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the number is an open descriptor (just checked) and above the standard streams. Nothing else in this
    // process owns it: it was open before `main`, and `inherit::inherited_fd` hands out each number once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp;

    /// security.md 0.3.1: a filter that compares 64 bits lets these through, and the kernel makes the socket.
    #[test]
    fn i03_sockets_with_high_bits_are_denied_by_the_running_kernel() {
        // Filters and no_new_privs are a thread's own.
        let results = std::thread::spawn(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            let filter = seccomp::cached(crate::caps::set(crate::spec::Capabilities::Docker), false).unwrap();
            install_filter(&seccomp::Filter::from_bytes(&filter.to_bytes())).unwrap();
            [40u64, 40 | 1 << 32, 38, 38 | 1 << 32, 38 | 0xffff_ffff << 32, 1, 1 | 1 << 32].map(|domain| {
                // SAFETY: takes numbers only; a descriptor that it returns is leaked.
                check(unsafe { libc::syscall(libc::SYS_socket, domain, libc::SOCK_STREAM, 0) })
                    .map(drop)
                    .map_err(|e| e.raw_os_error())
            })
        })
        .join()
        .unwrap();
        let denied = Err(Some(libc::EPERM));
        assert_eq!(results, [denied, denied, denied, denied, denied, Ok(()), Ok(())]);
    }

    #[test]
    fn the_filter_compiles_within_a_millisecond_when_optimised() {
        let caps = crate::caps::set(crate::spec::Capabilities::Docker).bits();
        let fastest = (0..20)
            .map(|_| {
                let began = std::time::Instant::now();
                seccomp::Filter::compile(seccomp::Architecture::native().unwrap(), caps, (6, 18), false).unwrap();
                began.elapsed()
            })
            .min()
            .unwrap();
        let limit = if cfg!(debug_assertions) { 50 } else { 1 };
        assert!(fastest < std::time::Duration::from_millis(limit), "{fastest:?}");
    }
}
