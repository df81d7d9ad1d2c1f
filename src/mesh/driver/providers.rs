//! Who of those that announced a segment is asked: the nearest that answers.
//!
//! A record in the DHT says who, not how far. So the providers of a look-up are dialled at once, and their certificates
//! and round trips tell: those of this region, or else those that are about as near as the nearest.

use super::super::dht::Neighbour;
use super::super::endpoint::Endpoint;
use crate::model::NodeId;
use futures::StreamExt;
use std::net::SocketAddr;
use std::time::Duration;

/// Providers of one look-up that are dialled.
const DIALLED_MAX: usize = 16;
/// Longest time for a dial, and from the first answer on for the others.
const DIAL_LIMIT: Duration = Duration::from_secs(2);
const OTHERS_LIMIT: Duration = Duration::from_millis(300);
/// Round trips that count as near as the nearest: up to twice its own and this (guess: noise on a LAN).
const NOISE: Duration = Duration::from_millis(2);

/// A provider that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Provider {
    pub(super) neighbour: Neighbour,
    pub(super) rtt: Duration,
}

/// Dials those who were found; who answers within a moment of the first.
pub(super) async fn reach(endpoint: &Endpoint, found: Vec<(NodeId, SocketAddr)>) -> Vec<Provider> {
    let me = endpoint.node();
    let others = found.into_iter().filter(|(node, _)| *node != me).take(DIALLED_MAX);
    let dial = |(node, addr)| async move { endpoint.connection(node, addr).await.ok() };
    let mut dials = futures::stream::iter(others).map(dial).buffer_unordered(DIALLED_MAX);
    let mut reached = Vec::new();
    let mut until = tokio::time::Instant::now() + DIAL_LIMIT;
    while let Ok(Some(dialled)) = tokio::time::timeout_at(until, dials.next()).await {
        let Some(connection) = dialled else { continue };
        if reached.is_empty() {
            until = until.min(tokio::time::Instant::now() + OTHERS_LIMIT);
        }
        let rtt = connection.quinn().rtt();
        reached.push(Provider { neighbour: Neighbour::of(&connection), rtt });
    }
    reached
}

/// The nearest of them, nearest first: those of `region`, or else those about as near as the nearest.
pub(super) fn nearest(mut providers: Vec<Provider>, region: &str) -> Vec<Provider> {
    let is_here = |provider: &Provider| provider.neighbour.membership.cell.region() == region;
    if providers.iter().any(is_here) {
        providers.retain(is_here);
    } else if let Some(least) = providers.iter().map(|provider| provider.rtt).min() {
        providers.retain(|provider| provider.rtt <= 2 * least + NOISE);
    }
    providers.sort_by_key(|provider| (provider.rtt, provider.neighbour.node));
    providers
}

#[cfg(test)]
mod tests {
    use super::super::super::identity::tests::TestMesh;
    use super::*;

    fn provider(mesh: &TestMesh, port: u16, cell: &str, millis: u64) -> Provider {
        let identity = mesh.member_with(|membership| membership.cell = cell.parse().unwrap());
        let (node, addr) = (identity.node(), ([192, 0, 2, 1], port).into());
        let neighbour = Neighbour { node, addr, membership: identity.membership() };
        Provider { neighbour, rtt: Duration::from_millis(millis) }
    }

    fn ports(providers: &[Provider]) -> Vec<u16> {
        providers.iter().map(|provider| provider.neighbour.addr.port()).collect()
    }

    #[test]
    fn the_own_region_comes_before_any_other_however_near() {
        let mesh = TestMesh::new();
        let new = |port, cell, millis| provider(&mesh, port, cell, millis);
        let all = vec![new(1, "us/a/a", 1), new(2, "eu/a/a", 40), new(3, "eu/b/b", 30)];
        assert_eq!(ports(&nearest(all, "eu")), [3, 2]);
    }

    #[test]
    fn of_other_regions_those_about_as_near_as_the_nearest_are_asked() {
        let mesh = TestMesh::new();
        let new = |port, cell, millis| provider(&mesh, port, cell, millis);
        let all = vec![new(1, "us/a/a", 90), new(2, "as/a/a", 200), new(3, "us/b/b", 120)];
        assert_eq!(ports(&nearest(all, "eu")), [1, 3]);
        assert_eq!(nearest(Vec::new(), "eu"), []);
    }
}
