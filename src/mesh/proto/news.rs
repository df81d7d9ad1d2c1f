//! Signed documents spread by gossip: each node hands each document on once, to a few random members of its cell
//! and to contacts in other cells.
//!
//! With ln n + c random targets a node, a document reaches all n members with probability e^(-e^-c) (Kermarrec,
//! Massoulié, Ganesh: "Probabilistic reliable dissemination in large-scale systems", 2003). What is missed comes
//! with the next document, or when a member asks for the newest ones.

use super::{Content, NewsId, Node, Outbox, Output, Peer, Peers};
use crate::model::Rng;
use std::collections::{BTreeSet, VecDeque};

/// Documents that were handed on already; the oldest is forgotten first.
#[derive(Clone, Debug, Default)]
pub(super) struct News {
    seen: BTreeSet<NewsId>,
    order: VecDeque<NewsId>,
}

/// What an audit looks at.
impl News {
    /// Documents that are remembered, if both books agree on them.
    pub(super) fn len(&self) -> Option<usize> {
        (self.seen.len() == self.order.len()).then_some(self.order.len())
    }
}

/// The least whole number that is not below `ln n`, up to one more: counted in bits.
fn ln_up(n: usize) -> usize {
    let bits = (usize::BITS - n.leading_zeros()) as usize;
    (bits * 694).div_ceil(1_000)
}

impl<P: Peers, C: Content, R: Rng> Node<P, C, R> {
    pub(super) fn news_seen(&mut self, news: NewsId, from: Option<Peer>, out: &mut Outbox) {
        if !self.news.seen.insert(news) {
            return;
        }
        self.news.order.push_back(news);
        if self.news.order.len() > self.settings.news_max as usize
            && let Some(oldest) = self.news.order.pop_front()
        {
            self.news.seen.remove(&oldest);
        }
        let me = self.peers.me();
        let members = self.peers.members();
        let fan_out = ln_up(members) + usize::from(self.settings.news_extra);
        let mut to: Vec<Peer> = Vec::with_capacity(fan_out);
        // Twice as many draws as there are targets meet enough different ones; a small cell is told as a whole.
        let draws = if members <= 2 * fan_out { members } else { 2 * fan_out };
        for draw in 0..draws {
            let index = if draws == members { draw } else { self.rng.below(members) };
            let peer = self.peers.member(index);
            if peer != me && Some(peer) != from && to.len() < fan_out.max(draws) && !to.contains(&peer) {
                to.push(peer);
            }
        }
        if draws != members {
            to.truncate(fan_out);
        }
        let contacts = self.peers.contacts().iter().copied().filter(|peer| Some(*peer) != from);
        to.extend(contacts.take(usize::from(self.settings.news_contacts)));
        for to in to {
            out.push(Output::Spread { news, to });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ln_up;

    #[test]
    fn the_fan_out_is_at_least_the_logarithm() {
        for n in [1_usize, 2, 3, 10, 100, 2_000, 100_000] {
            let ln = (n as f64).ln();
            assert!(ln_up(n) as f64 >= ln && ln_up(n) as f64 <= ln + 2.0, "{n}: {}", ln_up(n));
        }
    }
}
