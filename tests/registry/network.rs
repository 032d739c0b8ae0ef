//! R07 to R10: networks that fail, stall and change their mind, in both directions.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use build_engine_testkit::engine::Who;
use build_engine_testkit::registry::{FakeRegistry, Reply, TokenOptions};
use serde_json::json;

use crate::images::{Form, Image, big};
use crate::{Bench, EVERYBODY, PASSWORD, USER, within};

/// Pulls `image` into the store, and gives it the name `repository:v1` of `registry`.
#[track_caller]
fn have(bench: &Bench, image: &Image, registry: &FakeRegistry, repository: &str) -> String {
    let source = FakeRegistry::start();
    image.put(&source, "source", "v1");
    let (from, to) = (source.reference("source", "v1"), registry.reference(repository, "v1"));
    bench.ok(["pull", &from]);
    bench.ok(["images", "tag", &from, &to]);
    to
}

/// Checks that `repository:v1` is `image`, all of it.
#[track_caller]
fn arrived(registry: &FakeRegistry, repository: &str, image: &Image) {
    assert!(registry.tag(repository, "v1").is_some(), "the tag is missing");
    for layer in &image.layers {
        let digest = crate::images::digest(&layer.bytes);
        assert_eq!(registry.blob(repository, &digest).as_deref(), Some(&layer.bytes[..]), "blob {digest}");
    }
    assert!(registry.blob(repository, &crate::images::digest(&image.config_bytes())).is_some());
}

#[test]
fn r07_three_errors_and_then_an_answer_is_an_answer() {
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        for status in [500, 502, 503, 504, 408, 429] {
            for part in ["/manifests/", "/blobs/"] {
                let registry = FakeRegistry::start();
                let image = Image::tiny(&format!("three {status} {part} {who:?}"));
                image.put(&registry, "app", "v1");
                registry.queue("GET", part, vec![Reply::status(status); 3]);
                registry.queue("HEAD", part, vec![Reply::status(status); 3]);
                bench.ok(["pull", &registry.reference("app", "v1")]);
                assert!(bench.has_blob(&image.layer()));
            }
        }
        bench.verify_store();
    }
}

#[test]
fn r07_an_error_without_end_is_reported_after_the_last_try() {
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        for status in [500, 503] {
            let registry = FakeRegistry::start();
            let image = Image::tiny(&format!("always {status} {who:?}"));
            image.put(&registry, "app", "v1");
            let layer = image.layer();
            let path = layer.clone();
            registry
                .on(move |request| request.is("GET", &path).then(|| Reply::error(status, "UNKNOWN", "out of coffee")));
            let said = [registry.host(), layer.as_str(), &status.to_string()].map(str::to_owned);
            let parts = said.each_ref().map(String::as_str);
            bench.fails(["pull", &registry.reference("app", "v1")], &[3], &parts);
            // The settings of the tests say three further tries.
            assert_eq!(registry.requests_of("GET", &layer).len(), 4);
            assert!(!bench.has_blob(&layer));
            bench.verify_store();
            registry.behave();
            bench.ok(["pull", &registry.reference("app", "v1")]);
        }
    }
}

#[test]
fn r07_errors_that_are_answers_are_not_tried_again() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    for status in [400, 403, 404, 405, 410] {
        let registry = FakeRegistry::start();
        let image = Image::tiny(&format!("final {status}"));
        image.put(&registry, "app", "v1");
        let layer = image.layer();
        let path = layer.clone();
        registry.on(move |request| request.is("GET", &path).then(|| Reply::error(status, "CODE", "the reason")));
        let status = status.to_string();
        bench.fails(["pull", &registry.reference("app", "v1")], &[3], &[registry.host(), &layer, &status]);
        assert_eq!(registry.requests_of("GET", &layer).len(), 1, "{status}");
        bench.verify_store();
    }
    let registry = FakeRegistry::start();
    bench.fails(["pull", &registry.reference("no/such", "v1")], &[3], &["no/such", "v1"]);
    assert!(registry.requests_of("GET", "/manifests/").len() <= 1);
}

