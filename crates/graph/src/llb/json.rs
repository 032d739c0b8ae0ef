//! A definition as JSON: the answer to BuildKit's subrequest `frontend.convertllb`.
//!
//! Operations and sources are written as `protojson` writes these messages: names in camel case, 64-bit numbers as
//! strings, enums by name, bytes in base64, defaults left out. Metadata is written as Go writes the structure of
//! `client/llb`. Left out are capabilities, which say what a daemon must know and which this engine does not track, the
//! graph that BuildKit would read the Dockerfile with, and graphs inside of a build operation, which no Dockerfile makes.
//!
//! Invariant: what stands here is read back from the wire bytes, so that it cannot differ from what digests cover.
//!
//! Source: BuildKit `frontend/subrequests/convertllb`, `dockerfile2llb/convertllb.go`; protobuf's JSON mapping.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use build_engine_oci::Digest;
use prost::Message;
use serde_json::{Map, Value, json};

use super::{
    PbAction, PbBuildOp, PbChownOpt, PbDefinition, PbExecOp, PbFileAction, PbInput, PbLocations, PbMeta, PbMount, PbOp,
    PbOpKind, PbOpMetadata, PbPlatform, PbRange, PbSessionOpt, PbSource, PbStringEntry, PbUser, PbUserOpt, definition,
};
use crate::Edge;

/// The definition of everything below `edges`: `def` and `metadata` by digest, and `source`.
pub fn definition_json(edges: &[Edge]) -> Value {
    let PbDefinition { def, metadata, source } = definition(edges);
    let mut ops: Vec<(String, Value)> = def
        .iter()
        // Our own bytes decode.
        .map(|wire| (Digest::sha256(wire).to_string(), PbOp::decode(wire.as_slice()).map(op).unwrap_or_default()))
        .collect();
    ops.sort_by(|(one, _), (other, _)| one.cmp(other));
    let metadata: Map<String, Value> = metadata
        .into_iter()
        .map(|entry| (entry.key.unwrap_or_default(), op_metadata(entry.value.unwrap_or_default())))
        .collect();
    json!({
        "def": ops.into_iter().collect::<Map<_, _>>(),
        "metadata": metadata,
        "source": source.map_or_else(|| json!({}), pb_source),
    })
}

/// An object that leaves out what protobuf leaves out.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    fn text(self, name: &str, text: String) -> Self {
        if text.is_empty() { self } else { self.put(name, text) }
    }

    fn texts(self, name: &str, texts: Vec<String>) -> Self {
        if texts.is_empty() { self } else { self.put(name, texts) }
    }

    fn list<T>(self, name: &str, list: Vec<T>, write: impl Fn(T) -> Value) -> Self {
        if list.is_empty() { self } else { self.put(name, list.into_iter().map(write).collect::<Vec<_>>()) }
    }

    fn flag(self, name: &str, flag: bool) -> Self {
        if flag { self.put(name, true) } else { self }
    }

    /// A 64-bit number, which JSON numbers cannot hold.
    fn long(self, name: &str, number: i64) -> Self {
        if number == 0 { self } else { self.put(name, number.to_string()) }
    }

    fn number(self, name: &str, number: impl Into<i64>) -> Self {
        match number.into() {
            0 => self,
            number => self.put(name, number),
        }
    }

    /// An enum; a value without a name is a number.
    fn choice(self, name: &str, number: i32, names: &[&str]) -> Self {
        match usize::try_from(number).ok().and_then(|number| names.get(number)) {
            _ if number == 0 => self,
            Some(text) => self.put(name, *text),
            None => self.put(name, number),
        }
    }

    fn bytes(self, name: &str, bytes: &[u8]) -> Self {
        if bytes.is_empty() { self } else { self.put(name, STANDARD.encode(bytes)) }
    }

    fn strings(self, name: &str, entries: Vec<PbStringEntry>) -> Self {
        let map: Map<String, Value> = entries
            .into_iter()
            .map(|entry| (entry.key.unwrap_or_default(), entry.value.unwrap_or_default().into()))
            .collect();
        if map.is_empty() { self } else { self.put(name, map) }
    }

    fn message<T>(self, name: &str, message: Option<T>, write: impl Fn(T) -> Value) -> Self {
        match message {
            Some(message) => self.put(name, write(message)),
            None => self,
        }
    }

    fn done(self) -> Value {
        Value::Object(self.0)
    }
}

