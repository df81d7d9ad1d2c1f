//! Seeded swarms on a virtual network: no sockets, no clock.

use super::datagram::{Counter, Letter};
use super::protocol::{Action, Now, Protocol};
use super::*;
use crate::mesh::proto::Told;
use crate::model::{Generator, Rng as _, Time};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

/// A mesh whose "signatures" are keyed hashes: as unforgeable for a test, and cheap in numbers.
#[derive(Clone)]
struct TestNode {
    node: NodeId,
    mesh: u8,
    cell: CellLabel,
    /// Bytes that make the certificate longer.
    padding: usize,
    /// When its certificate was issued, in seconds; it lives for [`LIFE_S`].
    issued: Arc<AtomicU64>,
    /// Who was revoked, as all members of the swarm believe.
    revoked: Arc<Mutex<BTreeSet<NodeId>>>,
    /// Whether who was revoked knows it itself; otherwise it goes on speaking.
    heeds: Arc<AtomicBool>,
}

const LIFE_S: u64 = 100_000;
const START_S: u64 = 1_700_000_000;

fn mac(key: &[u8], message: &[u8]) -> [u8; 64] {
    let hash = blake3::keyed_hash(blake3::hash(key).as_bytes(), message);
    let mut twice = [0; 64];
    twice[..32].copy_from_slice(hash.as_bytes());
    twice[32..].copy_from_slice(hash.as_bytes());
    twice
}

impl TestNode {
    fn new(number: u8, mesh: u8, cell: &str) -> Self {
        Self {
            node: NodeId([number; 32]),
            mesh,
            cell: cell.parse().unwrap(),
            padding: 0,
            issued: Arc::new(AtomicU64::new(START_S)),
            revoked: Arc::default(),
            heeds: Arc::default(),
        }
    }
}

impl Credentials for TestNode {
    fn node(&self) -> NodeId {
        self.node
    }
    fn cell(&self) -> CellLabel {
        self.cell.clone()
    }
    fn certificate(&self) -> Bytes {
        let issued = self.issued.load(Ordering::Relaxed).to_be_bytes();
        let padding = vec![b' '; self.padding];
        let body = [&self.node.0, &issued[..], &padding, self.cell.as_str().as_bytes()].concat();
        [&mac(&[self.mesh], &body)[..], &body].concat().into()
    }
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        mac(&self.node.0, message)
    }
    fn verify(&self, node: NodeId, message: &[u8], signature: &[u8; 64]) -> bool {
        mac(&node.0, message) == *signature
    }
    fn admit(&self, certificate: &[u8], now: UnixTime) -> Option<Admission> {
        let (seal, body) = certificate.split_first_chunk::<64>()?;
        let (node, rest) = body.split_first_chunk::<32>()?;
        let (issued, cell) = rest.split_first_chunk::<8>()?;
        let (node, issued) = (NodeId(*node), UnixTime(u64::from_be_bytes(*issued)));
        let expires = UnixTime(issued.0 + LIFE_S);
        let revoked = self.revoked.lock().unwrap().contains(&node);
        if *seal != mac(&[self.mesh], body) || now >= expires || revoked {
            return None;
        }
        let cell = std::str::from_utf8(cell).ok()?.trim_start().parse().ok()?;
        Some(Admission { node, cell, issued, expires })
    }
    fn is_member(&self) -> bool {
        !self.heeds.load(Ordering::Relaxed) || !self.revoked.lock().unwrap().contains(&self.node())
    }
    fn beliefs(&self) -> u64 {
        self.revoked.lock().unwrap().len() as u64
    }
}

fn addr(number: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 0], u16::try_from(number).unwrap() + 1))
}

/// The second address of a member that has two.
fn second_addr(number: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 1, 0], u16::try_from(number).unwrap() + 1))
}

/// Virtual members and a network with delay, loss and cuts, all from one seed.
struct Swarm {
    now: Time,
    members: Vec<Option<Protocol<TestNode>>>,
    up: Vec<BTreeSet<NodeId>>,
    parts: Vec<Part>,
    /// How often a member's cell became another.
    partings: usize,
    /// Who was heard of with a renewed certificate.
    renewed: Vec<BTreeSet<NodeId>>,
    issued: Vec<Arc<AtomicU64>>,
    revoked: Arc<Mutex<BTreeSet<NodeId>>>,
    heeds: Arc<AtomicBool>,
    wire: BinaryHeap<std::cmp::Reverse<(Time, u64, usize, usize)>>,
    bodies: BTreeMap<u64, Vec<u8>>,
    sent: u64,
    generator: Generator,
    /// By how many seconds the clocks of members are fast.
    fast_s: Vec<u64>,
    /// Members on different sides do not hear each other.
    side: Vec<u8>,
    /// Between the two of such a pair only their second addresses lead anywhere.
    far: BTreeSet<(usize, usize)>,
    /// Who is reached, and sends, at its second address only.
    moved: BTreeSet<usize>,
    /// Where members say that they are.
    reached: Vec<BTreeMap<NodeId, Vec<SocketAddr>>>,
    /// Where members were last found to be up.
    found: Vec<BTreeMap<NodeId, SocketAddr>>,
    loss_percent: usize,
    refusals: Vec<Refusal>,
    /// Members that somebody lost.
    lost: Vec<(usize, NodeId)>,
    /// Every datagram that was sent, when wanted.
    tape: Option<Vec<(usize, usize, Vec<u8>)>>,
}

