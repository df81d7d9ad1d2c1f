//! Whole nodes in one process, with real endpoints on loopback and a node in memory under each.

mod region;
mod scopes;
mod split;

use super::super::endpoint::{EndpointConfig, Incoming};
use super::super::identity::Identity;
use super::super::identity::tests::TestMesh;
use super::super::ports::UpstreamFailure;
use super::super::proto::Replay;
use super::*;
use crate::model::{Place, limits};
use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

mod membership;

/// Plain bytes of test chunk `n`, and how it is referred to: 32 chunks a segment, 4 a slice.
pub(in crate::mesh) fn bytes_of(n: u64) -> Bytes {
    let mut bytes = vec![0; 20_000];
    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}

pub(in crate::mesh) fn chunk(n: u64) -> ChunkRef {
    let segment = ContentId::of(&[&b"segment"[..], &(n / 32).to_le_bytes()].concat());
    let offset = (n % 32) * (limits::SLICE_BYTES / 4);
    let ordinal = u32::try_from(n % 32).unwrap();
    let place = Place { segment, ordinal, offset, stored_len: 20_000 };
    ChunkRef { id: ContentId::of(&bytes_of(n)), plain_len: 20_000, place }
}

pub(in crate::mesh) fn repository() -> RepositoryName {
    "sw.example.org".parse().unwrap()
}

/// A stratum that knows every chunk and counts what it gives away.
#[derive(Default)]
pub(in crate::mesh) struct Stratum {
    content: Mutex<HashMap<ContentId, Bytes>>,
    given: Mutex<HashMap<ContentId, u32>>,
    pub(in crate::mesh) dead: AtomicBool,
    /// The first fetch of each chunk fails, and every fetch takes long.
    struggles: AtomicBool,
    failed: Mutex<HashSet<ContentId>>,
    /// Nothing is answered for now.
    silent: AtomicBool,
    /// What was asked for, in order.
    asked: Mutex<Vec<ContentId>>,
    /// In which repository a chunk lies; the others lie in all.
    lies_in: Mutex<HashMap<ContentId, RepositoryName>>,
}

impl Stratum {
    pub(in crate::mesh) fn with(chunks: u64) -> Arc<Self> {
        let content = (0..chunks).map(|n| (chunk(n).id, bytes_of(n))).collect();
        Arc::new(Self { content: Mutex::new(content), ..Self::default() })
    }

    pub(in crate::mesh) fn given(&self, n: u64) -> u32 {
        self.given.lock().unwrap().get(&chunk(n).id).copied().unwrap_or(0)
    }
}

/// The node under a mesh, in memory.
#[derive(Default)]
pub(in crate::mesh) struct Memory {
    pub(in crate::mesh) stored: Mutex<HashMap<ContentId, Bytes>>,
    stratum: Arc<Stratum>,
    pub(in crate::mesh) full: AtomicBool,
    pub(in crate::mesh) lies: AtomicBool,
    pub(in crate::mesh) revision: Mutex<u64>,
}

pub(in crate::mesh) fn root(revision: u64) -> News {
    News::Root([&b"signed"[..], &revision.to_le_bytes()].concat())
}

impl Local for Memory {
    fn holds(&self, id: &ContentId) -> bool {
        self.lies.load(Ordering::Relaxed) || self.stored.lock().unwrap().contains_key(id)
    }

