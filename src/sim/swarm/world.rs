//! The world: virtual time, what happens in it, and what each node is told.

use super::Count;
use super::faults::Undo;
use super::ledger::{Broken, Ledger, rule};
use super::member::{Belief, Books, Disk, Member, Mind, Style};
use super::plan::{Chances, Plan};
use super::supply::{Dht, Strata};
use super::tape::Tape;
use super::wires::{Mail, Request, Wires};
use crate::mesh::proto::{
    Ask, Chunk, ContentUpdate, Core, Event, Input, NewsId, Outbox, Peer, PeerUpdate, Segment, Slice, Start,
};
use crate::model::{Generator, Rng, Time, mix};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// The number of cell and region of a node whose certificate was not seen, as in the driver.
const ELSEWHERE: u32 = u32::MAX;
/// Events of a node between two audits of its tables.
const AUDIT_EVERY: u64 = 48;
/// Times that one node may be woken within one virtual second.
const TICKS_MAX: u32 = 20_000;

/// What a step comes to: a broken rule ends the swarm.
pub(super) type Step = Result<(), Broken>;

/// What is going to happen.
#[derive(Clone, Debug)]
pub(super) enum Happening {
    Tick {
        node: u32,
        at: Time,
    },
    Mail {
        request: u32,
        mail: Mail,
    },
    /// The last byte of an upload left.
    Sent {
        node: u32,
        life: u32,
        ask: Ask,
    },
    Strata {
        node: u32,
        life: u32,
        number: u32,
        chunk: Chunk,
    },
    Dht {
        node: u32,
        life: u32,
        segment: Segment,
        peers: Vec<Peer>,
    },
    News {
        node: u32,
        life: u32,
        news: NewsId,
        from: u32,
    },
    Possession {
        node: u32,
        life: u32,
        from: u32,
        slices: Vec<(Slice, u64)>,
    },
    CarryOut {
        node: u32,
        life: u32,
    },
    /// A node looks whether another is up.
    Learn {
        node: u32,
        subject: u32,
    },
    /// A node believes what is not so.
    Mislead {
        node: u32,
        subject: u32,
    },
    /// The readers of a node do something.
    Read {
        node: u32,
        life: u32,
    },
    /// A liar asks, or says `Wait` again.
    Flood {
        node: u32,
    },
    WaitAgain {
        request: u32,
        left: u8,
    },
    LinkTimeout {
        pair: (u32, u32),
    },
    Trouble,
    Undo(Undo),
}

/// All of a swarm.
pub(super) struct World<'a> {
    pub(super) plan: Plan,
    pub(super) seed: u64,
    pub(super) now: Time,
    queue: BTreeMap<(Time, u64), Happening>,
    sequence: u64,
    pub(super) members: Vec<Member>,
    pub(super) requests: Vec<Request>,
    pub(super) wires: Wires,
    pub(super) strata: Strata,
    pub(super) dht: Dht,
    /// What happens to messages now.
    pub(super) chances: Chances,
    pub(super) net_rng: Generator,
    pub(super) fault_rng: Generator,
    pub(super) read_rng: Generator,
    pub(super) lie_rng: Generator,
    pub(super) next_news: u32,
    /// Whether things go wrong.
    pub(super) stormy: bool,
    /// When all was mended.
    pub(super) healed: Time,
    /// Reads of the last phase that are not delivered.
    pub(super) last_open: usize,
    /// Fetches from the strata by region and chunk.
    pub(super) copies: BTreeMap<(u32, Chunk), u32>,
    ticks: Vec<(u64, u32)>,
    pub(super) tape: Tape<'a>,
    pub(super) culprit: u32,
    outbox: Outbox,
}

