//! End to end: what `build-engine` promises to the people who type it, tested through its command line alone.
//!
//! Everything runs as root and, where it matters, as an ordinary user too; bases come from [`build_engine_testkit::fixtures`].

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_input;
mod cache;
mod cancel;
mod checks;
mod context;
mod debian;
mod edits;
mod fetched;
mod hostile;
mod identical;
mod mounts;
mod outputs;
mod platforms;
mod progress;
mod remote;
mod secrets;

use std::fs;
use std::path::{Path, PathBuf};

use build_engine_testkit::engine::{Engine, Run, Who};
use build_engine_testkit::image::{Image, image_of_archive};
use build_engine_testkit::{available, fixtures, sha256};

/// An engine with the busybox base at hand.
struct Bench {
    engine: Engine,
    base: PathBuf,
}

impl Bench {
    /// Returns `None`, after saying why, where `who` or the base cannot be had.
    fn new(who: Who) -> Option<Bench> {
        let engine = available(Engine::new(who))?;
        let base = available(fixtures::busybox().and_then(|base| engine.base(&base)))?;
        Some(Bench { engine, base })
    }

    /// `build` with the base, without network, and with `args`; the context is `context`.
    fn args(&self, context: &Path, args: &[&str]) -> Vec<String> {
        let mut all = vec!["build".to_owned(), "--network=none".to_owned()];
        if !args.iter().any(|arg| arg.starts_with("--progress") || *arg == "--quiet") {
            all.push("--progress=plain".to_owned());
        }
        all.push(format!("--build-context=base=oci-layout://{}:latest", self.base.display()));
        all.extend(args.iter().map(|&arg| arg.to_owned()));
        all.push(context.to_string_lossy().into_owned());
        all
    }

    /// Makes a context of `files`, and builds it.
    fn build(&self, name: &str, files: &[(&str, &str)], args: &[&str]) -> Run {
        let context = self.engine.context(name, files).unwrap();
        self.engine.run(self.args(&context, args)).unwrap()
    }

    /// Builds an OCI archive, which must work, and reads it.
    fn image(&self, name: &str, files: &[(&str, &str)], args: &[&str]) -> Image {
        let out = self.engine.work().join(format!("{name}.tar"));
        let output = format!("--output=type=oci,dest={}", out.display());
        let mut all = vec![output.as_str()];
        all.extend(args);
        let run = self.build(name, files, &all);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        image_of_archive(&out).unwrap()
    }

    /// Checks the store: by its own command, and every blob against its name.
    fn verify_store(&self) {
        let run = self.engine.run(["cache", "verify"]).unwrap();
        assert_eq!(run.code, Some(0), "{}{}", run.stdout, run.stderr);
        let blobs = self.engine.store().join("content/blobs/sha256");
        for blob in fs::read_dir(&blobs).into_iter().flatten() {
            let path = blob.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            assert_eq!(sha256(&fs::read(&path).unwrap()), name, "a blob of the store has not the content of its name");
        }
    }
}

/// The content digest of a file of an image.
fn content(image: &Image, path: &str) -> String {
    match image.tree.get(path).unwrap_or_else(|| panic!("the image has no `{path}`")).kind.clone() {
        build_engine_testkit::image::Kind::File { sha256, .. } => sha256,
        other => panic!("`{path}` is {other:?}"),
    }
}
