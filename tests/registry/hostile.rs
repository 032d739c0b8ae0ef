//! R01 to R04: documents that a registry made up to do harm. Whatever it says, nothing is stored that does not verify,
//! and the next pull works.

use build_engine_testkit::engine::Who;
use build_engine_testkit::registry::{FakeRegistry, Reply};
use serde_json::{Value, json};

use crate::images::{
    DOCKER_MANIFEST, Form, INDEX, Image, LAYER_GZIP, Layer, MANIFEST, descriptor, digest, index, marker_tar,
};
use crate::{Bench, EVERYBODY};

/// A registry that says something wrong.
struct Case {
    name: &'static str,
    /// Makes the image `app:v1`, whose marker no other case has.
    arrange: fn(&FakeRegistry, &Image),
    /// The exit codes that are right.
    codes: &'static [i32],
    /// What the message has.
    parts: &'static [&'static str],
    /// The requests that are enough to find out.
    requests: usize,
}

fn manifest_with(registry: &FakeRegistry, image: &Image, change: impl FnOnce(&mut Value)) {
    image.put_blobs(registry, "app");
    let mut manifest = image.manifest();
    change(&mut manifest);
    registry.put_manifest("app", "v1", MANIFEST, manifest.to_string());
}

/// Pulls each case as `who`, then the same image from a registry that is honest. Says of all cases what is wrong.
fn check(who: Who, cases: &[Case]) {
    let Some(bench) = Bench::new(who) else { return };
    let mut problems = Vec::new();
    for case in cases {
        let image = Image::tiny(&format!("{} {who:?}", case.name));
        let registry = FakeRegistry::start();
        (case.arrange)(&registry, &image);
        let files = bench.files();
        let run = bench.run(["pull", &registry.reference("app", "v1")]);
        let said = format!("{:?}\n{}", run.code, run.stderr);
        let mut wrong = |what: String| problems.push(format!("{} as {who:?}: {what}, {said}", case.name));
        if !run.code.is_some_and(|code| case.codes.contains(&code)) {
            wrong(format!("{:?} expected", case.codes));
        }
        for part in case.parts.iter().filter(|part| !run.stderr.contains(**part)) {
            wrong(format!("no `{part}` in the message"));
        }
        if run.stderr.len() >= 64 << 10 {
            wrong(format!("a message of {} bytes", run.stderr.len()));
        }
        let requests = registry.requests();
        if requests.len() > case.requests {
            wrong(format!("{} requests: {requests:#?}", requests.len()));
        }
        let sent: u64 = requests.iter().map(|request| request.sent).sum();
        if sent >= 48 << 20 {
            wrong(format!("{sent} bytes were read"));
        }
        if bench.files() != files {
            wrong(format!("files were made: {:?}", bench.files()));
        }
        bench.verify_store();

        let honest = FakeRegistry::start();
        image.put(&honest, "app", "v1");
        let run = bench.run(["pull", &honest.reference("app", "v1")]);
        if run.code != Some(0) {
            wrong(format!("and then the honest image is not pulled: {}", run.stderr));
        }
    }
    bench.verify_store();
    assert!(problems.is_empty(), "{}", problems.join("\n\n"));
}

const INTEGRITY: &[i32] = &[4];
const INTEGRITY_OR_LIMIT: &[i32] = &[4, 5];

