//! Who this node is: its key, its membership, the authority that it trusts.
//!
//! The key is ed25519; its public half is the [`NodeId`], and libp2p's peer id is the same key in
//! another dress. Key and membership live in the state directory and are written so that a crash
//! leaves the old or the new; the membership is written last, so that it is there only if all else is.

use super::authority::{MeshId, MeshKeys, signed_message};
use super::charter::Charter;
use super::membership::{CERTIFICATE_LIFE, Membership, MembershipCert, MembershipError, Role, Scope};
use super::mesh_trust::{MeshTrust, TrustChangeError};
use super::state::{Secrecy, StateDir, StateError};
use super::ticket::TicketKey;
use super::tls::{self, Credential, TlsError};
use crate::model::{CellLabel, NodeId, UnixTime};
use ed25519_dalek::{Signer as _, SigningKey};
use libp2p::PeerId;
use rustls::sign::CertifiedKey;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;
use tokio::sync::watch;

const NODE_KEY_FILE: &str = "node.key";
const AUTHORITY_KEY_FILE: &str = "authority.key";
/// The key that a rotation is about to appoint.
const NEXT_KEY_FILE: &str = "authority.key.next";
const MEMBERSHIP_FILE: &str = "membership";
const TICKET_CONTEXT: &str = "starling 2026-11 ticket key of a node";
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

    /// The key from which the secrets of this node's tickets are derived: a ticket is for the authority that
    /// issued it, which alone remembers its uses.
    pub(super) fn ticket_key(&self) -> TicketKey {
        TicketKey(blake3::derive_key(TICKET_CONTEXT, self.signing.as_bytes()))
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
    /// The stored charter or revocations, or a rotation that is not possible.
    #[error(transparent)]
    Trust(#[from] TrustChangeError),
    /// Only an authority certifies, revokes and rotates.
    #[error("{0} holds no authority's key")]
    NotAnAuthority(NodeId),
    /// The TLS certificate could not be made.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A member's identity: all that it shows to others and by which it judges them. Certificate and authority
/// key may change while it is in use.
pub struct Identity {
    key: NodeKey,
    trust: Arc<MeshTrust>,
    /// Where it is stored; `None` in tests.
    state_dir: Option<PathBuf>,
    shown: RwLock<Shown>,
    renewals: watch::Sender<u64>,
}

struct Shown {
    membership: MembershipCert,
    mesh_keys: Option<Arc<MeshKeys>>,
    certified: Arc<CertifiedKey>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("membership", &self.membership()).finish_non_exhaustive()
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
        trust: Arc<MeshTrust>,
        mesh_keys: Option<MeshKeys>,
    ) -> Result<Self, IdentityError> {
        if membership.node != key.node() {
            let (certified, shown_by) = (membership.node, key.node());
            return Err(MembershipError::WrongNode { certified, shown_by }.into());
        }
        let meshes = [Some(trust.mesh()), mesh_keys.as_ref().map(MeshKeys::mesh)];
        if let Some(expected) = meshes.into_iter().flatten().find(|mesh| *mesh != membership.mesh) {
            return Err(MembershipError::WrongMesh { found: membership.mesh, expected }.into());
        }
        let certified = tls::make_certificate(&key, &Credential::Member(membership.clone()))?;
        let shown = RwLock::new(Shown { membership, mesh_keys: mesh_keys.map(Arc::new), certified });
        Ok(Self { key, trust, state_dir: None, shown, renewals: watch::channel(0).0 })
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
        let trust = MeshTrust::begin(state_dir, Charter::founded_by(keys.public()))?;
        let membership = keys.certify(Membership {
            mesh: keys.mesh(),
            node: key.node(),
            cell,
            role: Role::Authority,
            scope: Scope::All,
            issued: now,
            expires: now.after(CERTIFICATE_LIFE),
        })?;
        store_membership(state_dir, &membership)?;
        let founded = Self::new(key, membership, Arc::new(trust), Some(keys))?;
        Ok(Self { state_dir: Some(state_dir.to_owned()), ..founded })
    }

    /// Loads the identity from a state directory. Its membership may have lapsed: that an agent finds out, and
    /// renews it.
    ///
    /// # Errors
    /// [`IdentityError::NotAMember`] when there is none, otherwise which file is missing or damaged.
    pub fn load(state_dir: &Path) -> Result<Self, IdentityError> {
        let not_a_member = || IdentityError::NotAMember { state_dir: state_dir.display().to_string() };
        if !state_dir.exists() {
            return Err(not_a_member());
        }
        let state = StateDir::open(state_dir)?;
        let (mesh, certificate) = stored_membership(&state)?.ok_or_else(not_a_member)?;
        let trust = MeshTrust::open(state_dir, mesh)?
            .ok_or_else(|| state.damaged("charter", "it is missing: join the mesh again with --force"))?;
        let membership = MembershipCert::read(&certificate, mesh, trust.all_keys())?;
        let seed = read_seed(&state, NODE_KEY_FILE)?.ok_or_else(not_a_member)?;
        let key = NodeKey { signing: SigningKey::from_bytes(&seed) };
        let mesh_keys = match membership.role {
            Role::Authority => stored_mesh_keys(&state, &trust)?,
            Role::Member | Role::Seed => None,
        };
        let loaded = Self::new(key, membership, Arc::new(trust), mesh_keys)?;
        Ok(Self { state_dir: Some(state_dir.to_owned()), ..loaded })
    }

    fn shown(&self) -> RwLockReadGuard<'_, Shown> {
        self.shown.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.key.node()
    }

    /// The node's key.
    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    /// The node's membership, as it is now.
    pub fn membership(&self) -> MembershipCert {
        self.shown().membership.clone()
    }

    /// What this node believes of its mesh.
    pub fn trust(&self) -> &Arc<MeshTrust> {
        &self.trust
    }

    /// The authority's key pair, if this node certifies others.
    pub fn mesh_keys(&self) -> Option<Arc<MeshKeys>> {
        self.shown().mesh_keys.clone()
    }

    /// Changes whenever the membership was renewed.
    pub fn renewals(&self) -> watch::Receiver<u64> {
        self.renewals.subscribe()
    }

    /// Where it is stored; `None` in tests that keep nothing.
    pub(super) fn state_dir(&self) -> Option<&Path> {
        self.state_dir.as_deref()
    }

    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        self.shown().certified.clone()
    }

    /// Takes a renewed membership, and with the role `authority` perhaps a newer key (`seed`): stored first, then
    /// shown in every handshake and datagram from now on. Waits for the disk.
    ///
    /// # Errors
    /// [`IdentityError::Membership`] when it is not for this node or does not count now; the state directory.
    pub(super) fn renew(
        &self,
        membership: MembershipCert,
        seed: Option<[u8; 32]>,
        now: UnixTime,
    ) -> Result<(), IdentityError> {
        if membership.node != self.node() {
            let (certified, shown_by) = (membership.node, self.node());
            return Err(MembershipError::WrongNode { certified, shown_by }.into());
        }
        self.trust.check(&membership, now)?;
        let mesh_keys = match (membership.role, seed) {
            (Role::Authority, Some(seed)) => {
                let keys = MeshKeys::of_mesh(&seed, membership.mesh);
                if let Some(state_dir) = &self.state_dir {
                    write_seed(&StateDir::open(state_dir)?, AUTHORITY_KEY_FILE, keys.seed())?;
                }
                Some(Arc::new(keys))
            }
            (Role::Authority, None) => self.mesh_keys(),
            (Role::Member | Role::Seed, _) => None,
        };
        let certified = tls::make_certificate(&self.key, &Credential::Member(membership.clone()))?;
        if let Some(state_dir) = &self.state_dir {
            store_membership(state_dir, &membership)?;
        }
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) =
            Shown { membership, mesh_keys, certified };
        self.renewals.send_modify(|renewals| *renewals += 1);
        Ok(())
    }

    /// Makes a new authority key and appoints it, signed by the present one, which counts beside it for
    /// `overlap`. At any point a crash leaves the old or the new key, whole. Waits for the disk.
    ///
    /// # Errors
    /// [`IdentityError::NotAnAuthority`]; [`IdentityError::Trust`] when this node does not hold the newest key or
    /// a rotation is under way; the state directory.
    pub(super) fn rotate(&self, overlap: Duration, now: UnixTime) -> Result<Charter, IdentityError> {
        let old = self.mesh_keys().ok_or(IdentityError::NotAnAuthority(self.node()))?;
        let new = old.successor();
        let state = self.state_dir.as_deref().map(StateDir::open).transpose()?;
        if let Some(state) = &state {
            // Before the charter names it: nobody could sign with a key that a crash took.
            write_seed(state, NEXT_KEY_FILE, new.seed())?;
        }
        let charter = self.trust.rotate(&old, &new, now, overlap)?;
        if let Some(state) = &state {
            write_seed(state, AUTHORITY_KEY_FILE, new.seed())?;
        }
        self.shown.write().unwrap_or_else(PoisonError::into_inner).mesh_keys = Some(Arc::new(new));
        Ok(charter)
    }
}

