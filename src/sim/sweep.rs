//! Many runs: in parallel as far as memory and processors go, handed out in their order, and taken together.

use super::report::Report;
use super::statistics::Spread;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::mpsc::sync_channel;
use std::sync::{Condvar, Mutex, PoisonError};

/// What all workers share.
#[derive(Debug, Default)]
struct Desk {
    /// The next job.
    next: usize,
    /// Weight of all jobs under way.
    load: u64,
}

/// Does the jobs `0..weights.len()` on as many threads, of which jobs under way weigh at most `weight_max` together (one that alone is
/// heavier runs alone). `work` has the number of the job and of the threads that it may use itself; `each` gets what came
/// of it, in the order of the numbers.
pub fn in_order<T: Send>(
    weights: &[u64],
    weight_max: u64,
    threads: usize,
    work: impl Fn(usize, usize) -> T + Sync,
    mut each: impl FnMut(usize, T),
) {
    let workers = threads.clamp(1, weights.len().max(1));
    let threads_each = (threads / workers).max(1);
    let (desk, changed) = (Mutex::new(Desk::default()), Condvar::new());
    let (send, receive) = sync_channel(workers);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            let (send, desk, changed, work) = (send.clone(), &desk, &changed, &work);
            scope.spawn(move || {
                while let Some(turn) = Turn::take(desk, changed, weights, weight_max) {
                    let done = work(turn.number, threads_each);
                    let number = turn.number;
                    drop(turn);
                    if send.send((number, done)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        let (mut early, mut next) = (BTreeMap::new(), 0);
        // Ends when all workers have, also when one of them panics: the scope passes that on.
        for (number, done) in receive {
            early.insert(number, done);
            while let Some(done) = early.remove(&next) {
                each(next, done);
                next += 1;
            }
        }
    });
}

/// A job under way: its weight is given back in any case.
struct Turn<'a> {
    number: usize,
    weight: u64,
    desk: &'a Mutex<Desk>,
    changed: &'a Condvar,
}

impl<'a> Turn<'a> {
    /// The next job, once there is room for it: no lighter one goes before, or a heavy one would wait for ever.
    fn take(desk: &'a Mutex<Desk>, changed: &'a Condvar, weights: &[u64], weight_max: u64) -> Option<Self> {
        let mut locked = desk.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let number = locked.next;
            let weight = *weights.get(number)?;
            if locked.load == 0 || locked.load.saturating_add(weight) <= weight_max {
                locked.next += 1;
                locked.load += weight;
                changed.notify_all();
                return Some(Self { number, weight, desk, changed });
            }
            locked = changed.wait(locked).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner).load -= self.weight;
        self.changed.notify_all();
    }
}

/// The runs of one case with all its seeds, taken together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Who decided; empty of no runs.
    pub strategy: &'static str,
    /// Number of runs.
    pub runs: usize,
    /// Runs in which a node did not get everything.
    pub incomplete: usize,
    /// When the last node had everything, in seconds.
    pub makespan_s: Spread,
    /// The same over the least possible time.
    pub makespan_over_bound: Spread,
    /// When half of the nodes had everything, in seconds.
    pub p50_s: Spread,
    /// When 99 % had everything, in seconds.
    pub p99_s: Spread,
    /// What 99 % took at most since they began, in seconds.
    pub own_p99_s: Spread,
    /// What left the strata, in copies of the content.
    pub strata_copies: Spread,
}

impl Summary {
    /// Of these runs.
    pub fn of(reports: &[Report]) -> Self {
        let spread = |figure: fn(&Report) -> f64| Spread::of(reports.iter().map(figure));
        let is_incomplete = |report: &&Report| report.rollout.completed < report.rollout.nodes;
        Self {
            strategy: reports.first().map_or("", |report| report.strategy),
            runs: reports.len(),
            incomplete: reports.iter().filter(is_incomplete).count(),
            makespan_s: spread(|report| report.rollout.makespan_s),
            makespan_over_bound: spread(|report| report.rollout.makespan_over_bound),
            p50_s: spread(|report| report.rollout.p50_s),
            p99_s: spread(|report| report.rollout.p99_s),
            own_p99_s: spread(|report| report.own_p99_s),
            strata_copies: spread(|report| report.rollout.strata_copies),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn all_jobs_are_done_and_handed_out_in_order_within_the_weight() {
        let weights: Vec<u64> = (0..60).map(|number| 1 + number * 7 % 10).collect();
        for threads in [1, 2, 5] {
            let (load, most) = (AtomicU64::new(0), AtomicU64::new(0));
            let mut done = Vec::new();
            let work = |number: usize, own: usize| {
                assert_eq!(own, 1);
                let now = load.fetch_add(weights[number], Ordering::SeqCst) + weights[number];
                most.fetch_max(now, Ordering::SeqCst);
                // Long enough that others run meanwhile.
                (0..20_000 * (60 - number as u64)).for_each(|step| {
                    let _ = std::hint::black_box(step);
                });
                load.fetch_sub(weights[number], Ordering::SeqCst);
                number * 2
            };
            in_order(&weights, 20, threads, work, |number, result| done.push((number, result)));
            assert_eq!(done, (0..60).map(|number| (number, number * 2)).collect::<Vec<_>>());
            assert!(most.into_inner() <= 20);
        }
    }

    #[test]
    fn few_jobs_have_several_threads_each_and_a_heavy_one_runs_alone() {
        let mut seen = Vec::new();
        in_order(&[1_000, 1_000], 10, 7, |_, own| own, |_, own| seen.push(own));
        assert_eq!(seen, [3, 3]);
        in_order(&[], 10, 2, |_, _| (), |_, ()| panic!("there is no job"));
    }

    #[test]
    fn a_job_that_panics_ends_all_with_its_panic() {
        let run = || in_order(&[5; 8], 5, 2, |number, _| assert_ne!(number, 3, "three"), |_, ()| ());
        assert!(std::panic::catch_unwind(run).is_err());
    }
}
