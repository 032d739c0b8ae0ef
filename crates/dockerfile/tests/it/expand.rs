//! Words and what they expand to. The expectations are BuildKit's, from its shell lexer and the data of its tests.

use std::collections::BTreeMap;

use build_engine_dockerfile::expand::Lex;

fn environment() -> BTreeMap<String, String> {
    let pairs = [
        ("DIR", "/srv"),
        ("NAME", "web"),
        ("EMPTY", ""),
        ("CITY", "서울"),
        ("LIST", "a,b,a"),
        ("STARS", "a***yy*"),
        ("FILES", "/foo*/*/*.txt"),
        ("NEEDLE", "\\*/"),
        ("SLASHES", "/tmp/tmp/x"),
        ("MARKS", "()[]{}^$.*?|\\x"),
        ("BLANKS", " one  two "),
        ("PAIR", "xxyy"),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// What a word expands to, or a part of the error's message.
type Case = (&'static str, Result<&'static str, &'static str>);

fn check(lex: Lex, cases: &[Case]) {
    for (word, expected) in cases {
        match (lex.word(word, &environment()), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found.text, *expected, "{word}"),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{word}: {error}"),
            (found, _) => panic!("{word}: {found:?} instead of {expected:?}"),
        }
    }
}

const QUOTE: &str = "matching";
const BRACE: &str = "missing '}'";
const BAD: &str = "bad substitution";
const MODIFIER: &str = "unsupported modifier";

#[test]
fn plain_references_are_replaced_f1_030() {
    check(
        Lex::default(),
        &[
            ("text", Ok("text")),
            ("", Ok("")),
            ("a$DIR", Ok("a/srv")),
            ("a${DIR}b", Ok("a/srvb")),
            ("$DIR$NAME", Ok("/srvweb")),
            ("a$nope.", Ok("a.")),
            ("a${nope}b", Ok("ab")),
            ("$CITY시", Ok("")),
            ("${CITY}시", Ok("서울시")),
            ("a$.b", Ok("a$.b")),
            ("a$", Ok("a$")),
            ("a $ b", Ok("a $ b")),
            ("${DIR", Err(BRACE)),
            ("${", Err(BRACE)),
            ("${}", Err(BAD)),
            ("${{DIR}", Err(BAD)),
            ("${:}", Err(BAD)),
            ("${:-a}", Err(BAD)),
            ("${.}", Err(MODIFIER)),
            ("${DIR}}", Ok("/srv}")),
            ("${DIR:x}", Err(MODIFIER)),
            ("${DIR=x}", Err(MODIFIER)),
            ("${DIR:=x}", Err(MODIFIER)),
        ],
    );
}

#[test]
fn positional_and_special_parameters_have_no_value() {
    check(
        Lex::default(),
        &[
            ("a$1b", Ok("ab")),
            ("$001x", Ok("x")),
            ("${12}", Ok("")),
            ("${9:-d}", Ok("d")),
            ("${9:+d}", Ok("")),
            ("$@@", Ok("@")),
            ("${@:-d}x", Ok("dx")),
            ("$*|$#|$?|$-|$$|$!|$0", Ok("||||||")),
            ("${*:-a}${#:-b}${?:-c}${-:-d}${$:-e}${!:-f}", Ok("abcdef")),
        ],
    );
}

#[test]
fn defaults_and_alternatives_f1_031_f1_032() {
    check(
        Lex::default(),
        &[
            ("${nope:-d}", Ok("d")),
            ("${EMPTY:-d}", Ok("d")),
            ("${NAME:-d}", Ok("web")),
            ("${nope-d}", Ok("d")),
            ("${EMPTY-d}", Ok("")),
            ("${NAME-d}", Ok("web")),
            ("${nope:+d}", Ok("")),
            ("${EMPTY:+d}", Ok("")),
            ("${NAME:+d}", Ok("d")),
            ("${nope+d}", Ok("")),
            ("${EMPTY+d}", Ok("d")),
            ("${NAME+d}", Ok("d")),
            ("${nope:-}", Ok("")),
            ("${nope:-$DIR}x", Ok("/srvx")),
            ("${nope:-${no:-deep}}x", Ok("deepx")),
            ("${NAME:+${DIR}:}x", Ok("/srv:x")),
            ("${nope:-a {b}", Ok("a {b")),
            ("${nope:-b}}", Ok("b}")),
            ("${nope:-\\$DIR}", Ok("$DIR")),
            ("${nope:-\\${DIR}z}", Ok("${DIRz}")),
            ("${nope:-\"a}b\"}", Ok("a}b")),
            ("${nope:-b", Err(BRACE)),
            ("${nope:-b ${NAME}", Err(BRACE)),
            ("${nope:", Err(BRACE)),
        ],
    );
}

#[test]
fn required_variables_fail_with_their_message_f1_033() {
    check(
        Lex::default(),
        &[
            ("${NAME:?x}", Ok("web")),
            ("${NAME?x}", Ok("web")),
            ("${EMPTY?x}", Ok("")),
            ("${EMPTY:?no $NAME}", Err("EMPTY: no web")),
            ("${nope?give it}", Err("nope: give it")),
            ("${nope:?give it}", Err("nope: give it")),
            ("${nope?}", Err("nope: is not allowed to be unset")),
            ("${EMPTY:?}", Err("EMPTY: is not allowed to be empty")),
            // The unused branch is expanded all the same.
            ("${NAME:-${nope?inner}}", Err("nope: inner")),
        ],
    );
}

#[test]
fn prefixes_and_suffixes_are_removed_f1_034() {
    check(
        Lex::default(),
        &[
            ("${LIST#a,}", Ok("b,a")),
            ("${LIST#*,}", Ok("b,a")),
            ("${LIST##*,}", Ok("a")),
            ("${LIST%,*}", Ok("a,b")),
            ("${LIST%%,*}", Ok("a")),
            ("${LIST#b}", Ok("a,b,a")),
            ("${LIST#}", Ok("a,b,a")),
            ("${LIST##}", Ok("a,b,a")),
            ("${LIST%}", Ok("a,b,a")),
            ("${LIST#?}", Ok(",b,a")),
            ("${PAIR#*x*y}", Ok("y")),
            ("${PAIR#*}", Ok("xxyy")),
            ("${PAIR##*x}", Ok("yy")),
            ("${PAIR#$nope}", Ok("xxyy")),
            ("${PAIR%x}", Ok("xxyy")),
            ("${CITY%울}", Ok("서")),
            ("${STARS%%\\**\\*}", Ok("a")),
            ("${STARS%\\*}", Ok("a***yy")),
            ("${MARKS#()[]{\\}^$.\\*\\?|\\\\}", Ok("x")),
            ("${nope#x}", Ok("")),
            ("${LIST:#a}", Err(MODIFIER)),
            ("${LIST:%a}", Err(MODIFIER)),
            ("${LIST#\\a}", Err("invalid pattern")),
            ("${LIST#a", Err(BRACE)),
        ],
    );
}

#[test]
fn matches_are_replaced_f1_035() {
    check(
        Lex::default(),
        &[
            ("${LIST/a/x}", Ok("x,b,a")),
            ("${LIST//a/x}", Ok("x,b,x")),
            ("${LIST//a/}", Ok(",b,")),
            ("${LIST//a/$NAME}", Ok("web,b,web")),
            ("${LIST/?,/-}", Ok("-b,a")),
            ("${LIST/*/-}", Ok("-")),
            ("${FILES/$NEEDLE/.} ${FILES//$NEEDLE/.}", Ok("/foo.*/*.txt /foo..*.txt")),
            ("${SLASHES/$nope/-}", Ok("-/tmp/tmp/x")),
            ("${SLASHES//\\/tmp/}", Ok("/x")),
            ("${SLASHES//\\//\\/}", Ok("\\/tmp\\/tmp\\/x")),
            ("${LIST///}", Ok("a,b,a")),
            ("${nope//a/b}", Ok("")),
            // A replacement is text, not a template.
            ("${LIST//b/$1\\$0}", Ok("a,\\$0,a")),
            ("${LIST//a}", Err("missing")),
            ("${LIST/a", Err("missing '/'")),
            ("${LIST/a/b", Err(BRACE)),
        ],
    );
}

#[test]
fn quotes_and_escapes_f1_036() {
    check(
        Lex::default(),
        &[
            ("a'b'c", Ok("abc")),
            ("'$DIR'", Ok("$DIR")),
            ("'\\$DIR'", Ok("\\$DIR")),
            ("\"$DIR\"", Ok("/srv")),
            ("\"a'$NAME'\"", Ok("a'web'")),
            ("'\"x\"'", Ok("\"x\"")),
            ("\\$DIR", Ok("$DIR")),
            ("\\\\$DIR", Ok("\\/srv")),
            ("\"\\$DIR\"", Ok("$DIR")),
            ("\"a\\tb\"", Ok("a\\tb")),
            ("a\\tb", Ok("atb")),
            ("'a\\tb'", Ok("a\\tb")),
            ("a\\'b", Ok("a'b")),
            ("\"a\\\"b\"", Ok("a\"b")),
            ("\"a\\\\b\"", Ok("a\\b")),
            ("a\\", Ok("a")),
            ("a\\\\", Ok("a\\")),
            ("'a\\'", Ok("a\\")),
            ("\\${}x", Ok("${}x")),
            ("a'b", Err(QUOTE)),
            ("a\"b", Err(QUOTE)),
            ("\"a\\\"", Err(QUOTE)),
            ("안'녕", Err(QUOTE)),
            ("안\\'녕", Ok("안'녕")),
        ],
    );
}

#[test]
fn the_backtick_may_be_the_escape_f1_005() {
    check(Lex::new('`'), &[("`$DIR\\a", Ok("$DIR\\a")), ("\"`\"\"", Ok("\"")), ("c:\\$NAME", Ok("c:\\web"))]);
}

#[test]
fn raw_modes_keep_what_they_say() {
    let lex = Lex { raw_quotes: true, raw_escapes: true, skip_unset: true, ..Lex::default() };
    check(
        lex,
        &[
            ("'a' \"b$NAME\"", Ok("'a' \"bweb\"")),
            ("a\\ b", Ok("a\\ b")),
            ("$nope ${nope} ${nope:-$NAME}", Ok("$nope ${nope} ${nope:-web}")),
            ("${nope/a/b} ${nope#x}", Ok("${nope/a/b} ${nope#x}")),
        ],
    );
    check(Lex { skip_quotes: true, ..Lex::default() }, &[("it's \"$NAME\"", Ok("it's \"web\""))]);
}

#[test]
fn words_split_after_expansion_outside_of_quotes() {
    let cases: [(&str, &[&str]); 12] = [
        ("a b", &["a", "b"]),
        ("  a  b  ", &["a", "b"]),
        ("a$BLANKS-", &["a", "one", "two", "-"]),
        ("a\"$BLANKS\"-", &["a one  two -"]),
        ("a\\ b", &["a b"]),
        ("\" a \" b", &[" a ", "b"]),
        ("'a b'c", &["a bc"]),
        ("\"\" a", &["a"]),
        ("$nope", &[]),
        ("<< EOF x", &["<< EOF", "x"]),
        ("a<b", &["a<b"]),
        ("x${nope:-y z}w", &["xy", "zw"]),
    ];
    for (word, expected) in cases {
        assert_eq!(Lex::default().words(word, &environment()).unwrap(), expected, "{word}");
    }
}

#[test]
fn names_that_were_read_are_reported_f1_043() {
    let found =
        Lex::default().word("${nope:-$NAME} ${DIR:+$other} $nope \\$escaped '$quoted'", &environment()).unwrap();
    assert_eq!(Vec::from_iter(found.matched), ["DIR", "NAME"]);
    assert_eq!(Vec::from_iter(found.unmatched), ["nope", "other"]);
}

#[test]
fn a_closure_is_an_environment() {
    let env = |name: &str| (name == "a").then(|| "b".to_owned());
    assert_eq!(Lex::default().word("$a$b", &env).unwrap().text, "b");
    let env: &dyn Fn(&str) -> Option<String> = &env;
    assert_eq!(Lex::default().word("$a", env).unwrap().text, "b");
}

/// D03: nesting and doubling end at a limit, in time that nobody notices.
#[test]
fn bombs_end_at_a_limit() {
    let lex = Lex::default();
    let nested = format!("{}x{}", "${a:-".repeat(100_000), "}".repeat(100_000));
    assert!(lex.word(&nested, &environment()).unwrap_err().is_limit());
    let fits = format!("{}x{}", "${a:-".repeat(100), "}".repeat(100));
    assert_eq!(lex.word(&fits, &environment()).unwrap().text, "x");

    let mut env = environment();
    let mut failed = None;
    for _ in 0..60 {
        match lex.word("${DIR}${DIR}", &env) {
            Ok(found) => drop(env.insert("DIR".to_owned(), found.text)),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    assert!(failed.is_some_and(|error| error.is_limit()));

    env.insert("DIR".to_owned(), "a".repeat(1 << 20));
    assert!(lex.word("${DIR//?/xy}", &env).unwrap_err().is_limit());
    assert_eq!(lex.word("${DIR//*a*b/y}", &env).unwrap().text.len(), 1 << 20);
    assert_eq!(lex.word("${DIR%%*b*b}", &env).unwrap().text.len(), 1 << 20);
}