/// The authority's keys: the newest that the charter names, or an earlier one while it counts.
fn stored_mesh_keys(state: &StateDir, trust: &MeshTrust) -> Result<Option<MeshKeys>, IdentityError> {
    let counting = trust.counting_keys(crate::ambient::unix_now());
    let mut held = Vec::new();
    for file in [NEXT_KEY_FILE, AUTHORITY_KEY_FILE] {
        if let Some(seed) = read_seed(state, file)? {
            held.push(MeshKeys::of_mesh(&seed, trust.mesh()));
        }
    }
    let newest_held = counting.iter().find_map(|key| held.iter().position(|keys| keys.public() == *key));
    let Some(at) = newest_held else {
        tracing::error!("the authority's key that lies here counts no longer; this node certifies nobody");
        return Ok(None);
    };
    Ok(Some(held.swap_remove(at)))
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
        Some((mesh, _)) => {
            Err(IdentityError::AlreadyAMember { state_dir: state_dir.display().to_string(), mesh })
        }
    }
}

/// Stores a membership, and before it the name of its mesh, by which the charter is judged.
pub(super) fn store_membership(state_dir: &Path, membership: &MembershipCert) -> Result<(), StateError> {
    let content = [&membership.mesh.0[..], membership.bytes()].concat();
    StateDir::open(state_dir)?.write(MEMBERSHIP_FILE, &content, Secrecy::Public)
}

