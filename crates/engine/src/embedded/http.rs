//! Files of the web as sources: `ADD https://…`, contexts that are fetched, and archives from standard input.
//!
//! What a URL stands for is found out when its cache key is asked for, once per build. The key is made of the content,
//! the name and the time of the file, as in BuildKit (`source/http`): the same file under another address is the same
//! result, and what an address has now is asked in every build. The store remembers, as records, which content belonged
//! to which entity tag; while the server says that the tag is the current one, nothing is fetched.
//!
//! Which addresses are spoken to is [`build_engine_registry::Downloads`]'s business. Secrets are asked of the face when
//! a request is made, and go into its headers only.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use build_engine_graph::SourceOp;
use build_engine_oci::{Algorithm, Digest, Hasher};
use build_engine_registry::{self as registry, Download, DownloadRequest, Downloads};
use build_engine_rootfs::Time;
use build_engine_solver::KeyPart;
use build_engine_store::{ActiveLayer, CommitInfo, Lease, NewRecord, Record, Snapshot, Store};
use flate2::write::MultiGzDecoder;
use tokio::sync::{OnceCell, mpsc};

use super::face::Caller;
use super::frame::Wanted;
use super::ops::{Parts, StepError, internal};
use super::remote::{on_disk, registry_error};
use crate::{ExitKind, Report, UPLOAD};

/// Largest file that is fetched; as much as a layer may hold.
const MAX_FILE_BYTES: u64 = 100 << 30;

/// How many versions of a file are remembered.
const VERSIONS: usize = 8;

/// Pieces of a file that may wait to be written.
const WAITING_PIECES: usize = 4;

/// The files of one build.
pub(super) struct Http {
    parts: Arc<Parts>,
    caller: Caller,
    lease: Arc<Lease>,
    downloads: Downloads,
    allow_private: bool,
    /// Files of this machine that stand for what the user sent, by name.
    uploads: BTreeMap<String, PathBuf>,
    files: Mutex<HashMap<Digest, Arc<OnceCell<Arc<FetchedFile>>>>>,
}

/// What a URL stands for in this build.
#[derive(Debug, Clone)]
pub(super) struct FetchedFile {
    pub(super) name: String,
    pub(super) digest: Digest,
    /// `Last-Modified`, in seconds since 1970.
    pub(super) modified: Option<i64>,
    /// A tree with the file in it; `None` where the digest was given and nothing was fetched yet.
    snapshot: Option<Snapshot>,
}

impl FetchedFile {
    /// What its cache key is made of.
    pub(super) fn key(&self) -> Vec<KeyPart> {
        let mut parts = vec![KeyPart::new("file", &self.name), KeyPart::new("content", self.digest.to_string())];
        parts.extend(self.modified.map(|modified| KeyPart::new("modified", modified.to_string())));
        parts
    }
}

/// Whether `identifier` is one of this module's.
pub(super) fn is_http(identifier: &str) -> bool {
    identifier.starts_with("http://") || identifier.starts_with("https://")
}

impl Http {
    pub(super) fn new(
        parts: Arc<Parts>,
        caller: Caller,
        lease: Arc<Lease>,
        allow_private: bool,
        uploads: BTreeMap<String, PathBuf>,
    ) -> Self {
        let downloads = parts.remote.client().downloads();
        Self { parts, caller, lease, downloads, allow_private, uploads, files: Mutex::default() }
    }

    /// What a source stands for now. Asked twice, the answer is the same.
    pub(super) async fn resolve(&self, source: &SourceOp) -> Result<Arc<FetchedFile>, StepError> {
        // With its checksum: what was found without one need not be what another source insists on.
        let key = Digest::sha256(format!("{} {:?}", address_key(source), source.attrs.get("http.checksum")).as_bytes());
        let cell = Arc::clone(self.files.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default());
        cell.get_or_try_init(|| async { self.look(source).await.map(Arc::new) }).await.cloned()
    }

    /// The tree with the file of a source.
    pub(super) async fn tree(&self, source: &SourceOp) -> Result<Snapshot, StepError> {
        let file = self.resolve(source).await?;
        if let Some(snapshot) = &file.snapshot
            && self.hold(snapshot).await?
        {
            return Ok(snapshot.clone());
        }
        let fetched = self.fetch(source, Some(&file.digest), &[]).await?;
        fetched.and_then(|fetched| fetched.snapshot).ok_or_else(|| internal("a file was not fetched"))
    }

