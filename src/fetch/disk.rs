//! The cache's disk as it is asked from here: in bounded time, by a bounded number of threads.
//!
//! A disk that fails says so; one that stalls (a lost path, a drive that resets itself, a file system of another machine) says
//! nothing, for minutes or for ever, and who asked it waits in the kernel, where nothing ends him. So only threads for which nobody
//! waits ask it, [`PLACES`] at most; and once one of them gets no answer, the disk is not asked for a while, or until it gives
//! that answer after all. What the kernel has in memory is read without asking the disk, and goes on being read.

use crate::ambient;
use crate::model::Time;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Threads that ask the disk at once (guess: what a fast disk does at a time; a sixteenth of those that tokio has for it).
const PLACES: usize = 32;
/// How long the disk is not asked after it did not answer (guess).
const IGNORED_FOR: Duration = Duration::from_secs(60);

struct State {
    /// Until when it is not asked, in nanoseconds.
    ignored_until: AtomicU64,
    /// When it answered last.
    answered_at: AtomicU64,
}

/// Asks the disk. What it is used for bounds its threads: reading and writing have one each.
pub(super) struct Disk {
    places: Arc<Semaphore>,
    patience: Duration,
    state: Arc<State>,
}

impl Disk {
    /// One that counts as stalled when it does not answer within `patience`.
    pub(super) fn new(patience: Duration) -> Self {
        let state = State {
            ignored_until: AtomicU64::new(0),
            answered_at: AtomicU64::new(ambient::now().as_nanos()),
        };
        Self { places: Arc::new(Semaphore::new(PLACES)), patience, state: Arc::new(state) }
    }

    /// Whether it did not answer just now.
    pub(super) fn is_ignored(&self) -> bool {
        ambient::now().as_nanos() < self.state.ignored_until.load(Ordering::Relaxed)
    }

    /// The answer to a call that may wait for the disk; `None` when it comes too late, or the disk is not asked. A call that has
    /// begun goes on all the same.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        if self.is_ignored() {
            return None;
        }
        let place = match tokio::time::timeout(self.patience, self.places.clone().acquire_owned()).await {
            Ok(place) => place.ok()?,
            Err(_) => {
                // A slow disk answers, if somebody else.
                let answered = Time::from_nanos(self.state.answered_at.load(Ordering::Relaxed));
                if ambient::now().since(answered) >= self.patience {
                    self.ignore();
                }
                return None;
            }
        };
        if self.is_ignored() {
            return None;
        }
        let (state, patience) = (self.state.clone(), self.patience);
        let asked = tokio::task::spawn_blocking(move || {
            let began = ambient::now();
            let answer = call();
            let now = ambient::now();
            state.answered_at.store(now.as_nanos(), Ordering::Relaxed);
            if now.since(began) >= patience {
                // It is this answer that was given up.
                state.ignored_until.store(0, Ordering::Relaxed);
            }
            drop(place);
            answer
        });
        match tokio::time::timeout(self.patience, asked).await {
            Ok(answer) => answer.ok(),
            Err(_) => {
                self.ignore();
                None
            }
        }
    }

    fn ignore(&self) {
        let was_ignored = self.is_ignored();
        let until = ambient::now() + IGNORED_FOR;
        self.state.ignored_until.store(until.as_nanos(), Ordering::Relaxed);
        if !was_ignored {
            tracing::warn!(
                "the cache's disk did not answer for {} s: it is not asked for {} s, or until it answers; what it has is fetched again, and \
                 nothing is stored",
                self.patience.as_secs(),
                IGNORED_FOR.as_secs()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::sync::{Condvar, Mutex};

    /// A disk that stalls until it is told to go on, or a test has failed.
    #[derive(Default)]
    struct Stalling {
        goes_on: Mutex<bool>,
        told: Condvar,
        asked: AtomicUsize,
    }

    impl Stalling {
        fn wait(&self) {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let goes_on = self.goes_on.lock().unwrap();
            let most = Duration::from_secs(20);
            drop(self.told.wait_timeout_while(goes_on, most, |goes_on| !*goes_on).unwrap());
        }

        fn go_on(&self) {
            *self.goes_on.lock().unwrap() = true;
            self.told.notify_all();
        }
    }

    #[tokio::test]
    async fn who_asks_a_stalled_disk_is_told_in_time_and_few_threads_are_lost() {
        let patience = Duration::from_millis(300);
        let (disk, stalling) = (Arc::new(Disk::new(patience)), Arc::new(Stalling::default()));
        let began = ambient::now();
        let many: Vec<_> = (0..200)
            .map(|_| {
                let (disk, stalling) = (disk.clone(), stalling.clone());
                tokio::spawn(async move { disk.ask(move || stalling.wait()).await })
            })
            .collect();
        for one in many {
            assert_eq!(one.await.unwrap(), None);
        }
        assert!(ambient::now().since(began) < Duration::from_secs(10));
        assert_eq!(stalling.asked.load(Ordering::SeqCst), PLACES);
        // Then nobody is kept waiting, nor another thread lost.
        let began = ambient::now();
        for _ in 0..50 {
            let stalling = stalling.clone();
            assert_eq!(disk.ask(move || stalling.wait()).await, None);
        }
        assert!(ambient::now().since(began) < patience && disk.is_ignored());
        assert_eq!(stalling.asked.load(Ordering::SeqCst), PLACES);
        // With the answers that were given up it is asked again.
        stalling.go_on();
        for _ in 0..1000 {
            if !disk.is_ignored() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(disk.ask(|| 7).await, Some(7));
    }

    #[tokio::test]
    async fn a_slow_disk_is_no_stalled_one() {
        let disk = Arc::new(Disk::new(Duration::from_secs(2)));
        let slow = || std::thread::sleep(Duration::from_millis(50));
        // Some of them wait in vain for a place.
        let many: Vec<_> = (0..60 * PLACES)
            .map(|_| {
                let disk = disk.clone();
                tokio::spawn(async move { disk.ask(slow).await })
            })
            .collect();
        let mut answered = 0;
        for one in many {
            answered += usize::from(one.await.unwrap().is_some());
        }
        assert!(answered >= 10 * PLACES, "{answered}");
        assert!(!disk.is_ignored());
    }
}
