//! A base image for several platforms: Debian's static busybox of each architecture, in one OCI index.
//!
//! The packages are downloaded from the machine's own mirror by an `apt` with lists of its own, so that nothing foreign
//! is ever installed; `dpkg -x` unpacks any architecture.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::fixtures::{self, Document};
use crate::peers::output;
use crate::{Unavailable, cache_dir, lock};

/// Name of the layout; bumped when the content changes.
pub const EDITION: &str = "foreign-1";

/// Debian's architectures, and the platforms that they are for.
const ARCHITECTURES: &[(&str, &str, Option<&str>)] = &[
    ("amd64", "amd64", None),
    ("i386", "386", None),
    ("arm64", "arm64", None),
    ("armhf", "arm", Some("v7")),
    ("ppc64el", "ppc64le", None),
    ("s390x", "s390x", None),
];

/// A base like [`fixtures::busybox`] for `linux/amd64`, `386`, `arm64`, `arm/v7`, `ppc64le` and `s390x`; tag `latest`.
///
/// # Errors
/// [`Unavailable`] where the packages cannot be had.
pub fn busybox() -> Result<PathBuf> {
    let _lock = lock("foreign")?;
    let dir = cache_dir("bases")?.join(EDITION);
    if dir.join("index.json").exists() {
        return Ok(dir);
    }
    let work = cache_dir("foreign")?;
    download(&work).map_err(|error| Unavailable(format!("busybox-static of other architectures: {error:#}")))?;
    let applets = output(Command::new("/bin/busybox").arg("--list"))?;
    let mut images = Vec::new();
    for &(debian, architecture, variant) in ARCHITECTURES {
        let binary = work.join(debian).join("bin/busybox");
        let layer = fixtures::busybox_layer(&fs::read(&binary)?, &applets)?;
        let mut platform = json!({ "os": "linux", "architecture": architecture });
        if let Some(variant) = variant {
            platform["variant"] = json!(variant);
        }
        images.push((platform, layer));
    }
    write_index(&dir, &images)?;
    Ok(dir)
}

/// Downloads and unpacks the packages below `dir`, one folder for each architecture.
fn download(dir: &Path) -> Result<()> {
    let missing: Vec<&str> = ARCHITECTURES
        .iter()
        .map(|&(debian, ..)| debian)
        .filter(|debian| !dir.join(debian).join("bin/busybox").exists())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let targets = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(CREATED_BY) $(ORIGIN) $(SITE) $(RELEASE)",
    ]))?;
    let source =
        targets.lines().find_map(|line| line.strip_prefix("Packages Debian ")).context("apt knows no mirror")?;
    let state = dir.join("apt");
    fs::create_dir_all(state.join("lists/partial"))?;
    fs::create_dir_all(state.join("cache/archives/partial"))?;
    fs::write(state.join("status"), "")?;
    let keys = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
    fs::write(state.join("sources.list"), format!("deb {keys} {source} main\n"))?;
    let at = |option: &str, path: &str| format!("-oDir::{option}={}", state.join(path).display());
    let apt = |verb: &[String]| {
        let mut command = Command::new("apt-get");
        command.arg("-qq").args([
            "-oDir::Etc::sourceparts=-",
            "-oAPT::Sandbox::User=root",
            "-oAcquire::Languages=none",
        ]);
        command.args([
            at("State", ""),
            at("State::lists", "lists"),
            at("State::status", "status"),
            at("Cache", "cache"),
        ]);
        command.arg(at("Etc::sourcelist", "sources.list"));
        command.args(missing.iter().map(|debian| format!("-oAPT::Architectures::={debian}")));
        output(command.args(verb).current_dir(dir))
    };
    apt(&["update".to_owned()])?;
    let packages = missing.iter().map(|debian| format!("busybox-static:{debian}"));
    apt(&std::iter::once("download".to_owned()).chain(packages).collect::<Vec<_>>())?;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let Some(debian) = missing.iter().find(|debian| name.ends_with(&format!("_{debian}.deb"))) else { continue };
        output(Command::new("dpkg").arg("-x").arg(&path).arg(dir.join(debian)))?;
        fs::remove_file(&path)?;
    }
    fs::remove_dir_all(&state)?;
    for debian in missing {
        ensure!(dir.join(debian).join("bin/busybox").exists(), "no package for {debian} came");
    }
    Ok(())
}

/// Writes an OCI layout with one index, tagged `latest`, of an image for each platform.
fn write_index(dir: &Path, images: &[(Value, Vec<u8>)]) -> Result<()> {
    let part = dir.with_extension("part");
    if part.exists() {
        fs::remove_dir_all(&part)?;
    }
    fs::create_dir_all(part.join("blobs/sha256"))?;
    let mut manifests = Vec::new();
    for (platform, layer) in images {
        let mut manifest =
            fixtures::add_image(&part, platform, &fixtures::busybox_config(), std::slice::from_ref(layer))?;
        manifest["platform"] = platform.clone();
        manifests.push(manifest);
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
    let mut index = Document::new(&index, media_type)?.add(&part)?;
    index["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    fixtures::finish_layout(&part, dir, &index)
}
