//! Whom the task is to forget. A revocation must not get lost where the queue of commands is full, so these wishes have a
//! place of their own.

use crate::model::NodeId;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use tokio::sync::Notify;

/// Nodes that are kept apart; when more are to be forgotten at once, all are. Twice a full cell.
const NODES_MAX: usize = 4_096;

/// Who is to be forgotten.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Nodes(BTreeSet<NodeId>),
    All,
}

/// What was wished since the task looked.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    waiting: Mutex<Option<Wish>>,
    made: Notify,
}

impl Wishes {
    pub(super) fn forget(&self, node: NodeId) {
        self.change(|wish| match wish {
            Some(Wish::All) => Wish::All,
            Some(Wish::Nodes(nodes)) if nodes.len() >= NODES_MAX && !nodes.contains(&node) => Wish::All,
            Some(Wish::Nodes(mut nodes)) => {
                nodes.insert(node);
                Wish::Nodes(nodes)
            }
            None => Wish::Nodes([node].into()),
        });
    }

    pub(super) fn forget_all(&self) {
        self.change(|_| Wish::All);
    }

    /// Returns when there is a wish that no call of this was woken by.
    pub(super) async fn made(&self) {
        self.made.notified().await;
    }

    pub(super) fn take(&self) -> Option<Wish> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn change(&self, change: impl FnOnce(Option<Wish>) -> Wish) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let before = waiting.take();
        *waiting = Some(change(before));
        self.made.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_bound_all_are_forgotten_rather_than_one_missed() {
        let wishes = Wishes::default();
        for n in (0..NODES_MAX).chain(0..NODES_MAX) {
            wishes.forget(NodeId::numbered(n));
        }
        assert_eq!(wishes.take(), Some(Wish::Nodes((0..NODES_MAX).map(NodeId::numbered).collect())));
        assert_eq!(wishes.take(), None);
        for n in 0..=NODES_MAX {
            wishes.forget(NodeId::numbered(n));
        }
        assert_eq!(wishes.take(), Some(Wish::All));
        wishes.forget_all();
        wishes.forget(NodeId::numbered(1));
        assert_eq!(wishes.take(), Some(Wish::All));
    }
}
