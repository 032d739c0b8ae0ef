//! Ignore files: three ways to ask give one answer, and nothing is kept below a directory that a walk may leave out.
#![no_main]

use build_engine_dockerfile::ignore::{Ignore, WalkState};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    // Patterns, an empty line, paths.
    let (patterns, paths) = text.split_once("\n\n").unwrap_or((&text, "a/b\na\nb/a.go"));
    let Ok(ignore) = Ignore::parse(patterns) else { return };
    for path in paths.lines().take(8) {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        if parts.is_empty() || parts.len() > 64 {
            continue;
        }
        let path = parts.join("/");
        let mut state = WalkState::default();
        let mut pruned = false;
        let mut ignored = false;
        for end in 1..=parts.len() {
            let at = parts[..end].join("/");
            let verdict = ignore.visit(&at, &state);
            assert_eq!(verdict.ignored, ignore.matches(&at), "{at}");
            pruned |= end < parts.len() && ignore.can_prune(&at, &verdict);
            ignored = verdict.ignored;
            let last = ignore.trace(&at).last().map(|step| step.rule);
            let kept = |rule: Option<usize>| rule.is_none_or(|rule| ignore.rules()[rule].is_exception);
            assert_eq!(kept(last), !verdict.ignored, "{at}");
            state = verdict.state;
        }
        assert!(!pruned || ignored, "{path} is kept below a directory that is left out");
    }
});
