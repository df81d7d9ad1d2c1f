//! Carries out what the core decided: asks of peers, fetches from the strata, look-ups, bans.
//!
//! Each ask and each fetch has a number of its own. A report that names a number which is no longer
//! under way (withdrawn, or its chunk's number means something else by now) changes nothing, except that
//! verified bytes are always welcome.

use super::super::conduct::Offence;
use super::super::dht::{DhtKey, Neighbour, Urgency};
use super::super::ports::UpstreamFailure;
use super::super::proto::{Answer, Chunk, Failure, Input, Output, Peer, Segment, Source};
use super::super::transfer::{self, Reply};
use super::super::wire::{Holder, REQUEST_MAX_CHUNKS, Request};
use super::counters::{add, count};
use super::gather::{AHEAD_WAITS, Gathered, MANY_MIN_BYTES, READ_WAITS};
use super::providers::{self, Provider};
use super::task::{Driver, Message, PeerReply, TaskLinks};
use crate::ambient;
use crate::model::limits::{STRATUM_CALL_REQUESTS, STRATUM_MAX_GAP, STRATUM_REQUESTS};
use crate::model::{ChunkRef, Class, ContentId, NodeId, Place, RepositoryName, Time};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};

/// Bytes of frames that one call for the strata may span, and frames: a reply must come well within a lease, which each
/// frame of it makes good again.
const UPSTREAM_MAX_BYTES: u64 = 4 << 20;
const UPSTREAM_MAX_CHUNKS: usize = 1_024;
/// The core hears of a call's progress no more often than this (guess: far below a lease; each time costs an input for every chunk
/// that is still to come).
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// Bytes between two frames that are fetched for nothing rather than by another call (guess: a round trip).
const UPSTREAM_MAX_GAP: u64 = 256 << 10;
/// Requests of the calls that run at once for what nobody waits for, of all that a stratum is asked at once: a quarter is
/// left for reads (guess).
const AHEAD_REQUESTS: usize = STRATUM_REQUESTS - STRATUM_REQUESTS / 4;

/// An ask under way.
struct Asked {
    number: u64,
    /// Its place in the request, and where to say that it is not wanted any more.
    index: usize,
    withdraw: mpsc::Sender<usize>,
}

/// Asks under way. Each pins its chunk and its peer.
#[derive(Default)]
pub(super) struct AskBook {
    by_pair: HashMap<(Peer, Chunk), Asked>,
    by_number: HashMap<u64, (Peer, Chunk)>,
    next: u64,
}

/// A fetch from the strata under way.
struct Fetching {
    number: u64,
    call: Arc<Call>,
    /// Its bytes, if nobody waits for it who has not wished for it ahead.
    ahead_bytes: u64,
}

/// One call for the strata, which ends when none of its chunks is wanted any more.
struct Call {
    wanted: AtomicUsize,
    stop: CancellationToken,
    /// Whether somebody waited for one of its chunks when it was made.
    is_read: bool,
    /// Whether its turn has come, or never will.
    begun: AtomicBool,
    /// When the core heard of its progress last.
    told: AtomicU64,
}

/// Whose turn it is to ask the strata. Calls take as many turns as they make requests, so that these do not wait again where
/// nobody tells them apart.
struct Turns {
    all: Semaphore,
    /// Taken first by what nobody waits for, which so never has all turns.
    ahead: Semaphore,
}

impl Default for Turns {
    fn default() -> Self {
        Self { all: Semaphore::new(STRATUM_REQUESTS), ahead: Semaphore::new(AHEAD_REQUESTS) }
    }
}

impl Turns {
    async fn take(
        &self,
        is_read: bool,
        requests: u32,
    ) -> Result<[Option<SemaphorePermit<'_>>; 2], AcquireError> {
        let ahead = if is_read { None } else { Some(self.ahead.acquire_many(requests).await?) };
        Ok([ahead, Some(self.all.acquire_many(requests).await?)])
    }
}

/// How many requests a call for these sorted places makes at once.
fn requests(places: impl Iterator<Item = Place>) -> u32 {
    let (mut end, mut requests) = (None, 0);
    for place in places {
        let is_near = end.is_some_and(|end| place.offset.saturating_sub(end) <= STRATUM_MAX_GAP);
        requests += u32::from(!is_near);
        end = place.end();
    }
    requests.clamp(1, STRATUM_CALL_REQUESTS)
}

