//! Uploads, mounts and manifests.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use build_engine_oci::{Descriptor, Digest, Reference, media_type};
use build_engine_registry::{Client, Content, Error, Kind, Pushed};
use build_engine_testkit::registry::{FakeRegistry, Reply, TokenOptions};

use crate::scene::{PASSWORD, basic, client, client_as, content, first, layer, noise, repository, story};

const MIB: usize = 1 << 20;

async fn push(client: &Client, registry: &FakeRegistry, bytes: &[u8]) -> Result<Pushed, Error> {
    client.push_blob(&repository(registry, "app"), &layer(bytes), &[], content(bytes), &|_| {}).await
}

/// How many bytes of blobs were sent to a registry.
fn sent(registry: &FakeRegistry) -> u64 {
    registry.requests_of("PATCH", "").iter().map(|request| request.body_size).sum()
}

#[tokio::test]
async fn blobs_of_all_sizes_are_uploaded_once() {
    for absolute in [false, true] {
        let registry = FakeRegistry::start();
        registry.absolute_locations(absolute);
        for size in [0, 1, 1000, 3 * MIB + 1] {
            let bytes = noise(size);
            let digest = layer(&bytes).digest;
            let told = Mutex::new(Vec::new());
            let progress = |bytes| told.lock().unwrap().push(bytes);
            let target = repository(&registry, "app");
            let pushed = client().push_blob(&target, &layer(&bytes), &[], content(&bytes), &progress).await.unwrap();
            assert_eq!(pushed, Pushed::Uploaded);
            assert!(registry.blob("app", &digest.to_string()).unwrap() == bytes);
            let told = told.into_inner().unwrap();
            assert!(told.is_sorted() && told.last() == Some(&(size as u64)), "{told:?}");
            assert_eq!(push(&client(), &registry, &bytes).await.unwrap(), Pushed::Existed);
        }
        assert_eq!(sent(&registry), 1001 + 3 * MIB as u64 + 1);
        assert!(registry.requests_of("PATCH", "").iter().all(|request| request.header("transfer-encoding").is_none()));
    }
}

#[tokio::test]
async fn blobs_are_mounted_where_that_is_possible() {
    let error = |status| Some(Reply::error(status, "DENIED", "no"));
    for (what, refuses, reply, expected, uploads) in [
        ("mounted", false, None, Pushed::Mounted, 0),
        ("202 instead", true, None, Pushed::Uploaded, 2),
        ("401 instead", false, error(401), Pushed::Uploaded, 1),
        ("404 instead", false, error(404), Pushed::Uploaded, 1),
        ("405 instead", false, error(405), Pushed::Uploaded, 1),
    ] {
        let registry = FakeRegistry::start();
        let bytes = noise(1000);
        registry.put_blob("second", bytes.clone());
        registry.refuse_mounts(refuses);
        registry.on(move |request| request.parameter("mount").and_then(|_| reply.clone()));
        let others = [
            "elsewhere.example/first",
            &registry.reference("app", "x"),
            &registry.reference("first", "x"),
            &registry.reference("second", "x"),
        ];
        let others: Vec<Reference> = others.iter().map(|other| other.parse().unwrap()).collect();
        let target = repository(&registry, "app");
        let pushed = client().push_blob(&target, &layer(&bytes), &others, content(&bytes), &|_| {}).await.unwrap();
        assert_eq!(pushed, expected, "{what}");
        assert!(registry.blob("app", &layer(&bytes).digest.to_string()).unwrap() == bytes, "{what}");
        let begun = registry.requests_of("POST", "/uploads/").iter().filter(|request| request.status == 202).count();
        assert_eq!(begun, if expected == Pushed::Mounted { 1 } else { uploads }, "{what}");
    }
}

/// A registry that keeps what it got of a broken upload, as real ones do.
struct Resuming {
    registry: FakeRegistry,
    kept: Arc<AtomicU64>,
}

