//! A block: receivers that are neighbours, their downlinks, and all transfers on the way to them.

use super::side::{Grid, Side, Tally, narrow};

/// The part of a step that a transfer may be from its end to end with it.
const HALF: f32 = 0.5;
/// Bytes below which nothing is left to move.
const NOTHING: f64 = 0.5;

/// What a transfer is but for its receiver: its number, and its sender and the shared links that it passes among the wide links.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow<const SHARED: usize> {
    pub(super) number: u32,
    pub(super) from: u32,
    pub(super) shared: [u32; SHARED],
}

/// Transfers with the same most shared links on their way. What a round reads of a transfer lies in arrays of its own.
#[derive(Debug, Default)]
struct Flows<const SHARED: usize> {
    numbers: Vec<u32>,
    from: Vec<u32>,
    /// Within the block.
    to: Vec<u16>,
    shared: Vec<[u32; SHARED]>,
    /// A sum of multiples of the unit, exact as well: even what moves a millionth of it in a step ends at its time.
    left: Vec<f64>,
    rate: Vec<f32>,
    /// Transfers that could take more after a round, by index.
    open: Vec<u32>,
    /// Those that ended with the step and what they owe, by index, ascending.
    ended: Vec<(u32, f64)>,
}

impl<const SHARED: usize> Flows<SHARED> {
    fn push(&mut self, flow: Flow<SHARED>, to: u16, bytes: u32) -> u32 {
        self.numbers.push(flow.number);
        self.from.push(flow.from);
        self.to.push(to);
        self.shared.push(flow.shared);
        self.left.push(f64::from(bytes));
        self.rate.push(0.0);
        super::short(self.numbers.len() - 1)
    }

    /// Forgets a transfer. Returns what it was, its receiver, and whose index is that one now.
    fn remove(&mut self, index: usize) -> (Flow<SHARED>, u16, Option<u32>) {
        self.left.swap_remove(index);
        self.rate.swap_remove(index);
        let (number, from) = (self.numbers.swap_remove(index), self.from.swap_remove(index));
        let (to, shared) = (self.to.swap_remove(index), self.shared.swap_remove(index));
        (Flow { number, from, shared }, to, self.numbers.get(index).copied())
    }

    /// The first round: everybody takes part.
    fn begin(&mut self, down: &[f32], wide: &[f32], own: &mut [f64], taken: &mut [f64]) {
        let ways = self.from.iter().zip(&self.to).zip(&self.shared);
        for ((rate, left), ((from, to), shared)) in self.rate.iter_mut().zip(&self.left).zip(ways) {
            let (from, to) = (*from as usize, usize::from(*to));
            let mut most = wide[from].min(down[to]).min(narrow(*left));
            for link in shared {
                most = most.min(wide[*link as usize]);
            }
            *rate = most;
            for link in shared {
                taken[*link as usize] += f64::from(most);
            }
            taken[from] += f64::from(most);
            own[to] += f64::from(most);
        }
    }

    /// Finds who can take more, among all or those who could before.
    fn count(&mut self, all: bool, down: &[f32], wide: &[f32], own: &mut [u32], takers: &mut [u32]) {
        let candidates = if all { self.numbers.len() } else { self.open.len() };
        if all {
            self.open.resize(candidates, 0);
        }
        let mut kept = 0;
        for place in 0..candidates {
            let index = if all { place } else { self.open[place] as usize };
            let (from, to) = (self.from[index] as usize, usize::from(self.to[index]));
            let shared = &self.shared[index];
            let mut takes =
                (wide[from] > 0.0) & (down[to] > 0.0) & (f64::from(self.rate[index]) < self.left[index]);
            for link in shared {
                takes &= wide[*link as usize] > 0.0;
            }
            // Without a branch: which transfers take part is as good as random.
            let one = u32::from(takes);
            takers[from] += one;
            own[to] += one;
            for link in shared {
                takers[*link as usize] += one;
            }
            self.open[kept] = super::short(index);
            kept += usize::from(takes);
        }
        self.open.truncate(kept);
    }

    /// Gives more to those who can take it.
    fn add(&mut self, down: &[f32], wide: &[f32], own: &mut [f64], taken: &mut [f64]) {
        for index in &self.open {
            let index = *index as usize;
            let (from, to, shared) =
                (self.from[index] as usize, usize::from(self.to[index]), &self.shared[index]);
            let rate = &mut self.rate[index];
            let mut more = wide[from].min(down[to]).min(narrow(self.left[index] - f64::from(*rate)));
            for link in shared {
                more = more.min(wide[*link as usize]);
            }
            *rate += more;
            for link in shared {
                taken[*link as usize] += f64::from(more);
            }
            taken[from] += f64::from(more);
            own[to] += f64::from(more);
        }
    }

