//! The page that a run of the benchmark becomes.

use std::fmt::Write as _;
use std::time::Duration;

use crate::Sample;

/// The measurements of one workload, by builder.
pub(crate) struct Row {
    /// The workload's short name.
    pub(crate) id: &'static str,
    /// What was built.
    pub(crate) title: &'static str,
    /// For each builder, in the order of the columns.
    pub(crate) samples: Vec<Vec<Sample>>,
}

/// Renders `docs/benchmarks.md`.
pub(crate) fn render(rows: &[Row], builders: &[&str], versions: &str) -> String {
    let mut text = "# Benchmarks\n\nWritten by `make bench`; run it to get the figures of your machine. All builders run in turns in one go, each round\n\
                    after one that warms up. Wall time is that of the command, as median (minimum–maximum); CPU seconds are those of the\n\
                    command, its children and its daemon.\n\n"
        .to_owned();
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    line(format!("Measured with {versions}.\n"));
    line("| | workload | builder | wall | CPU | times as long as build-engine |".to_owned());
    line("|---|---|---|---|---|---|".to_owned());
    for row in rows {
        let own = median(row.samples[0].iter().map(|sample| sample.wall));
        for (index, (builder, samples)) in builders.iter().zip(&row.samples).enumerate() {
            let wall = median(samples.iter().map(|sample| sample.wall));
            let least = samples.iter().map(|sample| sample.wall).min().unwrap_or_default();
            let most = samples.iter().map(|sample| sample.wall).max().unwrap_or_default();
            let cpu = median(samples.iter().map(|sample| sample.cpu));
            let mut cells = String::new();
            let (id, title) = if index == 0 { (row.id, row.title) } else { ("", "") };
            let ratio = wall.as_secs_f64() / own.as_secs_f64();
            let _ = write!(
                cells,
                "| {id} | {title} | {builder} | {} ({}–{}) | {:.2} s | ",
                show(wall),
                show(least),
                show(most),
                cpu.as_secs_f64()
            );
            line(if index == 0 { format!("{cells}1 |") } else { format!("{cells}{ratio:.1} |") });
        }
    }
    text
}

fn median(values: impl Iterator<Item = Duration>) -> Duration {
    let mut values: Vec<Duration> = values.collect();
    values.sort();
    values.get(values.len() / 2).copied().unwrap_or_default()
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