impl Resuming {
    /// The first uploads break after these many bytes each.
    fn start(breaks: Vec<u64>) -> Self {
        let (registry, kept, count) = (FakeRegistry::start(), Arc::new(AtomicU64::new(0)), AtomicUsize::new(0));
        let state = kept.clone();
        registry.on_head(move |request| {
            if !request.is("PATCH", "/uploads/") {
                return None;
            }
            let at = *breaks.get(count.fetch_add(1, Ordering::Relaxed))?;
            state.fetch_add(at, Ordering::Relaxed);
            Some(Reply::cut_upload(at))
        });
        let state = kept.clone();
        registry.on(move |request| {
            let kept = state.load(Ordering::Relaxed);
            if request.is("GET", "/uploads/") {
                let range = format!("0-{}", kept.saturating_sub(1));
                return Some(Reply::status(204).header("Range", &range).header("Location", &request.path));
            }
            if request.is("PATCH", "/uploads/") {
                let whole = kept + request.body_size;
                let first = request.header("content-range").map_or("0", |range| range.split('-').next().unwrap());
                assert_eq!(first.parse(), Ok(kept));
                return Some(Reply::status(202).header("Range", &format!("0-{}", whole - 1)));
            }
            if request.is("PUT", "/uploads/") {
                return Some(Reply::status(201));
            }
            None
        });
        Self { registry, kept }
    }
}

#[tokio::test]
async fn a_broken_upload_goes_on_where_it_broke() {
    let bytes = noise(4 * MIB);
    for percent in [0, 10, 50, 99] {
        let at = (bytes.len() * percent / 100) as u64;
        for breaks in [vec![at], vec![at, 5]] {
            let Resuming { registry, kept } = Resuming::start(breaks);
            // The blob is there only afterwards.
            registry.queue(
                "HEAD",
                "/blobs/",
                [Reply::status(404), Reply::status(200).header("Content-Length", &bytes.len().to_string())],
            );
            assert_eq!(push(&client(), &registry, &bytes).await.unwrap(), Pushed::Uploaded, "{percent}");
            let last = registry.requests_of("PATCH", "").last().unwrap().clone();
            let kept = kept.load(Ordering::Relaxed);
            assert_eq!(last.body_size, bytes.len() as u64 - kept);
            if kept > 0 {
                let range = format!("{kept}-{}", bytes.len() - 1);
                assert_eq!(last.header("content-range"), Some(&*range));
            }
            assert!(bytes.ends_with(&last.body[last.body.len().saturating_sub(10)..]) || last.body_size > 65536);
        }
    }
}

#[tokio::test]
async fn an_upload_that_never_gets_anywhere_ends() {
    let bytes = noise(4 * MIB);
    let registry = FakeRegistry::start();
    registry.on_head(|request| request.is("PATCH", "").then(|| Reply::cut_upload(1000)));
    let error = push(&client(), &registry, &bytes).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Source);
    let expected = format!("cannot push blob {} to `{}/app`", layer(&bytes).digest, registry.host());
    assert_eq!(error.to_string(), expected);
    assert_eq!(registry.requests_of("PATCH", "").len(), 4);
}

