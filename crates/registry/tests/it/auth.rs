//! Challenges, tokens, and who is shown what.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use build_engine_oci::media_type;
use build_engine_registry::{Client, Credential, HostSettings, Kind, NoCredentials, Proxies, Pushed, Settings};
use build_engine_testkit::registry::{FakeRegistry, Reply, TokenOptions};

use crate::scene::{
    Known, PASSWORD, basic, client, client_as, content, layer, noise, read, repository, settings, story, whole_story,
    with_host,
};

const MIB: usize = 1 << 20;

fn registry() -> FakeRegistry {
    let registry = FakeRegistry::start();
    registry.put_manifest("app", "v1", media_type::OCI_INDEX, "{}");
    registry
}

fn wrong() -> Credential {
    Credential::Basic { username: "user".into(), password: "wrong".into() }
}

#[tokio::test]
async fn passwords_are_sent_when_they_are_asked_for() {
    let registry = registry();
    registry.require_basic("user", PASSWORD);
    let reference = registry.reference("app", "v1").parse().unwrap();
    let client = client_as(&registry, basic());
    for _ in 0..3 {
        client.resolve(&reference).await.unwrap();
    }
    // Only the first request is refused.
    assert_eq!(registry.requests().len(), 4);
    for refused in [client_as(&registry, wrong()), crate::scene::client()] {
        let error = refused.resolve(&reference).await.unwrap_err();
        assert!(error.is_not_found() && story(&error).contains("answered 401"), "{}", story(&error));
    }
}

#[tokio::test]
async fn tokens_are_had_in_every_way_that_services_know() {
    let plain = TokenOptions::default;
    let identity = || Credential::Identity { token: "refresh-me".into() };
    let refresh = |options| TokenOptions { accepts_refresh_token: Some("refresh-me".into()), ..options };
    for (what, options, credential, succeeds) in [
        ("a password by GET", plain(), Some(basic()), true),
        ("a password by POST", TokenOptions { refuses_get: true, ..plain() }, Some(basic()), true),
        ("access_token alone", TokenOptions { names_access_token_only: true, ..plain() }, Some(basic()), true),
        ("an identity token", refresh(plain()), Some(identity()), true),
        ("a wrong identity token", plain(), Some(identity()), false),
        ("nobody", TokenOptions { allows_anonymous_pull: true, ..plain() }, None, true),
        ("nobody where that is not enough", plain(), None, false),
        ("a wrong password", plain(), Some(wrong()), false),
    ] {
        let registry = registry();
        registry.require_token("user", PASSWORD, options);
        let client = credential.map_or_else(client, |credential| client_as(&registry, credential));
        let reference = registry.reference("app", "v1").parse().unwrap();
        let result = client.resolve(&reference).await;
        assert_eq!(result.is_ok(), succeeds, "{what}: {result:?}");
        if let Err(error) = result {
            assert!(!whole_story(&error).contains("refresh-me"), "{what}");
            assert_eq!(error.kind(), Kind::Source, "{what}");
        }
    }
}

#[tokio::test]
async fn tokens_are_used_again_while_they_last() {
    for (expires_in_seconds, expected) in [(None, 1), (Some(300), 1), (Some(3600), 1)] {
        let registry = registry();
        registry.require_token("user", PASSWORD, TokenOptions { expires_in_seconds, ..TokenOptions::default() });
        let bytes = noise(17 * MIB);
        registry.put_blob("app", bytes.clone());
        let known = Known::new(registry.host(), basic());
        let client = Client::new(settings(), known.clone()).unwrap();
        client.resolve(&registry.reference("app", "v1").parse().unwrap()).await.unwrap();
        assert!(read(&client, &repository(&registry, "app"), &layer(&bytes), 0).await.unwrap() == bytes);
        assert_eq!(registry.token_count(), expected, "{expires_in_seconds:?}");
        assert_eq!(known.asked.load(Ordering::Relaxed) as u64, expected);
        let scopes = registry.requests_of("GET", "/token");
        assert_eq!(scopes[0].parameter("scope"), Some("repository:app:pull"));
        assert_eq!(scopes[0].parameter("service"), Some(registry.host()));
    }
}

#[tokio::test]
async fn a_token_that_ends_is_replaced_in_the_middle() {
    let registry = Arc::new(registry());
    registry.require_token("user", PASSWORD, TokenOptions::default());
    let bytes = noise(30 * MIB);
    registry.put_blob("app", bytes.clone());
    let client = client_as(&registry, basic());
    let mut blob = client.blob(&repository(&registry, "app"), &layer(&bytes), 0).await.unwrap();
    let mut got = Vec::new();
    let mut revoked = 0;
    while let Some(chunk) = blob.chunk().await.unwrap() {
        got.extend_from_slice(&chunk);
        if got.len() > (revoked + 1) * 10 * MIB {
            registry.revoke_tokens();
            revoked += 1;
        }
    }
    assert!(got == bytes);
    assert!(registry.token_count() > 1 && revoked == 2);
}