/// Fetches from the strata under way. Each pins its chunk.
pub(super) struct UpstreamBook {
    by_chunk: HashMap<Chunk, Fetching>,
    by_number: HashMap<u64, Chunk>,
    next: u64,
    turns: Arc<Turns>,
    gathered: Gathered,
    /// What somebody waits for and is to travel with the rest of a read.
    reads: Gathered,
    /// Bytes of the fetches under way that were gathered.
    ahead_bytes: u64,
}

impl Default for UpstreamBook {
    fn default() -> Self {
        Self {
            by_chunk: HashMap::new(),
            by_number: HashMap::new(),
            next: 0,
            turns: Arc::default(),
            gathered: Gathered::new(AHEAD_WAITS),
            reads: Gathered::new(READ_WAITS),
            ahead_bytes: 0,
        }
    }
}

/// Asks that travel together.
struct Batch {
    peer: Peer,
    class: Class,
    repository: RepositoryName,
    chunks: Vec<(Chunk, ChunkRef)>,
}

impl Driver {
    /// Carries out everything that was decided.
    pub(super) fn carry_out(&mut self) {
        let mut batch: Option<Batch> = None;
        let mut upstream: Vec<Chunk> = Vec::new();
        // Carrying out may decide more (a look-up without a DHT is answered at once): each such answer ends a
        // step of a search, and searches end.
        while !self.decided.is_empty() {
            for output in std::mem::take(&mut self.decided) {
                if let Output::Ask { peer, chunk, class } = output {
                    self.batch(&mut batch, peer, chunk, class);
                    continue;
                }
                if let Some(full) = batch.take() {
                    self.send_asks(full);
                }
                match output {
                    Output::FetchUpstream { chunk } => {
                        self.region_used();
                        upstream.push(chunk);
                    }
                    Output::CancelUpstream { chunk } => {
                        upstream.retain(|other| *other != chunk);
                        self.upstream.gathered.remove(chunk);
                        self.upstream.reads.remove(chunk);
                        self.cancel_upstream(chunk);
                    }
                    other => self.carry_out_one(other),
                }
            }
            if let Some(last) = batch.take() {
                self.send_asks(last);
            }
        }
        self.fetch_upstream(upstream);
        self.announce_turns();
    }

    /// Segments of which nothing is stored any more are not announced again, until there is something.
    fn announce_turns(&mut self) {
        for (id, stored) in self.content.take_turns() {
            let Some(dht) = self.dht() else { continue };
            let key = DhtKey::segment(&id);
            if stored { dht.announce(key, Urgency::Fresh) } else { dht.withdraw(key) }
        }
    }

    fn carry_out_one(&mut self, output: Output) {
        match output {
            Output::Cancel { peer, chunk } => self.cancel_ask(peer, chunk),
            Output::Serve { ask } => self.serve(ask),
            Output::Answer { ask, answer, load } => self.answer(ask, &answer, load),
            Output::FindProviders { segment } => self.find_providers(segment),
            Output::Announce { segment } => {
                if let Some((id, obtained)) = self.content.announced(segment)
                    && let Some(dht) = self.dht()
                {
                    let urgency = if obtained { Urgency::Fresh } else { Urgency::Found };
                    dht.announce(DhtKey::segment(&id), urgency);
                }
            }
            Output::Deliver { chunk } => self.deliver(chunk),
            Output::GiveUp { chunk, why } => self.give_up(chunk, why),
            Output::Spread { news, to } => self.spread(news, to),
            Output::TellPossession { to, slices } => self.tell_possession(to, &slices),
            Output::Distrust { peer } => {
                count(&self.links.counters.wrong_bytes);
                if let Some(node) = self.peers.get(peer).map(|entry| entry.node) {
                    self.report(node, Offence::WrongBytes);
                }
            }
            Output::Ask { .. } | Output::FetchUpstream { .. } | Output::CancelUpstream { .. } => {
                unreachable!("handled by the caller")
            }
        }
    }

    pub(super) fn dht(&self) -> Option<&super::Dht> {
        self.links.network.as_ref()?.dht.as_ref()
    }

    /// Notes what a node did; too much of it, and all connections with it are closed for a while.
    pub(super) fn report(&self, node: NodeId, offence: Offence) {
        if let Some(network) = &self.links.network {
            network.endpoint.report(node, offence);
            if let Some(dht) = network.dht.as_ref().filter(|_| network.endpoint.is_banned(&node)) {
                dht.forget(node);
            }
        }
    }

