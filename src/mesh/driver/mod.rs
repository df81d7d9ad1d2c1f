//! The driver: the one loop that feeds the core and carries out what it decides.
//!
//! ```text
//!   fetch path --obtain--> [ inbox ] --events--> Core --outputs--> tasks --reports--> [ inbox ]
//!   peers -----requests--/     |  (one bounded queue)      |
//!   SWIM, DHT, cells ---------/                            asks, uploads, strata, DHT, news
//! ```
//!
//! The loop ([`task`]) never waits for anything but its inbox and the core's next deadline; whatever takes
//! time runs in a task of its own and reports back. Bytes pass it by reference only. Names become
//! numbers in the books ([`content`], [`peers`], [`news`]).
//!
//! A node that joined no mesh runs the same loop without a network: it has no peers, is its own home and
//! takes everything from the strata.

mod answers;
mod bootstrap;
mod carry;
mod cell_book;
mod cells;
mod content;
mod counters;
mod gather;
mod gossip;
mod journal;
mod mdns;
mod news;
mod peers;
mod possession;
mod providers;
mod recent;
mod recorder;
mod repositories;
mod serve;
mod settle;
mod task;
#[cfg(test)]
pub(super) mod tests;
mod wants;

use counters::MeshCounters;
pub use counters::MeshCounts;
use journal::Stories;
pub use journal::{Happened, Step, Story};

use super::conduct::{Conduct, Offence};
use super::dht::{Dht, DhtCounters, DhtKey, DhtStart, Neighbour, Spread, Urgency};
use super::endpoint::{DoorBook, DoorCounts, Endpoint};
use super::join::Introductions;
use super::membership::MembershipCert;
use super::office::Office;
use super::ports::{Exchange, Local, News, NewsVerdict, ObtainError, Obtained};
use super::proto::{Settings, Start};
use super::registry::MemberConnection;
use super::renewal::{self, Renewing, View};
use super::swim::{MemberEvent, Swim, SwimCounters, Tuning};
use super::throttle::{PassBook, Passed};
use super::ticket::Contact;
use super::transfer::{PeerRequest, serve};
use crate::ambient;
use crate::model::{CellLabel, ChunkRef, Class, ContentId, NodeId, RepositoryName, Time};
use bootstrap::Bootstrap;
pub(super) use bootstrap::resolve;
use bytes::Bytes;
use cell_book::Cell;
use cells::Hint;
use futures::FutureExt;
use futures::future::BoxFuture;
use mdns::Lan;
use recorder::Recorder;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use task::{Driver, Links, Message};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Messages that wait for the loop: some turns of a busy node. Whoever sends more waits.
const INBOX_MAX: usize = 1_024;
/// Requests of peers that wait to be handed to the loop; beyond, askers are told `Busy`.
const REQUESTS_MAX: usize = 1_024;
/// Membership events that wait.
const EVENTS_MAX: usize = 256;
/// Peers' connections that are served at once: a full cell and as many from others.
const SERVED_MAX: usize = 4_096;
/// References that are offered in one message, so that a long list does not stop the loop.
const OFFER_MAX: usize = 512;
/// How long a shutdown waits for peers to be told.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long past its deadline a reader waits for the core's own verdict.
const GRACE: Duration = Duration::from_millis(500);

/// The network of a member of a mesh.
pub struct Network {
    /// The endpoint, and through it the identity.
    pub endpoint: Endpoint,
    /// [`super::Incoming::libp2p`].
    pub libp2p: mpsc::Receiver<MemberConnection>,
    /// [`super::Incoming::chunks`].
    pub chunks: mpsc::Receiver<MemberConnection>,
    /// [`super::Incoming::datagrams`].
    pub datagrams: mpsc::Receiver<(SocketAddr, Bytes)>,
    /// Where others reach this node.
    pub addr: SocketAddr,
    /// Where else, best first: other interfaces, the other family.
    pub more: Vec<SocketAddr>,
    /// Members to begin with: from the ticket, and those known before a restart.
    pub contacts: Vec<Contact>,
    /// Where to look for members when nobody who is known answers: `HOST:PORT` each, looked up anew each time.
    pub bootstrap: Vec<String>,
    /// Whether to look for members on the local network as well, and to answer those who look.
    pub mdns: bool,
    /// Whether to take part in the DHT. Without it, other regions are not found, and other cells of this one only
    /// through contacts.
    pub dht: bool,
    /// The times of the membership protocol.
    pub tuning: Tuning,
    /// Stands between peers' requests and this node: `None` in every honest node.
    pub tamper: Option<Tamper>,
    /// Where this node is an authority.
    pub office: Option<Arc<Office>>,
}

