//! Time-stepped fluid: transfers share links like water, in steps.
//!
//! In each step every transfer gets a rate by a few rounds of water-filling: each link divides what it has left among the
//! transfers that can take more, a transfer takes the smallest of its shares and never more than it has left to move, and what
//! a transfer could not take is divided again in the next round. A transfer ends with the step that is nearest to its end: one
//! always at the end of the step in which the last byte moves would be half a step late on average, and so would all that waits
//! for it. What such a transfer still had to move is taken from its links in the next step.
//!
//! How far this is from exact max-min fairness is shown by tests (`oracle_tests`).

use super::links::Path;
use super::{BUSY, Network, Usage};

/// Rounds of water-filling between the ends' own links.
const ROUNDS: usize = 3;
/// The same with shared links, in which more transfers meet that are held up elsewhere: what each round leaves is less.
const SHARED_ROUNDS: usize = 8;
/// Below this share of its capacity a link counts as full.
const FULL: f32 = 1e-3;
/// More than any link carries in a step, and far from where the arithmetic ends.
const NO_LIMIT: f32 = 1e30;
/// The part of a step that a transfer may be from its end to end with it.
const HALF: f32 = 0.5;
/// Bytes below which nothing is left to move: the arithmetic has 24 bits.
const NOTHING: f32 = 0.5;

/// All links and transfers, of which each passes at most `SHARED` shared links. What a step reads of a transfer lies in arrays of
/// its own.
#[derive(Debug)]
pub(super) struct Fluid<const SHARED: usize> {
    /// By number of the transfer: its index in what follows.
    indices: Vec<u32>,
    numbers: Vec<u32>,
    ends: Vec<(u32, u32)>,
    /// Counted from the first shared link; who passes fewer passes the last link instead, which has no limit.
    shared: Vec<[u32; SHARED]>,
    left: Vec<f32>,
    rate: Vec<f32>,
    /// Transfers that could take more after a round, by index.
    open: Vec<u32>,
    links: Vec<Link>,
    /// By link, without what it did in the last step.
    usage: Vec<Usage>,
    /// The number of ends.
    count: usize,
}

/// One link: all that a step needs of it, side by side.
#[derive(Clone, Copy, Debug)]
struct Link {
    capacity: f32,
    /// Not given to a transfer yet.
    left: f32,
    /// What each transfer may take in this round.
    share: f32,
    /// Transfers that take part in this round.
    takers: f32,
    /// Transfers altogether.
    flows: f32,
    /// What was still to move of transfers that ended with the last step.
    owed: f32,
}

impl Link {
    fn new(capacity: f32) -> Self {
        Self { capacity, left: capacity, share: 0.0, takers: 0.0, flows: 0.0, owed: 0.0 }
    }

    /// Begins a step: all transfers share the whole but for what is owed.
    fn begin(&mut self) {
        let paid = self.owed.min(self.capacity);
        self.owed -= paid;
        self.left = self.capacity - paid;
        self.share = self.left / self.flows.max(1.0);
    }

    /// Ends a round: nobody takes part in the next one yet.
    fn close(&mut self) {
        self.takers = 0.0;
    }

    fn divide(&mut self) {
        self.share = self.left / self.takers.max(1.0);
    }

    fn has_more(&self) -> bool {
        self.left > self.capacity * FULL
    }

