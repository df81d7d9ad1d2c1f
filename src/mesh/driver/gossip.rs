//! What the loop does about members, other cells and news.

use super::super::dht::{DhtKey, Neighbour, Urgency};
use super::super::membership::{MembershipCert, Role};
use super::super::mesh_trust::MeshTrust;
use super::super::ports::{News, NewsVerdict};
use super::super::proto::{Input, NewsId, Part, Peer};
use super::super::renewal::View;
use super::super::swim::MemberEvent;
use super::super::transfer;
use super::super::wire::{MEMBERS_PER_FRAME, MemberRecord, RenewReply};
use super::cell_book::Cell;
use super::cells::{CONTACTS_OF_CELL, CellView, Hint};
use super::counters::count;
use super::peers::PeerEntry;
use super::possession::TELLING_MAX;
use super::task::{Driver, Message, TaskLinks};
use crate::ambient;
use crate::model::{CellLabel, ContentId, Generator, NodeId, Rng, Time, mix};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Members of a cell, by rank, that announce it: with three, one that died unseen does no harm.
const ANNOUNCERS: usize = 3;
/// Documents of peers that are judged at once; beyond, they are dropped, and come again by an exchange.
const JUDGING_MAX: usize = 32;
/// The same for lists of revocations and charters: a flood of roots must not keep a revoked node in (guess: few are
/// ever under way).
const JUDGING_TRUST_MAX: usize = 8;
/// Documents that are handed on at once; beyond, they wait for an exchange, and are counted.
const SPREADING_MAX: usize = 128;
/// The same for lists of revocations and charters: a publisher of hundreds of roots, or peers that do not answer, must not
/// keep a revocation from its first hop (guess: several documents, each told to a handful of peers).
const SPREADING_TRUST_MAX: usize = 64;
/// Pause between two exchanges of all documents with a random peer, and its random part (guess).
const SYNC_PAUSE: Duration = Duration::from_secs(60);
const SYNC_SPREAD_S: usize = 30;
/// How often peers are looked through for those whose certificate has expired.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Pause after an exchange that failed.
const SYNC_RETRY: Duration = Duration::from_secs(2);
/// Exchanges in a row that failed from which on a node takes itself for alone, whomever it believes to be up: members of
/// other cells are not probed, and all of them may have closed their doors (guess: one or two may just have gone down).
const FAILED_ALONE: u8 = 3;
/// Exchanges that a newcomer has soon, each with a random member: one of them may be as new as itself (guess).
const SYNCS_EARLY: u8 = 4;

/// Members of a part of the own label that SWIM is told of: they may be in this cell again.
const RELATIVES: usize = 4;
/// Least pause between two hints that the view of the region is being used.
const USED_LEAST: Duration = Duration::from_secs(1);

/// Members' certificates, and what is due.
pub(super) struct Gossip {
    members: BTreeMap<NodeId, (SocketAddr, Bytes)>,
    /// A few members of each other cell of the region.
    others: BTreeMap<Cell, Vec<(SocketAddr, Bytes)>>,
    used: Option<Time>,
    announcing: bool,
    generator: Generator,
    sync_due: Time,
    syncing: bool,
    /// Whether the last exchange was refused: perhaps this node is no member any more, and has not heard of it.
    refused: bool,
    /// Exchanges of a newcomer that are still to come.
    early: u8,
    /// Exchanges in a row that failed.
    failed: u8,
    judging: Arc<Semaphore>,
    judging_trust: Arc<Semaphore>,
    spreading: Arc<Semaphore>,
    spreading_trust: Arc<Semaphore>,
    /// What was believed of the mesh when the peers were last looked through, and when that is done again.
    believed: u64,
    look_due: Time,
    /// Whether this node was revoked. Then it knows nobody.
    pub(super) ended: bool,
    pub(super) telling: Arc<Semaphore>,
}