#[tokio::test]
async fn answers_that_make_no_sense_begin_the_upload_anew() {
    let bytes = noise(MIB);
    for (what, range, patches) in [
        ("too little", "0-99", 1),
        ("too much", "0-99999999", 2),
        ("not from the start", "5-100", 1),
        ("no range", "x", 1),
    ] {
        let registry = FakeRegistry::start();
        registry.bend(first(1, "PATCH", "", move |_, reply| reply.replace_header("Range", range)));
        assert_eq!(push(&client(), &registry, &bytes).await.unwrap(), Pushed::Uploaded, "{what}");
        assert!(registry.blob("app", &layer(&bytes).digest.to_string()).unwrap() == bytes, "{what}");
        assert_eq!(registry.requests_of("PATCH", "").len(), patches, "{what}");
    }
    // A session that is gone, and a status that cannot be.
    for status in [Reply::status(404), Reply::status(204).header("Range", "0-99999999")] {
        let registry = FakeRegistry::start();
        registry.queue("PATCH", "", [Reply::close()]);
        registry.queue("GET", "/uploads/", [status]);
        assert_eq!(push(&client(), &registry, &bytes).await.unwrap(), Pushed::Uploaded);
        assert_eq!(registry.requests_of("POST", "").len(), 2);
    }
    let registry = FakeRegistry::start();
    registry.on(|request| request.is("PATCH", "").then(|| Reply::error(404, "BLOB_UPLOAD_UNKNOWN", "gone")));
    let error = push(&client(), &registry, &bytes).await.unwrap_err();
    assert!(story(&error).contains("BLOB_UPLOAD_UNKNOWN: gone"), "{}", story(&error));
    assert_eq!(registry.requests_of("POST", "").len(), 3);
}

#[tokio::test]
async fn what_the_registry_loses_is_sent_once_more() {
    let bytes = noise(MIB);
    let registry = FakeRegistry::start();
    registry.lose_uploads(true);
    let error = push(&client(), &registry, &bytes).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Integrity, "{}", story(&error));
    assert!(story(&error).contains("says that it took sha256:"), "{}", story(&error));
    assert_eq!(sent(&registry), 2 * MIB as u64);

    let registry = FakeRegistry::start();
    registry.queue("HEAD", "/blobs/", [Reply::status(404), Reply::status(404)]);
    assert_eq!(push(&client(), &registry, &bytes).await.unwrap(), Pushed::Uploaded);
    let registry = FakeRegistry::start();
    registry.bend(first(9, "PUT", "", |_, reply| {
        reply.replace_header("Docker-Content-Digest", &Digest::sha256(b"other").to_string())
    }));
    assert_eq!(push(&client(), &registry, &bytes).await.unwrap_err().kind(), Kind::Integrity);
}

#[tokio::test]
async fn the_end_of_an_upload_may_be_lost_and_found() {
    let bytes = noise(MIB);
    for replies in [
        vec![Reply::status(500), Reply::status(503)],
        vec![Reply::close()],
        vec![Reply::stall()],
        vec![Reply::error(429, "TOOMANYREQUESTS", "later")],
    ] {
        let registry = FakeRegistry::start();
        registry.queue("PUT", "/uploads/", replies);
        assert_eq!(push(&client(), &registry, &bytes).await.unwrap(), Pushed::Uploaded);
        assert_eq!(sent(&registry), MIB as u64);
    }
    // It was taken, but its answer did not arrive.
    let registry = FakeRegistry::start();
    registry.bend(first(1, "PUT", "/uploads/", |_, _| Reply::close()));
    assert_eq!(push(&client(), &registry, &bytes).await.unwrap(), Pushed::Uploaded);
    assert_eq!(sent(&registry), MIB as u64);
}

#[tokio::test]
async fn a_token_that_ends_does_not_end_the_upload() {
    let bytes = noise(4 * MIB);
    for early in [false, true] {
        let registry = FakeRegistry::start();
        registry.require_token("user", PASSWORD, TokenOptions::default());
        let realm = format!("Bearer realm=\"{}/token\",service=\"{}\"", registry.origin(), registry.host());
        let count = AtomicUsize::new(0);
        registry.on_head(move |request| {
            let hit = request.is("PATCH", "") && count.fetch_add(1, Ordering::Relaxed) == 0;
            let reply = Reply::error(401, "UNAUTHORIZED", "token expired").header("WWW-Authenticate", &realm);
            hit.then(|| if early { reply.early() } else { reply })
        });
        let client = client_as(&registry, basic());
        assert_eq!(push(&client, &registry, &bytes).await.unwrap(), Pushed::Uploaded, "early: {early}");
        assert_eq!(registry.token_count(), 2);
        assert_eq!(registry.requests_of("POST", "/uploads/").iter().filter(|request| request.status == 202).count(), 1);
    }
    // One that is about to end is replaced before.
    let registry = FakeRegistry::start();
    let options = TokenOptions { expires_in_seconds: Some(1), ..TokenOptions::default() };
    registry.require_token("user", PASSWORD, options);
    let client = client_as(&registry, basic());
    push(&client, &registry, &noise(10)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(800)).await;
    registry.forget_requests();
    push(&client, &registry, &bytes).await.unwrap();
    assert!(registry.requests().iter().all(|request| request.status != 401));
}

