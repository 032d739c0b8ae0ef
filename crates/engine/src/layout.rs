//! OCI image layouts as sources: a directory, or a tar archive that is read in place.
//!
//! Nothing here believes what it reads: documents are limited in size and hashed against the descriptor that led to
//! them, and blobs are handed out as readers whose bytes the store verifies while it takes them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::docker_archive;
use build_engine_oci::{
    Descriptor, Digest, ImageConfig, Index, InvalidDocument, Manifest, Parsed, Platform, Reference, layout, media_type,
    parse_document,
};

/// Largest index, manifest or config that is read.
const MAX_DOCUMENT_BYTES: u64 = 8 << 20;
/// How deep indexes may stand in indexes.
pub(crate) const MAX_INDEX_DEPTH: usize = 3;

/// Why an image cannot be had from a layout.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayoutError {
    #[error("cannot read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{}` is neither an OCI layout directory nor a tar archive of one", path.display())]
    NotALayout { path: PathBuf },
    #[error("the layout `{}` has no image {wanted}; it has {available}", path.display())]
    NoSuchImage { path: PathBuf, wanted: String, available: String },
    #[error("the image has no variant for {wanted}; it has {available}")]
    NoSuchPlatform { wanted: String, available: String },
    #[error("the layout `{}` has no blob {digest}", path.display())]
    NoSuchBlob { path: PathBuf, digest: Digest },
    #[error("blob {expected} of `{}` arrived as {actual}", path.display())]
    Mismatch { path: PathBuf, expected: Digest, actual: Digest },
    #[error("blob {digest} is gone from the store")]
    Gone { digest: Digest },
    #[error("cannot read the store")]
    Store { source: io::Error },
    #[error("document {digest} of the image cannot be used")]
    Invalid { digest: Digest, source: InvalidDocument },
    #[error("document {digest} is larger than {MAX_DOCUMENT_BYTES} bytes")]
    TooLarge { digest: String },
    #[error("document {digest} is not what its media type says")]
    Malformed { digest: String, source: serde_json::Error },
    #[error("document {digest} has the media type `{media_type}`, which is no image")]
    NotAnImage { digest: Digest, media_type: String },
    #[error("indexes stand in indexes more than {MAX_INDEX_DEPTH} deep")]
    TooDeep,
}

impl LayoutError {
    /// Whether content is not what it claims to be, rather than missing.
    pub(crate) fn is_integrity(&self) -> bool {
        matches!(self, Self::Mismatch { .. } | Self::Gone { .. } | Self::Malformed { .. } | Self::Invalid { .. })
    }

    /// Whether it is too much, rather than wrong.
    pub(crate) fn is_limit(&self) -> bool {
        matches!(self, Self::TooLarge { .. } | Self::TooDeep)
            || matches!(self, Self::Invalid { source: InvalidDocument::TooMany { .. }, .. })
    }
}

/// An image found in a layout, for one platform.
#[derive(Debug, Clone)]
pub(crate) struct FoundImage {
    /// What the name stands for: an index or a manifest.
    pub(crate) root: Descriptor,
    /// The manifest for the platform.
    pub(crate) manifest: Manifest,
    /// What points at it; its digest is what cache keys are made of.
    pub(crate) manifest_descriptor: Descriptor,
    /// The config document.
    pub(crate) config: Vec<u8>,
}

/// An opened layout.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    path: PathBuf,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Directory,
    /// Where each file of the archive stands: offset and size.
    Archive(Arc<File>, Arc<HashMap<String, (u64, u64)>>),
    /// An archive of Docker's older form, read as if it were a layout.
    Converted(Arc<File>, Arc<docker_archive::Converted>),
}

