//! The fleet simulator: the node's own decisions on a virtual network.
//!
//! [`Scenario`] says what happens, [`simulate`] runs it, [`Report`] tells what came out; [`Plan`] is all runs that a file asks
//! for, [`in_order`] does them and [`Summary`] takes them together. Every simulated machine runs
//! [`crate::mesh::proto::Node`] itself; this room holds only what surrounds it (`fleet`), virtual time (`engine`), the
//! network (`network`) and the least possible time to compare with (`bound`). `strategy` has models of other systems, which
//! decide otherwise in the same network.
//!
//! [`validation`] holds what it predicts against real runs, and [`envelope`] says where that was done and how far off it was.
//!
//! [`swarm`] is the other use of virtual time: not how fast, but whether the decisions are right when everything goes wrong.

mod arrival;
mod bound;
mod calendar;
mod churn;
mod crew;
mod directory;
mod engine;
pub mod envelope;
#[cfg(test)]
mod fault_tests;
mod fleet;
mod footprint;
mod layout;
mod liar;
mod line;
mod network;
mod notices;
mod outflow;
mod part;
mod profile;
mod published;
mod reader;
mod readers;
pub mod record;
pub mod report;
mod rollout;
mod root_spread;
mod scenario;
pub mod statistics;
mod strategy;
pub mod swarm;
mod sweep;
#[cfg(test)]
mod tests;
pub mod validation;

pub use bound::{Bound, Term, bound};
pub use engine::Progress;
pub use footprint::{Footprint, Measured, measure};
pub use network::{LinksOfAKind, NetworkLoad, NodeClass, check_classes, class_rates};
pub use profile::{
    ContentProfile, PROFILE_CHUNKS_MAX, PROFILE_MAX_BYTES, ProfileError, ProfileSubject, ProfiledChunk,
};
pub use published::{Kept, PUBLISHED, Published, results_page};
pub use readers::{Distribution, Readers};
pub use record::{Record, Recording};
pub use report::{Report, simulate, simulate_recorded};
pub use rollout::{Moved, Rollout, quantile};
pub use root_spread::RootSpread;
pub use scenario::{
    Case, Files, Keys, NODE_CHUNKS_MAX, Plan, Problem, RUNS_MAX, Scenario, ScenarioError, check, explain,
    nearest,
};
pub use statistics::Spread;
pub use sweep::{Summary, in_order, shards};
