//! Revocations: which nodes are no longer members, although their certificates have not expired.
//!
//! One numbered document, signed by the authority, lists all revocations that still matter. One of a newer key replaces
//! one of an older, whatever its number; of the lists of one key, the one with the highest number replaces the others.
//! So a rotation ends what somebody can do who stole the key before. A certificate of a listed node counts only if it was issued later
//! than [`MARGIN_S`] after the revocation: so a certificate that another authority issued meanwhile, or
//! with a clock that is behind, is revoked with it, and a node that is invited again gets one that counts.
//! An entry is dropped once no certificate or ticket from before it can count any more.
//!
//! As bytes (`docs/mesh-protocol.md`): version, key of the signer, signature, body (postcard).

use super::authority::{AuthorityKey, MeshId, MeshKeys, SIGNATURE_BYTES};
use super::charter::Charter;
use super::membership::CERTIFICATE_LIFE_MAX;
use crate::model::{NodeId, UnixTime};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Most revocations at a time. So many always fit, for the reasons of the oldest are cut where they have no room.
pub const REVOKED_MAX: usize = 1_024;
/// Most bytes of a reason.
pub const REASON_MAX_BYTES: usize = 64;
/// Most bytes of the document: what a message of the mesh may carry.
pub const REVOCATIONS_MAX_BYTES: usize = 64 << 10;
/// How much later than the revocation a certificate must have been issued to count, in seconds: as much as
/// clocks may differ.
pub(super) const MARGIN_S: u64 = 300;
/// How far ahead of the clock a revocation may lie to be carried on into a new list, in seconds: a day (guess: no clock
/// is further off for long, and a stolen key may have signed one that would bar its node for ever).
const AHEAD_MAX_S: u64 = 86_400;
/// Numbers from which on the lists of a newer key begin at one again. Below it they go on, for programs that know numbers
/// only; an honest authority does not come so far.
const NUMBERS_PLAUSIBLE: u64 = 1 << 32;
const VERSION: u8 = 1;
const HEAD_BYTES: usize = 1 + 32 + SIGNATURE_BYTES;
const DOMAIN: &str = "starling revocations 1";

/// One node's revocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// Whose membership ended.
    pub node: NodeId,
    /// When.
    pub at: UnixTime,
    /// When nothing from before it can count any more, and the entry may be dropped.
    pub until: UnixTime,
    /// Why, for people; at most [`REASON_MAX_BYTES`].
    pub reason: String,
}

impl Revocation {
    /// Whether it ends a certificate issued at `issued`.
    pub(super) fn covers(&self, issued: UnixTime) -> bool {
        issued.0 <= self.at.0.saturating_add(MARGIN_S)
    }

    /// When a certificate that shall count must be issued, at `now`.
    pub(super) fn earliest_after(&self, now: UnixTime) -> UnixTime {
        now.max(UnixTime(self.at.0.saturating_add(MARGIN_S + 1)))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Body {
    mesh: MeshId,
    number: u64,
    issued: UnixTime,
    entries: Vec<Revocation>,
}

/// Why a list of revocations is refused, or cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevocationError {
    /// The wrong number of bytes.
    #[error("a list of revocations of {len} bytes, {HEAD_BYTES} to {REVOCATIONS_MAX_BYTES} are possible")]
    Length {
        /// Bytes that came or would be needed.
        len: usize,
    },
    /// A format that this program does not know.
    #[error("list of revocations of version {found}; this program knows version {VERSION}")]
    Version {
        /// The version that was read.
        found: u8,
    },
    /// Signed by a key that is not known to be this mesh's.
    #[error("the list of revocations is signed by a key that is not known here")]
    UnknownKey,
    /// The signature is wrong.
    #[error("the list of revocations is not signed by the key that it names")]
    Signature,
    /// Signed, but not readable or out of bounds.
    #[error("the list of revocations is malformed: {detail}")]
    Malformed {
        /// What is wrong.
        detail: String,
    },
    /// The list that is known is of a newer key.
    #[error(
        "the newest key of the mesh signs the list of revocations: revoke on the authority where the key was rotated"
    )]
    OlderKey,
    /// The list that is known has the highest number that there is, which no honest authority gave it.
    #[error("no list of this key can replace the known one, which somebody else signed: rotate the key")]
    Exhausted,
    /// Too many at a time.
    #[error("{count} nodes are revoked, at most {REVOKED_MAX} can be at a time")]
    TooMany {
        /// Revocations that would matter.
        count: usize,
    },
    /// The reason is too long.
    #[error("a reason of {len} bytes, at most {REASON_MAX_BYTES} are possible")]
    Reason {
        /// Its length.
        len: usize,
    },
}