impl Swarm {
    fn new(members: usize, seed: u64) -> Self {
        Self::with(members, seed, &[], &Tuning::default())
    }

    fn with_second_addresses(members: usize, seed: u64, of: &[usize]) -> Self {
        Self::with(members, seed, of, &Tuning::default())
    }

    fn tuned(members: usize, seed: u64, tuning: &Tuning) -> Self {
        Self::with(members, seed, &[], tuning)
    }

    fn with(members: usize, seed: u64, of: &[usize], tuning: &Tuning) -> Self {
        let now = Now { time: Time::ZERO, unix: UnixTime(START_S) };
        let revoked: Arc<Mutex<BTreeSet<NodeId>>> = Arc::default();
        let heeds: Arc<AtomicBool> = Arc::default();
        let mut clocks = Vec::new();
        let swims = (0..members)
            .map(|number| {
                let contacts = if number == 0 { vec![] } else { vec![(NodeId([0; 32]), addr(0))] };
                // The certificates of some are so long that they travel apart from large packets.
                let padding = if number % 3 == 0 { 680 } else { 0 };
                let node = TestNode::new(u8::try_from(number).unwrap(), 1, "eu/a/r1");
                let node = TestNode { padding, revoked: revoked.clone(), heeds: heeds.clone(), ..node };
                clocks.push(node.issued.clone());
                let generator = Generator::stream(seed, number as u64);
                let further = if of.contains(&number) { vec![second_addr(number)] } else { vec![] };
                Some(Protocol::new(node, addr(number), &further, contacts, tuning, now, generator))
            })
            .collect();
        Self {
            now: Time::ZERO,
            members: swims,
            up: vec![BTreeSet::new(); members],
            parts: vec![Part::WHOLE; members],
            partings: 0,
            renewed: vec![BTreeSet::new(); members],
            issued: clocks,
            revoked,
            heeds,
            wire: BinaryHeap::new(),
            bodies: BTreeMap::new(),
            sent: 0,
            generator: Generator::new(seed),
            fast_s: vec![0; members],
            side: vec![0; members],
            far: BTreeSet::new(),
            moved: BTreeSet::new(),
            found: vec![BTreeMap::new(); members],
            reached: vec![BTreeMap::new(); members],
            loss_percent: 0,
            refusals: Vec::new(),
            lost: Vec::new(),
            tape: None,
        }
    }

    fn clock(&self) -> Now {
        Now { time: self.now, unix: UnixTime(START_S + self.now.as_nanos() / 1_000_000_000) }
    }

    fn clock_of(&self, number: usize) -> Now {
        let clock = self.clock();
        Now { unix: UnixTime(clock.unix.0 + self.fast_s[number]), ..clock }
    }

    fn collect(&mut self, number: usize) {
        let Some(swim) = self.members[number].as_mut() else { return };
        for action in swim.take_actions() {
            match action {
                Action::Send(to, bytes) => {
                    assert!(bytes.len() <= crate::mesh::DATAGRAM_MAX_BYTES && bytes[0] < 0x40);
                    let (place, to) = (to, usize::from(to.port()) - 1);
                    if let Some(tape) = &mut self.tape {
                        tape.push((number, to, bytes.clone()));
                    }
                    let second = self.is_far(number, to) || self.moved.contains(&to);
                    let unreachable = second && place != second_addr(to);
                    let lost = self.generator.below(100) < self.loss_percent || unreachable;
                    if !lost && to < self.side.len() && self.side[number] == self.side[to] {
                        let delay = Duration::from_micros(200 + self.generator.below(2_000) as u64);
                        self.sent += 1;
                        self.wire.push(std::cmp::Reverse((self.now + delay, self.sent, number, to)));
                        self.bodies.insert(self.sent, bytes);
                    }
                }
                Action::Up { node, addr, certificate } => {
                    assert!(!certificate.is_empty());
                    self.found[number].insert(node, addr);
                    self.up[number].insert(node);
                }
                Action::Renewed { node, .. } => {
                    assert!(self.up[number].contains(&node), "renewed without up");
                    self.renewed[number].insert(node);
                }
                Action::Reached { node, addresses } => {
                    assert!(self.up[number].contains(&node), "reached without up");
                    self.reached[number].insert(node, addresses);
                }
                Action::Moved(_) => {}
                Action::Parted(part) => {
                    (self.parts[number], self.partings) = (part, self.partings + 1);
                    self.up[number].retain(|node| part.holds(node.key()));
                }
                Action::Down(node) => {
                    self.lost.push((number, node));
                    assert!(self.up[number].remove(&node), "down without up");
                }
            }
        }
    }

