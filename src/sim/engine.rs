//! Virtual time: what happens in one step happens at once, messages take whole steps, flows share the links.
//!
//! The latency is a whole number of steps, and a node's link takes at least three to move a slice. Each step has three
//! parts: the events that are due reach their machines, ordered by machine; what the machines cause is put in line;
//! the flows move. Each thread has one part of the fleet with a calendar of its own. Nothing depends on their number or
//! on the machine that runs it: the same seed and scenario give the same run.

use super::arrival::{Arrivals, Start};
use super::churn::{Churn, Fate, Spans, Stall};
use super::crew::Crew;
use super::directory::{Around, Directory, Kademlia};
use super::fleet::{EVENT_KINDS, Effect, Event, Incoming, Machine, Map};
use super::footprint::Footprint;
use super::layout::Layout;
use super::liar::Liar;
use super::line::{Letter, Line};
use super::network::{Changes, Delays, Flow, Handle, Links, LinksOfAKind, Queues, Traffic, node_rates};
use super::outflow::{Outflows, Upload};
use super::part::{Part, Step};
use super::reader::{ReadPlan, Reader};
use super::record::{Outcome, Record, Recorder, Recording};
use super::root_spread::{RootSpread, Spread};
use super::scenario::Scenario;
use crate::mesh::proto::{Ask, Chunk, Content as _, Peer, Settings, Source};
use crate::model::{Class, Time, mix};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Events that must be due at once before a second thread helps (guess: to wake one costs as much as some ten).
const WORTH_A_THREAD: usize = 256;

/// How many effects ahead of its turn the machine that sends a chunk and its list of asks are called into the processor's cache.
const AHEAD: [usize; 2] = [8, 4];

/// What a flow is.
#[derive(Clone, Copy, Debug)]
enum Carried {
    Upload { ask: Ask, chunk: Chunk },
    FromStratum { chunk: Chunk },
}

/// How far a run is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Virtual time.
    pub now: Time,
    /// Chunks that reached a node.
    pub transfers: u64,
    /// Chunks that all nodes want together.
    pub wanted: u64,
    /// Events that nodes reacted to.
    pub events: u64,
}

/// A run under way.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) machines: Vec<Machine>,
    map: Arc<Map>,
    content: Layout,
    /// The present step.
    now: u64,
    crew: Arc<Crew>,
    parts: Vec<Part>,
    /// Machines in each part.
    each: u32,
    traffic: Traffic<Carried>,
    delays: Delays,
    changes: Changes,
    step_ns: u64,
    wire: Wire,
    /// Who has sent to whom, if that costs anything the first time.
    connected: BTreeSet<(u32, u32)>,
    connections: u32,
    stratum_busy: u32,
    stratum_line: VecDeque<(u32, Chunk)>,
    /// What the stratum sends, by receiver.
    from_stratum: BTreeMap<(u32, Chunk), Handle>,
    /// Requests to the stratum that a cut link keeps.
    cut_off: Vec<(u32, Chunk)>,
    directory: Box<dyn Directory>,
    queues: Option<Queues>,
    /// What nodes' connections hold, if they hold anything.
    outflows: Option<Outflows>,
    churn: Option<Churn>,
    /// By dead node: those outside of its cell who had a transfer with it. They notice as its cell does: their connection ends.
    stranded: BTreeMap<u32, Vec<u32>>,
    /// Deaths that some may not have noticed: when all have, who died, and when.
    forgotten: Vec<(u64, u32, u64)>,
    stall: Option<Stall<Chunk>>,
    /// Who begins when, unless all do at once.
    arrivals: Option<Arrivals>,
    /// How a root spreads, if nodes begin with it.
    spread: Option<Spread>,
    newcomer: Newcomer,
    /// Whether anybody lies.
    liars: bool,
    deadline: Time,
    pub(super) unfinished: usize,
    /// Whether a machine ended since `unfinished` was counted.
    someone_ended: bool,
    /// Messages that are no node's mail: requests to the stratum, a root that is handed on.
    requests: u64,
    pub(super) transfers: u64,
    pub(super) strata_bytes: u64,
    /// By cell: what came in from outside of it.
    pub(super) crossed_bytes: Vec<u64>,
    recorder: Option<Box<Recorder>>,
}

/// What a transfer takes beyond the bytes of its chunk.
#[derive(Clone, Copy, Debug)]
struct Wire {
    header_per_mille: u64,
    request_bytes: u64,
    connect_bytes: u32,
    /// Steps until the first byte.
    first_byte: u64,
}

