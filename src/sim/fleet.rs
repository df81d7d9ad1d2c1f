//! The simulated machines: the node's own decisions over compact views that all members of a cell share.
//!
//! What surrounds [`Node`] here is what the driver is in an agent: it turns outputs into messages and messages into
//! inputs, and decides nothing.

use super::layout::Layout;
use super::liar::Liar;
use super::network::Handle;
use super::reader::{Outcome, Reader};
use super::scenario::Scenario;
use crate::mesh::proto::{
    Answer, Ask, Chunk, Content, Counts, Failure, Holders, Input, Nearness, Node, Outbox, Output, PartBytes,
    Peer, Peers, Segment, Settings, Slice, Source, best_members, lease_cells, prefetch, prefetch_list,
    prefetch_value,
};
use crate::model::{Class, Generator, Time, mix};
use std::sync::Arc;

/// Ranks of homes that are known; the core asks for no more by default.
const RANKS: usize = 16;
/// Cells that are known to hold a lease, and in whose place; the core asks for no more by default.
const LEASE_PLACES: usize = 3;
/// Contacts in other cells that a node knows.
const CONTACTS_MAX: usize = 16;

/// Who is where, and the homes of all slices in all cells.
#[derive(Debug)]
pub(super) struct Map {
    nodes: u32,
    cells: u32,
    cells_per_region: u32,
    slices: u32,
    /// By node: asked for with every message.
    cell_of: Vec<u32>,
    /// By cell, slice and rank.
    homes: Vec<u32>,
    /// Homes of a slice in a cell: cells with fewer members have fewer.
    ranks: usize,
    /// By region and slice: the cell that holds the lease, and those that would in its place.
    lease_cells: Vec<u32>,
    /// As many of them, at most all of a region.
    lease_places: usize,
    /// By cell.
    contacts: Vec<Vec<Peer>>,
}

impl Map {
    pub(super) fn new(scenario: &Scenario, seed: u64) -> Self {
        let (nodes, cells, slices) = (scenario.fleet.nodes, scenario.cells(), scenario.slices());
        let ranks = RANKS.min((nodes / cells) as usize);
        let mut map = Self {
            nodes,
            cells,
            cells_per_region: scenario.fleet.cells_per_region,
            slices,
            cell_of: Vec::with_capacity(nodes as usize),
            homes: Vec::with_capacity(cells as usize * slices as usize * ranks),
            ranks,
            lease_cells: Vec::new(),
            lease_places: LEASE_PLACES.min(scenario.fleet.cells_per_region as usize),
            contacts: Vec::new(),
        };
        let salt = mix(seed);
        let slice_key = |slice: u32| mix(salt ^ u64::from(slice));
        for cell in 0..cells {
            let members = map.members_of(cell);
            map.cell_of.extend(members.clone().map(|_| cell));
            let keys: Vec<(u64, u16)> =
                members.clone().map(|node| (mix(!salt ^ u64::from(node)), 100)).collect();
            for slice in 0..slices {
                let best = best_members(slice_key(slice), &keys, ranks);
                let first = members.start;
                map.homes.extend(best.into_iter().map(|index| first + u32::try_from(index).unwrap_or(0)));
            }
            let others = (1..cells).map(|step| (cell + step) % cells).take(CONTACTS_MAX);
            map.contacts.push(others.map(|other| Peer(map.members_of(other).start)).collect());
        }
        for region in 0..scenario.fleet.regions {
            let first = region * map.cells_per_region;
            for slice in 0..slices {
                let keys = (first..first + map.cells_per_region).map(|cell| mix(salt ^ mix(u64::from(cell))));
                let places = lease_cells(slice_key(slice), keys).into_iter().take(map.lease_places);
                map.lease_cells.extend(places.map(|cell| first + u32::try_from(cell).unwrap_or(0)));
            }
        }
        map
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        let contacts = self.contacts.iter().map(Vec::capacity).sum::<usize>();
        (self.cell_of.capacity() + self.homes.capacity() + self.lease_cells.capacity() + contacts)
            * size_of::<u32>()
    }

