//! The keys of a repository: which exist, what names them, and how a publisher keeps them.

use super::durable;
use super::sections::{is_signed, parse, sign, unparse};
use crate::ambient;
use crate::model::{RepositoryName, UnixTime};
use ed25519_dalek::SigningKey;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Most root keys of a repository (guess: TUF repositories have 3 to 5).
const ROOT_KEYS_MAX: usize = 16;
/// How long a delegation to a publishing key is good (guess: a yearly ceremony with the off-line key).
const DELEGATION_SPAN: Duration = Duration::from_secs(365 * 86_400);
/// A delegation with less than this ahead of it is renewed when the root key is at hand.
const DELEGATION_RENEWAL: Duration = Duration::from_secs(90 * 86_400);
/// Most bytes of any file in a key directory.
const FILE_MAX_BYTES: usize = 16 << 10;
const CONTEXT: &[u8] = b"starling delegation v1\0";

const ROOT_KEY: &str = "root.key";
const PUBLISHING_KEY: &str = "publishing.key";
const KEY_SET: &str = "root-keys";
const DELEGATION: &str = "delegation";

/// Names a repository's set of root keys: the BLAKE3 of its canonical bytes, shown in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        data_encoding::HEXLOWER
            .decode(text.as_bytes())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| KeyError::Fingerprint { found: text.chars().take(80).collect() })
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

/// What is wrong with keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A text is not a fingerprint.
    #[error("`{found}` is not a fingerprint: 64 of 0-9 and a-f")]
    Fingerprint {
        /// The offending text, shortened.
        found: String,
    },
    /// A key file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A key file holds something else.
    #[error("{path}: {detail}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The directory holds no keys.
    #[error("{directory}: no keys")]
    Missing {
        /// The directory.
        directory: PathBuf,
    },
    /// The keys belong to another repository.
    #[error("{directory}: these are the keys of `{found}`, not of `{wanted}`")]
    OtherRepository {
        /// The directory.
        directory: PathBuf,
        /// Whose they are.
        found: RepositoryName,
        /// Whose were wanted.
        wanted: RepositoryName,
    },
    /// The delegation has expired and the root key, which could renew it, is not there.
    #[error("the delegation to the publishing key expired on {expires}; put {path} back to renew it")]
    RootKeyNeeded {
        /// When.
        expires: UnixTime,
        /// The missing file.
        path: PathBuf,
    },
}

/// A repository's root keys, and how many of them must agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySet {
    pub(super) threshold: u8,
    pub(super) keys: Vec<[u8; 32]>,
}

impl KeySet {
    /// Parses canonical bytes: keys strictly ascending, a threshold that they can reach.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let set: Self = parse(bytes).ok()?;
        let ascending = set.keys.windows(2).all(|pair| pair[0] < pair[1]);
        let reachable = (1..=set.keys.len()).contains(&usize::from(set.threshold));
        // Postcard has more than one spelling of a number; only one is canonical.
        (ascending && reachable && set.keys.len() <= ROOT_KEYS_MAX && unparse(&set) == bytes).then_some(set)
    }

    pub(super) fn fingerprint_of(bytes: &[u8]) -> Fingerprint {
        Fingerprint(*blake3::hash(bytes).as_bytes())
    }

    /// Whether enough different root keys signed `delegation`.
    pub(super) fn agrees(&self, delegation: &[u8], signatures: &[(u8, [u8; 64])]) -> bool {
        let mut signers: Vec<u8> = signatures
            .iter()
            .filter(|(index, signature)| {
                self.keys
                    .get(usize::from(*index))
                    .is_some_and(|key| is_signed(key, CONTEXT, delegation, signature))
            })
            .map(|(index, _)| *index)
            .collect();
        signers.sort_unstable();
        signers.dedup();
        signers.len() >= usize::from(self.threshold)
    }
}

/// The root keys' permission to publish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Delegation {
    pub(super) repository: RepositoryName,
    pub(super) serial: u64,
    pub(super) key: [u8; 32],
    pub(super) issued: UnixTime,
    pub(super) expires: UnixTime,
}

