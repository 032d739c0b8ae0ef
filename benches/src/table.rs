//! The page that a run of the benchmark becomes.

use std::fmt::Write as _;
use std::time::Duration;

use crate::sample::Sample;
use crate::{BUILDERS, transfer};

const HEAD: &str = "# Benchmarks

Written by `make bench`; run it to get the figures of your machine. All builders run in turns in one go, each round
after one that warms up. Wall time is that of the command, as median (minimum–maximum); CPU seconds are those of the
command, its children and its daemon.
";

const TRANSFERS: &str = "## Images to and from a registry

One image of 1 GiB, in four layers of 256 MiB of which half cannot be compressed (gzip; every tool has the same blobs,
except that buildah stores trees and makes blobs of them when it pushes), moves through Debian's `docker-registry` on the
loopback address, over plain HTTP. For each push the registry begins empty; before each pull the image is removed from
the store of the tool, and the registry's log shows that every layer was fetched. Before each command everything is on
disk (`sync`). CPU seconds are without those of the registry. Memory is the most that the resident memory of the command,
its children and its daemon (idle or not) came to, looked at every 10 ms; pages that two processes share count twice.
";

/// The measurements of one workload, by builder.
pub(crate) struct Row {
    /// The workload's short name.
    pub(crate) id: &'static str,
    /// What was built.
    pub(crate) title: &'static str,
    /// For each builder, in the order of the columns; none from one that cannot do it.
    pub(crate) samples: Vec<Vec<Sample>>,
}

/// Renders `docs/benchmarks.md`.
pub(crate) fn render(builds: &[Row], transfers: &[Row], versions: &str) -> String {
    let mut text = format!("{HEAD}\nMeasured with {versions}.\n");
    if !builds.is_empty() {
        text.push_str(
            "\n| | workload | builder | wall | CPU | times as long as build-engine |\n|---|---|---|---|---|---|\n",
        );
        table(&mut text, builds, BUILDERS, |all, own| {
            format!("{:.2} s | {}", seconds(cpu(all)), times(all, own, wall))
        });
    }
    if !transfers.is_empty() {
        let _ = write!(
            text,
            "\n{TRANSFERS}\n| | what | tool | wall | CPU | memory | times the wall time of build-engine | times its CPU |\n"
        );
        text.push_str("|---|---|---|---|---|---|---|---|\n");
        table(&mut text, transfers, transfer::TOOLS, |all, own| {
            let (wall, cpu_times) = (times(all, own, wall), times(all, own, cpu));
            format!("{:.2} s | {} | {wall} | {cpu_times}", seconds(cpu(all)), memory(all))
        });
    }
    text
}

/// Writes the lines of some rows; `rest` makes the columns after the wall time, of the samples and those of build-engine.
fn table(text: &mut String, rows: &[Row], names: &[&str], rest: impl Fn(&[Sample], &[Sample]) -> String) {
    for row in rows {
        let own = &row.samples[0];
        for (index, (name, samples)) in names.iter().zip(&row.samples).enumerate() {
            if samples.is_empty() {
                continue;
            }
            let (id, title) = if index == 0 { (row.id, row.title) } else { ("", "") };
            let walls = || samples.iter().map(|sample| sample.wall);
            let (least, most) = (walls().min().unwrap_or_default(), walls().max().unwrap_or_default());
            let wall = format!("{} ({}–{})", show(wall(samples)), show(least), show(most));
            let _ = writeln!(text, "| {id} | {title} | {name} | {wall} | {} |", rest(samples, own));
        }
    }
}

fn wall(samples: &[Sample]) -> Duration {
    median(samples.iter().map(|sample| sample.wall))
}

fn cpu(samples: &[Sample]) -> Duration {
    median(samples.iter().map(|sample| sample.cpu))
}

fn memory(samples: &[Sample]) -> String {
    let bytes = median(samples.iter().filter_map(|sample| sample.memory_bytes));
    format!("{} MiB", bytes >> 20)
}

/// How many times as much a figure is as that of build-engine.
fn times(all: &[Sample], own: &[Sample], figure: impl Fn(&[Sample]) -> Duration) -> String {
    // What is beside the resolution of the clock is no factor.
    let (all, own) = (seconds(figure(all)), seconds(figure(own)).max(0.001));
    let ratio = all / own;
    if (ratio - 1.0).abs() < f64::EPSILON { "1".to_owned() } else { format!("{ratio:.1}") }
}

fn median<T: Ord + Copy + Default>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

fn show(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1000.0;
    if millis < 100.0 {
        format!("{millis:.1} ms")
    } else if millis < 10_000.0 {
        format!("{:.2} s", millis / 1000.0)
    } else {
        format!("{:.1} s", millis / 1000.0)
    }
}
