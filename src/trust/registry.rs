//! What this node knows of repositories, durably: cards, and the newest root accepted of each.
//!
//! One directory a repository: `card-by-hand` and `card` (signed), `root`. Each file is replaced
//! whole and synced, so that after kill -9 the registry is as before or as after.

use super::card::{CARD_MAX_BYTES, CardError, RepositoryCard, STRATA_MAX, SignedCard};
use super::durable;
use super::root::{SignedRoot, Succession, TrustError, VerifiedRoot};
use super::sections::{parse, unparse};
use crate::ambient;
use crate::model::{ContentId, RepositoryName, limits};
use crate::seldom::Seldom;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most repositories that a node knows (guess: far above any site's number).
const REPOSITORIES_MAX: usize = 10_000;
const BY_HAND: &str = "card-by-hand";
const SIGNED: &str = "card";
const ROOT: &str = "root";
/// Peers can provoke these warnings, so they are written once a minute each.
static OTHER_FINGERPRINT: Seldom = Seldom::new(Duration::from_secs(60));
static TOO_MANY: Seldom = Seldom::new(Duration::from_secs(60));
static CONTRADICTION: Seldom = Seldom::new(Duration::from_secs(60));

/// Why the registry cannot do what it should.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The disk failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the registry holds something else.
    #[error("{path}: {detail}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A card is out of bounds.
    #[error(transparent)]
    Card(#[from] CardError),
    /// The repository is known under another fingerprint.
    #[error("{name} is known with the fingerprint {known}, not {given}")]
    OtherFingerprint {
        /// The repository.
        name: RepositoryName,
        /// What is known.
        known: super::Fingerprint,
        /// What was given.
        given: super::Fingerprint,
    },
    /// Too many repositories.
    #[error("{REPOSITORIES_MAX} repositories are known, which is the most")]
    Full,
}

/// What became of a card.
#[derive(Debug)]
pub enum CardVerdict {
    /// New or later than what was known; now stored.
    Fresh(RepositoryCard),
    /// Signed validly, but not adopted: known, older, for another fingerprint than the one that is
    /// known here, or beyond the bound on repositories.
    Known,
    /// Forged or malformed.
    Invalid(CardError),
}

/// What became of a root.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one is made a document and consumed at once")]
pub enum RootVerdict {
    /// Newer than what was accepted before; now stored. Whether it has expired stands in its
    /// [`super::Standing`]: a mount does not switch to an expired one.
    Fresh(VerifiedRoot),
    /// Exactly the newest root that was accepted.
    Known,
    /// Signed validly, and refused: an older revision, or another document for an accepted one.
    Older,
    /// There is no card for its repository, so it cannot be judged.
    UnknownRepository(RepositoryName),
    /// Forged or malformed.
    Invalid(TrustError),
}

#[derive(Clone, Debug, Default)]
struct Entry {
    by_hand: Option<RepositoryCard>,
    signed: Option<(RepositoryCard, Bytes)>,
    root: Option<VerifiedRoot>,
}

impl Entry {
    /// One card of both: strata given by hand come first.
    fn card(&self) -> Option<RepositoryCard> {
        let mut cards = self.by_hand.iter().chain(self.signed.as_ref().map(|(card, _)| card));
        let mut merged = cards.next()?.clone();
        for card in cards {
            for url in &card.strata {
                if !merged.strata.contains(url) && merged.strata.len() < STRATA_MAX {
                    merged.strata.push(url.clone());
                }
            }
            merged.issued = merged.issued.max(card.issued);
        }
        Some(merged)
    }
}

/// The registry of one node. Share it behind an `Arc`; calls block for a disk write at most.
#[derive(Debug)]
pub struct Repositories {
    directory: PathBuf,
    entries: Mutex<BTreeMap<RepositoryName, Entry>>,
    /// Held from the judgement of a document to its adoption, over the write: `entries` is not, so that nobody who
    /// only looks waits for a disk.
    changing: Mutex<()>,
}

impl Repositories {
    /// Opens the registry in `directory`, which is made when it is not there. Stored roots are verified again.
    ///
    /// # Errors
    /// [`RegistryError`] when the disk fails or a file is damaged; the error names it.
    pub fn open(directory: &Path) -> Result<Self, RegistryError> {
        let io = |source| RegistryError::Io { path: directory.to_owned(), source };
        std::fs::create_dir_all(directory).map_err(io)?;
        let mut entries = BTreeMap::new();
        for found in std::fs::read_dir(directory).map_err(io)? {
            let found = found.map_err(io)?;
            // Anything that is not a repository's name was not put here by the registry.
            let Some(name) = found.file_name().to_str().and_then(|n| n.parse::<RepositoryName>().ok()) else {
                continue;
            };
            if entries.len() >= REPOSITORIES_MAX {
                return Err(RegistryError::Full);
            }
            let entry = load(&found.path(), &name)?;
            if entry.card().is_some() {
                entries.insert(name, entry);
            }
        }
        Ok(Self { directory: directory.to_owned(), entries: Mutex::new(entries), changing: Mutex::new(()) })
    }

    /// Adds a card that an operator vouches for, or replaces the earlier one by hand.
    ///
    /// # Errors
    /// [`RegistryError::OtherFingerprint`] when what is known contradicts it; otherwise out of
    /// bounds, full, or a failing disk.
    pub fn add_by_hand(&self, card: RepositoryCard) -> Result<(), RegistryError> {
        card.check()?;
        let _changing = self.change();
        if let Some(known) = self.card(&card.name)
            && known.fingerprint != card.fingerprint
        {
            let (known, given) = (known.fingerprint, card.fingerprint);
            return Err(RegistryError::OtherFingerprint { name: card.name, known, given });
        }
        self.make_room(&card.name)?;
        self.write(&card.name, BY_HAND, &unparse(&card))?;
        let name = card.name.clone();
        self.lock().entry(name).or_default().by_hand = Some(card);
        Ok(())
    }

    /// Judges a signed card against the authority's public key, and stores it when it is fresh.
    ///
    /// # Errors
    /// [`RegistryError`] when the disk fails; nothing was adopted then.
    pub fn accept_card(&self, bytes: &[u8], authority: &[u8; 32]) -> Result<CardVerdict, RegistryError> {
        let card = match SignedCard::verify(bytes, authority) {
            Ok(card) => card,
            Err(error) => return Ok(CardVerdict::Invalid(error)),
        };
        let _changing = self.change();
        let known = self.lock().get(&card.name).cloned();
        if let Some(entry) = known {
            if entry.signed.as_ref().is_some_and(|(known, _)| known.issued >= card.issued) {
                return Ok(CardVerdict::Known);
            }
            if entry.card().is_some_and(|known| known.fingerprint != card.fingerprint) {
                if let Some(held_back) = OTHER_FINGERPRINT.pass() {
                    tracing::warn!(
                        repository = %card.name, fingerprint = %card.fingerprint, held_back,
                        "a signed card names another fingerprint than the one known here; it is not adopted"
                    );
                }
                return Ok(CardVerdict::Known);
            }
        }
        if self.make_room(&card.name).is_err() {
            if let Some(held_back) = TOO_MANY.pass() {
                tracing::warn!(repository = %card.name, held_back, "too many repositories are known; the card is not adopted");
            }
            return Ok(CardVerdict::Known);
        }
        self.write(&card.name, SIGNED, bytes)?;
        let signed = Some((card.clone(), Bytes::copy_from_slice(bytes)));
        self.lock().entry(card.name.clone()).or_default().signed = signed;
        Ok(CardVerdict::Fresh(card))
    }

    /// Judges a root, and stores it when it is newer than the newest accepted.
    ///
    /// # Errors
    /// [`RegistryError`] when the disk fails; nothing was adopted then.
    pub fn accept_root(&self, bytes: &[u8]) -> Result<RootVerdict, RegistryError> {
        let name = match SignedRoot::claimed_repository(bytes) {
            Ok(name) => name,
            Err(error) => return Ok(RootVerdict::Invalid(error)),
        };
        // Every neighbour tells of the newest root: most of what comes is this, and costs no signature.
        if self.newest_root(&name).is_some_and(|newest| newest.id() == ContentId::of(bytes)) {
            return Ok(RootVerdict::Known);
        }
        let _changing = self.change();
        let Some(card) = self.card(&name) else { return Ok(RootVerdict::UnknownRepository(name)) };
        let root = match SignedRoot::verify(bytes, &name, &card.fingerprint, ambient::unix_now()) {
            Ok(root) => root,
            Err(error) => return Ok(RootVerdict::Invalid(error)),
        };
        let accepted = self.newest_root(&name);
        match accepted.map_or(Succession::Newer, |accepted| root.succession(&accepted)) {
            Succession::Newer => {}
            Succession::Same => return Ok(RootVerdict::Known),
            Succession::Older => return Ok(RootVerdict::Older),
            Succession::Contradicts => {
                if let Some(held_back) = CONTRADICTION.pass() {
                    tracing::warn!(
                        repository = %name, revision = %root.root().revision, root = %root.id(), held_back,
                        "another root was accepted for this revision: are there two publishers?"
                    );
                }
                return Ok(RootVerdict::Older);
            }
        }
        self.write(&name, ROOT, bytes)?;
        self.lock().entry(name).or_default().root = Some(root.clone());
        Ok(RootVerdict::Fresh(root))
    }

    /// The newest root accepted.
    pub fn newest_root(&self, name: &RepositoryName) -> Option<VerifiedRoot> {
        self.lock().get(name)?.root.clone()
    }

    /// The newest root's document.
    pub fn root_bytes(&self, name: &RepositoryName) -> Option<Bytes> {
        Some(self.lock().get(name)?.root.as_ref()?.bytes().clone())
    }

    /// What is known of a repository, by hand and signed put together; strata by hand come first.
    pub fn card(&self, name: &RepositoryName) -> Option<RepositoryCard> {
        self.lock().get(name)?.card()
    }

    /// Whether the card of a repository was signed by an authority of the mesh, and goes through it.
    pub fn is_spread(&self, name: &RepositoryName) -> bool {
        self.lock().get(name).is_some_and(|entry| entry.signed.is_some())
    }

    /// All repositories known, by name.
    pub fn cards(&self) -> Vec<RepositoryCard> {
        self.lock().values().filter_map(Entry::card).collect()
    }

    /// The documents of all signed cards, by name.
    pub fn signed_cards(&self) -> Vec<Bytes> {
        self.lock().values().filter_map(|entry| Some(entry.signed.as_ref()?.1.clone())).collect()
    }

    /// The signed card and the newest root of each repository, by name: what a new member is told.
    pub fn documents(&self) -> Vec<(Option<Bytes>, Option<Bytes>)> {
        let documents = |entry: &Entry| {
            let card = entry.signed.as_ref().map(|(_, bytes)| bytes.clone());
            (card, entry.root.as_ref().map(|root| root.bytes().clone()))
        };
        self.lock().values().map(documents).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RepositoryName, Entry>> {
        // Each change is one assignment after the disk write, so a panic elsewhere leaves it whole.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make_room(&self, name: &RepositoryName) -> Result<(), RegistryError> {
        let (known, count) = {
            let entries = self.lock();
            (entries.contains_key(name), entries.len())
        };
        if known {
            return Ok(());
        }
        if count >= REPOSITORIES_MAX {
            return Err(RegistryError::Full);
        }
        let path = self.directory.join(name.as_str());
        std::fs::create_dir_all(&path)
            .and_then(|()| std::fs::File::open(&self.directory)?.sync_all())
            .map_err(|source| RegistryError::Io { path, source })
    }

    fn write(&self, name: &RepositoryName, file: &str, bytes: &[u8]) -> Result<(), RegistryError> {
        let path = self.directory.join(name.as_str()).join(file);
        durable::replace(&path, bytes, 0o644).map_err(|source| RegistryError::Io { path, source })
    }
}

fn load(directory: &Path, name: &RepositoryName) -> Result<Entry, RegistryError> {
    let read = |file: &str, most: usize| {
        let path = directory.join(file);
        durable::read(&path, most).map_err(|source| RegistryError::Io { path, source })
    };
    let damaged = |file: &str, detail: String| RegistryError::Damaged { path: directory.join(file), detail };
    let mut entry = Entry::default();
    if let Some(bytes) = read(BY_HAND, CARD_MAX_BYTES)? {
        let card: RepositoryCard = parse(&bytes).map_err(|error| damaged(BY_HAND, error.0.to_owned()))?;
        card.check().map_err(|error| damaged(BY_HAND, error.to_string()))?;
        entry.by_hand = Some(card);
    }
    if let Some(bytes) = read(SIGNED, CARD_MAX_BYTES)? {
        let card = SignedCard::read_stored(&bytes).map_err(|error| damaged(SIGNED, error.to_string()))?;
        entry.signed = Some((card, bytes.into()));
    }
    let names = entry.by_hand.iter().chain(entry.signed.as_ref().map(|(card, _)| card));
    if let Some(other) = names.map(|card| &card.name).find(|found| *found != name) {
        return Err(damaged(BY_HAND, format!("a card of {other}")));
    }
    if let (Some(card), Some(bytes)) = (entry.card(), read(ROOT, limits::ROOT_MAX_BYTES)?) {
        let root = SignedRoot::verify(&bytes, name, &card.fingerprint, ambient::unix_now())
            .map_err(|error| damaged(ROOT, error.to_string()))?;
        entry.root = Some(root);
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::super::keys::{Fingerprint, Keys};
    use super::super::root::tests::{NOW, keys, root};
    use super::*;
    use crate::model::UnixTime;
    use ed25519_dalek::SigningKey;

    fn name() -> RepositoryName {
        "sw.example.org".parse().unwrap()
    }

    fn card(fingerprint: Fingerprint, url: &str, issued: u64) -> RepositoryCard {
        RepositoryCard { name: name(), fingerprint, strata: vec![url.to_owned()], issued: UnixTime(issued) }
    }

    fn authority() -> ([u8; 32], [u8; 32]) {
        ([9; 32], SigningKey::from_bytes(&[9; 32]).verifying_key().to_bytes())
    }

    fn signed(keys: &Keys, revision: u64, signings: u32, content: &[u8]) -> Vec<u8> {
        let root = super::super::Root { signings, ..root(&name(), revision, content) };
        SignedRoot::sign(&root, keys).unwrap()
    }

    #[test]
    fn an_older_root_is_never_accepted_after_a_newer_one_even_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let keys = keys(&name());
        let registry = Repositories::open(dir.path()).unwrap();
        let accept = |registry: &Repositories, bytes: &[u8]| registry.accept_root(bytes).unwrap();
        let [one, two] = [signed(&keys, 1, 0, b"one"), signed(&keys, 2, 0, b"two")];
        assert!(matches!(accept(&registry, &one), RootVerdict::UnknownRepository(n) if n == name()));
        registry.add_by_hand(card(keys.fingerprint(), "http://h", 1)).unwrap();
        assert!(matches!(accept(&registry, &one), RootVerdict::Fresh(_)));
        assert!(matches!(accept(&registry, &one), RootVerdict::Known));
        assert!(matches!(accept(&registry, &two), RootVerdict::Fresh(_)));
        let again = Repositories::open(dir.path()).unwrap();
        for registry in [&registry, &again] {
            assert!(matches!(accept(registry, &one), RootVerdict::Older));
            assert!(matches!(accept(registry, &two), RootVerdict::Known));
            assert_eq!(registry.root_bytes(&name()).unwrap(), two);
            assert_eq!(registry.newest_root(&name()).unwrap().root().revision.0, 2);
        }
    }

    #[test]
    fn a_revision_may_be_signed_anew_but_not_get_other_content() {
        let dir = tempfile::tempdir().unwrap();
        let keys = keys(&name());
        let registry = Repositories::open(dir.path()).unwrap();
        registry.add_by_hand(card(keys.fingerprint(), "http://h", 1)).unwrap();
        let accept = |bytes: &[u8]| registry.accept_root(bytes).unwrap();
        assert!(matches!(accept(&signed(&keys, 3, 1, b"x")), RootVerdict::Fresh(_)));
        assert!(matches!(accept(&signed(&keys, 3, 0, b"x")), RootVerdict::Older));
        assert!(matches!(accept(&signed(&keys, 3, 1, b"y")), RootVerdict::Older));
        assert!(matches!(accept(&signed(&keys, 3, 2, b"y")), RootVerdict::Older));
        assert!(matches!(accept(&signed(&keys, 3, 2, b"x")), RootVerdict::Fresh(_)));
    }

    #[test]
    fn forged_roots_are_invalid() {
        let dir = tempfile::tempdir().unwrap();
        let (mine, stranger) = (keys(&name()), keys(&name()));
        let registry = Repositories::open(dir.path()).unwrap();
        registry.add_by_hand(card(mine.fingerprint(), "http://h", 1)).unwrap();
        let forged = signed(&stranger, 1, 0, b"x");
        let verdict = registry.accept_root(&forged).unwrap();
        assert!(matches!(verdict, RootVerdict::Invalid(TrustError::OtherKeys { .. })), "{verdict:?}");
        assert!(matches!(registry.accept_root(b"junk").unwrap(), RootVerdict::Invalid(_)));
        assert!(registry.newest_root(&name()).is_none());
    }

    #[test]
    fn cards_by_hand_and_signed_are_put_together() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Repositories::open(dir.path()).unwrap();
        let (secret, public) = authority();
        let fingerprint = Fingerprint([3; 32]);
        let sign = |url, issued| SignedCard::sign(&card(fingerprint, url, issued), &secret).unwrap();
        let accept = |bytes: &[u8]| registry.accept_card(bytes, &public).unwrap();
        assert!(matches!(accept(&sign("http://signed", 5)), CardVerdict::Fresh(_)));
        assert!(matches!(accept(&sign("http://signed", 5)), CardVerdict::Known));
        assert!(matches!(accept(&sign("http://older", 4)), CardVerdict::Known));
        assert!(matches!(accept(&sign("http://later", 6)), CardVerdict::Fresh(_)));
        registry.add_by_hand(card(fingerprint, "http://hand", 1)).unwrap();
        for registry in [&registry, &Repositories::open(dir.path()).unwrap()] {
            let card = registry.card(&name()).unwrap();
            assert_eq!(card.strata, ["http://hand", "http://later"]);
            assert_eq!(registry.cards(), [card]);
            assert_eq!(registry.signed_cards(), [Bytes::from(sign("http://later", 6))]);
        }
    }

    #[test]
    fn cards_that_contradict_each_other_are_not_adopted() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Repositories::open(dir.path()).unwrap();
        let (secret, public) = authority();
        let signed = SignedCard::sign(&card(Fingerprint([3; 32]), "http://h", 5), &secret).unwrap();
        assert!(matches!(registry.accept_card(&signed, &public).unwrap(), CardVerdict::Fresh(_)));
        let error = registry.add_by_hand(card(Fingerprint([4; 32]), "http://h", 6)).unwrap_err();
        assert!(matches!(error, RegistryError::OtherFingerprint { .. }), "{error}");
        let other = SignedCard::sign(&card(Fingerprint([4; 32]), "http://h", 7), &secret).unwrap();
        assert!(matches!(registry.accept_card(&other, &public).unwrap(), CardVerdict::Known));
        assert_eq!(registry.card(&name()).unwrap().fingerprint, Fingerprint([3; 32]));
        let stranger = registry.accept_card(&signed, &[1; 32]).unwrap();
        assert!(matches!(stranger, CardVerdict::Invalid(CardError::Signature)));
    }

    #[test]
    fn a_half_written_file_of_a_killed_process_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let keys = keys(&name());
        let registry = Repositories::open(dir.path()).unwrap();
        registry.add_by_hand(card(keys.fingerprint(), "http://h", 1)).unwrap();
        std::fs::write(dir.path().join(name().as_str()).join("root.new"), b"half a ro").unwrap();
        let again = Repositories::open(dir.path()).unwrap();
        assert!(again.newest_root(&name()).is_none());
        assert!(matches!(again.accept_root(&signed(&keys, 1, 0, b"x")).unwrap(), RootVerdict::Fresh(_)));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let keys = keys(&name());
        let registry = Repositories::open(dir.path()).unwrap();
        registry.add_by_hand(card(keys.fingerprint(), "http://h", NOW.0)).unwrap();
        std::fs::write(dir.path().join(name().as_str()).join(ROOT), b"damaged").unwrap();
        let error = Repositories::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("sw.example.org/root"), "{error}");
    }
}