    /// The cell of a node. The stratum, whose number follows the last node's, lies outside of all cells.
    pub(super) fn cell_of(&self, node: u32) -> u32 {
        self.cell_of.get(node as usize).copied().unwrap_or(self.cells)
    }

    fn members_of(&self, cell: u32) -> std::ops::Range<u32> {
        let start = |cell: u32| {
            u32::try_from(u64::from(cell) * u64::from(self.nodes) / u64::from(self.cells)).unwrap_or(u32::MAX)
        };
        start(cell)..start(cell + 1)
    }

    pub(super) fn region_of(&self, node: u32) -> u32 {
        self.cell_of(node) / self.cells_per_region
    }

    fn same_region(&self, a: u32, b: u32) -> bool {
        if self.cells == self.cells_per_region {
            return true;
        }
        self.region_of(a) == self.region_of(b)
    }

    fn home(&self, cell: u32, slice: Slice, rank: usize) -> Option<Peer> {
        if rank >= self.ranks {
            return None;
        }
        let row = cell as usize * self.slices as usize + slice.0 as usize;
        self.homes.get(row * self.ranks + rank).copied().map(Peer)
    }
}

/// What one node sees of the map.
#[derive(Clone, Debug)]
pub(super) struct CellView {
    map: Arc<Map>,
    me: u32,
    cell: u32,
    members: (u32, u32),
    /// Who is believed to be dead; all others are alive.
    down: Vec<u32>,
}

impl CellView {
    fn new(map: &Arc<Map>, me: u32) -> Self {
        let cell = map.cell_of(me);
        let members = map.members_of(cell);
        Self { map: Arc::clone(map), me, cell, members: (members.start, members.end), down: Vec::new() }
    }

    /// Calls the homes of `slice` into the processor's cache.
    fn prefetch(&self, slice: Slice) {
        let row = self.cell as usize * self.map.slices as usize + slice.0 as usize;
        prefetch(self.map.homes.as_ptr().wrapping_add(row * self.map.ranks));
    }

    /// The cells of the region that would hold the lease, best first.
    fn lease_cells(&self, slice: Slice) -> &[u32] {
        let region = self.cell / self.map.cells_per_region;
        let row = region as usize * self.map.slices as usize + slice.0 as usize;
        let (start, places) = (row * self.map.lease_places, self.map.lease_places);
        self.map.lease_cells.get(start..start + places).unwrap_or_default()
    }

    /// The home of the given rank among the living.
    fn living_home(&self, cell: u32, slice: Slice, rank: usize) -> Option<Peer> {
        if self.down.is_empty() {
            return self.map.home(cell, slice, rank);
        }
        (0..).map_while(|rank| self.map.home(cell, slice, rank)).filter(|peer| self.is_up(*peer)).nth(rank)
    }
}

impl Peers for CellView {
    fn me(&self) -> Peer {
        Peer(self.me)
    }

    fn nearness(&self, peer: Peer) -> Nearness {
        if (self.members.0..self.members.1).contains(&peer.0) {
            Nearness::Cell
        } else if self.map.same_region(self.me, peer.0) {
            Nearness::Region
        } else {
            Nearness::Far
        }
    }

    fn home(&self, slice: Slice, rank: usize) -> Option<Peer> {
        self.living_home(self.cell, slice, rank)
    }

    fn lease_home(&self, slice: Slice, rank: usize) -> Option<Peer> {
        self.living_home(*self.lease_cells(slice).first()?, slice, rank)
    }

    fn home_elsewhere(&self, slice: Slice, place: usize) -> Option<Peer> {
        let others = self.lease_cells(slice).iter().filter(|cell| **cell != self.cell);
        others.filter_map(|cell| self.living_home(*cell, slice, 0)).nth(place)
    }

    fn is_up(&self, peer: Peer) -> bool {
        peer.0 < self.map.nodes && !self.down.contains(&peer.0)
    }

    fn has_other_regions(&self) -> bool {
        self.map.cells > self.map.cells_per_region
    }

    fn members(&self) -> usize {
        (self.members.1 - self.members.0) as usize
    }

    fn member(&self, index: usize) -> Peer {
        Peer(self.members.0 + u32::try_from(index).unwrap_or(0))
    }

    fn contacts(&self) -> &[Peer] {
        &self.map.contacts[self.cell as usize]
    }
}