    /// Moves everybody by its rate.
    fn advance(&mut self) {
        for (index, (left, rate)) in (0..).zip(self.left.iter_mut().zip(&self.rate)) {
            *left -= f64::from(*rate);
            if *left <= NOTHING.max(f64::from(*rate * HALF)) {
                self.ended.push((index, left.max(0.0)));
            }
        }
    }
}

/// A transfer that was forgotten.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gone<const SHARED: usize> {
    pub(super) number: u32,
    pub(super) from: u32,
    /// If it passed shared links.
    pub(super) shared: Option<[u32; SHARED]>,
    /// The number of the one that has its index now.
    pub(super) moved: Option<u32>,
}

/// Receivers and what is on the way to them.
#[derive(Debug)]
pub(super) struct Block<const SHARED: usize> {
    /// Their downlinks.
    pub(super) down: Side,
    tally: Tally,
    /// Those that pass no shared link.
    plain: Flows<0>,
    crossing: Flows<SHARED>,
}

impl<const SHARED: usize> Block<SHARED> {
    /// Downlinks with these capacities.
    pub(super) fn new(grid: &Grid, rates: &[f64]) -> Self {
        Self {
            down: Side::new(grid, rates.iter()),
            tally: Tally::new(rates.len()),
            plain: Flows::default(),
            crossing: Flows::default(),
        }
    }

    /// Begins a transfer and returns its index.
    pub(super) fn push(&mut self, crosses: bool, flow: Flow<SHARED>, to: u32, bytes: u32) -> u32 {
        self.down.join(to as usize);
        let to = u16::try_from(to).unwrap_or(u16::MAX);
        if crosses {
            return self.crossing.push(flow, to, bytes);
        }
        self.plain.push(Flow { number: flow.number, from: flow.from, shared: [] }, to, bytes)
    }

    /// Forgets a transfer; its downlink owes what is given.
    pub(super) fn remove(&mut self, crosses: bool, index: usize, owed: f64) -> Gone<SHARED> {
        let (number, from, shared, to, moved) = if crosses {
            let (flow, to, moved) = self.crossing.remove(index);
            (flow.number, flow.from, Some(flow.shared), to, moved)
        } else {
            let (flow, to, moved) = self.plain.remove(index);
            (flow.number, flow.from, None, to, moved)
        };
        self.down.leave(usize::from(to), owed);
        Gone { number, from, shared, moved }
    }

    /// Those that could take more after the last round.
    pub(super) fn open(&self) -> usize {
        self.plain.open.len() + self.crossing.open.len()
    }

    /// Begins a step, with the first round.
    pub(super) fn begin(&mut self, grid: &Grid, wide: &[f32], tally: &mut Tally) {
        self.down.begin(grid);
        let (down, own) = (self.down.shares(), &mut self.tally.taken);
        self.plain.begin(down, wide, own, &mut tally.taken);
        self.crossing.begin(down, wide, own, &mut tally.taken);
        self.down.take(std::slice::from_mut(&mut self.tally));
    }

    /// Begins another round: finds who takes part, of all or of those who did in the last one.
    pub(super) fn count(&mut self, grid: &Grid, all: bool, wide: &[f32], tally: &mut Tally) {
        let (down, own) = (self.down.shares(), &mut self.tally.takers);
        self.plain.count(all, down, wide, own, &mut tally.takers);
        self.crossing.count(all, down, wide, own, &mut tally.takers);
        self.down.divide(grid, std::slice::from_mut(&mut self.tally));
    }

    /// Ends that round.
    pub(super) fn add(&mut self, wide: &[f32], tally: &mut Tally) {
        let (down, own) = (self.down.shares(), &mut self.tally.taken);
        self.plain.add(down, wide, own, &mut tally.taken);
        self.crossing.add(down, wide, own, &mut tally.taken);
        self.down.take(std::slice::from_mut(&mut self.tally));
    }

    /// Moves everybody by its rate.
    pub(super) fn advance(&mut self) {
        self.plain.advance();
        self.crossing.advance();
    }

    /// One that ended with the step, the last one of its list first, and what it owes.
    pub(super) fn pop_ended(&mut self, crosses: bool) -> Option<(u32, f64)> {
        if crosses { self.crossing.ended.pop() } else { self.plain.ended.pop() }
    }
}
