//! A virtual network for the core's tests: nodes with tables of their own, random latency, loss, deaths, liars.
//!
//! Only for tests. It carries outputs out as the driver does, checks the contract at every step, and knows what every
//! node really stores, so that the checkers stand outside the nodes.

use super::*;
use crate::model::{Class, Generator, Rng, Time, mix};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub(super) const MS: Duration = Duration::from_millis(1);

/// What can go wrong, each as one chance in so many; 0 is never.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) lose: usize,
    pub(super) strata_fail: usize,
}

#[derive(Clone, Debug)]
enum Mail {
    Input(Input),
    /// A request as it reaches the asked node.
    Ask {
        from: Peer,
        chunk: Chunk,
        class: Class,
        request: u32,
    },
    Withdraw {
        from: Peer,
        chunk: Chunk,
    },
    /// An answer to a request, which may be withdrawn by then.
    Told {
        from: Peer,
        chunk: Chunk,
        answer: Answer,
        load: u8,
        request: u32,
    },
    Data {
        from: Peer,
        chunk: Chunk,
        request: u32,
        ask: Ask,
    },
    Upstream {
        chunk: Chunk,
        request: u32,
    },
    Broken {
        from: Peer,
        chunk: Chunk,
        request: u32,
    },
}

pub(super) struct Member {
    pub(super) core: Core,
    pub(super) alive: bool,
    pub(super) liar: bool,
    pub(super) stored: BTreeSet<Chunk>,
    /// Requests of others, by number; and which is the newest of each asker and chunk.
    incoming: BTreeMap<Ask, (Peer, Chunk, u32)>,
    next_ask: u32,
    /// Requests of its own under way.
    outgoing: BTreeMap<(Source, Chunk), u32>,
    /// What it wants, and by when.
    wants: BTreeMap<Chunk, Time>,
    tick: Option<Time>,
    life: u32,
}

/// All nodes and everything on its way.
pub(super) struct Net {
    pub(super) members: Vec<Member>,
    pub(super) now: Time,
    pub(super) faults: Faults,
    pub(super) strata_up: bool,
    pub(super) rng: Generator,
    pub(super) log: Vec<(Time, Peer, Output)>,
    pub(super) results: Vec<(Peer, Chunk, Result<(), GiveUp>)>,
    pub(super) announced: BTreeMap<Segment, BTreeSet<Peer>>,
    cells: Vec<(u32, u32)>,
    chunks: u32,
    settings: Settings,
    queue: BTreeMap<(Time, u64), (u32, u32, Mail)>,
    sequence: u64,
}

pub(super) const CHUNKS_PER_SLICE: u32 = 4;
pub(super) const LEN_BYTES: u32 = 1 << 18;

impl Net {
    /// Nodes in the given (cell, region)s, who all know each other; `chunks` chunks in slices of four.
    pub(super) fn new(cells: &[(u32, u32)], chunks: u32, settings: Settings, seed: u64) -> Self {
        let mut net = Self {
            members: Vec::new(),
            now: Time::ZERO,
            faults: Faults::default(),
            strata_up: true,
            rng: Generator::new(seed),
            log: Vec::new(),
            results: Vec::new(),
            announced: BTreeMap::new(),
            cells: cells.to_vec(),
            chunks,
            settings,
            queue: BTreeMap::new(),
            sequence: 0,
        };
        for me in 0..u32::try_from(cells.len()).unwrap() {
            let core = net.fresh_core(Peer(me), 0);
            net.members.push(Member {
                core,
                alive: true,
                liar: false,
                stored: BTreeSet::new(),
                incoming: BTreeMap::new(),
                next_ask: 0,
                outgoing: BTreeMap::new(),
                wants: BTreeMap::new(),
                tick: None,
                life: 0,
            });
        }
        net
    }

