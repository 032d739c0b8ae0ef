//! R05: credentials stay with the registry they belong to, wherever it sends its clients.
//!
//! A second registry plays the attacker. It listens on another port, which makes it another origin, and records all that
//! reaches it.

use std::time::Duration;

use build_engine_testkit::certs::{Authority, Flaw};
use build_engine_testkit::engine::Who;
use build_engine_testkit::registry::{FakeRegistry, Reply, TokenOptions};
use serde_json::json;

use crate::images::{Image, big};
use crate::{Bench, EVERYBODY, PASSWORD, USER, within};

/// How a registry asks for credentials.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Door {
    Basic,
    Token,
}

fn lock(registry: &FakeRegistry, door: Door) {
    match door {
        Door::Basic => registry.require_basic(USER, PASSWORD),
        Door::Token => registry.require_token(USER, PASSWORD, TokenOptions::default()),
    }
}

#[track_caller]
fn nothing_leaked(attacker: &FakeRegistry) {
    let leaks = attacker.leaks(&[PASSWORD, USER]);
    assert!(leaks.is_empty(), "credentials reached a foreign origin: {leaks:#?}");
}

/// A registry `app:v1` behind `door`, an engine that knows the password, and an attacker.
fn scene(who: Who, door: Door, image: &Image) -> Option<(Bench, FakeRegistry, FakeRegistry)> {
    let bench = Bench::new(who)?;
    let (registry, attacker) = (FakeRegistry::start(), FakeRegistry::start());
    lock(&registry, door);
    image.put(&registry, "app", "v1");
    bench.log_in(registry.host());
    Some((bench, registry, attacker))
}

#[test]
fn r05_blobs_and_manifests_may_come_from_elsewhere_but_credentials_do_not_go_there() {
    for who in EVERYBODY {
        for door in [Door::Basic, Door::Token] {
            for status in [301, 302, 303, 307, 308] {
                for part in ["/blobs/", "/manifests/"] {
                    let image = Image::tiny(&format!("redirect {who:?} {door:?} {status} {part}"));
                    let Some((bench, registry, attacker)) = scene(who, door, &image) else { return };
                    image.put(&attacker, "app", "v1");
                    let origin = attacker.origin().to_owned();
                    registry.on_authorized(move |request| {
                        let reply = Reply::redirect(status, &format!("{origin}{}", request.path));
                        request.path.contains(part).then(|| reply.header("Set-Cookie", "session=tester; Path=/"))
                    });
                    bench.ok(["pull", &registry.reference("app", "v1")]);
                    assert!(!attacker.requests().is_empty(), "the redirect was not followed");
                    nothing_leaked(&attacker);
                    bench.verify_store();
                }
            }
        }
    }
}

#[test]
fn r05_a_redirect_that_comes_back_home_still_shows_no_credential_on_the_way() {
    let image = Image::tiny("there and back");
    let Some((bench, registry, attacker)) = scene(Who::Root, Door::Basic, &image) else { return };
    let there = attacker.origin().to_owned();
    registry.on_authorized(move |request| {
        let is_first = request.path.contains("/blobs/") && request.parameter("back").is_none();
        is_first.then(|| Reply::redirect(307, &format!("{there}{}", request.path)))
    });
    let back = registry.origin().to_owned();
    attacker.on(move |request| Some(Reply::redirect(307, &format!("{back}{}?back=1", request.path))));
    // Both ways of reading the standard are safe: credentials once more for their own origin, or none any more.
    let run = bench.run(["pull", &registry.reference("app", "v1")]);
    assert!(matches!(run.code, Some(0 | 3)), "{:?}: {}", run.code, run.stderr);
    nothing_leaked(&attacker);
    bench.verify_store();
}

#[test]
fn r05_who_answers_a_redirect_with_a_challenge_gets_nothing() {
    for door in [Door::Basic, Door::Token] {
        let image = Image::tiny(&format!("challenge {door:?}"));
        let Some((bench, registry, attacker)) = scene(Who::Root, door, &image) else { return };
        image.put(&attacker, "app", "v1");
        lock(&attacker, door);
        let origin = attacker.origin().to_owned();
        registry.on_authorized(move |request| {
            request.path.contains("/blobs/").then(|| Reply::redirect(307, &format!("{origin}{}", request.path)))
        });
        bench.fails(["pull", &registry.reference("app", "v1")], &[3], &[attacker.host()]);
        nothing_leaked(&attacker);
        bench.verify_store();
    }
}

