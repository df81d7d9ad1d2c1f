//! Bodies: noting them, writing into them, handing them out, and the worker that completes and verifies them.

use super::body::{Body, BodyError, Content, List};
use super::index::{BODY, State};
use super::inner::{Inner, Refusal, Writer, is_shortage, lock};
use super::pins::KEPT_PERCENT;
use super::unit::Unit;
use crate::model::{ChunkRef, ContentId};
use crate::store::{MayWait, Origin, StoreError};
use bytes::Bytes;
use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// Part of the quota that one body may take: a larger file would drive everything else out (guess).
const QUOTA_PART: u64 = 4;

/// Why the worker left off.
enum Stop {
    /// Chunks are not in the cache.
    Lacking,
    /// Something could not be written, or the cache is closed.
    GivenUp,
}

/// What can be neither read nor removed at the start: said once for all.
#[derive(Default)]
struct Left {
    number: u64,
    bytes: u64,
    first: Option<(ContentId, BodyError)>,
}

impl Inner {
    /// The file of this list, whole and verified; else it is noted.
    pub(super) fn body(&self, chunks: &[ChunkRef], may_wait: bool) -> Result<Option<Arc<File>>, MayWait> {
        if self.config.verify_always {
            return Ok(None);
        }
        let list = List::of(chunks).filter(|list| list.total() <= self.config.quota_bytes / QUOTA_PART);
        let Some(body) = list.and_then(|list| self.note(list)) else { return Ok(None) };
        let may = body.is_verified() && !self.distrusts_the_disk() && self.may_stay(&body);
        if may { self.hand_out(&body, may_wait) } else { Ok(None) }
    }

    /// Whether enough would be left to evict if `body` could not be.
    fn may_stay(&self, body: &Arc<Body>) -> bool {
        if body.is_in_use() || body.is_pinned() {
            return true;
        }
        let limit = self.config.quota_bytes / 100 * KEPT_PERCENT;
        let index = self.read_index();
        if index.totals().bytes <= limit {
            return true;
        }
        let stays = |other: &&Arc<Body>| other.is_in_use() || other.is_pinned();
        index.bodies().filter(stays).map(|other| other.bytes()).sum::<u64>() + body.bytes() <= limit
    }

    /// The body of this list, noted if it is not whole and verified. `None` when nothing more can be noted.
    pub(super) fn note(&self, list: List) -> Option<Arc<Body>> {
        let mut noted = lock(&self.noted);
        let body = match noted.find(&list.name) {
            Some(body) => body,
            None => {
                let number = self.next_body()?;
                let body = Arc::new(Body::noted(number, list, Arc::clone(&self.files)));
                noted.add(&body);
                body
            }
        };
        body.touch();
        if !body.is_verified() && !noted.waits(&body) {
            let index = self.read_index();
            noted.note(&body, |id| index.contains(id));
            if noted.has_work() {
                self.wake.notify_one();
            }
        }
        Some(body)
    }

    /// The number of a new body.
    fn next_body(&self) -> Option<u32> {
        let numbers = &self.next_body;
        let next = |number: u32| (number < BODY - 2).then_some(number + 1);
        numbers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok().map(|number| number | BODY)
    }

    fn hand_out(&self, body: &Arc<Body>, may_wait: bool) -> Result<Option<Arc<File>>, MayWait> {
        // A disk that is gone shows at the first byte, which is read next in most cases.
        let probed = match body.hand_out(may_wait) {
            Err(error) if !may_wait && error.kind() == io::ErrorKind::WouldBlock => return Err(MayWait),
            probed => probed,
        };
        Ok(match probed {
            Ok(file) => Some(file),
            // It was evicted just now, or somebody else removed the file.
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_shortage(&error) => {
                tracing::debug!(body = %body.path().display(), "cannot be handed out: {error}");
                None
            }
            Err(error) => {
                self.note_unreadable();
                if self.may_warn_of_reading() {
                    tracing::warn!(
                        body = %body.path().display(),
                        "the cache cannot be read: {error}; files are read through the agent for a while"
                    );
                }
                None
            }
        })
    }

    /// A chunk of `body` was lost. It is wanted again, if the body still belongs to the cache.
    pub(super) fn note_again(&self, body: &Arc<Body>) {
        let mut noted = lock(&self.noted);
        if noted.find(&body.list.name).is_some_and(|known| Arc::ptr_eq(&known, body)) {
            let index = self.read_index();
            noted.note(body, |id| index.contains(id));
            if noted.has_work() {
                self.wake.notify_one();
            }
        }
    }

