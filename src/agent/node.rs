//! What the control API can ask of a running agent.

use super::api::cache::{
    CacheCleaned, CacheReport, CacheUnits, PinRequest, PinStatus, Verified, VerifyRequest,
};
use super::api::trace::{EndRecording, RecordRequest, Recorded, Recording};
use super::api::{
    AddRepository, Announced, AuthorityStatus, CacheStatus, Invitation, InviteRequest, Members, MeshStatus,
    MountRequest, MountStatus, Mounts, Obtained, PeerStatus, Peers, Refusal, RefusalKind,
    Repositories as RepositoryList, RepositoryStatus, RevokeRequest, Revoked, RotateRequest, Rotated, Status,
    UnmountRequest, VERSION, Why, WhyRequest,
};
use super::books;
use super::cached;
use super::company::Company;
use super::holdings::Holdings;
use super::interfaces::Places;
use super::mounter::ReadBook;
use super::mounts::MountTable;
use super::pins::Pins;
use super::server::Control;
use super::why::why;
use crate::ambient;
use crate::cache::DiskCache;
use crate::config::Settings;
use crate::mesh::{Identity, Mesh, News, NewsVerdict, Office};
use crate::model::{ContentId, NodeId, RepositoryName, Revision, Time};
use crate::trust::{Fingerprint, Repositories, RepositoryCard, SignedCard, SignedRoot};
use crate::upstream::{HttpClient, Upstream, UpstreamError};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// How long a mount waits for a repository's card: a member that has just joined hears of the mesh's
/// repositories within a second or two (a guess with room for a busy machine).
const CARD_PATIENCE: Duration = Duration::from_secs(10);

/// How long it waits for the root to follow its card before it asks the strata (a guess).
const ROOT_PATIENCE: Duration = Duration::from_secs(5);

/// The parts of a running agent that the control API reaches.
pub(super) struct Node {
    pub(super) started: Time,
    pub(super) settings: Settings,
    /// `None`: this agent stands alone.
    pub(super) membership: Option<Membership>,
    pub(super) registry: Arc<Repositories>,
    pub(super) cache: Arc<DiskCache>,
    pub(super) http: HttpClient,
    pub(super) mesh: Arc<Mesh>,
    pub(super) mounts: Arc<MountTable>,
    /// What the keeper has of the mounts; `None` where they are not to outlive the agent.
    pub(super) holdings: Option<Arc<Holdings>>,
    /// What stays in the cache.
    pub(super) pins: Arc<Pins>,
    /// Makes the mounts look for something newer at once.
    pub(super) wake: Arc<Notify>,
    /// Reads that failed.
    pub(super) reads: Arc<ReadBook>,
    /// Whether others of the mesh are seen.
    pub(super) company: Company,
    /// Why this authority lets nobody in, if it does not.
    pub(super) no_desk: Option<String>,
    /// Why there is no folder of all repositories, where one is wanted.
    pub(super) no_automount: Option<String>,
    /// Why the membership on the disk does not count, so that this node stands alone.
    pub(super) no_membership: Option<String>,
}

/// Who this node is in its mesh.
#[derive(Clone)]
pub(super) struct Membership {
    pub(super) identity: Arc<Identity>,
    /// Where others reach it.
    pub(super) places: Arc<Places>,
    /// Where it is an authority.
    pub(super) office: Option<Arc<Office>>,
}

impl Membership {
    /// Where others reach it best.
    pub(super) fn address(&self) -> SocketAddr {
        self.places.best()
    }

    /// Why it does not count any more, by what this node believes itself.
    fn ended(&self) -> Option<String> {
        let (trust, own) = (self.identity.trust(), self.identity.membership());
        trust.check(&own, ambient::unix_now()).err().map(|error| error.to_string())
    }
}