#[test]
fn r07_retry_after_is_respected_and_bounded() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let registry = FakeRegistry::start();
    Image::tiny("one second").put(&registry, "app", "v1");
    registry.queue("GET", "/blobs/", [Reply::status(429).header("Retry-After", "1")]);
    let start = Instant::now();
    bench.ok(["pull", &registry.reference("app", "v1")]);
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());

    bench.configure(&json!({}), &json!({ "max-wait-seconds": 1 }));
    for value in ["1000000000", "99999999999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT", "-1", "soon", ""] {
        let registry = FakeRegistry::start();
        Image::tiny(value).put(&registry, "app", "v1");
        registry.queue("GET", "/blobs/", [Reply::status(429).header("Retry-After", value)]);
        let reference = registry.reference("app", "v1");
        // Whoever is told to come back in thirty years may also say so; nobody waits for it.
        let run = within(Duration::from_secs(20), || bench.run(["pull", &reference]));
        assert!(matches!(run.code, Some(0 | 3)), "{value}: {:?}\n{}", run.code, run.stderr);
        bench.verify_store();
    }
}

/// A place in a blob where a connection ends.
const PLACES: [u64; 4] = [0, 10, 50, 99];

#[test]
fn r07_a_pull_whose_connection_ends_in_a_blob_goes_on_where_it_was() {
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        for ignores_range in [false, true] {
            for is_reset in [false, true] {
                for percent in PLACES {
                    let registry = FakeRegistry::start();
                    registry.ignore_range(ignores_range);
                    let seed = percent + 1000 * u64::from(is_reset) + 2000 * u64::from(ignores_range);
                    let image = big(seed, 1 << 20);
                    image.put(&registry, "app", "v1");
                    let bytes = image.layers[0].bytes.clone();
                    let cut = bytes.len() as u64 * percent / 100;
                    let reply = Reply::ok("application/octet-stream", bytes);
                    let reply = if is_reset { reply.reset_after(cut) } else { reply.cut_after(cut) };
                    registry.queue("GET", &image.layer(), [reply]);
                    bench.ok(["pull", &registry.reference("app", "v1")]);
                    bench.verify_store();
                    assert!(bench.has_blob(&image.layer()));
                    let tries = registry.requests_of("GET", &image.layer());
                    assert_eq!(tries.len(), 2, "{tries:#?}");
                    // A reset may take with it what was on its way; an end may not.
                    if percent >= 50 && !is_reset {
                        let range = tries[1].header("range").unwrap_or_default();
                        assert!(range.starts_with(&format!("bytes={cut}-")), "{percent} %: `{range}`");
                    }
                }
            }
        }
    }
}

#[test]
fn r07_what_was_resumed_is_verified_as_a_whole() {
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        let registry = FakeRegistry::start();
        let image = big(4711, 1 << 20);
        image.put(&registry, "app", "v1");
        let layer = image.layer();
        let path = layer.clone();
        let mut wrong = image.layers[0].bytes.clone();
        let count = Arc::new(AtomicU64::new(0));
        wrong[10] ^= 1;
        registry.on(move |request| {
            if !request.is("GET", &path) {
                return None;
            }
            // Half of a wrong blob, then the right rest of the right one.
            let is_first = count.fetch_add(1, Ordering::SeqCst) == 0;
            is_first.then(|| Reply::ok("application/octet-stream", wrong.clone()).cut_after(1 << 19))
        });
        // Starting from zero once more is as good as saying that it is wrong; keeping the half is not.
        let run = bench.run(["pull", &registry.reference("app", "v1")]);
        assert!(matches!(run.code, Some(0 | 4)), "{:?}: {}", run.code, run.stderr);
        bench.verify_store();
        bench.ok(["pull", &registry.reference("app", "v1")]);
        bench.verify_store();
    }
}

/// What is answered to a request for the rest of these bytes, from here on.
type Rest = fn(Vec<u8>, usize) -> Reply;

