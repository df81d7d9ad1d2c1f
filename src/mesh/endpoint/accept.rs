//! Taking in connections: who may begin a handshake, and what becomes of it.

use super::{
    Admitted, Alpn, CLOSING_MAX, CloseCode, JoinConnection, Shared, agreed, judge, no_common_protocol, rules,
};
use crate::mesh::bucket::{Buckets, Pace};
use crate::mesh::registry::{MemberConnection, Turned};
use crate::mesh::tls::Verified;
use crate::model::Time;
use crate::seldom::Seldom;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::{self, error::TrySendError};
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
/// Handshakes that one address may begin (guess: a rack of agents behind one address that starts at once, then
/// about a twentieth of a core).
const FROM_ONE: Pace = Pace { burst: 256, per_s: 32 };
/// Addresses whose pace is remembered.
const ADDRESSES_MAX: usize = 8_192;
/// How often connections whose membership has ended are looked for. (Revocations do not wait for it.)
const EXPIRY_SWEEP: Duration = Duration::from_secs(1);

/// Where connections go.
pub(super) struct Doors {
    pub(super) libp2p: mpsc::Sender<MemberConnection>,
    pub(super) chunks: mpsc::Sender<MemberConnection>,
    pub(super) joins: mpsc::Sender<JoinConnection>,
}

