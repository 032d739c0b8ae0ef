//! Assembling an image: layers and a config from the frontend become a config document and a manifest.
//!
//! Pure: bytes in, bytes out. The rules for history and times follow BuildKit's image exporter, so that tools that pair
//! history with layers see what they are used to.

use std::io;

use build_engine_oci::{Descriptor, DiffId, Digest, History, ImageConfig, Index, Manifest, media_type};

/// One layer, ready for a manifest.
#[derive(Debug, Clone)]
pub(crate) struct ImageLayer {
    /// Its blob, with OCI media type.
    pub(crate) descriptor: Descriptor,
    /// Hash of the uncompressed archive.
    pub(crate) diff_id: DiffId,
    /// Uncompressed size in bytes.
    pub(crate) size_bytes: u64,
    /// When it was made, as RFC 3339.
    pub(crate) created: String,
    /// What made it, for history that the config lacks.
    pub(crate) description: String,
}

/// A document and what points at it.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    /// Points at `bytes`.
    pub(crate) descriptor: Descriptor,
    /// JSON.
    pub(crate) bytes: Vec<u8>,
}

impl Document {
    fn new(media_type: &str, value: &impl serde::Serialize) -> Self {
        let mut bytes = Vec::new();
        let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, AsGo);
        value.serialize(&mut serializer).expect("documents have string keys and no failing serialisers");
        let descriptor = Descriptor::new(media_type, Digest::sha256(&bytes), bytes.len() as u64);
        Self { descriptor, bytes }
    }
}

/// JSON as Go writes it, which escapes what HTML gives a meaning: the same document has the same digest everywhere.
struct AsGo;