impl Node {
    async fn peer_list(&self) -> Peers {
        let revoked = self.revoked_members().await;
        let known = self.mesh.peers().await;
        // Members that were forgotten count in the whole, too.
        let counts = self.mesh.counts();
        let mut peers: Vec<_> = known
            .into_iter()
            .map(|peer| PeerStatus {
                node: peer.node,
                cell: peer.cell,
                address: peer.addr,
                up: peer.up,
                revoked: revoked.contains(&peer.node),
                rtt_us: peer.rtt_us,
                sent_bytes: peer.bytes_up,
                received_bytes: peer.bytes_down,
                sent_share: share(peer.bytes_up, counts.bytes_up),
                received_share: share(peer.bytes_down, counts.bytes_down),
            })
            .collect();
        peers.sort_by(|a, b| (&a.cell, a.node).cmp(&(&b.cell, b.node)));
        let membership = self.membership.as_ref();
        let ended = membership.and_then(Membership::ended);
        Peers { node: membership.map(|m| m.identity.node()), ended, peers }
    }

    /// Members whose certificate was revoked, as far as they are still remembered.
    pub(super) async fn revoked_members(&self) -> BTreeSet<NodeId> {
        let Some(membership) = &self.membership else { return BTreeSet::new() };
        let trust = membership.identity.trust();
        if trust.revocations().entries().next().is_none() {
            return BTreeSet::new();
        }
        let members = self.mesh.members().await;
        let revoked =
            members.iter().map(|m| &m.membership).filter(|m| trust.revoked(&m.node, m.issued).is_some());
        revoked.map(|membership| membership.node).collect()
    }

    /// Nodes that were revoked, known or not, apart from those that were seen to be members again.
    pub(super) async fn gone_for_good(&self) -> BTreeSet<NodeId> {
        let Some(membership) = &self.membership else { return BTreeSet::new() };
        let trust = membership.identity.trust();
        let mut gone: BTreeSet<NodeId> = trust.revocations().entries().map(|entry| entry.node).collect();
        if !gone.is_empty() {
            let members = self.mesh.members().await;
            let again =
                members.iter().filter(|m| trust.revoked(&m.membership.node, m.membership.issued).is_none());
            again.for_each(|member| {
                gone.remove(&member.membership.node);
            });
        }
        gone
    }

    fn repository_list(&self) -> Vec<RepositoryStatus> {
        let spread = self.spread();
        self.registry.cards().iter().map(|card| self.repository(card, spread.contains(&card.name))).collect()
    }

    fn repository(&self, card: &RepositoryCard, spread: bool) -> RepositoryStatus {
        let root = self.registry.newest_root(&card.name);
        RepositoryStatus {
            repository: card.name.clone(),
            fingerprint: card.fingerprint.to_string(),
            strata: card.strata.clone(),
            spread,
            revision: root.as_ref().map(|root| root.root().revision),
            expires: root.as_ref().map(|root| root.root().expires),
        }
    }

    /// The repositories for which the mesh's authority vouches.
    fn spread(&self) -> BTreeSet<RepositoryName> {
        let Some(membership) = &self.membership else { return BTreeSet::new() };
        let keys = membership.identity.trust().all_keys();
        let cards = self.registry.signed_cards();
        cards
            .iter()
            .filter_map(|card| keys.iter().find_map(|key| SignedCard::verify(card, &key.to_bytes()).ok()))
            .map(|card| card.name)
            .collect()
    }

