//! The port for a repository's objects on a stratum.

use crate::model::ContentId;
use bytes::Bytes;

/// What a [`ObjectStore::put`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The object was not there.
    New,
    /// The very same object was there.
    Known,
    /// Something else lay under that name (a torn file of an earlier crash); it was replaced.
    Repaired,
}

/// Why an object cannot be stored or read. All are permanent until somebody repairs the store.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The disk failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The bytes to be stored have another name.
    #[error("object {wanted}: the bytes hash to {found}")]
    OtherHash {
        /// The name given.
        wanted: ContentId,
        /// The name of the bytes.
        found: ContentId,
    },
    /// There is no such object.
    #[error("object {0} is not there")]
    Missing(ContentId),
    /// The object is shorter than what was to be read of it.
    #[error("object {id} has {bytes} bytes; {len} from {offset} were wanted")]
    Short {
        /// The object.
        id: ContentId,
        /// Its length.
        bytes: u64,
        /// First byte wanted.
        offset: u64,
        /// Bytes wanted.
        len: u32,
    },
    /// The root is longer than any root may be.
    #[error("the root has {bytes} bytes")]
    RootTooLong {
        /// Its length.
        bytes: u64,
    },
    /// Another publisher is at work.
    #[error("{path}: another publisher is at work")]
    Locked {
        /// The lock file.
        path: String,
    },
}

/// The objects of one repository: immutable ones under their BLAKE3 names, and the root, which alone
/// is replaced. Calls block.
pub trait ObjectStore: Send + Sync + 'static {
    /// Stores an object. When this returns, it is durable. What is there already is compared, not
    /// trusted, and replaced when it differs.
    ///
    /// # Errors
    /// [`ObjectError`] when the bytes have another name or the disk fails; nothing lies under the name then that did not before.
    fn put(&self, id: &ContentId, bytes: &[u8]) -> Result<Put, ObjectError>;

    /// Length of an object in bytes, or `None` when it is not there.
    ///
    /// # Errors
    /// [`ObjectError::Io`] when the disk fails.
    fn length(&self, id: &ContentId) -> Result<Option<u64>, ObjectError>;

    /// `len` bytes from `offset`. Not verified: the caller checks the chunk that they hold.
    ///
    /// # Errors
    /// [`ObjectError`] when the object is missing or too short, or the disk fails.
    fn read(&self, id: &ContentId, offset: u64, len: u32) -> Result<Bytes, ObjectError>;

    /// Calls `each` with every object and its length, in the order of their names.
    ///
    /// # Errors
    /// [`ObjectError::Io`] when the disk fails.
    fn list(&self, each: &mut dyn FnMut(ContentId, u64)) -> Result<(), ObjectError>;

    /// The root's document, unverified, or `None` when nothing was published yet.
    ///
    /// # Errors
    /// [`ObjectError`] when it is too long or the disk fails.
    fn root(&self) -> Result<Option<Vec<u8>>, ObjectError>;

    /// Replaces the root at once: readers see the old or the new one, whole. Durable when this returns.
    ///
    /// # Errors
    /// [`ObjectError`] when it is too long or the disk fails.
    fn put_root(&self, bytes: &[u8]) -> Result<(), ObjectError>;
}

#[cfg(test)]
pub(super) mod conformance {
    use super::*;
    use crate::model::limits;

    /// What every implementation promises. `store` is empty.
    pub(in super::super) fn run(store: &dyn ObjectStore) {
        let objects = [&b"one"[..], b"two", b"", &[7; 100_000]];
        let mut names: Vec<(ContentId, u64)> = Vec::new();
        for bytes in objects {
            let id = ContentId::of(bytes);
            assert_eq!(store.length(&id).unwrap(), None);
            assert!(matches!(store.read(&id, 0, 1), Err(ObjectError::Missing(missing)) if missing == id));
            assert_eq!(store.put(&id, bytes).unwrap(), Put::New);
            assert_eq!(store.put(&id, bytes).unwrap(), Put::Known);
            assert_eq!(store.length(&id).unwrap(), Some(bytes.len() as u64));
            let len = u32::try_from(bytes.len()).unwrap();
            assert_eq!(store.read(&id, 0, len).unwrap(), bytes);
            names.push((id, bytes.len() as u64));
        }
        let large = ContentId::of(&[7; 100_000]);
        assert_eq!(store.read(&large, 99_998, 2).unwrap(), &[7, 7][..]);
        for (offset, len) in [(99_999, 2), (100_001, 0), (u64::MAX, 1)] {
            assert!(matches!(
                store.read(&large, offset, len),
                Err(ObjectError::Short { bytes: 100_000, .. })
            ));
        }
        names.sort_unstable();
        let mut listed = Vec::new();
        store.list(&mut |id, bytes| listed.push((id, bytes))).unwrap();
        assert_eq!(listed, names);

        let wrong = ContentId::of(b"something else");
        assert!(matches!(store.put(&wrong, b"x"), Err(ObjectError::OtherHash { .. })));
        assert_eq!(store.length(&wrong).unwrap(), None);

        assert_eq!(store.root().unwrap(), None);
        for root in [&b"first"[..], b"second"] {
            store.put_root(root).unwrap();
            assert_eq!(store.root().unwrap().unwrap(), root);
        }
        let long = vec![0; limits::ROOT_MAX_BYTES + 1];
        assert!(matches!(store.put_root(&long), Err(ObjectError::RootTooLong { .. })));
        assert_eq!(store.root().unwrap().unwrap(), b"second");
    }
}
