//! What this machine offers to builds, for `build-engine info`.

use std::path::Path;

use serde::Serialize;

use crate::cgroup;
use crate::emulation::{Emulators, open_registry};
use crate::worker::{Ids, subordinate_ids};

/// Facts of the machine, as the calling process sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Kernel release.
    pub kernel: String,
    /// Whether the process is privileged in the initial user namespace.
    pub root: bool,
    /// Which namespaces can be made: `user`, `pid`, `network`, …; those that cannot are absent.
    pub namespaces: Vec<String>,
    /// Whether the kernel has overlayfs.
    pub overlay: bool,
    /// Number of subordinate user ids of the caller.
    pub subordinate_uids: u64,
    /// Number of subordinate group ids of the caller.
    pub subordinate_gids: u64,
    /// Whether `newuidmap` and `newgidmap` are installed.
    pub id_map_tools: bool,
    /// Control groups.
    pub cgroups: cgroup::Available,
    /// Whether the kernel filters system calls.
    pub seccomp: bool,
    /// The user-mode network program, if installed.
    pub pasta: Option<String>,
    /// Whether `/dev/net/tun` can be opened.
    pub tun: bool,
    /// Names of registered emulators that are enabled (`qemu-aarch64`, …).
    pub emulators: Vec<String>,
    /// Platforms whose programs run here, and what runs them where the processor does not.
    pub platforms: Vec<String>,
}

/// Looks at the machine. Starts no process and changes nothing.
pub fn probe() -> Host {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let uid = rustix::process::geteuid();
    let passwd = read("/etc/passwd");
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid.as_raw())).then_some(name)
    });
    let count =
        |path: &str| subordinate_ids(&read(path), name, uid.as_raw()).iter().map(|&(_, count)| u64::from(count)).sum();
    let root = uid.is_root() && crate::worker::has_sys_admin();
    let userns_limit = read("/proc/sys/user/max_user_namespaces").trim().parse::<u64>().unwrap_or(0);
    let allowed = root
        || (userns_limit > 0
            && read("/proc/sys/kernel/unprivileged_userns_clone").trim() != "0"
            && read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").trim() != "1");
    let namespaces = [
        ("user", "user"),
        ("mnt", "mount"),
        ("pid", "pid"),
        ("net", "network"),
        ("ipc", "ipc"),
        ("uts", "uts"),
        ("cgroup", "cgroup"),
        ("time", "time"),
    ];
    let exists = |name: &str| Path::new("/proc/self/ns").join(name).exists();
    let installed = |name: &str| {
        ["/usr/bin", "/usr/local/bin", "/bin", "/usr/sbin"]
            .iter()
            .map(|d| format!("{d}/{name}"))
            .find(|p| Path::new(p).exists())
    };
    let emulators = std::fs::read_dir("/proc/sys/fs/binfmt_misc").into_iter().flatten().flatten();
    let mut emulators: Vec<String> = emulators
        .filter(|entry| {
            std::fs::read_to_string(entry.path()).is_ok_and(|text| text.starts_with("enabled\ninterpreter"))
        })
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    emulators.sort();
    Host {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        root,
        namespaces: namespaces
            .iter()
            .filter(|(file, _)| allowed && exists(file))
            .map(|(_, name)| (*name).to_owned())
            .collect(),
        overlay: read("/proc/filesystems").lines().any(|line| line.trim_start_matches("nodev").trim() == "overlay"),
        subordinate_uids: count("/etc/subuid"),
        subordinate_gids: count("/etc/subgid"),
        id_map_tools: installed("newuidmap").is_some() && installed("newgidmap").is_some(),
        cgroups: cgroup::available(),
        seccomp: Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
        pasta: installed("pasta"),
        tun: rustix::fs::access("/dev/net/tun", rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK).is_ok(),
        emulators,
        platforms: Emulators::new(open_registry(), Ids::Nested).platforms(),
    }
}

#[cfg(test)]
mod tests {
    use crate::worker::subordinate_ids;

    #[test]
    fn subordinate_ids_are_found_by_name_and_by_number() {
        let text = "alice:100000:65536\n1000:300000:10\nbob:200000:65536\nbroken\nalice:x:1\n";
        assert_eq!(subordinate_ids(text, Some("alice"), 1000), [(100_000, 65536), (300_000, 10)]);
        assert_eq!(subordinate_ids(text, None, 4), []);
    }
}
