//! Images to and from a registry: build-engine beside docker, skopeo and buildah.
//!
//! All move one image of 1 GiB, made here, through Debian's `docker-registry` on the loopback address, over plain HTTP.
//! Whether a sample measured what it says is read from the registry's log: a pull that fetched no layer was not cold.

use std::cell;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use build_engine_testkit::peers::{Peers, output};
use build_engine_testkit::registry::{Access, RealRegistry};

use crate::builder::{Builders, Tool, remove_storage};
use crate::content::Random;
use crate::results::{self, Group, Row};
use crate::sample::{Commands, Sample, Watch};

/// The tools, in the order of the table.
pub(crate) const TOOLS: &[&str] = &["build-engine", "docker", "skopeo", "buildah"];
const BUILD_ENGINE: usize = 0;
const DOCKER: usize = 1;
const SKOPEO: usize = 2;
const BUILDAH: usize = 3;

const PUSH: &str = "push into an empty registry";
const PUSH_AGAIN: &str = "push again: everything is there";
const PULL: &str = "pull into an empty store, blobs alone (docker and buildah unpack)";
const UNPACK: &str = "pull into an empty store and unpack (build-engine: build `FROM` it, with one `RUN`)";

/// Layers of the image, beside that of its base.
const LAYERS: usize = 4;
/// Half of them are incompressible.
const FILES_PER_LAYER: usize = 16;
const FILE_BYTES: usize = 16 << 20;
/// The image's name in the stores of those who have one.
const NAME: &str = "localhost/build-engine-bench:1";
/// Its repository in registries.
const REPOSITORY: &str = "build-engine-bench";

/// The rows, in their order.
pub(crate) const ROWS: [&str; 4] = ["P1", "P2", "P3", "P4"];

/// Whether a row is one of these.
pub(crate) fn are_wanted(wanted: impl Fn(&str) -> bool) -> bool {
    ROWS.into_iter().any(wanted)
}

/// Makes the image and measures the rows, those that are wanted.
pub(crate) fn rows(
    builders: &Builders,
    dir: &Path,
    repetitions: usize,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Row>> {
    let (binary, peers) = (&builders.binary, &builders.peers);
    let tools = Tools { binary, peers, dir, layers: BTreeSet::new() }.with_image(&builders.base)?;
    let [push, again, pull, unpack] = ROWS.map(&wanted);
    let mut rows = Vec::new();
    if push || again {
        rows.extend(tools.pushes(repetitions)?);
    }
    tools.forget();
    if pull || unpack {
        rows.extend(tools.pulls(repetitions)?);
    }
    rows.retain(|row| wanted(&row.id));
    Ok(rows)
}

struct Tools<'a> {
    binary: &'a Path,
    peers: &'a Peers,
    dir: &'a Path,
    /// Digests of the image's layers.
    layers: BTreeSet<String>,
}