    fn is_far(&self, one: usize, other: usize) -> bool {
        self.far.contains(&(one.min(other), one.max(other)))
    }

    /// Runs until `done` or for `limit`; says whether it was done.
    fn run(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + limit;
        while self.now < end {
            if done(self) {
                return true;
            }
            let timer =
                self.members.iter().flatten().map(Protocol::next_deadline).min().unwrap_or(Time::NEVER);
            let packet = self.wire.peek().map_or(Time::NEVER, |next| next.0.0);
            self.now = timer.min(packet).max(self.now);
            while let Some(next) = self.wire.peek().filter(|next| next.0.0 <= self.now) {
                let (_, id, from, to) = next.0;
                self.wire.pop();
                let bytes = self.bodies.remove(&id).unwrap();
                let clock = self.clock_of(to);
                let second = self.is_far(from, to) || self.moved.contains(&from);
                let source = if second { second_addr(from) } else { addr(from) };
                if let Some(swim) = self.members[to].as_mut()
                    && let Err(refusal) = swim.receive(source, &bytes, clock)
                {
                    self.refusals.push(refusal);
                }
                self.collect(to);
            }
            for number in 0..self.members.len() {
                let clock = self.clock_of(number);
                if let Some(swim) = self.members[number].as_mut().filter(|s| s.next_deadline() <= clock.time)
                {
                    swim.advance(clock);
                    self.collect(number);
                }
            }
        }
        done(self)
    }

    /// The cells, when every living member sees exactly the other living ones of its own, and they agree which it is.
    fn cells(&self) -> Option<BTreeMap<Part, usize>> {
        let alive: Vec<usize> = (0..self.members.len()).filter(|n| self.members[*n].is_some()).collect();
        let name = |n: usize| NodeId([u8::try_from(n).unwrap(); 32]);
        let mut cells = BTreeMap::new();
        for n in &alive {
            let part = self.parts[*n];
            let mates = alive.iter().filter(|m| *m != n && part.holds(name(**m).key()));
            let mates: Vec<usize> = mates.copied().collect();
            let agree = mates.iter().all(|m| self.parts[*m] == part);
            if !agree || self.up[*n] != mates.iter().map(|m| name(*m)).collect() {
                return None;
            }
            cells.insert(part, mates.len() + 1);
        }
        Some(cells)
    }

    /// Whether every living member sees exactly the other living ones.
    fn all_see_all(&self) -> bool {
        let alive: Vec<usize> = (0..self.members.len()).filter(|n| self.members[*n].is_some()).collect();
        alive.iter().all(|n| {
            self.up[*n].len() == alive.len() - 1
                && alive
                    .iter()
                    .all(|m| m == n || self.up[*n].contains(&NodeId([u8::try_from(*m).unwrap(); 32])))
        })
    }
}

#[test]
fn five_members_that_know_one_contact_all_see_all_even_when_datagrams_are_lost() {
    for seed in 0..5 {
        let mut swarm = Swarm::new(5, seed);
        swarm.loss_percent = 20;
        assert!(swarm.run(Duration::from_secs(60), Swarm::all_see_all), "seed {seed}: {:?}", swarm.up);
    }
}

#[test]
fn a_hundred_members_all_see_all_and_a_killed_one_is_noticed_by_all() {
    let mut swarm = Swarm::new(100, 7);
    assert!(swarm.run(Duration::from_secs(60), Swarm::all_see_all));
    swarm.members[42] = None;
    assert!(!swarm.all_see_all());
    assert!(swarm.run(Duration::from_secs(15), Swarm::all_see_all), "fifteen seconds are not enough");
    let before = swarm.up.clone();
    swarm.run(Duration::from_secs(20), |_| false);
    assert_eq!(swarm.up, before, "nobody else was suspected to death");
}

/// Whether all others find member 3 at its second address.
fn is_found(swarm: &Swarm) -> bool {
    let moved = |n: usize| n == 3 || swarm.found[n].get(&NodeId([3; 32])) == Some(&second_addr(3));
    swarm.all_see_all() && (0..swarm.members.len()).all(moved)
}

