//! Lets time pass: what is due reaches the strategy, faults happen, pieces move.
//!
//! A step has the same parts as with Starling: links change, nodes die or are replaced; what is due happens, in the order in
//! which it was put in line; pieces move. All of it is done by one thread, so that it cannot depend on their number.

use super::Strategy;
use super::pieces::Layout;
use super::world::{Account, Due, World};
use crate::model::Time;
use crate::sim::arrival::{Arrivals, Start};
use crate::sim::bound::{Servers, bound_of};
use crate::sim::churn::{Churn, Fate};
use crate::sim::engine::Progress;
use crate::sim::envelope;
use crate::sim::record::{Record, Recorder, Recording, Seen};
use crate::sim::report::Report;
use crate::sim::rollout::{Moved, Rollout, quantile};
use crate::sim::scenario::{Cache, Scenario};

/// Steps after which whoever watches is told.
const WATCH_EVERY: u64 = 256;

struct Engine<S: Strategy> {
    strategy: S,
    world: World<S::Note>,
    churn: Option<Churn>,
    arrivals: Option<Arrivals>,
    deadline: Time,
    unfinished: usize,
}

/// Runs a scenario under a strategy.
pub(super) fn run<S: Strategy>(
    scenario: &Scenario,
    seed: u64,
    layout: Layout,
    recording: Option<&Recording>,
    watch: &mut dyn FnMut(Progress),
) -> (Report, Record) {
    let setup = S::setup(scenario, layout);
    let servers = Servers {
        mbit_s: setup.servers.mbit_s * setup.servers.cells.len() as f64,
        have_all: setup.cache == Cache::Warm,
    };
    let mut world = World::new(scenario, seed, setup);
    if let Some(recording) = recording {
        world.record(scenario, seed, recording);
    }
    let strategy = S::new(scenario, &world);
    let mut engine = Engine::new(scenario, seed, strategy, world);
    engine.run(watch);
    let report = engine.report(scenario, seed, servers);
    (report, engine.take_record())
}

impl<S: Strategy> Engine<S> {
    fn new(scenario: &Scenario, seed: u64, strategy: S, mut world: World<S::Note>) -> Self {
        let step_ns = world.step_ns;
        let mut churn = Churn::new(scenario, seed, step_ns);
        let (arrivals, first) = match Arrivals::new(scenario, seed, step_ns) {
            Some((arrivals, first)) => (Some(arrivals), first),
            None => (None, (0..world.nodes()).map(|node| (1, node)).collect()),
        };
        for (step, node) in first {
            world.calendar.push(step, Due::Begin(node));
        }
        // Idle time must not leave out when something happens to the fleet.
        let step = |ms: u64| ms * 1_000_000 / step_ns;
        let mut ticks: Vec<u64> = Vec::new();
        ticks.extend(churn.as_mut().and_then(Churn::stop));
        ticks.extend(scenario.stalls.iter().map(|stalls| step(stalls.at_ms + stalls.for_ms)));
        for change in &scenario.network.change {
            ticks.push(step(change.at_ms));
            ticks.extend(change.for_ms.map(|span| step(change.at_ms + span)));
        }
        for tick in ticks {
            world.calendar.push(tick, Due::Tick);
        }
        let unfinished = world.nodes() as usize;
        let deadline = Time::from_nanos(u64::from(scenario.content.deadline_s) * 1_000_000_000);
        Self { strategy, world, churn, arrivals, deadline, unfinished }
    }

    fn progress(&self) -> Progress {
        let wanted = u64::from(self.world.nodes()) * u64::from(self.world.layout.pieces());
        let totals = &self.world.totals;
        // Servers get pieces too, and some come twice.
        let transfers = totals.transfers.min(wanted);
        Progress { now: self.world.now(), transfers, wanted, events: totals.events }
    }