impl Wire {
    /// What links carry for a chunk of so many bytes.
    fn bytes(self, chunk_bytes: u32) -> u32 {
        let bytes = u64::from(chunk_bytes) * (1_000 + self.header_per_mille) / 1_000 + self.request_bytes;
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }
}

/// What a machine begins with.
#[derive(Debug)]
struct Newcomer {
    settings: Arc<Settings>,
    /// How somebody reads on it.
    reading: Option<Arc<ReadPlan>>,
    class: Option<Class>,
    /// Steps from its beginning until it knows what it wants.
    prepare: u64,
    seed: u64,
}

/// The longest step of which the latency is a whole number and the transfer of a chunk at least a few.
pub(super) fn step_ns(chunk_s: f64, steps_per_chunk: f64, latency_ns: u64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, below 2^63")]
    let longest = ((chunk_s / steps_per_chunk * 1e9) as u64).max(1);
    if latency_ns == 0 { longest } else { latency_ns.div_ceil(latency_ns.div_ceil(longest)) }
}

fn short(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn steps(span_ns: u64, step_ns: u64) -> u64 {
    span_ns.div_ceil(step_ns).max(1)
}

impl Engine {
    pub(super) fn new(scenario: &Scenario, seed: u64, threads: usize) -> Self {
        let nodes = scenario.fleet.nodes as usize;
        let fastest = node_rates(scenario, seed).iter().flatten().copied().fold(0.0, f64::max);
        let chunk_s = f64::from(scenario.chunk_bytes()) / (fastest * 1e6 / 8.0);
        let network = &scenario.network;
        let least = network.model.steps_per_chunk(scenario.settings.window_even);
        let step_ns = step_ns(chunk_s, least, network.latency_us * 1_000);
        let links = Links::new(scenario, seed, step_ns);
        let map = Arc::new(Map::new(scenario, seed));
        let content = Layout::new(scenario);
        let newcomer = Newcomer {
            settings: Arc::new(scenario.settings.clone()),
            reading: scenario.read_plan(content.chunks()).map(Arc::new),
            class: scenario.content.class,
            prepare: scenario.content.prepare_ms * 1_000_000 / step_ns,
            seed: seed ^ scenario.draw.rotate_left(40),
        };
        let mut machines: Vec<Machine> =
            (0..scenario.fleet.nodes).map(|me| newcomer.machine(me, &map, &content)).collect();
        for (machine, liar) in machines.iter_mut().zip(Liar::draw(scenario, seed)) {
            machine.liar = liar.map(Box::new);
        }
        let deadline = Time::from_nanos(u64::from(scenario.content.deadline_s) * 1_000_000_000);
        let each = nodes.div_ceil(threads.clamp(1, nodes));
        let delays = Delays::new(scenario, seed, step_ns, |node| map.region_of(node));
        let count = nodes.div_ceil(each);
        let part = |number: usize| {
            let first = number * each;
            Part::new(short(first), each.min(nodes - first), count, short(each), delays.clone())
        };
        let crew = Crew::new(count);
        let mut parts: Vec<Part> = (0..count).map(part).collect();
        let (arrivals, first) = match Arrivals::new(scenario, seed, step_ns) {
            Some((arrivals, first)) => (Some(arrivals), first),
            None => (None, (0..scenario.fleet.nodes).map(|node| (1, node)).collect()),
        };
        for (step, to) in first {
            let step = step + newcomer.prepare;
            let event = Event::WantAll(scenario.content.class, deadline);
            parts[to as usize / each].calendar.push(0, step, to, event);
        }
        let changes = Changes::new(scenario, seed, step_ns, &links);
        let links_count = links.count();
        let outflows = Outflows::of(scenario, &links, step_ns);
        let traffic = Traffic::new(network.model, links, &crew);
        let spread = Spread::new(scenario, seed).map(|(spread, first)| {
            first
                .into_iter()
                .for_each(|node| parts[node as usize / each].calendar.push(0, 1, node, Event::News(None)));
            spread
        });
        let mut churn = Churn::new(scenario, seed, step_ns);
        if let Some(step) = churn.as_mut().and_then(Churn::stop) {
            // Nobody is woken: the step is not passed over.
            parts[0].calendar.push_wake(0, step, 0);
        }
        Self {
            machines,
            content,
            now: 0,
            crew,
            parts,
            each: short(each),
            queues: Queues::new(scenario, links_count, step_ns),
            outflows,
            churn,
            stranded: BTreeMap::new(),
            forgotten: Vec::new(),
            stall: Stall::new(scenario, seed, step_ns),
            arrivals,
            spread,
            newcomer,
            liars: scenario.liars.is_some(),
            delays,
            changes,
            traffic,
            map,
            step_ns,
            wire: Wire {
                header_per_mille: u64::from(network.header_per_mille),
                request_bytes: u64::from(network.request_bytes),
                connect_bytes: network.connect_bytes,
                first_byte: network.first_byte_us * 1_000 / step_ns,
            },
            connections: scenario.stratum.connections,
            connected: BTreeSet::new(),
            stratum_busy: 0,
            stratum_line: VecDeque::new(),
            from_stratum: BTreeMap::new(),
            cut_off: Vec::new(),
            directory: Box::new(Kademlia::new(scenario.fleet.nodes, seed, step_ns, network.lookup_us)),
            deadline,
            unfinished: nodes,
            someone_ended: false,
            requests: 0,
            transfers: 0,
            strata_bytes: 0,
            crossed_bytes: vec![0; scenario.cells() as usize],
            recorder: None,
        }
    }

    /// From now on, what happens is recorded.
    pub(super) fn record(&mut self, scenario: &Scenario, seed: u64, recording: &Recording) {
        let cell_of = |node| self.map.cell_of(node);
        let recorder =
            Recorder::new(scenario, seed, recording, self.step_ns, cell_of, &self.traffic.shared());
        self.recorder = Some(Box::new(recorder));
    }

    /// What was recorded, if anything was.
    pub(super) fn take_record(&mut self) -> Option<Record> {
        self.look(true);
        let recorder = self.recorder.take()?;
        let nodes = self.machines.iter().map(Machine::seen);
        Some(recorder.finish(nodes, |node| self.start(node).as_secs_f64()))
    }

    /// Lets the recorder look, when it is time or all is over.
    fn look(&mut self, is_over: bool) {
        let Some(recorder) = &mut self.recorder else { return };
        let now = self.now;
        if is_over || recorder.is_due(now) {
            let traffic = &self.traffic;
            let usage = |link| traffic.usage_of_link(link);
            let nodes = self.machines.iter().map(Machine::seen);
            recorder.look(now, nodes, traffic.receivers(), self.strata_bytes, usage);
        }
    }

    fn step(&self) -> Step {
        Step { number: self.now, ns: self.step_ns }
    }

    fn now(&self) -> Time {
        self.step().time()
    }

    /// Events that nodes reacted to, by kind.
    pub(super) fn events_by_kind(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let of = |kind: usize| self.parts.iter().map(|part| part.counts[kind]).sum::<u64>();
        EVENT_KINDS.into_iter().enumerate().map(move |(kind, name)| (name, of(kind)))
    }

    /// Events that nodes reacted to.
    pub(super) fn events(&self) -> u64 {
        self.events_by_kind().map(|(_, count)| count).sum()
    }

    /// Nodes that reacted in a step, summed up over all steps.
    pub(super) fn visits(&self) -> u64 {
        self.parts.iter().map(|part| part.visits).sum()
    }

    /// Messages that nodes sent.
    pub(super) fn messages(&self) -> u64 {
        self.parts.iter().map(|part| part.messages).sum::<u64>() + self.requests + self.directory.requests()
    }

    /// Steps, and how long one is in nanoseconds.
    pub(super) fn steps(&self) -> (u64, u64) {
        (self.now, self.step_ns)
    }

    /// Puts an event in line for a later step.
    fn push(&mut self, step: u64, to: u32, event: Event) {
        let part = (to / self.each) as usize;
        self.parts[part].calendar.push(self.now, step, to, event);
    }

    /// Goes to the next step, or when nothing moves to the next one with an event; `false` if there is none.
    fn advance(&mut self) -> bool {
        self.now += 1;
        if self.traffic.is_idle() {
            let first = self.parts.iter().filter_map(|part| part.calendar.first(self.now)).min();
            let Some(first) = first else { return false };
            self.now = first;
        }
        self.parts.iter_mut().for_each(|part| part.take(self.now));
        true
    }

    /// How many nodes died.
    pub(super) fn died(&self) -> u32 {
        self.churn.as_ref().map_or(0, Churn::died)
    }

    /// When a node began.
    pub(super) fn start(&self, node: u32) -> Time {
        let step = self.arrivals.as_ref().and_then(|arrivals| arrivals.start(node)).unwrap_or(0);
        Time::from_nanos(step.saturating_mul(self.step_ns))
    }

    pub(super) fn progress(&self) -> Progress {
        let wanted = self.machines.len() as u64 * u64::from(self.content.chunks());
        Progress { now: self.now(), transfers: self.transfers, wanted, events: self.events() }
    }

    /// What the run takes in memory now, by part.
    pub(super) fn footprint(&self) -> Footprint {
        let mut footprint = Footprint::of_nodes(self.machines.len());
        for part in self.machines.iter().flat_map(Machine::footprint) {
            footprint.add(part);
        }
        footprint.add(("events in line", self.parts.iter().map(Part::heap_bytes).sum()));
        footprint.add(("flows and links", self.traffic.heap_bytes()));
        footprint.add(("homes of all slices", self.map.heap_bytes()));
        footprint
    }

    /// Runs until all nodes have ended or nothing happens any more. `watch` is told now and then.
    pub(super) fn run(&mut self, watch: &mut dyn FnMut(Progress)) {
        self.run_watched(&mut |engine| watch(engine.progress()));
    }

    /// The same, for who looks at more than the progress.
    pub(super) fn run_watched(&mut self, watch: &mut dyn FnMut(&Self)) {
        let mut ended = Vec::new();
        if self.recorder.as_ref().is_some_and(|recorder| recorder.traces()) {
            self.parts.iter_mut().for_each(|part| part.effects.seen = Some(Vec::new()));
        }
        while self.unfinished > 0 && self.advance() {
            self.change_links();
            self.replace_the_dead();
            self.end_stall();
            self.react();
            self.deliver();
            self.put_into_effect();
            self.traffic.step(&mut ended);
            if let Some(queues) = &mut self.queues {
                queues.step(self.now, &self.traffic);
            }
            for flow in ended.drain(..) {
                self.finish(flow);
            }
            self.look(false);
            // Who looks only now and then must look before time jumps to what is far ahead: the run ends with the last node.
            let may_jump = self.someone_ended && self.traffic.is_idle();
            if self.now.is_multiple_of(64) || may_jump {
                self.someone_ended = false;
                self.unfinished = self.count_unfinished();
                watch(self);
            }
            // All wants end by the deadline; what is left then could only be a defect of the core.
            if self.now().since(self.deadline).as_secs() > 1 {
                break;
            }
        }
        self.unfinished = self.count_unfinished();
    }

    /// Honest nodes that wait for something.
    fn count_unfinished(&self) -> usize {
        let waits = |machine: &&Machine| machine.liar.is_none() && machine.finished.is_none();
        self.machines.iter().filter(waits).count()
    }

    /// Lets the machines react, each thread to its part of them. Within a step no machine sees another, and effects
    /// are kept in the order of the machines, so the number of threads does not show.
    fn react(&mut self) {
        let (step, each) = (self.step(), self.each as usize);
        let alone = self.parts.iter().map(Part::due).sum::<usize>() < WORTH_A_THREAD;
        let first = first_sender(self.now, self.machines.len());
        let work = self.machines.chunks_mut(each).zip(&mut self.parts);
        at_once(&self.crew, alone, work, |(machines, part)| {
            part.effects.first = first;
            part.react(step, machines);
        });
    }

    /// Puts messages in line, each thread those to its part of the machines, in the order of the senders, beginning with another one at
    /// each step: what reaches a machine in one step came at once, and with the same order each time the nodes with the highest
    /// numbers would always be the last (seen: 1 % later of 10 000, 10 % in cells of 200).
    fn deliver(&mut self) {
        let now = self.now;
        let mut letters = 0;
        let mut to_part: Vec<Vec<Line>> = self.parts.iter().map(|_| Vec::new()).collect();
        for half in 0..2 {
            for part in &mut self.parts {
                for (mail, to_part) in part.effects.mail[half].iter_mut().zip(&mut to_part) {
                    letters += mail.len();
                    to_part.push(std::mem::take(mail));
                }
            }
        }
        let (queues, changes, links) = (&self.queues, &self.changes, self.traffic.links());
        let map = &self.map;
        let waits = |letter: &Letter| {
            let (from, to) = (letter.from(), letter.to());
            let waits = || queues.as_ref().map_or(0, |queues| queues.steps(&links.path(from, to)));
            let is_lost = letter.is_unasked() && map.is_mistaken(from, to);
            (!changes.cut(links, from, to) && !is_lost).then(waits)
        };
        let work = self.parts.iter_mut().zip(&mut to_part);
        at_once(&self.crew, letters < WORTH_A_THREAD, work, |(part, mail)| {
            part.receive(now, mail, waits);
        });
        // The senders keep their memory.
        for (to, lists) in to_part.into_iter().enumerate() {
            for (place, mut line) in lists.into_iter().enumerate() {
                let (half, part) = (place / self.parts.len(), place % self.parts.len());
                let effects = &mut self.parts[part].effects;
                line.recycle(&mut effects.spare);
                effects.mail[half][to] = line;
            }
        }
    }

    /// Puts everything but messages into effect, in the order of the machines.
    fn put_into_effect(&mut self) {
        for number in 0..self.parts.len() {
            if let Some(recorder) = &mut self.recorder {
                for (from, effect) in
                    self.parts[number].effects.seen.iter_mut().flat_map(|seen| seen.drain(..))
                {
                    recorder.effect(self.now, from, &effect);
                }
            }
            let mut effects = std::mem::take(&mut self.parts[number].effects.others);
            for place in 0..effects.len() {
                let [machine, asks] = AHEAD.map(|ahead| effects.get(place + ahead));
                if let Some((from, Effect::Serve { .. })) = machine {
                    self.machines[*from as usize].prefetch_asks();
                }
                if let Some((from, Effect::Serve { ask, .. })) = asks {
                    self.machines[*from as usize].prefetch_ask(*ask);
                }
                let (from, effect) = std::mem::replace(&mut effects[place], (0, Effect::Ended));
                self.apply(from, effect);
            }
            effects.clear();
            self.parts[number].effects.others = effects;
        }
    }

    /// Uploads of a node that its connections take in have left it, for its decisions.
    fn take_in(&mut self, from: u32) {
        let Some(outflows) = &mut self.outflows else { return };
        for Upload { ask, to, chunk, .. } in outflows.take_in(from) {
            self.push(self.now + 1, from, Event::Sent { ask, to, chunk });
        }
    }

    /// How long a message waits at links.
    fn waits(&self, from: u32, to: u32) -> u64 {
        self.queues.as_ref().map_or(0, |queues| queues.steps(&self.traffic.links().path(from, to)))
    }

    /// The end that is the stratum.
    fn stratum(&self) -> u32 {
        self.traffic.links().stratum()
    }

    /// Whether nothing gets from one end to another.
    fn is_cut(&self, from: u32, to: u32) -> bool {
        self.changes.cut(self.traffic.links(), from, to)
    }

    /// What links of each kind did.
    pub(super) fn usage(&self) -> Vec<LinksOfAKind> {
        self.traffic.usage(self.now)
    }

    /// Lets links become slower, faster or be cut, when it is time. Requests that a cut kept from the stratum go on.
    fn change_links(&mut self) {
        if !self.changes.apply(self.now, &mut self.traffic) {
            return;
        }
        for (from, chunk) in std::mem::take(&mut self.cut_off) {
            self.ask_stratum(from, chunk);
        }
        self.fill_stratum();
    }

    /// Puts a request to the stratum where it waits: in its line, or in front of a cut.
    fn ask_stratum(&mut self, from: u32, chunk: Chunk) {
        if self.is_cut(from, self.stratum()) {
            self.cut_off.push((from, chunk));
        } else {
            self.stratum_line.push_back((from, chunk));
        }
    }

    /// Lets nodes die and begins replacements, when it is time.
    fn replace_the_dead(&mut self) {
        let Some(mut churn) = self.churn.take() else { return };
        self.map.notices.set_now(self.now);
        while let Some((fate, nodes)) = churn.next(self.now) {
            match fate {
                Fate::Dies => self.die(&nodes, churn.spans()),
                // Each does so by itself.
                Fate::Noticed => {}
                Fate::Replaced => self.replace(&nodes),
            }
        }
        if let Some(step) = churn.stop() {
            self.parts[0].calendar.push_wake(self.now, step, 0);
        }
        self.churn = Some(churn);
        let (map, now) = (&self.map, self.now);
        self.forgotten.retain(|(over, node, died)| {
            let is_over = *over <= now;
            if is_over {
                map.notices.forget(*node, *died);
            }
            !is_over
        });
    }

    /// Nodes die, which are in ascending order.
    fn die(&mut self, nodes: &[u32], spans: Spans) {
        let dies = |node: u32| nodes.binary_search(&node).is_ok();
        for node in nodes {
            self.machines[*node as usize].dead = true;
            self.map.notices.died(*node, spans);
            self.directory.died(self.now, *node);
        }
        self.connected.retain(|(from, to)| !dies(*from) && !dies(*to));
        self.parts.iter_mut().for_each(|part| part.disconnect(dies));
        for flow in self.traffic.stop_ends(nodes) {
            match flow.what {
                Carried::FromStratum { chunk } => {
                    self.from_stratum.remove(&(flow.to, chunk));
                    self.stratum_busy -= 1;
                }
                Carried::Upload { .. } => {
                    for (node, other) in [(flow.from, flow.to), (flow.to, flow.from)] {
                        if dies(node) && self.map.cell_of(node) != self.map.cell_of(other) {
                            self.stranded.entry(node).or_default().push(other);
                        }
                    }
                }
            }
        }
        if let Some(outflows) = &mut self.outflows {
            outflows.forget(dies);
        }
        self.stratum_line.retain(|waiting| !dies(waiting.0));
        self.cut_off.retain(|waiting| !dies(waiting.0));
        self.fill_stratum();
        self.tell_of(nodes, Event::Down);
        // By then all have noticed it, and there are others in their places.
        let over = self.now + (spans.noticed + 3 * spans.within).max(spans.replaced) + 1;
        self.forgotten.extend(nodes.iter().map(|node| (over, *node, self.now)));
    }

    /// Empty nodes take the places of dead ones.
    fn replace(&mut self, nodes: &[u32]) {
        let now = self.now;
        for node in nodes {
            let liar = self.machines[*node as usize].liar.take();
            self.machines[*node as usize] = self.newcomer.machine(*node, &self.map, &self.content);
            self.parts[(*node / self.each) as usize].renew(*node);
            self.machines[*node as usize].liar = liar;
            // Who had not begun when it died begins in its turn.
            let start = self.arrivals.as_ref().map_or(Some(0), |arrivals| arrivals.start(*node));
            if start.is_some_and(|start| start <= now) {
                self.begin(vec![(now + 1, *node)]);
            }
        }
        self.tell_of(nodes, Event::Up);
    }

    /// Lets nodes want the content from a step on.
    fn begin(&mut self, starts: Vec<Start>) {
        for (step, node) in starts {
            let step = step + self.newcomer.prepare;
            self.push(step, node, Event::WantAll(self.newcomer.class, self.deadline));
        }
    }

    /// Lets requests go on that the stratum did not answer, when it does again.
    fn end_stall(&mut self) {
        let over = self.stall.as_mut().map(|stall| stall.over(self.now)).unwrap_or_default();
        if !over.is_empty() {
            for (from, chunk) in over {
                self.ask_stratum(from, chunk);
            }
            self.fill_stratum();
        }
    }

    /// Tells of each of `whom` the members of its cell, and who was stranded when it died, when they have noticed its death. All others see
    /// it when they look.
    fn tell_of(&mut self, whom: &[u32], event: fn(u32) -> Event) {
        for node in whom {
            let members = self.map.members_of(self.map.cell_of(*node)).filter(|to| to != node);
            let mut stranded = self.stranded.remove(node).unwrap_or_default();
            stranded.sort_unstable();
            stranded.dedup();
            for to in members.chain(stranded) {
                let near = self.map.cell_of(to) == self.map.cell_of(*node);
                let noticed = self.map.notices.when(to, *node, near).unwrap_or(self.now);
                self.push(noticed.max(self.now) + 1, to, event(*node));
            }
        }
    }

    fn apply(&mut self, from: u32, effect: Effect) {
        let now = self.now;
        match effect {
            // Messages lie apart: [`Self::deliver`].
            Effect::Send(..) => {}
            Effect::Serve { ask, to, chunk } => {
                // An ask that was withdrawn in the same moment, before this was put into effect, is not there any more, or
                // already another.
                let is_it = |incoming: &&mut Incoming| incoming.is(to, chunk) && incoming.flow.is_none();
                if let Some(incoming) = self.machines[from as usize].incoming_mut(ask).filter(is_it) {
                    let flow = Flow { from, to, what: Carried::Upload { ask, chunk } };
                    let mut bytes = self.wire.bytes(self.content.len_bytes(chunk));
                    if self.wire.connect_bytes > 0 && self.connected.insert((from, to)) {
                        bytes = bytes.saturating_add(self.wire.connect_bytes);
                    }
                    incoming.flow = Some(self.traffic.start(flow, bytes));
                    if let Some(outflows) = &mut self.outflows {
                        outflows.push(from, Upload { ask, to, chunk, bytes, is_sent: false });
                        self.take_in(from);
                    }
                }
            }
            Effect::StopServing(flow) => {
                let stopped = flow.and_then(|flow| self.traffic.stop(flow));
                if let Some(Flow { from, to, what: Carried::Upload { ask, chunk } }) = stopped
                    && let Some(outflows) = &mut self.outflows
                {
                    outflows.end(from, to, ask, chunk);
                    self.take_in(from);
                }
            }
            Effect::Upstream(chunk) => {
                self.requests += 1;
                if !self.stall.as_mut().is_some_and(|stall| stall.holds(now, from, chunk)) {
                    self.ask_stratum(from, chunk);
                    self.fill_stratum();
                }
            }
            Effect::StopUpstream(chunk) => {
                self.stratum_line.retain(|waiting| *waiting != (from, chunk));
                self.cut_off.retain(|waiting| *waiting != (from, chunk));
                if let Some(stall) = &mut self.stall {
                    stall.drop(from, chunk);
                }
                let flow = self.from_stratum.remove(&(from, chunk));
                if flow.is_some_and(|flow| self.traffic.stop(flow).is_some()) {
                    self.stratum_busy -= 1;
                }
                self.fill_stratum();
            }
            Effect::Find(segment) => {
                let found =
                    self.ask_directory(|directory, around| directory.find(now, from, segment, around));
                let peers = found.peers.into_boxed_slice();
                self.push(found.at.max(now + 1), from, Event::Providers { segment, peers });
            }
            Effect::Announce(segment) => {
                self.ask_directory(|directory, around| directory.announce(now, from, segment, around));
            }
            Effect::Spread(to) => self.hand_on(from, to),
            Effect::Heard => {
                let starts = self.arrivals.as_mut().map(|arrivals| arrivals.heard(from, now));
                self.begin(starts.unwrap_or_default());
            }
            Effect::Later(after_ms, event) => {
                let nanos = u64::from(after_ms) * 1_000_000;
                self.push(now + steps(nanos, self.step_ns), from, event);
            }
            Effect::Ended => {
                self.someone_ended = true;
                let starts = self.arrivals.as_mut().map(|arrivals| arrivals.ended(from, now));
                self.begin(starts.unwrap_or_default());
            }
        }
    }

    fn ask_directory<T>(&mut self, ask: impl FnOnce(&mut dyn Directory, &Around<'_>) -> T) -> T {
        let (map, machines, changes, links) =
            (&self.map, &self.machines, &self.changes, self.traffic.links());
        let reaches = |from: u32, to: u32| !machines[to as usize].dead && !changes.cut(links, from, to);
        let place = |node: u32| (map.cell_of(node), map.region_of(node));
        let around = Around { delays: &self.delays, place: &place, reaches: &reaches };
        ask(self.directory.as_mut(), &around)
    }

    /// The new root goes to a peer: over a connection that is made first, which is a way there and back.
    fn hand_on(&mut self, from: u32, to: u32) {
        let Some(spread) = &mut self.spread else { return };
        let now = self.now;
        self.requests += 1;
        spread.messages += 1;
        let made = 2 * self.delays.way(from, to) + spread.handshake_ns(now, from, to).div_ceil(self.step_ns);
        if !self.is_cut(from, to) {
            let waits = self.waits(from, to);
            let arrival = self.delays.arrival(now + made, from, to, u32::MAX, waits);
            self.push(arrival, to, Event::News(Some(from)));
        }
    }

    /// How the root spread, if one did.
    pub(super) fn root_spread(&self) -> Option<RootSpread> {
        let (spread, arrivals) = (self.spread.as_ref()?, self.arrivals.as_ref()?);
        let nodes = u32::try_from(self.machines.len()).unwrap_or(u32::MAX);
        let seconds = |step: u64| Time::from_nanos(step.saturating_mul(self.step_ns)).as_secs_f64();
        let heard = (0..nodes).filter_map(|node| arrivals.start(node)).map(seconds).collect();
        Some(RootSpread::new(heard, nodes, spread.messages))
    }

    /// Lets requests in line begin. The way of the request itself is added to that of the data.
    fn fill_stratum(&mut self) {
        let stratum = self.stratum();
        while self.stratum_busy < self.connections {
            let Some((to, chunk)) = self.stratum_line.pop_front() else { return };
            self.stratum_busy += 1;
            if let Some(recorder) = &mut self.recorder {
                recorder.stratum_began(self.now, to, chunk);
            }
            let flow = Flow { from: stratum, to, what: Carried::FromStratum { chunk } };
            let handle = self.traffic.start(flow, self.wire.bytes(self.content.len_bytes(chunk)));
            self.from_stratum.insert((to, chunk), handle);
        }
    }

    /// A transfer ends with the present step; what happens in it otherwise happens at its beginning.
    fn finish(&mut self, flow: Flow<Carried>) {
        let now = self.now;
        self.transfers += 1;
        let cell = self.map.cell_of(flow.to);
        match flow.what {
            Carried::Upload { ask, chunk } => {
                if self.map.cell_of(flow.from) != cell {
                    self.crossed_bytes[cell as usize] += u64::from(self.content.len_bytes(chunk));
                }
                let liar = if self.liars { &self.machines[flow.from as usize].liar } else { &None };
                let wrong = liar.as_ref().is_some_and(|liar| liar.is_corrupt());
                if let Some(recorder) = &mut self.recorder {
                    let moved = (chunk, self.content.len_bytes(chunk));
                    let outcome = if wrong { Outcome::Wrong } else { Outcome::Received };
                    recorder.moved(now, (Some(flow.from), flow.to), moved, outcome);
                }
                let data = if wrong {
                    Event::Wrong { chunk, from: flow.from }
                } else {
                    Event::Data { chunk, from: Source::Peer(Peer(flow.from)) }
                };
                let way = self.delays.way(flow.from, flow.to) + self.wire.first_byte;
                self.push(now + 1 + way, flow.to, data);
                let outflows = self.outflows.as_mut();
                let upload = outflows.and_then(|outflows| outflows.end(flow.from, flow.to, ask, chunk));
                if !upload.is_some_and(|upload| upload.is_sent) {
                    self.push(now + 1, flow.from, Event::Sent { ask, to: flow.to, chunk });
                }
                self.take_in(flow.from);
            }
            Carried::FromStratum { chunk } => {
                self.strata_bytes += u64::from(self.content.len_bytes(chunk));
                self.crossed_bytes[cell as usize] += u64::from(self.content.len_bytes(chunk));
                self.stratum_busy -= 1;
                self.from_stratum.remove(&(flow.to, chunk));
                if let Some(recorder) = &mut self.recorder {
                    let moved = (chunk, self.content.len_bytes(chunk));
                    recorder.moved(now, (None, flow.to), moved, Outcome::Received);
                }
                let data = Event::Data { chunk, from: Source::Strata };
                let request = self.delays.way(flow.to, flow.from);
                let way = request + self.delays.way(flow.from, flow.to) + self.wire.first_byte;
                self.push(now + 1 + way, flow.to, data);
                self.fill_stratum();
            }
        }
    }
}

impl Newcomer {
    fn machine(&self, me: u32, map: &Arc<Map>, content: &Layout) -> Machine {
        let reader = self.reading.as_ref().map(Reader::new);
        Machine::new(me, map, content.clone(), &self.settings, reader, self.seed)
    }
}

/// The machine whose messages are delivered first in a step: each as often as any other.
fn first_sender(step: u64, machines: usize) -> u32 {
    let random = u128::from(mix(step));
    u32::try_from((random * machines as u128) >> 64).unwrap_or(0)
}

/// Does some work on each item, of which the crew has one each, or alone if it is not worth that.
fn at_once<I: Send>(crew: &Crew, alone: bool, items: impl Iterator<Item = I>, work: impl Fn(I) + Sync) {
    if alone {
        items.for_each(work);
    } else {
        crew.each_its_own(items, work);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_divides_the_latency_and_the_transfer_of_a_chunk() {
        for (chunk_s, latency_ns) in [(839e-6, 500_000), (839e-6, 0), (8.4e-3, 500_000), (1e-3, 20_000_000)] {
            for least in [3.0, 12.0] {
                let step = step_ns(chunk_s, least, latency_ns);
                assert!(step as f64 * least <= chunk_s * 1e9 + 1.0, "{chunk_s} {latency_ns}: {step}");
                let steps = latency_ns.div_ceil(step);
                assert!(steps * step <= latency_ns + steps, "{chunk_s} {latency_ns}: {step}");
            }
        }
    }
}
