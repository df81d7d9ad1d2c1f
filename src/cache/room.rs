//! Making room: what leaves, and how it is taken out.

use super::body::Body;
use super::inner::{Inner, Refusal, lock};
use super::pack::{Found, Pack};
use super::policy::{self, Limits, Verdict};
use super::unit::Unit;
use crate::model::ContentId;
use crate::store::StoreError;
use std::sync::Arc;

/// Bytes after which a pack is closed and the next begun (design: about 64 MiB).
pub(super) const PACK_TARGET_BYTES: u64 = 64 << 20;
/// Packs that a quota is divided into when 64 MiB would make more: each is an open file (guess).
const PACKS_PER_QUOTA: u64 = 512;
/// Packs that even a small quota is divided into, so that evicting one leaves something (guess).
const PACKS_AT_LEAST: u64 = 8;
/// Most packs, whatever their sizes: twice the number that a quota is divided into.
const MAX_PACKS: usize = 1024;
/// Most bodies (guess: the large files of a few software releases; two files each, which are looked at when the cache is
/// opened).
const MAX_BODIES: usize = 8192;

impl Inner {
    fn limits(&self) -> Limits {
        Limits {
            quota_bytes: self.config.quota_bytes,
            free_floor_bytes: self.config.free_floor_bytes,
            minimum_bytes: self.config.minimum_bytes,
            max_packs: MAX_PACKS,
            max_bodies: MAX_BODIES,
        }
    }

    pub(super) fn pack_target_bytes(&self) -> u64 {
        let quota = self.config.quota_bytes;
        PACK_TARGET_BYTES.min(quota / PACKS_AT_LEAST).max(quota / PACKS_PER_QUOTA)
    }

    /// Bytes that are free on the file system; all of them when it does not say.
    fn free_bytes(&self) -> u64 {
        rustix::fs::statvfs(&self.folder)
            .map_or(u64::MAX, |status| status.f_bavail.saturating_mul(status.f_frsize))
    }

    /// A smaller quota than in the last run takes effect at once, as far as whole units go.
    pub(super) fn shrink_to_the_quota(&self) {
        let uses = self.read_index().uses();
        // The floor is looked after when there is something to store.
        let limits = Limits { free_floor_bytes: 0, ..self.limits() };
        if let Verdict::Evict(numbers) = policy::make_room(&uses, &limits, 0, u64::MAX) {
            let mut gone = Vec::new();
            self.remove_units(&numbers, &mut gone);
            self.tell_removed(&gone);
        }
    }

    /// Makes room under the writer's lock, without taking `for_whom`. The caller tells the listener of what is `gone`, once
    /// it holds no lock.
    pub(super) fn make_room(
        &self,
        wanted_bytes: u64,
        for_whom: Option<&Body>,
        gone: &mut Vec<ContentId>,
    ) -> Result<(), Refusal> {
        let mut limits = self.limits();
        if for_whom.is_some_and(|body| !body.is_made()) {
            limits.max_bodies -= 1;
        }
        let free_bytes = self.free_bytes();
        let totals = self.read_index().totals();
        if totals.fit(&limits, wanted_bytes, free_bytes) {
            return Ok(());
        }
        let mut uses = self.read_index().uses();
        if let Some(body) = for_whom {
            let this = uses.iter_mut().find(|unit| unit.number == u64::from(body.number));
            this.into_iter().for_each(|unit| unit.stays = true);
        }
        match policy::make_room(&uses, &limits, wanted_bytes, free_bytes) {
            Verdict::Evict(numbers) => {
                self.remove_units(&numbers, gone);
                Ok(())
            }
            Verdict::Refuse(shortage) => {
                Err(Refusal::NoRoom(StoreError::Full { wanted_bytes, detail: shortage.to_string() }))
            }
        }
    }

    /// Removes units and adds the chunks that left with them.
    pub(super) fn remove_units(&self, numbers: &[u64], gone: &mut Vec<ContentId>) {
        for number in numbers.iter().filter_map(|number| u32::try_from(*number).ok()) {
            let unit = self.read_index().unit(number);
            let names = match &unit {
                Some(Unit::Pack(pack)) => self.take_pack(pack),
                Some(Unit::Body(body)) => self.take_body(body),
                None => continue,
            };
            gone.extend(names);
            if let Some(unit) = unit
                && let Err(error) = unit.unlink()
            {
                tracing::warn!(file = %unit.path().display(), "cannot remove what was evicted: {error}");
            }
        }
    }

    fn take_pack(&self, pack: &Arc<Pack>) -> Vec<ContentId> {
        let before = self.read_index().entries();
        // The names stand only in the headers: the table would be twice as large with them.
        let mut names: Vec<Found> = Vec::new();
        if let Err(error) = pack.scan(|found| names.push(found)) {
            tracing::warn!(pack = %pack.path().display(), "cannot read all names of an evicted pack: {error}");
        }
        let mut index = self.write_index();
        names.retain(|found| index.lies_at(&found.header.id, pack.number, found.offset));
        let counted: Vec<ContentId> =
            names.iter().map(|found| found.header.id).filter(|id| index.is_verified(id)).collect();
        index.remove_pack(pack.number);
        let removed = before.saturating_sub(index.entries()) as u64;
        drop(index);
        let mut books = lock(&self.books);
        books.evicted += removed;
        counted.iter().for_each(|id| books.note_gone(id));
        names.iter().map(|found| found.header.id).collect()
    }

    fn take_body(&self, body: &Arc<Body>) -> Vec<ContentId> {
        lock(&self.noted).remove(body);
        let taken = self.write_index().remove_body(body);
        let mut books = lock(&self.books);
        books.evicted += taken.len() as u64;
        let counted = taken.iter().filter(|(_, state)| *state != super::index::State::Unverified);
        counted.for_each(|(id, _)| books.note_gone(id));
        taken.into_iter().map(|(id, _)| id).collect()
    }
}
