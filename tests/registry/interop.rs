//! Images as others make them come in; what goes out keeps to the OCI image-spec.

use build_engine_testkit::registry::FakeRegistry;
use serde_json::{Value, json};

use crate::images::{
    DOCKER_MANIFEST, Form, INDEX, Image, LAYER_GZIP, Layer, MANIFEST, busybox_tar, digest, marker_tar,
};
use crate::{Bench, EVERYBODY};

#[test]
fn layers_in_every_form_are_unpacked_and_run() {
    for who in EVERYBODY {
        for form in [Form::Gzip, Form::Zstd, Form::Plain, Form::Estargz, Form::Docker] {
            let Some(mut bench) = Bench::new(who) else { return };
            let marker = format!("{form:?} {who:?}");
            let Some(image) = Image::runnable(&marker, form) else { return };
            let registry = FakeRegistry::start();
            if form == Form::Docker {
                image.put_blobs(&registry, "app");
                registry.put_manifest("app", "v1", DOCKER_MANIFEST, image.docker_manifest().to_string());
            } else {
                image.put(&registry, "app", "v1");
            }
            let reference = registry.reference("app", "v1");
            bench.ok(["pull", &reference]);
            assert_eq!(bench.ok(["run", "--network=none", &reference]), format!("{marker}\n"));
            bench.verify_store();
            // What goes out again is what came in.
            bench.ok(["images", "tag", &reference, &registry.reference("copy", "v1")]);
            bench.ok(["push", &registry.reference("copy", "v1")]);
            assert_eq!(registry.tag("copy", "v1"), registry.tag("app", "v1"), "{form:?}");
            // And what is built on it is an image like any other.
            let made = registry.reference("made", "v1");
            let dockerfile = format!("FROM {reference}\nRUN echo more >> /marker\n");
            let run = bench.build("context", &[("Dockerfile", &dockerfile)], &["--push", "-t", &made]);
            assert_eq!(run.code, Some(0), "{}", run.stderr);
            check_image(&registry, "made", "v1");
            bench.empty_store("second");
            assert_eq!(bench.ok(["run", "--network=none", &made]), format!("{marker}\nmore\n"));
            bench.verify_store();
        }
    }
}

/// Layers of different forms in one image, the same layer twice, and one without content.
#[test]
fn mixed_repeated_and_empty_layers_are_unpacked() {
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        let Some(base) = busybox_tar() else { return };
        let empty = vec![0; 1024];
        let layers = vec![
            Layer::new(&base, Form::Zstd),
            Layer::new(&marker_tar("first"), Form::Gzip),
            Layer::new(&empty, Form::Gzip),
            Layer::new(&marker_tar("second"), Form::Plain),
            Layer::new(&marker_tar("first"), Form::Zstd),
            Layer::new(&empty, Form::Gzip),
            Layer::new(&marker_tar(&format!("last {who:?}")), Form::Gzip),
        ];
        let registry = FakeRegistry::start();
        Image::new(layers).put(&registry, "app", "v1");
        let out = bench.ok(["run", "--network=none", &registry.reference("app", "v1")]);
        assert_eq!(out, format!("last {who:?}\n"));
        bench.verify_store();
    }
}

type Change = fn(&mut Image, &mut Value);

