//! Cache keys of operations: which parts they have, and whose content counts.
//!
//! The rules are BuildKit's (`solver/llbsolver/ops`): a copy depends on the content that it copies and on nothing else
//! of its source; a run depends on where its root came from; what only reads is judged by content. Parts are named so that
//! two keys can be compared by a person.

use std::collections::{BTreeMap, BTreeSet};

use build_engine_graph::{
    ContentCache, ExecOp, FileAction, FileActionKind, FileCopy, FileOp, Mount, MountKind, Network, Op, Owner, Security,
    UserRef, Vertex,
};
use build_engine_oci::{Digest, Platform};
use build_engine_solver::{CacheMap, ContentSelector, InputKey, KeyPart, SelectedPath};

/// How `vertex` is cached. Sources have no parts here: what pins them is known to whoever resolves them.
pub(super) fn cache_map(vertex: &Vertex) -> CacheMap {
    let inputs = vertex.inputs().len();
    match vertex.op() {
        Op::Exec(exec) => exec_map(exec, inputs, vertex.platform()),
        Op::File(file) => file_map(file, inputs),
        Op::Merge(merge) => plain("merge", &format!("{:?}", merge.inputs), inputs),
        Op::Diff(diff) => plain("diff", &format!("{:?} {:?}", diff.lower, diff.upper), inputs),
        Op::Source(_) | Op::Build(_) => CacheMap { inputs: vec![InputKey::default(); inputs], ..CacheMap::default() },
    }
}

fn plain(name: &str, value: &str, inputs: usize) -> CacheMap {
    CacheMap { parts: vec![KeyPart::new(name, value)], inputs: vec![InputKey::default(); inputs], unique: false }
}

fn exec_map(exec: &ExecOp, inputs: usize, platform: Option<&Platform>) -> CacheMap {
    let meta = &exec.meta;
    let mut parts = vec![KeyPart::new("RUN", join(&meta.args))];
    parts.extend(meta.env.iter().map(|pair| match pair.split_once('=') {
        Some((name, value)) => KeyPart::new(format!("environment {name}"), value),
        None => KeyPart::new("environment", pair),
    }));
    let platform = platform.map_or_else(|| Platform::host().to_string(), ToString::to_string);
    parts.push(KeyPart::new("platform", platform));
    parts.push(KeyPart::new("WORKDIR", &meta.cwd));
    parts.push(KeyPart::new("USER", &meta.user));
    // Addresses change from day to day; BuildKit leaves them out as well.
    parts.extend(meta.extra_hosts.iter().map(|(name, _)| KeyPart::new("extra host", name)));
    parts.extend(
        meta.ulimits
            .iter()
            .map(|limit| KeyPart::new(format!("ulimit {}", limit.name), format!("{}:{}", limit.soft, limit.hard))),
    );
    for (name, value) in [("hostname", &meta.hostname), ("cgroup parent", &meta.cgroup_parent)] {
        if !value.is_empty() {
            parts.push(KeyPart::new(name, value));
        }
    }
    if exec.network != Network::Default {
        parts.push(KeyPart::new("network", if exec.network == Network::None { "none" } else { "host" }));
    }
    if exec.security != Security::Sandbox {
        parts.push(KeyPart::new("security", "insecure"));
    }
    parts.extend(
        exec.secret_env
            .iter()
            .map(|secret| KeyPart::new("secret environment", format!("{} {}", secret.name, secret.id))),
    );
    parts.extend(exec.devices.iter().map(|device| KeyPart::new("device", &device.name)));
    parts.extend(exec.mounts.iter().filter(|mount| !is_plain_root(mount)).map(mount_part));
    CacheMap { parts, inputs: (0..inputs).map(|input| mount_input(exec, input)).collect(), unique: false }
}

/// Whether a run is given secrets.
pub(super) fn has_secrets(exec: &ExecOp) -> bool {
    !exec.secret_env.is_empty() || exec.mounts.iter().any(|mount| matches!(mount.kind, MountKind::Secret(_)))
}

