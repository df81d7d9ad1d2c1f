//! Cells that grow too large halve, and join again when they shrink.
//!
//! A cell is what shares a label, as the operator placed his machines; labels are never joined. When more members than a
//! cell may hold share one, the cell halves by the next bit of a hash of the node's key, and each half may halve again. So a
//! cell is a label and a [`Part`] of it, and who is in it follows from keys: no list is kept, and nobody votes.
//!
//! Every member decides for itself, by [`Halving`], from what it sees of its own cell and hears of the sibling half:
//!
//! * more than a cell may hold, for a while: it halves;
//! * few, and the sibling has few as well, for a longer while: they join. Few are so few that two such halves are far
//!   from halving again, so a fleet near a bound does not go back and forth. Of a sibling that is silent for very long it
//!   is believed that it died out; should it live, it says so, and most are followed;
//! * most members of its cell did something else, long after this node changed last: it follows them. That is how a
//!   newcomer learns what there is, and how one that missed something comes back.
//!
//! Homes move as little as can be: a half ranks its members as the whole did, so the half that holds a slice's home keeps
//! it, and the other half's home is whoever ranked best in it. The lease of a slice stays where it was, too
//! (`peers_table.rs`).

use crate::model::{Time, mix};
use std::fmt;
use std::time::Duration;

/// Most halvings: 128 cells of one label, a quarter of a million nodes. They fit three bits of a datagram.
pub const HALVINGS_MAX: u8 = 7;
/// A cell has few members below this share of the most that it may have, in percent: two such cells have together at most
/// 60 percent (guess: a rolling restart of a third of a fleet must not move homes).
const FEW_PERCENT: usize = 30;
/// Pauses for which there must be few until cells join; the same when nothing is heard of the sibling, which may have died
/// out; and those for which nobody is followed after a change. That is longer than joining takes: of a cell whose members
/// join in two groups, one after the other, the first would follow the second back, and the second the first, for ever.
const JOIN_PAUSES: u32 = 3;
const SILENT_PAUSES: u32 = 30;
const SETTLE_PAUSES: u32 = JOIN_PAUSES + 2;
/// Members of a quarter, an eighth … of a cell that are followed, and of a sibling that are enough to say that it is not to join: of
/// fewer one may lie.
const FOLLOWED_LEAST: usize = 3;
/// Separates the hash from others of the same key.
const SALT: u64 = 0x7370_6c69_742d_6269;

/// A part of a label: those whose hashed keys begin with the same bits. Without any it is the whole label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Part {
    bits: u8,
    prefix: u8,
}

impl Part {
    /// All who share the label.
    pub const WHOLE: Self = Self { bits: 0, prefix: 0 };

    /// The part that the node with this key is in after so many halvings, at most [`HALVINGS_MAX`].
    pub fn of(node_key: u64, bits: u8) -> Self {
        let bits = bits.min(HALVINGS_MAX);
        let prefix = mix(node_key ^ SALT).checked_shr(64 - u32::from(bits)).unwrap_or(0);
        Self { bits, prefix: u8::try_from(prefix).unwrap_or(0) }
    }

    /// By how many halvings it came about.
    pub const fn bits(self) -> u8 {
        self.bits
    }

    /// Whether the node with this key is in it.
    pub fn holds(self, node_key: u64) -> bool {
        Self::of(node_key, self.bits) == self
    }

    /// Whether all who are in `other` are in this one.
    pub const fn covers(self, other: Self) -> bool {
        self.bits <= other.bits && other.prefix >> (other.bits - self.bits) == self.prefix
    }

    /// The other half of what was halved last.
    pub const fn sibling(self) -> Option<Self> {
        if self.bits == 0 { None } else { Some(Self { bits: self.bits, prefix: self.prefix ^ 1 }) }
    }
}

impl fmt::Display for Part {
    /// Nothing for the whole, else `#` and the bits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bits {
            0 => Ok(()),
            bits => write!(f, "#{:0width$b}", self.prefix, width = usize::from(bits)),
        }
    }
}

/// What a member says of its cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// How often its label was halved for it.
    pub bits: u8,
    /// Whether its cell has few members.
    pub few: bool,
}

impl Told {
    /// Four bits of a byte.
    pub const fn to_byte(self) -> u8 {
        self.bits & 7 | (self.few as u8) << 3
    }

    /// What [`Told::to_byte`] made.
    pub const fn of_byte(byte: u8) -> Self {
        Self { bits: byte & 7, few: byte & 8 != 0 }
    }
}

/// What a member sees when it decides.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    /// The members of its cell that are up, itself among them.
    pub members: usize,
    /// What members of its cell told.
    pub mates: Vec<(u64, Told)>,
    /// What others who share the label told lately: members of the sibling half, and those who should be in this node's
    /// cell and do not think so.
    pub others: Vec<(u64, Told)>,
}

