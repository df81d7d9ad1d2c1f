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

/// A transfer that could take more after a round, and what the next one needs of it.
#[derive(Clone, Copy, Debug, Default)]
struct Open {
    index: u32,
    from: u32,
    to: u32,
    /// What it has left to move beyond its rate.
    left: f32,
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
    /// Transfers that could take more after a round, which are the first so many of these.
    open: Vec<Open>,
    open_count: usize,
    /// Those that end with the step and what they owe, by index, ascending. Empty between steps.
    ends: Vec<(u32, f64)>,
}

impl<const SHARED: usize> Flows<SHARED> {
    fn push(&mut self, flow: Flow<SHARED>, to: u16, bytes: u32) {
        self.numbers.push(flow.number);
        self.from.push(flow.from);
        self.to.push(to);
        self.shared.push(flow.shared);
        self.left.push(f64::from(bytes));
        self.rate.push(0.0);
    }

    /// Forgets a transfer. Returns what it was, its receiver, and whose index is that one now.
    fn remove(&mut self, index: usize) -> (Flow<SHARED>, u16, Option<u32>) {
        self.left.swap_remove(index);
        self.rate.swap_remove(index);
        let (number, from) = (self.numbers.swap_remove(index), self.from.swap_remove(index));
        let (to, shared) = (self.to.swap_remove(index), self.shared.swap_remove(index));
        (Flow { number, from, shared }, to, self.numbers.get(index).copied())
    }

    fn heap_bytes(&self) -> usize {
        let each = size_of::<Flow<SHARED>>() + size_of::<u16>() + size_of::<f64>() + size_of::<f32>();
        self.numbers.capacity() * each
            + self.open.capacity() * size_of::<Open>()
            + self.ends.capacity() * size_of::<(u32, f64)>()
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

    /// Finds who of all can take more.
    fn count_all(&mut self, down: &[f32], wide: &[f32], own: &mut [i32], takers: &mut [i32]) {
        if self.open.len() < self.numbers.len() {
            self.open.resize(self.numbers.len(), Open::default());
        }
        let mut kept = 0;
        let ways = self.from.iter().zip(&self.to).zip(&self.shared);
        let flows = self.left.iter().zip(&self.rate).zip(ways);
        for (index, ((left, rate), ((from, to), shared))) in (0..).zip(flows) {
            let open =
                Open { index, from: *from, to: u32::from(*to), left: narrow(*left - f64::from(*rate)) };
            let takes = open.count(shared, down, wide, own, takers);
            self.open[kept] = open;
            kept += usize::from(takes);
        }
        self.open_count = kept;
    }

    /// Finds who can take more of those who could before.
    fn count_open(&mut self, down: &[f32], wide: &[f32], own: &mut [i32], takers: &mut [i32]) {
        let mut kept = 0;
        let list = &mut self.open[..self.open_count];
        for place in 0..list.len() {
            let open = list[place];
            let takes = open.count(&self.shared[open.index as usize], down, wide, own, takers);
            list[kept] = open;
            kept += usize::from(takes);
        }
        self.open_count = kept;
    }

    /// Gives more to those who can take it.
    fn add(&mut self, down: &[f32], wide: &[f32], own: &mut [f64], taken: &mut [f64]) {
        for open in &mut self.open[..self.open_count] {
            let shared = &self.shared[open.index as usize];
            let mut more = wide[open.from as usize].min(down[open.to as usize]).min(open.left);
            for link in shared {
                more = more.min(wide[*link as usize]);
            }
            self.rate[open.index as usize] += more;
            open.left -= more;
            for link in shared {
                taken[*link as usize] += f64::from(more);
            }
            taken[open.from as usize] += f64::from(more);
            own[open.to as usize] += f64::from(more);
        }
    }

    /// Moves everybody by its rate and finds those that end.
    fn advance(&mut self) {
        for (index, (left, rate)) in (0..).zip(self.left.iter_mut().zip(&self.rate)) {
            *left -= f64::from(*rate);
            if *left <= NOTHING.max(f64::from(*rate * HALF)) {
                self.ends.push((index, left.max(0.0)));
            }
        }
    }
}

impl Open {
    /// Counts it where it takes part, if there is more on its whole way. Without a branch: that is as good as random.
    fn count<const SHARED: usize>(
        &self,
        shared: &[u32; SHARED],
        down: &[f32],
        wide: &[f32],
        own: &mut [i32],
        takers: &mut [i32],
    ) -> bool {
        let (from, to) = (self.from as usize, self.to as usize);
        let mut takes = (wide[from] > 0.0) & (down[to] > 0.0) & (self.left > 0.0);
        for link in shared {
            takes &= wide[*link as usize] > 0.0;
        }
        let one = i32::from(takes);
        takers[from] += one;
        own[to] += one;
        for link in shared {
            takers[*link as usize] += one;
        }
        takes
    }
}

/// A transfer that begins with the next step.
#[derive(Clone, Copy, Debug)]
struct Start<const SHARED: usize> {
    flow: Flow<SHARED>,
    crosses: bool,
    to: u16,
    bytes: u32,
}

/// A transfer that is over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gone<const SHARED: usize> {
    pub(super) number: u32,
    pub(super) from: u32,
    /// If it passed shared links.
    pub(super) shared: Option<[u32; SHARED]>,
    /// What its links owe.
    pub(super) owed: f64,
    /// Its index, and the number of the transfer that has it now.
    pub(super) index: u32,
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
    /// Those that begin with the next step, apart: so each thread enters those of its blocks.
    starts: Vec<Start<SHARED>>,
    /// How many transfers there are in each list with these.
    counts: [u32; 2],
    /// Those that ended with the last step.
    gone: Vec<Gone<SHARED>>,
}

