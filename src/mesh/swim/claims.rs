//! What members say of others, and how much of it is believed.
//!
//! foca believes whoever speaks. Every member's datagrams are signed, but a member may lie about others, so:
//!
//! * Where a member is, and in which of its lives, counts from its own mouth only. What others say of a seat that
//!   is not known is a *hint*: it is asked there, and what it answers itself counts.
//! * That a member is down is believed of three who say so (or of itself, when it leaves). Of fewer it counts as a
//!   suspicion, which the member can refute; a dead one refutes nothing and is down when its time is over.
//! * This node believes three, too, that it was declared down itself, and takes a new life. One that says so is
//!   believed at most every half minute: that is enough to be taken back by a member that lost sight of it alone.
//! * Whoever accuses more than the death of a rack explains is not listened to for a while.
//! * Nobody is probed or forwarded to at an address that it was not heard from.

use super::super::bucket::{Buckets, Pace};
use super::Refusal;
use super::datagram::{FURTHER_MAX, Further, is_dialable};
use super::seat::Seat;
use crate::model::{NodeId, Time, limits};
use foca::{Header, Member, Message, State};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// Members that must say that another is down (guess: a liar and its accomplice are not enough).
const ACCUSERS: usize = 3;
/// How long a word counts: until a suspicion has long been settled.
const ACCUSATION_LIFE: Duration = Duration::from_secs(10);
/// Between two new lives of this node that fewer than [`ACCUSERS`] made it take.
const RENEWAL_PAUSE: Duration = Duration::from_secs(30);
/// Accusations that one member may make or pass on: a rack of forty that dies, said thirteen times each, and the pace
/// of a large cell's ordinary deaths.
const ACCUSATIONS: Pace = Pace { burst: 520, per_s: 8 };
/// Accusers whose pace is remembered.
const ACCUSERS_MAX: usize = 2 * limits::CELL_MAX_MEMBERS;

/// What was made of claims, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ClaimCounts {
    /// Deaths that were taken for suspicions, for want of accusers.
    pub(super) doubted: u64,
    /// Accusations of members who accuse too much.
    pub(super) ignored: u64,
    /// Claims that this node is down which it did not follow.
    pub(super) survived: u64,
    /// Claims about members that are not known first-hand.
    pub(super) unknown: u64,
}

/// The part of a packet that is believed.
pub(super) struct Sifted {
    /// For foca.
    pub(super) packet: Vec<u8>,
    /// Members that may be reached there, or at these further addresses, if they answer.
    pub(super) hints: SmallVec<[(Seat, Further); 4]>,
}

/// The book of accusations.
pub(super) struct Claims {
    accusers: BTreeMap<NodeId, SmallVec<[(NodeId, Time); ACCUSERS]>>,
    paces: Buckets<NodeId>,
    renewed: Option<Time>,
    pub(super) counts: ClaimCounts,
}

/// Who is who, first-hand.
pub(super) struct View<'a> {
    pub(super) me: Seat,
    pub(super) active: &'a BTreeMap<NodeId, Seat>,
}

impl View<'_> {
    fn knows(&self, seat: &Seat) -> bool {
        *seat == self.me || self.active.get(&seat.node) == Some(seat)
    }
}

impl Claims {
    pub(super) fn new() -> Self {
        Self {
            accusers: BTreeMap::new(),
            paces: Buckets::new(ACCUSATIONS, ACCUSERS_MAX),
            renewed: None,
            counts: ClaimCounts::default(),
        }
    }

