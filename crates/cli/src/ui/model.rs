//! The build as it stands: a fold over its events that all displays share.

use std::collections::{HashMap, VecDeque};

use build_engine_graph::{Event, Timestamp, Warning};
use build_engine_oci::Digest;

use super::text::Lines;

/// Lines of a vertex's log that are kept for the case that it fails.
const KEPT_LINES: usize = 50;

/// All that is known.
#[derive(Debug, Default)]
pub(crate) struct Model {
    /// Vertices, in the order in which they were announced.
    pub(crate) vertexes: Vec<Vertex>,
    /// Warnings, each once.
    pub(crate) warnings: Vec<Warning>,
    /// When the first event happened.
    pub(crate) began: Option<Timestamp>,
    by_digest: HashMap<Digest, usize>,
}

/// One vertex.
#[derive(Debug)]
pub(crate) struct Vertex {
    /// Its digest.
    pub(crate) digest: Digest,
    /// The name shown, on one line.
    pub(crate) name: String,
    /// Digests of its inputs.
    pub(crate) inputs: Vec<Digest>,
    /// Times in which it was worked on; the last one may be open.
    pub(crate) intervals: Vec<(Timestamp, Option<Timestamp>)>,
    /// Whether an earlier result was used.
    pub(crate) cached: bool,
    /// Why it failed.
    pub(crate) error: Option<String>,
    /// Parts of its work that report progress.
    pub(crate) parts: Vec<Part>,
    /// The last lines of its log.
    pub(crate) tail: VecDeque<String>,
    /// When it last wrote something.
    pub(crate) last_log: Option<Timestamp>,
    lines: Lines,
}

/// A part of a vertex's work.
#[derive(Debug)]
pub(crate) struct Part {
    /// Which.
    pub(crate) id: String,
    /// What is being done.
    pub(crate) action: String,
    /// Bytes so far.
    pub(crate) current: u64,
    /// Bytes in all.
    pub(crate) total: Option<u64>,
    /// First and last news of it.
    pub(crate) started: Timestamp,
    /// Last news of it.
    pub(crate) at: Timestamp,
    /// Whether it is finished.
    pub(crate) done: bool,
}

/// Where a vertex stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Announced only.
    Waiting,
    /// Being worked on.
    Running,
    /// Done.
    Done,
    /// An earlier result was used.
    Cached,
    /// Failed.
    Failed,
    /// Told to stop.
    Canceled,
}

/// What an event changed.
#[derive(Debug, Default)]
pub(crate) struct Change {
    /// The vertex, by its place in [`Model::vertexes`].
    pub(crate) vertex: Option<usize>,
    /// The part, by its place in [`Vertex::parts`].
    pub(crate) part: Option<usize>,
    /// Lines of its log that were finished.
    pub(crate) lines: Vec<String>,
    /// Whether a warning is new.
    pub(crate) warned: bool,
}

impl Vertex {
    fn new(digest: Digest) -> Self {
        Self {
            name: digest.to_string(),
            digest,
            inputs: Vec::new(),
            intervals: Vec::new(),
            cached: false,
            error: None,
            parts: Vec::new(),
            tail: VecDeque::new(),
            last_log: None,
            lines: Lines::default(),
        }
    }

    /// Where it stands.
    pub(crate) fn state(&self) -> State {
        match (self.intervals.last(), &self.error) {
            (None, None) => State::Waiting,
            (_, Some(error)) if is_canceled(error) => State::Canceled,
            (_, Some(_)) => State::Failed,
            (Some((_, None)), None) => State::Running,
            (Some(_), None) if self.cached => State::Cached,
            (Some(_), None) => State::Done,
        }
    }

    /// When work on it began.
    pub(crate) fn started(&self) -> Option<Timestamp> {
        self.intervals.first().map(|(start, _)| *start)
    }

    /// When it was finished.
    pub(crate) fn completed(&self) -> Option<Timestamp> {
        self.intervals.last().and_then(|(_, end)| *end)
    }

