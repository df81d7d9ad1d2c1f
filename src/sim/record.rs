//! What a run leaves for its reports: of each node, of each link, and of the whole in samples over time.
//!
//! A recorder looks at a run from outside, at steps of its own choice, and changes nothing in it. It begins with every step;
//! whenever it has [`SAMPLES_MAX`] samples it forgets every other one and looks half as often. So a record has a bounded size
//! and a known grain, whatever the run's length is. Bytes are counted, not sampled; where a node's time went is sampled: the
//! time since the last look counts as what the node does at this one.

use super::fleet::{Effect, Event, Machine, Says};
use super::network::{BUSY, SharedLink, Usage, classes, node_rates};
use super::scenario::Scenario;
use crate::mesh::proto::Chunk;
use crate::model::Time;
use std::collections::BTreeMap;

/// Samples that a record has at most.
pub const SAMPLES_MAX: usize = 512;
/// Links whose use over time is kept; of others there are totals.
const SERIES_MAX: usize = 1_024;
/// Rows of nodes' links that stand for all: cells, or where there are more, as many stretches of neighbouring cells.
const GROUPS_MAX: u32 = 32;
/// Nodes whose transfers are recorded one by one.
pub const TRACED_MAX: usize = 16;
/// Transfers that are recorded of each of them; later ones are counted.
pub const TRANSFERS_MAX: usize = 20_000;

/// What is to be recorded beside what always is.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// Nodes whose transfers are recorded one by one, at most [`TRACED_MAX`] of them.
    pub traced: Vec<u32>,
}

impl Recording {
    /// The nodes that are traced when nobody names others: eight, spread evenly over the fleet.
    pub fn spread(nodes: u32) -> Self {
        let count = nodes.min(8);
        let place = |index: u32| (2 * u64::from(index) + 1) * u64::from(nodes) / (2 * u64::from(count));
        Self { traced: (0..count).filter_map(|index| u32::try_from(place(index)).ok()).collect() }
    }
}

/// What a run left.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// Names of the classes of nodes.
    pub classes: Vec<String>,
    /// By number of the node.
    pub nodes: Vec<NodeRecord>,
    /// The links that nodes share and the stratum's, then the nodes' own together, cell by cell.
    pub links: Vec<LinkRecord>,
    /// Over time, at most [`SAMPLES_MAX`].
    pub samples: Vec<Sample>,
    /// Of the nodes that were traced.
    pub traces: Vec<Trace>,
}

/// What became of a node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NodeRecord {
    /// Its class, by number among the record's.
    pub class: u16,
    /// Its region.
    pub region: u32,
    /// Its cell, counted through all regions.
    pub cell: u32,
    /// Whether it lied.
    pub liar: bool,
    /// When it began to want the content, in seconds.
    pub start_s: f64,
    /// When it had everything, in seconds, if it ever did.
    pub end_s: Option<f64>,
    /// Chunks that it gave up.
    pub given_up: u32,
    /// Bytes that it took from the stratum.
    pub from_strata: u64,
    /// Bytes that it took from others.
    pub from_peers: u64,
    /// Bytes that it gave to others.
    pub given: u64,
    /// Seconds in which something was on its way to it.
    pub receiving_s: f64,
    /// Seconds in which nothing was, but it waited for something that it had asked for or looked for.
    pub waiting_s: f64,
    /// All other seconds between its start and its end.
    pub idle_s: f64,
}

/// What a link did, or several that are counted as one.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkRecord {
    /// Which.
    pub name: String,
    /// What it can carry, in bytes a second.
    pub capacity: f64,
    /// What it carried, in bytes.
    pub bytes: f64,
    /// The share of the run's time in which it was busy, that is, carried 98 % of its capacity or more.
    pub busy_share: f64,
    /// What it had carried by each sample, in bytes; empty where that was not kept.
    pub over_time: Vec<f64>,
}

