//! One QUIC endpoint on one UDP port: the control plane, the chunks and the joining of new members by
//! ALPN, and the membership datagrams beside them.
//!
//! Every connection is judged twice: in the TLS handshake ([`super::tls`]), and again right after it,
//! when the protocol is known, before anything is served ([`accept`]). In TLS 1.3 a client believes
//! itself connected before the server has judged it: a connection that [`Endpoint::connect`] returned is
//! good only once the first reply has come.

mod accept;
mod addresses;
mod error;
mod meet;
mod pool;
mod settings;

pub(super) use accept::DoorBook;
pub use accept::DoorCounts;
pub use error::{ConnectError, EndpointError};
pub use settings::EndpointConfig;

use super::conduct::{Conduct, Offence};

use super::identity::Identity;
use super::membership::MembershipCert;
use super::registry::{MemberConnection, Registry, Turned};
use super::socket::{self, DatagramCounts, DatagramError, SharedSocket, Wire};
use super::throttle::PassBook;
use super::ticket::TicketProof;
use super::tls::{self, Rules, Verified};
use super::wire::{VERSION, VERSION_OLDEST};
use crate::model::NodeId;
use addresses::Addresses;
use bytes::Bytes;
use pool::Pool;
use quinn::{TransportConfig, VarInt};
use rustls::pki_types::CertificateDer;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// The protocols of the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// The control plane: libp2p (identify, ping, Kademlia).
    Libp2p,
    /// Chunks, news and lists of members.
    Chunks,
    /// Joining, and late renewal. Only authorities offer it.
    Join,
}

impl Alpn {
    /// The protocol's name in the TLS handshake; that of its newest version.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Libp2p => "libp2p",
            Self::Chunks => "starling/2",
            Self::Join => "starling-join/2",
        }
    }

    /// Its names in the handshake, best first, when the `versions` of the protocol for chunks are spoken.
    fn names(self, versions: &[u8]) -> Vec<&'static [u8]> {
        let all = || CHUNK_NAMES.iter().filter(|(version, _)| versions.contains(version));
        match self {
            Self::Chunks => all().map(|(_, name)| name.as_bytes()).collect(),
            one => vec![one.name().as_bytes()],
        }
    }

    fn from_name(name: &[u8]) -> Option<Self> {
        let is = |text: &str| text.as_bytes() == name;
        match name {
            _ if is(Self::Libp2p.name()) => Some(Self::Libp2p),
            _ if is(Self::Join.name()) => Some(Self::Join),
            _ if CHUNK_NAMES.iter().any(|(_, text)| is(text)) => Some(Self::Chunks),
            _ => None,
        }
    }
}

/// The names of the versions of the protocol for chunks, newest first. Both sides offer all that they speak, and the
/// newest that both do is agreed on.
const CHUNK_NAMES: [(u8, &str); 2] = [(2, "starling/2"), (1, "starling/1")];
const _: () = assert!(CHUNK_NAMES[0].0 == VERSION && CHUNK_NAMES[1].0 == VERSION_OLDEST);

