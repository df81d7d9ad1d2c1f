//! Provider records at this node: who announced which key, where it is, until when.
//!
//! libp2p's own store takes 4.8 KB a key, refuses past 1 024 keys with only a log line, keeps the first 20
//! providers of a key for ever and drops expired ones only when somebody looks. Here a record takes less than 100
//! bytes, and the newest announcement always finds room: of its provider, of its cell and network at one key, of
//! its key and of the whole store, the oldest gives way.

use super::super::identity::{node_of, peer_id_of};
use super::name::to_multiaddr;
use crate::model::{NodeId, NumberIndex, Rows, Time, UnixTime};
use libp2p::kad::store::{Error, RecordStore, Result};
use libp2p::kad::{ProviderRecord, Record, RecordKey};
use libp2p::{Multiaddr, PeerId};
use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Bounds of the store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Records in all. At less than 100 bytes each with their indices: 20 MB.
    pub(super) total: usize,
    /// Providers of one key: all fit one answer of 16 KiB.
    pub(super) per_key: usize,
    /// Of them in one cell: the homes of a segment's slices are up to eight members of a cell, and a few are enough to
    /// find it. Whoever has many certificates in one cell hides nobody else's.
    pub(super) per_cell: usize,
    /// Of them in one network, see [`network_of`].
    pub(super) per_network: usize,
    /// Keys of one provider, so that one node cannot push all others out.
    pub(super) per_provider: usize,
    /// How long a record lives without being announced again.
    pub(super) ttl: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            total: 200_000,
            per_key: 32,
            per_cell: 4,
            per_network: 16,
            per_provider: 25_000,
            ttl: Duration::from_secs(12 * 3_600),
        }
    }
}

type Key = [u8; 32];

/// Who announces, as its connection proved it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Announcer {
    pub(super) node: NodeId,
    /// `None` for this node itself: its addresses are filled in by libp2p.
    pub(super) addr: Option<SocketAddr>,
    /// Hash of its cell's label.
    pub(super) cell: u64,
    /// Its records end with its membership.
    pub(super) expires: UnixTime,
}

/// No record: the end of a chain.
const NONE: u32 = u32::MAX;

/// A record's place in a chain that runs from the oldest to the newest.
#[derive(Clone, Copy)]
struct Links {
    older: u32,
    newer: u32,
}

impl Default for Links {
    fn default() -> Self {
        Self { older: NONE, newer: NONE }
    }
}

/// Both ends of a chain.
#[derive(Clone, Copy)]
struct Chain {
    oldest: u32,
    newest: u32,
    len: u32,
}

impl Default for Chain {
    fn default() -> Self {
        Self { oldest: NONE, newest: NONE, len: 0 }
    }
}

#[derive(Clone, Copy, Default)]
struct Row {
    key: Key,
    provider: u32,
    /// Seconds of the store's clock.
    expires_s: u32,
    /// Grows with each announcement.
    stamp: u32,
    /// Among all.
    all: Links,
    /// Among those of its provider.
    own: Links,
}

#[derive(Clone, Copy)]
struct Provider {
    announcer: Announcer,
    records: Chain,
}

impl Default for Provider {
    fn default() -> Self {
        let announcer = Announcer { node: NodeId([0; 32]), addr: None, cell: 0, expires: UnixTime(0) };
        Self { announcer, records: Chain::default() }
    }
}

/// Puts `number` at the newest end of `chain`.
fn append(rows: &mut Rows<Row>, chain: &mut Chain, number: u32, links: fn(&mut Row) -> &mut Links) {
    let before = chain.newest;
    if let Some(row) = rows.get_mut(before) {
        links(row).newer = number;
    } else {
        chain.oldest = number;
    }
    if let Some(row) = rows.get_mut(number) {
        *links(row) = Links { older: before, newer: NONE };
    }
    chain.newest = number;
    chain.len += 1;
}

