//! What is printed where: no control codes without a terminal, data on stdout, talk on stderr.

use build_engine_testkit::engine::Who;
use serde_json::Value;

use crate::Bench;

const FILES: &[(&str, &str)] =
    &[("Dockerfile", "FROM base\nRUN echo said && printf 'carriage\\rreturn\\n' && echo on stderr >&2\n")];

#[test]
fn without_a_terminal_no_progress_has_control_codes() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    for kind in ["auto", "plain", "rawjson", "quiet"] {
        let run = bench.build("context", FILES, &["--no-cache", "--tag=x", &format!("--progress={kind}")]);
        assert_eq!(run.code, Some(0), "{kind}: {}", run.stderr);
        for text in [&run.stdout, &run.stderr] {
            assert!(!text.contains('\x1b'), "{kind}: {text:?}");
        }
    }
}

#[test]
fn plain_progress_shows_steps_and_what_they_say() {
    let Some(bench) = Bench::new(Who::User) else { return };
    let run = bench.build("context", FILES, &["--tag=x"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    for part in ["RUN echo said", "said", "on stderr"] {
        assert!(run.stderr.contains(part), "no `{part}`:\n{}", run.stderr);
    }
    assert!(!run.stdout.contains("said"), "{}", run.stdout);
    let again = bench.build("context", FILES, &["--tag=x"]);
    assert!(again.stderr.contains("CACHED"), "{}", again.stderr);
}

#[test]
fn rawjson_is_one_event_a_line() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let run = bench.build("context", FILES, &["--tag=x", "--progress=rawjson"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let mut lines = 0;
    for line in run.stderr.lines().filter(|line| !line.is_empty()) {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        lines += 1;
    }
    assert!(lines > 3, "{}", run.stderr);
}

#[test]
fn quiet_prints_the_image_id_and_nothing_else() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let run = bench.build("context", FILES, &["--tag=x", "--quiet"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let id = run.stdout.trim();
    assert!(id.starts_with("sha256:") && id.len() == 71, "{:?}", run.stdout);
    assert_eq!(run.stderr, "");
}
