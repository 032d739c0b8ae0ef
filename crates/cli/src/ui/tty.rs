//! `--progress=tty`: a live view of the build, in place.
//!
//! [`frame`] turns the model into rows, [`Screen`] turns rows into the bytes that replace the frame before. Neither
//! looks at the clock or the terminal, so both are tested against a screen made of memory.
//!
//! Invariant: no row is as wide as the terminal, so that a frame of N rows takes N rows; and the cursor, once hidden, is
//! shown again on every way out ([`restore`]).

use std::sync::atomic::{AtomicBool, Ordering};

use build_engine_graph::{Event, Timestamp};

use super::model::{Model, State, Vertex, seconds};
use super::{Display, Options, TICK, text};

/// Log lines shown below a running step.
const LOG_ROWS: usize = 6;

/// Whether the cursor of the terminal is hidden by us.
static CURSOR_HIDDEN: AtomicBool = AtomicBool::new(false);

/// Shows the cursor again if it is hidden. Safe to call at any time, from any thread.
pub(crate) fn restore() {
    if CURSOR_HIDDEN.swap(false, Ordering::SeqCst) {
        super::to_stderr("\x1b[?25h");
    }
}

/// Columns and rows of the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// Columns.
    pub(crate) width: usize,
    /// Rows.
    pub(crate) height: usize,
}

impl Size {
    /// That of the terminal on standard error; 80 × 24 where there is none.
    pub(crate) fn of_stderr() -> Self {
        let size = rustix::termios::tcgetwinsize(rustix::stdio::stderr()).ok();
        let or = |value: Option<u16>, default| value.filter(|value| *value > 0).map_or(default, usize::from);
        Self { width: or(size.map(|size| size.ws_col), 80), height: or(size.map(|size| size.ws_row), 24) }
    }
}

/// The display.
pub(crate) struct Tty {
    model: Model,
    screen: Screen,
    options: Options,
    began: Timestamp,
    drawn: Option<Timestamp>,
}

impl Tty {
    /// A display on standard error.
    pub(crate) fn new(options: Options) -> Self {
        Self { model: Model::default(), screen: Screen::default(), options, began: super::now(), drawn: None }
    }

    fn draw(&mut self, phase: Phase, now: Timestamp) {
        self.drawn = Some(now);
        let size = Size::of_stderr();
        let rows = frame(&self.model, self.began, now, size, phase);
        CURSOR_HIDDEN.store(true, Ordering::SeqCst);
        super::to_stderr(&self.screen.draw(&rows, size, self.options.colour));
    }
}

impl Display for Tty {
    fn update(&mut self, events: &[Event], now: Timestamp) {
        for event in events {
            self.model.apply(event);
        }
        // The first frame waits as well: a build that is over at once is drawn once.
        if seconds(self.drawn.unwrap_or(self.began), now) >= TICK.as_secs_f64() {
            self.draw(Phase::Running, now);
        }
    }

    fn tick(&mut self, now: Timestamp) {
        self.draw(Phase::Running, now);
    }

    fn finish(&mut self, success: bool, now: Timestamp) {
        if self.model.vertexes.is_empty() {
            super::to_stderr(&self.screen.draw(&[], Size::of_stderr(), self.options.colour));
        } else {
            self.draw(if success { Phase::Finished } else { Phase::Failed }, now);
        }
        restore();
        super::to_stderr(&super::warnings(&self.model, self.options.verbose));
    }

    fn model(&self) -> &Model {
        &self.model
    }

    fn tail_lines(&self) -> usize {
        usize::MAX
    }
}

/// Whether the build goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It does.
    Running,
    /// It is done.
    Finished,
    /// It failed or was stopped.
    Failed,
}

/// What a row means; decides its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Header and running steps.
    Normal,
    /// Finished.
    Done,
    /// Failed.
    Failed,
    /// Stopped.
    Canceled,
    /// Log lines.
    Faint,
}

/// One row of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    text: String,
    tone: Tone,
}

