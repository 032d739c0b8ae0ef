//! Graphs, configs and diagnostics as short text.

use std::collections::BTreeMap;
use std::fmt::Write;

use build_engine_dockerfile::{Diagnostic, LineIndex};
use build_engine_graph::{
    CacheSharing, FileAction, FileActionKind, MountKind, Network, Op, Owner, Security, UserRef, Vertex, walk,
};
use build_engine_oci::{Digest, ImageConfig};

use crate::{Lowered, Question};

const USUAL_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn question(question: &Question) -> String {
    match question {
        Question::ImageConfig { source, platform } => format!("{} for {platform}", source.identifier),
        Question::File { context, path } => format!("{context}:{path}"),
        Question::Time { identifier, .. } => format!("time of {identifier}"),
    }
}

pub(super) fn diagnostics(source: &str, diagnostics: &[Diagnostic]) -> String {
    let lines = LineIndex::new(source);
    let mut out = String::new();
    for diagnostic in diagnostics.iter().filter(|diagnostic| diagnostic.is_error()) {
        let (line, column) = lines.position(diagnostic.span.start);
        let _ = write!(out, "error[{}] {line}:{column}", diagnostic.rule);
        let text = diagnostic.span.of(source).lines().next().unwrap_or_default();
        if !text.is_empty() {
            let _ = write!(out, " `{text}`");
        }
        let _ = writeln!(out, ": {}", diagnostic.message);
        if let Some(hint) = &diagnostic.hint {
            let _ = writeln!(out, "hint: {hint}");
        }
    }
    out
}

/// Digests in text, cut to seven digits.
fn short(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("sha256:") {
        let end = (at + 7 + 64).min(rest.len());
        out.push_str(&rest[..(at + 7 + 7).min(end)]);
        rest = &rest[end..];
    }
    out + rest
}

pub(super) fn graph(lowered: &Lowered) -> String {
    let mut numbers: BTreeMap<Digest, usize> = BTreeMap::new();
    let mut out = String::new();
    let roots: Vec<_> = lowered.results.iter().filter_map(|result| result.root.as_ref()).collect();
    walk(roots.iter().copied(), |vertex| {
        let number = numbers.len();
        numbers.insert(vertex.digest().clone(), number);
        let inputs: Vec<String> =
            vertex.inputs().iter().map(|edge| format!("#{}", numbers[edge.vertex.digest()])).collect();
        vertex_text(&mut out, number, vertex, &inputs);
    });
    for result in &lowered.results {
        let root = match &result.root {
            Some(edge) => format!("#{}", numbers[edge.vertex.digest()]),
            None => "empty".into(),
        };
        let _ = writeln!(out, "{} = {root}", result.platform);
    }
    short(&out)
}

fn vertex_text(out: &mut String, number: usize, vertex: &Vertex, inputs: &[String]) {
    let metadata = vertex.metadata();
    let platform = vertex.platform().map(|platform| format!(" {platform}")).unwrap_or_default();
    let lines =
        metadata.spans.first().map(|span| format!(" @{}-{}", span.start_line, span.end_line)).unwrap_or_default();
    let no_cache = if metadata.ignore_cache { " no-cache" } else { "" };
    let group = metadata.progress_group.as_ref().map(|group| format!(" group={:?}", group.id)).unwrap_or_default();
    let kind = match vertex.op() {
        Op::Source(source) => format!("source {}", source.identifier),
        Op::Exec(exec) => format!("exec {:?}", exec.meta.args),
        Op::File(_) => "file".into(),
        Op::Merge(_) => format!("merge {}", inputs.join(" ")),
        Op::Diff(_) => "diff".into(),
        Op::Build(_) => "build".into(),
    };
    let _ = writeln!(out, "#{number} {kind}{platform}{lines}{no_cache}{group} {:?}", metadata.name);
    let input = |index: Option<usize>| match index {
        None => "-".to_owned(),
        Some(index) => inputs.get(index).cloned().unwrap_or_else(|| format!("^{}", index - inputs.len())),
    };
    match vertex.op() {
        Op::Source(source) => {
            for (name, value) in &source.attrs {
                let _ = writeln!(out, "    {name} = {value}");
            }
        }
        Op::Exec(exec) => exec_text(out, exec, &input),
        Op::File(file) => {
            for action in &file.actions {
                action_text(out, action, &input);
            }
        }
        Op::Merge(_) | Op::Diff(_) | Op::Build(_) => {}
    }
}

