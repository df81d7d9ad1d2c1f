//! The machines of a run and what moves between them: what a strategy may look at and do.

use super::Setup;
use super::calendar::Calendar;
use super::pieces::{Held, Layout};
use crate::mesh::proto::Chunk;
use crate::model::{Generator, Time};
use crate::sim::churn::Stall;
use crate::sim::network::Queues;
use crate::sim::network::{Changes, Delays, Flow, Handle, Links, Traffic, node_rates};
use crate::sim::record::{Outcome, Recorder, Recording};
use crate::sim::scenario::{Cache, Scenario};
use std::collections::{BTreeMap, VecDeque};

/// Sets what strategies draw apart from all other randomness.
const STRATEGY: u64 = 0x7374_7261_7465_6779;
/// Steps in which the least time of a run is divided at most: it bounds how long the simulation takes, and how much rounding to
/// steps matters.
const STEPS_MAX: f64 = 200_000.0;

/// Names a stream. It outlives it without harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StreamId {
    index: u32,
    generation: u32,
}

/// Pieces that one end sends to another, one after the other, each as soon as it has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream {
    /// Who sends.
    pub(super) from: u32,
    /// Who receives.
    pub(super) to: u32,
    /// The first piece that has not arrived yet.
    pub(super) arrived: u32,
    /// The piece after the last one.
    pub(super) end: u32,
    /// The first piece that was not sent yet.
    next: u32,
    state: State,
}

impl Stream {
    /// Whether all has arrived.
    pub(super) fn is_over(&self) -> bool {
        self.arrived == self.end
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The request is on its way, or waits in the line of the sender.
    Asked,
    /// The sender has not the next piece.
    Waiting,
    /// A piece is moving.
    Moving(Handle),
    /// All was sent.
    Sent,
    /// Nothing is sent any more, which the receiver does not know yet.
    Silent,
}

/// Something that is due.
#[derive(Clone, Copy, Debug)]
pub(super) enum Due<N> {
    /// Nothing, but time does not go past it.
    Tick,
    /// A node wants the content.
    Begin(u32),
    /// The request for a stream arrives.
    Request(StreamId),
    /// The last byte of a piece arrives.
    Piece(StreamId, u32),
    /// A stream is given up, if nothing came meanwhile: the piece that was to come next.
    GiveUp(StreamId, u32),
    /// A message arrives.
    Note { from: u32, to: u32, note: N },
    /// An end is reminded of something, if it has not died meanwhile.
    Reminder { end: u32, deaths: u32, note: N },
    /// The sender of a message gives up that it is answered.
    Unanswered { from: u32, to: u32, note: N },
}

/// What an end sends at once, and who waits for that.
#[derive(Clone, Debug, Default)]
struct Door {
    busy: usize,
    /// At most what all ends ask of it together, which each bounds.
    line: VecDeque<StreamId>,
}

/// What an end did and got. Bytes are those of pieces that moved as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    /// When it had everything.
    pub(super) finished: Option<Time>,
    /// Bytes that it got from whoever had the content in the beginning.
    pub(super) from_sources: u64,
    /// Bytes that it got from others.
    pub(super) from_peers: u64,
    /// Bytes that it got more than once.
    pub(super) twice: u64,
    /// Bytes that it sent.
    pub(super) given: u64,
}

/// Sums over all ends.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    pub(super) events: u64,
    pub(super) messages: u64,
    /// Pieces that moved.
    pub(super) transfers: u64,
    /// Bytes that were sent, those that arrived, and those that did so when nobody wanted them any more.
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) dropped: u64,
    /// Bytes that left those who had the content in the beginning.
    pub(super) from_sources: u64,
    /// By cell: bytes that came in from outside of it.
    pub(super) crossed: Vec<u64>,
}