    /// Judges a root, adopts it, hands it on. The verdict of the mesh is one word, so that what a person
    /// needs to know of a refusal is found out here.
    async fn take_root(&self, root: Bytes) -> Result<Announced, Refusal> {
        let untrusted = |detail: &dyn std::fmt::Display| {
            Refusal::new(RefusalKind::Untrusted, format!("the root is refused: {detail}"))
        };
        let repository = SignedRoot::claimed_repository(&root).map_err(|error| untrusted(&error))?;
        let Some(card) = self.registry.card(&repository) else {
            let message = format!("repository {repository} is not known here");
            return Err(Refusal::new(RefusalKind::NotFound, message)
                .hint(format!("make it known: starling repo add {repository}@FINGERPRINT --stratum URL")));
        };
        let verified = SignedRoot::verify(&root, &repository, &card.fingerprint, ambient::unix_now())
            .map_err(|error| untrusted(&error))?;
        let revision = verified.root().revision;
        match self.mesh.announce_local(News::Root(root.to_vec())).await {
            NewsVerdict::Fresh => {
                self.wake.notify_one();
                Ok(Announced { repository, revision, fresh: true })
            }
            NewsVerdict::Known => match self.registry.newest_root(&repository) {
                Some(newest) if newest.id() != ContentId::of(&root) => {
                    Err(untrusted(&older(revision, newest.root().revision)))
                }
                _ => Ok(Announced { repository, revision, fresh: false }),
            },
            NewsVerdict::Invalid => Err(untrusted(&"its signatures do not hold")),
            NewsVerdict::Unjudged => Err(Refusal::new(
                RefusalKind::Internal,
                format!("the root of {repository} revision {revision} could not be stored"),
            )
            .hint("is the disk of the state folder full? see the agent's log")),
        }
    }

    async fn make_known(&self, request: AddRepository) -> Result<RepositoryStatus, Refusal> {
        let invalid = |error: &dyn std::fmt::Display| Refusal::new(RefusalKind::Invalid, error);
        let card = RepositoryCard {
            name: request.repository,
            fingerprint: request.fingerprint.parse::<Fingerprint>().map_err(|error| invalid(&error))?,
            strata: request.strata,
            issued: ambient::unix_now(),
        };
        card.check().map_err(|error| invalid(&error))?;
        let root = self.root_from_strata(&card).await?;
        let keys = self.membership.as_ref().and_then(|membership| membership.identity.mesh_keys());
        let spread = keys.is_some();
        match keys {
            Some(keys) => {
                let signed = keys.sign_card(&card).map_err(|error| invalid(&error))?;
                // Known: the same card was signed within this second.
                if !matches!(
                    self.mesh.announce_local(News::Card(signed)).await,
                    NewsVerdict::Fresh | NewsVerdict::Known
                ) {
                    return Err(Refusal::new(RefusalKind::Internal, "the card could not be stored"));
                }
                self.check_adopted(&card)?;
            }
            None => self
                .registry
                .add_by_hand(card.clone())
                .map_err(|error| Refusal::new(RefusalKind::Conflict, error))?,
        }
        if let Some(root) = root {
            // What the stratum has may be older than what is known already, which is no failure.
            if let Err(refusal) = self.take_root(root).await {
                tracing::info!(repository = %card.name, %refusal, "the stratum's root was not adopted");
            }
        }
        self.wake.notify_one();
        Ok(self.repository(&card, spread))
    }

    /// A card for another fingerprint than the known one is not adopted.
    fn check_adopted(&self, card: &RepositoryCard) -> Result<(), Refusal> {
        match self.registry.card(&card.name) {
            Some(known) if known.fingerprint == card.fingerprint => Ok(()),
            Some(known) => Err(Refusal::new(
                RefusalKind::Conflict,
                format!(
                    "{} is known with the fingerprint {}, not {}",
                    card.name, known.fingerprint, card.fingerprint
                ),
            )),
            None => Err(Refusal::new(RefusalKind::Conflict, "too many repositories are known")),
        }
    }

    /// The root as the first stratum that answers has it, verified; `None` when nothing is published
    /// there yet. A card none of whose strata can be reached would only be found wrong later.
    async fn root_from_strata(&self, card: &RepositoryCard) -> Result<Option<Bytes>, Refusal> {
        let (mut failures, mut is_empty) = (Vec::new(), false);
        for url in &card.strata {
            let stratum =
                self.http.stratum(url).map_err(|error| Refusal::new(RefusalKind::Invalid, error))?;
            match stratum.fetch_root(&card.name).await {
                Ok(root) => {
                    SignedRoot::verify(&root, &card.name, &card.fingerprint, ambient::unix_now()).map_err(
                        |error| {
                            Refusal::new(
                                RefusalKind::Untrusted,
                                format!("the root at {url} is refused: {error}"),
                            )
                            .hint("is the fingerprint right, and is it the right stratum?")
                        },
                    )?;
                    return Ok(Some(root));
                }
                Err(UpstreamError::Status { status: 404, .. }) => is_empty = true,
                Err(error) => failures.push(error.to_string()),
            }
        }
        if is_empty {
            return Ok(None);
        }
        Err(Refusal::new(RefusalKind::Unavailable, format!("stratum not reachable: {}", failures.join("; ")))
            .hint("is it up, and is the URL right? `starling stratum serve DIR` serves a published folder"))
    }

