//! Provider records at this node: who announced which key, where it is, until when.
//!
//! libp2p's own store refuses past 1 024 keys with only a log line, keeps the first 20 providers of a
//! key for ever and drops expired ones only when somebody looks. Here the newest announcement always
//! finds room: of its provider, of its key and of the whole store, the oldest gives way.

use super::super::identity::{node_of, peer_id_of};
use super::name::{from_multiaddr, to_multiaddr};
use crate::model::{NodeId, Time};
use libp2p::PeerId;
use libp2p::kad::store::{Error, RecordStore, Result};
use libp2p::kad::{ProviderRecord, Record, RecordKey};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

/// Bounds of the store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Records in all. At about 200 bytes each with its indices: 40 MB.
    pub(super) total: usize,
    /// Providers of one key: all fit one answer of 16 KiB.
    pub(super) per_key: usize,
    /// Keys of one provider, so that one node cannot push all others out.
    pub(super) per_provider: usize,
    /// How long a record lives without being announced again.
    pub(super) ttl: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { total: 200_000, per_key: 64, per_provider: 50_000, ttl: Duration::from_secs(3 * 3_600) }
    }
}

type Key = [u8; 32];

struct Provider {
    node: NodeId,
    /// `None` for this node itself: its addresses are filled in by libp2p.
    addr: Option<SocketAddr>,
    /// Its place in `by_age`.
    age: u64,
}

/// The store. Ages are numbers that grow with each announcement; with one lifetime for all, the order
/// of ages is the order of expiry.
pub(super) struct Providers {
    me: NodeId,
    limits: Limits,
    clock: fn() -> Time,
    by_key: HashMap<Key, Vec<Provider>>,
    by_age: BTreeMap<u64, (Time, Key, NodeId)>,
    by_provider: HashMap<NodeId, BTreeMap<u64, Key>>,
    next_age: u64,
}

impl Providers {
    pub(super) fn new(me: NodeId, limits: Limits, clock: fn() -> Time) -> Self {
        Self {
            me,
            limits,
            clock,
            by_key: HashMap::new(),
            by_age: BTreeMap::new(),
            by_provider: HashMap::new(),
            next_age: 0,
        }
    }

    /// Records held.
    pub(super) fn len(&self) -> usize {
        self.by_age.len()
    }

    /// Drops what has expired.
    pub(super) fn expire(&mut self) {
        let now = (self.clock)();
        while let Some((age, (expires, ..))) = self.by_age.first_key_value()
            && *expires <= now
        {
            let age = *age;
            self.drop_age(age);
        }
    }

    /// Takes an announcement.
    fn insert(&mut self, key: Key, node: NodeId, addr: Option<SocketAddr>) {
        self.expire();
        self.remove(&key, node);
        if let Some(oldest) = self.oldest_of_provider(node) {
            self.drop_age(oldest);
        }
        let oldest_of_key = self
            .by_key
            .get(&key)
            .filter(|providers| providers.len() >= self.limits.per_key)
            .and_then(|providers| providers.iter().map(|provider| provider.age).min());
        if let Some(oldest) = oldest_of_key {
            self.drop_age(oldest);
        }
        if self.by_age.len() >= self.limits.total
            && let Some(oldest) = self.by_age.keys().next().copied()
        {
            self.drop_age(oldest);
        }
        let age = self.next_age;
        self.next_age += 1;
        self.by_age.insert(age, ((self.clock)() + self.limits.ttl, key, node));
        self.by_key.entry(key).or_default().push(Provider { node, addr, age });
        self.by_provider.entry(node).or_default().insert(age, key);
    }

    /// Drops everything that a node announced.
    pub(super) fn forget(&mut self, node: NodeId) {
        let ages: Vec<u64> =
            self.by_provider.get(&node).into_iter().flat_map(|keys| keys.keys().copied()).collect();
        for age in ages {
            self.drop_age(age);
        }
    }

    fn oldest_of_provider(&self, node: NodeId) -> Option<u64> {
        let keys = self.by_provider.get(&node)?;
        if keys.len() >= self.limits.per_provider { keys.keys().next().copied() } else { None }
    }

    fn remove(&mut self, key: &Key, node: NodeId) {
        let age = self
            .by_key
            .get(key)
            .and_then(|providers| providers.iter().find(|provider| provider.node == node))
            .map(|provider| provider.age);
        if let Some(age) = age {
            self.drop_age(age);
        }
    }

    fn drop_age(&mut self, age: u64) {
        let Some((_, key, node)) = self.by_age.remove(&age) else { return };
        if let Some(providers) = self.by_key.get_mut(&key) {
            providers.retain(|provider| provider.age != age);
            if providers.is_empty() {
                self.by_key.remove(&key);
            }
        }
        if let Some(keys) = self.by_provider.get_mut(&node) {
            keys.remove(&age);
            if keys.is_empty() {
                self.by_provider.remove(&node);
            }
        }
    }
}

fn key_of(key: &RecordKey) -> Option<Key> {
    key.as_ref().try_into().ok()
}

