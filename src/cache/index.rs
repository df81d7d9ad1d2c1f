//! Which chunk lies where: one compact table in memory, rebuilt from the packs' headers at start.

use super::pack::Pack;
use super::policy::PackUse;
use crate::model::ContentId;
use crate::store::Origin;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Bytes of the digest that the table is keyed by. With 12, an entry has 24 bytes and 150 000 chunks
/// cost 6.5 MiB. Two chunks that share them would share a slot: the header in the pack, which holds
/// the whole name, is compared at each read, so the loser is merely absent.
const KEY_BYTES: usize = 12;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key([u8; KEY_BYTES]);

impl Key {
    fn of(id: &ContentId) -> Self {
        let mut key = [0; KEY_BYTES];
        key.copy_from_slice(&id.digest()[..KEY_BYTES]);
        Self(key)
    }
}

/// What is known of a chunk's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// Found at start and not yet verified.
    Unverified = 0,
    /// Found at start and verified since.
    Cache = 1,
    /// Inserted in this run, from a neighbour.
    Peers = 2,
    /// Inserted in this run, from a stratum.
    Strata = 3,
}

impl State {
    pub(super) fn inserted(origin: Origin) -> Self {
        match origin {
            Origin::Cache => Self::Cache,
            Origin::Peers => Self::Peers,
            Origin::Strata => Self::Strata,
        }
    }

    pub(super) fn origin(self) -> Origin {
        match self {
            Self::Unverified | Self::Cache => Origin::Cache,
            Self::Peers => Origin::Peers,
            Self::Strata => Origin::Strata,
        }
    }
}

/// Where a chunk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) pack: u32,
    /// Where the record's header begins; a record begins within the first 4 GiB of its pack.
    pub(super) offset: u32,
    /// The plain length in the low 30 bits (it is at most 2^29), the state above.
    packed: u32,
}

const LEN_BITS: u32 = 30;

impl Slot {
    pub(super) fn new(pack: u32, offset: u32, plain_len: u32, state: State) -> Self {
        debug_assert!(plain_len < 1 << LEN_BITS, "a chunk of {plain_len} bytes");
        Self { pack, offset, packed: plain_len | (state as u32) << LEN_BITS }
    }

    pub(super) fn plain_len(self) -> u32 {
        self.packed & ((1 << LEN_BITS) - 1)
    }

    pub(super) fn state(self) -> State {
        match self.packed >> LEN_BITS {
            0 => State::Unverified,
            1 => State::Cache,
            2 => State::Peers,
            _ => State::Strata,
        }
    }

    fn with(self, state: State) -> Self {
        Self::new(self.pack, self.offset, self.plain_len(), state)
    }
}

/// The table of chunks and the open packs.
#[derive(Default)]
pub(super) struct Index {
    slots: HashMap<Key, Slot>,
    packs: BTreeMap<u32, Arc<Pack>>,
    /// The pack that records are appended to.
    active: Option<u32>,
}

impl Index {
    pub(super) fn contains(&self, id: &ContentId) -> bool {
        self.slots.contains_key(&Key::of(id))
    }

    pub(super) fn find(&self, id: &ContentId) -> Option<(Slot, Arc<Pack>)> {
        let slot = *self.slots.get(&Key::of(id))?;
        let pack = self.packs.get(&slot.pack)?;
        Some((slot, Arc::clone(pack)))
    }

    pub(super) fn put(&mut self, id: &ContentId, slot: Slot) {
        self.slots.insert(Key::of(id), slot);
    }

    /// Marks a chunk that was found at start as verified. False when another was first, or it is gone.
    pub(super) fn verified(&mut self, id: &ContentId, slot: Slot) -> bool {
        match self.slots.get_mut(&Key::of(id)) {
            Some(now) if *now == slot && slot.state() == State::Unverified => {
                *now = slot.with(State::Cache);
                true
            }
            _ => false,
        }
    }

    /// Forgets a chunk, if it still lies at `slot`, whatever was verified meanwhile.
    pub(super) fn remove(&mut self, id: &ContentId, slot: Slot) -> bool {
        let key = Key::of(id);
        let same = self.slots.get(&key).is_some_and(|now| now.pack == slot.pack && now.offset == slot.offset);
        same && self.slots.remove(&key).is_some()
    }

    /// Takes a pack out, with all chunks in it.
    pub(super) fn remove_pack(&mut self, number: u32) -> Option<Arc<Pack>> {
        let pack = self.packs.remove(&number)?;
        self.slots.retain(|_, slot| slot.pack != number);
        Some(pack)
    }

    /// Whether the chunk lies in the record of pack `number` at `offset`.
    pub(super) fn lies_at(&self, id: &ContentId, number: u32, offset: u64) -> bool {
        let slot = self.slots.get(&Key::of(id));
        slot.is_some_and(|slot| slot.pack == number && u64::from(slot.offset) == offset)
    }

    pub(super) fn add_pack(&mut self, pack: Arc<Pack>) {
        self.packs.insert(pack.number, pack);
    }

    pub(super) fn set_active(&mut self, number: Option<u32>) {
        self.active = number;
    }

    pub(super) fn active(&self) -> Option<Arc<Pack>> {
        self.packs.get(&self.active?).map(Arc::clone)
    }

    pub(super) fn pack(&self, number: u32) -> Option<Arc<Pack>> {
        self.packs.get(&number).map(Arc::clone)
    }

    /// The pack that was begun last.
    pub(super) fn newest(&self) -> Option<Arc<Pack>> {
        self.packs.values().next_back().map(Arc::clone)
    }

    pub(super) fn entries(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn packs(&self) -> usize {
        self.packs.len()
    }

    /// Bytes of all packs.
    pub(super) fn bytes(&self) -> u64 {
        self.packs.values().map(|pack| pack.bytes()).sum()
    }

    /// What the policy needs to know.
    pub(super) fn uses(&self) -> Vec<PackUse> {
        self.packs
            .values()
            .map(|pack| PackUse {
                number: u64::from(pack.number),
                bytes: pack.bytes(),
                last_used: pack.last_used(),
                active: self.active == Some(pack.number),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::limits;

    #[test]
    fn an_entry_is_as_small_as_promised() {
        assert_eq!(size_of::<(Key, Slot)>(), 24);
    }

    #[test]
    fn a_slot_keeps_length_and_state() {
        for state in [State::Unverified, State::Cache, State::Peers, State::Strata] {
            let slot = Slot::new(1, 2, limits::PLAIN_MAX_BYTES, state);
            assert_eq!((slot.plain_len(), slot.state()), (limits::PLAIN_MAX_BYTES, state));
        }
    }

    #[test]
    fn only_one_reader_verifies_a_chunk() {
        let mut index = Index::default();
        let id = ContentId::of(b"x");
        let slot = Slot::new(1, 0, 1, State::Unverified);
        index.put(&id, slot);
        assert!(index.verified(&id, slot) && !index.verified(&id, slot));
        assert!(index.remove(&id, slot) && !index.contains(&id));
    }
}
