//! Build contexts that are fetched, before the Dockerfile is known: it is one of their files.
//!
//! A fetched context is a source like any other (`frontend::remote`): the solver fetches and unpacks it under the key that
//! the build will ask for again. Here it is asked for alone, to read the Dockerfile, to tell an archive from a single file,
//! and to find the time that `SOURCE_DATE_EPOCH=context` stands for.

use std::io::Read;
use std::sync::Arc;

use build_engine_dockerfile::MAX_SOURCE_BYTES;
use build_engine_frontend::{self as frontend, MainContext};
use build_engine_graph::{Edge, EventSink, SourceOp};
use build_engine_rootfs::Tree;
use build_engine_solver::{Job, JobOptions, Solver};
use build_engine_store::{Snapshot, Store};

use super::build::{failed_alone, frontend_request};
use super::git;
use super::http;
use super::ops::{BuildOps, Output, StepError, internal};
use super::remote::on_disk;
use crate::{ARCHIVE_HEAD, BuildError, BuildRequest, DockerfileSource, ExitKind, Report, is_archive};

/// The name of a file that is a context alone.
const CONTEXT_FILE: &str = "context";

/// What is needed to fetch something before the graph of the build exists.
pub(super) struct Early<'a> {
    pub(super) solver: &'a Solver<BuildOps>,
    pub(super) ops: Arc<BuildOps>,
    pub(super) sink: &'a Arc<dyn EventSink>,
}