impl Gossip {
    pub(super) fn new(generator: Generator) -> Self {
        Self {
            members: BTreeMap::new(),
            others: BTreeMap::new(),
            used: None,
            announcing: false,
            generator,
            sync_due: Time::ZERO,
            syncing: false,
            refused: false,
            early: SYNCS_EARLY,
            failed: 0,
            judging: Arc::new(Semaphore::new(JUDGING_MAX)),
            judging_trust: Arc::new(Semaphore::new(JUDGING_TRUST_MAX)),
            spreading: Arc::new(Semaphore::new(SPREADING_MAX)),
            spreading_trust: Arc::new(Semaphore::new(SPREADING_TRUST_MAX)),
            believed: 0,
            look_due: Time::ZERO,
            ended: false,
            telling: Arc::new(Semaphore::new(TELLING_MAX)),
        }
    }

    /// A random number.
    pub(super) fn draw(&mut self) -> usize {
        self.generator.below(usize::MAX)
    }

    /// Where a document waits for its judgement.
    fn places(&self, news: &News) -> &Arc<Semaphore> {
        match news {
            News::Charter(_) | News::Revocations(_) => &self.judging_trust,
            News::Root(_) | News::Card(_) => &self.judging,
        }
    }

    /// What a document needs to be handed on to one peer, if there is room.
    fn spreading_place(&self, news: &News) -> Option<OwnedSemaphorePermit> {
        let places = match news {
            News::Charter(_) | News::Revocations(_) => &self.spreading_trust,
            News::Root(_) | News::Card(_) => &self.spreading,
        };
        Arc::clone(places).try_acquire_owned().ok()
    }

    /// The other members of the cell that are up, and their certificates.
    pub(super) fn members(&self) -> impl Iterator<Item = (SocketAddr, &Bytes)> {
        self.members.values().map(|(addr, certificate)| (*addr, certificate))
    }

    /// A few members of each other cell of the region that is known, and their certificates.
    pub(super) fn others(&self) -> impl Iterator<Item = (SocketAddr, &Bytes)> {
        self.others.values().flatten().map(|(addr, certificate)| (*addr, certificate))
    }
}

impl Driver {
    /// SWIM speaks.
    pub(super) fn member_changed(&mut self, event: MemberEvent) {
        if self.gossip.ended && !matches!(event, MemberEvent::Down(_)) {
            return;
        }
        match event {
            MemberEvent::Up { node, addr, certificate } => {
                let Some(membership) = self.verified(&certificate) else { return };
                self.gossip.members.insert(node, (addr, certificate));
                if let Some(peer) = self.meet_member(addr, &membership) {
                    self.set_up(peer, true);
                }
                if let Some(dht) = self.dht() {
                    dht.add_member(Neighbour { node, addr, membership });
                }
            }
            MemberEvent::Renewed { node, certificate } => {
                if let Some(membership) = self.verified(&certificate) {
                    if let Some(member) = self.gossip.members.get_mut(&node) {
                        member.1 = certificate;
                    }
                    self.certified(&membership);
                }
                return;
            }
            MemberEvent::Reached { node, addresses } => {
                if let Some(network) = &self.links.network {
                    network.endpoint.know(node, &addresses);
                }
                return;
            }
            MemberEvent::Moved(node) => {
                if let Some(network) = &self.links.network {
                    network.endpoint.disconnect(&node);
                }
                // What its old life was asked comes to nothing, and is not held against the new one.
                if let Some(peer) = self.peers.number(&node)
                    && self.peers.get(peer).is_some_and(|entry| entry.up)
                {
                    self.set_up(peer, false);
                    self.set_up(peer, true);
                }
            }
            MemberEvent::Parted(part) => self.parted(part),
            MemberEvent::Down(node) => {
                if self.gossip.members.remove(&node).is_some() && self.gossip.members.is_empty() {
                    // Nobody of the cell speaks to this node any more. Whether anybody does at all, an exchange shows:
                    // who is alone asks an authority why.
                    self.gossip.sync_due = ambient::now();
                }
                if let Some(peer) = self.peers.number(&node) {
                    self.set_up(peer, false);
                }
                if let Some(network) = &self.links.network {
                    network.endpoint.disconnect(&node);
                }
                if let Some(dht) = self.dht() {
                    dht.down(node);
                }
            }
        }
        self.announce_cell();
    }

