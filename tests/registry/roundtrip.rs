//! What is pushed comes back the same, and nothing moves twice.

use std::fs;
use std::process::Stdio;

use build_engine_testkit::engine::Who;
use build_engine_testkit::image::{image_of_archive, images_of_layout};
use build_engine_testkit::registry::{FakeRegistry, Reply};
use serde_json::{Value, json};

use crate::images::{DOCKER_LIST, Form, INDEX, Image, MANIFEST, big, descriptor, digest, index};
use crate::interop::check_image;
use crate::{Bench, EVERYBODY};

/// The bytes of blobs that reached the registry.
fn uploaded(registry: &FakeRegistry) -> u64 {
    let requests = registry.requests();
    requests.iter().filter(|request| request.path.contains("/blobs/uploads")).map(|request| request.body_size).sum()
}

/// A registry with a runnable `base:v1`, which prints `marker`.
fn with_base(marker: &str) -> Option<FakeRegistry> {
    let registry = FakeRegistry::start();
    Image::runnable(marker, Form::Gzip)?.put(&registry, "base", "v1");
    Some(registry)
}

fn dockerfile(registry: &FakeRegistry) -> String {
    format!(
        "FROM {base} AS made\nRUN echo built > /built\nFROM {base}\nCOPY --from=made /built /built\n\
         COPY --from={base} /marker /again\nRUN cat /marker /again /built > /all\nCMD [\"cat\", \"/all\"]\n",
        base = registry.reference("base", "v1")
    )
}

#[test]
fn an_image_is_built_on_a_pulled_one_pushed_pulled_and_run() {
    for who in EVERYBODY {
        let Some(mut bench) = Bench::new(who) else { return };
        let Some(registry) = with_base("from afar") else { return };
        let target = registry.reference("made", "v1");
        let run = bench.build("context", &[("Dockerfile", &dockerfile(&registry))], &["--push", "-t", &target]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        check_image(&registry, "made", "v1");
        bench.verify_store();
        bench.empty_store("second");
        bench.ok(["pull", &target]);
        // What is there is not asked for again.
        registry.forget_requests();
        assert_eq!(bench.ok(["run", "--network=none", &target]), "from afar\nfrom afar\nbuilt\n");
        assert!(registry.requests_of("GET", "/blobs/").is_empty());
        bench.verify_store();
        bench.empty_store("third");
        // Without a pull before.
        assert_eq!(bench.ok(["run", "--network=none", &target]), "from afar\nfrom afar\nbuilt\n");
    }
}

#[test]
fn the_second_push_sends_no_blob() {
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        let Some(registry) = with_base("twice") else { return };
        let target = registry.reference("made", "v1");
        let files = [("Dockerfile", dockerfile(&registry))];
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let push = || {
            let run = bench.build("context", &files, &["--push", "-t", &target]);
            assert_eq!(run.code, Some(0), "{}", run.stderr);
        };
        push();
        let first = registry.tag("made", "v1");
        assert!(uploaded(&registry) > 0);
        registry.forget_requests();
        push();
        assert_eq!(uploaded(&registry), 0);
        assert!(registry.requests_of("POST", "").is_empty(), "{:#?}", registry.requests_of("POST", ""));
        assert_eq!(registry.tag("made", "v1"), first);
        registry.forget_requests();
        bench.ok(["push", &target]);
        assert_eq!(uploaded(&registry), 0);
    }
}

#[test]
fn blobs_that_another_repository_has_are_mounted() {
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        let Some(registry) = with_base("mounted") else { return };
        let base = registry.blobs("base");
        let target = registry.reference("made", "v1");
        let run = bench.build("context", &[("Dockerfile", &dockerfile(&registry))], &["--push", "-t", &target]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let mounts: Vec<String> = registry
            .requests_of("POST", "/v2/made/blobs/uploads")
            .iter()
            .filter(|request| request.parameter("from") == Some("base") && request.status == 201)
            .filter_map(|request| request.parameter("mount").map(str::to_owned))
            .collect();
        // The layers of the base lie in `base`, where they came from.
        assert!(mounts.len() >= 2 && mounts.iter().all(|digest| base.contains(digest)), "{mounts:?} of {base:?}");

        // Where mounting is refused, the bytes are sent.
        registry.refuse_mounts(true);
        let other = registry.reference("other", "v1");
        bench.ok(["images", "tag", &target, &other]);
        bench.ok(["push", &other]);
        assert_eq!(registry.blobs("other"), registry.blobs("made"));
        assert_eq!(registry.tag("other", "v1"), registry.tag("made", "v1"));
        check_image(&registry, "other", "v1");
    }
}