/// What a publisher holds: the publishing key, the public key set, the signed delegation.
///
/// In a directory: `publishing.key` and `root.key` (mode 0600; 64 hexadecimal digits), `root-keys`
/// and `delegation` (public). `root.key` is needed only while a delegation is made or renewed.
pub struct Keys {
    pub(super) publishing: SigningKey,
    pub(super) key_set: Vec<u8>,
    pub(super) delegation: Vec<u8>,
    pub(super) signatures: Vec<(u8, [u8; 64])>,
    pub(super) repository: RepositoryName,
    pub(super) expires: UnixTime,
    pub(super) created: bool,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("fingerprint", &self.fingerprint()).finish_non_exhaustive()
    }
}

/// What the file `delegation` holds.
#[derive(Serialize, Deserialize)]
struct DelegationFile {
    delegation: Vec<u8>,
    signatures: Vec<(u8, Signature)>,
}

/// An ed25519 signature as two halves, since serde knows arrays up to 32.
#[derive(Serialize, Deserialize)]
struct Signature([u8; 32], [u8; 32]);

impl Keys {
    /// Names the repository to those who are to trust it.
    pub fn fingerprint(&self) -> Fingerprint {
        KeySet::fingerprint_of(&self.key_set)
    }

    /// Whether [`Keys::open_or_create`] has just made them.
    pub fn were_created(&self) -> bool {
        self.created
    }

    /// When the delegation ends: a root signed after that is not fresh.
    pub fn expires(&self) -> UnixTime {
        self.expires
    }

    /// The keys of `repository` in `directory`. A delegation that ends soon is renewed when the root
    /// key is there.
    ///
    /// # Errors
    /// [`KeyError`]; [`KeyError::Missing`] when there are none.
    pub fn open(directory: &Path, repository: &RepositoryName, now: UnixTime) -> Result<Self, KeyError> {
        let at = |name: &str| directory.join(name);
        let (Some(publishing), Some(key_set)) = (read_secret(&at(PUBLISHING_KEY))?, read(&at(KEY_SET))?)
        else {
            return Err(KeyError::Missing { directory: directory.to_owned() });
        };
        let damaged =
            |name: &str, detail: &str| KeyError::Damaged { path: at(name), detail: detail.to_owned() };
        let set = KeySet::parse(&key_set).ok_or_else(|| damaged(KEY_SET, "not a set of root keys"))?;
        let stored = match read(&at(DELEGATION))? {
            None => None,
            Some(bytes) => {
                let file: DelegationFile =
                    parse(&bytes).map_err(|_| damaged(DELEGATION, "not a delegation"))?;
                let delegation: Delegation =
                    parse(&file.delegation).map_err(|_| damaged(DELEGATION, "not a delegation"))?;
                let signatures: Vec<_> = file.signatures.iter().map(|(index, s)| (*index, join(s))).collect();
                if !set.agrees(&file.delegation, &signatures) {
                    return Err(damaged(DELEGATION, "it is not signed by the root keys"));
                }
                if delegation.repository != *repository {
                    return Err(KeyError::OtherRepository {
                        directory: directory.to_owned(),
                        found: delegation.repository,
                        wanted: repository.clone(),
                    });
                }
                Some((file.delegation, signatures, delegation))
            }
        };
        let public = publishing.verifying_key().to_bytes();
        let good = stored
            .as_ref()
            .is_some_and(|(_, _, d)| d.key == public && d.expires > now.after(DELEGATION_RENEWAL));
        let serial = stored.as_ref().map_or(1, |(_, _, d)| d.serial.saturating_add(1));
        let root_key = if good { None } else { read_secret(&at(ROOT_KEY))? };
        let (delegation, signatures, expires) = match (root_key, stored) {
            (Some(root_key), _) => {
                let index = set.keys.iter().position(|key| *key == root_key.verifying_key().to_bytes());
                let index = index.ok_or_else(|| damaged(ROOT_KEY, "not one of the root keys"))?;
                let expires = now.after(DELEGATION_SPAN);
                let delegation = unparse(&Delegation {
                    repository: repository.clone(),
                    serial,
                    key: public,
                    issued: now,
                    expires,
                });
                let signature = sign(&root_key, CONTEXT, &delegation);
                let index = u8::try_from(index).expect("at most ROOT_KEYS_MAX keys");
                if set.threshold != 1 {
                    return Err(damaged(KEY_SET, "this version renews delegations by one root key only"));
                }
                let file = DelegationFile {
                    delegation: delegation.clone(),
                    signatures: vec![(index, split(&signature))],
                };
                write(&at(DELEGATION), &unparse(&file), 0o644)?;
                (delegation, vec![(index, signature)], expires)
            }
            (None, Some((bytes, signatures, d))) if d.key == public && d.expires > now => {
                (bytes, signatures, d.expires)
            }
            (None, Some((_, _, d))) if d.key != public => {
                return Err(damaged(PUBLISHING_KEY, "the delegation is for another publishing key"));
            }
            (None, Some((_, _, d))) => {
                return Err(KeyError::RootKeyNeeded { expires: d.expires, path: at(ROOT_KEY) });
            }
            (None, None) => return Err(damaged(ROOT_KEY, "there is neither a delegation nor the root key")),
        };
        let repository = repository.clone();
        Ok(Self { publishing, key_set, delegation, signatures, repository, expires, created: false })
    }

