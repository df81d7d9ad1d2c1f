//! Telling neighbours what is held here, and hearing it from them.

use super::super::proto::{Input, Peer, Slice};
use super::super::transfer;
use super::super::wire::SliceHeld;
use super::task::Driver;
use crate::model::NodeId;
use std::sync::Arc;

/// Tellings that are under way at once; beyond, they are dropped, and the neighbour knows less.
pub(super) const TELLING_MAX: usize = 32;

impl Driver {
    /// The core says what a neighbour should know.
    pub(super) fn tell_possession(&self, to: Peer, slices: &[(Slice, u64)]) {
        let (Some(network), Some(entry)) = (&self.links.network, self.peers.get(to)) else { return };
        let named = slices.iter().filter_map(|(slice, parts)| {
            let (segment, slice) = self.content.slice_name(*slice)?;
            Some(SliceHeld { segment, slice, parts: *parts })
        });
        let named: Vec<SliceHeld> = named.collect();
        if named.is_empty() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.gossip.telling).try_acquire_owned() else { return };
        let (endpoint, node, addr) = (network.endpoint.clone(), entry.node, entry.addr);
        tokio::spawn(async move {
            let result = match endpoint.connection(node, addr).await {
                Ok(connection) => {
                    transfer::tell_possession(&connection, named).await.map_err(|error| error.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = result {
                tracing::debug!(%node, %error, "telling what is held");
            }
            drop(permit);
        });
    }

    /// A peer tells what it holds. Slices of which nothing was wanted or stored here yet are left out: they have no number.
    pub(super) fn possession_told(&mut self, from: NodeId, slices: &[SliceHeld]) {
        let Some(peer) = self.peers.number(&from) else { return };
        let known = slices.iter().flat_map(|held| {
            let numbers = self.content.slice_numbers(&held.segment, held.slice);
            numbers.map(|slice| (slice, held.parts))
        });
        let slices: Vec<(Slice, u64)> = known.collect();
        if !slices.is_empty() {
            self.input(Input::Possession { peer, slices });
        }
    }
}
