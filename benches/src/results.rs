//! What was measured: kept as JSON, from which the page can be written again, and merged with other runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::builder::Tool;
use crate::sample::Sample;

/// All rows, and the runs that they are from.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) runs: Vec<Run>,
    pub(crate) rows: Vec<Row>,
}

/// One start of this program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// UTC, to the minute.
    pub(crate) time: String,
    /// Processors, memory, kernel.
    pub(crate) machine: String,
    /// Of the builders.
    pub(crate) versions: Vec<String>,
    /// Small sizes and one repetition: no figures to quote.
    pub(crate) quick: bool,
}

/// Where a row is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Group {
    /// The workloads of the goals.
    Workloads,
    /// One question at several sizes.
    Growth,
    /// An image to and from a registry.
    Transfers,
}

/// The measurements of one workload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    /// The workload's short name.
    pub(crate) id: String,
    /// What was done.
    pub(crate) title: String,
    pub(crate) group: Group,
    /// In a growth row: what is done, and how much of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) size: Option<(String, u64)>,
    /// Which of the runs it is from.
    pub(crate) run: usize,
    pub(crate) cells: Vec<Cell>,
}

/// What one builder, or tool of a registry, did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cell {
    /// As shown.
    pub(crate) name: String,
    /// The builder; none for what only moves images.
    pub(crate) tool: Option<Tool>,
    pub(crate) samples: Vec<Sample>,
    /// The most memory of all rounds.
    pub(crate) memory_bytes: Option<u64>,
    /// Why there are no samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<String>,
}

impl Cell {
    pub(crate) fn wall(&self) -> Option<Duration> {
        median(self.samples.iter().map(|sample| sample.wall))
    }

    pub(crate) fn cpu(&self) -> Option<Duration> {
        median(self.samples.iter().map(|sample| sample.cpu))
    }

    /// Least and most.
    pub(crate) fn spread(&self) -> Option<(Duration, Duration)> {
        let walls = || self.samples.iter().map(|sample| sample.wall);
        Some((walls().min()?, walls().max()?))
    }

    pub(crate) fn disk_bytes(&self) -> Option<u64> {
        median(self.samples.iter().filter_map(|sample| sample.disk_bytes))
    }

    pub(crate) fn archive_bytes(&self) -> Option<u64> {
        median(self.samples.iter().filter_map(|sample| sample.archive_bytes))
    }
}

impl Row {
    pub(crate) fn cell(&self, tool: Tool) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.tool == Some(tool))
    }
}

impl Results {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("`{}` is not a file of results", path.display()))
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let text = serde_json::to_string_pretty(self)?;
        fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
    }

    /// Takes over the rows of `newer`, in the place of those with the same name.
    pub(crate) fn merge(&mut self, newer: Results) {
        let first = self.runs.len();
        self.runs.extend(newer.runs);
        for mut row in newer.rows {
            row.run += first;
            match self.rows.iter_mut().find(|old| old.id == row.id) {
                Some(old) => *old = row,
                None => self.rows.push(row),
            }
        }
        self.forget_unused_runs();
    }

    fn forget_unused_runs(&mut self) {
        let used: BTreeSet<usize> = self.rows.iter().map(|row| row.run).collect();
        let places: BTreeMap<usize, usize> = used.iter().enumerate().map(|(new, old)| (*old, new)).collect();
        for row in &mut self.rows {
            row.run = places[&row.run];
        }
        self.runs = used.iter().map(|run| self.runs[*run].clone()).collect();
    }
}

/// The middle one; of an even number, the lower of the two in the middle.
fn median<T: Ord + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut values: Vec<T> = values.collect();
    values.sort();
    values.get(values.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(time: &str, rows: &[(&str, u64)]) -> Results {
        let run = Run { time: time.to_owned(), machine: String::new(), versions: Vec::new(), quick: false };
        let rows = rows
            .iter()
            .map(|(id, millis)| {
                let sample = Sample { wall: Duration::from_millis(*millis), ..Sample::default() };
                let (name, tool) = ("build-engine".to_owned(), Some(Tool::BuildEngine));
                let cell = Cell { name, tool, samples: vec![sample], memory_bytes: None, note: None };
                let (id, title) = ((*id).to_owned(), String::new());
                Row { id, title, group: Group::Workloads, size: None, run: 0, cells: vec![cell] }
            })
            .collect();
        Results { runs: vec![run], rows }
    }

    /// Rows of a newer run take the place of old ones, and each still says which run it is from.
    #[test]
    fn a_newer_run_replaces_its_rows_alone() {
        let mut all = results("one", &[("W1", 1), ("W2", 2)]);
        all.merge(results("two", &[("W2", 3), ("W3", 4)]));
        let seen: Vec<_> = all
            .rows
            .iter()
            .map(|row| (row.id.as_str(), all.runs[row.run].time.as_str(), row.cells[0].wall()))
            .collect();
        let millis = |millis| Some(Duration::from_millis(millis));
        assert_eq!(seen, [("W1", "one", millis(1)), ("W2", "two", millis(3)), ("W3", "two", millis(4))]);
        all.merge(results("three", &[("W1", 5)]));
        assert_eq!(all.runs.iter().map(|run| run.time.as_str()).collect::<Vec<_>>(), ["two", "three"]);
        assert_eq!(all.runs[all.rows[0].run].time, "three");
    }

    #[test]
    fn the_median_is_one_of_the_values() {
        assert_eq!(median([3, 1, 2].into_iter()), Some(2));
        assert_eq!(median([4, 1].into_iter()), Some(1));
        assert_eq!(median(std::iter::empty::<u8>()), None);
    }
}