    /// This node's cell is another part of its label now: others are its homes. Who was in it and is no longer is up
    /// as before, in the next cell; who is in it again is up when SWIM says so.
    fn parted(&mut self, part: Part) {
        let counters = &self.links.counters;
        let is_finer = part.bits() > self.peers.own_cell().part.bits();
        count(if is_finer { &counters.cells_halved } else { &counters.cells_joined });
        let mut updates = Vec::new();
        self.peers.set_own_part(part, &mut updates);
        self.tell_peers(updates);
        let own = self.peers.own_cell().clone();
        tracing::info!(cell = %own, "homes are others");
        self.gossip.others.retain(|cell, _| cell.label != own.label || !own.part.covers(cell.part));
        let left: Vec<NodeId> =
            self.gossip.members.keys().filter(|node| !part.holds(node.key())).copied().collect();
        for node in left {
            let Some(contact) = self.gossip.members.remove(&node) else { continue };
            let contacts = self.gossip.others.entry(self.peers.cell_of(&own.label, &node)).or_default();
            if contacts.len() < CONTACTS_OF_CELL {
                contacts.push(contact);
            }
        }
        let joined: Vec<(Peer, NodeId, SocketAddr)> = self
            .peers
            .others()
            .filter(|(_, entry)| entry.up && self.peers.is_in(entry, &own))
            .filter(|(_, entry)| !self.gossip.members.contains_key(&entry.node))
            .map(|(peer, entry)| (peer, entry.node, entry.addr))
            .collect();
        for (number, (peer, node, addr)) in joined.into_iter().enumerate() {
            self.set_up(peer, false);
            if let Some(network) = self.links.network.as_ref().filter(|_| number < RELATIVES) {
                network.swim.add_contact(node, addr);
            }
        }
        if let Some(network) = &self.links.network {
            network.own_cell.send_replace(own);
        }
    }

    fn verified(&self, certificate: &[u8]) -> Option<MembershipCert> {
        let trust = self.links.network.as_ref()?.endpoint.identity().trust();
        trust.verify(certificate, ambient::unix_now()).ok()
    }

    /// A peer is known by a certificate that was checked.
    pub(super) fn meet_member(&mut self, addr: SocketAddr, membership: &MembershipCert) -> Option<Peer> {
        let peer = self.meet(membership.node, addr, Some(&membership.cell))?;
        self.certify(peer, membership);
        Some(peer)
    }

    fn certify(&mut self, peer: Peer, membership: &MembershipCert) {
        let mut updates = Vec::new();
        let any_before = self.peers.any_scoped();
        self.peers.certify(peer, membership, &mut self.content.repositories, &mut updates);
        self.tell_peers(updates);
        if self.peers.any_scoped() && !any_before {
            self.hide_unvouched();
        }
    }

    /// A known peer shows a renewed certificate, which was checked.
    pub(super) fn certified(&mut self, membership: &MembershipCert) {
        if let Some(network) = &self.links.network {
            network.endpoint.renewed(membership);
        }
        if let Some(peer) = self.peers.number(&membership.node) {
            self.certify(peer, membership);
            if let (false, Some(entry), Some(dht)) = (self.gossip.ended, self.peers.get(peer), self.dht()) {
                let (node, addr) = (membership.node, entry.addr);
                dht.add_member(Neighbour { node, addr, membership: membership.clone() });
            }
        }
    }

    /// Has a certificate checked that a peer showed for itself.
    pub(super) fn shown(&self, from: NodeId, certificate: Vec<u8>) {
        let links = self.links.for_task();
        let Some(trust) = links.trust.clone() else { return };
        tokio::spawn(async move {
            match trust.verify(&certificate, ambient::unix_now()) {
                Ok(membership) if membership.node == from => {
                    let _ = links.inbox.send(Message::Certified(membership)).await;
                }
                Ok(_) => tracing::debug!(%from, "a peer showed the certificate of another"),
                Err(error) => tracing::debug!(%from, %error, "a peer showed a certificate"),
            }
        });
    }