/// Lays out the whole view. While the build runs it fits into `size`; at the end it may be longer.
pub(crate) fn frame(model: &Model, began: Timestamp, now: Timestamp, size: Size, phase: Phase) -> Vec<Row> {
    // The last column stays empty: writing into it makes some terminals wrap and others not.
    let width = size.width.saturating_sub(1);
    let over = phase != Phase::Running;
    let (finished, total) = model.counts(over);
    let mut header = format!("[+] Building {:.1}s ({finished}/{total})", seconds(began, now));
    if phase == Phase::Finished {
        header.push_str(" FINISHED");
    }
    let mut rows = vec![Row { text: text::fit(&header, width), tone: Tone::Normal }];
    let started = model.started();
    let budget = if over { usize::MAX } else { size.height.saturating_sub(2) };
    let shares = share(&started, budget, over);
    for (vertex, share) in started.iter().zip(shares) {
        if share.shown {
            rows.push(vertex_row(vertex, now, width));
        }
        for part in vertex.parts.iter().rev().take(share.parts).rev() {
            let tone = if part.done { Tone::Done } else { Tone::Normal };
            let label = format!(" => => {}", part.label());
            rows.push(Row { text: row(&label, part.amount().as_deref(), part.seconds(now), width), tone });
        }
        for line in vertex.last_lines(share.logs) {
            rows.push(Row { text: text::fit(&format!(" => => # {line}"), width), tone: Tone::Faint });
        }
    }
    rows
}

/// How much of a vertex is shown.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    shown: bool,
    parts: usize,
    logs: usize,
}

/// Divides `budget` rows: first what runs, then its parts, then the logs (most recent talkers first), then what was
/// finished last.
fn share(started: &[&Vertex], budget: usize, over: bool) -> Vec<Share> {
    let mut shares = vec![Share::default(); started.len()];
    if over {
        for (share, vertex) in shares.iter_mut().zip(started) {
            *share = Share { shown: true, parts: vertex.parts.len(), logs: 0 };
        }
        return shares;
    }
    let mut left = budget;
    let running: Vec<usize> = (0..started.len()).filter(|index| started[*index].state() == State::Running).collect();
    for index in &running {
        if left > 0 {
            shares[*index].shown = true;
            left -= 1;
        }
    }
    let shown: Vec<usize> = running.into_iter().filter(|index| shares[*index].shown).collect();
    for index in &shown {
        let parts = started[*index].parts.len().min(left).min(LOG_ROWS);
        shares[*index].parts = parts;
        left -= parts;
    }
    // The two steps that were finished last stay in sight if there is any room.
    let mut finished: Vec<usize> = (0..started.len())
        .filter(|index| !matches!(started[*index].state(), State::Running | State::Waiting))
        .collect();
    finished.sort_by_key(|index| started[*index].completed());
    for index in finished.iter().rev().take(2) {
        if left > 0 {
            shares[*index].shown = true;
            left -= 1;
        }
    }
    let mut talkers = shown;
    talkers.sort_by_key(|index| std::cmp::Reverse(started[*index].last_log));
    for index in talkers {
        let logs = started[index].last_lines(LOG_ROWS).len().min(left);
        shares[index].logs = logs;
        left -= logs;
    }
    for index in finished.into_iter().rev() {
        if left > 0 && !shares[index].shown {
            shares[index].shown = true;
            left -= 1;
        }
    }
    shares
}

fn vertex_row(vertex: &Vertex, now: Timestamp, width: usize) -> Row {
    let (mark, tone) = match vertex.state() {
        State::Waiting | State::Running => ("", Tone::Normal),
        State::Done => ("", Tone::Done),
        State::Cached => ("CACHED ", Tone::Done),
        State::Failed => ("ERROR ", Tone::Failed),
        State::Canceled => ("CANCELED ", Tone::Canceled),
    };
    let name = format!(" => {mark}{}", vertex.name);
    Row { text: row(&name, None, vertex.seconds(now), width), tone }
}

/// Name on the left, amount and time on the right.
fn row(name: &str, amount: Option<&str>, seconds: f64, width: usize) -> String {
    let time = format!("{:.1}s", if seconds < 0.05 { 0.0 } else { seconds });
    let mut right = format!("{time:>6}");
    if let Some(amount) = amount
        && width > amount.len() + right.len() + 20
    {
        right = format!("{amount} {right}");
    }
    if width < right.len() + 12 {
        return text::fit(name, width);
    }
    let room = width - right.len() - 1;
    let name = text::fit(name, room);
    let gap = " ".repeat(room - text::width(&name) + 1);
    format!("{name}{gap}{right}")
}

/// What stands on the terminal, and how to replace it.
#[derive(Debug, Default)]
pub(crate) struct Screen {
    /// Columns taken by each row of the last frame.
    rows: Vec<usize>,
}

impl Screen {
    /// The bytes that replace the last frame by `rows`.
    pub(crate) fn draw(&mut self, rows: &[Row], size: Size, colour: bool) -> String {
        let mut out = String::from("\x1b[?25l\r");
        // A terminal that has become narrower wraps what stands on it.
        let up: usize = self.rows.iter().map(|columns| columns.div_ceil(size.width.max(1)).max(1)).sum();
        if up > 0 {
            out.push_str(&format!("\x1b[{up}A"));
        }
        for row in rows {
            match sgr(row.tone).filter(|_| colour) {
                Some(sgr) => out.push_str(&format!("\x1b[{sgr}m{}\x1b[0m", row.text)),
                None => out.push_str(&row.text),
            }
            out.push_str("\x1b[K\r\n");
        }
        out.push_str("\x1b[J");
        self.rows = rows.iter().map(|row| text::width(&row.text)).collect();
        out
    }
}

