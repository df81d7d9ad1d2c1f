//! What a node believes of its mesh: which authority keys count, and who was revoked.
//!
//! One [`MeshTrust`] a process; TLS, SWIM, the DHT and the driver ask it about every certificate. It is
//! changed by documents that come as news, at the join or at a renewal: the charter and the revocations,
//! each stored durably before it counts, never an older one after a newer one.

use super::authority::{AuthorityKey, MeshId, MeshKeys};
use super::charter::{CHARTER_MAX_BYTES, Charter, CharterError, Overlap, Relation};
use super::held_key;
use super::membership::{CERTIFICATE_LIFE_MAX, MembershipCert, MembershipError};
use super::ports::{News, NewsVerdict};
use super::revocation::{REVOCATIONS_MAX_BYTES, Revocation, RevocationError, Revocations};
use super::state::{Secrecy, StateDir, StateError};
use crate::ambient;
use crate::model::{NodeId, UnixTime};
use crate::seldom::Seldom;
use std::path::Path;
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::watch;

pub(super) const CHARTER_FILE: &str = "charter";
pub(super) const REVOCATIONS_FILE: &str = "revocations";
/// How long a revocation can matter at most: certificates and tickets from before it count no longer than this,
/// a late renewal included. For how long one does, the office of the authority says.
pub(super) const REVOCATION_SPAN: Duration = Duration::from_secs(2 * CERTIFICATE_LIFE_MAX.as_secs());

/// Pause between two warnings of documents that were not adopted.
const WARN_EVERY: Duration = Duration::from_secs(60);

#[derive(Clone)]
struct Belief {
    charter: Charter,
    revocations: Revocations,
}

/// Why trust cannot be loaded or changed.
#[derive(Debug, thiserror::Error)]
pub enum TrustChangeError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The charter.
    #[error(transparent)]
    Charter(#[from] CharterError),
    /// The revocations.
    #[error(transparent)]
    Revocation(#[from] RevocationError),
}

/// The belief of this node. Calls that change it wait for the disk.
pub struct MeshTrust {
    mesh: MeshId,
    belief: RwLock<Belief>,
    /// Held from judgement to adoption, over the write; readers do not wait for the disk.
    changing: Mutex<()>,
    /// `None` in tests that keep nothing.
    state: Option<StateDir>,
    changes: watch::Sender<u64>,
    warned: Seldom,
}

impl std::fmt::Debug for MeshTrust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshTrust").field("mesh", &self.mesh).finish_non_exhaustive()
    }
}

impl MeshTrust {
    fn new(charter: Charter, revocations: Revocations, state: Option<StateDir>) -> Self {
        let mesh = charter.mesh();
        Self {
            mesh,
            belief: RwLock::new(Belief { charter, revocations }),
            changing: Mutex::new(()),
            state,
            changes: watch::channel(0).0,
            warned: Seldom::new(WARN_EVERY),
        }
    }

    /// Trust in `charter` and no revocations, kept in memory only: to judge what a joiner is told, and in tests.
    pub fn in_memory(charter: Charter) -> Self {
        Self::new(charter, Revocations::none(), None)
    }

    /// Trust in `charter`, kept in `state_dir` from now on. What was known there of another mesh is forgotten;
    /// of the same mesh, the longer charter and the revocations stay.
    ///
    /// # Errors
    /// [`TrustChangeError::State`].
    pub(super) fn begin(state_dir: &Path, charter: Charter) -> Result<Self, TrustChangeError> {
        let state = StateDir::open(state_dir)?;
        match Self::stored(&state, Some(charter.mesh())) {
            Ok(Some((known, revocations))) => {
                let known = Self::new(known, revocations, Some(state));
                known.accept_charter(charter.bytes(), None)?;
                return Ok(known);
            }
            Err(TrustChangeError::State(error @ StateError::Io { .. })) => return Err(error.into()),
            // Of another mesh, or damaged.
            Ok(None) | Err(_) => {}
        }
        state.write(REVOCATIONS_FILE, &[], Secrecy::Public)?;
        state.write(CHARTER_FILE, charter.bytes(), Secrecy::Public)?;
        Ok(Self::new(charter, Revocations::none(), Some(state)))
    }