    async fn look(&self, source: &SourceOp) -> Result<FetchedFile, StepError> {
        if let Some(checksum) = source.attrs.get("http.checksum") {
            let digest: Digest = checksum.parse().map_err(|error| invalid_checksum(checksum, &error))?;
            if digest.algorithm() != Algorithm::Sha256 {
                return Err(invalid_checksum(checksum, &"only sha256 is supported"));
            }
            // As BuildKit: nobody is asked for what is known.
            return Ok(FetchedFile { name: file_name(source, None), digest, modified: None, snapshot: None });
        }
        let (store, step) = (self.parts.store.clone(), address_key(source).to_string());
        let known = on_disk(move || {
            let failed = |error| StepError::store("cannot look for an earlier version of a file", &error);
            let versions = store.records_of_step(&step, VERSIONS).map_err(failed)?;
            // Asked for again by key, which tells whether its layer is still there.
            versions
                .iter()
                .filter_map(|record| store.record(&record.key).transpose())
                .collect::<Result<Vec<_>, _>>()
                .map_err(failed)
        })
        .await?;
        let versions: Vec<Version> = known.iter().filter_map(Version::of_record).collect();
        if let Some(current) = self.ask_for_current(source, &versions).await? {
            return Ok(current);
        }
        match self.fetch(source, None, &versions).await? {
            Some(file) => Ok(file),
            // It said that a version is current which it was not asked about, or whose layer is gone by now.
            None => self.fetch(source, None, &[]).await?.ok_or_else(|| internal("a file was not fetched")),
        }
    }

    /// Asks which of the known versions is the current one. Some servers do not answer conditional requests for content
    /// as they should, so this asks for the head alone first, as BuildKit does.
    async fn ask_for_current(&self, source: &SourceOp, versions: &[Version]) -> Result<Option<FetchedFile>, StepError> {
        if versions.is_empty() || source.identifier.starts_with(UPLOAD) {
            return Ok(None);
        }
        let request = DownloadRequest { head: true, ..self.request(source, versions).await? };
        // That a HEAD fails says nothing about a GET.
        let Ok(answer) = self.downloads.open(&request).await else { return Ok(None) };
        self.current(source, &answer, versions).await
    }

    async fn current(
        &self,
        source: &SourceOp,
        answer: &Download,
        versions: &[Version],
    ) -> Result<Option<FetchedFile>, StepError> {
        let tag = match (answer.header("etag"), versions) {
            (Some(tag), _) => strong(tag).to_owned(),
            // Who is asked about one version need not say which.
            (None, [only]) if answer.status() == 304 => only.tag.clone(),
            (None, _) => return Ok(None),
        };
        let Some(version) = versions.iter().find(|version| version.tag == tag) else { return Ok(None) };
        if !self.hold(&version.snapshot).await? {
            return Ok(None);
        }
        self.parts.store.touch_record(&version.key);
        Ok(Some(FetchedFile {
            name: file_name(source, answer.header("content-disposition")),
            digest: version.digest.clone(),
            modified: version.modified,
            snapshot: Some(version.snapshot.clone()),
        }))
    }

    async fn hold(&self, snapshot: &Snapshot) -> Result<bool, StepError> {
        let (lease, snapshot) = (Arc::clone(&self.lease), snapshot.clone());
        on_disk(move || lease.hold(&snapshot).map_err(|error| StepError::store("cannot hold a file", &error))).await
    }

    async fn request(&self, source: &SourceOp, versions: &[Version]) -> Result<DownloadRequest, StepError> {
        Ok(DownloadRequest {
            url: source.identifier.clone(),
            head: false,
            known: versions.iter().map(|version| version.tag.clone()).collect(),
            authorization: self.authorization(&source.identifier).await?,
            allow_private: self.allow_private,
        })
    }