/// A verified list of revocations. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocations {
    /// `None` when nobody was ever revoked.
    signer: Option<AuthorityKey>,
    number: u64,
    issued: UnixTime,
    entries: BTreeMap<NodeId, Revocation>,
    bytes: Bytes,
}

impl Revocations {
    /// Nobody was ever revoked.
    pub(super) fn none() -> Self {
        Self { signer: None, number: 0, issued: UnixTime(0), entries: BTreeMap::new(), bytes: Bytes::new() }
    }

    /// Signs the next list: what still matters of this one and of `more`. `charter` tells which key is newer.
    ///
    /// # Errors
    /// [`RevocationError::OlderKey`], [`RevocationError::Exhausted`], [`RevocationError::Reason`],
    /// [`RevocationError::TooMany`] or [`RevocationError::Length`].
    pub(super) fn next(
        &self,
        keys: &MeshKeys,
        charter: &Charter,
        more: impl IntoIterator<Item = Revocation>,
        now: UnixTime,
    ) -> Result<Self, RevocationError> {
        let mut entries = self.entries.clone();
        for entry in more {
            // Of two revocations of one node the later ends more.
            let known = entries.entry(entry.node).or_insert_with(|| entry.clone());
            if entry.at > known.at {
                *known = entry;
            }
        }
        let ahead = UnixTime(now.0.saturating_add(AHEAD_MAX_S));
        entries.retain(|_, entry| entry.until > now && entry.at <= ahead);
        if charter.number_of(&keys.public()) < charter.number() {
            // Its lists count below those of the newest key, also where none of that has come yet.
            return Err(RevocationError::OlderKey);
        }
        let following = self.number.checked_add(1);
        let number = match self.key_number(charter).cmp(&charter.number_of(&keys.public())) {
            Ordering::Less => following.filter(|number| *number < NUMBERS_PLAUSIBLE).unwrap_or(1),
            Ordering::Equal => following.ok_or(RevocationError::Exhausted)?,
            Ordering::Greater => return Err(RevocationError::OlderKey),
        };
        let mut body =
            Body { mesh: keys.mesh(), number, issued: now, entries: entries.into_values().collect() };
        checked(&body)?;
        let encode = |body: &Body| {
            postcard::to_allocvec(body)
                .map_err(|error| RevocationError::Malformed { detail: error.to_string() })
        };
        let mut content = encode(&body)?;
        if content.len() + HEAD_BYTES > REVOCATIONS_MAX_BYTES {
            cut_reasons(&mut body.entries, content.len() + HEAD_BYTES - REVOCATIONS_MAX_BYTES);
            content = encode(&body)?;
        }
        let entries = checked(&body)?;
        let mut bytes = vec![VERSION];
        bytes.extend(keys.public().to_bytes());
        bytes.extend(keys.sign(DOMAIN, &content));
        bytes.extend(content);
        if bytes.len() > REVOCATIONS_MAX_BYTES {
            return Err(RevocationError::Length { len: bytes.len() });
        }
        Ok(Self { signer: Some(keys.public()), number, issued: now, entries, bytes: bytes.into() })
    }

    /// What a thief can sign: nobody is revoked, with the highest number.
    #[cfg(test)]
    pub(super) fn last_of(keys: &MeshKeys) -> Self {
        let before = Self { signer: Some(keys.public()), number: u64::MAX - 1, ..Self::none() };
        before
            .next(keys, &Charter::founded_by(keys.public()), [], UnixTime(0))
            .unwrap_or_else(|_| Self::none())
    }

