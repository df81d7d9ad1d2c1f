//! The loop: its inbox, its state, and how an event reaches the core.

use super::super::conduct::Offence;
use super::super::dht::Neighbour;
use super::super::membership::MembershipCert;
use super::super::mesh_trust::MeshTrust;
use super::super::office::Office;
use super::super::ports::{Local, News, NewsVerdict, ObtainError, Obtained};
use super::super::proto::{
    Ask, Chunk, ContentUpdate, Core, Event, Failure, Input, Outbox, Output, Peer, PeerUpdate, Segment, Start,
};
use super::super::renewal::View;
use super::super::swim::MemberEvent;
use super::super::transfer::PeerRequest;
use super::super::wire::{Holder, MemberRecord};
use super::carry::{AskBook, UpstreamBook};
use super::cells::CellView;
use super::content::ContentBook;
use super::counters::{MeshCounters, count};
use super::gossip::Gossip;
use super::journal::{Books, Journal};
use super::news::NewsBook;
use super::peers::{ME, PeerBook, PeerEntry};
use super::providers::Provider;
use super::recent::Recent;
use super::recorder::Recorder;
use super::serve::UploadBook;
use super::settle::Settling;
use super::wants::{WantBook, Wish};
use super::{FAREWELL, Linked, MemberStatus, PeerStatus};
use crate::ambient;
use crate::model::{CellLabel, ChunkRef, Class, ContentId, NodeId, RepositoryName, Time};
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Messages taken before outputs are carried out: what is asked together travels together.
const TURN_MAX: usize = 256;
/// How often the loop looks for readers that went away, and for what is due.
const CHORES_EVERY: Duration = Duration::from_millis(100);
const CHORES_IDLE: Duration = Duration::from_secs(1);
/// Chunks that have numbers. A row takes about 65 bytes here and 15 in the core (guess: 64 GiB of 64 KiB chunks).
const CHUNKS_MAX: usize = 1 << 20;

/// What a peer said to an ask of this node.
#[derive(Debug)]
pub(super) enum PeerReply {
    /// Verified bytes, and whether the store took them.
    Arrived { bytes: Bytes, kept: bool },
    /// It is under way there.
    Wait { load: u8 },
    /// No upload slot.
    Busy { holders: Vec<Holder>, load: u8 },
    /// Not there.
    Missing { holders: Vec<Holder>, load: u8 },
    /// No answer, or a wrong one.
    Failed(Failure),
}

impl PeerReply {
    /// For the log.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Arrived { .. } => "data",
            Self::Wait { .. } => "wait",
            Self::Busy { .. } => "busy",
            Self::Missing { .. } => "missing",
            Self::Failed(_) => "failed",
        }
    }
}

/// Where the answer to a reader goes.
pub(super) type WantReply = oneshot::Sender<Result<(Bytes, Obtained), ObtainError>>;

/// Everything that reaches the loop.
pub(super) enum Message {
    /// The fetch path wants a chunk.
    Want {
        repository: RepositoryName,
        chunk: ChunkRef,
        class: Class,
        deadline: Time,
        reply: WantReply,
        span: tracing::Span,
    },
    /// References to chunks that may be stored here.
    Offer { repository: RepositoryName, chunks: Vec<ChunkRef> },
    /// The store dropped a chunk.
    Removed(ContentId),
    /// The store was read for a reader.
    Loaded { repository: RepositoryName, chunk: ChunkRef, bytes: Option<Bytes> },
    /// A peer answered an ask of this node.
    Reply { number: u64, from: NodeId, chunk: ChunkRef, reply: PeerReply },
    /// A connection to a peer is used; its round-trip time.
    Connected { neighbour: Neighbour, rtt: Duration },
    /// The strata answered.
    Upstream { number: u64, chunk: ChunkRef, result: Result<(Bytes, bool), Failure> },
    /// A peer asks something.
    Request(PeerRequest),
    /// An upload ended. `gone`: the store no longer had the chunk.
    Uploaded { ask: Ask, ok: bool, gone: bool },
    /// The own cell changed.
    Member(MemberEvent),
    /// Somebody connected, or was connected to, anywhere.
    Neighbour(Neighbour),
    /// Who is in another cell of the region.
    Cell(CellView),
    /// Where this node is reached from now on, best first.
    ReachedAt(Vec<SocketAddr>),
    /// A node that claims this node's own cell and may not be known to SWIM.
    SwimContact { node: NodeId, addr: SocketAddr },
    /// The DHT answered.
    Found { segment: Segment, providers: Vec<Provider> },
    /// A document that was judged fresh, and adopted.
    FreshNews { news: News, from: Option<NodeId> },
    /// A document that was judged forged.
    ForgedNews { from: NodeId },
    /// An exchange of all documents with a peer ended: whether it went well, and else whether the peer takes this node for
    /// no member.
    Synced { ok: bool, refused: bool },
    /// A peer showed a renewed certificate, which was checked.
    Certified(MembershipCert),
    /// Somebody wants to see the peers.
    Status(oneshot::Sender<Vec<PeerStatus>>),
    /// Somebody wants to see the members and their certificates.
    Roll(oneshot::Sender<Vec<MemberStatus>>),
    /// The renewal of the certificate wants to know whom to ask.
    View(oneshot::Sender<View>),
    /// The desk wants to know whom to tell a newcomer of.
    Introduce { cell: CellLabel, reply: oneshot::Sender<Vec<MemberRecord>> },
    /// The node goes.
    Leave(oneshot::Sender<()>),
}

