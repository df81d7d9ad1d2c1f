//! What a node counts of its decisions, for metrics and reports.

use super::rare::Nothing;
use serde::Serialize;

/// Decisions since the node began. All only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize))]
pub struct Counts {
    /// Homes that were asked because those ranked before them had failed or were passed over.
    pub homes_failed_over: u64,
    /// Asks of next ranks, because this node is a home that is new and empty.
    pub peeks: u64,
    /// Asks of homes in other cells of the region, because this node has the lease and another cell had it before.
    pub peeks_elsewhere: u64,
    /// Look-ups of who announced a segment.
    pub lookups: u64,
    /// Fetches from the strata that this node began under its lease.
    pub leases: u64,
    /// Of those, fetches that were broken off because nothing came for too long.
    pub leases_lapsed: u64,
    /// Asks of a second source beside a slow one.
    pub hedges: u64,
    /// Chunks that the second source delivered first.
    pub hedges_won: u64,
    /// Slow sources beside which nobody was asked, because too many such asks were made already.
    pub hedges_held: u64,
    /// Times that a neighbour was told what is held here.
    pub possession_told: u64,
    /// Tellings of others that were taken.
    pub possession_heard: u64,
    /// Tellings of others that were not taken: too long, too often, from a stranger or a liar.
    pub possession_refused: u64,
    /// Chunks that a peer claimed to hold and did not have.
    pub possession_false: u64,
    /// Peers that are not listened to for a while, because of false claims in a row.
    pub possession_barred: u64,
    /// Times that a peer was passed over for a while, because it took asks and delivered nothing.
    pub doubts: u64,
    /// Wants that stood still for so long that others began in their place.
    pub asides: u64,
    /// Copies that this node made because a minimum is declared.
    pub copies_made: u64,
    /// Asks of next ranks for chunks that they should copy.
    pub copies_asked: u64,
    /// Fetches from the strata that had to wait for the origin budget.
    pub origin_delays: u64,
    /// Delayed fetches that found another source before their turn came.
    pub origin_spared: u64,
}

impl Nothing for Counts {
    const NOTHING: &'static Self = &Self {
        homes_failed_over: 0,
        peeks: 0,
        peeks_elsewhere: 0,
        lookups: 0,
        leases: 0,
        leases_lapsed: 0,
        hedges: 0,
        hedges_won: 0,
        hedges_held: 0,
        possession_told: 0,
        possession_heard: 0,
        possession_refused: 0,
        possession_false: 0,
        possession_barred: 0,
        doubts: 0,
        asides: 0,
        copies_made: 0,
        copies_asked: 0,
        origin_delays: 0,
        origin_spared: 0,
    };
}