impl Layout {
    /// Opens the layout at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, LayoutError> {
        let read = |source| LayoutError::Read { path: path.to_owned(), source };
        let metadata = std::fs::metadata(path).map_err(read)?;
        if metadata.is_dir() {
            if !path.join(layout::INDEX_FILE).is_file() {
                return Err(LayoutError::NotALayout { path: path.to_owned() });
            }
            return Ok(Self { path: path.to_owned(), kind: Kind::Directory });
        }
        let file = File::open(path).map_err(read)?;
        let files = archive_files(&file).map_err(read)?;
        let kind = if files.contains_key(layout::INDEX_FILE) {
            Kind::Archive(Arc::new(file), Arc::new(files))
        } else if files.contains_key(docker_archive::MANIFEST_FILE) {
            let file = Arc::new(file);
            let converted = docker_archive::convert(&files, &file).map_err(|error| error.at(path))?;
            Kind::Converted(file, Arc::new(converted))
        } else {
            return Err(LayoutError::NotALayout { path: path.to_owned() });
        };
        Ok(Self { path: path.to_owned(), kind })
    }

    /// Finds the image with this tag or digest (the only one if neither is given) for `platform`.
    pub(crate) fn find(
        &self,
        tag: Option<&str>,
        digest: Option<&Digest>,
        platform: &Platform,
    ) -> Result<FoundImage, LayoutError> {
        let root = self.root(tag, digest)?;
        find(&root, platform, &|descriptor| self.document(descriptor))
    }

    fn index(&self) -> Result<Index, LayoutError> {
        let bytes = self.limited(self.open_file(layout::INDEX_FILE)?, layout::INDEX_FILE)?;
        serde_json::from_slice(&bytes)
            .map_err(|source| LayoutError::Malformed { digest: layout::INDEX_FILE.into(), source })
    }

    /// What a tag or digest of the layout stands for (the only image if neither is given).
    pub(crate) fn root(&self, tag: Option<&str>, digest: Option<&Digest>) -> Result<Descriptor, LayoutError> {
        let index = self.index()?;
        let named = |descriptor: &&Descriptor| match (digest, tag) {
            (Some(digest), _) => descriptor.digest == *digest,
            (None, Some(tag)) => names(descriptor).any(|name| name == tag || name.ends_with(&format!(":{tag}"))),
            (None, None) => true,
        };
        let found: Vec<&Descriptor> = index.manifests.iter().filter(named).collect();
        if let Some(first) = found.first()
            && (found.len() == 1 || digest.is_some() || tag.is_some())
        {
            return Ok((*first).clone());
        }
        // A digest may also name a manifest that only an inner index lists.
        if let Some(digest) = digest
            && let Ok(blob) = self.open_blob(digest)
        {
            let bytes = self.limited(blob, &digest.to_string())?;
            #[derive(serde::Deserialize)]
            #[serde(rename_all = "camelCase")]
            struct Typed {
                media_type: Option<String>,
            }
            let typed: Typed = serde_json::from_slice(&bytes)
                .map_err(|source| LayoutError::Malformed { digest: digest.to_string(), source })?;
            let media_type = typed.media_type.unwrap_or_else(|| media_type::OCI_MANIFEST.into());
            return Ok(Descriptor::new(media_type, digest.clone(), bytes.len() as u64));
        }
        // Several names for one image are one image.
        if tag.is_none()
            && let Some(first) = found.first()
            && found.iter().all(|descriptor| descriptor.digest == first.digest)
        {
            return Ok((*first).clone());
        }
        let wanted = match (tag, digest) {
            (_, Some(digest)) => digest.to_string(),
            (Some(tag), None) => format!("tagged `{tag}`"),
            (None, None) => "that stands alone (name a tag or digest)".into(),
        };
        let available: Vec<String> = index.manifests.iter().flat_map(names).map(|name| format!("`{name}`")).collect();
        let available = if available.is_empty() {
            format!("{} without a tag", index.manifests.len())
        } else {
            available.join(", ")
        };
        Err(LayoutError::NoSuchImage { path: self.path.clone(), wanted, available })
    }

    /// Opens a blob for reading; its bytes are not verified.
    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<Box<dyn Read + Send>, LayoutError> {
        self.open_file(&layout::blob_path(digest)).map_err(|error| match error {
            LayoutError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                LayoutError::NoSuchBlob { path: self.path.clone(), digest: digest.clone() }
            }
            error => error,
        })
    }

    fn open_file(&self, name: &str) -> Result<Box<dyn Read + Send>, LayoutError> {
        let read = |source| LayoutError::Read { path: self.path.clone(), source };
        match &self.kind {
            Kind::Directory => Ok(Box::new(File::open(self.path.join(name)).map_err(read)?)),
            Kind::Archive(file, files) => {
                let (offset, size) = *files.get(name).ok_or_else(|| read(io::ErrorKind::NotFound.into()))?;
                Ok(Box::new(Part { file: Arc::clone(file), offset, left: size }))
            }
            Kind::Converted(file, converted) => match (converted.documents.get(name), converted.layers.get(name)) {
                (Some(document), _) => Ok(Box::new(io::Cursor::new(document.clone()))),
                (None, Some((offset, size))) => {
                    Ok(Box::new(Part { file: Arc::clone(file), offset: *offset, left: *size }))
                }
                (None, None) => Err(read(io::ErrorKind::NotFound.into())),
            },
        }
    }

    /// As [`Layout::open_blob`], from `offset` on.
    pub(crate) fn open_blob_at(&self, digest: &Digest, offset: u64) -> Result<Box<dyn Read + Send>, LayoutError> {
        let mut reader = self.open_blob(digest)?;
        let read = |source| LayoutError::Read { path: self.path.clone(), source };
        if offset > 0 && io::copy(&mut reader.by_ref().take(offset), &mut io::sink()).map_err(read)? < offset {
            return Err(read(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(reader)
    }

    /// All images that the layout lists, with the names that they have.
    pub(crate) fn images(&self) -> Result<Vec<(Vec<Reference>, Descriptor)>, LayoutError> {
        let mut images: Vec<(Vec<Reference>, Descriptor)> = Vec::new();
        for mut descriptor in self.index()?.manifests {
            let name = [layout::IMAGE_NAME, layout::REF_NAME]
                .iter()
                .filter_map(|key| descriptor.annotations.get(*key))
                // A tag alone names nothing outside of its layout.
                .filter(|name| name.contains(['/', ':']))
                .find_map(|name| name.parse::<Reference>().ok())
                .map(Reference::or_latest);
            descriptor.annotations.clear();
            match images.iter_mut().find(|(_, known)| known.digest == descriptor.digest) {
                Some((names, _)) => names.extend(name),
                None => images.push((name.into_iter().collect(), descriptor)),
            }
        }
        Ok(images)
    }

    /// Reads and verifies a document.
    pub(crate) fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, LayoutError> {
        let bytes = self.limited(self.open_blob(&descriptor.digest)?, &descriptor.digest.to_string())?;
        let actual = Digest::sha256(&bytes);
        if actual != descriptor.digest {
            return Err(LayoutError::Mismatch { path: self.path.clone(), expected: descriptor.digest.clone(), actual });
        }
        Ok(bytes)
    }

    fn limited(&self, reader: impl Read, name: &str) -> Result<Vec<u8>, LayoutError> {
        let mut bytes = Vec::new();
        reader
            .take(MAX_DOCUMENT_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| LayoutError::Read { path: self.path.join(name), source })?;
        if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
            return Err(LayoutError::TooLarge { digest: name.to_owned() });
        }
        Ok(bytes)
    }
}

/// Follows `root` to the manifest for `platform`, reading documents through `document`.
pub(crate) fn find(
    root: &Descriptor,
    platform: &Platform,
    document: &dyn Fn(&Descriptor) -> Result<Vec<u8>, LayoutError>,
) -> Result<FoundImage, LayoutError> {
    let mut descriptor = root.clone();
    for _ in 0..=MAX_INDEX_DEPTH {
        if !media_type::is_index(&descriptor.media_type) && !media_type::is_manifest(&descriptor.media_type) {
            let (digest, media_type) = (descriptor.digest, descriptor.media_type);
            return Err(LayoutError::NotAnImage { digest, media_type });
        }
        let bytes = document(&descriptor)?;
        let parsed = parse_document(&bytes, &descriptor.media_type)
            .map_err(|source| LayoutError::Invalid { digest: descriptor.digest.clone(), source })?;
        let manifest = match parsed {
            Parsed::Index(index) => {
                descriptor = choose(&index, platform)?;
                continue;
            }
            Parsed::Manifest(manifest) => *manifest,
        };
        if !media_type::is_config(&manifest.config.media_type) {
            let (digest, media_type) = (manifest.config.digest, manifest.config.media_type);
            return Err(LayoutError::NotAnImage { digest, media_type });
        }
        let config = document(&manifest.config)?;
        // What the config says must at least be a config; the frontend reads it again.
        serde_json::from_slice::<ImageConfig>(&config)
            .map_err(|source| LayoutError::Malformed { digest: manifest.config.digest.to_string(), source })?;
        return Ok(FoundImage { root: root.clone(), manifest_descriptor: descriptor, manifest, config });
    }
    Err(LayoutError::TooDeep)
}

pub(crate) fn choose(index: &Index, platform: &Platform) -> Result<Descriptor, LayoutError> {
    let of_an_image = |descriptor: &&Descriptor| {
        !descriptor.annotations.contains_key("vnd.docker.reference.type")
            && descriptor.platform.as_ref().is_none_or(|platform| platform.os != "unknown")
    };
    let images: Vec<&Descriptor> = index.manifests.iter().filter(of_an_image).collect();
    let exact = images.iter().find(|descriptor| {
        descriptor.platform.as_ref().is_some_and(|candidate| platform.matches(&candidate.normalize()))
    });
    match (exact, &images[..]) {
        (Some(found), _) => Ok((*found).clone()),
        (None, [only]) if only.platform.is_none() => Ok((*only).clone()),
        _ => {
            let available: Vec<String> =
                images.iter().filter_map(|descriptor| descriptor.platform.as_ref()).map(ToString::to_string).collect();
            let available = if available.is_empty() { "none".into() } else { available.join(", ") };
            Err(LayoutError::NoSuchPlatform { wanted: platform.to_string(), available })
        }
    }
}

fn names(descriptor: &Descriptor) -> impl Iterator<Item = &str> {
    [layout::REF_NAME, layout::IMAGE_NAME]
        .into_iter()
        .filter_map(|key| descriptor.annotations.get(key))
        .map(String::as_str)
}

/// Where each regular file of a tar archive stands.
fn archive_files(file: &File) -> io::Result<HashMap<String, (u64, u64)>> {
    let mut files = HashMap::new();
    let mut links = Vec::new();
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        if entry.header().entry_type().is_file() {
            files.insert(name, (entry.raw_file_position(), entry.size()));
        } else if entry.header().entry_type().is_symlink()
            && let Some(target) = entry.link_name_bytes()
        {
            // Older versions of Docker write a layer that stands in several images once, and links to it.
            links.push((name, String::from_utf8_lossy(&target).into_owned()));
        }
    }
    for (name, target) in links {
        let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
        let mut path: Vec<&str> = parent.split('/').filter(|part| !part.is_empty()).collect();
        for part in target.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(path.pop()),
                part => path.push(part),
            }
        }
        if let Some(found) = files.get(&path.join("/")).copied() {
            files.insert(name, found);
        }
    }
    Ok(files)
}