#[test]
fn a_member_that_moves_is_found_where_it_is_and_nobody_goes_down() {
    let mut swarm = Swarm::with_second_addresses(6, 5, &[4]);
    assert!(swarm.run(Duration::from_secs(30), Swarm::all_see_all));
    for _ in 0..2 {
        swarm.moved.insert(3);
        let clock = swarm.clock();
        swarm.members[3].as_mut().unwrap().move_to(second_addr(3), &[addr(9)], clock);
        swarm.collect(3);
        let told = |swarm: &Swarm| {
            let at = vec![second_addr(3), addr(9)];
            (0..6).all(|n| n == 3 || swarm.reached[n].get(&NodeId([3; 32])) == Some(&at))
        };
        assert!(
            swarm.run(Duration::from_secs(30), |swarm| is_found(swarm) && told(swarm)),
            "{:?}",
            swarm.found
        );
    }
    swarm.run(Duration::from_secs(60), |_| false);
    assert!(is_found(&swarm) && swarm.lost.is_empty(), "{:?}", swarm.lost);
}

#[test]
fn a_member_that_was_lost_because_it_moved_is_found_once_it_knows() {
    for seed in 0..5 {
        let mut swarm = Swarm::new(6, seed);
        assert!(swarm.run(Duration::from_secs(30), Swarm::all_see_all));
        swarm.moved.insert(3);
        assert!(swarm.run(Duration::from_secs(60), |swarm| swarm.up[3].is_empty() && swarm.up[0].len() == 4));
        let clock = swarm.clock();
        swarm.members[3].as_mut().unwrap().move_to(second_addr(3), &[], clock);
        swarm.collect(3);
        assert!(swarm.run(Duration::from_secs(60), is_found), "seed {seed}: {:?}", swarm.up);
    }
}

#[test]
fn a_revoked_member_is_turned_out_at_once_by_all_and_stays_out_although_it_goes_on_speaking() {
    let mut swarm = Swarm::new(8, 5);
    assert!(swarm.run(Duration::from_secs(30), Swarm::all_see_all));
    let out = NodeId([3; 32]);
    swarm.revoked.lock().unwrap().insert(out);
    let gone = |swarm: &Swarm| (0..8).all(|n| n == 3 || !swarm.up[n].contains(&out));
    assert!(swarm.run(Duration::from_millis(1_500), gone), "{:?}", swarm.up);
    assert!(!swarm.run(Duration::from_secs(60), |swarm| !gone(swarm)), "it came back");
    assert!((0..8).all(|n| n == 3 || swarm.up[n].len() == 6), "nobody else went: {:?}", swarm.up);
    let heard = [Refusal::BadCertificate, Refusal::Stranger];
    assert!(swarm.refusals.iter().any(|refusal| heard.contains(refusal)), "it went on speaking");
}

#[test]
fn a_member_that_knows_of_its_revocation_knows_nobody() {
    let mut swarm = Swarm::new(6, 5);
    assert!(swarm.run(Duration::from_secs(30), Swarm::all_see_all));
    swarm.heeds.store(true, Ordering::Relaxed);
    swarm.revoked.lock().unwrap().insert(NodeId([3; 32]));
    assert!(swarm.run(Duration::from_secs(2), |swarm| swarm.up[3].is_empty()), "{:?}", swarm.up);
    assert!(!swarm.run(Duration::from_secs(60), |swarm| !swarm.up[3].is_empty()), "it took somebody in");
}

#[test]
fn renewed_certificates_are_heard_of_by_all_before_the_old_ones_end_and_nobody_goes_down() {
    let mut swarm = Swarm::new(6, 8);
    // The 60th percent of their lives comes after 50 seconds.
    for issued in &swarm.issued {
        issued.store(START_S + 50 - LIFE_S * 60 / 100, Ordering::Relaxed);
    }
    assert!(swarm.run(Duration::from_secs(30), Swarm::all_see_all));
    for issued in &swarm.issued {
        issued.store(START_S, Ordering::Relaxed);
    }
    let all_heard = |swarm: &Swarm| swarm.renewed.iter().all(|heard| heard.len() == 5);
    let before = Duration::from_secs(45).saturating_sub(swarm.now.since(Time::ZERO));
    assert!(!swarm.run(before, all_heard), "nobody asks before it is time");
    assert!(swarm.run(Duration::from_secs(120), all_heard), "{:?}", swarm.renewed);
    assert!(swarm.lost.is_empty(), "{:?}", swarm.lost);
}

#[test]
fn a_member_that_leaves_is_gone_at_once_and_may_come_back() {
    let mut swarm = Swarm::new(5, 3);
    assert!(swarm.run(Duration::from_secs(30), Swarm::all_see_all));
    let clock = swarm.clock();
    swarm.members[2].as_mut().unwrap().leave(clock);
    swarm.collect(2);
    swarm.members[2] = None;
    assert!(swarm.run(Duration::from_secs(2), Swarm::all_see_all), "well before a probe could notice");
    let node = TestNode::new(2, 1, "eu/a/r1");
    swarm.up[2].clear();
    swarm.members[2] = Some(Protocol::new(
        node,
        addr(2),
        &[],
        vec![(NodeId([4; 32]), addr(4))],
        &Tuning::default(),
        swarm.clock(),
        Generator::new(9),
    ));
    assert!(swarm.run(Duration::from_secs(30), Swarm::all_see_all), "{:?}", swarm.up);
}

