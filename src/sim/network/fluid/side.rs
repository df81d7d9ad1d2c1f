//! Links side by side, field by field, and what is summed up about them in a round.

use super::super::{BUSY, Usage};

/// Below this share of its capacity a link counts as full.
const FULL: f64 = 1e-3;
/// Units that all uplinks together have: what passes a link stays below 2^51, and sums of it are exact.
const UNITS: f64 = (1_u64 << 49) as f64;

/// The unit of which all that moves is a multiple.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    unit: f64,
    /// A number so large that what is added to it is rounded to whole units.
    magic: f64,
    /// As much as a link may have at most.
    most: f64,
}

impl Grid {
    /// For what leaves these uplinks.
    pub(super) fn new(up: &[f64]) -> Self {
        let total: f64 = up.iter().sum();
        let mut unit = 1.0;
        while unit * UNITS < total {
            unit *= 2.0;
        }
        while unit * UNITS >= 2.0 * total.max(f64::MIN_POSITIVE * UNITS) {
            unit /= 2.0;
        }
        Self { unit, magic: unit * 1.5 * (1_u64 << 52) as f64, most: unit * (1_u64 << 51) as f64 }
    }

    /// The nearest multiple, of numbers up to the most that a link may have.
    fn round(&self, value: f64) -> f64 {
        (value + self.magic) - self.magic
    }

    /// What each of so many gets of what a link has left: something, if there is anything.
    fn share(&self, left: f64, takers: u32) -> f32 {
        let share = self.round(left / f64::from(takers.max(1)));
        narrow(share.max(if left > 0.0 { self.unit } else { 0.0 }))
    }

    fn capacity(&self, rate: f64) -> f64 {
        self.round(rate.min(self.most)).max(if rate > 0.0 { self.unit } else { 0.0 })
    }
}

/// Rounded to 24 bits, a multiple of the unit remains one.
#[expect(clippy::cast_possible_truncation, reason = "the model's precision")]
pub(super) fn narrow(value: f64) -> f32 {
    value as f32
}

/// What one round sums up, by link.
#[derive(Debug)]
pub(super) struct Tally {
    /// What transfers take.
    pub(super) taken: Vec<f64>,
    /// How many can take more.
    pub(super) takers: Vec<u32>,
}

impl Tally {
    /// Of so many links.
    pub(super) fn new(links: usize) -> Self {
        Self { taken: vec![0.0; links], takers: vec![0; links] }
    }
}

/// Links.
#[derive(Debug)]
pub(super) struct Side {
    /// In a step.
    capacity: Vec<f64>,
    /// Not given to a transfer yet, in this step.
    left: Vec<f64>,
    /// What was still to move of transfers that ended with the last step.
    owed: Vec<f64>,
    /// Transfers.
    flows: Vec<u32>,
    /// What each transfer may take in this round; between rounds whether there is more: what is above zero.
    share: Vec<f32>,
    /// Without what it did in the last step.
    usage: Vec<Usage>,
    /// Those that have a limit, which come first.
    limited: usize,
}

