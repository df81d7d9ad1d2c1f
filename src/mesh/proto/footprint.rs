//! What a node takes in memory, by part: what the simulator's bench prints, so that it is seen where the bytes are.
//!
//! Nothing decides by it. What lies in vectors is exact but for the allocator's own; what lies in trees is an estimate.

use super::{Content, Node, Peer, Peers};
use crate::model::{Rng, Time};

/// Bytes that a part takes.
pub type PartBytes = (&'static str, usize);

/// About what a tree with so many entries takes: nodes of eleven places that are two thirds full.
pub(super) fn tree_bytes<K, V>(entries: usize) -> usize {
    const NODE: usize = 16;
    const PLACES: usize = 11;
    let each = size_of::<K>() + size_of::<V>();
    if entries == 0 { 0 } else { (entries * 3 / 2).div_ceil(PLACES) * (PLACES * each + NODE) }
}

impl<P: Peers, C: Content, R: Rng> Node<P, C, R> {
    /// What this node takes, by part. What the views take beside themselves is not in it.
    pub fn footprint(&self) -> [PartBytes; 12] {
        let small = self.upstream.heap_bytes()
            + self.lookups.heap_bytes()
            + self.announces.heap_bytes()
            + tree_bytes::<Peer, Time>(self.distrusted.len());
        [
            ("node itself", size_of::<Self>()),
            ("marks", self.marks.heap_bytes()),
            ("held", self.held.capacity() * size_of::<u16>()),
            ("pending", self.pending.heap_bytes()),
            ("fetches", self.fetches.heap_bytes()),
            ("uploads", self.uploads.heap_bytes()),
            ("homes", self.homes.heap_bytes()),
            ("hints", self.hints.heap_bytes()),
            ("loads, speeds", self.loads.heap_bytes() + self.speeds.heap_bytes()),
            ("doubts", self.doubts.heap_bytes()),
            ("possession, claims", self.possession.heap_bytes() + self.claims.heap_bytes()),
            ("strata, look-ups, announcements", small),
        ]
    }
}