#[test]
fn the_halves_of_a_cut_cell_lose_each_other_and_find_together_again() {
    for seed in [11, 12, 13] {
        let mut swarm = Swarm::new(10, seed);
        assert!(swarm.run(Duration::from_secs(30), Swarm::all_see_all));
        for number in 0..10 {
            swarm.side[number] = u8::from(number >= 5);
        }
        let halves = |swarm: &Swarm| swarm.up.iter().all(|seen| seen.len() == 4);
        assert!(swarm.run(Duration::from_secs(60), halves), "seed {seed}: {:?}", swarm.up);
        swarm.side.fill(0);
        assert!(swarm.run(Duration::from_secs(180), Swarm::all_see_all), "seed {seed}: {:?}", swarm.up);
    }
}

#[test]
fn a_node_that_was_cut_off_alone_comes_back() {
    let mut swarm = Swarm::new(4, 21);
    assert!(swarm.run(Duration::from_secs(30), Swarm::all_see_all));
    swarm.side[3] = 1;
    let cut = |swarm: &Swarm| swarm.up[3].is_empty() && swarm.up[0].len() == 2;
    assert!(swarm.run(Duration::from_secs(60), cut));
    swarm.side[3] = 0;
    assert!(swarm.run(Duration::from_secs(120), Swarm::all_see_all), "{:?}", swarm.up);
}

#[test]
fn members_that_reach_each_other_at_their_second_addresses_only_find_together_by_hearsay_and_stay() {
    for seed in [31, 32, 33] {
        let mut swarm = Swarm::with_second_addresses(8, seed, &[1, 2, 3]);
        swarm.far = BTreeSet::from([(1, 2), (2, 3)]);
        let second = |swarm: &Swarm, of: usize| {
            let name = NodeId([u8::try_from(of).unwrap(); 32]);
            (0..8)
                .filter(|n| *n != of)
                .all(|n| swarm.reached[n].get(&name).is_some_and(|at| *at == [addr(of), second_addr(of)]))
        };
        let done = |swarm: &Swarm| swarm.all_see_all() && [1, 2, 3].iter().all(|of| second(swarm, *of));
        assert!(swarm.run(Duration::from_secs(120), done), "seed {seed}: {:?} {:?}", swarm.up, swarm.reached);
        swarm.lost.clear();
        swarm.run(Duration::from_secs(120), |_| false);
        assert_eq!(swarm.lost, [], "seed {seed}");
        assert_eq!(swarm.reached.iter().map(BTreeMap::len).sum::<usize>(), 3 * 7);
    }
}

#[test]
fn further_addresses_are_told_to_who_asks_and_to_no_older_program() {
    const HAS_ADDRESSES: u8 = 4;
    let now = Now { time: Time::ZERO, unix: UnixTime(START_S) };
    let (me, other) = (TestNode::new(1, 1, "eu/a/r1"), TestNode::new(2, 1, "eu/a/r1"));
    for asks in [false, true] {
        let further = [second_addr(1)];
        let generator = Generator::new(1);
        let mut swim =
            Protocol::new(me.clone(), addr(1), &further, vec![], &Tuning::default(), now, generator);
        let letter = Letter {
            sender: other.node,
            receiver: me.node,
            counter: Counter::default().next(now.unix),
            certificate: Some(&other.certificate()),
            wants_certificate: true,
            told: Told::default(),
            addresses: None,
            wants_addresses: asks,
            packet: &[],
        };
        swim.receive(addr(2), &letter.seal(|message| other.sign(message)), now).unwrap();
        let actions = swim.take_actions();
        assert_eq!(actions.len(), 2, "its certificate, and an announcement");
        for action in actions {
            let Action::Send(to, bytes) = action else { panic!("{action:?}") };
            assert_eq!((to, bytes[1] & HAS_ADDRESSES != 0), (addr(2), asks));
        }
    }
}

fn introduction(from: &TestNode, to: &TestNode, packet: &[u8], now: UnixTime) -> Vec<u8> {
    let certificate = from.certificate();
    let letter = Letter {
        sender: from.node,
        receiver: to.node,
        counter: Counter::default().next(now),
        certificate: Some(&certificate),
        wants_certificate: true,
        told: Told::default(),
        addresses: None,
        wants_addresses: false,
        packet,
    };
    letter.seal(|message| from.sign(message))
}