/// Digests that are none. The message need not repeat them.
const R01: &[Case] = &[
    Case {
        name: "a layer's digest is a path",
        arrange: |registry, image| {
            manifest_with(registry, image, |manifest| manifest["layers"][0]["digest"] = json!("sha256:../../x"));
        },
        codes: INTEGRITY,
        parts: &["digest"],
        requests: 6,
    },
    Case {
        name: "a configuration's digest is an absolute path",
        arrange: |registry, image| {
            manifest_with(registry, image, |manifest| manifest["config"]["digest"] = json!("/tmp/x"));
        },
        codes: INTEGRITY,
        parts: &["digest"],
        requests: 6,
    },
    Case {
        name: "a digest in upper case",
        arrange: |registry, image| {
            manifest_with(registry, image, |manifest| {
                let upper = image.layer().to_uppercase().replace("SHA256", "sha256");
                manifest["layers"][0]["digest"] = json!(upper);
            });
        },
        codes: INTEGRITY,
        parts: &["digest"],
        requests: 6,
    },
    Case {
        name: "md5",
        arrange: |registry, image| {
            manifest_with(registry, image, |manifest| {
                manifest["layers"][0]["digest"] = json!("md5:d41d8cd98f00b204e9800998ecf8427e");
            });
        },
        codes: INTEGRITY,
        parts: &["md5"],
        requests: 6,
    },
    Case {
        name: "a digest of 3 MB",
        arrange: |registry, image| {
            manifest_with(registry, image, |manifest| {
                manifest["layers"][0]["digest"] = json!(format!("sha256:{}", "a".repeat(3 << 20)));
            });
        },
        codes: INTEGRITY_OR_LIMIT,
        parts: &[],
        requests: 6,
    },
    Case {
        name: "a digest of 10 MB",
        arrange: |registry, image| {
            manifest_with(registry, image, |manifest| {
                manifest["layers"][0]["digest"] = json!(format!("sha256:{}", "a".repeat(10 << 20)));
            });
        },
        codes: INTEGRITY_OR_LIMIT,
        parts: &[],
        requests: 6,
    },
    Case {
        name: "an empty digest",
        arrange: |registry, image| {
            manifest_with(registry, image, |manifest| manifest["layers"][0]["digest"] = json!(""));
        },
        codes: INTEGRITY,
        parts: &["digest"],
        requests: 6,
    },
    Case {
        name: "no digest",
        arrange: |registry, image| {
            manifest_with(registry, image, |manifest| {
                manifest["layers"][0].as_object_mut().unwrap().remove("digest");
            });
        },
        codes: INTEGRITY,
        parts: &["digest"],
        requests: 6,
    },
    Case {
        name: "the child of an index has a path as digest",
        arrange: |registry, image| {
            image.put_blobs(registry, "app");
            let mut child = descriptor(MANIFEST, b"{}");
            child["digest"] = json!("sha256:../../../../../../tmp/x");
            registry.put_manifest("app", "v1", INDEX, index(&[child]).to_string());
        },
        codes: INTEGRITY,
        parts: &["digest"],
        requests: 6,
    },
    Case {
        name: "Docker-Content-Digest is a path",
        arrange: |registry, image| {
            image.put(registry, "app", "v1");
            registry.bend(|request, reply| {
                if request.path.contains("/manifests/") {
                    reply.replace_header("Docker-Content-Digest", "sha256:../../x")
                } else {
                    reply
                }
            });
        },
        codes: INTEGRITY,
        parts: &[],
        requests: 6,
    },
];

#[test]
fn r01_digests_that_are_none_are_refused() {
    for who in EVERYBODY {
        check(who, R01);
    }
}

