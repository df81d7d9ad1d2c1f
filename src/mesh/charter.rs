//! The charter of a mesh: which authority keys it has had, each signed by the one before.
//!
//! The mesh is named by its first key for ever. A rotation appends a link: the next key, signed by the
//! key before it (so that members follow) and by itself (so that nobody appoints a key that he does not
//! hold). The link says until when the earlier keys count beside it. A member follows only a charter that
//! begins with the one that it has: of two that part, the one that came first stays.
//!
//! As bytes (`docs/mesh-protocol.md`): version, first key, number of links, links of one length.

use super::authority::{AuthorityKey, MeshId, MeshKeys, SIGNATURE_BYTES};
use super::membership::MembershipError;
use crate::model::UnixTime;
use bytes::Bytes;
use std::time::Duration;

/// Most rotations of one mesh: one a month for twenty years.
pub const ROTATIONS_MAX: usize = 256;
/// Most keys that count at a time, so that judging a forged certificate costs a bounded number of checks. One that is
/// appointed beyond them retires the oldest, [`DROP_NOTICE`] later.
pub const COUNTING_MAX: usize = 3;
/// How long a key counts that is retired by one too many: clocks may differ by 300 s, and beyond that a minute (guess: the
/// charter reaches who is connected within a second or two, and each has a new certificate within three eighths of the rest;
/// at once, nobody could tell them any more).
pub const DROP_NOTICE: Duration = Duration::from_secs(360);
/// Bytes of the longest charter.
pub(super) const CHARTER_MAX_BYTES: usize = HEAD_BYTES + ROTATIONS_MAX * LINK_BYTES;
const VERSION: u8 = 1;
const HEAD_BYTES: usize = 1 + 32 + 2;
const LINK_BYTES: usize = 32 + 8 + 8 + 2 * SIGNATURE_BYTES;
const DOMAIN: &str = "starling authority key 1";

/// Why a charter is refused, or a key cannot be rotated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CharterError {
    /// A format that this program does not know.
    #[error("charter of version {found}; this program knows version {VERSION}")]
    Version {
        /// The version that was read.
        found: u8,
    },
    /// The wrong number of bytes.
    #[error("a charter of {len} bytes; with {links} links it has {expected}")]
    Length {
        /// Bytes that came.
        len: usize,
        /// Links that it states.
        links: usize,
        /// Bytes that those take.
        expected: usize,
    },
    /// Too many links.
    #[error("a charter with {found} rotations, at most {ROTATIONS_MAX} are possible")]
    TooMany {
        /// Links that it states.
        found: usize,
    },
    /// It begins with the key of another mesh.
    #[error("the charter is of mesh {found}, not of {expected}")]
    WrongMesh {
        /// The mesh of its first key.
        found: MeshId,
        /// The mesh at hand.
        expected: MeshId,
    },
    /// A key is no ed25519 key.
    #[error(transparent)]
    Key(#[from] MembershipError),
    /// A link that one of its two keys did not sign.
    #[error("key {number} of the charter is not signed by {by}")]
    Signature {
        /// Number of the key; the first is 1.
        number: usize,
        /// Who should have signed.
        by: &'static str,
    },
    /// The keys at hand are not the newest.
    #[error("key {number} of the mesh is newer than the key that is to be rotated")]
    NotNewest {
        /// Number of the newest key.
        number: usize,
    },
    /// An earlier rotation is not over.
    #[error("{counting} keys count already, at most {COUNTING_MAX} may: wait until {until}")]
    Overlapping {
        /// Keys that count now.
        counting: usize,
        /// When the next of them retires.
        until: UnixTime,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Link {
    key: AuthorityKey,
    issued: UnixTime,
    /// The first second at which the keys before it no longer count.
    previous_until: UnixTime,
    signatures: [[u8; SIGNATURE_BYTES]; 2],
}

/// The keys of a mesh, all signatures checked. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charter {
    first: AuthorityKey,
    links: Vec<Link>,
    bytes: Bytes,
}

/// How long the keys before a new one count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// From now on.
    pub span: Duration,
    /// Where [`COUNTING_MAX`] keys count already: whether the oldest retires after [`DROP_NOTICE`]. Otherwise there is no new one.
    pub drop_oldest: bool,
}

