//! The task that drives libp2p's swarm.

use super::super::endpoint::Endpoint;
use super::super::identity::{node_of, peer_id_of};
use super::flood::{ANNOUNCEMENTS, Buckets, Gate};
use super::forget::{Wish, Wishes};
use super::members::Members;
use super::name::{DhtKey, from_multiaddr, to_multiaddr};
use super::pace::Pace;
use super::records::{Limits, Providers, key_of};
use super::transport::SharedEndpoint;
use super::{COMMANDS_MAX, Command, DhtCounters, Neighbour, Spread};
use crate::ambient;
use crate::model::{NodeId, Time};
use futures::StreamExt;
use libp2p::core::transport::Transport as _;
use libp2p::kad::{self, GetProvidersOk, InboundRequest, ProviderRecord, QueryId, QueryResult, RecordKey};
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{ConnectionId, NetworkBehaviour as _, SwarmEvent};
use libp2p::{PeerId, StreamProtocol, Swarm};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Name of the Kademlia protocol: a mesh of Starling nodes never mixes with another DHT.
const KAD_PROTOCOL: StreamProtocol = StreamProtocol::new("/starling/kad/1");
/// Announcements under way at once.
const ANNOUNCING_MAX: usize = 8;
/// Look-ups under way at once. Beyond, a look-up finds nothing at once.
const FINDING_MAX: usize = 128;
/// A look-up ends when it knows that many,
const FOUND_ENOUGH: usize = 8;
/// or that long after the first was found,
const FOUND_PAUSE: Duration = Duration::from_millis(300);
/// or after this (libp2p's own time for one peer is ten seconds; dead peers are passed in parallel).
const FIND_TIMEOUT: Duration = Duration::from_secs(10);
/// How often what has expired is looked for.
const CHORES_EVERY: Duration = Duration::from_secs(2);
/// Contacts that are kept, and dialled at once.
const CONTACTS_MAX: usize = 64;
const CONTACTS_AT_ONCE: usize = 3;
/// Pauses between attempts to reach anybody at all, while the routing table is empty: at first, and at most.
const BOOTSTRAP_FIRST: Duration = Duration::from_secs(1);
const BOOTSTRAP_LATER: Duration = Duration::from_secs(30);
/// How often all buckets are refreshed (the paper's own period). It costs a connection with most of a small mesh.
const REFRESH_EVERY: Duration = Duration::from_secs(3_600);
/// Connections that were idle for so long are closed: a look-up uses each for well under a second.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Addresses of a record that are looked at.
const ADDRESSES_MAX: usize = 8;
/// How long a member that floods is banned.
const FLOOD_BAN: Duration = Duration::from_secs(600);

/// What the task shares with its handle and the transport.
pub(super) struct Parts {
    pub(super) endpoint: Endpoint,
    pub(super) addr: SocketAddr,
    pub(super) gate: Arc<Gate>,
    pub(super) members: Arc<Members>,
    pub(super) wishes: Arc<Wishes>,
    pub(super) counters: Arc<DhtCounters>,
    pub(super) spread: Spread,
}

/// A look-up under way.
struct Finding {
    reply: oneshot::Sender<Vec<(NodeId, SocketAddr)>>,
    found: BTreeMap<NodeId, SocketAddr>,
    deadline: Time,
}

pub(super) struct Task {
    swarm: Swarm<kad::Behaviour<Providers>>,
    inbox: mpsc::Receiver<Command>,
    parts: Parts,
    contacts: Vec<(NodeId, SocketAddr)>,
    next_contact: usize,
    bootstrap_due: Time,
    bootstrap_pause: Duration,
    chores_due: Time,
    pace: Pace,
    announcing: HashMap<QueryId, DhtKey>,
    announcements: Buckets,
    finding: HashMap<QueryId, Finding>,
}

