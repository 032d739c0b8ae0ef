//! Users and groups as the files `/etc/passwd` and `/etc/group` of a tree name them.
//!
//! The rules are those of `runc` and BuildKit: a name or number that the file has decides; a number that it does not
//! have is taken as it is; a name that it does not have is an error. The files are input from outside: only regular
//! files are read, and only up to a limit.

use std::io::Read;

use crate::{Error, Tree};

/// Limit of `/etc/passwd` and `/etc/group`.
const MAX_FILE_BYTES: u64 = 10 << 20;
/// Limit of the groups of one user: the kernel's own.
const MAX_GROUPS: usize = 65_536;
/// Largest id, as runc limits it.
const MAX_ID: u32 = (1 << 31) - 1;

/// Who a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups, in the file's order.
    pub groups: Vec<u32>,
    /// Home directory; `/` if nothing says otherwise.
    pub home: String,
}

/// A line of `/etc/passwd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Home directory.
    pub home: String,
}

/// A user that cannot be resolved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserError {
    /// No line has the name.
    #[error("unable to find user {name}: no matching entries in passwd file")]
    NoUser {
        /// The name.
        name: String,
    },
    /// No line has the name.
    #[error("unable to find group {name}: no matching entries in group file")]
    NoGroup {
        /// The name.
        name: String,
    },
    /// A number that no id can be.
    #[error("id {id} is outside of 0–2147483647")]
    OutOfRange {
        /// As written.
        id: String,
    },
    /// A file is too long, or a user has too many groups.
    #[error("`{path}` exceeds the limit of {limit}")]
    Limit {
        /// The file.
        path: &'static str,
        /// The limit and its unit.
        limit: &'static str,
    },
    /// The file cannot be read.
    #[error(transparent)]
    Tree(#[from] Error),
    /// The file cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

impl UserError {
    /// Whether something is more than is taken, and not merely wrong.
    pub fn is_limit(&self) -> bool {
        matches!(self, Self::Limit { .. } | Self::OutOfRange { .. })
    }
}

/// Resolves `user[:group]`, names or numbers, by the files of `tree`; empty means root.
pub fn resolve_user(tree: &Tree, spec: &str) -> Result<Identity, UserError> {
    let (user, group) = spec.split_once(':').map_or((spec, None), |(user, group)| (user, Some(group)));
    let group = group.filter(|group| !group.is_empty());
    let found = find_user(tree, if user.is_empty() { "0" } else { user })?;
    let (uid, mut gid, home) = match &found {
        Some(found) => (found.uid, found.gid, found.home.clone()),
        None if user.is_empty() => (0, 0, String::from("/")),
        None => match number(user)? {
            Some(uid) => (uid, 0, String::from("/")),
            None => return Err(UserError::NoUser { name: user.to_owned() }),
        },
    };
    let mut groups = Vec::new();
    match (group, found) {
        (Some(group), _) => gid = resolve_group(tree, group)?,
        (None, Some(found)) => {
            for (_, id, members) in group_lines(&read(tree, "/etc/group")?) {
                if members.split(',').any(|member| member == found.name) {
                    groups.push(id);
                }
            }
            if groups.len() > MAX_GROUPS {
                return Err(UserError::Limit { path: "/etc/group", limit: "65536 groups for one user" });
            }
        }
        (None, None) => {}
    }
    let home = if home.is_empty() { String::from("/") } else { home };
    Ok(Identity { uid, gid, groups, home })
}

/// The first line of `/etc/passwd` with this name or number, if any.
pub fn find_user(tree: &Tree, name: &str) -> Result<Option<User>, UserError> {
    let text = read(tree, "/etc/passwd")?;
    let number = name.parse::<u32>().ok();
    for line in text.lines() {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let (Some(login), Some(uid), Some(gid)) = (fields.first(), id_field(&fields, 2), id_field(&fields, 3)) else {
            continue;
        };
        if *login == name || number == Some(uid) {
            let home = fields.get(5).copied().unwrap_or_default().to_owned();
            return Ok(Some(User { name: (*login).to_owned(), uid, gid, home }));
        }
    }
    Ok(None)
}

/// Resolves a group, name or number, by `/etc/group` of `tree`.
pub fn resolve_group(tree: &Tree, name: &str) -> Result<u32, UserError> {
    let id = name.parse::<u32>().ok();
    let text = read(tree, "/etc/group")?;
    if let Some((_, gid, _)) = group_lines(&text).find(|(group, gid, _)| *group == name || id == Some(*gid)) {
        return Ok(gid);
    }
    number(name)?.ok_or_else(|| UserError::NoGroup { name: name.to_owned() })
}

/// (name, id, members) of each line that has a name and an id.
fn group_lines(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        Some((*fields.first()?, id_field(&fields, 2)?, fields.get(3).copied().unwrap_or_default()))
    })
}