#[test]
fn r07_ranges_that_are_answered_wrongly_do_no_harm() {
    let answers: [(&str, Rest); 5] = [
        ("416", |_, _| Reply::error(416, "RANGE_INVALID", "invalid range")),
        ("206 of another range", |bytes, half| {
            let range = format!("bytes 0-{}/{}", half - 1, bytes.len());
            Reply::ok("x/y", &bytes[..half]).with_status(206).header("Content-Range", &range)
        }),
        ("206 without Content-Range", |bytes, half| Reply::ok("x/y", &bytes[half..]).with_status(206)),
        ("206 of another length", |bytes, half| {
            let range = format!("bytes {half}-{}/{}", bytes.len() * 2 - 1, bytes.len() * 2);
            Reply::ok("x/y", &bytes[half..]).with_status(206).header("Content-Range", &range)
        }),
        ("200 with the rest alone", |bytes, half| Reply::ok("x/y", &bytes[half..])),
    ];
    let Some(bench) = Bench::new(Who::Root) else { return };
    for (number, (name, answer)) in answers.into_iter().enumerate() {
        let registry = FakeRegistry::start();
        let image = big(number as u64 + 50, 1 << 18);
        image.put(&registry, "app", "v1");
        let bytes = image.layers[0].bytes.clone();
        let half = bytes.len() / 2;
        let cut = Reply::ok("x/y", bytes.clone()).cut_after(half as u64);
        registry.queue("GET", &image.layer(), [cut, answer(bytes, half)]);
        let run = bench.run(["pull", &registry.reference("app", "v1")]);
        assert!(matches!(run.code, Some(0 | 3 | 4)), "{name}: {:?}\n{}", run.code, run.stderr);
        bench.verify_store();
        bench.ok(["pull", &registry.reference("app", "v1")]);
        assert!(bench.has_blob(&image.layer()), "{name}");
    }
    bench.verify_store();
}

#[test]
fn r07_a_push_whose_connection_ends_in_a_blob_is_done_all_the_same() {
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        for percent in PLACES {
            let registry = FakeRegistry::start();
            let image = big(percent + 77, 1 << 20);
            let reference = have(&bench, &image, &registry, "app");
            let size = image.layers[0].bytes.len() as u64;
            let count = AtomicU64::new(0);
            registry.on_head(move |request| {
                let length: u64 = request.header("content-length").map_or(u64::MAX, |text| text.parse().unwrap());
                let is_body = matches!(request.method.as_str(), "PATCH" | "PUT") && request.path.contains("/uploads/");
                let is_big = is_body && length > 100_000;
                (is_big && count.fetch_add(1, Ordering::SeqCst) == 0).then(|| Reply::cut_upload(size * percent / 100))
            });
            bench.ok(["push", &reference]);
            arrived(&registry, "app", &image);
        }
    }
}

#[test]
fn r07_a_push_meets_errors_at_every_step_and_arrives() {
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        for (method, part) in [
            ("HEAD", "/blobs/"),
            ("POST", "/uploads"),
            ("PATCH", "/uploads"),
            ("PUT", "/uploads"),
            ("PUT", "/manifests/"),
        ] {
            for reply in [Reply::status(503), Reply::status(429).header("Retry-After", "0"), Reply::close()] {
                let registry = FakeRegistry::start();
                let image = Image::tiny(&format!("push {method} {part} {reply:?} {who:?}"));
                let reference = have(&bench, &image, &registry, "app");
                registry.queue(method, part, vec![reply; 2]);
                bench.ok(["push", &reference]);
                arrived(&registry, "app", &image);
            }
        }
    }
}

#[test]
fn r07_a_token_that_expires_in_the_middle_is_replaced() {
    for who in EVERYBODY {
        for victim in ["PATCH", "PUT", "POST"] {
            let Some(bench) = Bench::new(who) else { return };
            let registry = Arc::new(FakeRegistry::start());
            registry.require_token(USER, PASSWORD, TokenOptions::default());
            bench.log_in(registry.host());
            let image = big(99, 1 << 18);
            let reference = have(&bench, &image, &registry, "app");
            let count = AtomicU64::new(0);
            let weak = Arc::downgrade(&registry);
            registry.on_head(move |request| {
                let registry = weak.upgrade()?;
                // Not before each blob was asked for with a token: no request then meets two refusals.
                let heads = registry.requests_of("HEAD", "/blobs/");
                if request.is(victim, "/uploads")
                    && heads.iter().filter(|head| head.status == 404).count() == 2
                    && count.fetch_add(1, Ordering::SeqCst) == 0
                {
                    registry.revoke_tokens();
                }
                None
            });
            let run = bench.run(["push", &reference]);
            let told: Vec<String> = registry
                .requests()
                .iter()
                .map(|request| {
                    let shown = request.header("authorization").unwrap_or("nothing");
                    format!("{} {} {} with {shown:.20}", request.status, request.method, request.path)
                })
                .collect();
            assert_eq!(run.code, Some(0), "{victim}: {}\n{}", run.stderr, told.join("\n"));
            arrived(&registry, "app", &image);
        }
    }
}

