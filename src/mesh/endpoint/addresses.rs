//! Nodes with several addresses: other interfaces, the other family.
//!
//! Beside the address that others know best, a few more of a node are remembered, which only itself, its ticket or this
//! node's own memory has named. They are dialled one after another until one answers (RFC 8305, section 5); whoever
//! answers has to be the node that was meant.

use super::{Alpn, ConnectError, Shared};
use crate::mesh::registry::MemberConnection;
use crate::mesh::ticket::CONTACT_MAX_ADDRESSES;
use crate::model::NodeId;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Until the next address is dialled beside those that have not answered yet (RFC 8305, section 8: 250 ms).
const STAGGER: Duration = Duration::from_millis(250);
/// Nodes of which further addresses are remembered (guess: two cells' worth, and more).
const NODES_MAX: usize = 8_192;

#[derive(Default)]
struct Known {
    by_node: HashMap<NodeId, Vec<SocketAddr>>,
    /// First in, first out.
    order: VecDeque<NodeId>,
}

/// Further addresses of nodes.
#[derive(Default)]
pub(super) struct Addresses(Mutex<Known>);

impl Addresses {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes where a node is reached; what was known before is forgotten. A single address says nothing new.
    pub(super) fn know(&self, node: NodeId, addresses: &[SocketAddr]) {
        let mut known = self.lock();
        if addresses.len() < 2 {
            // Its place in the order stays, and is found empty.
            known.by_node.remove(&node);
            return;
        }
        let addresses = addresses[..addresses.len().min(CONTACT_MAX_ADDRESSES)].to_vec();
        if known.by_node.insert(node, addresses).is_none() {
            known.order.push_back(node);
        }
        if known.order.len() > NODES_MAX
            && let Some(oldest) = known.order.pop_front()
        {
            known.by_node.remove(&oldest);
        }
    }

    /// `first`, and then what else is known of the node.
    fn of(&self, node: &NodeId, first: SocketAddr) -> Vec<SocketAddr> {
        let known = self.lock();
        let others = known.by_node.get(node).into_iter().flatten().copied();
        std::iter::once(first).chain(others.filter(|address| *address != first)).collect()
    }
}

impl Shared {
    /// Dials `node` at `first` and, as long as nobody answers, at its other addresses.
    pub(super) async fn dial_anywhere(
        &self,
        node: NodeId,
        first: SocketAddr,
    ) -> Result<MemberConnection, ConnectError> {
        let mut addresses = self.addresses.of(&node, first).into_iter();
        let mut dials = FuturesUnordered::new();
        let mut failed = None;
        loop {
            let next = addresses.next();
            let is_last = next.is_none();
            dials.extend(next.map(|address| self.dial(node, address, Alpn::Chunks)));
            loop {
                let answer = if is_last {
                    dials.next().await
                } else {
                    match tokio::time::timeout(STAGGER, dials.next()).await {
                        Ok(answer) => answer,
                        Err(_) => break,
                    }
                };
                match answer {
                    Some(Ok(connection)) => return Ok(connection),
                    // What is wrong with the best known address tells most.
                    Some(Err(error)) => {
                        failed.get_or_insert(error);
                    }
                    None if is_last => return Err(failed.unwrap_or(ConnectError::Closing)),
                    None => break,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_known_address_comes_first_and_what_is_remembered_is_bounded() {
        let addresses = Addresses::default();
        let at = |port| SocketAddr::from(([10, 0, 0, 1], port));
        let node = NodeId::numbered;
        assert_eq!(addresses.of(&node(1), at(1)), [at(1)]);
        addresses.know(node(1), &[at(1), at(2), at(3)]);
        assert_eq!(addresses.of(&node(1), at(2)), [at(2), at(1), at(3)]);
        addresses.know(node(1), &(0..100).map(at).collect::<Vec<_>>());
        assert_eq!(addresses.of(&node(1), at(0)).len(), CONTACT_MAX_ADDRESSES);
        addresses.know(node(1), &[at(7)]);
        assert_eq!(addresses.of(&node(1), at(1)), [at(1)]);
        for number in 0..2 * NODES_MAX {
            addresses.know(node(number), &[at(1), at(2)]);
            addresses.know(node(3), &[at(1)]);
        }
        let known = addresses.lock();
        assert!(known.by_node.len() <= NODES_MAX && known.order.len() <= NODES_MAX);
    }
}
