//! Which chunk lies where: one compact table in memory, rebuilt at start from the packs' headers and the bodies' lists.

use super::body::{Body, Content};
use super::files::Files;
use super::pack::Pack;
use super::policy::{Totals, UnitKind, UnitUse};
use super::unit::Unit;
use crate::model::{ContentId, NumberIndex, Rows, Time, UnixTime};
use crate::store::Origin;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Bytes of the digest that the table is keyed by. With 8, an entry has 20 bytes and a million chunks
/// cost 27 MB; that two of ten million share them happens once in 370 000 caches. Two chunks that do share a slot: the
/// header in the pack, or the body's list, which has the whole name, is compared at each read, so the loser is merely
/// absent.
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
    /// The pack, or with [`BODY`] the body.
    pub(super) unit: u32,
    /// In a pack, where the record's header begins: within its first 4 GiB. In a body, the chunk's number in the list.
    pub(super) place: u32,
    /// The plain length in the low 30 bits (it is at most 2^29), the state above.
    packed: u32,
}

const LEN_BITS: u32 = 30;

/// The bit that tells the numbers of bodies from those of packs.
pub(super) const BODY: u32 = 1 << 31;
/// Where the policy's numbers of what is left begin: units have smaller ones.
const LEFT: u64 = 1 << 32;

impl Slot {
    pub(super) fn new(unit: u32, place: u32, plain_len: u32, state: State) -> Self {
        debug_assert!(plain_len < 1 << LEN_BITS, "a chunk of {plain_len} bytes");
        Self { unit, place, packed: plain_len | (state as u32) << LEN_BITS }
    }

    /// The chunk at `number` of a body.
    pub(super) fn in_body(body: &Body, number: usize, state: State) -> Self {
        let place = u32::try_from(number).expect("lists have at most 65 536 chunks");
        Self::new(body.number, place, body.list.plain_len(number), state)
    }

    fn lies_with(self, other: Self) -> bool {
        (self.unit, self.place) == (other.unit, other.place)
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
        Self::new(self.unit, self.place, self.plain_len(), state)
    }
}

/// A row of the table.
#[derive(Clone, Copy)]
struct Entry {
    key: Key,
    slot: Slot,
}

/// The unit of a row that is not in use: packs and bodies are numbered from 0 and do not get that far.
const VACANT: u32 = u32::MAX;

impl Default for Entry {
    fn default() -> Self {
        Self { key: Key([0; KEY_BYTES]), slot: Slot { unit: VACANT, place: 0, packed: 0 } }
    }
}

/// A chunk that was taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    /// What was known of it.
    pub(super) state: State,
    /// Whether a copy in another place serves from now on.
    pub(super) replaced: bool,
}

/// The table of chunks, and the units.
pub(super) struct Index {
    entries: Rows<Entry>,
    by_key: NumberIndex,
    packs: BTreeMap<u32, Arc<Pack>>,
    /// Bytes of packs that cannot be opened: they are on the disk all the same, and stay.
    unopened: BTreeMap<u32, u64>,
    bodies: BTreeMap<u32, Arc<Body>>,
    /// Bytes on the disk under the names of bodies that could neither be read nor removed: they stay, too.
    left: BTreeMap<ContentId, u64>,
    files: Arc<Files>,
    /// Further copies of chunks that lie in a body, in the same or other bodies: key, body, number.
    copies: BTreeSet<(u64, u32, u32)>,
    /// The pack that records are appended to.
    active: Option<u32>,
}

impl Index {
    pub(super) fn new(files: Arc<Files>) -> Self {
        Self {
            entries: Rows::default(),
            by_key: NumberIndex::default(),
            packs: BTreeMap::new(),
            unopened: BTreeMap::new(),
            bodies: BTreeMap::new(),
            left: BTreeMap::new(),
            files,
            copies: BTreeSet::new(),
            active: None,
        }
    }

