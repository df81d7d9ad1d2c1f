//! Exact max-min fairness, from one event to the next: what the other models are held against.
//!
//! Rates are those of which none can grow unless one that is not larger shrinks; they are found by progressive filling
//! (Bertsekas and Gallager, "Data Networks", 2nd edition, 1992, section 6.5.2): again and again the link that has the least for
//! each of its open transfers settles them. They hold until a transfer begins or ends or a link changes; within a step as many
//! transfers end, and rates are found anew, as the time asks for. Each of these costs as much as there are transfers: it is a
//! model for a few thousand nodes.

use super::links::Path;
use super::{BUSY, Network, Usage};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Bytes below which nothing is left to move: far above what the arithmetic loses.
const NOTHING: f64 = 1e-3;

#[derive(Clone, Copy, Debug)]
struct Transfer {
    number: u32,
    path: Path,
    left: f64,
    rate: f64,
}

/// All links and transfers.
#[derive(Debug)]
pub(super) struct Exact {
    capacity: Vec<f64>,
    /// By link, what passes it at the rates that hold.
    used: Vec<f64>,
    /// By link, until `since`.
    usage: Vec<Usage>,
    transfers: Vec<Transfer>,
    /// By number of the transfer: its index.
    indices: Vec<u32>,
    /// In steps.
    now: f64,
    /// Until when transfers were moved.
    since: f64,
    /// When the first of them ends.
    next: f64,
    /// Whether the rates hold.
    settled: bool,
    filling: Filling,
}

/// What progressive filling needs, kept from one time to the next for its memory.
#[derive(Debug, Default)]
struct Filling {
    /// By link, transfers that are not settled.
    open: Vec<u32>,
    /// By link, what is not given to a transfer yet.
    left: Vec<f64>,
    /// By link, where its transfers begin in `members`.
    first: Vec<u32>,
    members: Vec<u32>,
    /// By transfer.
    settled: Vec<bool>,
    /// Links by what they have for each open transfer, when they were put in line. It never becomes less.
    line: BinaryHeap<Reverse<(u64, u32)>>,
}

impl Filling {
    /// Gives each transfer its rate.
    fn fill(&mut self, capacity: &[f64], transfers: &mut [Transfer]) {
        self.list(capacity, transfers);
        while let Some(Reverse((share, link))) = self.line.pop() {
            let at = link as usize;
            if self.open[at] == 0 {
                continue;
            }
            let now = self.left[at].max(0.0) / f64::from(self.open[at]);
            if now.to_bits() > share {
                self.line.push(Reverse((now.to_bits(), link)));
                continue;
            }
            for place in self.first[at]..self.first[at + 1] {
                let member = self.members[place as usize] as usize;
                if std::mem::replace(&mut self.settled[member], true) {
                    continue;
                }
                transfers[member].rate = now;
                for link in transfers[member].path.links() {
                    self.left[*link as usize] -= now;
                    self.open[*link as usize] -= 1;
                }
            }
        }
    }

    /// Notes the transfers of each link and puts the links in line.
    fn list(&mut self, capacity: &[f64], transfers: &[Transfer]) {
        self.left.clear();
        self.left.extend_from_slice(capacity);
        self.open.clear();
        self.open.resize(capacity.len(), 0);
        self.settled.clear();
        self.settled.resize(transfers.len(), false);
        for link in transfers.iter().flat_map(|transfer| transfer.path.links()) {
            self.open[*link as usize] += 1;
        }
        self.first.clear();
        self.first.push(0);
        let mut total = 0;
        for open in &self.open {
            total += open;
            self.first.push(total);
        }
        self.members.clear();
        self.members.resize(total as usize, 0);
        // Counted down for each that is entered, and up again by what follows.
        for (member, transfer) in (0..).zip(transfers) {
            for link in transfer.path.links() {
                let at = *link as usize;
                self.open[at] -= 1;
                self.members[(self.first[at] + self.open[at]) as usize] = member;
            }
        }
        self.line.clear();
        for (link, open) in (0_u32..).zip(&mut self.open) {
            let at = link as usize;
            *open = self.first[at + 1] - self.first[at];
            if *open > 0 {
                self.line.push(Reverse(((self.left[at] / f64::from(*open)).to_bits(), link)));
            }
        }
    }
}

