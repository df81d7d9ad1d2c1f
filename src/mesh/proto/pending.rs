//! Wants that are not begun yet.

use super::Chunk;
use super::fetch::Want;
use super::rare::{Nothing, Rare};
use super::spread::Spread;
use crate::model::{Class, Rng, Time};
use std::collections::VecDeque;
use std::time::Duration;

/// Wants of consecutive chunks that have one deadline, the oldest first.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: u32,
    len: u32,
    deadline: Time,
}

impl Run {
    fn chunks(self) -> impl Iterator<Item = Chunk> {
        (self.first..self.first + self.len).map(Chunk)
    }

    /// Takes the oldest.
    fn take(&mut self) -> (Chunk, Time) {
        let chunk = Chunk(self.first);
        (self.first, self.len) = (self.first.wrapping_add(1), self.len - 1);
        (chunk, self.deadline)
    }
}

fn push(runs: &mut VecDeque<Run>, chunk: Chunk, deadline: Time) {
    match runs.back_mut() {
        Some(run) if run.deadline == deadline && run.first.checked_add(run.len) == Some(chunk.0) => {
            run.len += 1;
        }
        _ => runs.push_back(Run { first: chunk.0, len: 1, deadline }),
    }
}

/// Wants of one class, the oldest first.
///
/// Who wants a whole tree wants runs of chunks by one moment, so they are kept as runs; only the oldest, among which a
/// fill picks, are spread out. Wants without any order take as much as if each were kept by itself.
#[derive(Clone, Debug, Default)]
struct Queue {
    /// The oldest, one by one.
    spread: Spread,
    /// Their deadlines, in step; empty while all of them have `deadline`.
    deadlines: VecDeque<Time>,
    deadline: Time,
    /// The others.
    runs: VecDeque<Run>,
    len: usize,
}

impl Nothing for Queue {
    const NOTHING: &'static Self = &Self {
        spread: Spread::NONE,
        deadlines: VecDeque::new(),
        deadline: Time::ZERO,
        runs: VecDeque::new(),
        len: 0,
    };
}

impl Queue {
    fn push(&mut self, chunk: Chunk, deadline: Time) {
        self.len += 1;
        push(&mut self.runs, chunk, deadline);
    }

    fn oldest(&self) -> Option<Chunk> {
        self.spread.front().or_else(|| self.runs.front().map(|run| Chunk(run.first)))
    }

    /// Takes the oldest of the runs.
    fn take_from_runs(&mut self) -> Option<(Chunk, Time)> {
        let run = self.runs.front_mut()?;
        let taken = run.take();
        if run.len == 0 {
            self.runs.pop_front();
        }
        Some(taken)
    }

    /// Spreads out the `count` oldest at least, as far as there are so many.
    fn spread(&mut self, count: usize) {
        let more = count.min(self.len).saturating_sub(self.spread.len());
        self.spread.reserve(more);
        for _ in 0..more {
            let Some((chunk, deadline)) = self.take_from_runs() else { return };
            if self.spread.is_empty() {
                self.deadline = deadline;
            }
            if self.deadlines.is_empty() && deadline != self.deadline {
                self.deadlines.extend(std::iter::repeat_n(self.deadline, self.spread.len()));
            }
            if !self.deadlines.is_empty() || deadline != self.deadline {
                self.deadlines.push_back(deadline);
            }
            self.spread.push_back(chunk);
        }
    }

    fn pop(&mut self) -> Option<(Chunk, Time)> {
        if self.spread.is_empty() {
            let taken = self.take_from_runs()?;
            self.len -= 1;
            return Some(taken);
        }
        self.take(0)
    }

    /// Takes the one at `index`. The oldest takes its place: it stays near the front, and nothing else moves.
    fn take(&mut self, index: usize) -> Option<(Chunk, Time)> {
        self.spread(index + 1);
        let chunk = self.spread.swap_remove_front(index)?;
        self.len -= 1;
        Some((chunk, self.deadlines.swap_remove_front(index).unwrap_or(self.deadline)))
    }

