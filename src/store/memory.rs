//! A repository's objects in memory, for tests.

use super::objects::{ObjectError, ObjectStore, Put};
use crate::model::{ContentId, limits};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct Held {
    objects: BTreeMap<ContentId, Bytes>,
    root: Option<Vec<u8>>,
}

/// The memory double of [`super::DirectoryObjects`]. As large as what is put into it.
#[derive(Debug, Default)]
pub struct MemoryObjects {
    held: Mutex<Held>,
}

impl MemoryObjects {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ObjectStore for MemoryObjects {
    fn put(&self, id: &ContentId, bytes: &[u8]) -> Result<Put, ObjectError> {
        let found = ContentId::of(bytes);
        if found != *id {
            return Err(ObjectError::OtherHash { wanted: *id, found });
        }
        match self.lock().objects.insert(*id, Bytes::copy_from_slice(bytes)) {
            None => Ok(Put::New),
            Some(_) => Ok(Put::Known),
        }
    }

    fn length(&self, id: &ContentId) -> Result<Option<u64>, ObjectError> {
        Ok(self.lock().objects.get(id).map(|bytes| bytes.len() as u64))
    }

    fn read(&self, id: &ContentId, offset: u64, len: u32) -> Result<Bytes, ObjectError> {
        let held = self.lock();
        let object = held.objects.get(id).ok_or(ObjectError::Missing(*id))?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.checked_add(len as usize).filter(|end| *end <= object.len());
        let short = ObjectError::Short { id: *id, bytes: object.len() as u64, offset, len };
        end.map(|end| object.slice(start..end)).ok_or(short)
    }

    fn list(&self, each: &mut dyn FnMut(ContentId, u64)) -> Result<(), ObjectError> {
        self.lock().objects.iter().for_each(|(id, bytes)| each(*id, bytes.len() as u64));
        Ok(())
    }

    fn root(&self) -> Result<Option<Vec<u8>>, ObjectError> {
        Ok(self.lock().root.clone())
    }

    fn put_root(&self, bytes: &[u8]) -> Result<(), ObjectError> {
        if bytes.len() > limits::ROOT_MAX_BYTES {
            return Err(ObjectError::RootTooLong { bytes: bytes.len() as u64 });
        }
        self.lock().root = Some(bytes.to_vec());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_does_what_an_object_store_promises() {
        super::super::objects::conformance::run(&MemoryObjects::default());
    }
}