/// Takes `number` out of `chain`.
fn unlink(rows: &mut Rows<Row>, chain: &mut Chain, number: u32, links: fn(&mut Row) -> &mut Links) {
    let Some(Links { older, newer }) = rows.get_mut(number).map(|row| *links(row)) else { return };
    match rows.get_mut(older) {
        Some(row) => links(row).newer = newer,
        None => chain.oldest = newer,
    }
    match rows.get_mut(newer) {
        Some(row) => links(row).older = older,
        None => chain.newest = older,
    }
    chain.len = chain.len.saturating_sub(1);
}

/// The network that an address counts for: what one owner most often has, 256 IPv4 addresses or an IPv6 site.
pub(super) fn network_of(addr: SocketAddr) -> u64 {
    match addr.ip().to_canonical() {
        IpAddr::V4(ip) => u64::from(u32::from(ip) >> 8),
        // 48 bits, apart from the 24 of the other family.
        IpAddr::V6(ip) => u64::try_from(u128::from(ip) >> 80).unwrap_or(u64::MAX) | 1 << 63,
    }
}

/// The store.
pub(super) struct Providers {
    me: NodeId,
    limits: Limits,
    clock: fn() -> Time,
    rows: Rows<Row>,
    /// All records of a key are candidates of one hash.
    by_key: NumberIndex,
    providers: Rows<Provider>,
    by_node: HashMap<NodeId, u32>,
    all: Chain,
    next_stamp: u32,
    /// Keyed, because members choose the keys that they announce.
    hasher: RandomState,
}

impl Providers {
    pub(super) fn new(me: NodeId, limits: Limits, clock: fn() -> Time) -> Self {
        Self {
            me,
            limits,
            clock,
            rows: Rows::default(),
            by_key: NumberIndex::default(),
            providers: Rows::default(),
            by_node: HashMap::new(),
            all: Chain::default(),
            next_stamp: 0,
            hasher: RandomState::new(),
        }
    }