impl Exact {
    /// Links with nothing on them.
    pub(super) fn new(rates: &[f64]) -> Self {
        Self {
            capacity: rates.to_vec(),
            used: vec![0.0; rates.len()],
            usage: vec![Usage::default(); rates.len()],
            transfers: Vec::new(),
            indices: Vec::new(),
            now: 0.0,
            since: 0.0,
            next: f64::INFINITY,
            settled: true,
            filling: Filling::default(),
        }
    }

    fn settle(&mut self) {
        self.filling.fill(&self.capacity, &mut self.transfers);
        self.used.fill(0.0);
        self.next = f64::INFINITY;
        for transfer in &self.transfers {
            for link in transfer.path.links() {
                self.used[*link as usize] += transfer.rate;
            }
            if transfer.rate > 0.0 {
                self.next = self.next.min(self.since + transfer.left / transfer.rate);
            }
        }
        self.settled = true;
    }

    fn busy(&self, link: usize) -> bool {
        self.used[link] > 0.0 && self.used[link] >= self.capacity[link] * BUSY
    }

    /// Moves all transfers until then, in which none ends.
    fn advance(&mut self, until: f64) {
        let span = until - self.since;
        self.since = until;
        if span <= 0.0 {
            return;
        }
        for transfer in &mut self.transfers {
            transfer.left -= transfer.rate * span;
        }
        for link in 0..self.usage.len() {
            if self.used[link] > 0.0 {
                let busy_steps = if self.busy(link) { span } else { 0.0 };
                let usage = &mut self.usage[link];
                usage.bytes += self.used[link] * span;
                usage.busy_steps += busy_steps;
            }
        }
    }

    /// Brings everything to the present before something changes.
    fn unsettle(&mut self) {
        self.advance(self.now);
        self.settled = false;
    }

    fn remove(&mut self, index: usize) -> u32 {
        let gone = self.transfers.swap_remove(index);
        if let Some(moved) = self.transfers.get(index) {
            self.indices[moved.number as usize] = u32::try_from(index).unwrap_or(u32::MAX);
        }
        gone.number
    }
}

impl Network for Exact {
    fn start(&mut self, number: u32, path: &Path, bytes: u32) {
        self.unsettle();
        if self.indices.len() <= number as usize {
            self.indices.resize(number as usize + 1, 0);
        }
        self.indices[number as usize] = u32::try_from(self.transfers.len()).unwrap_or(u32::MAX);
        self.transfers.push(Transfer { number, path: *path, left: f64::from(bytes), rate: 0.0 });
    }

    fn stop(&mut self, number: u32) {
        self.unsettle();
        self.remove(self.indices[number as usize] as usize);
    }

    fn step(&mut self, ended: &mut Vec<u32>) {
        let until = self.now + 1.0;
        loop {
            if !self.settled {
                self.settle();
            }
            if self.next > until {
                break;
            }
            self.advance(self.next);
            self.settled = false;
            let mut index = 0;
            while index < self.transfers.len() {
                if self.transfers[index].left <= NOTHING {
                    ended.push(self.remove(index));
                } else {
                    index += 1;
                }
            }
        }
        self.now = until;
    }

    fn set_rate(&mut self, link: u32, rate: f64) {
        self.unsettle();
        self.capacity[link as usize] = rate;
    }

    fn is_busy(&self, link: u32) -> bool {
        self.busy(link as usize)
    }