#[tokio::test]
async fn a_registry_token_is_for_the_registry_itself() {
    let registry = registry();
    registry.require_token("user", PASSWORD, TokenOptions::default());
    let client = client_as(&registry, Credential::Bearer { token: "direct".into() });
    client.resolve(&registry.reference("app", "v1").parse().unwrap()).await.unwrap_err();
    assert!(registry.requests_of("GET", "/token").is_empty());
    let sent =
        registry.requests().iter().filter(|request| request.header("authorization") == Some("Bearer direct")).count();
    assert_eq!(sent, 1);
}

#[tokio::test]
async fn scopes_are_what_the_request_needs() {
    let registry = registry();
    registry.require_token("user", PASSWORD, TokenOptions::default());
    let bytes = noise(1000);
    registry.put_blob("other", bytes.clone());
    let client = client_as(&registry, basic());
    let target = repository(&registry, "app");
    let others = [repository(&registry, "other")];
    let pushed = client.push_blob(&target, &layer(&bytes), &others, content(&bytes), &|_| {}).await.unwrap();
    assert_eq!(pushed, Pushed::Mounted);
    let asked: Vec<Vec<String>> = registry
        .requests_of("GET", "/token")
        .iter()
        .map(|request| request.query.iter().filter(|(key, _)| key == "scope").map(|(_, scope)| scope.clone()).collect())
        .collect();
    let push = "repository:app:pull,push".to_owned();
    assert_eq!(asked, [vec![push.clone()], vec![push, "repository:other:pull".to_owned()]]);
}

