//! Announcements in the DHT: a home tells of each segment of which it holds something, at a measured pace.

use super::footprint::tree_bytes;
use super::rare::Nothing;
use super::timer::Timer;
use super::{Content, Node, Outbox, Output, Peers, Segment};
use crate::model::{Rng, Time};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// What was announced and what waits for its turn.
#[derive(Clone, Debug, Default)]
pub(super) struct Announces {
    planned: BTreeSet<Segment>,
    line: VecDeque<Segment>,
    /// Before then nothing is announced.
    not_before: Time,
}

impl Nothing for Announces {
    const NOTHING: &'static Self =
        &Self { planned: BTreeSet::new(), line: VecDeque::new(), not_before: Time::ZERO };
}

/// What an audit looks at.
impl Announces {
    /// Segments that are remembered, and those of them that wait.
    pub(super) fn len(&self) -> (usize, usize) {
        (self.planned.len(), self.line.len())
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        tree_bytes::<Segment, ()>(self.planned.len()) + self.line.capacity() * size_of::<Segment>()
    }
}

impl<P: Peers, C: Content, R: Rng> Node<P, C, R> {
    /// Announces `segment` once. When more is remembered than may be, all is forgotten: announcing again does no
    /// harm, the DHT's adapter repeats announcements anyway.
    pub(super) fn plan_announcement(&mut self, segment: Segment) {
        let most = self.settings.announces_max as usize;
        if self.announces.line.len() >= most || self.announces.planned.contains(&segment) {
            return;
        }
        if self.announces.planned.len() >= most {
            self.announces.planned.clear();
        }
        self.announces.planned.insert(segment);
        self.announces.line.push_back(segment);
        self.timers.arm(Timer::Announce, self.announces.not_before.max(self.now));
    }

    /// [`Timer::Announce`]: the next one.
    pub(super) fn announce_due(&mut self, out: &mut Outbox) {
        let Some(segment) = self.announces.line.pop_front() else { return };
        out.push(Output::Announce { segment });
        let every = Duration::from_millis(u64::from(self.settings.announce_every_ms.max(1)));
        self.announces.not_before = self.now + every;
        if !self.announces.line.is_empty() {
            self.timers.arm(Timer::Announce, self.announces.not_before);
        }
    }
}
