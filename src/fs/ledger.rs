//! What a successor must know of open files: how the kernel reads each, and which backing file it has for it.
//!
//! The ledger is a file in memory that outlives the process, because another one holds it as well. Each line is written with
//! one call when it changes, before the kernel gets the answer; so after a kill at any moment a line is as it was before or
//! after. Where that leaves a doubt, a file counts as open that is not: it keeps its mode, which does no harm.

use crate::catalog::Inode;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

/// Bytes of a line: inode, how often it is open, backing id.
const LINE_BYTES: usize = 16;
/// Most lines, as many as files may be open: 16 MiB.
pub(super) const LINES_MAX: u32 = 1 << 20;
/// In the place of a backing id: it is read through the process.
const CACHED: u32 = 0;

/// How the kernel reads a file that somebody has open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) inode: Inode,
    pub(super) opens: u32,
    /// The kernel's number of the backing file; they begin with 1. `None`: it is read through this process.
    pub(super) backing: Option<u32>,
}

impl Line {
    fn to_bytes(self) -> [u8; LINE_BYTES] {
        let mut bytes = [0; LINE_BYTES];
        bytes[..8].copy_from_slice(&self.inode.0.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.opens.to_ne_bytes());
        bytes[12..].copy_from_slice(&self.backing.unwrap_or(CACHED).to_ne_bytes());
        bytes
    }

    /// `None` for a line that is free.
    fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let word =
            |at: usize| bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_ne_bytes);
        let inode = bytes.get(..8).and_then(|word| word.try_into().ok()).map(u64::from_ne_bytes)?;
        let (opens, backing) = (word(8)?, word(12)?);
        (inode != 0).then_some(Self {
            inode: Inode(inode),
            opens,
            backing: Some(backing).filter(|b| *b != CACHED),
        })
    }
}

/// The lines of one mount.
#[derive(Debug)]
pub(super) struct Ledger {
    file: File,
    free: Vec<u32>,
    /// Lines from here on were never used.
    end: u32,
}

/// Where a line stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(u32);

impl Ledger {
    /// An empty one.
    ///
    /// # Errors
    /// When the system has no memory for it.
    pub(super) fn new() -> io::Result<Self> {
        let file = memfd_create("starling-open-files", MemfdFlags::CLOEXEC)?;
        Ok(Self { file: File::from(file), free: Vec::new(), end: 0 })
    }

    /// The one that another process has kept, and its lines.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn inherit(file: OwnedFd) -> io::Result<(Self, Vec<(Slot, Line)>)> {
        let file = File::from(file);
        let len = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len.min(LINES_MAX as usize * LINE_BYTES)];
        file.read_exact_at(&mut bytes, 0)?;
        let (mut lines, mut free) = (Vec::new(), Vec::new());
        let mut end = 0;
        for (number, line) in (0_u32..).zip(bytes.chunks_exact(LINE_BYTES)) {
            end = number + 1;
            match Line::of_bytes(line) {
                Some(line) => lines.push((Slot(number), line)),
                None => free.push(number),
            }
        }
        Ok((Self { file, free, end }, lines))
    }

    /// Writes a new line. `None` when there is no room, or no memory.
    pub(super) fn add(&mut self, line: Line) -> Option<Slot> {
        let slot = match self.free.pop() {
            Some(number) => Slot(number),
            None if self.end < LINES_MAX => {
                self.end += 1;
                Slot(self.end - 1)
            }
            None => return None,
        };
        self.set(slot, line).then_some(slot)
    }

    /// Writes a line anew; whether that went well.
    pub(super) fn set(&self, slot: Slot, line: Line) -> bool {
        self.put(slot, &line.to_bytes())
    }

    /// Frees a line.
    pub(super) fn remove(&mut self, slot: Slot) {
        if self.put(slot, &[0; LINE_BYTES]) {
            self.free.push(slot.0);
        }
    }

    fn put(&self, slot: Slot, bytes: &[u8]) -> bool {
        self.file.write_all_at(bytes, u64::from(slot.0) * LINE_BYTES as u64).is_ok()
    }
}

impl AsFd for Ledger {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(inode: u64, opens: u32, backing: Option<u32>) -> Line {
        Line { inode: Inode(inode), opens, backing }
    }

    #[test]
    fn a_successor_reads_what_was_written_last() {
        let mut ledger = Ledger::new().unwrap();
        let a = ledger.add(line(10, 1, None)).unwrap();
        let b = ledger.add(line(u64::MAX, 1, Some(7))).unwrap();
        let c = ledger.add(line(12, 3, None)).unwrap();
        assert!(ledger.set(b, line(u64::MAX, 2, Some(7))));
        ledger.remove(a);
        let kept = ledger.as_fd().try_clone_to_owned().unwrap();
        drop(ledger);
        let (mut heir, lines) = Ledger::inherit(kept).unwrap();
        assert_eq!(lines, [(b, line(u64::MAX, 2, Some(7))), (c, line(12, 3, None))]);
        assert_eq!(heir.add(line(13, 1, None)), Some(a), "a free line is used again");
        assert_eq!(heir.add(line(14, 1, None)), Some(Slot(3)));
    }
}