/// What the loop hands to its tasks.
#[derive(Clone)]
pub(super) struct TaskLinks {
    pub(super) local: Arc<dyn Local>,
    pub(super) inbox: mpsc::Sender<Message>,
    /// `None` without a network.
    pub(super) trust: Option<Arc<MeshTrust>>,
    /// Where this node is an authority.
    pub(super) office: Option<Arc<Office>>,
}

impl TaskLinks {
    /// Judges a document and, when it is fresh, adopts it durably: those of trust here, others by the node.
    pub(super) async fn judge(&self, news: News) -> NewsVerdict {
        if !matches!(news, News::Charter(_) | News::Revocations(_)) {
            return self.local.judge(news).await;
        }
        let Some(trust) = self.trust.clone() else { return NewsVerdict::Unjudged };
        let keys = self.office.as_ref().and_then(|office| office.identity().mesh_keys());
        let judged = tokio::task::spawn_blocking(move || trust.judge(&news, keys.as_deref()));
        judged.await.ok().flatten().unwrap_or(NewsVerdict::Unjudged)
    }

    /// A fresh document as it is handed on: an authority may have signed a list of revocations with more in it.
    pub(super) fn as_adopted(&self, news: News) -> News {
        match (&self.trust, news) {
            (Some(trust), News::Revocations(_)) => News::Revocations(trust.revocations().bytes().to_vec()),
            (_, news) => news,
        }
    }
}

/// What the loop reaches the world by.
pub(super) struct Links {
    pub(super) local: Arc<dyn Local>,
    pub(super) inbox: mpsc::Sender<Message>,
    pub(super) counters: Arc<MeshCounters>,
    pub(super) news_seen: watch::Sender<u64>,
    pub(super) stop: CancellationToken,
    pub(super) network: Option<Linked>,
}

impl Links {
    pub(super) fn for_task(&self) -> TaskLinks {
        TaskLinks {
            local: Arc::clone(&self.local),
            inbox: self.inbox.clone(),
            trust: self.network.as_ref().map(|network| Arc::clone(network.endpoint.identity().trust())),
            office: self.network.as_ref().and_then(|network| network.office.clone()),
        }
    }
}

/// The state of the loop.
pub(super) struct Driver {
    pub(super) core: Core,
    out: Outbox,
    /// Decided and not yet carried out, oldest first.
    pub(super) decided: Vec<Output>,
    recorder: Option<Recorder>,
    pub(super) journal: Journal,
    pub(super) links: Links,
    pub(super) content: ContentBook,
    pub(super) peers: PeerBook,
    pub(super) recent: Recent,
    pub(super) wants: WantBook,
    pub(super) asks: AskBook,
    pub(super) upstream: UpstreamBook,
    pub(super) uploads: UploadBook,
    pub(super) news: NewsBook,
    pub(super) gossip: Gossip,
    pub(super) cell: CellLabel,
    pub(super) node: NodeId,
    /// While this node waits for the first peers.
    pub(super) settling: Option<Settling>,
}