/// A lone node, and what it says of a datagram; it must not have acted on a refused one.
fn judge(bytes: &[u8]) -> Refusal {
    let now = Now { time: Time::ZERO, unix: UnixTime(START_S) };
    let me = TestNode::new(1, 1, "eu/a/r1");
    let mut swim = Protocol::new(me, addr(1), &[], vec![], &Tuning::default(), now, Generator::new(1));
    let refusal = swim.receive(addr(2), bytes, now).unwrap_err();
    assert_eq!(swim.take_actions(), []);
    refusal
}

#[test]
fn forged_foreign_and_stale_datagrams_are_refused_and_change_nothing() {
    let me = TestNode::new(1, 1, "eu/a/r1");
    let friend = TestNode::new(2, 1, "eu/a/r1");
    let now = UnixTime(START_S);
    let good = introduction(&friend, &me, &[], now);

    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(judge(&forged), Refusal::Forged);
    let mut altered = good.clone();
    altered[1] ^= 2;
    assert_eq!(judge(&altered), Refusal::Forged, "a flag is signed, too");
    let foreign = introduction(&TestNode::new(2, 9, "eu/a/r1"), &me, &[], now);
    assert_eq!(judge(&foreign), Refusal::BadCertificate, "another mesh");
    let stolen = TestNode { node: NodeId([3; 32]), ..friend.clone() };
    let certificate = friend.certificate();
    let letter = Letter {
        sender: stolen.node,
        receiver: me.node,
        counter: Counter::default().next(now),
        certificate: Some(&certificate),
        wants_certificate: false,
        told: Told::default(),
        addresses: None,
        wants_addresses: false,
        packet: &[],
    };
    assert_eq!(
        judge(&letter.seal(|m| stolen.sign(m))),
        Refusal::BadCertificate,
        "somebody else's certificate"
    );
    assert_eq!(judge(&introduction(&TestNode::new(2, 1, "eu/a/r2"), &me, &[], now)), Refusal::OtherCell);
    assert_eq!(judge(&introduction(&me, &me, &[], now)), Refusal::OwnName);
    for skew in [START_S - 301, START_S + 302] {
        assert_eq!(judge(&introduction(&friend, &me, &[], UnixTime(skew))), Refusal::Stale);
    }
    let elsewhere = introduction(&friend, &TestNode::new(4, 1, "eu/a/r1"), &[], now);
    assert_eq!(judge(&elsewhere), Refusal::Forged, "meant for another node");
    assert_eq!(judge(&[1; 40]), Refusal::Malformed);
    assert_eq!(judge(&introduction(&friend, &me, &[0xff; 30], now)), Refusal::Malformed);
    let stranger = Letter {
        sender: friend.node,
        receiver: me.node,
        counter: Counter::default().next(now),
        certificate: None,
        wants_certificate: true,
        told: Told::default(),
        addresses: None,
        wants_addresses: false,
        packet: &[],
    };
    assert_eq!(judge(&stranger.seal(|m| friend.sign(m))), Refusal::Stranger);
}

#[test]
fn a_replayed_conversation_changes_nothing() {
    let mut swarm = Swarm::new(5, 31);
    swarm.tape = Some(Vec::new());
    assert!(swarm.run(Duration::from_secs(30), Swarm::all_see_all));
    swarm.run(Duration::from_secs(5), |_| false);
    let tape = swarm.tape.take().unwrap();
    assert!(tape.len() > 100);
    let clock = swarm.clock();
    for (from, to, bytes) in &tape {
        if *to < 5 && swarm.bodies.values().all(|flying| flying != bytes) {
            let swim = swarm.members[*to].as_mut().unwrap();
            assert_eq!(swim.receive(addr(*from), bytes, clock), Err(Refusal::Replayed));
            assert_eq!(swim.take_actions(), []);
        }
    }
    assert!(swarm.all_see_all());
}

#[test]
fn a_member_that_speaks_for_another_is_refused() {
    let mut swarm = Swarm::new(3, 41);
    assert!(swarm.run(Duration::from_secs(30), Swarm::all_see_all));
    // Node 2 sends what node 1 would send: its own signature, the other's packet.
    let header = foca::Header {
        src: super::seat::Seat { node: NodeId([1; 32]), addr: addr(1), renewal: u64::MAX },
        src_incarnation: 0,
        dst: super::seat::Seat { node: NodeId([0; 32]), addr: addr(0), renewal: START_S * 1_000 },
        message: foca::Message::Gossip,
    };
    let packet = postcard::to_stdvec(&header).unwrap();
    let (liar, victim) = (TestNode::new(2, 1, "eu/a/r1"), TestNode::new(0, 1, "eu/a/r1"));
    let clock = swarm.clock();
    let later = UnixTime(clock.unix.0 + 1);
    let bytes = introduction(&liar, &victim, &packet, later);
    let swim = swarm.members[0].as_mut().unwrap();
    assert_eq!(swim.receive(addr(2), &bytes, clock), Err(Refusal::Forged));
}