impl<'a> World<'a> {
    pub(super) fn new(seed: u64, plan: Plan, tape: Tape<'a>) -> Self {
        let nodes = plan.seats.len();
        Self {
            seed,
            now: Time::ZERO,
            queue: BTreeMap::new(),
            sequence: 0,
            members: Vec::with_capacity(nodes),
            requests: Vec::new(),
            wires: Wires::new(nodes),
            strata: Strata::default(),
            dht: Dht::default(),
            chances: plan.chances,
            net_rng: Generator::stream(seed, 2),
            fault_rng: Generator::stream(seed, 3),
            read_rng: Generator::stream(seed, 4),
            lie_rng: Generator::stream(seed, 5),
            next_news: 0,
            stormy: true,
            healed: Time::NEVER,
            last_open: 0,
            copies: BTreeMap::new(),
            ticks: vec![(0, 0); nodes],
            tape,
            culprit: 0,
            outbox: Outbox::default(),
            plan,
        }
    }

    /// How many nodes there are.
    pub(super) fn nodes(&self) -> u32 {
        u32::try_from(self.plan.seats.len()).unwrap_or(0)
    }

    pub(super) fn chunks(&self) -> u32 {
        u32::try_from(self.plan.content.len()).unwrap_or(0)
    }

    pub(super) fn member(&self, node: u32) -> &Member {
        &self.members[node as usize]
    }

    pub(super) fn member_mut(&mut self, node: u32) -> &mut Member {
        &mut self.members[node as usize]
    }

    /// The time on a node's own clock.
    pub(super) fn local(&self, node: u32) -> Time {
        self.now + self.member(node).ahead
    }

    pub(super) fn count(&self) -> Count {
        self.tape.count
    }

    pub(super) fn push(&mut self, at: Time, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((at.max(self.now), self.sequence), happening);
    }

    pub(super) fn after_ms(&mut self, millis: u32, happening: Happening) {
        self.push(self.now + Duration::from_millis(u64::from(millis)), happening);
    }

    /// The nodes, each with what it knows at the beginning.
    pub(super) fn populate(&mut self) -> Step {
        for node in 0..self.nodes() {
            let rates = self.plan.up_bytes_per_s;
            let rate = rates.0 + self.fault_rng.below(rates.1 - rates.0);
            let mind = match self.plan.liars[node as usize] {
                Some(lie) => Mind::Liar(lie),
                None => Mind::Honest(Box::new(self.new_core(node, 0))),
            };
            self.members.push(Member {
                mind,
                alive: true,
                lost: false,
                life: 0,
                ahead: Duration::ZERO,
                stalled: Time::ZERO,
                tick: None,
                ledger: Ledger::default(),
                books: Books::default(),
                disk: Disk::default(),
                view: vec![Belief::default(); self.plan.seats.len()],
                up_bytes_per_s: rate as u64,
                uplink_free: Time::ZERO,
                no_strata: false,
                style: Style::Fill,
                last_wants: BTreeSet::new(),
                last_queue: VecDeque::new(),
                last_retries: 0,
                events: 0,
            });
        }
        let informed = self.plan.clean || self.fault_rng.below(2) == 0;
        for node in 0..self.nodes() {
            self.begin(node, informed)?;
        }
        Ok(())
    }

    fn new_core(&self, node: u32, life: u32) -> Core {
        let generator = Generator::stream(self.seed, u64::from(life) << 32 | u64::from(node) | 1 << 63);
        Core::new(Start { me: Peer(node), settings: self.plan.settings.clone(), generator })
    }

    /// A node that died starts again.
    pub(super) fn restart(&mut self, node: u32, keeps_disk: bool) -> Step {
        let life = self.member(node).life + 1;
        let core = self.member(node).is_honest().then(|| Box::new(self.new_core(node, life)));
        let nodes = self.plan.seats.len();
        let member = self.member_mut(node);
        if let Some(core) = core {
            member.mind = Mind::Honest(core);
        }
        (member.alive, member.life, member.tick) = (true, life, None);
        (member.ledger, member.books) = (Ledger::default(), Books::default());
        member.view = vec![Belief::default(); nodes];
        member.disk.restart(keeps_disk);
        member.uplink_free = Time::ZERO;
        self.tape.note(self.now, || format!("n{node} starts, disk kept: {keeps_disk}"));
        self.news_of(node);
        self.begin(node, false)
    }