/// An [`Answer`] as it travels. Millions are on their way at once and few name anybody, so the names lie apart.
#[derive(Clone, Debug)]
pub(super) enum Told {
    Wait,
    Busy(Option<Box<Holders>>),
    Missing(Option<Box<Holders>>),
}

impl From<Answer> for Told {
    fn from(answer: Answer) -> Self {
        let apart = |holders: Holders| (!holders.is_empty()).then(|| Box::new(holders));
        match answer {
            Answer::Wait => Self::Wait,
            Answer::Busy { holders } => Self::Busy(apart(holders)),
            Answer::Missing { holders } => Self::Missing(apart(holders)),
        }
    }
}

impl From<Told> for Answer {
    fn from(told: Told) -> Self {
        let whole = |holders: Option<Box<Holders>>| holders.map_or_else(Holders::new, |holders| *holders);
        match told {
            Told::Wait => Self::Wait,
            Told::Busy(holders) => Self::Busy { holders: whole(holders) },
            Told::Missing(holders) => Self::Missing { holders: whole(holders) },
        }
    }
}

/// What reaches a machine. Small, for it is moved from list to list: what is long lies apart.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// The node begins: all of the content is wanted so urgently, or only what is read, and by then.
    WantAll(Option<Class>, Time),
    /// A peer asks.
    Ask { from: u32, chunk: Chunk, class: Class },
    /// A peer withdraws its ask.
    Withdraw { from: u32, chunk: Chunk },
    /// A peer answers without data.
    Answer { from: u32, chunk: Chunk, answer: Told, load: u8 },
    /// The last byte of a chunk arrived.
    Data { chunk: Chunk, from: Source },
    /// The last byte of something else arrived.
    Wrong { chunk: Chunk, from: u32 },
    /// A liar says `Wait` again.
    Stall { to: u32, chunk: Chunk },
    /// The last byte of an upload left. Meanwhile the ask may have been withdrawn, and its number given to another.
    Sent { ask: Ask, to: u32, chunk: Chunk },
    /// A peer tells what it holds.
    Possession { from: u32, slices: Box<[(Slice, u64)]> },
    /// The DHT answers.
    Providers { segment: Segment, peers: Box<[Peer]> },
    /// The deadline that was asked for.
    Wake,
    /// A peer is believed to be dead, or alive again.
    Down(u32),
    /// See [`Event::Down`].
    Up(u32),
}

impl Event {
    fn chunk(&self) -> Option<Chunk> {
        match self {
            Self::Ask { chunk, .. }
            | Self::Withdraw { chunk, .. }
            | Self::Answer { chunk, .. }
            | Self::Data { chunk, .. }
            | Self::Wrong { chunk, .. }
            | Self::Stall { chunk, .. } => Some(*chunk),
            _ => None,
        }
    }

    /// The stream of a message between two nodes: all about one chunk goes on one, whose messages keep their order.
    pub(super) fn stream(&self) -> u32 {
        match self {
            Self::Ask { chunk, .. } | Self::Withdraw { chunk, .. } | Self::Answer { chunk, .. } => chunk.0,
            _ => u32::MAX,
        }
    }
}

/// What a machine causes beyond itself.
#[derive(Clone, Debug)]
pub(super) enum Effect {
    /// A message to a peer.
    Send(u32, Event),
    /// The bytes of a chunk begin to move to a peer.
    Serve { ask: Ask, to: u32, chunk: Chunk },
    /// They stop, if they still move.
    StopServing(Option<Handle>),
    /// A request to the stratum.
    Upstream(Chunk),
    /// It is withdrawn.
    StopUpstream(Chunk),
    /// A look-up in the DHT.
    Find(Segment),
    /// An announcement in the DHT.
    Announce(Segment),
    /// Wake me then.
    WakeAt(Time),
    /// Let this happen to me after so many milliseconds.
    Later(u32, Event),
    /// I have everything, or gave up what I have not.
    Ended,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Incoming {
    pub(super) peer: u32,
    pub(super) chunk: Chunk,
    pub(super) serving: bool,
    /// The transfer, once it began.
    pub(super) flow: Option<Handle>,
}

/// A node with its driver.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) me: u32,
    node: Node<CellView, Layout, Generator>,
    /// Asks under way, by number.
    incoming: Vec<Option<Incoming>>,
    free: Vec<u32>,
    wake: Time,
    chunks: u32,
    reader: Option<Reader>,
    /// What it does instead of answering, if it lies.
    pub(super) liar: Option<Liar>,
    /// Dead and not replaced yet: nothing reaches it.
    pub(super) dead: bool,
    /// Chunks delivered and given up.
    pub(super) delivered: u32,
    pub(super) given_up: u32,
    /// Bytes given to peers.
    pub(super) given: u64,
    /// Bytes taken from peers and from the stratum.
    pub(super) from_peers: u64,
    pub(super) from_strata: u64,
    /// When the last chunk was delivered or given up.
    pub(super) finished: Option<Time>,
}

