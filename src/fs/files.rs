//! Files whose content is at hand: those that are open, and those that were read lately.
//!
//! An inode number means one content for ever, so what is remembered here never becomes wrong; it only takes memory, which
//! is bounded. A file that is open stays, because the revision that it came from may be gone before it is closed. Where the kernel
//! does not say what is open, a file is *held* once its revision goes, until the kernel forgets it.

use super::content::OpenFile;
use crate::catalog::Inode;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Most files that are open at once; the system's own limit of open files lies below (guess).
pub(super) const OPEN_MAX: usize = 1 << 20;
/// Most files that are remembered although nobody has them open, and most chunks that they may have together: at 90 bytes a
/// chunk 6 MiB (guess).
const IDLE_MAX: usize = 2_048;
const IDLE_CHUNKS_MAX: usize = 1 << 16;
/// Most files that are held although their revision is gone, and most chunks that they may have together: 24 MiB (guess).
pub(super) const HELD_MAX: usize = 1 << 14;
const HELD_CHUNKS_MAX: usize = 1 << 18;

struct Entry {
    file: Arc<OpenFile>,
    /// How often it is open.
    opens: u32,
    /// Whether it stays until the kernel forgets it.
    held: bool,
    /// Whether it stands in the queue of the idle.
    queued: bool,
}

/// The table of them.
#[derive(Default)]
pub(super) struct Files {
    by_inode: HashMap<Inode, Entry>,
    /// In the order in which they became idle; some are open again.
    idle: VecDeque<Inode>,
    /// Chunks of those that stand in the queue.
    idle_chunks: usize,
    opens: usize,
    held: usize,
    /// Chunks of those that are held.
    held_chunks: usize,
}

impl Entry {
    fn is_idle(&self) -> bool {
        self.opens == 0 && !self.held
    }
}

impl Files {
    pub(super) fn get(&self, inode: Inode) -> Option<Arc<OpenFile>> {
        self.by_inode.get(&inode).map(|entry| Arc::clone(&entry.file))
    }

    /// How often files are open, all together.
    pub(super) fn opens(&self) -> usize {
        self.opens
    }

    /// Whether somebody has it open, as far as is known.
    pub(super) fn is_open(&self, inode: Inode) -> bool {
        self.by_inode.get(&inode).is_some_and(|entry| !entry.is_idle())
    }

    /// Has a remembered file stay until the kernel forgets it; false when there is no room, or it is not remembered.
    pub(super) fn hold(&mut self, inode: Inode) -> bool {
        let Some(entry) = self.by_inode.get_mut(&inode) else { return false };
        if entry.held {
            return true;
        }
        let chunks = self.held_chunks + entry.file.content.chunks().len();
        if self.held == HELD_MAX || chunks > HELD_CHUNKS_MAX {
            return false;
        }
        (entry.held, self.held_chunks) = (true, chunks);
        self.held += 1;
        true
    }

    /// The kernel has forgotten it.
    pub(super) fn let_go(&mut self, inode: Inode) {
        let Some(entry) = self.by_inode.get_mut(&inode).filter(|entry| entry.held) else { return };
        entry.held = false;
        self.held -= 1;
        self.held_chunks -= entry.file.content.chunks().len();
        self.rest(inode);
    }

    /// Remembers a file that is read without having been opened. Whoever came first stays.
    pub(super) fn remember(&mut self, inode: Inode, file: OpenFile) -> Arc<OpenFile> {
        let new = || Entry { file: Arc::new(file), opens: 0, held: false, queued: false };
        let entry = self.by_inode.entry(inode).or_insert_with(new);
        let file = Arc::clone(&entry.file);
        self.rest(inode);
        file
    }

    /// One more has it open; false when it is not remembered.
    pub(super) fn open(&mut self, inode: Inode) -> bool {
        let Some(entry) = self.by_inode.get_mut(&inode) else { return false };
        entry.opens += 1;
        self.opens += 1;
        true
    }

