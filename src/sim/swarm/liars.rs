//! What liars do: they hold valid certificates, are homes like anybody else, and mean no good.

use super::member::{Bytes, Mind};
use super::plan::Lie;
use super::wires::Mail;
use super::world::{Happening, Step, World};
use crate::mesh::proto::{Answer, Chunk, Holders, POSSESSION_MAX, Peer, Segment, Slice};
use crate::model::{Class, Rng};
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
/// Pause of one who says `Wait` without end, in milliseconds.
const WAIT_EVERY_MS: u32 = 400;
/// How often it says so: until long after anybody listens.
const WAITS: u8 = 100;
/// Holders that a liar names, at most.
const NAMED_MAX: usize = 8;
/// Asks in one burst of a flood.
const BURST_MAX: usize = 40;
const KINDS: [Lie; 7] =
    [Lie::WrongBytes, Lie::Missing, Lie::Busy, Lie::Wait, Lie::Silence, Lie::Drip, Lie::Truth];

impl World<'_> {
    /// A liar claims in the DHT to hold everything.
    pub(super) fn begin_lying(&mut self, node: u32) -> Step {
        let last = self.plan.content.last().map_or(0, |piece| piece.segment);
        for segment in 0..=last {
            self.dht.announce(Segment(segment), node);
        }
        Ok(())
    }

    /// A liar is asked.
    pub(super) fn lie(&mut self, number: u32) -> Step {
        let request = self.requests[number as usize];
        let lie = match self.member(request.asked).mind {
            Mind::Liar(Lie::Mixed) => KINDS[self.lie_rng.below(KINDS.len())],
            Mind::Liar(lie) => lie,
            Mind::Honest(_) => return Ok(()),
        };
        let pause = MS * u32::try_from(self.lie_rng.below(50)).unwrap_or(0);
        self.send(number, Mail::Connected, Duration::ZERO);
        let chunk = request.chunk;
        if self.lie_rng.below(4) == 0 {
            self.claim(request.asked, request.asker);
        }
        let mail = match lie {
            Lie::WrongBytes => Mail::Data(Bytes::forged(chunk)),
            Lie::Truth => Mail::Data(Bytes::of(chunk)),
            Lie::Missing => self.say(|holders| Answer::Missing { holders }),
            Lie::Busy => self.say(|holders| Answer::Busy { holders }),
            Lie::Wait => return self.wait_again(number, WAITS),
            Lie::Drip => {
                let seconds = 3 + self.lie_rng.below(60) as u64;
                self.send(number, Mail::Data(Bytes::of(chunk)), Duration::from_secs(seconds));
                return Ok(());
            }
            Lie::Silence | Lie::Mixed => return Ok(()),
        };
        self.send(number, mail, pause);
        Ok(())
    }

    /// It names anybody: the dead, itself, the asker.
    fn say(&mut self, answer: impl Fn(Holders) -> Answer) -> Mail {
        let count = self.lie_rng.below(NAMED_MAX + 1);
        let nodes = self.plan.seats.len();
        let holders = (0..count).map(|_| Peer(u32::try_from(self.lie_rng.below(nodes)).unwrap_or(0)));
        let answer = answer(holders.collect());
        Mail::Told { answer, load: u8::try_from(self.lie_rng.below(256)).unwrap_or(0) }
    }

    /// It claims to hold everything, sometimes more than it may claim at once.
    fn claim(&mut self, liar: u32, to: u32) {
        let count = self.lie_rng.below(POSSESSION_MAX + 2);
        let last = self.plan.content.len();
        let anything = |world: &mut Self| u32::try_from(world.lie_rng.below(last)).unwrap_or(0);
        let slices = (0..count).map(|_| (Slice(anything(self)), u64::MAX)).collect();
        self.tell_possession(liar, to, slices);
    }

    /// A liar says `Wait`, and will say so again.
    pub(super) fn wait_again(&mut self, number: u32, left: u8) -> Step {
        let request = self.requests[number as usize];
        let open = self.member(request.asker).books.outgoing.get(&(request.chunk, Peer(request.asked)));
        if left == 0 || open != Some(&number) || !self.member(request.asked).alive {
            return Ok(());
        }
        self.send(number, Mail::Told { answer: Answer::Wait, load: 0 }, Duration::ZERO);
        self.after_ms(WAIT_EVERY_MS, Happening::WaitAgain { request: number, left: left - 1 });
        Ok(())
    }

    /// A liar asks many for all and everything, and never takes anything back.
    pub(super) fn flood(&mut self, node: u32) -> Step {
        if !self.stormy {
            return Ok(());
        }
        let target = u32::try_from(self.lie_rng.below(self.plan.seats.len())).unwrap_or(0);
        for _ in 0..1 + self.lie_rng.below(BURST_MAX) {
            let spread = u32::try_from(self.lie_rng.below(self.plan.seats.len())).unwrap_or(0);
            let to = if self.lie_rng.below(4) == 0 { spread } else { target };
            let chunk = Chunk(u32::try_from(self.lie_rng.below(self.plan.content.len())).unwrap_or(0));
            let class = [Class::Read, Class::Prefetch, Class::Fill][self.lie_rng.below(3)];
            if to != node {
                self.request(node, to, chunk, class);
            }
        }
        Ok(())
    }
}