fn is_plain_root(mount: &Mount) -> bool {
    mount.dest == "/" && mount.selector.is_empty() && !mount.readonly && matches!(mount.kind, MountKind::Bind)
}

fn mount_part(mount: &Mount) -> KeyPart {
    let what = match &mount.kind {
        MountKind::Bind => format!("bind input {:?}", mount.input),
        MountKind::Secret(secret) => {
            format!("secret {} {}:{} {:o} {}", secret.id, secret.uid, secret.gid, secret.mode, secret.optional)
        }
        MountKind::Ssh(agent) => {
            format!("ssh {} {}:{} {:o} {}", agent.id, agent.uid, agent.gid, agent.mode, agent.optional)
        }
        // What a cache mount is called must not decide whether a step runs again.
        MountKind::Cache { .. } => format!("cache input {:?}", mount.input),
        MountKind::Tmpfs { size } => format!("tmpfs {size}"),
    };
    let access = if mount.readonly { "ro" } else { "rw" };
    KeyPart::new(format!("mount {}", mount.dest), format!("{what} {access} output {:?}", mount.output))
}

/// What a run sees of one input: all of it by origin, or what its mounts select by content where that is safe.
fn mount_input(exec: &ExecOp, input: usize) -> InputKey {
    let mounts: Vec<&Mount> = exec
        .mounts
        .iter()
        .filter(|mount| mount.input == Some(input) && matches!(mount.kind, MountKind::Bind | MountKind::Cache { .. }))
        .collect();
    let by_content = !mounts.is_empty()
        && mounts.iter().all(|mount| {
            let root = clean(&mount.selector) == "/";
            // Where changes are kept, only a mount of everything is safe: files beside the selection would be lost.
            let safe = mount.output.is_none() || mount.readonly || root;
            match mount.content_cache {
                ContentCache::Default => safe && mount.dest != "/",
                ContentCache::On => safe,
                ContentCache::Off => false,
            }
        });
    let paths: BTreeSet<String> = mounts.iter().map(|mount| clean(&mount.selector)).collect();
    let selector = (paths.iter().any(|path| path != "/")).then(|| join(&paths));
    let content = by_content.then(|| ContentSelector {
        // What a mount shows is what its source leads to.
        paths: paths
            .into_iter()
            .map(|path| SelectedPath { path, follow_links: true, ..SelectedPath::default() })
            .collect(),
    });
    InputKey { selector, content }
}

fn file_map(file: &FileOp, inputs: usize) -> CacheMap {
    let mut parts = Vec::new();
    let mut selected: BTreeMap<usize, Vec<SelectedPath>> = BTreeMap::new();
    // An input that an action changes is judged by its origin: all of it becomes the result.
    let changed: BTreeSet<usize> = file.actions.iter().filter_map(|action| action.input).collect();
    for action in &file.actions {
        let indexes = format!("{:?} {:?} {:?}", action.input, action.secondary_input, action.output);
        parts.push(action_part(action, &indexes));
        let owner = match &action.kind {
            FileActionKind::Copy(copy) => {
                if let Some(source) = action.secondary_input.filter(|source| *source < inputs) {
                    selected.entry(source).or_default().push(copied_path(copy));
                }
                copy.owner.as_ref()
            }
            FileActionKind::Mkfile { owner, .. } | FileActionKind::Mkdir { owner, .. } => owner.as_ref(),
            FileActionKind::Symlink { owner, .. } => owner.as_ref(),
            FileActionKind::Rm { .. } => None,
        };
        for (input, path) in owner.into_iter().flat_map(named_owners) {
            let selection = SelectedPath { path: path.into(), follow_links: true, ..SelectedPath::default() };
            selected.entry(input).or_default().push(selection);
        }
    }
    let inputs = (0..inputs)
        .map(|input| match selected.remove(&input) {
            Some(mut paths) if !changed.contains(&input) => {
                paths.sort_by(|a, b| a.path.cmp(&b.path));
                paths.dedup();
                let selector = join(paths.iter().map(|path| &path.path));
                InputKey { selector: Some(selector), content: Some(ContentSelector { paths }) }
            }
            _ => InputKey::default(),
        })
        .collect();
    CacheMap { parts, inputs, unique: false }
}