    /// Lets go of everybody whose membership does not count any more: at once when what this node believes has
    /// changed, and now and then for those that expired. The endpoint closes connections by itself, and SWIM turns
    /// members out.
    pub(super) fn heed_trust(&mut self) {
        let Some(trust) = self.links.for_task().trust else { return };
        let (generation, now) = (trust.generation(), ambient::unix_now());
        if self.heed_own_end(&trust) {
            return;
        }
        let believed = std::mem::replace(&mut self.gossip.believed, generation);
        if believed == generation && self.gossip.look_due > ambient::now() {
            return;
        }
        self.gossip.look_due = ambient::now() + LOOK_EVERY;
        let out = |entry: &PeerEntry| match &entry.membership {
            Some(membership) => trust.check(membership, now).is_err(),
            None => trust.revocation_of(&entry.node).is_some(),
        };
        let gone: Vec<(Peer, NodeId)> = self
            .peers
            .others()
            .filter(|(_, entry)| (entry.up || believed != generation) && out(entry))
            .map(|(peer, entry)| (peer, entry.node))
            .collect();
        if gone.is_empty() {
            return;
        }
        for (peer, node) in gone {
            self.gossip.members.remove(&node);
            self.set_up(peer, false);
            if let Some(dht) = self.dht() {
                dht.forget(node);
            }
        }
        self.announce_cell();
    }

    /// Whether this node's own membership has ended for good. Then it lets go of everybody, for nobody speaks to it any more, and
    /// what it believes of them is only what it remembers. A certificate that has lapsed is no such end: it is renewed
    /// as soon as an authority is there, and who forgot everybody would be long in finding them again.
    fn heed_own_end(&mut self, trust: &MeshTrust) -> bool {
        let Some(network) = &self.links.network else { return false };
        let own = network.endpoint.identity().membership();
        let revoked = trust.revoked(&own.node, own.issued);
        let before = std::mem::replace(&mut self.gossip.ended, revoked.is_some());
        let Some(revoked) = revoked else {
            if before {
                tracing::info!("this node is a member again");
            }
            return false;
        };
        // Who has not heard of it yet may still come.
        for node in network.endpoint.connections_by_node().into_keys() {
            network.endpoint.disconnect(&node);
        }
        if let Some(dht) = &network.dht
            && dht.counters().peers.load(Ordering::Relaxed) > 0
        {
            dht.forget_all();
        }
        if !before {
            tracing::error!(
                at = %revoked.at,
                "this node was revoked: it lets go of all others, and its mounts go on with the cache and the strata"
            );
        }
        let up: Vec<Peer> = self.peers.others().filter(|(_, entry)| entry.up).map(|(peer, _)| peer).collect();
        for peer in up {
            self.set_up(peer, false);
        }
        self.gossip.members.clear();
        self.gossip.others.clear();
        true
    }

    /// What a renewal must know of the peers.
    pub(super) fn view(&self) -> View {
        let is_authority = |entry: &PeerEntry| {
            entry.membership.as_ref().is_some_and(|membership| membership.role == Role::Authority)
        };
        let mut authorities: Vec<_> =
            self.peers.others().filter(|(_, entry)| is_authority(entry)).map(|(_, entry)| entry).collect();
        authorities.sort_by_key(|entry| (!entry.up, entry.node));
        let up = self.peers.others().filter(|(_, entry)| entry.up).count();
        let authorities = authorities.iter().map(|entry| (entry.node, entry.addr)).collect();
        View { authorities, up, refused: self.gossip.refused || self.gossip.failed >= FAILED_ALONE }
    }

    /// Members for a newcomer: this node, seeds, members of its cell, authorities, others; those that are up.
    pub(super) fn introductions(&self, cell: &CellLabel) -> Vec<MemberRecord> {
        let own = self.own_record();
        let mut others: Vec<_> = self
            .peers
            .others()
            .filter(|(_, entry)| entry.up)
            .filter_map(|(_, entry)| Some((entry, entry.membership.as_ref()?)))
            .collect();
        let salt = self.gossip.generator.clone().next_u64();
        others.sort_by_key(|(entry, membership)| {
            let first = membership.role == Role::Seed && membership.cell == *cell;
            let near = membership.cell == *cell || membership.role == Role::Authority;
            (!first, !near, mix(entry.node.key() ^ salt))
        });
        let record = |(entry, membership): (&PeerEntry, &MembershipCert)| MemberRecord {
            certificate: membership.bytes().to_vec(),
            addresses: vec![entry.addr],
        };
        own.into_iter().chain(others.into_iter().map(record)).take(MEMBERS_PER_FRAME).collect()
    }

