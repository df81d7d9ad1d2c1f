//! Machines that lie to whoever asks them. All else of a liar is a node like the others: it is a home, and wants the content.

use super::fleet::{Effect, Effects, Event, Machine};
use super::scenario::{Lie, Scenario};
use crate::mesh::proto::{Answer, Ask, Chunk, Holders, Peer};
use crate::model::{Generator, Rng};

/// Sets the draw of the liars apart from all other randomness.
const LIARS: u64 = 0x006c_6961_7273;
/// How often one who waits is told to go on waiting, in milliseconds: what an honest node does.
const KEEP_ALIVE_MS: u32 = 500;
/// Askers that a liar remembers, to name them.
const KNOWN_MAX: usize = 64;

/// One who lies.
#[derive(Clone, Debug)]
pub(super) struct Liar {
    lie: Lie,
    known: Vec<Peer>,
    generator: Generator,
}

impl Liar {
    /// By node: whether it lies, and how.
    pub(super) fn draw(scenario: &Scenario, seed: u64) -> Vec<Option<Self>> {
        let nodes = scenario.fleet.nodes as usize;
        let mut all = vec![None; nodes];
        let Some(liars) = &scenario.liars else { return all };
        let count = (nodes * liars.per_cent as usize).div_ceil(100);
        let mut rng = Generator::stream(seed, LIARS);
        let mut drawn = 0;
        while drawn < count {
            let node = rng.below(nodes);
            if all[node].is_none() {
                let lie = liars.how[drawn % liars.how.len()];
                let generator = Generator::stream(seed, LIARS ^ (node as u64 + 1) << 48);
                all[node] = Some(Self { lie, known: Vec::new(), generator });
                drawn += 1;
            }
        }
        all
    }

    /// Whether what it sends is wrong.
    pub(super) fn is_corrupt(&self) -> bool {
        self.lie == Lie::Corrupt
    }

    fn holders(&mut self, asker: u32) -> Holders {
        let asker = Peer(asker);
        if !self.known.contains(&asker) {
            self.known.truncate(KNOWN_MAX - 1);
            self.known.insert(0, asker);
        }
        let others: Vec<Peer> = self.known.iter().copied().filter(|peer| *peer != asker).collect();
        let mut holders = Holders::new();
        for _ in 0..holders.inline_size().min(others.len()) {
            let other = others[self.generator.below(others.len())];
            if !holders.contains(&other) {
                holders.push(other);
            }
        }
        holders
    }
}

impl Machine {
    /// A liar is asked.
    pub(super) fn lie(&mut self, ask: Ask, from: u32, chunk: Chunk, effects: &mut Effects) {
        let me = self.me;
        let Some(liar) = &mut self.liar else { return };
        let holders = liar.holders(from);
        let busy = match liar.lie {
            Lie::Corrupt => {
                if let Some(incoming) = self.incoming_mut(ask) {
                    incoming.serve();
                }
                return effects.push((me, Effect::Serve { ask, to: from, chunk }));
            }
            Lie::Stall => return self.stall(from, chunk, effects),
            Lie::Silent => return,
            Lie::Busy => true,
            Lie::Missing => false,
            Lie::Evade => liar.generator.below(2) == 0,
        };
        self.end(ask);
        let answer = if busy { Answer::Busy { holders } } else { Answer::Missing { holders } };
        effects.push((me, Effect::Send(from, Event::answer(me, chunk, answer, 0))));
    }

    /// A liar says `Wait`, and will say so again while it is still asked.
    pub(super) fn stall(&mut self, to: u32, chunk: Chunk, effects: &mut Effects) {
        if self.ask_of(to, chunk).is_none() {
            return;
        }
        let me = self.me;
        effects.push((me, Effect::Send(to, Event::answer(me, chunk, Answer::Wait, 0))));
        effects.push((me, Effect::Later(KEEP_ALIVE_MS, Event::Stall { to, chunk })));
    }
}
