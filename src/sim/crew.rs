//! Threads that stay, for work that comes again and again in small pieces.
//!
//! A step of a run has tens of such pieces of a few hundred microseconds. To begin a thread costs some tens, and so much is lost
//! once more before it runs. Those of a crew wait for the next piece: at first awake, then asleep.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Looks for work before a thread goes to sleep (guess: about what it costs to wake one).
const LOOKS: u32 = 20_000;

/// Work on one piece, by the number of who does it.
type Work<'a> = &'a (dyn Fn(usize) + Sync);

/// What the threads have in common.
#[derive(Default)]
struct Board {
    /// How often there was work.
    turn: AtomicU64,
    /// The work of this turn. Not used after the turn is over.
    work: Mutex<Option<Work<'static>>>,
    /// Who has not done it yet.
    left: AtomicUsize,
    /// The first panic of somebody who did it.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    is_over: AtomicBool,
    /// Held for a turn: there is one at a time.
    caller: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    /// What a thread does: each turn's work, once.
    fn serve(&self, number: usize) {
        let mut seen = 0;
        loop {
            let mut looks = 0;
            while self.turn.load(Ordering::Acquire) == seen {
                looks += 1;
                if looks < LOOKS {
                    std::hint::spin_loop();
                } else {
                    std::thread::park();
                }
            }
            seen += 1;
            if self.is_over.load(Ordering::Acquire) {
                return;
            }
            let work = *lock(&self.work);
            if let Some(work) = work
                && let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(number)))
            {
                lock(&self.panic).get_or_insert(panic);
            }
            self.left.fetch_sub(1, Ordering::Release);
        }
    }
}

/// The caller and some threads. Work must not give work to the same crew.
pub(super) struct Crew {
    board: Arc<Board>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Crew {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Crew").field("threads", &self.len()).finish()
    }
}

impl Crew {
    /// So many, the caller included.
    pub(super) fn new(threads: usize) -> Arc<Self> {
        let board = Arc::new(Board::default());
        let begin = |number: usize| {
            let board = Arc::clone(&board);
            std::thread::Builder::new().name(format!("crew {number}")).spawn(move || board.serve(number)).ok()
        };
        // Where the system gives no more threads, the others do their work.
        let threads = (1..threads).map_while(begin).collect();
        Arc::new(Self { threads, board })
    }

    /// How many there are, the caller included.
    pub(super) fn len(&self) -> usize {
        self.threads.len() + 1
    }

    /// Everybody does the work once, with its number. Returns when all are done; a panic of one of them goes on here.
    fn all(&self, work: Work<'_>) {
        let board = &*self.board;
        let turn = lock(&board.caller);
        // SAFETY: only the lifetime changes. What it borrows lives until this call returns, and that is after all threads have
        // counted themselves off below, which each does after its last use of the work and before it looks for another turn's.
        let forever = unsafe { std::mem::transmute::<Work<'_>, Work<'static>>(work) };
        *lock(&board.work) = Some(forever);
        board.left.store(self.threads.len(), Ordering::Relaxed);
        board.turn.fetch_add(1, Ordering::Release);
        self.threads.iter().for_each(|thread| thread.thread().unpark());
        let own = catch_unwind(AssertUnwindSafe(|| work(0)));
        let mut looks = 0_u32;
        while board.left.load(Ordering::Acquire) > 0 {
            looks = looks.saturating_add(1);
            if looks < LOOKS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        *lock(&board.work) = None;
        let panic = lock(&board.panic).take();
        drop(turn);
        if let Some(panic) = own.err().or(panic) {
            resume_unwind(panic);
        }
    }

    /// Does some work on each item. The one with the same number is always done by the same thread: what it allocates it frees.
    pub(super) fn each_its_own<I: Send>(&self, items: impl Iterator<Item = I>, work: impl Fn(I) + Sync) {
        let items: Vec<Mutex<Option<I>>> = items.map(|item| Mutex::new(Some(item))).collect();
        self.all(&|number: usize| {
            let own = items.iter().skip(number).step_by(self.len());
            own.filter_map(|item| lock(item).take()).for_each(&work);
        });
    }

    /// Does some work on each item, with as many threads as there are workers, as far as there are so many. Which worker gets which
    /// item is left to chance.
    pub(super) fn each<W: Send, I: Send>(
        &self,
        workers: &mut [W],
        items: &mut [I],
        work: impl Fn(&mut W, &mut I) + Sync,
    ) {
        if workers.len() == 1 || items.len() == 1 || self.threads.is_empty() {
            if let Some(own) = workers.first_mut() {
                items.iter_mut().for_each(|item| work(own, item));
            }
            return;
        }
        let queue = Mutex::new(items.iter_mut());
        let next = || lock(&queue).next();
        let workers: Vec<Mutex<&mut W>> = workers.iter_mut().map(Mutex::new).collect();
        self.all(&|number: usize| {
            let Some(worker) = workers.get(number) else { return };
            let mut worker = lock(worker);
            while let Some(item) = next() {
                work(&mut worker, item);
            }
        });
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.board.is_over.store(true, Ordering::Release);
        self.board.turn.fetch_add(1, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // It ends without a panic: those of the work were caught.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once_whatever_the_number_of_workers() {
        for count in 1..5 {
            let crew = Crew::new(count);
            for turn in 0..300 {
                let (mut workers, mut items) = (vec![0; 1 + turn % count], [0; 100]);
                crew.each(&mut workers, &mut items, |done, item| {
                    *done += 1;
                    *item += 1;
                });
                assert_eq!((items, workers.iter().sum::<i32>()), ([1; 100], 100));
                if turn % 100 == 0 {
                    // Long enough for all to fall asleep.
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
            }
        }
    }

    #[test]
    fn each_thread_has_its_own_item() {
        let crew = Crew::new(3);
        let mut by = [const { Vec::new() }; 3];
        for _ in 0..200 {
            crew.each_its_own(by.iter_mut(), |by| by.push(std::thread::current().id()));
        }
        assert!(by.iter().all(|by| by.len() == 200 && by.iter().all(|id| *id == by[0])));
        assert!(by[0][0] != by[1][0] && by[1][0] != by[2][0] && by[0][0] == std::thread::current().id());
    }

    #[test]
    fn a_panic_reaches_the_caller_after_all_are_done_and_the_crew_works_on() {
        let crew = Crew::new(3);
        for bad in 0..3 {
            let done = AtomicUsize::new(0);
            let work = |number: usize| {
                assert!(number != bad, "number {bad} fails");
                std::thread::sleep(std::time::Duration::from_millis(5));
                done.fetch_add(1, Ordering::Relaxed);
            };
            let panic = catch_unwind(AssertUnwindSafe(|| crew.all(&work))).unwrap_err();
            assert_eq!(panic.downcast_ref::<String>().unwrap(), &format!("number {bad} fails"));
            assert_eq!(done.load(Ordering::Relaxed), 2);
        }
        let done = AtomicUsize::new(0);
        crew.all(&|_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.load(Ordering::Relaxed), 3);
    }
}