impl From<Duration> for Overlap {
    fn from(span: Duration) -> Self {
        Self { span, drop_oldest: false }
    }
}

/// How another charter relates to the one that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    /// It says the same.
    Same,
    /// It lacks the newest keys.
    Older,
    /// It has all that is known, and more.
    Newer,
    /// It has another key in the place of a known one.
    Contradicts,
}

/// What both keys of a link sign.
fn statement(mesh: MeshId, number: usize, before: &AuthorityKey, link: &Link) -> Vec<u8> {
    let number = u16::try_from(number).unwrap_or(u16::MAX);
    [
        &mesh.0[..],
        &number.to_be_bytes(),
        &before.to_bytes(),
        &link.key.to_bytes(),
        &link.issued.0.to_be_bytes(),
        &link.previous_until.0.to_be_bytes(),
    ]
    .concat()
}

impl Charter {
    /// The charter of a new mesh.
    pub fn founded_by(key: AuthorityKey) -> Self {
        Self::of(key, Vec::new())
    }

    fn of(first: AuthorityKey, links: Vec<Link>) -> Self {
        let mut bytes = vec![VERSION];
        bytes.extend(first.to_bytes());
        bytes.extend(u16::try_from(links.len()).unwrap_or(u16::MAX).to_be_bytes());
        for link in &links {
            bytes.extend(link.key.to_bytes());
            bytes.extend(link.issued.0.to_be_bytes());
            bytes.extend(link.previous_until.0.to_be_bytes());
            link.signatures.iter().for_each(|signature| bytes.extend(signature));
        }
        Self { first, links, bytes: bytes.into() }
    }

    /// Reads a charter and checks every signature.
    ///
    /// # Errors
    /// [`CharterError`] says what is wrong.
    pub fn parse(bytes: &[u8], mesh: MeshId) -> Result<Self, CharterError> {
        let length = |links, expected| CharterError::Length { len: bytes.len(), links, expected };
        let (head, mut rest) =
            bytes.split_first_chunk::<HEAD_BYTES>().ok_or_else(|| length(0, HEAD_BYTES))?;
        let [version, middle @ .., high, low] = head;
        if *version != VERSION {
            return Err(CharterError::Version { found: *version });
        }
        let links = usize::from(u16::from_be_bytes([*high, *low]));
        if links > ROTATIONS_MAX {
            return Err(CharterError::TooMany { found: links });
        }
        let expected = HEAD_BYTES + links * LINK_BYTES;
        if bytes.len() != expected {
            return Err(length(links, expected));
        }
        let first = AuthorityKey::from_bytes(middle)?;
        if first.mesh() != mesh {
            return Err(CharterError::WrongMesh { found: first.mesh(), expected: mesh });
        }
        let mut read = Vec::with_capacity(links);
        let mut before = first;
        while let Some((link, after)) = rest.split_first_chunk::<LINK_BYTES>() {
            let link = read_link(link)?;
            let number = read.len() + 2;
            let said = statement(mesh, number, &before, &link);
            let signers = [(&before, "the key before it"), (&link.key, "itself")];
            for ((key, by), signature) in signers.iter().zip(&link.signatures) {
                if !key.verify(DOMAIN, &said, signature) {
                    return Err(CharterError::Signature { number, by });
                }
            }
            before = link.key;
            read.push(link);
            rest = after;
        }
        Ok(Self { first, links: read, bytes: Bytes::copy_from_slice(bytes) })
    }

    /// Reads a charter of whatever mesh it is.
    ///
    /// # Errors
    /// [`CharterError`] says what is wrong.
    pub(super) fn parse_any(bytes: &[u8]) -> Result<Self, CharterError> {
        let first = bytes.get(1..33).and_then(|key| <&[u8; 32]>::try_from(key).ok());
        let short = CharterError::Length { len: bytes.len(), links: 0, expected: HEAD_BYTES };
        Self::parse(bytes, AuthorityKey::from_bytes(first.ok_or(short)?)?.mesh())
    }