    fn batch(&mut self, batch: &mut Option<Batch>, peer: Peer, chunk: Chunk, class: Class) {
        let Some(entry) = self.content.get(chunk) else { return };
        let (reference, repository) = (entry.chunk, entry.repository);
        if let Some(open) = batch
            && open.peer == peer
            && open.class == class
            && open.repository == repository
            && open.chunks.len() < REQUEST_MAX_CHUNKS
        {
            open.chunks.push((chunk, reference));
            return;
        }
        let new = Batch { peer, class, repository, chunks: vec![(chunk, reference)] };
        if let Some(full) = batch.replace(new) {
            self.send_asks(full);
        }
    }

    fn send_asks(&mut self, batch: Batch) {
        let Batch { peer, class, repository, chunks } = batch;
        let (Some(network), Some(entry)) = (&self.links.network, self.peers.get(peer)) else {
            for (chunk, _) in chunks {
                self.input(Input::Failed { chunk, from: Source::Peer(peer), why: Failure::Unreachable });
            }
            return;
        };
        let (endpoint, node, addr) = (network.endpoint.clone(), entry.node, entry.addr);
        let elsewhere = !self.is_own_member(peer);
        add(&self.links.counters.asks_sent, chunks.len() as u64);
        if elsewhere {
            self.region_used();
        }
        let (withdraw, withdrawn) = mpsc::channel(chunks.len());
        let mut numbers = Vec::with_capacity(chunks.len());
        for (index, (chunk, _)) in chunks.iter().enumerate() {
            self.end_ask(peer, *chunk);
            self.asks.next += 1;
            let number = self.asks.next;
            self.content.pin(*chunk);
            self.peers.pin(peer);
            self.asks.by_number.insert(number, (peer, *chunk));
            self.asks.by_pair.insert((peer, *chunk), Asked { number, index, withdraw: withdraw.clone() });
            numbers.push(number);
        }
        let span = |(chunk, reference): &(Chunk, ChunkRef)| {
            let (id, len) = (reference.id, reference.plain_len);
            // Named only when somebody listens, as is the parent.
            tracing::debug_span!(
                parent: self.span_of(*chunk), "ask", repo = %repository, chunk = %id, ?class, source = %node, len
            )
        };
        let spans: Vec<Span> = chunks.iter().map(span).collect();
        let parent = spans.first().and_then(Span::id);
        let transfer =
            tracing::debug_span!(parent: parent, "transfer", source = %node, chunks = chunks.len());
        let chunks: Vec<ChunkRef> = chunks.into_iter().map(|(_, reference)| reference).collect();
        let request = Request { repository, class, chunks: chunks.clone() };
        let reports = Reports { links: self.links.for_task(), node, chunks, numbers, spans };
        tokio::spawn(ask(endpoint, addr, request, reports, withdrawn).instrument(transfer));
    }

    /// Takes an ask out of the books.
    fn end_ask(&mut self, peer: Peer, chunk: Chunk) -> Option<Asked> {
        let asked = self.asks.by_pair.remove(&(peer, chunk))?;
        self.asks.by_number.remove(&asked.number);
        self.content.unpin(chunk);
        self.peers.unpin(peer);
        Some(asked)
    }

    fn cancel_ask(&mut self, peer: Peer, chunk: Chunk) {
        if let Some(asked) = self.end_ask(peer, chunk) {
            // The queue has room for one withdrawal a chunk; a request that has ended needs none.
            let _ = asked.withdraw.try_send(asked.index);
        }
    }

