//! The directory between cells: a Kademlia DHT (Maymounkov, Mazières: "Kademlia: A Peer-to-peer
//! Information System Based on the XOR Metric", IPTPS 2002), as libp2p implements it.
//!
//! It answers one question: who, anywhere in the mesh, announced this key, and where is that node? Keys
//! are those of segments, cells and regions ([`DhtKey`]). A record is no promise: whoever is found
//! is dialled by its [`NodeId`], and what it sends is verified.
//!
//! * [`task`] drives libp2p's swarm: look-ups, announcements, who is in the routing table.
//! * [`pace`] decides when which key is announced.
//! * [`records`] holds what others announced here, in less than 100 bytes a record.
//! * [`members`] knows whom this node has seen a certificate of: nobody else is in the routing table, and no cell and
//!   no network has a bucket for itself.
//! * [`flood`] bounds what one member may ask and announce.
//! * [`forget`] keeps whom it is to forget until it has.
//! * [`transport`] lends libp2p the endpoint.

mod flood;
mod forget;
mod members;
mod name;
mod pace;
mod records;
mod task;
#[cfg(test)]
mod tests;
mod transport;

pub(super) use name::DhtKey;
pub(super) use pace::Urgency;

use super::endpoint::Endpoint;
use super::membership::MembershipCert;
use super::registry::MemberConnection;
use crate::model::NodeId;
use flood::{Gate, REQUESTS};
use forget::Wishes;
use members::Members;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use task::Task;
use tokio::sync::{mpsc, oneshot};
use transport::SharedEndpoint;

/// Commands that may wait for the task.
const COMMANDS_MAX: usize = 256;
/// Neighbours that may wait to be reported.
const MET_MAX: usize = 256;

/// How wide announcements and look-ups spread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spread {
    /// Nodes that hold each record, which is also how many of the closest a look-up asks at most.
    pub(super) replicas: NonZeroUsize,
    /// Requests of one look-up under way at once.
    pub(super) parallel: NonZeroUsize,
}

impl Default for Spread {
    /// Measured with 60 nodes, see `docs/mesh-protocol.md`: eight replicas are found as surely as twenty, with half the
    /// requests.
    fn default() -> Self {
        let number = |n| NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN);
        Self { replicas: number(8), parallel: number(3) }
    }
}

/// A node to which there is, or was, a connection.
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
    /// Keys that this node announces now and again.
    pub keys: AtomicU64,
    /// Requests of others that were answered.
    pub requests: AtomicU64,
    /// Messages of others that had to wait, because their sender had used its rate up.
    pub delayed: AtomicU64,
    /// Announcements of others that were dropped: beyond the rate, or malformed.
    pub records_refused: AtomicU64,
    /// Members that were banned because they did not stop.
    pub floods: AtomicU64,
}

enum Command {
    Announce(DhtKey, Urgency),
    Withdraw(DhtKey),
    Find(DhtKey, oneshot::Sender<Vec<(NodeId, SocketAddr)>>),
    Member(Neighbour),
    Contact(NodeId, SocketAddr),
    Down(NodeId),
    Moved(SocketAddr),
}

/// The DHT of this node: a handle to its task, which ends when the last handle is dropped.
#[derive(Clone)]
pub(super) struct Dht {
    commands: mpsc::Sender<Command>,
    wishes: Arc<Wishes>,
    counters: Arc<DhtCounters>,
}

/// What the DHT is started with.
pub(super) struct DhtStart {
    /// The endpoint, and through it the identity.
    pub(super) endpoint: Endpoint,
    /// Where others reach this node.
    pub(super) addr: SocketAddr,
    /// Nodes to begin with: dialled, and in the routing table once their certificate was seen.
    pub(super) contacts: Vec<(NodeId, SocketAddr)>,
    /// Incoming connections with libp2p's ALPN.
    pub(super) incoming: mpsc::Receiver<MemberConnection>,
    /// How wide to announce.
    pub(super) spread: Spread,
}

impl Dht {
    /// Starts the task. The second half of the result reports neighbours as connections come up; it
    /// may be left unread.
    ///
    /// # Errors
    /// When libp2p refuses to begin.
    pub(super) fn start(start: DhtStart) -> io::Result<(Self, mpsc::Receiver<Neighbour>)> {
        let DhtStart { endpoint, addr, contacts, incoming, spread } = start;
        let (met, neighbours) = mpsc::channel(MET_MAX);
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let counters = Arc::new(DhtCounters::default());
        let (gate, members) = (Gate::new(REQUESTS), Arc::new(Members::default()));
        let doors = transport::Doors { incoming, met, gate: gate.clone(), members: members.clone() };
        let transport = SharedEndpoint::new(endpoint.clone(), addr, doors);
        let wishes = Arc::new(Wishes::default());
        let (shared, counted) = (Arc::clone(&wishes), Arc::clone(&counters));
        let parts = task::Parts { endpoint, addr, gate, members, wishes: shared, counters: counted, spread };
        let task = Task::new(parts, transport, contacts, inbox)?;
        tokio::spawn(task.run());
        Ok((Self { commands, wishes, counters }, neighbours))
    }

    /// Announces that this node has something of `key`, and repeats it until [`Dht::withdraw`].
    /// Dropped, and counted, when the task is overloaded.
    pub(super) fn announce(&self, key: DhtKey, urgency: Urgency) {
        self.command(Command::Announce(key, urgency));
    }

    /// Stops repeating an announcement; what was announced expires elsewhere.
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

    /// A node whose membership certificate was checked elsewhere may be asked.
    pub(super) fn add_member(&self, member: Neighbour) {
        self.command(Command::Member(member));
    }

    /// A node that may be a member: it is dialled when this node knows nobody.
    pub(super) fn add_contact(&self, node: NodeId, addr: SocketAddr) {
        self.command(Command::Contact(node, addr));
    }

    /// A node does not answer: it leaves the routing table, and may come back.
    pub(super) fn down(&self, node: NodeId) {
        self.command(Command::Down(node));
    }

    /// Others reach this node there from now on: all that it announces is announced anew, at the pace of announcements.
    pub(super) fn moved(&self, addr: SocketAddr) {
        self.command(Command::Moved(addr));
    }

    /// A node is no member any more (revoked, expired): it leaves the routing table, its records and its connections
    /// of the control plane are dropped, however busy the task is. Keeping it out is the endpoint's business.
    pub(super) fn forget(&self, node: NodeId) {
        self.wishes.forget(node);
    }

    /// This node is no member any more: everybody leaves the routing table, and all connections of the control plane
    /// are dropped. Whom it knew at the start is dialled again later, should it be one again.
    pub(super) fn forget_all(&self) {
        self.wishes.forget_all();
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
