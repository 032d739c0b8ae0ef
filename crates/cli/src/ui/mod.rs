//! Progress: the events of a build, shown to people or programs on standard error.
//!
//! The displays ([`tty`], [`plain`], [`json`]) fold the one stream of events through [`model`]; they differ in what they
//! print and in nothing else. A thread of its own draws, so that a slow terminal never holds up the build; [`quiet`] needs
//! none.
//!
//! Invariant: a display prints to standard error alone, and what steps wrote reaches the terminal without control codes.

pub(crate) mod json;
pub(crate) mod model;
pub(crate) mod plain;
pub(crate) mod quiet;
pub(crate) mod text;
pub(crate) mod tty;

use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use build_engine_graph::{Event, EventSink, Timestamp, Warning};

use self::model::{Model, State};
use crate::settings::ProgressMode;

/// How often a display is drawn again.
const TICK: Duration = Duration::from_millis(100);

/// Shows the events of one build.
trait Display: Send {
    /// Takes events that have happened.
    fn update(&mut self, events: &[Event], now: Timestamp);
    /// Time has passed.
    fn tick(&mut self, now: Timestamp);
    /// The build is over; `success` says how.
    fn finish(&mut self, success: bool, now: Timestamp);
    /// What is known about the build.
    fn model(&self) -> &Model;
    /// Lines of a failed step's log that are worth printing (again) with the error.
    fn tail_lines(&self) -> usize;
}

/// What a display needs to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Whether colours may be used.
    pub(crate) colour: bool,
    /// Whether warnings are explained.
    pub(crate) verbose: bool,
}

/// A display at work.
pub(crate) struct Progress {
    worker: Option<(Sender<Message>, JoinHandle<Summary>)>,
}

/// What remains to be said when a build is over.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    /// The last lines of the log of the step that failed.
    pub(crate) failed_log: Vec<String>,
}

enum Message {
    Event(Event),
    Finish { success: bool },
}

impl Progress {
    /// Starts a display.
    pub(crate) fn start(mode: ProgressMode, options: Options) -> Self {
        let display: Box<dyn Display> = match mode {
            ProgressMode::Quiet => return Self { worker: None },
            ProgressMode::Tty => Box::new(tty::Tty::new(options)),
            ProgressMode::Plain => Box::new(plain::Plain::new(std::io::stderr(), options)),
            ProgressMode::RawJson => Box::new(json::Json::new(std::io::stderr())),
        };
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new().name("progress".into()).spawn(move || show(display, &receiver));
        Self { worker: thread.ok().map(|thread| (sender, thread)) }
    }

    /// Where the engine sends its events to.
    pub(crate) fn sink(&self) -> Arc<dyn EventSink> {
        match &self.worker {
            None => Arc::new(quiet::Quiet),
            Some((sender, _)) => {
                let sender = sender.clone();
                Arc::new(move |event| {
                    // A display that is gone shows nothing; the build goes on.
                    let _ = sender.send(Message::Event(event));
                })
            }
        }
    }

    /// Draws what is left and gives the terminal back.
    pub(crate) fn finish(self, success: bool) -> Summary {
        let Some((sender, thread)) = self.worker else { return Summary::default() };
        let _ = sender.send(Message::Finish { success });
        let summary = thread.join().unwrap_or_default();
        tty::restore();
        summary
    }
}

fn show(mut display: Box<dyn Display>, receiver: &Receiver<Message>) -> Summary {
    let mut batch = Vec::new();
    let success = 'over: loop {
        match receiver.recv_timeout(TICK) {
            Ok(Message::Event(event)) => batch.push(event),
            Ok(Message::Finish { success }) => break success,
            Err(RecvTimeoutError::Timeout) => {
                display.tick(now());
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => break false,
        }
        while batch.len() < 4096 {
            match receiver.try_recv() {
                Ok(Message::Event(event)) => batch.push(event),
                Ok(Message::Finish { success }) => {
                    display.update(&batch, now());
                    break 'over success;
                }
                Err(_) => break,
            }
        }
        display.update(&batch, now());
        batch.clear();
    };
    if !success {
        display.update(&stopped(display.model(), now()), now());
    }
    display.finish(success, now());
    Summary { failed_log: failed_log(display.model(), display.tail_lines()) }
}