    /// As [`Keys::open`], but makes new keys where there are none. Killed half-way, the next call
    /// goes on with what is there.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn open_or_create(
        directory: &Path,
        repository: &RepositoryName,
        now: UnixTime,
    ) -> Result<Self, KeyError> {
        match Self::open(directory, repository, now) {
            Err(KeyError::Missing { .. }) => {}
            other => return other,
        }
        let at = |name: &str| directory.join(name);
        if read(&at(DELEGATION))?.is_some() {
            return Err(KeyError::Damaged {
                path: at(DELEGATION),
                detail: "there is a delegation, but the publishing key or the set of root keys is missing"
                    .into(),
            });
        }
        std::fs::create_dir_all(directory)
            .map_err(|source| KeyError::Io { path: directory.to_owned(), source })?;
        let root_key = read_or_make_secret(&at(ROOT_KEY))?;
        read_or_make_secret(&at(PUBLISHING_KEY))?;
        let set = KeySet { threshold: 1, keys: vec![root_key.verifying_key().to_bytes()] };
        write(&at(KEY_SET), &unparse(&set), 0o644)?;
        Ok(Self { created: true, ..Self::open(directory, repository, now)? })
    }
}

fn split(signature: &[u8; 64]) -> Signature {
    let (mut first, mut second) = ([0; 32], [0; 32]);
    first.copy_from_slice(&signature[..32]);
    second.copy_from_slice(&signature[32..]);
    Signature(first, second)
}

