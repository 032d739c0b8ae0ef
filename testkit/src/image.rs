//! A reader of images: archives, layouts and tar files become a config and one merged tree.
//!
//! It is the judge of what the engine wrote, so it shares no code with it, checks every digest on the way, and reads
//! layers the way the OCI image specification (v1.1, layer.md) tells a runtime to apply them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::hex;

/// One image: a manifest with everything that it names.
#[derive(Debug)]
pub struct Image {
    /// The manifest's digest.
    pub digest: String,
    /// The manifest.
    pub manifest: Value,
    /// The image config.
    pub config: Value,
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
    /// The tree that all layers make together.
    pub tree: Tree,
}

/// One layer of an image.
#[derive(Debug)]
pub struct Layer {
    /// The blob's digest.
    pub digest: String,
    /// The blob's media type.
    pub media_type: String,
    /// The digest of the uncompressed tar, as computed here.
    pub diff_id: String,
    /// Every name in the tar, in its order.
    pub names: Vec<String>,
}

/// What a path of a tree is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file, with its size and the SHA-256 of its content.
    File {
        /// Bytes.
        size: u64,
        /// Lower-case hex.
        sha256: String,
    },
    /// A directory.
    Directory,
    /// A symbolic link, with its target.
    Symlink(String),
    /// A device: `c` or `b`, major, minor.
    Device(char, u32, u32),
    /// A named pipe.
    Fifo,
}

/// An inode of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Extended attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// A file tree: paths (`/` is the root) name inodes, and several paths may name one.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    paths: BTreeMap<String, usize>,
    inodes: Vec<Inode>,
}

impl Tree {
    /// The inode at `path`, which starts with `/`.
    pub fn get(&self, path: &str) -> Option<&Inode> {
        Some(&self.inodes[*self.paths.get(path)?])
    }