const R02: &[Case] = &[
    Case {
        name: "an index that leads back to itself",
        arrange: |registry, image| {
            image.put_blobs(registry, "app");
            let inner = digest(b"the name of the inner index");
            let mut child = descriptor(INDEX, b"");
            child["digest"] = json!(inner);
            child["size"] = json!(300);
            let outer = index(&[child]).to_string();
            registry.put_manifest("app", "v1", INDEX, outer.clone());
            registry.put_manifest_as("app", &inner, INDEX, outer);
        },
        codes: INTEGRITY_OR_LIMIT,
        parts: &[],
        requests: 8,
    },
    Case {
        name: "indexes in indexes, a thousand deep",
        arrange: |registry, image| {
            let mut bytes = image.manifest().to_string().into_bytes();
            image.put_blobs(registry, "app");
            registry.put_manifest("app", "", MANIFEST, bytes.clone());
            let mut media_type = MANIFEST;
            for _ in 0..1000 {
                let mut child = descriptor(media_type, &bytes);
                child["platform"] = json!({ "os": "linux", "architecture": image.config["architecture"] });
                bytes = index(&[child]).to_string().into_bytes();
                media_type = INDEX;
                registry.put_manifest("app", "", INDEX, bytes.clone());
            }
            registry.put_manifest("app", "v1", INDEX, bytes);
        },
        codes: INTEGRITY_OR_LIMIT,
        parts: &["index"],
        requests: 12,
    },
    Case {
        name: "an index of 10,001 manifests",
        arrange: |registry, image| {
            image.put(registry, "app", "");
            let children: Vec<Value> = (0..10_001)
                .map(|number| {
                    let bytes = format!("{number}");
                    let mut child = descriptor(MANIFEST, bytes.as_bytes());
                    child["platform"] = json!({ "os": "linux", "architecture": image.config["architecture"] });
                    child
                })
                .collect();
            registry.put_manifest("app", "v1", INDEX, index(&children).to_string());
        },
        codes: &[5],
        parts: &["10"],
        requests: 6,
    },
    Case {
        name: "an index of a million manifests",
        arrange: |registry, _| {
            let child = json!({ "mediaType": MANIFEST, "digest": digest(b"x"), "size": 1 }).to_string();
            let children = vec![child; 1_000_000].join(",");
            let text = format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{children}]}}"#);
            registry.put_manifest("app", "v1", INDEX, text);
        },
        codes: &[5],
        parts: &[],
        requests: 6,
    },
    Case {
        name: "a manifest with layers and manifests",
        arrange: |registry, image| {
            manifest_with(registry, image, |manifest| {
                manifest["manifests"] = json!([descriptor(MANIFEST, b"x")]);
            });
        },
        codes: INTEGRITY,
        parts: &["manifests"],
        requests: 6,
    },
    Case {
        name: "an index with layers",
        arrange: |registry, image| {
            image.put(registry, "app", "inner");
            let mut both = index(&[descriptor(MANIFEST, image.manifest().to_string().as_bytes())]);
            both["layers"] = image.manifest()["layers"].clone();
            both["config"] = image.manifest()["config"].clone();
            registry.put_manifest("app", "v1", INDEX, both.to_string());
        },
        codes: INTEGRITY,
        parts: &["layers"],
        requests: 6,
    },
    Case {
        name: "the Content-Type says index, the document manifest",
        arrange: |registry, image| {
            image.put_blobs(registry, "app");
            registry.put_manifest("app", "v1", INDEX, image.manifest().to_string());
        },
        codes: INTEGRITY,
        parts: &[INDEX],
        requests: 6,
    },
    Case {
        name: "the Content-Type says index, the document nothing, and it is a manifest",
        arrange: |registry, image| {
            image.put_blobs(registry, "app");
            let mut manifest = image.manifest();
            manifest.as_object_mut().unwrap().remove("mediaType");
            registry.put_manifest("app", "v1", INDEX, manifest.to_string());
        },
        codes: INTEGRITY,
        parts: &[],
        requests: 6,
    },
    Case {
        name: "the Content-Type is Docker's, the document OCI's",
        arrange: |registry, image| {
            image.put_blobs(registry, "app");
            registry.put_manifest("app", "v1", DOCKER_MANIFEST, image.manifest().to_string());
        },
        codes: INTEGRITY,
        parts: &[DOCKER_MANIFEST],
        requests: 6,
    },
    Case {
        name: "the descriptor says manifest, and it is an index",
        arrange: |registry, image| {
            image.put(registry, "app", "");
            let mut inner = descriptor(MANIFEST, image.manifest().to_string().as_bytes());
            inner["platform"] = json!({ "os": "linux", "architecture": image.config["architecture"] });
            let inner = index(&[inner]).to_string();
            registry.put_manifest("app", "", INDEX, inner.clone());
            let mut child = descriptor(MANIFEST, inner.as_bytes());
            child["platform"] = json!({ "os": "linux", "architecture": image.config["architecture"] });
            registry.put_manifest("app", "v1", INDEX, index(&[child]).to_string());
        },
        codes: INTEGRITY,
        parts: &[],
        requests: 8,
    },
    Case {
        name: "the descriptor has the wrong size",
        arrange: |registry, image| {
            image.put(registry, "app", "");
            let mut child = descriptor(MANIFEST, image.manifest().to_string().as_bytes());
            child["size"] = json!(7);
            registry.put_manifest("app", "v1", INDEX, index(&[child]).to_string());
        },
        codes: INTEGRITY,
        parts: &[],
        requests: 8,
    },
];

#[test]
fn r02_indexes_that_lead_astray_end_after_a_few_requests() {
    check(Who::Root, R02);
    // Those that take long to make are made for root alone.
    check(Who::User, &R02[4..]);
}