    /// The value of `Authorization` that the user gave for a host. The token counts where both are there, as in BuildKit.
    async fn authorization(&self, url: &str) -> Result<Option<String>, StepError> {
        let host = host_name(url);
        for (prefix, scheme) in [("HTTP_AUTH_TOKEN_", "Bearer "), ("HTTP_AUTH_HEADER_", "")] {
            let id = format!("{prefix}{host}");
            let found: Option<Vec<u8>> = self.caller.ask(Wanted::Secret { id: id.clone() }).await.map_err(refused)?;
            let Some(bytes) = found else { continue };
            let text = String::from_utf8(bytes).map_err(|_| {
                let message = format!("the secret `{id}` is not text");
                StepError::new(ExitKind::Input, Report::new("secret", message))
            })?;
            return Ok(Some(format!("{scheme}{text}")));
        }
        Ok(None)
    }

    /// Fetches a file into a layer of its own. `None` where one of `versions` is the current one but not there any more.
    async fn fetch(
        &self,
        source: &SourceOp,
        expected: Option<&Digest>,
        versions: &[Version],
    ) -> Result<Option<FetchedFile>, StepError> {
        if let Some(id) = source.identifier.strip_prefix(UPLOAD) {
            return self.take_upload(source, id).await.map(Some);
        }
        let mut patience = self.downloads.patience();
        let request = self.request(source, versions).await?;
        loop {
            let answer = self.downloads.open(&request).await.map_err(|error| failed(source, &error))?;
            if answer.status() == 304 {
                return self.current(source, &answer, versions).await;
            }
            match self.receive(source, expected, answer).await? {
                Ok(file) => return Ok(Some(file)),
                Err(broken) => patience.wait(broken).await.map_err(|error| failed(source, &error))?,
            }
        }
    }