/// The state of a run at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// The moment, in seconds.
    pub at_s: f64,
    /// Honest nodes that have everything.
    pub completed: u32,
    /// Honest nodes to which something is on its way.
    pub receiving: u32,
    /// Honest nodes to which nothing is, but that wait for something.
    pub waiting: u32,
    /// Honest nodes that do not have everything and do neither.
    pub idle: u32,
    /// Bytes that left the stratum until now.
    pub strata_bytes: u64,
    /// Bytes that went from one region to another until now.
    pub between_regions_bytes: u64,
}

/// How an ask or a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All bytes came.
    Received,
    /// Other bytes came.
    Wrong,
    /// Who was asked had no upload free.
    Busy,
    /// Who was asked did not have it.
    Missing,
    /// The node called it off.
    Withdrawn,
}

impl Outcome {
    /// The outcome as reports name it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Wrong => "wrong bytes",
            Self::Busy => "busy",
            Self::Missing => "missing",
            Self::Withdrawn => "withdrawn",
        }
    }
}

/// One ask of a traced node, and what came of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transfer {
    /// Which chunk.
    pub chunk: u32,
    /// Who was asked; nobody stands for the stratum.
    pub from: Option<u32>,
    /// When it was asked, in seconds.
    pub asked_s: f64,
    /// When the bytes began to move, if they did.
    pub began_s: Option<f64>,
    /// When the last one had moved, or it ended otherwise.
    pub ended_s: f64,
    /// How it ended.
    pub outcome: Outcome,
}

/// What a traced node asked for, in the order in which it ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// Which node.
    pub node: u32,
    /// At most [`TRANSFERS_MAX`].
    pub transfers: Vec<Transfer>,
    /// How many more there were.
    pub omitted: u64,
}

/// What a recorder sees of a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// When it ended.
    pub(super) finished: Option<Time>,
    /// Whether it waits for something, if it has not ended.
    pub(super) waits: bool,
    /// Whether it lies.
    pub(super) liar: bool,
    /// Chunks that it gave up.
    pub(super) given_up: u32,
    pub(super) from_strata: u64,
    pub(super) from_peers: u64,
    pub(super) given: u64,
}

impl Machine {
    /// What a recorder sees of it.
    pub(super) fn seen(&self) -> Seen {
        Seen {
            finished: self.finished,
            waits: !self.dead && self.is_fetching(),
            liar: self.liar.is_some(),
            given_up: self.given_up,
            from_strata: self.from_strata,
            from_peers: self.from_peers,
            given: self.given,
        }
    }
}

/// Looks at a run.
#[derive(Debug)]
pub(super) struct Recorder {
    step_ns: u64,
    /// Steps between two looks.
    interval: u64,
    /// The step of the last look.
    last: u64,
    /// By node: its cell.
    cells: Vec<u32>,
    /// By server of a strategy: its cell. Servers are the ends after the stratum.
    servers: Vec<u32>,
    cells_per_region: u32,
    cells_per_group: u32,
    /// By group: the nodes' uplinks and downlinks as one each, which the network does not know.
    groups: Vec<[Watched; 2]>,
    /// The links that many share.
    links: Vec<Watched>,
    between_regions_bytes: u64,
    class_names: Vec<String>,
    /// By node: its class, and as many as there are names for none. Empty without classes.
    classes: Vec<u8>,
    /// By node: steps in which it received, and in which it waited.
    spent: Vec<[u64; 2]>,
    /// By node, at this look.
    receives: Vec<bool>,
    samples: Vec<Sample>,
    tracer: Tracer,
}

#[derive(Debug)]
struct Watched {
    /// By which the network knows it, if it does.
    number: u32,
    name: String,
    capacity: f64,
    usage: Usage,
    over_time: Vec<f64>,
}

impl Watched {
    fn new(name: String, capacity: f64, number: u32) -> Self {
        Self { number, name, capacity, usage: Usage::default(), over_time: Vec::new() }
    }