    /// Takes what is believed out of a packet that `sender` signed. Behind the updates may stand further addresses of
    /// those that they are about; what else follows, from a newer version perhaps, is left out.
    pub(super) fn sift(
        &mut self,
        sender: NodeId,
        packet: &[u8],
        view: &View<'_>,
        now: Time,
    ) -> Result<Sifted, Refusal> {
        let (mut header, rest) =
            postcard::take_from_bytes::<Header<Seat>>(packet).map_err(|_| Refusal::Malformed)?;
        if header.src.node != sender {
            return Err(Refusal::Forged);
        }
        match &header.message {
            Message::PingReq { target, .. } | Message::IndirectAck { target, .. } if !view.knows(target) => {
                return Err(Refusal::Unknown);
            }
            Message::TurnUndead if !self.believes_own_end(sender, now) => header.message = Message::Gossip,
            _ => {}
        }
        let mut hints = SmallVec::new();
        let mut kept = Updates::new();
        let (members, behind) = updates(rest)?;
        let mut further = further_behind(behind);
        for (number, member) in members.into_iter().enumerate() {
            let seat = *member.id();
            if self.judge(&header, member, view, now, &mut kept) {
                let number = u16::try_from(number).unwrap_or(u16::MAX);
                hints.push((seat, further.remove(&number).unwrap_or_default()));
            }
        }
        let mut packet = postcard::to_stdvec(&header).map_err(|_| Refusal::Malformed)?;
        // An announcement carries no updates, not even none.
        if header.message != Message::Announce && !rest.is_empty() {
            packet.extend(u16::try_from(kept.len()).map_err(|_| Refusal::Malformed)?.to_be_bytes());
            for member in &kept {
                packet = postcard::to_extend(member, packet).map_err(|_| Refusal::Malformed)?;
            }
        }
        Ok(Sifted { packet, hints })
    }

    /// Keeps what is believed; whether it only says whom to ask.
    fn judge(
        &mut self,
        header: &Header<Seat>,
        member: Member<Seat>,
        view: &View<'_>,
        now: Time,
        kept: &mut Updates,
    ) -> bool {
        let (seat, sender, state) = (*member.id(), header.src.node, member.state());
        if seat.node == sender {
            // Of itself a member may say anything, even that it goes.
            if seat == header.src {
                kept.push(member);
            }
            return false;
        }
        if !view.knows(&seat) {
            self.counts.unknown += 1;
            let newer = view.active.get(&seat.node).is_none_or(|known| seat.renewal > known.renewal);
            return state == State::Alive && newer && seat.node != view.me.node;
        }
        if state == State::Alive {
            if seat != view.me {
                kept.push(member);
            }
            return false;
        }
        if !self.paces.take(sender, 1, now) {
            self.counts.ignored += 1;
            return false;
        }
        if state == State::Suspect {
            kept.push(member);
        } else if seat == view.me {
            if self.believes_own_end(sender, now) {
                kept.push(member);
            }
        } else if self.accuse(seat.node, sender, now) {
            kept.push(member);
        } else {
            self.counts.doubted += 1;
            kept.push(Member::new(seat, member.incarnation(), State::Suspect));
        }
        false
    }

    /// Notes that `accuser` says `victim` is down; whether enough say so.
    fn accuse(&mut self, victim: NodeId, accuser: NodeId, now: Time) -> bool {
        let accusers = self.accusers.entry(victim).or_default();
        accusers.retain(|(_, at)| now.since(*at) < ACCUSATION_LIFE);
        if !accusers.iter().any(|(node, _)| *node == accuser) && accusers.len() < ACCUSERS {
            accusers.push((accuser, now));
        }
        accusers.len() >= ACCUSERS
    }

    /// Whether this node believes that it was declared down.
    fn believes_own_end(&mut self, accuser: NodeId, now: Time) -> bool {
        let many = self.accuse(OWN_END, accuser, now);
        let rested = self.renewed.is_none_or(|at| now.since(at) >= RENEWAL_PAUSE);
        if many || rested {
            self.renewed = Some(now);
            self.accusers.remove(&OWN_END);
            return true;
        }
        self.counts.survived += 1;
        false
    }