    /// Runs until all nodes have everything, all give up, or nothing happens any more.
    fn run(&mut self, watch: &mut dyn FnMut(Progress)) {
        let mut ended = Vec::new();
        while self.unfinished > 0 && self.world.calendar.advance(self.world.traffic.is_idle()) {
            if self.world.now() > self.deadline {
                break;
            }
            self.change_links();
            self.replace_the_dead();
            self.end_stall();
            let mut due = self.world.calendar.take();
            self.world.totals.events += due.len() as u64;
            for what in due.drain(..) {
                self.happen(what);
                self.tell_of_lacks();
            }
            self.world.calendar.recycle(due);
            self.world.traffic.step(&mut ended);
            let now = self.world.calendar.now();
            if let Some(queues) = &mut self.world.queues {
                queues.step(now, &self.world.traffic);
            }
            for flow in ended.drain(..) {
                if let Some(stream) = self.world.sent(flow) {
                    self.strategy.sent(&stream, &mut self.world);
                }
                self.tell_of_lacks();
            }
            if self.world.recorder.as_ref().is_some_and(|recorder| recorder.is_due(now)) {
                self.look();
            }
            if now.is_multiple_of(WATCH_EVERY) {
                watch(self.progress());
            }
        }
        debug_assert!(self.world.adds_up(), "bytes are lost or made up: {:?}", self.world.totals);
    }

    fn happen(&mut self, what: Due<S::Note>) {
        let (strategy, world) = (&mut self.strategy, &mut self.world);
        match what {
            Due::Tick => {}
            Due::Begin(node) => {
                if !world.is_dead(node) {
                    strategy.begin(node, world);
                }
            }
            Due::Request(id) => world.arrive(id),
            Due::Piece(id, piece) => {
                if let Some((stream, has_all)) = world.received(id, piece) {
                    strategy.received(&stream, piece, world);
                    if has_all && stream.to < self.world.nodes() {
                        self.ended(stream.to);
                    }
                }
            }
            Due::GiveUp(id, arrived) => {
                if let Some(stream) = world.give_up(id, arrived) {
                    strategy.failed(&stream, world);
                }
            }
            Due::Note { from, to, note } => {
                if world.is_dead(to) {
                    world.lose(from, to, note);
                } else {
                    strategy.told(from, to, note, world);
                }
            }
            Due::Reminder { end, deaths, note } => {
                if !world.is_dead(end) && world.deaths[end as usize] == deaths {
                    strategy.told(end, end, note, world);
                }
            }
            Due::Unanswered { from, to, note } => {
                if !world.is_dead(from) {
                    strategy.unanswered(from, to, note, world);
                }
            }
        }
    }

    /// Streams began to wait for what their senders lack.
    fn tell_of_lacks(&mut self) {
        while let Some((end, piece)) = self.world.next_wanted() {
            self.strategy.lacks(end, piece, &mut self.world);
        }
    }

    /// A node has everything.
    fn ended(&mut self, node: u32) {
        self.unfinished -= 1;
        let now = self.world.calendar.now();
        let starts = self.arrivals.as_mut().map(|arrivals| arrivals.ended(node, now));
        self.begin(starts.unwrap_or_default());
    }

    fn begin(&mut self, starts: Vec<Start>) {
        for (step, node) in starts {
            self.world.calendar.push(step, Due::Begin(node));
        }
    }

    fn change_links(&mut self) {
        let now = self.world.calendar.now();
        if self.world.changes.apply(now, &mut self.world.traffic) {
            self.world.links_changed();
        }
    }

    fn end_stall(&mut self) {
        let now = self.world.calendar.now();
        let over = self.world.stall.as_mut().map(|stall| stall.over(now)).unwrap_or_default();
        if !over.is_empty() {
            self.world.stall_over(over);
        }
    }

    /// Lets nodes die, lets others notice, and begins replacements, when it is time.
    fn replace_the_dead(&mut self) {
        let Some(mut churn) = self.churn.take() else { return };
        let now = self.world.calendar.now();
        while let Some((fate, nodes)) = churn.next(now) {
            match fate {
                Fate::Dies => {
                    self.world.kill(&nodes, churn.notice(nodes[0]));
                    nodes.iter().for_each(|node| self.strategy.died(*node));
                }
                Fate::Noticed => self.strategy.noticed(&nodes, &mut self.world),
                Fate::Replaced => self.replace(&nodes),
            }
        }
        if let Some(step) = churn.stop() {
            self.world.calendar.push(step, Due::Tick);
        }
        self.churn = Some(churn);
        self.tell_of_lacks();
    }

