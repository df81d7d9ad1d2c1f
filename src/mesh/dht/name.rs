//! Our names for nodes, places and keys, and libp2p's.

use super::super::authority::MeshId;
use super::super::identity::node_of;
use crate::model::{CellLabel, ContentId, NodeId};
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use std::net::SocketAddr;

/// What is looked up in the DHT: a hash, so that keys spread evenly whatever they name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::mesh) struct DhtKey(pub(super) [u8; 32]);

impl DhtKey {
    /// Who holds something of a segment.
    pub(in crate::mesh) fn segment(segment: &ContentId) -> Self {
        let mut name = vec![segment.algorithm() as u8];
        name.extend_from_slice(segment.digest());
        Self::named("segment", &name)
    }

    /// Who can list the members of a cell.
    pub(in crate::mesh) fn cell(cell: &CellLabel) -> Self {
        Self::named("cell", cell.as_str().as_bytes())
    }

    /// Who can list the members of some cell of a region.
    pub(in crate::mesh) fn region(region: &str) -> Self {
        Self::named("region", region.as_bytes())
    }

    /// Who certifies in a mesh.
    pub(in crate::mesh) fn authorities(mesh: &MeshId) -> Self {
        Self::named("mesh's authorities", &mesh.0)
    }

    /// The kinds of keys are kept apart by a derivation context, so that no name of one is one of another.
    fn named(kind: &str, name: &[u8]) -> Self {
        Self(blake3::derive_key(&format!("starling 2026 dht key of a {kind}"), name))
    }
}

/// `/ip4/…/udp/…/quic-v1`.
pub(super) fn to_multiaddr(addr: SocketAddr) -> Multiaddr {
    Multiaddr::empty().with(addr.ip().into()).with(Protocol::Udp(addr.port())).with(Protocol::QuicV1)
}

/// The address and, where it is named, the node. `None` for anything but QUIC at an IP address.
pub(super) fn from_multiaddr(addr: &Multiaddr) -> Option<(SocketAddr, Option<NodeId>)> {
    let mut parts = addr.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let (Protocol::Udp(port), Protocol::QuicV1) = (parts.next()?, parts.next()?) else { return None };
    let node = match parts.next() {
        Some(Protocol::P2p(peer)) => Some(node_of(&peer)?),
        Some(_) => return None,
        None => None,
    };
    Some((SocketAddr::new(ip, port), node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_survive_the_way_through_libp2p() {
        let peer = libp2p::identity::Keypair::generate_ed25519().public().to_peer_id();
        let node = node_of(&peer).unwrap();
        for text in ["192.0.2.7:4000", "[2001:db8::1]:65535"] {
            let addr: SocketAddr = text.parse().unwrap();
            assert_eq!(from_multiaddr(&to_multiaddr(addr)), Some((addr, None)));
            let named = to_multiaddr(addr).with(Protocol::P2p(peer));
            assert_eq!(from_multiaddr(&named), Some((addr, Some(node))));
        }
    }

    #[test]
    fn other_transports_are_not_taken_for_ours() {
        for text in ["/ip4/192.0.2.7/tcp/4000", "/dns/example.org/udp/1/quic-v1", "/ip4/192.0.2.7/udp/1"] {
            assert_eq!(from_multiaddr(&text.parse().unwrap()), None, "{text}");
        }
    }

    #[test]
    fn kinds_of_keys_never_meet() {
        let cell: CellLabel = "a/b/c".parse().unwrap();
        assert_ne!(DhtKey::cell(&cell), DhtKey::region("a/b/c"));
    }
}
