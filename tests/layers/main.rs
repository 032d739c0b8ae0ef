//! Layers that somebody made with bad intent: the cases L01 to L21, each an archive, applied by the real binary.
//!
//! A case is data: its name begins with its id, and says what must happen. Every case runs as root and as an ordinary
//! user, and those of [`names`] with a single uid too. What a link could lead to is a folder of canaries, whose names,
//! modes, owners, times and contents are the same afterwards. [`agree`] asks GNU tar, bsdtar and Python's tarfile about
//! the same archives, and about a few hundred more.
//!
//! `BUILD_ENGINE_FULL=1` runs the cases with millions of entries at their full size.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "what was scaled down or skipped is said")]

mod agree;
mod blobs;
mod headers;
mod limits;
mod mounts;
mod names;
mod special;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use build_engine_testkit::engine::{Engine, Run, Who};
use build_engine_testkit::image::{Kind, Tree};
use build_engine_testkit::{available, fixtures, sha256};
use serde_json::{Value, json};

/// No case takes longer, by far; what hangs is ended and fails.
const PATIENCE: Duration = Duration::from_secs(600);
/// A name that no case may make on the host.
const ESCAPED: &str = "build-engine-layers-escaped";

/// An image with layers, and what must come of it.
struct Case {
    name: String,
    layers: Vec<Vec<u8>>,
    expect: Expect,
}

enum Expect {
    /// It is applied, and the result has this.
    Tree(Vec<(String, Seen)>),
    /// It is refused as wrong (exit code 4), with these words.
    Refused(Vec<String>),
    /// It is refused as too much (exit code 5), with these words.
    Limit(Vec<String>),
    /// The result has this, or it is refused with these words: the file system decides.
    Either(Vec<(String, Seen)>, Vec<String>),
}

#[derive(Clone, Debug)]
enum Seen {
    /// A regular file with this content.
    File(Vec<u8>),
    Dir,
    /// A symbolic link to this.
    Link(String),
    /// What [`Kind`] says.
    Kind(Kind),
    /// Another name of this file.
    Same(&'static str),
    Absent,
    /// Mode, owner and group.
    Mode(u32, u64, u64),
    /// Seconds since 1970.
    Time(i64),
}

fn text(content: impl AsRef<[u8]>) -> Seen {
    Seen::File(content.as_ref().to_vec())
}

/// A case whose image must have `seen`.
fn applied(name: impl Into<String>, layers: Vec<Vec<u8>>, seen: &[(&str, Seen)]) -> Case {
    Case { name: name.into(), layers, expect: Expect::Tree(owned(seen)) }
}

fn owned(seen: &[(&str, Seen)]) -> Vec<(String, Seen)> {
    seen.iter().map(|(path, seen)| ((*path).to_owned(), seen.clone())).collect()
}

/// A case of one layer that is refused with the words `parts`.
fn refused(name: impl Into<String>, layer: Vec<u8>, parts: &[&str]) -> Case {
    let parts = parts.iter().map(|part| (*part).to_owned()).collect();
    Case { name: name.into(), layers: vec![layer], expect: Expect::Refused(parts) }
}

fn limited(name: impl Into<String>, layer: Vec<u8>, parts: &[&str]) -> Case {
    let parts = parts.iter().map(|part| (*part).to_owned()).collect();
    Case { name: name.into(), layers: vec![layer], expect: Expect::Limit(parts) }
}

/// Everything that is tested case by case, for canaries at `canary`.
fn all_cases(canary: &str) -> Vec<Case> {
    let mut cases = names::cases(canary);
    cases.extend(headers::cases());
    cases.extend(special::cases());
    cases
}

/// Whether cases run at their full size.
fn full() -> bool {
    std::env::var_os("BUILD_ENGINE_FULL").is_some()
}

/// A layer as an image names it.
struct Blob {
    bytes: Vec<u8>,
    media_type: &'static str,
    diff_id: String,
    digest: String,
    size: u64,
}

impl Blob {
    fn new(tar: &[u8]) -> Blob {
        Blob::compressed(tar.to_vec(), "application/vnd.oci.image.layer.v1.tar", sha256(tar))
    }

