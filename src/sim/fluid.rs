//! The network: flows share links like water, in steps.
//!
//! In each step every flow gets a rate by three rounds of water-filling: each link divides what it has left among
//! the flows that can take more, a flow takes the smaller of its two shares and never more than it has left to move,
//! and what a flow could not take is divided again in the next round. A flow ends with the step in which its last byte
//! moves. How far this is from exact max-min fairness is shown by a test against an exact solver (`fluid_oracle`).

/// Rounds of water-filling.
const ROUNDS: usize = 3;
/// Below this share of its capacity a link counts as full.
const FULL: f32 = 1e-3;
/// Below this share of its capacity left, a link is busy.
const BUSY: f32 = 0.02;
/// More than any link carries in a step, and far from where the arithmetic ends.
const NO_LIMIT: f32 = 1e30;
/// Bytes below which nothing is left to move: the arithmetic has 24 bits.
const NOTHING: f32 = 0.5;

/// A transfer under way. `S` says to the caller what it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow<S> {
    /// The sending end.
    pub(super) from: u32,
    /// The receiving end.
    pub(super) to: u32,
    /// What it carries.
    pub(super) what: S,
}

/// All links and flows. What a step reads of a flow lies in arrays of its own, apart from what it carries.
#[derive(Debug)]
pub(super) struct Fluid<S> {
    what: Vec<S>,
    ends: Vec<(u32, u32)>,
    left: Vec<f32>,
    rate: Vec<f32>,
    /// Flows that could take more after a round, by index.
    open: Vec<u32>,
    up: Vec<Link>,
    down: Vec<Link>,
    /// Links of groups, if there are any: what an end takes from outside of its group passes its door. The last one
    /// stands for no door.
    doors: Vec<Link>,
    group: Vec<u32>,
    /// By flow, if there are doors.
    door: Vec<u32>,
    /// Ends whose uplinks are metered, and what they and then the doors carried since that was asked for.
    metered: Option<Metered>,
}

#[derive(Debug)]
struct Metered {
    ends: Vec<u32>,
    usage: Vec<Usage>,
}

/// What a link did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Usage {
    /// Bytes that it carried.
    pub(super) bytes: f64,
    /// Steps in which it was busy.
    pub(super) busy_steps: f64,
}

/// One direction of an end's link: all that a step needs of it, side by side.
#[derive(Clone, Copy, Debug)]
struct Link {
    capacity: f32,
    /// Not given to a flow yet; 0 when the link counts as full.
    left: f32,
    /// What each flow may take in this round.
    share: f32,
    /// Flows that take part in this round.
    takers: f32,
    /// Flows altogether.
    flows: f32,
}

impl Link {
    fn new(capacity: f32) -> Self {
        Self { capacity, left: 0.0, share: 0.0, takers: 0.0, flows: 0.0 }
    }

    /// Begins a step: all flows share the whole.
    fn begin(&mut self) {
        self.left = self.capacity;
        self.share = self.capacity / self.flows.max(1.0);
    }

    /// Ends a round: nobody takes part in the next one yet.
    fn close(&mut self) {
        self.left = if self.left > self.capacity * FULL { self.left } else { 0.0 };
        self.takers = 0.0;
    }

    /// Whether it carried about all that it can.
    fn is_busy(&self) -> bool {
        self.flows > 0.0 && self.left <= self.capacity * BUSY
    }

    fn divide(&mut self) {
        self.share = self.left / self.takers.max(1.0);
    }
}

impl<S: Copy> Fluid<S> {
    /// A network of ends with an uplink and a downlink each, in bytes a step.
    pub(super) fn new(up: &[f32], down: &[f32]) -> Self {
        assert_eq!(up.len(), down.len(), "an end has two links");
        let links = |capacity: &[f32]| capacity.iter().copied().map(Link::new).collect();
        Self {
            what: Vec::new(),
            ends: Vec::new(),
            left: Vec::new(),
            rate: Vec::new(),
            open: Vec::new(),
            up: links(up),
            down: links(down),
            doors: Vec::new(),
            group: Vec::new(),
            door: Vec::new(),
            metered: None,
        }
    }

    /// The same, with a group for each end; what an end takes from outside of its group shares the group's `door`, in
    /// bytes a step.
    pub(super) fn with_doors(up: &[f32], down: &[f32], group: Vec<u32>, door: f32) -> Self {
        assert_eq!(up.len(), group.len(), "an end has one group");
        let groups = group.iter().copied().max().map_or(0, |last| last as usize + 1);
        let mut doors = vec![Link::new(door); groups];
        doors.push(Link::new(NO_LIMIT));
        Self { doors, group, ..Self::new(up, down) }
    }