    fn load(&self, id: ContentId) -> BoxFuture<'_, Option<Bytes>> {
        let bytes = if self.lies.load(Ordering::Relaxed) {
            Some(Bytes::from(vec![0xbad_u16.to_le_bytes()[0]; 20_000]))
        } else {
            self.stored.lock().unwrap().get(&id).cloned()
        };
        async move { bytes }.boxed()
    }

    fn keep(&self, id: ContentId, bytes: Bytes, _: bool) -> BoxFuture<'_, bool> {
        assert_eq!(ContentId::of(&bytes), id, "unverified bytes were offered to the store");
        let keep = !self.full.load(Ordering::Relaxed);
        if keep {
            self.stored.lock().unwrap().insert(id, bytes);
        }
        async move { keep }.boxed()
    }

    fn fetch_upstream<'a>(
        &'a self,
        repository: RepositoryName,
        chunks: Vec<ChunkRef>,
        arrived: &'a (dyn Fn(usize, &Bytes) + Send + Sync),
    ) -> BoxFuture<'a, Vec<Result<(), UpstreamFailure>>> {
        async move {
            self.stratum.asked.lock().unwrap().extend(chunks.iter().map(|chunk| chunk.id));
            while self.stratum.silent.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let struggles = self.stratum.struggles.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(if struggles { 1_500 } else { 20 })).await;
            let one = |(position, chunk): (usize, &ChunkRef)| {
                if struggles && self.stratum.failed.lock().unwrap().insert(chunk.id) {
                    return Err(UpstreamFailure::Unreachable("try again".into()));
                }
                if self.stratum.dead.load(Ordering::Relaxed) {
                    return Err(UpstreamFailure::Unreachable("the stratum is dead".into()));
                }
                if self.stratum.lies_in.lock().unwrap().get(&chunk.id).is_some_and(|name| *name != repository)
                {
                    return Err(UpstreamFailure::Unreachable("404".into()));
                }
                *self.stratum.given.lock().unwrap().entry(chunk.id).or_default() += 1;
                let found = self.stratum.content.lock().unwrap().get(&chunk.id).cloned();
                let bytes = found.ok_or_else(|| UpstreamFailure::Unreachable("404".into()))?;
                arrived(position, &bytes);
                Ok(())
            };
            chunks.iter().enumerate().map(one).collect()
        }
        .boxed()
    }

    fn judge(&self, news: News) -> BoxFuture<'_, NewsVerdict> {
        let document = news.document();
        let verdict = match document.strip_prefix(b"signed").and_then(|rest| rest.try_into().ok()) {
            None => NewsVerdict::Invalid,
            Some(revision) => {
                let revision = u64::from_le_bytes(revision);
                let mut known = self.revision.lock().unwrap();
                if revision > *known {
                    *known = revision;
                    NewsVerdict::Fresh
                } else {
                    NewsVerdict::Known
                }
            }
        };
        async move { verdict }.boxed()
    }

    fn all_news(&self) -> Vec<News> {
        let revision = *self.revision.lock().unwrap();
        if revision == 0 { Vec::new() } else { vec![root(revision)] }
    }
}

pub(in crate::mesh) struct TestNode {
    pub(in crate::mesh) mesh: Arc<Mesh>,
    pub(in crate::mesh) local: Arc<Memory>,
    pub(in crate::mesh) identity: Arc<Identity>,
    pub(in crate::mesh) addr: SocketAddr,
}

pub(in crate::mesh) struct Options {
    pub(in crate::mesh) cell: &'static str,
    pub(in crate::mesh) dht: bool,
    pub(in crate::mesh) record: Option<Box<dyn Write + Send>>,
    /// Members that are remembered, and where they were.
    pub(in crate::mesh) remembered: Vec<Contact>,
    pub(in crate::mesh) bootstrap: Vec<String>,
    pub(in crate::mesh) mdns: bool,
    pub(in crate::mesh) office: Option<Arc<Office>>,
    pub(in crate::mesh) tamper: Option<Tamper>,
    pub(in crate::mesh) tuning: Tuning,
}

impl Options {
    pub(in crate::mesh) fn cell(cell: &'static str) -> Self {
        Self {
            cell,
            dht: true,
            record: None,
            remembered: Vec::new(),
            bootstrap: Vec::new(),
            mdns: false,
            office: None,
            tamper: None,
            tuning: Tuning::default(),
        }
    }
}

impl TestNode {
    pub(in crate::mesh) fn start(
        mesh: &TestMesh,
        options: Options,
        contacts: &[&TestNode],
        stratum: &Arc<Stratum>,
    ) -> Self {
        let identity = mesh.member_with(|membership| membership.cell = options.cell.parse().unwrap());
        Self::start_as(identity, options, contacts, stratum)
    }

