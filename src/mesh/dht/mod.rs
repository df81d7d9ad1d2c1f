//! The directory between cells: a Kademlia DHT (Maymounkov, Mazières: "Kademlia: A Peer-to-peer
//! Information System Based on the XOR Metric", IPTPS 2002), as libp2p implements it.
//!
//! It answers one question: who, anywhere in the mesh, announced this key, and where is that node? Keys
//! are those of segments, cells and regions ([`DhtKey`]). A record is no promise: whoever is found
//! is dialled by its [`NodeId`], and what it sends is verified.
//!
//! One task drives libp2p's swarm. Announcements are repeated by this task at a bounded pace, because
//! each costs about 70 requests (measured at 100 nodes with 20 replicas).

mod name;
mod records;
#[cfg(test)]
mod tests;
mod transport;

pub(super) use name::DhtKey;

use super::endpoint::Endpoint;
use super::identity::{node_of, peer_id_of};
use super::membership::MembershipCert;
use super::registry::MemberConnection;
use crate::ambient;
use crate::model::{NodeId, Time};
use futures::StreamExt;
use libp2p::core::transport::Transport as _;
use libp2p::kad::{self, GetProvidersOk, QueryId, QueryResult, RecordKey};
use libp2p::swarm::{ConnectionId, NetworkBehaviour, SwarmEvent};
use libp2p::{PeerId, StreamProtocol, Swarm, identify, ping};
use name::{from_multiaddr, to_multiaddr};
use records::{Limits, Providers};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use transport::SharedEndpoint;

/// Name of the Kademlia protocol: a mesh of Starling nodes never mixes with another DHT.
const KAD_PROTOCOL: StreamProtocol = StreamProtocol::new("/starling/kad/1");
const IDENTIFY_PROTOCOL: &str = "/starling/id/1";
/// Until a segment's announcement is repeated: a third of a record's life, so that two may fail.
const REPEAT_EVERY: Duration = Duration::from_secs(3_600);
/// Until an announcement that reached nobody is repeated.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Announcements under way at once, and begun in one round of [`CHORES_EVERY`]: at most ten a second,
/// about an eighth of a core by the measurement above.
const ANNOUNCING_MAX: usize = 8;
const CHORES_EVERY: Duration = Duration::from_millis(100);
/// Keys that this node may announce. Beyond, an announcement is refused and counted.
const ANNOUNCED_MAX: usize = 100_000;
/// Look-ups under way at once. Beyond, a look-up finds nothing at once.
const FINDING_MAX: usize = 128;
/// A look-up ends when it knows that many,
const FOUND_ENOUGH: usize = 8;
/// or that long after the first was found,
const FOUND_PAUSE: Duration = Duration::from_millis(300);
/// or after this (libp2p's own time for one peer is ten seconds; dead peers are passed in parallel).
const FIND_TIMEOUT: Duration = Duration::from_secs(10);
/// Contacts that are taken from the start.
const CONTACTS_MAX: usize = 64;
/// Pauses between attempts to reach anybody at all, while nobody is connected: at first, and at most.
const BOOTSTRAP_FIRST: Duration = Duration::from_secs(1);
const BOOTSTRAP_LATER: Duration = Duration::from_secs(30);
/// Connections that were idle for so long are closed: a look-up uses each for well under a second.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Commands that may wait for the task.
const COMMANDS_MAX: usize = 256;
/// Neighbours that may wait to be reported.
const MET_MAX: usize = 256;
/// Addresses that a neighbour may name for itself.
const ADDRESSES_MAX: usize = 8;

/// A node to which there is, or was, a connection of the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    /// Who.
    pub(super) node: NodeId,
    /// Where.
    pub(super) addr: SocketAddr,
    /// Its membership, as it showed it.
    pub(super) membership: MembershipCert,
}

impl Neighbour {
    /// Who is at the other end of a connection.
    pub(super) fn of(connection: &MemberConnection) -> Self {
        Self { node: connection.node(), addr: connection.address(), membership: connection.membership() }
    }
}

