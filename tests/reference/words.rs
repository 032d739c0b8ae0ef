//! Words: F1-030 to F1-036.

use std::fs;

use anyhow::Result;
use build_engine_testkit::image::Image;

use crate::{Bench, Random, rounds};

/// Words of one build.
const WORDS: usize = 300;

const SETTINGS: &str =
    "ENV v=value e= path=/usr/local/lib/libx.so.1 star=a*b*c dots=a.b.a.b uni=äöü back='a\\b' dollar='$v' sp='a  b'\n";

const NAMES: &[&str] = &["v", "e", "unset", "path", "star", "dots", "uni", "back", "dollar", "sp"];

const TEXT: &[&str] = &[
    "a", "b", ".", "/", "lib", "ä", "-", ":", "=", "x1", "_", "*", "?", "%", "+", "~", ",", "@", "[", "]", "^", "\\\\",
    "\\a", "\\.", "\\$v",
];

const PATTERN: &[&str] = &[
    "*", "?", "a", ".", "/", "l", "b", "\\*", "\\?", "ä", "*.", "/*", "a*", "?b", "value", "[", "(", "+", "\\\\", ".",
];

/// A word that is nothing of what a label's syntax looks at: no blanks outside of quotes.
fn word(random: &mut Random, depth: usize) -> String {
    let mut text = String::new();
    for _ in 0..=random.below(3) {
        match random.below(8) {
            0..=2 => text.push_str(random.pick(TEXT)),
            3 => text.push_str(&format!("${}", random.pick(NAMES))),
            4 if depth > 0 => {
                text.push('"');
                text.push_str(&word(random, 0));
                text.push('"');
            }
            5 => text.push_str(&format!("'{}'", random.pick(&["a", "$v", "${v}", "\\a", "\\\\", "a  b"]))),
            _ => text.push_str(&braces(random, depth)),
        }
    }
    text
}

fn pattern(random: &mut Random) -> String {
    (0..=random.below(3)).map(|_| random.pick(PATTERN)).collect()
}

fn braces(random: &mut Random, depth: usize) -> String {
    let name = random.pick(NAMES);
    let inner = |random: &mut Random| if depth > 0 { word(random, depth - 1) } else { "in".to_owned() };
    match random.below(9) {
        0 => format!("${{{name}}}"),
        1 => format!("${{{name}:-{}}}", inner(random)),
        2 => format!("${{{name}-{}}}", inner(random)),
        3 => format!("${{{name}:+{}}}", inner(random)),
        4 => format!("${{{name}+{}}}", inner(random)),
        5 => format!("${{{name}{}{}}}", random.pick(&["#", "##"]), pattern(random)),
        6 => format!("${{{name}{}{}}}", random.pick(&["%", "%%"]), pattern(random)),
        7 => format!(
            "${{{name}{}{}/{}}}",
            random.pick(&["/", "//"]),
            pattern(random).replace('/', "."),
            random.pick(&["", "R", "ä", "."])
        ),
        _ => format!("${{{}:-{name}}}", random.pick(&["v", "e", "unset"])),
    }
}

fn dockerfile(words: &[String]) -> String {
    let lines = words.iter().enumerate().map(|(number, word)| format!("LABEL l{number}={word}\n"));
    format!("FROM scratch\n{SETTINGS}{}", lines.collect::<String>())
}

fn labels(image: &Image, count: usize) -> Vec<String> {
    let labels = &image.config["config"]["Labels"];
    (0..count).map(|number| labels[format!("l{number}")].to_string()).collect()
}

fn build(bench: &Bench, words: &[String], theirs: bool) -> Result<Vec<String>> {
    let dir = bench.directory("words")?;
    fs::write(dir.join("Dockerfile"), dockerfile(words))?;
    let image = if theirs { bench.reference(&dir, &[])? } else { bench.ours(&dir, &[])? };
    Ok(labels(&image, words.len()))
}

/// What becomes of each word. Where a build fails, its halves are built: words that fail give `None`.
fn expanded(bench: &Bench, words: &[String], theirs: bool) -> Vec<Option<String>> {
    match build(bench, words, theirs) {
        Ok(values) => values.into_iter().map(Some).collect(),
        Err(_) if words.len() == 1 => vec![None],
        Err(_) => {
            let (left, right) = words.split_at(words.len() / 2);
            let mut values = expanded(bench, left, theirs);
            values.extend(expanded(bench, right, theirs));
            values
        }
    }
}

#[test]
fn f1_030_to_f1_036_random_words_become_what_buildkit_makes_of_them() {
    let Some(bench) = Bench::start() else { return };
    let mut random = Random::new(1);
    let mut found = Vec::new();
    for _ in 0..rounds(1) {
        let words: Vec<String> = (0..WORDS).map(|_| word(&mut random, 2)).filter(|word| !word.is_empty()).collect();
        let (theirs, ours) = (expanded(&bench, &words, true), expanded(&bench, &words, false));
        for ((word, theirs), ours) in words.iter().zip(theirs).zip(ours) {
            if theirs != ours {
                found.push(format!("{word}\n  BuildKit: {theirs:?}\n  engine:   {ours:?}"));
            }
        }
    }
    assert!(found.is_empty(), "{} words differ:\n{}", found.len(), found.join("\n"));
}