    /// A peer answered an ask.
    pub(super) fn peer_replied(&mut self, number: u64, node: NodeId, chunk: ChunkRef, reply: PeerReply) {
        let under_way = self.asks.by_number.get(&number).copied();
        if let PeerReply::Arrived { bytes, kept } = reply {
            let Some(peer) = under_way.map(|(peer, _)| peer).or_else(|| self.peers.number(&node)) else {
                return;
            };
            add(&self.links.counters.bytes_down, bytes.len() as u64);
            if let Some(entry) = self.peers.get_mut(peer) {
                entry.bytes_down += bytes.len() as u64;
            }
            if let Some((peer, chunk)) = under_way {
                self.end_ask(peer, chunk);
            }
            self.arrived(chunk, under_way.map(|(_, asked)| asked), Source::Peer(peer), bytes, kept);
            return;
        }
        let Some((peer, chunk)) = under_way else { return };
        let told = |answer, load| Input::Told { peer, chunk, answer, load };
        let input = match reply {
            PeerReply::Wait { load } => {
                self.input(told(Answer::Wait, load));
                return;
            }
            PeerReply::Busy { holders, load } => {
                count(&self.links.counters.told_busy);
                told(Answer::Busy { holders: self.numbers_of(&holders) }, load)
            }
            PeerReply::Missing { holders, load } => {
                count(&self.links.counters.told_missing);
                told(Answer::Missing { holders: self.numbers_of(&holders) }, load)
            }
            PeerReply::Failed(why) => {
                match why {
                    Failure::Unreachable => self.unreachable(peer),
                    Failure::TimedOut => count(&self.links.counters.stalls),
                    Failure::WrongBytes | Failure::Refused => {}
                }
                Input::Failed { chunk, from: Source::Peer(peer), why }
            }
            PeerReply::Arrived { .. } => return,
        };
        self.end_ask(peer, chunk);
        self.input(input);
    }

    /// Holders that a peer named, as far as they are known: strangers are nobody's word to be taken for.
    fn numbers_of(&self, holders: &[Holder]) -> super::super::proto::Holders {
        holders
            .iter()
            .filter(|holder| holder.node != self.node)
            .filter_map(|holder| self.peers.number(&holder.node))
            .collect()
    }

    /// Takes chunks from the strata. What somebody waits for goes at once or nearly so, what is fetched ahead is gathered first.
    fn fetch_upstream(&mut self, chunks: Vec<Chunk>) {
        let now = ambient::now();
        let mut at_once = Vec::new();
        for chunk in chunks {
            let Some(entry) = self.content.get(chunk) else { continue };
            if self.wants.is_only_ahead(chunk) {
                self.upstream.gathered.add(chunk, entry.chunk.place, now);
            } else if entry.chunk.plain_len >= MANY_MIN_BYTES {
                self.upstream.reads.add(chunk, entry.chunk.place, now);
            } else {
                at_once.push(chunk);
            }
        }
        self.call_with_followers(at_once);
        let reads = self.upstream.reads.take_if_due(now, 0);
        self.call_with_followers(reads);
        let gathered = self.upstream.gathered.take_if_due(now, self.upstream.ahead_bytes);
        self.call_for(gathered);
    }

    /// Calls for chunks that somebody waits for. What was gathered and lies right behind the last of them in a segment comes in the
    /// same request, later than what is waited for.
    fn call_with_followers(&mut self, mut wanted: Vec<Chunk>) {
        let places =
            wanted.iter().filter_map(|chunk| self.content.get(*chunk).map(|entry| entry.chunk.place));
        for last in last_of_each_segment(places) {
            wanted.extend(self.upstream.gathered.take_behind(&last, UPSTREAM_MAX_BYTES));
        }
        self.call_for(wanted);
    }

    /// When what was gathered may go, if that hangs on the time alone.
    pub(super) fn gathered_due(&self) -> Option<Time> {
        let now = ambient::now();
        let ahead = self.upstream.gathered.due(now, self.upstream.ahead_bytes);
        ahead.into_iter().chain(self.upstream.reads.due(now, 0)).min()
    }

    /// Somebody waits now for what is perhaps being gathered, or stands in line with what nobody waits for: it goes at once.
    pub(super) fn hurry_upstream(&mut self, chunk: Chunk) {
        self.recall(chunk);
        if self.upstream.gathered.remove(chunk) {
            self.call_with_followers(vec![chunk]);
        }
    }

    /// If a chunk's call stands in line with those that nobody waits for, all of it is gathered again.
    fn recall(&mut self, chunk: Chunk) {
        let Some(fetching) = self.upstream.by_chunk.get(&chunk) else { return };
        let call = Arc::clone(&fetching.call);
        // Whoever is first: this, or its turn.
        if call.is_read || call.begun.swap(true, Ordering::Relaxed) {
            return;
        }
        let now = ambient::now();
        for chunk in self.chunks_of(&call) {
            self.cancel_upstream(chunk);
            if let Some(entry) = self.content.get(chunk) {
                self.upstream.gathered.add(chunk, entry.chunk.place, now);
            }
        }
    }