    fn fresh_core(&self, me: Peer, life: u32) -> Core {
        let generator = Generator::stream(u64::from(life) << 32 | u64::from(me.0), 7);
        let mut core = Core::new(Start { me, settings: self.settings.clone(), generator });
        let mut out = Outbox::default();
        for (peer, (cell, region)) in (0_u32..).map(Peer).zip(&self.cells) {
            let cell_key = mix(u64::from(*cell) + 99);
            let (key, cell, region) = (mix(u64::from(peer.0)), *cell, *region);
            let met = PeerUpdate::Met { peer, key, cell, cell_key, region, weight: 100 };
            core.apply(self.now, Event::Peers(met), &mut out).unwrap();
            if self.members.get(peer.0 as usize).is_none_or(|member| member.alive) || peer == me {
                core.apply(self.now, Event::Peers(PeerUpdate::Up { peer }), &mut out).unwrap();
            }
        }
        for chunk in 0..self.chunks {
            let slice = chunk / CHUNKS_PER_SLICE;
            let learned = ContentUpdate::Learned {
                chunk: Chunk(chunk),
                slice: Slice(slice),
                segment: Segment(slice / 2),
                slice_key: mix(u64::from(slice) << 8),
                part: u8::try_from(chunk % CHUNKS_PER_SLICE * 16).unwrap(),
                len_bytes: LEN_BYTES,
            };
            core.apply(self.now, Event::Content(learned), &mut out).unwrap();
        }
        core
    }

    pub(super) fn home(&self, viewer: u32, chunk: Chunk, rank: usize) -> Peer {
        self.members[viewer as usize].core.peers().home(Slice(chunk.0 / CHUNKS_PER_SLICE), rank).unwrap()
    }

    pub(super) fn want(&mut self, at: Peer, chunk: Chunk, class: Class, within: Duration) {
        let deadline = self.now + within;
        let known = self.members[at.0 as usize].wants.entry(chunk).or_insert(deadline);
        *known = deadline.max(*known);
        self.input(at, Input::Wanted { chunk, class, deadline });
    }

    pub(super) fn store(&mut self, at: Peer, chunk: Chunk) {
        self.members[at.0 as usize].stored.insert(chunk);
        self.input(at, Input::Stored { chunk });
    }

    pub(super) fn kill(&mut self, who: Peer, noticed_after: Duration) {
        let member = &mut self.members[who.0 as usize];
        member.alive = false;
        member.life += 1;
        member.wants.clear();
        let at = self.now + noticed_after;
        self.tell_all(at, who, false);
    }

    /// `viewer` believes that `other` is dead.
    pub(super) fn believe_dead(&mut self, viewer: Peer, other: Peer) {
        self.event(viewer, Event::Peers(PeerUpdate::Down { peer: other }));
    }

    pub(super) fn restart(&mut self, who: Peer) {
        let life = self.members[who.0 as usize].life + 1;
        let core = self.fresh_core(who, life);
        let member = &mut self.members[who.0 as usize];
        (member.core, member.alive, member.life, member.tick) = (core, true, life, None);
        member.incoming.clear();
        member.outgoing.clear();
        for chunk in std::mem::take(&mut member.stored) {
            self.store(who, chunk);
        }
        self.tell_all(self.now, who, true);
    }

    fn tell_all(&mut self, at: Time, who: Peer, up: bool) {
        for other in (0..u32::try_from(self.members.len()).unwrap()).map(Peer).filter(|other| *other != who) {
            let input = if up { Input::PeerUp { peer: who } } else { Input::PeerDown { peer: who } };
            self.mail(at, other, Mail::Input(input));
        }
    }

    fn mail(&mut self, at: Time, to: Peer, mail: Mail) {
        self.sequence += 1;
        let life = self.members[to.0 as usize].life;
        self.queue.insert((at, self.sequence), (to.0, life, mail));
    }

    fn later(&mut self) -> Time {
        self.now + Duration::from_micros(200 + self.rng.below(3_000) as u64)
    }

    fn chance(&mut self, one_in: usize) -> bool {
        one_in > 0 && self.rng.below(one_in) == 0
    }

    /// Runs until nothing is on its way, or until `until`.
    pub(super) fn run(&mut self, until: Time) {
        for _ in 0..2_000_000 {
            let mail = self.queue.keys().next().map(|key| key.0);
            let tick =
                self.members.iter().filter(|member| member.alive).filter_map(|member| member.tick).min();
            let Some(next) = mail.into_iter().chain(tick).min().filter(|next| *next <= until) else {
                self.now = until;
                return;
            };
            self.now = self.now.max(next);
            if mail == Some(next) {
                let (_, (to, life, mail)) = self.queue.pop_first().unwrap();
                self.deliver(Peer(to), life, mail);
            } else {
                let due = |member: &Member| member.alive && member.tick == Some(next);
                let to = u32::try_from(self.members.iter().position(due).unwrap()).unwrap();
                self.input(Peer(to), Input::Tick);
                let again = self.members[to as usize].core.next_deadline();
                assert!(again.is_none_or(|again| again > self.now), "a tick brings time forward: {again:?}");
            }
        }
        panic!("no end at {:?}", self.now);
    }

