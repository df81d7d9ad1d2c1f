//! What leaves on one connection: as little of it as possible lies in QUIC's own buffers, and urgent
//! chunks go before others.
//!
//! Whoever uploads is told that a chunk has left when its last byte was taken by QUIC. With a fixed send
//! window of some MiB that would say nothing on a slow link: a whole slice is "sent" at once, and lies there for
//! seconds. So the window follows the congestion window: what is in flight, half as much again to be
//! sent next, and no more. All but that small rest has then been acknowledged by the peer.

use super::{Body, NO_PROGRESS, StreamError, patience, say};
use crate::mesh::MemberConnection;
use crate::mesh::wire::Message;
use crate::model::Class;
use bytes::Bytes;
use quinn::SendStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Least send window: some packets, so that a connection can begin.
const WINDOW_MIN_BYTES: u64 = 16 << 10;
/// Largest send window: 10 Gbit/s at 3 ms.
pub(in crate::mesh) const WINDOW_MAX_BYTES: u64 = 4 << 20;
/// What a fast connection may hold at least, as time: on a path with a shorter round trip the window is larger than
/// flight asks for, so that the writer is not woken for each acknowledgement (guess).
const WINDOW_SPAN_US: u64 = 5_000;
/// The window is handed out in this many parts, because QUIC keeps each until it was acknowledged as a whole.
const STEPS_PER_WINDOW: u64 = 8;
/// Least and most bytes of a step: small enough that the next is not long in coming, large enough to be cheap.
const STEP_MIN_BYTES: u64 = 4 << 10;
const STEP_MAX_BYTES: u64 = 256 << 10;
/// How often the window is adapted at most: asking QUIC for its figures costs a microsecond, and they do not change faster
/// than round trips of a fast local network (guess).
const ADAPT_EVERY: Duration = Duration::from_micros(200);
/// Longest pause of a less urgent chunk for the sake of more urgent ones, before each of its steps: it never starves (guess).
const YIELD_MAX: Duration = Duration::from_millis(50);
/// From this length on a chunk is in the way of others of its class, and goes behind them (guess: longer than any chunk of a file).
const LARGE_BYTES: usize = 4 << 20;
/// Classes, and in each small chunks before large ones.
const RANKS: usize = 6;

/// Of all that is no chunk: what a new stream has. QUIC sends what has a higher priority first, and of the rest nothing as long as there is
/// some.
pub(super) const ANSWER_PRIORITY: i32 = 0;

/// The order in which chunks of one connection leave: 0 first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank(usize);

impl Rank {
    /// The rank of a chunk.
    pub(super) const fn of(class: Class, len: usize) -> Self {
        let class = match class {
            Class::Read => 0,
            Class::Prefetch => 1,
            Class::Fill => 2,
        };
        Self(2 * class + (len > LARGE_BYTES) as usize)
    }

    /// Below [`ANSWER_PRIORITY`]: an answer of a few bytes would not leave before the last chunk (seen: no answer for 10 s).
    fn priority(self) -> i32 {
        i32::try_from(self.0).map_or(i32::MIN, |rank| ANSWER_PRIORITY - 1 - rank)
    }
}

/// How much of a connection QUIC may hold when `cwnd` bytes may be in flight and a round trip takes `rtt`.
fn window_bytes(cwnd: u64, rtt: Duration) -> u64 {
    let rtt_us = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX).max(1);
    let span = cwnd.saturating_mul(WINDOW_SPAN_US) / rtt_us;
    (cwnd.saturating_mul(3) / 2).max(span).clamp(WINDOW_MIN_BYTES, WINDOW_MAX_BYTES)
}

/// The outflow of one connection.
pub(super) struct Outflow {
    connection: MemberConnection,
    /// Chunks that are being written or wait for their turn, by rank.
    writing: Mutex<[u32; RANKS]>,
    /// One chunk of a rank is written after the other, in the order of their coming. Of streams that wait for room in the send
    /// window, quinn wakes the latest first, and that one takes it all: with several the earliest got none for seconds, and
    /// neither did short answers. It also has the first chunk whole, to be handed on, before the last begins.
    lines: [tokio::sync::Mutex<()>; RANKS],
    /// Chunks of each rank that the peer took nothing of for too long. Who waits behind one does not wait as long again: a peer that
    /// reads nothing would hold all uploads, one after the other.
    stalls: [AtomicU64; RANKS],
    ended: Notify,
    /// When the window was last adapted, and the step that followed from it.
    adapted: Mutex<Option<(Instant, usize)>>,
}

/// A chunk that is being written.
struct Turn<'a> {
    outflow: &'a Outflow,
    rank: Rank,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.outflow.lock()[self.rank.0] -= 1;
        self.outflow.ended.notify_waiters();
    }
}