    /// What it did in the last step.
    fn add_to(&self, usage: &mut Usage) {
        let used = f64::from(self.capacity - self.left);
        usage.bytes += used;
        let busy = (used > 0.0) & (used >= f64::from(self.capacity) * BUSY);
        usage.busy_steps += f64::from(u8::from(busy));
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the model's precision")]
fn narrow(value: f64) -> f32 {
    value as f32
}

fn short(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

impl<const SHARED: usize> Fluid<SHARED> {
    /// Links with nothing on them, of which the first are the uplinks of `ends` ends and the next their downlinks.
    pub(super) fn new(rates: &[f64], ends: u32) -> Self {
        let none = (SHARED > 0).then_some(NO_LIMIT);
        let links: Vec<Link> = rates.iter().map(|rate| narrow(*rate)).chain(none).map(Link::new).collect();
        Self {
            indices: Vec::new(),
            numbers: Vec::new(),
            ends: Vec::new(),
            shared: Vec::new(),
            left: Vec::new(),
            rate: Vec::new(),
            open: Vec::new(),
            usage: vec![Usage::default(); links.len()],
            links,
            count: ends as usize,
        }
    }

    /// Adds to the number of transfers on each link that the one at `index` passes, and to what each owes.
    fn count_at(&mut self, index: usize, more: f32, owed: f32) {
        let (from, to) = self.ends[index];
        let shared = self.shared[index].map(|link| 2 * self.count + link as usize);
        for link in [from as usize, self.count + to as usize].into_iter().chain(shared) {
            self.links[link].flows += more;
            self.links[link].owed += owed;
        }
    }

    /// Forgets the transfer at `index`, whose place the last one takes. Its links owe what is given.
    fn remove(&mut self, index: usize, owed: f32) -> u32 {
        self.count_at(index, -1.0, owed);
        let number = self.numbers.swap_remove(index);
        self.ends.swap_remove(index);
        self.shared.swap_remove(index);
        self.left.swap_remove(index);
        self.rate.swap_remove(index);
        if let Some(moved) = self.numbers.get(index) {
            self.indices[*moved as usize] = short(index);
        }
        number
    }

    fn fill(&mut self) {
        for (link, usage) in self.links.iter_mut().zip(&mut self.usage) {
            link.add_to(usage);
            link.begin();
        }
        let (up, others) = self.links.split_at_mut(self.count);
        let (down, between) = others.split_at_mut(self.count);
        for (index, rate) in self.rate.iter_mut().enumerate() {
            let (from, to) = self.ends[index];
            let (up, down) = (&mut up[from as usize], &mut down[to as usize]);
            *rate = up.share.min(down.share).min(self.left[index]);
            for link in self.shared[index] {
                *rate = rate.min(between[link as usize].share);
            }
            for link in self.shared[index] {
                between[link as usize].left -= *rate;
            }
            up.left -= *rate;
            down.left -= *rate;
        }
        self.open.clear();
        self.open.extend(0..short(self.ends.len()));
        let rounds = if SHARED == 0 { ROUNDS } else { SHARED_ROUNDS };
        for _ in 1..rounds {
            if self.open.is_empty() {
                break;
            }
            self.fill_again();
        }
    }

    /// One more round.
    fn fill_again(&mut self) {
        self.links.iter_mut().for_each(Link::close);
        let (up, others) = self.links.split_at_mut(self.count);
        let (down, between) = others.split_at_mut(self.count);
        let mut kept = 0;
        for place in 0..self.open.len() {
            let flow = self.open[place];
            let index = flow as usize;
            let (from, to) = self.ends[index];
            let (up, down) = (&mut up[from as usize], &mut down[to as usize]);
            let mut takes = up.has_more() & down.has_more() & (self.rate[index] < self.left[index]);
            for link in self.shared[index] {
                takes &= between[link as usize].has_more();
            }
            // Without a branch: which transfers take part is as good as random.
            let one = f32::from(u8::from(takes));
            up.takers += one;
            down.takers += one;
            for link in self.shared[index] {
                between[link as usize].takers += one;
            }
            self.open[kept] = flow;
            kept += usize::from(takes);
        }
        self.open.truncate(kept);
        up.iter_mut().chain(down.iter_mut()).chain(between.iter_mut()).for_each(Link::divide);
        for flow in &self.open {
            let index = *flow as usize;
            let (from, to) = self.ends[index];
            let (up, down) = (&mut up[from as usize], &mut down[to as usize]);
            let mut more = up.share.min(down.share).min(self.left[index] - self.rate[index]);
            for link in self.shared[index] {
                more = more.min(between[link as usize].share);
            }
            for link in self.shared[index] {
                between[link as usize].left -= more;
            }
            self.rate[index] += more;
            up.left -= more;
            down.left -= more;
        }
    }
}

impl<const SHARED: usize> Network for Fluid<SHARED> {
    fn start(&mut self, number: u32, path: &Path, bytes: u32) {
        let ends = short(self.count);
        let none = short(self.links.len().saturating_sub(2 * self.count + 1));
        let mut shared = [none; SHARED];
        for (place, link) in shared.iter_mut().zip(path.shared()) {
            *place = link - 2 * ends;
        }
        let (first, last) = (path.links()[0], path.links()[path.links().len() - 1]);
        if self.indices.len() <= number as usize {
            self.indices.resize(number as usize + 1, 0);
        }
        self.indices[number as usize] = short(self.ends.len());
        self.numbers.push(number);
        self.ends.push((first, last - ends));
        self.shared.push(shared);
        self.left.push(bytes as f32);
        self.rate.push(0.0);
        self.count_at(self.ends.len() - 1, 1.0, 0.0);
    }

    fn stop(&mut self, number: u32) {
        self.remove(self.indices[number as usize] as usize, 0.0);
    }

    fn step(&mut self, ended: &mut Vec<u32>) {
        self.fill();
        let mut index = 0;
        while index < self.ends.len() {
            self.left[index] -= self.rate[index];
            let left = self.left[index];
            if left <= NOTHING.max(self.rate[index] * HALF) {
                ended.push(self.remove(index, left.max(0.0)));
            } else {
                index += 1;
            }
        }
    }

    fn set_rate(&mut self, link: u32, rate: f64) {
        let (link, usage) = (&mut self.links[link as usize], &mut self.usage[link as usize]);
        link.add_to(usage);
        link.capacity = narrow(rate);
        link.left = link.capacity;
    }

    fn is_busy(&self, link: u32) -> bool {
        let link = &self.links[link as usize];
        link.flows > 0.0 && f64::from(link.left) <= f64::from(link.capacity) * (1.0 - BUSY)
    }

    fn usage(&self, link: u32) -> Usage {
        let mut usage = self.usage[link as usize];
        let link = &self.links[link as usize];
        link.add_to(&mut usage);
        usage.bytes += f64::from(link.owed);
        usage
    }

    fn heap_bytes(&self) -> usize {
        let numbers = self.indices.capacity() + self.numbers.capacity() + self.open.capacity();
        numbers * size_of::<u32>()
            + self.ends.capacity() * size_of::<(u32, u32)>()
            + self.shared.capacity() * size_of::<[u32; SHARED]>()
            + (self.left.capacity() + self.rate.capacity()) * size_of::<f32>()
            + self.links.capacity() * (size_of::<Link>() + size_of::<Usage>())
    }
}
