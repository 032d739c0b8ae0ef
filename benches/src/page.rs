//! The document that results become.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::builder::Tool;
use crate::chart;
use crate::goals::Goal;
use crate::results::{Cell, Group, Results, Row};

const HEAD: &str = "# Benchmarks

Written by `make bench`; run it to get the figures of your machine (it takes about an hour; `make bench-growth` adds what takes
longer, `cargo bench -p build-engine-bench` measures single parts). All builders run in turns in one go, each after a round that
warms up; what takes longer than 20 s is measured twice, everything else at least five times. Wall time is that of the command,
from its start to its end, as median (minimum–maximum); CPU seconds are those of the command, its children and its daemon. Memory is the most
that the resident memory of all of them came to (the daemon counts while idle, too; the pages of a program that several processes run count once; what is quicker
than a second is watched in a round of its own). Every builder keeps the image in its own store under a name, unless the row says otherwise. `Goal` is what we want of
build-engine; what is missed says by how much.
";

const WORKLOADS: &str = "## Workloads

The files are written anew for every cold build, in a folder of its own, and nothing is removed before the last round (ext4 searches past inodes that were
freed a moment ago); before each measurement of a workload that writes much, everything is on disk (`sync`). buildah and podman build
with `--layers --jobs=16`. Disk is what the store of the builder grew by.
";

const GROWTH: &str = "## Growth

The same question at several sizes. build-engine builds several images at once as that many processes, buildah and podman too; buildx as one `bake`.
";

const TRANSFERS: &str = "## Images to and from a registry

One image of 1 GiB, in four layers of 256 MiB of which half cannot be compressed (gzip; every tool has the same blobs,
except that buildah stores trees and makes blobs of them when it pushes), moves through Debian's `docker-registry` on the
loopback address, over plain HTTP. For each push the registry begins empty; before each pull the image is removed from
the store of the tool, and the registry's log shows that every layer was fetched. Before each command everything is on
disk (`sync`). CPU seconds are without those of the registry.
";

/// Where the remaining time goes: written by people, from profiles.
const WHERE: &str = include_str!("../text/where-the-time-goes.md");

/// Renders `benchmarks.md`.
pub(crate) fn render(results: &Results) -> String {
    let mut text = HEAD.to_owned();
    runs(&mut text, results);
    for (group, head) in [(Group::Workloads, WORKLOADS), (Group::Growth, GROWTH), (Group::Transfers, TRANSFERS)] {
        let rows: Vec<&Row> = results.rows.iter().filter(|row| row.group == group).collect();
        if rows.is_empty() {
            continue;
        }
        let _ = write!(text, "\n{head}\n");
        match group {
            Group::Workloads => {
                let _ = writeln!(text, "![Wall time by workload and builder](benchmarks/workloads.svg)\n");
            }
            Group::Growth => {
                for (title, lines) in growth(results) {
                    let _ = writeln!(text, "![{title}](benchmarks/{})", file_name(&title));
                    drop(lines);
                }
                text.push('\n');
            }
            Group::Transfers => {}
        }
        table(&mut text, results, &rows, group == Group::Workloads);
    }
    let _ = write!(text, "\n{WHERE}");
    text
}

/// Writes the document and its charts below `docs`.
pub(crate) fn write(results: &Results, docs: &Path) -> Result<()> {
    let write = |name: &str, text: &str| {
        let path = docs.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()))
    };
    fs::create_dir_all(docs.join("benchmarks"))?;
    write("benchmarks.md", &render(results))?;
    let rows: Vec<&Row> = results.rows.iter().filter(|row| row.group == Group::Workloads).collect();
    if !rows.is_empty() {
        write("benchmarks/workloads.svg", &chart::bars(&rows))?;
    }
    for (title, lines) in growth(results) {
        write(&format!("benchmarks/{}", file_name(&title)), &chart::lines(&title, &lines))?;
    }
    Ok(())
}

