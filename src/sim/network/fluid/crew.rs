//! Threads that take one piece of work after the other.

use std::sync::{Mutex, PoisonError};

/// Does some work on each item, with as many threads as there are workers. Which worker gets which item is left to chance.
pub(super) fn each<W: Send, I: Send>(
    workers: &mut [W],
    items: &mut [I],
    work: impl Fn(&mut W, &mut I) + Sync,
) {
    let Some((own, others)) = workers.split_first_mut() else { return };
    if others.is_empty() {
        items.iter_mut().for_each(|item| work(own, item));
        return;
    }
    let queue = Mutex::new(items.iter_mut());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = |worker: &mut W| {
        while let Some(item) = next() {
            work(worker, item);
        }
    };
    std::thread::scope(|scope| {
        for worker in others {
            scope.spawn(|| run(worker));
        }
        run(own);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once_whatever_the_number_of_workers() {
        for count in 1..5 {
            let (mut workers, mut items) = (vec![0; count], [0; 100]);
            each(&mut workers, &mut items, |done, item| {
                *done += 1;
                *item += 1;
            });
            assert_eq!((items, workers.iter().sum::<i32>()), ([1; 100], 100));
        }
    }
}
