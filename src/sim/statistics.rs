//! How the figures of many nodes, or of many seeds, become a few: percentiles, distributions, bands.
//!
//! A percentile is always the least value at or below which that share of the values lies, so it is a value that some node or
//! some run had. numpy calls it `method="inverted_cdf"`; the tests hold this file against numpy's figures.

use serde::Serialize;

/// Levels of a completion curve: per mille of the nodes.
pub const LEVELS: usize = 1_000;

/// The least value at or below which `per_mille` of 1 000 of the sorted values lie; `NaN` of none.
pub fn per_mille(sorted: &[f64], per_mille: usize) -> f64 {
    // In whole numbers: 0.07 x 100 is more than 7 in floating point, and the rank would be the next one.
    let rank = (sorted.len() * per_mille).div_ceil(1_000).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

/// The share of the sorted values that are at most `value`, 0 to 1; `NaN` of none.
pub fn share_at_most(sorted: &[f64], value: f64) -> f64 {
    if sorted.is_empty() {
        return f64::NAN;
    }
    sorted.partition_point(|other| *other <= value) as f64 / sorted.len() as f64
}

/// A distribution as its inverse: when 1, 2, 3 … of 1 000 of `all` had ended, from the sorted times of those that did; infinite
/// where so many never did.
pub fn completion_curve(sorted: &[f64], all: usize) -> Vec<f64> {
    let time = |level: usize| {
        let rank = (all * level).div_ceil(LEVELS).max(1);
        sorted.get(rank - 1).copied().unwrap_or(f64::INFINITY)
    };
    (1..=LEVELS).map(time).collect()
}

/// Where the values of several seeds lie; `NaN` (`null` in JSON) where no run has the figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one: of an even number, the lower of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// Of some values in any order; those that are not there (`NaN`) do not count.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().filter(|value| !value.is_nan()).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let end = |value: Option<&f64>| value.copied().unwrap_or(f64::NAN);
        Self { median: per_mille(&sorted, 500), min: end(sorted.first()), max: end(sorted.last()) }
    }
}

/// The bands of curves of one length, point by point.
pub fn bands(curves: &[&[f64]]) -> Vec<Spread> {
    let points = curves.iter().map(|curve| curve.len()).min().unwrap_or(0);
    (0..points).map(|point| Spread::of(curves.iter().map(|curve| curve[point]))).collect()
}

/// The number of the value that is the median, by the same rule as [`Spread`]'s; of equal ones, the first.
pub fn median_index(values: &[f64]) -> Option<usize> {
    let median = Spread::of(values.iter().copied()).median;
    values.iter().position(|value| value.total_cmp(&median).is_eq())
}

#[cfg(test)]
mod tests {
    use super::*;

    // All expected figures were computed by numpy 2.4.6. Inputs are eighths, quarters and sixteenths, so that no rounding
    // stands between the two.

    /// `numpy.array([(i * 7919 % 1009) / 8 for i in range(1, 38)])`
    fn sample() -> Vec<f64> {
        (1_u32..38).map(|i| f64::from(i * 7919 % 1009) / 8.0).collect()
    }

    fn sorted(mut values: Vec<f64>) -> Vec<f64> {
        values.sort_unstable_by(f64::total_cmp);
        values
    }

    #[test]
    fn percentiles_are_those_of_numpy() {
        // numpy.quantile(x, [0.001, 0.025, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975, 0.99, 0.999, 1], method="inverted_cdf")
        let levels = [1, 25, 50, 250, 500, 750, 900, 950, 975, 990, 999, 1_000];
        let expected =
            [3.625, 3.625, 7.25, 37.75, 68.25, 95.125, 114.25, 122.0, 125.625, 125.625, 125.625, 125.625];
        let sorted_sample = sorted(sample());
        assert_eq!(levels.map(|level| per_mille(&sorted_sample, level)), expected);

        // x = numpy.array([((i * i * 31 + i) % 100003) / 16 for i in range(10000)])
        // numpy.quantile(x, [0.001, 0.5, 0.99, 0.999], method="inverted_cdf")
        let large = (0_u64..10_000).map(|i| ((i * i * 31 + i) % 100_003) as f64 / 16.0).collect();
        let large = sorted(large);
        let found = [1, 500, 990, 999].map(|level| per_mille(&large, level));
        assert_eq!(found, [3.6875, 3_114.687_5, 6_195.812_5, 6_246.812_5]);
    }