    /// One fewer has it open. Of what this process never opened nothing is known.
    pub(super) fn close(&mut self, inode: Inode) {
        let Some(entry) = self.by_inode.get_mut(&inode).filter(|entry| entry.opens > 0) else { return };
        entry.opens -= 1;
        self.opens -= 1;
        self.rest(inode);
    }

    /// Puts an idle file at the end of the queue, and lets those go that are too many.
    fn rest(&mut self, inode: Inode) {
        if let Some(entry) = self.by_inode.get_mut(&inode).filter(|entry| entry.is_idle() && !entry.queued) {
            entry.queued = true;
            self.idle_chunks += entry.file.content.chunks().len();
            self.idle.push_back(inode);
        }
        while self.idle.len() > IDLE_MAX || self.idle_chunks > IDLE_CHUNKS_MAX {
            let Some(first) = self.idle.pop_front() else { break };
            let Some(entry) = self.by_inode.get_mut(&first) else { continue };
            entry.queued = false;
            self.idle_chunks -= entry.file.content.chunks().len();
            if entry.is_idle() {
                self.by_inode.remove(&first);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::content::Content;
    use super::*;
    use crate::catalog::{Attributes, FileKind};
    use crate::model::{ChunkRef, ContentId, Place};

    fn file(inode: u64, chunks: usize) -> OpenFile {
        let id = ContentId::of(b"x");
        let place = Place { segment: id, ordinal: 0, offset: 0, stored_len: 1 };
        let attributes = Attributes {
            permissions: 0o644,
            size: chunks as u64,
            links: 1,
            ..Attributes::blank(Inode(inode), FileKind::File)
        };
        let chunks = std::iter::repeat_n(ChunkRef { id, plain_len: 1, place }, chunks).collect();
        OpenFile::new(Content::new(attributes, chunks).unwrap())
    }

    #[test]
    fn what_is_open_stays_and_of_the_rest_the_bounds_leave_the_last() {
        let mut files = Files::default();
        files.remember(Inode(1), file(1, 10));
        assert!(files.open(Inode(1)) && files.open(Inode(1)) && !files.open(Inode(2)));
        let many = IDLE_MAX as u64 + 100;
        for inode in 2..many {
            files.remember(Inode(inode), file(inode, 1));
        }
        assert!(files.get(Inode(1)).is_some() && files.get(Inode(2)).is_none());
        assert!(files.get(Inode(many - 1)).is_some() && files.by_inode.len() <= IDLE_MAX + 1);
        for inode in many..many + 10 {
            files.remember(Inode(inode), file(inode, IDLE_CHUNKS_MAX / 2));
        }
        assert!(files.by_inode.len() <= 3, "{}", files.by_inode.len());
        files.close(Inode(1));
        files.close(Inode(1));
        files.close(Inode(1));
        assert_eq!(files.opens(), 0);
        assert!(!files.is_open(Inode(1)) && files.get(Inode(1)).is_some(), "read lately");
    }

    #[test]
    fn what_is_held_stays_until_it_is_let_go_and_there_is_a_bound() {
        let mut files = Files::default();
        files.remember(Inode(1), file(1, 1));
        assert!(files.hold(Inode(1)) && files.hold(Inode(1)) && !files.hold(Inode(2)));
        for inode in 2..IDLE_MAX as u64 + 10 {
            files.remember(Inode(inode), file(inode, 1));
        }
        assert!(files.is_open(Inode(1)));
        let large = 10_000..10_000 + (HELD_CHUNKS_MAX / IDLE_CHUNKS_MAX) as u64;
        for inode in large.clone() {
            files.remember(Inode(inode), file(inode, IDLE_CHUNKS_MAX - 1));
            assert!(files.hold(Inode(inode)));
        }
        files.remember(Inode(20_000), file(20_000, 10));
        assert!(!files.hold(Inode(20_000)), "too much together with the others");
        assert!(large.clone().all(|inode| files.is_open(Inode(inode))));
        files.let_go(Inode(10_000));
        files.let_go(Inode(10_000));
        assert!(!files.is_open(Inode(10_000)));
        files.remember(Inode(20_001), file(20_001, 1));
        assert!(files.hold(Inode(20_001)), "there is room again");
    }
}
