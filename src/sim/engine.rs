//! Virtual time: what happens in one step happens at once, messages take whole steps, flows share the links.
//!
//! The latency is a whole number of steps, and a node's link takes at least three to move a slice. Each step has three
//! parts: the events that are due reach their machines, ordered by machine; what the machines cause is put in line;
//! the flows move. The queue is a ring of buckets, one a step and part of the fleet (a calendar queue after Brown,
//! 1988), and a tree for what lies beyond it. Each thread has one part of the fleet. Nothing depends on their number or
//! on the machine that runs it: the same seed and scenario give the same run.

use super::arrival::{Arrivals, Start};
use super::churn::{Churn, Queues, Stall};
use super::fleet::{Effect, Event, Incoming, Machine, Map};
use super::footprint::Footprint;
use super::layout::Layout;
use super::liar::Liar;
use super::network::{Changes, Delays, Flow, Handle, Links, LinksOfAKind, Traffic, node_rates};
use super::reader::{ReadPlan, Reader};
use super::record::{Outcome, Record, Recorder, Recording};
use super::scenario::Scenario;
use crate::mesh::proto::{Ask, Chunk, Content as _, Outbox, Peer, Settings, Source, prefetch};
use crate::model::{Class, Time};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Steps that the ring of buckets covers.
const RING: usize = 1_024;
/// Providers that the DHT tells of.
const PROVIDERS_MAX: usize = 20;
/// Events that must be due at once before a second thread helps (guess: to begin a thread costs as much as 100).
const WORTH_A_THREAD: usize = 256;

/// How many events ahead of its turn an event, its machine, that one's tables and its fetch are called into the
/// processor's cache (guess: each call has the time of a few events, and all of it fits into the nearest cache).
const AHEAD: [usize; 4] = [16, 8, 4, 2];

/// What a flow is.
#[derive(Clone, Copy, Debug)]
enum Carried {
    Upload { ask: Ask, chunk: Chunk },
    FromStratum { chunk: Chunk },
}

/// Events for one part of the fleet, each with the machine that it reaches.
type Bucket = Vec<(u32, Event)>;

/// Events by the step in which they are due and by the part of the fleet that they reach.
#[derive(Debug)]
struct Calendar {
    now: u64,
    /// Machines in each part.
    each: u32,
    parts: usize,
    /// By step and part.
    ring: Vec<Bucket>,
    /// Emptied buckets: only the few that are in use own memory.
    spare: Vec<Bucket>,
    /// Wake-ups by step: apart, for they lie far ahead, few in a bucket, and most are outdated when due.
    wakes: Vec<Vec<u32>>,
    far: BTreeMap<u64, Bucket>,
    waiting: usize,
}

impl Calendar {
    fn new(machines: usize, parts: usize) -> Self {
        let each = u32::try_from(machines.div_ceil(parts)).unwrap_or(u32::MAX).max(1);
        Self {
            now: 0,
            each,
            parts,
            ring: (0..RING * parts).map(|_| Vec::new()).collect(),
            spare: Vec::new(),
            wakes: (0..RING).map(|_| Vec::new()).collect(),
            far: BTreeMap::new(),
            waiting: 0,
        }
    }

    fn part_of(&self, machine: u32) -> usize {
        (machine / self.each) as usize
    }

    /// Puts an event in line for a later step.
    fn push(&mut self, step: u64, to: u32, event: Event) {
        let step = step.max(self.now + 1);
        if step - self.now >= RING as u64 {
            self.far.entry(step).or_default().push((to, event));
            return;
        }
        self.waiting += 1;
        if matches!(event, Event::Wake) {
            self.wakes[place(step)].push(to);
            return;
        }
        let part = self.part_of(to);
        let bucket = &mut self.ring[place(step) * self.parts + part];
        if bucket.capacity() == 0
            && let Some(spare) = self.spare.pop()
        {
            *bucket = spare;
        }
        bucket.push((to, event));
    }

    /// Bytes on the heap; what lies far ahead is left out.
    fn heap_bytes(&self) -> usize {
        let buckets = self.ring.iter().chain(&self.spare).map(Vec::capacity).sum::<usize>();
        let wakes = self.wakes.iter().map(Vec::capacity).sum::<usize>();
        buckets * size_of::<(u32, Event)>() + wakes * size_of::<u32>()
    }

    fn is_empty_at(&self, step: u64) -> bool {
        let first = place(step) * self.parts;
        self.wakes[place(step)].is_empty() && self.ring[first..first + self.parts].iter().all(Vec::is_empty)
    }