fn copied_path(copy: &FileCopy) -> SelectedPath {
    SelectedPath {
        path: copy.src.clone(),
        wildcard: copy.allow_wildcard && copy.src.contains(['*', '?', '[', '\\']),
        follow_links: copy.follow_symlink,
        include: copy.include_patterns.clone(),
        exclude: copy.exclude_patterns.clone(),
        required: copy.required_paths.clone(),
    }
}

fn action_part(action: &FileAction, indexes: &str) -> KeyPart {
    match &action.kind {
        FileActionKind::Copy(copy) => {
            // Where the source stood is no part of the result; its last component is, because it may name the copy.
            let name = copy.src.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
            let copy = FileCopy { src: name, ..copy.clone() };
            KeyPart::new(format!("copy to {}", copy.dest), format!("{copy:?} {indexes}"))
        }
        FileActionKind::Mkfile { path, mode, data, owner, timestamp } => {
            let data = Digest::sha256(data);
            KeyPart::new(format!("file {path}"), format!("{mode:o} {data} {owner:?} {timestamp:?} {indexes}"))
        }
        FileActionKind::Mkdir { path, mode, make_parents, owner, timestamp } => KeyPart::new(
            format!("directory {path}"),
            format!("{mode:o} {make_parents} {owner:?} {timestamp:?} {indexes}"),
        ),
        FileActionKind::Rm { path, allow_not_found, allow_wildcard } => {
            KeyPart::new(format!("remove {path}"), format!("{allow_not_found} {allow_wildcard} {indexes}"))
        }
        FileActionKind::Symlink { old_path, new_path, owner, timestamp } => {
            KeyPart::new(format!("link {new_path}"), format!("{old_path} {owner:?} {timestamp:?} {indexes}"))
        }
    }
}

fn named_owners(owner: &Owner) -> impl Iterator<Item = (usize, &'static str)> {
    let named = |who: &Option<UserRef>, path| match who {
        Some(UserRef::Name { input: Some(input), .. }) => Some((*input, path)),
        Some(UserRef::Name { input: None, .. } | UserRef::Id(_)) | None => None,
    };
    [named(&owner.user, "/etc/passwd"), named(&owner.group, "/etc/group")].into_iter().flatten()
}

fn clean(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    format!("/{}", parts.join("/"))
}