    fn finish(self, steps: u64) -> LinkRecord {
        LinkRecord {
            name: self.name,
            capacity: self.capacity,
            bytes: self.usage.bytes,
            busy_share: self.usage.busy_steps / steps.max(1) as f64,
            over_time: self.over_time,
        }
    }
}

/// The names of the classes of nodes, the last of them that of the nodes of none.
pub(super) fn class_names(scenario: &Scenario) -> Vec<String> {
    let classes = scenario.fleet.class.iter().map(|class| class.name.clone());
    let rest = if scenario.fleet.class.is_empty() { "node" } else { "other" };
    classes.chain([rest.to_owned()]).collect()
}

impl Recorder {
    /// Of a run that has not begun.
    pub(super) fn new(
        scenario: &Scenario,
        seed: u64,
        recording: &Recording,
        step_ns: u64,
        cell_of: impl Fn(u32) -> u32,
        shared: &[SharedLink],
    ) -> Self {
        let cells: Vec<u32> = (0..scenario.fleet.nodes).map(cell_of).collect();
        let per_second = 1e9 / step_ns as f64;
        let watched = |link: &SharedLink| {
            Watched::new(link.name.clone(), link.bytes_per_step * per_second, link.number)
        };
        let cells_per_group = scenario.cells().div_ceil(GROUPS_MAX).max(1);
        let mut sums = vec![[0.0; 2]; scenario.cells().div_ceil(cells_per_group) as usize];
        for (cell, rates) in cells.iter().zip(node_rates(scenario, seed)) {
            for (sum, rate) in sums[(cell / cells_per_group) as usize].iter_mut().zip(rates) {
                *sum += rate * 1e6 / 8.0;
            }
        }
        let group = |(number, sums): (u32, [f64; 2])| {
            let first = number * cells_per_group;
            let last = (first + cells_per_group).min(scenario.cells()) - 1;
            let place = if first == last { format!("cell {first}") } else { format!("cells {first}-{last}") };
            let [up, down] = sums;
            let watched = |way, sum| Watched::new(format!("{way} of the nodes of {place}"), sum, u32::MAX);
            [watched("uplinks", up), watched("downlinks", down)]
        };
        Self {
            step_ns,
            interval: 1,
            last: 0,
            cells_per_region: scenario.fleet.cells_per_region,
            cells_per_group,
            groups: (0..).zip(sums).map(group).collect(),
            links: shared.iter().map(watched).collect(),
            between_regions_bytes: 0,
            class_names: class_names(scenario),
            classes: classes(scenario.fleet.nodes, &scenario.fleet.class, seed),
            spent: vec![[0; 2]; cells.len()],
            receives: vec![false; cells.len()],
            cells,
            servers: Vec::new(),
            samples: Vec::new(),
            tracer: Tracer::new(recording),
        }
    }

    /// The same, of a strategy that has servers in these cells.
    pub(super) fn with_servers(mut self, cells: &[u32]) -> Self {
        self.servers = cells.to_vec();
        self
    }

    /// Whether it is time for another look.
    pub(super) fn is_due(&self, step: u64) -> bool {
        step >= self.last + self.interval
    }

    /// Whether nodes are traced: then it wants to know what machines cause.
    pub(super) fn traces(&self) -> bool {
        !self.tracer.traces.is_empty()
    }

    /// Notes what a machine causes.
    pub(super) fn effect(&mut self, step: u64, from: u32, effect: &Effect) {
        let now_s = self.seconds(step);
        self.tracer.effect(now_s, from, effect);
    }

    /// Somebody sends a piece that nobody asked for by itself.
    pub(super) fn moves(&mut self, step: u64, (from, to): (Option<u32>, u32), piece: u32) {
        if self.tracer.place(to).is_some() {
            let now_s = self.seconds(step);
            self.tracer.asked(now_s, to, from, Chunk(piece));
            self.tracer.began(now_s, to, from, Chunk(piece));
        }
    }

    /// The stratum begins to send.
    pub(super) fn stratum_began(&mut self, step: u64, to: u32, chunk: Chunk) {
        let now_s = self.seconds(step);
        self.tracer.began(now_s, to, None, chunk);
    }