impl RecordStore for Providers {
    type RecordsIter<'a> = std::iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = std::iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    /// Starling has no values in its DHT.
    fn put(&mut self, _: Record) -> Result<()> {
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    /// Refuses what no Starling node sends: keys of another length, providers without a usable address.
    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
        let (Some(key), Some(node)) = (key_of(&record.key), node_of(&record.provider)) else {
            return Err(Error::ValueTooLarge);
        };
        let addr = record.addresses.iter().find_map(from_multiaddr).map(|(addr, _)| addr);
        if addr.is_none() && node != self.me {
            return Err(Error::ValueTooLarge);
        }
        self.insert(key, node, addr);
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let now = (self.clock)();
        let alive =
            |provider: &&Provider| self.by_age.get(&provider.age).is_some_and(|(expires, ..)| *expires > now);
        let providers = key_of(key).and_then(|key| self.by_key.get(&key));
        providers
            .into_iter()
            .flatten()
            .filter(alive)
            .map(|provider| {
                let addresses = provider.addr.map(to_multiaddr).into_iter().collect();
                ProviderRecord::new(key.clone(), peer_id_of(&provider.node), addresses)
            })
            .collect()
    }

    /// Empty: this node's announcements are paced by its own task, not by libp2p's job.
    fn provided(&self) -> Self::ProvidedIter<'_> {
        std::iter::empty()
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        if let (Some(key), Some(node)) = (key_of(key), node_of(provider)) {
            Self::remove(self, &key, node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p::identity::Keypair;
    use std::cell::Cell;

    thread_local! {
        static NOW: Cell<Time> = const { Cell::new(Time::ZERO) };
    }

    fn store(limits: Limits) -> Providers {
        NOW.set(Time::ZERO);
        Providers::new(NodeId([0; 32]), limits, || NOW.get())
    }

    fn small() -> Limits {
        Limits { total: 10, per_key: 3, per_provider: 6, ttl: Duration::from_secs(60) }
    }

    fn peers(count: usize) -> Vec<PeerId> {
        (0..count).map(|_| Keypair::generate_ed25519().public().to_peer_id()).collect()
    }

    fn key(number: u8) -> RecordKey {
        RecordKey::new(&[number; 32])
    }

    fn announce(store: &mut Providers, number: u8, peer: PeerId) -> Result<()> {
        let addr = to_multiaddr(SocketAddr::from(([192, 0, 2, 1], 1_000 + u16::from(number))));
        store.add_provider(ProviderRecord::new(key(number), peer, vec![addr]))
    }

    fn found(store: &Providers, number: u8) -> Vec<PeerId> {
        store.providers(&key(number)).into_iter().map(|record| record.provider).collect()
    }

    #[test]
    fn an_announcement_is_found_with_its_address_until_it_expires() {
        let mut store = store(small());
        let peer = peers(1)[0];
        announce(&mut store, 1, peer).unwrap();
        let record = &store.providers(&key(1))[0];
        assert_eq!(
            (record.provider, record.addresses[0].to_string()),
            (peer, "/ip4/192.0.2.1/udp/1001/quic-v1".into())
        );
        NOW.set(Time::ZERO + Duration::from_secs(59));
        assert_eq!(found(&store, 1), [peer]);
        NOW.set(Time::ZERO + Duration::from_secs(60));
        assert_eq!(found(&store, 1), [], "not handed out, even before anybody cleans up");
        store.expire();
        assert_eq!((store.len(), store.by_key.len(), store.by_provider.len()), (0, 0, 0));
    }

    #[test]
    fn announcing_again_renews_and_does_not_double() {
        let mut store = store(small());
        let peer = peers(1)[0];
        announce(&mut store, 1, peer).unwrap();
        NOW.set(Time::ZERO + Duration::from_secs(50));
        announce(&mut store, 1, peer).unwrap();
        NOW.set(Time::ZERO + Duration::from_secs(100));
        assert_eq!(found(&store, 1), [peer]);
        assert_eq!(store.len(), 1);
    }

    #[test]
    fn of_a_key_with_many_providers_the_newest_stay() {
        let mut store = store(small());
        let peers = peers(5);
        for peer in &peers {
            announce(&mut store, 1, *peer).unwrap();
        }
        assert_eq!(found(&store, 1), peers[2..]);
    }

    #[test]
    fn one_provider_cannot_push_the_others_out_and_the_whole_is_bounded() {
        let mut store = store(small());
        let peers = peers(3);
        announce(&mut store, 200, peers[0]).unwrap();
        for number in 0..100 {
            announce(&mut store, number, peers[1]).unwrap();
        }
        assert_eq!(store.len(), 7, "six of the loud one");
        assert_eq!(found(&store, 200), [peers[0]]);
        assert_eq!(found(&store, 99), [peers[1]]);
        for number in 100..106 {
            announce(&mut store, number, peers[2]).unwrap();
        }
        assert_eq!(store.len(), 10);
        assert_eq!(found(&store, 105), [peers[2]], "the newest finds room");
    }

    #[test]
    fn what_no_starling_node_sends_is_refused() {
        let mut store = store(small());
        let peer = peers(1)[0];
        let short = ProviderRecord::new(
            RecordKey::new(&[1; 31]),
            peer,
            vec!["/ip4/192.0.2.1/udp/1/quic-v1".parse().unwrap()],
        );
        assert!(store.add_provider(short).is_err());
        assert!(store.add_provider(ProviderRecord::new(key(1), peer, vec![])).is_err());
        let tcp = ProviderRecord::new(key(1), peer, vec!["/ip4/192.0.2.1/tcp/1".parse().unwrap()]);
        assert!(store.add_provider(tcp).is_err());
        assert!(store.put(Record::new(key(1), vec![1])).is_err());
        assert_eq!(store.len(), 0);
    }
}