    /// The trust that is stored in `state_dir`; `None` when there is none. `mesh` is which it has to be.
    ///
    /// # Errors
    /// [`StateError`] names the file that cannot be read, is damaged or is of another mesh.
    pub(super) fn open(state_dir: &Path, mesh: Option<MeshId>) -> Result<Option<Self>, TrustChangeError> {
        let state = StateDir::open(state_dir)?;
        match Self::stored(&state, mesh) {
            Ok(stored) => {
                Ok(stored.map(|(charter, revocations)| Self::new(charter, revocations, Some(state))))
            }
            Err(TrustChangeError::Charter(error)) => Err(state.damaged(CHARTER_FILE, error).into()),
            Err(TrustChangeError::Revocation(error)) => Err(state.damaged(REVOCATIONS_FILE, error).into()),
            Err(error) => Err(error),
        }
    }

    fn stored(
        state: &StateDir,
        mesh: Option<MeshId>,
    ) -> Result<Option<(Charter, Revocations)>, TrustChangeError> {
        let Some(bytes) = state.read(CHARTER_FILE, CHARTER_MAX_BYTES as u64)? else { return Ok(None) };
        let charter = match mesh {
            Some(mesh) => Charter::parse(&bytes, mesh)?,
            None => Charter::parse_any(&bytes)?,
        };
        let revocations = match state.read(REVOCATIONS_FILE, REVOCATIONS_MAX_BYTES as u64)? {
            Some(bytes) if !bytes.is_empty() => {
                // The key may have retired since.
                Revocations::parse(&bytes, charter.mesh(), charter.keys().map(|(key, _)| key))?
            }
            _ => Revocations::none(),
        };
        Ok(Some((charter, revocations)))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Belief> {
        // Each change is one assignment, so a panic elsewhere leaves it whole.
        self.belief.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mesh.
    pub fn mesh(&self) -> MeshId {
        self.mesh
    }

    /// The authority's keys, as far as this node has heard.
    pub fn charter(&self) -> Charter {
        self.read().charter.clone()
    }

    /// The newest revocations that this node has heard of.
    pub fn revocations(&self) -> Revocations {
        self.read().revocations.clone()
    }

    /// Changes whenever a document was adopted.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// How many documents were adopted so far.
    pub(super) fn generation(&self) -> u64 {
        *self.changes.borrow()
    }

    /// The authority's keys that count at `now`, newest first.
    pub fn counting_keys(&self, now: UnixTime) -> Vec<AuthorityKey> {
        self.read().charter.counting(now).collect()
    }

    /// All keys that the authority has had, newest first: what signed a stored document may have retired.
    pub fn all_keys(&self) -> Vec<AuthorityKey> {
        self.read().charter.keys().map(|(key, _)| key).collect()
    }

    /// Reads a certificate; it must count at `now`.
    ///
    /// # Errors
    /// [`MembershipError`] says what is wrong.
    pub fn verify(&self, bytes: &[u8], now: UnixTime) -> Result<MembershipCert, MembershipError> {
        let belief = self.read();
        let certificate = MembershipCert::read(bytes, self.mesh, belief.charter.counting(now))?;
        belief.check(&certificate, now)?;
        Ok(certificate)
    }

    /// Reads a certificate that any of the mesh's keys signed; it may have lapsed, but not been revoked.
    pub(super) fn verify_lapsed(&self, bytes: &[u8]) -> Result<MembershipCert, MembershipError> {
        let certificate = self.verify_signed(bytes)?;
        self.read().check_revoked(&certificate)?;
        Ok(certificate)
    }

    /// Reads a certificate that any of the mesh's keys signed, whether it counts or not.
    pub(super) fn verify_signed(&self, bytes: &[u8]) -> Result<MembershipCert, MembershipError> {
        MembershipCert::read(bytes, self.mesh, self.all_keys())
    }

    /// Whether a certificate that was read before counts at `now`.
    ///
    /// # Errors
    /// [`MembershipError`] says why not.
    pub fn check(&self, certificate: &MembershipCert, now: UnixTime) -> Result<(), MembershipError> {
        self.read().check(certificate, now)
    }

    /// The first second at which a certificate does not count, as far as its time and its signer's go.
    pub fn end_of(&self, certificate: &MembershipCert) -> UnixTime {
        let signer = certificate.signer();
        let retires = self.read().charter.keys().find(|(key, _)| *key == signer).map(|(_, retires)| retires);
        certificate.expires.min(retires.unwrap_or_default())
    }

    /// The revocation that ends a certificate of `node` issued at `issued`.
    pub fn revoked(&self, node: &NodeId, issued: UnixTime) -> Option<Revocation> {
        self.read().revocations.of(node).filter(|entry| entry.covers(issued)).cloned()
    }

    /// The revocation of a node, even if it was invited again.
    pub(super) fn revocation_of(&self, node: &NodeId) -> Option<Revocation> {
        self.read().revocations.of(node).cloned()
    }

    /// The documents, as they are told to others: the charter first, for it may be needed for the rest.
    pub(super) fn documents(&self) -> Vec<News> {
        let belief = self.read();
        let mut documents = Vec::new();
        if belief.charter.number() > 1 {
            documents.push(News::Charter(belief.charter.bytes().to_vec()));
        }
        if belief.revocations.number() > 0 {
            documents.push(News::Revocations(belief.revocations.bytes().to_vec()));
        }
        documents
    }

    /// Judges a document of trust and adopts it when it is fresh. `None` for other news. An authority gives its
    /// `keys`: where another authority has revoked somebody at the same moment, a list of both is signed at once.
    pub(super) fn judge(&self, news: &News, keys: Option<&MeshKeys>) -> Option<NewsVerdict> {
        let verdict = match news {
            News::Charter(bytes) => self.accept_charter(bytes, keys),
            News::Revocations(bytes) => self.accept_revocations(bytes, keys),
            News::Root(_) | News::Card(_) => return None,
        };
        Some(verdict.unwrap_or_else(|error| match error {
            // Nobody's misbehaviour: the disk failed, or a newer charter is not here yet.
            TrustChangeError::State(_) | TrustChangeError::Revocation(RevocationError::UnknownKey) => {
                self.warn(&error.to_string());
                NewsVerdict::Unjudged
            }
            TrustChangeError::Charter(CharterError::Version { .. })
            | TrustChangeError::Revocation(RevocationError::Version { .. }) => NewsVerdict::Unjudged,
            TrustChangeError::Charter(_) | TrustChangeError::Revocation(_) => NewsVerdict::Invalid,
        }))
    }

    fn warn(&self, why: &str) {
        if let Some(held_back) = self.warned.pass() {
            tracing::warn!(why, held_back, "a document of trust was not adopted");
        }
    }

    fn accept_charter(&self, bytes: &[u8], held: Option<&MeshKeys>) -> Result<NewsVerdict, TrustChangeError> {
        let charter = Charter::parse(bytes, self.mesh)?;
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        match self.read().charter.relation_of(&charter) {
            Relation::Same | Relation::Older => return Ok(NewsVerdict::Known),
            Relation::Contradicts => {
                self.warn("a charter contradicts the known one: somebody else holds an authority key");
                return Ok(NewsVerdict::Known);
            }
            Relation::Newer => {}
        }
        self.adopt(|belief| belief.charter = charter.clone(), CHARTER_FILE, charter.bytes())?;
        tracing::info!(key = charter.number(), "the authority has a new key");
        if let Some(problem) =
            held.and_then(|held| held_key::problem(Some(held), &charter, ambient::unix_now()))
        {
            let remedy = held_key::NEWEST_KEY_REMEDY;
            tracing::error!(problem, remedy, "this authority does not hold the mesh's newest key");
        }
        Ok(NewsVerdict::Fresh)
    }

    fn accept_revocations(
        &self,
        bytes: &[u8],
        signing: Option<&MeshKeys>,
    ) -> Result<NewsVerdict, TrustChangeError> {
        let now = ambient::unix_now();
        let mut list = Revocations::parse(bytes, self.mesh, self.counting_keys(now))?;
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (charter, known) = (self.charter(), self.revocations());
        if !known.is_older_than(&list, &charter) {
            return match signing {
                Some(keys) => self.take_up(keys, &charter, &known, &list, now),
                None => Ok(NewsVerdict::Known),
            };
        }
        if let Some(keys) = signing {
            let lost: Vec<Revocation> = known.missing_in(&list, now).cloned().collect();
            if !lost.is_empty() {
                // In one step: a crash leaves the list that has the lost entries, or the one that has all.
                match list.next(keys, &charter, lost, now) {
                    Ok(both) => list = both,
                    Err(RevocationError::OlderKey) => tracing::error!(
                        "the key was rotated elsewhere, and revocations of this authority are lost: revoke there again"
                    ),
                    // Nobody's misbehaviour who hands it on.
                    Err(error) => {
                        self.warn(&format!("a list of revocations lacks some: {error}"));
                        return Ok(NewsVerdict::Unjudged);
                    }
                }
            }
        }
        self.adopt(|belief| belief.revocations = list.clone(), REVOCATIONS_FILE, list.bytes())?;
        tracing::info!(number = list.number(), nodes = list.entries().count(), "new revocations");
        Ok(NewsVerdict::Fresh)
    }

    /// An authority takes up what a list says that ranks below its own: two of them may have signed at once, or this one began
    /// again with an older list. Only what the newest key signed: who stole an older one may have invented it
    /// (docs/decisions/0033).
    fn take_up(
        &self,
        keys: &MeshKeys,
        charter: &Charter,
        known: &Revocations,
        list: &Revocations,
        now: UnixTime,
    ) -> Result<NewsVerdict, TrustChangeError> {
        let more: Vec<Revocation> = list.missing_in(known, now).cloned().collect();
        if more.is_empty() || list.key_number(charter) < charter.number() {
            return Ok(NewsVerdict::Known);
        }
        match known.next(keys, charter, more, now) {
            Ok(both) => {
                self.adopt(|belief| belief.revocations = both.clone(), REVOCATIONS_FILE, both.bytes())?;
                tracing::info!(number = both.number(), "revocations of two lists are one now");
                Ok(NewsVerdict::Fresh)
            }
            Err(error) => {
                self.warn(&format!("revocations of another authority are not taken up: {error}"));
                Ok(NewsVerdict::Known)
            }
        }
    }

    /// Stores, then believes.
    fn adopt(&self, change: impl FnOnce(&mut Belief), file: &str, bytes: &[u8]) -> Result<(), StateError> {
        if let Some(state) = &self.state {
            state.write(file, bytes, Secrecy::Public)?;
        }
        change(&mut self.belief.write().unwrap_or_else(PoisonError::into_inner));
        self.changes.send_modify(|changes| *changes += 1);
        Ok(())
    }

    /// Revokes a node at `now`, to be listed for as long as possible.
    #[cfg(test)]
    pub(super) fn revoke(
        &self,
        keys: &MeshKeys,
        node: NodeId,
        reason: String,
        now: UnixTime,
    ) -> Result<Revocations, TrustChangeError> {
        self.sign_revocations(
            keys,
            [Revocation { node, at: now, until: now.after(REVOCATION_SPAN), reason }],
            now,
        )
    }

    /// Signs the list anew, with `more` entries: believed and durable here when this returns.
    ///
    /// # Errors
    /// [`TrustChangeError`]; nothing has changed then.
    pub(super) fn sign_revocations(
        &self,
        keys: &MeshKeys,
        more: impl IntoIterator<Item = Revocation>,
        now: UnixTime,
    ) -> Result<Revocations, TrustChangeError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let list = self.revocations().next(keys, &self.charter(), more, now)?;
        self.adopt(|belief| belief.revocations = list.clone(), REVOCATIONS_FILE, list.bytes())?;
        Ok(list)
    }

    /// Signs the list anew if `keys` are the newest and the list is of an older key.
    pub(super) fn complete_rotation(
        &self,
        keys: &MeshKeys,
        now: UnixTime,
    ) -> Result<Option<Revocations>, TrustChangeError> {
        let charter = self.charter();
        let is_due = keys.public() == charter.newest() && self.revocations().lacks_newest_key(&charter);
        is_due.then(|| self.sign_revocations(keys, [], now)).transpose()
    }

    /// Appoints the key of `new`, signed by `old`: believed and durable here when this returns.
    ///
    /// # Errors
    /// [`TrustChangeError`]; nothing has changed then.
    pub(super) fn rotate(
        &self,
        old: &MeshKeys,
        new: &MeshKeys,
        now: UnixTime,
        overlap: impl Into<Overlap>,
    ) -> Result<Charter, TrustChangeError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let charter = self.charter().rotated(old, new, now, overlap)?;
        self.adopt(|belief| belief.charter = charter.clone(), CHARTER_FILE, charter.bytes())?;
        Ok(charter)
    }
}

