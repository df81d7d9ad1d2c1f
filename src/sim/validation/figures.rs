//! What a real and a simulated run of a trial are compared by, and how far off simulations are.

use crate::model::{Generator, Rng};
use crate::sim::statistics::per_mille;
use serde::Serialize;

/// Draws of the bootstrap.
const DRAWS: u32 = 2_000;
/// Sets them apart from all other randomness.
const BOOTSTRAP: u64 = 0x626f_6f74;

/// What is compared.
pub const FIGURES: [&str; 9] = [
    "makespan",
    "p50 of completion",
    "p90 of completion",
    "p99 of completion",
    "content out of the stratum",
    "bytes on the stratum's uplink",
    "bytes on nodes' uplinks",
    "bytes on nodes' downlinks",
    "bytes on links into cells",
];
/// Places of figures in [`FIGURES`].
pub(super) const MAKESPAN: usize = 0;
/// See [`MAKESPAN`].
pub(super) const P99: usize = 3;
/// See [`MAKESPAN`].
pub(super) const EGRESS: usize = 4;

/// The figures of one run, in the order of [`FIGURES`]; `NaN` where there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Figures(pub(super) [f64; FIGURES.len()]);

/// Bytes that a run moved, headers included unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct OnLinks {
    /// Content that left the stratum, without headers.
    pub(super) strata: f64,
    /// On the stratum's uplink.
    pub(super) strata_link: f64,
    /// On the uplinks of all nodes.
    pub(super) up: f64,
    /// On their downlinks.
    pub(super) down: f64,
    /// On the links into cells; `NaN` with one cell.
    pub(super) into_cells: f64,
}

impl Figures {
    /// From the times at which nodes had everything, in seconds, and what moved.
    pub(super) fn new(mut times: Vec<f64>, moved: OnLinks) -> Self {
        times.sort_unstable_by(f64::total_cmp);
        let [p50, p90, p99, makespan] = [500, 900, 990, 1_000].map(|level| per_mille(&times, level));
        let OnLinks { strata, strata_link, up, down, into_cells } = moved;
        Self([makespan, p50, p90, p99, strata, strata_link, up, down, into_cells])
    }

    /// The median of each figure over some runs.
    pub(super) fn median(runs: &[Self]) -> Self {
        Self(std::array::from_fn(|place| {
            let mut values: Vec<f64> = runs.iter().map(|run| run.0[place]).collect();
            values.sort_unstable_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
        }))
    }

    /// How far off another run is, as parts of this one.
    pub(super) fn errors(&self, other: &Self) -> [f64; FIGURES.len()] {
        let mut errors = [f64::NAN; FIGURES.len()];
        for (error, (own, other)) in errors.iter_mut().zip(self.0.iter().zip(&other.0)) {
            *error = other / own - 1.0;
        }
        errors
    }
}

/// What calibration makes least: the mean of all errors, whatever their sign.
pub(super) fn cost(errors: &[[f64; FIGURES.len()]]) -> f64 {
    // Twice too much is as wrong as half of it. Who never ended is as wrong as can be.
    let of = |error: &f64| if error.is_finite() { (1.0 + error).max(1e-3).ln().abs() } else { 10.0 };
    let there = errors.iter().flatten().filter(|error| !error.is_nan()).map(of);
    let (count, sum) = there.fold((0_u32, 0.0), |(count, sum), error| (count + 1, sum + error));
    sum / f64::from(count.max(1))
}

/// How far off a figure is over many trials, as parts of what was measured; each with the interval in which it lies with 95 %.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Accuracy {
    /// The median of the errors with their signs: whether the simulation is too slow or too fast.
    pub bias: [f64; 3],
    /// The median of their amounts.
    pub median: [f64; 3],
    /// What nine of ten stay within.
    pub most: [f64; 3],
    /// The largest amount.
    pub worst: f64,
    /// Errors that there are.
    pub trials: usize,
}

impl Accuracy {
    /// Of these errors, those that are not there (`NaN`) left out. Intervals are those of the bootstrap (Efron, "Bootstrap methods: another
    /// look at the jackknife", 1979): trials are drawn anew, each as often as chance has it.
    pub fn of(errors: impl IntoIterator<Item = f64>, seed: u64) -> Self {
        let errors: Vec<f64> = errors.into_iter().filter(|error| !error.is_nan()).collect();
        let own = figures(errors.clone());
        let mut rng = Generator::stream(seed, BOOTSTRAP);
        let mut draws = [const { Vec::new() }; 3];
        for _ in 0..DRAWS {
            let drawn = (0..errors.len()).map(|_| errors[rng.below(errors.len())]).collect();
            for (draws, figure) in draws.iter_mut().zip(figures(drawn)) {
                draws.push(figure);
            }
        }
        let [bias, median, most] = [0, 1, 2].map(|place: usize| {
            draws[place].sort_unstable_by(f64::total_cmp);
            [own[place], per_mille(&draws[place], 25), per_mille(&draws[place], 975)]
        });
        let worst = errors.iter().map(|error| error.abs()).fold(f64::NAN, f64::max);
        Self { bias, median, most, worst, trials: errors.len() }
    }
}

