//! Environment variables in the order in which LLB writes them.

use std::collections::BTreeMap;

/// A list of variables. Setting one moves it to the end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Env {
    /// When each was set, and to what.
    values: BTreeMap<String, (u64, String)>,
    next: u64,
}

impl Env {
    /// Sets `name` to `value`.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.values.insert(name.to_owned(), (self.next, value.to_owned()));
        self.next += 1;
    }

    /// Forgets `name`.
    pub(crate) fn remove(&mut self, name: &str) {
        self.values.remove(name);
    }

    /// The value of `name`.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(|(_, value)| value.as_str())
    }

    /// Names and values, in order.
    pub(crate) fn pairs(&self) -> Vec<(&str, &str)> {
        let mut pairs: Vec<_> = self.values.iter().collect();
        pairs.sort_unstable_by_key(|(_, (order, _))| *order);
        pairs.into_iter().map(|(name, (_, value))| (name.as_str(), value.as_str())).collect()
    }

    /// The names, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.pairs().into_iter().map(|(name, _)| name)
    }

    /// `NAME=value`, in order.
    pub(crate) fn to_list(&self) -> Vec<String> {
        self.pairs().into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }
}

/// Splits `NAME=value`; without `=` the value is empty.
pub(crate) fn split(pair: &str) -> (&str, &str) {
    pair.split_once('=').unwrap_or((pair, ""))
}

/// Sets a variable in the list of an image's config, where it keeps its place.
pub(crate) fn set_in_list(list: &mut Vec<String>, name: &str, value: &str) {
    let pair = format!("{name}={value}");
    match list.iter_mut().find(|known| split(known).0 == name) {
        Some(known) => *known = pair,
        None => list.push(pair),
    }
}