impl Machine {
    pub(super) fn new(
        me: u32,
        map: &Arc<Map>,
        content: Layout,
        settings: &Arc<Settings>,
        reader: Option<Reader>,
        seed: u64,
    ) -> Self {
        let view = CellView::new(map, me);
        let generator = Generator::stream(seed, u64::from(me));
        Self {
            me,
            chunks: content.chunks(),
            node: Node::new(view, content, generator, Arc::clone(settings)),
            incoming: Vec::new(),
            free: Vec::new(),
            wake: Time::NEVER,
            reader,
            liar: None,
            dead: false,
            delivered: 0,
            given_up: 0,
            given: 0,
            from_peers: 0,
            from_strata: 0,
            finished: None,
        }
    }

    /// If somebody reads on it, how it was if he has all.
    pub(super) fn reading(&self) -> Option<Option<Outcome>> {
        let content = self.node.content();
        self.reader.as_ref().map(|reader| reader.outcome(|chunk| content.len_bytes(chunk)))
    }

    /// Calls the machine into the processor's cache: the first of three calls, each for what the one before it found.
    pub(super) fn prefetch(&self) {
        prefetch_value(self);
    }

    /// Calls what `event` will be looked up in.
    pub(super) fn prefetch_tables(&self, event: &Event) {
        prefetch_list(&self.incoming);
        let peer = match event {
            Event::Ask { from, .. } | Event::Answer { from, .. } => Some(Peer(*from)),
            Event::Data { from: Source::Peer(peer), .. } => Some(*peer),
            _ => None,
        };
        let chunk = event.chunk();
        self.node.prefetch_tables(chunk, peer);
        if let Some(chunk) = chunk {
            self.node.peers().prefetch(self.node.content().slice(chunk));
        }
    }

    /// Calls the fetch that `event` is about.
    pub(super) fn prefetch_fetch(&self, event: &Event) {
        if let Some(chunk) = event.chunk() {
            self.node.prefetch_fetch(chunk);
        }
    }

    /// What it takes in memory, by part.
    pub(super) fn footprint(&self) -> impl Iterator<Item = PartBytes> {
        let asks = self.incoming.capacity() * size_of::<Option<Incoming>>()
            + self.free.capacity() * size_of::<u32>()
            + self.node.peers().down.capacity() * size_of::<u32>();
        let driver = size_of::<Self>() - size_of_val(&self.node);
        let reader = self.reader.as_ref().map_or(0, Reader::heap_bytes);
        self.node.footprint().into_iter().chain([("driver", driver + asks + reader)])
    }

    /// What its node decided how often.
    pub(super) fn counts(&self) -> Counts {
        self.node.counts()
    }

    /// Whether its node gets something or looks for it.
    pub(super) fn is_fetching(&self) -> bool {
        self.node.is_fetching()
    }

