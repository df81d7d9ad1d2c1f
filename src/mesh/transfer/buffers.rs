//! Buffers for chunks that are used again.
//!
//! The agent has the allocator take large blocks from the system one by one and give them back (`agent/memory.rs`), so that
//! a chunk of a MiB would cost 256 page faults, a tenth of a second of processor time a gigabyte. Buffers that were
//! given back here cost none.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Smaller ones come from the allocator's own stock, in bytes.
const SMALL_BYTES: usize = 16 << 10;
/// Larger ones are left to the system, in bytes.
const LARGE_BYTES: usize = 4 << 20;
/// Bytes that lie here unused at most: a reader's window of chunks of a MiB (guess).
const KEPT_MAX_BYTES: usize = 16 << 20;

/// Buffers that nobody uses now, by length.
#[derive(Default)]
struct Stock {
    by_len: BTreeMap<usize, Vec<Vec<u8>>>,
    bytes: usize,
}

static STOCK: Mutex<Stock> = Mutex::new(Stock { by_len: BTreeMap::new(), bytes: 0 });

fn stock() -> MutexGuard<'static, Stock> {
    STOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The length of the buffer that is taken for `len` bytes: at most a quarter longer, so that chunks of any length share
/// few kinds of buffers.
fn rounded(len: usize) -> usize {
    let step = len.next_power_of_two() / 8;
    len.next_multiple_of(step.max(1))
}

/// A buffer of a given length. What it holds at first is anything.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
}

impl Buffer {
    /// A buffer of `len` bytes.
    pub(super) fn take(len: usize) -> Self {
        let full = if (SMALL_BYTES..=LARGE_BYTES).contains(&len) { rounded(len) } else { len };
        let mut stock = stock();
        let kept = stock.by_len.get_mut(&full).and_then(Vec::pop);
        if kept.is_some() {
            stock.bytes -= full;
        }
        drop(stock);
        Self { bytes: kept.unwrap_or_else(|| vec![0; full]), len }
    }

    /// All of it, to be written into.
    pub(super) fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }

    /// The same bytes, to be shared; the buffer comes back with the last of them.
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let len = self.bytes.len();
        if !(SMALL_BYTES..=LARGE_BYTES).contains(&len) {
            return;
        }
        let mut stock = stock();
        if stock.bytes + len <= KEPT_MAX_BYTES {
            stock.bytes += len;
            stock.by_len.entry(len).or_default().push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_hardly_longer_than_what_is_in_it() {
        for len in [SMALL_BYTES, SMALL_BYTES + 1, 65_536, 65_537, 700_001, 1 << 20, LARGE_BYTES] {
            let full = rounded(len);
            assert!((len..=len + len / 4).contains(&full), "{full} for {len}");
            assert_eq!(rounded(full), full);
        }
        assert_eq!((rounded(1 << 16), rounded(1 << 20)), (1 << 16, 1 << 20));
    }

    #[test]
    fn what_is_shared_has_the_length_that_was_asked_for_and_its_buffer_comes_back() {
        let len = 3_000_001;
        let comes_back = || {
            let mut buffer = Buffer::take(len);
            buffer.as_mut().fill(7);
            let place = buffer.as_ref().as_ptr();
            let bytes = buffer.freeze();
            let part = bytes.slice(len - 1..);
            drop(bytes);
            let meanwhile = Buffer::take(len);
            assert_ne!(meanwhile.as_ref().as_ptr(), place, "a part is still in use");
            assert_eq!(&part[..], [7]);
            drop(part);
            let again = Buffer::take(len - 1_000);
            assert_eq!(again.as_ref().len(), len - 1_000);
            again.as_ref().as_ptr() == place
        };
        // All tests share one stock, and others may have filled it just then.
        assert!((0..100).any(|_| comes_back()));
    }

    #[test]
    fn no_more_is_kept_than_the_bound() {
        let many: Vec<Buffer> = (0..64).map(|_| Buffer::take(1 << 20)).collect();
        drop(many);
        assert!(stock().bytes <= KEPT_MAX_BYTES);
        let other = [0, 1, 5, SMALL_BYTES - 1, LARGE_BYTES + 1].map(Buffer::take);
        assert_eq!(other.each_ref().map(|buffer| buffer.as_ref().len())[4], LARGE_BYTES + 1);
    }
}
