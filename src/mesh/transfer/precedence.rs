//! Short messages go before chunks on a connection.
//!
//! quinn hands the room in a connection's send window to whichever stream asks next, and a chunk takes all that comes: an
//! answer of some bytes waited until the last chunk had left (seen: for four seconds, while askers took the node for dead and went to the
//! strata). QUIC's priorities order only what is in the window already. So who writes a chunk looks here before each time that
//! it takes room, and lets those pass who write something short.

use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::Notify;

/// Longest pause of a chunk for the sake of short messages before each time that it takes room: a peer that reads no answers does not
/// keep its own chunks for ever (guess: a round trip).
const PASS_MAX: Duration = Duration::from_millis(50);

/// Who writes something short on a connection.
#[derive(Debug, Default)]
pub(in crate::mesh) struct Precedence {
    writing: AtomicUsize,
    done: Notify,
}

/// Something short is being written, until this is dropped.
struct Short<'a>(&'a Precedence);

impl Drop for Short<'_> {
    fn drop(&mut self) {
        if self.0.writing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.done.notify_waiters();
        }
    }
}

impl Precedence {
    /// Runs `write`, which writes something short.
    pub(super) async fn first<T>(&self, write: impl Future<Output = T>) -> T {
        self.writing.fetch_add(1, Ordering::AcqRel);
        let _short = Short(self);
        write.await
    }

    /// Runs `write`, which writes a part of a chunk: it goes on only when nobody writes something short.
    pub(super) async fn after<T>(&self, write: impl Future<Output = T>) -> T {
        let mut write = std::pin::pin!(write);
        loop {
            self.let_pass().await;
            if let Poll::Ready(written) = poll_fn(|context| Poll::Ready(write.as_mut().poll(context))).await {
                return written;
            }
            // There was no room. Whoever is woken when there is some has to look first who else was.
            let mut waited = false;
            poll_fn(|_| if std::mem::replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending })
                .await;
        }
    }

    async fn let_pass(&self) {
        if self.writing.load(Ordering::Acquire) == 0 {
            return;
        }
        let passed = async {
            loop {
                let mut done = std::pin::pin!(self.done.notified());
                // Registered before looking, so that no end is missed.
                done.as_mut().enable();
                if self.writing.load(Ordering::Acquire) == 0 {
                    return;
                }
                done.await;
            }
        };
        let _ = tokio::time::timeout(PASS_MAX, passed).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    /// Room that is free or not; polling it takes it.
    #[derive(Default)]
    struct Room {
        free: AtomicBool,
        freed: Notify,
    }

    impl Room {
        async fn take(&self) {
            loop {
                let mut freed = std::pin::pin!(self.freed.notified());
                freed.as_mut().enable();
                if self.free.swap(false, Ordering::AcqRel) {
                    return;
                }
                freed.await;
            }
        }

        fn give(&self) {
            self.free.store(true, Ordering::Release);
            self.freed.notify_waiters();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_short_takes_the_next_room_though_a_chunk_waited_for_it_before() {
        let (precedence, room) = (Arc::new(Precedence::default()), Arc::new(Room::default()));
        let spawn = |short: bool| {
            let (precedence, room) = (Arc::clone(&precedence), Arc::clone(&room));
            tokio::spawn(async move {
                if short { precedence.first(room.take()).await } else { precedence.after(room.take()).await }
            })
        };
        let chunk = spawn(false);
        tokio::task::yield_now().await;
        let shorts = [spawn(true), spawn(true)];
        tokio::task::yield_now().await;
        for _ in 0..2 {
            room.give();
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(!chunk.is_finished());
        }
        assert!(shorts.iter().all(|short| short.is_finished()));
        room.give();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(chunk.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_no_answers_does_not_hold_its_chunks_for_ever() {
        let (precedence, room) = (Arc::new(Precedence::default()), Room::default());
        let other = Arc::clone(&precedence);
        let stuck = tokio::spawn(async move { other.first(std::future::pending::<()>()).await });
        tokio::task::yield_now().await;
        room.give();
        let began = tokio::time::Instant::now();
        precedence.after(room.take()).await;
        assert!(began.elapsed() <= PASS_MAX + Duration::from_millis(2));
        stuck.abort();
        let _ = stuck.await;
        room.give();
        let began = tokio::time::Instant::now();
        precedence.after(room.take()).await;
        assert_eq!(began.elapsed(), Duration::ZERO, "who was withdrawn is not waited for");
    }
}
