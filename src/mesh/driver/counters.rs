//! What the driver counts, for the agent's metrics.

use super::super::proto::Counts;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

macro_rules! counters {
    ($($(#[$doc:meta])+ $name:ident,)+) => {
        /// Counters of the mesh, all growing from 0 at the start.
        #[derive(Debug, Default)]
        pub(super) struct MeshCounters {
            $($(#[$doc])+ pub(super) $name: AtomicU64,)+
            core: Mutex<Counts>,
        }

        /// The counters of the mesh at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
        #[cfg_attr(test, derive(serde::Deserialize))]
        pub struct MeshCounts {
            $($(#[$doc])+ pub $name: u64,)+
            /// Nodes banned.
            pub bans: u64,
            /// What the core decided how often.
            pub core: Counts,
        }

        impl MeshCounters {
            /// All values, and the bans that the endpoint counted.
            pub(super) fn snapshot(&self, bans: u64) -> MeshCounts {
                MeshCounts {
                    bans,
                    $($name: self.$name.load(Ordering::Relaxed),)+
                    core: *self.core.lock().unwrap_or_else(PoisonError::into_inner),
                }
            }

            /// Notes the core's own counts.
            pub(super) fn set_core(&self, counts: Counts) {
                *self.core.lock().unwrap_or_else(PoisonError::into_inner) = counts;
            }
        }
    };
}

counters! {
    /// Chunks asked of peers.
    asks_sent,
    /// Chunks that peers asked for.
    asks_received,
    /// Asks that were answered with data.
    answers_data,
    /// Answers `Wait`, repetitions included.
    answers_wait,
    /// Answers `Busy`.
    answers_busy,
    /// Answers `Missing`.
    answers_missing,
    /// Bytes of chunks sent to peers.
    bytes_up,
    /// Bytes of chunks taken from peers.
    bytes_down,
    /// Chunks taken from the strata under this node's lease.
    upstream_fetches,
    /// Bytes of chunks taken from the strata.
    upstream_bytes,
    /// Chunks that peers sent with wrong bytes.
    wrong_bytes,
    /// Documents that came in fresh.
    news_fresh,
    /// Documents handed on.
    news_sent,
    /// Documents that were not handed on, for too much was being handed on: the exchanges of documents bring them later.
    news_dropped,
    /// Documents that were forged or malformed.
    news_invalid,
    /// Requests of peers that were turned away because too much was under way.
    overload,
    /// Asks to which a peer said `Busy`, truly or not.
    told_busy,
    /// Asks to which a peer said that it does not have the chunk.
    told_missing,
    /// Asks on which a peer was silent for too long.
    stalls,
    /// Documents that came again and were not looked at.
    news_repeated,
    /// Times that this node's cell was halved.
    cells_halved,
    /// Times that this node's cell and another half of its label became one.
    cells_joined,
}

/// Counts one more.
pub(super) fn count(counter: &AtomicU64) {
    add(counter, 1);
}

/// Counts `n` more.
pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