    /// What is wrong beside memberships that ended and mounts that are not there.
    fn troubles(&self) -> Vec<String> {
        let troubles = [
            self.waits_for_restart(),
            self.no_membership.clone(),
            self.company.trouble(),
            self.no_desk.clone(),
            self.no_automount.clone(),
            self.holdings.as_ref().and_then(|holdings| holdings.trouble()),
            self.mounts.trouble(),
        ];
        troubles.into_iter().flatten().collect()
    }

    /// An agent that stands alone, though its machine has become a member of a mesh since it started.
    pub(super) fn waits_for_restart(&self) -> Option<String> {
        let is_member = self.membership.is_none() && Identity::load(&self.settings.state_dir).is_ok();
        is_member.then(|| {
            "this machine has become a member of a mesh since its agent started: restart the agent".to_owned()
        })
    }

    fn mesh_status(&self, peers: &Peers) -> Option<MeshStatus> {
        let membership = self.membership.as_ref()?;
        let certificate = membership.identity.membership();
        Some(MeshStatus {
            mesh: certificate.mesh.to_string(),
            node: certificate.node,
            cell: certificate.cell.clone(),
            authority: membership.identity.mesh_keys().is_some(),
            address: membership.address(),
            expires: certificate.expires,
            members_up: 1 + peers.peers.iter().filter(|peer| peer.up).count(),
            dht: self.settings.dht,
            ended: membership.ended(),
            key_problem: membership.identity.key_problem(ambient::unix_now()),
        })
    }
}

/// Waits until `known` holds, looking again whenever a document came in.
async fn until(known: impl Fn() -> bool, mut news: tokio::sync::watch::Receiver<u64>) {
    while !known() {
        if news.changed().await.is_err() {
            return;
        }
    }
}

/// A part of a whole; of nothing, none.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn older(found: Revision, known: Revision) -> String {
    if found == known {
        format!(
            "it is another document for revision {known}, or an older signing of it, than the one accepted here"
        )
    } else {
        format!("revision {found} is older than revision {known}, which was accepted here")
    }
}