fn sgr(tone: Tone) -> Option<&'static str> {
    match tone {
        Tone::Normal => None,
        Tone::Done => Some("34"),
        Tone::Failed => Some("31"),
        Tone::Canceled => Some("33"),
        Tone::Faint => Some("2"),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::super::model::script::{at, events};
    use super::*;

    /// A terminal made of memory: understands what [`Screen`] writes and refuses the rest.
    struct Terminal {
        size: Size,
        rows: Vec<Vec<char>>,
        /// Rows that were pushed out at the top.
        history: Vec<String>,
        row: usize,
        column: usize,
        cursor_shown: bool,
    }

    impl Terminal {
        fn new(width: usize, height: usize) -> Self {
            let size = Size { width, height };
            Self { size, rows: vec![Vec::new(); height], history: Vec::new(), row: 0, column: 0, cursor_shown: true }
        }

        fn write(&mut self, text: &str) {
            let mut chars = text.chars();
            while let Some(char) = chars.next() {
                match char {
                    '\r' => self.column = 0,
                    '\n' => {
                        if self.row + 1 == self.size.height {
                            let top = self.rows.remove(0);
                            self.history.push(top.into_iter().collect());
                            self.rows.push(Vec::new());
                        } else {
                            self.row += 1;
                        }
                    }
                    '\x1b' => {
                        assert_eq!(chars.next(), Some('['), "only CSI sequences are used");
                        let mut parameters = String::new();
                        let last = loop {
                            match chars.next().expect("the sequence ends") {
                                char @ ('0'..='9' | ';' | '?') => parameters.push(char),
                                last => break last,
                            }
                        };
                        match (last, parameters.as_str()) {
                            ('A', count) => self.row = self.row.saturating_sub(count.parse().expect("a number")),
                            ('K', "") => self.rows[self.row].truncate(self.column),
                            ('J', "") => {
                                self.rows[self.row].truncate(self.column);
                                for row in &mut self.rows[self.row + 1..] {
                                    row.clear();
                                }
                            }
                            ('m', _) => {}
                            ('l', "?25") => self.cursor_shown = false,
                            ('h', "?25") => self.cursor_shown = true,
                            other => panic!("unexpected sequence {other:?}"),
                        }
                    }
                    char => {
                        assert!(self.column + 1 < self.size.width, "a row reaches the last column");
                        let row = &mut self.rows[self.row];
                        row.resize(row.len().max(self.column + 1), ' ');
                        row[self.column] = char;
                        self.column += 1;
                    }
                }
            }
        }

        /// Makes it narrower or lower, wrapping rows as most terminals do.
        fn resize(&mut self, width: usize, height: usize) {
            let mut rows: Vec<Vec<char>> = Vec::new();
            for row in &self.rows[..=self.row] {
                let chunks: Vec<_> = row.chunks(width).map(<[char]>::to_vec).collect();
                rows.extend(if chunks.is_empty() { vec![Vec::new()] } else { chunks });
            }
            while rows.len() > height {
                self.history.push(rows.remove(0).into_iter().collect());
            }
            self.row = rows.len() - 1;
            rows.resize(height, Vec::new());
            (self.rows, self.size) = (rows, Size { width, height });
        }

        fn text(&self) -> String {
            let visible = self.rows.iter().map(|row| row.iter().collect::<String>());
            let all: Vec<String> = self.history.iter().cloned().chain(visible).collect();
            format!("{}\n", all.join("\n").trim_end())
        }
    }

    struct Player {
        model: Model,
        screen: Screen,
        terminal: Terminal,
    }

    impl Player {
        fn new(width: usize, height: usize) -> Self {
            Self { model: Model::default(), screen: Screen::default(), terminal: Terminal::new(width, height) }
        }

        fn play(&mut self, script: &str, now: u64, phase: Phase) -> &mut Self {
            for event in events(script) {
                self.model.apply(&event);
            }
            let rows = frame(&self.model, at(0), at(now), self.terminal.size, phase);
            if phase == Phase::Running {
                assert!(rows.len() < self.terminal.size.height, "the frame fits");
            }
            let bytes = self.screen.draw(&rows, self.terminal.size, true);
            self.terminal.write(&bytes);
            self
        }

        fn check(&self, expected: &Expect) {
            expected.assert_eq(&self.terminal.text());
            assert!(!self.terminal.cursor_shown);
        }
    }

    const START: &str = "0 vertex a [internal] load build definition from Dockerfile
        0 vertex b [build 1/3] FROM oci-layout://base
        0 vertex c [build 2/3] RUN apt-get update && apt-get install -y --no-install-recommends gcc make libc6-dev
        0 vertex d [test 2/3] RUN make test
        0 vertex e exporting to image
        0 start a\n10 done a\n10 start b\n20 cached b\n20 start c\n20 start d
        100 log c Reading package lists...\\nBuilding dependency tree...\\nUnpack
        200 log d \\e[32mok\\e[0m\\tfirst";

    #[test]
    fn running_steps_show_times_and_the_end_of_their_logs() {
        Player::new(72, 24).play(START, 1500, Phase::Running).check(&expect![[r#"
            [+] Building 1.5s (2/5)
             => [internal] load build definition from Dockerfile               0.0s
             => CACHED [build 1/3] FROM oci-layout://base                      0.0s
             => [build 2/3] RUN apt-get update && apt-get install -y --no...   1.5s
             => => # Reading package lists...
             => => # Building dependency tree...
             => => # Unpack
             => [test 2/3] RUN make test                                       1.5s
             => => # ok     first
        "#]]);
    }

    #[test]
    fn a_frame_replaces_the_one_before_and_the_end_shows_everything() {
        Player::new(72, 24)
            .play(START, 1500, Phase::Running)
            .play("1600 done d\n1700 log c ing\\n\n1800 done c\n1800 start e\n1800 part e layers|exporting|1000000|4000000|", 2000, Phase::Running)
            .play("2100 part e layers|exporting|4000000|4000000|done\n2200 done e", 2200, Phase::Finished)
            .check(&expect![[r#"
                [+] Building 2.2s (5/5) FINISHED
                 => [internal] load build definition from Dockerfile               0.0s
                 => CACHED [build 1/3] FROM oci-layout://base                      0.0s
                 => [build 2/3] RUN apt-get update && apt-get install -y --no...   1.8s
                 => [test 2/3] RUN make test                                       1.6s
                 => exporting to image                                             0.4s
                 => => exporting layers                          4.00MB / 4.00MB   0.3s
            "#]]);
    }

    #[test]
    fn a_failed_build_says_which_step_failed_and_which_was_stopped() {
        Player::new(72, 24)
            .play(START, 1500, Phase::Running)
            .play("1600 fail c exit code 100\n1700 fail d canceled", 1700, Phase::Failed)
            .check(&expect![[r#"
                [+] Building 1.7s (4/4)
                 => [internal] load build definition from Dockerfile               0.0s
                 => CACHED [build 1/3] FROM oci-layout://base                      0.0s
                 => ERROR [build 2/3] RUN apt-get update && apt-get install -...   1.6s
                 => CANCELED [test 2/3] RUN make test                              1.7s
            "#]]);
    }

    #[test]
    fn a_low_terminal_shows_what_runs() {
        Player::new(50, 6).play(START, 1500, Phase::Running).check(&expect![[r#"
            [+] Building 1.5s (2/5)
             => [internal] load build definition fr...   0.0s
             => CACHED [build 1/3] FROM oci-layout:...   0.0s
             => [build 2/3] RUN apt-get update && a...   1.5s
             => [test 2/3] RUN make test                 1.5s
        "#]]);
    }

    #[test]
    fn a_terminal_that_becomes_narrower_is_cleaned_up() {
        let mut player = Player::new(72, 24);
        player.play(START, 1500, Phase::Running);
        player.terminal.resize(40, 24);
        player.play("", 1600, Phase::Running).check(&expect![[r#"
            [+] Building 1.6s (2/5)
             => [internal] load build def...   0.0s
             => CACHED [build 1/3] FROM o...   0.0s
             => [build 2/3] RUN apt-get u...   1.6s
             => => # Reading package lists...
             => => # Building dependency tree...
             => => # Unpack
             => [test 2/3] RUN make test       1.6s
             => => # ok     first
        "#]]);
        player.terminal.resize(12, 5);
        player.play("", 1700, Phase::Running);
        player.terminal.resize(1, 1);
        let rows = frame(&player.model, at(0), at(0), player.terminal.size, Phase::Running);
        assert!(rows.iter().all(|row| row.text.is_empty()), "nothing is written where nothing fits");
    }

    #[test]
    fn more_running_steps_than_rows_still_fit() {
        let mut script = String::new();
        for index in 0..40 {
            script.push_str(&format!(
                "0 vertex v{index} step {index}\n{index} start v{index}\n50 log v{index} text\\n\n"
            ));
        }
        Player::new(80, 10).play(&script, 100, Phase::Running);
    }
}
