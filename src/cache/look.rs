//! Looking after the cache: what it holds, checking it at once or slowly, and emptying it.

use super::body::Content;
use super::index::State;
use super::inner::{Inner, is_shortage, lock};
use super::policy::{UnitKind, UnitUse};
use super::unit::Unit;
use super::{Checked, CheckedPart, Cleaned, UnitInfo};
use crate::ambient;
use crate::model::{ContentId, Time};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What the scrub is at.
#[derive(Default)]
pub(super) struct Scrub {
    /// Units that are still to be looked at in this round, and whether at all of their chunks or only at those that
    /// were not verified in this run.
    todo: VecDeque<(u32, bool)>,
    /// Places in the first of them.
    places: Option<VecDeque<u32>>,
}

impl Inner {
    /// What lies where.
    pub(super) fn units(&self) -> Vec<UnitInfo> {
        let now = ambient::now();
        let index = self.read_index();
        let counts = index.counts();
        let uses = index.uses();
        let info = |unit: &UnitUse| {
            let number = u32::try_from(unit.number).ok()?;
            let found = index.unit(number)?;
            let (chunks, unverified) = counts.get(&number).copied().unwrap_or_default();
            let name = found.path().file_name()?.to_string_lossy().into_owned();
            let (file_bytes, in_use, pinned) = match &found {
                Unit::Pack(_) => (None, false, false),
                Unit::Body(body) => (Some(body.list.total()), body.is_in_use(), body.is_pinned()),
            };
            // Of the packs that can be opened no other has to stay.
            let being_written = unit.kind == UnitKind::Pack && unit.stays;
            let idle = (unit.last_used != Time::ZERO).then(|| now.since(unit.last_used));
            let (kind, bytes, written) = (unit.kind, unit.bytes, unit.written);
            let complete = matches!(&found, Unit::Body(body) if body.is_verified());
            Some(UnitInfo {
                name,
                kind,
                bytes,
                chunks,
                unverified,
                file_bytes,
                complete,
                written,
                idle,
                being_written,
                in_use,
                pinned,
            })
        };
        uses.iter().filter_map(info).collect()
    }

    fn unit_named(&self, name: &str) -> Option<Unit> {
        let index = self.read_index();
        let numbers: Vec<u32> =
            index.uses().iter().filter_map(|unit| u32::try_from(unit.number).ok()).collect();
        let mut units = numbers.into_iter().filter_map(|number| index.unit(number));
        units.find(|unit| unit.path().file_name().is_some_and(|file| file == name))
    }

    /// Hashes the chunks of a unit from a place on, at least one, until `most_bytes` were hashed or `most_time` is over. What is
    /// wrong is dropped. `None`: there is no such unit.
    pub(super) fn verify(
        &self,
        name: &str,
        from: u32,
        most_bytes: u64,
        most_time: Duration,
    ) -> Option<CheckedPart> {
        let unit = self.unit_named(name)?;
        let until = ambient::now() + most_time;
        let places = self.places(&unit);
        let mut places = places.into_iter().skip_while(|place| *place < from);
        let mut checked = Checked::default();
        for place in places.by_ref() {
            checked.add(self.check(&unit, place, true));
            let is_enough = checked.bytes >= most_bytes || ambient::now() >= until;
            if is_enough || self.stopping.load(Ordering::Relaxed) {
                break;
            }
        }
        Some(CheckedPart { checked, next: places.next() })
    }

    /// Where chunks lie in a unit, ascending.
    fn places(&self, unit: &Unit) -> Vec<u32> {
        match unit {
            Unit::Pack(pack) => self.read_index().places_in(pack.number),
            Unit::Body(body) => (0..u32::try_from(body.len()).unwrap_or(u32::MAX)).collect(),
        }
    }