    /// Writes verified bytes into a body, under the writer's lock. The table is up to the caller.
    pub(super) fn write_into(
        &self,
        body: &Arc<Body>,
        number: usize,
        bytes: &[u8],
        gone: &mut Vec<ContentId>,
    ) -> Result<(), Refusal> {
        let list_bytes = if body.is_made() { 0 } else { body.list.list_bytes() };
        let wanted_bytes = bytes.len() as u64 + list_bytes;
        self.make_room(wanted_bytes, Some(body), gone)?;
        let write = || -> io::Result<()> {
            match body.make() {
                Ok(true) => self.write_index().add_body(body),
                Ok(false) => {}
                // By the name of one that is gone there may be another body.
                Err(error) if body.is_gone() => return Err(error),
                Err(error) => {
                    self.count_left(&body.list.name);
                    return Err(error);
                }
            }
            body.write(number, bytes)
        };
        write().map_err(|error| Refusal::disk(&body.path(), wanted_bytes, error))
    }

    /// A body cannot be written: what it has serves on, and nothing more is put into it until its file is opened again.
    pub(super) fn give_up(&self, writer: &mut Writer, body: &Arc<Body>, error: &StoreError) {
        self.warn(writer, error);
        // Its files may have been opened while the disk was read-only.
        body.let_go();
        lock(&self.noted).forget(body);
    }

    /// What the worker does until the cache is closed.
    pub(super) fn work(&self) {
        loop {
            let body = {
                let mut noted = lock(&self.noted);
                noted.busy = false;
                if self.stopping.load(Ordering::Relaxed) {
                    return;
                }
                let body = noted.next();
                if body.is_some() {
                    noted.busy = true;
                } else {
                    let until_flush = self.until_flush();
                    drop(self.wake.wait_timeout(noted, until_flush).unwrap_or_else(PoisonError::into_inner));
                }
                body
            };
            if let Some(body) = body {
                self.complete(&body);
            }
            self.flush_if_due();
        }
    }

    /// Copies and verifies what is left to do for `body`.
    fn complete(&self, body: &Arc<Body>) {
        let outcome = self.complete_chunks(body);
        // Not before the disk has taken it does it count as whole: the kernel would read what the disk has.
        let unit = Unit::Body(Arc::clone(body));
        if self.taken(&unit, unit.flush()).is_err() {
            self.flush_soon();
        }
        let mut noted = lock(&self.noted);
        match outcome {
            Err(Stop::Lacking) if !body.is_gone() => {
                let index = self.read_index();
                let absent = |number| body.content(number) == Content::Absent;
                let lacks =
                    (0..body.len()).any(|number| absent(number) && !index.contains(&body.list.id(number)));
                // Were it noted without lacking anything, it would come back at once.
                if lacks {
                    noted.note(body, |id| index.contains(id));
                } else {
                    noted.forget(body);
                }
            }
            Ok(()) | Err(Stop::Lacking | Stop::GivenUp) => noted.forget(body),
        }
    }

    fn complete_chunks(&self, body: &Arc<Body>) -> Result<(), Stop> {
        let mut outcome = Ok(());
        for number in 0..body.len() {
            if self.stopping.load(Ordering::Relaxed) || body.is_gone() {
                return Err(Stop::GivenUp);
            }
            self.flush_if_due();
            let is_right = match body.content(number) {
                Content::Verified => Some(true),
                Content::Unverified => self.verify_in(body, number),
                Content::Absent => Some(false),
            };
            match is_right {
                Some(true) => continue,
                Some(false) => {}
                None => return Err(Stop::GivenUp),
            }
            match self.held(&body.list.id(number), body.list.plain_len(number)) {
                Some(bytes) => self.copy_into(body, number, &bytes)?,
                None => outcome = Err(Stop::Lacking),
            }
        }
        outcome
    }

    /// A chunk that is in the cache, hashed now.
    fn held(&self, id: &ContentId, plain_len: u32) -> Option<Bytes> {
        let (slot, unit) = self.read_index().find(id).filter(|(slot, _)| slot.plain_len() == plain_len)?;
        let bytes = self.read_or_drop(id, slot, &unit, 0, plain_len)?;
        if slot.state() != State::Unverified && ContentId::of(&bytes) != *id {
            self.drop_damaged(id, slot, "its bytes have changed since they were verified", &unit);
            return None;
        }
        Some(bytes)
    }

