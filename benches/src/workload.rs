//! The workloads: what is built, and what of it is measured.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use build_engine_testkit::peers::output;
use build_engine_testkit::registry::{Access, RealRegistry};

use crate::builder::{Build, Builders, Cache, Cannot, Output, Tool, remove};
use crate::content::Random;
use crate::results::Group;
use crate::sample::{Commands, Sample, Watch, disk_bytes};

/// One workload; what it measures may be several rows.
pub(crate) struct Workload {
    /// Short name and title of each row.
    pub(crate) rows: Vec<(String, String)>,
    pub(crate) group: Group,
    /// What grows, and how much of it this is.
    pub(crate) size: Option<(&'static str, usize)>,
    /// Who is asked.
    pub(crate) tools: &'static [Tool],
    /// Whether so much is written that the stores are emptied afterwards, and everything is brought to the disk before
    /// each measurement.
    pub(crate) heavy: bool,
    /// Whether it takes so long that it has to be asked for.
    pub(crate) slow: bool,
    /// Prepares and measures; one sample for each row.
    pub(crate) measure: Box<Measure>,
}

type Measure = dyn Fn(&Turn<'_>) -> Result<Vec<Figure>>;

/// A measurement, or why there is none.
type Figure = Result<Sample, Cannot>;

/// One builder's turn in one round. Round 0 warms up.
pub(crate) struct Turn<'a> {
    pub(crate) builders: &'a Builders,
    /// The name of its first row.
    pub(crate) workload: &'a str,
    pub(crate) tool: Tool,
    pub(crate) round: usize,
    /// For contexts; the builder's own for this workload.
    pub(crate) dir: PathBuf,
    /// Other in each run of this program, so that no cache knows what is built.
    pub(crate) run: u64,
    pub(crate) heavy: bool,
    pub(crate) watch: Watch,
}

/// How big things are.
pub(crate) struct Sizes {
    files: usize,
    big_files: usize,
    big_bytes: usize,
}

impl Sizes {
    pub(crate) fn new(quick: bool) -> Self {
        if quick {
            Self { files: 2_000, big_files: 16, big_bytes: 1 << 20 }
        } else {
            Self { files: 50_000, big_files: 64, big_bytes: 16 << 20 }
        }
    }
}

/// What W2 and W4 are at other sizes.
const NO_OP: &str = "no-op rebuild, `COPY` of files";
const COLD: &str = "cold build, `COPY` of files";
const AT_ONCE: &str = "small images at once";
const LAYERS: &str = "build of layers";
const LAYERS_AGAIN: &str = "no-op rebuild of layers";

/// All of them.
pub(crate) fn all(sizes: &Sizes) -> Vec<Workload> {
    let (files, megabytes) = (sizes.files, sizes.files * 4 / 1000);
    let total_mebibytes = (sizes.big_files * sizes.big_bytes) >> 20;
    let (count, bytes) = (sizes.big_files, sizes.big_bytes);
    let mut all = vec![
        one("W1", "no-op rebuild, 12 instructions, small context", false, |turn| {
            let context = turn.once("context", twelve_instructions)?;
            turn.build(&Build::of(&context))
        }),
        no_op("W2", &format!("no-op rebuild, `COPY . /src` of {files} files ({megabytes} MB)"), files),
        one("W3", &format!("the same with one file changed ({files} files)"), true, move |turn| {
            let context = turn.once("context", |dir| small_files(dir, files, turn.seed(0), "COPY . /src\n"))?;
            let text = format!("{} {}\n", turn.run, turn.round).repeat(200);
            fs::write(context.join("d0003/f000333"), text)?;
            turn.build(&Build::of(&context))
        }),
        cold(
            "W4",
            &format!("cold, `COPY . /src` of {files} files ({megabytes} MB), no step needs the tree"),
            files,
            false,
        ),
        cold("W4-tree", &format!("the same, and a `RUN` that needs it ({files} files)"), files, true),
        one("W5", "30 trivial RUN steps on a warm base", false, |turn| steps(turn, 30)),
        one("W5-1", "one trivial RUN step on a warm base", false, |turn| steps(turn, 1)),
        one("W6", "16 independent stages that each sleep 0.5 s", false, |turn| {
            let context = turn.fresh(|dir| {
                let mut dockerfile = String::new();
                for stage in 0..16 {
                    writeln!(dockerfile, "FROM base AS s{stage}\nRUN sleep 0.5; echo {} > /out", turn.unique(stage))?;
                }
                dockerfile.push_str("FROM base\n");
                for stage in 0..16 {
                    writeln!(dockerfile, "COPY --from=s{stage} /out /out{stage}")?;
                }
                Ok(fs::write(dir.join("Dockerfile"), dockerfile)?)
            })?;
            turn.build(&Build::of(&context))
        }),
        archive(
            "W7",
            &format!("`COPY` of {total_mebibytes} MiB (half incompressible) to an OCI archive, gzip"),
            count,
            bytes,
            "gzip",
        ),
        archive("W7z", "the same, zstd", count, bytes, "zstd"),
        one("W8", "amd64 and emulated arm64, one RUN each, to an OCI archive", false, emulated),
        push(total_mebibytes, count, bytes),
        Workload { size: Some((AT_ONCE, 8)), ..at_once("W10", 8) },
        cache(count.div_ceil(4), bytes),
        at_once("B1", 1),
        at_once("B32", 32),
    ];
    if files == 50_000 {
        all.push(Workload { group: Group::Growth, ..no_op("G2-5k", "W2 with 5,000 files", 5_000) });
        all.push(Workload { group: Group::Growth, ..cold("G4-5k", "W4 with 5,000 files", 5_000, false) });
        let own: &[Tool] = &[Tool::BuildEngine];
        let no_op = no_op("G2-500k", "W2 with 500,000 files (2 GB)", 500_000);
        let cold = cold("G4-500k", "W4 with 500,000 files (2 GB)", 500_000, false);
        all.extend([no_op, cold].map(|workload| Workload { group: Group::Growth, slow: true, tools: own, ..workload }));
    }
    all.extend([1, 20, 100].map(layers));
    all
}

/// A workload of one row.
fn one(id: &str, title: &str, heavy: bool, measure: impl Fn(&Turn<'_>) -> Result<Sample> + 'static) -> Workload {
    Workload {
        rows: vec![(id.to_owned(), title.to_owned())],
        group: Group::Workloads,
        size: None,
        tools: &Tool::ALL,
        heavy,
        slow: false,
        measure: Box::new(move |turn| match measure(turn) {
            Ok(sample) => Ok(vec![Ok(sample)]),
            Err(error) => error.downcast::<Cannot>().map(|cannot| vec![Err(cannot)]),
        }),
    }
}

fn no_op(id: &str, title: &str, files: usize) -> Workload {
    let workload = one(id, title, true, move |turn| {
        let context = turn.once("context", |dir| small_files(dir, files, turn.seed(0), "COPY . /src\n"))?;
        turn.build(&Build::of(&context))
    });
    Workload { size: Some((NO_OP, files)), ..workload }
}

fn cold(id: &str, title: &str, files: usize, tree: bool) -> Workload {
    let workload = one(id, title, true, move |turn| {
        let steps = if tree { "COPY . /src\nRUN test -e /src/d0000\n" } else { "COPY . /src\n" };
        // No folder is removed before the end: ext4 searches past inodes that were freed a moment ago.
        let context = turn.fresh(|dir| small_files(dir, files, turn.seed(turn.round), steps))?;
        turn.build(&Build::of(&context))
    });
    Workload { size: (!tree).then_some((COLD, files)), ..workload }
}

fn steps(turn: &Turn<'_>, count: usize) -> Result<Sample> {
    let context = turn.fresh(|dir| {
        let mut dockerfile = "FROM base\n".to_owned();
        for step in 0..count {
            writeln!(dockerfile, "RUN : {}", turn.unique(step))?;
        }
        Ok(fs::write(dir.join("Dockerfile"), dockerfile)?)
    })?;
    turn.build(&Build::of(&context))
}

fn archive(id: &str, title: &str, count: usize, bytes: usize, compression: &'static str) -> Workload {
    one(id, title, true, move |turn| {
        let context = turn.fresh(|dir| big_files(dir, count, bytes, turn.seed(turn.round)))?;
        let file = turn.dir.join("image.tar");
        // Nothing is to be reused, frames of earlier layers included. The others do not look into layers.
        if turn.tool == Tool::BuildEngine {
            turn.builders.empty(turn.tool)?;
        }
        let store = turn.builders.store(turn.tool);
        let used = || if store.exists() { disk_bytes(&store) } else { Ok(0) };
        let before = used()?;
        let mut sample = turn.build(&Build::of(&context).to(Output::Archive(file.clone(), compression)))?;
        sample.disk_bytes = Some(used()?.saturating_sub(before));
        sample.archive_bytes = Some(fs::metadata(&file)?.len());
        if turn.tool == Tool::BuildEngine && turn.round == 1 {
            let pipe = "tar -C \"$0\" -c . | gzip -1 | wc -c";
            let size = output(Command::new("sh").args(["-c", pipe]).arg(&context))?;
            // The archive has the layers of the base as well.
            let base = disk_bytes(&turn.builders.base)?;
            sample.gzip_bytes = size.trim().parse::<u64>().ok().map(|size| size + base);
        }
        remove(&context)?;
        fs::remove_file(file)?;
        Ok(sample)
    })
}

fn emulated(turn: &Turn<'_>) -> Result<Sample> {
    let layout = turn.builders.foreign.as_ref().ok_or_else(|| Cannot("no base image for arm64".to_owned()))?;
    let platforms = Some("linux/amd64,linux/arm64");
    let context = turn.fresh(|dir| {
        let step = format!("FROM base\nRUN uname -m > /machine; echo {}\n", turn.unique(0));
        Ok(fs::write(dir.join("Dockerfile"), step)?)
    })?;
    let file = turn.dir.join("image.tar");
    // buildah and podman take a base of several platforms from a registry only.
    let registry;
    if matches!(turn.tool, Tool::Buildah | Tool::Podman) {
        registry = RealRegistry::start(Access::Open, None)?;
        let name = registry.reference("base", "1");
        let source = format!("oci:{}:latest", layout.display());
        let mut copy = turn.builders.peers.command("skopeo");
        copy.args(["copy", "--all", "--quiet", "--dest-tls-verify=false", &source, &format!("docker://{name}")]);
        output(&mut copy)?;
        fs::write(context.join("base"), name)?;
        fs::write(context.join(".dockerignore"), "base\n")?;
    }
    let sample = turn.build(&Build { platforms, ..Build::of(&context).to(Output::Archive(file.clone(), "gzip")) })?;
    fs::remove_file(file)?;
    Ok(sample)
}

/// W9: both rows are of one turn.
fn push(mebibytes: usize, count: usize, bytes: usize) -> Workload {
    let title = format!("build of W7's image ({mebibytes} MiB) and push to an empty registry");
    let again = "the same again: everything is there".to_owned();
    Workload {
        rows: vec![("W9".to_owned(), title), ("W9-again".to_owned(), again)],
        measure: Box::new(move |turn| {
            let context = turn.fresh(|dir| big_files(dir, count, bytes, turn.seed(turn.round)))?;
            if turn.tool == Tool::BuildEngine {
                turn.builders.empty(turn.tool)?;
            }
            let registry = RealRegistry::start(Access::Open, None)?;
            let push = Build::of(&context).to(Output::Push(registry.reference("bench", "1")));
            let samples = vec![Ok(turn.build(&push)?), Ok(turn.build(&push)?)];
            remove(&context)?;
            Ok(samples)
        }),
        ..one("", "", true, |_| unreachable!("replaced above"))
    }
}

/// W11. Nothing but BuildKit's way of exporting a cache is measured: into a folder, with the results of all steps.
fn cache(count: usize, bytes: usize) -> Workload {
    let mebibytes = (count * bytes) >> 20;
    let rows = [
        ("W11-plain", format!("build of {mebibytes} MiB in 12 instructions, without the cache exported")),
        ("W11", "the same with local cache export (mode=max)".to_owned()),
        ("W11-from", "rebuild from that cache on an empty builder".to_owned()),
    ];
    Workload {
        rows: rows.map(|(id, title)| (id.to_owned(), title)).to_vec(),
        tools: &[Tool::BuildEngine, Tool::Buildx],
        measure: Box::new(move |turn| {
            let cache = turn.dir.join("cache");
            remove(&cache)?;
            let write = |dir: &Path, seed| {
                twelve_instructions(dir)?;
                Random::new(seed).big_files(&dir.join("big"), count, bytes)?;
                let dockerfile = fs::read_to_string(dir.join("Dockerfile"))?;
                Ok(fs::write(dir.join("Dockerfile"), dockerfile + "COPY big /big\nRUN test -e /big/0\n")?)
            };
            let plain = turn.fresh(|dir| write(dir, turn.seed(2 * turn.round)))?;
            let context =
                turn.once(&format!("export-{}", turn.round), |dir| write(dir, turn.seed(2 * turn.round + 1)))?;
            let mut samples = vec![Ok(turn.build(&Build::of(&plain))?)];
            let with = |direction| Build { cache: Some(direction), ..Build::of(&context) };
            match turn.build(&with(Cache::To(cache.clone()))) {
                Ok(sample) => {
                    samples.push(Ok(sample));
                    turn.builders.empty(turn.tool)?;
                    samples.push(Ok(turn.build(&with(Cache::From(cache)))?));
                }
                // It is refused by name until there is one.
                Err(error) if turn.tool == Tool::BuildEngine && format!("{error:#}").contains("`--cache-to`") => {
                    samples.extend([(); 2].map(|()| Err(Cannot("not yet".to_owned()))));
                }
                Err(error) => return Err(error),
            }
            remove(&plain)?;
            remove(&context)?;
            Ok(samples)
        }),
        ..one("", "", true, |_| unreachable!("replaced above"))
    }
}

fn at_once(id: &str, count: usize) -> Workload {
    let processes = if count == 1 { "one small image".to_owned() } else { format!("{count} small images at once") };
    let workload = one(id, &processes, false, move |turn| {
        let folder = turn.fresh(|dir| {
            for number in 0..count {
                let context = dir.join(number.to_string());
                fs::create_dir_all(&context)?;
                let unique = turn.unique(number);
                fs::write(context.join("file"), &unique)?;
                let dockerfile = format!("FROM base\nCOPY file /file\nRUN echo {unique} > /made\n");
                fs::write(context.join("Dockerfile"), dockerfile)?;
            }
            Ok(())
        })?;
        let contexts: Vec<PathBuf> = (0..count).map(|number| folder.join(number.to_string())).collect();
        let commands = if turn.tool == Tool::Buildx {
            vec![turn.builders.bake(&contexts)?]
        } else {
            let mut commands = Vec::new();
            for (number, context) in contexts.iter().enumerate() {
                let build = Build::of(context).to(Output::Tag(format!("bench{number}")));
                commands.extend(turn.builders.commands(turn.tool, &build)?);
            }
            commands
        };
        turn.sample(Commands::AtOnce(commands))
    });
    let group = if id == "W10" { Group::Workloads } else { Group::Growth };
    Workload { group, size: Some((AT_ONCE, count)), ..workload }
}

fn layers(count: usize) -> Workload {
    let rows = vec![
        (format!("L{count}"), format!("{LAYERS}: {count}")),
        (format!("L{count}-again"), format!("{LAYERS_AGAIN}: {count}")),
    ];
    Workload {
        rows,
        group: Group::Growth,
        size: Some((LAYERS, count)),
        // The time of the others grows with the square of the layers.
        tools: if count > 50 { &[Tool::BuildEngine, Tool::Buildx] } else { &Tool::ALL },
        measure: Box::new(move |turn| {
            let context = turn.fresh(|dir| {
                let mut dockerfile = "FROM base\n".to_owned();
                for number in 0..count {
                    fs::write(dir.join(number.to_string()), turn.unique(number))?;
                    writeln!(dockerfile, "COPY {number} /files/{number}")?;
                }
                Ok(fs::write(dir.join("Dockerfile"), dockerfile)?)
            })?;
            let build = Build::of(&context);
            Ok(vec![Ok(turn.build(&build)?), Ok(turn.build(&build)?)])
        }),
        ..one("", "", false, |_| unreachable!("replaced above"))
    }
}

impl Turn<'_> {
    /// A folder that stays the same in all rounds.
    fn once(&self, name: &str, write: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        if !dir.exists() {
            fs::create_dir_all(&dir)?;
            write(&dir)?;
        }
        Ok(dir)
    }

    /// A folder of this round alone.
    fn fresh(&self, write: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let dir = self.dir.join(format!("round-{}", self.round));
        fs::create_dir_all(&dir)?;
        write(&dir)?;
        Ok(dir)
    }

    /// Words that no cache has seen: other ones in each workload, too.
    fn unique(&self, number: usize) -> String {
        format!("{} {} {} {} {number}", self.run, self.workload, self.tool.flag(), self.round)
    }

    /// Differs between runs of this program, workloads, builders and rounds.
    fn seed(&self, round: usize) -> u64 {
        let workload = self.workload.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(131).wrapping_add(byte.into()));
        let run = self.run.wrapping_mul(1_000_003).wrapping_add(workload.wrapping_mul(10_007));
        run.wrapping_add(self.tool as u64 * 1_009 + round as u64)
    }