impl Belief {
    fn check(&self, certificate: &MembershipCert, now: UnixTime) -> Result<(), MembershipError> {
        certificate.check_time(now)?;
        let signer = certificate.signer();
        match self.charter.keys().find(|(key, _)| *key == signer) {
            Some((_, retires)) if now < retires => {}
            Some((_, at)) => return Err(MembershipError::RetiredKey { node: certificate.node, at }),
            None => return Err(MembershipError::Signature { mesh: certificate.mesh }),
        }
        self.check_revoked(certificate)
    }

    fn check_revoked(&self, certificate: &MembershipCert) -> Result<(), MembershipError> {
        match self.revocations.of(&certificate.node) {
            Some(entry) if entry.covers(certificate.issued) => {
                Err(MembershipError::Revoked { node: certificate.node, at: entry.at })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::identity::tests::TestMesh;
    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    fn founded(dir: &tempfile::TempDir) -> (TestMesh, MeshTrust) {
        let mesh = TestMesh::new();
        let trust = MeshTrust::begin(dir.path(), Charter::founded_by(mesh.keys().public())).unwrap();
        (mesh, trust)
    }

    #[test]
    fn a_revoked_member_is_refused_and_one_that_was_invited_again_is_not_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (mesh, trust) = founded(&dir);
        let now = ambient::unix_now();
        let node = NodeId([4; 32]);
        let before = mesh.keys().certify(mesh.statement(node)).unwrap();
        assert_eq!(trust.check(&before, now), Ok(()));
        trust.revoke(&mesh.keys(), node, "stolen".into(), now).unwrap();
        let mut statement = mesh.statement(node);
        statement.issued = trust.revocation_of(&node).unwrap().earliest_after(now);
        let after = mesh.keys().certify(statement).unwrap();
        let again = MeshTrust::open(dir.path(), Some(trust.mesh())).unwrap().unwrap();
        for trust in [&trust, &again] {
            let error = trust.verify(before.bytes(), now).unwrap_err();
            assert_eq!(error, MembershipError::Revoked { node, at: now });
            assert!(trust.verify_lapsed(before.bytes()).is_err());
            assert!(trust.verify(after.bytes(), now).is_ok());
        }
    }

    #[test]
    fn an_older_list_is_never_believed_after_a_newer_one() {
        let dir = tempfile::tempdir().unwrap();
        let (mesh, trust) = founded(&dir);
        let now = ambient::unix_now();
        let old = trust.revoke(&mesh.keys(), NodeId([1; 32]), String::new(), now).unwrap();
        let new = trust.revoke(&mesh.keys(), NodeId([2; 32]), String::new(), now).unwrap();
        let other = MeshTrust::in_memory(trust.charter());
        let judge = |list: &Revocations| other.judge(&News::Revocations(list.bytes().to_vec()), None);
        assert_eq!(judge(&new), Some(NewsVerdict::Fresh));
        assert_eq!(judge(&old), Some(NewsVerdict::Known));
        assert_eq!(judge(&new), Some(NewsVerdict::Known));
        assert_eq!(other.revocations().number(), 2);
    }

    #[test]
    fn two_authorities_that_revoke_at_the_same_moment_end_up_with_both() {
        let mesh = TestMesh::new();
        let (one, two, now) = (mesh.trust(), mesh.trust(), ambient::unix_now());
        let first = one.revoke(&mesh.keys(), NodeId([1; 32]), String::new(), now).unwrap();
        let second = two.revoke(&mesh.keys(), NodeId([2; 32]), String::new(), now).unwrap();
        let keys = mesh.keys();
        let hear = |trust: &MeshTrust, list: &Revocations| {
            trust.judge(&News::Revocations(list.bytes().to_vec()), Some(&keys)).unwrap()
        };
        let heard = [hear(&one, &second), hear(&two, &first)];
        let healed = if heard[0] == NewsVerdict::Fresh { &one } else { &two };
        assert_eq!((healed.revocations().number(), healed.revocations().entries().count()), (2, 2));
        for trust in [&one, &two] {
            hear(trust, &healed.revocations());
            assert_eq!(trust.revocations(), healed.revocations());
        }
    }

    #[test]
    fn an_authority_takes_up_what_an_outranked_list_of_the_same_key_says_and_nothing_of_an_older_key() {
        let mesh = TestMesh::new();
        let (restored, other, now) = (mesh.trust(), mesh.trust(), ambient::unix_now());
        let (old, new) = (mesh.keys(), mesh.keys().successor());
        let hear = |trust: &MeshTrust, keys: Option<&MeshKeys>, list: &Revocations| {
            trust.judge(&News::Revocations(list.bytes().to_vec()), keys).unwrap()
        };
        // One that began again with nothing has signed more lists than the other, which knows of somebody else.
        let elsewhere = other.revoke(&old, NodeId([9; 32]), "stolen".into(), now).unwrap();
        for node in [1, 2] {
            restored.revoke(&old, NodeId([node; 32]), String::new(), now).unwrap();
        }
        assert_eq!(hear(&restored, None, &elsewhere), NewsVerdict::Known, "a member cannot sign");
        assert_eq!(hear(&restored, Some(&old), &elsewhere), NewsVerdict::Fresh);
        assert_eq!((restored.revocations().number(), restored.revocations().entries().count()), (3, 3));
        assert_eq!(hear(&restored, Some(&old), &elsewhere), NewsVerdict::Known, "once");
        assert_eq!(hear(&other, None, &restored.revocations()), NewsVerdict::Fresh);

        let late = other.revoke(&old, NodeId([10; 32]), "invented".into(), now).unwrap();
        restored.rotate(&old, &new, now, SOON).unwrap();
        restored.sign_revocations(&new, [], now).unwrap();
        assert_eq!(hear(&restored, Some(&new), &late), NewsVerdict::Known);
        assert!(restored.revocation_of(&NodeId([10; 32])).is_none());
    }

    #[test]
    fn a_list_that_a_thief_signed_with_the_last_number_is_replaced_after_a_rotation() {
        let mesh = TestMesh::new();
        let (authority, member, now) = (mesh.trust(), mesh.trust(), ambient::unix_now());
        let (old, new) = (mesh.keys(), mesh.keys().successor());
        let hear = |trust: &MeshTrust, keys: Option<&MeshKeys>, list: &Revocations| {
            trust.judge(&News::Revocations(list.bytes().to_vec()), keys).unwrap()
        };
        let (first, second) = (NodeId([1; 32]), NodeId([2; 32]));
        let honest = authority.revoke(&old, first, String::new(), now).unwrap();
        assert_eq!(hear(&member, None, &honest), NewsVerdict::Fresh);
        let stolen = Revocations::last_of(&old);
        assert_eq!(hear(&member, None, &stolen), NewsVerdict::Fresh);
        assert_eq!(hear(&authority, Some(&old), &stolen), NewsVerdict::Unjudged, "it would lose an entry");
        assert_eq!(authority.revocations(), honest);

        let charter = authority.rotate(&old, &new, now, SOON).unwrap();
        let signed = authority.sign_revocations(&new, [], now).unwrap();
        member.judge(&News::Charter(charter.bytes().to_vec()), None);
        assert_eq!(hear(&member, None, &signed), NewsVerdict::Fresh);
        for trust in [&authority, &member] {
            assert_eq!(hear(trust, None, &stolen), NewsVerdict::Known);
            assert!(trust.revocation_of(&first).is_some());
        }
        // An authority that has the old key only is told that it cannot.
        let error = member.revoke(&old, second, String::new(), now).unwrap_err();
        assert!(matches!(error, TrustChangeError::Revocation(RevocationError::OlderKey)), "{error}");
        assert_eq!(
            hear(&member, None, &authority.revoke(&new, second, String::new(), now).unwrap()),
            NewsVerdict::Fresh
        );
    }

    #[test]
    fn certificates_of_both_keys_count_in_the_overlap_and_then_only_those_of_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let (mesh, trust) = founded(&dir);
        let now = ambient::unix_now();
        let (old, new) = (mesh.keys(), mesh.keys().successor());
        let before = old.certify(mesh.statement(NodeId([1; 32]))).unwrap();
        let charter = trust.rotate(&old, &new, now, SOON).unwrap();
        let after = new.certify(mesh.statement(NodeId([2; 32]))).unwrap();
        let other = MeshTrust::in_memory(Charter::founded_by(old.public()));
        assert!(matches!(other.verify(after.bytes(), now), Err(MembershipError::Signature { .. })));
        assert_eq!(other.judge(&News::Charter(charter.bytes().to_vec()), None), Some(NewsVerdict::Fresh));
        for trust in [&trust, &other, &MeshTrust::open(dir.path(), Some(trust.mesh())).unwrap().unwrap()] {
            assert!(trust.verify(before.bytes(), now).is_ok() && trust.verify(after.bytes(), now).is_ok());
            let end = now.after(SOON);
            assert!(matches!(trust.check(&before, end), Err(MembershipError::RetiredKey { .. })));
            assert!(matches!(trust.verify(before.bytes(), end), Err(MembershipError::Signature { .. })));
            assert_eq!(trust.check(&after, end), Ok(()));
        }
    }

    #[test]
    fn forged_documents_are_invalid_and_those_of_an_unknown_key_unjudged() {
        let dir = tempfile::tempdir().unwrap();
        let (mesh, trust) = founded(&dir);
        let now = ambient::unix_now();
        let newer = mesh.keys().successor();
        let after = trust.charter().rotated(&mesh.keys(), &newer, now, SOON).unwrap();
        let ahead = Revocations::none().next(&newer, &after, [], now).unwrap();
        assert_eq!(
            trust.judge(&News::Revocations(ahead.bytes().to_vec()), None),
            Some(NewsVerdict::Unjudged)
        );
        let mut forged =
            Revocations::none().next(&mesh.keys(), &trust.charter(), [], now).unwrap().bytes().to_vec();
        forged[50] ^= 1;
        assert_eq!(trust.judge(&News::Revocations(forged), None), Some(NewsVerdict::Invalid));
        assert_eq!(trust.judge(&News::Charter(vec![1; 40]), None), Some(NewsVerdict::Invalid));
        assert_eq!(trust.judge(&News::Root(vec![]), None), None);
    }

    #[test]
    fn a_contradicting_charter_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (mesh, trust) = founded(&dir);
        let now = ambient::unix_now();
        let thief = Charter::founded_by(mesh.keys().public())
            .rotated(&mesh.keys(), &mesh.keys().successor(), now, SOON)
            .unwrap();
        let ours = trust.rotate(&mesh.keys(), &mesh.keys().successor(), now, SOON).unwrap();
        assert_eq!(trust.judge(&News::Charter(thief.bytes().to_vec()), None), Some(NewsVerdict::Known));
        assert_eq!(trust.charter(), ours);
    }

