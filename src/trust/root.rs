//! The signed root: the document that names a revision.

use super::keys::{Delegation, Fingerprint, KeySet, Keys};
use super::sections::{Malformed, Sections, begin, is_signed, parse, put_section, sign, unparse};
use crate::chunk::Chunking;
use crate::model::{Algorithm, ChunkRef, ContentId, RepositoryName, Revision, UnixTime, limits};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Version of the root's format that is written and read.
const VERSION: u16 = 1;
const MAGIC: &[u8; 8] = b"STARROOT";
const CONTEXT: &[u8] = b"starling root v1\0";

/// What a root says of its revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// The repository.
    pub repository: RepositoryName,
    /// Number of the revision, from 1.
    pub revision: Revision,
    /// How often this revision was signed anew (to move its expiry), from 0.
    pub signings: u32,
    /// The catalog of the tree's root, with its place.
    pub root_catalog: ChunkRef,
    /// The catalog index: where every catalog of the revision lies.
    pub catalog_index: ChunkRef,
    /// The history: earlier revisions and tags.
    pub history: ChunkRef,
    /// The root of the revision before; `None` for the first.
    pub previous: Option<ContentId>,
    /// Number of inodes in the tree.
    pub inodes: u64,
    /// Plain bytes of all files, hard-linked ones counted once.
    pub plain_bytes: u64,
    /// How files were cut.
    pub chunking: Chunking,
    /// When it was signed.
    pub issued: UnixTime,
    /// From then on it is not fresh.
    pub expires: UnixTime,
}

/// Why a root is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// Longer than any root may be.
    #[error("a root of {bytes} bytes; at most {} are allowed", limits::ROOT_MAX_BYTES)]
    TooLong {
        /// Bytes given.
        bytes: usize,
    },
    /// A later format.
    #[error("root format version {found} is not known; this program reads version {VERSION}")]
    Version {
        /// What it states.
        found: u16,
    },
    /// It is not laid out as a root is.
    #[error("not a root: {0}")]
    Malformed(&'static str),
    /// Its root keys are not those that are trusted.
    #[error("the root keys have the fingerprint {found}, trusted is {trusted}")]
    OtherKeys {
        /// Of the keys in the document.
        found: Fingerprint,
        /// Of the keys that the caller trusts.
        trusted: Fingerprint,
    },
    /// Too few root keys signed the delegation.
    #[error("the publishing key is not authorised by the root keys")]
    Delegation,
    /// The publishing key did not sign it.
    #[error("the signature does not match")]
    Signature,
    /// It speaks of another repository.
    #[error("it is of the repository `{found}`, wanted is `{wanted}`")]
    OtherRepository {
        /// Named in the document.
        found: RepositoryName,
        /// Named by the caller.
        wanted: RepositoryName,
    },
    /// A signed number is out of bounds.
    #[error("the root says nonsense: {0}")]
    Nonsense(String),
}

impl From<Malformed> for TrustError {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error.0)
    }
}

/// Whether a root may be switched to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Neither root nor delegation has expired.
    Fresh,
    /// One of them has: mounts go on reading, do not switch, and warn.
    Expired {
        /// Since when.
        since: UnixTime,
    },
}

/// How a root stands to one that was accepted before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Succession {
    /// A later revision, or the same signed anew.
    Newer,
    /// The same document.
    Same,
    /// An earlier revision or signing.
    Older,
    /// Another document for the same revision: two publishers, or worse.
    Contradicts,
}

/// A root whose signatures were verified, with the bytes that were signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedRoot {
    root: Root,
    id: ContentId,
    bytes: Bytes,
    expires: UnixTime,
    standing: Standing,
}

impl VerifiedRoot {
    /// What it says.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Its name: the BLAKE3 of all its bytes.
    pub fn id(&self) -> ContentId {
        self.id
    }

    /// The document as it was published.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Whether it had expired when it was verified.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// From when on it is not fresh: its own expiry or that of its publishing key, whichever is earlier.
    pub fn expires(&self) -> UnixTime {
        self.expires
    }