fn kad_behaviour(me: NodeId, peer: PeerId, spread: Spread) -> kad::Behaviour<Providers> {
    let limits = Limits::default();
    let mut config = kad::Config::new(KAD_PROTOCOL);
    config
        .set_query_timeout(FIND_TIMEOUT)
        .set_replication_factor(spread.replicas)
        .set_parallelism(spread.parallel)
        .set_provider_record_ttl(Some(limits.ttl))
        // Judged by `Task` before they are stored, as are those who would be in the routing table.
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        // Repeated by `Task`, at a bounded pace; there are no values to replicate.
        .set_provider_publication_interval(None)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_caching(kad::Caching::Disabled)
        .set_periodic_bootstrap_interval(Some(REFRESH_EVERY));
    let mut kad = kad::Behaviour::with_config(peer, Providers::new(me, limits, ambient::now), config);
    // Every member answers: there are no clients behind address translation in a mesh.
    kad.set_mode(Some(kad::Mode::Server));
    kad
}

impl Task {
    pub(super) fn new(
        parts: Parts,
        transport: SharedEndpoint,
        contacts: Vec<(NodeId, SocketAddr)>,
        inbox: mpsc::Receiver<Command>,
    ) -> io::Result<Self> {
        let me = parts.endpoint.node();
        let peer = peer_id_of(&me);
        let config = libp2p::swarm::Config::with_tokio_executor().with_idle_connection_timeout(IDLE_TIMEOUT);
        let behaviour = kad_behaviour(me, peer, parts.spread);
        let mut swarm = Swarm::new(transport.boxed(), behaviour, peer, config);
        swarm.listen_on(to_multiaddr(parts.addr)).map_err(io::Error::other)?;
        swarm.add_external_address(to_multiaddr(parts.addr));
        let mut task = Self {
            swarm,
            inbox,
            parts,
            contacts: Vec::new(),
            next_contact: 0,
            bootstrap_due: Time::ZERO,
            bootstrap_pause: BOOTSTRAP_FIRST,
            chores_due: Time::ZERO,
            pace: Pace::new(ambient::generator()),
            announcing: HashMap::new(),
            announcements: Buckets::new(ANNOUNCEMENTS),
            finding: HashMap::new(),
        };
        for (node, addr) in contacts {
            task.add_contact(node, addr);
        }
        Ok(task)
    }

    pub(super) async fn run(mut self) {
        loop {
            let pause = self.next_deadline().since(ambient::now());
            tokio::select! {
                command = self.inbox.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                () = self.parts.wishes.made() => {}
                event = self.swarm.select_next_some() => self.notice(event),
                () = tokio::time::sleep(pause) => {}
            }
            self.advance();
        }
    }

    fn next_deadline(&self) -> Time {
        let findings = self.finding.values().map(|finding| finding.deadline).min();
        let can_announce = self.announcing.len() < ANNOUNCING_MAX && !self.is_alone();
        let announcement = if can_announce { self.pace.next_deadline() } else { Time::NEVER };
        self.chores_due.min(findings.unwrap_or(Time::NEVER)).min(announcement)
    }

