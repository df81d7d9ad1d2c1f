//! The figures that simulated and real roll-outs have in common, so that the two can be laid side by side.

use super::bound::{Bound, Term};
use super::statistics::per_mille;
use serde::Serialize;

/// How a roll-out went. Times are in seconds from its start; figures of which there are none are `NaN` (`null` in JSON).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rollout {
    /// Seed of the run.
    pub seed: u64,
    /// Number of nodes.
    pub nodes: u32,
    /// Nodes that have all of the content in the end.
    pub completed: u32,
    /// When the last node had it, in seconds; of those that completed.
    pub makespan_s: f64,
    /// The least possible time, in seconds (Kumar and Ross).
    pub bound_s: f64,
    /// The term of the bound that binds.
    pub binding_term: Term,
    /// `makespan_s / bound_s`.
    pub makespan_over_bound: f64,
    /// When half of the nodes had it, in seconds.
    pub p50_s: f64,
    /// When 99 % had it, in seconds.
    pub p99_s: f64,
    /// Bytes of content that left the strata.
    pub strata_bytes: u64,
    /// The same in copies of the content.
    pub strata_copies: f64,
    /// Most that came into a cell from outside of it, the stratum included, in copies of the content.
    pub most_into_a_cell_copies: f64,
    /// Most that a node gave to others, in copies of the content.
    pub most_given_copies: f64,
}

/// What moved, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// One copy of the content.
    pub copy: f64,
    /// What left the strata.
    pub strata: u64,
    /// What came into the cell that took most from outside of it.
    pub most_into_a_cell: u64,
    /// What the node gave that gave most.
    pub most_given: u64,
}

impl Rollout {
    /// From the times, in seconds and in any order, at which nodes had all of the content.
    pub fn new(seed: u64, nodes: u32, times: &mut [f64], bound: Bound, moved: Moved) -> Self {
        times.sort_unstable_by(f64::total_cmp);
        let makespan_s = quantile(times, 100);
        Self {
            seed,
            nodes,
            completed: u32::try_from(times.len()).unwrap_or(u32::MAX),
            makespan_s,
            bound_s: bound.seconds,
            binding_term: bound.term,
            makespan_over_bound: makespan_s / bound.seconds,
            p50_s: quantile(times, 50),
            p99_s: quantile(times, 99),
            strata_bytes: moved.strata,
            strata_copies: moved.strata as f64 / moved.copy,
            most_into_a_cell_copies: moved.most_into_a_cell as f64 / moved.copy,
            most_given_copies: moved.most_given as f64 / moved.copy,
        }
    }
}

/// The value below or at which `per_cent` of the sorted values lie; `NaN` of none.
pub fn quantile(sorted: &[f64], per_cent: usize) -> f64 {
    per_mille(sorted, per_cent * 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_nearest_rank_and_of_nothing_there_is_none() {
        let values: Vec<f64> = (1..=32).map(f64::from).collect();
        assert_eq!([1, 50, 99, 100].map(|p| quantile(&values, p)), [1.0, 16.0, 32.0, 32.0]);
        assert!(quantile(&[], 50).is_nan());
    }

    #[test]
    fn the_last_node_counts_for_the_makespan() {
        let bound = Bound { seconds: 2.0, term: Term::SlowestDownlink };
        let moved = Moved { copy: 10.0, strata: 30, most_into_a_cell: 15, most_given: 25 };
        let rollout = Rollout::new(7, 4, &mut [3.0, 1.0, 2.0], bound, moved);
        assert_eq!((rollout.completed, rollout.makespan_s, rollout.p50_s), (3, 3.0, 2.0));
        assert_eq!((rollout.makespan_over_bound, rollout.strata_copies), (1.5, 3.0));
        assert_eq!((rollout.most_into_a_cell_copies, rollout.most_given_copies), (1.5, 2.5));
    }
}