    /// Appends the key of `new`, signed by `old`, which must be the newest. `overlap` says how long the keys before it count.
    ///
    /// # Errors
    /// [`CharterError::NotNewest`], [`CharterError::Overlapping`], [`CharterError::TooMany`].
    pub(super) fn rotated(
        &self,
        old: &MeshKeys,
        new: &MeshKeys,
        now: UnixTime,
        overlap: impl Into<Overlap>,
    ) -> Result<Self, CharterError> {
        let overlap = overlap.into();
        if old.public() != self.newest() {
            return Err(CharterError::NotNewest { number: self.number() });
        }
        if self.links.len() >= ROTATIONS_MAX {
            return Err(CharterError::TooMany { found: self.links.len() + 1 });
        }
        let counting = self.counting(now).count();
        // While one is on notice, a further one would end its time before all have heard.
        if counting > COUNTING_MAX || counting == COUNTING_MAX && !overlap.drop_oldest {
            let until = self.keys().map(|(_, retires)| retires).filter(|retires| *retires > now).min();
            return Err(CharterError::Overlapping { counting, until: until.unwrap_or(now) });
        }
        let issued = if counting >= COUNTING_MAX { now.after(DROP_NOTICE) } else { now };
        let empty = [[0; SIGNATURE_BYTES]; 2];
        let mut link =
            Link { key: new.public(), issued, previous_until: now.after(overlap.span), signatures: empty };
        let said = statement(self.mesh(), self.number() + 1, &self.newest(), &link);
        link.signatures = [old.sign(DOMAIN, &said), new.sign(DOMAIN, &said)];
        let mut links = self.links.clone();
        links.push(link);
        Ok(Self::of(self.first, links))
    }

    /// The mesh.
    pub fn mesh(&self) -> MeshId {
        self.first.mesh()
    }

    /// Number of the newest key; the first is 1.
    pub fn number(&self) -> usize {
        self.links.len() + 1
    }

    /// Number of `key`; the first is 1, and one that is none of the mesh's has 0.
    pub fn number_of(&self, key: &AuthorityKey) -> usize {
        let newest_first = self.keys().position(|(known, _)| known == *key);
        newest_first.map_or(0, |position| self.number() - position)
    }

    /// The newest key.
    pub fn newest(&self) -> AuthorityKey {
        self.links.last().map_or(self.first, |link| link.key)
    }

    /// Until when the keys before the newest one count; `None` when there was no rotation.
    pub fn overlap_until(&self) -> Option<UnixTime> {
        self.links.last().map(|link| link.previous_until)
    }

    /// All keys that the mesh has had, newest first, each with the first second at which it no longer counts.
    pub(super) fn keys(&self) -> impl Iterator<Item = (AuthorityKey, UnixTime)> {
        let in_order = std::iter::once(self.first).chain(self.links.iter().map(|link| link.key));
        // A key retires when the first of the later links says so, or when too many were appointed after it.
        let mut retires = UnixTime(u64::MAX);
        let mut all: Vec<_> = in_order.enumerate().collect();
        all.reverse();
        all.into_iter().map(move |(at, key)| {
            if let Some(next) = self.links.get(at) {
                retires = retires.min(next.previous_until);
            }
            if let Some(one_too_many) = self.links.get(at + COUNTING_MAX - 1) {
                retires = retires.min(one_too_many.issued);
            }
            (key, retires)
        })
    }

    /// The key that a further one would retire, because too many would count at `now`.
    pub fn next_dropped(&self, now: UnixTime) -> Option<AuthorityKey> {
        self.counting(now).nth(COUNTING_MAX - 1)
    }

    /// The keys that count at `now`, newest first; one more than may while that is given notice.
    pub(super) fn counting(&self, now: UnixTime) -> impl Iterator<Item = AuthorityKey> {
        self.keys().filter(move |(_, retires)| now < *retires).map(|(key, _)| key).take(COUNTING_MAX + 1)
    }

