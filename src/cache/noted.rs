//! Which bodies there are by name, which are noted, and which chunk goes where when it comes.
//!
//! A body is *noted* when somebody opened its file and it could not be handed out. From then on each of its chunks that
//! is not in the cache is *wanted*: when it is inserted, it is written into the body, and nowhere else.
//!
//! **One copy serves.** A chunk that several bodies want, or one at several places, is written into the body that was
//! noted first, at its first place there. When nothing is wanted for a body any more, the worker (`fill.rs`) copies what
//! is in the cache elsewhere, in packs or other bodies, into the places that are still empty. A chunk that lay in a pack
//! lies in the body from then on, and the pack's record is dead; one that lies in another body stays there, and what was
//! copied serves when that goes.

use super::body::{Body, Content};
use crate::model::ContentId;
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// Most bodies that are noted and not complete (guess: large files that are open, or lately were, and are read in parts).
const MAX_NOTED: usize = 1024;
/// Most chunks that are wanted, each about 60 bytes (guess: 8 GiB of ordinary files). More than one body can have.
const MAX_WANTED: usize = 1 << 17;
/// Most bodies that wait for the worker; others are noted again when their file is opened next.
const MAX_QUEUED: usize = 1024;

/// A place in a body that a chunk is wanted for.
#[derive(Clone, Copy)]
struct Place {
    body: u32,
    number: u32,
}

struct Wish {
    body: Arc<Body>,
    /// Distinct chunks that are wanted.
    missing: usize,
}

/// The bodies of a cache, beside the table of chunks.
#[derive(Default)]
pub(super) struct Noted {
    by_name: HashMap<ContentId, Arc<Body>>,
    noted: HashMap<u32, Wish>,
    /// By [`ContentId::key`]; the body's list has the whole name.
    wanted: HashMap<u64, SmallVec<[Place; 1]>>,
    /// Places in `wanted`.
    places: usize,
    queue: VecDeque<Arc<Body>>,
    queued: HashSet<u32>,
    /// The bodies of all pins.
    pinned: HashSet<ContentId>,
    /// The worker is at one.
    pub(super) busy: bool,
}

impl Noted {
    pub(super) fn find(&self, name: &ContentId) -> Option<Arc<Body>> {
        self.by_name.get(name).map(Arc::clone)
    }

    pub(super) fn add(&mut self, body: &Arc<Body>) {
        body.pin(self.pinned.contains(&body.list.name));
        self.by_name.insert(body.list.name, Arc::clone(body));
    }

    /// These bodies are pinned, whether they are there yet or not, and no others.
    pub(super) fn set_pinned(&mut self, pinned: HashSet<ContentId>) {
        self.by_name.iter().for_each(|(name, body)| body.pin(pinned.contains(name)));
        self.pinned = pinned;
    }

    /// Wants what `body` lacks and `is_here` does not have. What is wanted already stays so. With nothing to want, the
    /// worker is to look at it.
    pub(super) fn note(&mut self, body: &Arc<Body>, is_here: impl Fn(&ContentId) -> bool) {
        if !self.noted.contains_key(&body.number) {
            while self.noted.len() >= MAX_NOTED || self.places + body.len() > MAX_WANTED {
                let Some(oldest) = self.noted.values().min_by_key(|wish| wish.body.last_used()) else {
                    break;
                };
                let oldest = Arc::clone(&oldest.body);
                self.forget(&oldest);
            }
        }
        // From the beginning: what was wanted may have come otherwise, and what was here may be gone.
        self.unwant(body);
        let mut missing = 0;
        for number in 0..body.len() {
            let id = body.list.id(number);
            if body.content(number) != Content::Absent || is_here(&id) {
                continue;
            }
            let places = self.wanted.entry(id.key()).or_default();
            if places.iter().all(|place| place.body != body.number) {
                places.push(Place { body: body.number, number: u32::try_from(number).unwrap_or(u32::MAX) });
                missing += 1;
            }
        }
        self.places += missing;
        self.noted.insert(body.number, Wish { body: Arc::clone(body), missing });
        if missing == 0 {
            self.enqueue(body);
        }
    }

    /// Whether `body` is noted and something is still wanted for it.
    pub(super) fn waits(&self, body: &Body) -> bool {
        self.noted.get(&body.number).is_some_and(|wish| wish.missing > 0)
    }

    /// Where a chunk that comes in is to be written.
    pub(super) fn place_of(&self, id: &ContentId, plain_len: u32) -> Option<(Arc<Body>, usize)> {
        self.wanted.get(&id.key())?.iter().find_map(|place| {
            let body = &self.noted.get(&place.body)?.body;
            let number = place.number as usize;
            body.names(number, id, plain_len).then(|| (Arc::clone(body), number))
        })
    }

    /// A chunk is in the cache now, wherever.
    pub(super) fn arrived(&mut self, id: &ContentId) {
        let Some(places) = self.wanted.remove(&id.key()) else { return };
        self.places -= places.len();
        for place in places {
            let Some(wish) = self.noted.get_mut(&place.body) else { continue };
            wish.missing = wish.missing.saturating_sub(1);
            if wish.missing == 0 {
                let body = Arc::clone(&wish.body);
                self.enqueue(&body);
            }
        }
    }

    fn unwant(&mut self, body: &Body) {
        let Some(wish) = self.noted.get_mut(&body.number) else { return };
        if std::mem::take(&mut wish.missing) == 0 {
            return;
        }
        for number in 0..body.len() {
            let key = body.list.id(number).key();
            let Some(places) = self.wanted.get_mut(&key) else { continue };
            let before = places.len();
            places.retain(|place| place.body != body.number);
            self.places -= before - places.len();
            if places.is_empty() {
                self.wanted.remove(&key);
            }
        }
    }

    /// Wants nothing for `body` any more. What it has on disk stays; without that, it is not known any more.
    pub(super) fn forget(&mut self, body: &Arc<Body>) {
        self.unwant(body);
        self.noted.remove(&body.number);
        if !body.is_made() && self.find(&body.list.name).is_some_and(|known| Arc::ptr_eq(&known, body)) {
            self.by_name.remove(&body.list.name);
        }
    }

    /// `body` is about to be removed from the disk.
    pub(super) fn remove(&mut self, body: &Arc<Body>) {
        self.forget(body);
        if self.find(&body.list.name).is_some_and(|known| Arc::ptr_eq(&known, body)) {
            self.by_name.remove(&body.list.name);
        }
    }

    /// The worker is to look at `body`.
    pub(super) fn enqueue(&mut self, body: &Arc<Body>) {
        if self.queue.len() < MAX_QUEUED && self.queued.insert(body.number) {
            self.queue.push_back(Arc::clone(body));
        }
    }

    /// The next body for the worker.
    pub(super) fn next(&mut self) -> Option<Arc<Body>> {
        let body = self.queue.pop_front()?;
        self.queued.remove(&body.number);
        Some(body)
    }

    /// Whether the worker has something to do, or does it.
    pub(super) fn has_work(&self) -> bool {
        self.busy || !self.queue.is_empty()
    }

    #[cfg(test)]
    pub(super) fn wanted(&self) -> (usize, usize) {
        assert_eq!(self.places, self.wanted.values().map(|places| places.len()).sum::<usize>());
        (self.noted.len(), self.places)
    }
}
