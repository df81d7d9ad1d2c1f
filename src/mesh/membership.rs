//! Membership certificates: who is a member of a mesh, where it is and what it may read.
//!
//! A mesh is named by its authority: the mesh's id is a hash of the authority's public key. The
//! authority signs a certificate for each member. As bytes (`docs/mesh-protocol.md`): version,
//! length of the body, body, signature over the raw body. The signature is checked before the body
//! is looked at.

use crate::model::{CellLabel, NodeId, RepositoryName, UnixTime};
use crate::trust::{CardError, RepositoryCard, SignedCard};
use bytes::Bytes;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// Most bytes of a certificate: it must fit a membership datagram together with an announcement.
pub const MEMBERSHIP_MAX_BYTES: usize = 800;
/// Most repositories that a certificate lists. (The byte bound is usually met first.)
pub const SCOPE_MAX_REPOSITORIES: usize = 32;
/// How far ahead of this node's clock a certificate may be issued, in seconds (guess: clocks without
/// a time server drift by minutes).
const CLOCK_SKEW_S: u64 = 300;
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 3;
const SIGNATURE_BYTES: usize = 64;
const DOMAIN: &str = "starling membership certificate 1";
const MESH_ID_CONTEXT: &str = "starling 2026-11 mesh id of an authority key";
const TICKET_CONTEXT: &str = "starling 2026-11 ticket key of an authority";

/// The name of a mesh: a hash of its authority's public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MeshId(pub [u8; 32]);

impl fmt::Display for MeshId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for MeshId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MeshId({}…)", data_encoding::HEXLOWER.encode(&self.0[..5]))
    }
}

/// What a member may do beyond reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// An ordinary member.
    Member,
    /// A member that certifies others; it holds the authority's key.
    Authority,
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
    #[error("the membership certificate is not signed by the authority of mesh {mesh}")]
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
    /// Thirty-two bytes that are no ed25519 public key.
    #[error("not an ed25519 public key: {}", data_encoding::HEXLOWER.encode(.0))]
    Key([u8; 32]),
}

/// The public key of a mesh's authority: all that is needed to recognise its members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthorityKey(VerifyingKey);

impl AuthorityKey {
    /// Reads a public key.
    ///
    /// # Errors
    /// [`MembershipError::Key`] when the bytes are not a (strong) ed25519 public key.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, MembershipError> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| MembershipError::Key(*bytes))?;
        if key.is_weak() { Err(MembershipError::Key(*bytes)) } else { Ok(Self(key)) }
    }

    /// The key as bytes.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The mesh that this authority governs.
    pub fn mesh(&self) -> MeshId {
        MeshId(blake3::derive_key(MESH_ID_CONTEXT, self.0.as_bytes()))
    }

    /// Whether the authority signed `body` for the purpose `domain`.
    pub fn verify(&self, domain: &str, body: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
        self.0.verify_strict(&signed_message(domain, body), &Signature::from_bytes(signature)).is_ok()
    }
}

/// What is signed: the purpose, a zero byte, the raw body. So no signature counts for another purpose.
pub(super) fn signed_message(domain: &str, body: &[u8]) -> Vec<u8> {
    debug_assert!(!domain.contains('\0'), "a purpose ends at the first zero byte");
    [domain.as_bytes(), &[0], body].concat()
}

/// Whether `node` signed `body` for the purpose `domain`.
pub fn node_signed(node: &NodeId, domain: &str, body: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
    VerifyingKey::from_bytes(&node.0).is_ok_and(|key| {
        key.verify_strict(&signed_message(domain, body), &Signature::from_bytes(signature)).is_ok()
    })
}

/// The authority's key pair. Whoever holds it decides who is a member.
pub struct MeshKeys {
    signing: SigningKey,
}

impl fmt::Debug for MeshKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MeshKeys({:?})", self.public().mesh())
    }
}

impl MeshKeys {
    /// The keys of a new mesh.
    pub fn generate() -> Self {
        Self::from_seed(&crate::ambient::secret())
    }

    /// The keys that grow from a stored seed.
    pub(super) fn from_seed(seed: &[u8; 32]) -> Self {
        Self { signing: SigningKey::from_bytes(seed) }
    }

    pub(super) fn seed(&self) -> &[u8; 32] {
        self.signing.as_bytes()
    }

    /// The public half.
    pub fn public(&self) -> AuthorityKey {
        AuthorityKey(self.signing.verifying_key())
    }

    /// Signs `body` for the purpose `domain`; [`AuthorityKey::verify`] checks it.
    pub fn sign(&self, domain: &str, body: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.signing.sign(&signed_message(domain, body)).to_bytes()
    }

    /// Signs a repository card, so that all members adopt it.
    ///
    /// # Errors
    /// [`CardError`] when the card is out of bounds.
    pub fn sign_card(&self, card: &RepositoryCard) -> Result<Vec<u8>, CardError> {
        SignedCard::sign(card, self.seed())
    }

    /// Certifies a member.
    ///
    /// # Errors
    /// [`MembershipError::WrongMesh`] when it is to be a member of another mesh,
    /// [`MembershipError::Malformed`] when the scope lists too many repositories,
    /// [`MembershipError::Length`] when the certificate would be longer than [`MEMBERSHIP_MAX_BYTES`].
    pub fn certify(&self, membership: Membership) -> Result<MembershipCert, MembershipError> {
        membership.check_shape(self.public().mesh())?;
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
        Ok(MembershipCert { membership: Arc::new(membership), bytes: bytes.into() })
    }