    /// Records held.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Bytes that the store takes.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        let by_node = self.by_node.capacity() * 8 / 7 * (size_of::<(NodeId, u32)>() + 1);
        self.rows.bytes() + self.by_key.bytes() + self.providers.bytes() + by_node
    }

    /// Drops what has expired.
    pub(super) fn expire(&mut self) {
        let now = self.now_s();
        // The oldest expires first but for those whose membership ends sooner; they are not handed out.
        while self.rows.get(self.all.oldest).is_some_and(|row| row.expires_s <= now) {
            self.drop_record(self.all.oldest);
        }
    }

    /// Drops all records of a node that is no member any more.
    pub(super) fn forget(&mut self, node: NodeId) {
        while let Some(oldest) = self.by_node.get(&node).and_then(|number| self.providers.get(*number)) {
            self.drop_record(oldest.records.oldest);
        }
    }

    /// Takes an announcement. `unix` is the time at which the announcer's membership is judged.
    pub(super) fn insert(&mut self, key: Key, announcer: Announcer, unix: UnixTime) {
        self.expire();
        let node = announcer.node;
        if let Some(before) = self.find(&key, node) {
            self.drop_record(before);
        }
        let oldest_own = self.by_node.get(&node).and_then(|number| self.providers.get(*number));
        if let Some(provider) = oldest_own.filter(|p| p.records.len as usize >= self.limits.per_provider) {
            self.drop_record(provider.records.oldest);
        }
        self.make_room(&key, &announcer);
        if self.rows.len() >= self.limits.total {
            self.drop_record(self.all.oldest);
        }
        let lifetime = self.limits.ttl.as_secs().min(announcer.expires.0.saturating_sub(unix.0));
        let provider = self.provider(announcer);
        let expires_s = self.now_s().saturating_add(u32::try_from(lifetime).unwrap_or(u32::MAX));
        let row = Row { key, provider, expires_s, stamp: self.next_stamp, ..Row::default() };
        self.next_stamp = self.next_stamp.wrapping_add(1);
        let number = self.rows.insert(row);
        append(&mut self.rows, &mut self.all, number, |row| &mut row.all);
        if let Some(provider) = self.providers.get_mut(provider) {
            append(&mut self.rows, &mut provider.records, number, |row| &mut row.own);
        }
        let (rows, hasher) = (&self.rows, &self.hasher);
        self.by_key.insert(hasher.hash_one(key), number, |number| hash_in(rows, hasher, number));
    }

    /// The number of a provider; what it says of itself now counts for its older records as well.
    fn provider(&mut self, announcer: Announcer) -> u32 {
        if let Some(number) = self.by_node.get(&announcer.node)
            && let Some(provider) = self.providers.get_mut(*number)
        {
            provider.announcer = announcer;
            return *number;
        }
        let number = self.providers.insert(Provider { announcer, records: Chain::default() });
        self.by_node.insert(announcer.node, number);
        number
    }

    /// Keeps the shares of one key: of the announcer's cell, of its network, of the key, the oldest gives way.
    fn make_room(&mut self, key: &Key, announcer: &Announcer) {
        let network = announcer.addr.map(network_of);
        let mut counts = [(0, self.limits.per_cell), (0, self.limits.per_network), (0, self.limits.per_key)];
        let mut oldest = [NONE; 3];
        let mut of_key: Vec<(u32, &Row)> = self.of_key(key).collect();
        // The youngest first, by the distance from the next stamp, which may wrap.
        of_key.sort_unstable_by_key(|(_, row)| self.next_stamp.wrapping_sub(row.stamp));
        for (number, row) in of_key {
            let Some(other) = self.providers.get(row.provider).map(|provider| &provider.announcer) else {
                continue;
            };
            let same = [other.cell == announcer.cell, other.addr.map(network_of) == network, true];
            for (index, _) in same.into_iter().enumerate().filter(|(_, same)| *same) {
                counts[index].0 += 1;
                oldest[index] = number;
            }
        }
        let full = counts.iter().position(|(count, limit)| count >= limit);
        if let Some(index) = full {
            self.drop_record(oldest[index]);
        }
    }

    fn of_key<'a>(&'a self, key: &'a Key) -> impl Iterator<Item = (u32, &'a Row)> {
        self.by_key
            .candidates(self.hasher.hash_one(key))
            .filter_map(|number| Some((number, self.rows.get(number)?)))
            .filter(move |(_, row)| row.key == *key)
    }

    fn find(&self, key: &Key, node: NodeId) -> Option<u32> {
        let provider = *self.by_node.get(&node)?;
        self.of_key(key).find(|(_, row)| row.provider == provider).map(|(number, _)| number)
    }

    fn drop_record(&mut self, number: u32) {
        let Some(row) = self.rows.get(number).copied() else { return };
        let (rows, hasher) = (&self.rows, &self.hasher);
        self.by_key.remove(hasher.hash_one(row.key), number, |number| hash_in(rows, hasher, number));
        unlink(&mut self.rows, &mut self.all, number, |row| &mut row.all);
        if let Some(provider) = self.providers.get_mut(row.provider) {
            unlink(&mut self.rows, &mut provider.records, number, |row| &mut row.own);
            if provider.records.len == 0
                && let Some(gone) = self.providers.remove(row.provider)
            {
                self.by_node.remove(&gone.announcer.node);
            }
        }
        self.rows.remove(number);
    }

    fn now_s(&self) -> u32 {
        u32::try_from((self.clock)().as_nanos() / 1_000_000_000).unwrap_or(u32::MAX)
    }
}

fn hash_in(rows: &Rows<Row>, hasher: &RandomState, number: u32) -> u64 {
    rows.get(number).map_or(0, |row| hasher.hash_one(row.key))
}