/// Replaces the manifest `app:v1` by this text.
fn text(registry: &FakeRegistry, image: &Image, text: &str) {
    image.put_blobs(registry, "app");
    registry.put_manifest("app", "v1", MANIFEST, text);
}

/// Puts an image whose configuration is this text.
fn config_text(registry: &FakeRegistry, image: &Image, text: &str) {
    manifest_with(registry, image, |manifest| {
        manifest["config"] = descriptor("application/vnd.oci.image.config.v1+json", text.as_bytes());
    });
    registry.put_blob("app", text);
}

/// Serves a document without end below `part`.
fn endless(registry: &FakeRegistry, part: &'static str, is_chunked: bool) {
    registry.on(move |request| {
        request.is("GET", part).then(|| {
            let reply = Reply::ok(MANIFEST, vec![b' '; 1 << 16]).repeated(1 << 30);
            if is_chunked { reply.chunked() } else { reply }
        })
    });
}

const R03: &[Case] = &[
    Case {
        name: "a manifest of 1 GB, and it says so",
        arrange: |registry, image| {
            image.put(registry, "app", "v1");
            endless(registry, "/manifests/", false);
        },
        // The limit is passed; that it is not what was announced is found out at the same moment.
        codes: INTEGRITY_OR_LIMIT,
        parts: &[],
        requests: 6,
    },
    Case {
        name: "a manifest of 1 GB, and it does not say so",
        arrange: |registry, image| {
            image.put(registry, "app", "v1");
            endless(registry, "/manifests/", true);
        },
        codes: INTEGRITY_OR_LIMIT,
        parts: &[],
        requests: 6,
    },
    Case {
        name: "a manifest of 1 GB, and even its HEAD says so",
        arrange: |registry, image| {
            image.put(registry, "app", "v1");
            registry.on(|request| {
                let reply = Reply::ok(MANIFEST, vec![b' '; 1 << 16]).repeated(1 << 30);
                let reply = reply.header("Docker-Content-Digest", &digest(b"a gigabyte"));
                request.path.contains("/manifests/").then_some(reply)
            });
        },
        codes: &[5],
        parts: &[],
        requests: 6,
    },
    Case {
        name: "a configuration of 1 GB, and its descriptor says so",
        arrange: |registry, image| {
            manifest_with(registry, image, |manifest| manifest["config"]["size"] = json!(1 << 30));
            endless(registry, "/blobs/", false);
        },
        codes: &[5],
        parts: &[],
        requests: 8,
    },
    Case {
        name: "a configuration of 1 GB, and its descriptor says otherwise",
        arrange: |registry, image| {
            image.put(registry, "app", "v1");
            endless(registry, "/blobs/", false);
        },
        codes: INTEGRITY_OR_LIMIT,
        parts: &[],
        requests: 12,
    },
    Case {
        name: "a layer that goes on after its end",
        arrange: |registry, image| {
            image.put(registry, "app", "v1");
            let layer = image.layer();
            registry.on(move |request| {
                request.is("GET", &layer).then(|| Reply::ok("x/y", vec![0; 1 << 16]).repeated(1 << 30).chunked())
            });
        },
        codes: INTEGRITY_OR_LIMIT,
        parts: &[],
        requests: 12,
    },
    Case {
        name: "a manifest 100,000 brackets deep",
        arrange: |registry, image| {
            let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
            let manifest = image.manifest().to_string();
            text(registry, image, &format!("{{\"x\":{deep},{}", &manifest[1..]));
        },
        codes: INTEGRITY_OR_LIMIT,
        parts: &[],
        requests: 6,
    },
    Case {
        name: "a configuration 100,000 brackets deep",
        arrange: |registry, image| {
            let deep = format!("{}{}", "{\"a\":".repeat(100_000), "1".to_owned() + &"}".repeat(100_000));
            let config = image.config.to_string();
            config_text(registry, image, &format!("{{\"x\":{deep},{}", &config[1..]));
        },
        codes: INTEGRITY_OR_LIMIT,
        parts: &[],
        requests: 10,
    },
    Case {
        name: "a history of 5,000,000 entries",
        arrange: |registry, image| {
            let history = vec!["{}"; 5_000_000].join(",");
            let config = image.config.to_string().replace("\"history\":[", &format!("\"history\":[{history},"));
            config_text(registry, image, &config);
        },
        codes: INTEGRITY_OR_LIMIT,
        parts: &[],
        requests: 10,
    },
    Case {
        name: "a manifest with two configurations",
        arrange: |registry, image| {
            let manifest = image.manifest();
            let other = descriptor("application/vnd.oci.image.config.v1+json", b"{}");
            text(registry, image, &format!("{{\"config\":{other},{}", &manifest.to_string()[1..]));
        },
        codes: INTEGRITY,
        parts: &["config"],
        requests: 6,
    },
    Case {
        name: "a manifest with two lists of layers",
        arrange: |registry, image| {
            let manifest = image.manifest();
            text(registry, image, &format!("{{\"layers\":[],{}", &manifest.to_string()[1..]));
        },
        codes: INTEGRITY,
        parts: &["layers"],
        requests: 6,
    },
    Case {
        name: "null for the configuration",
        arrange: |registry, image| manifest_with(registry, image, |manifest| manifest["config"] = Value::Null),
        codes: INTEGRITY,
        parts: &[],
        requests: 6,
    },
    Case {
        name: "null for a layer",
        arrange: |registry, image| manifest_with(registry, image, |manifest| manifest["layers"][0] = Value::Null),
        codes: INTEGRITY,
        parts: &[],
        requests: 6,
    },
    Case {
        name: "null for a size",
        arrange: |registry, image| {
            manifest_with(registry, image, |manifest| manifest["layers"][0]["size"] = Value::Null);
        },
        codes: INTEGRITY,
        parts: &[],
        requests: 6,
    },
    Case {
        name: "a negative size",
        arrange: |registry, image| {
            manifest_with(registry, image, |manifest| manifest["layers"][0]["size"] = json!(-1));
        },
        codes: INTEGRITY,
        parts: &[],
        requests: 6,
    },
    Case {
        name: "a size of 1e400",
        arrange: |registry, image| {
            let size = format!("\"size\":{}", image.layers[0].bytes.len());
            text(registry, image, &image.manifest().to_string().replace(&size, "\"size\":1e400"));
        },
        codes: INTEGRITY,
        parts: &[],
        requests: 6,
    },
    Case {
        name: "a size that is not the layer's",
        arrange: |registry, image| {
            manifest_with(registry, image, |manifest| {
                manifest["layers"][0]["size"] = json!(image.layers[0].bytes.len() + 1);
            });
        },
        codes: INTEGRITY,
        parts: &["sha256:"],
        requests: 12,
    },
    Case {
        name: "no JSON at all",
        arrange: |registry, image| text(registry, image, "<html>log in to the hotel's network</html>"),
        codes: INTEGRITY,
        parts: &[],
        requests: 6,
    },
    Case {
        name: "JSON with something behind it",
        arrange: |registry, image| text(registry, image, &format!("{}{{}}", image.manifest())),
        codes: INTEGRITY,
        parts: &[],
        requests: 6,
    },
    Case {
        name: "an empty document",
        arrange: |registry, image| text(registry, image, ""),
        codes: INTEGRITY,
        parts: &[],
        requests: 6,
    },
    Case {
        name: "Docker's old manifest of schema 1",
        arrange: |registry, _| {
            let manifest = json!({ "schemaVersion": 1, "name": "app", "tag": "v1", "fsLayers": [], "history": [] });
            let media_type = "application/vnd.docker.distribution.manifest.v1+prettyjws";
            registry.put_manifest("app", "v1", media_type, manifest.to_string());
        },
        codes: &[2, 3, 4],
        parts: &["schema"],
        requests: 6,
    },
];

