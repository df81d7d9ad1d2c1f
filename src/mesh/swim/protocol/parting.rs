//! Which part of its label this node's cell is: foca knows that part alone, and it changes as the fleet grows and shrinks.
//!
//! The rule is the core's ([`Halving`]). Here is what it sees: every datagram tells what its sender thinks, where the
//! label was halved. A member of another part that speaks to this one as to its own hears in return what this one
//! thinks, and is not taken in. While a cell has few members it tells a few of the sibling half so, now and then, for they
//! may join.

use super::{Action, Datagram, Foca, Now, Protocol, Refusal};
use super::{Codec, Credentials, Dice, Hints, config};
use crate::mesh::proto::{Halving, Part, Sight, Told};
use crate::mesh::swim::Tuning;
use crate::model::{Generator, NodeId, Rng, Time};
use foca::AccumulatingRuntime;
use std::net::SocketAddr;
use std::time::Duration;

/// Members of the sibling half that are remembered, and how many of them are told at once.
const RELATIVES_MAX: usize = 8;
const TOLD_AT_ONCE: usize = 3;
/// How often this node looks around, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For how many pauses a word counts: no longer than nobody is followed after a change, so that who follows knows what
/// is said since.
const WORD_PAUSES: u32 = 3;

/// Answers of members that this node chose to speak to, which are a fair sample: with as many, nobody else's word counts. A
/// newcomer, and a member of a cell of few, listens to all (guess: where a twentieth lies, most of eight do once in sixty thousand times).
const ANSWERS_LEAST: usize = 8;

struct Relative {
    node: NodeId,
    key: u64,
    addr: SocketAddr,
}

/// Where this node stands.
pub(super) struct Parting {
    key: u64,
    halving: Halving,
    tuning: Tuning,
    generator: Generator,
    /// Members of the sibling half; after cells joined, those that are still to be taken in.
    relatives: Vec<Relative>,
    look_due: Time,
    tell_due: Time,
}

impl Parting {
    pub(super) fn new(node: NodeId, tuning: &Tuning, generator: Generator) -> Self {
        let key = node.key();
        Self {
            key,
            halving: Halving::new(key, tuning.cell_max, tuning.pause),
            tuning: tuning.clone(),
            generator,
            relatives: Vec::new(),
            look_due: Time::ZERO,
            tell_due: Time::ZERO,
        }
    }

    pub(super) fn part(&self) -> Part {
        self.halving.part()
    }

    pub(super) fn told(&self, members: usize) -> Told {
        self.halving.told(members)
    }

    /// Whether who is in that part by its own account takes this node for a member of its cell.
    pub(super) fn is_in(&self, theirs: Part) -> bool {
        theirs.holds(self.key)
    }
}

impl<C: Credentials> Protocol<C> {
    /// Somebody who shares the label is in another cell.
    pub(super) fn hear_outsider(
        &mut self,
        from: SocketAddr,
        datagram: &Datagram<'_>,
        now: Now,
    ) -> Result<(), Refusal> {
        self.remember_relative(datagram.sender, from, now);
        let introduces = datagram.packet.is_empty();
        // Who wants to join with this cell, or thinks to share it, must hear that it is not so. What is said in return is
        // neither, so it ends there.
        let (own, theirs) = (self.parting.told(self.active.len() + 1), datagram.told);
        let mistaken = theirs.bits < own.bits || theirs.bits == own.bits && theirs.few && !own.few;
        if !introduces || datagram.wants_certificate || mistaken {
            self.introduce(from, datagram.sender, now);
        }
        if introduces { Ok(()) } else { Err(Refusal::OtherCell) }
    }

    /// Keeps a member of the sibling half, in the place of one that is silent if need be.
    pub(super) fn remember_relative(&mut self, node: NodeId, addr: SocketAddr, now: Now) {
        let key = node.key();
        let sibling = self.parting.part().sibling();
        if !sibling.is_some_and(|sibling| sibling.holds(key)) {
            return;
        }
        let relatives = &mut self.parting.relatives;
        if let Some(relative) = relatives.iter_mut().find(|relative| relative.node == node) {
            relative.addr = addr;
            return;
        }
        if relatives.len() >= RELATIVES_MAX {
            let life = self.parting.tuning.pause * WORD_PAUSES;
            let speaks =
                |node: &NodeId| self.known.get(node).is_some_and(|known| now.time.since(known.heard) < life);
            let silent = relatives.iter().position(|relative| !speaks(&relative.node));
            let Some(silent) = silent.filter(|_| speaks(&node)) else { return };
            relatives.swap_remove(silent);
        }
        relatives.push(Relative { node, key, addr });
    }

