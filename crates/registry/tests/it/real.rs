//! The same against a registry that others wrote.

use std::sync::Arc;

use build_engine_oci::{Descriptor, Digest, Reference, media_type};
use build_engine_registry::{Client, Credential, HostSettings, NoCredentials, Pushed, Settings};
use build_engine_testkit::certs::{Authority, Flaw};
use build_engine_testkit::registry::{Access, REAL_PASSWORD, REAL_USER, RealRegistry};

use crate::scene::{Known, content, layer, noise, read};

#[tokio::test]
async fn images_go_to_a_real_registry_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new("testkit").unwrap();
    let ca = authority.write(dir.path(), "ca").unwrap();
    let server = authority.server(Flaw::None).unwrap();
    for access in [Access::Open, Access::Basic, Access::Token] {
        for certificate in [None, Some(&server)] {
            let what = format!("{access:?}, TLS: {}", certificate.is_some());
            let Some(registry) = build_engine_testkit::available(RealRegistry::start(access, certificate)) else {
                return;
            };
            let own = HostSettings { ca: vec![ca.clone()], ..HostSettings::default() };
            let hosts = certificate.map(|_| (registry.host().to_owned(), own.clone())).into_iter();
            let token_host = registry.token_host().map(str::to_owned).filter(|_| certificate.is_some());
            let hosts = hosts.chain(token_host.map(|host| (host, own))).collect();
            let settings = Settings { hosts, ..Settings::default() };
            let credential = Credential::Basic { username: REAL_USER.into(), password: REAL_PASSWORD.into() };
            let client = Client::new(settings.clone(), Known::new(registry.host(), credential)).unwrap();
            let target: Reference = registry.reference("some/app", "v1").parse().unwrap();

            let bytes = noise(17 << 20);
            let blob = layer(&bytes);
            let push = |to: &Reference, others: Vec<Reference>| {
                let (client, to, blob, content) = (client.clone(), to.clone(), blob.clone(), content(&bytes));
                async move { client.push_blob(&to, &blob, &others, content, &|_| {}).await.unwrap() }
            };
            assert_eq!(push(&target, vec![]).await, Pushed::Uploaded, "{what}");
            assert_eq!(push(&target, vec![]).await, Pushed::Existed, "{what}");
            let other: Reference = registry.reference("other/app", "v1").parse().unwrap();
            assert_eq!(push(&other, vec![target.clone()]).await, Pushed::Mounted, "{what}");
            let empty = layer(b"");
            let pushed = client.push_blob(&target, &empty, &[], content(b""), &|_| {}).await.unwrap();
            assert_eq!(pushed, Pushed::Uploaded, "{what}");

            let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
            let config_blob = Descriptor::new(media_type::OCI_CONFIG, Digest::sha256(config), config.len() as u64);
            client.push_blob(&target, &config_blob, &[], content(config), &|_| {}).await.unwrap();
            let manifest = build_engine_oci::Manifest::new(config_blob.clone(), vec![blob.clone()]);
            let manifest = serde_json::to_vec(&manifest).unwrap();
            let document = Descriptor::new(media_type::OCI_MANIFEST, Digest::sha256(&manifest), manifest.len() as u64);
            assert_eq!(client.push_document(&target, &document, manifest.clone()).await.unwrap(), Pushed::Uploaded);
            assert_eq!(client.push_document(&target, &document, manifest.clone()).await.unwrap(), Pushed::Existed);

            assert_eq!(client.resolve(&target).await.unwrap(), document, "{what}");
            assert_eq!(client.document(&target, &document).await.unwrap(), manifest, "{what}");
            assert_eq!(client.document(&target, &config_blob).await.unwrap(), config, "{what}");
            assert!(read(&client, &target, &blob, 0).await.unwrap() == bytes, "{what}");
            assert!(read(&client, &target, &blob, 5).await.unwrap() == bytes[5..], "{what}");

            let nobody = Client::new(settings, Arc::new(NoCredentials)).unwrap();
            assert_eq!(nobody.resolve(&target).await.is_ok(), access == Access::Open, "{what}");
        }
    }
}
