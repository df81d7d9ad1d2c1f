//! The first moments: a node that has just started knows nobody, so it would be the home of everything, and take from
//! the strata what its neighbours hold.
//!
//! What readers want is held back until the first peer has been seen and had a moment to name the others, until all are there whom
//! this node was told of or knew before, or until [`PATIENCE`] is over. A node without contacts has nobody to wait for.

use super::Linked;
use super::task::{Driver, Links};
use super::wants::Wish;
use crate::ambient;
use crate::mesh::ports::ObtainError;
use crate::model::{NodeId, Time};
use std::time::Duration;

/// Longest time that a reader waits for the first peer (guess: two rounds of asking contacts, less than a reader
/// minds once).
const PATIENCE: Duration = Duration::from_secs(3);
/// Time from the first peer on for the others (guess: membership spreads in a few rounds of 200 ms).
const GRACE: Duration = Duration::from_millis(600);
/// Wishes that are held back (guess: more than readers have within the patience).
const HELD_MAX: usize = 16_384;

/// The wishes of the first moments.
pub(super) struct Settling {
    until: Time,
    met: bool,
    held: Vec<Wish>,
}

impl Settling {
    /// `None`: there is nobody to wait for.
    pub(super) fn begin(links: &Links, now: Time) -> Option<Self> {
        let has_contacts = |linked: &Linked| linked.has_contacts;
        links.network.as_ref().is_some_and(has_contacts).then(|| Self {
            until: now + PATIENCE,
            met: false,
            held: Vec::new(),
        })
    }

    /// Holds a wish back.
    pub(super) fn hold(&mut self, wish: Wish) {
        if self.held.len() < HELD_MAX {
            self.held.push(wish);
        } else {
            let _ = wish.reply.send(Err(ObtainError::TooMany));
        }
    }

    /// Whether it is over. The first peer shortens it.
    fn is_over(&mut self, peers: usize, all: bool, now: Time) -> bool {
        if peers > 0 && !self.met {
            self.met = true;
            self.until = self.until.min(now + GRACE);
        }
        self.until <= now || all
    }
}

impl Driver {
    /// Lets what was held back go once this node knows its neighbours.
    pub(super) fn settle(&mut self) {
        let Some(settling) = &mut self.settling else { return };
        let expected = self.links.network.as_ref().map_or(&[][..], |network| &network.expected);
        let is_up = |node: &NodeId| {
            let entry = self.peers.number(node).and_then(|peer| self.peers.get(peer));
            entry.is_some_and(|entry| entry.up)
        };
        let mut others = expected.iter().filter(|node| **node != self.node).peekable();
        let all = others.peek().is_some() && others.all(is_up);
        if !settling.is_over(self.peers.up(), all, ambient::now()) {
            return;
        }
        let Some(settling) = self.settling.take() else { return };
        for wish in settling.held {
            self.want(wish);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_peer_ends_the_wait_soon_and_without_one_it_ends_all_the_same() {
        let new = || Settling { until: Time::ZERO + PATIENCE, met: false, held: Vec::new() };
        let at = |millis| Time::ZERO + Duration::from_millis(millis);
        let mut lonely = new();
        assert!(!lonely.is_over(0, false, at(2_999)) && lonely.is_over(0, false, at(3_000)));
        let mut met = new();
        assert!(
            !met.is_over(1, false, at(100))
                && !met.is_over(5, false, at(699))
                && met.is_over(5, false, at(700))
        );
        assert!(new().is_over(1, true, at(100)), "all are there who were expected");
    }
}
