//! One pack: an append-only file of records. Read with `pread`, never mapped: a failing disk must
//! cost a refetch, not a SIGBUS.

use super::files::{drop_pages, open_existing, write_out};
use super::index::{BODY, Slot};
use super::record::{HEADER_BYTES, HEADER_BYTES_U64, Header};
use crate::ambient;
use crate::model::{ContentId, Time, UnixTime};
use rustix::io::ReadWriteFlags;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A pack file, open as long as somebody holds it, even after it was removed from its folder.
#[derive(Debug)]
pub(super) struct Pack {
    /// Packs are numbered in the order in which they were begun.
    pub(super) number: u32,
    path: PathBuf,
    file: File,
    /// Bytes of whole records. Only the writer moves it, under its lock.
    len: AtomicU64,
    /// How many of these the disk is known to have taken.
    flushed: AtomicU64,
    last_used: AtomicU64,
    written: UnixTime,
}

/// A record as a scan found it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) header: Header,
    /// Where the header begins.
    pub(super) offset: u64,
}

impl Pack {
    /// The file name of pack `number`.
    fn file_name(number: u32) -> String {
        format!("{number:08x}.pack")
    }

    /// The number of a pack's file name, or `None` when it is something else.
    pub(super) fn number_of(name: &str) -> Option<u32> {
        let number = u32::from_str_radix(name.strip_suffix(".pack")?, 16).ok()?;
        (number < BODY && Self::file_name(number) == name).then_some(number)
    }

    /// Begins a new, empty pack.
    pub(super) fn create(folder: &Path, number: u32) -> io::Result<Self> {
        let path = folder.join(Self::file_name(number));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        Ok(Self::new(number, path, file, 0, ambient::unix_now()))
    }

    /// Opens a pack of an earlier run.
    pub(super) fn open(folder: &Path, number: u32) -> io::Result<Self> {
        let path = folder.join(Self::file_name(number));
        let file = open_existing(&path)?;
        let metadata = file.metadata()?;
        let written = UnixTime(u64::try_from(metadata.mtime()).unwrap_or(0));
        Ok(Self::new(number, path, file, metadata.len(), written))
    }

    /// The length of a pack of an earlier run that cannot be opened; `None` when that cannot be told, or it is no file.
    pub(super) fn bytes_unopened(folder: &Path, number: u32) -> Option<u64> {
        let metadata = std::fs::metadata(folder.join(Self::file_name(number))).ok()?;
        metadata.is_file().then_some(metadata.len())
    }

    fn new(number: u32, path: PathBuf, file: File, len: u64, written: UnixTime) -> Self {
        Self {
            number,
            path,
            file,
            len: AtomicU64::new(len),
            flushed: AtomicU64::new(0),
            last_used: AtomicU64::new(0),
            written,
        }
    }

    /// Calls `each` for every whole record from the start on, and returns where they end: at the end
    /// of the file, or at a torn or damaged record, behind which nothing can be found any more.
    pub(super) fn scan(&self, mut each: impl FnMut(Found)) -> io::Result<u64> {
        let len = self.bytes();
        let mut offset = 0;
        let mut bytes = [0; HEADER_BYTES];
        while offset + HEADER_BYTES_U64 <= len {
            self.file.read_exact_at(&mut bytes, offset)?;
            let Ok(header) = Header::decode(&bytes) else { break };
            if offset + header.record_bytes() > len {
                break;
            }
            each(Found { header, offset });
            offset += header.record_bytes();
        }
        Ok(offset)
    }

    /// Forgets everything from `len` on. Where the disk does not cut it off, the next record overwrites it, and the next start
    /// finds what is left of it as this one did.
    pub(super) fn cut(&self, len: u64) {
        self.len.store(len, Ordering::Release);
        let _ = self.file.set_len(len);
    }

    /// Appends a record and returns where it begins. One caller at a time. After an error the pack
    /// is as long as before: what was written behind its end is cut off, or overwritten by the next.
    pub(super) fn append(&self, header: &Header, bytes: &[u8]) -> io::Result<u64> {
        let offset = self.bytes();
        let written = self
            .file
            .write_all_at(&header.encode(), offset)
            .and_then(|()| self.file.write_all_at(bytes, offset + HEADER_BYTES_U64));
        if let Err(error) = written {
            let _ = self.file.set_len(offset);
            return Err(error);
        }
        self.len.store(offset + header.record_bytes(), Ordering::Release);
        Ok(offset)
    }

