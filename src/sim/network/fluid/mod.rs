//! Time-stepped fluid: transfers share links like water, in steps.
//!
//! In each step every transfer gets a rate by a few rounds of water-filling: each link divides what it has left among the
//! transfers that can take more, a transfer takes the smallest of its shares and never more than it has left to move, and what
//! a transfer could not take is divided again in the next round. A transfer ends with the step that is nearest to its end: one
//! always at the end of the step in which the last byte moves would be half a step late on average, and so would all that waits
//! for it. What such a transfer still had to move is taken from its links in the next step.
//!
//! How far this is from exact max-min fairness is shown by tests (`oracle_tests`).
//!
//! Receivers lie in blocks with their downlinks and all that is on the way to them, so that a round goes through a block within
//! the processor's nearest memory, and threads take one block after the other. What a transfer takes from its sender's link and
//! from shared ones is summed up by each thread alone and put together between rounds. All that is summed up is a multiple of one
//! unit and below 2^53 of them: such sums are exact, so neither the order nor the number of threads shows.

mod block;
mod side;

use super::links::Path;
use super::{Network, Usage};
use crate::sim::crew::Crew;
use block::{Block, Flow, Gone};
use side::{Grid, Side, Stretch, Tally};
use std::sync::Arc;

/// Rounds of water-filling between the ends' own links.
const ROUNDS: usize = 3;
/// The same with shared links, in which more transfers meet that are held up elsewhere: what each round leaves is less.
const SHARED_ROUNDS: usize = 8;
/// Ends whose downlinks make a block, a power of two below 2^16: all that is known of 2 048 fits into 100 KB.
const BLOCK: u32 = 2_048;
/// More than any link carries in a step, and far from where the arithmetic ends.
const NO_LIMIT: f32 = 1e30;
/// Wide links that a thread takes at once.
const STRETCH: usize = 16_384;
/// Transfers that must be looked at before a second thread helps: to wake one costs as much as a thousand.
const WORTH_A_THREAD: usize = 16_384;

fn short(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// Where a transfer lies.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// Twice the block, and one more for those that pass shared links.
    list: u32,
    index: u32,
}

/// All links and transfers, of which each passes at most `SHARED` shared links.
#[derive(Debug)]
pub(super) struct Fluid<const SHARED: usize> {
    grid: Grid,
    /// The ends' uplinks, then the shared links, then one without a limit: who passes fewer passes that one instead.
    wide: Side,
    blocks: Vec<Block<SHARED>>,
    crew: Arc<Crew>,
    /// By thread.
    tallies: Vec<Tally>,
    /// By number of the transfer.
    places: Vec<Place>,
    /// The number of ends.
    count: u32,
    under_way: usize,
}

impl<const SHARED: usize> Fluid<SHARED> {
    /// Links with nothing on them, of which the first are the uplinks of `ends` ends and the next their downlinks.
    pub(super) fn new(rates: &[f64], ends: u32, crew: &Arc<Crew>) -> Self {
        let count = ends as usize;
        let (up, others) = rates.split_at(count);
        let (down, shared) = others.split_at(count);
        let grid = Grid::new(up);
        let mut wide = Side::new(&grid, up.iter().chain(shared));
        if SHARED > 0 {
            wide.push_without_limit(NO_LIMIT);
        }
        Self {
            blocks: down.chunks(BLOCK as usize).map(|rates| Block::new(&grid, rates)).collect(),
            tallies: (0..crew.len()).map(|_| Tally::new(wide.len())).collect(),
            crew: Arc::clone(crew),
            wide,
            grid,
            places: Vec::new(),
            count: ends,
            under_way: 0,
        }
    }

    /// Where a link is: among the wide ones, or in a block.
    fn find(&self, link: u32) -> Result<usize, (usize, usize)> {
        if link < self.count {
            return Ok(link as usize);
        }
        let down = link - self.count;
        if down < self.count {
            return Err(((down / BLOCK) as usize, (down % BLOCK) as usize));
        }
        Ok(down as usize)
    }

    fn side(&self, link: u32) -> (&Side, usize) {
        match self.find(link) {
            Ok(index) => (&self.wide, index),
            Err((block, index)) => (&self.blocks[block].down, index),
        }
    }

    /// Lets each thread take one block after the other, if so many transfers are worth it.
    fn each(&mut self, transfers: usize, work: impl Fn(&mut Block<SHARED>, &[f32], &mut Tally) + Sync) {
        let threads = if transfers < WORTH_A_THREAD { 1 } else { self.tallies.len() };
        let shares = self.wide.shares();
        let tallies = &mut self.tallies[..threads];
        self.crew.each(tallies, &mut self.blocks, |tally, block| work(block, shares, tally));
    }

