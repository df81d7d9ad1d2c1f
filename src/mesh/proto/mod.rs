//! The node's decisions: whom to ask, whom to serve, whom to redirect, when to take a chunk from
//! the strata, what to announce.
//!
//! Nothing here does I/O. [`Node::handle`] is the only way in: time and randomness come from
//! outside, bytes never enter, outputs are collected in an [`Outbox`] in the order in which they
//! were decided. The same code runs in the agent and in the simulator.
//!
//! # The algorithm
//! A slice (about 1 MiB of a segment) has *homes*: the members of a cell in the order of weighted
//! rendezvous hashing. Who wants a chunk asks the first home. A home that holds it serves it while
//! it has upload slots; otherwise it answers *busy* and names others who hold it, of whom it
//! remembers the last 64-128 a slice. A home that does not hold it makes askers wait and gets it
//! once: from the next two ranks if it is new and empty, else from the region's lease home (the
//! home of the slice in the cell that rendezvous hashing picks among the region's cells), else, if
//! it is that lease home, from another region (through the DHT) or from the strata. A dead or
//! failing home is replaced by the next rank, never by the strata.

mod announce;
mod aside;
mod audit;
mod budget;
mod content_table;
mod copies;
mod core;
mod counts;
mod deliveries;
mod doubt;
mod fetch;
mod few;
mod footprint;
mod hedge;
mod held;
mod holders;
mod lookups;
mod marks;
mod news;
mod node;
mod pace;
mod peers_table;
mod pending;
mod possession;
mod prefetch;
mod rare;
mod record;
mod rendezvous;
mod search;
mod settings;
mod speed;
mod split;
mod spread;
mod timer;
mod uploads;
mod upstream;
mod vocabulary;
mod wants;

#[cfg(test)]
mod aside_tests;
#[cfg(test)]
mod copies_tests;
#[cfg(test)]
mod doubt_tests;
#[cfg(test)]
mod hedge_tests;
#[cfg(test)]
mod node_tests;
#[cfg(test)]
mod origin_tests;
#[cfg(test)]
mod possession_tests;
#[cfg(test)]
mod swarm_tests;
#[cfg(test)]
mod testing;

pub use audit::{AuditError, Usage};
pub use content_table::{ContentTable, NumberTooLarge};
pub use core::{Core, Start};
pub use counts::Counts;
pub use footprint::PartBytes;
pub use node::Node;
pub use peers_table::PeerTable;
pub use possession::POSSESSION_MAX;
pub(crate) use prefetch::{prefetch, prefetch_list};
pub use record::{Difference, LINE_MAX_BYTES, Replay, ReplayError, event_line, header_line};
pub use rendezvous::{best_members, lease_cells};
pub use settings::Settings;
pub use split::{HALVINGS_MAX, Halving, Part, Sight, Told};
pub use vocabulary::*;