    /// The key from which the secrets of this authority's tickets are derived.
    pub(super) fn ticket_key(&self) -> [u8; 32] {
        blake3::derive_key(TICKET_CONTEXT, self.seed())
    }
}

impl Membership {
    fn check_shape(&self, mesh: MeshId) -> Result<(), MembershipError> {
        if self.mesh != mesh {
            return Err(MembershipError::WrongMesh { found: self.mesh, expected: mesh });
        }
        match &self.scope {
            Scope::Only(names) if names.len() > SCOPE_MAX_REPOSITORIES => Err(MembershipError::Malformed {
                detail: format!("{} repositories listed, at most {SCOPE_MAX_REPOSITORIES}", names.len()),
            }),
            _ => Ok(()),
        }
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
/// It exists only if the signature was right; whether it has expired is asked anew each time
/// ([`Membership::check_time`]).
#[derive(Clone, PartialEq, Eq)]
pub struct MembershipCert {
    membership: Arc<Membership>,
    bytes: Bytes,
}

impl MembershipCert {
    /// Reads a certificate and checks signature, mesh and time.
    ///
    /// # Errors
    /// [`MembershipError`] says what is wrong.
    pub fn verify(bytes: &[u8], authority: &AuthorityKey, now: UnixTime) -> Result<Self, MembershipError> {
        let certificate = Self::verify_signature(bytes, authority)?;
        certificate.check_time(now)?;
        Ok(certificate)
    }

    /// As [`MembershipCert::verify`], but an expired certificate passes.
    pub(super) fn verify_signature(bytes: &[u8], authority: &AuthorityKey) -> Result<Self, MembershipError> {
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
        let mesh = authority.mesh();
        if !authority.verify(DOMAIN, body, signature) {
            return Err(MembershipError::Signature { mesh });
        }
        let malformed = |detail: String| MembershipError::Malformed { detail };
        // What follows is signed, too, and for those who know it.
        let (membership, _newer) =
            postcard::take_from_bytes::<Membership>(body).map_err(|error| malformed(error.to_string()))?;
        membership.check_shape(mesh)?;
        Ok(Self { membership: Arc::new(membership), bytes: Bytes::copy_from_slice(bytes) })
    }

    /// The signed bytes, to show to others.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl Deref for MembershipCert {
    type Target = Membership;
    fn deref(&self) -> &Membership {
        &self.membership
    }
}

impl fmt::Debug for MembershipCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.membership.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn statement(keys: &MeshKeys) -> Membership {
        Membership {
            mesh: keys.public().mesh(),
            node: NodeId([7; 32]),
            cell: "eu/a/r1".parse().unwrap(),
            role: Role::Member,
            scope: Scope::Only(vec!["sw.example.org".parse().unwrap()]),
            issued: NOW,
            expires: UnixTime(NOW.0 + 100),
        }
    }

    #[test]
    fn a_certificate_survives_bytes_and_says_what_was_certified() {
        let keys = MeshKeys::generate();
        let signed = keys.certify(statement(&keys)).unwrap();
        let read = MembershipCert::verify(signed.bytes(), &keys.public(), NOW).unwrap();
        assert_eq!((&*read, &read), (&statement(&keys), &signed));
        assert!(read.scope.covers(&"sw.example.org".parse().unwrap()));
        assert!(!read.scope.covers(&"other.example.org".parse().unwrap()));
    }

    #[test]
    fn a_foreign_authority_an_old_and_a_future_certificate_are_refused() {
        let (keys, foreign) = (MeshKeys::generate(), MeshKeys::generate());
        let signed = keys.certify(statement(&keys)).unwrap();
        let check =
            |authority: &MeshKeys, now| MembershipCert::verify(signed.bytes(), &authority.public(), now);
        assert!(matches!(check(&foreign, NOW), Err(MembershipError::Signature { .. })));
        assert!(matches!(check(&keys, UnixTime(NOW.0 + 100)), Err(MembershipError::Expired { .. })));
        assert!(matches!(check(&keys, UnixTime(NOW.0 - 301)), Err(MembershipError::NotYet { .. })));
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
        let read = MembershipCert::verify(&bytes, &keys.public(), NOW).unwrap();
        assert_eq!(*read, *signed);
        assert_eq!(read.bytes(), &bytes, "it is shown to others as it was signed");
        bytes[0] = VERSION + 1;
        let error = MembershipCert::verify(&bytes, &keys.public(), NOW).unwrap_err();
        assert!(
            error.to_string().contains("version 2") && error.to_string().contains("version 1"),
            "{error}"
        );
    }

    #[test]
    fn a_signature_for_another_purpose_does_not_count() {
        let keys = MeshKeys::generate();
        let signature = keys.sign("one", b"body");
        assert!(keys.public().verify("one", b"body", &signature));
        assert!(!keys.public().verify("two", b"body", &signature));
        assert!(!keys.public().verify("one", b"other", &signature));
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
            prop_assert!(MembershipCert::verify(&bytes, &keys.public(), NOW).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
            let keys = MeshKeys::from_seed(&[9; 32]);
            prop_assert!(MembershipCert::verify(&bytes, &keys.public(), NOW).is_err());
        }

        #[test]
        fn a_signed_body_of_arbitrary_bytes_never_panics(body in proptest::collection::vec(any::<u8>(), 0..700)) {
            let keys = MeshKeys::from_seed(&[9; 32]);
            let mut bytes = vec![VERSION];
            bytes.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
            bytes.extend(&body);
            bytes.extend(keys.sign(DOMAIN, &body));
            let _ = MembershipCert::verify(&bytes, &keys.public(), NOW);
        }
    }
}