    /// Whether nobody is in the routing table: an announcement would reach nobody.
    fn is_alone(&self) -> bool {
        self.parts.counters.peers.load(Ordering::Relaxed) == 0
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Announce(key, urgency) => {
                if !self.pace.add(key, urgency, ambient::now()) {
                    self.parts.counters.refused.fetch_add(1, Ordering::Relaxed);
                }
            }
            Command::Withdraw(key) => {
                self.pace.remove(key);
                self.swarm.behaviour_mut().stop_providing(&RecordKey::new(&key.0));
            }
            Command::Find(key, reply) => {
                if self.finding.len() >= FINDING_MAX {
                    self.parts.counters.refused.fetch_add(1, Ordering::Relaxed);
                    let _ = reply.send(Vec::new());
                    return;
                }
                let query = self.swarm.behaviour_mut().get_providers(RecordKey::new(&key.0));
                let deadline = ambient::now() + FIND_TIMEOUT;
                self.finding.insert(query, Finding { reply, found: BTreeMap::new(), deadline });
            }
            Command::Member(member) => {
                let Neighbour { node, addr, membership } = member;
                self.parts.members.vouched(node, addr, &membership.cell, membership.expires);
                self.admit(node);
            }
            Command::Contact(node, addr) => self.add_contact(node, addr),
            Command::Moved(addr) => self.moved(addr),
            Command::Down(node) => {
                self.swarm.behaviour_mut().remove_peer(&peer_id_of(&node));
                self.count_peers();
            }
        }
    }

    fn add_contact(&mut self, node: NodeId, addr: SocketAddr) {
        let contact = (node, addr);
        if addr == self.parts.addr || node == self.parts.endpoint.node() || self.contacts.contains(&contact) {
            return;
        }
        if self.contacts.len() >= CONTACTS_MAX {
            // The oldest are the configured ones: they stay.
            self.contacts.pop();
        }
        self.contacts.push(contact);
        self.bootstrap_pause = BOOTSTRAP_FIRST;
        self.bootstrap_due = self.bootstrap_due.min(ambient::now());
        self.chores_due = Time::ZERO;
    }

    fn moved(&mut self, addr: SocketAddr) {
        let before = std::mem::replace(&mut self.parts.addr, addr);
        if before != addr {
            self.swarm.remove_external_address(&to_multiaddr(before));
            self.swarm.add_external_address(to_multiaddr(addr));
            self.contacts.retain(|(_, contact)| *contact != addr);
            self.pace.anew(ambient::now());
        }
    }

    /// Puts a node into the routing table whose certificate was seen, if its bucket has a share for it.
    fn admit(&mut self, node: NodeId) {
        let (peer, members) = (peer_id_of(&node), Arc::clone(&self.parts.members));
        let Some(seen) = members.seen(&node).filter(|seen| seen.addr != self.parts.addr) else { return };
        let kad = self.swarm.behaviour_mut();
        let has_share = kad.kbucket(peer).is_some_and(|bucket| {
            let others: Vec<NodeId> =
                bucket.iter().filter_map(|entry| node_of(entry.node.key.preimage())).collect();
            others.contains(&node) || members.has_share(&node, others.into_iter())
        });
        if has_share {
            kad.add_address(&peer, to_multiaddr(seen.addr));
            self.count_peers();
        }
    }

    /// Forgets whom it was told to. A command of before the wish may still wait and bring the node in again, so all that
    /// wait go first.
    fn fulfil_wishes(&mut self) {
        let Some(wish) = self.parts.wishes.take() else { return };
        for _ in 0..COMMANDS_MAX {
            let Ok(command) = self.inbox.try_recv() else { break };
            self.obey(command);
        }
        match wish {
            Wish::Nodes(nodes) => nodes.into_iter().for_each(|node| self.forget(node)),
            Wish::All => self.forget_all(),
        }
    }

    fn forget(&mut self, node: NodeId) {
        let peer = peer_id_of(&node);
        let kad = self.swarm.behaviour_mut();
        kad.remove_peer(&peer);
        kad.store_mut().forget(node);
        let _ = self.swarm.disconnect_peer_id(peer);
        self.parts.members.forget(&node);
        self.announcements.forget(&node);
        self.parts.gate.lock().forget(&node);
        self.contacts.retain(|(contact, _)| *contact != node);
        self.count_peers();
    }

    fn forget_all(&mut self) {
        let contacts = std::mem::take(&mut self.contacts);
        let kad = self.swarm.behaviour_mut();
        let mut all: Vec<PeerId> = kad
            .kbuckets()
            .flat_map(|bucket| bucket.iter().map(|entry| *entry.node.key.preimage()).collect::<Vec<_>>())
            .collect();
        all.extend(self.swarm.connected_peers());
        for node in all.iter().filter_map(node_of) {
            self.forget(node);
        }
        self.parts.members.retain(|_| false);
        self.contacts = contacts;
        self.count_peers();
    }

    fn notice(&mut self, event: SwarmEvent<kad::Event>) {
        match event {
            SwarmEvent::Behaviour(kad::Event::OutboundQueryProgressed { id, result, step, .. }) => {
                match result {
                    QueryResult::GetProviders(result) => self.providers_found(id, result.ok(), step.last),
                    QueryResult::StartProviding(result) => self.announcement_ended(id, result.is_ok()),
                    _ => {}
                }
            }
            SwarmEvent::Behaviour(kad::Event::InboundRequest { request }) => {
                self.parts.counters.requests.fetch_add(1, Ordering::Relaxed);
                if let InboundRequest::AddProvider { record: Some(record) } = request
                    && !self.take_record(&record)
                {
                    self.parts.counters.records_refused.fetch_add(1, Ordering::Relaxed);
                }
            }
            SwarmEvent::ConnectionEstablished { peer_id, .. } => {
                if let Some(node) = node_of(&peer_id) {
                    self.admit(node);
                }
            }
            SwarmEvent::OutgoingConnectionError { error, .. } => {
                tracing::debug!(%error, "control plane");
                self.count_peers();
            }
            _ => {}
        }
    }

    /// Takes an announcement. libp2p has checked that it came from the provider itself.
    fn take_record(&mut self, record: &ProviderRecord) -> bool {
        let (Some(key), Some(node)) = (key_of(&record.key), node_of(&record.provider)) else { return false };
        if self.announcements.take(node, ambient::now()).is_err() {
            return false;
        }
        let claimed: Vec<SocketAddr> = record
            .addresses
            .iter()
            .take(ADDRESSES_MAX)
            .filter_map(from_multiaddr)
            .map(|(addr, _)| addr)
            .collect();
        let Some(announcer) = self.parts.members.announcer(node, &claimed) else { return false };
        self.swarm.behaviour_mut().store_mut().insert(key, announcer, ambient::unix_now());
        true
    }

    fn providers_found(&mut self, id: QueryId, found: Option<GetProvidersOk>, last: bool) {
        let Some(finding) = self.finding.get_mut(&id) else { return };
        if let Some(GetProvidersOk::FoundProviders { providers, .. }) = found {
            for peer in providers {
                // The event does not name addresses, but the look-up keeps those that came with the
                // providers for libp2p's own dialling: this asks for them as a dial would.
                let addresses = self.swarm.behaviour_mut().handle_pending_outbound_connection(
                    ConnectionId::new_unchecked(0),
                    Some(peer),
                    &[],
                    libp2p::core::Endpoint::Dialer,
                );
                let addr = addresses.iter().flatten().rev().find_map(from_multiaddr);
                if let (Some(node), Some((addr, _))) = (node_of(&peer), addr) {
                    finding.found.insert(node, addr);
                }
            }
            if !finding.found.is_empty() {
                finding.deadline = finding.deadline.min(ambient::now() + FOUND_PAUSE);
            }
        }
        if last || finding.found.len() >= FOUND_ENOUGH {
            self.end_finding(id);
        }
    }

    fn end_finding(&mut self, id: QueryId) {
        let Some(finding) = self.finding.remove(&id) else { return };
        if let Some(mut query) = self.swarm.behaviour_mut().query_mut(&id) {
            query.finish();
        }
        self.parts.counters.found.fetch_add(finding.found.len() as u64, Ordering::Relaxed);
        let _ = finding.reply.send(finding.found.into_iter().collect());
    }

    fn announcement_ended(&mut self, id: QueryId, ok: bool) {
        let Some(key) = self.announcing.remove(&id) else { return };
        if ok {
            self.parts.counters.announcements.fetch_add(1, Ordering::Relaxed);
        }
        self.pace.ended(key, ok, ambient::now());
    }

    /// Does what is due.
    fn advance(&mut self) {
        self.fulfil_wishes();
        let now = ambient::now();
        let overdue: Vec<QueryId> =
            self.finding.iter().filter(|(_, finding)| finding.deadline <= now).map(|(id, _)| *id).collect();
        for id in overdue {
            self.end_finding(id);
        }
        if self.chores_due <= now {
            self.chores_due = now + CHORES_EVERY;
            self.chores(now);
        }
        while self.announcing.len() < ANNOUNCING_MAX && !self.is_alone() {
            let Some(key) = self.pace.next(now) else { return };
            match self.swarm.behaviour_mut().start_providing(RecordKey::new(&key.0)) {
                Ok(id) => {
                    self.announcing.insert(id, key);
                }
                Err(error) => {
                    tracing::debug!(%error, "announcing");
                    self.pace.ended(key, false, now);
                }
            }
        }
    }

    fn chores(&mut self, now: Time) {
        for node in self.parts.members.expired(ambient::unix_now()) {
            tracing::info!(%node, "its membership has expired: it leaves the DHT");
            self.forget(node);
        }
        let mut flooders = self.parts.gate.lock().flooders(now);
        flooders.extend(self.announcements.flooders(now));
        for node in flooders {
            tracing::warn!(%node, "banned: it floods the DHT");
            self.parts.counters.floods.fetch_add(1, Ordering::Relaxed);
            self.forget(node);
            self.parts.endpoint.ban(node, FLOOD_BAN);
        }
        self.swarm.behaviour_mut().store_mut().expire();
        self.forget_idle();
        self.count_peers();
        if self.is_alone() {
            self.bootstrap(now);
        } else {
            self.bootstrap_pause = BOOTSTRAP_FIRST;
        }
    }

    /// Forgets members that are neither connected nor in the routing table, when there are many.
    fn forget_idle(&mut self) {
        if !self.parts.members.is_crowded() {
            return;
        }
        let kad = self.swarm.behaviour_mut();
        let mut used: Vec<PeerId> = kad
            .kbuckets()
            .flat_map(|bucket| bucket.iter().map(|entry| *entry.node.key.preimage()).collect::<Vec<_>>())
            .collect();
        used.extend(self.swarm.connected_peers());
        let mut used: Vec<NodeId> = used.iter().filter_map(node_of).collect();
        used.sort_unstable();
        self.parts.members.retain(|node| used.binary_search(node).is_ok());
    }

    fn count_peers(&mut self) {
        let counters = &self.parts.counters;
        let kad = self.swarm.behaviour_mut();
        let records = kad.store_mut().len() as u64;
        let peers = kad.kbuckets().map(|bucket| bucket.num_entries()).sum::<usize>();
        counters.records.store(records, Ordering::Relaxed);
        counters.peers.store(peers as u64, Ordering::Relaxed);
        counters.keys.store(self.pace.len() as u64, Ordering::Relaxed);
        counters.delayed.store(self.parts.gate.delayed(), Ordering::Relaxed);
    }

    /// Dials a few contacts. Whoever answers with a membership certificate comes into the routing table.
    fn bootstrap(&mut self, now: Time) {
        if self.bootstrap_due > now || self.contacts.is_empty() {
            return;
        }
        self.bootstrap_due = now + self.bootstrap_pause;
        self.bootstrap_pause = (self.bootstrap_pause * 2).min(BOOTSTRAP_LATER);
        for _ in 0..CONTACTS_AT_ONCE.min(self.contacts.len()) {
            let (node, addr) = self.contacts[self.next_contact % self.contacts.len()];
            self.next_contact = (self.next_contact + 1) % self.contacts.len();
            let dial = DialOpts::peer_id(peer_id_of(&node)).addresses(vec![to_multiaddr(addr)]).build();
            if let Err(error) = self.swarm.dial(dial) {
                tracing::trace!(%error, "dialling a contact");
            }
        }
    }
}
