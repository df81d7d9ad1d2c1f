//! How each large file that is open is read: through this process with the kernel's page cache before it, or by the kernel
//! from a body on the local disk (passthrough).
//!
//! The kernel wants one mode an inode as long as it is open anywhere, mapped included, and one backing file for all who have
//! it open. So the first to open a file decides for all until the last has closed it; and it stands in the [`Ledger`], so that
//! a successor of this process keeps to it.

use super::ledger::{Ledger, Line, Slot};
use crate::catalog::Inode;
use std::collections::{HashMap, VecDeque};

/// Backing files that are kept registered although nobody has the file open, so that it is opened again at no cost (guess).
const IDLE_MAX: usize = 512;

/// The kernel's number of a backing file.
pub(super) type Backing = u32;

struct Entry {
    backing: Option<Backing>,
    opens: u32,
    /// Its line, while it is open or a backing file is registered.
    slot: Slot,
    queued: bool,
}

/// The modes of all large files that are open.
pub(super) struct Modes {
    by_inode: HashMap<Inode, Entry>,
    idle: VecDeque<Inode>,
    ledger: Ledger,
}

/// How one open file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Through this process.
    Cached,
    /// By the kernel, from this backing file.
    Passed(Backing),
}

impl Modes {
    /// Nothing is open yet.
    pub(super) fn new(ledger: Ledger) -> Self {
        Self { by_inode: HashMap::new(), idle: VecDeque::new(), ledger }
    }

    /// What a predecessor has left open.
    pub(super) fn inherit(ledger: Ledger, lines: Vec<(Slot, Line)>) -> Self {
        let entry = |(slot, line): (Slot, Line)| {
            (line.inode, Entry { backing: line.backing, opens: line.opens, slot, queued: false })
        };
        let mut modes = Self { by_inode: lines.into_iter().map(entry).collect(), ..Self::new(ledger) };
        let idle: Vec<_> =
            modes.by_inode.iter().filter(|(_, entry)| entry.opens == 0).map(|(i, _)| *i).collect();
        for inode in idle {
            modes.rest(inode);
        }
        modes
    }

    /// The ledger, for who keeps it for a successor.
    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// One more opens `inode`. If nobody has it open and no backing file is registered for it, `register` decides: what it
    /// returns is read by the kernel, and `None` through this process. `None` when too many are open.
    pub(super) fn open(&mut self, inode: Inode, register: impl FnOnce() -> Option<Backing>) -> Option<Mode> {
        let mode = |backing: Option<Backing>| backing.map_or(Mode::Cached, Mode::Passed);
        if let Some(entry) = self.by_inode.get_mut(&inode) {
            entry.opens = entry.opens.saturating_add(1);
            let line = Line { inode, opens: entry.opens, backing: entry.backing };
            return self.ledger.set(entry.slot, line).then(|| mode(entry.backing));
        }
        let backing = register();
        let slot = self.ledger.add(Line { inode, opens: 1, backing })?;
        self.by_inode.insert(inode, Entry { backing, opens: 1, slot, queued: false });
        Some(mode(backing))
    }

    /// Whether [`Modes::open`] would ask for a backing file.
    pub(super) fn is_free(&self, inode: Inode) -> bool {
        !self.by_inode.contains_key(&inode)
    }

    /// One who had it open has closed it. Returns a backing file that is no longer needed, if there is one.
    pub(super) fn close(&mut self, inode: Inode) -> Option<Backing> {
        let entry = self.by_inode.get_mut(&inode)?;
        entry.opens = entry.opens.saturating_sub(1);
        let line = Line { inode, opens: entry.opens, backing: entry.backing };
        match (entry.backing, entry.opens) {
            (None, 0) => {
                let slot = entry.slot;
                self.by_inode.remove(&inode);
                self.ledger.remove(slot);
                None
            }
            (Some(_), 0) => {
                self.ledger.set(entry.slot, line);
                self.rest(inode)
            }
            _ => {
                self.ledger.set(entry.slot, line);
                None
            }
        }
    }

    /// Puts one that nobody has open into the queue; who is too many there goes.
    fn rest(&mut self, inode: Inode) -> Option<Backing> {
        if let Some(entry) = self.by_inode.get_mut(&inode).filter(|entry| !entry.queued) {
            entry.queued = true;
            self.idle.push_back(inode);
        }
        if self.idle.len() <= IDLE_MAX {
            return None;
        }
        let first = self.idle.pop_front()?;
        let entry = self.by_inode.get_mut(&first)?;
        entry.queued = false;
        if entry.opens > 0 {
            return None;
        }
        let (slot, backing) = (entry.slot, entry.backing);
        self.by_inode.remove(&first);
        self.ledger.remove(slot);
        backing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    fn modes() -> Modes {
        Modes::new(Ledger::new().unwrap())
    }

    #[test]
    fn the_first_decides_for_all_until_the_last_has_closed() {
        let (mut modes, file) = (modes(), Inode(7));
        assert!(modes.is_free(file));
        assert_eq!(modes.open(file, || None), Some(Mode::Cached));
        assert_eq!(modes.open(file, || Some(1)), Some(Mode::Cached), "read through this process by another");
        modes.close(file);
        assert!(!modes.is_free(file));
        modes.close(file);
        assert_eq!(modes.open(file, || Some(2)), Some(Mode::Passed(2)));
        assert_eq!(modes.open(file, || panic!("registered twice")), Some(Mode::Passed(2)));
        assert_eq!((modes.close(file), modes.close(file)), (None, None));
        assert_eq!(modes.open(file, || panic!("still registered")), Some(Mode::Passed(2)));
        assert_eq!(modes.close(Inode(8)), None);
    }

    #[test]
    fn of_backing_files_that_nobody_uses_the_last_are_kept() {
        let mut modes = modes();
        let many = u32::try_from(IDLE_MAX).unwrap() + 50;
        modes.open(Inode(1000), || Some(1000));
        let mut ended = Vec::new();
        for backing in 1..many {
            modes.open(Inode(u64::from(backing)), || Some(backing));
            ended.extend(modes.close(Inode(u64::from(backing))));
        }
        assert_eq!(ended, (1..50).collect::<Vec<_>>());
        assert!(!modes.is_free(Inode(1000)), "open all the time");
        assert!(modes.is_free(Inode(1)) && !modes.is_free(Inode(u64::from(many) - 1)));
    }

    #[test]
    fn a_successor_keeps_to_what_was_decided() {
        let mut before = modes();
        before.open(Inode(1), || None);
        before.open(Inode(2), || Some(20));
        before.open(Inode(2), || None);
        before.open(Inode(3), || Some(30));
        before.close(Inode(3));
        before.open(Inode(4), || None);
        before.close(Inode(4));
        let kept = before.ledger().as_fd().try_clone_to_owned().unwrap();
        drop(before);
        let (ledger, lines) = Ledger::inherit(kept).unwrap();
        let mut after = Modes::inherit(ledger, lines);
        assert!(after.is_free(Inode(4)));
        assert_eq!(after.open(Inode(1), || Some(10)), Some(Mode::Cached));
        assert_eq!(after.open(Inode(2), || None), Some(Mode::Passed(20)));
        assert_eq!(after.open(Inode(3), || None), Some(Mode::Passed(30)), "registered, though not open");
        for _ in 0..2 {
            after.close(Inode(1));
        }
        assert!(after.is_free(Inode(1)));
    }
}