fn id_field(fields: &[&str], index: usize) -> Option<u32> {
    fields.get(index)?.parse().ok()
}

/// A number in the range of ids; `None` if it is no number.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(id) if id <= MAX_ID => Ok(Some(id)),
        Ok(_) | Err(_) => Err(UserError::OutOfRange { id: text.to_owned() }),
    }
}

/// The text of a file; empty if there is none.
fn read(tree: &Tree, path: &'static str) -> Result<String, UserError> {
    let file = match tree.open_file(path) {
        Ok(file) => file,
        Err(error) if error.is_not_found() => return Ok(String::new()),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|source| UserError::Read { path, source })?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(UserError::Limit { path, limit: "10 MiB" });
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\n# comment\n\nnode:x:1000:1001::/home/node:/bin/sh\n99:x:5:6::/n:\n";
    const GROUP: &str = "root:x:0:\nnode:x:1001:\nwheel:x:10:root,node\nvideo:x:27:node\n";

    fn tree() -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), PASSWD).unwrap();
        std::fs::write(dir.path().join("etc/group"), GROUP).unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        (dir, tree)
    }

    #[test]
    fn users_resolve_as_runc_resolves_them() {
        let (_dir, tree) = tree();
        for (spec, uid, gid, groups, home) in [
            ("", 0, 0, vec![10], "/root"),
            ("root", 0, 0, vec![10], "/root"),
            ("node", 1000, 1001, vec![10, 27], "/home/node"),
            ("1000", 1000, 1001, vec![10, 27], "/home/node"),
            ("node:wheel", 1000, 10, vec![], "/home/node"),
            ("node:7", 1000, 7, vec![], "/home/node"),
            ("4242", 4242, 0, vec![], "/"),
            ("4242:27", 4242, 27, vec![], "/"),
            ("99", 5, 6, vec![], "/n"),
            (":video", 0, 27, vec![], "/root"),
        ] {
            let expected = Identity { uid, gid, groups, home: home.to_owned() };
            assert_eq!(resolve_user(&tree, spec).unwrap(), expected, "{spec}");
        }
    }

    #[test]
    fn unknown_names_and_impossible_numbers_are_refused() {
        let (_dir, tree) = tree();
        for (spec, message) in [
            ("nobody", "unable to find user nobody: no matching entries in passwd file"),
            ("node:none", "unable to find group none: no matching entries in group file"),
            ("-1", "id -1 is outside of 0–2147483647"),
            ("4294967296", "id 4294967296 is outside of 0–2147483647"),
            ("0:2147483648", "id 2147483648 is outside of 0–2147483647"),
        ] {
            assert_eq!(resolve_user(&tree, spec).unwrap_err().to_string(), message, "{spec}");
        }
    }

    /// D16: a pipe in the place of `/etc/passwd` must not be waited for.
    #[test]
    fn a_pipe_in_place_of_passwd_is_refused_at_once() {
        let (dir, tree) = tree();
        std::fs::remove_file(dir.path().join("etc/passwd")).unwrap();
        tree.mknod("etc/passwd", crate::Kind::Fifo, 0o644, crate::Device::default()).unwrap();
        let error = resolve_user(&tree, "node").unwrap_err();
        assert_eq!(error.to_string(), "`/etc/passwd` is a named pipe, not a regular file");
    }

    /// D17.
    #[test]
    fn a_passwd_file_beyond_the_limit_is_refused() {
        let (dir, tree) = tree();
        std::fs::File::create(dir.path().join("etc/passwd")).unwrap().set_len(10 << 30).unwrap();
        assert!(matches!(resolve_user(&tree, "node"), Err(UserError::Limit { .. })));
    }
}
