//! One machine: a node's core, or a liar in its place, with the books that a driver keeps and a disk.

use super::ledger::Ledger;
use super::plan::Lie;
use crate::mesh::proto::{Ask, Chunk, Core, NewsId, Output, Peer};
use crate::model::{Class, Time, mix};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Chunks that are at hand though the disk did not take them, as in the driver's memory of what arrived lately.
const RECENT_MAX: usize = 8;

/// The bytes of a chunk, as far as it matters: whether they are the right ones can be seen from their name alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bytes(u64);

impl Bytes {
    /// What the publisher put into the chunk.
    pub(super) fn of(chunk: Chunk) -> Self {
        Self(mix(u64::from(chunk.0) + 1))
    }

    /// Something else.
    pub(super) fn forged(chunk: Chunk) -> Self {
        Self(!Self::of(chunk).0)
    }

    /// The adapter's check: whether they hash to the chunk's name.
    pub(super) fn are(self, chunk: Chunk) -> bool {
        self == Self::of(chunk)
    }
}

/// Where bytes are kept. It survives the node, unless it is taken away.
#[derive(Debug, Default)]
pub(super) struct Disk {
    copies: BTreeMap<Chunk, Bytes>,
    /// It takes nothing more.
    pub(super) full: bool,
    /// Bytes that arrived lately, in memory.
    recent: VecDeque<(Chunk, Bytes)>,
}

impl Disk {
    /// Keeps verified bytes. `false` when the disk did not take them.
    pub(super) fn keep(&mut self, chunk: Chunk, bytes: Bytes) -> bool {
        if self.recent.len() >= RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((chunk, bytes));
        if !self.full {
            self.copies.insert(chunk, bytes);
        }
        self.copies.contains_key(&chunk)
    }

    /// Reads a chunk. A rotten copy is found out and counts as none.
    pub(super) fn load(&mut self, chunk: Chunk) -> Option<Bytes> {
        let recent = self.recent.iter().rev().find(|(other, _)| *other == chunk).map(|(_, bytes)| *bytes);
        let bytes = recent.or_else(|| self.copies.get(&chunk).copied()).filter(|bytes| bytes.are(chunk));
        if bytes.is_none() {
            self.copies.remove(&chunk);
        }
        bytes
    }

    /// Lets a copy rot, unseen.
    pub(super) fn rot(&mut self, chunk: Chunk) {
        self.recent.retain(|(other, _)| *other != chunk);
        if let Some(bytes) = self.copies.get_mut(&chunk) {
            *bytes = Bytes::forged(chunk);
        }
    }

    pub(super) fn remove(&mut self, chunk: Chunk) {
        self.copies.remove(&chunk);
    }

    pub(super) fn chunks(&self) -> impl ExactSizeIterator<Item = Chunk> + '_ {
        self.copies.keys().copied()
    }

    /// The machine starts again.
    pub(super) fn restart(&mut self, keeps: bool) {
        self.recent.clear();
        if !keeps {
            self.copies.clear();
        }
    }
}

/// What a node believes of another.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Belief {
    pub(super) met: bool,
    pub(super) cell_known: bool,
    pub(super) up: bool,
}

/// Who decides in a machine.
#[derive(Debug)]
pub(super) enum Mind {
    Honest(Box<Core>),
    Liar(Lie),
}

/// Readers that wait for a chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) class: Class,
    /// On the node's own clock.
    pub(super) deadline: Time,
    /// How often the chunk was lost on the disk.
    pub(super) lost: u8,
}

/// The driver's books of one life.
#[derive(Debug, Default)]
pub(super) struct Books {
    /// Requests of its own under way.
    pub(super) outgoing: BTreeMap<(Chunk, Peer), u32>,
    /// Fetches from the strata under way, by their number.
    pub(super) upstream: BTreeMap<Chunk, u32>,
    /// Requests of others.
    pub(super) incoming: BTreeMap<Ask, u32>,
    next_ask: u32,
    next_fetch: u32,
    /// Decided and not carried out yet.
    pub(super) decided: VecDeque<Output>,
    /// Whether they are being carried out, or will be.
    pub(super) carrying: bool,
    /// Whom it has no connections with, until when on its own clock.
    pub(super) banned: BTreeMap<u32, Time>,
    /// Documents that were judged already.
    pub(super) judged: BTreeSet<NewsId>,
    /// Chunks that readers wait for.
    pub(super) readers: BTreeMap<Chunk, Waiting>,
}

impl Books {
    pub(super) fn next_ask(&mut self) -> Ask {
        self.next_ask += 1;
        Ask(self.next_ask)
    }

    pub(super) fn next_fetch(&mut self) -> u32 {
        self.next_fetch += 1;
        self.next_fetch
    }
}

/// What the readers of a node do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// One chunk after the other, with a window of prefetches ahead.
    InOrder { next: u32, window: u32 },
    /// All at once, some time.
    Fill,
    /// Anything, at any time, and some of it not for long.
    Random,
}

/// One machine.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) mind: Mind,
    pub(super) alive: bool,
    /// It does not come back, even when all else is well.
    pub(super) lost: bool,
    /// Rises with every death and every start.
    pub(super) life: u32,
    /// How far its clock is ahead.
    pub(super) ahead: Duration,
    /// Until then it does nothing.
    pub(super) stalled: Time,
    /// When it is woken, in true time.
    pub(super) tick: Option<Time>,
    pub(super) ledger: Ledger,
    pub(super) books: Books,
    pub(super) disk: Disk,
    pub(super) view: Vec<Belief>,
    pub(super) up_bytes_per_s: u64,
    pub(super) uplink_free: Time,
    /// It does not reach the strata.
    pub(super) no_strata: bool,
    pub(super) style: Style,
    /// Reads of the last phase that are open.
    pub(super) last_wants: BTreeSet<Chunk>,
    /// Reads of the last phase that have not begun.
    pub(super) last_queue: VecDeque<Chunk>,
    /// Reads of the last phase that will be tried again.
    pub(super) last_retries: usize,
    pub(super) events: u64,
}

impl Member {
    pub(super) fn is_honest(&self) -> bool {
        matches!(self.mind, Mind::Honest(_))
    }

    pub(super) fn core(&self) -> Option<&Core> {
        match &self.mind {
            Mind::Honest(core) => Some(core),
            Mind::Liar(_) => None,
        }
    }
}