/// Takes what peers ask and passes on what it does not answer itself. The lab and tests make liars with it.
pub type Tamper = Box<dyn FnOnce(mpsc::Receiver<PeerRequest>) -> mpsc::Receiver<PeerRequest> + Send>;

/// What a mesh is started with.
pub struct MeshStart {
    /// The node under the mesh.
    pub local: Arc<dyn Local>,
    /// `None`: this node joined no mesh.
    pub network: Option<Network>,
    /// The core's constants.
    pub settings: Settings,
    /// Where to record everything that reaches the core, from its start.
    pub record: Option<Box<dyn Write + Send>>,
}

/// A peer, as people want to see it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PeerStatus {
    /// Who.
    pub node: NodeId,
    /// Where.
    pub addr: SocketAddr,
    /// Its cell; `None` until its certificate was seen.
    pub cell: Option<CellLabel>,
    /// Whether it is in this node's own cell: it shares the label, and the part of it into which cells halved.
    pub near: bool,
    /// Whether it is believed to be alive.
    pub up: bool,
    /// Round-trip time in microseconds: of an open connection of either plane, else of the last one for chunks.
    pub rtt_us: Option<u64>,
    /// Bytes of chunks sent to it.
    pub bytes_up: u64,
    /// Bytes of chunks taken from it.
    pub bytes_down: u64,
}

/// A member whose certificate was seen.
#[derive(Clone, Debug)]
pub struct MemberStatus {
    /// The newest certificate that is known.
    pub membership: MembershipCert,
    /// Where it was last reached.
    pub address: SocketAddr,
    /// Whether it is believed to be alive.
    pub up: bool,
    /// Open connections with it, both planes and directions.
    pub connections: usize,
}

/// The mesh of this node. It ends when the last handle is dropped, or by [`Mesh::shutdown`].
pub struct Mesh {
    inbox: mpsc::Sender<Message>,
    counters: Arc<MeshCounters>,
    dht: Option<Arc<DhtCounters>>,
    swim: Option<Arc<SwimCounters>>,
    defence: Option<(Arc<Conduct>, Arc<DoorBook>)>,
    passed: Option<PassBook>,
    news: watch::Receiver<u64>,
    stories: Stories,
    local: Arc<dyn Local>,
    stop: CancellationToken,
    running: Mutex<Option<JoinHandle<()>>>,
    _stop_on_drop: DropGuard,
}

impl Mesh {
    /// Starts the loop and, with a network, membership, DHT and the serving of peers. Must be called
    /// inside a tokio runtime.
    ///
    /// # Errors
    /// When libp2p refuses to begin.
    pub fn start(start: MeshStart) -> io::Result<Arc<Self>> {
        let MeshStart { local, network, settings, record } = start;
        let (inbox, messages) = mpsc::channel(INBOX_MAX);
        let (news_seen, news) = watch::channel(0);
        let counters = Arc::new(MeshCounters::default());
        let stop = CancellationToken::new();
        let mut links = Links {
            local: Arc::clone(&local),
            inbox: inbox.clone(),
            counters: Arc::clone(&counters),
            news_seen,
            stop: stop.clone(),
            network: None,
        };
        let core = Start { me: peers::ME, settings, generator: ambient::generator() };
        let recorder = record.map(|to| Recorder::start(to, &core)).transpose()?;
        let (mut dht, mut swim, mut defence, mut passed) = (None, None, None, None);
        let driver = match network {
            None => {
                let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
                Driver::new(core, recorder, links, NodeId([0; 32]), nowhere, CellLabel::default())
            }
            Some(network) => {
                let (addr, identity) = (network.addr, Arc::clone(network.endpoint.identity()));
                defence = Some((Arc::clone(network.endpoint.conduct()), Arc::clone(network.endpoint.door())));
                passed = Some(network.endpoint.passed());
                let linked = link(network, &inbox, &stop)?;
                dht = linked.dht.as_ref().map(Dht::counters);
                swim = Some(linked.swim.counters());
                links.network = Some(linked);
                Driver::new(core, recorder, links, identity.node(), addr, identity.membership().cell.clone())
            }
        };
        let stories = driver.journal.stories();
        let running = Mutex::new(Some(tokio::spawn(driver.run(messages))));
        let _stop_on_drop = stop.clone().drop_guard();
        Ok(Arc::new(Self {
            inbox,
            counters,
            dht,
            swim,
            defence,
            passed,
            news,
            stories,
            local,
            stop,
            running,
            _stop_on_drop,
        }))
    }

