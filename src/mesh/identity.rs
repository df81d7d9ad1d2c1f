//! Who this node is: its key, its membership, the authority that it trusts.
//!
//! The key is ed25519; its public half is the [`NodeId`], and libp2p's peer id is the same key in
//! another dress. Key and membership live in the state directory and are written so that a crash
//! leaves the old or the new; the membership is written last, so that it is there only if all else is.

use super::authority::{MeshId, MeshKeys, signed_message};
use super::charter::{Charter, Overlap};
use super::held_key;
use super::membership::{CERTIFICATE_LIFE, Membership, MembershipCert, MembershipError, Role, Scope};
use super::mesh_trust::{CHARTER_FILE, MeshTrust, TrustChangeError};
use super::state::{Secrecy, StateDir, StateError};
use super::ticket::TicketKey;
use super::tls::{self, Credential, TlsError};
use crate::model::{CellLabel, NodeId, UnixTime};
use ed25519_dalek::{Signer as _, SigningKey};
use libp2p::PeerId;
use rustls::sign::CertifiedKey;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use tokio::sync::watch;

const NODE_KEY_FILE: &str = "node.key";
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
    /// The state directory holds a charter, and not the key that belongs to it.
    #[error(
        "{state_dir}: `charter` is of mesh {mesh}, whose newest key has number {newest}, and `authority.key` {found}: put the \
         key back that belongs to the charter; for another mesh choose another state folder"
    )]
    NotItsKey {
        /// The state directory.
        state_dir: String,
        /// The mesh of the charter.
        mesh: MeshId,
        /// Number of the charter's newest key.
        newest: usize,
        /// What the key is instead.
        found: String,
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
    /// Held while the files of the authority's key change.
    rekeying: Mutex<()>,
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
        Ok(Self {
            key,
            trust,
            state_dir: None,
            shown,
            renewals: watch::channel(0).0,
            rekeying: Mutex::new(()),
        })
    }

    /// Makes a new mesh with this machine as its authority and first member, in cell `cell`. Where the state directory holds a
    /// charter and the newest key that it names, as after a loss of all else, this machine becomes an authority of that
    /// mesh instead.
    ///
    /// # Errors
    /// [`IdentityError::AlreadyAMember`]; [`IdentityError::NotItsKey`], and nothing has changed then; otherwise as
    /// [`Identity::new`], or the state directory fails.
    pub fn found_mesh(state_dir: &Path, cell: CellLabel) -> Result<Self, IdentityError> {
        refuse_member(state_dir)?;
        let state = StateDir::open(state_dir)?;
        let (trust, keys) = match MeshTrust::open(state_dir, None)? {
            Some(trust) => {
                let keys = restored_keys(&state, &trust.charter())?;
                held_key::put(&state, &keys)?;
                (trust, keys)
            }
            None => {
                let keys = match held_key::read(&state, held_key::KEY_FILE)? {
                    Some(seed) => MeshKeys::from_seed(&seed),
                    None => MeshKeys::generate(),
                };
                held_key::store(&state, keys.seed())?;
                (MeshTrust::begin(state_dir, Charter::founded_by(keys.public()))?, keys)
            }
        };
        let key = node_key(state_dir)?;
        let now = crate::ambient::unix_now();
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

    /// Whether [`Identity::found_mesh`] would restore an authority of a mesh that there is.
    pub fn is_restorable(state_dir: &Path) -> bool {
        state_dir.join(CHARTER_FILE).exists()
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
        let trust = MeshTrust::open(state_dir, Some(mesh))?
            .ok_or_else(|| state.damaged(CHARTER_FILE, "it is missing, and a membership is here"))?;
        let membership = MembershipCert::read(&certificate, mesh, trust.all_keys())?;
        // Not "no member": a node that lost its key would stand alone for ever, and nobody would know.
        let seed = held_key::read(&state, NODE_KEY_FILE)?
            .ok_or_else(|| state.damaged(NODE_KEY_FILE, "it is missing, and a membership for it is here"))?;
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
        let _rekeying = self.rekeying.lock().unwrap_or_else(PoisonError::into_inner);
        let mesh_keys = match (membership.role, seed) {
            (Role::Authority, Some(seed)) => {
                let (given, charter) = (MeshKeys::of_mesh(&seed, membership.mesh), self.trust.charter());
                let number = |keys: &MeshKeys| charter.number_of(&keys.public());
                match self.mesh_keys().filter(|held| number(held) >= number(&given)) {
                    Some(held) => Some(held),
                    None => {
                        if let Some(state_dir) = &self.state_dir {
                            held_key::store(&StateDir::open(state_dir)?, given.seed())?;
                        }
                        Some(Arc::new(given))
                    }
                }
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
    /// [`Identity::settle_key`] is to follow.
    ///
    /// # Errors
    /// [`IdentityError::NotAnAuthority`]; [`IdentityError::Trust`] when this node does not hold the newest key or
    /// a rotation is under way; the state directory. Nothing has changed then.
    pub(super) fn rotate(
        &self,
        overlap: impl Into<Overlap>,
        now: UnixTime,
    ) -> Result<Charter, IdentityError> {
        let overlap = overlap.into();
        let _rekeying = self.rekeying.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.mesh_keys().ok_or(IdentityError::NotAnAuthority(self.node()))?;
        let new = old.successor();
        // What will be refused is refused before a file is touched.
        self.trust.charter().rotated(&old, &new, now, overlap).map_err(TrustChangeError::Charter)?;
        if let Some(state_dir) = &self.state_dir {
            // Before the charter names it: nobody could sign with a key that a crash took.
            held_key::prepare(&StateDir::open(state_dir)?, &self.trust.charter(), &old, &new)?;
        }
        let charter = self.trust.rotate(&old, &new, now, overlap)?;
        self.shown.write().unwrap_or_else(PoisonError::into_inner).mesh_keys = Some(Arc::new(new));
        Ok(charter)
    }

    /// Puts the authority's key that is in use where the next start looks for it first. Waits for the disk.
    ///
    /// # Errors
    /// The state directory; then it still lies where the next start finds it, too.
    pub(super) fn settle_key(&self) -> Result<(), StateError> {
        let _rekeying = self.rekeying.lock().unwrap_or_else(PoisonError::into_inner);
        match (self.mesh_keys(), &self.state_dir) {
            (Some(keys), Some(state_dir)) => held_key::put(&StateDir::open(state_dir)?, &keys),
            _ => Ok(()),
        }
    }

    /// Why this node is no full authority, if its certificate says that it is one: it does not hold the newest key.
    /// [`NEWEST_KEY_REMEDY`](super::NEWEST_KEY_REMEDY) says what to do.
    pub fn key_problem(&self, now: UnixTime) -> Option<String> {
        let (keys, is_authority) = (self.mesh_keys(), self.membership().role == Role::Authority);
        is_authority.then(|| held_key::problem(keys.as_deref(), &self.trust.charter(), now)).flatten()
    }
}

/// The newest key of `charter`, which must be stored.
fn restored_keys(state: &StateDir, charter: &Charter) -> Result<MeshKeys, IdentityError> {
    let found = match held_key::find(state, charter)? {
        Some(keys) if keys.public() == charter.newest() => return Ok(keys),
        Some(keys) => format!("is its key {}", charter.number_of(&keys.public())),
        None if held_key::read(state, held_key::KEY_FILE)?.is_none() => "is missing".to_owned(),
        None => "is none of its keys".to_owned(),
    };
    let (state_dir, newest) = (state.path().display().to_string(), charter.number());
    Err(IdentityError::NotItsKey { state_dir, mesh: charter.mesh(), newest, found })
}

/// The authority's keys: the newest that the charter names, or an earlier one while it counts.
fn stored_mesh_keys(state: &StateDir, trust: &MeshTrust) -> Result<Option<MeshKeys>, IdentityError> {
    let (charter, now) = (trust.charter(), crate::ambient::unix_now());
    let keys = held_key::load(state, &charter, now)?;
    if let Some(problem) = held_key::problem(keys.as_ref(), &charter, now) {
        let remedy = held_key::NEWEST_KEY_REMEDY;
        tracing::error!(problem, remedy, "this authority does not hold the mesh's newest key");
    }
    Ok(keys)
}

/// The node key of a state directory, made and stored if there is none yet.
pub(super) fn node_key(state_dir: &Path) -> Result<NodeKey, StateError> {
    let state = StateDir::open(state_dir)?;
    if let Some(seed) = held_key::read(&state, NODE_KEY_FILE)? {
        return Ok(NodeKey { signing: SigningKey::from_bytes(&seed) });
    }
    let key = NodeKey::generate();
    state.write(NODE_KEY_FILE, key.signing.as_bytes(), Secrecy::Secret)?;
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
    held_key::store(&StateDir::open(state_dir)?, seed)
}

fn stored_membership(state: &StateDir) -> Result<Option<(MeshId, Vec<u8>)>, StateError> {
    let Some(content) = state.read(MEMBERSHIP_FILE, 4_096)? else { return Ok(None) };
    let (mesh, certificate) = content
        .split_first_chunk::<32>()
        .ok_or_else(|| state.damaged(MEMBERSHIP_FILE, format!("{} bytes, too few", content.len())))?;
    Ok(Some((MeshId(*mesh), certificate.to_vec())))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::mesh::held_key::{KEY_FILE, NEXT_FILE};
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

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
        for name in [NODE_KEY_FILE, KEY_FILE] {
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
        std::fs::remove_file(dir.path().join(NODE_KEY_FILE)).unwrap();
        let error = Identity::load(dir.path()).unwrap_err();
        assert!(matches!(error, IdentityError::State(_)), "not as if it were no member");
        assert!(error.to_string().contains(NODE_KEY_FILE), "{error}");
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
    fn a_rotation_that_is_cut_short_at_any_point_leaves_the_newest_key_where_it_belongs() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::found_mesh(dir.path(), CellLabel::default()).unwrap();
        let (now, span) = (crate::ambient::unix_now(), Duration::from_secs(60));
        let [key, next] = [KEY_FILE, NEXT_FILE].map(|name| dir.path().join(name));
        let old = std::fs::read(&key).unwrap();
        // Cut after the next key was written: the charter does not name it, the old key counts.
        std::fs::write(&next, [7; 32]).unwrap();
        let loaded = Identity::load(dir.path()).unwrap();
        assert_eq!(loaded.mesh_keys().unwrap().seed()[..], old[..]);
        // Cut after the charter was written: the start moves the new key, which then survives another rotation.
        let charter = identity.rotate(span, now).unwrap();
        assert_eq!(std::fs::read(&key).unwrap(), old);
        let newest = std::fs::read(&next).unwrap();
        for _ in 0..2 {
            let loaded = Identity::load(dir.path()).unwrap();
            assert_eq!(loaded.mesh_keys().unwrap().public(), charter.newest());
            assert_eq!(loaded.membership().mesh, identity.membership().mesh, "the mesh keeps its name");
            assert_eq!((std::fs::read(&key).unwrap(), next.exists()), (newest.clone(), false));
        }
        // The running one does the same when it is told to.
        let charter = identity.rotate(span, now).unwrap();
        identity.settle_key().unwrap();
        assert_eq!(std::fs::read(&key).unwrap()[..], identity.mesh_keys().unwrap().seed()[..]);
        assert!(!next.exists() && identity.mesh_keys().unwrap().public() == charter.newest());
    }

    #[test]
    fn a_rotation_that_is_refused_or_fails_keeps_the_newest_key() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::found_mesh(dir.path(), CellLabel::default()).unwrap();
        let (now, span) = (crate::ambient::unix_now(), Duration::from_secs(60));
        identity.rotate(span, now).unwrap();
        let charter = identity.rotate(span, now).unwrap();
        let next = std::fs::read(dir.path().join(NEXT_FILE)).unwrap();
        // Three keys count, and the newest lies in the next key's file alone.
        let refused = identity.rotate(span, now).unwrap_err();
        assert!(refused.to_string().contains("3 keys count already"), "{refused}");
        assert_eq!(std::fs::read(dir.path().join(NEXT_FILE)).unwrap(), next);
        // One that would be possible, on a disk that takes nothing: before the newest key is stored for good, no other
        // takes its place.
        let in_the_way = dir.path().join(format!(".{KEY_FILE}.new"));
        std::fs::create_dir(&in_the_way).unwrap();
        let failed = identity.rotate(Overlap { span, drop_oldest: true }, now).unwrap_err();
        assert!(failed.to_string().contains(KEY_FILE), "{failed}");
        assert!(identity.settle_key().is_err());
        assert_eq!(std::fs::read(dir.path().join(NEXT_FILE)).unwrap(), next);
        // Nor does a start on such a disk lose it.
        let started = Identity::load(dir.path()).unwrap();
        assert_eq!(started.mesh_keys().unwrap().public(), charter.newest());
        assert!(started.rotate(Overlap { span, drop_oldest: true }, now).is_err());
        std::fs::remove_dir(&in_the_way).unwrap();
        let started = Identity::load(dir.path()).unwrap();
        assert_eq!(started.mesh_keys().unwrap().public(), charter.newest());
        assert_eq!(started.key_problem(now), None);
    }

    #[test]
    fn an_authority_that_does_not_hold_the_newest_key_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::found_mesh(dir.path(), CellLabel::default()).unwrap();
        let now = crate::ambient::unix_now();
        assert_eq!(identity.key_problem(now), None);
        let old = std::fs::read(dir.path().join(KEY_FILE)).unwrap();
        identity.rotate(Duration::from_secs(60), now).unwrap();
        identity.settle_key().unwrap();
        std::fs::write(dir.path().join(KEY_FILE), old).unwrap();
        let outrun = Identity::load(dir.path()).unwrap();
        let said = outrun.key_problem(now).unwrap();
        assert!(said.contains("it holds key 1") && said.contains("key 2 is the newest"), "{said}");
        assert!(outrun.key_problem(now.after(Duration::from_secs(60))).unwrap().contains("no longer"));
        std::fs::remove_file(dir.path().join(KEY_FILE)).unwrap();
        let without = Identity::load(dir.path()).unwrap();
        assert!(without.key_problem(now).unwrap().contains("holds no key"));
    }

    #[test]
    fn the_backup_of_key_and_charter_restores_the_authority_of_the_same_mesh_also_after_rotations() {
        let dir = tempfile::tempdir().unwrap();
        let lost = Identity::found_mesh(dir.path(), CellLabel::default()).unwrap();
        let now = crate::ambient::unix_now();
        for _ in 0..2 {
            lost.rotate(Duration::from_secs(60), now).unwrap();
            lost.settle_key().unwrap();
        }
        let out = NodeId([1; 32]);
        lost.trust().revoke(&lost.mesh_keys().unwrap(), out, String::new(), now).unwrap();
        let backup = tempfile::tempdir().unwrap();
        for name in [KEY_FILE, "charter", "revocations"] {
            std::fs::copy(dir.path().join(name), backup.path().join(name)).unwrap();
        }
        assert!(Identity::is_restorable(backup.path()));
        let restored = Identity::found_mesh(backup.path(), CellLabel::default()).unwrap();
        let loaded = Identity::load(backup.path()).unwrap();
        for identity in [&restored, &loaded] {
            assert_eq!(identity.membership().mesh, lost.membership().mesh);
            assert_eq!(identity.trust().charter(), lost.trust().charter());
            assert_eq!(identity.key_problem(now), None);
            assert!(identity.trust().revocation_of(&out).is_some());
            // The others of the mesh take it for one of theirs.
            assert_eq!(lost.trust().check(&identity.membership(), now), Ok(()));
        }
    }

    #[test]
    fn a_charter_without_the_key_that_it_names_is_refused_and_nothing_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let before = Identity::found_mesh(dir.path(), CellLabel::default()).unwrap();
        let first = std::fs::read(dir.path().join(KEY_FILE)).unwrap();
        before.rotate(Duration::from_secs(60), crate::ambient::unix_now()).unwrap();
        before.settle_key().unwrap();
        let charter = std::fs::read(dir.path().join("charter")).unwrap();
        let cases =
            [(Some(vec![7; 32]), "none of its keys"), (Some(first), "its key 1"), (None, "is missing")];
        for (key, says) in cases {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("charter"), &charter).unwrap();
            if let Some(key) = &key {
                std::fs::write(folder.path().join(KEY_FILE), key).unwrap();
            }
            let error = Identity::found_mesh(folder.path(), CellLabel::default()).unwrap_err();
            assert!(matches!(error, IdentityError::NotItsKey { newest: 2, .. }), "{error}");
            assert!(error.to_string().contains(says), "{error}");
            let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
            assert_eq!(left.len(), 1 + usize::from(key.is_some()));
            assert_eq!(std::fs::read(folder.path().join("charter")).unwrap(), charter);
            assert_eq!(std::fs::read(folder.path().join(KEY_FILE)).ok(), key);
        }
    }
}
