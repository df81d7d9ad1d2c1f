//! The mesh: membership, decisions, the DHT and the transfer of chunks between neighbours.
//!
//! [`proto`] decides and does no I/O; everything else in this room carries its decisions out.

#[cfg(feature = "node")]
mod bucket;
#[cfg(feature = "node")]
mod conduct;
#[cfg(feature = "node")]
mod dht;
#[cfg(feature = "node")]
mod driver;
#[cfg(feature = "node")]
mod endpoint;
#[cfg(feature = "node")]
mod identity;
#[cfg(feature = "node")]
mod join;
#[cfg(feature = "node")]
mod membership;
#[cfg(feature = "node")]
mod ports;
pub mod proto;
#[cfg(feature = "node")]
mod registry;
#[cfg(feature = "node")]
mod socket;
#[cfg(feature = "node")]
mod state;
#[cfg(feature = "node")]
mod swim;
#[cfg(feature = "node")]
#[cfg(test)]
mod testing;
#[cfg(feature = "node")]
mod ticket;
#[cfg(feature = "node")]
mod tls;
#[cfg(feature = "node")]
pub mod transfer;
#[cfg(feature = "node")]
pub mod wire;

#[cfg(feature = "node")]
pub use conduct::Offence;
#[cfg(feature = "node")]
pub use dht::DhtCounters;
#[cfg(feature = "node")]
pub use driver::{Mesh, MeshCounts, MeshStart, Network, PeerStatus};
#[cfg(feature = "node")]
pub use endpoint::{
    Alpn, CloseCode, ConnectError, DoorCounts, Endpoint, EndpointConfig, EndpointError, Incoming,
    JoinConnection,
};
#[cfg(feature = "node")]
pub use identity::{Identity, IdentityError, MEMBERSHIP_LIFETIME, NodeKey, node_of, peer_id_of};
#[cfg(feature = "node")]
pub use join::{JoinDesk, JoinError, Joined, Members, bootstrap, join, store_bootstrap};
#[cfg(feature = "node")]
pub use membership::{
    AuthorityKey, MEMBERSHIP_MAX_BYTES, Membership, MembershipCert, MembershipError, MeshId, MeshKeys, Role,
    SCOPE_MAX_REPOSITORIES, Scope, node_signed,
};
#[cfg(feature = "node")]
pub use ports::{Exchange, Local, News, NewsVerdict, ObtainError, Obtained, UpstreamFailure};
#[cfg(feature = "node")]
pub use registry::MemberConnection;
#[cfg(feature = "node")]
pub use socket::{DATAGRAM_MAX_BYTES, DatagramCounts, DatagramError};
#[cfg(feature = "node")]
pub use state::StateError;
#[cfg(feature = "node")]
pub use swim::{SwimCounters, Tuning};
#[cfg(feature = "node")]
pub use ticket::{CONTACT_MAX_ADDRESSES, Contact, TICKET_MAX_CONTACTS, Ticket, TicketError, TicketId};
#[cfg(feature = "node")]
pub use tls::TlsError;
