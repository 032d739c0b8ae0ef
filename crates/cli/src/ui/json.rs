//! `--progress=rawjson`: one JSON object a line, in the shape of BuildKit's `SolveStatus`, so that tools made for
//! buildx's `rawjson` read it too.
//!
//! Source: BuildKit `client/graph.go`. Bytes are in base64, times in RFC 3339.

use std::io::Write;

use build_engine_graph::{Event, LogStream, Timestamp};
use serde_json::{Map, Value, json};

use super::Display;
use super::model::{Model, Vertex, is_canceled};

/// The display.
pub(crate) struct Json<W> {
    model: Model,
    out: W,
}

impl<W: Write + Send> Json<W> {
    /// Writes to `out`.
    pub(crate) fn new(out: W) -> Self {
        Self { model: Model::default(), out }
    }

    fn status(&mut self, event: &Event) -> Option<Value> {
        let change = self.model.apply(event);
        let vertex = change.vertex.map(|index| &self.model.vertexes[index]);
        match event {
            Event::Vertex { .. } | Event::Started { .. } | Event::Completed { .. } => {
                Some(json!({ "vertexes": [vertex_value(vertex?)] }))
            }
            Event::Progress { at, .. } => {
                let vertex = vertex?;
                let part = vertex.parts.get(change.part?)?;
                let mut status = Map::new();
                status.insert("id".into(), part.label().into());
                status.insert("vertex".into(), vertex.digest.to_string().into());
                if !part.action.is_empty() {
                    status.insert("name".into(), part.action.clone().into());
                }
                if let Some(total) = part.total {
                    status.insert("total".into(), total.into());
                }
                status.insert("current".into(), part.current.into());
                status.insert("timestamp".into(), time(*at));
                status.insert("started".into(), time(part.started));
                if part.done {
                    status.insert("completed".into(), time(*at));
                }
                Some(json!({ "statuses": [status] }))
            }
            Event::Log { vertex, stream, text, at } => {
                let stream = match stream {
                    LogStream::Stdout => 1,
                    LogStream::Stderr => 2,
                };
                let data = base64(text.as_bytes());
                Some(
                    json!({ "logs": [{ "vertex": vertex.to_string(), "stream": stream, "data": data, "timestamp": time(*at) }] }),
                )
            }
            Event::Warning(warning) => {
                let mut value = Map::new();
                if let Some(vertex) = &warning.vertex {
                    value.insert("vertex".into(), vertex.to_string().into());
                }
                value.insert("level".into(), 1.into());
                let short = super::short(warning);
                value.insert("short".into(), base64(short.as_bytes()).into());
                if !warning.detail.is_empty() {
                    value.insert("detail".into(), json!([base64(warning.detail.as_bytes())]));
                }
                if !warning.url.is_empty() {
                    value.insert("url".into(), warning.url.clone().into());
                }
                if let Some((file, line)) = &warning.place {
                    value.insert("sourceInfo".into(), json!({ "filename": file, "language": "Dockerfile" }));
                    value.insert("range".into(), json!([{ "start": { "line": line }, "end": { "line": line } }]));
                }
                Some(json!({ "warnings": [value] }))
            }
        }
    }
}

impl<W: Write + Send> Display for Json<W> {
    fn update(&mut self, events: &[Event], _now: Timestamp) {
        let mut text = String::new();
        for event in events {
            if let Some(value) = self.status(event) {
                text.push_str(&value.to_string());
                text.push('\n');
            }
        }
        let _ = self.out.write_all(text.as_bytes());
        let _ = self.out.flush();
    }

    fn tick(&mut self, _now: Timestamp) {}

    fn finish(&mut self, _success: bool, _now: Timestamp) {}

    fn model(&self) -> &Model {
        &self.model
    }

    fn tail_lines(&self) -> usize {
        0
    }
}

fn vertex_value(vertex: &Vertex) -> Value {
    let mut value = Map::new();
    value.insert("digest".into(), vertex.digest.to_string().into());
    if !vertex.inputs.is_empty() {
        value.insert("inputs".into(), vertex.inputs.iter().map(ToString::to_string).collect());
    }
    value.insert("name".into(), vertex.name.clone().into());
    if let Some((started, completed)) = vertex.intervals.last() {
        value.insert("started".into(), time(*started));
        if let Some(completed) = completed {
            value.insert("completed".into(), time(*completed));
        }
    }
    if vertex.cached {
        value.insert("cached".into(), true.into());
    }
    if let Some(error) = &vertex.error {
        // Tools recognise a step that was stopped by the words of Go's context package.
        let error = if is_canceled(error) { "context canceled" } else { error.as_str() };
        value.insert("error".into(), error.into());
    }
    value.into()
}

fn time(at: Timestamp) -> Value {
    jiff::Timestamp::from_nanosecond(i128::from(at.0)).unwrap_or_default().to_string().into()
}

/// Bytes in base64, with padding.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group =
            chunk.iter().enumerate().fold(0, |group, (index, byte)| group | u32::from(*byte) << (16 - 8 * index));
        for place in 0..4 {
            out.push(if place > chunk.len() {
                '='
            } else {
                ALPHABET[(group >> (18 - 6 * place) & 63) as usize] as char
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::super::model::script::{at, events};
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (text, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(text.as_bytes()), expected);
        }
    }

    #[test]
    fn lines_have_the_shape_of_solve_status() {
        let mut out = Vec::new();
        let mut json = Json::new(&mut out);
        json.update(
            &events(
                "0 vertex a [1/2] RUN make\n0 start a\n10 log a hello\n20 part a sha256:1|extracting|5|10|\n30 part a sha256:1|extracting|10|10|done
                 40 warn a Rule text\n50 fail a canceled",
            ),
            at(60),
        );
        drop(json);
        let text =
            String::from_utf8(out).expect("UTF-8").replace(&super::super::model::script::digest("a").to_string(), "A");
        expect![[r#"
            {"vertexes":[{"digest":"A","name":"[1/2] RUN make"}]}
            {"vertexes":[{"digest":"A","name":"[1/2] RUN make","started":"2023-11-14T22:13:20Z"}]}
            {"logs":[{"vertex":"A","stream":1,"data":"aGVsbG8=","timestamp":"2023-11-14T22:13:20.01Z"}]}
            {"statuses":[{"id":"extracting sha256:1","vertex":"A","name":"extracting","total":10,"current":5,"timestamp":"2023-11-14T22:13:20.02Z","started":"2023-11-14T22:13:20.02Z"}]}
            {"statuses":[{"id":"extracting sha256:1","vertex":"A","name":"extracting","total":10,"current":10,"timestamp":"2023-11-14T22:13:20.03Z","started":"2023-11-14T22:13:20.02Z","completed":"2023-11-14T22:13:20.03Z"}]}
            {"warnings":[{"vertex":"A","level":1,"short":"UnVsZTogdGV4dCAobGluZSAzKQ==","detail":["bW9yZSBhYm91dCBpdA=="],"url":"https://docs.docker.com/go/dockerfile/rule/x/","sourceInfo":{"filename":"Dockerfile","language":"Dockerfile"},"range":[{"start":{"line":3},"end":{"line":3}}]}]}
            {"vertexes":[{"digest":"A","name":"[1/2] RUN make","started":"2023-11-14T22:13:20Z","completed":"2023-11-14T22:13:20.05Z","error":"context canceled"}]}
        "#]]
        .assert_eq(&text);
    }
}