    pub(in crate::mesh) fn start_as(
        identity: Arc<Identity>,
        options: Options,
        contacts: &[&TestNode],
        stratum: &Arc<Stratum>,
    ) -> Self {
        let config = EndpointConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)));
        let bound = Endpoint::bind(config, Arc::clone(&identity)).unwrap();
        Self::over(bound, identity, options, contacts, stratum)
    }

    /// A node over an endpoint that is there.
    pub(in crate::mesh) fn over(
        (endpoint, incoming): (Endpoint, Incoming),
        identity: Arc<Identity>,
        options: Options,
        contacts: &[&TestNode],
        stratum: &Arc<Stratum>,
    ) -> Self {
        let Incoming { libp2p, chunks, datagrams, .. } = incoming;
        let mut addr = endpoint.local_addr().unwrap();
        if addr.ip().is_unspecified() {
            addr.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        let contact = |node: &&TestNode| Contact { node: node.identity.node(), addresses: vec![node.addr] };
        let contacts = contacts.iter().map(contact).chain(options.remembered).collect();
        let dht = options.dht;
        let network = Network {
            endpoint,
            libp2p,
            chunks,
            datagrams,
            addr,
            contacts,
            bootstrap: options.bootstrap,
            mdns: options.mdns,
            dht,
            tuning: options.tuning,
            tamper: options.tamper,
            more: Vec::new(),
            office: options.office,
        };
        let local = Arc::new(Memory { stratum: Arc::clone(stratum), ..Memory::default() });
        let start = MeshStart {
            local: local.clone(),
            network: Some(network),
            settings: Settings::default(),
            record: options.record,
        };
        Self { mesh: Mesh::start(start).unwrap(), local, identity, addr }
    }

    pub(in crate::mesh) async fn get_within(&self, n: u64, limit: Duration) -> Result<Obtained, ObtainError> {
        self.get_from(&repository(), n, limit).await
    }

    pub(in crate::mesh) async fn get_from(
        &self,
        repository: &RepositoryName,
        n: u64,
        limit: Duration,
    ) -> Result<Obtained, ObtainError> {
        let deadline = ambient::now() + limit;
        let (bytes, from) = self.mesh.obtain(repository, chunk(n), Class::Read, deadline).await?;
        assert_eq!(bytes, bytes_of(n), "wrong bytes were delivered");
        Ok(from)
    }

    pub(in crate::mesh) async fn get(&self, n: u64) -> Result<Obtained, ObtainError> {
        self.get_within(n, Duration::from_secs(30)).await
    }

    /// How many peers it believes to be alive.
    pub(in crate::mesh) async fn up(&self) -> usize {
        self.mesh.peers().await.iter().filter(|peer| peer.up).count()
    }

    pub(in crate::mesh) fn holds(&self, n: u64) -> bool {
        self.local.stored.lock().unwrap().contains_key(&chunk(n).id)
    }
}

