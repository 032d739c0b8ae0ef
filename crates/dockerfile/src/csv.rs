//! One line of comma-separated values, as in `--mount=type=bind,"source=a,b"`.

/// Splits `line` at commas; a field that starts with `"` may hold commas and `""` for a quote.
///
/// The error says what is wrong, with its column counted from 1 in bytes.
pub(crate) fn fields(line: &str) -> Result<Vec<String>, String> {
    if line.is_empty() {
        return Err("it is empty".to_owned());
    }
    let mut fields = Vec::new();
    let mut rest = line;
    let column = |rest: &str| line.len() - rest.len() + 1;
    loop {
        let Some(quoted) = rest.strip_prefix('"') else {
            let end = rest.find(',').unwrap_or(rest.len());
            if let Some(at) = rest[..end].find('"') {
                return Err(format!("bare `\"` in column {}", column(&rest[at..])));
            }
            fields.push(rest[..end].to_owned());
            match rest.get(end + 1..) {
                Some(more) => rest = more,
                None => return Ok(fields),
            }
            continue;
        };
        let mut field = String::new();
        rest = quoted;
        loop {
            let Some(end) = rest.find('"') else {
                return Err(format!("a `\"` has no partner before column {}", column("")));
            };
            field.push_str(&rest[..end]);
            rest = &rest[end + 1..];
            match rest.strip_prefix('"') {
                Some(more) => {
                    field.push('"');
                    rest = more;
                }
                None => break,
            }
        }
        fields.push(field);
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None if rest.is_empty() => return Ok(fields),
            None => return Err(format!("text after the closing `\"` in column {}", column(rest))),
        }
    }
}