#[test]
fn r05_urls_of_a_layer_are_not_fetched() {
    let image = Image::tiny("foreign");
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    for media_type in [foreign, crate::images::LAYER_GZIP] {
        let Some((bench, registry, attacker)) = scene(Who::Root, Door::Basic, &image) else { return };
        attacker.put_blob("app", image.layers[0].bytes.clone());
        let mut manifest = image.manifest();
        manifest["layers"][0]["mediaType"] = json!(media_type);
        manifest["layers"][0]["urls"] =
            json!([format!("{}/v2/app/blobs/{}", attacker.origin(), image.layer()), "file:///etc/passwd"]);
        registry.put_manifest("app", "v1", crate::images::MANIFEST, manifest.to_string());
        registry.remove_blob("app", &image.layer());
        bench.fails(["pull", &registry.reference("app", "v1")], &[2, 3, 4], &[]);
        assert!(attacker.requests().is_empty(), "{:#?}", attacker.requests());
        bench.verify_store();
        assert!(!bench.has_blob(&image.layer()));
    }
}

/// Addresses of one machine are no strangers to each other, so this takes names.
#[test]
fn r05_a_realm_at_another_host_is_not_given_the_password() {
    let image = Image::tiny("realm");
    let Some((bench, registry, tokens)) = scene(Who::Root, Door::Basic, &image) else { return };
    let name = |registry: &FakeRegistry, name: &str| registry.host().replace("127.0.0.1", name);
    let host = name(&registry, "registry.test");
    bench.configure(&json!({ (host.as_str()): { "http": true } }), &json!({}));
    bench.log_in(&host);
    let source = FakeRegistry::start();
    image.put(&source, "app", "v1");
    bench.ok(["pull", &source.reference("app", "v1")]);
    bench.ok(["images", "tag", &source.reference("app", "v1"), &format!("{host}/app:v2")]);
    // Whoever asks gets a token; with the right password it is a good one.
    tokens.on(|request| {
        let shows_password = request.header("authorization").is_some() || request.method == "POST";
        let token = if shows_password { "the-token" } else { "a-useless-token" };
        let answer = json!({ "token": token, "access_token": token, "expires_in": 300 });
        (request.path == "/token").then(|| Reply::ok("application/json", answer.to_string()))
    });
    let realm = |at: &str| TokenOptions {
        realm: Some(format!("http://{}/token", name(&tokens, at))),
        accepts_token: Some("the-token".to_owned()),
        ..TokenOptions::default()
    };
    registry.require_token(USER, PASSWORD, realm("attacker.example"));
    let runs = [["pull", &format!("{host}/app:v1")], ["push", &format!("{host}/app:v2")]]
        .map(|args| bench.run_with_names(args));
    nothing_leaked(&tokens);
    for run in runs {
        assert_eq!(run.code, Some(3), "{}", run.stderr);
        assert!(run.stderr.contains("attacker.example"), "the message does not name the host:\n{}", run.stderr);
    }
    bench.verify_store();

    // A service of the same domain is no stranger.
    registry.require_token(USER, PASSWORD, realm("auth.registry.test"));
    let run = bench.run_with_names(["pull", &format!("{host}/app:v1")]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    // And one that the settings name is trusted.
    tokens.forget_requests();
    registry.require_token(USER, PASSWORD, realm("attacker.example"));
    bench.configure(&json!({ (host.as_str()): { "http": true, "auth-hosts": ["attacker.example"] } }), &json!({}));
    let run = bench.run_with_names(["pull", &format!("{host}/app:v1")]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(!tokens.leaks(&[PASSWORD]).is_empty(), "the token server was asked");
}

#[test]
fn r05_a_realm_at_the_metadata_service_or_nowhere_is_refused_at_once() {
    let image = Image::tiny("metadata");
    let realms = [
        ("http://169.254.169.254/latest/meta-data/", "169.254.169.254"),
        ("https://169.254.169.254/token", "169.254.169.254"),
        ("http://[fe80::1]/token", "fe80::1"),
        ("file:///etc/passwd", "http"),
        ("gopher://127.0.0.1/token", "http"),
        ("not a url", "token"),
    ];
    let Some((bench, registry, _)) = scene(Who::Root, Door::Basic, &image) else { return };
    let mut problems = Vec::new();
    for (realm, part) in realms {
        let options = TokenOptions { realm: Some(realm.to_owned()), ..TokenOptions::default() };
        registry.require_token(USER, PASSWORD, options);
        let reference = registry.reference("app", "v1");
        let run = within(Duration::from_secs(15), || bench.fails(["pull", &reference], &[3], &[]));
        if !run.stderr.contains(part) {
            problems.push(format!("{realm}: no `{part}` in the message: {}", run.stderr));
        }
    }
    bench.verify_store();
    assert!(problems.is_empty(), "{}", problems.join("\n\n"));
}

#[test]
fn r05_a_registry_with_tls_cannot_send_its_clients_to_plain_http() {
    let authority = Authority::new("r05").unwrap();
    let Some(bench) = Bench::new(Who::Root) else { return };
    let ca = authority.write(&bench.engine.work(), "ca").unwrap();
    let registry = FakeRegistry::start_tls(&authority.server(Flaw::None).unwrap());
    let image = Image::tiny("downgrade");
    image.put(&registry, "app", "v1");
    bench.configure(&json!({ (registry.host()): { "ca": [ca] } }), &json!({}));
    bench.log_in(registry.host());
    registry.require_basic(USER, PASSWORD);
    let attacker = FakeRegistry::start();
    image.put(&attacker, "app", "v1");
    attacker.require_token(USER, PASSWORD, TokenOptions::default());

    // The realm.
    let realm = format!("{}/token", attacker.origin());
    registry.require_token(USER, PASSWORD, TokenOptions { realm: Some(realm), ..TokenOptions::default() });
    bench.fails(["pull", &registry.reference("app", "v1")], &[3], &[attacker.host()]);
    nothing_leaked(&attacker);
    // Even where the settings trust that host, the way to it is open to all.
    let settings = json!({ (registry.host()): { "ca": [ca], "auth-hosts": [attacker.host()] } });
    bench.configure(&settings, &json!({}));
    bench.fails(["pull", &registry.reference("app", "v1")], &[3], &["http"]);
    nothing_leaked(&attacker);
    bench.configure(&json!({ (registry.host()): { "ca": [ca] } }), &json!({}));

    // A redirect.
    attacker.forget_requests();
    registry.require_basic(USER, PASSWORD);
    let origin = attacker.origin().to_owned();
    registry.on_authorized(move |request| {
        request.path.contains("/blobs/").then(|| Reply::redirect(307, &format!("{origin}{}", request.path)))
    });
    bench.fails(["pull", &registry.reference("app", "v1")], &[3], &[attacker.host()]);
    assert!(attacker.requests().is_empty(), "{:#?}", attacker.requests());
    bench.verify_store();
}

#[test]
fn r05_redirects_to_other_schemes_are_refused() {
    let image = Image::tiny("schemes");
    let Some((bench, registry, _)) = scene(Who::Root, Door::Basic, &image) else { return };
    for location in ["file:///etc/passwd", "gopher://127.0.0.1:1/x", "unix:/run/docker.sock", "data:,x", "::::", ""] {
        registry.behave();
        registry.on_authorized(move |request| request.path.contains("/blobs/").then(|| Reply::redirect(302, location)));
        let reference = registry.reference("app", "v1");
        within(Duration::from_secs(20), || bench.fails(["pull", &reference], &[3], &[]));
    }
    bench.verify_store();
    assert!(!bench.has_blob(&image.layer()));
}

#[test]
fn r05_a_loop_of_redirects_ends_after_five() {
    let image = Image::tiny("loop");
    let Some((bench, registry, _)) = scene(Who::Root, Door::Basic, &image) else { return };
    let layer = image.layer();
    let path = layer.clone();
    registry.on_authorized(move |request| {
        request.path.contains(&path).then(|| {
            let number: u32 = request.parameter("n").map_or(0, |text| text.parse().unwrap());
            Reply::redirect(307, &format!("{}?n={}", request.path, number + 1))
        })
    });
    bench.fails(["pull", &registry.reference("app", "v1")], &[3], &["redirect"]);
    let followed = registry.requests_of("GET", &layer);
    let deepest = followed.iter().filter_map(|request| request.parameter("n")?.parse::<u32>().ok()).max();
    assert!(deepest <= Some(5), "{deepest:?} redirects were followed");
    assert!(followed.len() <= 8, "{} requests", followed.len());
    bench.verify_store();
}

#[test]
fn r05_an_upload_sent_to_another_host_takes_no_credential_there() {
    for who in EVERYBODY {
        for door in [Door::Basic, Door::Token] {
            for method in ["POST", "PATCH"] {
                let image = big(u64::from(method == "POST") + 7, 100_000);
                let Some((bench, registry, attacker)) = scene(who, door, &image) else { return };
                let reference = registry.reference("app", "v1");
                bench.ok(["pull", &reference]);
                let target = registry.reference("elsewhere", "v1");
                bench.ok(["images", "tag", &reference, &target]);
                registry.refuse_mounts(true);
                let origin = attacker.origin().to_owned();
                registry.bend(move |request, reply| {
                    if request.is(method, "/blobs/uploads") && reply.code() == 202 {
                        reply.replace_header("Location", &format!("{origin}/v2/app/blobs/uploads/upload-1?_state=x"))
                    } else {
                        reply
                    }
                });
                let run = bench.run(["push", &target]);
                nothing_leaked(&attacker);
                if method == "POST" {
                    assert_eq!(run.code, Some(3), "{}", run.stderr);
                    assert!(run.stderr.contains(attacker.host()), "the message names the host:\n{}", run.stderr);
                    assert_eq!(registry.tag("elsewhere", "v1"), None);
                }
            }
        }
    }
}

/// The same password for a host with another port is another credential.
#[test]
fn r05_credentials_belong_to_host_and_port() {
    let image = Image::tiny("ports");
    let Some((bench, registry, attacker)) = scene(Who::Root, Door::Basic, &image) else { return };
    image.put(&attacker, "app", "v1");
    lock(&attacker, Door::Basic);
    bench.fails(["pull", &attacker.reference("app", "v1")], &[3], &[attacker.host()]);
    nothing_leaked(&attacker);
    bench.ok(["pull", &registry.reference("app", "v1")]);
}

/// An answer that echoes what it was sent must not put a credential on the screen ([`Bench::run`] looks).
#[test]
fn r05_errors_do_not_show_credentials() {
    let image = Image::tiny("echo");
    for door in [Door::Basic, Door::Token] {
        let Some((bench, registry, _)) = scene(Who::Root, door, &image) else { return };
        registry.on_authorized(|request| {
            let seen = request.header("authorization").unwrap_or_default();
            Some(Reply::error(403, "DENIED", &format!("you said {seen}")))
        });
        let run = bench.fails(["--debug", "pull", &registry.reference("app", "v1")], &[3], &["403"]);
        assert!(!run.stderr.contains(&crate::basic(USER, PASSWORD)), "{}", run.stderr);
        assert!(!run.stderr.contains("token-"), "{}", run.stderr);
    }
}

/// Who has the URL of a blob store may read the blob: the signature in it is a credential too.
#[test]
fn r05_errors_do_not_show_what_is_signed_into_urls() {
    let image = Image::tiny("signed");
    let Some((bench, registry, store)) = scene(Who::Root, Door::Basic, &image) else { return };
    let origin = store.origin().replace("http://", "http://key:top-secret-user-info@");
    for target in [format!("{}/blob?X-Signature=top-secret-signature", store.origin()), format!("{origin}/blob")] {
        registry.behave();
        registry.on_authorized(move |request| request.path.contains("/blobs/").then(|| Reply::redirect(307, &target)));
        store.on(|_| Some(Reply::error(403, "DENIED", "expired")));
        let run = bench.fails(["--debug", "pull", &registry.reference("app", "v1")], &[3], &[store.host()]);
        assert!(!run.stderr.contains("top-secret"), "{}", run.stderr);
    }
}

#[test]
fn r05_a_proxy_is_not_told_what_is_said_on_loopback() {
    let image = Image::tiny("proxy");
    let Some((mut bench, registry, proxy)) = scene(Who::Root, Door::Basic, &image) else { return };
    for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        bench.environment.insert(name.to_owned(), proxy.origin().to_owned());
    }
    bench.ok(["pull", &registry.reference("app", "v1")]);
    assert!(proxy.requests().is_empty(), "{:#?}", proxy.requests());
}
