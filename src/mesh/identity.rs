//! Who this node is: its key, its membership, the authority that it trusts.
//!
//! The key is ed25519; its public half is the [`NodeId`], and libp2p's peer id is the same key in
//! another dress. Key and membership live in the state directory and are written so that a crash
//! leaves the old or the new; the membership is written last, so that it is there only if all else is.

use super::membership::{
    AuthorityKey, Membership, MembershipCert, MembershipError, MeshId, MeshKeys, Role, Scope, signed_message,
};
use super::state::{Secrecy, StateDir, StateError};
use super::tls::{self, Credential, TlsError};
use crate::model::{CellLabel, NodeId};
use ed25519_dalek::{Signer as _, SigningKey};
use libp2p::PeerId;
use rustls::sign::CertifiedKey;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const NODE_KEY_FILE: &str = "node.key";
const AUTHORITY_KEY_FILE: &str = "authority.key";
const MEMBERSHIP_FILE: &str = "membership";
/// How long a membership lasts (guess: until renewal is automatic, a year spares the operator).
pub const MEMBERSHIP_LIFETIME: Duration = Duration::from_secs(365 * 86_400);
/// What precedes an ed25519 public key in a peer id: identity multihash of 36 bytes, holding the
/// protobuf message {type: Ed25519, data: 32 bytes} (libp2p specification, "Peer Ids and Keys").
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// libp2p's name of a node.
pub fn peer_id_of(node: &NodeId) -> PeerId {
    let bytes = [&PEER_ID_PREFIX[..], &node.0].concat();
    PeerId::from_bytes(&bytes).expect("an identity multihash of 36 bytes is a peer id")
}

/// The node that libp2p calls `peer`, or `None` when its key is not ed25519.
pub fn node_of(peer: &PeerId) -> Option<NodeId> {
    let bytes = peer.to_bytes();
    let key = bytes.strip_prefix(&PEER_ID_PREFIX)?;
    Some(NodeId(key.try_into().ok()?))
}

/// A node's key pair.
pub struct NodeKey {
    signing: SigningKey,
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({:?})", self.node())
    }
}

impl NodeKey {
    /// A new key.
    pub fn generate() -> Self {
        Self { signing: SigningKey::from_bytes(&crate::ambient::secret()) }
    }

    /// The node's name: the public half.
    pub fn node(&self) -> NodeId {
        NodeId(self.signing.verifying_key().to_bytes())
    }

    /// Signs `body` for the purpose `domain`; [`super::node_signed`] checks it.
    pub fn sign(&self, domain: &str, body: &[u8]) -> [u8; 64] {
        self.signing.sign(&signed_message(domain, body)).to_bytes()
    }

    /// The key as libp2p wants it.
    pub fn libp2p(&self) -> libp2p::identity::Keypair {
        libp2p::identity::Keypair::ed25519_from_bytes(self.signing.to_bytes())
            .expect("any 32 bytes are an ed25519 seed")
    }
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The state directory holds no membership.
    #[error("{state_dir}: this machine is no member of a mesh yet (`starling join` or `starling mesh init`)")]
    NotAMember {
        /// The state directory.
        state_dir: String,
    },
    /// It is a member already.
    #[error("{state_dir}: this machine is a member of mesh {mesh} already")]
    AlreadyAMember {
        /// The state directory.
        state_dir: String,
        /// The mesh.
        mesh: MeshId,
    },
    /// A file of the state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The stored or issued membership.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The TLS certificate could not be made.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A member's identity: all that it shows to others and by which it judges them.
pub struct Identity {
    key: NodeKey,
    membership: MembershipCert,
    authority: AuthorityKey,
    mesh_keys: Option<Arc<MeshKeys>>,
    certified: Arc<CertifiedKey>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("membership", &self.membership).finish_non_exhaustive()
    }
}

impl Identity {
    /// Puts an identity together. `mesh_keys` makes the node able to certify others.
    ///
    /// # Errors
    /// [`MembershipError::WrongNode`] when the membership is not for this key,
    /// [`MembershipError::WrongMesh`] when the keys are not those of its mesh, [`TlsError`] when the
    /// TLS certificate cannot be made.
    pub fn new(
        key: NodeKey,
        membership: MembershipCert,
        authority: AuthorityKey,
        mesh_keys: Option<MeshKeys>,
    ) -> Result<Self, IdentityError> {
        if membership.node != key.node() {
            let (certified, shown_by) = (membership.node, key.node());
            return Err(MembershipError::WrongNode { certified, shown_by }.into());
        }
        let other_mesh = [Some(authority), mesh_keys.as_ref().map(MeshKeys::public)]
            .into_iter()
            .flatten()
            .map(|key| key.mesh())
            .find(|mesh| *mesh != membership.mesh);
        if let Some(expected) = other_mesh {
            return Err(MembershipError::WrongMesh { found: membership.mesh, expected }.into());
        }
        let certified = tls::make_certificate(&key, &Credential::Member(membership.clone()))?;
        Ok(Self { key, membership, authority, mesh_keys: mesh_keys.map(Arc::new), certified })
    }