    /// Lets each thread take one stretch of the wide links after the other, if there are so many.
    fn each_wide(&mut self, work: impl Fn(&mut Stretch<'_>) + Sync) {
        let threads = if self.wide.len() < 2 * STRETCH { 1 } else { self.tallies.len() };
        let mut stretches = self.wide.stretches(&mut self.tallies, STRETCH);
        self.crew.each(&mut vec![(); threads], &mut stretches, |(), stretch| work(stretch));
    }

    fn fill(&mut self) {
        let grid = self.grid;
        self.each_wide(|links| links.begin(&grid));
        self.each(self.under_way, |block, shares, tally| block.begin(&grid, shares, tally));
        self.each_wide(|links| links.take());
        for round in 1..if SHARED == 0 { ROUNDS } else { SHARED_ROUNDS } {
            let open = if round == 1 { self.under_way } else { self.blocks.iter().map(Block::open).sum() };
            self.each(open, |block, shares, tally| block.count(&grid, round == 1, shares, tally));
            let open = self.blocks.iter().map(Block::open).sum();
            if open == 0 {
                break;
            }
            self.each_wide(|links| links.divide(&grid));
            self.each(open, |block, shares, tally| block.add(shares, tally));
            self.each_wide(|links| links.take());
        }
    }
}

/// What remains to be done when a block has forgotten a transfer.
fn forget<const SHARED: usize>(gone: &Gone<SHARED>, wide: &mut Side, places: &mut [Place]) {
    wide.leave(gone.from as usize, gone.owed);
    for link in gone.shared.iter().flatten() {
        wide.leave(*link as usize, gone.owed);
    }
    if let Some(moved) = gone.moved {
        places[moved as usize].index = gone.index;
    }
}

impl<const SHARED: usize> Network for Fluid<SHARED> {
    fn start(&mut self, number: u32, path: &Path, bytes: u32) {
        let (from, to) = (path.links()[0], path.links()[path.links().len() - 1] - self.count);
        let mut shared = [short(self.wide.len().saturating_sub(1)); SHARED];
        for (place, link) in shared.iter_mut().zip(path.shared()) {
            *place = link - self.count;
        }
        if self.places.len() <= number as usize {
            self.places.resize(number as usize + 1, Place::default());
        }
        let crosses = !path.shared().is_empty();
        self.wide.join(from as usize);
        for link in shared.iter().filter(|_| crosses) {
            self.wide.join(*link as usize);
        }
        let flow = Flow { number, from, shared };
        let index = self.blocks[(to / BLOCK) as usize].push(crosses, flow, to % BLOCK, bytes);
        self.places[number as usize] = Place { list: to / BLOCK * 2 + u32::from(crosses), index };
        self.under_way += 1;
    }

    fn stop(&mut self, number: u32) {
        let Place { list, index } = self.places[number as usize];
        let gone = self.blocks[(list / 2) as usize].remove(list % 2 == 1, index, 0.0);
        forget(&gone, &mut self.wide, &mut self.places);
        self.under_way -= 1;
    }

    fn step(&mut self, ended: &mut Vec<u32>) {
        self.fill();
        self.each(self.under_way, |block, _, _| block.advance());
        for gone in self.blocks.iter_mut().flat_map(Block::gone) {
            forget(&gone, &mut self.wide, &mut self.places);
            ended.push(gone.number);
            self.under_way -= 1;
        }
    }

    fn set_rate(&mut self, link: u32, rate: f64) {
        let grid = self.grid;
        match self.find(link) {
            Ok(index) => self.wide.set_rate(&grid, index, rate),
            Err((block, index)) => self.blocks[block].down.set_rate(&grid, index, rate),
        }
    }

    fn is_busy(&self, link: u32) -> bool {
        let (side, index) = self.side(link);
        side.is_busy(index)
    }

    fn usage(&self, link: u32) -> Usage {
        let (side, index) = self.side(link);
        side.usage(index)
    }

    fn left(&self, number: u32) -> f64 {
        let Place { list, index } = self.places[number as usize];
        self.blocks[(list / 2) as usize].left(list % 2 == 1, index, number)
    }

    fn heap_bytes(&self) -> usize {
        self.wide.heap_bytes()
            + self.tallies.iter().map(Tally::heap_bytes).sum::<usize>()
            + self.blocks.iter().map(Block::heap_bytes).sum::<usize>()
            + self.places.capacity() * size_of::<Place>()
    }
}