#[test]
fn r03_documents_without_measure_are_refused_in_bounded_space() {
    check(Who::Root, R03);
    check(Who::User, &R03[5..6]);
}

/// A layer that is what its digest says, but not what its diff ID says, never becomes part of a file system.
#[test]
fn r03_a_diff_id_that_lies_is_found_out_before_anything_runs() {
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        let Some(mut image) = Image::runnable(&format!("diff id {who:?}"), Form::Gzip) else { return };
        let right = image.config.clone();
        image.config["rootfs"]["diff_ids"][1] = json!(digest(b"something else"));
        let registry = FakeRegistry::start();
        image.put(&registry, "app", "v1");
        let reference = registry.reference("app", "v1");
        bench.fails(["run", "--network=none", &reference, "cat", "/marker"], &[4], &["sha256:"]);
        bench.verify_store();
        image.config["rootfs"]["diff_ids"].as_array_mut().unwrap().pop();
        image.put(&registry, "app", "v2");
        bench.fails(["run", "--network=none", &registry.reference("app", "v2"), "cat", "/marker"], &[4], &[]);
        bench.verify_store();
        image.config = right;
        image.put(&registry, "app", "v3");
        let out = bench.ok(["run", "--network=none", &registry.reference("app", "v3"), "cat", "/marker"]);
        assert_eq!(out, format!("diff id {who:?}\n"));
    }
}

