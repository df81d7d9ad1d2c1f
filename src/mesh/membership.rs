//! Membership certificates: who is a member of a mesh, where it is and what it may read.
//!
//! The mesh's authority signs a certificate for each member. As bytes (`docs/mesh-protocol.md`): version,
//! length of the body, body, signature over the raw body. The signature is checked before the body
//! is looked at. Whether a certificate counts is more than its own signature and time: see
//! [`super::MeshTrust`].

use super::authority::{AuthorityKey, MeshId, MeshKeys, SIGNATURE_BYTES};
use crate::model::{CellLabel, NodeId, RepositoryName, UnixTime};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Most bytes of a certificate: it must fit a membership datagram together with an announcement.
pub const MEMBERSHIP_MAX_BYTES: usize = 800;
/// Most repositories that a certificate lists. (The byte bound is usually met first.)
pub const SCOPE_MAX_REPOSITORIES: usize = 32;
/// How far ahead of this node's clock a certificate may be issued, in seconds: clocks may differ by 300
/// (guess: without a time server they drift by minutes), and a certificate that follows a revocation is
/// issued that much ahead of its authority's clock.
const CLOCK_SKEW_S: u64 = 600;
/// Longest life of a certificate, and longest that a ticket counts: what a revocation must outlive.
pub const CERTIFICATE_LIFE_MAX: Duration = Duration::from_secs(30 * 86_400);
/// Shortest life of a certificate: half of it must suffice to reach an authority (guess; less than minutes
/// is for tests).
pub const CERTIFICATE_LIFE_MIN: Duration = Duration::from_secs(6);
/// Life of a certificate unless the authority is set otherwise: a node that is off for a night renews in
/// time, and one that was lost is out in a day even if nobody revokes it (guess).
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(86_400);
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 3;
const DOMAIN: &str = "starling membership certificate 1";

/// What a member may do beyond reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// An ordinary member.
    Member,
    /// A member that certifies others; it holds the authority's key.
    Authority,
    /// A member with much disk and bandwidth: it is home of [`SEED_SHARE`] times as many slices as an
    /// ordinary one, and joiners are told of it first.
    Seed,
}

/// How many ordinary members' share of slices a seed has (guess: ten times the disk, and some caution).
pub const SEED_SHARE: u16 = 4;

/// A text that is no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not a role: write member, seed or authority")]
pub struct ParseRoleError {
    /// The offending text, shortened.
    pub found: String,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Member => "member",
            Self::Authority => "authority",
            Self::Seed => "seed",
        })
    }
}

impl FromStr for Role {
    type Err = ParseRoleError;
    fn from_str(text: &str) -> Result<Self, ParseRoleError> {
        match text {
            "member" => Ok(Self::Member),
            "authority" => Ok(Self::Authority),
            "seed" => Ok(Self::Seed),
            other => Err(ParseRoleError { found: other.chars().take(32).collect() }),
        }
    }
}

/// Which repositories a member may read from its neighbours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// All of them.
    All,
    /// These, at most [`SCOPE_MAX_REPOSITORIES`].
    Only(Vec<RepositoryName>),
}

impl Scope {
    /// Whether `repository` may be read.
    pub fn covers(&self, repository: &RepositoryName) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(repository),
        }
    }

    /// The repositories, or nothing when it is all of them.
    pub fn names(&self) -> Option<&[RepositoryName]> {
        match self {
            Self::All => None,
            Self::Only(names) => Some(names),
        }
    }

    /// All when `names` is empty, else only these.
    ///
    /// # Errors
    /// [`MembershipError::Malformed`] when there are more than [`SCOPE_MAX_REPOSITORIES`].
    pub fn of_names(mut names: Vec<RepositoryName>) -> Result<Self, MembershipError> {
        names.sort_unstable();
        names.dedup();
        let scope = if names.is_empty() { Self::All } else { Self::Only(names) };
        scope.check()?;
        Ok(scope)
    }

    pub(super) fn check(&self) -> Result<(), MembershipError> {
        match self {
            Self::Only(names) if names.len() > SCOPE_MAX_REPOSITORIES => Err(MembershipError::Malformed {
                detail: format!("{} repositories listed, at most {SCOPE_MAX_REPOSITORIES}", names.len()),
            }),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Only(names) => {
                let names: Vec<_> = names.iter().map(RepositoryName::as_str).collect();
                f.write_str(&names.join(","))
            }
        }
    }
}

