//! The last chunks that the store refused, so that the next read of one is not another fetch.

use crate::model::ContentId;
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};

/// What an entry costs beyond its bytes (guess).
const ENTRY_BYTES: usize = 128;

/// Chunks in memory, bounded by their bytes; the least recently used leaves first.
#[derive(Debug)]
pub(super) struct Recent {
    max_bytes: usize,
    bytes: usize,
    clock: u64,
    chunks: HashMap<ContentId, (Bytes, u64)>,
    by_use: BTreeMap<u64, ContentId>,
}

impl Recent {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, bytes: 0, clock: 0, chunks: HashMap::new(), by_use: BTreeMap::new() }
    }

    pub(super) fn get(&mut self, id: &ContentId) -> Option<Bytes> {
        let (bytes, used) = self.chunks.get_mut(id)?;
        self.by_use.remove(used);
        self.clock += 1;
        *used = self.clock;
        self.by_use.insert(self.clock, *id);
        Some(bytes.clone())
    }

    /// Keeps a chunk, unless it alone exceeds the bound.
    pub(super) fn put(&mut self, id: ContentId, bytes: Bytes) {
        let cost = bytes.len() + ENTRY_BYTES;
        if cost > self.max_bytes || self.get(&id).is_some() {
            return;
        }
        while self.bytes + cost > self.max_bytes {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            if let Some((gone, _)) = self.chunks.remove(&oldest) {
                self.bytes -= gone.len() + ENTRY_BYTES;
            }
        }
        self.clock += 1;
        self.bytes += cost;
        self.by_use.insert(self.clock, id);
        self.chunks.insert(id, (bytes, self.clock));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_leaves_first_and_the_bound_holds() {
        let chunk = |n: u8| (ContentId::of(&[n]), Bytes::from(vec![n; 1000]));
        let mut recent = Recent::new(3 * (1000 + ENTRY_BYTES));
        for n in 0..3 {
            recent.put(chunk(n).0, chunk(n).1);
        }
        assert_eq!(recent.get(&chunk(0).0), Some(chunk(0).1));
        recent.put(chunk(3).0, chunk(3).1);
        assert_eq!(recent.get(&chunk(1).0), None);
        assert!([0, 2, 3].iter().all(|n| recent.get(&chunk(*n).0).is_some()));
        recent.put(ContentId::of(b"large"), Bytes::from(vec![0; 5000]));
        assert_eq!((recent.chunks.len(), recent.by_use.len()), (3, 3));
        assert!(recent.bytes <= recent.max_bytes);
    }
}
