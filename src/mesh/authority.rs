//! The key of a mesh's authority, and how anything is signed in a mesh.
//!
//! Every signature is over a purpose, a zero byte and the raw bytes, so that none counts for another
//! purpose.

use super::membership::MembershipError;
use crate::model::NodeId;
use crate::trust::{CardError, RepositoryCard, SignedCard};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes of a signature.
pub(super) const SIGNATURE_BYTES: usize = 64;
const MESH_ID_CONTEXT: &str = "starling 2026-11 mesh id of an authority key";

/// The name of a mesh: a hash of its first authority key. It stays when the key is rotated.
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

/// A public key of a mesh's authority.
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

    /// The mesh whose first key this is.
    pub fn mesh(&self) -> MeshId {
        MeshId(blake3::derive_key(MESH_ID_CONTEXT, self.0.as_bytes()))
    }

    /// Whether the authority signed `body` for the purpose `domain`.
    pub fn verify(&self, domain: &str, body: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
        self.0.verify_strict(&signed_message(domain, body), &Signature::from_bytes(signature)).is_ok()
    }
}

/// What is signed: the purpose, a zero byte, the raw body.
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
    mesh: MeshId,
}

impl fmt::Debug for MeshKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MeshKeys({:?})", self.mesh)
    }
}

impl MeshKeys {
    /// The first keys of a new mesh.
    pub fn generate() -> Self {
        Self::from_seed(&crate::ambient::secret())
    }

    /// The first keys of a mesh, grown from a stored seed.
    pub(super) fn from_seed(seed: &[u8; 32]) -> Self {
        let signing = SigningKey::from_bytes(seed);
        let mesh = AuthorityKey(signing.verifying_key()).mesh();
        Self { signing, mesh }
    }

    /// Keys of `mesh`, whether they are its first or later ones.
    pub(super) fn of_mesh(seed: &[u8; 32], mesh: MeshId) -> Self {
        Self { signing: SigningKey::from_bytes(seed), mesh }
    }

    /// New keys for the same mesh.
    pub(super) fn successor(&self) -> Self {
        Self::of_mesh(&crate::ambient::secret(), self.mesh)
    }

    pub(super) fn seed(&self) -> &[u8; 32] {
        self.signing.as_bytes()
    }

    /// The public half.
    pub fn public(&self) -> AuthorityKey {
        AuthorityKey(self.signing.verifying_key())
    }

    /// The mesh that these keys govern.
    pub fn mesh(&self) -> MeshId {
        self.mesh
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_for_another_purpose_does_not_count() {
        let keys = MeshKeys::generate();
        let signature = keys.sign("one", b"body");
        assert!(keys.public().verify("one", b"body", &signature));
        assert!(!keys.public().verify("two", b"body", &signature));
        assert!(!keys.public().verify("one", b"other", &signature));
    }

    #[test]
    fn later_keys_govern_the_mesh_of_the_first() {
        let first = MeshKeys::generate();
        let next = first.successor();
        assert_eq!(next.mesh(), first.mesh());
        assert_ne!(next.public(), first.public());
        assert_ne!(next.public().mesh(), first.mesh(), "its own hash names no mesh");
    }
}