    /// Lets the node react to an event. `out` is empty before and after.
    pub(super) fn react(
        &mut self,
        now: Time,
        event: Event,
        out: &mut Outbox,
        effects: &mut Vec<(u32, Effect)>,
    ) {
        match event {
            Event::WantAll(class, deadline) => {
                self.read_on(now, deadline, out);
                if let Some(class) = class {
                    for chunk in (0..self.chunks).map(Chunk) {
                        self.node.handle(now, Input::Wanted { chunk, class, deadline }, out);
                    }
                }
            }
            Event::Ask { from, chunk, class } => {
                let ask = self.begin(from, chunk);
                if self.liar.is_some() {
                    self.lie(ask, from, chunk, effects);
                } else {
                    self.node.handle(now, Input::Asked { peer: Peer(from), ask, chunk, class }, out);
                }
            }
            Event::Stall { to, chunk } => self.stall(to, chunk, effects),
            Event::Wrong { chunk, from } => {
                let (from, why) = (Source::Peer(Peer(from)), Failure::WrongBytes);
                self.node.handle(now, Input::Failed { chunk, from, why }, out);
            }
            Event::Withdraw { from, chunk } => {
                let Some(ask) = self.ask_of(from, chunk) else { return };
                if let Some(incoming) = self.end(ask).filter(|incoming| incoming.serving) {
                    effects.push((self.me, Effect::StopServing(incoming.flow)));
                }
                self.node.handle(now, Input::AskGone { ask }, out);
            }
            Event::Answer { from, chunk, answer, load } => {
                let answer = answer.into();
                self.node.handle(now, Input::Told { peer: Peer(from), chunk, answer, load }, out);
            }
            Event::Data { chunk, from } => {
                let bytes = u64::from(self.node.content().len_bytes(chunk));
                match from {
                    Source::Peer(_) => self.from_peers += bytes,
                    Source::Strata => self.from_strata += bytes,
                }
                self.node.handle(now, Input::Arrived { chunk, from }, out);
            }
            Event::Sent { ask, to, chunk } => {
                let is_it = |incoming: &mut Incoming| {
                    incoming.serving && (incoming.peer, incoming.chunk) == (to, chunk)
                };
                if !self.incoming_mut(ask).is_some_and(is_it) {
                    return;
                }
                if let Some(incoming) = self.end(ask) {
                    self.given += u64::from(self.node.content().len_bytes(incoming.chunk));
                    self.node.handle(now, Input::Served { ask, ok: true }, out);
                }
            }
            Event::Providers { segment, peers } => {
                self.node.handle(now, Input::Providers { segment, peers: peers.into_vec() }, out);
            }
            Event::Possession { from, slices } => {
                let slices = slices.into_vec();
                self.node.handle(now, Input::Possession { peer: Peer(from), slices }, out);
            }
            Event::Wake => {
                if self.wake != now {
                    return; // An earlier wake-up was asked for since.
                }
                self.wake = Time::NEVER;
                self.node.handle(now, Input::Tick, out);
            }
            Event::Down(peer) => self.peer_down(now, peer, out),
            Event::Up(peer) => {
                self.node.peers_mut().down.retain(|other| *other != peer);
                self.node.handle(now, Input::PeerUp { peer: Peer(peer) }, out);
            }
        }
        loop {
            for output in out.drain() {
                self.carry_out(now, output, effects);
            }
            let reader = self.reader.as_ref().filter(|reader| reader.may_go_on(now));
            let Some(until) = reader.map(Reader::deadline) else { break };
            self.read_on(now, until, out);
        }
    }

    /// The reader, if there is one, wants what it reads next.
    fn read_on(&mut self, now: Time, deadline: Time, out: &mut Outbox) {
        let Some(reader) = &mut self.reader else { return };
        let content = self.node.content();
        for (chunk, class) in reader.go_on(now, deadline, |chunk| content.len_bytes(chunk)) {
            self.node.handle(now, Input::Wanted { chunk, class, deadline }, out);
        }
    }

    fn peer_down(&mut self, now: Time, peer: u32, out: &mut Outbox) {
        self.node.peers_mut().down.push(peer);
        self.node.handle(now, Input::PeerDown { peer: Peer(peer) }, out);
        for number in 0..self.incoming.len() {
            if self.incoming[number].is_some_and(|incoming| incoming.peer == peer) {
                let ask = Ask(u32::try_from(number).unwrap_or(u32::MAX));
                let serving = self.end(ask).is_some_and(|incoming| incoming.serving);
                let input = if serving { Input::Served { ask, ok: false } } else { Input::AskGone { ask } };
                self.node.handle(now, input, out);
            }
        }
    }