#[tokio::test]
async fn an_upload_elsewhere_is_sent_without_credentials() {
    let (registry, elsewhere) = (FakeRegistry::start(), FakeRegistry::start());
    registry.require_basic("user", PASSWORD);
    let bytes = noise(MIB);
    let location = format!("{}/bucket/upload?signature={PASSWORD}", elsewhere.origin());
    registry.on_authorized(move |request| {
        request.is("POST", "/uploads/").then(|| Reply::status(202).header("Location", &location))
    });
    registry.queue(
        "HEAD",
        "",
        [Reply::status(404), Reply::status(200).header("Content-Length", &bytes.len().to_string())],
    );
    elsewhere.on(|request| {
        let status = match request.method.as_str() {
            "PATCH" => 202,
            _ => 201,
        };
        Some(Reply::status(status))
    });
    let client = client_as(&registry, basic());
    assert_eq!(push(&client, &registry, &bytes).await.unwrap(), Pushed::Uploaded);
    assert!(elsewhere.requests().iter().all(|request| request.header("authorization").is_none()));
    let put = &elsewhere.requests_of("PUT", "/bucket/upload")[0];
    assert_eq!(put.parameter("signature"), Some(PASSWORD));
    assert_eq!(put.parameter("digest"), Some(&*layer(&bytes).digest.to_string()));
    // Nor does the secret in the address appear in errors.
    elsewhere.behave();
    elsewhere.on(|_| Some(Reply::error(400, "NO", "no")));
    let error = push(&client, &registry, &noise(5)).await.unwrap_err();
    assert!(!crate::scene::whole_story(&error).contains(PASSWORD), "{error:?}");
}

#[tokio::test]
async fn registries_that_take_nothing_are_given_up() {
    let bytes = noise(16 * MIB);
    for reply in [Reply::stall_upload(0), Reply::stall_upload(MIB as u64), Reply::stall()] {
        let registry = FakeRegistry::start();
        registry.on_head(move |request| request.is("PATCH", "").then(|| reply.clone()));
        let start = Instant::now();
        let error = push(&client(), &registry, &bytes).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Source);
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }
}

struct Broken;

impl Content for Broken {
    fn open(&self, _offset: u64) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(io::repeat(0).take(MIB as u64)))
    }
}

struct Missing;