    /// Seconds of work so far.
    pub(crate) fn seconds(&self, now: Timestamp) -> f64 {
        self.intervals.iter().map(|(start, end)| seconds(*start, end.unwrap_or(now))).sum()
    }

    /// The last lines of the log, the unfinished one included.
    pub(crate) fn last_lines(&self, count: usize) -> Vec<&str> {
        let open = Some(self.lines.open()).filter(|line| !line.is_empty());
        let mut lines: Vec<&str> =
            open.into_iter().chain(self.tail.iter().rev().map(String::as_str)).take(count).collect();
        lines.reverse();
        lines
    }

    fn keep(&mut self, line: &str) {
        if self.tail.len() == KEPT_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line.to_owned());
    }
}

impl Part {
    /// What is shown of it: action and id.
    pub(crate) fn label(&self) -> String {
        match (self.action.is_empty(), self.id.is_empty()) {
            (true, _) => self.id.clone(),
            (false, true) => self.action.clone(),
            (false, false) if self.action == self.id => self.id.clone(),
            (false, false) => format!("{} {}", self.action, self.id),
        }
    }

    /// Bytes so far and in all; nothing for a part that only counts itself (`exporting manifest`: one of one).
    pub(crate) fn amount(&self) -> Option<String> {
        use super::text::bytes;
        match self.total {
            Some(total) if total > 1 => Some(format!("{} / {}", bytes(self.current), bytes(total))),
            _ if self.current > 1 => Some(bytes(self.current)),
            _ => None,
        }
    }

    /// Seconds of work so far.
    pub(crate) fn seconds(&self, now: Timestamp) -> f64 {
        seconds(self.started, if self.done { self.at } else { now })
    }
}

impl Model {
    /// Takes one event and says what it changed.
    pub(crate) fn apply(&mut self, event: &Event) -> Change {
        let mut change = Change::default();
        match event {
            Event::Vertex { vertex, name, inputs } => {
                let (index, vertex) = self.vertex(vertex);
                vertex.name = super::text::clean(name);
                vertex.inputs.clone_from(inputs);
                change.vertex = Some(index);
            }
            Event::Started { vertex, at } => {
                self.began.get_or_insert(*at);
                let (index, vertex) = self.vertex(vertex);
                if vertex.intervals.last().is_none_or(|(_, end)| end.is_some()) {
                    vertex.intervals.push((*at, None));
                }
                change.vertex = Some(index);
            }
            Event::Progress { vertex, id, action, current, total, at, done } => {
                let (index, vertex) = self.vertex(vertex);
                change.vertex = Some(index);
                change.part = Some(vertex.part(id, action, *current, *total, *at, *done));
            }
            Event::Log { vertex, text, at, .. } => {
                let (index, vertex) = self.vertex(vertex);
                vertex.last_log = Some(*at);
                vertex.lines.push(text, &mut change.lines);
                for line in &change.lines {
                    vertex.keep(line);
                }
                change.vertex = Some(index);
            }
            Event::Completed { vertex, at, cached, error } => {
                let (index, vertex) = self.vertex(vertex);
                if let Some(line) = vertex.lines.finish() {
                    vertex.keep(&line);
                    change.lines.push(line);
                }
                match vertex.intervals.last_mut() {
                    Some((_, end)) => *end = Some(*at),
                    None => vertex.intervals.push((*at, Some(*at))),
                }
                vertex.cached = *cached;
                vertex.error = error.as_deref().map(super::text::clean);
                for part in &mut vertex.parts {
                    if !part.done {
                        part.done = true;
                        part.at = part.at.max(*at);
                    }
                }
                change.vertex = Some(index);
            }
            Event::Warning(warning) => {
                change.vertex = warning.vertex.as_ref().and_then(|digest| self.by_digest.get(digest).copied());
                if !self.warnings.contains(warning) {
                    self.warnings.push(warning.clone());
                    change.warned = true;
                }
            }
        }
        change
    }

