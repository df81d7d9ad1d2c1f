//! What the nodes' readers do: reads in order with prefetches ahead, fills, reads of anything, and withdrawals.

use super::ledger::rule;
use super::member::Style;
use super::world::{Happening, Step, World};
use crate::mesh::proto::{Chunk, GiveUp, Input};
use crate::model::{Class, Rng};
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
const CLASSES: [Class; 3] = [Class::Read, Class::Prefetch, Class::Fill];
/// How long a reader of the last phase waits for a chunk. Nothing is wrong any more but what the nodes still believe,
const LAST_PATIENCE: Duration = Duration::from_secs(120);
/// and liars that go on lying, each of whom may hold a node up: for 15 s with `Wait`, for 30 s with `Busy`, for less if
/// others named it.
const LIAR_PATIENCE: Duration = Duration::from_secs(40);
/// How long after the end of all troubles nodes may still believe what was true before.
pub(super) const CONVERGED_AFTER: Duration = Duration::from_secs(30);
/// Reads of the last phase that a node has open at once, at most: no more than it begins at once, so that none stands
/// behind more urgent ones.
const LAST_WINDOW: u64 = 6;

impl World<'_> {
    /// The readers of a node begin.
    pub(super) fn begin_reading(&mut self, node: u32) {
        let style = match self.read_rng.below(4) {
            0 | 1 => {
                let window = [0, 2, 8, 64][self.read_rng.below(4)];
                let first =
                    if self.read_rng.below(3) > 0 { 0 } else { self.read_rng.below(self.plan.content.len()) };
                Style::InOrder { next: u32::try_from(first).unwrap_or(0), window }
            }
            2 => Style::Fill,
            _ => Style::Random,
        };
        self.member_mut(node).style = style;
        let life = self.member(node).life;
        let within = if self.plan.clean || self.read_rng.below(2) == 0 { 20 } else { 5_000 };
        let millis = u32::try_from(self.read_rng.below(within)).unwrap_or(0);
        self.after_ms(millis, Happening::Read { node, life });
    }

    /// The readers of a node do something.
    pub(super) fn read(&mut self, node: u32) -> Step {
        if !self.stormy {
            let retries = &mut self.member_mut(node).last_retries;
            if *retries == 0 {
                return Ok(()); // Left over from the storm.
            }
            *retries -= 1;
            return self.read_last(node);
        }
        match self.member(node).style {
            Style::InOrder { next, window } => self.read_on(node, next, window),
            Style::Fill => {
                let patience = Duration::from_secs(30 + self.read_rng.below(200) as u64);
                for chunk in (0..self.chunks()).map(Chunk) {
                    self.want(node, chunk, Class::Fill, patience)?;
                }
                // A fill is offered again and again; and while it runs, somebody reads as well.
                self.member_mut(node).style = Style::Random;
                self.later(node, 3_000);
                Ok(())
            }
            Style::Random => {
                for _ in 0..1 + self.read_rng.below(6) {
                    self.read_anything(node)?;
                }
                self.later(node, 600);
                Ok(())
            }
        }
    }

    fn later(&mut self, node: u32, within_ms: usize) {
        let life = self.member(node).life;
        let millis = 1 + u32::try_from(self.read_rng.below(within_ms)).unwrap_or(0);
        self.after_ms(millis, Happening::Read { node, life });
    }

    fn read_anything(&mut self, node: u32) -> Step {
        let chunk = Chunk(u32::try_from(self.read_rng.below(self.plan.content.len())).unwrap_or(0));
        if self.read_rng.below(6) == 0 && !self.plan.clean {
            // Its readers went away.
            if self.member_mut(node).books.readers.remove(&chunk).is_some() {
                return self.input(node, Input::Unwanted { chunk });
            }
            return Ok(());
        }
        let class = CLASSES[self.read_rng.below(3)];
        let millis = [0, 300, 5_000, 30_000][self.read_rng.below(4)];
        let millis = if self.plan.clean { 60_000 } else { 1 + self.read_rng.below(1 + millis) };
        let patience = MS * u32::try_from(millis).unwrap_or(1);
        self.want(node, chunk, class, patience)
    }

    /// The next chunk in order, and those that will be read after it.
    fn read_on(&mut self, node: u32, next: u32, window: u32) -> Step {
        let chunks = self.chunks();
        if next >= chunks {
            self.member_mut(node).style = Style::Random;
            self.later(node, 2_000);
            return Ok(());
        }
        let least = if self.plan.clean { 30 } else { 1 };
        let patience = Duration::from_secs(least + self.read_rng.below(30) as u64);
        self.want(node, Chunk(next), Class::Read, patience)?;
        for ahead in (next + 1..chunks).take(window as usize).map(Chunk) {
            let member = self.member(node);
            if !member.books.readers.contains_key(&ahead) && !member.ledger.holds(ahead) {
                self.want(node, ahead, Class::Prefetch, patience)?;
            }
        }
        Ok(())
    }

    /// A want ended, one way or the other.
    pub(super) fn want_ended(&mut self, node: u32, chunk: Chunk, result: Result<(), GiveUp>) -> Step {
        if self.stormy
            && let Style::InOrder { next, window } = self.member(node).style
            && next == chunk.0
        {
            // Whoever reads on after an error reads the next chunk.
            self.member_mut(node).style = Style::InOrder { next: next + 1, window };
            self.later(node, 2);
        }
        if !self.member(node).last_wants.contains(&chunk) {
            return Ok(());
        }
        if let Err(why) = result {
            let converged = self.healed + CONVERGED_AFTER;
            rule!(self.now < converged, "{chunk:?} is not delivered though all is well: {why:?}");
            // Until everybody has heard that all is well, a read may fail, and is tried again.
            let member = self.member_mut(node);
            member.last_wants.remove(&chunk);
            member.last_queue.push_back(chunk);
            member.last_retries += 1;
            self.later(node, 1_000);
            return Ok(());
        }
        self.member_mut(node).last_wants.remove(&chunk);
        self.last_open -= 1;
        self.read_last(node)
    }

    /// The readers of a node go away.
    pub(super) fn go_home(&mut self, node: u32) -> Step {
        for chunk in std::mem::take(&mut self.member_mut(node).books.readers).into_keys() {
            self.input(node, Input::Unwanted { chunk })?;
        }
        Ok(())
    }

    /// After all troubles: every honest node wants everything.
    pub(super) fn begin_last_reads(&mut self, node: u32) -> Step {
        let mut chunks: Vec<Chunk> = (0..self.chunks()).map(Chunk).collect();
        if self.read_rng.below(2) == 0 {
            let start = self.read_rng.below(chunks.len());
            chunks.rotate_left(start);
        }
        self.last_open += chunks.len();
        let member = self.member_mut(node);
        member.last_queue = chunks.into();
        let settings = &self.plan.settings;
        let longest = self.plan.content.iter().map(|piece| u64::from(piece.len_bytes)).max().unwrap_or(1);
        let window =
            LAST_WINDOW.min(u64::from(settings.window_chunks)).min(settings.window_bytes.div_ceil(longest));
        for _ in 0..window {
            self.read_last(node)?;
        }
        Ok(())
    }

    /// How long each of them may take.
    pub(super) fn last_patience(&self) -> Duration {
        let liars = if self.plan.liars_stay { self.plan.liars.iter().flatten().count() } else { 0 };
        LAST_PATIENCE + LIAR_PATIENCE * u32::try_from(liars).unwrap_or(u32::MAX)
    }

    /// The next of them.
    pub(super) fn read_last(&mut self, node: u32) -> Step {
        let Some(chunk) = self.member_mut(node).last_queue.pop_front() else { return Ok(()) };
        self.member_mut(node).last_wants.insert(chunk);
        let class = CLASSES[self.read_rng.below(3)];
        let patience = self.last_patience();
        self.want(node, chunk, class, patience)
    }
}
