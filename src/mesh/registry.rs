//! The live connections with members, and the nodes that are banned.

use super::conduct::{BAN, Conduct, Offence, Use};
use super::endpoint::{Alpn, CloseCode, agreed_version};
use super::membership::MembershipCert;
use super::mesh_trust::MeshTrust;
use super::socket::canonical;
use super::throttle::{PassBook, RateLimits, Throttles};
use super::transfer::Precedence;
use crate::model::{NodeId, Time, UnixTime};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Most connections that one node may have with this one: two protocols, both directions, and some
/// that are being replaced.
const CONNECTIONS_PER_NODE: usize = 8;
/// Chunks that one node may be asking for at a time, on all its connections; more are answered busy (guess: the
/// largest window of a reader, a few times over).
const ASKS_PER_NODE: usize = 1_024;
/// How long a connection must have been idle before it may make room for another (guess: some round trips, so that one
/// that was just opened for a request is not closed before it).
const IDLE_MIN: Duration = Duration::from_secs(1);
/// QUIC's error codes for TLS alerts (RFC 9001, section 4.8): a client gets one after its own handshake was done when the
/// server does not take its certificate.
const TLS_ALERTS: std::ops::Range<u64> = 0x100..0x200;
/// Most nodes that are banned at once; the ban that would end first makes room.
const BANS_MAX: usize = 4_096;

/// A live connection with a member of the mesh, whose membership was verified.
///
/// Cheap to clone. It is closed when the last clone is dropped, when the node is banned or revoked, and when the
/// membership ends, unless the peer has shown a renewed one.
#[derive(Clone)]
pub struct MemberConnection {
    inner: Arc<Inner>,
}

struct Inner {
    number: u64,
    quinn: quinn::Connection,
    alpn: Alpn,
    version: u8,
    node: NodeId,
    membership: RwLock<MembershipCert>,
    /// Shared by all connections with the node.
    asks: Arc<Semaphore>,
    /// Requests under way, either way.
    in_use: AtomicUsize,
    /// When the last one began or ended.
    used: AtomicU64,
    precedence: Precedence,
    registry: Arc<Registry>,
}

/// A request under way on a connection: until it is dropped, the connection is not idle.
pub(super) struct InUse(Arc<Inner>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.note_use();
        self.0.in_use.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Inner {
    fn note_use(&self) {
        self.used.store(crate::ambient::now().as_nanos(), Ordering::Relaxed);
    }

    /// When it was last used, if it is for chunks, open, and nothing is under way on it now.
    fn idle_since(&self) -> Option<Time> {
        let is_idle = self.alpn == Alpn::Chunks
            && self.in_use.load(Ordering::Acquire) == 0
            && self.quinn.close_reason().is_none();
        is_idle.then(|| Time::from_nanos(self.used.load(Ordering::Relaxed)))
    }

    fn membership(&self) -> MembershipCert {
        self.membership.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.quinn.close(CloseCode::Done.into(), b"");
        self.registry.lock().live.remove(&self.number);
    }
}

impl fmt::Debug for MemberConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemberConnection({} {:?} at {})", self.alpn(), self.node(), self.address())
    }
}

impl MemberConnection {
    /// The peer.
    pub fn node(&self) -> NodeId {
        self.inner.node
    }

    /// The peer's membership: the newest that it has shown.
    pub fn membership(&self) -> MembershipCert {
        self.inner.membership()
    }

    /// The protocol that was agreed on.
    pub fn alpn(&self) -> Alpn {
        self.inner.alpn
    }

    /// The version of the protocol for chunks that was agreed on.
    pub fn version(&self) -> u8 {
        self.inner.version
    }

    /// The peer's address.
    pub fn address(&self) -> SocketAddr {
        canonical(self.inner.quinn.remote_address())
    }

    /// The QUIC connection, for its streams. It does not outlive the last clone of `self`.
    pub fn quinn(&self) -> &quinn::Connection {
        &self.inner.quinn
    }

    /// Whether it still stands, as far as this side knows.
    pub fn is_open(&self) -> bool {
        self.inner.quinn.close_reason().is_none()
    }

    /// Whether the peer closed it because this node's certificate does not count for it: in the handshake, which its dialler
    /// hears of only afterwards, or later.
    pub(super) fn is_refused(&self) -> bool {
        match self.inner.quinn.close_reason() {
            Some(quinn::ConnectionError::ApplicationClosed(close)) => {
                CloseCode::from_number(close.error_code) == Some(CloseCode::Refused)
            }
            Some(quinn::ConnectionError::ConnectionClosed(close)) => {
                TLS_ALERTS.contains(&u64::from(close.error_code))
            }
            _ => false,
        }
    }