/// Repeats `look` until it is true; a generous bound, not a measurement.
pub(in crate::mesh) async fn eventually<F: Future<Output = bool>>(what: &str, look: impl Fn() -> F) {
    for _ in 0..600 {
        if look().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("not within a minute: {what}");
}

async fn all_see(nodes: &[&TestNode], peers: usize) {
    for node in nodes {
        eventually(&format!("{peers} peers seen"), || async { node.up().await >= peers }).await;
    }
}

#[tokio::test]
async fn a_node_without_a_mesh_takes_everything_from_the_strata() {
    let stratum = Stratum::with(10);
    let local = Arc::new(Memory { stratum: stratum.clone(), ..Memory::default() });
    let start = MeshStart { local, network: None, settings: Settings::default(), record: None };
    let mesh = Mesh::start(start).unwrap();
    let deadline = ambient::now() + Duration::from_secs(30);
    let (bytes, from) = mesh.obtain(&repository(), chunk(3), Class::Read, deadline).await.unwrap();
    assert_eq!((bytes, from), (bytes_of(3), Obtained::Strata));
    let unknown = mesh.obtain(&repository(), chunk(11), Class::Read, deadline).await.unwrap_err();
    assert!(matches!(unknown, ObtainError::NoSource(_)), "{unknown}");
    assert_eq!(mesh.peers().await, []);
    mesh.shutdown().await;
    let stopped = mesh.obtain(&repository(), chunk(4), Class::Read, deadline).await;
    assert_eq!(stopped, Err(ObtainError::Stopping));
}

#[tokio::test]
async fn a_read_waits_behind_nothing_that_is_fetched_ahead() {
    // A call each: no two of them lie in one segment.
    const AHEAD: u64 = 40;
    let stratum = Stratum::with(32 * AHEAD);
    stratum.silent.store(true, Ordering::Relaxed);
    let local = Arc::new(Memory { stratum: stratum.clone(), ..Memory::default() });
    // Of a link of which nothing is known the core asks little at once.
    let settings = Settings { upstream_first_bytes: 64 << 20, ..Settings::default() };
    let mesh = Mesh::start(MeshStart { local, network: None, settings, record: None }).unwrap();
    let mesh = Arc::new(mesh);
    let deadline = ambient::now() + Duration::from_secs(120);
    let obtain = |n, class| {
        let mesh = mesh.clone();
        tokio::spawn(async move { mesh.obtain(&repository(), chunk(n), class, deadline).await })
    };
    let asked = |n| stratum.asked.lock().unwrap().contains(&chunk(n).id);
    let ahead: Vec<_> = (0..AHEAD).map(|segment| obtain(32 * segment, Class::Prefetch)).collect();
    eventually("all turns are taken", || async { stratum.asked.lock().unwrap().len() >= 12 }).await;
    // Time enough for the others to stand in line.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let waiting = (0..AHEAD).map(|segment| 32 * segment).find(|n| !asked(*n)).unwrap();
    // One that stands in line already, and one that nobody wished for.
    let reads = [waiting, 1].map(|n| obtain(n, Class::Read));
    eventually("the reads go", || async { asked(waiting) && asked(1) }).await;
    stratum.silent.store(false, Ordering::Relaxed);
    for read in reads.into_iter().chain(ahead) {
        read.await.unwrap().unwrap();
    }
    assert_eq!(stratum.given(waiting), 1, "it was taken out of its place in line");
    mesh.shutdown().await;
}

#[tokio::test]
async fn the_second_node_reads_from_the_first_and_not_from_the_strata() {
    let (mesh, stratum) = (TestMesh::new(), Stratum::with(20));
    let a = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[], &stratum);
    for n in 0..20 {
        assert_eq!(a.get(n).await, Ok(Obtained::Strata));
    }
    let b = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[&a], &stratum);
    all_see(&[&a, &b], 1).await;
    stratum.dead.store(true, Ordering::Relaxed);
    for n in 0..20 {
        assert_eq!(b.get(n).await, Ok(Obtained::Peer(a.identity.node())), "chunk {n}");
        assert_eq!(stratum.given(n), 1);
    }
    let (sent, taken) = (a.mesh.counts(), b.mesh.counts());
    assert_eq!((sent.bytes_up, taken.bytes_down), (400_000, 400_000));
    eventually("neighbours tell each other what they hold", || async {
        [&a, &b].iter().all(|node| node.mesh.counts().core.possession_heard > 0)
    })
    .await;
    let seen = b.mesh.peers().await;
    assert_eq!((seen.len(), seen[0].node, seen[0].bytes_down), (1, a.identity.node(), 400_000));
    assert!(seen[0].rtt_us.is_some() && seen[0].cell.as_ref().unwrap().as_str() == "eu/a/r1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_readers_in_two_cells_of_a_region_cost_one_fetch_a_chunk() {
    let (mesh, stratum) = (TestMesh::new(), Stratum::with(24));
    let first = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[], &stratum);
    let mut nodes = vec![first];
    for number in 1..10 {
        let cell = if number % 2 == 0 { "eu/a/r1" } else { "eu/b/r1" };
        nodes.push(TestNode::start(
            &mesh,
            Options::cell(cell),
            &nodes.iter().take(2).collect::<Vec<_>>(),
            &stratum,
        ));
    }
    all_see(&nodes.iter().collect::<Vec<_>>(), 9).await;
    let reads = nodes.iter().flat_map(|node| (0..2).map(move |_| node)).map(|node| async move {
        for n in 0..24 {
            node.get(n).await.unwrap();
        }
    });
    futures::future::join_all(reads).await;
    for n in 0..24 {
        assert_eq!(stratum.given(n), 1, "chunk {n}");
    }
}