#[test]
fn uploads_follow_absolute_and_relative_locations() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    for absolute in [false, true] {
        let registry = FakeRegistry::start();
        registry.absolute_locations(absolute);
        let image = big(u64::from(absolute) + 1, 300_000);
        image.put(&registry, "source", "v1");
        bench.ok(["pull", &registry.reference("source", "v1")]);
        let target = registry.reference("deep/er/app", "v1");
        bench.ok(["images", "tag", &registry.reference("source", "v1"), &target]);
        registry.refuse_mounts(true);
        bench.ok(["push", &target]);
        assert_eq!(registry.blob("deep/er/app", &image.layer()).as_deref(), Some(&image.layers[0].bytes[..]));
        assert_eq!(registry.tag("deep/er/app", "v1"), registry.tag("source", "v1"), "the same bytes, the same digest");
    }
}

/// The engine is killed in the middle of a blob; what it had by then is not fetched again.
#[test]
fn a_killed_pull_goes_on_where_it_was() {
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        let registry = FakeRegistry::start();
        let image = big(2026, 4 << 20);
        image.put(&registry, "app", "v1");
        let half = image.layers[0].bytes.len() as u64 / 2;
        registry.queue("GET", &image.layer(), [Reply::ok("x/y", image.layers[0].bytes.clone()).stall_after(half)]);
        let mut command = bench.command(["pull", &registry.reference("app", "v1")]);
        let mut pull = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        registry.wait_until_stalled(1);
        // Sent is not yet received and written: the file says when it is.
        let ingest = bench.engine.store().join("ingest");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        let size = |dir: &std::path::Path| -> u64 {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
        };
        while size(&ingest) < half / 2 && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        pull.kill().unwrap();
        pull.wait().unwrap();
        registry.forget_requests();
        bench.ok(["pull", &registry.reference("app", "v1")]);
        let tries = registry.requests_of("GET", &image.layer());
        assert_eq!(tries.len(), 1, "{tries:#?}");
        let range = tries[0].header("range").expect("the second run asks for a range");
        let first: u64 = range.trim_start_matches("bytes=").split('-').next().unwrap().parse().unwrap();
        assert!(first > 0 && first <= half, "{range}");
        bench.verify_store();
        assert!(bench.has_blob(&image.layer()));
    }
}

#[test]
fn outputs_that_push_do() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let Some(registry) = with_base("outputs") else { return };
    let text = dockerfile(&registry);
    let files = [("Dockerfile", text.as_str())];
    let names: Vec<String> = (1..=4).map(|number| registry.reference("made", &format!("v{number}"))).collect();
    let build = |args: &[&str]| {
        let run = bench.build("context", &files, args);
        assert_eq!(run.code, Some(0), "{args:?}: {}", run.stderr);
    };
    build(&["-o", "type=registry", "-t", &names[0]]);
    build(&["-o", &format!("type=image,name={},push=true", names[1])]);
    build(&["-o", &format!("type=registry,name={}", names[2])]);
    build(&["--push", "-t", &names[3], "-t", &registry.reference("made", "v5")]);
    let tags = registry.tags("made");
    assert_eq!(tags.keys().collect::<Vec<_>>(), ["v1", "v2", "v3", "v4", "v5"]);
    assert_eq!(tags.values().collect::<std::collections::BTreeSet<_>>().len(), 1, "one image: {tags:?}");
}

/// What cannot end well is not begun.
#[test]
fn a_push_without_a_name_is_refused_before_anything_is_built() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let Some(registry) = with_base("nameless") else { return };
    let text = format!("FROM {}\nRUN echo step-of-the-build\n", registry.reference("base", "v1"));
    for args in [["--push", "--no-cache"], ["-o", "type=registry"], ["-o", "type=image,push=true"]] {
        let run = bench.build("context", &[("Dockerfile", &text)], &args);
        assert_eq!(run.code, Some(2), "{args:?}: {}", run.stderr);
        assert!(run.stderr.contains("name") && !run.stderr.contains("step-of-the-build"), "{args:?}: {}", run.stderr);
    }
}