    /// Reads a list that one of `keys` signed.
    ///
    /// # Errors
    /// [`RevocationError`]; [`RevocationError::UnknownKey`] may mean that a newer charter is missing here.
    pub fn parse(
        bytes: &[u8],
        mesh: MeshId,
        keys: impl IntoIterator<Item = AuthorityKey>,
    ) -> Result<Self, RevocationError> {
        let short = || RevocationError::Length { len: bytes.len() };
        if bytes.len() > REVOCATIONS_MAX_BYTES {
            return Err(short());
        }
        let (head, content) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or_else(short)?;
        let [version, rest @ ..] = head;
        if *version != VERSION {
            return Err(RevocationError::Version { found: *version });
        }
        let (key, signature) = rest.split_first_chunk::<32>().ok_or_else(short)?;
        let signature: &[u8; SIGNATURE_BYTES] = signature.try_into().map_err(|_| short())?;
        let signer =
            keys.into_iter().find(|known| known.to_bytes() == *key).ok_or(RevocationError::UnknownKey)?;
        if !signer.verify(DOMAIN, content, signature) {
            return Err(RevocationError::Signature);
        }
        let malformed = |detail: String| RevocationError::Malformed { detail };
        let (body, left) =
            postcard::take_from_bytes::<Body>(content).map_err(|error| malformed(error.to_string()))?;
        if !left.is_empty() {
            return Err(malformed(format!("{} bytes after its end", left.len())));
        }
        if body.mesh != mesh {
            return Err(malformed(format!("it is of mesh {}, not of {mesh}", body.mesh)));
        }
        let entries = checked(&body)?;
        let bytes = Bytes::copy_from_slice(bytes);
        Ok(Self { signer: Some(signer), number: body.number, issued: body.issued, entries, bytes })
    }

    /// Its number; 0 when there is none.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The entry of a node.
    pub(super) fn of(&self, node: &NodeId) -> Option<&Revocation> {
        self.entries.get(node)
    }

    /// All entries, by node.
    pub fn entries(&self) -> impl Iterator<Item = &Revocation> {
        self.entries.values()
    }

    /// The signed bytes; empty when nobody was ever revoked.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The number of the key that signed it, in `charter`.
    pub(super) fn key_number(&self, charter: &Charter) -> usize {
        self.signer.map_or(0, |key| charter.number_of(&key))
    }

    /// Whether a list of the charter's newest key is still to replace this one: after a rotation lists of the old key count
    /// for nothing, but only once there is one of the new key.
    pub(super) fn lacks_newest_key(&self, charter: &Charter) -> bool {
        charter.number() > 1 && self.key_number(charter) < charter.number()
    }

    /// Whether `other` is to replace this one. Two authorities may have signed different lists with one number
    /// at the same moment: then all choose the same, and the authorities sign one that has both.
    pub(super) fn is_older_than(&self, other: &Self, charter: &Charter) -> bool {
        let rank =
            |list: &Self| (list.key_number(charter), list.number, *blake3::hash(&list.bytes).as_bytes());
        rank(other) > rank(self)
    }

    /// Entries of this list that `other` lacks and that still matter at `now`.
    pub(super) fn missing_in<'a>(
        &'a self,
        other: &'a Self,
        now: UnixTime,
    ) -> impl Iterator<Item = &'a Revocation> {
        self.entries.values().filter(move |entry| {
            entry.until > now && other.of(&entry.node).is_none_or(|known| known.at < entry.at)
        })
    }
}

/// Takes `excess` bytes from the reasons, those of the oldest revocations first.
fn cut_reasons(entries: &mut [Revocation], mut excess: usize) {
    let mut oldest_first: Vec<&mut Revocation> = entries.iter_mut().collect();
    oldest_first.sort_by_key(|entry| (entry.at, entry.node));
    for entry in oldest_first {
        if excess == 0 {
            return;
        }
        let len = entry.reason.len();
        let mut keep = len.saturating_sub(excess);
        while !entry.reason.is_char_boundary(keep) {
            keep -= 1;
        }
        entry.reason.truncate(keep);
        excess = excess.saturating_sub(len - keep);
    }
}