#[tokio::test]
async fn a_liar_is_banned_nothing_of_it_is_kept_and_the_read_succeeds_elsewhere() {
    let (mesh, stratum) = (TestMesh::new(), Stratum::with(40));
    let liar = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[], &stratum);
    liar.local.lies.store(true, Ordering::Relaxed);
    let a = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[&liar], &stratum);
    let b = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[&liar, &a], &stratum);
    all_see(&[&a, &b, &liar], 2).await;
    for n in 0..40 {
        a.get(n).await.unwrap();
        // What was kept is right (`keep` checks it); what is relayed comes from what was kept.
        b.get(n).await.unwrap();
        assert!(a.holds(n) && b.holds(n));
    }
    let counts = [a.mesh.counts(), b.mesh.counts()];
    assert!(counts.iter().any(|counts| counts.bans > 0 && counts.wrong_bytes > 0), "{counts:?}");
}

#[tokio::test]
async fn the_slices_of_a_killed_member_are_served_by_the_next_rank() {
    let (mesh, stratum) = (TestMesh::new(), Stratum::with(64));
    let a = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[], &stratum);
    let b = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[&a], &stratum);
    let c = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[&a], &stratum);
    let d = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[&a], &stratum);
    all_see(&[&a, &b, &c, &d], 3).await;
    for n in 0..32 {
        a.get(n).await.unwrap();
    }
    let killed = c.identity.node();
    drop(c);
    // At once, before anybody can have noticed, and after all have: every read succeeds.
    for n in 0..48 {
        b.get(n).await.unwrap();
    }
    for node in [&a, &b, &d] {
        eventually("the dead member is noticed", || async {
            node.mesh.peers().await.iter().any(|peer| peer.node == killed && !peer.up)
        })
        .await;
    }
    for n in 0..48 {
        d.get(n).await.unwrap();
    }
    for n in 48..64 {
        d.get(n).await.unwrap();
        a.get(n).await.unwrap();
        b.get(n).await.unwrap();
        assert_eq!(stratum.given(n), 1, "chunk {n}: the next rank got it once, for all");
    }
}

#[tokio::test]
async fn a_member_that_restarts_elsewhere_before_it_is_missed_is_reached_at_its_new_address() {
    let (mesh, stratum) = (TestMesh::new(), Stratum::with(112));
    let a = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[], &stratum);
    let b = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[&a], &stratum);
    all_see(&[&a, &b], 1).await;
    for n in 0..32 {
        a.get(n).await.unwrap();
    }
    let (identity, before) = (Arc::clone(&b.identity), b.addr);
    drop(b);
    // A clock that counts seconds tells the lives apart.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let b = TestNode::start_as(identity, Options::cell("eu/a/r1"), &[&a], &stratum);
    assert_ne!(b.addr, before);
    eventually("the new address is known", || async {
        a.mesh.peers().await.iter().any(|peer| peer.addr == b.addr && peer.up)
    })
    .await;
    all_see(&[&b], 1).await;
    // So many slices that it is the home of some, whatever the nodes are called.
    for n in 0..112 {
        a.get(n).await.unwrap();
        b.get(n).await.unwrap();
    }
    let counts = b.mesh.counts();
    assert!(counts.bytes_down > 0 && counts.bytes_up > 0, "{counts:?} {:?}", a.mesh.counts());
}

