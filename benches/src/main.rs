//! Compares the engine with BuildKit, buildah, podman and skopeo, on workloads that it makes itself.
//!
//! `make bench` runs it. All builders run in one go and in turns (A B C A B C …), so that a busy machine slows all of them
//! alike. What a measurement is says [`sample`]; builds are in [`workload`] and what each builder is called with in
//! [`builder`]; images to and from a registry in [`transfer`]. [`results`] are kept as JSON; [`page`] and [`chart`] make
//! the document of them, and [`goals`] the column that says what they should be.

mod builder;
mod chart;
mod content;
mod goals;
mod page;
mod results;
mod sample;
mod transfer;
mod workload;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use build_engine_testkit::peers::Peers;
use build_engine_testkit::workspace;

use crate::builder::{Builders, Tool, remove};
use crate::results::{Cell, Results, Row, Run};
use crate::sample::Watch;
use crate::workload::{Sizes, Turn, Workload};

/// How often a build is measured, and how often one that takes long.
const BUILDS: usize = 5;
const LONG_BUILDS: usize = 2;
const LONG: Duration = Duration::from_secs(20);
/// How often an image is moved; each time takes many seconds.
const TRANSFERS: usize = 3;
/// What is quicker is measured without anyone looking, and its memory in a round of its own.
const BRIEF: Duration = Duration::from_secs(1);

const USAGE: &str = "options:
  --binary FILE       the build-engine to measure
  --only W1,G2-5k     these rows alone
  --peers buildx,…    these builders alone, beside build-engine: buildx, buildah, podman
  --growth            the rows that take long, instead of the others
  --repetitions N     how often each is measured
  --quick             small sizes, once: shows that everything works, measures nothing
  --results FILE      where results are kept (target/bench/results.json)
  --merge             take over rows of the last run that are not measured now
  --write             write docs/benchmarks.md and its charts
  --render            measure nothing: write the document from the results";

struct Options {
    binary: PathBuf,
    write: bool,
    render: bool,
    merge: bool,
    quick: bool,
    growth: bool,
    repetitions: Option<usize>,
    only: Option<Vec<String>>,
    tools: Vec<Tool>,
    results: PathBuf,
}

#[allow(clippy::print_stdout, reason = "a program for people")]
fn main() -> Result<()> {
    let options = options()?;
    let mut results = Results::default();
    if options.merge || options.render {
        match Results::read(&options.results) {
            Ok(last) => results = last,
            Err(error) if options.render => return Err(error),
            Err(_) => {}
        }
    }
    if !options.render {
        let measured = measure_all(&options, |so_far| {
            // What has been measured is not lost when something fails an hour later.
            let mut all = Results { runs: results.runs.clone(), rows: results.rows.clone() };
            all.merge(so_far);
            all.write(&options.results)
        })?;
        results.merge(measured);
        results.write(&options.results)?;
    }
    print!("{}", page::render(&results));
    if options.write || options.render {
        ensure!(
            !results.runs.iter().any(|run| run.quick),
            "figures of --quick do not go into the document; they are in `{}`",
            options.results.display()
        );
        page::write(&results, &workspace().join("docs"))?;
    }
    Ok(())
}

fn options() -> Result<Options> {
    let mut options = Options {
        binary: PathBuf::from("target/release/build-engine"),
        write: false,
        render: false,
        merge: false,
        quick: false,
        growth: false,
        repetitions: None,
        only: None,
        tools: Tool::ALL.to_vec(),
        results: workspace().join("target/bench/results.json"),
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("`{arg}` takes a value"));
        match arg.as_str() {
            "--binary" => options.binary = PathBuf::from(value()?),
            "--write" => options.write = true,
            "--render" => options.render = true,
            "--merge" => options.merge = true,
            "--quick" => options.quick = true,
            "--growth" => options.growth = true,
            "--repetitions" => options.repetitions = Some(value()?.parse()?),
            "--only" => options.only = Some(value()?.split(',').map(str::to_owned).collect()),
            "--peers" => {
                let peers = value()?;
                for name in peers.split(',') {
                    ensure!(Tool::ALL.iter().any(|tool| tool.flag() == name), "no builder is called `{name}`");
                }
                let wanted =
                    |tool: &Tool| *tool == Tool::BuildEngine || peers.split(',').any(|name| name == tool.flag());
                options.tools.retain(wanted);
            }
            "--results" => options.results = PathBuf::from(value()?),
            other => bail!("unknown option `{other}`; {USAGE}"),
        }
    }
    if !options.render {
        options.binary =
            options.binary.canonicalize().with_context(|| format!("no binary at `{}`", options.binary.display()))?;
    }
    Ok(options)
}