    /// The same, and all others keep their order.
    fn take_in_order(&mut self, index: usize) -> Option<(Chunk, Time)> {
        self.spread(index + 1);
        let chunk = self.spread.remove(index)?;
        self.len -= 1;
        Some((chunk, self.deadlines.remove(index).unwrap_or(self.deadline)))
    }

    fn remove(&mut self, chunk: Chunk) -> Option<Time> {
        let place = self.spread.iter().position(|other| other == chunk);
        if let Some(index) = place {
            self.spread.remove(index);
            self.len -= 1;
            return Some(self.deadlines.remove(index).unwrap_or(self.deadline));
        }
        let index = self.runs.iter().position(|run| chunk.0.wrapping_sub(run.first) < run.len)?;
        let Run { first, len, deadline } = self.runs.remove(index)?;
        let before = chunk.0 - first;
        let after = len - before - 1;
        for (first, len) in [(chunk.0.wrapping_add(1), after), (first, before)] {
            if len > 0 {
                self.runs.insert(index, Run { first, len, deadline });
            }
        }
        self.len -= 1;
        Some(deadline)
    }

    fn iter(&self) -> impl Iterator<Item = (Chunk, Time)> {
        let deadlines = self.deadlines.iter().copied().chain(std::iter::repeat(self.deadline));
        let runs = self.runs.iter().flat_map(|run| run.chunks().map(|chunk| (chunk, run.deadline)));
        self.spread.iter().zip(deadlines).chain(runs)
    }

    /// Takes out all that are due by `now` and appends them to `gone`; tells when the next one is.
    fn expire(&mut self, now: Time, gone: &mut Vec<Chunk>) -> Time {
        let next = self.iter().map(|(_, deadline)| deadline).filter(|deadline| *deadline > now).min();
        let before = gone.len();
        gone.extend(self.iter().filter(|(_, deadline)| *deadline <= now).map(|(chunk, _)| chunk));
        if self.deadlines.is_empty() && self.deadline <= now {
            self.spread.clear();
        } else {
            let mut deadlines = self.deadlines.iter();
            self.spread.retain(|| deadlines.next().is_none_or(|deadline| *deadline > now));
            self.deadlines.retain(|deadline| *deadline > now);
        }
        self.runs.retain(|run| run.deadline > now);
        self.len -= gone.len() - before;
        next.unwrap_or(Time::NEVER)
    }
}

/// Fills of which this node is the home that are remembered to begin before others (guess: four windows of 1 MiB chunks).
const OWN_MAX: usize = 1_024;

/// Chunks that must fit in the time that those lie ahead: on a slower link the way to the strata is short beside a chunk, and who fetches
/// only what it is the home of has nothing to get from others (simulated: 32 nodes in cells of eight with 20 Mbit/s took 1.16 times the bound
/// instead of 1.09, and 1.16 copies left the strata instead of one).
const OWN_AHEAD_MIN: usize = 16;

/// How fills are picked: among how many of the oldest, how many bytes those may be at most, and how many bytes more for those of
/// which this node is the home.
#[derive(Clone, Copy, Debug)]
pub(super) struct FillRange {
    pub(super) chunks: usize,
    pub(super) bytes: u64,
    pub(super) own_bytes: u64,
}

/// One queue a class, oldest first.
///
/// Looking for one chunk walks its queue: the driver wants each chunk once and seldom withdraws, and the number of
/// wants is bounded.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    queues: [Rare<Queue>; 3],
    /// Fills in the order of their coming, of which nobody has thought ahead yet.
    unseen: VecDeque<Run>,
    unseen_len: usize,
    /// Fills of which somebody thought ahead, and fills that were taken, since there were none.
    seen: usize,
    filled: usize,
    /// Fills of which this node is the home, and how many came before each.
    own: VecDeque<(Chunk, usize)>,
    /// Since when fills gather, and when the last one came.
    gathering: Option<(Time, Time)>,
}

impl Pending {
    pub(super) fn len(&self) -> usize {
        self.queues.iter().map(|queue| queue.len).sum()
    }