/// All of a run but the decisions. `N` is what a strategy's machines say to each other.
#[derive(Debug)]
pub(super) struct World<N> {
    /// The content.
    pub(super) layout: Layout,
    /// Who has what.
    held: Held,
    nodes: u32,
    /// By end but the stratum, whose place is empty: its cell.
    cells: Vec<u32>,
    cells_per_region: u32,
    warm: bool,
    pub(super) calendar: Calendar<Due<N>>,
    pub(super) traffic: Traffic<StreamId>,
    pub(super) delays: Delays,
    pub(super) changes: Changes,
    pub(super) queues: Option<Queues>,
    pub(super) stall: Option<Stall<StreamId>>,
    pub(super) step_ns: u64,
    timeout: u64,
    /// By end: when all notice that it is dead, if it died.
    notice: Vec<u64>,
    streams: Vec<(u32, Option<Stream>)>,
    free: Vec<u32>,
    doors: Vec<Door>,
    /// What a node, a server and the stratum send at once.
    slots: [usize; 3],
    /// By end and piece: streams that wait for it.
    waiting: BTreeMap<(u32, u32), Vec<StreamId>>,
    /// Ends that lack a piece for which a stream began to wait. The strategy is told.
    wanted: VecDeque<(u32, u32)>,
    /// Requests to the stratum that a cut link keeps.
    cut_off: Vec<StreamId>,
    dead: Vec<bool>,
    /// By end: how often it died.
    pub(super) deaths: Vec<u32>,
    generators: Vec<Generator>,
    pub(super) accounts: Vec<Account>,
    pub(super) totals: Totals,
    pub(super) recorder: Option<Box<Recorder>>,
}

/// How long a step is.
fn step_ns(scenario: &Scenario, seed: u64, setup: &Setup) -> u64 {
    let network = &scenario.network;
    let fastest = node_rates(scenario, seed).iter().flatten().copied().fold(0.0, f64::max);
    let piece_s = f64::from(setup.layout.piece_bytes()) / (fastest * 1e6 / 8.0);
    let steps = network.model.steps_per_chunk(1);
    // Where no piece is asked for by itself, latencies need not be whole numbers of steps: they matter seldom.
    let latency_ns = if setup.asks_for_each { network.latency_us * 1_000 } else { 0 };
    let fine = crate::sim::engine::step_ns(piece_s, steps, latency_ns);
    let least_s = setup.least_s.min(f64::from(scenario.content.deadline_s));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, below 2^63")]
    let coarse = (least_s * 1e9 / STEPS_MAX) as u64;
    fine.max(coarse)
}

impl<N: Copy> World<N> {
    /// Nothing has moved yet.
    pub(super) fn new(scenario: &Scenario, seed: u64, setup: Setup) -> Self {
        let step_ns = step_ns(scenario, seed, &setup);
        let nodes = scenario.fleet.nodes;
        let mut cells = Vec::with_capacity(nodes as usize + 1 + setup.servers.cells.len());
        for cell in 0..scenario.cells() {
            let members = members(scenario, cell);
            cells.extend(members.map(|_| cell));
        }
        let per_region = scenario.fleet.cells_per_region;
        let mut delays = Delays::new(scenario, seed, step_ns, |node| cells[node as usize] / per_region);
        delays.add_servers(setup.servers.cells.iter().map(|cell| cell / per_region));
        cells.push(u32::MAX);
        cells.extend(&setup.servers.cells);
        let ends = cells.len();
        let links = Links::with_servers(scenario, seed, step_ns, setup.servers);
        let warm = setup.cache == Cache::Warm;
        let mut held = Held::new(ends, setup.layout.pieces());
        held.fill(nodes);
        if warm {
            (nodes + 1..links.ends()).for_each(|server| held.fill(server));
        }
        let stream = |end: usize| Generator::stream(seed, STRATEGY ^ (end as u64 + 1) << 32);
        let steps = |ms: u64| (ms * 1_000_000).div_ceil(step_ns).max(1);
        Self {
            layout: setup.layout,
            held,
            nodes,
            cells,
            cells_per_region: per_region,
            warm,
            calendar: Calendar::new(),
            delays,
            changes: Changes::new(scenario, seed, step_ns, &links),
            queues: Queues::new(scenario, links.count(), step_ns),
            stall: Stall::new(scenario, seed, step_ns),
            traffic: Traffic::alone(scenario.network.model, links),
            step_ns,
            timeout: steps(scenario.strategy.timeout_ms),
            notice: vec![0; ends],
            streams: Vec::new(),
            free: Vec::new(),
            doors: vec![Door::default(); ends],
            slots: [setup.slots[0], setup.slots[1], scenario.stratum.connections as usize],
            waiting: BTreeMap::new(),
            wanted: VecDeque::new(),
            cut_off: Vec::new(),
            dead: vec![false; ends],
            deaths: vec![0; ends],
            generators: (0..ends).map(stream).collect(),
            accounts: vec![Account::default(); ends],
            totals: Totals { crossed: vec![0; scenario.cells() as usize], ..Totals::default() },
            recorder: None,
        }
    }