impl Tools<'_> {
    /// Builds the image, and gives it to everybody who is going to push it.
    fn with_image(mut self, base: &Path) -> Result<Self> {
        self.forget();
        let context = self.dir.join("image");
        // Docker fetches no layer that it has unpacked before: this image shares none with others, the lowest included.
        let mut dockerfile = "FROM scratch\n".to_owned();
        let mut random = Random::new(0);
        for layer in 0..LAYERS {
            random.big_files(&context.join(layer.to_string()), FILES_PER_LAYER, FILE_BYTES)?;
            writeln!(dockerfile, "COPY {layer} /data/{layer}")?;
        }
        dockerfile.push_str("COPY --from=base / /\n");
        fs::write(context.join("Dockerfile"), dockerfile)?;
        let mut build = self.build_engine("making");
        build.args(["build", "--progress=quiet", "--network=none", "--tag=bench:latest", "--build-context"]);
        build.arg(format!("base=oci-layout://{}:latest", base.display()));
        build.arg(format!("--output=type=oci,tar=false,dest={}", self.layout().display())).arg(&context);
        output(&mut build)?;
        fs::remove_dir_all(context)?;
        fs::remove_dir_all(self.dir.join("making"))?;

        let source = format!("oci:{}:latest", self.layout().display());
        let layers = self.skopeo(&["inspect", "--format", "{{range .Layers}}{{.}} {{end}}", &source]);
        self.layers = output(&mut { layers })?.split_whitespace().map(str::to_owned).collect();
        ensure!(self.layers.len() == LAYERS + 1, "the image has layers {:?}", self.layers);

        output(self.build_engine("source").args(["copy", "-q", &source, &format!("store:{NAME}")]))?;
        let id = output(
            // The name becomes that of the image, and has to be one: no path with capital letters.
            self.buildah("source").args(["pull", "--quiet", "oci:layout:latest"]).current_dir(self.dir),
        )?;
        output(self.buildah("source").args(["tag", id.trim(), NAME]))?;
        // Docker keeps what it pulls as it came, and gets the very same blobs to push this way.
        let registry = self.filled_registry()?;
        let name = registry.reference(REPOSITORY, "1");
        output(self.peers.docker().args(["pull", "--quiet", &name]))?;
        output(self.peers.docker().args(["tag", &name, NAME]))?;
        output(self.peers.docker().args(["rmi", &name]))?;
        Ok(self)
    }

    fn pushes(&self, repetitions: usize) -> Result<Vec<Row>> {
        let mut cold = vec![Vec::new(); TOOLS.len()];
        let mut again = cold.clone();
        for round in 0..=repetitions {
            for (index, tool) in TOOLS.iter().enumerate() {
                progress("P1, P2", round, tool);
                let registry = Watched::new(RealRegistry::start(Access::Open, None)?);
                let name = registry.real.reference(REPOSITORY, "1");
                if index == DOCKER {
                    output(self.peers.docker().args(["tag", NAME, &name]))?;
                }
                let first = self.sample(index, self.push(index, &name))?;
                // The config is a blob, too.
                registry
                    .wait(|lines| uploads(lines) > self.layers.len())
                    .with_context(|| format!("{tool} did not push every blob"))?;
                let second = self.sample(index, self.push(index, &name))?;
                let uploads = uploads(&registry.requests()?);
                ensure!(uploads == 0 || index != BUILD_ENGINE, "{tool} pushed {uploads} blobs once more");
                if index == DOCKER {
                    output(self.peers.docker().args(["rmi", &name]))?;
                }
                // The first round fills caches.
                if round > 0 {
                    cold[index].push(first);
                    again[index].push(second);
                }
            }
        }
        Ok(vec![row("P1", PUSH, cold), row("P2", PUSH_AGAIN, again)])
    }

    fn pulls(&self, repetitions: usize) -> Result<Vec<Row>> {
        let registry = Watched::new(self.filled_registry()?);
        let name = registry.real.reference(REPOSITORY, "1");
        let context = self.dir.join("unpack");
        fs::create_dir_all(&context)?;
        fs::write(context.join("Dockerfile"), format!("FROM {name}\nRUN true\n"))?;
        let build = || {
            let mut build = self.build_engine("empty");
            build.args(["build", "--progress=quiet", "--network=none", "--tag=bench"]).arg(&context);
            build
        };

        let mut blobs = vec![Vec::new(); TOOLS.len()];
        let mut unpacked = blobs.clone();
        for round in 0..=repetitions {
            for (index, tool) in TOOLS.iter().enumerate() {
                progress("P3, P4", round, tool);
                let cold = |command: Command| -> Result<Sample> {
                    registry.requests()?;
                    let sample = self.sample(index, command)?;
                    let fetched = |layer: &String, lines: &[String]| {
                        lines.iter().any(|line| line.contains(&format!("GET /v2/{REPOSITORY}/blobs/{layer} ")))
                    };
                    registry
                        .wait(|lines| self.layers.iter().all(|layer| fetched(layer, lines)))
                        .with_context(|| format!("{tool} did not fetch every layer"))?;
                    self.empty(index, &name)?;
                    Ok(sample)
                };
                let pulled = cold(self.pull(index, &name))?;
                let built = if index == BUILD_ENGINE { Some(cold(build())?) } else { None };
                if round == 0 {
                    continue;
                }
                blobs[index].push(pulled);
                match index {
                    BUILD_ENGINE => unpacked[index].extend(built),
                    // They cannot but unpack what they pull.
                    DOCKER | BUILDAH => unpacked[index].push(pulled),
                    _ => {}
                }
            }
        }
        Ok(vec![row("P3", PULL, blobs), row("P4", UNPACK, unpacked)])
    }

    fn push(&self, index: usize, name: &str) -> Command {
        let there = format!("docker://{name}");
        match index {
            BUILD_ENGINE => with(self.build_engine("source"), &["push", "-q", NAME, name]),
            DOCKER => with(self.peers.docker(), &["push", "--quiet", name]),
            SKOPEO => {
                let source = format!("oci:{}:latest", self.layout().display());
                self.skopeo(&["copy", "--quiet", "--dest-tls-verify=false", &source, &there])
            }
            _ => with(self.buildah("source"), &["push", "--quiet", "--tls-verify=false", NAME, &there]),
        }
    }

    fn pull(&self, index: usize, name: &str) -> Command {
        let there = format!("docker://{name}");
        match index {
            BUILD_ENGINE => with(self.build_engine("empty"), &["pull", "-q", name]),
            DOCKER => with(self.peers.docker(), &["pull", "--quiet", name]),
            SKOPEO => {
                let target = format!("oci:{}:latest", self.dir.join("empty").display());
                self.skopeo(&["copy", "--quiet", "--src-tls-verify=false", &there, &target])
            }
            _ => with(self.buildah("empty"), &["pull", "--quiet", "--tls-verify=false", &there]),
        }
    }

    fn sample(&self, index: usize, command: Command) -> Result<Sample> {
        // What the one before has written is not to be waited for by the next.
        output(&mut Command::new("sync"))?;
        let daemon = if index == DOCKER { self.peers.dockerd() } else { None };
        Sample::of(Commands::InTurn(vec![command]), daemon, Watch::Memory)
    }

    /// Takes away what a pull has brought.
    fn empty(&self, index: usize, name: &str) -> Result<()> {
        match index {
            DOCKER => drop(output(self.peers.docker().args(["rmi", "--force", name]))?),
            BUILDAH => remove_storage(&self.storage("empty"))?,
            _ => fs::remove_dir_all(self.dir.join("empty"))?,
        }
        Ok(())
    }

    /// Takes the image away from those who pushed it, under all names that this or an earlier run gave it.
    fn forget(&self) {
        // Nothing is lost if it is not there.
        let names = output(self.peers.docker().args(["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]));
        for name in names.unwrap_or_default().lines().filter(|name| name.ends_with(&format!("/{REPOSITORY}:1"))) {
            let _ = output(self.peers.docker().args(["rmi", "--force", name]));
        }
        let _ = remove_storage(&self.storage("source"));
    }

    /// A registry that has the image.
    fn filled_registry(&self) -> Result<RealRegistry> {
        let registry = RealRegistry::start(Access::Open, None)?;
        output(&mut self.push(SKOPEO, &registry.reference(REPOSITORY, "1")))?;
        Ok(registry)
    }

    fn storage(&self, name: &str) -> PathBuf {
        self.dir.join(format!("buildah-{name}"))
    }

    fn layout(&self) -> PathBuf {
        self.dir.join("layout")
    }

    fn build_engine(&self, store: &str) -> Command {
        let mut command = Command::new(self.binary);
        command.env("BUILD_ENGINE_ROOT", self.dir.join(store));
        command
    }

    fn skopeo(&self, args: &[&str]) -> Command {
        with(self.peers.command("skopeo"), args)
    }

    /// buildah with a storage of its own.
    fn buildah(&self, storage: &str) -> Command {
        let mut command = self.peers.command("buildah");
        let dir = self.storage(storage);
        command.arg("--root").arg(dir.join("root")).arg("--runroot").arg(dir.join("runroot"));
        command
    }
}

impl Drop for Tools<'_> {
    fn drop(&mut self) {
        self.forget();
        let _ = remove_storage(&self.storage("empty"));
    }
}

/// The row of some samples, by tool; a tool without any cannot do it.
fn row(id: &str, title: &str, samples: Vec<Vec<Sample>>) -> Row {
    let cells = TOOLS.iter().zip(samples).filter(|(_, samples)| !samples.is_empty()).map(|(name, samples)| {
        let memory_bytes = samples.iter().filter_map(|sample| sample.memory_bytes).max();
        let tool = (*name == TOOLS[BUILD_ENGINE]).then_some(Tool::BuildEngine);
        results::Cell { name: (*name).to_owned(), tool, samples, memory_bytes, note: None }
    });
    let (id, title) = (id.to_owned(), title.to_owned());
    Row { id, title, group: Group::Transfers, size: None, run: 0, cells: cells.collect() }
}

fn with(mut command: Command, args: &[&str]) -> Command {
    command.args(args);
    command
}

#[allow(clippy::print_stderr, reason = "a program for people")]
fn progress(rows: &str, round: usize, tool: &str) {
    eprintln!("{rows}: round {round}, {tool}");
}

/// A registry whose log is read bit by bit.
struct Watched {
    real: RealRegistry,
    read: cell::Cell<usize>,
}

impl Watched {
    fn new(real: RealRegistry) -> Self {
        Self { real, read: cell::Cell::new(0) }
    }

    /// Asks for something, and returns what was logged since the last call: all of it when the answer had been read
    /// before, but for lines of answers that were still being written off.
    fn requests(&self) -> Result<Vec<String>> {
        let marker = format!("/v2/until/{}", self.read.get());
        let mut connection = TcpStream::connect(self.real.host())?;
        write!(connection, "GET {marker} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        connection.read_to_end(&mut Vec::new()).context("the registry does not answer")?;
        self.wait(|lines| lines.iter().any(|line| line.contains(&marker)))
    }

    /// The same, once there are the lines that are waited for. A request is logged a moment after its answer was read.
    fn wait(&self, are_there: impl Fn(&[String]) -> bool) -> Result<Vec<String>> {
        let before = self.read.get();
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let mut log = self.real.log();
            if are_there(&log[before..]) {
                self.read.set(log.len());
                return Ok(log.split_off(before));
            }
            ensure!(Instant::now() < deadline, "the registry did not log it");
            std::thread::yield_now();
        }
    }
}

/// How many blobs were uploaded.
fn uploads(lines: &[String]) -> usize {
    lines.iter().filter(|line| line.contains(&format!("PUT /v2/{REPOSITORY}/blobs/uploads/"))).count()
}
