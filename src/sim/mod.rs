//! The fleet simulator: the node's own decisions on a virtual network.
//!
//! [`Scenario`] says what happens, [`simulate`] runs it, [`Report`] tells what came out. Every simulated machine runs
//! [`crate::mesh::proto::Node`] itself; this room holds only what surrounds it (`fleet`), virtual time (`engine`), the
//! network (`fluid`) and the least possible time to compare with (`bound`).
//!
//! [`swarm`] is the other use of virtual time: not how fast, but whether the decisions are right when everything goes wrong.

mod bound;
mod churn;
mod engine;
mod fleet;
mod fluid;
#[cfg(test)]
mod fluid_oracle;
mod liar;
mod reader;
pub mod record;
pub mod report;
mod rollout;
mod scenario;
pub mod statistics;
pub mod swarm;
#[cfg(test)]
mod tests;

pub use bound::{Bound, Term, bound};
pub use engine::Progress;
pub use record::{Record, Recording};
pub use report::{Report, simulate, simulate_recorded};
pub use rollout::{Moved, Rollout, quantile};
pub use scenario::{Scenario, ScenarioError};