    /// Closes it and tells the peer why.
    pub fn close(&self, code: CloseCode) {
        self.inner.quinn.close(code.into(), code.reason());
    }

    /// Notes that the peer did what it should not have done; too much of it, and it is banned.
    pub fn report(&self, offence: Offence) {
        self.inner.registry.report(self.node(), offence);
    }

    /// Whether the peer may do something `tokens` times now.
    pub(super) fn allows(&self, what: Use, tokens: u32) -> bool {
        self.inner.registry.conduct.allows(self.node(), what, tokens, crate::ambient::now())
    }

    /// Notes that a request is under way on it.
    pub(super) fn begin_use(&self) -> InUse {
        self.inner.in_use.fetch_add(1, Ordering::AcqRel);
        self.inner.note_use();
        InUse(self.inner.clone())
    }

    /// Who writes something short on it.
    pub(super) fn precedence(&self) -> &Precedence {
        &self.inner.precedence
    }

    /// What this node sends and takes at most.
    pub(super) fn throttles(&self) -> &Throttles {
        &self.inner.registry.throttles
    }

    /// The places for what the peer asks for at a time, on all its connections.
    pub(super) fn asks(&self) -> &Arc<Semaphore> {
        &self.inner.asks
    }

    /// Whether nobody but the holder of `self` uses it.
    pub(super) fn is_sole_handle(&self) -> bool {
        Arc::strong_count(&self.inner) == 1
    }
}

struct Live {
    node: NodeId,
    connection: Weak<Inner>,
}

#[derive(Default)]
struct State {
    next: u64,
    /// By number, so that what concerns several is done in the order in which they came.
    live: BTreeMap<u64, Live>,
    bans: HashMap<NodeId, Time>,
    closed: bool,
}

/// Why a verified connection is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turned {
    Banned,
    TooMany,
    Closing,
}

#[derive(Default)]
pub(super) struct Registry {
    state: Mutex<State>,
    conduct: Arc<Conduct>,
    throttles: Throttles,
}

impl Registry {
    pub(super) fn new(limits: RateLimits) -> Self {
        Self { throttles: Throttles::new(limits), ..Self::default() }
    }

