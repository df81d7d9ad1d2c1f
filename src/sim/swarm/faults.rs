//! What goes wrong from outside, when, and how it is mended.

use super::member::Mind;
use super::plan::{Lie, Trouble};
use super::readers::CONVERGED_AFTER;
use super::supply::Weather;
use super::world::{Happening, Step, World};
use crate::mesh::proto::{Chunk, Input, NewsId};
use crate::model::Rng;
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
/// Longest trouble that ends by itself, in milliseconds.
const TROUBLE_MAX_MS: usize = 12_000;

/// How a trouble ends.
#[derive(Clone, Debug)]
pub(super) enum Undo {
    Restart { node: u32, keeps_disk: bool },
    Mend { cuts: Vec<(u32, u32)> },
    Strata,
    Reach { node: u32 },
    Disk { node: u32 },
    Dht,
}

impl World<'_> {
    fn below(&mut self, bound: usize) -> u32 {
        u32::try_from(self.fault_rng.below(bound)).unwrap_or(0)
    }

    fn anybody(&mut self) -> u32 {
        let nodes = self.plan.seats.len();
        self.below(nodes)
    }

    fn end_later(&mut self, undo: Undo) {
        let millis = 200 + self.below(TROUBLE_MAX_MS);
        self.after_ms(millis, Happening::Undo(undo));
    }

    /// Plans the next trouble.
    pub(super) fn plan_trouble(&mut self) {
        if self.stormy && !self.plan.troubles.is_empty() {
            let mean = usize::try_from(self.plan.trouble_every.as_millis()).unwrap_or(1);
            let millis = self.below(2 * mean);
            self.after_ms(millis, Happening::Trouble);
        }
    }

    /// Something goes wrong.
    pub(super) fn trouble(&mut self) -> Step {
        if !self.stormy {
            return Ok(());
        }
        let kind = self.plan.troubles[self.fault_rng.below(self.plan.troubles.len())];
        let node = self.anybody();
        self.tape.note(self.now, || format!("{kind:?} n{node}"));
        match kind {
            Trouble::Crash => self.crash(node),
            Trouble::Partition => self.partition(node),
            Trouble::Break => {
                let other = self.anybody();
                if other != node {
                    let within = [1, 2_000, 10_000][self.fault_rng.below(3)];
                    self.break_link(node, other, within);
                }
            }
            Trouble::Strata => self.cloud_strata(node),
            Trouble::FullDisk => {
                self.member_mut(node).disk.full = true;
                self.end_later(Undo::Disk { node });
            }
            Trouble::Loss => self.lose_chunks(node)?,
            Trouble::ClockJump => self.jump_clock(node),
            Trouble::FalseNews => self.spread_false_news(node),
            Trouble::Stall => {
                let span = MS * (50 + self.below(5_000));
                let until = self.now + span;
                let member = self.member_mut(node);
                member.stalled = member.stalled.max(until);
                let until = until + member.ahead;
                member.ledger.excuse(until);
            }
            Trouble::Dht => {
                self.dht.silent = true;
                self.end_later(Undo::Dht);
            }
            Trouble::Flood => self.begin_flood(),
        }
        // News of revisions go their way in all weathers.
        if self.below(4) == 0 {
            self.publish(node)?;
        }
        self.plan_trouble();
        Ok(())
    }

    fn crash(&mut self, node: u32) {
        if !self.member(node).alive {
            return;
        }
        let within = [50, 10_000][self.fault_rng.below(2)];
        self.break_all(node, within);
        self.bury(node);
        self.news_of(node);
        if self.below(6) == 0 {
            self.member_mut(node).lost = true;
        } else {
            let keeps_disk = self.below(3) > 0;
            self.end_later(Undo::Restart { node, keeps_disk });
        }
    }

    /// Cuts some nodes off from the others: one, a cell, a region, or any half.
    fn partition(&mut self, node: u32) {
        let seat = self.plan.seats[node as usize];
        let style = self.below(4);
        let mut inside: Vec<bool> = Vec::with_capacity(self.plan.seats.len());
        for (other, at) in (0..).zip(self.plan.seats.clone()) {
            inside.push(match style {
                0 => other == node,
                1 => at.cell == seat.cell,
                2 => at.region == seat.region,
                _ => self.below(2) == 0,
            });
        }
        let one_way = self.below(3) == 0;
        let mut cuts = Vec::new();
        for a in 0..self.nodes() {
            for b in 0..self.nodes() {
                let (from, to) = (inside[a as usize], inside[b as usize]);
                if from != to && (from || !one_way) {
                    self.wires.cut(a, b);
                    cuts.push((a, b));
                }
            }
        }
        self.look_along(&cuts);
        self.end_later(Undo::Mend { cuts });
    }

    /// Everybody along the cuts finds out in time.
    fn look_along(&mut self, cuts: &[(u32, u32)]) {
        for (a, b) in cuts {
            self.look_later(*a, *b);
            self.look_later(*b, *a);
        }
    }

    fn cloud_strata(&mut self, node: u32) {
        if self.below(4) == 0 {
            self.member_mut(node).no_strata = true;
            return self.end_later(Undo::Reach { node });
        }
        let weathers = [
            Weather::Down,
            Weather::Hang,
            Weather::Slow,
            Weather::Flaky,
            Weather::Rubbish,
            Weather::Refusing,
        ];
        self.strata.weather = weathers[self.fault_rng.below(weathers.len())];
        self.end_later(Undo::Strata);
    }

    /// Chunks go from a disk: pushed out and reported, or rotten and found out later.
    fn lose_chunks(&mut self, node: u32) -> Step {
        let held: Vec<Chunk> = self.member(node).disk.chunks().collect();
        let (rots, all) = (self.below(2) == 0, self.below(4) == 0);
        for chunk in held {
            if !all && self.below(4) > 0 {
                continue;
            }
            if rots {
                self.member_mut(node).disk.rot(chunk);
            } else {
                self.member_mut(node).disk.remove(chunk);
                if self.member(node).alive {
                    self.input(node, Input::Evicted { chunk })?;
                }
            }
        }
        Ok(())
    }

    fn jump_clock(&mut self, node: u32) {
        let millis = [200, 3_000, 60_000, 4_000_000][self.fault_rng.below(4)];
        let leap = MS * (1 + self.below(millis));
        let now = self.now;
        let member = self.member_mut(node);
        member.ahead += leap;
        let local = now.max(member.stalled) + member.ahead;
        member.ledger.excuse(local);
        member.tick = None;
        if member.alive {
            self.wake(node);
        }
    }

    /// Some nodes hear of a death that was none, or of a life that is none; later they hear the truth.
    fn spread_false_news(&mut self, subject: u32) {
        let most = [1, 3, self.plan.seats.len()][self.fault_rng.below(3)];
        for _ in 0..1 + self.below(most) {
            let node = self.anybody();
            let millis = self.below(1_000);
            self.after_ms(millis, Happening::Mislead { node, subject });
            self.look_later(node, subject);
        }
    }

    /// A node believes the opposite of what it believed.
    pub(super) fn mislead(&mut self, node: u32, subject: u32) -> Step {
        let belief = self.member(node).view[subject as usize];
        if node == subject || !belief.met || !self.stormy || !self.member(node).is_honest() {
            return Ok(());
        }
        if belief.up && self.is_own_member(node, subject) {
            self.break_link(node, subject, 20);
        }
        self.set_up(node, subject, !belief.up)
    }

    fn begin_flood(&mut self) {
        for node in 0..self.nodes() {
            if matches!(self.member(node).mind, Mind::Liar(_)) {
                for _ in 0..8 {
                    let millis = self.below(3_000);
                    self.after_ms(millis, Happening::Flood { node });
                }
            }
        }
    }

    fn publish(&mut self, node: u32) -> Step {
        if !self.member(node).alive {
            return Ok(());
        }
        self.next_news += 1;
        let news = NewsId(self.next_news);
        self.member_mut(node).books.judged.insert(news);
        self.input(node, Input::NewsSeen { news, from: None })
    }

    /// A trouble ends. What was mended as a whole is not mended again.
    pub(super) fn undo(&mut self, undo: Undo) -> Step {
        if !self.stormy {
            return Ok(());
        }
        match undo {
            Undo::Restart { node, keeps_disk } => return self.restart(node, keeps_disk),
            Undo::Mend { cuts } => {
                for (a, b) in &cuts {
                    self.wires.mend(*a, *b);
                }
                self.release_held();
                self.look_along(&cuts);
            }
            Undo::Strata => self.strata.weather = Weather::Fine,
            Undo::Reach { node } => self.member_mut(node).no_strata = false,
            Undo::Disk { node } => self.member_mut(node).disk.full = false,
            Undo::Dht => self.dht.silent = false,
        }
        Ok(())
    }

    /// All is mended: whoever can come back comes back, and everybody hears the truth within half a minute.
    pub(super) fn heal(&mut self) -> Step {
        self.tape.note(self.now, || "all is mended".to_owned());
        (self.stormy, self.healed) = (false, self.now);
        self.chances = super::plan::Chances::default();
        self.wires.mend_all();
        self.release_held();
        self.strata.weather = Weather::Fine;
        self.dht.silent = false;
        for node in 0..self.nodes() {
            let liars_stay = self.plan.liars_stay;
            let member = self.member_mut(node);
            member.disk.full = false;
            member.no_strata = false;
            if let Mind::Liar(lie) = &mut member.mind
                && !liars_stay
            {
                *lie = Lie::Truth;
            }
            if !member.alive && !member.lost {
                let keeps_disk = self.below(3) > 0;
                self.restart(node, keeps_disk)?;
            }
        }
        let within = usize::try_from(CONVERGED_AFTER.as_millis()).unwrap_or(1);
        for node in 0..self.nodes() {
            self.go_home(node)?;
            for subject in 0..self.nodes() {
                let (a, b) = (self.plan.seats[node as usize], self.plan.seats[subject as usize]);
                if a.region == b.region || self.member(node).view[subject as usize].met {
                    let soon = if a.cell == b.cell { within / 3 } else { within };
                    let millis = self.below(soon);
                    self.after_ms(millis, Happening::Learn { node, subject });
                }
            }
        }
        Ok(())
    }
}
