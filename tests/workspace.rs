//! The borders between the crates, as ARCHITECTURE.md draws them, held by reading `cargo metadata` and the sources.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use build_engine_testkit::{peers, workspace};
use serde_json::Value;

/// What knows nothing of the world. Everything above may use them.
const VALUES: &[&str] = &["oci", "dockerfile", "graph"];

/// The other edges that are allowed, and no others.
const EDGES: &[(&str, &[&str])] = &[
    ("oci", &[]),
    ("dockerfile", &[]),
    ("graph", &["oci"]),
    ("rootfs", &[]),
    ("frontend", &[]),
    ("solver", &[]),
    ("store", &["rootfs"]),
    ("sandbox", &["rootfs"]),
    ("registry", &[]),
    ("scan", &[]),
    ("engine", &["frontend", "solver", "rootfs", "store", "sandbox", "registry", "scan"]),
    ("automation", &["engine", "scan"]),
    ("cli", &["automation", "engine"]),
];

/// Returns, for each crate below `crates/`, the workspace's crates that it builds on (not those of its tests).
fn edges() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = Command::new(cargo);
    command.args(["metadata", "--format-version=1", "--no-deps", "--offline"]).current_dir(workspace());
    let metadata: Value = serde_json::from_str(&peers::output(&mut command).unwrap()).unwrap();
    let short = |name: &str| name.strip_prefix("build-engine-").map(str::to_owned);
    let mut edges = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let manifest = package["manifest_path"].as_str().unwrap();
        if !Path::new(manifest).starts_with(workspace().join("crates")) {
            continue;
        }
        // The cli's package may carry the name of the product.
        let name = short(package["name"].as_str().unwrap()).unwrap_or_else(|| "cli".to_owned());
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        let used = dependencies
            .filter(|dependency| dependency["kind"] != "dev")
            .filter_map(|dependency| short(dependency["name"].as_str().unwrap()))
            .collect();
        edges.insert(name, used);
    }
    edges
}

#[test]
fn crates_depend_on_each_other_only_where_the_design_allows_it() {
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    let edges = edges();
    assert!(edges.len() >= 10, "cargo metadata lists {:?}", edges.keys());
    let mut forbidden = Vec::new();
    for (name, used) in &edges {
        let Some(more) = allowed.get(name.as_str()) else {
            forbidden.push(format!("the crate `{name}` has no place in the design"));
            continue;
        };
        for other in used {
            let value = VALUES.contains(&other.as_str()) && !VALUES.contains(&name.as_str());
            if !value && !more.contains(&other.as_str()) {
                forbidden.push(format!("`{name}` depends on `{other}`"));
            }
        }
    }
    assert!(forbidden.is_empty(), "{}", forbidden.join("\n"));
}

/// The lint `unsafe_code = "forbid"` says the same; this test sees who switched it off.
#[test]
fn unsafe_stands_in_the_sandbox_alone() {
    let mut found = Vec::new();
    for top in ["crates", "testkit", "tests", "benches"] {
        visit(&workspace().join(top), &mut |path, text| {
            if path.starts_with(workspace().join("crates/sandbox")) {
                return;
            }
            for (number, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                let mut words =
                    code.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '"')).filter(|w| !w.is_empty());
                if words.any(|word| word == concat!("un", "safe")) {
                    found.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
                }
            }
        });
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    let mut without = Vec::new();
    for name in fs::read_dir(workspace().join("crates")).unwrap() {
        let manifest = name.unwrap().path().join("Cargo.toml");
        // The sandbox cannot take a `forbid` that it must lift.
        if manifest.starts_with(workspace().join("crates/sandbox")) {
            continue;
        }
        let text = fs::read_to_string(&manifest).unwrap();
        if !text.contains("[lints]\nworkspace = true") {
            without.push(manifest.display().to_string());
        }
    }
    assert!(without.is_empty(), "{}", without.join("\n"));
}

fn visit(dir: &Path, see: &mut impl FnMut(&Path, &str)) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            visit(&path, see);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            see(&path, &fs::read_to_string(&path).unwrap());
        }
    }
}
