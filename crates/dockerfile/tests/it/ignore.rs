//! Ignore files and paths.

use std::time::{Duration, Instant};

use build_engine_dockerfile::{
    BadPattern, glob_match,
    ignore::{Ignore, WalkState},
};

fn check(file: &str, ignored: &[&str], kept: &[&str]) {
    let ignore = Ignore::parse(file).expect("the patterns are well-formed");
    for path in ignored {
        assert!(ignore.matches(path), "{file:?} should ignore {path}");
    }
    for path in kept {
        assert!(!ignore.matches(path), "{file:?} should keep {path}");
    }
}

#[test]
fn lines_are_cleaned_f1_014() {
    let file = "\u{feff}# comment\n  a/ \n\n/b\n!/c\n! d/../e\n # not a comment\n./f//g\n/\n\\#h\r\n";
    let patterns = Ignore::parse(file).unwrap().patterns();
    assert_eq!(patterns, ["a", "b", "!c", "!e", "# not a comment", "f/g", "/", "\\#h"]);
}

#[test]
fn folders_take_what_is_in_them_along_f1_014() {
    check("a", &["a", "a/b", "a/b/c"], &["b", "ab", "x/a"]);
    check("a/b", &["a/b", "a/b/c"], &["a", "a/c", "b"]);
}

#[test]
fn wildcards_stay_in_one_folder_f1_014() {
    check("*.log", &["x.log", ".log", "x.log/y"], &["a/x.log", "x.logs"]);
    check("*/temp*", &["a/temp", "a/temporary.txt"], &["temp", "a/b/temp"]);
    check("temp?", &["tempa", "temp√"], &["temp", "tempab", "temp/"]);
    check("[a-c]x", &["ax", "cx"], &["dx", "a"]);
    check("[^a-c]x", &["dx"], &["ax"]);
    check("a\\*b", &["a*b"], &["axb"]);
    check("a.b+c(d)|{e}$", &["a.b+c(d)|{e}$"], &["aXb+c(d)|{e}$"]);
    check("*", &["a", "a/b", ".c"], &[]);
}

#[test]
fn double_stars_cross_folders_f1_014() {
    check("**/a", &["a", "x/a", "x/y/a", "x/a/b"], &["xa", "x/ya"]);
    check("**/*.go", &["a.go", "x/y/a.go"], &["a.gox"]);
    check("a/**", &["a/b", "a/b/c"], &["a", "b"]);
    check("a/**/b", &["a/b", "a/x/b", "a/x/y/b/z"], &["a", "b", "a/xb"]);
    check("**", &["a", "a/b"], &[]);
    check("**/**/a", &["a", "x/a"], &["b"]);
    check("a**b", &["ab", "ax/b"], &["axb"]);
    check("**a", &["a", "xa", "x/ya"], &["ab"]);
    check("a**", &["a", "ab", "ab/c"], &["b"]);
    check("**/a/**", &["a/b", "x/a/b/c"], &["a", "b/c"]);
    check("**/[ab]?/*.x", &["a1/f.x", "z/b2/f.x"], &["a/f.x", "c1/f.x"]);
}

#[test]
fn the_last_match_wins_f1_014() {
    check("*.md\n!README.md", &["a.md"], &["README.md"]);
    check("*.md\n!README*.md\nREADME-secret.md", &["README-secret.md", "x.md"], &["README.md"]);
    check("*.md\nREADME-secret.md\n!README*.md", &["x.md"], &["README.md", "README-secret.md"]);
    check("*\n!src\nsrc/gen", &["a", "src/gen", "src/gen/x"], &["src", "src/a"]);
    check("a\n!a/b/c", &["a", "a/x", "a/b", "a/b/d"], &["a/b/c", "a/b/c/d"]);
    check("!a\na", &["a", "a/b"], &[]);
    check("**\n!**/keep", &["a", "a/b"], &["keep", "a/keep", "a/keep/x"]);
}

#[test]
fn the_deciding_pattern_is_known() {
    let ignore = Ignore::parse("# first\n*\n!src\n\nsrc/gen\n").unwrap();
    let line = |path| ignore.verdict(path).decided_by.map(|index| ignore.rules()[index].line);
    assert_eq!(line("a"), Some(2));
    assert_eq!(line("src/x/y"), Some(3));
    assert_eq!(line("src/gen/z"), Some(5));
    assert_eq!(Ignore::parse("a").unwrap().verdict("b").decided_by, None);
}

#[test]
fn a_walk_gives_what_single_questions_give() {
    let ignore = Ignore::parse("a\n!a/b\na/b/c\n!**/keep\n*.log").unwrap();
    let root = WalkState::default();
    let mut seen = Vec::new();
    let mut queue =
        vec![("a".to_owned(), ignore.visit("a", &root)), ("x.log".to_owned(), ignore.visit("x.log", &root))];
    while let Some((path, verdict)) = queue.pop() {
        assert_eq!(verdict.ignored, ignore.matches(&path), "{path}");
        if path.len() < 8 {
            for name in ["b", "c", "keep"] {
                let child = format!("{path}/{name}");
                let child_verdict = ignore.visit(&child, &verdict.state);
                queue.push((child, child_verdict));
            }
        }
        seen.push(path);
    }
    assert!(seen.len() > 20);
}