/// A key of ours has 32 bytes.
pub(super) fn key_of(key: &RecordKey) -> Option<Key> {
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

    /// Takes this node's own announcements. Those of others come by [`Providers::insert`], once they were judged.
    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
        match (key_of(&record.key), node_of(&record.provider)) {
            (Some(key), Some(node)) if node == self.me => {
                let expires = UnixTime(u64::MAX);
                self.insert(key, Announcer { node, addr: None, cell: 0, expires }, UnixTime(0));
                Ok(())
            }
            _ => Err(Error::ValueTooLarge),
        }
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let now = self.now_s();
        let Some(own_key) = key_of(key) else { return Vec::new() };
        let mut found: Vec<(u32, &Announcer)> = self
            .of_key(&own_key)
            .filter(|(_, row)| row.expires_s > now)
            .filter_map(|(_, row)| Some((row.stamp, &self.providers.get(row.provider)?.announcer)))
            .collect();
        found.sort_unstable_by_key(|(stamp, _)| self.next_stamp.wrapping_sub(*stamp));
        let record = |announcer: &Announcer| {
            let addresses: Vec<Multiaddr> = announcer.addr.map(to_multiaddr).into_iter().collect();
            ProviderRecord::new(key.clone(), peer_id_of(&announcer.node), addresses)
        };
        found.into_iter().map(|(_, announcer)| record(announcer)).collect()
    }

    /// Empty: this node's announcements are paced by its own task, not by libp2p's job.
    fn provided(&self) -> Self::ProvidedIter<'_> {
        std::iter::empty()
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        if let (Some(key), Some(node)) = (key_of(key), node_of(provider))
            && let Some(number) = self.find(&key, node)
        {
            self.drop_record(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        static NOW: Cell<Time> = const { Cell::new(Time::ZERO) };
    }

    const UNIX: UnixTime = UnixTime(1_000);

    fn store(limits: Limits) -> Providers {
        NOW.set(Time::ZERO);
        Providers::new(NodeId([0; 32]), limits, || NOW.get())
    }

    fn small() -> Limits {
        let ttl = Duration::from_secs(60);
        Limits { total: 10, per_key: 6, per_cell: 3, per_network: 4, per_provider: 6, ttl }
    }

    fn node(number: u32) -> NodeId {
        let keypair = libp2p::identity::Keypair::ed25519_from_bytes({
            let mut seed = [7; 32];
            seed[..4].copy_from_slice(&number.to_le_bytes());
            seed
        });
        node_of(&keypair.unwrap().public().to_peer_id()).unwrap()
    }

    /// Each in a cell and a network of its own.
    fn announcer(number: u32) -> Announcer {
        let addr = SocketAddr::from(([10, 0, u8::try_from(number % 256).unwrap(), 1], 7_400));
        let expires = UnixTime(UNIX.0 + 1_000_000);
        Announcer { node: node(number), addr: Some(addr), cell: u64::from(number), expires }
    }

    fn key(number: u32) -> Key {
        *blake3::hash(&number.to_le_bytes()).as_bytes()
    }

    fn found(store: &Providers, number: u32) -> Vec<NodeId> {
        let records = store.providers(&RecordKey::new(&key(number)));
        records.iter().filter_map(|record| node_of(&record.provider)).collect()
    }

    #[test]
    fn an_announcement_is_found_with_its_address_until_it_expires() {
        let mut store = store(small());
        store.insert(key(1), announcer(1), UNIX);
        let record = &store.providers(&RecordKey::new(&key(1)))[0];
        assert_eq!(record.addresses[0].to_string(), "/ip4/10.0.1.1/udp/7400/quic-v1");
        NOW.set(Time::ZERO + Duration::from_secs(59));
        assert_eq!(found(&store, 1), [node(1)]);
        NOW.set(Time::ZERO + Duration::from_secs(60));
        assert_eq!(found(&store, 1), [], "not handed out, even before anybody cleans up");
        store.expire();
        assert_eq!((store.len(), store.by_key.len(), store.by_node.len(), store.all.len), (0, 0, 0, 0));
    }

    #[test]
    fn a_record_ends_with_its_announcers_membership() {
        let mut store = store(small());
        store.insert(key(1), Announcer { expires: UnixTime(UNIX.0 + 5), ..announcer(1) }, UNIX);
        NOW.set(Time::ZERO + Duration::from_secs(5));
        assert_eq!(found(&store, 1), []);
    }

    #[test]
    fn announcing_again_renews_and_does_not_double() {
        let mut store = store(small());
        store.insert(key(1), announcer(1), UNIX);
        NOW.set(Time::ZERO + Duration::from_secs(50));
        store.insert(key(1), announcer(1), UNIX);
        NOW.set(Time::ZERO + Duration::from_secs(100));
        assert_eq!((found(&store, 1), store.len()), (vec![node(1)], 1));
    }

    #[test]
    fn of_a_key_with_many_providers_the_newest_stay() {
        let mut store = store(small());
        for number in 0..9 {
            store.insert(key(1), announcer(number), UNIX);
        }
        assert_eq!(found(&store, 1), [8, 7, 6, 5, 4, 3].map(node), "the newest first");
    }

    #[test]
    fn a_cell_or_a_network_with_many_members_hides_nobody_elses() {
        let mut store = store(small());
        store.insert(key(1), announcer(100), UNIX);
        for number in 0..20 {
            store.insert(key(1), Announcer { cell: 7, ..announcer(number) }, UNIX);
        }
        assert_eq!(found(&store, 1), [19, 18, 17, 100].map(node), "three of one cell");
        for number in 30..50 {
            let addr = Some(SocketAddr::from(([192, 0, 2, 200], 7_400)));
            store.insert(key(1), Announcer { addr, ..announcer(number) }, UNIX);
        }
        let found = found(&store, 1);
        assert_eq!(found[..4], [49, 48, 47, 46].map(node), "four of one network");
        assert_eq!(found.len(), 6);
    }

    #[test]
    fn one_provider_cannot_push_the_others_out_and_the_whole_is_bounded() {
        let mut store = store(small());
        store.insert(key(200), announcer(0), UNIX);
        for number in 0..100 {
            store.insert(key(number), announcer(1), UNIX);
        }
        assert_eq!(store.len(), 7, "six of the loud one");
        assert_eq!((found(&store, 200), found(&store, 99)), (vec![node(0)], vec![node(1)]));
        for number in 100..106 {
            store.insert(key(number), announcer(2), UNIX);
        }
        assert_eq!((store.len(), found(&store, 105)), (10, vec![node(2)]), "the newest finds room");
    }

    #[test]
    fn a_forgotten_node_has_no_records_and_others_keep_theirs() {
        let mut store = store(small());
        for number in 0..4 {
            store.insert(key(number), announcer(1), UNIX);
            store.insert(key(number), announcer(2), UNIX);
        }
        store.forget(node(1));
        store.forget(node(9));
        assert!((0..4).all(|number| found(&store, number) == [node(2)]));
        assert_eq!((store.len(), store.all.len), (4, 4));
    }

    #[test]
    fn only_this_nodes_own_announcements_come_by_way_of_libp2p() {
        let mut store = store(small());
        let record = |key: &[u8], peer| ProviderRecord::new(RecordKey::new(&key), peer, vec![]);
        assert!(store.add_provider(record(&[1; 32], peer_id_of(&node(1)))).is_err());
        assert!(store.put(Record::new(RecordKey::new(&key(1)), vec![1])).is_err());
        store.me = node(3);
        assert!(store.add_provider(record(&[1; 31], peer_id_of(&node(3)))).is_err());
        store.add_provider(record(&key(5), peer_id_of(&node(3)))).unwrap();
        assert_eq!(found(&store, 5), [node(3)]);
    }

    #[test]
    fn a_record_takes_less_than_a_hundred_bytes_with_its_indices() {
        let limits = Limits::default();
        let mut store = store(limits);
        let announcers: Vec<Announcer> = (0..2_000)
            .map(|number: u32| {
                let mut id = [1; 32];
                id[..4].copy_from_slice(&number.to_le_bytes());
                Announcer { node: NodeId(id), ..announcer(number % 8) }
            })
            .collect();
        for number in 0..100_000u32 {
            store.insert(key(number), announcers[number as usize % 2_000], UNIX);
        }
        let each = store.bytes() / store.len();
        assert!(each < 100, "{each} bytes");
        assert_eq!(store.len(), 100_000);
    }
}