    /// Whether it is expired at `now`.
    pub fn standing_at(&self, now: UnixTime) -> Standing {
        if self.expires <= now { Standing::Expired { since: self.expires } } else { Standing::Fresh }
    }

    /// How it stands to `accepted`, a root of the same repository.
    pub(super) fn succession(&self, accepted: &Self) -> Succession {
        let (new, old) = (&self.root, &accepted.root);
        let same_content = Root { signings: 0, issued: UnixTime(0), expires: UnixTime(0), ..new.clone() }
            == Root { signings: 0, issued: UnixTime(0), expires: UnixTime(0), ..old.clone() };
        match (new.revision, new.signings).cmp(&(old.revision, old.signings)) {
            std::cmp::Ordering::Less => Succession::Older,
            std::cmp::Ordering::Equal if self.id == accepted.id => Succession::Same,
            std::cmp::Ordering::Equal => Succession::Contradicts,
            std::cmp::Ordering::Greater if new.revision == old.revision && !same_content => {
                Succession::Contradicts
            }
            std::cmp::Ordering::Greater => Succession::Newer,
        }
    }
}

/// The document: how a root is signed and how it is verified.
#[derive(Clone, Copy, Debug)]
pub struct SignedRoot;

impl SignedRoot {
    /// The signed document of `root`.
    ///
    /// # Errors
    /// [`TrustError`] when the root says nonsense, is of another repository than the keys, or does not fit.
    pub fn sign(root: &Root, keys: &Keys) -> Result<Vec<u8>, TrustError> {
        check(root)?;
        if root.repository != keys.repository {
            return Err(TrustError::OtherRepository {
                found: root.repository.clone(),
                wanted: keys.repository.clone(),
            });
        }
        let mut bytes = begin(MAGIC, VERSION);
        put_section(&mut bytes, &keys.key_set);
        put_section(&mut bytes, &keys.delegation);
        bytes.push(u8::try_from(keys.signatures.len()).expect("at most one signature a root key"));
        for (index, signature) in &keys.signatures {
            bytes.push(*index);
            bytes.extend_from_slice(signature);
        }
        let body = unparse(root);
        put_section(&mut bytes, &body);
        bytes.extend_from_slice(&sign(&keys.publishing, CONTEXT, &body));
        if bytes.len() > limits::ROOT_MAX_BYTES {
            return Err(TrustError::TooLong { bytes: bytes.len() });
        }
        Ok(bytes)
    }

    /// Verifies a document against the repository's name and fingerprint.
    ///
    /// Each part is checked as raw bytes before it is parsed. Expiry is reported in
    /// [`VerifiedRoot::standing`], not refused; roll-back is [`super::Repositories`]' business.
    ///
    /// # Errors
    /// [`TrustError`] when anything does not hold.
    pub fn verify(
        bytes: &[u8],
        name: &RepositoryName,
        fingerprint: &Fingerprint,
        now: UnixTime,
    ) -> Result<VerifiedRoot, TrustError> {
        if bytes.len() > limits::ROOT_MAX_BYTES {
            return Err(TrustError::TooLong { bytes: bytes.len() });
        }
        let (mut sections, version) = Sections::open(bytes, MAGIC)?;
        if version != VERSION {
            return Err(TrustError::Version { found: version });
        }
        let key_set = sections.section()?;
        let found = KeySet::fingerprint_of(key_set);
        if found != *fingerprint {
            return Err(TrustError::OtherKeys { found, trusted: *fingerprint });
        }
        let key_set = KeySet::parse(key_set).ok_or(TrustError::Malformed("not a set of root keys"))?;
        let delegation = sections.section()?;
        let [count] = sections.array()?;
        let mut signatures = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let [index] = sections.array()?;
            signatures.push((index, sections.array()?));
        }
        if !key_set.agrees(delegation, &signatures) {
            return Err(TrustError::Delegation);
        }
        let delegation: Delegation = parse(delegation)?;
        let body = sections.section()?;
        let signature = sections.array()?;
        sections.end()?;
        if !is_signed(&delegation.key, CONTEXT, body, &signature) {
            return Err(TrustError::Signature);
        }
        let root: Root = parse(body)?;
        for found in [&delegation.repository, &root.repository] {
            if found != name {
                return Err(TrustError::OtherRepository { found: found.clone(), wanted: name.clone() });
            }
        }
        check(&root)?;
        let expires = root.expires.min(delegation.expires);
        let mut verified = VerifiedRoot {
            root,
            id: ContentId::of(bytes),
            bytes: Bytes::copy_from_slice(bytes),
            expires,
            standing: Standing::Fresh,
        };
        verified.standing = verified.standing_at(now);
        Ok(verified)
    }

    /// The repository that a document claims to be of, unverified: whom to ask for a fingerprint.
    pub fn claimed_repository(bytes: &[u8]) -> Result<RepositoryName, TrustError> {
        if bytes.len() > limits::ROOT_MAX_BYTES {
            return Err(TrustError::TooLong { bytes: bytes.len() });
        }
        let (mut sections, version) = Sections::open(bytes, MAGIC)?;
        if version != VERSION {
            return Err(TrustError::Version { found: version });
        }
        sections.section()?;
        // The name is the delegation's first field; nothing else of it is looked at.
        let (name, _) = postcard::take_from_bytes(sections.section()?)
            .map_err(|_| TrustError::Malformed("the delegation does not begin with a name"))?;
        Ok(name)
    }
}