impl fmt::Display for Alpn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a connection was closed, as the peer is told (`docs/mesh-protocol.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCode {
    /// Not needed any longer.
    Done,
    /// The credential does not allow this protocol, or it has expired.
    Refused,
    /// Too many connections.
    Busy,
    /// Misbehaviour was seen.
    Banned,
    /// The node is shutting down.
    Closing,
    /// The peer broke the protocol.
    Protocol,
}

impl CloseCode {
    const ALL: [Self; 6] =
        [Self::Done, Self::Refused, Self::Busy, Self::Banned, Self::Closing, Self::Protocol];

    const fn number(self) -> u32 {
        match self {
            Self::Done => 0,
            Self::Refused => 1,
            Self::Busy => 2,
            Self::Banned => 3,
            Self::Closing => 4,
            Self::Protocol => 5,
        }
    }

    pub(super) const fn reason(self) -> &'static [u8] {
        match self {
            Self::Done => b"done",
            Self::Refused => b"refused",
            Self::Busy => b"busy",
            Self::Banned => b"banned",
            Self::Closing => b"closing",
            Self::Protocol => b"protocol violated",
        }
    }

    /// The code that a peer sent.
    pub fn from_number(number: VarInt) -> Option<Self> {
        Self::ALL.into_iter().find(|code| u64::from(code.number()) == number.into_inner())
    }
}

impl From<CloseCode> for VarInt {
    fn from(code: CloseCode) -> Self {
        Self::from_u32(code.number())
    }
}

/// Bounds of the queues of connections that wait for their server.
const WAITING_CONNECTIONS: usize = 64;
const WAITING_JOINS: usize = 16;

/// Connections beyond the bound that may be on their way out, or not yet be verified (guess).
const CLOSING_MAX: usize = 64;

/// Why a node may speak to an authority's desk.
#[derive(Debug)]
pub enum Admitted {
    /// It proved that it holds a ticket. Whether the ticket has expired or was used is still to be checked.
    Ticket(TicketProof),
    /// It is or was a member, perhaps a revoked one. Whether it may be renewed is still to be checked.
    Member(MembershipCert),
}

/// A connection on which nothing but joining and renewal is served.
#[derive(Debug)]
pub struct JoinConnection {
    /// The joiner.
    pub node: NodeId,
    /// Why it was let in.
    pub admitted: Admitted,
    /// The connection.
    pub quinn: quinn::Connection,
}

/// What comes in. Every queue is bounded; what does not fit is closed or dropped.
#[derive(Debug)]
pub struct Incoming {
    /// Control-plane connections that members opened.
    pub libp2p: mpsc::Receiver<MemberConnection>,
    /// Chunk connections that members opened.
    pub chunks: mpsc::Receiver<MemberConnection>,
    /// Connections of joiners, and of members to be renewed; only an authority gets any.
    pub joins: mpsc::Receiver<JoinConnection>,
    /// Membership datagrams and where they came from. Whoever reads them checks who signed them.
    pub datagrams: mpsc::Receiver<(SocketAddr, Bytes)>,
}

/// The endpoint. Cheap to clone; it closes when the last clone is dropped.
#[derive(Clone)]
pub struct Endpoint {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    pool: Pool,
}

/// What the accepting task needs; it must not keep the endpoint alive.
struct Shared {
    quinn: quinn::Endpoint,
    socket: Arc<SharedSocket>,
    identity: Arc<Identity>,
    registry: Arc<Registry>,
    transport: Arc<TransportConfig>,
    config: EndpointConfig,
    door: Arc<accept::DoorBook>,
    addresses: Addresses,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("node", &self.node()).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Endpoint {
    /// Opens the UDP port and begins to accept. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`EndpointError`] names the setting or the port.
    pub fn bind(config: EndpointConfig, identity: Arc<Identity>) -> Result<(Self, Incoming), EndpointError> {
        let listen = config.listen;
        let runtime = Arc::new(quinn::TokioRuntime);
        let open = || {
            let socket = socket::open(listen)?;
            let own = socket.try_clone()?;
            let wire = Wire::system(socket, &*runtime)?;
            if !config.segmentation_offload {
                socket::take_no_merged_packets(&own)?;
            }
            Ok(wire)
        };
        let wire = open().map_err(|source| EndpointError::Bind { listen, source })?;
        Self::bind_over(config, identity, wire, runtime, None)
    }

    /// As [`Endpoint::bind`], over a socket that is there already, with time and tasks from `runtime`. With `rng_seed` every
    /// choice of QUIC's that can be seen on the wire, but for keys and names of connections, is drawn from it.
    pub(super) fn bind_over(
        config: EndpointConfig,
        identity: Arc<Identity>,
        wire: Wire,
        runtime: Arc<dyn quinn::Runtime>,
        rng_seed: Option<[u8; 32]>,
    ) -> Result<(Self, Incoming), EndpointError> {
        let listen = config.listen;
        let failed = |source| EndpointError::Bind { listen, source };
        let (transport, accepting) = config.transports()?;
        let rules = rules(&identity);
        let mut alpns = vec![Alpn::Libp2p.name().as_bytes()];
        alpns.extend(Alpn::Chunks.names(config.versions));
        let is_desk = identity.mesh_keys().is_some();
        alpns.extend(is_desk.then(|| Alpn::Join.name().as_bytes()));
        let elsewhere = (!is_desk).then(|| Alpn::Join.name());
        let tls = tls::server_config(identity.clone(), rules, &alpns, elsewhere)?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls));
        server
            .transport_config(accepting)
            .migration(false)
            .max_incoming(accept::HANDSHAKES_MAX)
            .incoming_buffer_size(accept::HANDSHAKE_BUFFER_BYTES)
            .incoming_buffer_size_total(accept::HANDSHAKE_BUFFER_BYTES * accept::HANDSHAKES_MAX as u64);
        let mut endpoint = quinn::EndpointConfig::default();
        endpoint.grease_quic_bit(false);
        endpoint.rng_seed(rng_seed);
        endpoint
            .max_udp_payload_size(config.mtu.max(1_472))
            .map_err(|_| EndpointError::Mtu { mtu: config.mtu })?;
        let (socket, datagrams) = SharedSocket::new(wire).map_err(failed)?;
        let quinn =
            quinn::Endpoint::new_with_abstract_socket(endpoint, Some(server), socket.clone(), runtime)
                .map_err(failed)?;
        let pool = Pool::new(config.pool);
        let registry = Arc::new(Registry::new(config.limits));
        let shared = Arc::new(Shared {
            quinn,
            socket,
            identity,
            registry,
            transport,
            config,
            door: Arc::default(),
            addresses: Addresses::default(),
        });
        let (libp2p_in, libp2p) = mpsc::channel(WAITING_CONNECTIONS);
        let (chunks_in, chunks) = mpsc::channel(WAITING_CONNECTIONS);
        let (joins_in, joins) = mpsc::channel(WAITING_JOINS);
        let doors = accept::Doors { libp2p: libp2p_in, chunks: chunks_in, joins: joins_in };
        tokio::spawn(accept::run(shared.clone(), doors));
        Ok((Self { inner: Arc::new(Inner { shared, pool }) }, Incoming { libp2p, chunks, joins, datagrams }))
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.inner.shared.identity.node()
    }

    /// This node's identity.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.inner.shared.identity
    }

    /// The address on which the endpoint listens.
    ///
    /// # Errors
    /// What the system says about the socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.shared.quinn.local_addr()
    }

    /// Dials `node` for the protocol `alpn`; ends within [`EndpointConfig::handshake`].
    ///
    /// # Errors
    /// [`ConnectError`]. That the peer refuses this node shows later, at the first use.
    pub async fn connect(
        &self,
        node: NodeId,
        address: SocketAddr,
        alpn: Alpn,
    ) -> Result<MemberConnection, ConnectError> {
        self.inner.shared.dial(node, address, alpn).await
    }

    /// A connection for chunks with `node`, from the pool if there is one. However many wait for the
    /// same node, it is dialled once.
    ///
    /// # Errors
    /// As [`Endpoint::connect`]; [`ConnectError::TooMany`] when every pooled connection is in use.
    pub async fn connection(
        &self,
        node: NodeId,
        address: SocketAddr,
    ) -> Result<MemberConnection, ConnectError> {
        self.inner.pool.get(&self.inner.shared, node, address).await
    }

    /// Notes where `node` is reached, best first: it says so itself, or its ticket does. They are tried where the address
    /// that a caller knows does not answer.
    pub(super) fn know(&self, node: NodeId, addresses: &[SocketAddr]) {
        self.inner.shared.addresses.know(node, addresses);
    }

    /// Sends a membership datagram, whose first byte is below 0x40. It may be lost, as any datagram.
    ///
    /// # Errors
    /// [`DatagramError`]; when the kernel's buffer is full, too.
    pub fn send_datagram(&self, to: SocketAddr, content: &[u8]) -> Result<(), DatagramError> {
        self.inner.shared.socket.send_datagram(to, content)
    }

    /// What happened to membership datagrams so far.
    pub fn datagram_counts(&self) -> DatagramCounts {
        self.inner.shared.socket.counts()
    }

    /// Number of live connections with members, both planes and directions.
    pub fn connections(&self) -> usize {
        self.inner.shared.registry.connections()
    }

    /// Closes every connection with `node`, without holding anything against it: it is down or has moved.
    pub fn disconnect(&self, node: &NodeId) {
        self.inner.shared.registry.disconnect(node, CloseCode::Done);
    }

    /// Closes every connection with `node` on both planes and accepts and dials none for `span`. A
    /// longer ban that is in force stays.
    pub fn ban(&self, node: NodeId, span: Duration) {
        self.inner.shared.registry.ban(node, span);
    }

    /// Notes that `node` did what it should not have done; too much of it, and it is banned.
    pub fn report(&self, node: NodeId, offence: Offence) {
        self.inner.shared.registry.report(node, offence);
    }

    /// The book of offences, to be read by others.
    pub(super) fn conduct(&self) -> &Arc<Conduct> {
        self.inner.shared.registry.conduct()
    }

    /// The book of the door, to be read by others.
    pub(super) fn door(&self) -> &Arc<DoorBook> {
        &self.inner.shared.door
    }

    /// What passed under the limits of this node, to be read by others.
    pub(super) fn passed(&self) -> PassBook {
        self.inner.shared.registry.passed()
    }

    /// Whether `node` is banned now.
    pub fn is_banned(&self, node: &NodeId) -> bool {
        self.inner.shared.registry.is_banned(node)
    }

    /// A member has shown a renewed certificate, which was verified: its connections go on until that one ends.
    pub(super) fn renewed(&self, certificate: &MembershipCert) {
        self.inner.shared.registry.renewed(certificate);
    }

    /// How many open connections there are with each node, both planes and directions.
    pub(super) fn connections_by_node(&self) -> HashMap<NodeId, usize> {
        self.inner.shared.registry.by_node()
    }

    /// The round trip of the nodes with which there are connections now, of both planes and directions.
    pub(super) fn round_trips(&self) -> HashMap<NodeId, Duration> {
        self.inner.shared.registry.round_trips()
    }

    /// One open connection for chunks with each node that has one.
    pub(super) fn one_of_each(&self) -> Vec<MemberConnection> {
        self.inner.shared.registry.one_of_each()
    }

    /// Closes all connections and accepts none. Waits, at most `wait`, until the peers were told.
    pub async fn close(&self, wait: Duration) {
        self.inner.shared.close();
        let idle = self.inner.shared.quinn.wait_idle();
        if tokio::time::timeout(wait, idle).await.is_err() {
            tracing::debug!(?wait, "some peers were not told that this node is closing");
        }
    }
}

/// The rules by which a member judges others.
pub(super) fn rules(identity: &Identity) -> Rules {
    let desk = identity.mesh_keys().map(|_| identity.key().ticket_key());
    Rules::Member { trust: identity.trust().clone(), desk }
}

/// The certificate that the peer of a connection showed, judged now.
pub(super) fn judge(connection: &quinn::Connection, rules: &Rules) -> Result<Verified, String> {
    let shown = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or("no certificate was shown")?;
    let certificate = shown.first().ok_or("no certificate was shown")?;
    rules.judge(certificate, crate::ambient::unix_now()).map_err(|refusal| refusal.to_string())
}

impl Shared {
    fn close(&self) {
        self.registry.close();
        self.quinn.close(CloseCode::Closing.into(), CloseCode::Closing.reason());
    }

    /// Makes sure that one more connection is within the bound: the longest idle one may have to go.
    fn make_room(&self) -> Result<(), ConnectError> {
        let open = self.quinn.open_connections();
        let max = self.config.max_connections;
        // One that was closed still counts for some round trips.
        if open < max || (open < max + CLOSING_MAX && self.registry.close_idlest()) {
            Ok(())
        } else {
            Err(ConnectError::TooMany { open })
        }
    }

    async fn dial(
        &self,
        node: NodeId,
        address: SocketAddr,
        alpn: Alpn,
    ) -> Result<MemberConnection, ConnectError> {
        if self.registry.is_banned(&node) {
            return Err(ConnectError::Banned { node });
        }
        self.make_room()?;
        let rules = rules(&self.identity);
        let offered = alpn.names(self.config.versions);
        let tls = tls::client_config(&self.identity.certified(), rules.clone(), node, &offered)
            .map_err(|error| ConnectError::Tls(Arc::new(error)))?;
        let mut client = quinn::ClientConfig::new(Arc::new(tls));
        client.transport_config(self.transport.clone());
        let connecting = self
            .quinn
            .connect_with(client, address, tls::SERVER_NAME)
            .map_err(|source| ConnectError::Dial { address, source })?;
        let waited = self.config.handshake;
        let quinn = tokio::time::timeout(waited, connecting)
            .await
            .map_err(|_| ConnectError::TimedOut { node, address, waited })?
            .map_err(|source| match source {
                foreign if no_common_protocol(&foreign) => {
                    let spoken: Vec<_> = offered.iter().map(|name| String::from_utf8_lossy(name)).collect();
                    ConnectError::NoCommonVersion { node, address, spoken: spoken.join(", ") }
                }
                source => ConnectError::Handshake { node, address, source },
            })?;
        let membership = self.member_behind(&quinn, &rules, alpn);
        let membership: MembershipCert = membership.map_err(|detail| {
            quinn.close(CloseCode::Refused.into(), CloseCode::Refused.reason());
            ConnectError::NotAccepted { node, address, detail }
        })?;
        self.registry.admit(quinn.clone(), alpn, membership).map_err(|turned| {
            let (code, error) = match turned {
                Turned::Banned => (CloseCode::Banned, ConnectError::Banned { node }),
                Turned::TooMany => {
                    (CloseCode::Busy, ConnectError::TooMany { open: self.registry.connections() })
                }
                Turned::Closing => (CloseCode::Closing, ConnectError::Closing),
            };
            quinn.close(code.into(), code.reason());
            error
        })
    }

    /// The member at the other end of a connection that this node dialled.
    fn member_behind(
        &self,
        quinn: &quinn::Connection,
        rules: &Rules,
        alpn: Alpn,
    ) -> Result<MembershipCert, String> {
        if agreed(quinn) != Some(alpn) {
            return Err(format!("it did not agree on {alpn}"));
        }
        match judge(quinn, rules)? {
            Verified::Member(membership) if membership.node == self.identity.node() => {
                Err("it is this node itself".into())
            }
            Verified::Member(membership) => Ok(membership),
            Verified::Joiner(..) | Verified::Lapsed(_) | Verified::Named(..) => Err("it is no member".into()),
        }
    }
}

fn agreed_name(connection: &quinn::Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?.protocol
}

/// The protocol that was agreed on.
pub(super) fn agreed(connection: &quinn::Connection) -> Option<Alpn> {
    Alpn::from_name(&agreed_name(connection)?)
}

/// The version of the protocol for chunks that was agreed on; the newest for other protocols, which have one each.
pub(super) fn agreed_version(connection: &quinn::Connection) -> u8 {
    let name = agreed_name(connection).unwrap_or_default();
    CHUNK_NAMES.iter().find(|(_, text)| text.as_bytes() == name).map_or(VERSION, |(version, _)| *version)
}

/// Whether a handshake failed because the two sides speak nothing in common (TLS alert 120, RFC 7301).
pub(super) fn no_common_protocol(error: &quinn::ConnectionError) -> bool {
    let alert = quinn::TransportErrorCode::crypto(120);
    match error {
        quinn::ConnectionError::TransportError(error) => error.code == alert,
        quinn::ConnectionError::ConnectionClosed(close) => close.error_code == alert,
        _ => false,
    }
}

#[cfg(test)]
pub(super) mod tests;
