//! The fake registry, seen by a client of a few lines.

use std::io::{BufRead as _, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;

use super::*;
use crate::certs::{Authority, Flaw};

/// Status, headers and body.
type Answer = (u16, Vec<(String, String)>, Vec<u8>);

/// Sends one request on a connection of its own.
fn request(host: &str, head: &str, body: &[u8]) -> std::io::Result<Answer> {
    exchange(&mut TcpStream::connect(host)?, head, body)
}

fn exchange(stream: &mut (impl Read + Write), head: &str, body: &[u8]) -> std::io::Result<Answer> {
    let length = body.len();
    stream.write_all(format!("{head}\r\nHost: x\r\nContent-Length: {length}\r\n\r\n").as_bytes())?;
    // A server that has answered early may not read all of it.
    let _ = stream.write_all(body);
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if line.is_empty() {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    let status = line.split(' ').nth(1).unwrap().parse().unwrap();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.to_owned())),
            None => break,
        }
    }
    let length =
        headers.iter().find(|(name, _)| name == "content-length").map_or(0, |(_, value)| value.parse().unwrap());
    let mut body = Vec::new();
    if !head.starts_with("HEAD") {
        reader.take(length).read_to_end(&mut body)?;
    }
    Ok((status, headers, body))
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> &'a str {
    headers.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str())
}

