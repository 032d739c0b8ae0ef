//! Base images made here, from Debian's packages: no registry is needed.
//!
//! All are OCI layouts below `target/testkit`, made once and then kept; their tag is `latest`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::peers::output;
use crate::{Unavailable, cache_dir, lock, sha256, workspace};

/// Bumped when the content of [`busybox`] changes, so that no old copy is used.
const BUSYBOX_EDITION: &str = "busybox-2";

/// A small base image: a static busybox with its applets, users `root`, `nobody`, `www-data` and `app`, and the usual
/// folders. Its config sets `PATH` and a command, nothing else.
///
/// # Errors
/// [`Unavailable`] without `/bin/busybox` (package busybox-static).
pub fn busybox() -> Result<PathBuf> {
    let _lock = lock("busybox")?;
    let dir = cache_dir("bases")?.join(BUSYBOX_EDITION);
    if dir.join("index.json").exists() {
        return Ok(dir);
    }
    let binary = Path::new("/bin/busybox");
    if !binary.exists() {
        return Err(Unavailable("/bin/busybox is missing (package busybox-static)".to_owned()).into());
    }
    let applets = output(Command::new(binary).arg("--list"))?;
    write_layout(&dir, &busybox_config(), &[busybox_layer(&fs::read(binary)?, &applets)?])?;
    Ok(dir)
}

/// The layer of such an image, with the bytes of busybox and the names that it goes by.
pub(crate) fn busybox_layer(binary: &[u8], applets: &str) -> Result<Vec<u8>> {
    let mut layer = TarWriter::default();
    for path in ["bin", "dev", "etc", "home", "proc", "root", "run", "sys", "usr", "usr/bin", "var", "var/www"] {
        layer.directory(path, 0o755, (0, 0))?;
    }
    layer.directory("home/app", 0o700, (1000, 1000))?;
    layer.directory("tmp", 0o1777, (0, 0))?;
    layer.file("bin/busybox", 0o755, (0, 0), binary)?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        layer.symlink(&format!("bin/{applet}"), "busybox")?;
    }
    layer.file("usr/bin/env", 0o755, (0, 0), b"#!/bin/sh\nexec /bin/busybox env \"$@\"\n")?;
    let passwd = "root:x:0:0:root:/root:/bin/sh\n\
                  www-data:x:33:33:www-data:/var/www:/bin/false\n\
                  app:x:1000:1000:app:/home/app:/bin/sh\n\
                  nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
    let group = "root:x:0:\nwww-data:x:33:\nstaff:x:50:app\napp:x:1000:\nnogroup:x:65534:\n";
    layer.file("etc/passwd", 0o644, (0, 0), passwd.as_bytes())?;
    layer.file("etc/group", 0o644, (0, 0), group.as_bytes())?;
    layer.file("etc/os-release", 0o644, (0, 0), b"ID=busybox\nPRETTY_NAME=\"BusyBox\"\n")?;
    layer.finish()
}

/// Its config.
pub(crate) fn busybox_config() -> serde_json::Value {
    json!({ "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh"] })
}