macro_rules! door_counts {
    ($($(#[$doc:meta])+ $name:ident,)+) => {
        /// What happened at the door since the start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
        pub struct DoorCounts {
            $($(#[$doc])+ pub $name: u64,)+
        }

        #[derive(Debug, Default)]
        pub(in crate::mesh) struct DoorBook {
            $($name: AtomicU64,)+
        }

        impl DoorBook {
            pub(in crate::mesh) fn snapshot(&self) -> DoorCounts {
                DoorCounts { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

door_counts! {
    /// Attempts whose sender had to prove its address first.
    retried,
    /// Attempts refused before a handshake: too many, in all or from one address.
    refused,
    /// Handshakes that failed or took too long: strangers, mostly.
    failed,
    /// Handshakes with somebody who speaks no protocol that is spoken here.
    no_common_version,
    /// Connections closed right after their handshake: banned, too many of one node, of the wrong protocol.
    turned_away,
    /// Connections handed on.
    let_in,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What one sender is known by: an IPv4 address, or the network of an IPv6 address, of which a host has as many as it
/// likes (RFC 4291, section 2.5.1).
fn sender(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

/// Handshakes under way, and the pace of each sender.
struct Gate {
    by_address: Mutex<HashMap<IpAddr, usize>>,
    paces: Mutex<Buckets<IpAddr>>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { by_address: Mutex::default(), paces: Mutex::new(Buckets::new(FROM_ONE, ADDRESSES_MAX)) }
    }
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
    fn admit(&self, address: IpAddr, proven: bool, total: usize, now: Time) -> Admission {
        let table = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        let own = table.get(&address).copied().unwrap_or(0);
        if total >= HANDSHAKES_MAX {
            Admission::Refuse
        } else if !proven && (total >= HANDSHAKES_UNPROVEN || !paces.is_half_full(&address, now)) {
            // Nobody spends another's share by forging its address.
            Admission::ProveAddress
        } else if own >= HANDSHAKES_PER_ADDRESS || !paces.take(address, 1, now) {
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
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let trust = shared.identity.trust().clone();
    let mut changes = trust.changes();
    loop {
        // In this order: a flood of attempts must not keep the rest from being done.
        tokio::select! {
            biased;
            Ok(()) = changes.changed() => shared.registry.close_ended(&trust, crate::ambient::unix_now()),
            _ = sweep.tick() => shared.registry.close_ended(&trust, crate::ambient::unix_now()),
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
    let address = sender(incoming.remote_address().ip());
    // What is beyond the bound has to prove first that it is a member, for whom others make room.
    let full = shared.quinn.open_connections() >= shared.config.max_connections + CLOSING_MAX;
    let proven = incoming.remote_address_validated();
    match gate.admit(address, proven, handshakes.len(), crate::ambient::now()) {
        Admission::Accept if !full => {
            let pass = gate.pass(address);
            let (shared, doors) = (shared.clone(), doors.clone());
            handshakes.spawn(async move {
                let _pass = pass;
                let limit = shared.config.handshake;
                match tokio::time::timeout(limit, async { incoming.accept()?.await }).await {
                    Ok(Ok(connection)) => sort(&shared, &doors, &connection),
                    Ok(Err(error)) => fail(&shared, address, &error),
                    Err(_) => {
                        count(&shared.door.failed);
                        tracing::debug!(%address, ?limit, "handshake took too long");
                    }
                }
            });
        }
        // A retry is only impossible when the address is proven already.
        Admission::ProveAddress => {
            count(&shared.door.retried);
            incoming.retry().unwrap_or_else(|error| error.into_incoming().refuse());
        }
        Admission::Accept | Admission::Refuse => {
            count(&shared.door.refused);
            tracing::debug!(%address, full, under_way = handshakes.len(), "connection refused");
            incoming.refuse();
        }
    }
}

/// A handshake failed. That nothing in common is spoken, an operator must hear of.
fn fail(shared: &Shared, address: IpAddr, error: &quinn::ConnectionError) {
    static FOREIGN: Seldom = Seldom::new(Duration::from_secs(60));
    if no_common_protocol(error) {
        count(&shared.door.no_common_version);
        if let Some(held_back) = FOREIGN.pass() {
            let spoken = shared.config.versions;
            tracing::warn!(%address, ?spoken, held_back, "somebody speaks no version of the protocol that is spoken here");
        }
    } else {
        count(&shared.door.failed);
        tracing::debug!(%address, %error, "handshake failed");
    }
}

/// Judges a connection now that its protocol is known, and hands it to that protocol's server.
fn sort(shared: &Arc<Shared>, doors: &Doors, connection: &quinn::Connection) {
    let refuse = |code: CloseCode, why: &str| {
        count(&shared.door.turned_away);
        tracing::debug!(address = %connection.remote_address(), why, "connection closed after its handshake");
        connection.close(code.into(), code.reason());
    };
    let join = |node, admitted| match doors.joins.try_send(JoinConnection {
        node,
        admitted,
        quinn: connection.clone(),
    }) {
        Ok(()) => {}
        Err(TrySendError::Full(_)) => refuse(CloseCode::Busy, "too many join at once"),
        Err(TrySendError::Closed(_)) => refuse(CloseCode::Refused, "its desk is not open"),
    };
    let verified = match judge(connection, &rules(&shared.identity)) {
        Ok(verified) => verified,
        Err(why) => return refuse(CloseCode::Refused, &why),
    };
    match (agreed(connection), verified) {
        (Some(alpn @ (Alpn::Libp2p | Alpn::Chunks)), Verified::Member(membership)) => {
            // A handshake also shows a renewed certificate.
            shared.registry.renewed(&membership);
            if shared.quinn.open_connections() > shared.config.max_connections
                && !shared.registry.close_idlest()
            {
                return refuse(CloseCode::Busy, "too many connections");
            }
            match shared.registry.admit(connection.clone(), alpn, membership) {
                Err(Turned::Banned) => refuse(CloseCode::Banned, "banned"),
                Err(Turned::TooMany) => refuse(CloseCode::Busy, "too many connections of one node"),
                Err(Turned::Closing) => refuse(CloseCode::Closing, "closing"),
                Ok(member) => {
                    let door = if alpn == Alpn::Libp2p { &doors.libp2p } else { &doors.chunks };
                    if door.try_send(member).is_err() {
                        refuse(CloseCode::Busy, "nobody takes it");
                    } else {
                        count(&shared.door.let_in);
                    }
                }
            }
        }
        (Some(Alpn::Join), Verified::Joiner(node, proof)) => join(node, Admitted::Ticket(proof)),
        (Some(Alpn::Join), Verified::Member(shown) | Verified::Lapsed(shown)) => {
            join(shown.node, Admitted::Member(shown));
        }
        (alpn, Verified::Joiner(..) | Verified::Lapsed(_) | Verified::Named(..)) => {
            let asked = alpn.map_or("nothing", Alpn::name);
            refuse(CloseCode::Refused, &format!("no member, and asked for {asked}"));
        }
        (None, Verified::Member(_)) => refuse(CloseCode::Refused, "a member asked for nothing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_must_prove_its_addresses_and_no_address_gets_more_than_its_share() {
        let gate = Arc::new(Gate::default());
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let admit = |address, proven, total| gate.admit(address, proven, total, Time::ZERO);
        assert_eq!(admit(one, false, 0), Admission::Accept);
        assert_eq!(admit(one, false, HANDSHAKES_UNPROVEN), Admission::ProveAddress);
        assert_eq!(admit(one, true, HANDSHAKES_UNPROVEN), Admission::Accept);
        assert_eq!(admit(one, true, HANDSHAKES_MAX), Admission::Refuse);
        let passes: Vec<_> = (0..HANDSHAKES_PER_ADDRESS).map(|_| gate.pass(one)).collect();
        assert_eq!(admit(one, true, passes.len()), Admission::Refuse);
        assert_eq!(admit(other, true, passes.len()), Admission::Accept);
        drop(passes);
        assert_eq!(admit(one, true, 0), Admission::Accept);
        assert!(gate.by_address.lock().unwrap().is_empty(), "an address without handshakes is forgotten");
    }

    #[test]
    fn who_begins_handshakes_again_and_again_is_slowed_down_and_nobody_can_do_that_to_another() {
        let gate = Gate::default();
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let forged =
            (0..1_000).filter(|_| gate.admit(one, false, 0, Time::ZERO) == Admission::Accept).count();
        assert_eq!(forged, 129, "until half of its share is gone, then it must prove its address");
        let proven = (0..1_000).filter(|_| gate.admit(one, true, 0, Time::ZERO) == Admission::Accept).count();
        assert_eq!(forged + proven, 256);
        assert_eq!(gate.admit(other, true, 0, Time::ZERO), Admission::Accept);
        let later = Time::ZERO + Duration::from_secs(1);
        assert_eq!((0..1_000).filter(|_| gate.admit(one, true, 0, later) == Admission::Accept).count(), 32);
    }

    #[test]
    fn a_host_is_known_by_its_network_where_it_has_addresses_without_number() {
        let known = |text: &str| sender(text.parse().unwrap()).to_string();
        assert_eq!(known("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!((known("::ffff:10.0.0.1"), known("10.0.0.2")), ("10.0.0.1".into(), "10.0.0.2".into()));
    }
}