fn join(signature: &Signature) -> [u8; 64] {
    let mut joined = [0; 64];
    joined[..32].copy_from_slice(&signature.0);
    joined[32..].copy_from_slice(&signature.1);
    joined
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, KeyError> {
    durable::read(path, FILE_MAX_BYTES).map_err(|source| KeyError::Io { path: path.to_owned(), source })
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), KeyError> {
    durable::replace(path, bytes, mode).map_err(|source| KeyError::Io { path: path.to_owned(), source })
}

fn read_secret(path: &Path) -> Result<Option<SigningKey>, KeyError> {
    let Some(text) = read(path)? else { return Ok(None) };
    let seed =
        data_encoding::HEXLOWER.decode(text.trim_ascii()).ok().and_then(|s| <[u8; 32]>::try_from(s).ok());
    seed.map(|seed| Some(SigningKey::from_bytes(&seed))).ok_or_else(|| KeyError::Damaged {
        path: path.to_owned(),
        detail: "a key is 64 hexadecimal digits".to_owned(),
    })
}

fn read_or_make_secret(path: &Path) -> Result<SigningKey, KeyError> {
    if let Some(key) = read_secret(path)? {
        return Ok(key);
    }
    let seed: [u8; 32] = ambient::secret();
    write(path, format!("{}\n", data_encoding::HEXLOWER.encode(&seed)).as_bytes(), 0o600)?;
    Ok(SigningKey::from_bytes(&seed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn name(text: &str) -> RepositoryName {
        text.parse().unwrap()
    }

    #[test]
    fn secret_keys_are_readable_by_their_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Keys::open_or_create(dir.path(), &name("a"), NOW).unwrap().were_created());
        for file in [ROOT_KEY, PUBLISHING_KEY] {
            let mode = std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn keys_are_found_again_and_the_root_key_may_be_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let made = Keys::open_or_create(dir.path(), &name("a"), NOW).unwrap();
        std::fs::remove_file(dir.path().join(ROOT_KEY)).unwrap();
        let found = Keys::open_or_create(dir.path(), &name("a"), NOW).unwrap();
        assert_eq!((found.fingerprint(), found.were_created()), (made.fingerprint(), false));
        let late = made.expires().after(Duration::from_secs(1));
        assert!(matches!(Keys::open(dir.path(), &name("a"), late), Err(KeyError::RootKeyNeeded { .. })));
    }

    #[test]
    fn the_delegation_is_renewed_while_the_root_key_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let made = Keys::open_or_create(dir.path(), &name("a"), NOW).unwrap();
        let renewed = Keys::open(dir.path(), &name("a"), made.expires()).unwrap();
        assert!(renewed.expires() > made.expires() && renewed.fingerprint() == made.fingerprint());
    }

    #[test]
    fn making_keys_goes_on_where_it_was_killed() {
        for gone in [&[DELEGATION][..], &[DELEGATION, KEY_SET], &[DELEGATION, KEY_SET, PUBLISHING_KEY]] {
            let dir = tempfile::tempdir().unwrap();
            let made = Keys::open_or_create(dir.path(), &name("a"), NOW).unwrap();
            for file in gone {
                std::fs::remove_file(dir.path().join(file)).unwrap();
            }
            let again = Keys::open_or_create(dir.path(), &name("a"), NOW).unwrap();
            assert_eq!(again.fingerprint(), made.fingerprint(), "{gone:?}");
        }
    }

    #[test]
    fn keys_of_another_repository_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        Keys::open_or_create(dir.path(), &name("a"), NOW).unwrap();
        let error = Keys::open_or_create(dir.path(), &name("b"), NOW).unwrap_err();
        assert!(matches!(error, KeyError::OtherRepository { .. }), "{error}");
    }

    #[test]
    fn one_key_that_signs_twice_counts_once() {
        let keys = [1_u8, 2].map(|n| SigningKey::from_bytes(&[n; 32]));
        let mut public = keys.each_ref().map(|key| key.verifying_key().to_bytes()).to_vec();
        public.sort_unstable();
        let index = |key: &SigningKey| {
            u8::try_from(public.iter().position(|p| *p == key.verifying_key().to_bytes()).unwrap()).unwrap()
        };
        let set = KeySet { threshold: 2, keys: public.clone() };
        assert_eq!(KeySet::parse(&unparse(&set)), Some(set.clone()));
        let [one, two] = keys.each_ref().map(|key| (index(key), sign(key, CONTEXT, b"text")));
        assert!(!set.agrees(b"text", &[one, one]));
        assert!(set.agrees(b"text", &[one, two]));
        assert!(!set.agrees(b"other", &[one, two]));
    }

    #[test]
    fn only_canonical_key_sets_are_read() {
        let bad = [
            KeySet { threshold: 0, keys: vec![[1; 32]] },
            KeySet { threshold: 2, keys: vec![[1; 32]] },
            KeySet { threshold: 1, keys: vec![[2; 32], [1; 32]] },
            KeySet { threshold: 1, keys: vec![[1; 32], [1; 32]] },
        ];
        for set in bad {
            assert_eq!(KeySet::parse(&unparse(&set)), None, "{set:?}");
        }
        // One key, its count spelled in two bytes.
        let long = [&[1, 0x81, 0][..], &[1; 32]].concat();
        assert_eq!(KeySet::parse(&long), None);
    }
}