/// The ends of vertices that were at work when the build ended; who cancels a build does not wait to hear of them.
fn stopped(model: &Model, at: Timestamp) -> Vec<Event> {
    let running = model.vertexes.iter().filter(|vertex| vertex.state() == State::Running);
    running
        .map(|vertex| Event::Completed {
            vertex: vertex.digest.clone(),
            at,
            cached: false,
            error: Some("canceled".into()),
        })
        .collect()
}

/// The last lines that the first failed vertex wrote.
fn failed_log(model: &Model, count: usize) -> Vec<String> {
    model
        .vertexes
        .iter()
        .filter(|vertex| vertex.state() == State::Failed)
        .min_by_key(|vertex| vertex.completed())
        .map(|vertex| vertex.last_lines(count).into_iter().map(str::to_owned).collect())
        .unwrap_or_default()
}

/// The warnings of a build, for the end of a display; empty where there are none.
fn warnings(model: &Model, verbose: bool) -> String {
    let (notes, rules): (Vec<&Warning>, Vec<&Warning>) =
        model.warnings.iter().partition(|warning| warning.rule.is_empty());
    let mut out = String::new();
    for note in notes {
        out.push_str(&format!("note: {}\n", text::clean(&note.message)));
        explain(&mut out, note, verbose);
    }
    if !rules.is_empty() {
        let more = if verbose { "" } else { " (--verbose explains them)" };
        let plural = if rules.len() == 1 { "" } else { "s" };
        out.push_str(&format!("\n {} warning{plural} found{more}:\n", rules.len()));
        for warning in rules {
            out.push_str(&format!(" - {}\n", text::clean(&short(warning))));
            explain(&mut out, warning, verbose);
        }
    }
    out
}

/// A warning in BuildKit's short form: `Rule: message (line 3)`.
fn short(warning: &Warning) -> String {
    let mut text = match warning.rule.as_str() {
        "" => warning.message.clone(),
        rule => format!("{rule}: {}", warning.message),
    };
    if let Some((_, line)) = &warning.place {
        text.push_str(&format!(" (line {line})"));
    }
    text
}

fn explain(out: &mut String, warning: &Warning, verbose: bool) {
    if verbose {
        let place = warning.place.as_ref().map(|(file, line)| format!("{file}:{line}"));
        let more = (!warning.url.is_empty()).then(|| format!("More info: {}", warning.url));
        for line in warning.detail.lines().map(str::to_owned).chain(place).chain(more) {
            out.push_str(&format!("   {}\n", text::clean(&line)));
        }
    }
}

/// Writes to standard error. Nobody is left to be told when that fails.
pub(crate) fn to_stderr(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes());
    let _ = stderr.flush();
}

/// The time, as events have it.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::model::script::events;
    use super::*;

    #[test]
    fn warnings_are_summed_up_and_explained_on_request() {
        let mut model = Model::default();
        for event in events("0 warn a StageNameCasing stage `A` is not in lower case") {
            model.apply(&event);
        }
        let Some(warning) = model.warnings.first().cloned() else { panic!("a warning was given") };
        model.apply(&Event::Warning(Warning {
            rule: String::new(),
            message: "no private network here".into(),
            url: String::new(),
            ..warning
        }));
        expect![[r#"
            note: no private network here

             1 warning found (--verbose explains them):
             - StageNameCasing: stage `A` is not in lower case (line 3)
        "#]]
        .assert_eq(&warnings(&model, false));
        expect![[r#"
            note: no private network here
               more about it
               Dockerfile:3

             1 warning found:
             - StageNameCasing: stage `A` is not in lower case (line 3)
               more about it
               Dockerfile:3
               More info: https://docs.docker.com/go/dockerfile/rule/x/
        "#]]
        .assert_eq(&warnings(&model, true));
    }

    #[test]
    fn vertices_that_were_at_work_when_the_build_ended_were_stopped() {
        let mut model = Model::default();
        for event in events("0 vertex a waiting\n0 start b\n0 start c\n1 done c") {
            model.apply(&event);
        }
        for event in stopped(&model, Timestamp(9)) {
            model.apply(&event);
        }
        let states: Vec<State> = model.vertexes.iter().map(model::Vertex::state).collect();
        assert_eq!(states, [State::Waiting, State::Canceled, State::Done]);
    }

    #[test]
    fn the_log_of_the_vertex_that_failed_first_is_given() {
        let mut model = Model::default();
        for event in events("0 start a\n0 start b\n1 log a one\\ntwo\n2 log b other\n3 fail b x\n2 fail a x") {
            model.apply(&event);
        }
        assert_eq!(failed_log(&model, 10), ["one", "two"]);
    }
}