fn exec_text(out: &mut String, exec: &build_engine_graph::ExecOp, input: &dyn Fn(Option<usize>) -> String) {
    let meta = &exec.meta;
    let env: Vec<&String> = meta.env.iter().filter(|pair| *pair != USUAL_PATH && *pair != "PATH=/bin").collect();
    let mut rest = String::new();
    if !env.is_empty() {
        let _ = write!(rest, " env={env:?}");
    }
    if meta.cwd != "/" {
        let _ = write!(rest, " cwd={}", meta.cwd);
    }
    for (name, value) in [("user", &meta.user), ("hostname", &meta.hostname), ("cgroup", &meta.cgroup_parent)] {
        if !value.is_empty() {
            let _ = write!(rest, " {name}={value}");
        }
    }
    if let Some(proxy) = &meta.proxy_env {
        let _ = write!(rest, " proxy={:?}", [&proxy.http, &proxy.https, &proxy.ftp, &proxy.no, &proxy.all]);
    }
    for (name, address) in &meta.extra_hosts {
        let _ = write!(rest, " host={name}:{address}");
    }
    for ulimit in &meta.ulimits {
        let _ = write!(rest, " ulimit={}={}:{}", ulimit.name, ulimit.soft, ulimit.hard);
    }
    if exec.network != Network::Default {
        let _ = write!(rest, " network={:?}", exec.network);
    }
    if exec.security != Security::Sandbox {
        let _ = write!(rest, " security={:?}", exec.security);
    }
    for secret in &exec.secret_env {
        let _ = write!(rest, " secret-env={}:{}:optional={}", secret.name, secret.id, secret.optional);
    }
    for device in &exec.devices {
        let _ = write!(rest, " device={}:optional={}", device.name, device.optional);
    }
    if !rest.is_empty() {
        let _ = writeln!(out, "   {rest}");
    }
    for mount in &exec.mounts {
        let kind = match &mount.kind {
            MountKind::Bind => "bind".to_owned(),
            MountKind::Secret(file) => {
                format!("secret {} {}:{} {:o} optional={}", file.id, file.uid, file.gid, file.mode, file.optional)
            }
            MountKind::Ssh(file) => {
                format!("ssh {:?} {}:{} {:o} optional={}", file.id, file.uid, file.gid, file.mode, file.optional)
            }
            MountKind::Cache { id, sharing: CacheSharing::Shared } => format!("cache {id}"),
            MountKind::Cache { id, sharing } => format!("cache {id} {sharing:?}"),
            MountKind::Tmpfs { size } => format!("tmpfs {size}"),
        };
        let _ = write!(out, "    {kind} {} <- {}", mount.dest, input(mount.input));
        if !mount.selector.is_empty() {
            let _ = write!(out, " [{}]", mount.selector);
        }
        if mount.readonly {
            let _ = write!(out, " ro");
        }
        if let Some(output) = mount.output {
            let _ = write!(out, " -> {output}");
        }
        out.push('\n');
    }
}

