//! Images made by hand, so that every byte of them is the test's.

use std::io::Write as _;

use build_engine_testkit::fixtures::{TarWriter, architecture, busybox, gzip};
use build_engine_testkit::registry::FakeRegistry;
use build_engine_testkit::{available, sha256};
use serde_json::{Value, json};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// How a layer lies in the registry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Form {
    Gzip,
    Zstd,
    Plain,
    /// Gzip in many members, with a table of contents at the end: what lazy pullers read.
    Estargz,
    /// Gzip, in Docker's words.
    Docker,
}

#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) media_type: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) diff_id: String,
}

impl Layer {
    pub(crate) fn new(tar: &[u8], form: Form) -> Layer {
        let diff_id = digest(tar);
        match form {
            Form::Gzip => Layer { media_type: LAYER_GZIP, bytes: gzip(tar).unwrap(), diff_id },
            Form::Docker => {
                let media_type = "application/vnd.docker.image.rootfs.diff.tar.gzip";
                Layer { media_type, bytes: gzip(tar).unwrap(), diff_id }
            }
            Form::Zstd => {
                let bytes = zstd::stream::encode_all(tar, 3).unwrap();
                Layer { media_type: "application/vnd.oci.image.layer.v1.tar+zstd", bytes, diff_id }
            }
            Form::Plain => Layer { media_type: "application/vnd.oci.image.layer.v1.tar", bytes: tar.to_vec(), diff_id },
            Form::Estargz => estargz(tar),
        }
    }

    pub(crate) fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": digest(&self.bytes), "size": self.bytes.len() })
    }
}

/// A layer in the way of stargz: a gzip member for each piece of the tar and one for the table of contents, then the
/// footer that says where that begins. Source: containerd/stargz-snapshotter, docs/estargz.md.
fn estargz(tar: &[u8]) -> Layer {
    // The tar ends where its two empty blocks begin; the table of contents is its last entry.
    let entries = &tar[..tar.len() - 1024];
    let mut last = TarWriter::default();
    last.file("stargz.index.json", 0o444, (0, 0), br#"{"version":1,"entries":[]}"#).unwrap();
    let last = last.finish().unwrap();
    let mut bytes = Vec::new();
    for piece in entries.chunks(512 * 1024) {
        bytes.extend(gzip(piece).unwrap());
    }
    let offset = bytes.len();
    bytes.extend(gzip(&last).unwrap());
    bytes.write_all(&[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0]).unwrap();
    write!(bytes, "SG\x16\0{offset:016x}STARGZ").unwrap();
    bytes.write_all(&[1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    let diff_id = digest(&[entries, &last].concat());
    Layer { media_type: LAYER_GZIP, bytes, diff_id }
}

/// An image before it is somewhere.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) config: Value,
    pub(crate) layers: Vec<Layer>,
}

impl Image {
    pub(crate) fn new(layers: Vec<Layer>) -> Image {
        let diff_ids: Vec<&String> = layers.iter().map(|layer| &layer.diff_id).collect();
        let history: Vec<Value> = layers.iter().map(|_| json!({ "created_by": "test" })).collect();
        let config = json!({
            "architecture": architecture().unwrap(), "os": "linux", "created": "2001-09-09T01:46:40Z",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Cmd": ["cat", "/marker"],
            },
            "rootfs": { "type": "layers", "diff_ids": diff_ids }, "history": history,
        });
        Image { config, layers }
    }

    /// A few bytes that cannot run: a file `/marker` that says `marker`.
    pub(crate) fn tiny(marker: &str) -> Image {
        Image::new(vec![Layer::new(&marker_tar(marker), Form::Gzip)])
    }

    /// busybox, and below that `/marker`; prints the marker when it runs. `None` where there is no busybox.
    pub(crate) fn runnable(marker: &str, form: Form) -> Option<Image> {
        Some(Image::new(vec![Layer::new(&busybox_tar()?, form), Layer::new(&marker_tar(marker), form)]))
    }

    pub(crate) fn config_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&self.config).unwrap()
    }

    pub(crate) fn manifest(&self) -> Value {
        let config = self.config_bytes();
        let layers: Vec<Value> = self.layers.iter().map(Layer::descriptor).collect();
        json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": { "mediaType": CONFIG, "digest": digest(&config), "size": config.len() }, "layers": layers,
        })
    }

    /// The same in Docker's words (schema 2).
    pub(crate) fn docker_manifest(&self) -> Value {
        let mut manifest = self.manifest();
        manifest["mediaType"] = json!(DOCKER_MANIFEST);
        manifest["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
        manifest
    }

    /// Puts configuration and layers into a repository.
    pub(crate) fn put_blobs(&self, registry: &FakeRegistry, repository: &str) {
        registry.put_blob(repository, self.config_bytes());
        for layer in &self.layers {
            registry.put_blob(repository, layer.bytes.clone());
        }
    }

    /// Puts all of it into a repository, and returns the digest of the manifest.
    pub(crate) fn put(&self, registry: &FakeRegistry, repository: &str, tag: &str) -> String {
        self.put_blobs(registry, repository);
        registry.put_manifest(repository, tag, MANIFEST, self.manifest().to_string())
    }

    /// The digest of the first layer.
    pub(crate) fn layer(&self) -> String {
        digest(&self.layers[0].bytes)
    }
}

/// An image whose only layer is `size` bytes that do not compress, the same for the same `seed`.
pub(crate) fn big(seed: u64, size: usize) -> Image {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take(size / 8)
    .flatten()
    .collect();
    let mut tar = TarWriter::default();
    tar.file("noise", 0o644, (0, 0), &noise).unwrap();
    Image::new(vec![Layer::new(&tar.finish().unwrap(), Form::Plain)])
}

pub(crate) fn marker_tar(marker: &str) -> Vec<u8> {
    let mut tar = TarWriter::default();
    tar.file("marker", 0o644, (0, 0), format!("{marker}\n").as_bytes()).unwrap();
    tar.finish().unwrap()
}

/// The layer of the base that all tests use, uncompressed.
pub(crate) fn busybox_tar() -> Option<Vec<u8>> {
    let layout = available(busybox())?;
    let read =
        |digest: &Value| std::fs::read(layout.join("blobs").join(digest.as_str().unwrap().replace(':', "/"))).unwrap();
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let index = json(&std::fs::read(layout.join("index.json")).unwrap());
    let manifest = json(&read(&index["manifests"][0]["digest"]));
    Some(read(&manifest["layers"][0]["digest"]))
}

/// An index of these descriptors.
pub(crate) fn index(manifests: &[Value]) -> Value {
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests })
}

/// A descriptor of `bytes`.
pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() })
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256(bytes))
}
