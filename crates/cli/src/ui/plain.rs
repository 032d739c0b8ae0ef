//! `--progress=plain`: lines in buildx's layout, without control codes, for logs and for reading later.
//!
//! Vertices are numbered in the order in which they are first shown. The lines of vertices that run at the same time are
//! not mixed: one is shown, the others wait until it is finished, or silent, or has been shown for long.

use std::collections::HashMap;
use std::io::Write;

use build_engine_graph::{Event, Timestamp};

use super::model::{Model, State, Vertex, seconds};
use super::{Display, Options};

/// A vertex that has this many seconds of news waiting is shown even though another one is still talking.
const PATIENCE: f64 = 5.0;
/// A vertex that has said nothing for so many seconds gives way to one that has news.
const SILENCE: f64 = 0.5;
/// News of a part are printed when it moved by this share of its size, or after [`PATIENCE`].
const PROGRESS_STEP: f64 = 0.05;

/// The display.
pub(crate) struct Plain<W> {
    model: Model,
    out: W,
    options: Options,
    shown: HashMap<usize, Shown>,
    current: Option<usize>,
    first: bool,
    numbers: usize,
}

/// What has been shown of a vertex, and what has not.
#[derive(Debug, Default)]
struct Shown {
    number: usize,
    pending: Vec<String>,
    /// When the oldest of `pending` came.
    since: Option<Timestamp>,
    /// When something of it was last printed.
    last: Option<Timestamp>,
    /// How far the parts were when they were last printed.
    parts: HashMap<usize, (u64, Timestamp)>,
    /// Whether the end was printed.
    ended: bool,
}

impl<W: Write + Send> Plain<W> {
    /// Writes to `out`.
    pub(crate) fn new(out: W, options: Options) -> Self {
        Self { model: Model::default(), out, options, shown: HashMap::new(), current: None, first: true, numbers: 0 }
    }

    fn take(&mut self, event: &Event, now: Timestamp, text: &mut String) {
        let change = self.model.apply(event);
        let Some(index) = change.vertex else { return };
        let vertex = &self.model.vertexes[index];
        let state = vertex.state();
        let shown = self.shown.entry(index).or_default();
        let news = match event {
            Event::Vertex { .. } => return,
            Event::Started { .. } => {
                // It runs again: its end is to be told again, too.
                shown.ended = false;
                Vec::new()
            }
            Event::Log { at, .. } => log_lines(vertex, &change.lines, *at),
            Event::Progress { at, .. } => match change.part {
                Some(part) => shown.part_line(vertex, part, *at).into_iter().collect(),
                None => Vec::new(),
            },
            Event::Completed { at, .. } => {
                let mut news = log_lines(vertex, &change.lines, *at);
                for (part, _) in vertex.parts.iter().enumerate() {
                    news.extend(shown.part_line(vertex, part, *at));
                }
                shown.ended = true;
                news.extend(end_line(vertex, now));
                news
            }
            Event::Warning(warning) if change.warned => {
                vec![format!("WARN: {}", super::text::clean(&super::short(warning)))]
            }
            Event::Warning(_) => return,
        };
        if state == State::Waiting {
            return;
        }
        shown.since.get_or_insert(now);
        shown.pending.extend(news);
        if shown.ended {
            self.print(index, now, text);
        }
    }

    /// Prints what is pending of the vertex that is to be shown.
    fn choose(&mut self, now: Timestamp, text: &mut String) {
        let waiting = |shown: &Shown| shown.since.map(|since| seconds(since, now));
        let longest = self
            .shown
            .iter()
            .filter(|(index, _)| Some(**index) != self.current)
            .filter_map(|(index, shown)| Some((waiting(shown)?, *index)))
            .max_by(|(left, one), (right, two)| left.total_cmp(right).then(two.cmp(one)));
        if let Some(current) = self.current {
            self.print(current, now, text);
            let silent = self.shown.get(&current).and_then(|shown| shown.last).map_or(0.0, |last| seconds(last, now));
            match longest {
                Some((wait, other)) if wait >= PATIENCE || silent >= SILENCE => self.print(other, now, text),
                _ => {}
            }
        } else if let Some((_, other)) = longest {
            self.print(other, now, text);
        }
    }

