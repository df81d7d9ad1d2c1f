//! The stepped network against exact max-min fairness, which is solved from one event to the next.

use super::engine::{STEPS_PER_SLICE, step_ns};
use super::fluid::{Flow, Fluid};
use crate::model::{Generator, Rng};

/// Two directions of each end: uplinks first, then downlinks.
struct Exact {
    capacity: Vec<f64>,
    flows: Vec<Transfer>,
}

#[derive(Clone, Copy)]
struct Transfer {
    from: usize,
    to: usize,
    bytes: f64,
}

impl Exact {
    fn links(&self, flow: Transfer) -> [usize; 2] {
        [flow.from, self.capacity.len() / 2 + flow.to]
    }

    /// Progressive filling: again and again the link that gives the least to each of its open flows settles them.
    fn rates(&self, active: &[usize]) -> Vec<f64> {
        let mut left = self.capacity.clone();
        let mut rates = vec![0.0; self.flows.len()];
        let mut open: Vec<usize> = active.to_vec();
        while !open.is_empty() {
            let mut count = vec![0.0; left.len()];
            for flow in &open {
                for link in self.links(self.flows[*flow]) {
                    count[link] += 1.0;
                }
            }
            let used = (0..left.len()).filter(|link| count[*link] > 0.0);
            let tightest = used.min_by(|a, b| (left[*a] / count[*a]).total_cmp(&(left[*b] / count[*b])));
            let tightest = tightest.unwrap();
            let share = left[tightest] / count[tightest];
            let (settled, others): (Vec<usize>, Vec<usize>) =
                open.into_iter().partition(|flow| self.links(self.flows[*flow]).contains(&tightest));
            for flow in settled {
                rates[flow] = share;
                for link in self.links(self.flows[flow]) {
                    left[link] -= share;
                }
            }
            open = others;
        }
        rates
    }

    /// When each flow ends, if each uplink carries `slots` at once and the others wait in their order.
    fn run(&self, slots: usize) -> Vec<f64> {
        let mut left: Vec<f64> = self.flows.iter().map(|flow| flow.bytes).collect();
        let mut ended = vec![f64::NAN; self.flows.len()];
        let mut now = 0.0;
        while let active = begun(&self.flows, slots, |flow| ended[flow].is_finite())
            && !active.is_empty()
        {
            let rates = self.rates(&active);
            let span = active.iter().map(|flow| left[*flow] / rates[*flow]).fold(f64::INFINITY, f64::min);
            now += span;
            for flow in active {
                left[flow] -= rates[flow] * span;
                if left[flow] < 1e-6 * self.flows[flow].bytes {
                    ended[flow] = now;
                }
            }
        }
        ended
    }
}

fn begun(flows: &[Transfer], slots: usize, over: impl Fn(usize) -> bool) -> Vec<usize> {
    let mut busy = vec![0; flows.len()];
    (0..flows.len())
        .filter(|flow| !over(*flow))
        .filter(|flow| {
            busy[flows[*flow].from] += 1;
            busy[flows[*flow].from] <= slots
        })
        .collect()
}

#[expect(clippy::cast_possible_truncation, reason = "the model's precision")]
fn narrow(value: f64) -> f32 {
    value as f32
}

fn stepped(flows: &[Transfer], up: &[f32], down: &[f32], slots: usize) -> Vec<f64> {
    let mut fluid = Fluid::new(up, down);
    let (mut started, mut ended) = (vec![false; flows.len()], vec![f64::NAN; flows.len()]);
    let (mut over, mut now) = (Vec::new(), 0.0);
    while ended.iter().any(|end| end.is_nan()) {
        for flow in begun(flows, slots, |flow| ended[flow].is_finite()) {
            if !std::mem::replace(&mut started[flow], true) {
                let Transfer { from, to, bytes } = flows[flow];
                let end = |number: usize| u32::try_from(number).unwrap();
                fluid.start(Flow { from: end(from), to: end(to), what: flow }, narrow(bytes));
            }
        }
        fluid.step(&mut over);
        now += 1.0;
        for flow in over.drain(..) {
            ended[flow.what] = now;
        }
    }
    ended
}

/// The mean difference of a flow's end from the exact one and that of the last end, both relative.
fn errors(seed: u64, ends: usize, count: usize, slots: usize) -> [f64; 2] {
    let mut rng = Generator::new(seed);
    // Capacities in slices a step: links of one speed, as in a fleet, and in every other run of two.
    let speed = |index: usize| {
        1.0 / STEPS_PER_SLICE / if seed % 2 == 1 && index.is_multiple_of(3) { 2.5 } else { 1.0 }
    };
    let capacity: Vec<f64> = (0..2 * ends).map(speed).collect();
    let flows: Vec<Transfer> = (0..count)
        .map(|_| {
            let from = rng.below(ends);
            Transfer { from, to: (from + 1 + rng.below(ends - 1)) % ends, bytes: 1e6 }
        })
        .collect();
    let exact = Exact { capacity: capacity.iter().map(|slices| slices * 1e6).collect(), flows };
    let capacity: Vec<f32> = exact.capacity.iter().map(|rate| narrow(*rate)).collect();
    let (right, found) =
        (exact.run(slots), stepped(&exact.flows, &capacity[..ends], &capacity[ends..], slots));
    let off: Vec<f64> = right.iter().zip(&found).map(|(right, found)| (found / right - 1.0).abs()).collect();
    let last = |times: &[f64]| times.iter().copied().fold(0.0, f64::max);
    [off.iter().sum::<f64>() / off.len() as f64, (last(&found) / last(&right) - 1.0).abs()]
}

#[test]
fn transfers_end_within_a_few_per_cent_of_exact_max_min_fairness() {
    let (mut mean, mut worst_mean, mut worst_last) = (0.0_f64, 0.0_f64, 0.0_f64);
    for seed in 0..40 {
        let of_seed = usize::try_from(seed).unwrap();
        let (ends, count) = (10 + of_seed % 4 * 5, 100 + of_seed % 5 * 25);
        let [mean_here, last_here] = errors(seed, ends, count, 8);
        mean += mean_here / 40.0;
        worst_mean = worst_mean.max(mean_here);
        worst_last = worst_last.max(last_here);
    }
    println!("mean {mean:.4}, worst mean of a run {worst_mean:.4}, worst last end {worst_last:.4}");
    assert!(mean < 0.03, "mean error of a transfer's end: {mean:.4}");
    assert!(worst_mean < 0.06, "mean error of a transfer's end in the worst run: {worst_mean:.4}");
    assert!(worst_last < 0.05, "error of the last end: {worst_last:.4}");
}

#[test]
fn a_step_divides_the_latency_and_the_transfer_of_a_slice() {
    for (slice_s, latency_ns) in [(839e-6, 500_000), (839e-6, 0), (8.4e-3, 500_000), (1e-3, 20_000_000)] {
        let step = step_ns(slice_s, latency_ns);
        assert!(step as f64 * STEPS_PER_SLICE <= slice_s * 1e9 + 1.0, "{slice_s} {latency_ns}: {step}");
        let steps = latency_ns.div_ceil(step);
        assert!(steps * step <= latency_ns + steps, "{slice_s} {latency_ns}: {step}");
    }
}
