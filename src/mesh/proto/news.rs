//! Signed documents spread by gossip: each node hands each document on once, to a few random members of its cell
//! and to a few random contacts in other cells. All members of a cell know much the same contacts: were it always the nearest, a
//! cell would tell the same few nodes a thousand times over, and no other region at all.
//!
//! With ln n + c random targets a node, a document reaches all n members with probability e^(-e^-c) (Kermarrec,
//! Massoulié, Ganesh: "Probabilistic reliable dissemination in large-scale systems", 2003). That is when nothing is lost. So
//! each node hands each document to one more random member a few times, at growing intervals: whoever was missed has one
//! chance more at each of them, and an idle mesh says nothing. Who comes back is told the last documents by a few. What is
//! missed all the same comes when a member asks for the newest ones.

use super::rare::Nothing;
use super::timer::Timer;
use super::{Content, Nearness, NewsId, Node, Outbox, Output, Peer, Peers};
use crate::model::{Rng, Time};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// Documents that who comes back is told (guess: a root of each repository that changed while it was away).
const TOLD_AGAIN: usize = 4;
/// How many members tell him, on average (guess).
const TELLERS: usize = 3;

/// A document that is handed on once more.
#[derive(Clone, Copy, Debug)]
struct Repeat {
    news: NewsId,
    round: u8,
    due: Time,
}

/// Documents that were handed on already; the oldest is forgotten first.
#[derive(Clone, Debug, Default)]
pub(super) struct News {
    seen: BTreeSet<NewsId>,
    order: VecDeque<NewsId>,
    /// At most one a document.
    repeats: Vec<Repeat>,
}

impl Nothing for News {
    const NOTHING: &'static Self =
        &Self { seen: BTreeSet::new(), order: VecDeque::new(), repeats: Vec::new() };
}

/// What an audit looks at.
impl News {
    /// Documents that are remembered, if both books agree on them.
    pub(super) fn len(&self) -> Option<usize> {
        (self.seen.len() == self.order.len()).then_some(self.order.len())
    }
}

impl News {
    /// Documents that are handed on once more.
    pub(super) fn repeats(&self) -> usize {
        self.repeats.len()
    }

    /// When the next of them is.
    pub(super) fn repeat_due_at(&self) -> Option<Time> {
        self.repeats.iter().map(|repeat| repeat.due).min()
    }
}

/// The least whole number that is not below `ln n`, up to one more: counted in bits.
fn ln_up(n: usize) -> usize {
    let bits = (usize::BITS - n.leading_zeros()) as usize;
    (bits * 694).div_ceil(1_000)
}

impl<P: Peers, C: Content, R: Rng> Node<P, C, R> {
    pub(super) fn news_seen(&mut self, news: NewsId, from: Option<Peer>, out: &mut Outbox) {
        if !self.news.seen.insert(news) {
            return;
        }
        self.news.order.push_back(news);
        if self.news.order.len() > self.settings.news_max as usize
            && let Some(oldest) = self.news.order.pop_front()
        {
            self.news.seen.remove(&oldest);
            self.news.repeats.retain(|repeat| repeat.news != oldest);
        }
        self.repeat_news(news, 0);
        let me = self.peers.me();
        let members = self.peers.members();
        let fan_out = ln_up(members) + usize::from(self.settings.news_extra);
        let mut to: Vec<Peer> = Vec::with_capacity(fan_out);
        // Twice as many draws as there are targets meet enough different ones; a small cell is told as a whole.
        let draws = if members <= 2 * fan_out { members } else { 2 * fan_out };
        for draw in 0..draws {
            let index = if draws == members { draw } else { self.rng.below(members) };
            let peer = self.peers.member(index);
            if peer != me && Some(peer) != from && to.len() < fan_out.max(draws) && !to.contains(&peer) {
                to.push(peer);
            }
        }
        if draws != members {
            to.truncate(fan_out);
        }
        self.choose_contacts(from, &mut to);
        for to in to {
            out.push(Output::Spread { news, to });
        }
    }

    /// Adds random contacts in other cells, each once.
    fn choose_contacts(&mut self, from: Option<Peer>, to: &mut Vec<Peer>) {
        let contacts = self.peers.contacts();
        let most = usize::from(self.settings.news_contacts);
        // A number for each, of which the first are drawn (Fisher and Yates): a few dozen at most.
        let mut order: Vec<usize> = (0..contacts.len()).collect();
        for place in 0..order.len().min(most) {
            let other = place + self.rng.below(order.len() - place);
            order.swap(place, other);
        }
        let drawn = order.iter().take(most).filter_map(|index| contacts.get(*index).copied());
        to.extend(drawn.filter(|peer| Some(*peer) != from));
    }