    fn print(&mut self, index: usize, now: Timestamp, text: &mut String) {
        let Some(shown) = self.shown.get_mut(&index) else { return };
        if shown.since.is_none() {
            return;
        }
        if shown.number == 0 {
            self.numbers += 1;
            shown.number = self.numbers;
        }
        let (number, ended) = (shown.number, shown.ended);
        let pending = std::mem::take(&mut shown.pending);
        (shown.since, shown.last) = (None, Some(now));
        if self.current != Some(index) {
            if let Some(old) = self.current.and_then(|old| self.shown.get(&old)) {
                text.push_str(&format!("#{} ...\n", old.number));
            }
            if !self.first {
                text.push('\n');
            }
            text.push_str(&format!("#{number} {}\n", self.model.vertexes[index].name));
        }
        self.first = false;
        for line in pending {
            text.push_str(&format!("#{number} {line}\n"));
        }
        self.current = (!ended).then_some(index);
    }

    fn write(&mut self, text: &str) {
        if !text.is_empty() {
            let _ = self.out.write_all(text.as_bytes());
            let _ = self.out.flush();
        }
    }
}

impl<W: Write + Send> Display for Plain<W> {
    fn update(&mut self, events: &[Event], now: Timestamp) {
        let mut text = String::new();
        for event in events {
            self.take(event, now, &mut text);
        }
        self.choose(now, &mut text);
        self.write(&text);
    }

    fn tick(&mut self, now: Timestamp) {
        let mut text = String::new();
        self.choose(now, &mut text);
        self.write(&text);
    }

    fn finish(&mut self, _success: bool, now: Timestamp) {
        let mut text = String::new();
        let mut left: Vec<usize> = self.shown.keys().copied().collect();
        left.sort_unstable();
        for index in left {
            self.print(index, now, &mut text);
        }
        text.push_str(&super::warnings(&self.model, self.options.verbose));
        self.write(&text);
    }

    fn model(&self) -> &Model {
        &self.model
    }

    fn tail_lines(&self) -> usize {
        // They stand above already; the last ones are repeated beside the error.
        10
    }
}

impl Shown {
    /// The line about a part, if it is time for one.
    fn part_line(&mut self, vertex: &Vertex, index: usize, at: Timestamp) -> Option<String> {
        let part = &vertex.parts[index];
        if let Some((current, last)) = self.parts.get(&index) {
            let moved = part
                .total
                .filter(|total| *total > 0)
                .map_or(0.0, |total| part.current.saturating_sub(*current) as f64 / total as f64);
            let finished = *current == u64::MAX;
            if finished || (!part.done && moved < PROGRESS_STEP && seconds(*last, at) < PATIENCE) {
                return None;
            }
        }
        self.parts.insert(index, (if part.done { u64::MAX } else { part.current }, at));
        let mut line = part.label();
        if let Some(amount) = part.amount() {
            line.push(' ');
            line.push_str(&amount);
        }
        let took = part.seconds(at);
        if took > 0.01 {
            line.push_str(&format!(" {took:.1}s"));
        }
        if part.done {
            line.push_str(" done");
        }
        Some(line)
    }
}

fn log_lines(vertex: &Vertex, lines: &[String], at: Timestamp) -> Vec<String> {
    let since = vertex.started().map_or(0.0, |start| seconds(start, at));
    // As buildx: fewer digits the longer it takes, so that the columns stay.
    let precision = if since < 1.0 {
        3
    } else if since < 10.0 {
        2
    } else {
        1
    };
    lines.iter().map(|line| format!("{since:.precision$} {line}")).collect()
}