#[tokio::test]
async fn askers_wait_while_their_home_tries_the_strata_again() {
    let (mesh, stratum) = (TestMesh::new(), Stratum::with(16));
    stratum.struggles.store(true, Ordering::Relaxed);
    let a = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[], &stratum);
    let b = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[&a], &stratum);
    all_see(&[&a, &b], 1).await;
    let reads = [&a, &b].into_iter().flat_map(|node| (0..16).map(move |n| node.get(n)));
    for read in futures::future::join_all(reads).await {
        read.unwrap();
    }
    for n in 0..16 {
        assert_eq!(stratum.given(n), 1, "chunk {n}");
    }
}

#[tokio::test]
async fn two_regions_find_each_others_content_by_the_dht_and_not_without_it() {
    for dht in [true, false] {
        let (mesh, stratum) = (TestMesh::new(), Stratum::with(8));
        let nothing = Stratum::with(0);
        let options = |cell| Options { dht, ..Options::cell(cell) };
        let bootstrap = TestNode::start(&mesh, options("middle/m/m"), &[], &nothing);
        let a = TestNode::start(&mesh, options("east/a/a"), &[&bootstrap], &stratum);
        for n in 0..8 {
            assert_eq!(a.get(n).await, Ok(Obtained::Strata));
        }
        stratum.dead.store(true, Ordering::Relaxed);
        let announced = |counters: &DhtCounters| counters.announcements.load(Ordering::Relaxed) >= 3;
        if dht {
            eventually("A announced", || async { a.mesh.dht_counters().is_some_and(announced) }).await;
        }
        // B was never told where A is.
        let b = TestNode::start(&mesh, options("west/b/b"), &[&bootstrap], &stratum);
        if dht {
            eventually("B knows another region", || async { b.up().await >= 1 }).await;
            for n in 0..8 {
                assert_eq!(b.get(n).await, Ok(Obtained::Peer(a.identity.node())), "chunk {n}");
            }
            assert!(b.mesh.dht_counters().unwrap().lookups.load(Ordering::Relaxed) > 0);
        } else {
            let read = b.get_within(0, Duration::from_secs(5)).await;
            assert!(matches!(read, Err(ObtainError::NoSource(_) | ObtainError::Deadline(_))), "{read:?}");
        }
        assert!((0..8).all(|n| stratum.given(n) == 1 && !bootstrap.holds(n)));
    }
}

#[tokio::test]
async fn a_new_root_reaches_all_and_a_late_member_learns_it_when_it_joins() {
    let (mesh, stratum) = (TestMesh::new(), Stratum::with(0));
    let a = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[], &stratum);
    let b = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[&a], &stratum);
    let other_cell = TestNode::start(&mesh, Options::cell("us/a/r1"), &[&a], &stratum);
    all_see(&[&a, &b, &other_cell], 2).await;
    let mut changed = b.mesh.news_changed();
    assert_eq!(a.mesh.announce_local(root(7)).await, NewsVerdict::Fresh);
    assert_eq!(a.mesh.announce_local(root(6)).await, NewsVerdict::Known);
    changed.changed().await.unwrap();
    for node in [&b, &other_cell] {
        eventually("the root is known", || async { *node.local.revision.lock().unwrap() == 7 }).await;
    }
    // No chunk was asked for: a document alone makes a connection.
    eventually("the round trip is seen", || async {
        [&a, &b].iter().all(|node| node.mesh.counts().asks_sent == 0)
            && a.mesh.peers().await.iter().any(|peer| peer.rtt_us.is_some())
    })
    .await;
    let late = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[&b], &stratum);
    eventually("the root is known", || async { *late.local.revision.lock().unwrap() == 7 }).await;
}

#[tokio::test]
async fn who_spreads_forged_documents_is_banned() {
    let (mesh, stratum) = (TestMesh::new(), Stratum::with(0));
    let a = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[], &stratum);
    let config = EndpointConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)));
    let (forger, _incoming) = Endpoint::bind(config, mesh.member()).unwrap();
    let connection = forger.connection(a.identity.node(), a.addr).await.unwrap();
    super::super::transfer::push_news(&connection, News::Root(b"forged".to_vec())).await.unwrap();
    eventually("the forger is banned", || async { a.mesh.counts().bans == 1 }).await;
    eventually("its connection is closed", || async { !connection.is_open() }).await;
    assert_eq!((a.mesh.counts().news_invalid, *a.local.revision.lock().unwrap()), (1, 0));
}

