//! The mesh: membership, decisions, the DHT and the transfer of chunks between neighbours.
//!
//! [`proto`] decides and does no I/O; everything else in this room carries its decisions out.

#[cfg(feature = "node")]
mod authority;
#[cfg(feature = "node")]
mod bucket;
#[cfg(feature = "node")]
mod charter;
#[cfg(feature = "node")]
mod conduct;
#[cfg(feature = "node")]
mod dht;
#[cfg(feature = "node")]
mod driver;
#[cfg(feature = "node")]
mod endpoint;
#[cfg(feature = "node")]
mod held_key;
#[cfg(feature = "node")]
mod identity;
#[cfg(feature = "node")]
mod join;
#[cfg(feature = "node")]
mod membership;
#[cfg(feature = "node")]
mod mesh_trust;
#[cfg(feature = "node")]
mod office;
#[cfg(feature = "node")]
mod ports;
pub mod proto;
#[cfg(feature = "node")]
mod registry;
#[cfg(feature = "node")]
mod renewal;
#[cfg(feature = "node")]
mod revocation;
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
mod throttle;
#[cfg(feature = "node")]
mod ticket;
#[cfg(feature = "node")]
mod tls;
#[cfg(feature = "node")]
pub mod transfer;
#[cfg(feature = "node")]
pub mod wire;

#[cfg(feature = "node")]
pub use authority::{AuthorityKey, MeshId, MeshKeys, node_signed};
#[cfg(feature = "node")]
pub use charter::{COUNTING_MAX, Charter, CharterError, DROP_NOTICE, Overlap, ROTATIONS_MAX};
#[cfg(feature = "node")]
pub use conduct::Offence;
#[cfg(feature = "node")]
pub use dht::DhtCounters;
#[cfg(feature = "node")]
pub use driver::{
    Happened, MemberStatus, Mesh, MeshCounts, MeshStart, Network, PeerStatus, Step, Story, Tamper,
};
#[cfg(feature = "node")]
pub use endpoint::{
    Admitted, Alpn, CloseCode, ConnectError, DoorCounts, Endpoint, EndpointConfig, EndpointError, Incoming,
    JoinConnection,
};
#[cfg(feature = "node")]
pub use held_key::NEWEST_KEY_REMEDY;
#[cfg(feature = "node")]
pub use identity::{Identity, IdentityError, NodeKey, node_of, peer_id_of};
#[cfg(feature = "node")]
pub use join::{Introductions, JoinDesk, JoinError, Joined, Members, bootstrap, join, store_bootstrap};
#[cfg(feature = "node")]
pub use membership::{
    CERTIFICATE_LIFE, CERTIFICATE_LIFE_MAX, CERTIFICATE_LIFE_MIN, MEMBERSHIP_MAX_BYTES, Membership,
    MembershipCert, MembershipError, ParseRoleError, Role, SCOPE_MAX_REPOSITORIES, SEED_SHARE, Scope,
};
#[cfg(feature = "node")]
pub use mesh_trust::{MeshTrust, TrustChangeError};
#[cfg(feature = "node")]
pub use office::{Office, OfficeConfig, OfficeCounts};
#[cfg(feature = "node")]
pub use ports::{Exchange, Local, News, NewsVerdict, ObtainError, Obtained, UpstreamFailure};
#[cfg(feature = "node")]
pub use proto::Failure;
#[cfg(feature = "node")]
pub use registry::MemberConnection;
#[cfg(feature = "node")]
pub use revocation::{
    REASON_MAX_BYTES, REVOCATIONS_MAX_BYTES, REVOKED_MAX, Revocation, RevocationError, Revocations,
};
#[cfg(feature = "node")]
pub use socket::{DATAGRAM_MAX_BYTES, DatagramCounts, DatagramError};
#[cfg(feature = "node")]
pub use state::StateError;
#[cfg(feature = "node")]
pub use swim::{SwimCounters, Tuning};
#[cfg(feature = "node")]
pub use throttle::{LIMIT_MIN_BYTES_PER_S, Passed, RateLimits};
#[cfg(feature = "node")]
pub use ticket::{
    CONTACT_MAX_ADDRESSES, Contact, TICKET_MAX_CONTACTS, TICKET_MAX_USES, Terms, Ticket, TicketError,
    TicketId, TicketProof,
};
#[cfg(feature = "node")]
pub use tls::TlsError;
