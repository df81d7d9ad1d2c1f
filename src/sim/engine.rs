//! Virtual time: what happens in one step happens at once, messages take whole steps, flows share the links.
//!
//! The latency is a whole number of steps, and a node's link takes at least three to move a slice. Each step has three
//! parts: the events that are due reach their machines, ordered by machine; what the machines cause is put in line;
//! the flows move. The queue is a ring of buckets, one a step and part of the fleet (a calendar queue after Brown,
//! 1988), and a tree for what lies beyond it. Each thread has one part of the fleet. Nothing depends on their number or
//! on the machine that runs it: the same seed and scenario give the same run.

use super::churn::{Churn, Queues, Stall};
use super::fleet::{Effect, EvenContent, Event, Machine, Map};
use super::fluid::{Flow, Fluid};
use super::liar::Liar;
use super::reader::Reader;
use super::record::{Outcome, Record, Recorder, Recording};
use super::scenario::Scenario;
use crate::mesh::proto::{Ask, Chunk, Content as _, Outbox, Peer, Settings, Source};
use crate::model::{Class, Time};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Steps in the transfer of one slice over a whole link, at least (`fluid_oracle` shows the error).
pub(super) const STEPS_PER_SLICE: f64 = 3.0;
/// Steps that the ring of buckets covers.
const RING: usize = 1_024;
/// Providers that the DHT tells of.
const PROVIDERS_MAX: usize = 20;
/// Events that must be due at once before a second thread helps (guess: to begin a thread costs as much as 100).
const WORTH_A_THREAD: usize = 256;

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
}

/// A run under way.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) machines: Vec<Machine>,
    map: Arc<Map>,
    content: EvenContent,
    calendar: Calendar,
    fluid: Fluid<Carried>,
    step_ns: u64,
    latency: u64,
    region_latency: u64,
    lookup: u64,
    connections: u32,
    stratum_busy: u32,
    stratum_line: VecDeque<(u32, Chunk)>,
    announced: BTreeMap<u32, Vec<Peer>>,
    queues: Option<Queues>,
    churn: Option<Churn>,
    stall: Option<Stall>,
    newcomer: Newcomer,
    deadline: Time,
    pub(super) unfinished: usize,
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
    read_ahead: Option<u32>,
    class: Class,
    seed: u64,
}

/// The bucket of a step.
fn place(step: u64) -> usize {
    usize::try_from(step % RING as u64).unwrap_or(0)
}

/// The longest step of which the latency is a whole number and the transfer of a slice at least a few.
pub(super) fn step_ns(slice_s: f64, latency_ns: u64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, below 2^63")]
    let longest = ((slice_s / STEPS_PER_SLICE * 1e9) as u64).max(1);
    if latency_ns == 0 { longest } else { latency_ns.div_ceil(latency_ns.div_ceil(longest)) }
}

fn steps(span_ns: u64, step_ns: u64) -> u64 {
    span_ns.div_ceil(step_ns).max(1)
}

impl Engine {
    pub(super) fn new(scenario: &Scenario, seed: u64, threads: usize) -> Self {
        let bytes_s = |mbit_s: f64| mbit_s * 1e6 / 8.0;
        let (up, down) = (bytes_s(scenario.fleet.up_mbit_s), bytes_s(scenario.fleet.down_mbit_s));
        let chunk_s = f64::from(scenario.chunk_bytes()) / up.max(down);
        let step_ns = step_ns(chunk_s, scenario.network.latency_us * 1_000);
        let per_step = |bytes_s: f64| {
            #[expect(clippy::cast_possible_truncation, reason = "a rate, and it is a model")]
            let rate = (bytes_s * step_ns as f64 / 1e9) as f32;
            rate
        };
        let nodes = scenario.fleet.nodes as usize;
        let mut ups = vec![per_step(up); nodes];
        let mut downs = vec![per_step(down); nodes];
        ups.push(per_step(bytes_s(scenario.stratum.up_mbit_s)));
        downs.push(0.0);
        let map = Arc::new(Map::new(scenario, seed));
        let content = EvenContent::new(scenario);
        let newcomer = Newcomer {
            settings: Arc::new(scenario.settings.clone()),
            read_ahead: scenario.content.read_ahead_chunks,
            class: scenario.content.class,
            seed,
        };
        let mut machines: Vec<Machine> =
            (0..scenario.fleet.nodes).map(|me| newcomer.machine(me, &map, content)).collect();
        for (machine, liar) in machines.iter_mut().zip(Liar::draw(scenario, seed)) {
            machine.liar = liar;
        }
        let deadline = Time::from_nanos(u64::from(scenario.content.deadline_s) * 1_000_000_000);
        let mut calendar = Calendar::new(nodes, threads.clamp(1, nodes));
        for to in 0..scenario.fleet.nodes {
            calendar.push(1, to, Event::WantAll(scenario.content.class, deadline));
        }
        let fluid = match scenario.fleet.cell_down_mbit_s {
            None => Fluid::new(&ups, &downs),
            Some(rate) => {
                // The stratum lies outside of all cells.
                let cells = (0..scenario.fleet.nodes).map(|node| map.cell_of(node));
                let group = cells.chain([scenario.cells()]).collect();
                Fluid::with_doors(&ups, &downs, group, per_step(bytes_s(rate)))
            }
        };
        Self {
            machines,
            map,
            content,
            calendar,
            queues: Queues::new(scenario, nodes + 1, step_ns),
            churn: Churn::new(scenario, seed, step_ns),
            stall: Stall::new(scenario, seed, step_ns),
            newcomer,
            fluid,
            step_ns,
            latency: steps(scenario.network.latency_us * 1_000, step_ns),
            region_latency: steps(scenario.network.region_latency_us * 1_000, step_ns),
            lookup: steps(scenario.network.lookup_ms * 1_000_000, step_ns),
            connections: scenario.stratum.connections,
            stratum_busy: 0,
            stratum_line: VecDeque::new(),
            announced: BTreeMap::new(),
            deadline,
            unfinished: nodes,
            events: 0,
            messages: 0,
            transfers: 0,
            strata_bytes: 0,
            crossed_bytes: vec![0; scenario.cells() as usize],
            recorder: None,
        }
    }