/// Counters for the metrics.
#[derive(Debug, Default)]
pub struct DhtCounters {
    /// Look-ups asked for.
    pub lookups: AtomicU64,
    /// Announcements that reached at least one node.
    pub announcements: AtomicU64,
    /// Providers that look-ups found.
    pub found: AtomicU64,
    /// Look-ups and announcements refused, because too many were under way.
    pub refused: AtomicU64,
    /// Records held for others and for this node.
    pub records: AtomicU64,
    /// Nodes in the routing table.
    pub peers: AtomicU64,
}

enum Command {
    Announce(DhtKey),
    Withdraw(DhtKey),
    Find(DhtKey, oneshot::Sender<Vec<(NodeId, SocketAddr)>>),
    AddAddress(NodeId, SocketAddr),
    Forget(NodeId),
}

/// The DHT of this node: a handle to its task, which ends when the last handle is dropped.
#[derive(Clone)]
pub(super) struct Dht {
    commands: mpsc::Sender<Command>,
    counters: Arc<DhtCounters>,
}

/// What the DHT is started with.
pub(super) struct DhtStart {
    /// The endpoint, and through it the identity.
    pub(super) endpoint: Endpoint,
    /// Where others reach this node.
    pub(super) addr: SocketAddr,
    /// Members to begin with.
    pub(super) contacts: Vec<(NodeId, SocketAddr)>,
    /// Incoming connections with libp2p's ALPN.
    pub(super) incoming: mpsc::Receiver<MemberConnection>,
}

impl Dht {
    /// Starts the task. The second half of the result reports neighbours as connections come up; it
    /// may be left unread.
    ///
    /// # Errors
    /// When libp2p refuses to begin.
    pub(super) fn start(start: DhtStart) -> io::Result<(Self, mpsc::Receiver<Neighbour>)> {
        let DhtStart { endpoint, addr, contacts, incoming } = start;
        let me = endpoint.node();
        let peer = peer_id_of(&me);
        let key = endpoint.identity().key().libp2p().public();
        let (met, neighbours) = mpsc::channel(MET_MAX);
        let transport = SharedEndpoint::new(endpoint, addr, incoming, met);
        let behaviour = Behaviour {
            kad: kad_behaviour(me, peer),
            identify: identify::Behaviour::new(
                identify::Config::new(IDENTIFY_PROTOCOL.to_owned(), key)
                    .with_agent_version(format!("starling/{}", env!("CARGO_PKG_VERSION"))),
            ),
            ping: ping::Behaviour::default(),
        };
        let config = libp2p::swarm::Config::with_tokio_executor().with_idle_connection_timeout(IDLE_TIMEOUT);
        let mut swarm = Swarm::new(transport.boxed(), behaviour, peer, config);
        swarm.listen_on(to_multiaddr(addr)).map_err(io::Error::other)?;
        swarm.add_external_address(to_multiaddr(addr));
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let counters = Arc::new(DhtCounters::default());
        let mut task = Task {
            swarm,
            inbox,
            counters: Arc::clone(&counters),
            own: addr,
            bootstrap_due: Time::ZERO,
            bootstrap_pause: BOOTSTRAP_FIRST,
            announced: BTreeMap::new(),
            due: BTreeSet::new(),
            announcing: HashMap::new(),
            finding: HashMap::new(),
        };
        for (node, contact) in contacts.into_iter().take(CONTACTS_MAX) {
            task.learn(node, contact);
        }
        tokio::spawn(task.run());
        Ok((Self { commands, counters }, neighbours))
    }

    /// Announces that this node has something of `key`, and repeats it until [`Dht::withdraw`].
    /// Dropped, and counted, when the task is overloaded.
    pub(super) fn announce(&self, key: DhtKey) {
        self.command(Command::Announce(key));
    }

    /// Stops repeating an announcement; what was announced expires elsewhere within three hours.
    pub(super) fn withdraw(&self, key: DhtKey) {
        self.command(Command::Withdraw(key));
    }

    /// Who announced `key`, newest knowledge of the nodes that were asked; empty after ten seconds at most.
    pub(super) async fn find(&self, key: DhtKey) -> Vec<(NodeId, SocketAddr)> {
        self.counters.lookups.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        self.command(Command::Find(key, reply));
        answer.await.unwrap_or_default()
    }

    /// Adds a node to the routing table.
    pub(super) fn add_address(&self, node: NodeId, addr: SocketAddr) {
        self.command(Command::AddAddress(node, addr));
    }