#[test]
fn content_is_served_by_tag_digest_and_range() {
    let registry = FakeRegistry::start();
    let blob = registry.put_blob("app", *b"0123456789");
    let manifest = registry.put_manifest("app", "v1", "application/x-test", *b"{}");
    let get = |head: &str| request(registry.host(), head, b"").unwrap();
    for reference in ["v1", &manifest] {
        let (status, headers, body) = get(&format!("GET /v2/app/manifests/{reference} HTTP/1.1"));
        assert_eq!((status, body.as_slice()), (200, b"{}".as_slice()));
        assert_eq!(header(&headers, "content-type"), "application/x-test");
        assert_eq!(header(&headers, "docker-content-digest"), manifest);
    }
    let ranges = [
        ("bytes=3-5", 206, "345"),
        ("bytes=7-", 206, "789"),
        ("bytes=8-99", 206, "89"),
        ("lines=1-2", 200, "0123456789"),
    ];
    for (range, status, expected) in ranges {
        let (got, _, body) = get(&format!("GET /v2/app/blobs/{blob} HTTP/1.1\r\nRange: {range}"));
        assert_eq!((got, String::from_utf8(body).unwrap().as_str()), (status, expected), "{range}");
    }
    assert_eq!(get(&format!("GET /v2/app/blobs/{blob} HTTP/1.1\r\nRange: bytes=10-")).0, 416);
    assert_eq!(get("GET /v2/app/manifests/v2 HTTP/1.1").0, 404);
    assert_eq!(get("GET /v2/app/tags/list HTTP/1.1").2, br#"{"name":"app","tags":["v1"]}"#);
    let recorded = registry.requests_of("GET", "/blobs/");
    assert_eq!(recorded[0].header("RANGE"), Some("bytes=3-5"));
    assert_eq!(recorded[0].status, 206);
}

#[test]
fn a_blob_is_uploaded_in_chunks_and_verified() {
    let registry = FakeRegistry::start();
    let digest = format!("sha256:{}", sha256(b"hello world"));
    let (status, headers, _) = request(registry.host(), "POST /v2/app/blobs/uploads/ HTTP/1.1", b"").unwrap();
    assert_eq!(status, 202);
    let location = header(&headers, "location").to_owned();
    let patch = |range: &str, body: &[u8]| {
        let head = format!("PATCH {location} HTTP/1.1\r\nContent-Range: {range}");
        let (status, headers, _) = request(registry.host(), &head, body).unwrap();
        (status, header(&headers, "range").to_owned())
    };
    assert_eq!(patch("0-4", b"hello"), (202, "0-4".to_owned()));
    assert_eq!(patch("4-9", b"o worl"), (416, "0-4".to_owned()), "a chunk that does not follow");
    let (status, headers, _) = request(registry.host(), &format!("GET {location} HTTP/1.1"), b"").unwrap();
    assert_eq!((status, header(&headers, "range")), (204, "0-4"));
    let put = format!("PUT {location}&digest={digest} HTTP/1.1");
    assert_eq!(request(registry.host(), &put, b" world").unwrap().0, 201);
    assert_eq!(registry.blob("app", &digest).unwrap(), b"hello world");
    let mount = format!("POST /v2/other/blobs/uploads/?mount={digest}&from=app HTTP/1.1");
    assert_eq!(request(registry.host(), &mount, b"").unwrap().0, 201);
    let wrong = format!("POST /v2/app/blobs/uploads/?digest={digest} HTTP/1.1");
    assert_eq!(request(registry.host(), &wrong, b"another").unwrap().0, 400);
}

#[test]
fn tokens_are_bound_to_a_scope_and_can_be_revoked() {
    let registry = FakeRegistry::start();
    let blob = registry.put_blob("app", *b"x");
    registry.require_token("tester", "secret", TokenOptions::default());
    let get = |repository: &str, token: &str| {
        let head = format!("GET /v2/{repository}/blobs/{blob} HTTP/1.1\r\nAuthorization: Bearer {token}");
        request(registry.host(), &head, b"").unwrap()
    };
    let (status, headers, _) = get("app", "none");
    let challenge = header(&headers, "www-authenticate");
    assert_eq!(status, 401);
    assert!(challenge.contains("scope=\"repository:app:pull\",error=\"invalid_token\""), "{challenge}");
    let token = |user: &str| {
        let basic = STANDARD.encode(user);
        let head = format!("GET /token?scope=repository:app:pull HTTP/1.1\r\nAuthorization: Basic {basic}");
        let (status, _, body) = request(registry.host(), &head, b"").unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        (status, body["token"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(token("tester:wrong").0, 401);
    let (status, token) = token("tester:secret");
    assert_eq!(status, 200);
    assert_eq!(get("app", &token).0, 200);
    assert_eq!(get("other", &token).0, 401);
    registry.revoke_tokens();
    assert_eq!(get("app", &token).0, 401);
    assert_eq!(registry.leaks(&["secret"]).len(), registry.requests().len());
}

#[test]
fn replies_are_cut_queued_and_bent() {
    let registry = FakeRegistry::start();
    let blob = registry.put_blob("app", vec![7; 1000]);
    let get = || request(registry.host(), &format!("GET /v2/app/blobs/{blob} HTTP/1.1"), b"");
    registry.queue("GET", "/blobs/", [Reply::status(500), Reply::close(), Reply::ok("x/y", *b"ab").repeated(9)]);
    assert_eq!(get().unwrap().0, 500);
    assert!(get().is_err());
    assert_eq!(get().unwrap().2, b"ababababa");
    assert_eq!(get().unwrap().2.len(), 1000);
    registry.bend(|request, reply| if request.is("GET", "/blobs/") { reply.cut_after(100) } else { reply });
    assert_eq!(get().unwrap().2.len(), 100);
    registry.bend(|_, reply| reply.reset_after(100));
    assert_eq!(get().unwrap_err().kind(), ErrorKind::ConnectionReset);
    registry.behave();
    registry.on_head(|request| (request.method == "PUT").then(|| Reply::status(413).early()));
    registry.on_head(|request| (request.method == "PATCH").then(|| Reply::cut_upload(10)));
    let body = vec![0; 1 << 20];
    assert_eq!(request(registry.host(), "PUT /v2/app/manifests/x HTTP/1.1", &body).unwrap().0, 413);
    assert!(request(registry.host(), "PATCH /v2/app/blobs/uploads/x HTTP/1.1", &body).is_err());
    registry.on(|_| Some(Reply::ok("x/y", *b"abc").stall_after(1)));
    let mut stream = TcpStream::connect(registry.host()).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    registry.wait_until_stalled(1);
    // And the end of the registry ends the silence.
    drop(registry);
}

#[test]
fn tls_works_for_those_who_trust_the_authority() {
    let authority = Authority::new("test authority").unwrap();
    let trusting = || {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        Arc::new(builder.unwrap().with_root_certificates(roots).with_no_client_auth())
    };
    let cases = [
        (Flaw::None, true),
        (Flaw::Expired, false),
        (Flaw::NotYetValid, false),
        (Flaw::WrongHost, false),
        (Flaw::SelfSigned, false),
    ];
    for (flaw, works) in cases {
        let registry = FakeRegistry::start_tls(&authority.server(flaw).unwrap());
        let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
        let connection = rustls::ClientConnection::new(trusting(), name).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, TcpStream::connect(registry.host()).unwrap());
        let outcome = exchange(&mut stream, "GET /v2/ HTTP/1.1", b"");
        assert_eq!(outcome.is_ok_and(|(status, ..)| status == 200), works, "{flaw:?}");
    }
}

/// skopeo, which shares no code with us, can push to the real registry and read from it, and only with the password.
#[test]
fn skopeo_works_with_the_real_registry_in_every_configuration() {
    use std::process::Command;
    if !std::path::Path::new("/usr/bin/skopeo").exists() {
        eprintln!("skipped: skopeo is missing");
        return;
    }
    let Some(layout) = crate::available(crate::fixtures::busybox()) else { return };
    let authority = Authority::new("test authority").unwrap();
    let server = authority.server(Flaw::None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policy.json");
    std::fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
    authority.write(dir.path(), "ca").unwrap();
    std::fs::rename(dir.path().join("ca.pem"), dir.path().join("ca.crt")).unwrap();
    for access in [Access::Open, Access::Basic, Access::Token] {
        for certificate in [None, Some(&server)] {
            let Some(registry) = crate::available(RealRegistry::start(access, certificate)) else { return };
            let creds = format!("{REAL_USER}:{REAL_PASSWORD}");
            let target = format!("docker://{}", registry.reference("some/app", "v1"));
            let source = format!("oci:{}:latest", layout.display());
            let run = |args: &[&str]| {
                let mut command = Command::new("skopeo");
                command.arg(format!("--policy={}", policy.display())).args(args).env("HOME", dir.path());
                command.env_remove("REGISTRY_AUTH_FILE").env("XDG_RUNTIME_DIR", dir.path());
                crate::peers::output(&mut command)
            };
            let tls = format!("--dest-tls-verify={}", certificate.is_some());
            let certs = format!("--dest-cert-dir={}", dir.path().display());
            let creds_arg = format!("--dest-creds={creds}");
            let mut copy = vec!["copy", &tls, &certs];
            if access != Access::Open {
                assert!(run(&[&copy[..], &[&source, &target]].concat()).is_err(), "{access:?} without password");
                copy.push(&creds_arg);
            }
            run(&[&copy[..], &[&source, &target]].concat()).unwrap();
            let tls = format!("--tls-verify={}", certificate.is_some());
            let certs = format!("--cert-dir={}", dir.path().display());
            let seen = if access == Access::Open {
                run(&["inspect", &tls, &certs, &target])
            } else {
                run(&["inspect", &tls, &certs, "--creds", &creds, &target])
            };
            assert!(seen.unwrap().contains("PATH=/usr/local/sbin"), "{access:?}");
            assert_eq!(access == Access::Token, !registry.token_requests().is_empty());
        }
    }
}

/// skopeo finds the fake registry to be one: with every kind of door, it pushes there and reads back.
#[test]
fn skopeo_works_with_the_fake_registry() {
    if !std::path::Path::new("/usr/bin/skopeo").exists() {
        eprintln!("skipped: skopeo is missing");
        return;
    }
    let Some(layout) = crate::available(crate::fixtures::busybox()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let skopeo = |args: &[&str]| {
        let mut command = std::process::Command::new("skopeo");
        command.arg("--insecure-policy").args(args).env("HOME", dir.path()).env("XDG_RUNTIME_DIR", dir.path());
        crate::peers::output(command.env_remove("REGISTRY_AUTH_FILE"))
    };
    let doors: [fn(&FakeRegistry); 4] = [
        |_| {},
        |registry| registry.require_basic("tester", "secret"),
        |registry| registry.require_token("tester", "secret", TokenOptions::default()),
        |registry| {
            registry.absolute_locations(true);
            let options = TokenOptions { expires_in_seconds: Some(60), refuses_post: true, ..TokenOptions::default() };
            registry.require_token("tester", "secret", options);
        },
    ];
    for close in doors {
        let registry = FakeRegistry::start();
        close(&registry);
        let target = format!("docker://{}", registry.reference("some/app", "v1"));
        let other = format!("docker://{}", registry.reference("other/app", "v1"));
        let source = format!("oci:{}:latest", layout.display());
        skopeo(&["copy", "--dest-tls-verify=false", "--dest-creds=tester:secret", &source, &target]).unwrap();
        let both = ["--src-tls-verify=false", "--dest-tls-verify=false", "--src-creds=tester:secret"];
        skopeo(&[&["copy"], &both[..], &["--dest-creds=tester:secret", &target, &other]].concat()).unwrap();
        assert_eq!(registry.tag("some/app", "v1"), registry.tag("other/app", "v1"));
        assert_eq!(registry.blobs("some/app"), registry.blobs("other/app"));
        let seen = skopeo(&["inspect", "--tls-verify=false", "--creds=tester:secret", &other]).unwrap();
        assert!(seen.contains(&registry.tag("other/app", "v1").unwrap()), "{seen}");
    }
}