#[test]
fn folders_without_exceptions_below_are_pruned() {
    let prunes = |file: &str, dir: &str| {
        let ignore = Ignore::parse(file).unwrap();
        ignore.can_prune(dir, &ignore.verdict(dir))
    };
    assert!(prunes("node_modules", "node_modules"));
    assert!(!prunes("node_modules", "src"));
    assert!(prunes("a\n!b", "a"));
    assert!(!prunes("a\n!a/x", "a"));
    // The third line is not asked about `a`, so it does not hold below it: upstream's rule, kept.
    assert!(!prunes("a\n!a/x\na", "a"));
    assert!(prunes("!a/x\na", "a"));
    assert!(!prunes("a\n!**/x", "a"));
    assert!(!prunes("*\n!a*/x/y", "ab"));
    assert!(!prunes("*\n!a*/x/y", "ab/x"));
    assert!(prunes("*\n!a*/x/y", "ab/z"));
    assert!(prunes("*\n!a*/x/y", "b"));
    assert!(!prunes("*\n!a/**", "a"));
}

#[test]
fn malformed_patterns_name_their_line_d07() {
    let cases = [
        ("a\n\n[", 3),
        ("a\n[]", 2),
        ("[a", 1),
        ("[a-]", 1),
        ("x\\", 1),
        ("!", 1),
        ("# c\n!  ", 2),
        ("[-a]", 1),
        ("a[", 1),
        ("**[", 1),
    ];
    for (file, line) in cases {
        assert_eq!(Ignore::parse(file).unwrap_err().line, line, "{file:?}");
    }
    check("!..\n..\n../x", &["..", "../x"], &["x"]);
}

#[test]
fn exclude_patterns_need_no_file_f1_100() {
    let ignore = Ignore::new(&["*.tmp", " ", "!keep.tmp"]).unwrap();
    assert!(ignore.matches("a.tmp") && !ignore.matches("keep.tmp"));
    assert_eq!(Ignore::new(&["a", "["]).unwrap_err().line, 2);
}

/// D07: patterns made to be slow.
#[test]
fn hostile_patterns_cost_linear_time() {
    let start = Instant::now();
    let file = format!("{}x\n{}b\n{}", "**/".repeat(1000), "*a".repeat(1000), "?*".repeat(500));
    let ignore = Ignore::parse(&file).unwrap();
    let path = "a/".repeat(500) + &"a".repeat(1000);
    let _ = ignore.matches(&path);
    let many: String = (0..200_000).map(|n| format!("f{n}*\n")).collect();
    assert!(Ignore::parse(&many).unwrap().matches("f77x"));
    assert!(!glob_match(&format!("{}b", "*a".repeat(200)), &"a".repeat(10_000)).unwrap());
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

/// F1-092. Expectations from the documentation of Go's `path/filepath`.
#[test]
fn glob_match_is_go_s() {
    let cases = [
        ("abc", "abc", Ok(true)),
        ("*", "abc", Ok(true)),
        ("*c", "abc", Ok(true)),
        ("a*", "a", Ok(true)),
        ("a*", "ab/c", Ok(false)),
        ("a*/b", "abc/b", Ok(true)),
        ("a*/b", "a/c/b", Ok(false)),
        ("a*b*c*d*e*/f", "axbxcxdxe/f", Ok(true)),
        ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", Ok(false)),
        ("a*b?c*x", "abxbbxdbxebxczzx", Ok(true)),
        ("a*b?c*x", "abxbbxdbxebxczzy", Ok(false)),
        ("ab[c]", "abc", Ok(true)),
        ("ab[b-d]", "abc", Ok(true)),
        ("ab[e-g]", "abc", Ok(false)),
        ("ab[^c]", "abc", Ok(false)),
        ("ab[^e-g]", "abc", Ok(true)),
        ("a\\*b", "a*b", Ok(true)),
        ("a\\*b", "ab", Ok(false)),
        ("a?b", "a☺b", Ok(true)),
        ("a[^a]b", "a☺b", Ok(true)),
        ("a???b", "a☺b", Ok(false)),
        ("[a-ζ]*", "α", Ok(true)),
        ("*[a-ζ]", "A", Ok(false)),
        ("a?b", "a/b", Ok(false)),
        ("a*b", "a/b", Ok(false)),
        ("[\\]a]", "]", Ok(true)),
        ("[\\-]", "-", Ok(true)),
        ("[x\\-]", "z", Ok(false)),
        ("[\\-x]", "a", Ok(false)),
        ("[[]", "[", Ok(true)),
        ("[]a]", "]", Err(BadPattern)),
        ("[-]", "-", Err(BadPattern)),
        ("[x-]", "x", Err(BadPattern)),
        ("[-x]", "x", Err(BadPattern)),
        ("\\", "a", Err(BadPattern)),
        ("[a-b-c]", "a", Err(BadPattern)),
        ("[", "a", Err(BadPattern)),
        ("[^", "a", Err(BadPattern)),
        ("[^bc", "a", Err(BadPattern)),
        ("a[", "a", Err(BadPattern)),
        ("a[", "ab", Err(BadPattern)),
        ("*x", "xxx", Ok(true)),
        ("", "", Ok(true)),
        ("", "a", Ok(false)),
        ("*", "", Ok(true)),
    ];
    for (pattern, name, expected) in cases {
        assert_eq!(glob_match(pattern, name), expected, "{pattern} {name}");
    }
}
