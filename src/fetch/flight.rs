//! Fetches under way, by whole reference: whoever wants the same chunk waits for the same one, and a
//! reference that lies about a chunk's place or length cannot spoil the fetch of an honest one.

use crate::mesh::{ObtainError, Obtained};
use crate::model::{ChunkRef, Class};
use bytes::Bytes;
use futures::future::{BoxFuture, Shared, WeakShared};
use std::collections::HashMap;

pub(super) type Outcome = Result<(Bytes, Obtained), ObtainError>;
/// A fetch that is shared by its waiters. When the last of them drops it, it ends.
pub(super) type Flight = Shared<BoxFuture<'static, Outcome>>;

/// The table holds flights weakly, so that waiters alone keep one alive. Each flight holds its part
/// of the process's budget, which bounds the table.
#[derive(Default)]
pub(super) struct Flights {
    flights: HashMap<ChunkRef, (Class, WeakShared<BoxFuture<'static, Outcome>>)>,
    sweep_at: usize,
}

impl Flights {
    /// The fetch of `chunk` that is at least as urgent as `class`.
    pub(super) fn find(&self, chunk: &ChunkRef, class: Class) -> Option<Flight> {
        let (its_class, flight) = self.flights.get(chunk)?;
        let flight = flight.upgrade().filter(|_| *its_class <= class)?;
        // One that failed is over, though some of its waiters have not been told yet.
        (!matches!(flight.peek(), Some(Err(_)))).then_some(flight)
    }

    /// Adds a fetch; it takes the place of a less urgent one, whose waiters keep theirs.
    pub(super) fn add(&mut self, chunk: ChunkRef, class: Class, flight: &Flight) {
        // Those that ended are swept when the table has doubled: constant work for each flight.
        if self.flights.len() >= self.sweep_at {
            self.flights.retain(|_, (_, flight)| flight.upgrade().is_some());
            self.sweep_at = 64.max(2 * self.flights.len());
        }
        if let Some(flight) = flight.downgrade() {
            self.flights.insert(chunk, (class, flight));
        }
    }
}