    /// A transfer ended; nobody sent it if the stratum did.
    pub(super) fn moved(
        &mut self,
        step: u64,
        (from, to): (Option<u32>, u32),
        (chunk, bytes): (Chunk, u32),
        outcome: Outcome,
    ) {
        let region = |end: u32| self.cell_of(end).map(|cell| cell / self.cells_per_region);
        if from.is_some_and(|from| region(from) != region(to)) {
            self.between_regions_bytes += u64::from(bytes);
        }
        // Servers have links of their own in the record.
        let cell = |end: u32| self.cells.get(end as usize).copied();
        for (way, cell) in [from.and_then(cell), cell(to)].into_iter().enumerate() {
            if let Some(cell) = cell {
                self.groups[(cell / self.cells_per_group) as usize][way].usage.bytes += f64::from(bytes);
            }
        }
        let now_s = self.seconds(step);
        self.tracer.ended(now_s, to, from, chunk, outcome);
    }

    /// The cell of a node or server.
    fn cell_of(&self, end: u32) -> Option<u32> {
        let node = self.cells.get(end as usize);
        node.or_else(|| self.servers.get((end as usize).checked_sub(self.cells.len() + 1)?)).copied()
    }

    /// Looks at everything.
    pub(super) fn look(
        &mut self,
        step: u64,
        nodes: impl Iterator<Item = Seen>,
        receivers: impl Iterator<Item = u32>,
        strata_bytes: u64,
        usage: impl Fn(u32) -> Usage,
    ) {
        if step == self.last && !self.samples.is_empty() {
            return;
        }
        self.receives.fill(false);
        for to in receivers {
            if let Some(receives) = self.receives.get_mut(to as usize) {
                *receives = true;
            }
        }
        let mut sample = Sample {
            at_s: self.seconds(step),
            strata_bytes,
            between_regions_bytes: self.between_regions_bytes,
            ..Sample::default()
        };
        for ((node, spent), receives) in nodes.zip(&mut self.spent).zip(&self.receives) {
            let honest = u32::from(!node.liar);
            match node.finished {
                Some(end) => {
                    // Until then it received: that is how nodes end.
                    spent[0] += (end.as_nanos() / self.step_ns).saturating_sub(self.last);
                    sample.completed += honest * u32::from(node.given_up == 0);
                }
                None if *receives => {
                    spent[0] += step - self.last;
                    sample.receiving += honest;
                }
                None if node.waits => {
                    spent[1] += step - self.last;
                    sample.waiting += honest;
                }
                None => sample.idle += honest,
            }
        }
        for link in &mut self.links {
            link.usage = usage(link.number);
        }
        let span_s = (step - self.last) as f64 * self.step_ns as f64 / 1e9;
        for link in self.groups.iter_mut().flatten() {
            let before = link.over_time.last().copied().unwrap_or(0.0);
            if link.usage.bytes - before >= link.capacity * span_s * BUSY {
                link.usage.busy_steps += (step - self.last) as f64;
            }
        }
        for link in self.links.iter_mut().take(SERIES_MAX).chain(self.groups.iter_mut().flatten()) {
            link.over_time.push(link.usage.bytes);
        }
        self.last = step;
        self.samples.push(sample);
        if self.samples.len() == SAMPLES_MAX {
            self.interval *= 2;
            thin(&mut self.samples);
            for link in self.links.iter_mut().chain(self.groups.iter_mut().flatten()) {
                thin(&mut link.over_time);
            }
        }
    }

    fn seconds(&self, step: u64) -> f64 {
        step as f64 * self.step_ns as f64 / 1e9
    }