    /// The chunks of a call that have not come yet, in their order.
    fn chunks_of(&self, call: &Arc<Call>) -> Vec<Chunk> {
        let under_way = self.upstream.by_chunk.iter();
        let same = under_way.filter(|(_, fetching)| Arc::ptr_eq(&fetching.call, call));
        let mut chunks: Vec<(u64, Chunk)> = same.map(|(chunk, fetching)| (fetching.number, *chunk)).collect();
        chunks.sort_unstable();
        chunks.into_iter().map(|(_, chunk)| chunk).collect()
    }

    /// Calls for chunks, neighbours in one call.
    fn call_for(&mut self, chunks: Vec<Chunk>) {
        let mut wanted: Vec<(RepositoryName, ChunkRef, Chunk)> = chunks
            .into_iter()
            .filter_map(|chunk| self.content.get(chunk).map(|entry| (entry.repository, entry.chunk, chunk)))
            .collect();
        wanted.sort_by(|a, b| {
            let key = |w: &(RepositoryName, ChunkRef, Chunk)| (w.1.place.segment, w.1.place.offset);
            a.0.cmp(&b.0).then_with(|| key(a).cmp(&key(b)))
        });
        let mut rest = &wanted[..];
        while let Some((first, _)) = rest.split_first() {
            let len = call_len(rest.iter().map(|(repository, chunk, _)| (repository, chunk)));
            let (call, after) = rest.split_at(len);
            rest = after;
            count(&self.links.counters.upstream_fetches);
            self.call_upstream(first.0.clone(), call);
        }
    }