    fn copy_into(&self, body: &Arc<Body>, number: usize, bytes: &[u8]) -> Result<(), Stop> {
        let mut gone = Vec::new();
        let copied = {
            let mut writer = lock(&self.writer);
            if body.is_gone() || writer.pause().is_some() {
                return Err(Stop::GivenUp);
            }
            let written = self.write_into(body, number, bytes, &mut gone);
            if written.is_ok() && self.write_index().put_copy(body, number, State::Cache) {
                // It had left meanwhile, perhaps to make room for this.
                let (id, plain_len) = (body.list.id(number), body.list.plain_len(number));
                gone.retain(|other| *other != id);
                lock(&self.books).note_stored(&id, plain_len, Origin::Cache);
                lock(&self.noted).arrived(&id);
            }
            written.map_err(|refusal| match refusal {
                Refusal::NoRoom(error) | Refusal::Disk(error) => {
                    self.give_up(&mut writer, body, &error);
                    Stop::GivenUp
                }
            })
        };
        self.tell_removed(&gone);
        copied
    }

    /// What lies at `number` of a body is right. With the last of it the worker makes the disk take it, so that it counts as whole.
    pub(super) fn note_verified_in(&self, body: &Arc<Body>, number: usize) {
        body.verified(number);
        if body.lacks_flush_alone() {
            lock(&self.noted).enqueue(body);
            self.wake.notify_one();
        }
    }

    /// Hashes what lies at `number` of a body. False when it was wrong, and is dropped; `None` when it could not be told.
    pub(super) fn verify_in(&self, body: &Arc<Body>, number: usize) -> Option<bool> {
        let (id, plain_len) = (body.list.id(number), body.list.plain_len(number));
        let unit = Unit::Body(Arc::clone(body));
        let why = match body.read(number, 0, plain_len) {
            Ok(bytes) if ContentId::of(&bytes) == id => None,
            Ok(_) => Some("its bytes are not what its name says".to_owned()),
            Err(error) if body.is_gone() || is_shortage(&error) => return None,
            Err(error) => {
                self.note_unreadable();
                Some(error.to_string())
            }
        };
        let slot = self.read_index().points_at(body, number);
        match (why, slot) {
            (None, Some(slot)) => self.note_verified(&id, slot, &unit),
            (None, None) => self.note_verified_in(body, number),
            (Some(why), Some(slot)) => {
                self.drop_damaged(&id, slot, &why, &unit);
                return Some(false);
            }
            (Some(why), None) => {
                // A spare: the chunk itself is elsewhere.
                body.drop_chunk(number);
                self.write_index().remove_copy(body, number);
                lock(&self.books).damaged += 1;
                self.warn_damaged(&id, &why, &unit);
                return Some(false);
            }
        }
        Some(true)
    }

    /// Finds the bodies of earlier runs again, and removes what is none. What cannot be read, or not be removed, counts in the
    /// quota as far as the disk has room taken for it.
    pub(super) fn load_bodies(&self) -> io::Result<()> {
        let mut names = std::collections::BTreeSet::new();
        let entries = match std::fs::read_dir(self.files.folder()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let file_name = entry?.file_name();
            let name =
                file_name.to_str().and_then(|name| Body::name_of_list(name).or(Body::name_of_plain(name)));
            names.extend(name);
        }
        let mut left = Left::default();
        for name in names {
            let Some(number) = self.next_body() else { break };
            let why = match Body::load(number, &name, &self.files) {
                Ok(body) if body.plain_bytes() > 0 => {
                    self.take_in(&Arc::new(body));
                    continue;
                }
                // Nothing was written before the last run ended.
                Ok(_) => self.files.remove(&name).err().map(BodyError::from),
                // It may be readable another time, and somebody may have it open.
                Err(error) if !error.is_final() => Some(error),
                Err(error) => {
                    tracing::warn!(body = %self.files.plain_path(&name).display(), "no body, to be removed: {error}");
                    self.files.remove(&name).err().map(BodyError::from)
                }
            };
            if let Some(why) = why {
                left.number += 1;
                left.bytes += self.count_left(&name);
                left.first.get_or_insert((name, why));
            }
        }
        if let Some((name, why)) = left.first {
            tracing::warn!(
                cache = %self.folder.display(), bodies = left.number, counted_bytes = left.bytes,
                "bodies that can be neither read nor removed are left alone, but counted in the quota; the first is {}: {why}",
                self.files.plain_path(&name).display()
            );
        }
        Ok(())
    }

    /// Counts what the disk has under the name of a body that is none. Returns how much that is.
    fn count_left(&self, name: &ContentId) -> u64 {
        let bytes = self.files.allocated_bytes(name);
        self.write_index().set_left(name, bytes);
        bytes
    }

    fn take_in(&self, body: &Arc<Body>) {
        let mut index = self.write_index();
        index.add_body(body);
        for number in (0..body.len()).filter(|number| body.content(*number) != Content::Absent) {
            index.put_copy(body, number, State::Unverified);
        }
        drop(index);
        lock(&self.noted).add(body);
    }
}
