//! What is in a tree, sorted by key, in little memory: a context may have a million files.

use std::ops::{Index, IndexMut};

use build_engine_rootfs::Metadata;

use super::{Record, RecordKind};

/// Records by key. A position stays what it is as long as nothing is added.
#[derive(Debug, Clone, Default)]
pub(super) struct Records {
    /// All keys, one after the other.
    keys: Vec<u8>,
    items: Vec<Item>,
}

#[derive(Debug, Clone)]
struct Item {
    start: usize,
    length: u32,
    record: Record,
}

impl Records {
    /// Adds a record at the end; [`Records::sort`] is needed before anything is looked up.
    pub(super) fn push(&mut self, key: &[&[u8]], record: Record) {
        let start = self.keys.len();
        key.iter().for_each(|part| self.keys.extend_from_slice(part));
        let length = u32::try_from(self.keys.len() - start).expect("no path is that long");
        self.items.push(Item { start, length, record });
    }

    /// Adds the two records of a directory.
    pub(super) fn push_directory(&mut self, key: &[&[u8]], metadata: Metadata) {
        let record = |kind| Record { kind, metadata, link: None, digest: None };
        self.push(key, record(RecordKind::Directory));
        self.push(&[key, &[&[0]]].concat(), record(RecordKind::DirectoryHeader));
    }

    /// Adds all of `other`, in its order.
    pub(super) fn append(&mut self, other: Self) {
        let before = self.keys.len();
        self.keys.extend_from_slice(&other.keys);
        self.items.extend(other.items.into_iter().map(|item| Item { start: item.start + before, ..item }));
    }

    pub(super) fn sort(&mut self) {
        let keys = &self.keys;
        self.items.sort_unstable_by(|a, b| key_in(keys, a).cmp(key_in(keys, b)));
        self.items.shrink_to_fit();
        self.keys.shrink_to_fit();
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn key(&self, at: usize) -> &[u8] {
        key_in(&self.keys, &self.items[at])
    }

    /// The position of the first key that is not less than `key`.
    pub(super) fn lower_bound(&self, key: &[u8]) -> usize {
        self.items.partition_point(|item| key_in(&self.keys, item) < key)
    }

    pub(super) fn position(&self, key: &[u8]) -> Option<usize> {
        let at = self.lower_bound(key);
        (at < self.len() && self.key(at) == key).then_some(at)
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&Record> {
        self.position(key).map(|at| &self[at])
    }

    /// The records from `key` on, in order.
    pub(super) fn from(&self, key: &[u8]) -> impl Iterator<Item = (&[u8], &Record)> {
        (self.lower_bound(key)..self.len()).map(|at| (self.key(at), &self[at]))
    }

    /// The position after everything that begins with the key at `at` and a zero: what is in a directory.
    pub(super) fn end_of(&self, at: usize) -> usize {
        self.lower_bound(&[self.key(at), &[1]].concat())
    }

    /// The positions of what is directly in the directory at `at`, its header first.
    pub(super) fn children(&self, at: usize) -> impl Iterator<Item = usize> {
        let end = self.end_of(at);
        let mut next = at + 1;
        std::iter::from_fn(move || {
            let child = next;
            (child < end).then(|| {
                next = if self[child].kind == RecordKind::Directory { self.end_of(child) } else { child + 1 };
                child
            })
        })
    }
}

impl Index<usize> for Records {
    type Output = Record;

    fn index(&self, at: usize) -> &Record {
        &self.items[at].record
    }
}

impl IndexMut<usize> for Records {
    fn index_mut(&mut self, at: usize) -> &mut Record {
        &mut self.items[at].record
    }
}

fn key_in<'a>(keys: &'a [u8], item: &Item) -> &'a [u8] {
    &keys[item.start..item.start + item.length as usize]
}