/// Joins words so that no two lists give the same text.
fn join(words: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let words: Vec<String> = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
    match &words[..] {
        [word] => word.clone(),
        words => serde_json::to_string(words).expect("strings can be written as JSON"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use build_engine_graph::{CacheSharing, Edge, ExecMeta, FileFromSession, Metadata, ProxyEnv, SourceOp};

    fn source() -> Edge {
        let op = Op::Source(SourceOp { identifier: "local://context".into(), ..SourceOp::default() });
        Vertex::new(op, Vec::new(), None, Metadata::default()).output()
    }

    fn mount(dest: &str, kind: MountKind, input: Option<usize>, output: Option<usize>) -> Mount {
        let readonly = output.is_none();
        Mount {
            input,
            selector: String::new(),
            dest: dest.into(),
            output,
            readonly,
            kind,
            content_cache: ContentCache::Default,
        }
    }

    fn exec(change: impl FnOnce(&mut ExecOp)) -> CacheMap {
        let mut exec = ExecOp {
            meta: ExecMeta {
                args: vec!["make".into()],
                env: vec!["A=1".into()],
                cwd: "/".into(),
                ..ExecMeta::default()
            },
            mounts: vec![mount("/", MountKind::Bind, Some(0), Some(0))],
            network: Network::Default,
            security: Security::Sandbox,
            secret_env: Vec::new(),
            devices: Vec::new(),
        };
        change(&mut exec);
        let inputs = vec![source(), source()];
        cache_map(&Vertex::new(Op::Exec(exec), inputs, Some(Platform::new("linux", "amd64")), Metadata::default()))
    }

    /// A trap that DESIGN §3 names. F1-041, F1-071, F1-073, F1-082.
    #[test]
    fn what_may_differ_from_run_to_run_is_in_no_key() {
        let plain = exec(|_| {}).parts;
        let with_proxy = exec(|exec| {
            exec.meta.proxy_env = Some(ProxyEnv { http: "http://proxy".into(), ..ProxyEnv::default() });
        });
        assert_eq!(with_proxy.parts, plain);
        let cache = |id: &str| {
            let kind = MountKind::Cache { id: id.into(), sharing: CacheSharing::Locked };
            exec(move |exec| exec.mounts.push(mount("/cache", kind, None, None))).parts
        };
        assert_eq!(cache("one"), cache("two"));
        assert_ne!(cache("one"), plain);
        let host = |address: &str| {
            let host = ("db".to_owned(), address.to_owned());
            exec(move |exec| exec.meta.extra_hosts.push(host)).parts
        };
        assert_eq!(host("10.0.0.1"), host("10.0.0.2"));
        assert_ne!(host("10.0.0.1"), plain);
    }

    #[test]
    fn what_a_run_depends_on_is_a_part_of_its_own() {
        let plain = exec(|_| {}).parts;
        let secret = FileFromSession { id: "token".into(), uid: 0, gid: 0, mode: 0o400, optional: false };
        type Change = Box<dyn FnOnce(&mut ExecOp)>;
        let changes: [(&str, Change); 6] = [
            ("RUN", Box::new(|exec| exec.meta.args.push("all".into()))),
            ("environment A", Box::new(|exec| exec.meta.env[0] = "A=2".into())),
            ("WORKDIR", Box::new(|exec| exec.meta.cwd = "/src".into())),
            ("USER", Box::new(|exec| exec.meta.user = "app".into())),
            ("network", Box::new(|exec| exec.network = Network::None)),
            (
                "mount /run/secrets/token",
                Box::new(|exec| exec.mounts.push(mount("/run/secrets/token", MountKind::Secret(secret), None, None))),
            ),
        ];
        for (name, change) in changes {
            let parts = exec(change).parts;
            let new: Vec<&str> =
                parts.iter().filter(|part| !plain.contains(part)).map(|part| part.name.as_str()).collect();
            assert_eq!(new, [name]);
        }
    }

    /// F1-084: the root by origin, what is only read by content.
    #[test]
    fn the_root_counts_by_origin_and_a_read_only_mount_by_content() {
        let map = exec(|exec| exec.mounts.push(mount("/src", MountKind::Bind, Some(1), None)));
        assert_eq!(map.inputs[0].content, None);
        assert!(map.inputs[1].content.is_some());
        let kept = exec(|exec| {
            let mut part = mount("/src", MountKind::Bind, Some(1), Some(1));
            part.selector = "/sub".into();
            exec.mounts.push(part);
        });
        assert_eq!(kept.inputs[1].content, None, "files beside the selection would be lost");
    }

    /// F1-093.
    #[test]
    fn a_copy_counts_what_it_copies_and_the_tree_it_changes_by_origin() {
        let copy = |src: &str| {
            let copy = FileCopy { src: src.into(), dest: "/app/".into(), ..FileCopy::default() };
            let owner = Some(Owner { user: Some(UserRef::Name { name: "app".into(), input: Some(0) }), group: None });
            let action = FileAction {
                input: Some(0),
                secondary_input: Some(1),
                output: Some(0),
                kind: FileActionKind::Copy(FileCopy { owner, ..copy }),
            };
            let op = Op::File(FileOp { actions: vec![action] });
            cache_map(&Vertex::new(op, vec![source(), source()], None, Metadata::default()))
        };
        let map = copy("/a/file");
        assert_eq!(map.inputs[0], InputKey::default());
        assert_eq!(map.inputs[1].content.as_ref().map(|content| content.paths[0].path.as_str()), Some("/a/file"));
        assert_eq!(copy("/b/file").parts, map.parts, "where the source stood does not matter");
        assert_ne!(copy("/a/other").parts, map.parts, "what it is called does");
    }
}
