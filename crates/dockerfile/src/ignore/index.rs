//! Which patterns are worth asking about a path.
//!
//! Ignore files are generated, too, and then have a line for each of a million files. Asking every pattern about every
//! entry of a walk costs the product of both. Here patterns are sorted by the ordinary characters that they start or end
//! with, so that a path finds its own by a binary search for each length that such a text has; only patterns that start
//! and end with a wildcard are asked always.
//!
//! Invariant: what is left out would not have matched. Whether a candidate matches is for the pattern to say.

use super::{Matcher, Pattern};

/// Patterns by what they start and end with, as their positions in the list.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    /// Those that match a single path, sorted by it.
    exact: Vec<usize>,
    /// Those that start with ordinary characters.
    starts: Texts,
    /// Those that only end with some.
    ends: Texts,
    /// All others.
    others: Vec<usize>,
    below: Below,
}

impl Index {
    pub(super) fn new(patterns: &[Pattern]) -> Self {
        let mut index = Self::default();
        for (at, pattern) in patterns.iter().enumerate() {
            match &pattern.matcher {
                Matcher::Exact(_) => index.exact.push(at),
                matcher if !matcher.start().is_empty() => index.starts.sorted.push(at),
                matcher if !matcher.end().is_empty() => index.ends.sorted.push(at),
                Matcher::Prefix(_) | Matcher::Suffix(_) | Matcher::Automaton(_) => index.others.push(at),
            }
        }
        index.exact.sort_by_key(|at| patterns[*at].matcher.start());
        index.starts.sort(|at| patterns[at].matcher.start());
        index.ends.sort(|at| patterns[at].matcher.end());
        index.below = Below::new(patterns);
        index
    }

    /// The patterns that may match `path`, in their order.
    pub(super) fn candidates(&self, patterns: &[Pattern], path: &str) -> Vec<usize> {
        let mut found = self.others.clone();
        let start = |at: usize| patterns[at].matcher.start();
        found.extend(same(&self.exact, path.as_bytes(), start));
        for length in self.starts.lengths(path.len()) {
            found.extend(same(&self.starts.sorted, &path.as_bytes()[..length], start));
        }
        // `**/name`, which ends with `/name`, matches `name` as well.
        let rooted = [b"/", path.as_bytes()].concat();
        for length in self.ends.lengths(rooted.len()) {
            let end = &rooted[rooted.len() - length..];
            found.extend(same(&self.ends.sorted, end, |at| patterns[at].matcher.end()));
        }
        found.sort_unstable();
        found
    }

    /// Whether an exception from `first` on could match something below the directory `dir`.
    pub(super) fn exception_below(&self, patterns: &[Pattern], dir: &str, first: usize) -> bool {
        let asked =
            |at: &usize| *at >= first && patterns[*at].is_exception && patterns[*at].matcher.can_match_below(dir);
        let prefix = format!("{dir}/");
        // What starts with more than the directory can match; what starts with less, perhaps.
        self.below.exception_under(patterns, &prefix).is_some_and(|last| last >= first)
            || self.below.last_anywhere.is_some_and(|last| last >= first)
            || self.others.iter().any(asked)
            || self.ends.sorted.iter().any(|at| matches!(patterns[*at].matcher, Matcher::Automaton(_)) && asked(at))
            || self.starts.lengths(prefix.len()).any(|length| {
                let start = &prefix.as_bytes()[..length];
                same(&self.starts.sorted, start, |at| patterns[at].matcher.start()).iter().any(asked)
            })
    }
}

/// Patterns sorted by a text of theirs.
#[derive(Debug, Clone, Default)]
struct Texts {
    sorted: Vec<usize>,
    /// The lengths that the texts have, shortest first. There are few: as many as there are texts is the square root of
    /// the size of the file at most.
    lengths: Vec<usize>,
}

impl Texts {
    fn sort<'a>(&mut self, text: impl Fn(usize) -> &'a str) {
        self.sorted.sort_by_key(|at| text(*at));
        self.lengths = self.sorted.iter().map(|at| text(*at).len()).collect();
        self.lengths.sort_unstable();
        self.lengths.dedup();
    }

    fn lengths(&self, longest: usize) -> impl Iterator<Item = usize> + '_ {
        self.lengths.iter().copied().take_while(move |length| *length <= longest)
    }
}

/// Those of `sorted` whose text is `wanted`.
fn same<'a, 's>(sorted: &'s [usize], wanted: &[u8], text: impl Fn(usize) -> &'a str) -> &'s [usize] {
    let first = sorted.partition_point(|at| text(*at).as_bytes() < wanted);
    let count = sorted[first..].partition_point(|at| text(*at).as_bytes() == wanted);
    &sorted[first..first + count]
}

/// Exceptions, for what is below a directory.
#[derive(Debug, Clone, Default)]
struct Below {
    /// Those that start with ordinary characters, sorted by these.
    sorted: Vec<usize>,
    /// The last pattern of stretches of [`Self::sorted`]: a binary tree, whose second half are the leaves.
    last: Vec<usize>,
    /// The last one that can match below every directory.
    last_anywhere: Option<usize>,
}

impl Below {
    fn new(patterns: &[Pattern]) -> Self {
        let mut below = Self::default();
        for (at, pattern) in patterns.iter().enumerate().filter(|(_, pattern)| pattern.is_exception) {
            match &pattern.matcher {
                Matcher::Suffix(_) => below.last_anywhere = Some(at),
                matcher if !matcher.start().is_empty() => below.sorted.push(at),
                Matcher::Exact(_) | Matcher::Prefix(_) | Matcher::Automaton(_) => {}
            }
        }
        below.sorted.sort_by_key(|at| patterns[*at].matcher.start());
        let leaves = below.sorted.len();
        below.last = vec![0; leaves];
        below.last.extend(&below.sorted);
        for at in (1..leaves).rev() {
            below.last[at] = below.last[2 * at].max(below.last[2 * at + 1]);
        }
        below
    }