fn op(op: PbOp) -> Value {
    let fields = Fields::default().list("inputs", op.inputs, input);
    let index = |input: super::PbIndex| Fields::default().long("input", input.input).done();
    let fields = match op.op {
        None => fields,
        Some(PbOpKind::Exec(op)) => fields.put("exec", exec(op)),
        Some(PbOpKind::Source(source)) => fields.put(
            "source",
            Fields::default().text("identifier", source.identifier).strings("attrs", source.attrs).done(),
        ),
        Some(PbOpKind::File(file)) => {
            fields.put("file", Fields::default().list("actions", file.actions, action).done())
        }
        Some(PbOpKind::Build(op)) => fields.put("build", build(op)),
        Some(PbOpKind::Merge(merge)) => {
            fields.put("merge", Fields::default().list("inputs", merge.inputs, index).done())
        }
        Some(PbOpKind::Diff(diff)) => fields.put(
            "diff",
            Fields::default().message("lower", diff.lower, index).message("upper", diff.upper, index).done(),
        ),
        // No Dockerfile makes one, and it is refused where it is decoded.
        Some(PbOpKind::Passthrough(_)) => fields.put("passthrough", json!({})),
    };
    fields
        .message("platform", op.platform, platform)
        .message("constraints", op.constraints, |constraints| {
            Fields::default().texts("filter", constraints.filter).done()
        })
        .done()
}

fn input(input: PbInput) -> Value {
    Fields::default().text("digest", input.digest).long("index", input.index).done()
}

fn platform(platform: PbPlatform) -> Value {
    Fields::default()
        .text("Architecture", platform.architecture)
        .text("OS", platform.os)
        .text("Variant", platform.variant)
        .text("OSVersion", platform.os_version)
        .texts("OSFeatures", platform.os_features)
        .done()
}

fn exec(exec: PbExecOp) -> Value {
    Fields::default()
        .message("meta", exec.meta, meta)
        .list("mounts", exec.mounts, mount)
        .choice("network", exec.network, &["UNSET", "HOST", "NONE"])
        .choice("security", exec.security, &["SANDBOX", "INSECURE"])
        .list("secretenv", exec.secret_env, |secret| {
            Fields::default().text("ID", secret.id).text("name", secret.name).flag("optional", secret.optional).done()
        })
        .list("cdiDevices", exec.cdi_devices, |device| {
            Fields::default().text("name", device.name).flag("optional", device.optional).done()
        })
        .done()
}

fn meta(meta: PbMeta) -> Value {
    Fields::default()
        .texts("args", meta.args)
        .texts("env", meta.env)
        .text("cwd", meta.cwd)
        .text("user", meta.user)
        .message("proxyEnv", meta.proxy_env, |proxy| {
            Fields::default()
                .text("httpProxy", proxy.http_proxy)
                .text("httpsProxy", proxy.https_proxy)
                .text("ftpProxy", proxy.ftp_proxy)
                .text("noProxy", proxy.no_proxy)
                .text("allProxy", proxy.all_proxy)
                .done()
        })
        .list("extraHosts", meta.extra_hosts, |host| {
            Fields::default().text("Host", host.host).text("IP", host.ip).done()
        })
        .text("hostname", meta.hostname)
        .list("ulimit", meta.ulimit, |limit| {
            Fields::default().text("Name", limit.name).long("Soft", limit.soft).long("Hard", limit.hard).done()
        })
        .text("cgroupParent", meta.cgroup_parent)
        .flag("removeMountStubsRecursive", meta.remove_mount_stubs_recursive)
        .list("validExitCodes", meta.valid_exit_codes, Value::from)
        .done()
}

fn mount(mount: PbMount) -> Value {
    Fields::default()
        .long("input", mount.input)
        .text("selector", mount.selector)
        .text("dest", mount.dest)
        .long("output", mount.output)
        .flag("readonly", mount.readonly)
        .choice("mountType", mount.mount_type, &["BIND", "SECRET", "SSH", "CACHE", "TMPFS"])
        .message("TmpfsOpt", mount.tmpfs_opt, |tmpfs| Fields::default().long("size", tmpfs.size).done())
        .message("cacheOpt", mount.cache_opt, |cache| {
            let fields = Fields::default().text("ID", cache.id);
            fields.choice("sharing", cache.sharing, &["SHARED", "PRIVATE", "LOCKED"]).done()
        })
        .message("secretOpt", mount.secret_opt, session)
        .message("SSHOpt", mount.ssh_opt, session)
        .text("resultID", mount.result_id)
        .choice("contentCache", mount.content_cache, &["DEFAULT", "ON", "OFF"])
        .done()
}

fn session(file: PbSessionOpt) -> Value {
    Fields::default()
        .text("ID", file.id)
        .number("uid", file.uid)
        .number("gid", file.gid)
        .number("mode", file.mode)
        .flag("optional", file.optional)
        .done()
}