    /// The header at `offset`, if it is a good one and names `id`.
    pub(super) fn header_at(&self, id: &ContentId, offset: u64) -> io::Result<Option<Header>> {
        Ok(self.record_at(offset)?.filter(|header| header.id == *id))
    }

    /// The header at `offset`, if it is a good one.
    pub(super) fn record_at(&self, offset: u64) -> io::Result<Option<Header>> {
        let mut bytes = [0; HEADER_BYTES];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(Header::decode(&bytes).ok())
    }

    /// `len` bytes of the chunk whose header begins at `record`, from byte `skip` of the chunk on.
    pub(super) fn read(&self, record: u64, skip: u32, len: u32) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        self.file.read_exact_at(&mut bytes, record + HEADER_BYTES_U64 + u64::from(skip))?;
        Ok(bytes)
    }

    /// Fills `buffer` from byte `offset` on of the chunk in `slot`, if the kernel has it in memory and, where it begins,
    /// the header names `id`. What fails is read again by who may wait, and who then says why.
    pub(super) fn read_now(&self, id: &ContentId, slot: Slot, offset: u32, buffer: &mut [u8]) -> bool {
        let record = u64::from(slot.place);
        let mut header = [0; HEADER_BYTES];
        let begins = offset == 0;
        let wanted = buffer.len() + if begins { HEADER_BYTES } else { 0 };
        let (at, mut into) = if begins {
            (record, [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)])
        } else {
            (
                record + HEADER_BYTES_U64 + u64::from(offset),
                [IoSliceMut::new(&mut []), IoSliceMut::new(buffer)],
            )
        };
        // Where the file system cannot tell, it refuses the flag.
        let read = rustix::io::preadv2(&self.file, &mut into, at, ReadWriteFlags::NOWAIT);
        let is_right = |header: Header| header.id == *id && header.plain_len == slot.plain_len();
        read == Ok(wanted) && (!begins || Header::decode(&header).is_ok_and(is_right))
    }

    /// Bytes of whole records.
    pub(super) fn bytes(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    /// Notes that it was read or written just now.
    pub(super) fn touch(&self) {
        self.last_used.store(ambient::now().as_nanos().max(1), Ordering::Relaxed);
    }

    /// When it was last written before this run, or begun in it.
    pub(super) fn written(&self) -> UnixTime {
        self.written
    }

    /// Last use in this run, or [`Time::ZERO`].
    pub(super) fn last_used(&self) -> Time {
        Time::from_nanos(self.last_used.load(Ordering::Relaxed))
    }

    /// Whether it was used in this run, and it is not known that the disk has taken all of it.
    pub(super) fn needs_flush(&self) -> bool {
        self.flushed.load(Ordering::Acquire) < self.bytes() && self.last_used() != Time::ZERO
    }

    /// Has the disk take what was appended. After an error, and until [`Pack::doubt`], wrong bytes may be read.
    pub(super) fn flush(&self) -> io::Result<()> {
        let len = self.bytes();
        write_out(&self.file)?;
        self.flushed.fetch_max(len, Ordering::Release);
        Ok(())
    }

    /// What was appended may be lost, whatever is in memory.
    pub(super) fn doubt(&self) {
        self.flushed.store(0, Ordering::Release);
    }

    /// Drops what the kernel has of the file in memory.
    pub(super) fn drop_pages(&self) {
        drop_pages(&self.file);
    }

    /// Makes what was appended survive a power cut.
    pub(super) fn sync(&self) -> io::Result<()> {
        let len = self.bytes();
        self.file.sync_data()?;
        self.flushed.fetch_max(len, Ordering::Release);
        Ok(())
    }

    /// Removes the file from its folder. Readers that hold the pack read on.
    pub(super) fn unlink(&self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }

    /// The file, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_names_that_it_writes_are_packs() {
        assert_eq!(Pack::number_of(&Pack::file_name(0xa5)), Some(0xa5));
        for other in ["", "1.pack", "80000000.pack", "000000A5.pack", "000000a5.pack.tmp", "lock"] {
            assert_eq!(Pack::number_of(other), None, "{other}");
        }
    }
}