    /// From now on, what happens is recorded.
    pub(super) fn record(&mut self, scenario: &Scenario, seed: u64, recording: &Recording) {
        let cell_of = |node: u32| self.cells[node as usize];
        let shared = self.traffic.shared();
        let recorder = Recorder::new(scenario, seed, recording, self.step_ns, cell_of, &shared);
        let servers = &self.cells[self.nodes as usize + 1..];
        self.recorder = Some(Box::new(recorder.with_servers(servers)));
    }

    /// The time.
    pub(super) fn now(&self) -> Time {
        Time::from_nanos(self.calendar.now().saturating_mul(self.step_ns))
    }

    /// The number of nodes. They are the first ends.
    pub(super) fn nodes(&self) -> u32 {
        self.nodes
    }

    /// The end that is the stratum.
    pub(super) fn stratum(&self) -> u32 {
        self.nodes
    }

    /// The ends that are servers.
    pub(super) fn servers(&self) -> std::ops::Range<u32> {
        self.nodes + 1..self.traffic.links().ends()
    }

    /// Whether it is a server.
    pub(super) fn is_server(&self, end: u32) -> bool {
        end > self.nodes
    }

    /// The number of all ends.
    pub(super) fn ends(&self) -> usize {
        self.cells.len()
    }

    /// The cell of a node or server.
    pub(super) fn cell(&self, end: u32) -> u32 {
        self.cells[end as usize]
    }

    /// The region of a node or server.
    pub(super) fn region(&self, end: u32) -> u32 {
        self.cell(end) / self.cells_per_region
    }

    /// What each end has.
    pub(super) fn held(&self) -> &Held {
        &self.held
    }

    /// Whether an end is dead.
    pub(super) fn is_dead(&self, end: u32) -> bool {
        self.dead[end as usize]
    }

    /// An end's own randomness.
    pub(super) fn rng(&mut self, end: u32) -> &mut Generator {
        &mut self.generators[end as usize]
    }

    /// Streams that an end sends at the moment.
    pub(super) fn load(&self, end: u32) -> usize {
        self.doors[end as usize].busy
    }

    /// Whether it had the content in the beginning.
    fn is_source(&self, end: u32) -> bool {
        end == self.nodes || self.warm && self.is_server(end)
    }

    fn steps(&self, span_ns: u64) -> u64 {
        span_ns.div_ceil(self.step_ns).max(1)
    }

    fn is_cut(&self, from: u32, to: u32) -> bool {
        self.changes.cut(self.traffic.links(), from, to)
    }

    fn waits(&self, from: u32, to: u32) -> u64 {
        self.queues.as_ref().map_or(0, |queues| queues.steps(&self.traffic.links().path(from, to)))
    }

    fn is_live(&self, id: StreamId) -> bool {
        let (generation, stream) = &self.streams[id.index as usize];
        *generation == id.generation && stream.is_some()
    }

    fn stream(&mut self, id: StreamId) -> Option<&mut Stream> {
        let (generation, stream) = &mut self.streams[id.index as usize];
        if *generation == id.generation { stream.as_mut() } else { None }
    }