impl Outflow {
    /// The outflow of `connection`, of which there must be only one.
    pub(super) fn new(connection: MemberConnection) -> Self {
        Self {
            connection,
            writing: Mutex::new([0; RANKS]),
            lines: std::array::from_fn(|_| tokio::sync::Mutex::new(())),
            stalls: std::array::from_fn(|_| AtomicU64::new(0)),
            ended: Notify::new(),
            adapted: Mutex::new(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, [u32; RANKS]> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, rank: Rank) -> Turn<'_> {
        self.lock()[rank.0] += 1;
        Turn { outflow: self, rank }
    }

    /// Waits while something more urgent is being written, but not for long.
    async fn give_way(&self, rank: Rank) {
        let until = tokio::time::Instant::now() + YIELD_MAX;
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            // Registered before looking, so that no end is missed.
            ended.as_mut().enable();
            let is_free = self.lock()[..rank.0].iter().all(|count| *count == 0);
            if is_free || tokio::time::timeout_at(until, ended).await.is_err() {
                return;
            }
        }
    }

    /// Lets QUIC hold what the path takes now; returns how many bytes to write at a time.
    fn adapt(&self) -> usize {
        let now = Instant::now();
        let mut adapted = self.adapted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((before, step)) = *adapted
            && now.duration_since(before) < ADAPT_EVERY
        {
            return step;
        }
        let path = self.connection.quinn().stats().path;
        let window = window_bytes(path.cwnd, path.rtt);
        self.connection.quinn().set_send_window(window);
        let step = (window / STEPS_PER_WINDOW).clamp(STEP_MIN_BYTES, STEP_MAX_BYTES);
        let step = usize::try_from(step).unwrap_or(usize::MAX);
        *adapted = Some((now, step));
        step
    }

    /// Writes a short answer.
    pub(super) async fn say(&self, stream: &mut SendStream, message: &Message) -> Result<(), StreamError> {
        // A chunk that the same stream carried before left it at its own.
        let _ = stream.set_priority(ANSWER_PRIORITY);
        say(&self.connection, stream, message).await
    }

    /// Writes a frame and the chunk behind it, without copying. Returns when all but a small rest of it has
    /// reached the peer; once its turn has come each step may take [`NO_PROGRESS`], and all of it as long as a chunk of its length may,
    /// beside what this node's own limit makes it wait.
    pub(super) async fn write(
        &self,
        stream: &mut SendStream,
        class: Class,
        frame: Bytes,
        chunk: &mut Body,
    ) -> Result<(), StreamError> {
        let rank = Rank::of(class, chunk.len());
        let _turn = self.begin(rank);
        let stalls = &self.stalls[rank.0];
        let before = stalls.load(Ordering::Acquire);
        let _line = self.lines[rank.0].lock().await;
        if stalls.load(Ordering::Acquire) != before {
            return Err(StreamError::NoProgress(NO_PROGRESS));
        }
        let written = self.write_in_turn(stream, rank, class, frame, chunk).await;
        if matches!(written, Err(StreamError::NoProgress(_))) {
            stalls.fetch_add(1, Ordering::AcqRel);
        }
        written
    }

    async fn write_in_turn(
        &self,
        stream: &mut SendStream,
        rank: Rank,
        class: Class,
        frame: Bytes,
        chunk: &mut Body,
    ) -> Result<(), StreamError> {
        let limit = patience(u32::try_from(chunk.len()).unwrap_or(u32::MAX));
        let mut until = Instant::now() + limit;
        let _ = stream.set_priority(rank.priority());
        let mut step = self.adapt();
        let mut parts = [frame, chunk.part(step).await.ok_or(StreamError::Lost)?];
        loop {
            self.give_way(rank).await;
            until += self.connection.throttles().up.pass(class, parts[1].len()).await;
            let this_step = until.min(Instant::now() + NO_PROGRESS);
            let written = self.connection.precedence().after(stream.write_all_chunks(&mut parts));
            let written = tokio::time::timeout_at(this_step, written).await;
            written.map_err(|_| StreamError::NoProgress(limit.min(NO_PROGRESS)))??;
            if chunk.len() == 0 {
                return Ok(());
            }
            step = self.adapt().max(step / 2);
            parts = [Bytes::new(), chunk.part(step).await.ok_or(StreamError::Lost)?];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_follows_the_flight_within_its_bounds() {
        let ms = Duration::from_millis;
        // 20 Mbit/s behind a full queue of 50 ms: 94 ms of the link at most.
        assert_eq!(window_bytes(125_000, ms(50)), 187_500);
        assert_eq!(window_bytes(2_400, ms(50)), WINDOW_MIN_BYTES);
        // Loopback: the flight is small because the round trip is short.
        assert_eq!(window_bytes(200_000, Duration::from_micros(100)), WINDOW_MAX_BYTES);
        assert_eq!(window_bytes(12_000, ms(1)), 60_000);
        assert_eq!(window_bytes(u64::MAX, Duration::ZERO), WINDOW_MAX_BYTES);
    }

    #[test]
    fn a_read_goes_before_a_prefetch_before_a_fill_and_small_before_large_in_each() {
        let sizes = [LARGE_BYTES, LARGE_BYTES + 1];
        let ranks: Vec<Rank> = [Class::Read, Class::Prefetch, Class::Fill]
            .into_iter()
            .flat_map(|class| sizes.map(|len| Rank::of(class, len)))
            .collect();
        assert_eq!(ranks, (0..RANKS).map(Rank).collect::<Vec<_>>());
        assert!(ranks.is_sorted_by_key(|rank| -rank.priority()));
        assert!(
            ranks.iter().all(|rank| rank.priority() < 0),
            "an answer without a chunk has 0 and goes before all"
        );
    }
}
