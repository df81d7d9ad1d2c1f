//! How each large file that is open is read: through this process with the kernel's page cache before it, or by the kernel
//! from a body on the local disk (passthrough).
//!
//! The kernel wants one mode an inode as long as it is open anywhere, mapped included, and one backing file for all who have
//! it open. So the first to open a file decides for all until the last has closed it; and it stands in the [`Ledger`], so that
//! a successor of this process keeps to it.
//!
//! A backing file is registered as long as its file is open, and no longer: the cache must be able to take the space of what it
//! evicts, and what it found damaged must not be read by who opens the file afterwards.

use super::ledger::{Ledger, Line, Slot};
use crate::catalog::Inode;
use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

/// The kernel's number of a backing file.
pub(super) type Backing = u32;

/// A backing file that was registered with the kernel.
pub(super) struct Registered {
    pub(super) backing: Backing,
    /// Held as long as the kernel has it, so that the cache keeps it.
    pub(super) body: Arc<File>,
}

struct Entry {
    backing: Option<Backing>,
    /// `None` where a predecessor has registered it: then the kernel alone holds it.
    _body: Option<Arc<File>>,
    opens: u32,
    slot: Slot,
    /// Whether a predecessor has opened it.
    inherited: bool,
}

/// The modes of all large files that are open.
pub(super) struct Modes {
    by_inode: HashMap<Inode, Entry>,
    ledger: Ledger,
    /// Whether the kernel has references from a predecessor, which nobody here has counted.
    is_heir: bool,
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
        Self { by_inode: HashMap::new(), ledger, is_heir: false }
    }

    /// What a predecessor has left open.
    pub(super) fn inherit(ledger: Ledger, lines: Vec<(Slot, Line)>) -> Self {
        let entry = |(slot, line): (Slot, Line)| {
            (
                line.inode,
                Entry { backing: line.backing, _body: None, opens: line.opens, slot, inherited: true },
            )
        };
        Self { by_inode: lines.into_iter().map(entry).collect(), ledger, is_heir: true }
    }

    /// The ledger, for who keeps it for a successor.
    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// One more opens `inode`. If nobody has it open, `register` decides: what it returns is read by the kernel, and `None`
    /// through this process. `None` when too many are open.
    pub(super) fn open(
        &mut self,
        inode: Inode,
        register: impl FnOnce() -> Option<Registered>,
    ) -> Option<Mode> {
        let mode = |backing: Option<Backing>| backing.map_or(Mode::Cached, Mode::Passed);
        if let Some(entry) = self.by_inode.get_mut(&inode) {
            entry.opens = entry.opens.saturating_add(1);
            let line = Line { inode, opens: entry.opens, backing: entry.backing };
            return self.ledger.set(entry.slot, line).then(|| mode(entry.backing));
        }
        let (backing, body) = register().map_or((None, None), |it| (Some(it.backing), Some(it.body)));
        let slot = self.ledger.add(Line { inode, opens: 1, backing })?;
        self.by_inode.insert(inode, Entry { backing, _body: body, opens: 1, slot, inherited: false });
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
        if entry.opens > 0 {
            let line = Line { inode, opens: entry.opens, backing: entry.backing };
            self.ledger.set(entry.slot, line);
            return None;
        }
        self.end(inode)
    }

    /// The kernel has dropped `lookups` references to an inode, of which `counted` were given by this process. Who has a file open holds
    /// one; so once it has none, nobody has it open any more, whatever was counted: what is sent again after a take-over may
    /// have been counted before, or not. Returns a backing file that is no longer needed, if there is one.
    pub(super) fn forget(&mut self, inode: Inode, lookups: u64, counted: u64) -> Option<Backing> {
        if self.is_free(inode) {
            return None;
        }
        // What the kernel has from a predecessor it drops with the rest; fewer are a look-up that it could not use.
        let is_gone = if self.is_heir { lookups > counted } else { lookups >= counted };
        if is_gone { self.end(inode) } else { None }
    }

    fn end(&mut self, inode: Inode) -> Option<Backing> {
        let entry = self.by_inode.remove(&inode)?;
        self.ledger.remove(entry.slot);
        entry.backing
    }

    /// The files that the kernel reads by itself from a backing file that a predecessor has registered.
    pub(super) fn inherited(&self) -> Vec<Inode> {
        let passed = self.by_inode.iter().filter(|(_, entry)| entry.inherited && entry.backing.is_some());
        passed.map(|(inode, _)| *inode).collect()
    }

    /// Holds the body of such a file, so that the cache keeps it.
    pub(super) fn hold(&mut self, inode: Inode, body: Arc<File>) {
        if let Some(entry) = self.by_inode.get_mut(&inode).filter(|entry| entry.inherited) {
            entry._body = Some(body);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;
    use std::sync::Weak;

    fn modes() -> Modes {
        Modes::new(Ledger::new().unwrap())
    }

    fn registered(backing: Backing) -> Option<Registered> {
        Some(Registered { backing, body: Arc::new(File::open("/dev/null").unwrap()) })
    }

    #[test]
    fn the_first_decides_for_all_until_the_last_has_closed() {
        let (mut modes, file) = (modes(), Inode(7));
        assert!(modes.is_free(file));
        assert_eq!(modes.open(file, || None), Some(Mode::Cached));
        assert_eq!(
            modes.open(file, || registered(1)),
            Some(Mode::Cached),
            "read through this process by another"
        );
        modes.close(file);
        assert!(!modes.is_free(file));
        modes.close(file);
        assert_eq!(modes.open(file, || registered(2)), Some(Mode::Passed(2)));
        assert_eq!(modes.open(file, || panic!("registered twice")), Some(Mode::Passed(2)));
        assert_eq!((modes.close(file), modes.close(file)), (None, Some(2)));
        assert!(modes.is_free(file));
        assert_eq!(modes.close(Inode(8)), None);
    }

    #[test]
    fn a_body_is_held_as_long_as_its_file_is_open() {
        let mut modes = modes();
        let mut held = Weak::new();
        let mut register = || {
            let registered = registered(1)?;
            held = Arc::downgrade(&registered.body);
            Some(registered)
        };
        modes.open(Inode(1), &mut register);
        modes.open(Inode(1), || None);
        modes.close(Inode(1));
        assert_eq!(held.strong_count(), 1);
        modes.close(Inode(1));
        assert_eq!(held.strong_count(), 0);
    }

    #[test]
    fn a_successor_keeps_to_what_was_decided() {
        let mut before = modes();
        before.open(Inode(1), || None);
        before.open(Inode(2), || registered(20));
        before.open(Inode(2), || None);
        before.open(Inode(3), || registered(30));
        before.close(Inode(3));
        before.open(Inode(4), || None);
        before.close(Inode(4));
        let kept = before.ledger().as_fd().try_clone_to_owned().unwrap();
        drop(before);
        let (ledger, lines) = Ledger::inherit(kept).unwrap();
        let mut after = Modes::inherit(ledger, lines);
        assert!(after.is_free(Inode(3)) && after.is_free(Inode(4)));
        assert_eq!(after.open(Inode(1), || registered(10)), Some(Mode::Cached));
        assert_eq!(after.open(Inode(2), || None), Some(Mode::Passed(20)));
        for _ in 0..2 {
            after.close(Inode(1));
        }
        assert!(after.is_free(Inode(1)));
        assert_eq!(
            (after.close(Inode(2)), after.close(Inode(2)), after.close(Inode(2))),
            (None, None, Some(20))
        );
    }

    #[test]
    fn what_the_kernel_has_forgotten_is_open_nowhere() {
        let mut before = modes();
        before.open(Inode(2), || registered(20));
        let kept = before.ledger().as_fd().try_clone_to_owned().unwrap();
        drop(before);
        let (ledger, lines) = Ledger::inherit(kept).unwrap();
        let mut after = Modes::inherit(ledger, lines);
        assert_eq!(after.inherited(), [Inode(2)]);
        // The answer was never sent, and so it is asked again; and then it is closed, once.
        after.open(Inode(2), || None);
        assert_eq!(after.close(Inode(2)), None);
        // A look-up of this process that the kernel could not use is no proof.
        assert_eq!((after.forget(Inode(2), 1, 1), after.is_free(Inode(2))), (None, false));
        assert_eq!((after.forget(Inode(2), 1, 0), after.is_free(Inode(2))), (Some(20), true));
        let mut first = modes();
        first.open(Inode(3), || registered(30));
        assert_eq!(first.forget(Inode(3), 1, 2), None);
        assert_eq!(first.forget(Inode(3), 2, 2), Some(30));
        assert_eq!((first.forget(Inode(3), 2, 2), first.inherited()), (None, vec![]));
    }
}
