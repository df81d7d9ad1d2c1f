//! A unit of the cache, wherever a chunk lies: a pack or a body.

use super::body::Body;
use super::index::Slot;
use super::pack::Pack;
use crate::model::ContentId;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// A pack or a body, held by who reads in it: it reads on when the unit is evicted.
#[derive(Clone)]
pub(super) enum Unit {
    /// Slots say where in it a record begins.
    Pack(Arc<Pack>),
    /// Slots say which of its chunks.
    Body(Arc<Body>),
}

impl Unit {
    /// Whether the chunk in `slot` is `id`: the table of chunks knows eight bytes of a name only.
    pub(super) fn names(&self, id: &ContentId, slot: Slot) -> io::Result<bool> {
        match self {
            Self::Pack(pack) => {
                let header = pack.header_at(id, u64::from(slot.place))?;
                Ok(header.is_some_and(|header| header.plain_len == slot.plain_len()))
            }
            Self::Body(body) => Ok(body.names(slot.place as usize, id, slot.plain_len())),
        }
    }

    /// `len` bytes from `offset` of the chunk in `slot`.
    pub(super) fn read(&self, slot: Slot, offset: u32, len: u32) -> io::Result<Vec<u8>> {
        match self {
            Self::Pack(pack) => pack.read(u64::from(slot.place), offset, len),
            Self::Body(body) => body.read(slot.place as usize, offset, len),
        }
    }

    /// Fills `buffer` from byte `offset` on of the chunk in `slot`, which is verified, if the kernel has it in memory.
    pub(super) fn read_now(&self, id: &ContentId, slot: Slot, offset: u32, buffer: &mut [u8]) -> bool {
        match self {
            Self::Pack(pack) => pack.read_now(id, slot, offset, buffer),
            Self::Body(body) => {
                let number = slot.place as usize;
                body.names(number, id, slot.plain_len()) && body.read_now(number, offset, buffer)
            }
        }
    }

    /// Notes that it was read just now.
    pub(super) fn touch(&self) {
        match self {
            Self::Pack(pack) => pack.touch(),
            Self::Body(body) => body.touch(),
        }
    }

    /// Its number, which no other has.
    pub(super) fn number(&self) -> u32 {
        match self {
            Self::Pack(pack) => pack.number,
            Self::Body(body) => body.number,
        }
    }

    /// Whether something of it is delivered unhashed of which it is not known that the disk has taken it.
    pub(super) fn needs_flush(&self) -> bool {
        match self {
            Self::Pack(pack) => pack.needs_flush(),
            Self::Body(body) => body.needs_flush(),
        }
    }

    /// Has the disk take what was written.
    pub(super) fn flush(&self) -> io::Result<()> {
        match self {
            Self::Pack(pack) => pack.flush(),
            Self::Body(body) => body.flush(),
        }
    }

    /// Makes what was written survive a power cut.
    pub(super) fn sync(&self) -> io::Result<()> {
        match self {
            Self::Pack(pack) => pack.sync(),
            Self::Body(body) => body.sync(),
        }
    }

    /// What was written may be lost, whatever is in memory. The table of chunks is up to the caller.
    pub(super) fn doubt(&self) {
        match self {
            Self::Pack(pack) => pack.doubt(),
            Self::Body(body) => body.doubt(),
        }
    }

    /// Drops what the kernel has of the file in memory.
    pub(super) fn drop_pages(&self) {
        match self {
            Self::Pack(pack) => pack.drop_pages(),
            Self::Body(body) => body.drop_pages(),
        }
    }

    /// The names of the chunks in it, as far as they can be read.
    pub(super) fn chunks(&self) -> Vec<ContentId> {
        match self {
            Self::Pack(pack) => {
                let mut names = Vec::new();
                // Who asks makes do with those before an error.
                let _ = pack.scan(|found| names.push(found.header.id));
                names
            }
            Self::Body(body) => (0..body.len()).map(|number| body.list.id(number)).collect(),
        }
    }

    /// The file, for messages.
    pub(super) fn path(&self) -> PathBuf {
        match self {
            Self::Pack(pack) => pack.path().to_owned(),
            Self::Body(body) => body.path(),
        }
    }

    /// Removes it from its folder. Those who hold it read on.
    pub(super) fn unlink(&self) -> io::Result<()> {
        match self {
            Self::Pack(pack) => pack.unlink(),
            Self::Body(body) => body.remove(),
        }
    }
}