impl Side {
    /// Links with these capacities.
    pub(super) fn new<'a>(grid: &Grid, rates: impl Iterator<Item = &'a f64>) -> Self {
        let capacity: Vec<f64> = rates.map(|rate| grid.capacity(*rate)).collect();
        let limited = capacity.len();
        Self {
            left: capacity.clone(),
            capacity,
            owed: vec![0.0; limited],
            flows: vec![0; limited],
            share: vec![0.0; limited],
            usage: vec![Usage::default(); limited],
            limited,
        }
    }

    /// One more that gives everybody so much.
    pub(super) fn push_without_limit(&mut self, share: f32) {
        self.share.push(share);
        self.owed.push(0.0);
        self.flows.push(0);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.share.len()
    }

    /// What each transfer may take in this round, by link.
    pub(super) fn shares(&self) -> &[f32] {
        &self.share
    }

    /// Counts one more transfer.
    pub(super) fn join(&mut self, link: usize) {
        self.flows[link] += 1;
    }

    /// Counts one less. What it had still to move is owed.
    pub(super) fn leave(&mut self, link: usize, owed: f64) {
        self.flows[link] -= 1;
        self.owed[link] += owed;
    }

    /// Begins a step: all transfers share the whole but for what is owed.
    pub(super) fn begin(&mut self, grid: &Grid) {
        let links = self.left.iter_mut().zip(&mut self.usage).zip(&self.capacity);
        for ((left, usage), capacity) in links {
            add_to(usage, *left, *capacity);
            *left = *capacity;
        }
        let owed = self.owed[..self.limited].iter_mut();
        for ((left, owed), (share, flows)) in
            self.left.iter_mut().zip(owed).zip(self.share.iter_mut().zip(&self.flows))
        {
            let paid = owed.min(*left);
            *owed -= paid;
            *left -= paid;
            *share = grid.share(*left, *flows);
        }
    }

    /// Ends a round: takes away what transfers took, and says of which links there is more.
    pub(super) fn take(&mut self, tallies: &mut [Tally]) {
        for tally in tallies {
            for (left, taken) in self.left.iter_mut().zip(&mut tally.taken) {
                *left -= *taken;
                *taken = 0.0;
            }
            tally.taken[self.limited..].fill(0.0);
        }
        for ((left, capacity), share) in self.left.iter().zip(&self.capacity).zip(&mut self.share) {
            *share = narrow(*left - *capacity * FULL);
        }
    }

    /// Begins a round: divides what is left among those that can take more.
    pub(super) fn divide(&mut self, grid: &Grid, tallies: &mut [Tally]) {
        let Some((first, others)) = tallies.split_first_mut() else { return };
        for other in others {
            for (takers, more) in first.takers.iter_mut().zip(&mut other.takers) {
                *takers += *more;
                *more = 0;
            }
        }
        for ((left, takers), share) in self.left.iter().zip(&mut first.takers).zip(&mut self.share) {
            *share = grid.share(*left, *takers);
            *takers = 0;
        }
        first.takers[self.limited..].fill(0);
    }

    /// From now on, a link has this capacity.
    pub(super) fn set_rate(&mut self, grid: &Grid, link: usize, rate: f64) {
        add_to(&mut self.usage[link], self.left[link], self.capacity[link]);
        self.capacity[link] = grid.capacity(rate);
        self.left[link] = self.capacity[link];
    }

    /// Whether a link is full and somebody passes it.
    pub(super) fn is_busy(&self, link: usize) -> bool {
        self.flows[link] > 0 && self.left[link] <= self.capacity[link] * (1.0 - BUSY)
    }

    /// What a link did; that what is owed was carried is anticipated.
    pub(super) fn usage(&self, link: usize) -> Usage {
        let mut usage = self.usage[link];
        add_to(&mut usage, self.left[link], self.capacity[link]);
        usage.bytes += self.owed[link];
        usage
    }
}

/// Adds what a link did in a step.
fn add_to(usage: &mut Usage, left: f64, capacity: f64) {
    let used = capacity - left;
    usage.bytes += used;
    let busy = (used > 0.0) & (used >= capacity * BUSY);
    usage.busy_steps += f64::from(u8::from(busy));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_rounded_to_the_grid_can_be_summed_up_in_any_order() {
        for up in [vec![312_500.0; 100_000], vec![0.03; 7], vec![1e9, 1e-3, 5.0], vec![0.0]] {
            let grid = Grid::new(&up);
            let total: f64 = up.iter().sum();
            assert!(total <= grid.unit * UNITS && grid.most >= 2.0 * total, "{grid:?}");
            let shares: Vec<f64> = (1..2_000).map(|takers| f64::from(grid.share(up[0], takers))).collect();
            let sum: f64 = shares.iter().sum();
            assert_eq!(sum.to_bits(), shares.iter().rev().sum::<f64>().to_bits());
            for (share, takers) in shares.iter().zip(1..) {
                assert_eq!(share % grid.unit, 0.0);
                let right = up[0] / f64::from(takers);
                assert!((share - right).abs() <= right * 1e-7 + grid.unit, "{share} instead of {right}");
                assert!(*share > 0.0 || up[0] == 0.0, "nobody gets nothing of something");
            }
        }
    }
}
