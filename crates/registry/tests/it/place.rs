//! Where requests go: TLS or none, redirects, proxies, and what is told about it.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use build_engine_oci::media_type;
use build_engine_registry::{Client, Error, HostSettings, Kind, NoCredentials, Proxies, Settings};
use build_engine_testkit::certs::{Authority, Flaw};
use build_engine_testkit::registry::{FakeRegistry, Reply};

use crate::scene::{
    PASSWORD, basic, client, client_as, layer, noise, read, repository, settings, story, whole_story, with_host,
};

const MIB: usize = 1 << 20;

async fn resolve(settings: Settings, registry: &FakeRegistry) -> Result<(), Error> {
    let client = Client::new(settings, Arc::new(NoCredentials))?;
    client.resolve(&registry.reference("app", "v1").parse().unwrap()).await.map(drop)
}

#[tokio::test]
async fn certificates_are_verified_as_the_settings_say() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new("testkit").unwrap();
    let ca = authority.write(dir.path(), "ca").unwrap();
    let other = Authority::new("other").unwrap().write(dir.path(), "other").unwrap();
    let trusting = HostSettings { ca: vec![ca.clone()], ..HostSettings::default() };
    let mistaken = HostSettings { ca: vec![other], ..HostSettings::default() };
    let insecure = HostSettings { insecure: true, ..HostSettings::default() };
    for (flaw, host_settings, succeeds) in [
        (Flaw::None, Some(trusting.clone()), true),
        (Flaw::None, Some(mistaken), false),
        // Loopback is no reason to trust a certificate, nor to do without.
        (Flaw::None, None, false),
        (Flaw::None, Some(insecure.clone()), true),
        (Flaw::Expired, Some(trusting.clone()), false),
        (Flaw::NotYetValid, Some(trusting.clone()), false),
        (Flaw::WrongHost, Some(trusting.clone()), false),
        (Flaw::SelfSigned, Some(trusting), false),
        (Flaw::SelfSigned, Some(insecure), true),
    ] {
        let registry = FakeRegistry::start_tls(&authority.server(flaw).unwrap());
        registry.put_manifest("app", "v1", media_type::OCI_INDEX, "{}");
        let what = format!("{flaw:?} with {host_settings:?}");
        let settings = host_settings.map_or_else(settings, |host_settings| with_host(registry.host(), host_settings));
        let start = Instant::now();
        match resolve(settings, &registry).await {
            Ok(()) => assert!(succeeds, "{what}"),
            Err(error) => {
                assert!(!succeeds, "{what}: {}", story(&error));
                assert!(story(&error).contains("certificate of `127.0.0.1"), "{what}: {}", story(&error));
                assert!(error.hint().unwrap().contains("--insecure-registry 127.0.0.1:"), "{what}");
                assert!(start.elapsed() < Duration::from_secs(2), "{what}: it was tried again");
                assert!(registry.requests().is_empty(), "{what}");
            }
        }
    }
    let registry = FakeRegistry::start_tls(&authority.server(Flaw::None).unwrap());
    registry.put_manifest("app", "v1", media_type::OCI_INDEX, "{}");
    resolve(Settings { ca_bundle: Some(ca), ..settings() }, &registry).await.unwrap();
}

#[tokio::test]
async fn clients_show_their_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new("testkit").unwrap();
    let ca = authority.write(dir.path(), "ca").unwrap();
    let (cert, key) = authority.client("builder").unwrap().write(dir.path(), "client").unwrap();
    let registry = FakeRegistry::start_tls(&authority.server(Flaw::None).unwrap().asking_clients_for(&authority));
    registry.put_manifest("app", "v1", media_type::OCI_INDEX, "{}");
    let without = HostSettings { ca: vec![ca], ..HostSettings::default() };
    let with = HostSettings { cert: Some(cert.clone()), key: Some(key), ..without.clone() };
    resolve(with_host(registry.host(), with.clone()), &registry).await.unwrap();
    resolve(with_host(registry.host(), without), &registry).await.unwrap_err();
    let half = HostSettings { key: None, ..with.clone() };
    let swapped = HostSettings { key: Some(cert), ..with };
    for wrong in [half, swapped] {
        assert_eq!(resolve(with_host(registry.host(), wrong), &registry).await.unwrap_err().kind(), Kind::Input);
    }
}

