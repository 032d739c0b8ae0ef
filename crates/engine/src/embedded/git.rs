//! Git repositories as sources: `ADD git@…`, contexts that are repositories.
//!
//! The worker knows what is wanted and keeps it; git itself runs in the face ([`super::git_commands`]). What a reference
//! stands for is asked once per build, when the cache key of a source is wanted; the key is the commit and what is taken of
//! it, as in BuildKit (`source/git`), so a known commit is never fetched. The face checks out into the directory of a layer
//! that is being made; nothing is copied. From then on the tree is a stranger's: it is worked on by descriptor.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use build_engine_graph::SourceOp;
use build_engine_oci::Digest;
use build_engine_rootfs::{Kind, Time, Tree, clean};
use build_engine_solver::KeyPart;
use build_engine_store::{ActiveLayer, CommitInfo, Lease, NewRecord, Snapshot};
use tokio::sync::OnceCell;

use super::face::Caller;
use super::frame::Wanted;
use super::git_commands::{CheckedOut, Checkout, Remote, Resolved, is_commit};
use super::http::refused;
use super::ops::{Parts, StepError, internal};
use super::remote::on_disk;
use crate::{ExitKind, Report};

/// The repositories of one build.
pub(super) struct Git {
    parts: Arc<Parts>,
    lease: Arc<Lease>,
    resolved: Mutex<HashMap<String, Arc<OnceCell<Resolved>>>>,
    /// Trees, and when their commits were made.
    trees: Mutex<HashMap<String, Tried>>,
}

/// A checkout that is done once.
type Tried = Arc<OnceCell<(Snapshot, i64)>>;

/// What a source vertex asks for.
struct Wish {
    remote: Remote,
    reference: String,
    subdir: String,
    checksum: Option<String>,
    keep_git_dir: bool,
    submodules: bool,
    commit_times: bool,
    fetch_by_commit: bool,
}

/// Whether `identifier` is one of this module's.
pub(super) fn is_git(identifier: &str) -> bool {
    identifier.starts_with("git://")
}

impl Git {
    pub(super) fn new(parts: Arc<Parts>, lease: Arc<Lease>) -> Self {
        Self { parts, lease, resolved: Mutex::default(), trees: Mutex::default() }
    }

    /// What the cache key of a source is made of.
    pub(super) async fn key(&self, caller: &Caller, source: &SourceOp) -> Result<Vec<KeyPart>, StepError> {
        let wish = Wish::of(source)?;
        let resolved = self.resolve(caller, &wish).await?;
        // Without the repository, a tag is no more than its commit.
        let commit = resolved.commit.as_ref().filter(|_| !wish.keep_git_dir).unwrap_or(&resolved.object);
        let mut parts = vec![KeyPart::new("commit", commit)];
        if wish.keep_git_dir {
            parts.push(KeyPart::new(".git", &resolved.reference));
        }
        for (name, value, given) in [
            ("folder", wish.subdir.as_str(), !wish.subdir.is_empty()),
            ("submodules", "left out", !wish.submodules),
            ("time", "of the commit", wish.commit_times),
        ] {
            if given {
                parts.push(KeyPart::new(name, value));
            }
        }
        Ok(parts)
    }

    async fn resolve(&self, caller: &Caller, wish: &Wish) -> Result<Resolved, StepError> {
        let resolved = if is_commit(&wish.reference) {
            let object = wish.reference.to_ascii_lowercase();
            Resolved { reference: object.clone(), object, commit: None }
        } else if wish.fetch_by_commit {
            let Some(commit) = wish.checksum.as_ref().filter(|checksum| is_commit(checksum)) else {
                let message = "`fetch-by-commit` needs a whole commit as `checksum`";
                return Err(StepError::new(ExitKind::Input, Report::new("git", message)));
            };
            Resolved { reference: commit.clone(), object: commit.clone(), commit: None }
        } else {
            let key = format!("{}#{}", wish.remote.url, wish.reference);
            let cell = Arc::clone(self.resolved.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default());
            let ask = || async {
                let wanted = Wanted::GitResolve { remote: wish.remote.clone(), reference: wish.reference.clone() };
                caller.ask(wanted).await.map_err(refused)
            };
            cell.get_or_try_init(ask).await.cloned()?
        };
        if let Some(checksum) = &wish.checksum {
            let wanted = checksum.to_ascii_lowercase();
            let is = |object: &String| object.starts_with(&wanted);
            if !is(&resolved.object) && !resolved.commit.as_ref().is_some_and(is) {
                let found = resolved.commit.as_ref().unwrap_or(&resolved.object);
                let shown = build_engine_registry::shown(&wish.remote.url);
                let message = format!("`{shown}` is at the commit {found}, not {checksum}");
                return Err(StepError::new(ExitKind::Integrity, Report::new("checksum", message)));
            }
        }
        Ok(resolved)
    }