    /// Goes to the next step, or when nothing moves to the next one with an event, and hands out what is due to each
    /// part, in the order in which it was put in line. `due` is empty before.
    fn next(&mut self, idle: bool, due: &mut [Bucket]) -> bool {
        self.now += 1;
        if idle {
            if self.waiting == 0 {
                let Some(first) = self.far.keys().next() else { return false };
                self.now = self.now.max(*first);
            } else {
                let first = self.far.keys().next().copied().unwrap_or(u64::MAX);
                while self.now < first && self.is_empty_at(self.now) {
                    self.now += 1;
                }
            }
        }
        let first = place(self.now) * self.parts;
        for (due, bucket) in due.iter_mut().zip(&mut self.ring[first..]) {
            self.waiting -= bucket.len();
            self.spare.push(std::mem::replace(due, std::mem::take(bucket)));
        }
        self.spare.retain(|spare| spare.capacity() > 0);
        let mut wakes = std::mem::take(&mut self.wakes[place(self.now)]);
        self.waiting -= wakes.len();
        for to in wakes.drain(..) {
            due[self.part_of(to)].push((to, Event::Wake));
        }
        for (to, event) in self.far.remove(&self.now).unwrap_or_default() {
            due[self.part_of(to)].push((to, event));
        }
        true
    }
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
    calendar: Calendar,
    traffic: Traffic<Carried>,
    delays: Delays,
    changes: Changes,
    step_ns: u64,
    lookup: u64,
    connections: u32,
    stratum_busy: u32,
    stratum_line: VecDeque<(u32, Chunk)>,
    /// What the stratum sends, by receiver.
    from_stratum: BTreeMap<(u32, Chunk), Handle>,
    /// Requests to the stratum that a cut link keeps.
    cut_off: Vec<(u32, Chunk)>,
    announced: BTreeMap<u32, Vec<Peer>>,
    queues: Option<Queues>,
    churn: Option<Churn>,
    stall: Option<Stall<Chunk>>,
    /// Who begins when, unless all do at once.
    arrivals: Option<Arrivals>,
    newcomer: Newcomer,
    deadline: Time,
    pub(super) unfinished: usize,
    /// Whether a machine ended since `unfinished` was counted.
    someone_ended: bool,
    pub(super) events: u64,
    pub(super) messages: u64,
    pub(super) transfers: u64,
    pub(super) strata_bytes: u64,
    /// By cell: what came in from outside of it.
    pub(super) crossed_bytes: Vec<u64>,
    recorder: Option<Box<Recorder>>,
}

/// What a machine begins with.
#[derive(Debug)]
struct Newcomer {
    settings: Arc<Settings>,
    /// How somebody reads on it.
    reading: Option<Arc<ReadPlan>>,
    class: Option<Class>,
    seed: u64,
}

/// The bucket of a step.
fn place(step: u64) -> usize {
    usize::try_from(step % RING as u64).unwrap_or(0)
}