/// Refuses numbers that no publisher writes.
fn check(root: &Root) -> Result<(), TrustError> {
    let nonsense = |detail: String| Err(TrustError::Nonsense(detail));
    if root.revision.0 == 0 {
        return nonsense("revision 0".to_owned());
    }
    if (root.revision.0 == 1) != root.previous.is_none() {
        return nonsense(format!("revision {} with previous root {:?}", root.revision, root.previous));
    }
    for (what, chunk) in [
        ("root catalog", &root.root_catalog),
        ("catalog index", &root.catalog_index),
        ("history", &root.history),
    ] {
        let place = &chunk.place;
        let known = [chunk.id, place.segment].iter().all(|id| id.algorithm() == Algorithm::Blake3);
        let sane = (1..=limits::PLAIN_MAX_BYTES).contains(&chunk.plain_len)
            && place.stored_len > 0
            && place.stored_len <= chunk.plain_len.saturating_add(limits::FRAME_OVERHEAD_BYTES)
            && place.ordinal < limits::SEGMENT_MAX_FRAMES
            && place.end().is_some();
        if !known || !sane {
            return nonsense(format!("{what} {chunk:?}"));
        }
    }
    root.chunking.check().map_err(|error| TrustError::Nonsense(error.to_string()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::Place;
    use proptest::prelude::*;
    use std::time::Duration;

    pub(in super::super) const NOW: UnixTime = UnixTime(1_800_000_000);

    pub(in super::super) fn keys(name: &RepositoryName) -> Keys {
        let dir = tempfile::tempdir().unwrap();
        Keys::open_or_create(dir.path(), name, NOW).unwrap()
    }

    pub(in super::super) fn root(name: &RepositoryName, revision: u64, content: &[u8]) -> Root {
        let chunk = |plain: &[u8]| ChunkRef {
            id: ContentId::of(plain),
            plain_len: 7,
            place: Place { segment: ContentId::of(b"segment"), ordinal: 0, offset: 0, stored_len: 9 },
        };
        Root {
            repository: name.clone(),
            revision: Revision(revision),
            signings: 0,
            root_catalog: chunk(content),
            catalog_index: chunk(b"index"),
            history: chunk(b"history"),
            previous: (revision > 1).then(|| ContentId::of(b"previous")),
            inodes: 3,
            plain_bytes: 10,
            chunking: Chunking::default(),
            issued: NOW,
            expires: NOW.after(Duration::from_secs(86_400)),
        }
    }

    #[test]
    fn what_was_signed_is_verified_and_read_back() {
        let name: RepositoryName = "a.example".parse().unwrap();
        let keys = keys(&name);
        let signed = SignedRoot::sign(&root(&name, 1, b"x"), &keys).unwrap();
        assert!(signed.len() < 1024, "{} bytes are more than a few hundred", signed.len());
        let verified = SignedRoot::verify(&signed, &name, &keys.fingerprint(), NOW).unwrap();
        assert_eq!(verified.root(), &root(&name, 1, b"x"));
        assert_eq!((verified.id(), verified.standing()), (ContentId::of(&signed), Standing::Fresh));
        assert_eq!(SignedRoot::claimed_repository(&signed).unwrap(), name);
    }

    #[test]
    fn expiry_is_reported_and_not_refused() {
        let name: RepositoryName = "a".parse().unwrap();
        let keys = keys(&name);
        let signed = SignedRoot::sign(&root(&name, 1, b"x"), &keys).unwrap();
        let late = NOW.after(Duration::from_secs(86_400));
        let verified = SignedRoot::verify(&signed, &name, &keys.fingerprint(), late).unwrap();
        assert_eq!(verified.standing(), Standing::Expired { since: late });
    }

    #[test]
    fn other_keys_another_name_and_another_version_are_refused() {
        let (name, other): (RepositoryName, RepositoryName) = ("a".parse().unwrap(), "b".parse().unwrap());
        let mine = keys(&name);
        let signed = SignedRoot::sign(&root(&name, 1, b"x"), &mine).unwrap();
        let stranger = keys(&name).fingerprint();
        let verify = |bytes: &[u8], name: &RepositoryName, fingerprint: &Fingerprint| {
            SignedRoot::verify(bytes, name, fingerprint, NOW).unwrap_err()
        };
        assert!(matches!(verify(&signed, &name, &stranger), TrustError::OtherKeys { .. }));
        assert!(matches!(verify(&signed, &other, &mine.fingerprint()), TrustError::OtherRepository { .. }));
        let mut later = signed;
        later[8] = 2;
        assert_eq!(verify(&later, &name, &mine.fingerprint()), TrustError::Version { found: 2 });
        let long = vec![0; limits::ROOT_MAX_BYTES + 1];
        assert!(matches!(verify(&long, &name, &mine.fingerprint()), TrustError::TooLong { .. }));
    }

    #[test]
    fn a_delegation_does_not_carry_over_to_another_publishing_key() {
        let name: RepositoryName = "a".parse().unwrap();
        let (mine, thief) = (keys(&name), keys(&name));
        let forged = Keys { publishing: thief.publishing.clone(), ..mine };
        let signed = SignedRoot::sign(&root(&name, 1, b"x"), &forged).unwrap();
        let error = SignedRoot::verify(&signed, &name, &forged.fingerprint(), NOW).unwrap_err();
        assert_eq!(error, TrustError::Signature);
    }

    #[test]
    fn nonsense_is_not_signed() {
        let name: RepositoryName = "a".parse().unwrap();
        let keys = keys(&name);
        let mut nonsense = root(&name, 1, b"x");
        nonsense.root_catalog.plain_len = u32::MAX;
        assert!(matches!(SignedRoot::sign(&nonsense, &keys), Err(TrustError::Nonsense(_))));
        assert!(matches!(SignedRoot::sign(&root(&name, 0, b"x"), &keys), Err(TrustError::Nonsense(_))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_changed_byte_is_refused(at: usize, by in 1_u8..) {
            let name: RepositoryName = "a.example".parse().unwrap();
            let keys = keys(&name);
            let mut signed = SignedRoot::sign(&root(&name, 1, b"x"), &keys).unwrap();
            let at = at % signed.len();
            signed[at] = signed[at].wrapping_add(by);
            prop_assert!(SignedRoot::verify(&signed, &name, &keys.fingerprint(), NOW).is_err());
        }

        #[test]
        fn foreign_bytes_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
            let bytes = [&begin(MAGIC, VERSION)[..], &tail].concat();
            let _ = SignedRoot::claimed_repository(&bytes);
            let name: RepositoryName = "a".parse().unwrap();
            prop_assert!(SignedRoot::verify(&bytes, &name, &Fingerprint([0; 32]), NOW).is_err());
        }
    }
}
