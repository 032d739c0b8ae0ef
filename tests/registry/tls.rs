//! R11: who a registry is, is proven before anything is said to it, and never given up in silence.

use build_engine_testkit::certs::{Authority, Certificate, Flaw};
use build_engine_testkit::engine::Who;
use build_engine_testkit::registry::FakeRegistry;
use serde_json::json;

use crate::images::Image;
use crate::{Bench, EVERYBODY, PASSWORD, USER};

/// A registry with TLS that holds `app:v1`.
fn registry(certificate: &Certificate, image: &Image) -> FakeRegistry {
    let registry = FakeRegistry::start_tls(certificate);
    image.put(&registry, "app", "v1");
    registry
}

#[test]
fn r11_bad_certificates_are_refused_before_a_request_is_made() {
    let authority = Authority::new("r11").unwrap();
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        let ca = authority.write(&bench.engine.work(), "ca").unwrap();
        bench.engine.adopt(&ca).unwrap();
        // With the authority in the settings only the flaw is left.
        let cases = [
            (Flaw::Expired, true),
            (Flaw::NotYetValid, true),
            (Flaw::WrongHost, true),
            (Flaw::SelfSigned, true),
            (Flaw::SelfSigned, false),
            (Flaw::None, false),
        ];
        for (flaw, trusts) in cases {
            let image = Image::tiny(&format!("{flaw:?} {trusts} {who:?}"));
            let registry = registry(&authority.server(flaw).unwrap(), &image);
            let reference = registry.reference("app", "v1");
            bench.log_in(registry.host());
            let registries = if trusts { json!({ (registry.host()): { "ca": [ca] } }) } else { json!({}) };
            bench.configure(&registries, &json!({}));
            bench.fails(["pull", &reference], &[3], &[registry.host(), "certificate"]);
            assert!(registry.requests().is_empty(), "{flaw:?}: {:#?}", registry.requests());
            // One who asks for it is not protected, and only for this host.
            let other = FakeRegistry::start();
            bench.fails(["--insecure-registry", other.host(), "pull", &reference], &[3], &["certificate"]);
            assert!(registry.requests().is_empty());
            bench.ok(["--insecure-registry", registry.host(), "pull", &reference]);
            bench.verify_store();
        }
    }
}

#[test]
fn r11_a_private_authority_is_trusted_by_configuration_for_its_host_alone() {
    let authority = Authority::new("r11").unwrap();
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        let ca = authority.write(&bench.engine.work(), "ca").unwrap();
        bench.engine.adopt(&ca).unwrap();
        let image = Image::tiny(&format!("private {who:?}"));
        let one = registry(&authority.server(Flaw::None).unwrap(), &image);
        let two = registry(&authority.server(Flaw::None).unwrap(), &image);
        one.require_basic(USER, PASSWORD);
        bench.log_in(one.host());
        bench.configure(&json!({ (one.host()): { "ca": [ca] } }), &json!({}));
        bench.ok(["pull", &one.reference("app", "v1")]);
        bench.ok(["push", &one.reference("app", "v1")]);
        bench.fails(["pull", &two.reference("app", "v1")], &[3], &["certificate"]);
        bench.configure(&json!({ (two.host()): { "insecure": true } }), &json!({}));
        bench.ok(["pull", &two.reference("app", "v1")]);
    }
}

#[test]
fn r11_an_authority_that_cannot_be_read_is_a_mistake_in_the_settings() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let registry = FakeRegistry::start();
    let nonsense = bench.engine.work().join("nonsense.pem");
    bench.write(&nonsense, "no certificate");
    for path in ["/no/such/ca.pem", nonsense.to_str().unwrap()] {
        bench.configure(&json!({ (registry.host()): { "ca": [path] } }), &json!({}));
        bench.fails(["pull", &registry.reference("app", "v1")], &[2], &[path]);
    }
    assert!(registry.requests().is_empty());
}

#[test]
fn r11_a_client_certificate_is_shown_where_the_settings_say_so() {
    let (authority, clients) = (Authority::new("servers").unwrap(), Authority::new("clients").unwrap());
    let Some(bench) = Bench::new(Who::Root) else { return };
    let ca = authority.write(&bench.engine.work(), "ca").unwrap();
    let (cert, key) = clients.client("tester").unwrap().write(&bench.engine.work(), "client").unwrap();
    let registry = registry(
        &authority.server(Flaw::None).unwrap().asking_clients_for(&clients),
        &Image::tiny("client certificate"),
    );
    let reference = registry.reference("app", "v1");
    bench.configure(&json!({ (registry.host()): { "ca": [ca] } }), &json!({}));
    bench.fails(["pull", &reference], &[3], &[registry.host()]);
    assert!(registry.requests().is_empty());
    bench.configure(&json!({ (registry.host()): { "ca": [ca], "cert": cert, "key": key } }), &json!({}));
    bench.ok(["pull", &reference]);
}

#[test]
fn r11_plain_http_is_spoken_on_loopback_or_where_it_is_asked_for() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let registry = FakeRegistry::start();
    Image::tiny("plain").put(&registry, "app", "v1");
    registry.require_basic(USER, PASSWORD);
    let host = registry.host().replace("127.0.0.1", "registry.test");
    let reference = format!("{host}/app:v1");
    bench.log_in(&host);

    let run = bench.run_with_names(["pull", &reference]);
    assert_eq!(run.code, Some(3), "{}", run.stderr);
    assert!(run.stderr.contains(&host) && run.stderr.contains("insecure-registry"), "{}", run.stderr);
    assert!(registry.requests().is_empty(), "{:#?}", registry.requests());
    let run = bench.run_with_names(["--insecure-registry", &host, "pull", &reference]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    bench.configure(&json!({ (host.as_str()): { "http": true } }), &json!({}));
    let run = bench.run_with_names(["pull", &reference]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);

    // On loopback nobody listens in.
    bench.configure(&json!({}), &json!({}));
    bench.log_in(registry.host());
    bench.ok(["pull", &registry.reference("app", "v1")]);
    bench.verify_store();
}

/// Where TLS was broken off by somebody in between, plain HTTP is not the answer; on loopback a bad certificate is not
/// either.
#[test]
fn r11_who_speaks_tls_badly_is_not_spoken_to_in_the_clear() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let authority = Authority::new("r11").unwrap();
    let registry = registry(&authority.server(Flaw::SelfSigned).unwrap(), &Image::tiny("downgrade"));
    bench.log_in(registry.host());
    let run = bench.fails(["pull", &registry.reference("app", "v1")], &[3], &["certificate"]);
    assert!(run.stderr.contains("insecure-registry") || run.stderr.contains("ca"), "a way out:\n{}", run.stderr);
    assert!(registry.requests().is_empty());
}
