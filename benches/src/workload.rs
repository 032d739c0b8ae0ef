//! The workloads, made anew in every run and the same in each.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Result;

/// One workload.
pub(crate) struct Workload {
    /// Its short name.
    pub(crate) id: &'static str,
    /// What is built.
    pub(crate) title: &'static str,
    /// Whether each round has a folder of its own.
    pub(crate) fresh: bool,
    /// Writes the context of a round.
    pub(crate) write: fn(&Path, usize) -> Result<()>,
}

/// All of them.
pub(crate) fn all() -> Vec<Workload> {
    vec![
        Workload {
            id: "W1",
            title: "no-op rebuild, 12 instructions, small context",
            fresh: false,
            write: twelve_instructions,
        },
        Workload { id: "W5", title: "30 trivial RUN steps on a warm base", fresh: true, write: thirty_steps },
        Workload { id: "W5-1", title: "one trivial RUN step on a warm base", fresh: true, write: one_step },
    ]
}

fn twelve_instructions(dir: &Path, _round: usize) -> Result<()> {
    if dir.exists() {
        return Ok(());
    }
    fs::create_dir_all(dir.join("src"))?;
    for number in 0..10 {
        fs::write(dir.join(format!("src/{number}.txt")), format!("file {number}\n").repeat(100))?;
    }
    let dockerfile = "FROM base\nARG VERSION=1\nENV APP=/app\nWORKDIR /app\nRUN mkdir -p /app/data\nCOPY src/ /app/src/\n\
                      RUN cat /app/src/*.txt > /app/all\nCOPY src/1.txt /app/one\nRUN echo $VERSION > /app/version\n\
                      LABEL version=1\nEXPOSE 80\nCMD [\"cat\", \"/app/all\"]\n";
    Ok(fs::write(dir.join("Dockerfile"), dockerfile)?)
}

/// Other commands in every round, so that no step is cached.
fn thirty_steps(dir: &Path, round: usize) -> Result<()> {
    steps(dir, round, 30)
}

fn one_step(dir: &Path, round: usize) -> Result<()> {
    steps(dir, round, 1)
}

fn steps(dir: &Path, round: usize, count: usize) -> Result<()> {
    fs::create_dir_all(dir)?;
    let mut dockerfile = "FROM base\n".to_owned();
    // No builder may find the steps of an earlier run of this program in its cache.
    let run = std::process::id();
    for step in 0..count {
        writeln!(dockerfile, "RUN : {run} {round} {count} {step}")?;
    }
    Ok(fs::write(dir.join("Dockerfile"), dockerfile)?)
}
