//! The fleet simulator: the node's own decisions on a virtual network.
//!
//! [`Scenario`] says what happens, [`simulate`] runs it, [`Report`] tells what came out; [`Plan`] is all runs that a file asks
//! for, [`in_order`] does them and [`Summary`] takes them together. Every simulated machine runs
//! [`crate::mesh::proto::Node`] itself; this room holds only what surrounds it (`fleet`), virtual time (`engine`), the
//! network (`network`) and the least possible time to compare with (`bound`).
//!
//! [`validation`] holds what it predicts against real runs, and [`envelope`] says where that was done and how far off it was.
//!
//! [`swarm`] is the other use of virtual time: not how fast, but whether the decisions are right when everything goes wrong.

mod arrival;
mod bound;
mod churn;
mod engine;
pub mod envelope;
mod fleet;
mod footprint;
mod liar;
mod network;
mod published;
mod reader;
pub mod record;
pub mod report;
mod rollout;
mod scenario;
pub mod statistics;
pub mod swarm;
mod sweep;
#[cfg(test)]
mod tests;
pub mod validation;

pub use bound::{Bound, Term, bound};
pub use engine::Progress;
pub use footprint::{Footprint, measure};
pub use network::{LinksOfAKind, NodeClass, check_classes, class_rates};
pub use published::{PUBLISHED, Published};
pub use record::{Record, Recording};
pub use report::{Report, simulate, simulate_recorded};
pub use rollout::{Moved, Rollout, quantile};
pub use scenario::{
    Case, NODE_CHUNKS_MAX, Plan, Problem, RUNS_MAX, Scenario, ScenarioError, check, explain, nearest,
};
pub use statistics::Spread;
pub use sweep::{Summary, in_order};