    /// The signed bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// How `other` relates to this one.
    pub(super) fn relation_of(&self, other: &Self) -> Relation {
        let common = self.links.len().min(other.links.len());
        if self.first != other.first || self.links[..common] != other.links[..common] {
            return Relation::Contradicts;
        }
        match other.links.len().cmp(&self.links.len()) {
            std::cmp::Ordering::Less => Relation::Older,
            std::cmp::Ordering::Equal => Relation::Same,
            std::cmp::Ordering::Greater => Relation::Newer,
        }
    }
}

fn read_link(bytes: &[u8; LINK_BYTES]) -> Result<Link, CharterError> {
    let (mut key, mut issued, mut until) = ([0; 32], [0; 8], [0; 8]);
    let mut signatures = [[0; SIGNATURE_BYTES]; 2];
    key.copy_from_slice(&bytes[..32]);
    issued.copy_from_slice(&bytes[32..40]);
    until.copy_from_slice(&bytes[40..48]);
    signatures[0].copy_from_slice(&bytes[48..112]);
    signatures[1].copy_from_slice(&bytes[112..]);
    Ok(Link {
        key: AuthorityKey::from_bytes(&key)?,
        issued: UnixTime(u64::from_be_bytes(issued)),
        previous_until: UnixTime(u64::from_be_bytes(until)),
        signatures,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);
    const DAY: Duration = Duration::from_secs(86_400);

    /// A charter with `rotations`, a day apart with two days of overlap, and its keys.
    pub(in crate::mesh) fn rotated(rotations: usize) -> (Charter, Vec<MeshKeys>) {
        let mut keys = vec![MeshKeys::generate()];
        let mut charter = Charter::founded_by(keys[0].public());
        for rotation in 0..rotations {
            let next = keys[rotation].successor();
            let now = UnixTime(NOW.0 + rotation as u64 * DAY.as_secs());
            charter = charter.rotated(&keys[rotation], &next, now, 2 * DAY).unwrap();
            keys.push(next);
        }
        (charter, keys)
    }

    #[test]
    fn members_follow_from_the_first_key_to_the_newest_and_the_mesh_keeps_its_name() {
        let (charter, keys) = rotated(3);
        let read = Charter::parse(charter.bytes(), keys[0].mesh()).unwrap();
        assert_eq!(read, charter);
        assert_eq!((read.mesh(), read.number(), read.newest()), (keys[0].mesh(), 4, keys[3].public()));
    }

    #[test]
    fn both_keys_count_in_the_overlap_and_the_old_one_not_after_it() {
        let (charter, keys) = rotated(1);
        let counting = |at: u64| charter.counting(UnixTime(at)).collect::<Vec<_>>();
        assert_eq!(counting(NOW.0), [keys[1].public(), keys[0].public()]);
        assert_eq!(counting(NOW.0 + 2 * 86_400 - 1).len(), 2);
        assert_eq!(counting(NOW.0 + 2 * 86_400), [keys[1].public()]);
    }

    #[test]
    fn a_key_does_not_outlive_what_any_later_link_says() {
        let (charter, keys) = rotated(1);
        let third = keys[1].successor();
        let short = charter.rotated(&keys[1], &third, NOW, Duration::from_secs(5)).unwrap();
        let at: Vec<_> = short.counting(UnixTime(NOW.0 + 5)).collect();
        assert_eq!(at, [third.public()], "the second rotation retired the first key, too");
    }

    #[test]
    fn too_many_keys_at_a_time_and_a_key_that_is_not_the_newest_are_refused() {
        let (charter, keys) = rotated(1);
        let now = UnixTime(NOW.0 + 1);
        let third = keys[1].successor();
        let charter = charter.rotated(&keys[1], &third, now, DAY).unwrap();
        let fourth = third.successor();
        let error = charter.rotated(&third, &fourth, now, DAY).unwrap_err();
        assert!(matches!(error, CharterError::Overlapping { counting: 3, .. }), "{error}");
        let error = charter.rotated(&keys[0], &fourth, now, DAY).unwrap_err();
        assert!(matches!(error, CharterError::NotNewest { number: 3 }), "{error}");
    }

    #[test]
    fn the_oldest_of_too_many_keys_is_dropped_soon_if_that_is_said_and_everybody_sees_it_alike() {
        let (charter, keys) = rotated(1);
        let now = UnixTime(NOW.0 + 1);
        let third = keys[1].successor();
        assert_eq!(charter.next_dropped(now), None);
        let charter = charter.rotated(&keys[1], &third, now, DAY).unwrap();
        assert_eq!(charter.next_dropped(now), Some(keys[0].public()));
        let (fourth, later) = (third.successor(), UnixTime(NOW.0 + 60));
        let overlap = Overlap { span: DAY, drop_oldest: true };
        let charter = charter.rotated(&third, &fourth, later, overlap).unwrap();
        let read = Charter::parse(charter.bytes(), charter.mesh()).unwrap();
        let dropped_at = later.after(DROP_NOTICE);
        assert_eq!(read.counting(later).last(), Some(keys[0].public()), "it hears of it, and renews");
        let counting: Vec<_> = read.counting(dropped_at).collect();
        assert_eq!(counting, [fourth.public(), third.public(), keys[1].public()]);
        let retires = read.keys().find(|(key, _)| *key == keys[0].public()).unwrap().1;
        assert_eq!(retires, dropped_at, "a certificate of it is judged as one of a retired key");
        let fifth = fourth.successor();
        let error = charter.rotated(&fourth, &fifth, later, overlap).unwrap_err();
        assert_eq!(
            error,
            CharterError::Overlapping { counting: 4, until: dropped_at },
            "its notice is not cut short"
        );
        let charter = charter.rotated(&fourth, &fifth, dropped_at, overlap).unwrap();
        assert_eq!(
            charter.counting(dropped_at).last(),
            Some(keys[1].public()),
            "the next has its own notice"
        );
    }

    #[test]
    fn charters_that_part_are_told_from_those_that_go_on() {
        let (two, keys) = rotated(2);
        let one = Charter::of(two.first, two.links[..1].to_vec());
        assert_eq!(one.relation_of(&two), Relation::Newer);
        assert_eq!(two.relation_of(&one), Relation::Older);
        assert_eq!(two.relation_of(&two), Relation::Same);
        let fork = one.rotated(&keys[1], &keys[1].successor(), NOW, DAY).unwrap();
        assert_eq!(two.relation_of(&fork), Relation::Contradicts);
    }

    #[test]
    fn a_stranger_appoints_no_key_and_nobody_appoints_a_key_that_he_does_not_hold() {
        let (charter, keys) = rotated(1);
        let (mut forged, stranger) = (charter.clone(), MeshKeys::generate());
        let said = statement(charter.mesh(), 2, &keys[0].public(), &charter.links[0]);
        for (at, by) in [(0, "the key before it"), (1, "itself")] {
            let mut links = charter.links.clone();
            links[0].signatures[at] = stranger.sign(DOMAIN, &said);
            forged = Charter::of(forged.first, links);
            let error = Charter::parse(forged.bytes(), charter.mesh()).unwrap_err();
            assert_eq!(error, CharterError::Signature { number: 2, by });
            forged = charter.clone();
        }
        let other = Charter::parse(charter.bytes(), MeshKeys::generate().mesh()).unwrap_err();
        assert!(matches!(other, CharterError::WrongMesh { .. }), "{other}");
    }

    proptest! {
        #[test]
        fn an_altered_charter_is_refused(at in 0usize..400, flip in 1u8..=255) {
            let (charter, keys) = rotated(2);
            let mut bytes = charter.bytes().to_vec();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            prop_assert!(Charter::parse(&bytes, keys[0].mesh()).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mesh = MeshKeys::from_seed(&[9; 32]).mesh();
            prop_assert!(Charter::parse(&bytes, mesh).is_err());
            let mut known = vec![VERSION];
            known.extend(MeshKeys::from_seed(&[9; 32]).public().to_bytes());
            known.extend(&bytes);
            let _ = Charter::parse(&known, mesh);
        }
    }
}