#[test]
fn r07_a_pull_asks_for_a_new_token_when_the_old_one_is_refused() {
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        let registry = Arc::new(FakeRegistry::start());
        registry.require_token(
            USER,
            PASSWORD,
            TokenOptions { expires_in_seconds: Some(300), ..TokenOptions::default() },
        );
        bench.log_in(registry.host());
        let image = Image::tiny(&format!("revoked {who:?}"));
        image.put(&registry, "app", "v1");
        let (weak, count) = (Arc::downgrade(&registry), AtomicU64::new(0));
        registry.on_head(move |request| {
            if request.is("GET", "/blobs/")
                && count.fetch_add(1, Ordering::SeqCst) == 0
                && let Some(registry) = weak.upgrade()
            {
                registry.revoke_tokens();
            }
            None
        });
        bench.ok(["pull", &registry.reference("app", "v1")]);
        assert!(registry.token_count() >= 2);
    }
}

/// A token that is refused when it is first shown, as from a server whose replicas have not heard of it, or when it was
/// revoked between two requests. The challenge to who shows nothing is not the one try that a new token gets.
#[test]
fn r07_a_token_that_is_refused_at_once_is_replaced_once() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    for (refusals, code) in [(1, 0), (u64::MAX, 3)] {
        let registry = Arc::new(FakeRegistry::start());
        registry.require_token(USER, PASSWORD, TokenOptions::default());
        bench.log_in(registry.host());
        let image = Image::tiny(&format!("refused at once {refusals}"));
        image.put(&registry, "app", "v1");
        let (weak, count) = (Arc::downgrade(&registry), AtomicU64::new(0));
        registry.on_head(move |request| {
            if request.path.contains("/manifests/")
                && request.header("authorization").is_some()
                && count.fetch_add(1, Ordering::SeqCst) < refusals
                && let Some(registry) = weak.upgrade()
            {
                registry.revoke_tokens();
            }
            None
        });
        bench.fails(["pull", &registry.reference("app", "v1")], &[code], &[]);
        // And not for ever.
        assert!(registry.token_count() <= 6, "{} tokens", registry.token_count());
    }
}

#[test]
fn r07_one_token_serves_a_whole_pull() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let registry = FakeRegistry::start();
    registry.require_token(USER, PASSWORD, TokenOptions { expires_in_seconds: Some(300), ..TokenOptions::default() });
    bench.log_in(registry.host());
    Image::tiny("one token").put(&registry, "app", "v1");
    bench.ok(["pull", &registry.reference("app", "v1")]);
    assert_eq!(registry.token_count(), 1);
}

/// Settings under which whoever is slow is found out within seconds.
fn impatient(retries: u32) -> serde_json::Value {
    json!({
        "connect-seconds": 1, "response-seconds": 1, "stall-seconds": 1, "min-bytes": 100_000, "retries": retries,
        "backoff-seconds": 0.02, "max-wait-seconds": 1,
    })
}

/// How these bytes are sent, with a pause now and then.
type Pace = fn(Vec<u8>, Duration) -> Reply;

#[test]
fn r08_whoever_is_too_slow_is_given_up() {
    let every = Duration::from_millis(100);
    let cases: [(&str, Pace); 6] = [
        ("one byte at a time", |bytes, every| Reply::ok("x/y", bytes).dribble(1, every)),
        ("a kilobyte at a time", |bytes, every| Reply::ok("x/y", bytes).dribble(1000, every)),
        ("silence in the body", |bytes, _| Reply::ok("x/y", bytes).stall_after(100_000)),
        ("silence after the head", |bytes, _| Reply::ok("x/y", bytes).stall_after(0)),
        ("silence", |_, _| Reply::stall()),
        ("headers without end", |_, every| Reply::endless_head(every)),
    ];
    for who in EVERYBODY {
        for (name, answer) in cases {
            let Some(bench) = Bench::new(who) else { return };
            bench.configure(&json!({}), &impatient(1));
            let registry = FakeRegistry::start();
            let image = big(3, 1 << 20);
            image.put(&registry, "app", "v1");
            let (layer, bytes) = (image.layer(), image.layers[0].bytes.clone());
            let path = layer.clone();
            registry.on(move |request| request.is("GET", &path).then(|| answer(bytes.clone(), every)));
            let reference = registry.reference("app", "v1");
            let parts = [registry.host(), layer.as_str()];
            within(Duration::from_secs(15), || bench.fails(["pull", &reference], &[3], &parts));
            assert!(!bench.has_blob(&layer), "{name}");
            bench.verify_store();
            registry.behave();
            bench.configure(&json!({}), &json!({}));
            bench.ok(["pull", &reference]);
            bench.verify_store();
        }
    }
}

