//! Taking in connections: who may begin a handshake, and what becomes of it.

use super::{Alpn, CloseCode, JoinConnection, Shared, agreed, judge, rules};
use crate::mesh::registry::{MemberConnection, Turned};
use crate::mesh::tls::Verified;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Most handshakes under way (guess: two seconds of them on one core at 2 ms each).
pub(super) const HANDSHAKES_MAX: usize = 1_024;
/// Bytes of early packets that are held for one handshake that waits to be accepted.
pub(super) const HANDSHAKE_BUFFER_BYTES: u64 = 16 << 10;
/// Handshakes under way from which on a sender must first prove its address (a retry costs it one round
/// trip and stops floods from forged addresses).
const HANDSHAKES_UNPROVEN: usize = 32;
/// Handshakes under way from one address (guess: a rack behind one address translator).
const HANDSHAKES_PER_ADDRESS: usize = 64;
/// How often connections whose membership has expired are looked for.
const EXPIRY_SWEEP: Duration = Duration::from_secs(30);

/// Where connections go.
pub(super) struct Doors {
    pub(super) libp2p: mpsc::Sender<MemberConnection>,
    pub(super) chunks: mpsc::Sender<MemberConnection>,
    pub(super) joins: mpsc::Sender<JoinConnection>,
}

/// Handshakes under way.
#[derive(Default)]
struct Gate {
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

/// One handshake's place in the gate.
struct Pass {
    gate: Arc<Gate>,
    address: IpAddr,
}

#[derive(Debug, PartialEq, Eq)]
enum Admission {
    Accept,
    ProveAddress,
    Refuse,
}

impl Gate {
    /// What to do with an attempt from `address` when `total` handshakes are under way.
    fn admit(&self, address: IpAddr, proven: bool, total: usize) -> Admission {
        let table = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let own = table.get(&address).copied().unwrap_or(0);
        if total >= HANDSHAKES_MAX {
            Admission::Refuse
        } else if !proven && total >= HANDSHAKES_UNPROVEN {
            Admission::ProveAddress
        } else if own >= HANDSHAKES_PER_ADDRESS {
            Admission::Refuse
        } else {
            Admission::Accept
        }
    }

    fn pass(self: &Arc<Self>, address: IpAddr) -> Pass {
        let mut table = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        *table.entry(address).or_default() += 1;
        Pass { gate: self.clone(), address }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut table = self.gate.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = table.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                table.remove(&self.address);
            }
        }
    }
}

/// Accepts until the endpoint is closed.
pub(super) async fn run(shared: Arc<Shared>, doors: Doors) {
    let doors = Arc::new(doors);
    let gate = Arc::new(Gate::default());
    let mut handshakes = JoinSet::new();
    let mut sweep = tokio::time::interval(EXPIRY_SWEEP);
    loop {
        // In this order: a flood of attempts must not keep the rest from being done.
        tokio::select! {
            biased;
            _ = sweep.tick() => shared.registry.close_expired(crate::ambient::unix_now()),
            Some(_) = handshakes.join_next(), if !handshakes.is_empty() => {}
            incoming = shared.quinn.accept() => {
                let Some(incoming) = incoming else { break };
                take_in(&shared, &doors, &gate, &mut handshakes, incoming);
            }
        }
    }
}

fn take_in(
    shared: &Arc<Shared>,
    doors: &Arc<Doors>,
    gate: &Arc<Gate>,
    handshakes: &mut JoinSet<()>,
    incoming: quinn::Incoming,
) {
    let address = incoming.remote_address().ip().to_canonical();
    let full = shared.quinn.open_connections() >= shared.config.max_connections;
    let proven = incoming.remote_address_validated();
    match gate.admit(address, proven, handshakes.len()) {
        Admission::Accept if !full => {
            let pass = gate.pass(address);
            let (shared, doors) = (shared.clone(), doors.clone());
            handshakes.spawn(async move {
                let _pass = pass;
                let limit = shared.config.handshake;
                match tokio::time::timeout(limit, async { incoming.accept()?.await }).await {
                    Ok(Ok(connection)) => sort(&shared, &doors, &connection),
                    Ok(Err(error)) => tracing::debug!(%address, %error, "handshake failed"),
                    Err(_) => tracing::debug!(%address, ?limit, "handshake took too long"),
                }
            });
        }
        // A retry is only impossible when the address is proven already.
        Admission::ProveAddress => incoming.retry().unwrap_or_else(|error| error.into_incoming().refuse()),
        Admission::Accept | Admission::Refuse => {
            tracing::debug!(%address, full, under_way = handshakes.len(), "connection refused");
            incoming.refuse();
        }
    }
}

/// Judges a connection now that its protocol is known, and hands it to that protocol's server.
fn sort(shared: &Arc<Shared>, doors: &Doors, connection: &quinn::Connection) {
    let refuse = |code: CloseCode, why: &str| {
        tracing::debug!(address = %connection.remote_address(), why, "connection closed after its handshake");
        connection.close(code.into(), code.reason());
    };
    let verified = match judge(connection, &rules(&shared.identity)) {
        Ok(verified) => verified,
        Err(why) => return refuse(CloseCode::Refused, &why),
    };
    match (agreed(connection), verified) {
        (Some(alpn @ (Alpn::Libp2p | Alpn::Chunks)), Verified::Member(membership)) => {
            match shared.registry.admit(connection.clone(), alpn, membership) {
                Err(Turned::Banned) => refuse(CloseCode::Banned, "banned"),
                Err(Turned::TooMany) => refuse(CloseCode::Busy, "too many connections of one node"),
                Err(Turned::Closing) => refuse(CloseCode::Closing, "closing"),
                Ok(member) => {
                    let door = if alpn == Alpn::Libp2p { &doors.libp2p } else { &doors.chunks };
                    if door.try_send(member).is_err() {
                        refuse(CloseCode::Busy, "nobody takes it");
                    }
                }
            }
        }
        (Some(Alpn::Join), Verified::Joiner(node, proof)) => {
            let join = JoinConnection { node, proof, quinn: connection.clone() };
            if doors.joins.try_send(join).is_err() {
                refuse(CloseCode::Busy, "too many join at once");
            }
        }
        (alpn, Verified::Joiner(..)) => {
            refuse(CloseCode::Refused, &format!("a joiner asked for {}", alpn.map_or("nothing", Alpn::name)));
        }
        (alpn, Verified::Member(_)) => {
            refuse(CloseCode::Refused, &format!("a member asked for {}", alpn.map_or("nothing", Alpn::name)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_must_prove_its_addresses_and_no_address_gets_more_than_its_share() {
        let gate = Arc::new(Gate::default());
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        assert_eq!(gate.admit(one, false, 0), Admission::Accept);
        assert_eq!(gate.admit(one, false, HANDSHAKES_UNPROVEN), Admission::ProveAddress);
        assert_eq!(gate.admit(one, true, HANDSHAKES_UNPROVEN), Admission::Accept);
        assert_eq!(gate.admit(one, true, HANDSHAKES_MAX), Admission::Refuse);
        let passes: Vec<_> = (0..HANDSHAKES_PER_ADDRESS).map(|_| gate.pass(one)).collect();
        assert_eq!(gate.admit(one, true, passes.len()), Admission::Refuse);
        assert_eq!(gate.admit(other, true, passes.len()), Admission::Accept);
        drop(passes);
        assert_eq!(gate.admit(one, true, 0), Admission::Accept);
        assert!(gate.by_address.lock().unwrap().is_empty(), "an address without handshakes is forgotten");
    }
}