    /// Makes a new mesh with this machine as its authority and first member, in cell `cell`.
    ///
    /// # Errors
    /// [`IdentityError::AlreadyAMember`]; otherwise as [`Identity::new`], or the state directory fails.
    pub fn found_mesh(state_dir: &Path, cell: CellLabel) -> Result<Self, IdentityError> {
        refuse_member(state_dir)?;
        let state = StateDir::open(state_dir)?;
        let keys = match read_seed(&state, AUTHORITY_KEY_FILE)? {
            Some(seed) => MeshKeys::from_seed(&seed),
            None => MeshKeys::generate(),
        };
        write_seed(&state, AUTHORITY_KEY_FILE, keys.seed())?;
        let key = node_key(state_dir)?;
        let now = crate::ambient::unix_now();
        let membership = keys.certify(Membership {
            mesh: keys.public().mesh(),
            node: key.node(),
            cell,
            role: Role::Authority,
            scope: Scope::All,
            issued: now,
            expires: now.after(MEMBERSHIP_LIFETIME),
        })?;
        store_membership(state_dir, &membership, &keys.public())?;
        let authority = keys.public();
        Self::new(key, membership, authority, Some(keys))
    }

    /// Loads the identity from a state directory.
    ///
    /// # Errors
    /// [`IdentityError::NotAMember`] when there is none; [`MembershipError::Expired`] inside when it
    /// no longer counts.
    pub fn load(state_dir: &Path) -> Result<Self, IdentityError> {
        let shown = || state_dir.display().to_string();
        let not_a_member = || IdentityError::NotAMember { state_dir: shown() };
        if !state_dir.exists() {
            return Err(not_a_member());
        }
        let state = StateDir::open(state_dir)?;
        let (membership, authority) = stored_membership(&state)?.ok_or_else(not_a_member)?;
        membership.check_time(crate::ambient::unix_now())?;
        let seed = read_seed(&state, NODE_KEY_FILE)?.ok_or_else(not_a_member)?;
        let key = NodeKey { signing: SigningKey::from_bytes(&seed) };
        let mesh_keys = match membership.role {
            Role::Authority => read_seed(&state, AUTHORITY_KEY_FILE)?.map(|seed| MeshKeys::from_seed(&seed)),
            Role::Member => None,
        };
        Self::new(key, membership, authority, mesh_keys)
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.membership.node
    }

    /// The node's key.
    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    /// The node's membership.
    pub fn membership(&self) -> &MembershipCert {
        &self.membership
    }

    /// The authority whose signature makes a member.
    pub fn authority(&self) -> &AuthorityKey {
        &self.authority
    }

    /// The authority's key pair, if this node certifies others.
    pub fn mesh_keys(&self) -> Option<&Arc<MeshKeys>> {
        self.mesh_keys.as_ref()
    }

    pub(super) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }
}

/// The node key of a state directory, made and stored if there is none yet.
pub(super) fn node_key(state_dir: &Path) -> Result<NodeKey, StateError> {
    let state = StateDir::open(state_dir)?;
    if let Some(seed) = read_seed(&state, NODE_KEY_FILE)? {
        return Ok(NodeKey { signing: SigningKey::from_bytes(&seed) });
    }
    let key = NodeKey::generate();
    write_seed(&state, NODE_KEY_FILE, key.signing.as_bytes())?;
    Ok(key)
}

/// Fails when the state directory already holds a membership, valid or not.
pub(super) fn refuse_member(state_dir: &Path) -> Result<(), IdentityError> {
    if !state_dir.exists() {
        return Ok(());
    }
    match stored_membership(&StateDir::open(state_dir)?)? {
        None => Ok(()),
        Some((membership, _)) => Err(IdentityError::AlreadyAMember {
            state_dir: state_dir.display().to_string(),
            mesh: membership.mesh,
        }),
    }
}

/// Stores a membership and the authority's key in one file, so that they always belong together.
pub(super) fn store_membership(
    state_dir: &Path,
    membership: &MembershipCert,
    authority: &AuthorityKey,
) -> Result<(), StateError> {
    let content = [&authority.to_bytes()[..], membership.bytes()].concat();
    StateDir::open(state_dir)?.write(MEMBERSHIP_FILE, &content, Secrecy::Public)
}

fn stored_membership(state: &StateDir) -> Result<Option<(MembershipCert, AuthorityKey)>, IdentityError> {
    let Some(content) = state.read(MEMBERSHIP_FILE, 4_096)? else { return Ok(None) };
    let (authority, certificate) = content
        .split_first_chunk::<32>()
        .ok_or_else(|| state.damaged(MEMBERSHIP_FILE, format!("{} bytes, too few", content.len())))?;
    let authority = AuthorityKey::from_bytes(authority)?;
    Ok(Some((MembershipCert::verify_signature(certificate, &authority)?, authority)))
}