/// Member `liar` tells everybody that everybody else is down, that others moved to its own address, and of members
/// that do not exist; to each it says that it was declared down itself.
fn lie(swarm: &mut Swarm, liar: usize, made_up: &mut u8) {
    use foca::{Header, Member, Message, State};
    let clock = swarm.clock();
    let seats: Vec<_> = swarm.members.iter().flatten().map(Protocol::seat).collect();
    for to in (0..seats.len()).filter(|to| *to != liar) {
        *made_up = made_up.wrapping_add(1).max(100);
        let ghost = super::seat::Seat { node: NodeId([*made_up; 32]), addr: addr(200), renewal: 1 };
        let mut updates = vec![Member::alive(ghost)];
        for seat in seats.iter().filter(|seat| **seat != seats[liar]) {
            updates.push(Member::new(*seat, 0, State::Down));
            let moved = super::seat::Seat { addr: addr(liar), renewal: seat.renewal + 1_000_000, ..*seat };
            updates.push(Member::alive(moved));
        }
        for message in [Message::Gossip, Message::TurnUndead] {
            let header = Header { src: seats[liar], src_incarnation: 0, dst: seats[to], message };
            let mut packet = postcard::to_stdvec(&header).unwrap();
            packet.extend(u16::try_from(updates.len()).unwrap().to_be_bytes());
            for update in &updates {
                packet = postcard::to_extend(update, packet).unwrap();
            }
            swarm.members[liar].as_mut().unwrap().send(seats[to].addr, seats[to].node, &packet, clock);
        }
    }
    swarm.collect(liar);
}

#[test]
fn a_liar_neither_kills_nor_moves_nor_invents_members_and_is_not_listened_to() {
    for seed in [51, 52, 53] {
        let mut swarm = Swarm::new(6, seed);
        assert!(swarm.run(Duration::from_secs(60), Swarm::all_see_all));
        swarm.lost.clear();
        let mut made_up = 100;
        for _ in 0..300 {
            lie(&mut swarm, 5, &mut made_up);
            swarm.run(Duration::from_millis(200), |_| false);
        }
        let honest = |lost: &&(usize, NodeId)| lost.0 != 5 && lost.1 != NodeId([5; 32]);
        let lost: Vec<_> = swarm.lost.iter().filter(honest).collect();
        assert!(lost.is_empty(), "seed {seed}: {lost:?}");
        for number in 0..5 {
            let others = (0..5_u8).filter(|other| usize::from(*other) != number);
            assert!(others.map(|other| NodeId([other; 32])).all(|other| swarm.up[number].contains(&other)));
            let counts = swarm.members[number].as_ref().unwrap().claim_counts();
            let all = [counts.doubted, counts.ignored, counts.survived, counts.unknown];
            assert!(all.iter().all(|count| *count > 0), "seed {seed}: {counts:?}");
        }
        assert!(swarm.run(Duration::from_secs(60), Swarm::all_see_all), "and all is well when it stops");
    }
}

#[test]
fn a_killed_member_is_noticed_in_time_although_a_liar_keeps_its_name_alive() {
    let mut swarm = Swarm::new(8, 61);
    assert!(swarm.run(Duration::from_secs(60), Swarm::all_see_all));
    let dead = swarm.members[3].take().unwrap().seat();
    let began = swarm.now;
    let gone = |swarm: &Swarm| {
        (0..8).filter(|n| *n != 3 && *n != 7).all(|n| !swarm.up[n].contains(&NodeId([3; 32])))
    };
    while !gone(&swarm) && swarm.now < began + Duration::from_secs(60) {
        let clock = swarm.clock();
        for to in [0, 1, 2, 4, 5, 6] {
            let dst = swarm.members[to].as_ref().unwrap().seat();
            let liar = swarm.members[7].as_mut().unwrap();
            let message = foca::Message::Gossip;
            let header = foca::Header { src: liar.seat(), src_incarnation: 0, dst, message };
            let mut packet = postcard::to_stdvec(&header).unwrap();
            packet.extend(1_u16.to_be_bytes());
            packet = postcard::to_extend(&foca::Member::new(dead, 0, foca::State::Alive), packet).unwrap();
            liar.send(dst.addr, dst.node, &packet, clock);
        }
        swarm.collect(7);
        swarm.run(Duration::from_millis(500), gone);
    }
    assert!(gone(&swarm) && swarm.now < began + Duration::from_secs(20), "{:?}", swarm.now.since(began));
}