/// What a certificate states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The mesh.
    pub mesh: MeshId,
    /// The member.
    pub node: NodeId,
    /// Where it is.
    pub cell: CellLabel,
    /// What it may do.
    pub role: Role,
    /// What it may read.
    pub scope: Scope,
    /// When it was signed.
    pub issued: UnixTime,
    /// The first second at which it no longer counts.
    pub expires: UnixTime,
}

/// Why a certificate is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// The wrong number of bytes.
    #[error("a membership certificate of {len} bytes (its header and the bounds allow {expected})")]
    Length {
        /// Bytes that came.
        len: usize,
        /// Bytes that the header states, or the bound.
        expected: usize,
    },
    /// A format that this program does not know.
    #[error("membership certificate of version {found}; this program knows version {VERSION}")]
    Version {
        /// The version that was read.
        found: u8,
    },
    /// Not signed by this mesh's authority.
    #[error("the membership certificate is not signed by a key that counts in mesh {mesh}")]
    Signature {
        /// The mesh that was expected.
        mesh: MeshId,
    },
    /// Signed, but not readable.
    #[error("the membership certificate's body is malformed: {detail}")]
    Malformed {
        /// What is wrong.
        detail: String,
    },
    /// For another mesh.
    #[error("the membership certificate is for mesh {found}, not {expected}")]
    WrongMesh {
        /// The mesh in the certificate.
        found: MeshId,
        /// This node's mesh.
        expected: MeshId,
    },
    /// For another node than the one that shows it.
    #[error("the membership certificate is for node {certified}, shown by {shown_by}")]
    WrongNode {
        /// The node in the certificate.
        certified: NodeId,
        /// The node that shows it.
        shown_by: NodeId,
    },
    /// No longer valid.
    #[error("the membership of {node} expired at {at}")]
    Expired {
        /// The member.
        node: NodeId,
        /// When.
        at: UnixTime,
    },
    /// Not yet valid by this node's clock.
    #[error("the membership of {node} begins at {at}: is this machine's clock right?")]
    NotYet {
        /// The member.
        node: NodeId,
        /// When.
        at: UnixTime,
    },
    /// Its authority has taken it back.
    #[error("the membership of {node} was revoked at {at}")]
    Revoked {
        /// The member.
        node: NodeId,
        /// When.
        at: UnixTime,
    },
    /// Signed by an authority key that was rotated out.
    #[error("the membership of {node} is signed by an authority key that was retired at {at}")]
    RetiredKey {
        /// The member.
        node: NodeId,
        /// When.
        at: UnixTime,
    },
    /// Thirty-two bytes that are no ed25519 public key.
    #[error("not an ed25519 public key: {}", data_encoding::HEXLOWER.encode(.0))]
    Key([u8; 32]),
}

impl MeshKeys {
    /// Certifies a member.
    ///
    /// # Errors
    /// [`MembershipError::WrongMesh`] when it is to be a member of another mesh,
    /// [`MembershipError::Malformed`] when the scope lists too many repositories,
    /// [`MembershipError::Length`] when the certificate would be longer than [`MEMBERSHIP_MAX_BYTES`].
    pub fn certify(&self, membership: Membership) -> Result<MembershipCert, MembershipError> {
        membership.check_shape(self.mesh())?;
        let body = postcard::to_allocvec(&membership)
            .map_err(|error| MembershipError::Malformed { detail: error.to_string() })?;
        let total = HEADER_BYTES + body.len() + SIGNATURE_BYTES;
        let too_long = MembershipError::Length { len: total, expected: MEMBERSHIP_MAX_BYTES };
        if total > MEMBERSHIP_MAX_BYTES {
            return Err(too_long);
        }
        let body_len = u16::try_from(body.len()).map_err(|_| too_long)?;
        let mut bytes = Vec::with_capacity(total);
        bytes.push(VERSION);
        bytes.extend(body_len.to_be_bytes());
        bytes.extend(&body);
        bytes.extend(self.sign(DOMAIN, &body));
        Ok(MembershipCert { signed: Arc::new((membership, self.public())), bytes: bytes.into() })
    }
}

impl Membership {
    fn check_shape(&self, mesh: MeshId) -> Result<(), MembershipError> {
        if self.mesh != mesh {
            return Err(MembershipError::WrongMesh { found: self.mesh, expected: mesh });
        }
        self.scope.check()
    }