    /// Every path with its inode, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Inode)> {
        self.paths.iter().map(|(path, &inode)| (path.as_str(), &self.inodes[inode]))
    }

    /// All paths of the file at `path`, itself too, in order.
    pub fn links(&self, path: &str) -> Vec<&str> {
        let Some(inode) = self.paths.get(path) else { return Vec::new() };
        self.paths.iter().filter(|(_, other)| *other == inode).map(|(path, _)| path.as_str()).collect()
    }

    /// Reads a plain tar (what `--output type=tar` writes): no whiteouts.
    pub fn from_tar(reader: impl Read) -> Result<Tree> {
        let mut tree = Tree::default();
        tree.apply(reader, false)?;
        Ok(tree)
    }

    /// Applies one layer, and returns the names in it.
    fn apply(&mut self, reader: impl Read, whiteouts: bool) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let mut archive = tar::Archive::new(reader);
        // An opaque directory hides what lower layers have in it, wherever the marker stands in the tar.
        let lower: BTreeMap<String, usize> = self.paths.clone();
        for entry in archive.entries()? {
            let mut entry = entry?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            names.push(name.clone());
            let path = absolute(&name);
            if whiteouts {
                let (parent, base) = path.rsplit_once('/').expect("an absolute path has a slash");
                if base == ".wh..wh..opq" {
                    let below = format!("{parent}/");
                    self.paths.retain(|path, inode| !path.starts_with(&below) || lower.get(path) != Some(inode));
                    continue;
                }
                if let Some(hidden) = base.strip_prefix(".wh.") {
                    let hidden = format!("{parent}/{hidden}");
                    ensure!(lower.contains_key(&hidden), "whiteout of `{hidden}`, which no lower layer has");
                    let below = format!("{hidden}/");
                    self.paths.retain(|path, inode| {
                        (*path != hidden && !path.starts_with(&below)) || lower.get(path) != Some(inode)
                    });
                    continue;
                }
            }
            self.insert(path, &mut entry)?;
        }
        Ok(names)
    }

    fn insert(&mut self, path: String, entry: &mut tar::Entry<'_, impl Read>) -> Result<()> {
        let mut xattrs = BTreeMap::new();
        let mut pax = BTreeMap::new();
        if let Some(extensions) = entry.pax_extensions()? {
            for extension in extensions {
                let extension = extension?;
                let key = extension.key()?.to_owned();
                match key.strip_prefix("SCHILY.xattr.") {
                    Some(name) => {
                        xattrs.insert(name.to_owned(), extension.value_bytes().to_vec());
                    }
                    None => {
                        pax.insert(key, extension.value()?.to_owned());
                    }
                }
            }
        }
        let header = entry.header().clone();
        let number = |key: &str, field: io::Result<u64>| -> Result<u64> {
            pax.get(key).map_or_else(|| Ok(field?), |text| Ok(text.parse()?))
        };
        let kind = header.entry_type();
        if kind.is_hard_link() {
            let target = entry.link_name_bytes().context("a hard link without target")?;
            let target = absolute(&String::from_utf8_lossy(&target));
            let inode = *self
                .paths
                .get(&target)
                .with_context(|| format!("`{path}` links to `{target}`, which is not there"))?;
            self.paths.insert(path, inode);
            return Ok(());
        }
        let (uid, gid) = (number("uid", header.uid())?, number("gid", header.gid())?);
        let mtime = match pax.get("mtime") {
            Some(text) => text.split('.').next().unwrap_or_default().parse()?,
            None => i64::try_from(header.mtime()?)?,
        };
        let device = |kind: char| -> Result<Kind> {
            Ok(Kind::Device(
                kind,
                header.device_major()?.unwrap_or_default(),
                header.device_minor()?.unwrap_or_default(),
            ))
        };
        let kind = match kind {
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                let mut hasher = Sha256::new();
                let size = copy(entry, &mut hasher)?;
                Kind::File { size, sha256: hex(&hasher.finalize()) }
            }
            tar::EntryType::Directory => Kind::Directory,
            tar::EntryType::Symlink => {
                let target = entry.link_name_bytes().context("a symbolic link without target")?;
                Kind::Symlink(String::from_utf8_lossy(&target).into_owned())
            }
            tar::EntryType::Char => device('c')?,
            tar::EntryType::Block => device('b')?,
            tar::EntryType::Fifo => Kind::Fifo,
            other => bail!("`{path}` is of the unknown type {other:?}"),
        };
        // A directory keeps what is in it; anything else replaces what was there.
        if kind != Kind::Directory || self.get(&path).is_some_and(|inode| inode.kind != Kind::Directory) {
            self.remove(&path);
        }
        self.paths.insert(path, self.inodes.len());
        self.inodes.push(Inode { kind, mode: header.mode()? & 0o7777, uid, gid, mtime, xattrs });
        Ok(())
    }

    fn remove(&mut self, path: &str) {
        let below = format!("{path}/");
        self.paths.retain(|other, _| other != path && !other.starts_with(&below));
    }
}

fn absolute(name: &str) -> String {
    let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    format!("/{}", parts.join("/"))
}

fn copy(reader: &mut impl Read, hasher: &mut Sha256) -> io::Result<u64> {
    let mut buffer = [0; 64 * 1024];
    let mut size = 0;
    loop {
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            return Ok(size);
        }
        hasher.update(&buffer[..count]);
        size += count as u64;
    }
}

/// The blobs of an image, wherever they lie.
enum Blobs {
    Layout(PathBuf),
    Archive(BTreeMap<String, Vec<u8>>),
}

impl Blobs {
    fn file(&self, name: &str) -> Result<Vec<u8>> {
        match self {
            Blobs::Layout(dir) => {
                fs::read(dir.join(name)).with_context(|| format!("cannot read `{name}` of `{}`", dir.display()))
            }
            Blobs::Archive(files) => files.get(name).cloned().with_context(|| format!("the archive has no `{name}`")),
        }
    }

    /// The blob of a descriptor, after a check of its digest and size.
    fn blob(&self, descriptor: &Value) -> Result<Vec<u8>> {
        let digest = descriptor["digest"].as_str().context("a descriptor without digest")?;
        let bytes = self.file(&format!("blobs/{}", digest.replace(':', "/")))?;
        let actual = format!("sha256:{}", crate::sha256(&bytes));
        ensure!(actual == digest, "blob {digest} has the content of {actual}");
        ensure!(
            descriptor["size"].as_u64() == Some(bytes.len() as u64),
            "blob {digest} has not the size in its descriptor"
        );
        Ok(bytes)
    }

