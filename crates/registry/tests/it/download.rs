//! Files that are no part of a registry.

use build_engine_registry::{Download, DownloadRequest, Error, Kind};
use build_engine_testkit::registry::{FakeRegistry, Reply};

use crate::scene::{client, story};

fn request(url: &str) -> DownloadRequest {
    DownloadRequest { url: url.to_owned(), ..DownloadRequest::default() }
}

async fn open(request: &DownloadRequest) -> Result<Download, Error> {
    client().downloads().open(request).await
}

async fn text(mut download: Download) -> String {
    let mut all = Vec::new();
    while let Some(bytes) = download.chunk().await.unwrap() {
        all.extend_from_slice(&bytes);
    }
    String::from_utf8(all).unwrap()
}

/// F1-103, F1-104, R06.
#[tokio::test]
async fn redirects_are_followed_without_credentials() {
    let (near, far) = (FakeRegistry::start(), FakeRegistry::start());
    let target = format!("{}/f", far.origin());
    near.on(move |request| request.is("GET", "/away").then(|| Reply::redirect(302, &target)));
    near.on(|request| request.is("GET", "/here").then(|| Reply::redirect(307, "/away")));
    far.on(|request| request.is("GET", "/f").then(|| Reply::ok("text/plain", "content")));
    let asked = DownloadRequest {
        authorization: Some("Bearer hunter2\n".into()),
        ..request(&format!("{}/here", near.origin()))
    };
    assert_eq!(text(open(&asked).await.unwrap()).await, "content");
    let sent: Vec<_> = near.requests().iter().map(|it| it.header("authorization").map(str::to_owned)).collect();
    assert_eq!(sent, [Some("Bearer hunter2".to_owned()), Some("Bearer hunter2".to_owned())]);
    assert_eq!(far.requests()[0].header("authorization"), None);
}

#[tokio::test]
async fn a_known_version_is_not_sent_again_and_a_busy_server_is_asked_again() {
    let server = FakeRegistry::start();
    server.on(|request| {
        request.header("if-none-match").is_some_and(|tags| tags.contains("\"b\"")).then(|| Reply::status(304))
    });
    server.queue("GET", "/f", [Reply::status(503)]);
    let known =
        DownloadRequest { known: vec!["\"a\"".into(), "\"b\"".into()], ..request(&format!("{}/f", server.origin())) };
    assert_eq!(open(&known).await.unwrap().status(), 304);
}

/// R06: each with its reason, and which exit code it leads to.
#[tokio::test]
async fn what_is_refused_says_why() {
    let server = FakeRegistry::start();
    for (path, target) in [
        ("/file", "file:///etc/passwd"),
        ("/unix", "unix:/var/run/docker.sock"),
        ("/near", "http://169.254.169.254/"),
        ("/loop", "/loop"),
    ] {
        server.on(move |request| (request.path == path).then(|| Reply::redirect(302, target)));
    }
    for (path, kind, part) in [
        ("/file", Kind::Source, "neither http nor https"),
        ("/unix", Kind::Source, "neither http nor https"),
        ("/near", Kind::Denied, "link-local"),
        ("/loop", Kind::Source, "10 redirects"),
        ("/missing", Kind::Source, "404"),
    ] {
        let Err(error) = open(&request(&format!("{}{path}", server.origin()))).await else { panic!("{path} is given") };
        assert_eq!(error.kind(), kind, "{path}");
        assert!(story(&error).contains(part), "{path}: {}", story(&error));
    }
    for url in ["ftp://h/", "http://", "nothing", "file:///etc/passwd"] {
        assert_eq!(open(&request(url)).await.err().map(|error| error.kind()), Some(Kind::Input), "{url}");
    }
}