/// A layer that inflates to other content than any digest says, and one that is no archive at all.
#[test]
fn r03_layers_that_are_no_archives_are_refused() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let Some(good) = Image::runnable("archives", Form::Gzip) else { return };
    let truncated = {
        let mut layer = Layer::new(&marker_tar("truncated"), Form::Gzip);
        layer.bytes.truncate(layer.bytes.len() / 2);
        layer
    };
    let noise = Layer { media_type: LAYER_GZIP, bytes: b"no gzip at all".to_vec(), diff_id: digest(b"no gzip at all") };
    let unknown = Layer { media_type: "application/vnd.example.unknown", ..Layer::new(&marker_tar("u"), Form::Gzip) };
    let mut problems = Vec::new();
    for (tag, layer) in [("truncated", truncated), ("noise", noise), ("unknown", unknown)] {
        let image = Image::new(vec![good.layers[0].clone(), layer]);
        let registry = FakeRegistry::start();
        image.put(&registry, "app", tag);
        let run = bench.run(["run", "--network=none", &registry.reference("app", tag), "true"]);
        if run.code != Some(4) {
            problems.push(format!("{tag}: {:?}: {}", run.code, run.stderr));
        }
        bench.verify_store();
    }
    assert!(problems.is_empty(), "{}", problems.join("\n\n"));
}

/// R04, CVE-2026-57231: an entry of `Env` without `=` must not let the host's variable of that name in.
#[test]
fn r04_variables_of_the_host_do_not_reach_a_container_through_an_image() {
    for who in EVERYBODY {
        let Some(mut bench) = Bench::new(who) else { return };
        bench.environment.insert("SECRETVAR".to_owned(), "value-of-the-host".to_owned());
        for (number, entries) in
            [json!(["SECRETVAR"]), json!(["*"]), json!(["=x"]), json!(["A=\u{0}"]), json!(["SECRETVAR", "*", "=x"])]
                .into_iter()
                .enumerate()
        {
            let Some(mut image) = Image::runnable(&format!("env {number} {who:?}"), Form::Gzip) else { return };
            let all = image.config["config"]["Env"].as_array_mut().unwrap();
            all.extend(entries.as_array().unwrap().iter().cloned());
            // Data that look like settings are data.
            image.config["config"]["Labels"] = json!({
                "network": "host", "build-engine.network": "host", "io.containerd.runtime.binary": "binary:///bin/sh",
            });
            let registry = FakeRegistry::start();
            image.put(&registry, "app", "v1");
            let reference = registry.reference("app", "v1");
            let run = bench.run(["run", "--network=none", &reference, "env"]);
            let said = format!("{entries} as {who:?}: {:?}\n{}\n{}", run.code, run.stdout, run.stderr);
            assert!(matches!(run.code, Some(0 | 4)), "{said}");
            assert!(!run.stdout.contains("value-of-the-host"), "{said}");
            let dockerfile = format!("FROM {reference}\nRUN env > /seen; ! grep value-of-the-host /seen\n");
            let run = bench.build("env", &[("Dockerfile", &dockerfile)], &["-t", "env"]);
            assert!(matches!(run.code, Some(0 | 4)), "{entries} as {who:?}: {:?}\n{}", run.code, run.stderr);
            bench.verify_store();
        }
    }
}