    #[test]
    fn trust_in_another_mesh_is_begun_anew_and_trust_in_the_same_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (mesh, trust) = founded(&dir);
        trust.revoke(&mesh.keys(), NodeId([1; 32]), String::new(), ambient::unix_now()).unwrap();
        let kept = MeshTrust::begin(dir.path(), Charter::founded_by(mesh.keys().public())).unwrap();
        assert_eq!(kept.revocations().number(), 1);
        let other = TestMesh::new();
        let anew = MeshTrust::begin(dir.path(), Charter::founded_by(other.keys().public())).unwrap();
        assert_eq!((anew.mesh(), anew.revocations().number()), (other.keys().mesh(), 0));
    }

    #[test]
    fn a_damaged_document_is_named_with_what_to_do_and_a_new_join_replaces_it() {
        let dir = tempfile::tempdir().unwrap();
        let (mesh, trust) = founded(&dir);
        trust.revoke(&mesh.keys(), NodeId([1; 32]), String::new(), ambient::unix_now()).unwrap();
        for (file, content) in
            [(REVOCATIONS_FILE, vec![1; 20]), (CHARTER_FILE, vec![1; 20]), (CHARTER_FILE, vec![1; 100_000])]
        {
            std::fs::write(dir.path().join(file), content).unwrap();
            let error = MeshTrust::open(dir.path(), Some(mesh.keys().mesh())).unwrap_err();
            assert!(error.to_string().contains(&*dir.path().join(file).to_string_lossy()), "{error}");
            let TrustChangeError::State(error) = error else { panic!("{error}") };
            assert!(error.hint().is_some());
        }
        MeshTrust::begin(dir.path(), Charter::founded_by(mesh.keys().public())).unwrap();
        assert!(MeshTrust::open(dir.path(), Some(mesh.keys().mesh())).unwrap().is_some());
    }
}