    /// After all events of a moment: when to be woken, rounded up to a later step.
    pub(super) fn rest(&mut self, now: Time, step_ns: u64, effects: &mut Vec<(u32, Effect)>) {
        let read = self.reader.as_ref().and_then(|reader| reader.next_deadline(now));
        let Some(next) = self.node.next_deadline().into_iter().chain(read).min() else { return };
        let step = next.as_nanos().div_ceil(step_ns).max(now.as_nanos() / step_ns + 1);
        let at = Time::from_nanos(step.saturating_mul(step_ns));
        if at < self.wake {
            self.wake = at;
            effects.push((self.me, Effect::WakeAt(at)));
        }
    }

    /// Gives an ask its number.
    fn begin(&mut self, peer: u32, chunk: Chunk) -> Ask {
        let number = self.free.pop().unwrap_or_else(|| {
            self.incoming.push(None);
            u32::try_from(self.incoming.len() - 1).unwrap_or(u32::MAX)
        });
        self.incoming[number as usize] = Some(Incoming { peer, chunk, serving: false, flow: None });
        Ask(number)
    }

    /// The ask of a peer for a chunk.
    pub(super) fn ask_of(&self, peer: u32, chunk: Chunk) -> Option<Ask> {
        let is_it = |incoming: &Option<Incoming>| {
            incoming.is_some_and(|incoming| incoming.peer == peer && incoming.chunk == chunk)
        };
        let index = self.incoming.iter().position(is_it)?;
        u32::try_from(index).ok().map(Ask)
    }

    pub(super) fn incoming_mut(&mut self, ask: Ask) -> Option<&mut Incoming> {
        self.incoming.get_mut(ask.0 as usize)?.as_mut()
    }

    pub(super) fn end(&mut self, ask: Ask) -> Option<Incoming> {
        let incoming = self.incoming.get_mut(ask.0 as usize)?.take()?;
        self.free.push(ask.0);
        Some(incoming)
    }

    fn carry_out(&mut self, now: Time, output: Output, effects: &mut Vec<(u32, Effect)>) {
        let me = self.me;
        let effect = match output {
            Output::Ask { peer, chunk, class } => Effect::Send(peer.0, Event::Ask { from: me, chunk, class }),
            Output::Cancel { peer, chunk } => Effect::Send(peer.0, Event::Withdraw { from: me, chunk }),
            Output::Serve { ask } => {
                let Some(Some(incoming)) = self.incoming.get_mut(ask.0 as usize) else { return };
                incoming.serving = true;
                Effect::Serve { ask, to: incoming.peer, chunk: incoming.chunk }
            }
            Output::Answer { ask, answer, load } => {
                let ended = answer != Answer::Wait;
                let Some(Some(incoming)) = self.incoming.get(ask.0 as usize).copied() else { return };
                if ended {
                    self.end(ask);
                }
                let event = Event::Answer { from: me, chunk: incoming.chunk, answer: answer.into(), load };
                Effect::Send(incoming.peer, event)
            }
            Output::FetchUpstream { chunk } => Effect::Upstream(chunk),
            Output::CancelUpstream { chunk } => Effect::StopUpstream(chunk),
            Output::FindProviders { segment } => Effect::Find(segment),
            Output::Announce { segment } => Effect::Announce(segment),
            Output::Deliver { chunk } => {
                if let Some(reader) = &mut self.reader
                    && !reader.note(chunk)
                {
                    return; // Wanted twice.
                }
                self.delivered += 1;
                return self.note_end(now, effects);
            }
            Output::GiveUp { .. } => {
                self.given_up += 1;
                return self.note_end(now, effects);
            }
            Output::TellPossession { to, slices } => {
                Effect::Send(to.0, Event::Possession { from: me, slices: slices.into_boxed_slice() })
            }
            // Nobody publishes, and the core itself asks no liar again.
            Output::Spread { .. } | Output::Distrust { .. } => return,
        };
        effects.push((me, effect));
    }

    fn note_end(&mut self, now: Time, effects: &mut Vec<(u32, Effect)>) {
        if self.delivered + self.given_up == self.chunks {
            self.finished = Some(now);
            effects.push((self.me, Effect::Ended));
        }
    }
}