    /// Whether an end's uplink and its downlink were busy in the last step.
    pub(super) fn is_busy(&self, end: u32) -> [bool; 2] {
        [self.up[end as usize].is_busy(), self.down[end as usize].is_busy()]
    }

    /// From now on, the uplinks of these ends and then all doors are metered.
    pub(super) fn meter(&mut self, ends: Vec<u32>) {
        let links = ends.len() + self.doors.len().saturating_sub(1);
        self.metered = Some(Metered { ends, usage: vec![Usage::default(); links] });
    }

    /// What a metered link did, by its number among them.
    pub(super) fn usage(&self, number: usize) -> Usage {
        self.metered.as_ref().and_then(|metered| metered.usage.get(number)).copied().unwrap_or_default()
    }

    /// The receiving ends of all transfers under way.
    pub(super) fn receivers(&self) -> impl Iterator<Item = u32> + '_ {
        self.ends.iter().map(|(_, to)| *to)
    }

    /// Whether nothing moves.
    pub(super) fn is_idle(&self) -> bool {
        self.ends.is_empty()
    }

    /// Begins a transfer.
    pub(super) fn start(&mut self, flow: Flow<S>, bytes: f32) {
        self.up[flow.from as usize].flows += 1.0;
        self.down[flow.to as usize].flows += 1.0;
        self.what.push(flow.what);
        self.ends.push((flow.from, flow.to));
        self.left.push(bytes);
        self.rate.push(0.0);
        if let Some(none) = self.doors.len().checked_sub(1) {
            let [from, to] = [flow.from, flow.to].map(|end| self.group[end as usize]);
            let door = if from == to { u32::try_from(none).unwrap_or(0) } else { to };
            self.doors[door as usize].flows += 1.0;
            self.door.push(door);
        }
    }

    fn flow(&self, index: usize) -> Flow<S> {
        let (from, to) = self.ends[index];
        Flow { from, to, what: self.what[index] }
    }

    /// Breaks off the transfers for which `gone` holds. Returns how many.
    pub(super) fn stop(&mut self, gone: impl Fn(&Flow<S>) -> bool) -> usize {
        let before = self.ends.len();
        let mut index = 0;
        while index < self.ends.len() {
            if gone(&self.flow(index)) {
                self.remove(index);
            } else {
                index += 1;
            }
        }
        before - self.ends.len()
    }

    fn remove(&mut self, index: usize) -> Flow<S> {
        let flow = self.flow(index);
        self.up[flow.from as usize].flows -= 1.0;
        self.down[flow.to as usize].flows -= 1.0;
        self.what.swap_remove(index);
        self.ends.swap_remove(index);
        self.left.swap_remove(index);
        self.rate.swap_remove(index);
        if !self.doors.is_empty() {
            let door = self.door.swap_remove(index);
            self.doors[door as usize].flows -= 1.0;
        }
        flow
    }

    /// Moves everything by one step; what ended is appended to `ended`.
    pub(super) fn step(&mut self, ended: &mut Vec<Flow<S>>) {
        self.fill();
        if let Some(metered) = &mut self.metered {
            let ends = metered.ends.iter().map(|end| &self.up[*end as usize]);
            for (usage, link) in metered.usage.iter_mut().zip(ends.chain(&self.doors)) {
                usage.bytes += f64::from(link.capacity - link.left);
                usage.busy_steps += f64::from(u8::from(link.is_busy()));
            }
        }
        let mut index = 0;
        while index < self.ends.len() {
            self.left[index] -= self.rate[index];
            if self.left[index] <= NOTHING {
                ended.push(self.remove(index));
            } else {
                index += 1;
            }
        }
    }

    fn fill(&mut self) {
        if self.doors.is_empty() { self.fill_links::<false>() } else { self.fill_links::<true>() }
    }

    fn fill_links<const DOORS: bool>(&mut self) {
        let (up, down, doors) = (self.up.as_mut_slice(), self.down.as_mut_slice(), self.doors.as_mut_slice());
        up.iter_mut().chain(down.iter_mut()).chain(doors.iter_mut()).for_each(Link::begin);
        for (index, rate) in self.rate.iter_mut().enumerate() {
            let (from, to) = self.ends[index];
            let (up, down) = (&mut up[from as usize], &mut down[to as usize]);
            *rate = up.share.min(down.share).min(self.left[index]);
            if DOORS {
                let door = &mut doors[self.door[index] as usize];
                *rate = rate.min(door.share);
                door.left -= *rate;
            }
            up.left -= *rate;
            down.left -= *rate;
        }
        self.open.resize(self.ends.len(), 0);
        for (place, index) in self.open.iter_mut().zip(0..) {
            *place = index;
        }
        let mut candidates = self.open.len();
        for _ in 1..ROUNDS {
            up.iter_mut().chain(down.iter_mut()).chain(doors.iter_mut()).for_each(Link::close);
            let mut kept = 0;
            for place in 0..candidates {
                let flow = self.open[place];
                let index = flow as usize;
                let (from, to) = self.ends[index];
                let (up, down) = (&mut up[from as usize], &mut down[to as usize]);
                let mut takes = (up.left > 0.0) & (down.left > 0.0) & (self.rate[index] < self.left[index]);
                if DOORS {
                    takes &= doors[self.door[index] as usize].left > 0.0;
                }
                // Without a branch: which flows take part is as good as random.
                let one = f32::from(u8::from(takes));
                up.takers += one;
                down.takers += one;
                if DOORS {
                    doors[self.door[index] as usize].takers += one;
                }
                self.open[kept] = flow;
                kept += usize::from(takes);
            }
            candidates = kept;
            up.iter_mut().chain(down.iter_mut()).chain(doors.iter_mut()).for_each(Link::divide);
            for flow in &self.open[..candidates] {
                let index = *flow as usize;
                let (from, to) = self.ends[index];
                let (up, down) = (&mut up[from as usize], &mut down[to as usize]);
                let mut more = up.share.min(down.share).min(self.left[index] - self.rate[index]);
                if DOORS {
                    let door = &mut doors[self.door[index] as usize];
                    more = more.min(door.share);
                    door.left -= more;
                }
                self.rate[index] += more;
                up.left -= more;
                down.left -= more;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(pairs: &[(u32, u32)], up: &[f32], down: &[f32]) -> Vec<f32> {
        let mut fluid = Fluid::new(up, down);
        for (from, to) in pairs {
            fluid.start(Flow { from: *from, to: *to, what: () }, 1e9);
        }
        fluid.fill();
        fluid.rate
    }

    #[test]
    fn flows_share_as_max_min_fairness_would() {
        // 0 sends to 1 and 2, 3 sends to 2: the downlink of 2 is shared, 1 gets the rest of the uplink.
        let found = rates(&[(0, 1), (0, 2), (3, 2)], &[10.0; 4], &[10.0, 10.0, 6.0, 10.0]);
        for (found, exact) in found.iter().zip([7.0, 3.0, 3.0]) {
            assert!((found - exact).abs() < 0.2, "{found} for {exact}");
        }
    }

    #[test]
    fn no_link_carries_more_than_it_can() {
        let pairs: Vec<(u32, u32)> = (0..60).map(|i| (i * 7 % 10, (i * 3 + 1) % 10)).collect();
        let capacity: Vec<f32> = (1_u8..=10).map(f32::from).collect();
        let found = rates(&pairs, &capacity, &capacity);
        for (end, capacity) in (0_u32..).zip(&capacity) {
            let sent: f32 =
                pairs.iter().zip(&found).filter(|(pair, _)| pair.0 == end).map(|(_, rate)| rate).sum();
            let taken: f32 =
                pairs.iter().zip(&found).filter(|(pair, _)| pair.1 == end).map(|(_, rate)| rate).sum();
            assert!(
                sent <= capacity * 1.001 && taken <= capacity * 1.001,
                "{end}: {sent} {taken} of {capacity}"
            );
        }
    }

    #[test]
    fn what_comes_from_outside_shares_the_door_of_its_group() {
        let mut fluid = Fluid::with_doors(&[10.0; 4], &[10.0; 4], vec![0, 0, 1, 1], 4.0);
        for (from, to) in [(2, 0), (3, 1), (1, 0)] {
            fluid.start(Flow { from, to, what: () }, 1e9);
        }
        fluid.step(&mut Vec::new());
        for (found, exact) in fluid.rate.iter().zip([2.0, 2.0, 8.0]) {
            assert!((found - exact).abs() < 0.2, "{found} for {exact}");
        }
        let busy = [0, 1].map(|end| fluid.is_busy(end));
        assert_eq!(busy, [[false, true], [false, false]], "only the downlink of the first is used up");
    }

    #[test]
    fn a_flow_ends_when_its_bytes_have_moved() {
        let mut fluid = Fluid::new(&[10.0; 2], &[10.0; 2]);
        fluid.start(Flow { from: 0, to: 1, what: 'a' }, 25.0);
        let mut ended = Vec::new();
        for step in 1..=3 {
            fluid.step(&mut ended);
            assert_eq!(ended.len(), usize::from(step == 3), "step {step}");
        }
        assert!(fluid.is_idle() && ended[0].what == 'a');
    }
}