impl Control for Node {
    fn status(&self) -> BoxFuture<'_, Status> {
        async move {
            let peers = self.peer_list().await;
            let cache = self.cache.statistics();
            Status {
                api: VERSION,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                uptime_s: (ambient::now() - self.started).as_secs(),
                state_dir: self.settings.state_dir.clone(),
                mesh: self.mesh_status(&peers),
                cache: CacheStatus {
                    used_bytes: cache.bytes,
                    quota_bytes: cache.quota_bytes,
                    chunks: cache.entries,
                },
                obtained: Obtained {
                    cache_bytes: cache.obtained.cache.bytes,
                    peers_bytes: cache.obtained.peers.bytes,
                    strata_bytes: cache.obtained.strata.bytes,
                },
                repositories: self.repository_list(),
                mounts: self.mounts.list(),
                troubles: self.troubles(),
            }
        }
        .boxed()
    }

    fn peers(&self) -> BoxFuture<'_, Peers> {
        self.peer_list().boxed()
    }

    fn mounts(&self) -> Mounts {
        Mounts { mounts: self.mounts.list() }
    }

    fn repositories(&self) -> RepositoryList {
        RepositoryList { repositories: self.repository_list() }
    }

    fn mount(&self, request: MountRequest) -> BoxFuture<'_, Result<MountStatus, Refusal>> {
        let (mounts, registry) = (Arc::clone(&self.mounts), Arc::clone(&self.registry));
        let news = self.membership.is_some().then(|| self.mesh.news_changed());
        unhurried(async move {
            if let Some(news) = news {
                let card = || registry.card(&request.repository).is_some();
                let root = || registry.newest_root(&request.repository).is_some();
                // Not there in time: the table says so, with what to do, or asks the strata for the root.
                let _ = tokio::time::timeout(CARD_PATIENCE, until(card, news.clone())).await;
                if card() {
                    let _ = tokio::time::timeout(ROOT_PATIENCE, until(root, news)).await;
                }
            }
            mounts.mount(request).await
        })
    }

    fn record(&self, request: RecordRequest) -> Result<Recording, Refusal> {
        self.mounts.begin_recording(&request)
    }

    fn end_recording(&self, request: EndRecording) -> BoxFuture<'_, Result<Recorded, Refusal>> {
        self.mounts.end_recording(request).boxed()
    }

    fn unmount(&self, request: UnmountRequest) -> BoxFuture<'_, Result<MountStatus, Refusal>> {
        let mounts = Arc::clone(&self.mounts);
        unhurried(async move { mounts.unmount(&request.directory).await })
    }

    fn announce(&self, root: Bytes) -> BoxFuture<'_, Result<Announced, Refusal>> {
        self.take_root(root).boxed()
    }

    fn add_repository(&self, request: AddRepository) -> BoxFuture<'_, Result<RepositoryStatus, Refusal>> {
        self.make_known(request).boxed()
    }

    fn invite(&self, request: InviteRequest) -> BoxFuture<'_, Result<Invitation, Refusal>> {
        async move { self.make_ticket(request) }.boxed()
    }

    fn why(&self, request: WhyRequest) -> BoxFuture<'_, Result<Why, Refusal>> {
        why(self, request).boxed()
    }

    fn members(&self) -> BoxFuture<'_, Result<Members, Refusal>> {
        self.member_list().boxed()
    }

    fn authority(&self) -> BoxFuture<'_, Result<AuthorityStatus, Refusal>> {
        self.authority_status().boxed()
    }

    fn revoke(&self, request: RevokeRequest) -> BoxFuture<'_, Result<Revoked, Refusal>> {
        self.revoke_member(request).boxed()
    }

    fn rotate(&self, request: RotateRequest) -> BoxFuture<'_, Result<Rotated, Refusal>> {
        self.rotate_key(request).boxed()
    }

    fn cache(&self) -> CacheReport {
        cached::report(self)
    }

    fn cache_units(&self) -> CacheUnits {
        cached::units(&self.cache)
    }

    fn cache_verify(&self, request: VerifyRequest) -> BoxFuture<'_, Result<Verified, Refusal>> {
        cached::verify(self.cache.clone(), request).boxed()
    }

    fn cache_clean(&self) -> BoxFuture<'_, Result<CacheCleaned, Refusal>> {
        cached::clean(self.cache.clone()).boxed()
    }

    fn pin(&self, request: PinRequest) -> BoxFuture<'_, Result<PinStatus, Refusal>> {
        let pins = self.pins.clone();
        unhurried(async move { pins.pin(request).await })
    }

    fn unpin(&self, request: PinRequest) -> BoxFuture<'_, Result<PinStatus, Refusal>> {
        let pins = self.pins.clone();
        unhurried(async move { pins.unpin(request).await })
    }

    fn metrics(&self) -> BoxFuture<'_, String> {
        async move {
            let peers = self.peer_list().await;
            books::text(self, &peers)
        }
        .boxed()
    }
}

/// Runs `work` to its end even if the client goes away, so that nothing stays half mounted.
fn unhurried<T: Send + 'static>(
    work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> BoxFuture<'static, Result<T, Refusal>> {
    let task = tokio::spawn(work);
    async move {
        task.await.unwrap_or_else(|error| {
            Err(Refusal::new(RefusalKind::Internal, format!("the agent failed at it: {error}")))
        })
    }
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_part_of_the_whole_and_none_of_nothing() {
        assert_eq!([share(0, 0), share(0, 8), share(2, 8), share(8, 8)], [0.0, 0.0, 0.25, 1.0]);
    }
}