fn action(action: PbFileAction) -> Value {
    let fields = Fields::default()
        .long("input", action.input)
        .long("secondaryInput", action.secondary_input)
        .long("output", action.output);
    let fields = match action.action {
        None => fields,
        Some(PbAction::Copy(copy)) => fields.put(
            "copy",
            Fields::default()
                .text("src", copy.src)
                .text("dest", copy.dest)
                .message("owner", copy.owner, owner)
                .number("mode", copy.mode)
                .flag("followSymlink", copy.follow_symlink)
                .flag("dirCopyContents", copy.dir_copy_contents)
                .flag("attemptUnpackDockerCompatibility", copy.attempt_unpack)
                .flag("createDestPath", copy.create_dest_path)
                .flag("allowWildcard", copy.allow_wildcard)
                .flag("allowEmptyWildcard", copy.allow_empty_wildcard)
                .long("timestamp", copy.timestamp)
                .texts("includePatterns", copy.include_patterns)
                .texts("excludePatterns", copy.exclude_patterns)
                .flag("alwaysReplaceExistingDestPaths", copy.always_replace_existing_dest_paths)
                .text("modeStr", copy.mode_str)
                .texts("requiredPaths", copy.required_paths)
                .done(),
        ),
        Some(PbAction::Mkfile(file)) => fields.put(
            "mkfile",
            Fields::default()
                .text("path", file.path)
                .number("mode", file.mode)
                .bytes("data", &file.data)
                .message("owner", file.owner, owner)
                .long("timestamp", file.timestamp)
                .done(),
        ),
        Some(PbAction::Mkdir(dir)) => fields.put(
            "mkdir",
            Fields::default()
                .text("path", dir.path)
                .number("mode", dir.mode)
                .flag("makeParents", dir.make_parents)
                .message("owner", dir.owner, owner)
                .long("timestamp", dir.timestamp)
                .done(),
        ),
        Some(PbAction::Rm(rm)) => fields.put(
            "rm",
            Fields::default()
                .text("path", rm.path)
                .flag("allowNotFound", rm.allow_not_found)
                .flag("allowWildcard", rm.allow_wildcard)
                .done(),
        ),
        Some(PbAction::Symlink(link)) => fields.put(
            "symlink",
            Fields::default()
                .text("oldpath", link.old_path)
                .text("newpath", link.new_path)
                .message("owner", link.owner, owner)
                .long("timestamp", link.timestamp)
                .done(),
        ),
    };
    fields.done()
}

fn owner(owner: PbChownOpt) -> Value {
    // The number is half of a choice: 0 was said, it is no default.
    let user = |user: PbUserOpt| match user.user {
        None => json!({}),
        Some(PbUser::ByName(named)) => {
            json!({ "byName": Fields::default().text("name", named.name).long("input", named.input).done() })
        }
        Some(PbUser::ById(id)) => json!({ "byID": id }),
    };
    Fields::default().message("user", owner.user, user).message("group", owner.group, user).done()
}

fn build(build: PbBuildOp) -> Value {
    let inputs: Map<String, Value> = build
        .inputs
        .into_iter()
        .map(|entry| {
            let input = entry.value.unwrap_or_default().input;
            (entry.key.unwrap_or_default(), Fields::default().long("input", input).done())
        })
        .collect();
    let fields = Fields::default().long("builder", build.builder);
    let fields = if inputs.is_empty() { fields } else { fields.put("inputs", inputs) };
    fields.strings("attrs", build.attrs).done()
}

/// As `encoding/json` writes `llb.OpMetadata`.
fn op_metadata(metadata: PbOpMetadata) -> Value {
    Fields::default()
        .flag("ignore_cache", metadata.ignore_cache)
        .strings("description", metadata.description)
        .message("export_cache", metadata.export_cache, |export| Fields::default().flag("Value", export.value).done())
        .message("progress_group", metadata.progress_group, |group| {
            Fields::default().text("id", group.id).text("name", group.name).flag("weak", group.weak).done()
        })
        .done()
}

fn pb_source(source: PbSource) -> Value {
    let locations: Map<String, Value> = source
        .locations
        .into_iter()
        .map(|entry| (entry.key.unwrap_or_default(), pb_locations(entry.value.unwrap_or_default())))
        .collect();
    let fields = Fields::default();
    let fields = if locations.is_empty() { fields } else { fields.put("locations", locations) };
    fields
        .list("infos", source.infos, |info| {
            Fields::default()
                .text("filename", info.filename)
                .bytes("data", &info.data)
                // What stands in a source map here is a Dockerfile.
                .put("language", "Dockerfile")
                .done()
        })
        .done()
}

fn pb_locations(locations: PbLocations) -> Value {
    let position = |position: super::PbPosition| {
        Fields::default().number("line", position.line).number("character", position.character).done()
    };
    let range =
        |range: PbRange| Fields::default().message("start", range.start, position).message("end", range.end, position);
    Fields::default()
        .list("locations", locations.locations, |location| {
            Fields::default()
                .number("sourceIndex", location.source_index)
                .list("ranges", location.ranges, |pb| range(pb).done())
                .done()
        })
        .done()
}