    /// What the limits let pass, to be read by others.
    pub(super) fn passed(&self) -> PassBook {
        self.throttles.book()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in this file can panic while it holds the lock and leave the tables half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection that was just verified into the books.
    pub(super) fn admit(
        self: &Arc<Self>,
        quinn: quinn::Connection,
        alpn: Alpn,
        membership: MembershipCert,
    ) -> Result<MemberConnection, Turned> {
        let version = agreed_version(&quinn);
        let mut state = self.lock();
        let node = membership.node;
        if state.closed {
            return Err(Turned::Closing);
        }
        if state.is_banned(&node) {
            return Err(Turned::Banned);
        }
        // Collected, because a handle that turns out to be the last must not be dropped under the lock.
        let own: Vec<Arc<Inner>> = state
            .live
            .values()
            .filter(|live| live.node == node)
            .filter_map(|live| live.connection.upgrade())
            .collect();
        if own.iter().filter(|inner| inner.quinn.close_reason().is_none()).count() >= CONNECTIONS_PER_NODE {
            drop(state);
            return Err(Turned::TooMany);
        }
        let fresh = || Arc::new(Semaphore::new(ASKS_PER_NODE));
        let asks = own.first().map_or_else(fresh, |inner| inner.asks.clone());
        let number = state.next;
        state.next += 1;
        let membership = RwLock::new(membership);
        let inner = Arc::new(Inner {
            number,
            quinn,
            alpn,
            version,
            node,
            membership,
            asks,
            in_use: AtomicUsize::new(0),
            used: AtomicU64::new(crate::ambient::now().as_nanos()),
            precedence: Precedence::default(),
            registry: self.clone(),
        });
        state.live.insert(number, Live { node, connection: Arc::downgrade(&inner) });
        drop(state);
        Ok(MemberConnection { inner })
    }

    /// Closes the connections for which `which` holds. Not under the lock: the last handle may be dropped here.
    fn close_where(&self, code: CloseCode, which: impl Fn(&Inner) -> bool) {
        for inner in self.live().into_iter().filter(|inner| which(inner)) {
            inner.quinn.close(code.into(), code.reason());
        }
    }

    /// Closes the connection for chunks that was idle for the longest time, if one was for [`IDLE_MIN`]; whether.
    pub(super) fn close_idlest(&self) -> bool {
        let now = crate::ambient::now();
        let idle = self.live().into_iter().filter_map(|inner| Some((inner.idle_since()?, inner)));
        let longest = idle.min_by_key(|(since, inner)| (*since, inner.number));
        let Some((_, inner)) = longest.filter(|(since, _)| now.since(*since) >= IDLE_MIN) else {
            return false;
        };
        tracing::debug!(node = %inner.node, "an idle connection makes room for another");
        inner.quinn.close(CloseCode::Done.into(), CloseCode::Done.reason());
        true
    }

    fn live(&self) -> Vec<Arc<Inner>> {
        self.lock().live.values().filter_map(|live| live.connection.upgrade()).collect()
    }

    pub(super) fn disconnect(&self, node: &NodeId, code: CloseCode) {
        self.close_where(code, |inner| inner.node == *node);
    }

    /// Closes the connections with those whose membership does not count at `now`: expired, revoked, or signed by
    /// a key that has retired.
    pub(super) fn close_ended(&self, trust: &MeshTrust, now: UnixTime) {
        self.close_where(CloseCode::Refused, |inner| trust.check(&inner.membership(), now).is_err());
    }

    /// A node has shown a certificate that was verified: its connections live as long as the newest that it showed.
    pub(super) fn renewed(&self, certificate: &MembershipCert) {
        for inner in self.live().into_iter().filter(|inner| inner.node == certificate.node) {
            let mut known = inner.membership.write().unwrap_or_else(PoisonError::into_inner);
            if certificate.supersedes(&known) {
                *known = certificate.clone();
            }
        }
    }

    /// How many open connections there are with each node.
    pub(super) fn by_node(&self) -> HashMap<NodeId, usize> {
        let mut counts = HashMap::new();
        for inner in self.live().into_iter().filter(|inner| inner.quinn.close_reason().is_none()) {
            *counts.entry(inner.node).or_default() += 1;
        }
        counts
    }

    /// The shortest round trip of the open connections with each node.
    pub(super) fn round_trips(&self) -> HashMap<NodeId, Duration> {
        let mut shortest = HashMap::new();
        for inner in self.live().into_iter().filter(|inner| inner.quinn.close_reason().is_none()) {
            let rtt = inner.quinn.rtt();
            shortest.entry(inner.node).and_modify(|least| *least = rtt.min(*least)).or_insert(rtt);
        }
        shortest
    }

    /// One open connection for chunks with each node.
    pub(super) fn one_of_each(&self) -> Vec<MemberConnection> {
        let mut seen = HashMap::new();
        let open = |inner: &Arc<Inner>| inner.alpn == Alpn::Chunks && inner.quinn.close_reason().is_none();
        for inner in self.live().into_iter().filter(open) {
            seen.entry(inner.node).or_insert(MemberConnection { inner });
        }
        seen.into_values().collect()
    }

    /// Notes what a node did; bans it when it was too much.
    pub(super) fn report(&self, node: NodeId, offence: Offence) {
        let was_banned = self.is_banned(&node);
        if self.conduct.note(node, offence, crate::ambient::now()) && !was_banned {
            tracing::warn!(%node, offence = offence.name(), span = ?BAN, "banned");
            self.ban(node, BAN);
        } else {
            tracing::debug!(%node, offence = offence.name(), "offence");
        }
    }

    /// The book of offences.
    pub(super) fn conduct(&self) -> &Arc<Conduct> {
        &self.conduct
    }

    pub(super) fn ban(&self, node: NodeId, span: Duration) {
        let now = crate::ambient::now();
        {
            let mut state = self.lock();
            state.bans.retain(|_, until| *until > now);
            if state.bans.len() >= BANS_MAX && !state.bans.contains_key(&node) {
                let first =
                    state.bans.iter().min_by_key(|(node, until)| (**until, **node)).map(|(node, _)| *node);
                first.map(|first| state.bans.remove(&first));
            }
            let until = state.bans.entry(node).or_default();
            *until = (*until).max(now + span);
        }
        self.disconnect(&node, CloseCode::Banned);
    }

    pub(super) fn is_banned(&self, node: &NodeId) -> bool {
        self.lock().is_banned(node)
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
    }

    pub(super) fn connections(&self) -> usize {
        self.lock().live.len()
    }
}

impl State {
    fn is_banned(&self, node: &NodeId) -> bool {
        self.bans.get(node).is_some_and(|until| *until > crate::ambient::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ban_ends_and_the_number_of_bans_is_bounded() {
        let registry = Registry::default();
        registry.ban(NodeId([1; 32]), Duration::from_secs(60));
        registry.ban(NodeId([2; 32]), Duration::ZERO);
        assert!(registry.is_banned(&NodeId([1; 32])));
        assert!(!registry.is_banned(&NodeId([2; 32])));
        for i in 0..=BANS_MAX {
            registry.ban(NodeId::numbered(i), Duration::from_secs(3_600));
        }
        assert_eq!(registry.lock().bans.len(), BANS_MAX);
        assert!(!registry.is_banned(&NodeId([1; 32])), "the ban that would have ended first made room");
    }
}