    /// From now on, what happens is recorded.
    pub(super) fn record(&mut self, scenario: &Scenario, recording: &Recording) {
        self.fluid.meter(vec![u32::try_from(self.machines.len()).unwrap_or(u32::MAX)]);
        let recorder = Recorder::new(scenario, recording, self.step_ns, |node| self.map.cell_of(node));
        self.recorder = Some(Box::new(recorder));
    }

    /// What was recorded, if anything was.
    pub(super) fn take_record(&mut self) -> Option<Record> {
        self.look(true);
        Some(self.recorder.take()?.finish(&self.machines))
    }

    /// Lets the recorder look, when it is time or all is over.
    fn look(&mut self, is_over: bool) {
        let Some(recorder) = &mut self.recorder else { return };
        let now = self.calendar.now;
        if is_over || recorder.is_due(now) {
            let fluid = &self.fluid;
            let usage = |link| fluid.usage(link);
            recorder.look(now, &self.machines, fluid.receivers(), self.strata_bytes, usage);
        }
    }

    fn now(&self) -> Time {
        Time::from_nanos(self.calendar.now.saturating_mul(self.step_ns))
    }

    pub(super) fn progress(&self) -> Progress {
        let wanted = self.machines.len() as u64 * u64::from(self.content.chunks());
        Progress { now: self.now(), transfers: self.transfers, wanted }
    }