    /// When the commit of a source was made, in seconds since 1970.
    pub(super) async fn time(&self, caller: &Caller, source: &SourceOp) -> Result<i64, StepError> {
        let resolved = self.resolve(caller, &Wish::of(source)?).await?;
        let (store, key) = (self.parts.store.clone(), time_key(&resolved));
        let known = on_disk(move || {
            let known = store.record(&key).map_err(|error| StepError::store("cannot look for a commit", &error))?;
            Ok(known.and_then(|record| record.outputs.first()?.parse().ok()))
        });
        match known.await? {
            Some(time) => Ok(time),
            None => Ok(self.tree_and_time(caller, source).await?.1),
        }
    }

    /// The tree of a source.
    pub(super) async fn tree(&self, caller: &Caller, source: &SourceOp) -> Result<Snapshot, StepError> {
        Ok(self.tree_and_time(caller, source).await?.0)
    }

    async fn tree_and_time(&self, caller: &Caller, source: &SourceOp) -> Result<(Snapshot, i64), StepError> {
        let key = format!("{} {:?}", source.identifier, source.attrs);
        let cell = Arc::clone(self.trees.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default());
        cell.get_or_try_init(|| self.check_out(caller, source)).await.cloned()
    }

    async fn check_out(&self, caller: &Caller, source: &SourceOp) -> Result<(Snapshot, i64), StepError> {
        let wish = Wish::of(source)?;
        let resolved = self.resolve(caller, &wish).await?;
        let store = self.parts.store.clone();
        let (whole, checked) = (wish.subdir.is_empty(), resolved.clone());
        // The repository of what is only a part cannot be kept in it, as in BuildKit.
        let kept = wish.keep_git_dir && whole;
        let (active, into, repository) = on_disk(move || {
            let failed = |error| StepError::store("cannot prepare a layer for a repository", &error);
            let active = store.active_layer(&Snapshot::scratch()).map_err(failed)?;
            let into = if whole { active.dir() } else { active.new_work_dir().map_err(failed)? };
            let repository = if kept { None } else { Some(active.new_work_dir().map_err(failed)?) };
            Ok((active, into, repository))
        })
        .await?;
        let checkout = Checkout {
            remote: wish.remote.clone(),
            resolved: resolved.clone(),
            into: into.clone(),
            repository,
            submodules: wish.submodules,
        };
        let found: CheckedOut = caller.ask(Wanted::GitCheckout { checkout }).await.map_err(refused)?;
        let (store, lease, time) = (self.parts.store.clone(), Arc::clone(&self.lease), found.time);
        let time_key = time_key(&checked);
        let shown = format!("git snapshot for {}", build_engine_registry::shown(&wish.remote.url));
        let snapshot = on_disk(move || {
            let tree = active.tree().map_err(|error| StepError::store("cannot open a layer", &error))?;
            if !whole {
                take_folder(&into, &tree, &wish.subdir)?;
            }
            let files = Files { time: wish.commit_times.then_some(time), drop_links: !kept };
            files.settle(&tree, 0).map_err(|error| tree_error(&error))?;
            let snapshot = commit(&store, active, shown, files.time.map(at))?;
            lease.hold(&snapshot).map_err(|error| StepError::store("cannot hold a repository's files", &error))?;
            let record = NewRecord {
                canonical: time_key.clone(),
                key: time_key,
                outputs: vec![time.to_string()],
                parts: serde_json::json!([["commit", found.commit]]),
                step: "time of a commit".into(),
            };
            if let Err(error) = store.save_records(&[record]) {
                // Without it the repository is fetched for its time again.
                tracing::warn!(%error, "the time of a commit cannot be remembered");
            }
            Ok(snapshot)
        })
        .await?;
        Ok((snapshot, time))
    }
}

fn at(seconds: i64) -> Time {
    Time { seconds, nanoseconds: 0 }
}

/// Under which the time of a commit is remembered.
fn time_key(resolved: &Resolved) -> String {
    Digest::sha256(format!("git time {}", resolved.object).as_bytes()).to_string()
}