#[test]
fn a_push_by_digest_leaves_no_tag() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let Some(registry) = with_base("by digest") else { return };
    let text = dockerfile(&registry);
    let metadata = bench.engine.work().join("metadata.json");
    let name = registry.reference("digests", "v1").replace(":v1", "");
    let output = format!("type=image,name={name},push-by-digest=true,push=true");
    let args = ["-o", &output, "--metadata-file", metadata.to_str().unwrap()];
    let run = bench.build("context", &[("Dockerfile", &text)], &args);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(registry.tags("digests").is_empty(), "{:?}", registry.tags("digests"));
    let metadata: Value = serde_json::from_slice(&fs::read(metadata).unwrap()).unwrap();
    let pushed = metadata["containerimage.digest"].as_str().unwrap();
    assert!(registry.manifest("digests", pushed).is_some());
    bench.ok(["pull", &format!("{name}@{pushed}")]);
}

#[test]
fn pull_asks_again_and_without_it_a_name_is_looked_up_once() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let Some(registry) = with_base("old") else { return };
    let text =
        format!("FROM {}\nRUN cat /marker > /seen\nCMD [\"cat\", \"/seen\"]\n", registry.reference("base", "v1"));
    let build = |args: &[&str]| {
        let mut all = vec!["-t", "seen"];
        all.extend(args);
        let run = bench.build("context", &[("Dockerfile", &text)], &all);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        bench.ok(["run", "--network=none", "seen"])
    };
    assert_eq!(build(&[]), "old\n");
    let Some(new) = Image::runnable("new", Form::Gzip) else { return };
    new.put(&registry, "base", "v1");
    assert_eq!(build(&["--pull"]), "new\n");
    // Nothing changed: nothing is fetched.
    registry.forget_requests();
    assert_eq!(build(&["--pull"]), "new\n");
    assert!(registry.requests_of("GET", "/blobs/").is_empty(), "{:#?}", registry.requests());
    // Nobody answers: what is there serves, without `--pull`.
    let name = registry.reference("base", "v1");
    drop(registry);
    bench.ok(["run", "--network=none", &name, "true"]);
    bench.fails(["pull", &name], &[3], &[&name[..name.find('/').unwrap()]]);
}

#[test]
fn copies_go_between_registry_layout_archive_and_store() {
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        let Some(registry) = with_base("copied") else { return };
        let source = format!("docker://{}", registry.reference("base", "v1"));
        let digest = registry.tag("base", "v1").unwrap();
        let work = bench.engine.work();
        let path = |name: &str| work.join(name).display().to_string();
        let layout = format!("oci:{}:v1", path("layout"));
        let archive = format!("oci-archive:{}:v1", path("archive.tar"));
        let docker = format!("docker-archive:{}:{}", path("docker.tar"), registry.reference("base", "v1"));
        for (from, to) in [(&source, &layout), (&layout, &archive), (&archive, &docker)] {
            let run = bench.run(["copy", from, to]);
            assert_eq!(run.code, Some(0), "{from} to {to}: {}", run.stderr);
        }
        let images = images_of_layout(&work.join("layout")).unwrap();
        assert_eq!(images.len(), 1);
        assert_eq!(images.first_key_value().unwrap().1.digest, digest);
        assert_eq!(image_of_archive(&work.join("archive.tar")).unwrap().digest, digest);
        // Into registry and store, from everywhere.
        for (number, from) in [&source, &layout, &archive, &docker].into_iter().enumerate() {
            let to = format!("docker://{}", registry.reference("copies", &format!("v{number}")));
            let run = bench.run(["copy", from, &to]);
            assert_eq!(run.code, Some(0), "{from} to {to}: {}", run.stderr);
            let name = format!("example.invalid/copy:{number}");
            bench.ok(["copy", from, &format!("store:{name}")]);
            assert_eq!(bench.ok(["run", "--network=none", &name]), "copied\n", "{from}");
            let to = format!("docker://{}", registry.reference("stored", &format!("v{number}")));
            bench.ok(["copy", &format!("store:{name}"), &to]);
        }
        let tags = registry.tags("copies");
        assert_eq!([&tags["v0"], &tags["v1"], &tags["v2"]], [&digest; 3], "copies keep the digest: {tags:?}");
        assert_eq!(registry.tags("stored")["v0"], digest);
        for tag in ["v0", "v3"] {
            check_image(&registry, "copies", tag);
            check_image(&registry, "stored", tag);
        }
        bench.verify_store();
        bench.fails(["copy", "docker://", &layout], &[2], &["docker://"]);
        bench.fails(["copy", "ftp://nonsense/x", &layout], &[2], &["nonsense"]);
        bench.fails(["copy", "oci:/no/such:v1", &layout], &[2, 3], &["/no/such"]);
    }
}