/// How often the label is halved for one node, decided from what it sees.
#[derive(Clone, Debug)]
pub struct Halving {
    node_key: u64,
    cell_max: usize,
    pause: Duration,
    bits: u8,
    /// What the counts ask for, and since when.
    wish: Option<(u8, Time)>,
    /// Until then nobody is followed.
    settled: Time,
}

impl Halving {
    /// A node that has seen nobody. A cell halves when it had more than `cell_max` members for a `pause`.
    pub fn new(node_key: u64, cell_max: usize, pause: Duration) -> Self {
        Self { node_key, cell_max: cell_max.max(1), pause, bits: 0, wish: None, settled: Time::ZERO }
    }

    /// The node's cell.
    pub fn part(&self) -> Part {
        Part::of(self.node_key, self.bits)
    }

    /// What it tells others.
    pub fn told(&self, members: usize) -> Told {
        Told { bits: self.bits, few: members * 100 < self.cell_max * FEW_PERCENT }
    }

    /// Looks around; whether the cell is another now.
    pub fn look(&mut self, sight: &Sight, now: Time) -> bool {
        let wished = self.wished(sight);
        self.wish = wished.map(|bits| match self.wish {
            Some((before, since)) if before == bits => (bits, since),
            _ => (bits, now),
        });
        let sibling = self.part().sibling();
        let silent = !sight.others.iter().any(|(key, _)| sibling.is_some_and(|sibling| sibling.holds(*key)));
        let due = |wish: &(u8, Time)| {
            let pauses = match (wish.0 > self.bits, silent) {
                (true, _) => 1,
                (false, false) => JOIN_PAUSES,
                (false, true) => SILENT_PAUSES,
            };
            now.since(wish.1) >= self.pause * pauses
        };
        if let Some((bits, _)) = self.wish.filter(due) {
            self.settled = now + self.pause * SETTLE_PAUSES;
            return self.set(bits);
        }
        let followed = if now >= self.settled { self.followed(sight) } else { None };
        followed.is_some_and(|bits| self.set(bits))
    }

    fn set(&mut self, bits: u8) -> bool {
        (self.bits, self.wish) = (bits, None);
        true
    }

    /// What the counts ask for, if it is something else.
    fn wished(&self, sight: &Sight) -> Option<u8> {
        if sight.members > self.cell_max {
            return Some(self.bits + 1).filter(|bits| *bits <= HALVINGS_MAX);
        }
        let sibling = self.part().sibling()?;
        // A coarser sibling has joined already; of a finer one both halves must join first.
        let agrees = |told: &Told| told.bits < self.bits || told.bits == self.bits && told.few;
        let heard = || sight.others.iter().filter(|(key, _)| sibling.holds(*key)).map(|(_, told)| told);
        let few = self.told(sight.members).few;
        // Few who say otherwise among many may lie.
        let (others, all) = (heard().filter(|told| !agrees(told)).count(), heard().count());
        let joins = few && (others == 0 || others < FOLLOWED_LEAST && 2 * others < all);
        joins.then(|| self.bits - 1)
    }

    /// What most others do, if it is something else: one step in their direction. Of two that are as common the finer
    /// counts, because a cell too large does more harm.
    fn followed(&self, sight: &Sight) -> Option<u8> {
        let heard = || sight.mates.iter().chain(&sight.others);
        let most = |(said, of): (usize, usize)| said > 0 && 2 * said > of;
        for bits in self.bits + 1..=HALVINGS_MAX {
            let part = Part::of(self.node_key, bits);
            let finer = |told: &Told| told.bits >= bits;
            // Those who would be with this node. Far down there are few of them, and one proves nothing.
            let here = share(sight.mates.iter().filter(|(key, _)| part.holds(*key)), finer);
            let enough = bits == self.bits + 1 || here.1 >= FOLLOWED_LEAST;
            // Those beside it who keep to themselves, and are too many to come back.
            let beside = heard().filter(|(key, _)| part.sibling().is_some_and(|sibling| sibling.holds(*key)));
            let beside = share(beside, |told| finer(told) && !told.few);
            if most(here) && enough || most(beside) {
                return Some(self.bits + 1);
            }
            if bits == self.bits + 1 && here.1 == 0 {
                // Without anybody in its half it does as its cell, and a newcomer that knows nobody of it as the others.
                let of = if sight.mates.is_empty() { &sight.others } else { &sight.mates };
                if most(share(of.iter(), finer)) {
                    return Some(bits);
                }
            }
        }
        let (said, of) = share(sight.mates.iter(), |told| told.bits < self.bits);
        (2 * said > of + 1).then(|| self.bits - 1)
    }
}

/// How many of some say so, and how many they are.
fn share<'a>(of: impl Iterator<Item = &'a (u64, Told)>, says: impl Fn(&Told) -> bool) -> (usize, usize) {
    of.fold((0, 0), |(yes, all), (_, told)| (yes + usize::from(says(told)), all + 1))
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