    /// The record, after the last look. `start_s` says when a node began.
    pub(super) fn finish(self, nodes: impl Iterator<Item = Seen>, start_s: impl Fn(u32) -> f64) -> Record {
        let Self { class_names, classes, .. } = &self;
        let (step_s, steps, end_s) = (self.seconds(1), self.last, self.seconds(self.last));
        let node = |(((number, seen), cell), spent): (((u32, Seen), &u32), &[u64; 2])| {
            let [receiving_s, waiting_s] = spent.map(|steps| steps as f64 * step_s);
            let finished_s = seen.finished.map(Time::as_secs_f64);
            let start_s = start_s(number);
            let all_s = (finished_s.unwrap_or(end_s) - start_s).max(0.0);
            let class =
                classes.get(number as usize).map_or(class_names.len() - 1, |class| usize::from(*class));
            NodeRecord {
                class: u16::try_from(class).unwrap_or(u16::MAX),
                region: cell / self.cells_per_region,
                cell: *cell,
                liar: seen.liar,
                start_s,
                end_s: finished_s.filter(|_| seen.given_up == 0),
                given_up: seen.given_up,
                from_strata: seen.from_strata,
                from_peers: seen.from_peers,
                given: seen.given,
                receiving_s,
                waiting_s,
                idle_s: (all_s - receiving_s - waiting_s).max(0.0),
            }
        };
        let nodes = (0..).zip(nodes).zip(&self.cells).zip(&self.spent).map(node).collect();
        let links = self.links.into_iter().chain(self.groups.into_iter().flatten());
        Record {
            classes: self.class_names,
            nodes,
            links: links.map(|link| link.finish(steps)).collect(),
            samples: self.samples,
            traces: self.tracer.traces,
        }
    }
}

/// Forgets every other one, but not the last.
fn thin<T>(values: &mut Vec<T>) {
    let mut odd = true;
    values.retain(|_| {
        odd = !odd;
        odd
    });
}

/// What is under way for the nodes that are traced.
#[derive(Debug)]
struct Tracer {
    /// In the order of their numbers.
    traces: Vec<Trace>,
    /// When it was asked, and when the bytes began to move.
    open: BTreeMap<OpenAsk, (f64, Option<f64>)>,
}

/// Node, who was asked, chunk.
type OpenAsk = (u32, Option<u32>, u32);

impl Tracer {
    fn new(recording: &Recording) -> Self {
        let mut nodes = recording.traced.clone();
        nodes.truncate(TRACED_MAX);
        nodes.sort_unstable();
        nodes.dedup();
        let trace = |node| Trace { node, transfers: Vec::new(), omitted: 0 };
        Self { traces: nodes.into_iter().map(trace).collect(), open: BTreeMap::new() }
    }

    fn place(&self, node: u32) -> Option<usize> {
        self.traces.binary_search_by_key(&node, |trace| trace.node).ok()
    }

    fn effect(&mut self, now_s: f64, from: u32, effect: &Effect) {
        match effect {
            Effect::Upstream(chunk) => self.asked(now_s, from, None, *chunk),
            Effect::StopUpstream(chunk) => self.ended(now_s, from, None, *chunk, Outcome::Withdrawn),
            Effect::Serve { to, chunk, .. } => self.began(now_s, *to, Some(from), *chunk),
            Effect::Send(to, Event::Ask { chunk, .. }) => self.asked(now_s, from, Some(*to), *chunk),
            Effect::Send(to, Event::Withdraw { chunk, .. }) => {
                self.ended(now_s, from, Some(*to), *chunk, Outcome::Withdrawn);
            }
            Effect::Send(to, Event::Answer { chunk, says, .. }) => match says {
                Says::Wait => {}
                Says::Busy => self.ended(now_s, *to, Some(from), *chunk, Outcome::Busy),
                Says::Missing => self.ended(now_s, *to, Some(from), *chunk, Outcome::Missing),
            },
            _ => {}
        }
    }

    fn asked(&mut self, now_s: f64, node: u32, from: Option<u32>, chunk: Chunk) {
        if self.place(node).is_some() && self.open.len() < TRANSFERS_MAX {
            self.open.insert((node, from, chunk.0), (now_s, None));
        }
    }

