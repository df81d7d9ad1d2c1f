//! Bytes that arrived lately, so that they can be relayed without reading them back, and even when the
//! store refused them.

use super::super::proto::Source;
use crate::model::ContentId;
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};

/// Bytes kept: what arrives at 10 Gbit/s in a hundredth of a second and more; later they are read back from the store,
/// out of the page cache most often (guess). Part of the 128 MiB that an agent may take.
const RECENT_MAX_BYTES: usize = 16 << 20;
/// Chunks kept, however small.
const RECENT_MAX_CHUNKS: usize = 4_096;

/// Verified bytes by name, first in first out. The newest is kept however large it is.
pub(super) struct Recent {
    by_id: HashMap<ContentId, (Bytes, Source)>,
    order: VecDeque<ContentId>,
    bytes: usize,
    max_bytes: usize,
}

impl Recent {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Self { by_id: HashMap::new(), order: VecDeque::new(), bytes: 0, max_bytes: RECENT_MAX_BYTES }
    }

    /// Keeps verified bytes, and where they came from.
    pub(super) fn insert(&mut self, id: ContentId, bytes: Bytes, from: Source) {
        if self.by_id.contains_key(&id) {
            return;
        }
        self.bytes += bytes.len();
        self.by_id.insert(id, (bytes, from));
        self.order.push_back(id);
        while self.order.len() > 1 && (self.bytes > self.max_bytes || self.order.len() > RECENT_MAX_CHUNKS) {
            let Some(oldest) = self.order.pop_front() else { break };
            if let Some((gone, _)) = self.by_id.remove(&oldest) {
                self.bytes -= gone.len();
            }
        }
    }

    /// The bytes, if they are still here.
    pub(super) fn get(&self, id: &ContentId) -> Option<(Bytes, Source)> {
        self.by_id.get(id).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_make_room_and_the_newest_stays_whatever_its_size() {
        let mut recent = Recent::new();
        recent.max_bytes = 100;
        let id = |n: u8| ContentId::of(&[n]);
        for n in 0..5 {
            recent.insert(id(n), Bytes::from(vec![n; 40]), Source::Strata);
        }
        let here: Vec<u8> = (0..5).filter(|n| recent.get(&id(*n)).is_some()).collect();
        assert_eq!((here, recent.bytes), (vec![3, 4], 80));
        recent.insert(id(9), Bytes::from(vec![9; 500]), Source::Strata);
        assert_eq!((recent.by_id.len(), recent.bytes), (1, 500));
        assert!(recent.get(&id(9)).is_some());
    }
}
