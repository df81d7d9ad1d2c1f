//! Numbers for repositories.
//!
//! A number is given back with the last segment that was interned under the name. Names that stand in certificates keep
//! theirs: the authority wrote them, so they are few.

use super::super::proto::Repository;
use crate::model::{RepositoryName, Rows};
use std::collections::HashMap;

/// Names out of certificates that have numbers (guess: more than a mesh has repositories).
const KEPT_MAX: usize = 1 << 14;
/// Stands for a name beyond that: nothing lies in it, so who may read that alone is a home of nothing.
const NOWHERE: Repository = Repository(u32::MAX);

#[derive(Clone, Default)]
struct Entry {
    /// `None`: the number is free.
    name: Option<RepositoryName>,
    segments: u32,
    kept: bool,
}

/// The book of repositories.
#[derive(Default)]
pub(super) struct RepositoryBook {
    rows: Rows<Entry>,
    by_name: HashMap<RepositoryName, Repository>,
    kept: usize,
}

impl RepositoryBook {
    fn number_or_new(&mut self, name: &RepositoryName) -> Repository {
        if let Some(known) = self.by_name.get(name) {
            return *known;
        }
        let entry = Entry { name: Some(name.clone()), segments: 0, kept: false };
        let new = Repository(self.rows.insert(entry));
        self.by_name.insert(name.clone(), new);
        new
    }

    /// The number of a name, if it has one.
    pub(super) fn number(&self, name: &RepositoryName) -> Option<Repository> {
        self.by_name.get(name).copied()
    }

    /// The name behind a number.
    pub(super) fn name(&self, number: Repository) -> Option<&RepositoryName> {
        self.rows.get(number.0)?.name.as_ref()
    }

    /// The number of a name under which a segment is interned, until as many [`RepositoryBook::give_back`]s.
    pub(super) fn take(&mut self, name: &RepositoryName) -> Repository {
        let number = self.number_or_new(name);
        if let Some(entry) = self.rows.get_mut(number.0) {
            entry.segments += 1;
        }
        number
    }

    /// The end of a [`RepositoryBook::take`].
    pub(super) fn give_back(&mut self, number: Repository) {
        let Some(entry) = self.rows.get_mut(number.0) else { return };
        entry.segments = entry.segments.saturating_sub(1);
        if entry.segments == 0
            && !entry.kept
            && let Some(name) = entry.name.take()
        {
            self.by_name.remove(&name);
            self.rows.remove(number.0);
        }
    }

    /// The number of a name in a certificate.
    pub(super) fn keep(&mut self, name: &RepositoryName) -> Repository {
        if self.kept >= KEPT_MAX && self.number(name).is_none() {
            return NOWHERE;
        }
        let number = self.number_or_new(name);
        if let Some(entry) = self.rows.get_mut(number.0)
            && !entry.kept
        {
            entry.kept = true;
            self.kept += 1;
        }
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> RepositoryName {
        format!("r{number}.example").parse().unwrap()
    }

    #[test]
    fn a_number_is_used_again_after_the_last_segment_and_never_while_a_certificate_names_it() {
        let mut book = RepositoryBook::default();
        let first = book.take(&name(1));
        assert_eq!((book.take(&name(1)), book.name(first)), (first, Some(&name(1))));
        book.give_back(first);
        assert_eq!(book.number(&name(1)), Some(first));
        book.give_back(first);
        assert_eq!((book.number(&name(1)), book.name(first)), (None, None));
        assert_eq!(book.keep(&name(2)), first, "used again");
        assert_eq!(book.take(&name(2)), first);
        book.give_back(first);
        assert_eq!(book.number(&name(2)), Some(first));
    }

    #[test]
    fn names_beyond_the_bound_are_nowhere() {
        let mut book = RepositoryBook::default();
        for number in 0..KEPT_MAX {
            assert_ne!(book.keep(&name(number)), NOWHERE);
        }
        assert_eq!(book.keep(&name(KEPT_MAX)), NOWHERE);
        assert_ne!(book.keep(&name(0)), NOWHERE);
    }
}