impl<const SHARED: usize> Block<SHARED> {
    /// Downlinks with these capacities.
    pub(super) fn new(grid: &Grid, rates: &[f64]) -> Self {
        Self {
            down: Side::new(grid, rates.iter()),
            tally: Tally::new(rates.len()),
            plain: Flows::default(),
            crossing: Flows::default(),
            starts: Vec::new(),
            counts: [0; 2],
            gone: Vec::new(),
        }
    }

    /// Begins a transfer with the next step and returns its index.
    pub(super) fn push(&mut self, crosses: bool, flow: Flow<SHARED>, to: u32, bytes: u32) -> u32 {
        self.starts.push(Start { flow, crosses, to: u16::try_from(to).unwrap_or(u16::MAX), bytes });
        let count = &mut self.counts[usize::from(crosses)];
        *count += 1;
        *count - 1
    }

    /// Enters those that begin.
    fn enter(&mut self) {
        for Start { flow, crosses, to, bytes } in self.starts.drain(..) {
            self.down.join(usize::from(to));
            if crosses {
                self.crossing.push(flow, to, bytes);
            } else {
                self.plain.push(Flow { number: flow.number, from: flow.from, shared: [] }, to, bytes);
            }
        }
    }

    /// What a transfer has left to move.
    pub(super) fn left(&self, crosses: bool, index: u32, number: u32) -> f64 {
        let left = if crosses { &self.crossing.left } else { &self.plain.left };
        let begins = || self.starts.iter().find(|start| start.flow.number == number);
        left.get(index as usize)
            .copied()
            .unwrap_or_else(|| begins().map_or(0.0, |start| f64::from(start.bytes)))
    }

    /// Forgets a transfer; its links owe what is given.
    pub(super) fn remove(&mut self, crosses: bool, index: u32, owed: f64) -> Gone<SHARED> {
        self.enter();
        let at = index as usize;
        let (number, from, shared, to, moved) = if crosses {
            let (flow, to, moved) = self.crossing.remove(at);
            (flow.number, flow.from, Some(flow.shared), to, moved)
        } else {
            let (flow, to, moved) = self.plain.remove(at);
            (flow.number, flow.from, None, to, moved)
        };
        self.down.leave(usize::from(to), owed);
        self.counts[usize::from(crosses)] -= 1;
        Gone { number, from, shared, owed, index, moved }
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.down.heap_bytes()
            + self.tally.heap_bytes()
            + self.plain.heap_bytes()
            + self.crossing.heap_bytes()
            + self.starts.capacity() * size_of::<Start<SHARED>>()
            + self.gone.capacity() * size_of::<Gone<SHARED>>()
    }

    /// Those that could take more after the last round.
    pub(super) fn open(&self) -> usize {
        self.plain.open_count + self.crossing.open_count
    }

    /// Begins a step, with the first round.
    pub(super) fn begin(&mut self, grid: &Grid, wide: &[f32], tally: &mut Tally) {
        self.enter();
        self.down.whole(&mut self.tally).begin(grid);
        let (down, own) = (self.down.shares(), &mut self.tally.taken);
        self.plain.begin(down, wide, own, &mut tally.taken);
        self.crossing.begin(down, wide, own, &mut tally.taken);
        self.down.whole(&mut self.tally).take();
    }

    /// Begins another round: finds who takes part, of all or of those who did in the last one.
    pub(super) fn count(&mut self, grid: &Grid, all: bool, wide: &[f32], tally: &mut Tally) {
        let (down, own) = (self.down.shares(), &mut self.tally.takers);
        if all {
            self.plain.count_all(down, wide, own, &mut tally.takers);
            self.crossing.count_all(down, wide, own, &mut tally.takers);
        } else {
            self.plain.count_open(down, wide, own, &mut tally.takers);
            self.crossing.count_open(down, wide, own, &mut tally.takers);
        }
        self.down.whole(&mut self.tally).divide(grid);
    }

    /// Ends that round.
    pub(super) fn add(&mut self, wide: &[f32], tally: &mut Tally) {
        let (down, own) = (self.down.shares(), &mut self.tally.taken);
        self.plain.add(down, wide, own, &mut tally.taken);
        self.crossing.add(down, wide, own, &mut tally.taken);
        self.down.whole(&mut self.tally).take();
    }

    /// Moves everybody by its rate and forgets those that end, in each list the last one first.
    pub(super) fn advance(&mut self) {
        self.plain.advance();
        self.crossing.advance();
        for crosses in [false, true] {
            let list = if crosses { &mut self.crossing.ends } else { &mut self.plain.ends };
            let mut ends = std::mem::take(list);
            for (index, owed) in ends.drain(..).rev() {
                let gone = self.remove(crosses, index, owed);
                self.gone.push(gone);
            }
            *if crosses { &mut self.crossing.ends } else { &mut self.plain.ends } = ends;
        }
    }

    /// Those that ended with the last step, for whoever takes them out.
    pub(super) fn gone(&mut self) -> std::vec::Drain<'_, Gone<SHARED>> {
        self.gone.drain(..)
    }
}
