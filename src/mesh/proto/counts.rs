//! What a node counts of its decisions, for metrics and reports.

use serde::Serialize;

/// Decisions since the node began. All only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Asks of a second source beside a slow one.
    pub hedges: u64,
    /// Chunks that the second source delivered first.
    pub hedges_won: u64,
    /// Slow sources beside which nobody was asked, because too many such asks were made already.
    pub hedges_held: u64,
    /// Fetches from the strata that had to wait for the origin budget.
    pub origin_delays: u64,
    /// Delayed fetches that found another source before their turn came.
    pub origin_spared: u64,
}