#[test]
fn junk_from_one_address_is_cut_short_and_members_elsewhere_are_heard() {
    let mut swarm = Swarm::new(3, 71);
    assert!(swarm.run(Duration::from_secs(30), Swarm::all_see_all));
    let clock = swarm.clock();
    let victim = swarm.members[0].as_mut().unwrap();
    let mut looked_at = 0;
    for n in 0..5_000_u32 {
        let mut junk = vec![1, 0];
        junk.extend(n.to_be_bytes());
        junk.resize(300, 3);
        looked_at += u32::from(victim.receive(addr(150), &junk, clock) != Err(Refusal::Paced));
    }
    assert!(looked_at <= 64, "{looked_at}");
    swarm.lost.clear();
    swarm.run(Duration::from_secs(20), |_| false);
    assert!(swarm.all_see_all() && swarm.lost.is_empty());
}

#[test]
fn a_member_whose_clock_is_wrong_is_a_member_within_five_minutes_and_beyond_only_it_suffers() {
    let mut swarm = Swarm::new(5, 81);
    swarm.fast_s[2] = 280;
    assert!(swarm.run(Duration::from_secs(60), Swarm::all_see_all));
    let mut swarm = Swarm::new(5, 82);
    swarm.fast_s[2] = 400;
    let others_see_each_other =
        |swarm: &Swarm| [0, 1, 3, 4].iter().all(|n| swarm.up[*n].len() == 3) && swarm.up[2].is_empty();
    assert!(swarm.run(Duration::from_secs(60), others_see_each_other), "{:?}", swarm.up);
    swarm.lost.clear();
    swarm.run(Duration::from_secs(30), |_| false);
    assert!(swarm.lost.is_empty() && others_see_each_other(&swarm));
    assert!(swarm.refusals.contains(&Refusal::Stale));
    swarm.fast_s[2] = 0;
    assert!(swarm.run(Duration::from_secs(120), Swarm::all_see_all), "a clock that is set right is enough");
}

#[test]
fn cells_halve_as_they_grow_and_join_as_they_shrink_and_all_members_agree() {
    for (seed, loss_percent) in [(61, 0), (62, 10)] {
        let tuning = Tuning { cell_max: 10, pause: Duration::from_secs(2), ..Tuning::default() };
        let mut swarm = Swarm::tuned(36, seed, &tuning);
        swarm.loss_percent = loss_percent;
        let halved = |swarm: &Swarm| {
            swarm.cells().is_some_and(|cells| cells.len() > 3 && cells.values().all(|size| *size <= 10))
        };
        assert!(swarm.run(Duration::from_secs(120), halved), "seed {seed}: {:?} {:?}", swarm.parts, swarm.up);
        let before = swarm.partings;
        swarm.run(Duration::from_secs(60), |_| false);
        assert_eq!(swarm.partings, before, "seed {seed}: it is still");
        // A member that restarts comes back to its cell, which some of its contacts tell it.
        let clock = swarm.clock();
        let contacts = (0..36).filter(|n| *n != 7).map(|n| (NodeId([n; 32]), addr(usize::from(n)))).collect();
        (swarm.up[7], swarm.parts[7]) = (BTreeSet::new(), Part::WHOLE);
        let node = TestNode { revoked: swarm.revoked.clone(), ..TestNode::new(7, 1, "eu/a/r1") };
        swarm.members[7] =
            Some(Protocol::new(node, addr(7), &[], contacts, &tuning, clock, Generator::new(7)));
        swarm.run(Duration::from_secs(1), |_| false);
        assert!(swarm.run(Duration::from_secs(90), halved), "seed {seed}: {:?} {:?}", swarm.parts, swarm.up);
        for number in 4..36 {
            swarm.members[number] = None;
        }
        let one = |swarm: &Swarm| swarm.cells().is_some_and(|cells| cells.len() == 1);
        assert!(swarm.run(Duration::from_secs(600), one), "seed {seed}: {:?} {:?}", swarm.parts, swarm.up);
        let before = swarm.partings;
        swarm.run(Duration::from_secs(60), |_| false);
        assert!(one(&swarm) && swarm.partings == before, "seed {seed}: it is still");
    }
}

#[test]
fn halves_that_a_cut_kept_apart_find_together_in_their_cells() {
    let tuning = Tuning { cell_max: 8, pause: Duration::from_secs(2), ..Tuning::default() };
    let mut swarm = Swarm::tuned(14, 71, &tuning);
    let halved = |swarm: &Swarm| {
        swarm.cells().is_some_and(|cells| cells.len() > 1 && cells.values().all(|size| *size <= 8))
    };
    assert!(swarm.run(Duration::from_secs(120), halved), "{:?}", swarm.parts);
    for number in 7..14 {
        swarm.side[number] = 1;
    }
    swarm.run(Duration::from_secs(120), |_| false);
    swarm.side = vec![0; 14];
    assert!(swarm.run(Duration::from_secs(180), halved), "{:?} {:?}", swarm.parts, swarm.up);
    let before = swarm.partings;
    swarm.run(Duration::from_secs(60), |_| false);
    assert_eq!(swarm.partings, before, "it is still");
}