#[tokio::test]
async fn a_full_disk_neither_fails_readers_nor_stops_relaying() {
    let (mesh, stratum) = (TestMesh::new(), Stratum::with(8));
    let a = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[], &stratum);
    a.local.full.store(true, Ordering::Relaxed);
    let b = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[&a], &stratum);
    all_see(&[&a, &b], 1).await;
    for n in 0..8 {
        b.get(n).await.unwrap();
        a.get(n).await.unwrap();
        assert!(!a.holds(n) && b.holds(n));
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_withdraws_its_wish() {
    let (stratum, record) = (Stratum::with(1), Shared::default());
    stratum.dead.store(true, Ordering::Relaxed);
    let local = Arc::new(Memory { stratum: stratum.clone(), ..Memory::default() });
    let record_to: Option<Box<dyn Write + Send>> = Some(Box::new(record.clone()));
    let start = MeshStart { local, network: None, settings: Settings::default(), record: record_to };
    let mesh = Mesh::start(start).unwrap();
    let deadline = ambient::now() + Duration::from_secs(60);
    let wish = mesh.obtain(&repository(), chunk(0), Class::Read, deadline);
    assert!(tokio::time::timeout(Duration::from_millis(50), wish).await.is_err());
    eventually("the core hears of it", || async { record.text().contains("Unwanted") }).await;
    stratum.dead.store(false, Ordering::Relaxed);
    let (bytes, _) = mesh.obtain(&repository(), chunk(0), Class::Read, deadline).await.unwrap();
    assert_eq!(bytes, bytes_of(0));
}

#[tokio::test]
async fn what_the_store_held_from_the_start_is_announced_and_served_once_it_is_offered() {
    let (mesh, stratum) = (TestMesh::new(), Stratum::with(0));
    let bootstrap = TestNode::start(&mesh, Options::cell("middle/m/m"), &[], &stratum);
    let a = TestNode::start(&mesh, Options::cell("east/a/a"), &[&bootstrap], &stratum);
    a.local.stored.lock().unwrap().extend((0..4).map(|n| (chunk(n).id, bytes_of(n))));
    let b = TestNode::start(&mesh, Options::cell("west/b/b"), &[&bootstrap], &stratum);
    a.mesh.offer(&repository(), &(0..8).map(chunk).collect::<Vec<_>>()).await;
    // The cell, the region and the segment.
    let announced = |counters: &DhtCounters| counters.announcements.load(Ordering::Relaxed) >= 3;
    eventually("A announced", || async { a.mesh.dht_counters().is_some_and(announced) }).await;
    eventually("B knows another region", || async { b.up().await >= 1 }).await;
    for n in 0..4 {
        assert_eq!(b.get(n).await, Ok(Obtained::Peer(a.identity.node())));
    }
    assert!(b.get(5).await.is_err(), "offered, but not held");
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_record_of_a_working_node_replays_to_the_same_outputs() {
    let (mesh, stratum, record) = (TestMesh::new(), Stratum::with(40), Shared::default());
    let options = Options { record: Some(Box::new(record.clone())), ..Options::cell("eu/a/r1") };
    let a = TestNode::start(&mesh, options, &[], &stratum);
    let b = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[&a], &stratum);
    all_see(&[&a, &b], 1).await;
    let read = async |node: &TestNode| {
        for n in 0..40 {
            node.get(n).await.unwrap();
        }
    };
    tokio::join!(read(&a), read(&b));
    a.mesh.shutdown().await;
    let replay = Replay::run(record.text().as_bytes()).unwrap();
    assert!(replay.is_identical(), "{:?}", replay.difference);
    assert!(
        ["Ask", "Serve", "FetchUpstream", "Deliver"].iter().all(|kind| replay.outputs.contains_key(*kind))
    );
}