    /// Writes the body of an answer. The inner error is that of a connection that broke: another try may do.
    async fn receive(
        &self,
        source: &SourceOp,
        expected: Option<&Digest>,
        mut answer: Download,
    ) -> Result<Result<FetchedFile, registry::Error>, StepError> {
        let name = file_name(source, answer.header("content-disposition"));
        let modified = answer.header("last-modified").and_then(seconds_of);
        let tag = answer.header("etag").map(|tag| strong(tag).to_owned());
        if answer.length().is_some_and(|length| length > MAX_FILE_BYTES) {
            return Err(too_large(source));
        }
        // Not asked for, but some servers keep files so; Go unpacks it for BuildKit, and no other encoding.
        let gzipped = answer.header("content-encoding").is_some_and(|it| it.trim().eq_ignore_ascii_case("gzip"));
        let (pieces, mut queue) = mpsc::channel::<bytes::Bytes>(WAITING_PIECES);
        let (store, file) = (self.parts.store.clone(), NewFile::of(source, &name, modified)?);
        let writer = tokio::task::spawn_blocking(move || {
            let mut writing = file.begin(&store, gzipped)?;
            while let Some(piece) = queue.blocking_recv() {
                writing.write(&piece)?;
            }
            Ok::<_, StepError>(writing)
        });
        let (mut size, mut broken) = (0, None);
        loop {
            match answer.chunk().await {
                Ok(Some(piece)) => {
                    size += piece.len() as u64;
                    if size > MAX_FILE_BYTES {
                        return Err(too_large(source));
                    }
                    if pieces.send(piece).await.is_err() {
                        // The writer says why.
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    broken = Some(error);
                    break;
                }
            }
        }
        drop(pieces);
        let writing = writer.await.map_err(|error| internal(format!("a blocking task ended: {error}")))??;
        if let Some(broken) = broken {
            return Ok(Err(broken));
        }
        let (store, lease) = (self.parts.store.clone(), Arc::clone(&self.lease));
        let (shown, expected) = (registry::shown(&source.identifier), expected.cloned());
        let step = address_key(source).to_string();
        let file = on_disk(move || {
            let (active, digest) = writing.finish()?;
            if let Some(expected) = expected.filter(|expected| *expected != digest) {
                return Err(mismatch(&shown, &expected, &digest));
            }
            let file = keep(&store, &lease, active, FetchedFile { name, digest, modified, snapshot: None }, &shown)?;
            if let Some(tag) = tag {
                remember(&store, step, tag, &file);
            }
            Ok(file)
        });
        file.await.map(Ok)
    }

    /// Takes what the user sent along with the build.
    async fn take_upload(&self, source: &SourceOp, id: &str) -> Result<FetchedFile, StepError> {
        let Some(path) = self.uploads.get(id).cloned() else {
            let message = format!("nothing was sent along as `{id}`");
            return Err(StepError::new(ExitKind::Input, Report::new("download", message)));
        };
        let name = file_name(source, None);
        let file = NewFile::of(source, &name, None)?;
        let (store, lease) = (self.parts.store.clone(), Arc::clone(&self.lease));
        on_disk(move || {
            let unreadable =
                |error: std::io::Error| super::bundle::io_error("cannot read the context that was sent", &error);
            let mut from = std::fs::File::open(&path).map_err(unreadable)?;
            let mut writing = file.begin(&store, false)?;
            let mut buffer = vec![0; 256 << 10];
            loop {
                match from.read(&mut buffer).map_err(unreadable)? {
                    0 => break,
                    count => writing.write(&buffer[..count])?,
                }
            }
            let (active, digest) = writing.finish()?;
            let file = FetchedFile { name, digest, modified: None, snapshot: None };
            keep(&store, &lease, active, file, "standard input")
        })
        .await
    }
}

/// A known version of a file.
struct Version {
    key: String,
    tag: String,
    digest: Digest,
    modified: Option<i64>,
    snapshot: Snapshot,
}

impl Version {
    fn of_record(record: &Record) -> Option<Self> {
        let parts: BTreeMap<String, String> =
            serde_json::from_value::<Vec<(String, String)>>(record.parts.clone()).ok()?.into_iter().collect();
        Some(Self {
            key: record.key.clone(),
            tag: parts.get("etag")?.clone(),
            digest: parts.get("content")?.parse().ok()?,
            modified: parts.get("modified").and_then(|text| text.parse().ok()),
            snapshot: record.outputs.first()?.parse().ok()?,
        })
    }
}

/// Notes which content belongs to an entity tag.
fn remember(store: &Store, step: String, tag: String, file: &FetchedFile) {
    let Some(snapshot) = &file.snapshot else { return };
    let key = Digest::sha256(format!("{step} {tag}").as_bytes()).to_string();
    let mut parts = vec![("etag", tag), ("content", file.digest.to_string())];
    parts.extend(file.modified.map(|modified| ("modified", modified.to_string())));
    let record = NewRecord {
        canonical: key.clone(),
        key,
        outputs: vec![snapshot.to_string()],
        parts: serde_json::json!(parts),
        step,
    };
    if let Err(error) = store.save_records(&[record]) {
        // Without it the file is fetched again.
        tracing::warn!(%error, "a version of a file cannot be remembered");
    }
}

fn keep(
    store: &Store,
    lease: &Lease,
    active: ActiveLayer,
    mut file: FetchedFile,
    shown: &str,
) -> Result<FetchedFile, StepError> {
    let failed = |error| StepError::store("cannot keep a file that was fetched", &error);
    let layer =
        store.commit(active, &CommitInfo { description: shown.to_owned(), ..CommitInfo::default() }).map_err(failed)?;
    let snapshot = Snapshot::new(vec![layer]);
    lease.hold(&snapshot).map_err(failed)?;
    file.snapshot = Some(snapshot);
    Ok(file)
}

/// A file that is to be written into a tree of its own.
struct NewFile {
    name: String,
    mode: u32,
    owner: (u32, u32),
    modified: i64,
}

impl NewFile {
    fn of(source: &SourceOp, name: &str, modified: Option<i64>) -> Result<Self, StepError> {
        let number = |attribute: &str, default: u32| match source.attrs.get(attribute) {
            None => Ok(default),
            Some(text) => {
                match text.strip_prefix("0o").or_else(|| text.strip_prefix('0').filter(|rest| !rest.is_empty())) {
                    Some(octal) => u32::from_str_radix(octal, 8),
                    None => text.parse(),
                }
                .map_err(|_| internal(format!("`{attribute}` of a source is no number")))
            }
        };
        Ok(Self {
            name: name.to_owned(),
            mode: number("http.perm", 0o600)?,
            owner: (number("http.uid", 0)?, number("http.gid", 0)?),
            // BuildKit's, where the server does not say.
            modified: modified.unwrap_or(0),
        })
    }