    fn deliver(&mut self, to: Peer, life: u32, mail: Mail) {
        let now = self.now;
        let member = &mut self.members[to.0 as usize];
        if !member.alive || member.life != life {
            // The connection breaks: the asker hears of it.
            if let Mail::Ask { from, chunk, request, .. } = mail {
                self.mail(now + 5 * MS, from, Mail::Broken { from: to, chunk, request });
            }
            return;
        }
        let current = |member: &Member, source, chunk, request| {
            member.outgoing.get(&(source, chunk)).is_some_and(|newest| *newest == request)
        };
        match mail {
            Mail::Input(input @ (Input::PeerUp { peer } | Input::PeerDown { peer })) => {
                let up = matches!(input, Input::PeerUp { .. });
                let update = if up { PeerUpdate::Up { peer } } else { PeerUpdate::Down { peer } };
                if !up {
                    let gone: Vec<Ask> = member
                        .incoming
                        .iter()
                        .filter(|(_, ask)| ask.0 == peer)
                        .map(|(ask, _)| *ask)
                        .collect();
                    for ask in gone {
                        self.members[to.0 as usize].incoming.remove(&ask);
                        self.input(to, Input::AskGone { ask });
                    }
                }
                self.event(to, Event::Peers(update));
            }
            Mail::Input(input) => self.input(to, input),
            Mail::Ask { from, chunk, class, request } => {
                let ask = Ask(member.next_ask);
                member.next_ask += 1;
                member.incoming.insert(ask, (from, chunk, request));
                self.input(to, Input::Asked { peer: from, ask, chunk, class });
            }
            Mail::Withdraw { from, chunk } => {
                let is_it = |ask: &&(Peer, Chunk, u32)| (ask.0, ask.1) == (from, chunk);
                let found = member.incoming.iter().find(|(_, ask)| is_it(ask)).map(|(ask, _)| *ask);
                if let Some(ask) = found {
                    member.incoming.remove(&ask);
                    self.input(to, Input::AskGone { ask });
                }
            }
            Mail::Told { from, chunk, answer, load, request } => {
                if current(member, Source::Peer(from), chunk, request) {
                    if answer != Answer::Wait {
                        member.outgoing.remove(&(Source::Peer(from), chunk));
                    }
                    self.input(to, Input::Told { peer: from, chunk, answer, load });
                }
            }
            Mail::Data { from, chunk, request, ask } => self.data(to, from, chunk, request, ask),
            Mail::Upstream { chunk, request } => {
                if current(member, Source::Strata, chunk, request) {
                    member.outgoing.remove(&(Source::Strata, chunk));
                    let from = Source::Strata;
                    let fails = !self.strata_up || self.chance(self.faults.strata_fail);
                    if fails {
                        self.input(to, Input::Failed { chunk, from, why: Failure::Unreachable });
                    } else {
                        self.members[to.0 as usize].stored.insert(chunk);
                        self.input(to, Input::Arrived { chunk, from });
                    }
                }
            }
            Mail::Broken { from, chunk, request } => {
                let source = Source::Peer(from);
                if current(member, source, chunk, request) {
                    member.outgoing.remove(&(source, chunk));
                    self.input(to, Input::Failed { chunk, from: source, why: Failure::Unreachable });
                }
            }
        }
    }

    fn data(&mut self, to: Peer, from: Peer, chunk: Chunk, request: u32, ask: Ask) {
        let source = Source::Peer(from);
        let sender = &mut self.members[from.0 as usize];
        let (alive, liar) = (sender.alive, sender.liar);
        if alive && sender.incoming.remove(&ask).is_some() {
            let at = self.now;
            self.mail(at, from, Mail::Input(Input::Served { ask, ok: true }));
        }
        let member = &mut self.members[to.0 as usize];
        if member.outgoing.get(&(source, chunk)) != Some(&request) {
            return;
        }
        member.outgoing.remove(&(source, chunk));
        let failed = |why| Input::Failed { chunk, from: source, why };
        if !alive {
            return self.input(to, failed(Failure::Unreachable));
        }
        if liar {
            return self.input(to, failed(Failure::WrongBytes));
        }
        assert!(
            self.members[from.0 as usize].stored.contains(&chunk),
            "{from:?} serves what it does not store"
        );
        self.members[to.0 as usize].stored.insert(chunk);
        self.input(to, Input::Arrived { chunk, from: source });
    }