    /// Vertices that were worked on, oldest first.
    pub(crate) fn started(&self) -> Vec<&Vertex> {
        let mut started: Vec<&Vertex> = self.vertexes.iter().filter(|vertex| vertex.started().is_some()).collect();
        started.sort_by_key(|vertex| vertex.started());
        started
    }

    /// (finished, all) vertices. Once the build is over, those that were not needed do not count.
    pub(crate) fn counts(&self, over: bool) -> (usize, usize) {
        let finished =
            self.vertexes.iter().filter(|vertex| !matches!(vertex.state(), State::Waiting | State::Running)).count();
        let started = self.vertexes.iter().filter(|vertex| vertex.state() != State::Waiting).count();
        (finished, if over { started } else { self.vertexes.len() })
    }

    fn vertex(&mut self, digest: &Digest) -> (usize, &mut Vertex) {
        let index = match self.by_digest.get(digest) {
            Some(index) => *index,
            None => {
                let index = self.vertexes.len();
                self.by_digest.insert(digest.clone(), index);
                self.vertexes.push(Vertex::new(digest.clone()));
                index
            }
        };
        (index, &mut self.vertexes[index])
    }
}

impl Vertex {
    fn part(&mut self, id: &str, action: &str, current: u64, total: Option<u64>, at: Timestamp, done: bool) -> usize {
        let (id, action) = (super::text::clean(id), super::text::clean(action));
        let known = self.parts.iter().position(|part| part.id == id && part.action == action);
        let index = known.unwrap_or_else(|| {
            // Another thing is being done to the same part now: the one before is finished.
            for part in self.parts.iter_mut().filter(|part| part.id == id) {
                part.done = true;
            }
            self.parts.push(Part { id, action, current, total, started: at, at, done });
            self.parts.len() - 1
        });
        let part = &mut self.parts[index];
        (part.current, part.total, part.at, part.done) = (current, total.or(part.total), at, done);
        index
    }
}

/// Seconds between two points in time; never negative.
pub(crate) fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.0.saturating_sub(from.0) as f64 / 1e9
}

/// Whether an error says that the vertex was told to stop.
pub(crate) fn is_canceled(error: &str) -> bool {
    error.ends_with("canceled") || error.ends_with("cancelled")
}

#[cfg(test)]
pub(crate) mod script {
    //! Events for tests, written as short lines.

    use super::*;
    use build_engine_graph::LogStream;

    /// The digest that stands for a one-letter vertex.
    pub(crate) fn digest(name: &str) -> Digest {
        Digest::sha256(name.as_bytes())
    }

    /// The point in time `milliseconds` after the beginning.
    pub(crate) fn at(milliseconds: u64) -> Timestamp {
        Timestamp(1_700_000_000_000_000_000 + milliseconds * 1_000_000)
    }

    /// Reads a script: `TIME vertex X name…`, `TIME start X`, `TIME log X text…` (`\n`, `\r`, `\t` and `\e` are escapes),
    /// `TIME part X id|action|current|total|done`, `TIME done|cached X`, `TIME fail X error…`, `TIME warn X rule message…`.
    pub(crate) fn events(script: &str) -> Vec<Event> {
        script.lines().map(str::trim).filter(|line| !line.is_empty()).map(event).collect()
    }