impl serde_json::ser::Formatter for AsGo {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            let (plain, special) = rest.split_at(at);
            let character = special.chars().next().expect("something was found");
            write!(writer, "{plain}\\u{:04x}", u32::from(character))?;
            rest = &special[character.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}

/// Finishes the frontend's `image`: diff IDs, history that matches the layers, and times.
///
/// `base_history` is how many history items came with the base; with an `epoch` (RFC 3339) later times are clamped to
/// it, except those of the base.
pub(crate) fn config(
    mut image: ImageConfig,
    layers: &[ImageLayer],
    epoch: Option<&str>,
    base_history: usize,
    oci: bool,
) -> Document {
    image.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    match_history(&mut image.history, layers);
    fill_times(&mut image.history, layers);
    if let Some(epoch) = epoch {
        for item in image.history.iter_mut().skip(base_history) {
            if item.created.as_deref().is_none_or(|created| is_after(created, epoch)) {
                item.created = Some(epoch.to_owned());
            }
        }
        if image.created.as_deref().is_some_and(|created| is_after(created, epoch)) {
            image.created = Some(epoch.to_owned());
        }
    }
    if image.created.is_none() {
        image.created = image.history.iter().filter_map(|item| item.created.clone()).next_back();
    }
    Document::new(if oci { media_type::OCI_CONFIG } else { media_type::DOCKER_CONFIG }, &image)
}

/// Makes as many history items claim a layer as there are layers.
fn match_history(history: &mut Vec<History>, layers: &[ImageLayer]) {
    let mut claimed = 0;
    for item in history.iter_mut().filter(|item| !item.empty_layer) {
        if claimed == layers.len() {
            item.empty_layer = true;
        } else {
            claimed += 1;
        }
    }
    for layer in &layers[claimed..] {
        history.push(History {
            created: Some(layer.created.clone()),
            created_by: layer.description.clone(),
            comment: "buildkit.exporter.image.v0".into(),
            ..History::default()
        });
    }
}

/// Gives every history item a time: a layer its own, the others that of the first new layer or of the item before.
fn fill_times(history: &mut [History], layers: &[ImageLayer]) {
    for (item, layer) in history.iter_mut().filter(|item| !item.empty_layer).zip(layers) {
        item.created.get_or_insert_with(|| layer.created.clone());
    }
    // Metadata before the first new layer gets that layer's time, not the base's.
    let first_gap = history.iter().position(|item| item.created.is_none());
    let mut current = match first_gap {
        Some(gap) => history[gap..].iter().find_map(|item| item.created.clone()),
        None => None,
    }
    .or_else(|| history.iter().filter_map(|item| item.created.clone()).next_back());
    for item in history.iter_mut().skip(first_gap.unwrap_or(usize::MAX)) {
        match &item.created {
            Some(created) => current = Some(created.clone()),
            None => item.created.clone_from(&current),
        }
    }
}

/// Compares two RFC 3339 times; text that is none is taken as it stands (never later).
fn is_after(time: &str, other: &str) -> bool {
    match (time.parse::<jiff::Timestamp>(), other.parse::<jiff::Timestamp>()) {
        (Ok(time), Ok(other)) => time > other,
        _ => false,
    }
}

/// The manifest of an image.
pub(crate) fn manifest(
    config: &Document,
    layers: &[ImageLayer],
    annotations: std::collections::BTreeMap<String, String>,
    oci: bool,
) -> Document {
    let layers = layers.iter().map(|layer| {
        let mut descriptor = layer.descriptor.clone();
        // A base may have the other family's types.
        let kind = &descriptor.media_type;
        descriptor.media_type = if oci { media_type::to_oci(kind) } else { media_type::to_docker(kind) }.to_owned();
        descriptor
    });
    let mut manifest = Manifest::new(config.descriptor.clone(), layers.collect());
    let kind = if oci { media_type::OCI_MANIFEST } else { media_type::DOCKER_MANIFEST };
    manifest.media_type = Some(kind.into());
    manifest.annotations = annotations;
    Document::new(kind, &manifest)
}

/// The index over several manifests.
pub(crate) fn index(
    manifests: Vec<Descriptor>,
    annotations: std::collections::BTreeMap<String, String>,
    oci: bool,
) -> Document {
    let mut index = Index::new(manifests);
    let kind = if oci { media_type::OCI_INDEX } else { media_type::DOCKER_MANIFEST_LIST };
    index.media_type = Some(kind.into());
    index.annotations = annotations;
    Document::new(kind, &index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(created: &str) -> ImageLayer {
        let digest = Digest::sha256(created.as_bytes());
        ImageLayer {
            descriptor: Descriptor::new(media_type::OCI_LAYER_GZIP, digest.clone(), 1),
            diff_id: digest.into(),
            size_bytes: 1,
            created: created.to_owned(),
            description: format!("made at {created}"),
        }
    }

    fn item(created_by: &str, created: Option<&str>, empty_layer: bool) -> History {
        History {
            created_by: created_by.into(),
            created: created.map(str::to_owned),
            empty_layer,
            ..History::default()
        }
    }

    fn history_of(history: Vec<History>, layers: &[ImageLayer], epoch: Option<&str>, base: usize) -> Vec<String> {
        let document = config(ImageConfig { history, ..ImageConfig::default() }, layers, epoch, base, true);
        let image: ImageConfig = serde_json::from_slice(&document.bytes).unwrap();
        assert_eq!(image.rootfs.diff_ids.len(), layers.len());
        assert_eq!(image.history.iter().filter(|item| !item.empty_layer).count(), layers.len());
        let mut lines: Vec<String> = image
            .history
            .iter()
            .map(|item| {
                format!(
                    "{}{} {}",
                    item.created_by,
                    if item.empty_layer { " -" } else { "" },
                    item.created.as_deref().unwrap_or("?")
                )
            })
            .collect();
        lines.push(format!("created {}", image.created.unwrap_or_default()));
        lines
    }

    const T1: &str = "2024-01-01T00:00:00Z";
    const T2: &str = "2024-02-01T00:00:00Z";
    const T3: &str = "2024-03-01T00:00:00Z";

    #[test]
    fn metadata_gets_the_time_of_the_first_new_layer_or_of_what_stands_before() {
        let history = vec![
            item("base", Some(T1), false),
            item("ENV", None, true),
            item("RUN", None, false),
            item("CMD", None, true),
        ];
        assert_eq!(
            history_of(history, &[layer(T1), layer(T2)], None, 1),
            [
                format!("base {T1}"),
                format!("ENV - {T2}"),
                format!("RUN {T2}"),
                format!("CMD - {T2}"),
                format!("created {T2}")
            ]
        );
    }

    #[test]
    fn an_image_of_metadata_alone_takes_the_time_of_its_base() {
        let history = vec![item("base", Some(T1), false), item("ENV", None, true)];
        assert_eq!(
            history_of(history, &[layer(T2)], None, 1),
            [format!("base {T1}"), format!("ENV - {T1}"), format!("created {T1}")]
        );
    }

    #[test]
    fn layers_without_history_get_some_and_history_without_layers_claims_none() {
        assert_eq!(history_of(vec![], &[layer(T2)], None, 0), [format!("made at {T2} {T2}"), format!("created {T2}")]);
        let history = vec![item("a", Some(T1), false), item("b", Some(T1), false)];
        assert_eq!(
            history_of(history, &[layer(T1)], None, 2),
            [format!("a {T1}"), format!("b - {T1}"), format!("created {T1}")]
        );
    }

    #[test]
    fn documents_are_written_as_go_writes_them() {
        let document = Document::new("x", &serde_json::json!({ "a<b": ["x && y > z", "\u{2028}\u{e9}\"\u{1}"] }));
        let expected = r#"{"a\u003cb":["x \u0026\u0026 y \u003e z","\u2028é\"\u0001"]}"#;
        assert_eq!(String::from_utf8(document.bytes).unwrap(), expected);
    }

    #[test]
    fn an_epoch_clamps_later_times_but_not_those_of_the_base() {
        let history = vec![item("base", Some(T3), false), item("RUN", None, false), item("CMD", None, true)];
        assert_eq!(
            history_of(history, &[layer(T3), layer(T3)], Some(T2), 1),
            [format!("base {T3}"), format!("RUN {T2}"), format!("CMD - {T2}"), format!("created {T2}")]
        );
    }
}