    fn json(&self, descriptor: &Value) -> Result<Value> {
        Ok(serde_json::from_slice(&self.blob(descriptor)?)?)
    }
}

/// Reads every image of an OCI archive (`--output type=oci`), by platform (`linux/amd64`).
pub fn images_of_archive(path: &Path) -> Result<BTreeMap<String, Image>> {
    let mut files = BTreeMap::new();
    let file = File::open(path).with_context(|| format!("cannot open `{}`", path.display()))?;
    for entry in tar::Archive::new(file).entries()? {
        let mut entry = entry?;
        let name = absolute(&String::from_utf8_lossy(&entry.path_bytes()));
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        files.insert(name[1..].to_owned(), bytes);
    }
    images(&Blobs::Archive(files))
}

/// Reads every image of an OCI layout directory, by platform.
pub fn images_of_layout(dir: &Path) -> Result<BTreeMap<String, Image>> {
    images(&Blobs::Layout(dir.to_path_buf()))
}

/// Reads the only image of an OCI archive.
pub fn image_of_archive(path: &Path) -> Result<Image> {
    let mut images = images_of_archive(path)?;
    ensure!(images.len() == 1, "`{}` has {} images", path.display(), images.len());
    Ok(images.pop_first().expect("there is one").1)
}

fn images(blobs: &Blobs) -> Result<BTreeMap<String, Image>> {
    let layout: Value = serde_json::from_slice(&blobs.file("oci-layout")?)?;
    ensure!(layout["imageLayoutVersion"] == "1.0.0", "oci-layout says {layout}");
    let mut found = BTreeMap::new();
    let index: Value = serde_json::from_slice(&blobs.file("index.json")?)?;
    collect(blobs, &index, &mut found)?;
    Ok(found)
}

fn collect(blobs: &Blobs, index: &Value, found: &mut BTreeMap<String, Image>) -> Result<()> {
    for descriptor in index["manifests"].as_array().context("an index without manifests")? {
        let document = blobs.json(descriptor)?;
        if document["manifests"].is_array() {
            collect(blobs, &document, found)?;
        } else if descriptor["annotations"]["vnd.docker.reference.type"].is_null() {
            let image = image(blobs, descriptor, document)?;
            let mut platform = format!("{}/{}", text(&image.config["os"]), text(&image.config["architecture"]));
            if let Some(variant) = image.config["variant"].as_str() {
                platform = format!("{platform}/{variant}");
            }
            found.insert(platform, image);
        }
    }
    Ok(())
}

fn image(blobs: &Blobs, descriptor: &Value, manifest: Value) -> Result<Image> {
    let config = blobs.json(&manifest["config"])?;
    let mut tree = Tree::default();
    let mut layers = Vec::new();
    // BuildKit writes `null` for an image without layers.
    for layer in manifest["layers"].as_array().into_iter().flatten() {
        let blob = blobs.blob(layer)?;
        let media_type = text(&layer["mediaType"]);
        let tar = if media_type.ends_with("gzip") {
            let mut tar = Vec::new();
            flate2::read::MultiGzDecoder::new(&blob[..]).read_to_end(&mut tar)?;
            tar
        } else if media_type.ends_with("zstd") {
            zstd::stream::decode_all(&blob[..])?
        } else {
            blob
        };
        let diff_id = format!("sha256:{}", crate::sha256(&tar));
        let names = tree.apply(&tar[..], true).with_context(|| format!("in layer {}", layers.len()))?;
        layers.push(Layer { digest: text(&layer["digest"]), media_type, diff_id, names });
    }
    let declared: Vec<String> = config["rootfs"]["diff_ids"].as_array().into_iter().flatten().map(text).collect();
    let computed: Vec<String> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    ensure!(declared == computed, "the config declares the diff IDs {declared:?}, the layers have {computed:?}");
    Ok(Image { digest: text(&descriptor["digest"]), manifest, config, layers, tree })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