    pub(super) fn input(&mut self, to: Peer, input: Input) {
        self.event(to, Event::Input(input));
    }

    fn event(&mut self, to: Peer, event: Event) {
        let mut out = Outbox::default();
        let member = &mut self.members[to.0 as usize];
        member.core.apply(self.now, event, &mut out).unwrap();
        member.tick = member.core.next_deadline();
        for output in out.drain() {
            self.log.push((self.now, to, output.clone()));
            self.carry_out(to, output);
        }
    }

    fn carry_out(&mut self, me: Peer, output: Output) {
        let at = self.later();
        self.sequence += 1;
        let request = u32::try_from(self.sequence).unwrap();
        let lost = self.chance(self.faults.lose);
        let member = &mut self.members[me.0 as usize];
        match output {
            Output::Ask { peer, chunk, class } => {
                let old = member.outgoing.insert((Source::Peer(peer), chunk), request);
                assert!(old.is_none(), "{me:?} asks {peer:?} twice for {chunk:?}");
                if !lost {
                    self.mail(at, peer, Mail::Ask { from: me, chunk, class, request });
                }
            }
            Output::Cancel { peer, chunk } => {
                let old = member.outgoing.remove(&(Source::Peer(peer), chunk));
                assert!(old.is_some(), "{me:?} withdraws what it did not ask of {peer:?}: {chunk:?}");
                self.mail(at, peer, Mail::Withdraw { from: me, chunk });
            }
            Output::Serve { ask } => {
                let (peer, chunk, request) = member.incoming[&ask];
                self.mail(at + 3 * MS, peer, Mail::Data { from: me, chunk, request, ask });
            }
            Output::Answer { ask, answer, load } => {
                let (peer, chunk, request) = if answer == Answer::Wait {
                    member.incoming[&ask]
                } else {
                    member.incoming.remove(&ask).unwrap()
                };
                if !lost || answer != Answer::Wait {
                    self.mail(at, peer, Mail::Told { from: me, chunk, answer, load, request });
                }
            }
            Output::FetchUpstream { chunk } => {
                let old = member.outgoing.insert((Source::Strata, chunk), request);
                assert!(old.is_none(), "{me:?} fetches {chunk:?} twice");
                self.mail(at + 5 * MS, me, Mail::Upstream { chunk, request });
            }
            Output::CancelUpstream { chunk } => {
                assert!(member.outgoing.remove(&(Source::Strata, chunk)).is_some(), "{me:?} {chunk:?}");
            }
            Output::FindProviders { segment } => {
                let peers = self.announced.get(&segment).into_iter().flatten().copied().collect();
                self.mail(at + 20 * MS, me, Mail::Input(Input::Providers { segment, peers }));
            }
            Output::Announce { segment } => {
                self.announced.entry(segment).or_default().insert(me);
            }
            Output::Deliver { chunk } => {
                assert!(member.stored.contains(&chunk), "{me:?} delivers what it does not store");
                self.ended(me, chunk, Ok(()));
            }
            Output::GiveUp { chunk, why } => self.ended(me, chunk, Err(why)),
            Output::Spread { news, to } => {
                if !lost {
                    self.mail(at, to, Mail::Input(Input::NewsSeen { news, from: Some(me) }));
                }
            }
            Output::TellPossession { to, slices } => {
                if !lost {
                    self.mail(at, to, Mail::Input(Input::Possession { peer: me, slices }));
                }
            }
            Output::Distrust { peer } => assert!(self.members[peer.0 as usize].liar, "{peer:?} is honest"),
        }
    }

    fn ended(&mut self, at: Peer, chunk: Chunk, result: Result<(), GiveUp>) {
        let deadline = self.members[at.0 as usize].wants.remove(&chunk).expect("one end for one want");
        assert!(self.now <= deadline, "{at:?} {chunk:?} ends {:?} late", self.now - deadline);
        self.results.push((at, chunk, result));
    }

    /// Wants that have not ended.
    pub(super) fn open_wants(&self) -> usize {
        self.members.iter().map(|member| member.wants.len()).sum()
    }

    pub(super) fn count(&self, what: impl Fn(&Output) -> bool) -> usize {
        self.log.iter().filter(|(_, _, output)| what(output)).count()
    }

    pub(super) fn fetched_upstream(&self) -> usize {
        self.count(|output| matches!(output, Output::FetchUpstream { .. }))
    }
}
