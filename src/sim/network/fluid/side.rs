//! Links side by side, field by field, and what is summed up about them in a round.

use super::super::{BUSY, Usage};
use smallvec::{SmallVec, smallvec};

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
    fn share(&self, left: f64, takers: i32) -> f32 {
        let share = self.round(left / f64::from(takers.max(1)));
        let least = if left > 0.0 { self.unit } else { 0.0 };
        narrow(if share > least { share } else { least })
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
    /// How many can take more. Signed, for processors turn such numbers into floats faster.
    pub(super) takers: Vec<i32>,
}

impl Tally {
    /// Of so many links.
    pub(super) fn new(links: usize) -> Self {
        Self { taken: vec![0.0; links], takers: vec![0; links] }
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.taken.capacity() * (size_of::<f64>() + size_of::<u32>())
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
    flows: Vec<i32>,
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

    pub(super) fn heap_bytes(&self) -> usize {
        let each = 3 * size_of::<f64>() + size_of::<u32>() + size_of::<f32>() + size_of::<Usage>();
        self.share.capacity() * each
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

    /// All links, so many in a stretch, each with what the tallies have of them.
    pub(super) fn stretches<'a>(&'a mut self, tallies: &'a mut [Tally], length: usize) -> Vec<Stretch<'a>> {
        let limited = self.limited;
        let mut taken: Vec<_> = Vec::with_capacity(tallies.len());
        let mut takers: Vec<_> = Vec::with_capacity(tallies.len());
        for tally in tallies {
            tally.taken[limited..].fill(0.0);
            tally.takers[limited..].fill(0);
            taken.push(tally.taken[..limited].chunks_mut(length));
            takers.push(tally.takers[..limited].chunks_mut(length));
        }
        let shares = self.share[..limited].chunks_mut(length);
        let owed = self.owed[..limited].chunks_mut(length);
        let own = self.capacity.chunks(length).zip(self.flows[..limited].chunks(length));
        let moving = self.left.chunks_mut(length).zip(self.usage.chunks_mut(length));
        let all = own.zip(moving).zip(shares.zip(owed));
        let stretch = |(((capacity, flows), (left, usage)), (share, owed))| Stretch {
            capacity,
            left,
            owed,
            flows,
            share,
            usage,
            taken: taken.iter_mut().filter_map(Iterator::next).collect(),
            takers: takers.iter_mut().filter_map(Iterator::next).collect(),
        };
        all.map(stretch).collect()
    }

    /// All links in one stretch.
    pub(super) fn whole<'a>(&'a mut self, tally: &'a mut Tally) -> Stretch<'a> {
        let limited = self.limited;
        Stretch {
            capacity: &self.capacity,
            left: &mut self.left,
            owed: &mut self.owed[..limited],
            flows: &self.flows[..limited],
            share: &mut self.share[..limited],
            usage: &mut self.usage,
            taken: smallvec![&mut tally.taken[..limited]],
            takers: smallvec![&mut tally.takers[..limited]],
        }
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

/// Some links, and what each tally has of them.
#[derive(Debug)]
pub(super) struct Stretch<'a> {
    capacity: &'a [f64],
    left: &'a mut [f64],
    owed: &'a mut [f64],
    flows: &'a [i32],
    share: &'a mut [f32],
    usage: &'a mut [Usage],
    taken: SmallVec<[&'a mut [f64]; 2]>,
    takers: SmallVec<[&'a mut [i32]; 2]>,
}

impl Stretch<'_> {
    /// Begins a step: all transfers share the whole but for what is owed.
    pub(super) fn begin(&mut self, grid: &Grid) {
        let links = self.left.iter_mut().zip(self.usage.iter_mut()).zip(self.capacity);
        for ((left, usage), capacity) in links {
            add_to(usage, *left, *capacity);
            *left = *capacity;
        }
        let links = self.left.iter_mut().zip(self.owed.iter_mut());
        for ((left, owed), (share, flows)) in links.zip(self.share.iter_mut().zip(self.flows)) {
            let paid = owed.min(*left);
            *owed -= paid;
            *left -= paid;
            *share = grid.share(*left, *flows);
        }
    }

    /// Ends a round: takes away what transfers took, and says of which links there is more.
    pub(super) fn take(&mut self) {
        for taken in &mut self.taken {
            for (left, taken) in self.left.iter_mut().zip(taken.iter_mut()) {
                *left -= *taken;
                *taken = 0.0;
            }
        }
        for ((left, capacity), share) in self.left.iter().zip(self.capacity).zip(self.share.iter_mut()) {
            *share = narrow(*left - *capacity * FULL);
        }
    }

    /// Begins a round: divides what is left among those that can take more.
    pub(super) fn divide(&mut self, grid: &Grid) {
        let Some((first, others)) = self.takers.split_first_mut() else { return };
        for other in others {
            for (takers, more) in first.iter_mut().zip(other.iter_mut()) {
                *takers += *more;
                *more = 0;
            }
        }
        for ((left, takers), share) in self.left.iter().zip(first.iter_mut()).zip(self.share.iter_mut()) {
            *share = grid.share(*left, *takers);
            *takers = 0;
        }
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
