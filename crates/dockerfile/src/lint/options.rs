//! `# check=…`: which rules are off, which experimental ones are on, and whether findings fail the build.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::Rule;
use crate::mount::parse_bool;
use crate::syntax::directive_of_comment;

/// Most options that one value has; what stands behind them belongs to the last.
const MOST_OPTIONS: usize = 3;

/// The options of the build checks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    skip: Names,
    experimental: Names,
    /// Whether a finding fails the build.
    pub error: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Names {
    all: bool,
    names: BTreeSet<String>,
}

impl Names {
    fn parse(value: &str) -> Self {
        match value.trim() {
            "all" => Self { all: true, names: BTreeSet::new() },
            list => Self { all: false, names: list.split(',').map(|name| name.trim().to_owned()).collect() },
        }
    }

    fn contain(&self, rule: &Rule) -> bool {
        self.all || self.names.contains(rule.name)
    }

    fn add(&mut self, more: Names) {
        self.all |= more.all;
        self.names.extend(more.names);
    }
}

impl Options {
    /// Parses `skip=Rule,…|all;error=true;experimental=Rule,…|all`, in any order. Names of rules are taken as they are.
    ///
    /// # Errors
    /// What is not understood, in BuildKit's words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut options = Self::default();
        let text = text.trim();
        if text.is_empty() {
            return Ok(options);
        }
        for part in text.splitn(MOST_OPTIONS, ';') {
            let Some((key, value)) = part.split_once('=') else { return Err(format!("invalid check option {part:?}")) };
            match key.trim() {
                "skip" => options.skip = Names::parse(value),
                "experimental" => options.experimental = Names::parse(value),
                "error" => {
                    let value = value.trim();
                    options.error = parse_bool(value).ok_or_else(|| {
                        format!("failed to parse check option {part:?}: {value:?} is not true or false")
                    })?;
                }
                other => return Err(format!("invalid check option {other:?}")),
            }
        }
        Ok(options)
    }

    /// Parses the value of a directive: as in BuildKit, it ends at its first blank.
    ///
    /// # Errors
    /// As [`Options::parse`].
    pub fn parse_directive(value: &str) -> Result<Self, String> {
        Self::parse(value.split(' ').next().unwrap_or_default())
    }

    /// These options together with those of the first `check=` among the comments directly above an instruction. What is
    /// not understood there is a comment like any other.
    pub(super) fn with_comments(&self, comments: &[String]) -> Cow<'_, Options> {
        let value = comments.iter().find_map(|comment| directive_of_comment(comment, "check"));
        match value.map(|value| Self::parse_directive(&value)) {
            Some(Ok(more)) => {
                let mut merged = self.clone();
                merged.skip.add(more.skip);
                merged.experimental.add(more.experimental);
                Cow::Owned(merged)
            }
            Some(Err(_)) | None => Cow::Borrowed(self),
        }
    }

    /// Whether `rule` is on. Experimental rules are switched on and never off.
    pub fn allow(&self, rule: &Rule) -> bool {
        if rule.experimental { self.experimental.contain(rule) } else { !self.skip.contain(rule) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules;
    use super::*;

    /// F1-008. What BuildKit accepts and refuses was asked of `docker buildx build --call=check`.
    #[test]
    fn f1_008_options_are_read_as_buildkit_reads_them() {
        let allowed = |text: &str, rule: &Rule| Options::parse_directive(text).map(|options| options.allow(rule));
        let casing = &rules::STAGE_NAME_CASING;
        let description = &rules::INVALID_DEFINITION_DESCRIPTION;
        for (text, rule, expected) in [
            ("", casing, Ok(true)),
            ("skip=all", casing, Ok(false)),
            ("skip=StageNameCasing", casing, Ok(false)),
            ("skip=FromAsCasing,StageNameCasing", casing, Ok(false)),
            ("skip=stagenamecasing", casing, Ok(true)),
            // The value ends at the blank.
            ("skip=FromAsCasing, StageNameCasing", casing, Ok(true)),
            ("skip=all;experimental=all", description, Ok(true)),
            ("experimental=InvalidDefinitionDescription;error=true", description, Ok(true)),
            ("skip=all", description, Ok(false)),
            ("", description, Ok(false)),
            ("skip=all; error=true", casing, Err("invalid check option \"\"".to_owned())),
            ("foo", casing, Err("invalid check option \"foo\"".to_owned())),
            ("foo=bar", casing, Err("invalid check option \"foo\"".to_owned())),
        ] {
            assert_eq!(allowed(text, rule), expected, "{text:?} {}", rule.name);
        }
        for (text, expected) in [("error=true", true), ("error=0", false), ("skip=X;error=T", true), ("skip=X", false)]
        {
            assert_eq!(Options::parse(text).map(|options| options.error), Ok(expected), "{text}");
        }
        assert!(Options::parse("error=yes").is_err());
    }
}