    /// Plans the next time that a document is handed on, if there is one: at a random moment of an interval that doubles.
    fn repeat_news(&mut self, news: NewsId, round: u8) {
        if round >= self.settings.news_repeats {
            return;
        }
        let first = Duration::from_millis(u64::from(self.settings.news_repeat_ms.max(1)));
        let span = first * (1 << round.min(16));
        let random = self.rng.below(usize::try_from(span.as_nanos() / 2).unwrap_or(usize::MAX)) as u64;
        let due = self.now + span / 2 + Duration::from_nanos(random);
        self.news.repeats.push(Repeat { news, round, due });
        self.timers.arm(Timer::News, due);
    }

    /// [`Timer::News`]: documents that are handed on once more.
    pub(super) fn news_due(&mut self, out: &mut Outbox) {
        let now = self.now;
        let (due, later): (Vec<Repeat>, Vec<Repeat>) =
            std::mem::take(&mut self.news.repeats).into_iter().partition(|repeat| repeat.due <= now);
        if let Some(next) = later.iter().map(|repeat| repeat.due).min() {
            self.timers.arm(Timer::News, next);
        }
        self.news.repeats = later;
        for Repeat { news, round, .. } in due {
            let members = self.peers.members();
            let to = if members > 1 { self.peers.member(self.rng.below(members)) } else { self.peers.me() };
            if to != self.peers.me() {
                out.push(Output::Spread { news, to });
            }
            self.repeat_news(news, round + 1);
        }
    }

