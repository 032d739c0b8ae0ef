//! Resolving, documents and blobs.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use build_engine_oci::{Descriptor, Digest, Reference, media_type};
use build_engine_registry::{HostSettings, Kind};
use build_engine_testkit::registry::{FakeRegistry, Reply};

use crate::scene::{anonymous, client, first, layer, noise, read, repository, story, with_host};

const MIB: usize = 1 << 20;
const INDEX: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

fn index() -> Descriptor {
    Descriptor::new(media_type::OCI_INDEX, Digest::sha256(INDEX.as_bytes()), INDEX.len() as u64)
}

fn with_index() -> (FakeRegistry, Reference) {
    let registry = FakeRegistry::start();
    registry.put_manifest("app", "v1", media_type::OCI_INDEX, INDEX);
    let reference = registry.reference("app", "v1").parse().unwrap();
    (registry, reference)
}

#[tokio::test]
async fn names_are_resolved_with_one_request() {
    let (registry, by_tag) = with_index();
    let by_digest = registry.reference("app", &index().digest.to_string()).parse().unwrap();
    for reference in [by_tag, by_digest] {
        registry.forget_requests();
        assert_eq!(client().resolve(&reference).await.unwrap(), index());
        let requests = registry.requests();
        assert_eq!(requests.len(), 1, "{requests:#?}");
        assert!(requests[0].header("accept").unwrap().contains("manifest.list.v2+json"));
    }
}

#[tokio::test]
async fn what_a_head_does_not_say_is_read() {
    let json = || Reply::status(200).header("Content-Type", "application/json").header("Content-Length", "10");
    let no_digest = || Reply::status(200).header("Content-Type", media_type::OCI_INDEX).header("Content-Length", "10");
    let digest = index().digest.to_string();
    for head in [Reply::status(405), Reply::status(404), json().header("Docker-Content-Digest", &digest), no_digest()] {
        let (registry, reference) = with_index();
        registry.queue("HEAD", "/manifests/", [head]);
        registry.bend(first(1, "GET", "/manifests/", |_, reply| reply.replace_header("Content-Type", "text/plain")));
        assert_eq!(client().resolve(&reference).await.unwrap(), index());
    }
}

#[tokio::test]
async fn names_that_cannot_be_resolved_say_why() {
    let hex = "A".repeat(64);
    for (header, value, kind, expected) in [
        ("Docker-Content-Digest", "sha256:../../etc/passwd", Kind::Integrity, "which is not a digest"),
        ("Docker-Content-Digest", &*format!("sha256:{hex}"), Kind::Integrity, "which is not a digest"),
        ("Docker-Content-Digest", "md5:d41d8cd98f00b204e9800998ecf8427e", Kind::Integrity, "which is not a digest"),
        (
            "Content-Type",
            "application/vnd.docker.distribution.manifest.v1+prettyjws; charset=utf-8",
            Kind::Source,
            "schema version 1",
        ),
    ] {
        let (registry, reference) = with_index();
        let (name, value) = (header.to_owned(), value.to_owned());
        registry.bend(move |_, reply| reply.replace_header(&name, &value));
        let error = client().resolve(&reference).await.unwrap_err();
        let text = story(&error);
        assert_eq!(error.kind(), kind, "{text}");
        assert!(text.contains(expected) && text.contains(registry.host()) && text.contains("app:v1"), "{text}");
        assert!(!error.is_not_found());
    }
}

#[tokio::test]
async fn what_does_not_exist_is_told_from_what_fails() {
    let (registry, _) = with_index();
    for (name, tag) in [("app", "v2"), ("other", "v1")] {
        let reference = registry.reference(name, tag).parse().unwrap();
        let error = client().resolve(&reference).await.unwrap_err();
        assert!(error.is_not_found(), "{}", story(&error));
        assert!(story(&error).contains("UNKNOWN: "), "{}", story(&error));
    }
    registry.on(|_| Some(Reply::error(500, "OOPS", "a\u{1b}[2Jb")));
    let error = client().document(&registry.reference("app", "v1").parse().unwrap(), &index()).await.unwrap_err();
    assert!(!error.is_not_found());
    assert!(story(&error).ends_with("answered 500: OOPS: a\\u{1b}[2Jb"), "{}", story(&error));
    // The first try and three more.
    assert_eq!(registry.requests_of("GET", &format!("/v2/app/manifests/{}", index().digest)).len(), 4);
}