impl Early<'_> {
    /// Finds out what the context of `request` is, and reads the Dockerfile where the request does not have it.
    pub(super) async fn open(&self, request: &mut BuildRequest) -> Result<MainContext, BuildError> {
        let mut main = MainContext::Local;
        let mut tree = None;
        if let Some(address) = &request.remote_context {
            main = MainContext::parse(address).ok_or_else(|| {
                let message = format!("`{}` is no address of a context", build_engine_registry::shown(address));
                BuildError::new(ExitKind::Input, Report::new("invalid-context", message))
            })?;
            if let MainContext::Archive(url) = &main {
                let source = main
                    .source(&frontend_request(request))
                    .map_err(|reason| invalid(&reason))?
                    .ok_or_else(|| internal("no source"))?;
                let fetched = self.ops.http.tree(&source).await?;
                let head = self.read(&fetched, &[CONTEXT_FILE], ARCHIVE_HEAD, true).await?;
                if !head.is_some_and(|(_, head)| is_archive(&head)) {
                    main = MainContext::File(url.clone());
                    tree = Some(fetched);
                }
            }
        }
        match request.dockerfile_source.clone() {
            DockerfileSource::Given => {}
            DockerfileSource::Url(url) => {
                let attrs = [("http.filename".to_owned(), "Dockerfile".to_owned())].into();
                let fetched = self.ops.http.tree(&SourceOp { identifier: url, attrs }).await?;
                self.take(request, &fetched, &["Dockerfile"]).await?;
            }
            DockerfileSource::Context(name) => {
                let tree = match tree {
                    Some(tree) => tree,
                    None => {
                        let edge = frontend::context_edge(&frontend_request(request), &main)
                            .map_err(|reason| invalid(&reason))?;
                        self.evaluate(&edge.ok_or_else(|| internal("a directory is no fetched context"))?).await?
                    }
                };
                let mut names = vec![name.clone()];
                if let Some(folder) = name.strip_suffix("Dockerfile").filter(|it| it.is_empty() || it.ends_with('/')) {
                    names.push(format!("{folder}dockerfile"));
                }
                if let MainContext::File(_) = main {
                    names = vec![CONTEXT_FILE.to_owned()];
                }
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                self.take(request, &tree, &names).await?;
            }
        }
        Ok(main)
    }

    /// When a source was made, in seconds since 1970.
    pub(super) async fn time(&self, source: &SourceOp) -> Result<Option<i64>, BuildError> {
        if git::is_git(&source.identifier) {
            return Ok(Some(self.ops.git.time(&self.ops.caller, source).await?));
        }
        if !http::is_http(&source.identifier) {
            return Ok(None);
        }
        // A digest alone says nothing about the time, so the file is fetched in any case.
        let tree = self.ops.http.tree(source).await?;
        if let Some(modified) = self.ops.http.resolve(source).await?.modified {
            return Ok(Some(modified));
        }
        let name = source.attrs.get("http.filename").cloned().unwrap_or_default();
        let head = self.read(&tree, &[&name], ARCHIVE_HEAD, true).await?;
        if !head.is_some_and(|(_, head)| is_archive(&head)) {
            return Ok(None);
        }
        let request = frontend::Request::new("", build_engine_oci::Platform::host());
        let Some(edge) = frontend::context_edge(&request, &MainContext::Archive(source.identifier.clone()))
            .map_err(|reason| invalid(&reason))?
        else {
            return Ok(None);
        };
        let unpacked = self.evaluate(&edge).await?;
        let store = self.ops.parts.store.clone();
        let newest = on_disk(move || {
            let mounted =
                store.mount(&unpacked, None).map_err(|error| StepError::store("cannot read a context", &error))?;
            newest_file(mounted.tree()).map_err(|error| tree_error(&error))
        });
        Ok(newest.await?)
    }

    async fn evaluate(&self, edge: &Edge) -> Result<Snapshot, BuildError> {
        let job: Job<BuildOps> = self.solver.job(Arc::clone(&self.ops), Arc::clone(self.sink), JobOptions::default());
        let refs = job.solve(std::slice::from_ref(edge));
        let lazy = refs.first().ok_or_else(|| internal("an edge has no result"))?;
        match lazy.evaluate().await.map_err(|failure| failed_alone(&failure))? {
            Output::Snapshot(snapshot) => Ok(snapshot),
            Output::Context(_) | Output::Lazy(_) => Err(internal("a fetched context is no tree").into()),
        }
    }

    /// Takes the Dockerfile from a tree.
    async fn take(&self, request: &mut BuildRequest, tree: &Snapshot, names: &[&str]) -> Result<(), BuildError> {
        let Some((name, bytes)) = self.read(tree, names, MAX_SOURCE_BYTES + 1, false).await? else {
            let message =
                format!("there is no Dockerfile `{}` in the context", names.first().copied().unwrap_or_default());
            let report = Report::new("no-dockerfile", message).hint("name it with `-f PATH`, from the context's root");
            return Err(BuildError::new(ExitKind::Input, report));
        };
        if bytes.len() > MAX_SOURCE_BYTES {
            let message = format!("`{name}` is larger than the {MAX_SOURCE_BYTES} bytes that a Dockerfile may have");
            return Err(BuildError::new(ExitKind::Limit, Report::new("limit", message)));
        }
        request.dockerfile = String::from_utf8(bytes).map_err(|error| {
            let message = format!("`{name}` is not UTF-8 text (at byte {})", error.utf8_error().valid_up_to());
            BuildError::new(ExitKind::Input, Report::new("not-text", message))
        })?;
        request.dockerfile_name = name;
        Ok(())
    }

    /// The beginning of the first of these files that is there; links are followed inside the tree.
    async fn read(
        &self,
        tree: &Snapshot,
        names: &[&str],
        limit: usize,
        only_head: bool,
    ) -> Result<Option<(String, Vec<u8>)>, StepError> {
        let (store, tree): (Store, Snapshot) = (self.ops.parts.store.clone(), tree.clone());
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        on_disk(move || {
            let mounted =
                store.mount(&tree, None).map_err(|error| StepError::store("cannot read a context", &error))?;
            for name in names {
                let found = mounted.tree().find(&name, true).map_err(|error| tree_error(&error))?;
                if !found.is_some_and(|found| found.is_file()) {
                    continue;
                }
                let file = mounted.tree().open_file(&name).map_err(|error| tree_error(&error))?;
                let mut bytes = Vec::with_capacity(if only_head { limit } else { 0 });
                file.take(limit as u64).read_to_end(&mut bytes).map_err(|error| {
                    super::bundle::io_error(&format!("cannot read `{name}` of the context"), &error)
                })?;
                return Ok(Some((name, bytes)));
            }
            Ok(None)
        })
        .await
    }
}

/// When the newest regular file of a tree was changed, in seconds since 1970.
fn newest_file(tree: &Tree) -> Result<Option<i64>, build_engine_rootfs::Error> {
    let mut newest = None;
    for name in tree.read_dir("/")? {
        let Some(found) = tree.find(&name, false)? else { continue };
        let time = if found.is_dir() {
            newest_file(&tree.subtree(&name)?)?
        } else {
            found.is_file().then_some(found.mtime.seconds)
        };
        newest = newest.max(time);
    }
    Ok(newest)
}

/// The source that a question about a time names.
pub(super) fn source_of(identifier: &str, attrs: &std::collections::BTreeMap<String, String>) -> SourceOp {
    SourceOp { identifier: identifier.to_owned(), attrs: attrs.clone() }
}

fn invalid(reason: &str) -> BuildError {
    BuildError::new(ExitKind::Input, Report::new("invalid-context", format!("cannot use the context: {reason}")))
}

fn tree_error(error: &build_engine_rootfs::Error) -> StepError {
    StepError::new(ExitKind::Input, Report::new("context", "cannot read the context").caused_by(error))
}
