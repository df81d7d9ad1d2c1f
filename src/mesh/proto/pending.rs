//! Wants that are not begun yet.

use super::Chunk;
use super::fetch::Want;
use crate::model::{Class, Rng, Time};
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug)]
struct Entry {
    chunk: Chunk,
    deadline: Time,
}

/// One queue a class, oldest first.
///
/// Looking for one chunk walks its queue: the driver wants each chunk once and seldom withdraws, and the number of
/// wants is bounded.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    queues: [VecDeque<Entry>; 3],
    /// Fills that were taken since there were none.
    filled: usize,
}

impl Pending {
    pub(super) fn len(&self) -> usize {
        self.queues.iter().map(VecDeque::len).sum()
    }

    pub(super) fn has(&self, class: Class) -> bool {
        !self.queues[class as usize].is_empty()
    }

    pub(super) fn push(&mut self, chunk: Chunk, want: Want) {
        self.queues[want.class as usize].push_back(Entry { chunk, deadline: want.deadline });
    }

    /// Takes out the want for `chunk`.
    pub(super) fn remove(&mut self, chunk: Chunk, class: Class) -> Option<Want> {
        let queue = &mut self.queues[class as usize];
        let index = queue.iter().position(|entry| entry.chunk == chunk)?;
        queue.remove(index).map(|entry| Want { class, deadline: entry.deadline })
    }

    /// The next want of `class` to begin: the oldest, but for `Fill` any of the oldest `range.0` and as many more as
    /// were begun before, as far as they lie within `range.1` bytes (as if all chunks were as long as the oldest). At
    /// first nobody has anything, and all must ask for the same few chunks so that each that comes goes to many at once.
    pub(super) fn take(
        &mut self,
        class: Class,
        range: (usize, u64),
        len_of: impl Fn(Chunk) -> u32,
        rng: &mut impl Rng,
    ) -> Option<(Chunk, Want)> {
        let queue = &mut self.queues[class as usize];
        let first = queue.front()?;
        let entry = if class == Class::Fill {
            let each = u64::from(len_of(first.chunk)).max(1);
            let most = usize::try_from(range.1 / each).unwrap_or(usize::MAX);
            let window = range.0.saturating_add(self.filled).min(most);
            self.filled = if queue.len() > 1 { self.filled.saturating_add(1) } else { 0 };
            // The oldest takes the place of the chosen one: it stays in the window, and nothing else moves.
            queue.swap_remove_front(rng.below(window.clamp(1, queue.len())))
        } else {
            queue.pop_front()
        };
        entry.map(|entry| (entry.chunk, Want { class, deadline: entry.deadline }))
    }

    /// What waits, with its class and deadline: what an audit looks at.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Chunk, Class, Time)> {
        let classes = [Class::Read, Class::Prefetch, Class::Fill];
        let of_class = |(class, queue): (Class, &'_ VecDeque<Entry>)| {
            queue.iter().map(move |entry| (entry.chunk, class, entry.deadline)).collect::<Vec<_>>()
        };
        classes.into_iter().zip(&self.queues).flat_map(of_class)
    }

    /// Takes out all whose readers have given up by `now`; also tells the next such moment.
    pub(super) fn expire(&mut self, now: Time) -> (Vec<Chunk>, Time) {
        let (mut gone, mut next) = (Vec::new(), Time::NEVER);
        for queue in &mut self.queues {
            queue.retain(|entry| {
                if entry.deadline <= now {
                    gone.push(entry.chunk);
                } else {
                    next = next.min(entry.deadline);
                }
                entry.deadline > now
            });
        }
        (gone, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Generator;

    fn with(class: Class, chunks: u32) -> Pending {
        let mut pending = Pending::default();
        for chunk in 0..chunks {
            pending.push(Chunk(chunk), Want { class, deadline: Time::from_nanos(u64::from(chunk)) });
        }
        pending
    }

    #[test]
    fn reads_begin_in_the_order_in_which_they_were_wanted() {
        let (mut pending, mut rng) = (with(Class::Read, 5), Generator::new(1));
        for expected in 0..5 {
            assert_eq!(pending.take(Class::Read, (1, 1), |_| 1, &mut rng).unwrap().0, Chunk(expected));
        }
        assert!(pending.take(Class::Read, (1, 1), |_| 1, &mut rng).is_none());
    }

    #[test]
    fn fills_begin_at_random_within_the_window() {
        let mut firsts = [0; 8];
        for seed in 0..200 {
            let taken =
                with(Class::Fill, 100).take(Class::Fill, (100, 80), |_| 10, &mut Generator::new(seed));
            firsts[taken.unwrap().0.0 as usize] += 1;
        }
        assert!(firsts.iter().all(|count| *count > 5), "{firsts:?}");
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_taken_out() {
        let mut pending = with(Class::Read, 5);
        let (gone, next) = pending.expire(Time::from_nanos(2));
        assert_eq!((gone, next), (vec![Chunk(0), Chunk(1), Chunk(2)], Time::from_nanos(3)));
        assert!(pending.remove(Chunk(4), Class::Read).is_some());
        assert_eq!(pending.len(), 1);
    }
}