    /// A member is there, perhaps again: it may have missed something.
    pub(super) fn tell_again(&mut self, peer: Peer, out: &mut Outbox) {
        let members = self.peers.members();
        if self.peers.nearness(peer) != Nearness::Cell || self.rng.below(members) >= TELLERS {
            return;
        }
        for news in self.news.order.iter().rev().take(TOLD_AGAIN) {
            out.push(Output::Spread { news: *news, to: peer });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::proto::{Chunk, Input, Nearness, Segment, Settings, Slice};
    use crate::model::Generator;
    use std::collections::BTreeMap;

    #[test]
    fn the_fan_out_is_at_least_the_logarithm() {
        for n in [1_usize, 2, 3, 10, 100, 2_000, 100_000] {
            let ln = (n as f64).ln();
            assert!(ln_up(n) as f64 >= ln && ln_up(n) as f64 <= ln + 2.0, "{n}: {}", ln_up(n));
        }
    }

    /// One cell in which all see all.
    struct Flat {
        me: u32,
        members: u32,
    }

    impl Peers for Flat {
        fn me(&self) -> Peer {
            Peer(self.me)
        }
        fn nearness(&self, _peer: Peer) -> Nearness {
            Nearness::Cell
        }
        fn home(&self, _slice: Slice, _rank: usize) -> Option<Peer> {
            None
        }
        fn lease_home(&self, _slice: Slice, _rank: usize) -> Option<Peer> {
            None
        }
        fn home_elsewhere(&self, _slice: Slice, _place: usize) -> Option<Peer> {
            None
        }
        fn is_up(&self, _peer: Peer) -> bool {
            true
        }
        fn has_other_regions(&self) -> bool {
            false
        }
        fn members(&self) -> usize {
            self.members as usize
        }
        fn member(&self, index: usize) -> Peer {
            Peer(u32::try_from(index).unwrap())
        }
        fn contacts(&self) -> &[Peer] {
            &[]
        }
    }

    struct Nothing;

    impl Content for Nothing {
        fn slice(&self, _chunk: Chunk) -> Slice {
            Slice(0)
        }
        fn segment(&self, _slice: Slice) -> Segment {
            Segment(0)
        }
        fn part(&self, _chunk: Chunk) -> u8 {
            0
        }
        fn len_bytes(&self, _chunk: Chunk) -> u32 {
            1
        }
    }

    /// One of a cell that knows others in other cells.
    struct Bordering(Vec<Peer>);

    impl Peers for Bordering {
        fn me(&self) -> Peer {
            Peer(0)
        }
        fn nearness(&self, peer: Peer) -> Nearness {
            if peer == Peer(0) { Nearness::Cell } else { Nearness::Region }
        }
        fn home(&self, _slice: Slice, _rank: usize) -> Option<Peer> {
            None
        }
        fn lease_home(&self, _slice: Slice, _rank: usize) -> Option<Peer> {
            None
        }
        fn home_elsewhere(&self, _slice: Slice, _place: usize) -> Option<Peer> {
            None
        }
        fn is_up(&self, _peer: Peer) -> bool {
            true
        }
        fn has_other_regions(&self) -> bool {
            false
        }
        fn members(&self) -> usize {
            1
        }
        fn member(&self, _index: usize) -> Peer {
            Peer(0)
        }
        fn contacts(&self) -> &[Peer] {
            &self.0
        }
    }

    #[test]
    fn members_who_know_the_same_contacts_tell_all_of_them_between_them_and_each_a_few() {
        let most = usize::from(Settings::default().news_contacts);
        for known in [3, most, 64] {
            let contacts: Vec<Peer> = (1..=u32::try_from(known).unwrap()).map(Peer).collect();
            let (members, mut told) = (60, BTreeMap::new());
            for me in 0..members {
                let generator = Generator::stream(9, me);
                let mut node =
                    Node::new(Bordering(contacts.clone()), Nothing, generator, Settings::default());
                let mut out = Outbox::default();
                node.handle(Time::ZERO, Input::NewsSeen { news: NewsId(1), from: Some(Peer(1)) }, &mut out);
                let to: BTreeSet<Peer> = out
                    .drain()
                    .map(|output| {
                        let Output::Spread { to, .. } = output else { panic!("{output:?}") };
                        to
                    })
                    .collect();
                assert!(!to.contains(&Peer(1)), "he has it");
                assert!((known.min(most) - 1..=known.min(most)).contains(&to.len()), "{to:?} of {known}");
                to.into_iter().for_each(|peer| *told.entry(peer).or_insert(0) += 1);
            }
            assert_eq!(told.len(), known - 1, "somebody is told by nobody");
        }
    }

    type Member = Node<Flat, Nothing, Generator>;

    /// Spreads a document from member 0, losing one message in `lose`; returns when each member heard of it, and how many
    /// messages there were.
    fn spread(members: u32, lose: usize, seed: u64) -> (Vec<Option<Time>>, usize) {
        let settings = std::sync::Arc::new(Settings::default());
        let member = |me| {
            Member::new(Flat { me, members }, Nothing, Generator::stream(seed, me.into()), settings.clone())
        };
        let mut nodes: Vec<Member> = (0..members).map(member).collect();
        let (mut rng, mut heard) = (Generator::new(seed), vec![None; members as usize]);
        let mut mail: BTreeMap<(Time, usize), (u32, Input)> = BTreeMap::new();
        mail.insert((Time::ZERO, 0), (0, Input::NewsSeen { news: NewsId(1), from: None }));
        let (mut sent, mut messages, mut out) = (0, 0, Outbox::default());
        while let Some(((now, _), (to, input))) = mail.pop_first() {
            if let Input::NewsSeen { .. } = input {
                heard[to as usize].get_or_insert(now);
            }
            let node = &mut nodes[to as usize];
            node.handle(now, input, &mut out);
            if let Some(next) = node.next_deadline() {
                sent += 1;
                mail.insert((next, sent), (to, Input::Tick));
            }
            for output in out.drain() {
                let Output::Spread { news, to: peer } = output else { panic!("{output:?}") };
                (sent, messages) = (sent + 1, messages + 1);
                if rng.below(lose) > 0 {
                    // A connection may have to be made first.
                    let at = now + Duration::from_micros(500 + rng.below(60_000) as u64);
                    mail.insert((at, sent), (peer.0, Input::NewsSeen { news, from: Some(Peer(to)) }));
                }
            }
        }
        (heard, messages)
    }

    #[test]
    fn a_root_reaches_99_of_100_members_within_a_second_and_all_soon_though_messages_are_lost() {
        for (members, seeds) in [(32, 40), (200, 20), (2_000, 3)] {
            let (mut late, mut missed, mut all) = (0, 0, 0);
            for seed in 0..seeds {
                // Three of ten are lost: far more than QUIC leaves.
                let (heard, messages) = spread(members, 3, seed);
                let second = Time::from_nanos(1_000_000_000);
                late += heard.iter().filter(|at| at.is_none_or(|at| at > second)).count();
                missed += heard.iter().filter(|at| at.is_none()).count();
                all += heard.len();
                assert!(
                    messages < 60 * members as usize,
                    "{messages} for {members}: nothing goes on for ever"
                );
            }
            assert!(late * 100 <= all, "{late} of {all} members heard later than after a second");
            assert!(missed * 1_000 <= all, "{missed} of {all} members never heard");
        }
    }

    #[test]
    fn who_comes_back_is_told_the_last_documents_by_a_few() {
        let (members, mut told) = (50, 0);
        for me in 0..members {
            let generator = Generator::stream(5, me.into());
            let mut node = Member::new(Flat { me, members }, Nothing, generator, Settings::default());
            let mut out = Outbox::default();
            for news in (0..10).map(NewsId) {
                node.handle(Time::ZERO, Input::NewsSeen { news, from: None }, &mut out);
            }
            out.drain();
            node.handle(Time::ZERO, Input::PeerUp { peer: Peer(50) }, &mut out);
            told += usize::from(!out.as_slice().is_empty());
            let newest = (6..10).rev().map(|news| Output::Spread { news: NewsId(news), to: Peer(50) });
            assert!(out.as_slice().is_empty() || out.drain().eq(newest));
        }
        assert!((1..=9).contains(&told), "{told} of 50 tell him");
    }
}