    fn event(line: &str) -> Event {
        let mut words = line.splitn(4, ' ');
        let time = at(words.next().expect("a time").parse().expect("milliseconds"));
        let verb = words.next().expect("a verb");
        let vertex = digest(words.next().expect("a vertex"));
        let rest = words
            .next()
            .unwrap_or("")
            .replace("\\n", "\n")
            .replace("\\r", "\r")
            .replace("\\t", "\t")
            .replace("\\e", "\x1b");
        match verb {
            "vertex" => Event::Vertex { vertex, name: rest, inputs: Vec::new() },
            "start" => Event::Started { vertex, at: time },
            "log" => Event::Log { vertex, stream: LogStream::Stdout, text: rest, at: time },
            "part" => {
                let fields: Vec<&str> = rest.split('|').collect();
                Event::Progress {
                    vertex,
                    id: fields[0].into(),
                    action: fields[1].into(),
                    current: fields[2].parse().expect("a number"),
                    total: fields[3].parse().ok(),
                    done: fields[4] == "done",
                    at: time,
                }
            }
            "done" => Event::Completed { vertex, at: time, cached: false, error: None },
            "cached" => Event::Completed { vertex, at: time, cached: true, error: None },
            "fail" => Event::Completed { vertex, at: time, cached: false, error: Some(rest) },
            "warn" => {
                let (rule, message) = rest.split_once(' ').expect("rule and message");
                Event::Warning(Warning {
                    vertex: Some(vertex),
                    rule: rule.into(),
                    message: message.into(),
                    detail: "more about it".into(),
                    url: "https://docs.docker.com/go/dockerfile/rule/x/".into(),
                    place: Some(("Dockerfile".into(), 3)),
                })
            }
            other => panic!("unknown verb {other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::script::{at, events};
    use super::*;

    fn model(script: &str) -> Model {
        let mut model = Model::default();
        for event in events(script) {
            model.apply(&event);
        }
        model
    }

    fn states(model: &Model) -> Vec<(&str, State)> {
        model.vertexes.iter().map(|vertex| (vertex.name.as_str(), vertex.state())).collect()
    }

    #[test]
    fn every_state_follows_from_the_events() {
        let model = model(
            "0 vertex a waiting\n0 vertex b running\n0 vertex c done\n0 vertex d cached\n0 vertex e failed\n0 vertex f canceled
             0 start b\n0 start c\n0 start d\n0 start e\n0 start f
             5 done c\n5 cached d\n5 fail e exit code 1\n6 fail f context canceled",
        );
        assert_eq!(
            states(&model),
            [
                ("waiting", State::Waiting),
                ("running", State::Running),
                ("done", State::Done),
                ("cached", State::Cached),
                ("failed", State::Failed),
                ("canceled", State::Canceled),
            ]
        );
        assert_eq!(model.counts(false), (4, 6));
        assert_eq!(model.counts(true), (4, 5));
    }

    #[test]
    fn the_times_of_a_vertex_that_runs_again_are_added() {
        let model = model("0 vertex a x\n0 start a\n100 done a\n500 start a\n800 done a");
        assert!((model.vertexes[0].seconds(at(9000)) - 0.4).abs() < 1e-6);
    }

    #[test]
    fn the_last_fifty_lines_are_kept() {
        let mut script = String::from("0 vertex a x\n0 start a\n");
        for line in 0..80 {
            script.push_str(&format!("1 log a line {line}\\n\n"));
        }
        script.push_str("2 log a half");
        let model = model(&script);
        assert_eq!(model.vertexes[0].tail.len(), 50);
        assert_eq!(model.vertexes[0].last_lines(2), ["line 79", "half"]);
    }

    #[test]
    fn a_part_ends_when_the_next_thing_is_done_to_it() {
        let model = model("0 start a\n1 part a layer|downloading|5|10|\n2 part a layer|extracting|2||\n3 done a");
        let parts: Vec<_> =
            model.vertexes[0].parts.iter().map(|part| (part.label(), part.amount(), part.done)).collect();
        assert_eq!(
            parts,
            [
                ("downloading layer".to_owned(), Some("5B / 10B".to_owned()), true),
                ("extracting layer".to_owned(), Some("2B".to_owned()), true),
            ]
        );
    }

    #[test]
    fn a_warning_that_is_repeated_counts_once() {
        let model = model("0 warn a Rule text\n0 warn a Rule text");
        assert_eq!(model.warnings.len(), 1);
    }
}
