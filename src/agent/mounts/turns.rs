//! Whose turn it is at a directory: changes of one happen one after the other, and different directories wait for nobody.

use super::MountTable;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};

/// Held over a change of one directory, so that changes of it do not overlap.
pub(super) struct Changing<'a> {
    table: &'a MountTable,
    directory: PathBuf,
    /// `None` only while it is dropped.
    turn: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let mut changing = self.table.all_changing();
        self.turn = None;
        // Those who wait have it, too, and those who come take it from here.
        if changing.get(&self.directory).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            changing.remove(&self.directory);
        }
    }
}

impl MountTable {
    fn all_changing(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Arc<tokio::sync::Mutex<()>>>> {
        // Each change is one call.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody changes a directory any more.
    pub(super) async fn change(&self, directory: &Path) -> Changing<'_> {
        let lock = self.all_changing().entry(directory.to_owned()).or_default().clone();
        let turn = Some(lock.lock_owned().await);
        Changing { table: self, directory: directory.to_owned(), turn }
    }

    /// The turn at a directory, if nobody else has it.
    pub(super) fn try_change(&self, directory: &Path) -> Option<Changing<'_>> {
        let mut changing = self.all_changing();
        let lock = changing.entry(directory.to_owned()).or_default().clone();
        let turn = Some(lock.try_lock_owned().ok()?);
        Some(Changing { table: self, directory: directory.to_owned(), turn })
    }
}