    /// Empty nodes take the places of dead ones.
    fn replace(&mut self, nodes: &[u32]) {
        let now = self.world.calendar.now();
        for node in nodes {
            if self.world.accounts[*node as usize].finished.is_some() {
                self.unfinished += 1;
            }
            self.world.replace(*node);
            // Who had not begun when it died begins in its turn.
            let start = self.arrivals.as_ref().map_or(Some(0), |arrivals| arrivals.start(*node));
            if start.is_some_and(|start| start <= now) {
                self.begin(vec![(now + 1, *node)]);
            }
        }
    }

    /// When a node began.
    fn start(&self, node: u32) -> Time {
        let step = self.arrivals.as_ref().and_then(|arrivals| arrivals.start(node)).unwrap_or(0);
        Time::from_nanos(step.saturating_mul(self.world.step_ns))
    }

    /// What the recorder sees of the nodes.
    fn seen(&self) -> impl Iterator<Item = Seen> + '_ {
        let now = self.world.now();
        (0..self.world.nodes()).map(move |node| {
            let account = &self.world.accounts[node as usize];
            let starts = self.arrivals.as_ref().map_or(Some(0), |arrivals| arrivals.start(node));
            Seen {
                finished: account.finished,
                waits: starts.is_some() && self.start(node) <= now && !self.world.is_dead(node),
                liar: false,
                given_up: 0,
                from_strata: account.from_sources,
                from_peers: account.from_peers,
                given: account.given,
            }
        })
    }

    fn look(&mut self) {
        let Some(mut recorder) = self.world.recorder.take() else { return };
        let (now, traffic) = (self.world.calendar.now(), &self.world.traffic);
        let from_sources = self.world.totals.from_sources;
        recorder
            .look(now, self.seen(), traffic.receivers(), from_sources, |link| traffic.usage_of_link(link));
        self.world.recorder = Some(recorder);
    }

    /// What was recorded, if anything was.
    fn take_record(&mut self) -> Record {
        self.look();
        let recorder = self.world.recorder.take();
        let finish =
            |recorder: Box<Recorder>| recorder.finish(self.seen(), |node| self.start(node).as_secs_f64());
        recorder.map(finish).unwrap_or_default()
    }

    fn report(&self, scenario: &Scenario, seed: u64, servers: Servers) -> Report {
        let world = &self.world;
        let mut hasher = blake3::Hasher::new();
        let (mut times, mut own_times, mut last_start_s) = (Vec::new(), Vec::new(), 0.0_f64);
        let accounts: &[Account] = &world.accounts[..world.nodes() as usize];
        for (node, account) in (0..).zip(accounts) {
            let has = world.held().count(node);
            for number in [
                account.finished.unwrap_or(Time::NEVER).as_nanos(),
                account.from_peers,
                account.from_sources,
                u64::from(has),
                u64::from(world.layout.pieces() - has),
            ] {
                hasher.update(&number.to_le_bytes());
            }
            if let Some(finished) = account.finished {
                let start_s = self.start(node).as_secs_f64();
                last_start_s = last_start_s.max(start_s);
                times.push(finished.as_secs_f64());
                own_times.push(finished.as_secs_f64() - start_s);
            }
        }
        let totals = &world.totals;
        hasher.update(&totals.from_sources.to_le_bytes());
        let moved = Moved {
            copy: world.layout.bytes() as f64,
            strata: totals.from_sources,
            most_into_a_cell: totals.crossed.iter().copied().max().unwrap_or(0),
            most_given: accounts.iter().map(|account| account.given).max().unwrap_or(0),
        };
        let bound = bound_of(scenario, seed, servers);
        let rollout = Rollout::new(seed, world.nodes(), &mut times, bound, moved);
        own_times.sort_unstable_by(f64::total_cmp);
        Report {
            strategy: scenario.strategy.name.text(),
            rollout,
            last_start_s,
            own_p50_s: quantile(&own_times, 50),
            own_p99_s: quantile(&own_times, 99),
            liars: 0,
            deaths: self.churn.as_ref().map_or(0, Churn::died),
            doubts: 0,
            asides: 0,
            messages: totals.messages,
            transfers: totals.transfers,
            events: totals.events,
            readers: None,
            root: None,
            links: world.traffic.usage(world.calendar.now()),
            model: scenario.network.model.text(),
            accuracy: envelope::quote(scenario),
            result_hash: hasher.finalize().to_hex().to_string(),
        }
    }
}
