//! What a registry does by default: the OCI distribution-spec v1.1, over content in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::http::{Reply, Request};
use crate::sha256;

/// Blobs, manifests and tags by repository.
#[derive(Default)]
pub(super) struct Repository {
    pub(super) blobs: BTreeMap<String, Arc<Vec<u8>>>,
    /// Media type and bytes, by digest.
    pub(super) manifests: BTreeMap<String, (String, Arc<Vec<u8>>)>,
    pub(super) tags: BTreeMap<String, String>,
}

#[derive(Default)]
struct Upload {
    repository: String,
    bytes: Vec<u8>,
}

/// How the registry differs from the usual one, within what the spec allows or just outside.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Switches {
    pub(super) ignores_range: bool,
    pub(super) absolute_locations: bool,
    pub(super) refuses_mounts: bool,
    pub(super) loses_uploads: bool,
    pub(super) refuses_dangling: bool,
    pub(super) minimum_chunk: Option<u64>,
}

#[derive(Default)]
pub(super) struct Content {
    pub(super) repositories: BTreeMap<String, Repository>,
    uploads: BTreeMap<String, Upload>,
    upload_count: u64,
}

/// The content of a registry and its rules.
pub(super) struct Distribution {
    /// `http://127.0.0.1:PORT`.
    pub(super) origin: String,
    pub(super) content: Mutex<Content>,
    pub(super) switches: Mutex<Switches>,
}

/// What the path of a request means.
#[derive(Debug, PartialEq)]
pub(super) enum Resource<'a> {
    Base,
    Manifest {
        repository: &'a str,
        reference: &'a str,
    },
    Blob {
        repository: &'a str,
        digest: &'a str,
    },
    /// The id is empty for a new upload.
    Upload {
        repository: &'a str,
        id: &'a str,
    },
    Tags {
        repository: &'a str,
    },
    Referrers {
        repository: &'a str,
        digest: &'a str,
    },
}

impl<'a> Resource<'a> {
    pub(super) fn parse(path: &'a str) -> Option<Resource<'a>> {
        let rest = path.strip_prefix("/v2")?;
        if rest.is_empty() || rest == "/" {
            return Some(Resource::Base);
        }
        let rest = rest.strip_prefix('/')?;
        if let Some((repository, id)) = rest.rsplit_once("/blobs/uploads") {
            return Some(Resource::Upload { repository, id: id.trim_matches('/') });
        }
        if let Some((repository, digest)) = rest.rsplit_once("/blobs/") {
            return Some(Resource::Blob { repository, digest });
        }
        if let Some((repository, reference)) = rest.rsplit_once("/manifests/") {
            return Some(Resource::Manifest { repository, reference });
        }
        if let Some((repository, digest)) = rest.rsplit_once("/referrers/") {
            return Some(Resource::Referrers { repository, digest });
        }
        rest.strip_suffix("/tags/list").map(|repository| Resource::Tags { repository })
    }

    /// The repository, where there is one.
    pub(super) fn repository(&self) -> Option<&'a str> {
        match *self {
            Resource::Base => None,
            Resource::Manifest { repository, .. }
            | Resource::Blob { repository, .. }
            | Resource::Upload { repository, .. }
            | Resource::Tags { repository }
            | Resource::Referrers { repository, .. } => Some(repository),
        }
    }
}

impl Distribution {
    pub(super) fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn switches(&self) -> MutexGuard<'_, Switches> {
        self.switches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a request that may be made. `may_pull_from` tells whether a blob may be mounted from a repository.
    pub(super) fn answer(&self, request: &Request, may_pull_from: impl Fn(&str) -> bool) -> Reply {
        let method = request.method.as_str();
        let reply = match (method, Resource::parse(&request.path)) {
            ("GET" | "HEAD", Some(Resource::Base)) => Reply::ok("application/json", "{}"),
            ("GET" | "HEAD", Some(Resource::Manifest { repository, reference })) => {
                self.manifest(repository, reference)
            }
            ("PUT", Some(Resource::Manifest { repository, reference })) => {
                self.put_manifest(request, repository, reference)
            }
            ("GET" | "HEAD", Some(Resource::Blob { repository, digest })) => self.blob(request, repository, digest),
            ("GET" | "HEAD", Some(Resource::Tags { repository })) => self.tags(repository),
            ("GET" | "HEAD", Some(Resource::Referrers { repository, digest })) => self.referrers(repository, digest),
            ("POST", Some(Resource::Upload { repository, id: "" })) => {
                self.begin_upload(request, repository, may_pull_from)
            }
            (_, Some(Resource::Upload { repository, id })) if !id.is_empty() => self.upload(request, repository, id),
            (_, Some(_)) => Reply::error(405, "UNSUPPORTED", "the operation is unsupported"),
            (_, None) => Reply::error(404, "NOT_FOUND", "no such path"),
        };
        reply.header("Docker-Distribution-Api-Version", "registry/2.0")
    }