    /// Decides over a member's wish for a renewed certificate, where this node is an authority.
    pub(super) fn renewal_wanted(
        &self,
        shown: MembershipCert,
        reply: oneshot::Sender<(RenewReply, Vec<News>, Vec<MemberRecord>)>,
    ) {
        let links = self.links.for_task();
        let (Some(office), Some(trust)) = (links.office, links.trust) else { return };
        let members = self.introductions(&shown.cell);
        tokio::spawn(async move {
            let decision = office.renew(&shown, ambient::unix_now());
            let _ = reply.send((decision, trust.documents(), members));
        });
    }

    /// Announces the cell and its region in the DHT, if this node is one of those who do.
    pub(super) fn announce_cell(&mut self) {
        let Some(dht) = self.dht().cloned() else { return };
        let cell_key = ContentId::of(self.cell.as_str().as_bytes()).key();
        let rank = |node: &NodeId| mix(node.key() ^ cell_key);
        let own = rank(&self.node);
        let before = self.gossip.members.keys().filter(|node| rank(node) < own).count();
        let wanted = before < ANNOUNCERS;
        if let Some(network) = &self.links.network {
            network.announces.store(wanted, Ordering::Relaxed);
        }
        if wanted == self.gossip.announcing {
            return;
        }
        self.gossip.announcing = wanted;
        for key in [DhtKey::cell(&self.cell), DhtKey::region(self.cell.region())] {
            if wanted { dht.announce(key, Urgency::Fresh) } else { dht.withdraw(key) }
        }
    }

    /// Whether SWIM, and nobody else, says if this peer is up.
    pub(super) fn is_own_member(&self, peer: Peer) -> bool {
        self.peers.get(peer).is_some_and(|entry| self.peers.is_in(entry, self.peers.own_cell()))
    }

    /// There is a connection with somebody, and so a certificate with its cell.
    pub(super) fn neighbour(&mut self, neighbour: Neighbour) {
        if self.gossip.ended {
            return;
        }
        let Neighbour { node, addr, membership } = neighbour;
        let label = &membership.cell;
        let own = self.peers.own_cell().holds(label, &node);
        let known = self.gossip.others.contains_key(&self.peers.cell_of(label, &node));
        if !own && label.region() == self.cell.region() && !known {
            self.hint(Hint::Contact(node, addr));
        }
        if let Some(peer) = self.meet_member(addr, &membership) {
            if !own {
                self.set_up(peer, true);
            }
            if let Some(network) = &self.links.network {
                // Whoever shares the label may be in this cell one day.
                if membership.cell == self.cell {
                    network.swim.add_contact(node, addr);
                } else {
                    network.swim.not_ours(node);
                }
            }
        }
    }

    /// A peer could not be reached. In the own cell SWIM decides; elsewhere this is all that is heard of it.
    pub(super) fn unreachable(&mut self, peer: Peer) {
        if !self.is_own_member(peer) {
            self.set_up(peer, false);
            self.hint(Hint::Failed);
        }
    }

    fn hint(&self, hint: Hint) {
        if let Some(network) = &self.links.network {
            // A hint too many is no loss.
            let _ = network.hints.try_send(hint);
        }
    }

    /// Another cell, or the strata, are being asked: the view of the region should be fresh.
    pub(super) fn region_used(&mut self) {
        let now = ambient::now();
        if self.gossip.used.is_none_or(|last| now.since(last) >= USED_LEAST) {
            self.gossip.used = Some(now);
            self.hint(Hint::Used);
        }
    }