    fn call_upstream(&mut self, repository: RepositoryName, chunks: &[(RepositoryName, ChunkRef, Chunk)]) {
        let is_read = |(_, _, chunk): &(RepositoryName, ChunkRef, Chunk)| {
            self.core.class_of(*chunk).is_none_or(|class| class == Class::Read)
        };
        let call = Arc::new(Call {
            wanted: AtomicUsize::new(chunks.len()),
            stop: CancellationToken::new(),
            is_read: chunks.iter().any(is_read),
            begun: AtomicBool::new(false),
            told: AtomicU64::new(0),
        });
        let mut numbers = Vec::with_capacity(chunks.len());
        for (_, reference, chunk) in chunks {
            self.cancel_upstream(*chunk);
            self.upstream.next += 1;
            let number = self.upstream.next;
            self.content.pin(*chunk);
            let is_ahead = self.wants.is_only_ahead(*chunk);
            let ahead_bytes = if is_ahead { reference.place.stored_len.into() } else { 0 };
            self.upstream.ahead_bytes += ahead_bytes;
            self.upstream.by_number.insert(number, *chunk);
            let fetching = Fetching { number, call: Arc::clone(&call), ahead_bytes };
            self.upstream.by_chunk.insert(*chunk, fetching);
            numbers.push(number);
        }
        let span = |(_, reference, chunk): &(RepositoryName, ChunkRef, Chunk)| {
            let (id, len) = (reference.id, reference.plain_len);
            tracing::debug_span!(
                parent: self.span_of(*chunk), "upstream", repo = %repository, chunk = %id, source = "strata", len
            )
        };
        let spans: Vec<Span> = chunks.iter().map(span).collect();
        let parent = spans.first().and_then(Span::id);
        let request =
            tracing::debug_span!(parent: parent, "request", repo = %repository, chunks = chunks.len());
        let chunks: Vec<ChunkRef> = chunks.iter().map(|(_, chunk, _)| *chunk).collect();
        let (links, turns) = (self.links.for_task(), Arc::clone(&self.upstream.turns));
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = call.stop.cancelled() => {}
                () = async {
                    let turn = turns.take(call.is_read, requests(chunks.iter().map(|chunk| chunk.place))).await;
                    if turn.is_ok() && !call.begun.swap(true, Ordering::Relaxed) {
                        fetch(&links, repository, chunks, numbers, spans).await;
                    }
                }
                .instrument(request) => {}
            }
        });
    }

    fn cancel_upstream(&mut self, chunk: Chunk) {
        if let Some(fetching) = self.end_upstream(chunk)
            && fetching.call.wanted.fetch_sub(1, Ordering::Relaxed) == 1
        {
            fetching.call.stop.cancel();
        }
    }

    fn end_upstream(&mut self, chunk: Chunk) -> Option<Fetching> {
        let fetching = self.upstream.by_chunk.remove(&chunk)?;
        self.upstream.by_number.remove(&fetching.number);
        self.upstream.ahead_bytes = self.upstream.ahead_bytes.saturating_sub(fetching.ahead_bytes);
        self.content.unpin(chunk);
        Some(fetching)
    }

    /// The strata answered for one chunk.
    pub(super) fn upstream_replied(
        &mut self,
        number: u64,
        chunk: ChunkRef,
        result: Result<(Bytes, bool), Failure>,
    ) {
        let under_way = self.upstream.by_number.get(&number).copied();
        let ended = under_way.and_then(|chunk| self.end_upstream(chunk));
        match (result, under_way) {
            (Ok((bytes, kept)), _) => {
                if let Some(ended) = ended {
                    self.call_progresses(&ended.call);
                }
                add(&self.links.counters.upstream_bytes, bytes.len() as u64);
                self.arrived(chunk, under_way, Source::Strata, bytes, kept);
            }
            (Err(why), Some(chunk)) => self.input(Input::Failed { chunk, from: Source::Strata, why }),
            (Err(_), None) => {}
        }
    }

    /// A chunk of a call came: the others, which travel behind it, are not lost.
    fn call_progresses(&mut self, call: &Arc<Call>) {
        let now = ambient::now();
        if now.since(Time::from_nanos(call.told.load(Ordering::Relaxed))) < PROGRESS_EVERY {
            return;
        }
        call.told.store(now.as_nanos(), Ordering::Relaxed);
        for chunk in self.chunks_of(call) {
            self.input(Input::Progress { chunk });
        }
    }

    fn find_providers(&mut self, segment: Segment) {
        let (Some(id), Some(dht)) = (self.content.segment(segment), self.dht()) else {
            self.input(Input::Providers { segment, peers: Vec::new() });
            return;
        };
        let (dht, inbox) = (dht.clone(), self.links.inbox.clone());
        let endpoint = self.links.network.as_ref().map(|network| network.endpoint.clone());
        tokio::spawn(async move {
            let found = dht.find(DhtKey::segment(&id)).await;
            let providers = match endpoint {
                Some(endpoint) => providers::reach(&endpoint, found).await,
                None => Vec::new(),
            };
            let _ = inbox.send(Message::Found { segment, providers }).await;
        });
    }

    /// The DHT named providers, who were dialled by name, so that a lie leads nowhere. The nearest are for the core.
    pub(super) fn found(&mut self, segment: Segment, providers: Vec<Provider>) {
        let nearest = providers::nearest(providers, self.cell.region());
        let mut peers = Vec::with_capacity(nearest.len());
        for Provider { neighbour, rtt } in nearest {
            let Neighbour { node, addr, membership } = neighbour;
            if node == self.node {
                continue;
            }
            let Some(peer) = self.meet_member(addr, &membership) else { continue };
            if let Some(entry) = self.peers.get_mut(peer) {
                entry.rtt = Some(rtt);
            }
            // Of the own cell, SWIM knows who is up.
            if !self.is_own_member(peer) {
                self.set_up(peer, true);
            }
            peers.push(peer);
        }
        self.input(Input::Providers { segment, peers });
    }
}

/// Of these places, the last in each segment, in the order of segments.
fn last_of_each_segment(places: impl Iterator<Item = Place>) -> Vec<Place> {
    let mut last: BTreeMap<ContentId, Place> = BTreeMap::new();
    for place in places {
        let known = last.entry(place.segment).or_insert(place);
        if place.offset > known.offset {
            *known = place;
        }
    }
    last.into_values().collect()
}

/// How many of the sorted wishes from the first on one call takes.
fn call_len<'a>(wanted: impl Iterator<Item = (&'a RepositoryName, &'a ChunkRef)>) -> usize {
    let mut first: Option<(&RepositoryName, ContentId, u64)> = None;
    let mut end = 0;
    let mut len = 0;
    for (repository, chunk) in wanted {
        let place = chunk.place;
        let (name, segment, start) = *first.get_or_insert((repository, place.segment, place.offset));
        let chunk_end = place.end().unwrap_or(u64::MAX);
        let fits = name == repository
            && segment == place.segment
            && len < UPSTREAM_MAX_CHUNKS
            && (len == 0 || place.offset.saturating_sub(end) <= UPSTREAM_MAX_GAP)
            && (len == 0 || chunk_end.saturating_sub(start) <= UPSTREAM_MAX_BYTES);
        if !fits {
            break;
        }
        end = chunk_end.max(end);
        len += 1;
    }
    len
}