#[tokio::test]
async fn settings_that_cannot_be_used_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty.pem");
    fs::write(&empty, "nothing").unwrap();
    let host = |host_settings| with_host("r.example", host_settings);
    let plain = HostSettings::default;
    let secret = format!("http://user:{PASSWORD}@[");
    for (settings, expected) in [
        (Settings { ca_bundle: Some(empty.clone()), ..settings() }, "empty.pem"),
        (Settings { ca_bundle: Some("/nowhere.pem".into()), ..settings() }, "/nowhere.pem"),
        (host(HostSettings { ca: vec![empty.clone()], ..plain() }), "empty.pem"),
        (host(HostSettings { cert: Some(empty.clone()), key: Some(empty), ..plain() }), "empty.pem"),
        (host(HostSettings { mirrors: vec!["ftp://x".into()], ..plain() }), "ftp://x"),
        (Settings { proxies: Proxies { https: Some(secret), ..Proxies::default() }, ..settings() }, "proxy for https"),
    ] {
        // The authorities for all hosts are read when the first of them is spoken to: others do without.
        let error = match Client::new(settings, Arc::new(NoCredentials)) {
            Ok(client) => client.resolve(&"r.example/app:v1".parse().unwrap()).await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(error.kind(), Kind::Input);
        let text = whole_story(&error);
        assert!(text.contains(expected) && !text.contains(PASSWORD), "{text}");
    }
}

#[tokio::test]
async fn loopback_registries_may_speak_plain_http() {
    let registry = FakeRegistry::start();
    registry.put_manifest("app", "v1", media_type::OCI_INDEX, "{}");
    let port = registry.host().split_once(':').unwrap().1;
    let client = client();
    for host in [registry.host().to_owned(), format!("localhost:{port}")] {
        for _ in 0..2 {
            client.resolve(&format!("{host}/app:v1").parse().unwrap()).await.unwrap();
        }
    }
    // One attempt to speak TLS for each name of the host, and one connection for the rest.
    assert_eq!(registry.connections(), 4);
    for host_settings in [
        HostSettings { http: true, ..HostSettings::default() },
        HostSettings { insecure: true, ..HostSettings::default() },
    ] {
        resolve(with_host(registry.host(), host_settings), &registry).await.unwrap();
    }
}

#[tokio::test]
async fn hosts_that_must_speak_tls_are_never_spoken_to_without() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::new("testkit").unwrap().write(dir.path(), "ca").unwrap();
    let registry = FakeRegistry::start();
    registry.put_manifest("app", "v1", media_type::OCI_INDEX, "{}");
    let host_settings = HostSettings { ca: vec![ca], ..HostSettings::default() };
    let error = resolve(with_host(registry.host(), host_settings), &registry).await.unwrap_err();
    assert!(story(&error).ends_with(&format!("`{}` does not speak TLS", registry.host())), "{}", story(&error));
    let hint = error.hint().unwrap();
    assert!(hint.contains(&format!("\"registries\": {{\"{}\": {{\"insecure\": true}}}}", registry.host())), "{hint}");
    assert!(registry.requests().is_empty());
}

#[tokio::test]
async fn a_host_that_says_nothing_is_given_up() {
    let registry = FakeRegistry::start_mute();
    let mut settings = settings();
    settings.limits.connect_seconds = 0.2;
    let error = resolve(settings, &registry).await.unwrap_err();
    assert!(story(&error).contains("did not answer within 0.2 s (connecting)"), "{}", story(&error));
}

#[tokio::test]
async fn redirects_lead_elsewhere_without_credentials() {
    for (size, ranges) in [(MIB, 1), (17 * MIB, 5)] {
        let (registry, elsewhere) = (FakeRegistry::start(), FakeRegistry::start());
        let bytes = noise(size);
        let digest = elsewhere.put_blob("cdn", bytes.clone());
        registry.require_basic("user", PASSWORD);
        let target = format!("{}/v2/cdn/blobs/{digest}?signature={PASSWORD}", elsewhere.origin());
        registry.on_authorized(move |request| request.is("GET", "/blobs/").then(|| Reply::redirect(307, &target)));
        let client = client_as(&registry, basic());
        assert!(read(&client, &repository(&registry, "app"), &layer(&bytes), 0).await.unwrap() == bytes);
        assert_eq!(elsewhere.requests().len(), ranges);
        assert!(elsewhere.requests().iter().all(|request| request.header("authorization").is_none()));
        // A challenge, and the redirect; further ranges know the way.
        assert_eq!(registry.requests().len(), 2);

        // What the signature opens may close again.
        elsewhere.queue("GET", "", [Reply::status(403)]);
        if ranges > 1 {
            elsewhere.behave();
            elsewhere.bend(crate::scene::first(2, "GET", "", |request, reply| {
                if request.header("range").is_some_and(|range| !range.starts_with("bytes=0-")) {
                    Reply::status(403)
                } else {
                    reply
                }
            }));
            assert!(read(&client, &repository(&registry, "app"), &layer(&bytes), 0).await.unwrap() == bytes);
        }
    }
}

