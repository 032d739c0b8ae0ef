//! Users and groups of a root file system, for the process that runs in it.
//!
//! Only the root's own `/etc/passwd` and `/etc/group` count; both are regular files of bounded size, opened inside the
//! root. The rules are those of BuildKit: `user`, `user:group`, `:group`, names or numbers; a number needs no entry, a
//! name does; supplementary groups come from the group file and only where no group was given. The group itself is
//! always among the supplementary ones, so that giving it up does not help against a file mode that locks it out.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::error::{Phase, SetupError};

/// BuildKit's limit for both files.
const MAX_BYTES: u64 = 10 << 20;

/// Who the process is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: Option<String>,
}

/// Resolves `user` in the tree of `root`.
pub(crate) fn resolve(root: BorrowedFd<'_>, user: &str) -> Result<Identity, SetupError> {
    let passwd = read(root, "etc/passwd")?;
    let group = read(root, "etc/group")?;
    from_text(&passwd, &group, user).map_err(|text| SetupError::detail("resolve the user", text))
}

fn read(root: BorrowedFd<'_>, path: &str) -> Result<String, SetupError> {
    let phase = || format!("read /{path}");
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let handle = match rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Ok(handle) => handle,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
        Err(e) => return Err(e).phase(phase()),
    };
    let stat = rustix::fs::fstat(&handle).phase(phase())?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
        return Err(SetupError::detail(phase(), "it is not a regular file"));
    }
    if stat.st_size as u64 > MAX_BYTES {
        return Err(SetupError::detail(phase(), format!("it is larger than {MAX_BYTES} bytes")));
    }
    // A regular file, so opening it has no effects; the path was resolved once and is not resolved again.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::openat2(root, path, flags, Mode::empty(), resolve).phase(phase())?;
    let again = rustix::fs::fstat(&file).phase(phase())?;
    if (again.st_dev, again.st_ino) != (stat.st_dev, stat.st_ino) {
        return Err(SetupError::detail(phase(), "it changed meanwhile"));
    }
    let mut bytes = Vec::new();
    std::fs::File::from(file).take(MAX_BYTES).read_to_end(&mut bytes).phase(phase())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn from_text(passwd: &str, group: &str, user: &str) -> Result<Identity, String> {
    let (name, group_name) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|g| !g.is_empty())),
        None => (user, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let number = name.parse::<u32>().ok();
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let entry = passwd
        .lines()
        .map(fields)
        .find(|f| f.len() >= 6 && (f[0] == name || number.is_some_and(|uid| f[2].parse() == Ok(uid))));
    let mut identity = Identity::default();
    let mut account = None;
    match (&entry, number) {
        (Some(f), _) => {
            identity.uid = f[2].parse().map_err(|_| format!("user {name:?} has a malformed entry in /etc/passwd"))?;
            identity.gid = f[3].parse().unwrap_or(0);
            identity.home = Some(f[5].clone()).filter(|home| !home.is_empty());
            account = Some(f[0].clone());
        }
        (None, Some(uid)) => identity.uid = uid,
        (None, None) => return Err(format!("no user named {name:?} in /etc/passwd")),
    }
    let groups = || group.lines().map(fields).filter(|f| f.len() >= 3);
    match group_name {
        Some(group_name) => {
            let number = group_name.parse::<u32>().ok();
            identity.gid = groups()
                .find(|f| f[0] == group_name || number.is_some_and(|gid| f[2].parse() == Ok(gid)))
                .and_then(|f| f[2].parse().ok())
                .or(number)
                .ok_or_else(|| format!("no group named {group_name:?} in /etc/group"))?;
        }
        None => {
            if let Some(account) = account {
                identity.groups = groups()
                    .filter(|f| f.get(3).is_some_and(|members| members.split(',').any(|m| m.trim() == account)))
                    .filter_map(|f| f[2].parse().ok())
                    .take(65536)
                    .collect();
            }
        }
    }
    if !identity.groups.contains(&identity.gid) {
        identity.groups.insert(0, identity.gid);
    }
    Ok(identity)
}

/// Rejects a tree whose root is not a directory.
pub(crate) fn is_directory(fd: impl AsFd) -> bool {
    rustix::fs::fstat(fd)
        .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,app\napps:x:1001:\ndocker:x:999:app\n";

    #[track_caller]
    fn check(user: &str, uid: u32, gid: u32, groups: &[u32], home: Option<&str>) {
        let expected = Identity { uid, gid, groups: groups.to_vec(), home: home.map(str::to_owned) };
        assert_eq!(from_text(PASSWD, GROUP, user), Ok(expected), "{user}");
    }

    #[test]
    fn users_and_groups_resolve_by_name_and_by_number() {
        check("", 0, 0, &[0, 10], Some("/root"));
        check("app", 1000, 1001, &[1001, 10, 999], Some("/home/app"));
        check("1000", 1000, 1001, &[1001, 10, 999], Some("/home/app"));
        check("app:wheel", 1000, 10, &[10], Some("/home/app"));
        check("app:7", 1000, 7, &[7], Some("/home/app"));
        check("4242", 4242, 0, &[0], None);
        check("4242:4243", 4242, 4243, &[4243], None);
        check(":wheel", 0, 10, &[10], Some("/root"));
    }

    #[test]
    fn unknown_names_are_errors() {
        assert!(from_text(PASSWD, GROUP, "nobody").is_err());
        assert!(from_text(PASSWD, GROUP, "app:nogroup").is_err());
        assert!(from_text(PASSWD, GROUP, "-1").is_err());
    }
}