    /// Forgets words that do not count any longer.
    pub(super) fn forget(&mut self, now: Time) {
        self.accusers.retain(|_, accusers| accusers.iter().any(|(_, at)| now.since(*at) < ACCUSATION_LIFE));
    }
}

/// Stands for this node among those who are accused: no key has this name.
const OWN_END: NodeId = NodeId([0xff; 32]);

/// What a packet says of members.
type Updates = SmallVec<[Member<Seat>; 16]>;

/// The updates after a header, a count and so many members, and what stands behind them.
fn updates(rest: &[u8]) -> Result<(Updates, &[u8]), Refusal> {
    let mut members = Updates::new();
    if rest.is_empty() {
        return Ok((members, rest));
    }
    let (count, mut rest) = rest.split_first_chunk::<2>().ok_or(Refusal::Malformed)?;
    // Each takes some bytes of a datagram, so the loop ends soon, whatever the count.
    for _ in 0..u16::from_be_bytes(*count) {
        let (member, after) =
            postcard::take_from_bytes::<Member<Seat>>(rest).map_err(|_| Refusal::Malformed)?;
        members.push(member);
        rest = after;
    }
    Ok((members, rest))
}

/// Further addresses of members, by their place among a packet's updates.
type FurtherByPlace = BTreeMap<u16, Further>;

/// What stands behind the updates, as far as it is known here: it is only about whom to ask where.
fn further_behind(bytes: &[u8]) -> FurtherByPlace {
    // Not at once as what it becomes, which would take memory for as many as the sender says.
    let all = postcard::take_from_bytes::<BTreeMap<u16, Vec<SocketAddr>>>(bytes);
    let all = all.map(|(all, _)| all).unwrap_or_default().into_iter();
    all.filter(|(_, addresses)| addresses.len() <= FURTHER_MAX && addresses.iter().all(is_dialable))
        .map(|(place, addresses)| (place, addresses.into()))
        .collect()
}