fn checked(body: &Body) -> Result<BTreeMap<NodeId, Revocation>, RevocationError> {
    let count = body.entries.len();
    if count > REVOKED_MAX {
        return Err(RevocationError::TooMany { count });
    }
    let longest = CERTIFICATE_LIFE_MAX.as_secs().saturating_mul(4);
    let mut entries = BTreeMap::new();
    for entry in &body.entries {
        if entry.reason.len() > REASON_MAX_BYTES {
            return Err(RevocationError::Reason { len: entry.reason.len() });
        }
        if entry.until.0 > entry.at.0.saturating_add(longest) {
            let detail = format!("{} is revoked until {}, too long", entry.node, entry.until);
            return Err(RevocationError::Malformed { detail });
        }
        if entries.insert(entry.node, entry.clone()).is_some() {
            let detail = format!("{} is listed twice", entry.node);
            return Err(RevocationError::Malformed { detail });
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn entry(node: u8, at: u64) -> Revocation {
        let until = UnixTime(at + 1_000);
        Revocation { node: NodeId([node; 32]), at: UnixTime(at), until, reason: "stolen".into() }
    }

    fn charter(keys: &MeshKeys) -> Charter {
        Charter::founded_by(keys.public())
    }

    #[test]
    fn a_list_survives_bytes_and_names_its_signer() {
        let keys = MeshKeys::generate();
        let list = Revocations::none()
            .next(&keys, &charter(&keys), [entry(1, NOW.0), entry(2, NOW.0)], NOW)
            .unwrap();
        let read = Revocations::parse(list.bytes(), keys.mesh(), [keys.public()]).unwrap();
        assert_eq!((read.number(), &read), (1, &list));
        assert!(read.of(&NodeId([1; 32])).is_some() && read.of(&NodeId([3; 32])).is_none());
        let unknown = Revocations::parse(list.bytes(), keys.mesh(), []).unwrap_err();
        assert_eq!(unknown, RevocationError::UnknownKey);
    }

    #[test]
    fn a_certificate_from_shortly_after_is_revoked_too_and_one_of_a_new_invitation_is_not() {
        let entry = entry(1, NOW.0);
        assert!(entry.covers(UnixTime(NOW.0 - 86_400)) && entry.covers(UnixTime(NOW.0 + MARGIN_S)));
        let again = entry.earliest_after(UnixTime(NOW.0 + 1));
        assert!(!entry.covers(again));
    }

    #[test]
    fn what_no_longer_matters_is_dropped_and_the_rest_is_carried_on() {
        let keys = MeshKeys::generate();
        let list = Revocations::none().next(&keys, &charter(&keys), [entry(1, NOW.0)], NOW).unwrap();
        let later = UnixTime(NOW.0 + 600);
        let list = list.next(&keys, &charter(&keys), [entry(2, later.0)], later).unwrap();
        assert_eq!((list.number(), list.entries().count()), (2, 2));
        let last = UnixTime(NOW.0 + 1_000);
        let list = list.next(&keys, &charter(&keys), [], last).unwrap();
        assert_eq!(list.entries().map(|entry| entry.node.0[0]).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn of_two_lists_with_one_number_all_choose_the_same_and_the_other_entry_is_not_forgotten() {
        let keys = MeshKeys::generate();
        let one = Revocations::none().next(&keys, &charter(&keys), [entry(1, NOW.0)], NOW).unwrap();
        let two = Revocations::none().next(&keys, &charter(&keys), [entry(2, NOW.0)], NOW).unwrap();
        assert!(one.is_older_than(&two, &charter(&keys)) != two.is_older_than(&one, &charter(&keys)));
        let lost: Vec<_> = one.missing_in(&two, NOW).cloned().collect();
        assert_eq!(lost.len(), 1);
        let both = two.next(&keys, &charter(&keys), lost, NOW).unwrap();
        assert_eq!((both.number(), both.entries().count()), (2, 2));
        assert!(one.is_older_than(&both, &charter(&keys)) && two.is_older_than(&both, &charter(&keys)));
    }

    #[test]
    fn more_than_fit_and_too_long_a_reason_are_refused_with_their_number() {
        let keys = MeshKeys::generate();
        let many = (0..=REVOKED_MAX).map(|n| {
            let mut entry = entry(0, NOW.0);
            entry.node.0[..8].copy_from_slice(&(n as u64).to_be_bytes());
            entry
        });
        let error = Revocations::none().next(&keys, &charter(&keys), many, NOW).unwrap_err();
        assert_eq!(error, RevocationError::TooMany { count: REVOKED_MAX + 1 });
        let long = Revocation { reason: "x".repeat(65), ..entry(1, NOW.0) };
        let error = Revocations::none().next(&keys, &charter(&keys), [long], NOW).unwrap_err();
        assert_eq!(error, RevocationError::Reason { len: 65 });
    }

    #[test]
    fn as_many_as_may_be_revoked_fit_with_the_longest_reasons_and_the_newest_are_kept_whole() {
        let keys = MeshKeys::generate();
        let long = "ä".repeat(REASON_MAX_BYTES / 2);
        let many = (0..REVOKED_MAX as u64).map(|n| {
            let mut entry = Revocation { reason: long.clone(), ..entry(0, NOW.0 + n) };
            entry.node.0[..8].copy_from_slice(&n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
            entry
        });
        let list = Revocations::none().next(&keys, &charter(&keys), many, NOW).unwrap();
        assert!(
            list.bytes().len() <= REVOCATIONS_MAX_BYTES && list.bytes().len() > REVOCATIONS_MAX_BYTES - 64
        );
        let read = Revocations::parse(list.bytes(), keys.mesh(), [keys.public()]).unwrap();
        assert_eq!((&read, read.entries().count()), (&list, REVOKED_MAX));
        let newest = read.entries().max_by_key(|entry| entry.at).unwrap();
        let oldest = read.entries().min_by_key(|entry| entry.at).unwrap();
        assert_eq!((&*newest.reason, &*oldest.reason), (&*long, ""));
        // Also with the longest times that a list can state.
        let late = |n: u64| {
            let mut entry = Revocation { until: UnixTime(u64::MAX), ..entry(0, u64::MAX - 1_000) };
            entry.node.0[..8].copy_from_slice(&n.to_be_bytes());
            entry
        };
        let far = UnixTime(u64::MAX - 10);
        let many = (0..REVOKED_MAX as u64).map(late);
        assert!(Revocations::none().next(&keys, &charter(&keys), many, far).is_ok());
    }

    #[test]
    fn a_list_of_a_newer_key_replaces_every_list_of_an_older_one_and_not_the_other_way_round() {
        let old = MeshKeys::generate();
        let new = old.successor();
        let before = charter(&old);
        let after = before.rotated(&old, &new, NOW, std::time::Duration::from_secs(60)).unwrap();
        let next = |list: &Revocations, keys, charter| list.next(keys, charter, [entry(2, NOW.0)], NOW);
        let honest = next(&Revocations::none(), &old, &before).unwrap();
        let stolen = Revocations { number: u64::MAX, ..honest.clone() };
        assert_eq!(next(&stolen, &old, &before).unwrap_err(), RevocationError::Exhausted);
        let newer = next(&stolen, &new, &after).unwrap();
        assert_eq!((newer.number(), newer.entries().count()), (1, 1));
        assert!(stolen.is_older_than(&newer, &after) && !newer.is_older_than(&stolen, &after));
        let following = next(&newer, &new, &after).unwrap();
        assert!(newer.is_older_than(&following, &after));
        for known in [&newer, &honest, &Revocations::none()] {
            let refused = next(known, &old, &after).unwrap_err();
            assert_eq!(
                refused,
                RevocationError::OlderKey,
                "also where no list of the newer key has come yet"
            );
        }
        assert_eq!(next(&honest, &new, &after).unwrap().number(), 2, "older programs know numbers only");
    }

    #[test]
    fn a_revocation_from_far_ahead_is_not_carried_on() {
        let keys = MeshKeys::generate();
        let of = |at| Revocations::none().next(&keys, &charter(&keys), [entry(1, at)], UnixTime(at)).unwrap();
        let carried =
            |list: Revocations| list.next(&keys, &charter(&keys), [], NOW).unwrap().entries().count();
        assert_eq!(carried(of(NOW.0 + AHEAD_MAX_S)), 1, "a clock that is off");
        assert_eq!(carried(of(NOW.0 + AHEAD_MAX_S + 1)), 0, "a stolen key");
    }

    proptest! {
        #[test]
        fn an_altered_list_is_refused(at in 0usize..400, flip in 1u8..=255) {
            let keys = MeshKeys::from_seed(&[9; 32]);
            let list = Revocations::none().next(&keys, &charter(&keys), [entry(1, NOW.0)], NOW).unwrap();
            let mut bytes = list.bytes().to_vec();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            prop_assert!(Revocations::parse(&bytes, keys.mesh(), [keys.public()]).is_err());
        }

        #[test]
        fn a_signed_body_of_arbitrary_bytes_never_panics(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let keys = MeshKeys::from_seed(&[9; 32]);
            let mut bytes = vec![VERSION];
            bytes.extend(keys.public().to_bytes());
            bytes.extend(keys.sign(DOMAIN, &body));
            bytes.extend(&body);
            prop_assert!(Revocations::parse(&bytes, keys.mesh(), [keys.public()]).is_err());
            let _ = Revocations::parse(&body, keys.mesh(), [keys.public()]);
        }
    }
}