/// What the spec allows, and registries hold: fields that nobody knows, no `mediaType`, data in the descriptor.
#[test]
fn documents_with_more_or_less_than_usual_are_read() {
    let changes: [(&str, Change); 9] = [
        ("no mediaType", |_, manifest| {
            manifest.as_object_mut().unwrap().remove("mediaType");
        }),
        ("fields of the future", |_, manifest| {
            manifest["future"] = json!({ "nested": [1, null, "x"] });
            manifest["config"]["future"] = json!(true);
        }),
        ("annotations and urls", |_, manifest| {
            manifest["annotations"] = json!({ "org.example": "x" });
            manifest["layers"][0]["annotations"] = json!({});
            manifest["layers"][0]["urls"] = json!([]);
        }),
        // Not what the spec says, but what Go reads as if it were absent: docker, podman and containerd take it.
        ("null where nothing need be", |_, manifest| {
            manifest["annotations"] = Value::Null;
            manifest["layers"][0]["annotations"] = Value::Null;
            manifest["layers"][0]["urls"] = Value::Null;
            manifest["subject"] = Value::Null;
        }),
        ("a platform in the layer", |_, manifest| {
            manifest["layers"][0]["platform"] = json!({ "os": "linux", "architecture": "amd64" });
        }),
        ("an artifact type and a subject", |_, manifest| {
            manifest["artifactType"] = json!("application/vnd.example");
            manifest["subject"] = json!({ "mediaType": MANIFEST, "digest": digest(b"subject"), "size": 7 });
        }),
        ("no history", |image, _| {
            image.config.as_object_mut().unwrap().remove("history");
        }),
        ("a configuration of nulls", |image, _| {
            for field in ["Volumes", "Labels", "Entrypoint", "ExposedPorts", "OnBuild", "Healthcheck"] {
                image.config["config"][field] = Value::Null;
            }
            image.config["created"] = json!("2026-11-26T00:00:00.123456789+01:00");
            image.config["container_config"] = json!({ "Hostname": "x" });
        }),
        ("no created", |image, _| {
            image.config.as_object_mut().unwrap().remove("created");
        }),
    ];
    let Some(bench) = Bench::new(EVERYBODY[0]) else { return };
    let mut problems = Vec::new();
    for (name, change) in changes {
        let registry = FakeRegistry::start();
        let Some(mut image) = Image::runnable(name, Form::Gzip) else { return };
        let mut scratch = json!({ "config": {}, "layers": [{}] });
        change(&mut image, &mut scratch);
        let mut manifest = image.manifest();
        change(&mut image.clone(), &mut manifest);
        image.put_blobs(&registry, "app");
        registry.put_manifest("app", "v1", MANIFEST, manifest.to_string());
        let run = bench.run(["run", "--network=none", &registry.reference("app", "v1")]);
        if (run.code, run.stdout.as_str()) != (Some(0), &format!("{name}\n")) {
            problems.push(format!("{name}: {:?}: {}{}", run.code, run.stdout, run.stderr));
        }
    }
    bench.verify_store();
    assert!(problems.is_empty(), "{}", problems.join("\n\n"));
}

#[test]
fn references_name_by_digest_and_with_both() {
    let Some(bench) = Bench::new(EVERYBODY[0]) else { return };
    let registry = FakeRegistry::start();
    let digest = Image::tiny("names").put(&registry, "app", "v1");
    Image::tiny("other").put(&registry, "app", "v2");
    bench.ok(["pull", &registry.reference("app", &digest)]);
    // With both, the digest decides.
    bench.ok(["pull", &format!("{}@{digest}", registry.reference("app", "v2"))]);
    Image::tiny("latest").put(&registry, "app", "latest");
    bench.ok(["pull", &format!("{}/app", registry.host())]);
    assert!(registry.requests().iter().any(|request| request.path.ends_with("/manifests/latest")));
    for reference in ["", "app/UPPER:x", "a b", "app:", "app@sha256:short", "-x:y", "http://x/y:z", "a//b:c"] {
        let run = bench.run(["pull", "--", reference]);
        assert_eq!(run.code, Some(2), "`{reference}`: {}", run.stderr);
    }
}

/// Checks everything that `repository:tag` of a registry consists of against the MUSTs of the OCI image-spec v1.1
/// (`manifest.md`, `image-index.md`, `config.md`, `descriptor.md`).
pub(crate) fn check_image(registry: &FakeRegistry, repository: &str, tag: &str) {
    let (media_type, bytes) = registry.manifest(repository, tag).expect("the tag is there");
    check_document(registry, repository, &media_type, &bytes);
}