    /// Runs until all nodes have ended or nothing happens any more. `watch` is told now and then.
    pub(super) fn run(&mut self, watch: &mut dyn FnMut(Progress)) {
        let parts = self.calendar.parts;
        let mut due: Vec<Bucket> = (0..parts).map(|_| Vec::new()).collect();
        let mut effects: Vec<Vec<(u32, Effect)>> = (0..parts).map(|_| Vec::new()).collect();
        let mut ended = Vec::new();
        while self.unfinished > 0 && self.calendar.next(self.fluid.is_idle(), &mut due) {
            self.replace_the_dead();
            self.end_stall();
            self.events += due.iter().map(Vec::len).sum::<usize>() as u64;
            self.react(&mut due, &mut effects);
            for list in &mut effects {
                for (from, effect) in list.drain(..) {
                    self.apply(from, effect);
                }
            }
            self.fluid.step(&mut ended);
            if let Some(queues) = &mut self.queues {
                queues.step(self.calendar.now, &self.fluid);
            }
            for flow in ended.drain(..) {
                self.finish(flow);
            }
            self.look(false);
            if self.calendar.now.is_multiple_of(64) {
                self.unfinished = self.count_unfinished();
                watch(self.progress());
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
        let latency = if self.map.same_region(from, to) { self.latency } else { self.region_latency };
        latency + self.queues.as_ref().map_or(0, |queues| queues.steps(from, to))
    }

    /// Lets nodes die, lets others notice, and begins replacements, when it is time.
    fn replace_the_dead(&mut self) {
        let Some(mut churn) = self.churn.take() else { return };
        let now = self.calendar.now;
        if churn.dies.is_some_and(|at| at <= now) {
            churn.dies = None;
            for victim in &churn.victims {
                self.machines[*victim as usize].dead = true;
                let stratum = u32::try_from(self.machines.len()).unwrap_or(u32::MAX);
                self.fluid.stop(|flow| flow.from == *victim);
                self.fluid.stop(|flow| flow.to == *victim && flow.from != stratum);
                self.stratum_busy -= u32::try_from(self.fluid.stop(|flow| flow.to == *victim)).unwrap_or(0);
                self.stratum_line.retain(|waiting| waiting.0 != *victim);
            }
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
                self.machines[*victim as usize] = self.newcomer.machine(*victim, &self.map, self.content);
                self.machines[*victim as usize].liar = liar;
                self.calendar.push(now + 1, *victim, Event::WantAll(self.newcomer.class, self.deadline));
            }
            self.tell_all(&churn.victims, Event::Up);
        }
        self.churn = Some(churn);
    }

    /// Lets requests go on that the stratum did not answer, when it does again.
    fn end_stall(&mut self) {
        let over = self.stall.as_mut().map(|stall| stall.over(self.calendar.now)).unwrap_or_default();
        if !over.is_empty() {
            self.stratum_line.extend(over);
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
                self.calendar.push(now + self.way(from, to), to, event);
            }
            Effect::Serve { ask, to, chunk } => {
                let bytes = self.content.len_bytes(chunk) as f32;
                self.fluid.start(Flow { from, to, what: Carried::Upload { ask, chunk } }, bytes);
            }
            Effect::StopServing { to, chunk } => {
                let is_it =
                    |carried| matches!(carried, Carried::Upload { chunk: other, .. } if other == chunk);
                self.fluid.stop(|flow| flow.from == from && flow.to == to && is_it(flow.what));
            }
            Effect::Upstream(chunk) => {
                self.messages += 1;
                if !self.stall.as_mut().is_some_and(|stall| stall.holds(now, from, chunk)) {
                    self.stratum_line.push_back((from, chunk));
                    self.fill_stratum();
                }
            }
            Effect::StopUpstream(chunk) => {
                self.stratum_line.retain(|waiting| *waiting != (from, chunk));
                if let Some(stall) = &mut self.stall {
                    stall.drop(from, chunk);
                }
                let is_it =
                    |carried| matches!(carried, Carried::FromStratum { chunk: other } if other == chunk);
                let stopped = self.fluid.stop(|flow| flow.to == from && is_it(flow.what));
                self.stratum_busy -= u32::try_from(stopped).unwrap_or(0);
                self.fill_stratum();
            }
            Effect::Find(segment) => {
                let peers = self.announced.get(&segment.0).cloned().unwrap_or_default();
                self.calendar.push(now + self.lookup, from, Event::Providers { segment, peers });
            }
            Effect::Announce(segment) => {
                let providers = self.announced.entry(segment.0).or_default();
                if providers.len() < PROVIDERS_MAX {
                    providers.push(Peer(from));
                }
            }
            Effect::Later(span, event) => {
                let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
                self.calendar.push(now + steps(nanos, self.step_ns), from, event);
            }
            Effect::WakeAt(at) => self.calendar.push(at.as_nanos() / self.step_ns, from, Event::Wake),
        }
    }

    /// Lets requests in line begin. The way of the request itself is added to that of the data.
    fn fill_stratum(&mut self) {
        let stratum = u32::try_from(self.machines.len()).unwrap_or(u32::MAX);
        while self.stratum_busy < self.connections {
            let Some((to, chunk)) = self.stratum_line.pop_front() else { return };
            self.stratum_busy += 1;
            if let Some(recorder) = &mut self.recorder {
                recorder.stratum_began(self.calendar.now, to, chunk);
            }
            let bytes = self.content.len_bytes(chunk) as f32;
            self.fluid.start(Flow { from: stratum, to, what: Carried::FromStratum { chunk } }, bytes);
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
                self.calendar.push(now + 1, flow.from, Event::Sent { ask });
            }
            Carried::FromStratum { chunk } => {
                self.strata_bytes += u64::from(self.content.len_bytes(chunk));
                self.crossed_bytes[cell as usize] += u64::from(self.content.len_bytes(chunk));
                self.stratum_busy -= 1;
                if let Some(recorder) = &mut self.recorder {
                    let moved = (chunk, self.content.len_bytes(chunk));
                    recorder.moved(now, (None, flow.to), moved, Outcome::Received);
                }
                let data = Event::Data { chunk, from: Source::Strata };
                self.calendar.push(now + self.latency + self.way(flow.from, flow.to), flow.to, data);
                self.fill_stratum();
            }
        }
    }
}

impl Newcomer {
    fn machine(&self, me: u32, map: &Arc<Map>, content: EvenContent) -> Machine {
        let reader = self.read_ahead.map(|ahead| Reader::new(content.chunks(), ahead));
        Machine::new(me, map, content, &self.settings, reader, self.seed)
    }
}

fn react_all(
    now: Time,
    step_ns: u64,
    (first, machines): (u32, &mut [Machine]),
    events: &mut Bucket,
    effects: &mut Vec<(u32, Effect)>,
) {
    events.sort_by_key(|(to, _)| *to);
    let mut out = Outbox::default();
    let mut last = None;
    for (to, event) in events.drain(..) {
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
}
