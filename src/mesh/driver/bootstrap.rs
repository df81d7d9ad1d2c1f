//! Finding the mesh again when nobody who is known answers: host names and addresses from the settings, the
//! neighbours of the local network, and whoever is now where members were.
//!
//! Names are looked up anew each time, all their addresses are tried, and whoever answers counts only once its
//! certificate was checked. Nobody need be who was there before: after a start in which machines have each other's
//! addresses, a member of the mesh found where another was is as good a contact. That goes on for ever while this node sees
//! nobody. While it sees some and misses others, names are asked now and then: a fleet whose machines all came back with
//! other addresses can be in two groups that know nothing of each other.

use super::super::dht::{Dht, Neighbour};
use super::super::endpoint::Endpoint;
use super::PeerStatus;
use super::cells::Hint;
use super::mdns::Lan;
use super::task::Message;
use crate::ambient;
use crate::model::NodeId;
use futures::StreamExt;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Pauses between two attempts while nobody is seen: at first, and at most (guess: a name that changed is found
/// within a minute, and a resolver is not bothered by a fleet that is cut off).
const PAUSE_FIRST: Duration = Duration::from_secs(2);
const PAUSE_LATER: Duration = Duration::from_secs(60);
/// Pause between two attempts while some are seen and others are missed (guess: two groups find each other within minutes,
/// and a member that is off for good costs a look-up and a few dials that seldom).
const PAUSE_MISSING: Duration = Duration::from_secs(180);
/// How long other contacts have before names are asked, and how often it is looked whether somebody is seen.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest look-up of one name.
const RESOLVE_LIMIT: Duration = Duration::from_secs(5);
/// Most addresses of one name that are tried, and how many at once.
const ADDRESSES_MAX: usize = 32;
const DIALS_AT_ONCE: usize = 8;
/// Members that are enough to begin with: they tell of the others.
const ENOUGH: usize = 3;
/// Addresses where members were last that are tried in one attempt; the next goes on with others (guess: eight dials at
/// once that nobody answers end within 40 s).
const LAST_SEEN_MAX: usize = 64;

/// What is needed to find the mesh again.
pub(super) struct Bootstrap {
    pub(super) endpoint: Endpoint,
    pub(super) dht: Option<Dht>,
    pub(super) inbox: mpsc::Sender<Message>,
    pub(super) hints: mpsc::Sender<Hint>,
    /// `HOST:PORT` each.
    pub(super) names: Vec<String>,
    /// Which members were where before the start.
    pub(super) before: Vec<(NodeId, SocketAddr)>,
    /// The neighbours of the local network, if they are to be asked.
    pub(super) lan: Option<Lan>,
    /// Peers that are believed to be alive.
    pub(super) seen: Arc<AtomicUsize>,
    pub(super) stop: CancellationToken,
}

impl Bootstrap {
    /// Runs until it is stopped.
    pub(super) async fn run(self) {
        let stop = self.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.look() => {}
        }
    }

    async fn look(mut self) {
        let (mut pause, mut tried) = (PAUSE_FIRST, 0);
        let mut looked_at = ambient::now();
        loop {
            match &mut self.lan {
                // Others are answered however many this node sees.
                Some(lan) => {
                    let _ = tokio::time::timeout(PATIENCE, lan.listen()).await;
                }
                None => tokio::time::sleep(PATIENCE).await,
            }
            if self.seen.load(Ordering::Relaxed) > 0 || !self.is_member() {
                pause = PAUSE_FIRST;
                if ambient::now().since(looked_at) >= PAUSE_MISSING {
                    self.look_for_missing().await;
                    looked_at = ambient::now();
                }
                continue;
            }
            let mut addresses = resolve(&self.names).await;
            if let Some(lan) = &mut self.lan {
                addresses.extend(lan.ask().await);
            }
            let mut found = self.dial(addresses).await;
            let last_seen = if found == 0 { self.last_seen().await } else { BTreeSet::new() };
            if !last_seen.is_empty() {
                let first = tried % last_seen.len();
                let others = last_seen.iter().cycle().skip(first).take(last_seen.len().min(LAST_SEEN_MAX));
                found = self.dial(others.copied().collect()).await;
                tried = first + LAST_SEEN_MAX;
            }
            if found == 0 && !(self.names.is_empty() && last_seen.is_empty()) {
                let (names, places, next_s) = (&self.names, last_seen.len(), pause.as_secs());
                tracing::info!(?names, places, next_s, "no member found yet");
            }
            match &mut self.lan {
                Some(lan) => {
                    let _ = tokio::time::timeout(pause, lan.listen()).await;
                }
                None => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(PAUSE_LATER);
        }
    }

    /// Asks the names for members other than those that are seen, if some are missed.
    async fn look_for_missing(&self) {
        if self.names.is_empty() || !self.is_member() {
            return;
        }
        let peers = self.peers().await;
        let up: BTreeSet<NodeId> = peers.iter().filter(|peer| peer.up).map(|peer| peer.node).collect();
        let known = peers.iter().map(|peer| peer.node).chain(self.before.iter().map(|(node, _)| *node));
        if known.into_iter().all(|node| up.contains(&node)) {
            return;
        }
        let mut addresses = resolve(&self.names).await;
        addresses.retain(|address| !peers.iter().any(|peer| peer.up && peer.addr == *address));
        self.dial(addresses).await;
    }

    /// Whether anybody would let this node in, as it knows itself. Else only an authority is of use, and the renewal looks for
    /// one.
    fn is_member(&self) -> bool {
        let identity = self.endpoint.identity();
        identity.trust().check(&identity.membership(), ambient::unix_now()).is_ok()
    }

    /// Where members were, before the start and since.
    async fn last_seen(&self) -> BTreeSet<SocketAddr> {
        let since = self.peers().await.into_iter().map(|peer| peer.addr);
        self.before.iter().map(|(_, addr)| *addr).chain(since).collect()
    }

    /// The members that the driver knows.
    async fn peers(&self) -> Vec<PeerStatus> {
        let (reply, answer) = oneshot::channel();
        let _ = self.inbox.send(Message::Status(reply)).await;
        answer.await.unwrap_or_default()
    }

    /// Dials addresses until enough members were found, and introduces them.
    async fn dial(&self, addresses: BTreeSet<SocketAddr>) -> usize {
        let mut dials = futures::stream::iter(addresses)
            .map(|address| async move { (address, self.endpoint.connect_any(address).await) })
            .buffer_unordered(DIALS_AT_ONCE);
        let mut found = 0;
        while let Some((address, result)) = dials.next().await {
            let connection = match result {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::debug!(%error, "looking for a member");
                    continue;
                }
            };
            let neighbour = Neighbour::of(&connection);
            tracing::info!(node = %neighbour.node, %address, "found a member");
            if let Some(dht) = &self.dht {
                dht.add_contact(neighbour.node, neighbour.addr);
            }
            let _ = self.hints.try_send(Hint::Contact(neighbour.node, neighbour.addr));
            let _ = self.inbox.send(Message::Neighbour(neighbour)).await;
            found += 1;
            if found >= ENOUGH {
                break;
            }
        }
        found
    }
}

/// All addresses of all names. A name that cannot be looked up now is left out.
pub(in crate::mesh) async fn resolve(names: &[String]) -> BTreeSet<SocketAddr> {
    let mut found = BTreeSet::new();
    for name in names {
        match tokio::time::timeout(RESOLVE_LIMIT, tokio::net::lookup_host(name)).await {
            Ok(Ok(addresses)) => found.extend(addresses.take(ADDRESSES_MAX)),
            Ok(Err(error)) => tracing::debug!(name, %error, "looking up a name"),
            Err(_) => tracing::debug!(name, "looking up a name takes too long"),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_addresses_of_all_names_are_found_and_a_bad_name_hides_none() {
        let names = ["localhost:7400".into(), "no-such-host.invalid:1".into(), "192.0.2.1:7".into()];
        let found = resolve(&names).await;
        assert!(found.contains(&"192.0.2.1:7".parse().unwrap()));
        assert!(found.iter().any(|addr| addr.ip().is_loopback() && addr.port() == 7400), "{found:?}");
    }
}
