//! What is fetched from the strata waits for company: the number of requests decides over a long way.
//!
//! The core lets chunks go one by one, as wishes come in and as fast as others arrive. Called for as they come, each would be a request of its
//! own. So chunks that nobody waits for are gathered: for a moment, because what is wished for together arrives here one after the other;
//! and then until as many bytes are together as are still under way of earlier ones, so that the link never runs dry (as in
//! Nagle's algorithm, RFC 896). As soon as somebody waits for one of them, it goes.
//!
//! What somebody waits for goes at once. Only a chunk that may be one of several of one read is held for a millisecond, until the wishes
//! for the others are here as well.

use super::super::proto::Chunk;
use crate::model::{Place, Time};
use std::time::Duration;

/// How long what is fetched ahead waits for what is wished for together with it (guess: longer than a wish for a thousand chunks takes to get
/// here, far shorter than a way that is worth it).
pub(super) const AHEAD_WAITS: Duration = Duration::from_millis(3);
/// How long a chunk of a read waits for the others of that read: the shortest time that the runtime's clock knows.
pub(super) const READ_WAITS: Duration = Duration::from_millis(1);
/// Plain bytes from which on a chunk may be one of several of a file: the least that content-defined cutting makes of one of average
/// length. A shorter one is nearly always a file by itself.
pub(super) const MANY_MIN_BYTES: u32 = 16 << 10;

/// Chunks that are to be fetched, in the order in which the core let them go. No more than the core has under way.
#[derive(Debug)]
pub(super) struct Gathered {
    waits: Duration,
    chunks: Vec<(Chunk, Place)>,
    bytes: u64,
    since: Time,
}

impl Gathered {
    /// Nothing yet; what comes waits so long in any case.
    pub(super) fn new(waits: Duration) -> Self {
        Self { waits, chunks: Vec::new(), bytes: 0, since: Time::ZERO }
    }

    /// One more.
    pub(super) fn add(&mut self, chunk: Chunk, place: Place, now: Time) {
        if self.chunks.is_empty() {
            self.since = now;
        }
        self.chunks.push((chunk, place));
        self.bytes += u64::from(place.stored_len);
    }

    /// It is not to be fetched from here any more; whether it was.
    pub(super) fn remove(&mut self, chunk: Chunk) -> bool {
        let Some(at) = self.chunks.iter().position(|(other, _)| *other == chunk) else { return false };
        self.bytes -= u64::from(self.chunks.remove(at).1.stored_len);
        true
    }

    /// Takes what lies right behind `place` in its segment, and right behind that, and so on, within `most_bytes`.
    pub(super) fn take_behind(&mut self, place: &Place, most_bytes: u64) -> Vec<Chunk> {
        let mut taken = Vec::new();
        let Some(mut end) = place.end() else { return taken };
        let mut behind: Vec<(u64, Chunk)> = self
            .chunks
            .iter()
            .filter(|(_, other)| other.segment == place.segment && other.offset >= end)
            .map(|(chunk, other)| (other.offset, *chunk))
            .collect();
        behind.sort_unstable();
        let last = place.offset.saturating_add(most_bytes);
        for (offset, chunk) in behind {
            let found = self.chunks.iter().find(|(other, _)| *other == chunk);
            let Some(next) = found.and_then(|(_, other)| other.end()) else { break };
            if offset != end || next > last {
                break;
            }
            end = next;
            taken.push(chunk);
        }
        for chunk in &taken {
            self.remove(*chunk);
        }
        taken
    }

    /// All of them, if it is time and no more than `under_way` bytes are missing to keep the link busy.
    pub(super) fn take_if_due(&mut self, now: Time, under_way: u64) -> Vec<Chunk> {
        if self.chunks.is_empty() || now < self.since + self.waits || self.bytes < under_way {
            return Vec::new();
        }
        self.bytes = 0;
        std::mem::take(&mut self.chunks).into_iter().map(|(chunk, _)| chunk).collect()
    }

    /// When to look again, if not only after what is under way has come.
    pub(super) fn due(&self, now: Time, under_way: u64) -> Option<Time> {
        let due = self.since + self.waits;
        (!self.chunks.is_empty() && (now < due || self.bytes >= under_way)).then_some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(offset: u64, stored_len: u32) -> Place {
        Place { segment: crate::model::ContentId::of(b"s"), ordinal: 0, offset, stored_len }
    }

    #[test]
    fn what_lies_right_behind_goes_along_and_nothing_else() {
        let mut gathered = Gathered::new(AHEAD_WAITS);
        for (chunk, offset) in [(3, 30), (1, 10), (2, 20), (5, 50), (0, 0)] {
            gathered.add(Chunk(chunk), place(offset, 10), Time::ZERO);
        }
        assert_eq!(gathered.take_behind(&place(0, 10), 30), [Chunk(1), Chunk(2)], "within the bytes");
        assert_eq!(gathered.take_behind(&place(40, 10), 1_000), [Chunk(5)]);
        assert_eq!(gathered.take_behind(&place(10, 10), 1_000), [], "there is a gap");
        assert_eq!((gathered.chunks.len(), gathered.bytes), (2, 20));
    }

    #[test]
    fn what_is_fetched_ahead_goes_together_and_never_lets_the_link_run_dry() {
        let at = |millis| Time::ZERO + Duration::from_millis(millis);
        let mut gathered = Gathered::new(AHEAD_WAITS);
        assert_eq!((gathered.due(at(1), 0), gathered.take_if_due(at(1), 0)), (None, vec![]));
        gathered.add(Chunk(1), place(0, 10), at(1));
        gathered.add(Chunk(2), place(90, 10), at(2));
        assert_eq!(gathered.due(at(2), 21), Some(at(4)));
        assert_eq!(gathered.take_if_due(at(3), 0), []);
        assert_eq!(gathered.take_if_due(at(4), 21), [], "more is under way than came together");
        assert_eq!(
            (gathered.due(at(4), 21), gathered.due(at(4), 20)),
            (None, Some(at(4))),
            "arrivals change that"
        );
        assert_eq!(gathered.take_if_due(at(4), 20), [Chunk(1), Chunk(2)]);
        gathered.add(Chunk(3), place(0, 10), at(9));
        assert!(gathered.remove(Chunk(3)) && !gathered.remove(Chunk(3)));
        assert_eq!(gathered.take_if_due(at(99), 0), []);
    }
}