#[test]
fn images_are_listed_inspected_tagged_saved_loaded_and_removed() {
    for who in EVERYBODY {
        let Some(mut bench) = Bench::new(who) else { return };
        let Some(registry) = with_base("managed") else { return };
        let name = registry.reference("base", "v1");
        bench.ok(["pull", &name]);
        assert!(bench.ok(["images", "ls"]).contains("base"));
        let inspected = bench.ok(["images", "inspect", "--format=json", &name]);
        let json: Value = serde_json::from_str(&inspected).unwrap();
        assert!(inspected.contains("/marker"), "{json}");
        assert!(inspected.contains(&registry.tag("base", "v1").unwrap()), "{json}");
        bench.ok(["images", "tag", &name, "example.invalid/mine:1"]);
        let archive = bench.engine.work().join("saved.tar").display().to_string();
        bench.ok(["images", "save", "-o", &archive, "example.invalid/mine:1"]);
        bench.empty_store("second");
        bench.ok(["images", "load", "-i", &archive]);
        assert_eq!(bench.ok(["run", "--network=none", "example.invalid/mine:1"]), "managed\n");
        bench.ok(["images", "rm", "example.invalid/mine:1"]);
        bench.fails(["images", "inspect", "example.invalid/mine:1"], &[2, 3], &["example.invalid/mine:1"]);
        bench.fails(["push", "example.invalid/mine:1"], &[2, 3], &["example.invalid/mine:1"]);
    }
}

/// `lock` writes down what the names of a Dockerfile mean today; `--locked` builds with that, whatever they mean then.
#[test]
fn a_locked_build_uses_what_was_locked() {
    for who in EVERYBODY {
        let Some(mut bench) = Bench::new(who) else { return };
        let Some(registry) = with_base("old") else { return };
        let text =
            format!("FROM {}\nRUN cat /marker > /seen\nCMD [\"cat\", \"/seen\"]\n", registry.reference("base", "v1"));
        let context = bench.engine.context("context", &[("Dockerfile", &text)]).unwrap();
        let context = context.to_string_lossy().into_owned();
        let build = |bench: &Bench, arg: &str| {
            bench.ok(["build", "--network=none", "--progress=plain", arg, "-t", "seen", &context]);
            bench.ok(["run", "--network=none", "seen"])
        };
        bench.fails(["build", "--network=none", "--locked", "-t", "seen", &context], &[2], &["lock"]);
        bench.ok(["lock", &context]);
        let Some(new) = Image::runnable("new", Form::Gzip) else { return };
        new.put(&registry, "base", "v1");
        assert_eq!(build(&bench, "--locked"), "old\n");
        bench.empty_store("second");
        assert_eq!(build(&bench, "--locked"), "old\n");
        // A second `lock` keeps what is there, unless it is told to look again.
        bench.ok(["lock", &context]);
        bench.empty_store("third");
        assert_eq!(build(&bench, "--locked"), "old\n");
        bench.ok(["lock", "--update", &context]);
        assert_eq!(build(&bench, "--locked"), "new\n");
        // A name that is not locked is an error, and named.
        let more = format!("{text}COPY --from={} /marker /other\n", registry.reference("base", "v2"));
        bench.engine.context("context", &[("Dockerfile", &more)]).unwrap();
        let run = bench.run(["build", "--network=none", "--locked", "-t", "seen", &context]);
        assert_eq!(run.code, Some(2), "{}", run.stderr);
        assert!(run.stderr.contains("base:v2"), "{}", run.stderr);
    }
}