fn action_text(out: &mut String, action: &FileAction, input: &dyn Fn(Option<usize>) -> String) {
    let on = input(action.input);
    let user = |user: &Option<UserRef>| match user {
        None => "-".to_owned(),
        Some(UserRef::Id(id)) => id.to_string(),
        Some(UserRef::Name { name, input: names }) => format!("{name}@{}", input(*names)),
    };
    let owned = |owner: &Option<Owner>| match owner {
        None => String::new(),
        Some(owner) => format!(" owner={}:{}", user(&owner.user), user(&owner.group)),
    };
    let at = |timestamp: &Option<i64>| timestamp.map(|at| format!(" time={at}")).unwrap_or_default();
    let text = match &action.kind {
        FileActionKind::Copy(copy) => {
            let mut text =
                format!("copy {}{} {}{}", input(action.secondary_input), copy.src, copy.dest, owned(&copy.owner));
            if let Some(mode) = copy.mode {
                let _ = write!(text, " mode={mode:o}");
            }
            if !copy.mode_str.is_empty() {
                let _ = write!(text, " mode={:?}", copy.mode_str);
            }
            for (set, name) in [
                (copy.follow_symlink, "follow"),
                (copy.dir_copy_contents, "contents"),
                (copy.attempt_unpack, "unpack"),
                (copy.create_dest_path, "create"),
                (copy.allow_wildcard, "wildcard"),
                (copy.allow_empty_wildcard, "empty-wildcard"),
                (copy.always_replace_existing_dest_paths, "replace"),
            ] {
                if set {
                    let _ = write!(text, " {name}");
                }
            }
            for (list, name) in [
                (&copy.include_patterns, "include"),
                (&copy.exclude_patterns, "exclude"),
                (&copy.required_paths, "required"),
            ] {
                if !list.is_empty() {
                    let _ = write!(text, " {name}={list:?}");
                }
            }
            text + &at(&copy.timestamp)
        }
        FileActionKind::Mkfile { path, mode, data, owner, timestamp } => {
            format!("mkfile {path} {mode:o}{}{} {:?}", owned(owner), at(timestamp), String::from_utf8_lossy(data))
        }
        FileActionKind::Mkdir { path, mode, make_parents, owner, timestamp } => {
            format!("mkdir {path} {mode:o} parents={make_parents}{}{}", owned(owner), at(timestamp))
        }
        FileActionKind::Rm { path, .. } => format!("rm {path}"),
        FileActionKind::Symlink { old_path, new_path, .. } => format!("symlink {old_path} {new_path}"),
    };
    let output = action.output.map(|output| format!(" -> {output}")).unwrap_or_default();
    let _ = writeln!(out, "    {on}: {text}{output}");
}

pub(super) fn configs(lowered: &Lowered) -> String {
    let mut out = String::new();
    for result in &lowered.results {
        if lowered.results.len() > 1 {
            let _ = writeln!(out, "# {}", result.platform);
        }
        config(&mut out, &result.image);
    }
    for warning in &lowered.warnings {
        let _ = writeln!(out, "warning[{}]: {}", warning.rule, warning.message);
    }
    out.replace(USUAL_PATH, "PATH=usual")
}

fn config(out: &mut String, image: &ImageConfig) {
    let text = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    let value = serde_json::to_value(image).unwrap();
    for (key, value) in value.as_object().unwrap() {
        match key.as_str() {
            "config" => {
                for (key, value) in value.as_object().unwrap() {
                    let _ = writeln!(out, "{key}: {}", text(value));
                }
            }
            "rootfs" => assert_eq!(value.to_string(), r#"{"type":"layers","diff_ids":[]}"#),
            "history" => {
                for item in &image.history {
                    let mark = if item.empty_layer { ' ' } else { '+' };
                    let comment = match item.comment.as_str() {
                        "buildkit.dockerfile.v0" => "",
                        "" => " (inherited)",
                        comment => comment,
                    };
                    let created = item.created.as_ref().map(|created| format!(" {created}")).unwrap_or_default();
                    let _ = writeln!(out, "{mark} {}{comment}{created}", item.created_by);
                }
            }
            key => {
                let _ = writeln!(out, "{key}: {}", text(value));
            }
        }
    }
}