    fn manifest(&self, repository: &str, reference: &str) -> Reply {
        let content = self.content();
        let Some(repository) = content.repositories.get(repository) else { return unknown_name() };
        let digest = repository.tags.get(reference).map_or(reference, String::as_str);
        match repository.manifests.get(digest) {
            Some((media_type, bytes)) => Reply::ok(media_type, Vec::new())
                .shared_body(Arc::clone(bytes))
                .header("Docker-Content-Digest", digest)
                .header("ETag", &format!("\"{digest}\"")),
            None => Reply::error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
        }
    }

    fn put_manifest(&self, request: &Request, repository: &str, reference: &str) -> Reply {
        let Ok(document) = serde_json::from_slice::<Value>(&request.body) else {
            return Reply::error(400, "MANIFEST_INVALID", "manifest invalid");
        };
        let digest = format!("sha256:{}", sha256(&request.body));
        if reference.contains(':') && reference != digest {
            return Reply::error(400, "DIGEST_INVALID", "provided digest did not match uploaded content");
        }
        let refuses_dangling = self.switches().refuses_dangling;
        let mut content = self.content();
        let target = content.repositories.entry(repository.to_owned()).or_default();
        if refuses_dangling {
            let blobs = document["layers"].as_array().into_iter().flatten().chain(document.get("config"));
            let manifests = document["manifests"].as_array().into_iter().flatten();
            let named = |value: &Value| value["digest"].as_str().unwrap_or_default().to_owned();
            let missing = blobs.map(named).find(|digest| !target.blobs.contains_key(digest));
            if let Some(digest) = missing {
                return Reply::error(400, "MANIFEST_BLOB_UNKNOWN", &format!("blob unknown to registry: {digest}"));
            }
            if let Some(digest) = manifests.map(named).find(|digest| !target.manifests.contains_key(digest)) {
                return Reply::error(400, "MANIFEST_BLOB_UNKNOWN", &format!("manifest unknown to registry: {digest}"));
            }
        }
        let media_type = request.header("content-type").unwrap_or_default().to_owned();
        target.manifests.insert(digest.clone(), (media_type, Arc::new(request.body.clone())));
        if !reference.contains(':') {
            target.tags.insert(reference.to_owned(), digest.clone());
        }
        let mut reply = Reply::status(201)
            .header("Location", &self.location(&format!("/v2/{repository}/manifests/{digest}")))
            .header("Docker-Content-Digest", &digest);
        if let Some(subject) = document["subject"]["digest"].as_str() {
            reply = reply.header("OCI-Subject", subject);
        }
        reply
    }

    fn blob(&self, request: &Request, repository: &str, digest: &str) -> Reply {
        let found = self.content().repositories.get(repository).and_then(|found| found.blobs.get(digest).cloned());
        let Some(bytes) = found else { return Reply::error(404, "BLOB_UNKNOWN", "blob unknown to registry") };
        let reply = Reply::ok("application/octet-stream", Vec::new())
            .header("Docker-Content-Digest", digest)
            .header("ETag", &format!("\"{digest}\""));
        if self.switches().ignores_range {
            return reply.shared_body(bytes);
        }
        let reply = reply.header("Accept-Ranges", "bytes");
        let Some((first, last)) = request.header("range").and_then(|text| parse_range(text, bytes.len())) else {
            return reply.shared_body(bytes);
        };
        if first >= bytes.len() {
            return Reply::error(416, "RANGE_INVALID", "invalid range")
                .header("Content-Range", &format!("bytes */{}", bytes.len()));
        }
        let range = format!("bytes {first}-{last}/{}", bytes.len());
        reply.with_status(206).header("Content-Range", &range).body(&bytes[first..=last])
    }

    fn tags(&self, repository: &str) -> Reply {
        match self.content().repositories.get(repository) {
            Some(found) => {
                let tags: Vec<&String> = found.tags.keys().collect();
                Reply::ok("application/json", json!({ "name": repository, "tags": tags }).to_string())
            }
            None => unknown_name(),
        }
    }

    fn referrers(&self, repository: &str, digest: &str) -> Reply {
        let content = self.content();
        let manifests = content.repositories.get(repository).into_iter().flat_map(|found| &found.manifests);
        let referrers: Vec<Value> = manifests
            .filter_map(|(referrer, (media_type, bytes))| {
                let document: Value = serde_json::from_slice(bytes).ok()?;
                (document["subject"]["digest"] == digest).then(|| {
                    let kind = document.get("artifactType").unwrap_or(&document["config"]["mediaType"]).clone();
                    json!({
                        "mediaType": media_type, "digest": referrer, "size": bytes.len(), "artifactType": kind,
                        "annotations": document["annotations"],
                    })
                })
            })
            .collect();
        let media_type = "application/vnd.oci.image.index.v1+json";
        let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": referrers });
        Reply::ok(media_type, index.to_string())
    }