#[tokio::test]
async fn a_digest_that_resolves_to_another_is_an_error() {
    let (registry, _) = with_index();
    let other = Digest::sha256(b"other");
    registry.put_manifest_as("app", &other.to_string(), media_type::OCI_INDEX, INDEX);
    let reference = registry.reference("app", &other.to_string()).parse().unwrap();
    registry.bend(|_, reply| reply.replace_header("Docker-Content-Digest", &index().digest.to_string()));
    assert_eq!(client().resolve(&reference).await.unwrap_err().kind(), Kind::Integrity);
    // And where only the content shows it.
    registry.queue("HEAD", "/manifests/", [Reply::status(405)]);
    assert_eq!(client().resolve(&reference).await.unwrap_err().kind(), Kind::Integrity);
}

#[tokio::test]
async fn documents_are_verified() {
    let (registry, reference) = with_index();
    let config = br#"{"os":"linux"}"#;
    registry.put_blob("app", *config);
    let config = Descriptor::new(media_type::OCI_CONFIG, Digest::sha256(config), config.len() as u64);
    assert_eq!(client().document(&reference, &index()).await.unwrap(), INDEX.as_bytes());
    assert_eq!(client().document(&reference, &config).await.unwrap(), br#"{"os":"linux"}"#);

    registry.bend(first(1, "GET", "", |_, reply| {
        reply.replace_header("Content-Type", "application/vnd.oci.image.index.v1+json; charset=utf-8")
    }));
    assert_eq!(client().document(&reference, &index()).await.unwrap(), INDEX.as_bytes());
    registry.behave();

    let other = INDEX.replace('2', "3");
    for (what, reply, kind, expected) in [
        ("content", Reply::ok(media_type::OCI_INDEX, other.clone()), Kind::Integrity, "gave sha256:"),
        ("type", Reply::ok(media_type::OCI_MANIFEST, INDEX), Kind::Integrity, "declares sha256:"),
        ("shorter", Reply::ok(media_type::OCI_INDEX, &INDEX[..50]), Kind::Integrity, "gave 50 bytes for"),
        ("shorter", Reply::ok(media_type::OCI_INDEX, &INDEX[..50]).chunked(), Kind::Integrity, "gave 50 bytes for"),
        ("longer", Reply::ok(media_type::OCI_INDEX, format!("{INDEX} ")), Kind::Integrity, "bytes for"),
        ("longer", Reply::ok(media_type::OCI_INDEX, INDEX).repeated(1 << 30).chunked(), Kind::Integrity, "gave more"),
        ("missing", Reply::error(404, "MANIFEST_UNKNOWN", "no"), Kind::Source, "404"),
    ] {
        registry.queue("GET", "/manifests/", [reply]);
        let error = client().document(&reference, &index()).await.unwrap_err();
        let text = story(&error);
        assert_eq!(error.kind(), kind, "{what}: {text}");
        assert!(text.contains(expected) && text.contains(&index().digest.to_string()), "{what}: {text}");
    }
}

#[tokio::test]
async fn documents_that_are_too_large_are_not_asked_for() {
    let (registry, reference) = with_index();
    for (media_type, limit) in [(media_type::OCI_MANIFEST, 4 * MIB), (media_type::OCI_CONFIG, 8 * MIB)] {
        let descriptor = Descriptor::new(media_type, index().digest, limit as u64 + 1);
        assert_eq!(client().document(&reference, &descriptor).await.unwrap_err().kind(), Kind::Limit);
    }
    assert!(registry.requests().is_empty());
    registry.queue("HEAD", "", [Reply::status(405)]);
    registry.queue("GET", "", [Reply::ok(media_type::OCI_INDEX, " ".repeat(65536)).repeated(1 << 30).chunked()]);
    assert_eq!(client().resolve(&reference).await.unwrap_err().kind(), Kind::Limit);
}

#[tokio::test]
async fn blobs_of_all_sizes_arrive_from_any_offset() {
    let registry = FakeRegistry::start();
    for size in [0, 1, MIB, 16 * MIB, 21 * MIB + 5] {
        let bytes = noise(size);
        registry.put_blob("app", bytes.clone());
        for ignores in [false, true] {
            registry.ignore_range(ignores);
            for offset in [0, 1, size / 2, size.saturating_sub(1), size] {
                let offset = offset.min(size);
                let got = read(&client(), &repository(&registry, "app"), &layer(&bytes), offset as u64).await.unwrap();
                assert!(got == bytes[offset..], "{size} from {offset}: {} bytes", got.len());
            }
        }
    }
}

#[tokio::test]
async fn large_blobs_come_in_ranges_and_small_ones_at_once() {
    let registry = FakeRegistry::start();
    for (size, expected) in [(MIB, 1), (16 * MIB, 4), (17 * MIB, 5)] {
        let bytes = noise(size);
        registry.put_blob("app", bytes.clone());
        registry.forget_requests();
        read(&client(), &repository(&registry, "app"), &layer(&bytes), 0).await.unwrap();
        let requests = registry.requests_of("GET", "/blobs/");
        assert_eq!(requests.len(), expected);
        assert_eq!(requests[0].header("range").is_some(), expected > 1);
    }
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_broke() {
    for size in [MIB, 18 * MIB] {
        for percent in [0, 10, 50, 99] {
            for reset in [false, true] {
                for ignores in [false, true] {
                    let registry = FakeRegistry::start();
                    let bytes = noise(size);
                    registry.put_blob("app", bytes.clone());
                    registry.ignore_range(ignores);
                    registry.bend(first(2, "GET", "/blobs/", move |request, reply| {
                        let length =
                            if request.header("range").is_some() && size > MIB && !ignores { 4 * MIB } else { size };
                        let at = (length * percent / 100) as u64;
                        if reset { reply.reset_after(at) } else { reply.cut_after(at) }
                    }));
                    let got = read(&client(), &repository(&registry, "app"), &layer(&bytes), 0).await.unwrap();
                    assert!(got == bytes, "{size} at {percent} %, reset {reset}, ignores {ignores}");
                    if !ignores && percent > 0 && !reset {
                        // Nothing is read twice.
                        let sent = || -> u64 {
                            registry.requests_of("GET", "/blobs/").iter().map(|request| request.sent).sum()
                        };
                        // The last bytes may be here before the server has noted that it sent them.
                        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
                        while sent() < size as u64 && std::time::Instant::now() < deadline {
                            tokio::task::yield_now().await;
                        }
                        assert_eq!(sent(), size as u64);
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn a_transfer_that_gets_nowhere_ends_with_host_and_digest() {
    let registry = FakeRegistry::start();
    let bytes = noise(MIB);
    registry.put_blob("app", bytes.clone());
    registry.bend(|_, reply| reply.cut_after(0));
    let error = read(&client(), &repository(&registry, "app"), &layer(&bytes), 0).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Source);
    let expected = format!("cannot read blob {} of `{}/app`", layer(&bytes).digest, registry.host());
    assert_eq!(error.to_string(), expected);
    assert_eq!(registry.requests().len(), 4);
    // With a little progress each time it is not endless either.
    registry.behave();
    registry.forget_requests();
    registry.bend(|_, reply| reply.cut_after(1000));
    read(&client(), &repository(&registry, "app"), &layer(&bytes), 0).await.unwrap_err();
    assert_eq!(registry.requests().len(), 21);
}

#[tokio::test]
async fn failures_that_pass_are_waited_for() {
    let failure = |status: u16| Reply::error(status, "BUSY", "later");
    for (replies, tries, succeeds) in [
        (vec![failure(500), failure(502), failure(503)], 4, true),
        (vec![failure(429).header("Retry-After", "1000000000")], 2, true),
        (vec![failure(503).header("Retry-After", "Fri, 31 Dec 1999 23:59:59 GMT")], 2, true),
        (vec![Reply::close(), Reply::stall()], 3, true),
        (vec![failure(408)], 2, true),
        (vec![failure(500), failure(500), failure(500), failure(500)], 4, false),
        (vec![failure(404)], 1, false),
        (vec![failure(400)], 1, false),
        (vec![failure(403)], 1, false),
    ] {
        let registry = FakeRegistry::start();
        let bytes = noise(1000);
        registry.put_blob("app", bytes.clone());
        let what = format!("{replies:?}");
        registry.queue("GET", "/blobs/", replies);
        let got = read(&client(), &repository(&registry, "app"), &layer(&bytes), 0).await;
        assert_eq!(got.is_ok(), succeeds, "{what}");
        assert_eq!(registry.requests().len(), tries, "{what}");
    }
}

#[tokio::test]
async fn a_server_may_ask_for_a_pause() {
    let (registry, reference) = with_index();
    registry.queue("HEAD", "", [Reply::error(429, "TOOMANYREQUESTS", "slow down").header("Retry-After", "1")]);
    let mut settings = crate::scene::settings();
    settings.limits.max_wait_seconds = 10.0;
    let client = anonymous(settings);
    let start = Instant::now();
    client.resolve(&reference).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn blobs_of_another_size_are_not_what_was_asked_for() {
    let bytes = noise(MIB);
    for (what, size, reply) in [
        ("shorter", MIB + 1, Reply::ok("x", bytes.clone())),
        ("shorter, in chunks", MIB + 1, Reply::ok("x", bytes.clone()).chunked()),
        ("longer", MIB - 1, Reply::ok("x", bytes.clone())),
        ("longer, in chunks", MIB - 1, Reply::ok("x", bytes.clone()).chunked()),
        ("endless", MIB, Reply::ok("x", bytes.clone()).repeated(1 << 30).chunked()),
        (
            "range of another",
            17 * MIB,
            Reply::ok("x", bytes.clone()).with_status(206).header("Content-Range", "bytes 0-1048575/1048576"),
        ),
        ("range ends early", 17 * MIB, Reply::error(416, "RANGE_INVALID", "no")),
    ] {
        let registry = FakeRegistry::start();
        let digest = Digest::sha256(&bytes);
        registry.put_blob("app", bytes.clone());
        let descriptor = Descriptor::new(media_type::OCI_LAYER, digest.clone(), size as u64);
        registry.queue("GET", "/blobs/", [reply]);
        let error = read(&client(), &repository(&registry, "app"), &descriptor, 0).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Integrity, "{what}: {}", story(&error));
        assert!(error.to_string().contains(&digest.to_string()), "{what}: {}", story(&error));
    }
}

#[tokio::test]
async fn other_ranges_than_those_asked_for_are_refused() {
    let bytes = noise(17 * MIB);
    for range in ["bytes 1-4194303/17825792", "bytes 0-99999999/17825792", "bytes 5-4/17825792", "x", ""] {
        let registry = FakeRegistry::start();
        registry.put_blob("app", bytes.clone());
        registry.bend(move |_, reply| reply.replace_header("Content-Range", range));
        let error = read(&client(), &repository(&registry, "app"), &layer(&bytes), 0).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Source, "{range}: {}", story(&error));
    }
}

#[tokio::test]
async fn smaller_ranges_than_those_asked_for_are_pieced_together() {
    let bytes = noise(17 * MIB);
    let registry = FakeRegistry::start();
    registry.put_blob("app", bytes.clone());
    let all = bytes.clone();
    registry.on(move |request| {
        let first: usize = request.header("range")?.strip_prefix("bytes=")?.split('-').next()?.parse().ok()?;
        let last = (first + 999_999).min(all.len() - 1);
        let range = format!("bytes {first}-{last}/*");
        // What is more than the range asks for at its end is not read.
        Some(Reply::ok("x", &all[first..=last]).with_status(206).header("Content-Range", &range))
    });
    let got = read(&client(), &repository(&registry, "app"), &layer(&bytes), 0).await.unwrap();
    assert!(got == bytes);
}

#[tokio::test]
async fn servers_that_are_too_slow_are_given_up() {
    let bytes = noise(100_000);
    for (what, reply) in [
        ("never answers", Reply::stall()),
        ("headers without end", Reply::endless_head(Duration::from_millis(10))),
        ("one byte at a time", Reply::ok("x", bytes.clone()).dribble(1, Duration::from_millis(10))),
        ("stops in the middle", Reply::ok("x", bytes.clone()).stall_after(50_000)),
    ] {
        let registry = FakeRegistry::start();
        registry.on(move |_| Some(reply.clone()));
        let start = Instant::now();
        let error = read(&client(), &repository(&registry, "app"), &layer(&bytes), 0).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Source, "{what}");
        assert!(story(&error).contains(registry.host()), "{what}: {}", story(&error));
        // Four tries of at most connecting and waiting for the head each.
        assert!(start.elapsed() < Duration::from_secs(15), "{what}: {:?}", start.elapsed());
    }
}

#[tokio::test]
async fn a_slow_reader_is_not_a_slow_server() {
    let registry = FakeRegistry::start();
    let bytes = noise(4 * MIB);
    registry.put_blob("app", bytes.clone());
    let mut blob = client().blob(&repository(&registry, "app"), &layer(&bytes), 0).await.unwrap();
    let mut size = blob.chunk().await.unwrap().unwrap().len();
    tokio::time::sleep(Duration::from_millis(500)).await;
    while let Some(chunk) = blob.chunk().await.unwrap() {
        size += chunk.len();
    }
    assert_eq!((size, registry.requests().len()), (bytes.len(), 1));
}

#[tokio::test]
async fn mirrors_are_asked_first_and_forgiven() {
    let bytes = noise(MIB);
    let (origin, reference) = with_index();
    origin.put_blob("app", bytes.clone());
    let good = FakeRegistry::start();
    good.put_manifest("proxy/app", "v1", media_type::OCI_INDEX, INDEX);
    good.put_blob("proxy/app", bytes.clone());
    let (missing, broken, wrong) = (FakeRegistry::start(), FakeRegistry::start(), FakeRegistry::start());
    broken.on(|_| Some(Reply::close()));
    wrong.on(|request| {
        let body = if request.is("GET", "/manifests/") { "{}" } else { "x" };
        Some(Reply::ok(media_type::OCI_INDEX, body))
    });
    for (mirrors, from_origin) in [
        (vec![format!("{}/proxy", good.host())], false),
        (vec![format!("http://{}/proxy/", good.host())], false),
        (vec![missing.host().to_owned(), broken.host().into(), format!("{}/proxy", good.host())], false),
        (vec!["127.0.0.1:1".to_owned()], true),
        (vec![missing.host().to_owned(), broken.host().into()], true),
    ] {
        origin.forget_requests();
        good.forget_requests();
        let what = format!("{mirrors:?}");
        let settings = with_host(origin.host(), HostSettings { mirrors, ..HostSettings::default() });
        let client = anonymous(settings);
        assert_eq!(client.resolve(&reference).await.unwrap(), index(), "{what}");
        assert_eq!(client.document(&reference, &index()).await.unwrap(), INDEX.as_bytes(), "{what}");
        assert!(read(&client, &reference, &layer(&bytes), 0).await.unwrap() == bytes, "{what}");
        assert_eq!(origin.requests().len(), if from_origin { 3 } else { 0 }, "{what}");
        let named = good.requests().iter().all(|request| request.parameter("ns") == Some(origin.host()));
        assert!(named, "{what}");
        let error = client.resolve(&origin.reference("app", "nowhere").parse().unwrap()).await.unwrap_err();
        assert!(error.is_not_found(), "{what}");
    }
    // A mirror that lies is as good as none.
    let settings =
        with_host(origin.host(), HostSettings { mirrors: vec![wrong.host().into()], ..HostSettings::default() });
    let client = anonymous(settings);
    assert_eq!(client.document(&reference, &index()).await.unwrap(), INDEX.as_bytes());
    assert!(read(&client, &reference, &layer(&bytes), 0).await.unwrap() == bytes);
}

#[tokio::test]
async fn a_mirror_that_dies_in_the_middle_is_replaced() {
    for size in [MIB, 17 * MIB] {
        let bytes = noise(size);
        let (origin, mirror) = (FakeRegistry::start(), FakeRegistry::start());
        origin.put_blob("app", bytes.clone());
        mirror.put_blob("app", bytes.clone());
        let count = AtomicUsize::new(0);
        mirror.bend(move |_, reply| match count.fetch_add(1, Ordering::Relaxed) {
            0 => reply.cut_after(MIB as u64 / 2),
            _ => Reply::error(500, "DEAD", "dead"),
        });
        let settings =
            with_host(origin.host(), HostSettings { mirrors: vec![mirror.host().into()], ..HostSettings::default() });
        let client = anonymous(settings);
        assert!(read(&client, &repository(&origin, "app"), &layer(&bytes), 0).await.unwrap() == bytes);
        let mut asked = origin.requests().into_iter().filter_map(|request| request.header("range").map(str::to_owned));
        assert!(asked.any(|range| range.starts_with("bytes=524288-")));
    }
}