    /// Begins to write it; `gzipped` content is unpacked on the way.
    fn begin(self, store: &Store, gzipped: bool) -> Result<Writing, StepError> {
        let active = store
            .active_layer(&Snapshot::scratch())
            .map_err(|error| StepError::store("cannot prepare a layer for a file", &error))?;
        let tree = active.tree().map_err(|error| StepError::store("cannot open a layer for a file", &error))?;
        let file = tree.create_file(&self.name, self.mode).map_err(|error| tree_error(&error))?;
        let content = Content { file, hasher: Hasher::new(), room: MAX_FILE_BYTES };
        let body = if gzipped { Body::Gzip(Box::new(MultiGzDecoder::new(content))) } else { Body::Plain(content) };
        Ok(Writing { new: self, active, body })
    }
}

struct Writing {
    new: NewFile,
    active: ActiveLayer,
    body: Body,
}

/// What comes, as it comes.
enum Body {
    Plain(Content),
    Gzip(Box<MultiGzDecoder<Content>>),
}

/// What the file is to hold.
struct Content {
    file: std::fs::File,
    hasher: Hasher,
    /// How many more bytes it may have: a few that arrive can be many that are unpacked.
    room: u64,
}

impl Write for Content {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.room = self.room.checked_sub(bytes.len() as u64).ok_or(std::io::ErrorKind::FileTooLarge)?;
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

fn write_error(error: &std::io::Error) -> StepError {
    match error.kind() {
        std::io::ErrorKind::FileTooLarge => {
            let message = format!("a file that is fetched has more than {MAX_FILE_BYTES} bytes");
            StepError::new(ExitKind::Limit, Report::new("limit", message))
        }
        std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => {
            let message = "a file that is fetched is not the gzip data that the server says it is";
            StepError::new(ExitKind::Source, Report::new("download", message).caused_by(error))
        }
        _ => super::bundle::io_error("cannot write a file that is fetched", error),
    }
}

impl Writing {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StepError> {
        match &mut self.body {
            Body::Plain(content) => content.write_all(bytes),
            Body::Gzip(decoder) => decoder.write_all(bytes),
        }
        .map_err(|error| write_error(&error))
    }