/// The longest step of which the latency is a whole number and the transfer of a chunk at least a few.
pub(super) fn step_ns(chunk_s: f64, steps_per_chunk: f64, latency_ns: u64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, below 2^63")]
    let longest = ((chunk_s / steps_per_chunk * 1e9) as u64).max(1);
    if latency_ns == 0 { longest } else { latency_ns.div_ceil(latency_ns.div_ceil(longest)) }
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
        let step_ns = step_ns(chunk_s, network.model.steps_per_chunk(), network.latency_us * 1_000);
        let links = Links::new(scenario, seed, step_ns);
        let map = Arc::new(Map::new(scenario, seed));
        let content = Layout::new(scenario);
        let newcomer = Newcomer {
            settings: Arc::new(scenario.settings.clone()),
            reading: scenario.read_plan(content.chunks()).map(Arc::new),
            class: scenario.content.class,
            seed,
        };
        let mut machines: Vec<Machine> =
            (0..scenario.fleet.nodes).map(|me| newcomer.machine(me, &map, &content)).collect();
        for (machine, liar) in machines.iter_mut().zip(Liar::draw(scenario, seed)) {
            machine.liar = liar;
        }
        let deadline = Time::from_nanos(u64::from(scenario.content.deadline_s) * 1_000_000_000);
        let mut calendar = Calendar::new(nodes, threads.clamp(1, nodes));
        let (arrivals, first) = match Arrivals::new(scenario, seed, step_ns) {
            Some((arrivals, first)) => (Some(arrivals), first),
            None => (None, (0..scenario.fleet.nodes).map(|node| (1, node)).collect()),
        };
        for (step, to) in first {
            calendar.push(step, to, Event::WantAll(scenario.content.class, deadline));
        }
        Self {
            machines,
            content,
            calendar,
            queues: Queues::new(scenario, nodes + 1, step_ns),
            churn: Churn::new(scenario, seed, step_ns),
            stall: Stall::new(scenario, seed, step_ns),
            arrivals,
            newcomer,
            delays: Delays::new(scenario, seed, step_ns, |node| map.region_of(node)),
            changes: Changes::new(scenario, seed, step_ns, &links),
            traffic: Traffic::new(network.model, links, threads),
            map,
            step_ns,
            lookup: steps(network.lookup_ms * 1_000_000, step_ns),
            connections: scenario.stratum.connections,
            stratum_busy: 0,
            stratum_line: VecDeque::new(),
            from_stratum: BTreeMap::new(),
            cut_off: Vec::new(),
            announced: BTreeMap::new(),
            deadline,
            unfinished: nodes,
            someone_ended: false,
            events: 0,
            messages: 0,
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
        let now = self.calendar.now;
        if is_over || recorder.is_due(now) {
            let traffic = &self.traffic;
            let usage = |link| traffic.usage_of_link(link);
            let nodes = self.machines.iter().map(Machine::seen);
            recorder.look(now, nodes, traffic.receivers(), self.strata_bytes, usage);
        }
    }

    fn now(&self) -> Time {
        Time::from_nanos(self.calendar.now.saturating_mul(self.step_ns))
    }

    /// When a node began.
    pub(super) fn start(&self, node: u32) -> Time {
        let step = self.arrivals.as_ref().and_then(|arrivals| arrivals.start(node)).unwrap_or(0);
        Time::from_nanos(step.saturating_mul(self.step_ns))
    }

    pub(super) fn progress(&self) -> Progress {
        let wanted = self.machines.len() as u64 * u64::from(self.content.chunks());
        Progress { now: self.now(), transfers: self.transfers, wanted, events: self.events }
    }

    /// What the run takes in memory now, by part.
    pub(super) fn footprint(&self) -> Footprint {
        let mut footprint = Footprint::of_nodes(self.machines.len());
        for part in self.machines.iter().flat_map(Machine::footprint) {
            footprint.add(part);
        }
        footprint.add(("events in line", self.calendar.heap_bytes()));
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
        let parts = self.calendar.parts;
        let mut due: Vec<Bucket> = (0..parts).map(|_| Vec::new()).collect();
        let mut effects: Vec<Vec<(u32, Effect)>> = (0..parts).map(|_| Vec::new()).collect();
        let mut ended = Vec::new();
        while self.unfinished > 0 && self.calendar.next(self.traffic.is_idle(), &mut due) {
            self.change_links();
            self.replace_the_dead();
            self.end_stall();
            self.events += due.iter().map(Vec::len).sum::<usize>() as u64;
            self.react(&mut due, &mut effects);
            for list in &mut effects {
                for (from, effect) in list.drain(..) {
                    self.apply(from, effect);
                }
            }
            self.traffic.step(&mut ended);
            if let Some(queues) = &mut self.queues {
                queues.step(self.calendar.now, &self.traffic);
            }
            for flow in ended.drain(..) {
                self.finish(flow);
            }
            self.look(false);
            // Who looks only now and then must look before time jumps to what is far ahead: the run ends with the last node.
            let may_jump = self.someone_ended && self.traffic.is_idle();
            if self.calendar.now.is_multiple_of(64) || may_jump {
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
    fn react(&mut self, due: &mut [Bucket], effects: &mut [Vec<(u32, Effect)>]) {
        let (now, step_ns, each) = (self.now(), self.step_ns, self.calendar.each);
        let alone = due.iter().map(Vec::len).sum::<usize>() < WORTH_A_THREAD;
        let parts = self.machines.chunks_mut(each as usize).zip((0..).step_by(each as usize));
        let mut work = parts.zip(due).zip(effects);
        let own = work.next();
        std::thread::scope(|scope| {
            for (((machines, first), events), effects) in work {
                let mut react = move || react_all(now, step_ns, (first, machines), events, effects);
                if alone {
                    react();
                } else {
                    scope.spawn(react);
                }
            }
            if let Some((((machines, first), events), effects)) = own {
                react_all(now, step_ns, (first, machines), events, effects);
            }
        });
    }

    /// Steps from one node to another, with the waits at both links.
    fn way(&self, from: u32, to: u32) -> u64 {
        self.delays.way(from, to) + self.waits(from, to)
    }

    /// How long a message waits at links.
    fn waits(&self, from: u32, to: u32) -> u64 {
        self.queues.as_ref().map_or(0, |queues| queues.steps(from, to))
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
        self.traffic.usage(self.calendar.now)
    }

    /// Lets links become slower, faster or be cut, when it is time. Requests that a cut kept from the stratum go on.
    fn change_links(&mut self) {
        if !self.changes.apply(self.calendar.now, &mut self.traffic) {
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

    /// Lets nodes die, lets others notice, and begins replacements, when it is time.
    fn replace_the_dead(&mut self) {
        let Some(mut churn) = self.churn.take() else { return };
        let now = self.calendar.now;
        if churn.dies.is_some_and(|at| at <= now) {
            churn.dies = None;
            for victim in &churn.victims {
                self.machines[*victim as usize].dead = true;
            }
            for flow in self.traffic.stop_ends(&churn.victims) {
                if let Carried::FromStratum { chunk } = flow.what {
                    self.from_stratum.remove(&(flow.to, chunk));
                    self.stratum_busy -= 1;
                }
            }
            let lives = |waiting: &(u32, Chunk)| churn.victims.binary_search(&waiting.0).is_err();
            self.stratum_line.retain(lives);
            self.cut_off.retain(lives);
            self.fill_stratum();
        }
        if churn.noticed.is_some_and(|at| at <= now) {
            churn.noticed = None;
            self.tell_all(&churn.victims, Event::Down);
        }
        if churn.replaced.is_some_and(|at| at <= now) {
            churn.replaced = None;
            for victim in &churn.victims {
                let liar = self.machines[*victim as usize].liar.take();
                self.machines[*victim as usize] = self.newcomer.machine(*victim, &self.map, &self.content);
                self.machines[*victim as usize].liar = liar;
                // Who had not begun when it died begins in its turn.
                let start = self.arrivals.as_ref().map_or(Some(0), |arrivals| arrivals.start(*victim));
                if start.is_some_and(|start| start <= now) {
                    self.begin(vec![(now + 1, *victim)]);
                }
            }
            self.tell_all(&churn.victims, Event::Up);
        }
        self.churn = Some(churn);
    }

    /// Lets nodes want the content from a step on.
    fn begin(&mut self, starts: Vec<Start>) {
        for (step, node) in starts {
            self.calendar.push(step, node, Event::WantAll(self.newcomer.class, self.deadline));
        }
    }

    /// Lets requests go on that the stratum did not answer, when it does again.
    fn end_stall(&mut self) {
        let over = self.stall.as_mut().map(|stall| stall.over(self.calendar.now)).unwrap_or_default();
        if !over.is_empty() {
            for (from, chunk) in over {
                self.ask_stratum(from, chunk);
            }
            self.fill_stratum();
        }
    }

    /// Tells all that live of each of `whom`.
    fn tell_all(&mut self, whom: &[u32], event: fn(u32) -> Event) {
        for to in 0..u32::try_from(self.machines.len()).unwrap_or(u32::MAX) {
            for peer in whom.iter().filter(|peer| **peer != to) {
                self.calendar.push(self.calendar.now + 1, to, event(*peer));
            }
        }
    }

    fn apply(&mut self, from: u32, effect: Effect) {
        let now = self.calendar.now;
        if let Some(recorder) = &mut self.recorder {
            recorder.effect(now, from, &effect);
        }
        match effect {
            Effect::Send(to, event) => {
                self.messages += 1;
                if !self.is_cut(from, to) {
                    let waits = self.waits(from, to);
                    let arrival = self.delays.arrival(now, from, to, event.stream(), waits);
                    self.calendar.push(arrival, to, event);
                }
            }
            Effect::Serve { ask, to, chunk } => {
                // An ask that was withdrawn in the same moment, before this was put into effect, is not there any more, or
                // already another.
                let is_it = |incoming: &&mut Incoming| {
                    incoming.peer == to && incoming.chunk == chunk && incoming.flow.is_none()
                };
                if let Some(incoming) = self.machines[from as usize].incoming_mut(ask).filter(is_it) {
                    let flow = Flow { from, to, what: Carried::Upload { ask, chunk } };
                    incoming.flow = Some(self.traffic.start(flow, self.content.len_bytes(chunk)));
                }
            }
            Effect::StopServing(flow) => {
                if let Some(flow) = flow {
                    self.traffic.stop(flow);
                }
            }
            Effect::Upstream(chunk) => {
                self.messages += 1;
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
                let peers = self.announced.get(&segment.0).cloned().unwrap_or_default().into_boxed_slice();
                self.calendar.push(now + self.lookup, from, Event::Providers { segment, peers });
            }
            Effect::Announce(segment) => {
                let providers = self.announced.entry(segment.0).or_default();
                if providers.len() < PROVIDERS_MAX {
                    providers.push(Peer(from));
                }
            }
            Effect::Later(after_ms, event) => {
                let nanos = u64::from(after_ms) * 1_000_000;
                self.calendar.push(now + steps(nanos, self.step_ns), from, event);
            }
            Effect::WakeAt(at) => self.calendar.push(at.as_nanos() / self.step_ns, from, Event::Wake),
            Effect::Ended => {
                self.someone_ended = true;
                let starts = self.arrivals.as_mut().map(|arrivals| arrivals.ended(from, now));
                self.begin(starts.unwrap_or_default());
            }
        }
    }

    /// Lets requests in line begin. The way of the request itself is added to that of the data.
    fn fill_stratum(&mut self) {
        let stratum = self.stratum();
        while self.stratum_busy < self.connections {
            let Some((to, chunk)) = self.stratum_line.pop_front() else { return };
            self.stratum_busy += 1;
            if let Some(recorder) = &mut self.recorder {
                recorder.stratum_began(self.calendar.now, to, chunk);
            }
            let flow = Flow { from: stratum, to, what: Carried::FromStratum { chunk } };
            let handle = self.traffic.start(flow, self.content.len_bytes(chunk));
            self.from_stratum.insert((to, chunk), handle);
        }
    }

    fn finish(&mut self, flow: Flow<Carried>) {
        let now = self.calendar.now;
        self.transfers += 1;
        let cell = self.map.cell_of(flow.to);
        match flow.what {
            Carried::Upload { ask, chunk } => {
                if self.map.cell_of(flow.from) != cell {
                    self.crossed_bytes[cell as usize] += u64::from(self.content.len_bytes(chunk));
                }
                let wrong = self.machines[flow.from as usize].liar.as_ref().is_some_and(Liar::is_corrupt);
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
                self.calendar.push(now + self.way(flow.from, flow.to), flow.to, data);
                self.calendar.push(now + 1, flow.from, Event::Sent { ask, to: flow.to, chunk });
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
                self.calendar.push(now + request + self.way(flow.from, flow.to), flow.to, data);
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

fn react_all(
    now: Time,
    step_ns: u64,
    (first, machines): (u32, &mut [Machine]),
    events: &mut Bucket,
    effects: &mut Vec<(u32, Effect)>,
) {
    // Sorted by machine, and for each in the order in which they were put in line. Moving the numbers is less than moving
    // the events.
    let number = |(index, (to, _)): (u64, &(u32, Event))| u64::from(*to) << 32 | index;
    let mut order: Vec<u64> = (0_u64..).zip(&*events).map(number).collect();
    order.sort_unstable();
    let index_of = |number: u64| usize::try_from(number & u64::from(u32::MAX)).unwrap_or(0);
    let mut out = Outbox::default();
    let mut last = None;
    for (place, number) in order.iter().enumerate() {
        let [event, machine, tables, fetch] =
            AHEAD.map(|ahead| order.get(place + ahead).map(|n| index_of(*n)));
        if let Some(index) = event {
            prefetch(&raw const events[index]);
        }
        let machine_of = |index: usize| &machines[(events[index].0 - first) as usize];
        if let Some(index) = machine {
            machine_of(index).prefetch();
        }
        if let Some(index) = tables {
            machine_of(index).prefetch_tables(&events[index].1);
        }
        if let Some(index) = fetch {
            machine_of(index).prefetch_fetch(&events[index].1);
        }
        let index = index_of(*number);
        let to = events[index].0;
        let event = std::mem::replace(&mut events[index].1, Event::Wake);
        if let Some(before) = last.filter(|before| *before != to) {
            machines[(before - first) as usize].rest(now, step_ns, effects);
        }
        if machines[(to - first) as usize].dead {
            continue;
        }
        last = Some(to);
        machines[(to - first) as usize].react(now, event, &mut out, effects);
    }
    if let Some(last) = last {
        machines[(last - first) as usize].rest(now, step_ns, effects);
    }
    events.clear();
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