/// A registry and a token service that are reached through a proxy, so that they can have any name.
fn through_proxy(realm: &'static str, opens: bool) -> (FakeRegistry, Settings) {
    let proxy = FakeRegistry::start();
    proxy.on(move |request| {
        if request.path.contains("/v2/") {
            if request.header("authorization") == Some("Bearer good") && opens {
                return Some(Reply::ok(media_type::OCI_INDEX, "{}"));
            }
            let challenge = format!("Bearer realm=\"{realm}\",service=\"s\"");
            return Some(Reply::error(401, "UNAUTHORIZED", "who?").header("WWW-Authenticate", &challenge));
        }
        Some(Reply::ok("application/json", r#"{"token":"good"}"#))
    });
    let mut settings = with_host("r.good.example", HostSettings { http: true, ..HostSettings::default() });
    settings.proxies = Proxies { http: Some(proxy.origin().to_owned()), ..Proxies::default() };
    (proxy, settings)
}

#[tokio::test]
async fn credentials_go_only_to_token_services_of_the_registry() {
    for (realm, auth_hosts, opens, shown, succeeds) in [
        ("http://r.good.example/token", vec![], true, true, true),
        ("http://auth.good.example/token", vec![], true, true, true),
        ("http://evil.test/token", vec![], true, false, true),
        ("http://evil.test/token", vec![], false, false, false),
        ("http://evil.test/token", vec!["evil.test".to_owned()], true, true, true),
        ("http://good.example.evil.test/token", vec![], false, false, false),
    ] {
        let (proxy, mut settings) = through_proxy(realm, opens);
        settings.hosts.get_mut("r.good.example").unwrap().auth_hosts = auth_hosts;
        let client = Client::new(settings, Known::new("r.good.example", basic())).unwrap();
        let result = client.resolve(&"r.good.example/app:v1".parse().unwrap()).await;
        assert_eq!(result.is_ok(), succeeds, "{realm}: {result:?}");
        let asked = proxy.requests_of("GET", "/token");
        assert_eq!(asked.iter().any(|request| request.header("authorization").is_some()), shown, "{realm}");
        if let Err(error) = result {
            let (text, hint) = (story(&error), error.hint().unwrap());
            assert!(text.contains("`r.good.example` sends its clients to `"), "{text}");
            assert!(hint.contains("auth-hosts") && hint.contains("evil.test"), "{hint}");
        }
    }
}

#[tokio::test]
async fn token_services_in_other_networks_are_not_asked() {
    for realm in [
        "http://169.254.169.254/latest",
        "http://127.0.0.1:1/token",
        "http://localhost:1/token",
        "http://[::1]:1/token",
        "http://10.0.0.1/token",
        "http://8.8.8.8/token",
        "http://0x7f000001/token",
        "file:///etc/passwd",
        "no address",
    ] {
        let (proxy, settings) = through_proxy(realm, false);
        let client = Client::new(settings, Known::new("r.good.example", basic())).unwrap();
        let error = client.resolve(&"r.good.example/app:v1".parse().unwrap()).await.unwrap_err();
        assert!(proxy.leaks(&[PASSWORD]).is_empty(), "{realm}");
        assert_eq!(proxy.requests().len(), 1, "{realm}");
        assert_eq!(error.kind(), Kind::Source);
        assert!(story(&error).contains("r.good.example"), "{realm}: {}", story(&error));
    }
}

#[tokio::test]
async fn forms_with_passwords_are_not_sent_on() {
    let elsewhere = FakeRegistry::start();
    for status in [301, 302, 307, 308] {
        let registry = registry();
        registry.require_token("user", PASSWORD, TokenOptions { refuses_get: true, ..TokenOptions::default() });
        registry.queue("POST", "/token", [Reply::redirect(status, &format!("{}/token", elsewhere.origin()))]);
        let client = client_as(&registry, basic());
        client.resolve(&registry.reference("app", "v1").parse().unwrap()).await.unwrap_err();
    }
    // And a password for a GET stays behind.
    let registry = registry();
    registry.require_token("user", PASSWORD, TokenOptions::default());
    registry.queue("GET", "/token", [Reply::redirect(307, &format!("{}/token", elsewhere.origin()))]);
    let client = client_as(&registry, basic());
    let _ = client.resolve(&registry.reference("app", "v1").parse().unwrap()).await;
    assert_eq!(elsewhere.requests().len(), 1);
    assert!(elsewhere.leaks(&[PASSWORD]).is_empty());
}

#[tokio::test]
async fn token_services_may_fail_for_a_while_and_talk_nonsense() {
    let registry = registry();
    registry.require_token("user", PASSWORD, TokenOptions::default());
    let reference = registry.reference("app", "v1").parse().unwrap();
    registry.queue("GET", "/token", [Reply::status(500), Reply::close(), Reply::status(429)]);
    client_as(&registry, basic()).resolve(&reference).await.unwrap();
    for (reply, expected) in [
        (Reply::ok("x", r#"{"token":"secret\nx"}"#), "characters that cannot be sent"),
        (Reply::ok("x", "{}"), "there is no token in it"),
        (Reply::ok("x", r#"{"token":""}"#), "there is no token in it"),
        (Reply::ok("x", "<html>"), "there is no token in it"),
        (Reply::ok("x", "x".repeat(65536)).repeated(1 << 30).chunked(), "there is no token in it"),
        (Reply::error(401, "UNAUTHORIZED", "wrong"), "does not accept the credentials for `127.0.0.1"),
    ] {
        registry.queue("GET", "/token", [reply]);
        let error = client_as(&registry, basic()).resolve(&reference).await.unwrap_err();
        let text = whole_story(&error);
        assert!(text.contains(expected) && !text.contains("secret"), "{text}");
    }
}

#[tokio::test]
async fn mirrors_are_not_shown_the_credentials_of_the_registry() {
    let (registry, mirror) = (registry(), FakeRegistry::start());
    registry.require_basic("user", PASSWORD);
    mirror.require_basic("user", PASSWORD);
    let host_settings = HostSettings { mirrors: vec![mirror.host().into()], ..HostSettings::default() };
    let client = Client::new(with_host(registry.host(), host_settings), Known::new(registry.host(), basic())).unwrap();
    client.resolve(&registry.reference("app", "v1").parse().unwrap()).await.unwrap();
    assert_eq!(mirror.requests().len(), 1);
    assert!(mirror.leaks(&[PASSWORD]).is_empty());
}

#[tokio::test]
async fn many_requests_at_once_share_one_token() {
    let registry = registry();
    registry.require_token("user", PASSWORD, TokenOptions::default());
    let client = client_as(&registry, basic());
    let reference = registry.reference("app", "v1").parse().unwrap();
    let all = (0..20).map(|_| client.resolve(&reference));
    for result in futures::future::join_all(all).await {
        result.unwrap();
    }
    assert_eq!(registry.token_count(), 1);
}

#[tokio::test]
async fn without_credentials_nothing_is_made_up() {
    let registry = registry();
    registry.require_basic("user", PASSWORD);
    let client = Client::new(settings(), Arc::new(NoCredentials)).unwrap();
    client.resolve(&registry.reference("app", "v1").parse().unwrap()).await.unwrap_err();
    assert_eq!(registry.requests().len(), 1);
    assert!(registry.leaks(&[]).is_empty());
}