    /// The last exception that starts with `prefix`.
    fn exception_under(&self, patterns: &[Pattern], prefix: &str) -> Option<usize> {
        let start = |at: &usize| patterns[*at].matcher.start();
        let first = self.sorted.partition_point(|at| start(at) < prefix);
        let count = self.sorted[first..].partition_point(|at| start(at).starts_with(prefix));
        let (mut low, mut high) = (first + self.sorted.len(), first + count + self.sorted.len());
        let mut last = None;
        while low < high {
            if low % 2 == 1 {
                last = last.max(Some(self.last[low]));
                low += 1;
            }
            if high % 2 == 1 {
                high -= 1;
                last = last.max(Some(self.last[high]));
            }
            low /= 2;
            high /= 2;
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::super::{Ignore, WalkState};

    /// The rules without an index: whether each pattern matched, and the one that decided.
    fn naive(ignore: &Ignore, path: &str, parent: &[bool]) -> (Vec<bool>, bool, Option<usize>) {
        let (mut matched, mut ignored, mut decided_by) = (Vec::new(), false, None);
        for (index, pattern) in ignore.rules().iter().enumerate() {
            let inherited = parent.get(index).copied().unwrap_or(false);
            let matches = inherited || (pattern.is_exception == ignored && pattern.matcher.is_match(path));
            matched.push(matches);
            if matches {
                ignored = !pattern.is_exception;
                decided_by = Some(index);
            }
        }
        (matched, ignored, decided_by)
    }

    fn naive_prune(ignore: &Ignore, dir: &str, ignored: bool, decided_by: Option<usize>) -> bool {
        let mut later = ignore.rules().iter().skip(decided_by.map_or(0, |index| index + 1));
        ignored && !later.any(|pattern| pattern.is_exception && pattern.matcher.can_match_below(dir))
    }

    fn patterns() -> impl Strategy<Value = Vec<String>> {
        let part =
            prop::sample::select(vec!["a", "b", "ab", "*", "a*", "*b", "**", "a**", "**b", "[ab]", "?", "\\a", "é"]);
        let pattern = (any::<bool>(), prop::collection::vec(part, 1..5))
            .prop_map(|(mark, parts)| format!("{}{}", if mark { "!" } else { "" }, parts.join("/")));
        prop::collection::vec(pattern, 0..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn an_index_changes_nothing_d07(
            patterns in patterns(),
            path in prop::collection::vec(prop::sample::select(vec!["a", "b", "ab", "ba", "c", "é"]), 1..6),
        ) {
            let ignore = Ignore::new(&patterns).unwrap();
            let (mut state, mut dense) = (WalkState::default(), Vec::new());
            for depth in 1..=path.len() {
                let path = path[..depth].join("/");
                let (matched, ignored, decided_by) = naive(&ignore, &path, &dense);
                let verdict = ignore.visit(&path, &state);
                let sparse: Vec<usize> = (0..matched.len()).filter(|index| matched[*index]).collect();
                prop_assert_eq!(&*verdict.state.matched, &sparse[..], "{} {:?}", path, patterns);
                prop_assert_eq!((verdict.ignored, verdict.decided_by), (ignored, decided_by), "{} {:?}", path, patterns);
                let prune = naive_prune(&ignore, &path, ignored, decided_by);
                prop_assert_eq!(ignore.can_prune(&path, &verdict), prune, "{} {:?}", path, patterns);
                (state, dense) = (verdict.state, matched);
            }
        }
    }

    /// A walk over a thousand files in each of a hundred folders.
    fn walk(ignore: &Ignore) -> usize {
        let mut kept = 0;
        for dir in 0..100 {
            let dir = format!("dir{dir}");
            let verdict = ignore.visit(&dir, &WalkState::default());
            if ignore.can_prune(&dir, &verdict) {
                continue;
            }
            let files = (0..1000).map(|file| format!("{dir}/file{file}"));
            kept += files.filter(|path| !ignore.visit(path, &verdict.state).ignored).count();
        }
        kept
    }

    /// D07: a million patterns (fewer without optimisation), and a walk of a hundred thousand entries.
    #[test]
    fn a_million_patterns_cost_little_more_than_their_reading_d07() {
        let count = if cfg!(debug_assertions) { 50_000 } else { 1_000_000 };
        let list = |line: fn(usize) -> String| (0..count).map(line).collect::<String>();
        let kept = count.min(100_000);
        let cases = [
            ("plain", list(|n| format!("dir{}/file{}\n", n % 100, n / 100)), 100_000 - kept),
            ("exceptions", format!("*\n{}", list(|n| format!("!dir{}/file{}\n", n % 100, n / 100))), kept),
            ("elsewhere", format!("*\n{}", list(|n| format!("!other{n}/file\n"))), 0),
            ("globs", list(|n| format!("dir{}/file{}?\n", n % 100, n / 100)), 10_000),
            ("names", list(|n| format!("**/file{n}\n")), 0),
            ("folders", list(|n| format!("dir{n}/**\n")), 0),
        ];
        for (name, text, kept) in cases {
            let start = Instant::now();
            let ignore = Ignore::parse(&text).unwrap();
            let parsed = start.elapsed();
            let found = walk(&ignore);
            println!("{name}: {parsed:?} to read, {:?} in all", start.elapsed());
            assert!(found == kept || name == "globs", "{name}: {found}");
            // Without an index each entry costs as much as the list is long, some milliseconds.
            assert!(start.elapsed() < Duration::from_secs(60), "{name}: {parsed:?} {:?}", start.elapsed());
        }
    }
}