    fn usage(&self, link: u32) -> Usage {
        let at = link as usize;
        let span = self.now - self.since;
        let busy_steps = if self.busy(at) { span } else { 0.0 };
        let Usage { bytes, busy_steps: before } = self.usage[at];
        Usage { bytes: bytes + self.used[at] * span, busy_steps: before + busy_steps }
    }

    fn left(&self, number: u32) -> f64 {
        self.transfers[self.indices[number as usize] as usize].left
    }

    fn heap_bytes(&self) -> usize {
        self.transfers.capacity() * (size_of::<Transfer>() + size_of::<u32>())
            + self.capacity.capacity() * (2 * size_of::<f64>() + size_of::<Usage>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Generator, Rng};
    use proptest::prelude::*;

    fn rates(capacity: &[f64], paths: &[Path]) -> (Vec<f64>, Vec<f64>) {
        let mut exact = Exact::new(capacity);
        for (number, path) in (0..).zip(paths) {
            exact.start(number, path, 1 << 30);
        }
        exact.settle();
        (exact.transfers.iter().map(|transfer| transfer.rate).collect(), exact.used)
    }

    #[test]
    fn transfers_share_as_it_was_worked_out_by_hand() {
        // 0 sends to 1 and 2, 3 sends to 2: the downlink of 2 is shared, 1 gets the rest of the uplink.
        let capacity = [10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 6.0, 10.0];
        let paths = [(0, 1), (0, 2), (3, 2)].map(|(from, to)| Path::plain(from, to, 4));
        assert_eq!(rates(&capacity, &paths).0, [7.0, 3.0, 3.0]);
    }

    #[test]
    fn several_transfers_end_within_a_step_each_at_its_time() {
        let mut exact = Exact::new(&[100.0, 0.0, 100.0, 100.0]);
        for (number, bytes) in [(0, 10), (1, 20), (2, 120)] {
            exact.start(number, &Path::plain(0, 1, 2), bytes);
        }
        // Thirds until 0.3, when 10 have moved of each; halves until 0.5; then the last one has all of it until 1.5.
        let mut ended = Vec::new();
        exact.step(&mut ended);
        assert_eq!(ended, [0, 1]);
        assert!((exact.next - 1.5).abs() < 1e-9, "{}", exact.next);
        exact.step(&mut ended);
        assert_eq!(ended, [0, 1, 2]);
        assert!((exact.usage(0).bytes - 150.0).abs() < 1e-6);
        assert!((exact.usage(0).busy_steps - 1.5).abs() < 1e-9, "{:?}", exact.usage(0));
    }

    proptest! {
        /// The definition itself: each transfer passes a link that is full and on which nobody has more.
        #[test]
        fn every_transfer_has_a_bottleneck(seed in any::<u64>()) {
            let mut rng = Generator::new(seed);
            let ends = 2 + rng.below(9);
            let capacity: Vec<f64> = (0..2 * ends).map(|_| (1 + rng.below(20)) as f64).collect();
            let paths: Vec<Path> = (0..1 + rng.below(60))
                .map(|_| {
                    let [from, to] = [0; 2].map(|_| u32::try_from(rng.below(ends)).unwrap());
                    Path::plain(from, to, u32::try_from(ends).unwrap())
                })
                .collect();
            let (rates, used) = rates(&capacity, &paths);
            for (path, rate) in paths.iter().zip(&rates) {
                let is_bottleneck = |link: &u32| {
                    let is_full = used[*link as usize] >= capacity[*link as usize] - 1e-9;
                    let passes = |other: &(&Path, &f64)| other.0.links().contains(link);
                    let most = paths.iter().zip(&rates).filter(passes).map(|other| *other.1).fold(0.0, f64::max);
                    is_full && *rate >= most - 1e-9
                };
                prop_assert!(path.links().iter().any(is_bottleneck), "{path:?} with {rate}");
            }
            for (used, capacity) in used.iter().zip(&capacity) {
                prop_assert!(*used <= capacity + 1e-9);
            }
        }
    }
}