#[test]
fn of_several_platforms_the_right_one_is_fetched_and_no_other() {
    for (media_type, manifest_type) in [(INDEX, MANIFEST), (DOCKER_LIST, crate::images::DOCKER_MANIFEST)] {
        let Some(bench) = Bench::new(Who::Root) else { return };
        let registry = FakeRegistry::start();
        let Some(native) = Image::runnable("native", Form::Gzip) else { return };
        let architecture = native.config["architecture"].as_str().unwrap().to_owned();
        let mut children = Vec::new();
        let mut add = |image: &Image, platform: Value, extra: Value| {
            image.put_blobs(&registry, "app");
            let manifest = if manifest_type == MANIFEST { image.manifest() } else { image.docker_manifest() };
            let bytes = manifest.to_string();
            registry.put_manifest("app", "", manifest_type, bytes.clone());
            let mut child = descriptor(manifest_type, bytes.as_bytes());
            child["platform"] = platform;
            if !extra.is_null() {
                child["annotations"] = extra;
            }
            children.push(child);
            digest(bytes.as_bytes())
        };
        let mut other = Image::tiny("for another machine");
        other.config["architecture"] = json!("s390x");
        let mut windows = Image::tiny("for another system");
        windows.config["os"] = json!("windows");
        let other_digest = add(&other, json!({ "os": "linux", "architecture": "s390x" }), Value::Null);
        add(&windows, json!({ "os": "windows", "architecture": architecture, "os.version": "10.0.1" }), Value::Null);
        add(
            &Image::tiny("an attestation"),
            json!({ "os": "unknown", "architecture": "unknown" }),
            json!({ "vnd.docker.reference.type": "attestation-manifest" }),
        );
        let native_digest = add(&native, json!({ "os": "linux", "architecture": architecture }), Value::Null);
        let mut document = index(&children);
        document["mediaType"] = json!(media_type);
        registry.put_manifest("app", "v1", media_type, document.to_string());
        let reference = registry.reference("app", "v1");

        assert_eq!(bench.ok(["run", "--network=none", &reference]), "native\n");
        assert!(!registry.requests_of("GET", &native_digest).is_empty());
        assert!(registry.requests_of("GET", &other_digest).is_empty());
        assert!(registry.requests_of("GET", &other.layer()).is_empty());
        bench.ok(["pull", "--platform", "linux/s390x", &reference]);
        assert!(!registry.requests_of("GET", &other.layer()).is_empty());
        let run = bench.fails(["pull", "--platform", "linux/riscv64", &reference], &[2, 3], &["linux/riscv64"]);
        assert!(run.stderr.contains("linux/s390x"), "the message says what there is:\n{}", run.stderr);
        bench.verify_store();
    }
}

/// While an index is pushed its tag must never stand for one of its children: somebody may pull just then.
#[test]
fn a_tag_is_written_once_and_after_all_that_it_stands_for() {
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        let (from, to) = (FakeRegistry::start(), FakeRegistry::start());
        let mut children = Vec::new();
        for architecture in ["amd64", "arm64", "s390x"] {
            let mut image = Image::tiny(&format!("{architecture} {who:?}"));
            image.config["architecture"] = json!(architecture);
            image.put(&from, "app", "");
            let mut child = descriptor(MANIFEST, image.manifest().to_string().as_bytes());
            child["platform"] = json!({ "os": "linux", "architecture": architecture });
            children.push(child);
        }
        let digest = from.put_manifest("app", "v1", INDEX, index(&children).to_string());
        let copy =
            [format!("docker://{}", from.reference("app", "v1")), format!("docker://{}", to.reference("app", "v1"))];
        bench.ok(["copy", &copy[0], &copy[1]]);
        bench.ok(["pull", "--all-platforms", &from.reference("app", "v1")]);
        bench.ok(["push", &from.reference("app", "v1"), &to.reference("pushed", "v1")]);
        for repository in ["app", "pushed"] {
            assert_eq!(to.tag(repository, "v1").as_ref(), Some(&digest), "an index keeps its digest");
            check_image(&to, repository, "v1");
            let puts: Vec<String> = to
                .requests_of("PUT", &format!("/v2/{repository}/manifests/"))
                .iter()
                .map(|request| request.path.rsplit('/').next().unwrap().to_owned())
                .collect();
            assert_eq!(puts.iter().filter(|name| *name == "v1").count(), 1, "{puts:?}");
            assert_eq!(puts.last().map(String::as_str), Some("v1"), "{puts:?}");
        }
    }
}

