//! Which blobs a content store of containerd has, as its content service tells.

use std::collections::BTreeSet;

use build_engine_oci::{Descriptor, Digest};
use prost::Message;

use super::grpc::{Client, Failure};

const LIST: &str = "containerd.services.content.v1.Content/List";

#[derive(Clone, PartialEq, Message)]
struct ListRequest {
    /// Blobs that fit any of them are listed.
    #[prost(string, repeated, tag = "1")]
    filters: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct ListResponse {
    #[prost(message, repeated, tag = "1")]
    info: Vec<Info>,
}

#[derive(Clone, PartialEq, Message)]
struct Info {
    #[prost(string, tag = "1")]
    digest: String,
    #[prost(int64, tag = "2")]
    size: i64,
}

/// Those of `blobs` that the content store has.
///
/// They are listed rather than asked for one by one: Docker logs an error for each blob that is asked for and not there.
pub(super) async fn existing(client: &Client, blobs: &[Descriptor]) -> Result<BTreeSet<Digest>, Failure> {
    if blobs.is_empty() {
        return Ok(BTreeSet::new());
    }
    let filters = blobs.iter().map(|blob| format!("digest==\"{}\"", blob.digest)).collect();
    let answers: Vec<ListResponse> = client.call(LIST, &ListRequest { filters }).await?;
    let listed: BTreeSet<(String, i64)> =
        answers.into_iter().flat_map(|answer| answer.info).map(|info| (info.digest, info.size)).collect();
    let is_listed = |blob: &&Descriptor| {
        i64::try_from(blob.size).is_ok_and(|size| listed.contains(&(blob.digest.to_string(), size)))
    };
    Ok(blobs.iter().filter(is_listed).map(|blob| blob.digest.clone()).collect())
}