/// Where and when which rows were measured.
fn runs(text: &mut String, results: &Results) {
    text.push('\n');
    for (index, run) in results.runs.iter().enumerate() {
        let quick = if run.quick { " **With `--quick`: these are no measurements.**" } else { "" };
        let ids: Vec<&str> = results.rows.iter().filter(|row| row.run == index).map(|row| row.id.as_str()).collect();
        let rows =
            if results.runs.len() == 1 { "Measured".to_owned() } else { format!("{}: measured", ids.join(", ")) };
        let _ = writeln!(text, "{rows} {} on {} with {}.{quick}\n", run.time, run.machine, run.versions.join("; "));
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
}

fn table(text: &mut String, results: &Results, rows: &[&Row], goals: bool) {
    text.push_str("| | what | builder | wall | CPU | memory | times build-engine |");
    text.push_str(if goals {
        " goal |\n|---|---|---|---|---|---|---|---|\n"
    } else {
        "\n|---|---|---|---|---|---|---|\n"
    });
    for row in rows {
        let own = row.cell(Tool::BuildEngine).and_then(Cell::wall);
        for (index, cell) in row.cells.iter().enumerate() {
            let (id, title) = if index == 0 { (row.id.as_str(), row.title.as_str()) } else { ("", "") };
            let (name, wall) = (&cell.name, wall(cell));
            let cpu = cell.cpu().map_or_else(String::new, |cpu| format!("{:.2} s", cpu.as_secs_f64()));
            let mut memory = cell.memory_bytes.map_or_else(String::new, mebibytes);
            if let Some(disk) = cell.disk_bytes() {
                let _ = write!(memory, "; disk {}", mebibytes(disk));
            }
            if let Some(archive) = cell.archive_bytes() {
                let _ = write!(memory, "; archive {}", mebibytes(archive));
            }
            let times = match (cell.wall(), own) {
                (Some(_), _) if cell.tool == Some(Tool::BuildEngine) => "1".to_owned(),
                (Some(theirs), Some(own)) => format!("{:.1}", theirs.as_secs_f64() / own.as_secs_f64()),
                _ => String::new(),
            };
            let _ = write!(text, "| {id} | {title} | {name} | {wall} | {cpu} | {memory} | {times} |");
            if goals {
                let own = cell.tool == Some(Tool::BuildEngine);
                let goal = Goal::of(row).filter(|_| own).map(|goal| goal.judge(row, results).join("; "));
                let _ = write!(text, " {} |", goal.unwrap_or_default());
            }
            text.push('\n');
        }
    }
}

fn wall(cell: &Cell) -> String {
    match (cell.wall(), cell.spread(), &cell.note) {
        (Some(wall), Some((least, most)), _) => format!("{} ({}–{})", show(wall), show(least), show(most)),
        (_, _, Some(note)) => note.clone(),
        _ => "–".to_owned(),
    }
}

/// The lines of each growth chart, by what grows: wall time, and memory.
fn growth(results: &Results) -> BTreeMap<String, Vec<chart::Line>> {
    let mut charts: BTreeMap<String, Vec<chart::Line>> = BTreeMap::new();
    for row in &results.rows {
        let Some((what, size)) = &row.size else { continue };
        for cell in &row.cells {
            let seconds = cell.wall().map(|wall| wall.as_secs_f64());
            let memory = cell.memory_bytes.map(|bytes| bytes as f64 / f64::from(1 << 20));
            for (unit, value) in [("seconds", seconds), ("MiB of memory", memory)] {
                let Some(value) = value else { continue };
                let lines = charts.entry(format!("{}: {unit}", what.replace('`', ""))).or_default();
                match lines.iter_mut().find(|line| line.name == cell.name) {
                    Some(line) => line.points.push((*size, value)),
                    None => lines.push(chart::Line { name: cell.name.clone(), points: vec![(*size, value)] }),
                }
            }
        }
    }
    for line in charts.values_mut().flatten() {
        line.points.sort_by_key(|point| point.0);
    }
    // A single size shows no growth.
    charts.retain(|_, lines| lines.iter().any(|line| line.points.len() > 1));
    charts
}

fn file_name(title: &str) -> String {
    let words = title.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), " ");
    format!("{}.svg", words.split_whitespace().collect::<Vec<_>>().join("-"))
}

/// A time with three digits or so.
pub(crate) fn show(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1000.0;
    if millis < 100.0 {
        format!("{millis:.1} ms")
    } else if millis < 1000.0 {
        format!("{millis:.0} ms")
    } else if millis < 10_000.0 {
        format!("{:.2} s", millis / 1000.0)
    } else {
        format!("{:.1} s", millis / 1000.0)
    }
}

pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
