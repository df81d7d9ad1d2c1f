//! What members of other cells told of them in one round.
//!
//! Certificates prove who is told of, and nothing proves who is left out: one member could hide its whole cell. So all
//! answers of a round are put together, and an answer that lacks somebody who was there before counts only once another
//! member was asked.

use crate::model::NodeId;
use std::collections::BTreeMap;

/// Members that are held until the round ends; of cells beyond, the first answer counts (as many as the table of peers
/// has room for).
const HELD_MAX: usize = 1 << 16;

/// What to do after an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<V> {
    /// These are the cell's members.
    Tell(BTreeMap<NodeId, V>),
    /// Another member should be asked, too.
    AskAnother,
    /// There is nothing new.
    Nothing,
}

struct Answer<V> {
    members: BTreeMap<NodeId, V>,
    told: bool,
}

/// The answers of one round, by cell.
pub(super) struct Answers<C, V> {
    by_cell: BTreeMap<C, Answer<V>>,
    held: usize,
}

impl<C: Ord + Clone, V: Clone> Answers<C, V> {
    pub(super) const fn new() -> Self {
        Self { by_cell: BTreeMap::new(), held: 0 }
    }

    /// Takes one member's answer. `known` were in the cell before the round.
    pub(super) fn take(&mut self, cell: &C, members: BTreeMap<NodeId, V>, known: &[NodeId]) -> Next<V> {
        let Some(answer) = self.by_cell.get_mut(cell) else {
            let fits = self.held + members.len() <= HELD_MAX;
            let whole = !fits || known.iter().all(|node| members.contains_key(node));
            let kept = if fits { members.clone() } else { BTreeMap::new() };
            self.held += kept.len();
            self.by_cell.insert(cell.clone(), Answer { members: kept, told: whole });
            return if whole { Next::Tell(members) } else { Next::AskAnother };
        };
        let before = answer.members.len();
        if before == 0 || self.held + members.len() > HELD_MAX {
            return Next::Nothing;
        }
        for (node, value) in members {
            answer.members.entry(node).or_insert(value);
        }
        self.held += answer.members.len() - before;
        if answer.told && answer.members.len() == before {
            return Next::Nothing;
        }
        answer.told = true;
        Next::Tell(answer.members.clone())
    }

    /// The round is over: what was told of cells of which nobody else answered.
    pub(super) fn rest(self) -> impl Iterator<Item = (C, BTreeMap<NodeId, V>)> {
        self.by_cell
            .into_iter()
            .filter(|(_, answer)| !answer.told)
            .map(|(cell, answer)| (cell, answer.members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CELL: &str = "eu/a/r1";

    fn list(nodes: impl IntoIterator<Item = usize>) -> BTreeMap<NodeId, usize> {
        nodes.into_iter().map(|n| (NodeId::numbered(n), n)).collect()
    }

    #[test]
    fn one_member_hides_nobody_and_adds_nobody_away() {
        let known = [NodeId::numbered(1), NodeId::numbered(2), NodeId::numbered(3)];
        let mut answers = Answers::new();
        assert_eq!(answers.take(&CELL, list([3]), &known), Next::AskAnother);
        assert_eq!(answers.take(&CELL, list([1, 2]), &known), Next::Tell(list([1, 2, 3])));
        assert_eq!(answers.take(&CELL, list([3]), &known), Next::Nothing);
        assert_eq!(answers.take(&CELL, list([4]), &known), Next::Tell(list([1, 2, 3, 4])));
        assert_eq!(answers.rest().count(), 0);
    }

    #[test]
    fn who_grew_is_told_at_once_and_who_shrank_after_a_second_answer_or_at_the_end() {
        let known = [NodeId::numbered(1), NodeId::numbered(2)];
        let mut answers = Answers::new();
        assert_eq!(answers.take(&CELL, list([1, 2, 3]), &known), Next::Tell(list([1, 2, 3])));
        assert_eq!(answers.take(&"eu/a/r2", list([1]), &known), Next::AskAnother);
        assert_eq!(answers.take(&"eu/a/r2", list([1]), &known), Next::Tell(list([1])), "two say so");
        assert_eq!(answers.take(&"eu/a/r3", list([1]), &known), Next::AskAnother);
        assert_eq!(answers.rest().collect::<Vec<_>>(), [("eu/a/r3", list([1]))]);
    }

    #[test]
    fn what_is_held_is_bounded() {
        let mut answers = Answers::new();
        assert!(matches!(answers.take(&CELL, list(0..HELD_MAX), &[]), Next::Tell(_)));
        assert_eq!(answers.take(&CELL, list([HELD_MAX]), &[]), Next::Nothing);
        assert_eq!(answers.take(&"eu/a/r2", list([1]), &[NodeId::numbered(2)]), Next::Tell(list([1])));
        assert_eq!(answers.take(&"eu/a/r2", list([1, 2]), &[]), Next::Nothing);
        assert_eq!(answers.held, HELD_MAX);
    }
}