fn read_seed(state: &StateDir, name: &str) -> Result<Option<[u8; 32]>, StateError> {
    let Some(content) = state.read(name, 32)? else { return Ok(None) };
    let len = content.len();
    let seed = content.try_into().map_err(|_| state.damaged(name, format!("{len} bytes, a key has 32")))?;
    Ok(Some(seed))
}

fn write_seed(state: &StateDir, name: &str, seed: &[u8; 32]) -> Result<(), StateError> {
    state.write(name, seed, Secrecy::Secret)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// A mesh in memory, for the tests of this room.
    pub(in crate::mesh) struct TestMesh {
        pub(in crate::mesh) seed: [u8; 32],
    }

    impl TestMesh {
        pub(in crate::mesh) fn new() -> Self {
            Self { seed: crate::ambient::secret() }
        }

        pub(in crate::mesh) fn keys(&self) -> MeshKeys {
            MeshKeys::from_seed(&self.seed)
        }

        pub(in crate::mesh) fn statement(&self, node: NodeId) -> Membership {
            let now = crate::ambient::unix_now();
            Membership {
                mesh: self.keys().public().mesh(),
                node,
                cell: CellLabel::default(),
                role: Role::Member,
                scope: Scope::All,
                issued: now,
                expires: now.after(Duration::from_secs(3_600)),
            }
        }

        /// A member whose statement was altered by `change`.
        pub(in crate::mesh) fn member_with(&self, change: impl FnOnce(&mut Membership)) -> Arc<Identity> {
            let key = NodeKey::generate();
            let mut statement = self.statement(key.node());
            change(&mut statement);
            let keys = (statement.role == Role::Authority).then(|| self.keys());
            let membership = self.keys().certify(statement).unwrap();
            let shown = Credential::Member(membership.clone());
            let mut identity = Identity::new(key, membership, self.keys().public(), keys).unwrap();
            identity.certified = crate::mesh::testing::steady_certificate(&identity.key, &shown);
            Arc::new(identity)
        }

        pub(in crate::mesh) fn member(&self) -> Arc<Identity> {
            self.member_with(|_| ())
        }

        pub(in crate::mesh) fn authority(&self) -> Arc<Identity> {
            self.member_with(|statement| statement.role = Role::Authority)
        }
    }

    #[test]
    fn a_node_and_its_peer_id_name_each_other() {
        let key = NodeKey::generate();
        let peer = peer_id_of(&key.node());
        assert_eq!(peer, key.libp2p().public().to_peer_id());
        assert_eq!(node_of(&peer), Some(key.node()));
        assert_eq!(node_of(&PeerId::random()), None, "a hashed key tells no node");
    }

    #[test]
    fn a_founded_mesh_is_loaded_again_with_the_same_keys() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Identity::load(dir.path()), Err(IdentityError::NotAMember { .. })));
        let founded = Identity::found_mesh(dir.path(), "eu/a/r1".parse().unwrap()).unwrap();
        let loaded = Identity::load(dir.path()).unwrap();
        assert_eq!((loaded.node(), loaded.membership()), (founded.node(), founded.membership()));
        assert_eq!(loaded.mesh_keys().unwrap().public(), founded.mesh_keys().unwrap().public());
        for name in [NODE_KEY_FILE, AUTHORITY_KEY_FILE] {
            let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let again = Identity::found_mesh(dir.path(), CellLabel::default());
        assert!(matches!(again, Err(IdentityError::AlreadyAMember { .. })));
    }

    #[test]
    fn a_crash_before_the_membership_was_written_keeps_the_keys() {
        let dir = tempfile::tempdir().unwrap();
        let before = Identity::found_mesh(dir.path(), CellLabel::default()).unwrap();
        std::fs::remove_file(dir.path().join(MEMBERSHIP_FILE)).unwrap();
        let after = Identity::found_mesh(dir.path(), CellLabel::default()).unwrap();
        assert_eq!((before.node(), before.membership().mesh), (after.node(), after.membership().mesh));
    }

    #[test]
    fn a_damaged_state_directory_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        Identity::found_mesh(dir.path(), CellLabel::default()).unwrap();
        std::fs::write(dir.path().join(NODE_KEY_FILE), b"short").unwrap();
        let error = Identity::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains(NODE_KEY_FILE) && error.contains("5 bytes"), "{error}");
        std::fs::write(dir.path().join(MEMBERSHIP_FILE), [7; 200]).unwrap();
        assert!(Identity::load(dir.path()).is_err());
    }

    #[test]
    fn an_identity_is_only_made_of_parts_that_belong_together() {
        let (mesh, other) = (TestMesh::new(), TestMesh::new());
        let key = NodeKey::generate();
        let membership = mesh.keys().certify(mesh.statement(key.node())).unwrap();
        let wrong_key = Identity::new(NodeKey::generate(), membership.clone(), mesh.keys().public(), None);
        assert!(matches!(wrong_key, Err(IdentityError::Membership(MembershipError::WrongNode { .. }))));
        let wrong_mesh = Identity::new(key, membership, mesh.keys().public(), Some(other.keys()));
        assert!(matches!(wrong_mesh, Err(IdentityError::Membership(MembershipError::WrongMesh { .. }))));
    }
}