    /// Whether the certificate counts at `now`.
    ///
    /// # Errors
    /// [`MembershipError::Expired`] or [`MembershipError::NotYet`].
    pub fn check_time(&self, now: UnixTime) -> Result<(), MembershipError> {
        if now >= self.expires {
            return Err(MembershipError::Expired { node: self.node, at: self.expires });
        }
        if self.issued.0 > now.0.saturating_add(CLOCK_SKEW_S) {
            return Err(MembershipError::NotYet { node: self.node, at: self.issued });
        }
        Ok(())
    }
}

/// A verified membership certificate: its statement and the signed bytes. Cheap to clone.
///
/// It exists only if the signature was right; whether it counts now is asked anew each time
/// ([`super::MeshTrust::check`]).
#[derive(Clone, PartialEq, Eq)]
pub struct MembershipCert {
    /// What it states, and who signed it: shared, because every peer and connection holds one.
    signed: Arc<(Membership, AuthorityKey)>,
    bytes: Bytes,
}

impl MembershipCert {
    /// Reads a certificate of `mesh` that one of `keys` signed. It may have expired.
    ///
    /// # Errors
    /// [`MembershipError`] says what is wrong.
    pub(super) fn read(
        bytes: &[u8],
        mesh: MeshId,
        keys: impl IntoIterator<Item = AuthorityKey>,
    ) -> Result<Self, MembershipError> {
        if !(HEADER_BYTES + SIGNATURE_BYTES..=MEMBERSHIP_MAX_BYTES).contains(&bytes.len()) {
            return Err(MembershipError::Length { len: bytes.len(), expected: MEMBERSHIP_MAX_BYTES });
        }
        let (header, rest) = bytes.split_at(HEADER_BYTES);
        if header[0] != VERSION {
            return Err(MembershipError::Version { found: header[0] });
        }
        let body_len = usize::from(u16::from_be_bytes([header[1], header[2]]));
        let expected = HEADER_BYTES + body_len + SIGNATURE_BYTES;
        let Some((body, signature)) = rest.split_at_checked(body_len) else {
            return Err(MembershipError::Length { len: bytes.len(), expected });
        };
        let signature: &[u8; SIGNATURE_BYTES] =
            signature.try_into().map_err(|_| MembershipError::Length { len: bytes.len(), expected })?;
        let signer = keys
            .into_iter()
            .find(|key| key.verify(DOMAIN, body, signature))
            .ok_or(MembershipError::Signature { mesh })?;
        let malformed = |detail: String| MembershipError::Malformed { detail };
        // What follows is signed, too, and for those who know it.
        let (membership, _newer) =
            postcard::take_from_bytes::<Membership>(body).map_err(|error| malformed(error.to_string()))?;
        membership.check_shape(mesh)?;
        Ok(Self { signed: Arc::new((membership, signer)), bytes: Bytes::copy_from_slice(bytes) })
    }

    /// Whether it replaces the certificate `known` of the same node.
    pub(super) fn supersedes(&self, known: &Self) -> bool {
        self.issued > known.issued || (self.issued == known.issued && self.bytes != known.bytes)
    }

    /// The authority's key that signed it.
    pub fn signer(&self) -> AuthorityKey {
        self.signed.1
    }

    /// The signed bytes, to show to others.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl Deref for MembershipCert {
    type Target = Membership;
    fn deref(&self) -> &Membership {
        &self.signed.0
    }
}