    fn number(&self, key: Key) -> Option<u32> {
        self.by_key.find(key.hash(), |number| self.entries.get(number).is_some_and(|entry| entry.key == key))
    }

    fn slot(&self, id: &ContentId) -> Option<Slot> {
        self.entries.get(self.number(Key::of(id))?).map(|entry| entry.slot)
    }

    pub(super) fn contains(&self, id: &ContentId) -> bool {
        self.number(Key::of(id)).is_some()
    }

    pub(super) fn find(&self, id: &ContentId) -> Option<(Slot, Unit)> {
        let slot = self.slot(id)?;
        Some((slot, self.unit(slot.unit)?))
    }

    pub(super) fn put(&mut self, id: &ContentId, slot: Slot) {
        debug_assert!(slot.unit != VACANT, "a unit with the number {VACANT}");
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

    /// Another copy of a chunk lies at `number` of a body, with bytes of which `state` is known. It takes the place of
    /// one in a pack; beside one in a body it is a spare. True when the chunk was not here at all.
    pub(super) fn put_copy(&mut self, body: &Body, number: usize, state: State) -> bool {
        let id = body.list.id(number);
        let slot = Slot::in_body(body, number, state);
        match self.slot(&id) {
            None => {
                self.put(&id, slot);
                true
            }
            Some(now) if now.unit & BODY == 0 => {
                let known = if now.state() == State::Unverified { state } else { now.state() };
                self.put(&id, slot.with(known));
                false
            }
            Some(now) => {
                if !now.lies_with(slot) {
                    self.copies.insert((Key::of(&id).hash(), slot.unit, slot.place));
                }
                false
            }
        }
    }

    /// Whether the table points at `number` of a body, rather than at another copy of that chunk.
    pub(super) fn points_at(&self, body: &Body, number: usize) -> Option<Slot> {
        let there = Slot::in_body(body, number, State::Unverified);
        self.slot(&body.list.id(number)).filter(|slot| slot.lies_with(there))
    }

    /// A spare copy in a body is none any more.
    pub(super) fn remove_copy(&mut self, body: &Body, number: usize) {
        let slot = Slot::in_body(body, number, State::Unverified);
        self.copies.remove(&(Key::of(&body.list.id(number)).hash(), slot.unit, slot.place));
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

    /// All chunks in a unit are to be verified anew.
    pub(super) fn doubt(&mut self, unit: u32) {
        for row in 0..self.entries.end() {
            if let Some(entry) = self.entries.get_mut(row).filter(|entry| entry.slot.unit == unit) {
                entry.slot = entry.slot.with(State::Unverified);
            }
        }
    }

    /// Whether a chunk lies in that unit and was verified in this run.
    pub(super) fn is_verified_in(&self, id: &ContentId, unit: u32) -> bool {
        self.slot(id).is_some_and(|slot| slot.unit == unit && slot.state() != State::Unverified)
    }

    /// Whether a chunk is here and was verified in this run.
    pub(super) fn is_verified(&self, id: &ContentId) -> bool {
        self.slot(id).is_some_and(|slot| slot.state() != State::Unverified)
    }

    /// Takes a chunk out, if it still lies at `slot`, whatever was verified meanwhile. A copy takes its place, if there
    /// is one.
    pub(super) fn remove(&mut self, id: &ContentId, slot: Slot) -> Option<Taken> {
        let now = self.slot(id).filter(|now| now.lies_with(slot))?;
        self.forget(self.number(Key::of(id))?);
        Some(Taken { state: now.state(), replaced: self.replace(id) })
    }

    fn replace(&mut self, id: &ContentId) -> bool {
        let key = Key::of(id).hash();
        while let Some(copy) = self.copies.range((key, 0, 0)..=(key, u32::MAX, u32::MAX)).next().copied() {
            self.copies.remove(&copy);
            let (_, unit, place) = copy;
            let Some(body) = self.bodies.get(&unit).map(Arc::clone) else { continue };
            let number = place as usize;
            let state = match body.content(number) {
                Content::Absent => continue,
                Content::Unverified => State::Unverified,
                Content::Verified => State::Cache,
            };
            if body.list.id(number) == *id {
                self.put(id, Slot::in_body(&body, number, state));
                return true;
            }
        }
        false
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
            if self.entries.get(row).is_some_and(|entry| entry.slot.unit == number) {
                self.forget(row);
            }
        }
        self.active = self.active.filter(|active| *active != number);
        Some(pack)
    }

    /// Takes a body out. Returns the chunks that are not here any more.
    pub(super) fn remove_body(&mut self, body: &Body) -> Vec<(ContentId, State)> {
        if self.bodies.remove(&body.number).is_none() {
            return Vec::new();
        }
        let mut gone = Vec::new();
        // The spares first, so that none of them takes a place.
        (0..body.len()).for_each(|number| self.remove_copy(body, number));
        for number in 0..body.len() {
            let id = body.list.id(number);
            let taken = self.remove(&id, Slot::in_body(body, number, State::Unverified));
            if let Some(Taken { state, replaced: false }) = taken {
                gone.push((id, state));
            }
        }
        gone
    }

    /// For each unit, the chunks that the table finds in it, and how many of them were not verified in this run.
    pub(super) fn counts(&self) -> HashMap<u32, (u64, u64)> {
        let mut counts: HashMap<u32, (u64, u64)> = HashMap::new();
        for entry in (0..self.entries.end()).filter_map(|row| self.entries.get(row)) {
            if entry.slot.unit != VACANT {
                let (chunks, unverified) = counts.entry(entry.slot.unit).or_default();
                *chunks += 1;
                *unverified += u64::from(entry.slot.state() == State::Unverified);
            }
        }
        counts
    }

    /// Where the table finds chunks in a unit, ascending.
    pub(super) fn places_in(&self, unit: u32) -> Vec<u32> {
        let entries = (0..self.entries.end()).filter_map(|row| self.entries.get(row));
        let mut places: Vec<u32> =
            entries.filter(|entry| entry.slot.unit == unit).map(|entry| entry.slot.place).collect();
        places.sort_unstable();
        places
    }

    /// Takes out whatever lies at that place of a pack. False when nothing does.
    pub(super) fn remove_at(&mut self, unit: u32, place: u32) -> bool {
        let is_there = |slot: Slot| (slot.unit, slot.place) == (unit, place);
        let row = (0..self.entries.end())
            .find(|row| self.entries.get(*row).is_some_and(|entry| is_there(entry.slot)));
        row.map(|row| self.forget(row)).is_some()
    }

    /// Whether the chunk lies in the record of pack `number` at `offset`.
    pub(super) fn lies_at(&self, id: &ContentId, number: u32, offset: u64) -> bool {
        self.slot(id).is_some_and(|slot| slot.unit == number && u64::from(slot.place) == offset)
    }

    pub(super) fn add_pack(&mut self, pack: Arc<Pack>) {
        self.packs.insert(pack.number, pack);
    }

    /// Counts a pack that cannot be opened.
    pub(super) fn add_unopened(&mut self, number: u32, bytes: u64) {
        self.unopened.insert(number, bytes);
    }

    /// Counts what the disk has under the name of a body that is none, from now on: nothing, if it is gone.
    pub(super) fn set_left(&mut self, name: &ContentId, bytes: u64) {
        if bytes > 0 {
            self.left.insert(*name, bytes);
        } else {
            self.left.remove(name);
        }
    }

    /// A body whose files are there, in place of whatever was left under its name.
    pub(super) fn add_body(&mut self, body: &Arc<Body>) {
        body.count();
        self.left.remove(&body.list.name);
        self.bodies.insert(body.number, Arc::clone(body));
    }

    pub(super) fn set_active(&mut self, number: Option<u32>) {
        self.active = number;
    }

    pub(super) fn active(&self) -> Option<Arc<Pack>> {
        self.packs.get(&self.active?).map(Arc::clone)
    }

    pub(super) fn unit(&self, number: u32) -> Option<Unit> {
        if number & BODY == 0 {
            self.packs.get(&number).map(|pack| Unit::Pack(Arc::clone(pack)))
        } else {
            self.bodies.get(&number).map(|body| Unit::Body(Arc::clone(body)))
        }
    }

    pub(super) fn bodies(&self) -> impl Iterator<Item = &Arc<Body>> {
        self.bodies.values()
    }

    /// Units of which something is delivered unhashed of which it is not known that the disk has taken it.
    pub(super) fn unflushed(&self) -> Vec<Unit> {
        let packs = self.packs.values().map(|pack| Unit::Pack(Arc::clone(pack)));
        let bodies = self.bodies.values().map(|body| Unit::Body(Arc::clone(body)));
        packs.chain(bodies).filter(Unit::needs_flush).collect()
    }

    /// The pack that was begun last.
    pub(super) fn newest(&self) -> Option<Arc<Pack>> {
        self.packs.values().next_back().map(Arc::clone)
    }

    pub(super) fn entries(&self) -> usize {
        self.entries.len()
    }

    /// What all units come to.
    pub(super) fn totals(&self) -> Totals {
        let in_packs = self.packs.values().map(|pack| pack.bytes()).chain(self.unopened.values().copied());
        Totals {
            bytes: in_packs.sum::<u64>() + self.left.values().sum::<u64>() + self.files.bytes(),
            packs: self.packs.len() + self.unopened.len(),
            bodies: self.bodies.len() + self.left.len(),
        }
    }

    /// What the policy needs to know of each unit.
    pub(super) fn uses(&self) -> Vec<UnitUse> {
        let packs = self.packs.values().map(|pack| UnitUse {
            number: u64::from(pack.number),
            kind: UnitKind::Pack,
            bytes: pack.bytes(),
            written: pack.written(),
            last_used: pack.last_used(),
            stays: self.active == Some(pack.number),
        });
        let unopened = self.unopened.iter().map(|(number, bytes)| UnitUse {
            number: u64::from(*number),
            kind: UnitKind::Pack,
            bytes: *bytes,
            written: UnixTime(0),
            last_used: Time::ZERO,
            stays: true,
        });
        let bodies = self.bodies.values().map(|body| UnitUse {
            number: u64::from(body.number),
            kind: UnitKind::Body,
            bytes: body.bytes(),
            written: body.written(),
            last_used: body.last_used(),
            stays: body.is_in_use() || body.is_pinned(),
        });
        let left = (LEFT..).zip(self.left.values()).map(|(number, bytes)| UnitUse {
            number,
            kind: UnitKind::Body,
            bytes: *bytes,
            written: UnixTime(0),
            last_used: Time::ZERO,
            stays: true,
        });
        packs.chain(unopened).chain(bodies).chain(left).collect()
    }
}

fn hash_in(entries: &Rows<Entry>, number: u32) -> u64 {
    entries.get(number).map_or(0, |entry| entry.key.hash())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::limits;
    use std::path::Path;

    #[test]
    fn an_entry_is_as_small_as_promised() {
        assert_eq!(size_of::<Entry>(), 20);
        let mut index = Index::new(Files::new(Path::new("nowhere")));
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
        let mut index = Index::new(Files::new(Path::new("nowhere")));
        let id = ContentId::of(b"x");
        let slot = Slot::new(1, 0, 1, State::Unverified);
        index.put(&id, slot);
        assert!(index.verified(&id, slot) && !index.verified(&id, slot));
        assert_eq!(index.remove(&id, slot), Some(Taken { state: State::Cache, replaced: false }));
        assert!(!index.contains(&id));
    }
}