/// A base image for amd64 and arm64 without programs: `/arch` names the architecture, and so does the label `arch`.
pub fn multi() -> Result<PathBuf> {
    let _lock = lock("multi")?;
    let dir = cache_dir("bases")?.join("multi-1");
    if dir.join("index.json").exists() {
        return Ok(dir);
    }
    let part = dir.with_extension("part");
    if part.exists() {
        fs::remove_dir_all(&part)?;
    }
    let blobs = part.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let add = |bytes: &[u8], media_type: &str| -> Result<serde_json::Value> {
        let digest = sha256(bytes);
        fs::write(blobs.join(&digest), bytes)?;
        Ok(json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() }))
    };
    let mut manifests = Vec::new();
    for architecture in ["amd64", "arm64"] {
        let mut layer = TarWriter::default();
        layer.file("arch", 0o644, (0, 0), architecture.as_bytes())?;
        let layer = add(&layer.finish()?, "application/vnd.oci.image.layer.v1.tar")?;
        let config = json!({
            "architecture": architecture, "os": "linux", "created": "1970-01-01T00:00:00Z",
            "config": { "Labels": { "arch": architecture } },
            "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
            "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "testkit" }],
        });
        let config = add(&serde_json::to_vec(&config)?, "application/vnd.oci.image.config.v1+json")?;
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer] });
        let mut descriptor = add(&serde_json::to_vec(&manifest)?, media_type)?;
        descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
        manifests.push(descriptor);
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
    let mut index = add(&serde_json::to_vec(&index)?, media_type)?;
    index["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": [index] });
    fs::write(part.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    fs::write(part.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::rename(&part, &dir).with_context(|| format!("cannot put `{}` in its place", dir.display()))?;
    Ok(dir)
}

/// A base image with Debian's smallest installation and `apt-get`, made by `examples/make-base.sh` from the machine's own
/// package sources.
///
/// # Errors
/// [`Unavailable`] when that fails: not root, no mmdebstrap, or no mirror that answers.
pub fn debian() -> Result<PathBuf> {
    let _lock = lock("debian")?;
    let dir = cache_dir("bases")?.join("debian");
    if !dir.join("index.json").exists() {
        let script = workspace().join("examples/make-base.sh");
        if let Err(error) = output(Command::new(script).arg(&dir)) {
            return Err(Unavailable(format!("{error:#}")).into());
        }
    }
    Ok(dir)
}

/// Writes an OCI layout with one image, tagged `latest`, whose layers are the uncompressed tars `layers`.
pub fn write_layout(dir: &Path, config: &serde_json::Value, layers: &[Vec<u8>]) -> Result<()> {
    let part = dir.with_extension("part");
    if part.exists() {
        fs::remove_dir_all(&part)?;
    }
    fs::create_dir_all(part.join("blobs/sha256"))?;
    let platform = json!({ "architecture": architecture()?, "os": "linux" });
    let mut manifest = add_image(&part, &platform, config, layers)?;
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    finish_layout(&part, dir, &manifest)
}

/// Bytes with their media type, to become a blob.
pub(crate) struct Document<'a> {
    bytes: std::borrow::Cow<'a, [u8]>,
    media_type: &'a str,
}

impl<'a> Document<'a> {
    pub(crate) fn new(value: &serde_json::Value, media_type: &'a str) -> Result<Self> {
        Ok(Self { bytes: serde_json::to_vec(value)?.into(), media_type })
    }

    /// Writes the blob into the layout at `dir`; returns its descriptor.
    pub(crate) fn add(&self, dir: &Path) -> Result<serde_json::Value> {
        let digest = sha256(&self.bytes);
        fs::write(dir.join("blobs/sha256").join(&digest), &self.bytes)?;
        let digest = format!("sha256:{digest}");
        Ok(json!({ "mediaType": self.media_type, "digest": digest, "size": self.bytes.len() }))
    }
}

/// Writes an image into the layout at `dir`; returns the descriptor of its manifest.
pub(crate) fn add_image(
    dir: &Path,
    platform: &serde_json::Value,
    config: &serde_json::Value,
    layers: &[Vec<u8>],
) -> Result<serde_json::Value> {
    let media_type = "application/vnd.oci.image.layer.v1.tar";
    let layer = |bytes: &Vec<u8>| Document { bytes: bytes.as_slice().into(), media_type }.add(dir);
    let descriptors = layers.iter().map(layer).collect::<Result<Vec<_>>>()?;
    let diff_ids: Vec<_> = descriptors.iter().map(|descriptor| descriptor["digest"].clone()).collect();
    let history: Vec<_> =
        layers.iter().map(|_| json!({ "created": "1970-01-01T00:00:00Z", "created_by": "testkit" })).collect();
    let mut config = json!({
        "created": "1970-01-01T00:00:00Z", "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids }, "history": history,
    });
    for (key, value) in platform.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    let config = Document::new(&config, "application/vnd.oci.image.config.v1+json")?.add(dir)?;
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": descriptors });
    Document::new(&manifest, media_type)?.add(dir)
}