    fn begin_upload(&self, request: &Request, repository: &str, may_pull_from: impl Fn(&str) -> bool) -> Reply {
        let switches = *self.switches();
        let mounted = request.parameter("mount").zip(request.parameter("from")).and_then(|(digest, from)| {
            if switches.refuses_mounts || !may_pull_from(from) {
                return None;
            }
            let mut content = self.content();
            let bytes = content.repositories.get(from)?.blobs.get(digest).cloned()?;
            let target = content.repositories.entry(repository.to_owned()).or_default();
            target.blobs.insert(digest.to_owned(), bytes);
            Some(self.created(repository, digest))
        });
        if let Some(reply) = mounted {
            return reply;
        }
        if let Some(digest) = request.parameter("digest") {
            return self.finish(repository, digest, request.body.clone());
        }
        let id = {
            let mut content = self.content();
            content.upload_count += 1;
            let id = format!("upload-{}", content.upload_count);
            content.uploads.insert(id.clone(), Upload { repository: repository.to_owned(), bytes: Vec::new() });
            id
        };
        let reply = self.progress(202, repository, &id, 0);
        match switches.minimum_chunk {
            Some(bytes) => reply.header("OCI-Chunk-Min-Length", &bytes.to_string()),
            None => reply,
        }
    }

    fn upload(&self, request: &Request, repository: &str, id: &str) -> Reply {
        let mut content = self.content();
        let unknown = || Reply::error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry");
        let Some(upload) = content.uploads.get_mut(id) else { return unknown() };
        if upload.repository != repository {
            return unknown();
        }
        let length = upload.bytes.len();
        match request.method.as_str() {
            "GET" => self.progress(204, repository, id, length),
            "DELETE" => {
                content.uploads.remove(id);
                Reply::status(204)
            }
            "PATCH" | "PUT" => {
                if let Some(range) = request.header("content-range") {
                    let first = range.trim_start_matches("bytes ").split('-').next().and_then(|text| text.parse().ok());
                    if first != Some(length) {
                        return self.progress(416, repository, id, length);
                    }
                }
                upload.bytes.extend_from_slice(&request.body);
                if request.method == "PATCH" {
                    let length = upload.bytes.len();
                    return self.progress(202, repository, id, length);
                }
                let Some(digest) = request.parameter("digest") else {
                    return Reply::error(400, "DIGEST_INVALID", "no digest");
                };
                let bytes = std::mem::take(&mut upload.bytes);
                content.uploads.remove(id);
                drop(content);
                self.finish(repository, digest, bytes)
            }
            _ => Reply::error(405, "UNSUPPORTED", "the operation is unsupported"),
        }
    }

    fn progress(&self, status: u16, repository: &str, id: &str, length: usize) -> Reply {
        // The query is the server's own: clients add to it.
        let location = self.location(&format!("/v2/{repository}/blobs/uploads/{id}?_state={length}"));
        Reply::status(status)
            .header("Location", &location)
            .header("Range", &format!("0-{}", length.saturating_sub(1)))
            .header("Docker-Upload-UUID", id)
    }

    fn finish(&self, repository: &str, digest: &str, bytes: Vec<u8>) -> Reply {
        if format!("sha256:{}", sha256(&bytes)) != digest {
            return Reply::error(400, "DIGEST_INVALID", "provided digest did not match uploaded content");
        }
        if !self.switches().loses_uploads {
            let mut content = self.content();
            let target = content.repositories.entry(repository.to_owned()).or_default();
            target.blobs.insert(digest.to_owned(), Arc::new(bytes));
        }
        self.created(repository, digest)
    }

    fn created(&self, repository: &str, digest: &str) -> Reply {
        Reply::status(201)
            .header("Location", &self.location(&format!("/v2/{repository}/blobs/{digest}")))
            .header("Docker-Content-Digest", digest)
    }

    fn location(&self, path: &str) -> String {
        if self.switches().absolute_locations { format!("{}{path}", self.origin) } else { path.to_owned() }
    }
}

/// The first and the last byte that `bytes=…` asks of a body of `length`; `None` for what is not understood, which is
/// then ignored as RFC 9110 wants.
fn parse_range(text: &str, length: usize) -> Option<(usize, usize)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let first = first.parse().ok()?;
    let last = if last.is_empty() { usize::MAX } else { last.parse().ok()? };
    Some((first, last.min(length.saturating_sub(1))))
}

fn unknown_name() -> Reply {
    Reply::error(404, "NAME_UNKNOWN", "repository name not known to registry")
}