    fn finish(self) -> Result<(ActiveLayer, Digest), StepError> {
        let Self { new, active, body } = self;
        let Content { file, hasher, .. } = match body {
            Body::Plain(content) => content,
            Body::Gzip(decoder) => decoder.finish().map_err(|error| write_error(&error))?,
        };
        drop(file);
        let tree = active.tree().map_err(|error| StepError::store("cannot open a layer for a file", &error))?;
        let change = || {
            if new.owner != (0, 0) {
                tree.set_owner(&new.name, new.owner.0, new.owner.1)?;
            }
            tree.set_mode(&new.name, new.mode)?;
            tree.set_times(&new.name, Time { seconds: new.modified, nanoseconds: 0 })
        };
        change().map_err(|error| tree_error(&error))?;
        Ok((active, hasher.finish()))
    }
}

fn tree_error(error: &build_engine_rootfs::Error) -> StepError {
    StepError::new(ExitKind::Io, Report::new("io", "cannot write a file that is fetched").caused_by(error))
}

/// Names an address, and how its file is to look: versions are remembered under it.
fn address_key(source: &SourceOp) -> Digest {
    let attrs: BTreeMap<_, _> = source.attrs.iter().filter(|(name, _)| *name != "http.checksum").collect();
    Digest::sha256(format!("http {} {attrs:?}", source.identifier).as_bytes())
}

/// The name of the file: what the Dockerfile says, else the server, else the address.
fn file_name(source: &SourceOp, disposition: Option<&str>) -> String {
    if let Some(name) = source.attrs.get("http.filename").filter(|name| !name.is_empty()) {
        return safe_name(name);
    }
    let given = disposition.and_then(|text| {
        text.split(';').skip(1).find_map(|parameter| {
            let (name, value) = parameter.trim().split_once('=')?;
            name.trim().eq_ignore_ascii_case("filename").then(|| value.trim().trim_matches('"').to_owned())
        })
    });
    if let Some(given) = given.filter(|given| !given.is_empty() && !given.ends_with('/')) {
        return safe_name(&given);
    }
    let rest = source.identifier.split_once("://").map_or("", |(_, rest)| rest);
    let path = rest.split(['?', '#']).next().unwrap_or_default().split_once('/').map_or("", |(_, path)| path);
    safe_name(path)
}

/// The last component of a path, where it can be the name of a file.
fn safe_name(path: &str) -> String {
    let name = path.trim().trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let odd = matches!(name, "" | "." | "..") || name.len() > 255 || name.chars().any(char::is_control);
    if odd { "download".to_owned() } else { name.to_owned() }
}

/// The host of an address, without user and port.
fn host_name(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let host = authority.rsplit('@').next().unwrap_or_default();
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    }
}

/// An entity tag without the mark that says that it is a weak one.
fn strong(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

/// A date of HTTP, in seconds since 1970. Source: RFC 9110, 5.6.7.
fn seconds_of(date: &str) -> Option<i64> {
    Some(jiff::fmt::rfc2822::parse(date).ok()?.timestamp().as_second())
}

/// What the face did not answer, or refused.
pub(super) fn refused(error: crate::BuildError) -> StepError {
    let report = error.reports.into_iter().next();
    StepError::new(error.kind, report.unwrap_or_else(|| Report::new("internal", "the face gave no reason")))
}

fn failed(source: &SourceOp, error: &registry::Error) -> StepError {
    let failure = registry_error(error);
    let inner = *failure.report;
    let mut report = Report::new(inner.rule, format!("cannot fetch `{}`", registry::shown(&source.identifier)));
    report.causes = std::iter::once(inner.message).chain(inner.causes).collect();
    report.hint = match error {
        registry::Error::Denied { .. } => {
            let host = host_name(&source.identifier);
            Some(format!("the secret `HTTP_AUTH_TOKEN_{host}` or `HTTP_AUTH_HEADER_{host}` says who you are"))
        }
        _ => inner.hint,
    };
    StepError::new(failure.kind, report)
}

fn mismatch(shown: &str, expected: &Digest, actual: &Digest) -> StepError {
    let message = format!("`{shown}` is {actual}, not {expected}");
    StepError::new(ExitKind::Integrity, Report::new("checksum", message).hint("nothing of it was kept"))
}

fn invalid_checksum(checksum: &str, reason: &dyn std::fmt::Display) -> StepError {
    StepError::new(ExitKind::Input, Report::new("checksum", format!("the checksum `{checksum}`: {reason}")))
}

fn too_large(source: &SourceOp) -> StepError {
    let message = format!("`{}` has more than {MAX_FILE_BYTES} bytes", registry::shown(&source.identifier));
    StepError::new(ExitKind::Limit, Report::new("limit", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(url: &str, name: &str) -> SourceOp {
        let attrs =
            if name.is_empty() { BTreeMap::new() } else { [("http.filename".to_owned(), name.to_owned())].into() };
        SourceOp { identifier: url.to_owned(), attrs }
    }

    /// F1-103, as BuildKit's `getFileName` and `SafeFileName` say.
    #[test]
    fn names_come_from_the_dockerfile_the_server_or_the_address() {
        for (url, name, disposition, expected) in [
            ("http://h/a/b.tar?x=/y", "", None, "b.tar"),
            ("http://h/a/b.tar", "context", Some("attachment; filename=c"), "context"),
            ("http://h/a/b.tar", "", Some("attachment; filename=\"c d\""), "c d"),
            ("http://h/a/b.tar", "", Some("attachment; filename=../../etc/passwd"), "passwd"),
            ("http://h/a/b.tar", "", Some("attachment; filename=dir/"), "b.tar"),
            ("http://h", "", None, "download"),
            ("http://h/", "", None, "download"),
            ("http://h/..", "", None, "download"),
            ("http://h/x", "a\nb", None, "download"),
        ] {
            assert_eq!(file_name(&source(url, name), disposition), expected, "{url} {name} {disposition:?}");
        }
    }

    #[test]
    fn secrets_are_named_after_the_host_alone() {
        for (url, expected) in [
            ("https://user:pw@example.com:8443/x@y", "example.com"),
            ("http://[::1]:80/x", "::1"),
            ("http://h?x=@y", "h"),
        ] {
            assert_eq!(host_name(url), expected);
        }
    }

    #[test]
    fn dates_are_those_of_http() {
        assert_eq!(seconds_of("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(seconds_of("yesterday"), None);
    }
}
