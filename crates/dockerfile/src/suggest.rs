//! "Did you mean": the nearest known word, if one is near enough.

/// Words that differ by this many edits are not similar.
const TOO_FAR: usize = 3;

/// Returns the candidate that differs least from `word`, if by at most two edits. The first of equals wins. A word that
/// is among the candidates gets no suggestion.
pub fn suggest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.chars().collect();
    let mut best = (TOO_FAR, None);
    for candidate in candidates {
        match distance(&word, candidate, TOO_FAR) {
            0 => return None,
            near if near < best.0 => best = (near, Some(candidate)),
            _ => {}
        }
    }
    best.1
}

/// Like [`suggest`], ignoring case; the suggestion takes the case of `word` where that is all lower or all upper.
pub fn suggest_ignoring_case<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let (lower, upper) = (word.to_lowercase(), word.to_uppercase());
    let candidates: Vec<String> = candidates.into_iter().map(str::to_lowercase).collect();
    let found = suggest(&lower, candidates.iter().map(String::as_str))?;
    Some(if word != lower && word == upper { found.to_uppercase() } else { found.to_owned() })
}

/// Levenshtein distance, cut off at `limit` so that long words cost nothing.
fn distance(word: &[char], other: &str, limit: usize) -> usize {
    let other: Vec<char> = other.chars().take(word.len() + limit).collect();
    if word.len().abs_diff(other.len()) >= limit {
        return limit;
    }
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in word.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()].min(limit)
}