impl Driver {
    /// The loop's state with this node as the only one that is known.
    pub(super) fn new(
        start: Start,
        recorder: Option<Recorder>,
        links: Links,
        node: NodeId,
        addr: SocketAddr,
        cell: CellLabel,
    ) -> Self {
        let (peers, updates) = PeerBook::new(node, addr, &cell);
        let settling = Settling::begin(&links, ambient::now());
        let mut driver = Self {
            core: Core::new(start),
            out: Outbox::default(),
            decided: Vec::new(),
            recorder,
            journal: Journal::default(),
            links,
            content: ContentBook::new(CHUNKS_MAX),
            peers,
            recent: Recent::new(),
            wants: WantBook::default(),
            asks: AskBook::default(),
            upstream: UpstreamBook::default(),
            uploads: UploadBook::default(),
            news: NewsBook::new(),
            gossip: Gossip::new(ambient::generator()),
            cell,
            node,
            settling,
        };
        driver.tell_peers(updates);
        let own = driver.links.network.as_ref().map(|network| network.endpoint.identity().membership());
        if let Some(own) = own {
            driver.certified(&own);
        }
        driver
    }

    /// Runs until the mesh is stopped.
    pub(super) async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        let stop = self.links.stop.clone();
        let mut chores_due = Time::ZERO;
        let mut stopped = std::pin::pin!(stop.cancelled());
        // One alarm, set anew only when something else is due first: most turns change nothing about that.
        let mut alarm = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        let mut alarm_at = Time::ZERO;
        self.announce_cell();
        loop {
            let core_due = self.core.next_deadline().unwrap_or(Time::NEVER);
            let gathered_due = self.gathered_due().unwrap_or(Time::NEVER);
            let due = core_due.min(chores_due).min(gathered_due);
            if due != alarm_at {
                let pause = due.since(ambient::now()).min(CHORES_IDLE);
                alarm.as_mut().reset(tokio::time::Instant::now() + pause);
                alarm_at = due;
            }
            // In this order: a flood of messages must not keep from being done what is due.
            tokio::select! {
                biased;
                () = &mut stopped => return,
                () = &mut alarm => {
                    // An alarm that went off is always set anew.
                    alarm_at = Time::NEVER;
                    if core_due <= ambient::now() {
                        self.input(Input::Tick);
                    }
                    if chores_due <= ambient::now() {
                        self.chores();
                        // Without readers nobody goes away.
                        let idle = self.settling.is_none() && self.wants.is_empty();
                        chores_due = ambient::now() + if idle { CHORES_IDLE } else { CHORES_EVERY };
                    }
                }
                message = messages.recv() => {
                    let Some(message) = message else { return };
                    self.take(message);
                    for _ in 1..TURN_MAX {
                        let Ok(message) = messages.try_recv() else { break };
                        self.take(message);
                    }
                }
            }
            self.carry_out();
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Want { repository, chunk, class, deadline, reply, span } => {
                let wish = Wish { repository, chunk, class, deadline, reply, span };
                if let Some(settling) = &mut self.settling {
                    settling.hold(wish);
                } else {
                    self.want(wish);
                }
            }
            Message::Offer { repository, chunks } => {
                for chunk in
                    chunks.into_iter().filter(|chunk| self.links.local.holds(&chunk.id)).collect::<Vec<_>>()
                {
                    self.intern(chunk, &repository, true);
                }
            }
            Message::Removed(id) => self.gone(&id),
            Message::Loaded { repository, chunk, bytes } => self.loaded(&repository, chunk, bytes),
            Message::Reply { number, from, chunk, reply } => self.peer_replied(number, from, chunk, reply),
            Message::Connected { neighbour, rtt } => self.connected(neighbour, rtt),
            Message::Upstream { number, chunk, result } => self.upstream_replied(number, chunk, result),
            Message::Request(request) => self.requested(request),
            Message::Uploaded { ask, ok, gone } => self.uploaded(ask, ok, gone),
            Message::Member(event) => self.member_changed(event),
            Message::Neighbour(neighbour) => self.neighbour(neighbour),
            Message::Cell(view) => self.cell_seen(view),
            Message::ReachedAt(addresses) => self.reached_at(&addresses),
            Message::SwimContact { node, addr } => {
                if let Some(network) = &self.links.network {
                    network.swim.add_contact(node, addr);
                }
            }
            Message::Found { segment, providers } => self.found(segment, providers),
            Message::FreshNews { news, from } => self.fresh_news(news, from),
            Message::ForgedNews { from } => {
                count(&self.links.counters.news_invalid);
                self.report(from, Offence::ForgedDocument);
            }
            Message::Synced { ok, refused } => self.synced(ok, refused),
            Message::Certified(membership) => self.certified(&membership),
            Message::Status(reply) => {
                let _ = reply.send(self.status());
            }
            Message::Roll(reply) => {
                let _ = reply.send(self.roll());
            }
            Message::View(reply) => {
                let _ = reply.send(self.view());
            }
            Message::Introduce { cell, reply } => {
                let _ = reply.send(self.introductions(&cell));
            }
            Message::Leave(done) => self.leave(done),
        }
    }

    /// The only way to the core. What it decides waits in `decided`.
    pub(super) fn apply(&mut self, event: Event) {
        let now = ambient::now();
        let noted = event.clone();
        if let Err(error) = self.core.apply(now, event, &mut self.out) {
            // The books are far below the core's bound.
            tracing::error!(%error, "the core refused an event");
        }
        let books = Books { peers: &self.peers, content: &self.content };
        self.journal.note(now, &noted, self.out.as_slice(), &books);
        if let Some(recorder) = &self.recorder {
            recorder.record(now, &noted, self.out.as_slice());
        }
        self.decided.extend(self.out.drain());
    }

    /// An input for the core.
    pub(super) fn input(&mut self, input: Input) {
        self.apply(Event::Input(input));
    }

    /// Changes of the view, for the core.
    pub(super) fn tell_peers(&mut self, updates: Vec<PeerUpdate>) {
        for update in updates {
            self.apply(Event::Peers(update));
        }
    }

    /// The number of a chunk in a repository; the core learns it, and that it is stored if it is. `found`: a reader here
    /// found it there; otherwise it is the word of a peer. `None`: all numbers are in use.
    pub(super) fn intern(
        &mut self,
        chunk: ChunkRef,
        repository: &RepositoryName,
        found: bool,
    ) -> Option<Chunk> {
        let (number, changes) = self.content.intern(chunk, repository, found)?;
        if let Some((gone, stored)) = changes.forgotten {
            if stored {
                self.input(Input::Evicted { chunk: gone });
            }
            self.apply(Event::Content(ContentUpdate::Forgotten { chunk: gone }));
        }
        for learned in changes.learned {
            self.apply(Event::Content(learned));
        }
        if found {
            self.content.vouch(number);
        }
        let stored = self.content.get(number).is_some_and(|entry| entry.stored);
        if !stored && self.links.local.holds(&chunk.id) && self.may_pass_for_stored(number, &chunk.id) {
            self.stored(number);
        }
        Some(number)
    }

    /// Whether a chunk that is held may be served in the repository in which it is asked for: when it is known to lie
    /// there. Of one that was never seen anywhere in this run nothing is known; it is given away as long as there is
    /// nobody in sight from whom anything has to be kept. Otherwise it is to be fetched under that name, which shows
    /// whether it lies there.
    fn may_pass_for_stored(&self, number: Chunk, id: &ContentId) -> bool {
        self.content.is_vouched(number) || !self.peers.any_scoped() && !self.content.is_vouched_anywhere(id)
    }

    /// Somebody came in sight who may not read everything: nothing is given away any more of which it is not known
    /// where it lies.
    pub(super) fn hide_unvouched(&mut self) {
        for chunk in self.content.stored_unvouched() {
            if self.content.set_stored(chunk, false) {
                self.input(Input::Evicted { chunk });
            }
        }
    }

    /// A chunk is stored, though the core did not have it fetched.
    pub(super) fn stored(&mut self, chunk: Chunk) {
        if self.content.set_stored(chunk, true) {
            self.input(Input::Stored { chunk });
        }
    }

    /// The store has no chunk of this name any more.
    pub(super) fn gone(&mut self, id: &ContentId) {
        for chunk in self.content.with_id(id) {
            if self.content.set_stored(chunk, false) {
                self.input(Input::Evicted { chunk });
            }
        }
    }

    /// Verified bytes came in: the core hears of it under every reference that they fit, and what it decides
    /// is carried out while the bytes are certainly at hand. `asked`: the number that they were asked for under, if
    /// that is still under way; who gave them vouches that they lie in its repository.
    pub(super) fn arrived(
        &mut self,
        chunk: ChunkRef,
        asked: Option<Chunk>,
        from: super::super::proto::Source,
        bytes: Bytes,
        kept: bool,
    ) {
        self.recent.insert(chunk.id, bytes, from);
        if let Some(asked) = asked {
            self.content.vouch(asked);
        }
        let repository = asked.and_then(|asked| self.content.repository_of(asked));
        for number in self.content.with_id(&chunk.id) {
            let Some(entry) = self.content.get(number) else { continue };
            let lies_there = entry.vouched
                || repository
                    .is_some_and(|repository| self.content.repository_of(number) == Some(repository));
            if !lies_there && !self.may_pass_for_stored(number, &chunk.id) {
                continue;
            }
            self.content.obtained(number);
            if entry.chunk == chunk {
                self.content.set_stored(number, true);
                self.input(Input::Arrived { chunk: number, from });
            } else if entry.chunk.plain_len == chunk.plain_len {
                self.stored(number);
            }
        }
        self.carry_out();
        if !kept {
            self.gone(&chunk.id);
        }
    }

    /// The number of a peer of which a name and an address are known, and perhaps the cell.
    pub(super) fn meet(&mut self, node: NodeId, addr: SocketAddr, cell: Option<&CellLabel>) -> Option<Peer> {
        if node == self.node {
            return Some(ME);
        }
        let mut updates = Vec::new();
        let peer = self.peers.meet(node, addr, cell, &mut updates);
        self.tell_peers(updates);
        peer
    }

    /// Notes whether a peer answers.
    pub(super) fn set_up(&mut self, peer: Peer, up: bool) {
        let mut updates = Vec::new();
        self.peers.set_up(peer, up && !self.gossip.ended, &mut updates);
        self.tell_peers(updates);
        if let Some(network) = &self.links.network {
            network.seen.store(self.peers.up(), Ordering::Relaxed);
        }
        self.settle();
    }

    fn connected(&mut self, neighbour: Neighbour, rtt: Duration) {
        if let Some(entry) = self.peers.number(&neighbour.node).and_then(|peer| self.peers.get_mut(peer)) {
            entry.rtt = Some(rtt);
        }
        self.neighbour(neighbour);
    }

    fn status(&self) -> Vec<PeerStatus> {
        let network = self.links.network.as_ref();
        let open = network.map(|network| network.endpoint.round_trips()).unwrap_or_default();
        // What was measured last, where no connection is left.
        let rtt = |entry: &PeerEntry| open.get(&entry.node).copied().or(entry.rtt);
        self.peers
            .others()
            .map(|(_, entry)| PeerStatus {
                node: entry.node,
                addr: entry.addr,
                cell: entry.cell.clone(),
                near: self.peers.is_in(entry, self.peers.own_cell()),
                up: entry.up,
                rtt_us: rtt(entry).map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
                bytes_up: entry.bytes_up,
                bytes_down: entry.bytes_down,
            })
            .collect()
    }

    /// All peers whose certificate was seen.
    fn roll(&self) -> Vec<MemberStatus> {
        let Some(network) = &self.links.network else { return Vec::new() };
        let connected = network.endpoint.connections_by_node();
        let status = |entry: &PeerEntry| {
            let membership = entry.membership.clone()?;
            let connections = connected.get(&entry.node).copied().unwrap_or(0);
            Some(MemberStatus { membership, address: entry.addr, up: entry.up, connections })
        };
        self.peers.others().filter_map(|(_, entry)| status(entry)).collect()
    }

    fn chores(&mut self) {
        self.heed_trust();
        self.links.counters.set_core(self.core.counts());
        self.settle();
        self.drop_withdrawn_wants();
        self.gossip_chores();
    }

    fn leave(&self, done: oneshot::Sender<()>) {
        let stop = self.links.stop.clone();
        let Some(network) = &self.links.network else {
            stop.cancel();
            let _ = done.send(());
            return;
        };
        let (endpoint, leaving) = (network.endpoint.clone(), network.swim.leaving());
        tokio::spawn(async move {
            leaving.await;
            endpoint.close(FAREWELL).await;
            stop.cancel();
            let _ = done.send(());
        });
    }
}
