//! Chunks in memory: the double for tests, and the store of a node without a disk.

use super::{ChunkStore, Origin, StoreError};
use crate::model::ContentId;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

type Listener = Box<dyn Fn(&ContentId) + Send + Sync>;

/// Chunks in memory, up to a quota; nothing is evicted unless [`MemoryChunks::remove`] is called.
pub struct MemoryChunks {
    quota_bytes: u64,
    chunks: Mutex<BTreeMap<ContentId, Bytes>>,
    listener: Mutex<Option<Listener>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryChunks {
    /// An empty store of at most `quota_bytes` plain bytes.
    pub fn new(quota_bytes: u64) -> Self {
        Self { quota_bytes, chunks: Mutex::default(), listener: Mutex::default() }
    }

    /// Takes a chunk out, as eviction would, and tells the listener. False when it is not here.
    pub fn remove(&self, id: &ContentId) -> bool {
        let removed = lock(&self.chunks).remove(id).is_some();
        if removed && let Some(listener) = &*lock(&self.listener) {
            listener(id);
        }
        removed
    }

    /// Number of chunks.
    pub fn len(&self) -> usize {
        lock(&self.chunks).len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl ChunkStore for MemoryChunks {
    fn contains(&self, id: &ContentId) -> bool {
        lock(&self.chunks).contains_key(id)
    }

    fn read(&self, id: &ContentId, offset: u32, len: u32) -> Option<Bytes> {
        let bytes = self.read_all(id)?;
        let end = (offset as usize).checked_add(len as usize)?;
        (end <= bytes.len()).then(|| bytes.slice(offset as usize..end))
    }

    fn read_all(&self, id: &ContentId) -> Option<Bytes> {
        lock(&self.chunks).get(id).cloned()
    }

    fn read_now(&self, id: &ContentId, plain_len: u32, offset: u32, buffer: &mut [u8]) -> bool {
        let slice = u32::try_from(buffer.len()).ok().and_then(|len| self.read(id, offset, len));
        let found =
            slice.filter(|_| lock(&self.chunks).get(id).is_some_and(|all| all.len() == plain_len as usize));
        found.map(|bytes| buffer.copy_from_slice(&bytes)).is_some()
    }

    fn insert(&self, id: &ContentId, bytes: &Bytes, _origin: Origin) -> Result<(), StoreError> {
        let mut chunks = lock(&self.chunks);
        if chunks.contains_key(id) {
            return Ok(());
        }
        let used: u64 = chunks.values().map(|held| held.len() as u64).sum();
        let wanted_bytes = bytes.len() as u64;
        if used + wanted_bytes > self.quota_bytes {
            let detail = format!("the quota of {} bytes leaves no room", self.quota_bytes);
            return Err(StoreError::Full { wanted_bytes, detail });
        }
        chunks.insert(*id, bytes.clone());
        Ok(())
    }

    fn on_removal(&self, listener: Listener) {
        *lock(&self.listener) = Some(listener);
    }
}