    #[test]
    fn a_share_that_is_a_whole_rank_is_that_rank() {
        let values: Vec<f64> = (1_u8..=100).map(f64::from).collect();
        for per_cent in 1..=100 {
            assert_eq!(per_mille(&values, per_cent * 10), per_cent as f64, "the rank, however it is rounded");
        }
        assert!(per_mille(&[], 500).is_nan());
    }

    #[test]
    fn the_distribution_is_that_of_numpy() {
        // numpy.searchsorted(numpy.sort(x), t, side="right") / x.size
        let times = [0.0, 10.0, 31.5, 64.0, 64.125, 100.0, 126.0];
        let expected = [
            0.0,
            0.054_054_054_054_054_06,
            0.216_216_216_216_216_23,
            0.459_459_459_459_459_5,
            0.459_459_459_459_459_5,
            0.783_783_783_783_783_8,
            1.0,
        ];
        let sorted = sorted(sample());
        assert_eq!(times.map(|time| share_at_most(&sorted, time)), expected);
        assert!(share_at_most(&[], 1.0).is_nan());
    }

    #[test]
    fn a_curve_and_its_inverse_agree_and_who_never_ended_is_never() {
        let sorted = sorted(sample());
        let curve = completion_curve(&sorted, sorted.len());
        for (level, time) in (1..).zip(&curve) {
            assert_eq!(*time, per_mille(&sorted, level));
            assert!(share_at_most(&sorted, *time) >= level as f64 / LEVELS as f64, "{level}");
        }
        // 37 of 40 ended: the last level is the 37th of 40, which is 925 of 1 000.
        let curve = completion_curve(&sorted, 40);
        assert_eq!((curve[924], curve[925]), (125.625, f64::INFINITY));
        assert_eq!(curve.len(), LEVELS);
    }

    #[test]
    fn bands_are_those_of_numpy() {
        // m = numpy.array([[((s * 31 + k * k * 17) % 101) / 4 for k in range(6)] for s in range(5)])
        let curve =
            |s: u32| (0..6).map(|k| f64::from((s * 31 + k * k * 17) % 101) / 4.0).collect::<Vec<f64>>();
        let curves: Vec<Vec<f64>> = (0..5).map(curve).collect();
        let curves: Vec<&[f64]> = curves.iter().map(Vec::as_slice).collect();
        let bands = bands(&curves);
        let column = |of: fn(&Spread) -> f64| bands.iter().map(of).collect::<Vec<f64>>();
        // m.min(axis=0); numpy.quantile(m, 0.5, axis=0, method="inverted_cdf"); m.max(axis=0)
        assert_eq!(column(|band| band.min), [0.0, 2.25, 7.25, 3.25, 0.0, 3.25]);
        assert_eq!(column(|band| band.median), [7.75, 10.0, 17.0, 13.0, 15.5, 11.0]);
        assert_eq!(column(|band| band.max), [23.25, 19.75, 24.75, 20.75, 23.25, 20.75]);

        // y = numpy.array([((s * 53) % 97) / 2 for s in range(8)]): an even number of values.
        let even: Vec<f64> = (0_u32..8).map(|s| f64::from(s * 53 % 97) / 2.0).collect();
        assert_eq!(Spread::of(even.iter().copied()), Spread { median: 13.5, min: 0.0, max: 40.0 });
        assert_eq!(median_index(&even), Some(6));
        assert_eq!(Spread::of([3.0, 1.0, f64::NAN, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!((median_index(&[]), Spread::of([]).median.is_nan()), (None, true));
    }
}
