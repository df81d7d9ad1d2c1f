//! Somebody who reads the content in an order that all readers share, and what it waited for.

use crate::mesh::proto::Chunk;
use crate::model::{Class, Time};
use std::sync::Arc;
use std::time::Duration;

/// How all readers read.
#[derive(Clone, Debug)]
pub(super) struct ReadPlan {
    /// Number of chunks.
    pub(super) chunks: u32,
    /// Chunks in the order in which they are read, if not in that of their numbers.
    pub(super) order: Option<Arc<[u32]>>,
    /// Chunks that are wanted ahead.
    pub(super) ahead: u32,
    /// How long a reader takes for what it has, in nanoseconds a byte; 0 is at once.
    pub(super) nanos_per_byte: f64,
}

impl ReadPlan {
    /// The chunk at a place of the order.
    fn at(&self, place: u32) -> Chunk {
        Chunk(self.order.as_ref().map_or(place, |order| order[place as usize]))
    }

    /// How long a reader reads so many bytes.
    fn takes(&self, len_bytes: u32) -> Duration {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive, and saturating"
        )]
        let nanos = (f64::from(len_bytes) * self.nanos_per_byte).round() as u64;
        Duration::from_nanos(nanos)
    }
}

/// How one reader's waits were. All but the first are stalls: it had begun, and had to stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Waits {
    /// For the first chunk.
    pub(super) first: Duration,
    /// Number of stalls.
    pub(super) stalls: u32,
    /// All of them together.
    pub(super) stalled: Duration,
    /// The longest.
    pub(super) longest: Duration,
}

/// How it was for a reader who read all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) waits: Waits,
    /// When it began, and when it had read all.
    pub(super) began: Time,
    pub(super) ended: Time,
}

/// Waits for one chunk after the other (`Read`), with the next few on their way (`Prefetch`).
#[derive(Clone, Debug)]
pub(super) struct Reader {
    plan: Arc<ReadPlan>,
    have: Vec<bool>,
    /// The place in the order that it reads next.
    next: u32,
    /// The first place that was not wanted for it yet, and the first that it did not wait for yet.
    unwanted: u32,
    unasked: u32,
    /// When it began; nothing before.
    began: Option<Time>,
    /// Until when it reads what it took; from then on it waits, unless the next is here.
    busy_until: Time,
    waits: Waits,
    deadline: Time,
}

impl Reader {
    /// Before the beginning.
    pub(super) fn new(plan: &Arc<ReadPlan>) -> Self {
        Self {
            plan: Arc::clone(plan),
            have: vec![false; plan.chunks as usize],
            next: 0,
            unwanted: 0,
            unasked: 0,
            began: None,
            busy_until: Time::ZERO,
            waits: Waits::default(),
            deadline: Time::NEVER,
        }
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        self.have.capacity()
    }

    /// A chunk is here. `false` if it was before.
    pub(super) fn note(&mut self, chunk: Chunk) -> bool {
        !std::mem::replace(&mut self.have[chunk.0 as usize], true)
    }

    /// By when all must be read.
    pub(super) fn deadline(&self) -> Time {
        self.deadline
    }

    /// Whether there is something for it to do: to take the next chunk, or to begin to wait for it.
    pub(super) fn may_go_on(&self, now: Time) -> bool {
        let is_idle = self.began.is_some() && self.busy_until <= now && self.next < self.plan.chunks;
        is_idle && (self.unasked <= self.next || self.has_next())
    }

    /// When it will have read what it took, unless that is over.
    pub(super) fn next_deadline(&self, now: Time) -> Option<Time> {
        let is_busy = self.began.is_some() && self.busy_until > now && self.next < self.plan.chunks;
        is_busy.then_some(self.busy_until)
    }

    /// Of one that has all chunks, of which `len_bytes` says how long they are, how it was. It may still have to read some.
    pub(super) fn outcome(&self, len_bytes: impl Fn(Chunk) -> u32) -> Option<Outcome> {
        let began = self.began?;
        let mut ended = self.busy_until;
        for chunk in (self.next..self.plan.chunks).map(|place| self.plan.at(place)) {
            if !self.have[chunk.0 as usize] {
                return None;
            }
            ended = ended + self.plan.takes(len_bytes(chunk));
        }
        Some(Outcome { waits: self.waits, began, ended })
    }

    fn has_next(&self) -> bool {
        self.next < self.plan.chunks && self.have[self.plan.at(self.next).0 as usize]
    }

    /// Reads what is here, of which `len_bytes` says how long it is. Returns what it wants now that it did not want before.
    pub(super) fn go_on(
        &mut self,
        now: Time,
        deadline: Time,
        len_bytes: impl Fn(Chunk) -> u32,
    ) -> Vec<(Chunk, Class)> {
        self.deadline = deadline;
        if self.began.is_none() {
            (self.began, self.busy_until) = (Some(now), now);
        }
        while self.busy_until <= now && self.has_next() {
            self.take(now, len_bytes(self.plan.at(self.next)));
        }
        let (plan, chunks) = (&self.plan, self.plan.chunks);
        let mut wanted = Vec::new();
        let waits = self.next < chunks && self.busy_until <= now;
        if waits && self.unasked <= self.next {
            self.unasked = self.next + 1;
            wanted.push((plan.at(self.next), Class::Read));
        }
        // Ahead of what it waits for, or else of what it reads.
        let end = self.next.saturating_add(plan.ahead).saturating_add(u32::from(waits)).min(chunks);
        let first = self.unwanted.max(self.unasked);
        let ahead = (first..end).map(|place| plan.at(place)).filter(|chunk| !self.have[chunk.0 as usize]);
        wanted.extend(ahead.map(|chunk| (chunk, Class::Prefetch)));
        self.unwanted = self.unwanted.max(end);
        wanted
    }