impl fmt::Debug for MembershipCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.signed.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn statement(keys: &MeshKeys) -> Membership {
        Membership {
            mesh: keys.mesh(),
            node: NodeId([7; 32]),
            cell: "eu/a/r1".parse().unwrap(),
            role: Role::Member,
            scope: Scope::Only(vec!["sw.example.org".parse().unwrap()]),
            issued: NOW,
            expires: UnixTime(NOW.0 + 100),
        }
    }

    fn read(bytes: &[u8], keys: &MeshKeys) -> Result<MembershipCert, MembershipError> {
        MembershipCert::read(bytes, keys.mesh(), [keys.public()])
    }

    #[test]
    fn a_certificate_survives_bytes_and_says_what_was_certified() {
        let keys = MeshKeys::generate();
        let signed = keys.certify(statement(&keys)).unwrap();
        let read = read(signed.bytes(), &keys).unwrap();
        assert_eq!((&*read, &read), (&statement(&keys), &signed));
        assert!(read.scope.covers(&"sw.example.org".parse().unwrap()));
        assert!(!read.scope.covers(&"other.example.org".parse().unwrap()));
    }

    #[test]
    fn a_foreign_authority_an_old_and_a_future_certificate_are_refused() {
        let (keys, foreign) = (MeshKeys::generate(), MeshKeys::generate());
        let signed = keys.certify(statement(&keys)).unwrap();
        let check =
            |authority: &MeshKeys, now| read(signed.bytes(), authority).and_then(|cert| cert.check_time(now));
        assert!(matches!(check(&foreign, NOW), Err(MembershipError::Signature { .. })));
        assert!(matches!(check(&keys, UnixTime(NOW.0 + 100)), Err(MembershipError::Expired { .. })));
        assert!(matches!(check(&keys, UnixTime(NOW.0 - 601)), Err(MembershipError::NotYet { .. })));
        assert!(matches!(foreign.certify(statement(&keys)), Err(MembershipError::WrongMesh { .. })));
    }

    #[test]
    fn what_a_newer_authority_adds_is_ignored_and_another_version_is_refused_by_its_number() {
        let keys = MeshKeys::generate();
        let signed = keys.certify(statement(&keys)).unwrap();
        let body = &signed.bytes()[HEADER_BYTES..signed.bytes().len() - SIGNATURE_BYTES];
        let longer = [body, b"a field of a newer program"].concat();
        let mut bytes = vec![VERSION];
        bytes.extend(u16::try_from(longer.len()).unwrap().to_be_bytes());
        bytes.extend(&longer);
        bytes.extend(keys.sign(DOMAIN, &longer));
        let certificate = read(&bytes, &keys).unwrap();
        assert_eq!(*certificate, *signed);
        assert_eq!(certificate.bytes(), &bytes, "it is shown to others as it was signed");
        bytes[0] = VERSION + 1;
        let error = read(&bytes, &keys).unwrap_err().to_string();
        let (newer, ours) = (format!("version {}", VERSION + 1), format!("version {VERSION}"));
        assert!(error.contains(&newer) && error.contains(&ours), "{error}");
    }

    #[test]
    fn a_clock_that_is_minutes_off_refuses_nobody() {
        let keys = MeshKeys::generate();
        let signed = keys.certify(statement(&keys)).unwrap();
        for skew in [-300, -60, 60] {
            assert_eq!(signed.check_time(UnixTime(NOW.0.saturating_add_signed(skew))), Ok(()), "{skew}");
        }
    }

    #[test]
    fn roles_and_scopes_are_read_as_they_are_written() {
        for role in [Role::Member, Role::Authority, Role::Seed] {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        assert!("root".parse::<Role>().unwrap_err().to_string().contains("root"));
        let two = ["b.example.org", "a.example.org", "b.example.org"].map(|name| name.parse().unwrap());
        assert_eq!(Scope::of_names(two.to_vec()).unwrap().to_string(), "a.example.org,b.example.org");
        assert_eq!(Scope::of_names(vec![]).unwrap(), Scope::All);
    }

    #[test]
    fn a_scope_that_does_not_fit_is_refused_when_it_is_signed() {
        let keys = MeshKeys::generate();
        let with = |count: usize, len: usize| {
            let names = (0..count).map(|i| format!("{i:0>len$}").parse().unwrap()).collect();
            keys.certify(Membership { scope: Scope::Only(names), ..statement(&keys) })
        };
        assert!(with(32, 4).is_ok());
        assert!(matches!(with(33, 4), Err(MembershipError::Malformed { .. })));
        assert!(matches!(with(8, 128), Err(MembershipError::Length { .. })));
    }

    proptest! {
        #[test]
        fn a_changed_certificate_is_refused(at in 0usize..800, flip in 1u8..=255) {
            let keys = MeshKeys::from_seed(&[9; 32]);
            let mut bytes = keys.certify(statement(&keys)).unwrap().bytes().to_vec();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            prop_assert!(read(&bytes, &keys).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
            let keys = MeshKeys::from_seed(&[9; 32]);
            prop_assert!(read(&bytes, &keys).is_err());
        }

        #[test]
        fn a_signed_body_of_arbitrary_bytes_never_panics(body in proptest::collection::vec(any::<u8>(), 0..700)) {
            let keys = MeshKeys::from_seed(&[9; 32]);
            let mut bytes = vec![VERSION];
            bytes.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
            bytes.extend(&body);
            bytes.extend(keys.sign(DOMAIN, &body));
            let _ = read(&bytes, &keys);
        }
    }
}