    fn build(&self, build: &Build<'_>) -> Result<Sample> {
        self.sample(Commands::InTurn(self.builders.commands(self.tool, build)?))
    }

    fn sample(&self, commands: Commands) -> Result<Sample> {
        if self.heavy {
            // What was written before is not to be waited for now.
            output(&mut Command::new("sync"))?;
        }
        Sample::of(commands, self.builders.daemon(self.tool), self.watch)
            .with_context(|| format!("{} in {}", self.tool, self.dir.display()))
    }
}

fn small_files(dir: &Path, count: usize, seed: u64, steps: &str) -> Result<()> {
    Random::new(seed).small_files(dir, count)?;
    Ok(fs::write(dir.join("Dockerfile"), format!("FROM base\n{steps}"))?)
}

fn big_files(dir: &Path, count: usize, bytes: usize, seed: u64) -> Result<()> {
    Random::new(seed).big_files(&dir.join("data"), count, bytes)?;
    Ok(fs::write(dir.join("Dockerfile"), "FROM base\nCOPY data /data\n")?)
}

fn twelve_instructions(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir.join("src"))?;
    for number in 0..10 {
        fs::write(dir.join(format!("src/{number}.txt")), format!("file {number}\n").repeat(100))?;
    }
    let dockerfile = "FROM base\nARG VERSION=1\nENV APP=/app\nWORKDIR /app\nRUN mkdir -p /app/data\nCOPY src/ /app/src/\n\
                      RUN cat /app/src/*.txt > /app/all\nCOPY src/1.txt /app/one\nRUN echo $VERSION > /app/version\n\
                      LABEL version=1\nEXPOSE 80\nCMD [\"cat\", \"/app/all\"]\n";
    Ok(fs::write(dir.join("Dockerfile"), dockerfile)?)
}