/// Measures what is asked for; `keep` is given the results after each workload.
fn measure_all(options: &Options, keep: impl Fn(Results) -> Result<()>) -> Result<Results> {
    let sizes = Sizes::new(options.quick);
    let workloads = workload::all(&sizes);
    let known = workloads.iter().flat_map(|workload| workload.rows.iter().map(|(id, _)| id.as_str()));
    let known: Vec<&str> = known.chain(transfer::ROWS).collect();
    for id in options.only.iter().flatten() {
        ensure!(known.contains(&id.as_str()), "no row is called `{id}`; there are {}", known.join(", "));
    }
    let wanted = |id: &str| options.only.as_ref().is_none_or(|only| only.iter().any(|wanted| wanted == id));

    // Beside the sources: `/tmp` may be memory.
    let parent = workspace().join("target/bench");
    std::fs::create_dir_all(&parent)?;
    let dir = tempfile::Builder::new().prefix("work-").tempdir_in(parent)?;
    let builders = Builders::new(&options.binary, Peers::start()?, dir.path(), &options.tools)?;
    let run = Run {
        time: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
        machine: machine()?,
        versions: builders.versions(&options.tools)?,
        quick: options.quick,
    };
    let mut rows: Vec<Row> = Vec::new();
    let so_far = |rows: &[Row]| Results { runs: vec![run.clone()], rows: rows.to_vec() };
    for workload in workloads {
        let asked = workload.rows.iter().any(|(id, _)| wanted(id));
        let due = options.only.is_some() || options.growth == workload.slow;
        if !asked || !due {
            continue;
        }
        rows.extend(measure(&builders, &workload, options)?);
        keep(so_far(&rows))?;
    }
    if (options.only.is_some() || !options.growth && !options.quick) && transfer::are_wanted(wanted) {
        let repetitions = options.repetitions.unwrap_or(TRANSFERS);
        rows.extend(transfer::rows(&builders, &dir.path().join("transfers"), repetitions, wanted)?);
    }
    Ok(so_far(&rows))
}

/// Warms every builder up, then measures them in turns.
#[allow(clippy::print_stderr, reason = "a program for people")]
fn measure(builders: &Builders, workload: &Workload, options: &Options) -> Result<Vec<Row>> {
    let name = &workload.rows[0].0;
    let tools: Vec<Tool> = options.tools.iter().copied().filter(|tool| workload.tools.contains(tool)).collect();
    let mut cells: Vec<Vec<Cell>> = vec![tools.iter().map(|tool| cell(*tool)).collect(); workload.rows.len()];
    let mut last: Vec<Option<Duration>> = vec![None; tools.len()];
    let dir = |tool: Tool| builders.dir.join(format!("{name}-{}", tool.flag()));
    let repetitions = if options.quick { 1 } else { options.repetitions.unwrap_or(BUILDS) };
    // The first round fills caches, the last one looks at memory.
    for round in 0..=repetitions + 1 {
        for (index, &tool) in tools.iter().enumerate() {
            let brief = last[index].is_none_or(|wall| wall < BRIEF);
            let enough = if round > repetitions {
                cells.iter().all(|row| row[index].memory_bytes.is_some() || row[index].note.is_some())
            } else {
                round > LONG_BUILDS && last[index].is_some_and(|wall| wall > LONG)
            };
            if enough || cells[0][index].note.is_some() {
                continue;
            }
            let watch = match (round > repetitions, brief) {
                (true, _) => Watch::OnlyMemory,
                (false, true) => Watch::No,
                (false, false) => Watch::Memory,
            };
            eprintln!("{name}: round {round}, {tool}");
            let run = u64::from(std::process::id());
            let (dir, heavy) = (dir(tool), workload.heavy);
            let turn = Turn { builders, workload: name, tool, round, dir, run, heavy, watch };
            let samples = match (workload.measure)(&turn) {
                Ok(samples) => samples,
                // One builder that fails is no reason to lose the figures of the others; ours must not fail.
                Err(error) if tool != Tool::BuildEngine => {
                    eprintln!("{name}: {error:#}");
                    cells.iter_mut().for_each(|row| row[index].note = Some("failed".to_owned()));
                    continue;
                }
                Err(error) => return Err(error),
            };
            last[index] = samples.iter().filter_map(|sample| Some(sample.as_ref().ok()?.wall)).max();
            for (row, sample) in cells.iter_mut().zip(samples) {
                let cell = &mut row[index];
                match sample {
                    Ok(sample) => {
                        cell.memory_bytes = cell.memory_bytes.max(sample.memory_bytes);
                        if round > 0 && watch != Watch::OnlyMemory {
                            cell.samples.push(sample);
                        }
                    }
                    Err(cannot) => cell.note = Some(cannot.to_string()),
                }
            }
        }
    }
    for &tool in &tools {
        remove(&dir(tool))?;
        if workload.heavy {
            builders.empty(tool)?;
        }
    }
    let rows = workload.rows.iter().zip(cells).map(|((id, title), cells)| {
        let size = workload.size.map(|(what, count)| (what.to_owned(), count as u64));
        // The second row of a pair is another question.
        let size =
            size.map(|(what, count)| (if id.ends_with("-again") { format!("no-op re{what}") } else { what }, count));
        Row { id: id.clone(), title: title.clone(), group: workload.group, size, run: 0, cells }
    });
    Ok(rows.collect())
}

fn cell(tool: Tool) -> Cell {
    Cell { name: tool.to_string(), tool: Some(tool), samples: Vec::new(), memory_bytes: None, note: None }
}

/// What the figures depend on besides the builders.
fn machine() -> Result<String> {
    let read = |path: &str| std::fs::read_to_string(path).with_context(|| format!("cannot read `{path}`"));
    let processors = std::thread::available_parallelism()?;
    let cpuinfo = read("/proc/cpuinfo")?;
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown", |(_, model)| model.trim());
    let memory = read("/proc/meminfo")?;
    let kibibytes = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    let gibibytes = kibibytes.and_then(|kibibytes| kibibytes.parse::<u64>().ok()).unwrap_or(0) >> 20;
    let kernel = read("/proc/sys/kernel/osrelease")?;
    let filesystem = filesystem(Path::new(&workspace()));
    Ok(format!("{processors} × {model}, {gibibytes} GiB, {filesystem}, Linux {}", kernel.trim()))
}

/// The type of the file system that has `path`.
fn filesystem(path: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let below = lines.filter(|line| line.len() > 2 && path.starts_with(line[1]));
    below.max_by_key(|line| line[1].len()).map_or_else(|| "unknown".to_owned(), |line| line[2].to_owned())
}