    /// The members of another cell, as one of them told.
    pub(super) fn cell_seen(&mut self, view: CellView) {
        let CellView { cell, members } = view;
        if members.is_empty() {
            self.gossip.others.remove(&cell);
        } else {
            let mut updates = Vec::new();
            let possible = self.peers.learn_cell(&cell, &mut updates);
            self.tell_peers(updates);
            if !possible {
                // This node's own cell became another meanwhile.
                return;
            }
            self.gossip.others.retain(|other, _| {
                let covers = other.part.covers(cell.part) || cell.part.covers(other.part);
                other.label != cell.label || !covers
            });
            if let Some(network) = self.links.network.as_ref().filter(|_| cell.label == self.cell) {
                for (node, (addr, _)) in members.iter().take(RELATIVES) {
                    network.swim.add_contact(*node, *addr);
                }
            }
            let few = members.values().take(CONTACTS_OF_CELL);
            let contacts = few.map(|(addr, member)| (*addr, member.bytes().clone())).collect();
            self.gossip.others.insert(cell.clone(), contacts);
        }
        let left: Vec<Peer> = self
            .peers
            .others()
            .filter(|(_, entry)| {
                entry.up && self.peers.is_in(entry, &cell) && !members.contains_key(&entry.node)
            })
            .map(|(peer, _)| peer)
            .collect();
        for peer in left {
            self.set_up(peer, false);
        }
        for (addr, membership) in members.into_values() {
            if let Some(peer) = self.meet_member(addr, &membership) {
                self.set_up(peer, true);
            }
        }
    }

    /// Has a document of a peer judged.
    pub(super) fn judge(&mut self, news: News, from: NodeId) {
        if self.news.knows(&news) {
            // It was judged fresh before, so nothing can come of judging it again.
            count(&self.links.counters.news_repeated);
            return;
        }
        let places = self.gossip.places(&news);
        let Ok(permit) = Arc::clone(places).try_acquire_owned() else {
            count(&self.links.counters.overload);
            return;
        };
        let links = self.links.for_task();
        tokio::spawn(async move {
            judge(&links, news, from).await;
            drop(permit);
        });
    }

    /// A document was fresh: the core decides whom to tell.
    pub(super) fn fresh_news(&mut self, news: News, from: Option<NodeId>) {
        count(&self.links.counters.news_fresh);
        self.links.news_seen.send_modify(|changes| *changes += 1);
        let news = self.news.intern(news);
        let from = from.and_then(|node| self.peers.number(&node));
        self.input(Input::NewsSeen { news, from });
    }