/// Makes the layout at `part`, whose blobs are there, the one at `dir`, with `descriptor` in its index.
pub(crate) fn finish_layout(part: &Path, dir: &Path, descriptor: &serde_json::Value) -> Result<()> {
    fs::write(part.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [descriptor],
    });
    fs::write(part.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::rename(part, dir).with_context(|| format!("cannot put `{}` in its place", dir.display()))
}

/// This machine's architecture in OCI's words.
pub fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no tests for `{other}`"),
    }
}

/// The digest of the manifest that a layout's index names first.
pub fn manifest_digest(layout: &Path) -> Result<String> {
    let index: serde_json::Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    Ok(index["manifests"][0]["digest"].as_str().context("an index without manifests")?.to_owned())
}

/// A tar with fixed times, for bases and for archives that are added.
pub struct TarWriter {
    builder: tar::Builder<Vec<u8>>,
    /// Mode and owner of the files so far.
    files: BTreeMap<String, (u32, (u64, u64))>,
}

impl Default for TarWriter {
    fn default() -> TarWriter {
        TarWriter { builder: tar::Builder::new(Vec::new()), files: BTreeMap::new() }
    }
}

impl TarWriter {
    fn header(kind: tar::EntryType, mode: u32, owner: (u64, u64)) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(1_000_000_000);
        header.set_size(0);
        header
    }

    /// Adds a directory.
    pub fn directory(&mut self, path: &str, mode: u32, owner: (u64, u64)) -> Result<()> {
        let mut header = Self::header(tar::EntryType::Directory, mode, owner);
        Ok(self.builder.append_data(&mut header, format!("{path}/"), std::io::empty())?)
    }

    /// Adds a regular file.
    pub fn file(&mut self, path: &str, mode: u32, owner: (u64, u64), content: &[u8]) -> Result<()> {
        let mut header = Self::header(tar::EntryType::Regular, mode, owner);
        header.set_size(content.len() as u64);
        self.files.insert(path.to_owned(), (mode, owner));
        Ok(self.builder.append_data(&mut header, path, content)?)
    }

    /// Adds a regular file with extended attributes.
    pub fn file_with_xattrs(&mut self, path: &str, mode: u32, content: &[u8], xattrs: &[(&str, &[u8])]) -> Result<()> {
        let records: Vec<(String, &[u8])> =
            xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), *value)).collect();
        self.builder.append_pax_extensions(records.iter().map(|(name, value)| (name.as_str(), *value)))?;
        self.file(path, mode, (0, 0), content)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        let mut header = Self::header(tar::EntryType::Symlink, 0o777, (0, 0));
        Ok(self.builder.append_link(&mut header, path, target)?)
    }

    /// Adds a hard link to an earlier file. Mode and owner are the file's, as every archiver writes them: those who
    /// unpack set them again.
    pub fn hard_link(&mut self, path: &str, target: &str) -> Result<()> {
        let (mode, owner) = self.files.get(target).copied().unwrap_or((0o644, (0, 0)));
        let mut header = Self::header(tar::EntryType::Link, mode, owner);
        Ok(self.builder.append_link(&mut header, path, target)?)
    }

    /// Adds a character device.
    pub fn device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> Result<()> {
        let mut header = Self::header(tar::EntryType::Char, mode, (0, 0));
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
        Ok(self.builder.append_data(&mut header, path, std::io::empty())?)
    }

    /// The bytes of the tar.
    pub fn finish(self) -> Result<Vec<u8>> {
        Ok(self.builder.into_inner()?)
    }
}

/// Compresses `bytes` as gzip, in one member.
pub fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// Writes `files` (path, content) below `dir`, with the folders they need; mode 0644.
pub fn write_files(dir: &Path, files: &[(&str, &str)]) -> Result<()> {
    for (path, content) in files {
        let path = dir.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}