fn check_document(registry: &FakeRegistry, repository: &str, media_type: &str, bytes: &[u8]) {
    let document: Value = serde_json::from_slice(bytes).unwrap();
    assert_eq!(document["schemaVersion"], 2, "{document}");
    assert_eq!(document["mediaType"], media_type, "mediaType is what the registry was told");
    check_annotations(&document["annotations"]);
    if media_type == INDEX {
        assert!(document.get("config").is_none() && document.get("layers").is_none(), "{document}");
        for child in document["manifests"].as_array().expect("manifests is an array") {
            check_descriptor(child);
            if let Some(platform) = child.get("platform") {
                assert!(platform["os"].is_string() && platform["architecture"].is_string(), "{platform}");
            }
            let (media_type, bytes) = registry.manifest(repository, child["digest"].as_str().unwrap()).unwrap();
            assert_eq!(child["mediaType"], media_type.as_str());
            assert_eq!(child["size"], bytes.len());
            check_document(registry, repository, &media_type, &bytes);
        }
        return;
    }
    assert_eq!(media_type, MANIFEST);
    assert!(document.get("manifests").is_none(), "{document}");
    let blob = |descriptor: &Value| {
        check_descriptor(descriptor);
        let bytes = registry.blob(repository, descriptor["digest"].as_str().unwrap()).expect("every blob is there");
        assert_eq!(descriptor["size"], bytes.len(), "{descriptor}");
        bytes
    };
    let config = blob(&document["config"]);
    assert_eq!(document["config"]["mediaType"], crate::images::CONFIG);
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert!(config["os"].is_string() && config["architecture"].is_string(), "{config}");
    assert_eq!(config["rootfs"]["type"], "layers");
    let diff_ids = config["rootfs"]["diff_ids"].as_array().expect("diff_ids is an array");
    let layers = document["layers"].as_array().expect("layers is an array");
    assert_eq!(diff_ids.len(), layers.len());
    for (layer, diff_id) in layers.iter().zip(diff_ids) {
        let bytes = blob(layer);
        let tar = match layer["mediaType"].as_str().unwrap() {
            "application/vnd.oci.image.layer.v1.tar" => bytes,
            LAYER_GZIP => {
                let mut tar = Vec::new();
                let mut decoder = flate2::read::MultiGzDecoder::new(&bytes[..]);
                std::io::Read::read_to_end(&mut decoder, &mut tar).unwrap();
                tar
            }
            "application/vnd.oci.image.layer.v1.tar+zstd" => zstd::stream::decode_all(&bytes[..]).unwrap(),
            other => panic!("a layer of type {other}"),
        };
        assert_eq!(diff_id.as_str(), Some(digest(&tar).as_str()));
    }
    if let Some(created) = config.get("created") {
        check_time(created);
    }
    if let Some(history) = config.get("history") {
        let history = history.as_array().expect("history is an array");
        let filled = history.iter().filter(|entry| entry["empty_layer"] != true).count();
        assert_eq!(filled, layers.len(), "one entry of the history for each layer: {history:#?}");
        history.iter().filter_map(|entry| entry.get("created")).for_each(check_time);
    }
    for entry in config["config"]["Env"].as_array().into_iter().flatten() {
        assert!(entry.as_str().is_some_and(|text| text.find('=').is_some_and(|at| at > 0)), "{entry}");
    }
}

fn check_descriptor(descriptor: &Value) {
    let media_type = descriptor["mediaType"].as_str().expect("a descriptor has a mediaType");
    assert!(
        media_type.split_once('/').is_some_and(|(kind, name)| !kind.is_empty() && !name.is_empty()),
        "{media_type}"
    );
    let digest = descriptor["digest"].as_str().expect("a descriptor has a digest");
    let hex = digest.strip_prefix("sha256:").expect("we write sha256");
    assert!(hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{digest}");
    assert!(descriptor["size"].is_u64(), "{descriptor}");
    check_annotations(&descriptor["annotations"]);
}

fn check_annotations(annotations: &Value) {
    if annotations.is_null() {
        return;
    }
    assert!(annotations.as_object().expect("a map").values().all(Value::is_string), "{annotations}");
}

/// RFC 3339, section 5.6.
fn check_time(time: &Value) {
    let text = time.as_str().expect("a time is text");
    let (date, clock) = text.split_once('T').unwrap_or_else(|| panic!("`{text}` has no T"));
    let is_digits = |text: &str, count: usize| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    let date: Vec<&str> = date.split('-').collect();
    assert!(date.len() == 3 && is_digits(date[0], 4) && is_digits(date[1], 2) && is_digits(date[2], 2), "{text}");
    let clock = clock.strip_suffix('Z').or_else(|| clock.rsplit_once(['+', '-']).map(|(clock, _)| clock));
    let clock = clock.unwrap_or_else(|| panic!("`{text}` has no zone"));
    let clock: Vec<&str> = clock.split([':', '.']).collect();
    assert!(clock.len() >= 3 && clock[..3].iter().all(|part| is_digits(part, 2)), "{text}");
}