fn end_line(vertex: &Vertex, now: Timestamp) -> Option<String> {
    match vertex.state() {
        State::Waiting | State::Running => None,
        State::Cached => Some("CACHED".into()),
        State::Canceled => Some("CANCELED".into()),
        State::Failed => Some(format!("ERROR: {}", vertex.error.as_deref().unwrap_or_default())),
        State::Done => Some(format!("DONE {:.1}s", vertex.seconds(now))),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::super::model::script::{at, events};
    use super::*;

    /// Plays batches of events; each batch begins with `@TIME`.
    fn check(script: &str, expected: &Expect) {
        let mut out = Vec::new();
        let mut plain = Plain::new(&mut out, Options { colour: false, verbose: false });
        let mut last = at(0);
        for batch in script.split('@').skip(1) {
            let (time, rest) = batch.split_once('\n').unwrap_or((batch, ""));
            last = at(time.trim().parse().expect("milliseconds"));
            plain.update(&events(rest), last);
        }
        plain.finish(true, last);
        drop(plain);
        expected.assert_eq(&String::from_utf8(out).expect("UTF-8"));
    }

    #[test]
    fn the_layout_is_that_of_buildx() {
        check(
            "@0
             0 vertex a [internal] load build definition from Dockerfile\n0 vertex b [build 1/2] FROM base\n0 vertex c [build 2/2] RUN make\n0 vertex d never needed
             0 start a\n0 part a transferring dockerfile:||0||
             @10
             5 part a transferring dockerfile:||120|120|done\n10 done a\n10 start b\n10 cached b\n20 start c
             @200\n123 log c hel\n@300\n150 log c lo\\n\\e[31mred\\e[0m\\n\n2400 log c 10%\\r20%\\rlast\n@3000\n3020 done c",
            &expect![[r#"
                #1 [internal] load build definition from Dockerfile
                #1 transferring dockerfile:
                #1 transferring dockerfile: 120B / 120B done
                #1 DONE 0.0s

                #2 [build 1/2] FROM base
                #2 CACHED

                #3 [build 2/2] RUN make
                #3 0.130 hello
                #3 0.130 red
                #3 3.00 last
                #3 DONE 3.0s
            "#]],
        );
    }

    #[test]
    fn failed_and_stopped_vertices_say_so() {
        check(
            "@0\n0 vertex a RUN false\n0 vertex b RUN sleep\n0 start a\n0 start b\n@10\n10 fail a exit code: 1\n11 fail b canceled",
            &expect![[r#"
                #1 RUN false
                #1 ERROR: exit code: 1

                #2 RUN sleep
                #2 CANCELED
            "#]],
        );
    }

    #[test]
    fn parallel_vertices_are_not_mixed() {
        check(
            "@0\n0 vertex a A\n0 vertex b B\n0 start a\n0 start b\n0 log a a1\\n\n0 log b b1\\n
             @100\n100 log b b2\\n\n100 log a a2\\n
             @200\n200 log b b3\\n
             @700\n700 log b b4\\n
             @800\n800 log a a3\\n
             @900\n900 done a\n@950\n950 done b",
            &expect![[r#"
                #1 A
                #1 0.000 a1
                #1 0.100 a2
                #1 ...

                #2 B
                #2 0.000 b1
                #2 0.100 b2
                #2 0.200 b3
                #2 0.700 b4
                #2 ...

                #1 A
                #1 0.800 a3
                #1 DONE 0.9s

                #2 B
                #2 DONE 0.9s
            "#]],
        );
    }

    #[test]
    fn warnings_stand_with_their_vertex_and_at_the_end() {
        check(
            "@0\n0 vertex a A\n0 start a\n1 warn a StageNameCasing name it in lower case\n2 done a",
            &expect![[r#"
                #1 A
                #1 WARN: StageNameCasing: name it in lower case (line 3)
                #1 DONE 0.0s

                 1 warning found (--verbose explains them):
                 - StageNameCasing: name it in lower case (line 3)
            "#]],
        );
    }
}
