//! The simulated machines: the node's own decisions over compact views that all members of a cell share.
//!
//! What surrounds [`Node`] here is what the driver is in an agent: it turns outputs into messages and messages into
//! inputs, and decides nothing.

use super::layout::Layout;
use super::liar::Liar;
use super::line::{self, Glance, Line, Spare};
use super::network::Handle;
use super::notices::Notices;
use super::reader::{Outcome, Reader};
use super::scenario::Scenario;
use crate::mesh::proto::{
    Answer, Ask, Chunk, Content, Counts, Failure, Holders, Input, Nearness, NewsId, Node, Outbox, Output,
    PartBytes, Peer, Peers, Segment, Settings, Slice, Source, best_members, lease_cells, prefetch,
    prefetch_list,
};
use crate::model::{Class, Generator, Rng as _, Time, mix};
use std::sync::Arc;

/// Ranks of homes that are known; the core asks for no more by default.
const RANKS: usize = 16;
/// Cells that are known to hold a lease, and in whose place; the core asks for no more by default.
const LEASE_PLACES: usize = 3;
/// Members of another cell of the region that a node knows, and members of other cells and of other regions in all: as the node's
/// own table of peers has them.
const CONTACTS_OF_CELL: usize = 3;
const CONTACTS_MAX: usize = 64;
const FAR_CONTACTS: usize = 16;
/// Sets the draw of the contacts apart from all other randomness.
const CONTACTS: u64 = 0x636f_6e74_6163;
/// The one document that spreads.
const ROOT: NewsId = NewsId(1);

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
    /// Who believes whom to be dead.
    pub(super) notices: Notices,
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
            notices: Notices::new(scenario.somebody_dies().then_some(nodes), seed),
        };
        let keys = scenario.keys.as_deref().cloned().unwrap_or_default();
        let salt = mix(seed);
        let given = |keys: &[u64], index: u32| keys.get(index as usize).copied();
        let slice_key =
            |slice: u32| given(&keys.slices, slice).unwrap_or_else(|| mix(salt ^ u64::from(slice)));
        let node_key = |node: u32| given(&keys.nodes, node).unwrap_or_else(|| mix(!salt ^ u64::from(node)));
        let cell_key =
            |cell: u32| given(&keys.cells, cell).unwrap_or_else(|| mix(salt ^ mix(u64::from(cell))));
        for cell in 0..cells {
            let members = map.members_of(cell);
            map.cell_of.extend(members.clone().map(|_| cell));
            let keys: Vec<(u64, u16)> = members.clone().map(|node| (node_key(node), 100)).collect();
            for slice in 0..slices {
                let best = best_members(slice_key(slice), &keys, ranks);
                let first = members.start;
                map.homes.extend(best.into_iter().map(|index| first + u32::try_from(index).unwrap_or(0)));
            }
        }
        for cell in 0..cells {
            let contacts = map.draw_contacts(cell, Generator::stream(seed, CONTACTS ^ u64::from(cell) << 24));
            map.contacts.push(contacts);
        }
        for region in 0..scenario.fleet.regions {
            let first = region * map.cells_per_region;
            for slice in 0..slices {
                let keys = (first..first + map.cells_per_region).map(cell_key);
                let places = lease_cells(slice_key(slice), keys).into_iter().take(map.lease_places);
                map.lease_cells.extend(places.map(|cell| first + u32::try_from(cell).unwrap_or(0)));
            }
        }
        map
    }

    /// Whom the members of a cell know in others: some of each cell of the region, and some of other regions.
    fn draw_contacts(&self, cell: u32, mut rng: Generator) -> Vec<Peer> {
        let per_region = self.cells_per_region;
        let (own, first) = (cell % per_region, cell - cell % per_region);
        let is_one_region = self.cells == per_region;
        let near_max = if is_one_region { CONTACTS_MAX } else { CONTACTS_MAX - FAR_CONTACTS };
        let mut contacts = Vec::new();
        for step in 1..per_region {
            if contacts.len() >= near_max {
                break;
            }
            let members = self.members_of(first + (own + step) % per_region);
            let count = CONTACTS_OF_CELL.min(members.len());
            for number in 0..count {
                // In thirds of the cell, so that none is drawn twice.
                let third = members.len() / count;
                let place = number * third + rng.below(third.max(1));
                contacts.push(Peer(members.start + u32::try_from(place).unwrap_or(0)));
            }
        }
        contacts.truncate(near_max);
        if is_one_region {
            return contacts;
        }
        let mut far = Vec::new();
        for _ in 0..4 * CONTACTS_MAX {
            let other = rng.below(self.nodes as usize);
            let peer = Peer(u32::try_from(other).unwrap_or(0));
            if self.region_of(peer.0) != cell / per_region && !far.contains(&peer) {
                far.push(peer);
            }
            if contacts.len() + far.len() >= CONTACTS_MAX {
                break;
            }
        }
        contacts.extend(far);
        contacts
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        let contacts = self.contacts.iter().map(Vec::capacity).sum::<usize>();
        (self.cell_of.capacity() + self.homes.capacity() + self.lease_cells.capacity() + contacts)
            * size_of::<u32>()
            + self.notices.heap_bytes()
    }

    /// Whether one node believes that another is dead.
    fn is_away(&self, viewer: u32, node: u32) -> bool {
        self.notices.is_away(viewer, node, || self.cell_of(viewer) == self.cell_of(node))
    }

    /// Whether what one node sends another is for one that died, whose place another has by now: then it reaches nobody.
    pub(super) fn is_mistaken(&self, from: u32, to: u32) -> bool {
        !self.notices.is_quiet()
            && self.notices.is_mistaken(from, to, || self.cell_of(from) == self.cell_of(to))
    }

    /// The cell of a node. The stratum, whose number follows the last node's, lies outside of all cells.
    pub(super) fn cell_of(&self, node: u32) -> u32 {
        self.cell_of.get(node as usize).copied().unwrap_or(self.cells)
    }

    pub(super) fn members_of(&self, cell: u32) -> std::ops::Range<u32> {
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
}