    /// Hashes the chunk at one place, if it was not verified in this run or `all` are asked for. It does not count as
    /// used.
    fn check(&self, unit: &Unit, place: u32, all: bool) -> Checked {
        match unit {
            Unit::Body(body) => {
                let number = place as usize;
                match body.content(number) {
                    Content::Absent => return Checked::default(),
                    Content::Verified if !all => return Checked::default(),
                    Content::Unverified | Content::Verified => {}
                }
                let plain_len = body.list.plain_len(number);
                let told = self.verify_in(body, number);
                told.map_or_else(Checked::default, |is_right| Checked::one(plain_len, is_right))
            }
            Unit::Pack(pack) => {
                let header = match pack.record_at(u64::from(place)) {
                    Err(error) if is_shortage(&error) => return Checked::default(),
                    read => read.inspect_err(|_| self.note_unreadable()),
                };
                let Some(header) = header.ok().flatten() else {
                    // Its name is lost, and with it who could be told.
                    if self.write_index().remove_at(pack.number, place) {
                        lock(&self.books).damaged += 1;
                        return Checked::one(0, false);
                    }
                    return Checked::default();
                };
                let id = header.id;
                let slot = self.read_index().find(&id).map(|(slot, _)| slot);
                let lies_there = |slot: &super::index::Slot| (slot.unit, slot.place) == (pack.number, place);
                let Some(slot) =
                    slot.filter(lies_there).filter(|slot| all || slot.state() == State::Unverified)
                else {
                    return Checked::default();
                };
                match unit.read(slot, 0, slot.plain_len()) {
                    Ok(bytes) if ContentId::of(&bytes) == id => {
                        self.note_verified(&id, slot, unit);
                        Checked::one(slot.plain_len(), true)
                    }
                    Ok(_) => {
                        self.drop_damaged(&id, slot, "its bytes are not what its name says", unit);
                        Checked::one(slot.plain_len(), false)
                    }
                    Err(error) if is_shortage(&error) => Checked::default(),
                    Err(error) => {
                        self.note_unreadable();
                        self.drop_damaged(&id, slot, &error.to_string(), unit);
                        Checked::one(0, false)
                    }
                }
            }
        }
    }

    /// Goes on with the scrub until `most_bytes` were read, or a round is over. First what was not verified in this run, in
    /// all units; then everything. Returns what was done; nothing when the cache is empty.
    pub(super) fn scrub(&self, most_bytes: u64) -> Checked {
        let mut scrub = lock(&self.scrub);
        let mut done = Checked::default();
        if scrub.todo.is_empty() {
            scrub.todo = self.round();
        }
        while done.bytes < most_bytes && !self.stopping.load(Ordering::Relaxed) {
            let Some((number, all)) = scrub.todo.front().copied() else { break };
            let unit = self.read_index().unit(number);
            let places = scrub.places.take().or_else(|| Some(VecDeque::from(self.places(unit.as_ref()?))));
            let next = places.and_then(|mut places| places.pop_front().map(|place| (place, places)));
            if let (Some(unit), Some((place, places))) = (unit, next) {
                done.add(self.check(&unit, place, all));
                scrub.places = Some(places);
            } else {
                scrub.todo.pop_front();
                scrub.places = None;
                if scrub.todo.is_empty() {
                    lock(&self.books).scrub_rounds += 1;
                }
            }
        }
        let mut books = lock(&self.books);
        books.scrubbed.chunks += done.chunks;
        books.scrubbed.bytes += done.bytes;
        done
    }

    fn round(&self) -> VecDeque<(u32, bool)> {
        let index = self.read_index();
        let numbers: Vec<u32> =
            index.uses().iter().filter_map(|unit| u32::try_from(unit.number).ok()).collect();
        let counts = index.counts();
        let fresh = |number: &&u32| match index.unit(**number) {
            // Spare copies are in no table.
            Some(Unit::Body(body)) => !body.is_verified(),
            _ => counts.get(*number).is_some_and(|(_, unverified)| *unverified > 0),
        };
        let unverified = numbers.iter().filter(fresh).map(|number| (*number, false));
        unverified.chain(numbers.iter().map(|number| (*number, true))).collect()
    }

    /// Removes every unit that is neither pinned nor in use and can be opened.
    pub(super) fn clean(&self) -> Cleaned {
        let mut gone = Vec::new();
        let cleaned = {
            let _writer = lock(&self.writer);
            self.write_index().set_active(None);
            let uses = self.read_index().uses();
            let (stay, go): (Vec<&UnitUse>, Vec<&UnitUse>) = uses.iter().partition(|unit| unit.stays);
            let numbers: Vec<u64> = go.iter().map(|unit| unit.number).collect();
            self.remove_units(&numbers, &mut gone);
            Cleaned {
                units: go.len() as u64,
                bytes: go.iter().map(|unit| unit.bytes).sum(),
                kept_units: stay.len() as u64,
                kept_bytes: stay.iter().map(|unit| unit.bytes).sum(),
            }
        };
        self.tell_removed(&gone);
        cleaned
    }
}

impl Checked {
    fn one(plain_len: u32, is_right: bool) -> Self {
        Self { chunks: 1, bytes: u64::from(plain_len), damaged: u64::from(!is_right) }
    }

    fn add(&mut self, other: Self) {
        self.chunks += other.chunks;
        self.bytes += other.bytes;
        self.damaged += other.damaged;
    }
}

impl UnitInfo {
    /// What it is, in a few words.
    pub fn what(&self) -> String {
        match (self.kind, self.complete) {
            (UnitKind::Pack, _) => "chunks".to_owned(),
            (UnitKind::Body, true) => "a whole file".to_owned(),
            (UnitKind::Body, false) => "a file, not whole or not verified".to_owned(),
        }
    }
}
