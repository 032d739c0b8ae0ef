//! Word expansion: it ends, within its limit, and the same for the same input.
#![no_main]

use std::collections::BTreeMap;

use build_engine_dockerfile::expand::Lex;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    // The first line is the value of two variables, what follows is the word.
    let (value, word) = text.split_once('\n').unwrap_or(("", &text));
    let env = BTreeMap::from([("v".to_owned(), value.to_owned()), ("e".to_owned(), String::new()), ("w".to_owned(), value.repeat(2))]);
    for escape in ['\\', '`'] {
        for skip_quotes in [false, true] {
            let lex = Lex { skip_quotes, ..Lex::new(escape) };
            let first = lex.word(word, &env).map(|expanded| expanded.text);
            if let Ok(text) = &first {
                assert!(text.len() <= 1 << 20);
            }
            assert_eq!(first.ok(), lex.word(word, &env).map(|expanded| expanded.text).ok());
            let _ = lex.words(word, &env);
        }
    }
});
