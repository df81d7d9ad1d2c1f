//! Plain values that every room uses: identities, places, labels, time, limits.
//!
//! No I/O, no clock, no dependency on another room.

mod id;
mod label;
pub mod limits;
mod name;
mod place;
mod rng;
mod rows;
mod time;

pub use id::{Algorithm, ContentId, NodeId, ParseIdError};
pub use label::{CellLabel, ParseCellError};
pub use name::{ParseNameError, RepositoryName};
pub use place::{ChunkRef, Place};
pub use rng::{Generator, Rng, mix};
pub use rows::{NumberIndex, Rows};
pub use time::{ParseMomentError, Time, UnixTime};

use serde::{Deserialize, Serialize};

/// How urgent a fetch is. Lower is more urgent; uploads and downloads serve classes in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Class {
    /// A reader waits for it.
    Read,
    /// It is likely to be read soon.
    Prefetch,
    /// The node wants a full copy some time.
    Fill,
}

/// The number of a revision in a repository's linear history. The first is 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