/// Runs one call for the strata and reports each chunk.
async fn fetch(
    links: &TaskLinks,
    repository: RepositoryName,
    chunks: Vec<ChunkRef>,
    numbers: Vec<u64>,
    spans: Vec<Span>,
) {
    let report = async |position: usize, result| {
        let (number, chunk) = (numbers[position], chunks[position]);
        spans[position].in_scope(|| tracing::debug!(ok = Result::is_ok(&result), "the strata answered"));
        let _ = links.inbox.send(Message::Upstream { number, chunk, result }).await;
    };
    // Each chunk comes at most once, so there is room for all of them.
    let (tell, mut told) = mpsc::channel(chunks.len().max(1));
    let call = async {
        let arrived = move |position: usize, bytes: &Bytes| {
            let _ = tell.try_send((position, bytes.clone()));
        };
        links.local.fetch_upstream(repository, chunks.clone(), &arrived).await
    };
    // Relayed as it arrives, not when the last chunk of the call is there.
    let relay = async {
        while let Some((position, bytes)) = told.recv().await {
            let kept = links.local.keep(chunks[position].id, bytes.clone(), true).await;
            report(position, Ok((bytes, kept))).await;
        }
    };
    let (results, ()) = tokio::join!(call, relay);
    for (position, result) in results.into_iter().enumerate().take(chunks.len()) {
        let Err(error) = result else { continue };
        tracing::debug!(chunk = %chunks[position].id, %error, "not from the strata");
        let why = match error {
            UpstreamFailure::UnknownRepository(_) => Failure::Refused,
            UpstreamFailure::Unreachable(_) => Failure::Unreachable,
            UpstreamFailure::WrongBytes(_) => Failure::WrongBytes,
        };
        report(position, Err(why)).await;
    }
}

/// Where a task that asks a peer reports.
struct Reports {
    links: TaskLinks,
    node: NodeId,
    chunks: Vec<ChunkRef>,
    numbers: Vec<u64>,
    /// Where each answer is noted.
    spans: Vec<Span>,
}

impl Reports {
    async fn send(&self, index: usize, reply: PeerReply) {
        let (number, chunk) = (self.numbers[index], self.chunks[index]);
        self.spans[index].in_scope(|| tracing::debug!(answer = reply.name(), "a peer answered"));
        let _ = self.links.inbox.send(Message::Reply { number, from: self.node, chunk, reply }).await;
    }
}

/// Asks one peer for the chunks of one request and reports each answer.
async fn ask(
    endpoint: super::Endpoint,
    addr: SocketAddr,
    request: Request,
    reports: Reports,
    mut withdrawn: mpsc::Receiver<usize>,
) {
    let mut open = vec![true; reports.chunks.len()];
    let failure = match endpoint.connection(reports.node, addr).await {
        Err(error) => {
            tracing::debug!(%error, "asking a peer");
            Failure::Unreachable
        }
        Ok(connection) => {
            let (neighbour, rtt) = (Neighbour::of(&connection), connection.quinn().rtt());
            // Whoever says that it holds something of a repository that it may not read is not asked.
            let may_read = neighbour.membership.scope.covers(&request.repository);
            let _ = reports.links.inbox.send(Message::Connected { neighbour, rtt }).await;
            match may_read.then(|| transfer::ask(connection, request)) {
                None => {}
                Some(Err(error)) => {
                    tracing::warn!(%error, "a request that the core decided on is out of bounds");
                }
                Some(Ok(asking)) => exchange(asking, &reports, &mut open, &mut withdrawn).await,
            }
            Failure::Refused
        }
    };
    for index in (0..open.len()).filter(|index| open[*index]) {
        reports.send(index, PeerReply::Failed(failure)).await;
    }
}