    pub(super) fn has(&self, class: Class) -> bool {
        self.queues[class as usize].len > 0
    }

    pub(super) fn push(&mut self, chunk: Chunk, want: Want) {
        self.queues[want.class as usize].push(chunk, want.deadline);
        if want.class == Class::Fill {
            self.unseen_len += 1;
            push(&mut self.unseen, chunk, Time::NEVER);
            // Some of them may have gone in the meantime.
            while self.unseen_len > self.queues[Class::Fill as usize].len {
                self.take_unseen();
            }
        }
    }

    fn take_unseen(&mut self) -> Option<Chunk> {
        let run = self.unseen.front_mut()?;
        let (chunk, _) = run.take();
        if run.len == 0 {
            self.unseen.pop_front();
        }
        self.unseen_len -= 1;
        self.seen += 1;
        Some(chunk)
    }

    /// The next fill that nobody has thought ahead of, if it is among the oldest of so many bytes (as if all chunks were as long as the
    /// oldest). Each is handed out once, perhaps when it is not pending any more.
    pub(super) fn see(&mut self, bytes: u64, len_of: impl Fn(Chunk) -> u32) -> Option<Chunk> {
        let queue = &self.queues[Class::Fill as usize];
        let before = queue.len.saturating_sub(self.unseen_len) as u64;
        let each = u64::from(len_of(queue.oldest()?));
        if before.saturating_mul(each) >= bytes { None } else { self.take_unseen() }
    }

    /// This node is the home of the fill that was seen last: others will ask for it.
    pub(super) fn note_own(&mut self, chunk: Chunk) {
        if self.own.len() < OWN_MAX {
            self.own.push_back((chunk, self.seen));
        }
    }

    /// A fill came. `true` if it is the first of those that gather.
    pub(super) fn gather(&mut self, now: Time) -> bool {
        let first = self.gathering.map_or(now, |(first, _)| first);
        self.gathering.replace((first, now)).is_none()
    }

    /// When fills that gather begin: `quiet` after the last one came, at most `longest` after the first. Now, and never again, if that is over.
    pub(super) fn gathered(&mut self, now: Time, quiet: Duration, longest: Duration) -> Option<Time> {
        let (first, last) = self.gathering?;
        let due = (last + quiet).min(first + longest);
        if due <= now {
            self.gathering = None;
        }
        Some(due).filter(|due| *due > now)
    }

    /// Takes out the want for `chunk`.
    pub(super) fn remove(&mut self, chunk: Chunk, class: Class) -> Option<Want> {
        self.queues[class as usize].remove(chunk).map(|deadline| Want { class, deadline })
    }

    /// The next want of `class` to begin: the oldest, but for `Fill` any of the oldest `range.chunks` and as many more as
    /// were begun before, as far as they lie within `range.bytes` (as if all chunks were as long as the oldest). At
    /// first nobody has anything, and all must ask for the same few chunks so that each that comes goes to many at once. Before them those
    /// that this node is the home of, also if they lie somewhat further ahead.
    /// For `Prefetch` it is the oldest in `ahead.1` of a hundred cases, else any of the oldest `ahead.0`.
    pub(super) fn take(
        &mut self,
        class: Class,
        range: FillRange,
        ahead: (usize, u8),
        len_of: impl Fn(Chunk) -> u32,
        rng: &mut impl Rng,
    ) -> Option<(Chunk, Want)> {
        let queue = self.queues[class as usize].there()?;
        let oldest = queue.oldest()?;
        let taken = if class == Class::Fill {
            let each = u64::from(len_of(oldest)).max(1);
            let within = |bytes: u64| usize::try_from(bytes / each).unwrap_or(usize::MAX);
            let window = range.chunks.saturating_add(self.filled).min(within(range.bytes));
            let ahead = within(range.own_bytes);
            // Not at the very first, when nobody has anything and the strata decide.
            let reach = window.saturating_add(self.filled.min(ahead));
            let is_last = queue.len == 1;
            let mut own = None;
            while own.is_none()
                && ahead >= OWN_AHEAD_MIN
                && let Some((chunk, place)) = self.own.front().copied()
                && place <= self.filled.saturating_add(reach)
            {
                self.own.pop_front();
                own = queue.remove(chunk).map(|deadline| (chunk, deadline));
            }
            self.filled = self.filled.saturating_add(1);
            if is_last {
                (self.seen, self.filled) = (0, 0);
                self.own.clear();
            }
            own.or_else(|| queue.take(rng.below(window.clamp(1, queue.len))))
        } else if class == Class::Prefetch {
            let next = rng.below(100) < usize::from(ahead.1);
            queue.take_in_order(if next { 0 } else { rng.below(ahead.0.clamp(1, queue.len)) })
        } else {
            queue.pop()
        };
        taken.map(|(chunk, deadline)| (chunk, Want { class, deadline }))
    }