impl Content for Missing {
    fn open(&self, _offset: u64) -> io::Result<Box<dyn Read + Send>> {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// Comes slowly, for reasons of our own.
struct Slow;

impl Content for Slow {
    fn open(&self, _offset: u64) -> io::Result<Box<dyn Read + Send>> {
        std::thread::sleep(Duration::from_millis(700));
        Ok(Box::new(io::repeat(0)))
    }
}

#[tokio::test]
async fn our_own_content_is_not_the_fault_of_the_registry() {
    let zeros = vec![0; 2 * MIB];
    let registry = FakeRegistry::start();
    let target = repository(&registry, "app");
    for content in [Arc::new(Broken) as Arc<dyn Content>, Arc::new(Missing)] {
        let error = client().push_blob(&target, &layer(&zeros), &[], content, &|_| {}).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Io, "{}", story(&error));
    }
    let pushed = client().push_blob(&target, &layer(&zeros), &[], Arc::new(Slow), &|_| {}).await.unwrap();
    assert_eq!(pushed, Pushed::Uploaded);
}

#[tokio::test]
async fn content_that_is_not_what_it_should_be_is_not_accepted() {
    let registry = FakeRegistry::start();
    let bytes = noise(1000);
    let descriptor = Descriptor::new(media_type::OCI_LAYER, Digest::sha256(b"other"), 1000);
    let target = repository(&registry, "app");
    let error = client().push_blob(&target, &descriptor, &[], content(&bytes), &|_| {}).await.unwrap_err();
    assert!(story(&error).contains("DIGEST_INVALID"), "{}", story(&error));
    assert!(registry.blobs("app").is_empty());
}

#[tokio::test]
async fn manifests_are_put_once() {
    let registry = FakeRegistry::start();
    let text = br#"{"schemaVersion":2,"manifests":[]}"#;
    let index = Descriptor::new(media_type::OCI_INDEX, Digest::sha256(text), text.len() as u64);
    let tag: Reference = registry.reference("app", "v1").parse().unwrap();
    let pinned: Reference = registry.reference("app", &index.digest.to_string()).parse().unwrap();
    let bare = repository(&registry, "new");
    for (reference, expected) in [
        (&tag, Pushed::Uploaded),
        (&tag, Pushed::Existed),
        (&pinned, Pushed::Existed),
        (&bare, Pushed::Uploaded),
        (&bare, Pushed::Existed),
    ] {
        assert_eq!(client().push_document(reference, &index, text.to_vec()).await.unwrap(), expected, "{reference}");
    }
    assert_eq!(registry.manifest("app", "v1").unwrap(), (media_type::OCI_INDEX.to_owned(), text.to_vec()));
    assert!(registry.tags("new").is_empty());
    // The tag moves.
    let other = br#"{"schemaVersion":2, "manifests":[]}"#;
    let moved = Descriptor::new(media_type::OCI_INDEX, Digest::sha256(other), other.len() as u64);
    registry.queue("PUT", "", [Reply::status(500), Reply::close()]);
    assert_eq!(client().push_document(&tag, &moved, other.to_vec()).await.unwrap(), Pushed::Uploaded);
    assert_eq!(registry.tag("app", "v1").unwrap(), moved.digest.to_string());
}

#[tokio::test]
async fn manifests_that_are_not_taken_say_why() {
    let registry = FakeRegistry::start();
    let missing = Digest::sha256(b"missing");
    let text = format!(r#"{{"schemaVersion":2,"layers":[{{"digest":"{missing}"}}]}}"#).into_bytes();
    let manifest = Descriptor::new(media_type::OCI_MANIFEST, Digest::sha256(&text), text.len() as u64);
    let tag: Reference = registry.reference("app", "v1").parse().unwrap();
    let error = client().push_document(&tag, &manifest, text.clone()).await.unwrap_err();
    let said = format!("MANIFEST_BLOB_UNKNOWN: blob unknown to registry: {missing}");
    assert!(story(&error).contains(&said) && story(&error).contains(registry.host()), "{}", story(&error));

    registry.refuse_dangling(false);
    registry.bend(|_, reply| reply.replace_header("Docker-Content-Digest", &Digest::sha256(b"x").to_string()));
    let error = client().push_document(&tag, &manifest, text).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Integrity, "{}", story(&error));
}

#[tokio::test]
async fn users_who_may_not_push_are_told_so() {
    let registry = FakeRegistry::start();
    let options = TokenOptions { grants_pull_only: true, ..TokenOptions::default() };
    registry.require_token("user", PASSWORD, options);
    let error = push(&client_as(&registry, basic()), &registry, &noise(10)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Source);
    assert!(story(&error).contains(&format!("`{}` answered 40", registry.host())), "{}", story(&error));
    assert!(registry.requests_of("PATCH", "").is_empty());
}
