//! Whom this node has seen a membership certificate of, and how they are spread.
//!
//! A certificate names one node, and a node cannot choose another name for it. What an attacker with many
//! certificates could still do is fill the buckets of others with its own: so no cell and no network gets more than three
//! quarters of a bucket.

use super::super::registry::MemberConnection;
use super::records::{Announcer, network_of};
use crate::model::{CellLabel, ContentId, NodeId, UnixTime};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Places of a bucket of twenty (libp2p's default) that one cell, or one network, may have.
const BUCKET_SHARE: usize = 15;
/// Members that are remembered; beyond, those who are neither connected nor in the routing table are forgotten.
const MEMBERS_MAX: usize = 4_096;

/// What is known of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Where it was reached, or came from.
    pub(super) addr: SocketAddr,
    cell: u64,
    expires: UnixTime,
}

/// The members, shared with the transport, which sees their certificates.
#[derive(Debug, Default)]
pub(super) struct Members(Mutex<HashMap<NodeId, Seen>>);

fn cell_key(cell: &CellLabel) -> u64 {
    ContentId::of(cell.as_str().as_bytes()).key()
}

impl Members {
    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection came up: its certificate was checked in the handshake.
    pub(super) fn connected(&self, connection: &MemberConnection) {
        let membership = connection.membership();
        let seen = Seen {
            addr: connection.address(),
            cell: cell_key(&membership.cell),
            expires: membership.expires,
        };
        self.note(connection.node(), seen);
    }

    /// Its certificate was checked elsewhere.
    pub(super) fn vouched(&self, node: NodeId, addr: SocketAddr, cell: &CellLabel, expires: UnixTime) {
        self.note(node, Seen { addr, cell: cell_key(cell), expires });
    }

    fn note(&self, node: NodeId, seen: Seen) {
        let mut members = self.lock();
        if members.len() < 2 * MEMBERS_MAX || members.contains_key(&node) {
            members.insert(node, seen);
        }
    }

    /// What is known of a node.
    pub(super) fn seen(&self, node: &NodeId) -> Option<Seen> {
        self.lock().get(node).copied()
    }

    /// A member as the store of records wants to know it. Of the addresses that it calls its own, the one from which
    /// it came counts; what cannot be checked could be anybody's.
    pub(super) fn announcer(&self, node: NodeId, claimed: &[SocketAddr]) -> Option<Announcer> {
        let seen = self.seen(&node)?;
        let own = claimed.iter().find(|addr| addr.ip() == seen.addr.ip()).copied();
        Some(Announcer { node, addr: Some(own.unwrap_or(seen.addr)), cell: seen.cell, expires: seen.expires })
    }

    /// Whether a bucket in which `others` are has room for one more of `node`'s cell and network.
    pub(super) fn has_share(&self, node: &NodeId, others: impl Iterator<Item = NodeId>) -> bool {
        let members = self.lock();
        let Some(own) = members.get(node) else { return false };
        let (mut cell, mut network) = (0, 0);
        for other in others.filter(|other| other != node).filter_map(|other| members.get(&other)) {
            cell += usize::from(other.cell == own.cell);
            network += usize::from(network_of(other.addr) == network_of(own.addr));
        }
        cell < BUCKET_SHARE && network < BUCKET_SHARE
    }

    /// Members whose certificate no longer counts.
    pub(super) fn expired(&self, now: UnixTime) -> Vec<NodeId> {
        let members = self.lock();
        members.iter().filter(|(_, seen)| seen.expires <= now).map(|(node, _)| *node).collect()
    }

    /// Forgets a node.
    pub(super) fn forget(&self, node: &NodeId) {
        self.lock().remove(node);
    }

    /// Whether so many are known that those without use should be forgotten.
    pub(super) fn is_crowded(&self) -> bool {
        self.lock().len() > MEMBERS_MAX
    }

    /// Forgets all for whom `keep` does not hold.
    pub(super) fn retain(&self, keep: impl Fn(&NodeId) -> bool) {
        self.lock().retain(|node, _| keep(node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    fn vouch(members: &Members, node: NodeId, cell: &str, ip: [u8; 4]) {
        members.vouched(node, (ip, 7_400).into(), &cell.parse().unwrap(), UnixTime(u64::MAX));
    }

    #[test]
    fn neither_a_cell_nor_a_network_gets_a_bucket_for_itself() {
        let members = Members::default();
        for number in 0..20 {
            vouch(&members, node(number), "a/a/a", [10, 0, number, 1]);
            vouch(&members, node(100 + number), &format!("a/a/r{number}"), [10, 9, 9, number]);
        }
        vouch(&members, node(200), "b/b/b", [10, 1, 1, 1]);
        let cell = |count: u8| (0..count).map(node);
        let network = |count: u8| (100..100 + count).map(node);
        assert!(members.has_share(&node(19), cell(14)) && !members.has_share(&node(19), cell(15)));
        assert!(members.has_share(&node(119), network(14)) && !members.has_share(&node(119), network(15)));
        assert!(members.has_share(&node(200), cell(15).chain(network(4))), "a stranger to all of them");
        assert!(!members.has_share(&node(99), cell(0)), "of whom no certificate was seen");
    }

    #[test]
    fn an_announcer_is_reached_where_it_came_from() {
        let members = Members::default();
        vouch(&members, node(1), "a/a/a", [10, 0, 0, 1]);
        let claims = |text: &str| [text.parse::<SocketAddr>().unwrap()];
        let addr =
            |claimed: &[SocketAddr]| members.announcer(node(1), claimed).unwrap().addr.unwrap().to_string();
        assert_eq!(addr(&claims("10.0.0.1:99")), "10.0.0.1:99", "another port of its own address");
        assert_eq!(addr(&claims("192.0.2.7:53")), "10.0.0.1:7400", "not a victim's");
        assert_eq!(addr(&[]), "10.0.0.1:7400");
        assert!(members.announcer(node(2), &[]).is_none());
    }

    #[test]
    fn the_number_of_members_is_bounded_and_those_without_use_go() {
        let members = Members::default();
        let id = NodeId::numbered;
        for number in 0..3 * MEMBERS_MAX {
            vouch(&members, id(number), "a/a/a", [10, 0, 0, 1]);
        }
        assert!(members.is_crowded() && members.lock().len() == 2 * MEMBERS_MAX);
        members.retain(|node| *node == id(5));
        assert!(members.seen(&id(5)).is_some() && members.lock().len() == 1);
    }
}