/// The signed median, the median amount, and what nine of ten amounts stay within.
fn figures(mut errors: Vec<f64>) -> [f64; 3] {
    errors.sort_unstable_by(f64::total_cmp);
    let bias = per_mille(&errors, 500);
    for error in &mut errors {
        *error = error.abs();
    }
    errors.sort_unstable_by(f64::total_cmp);
    [bias, per_mille(&errors, 500), per_mille(&errors, 900)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(bytes: f64) -> OnLinks {
        OnLinks { strata: bytes, strata_link: bytes, up: bytes, down: bytes, into_cells: f64::NAN }
    }

    #[test]
    fn a_run_that_is_as_measured_is_off_by_nothing_and_one_that_is_slower_by_its_part() {
        let times: Vec<f64> = (1..=20).map(f64::from).collect();
        let real = Figures::new(times.clone(), moved(100.0));
        assert_eq!(real.0[..4], [20.0, 10.0, 18.0, 20.0]);
        let errors = real.errors(&real);
        assert!(errors[..8].iter().all(|error| *error == 0.0) && errors[8].is_nan());
        assert_eq!(cost(&[errors]), 0.0);
        let slower = Figures::new(times.iter().map(|time| time * 1.25).collect(), moved(50.0));
        let errors = real.errors(&slower);
        assert_eq!((errors[MAKESPAN], errors[P99], errors[EGRESS]), (0.25, 0.25, -0.5));
        let expected = (4.0 * 1.25_f64.ln() + 4.0 * 2.0_f64.ln()) / 8.0;
        assert!((cost(&[errors]) - expected).abs() < 1e-12);
    }

    #[test]
    fn the_median_of_runs_is_that_of_each_figure() {
        let runs = [(5.0, 100.0), (3.0, 300.0), (4.0, 200.0)]
            .map(|(at, bytes)| Figures::new(vec![at], moved(bytes)));
        let median = Figures::median(&runs);
        assert_eq!((median.0[MAKESPAN], median.0[EGRESS]), (4.0, 200.0));
        assert!(median.0[8].is_nan());
    }

    #[test]
    fn nobody_who_ends_is_the_worst_that_can_be() {
        let real = Figures::new(vec![1.0], moved(1.0));
        let none = Figures::new(vec![f64::INFINITY], moved(1.0));
        assert!(cost(&[real.errors(&none)]) > 4.0);
    }

    #[test]
    fn spreads_are_of_amounts_and_their_intervals_hold_them() {
        let errors = (0..41).map(|place| f64::from(place - 10) / 100.0);
        let found = Accuracy::of(errors.chain([f64::NAN]), 3);
        assert_eq!(found.trials, 41);
        assert!((found.bias[0] - 0.10).abs() < 1e-12 && (found.worst - 0.30).abs() < 1e-12, "{found:?}");
        // Amounts: 0, twice 1 to 10, 11 to 30: the 21st is 10, the 37th 26.
        assert!((found.median[0] - 0.10).abs() < 1e-12 && (found.most[0] - 0.26).abs() < 1e-12, "{found:?}");
        for [value, least, most] in [found.bias, found.median, found.most] {
            assert!(least < value && value < most && most - least < 0.2, "{found:?}");
        }
        assert_eq!(found, Accuracy::of((0..41).map(|place| f64::from(place - 10) / 100.0), 3));
        assert!(Accuracy::of([], 1).median[0].is_nan());
    }

    /// A 95 % interval holds the truth in about 95 of 100 samples.
    #[test]
    fn the_interval_of_the_median_holds_the_true_one_as_often_as_it_says() {
        let mut rng = Generator::new(5);
        let mut held = 0;
        for seed in 0..200 {
            let sample: Vec<f64> = (0..24).map(|_| rng.below(1_000_000) as f64 / 1e6).collect();
            let [_, least, most] = Accuracy::of(sample, seed).median;
            held += u32::from((least..=most).contains(&0.5));
        }
        assert!((180..=200).contains(&held), "{held} of 200");
    }
}