    /// Judges a document from this machine (`publish --announce`, `repo add`) and spreads it if it is fresh.
    pub async fn announce_local(&self, news: News) -> NewsVerdict {
        let verdict = self.local.judge(news.clone()).await;
        if verdict == NewsVerdict::Fresh {
            let _ = self.inbox.send(Message::FreshNews { news, from: None }).await;
        }
        verdict
    }

    /// The store no longer holds a chunk. Never blocks; if the loop is busy it finds out by itself when
    /// somebody asks for the chunk.
    pub fn removed(&self, id: &ContentId) {
        let _ = self.inbox.try_send(Message::Removed(*id));
    }

    /// Says that chunks of a repository are named by these references, so that those that are stored here
    /// are served, and announced by their homes, without having been asked for first.
    pub async fn offer(&self, repository: &RepositoryName, chunks: &[ChunkRef]) {
        for part in chunks.chunks(OFFER_MAX) {
            let (repository, chunks) = (repository.clone(), part.to_vec());
            let _ = self.inbox.send(Message::Offer { repository, chunks }).await;
        }
    }

    /// Says where others reach this node from now on, best first. Told again, it changes nothing; and it should be, for a
    /// part that is busy may miss it.
    pub async fn reached_at(&self, addresses: Vec<SocketAddr>) {
        let _ = self.inbox.send(Message::ReachedAt(addresses)).await;
    }

    /// Spreads a document of trust that this node, an authority, has made and believes already.
    pub async fn spread(&self, news: News) {
        let _ = self.inbox.send(Message::FreshNews { news, from: None }).await;
    }

    /// All other members whose certificates are known.
    pub async fn members(&self) -> Vec<MemberStatus> {
        let (reply, answer) = oneshot::channel();
        let _ = self.inbox.send(Message::Roll(reply)).await;
        answer.await.unwrap_or_default()
    }

    /// Whom an authority's desk tells a newcomer of.
    pub fn introductions(&self) -> Introductions {
        let inbox = self.inbox.clone();
        Box::new(move |cell| {
            let inbox = inbox.clone();
            async move {
                let (reply, answer) = oneshot::channel();
                let _ = inbox.send(Message::Introduce { cell, reply }).await;
                answer.await.unwrap_or_default()
            }
            .boxed()
        })
    }

    /// All peers that are known.
    pub async fn peers(&self) -> Vec<PeerStatus> {
        let (reply, answer) = oneshot::channel();
        let _ = self.inbox.send(Message::Status(reply)).await;
        answer.await.unwrap_or_default()
    }

    /// How a chunk came to this node, if that was lately.
    pub fn story(&self, id: &ContentId) -> Option<Story> {
        self.stories.get(id)
    }

    /// The counters.
    pub fn counts(&self) -> MeshCounts {
        self.counters.snapshot(self.defence.as_ref().map_or(0, |(conduct, _)| conduct.bans()))
    }

    /// What peers did that they should not have done, and how often.
    pub fn offences(&self) -> Vec<(Offence, u64)> {
        self.defence.iter().flat_map(|(conduct, _)| conduct.counts()).collect()
    }

    /// What happened at the door; all zero without a mesh.
    pub fn door_counts(&self) -> DoorCounts {
        self.defence.as_ref().map_or_else(DoorCounts::default, |(_, door)| door.snapshot())
    }

    /// Bytes of chunks that were sent and that were taken, and how long this node's own limits held them back, each by
    /// class: reads, prefetches, fills.
    pub fn passed(&self) -> [[Passed; 3]; 2] {
        self.passed.as_ref().map(PassBook::snapshot).unwrap_or_default()
    }

    /// The counters of the DHT, if there is one.
    pub fn dht_counters(&self) -> Option<&DhtCounters> {
        self.dht.as_deref()
    }

    /// The counters of the membership protocol, if this node is a member of a mesh.
    pub fn swim_counters(&self) -> Option<&SwimCounters> {
        self.swim.as_deref()
    }

