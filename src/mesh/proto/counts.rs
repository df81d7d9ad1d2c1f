//! What a node counts of its decisions, for metrics and reports.

use serde::Serialize;

/// Decisions since the node began. All only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Fetches from the strata that had to wait for the origin budget.
    pub origin_delays: u64,
    /// Delayed fetches that found another source before their turn came.
    pub origin_spared: u64,
}
