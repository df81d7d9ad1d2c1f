//! Which chunk lies where: one compact table in memory, rebuilt from the packs' headers at start.

use super::pack::Pack;
use super::policy::PackUse;
use crate::model::{ContentId, NumberIndex, Rows};
use crate::store::Origin;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of the digest that the table is keyed by. With 8, an entry has 20 bytes and a million chunks
/// cost 27 MB; that two of ten million share them happens once in 370 000 caches. Two chunks that do share a slot: the
/// header in the pack, which holds the whole name, is compared at each read, so the loser is merely absent.
const KEY_BYTES: usize = 8;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key([u8; KEY_BYTES]);

impl Key {
    fn of(id: &ContentId) -> Self {
        let mut key = [0; KEY_BYTES];
        key.copy_from_slice(&id.digest()[..KEY_BYTES]);
        Self(key)
    }

    /// Well mixed, and not keyed: what is in the table was verified, so its name is a hash that nobody chose.
    fn hash(self) -> u64 {
        u64::from_le_bytes(self.0)
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

/// A row of the table.
#[derive(Clone, Copy)]
struct Entry {
    key: Key,
    slot: Slot,
}

/// The pack of a row that is not in use: packs are numbered from 0 and do not get that far.
const VACANT: u32 = u32::MAX;

impl Default for Entry {
    fn default() -> Self {
        Self { key: Key([0; KEY_BYTES]), slot: Slot { pack: VACANT, offset: 0, packed: 0 } }
    }
}

/// The table of chunks and the open packs.
#[derive(Default)]
pub(super) struct Index {
    entries: Rows<Entry>,
    by_key: NumberIndex,
    packs: BTreeMap<u32, Arc<Pack>>,
    /// The pack that records are appended to.
    active: Option<u32>,
}

impl Index {
    fn number(&self, key: Key) -> Option<u32> {
        self.by_key.find(key.hash(), |number| self.entries.get(number).is_some_and(|entry| entry.key == key))
    }

    fn slot(&self, id: &ContentId) -> Option<Slot> {
        self.entries.get(self.number(Key::of(id))?).map(|entry| entry.slot)
    }

    pub(super) fn contains(&self, id: &ContentId) -> bool {
        self.number(Key::of(id)).is_some()
    }

    pub(super) fn find(&self, id: &ContentId) -> Option<(Slot, Arc<Pack>)> {
        let slot = self.slot(id)?;
        let pack = self.packs.get(&slot.pack)?;
        Some((slot, Arc::clone(pack)))
    }

    pub(super) fn put(&mut self, id: &ContentId, slot: Slot) {
        debug_assert!(slot.pack != VACANT, "a pack with the number {VACANT}");
        let key = Key::of(id);
        let known = self.number(key);
        if let Some(entry) = known.and_then(|number| self.entries.get_mut(number)) {
            entry.slot = slot;
            return;
        }
        let number = self.entries.insert(Entry { key, slot });
        let entries = &self.entries;
        self.by_key.insert(key.hash(), number, |number| hash_in(entries, number));
    }

    /// Marks a chunk that was found at start as verified. False when another was first, or it is gone.
    pub(super) fn verified(&mut self, id: &ContentId, slot: Slot) -> bool {
        let number = self.number(Key::of(id));
        match number.and_then(|number| self.entries.get_mut(number)) {
            Some(now) if now.slot == slot && slot.state() == State::Unverified => {
                now.slot = slot.with(State::Cache);
                true
            }
            _ => false,
        }
    }

    /// Whether a chunk is here and was verified in this run.
    pub(super) fn is_verified(&self, id: &ContentId) -> bool {
        self.slot(id).is_some_and(|slot| slot.state() != State::Unverified)
    }

    /// Forgets a chunk, if it still lies at `slot`, whatever was verified meanwhile: that is returned.
    pub(super) fn remove(&mut self, id: &ContentId, slot: Slot) -> Option<State> {
        let now = self.slot(id).filter(|now| now.pack == slot.pack && now.offset == slot.offset)?;
        self.forget(self.number(Key::of(id))?);
        Some(now.state())
    }

    fn forget(&mut self, number: u32) {
        let entries = &self.entries;
        self.by_key.remove(hash_in(entries, number), number, |number| hash_in(entries, number));
        self.entries.remove(number);
    }

    /// Takes a pack out, with all chunks in it.
    pub(super) fn remove_pack(&mut self, number: u32) -> Option<Arc<Pack>> {
        let pack = self.packs.remove(&number)?;
        for row in 0..self.entries.end() {
            if self.entries.get(row).is_some_and(|entry| entry.slot.pack == number) {
                self.forget(row);
            }
        }
        Some(pack)
    }

    /// Whether the chunk lies in the record of pack `number` at `offset`.
    pub(super) fn lies_at(&self, id: &ContentId, number: u32, offset: u64) -> bool {
        self.slot(id).is_some_and(|slot| slot.pack == number && u64::from(slot.offset) == offset)
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
        self.entries.len()
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

fn hash_in(entries: &Rows<Entry>, number: u32) -> u64 {
    entries.get(number).map_or(0, |entry| entry.key.hash())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::limits;

    #[test]
    fn an_entry_is_as_small_as_promised() {
        assert_eq!(size_of::<Entry>(), 20);
        let mut index = Index::default();
        for number in 0..100_000u32 {
            let id = ContentId::of(&number.to_le_bytes());
            index.put(&id, Slot::new(0, number, 1, State::Unverified));
        }
        let bytes = index.entries.bytes() + index.by_key.bytes();
        assert!(bytes < 29 * 100_000, "{bytes} bytes");
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
        assert_eq!(index.remove(&id, slot), Some(State::Cache));
        assert!(!index.contains(&id));
    }
}