    /// Changes whenever a fresh root or card was adopted.
    pub fn news_changed(&self) -> watch::Receiver<u64> {
        self.news.clone()
    }

    /// Leaves the cell, closes the endpoint and ends the loop; a record is complete afterwards. Readers get
    /// [`ObtainError::Stopping`].
    pub async fn shutdown(&self) {
        let (done, wait) = oneshot::channel();
        if self.inbox.send(Message::Leave(done)).await.is_ok() {
            let _ = tokio::time::timeout(2 * FAREWELL, wait).await;
        }
        self.stop.cancel();
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(running) = running {
            let _ = running.await;
        }
    }
}

impl Exchange for Mesh {
    fn obtain(
        &self,
        repository: &RepositoryName,
        chunk: ChunkRef,
        class: Class,
        deadline: Time,
    ) -> BoxFuture<'_, Result<(Bytes, Obtained), ObtainError>> {
        let (reply, answer) = oneshot::channel();
        let span = tracing::Span::current();
        let want = Message::Want { repository: repository.clone(), chunk, class, deadline, reply, span };
        let limit = deadline.since(ambient::now()) + GRACE;
        async move {
            let wait = async {
                if self.inbox.send(want).await.is_err() {
                    return Err(ObtainError::Stopping);
                }
                answer.await.unwrap_or(Err(ObtainError::Stopping))
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => Err(ObtainError::Stopping),
                // The loop notices that the other half of `answer` is gone, and withdraws the wish.
                result = tokio::time::timeout(limit, wait) => {
                    result.unwrap_or_else(|_| Err(ObtainError::Deadline("the mesh did not answer".into())))
                }
            }
        }
        .boxed()
    }
}

/// What the loop uses of the network.
pub(super) struct Linked {
    pub(super) endpoint: Endpoint,
    pub(super) swim: Swim,
    pub(super) dht: Option<Dht>,
    /// Tells the watch over other cells when to look, and which cell is this node's own.
    hints: mpsc::Sender<Hint>,
    own_cell: watch::Sender<Cell>,
    /// Peers that are believed to be alive.
    seen: Arc<AtomicUsize>,
    /// Whether this node is one of those who announce its cell.
    announces: Arc<AtomicBool>,
    /// Whether there is anybody to wait for at the start.
    has_contacts: bool,
    /// Members that were told of, or known before the last stop.
    expected: Vec<NodeId>,
    /// Where this node is an authority.
    pub(super) office: Option<Arc<Office>>,
    /// This node's addresses beside the one that everybody knows.
    more: Vec<SocketAddr>,
}