    /// A life begins: content, view, what the disk holds, readers.
    fn begin(&mut self, node: u32, informed: bool) -> Step {
        if !self.member(node).is_honest() {
            return self.begin_lying(node);
        }
        self.meet(node, node, true)?;
        self.set_up(node, node, true)?;
        for number in 0..self.chunks() {
            let piece = self.plan.content[number as usize];
            let learned = ContentUpdate::Learned {
                chunk: Chunk(number),
                slice: Slice(piece.slice),
                segment: Segment(piece.segment),
                slice_key: mix(self.seed ^ mix(u64::from(piece.slice) << 8)),
                part: piece.part,
                len_bytes: piece.len_bytes,
            };
            self.apply(node, Event::Content(learned))?;
        }
        self.first_view(node, informed)?;
        let stored: Vec<Chunk> = self.member(node).disk.chunks().collect();
        for chunk in stored {
            self.input(node, Input::Stored { chunk })?;
        }
        self.begin_reading(node);
        Ok(())
    }

    /// Whom a node knows when it begins: all, or a few and the others soon.
    fn first_view(&mut self, node: u32, informed: bool) -> Step {
        let own = self.plan.seats[node as usize];
        let mut far = 0;
        for other in (0..self.nodes()).filter(|other| *other != node) {
            let seat = self.plan.seats[other as usize];
            if seat.region != own.region {
                far += 1;
                // Of other regions a node knows whom it happened to talk to.
                if far > 2 && self.fault_rng.below(8) > 0 {
                    continue;
                }
            }
            if informed {
                self.learn(node, other)?;
            } else {
                let within = if seat.cell == own.cell { 1_000 } else { 5_000 };
                let at = u32::try_from(self.fault_rng.below(within)).unwrap_or(0);
                self.after_ms(at, Happening::Learn { node, subject: other });
            }
        }
        Ok(())
    }

    /// Runs until `until`, or until `done` says so.
    pub(super) fn run(&mut self, until: Time, events_max: u64, done: impl Fn(&Self) -> bool) -> Step {
        while let Some(next) = self.queue.keys().next().copied() {
            if next.0 > until || done(self) {
                break;
            }
            let Some(happening) = self.queue.remove(&next) else { break };
            self.now = next.0;
            rule!(self.tape.count.events < events_max, "no end after {events_max} events: a livelock");
            self.step(happening)?;
        }
        if !done(self) {
            self.now = until;
        }
        Ok(())
    }

    /// Whom a happening reaches, if it is a node that has to be running.
    fn target(&self, happening: &Happening) -> Option<(u32, Option<u32>)> {
        match happening {
            Happening::Tick { node, .. }
            | Happening::Learn { node, .. }
            | Happening::Mislead { node, .. }
            | Happening::Flood { node } => Some((*node, None)),
            Happening::Sent { node, life, .. }
            | Happening::Strata { node, life, .. }
            | Happening::Dht { node, life, .. }
            | Happening::News { node, life, .. }
            | Happening::Possession { node, life, .. }
            | Happening::CarryOut { node, life }
            | Happening::Read { node, life } => Some((*node, Some(*life))),
            Happening::Mail { request, mail } => Some((self.addressee(*request, mail), None)),
            Happening::WaitAgain { .. }
            | Happening::LinkTimeout { .. }
            | Happening::Trouble
            | Happening::Undo(_) => None,
        }
    }