    /// Takes the next chunk. It began to wait for it when it had read the one before.
    fn take(&mut self, now: Time, len_bytes: u32) {
        let waits_since = (self.unasked > self.next).then_some(self.busy_until);
        if let Some(since) = waits_since {
            let wait = now.since(since);
            if self.next == 0 {
                self.waits.first = wait;
            } else if !wait.is_zero() {
                self.waits.stalls += 1;
                self.waits.stalled += wait;
                self.waits.longest = self.waits.longest.max(wait);
            }
        }
        let begins = waits_since.map_or(self.busy_until, |_| now);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive, and saturating"
        )]
        let takes = Duration::from_nanos((f64::from(len_bytes) * self.plan.nanos_per_byte).round() as u64);
        self.busy_until = begins + takes;
        self.next += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(chunks: u32, ahead: u32, order: Option<&[u32]>, nanos_per_byte: f64) -> Arc<ReadPlan> {
        Arc::new(ReadPlan { chunks, ahead, order: order.map(Arc::from), nanos_per_byte })
    }

    fn at(nanos: u64) -> Time {
        Time::from_nanos(nanos)
    }

    fn go_on(reader: &mut Reader, nanos: u64) -> Vec<(Chunk, Class)> {
        reader.go_on(at(nanos), Time::NEVER, |chunk| 100 + chunk.0)
    }

    fn outcome(reader: &Reader) -> Option<Outcome> {
        reader.outcome(|chunk| 100 + chunk.0)
    }

    fn read(chunk: u32) -> (Chunk, Class) {
        (Chunk(chunk), Class::Read)
    }

    fn ahead(chunk: u32) -> (Chunk, Class) {
        (Chunk(chunk), Class::Prefetch)
    }

    #[test]
    fn it_waits_for_one_and_wants_a_few_ahead_each_once() {
        let mut reader = Reader::new(&plan(6, 2, None, 0.0));
        assert_eq!(go_on(&mut reader, 0), [read(0), ahead(1), ahead(2)]);
        assert!(reader.note(Chunk(1)) && !reader.note(Chunk(1)) && !reader.may_go_on(at(0)));
        assert!(reader.note(Chunk(0)) && reader.may_go_on(at(0)));
        assert_eq!(go_on(&mut reader, 0), [read(2), ahead(3), ahead(4)]);
        assert_eq!(outcome(&reader), None);
        for chunk in 2..6 {
            assert!(reader.note(Chunk(chunk)));
        }
        assert_eq!(go_on(&mut reader, 0), []);
        assert!(!reader.may_go_on(at(0)) && outcome(&reader).is_some());
    }

    #[test]
    fn the_first_wait_is_no_stall_and_each_later_one_is() {
        let mut reader = Reader::new(&plan(4, 0, None, 0.0));
        go_on(&mut reader, 1_000);
        for (chunk, nanos) in [(0, 1_300), (1, 1_310), (2, 1_310), (3, 1_350)] {
            reader.note(Chunk(chunk));
            assert!(reader.may_go_on(at(nanos)));
            go_on(&mut reader, nanos);
        }
        let nanos = Duration::from_nanos;
        let waits = Waits { first: nanos(300), stalls: 2, stalled: nanos(50), longest: nanos(40) };
        assert_eq!(outcome(&reader), Some(Outcome { waits, began: at(1_000), ended: at(1_350) }));
    }

    #[test]
    fn who_reads_slowly_waits_only_when_it_has_read_what_it_took() {
        // Chunk n takes 200 + 2 n.
        let mut reader = Reader::new(&plan(4, 1, None, 2.0));
        assert_eq!(go_on(&mut reader, 0), [read(0), ahead(1)]);
        reader.note(Chunk(0));
        assert_eq!(go_on(&mut reader, 50), []);
        assert_eq!((reader.may_go_on(at(249)), reader.next_deadline(at(50))), (false, Some(at(250))));
        // It is here in time, and is read from when the one before is, however late anybody looks.
        reader.note(Chunk(1));
        assert!(reader.may_go_on(at(260)));
        assert_eq!(go_on(&mut reader, 260), [ahead(2)]);
        assert_eq!(reader.next_deadline(at(260)), Some(at(452)));
        // Now it has to wait.
        assert!(reader.may_go_on(at(452)));
        assert_eq!(go_on(&mut reader, 452), [read(2), ahead(3)]);
        assert_eq!((reader.may_go_on(at(500)), reader.next_deadline(at(500))), (false, None));
        reader.note(Chunk(2));
        reader.note(Chunk(3));
        assert_eq!(go_on(&mut reader, 552), []);
        let nanos = Duration::from_nanos;
        let waits = Waits { first: nanos(50), stalls: 1, stalled: nanos(100), longest: nanos(100) };
        // All are here: that it has still to read the last one is known, and does not keep the run.
        let known = Some(Outcome { waits, began: at(0), ended: at(552 + 204 + 206) });
        assert_eq!(outcome(&reader), known);
        assert_eq!(go_on(&mut reader, 756), []);
        assert_eq!(outcome(&reader), known);
    }

    #[test]
    fn another_order_is_kept_to() {
        let mut reader = Reader::new(&plan(4, 1, Some(&[2, 0, 3, 1]), 0.0));
        assert_eq!(go_on(&mut reader, 0), [read(2), ahead(0)]);
        reader.note(Chunk(1));
        reader.note(Chunk(2));
        assert_eq!(go_on(&mut reader, 5), [read(0), ahead(3)]);
        reader.note(Chunk(0));
        reader.note(Chunk(3));
        assert_eq!(go_on(&mut reader, 9), []);
        assert!(outcome(&reader).is_some());
    }
}