    /// Drops a node from the routing table, and what it announced: it is a member no longer.
    pub(super) fn forget(&self, node: NodeId) {
        self.command(Command::Forget(node));
    }

    /// The counters.
    pub(super) fn counters(&self) -> Arc<DhtCounters> {
        Arc::clone(&self.counters)
    }

    fn command(&self, command: Command) {
        if self.commands.try_send(command).is_err() {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p::swarm::derive_prelude")]
struct Behaviour {
    kad: kad::Behaviour<Providers>,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

fn kad_behaviour(me: NodeId, peer: PeerId) -> kad::Behaviour<Providers> {
    let limits = Limits::default();
    let mut config = kad::Config::new(KAD_PROTOCOL);
    config
        .set_query_timeout(FIND_TIMEOUT)
        .set_provider_record_ttl(Some(limits.ttl))
        // Repeated by `Task`, at a bounded pace; there are no values to replicate.
        .set_provider_publication_interval(None)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_caching(kad::Caching::Disabled)
        .set_periodic_bootstrap_interval(Some(Duration::from_secs(300)));
    let mut kad = kad::Behaviour::with_config(peer, Providers::new(me, limits, ambient::now), config);
    // Every member answers: there are no clients behind address translation in a mesh.
    kad.set_mode(Some(kad::Mode::Server));
    kad
}

/// A look-up under way.
struct Finding {
    reply: oneshot::Sender<Vec<(NodeId, SocketAddr)>>,
    found: BTreeMap<NodeId, SocketAddr>,
    deadline: Time,
}

struct Task {
    swarm: Swarm<Behaviour>,
    inbox: mpsc::Receiver<Command>,
    counters: Arc<DhtCounters>,
    own: SocketAddr,
    bootstrap_due: Time,
    bootstrap_pause: Duration,
    /// What is announced, and when it is next; `None` while it is under way.
    announced: BTreeMap<DhtKey, Option<Time>>,
    /// The same by time.
    due: BTreeSet<(Time, DhtKey)>,
    announcing: HashMap<QueryId, DhtKey>,
    finding: HashMap<QueryId, Finding>,
}

impl Task {
    async fn run(mut self) {
        let mut chores = tokio::time::interval(CHORES_EVERY);
        chores.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = self.inbox.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                event = self.swarm.select_next_some() => self.notice(event),
                _ = chores.tick() => self.chores(),
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Announce(key) => {
                if self.announced.contains_key(&key) {
                    return;
                }
                if self.announced.len() >= ANNOUNCED_MAX {
                    self.counters.refused.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                self.schedule(key, ambient::now());
            }
            Command::Withdraw(key) => {
                if let Some(Some(time)) = self.announced.remove(&key) {
                    self.due.remove(&(time, key));
                }
                self.swarm.behaviour_mut().kad.stop_providing(&RecordKey::new(&key.0));
            }
            Command::Find(key, reply) => {
                if self.finding.len() >= FINDING_MAX {
                    self.counters.refused.fetch_add(1, Ordering::Relaxed);
                    let _ = reply.send(Vec::new());
                    return;
                }
                let query = self.swarm.behaviour_mut().kad.get_providers(RecordKey::new(&key.0));
                let deadline = ambient::now() + FIND_TIMEOUT;
                self.finding.insert(query, Finding { reply, found: BTreeMap::new(), deadline });
            }
            Command::AddAddress(node, addr) => self.learn(node, addr),
            Command::Forget(node) => {
                let peer = peer_id_of(&node);
                let _ = self.swarm.disconnect_peer_id(peer);
                let kad = &mut self.swarm.behaviour_mut().kad;
                kad.remove_peer(&peer);
                kad.store_mut().forget(node);
            }
        }
    }

    fn learn(&mut self, node: NodeId, addr: SocketAddr) {
        if addr != self.own {
            self.swarm.behaviour_mut().kad.add_address(&peer_id_of(&node), to_multiaddr(addr));
        }
    }

    fn notice(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed {
                id,
                result,
                step,
                ..
            })) => match result {
                QueryResult::GetProviders(result) => self.providers_found(id, result.ok(), step.last),
                QueryResult::StartProviding(result) => self.announcement_ended(id, result.is_ok()),
                _ => {}
            },
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                info,
                ..
            })) => {
                // The peer proved its name in the handshake; what it calls its addresses is only dialled.
                if info.protocols.contains(&KAD_PROTOCOL)
                    && let Some(node) = node_of(&peer_id)
                {
                    for (addr, _) in info.listen_addrs.iter().filter_map(from_multiaddr).take(ADDRESSES_MAX) {
                        self.learn(node, addr);
                    }
                }
            }
            SwarmEvent::OutgoingConnectionError { error, .. } => tracing::debug!(%error, "control plane"),
            _ => {}
        }
    }

    fn providers_found(&mut self, id: QueryId, found: Option<GetProvidersOk>, last: bool) {
        let Some(finding) = self.finding.get_mut(&id) else { return };
        if let Some(GetProvidersOk::FoundProviders { providers, .. }) = found {
            for peer in providers {
                // The event does not name addresses, but the look-up keeps those that came with the
                // providers for libp2p's own dialling: this asks for them as a dial would.
                let addresses = self.swarm.behaviour_mut().kad.handle_pending_outbound_connection(
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
        if let Some(mut query) = self.swarm.behaviour_mut().kad.query_mut(&id) {
            query.finish();
        }
        self.counters.found.fetch_add(finding.found.len() as u64, Ordering::Relaxed);
        let _ = finding.reply.send(finding.found.into_iter().collect());
    }

    fn announcement_ended(&mut self, id: QueryId, ok: bool) {
        let Some(key) = self.announcing.remove(&id) else { return };
        if ok {
            self.counters.announcements.fetch_add(1, Ordering::Relaxed);
        }
        if self.announced.contains_key(&key) {
            let pause = if ok { REPEAT_EVERY } else { RETRY_AFTER };
            self.schedule(key, ambient::now() + pause);
        }
    }

    fn schedule(&mut self, key: DhtKey, time: Time) {
        if let Some(Some(before)) = self.announced.insert(key, Some(time)) {
            self.due.remove(&(before, key));
        }
        self.due.insert((time, key));
    }

    fn chores(&mut self) {
        let now = ambient::now();
        let kad = &mut self.swarm.behaviour_mut().kad;
        kad.store_mut().expire();
        let records = kad.store_mut().len() as u64;
        let peers = kad.kbuckets().map(|bucket| bucket.num_entries()).sum::<usize>();
        self.counters.records.store(records, Ordering::Relaxed);
        self.counters.peers.store(peers as u64, Ordering::Relaxed);
        let overdue: Vec<QueryId> =
            self.finding.iter().filter(|(_, finding)| finding.deadline <= now).map(|(id, _)| *id).collect();
        for id in overdue {
            self.end_finding(id);
        }
        if self.swarm.connected_peers().next().is_none() {
            // An announcement now would reach nobody.
            self.bootstrap(now);
        } else {
            self.bootstrap_pause = BOOTSTRAP_FIRST;
            if self.announcing.len() < ANNOUNCING_MAX {
                self.announce_next(now);
            }
        }
    }

    /// Dials whom the routing table knows.
    fn bootstrap(&mut self, now: Time) {
        if self.bootstrap_due > now {
            return;
        }
        self.bootstrap_due = now + self.bootstrap_pause;
        self.bootstrap_pause = (self.bootstrap_pause * 2).min(BOOTSTRAP_LATER);
        if let Err(error) = self.swarm.behaviour_mut().kad.bootstrap() {
            tracing::trace!(%error, "nobody to begin with");
        }
    }

    /// Begins the announcement that has been due longest.
    fn announce_next(&mut self, now: Time) {
        let Some((time, key)) = self.due.first().copied().filter(|(time, _)| *time <= now) else { return };
        self.due.remove(&(time, key));
        match self.swarm.behaviour_mut().kad.start_providing(RecordKey::new(&key.0)) {
            Ok(id) => {
                self.announced.insert(key, None);
                self.announcing.insert(id, key);
            }
            Err(error) => {
                tracing::debug!(%error, "announcing");
                self.schedule(key, now + RETRY_AFTER);
            }
        }
    }
}
