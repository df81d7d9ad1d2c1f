//! Calls what a node is about to look at into the processor's cache.
//!
//! A simulator turns from node to node, of which there are far more than the cache holds, and knows the next ones in
//! advance. A node by itself stands still at one line of memory after the other; called early, they come all at once.
//! Nothing decides by it, and nothing else than time depends on it.

use super::marks::Mark;
use super::{Chunk, Content, Node, Peer, Peers};
use crate::model::Rng;

/// Bytes that come at once.
const LINE_BYTES: usize = 64;

/// Calls the line in which `place` lies.
#[inline]
pub(crate) fn prefetch<T>(place: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch is a hint. It reads nothing that the program sees and does not fault, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Calls all lines of a value.
#[inline]
pub(crate) fn prefetch_value<T>(value: &T) {
    prefetch_bytes(std::ptr::from_ref(value).cast(), size_of::<T>());
}

/// Calls all lines of a list.
#[inline]
pub(crate) fn prefetch_list<T>(list: &[T]) {
    prefetch_bytes(list.as_ptr().cast(), size_of_val(list));
}

#[inline]
fn prefetch_bytes(first: *const u8, bytes: usize) {
    for offset in (0..bytes).step_by(LINE_BYTES) {
        prefetch(first.wrapping_add(offset));
    }
}

impl<P: Peers, C: Content, R: Rng> Node<P, C, R> {
    /// Calls those of its own lines that nearly every input needs.
    pub(crate) fn prefetch(&self) {
        prefetch_bytes(std::ptr::from_ref(self).cast(), std::mem::offset_of!(Self, pending));
    }

    /// Calls the tables that an input about `chunk` from or to `peer` will be looked up in. The node itself should be in the
    /// cache by now.
    pub(crate) fn prefetch_tables(&self, chunk: Option<Chunk>, peer: Option<Peer>) {
        self.homes.prefetch();
        if let Some(chunk) = chunk {
            let slice = self.content.slice(chunk);
            self.marks.prefetch(chunk);
            self.hints.prefetch(slice);
        }
        if let Some(peer) = peer {
            self.loads.prefetch(peer);
            self.speeds.prefetch(peer);
        }
    }

    /// Calls what the end of a fetch is noted in.
    pub(crate) fn prefetch_end(&self, chunk: Chunk) {
        let slice = self.content.slice(chunk);
        self.held.prefetch(slice);
        self.doubts.prefetch();
        let lines = std::mem::offset_of!(Self, upstream) - std::mem::offset_of!(Self, pending);
        prefetch_bytes(std::ptr::from_ref(&self.pending).cast(), lines);
    }

    /// The same for what that names. It should be in the cache by now.
    pub(crate) fn prefetch_noted(&self) {
        self.possession.prefetch();
        self.claims.prefetch();
    }

    /// Calls the asks of others.
    pub(crate) fn prefetch_uploads(&self) {
        self.uploads.prefetch();
    }

    /// Calls the list of all fetches.
    pub(crate) fn prefetch_fetches(&self) {
        self.fetches.prefetch();
    }

    /// Calls the place of the fetch of `chunk` in that list, if there is one. The tables should be in the cache by now.
    pub(crate) fn prefetch_slot(&self, chunk: Chunk) {
        if let Mark::Fetching(slot) = self.marks.get(chunk) {
            self.fetches.prefetch_slot(slot);
        }
    }

    /// Calls the fetch of `chunk`, if there is one, and what is remembered of its slice. Its place should be in the cache by
    /// now.
    pub(crate) fn prefetch_fetch(&self, chunk: Chunk) {
        if let Some(home) = self.homes.get(self.content.slice(chunk)) {
            prefetch_value(home);
        }
        if let Mark::Fetching(slot) = self.marks.get(chunk)
            && let Some(fetch) = self.fetches.get(slot)
        {
            prefetch_value(fetch);
        }
    }
}
