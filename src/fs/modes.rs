//! How each open file is read: through this process with the kernel's page cache before it, or by the kernel from a body
//! on the local disk (passthrough).
//!
//! The kernel wants one mode an inode as long as it is open anywhere, mapped included, and one backing file for all who have
//! it open. So the first to open a file decides for all until the last has closed it.

use crate::catalog::Inode;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Backing files that are kept registered although nobody has the file open, so that it is opened again at no cost (guess).
const IDLE_MAX: usize = 512;

enum Mode<B> {
    Cached,
    Passed(Arc<B>),
}

struct Entry<B> {
    mode: Mode<B>,
    opens: u32,
    queued: bool,
}

/// The modes of all open files. `B` is what registers a backing file with the kernel, and ends that when it is dropped.
pub(super) struct Modes<B> {
    by_inode: HashMap<Inode, Entry<B>>,
    idle: VecDeque<Inode>,
}

impl<B> Default for Modes<B> {
    fn default() -> Self {
        Self { by_inode: HashMap::new(), idle: VecDeque::new() }
    }
}

impl<B> Modes<B> {
    /// One more opens `inode`. If nobody has it open and no backing file is registered for it, `register` decides: what it
    /// returns is read by passthrough, and `None` through this process.
    pub(super) fn open(&mut self, inode: Inode, register: impl FnOnce() -> Option<B>) -> Option<Arc<B>> {
        let entry = self.by_inode.entry(inode).or_insert_with(|| {
            let mode = register().map_or(Mode::Cached, |backing| Mode::Passed(Arc::new(backing)));
            Entry { mode, opens: 0, queued: false }
        });
        entry.opens += 1;
        match &entry.mode {
            Mode::Cached => None,
            Mode::Passed(backing) => Some(Arc::clone(backing)),
        }
    }

    /// Whether [`Modes::open`] would ask for a backing file.
    pub(super) fn is_free(&self, inode: Inode) -> bool {
        !self.by_inode.contains_key(&inode)
    }

    /// One who had it open has closed it.
    pub(super) fn close(&mut self, inode: Inode) {
        let Some(entry) = self.by_inode.get_mut(&inode) else { return };
        entry.opens = entry.opens.saturating_sub(1);
        match (&entry.mode, entry.opens) {
            (Mode::Cached, 0) => {
                self.by_inode.remove(&inode);
            }
            (Mode::Passed(_), 0) if !entry.queued => {
                entry.queued = true;
                self.idle.push_back(inode);
            }
            _ => {}
        }
        while self.idle.len() > IDLE_MAX {
            let Some(first) = self.idle.pop_front() else { break };
            if let Some(entry) = self.by_inode.get_mut(&first) {
                entry.queued = false;
                if entry.opens == 0 {
                    self.by_inode.remove(&first);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_decides_for_all_until_the_last_has_closed() {
        let mut modes: Modes<u8> = Modes::default();
        let file = Inode(7);
        assert!(modes.is_free(file));
        assert_eq!(modes.open(file, || None), None);
        assert_eq!(modes.open(file, || Some(1)), None, "read through this process by another");
        modes.close(file);
        assert!(!modes.is_free(file));
        modes.close(file);
        assert_eq!(modes.open(file, || Some(2)).as_deref(), Some(&2));
        assert_eq!(modes.open(file, || panic!("registered twice")).as_deref(), Some(&2));
        modes.close(file);
        modes.close(file);
        assert_eq!(modes.open(file, || panic!("still registered")).as_deref(), Some(&2));
        modes.close(Inode(8));
    }

    #[test]
    fn of_backing_files_that_nobody_uses_the_last_are_kept() {
        let mut modes: Modes<u64> = Modes::default();
        let many = IDLE_MAX as u64 + 50;
        modes.open(Inode(0), || Some(0));
        for inode in 1..many {
            modes.open(Inode(inode), || Some(inode));
            modes.close(Inode(inode));
        }
        assert!(!modes.is_free(Inode(0)), "open all the time");
        assert!(modes.is_free(Inode(1)) && !modes.is_free(Inode(many - 1)));
        assert_eq!(modes.by_inode.len(), IDLE_MAX + 1);
    }
}