#[test]
fn r08_slow_is_not_too_slow() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    bench.configure(&json!({}), &json!({ "stall-seconds": 2, "min-bytes": 1000 }));
    let registry = FakeRegistry::start();
    let image = big(5, 40_000);
    image.put(&registry, "app", "v1");
    let reply = Reply::ok("x/y", image.layers[0].bytes.clone()).dribble(2000, Duration::from_millis(100));
    registry.queue("GET", &image.layer(), [reply]);
    bench.ok(["pull", &registry.reference("app", "v1")]);
    assert_eq!(registry.requests_of("GET", &image.layer()).len(), 1);
}

#[test]
fn r08_a_listener_that_never_speaks_is_given_up() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    bench.configure(&json!({}), &impatient(1));
    let mute = FakeRegistry::start_mute();
    let reference = mute.reference("app", "v1");
    within(Duration::from_secs(20), || bench.fails(["pull", &reference], &[3], &[mute.host()]));
}

#[test]
fn r08_an_upload_that_is_not_read_is_given_up() {
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        bench.configure(&json!({}), &impatient(1));
        let registry = FakeRegistry::start();
        // More than the buffers between two processes hold.
        let image = big(8, 24 << 20);
        let reference = have(&bench, &image, &registry, "app");
        registry.on_head(|request| {
            let length: u64 = request.header("content-length").map_or(u64::MAX, |text| text.parse().unwrap());
            let is_big = matches!(request.method.as_str(), "PATCH" | "PUT") && length > 100_000;
            (is_big && request.path.contains("/uploads/")).then(|| Reply::stall_upload(1000))
        });
        within(Duration::from_secs(30), || bench.fails(["push", &reference], &[3], &[registry.host()]));
        registry.behave();
        bench.configure(&json!({}), &json!({}));
        bench.ok(["push", &reference]);
        arrived(&registry, "app", &image);
    }
}

#[test]
fn r09_an_upload_whose_progress_is_reported_wrongly_still_arrives_or_fails() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    for range in ["0-3", "0-99999999999", "bytes=0-1", "x", ""] {
        let registry = FakeRegistry::start();
        let image = big(range.len() as u64 + 31, 1 << 18);
        let reference = have(&bench, &image, &registry, "app");
        registry.bend(
            move |request, reply| {
                if request.is("PATCH", "/uploads/") { reply.replace_header("Range", range) } else { reply }
            },
        );
        let run = bench.run(["push", &reference]);
        assert!(matches!(run.code, Some(0 | 3 | 4)), "{range}: {:?}\n{}", run.code, run.stderr);
        if run.code == Some(0) {
            arrived(&registry, "app", &image);
        } else {
            assert_eq!(registry.tag("app", "v1"), None, "{range}");
        }
    }
}

#[test]
fn r09_a_push_into_a_registry_that_loses_blobs_is_no_success() {
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        for refuses in [false, true] {
            let registry = FakeRegistry::start();
            registry.lose_uploads(true);
            registry.refuse_dangling(refuses);
            let image = Image::tiny(&format!("lost {refuses} {who:?}"));
            let reference = have(&bench, &image, &registry, "app");
            let run = bench.fails(["push", &reference], &[3, 4], &[registry.host()]);
            assert!(run.stderr.contains("sha256:"), "the message names a blob:\n{}", run.stderr);
            registry.lose_uploads(false);
            bench.ok(["push", &reference]);
            arrived(&registry, "app", &image);
        }
    }
}