fn commit(
    store: &build_engine_store::Store,
    active: ActiveLayer,
    description: String,
    root_time: Option<Time>,
) -> Result<Snapshot, StepError> {
    let layer = store
        .commit(active, &CommitInfo { description, root_time })
        .map_err(|error| StepError::store("cannot keep a repository's files", &error))?;
    Ok(Snapshot::new(vec![layer]))
}

/// Moves what is in a folder of a checkout to where the result is. Links on the way are not followed.
fn take_folder(from: &Path, into: &Tree, folder: &str) -> Result<(), StepError> {
    let all = Tree::open(from).map_err(|error| tree_error(&error))?;
    let invalid = |reason: &str| {
        let message = format!("the folder `{folder}` of the repository {reason}");
        StepError::new(ExitKind::Input, Report::new("git", message))
    };
    let mut path = std::path::PathBuf::new();
    for part in clean(folder).components() {
        path.push(part);
        match all.find(&path, false).map_err(|error| tree_error(&error))? {
            None => return Err(invalid("does not exist")),
            Some(found) if !found.is_dir() => return Err(invalid("is no folder, or is reached through a link")),
            Some(_) => {}
        }
    }
    let part = all.subtree(&path).map_err(|error| tree_error(&error))?;
    for name in part.read_dir("/").map_err(|error| tree_error(&error))? {
        let from = part.place(&name).map_err(|error| tree_error(&error))?;
        let to = into.place(&name).map_err(|error| tree_error(&error))?;
        from.as_place()
            .rename(to.as_place())
            .map_err(|errno| tree_error(&build_engine_rootfs::Error::new("move", &name, errno)))?;
    }
    Ok(())
}

/// Gives files the modes that git knows, whatever the user's umask made of them, and times where that is asked for.
struct Files {
    time: Option<i64>,
    /// Whether `.git` files of submodules go: the repository that they point to is not kept.
    drop_links: bool,
}

impl Files {
    fn settle(&self, tree: &Tree, depth: usize) -> Result<(), build_engine_rootfs::Error> {
        let time = self.time.map(at);
        for name in tree.read_dir("/")? {
            let Some(found) = tree.find(&name, false)? else { continue };
            let mode = found.mode & 0o777;
            // Git's own files are read-only.
            let read = if mode & 0o200 == 0 { 0o444 } else { 0o644 };
            match found.kind {
                Kind::Directory => {
                    tree.set_mode(&name, 0o755)?;
                    self.settle(&tree.subtree(&name)?, depth + 1)?;
                }
                Kind::File if depth > 0 && self.drop_links && name == ".git" => {
                    tree.remove_all(&name)?;
                    continue;
                }
                Kind::File => tree.set_mode(&name, if mode & 0o100 == 0 { read } else { read | 0o111 })?,
                _ => {}
            }
            if let Some(time) = time {
                tree.set_times(&name, time)?;
            }
        }
        Ok(())
    }
}

impl Wish {
    fn of(source: &SourceOp) -> Result<Self, StepError> {
        let attr = |name: &str| source.attrs.get(name).filter(|value| !value.is_empty()).cloned();
        let is = |name: &str| attr(name).is_some_and(|value| value == "true");
        let url = attr("git.fullurl").ok_or_else(|| internal("a repository has no address"))?;
        // BuildKit takes an address without scheme for an https one.
        let has_scheme = url.contains("://") || url.split_once(':').is_some_and(|(user, _)| user.contains('@'));
        let url = if has_scheme { url } else { format!("https://{url}") };
        let fragment = source.identifier.split_once('#').map_or("", |(_, fragment)| fragment);
        let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
        let checksum = attr("git.checksum");
        if let Some(checksum) = checksum.as_ref().filter(|text| !text.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            let message = format!("the checksum `{}` is no commit", checksum.escape_debug());
            return Err(StepError::new(ExitKind::Input, Report::new("checksum", message)));
        }
        Ok(Self {
            remote: Remote {
                url,
                header_secret: attr("git.authheadersecret"),
                token_secret: attr("git.authtokensecret"),
            },
            reference: reference.to_owned(),
            subdir: clean(subdir).to_string_lossy().trim_matches('/').to_owned(),
            checksum,
            keep_git_dir: is("git.keepgitdir"),
            submodules: !is("git.skipsubmodules"),
            commit_times: attr("git.mtime").is_some_and(|value| value == "commit"),
            fetch_by_commit: is("git.fetchbycommit"),
        })
    }
}

fn tree_error(error: &build_engine_rootfs::Error) -> StepError {
    StepError::new(ExitKind::Io, Report::new("io", "cannot work on the files of a repository").caused_by(error))
}