#[tokio::test]
async fn a_foreign_challenge_is_not_answered() {
    let (registry, elsewhere) = (FakeRegistry::start(), FakeRegistry::start());
    elsewhere.require_basic("user", PASSWORD);
    let bytes = noise(100);
    let target = format!("{}/v2/cdn/blobs/{}", elsewhere.origin(), layer(&bytes).digest);
    registry.on(move |_| Some(Reply::redirect(307, &target)));
    let client = client_as(&registry, basic());
    let error = read(&client, &repository(&registry, "app"), &layer(&bytes), 0).await.unwrap_err();
    assert!(story(&error).contains(&format!("`{}` answered 401", elsewhere.host())), "{}", story(&error));
    assert!(elsewhere.leaks(&[PASSWORD]).is_empty());
}

#[tokio::test]
async fn redirects_that_lead_astray_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new("testkit").unwrap();
    let ca = authority.write(dir.path(), "ca").unwrap();
    let registry = FakeRegistry::start_tls(&authority.server(Flaw::None).unwrap());
    let plain = FakeRegistry::start();
    let settings = with_host(registry.host(), HostSettings { ca: vec![ca], ..HostSettings::default() });
    let client = Client::new(settings, Arc::new(NoCredentials)).unwrap();
    for (target, expected) in [
        (format!("http://{}/x?sig={PASSWORD}", plain.host()), "it leads from https to http"),
        (format!("file:///etc/{PASSWORD}?"), "it is neither http nor https"),
        (format!("gopher://user:{PASSWORD}@x/"), "it is neither http nor https"),
        (format!("https://x:{PASSWORD}@169.254.169.254/?sig={PASSWORD}"), "it is a link-local address"),
        ("/v2/loop".to_owned(), "there are more than 5 redirects in a row"),
        (format!("https://[{PASSWORD}"), "its `Location` is not an address"),
    ] {
        registry.behave();
        registry.forget_requests();
        let location = target.clone();
        registry.on(move |_| Some(Reply::redirect(307, &location)));
        let error = read(&client, &repository(&registry, "app"), &layer(b"x"), 0).await.unwrap_err();
        let text = whole_story(&error);
        assert!(text.contains(expected), "{target}: {text}");
        assert!(!text.replace(&format!("/etc/{PASSWORD}"), "").contains(PASSWORD), "{target}: {text}");
        assert_eq!(registry.requests().len(), if target.starts_with('/') { 6 } else { 1 });
    }
    assert!(plain.requests().is_empty());
}

#[tokio::test]
async fn proxies_are_used_but_never_for_this_machine() {
    let (proxy, registry) = (FakeRegistry::start(), FakeRegistry::start());
    registry.put_manifest("app", "v1", media_type::OCI_INDEX, "{}");
    proxy.on(|request| {
        let known = request.path.starts_with("http://r.example/v2/");
        known.then(|| Reply::ok(media_type::OCI_INDEX, "{}"))
    });
    let http = Some(proxy.origin().to_owned());
    let host_settings = HostSettings { http: true, ..HostSettings::default() };
    let mut settings = with_host("r.example", host_settings.clone());
    settings.hosts.insert("direct.invalid".into(), host_settings);
    settings.proxies = Proxies { http, https: None, no: Some("direct.invalid".into()) };
    resolve(settings.clone(), &registry).await.unwrap();
    assert!(proxy.requests().is_empty());
    let client = Client::new(settings, Arc::new(NoCredentials)).unwrap();
    client.resolve(&"r.example/app:v1".parse().unwrap()).await.unwrap();
    let seen = proxy.requests().len();
    assert!(seen > 0);
    client.resolve(&"direct.invalid/app:v1".parse().unwrap()).await.unwrap_err();
    assert_eq!(proxy.requests().len(), seen);
}