#[test]
fn r09_digests_that_the_registry_contradicts_are_integrity_errors() {
    let other = crate::images::digest(b"something else");
    let Some(bench) = Bench::new(Who::Root) else { return };

    // Pushing.
    let registry = FakeRegistry::start();
    let image = Image::tiny("contradicted push");
    let reference = have(&bench, &image, &registry, "app");
    let wrong = other.clone();
    registry.bend(move |request, reply| {
        if request.is("PUT", "/manifests/") { reply.replace_header("Docker-Content-Digest", &wrong) } else { reply }
    });
    bench.fails(["push", &reference], &[4], &[&other]);

    // Pulling by tag: the header. Who asks for a digest may well ignore it; who asks for a tag may not.
    let image = Image::tiny("contradicted pull");
    for method in ["HEAD", "GET", ""] {
        let registry = FakeRegistry::start();
        image.put(&registry, "app", "v1");
        let wrong = other.clone();
        registry.bend(move |request, reply| {
            let is_meant = request.path.ends_with("/manifests/v1") && (method.is_empty() || request.method == method);
            if is_meant { reply.replace_header("Docker-Content-Digest", &wrong) } else { reply }
        });
        let run = bench.run(["pull", &registry.reference("app", "v1")]);
        let is_asked = registry
            .requests()
            .iter()
            .any(|request| request.path.ends_with("/manifests/v1") && (method.is_empty() || request.method == method));
        assert!(!is_asked || matches!(run.code, Some(3 | 4)), "{method}: {:?}: {}", run.code, run.stderr);
        bench.verify_store();
    }

    // Pulling by digest: the content.
    let registry = FakeRegistry::start();
    image.put_blobs(&registry, "app");
    registry.put_manifest_as("app", &other, crate::images::MANIFEST, image.manifest().to_string());
    bench.fails(["pull", &registry.reference("app", &other)], &[4], &[&other]);

    // A blob.
    let registry = FakeRegistry::start();
    let image = Image::tiny("contradicted blob");
    image.put(&registry, "app", "v1");
    let mut bytes = image.layers[0].bytes.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    registry.put_blob_as("app", &image.layer(), bytes);
    bench.fails(["pull", &registry.reference("app", "v1")], &[4], &[&image.layer()]);
    assert!(!bench.has_blob(&image.layer()));
    bench.verify_store();
    image.put(&registry, "app", "v1");
    bench.ok(["pull", &registry.reference("app", "v1")]);
}

#[test]
fn r09_a_push_that_was_killed_is_done_by_the_next_one() {
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        let registry = FakeRegistry::start();
        let image = big(12, 1 << 20);
        let reference = have(&bench, &image, &registry, "app");
        registry.on_head(|request| {
            let length: u64 = request.header("content-length").map_or(u64::MAX, |text| text.parse().unwrap());
            let is_big = matches!(request.method.as_str(), "PATCH" | "PUT") && length > 100_000;
            (is_big && request.path.contains("/uploads/")).then(|| Reply::stall_upload(500_000))
        });
        let mut command = bench.command(["push", &reference]);
        let mut push = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        registry.wait_until_stalled(1);
        push.kill().unwrap();
        push.wait().unwrap();
        assert_eq!(registry.tag("app", "v1"), None);
        registry.behave();
        bench.ok(["push", &reference]);
        arrived(&registry, "app", &image);
        bench.verify_store();
    }
}

/// The tag moves after it was first read: the whole build uses what it read first.
#[test]
fn r10_a_build_uses_one_image_for_one_name() {
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        for moves_at in 1..4 {
            let registry = Arc::new(FakeRegistry::start());
            let make = |name: &str| Image::runnable(&format!("{name} {moves_at} {who:?}"), Form::Gzip);
            let (Some(first), Some(second)) = (make("first"), make("second")) else { return };
            let moved = second.put(&registry, "app", "other");
            first.put(&registry, "app", "v1");
            let (weak, count) = (Arc::downgrade(&registry), AtomicU64::new(0));
            registry.on_head(move |request| {
                // The tag moves before the request with this number is answered.
                if request.path.ends_with("/manifests/v1")
                    && count.fetch_add(1, Ordering::SeqCst) == moves_at
                    && let Some(registry) = weak.upgrade()
                {
                    registry.set_tag("app", "v1", &moved);
                }
                None
            });
            let name = registry.reference("app", "v1");
            let dockerfile = format!(
                "FROM {name} AS one\nRUN cat /marker > /one\nFROM {name} AS two\nRUN cat /marker > /two\n\
                 COPY --from=one /one /one\nCOPY --from={name} /marker /three\nRUN cat /one /two /three | sort -u > /all\n\
                 CMD [\"cat\", \"/all\"]\n"
            );
            let run = bench.build("context", &[("Dockerfile", &dockerfile)], &["--pull", "-t", "once"]);
            assert_eq!(run.code, Some(0), "{}", run.stderr);
            let all = bench.ok(["run", "--network=none", "once"]);
            assert_eq!(all.lines().count(), 1, "two images for one name: {all}");
            bench.verify_store();
        }
    }
}