/// Stores the authority's key, for a joiner with that role.
pub(super) fn store_authority_key(state_dir: &Path, seed: &[u8; 32]) -> Result<(), StateError> {
    write_seed(&StateDir::open(state_dir)?, AUTHORITY_KEY_FILE, seed)
}

fn stored_membership(state: &StateDir) -> Result<Option<(MeshId, Vec<u8>)>, StateError> {
    let Some(content) = state.read(MEMBERSHIP_FILE, 4_096)? else { return Ok(None) };
    let (mesh, certificate) = content
        .split_first_chunk::<32>()
        .ok_or_else(|| state.damaged(MEMBERSHIP_FILE, format!("{} bytes, too few", content.len())))?;
    Ok(Some((MeshId(*mesh), certificate.to_vec())))
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
                mesh: self.keys().mesh(),
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
            let identity = Identity::new(key, membership, self.trust(), keys).unwrap();
            let steady = crate::mesh::testing::steady_certificate(&identity.key, &shown);
            identity.shown.write().unwrap().certified = steady;
            Arc::new(identity)
        }

        /// What a member of it believes at first.
        pub(in crate::mesh) fn trust(&self) -> Arc<MeshTrust> {
            Arc::new(MeshTrust::in_memory(Charter::founded_by(self.keys().public())))
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
        let wrong_key = Identity::new(NodeKey::generate(), membership.clone(), mesh.trust(), None);
        assert!(matches!(wrong_key, Err(IdentityError::Membership(MembershipError::WrongNode { .. }))));
        let wrong_mesh = Identity::new(key, membership, mesh.trust(), Some(other.keys()));
        assert!(matches!(wrong_mesh, Err(IdentityError::Membership(MembershipError::WrongMesh { .. }))));
    }

    #[test]
    fn a_renewed_membership_is_shown_and_found_again_and_one_that_does_not_count_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::found_mesh(dir.path(), CellLabel::default()).unwrap();
        let (keys, now) = (identity.mesh_keys().unwrap(), crate::ambient::unix_now());
        let mut statement = (*identity.membership()).clone();
        statement.expires = UnixTime(now.0 + 5_000);
        let renewed = keys.certify(statement.clone()).unwrap();
        let (before, mut renewals) = (identity.certified(), identity.renewals());
        identity.renew(renewed.clone(), None, now).unwrap();
        assert!(renewals.has_changed().unwrap() && !Arc::ptr_eq(&before, &identity.certified()));
        renewals.mark_unchanged();
        assert_eq!(Identity::load(dir.path()).unwrap().membership(), renewed);
        statement.expires = now;
        let expired = keys.certify(statement).unwrap();
        assert!(identity.renew(expired, None, now).is_err());
        let other = keys.certify(Membership { node: NodeId([1; 32]), ..(*renewed).clone() }).unwrap();
        assert!(identity.renew(other, None, now).is_err());
        assert!(!renewals.has_changed().unwrap());
        assert_eq!(identity.membership(), renewed);
    }

    #[test]
    fn a_rotation_that_is_cut_short_at_any_point_leaves_a_key_that_counts() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::found_mesh(dir.path(), CellLabel::default()).unwrap();
        let now = crate::ambient::unix_now();
        let old = std::fs::read(dir.path().join(AUTHORITY_KEY_FILE)).unwrap();
        // Cut after the next key was written: the charter does not name it, the old key counts.
        std::fs::write(dir.path().join(NEXT_KEY_FILE), [7; 32]).unwrap();
        let loaded = Identity::load(dir.path()).unwrap();
        assert_eq!(loaded.mesh_keys().unwrap().seed()[..], old[..]);
        // Whole, and cut after the charter was written: the new key counts.
        let charter = identity.rotate(Duration::from_secs(60), now).unwrap();
        for content in [None, Some(&old)] {
            if let Some(old) = content {
                std::fs::write(dir.path().join(AUTHORITY_KEY_FILE), old).unwrap();
            }
            let loaded = Identity::load(dir.path()).unwrap();
            assert_eq!(loaded.mesh_keys().unwrap().public(), charter.newest());
            assert_eq!(loaded.membership().mesh, identity.membership().mesh, "the mesh keeps its name");
        }
    }
}