    fn step(&mut self, happening: Happening) -> Step {
        if let Some((node, life)) = self.target(&happening) {
            self.culprit = node;
            let member = self.member(node);
            let is_mail = matches!(happening, Happening::Mail { .. });
            if !is_mail && (!member.alive || life.is_some_and(|life| life != member.life)) {
                return Ok(());
            }
            if member.alive && member.stalled > self.now {
                self.push(member.stalled, happening);
                return Ok(());
            }
        }
        match happening {
            Happening::Tick { node, at } => self.tick(node, at),
            Happening::Mail { request, mail } => self.mail(request, mail),
            Happening::Sent { node, ask, .. } => self.sent(node, ask),
            Happening::Strata { node, number, chunk, .. } => self.strata_answer(node, number, chunk),
            Happening::Dht { node, segment, peers, .. } => self.dht_answers(node, segment, peers),
            Happening::News { node, news, from, .. } => self.news_comes(node, news, from),
            Happening::Possession { node, from, slices, .. } => self.possession_comes(node, from, slices),
            Happening::CarryOut { node, .. } => self.carry_out(node),
            Happening::Learn { node, subject } => self.learn(node, subject),
            Happening::Mislead { node, subject } => self.mislead(node, subject),
            Happening::Read { node, .. } => self.read(node),
            Happening::Flood { node } => self.flood(node),
            Happening::WaitAgain { request, left } => self.wait_again(request, left),
            Happening::LinkTimeout { pair } => self.link_timeout(pair),
            Happening::Trouble => self.trouble(),
            Happening::Undo(undo) => self.undo(undo),
        }
    }

    fn tick(&mut self, node: u32, at: Time) -> Step {
        if self.member(node).tick != Some(at) {
            return Ok(()); // Another moment was asked for since.
        }
        self.member_mut(node).tick = None;
        let second = self.now.as_nanos() / 1_000_000_000;
        let ticks = &mut self.ticks[node as usize];
        *ticks = if ticks.0 == second { (second, ticks.1 + 1) } else { (second, 0) };
        rule!(ticks.1 < TICKS_MAX, "it is woken {TICKS_MAX} times within a second");
        self.input(node, Input::Tick)?;
        let local = self.local(node);
        let next = self.member(node).core().and_then(Core::next_deadline);
        rule!(
            next.is_none_or(|next| next > local),
            "after a tick at {local:?} it wants the next at {next:?}"
        );
        Ok(())
    }

    pub(super) fn input(&mut self, node: u32, input: Input) -> Step {
        self.apply(node, Event::Input(input))
    }

    /// The only way to a node. All that it decides is judged here, and carried out in its turn.
    pub(super) fn apply(&mut self, node: u32, event: Event) -> Step {
        self.culprit = node;
        let (true_now, now) = (self.now, self.local(node));
        let member = &mut self.members[node as usize];
        let Mind::Honest(core) = &mut member.mind else { return Ok(()) };
        self.tape.event(true_now, node, &event);
        member.ledger.event(now, &event)?;
        core.apply(now, event, &mut self.outbox).map_err(|error| Broken(error.to_string()))?;
        for output in self.outbox.drain() {
            self.tape.output(true_now, node, &output);
            member.ledger.output(now, core, &self.plan.settings, &output)?;
            member.books.decided.push_back(output);
        }
        member.ledger.settled()?;
        member.events += 1;
        if member.events.is_multiple_of(AUDIT_EVERY) {
            member.ledger.audit(now, &self.plan.settings)?;
            core.audit().map_err(|torn| Broken(torn.to_string()))?;
        }
        self.wake(node);
        if self.member(node).books.carrying || self.member(node).books.decided.is_empty() {
            return Ok(());
        }
        if self.plan.turn_us == 0 {
            return self.carry_out(node);
        }
        self.member_mut(node).books.carrying = true;
        let at = self.now + Duration::from_micros(self.net_rng.below(self.plan.turn_us) as u64);
        let life = self.member(node).life;
        self.push(at, Happening::CarryOut { node, life });
        Ok(())
    }

