//! Failures: how they are shown, and which exit code they give. The one place for both.
//!
//! The engine describes what went wrong as [`Report`]s; here they become text. A report that has a place is shown as a
//! frame of the Dockerfile, and the last lines of a failed step stand before it.

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use build_engine_engine::{BuildError, ExitKind, Place, Report};

use crate::ui::text;

/// A command that did not do what it was asked to.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What was found.
    pub(crate) error: BuildError,
    /// The exit code.
    pub(crate) code: u8,
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        let code = error.kind.code();
        Self { error, code }
    }
}

impl Failure {
    /// A failure with one report.
    pub(crate) fn new(kind: ExitKind, report: Report) -> Self {
        BuildError::new(kind, report).into()
    }

    /// Invalid usage or input.
    pub(crate) fn input(rule: &str, message: impl Into<String>) -> Self {
        Self::new(ExitKind::Input, Report::new(rule, message))
    }

    /// Several findings about the input; `reports` is not empty.
    pub(crate) fn inputs(reports: Vec<Report>) -> Self {
        BuildError { kind: ExitKind::Input, reports }.into()
    }

    /// Something could not be read or written. A file that is not there is the user's mistake, the rest is the world's.
    pub(crate) fn io(message: impl Into<String>, error: &std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::IsADirectory | std::io::ErrorKind::NotADirectory => {
                ExitKind::Input
            }
            _ => ExitKind::Io,
        };
        Self::new(kind, Report::new("", message).caused_by(error))
    }

    /// Adds the way out to the first report.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Some(first) = self.error.reports.first_mut() {
            first.hint = Some(hint.into());
        }
        self
    }
}

/// How text is shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    /// Whether colours may be used.
    pub(crate) colour: bool,
    /// Columns of the terminal.
    pub(crate) width: usize,
}

/// Renders all reports of `error`, with a final line break.
pub(crate) fn render(error: &BuildError, style: Style) -> String {
    let mut out = String::new();
    for (index, report) in error.reports.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        render_report(&mut out, report, style);
    }
    out
}

fn render_report(out: &mut String, report: &Report, style: Style) {
    if !report.log_tail.is_empty() {
        let lines = report.log_tail.len();
        out.push_str("------\n");
        out.push_str(&format!(" > last {lines} line{} of the log:\n", if lines == 1 { "" } else { "s" }));
        for line in &report.log_tail {
            out.push_str(&text::clean(line));
            out.push('\n');
        }
        out.push_str("------\n");
    }
    let mut title = Level::ERROR.primary_title(text::clean(&report.message));
    if !report.rule.is_empty() {
        title = title.id(report.rule.as_str());
    }
    let group = match &report.place {
        Some(place) => {
            let span = span_within(place);
            title.element(
                Snippet::source(place.text.as_str())
                    .path(place.file.as_str())
                    .annotation(AnnotationKind::Primary.span(span)),
            )
        }
        None => Group::with_title(title),
    };
    let renderer = if style.colour { Renderer::styled() } else { Renderer::plain() };
    out.push_str(renderer.term_width(style.width.max(40)).render(&[group]).trim_end());
    out.push('\n');
    for cause in &report.causes {
        out.push_str("caused by: ");
        out.push_str(&text::clean(cause));
        out.push('\n');
    }
    if let Some(hint) = &report.hint {
        out.push_str(&label("hint", "36", style));
        out.push_str(&text::clean(hint));
        out.push('\n');
    }
}

/// `word: `, in colour where that is allowed.
pub(crate) fn label(word: &str, sgr: &str, style: Style) -> String {
    if style.colour { format!("\x1b[1;{sgr}m{word}\x1b[0m: ") } else { format!("{word}: ") }
}

/// The bytes that are marked: within the text, on character borders, without the white space at the end.
fn span_within(place: &Place) -> std::ops::Range<usize> {
    let text = place.text.as_str();
    let mut start = place.start.min(text.len());
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    let mut end = place.end.clamp(start, text.len());
    while !text.is_char_boundary(end) {
        end += 1;
    }
    start..start + text[start..end].trim_end().len()
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const DOCKERFILE: &str = "FROM scratch AS builder\nCOPY . /src\n\nFROM scratch\nCOPY --from=biulder /out/app /app\nRUN set -e; \\\n    make all\n";

    fn report() -> Report {
        Report::new("unknown-stage", "no stage or image is named `biulder`")
            .hint("a stage named `builder` starts at line 1")
    }

    fn at(needle: &str) -> Option<Place> {
        let start = DOCKERFILE.find(needle).expect("the needle is in the text");
        Some(Place { file: "Dockerfile".into(), text: DOCKERFILE.into(), start, end: start + needle.len() })
    }

    fn check(reports: Vec<Report>, expected: &Expect) {
        let error = BuildError { kind: ExitKind::Input, reports };
        expected.assert_eq(&render(&error, Style { colour: false, width: 100 }));
    }

    #[test]
    fn a_mistake_is_shown_in_its_line_with_the_way_out() {
        check(
            vec![report().at(at("biulder"))],
            &expect![[r#"
            error[unknown-stage]: no stage or image is named `biulder`
             --> Dockerfile:5:13
              |
            5 | COPY --from=biulder /out/app /app
              |             ^^^^^^^
            hint: a stage named `builder` starts at line 1
        "#]],
        );
    }

    #[test]
    fn a_failed_step_shows_its_log_before_the_frame() {
        let mut failed = Report::new("step-failed", "process `make all` exited with code 2")
            .at(at("RUN set -e; \\\n    make all\n"));
        failed.log_tail = vec!["cc main.c".into(), "\x1b[31mmain.c:1: error\x1b[0m".into()];
        check(
            vec![failed],
            &expect![[r#"
            ------
             > last 2 lines of the log:
            cc main.c
            main.c:1: error
            ------
            error[step-failed]: process `make all` exited with code 2
             --> Dockerfile:6:1
              |
            6 | / RUN set -e; \
            7 | |     make all
              | |____________^
        "#]],
        );
    }

    #[test]
    fn all_reports_are_shown_with_their_causes() {
        let mut first = Report::new("", "cannot read `a`");
        first.causes = vec!["permission denied".into()];
        check(
            vec![first, report()],
            &expect![[r#"
            error: cannot read `a`
            caused by: permission denied

            error[unknown-stage]: no stage or image is named `biulder`
            hint: a stage named `builder` starts at line 1
        "#]],
        );
    }

    #[test]
    fn a_place_outside_of_its_text_is_clamped() {
        let place = Place { file: "Dockerfile".into(), text: "FROM é\n".into(), start: 6, end: 900 };
        check(
            vec![report().at(Some(place))],
            &expect![[r#"
            error[unknown-stage]: no stage or image is named `biulder`
             --> Dockerfile:1:6
              |
            1 | FROM é
              |      ^
            hint: a stage named `builder` starts at line 1
        "#]],
        );
        let place = Place { file: "Dockerfile".into(), text: String::new(), start: 6, end: 900 };
        let error = BuildError::new(ExitKind::Input, report().at(Some(place)));
        assert!(render(&error, Style { colour: true, width: 0 }).contains("biulder"));
    }
}