    /// Looks whether the cell is another now, and tells relatives.
    pub(super) fn look_around(&mut self, now: Now) {
        if self.parting.look_due <= now.time && !self.ended {
            self.parting.look_due = now.time + LOOK_EVERY.min(self.parting.tuning.pause / 4);
            let (before, sight) = (self.parting.part(), self.sight(now));
            if self.parting.halving.look(&sight, now.time) {
                self.change_part(before, now);
            }
            self.tell_relatives(now);
        }
    }

    fn sight(&self, now: Now) -> Sight {
        let (part, life) = (self.parting.part(), self.parting.tuning.pause * WORD_PAUSES);
        let mut sight = Sight { members: self.active.len() + 1, ..Sight::default() };
        let mut loud = Vec::new();
        for (node, known) in &self.known {
            let word = (known.key, known.told);
            let active = self.active.contains_key(node);
            let astray = !self.parting.is_in(Part::of(known.key, known.told.bits));
            if active && astray {
                // It is still up, and in another cell.
                sight.members -= 1;
            }
            if now.time.since(known.heard) >= life {
                continue;
            }
            let answers = known.answered.is_some_and(|answered| now.time.since(answered) < life);
            if active && !astray && answers {
                sight.mates.push(word);
            } else if active && !astray {
                loud.push(word);
            } else if part.holds(known.key) || part.sibling().is_some_and(|sibling| sibling.holds(known.key))
            {
                sight.others.push(word);
            }
        }
        if sight.mates.len() < ANSWERS_LEAST {
            sight.mates.append(&mut loud);
        }
        sight
    }

    /// The cell is another now. After a halving foca begins anew with those who remain; when cells join, it takes in who
    /// comes.
    fn change_part(&mut self, before: Part, now: Now) {
        let part = self.parting.part();
        self.actions.push(Action::Parted(part));
        self.parting.tell_due = now.time;
        if before.covers(part) {
            let mut gone = Vec::new();
            self.active.retain(|node, seat| {
                let stays = part.holds(node.key());
                if !stays {
                    gone.push(*seat);
                }
                stays
            });
            self.unmet.retain(|node, _| part.holds(node.key()));
            self.parting.relatives.clear();
            while !gone.is_empty() && self.parting.relatives.len() < RELATIVES_MAX {
                let seat = gone.swap_remove(self.parting.generator.below(gone.len()));
                self.remember_relative(seat.node, seat.addr, now);
            }
            self.hints = Hints::default();
            let stay: Vec<_> = self
                .foca
                .iter_membership_state()
                .filter(|member| part.holds(member.id().node.key()))
                .cloned()
                .collect();
            let dice = Dice(Generator::new(self.parting.generator.next_u64()));
            self.foca = Foca::new(self.me, config(&self.parting.tuning), dice, Codec);
            self.runtime = AccumulatingRuntime::new();
            self.timers.clear();
            if let Err(error) = self.foca.apply_many(stay.into_iter(), false, &mut self.runtime) {
                tracing::debug!(%error, "beginning anew with a half");
            }
            self.settle(now);
        }
        tracing::info!(%before, %part, members = self.active.len() + 1, "the cell is another part of its label");
    }

    /// Tells a few of the sibling half that there are few here, and asks those to be taken in who belong to this cell
    /// again.
    fn tell_relatives(&mut self, now: Now) {
        if self.parting.tell_due > now.time {
            return;
        }
        self.parting.tell_due = now.time + self.parting.tuning.pause;
        let (part, active) = (self.parting.part(), &self.active);
        let near = |key: u64| part.holds(key) || part.sibling().is_some_and(|sibling| sibling.holds(key));
        self.parting.relatives.retain(|relative| near(relative.key) && !active.contains_key(&relative.node));
        let few = self.parting.told(self.active.len() + 1).few;
        let told = TOLD_AT_ONCE.min(self.parting.relatives.len());
        self.parting.relatives.rotate_left(told);
        let whom: Vec<_> = self.parting.relatives.iter().rev().take(told).collect();
        let whom = whom.into_iter().filter(|relative| few || part.holds(relative.key));
        let whom: Vec<_> = whom.map(|relative| (relative.addr, relative.node)).collect();
        for (addr, node) in whom {
            self.introduce(addr, node, now);
        }
    }
}