    /// The core says whom to tell.
    pub(super) fn spread(&mut self, news: NewsId, to: Peer) {
        let (Some(news), Some(entry)) = (self.news.get(news).cloned(), self.peers.get(to)) else { return };
        let Some(network) = &self.links.network else { return };
        let Some(permit) = self.gossip.spreading_place(&news) else {
            count(&self.links.counters.news_dropped);
            return;
        };
        let (endpoint, node, addr) = (network.endpoint.clone(), entry.node, entry.addr);
        let counters = Arc::clone(&self.links.counters);
        tokio::spawn(async move {
            let result = match endpoint.connection(node, addr).await {
                Ok(connection) if !transfer::may_hear(&connection.membership().scope, &news) => {
                    tracing::debug!(%node, "a document is not in the peer's scope");
                    return;
                }
                Ok(connection) => {
                    transfer::push_news(&connection, news).await.map_err(|error| error.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            match result {
                Ok(()) => count(&counters.news_sent),
                Err(error) => tracing::debug!(%node, %error, "handing on a document"),
            }
            drop(permit);
        });
    }

    /// Begins an exchange of all documents with a random peer when one is due. The first peer is asked at
    /// once: that is how a new member learns what there is.
    pub(super) fn gossip_chores(&mut self) {
        let now = ambient::now();
        if self.gossip.syncing || self.gossip.sync_due > now {
            return;
        }
        let Some(network) = &self.links.network else { return };
        let up: Vec<(NodeId, SocketAddr)> = self
            .peers
            .others()
            .filter(|(_, entry)| entry.up)
            .map(|(_, entry)| (entry.node, entry.addr))
            .collect();
        if up.is_empty() {
            return;
        }
        let (node, addr) = up[self.gossip.generator.below(up.len())];
        self.gossip.syncing = true;
        let (links, endpoint) = (self.links.for_task(), network.endpoint.clone());
        tokio::spawn(async move {
            let (ok, refused) = match endpoint.connection(node, addr).await {
                Ok(connection) => {
                    let ok = sync(&links, &connection).await;
                    (ok, !ok && connection.is_refused())
                }
                Err(error) => {
                    tracing::debug!(%error, "asking for all documents");
                    (false, false)
                }
            };
            let _ = links.inbox.send(Message::Synced { ok, refused }).await;
        });
    }

    /// An exchange ended.
    pub(super) fn synced(&mut self, ok: bool, refused: bool) {
        self.gossip.syncing = false;
        self.gossip.refused = refused;
        self.gossip.failed = if ok { 0 } else { self.gossip.failed.saturating_add(1) };
        self.gossip.early = self.gossip.early.saturating_sub(u8::from(ok));
        let pause = if ok && self.gossip.early == 0 {
            SYNC_PAUSE + Duration::from_secs(self.gossip.generator.below(SYNC_SPREAD_S) as u64)
        } else {
            SYNC_RETRY
        };
        self.gossip.sync_due = ambient::now() + pause;
    }
}

async fn judge(links: &TaskLinks, news: News, from: NodeId) -> NewsVerdict {
    let verdict = links.judge(news.clone()).await;
    match verdict {
        NewsVerdict::Fresh => {
            let news = links.as_adopted(news);
            let _ = links.inbox.send(Message::FreshNews { news, from: Some(from) }).await;
        }
        NewsVerdict::Invalid => {
            let _ = links.inbox.send(Message::ForgedNews { from }).await;
        }
        NewsVerdict::Known | NewsVerdict::Unjudged => {}
    }
    verdict
}

/// Takes all documents of a peer: the charter first, by which the others are judged, and cards before roots,
/// because a root can be judged only with its card. Where not all came in time, those that did are of use: the peer
/// begins elsewhere the next time.
async fn sync(links: &TaskLinks, connection: &super::MemberConnection) -> bool {
    let mut news = Vec::new();
    let asked = transfer::all_news(connection, &mut news).await;
    if let Err(error) = &asked {
        tracing::debug!(%error, came = news.len(), "asking for all documents");
    }
    news.sort_by_key(|document| match document {
        News::Charter(_) => 0,
        News::Revocations(_) => 1,
        News::Card(_) => 2,
        News::Root(_) => 3,
    });
    let mut is_of_use = asked.is_ok();
    for document in news {
        match judge(links, document, connection.node()).await {
            NewsVerdict::Invalid => return false,
            NewsVerdict::Fresh => is_of_use = true,
            _ => {}
        }
    }
    is_of_use
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_and_cards_take_no_place_from_revocations() {
        let gossip = Gossip::new(Generator::new(1));
        let flood = News::Root(Vec::new());
        let taken: Vec<_> =
            std::iter::from_fn(|| Arc::clone(gossip.places(&flood)).try_acquire_owned().ok()).collect();
        assert_eq!(taken.len(), JUDGING_MAX);
        assert_eq!(gossip.places(&News::Card(Vec::new())).available_permits(), 0);
        assert_eq!(gossip.places(&News::Revocations(Vec::new())).available_permits(), JUDGING_TRUST_MAX);
    }

    #[test]
    fn roots_that_are_being_handed_on_do_not_keep_a_revocation_from_its_first_hop() {
        let gossip = Gossip::new(Generator::new(1));
        let take_all =
            |news: News| -> Vec<_> { std::iter::from_fn(|| gossip.spreading_place(&news)).collect() };
        let roots = take_all(News::Root(Vec::new()));
        assert_eq!(roots.len(), SPREADING_MAX);
        assert!(gossip.spreading_place(&News::Card(Vec::new())).is_none());
        let lists = take_all(News::Revocations(Vec::new()));
        assert_eq!(lists.len(), SPREADING_TRUST_MAX);
        drop(lists);
        assert!(gossip.spreading_place(&News::Charter(Vec::new())).is_some());
    }
}
