//! Members that others spoke of, until they have spoken for themselves or were asked in vain.
//!
//! A hint is nobody's word to be taken for: it only says whom to ask, and where. So that a liar cannot crowd out what
//! honest members say, each speaker has hints of its own, and a share of the table.

use super::datagram::Further;
use super::seat::Seat;
use crate::model::{NodeId, Time, limits};
use std::collections::BTreeMap;
use std::time::Duration;

/// Most hints at a time, and most of one speaker.
const HINTS_MAX: usize = limits::CELL_MAX_MEMBERS;
const HINTS_OF_ONE: usize = HINTS_MAX / 8;
/// How often a member is asked on one hint before it is forgotten, in all and at each of its addresses.
const TRIES: usize = 5;
const TRIES_EACH: usize = 2;
/// How long apart it is asked where it was; its other addresses take their turns between.
const ASK_AGAIN: Duration = Duration::from_secs(1);

struct Hint {
    seat: Seat,
    /// Where else it may be.
    further: Further,
    due: Time,
    asked: usize,
}

impl Hint {
    fn addresses(&self) -> usize {
        1 + self.further.len()
    }

    fn tries(&self) -> usize {
        TRIES.max(TRIES_EACH * self.addresses())
    }

    /// Where to ask next.
    fn place(&self) -> Seat {
        let addr = match self.asked % self.addresses() {
            0 => self.seat.addr,
            n => self.further[n - 1],
        };
        Seat { addr, ..self.seat }
    }
}

/// The table of hints, by whom they are about and by whom they are from.
#[derive(Default)]
pub(super) struct Hints {
    by_pair: BTreeMap<(NodeId, NodeId), Hint>,
    of_speaker: BTreeMap<NodeId, usize>,
}

impl Hints {
    /// `speaker` says that a member has this seat, and may be reached at further addresses, too.
    pub(super) fn add(&mut self, seat: Seat, further: Further, speaker: NodeId, now: Time) {
        let all_of = (seat.node, NodeId([0; 32]))..=(seat.node, NodeId([0xff; 32]));
        let says_it = |hint: &Hint| hint.seat == seat && further.iter().all(|at| hint.further.contains(at));
        if self.by_pair.range(all_of).any(|(_, hint)| says_it(hint)) {
            return;
        }
        let own = self.of_speaker.get(&speaker).copied().unwrap_or(0);
        let room = self.by_pair.len() < HINTS_MAX && own < HINTS_OF_ONE;
        if room && !self.by_pair.contains_key(&(seat.node, speaker)) {
            self.by_pair.insert((seat.node, speaker), Hint { seat, further, due: now, asked: 0 });
            *self.of_speaker.entry(speaker).or_default() += 1;
        }
    }

    /// Up to `most` seats to ask now. Those who are `active` as hinted, or later, need not be asked, and who was asked in vain
    /// is forgotten.
    pub(super) fn due(&mut self, active: &BTreeMap<NodeId, Seat>, most: usize, now: Time) -> Vec<Seat> {
        let of_speaker = &mut self.of_speaker;
        self.by_pair.retain(|(node, speaker), hint| {
            let here = active.get(node).is_some_and(|seat| seat.renewal >= hint.seat.renewal);
            let keep = !here && hint.asked < hint.tries();
            if !keep && let Some(count) = of_speaker.get_mut(speaker) {
                *count -= 1;
                if *count == 0 {
                    of_speaker.remove(speaker);
                }
            }
            keep
        });
        let due = self.by_pair.values_mut().filter(|hint| hint.due <= now).take(most);
        due.map(|hint| {
            let seat = hint.place();
            hint.asked += 1;
            hint.due = now + ASK_AGAIN / u32::try_from(hint.addresses()).unwrap_or(u32::MAX);
            seat
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn seat(number: u16, renewal: u64) -> Seat {
        let mut node = [0; 32];
        node[..2].copy_from_slice(&number.to_be_bytes());
        Seat { node: NodeId(node), addr: SocketAddr::from(([10, 0, 0, 1], number)), renewal }
    }

    fn speaker(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    #[test]
    fn a_member_is_asked_five_times_a_second_apart_and_forgotten_or_found() {
        let (mut hints, mut active) = (Hints::default(), BTreeMap::new());
        hints.add(seat(1, 7), Further::new(), speaker(200), Time::ZERO);
        hints.add(seat(2, 7), Further::new(), speaker(200), Time::ZERO);
        let mut asked = 0;
        for tenth in 0..100 {
            let now = Time::ZERO + Duration::from_millis(100) * tenth;
            asked += hints.due(&active, 32, now).len();
            if tenth == 15 {
                active.insert(seat(2, 7).node, seat(2, 7));
            }
        }
        assert_eq!(asked, 5 + 2);
        assert!(hints.by_pair.is_empty() && hints.of_speaker.is_empty());
    }

    #[test]
    fn a_member_with_several_addresses_is_asked_at_each_of_them_within_seconds() {
        let mut hints = Hints::default();
        let further: Further = (1..=7).map(|last| SocketAddr::from(([10, 0, 1, last], 1))).collect();
        hints.add(seat(1, 7), further.clone(), speaker(200), Time::ZERO);
        hints.add(seat(1, 7), further[..3].into(), speaker(201), Time::ZERO);
        let mut asked: BTreeMap<SocketAddr, usize> = BTreeMap::new();
        for tenth in 0..100 {
            for seat in hints.due(&BTreeMap::new(), 32, Time::ZERO + Duration::from_millis(100) * tenth) {
                *asked.entry(seat.addr).or_default() += 1;
            }
            assert!(tenth != 20 || asked.len() == 8, "{asked:?}");
        }
        assert!(asked.len() == 8 && asked.values().all(|times| *times == TRIES_EACH), "{asked:?}");
        assert!(hints.by_pair.is_empty());
    }

    #[test]
    fn a_liar_crowds_nobody_out() {
        let mut hints = Hints::default();
        for number in 0..5_000 {
            hints.add(seat(number, 1), Further::new(), speaker(200), Time::ZERO);
        }
        assert_eq!(hints.by_pair.len(), HINTS_OF_ONE);
        // What it says of a member does not keep others from saying it otherwise.
        hints.add(seat(3, 9), Further::new(), speaker(201), Time::ZERO);
        hints.add(seat(3, 9), Further::new(), speaker(202), Time::ZERO);
        assert_eq!(hints.by_pair.len(), HINTS_OF_ONE + 1, "the same twice is said once");
        for by in 203..=255 {
            for number in 0..5_000 {
                hints.add(seat(number, u64::from(by)), Further::new(), speaker(by), Time::ZERO);
            }
        }
        assert_eq!(hints.by_pair.len(), HINTS_MAX);
        let asked = hints.due(&BTreeMap::new(), 32, Time::ZERO);
        assert_eq!(asked.len(), 32);
    }
}
