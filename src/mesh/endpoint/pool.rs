//! Connections that are kept for asking others for chunks.

use super::{ConnectError, Shared};
use crate::mesh::registry::MemberConnection;
use crate::model::{NodeId, Time};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared as SharedFuture};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Dialling = SharedFuture<BoxFuture<'static, Result<MemberConnection, ConnectError>>>;

struct Slot {
    dialling: Dialling,
    /// Where it is, or was, dialled.
    address: SocketAddr,
    used: Time,
}

impl Slot {
    /// Whether its connection stands and only the pool holds it.
    fn is_idle(&self) -> bool {
        matches!(self.dialling.peek(), Some(Ok(connection)) if connection.is_sole_handle())
    }

    /// Whether a new caller can share it: the dial runs, or its connection stands.
    fn is_good(&self) -> bool {
        match self.dialling.peek() {
            None => true,
            Some(Err(_)) => false,
            Some(Ok(connection)) => connection.is_open(),
        }
    }

    /// Whether it serves somebody who knows the node at `address`. One that still dials where the node was before says so
    /// only when its time is over.
    fn leads_to(&self, address: SocketAddr) -> bool {
        self.is_good() && (self.address == address || self.dialling.peek().is_some())
    }
}

pub(super) struct Pool {
    slots: Mutex<HashMap<NodeId, Slot>>,
    max: usize,
}

impl Pool {
    pub(super) fn new(max: usize) -> Self {
        Self { slots: Mutex::new(HashMap::new()), max }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn get(
        &self,
        shared: &Arc<Shared>,
        node: NodeId,
        address: SocketAddr,
    ) -> Result<MemberConnection, ConnectError> {
        if shared.registry.is_banned(&node) {
            return Err(ConnectError::Banned { node });
        }
        let dialling = self.share_or_dial(shared, node, address)?;
        dialling.await
    }

    fn share_or_dial(
        &self,
        shared: &Arc<Shared>,
        node: NodeId,
        address: SocketAddr,
    ) -> Result<Dialling, ConnectError> {
        let now = crate::ambient::now();
        // The last handles of connections are dropped outside the lock.
        let mut dropped = Vec::new();
        let mut slots = self.lock();
        if let Some(slot) = slots.get_mut(&node).filter(|slot| slot.leads_to(address)) {
            slot.used = now;
            return Ok(slot.dialling.clone());
        }
        dropped.extend(slots.extract_if(|_, slot| !slot.is_good()));
        if slots.len() >= self.max {
            let idlest = slots
                .iter()
                .filter(|(_, slot)| slot.is_idle())
                .min_by_key(|(node, slot)| (slot.used, **node))
                .map(|(node, _)| *node)
                .ok_or(ConnectError::TooMany { open: slots.len() })?;
            dropped.extend(slots.remove_entry(&idlest));
        }
        let dial = shared.clone();
        let dialling = async move { dial.dial_anywhere(node, address).await }.boxed().shared();
        // A task of its own carries it through: a caller who stops waiting stops nobody else's dial.
        tokio::spawn(dialling.clone().map(drop));
        slots.insert(node, Slot { dialling: dialling.clone(), address, used: now });
        drop(slots);
        Ok(dialling)
    }
}
