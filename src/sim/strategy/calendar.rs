//! What is to happen when.

use std::collections::BTreeMap;

/// Things by the step in which they are due, and within it in the order in which they were put in line.
#[derive(Debug)]
pub(super) struct Calendar<T> {
    now: u64,
    due: BTreeMap<u64, Vec<T>>,
    /// Emptied lists, kept for their memory.
    spare: Vec<Vec<T>>,
}

/// Emptied lists that are kept.
const SPARE_MAX: usize = 64;

impl<T> Calendar<T> {
    /// At step 0, without anything.
    pub(super) fn new() -> Self {
        Self { now: 0, due: BTreeMap::new(), spare: Vec::new() }
    }

    /// The step.
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Puts something in line, for the next step at the earliest.
    pub(super) fn push(&mut self, step: u64, what: T) {
        let spare = &mut self.spare;
        let list = self.due.entry(step.max(self.now + 1));
        list.or_insert_with(|| spare.pop().unwrap_or_default()).push(what);
    }

    /// Goes to the next step, or when nothing moves to the next one in which something is due; `false` if nothing ever is.
    pub(super) fn advance(&mut self, is_idle: bool) -> bool {
        self.now += 1;
        if is_idle {
            let Some(first) = self.due.keys().next() else { return false };
            self.now = self.now.max(*first);
        }
        true
    }

    /// What is due now.
    pub(super) fn take(&mut self) -> Vec<T> {
        self.due.remove(&self.now).unwrap_or_default()
    }

    /// All that is still to come.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.due.values().flatten()
    }

    /// Gives an emptied list back.
    pub(super) fn recycle(&mut self, mut list: Vec<T>) {
        list.clear();
        if self.spare.len() < SPARE_MAX && list.capacity() > 0 {
            self.spare.push(list);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_come_in_their_step_and_order_and_idle_time_is_left_out() {
        let mut calendar = Calendar::new();
        for (step, what) in [(5, 'b'), (2, 'a'), (5, 'c'), (0, 'x')] {
            calendar.push(step, what);
        }
        let mut seen = Vec::new();
        while calendar.advance(true) {
            let list = calendar.take();
            seen.extend(list.iter().map(|what| (calendar.now(), *what)));
            if list.contains(&'a') {
                calendar.push(1, 'd');
            }
            calendar.recycle(list);
        }
        assert_eq!(seen, [(1, 'x'), (2, 'a'), (3, 'd'), (5, 'b'), (5, 'c')]);
        assert!(calendar.advance(false) && calendar.now() == 7, "{}", calendar.now());
    }
}
