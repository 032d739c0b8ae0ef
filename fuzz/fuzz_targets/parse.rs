//! The parser: it never fails, every span lies within the text at whole characters, and triggers that it stored parse again.
#![no_main]

use build_engine_dockerfile::{InstructionKind, detect_syntax, has_errors, parse, parse_trigger};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let _ = detect_syntax(&text);
    let (dockerfile, diagnostics) = parse(&text);
    let spans = diagnostics.iter().map(|diagnostic| diagnostic.span);
    let instructions = || dockerfile.stages.iter().flat_map(|stage| &stage.instructions).chain(&dockerfile.global_args);
    let spans = spans.chain(instructions().map(|instruction| instruction.span));
    for span in spans.chain(dockerfile.stages.iter().flat_map(|stage| [stage.span, stage.base.span])) {
        assert!(text.get(span.start..span.end).is_some(), "{span:?} of {} bytes", text.len());
    }
    if !has_errors(&diagnostics) {
        for instruction in instructions() {
            if let InstructionKind::Onbuild { expression, .. } = &instruction.kind {
                assert!(parse_trigger(expression).is_ok(), "{expression:?}");
            }
        }
    }
});
