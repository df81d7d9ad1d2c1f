//! Having the disk take what was written, and doubting what it does not take.
//!
//! A write ends when the kernel has the bytes in memory. Should the disk refuse them later (it is full beneath the file system, or
//! broken), the kernel says so once to who asks, keeps them as long as it has room, and then reads what the disk has: old bytes or
//! zeros. As nothing that was verified is hashed again, they would be delivered.

use super::inner::{DISTRUST, Inner, is_shortage, lock};
use super::unit::Unit;
use crate::ambient;
use crate::model::{ContentId, Time};
use crate::store::StoreError;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often the disk is made to take what was written (guess: about when the kernel would write it by itself). For so long a
/// chunk may be read from memory alone.
pub(super) const FLUSH_EVERY: Duration = Duration::from_secs(30);
/// So long before a disk is trusted again, what it did not take is doubted once more: the flush after it must come in time.
const BEFORE_TRUST: Duration = Duration::from_secs(2 * FLUSH_EVERY.as_secs());

impl Inner {
    /// How long it is until [`Inner::flush_if_due`] has something to do.
    pub(super) fn until_flush(&self) -> Duration {
        lock(&self.flush_at).since(ambient::now())
    }

    /// The next [`Inner::flush_if_due`] does it.
    pub(super) fn flush_soon(&self) {
        *lock(&self.flush_at) = Time::ZERO;
    }

    /// Has the disk take what was written in the last while, on the worker's thread.
    pub(super) fn flush_if_due(&self) {
        if self.until_flush() > Duration::ZERO {
            return;
        }
        *lock(&self.flush_at) = ambient::now() + FLUSH_EVERY;
        if self.distrust_left() <= BEFORE_TRUST {
            // Of what was hashed since, the kernel may have had the bytes only in memory, which by now it has written or lost.
            let doubted = std::mem::take(&mut *lock(&self.doubted));
            doubted.values().for_each(|unit| self.doubt(unit));
        }
        let unflushed = self.read_index().unflushed();
        let mut taken = Ok(());
        for unit in unflushed {
            if self.stopping.load(Ordering::Relaxed) {
                return;
            }
            taken = taken.and(self.taken(&unit, unit.flush()));
        }
        if taken.is_err() {
            // What is still in memory alone would be doubted, and hashed, again and again.
            *lock(&self.flush_at) = ambient::now() + (DISTRUST - BEFORE_TRUST);
        }
    }

    /// Makes all that was written survive a power cut.
    pub(super) fn sync(&self) -> io::Result<()> {
        let units: Vec<Unit> = {
            let index = self.read_index();
            let bodies = index.bodies().map(|body| Unit::Body(Arc::clone(body)));
            bodies.chain(index.active().map(Unit::Pack)).collect()
        };
        // The others, too, when one fails.
        units.iter().map(|unit| self.taken(unit, unit.sync())).fold(Ok(()), io::Result::and)
    }

    /// What follows when the disk did not take what was written to `unit`.
    pub(super) fn taken(&self, unit: &Unit, outcome: io::Result<()>) -> io::Result<()> {
        let Err(error) = outcome else { return Ok(()) };
        // It was evicted just now, or the process is short of something.
        if error.kind() == io::ErrorKind::NotFound || is_shortage(&error) {
            return Err(error);
        }
        // First, so that nothing is delivered unhashed in between.
        self.note_unreadable();
        lock(&self.doubted).insert(unit.number(), unit.clone());
        self.doubt(unit);
        let detail = format!("the disk did not take what was written: {error}");
        let error = io::Error::new(error.kind(), detail);
        let shown = StoreError::Io { path: unit.path().display().to_string(), source: error };
        let mut writer = lock(&self.writer);
        {
            // The next chunk goes into another pack.
            let mut index = self.write_index();
            if index.active().is_some_and(|active| active.number == unit.number()) {
                index.set_active(None);
            }
        }
        writer.pause_for(DISTRUST);
        self.warn(&mut writer, &shown);
        let StoreError::Io { source, .. } = shown else { return Ok(()) };
        Err(source)
    }

    /// All of `unit` is hashed before it is delivered again, and read from the disk for it.
    pub(super) fn doubt(&self, unit: &Unit) {
        let counted: Vec<ContentId> = {
            let names = unit.chunks();
            let index = self.read_index();
            names.into_iter().filter(|id| index.is_verified_in(id, unit.number())).collect()
        };
        // Twice: in between somebody may hash what is in memory.
        for _ in 0..2 {
            self.write_index().doubt(unit.number());
            unit.doubt();
            unit.drop_pages();
        }
        // They were counted when they were verified, and will be verified again.
        let mut books = lock(&self.books);
        counted.iter().for_each(|id| books.note_gone(id));
    }
}