    /// What waits, with its class and deadline: what an audit looks at.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Chunk, Class, Time)> {
        let classes = [Class::Read, Class::Prefetch, Class::Fill];
        let of_class = |(class, queue): (Class, &'_ Rare<Queue>)| {
            queue.iter().map(|(chunk, deadline)| (chunk, class, deadline)).collect::<Vec<_>>()
        };
        classes.into_iter().zip(&self.queues).flat_map(of_class)
    }

    /// Takes out all whose readers have given up by `now`; also tells the next such moment.
    pub(super) fn expire(&mut self, now: Time) -> (Vec<Chunk>, Time) {
        let (mut gone, mut next) = (Vec::new(), Time::NEVER);
        for queue in &mut self.queues {
            if let Some(queue) = queue.there() {
                next = next.min(queue.expire(now, &mut gone));
            }
        }
        (gone, next)
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        let of = |queue: &Rare<Queue>| {
            queue.heap_bytes()
                + queue.spread.heap_bytes()
                + queue.deadlines.capacity() * size_of::<Time>()
                + queue.runs.capacity() * size_of::<Run>()
        };
        self.queues.iter().map(of).sum::<usize>()
            + self.unseen.capacity() * size_of::<Run>()
            + self.own.capacity() * size_of::<(Chunk, usize)>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Generator;

    const FIRST: FillRange = FillRange { chunks: 1, bytes: 1, own_bytes: 0 };

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
            assert_eq!(pending.take(Class::Read, FIRST, (1, 0), |_| 1, &mut rng).unwrap().0, Chunk(expected));
        }
        assert!(pending.take(Class::Read, FIRST, (1, 0), |_| 1, &mut rng).is_none());
    }

    #[test]
    fn fills_begin_at_random_within_the_window() {
        let mut firsts = [0; 8];
        for seed in 0..200 {
            let taken = with(Class::Fill, 100).take(
                Class::Fill,
                FillRange { chunks: 100, bytes: 80, own_bytes: 0 },
                (1, 0),
                |_| 10,
                &mut Generator::new(seed),
            );
            firsts[taken.unwrap().0.0 as usize] += 1;
        }
        assert!(firsts.iter().all(|count| *count > 5), "{firsts:?}");
    }

    #[test]
    fn prefetches_begin_at_random_among_the_oldest_and_the_others_keep_their_order() {
        let mut firsts = [0; 8];
        for seed in 0..200 {
            let (mut pending, mut rng) = (with(Class::Prefetch, 100), Generator::new(seed));
            let (chunk, want) = pending.take(Class::Prefetch, FIRST, (8, 0), |_| 1, &mut rng).unwrap();
            firsts[chunk.0 as usize] += 1;
            assert_eq!(want.deadline, Time::from_nanos(u64::from(chunk.0)));
            let left: Vec<Chunk> = pending.iter().map(|(chunk, ..)| chunk).collect();
            assert!(left.is_sorted() && left.len() == 99 && !left.contains(&chunk), "{left:?}");
        }
        assert!(firsts.iter().all(|count| *count > 5), "{firsts:?}");
        // A share of them in their order.
        for (percent, least, most) in [(100, 60, 60), (50, 20, 45)] {
            let (mut pending, mut rng) = (with(Class::Prefetch, 100), Generator::new(1));
            let mut in_order = 0;
            for _ in 0..60 {
                let oldest = pending.iter().next().unwrap().0;
                let ahead = (32, percent);
                let taken = pending.take(Class::Prefetch, FIRST, ahead, |_| 1, &mut rng).unwrap();
                in_order += u32::from(taken.0 == oldest);
            }
            assert!((least..=most).contains(&in_order), "{in_order}");
        }
    }

    #[test]
    fn each_fill_is_seen_once_when_it_comes_near() {
        let mut pending = with(Class::Fill, 10);
        let see = |pending: &mut Pending| pending.see(40, |_| 10).map(|chunk| chunk.0);
        for chunk in 0..4 {
            assert_eq!(see(&mut pending), Some(chunk));
        }
        assert_eq!(see(&mut pending), None);
        pending.take(Class::Fill, FIRST, (1, 0), |_| 1, &mut Generator::new(1)).unwrap();
        assert_eq!((see(&mut pending), see(&mut pending)), (Some(4), None));
        // Chunks that are wanted and called off again and again are not kept for ever.
        for chunk in 100..200 {
            pending.push(Chunk(chunk), Want { class: Class::Fill, deadline: Time::NEVER });
            pending.remove(Chunk(chunk), Class::Fill).unwrap();
        }
        assert!(pending.unseen_len <= 10, "{}", pending.unseen_len);
    }

    #[test]
    fn fills_of_which_this_node_is_the_home_begin_first_and_somewhat_ahead() {
        let mut pending = with(Class::Fill, 100);
        while let Some(chunk) = pending.see(1_000, |_| 10) {
            if chunk.0 % 20 == 3 {
                pending.note_own(chunk);
            }
        }
        let range = FillRange { chunks: 10, bytes: 150, own_bytes: 160 };
        let mut rng = Generator::new(1);
        let mut take =
            |pending: &mut Pending| pending.take(Class::Fill, range, (1, 0), |_| 10, &mut rng).unwrap().0.0;
        assert_eq!(take(&mut pending), 3, "it lies among the first ten");
        // The next one lies 23 ahead: 10 at first, one more for each that was begun, to at most 15, and as many, at most 16, for those of this node.
        let until = (0..).find(|_| take(&mut pending) == 23).unwrap();
        assert!((2..6).contains(&until), "{until}");
        // What was withdrawn is not begun, and the others follow.
        pending.remove(Chunk(43), Class::Fill).unwrap();
        let mut taken = Vec::new();
        while pending.len() > 0 {
            taken.push(take(&mut pending));
        }
        assert!(!taken.contains(&43), "{taken:?}");
        let place = |chunk| taken.iter().position(|other| *other == chunk).unwrap();
        // Some sixteen further ahead than the others.
        let before = taken[..place(63)].iter().max().unwrap();
        assert!((43..=55).contains(before) && place(63) + 8 < place(83), "{taken:?}");
        assert_eq!((pending.seen, pending.filled, pending.own.len()), (0, 0, 0));
    }

    #[test]
    fn fills_gather_until_none_comes_any_more_but_not_for_long() {
        let (quiet, longest) = (Duration::from_millis(1), Duration::from_millis(5));
        let at = |micros: u64| Time::from_nanos(1_000 * micros);
        let mut pending = Pending::default();
        assert!(pending.gather(at(0)) && !pending.gather(at(400)));
        assert_eq!(pending.gathered(at(1_000), quiet, longest), Some(at(1_400)));
        assert_eq!(pending.gathered(at(1_400), quiet, longest), None);
        assert!(pending.gather(at(2_000)), "anew");
        for micros in (2_500..7_000).step_by(500) {
            assert!(!pending.gather(at(micros)));
        }
        assert_eq!(pending.gathered(at(6_900), quiet, longest), Some(at(7_000)));
        assert_eq!(pending.gathered(at(7_000), quiet, longest), None);
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_taken_out() {
        let mut pending = with(Class::Read, 5);
        let (gone, next) = pending.expire(Time::from_nanos(2));
        assert_eq!((gone, next), (vec![Chunk(0), Chunk(1), Chunk(2)], Time::from_nanos(3)));
        assert!(pending.remove(Chunk(4), Class::Read).is_some());
        assert_eq!(pending.len(), 1);
    }

    /// The same as one entry a want, which is what the runs must look like from outside.
    #[derive(Default)]
    struct Plain(VecDeque<(Chunk, Time)>);

    impl Plain {
        fn remove(&mut self, chunk: Chunk) -> Option<Time> {
            let index = self.0.iter().position(|entry| entry.0 == chunk)?;
            self.0.remove(index).map(|entry| entry.1)
        }

        fn expire(&mut self, now: Time) -> Vec<Chunk> {
            let gone = self.0.iter().filter(|entry| entry.1 <= now).map(|entry| entry.0).collect();
            self.0.retain(|entry| entry.1 > now);
            gone
        }
    }

    #[test]
    fn runs_are_the_same_queue_as_one_entry_a_want() {
        for seed in 0..200 {
            let mut rng = Generator::new(seed);
            let (mut queue, mut plain, mut next) = (Queue::default(), Plain::default(), 0_u32);
            for turn in 0..300_u64 {
                match rng.below(8) {
                    // A run, seldom with a gap before it, of one of a few deadlines.
                    0 | 1 => {
                        let deadline = Time::from_nanos(turn / 8 + 20 * rng.below(3) as u64);
                        next += u32::try_from(rng.below(2)).unwrap();
                        for _ in 0..rng.below(12) {
                            queue.push(Chunk(next), deadline);
                            plain.0.push_back((Chunk(next), deadline));
                            next += 1;
                        }
                    }
                    2 | 3 if !plain.0.is_empty() => {
                        let index = rng.below(plain.0.len());
                        assert_eq!(queue.take(index), plain.0.swap_remove_front(index));
                    }
                    4 if rng.below(2) == 0 && !plain.0.is_empty() => {
                        let index = rng.below(plain.0.len());
                        assert_eq!(queue.take_in_order(index), plain.0.remove(index));
                    }
                    4 => assert_eq!(queue.pop(), plain.0.pop_front()),
                    5 => {
                        let chunk = Chunk(u32::try_from(rng.below(next as usize + 1)).unwrap());
                        assert_eq!(queue.remove(chunk), plain.remove(chunk));
                    }
                    6 => queue.spread(rng.below(20)),
                    _ => {
                        let (now, mut gone) = (Time::from_nanos(turn / 8), Vec::new());
                        let due = queue.expire(now, &mut gone);
                        assert_eq!(gone, plain.expire(now));
                        let least = plain.0.iter().map(|entry| entry.1).min();
                        assert_eq!(due, least.unwrap_or(Time::NEVER));
                    }
                }
                assert!(queue.iter().eq(plain.0.iter().copied()), "seed {seed}, turn {turn}");
                assert_eq!(
                    (queue.len, queue.oldest()),
                    (plain.0.len(), plain.0.front().map(|entry| entry.0))
                );
            }
        }
    }

    #[test]
    fn a_whole_tree_that_is_wanted_takes_little_more_than_what_a_fill_picks_among() {
        let mut pending = Pending::default();
        for chunk in 0..100_000 {
            pending.push(Chunk(chunk), Want { class: Class::Fill, deadline: Time::NEVER });
        }
        let mut rng = Generator::new(3);
        for _ in 0..5_000 {
            pending
                .take(
                    Class::Fill,
                    FillRange { chunks: 1_000, bytes: 256, own_bytes: 0 },
                    (1, 0),
                    |_| 1,
                    &mut rng,
                )
                .unwrap();
        }
        assert!(pending.len() == 95_000 && pending.heap_bytes() < 4_096, "{} bytes", pending.heap_bytes());
    }
}