async fn exchange(
    mut asking: transfer::Asking,
    reports: &Reports,
    open: &mut [bool],
    withdrawn: &mut mpsc::Receiver<usize>,
) {
    while open.iter().any(|open| *open) {
        let (index, reply) = tokio::select! {
            biased;
            reply = asking.next() => match reply {
                Some(reply) => reply,
                None => return,
            },
            Some(index) = withdrawn.recv() => {
                asking.withdraw(index);
                open[index] = false;
                continue;
            }
        };
        let reply = match reply {
            Reply::Arrived(bytes) => {
                let kept = reports.links.local.keep(reports.chunks[index].id, bytes.clone(), false).await;
                PeerReply::Arrived { bytes, kept }
            }
            Reply::Wait { load } => {
                reports.send(index, PeerReply::Wait { load }).await;
                continue;
            }
            Reply::Busy { holders, load } => PeerReply::Busy { holders, load },
            Reply::Missing { holders, load } => PeerReply::Missing { holders, load },
            Reply::Failed(error) => {
                tracing::debug!(node = %reports.node, %error, "a peer did not deliver");
                PeerReply::Failed(error.failure())
            }
        };
        open[index] = false;
        reports.send(index, reply).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    fn chunk(segment: u8, offset: u64, stored_len: u32) -> ChunkRef {
        let place = Place { segment: ContentId::of(&[segment]), ordinal: 0, offset, stored_len };
        ChunkRef { id: ContentId::of(&offset.to_le_bytes()), plain_len: 1, place }
    }

    #[test]
    fn what_nobody_waits_for_leaves_turns_to_those_who_wait() {
        let turns = Turns::default();
        let take = |is_read, requests| turns.take(is_read, requests).now_or_never().map(Result::unwrap);
        let ahead: Vec<_> = std::iter::from_fn(|| take(false, 2)).collect();
        assert_eq!(ahead.len(), AHEAD_REQUESTS / 2);
        let reads: Vec<_> = std::iter::from_fn(|| take(true, 1)).collect();
        assert_eq!((reads.len(), reads.len() + AHEAD_REQUESTS), (4, STRATUM_REQUESTS));
        drop(ahead);
        assert!(take(true, 4).is_some());
    }

    #[test]
    fn a_call_takes_a_turn_for_each_request_that_it_makes() {
        let count =
            |places: &[(u64, u32)]| requests(places.iter().map(|(at, len)| chunk(1, *at, *len).place));
        assert_eq!(count(&[(0, 10), (10, 10), (20 + STRATUM_MAX_GAP, 10)]), 1);
        assert_eq!(count(&[(0, 10), (11 + STRATUM_MAX_GAP, 10)]), 2);
        let far: Vec<_> = (0..9).map(|n| (n << 20, 10)).collect();
        assert_eq!(count(&far), 4, "more do not run at once");
    }

    #[test]
    fn nothing_goes_along_in_front_of_what_somebody_waits_for() {
        let places = [(1, 50), (2, 5), (1, 10), (1, 30)].map(|(segment, at)| chunk(segment, at, 1).place);
        let mut last: Vec<u64> =
            last_of_each_segment(places.into_iter()).iter().map(|place| place.offset).collect();
        last.sort_unstable();
        assert_eq!(last, [5, 50]);
    }

    #[test]
    fn neighbouring_frames_of_one_segment_are_one_call() {
        let (a, b): (RepositoryName, RepositoryName) = ("a".parse().unwrap(), "b".parse().unwrap());
        let len = |wanted: &[(&RepositoryName, ChunkRef)]| {
            call_len(wanted.iter().map(|(name, chunk)| (*name, chunk)))
        };
        let (mib, far) = (1 << 20, UPSTREAM_MAX_GAP + 1);
        assert_eq!(len(&[(&a, chunk(1, 0, 10)), (&a, chunk(1, 10, 10))]), 2);
        assert_eq!(len(&[(&a, chunk(1, 0, 10)), (&b, chunk(1, 10, 10))]), 1, "another repository");
        assert_eq!(len(&[(&a, chunk(1, 0, 10)), (&a, chunk(2, 10, 10))]), 1, "another segment");
        assert_eq!(len(&[(&a, chunk(1, 0, 10)), (&a, chunk(1, 10 + far, 10))]), 1, "too far apart");
        let large: Vec<_> = (0..8u64).map(|n| (&a, chunk(1, n * mib, 1 << 20))).collect();
        assert_eq!(len(&large), 4, "four MiB at most");
        assert_eq!(len(&[(&a, chunk(1, 0, u32::MAX))]), 1, "however large, the first is taken");
        let many: Vec<_> = (0..2_000u64).map(|n| (&a, chunk(1, n * 10, 10))).collect();
        assert_eq!(len(&many), UPSTREAM_MAX_CHUNKS);
        assert_eq!(len(&[]), 0);
    }
}