    fn began(&mut self, now_s: f64, node: u32, from: Option<u32>, chunk: Chunk) {
        if let Some((_, began)) = self.open.get_mut(&(node, from, chunk.0)) {
            *began = Some(now_s);
        }
    }

    fn ended(&mut self, now_s: f64, node: u32, from: Option<u32>, chunk: Chunk, outcome: Outcome) {
        let Some(place) = self.place(node) else { return };
        let Some((asked_s, began_s)) = self.open.remove(&(node, from, chunk.0)) else { return };
        let trace = &mut self.traces[place];
        if trace.transfers.len() >= TRANSFERS_MAX {
            trace.omitted += 1;
            return;
        }
        let chunk = chunk.0;
        trace.transfers.push(Transfer { chunk, from, asked_s, began_s, ended_s: now_s, outcome });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Report, simulate, simulate_recorded};

    const SMALL: &str = "
seed = 1
[fleet]
nodes = 60
regions = 2
cells_per_region = 2
up_mbit_s = 1_000
down_mbit_s = 1_000
[network]
latency_us = 500
links.cell_down_mbit_s = 4_000
[content]
bytes = 50_000_000
slice_bytes = 1_048_576
class = 'Fill'
deadline_s = 60
[stratum]
up_mbit_s = 2_000
connections = 64
";

    fn recorded(text: &str, threads: usize, traced: &[u32]) -> (Report, Record) {
        let scenario = Scenario::parse(text).unwrap();
        let recording = Recording { traced: traced.to_vec() };
        simulate_recorded(&scenario, None, &recording, threads, &mut |_| {})
    }

    #[test]
    fn to_record_a_run_changes_nothing_in_it_and_threads_change_nothing_in_the_record() {
        let (report, record) = recorded(SMALL, 1, &[3, 40]);
        let plain = simulate(&Scenario::parse(SMALL).unwrap(), None, 1, &mut |_| {});
        assert_eq!(report, plain);
        assert_eq!(recorded(SMALL, 3, &[3, 40]).1, record);
    }

    #[test]
    fn the_time_of_a_node_is_divided_without_rest() {
        let (report, record) = recorded(SMALL, 1, &[]);
        assert_eq!(record.nodes.len(), 60);
        for node in &record.nodes {
            let end = node.end_s.unwrap();
            let sum = node.receiving_s + node.waiting_s + node.idle_s;
            assert!((sum - end).abs() < 1e-6, "{sum} s of {end} s");
            // 50 MB take 0.4 s through 1 Gbit/s; a transfer that ends within a step is not seen in it.
            assert!(node.receiving_s > 0.35, "nobody receives faster than the downlink: {node:?}");
            assert_eq!(node.from_strata + node.from_peers, 50_000_000);
        }
        let last = record.nodes.iter().filter_map(|node| node.end_s).fold(0.0, f64::max);
        assert!((last - report.rollout.makespan_s).abs() < 1e-9);
        let cells: Vec<(u32, u32)> = record.nodes.iter().map(|node| (node.region, node.cell)).collect();
        assert_eq!((cells[0], cells[29], cells[30], cells[59]), ((0, 0), (0, 1), (1, 2), (1, 3)));
    }

