//! What there is to say about an image, as sorted lines of `key` and `value`, and how two such reports differ.
//!
//! A key names one thing that can differ: `config.Env`, `history[3].created_by`, `layers`, `file /etc/passwd`. Tests list
//! the keys in which a known deviation shows.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::hex;
use crate::image::{Image, Inode, Kind, Tree};

/// The lines of a report.
pub type Report = BTreeMap<String, String>;

/// Modification times from here on are those of the build; earlier ones come from a context, an archive or a base, and
/// must have been kept.
const RECENT: i64 = 1_700_000_000;

/// Reports on `image`: its config without times, the shape of its history, the names in each layer, and every path of its
/// tree with what was not changed just now. Other times, and with them digests, count only with `times`.
pub fn report(image: &Image, times: bool) -> Report {
    let mut report = Report::new();
    if times {
        put(&mut report, "config digest", &image.manifest["config"]["digest"]);
    }
    for (key, value) in image.config.as_object().into_iter().flatten() {
        match key.as_str() {
            "created" if times => put(&mut report, "created", value),
            // Where times are given, the layers have nothing left that could differ.
            "rootfs" if times => {
                for (index, diff_id) in value["diff_ids"].as_array().into_iter().flatten().enumerate() {
                    put(&mut report, &format!("layer[{index}]"), diff_id);
                }
            }
            "created" | "rootfs" | "history" | "moby.buildkit.buildinfo.v1" => {}
            "config" => {
                for (key, value) in value.as_object().into_iter().flatten() {
                    put(&mut report, &format!("config.{key}"), value);
                }
            }
            _ => put(&mut report, key, value),
        }
    }
    for (index, entry) in image.config["history"].as_array().into_iter().flatten().enumerate() {
        for (key, value) in entry.as_object().into_iter().flatten() {
            if key != "created" || times {
                put(&mut report, &format!("history[{index}].{key}"), value);
            }
        }
    }
    put(&mut report, "layers", &Value::from(image.layers.len()));
    for (index, layer) in image.layers.iter().enumerate() {
        report.insert(format!("layer[{index}].type"), layer.media_type.clone());
        let names: BTreeSet<&str> = layer.names.iter().map(|name| name.trim_end_matches('/')).collect();
        report.insert(format!("layer[{index}].names"), names.into_iter().collect::<Vec<_>>().join(" "));
    }
    for (key, value) in image.manifest.as_object().into_iter().flatten() {
        if !["config", "layers"].contains(&key.as_str()) {
            put(&mut report, &format!("manifest.{key}"), value);
        }
    }
    report.extend(tree(&image.tree, times));
    report
}

/// Reports on every path of `tree`.
pub fn tree(tree: &Tree, times: bool) -> Report {
    tree.iter()
        .map(|(path, inode)| {
            let mut line = describe(inode);
            let links = tree.links(path);
            if inode.kind != Kind::Directory && links.len() > 1 {
                line.push_str(&format!(" links={}", links.join(",")));
            }
            if times || inode.mtime < RECENT {
                line.push_str(&format!(" mtime={}", inode.mtime));
            }
            (format!("file {path}"), line)
        })
        .collect()
}

/// One line on `inode`: type, mode, owner, content, extended attributes.
pub fn describe(inode: &Inode) -> String {
    let kind = match &inode.kind {
        Kind::File { size, sha256 } => format!("file {size} {}", &sha256[..16]),
        Kind::Directory => "dir".to_owned(),
        Kind::Symlink(target) => format!("-> {target}"),
        Kind::Device(kind, major, minor) => format!("{kind} {major},{minor}"),
        Kind::Fifo => "fifo".to_owned(),
    };
    let mut line = format!("{:04o} {}:{} {kind}", inode.mode, inode.uid, inode.gid);
    for (name, value) in &inode.xattrs {
        line.push_str(&format!(" {name}={}", hex(value)));
    }
    line
}

fn put(report: &mut Report, key: &str, value: &Value) {
    report.insert(key.to_owned(), sorted(value).to_string());
}

/// `value` with the members of every object in order, so that equal documents are equal texts.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let members: BTreeMap<&String, Value> = members.iter().map(|(key, value)| (key, sorted(value))).collect();
            members.into_iter().map(|(key, value)| (key.clone(), value)).collect()
        }
        Value::Array(values) => values.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

/// One key in which two reports differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The key.
    pub key: String,
    /// The value on the expected side, if it has the key.
    pub expected: Option<String>,
    /// The value on the actual side, if it has the key.
    pub actual: Option<String>,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.key)?;
        writeln!(f, "    expected  {}", self.expected.as_deref().unwrap_or("(nothing)"))?;
        write!(f, "    actual    {}", self.actual.as_deref().unwrap_or("(nothing)"))
    }
}

/// Returns every key in which `expected` and `actual` differ, in order.
pub fn differences(expected: &Report, actual: &Report) -> Vec<Difference> {
    let keys: BTreeSet<&String> = expected.keys().chain(actual.keys()).collect();
    keys.into_iter()
        .filter(|key| expected.get(*key) != actual.get(*key))
        .map(|key| Difference {
            key: key.clone(),
            expected: expected.get(key).cloned(),
            actual: actual.get(key).cloned(),
        })
        .collect()
}
