//! What is due when, for one part of the fleet.
//!
//! A ring of buckets, one a step (a calendar queue after Brown, 1988), and a tree for what lies beyond it. A bucket is a list
//! of pages, which go from one to the other: so what is in line takes as much memory as its largest number, and not each
//! bucket as much as the fullest.

use super::fleet::Event;
use super::line::{self, Letter, Line, Spare};
use std::collections::BTreeMap;

/// Steps that the ring of buckets covers.
const RING: usize = 1_024;

/// An event with the machine that it reaches.
type Entry = (u32, Event);

/// What lies beyond the ring.
#[derive(Debug, Default)]
struct Far {
    events: Vec<Entry>,
    wakes: Vec<u32>,
}

/// Events by the step in which they are due.
#[derive(Debug)]
pub(super) struct Calendar {
    ring: Vec<Line>,
    /// Wake-ups apart: they lie far ahead, few in a bucket, and most are outdated when due.
    wakes: Vec<Vec<u32>>,
    far: BTreeMap<u64, Far>,
    /// Emptied pages.
    spare: Spare,
    /// What is in line within the ring.
    waiting: usize,
}

/// The bucket of a step.
fn place(step: u64) -> usize {
    usize::try_from(step % RING as u64).unwrap_or(0)
}

impl Calendar {
    pub(super) fn new() -> Self {
        Self {
            ring: (0..RING).map(|_| Line::default()).collect(),
            wakes: (0..RING).map(|_| Vec::new()).collect(),
            far: BTreeMap::new(),
            spare: Vec::new(),
            waiting: 0,
        }
    }

    /// Puts an event in line for a later step than the present one.
    pub(super) fn push(&mut self, now: u64, step: u64, to: u32, event: Event) {
        let step = step.max(now + 1);
        if step - now >= RING as u64 {
            self.far.entry(step).or_default().events.push((to, event));
            return;
        }
        self.waiting += 1;
        self.ring[place(step)].push(to, event, &mut self.spare);
    }

    /// The same for one that was in another list.
    pub(super) fn push_letter(&mut self, now: u64, step: u64, letter: Letter) {
        let step = step.max(now + 1);
        if step - now >= RING as u64 {
            return self.push(now, step, letter.to(), letter.into_event());
        }
        self.waiting += 1;
        self.ring[place(step)].push_letter(letter, &mut self.spare);
    }

    /// The same for a wake-up.
    pub(super) fn push_wake(&mut self, now: u64, step: u64, to: u32) {
        let step = step.max(now + 1);
        if step - now >= RING as u64 {
            self.far.entry(step).or_default().wakes.push(to);
            return;
        }
        self.waiting += 1;
        self.wakes[place(step)].push(to);
    }

    /// The first step from `now` on for which something is in line.
    pub(super) fn first(&self, now: u64) -> Option<u64> {
        let far = self.far.keys().next().copied();
        if self.waiting == 0 {
            return far;
        }
        let is_empty = |step: u64| self.wakes[place(step)].is_empty() && self.ring[place(step)].is_empty();
        let near = (now..now + RING as u64).find(|step| !is_empty(*step));
        near.into_iter().chain(far).min()
    }

    /// Hands out what is due at `now` into what is empty: events, and whom wake-ups reach, which come after them.
    pub(super) fn take(&mut self, now: u64, events: &mut Line, wakes: &mut Vec<u32>) {
        std::mem::swap(&mut self.ring[place(now)], events);
        std::mem::swap(&mut self.wakes[place(now)], wakes);
        self.waiting -= events.len() + wakes.len();
        if let Some(far) = self.far.remove(&now) {
            far.events.into_iter().for_each(|(to, event)| events.push(to, event, &mut self.spare));
            wakes.extend(far.wakes);
        }
    }

    /// Takes a bucket's pages back when all events were taken out.
    pub(super) fn recycle(&mut self, events: &mut Line) {
        events.recycle(&mut self.spare);
    }

    /// Bytes on the heap; what lies far ahead is left out.
    pub(super) fn heap_bytes(&self) -> usize {
        let pages = self.ring.iter().map(Line::heap_bytes).sum::<usize>() + line::heap_bytes(&self.spare);
        pages + self.wakes.iter().map(Vec::capacity).sum::<usize>() * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::proto::{Ask, Chunk};
    use crate::model::{Generator, Rng};

    #[test]
    fn everything_comes_when_it_is_due_in_the_order_in_which_it_was_put_in_line() {
        let (mut calendar, mut rng) = (Calendar::new(), Generator::new(5));
        let (mut plain, mut woken) =
            (BTreeMap::<u64, Vec<(u32, u32)>>::new(), BTreeMap::<u64, Vec<u32>>::new());
        let (mut now, mut number, mut seen) = (0, 0, 0);
        let (mut events, mut wakes) = (Line::default(), Vec::new());
        loop {
            let count = if now < 3_000 { rng.below(600) } else { 0 };
            for _ in 0..count {
                // Mostly soon, now and then beyond the ring.
                let span = if rng.below(20) == 0 { 5_000 } else { 6 };
                let (step, to) = (now + 1 + rng.below(span) as u64, u32::try_from(rng.below(40)).unwrap());
                if rng.below(5) == 0 {
                    calendar.push_wake(now, step, to);
                    woken.entry(step).or_default().push(to);
                } else {
                    calendar.push(now, step, to, Event::Sent { ask: Ask(number), to, chunk: Chunk(0) });
                    plain.entry(step).or_default().push((to, number));
                    number += 1;
                }
            }
            now += 1;
            let first = plain.keys().chain(woken.keys()).min().copied();
            assert_eq!(calendar.first(now), first);
            if first.is_none() {
                break;
            }
            calendar.take(now, &mut events, &mut wakes);
            let mut places = Vec::new();
            events.each(|place, to| places.push((place, to)));
            let found = |(place, to): (u32, u32)| match events.take(place) {
                Event::Sent { ask, .. } => (to, ask.0),
                other => panic!("{other:?}"),
            };
            // What was put in line when it lay beyond the ring comes after the rest.
            let (mut found, mut wanted): (Vec<_>, Vec<_>) =
                (places.into_iter().map(found).collect(), plain.remove(&now).unwrap_or_default());
            seen += found.len();
            found.sort_unstable();
            wanted.sort_unstable();
            assert_eq!(found, wanted);
            wakes.sort_unstable();
            let mut due = woken.remove(&now).unwrap_or_default();
            due.sort_unstable();
            assert_eq!(wakes, due);
            wakes.clear();
            calendar.recycle(&mut events);
        }
        assert!(seen > 100_000 && calendar.waiting == 0);
        // Each bucket of the ring may hold something from long ago, and the next few hold some hundred each.
        assert!(calendar.spare.len() < RING + 64, "{}", calendar.spare.len());
    }
}