/// Appends to a packet of foca's, as far as `room` bytes allow, where else those members can be reached of whom it says
/// that they are alive and of whom `further` knows it. A program of before leaves it out.
pub(super) fn append_further<'a>(
    packet: &mut Vec<u8>,
    room: usize,
    further: impl Fn(&NodeId) -> Option<&'a Further>,
) {
    let Ok((header, rest)) = postcard::take_from_bytes::<Header<Seat>>(packet) else { return };
    let Ok((members, [])) = updates(rest) else { return };
    if header.message == Message::Announce || rest.is_empty() {
        return;
    }
    let mut known = FurtherByPlace::new();
    let mut bytes = Vec::new();
    for (place, member) in members.iter().enumerate().filter(|(_, member)| member.state() == State::Alive) {
        let (Ok(place), Some(addresses)) = (u16::try_from(place), further(&member.id().node)) else {
            continue;
        };
        known.insert(place, addresses.clone());
        match postcard::to_stdvec(&known) {
            Ok(longer) if longer.len() <= room => bytes = longer,
            _ => break,
        }
    }
    packet.extend(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seat(number: u8) -> Seat {
        let addr = SocketAddr::from(([10, 0, 0, number], 1));
        Seat { node: NodeId([number; 32]), addr, renewal: 5 }
    }

    fn packet(from: u8, message: Message<Seat>, members: &[Member<Seat>]) -> Vec<u8> {
        let header = Header { src: seat(from), src_incarnation: 0, dst: seat(1), message };
        let mut packet = postcard::to_stdvec(&header).unwrap();
        packet.extend(u16::try_from(members.len()).unwrap().to_be_bytes());
        for member in members {
            packet = postcard::to_extend(member, packet).unwrap();
        }
        packet
    }

    fn read(packet: &[u8]) -> (Message<Seat>, Vec<Member<Seat>>) {
        let (header, rest) = postcard::take_from_bytes::<Header<Seat>>(packet).unwrap();
        (header.message, updates(rest).unwrap().0.into_vec())
    }

    /// Node 1 knows nodes 2 to 6.
    struct Fixture {
        claims: Claims,
        active: BTreeMap<NodeId, Seat>,
        now: Time,
    }

    impl Fixture {
        fn new() -> Self {
            let active = (2..=6).map(|number| (NodeId([number; 32]), seat(number))).collect();
            Self { claims: Claims::new(), active, now: Time::ZERO + Duration::from_secs(1_000) }
        }

        fn sift(&mut self, from: u8, packet: &[u8]) -> Result<Sifted, Refusal> {
            let view = View { me: seat(1), active: &self.active };
            self.claims.sift(NodeId([from; 32]), packet, &view, self.now)
        }

        fn hear(&mut self, from: u8, state: State, about: Seat) -> Vec<State> {
            let packet = packet(from, Message::Gossip, &[Member::new(about, 3, state)]);
            let sifted = self.sift(from, &packet).unwrap();
            read(&sifted.packet).1.iter().map(Member::state).collect()
        }
    }

    #[test]
    fn a_death_is_a_suspicion_until_three_say_so_and_who_leaves_is_believed() {
        let mut fixture = Fixture::new();
        for (from, expected) in
            [(2, State::Suspect), (2, State::Suspect), (3, State::Suspect), (4, State::Down)]
        {
            assert_eq!(fixture.hear(from, State::Down, seat(5)), [expected], "from {from}");
        }
        assert_eq!(fixture.hear(6, State::Down, seat(6)), [State::Down]);
        assert_eq!(fixture.claims.counts.doubted, 3);
        fixture.now = fixture.now + ACCUSATION_LIFE;
        assert_eq!(fixture.hear(2, State::Down, seat(5)), [State::Suspect], "old words do not count");
        fixture.now = fixture.now + ACCUSATION_LIFE;
        fixture.claims.forget(fixture.now);
        assert!(fixture.claims.accusers.is_empty());
    }

    #[test]
    fn this_node_follows_three_at_once_and_one_now_and_then() {
        let mut fixture = Fixture::new();
        assert_eq!(fixture.hear(2, State::Down, seat(1)), [State::Down], "the first time");
        assert_eq!(fixture.hear(2, State::Down, seat(1)), []);
        let undead = packet(2, Message::TurnUndead, &[]);
        let sifted = fixture.sift(2, &undead).unwrap();
        assert_eq!(read(&sifted.packet).0, Message::Gossip);
        assert_eq!(fixture.hear(3, State::Down, seat(1)), []);
        assert_eq!(fixture.hear(4, State::Down, seat(1)), [State::Down], "the third says so");
        fixture.now = fixture.now + RENEWAL_PAUSE;
        let sifted = fixture.sift(2, &undead).unwrap();
        assert_eq!(read(&sifted.packet).0, Message::TurnUndead);
        assert_eq!(fixture.claims.counts.survived, 3);
    }

    #[test]
    fn nobody_is_moved_revived_or_invented_by_hearsay() {
        let mut fixture = Fixture::new();
        let moved = Seat { addr: "10.9.9.9:1".parse().unwrap(), renewal: u64::MAX, ..seat(3) };
        let older = Seat { renewal: 4, ..seat(3) };
        for (about, hints) in [(moved, 1), (older, 0), (seat(9), 1), (Seat { renewal: 9, ..seat(1) }, 0)] {
            let packet = packet(2, Message::Gossip, &[Member::new(about, 0, State::Alive)]);
            let sifted = fixture.sift(2, &packet).unwrap();
            assert_eq!(read(&sifted.packet).1, []);
            assert_eq!(sifted.hints.len(), hints, "{about:?}");
        }
        assert_eq!(
            fixture.hear(2, State::Down, seat(9)),
            [],
            "of whom nothing is known, nothing is believed"
        );
        assert_eq!(fixture.hear(2, State::Alive, seat(3)), [State::Alive]);
        let forged = packet(3, Message::Gossip, &[]);
        assert!(matches!(fixture.sift(2, &forged), Err(Refusal::Forged)));
    }

    #[test]
    fn where_else_members_are_is_told_behind_the_updates_as_far_as_there_is_room() {
        let mut fixture = Fixture::new();
        let further: Further = (1..=2).map(|port| SocketAddr::from(([10, 1, 0, 1], port))).collect();
        let known = BTreeMap::from([(NodeId([8; 32]), further.clone()), (NodeId([9; 32]), further.clone())]);
        let about = [3, 8, 9].map(|number| Member::new(seat(number), 0, State::Alive));
        let bare = packet(2, Message::Gossip, &about);
        for (room, told) in [(1_000, [2, 2]), (20, [2, 0]), (10, [0, 0])] {
            let mut longer = bare.clone();
            append_further(&mut longer, room, |node| known.get(node));
            assert!(longer.len() <= bare.len() + room);
            let sifted = fixture.sift(2, &longer).unwrap();
            assert_eq!(read(&sifted.packet).1, [about[0].clone()], "foca sees nothing of it");
            let hints: Vec<_> = sifted.hints.iter().map(|(seat, at)| (*seat, at.len())).collect();
            assert_eq!(hints, [(seat(8), told[0]), (seat(9), told[1])], "{room}");
        }
        let mut announcement = packet(2, Message::Announce, &[]);
        announcement.truncate(announcement.len() - 2);
        let before = announcement.clone();
        append_further(&mut announcement, 1_000, |node| known.get(node));
        assert_eq!(announcement, before);
    }

    #[test]
    fn nobody_is_made_to_probe_or_answer_a_stranger() {
        let mut fixture = Fixture::new();
        for (target, good) in [(seat(3), true), (seat(9), false), (Seat { renewal: 6, ..seat(3) }, false)] {
            for message in [
                Message::PingReq { target, probe_number: 1 },
                Message::IndirectAck { target, probe_number: 1 },
            ] {
                assert_eq!(fixture.sift(2, &packet(2, message, &[])).is_ok(), good);
            }
        }
    }

    #[test]
    fn who_accuses_everybody_is_not_listened_to_and_others_are() {
        let mut fixture = Fixture::new();
        let heard = (0..1_000).filter(|_| !fixture.hear(2, State::Suspect, seat(3)).is_empty()).count();
        assert_eq!((heard, fixture.claims.counts.ignored), (520, 480));
        assert_eq!(fixture.hear(3, State::Suspect, seat(4)), [State::Suspect]);
        fixture.now = fixture.now + Duration::from_secs(1);
        assert_eq!(fixture.hear(2, State::Suspect, seat(3)), [State::Suspect]);
    }

    #[test]
    fn what_a_newer_version_says_behind_the_updates_is_left_out() {
        let mut fixture = Fixture::new();
        let mut longer = packet(2, Message::Gossip, &[Member::new(seat(3), 0, State::Alive)]);
        longer.extend([1, 2, 3]);
        let sifted = fixture.sift(2, &longer).unwrap();
        assert_eq!(sifted.packet, &longer[..longer.len() - 3]);
        let mut lies = packet(2, Message::Gossip, &[]);
        let len = lies.len();
        lies[len - 2..].copy_from_slice(&[0xff, 0xff]);
        assert!(matches!(fixture.sift(2, &lies), Err(Refusal::Malformed)));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic_and_nothing_grows(bytes in proptest::collection::vec(any::<u8>(), 0..1_100)) {
            let mut fixture = Fixture::new();
            let header = packet(2, Message::Gossip, &[]);
            let packet = [&header[..header.len() - 2], &bytes].concat();
            if let Ok(sifted) = fixture.sift(2, &packet) {
                prop_assert!(sifted.packet.len() <= packet.len() + 2);
            }
            let _ = fixture.sift(2, &bytes);
        }
    }
}