impl CellView {
    fn new(map: &Arc<Map>, me: u32) -> Self {
        let cell = map.cell_of(me);
        let members = map.members_of(cell);
        Self { map: Arc::clone(map), me, cell, members: (members.start, members.end) }
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
        if self.map.notices.is_quiet() {
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
        peer.0 < self.map.nodes && (self.map.notices.is_quiet() || !self.map.is_away(self.me, peer.0))
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

/// What an answer without data says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says {
    Wait,
    Busy,
    Missing,
}

/// Whom an answer names, as it travels. Millions are on their way at once and nearly all name a few, so these lie in it.
#[derive(Clone, Debug)]
pub(super) enum Named {
    Few { count: u8, peers: [u32; 4] },
    Many(Box<Holders>),
}

impl From<Holders> for Named {
    fn from(holders: Holders) -> Self {
        let mut peers = [0; 4];
        if holders.len() > peers.len() {
            return Self::Many(Box::new(holders));
        }
        for (place, peer) in peers.iter_mut().zip(&holders) {
            *place = peer.0;
        }
        Self::Few { count: u8::try_from(holders.len()).unwrap_or(0), peers }
    }
}

impl From<Named> for Holders {
    fn from(named: Named) -> Self {
        match named {
            Named::Few { count, peers } => peers[..usize::from(count)].iter().copied().map(Peer).collect(),
            Named::Many(holders) => *holders,
        }
    }
}

/// The answer that is said so.
fn said(says: Says, named: Named) -> Answer {
    match says {
        Says::Wait => Answer::Wait,
        Says::Busy => Answer::Busy { holders: named.into() },
        Says::Missing => Answer::Missing { holders: named.into() },
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
    Answer { from: u32, chunk: Chunk, says: Says, load: u8, named: Named },
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
    /// The new root comes, from a peer or from whoever published it.
    News(Option<u32>),
    /// The deadline that was asked for.
    Wake,
    /// A peer is believed to be dead, or alive again.
    Down(u32),
    /// See [`Event::Down`].
    Up(u32),
}

/// What kinds of events there are, as they are counted.
pub(super) const EVENT_KINDS: [&str; 16] = [
    "begin",
    "ask",
    "withdraw",
    "wait",
    "busy, nobody named",
    "busy",
    "missing",
    "data",
    "wrong",
    "stall",
    "sent",
    "possession",
    "providers",
    "wake",
    "down, up",
    "news",
];

impl Event {
    /// What `from` says instead of data.
    pub(super) fn answer(from: u32, chunk: Chunk, answer: Answer, load: u8) -> Self {
        let (says, holders) = match answer {
            Answer::Wait => (Says::Wait, Holders::new()),
            Answer::Busy { holders } => (Says::Busy, holders),
            Answer::Missing { holders } => (Says::Missing, holders),
        };
        Self::Answer { from, chunk, says, load, named: holders.into() }
    }

    /// Its place in [`EVENT_KINDS`].
    pub(super) fn kind(&self) -> usize {
        match self {
            Self::WantAll(..) => 0,
            Self::Ask { .. } => 1,
            Self::Withdraw { .. } => 2,
            Self::Answer { says: Says::Wait, .. } => 3,
            Self::Answer { says: Says::Busy, named: Named::Few { count: 0, .. }, .. } => 4,
            Self::Answer { says: Says::Busy, .. } => 5,
            Self::Answer { says: Says::Missing, .. } => 6,
            Self::Data { .. } => 7,
            Self::Wrong { .. } => 8,
            Self::Stall { .. } => 9,
            Self::Sent { .. } => 10,
            Self::Possession { .. } => 11,
            Self::Providers { .. } => 12,
            Self::Wake => 13,
            Self::Down(_) | Self::Up(_) => 14,
            Self::News(_) => 15,
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
    /// The new root for a peer.
    Spread(u32),
    /// The new root came here for the first time.
    Heard,
    /// Let this happen to me after so many milliseconds.
    Later(u32, Event),
    /// I have everything, or gave up what I have not.
    Ended,
}

/// What the machines of one part cause in a step, in their order.
#[derive(Debug)]
pub(super) struct Effects {
    /// Machines in each part.
    each: u32,
    /// The machine whose messages are delivered first.
    pub(super) first: u32,
    /// Messages by the part of the receiver: those of the machines from `first` on, then those of the others.
    pub(super) mail: [Vec<Line>; 2],
    pub(super) spare: Spare,
    /// All else.
    pub(super) others: Vec<(u32, Effect)>,
    /// All, if somebody wants to look at them.
    pub(super) seen: Option<Vec<(u32, Effect)>>,
}

impl Effects {
    /// Nothing yet, with so many parts of so many machines.
    pub(super) fn new(parts: usize, each: u32) -> Self {
        let lines = || (0..parts).map(|_| Line::default()).collect();
        Self { each, first: 0, mail: [lines(), lines()], spare: Spare::new(), others: Vec::new(), seen: None }
    }

    pub(super) fn push(&mut self, (from, effect): (u32, Effect)) {
        if let Some(seen) = &mut self.seen {
            seen.push((from, effect.clone()));
        }
        match effect {
            Effect::Send(to, event) => {
                let mail = &mut self.mail[usize::from(from < self.first)];
                let part = if mail.len() == 1 { 0 } else { (to / self.each) as usize };
                mail[part].push(to, event, &mut self.spare);
            }
            other => self.others.push((from, other)),
        }
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        self.mail.iter().flatten().map(Line::heap_bytes).sum::<usize>()
            + line::heap_bytes(&self.spare)
            + self.others.capacity() * size_of::<(u32, Effect)>()
    }
}

/// An ask under way, or a place for one. There are some dozens in each machine, so it is as small as it can be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Incoming {
    /// Who asks, or nobody.
    peer: u32,
    /// The chunk, and in the highest bit whether it is served; of a free place the next free one.
    rest: u32,
    /// The transfer, once it began.
    pub(super) flow: Option<Handle>,
}

/// In the place of a peer, or of the next free place.
const NOBODY: u32 = u32::MAX;
/// Chunks have smaller numbers.
const SERVING: u32 = 1 << 31;

impl Incoming {
    fn new(peer: u32, chunk: Chunk) -> Self {
        Self { peer, rest: chunk.0, flow: None }
    }

    pub(super) fn peer(&self) -> u32 {
        self.peer
    }

    pub(super) fn chunk(&self) -> Chunk {
        Chunk(self.rest & !SERVING)
    }

    /// Whether it is the ask of `peer` for `chunk`.
    pub(super) fn is(&self, peer: u32, chunk: Chunk) -> bool {
        self.peer == peer && self.chunk() == chunk
    }

    pub(super) fn is_served(&self) -> bool {
        self.rest & SERVING != 0
    }

    pub(super) fn serve(&mut self) {
        self.rest |= SERVING;
    }
}

/// A node with its driver.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Machine {
    // What nearly every event needs lies together, in front of what of the node does.
    pub(super) me: u32,
    chunks: u32,
    /// Asks under way, by number, and the place that was free last.
    incoming: Vec<Incoming>,
    free: u32,
    /// Whether it has the new root.
    heard: bool,
    /// Bytes given to peers.
    pub(super) given: u64,
    /// Bytes taken from peers and from the stratum.
    pub(super) from_peers: u64,
    pub(super) from_strata: u64,
    /// Chunks delivered and given up.
    pub(super) delivered: u32,
    pub(super) given_up: u32,
    reader: Option<Box<Reader>>,
    /// What it does instead of answering, if it lies.
    pub(super) liar: Option<Box<Liar>>,
    /// When the last chunk was delivered or given up.
    pub(super) finished: Option<Time>,
    /// Dead and not replaced yet: nothing reaches it.
    pub(super) dead: bool,
    node: Node<CellView, Layout, Generator>,
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
            free: NOBODY,
            reader: reader.map(Box::new),
            liar: None,
            dead: false,
            heard: false,
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

    /// Calls the machine into the processor's cache: the first of four calls, each for what the one before it found.
    pub(super) fn prefetch(&self) {
        prefetch(&raw const self.me);
        prefetch(&raw const self.dead);
        self.node.prefetch();
    }

    /// Calls the list of asks of others: the first of two calls for [`Self::incoming_mut`].
    pub(super) fn prefetch_asks(&self) {
        prefetch(&raw const self.incoming);
    }

    /// Calls an ask. The list should be in the cache by now.
    pub(super) fn prefetch_ask(&self, ask: Ask) {
        prefetch(self.incoming.as_ptr().wrapping_add(ask.0 as usize));
    }

    /// Calls what the event will be looked up in of which this is seen.
    pub(super) fn prefetch_tables(&self, glance: Glance) {
        let peer = match glance {
            Glance::Ask(_) => {
                self.node.prefetch_uploads();
                None
            }
            Glance::Sent(ask) => {
                self.node.prefetch_uploads();
                self.prefetch_ask(ask);
                None
            }
            Glance::Withdraw(_) => {
                self.node.prefetch_uploads();
                prefetch_list(&self.incoming);
                None
            }
            Glance::Answer(peer, _) => Some(peer),
            Glance::Data(peer, chunk) => {
                self.node.prefetch_end(chunk);
                peer
            }
            Glance::Wake => {
                self.node.prefetch_fetches();
                None
            }
            Glance::Other => None,
        };
        let chunk = glance.chunk();
        self.node.prefetch_tables(chunk, peer);
        if let Some(chunk) = chunk {
            self.node.peers().prefetch(self.node.content().slice(chunk));
        }
    }

    /// Calls the place of the fetch that it is about.
    pub(super) fn prefetch_slot(&self, glance: Glance) {
        if matches!(glance, Glance::Data(..)) {
            self.node.prefetch_noted();
        }
        if matches!(glance, Glance::Ask(_)) {
            self.prefetch_ask(Ask(self.free));
        }
        if let Some(chunk) = glance.chunk() {
            self.node.prefetch_slot(chunk);
        }
    }

    /// Calls the fetch that it is about.
    pub(super) fn prefetch_fetch(&self, glance: Glance) {
        if let Some(chunk) = glance.chunk() {
            self.node.prefetch_fetch(chunk);
        }
    }

    /// What it takes in memory, by part.
    pub(super) fn footprint(&self) -> impl Iterator<Item = PartBytes> {
        let asks = self.incoming.capacity() * size_of::<Incoming>();
        let driver = size_of::<Self>() - size_of_val(&self.node);
        let reader = self.reader.as_ref().map_or(0, |reader| size_of::<Reader>() + reader.heap_bytes());
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
    pub(super) fn react(&mut self, now: Time, event: Event, out: &mut Outbox, effects: &mut Effects) {
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
                if let Some(incoming) = self.end(ask).filter(Incoming::is_served) {
                    effects.push((self.me, Effect::StopServing(incoming.flow)));
                }
                self.node.handle(now, Input::AskGone { ask }, out);
            }
            Event::Answer { from, chunk, says, load, named } => {
                let answer = said(says, named);
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
                let is_it = |incoming: &mut Incoming| incoming.is_served() && incoming.is(to, chunk);
                if !self.incoming_mut(ask).is_some_and(is_it) {
                    return;
                }
                if let Some(incoming) = self.end(ask) {
                    self.given += u64::from(self.node.content().len_bytes(incoming.chunk()));
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
            Event::Wake => self.node.handle(now, Input::Tick, out),
            Event::News(from) => {
                if !std::mem::replace(&mut self.heard, true) {
                    effects.push((self.me, Effect::Heard));
                }
                self.node.handle(now, Input::NewsSeen { news: ROOT, from: from.map(Peer) }, out);
            }
            Event::Down(peer) => self.peer_down(now, peer, out),
            Event::Up(peer) => self.node.handle(now, Input::PeerUp { peer: Peer(peer) }, out),
        }
        loop {
            for output in out.drain() {
                self.carry_out(now, output, effects);
            }
            let reader = self.reader.as_ref().filter(|reader| reader.may_go_on(now));
            let Some(until) = reader.map(|reader| reader.deadline()) else { break };
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
        self.node.handle(now, Input::PeerDown { peer: Peer(peer) }, out);
        for number in 0..self.incoming.len() {
            if self.incoming[number].peer == peer {
                let ask = Ask(u32::try_from(number).unwrap_or(u32::MAX));
                let serving = self.end(ask).is_some_and(|incoming| incoming.is_served());
                let input = if serving { Input::Served { ask, ok: false } } else { Input::AskGone { ask } };
                self.node.handle(now, input, out);
            }
        }
    }

    /// After all events of a moment: the step in which it must be woken, if nothing happens before.
    pub(super) fn rest(&self, now: Time, step_ns: u64) -> Option<u64> {
        let read = self.reader.as_ref().and_then(|reader| reader.next_deadline(now));
        let next = self.node.next_deadline().into_iter().chain(read).min()?;
        Some(next.as_nanos().div_ceil(step_ns).max(now.as_nanos() / step_ns + 1))
    }

    /// Gives an ask its number.
    fn begin(&mut self, peer: u32, chunk: Chunk) -> Ask {
        let (number, ask) = (self.free, Incoming::new(peer, chunk));
        if let Some(place) = self.incoming.get_mut(number as usize) {
            self.free = std::mem::replace(place, ask).rest;
            return Ask(number);
        }
        let len = self.incoming.len();
        if len == self.incoming.capacity() {
            // Not twice as many: there are many machines.
            self.incoming.reserve_exact(4.max(len / 4));
        }
        self.incoming.push(ask);
        Ask(u32::try_from(len).unwrap_or(u32::MAX))
    }

    /// The ask of a peer for a chunk.
    pub(super) fn ask_of(&self, peer: u32, chunk: Chunk) -> Option<Ask> {
        let index = self.incoming.iter().position(|incoming| incoming.is(peer, chunk))?;
        u32::try_from(index).ok().map(Ask)
    }

    pub(super) fn incoming_mut(&mut self, ask: Ask) -> Option<&mut Incoming> {
        self.incoming.get_mut(ask.0 as usize).filter(|incoming| incoming.peer != NOBODY)
    }

    pub(super) fn end(&mut self, ask: Ask) -> Option<Incoming> {
        let free = Incoming { peer: NOBODY, rest: self.free, flow: None };
        let incoming = std::mem::replace(self.incoming_mut(ask)?, free);
        self.free = ask.0;
        Some(incoming)
    }

    fn carry_out(&mut self, now: Time, output: Output, effects: &mut Effects) {
        let me = self.me;
        let effect = match output {
            Output::Ask { peer, chunk, class } => Effect::Send(peer.0, Event::Ask { from: me, chunk, class }),
            Output::Cancel { peer, chunk } => Effect::Send(peer.0, Event::Withdraw { from: me, chunk }),
            Output::Serve { ask } => {
                let Some(incoming) = self.incoming_mut(ask) else { return };
                incoming.serve();
                Effect::Serve { ask, to: incoming.peer(), chunk: incoming.chunk() }
            }
            Output::Answer { ask, answer, load } => {
                let ended = answer != Answer::Wait;
                let Some(incoming) = self.incoming_mut(ask).copied() else { return };
                if ended {
                    self.end(ask);
                }
                Effect::Send(incoming.peer(), Event::answer(me, incoming.chunk(), answer, load))
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
            Output::Spread { to, .. } => Effect::Spread(to.0),
            // The core itself asks no liar again.
            Output::Distrust { .. } => return,
        };
        effects.push((me, effect));
    }

    fn note_end(&mut self, now: Time, effects: &mut Effects) {
        if self.delivered + self.given_up == self.chunks {
            self.finished = Some(now);
            effects.push((self.me, Effect::Ended));
        }
    }
}