    /// Sets the alarm for the node's next deadline.
    pub(super) fn wake(&mut self, node: u32) {
        let Some(next) = self.member(node).core().and_then(Core::next_deadline) else { return };
        let in_time = self.now + next.since(self.local(node));
        let late = Duration::from_micros(self.net_rng.below(self.plan.tick_late_us) as u64);
        let at = in_time + late;
        if self.member(node).tick.is_some_and(|tick| tick <= at) {
            return;
        }
        self.member_mut(node).tick = Some(at);
        self.push(at, Happening::Tick { node, at });
    }

    /// A node hears of another for the first time, or learns its cell.
    pub(super) fn meet(&mut self, node: u32, subject: u32, with_cell: bool) -> Step {
        let belief = self.member(node).view[subject as usize];
        if belief.met && (belief.cell_known || !with_cell) {
            return Ok(());
        }
        let seat = self.plan.seats[subject as usize];
        let (cell, region, weight) =
            if with_cell { (seat.cell, seat.region, 100) } else { (ELSEWHERE, ELSEWHERE, 0) };
        let cell_key = if with_cell { mix(u64::from(cell) + 99) } else { 0 };
        let key = mix(self.seed ^ mix(u64::from(subject)));
        let view = &mut self.member_mut(node).view[subject as usize];
        (view.met, view.cell_known) = (true, with_cell);
        let met = PeerUpdate::Met { peer: Peer(subject), key, cell, cell_key, region, weight };
        self.apply(node, Event::Peers(met))
    }

    pub(super) fn set_up(&mut self, node: u32, subject: u32, up: bool) -> Step {
        let belief = &mut self.member_mut(node).view[subject as usize];
        if !belief.met || belief.up == up {
            return Ok(());
        }
        belief.up = up;
        let peer = Peer(subject);
        self.apply(node, Event::Peers(if up { PeerUpdate::Up { peer } } else { PeerUpdate::Down { peer } }))
    }

    /// Whether SWIM, and nobody else, tells a node about another.
    pub(super) fn is_own_member(&self, node: u32, subject: u32) -> bool {
        self.plan.seats[node as usize].cell == self.plan.seats[subject as usize].cell
    }

    /// What SWIM, or a member of another cell, tells a node in the end: the truth as it is now.
    pub(super) fn learn(&mut self, node: u32, subject: u32) -> Step {
        if node == subject || !self.member(node).is_honest() {
            return Ok(());
        }
        let up = self.member(subject).alive && self.wires.joined(node, subject);
        let belief = self.member(node).view[subject as usize];
        if up {
            self.meet(node, subject, true)?;
        } else if belief.up && self.is_own_member(node, subject) {
            self.break_link(node, subject, 20);
        }
        self.set_up(node, subject, up)
    }

    /// A certificate was seen, in a handshake.
    pub(super) fn neighbour(&mut self, node: u32, subject: u32) -> Step {
        self.meet(node, subject, true)?;
        if self.is_own_member(node, subject) {
            return Ok(());
        }
        self.set_up(node, subject, true)
    }

    /// Lets all nodes look anew at `subject`, each in its time.
    pub(super) fn news_of(&mut self, subject: u32) {
        for node in (0..self.nodes()).filter(|node| *node != subject) {
            self.look_later(node, subject);
        }
    }

    /// Lets a node look anew at another: within seconds in its own cell, later elsewhere, and far away only if it knows
    /// it at all.
    pub(super) fn look_later(&mut self, node: u32, subject: u32) {
        let (a, b) = (self.plan.seats[node as usize], self.plan.seats[subject as usize]);
        if a.region != b.region && !self.member(node).view[subject as usize].met {
            return;
        }
        let within = if a.cell == b.cell { 5_000 } else { 20_000 };
        let millis = 100 + u32::try_from(self.fault_rng.below(within)).unwrap_or(0);
        self.after_ms(millis, Happening::Learn { node, subject });
    }

    /// A node dies. Its disk stays where it is.
    pub(super) fn bury(&mut self, node: u32) {
        let member = self.member_mut(node);
        (member.alive, member.life, member.tick) = (false, member.life + 1, None);
        (member.ledger, member.books) = (Ledger::default(), Books::default());
    }
}