    fn add(&mut self, from: u32, to: u32, pieces: std::ops::Range<u32>) -> StreamId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.streams.push((0, None));
            u32::try_from(self.streams.len() - 1).unwrap_or(u32::MAX)
        });
        let (next, state) = (pieces.start, State::Asked);
        let stream = Stream { from, to, arrived: next, end: pieces.end, next, state };
        let entry = &mut self.streams[index as usize];
        entry.1 = Some(stream);
        StreamId { index, generation: entry.0 }
    }

    /// Forgets a stream; what moves of it stops.
    fn remove(&mut self, id: StreamId) -> Option<Stream> {
        let (generation, entry) = &mut self.streams[id.index as usize];
        if *generation != id.generation {
            return None;
        }
        let stream = entry.take()?;
        *generation = generation.wrapping_add(1);
        self.free.push(id.index);
        if let State::Moving(handle) = stream.state {
            self.traffic.stop(handle);
        }
        if matches!(stream.state, State::Moving(_) | State::Waiting) {
            self.leave(stream.from);
        }
        Some(stream)
    }

    /// Asks an end for pieces, which it sends as one stream.
    pub(super) fn open(&mut self, to: u32, from: u32, pieces: std::ops::Range<u32>) -> StreamId {
        let id = self.add(from, to, pieces);
        let now = self.calendar.now();
        self.totals.messages += 1;
        if from == self.nodes {
            if !self.stall.as_mut().is_some_and(|stall| stall.holds(now, to, id)) {
                self.ask_stratum(id, to);
            }
        } else if self.is_cut(to, from) {
            self.fall_silent(id, false);
        } else {
            let waits = self.waits(to, from);
            let arrival = self.delays.arrival(now, to, from, 0, waits);
            self.calendar.push(arrival, Due::Request(id));
        }
        id
    }

    /// Sends pieces that were asked for in messages before.
    pub(super) fn push(&mut self, from: u32, to: u32, pieces: std::ops::Range<u32>) {
        if self.dead[to as usize] {
            return;
        }
        let id = self.add(from, to, pieces);
        self.enter(id);
    }

    fn ask_stratum(&mut self, id: StreamId, to: u32) {
        if self.is_cut(to, self.nodes) {
            self.cut_off.push(id);
        } else {
            let (now, way) = (self.calendar.now(), self.delays.way(to, self.nodes));
            self.calendar.push(now + way, Due::Request(id));
        }
    }

    /// Sends a message.
    pub(super) fn send(&mut self, from: u32, to: u32, note: N) {
        self.totals.messages += 1;
        if self.is_cut(from, to) {
            self.calendar.push(self.calendar.now() + self.timeout, Due::Unanswered { from, to, note });
            return;
        }
        let waits = self.waits(from, to);
        let arrival = self.delays.arrival(self.calendar.now(), from, to, 0, waits);
        self.calendar.push(arrival, Due::Note { from, to, note });
    }

    /// Reminds an end of something after a while.
    pub(super) fn later(&mut self, end: u32, ms: u64, note: N) {
        let at = self.calendar.now() + self.steps(ms * 1_000_000);
        self.calendar.push(at, Due::Reminder { end, deaths: self.deaths[end as usize], note });
    }

    /// A message reached somebody who is dead: its sender hears nothing.
    pub(super) fn lose(&mut self, from: u32, to: u32, note: N) {
        self.calendar.push(self.silence(Some(to)), Due::Unanswered { from, to, note });
    }

    /// When who waits for an answer gives up, of an end that is dead or of another.
    fn silence(&self, dead: Option<u32>) -> u64 {
        let (now, until) = (self.calendar.now(), self.calendar.now() + self.timeout);
        let noticed = dead.map(|end| self.notice[end as usize]).filter(|notice| *notice > now);
        noticed.map_or(until, |notice| until.min(notice))
    }

    /// A stream stops; its receiver learns of it when it has waited long enough.
    fn fall_silent(&mut self, id: StreamId, is_death: bool) {
        let from = self.stream(id).map(|stream| stream.from);
        let at = self.silence(from.filter(|_| is_death));
        if let Some(stream) = self.stream(id) {
            stream.state = State::Silent;
            let next = stream.arrived;
            self.calendar.push(at, Due::GiveUp(id, next));
        }
    }

    /// A request arrives.
    pub(super) fn arrive(&mut self, id: StreamId) {
        let Some(stream) = self.stream(id).filter(|stream| stream.state == State::Asked) else { return };
        let from = stream.from;
        if self.dead[from as usize] { self.fall_silent(id, true) } else { self.enter(id) }
    }

    fn slots(&self, end: u32) -> usize {
        let place = if end == self.nodes { 2 } else { usize::from(self.is_server(end)) };
        self.slots[place]
    }

    /// Begins to send, or puts it in line.
    fn enter(&mut self, id: StreamId) {
        let Some(stream) = self.stream(id) else { return };
        let from = stream.from;
        let slots = self.slots(from);
        let door = &mut self.doors[from as usize];
        if door.busy < slots {
            door.busy += 1;
            self.send_next(id);
        } else {
            door.line.push_back(id);
        }
    }

    /// A slot of an end is free.
    fn leave(&mut self, from: u32) {
        self.doors[from as usize].busy -= 1;
        while let Some(id) = self.doors[from as usize].line.pop_front() {
            if self.is_live(id) {
                self.doors[from as usize].busy += 1;
                return self.send_next(id);
            }
        }
    }

    /// Sends the next piece of a stream, now or when it is there.
    fn send_next(&mut self, id: StreamId) {
        let Some(stream) = self.stream(id).copied() else { return };
        let Stream { from, to, next, arrived, .. } = stream;
        let state = if self.held.has(from, next) {
            let handle = self.traffic.start(Flow { from, to, what: id }, self.layout.len_bytes(next));
            let sender = (from != self.nodes).then_some(from);
            if let Some(recorder) = &mut self.recorder {
                recorder.moves(self.calendar.now(), (sender, to), next);
            }
            State::Moving(handle)
        } else {
            self.waiting.entry((from, next)).or_default().push(id);
            self.wanted.push_back((from, next));
            State::Waiting
        };
        if let Some(stream) = self.stream(id) {
            stream.state = state;
        }
        if from != self.nodes && self.is_cut(from, to) {
            let at = self.silence(None);
            self.calendar.push(at, Due::GiveUp(id, arrived));
        }
    }

    /// The next end that lacks what a stream waits for.
    pub(super) fn next_wanted(&mut self) -> Option<(u32, u32)> {
        self.wanted.pop_front()
    }

    /// The last byte of a piece has left. Returns the stream when that was its last piece.
    pub(super) fn sent(&mut self, flow: Flow<StreamId>) -> Option<Stream> {
        let id = flow.what;
        let is_source = self.is_source(flow.from);
        let stream = self.stream(id)?;
        let piece = stream.next;
        stream.next += 1;
        let is_last = stream.next == stream.end;
        stream.state = if is_last { State::Sent } else { State::Asked };
        let snapshot = *stream;
        let bytes = u64::from(self.layout.len_bytes(piece));
        self.accounts[flow.from as usize].given += bytes;
        self.totals.transfers += 1;
        self.totals.sent += bytes;
        if is_source {
            self.totals.from_sources += bytes;
        }
        let (now, sender) = (self.calendar.now(), (flow.from != self.nodes).then_some(flow.from));
        if let Some(recorder) = &mut self.recorder {
            let moved = (Chunk(piece), self.layout.len_bytes(piece));
            recorder.moved(now, (sender, flow.to), moved, Outcome::Received);
        }
        let cell = self.cells[flow.to as usize];
        if self.cells[flow.from as usize] != cell {
            self.totals.crossed[cell as usize] += bytes;
        }
        let way = self.delays.way(flow.from, flow.to) + self.waits(flow.from, flow.to);
        self.calendar.push(self.calendar.now() + way, Due::Piece(id, piece));
        if is_last {
            self.leave(flow.from);
            return Some(snapshot);
        }
        self.send_next(id);
        None
    }

    /// A piece has arrived. Returns the stream, and whether its receiver has everything now and had not before; nothing if the
    /// receiver does not want it any more.
    pub(super) fn received(&mut self, id: StreamId, piece: u32) -> Option<(Stream, bool)> {
        let bytes = u64::from(self.layout.len_bytes(piece));
        let Some(stream) = self.stream(id) else {
            self.totals.dropped += bytes;
            return None;
        };
        stream.arrived = piece + 1;
        let snapshot = *stream;
        if snapshot.is_over() {
            self.remove(id);
        }
        self.totals.received += bytes;
        let to = snapshot.to;
        let is_source = self.is_source(snapshot.from);
        let account = &mut self.accounts[to as usize];
        if !self.held.set(to, piece) {
            account.twice += bytes;
            return Some((snapshot, false));
        }
        if is_source {
            account.from_sources += bytes;
        } else {
            account.from_peers += bytes;
        }
        for waiter in self.waiting.remove(&(to, piece)).unwrap_or_default() {
            if self
                .stream(waiter)
                .is_some_and(|stream| stream.state == State::Waiting && stream.next == piece)
            {
                self.send_next(waiter);
            }
        }
        let has_all = self.held.has_all(to);
        if has_all && to < self.nodes {
            let now = self.now();
            self.accounts[to as usize].finished = Some(now);
        }
        Some((snapshot, has_all))
    }

    /// A stream has been silent for long enough, if nothing came after all. Returns it if so: it is no more.
    pub(super) fn give_up(&mut self, id: StreamId, arrived: u32) -> Option<Stream> {
        let stream = *self.stream(id)?;
        match stream.state {
            State::Silent => self.remove(id),
            State::Sent => None,
            State::Asked | State::Waiting | State::Moving(_) if !self.is_cut(stream.from, stream.to) => None,
            _ if stream.arrived == arrived => self.remove(id),
            _ => {
                // What was on its way came; it waits as long for the next.
                self.calendar.push(self.silence(None), Due::GiveUp(id, stream.arrived));
                None
            }
        }
    }

    /// The receiver does not want it any more.
    pub(super) fn close(&mut self, id: StreamId) {
        self.remove(id);
    }

    /// Links changed: what lies on both sides of a cut is given up in time, and requests to the stratum go on where they can.
    pub(super) fn links_changed(&mut self) {
        for id in std::mem::take(&mut self.cut_off) {
            if let Some(stream) = self.stream(id) {
                let to = stream.to;
                self.ask_stratum(id, to);
            }
        }
        let at = self.silence(None);
        for index in 0..self.streams.len() {
            let (generation, Some(stream)) = self.streams[index] else { continue };
            if stream.from != self.nodes && self.is_cut(stream.from, stream.to) {
                let id = StreamId { index: u32::try_from(index).unwrap_or(u32::MAX), generation };
                self.calendar.push(at, Due::GiveUp(id, stream.arrived));
            }
        }
    }

    /// The stratum answers all again.
    pub(super) fn stall_over(&mut self, held: Vec<(u32, StreamId)>) {
        for (to, id) in held {
            if self.is_live(id) {
                self.ask_stratum(id, to);
            }
        }
    }

    /// Nodes die, which are in ascending order. All notice it then, unless they have already.
    pub(super) fn kill(&mut self, victims: &[u32], notice: Option<u64>) {
        for victim in victims {
            self.notice[*victim as usize] = notice.unwrap_or(0);
            self.dead[*victim as usize] = true;
            self.deaths[*victim as usize] += 1;
            self.doors[*victim as usize] = Door::default();
        }
        self.traffic.stop_ends(victims);
        let dies = |end: u32| victims.binary_search(&end).is_ok();
        let mut free = Vec::new();
        for index in 0..self.streams.len() {
            let (generation, Some(stream)) = self.streams[index] else { continue };
            let id = StreamId { index: u32::try_from(index).unwrap_or(u32::MAX), generation };
            let is_open = matches!(stream.state, State::Moving(_) | State::Waiting);
            if dies(stream.to) {
                // The slot becomes free once no dead receiver is in line any more.
                if is_open && !dies(stream.from) {
                    free.push(stream.from);
                }
                if let Some(stream) = self.stream(id) {
                    stream.state = State::Silent;
                }
                self.remove(id);
            } else if dies(stream.from) && (is_open || stream.state == State::Asked) {
                self.fall_silent(id, true);
            }
        }
        for from in free {
            self.leave(from);
        }
    }

    /// Whether nothing was lost or made up: what was sent arrived, or is on its way, and who has everything got it once.
    pub(super) fn adds_up(&self) -> bool {
        let on_the_way = self.calendar.iter().map(|due| match due {
            Due::Piece(_, piece) => u64::from(self.layout.len_bytes(*piece)),
            _ => 0,
        });
        let Totals { sent, received, dropped, .. } = self.totals;
        let is_right = |(end, account): (u32, &Account)| {
            let got = account.from_sources + account.from_peers;
            self.is_source(end) || !self.held.has_all(end) || got == self.layout.bytes()
        };
        sent == received + dropped + on_the_way.sum::<u64>() && (0..).zip(&self.accounts).all(is_right)
    }

    /// An empty node takes the place of one that died.
    pub(super) fn replace(&mut self, node: u32) {
        self.dead[node as usize] = false;
        self.held.clear(node);
        self.accounts[node as usize] = Account::default();
    }
}

/// The nodes of a cell.
fn members(scenario: &Scenario, cell: u32) -> std::ops::Range<u32> {
    let start = |cell: u32| {
        let place = u64::from(cell) * u64::from(scenario.fleet.nodes) / u64::from(scenario.cells());
        u32::try_from(place).unwrap_or(u32::MAX)
    };
    start(cell)..start(cell + 1)
}
