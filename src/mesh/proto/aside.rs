//! Wants that stand still do not fill the window.
//!
//! The window keeps the own link busy, and what only waits does not: where a few homes get nothing from the strata, each node would
//! soon have nothing under way but wants that wait for those homes, and the whole fleet would stand with them. So a want that
//! has waited for long without any bytes *stands aside*. It goes on as before and counts for the bounds of all that is under way,
//! but another may begin in its place. It does not come back: should all of them move again, they are bounded, and what is begun
//! meanwhile is worth more than a window that is exact.
//!
//! The core sees no bytes. A peer that said `Wait` just now sends none; one that is silent may be sending, and if not, takes
//! too long before long.

use super::fetch::{At, Fetch};
use super::timer::Timer;
use super::{Content, Node, Outbox, Peers};
use crate::model::Rng;
use std::time::Duration;

impl<P: Peers, C: Content, R: Rng> Node<P, C, R> {
    pub(super) fn aside_after(&self) -> Duration {
        Duration::from_millis(u64::from(self.settings.aside_ms.max(1)))
    }

    /// How long a want may wait where nothing is wrong: for its turn while the link works for others, and for its bytes.
    fn usual_wait(&self) -> Duration {
        let slowest = u64::from(self.settings.slowest_bytes_per_s.max(1));
        let rate = self.pace.down.rate().unwrap_or(slowest).max(slowest);
        let millis = (2 * self.window.moving_bytes()).saturating_mul(1_000) / rate;
        self.aside_after().max(Duration::from_millis(millis))
    }

    /// `fetch` gets no bytes now. If that is so for long, its want stands aside: returns whether it does since now.
    pub(super) fn step_aside(&mut self, fetch: &mut Fetch) -> bool {
        let Some(want) = fetch.want().filter(|_| !fetch.aside) else { return false };
        let room = self.window.aside() < self.settings.aside_max as usize;
        if !room || self.now.since(fetch.still) < self.usual_wait() {
            return false;
        }
        fetch.aside = true;
        self.window.step_aside(want.class, fetch.len_bytes);
        self.counts.asides += 1;
        true
    }

    /// [`Timer::Aside`]: looks for wants that wait for something else than a peer's answer.
    pub(super) fn aside_due(&mut self, out: &mut Outbox) {
        let waits = |fetch: &Fetch| match fetch.at {
            At::Strata | At::Line | At::Lookup | At::Pause => true,
            At::Peer(_) | At::Choosing => false,
        };
        let mut any = false;
        for slot in self.fetches.slots_where(|fetch| fetch.want().is_some() && !fetch.aside && waits(fetch)) {
            if let Some(mut fetch) = self.fetches.take(slot) {
                any |= self.step_aside(&mut fetch);
                self.fetches.put(fetch);
            }
        }
        if any {
            self.begin_wants(out);
        }
        if self.fetches.iter().any(|fetch| fetch.want().is_some() && !fetch.aside) {
            self.timers.arm(Timer::Aside, self.now + self.aside_after() / 2);
        }
    }
}