    #[test]
    fn links_carry_what_nodes_took_and_gave() {
        let (report, record) = recorded(SMALL, 1, &[]);
        let names: Vec<&str> = record.links.iter().map(|link| link.name.as_str()).collect();
        assert_eq!(names[..3], ["uplink of the stratum", "downlink of cell 0", "downlink of cell 1"]);
        assert_eq!(names[5..7], ["uplinks of the nodes of cell 0", "downlinks of the nodes of cell 0"]);
        assert_eq!(names.len(), 1 + 4 + 2 * 4);
        let strata = report.rollout.strata_bytes as f64;
        let metered = record.links[0].bytes;
        assert!((metered - strata).abs() < 0.01 * strata, "{metered} of {strata} bytes left the stratum");
        let sum = |way: &str| {
            let of = |link: &&LinkRecord| link.name.starts_with(way) && link.name.contains("nodes");
            record.links.iter().filter(of).map(|link| link.bytes).sum::<f64>()
        };
        let taken = record.nodes.iter().map(|node| node.from_peers + node.from_strata).sum::<u64>();
        let given = record.nodes.iter().map(|node| node.given).sum::<u64>();
        assert_eq!((sum("downlinks"), sum("uplinks")), (taken as f64, given as f64));
        for link in &record.links {
            let most = link.capacity * report.rollout.makespan_s * 1.05;
            assert!(link.bytes > 0.0 && link.bytes <= most, "{link:?}");
            assert!((0.0..=1.0).contains(&link.busy_share), "{link:?}");
            assert_eq!(link.over_time.len(), record.samples.len());
            // To the byte: the network counts in small floating-point numbers.
            assert!(link.over_time.is_sorted_by(|a, b| *a <= b + 1.0), "{link:?}");
            assert_eq!(link.over_time.last(), Some(&link.bytes), "{}", link.name);
        }
    }

    #[test]
    fn samples_are_bounded_and_lead_to_the_end() {
        // About 1 ms a step at the least: more than a thousand of them.
        let text = SMALL.replace("latency_us = 500", "latency_us = 100").replace("1_000\n", "200\n");
        // The other region begins when the first is done, and takes what that announced.
        let text =
            format!("{text}[arrival]\norder = 'by-cell'\n[arrival.waves]\nper_cent = 50\nevery_ms = 6_000\n");
        let (report, record) = recorded(&text, 1, &[]);
        let samples = &record.samples;
        assert!(samples.len() <= SAMPLES_MAX && samples.len() > SAMPLES_MAX / 4, "{}", samples.len());
        assert!(samples.is_sorted_by(|a, b| {
            a.at_s < b.at_s
                && a.completed <= b.completed
                && a.strata_bytes <= b.strata_bytes
                && a.between_regions_bytes <= b.between_regions_bytes
        }));
        for sample in samples {
            assert_eq!(sample.completed + sample.receiving + sample.waiting + sample.idle, 60);
        }
        let last = samples.last().unwrap();
        assert_eq!((last.completed, last.strata_bytes), (60, report.rollout.strata_bytes));
        assert!(last.at_s >= report.rollout.makespan_s && last.between_regions_bytes > 0);
    }

    #[test]
    fn of_a_traced_node_every_chunk_is_there_once() {
        let (_, record) = recorded(SMALL, 1, &[40, 3]);
        assert_eq!(record.traces.iter().map(|trace| trace.node).collect::<Vec<_>>(), [3, 40]);
        for trace in &record.traces {
            let node = &record.nodes[trace.node as usize];
            let came = || trace.transfers.iter().filter(|transfer| transfer.outcome == Outcome::Received);
            let chunks: std::collections::BTreeSet<u32> = came().map(|transfer| transfer.chunk).collect();
            assert_eq!(chunks.len(), 48, "50 MB in chunks of a MiB");
            let from_strata = came().filter(|transfer| transfer.from.is_none()).count() as u64;
            assert_eq!(from_strata, node.from_strata.div_ceil(1 << 20), "{from_strata} from the stratum");
            for transfer in came() {
                let began_s = transfer.began_s.unwrap();
                assert!(transfer.asked_s <= began_s && began_s < transfer.ended_s, "{transfer:?}");
            }
            assert_eq!(trace.omitted, 0);
        }
    }

    #[test]
    fn every_other_one_is_forgotten_and_the_last_is_kept() {
        let mut values: Vec<u32> = (1..=8).collect();
        thin(&mut values);
        assert_eq!(values, [2, 4, 6, 8]);
        assert_eq!(Recording::spread(32).traced, [2, 6, 10, 14, 18, 22, 26, 30]);
        assert_eq!(Recording::spread(3).traced, [0, 1, 2]);
    }
}
