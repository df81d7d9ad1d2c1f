//! A short list of peers, in place as long as there are only a few.

use super::Peer;
use std::ops::Deref;

/// Peers in an order. The first so many lie in place; of more, all lie apart until the list is emptied.
#[derive(Clone, Debug)]
#[expect(clippy::box_collection, reason = "a list by itself is longer than what lies in place")]
pub(super) enum Few<const HERE: usize> {
    Here { len: u8, peers: [Peer; HERE] },
    Apart(Box<Vec<Peer>>),
}

impl<const HERE: usize> Default for Few<HERE> {
    fn default() -> Self {
        Self::Here { len: 0, peers: [Peer(0); HERE] }
    }
}

impl<const HERE: usize> Deref for Few<HERE> {
    type Target = [Peer];
    fn deref(&self) -> &[Peer] {
        match self {
            Self::Here { len, peers } => &peers[..usize::from(*len)],
            Self::Apart(peers) => peers,
        }
    }
}

impl<const HERE: usize> Few<HERE> {
    pub(super) fn push(&mut self, peer: Peer) {
        match self {
            Self::Here { len, peers } if usize::from(*len) < HERE => {
                peers[usize::from(*len)] = peer;
                *len += 1;
            }
            Self::Here { peers, .. } => {
                let mut all = Vec::with_capacity(2 * HERE);
                all.extend_from_slice(peers);
                all.push(peer);
                *self = Self::Apart(Box::new(all));
            }
            Self::Apart(peers) => peers.push(peer),
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Takes one out; the last one takes its place.
    pub(super) fn swap_remove(&mut self, index: usize) -> Peer {
        match self {
            Self::Here { len, peers } => {
                let (peer, last) = (peers[..usize::from(*len)][index], usize::from(*len) - 1);
                peers[index] = peers[last];
                *len -= 1;
                peer
            }
            Self::Apart(peers) => {
                let peer = peers.swap_remove(index);
                self.come_back();
                peer
            }
        }
    }

    /// Keeps those that `keep` says, in their order.
    pub(super) fn retain(&mut self, keep: impl Fn(Peer) -> bool) {
        match self {
            Self::Here { len, peers } => {
                let mut kept = 0;
                for index in 0..usize::from(*len) {
                    if keep(peers[index]) {
                        peers[usize::from(kept)] = peers[index];
                        kept += 1;
                    }
                }
                *len = kept;
            }
            Self::Apart(peers) => {
                peers.retain(|peer| keep(*peer));
                self.come_back();
            }
        }
    }

    /// What fits again lies in place again.
    fn come_back(&mut self) {
        if let Self::Apart(peers) = self
            && peers.len() <= HERE
        {
            let mut here = Self::default();
            peers.iter().for_each(|peer| here.push(*peer));
            *self = here;
        }
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        match self {
            Self::Here { .. } => 0,
            Self::Apart(peers) => size_of::<Vec<Peer>>() + peers.capacity() * size_of::<Peer>(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Generator, Rng};

    #[test]
    fn it_is_the_same_list_in_place_and_apart() {
        let (mut few, mut plain, mut rng) = (Few::<3>::default(), Vec::new(), Generator::new(4));
        let mut apart = 0;
        for turn in 0..4_000 {
            match rng.below(9) {
                0 if rng.below(4) == 0 => {
                    few.clear();
                    plain.clear();
                }
                1 | 2 if !plain.is_empty() => {
                    let index = rng.below(plain.len());
                    assert_eq!(few.swap_remove(index), plain.swap_remove(index));
                }
                3 => {
                    let bit = rng.below(5);
                    few.retain(|peer| peer.0 >> bit & 1 == 0);
                    plain.retain(|peer| peer.0 >> bit & 1 == 0);
                }
                _ => {
                    few.push(Peer(turn));
                    plain.push(Peer(turn));
                }
            }
            assert_eq!(*few, plain[..]);
            apart += u32::from(few.heap_bytes() > 0);
        }
        assert!(apart > 100 && size_of::<Few<3>>() == 16, "{apart}");
    }
}