    /// A blob whose uncompressed content has the digest `diff_id`, which may be a lie.
    fn compressed(bytes: Vec<u8>, media_type: &'static str, diff_id: String) -> Blob {
        let (digest, size) = (sha256(&bytes), bytes.len() as u64);
        Blob { bytes, media_type, diff_id, digest, size }
    }
}

/// An engine, and a folder that no case may change.
struct Bench {
    engine: Engine,
    canary: PathBuf,
    before: BTreeMap<PathBuf, String>,
}

impl Bench {
    /// Returns `None`, after saying why, where `who` cannot be had.
    fn new(who: Who) -> Option<Bench> {
        let engine = available(Engine::new(who))?;
        engine.context("context", &[("Dockerfile", "FROM base\n")]).unwrap();
        let canary = engine.work().join("canary");
        fs::create_dir_all(canary.join("dir")).unwrap();
        fs::write(canary.join("file"), "canary").unwrap();
        fs::write(canary.join("dir/file"), "canary").unwrap();
        symlink("file", canary.join("link")).unwrap();
        engine.adopt(&canary).unwrap();
        let before = fingerprint(&canary);
        Some(Bench { engine, canary, before })
    }

    fn canary(&self) -> &str {
        self.canary.to_str().unwrap()
    }

    /// Writes an OCI layout `name`, and returns the build context's argument that makes it the base.
    fn layout(&self, name: &str, blobs: &[Blob]) -> String {
        self.layout_with(name, blobs, &json!({}))
    }

    fn layout_with(&self, name: &str, layers: &[Blob], config: &Value) -> String {
        let dir = self.engine.work().join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir).unwrap();
        }
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let descriptors: Vec<Value> = layers
            .iter()
            .map(|layer| {
                fs::write(blobs.join(&layer.digest), &layer.bytes).unwrap();
                json!({ "mediaType": layer.media_type, "digest": format!("sha256:{}", layer.digest), "size": layer.size })
            })
            .collect();
        let add = |document: &Value, media_type: &str| {
            let bytes = serde_json::to_vec(document).unwrap();
            let digest = sha256(&bytes);
            fs::write(blobs.join(&digest), &bytes).unwrap();
            json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() })
        };
        let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", layer.diff_id)).collect();
        let config = add(
            &json!({ "architecture": fixtures::architecture().unwrap(), "os": "linux", "config": config,
                     "rootfs": { "type": "layers", "diff_ids": diff_ids } }),
            "application/vnd.oci.image.config.v1+json",
        );
        let mut manifest = add(
            &json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config,
                     "layers": descriptors }),
            "application/vnd.oci.image.manifest.v1+json",
        );
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        fs::write(dir.join("index.json"), json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string()).unwrap();
        self.engine.adopt(&dir).unwrap();
        format!("--build-context=base=oci-layout://{}:latest", dir.display())
    }

    /// The command that builds the context `context` on the base `base`.
    fn build(&self, context: &str, base: &str, output: &str) -> Command {
        let context = self.engine.work().join(context);
        self.engine.command([
            "build".as_ref(),
            "--progress=plain".as_ref(),
            "--network=none".as_ref(),
            base.as_ref(),
            output.as_ref(),
            context.as_os_str(),
        ])
    }

    /// Makes a tar of the base, whose tree is `None` if the build failed.
    fn tree(&self, base: &str) -> (Run, Option<Tree>) {
        let out = self.engine.work().join("out.tar");
        let run = run_within(self.build("context", base, &format!("--output=type=tar,dest={}", out.display())));
        // Names that are not UTF-8 are beyond this reader.
        let tree = (run.code == Some(0)).then(|| Tree::from_tar(fs::File::open(&out).unwrap()).unwrap_or_default());
        (run, tree)
    }

    /// Runs a case; what is wrong with the outcome.
    fn check(&self, case: &Case) -> Result<(), String> {
        let blobs: Vec<Blob> = case.layers.iter().map(|layer| Blob::new(layer)).collect();
        let base = self.layout("case", &blobs);
        let began = Instant::now();
        let (run, tree) = self.tree(&base);
        let took = began.elapsed();
        self.harmless()?;
        // Other tests, and other work, keep the machine busy: this is about hanging.
        if took > Duration::from_secs(60) {
            return Err(format!("took {took:?}"));
        }
        match (&case.expect, tree) {
            (Expect::Tree(seen) | Expect::Either(seen, _), Some(tree)) => has(&tree, seen),
            (Expect::Refused(parts) | Expect::Either(_, parts), None) => {
                fails(&run, 4, parts)?;
                self.left_no_blob(&blobs)
            }
            (Expect::Limit(parts), None) => {
                fails(&run, 5, parts)?;
                self.left_no_blob(&blobs)
            }
            (_, Some(_)) => Err("was applied".to_owned()),
            (_, None) => Err(format!("failed with {:?}: {}", run.code, last_lines(&run.stderr))),
        }
    }

    /// Runs cases one after another; then the store is in order, and a base of the same name works.
    fn check_all(&self, cases: &[Case]) {
        let mut wrong = Vec::new();
        for case in cases {
            if let Err(why) = self.check(case) {
                wrong.push(format!("{}\n    {why}", case.name));
            }
        }
        assert!(wrong.is_empty(), "{} of {} cases went wrong:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
        self.works();
    }

    /// The store is in order, and a good base of the name that the bad ones had is built on.
    fn works(&self) {
        let run = self.engine.run(["cache", "verify"]).unwrap();
        assert_eq!(run.code, Some(0), "cache verify: {}{}", run.stdout, run.stderr);
        use build_engine_testkit::archive::{Member, archive};
        let base = self.layout("case", &[Blob::new(&archive([&Member::file("good", "good")]))]);
        let (run, tree) = self.tree(&base);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        has(&tree.unwrap(), &[("/good".to_owned(), text("good"))]).unwrap();
    }

    /// Nothing outside was touched, and nothing temporary is left.
    fn harmless(&self) -> Result<(), String> {
        let now = fingerprint(&self.canary);
        if now != self.before {
            return Err(format!("THE CANARY CHANGED: {:?} became {now:?}", self.before));
        }
        let work = self.engine.work();
        for dir in ["/", "/etc", "/tmp", "/var", "/root"].map(Path::new).into_iter().chain([work.as_path()]) {
            if fs::symlink_metadata(dir.join(ESCAPED)).is_ok() {
                return Err(format!("AN ENTRY ESCAPED to `{}`", dir.display()));
            }
        }
        let left = fs::read_dir(self.engine.tmp()).unwrap().count();
        if left > 0 { Err(format!("{left} temporary files are left")) } else { Ok(()) }
    }

    /// The last of `blobs`, which is the bad one, is not in the store.
    fn left_no_blob(&self, blobs: &[Blob]) -> Result<(), String> {
        let bad = &blobs.last().unwrap().digest;
        let path = self.engine.store().join("content/blobs/sha256").join(bad);
        if path.exists() { Err(format!("the store has the blob {bad}")) } else { Ok(()) }
    }
}