/// A stretch of a file, read without moving the file's own position, so that several can be read at once.
pub(crate) struct Part {
    pub(crate) file: Arc<File>,
    pub(crate) offset: u64,
    pub(crate) left: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..most], self.offset)?;
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layout with one image for two platforms under the tag `two`, and one without a platform under `one`.
    fn layout(dir: &Path) -> Vec<Digest> {
        let mut blobs = Vec::new();
        let put = |bytes: Vec<u8>, media_type: &str, blobs: &mut Vec<Digest>| {
            let digest = Digest::sha256(&bytes);
            let path = dir.join(layout::blob_path(&digest));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, &bytes).unwrap();
            blobs.push(digest.clone());
            Descriptor::new(media_type, digest, bytes.len() as u64)
        };
        let image = |architecture: &str, blobs: &mut Vec<Digest>| {
            let config =
                ImageConfig { architecture: architecture.into(), os: "linux".into(), ..ImageConfig::default() };
            let config = put(serde_json::to_vec(&config).unwrap(), media_type::OCI_CONFIG, blobs);
            let manifest = Manifest::new(config, Vec::new());
            put(serde_json::to_vec(&manifest).unwrap(), media_type::OCI_MANIFEST, blobs)
        };
        let alone = image("amd64", &mut blobs);
        let manifests = ["amd64", "arm64"].map(|architecture| Descriptor {
            platform: Some(Platform::new("linux", architecture)),
            ..image(architecture, &mut blobs)
        });
        let two = put(serde_json::to_vec(&Index::new(manifests.to_vec())).unwrap(), media_type::OCI_INDEX, &mut blobs);
        let tagged = |mut descriptor: Descriptor, tag: &str| {
            descriptor.annotations.insert(layout::REF_NAME.into(), tag.into());
            descriptor
        };
        let index = Index::new(vec![tagged(alone, "one"), tagged(two, "two")]);
        std::fs::write(dir.join(layout::INDEX_FILE), serde_json::to_vec(&index).unwrap()).unwrap();
        std::fs::write(dir.join(layout::MARKER_FILE), layout::MARKER).unwrap();
        blobs
    }

    fn architecture(found: &FoundImage) -> String {
        serde_json::from_slice::<ImageConfig>(&found.config).unwrap().architecture
    }

    #[test]
    fn an_image_is_found_by_tag_digest_and_platform_in_a_directory_and_in_an_archive() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("layout");
        std::fs::create_dir(&root).unwrap();
        let blobs = layout(&root);
        let archive = dir.path().join("layout.tar");
        let mut tar = tar::Builder::new(File::create(&archive).unwrap());
        tar.append_dir_all(".", &root).unwrap();
        tar.finish().unwrap();
        for path in [&root, &archive] {
            let opened = Layout::open(path).unwrap();
            let amd64 = Platform::new("linux", "amd64");
            let arm64 = Platform::new("linux", "arm64");
            assert_eq!(architecture(&opened.find(Some("one"), None, &amd64).unwrap()), "amd64");
            assert_eq!(architecture(&opened.find(Some("two"), None, &arm64).unwrap()), "arm64");
            let by_digest = opened.find(None, blobs.last(), &arm64).unwrap();
            assert_eq!(architecture(&by_digest), "arm64");
            assert_eq!(Some(&by_digest.root.digest), blobs.last());
            // A manifest that only an inner index lists.
            assert_eq!(
                architecture(&opened.find(None, Some(&by_digest.manifest_descriptor.digest), &arm64).unwrap()),
                "arm64"
            );
            let error = |found: Result<FoundImage, LayoutError>| found.unwrap_err().to_string();
            assert!(error(opened.find(Some("three"), None, &amd64)).contains("it has `one`, `two`"));
            assert!(error(opened.find(None, None, &amd64)).contains("stands alone"));
            let s390x = Platform::new("linux", "s390x");
            assert!(error(opened.find(Some("two"), None, &s390x)).contains("it has linux/amd64, linux/arm64"));
        }
    }

    #[test]
    fn a_document_that_is_not_what_its_digest_says_is_an_integrity_error() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = layout(dir.path());
        for digest in blobs.iter().collect::<std::collections::BTreeSet<_>>() {
            let path = dir.path().join(layout::blob_path(digest));
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[5] ^= 1;
            std::fs::write(path, bytes).unwrap();
        }
        let opened = Layout::open(dir.path()).unwrap();
        for tag in ["one", "two"] {
            let error = opened.find(Some(tag), None, &Platform::new("linux", "amd64")).unwrap_err();
            assert!(matches!(error, LayoutError::Mismatch { .. }) && error.is_integrity(), "{error}");
        }
    }

    #[test]
    fn what_is_no_layout_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Layout::open(dir.path()), Err(LayoutError::NotALayout { .. })));
        assert!(matches!(Layout::open(&dir.path().join("none")), Err(LayoutError::Read { .. })));
        let file = dir.path().join("file");
        std::fs::write(&file, "no archive").unwrap();
        assert!(Layout::open(&file).is_err());
    }
}
