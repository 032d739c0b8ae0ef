//! The goals, as data: what a row has to come to, and how far from it a measurement is.

use std::time::Duration;

use crate::builder::Tool;
use crate::page::{mebibytes, show};
use crate::results::{Cell, Results, Row};

/// What a row has to come to; what is `None` or empty is not asked.
pub(crate) struct Goal {
    /// The row.
    pub(crate) id: &'static str,
    pub(crate) wall: Option<Duration>,
    /// How many times as long another builder has to take.
    pub(crate) times: &'static [(Tool, f64)],
    /// At most so many times the wall time of another row.
    pub(crate) of_row: Option<(&'static str, f64)>,
    pub(crate) memory_mebibytes: Option<u64>,
    pub(crate) disk_mebibytes: Option<u64>,
    /// Whether the archive may be no larger than what `gzip -1` makes of the same files.
    pub(crate) as_small_as_gzip: bool,
}

const NONE: Goal = Goal {
    id: "",
    wall: None,
    times: &[],
    of_row: None,
    memory_mebibytes: None,
    disk_mebibytes: None,
    as_small_as_gzip: false,
};

const fn millis(wall: u64) -> Option<Duration> {
    Some(Duration::from_millis(wall))
}

/// All of them.
#[rustfmt::skip]
pub(crate) const GOALS: &[Goal] = &[
    // Buildx is the client in front of BuildKit; what it adds is what its users wait for.
    Goal { id: "W1", wall: millis(12), times: &[(Tool::Buildx, 15.0)], memory_mebibytes: Some(60), ..NONE },
    Goal { id: "W2", wall: millis(130), times: &[(Tool::Buildx, 10.0)], memory_mebibytes: Some(150), ..NONE },
    Goal { id: "W3", wall: millis(500), times: &[(Tool::Buildx, 15.0)], memory_mebibytes: Some(150), ..NONE },
    Goal { id: "W4", wall: millis(1200), times: &[(Tool::Buildx, 6.0)], memory_mebibytes: Some(150), ..NONE },
    Goal { id: "W4-tree", wall: millis(3200), times: &[(Tool::Buildx, 6.0)], memory_mebibytes: Some(150), ..NONE },
    Goal { id: "W5", wall: millis(200), times: &[(Tool::Buildx, 10.0)], memory_mebibytes: Some(60), ..NONE },
    Goal { id: "W6", wall: millis(620), ..NONE },
    // One uncompressed and one compressed copy.
    Goal { id: "W7", wall: millis(7000), times: &[(Tool::Buildx, 8.0)], memory_mebibytes: Some(200),
           disk_mebibytes: Some(1700), as_small_as_gzip: true, ..NONE },
    Goal { id: "W7z", wall: millis(4000), memory_mebibytes: Some(200), disk_mebibytes: Some(1700), ..NONE },
    Goal { id: "W8", wall: millis(400), ..NONE },
    Goal { id: "W9", of_row: Some(("W7", 1.2)), ..NONE },
    Goal { id: "W9-again", wall: millis(60), ..NONE },
    Goal { id: "W10", wall: millis(300), memory_mebibytes: Some(60), ..NONE },
    Goal { id: "W11", of_row: Some(("W11-plain", 1.2)), ..NONE },
    Goal { id: "W11-from", wall: millis(200), ..NONE },
];

impl Goal {
    /// The goal of a row.
    pub(crate) fn of(row: &Row) -> Option<&'static Goal> {
        GOALS.iter().find(|goal| goal.id == row.id)
    }

    /// Says of each part whether it is met, or how far from it the engine is.
    pub(crate) fn judge(&self, row: &Row, results: &Results) -> Vec<String> {
        let Some(cell) = row.cell(Tool::BuildEngine) else { return Vec::new() };
        let Some(own) = cell.wall() else { return Vec::new() };
        let mut said = Vec::new();
        if let Some(wall) = self.wall {
            said.push(at_most(&show(wall), own.as_secs_f64() / wall.as_secs_f64()));
        }
        for (tool, times) in self.times {
            if let Some(theirs) = row.cell(*tool).and_then(Cell::wall) {
                let ratio = theirs.as_secs_f64() / own.as_secs_f64();
                let verdict = if ratio >= *times { "met".to_owned() } else { format!("**{ratio:.1}×**") };
                said.push(format!("≥ {times}× {}: {verdict}", tool.flag()));
            }
        }
        if let Some((other, times)) = self.of_row {
            let other_row = results.rows.iter().find(|row| row.id == other);
            if let Some(wall) = other_row.and_then(|row| row.cell(Tool::BuildEngine)?.wall()) {
                let ratio = own.as_secs_f64() / wall.as_secs_f64() / times;
                said.push(at_most(&format!("{times} × {other}"), ratio));
            }
        }
        for (most, bytes, what) in
            [(self.memory_mebibytes, cell.memory_bytes, "memory"), (self.disk_mebibytes, cell.disk_bytes(), "disk")]
        {
            if let (Some(most), Some(bytes)) = (most, bytes) {
                said.push(at_most(&format!("{most} MiB {what}"), bytes as f64 / (most << 20) as f64));
            }
        }
        let of_gzip = cell.samples.iter().find_map(|sample| sample.gzip_bytes);
        if let (true, Some(own), Some(gzip)) = (self.as_small_as_gzip, cell.archive_bytes(), of_gzip) {
            said.push(at_most(&format!("{} archive (`gzip -1`)", mebibytes(gzip)), own as f64 / gzip as f64));
        }
        said
    }
}

fn at_most(what: &str, ratio: f64) -> String {
    let verdict = if ratio <= 1.0 { "met".to_owned() } else { format!("**{ratio:.2}× that**") };
    format!("≤ {what}: {verdict}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Group;
    use crate::sample::Sample;

    fn cell(tool: Tool, millis: u64) -> Cell {
        let sample = Sample { wall: Duration::from_millis(millis), ..Sample::default() };
        Cell {
            name: tool.to_string(),
            tool: Some(tool),
            samples: vec![sample],
            memory_bytes: Some(90 << 20),
            note: None,
        }
    }

    #[test]
    fn each_part_of_a_goal_is_judged_by_itself() {
        let cells = vec![cell(Tool::BuildEngine, 24), cell(Tool::Buildx, 480)];
        let row = Row { id: "W1".to_owned(), title: String::new(), group: Group::Workloads, size: None, run: 0, cells };
        let said = Goal::of(&row).expect("W1 has a goal").judge(&row, &Results::default());
        assert_eq!(said, ["≤ 12.0 ms: **2.00× that**", "≥ 15× buildx: met", "≤ 60 MiB memory: **1.50× that**"]);
    }
}