fn fails(run: &Run, code: i32, parts: &[String]) -> Result<(), String> {
    if run.code != Some(code) {
        return Err(format!("ended with {:?}, not {code}: {}", run.code, last_lines(&run.stderr)));
    }
    if run.stderr.contains("panicked") || run.stderr.contains('\x1b') {
        return Err(format!("a message that it should not have: {}", run.stderr.escape_debug()));
    }
    match parts.iter().find(|part| !run.stderr.contains(*part)) {
        Some(part) => Err(format!("the message has no `{part}`: {}", last_lines(&run.stderr))),
        None => Ok(()),
    }
}

fn has(tree: &Tree, seen: &[(String, Seen)]) -> Result<(), String> {
    for (path, seen) in seen {
        let inode = tree.get(path);
        let right = match (seen, inode) {
            (Seen::Absent, inode) => inode.is_none(),
            (_, None) => false,
            (Seen::File(content), Some(inode)) => {
                inode.kind == Kind::File { size: content.len() as u64, sha256: sha256(content) }
            }
            (Seen::Dir, Some(inode)) => inode.kind == Kind::Directory,
            (Seen::Link(target), Some(inode)) => inode.kind == Kind::Symlink(target.clone()),
            (Seen::Kind(kind), Some(inode)) => inode.kind == *kind,
            (Seen::Same(other), Some(_)) => tree.links(path).contains(other),
            (Seen::Mode(mode, uid, gid), Some(inode)) => (inode.mode, inode.uid, inode.gid) == (*mode, *uid, *gid),
            (Seen::Time(seconds), Some(inode)) => inode.mtime == *seconds,
        };
        if !right {
            let all: Vec<&str> = tree.iter().map(|(path, _)| path).take(40).collect();
            return Err(format!("`{path}` should be {seen:?} and is {inode:?}; the tree has {all:?}"));
        }
    }
    Ok(())
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().rev().filter(|line| !line.starts_with('#')).take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}

/// Runs a command to its end, or ends it when that takes too long.
fn run_within(mut command: Command) -> Run {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let id = child.id().to_string();
    let (sender, receiver) = channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(PATIENCE) {
        Ok(output) => Run::from(output.unwrap()),
        Err(_) => {
            let _ = Command::new("kill").args(["-9", &id]).status();
            panic!("{command:?} hangs");
        }
    }
}

/// Everything that a change of `dir` would change.
fn fingerprint(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut waiting = vec![dir.to_path_buf()];
    while let Some(path) = waiting.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let mut text = format!(
            "{:o} {}:{} {} links, changed {}.{} {}.{}",
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.nlink(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec()
        );
        if metadata.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if metadata.is_symlink() {
            text += &format!(" to {}", fs::read_link(&path).unwrap().display());
        } else {
            text += &format!(" {}", sha256(&fs::read(&path).unwrap()));
        }
        all.insert(path, text);
    }
    all
}