/// Starts membership, DHT, the views of other cells and the serving of peers; all report to the inbox.
fn link(network: Network, inbox: &mpsc::Sender<Message>, stop: &CancellationToken) -> io::Result<Linked> {
    let Network {
        endpoint,
        libp2p,
        chunks,
        datagrams,
        addr,
        more,
        contacts,
        bootstrap,
        mdns,
        dht,
        tuning,
        office,
        tamper,
    } = network;
    for contact in &contacts {
        endpoint.know(contact.node, &contact.addresses);
    }
    let contacts: Vec<(NodeId, SocketAddr)> = contacts
        .iter()
        .flat_map(|contact| contact.addresses.iter().map(|addr| (contact.node, *addr)))
        .collect();
    let before = contacts.clone();
    let (events, members) = mpsc::channel(EVENTS_MAX);
    let sender = endpoint.clone();
    let send = Box::new(move |to, bytes: Bytes| {
        if let Err(error) = sender.send_datagram(to, &bytes) {
            tracing::debug!(%error, "membership datagram");
        }
    });
    let identity = Arc::clone(endpoint.identity());
    let swim = Swim::start(identity, (addr, &more), contacts.clone(), &tuning, datagrams, send, events);
    tokio::spawn(pass_members(members, inbox.clone()));
    let dht = if dht {
        let contacts = contacts.clone();
        let spread = Spread::default();
        let start = DhtStart { endpoint: endpoint.clone(), addr, contacts, incoming: libp2p, spread };
        let (dht, neighbours) = Dht::start(start)?;
        tokio::spawn(pass_neighbours(neighbours, inbox.clone()));
        Some(dht)
    } else {
        None
    };
    let has_contacts = !contacts.is_empty() || !bootstrap.is_empty() || mdns;
    let expected = contacts.iter().map(|(node, _)| *node).collect();
    let (hints, heard) = mpsc::channel(cells::HINTS_MAX);
    let (own_cell, own) = watch::channel(Cell::whole(endpoint.identity().membership().cell.clone()));
    let announces = Arc::new(AtomicBool::new(true));
    tokio::spawn(cells::watch(cells::Watch {
        endpoint: endpoint.clone(),
        dht: dht.clone(),
        inbox: inbox.clone(),
        hints: heard,
        own,
        contacts,
        announces: Arc::clone(&announces),
        stop: stop.clone(),
    }));
    let seen = Arc::new(AtomicUsize::new(0));
    let lan = if mdns { lan(&endpoint, addr) } else { None };
    let looking = Bootstrap {
        endpoint: endpoint.clone(),
        dht: dht.clone(),
        inbox: inbox.clone(),
        hints: hints.clone(),
        names: bootstrap.clone(),
        before,
        lan,
        seen: Arc::clone(&seen),
        stop: stop.clone(),
    };
    tokio::spawn(looking.run());
    let (requests, asked) = mpsc::channel(REQUESTS_MAX);
    tokio::spawn(accept(chunks, requests, inbox.clone(), stop.clone()));
    let asked = match tamper {
        Some(tamper) => tamper(asked),
        None => asked,
    };
    tokio::spawn(pass_requests(asked, inbox.clone()));
    if let (Some(dht), Some(_)) = (&dht, &office) {
        dht.announce(DhtKey::authorities(&endpoint.identity().trust().mesh()), Urgency::Fresh);
    }
    let renewing = Renewing {
        endpoint: endpoint.clone(),
        office: office.clone(),
        dht: dht.clone(),
        names: bootstrap,
        view: viewed_by(inbox.clone()),
    };
    tokio::spawn(renewal::keep(renewing, stop.clone()));
    Ok(Linked { endpoint, swim, dht, hints, own_cell, announces, seen, has_contacts, expected, office, more })
}

/// The local network. A node that cannot have it does without.
fn lan(endpoint: &Endpoint, addr: SocketAddr) -> Option<Lan> {
    let mesh = endpoint.identity().membership().mesh;
    match Lan::open(&mesh, endpoint.node(), addr) {
        Ok(lan) => Some(lan),
        Err(error) => {
            tracing::warn!(%addr, %error, "members on the local network are not looked for");
            None
        }
    }
}

fn viewed_by(inbox: mpsc::Sender<Message>) -> Box<dyn Fn() -> BoxFuture<'static, View> + Send + Sync> {
    Box::new(move || {
        let inbox = inbox.clone();
        async move {
            let (reply, answer) = oneshot::channel();
            let _ = inbox.send(Message::View(reply)).await;
            answer.await.unwrap_or_default()
        }
        .boxed()
    })
}

async fn pass_members(mut events: mpsc::Receiver<MemberEvent>, inbox: mpsc::Sender<Message>) {
    while let Some(event) = events.recv().await {
        if inbox.send(Message::Member(event)).await.is_err() {
            return;
        }
    }
}

async fn pass_neighbours(mut neighbours: mpsc::Receiver<Neighbour>, inbox: mpsc::Sender<Message>) {
    while let Some(neighbour) = neighbours.recv().await {
        if inbox.send(Message::Neighbour(neighbour)).await.is_err() {
            return;
        }
    }
}

async fn pass_requests(mut requests: mpsc::Receiver<PeerRequest>, inbox: mpsc::Sender<Message>) {
    while let Some(request) = requests.recv().await {
        if inbox.send(Message::Request(request)).await.is_err() {
            return;
        }
    }
}

/// Serves the connections that peers open. The loop hears of a peer before it hears its first request.
async fn accept(
    mut connections: mpsc::Receiver<MemberConnection>,
    requests: mpsc::Sender<PeerRequest>,
    inbox: mpsc::Sender<Message>,
    stop: CancellationToken,
) {
    let mut serving = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(_) = serving.join_next(), if !serving.is_empty() => {}
            connection = connections.recv(), if serving.len() < SERVED_MAX => {
                let Some(connection) = connection else { return };
                let neighbour = Neighbour::of(&connection);
                if inbox.send(Message::Neighbour(neighbour)).await.is_err() {
                    return;
                }
                serving.spawn(serve(connection, requests.clone()));
            }
        }
    }
}