#[test]
fn mirrors_are_asked_first_and_replaced_when_they_fail() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let (origin, mirror) = (FakeRegistry::start(), FakeRegistry::start());
    let image = Image::tiny("mirrored");
    image.put(&origin, "app", "v1");
    image.put(&mirror, "app", "v1");
    let settings = json!({ (origin.host()): { "mirrors": [format!("http://{}", mirror.host())] } });
    bench.configure(&settings, &json!({}));
    bench.log_in(origin.host());
    bench.ok(["pull", &origin.reference("app", "v1")]);
    assert!(!mirror.requests_of("GET", "/blobs/").is_empty());
    assert!(origin.requests_of("GET", "/blobs/").is_empty());
    assert!(mirror.leaks(&[crate::PASSWORD]).is_empty(), "{:#?}", mirror.leaks(&[crate::PASSWORD]));
    // A mirror that lies is found out; one that is broken is left out.
    for (number, reply) in [Reply::status(404), Reply::status(500), Reply::close()].into_iter().enumerate() {
        let tag = format!("broken-{number}");
        Image::tiny(&tag).put(&origin, "app", &tag);
        mirror.behave();
        mirror.on(move |_| Some(reply.clone()));
        bench.ok(["pull", &origin.reference("app", &tag)]);
    }
    // Pushes never go to a mirror.
    mirror.behave();
    mirror.forget_requests();
    bench.ok(["push", &origin.reference("app", "v1")]);
    assert!(mirror.requests().iter().all(|request| matches!(request.method.as_str(), "GET" | "HEAD")));
    bench.verify_store();
}

#[test]
fn pulls_at_the_same_time_share_the_store() {
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        let registry = FakeRegistry::start();
        let image = big(404, 4 << 20);
        image.put(&registry, "app", "v1");
        let reference = registry.reference("app", "v1");
        let pulls: Vec<_> = (0..4)
            .map(|_| bench.command(["pull", &reference]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
            .collect();
        for pull in pulls {
            let output = pull.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        bench.verify_store();
        assert!(bench.has_blob(&image.layer()));
        let ingest = fs::read_dir(bench.engine.store().join("ingest")).into_iter().flatten();
        assert_eq!(ingest.count(), 0, "nothing half done is left");
    }
}

#[test]
fn ctrl_c_ends_a_pull_and_a_push_at_once() {
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        let registry = FakeRegistry::start();
        let image = big(1, 1 << 20);
        image.put(&registry, "app", "v1");
        let reference = registry.reference("app", "v1");
        let interrupt = |args: &[&str], stalled: usize| {
            let mut child = bench.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            registry.wait_until_stalled(stalled);
            let mut kill = std::process::Command::new("kill");
            build_engine_testkit::peers::output(kill.args(["-s", "INT", &child.id().to_string()])).unwrap();
            let code = crate::within(std::time::Duration::from_secs(5), || child.wait().unwrap().code());
            assert_eq!(code, Some(130), "{args:?}");
        };
        registry.queue("GET", &image.layer(), [Reply::ok("x/y", image.layers[0].bytes.clone()).stall_after(1000)]);
        interrupt(&["pull", &reference], 1);
        bench.verify_store();
        bench.ok(["pull", &reference]);
        registry.on_head(|request| request.is("POST", "/uploads").then(Reply::stall));
        bench.ok(["images", "tag", &reference, &registry.reference("other", "v1")]);
        registry.refuse_mounts(true);
        interrupt(&["push", &registry.reference("other", "v1")], 2);
        registry.behave();
        bench.ok(["push", &registry.reference("other", "v1")]);
    }
}

/// D-23 in part: what was built is there, whatever the registry says.
#[test]
fn an_image_whose_push_failed_is_not_lost() {
    let Some(bench) = Bench::new(Who::User) else { return };
    let registry = FakeRegistry::start();
    let target = registry.reference("app", "v1");
    let closed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let is_closed = std::sync::Arc::clone(&closed);
    registry.on(move |request| {
        (is_closed.load(std::sync::atomic::Ordering::SeqCst) && request.path.contains("/uploads"))
            .then(|| Reply::error(403, "DENIED", "closed today"))
    });
    let run = bench.build("app", &[("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")], &["--push", "-t", &target]);
    assert_eq!(run.code, Some(3), "{}", run.stderr);
    assert!(run.stderr.contains("closed today") && registry.tag("app", "v1").is_none(), "{}", run.stderr);
    closed.store(false, std::sync::atomic::Ordering::SeqCst);
    bench.ok(["push", &target]);
    check_image(&registry, "app", "v1");
}
