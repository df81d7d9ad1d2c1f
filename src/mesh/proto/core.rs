//! The core of a running agent: a [`Node`] with its tables, fed by [`Event`]s that can be recorded and replayed.

use super::{
    AuditError, Chunk, ContentTable, ContentUpdate, Counts, Event, Input, Nearness, Node, NumberTooLarge,
    Outbox, Peer, PeerTable, PeerUpdate, Peers, Settings, Usage,
};
use crate::model::{Class, Generator, Time};
use serde::{Deserialize, Serialize};

/// All that a core begins with. The same start and the same events give the same outputs to the byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// The number that stands for this node itself.
    pub me: Peer,
    /// The constants.
    pub settings: Settings,
    /// The state of the random generator.
    pub generator: Generator,
}

/// The decisions of one node and the tables that they look at.
///
/// The caller interns; a number that is `Forgotten` may be given to another once nothing refers to it any more.
/// Peers first: this node itself is `Met` and `Up` before anything else happens.
#[derive(Debug)]
pub struct Core {
    node: Node<PeerTable, ContentTable, Generator>,
    limit: u32,
}

impl Core {
    /// A core that knows nobody and nothing yet.
    pub fn new(start: Start) -> Self {
        let Start { me, settings, generator } = start;
        let limit = settings.numbers_max;
        Self { node: Node::new(PeerTable::new(me), ContentTable::default(), generator, settings), limit }
    }

    /// Something reached this node. What there is to do is appended to `out`. `now` never goes back.
    ///
    /// `Peers` updates that change whether a peer is up are followed by what [`Input::PeerUp`] and
    /// [`Input::PeerDown`] would do, so the caller need not send those as well.
    ///
    /// # Errors
    /// [`NumberTooLarge`] when the caller interned more than [`Settings::numbers_max`] things; nothing changed.
    pub fn apply(&mut self, now: Time, event: Event, out: &mut Outbox) -> Result<(), NumberTooLarge> {
        match event {
            Event::Peers(update) => self.apply_peers(now, &update, out)?,
            Event::Content(update) => {
                let replaced = self.node.content_mut().apply(&update, self.limit)?;
                if let ContentUpdate::Belongs { slice, repository } = update {
                    self.node.peers_mut().set_repository(slice, Some(repository));
                }
                if let ContentUpdate::Learned { chunk, .. } | ContentUpdate::Forgotten { chunk } = update {
                    self.node.forget_copy(chunk);
                }
                if let (Some(slice), ContentUpdate::Learned { slice_key, .. }) = (replaced, update) {
                    self.node.peers_mut().set_slice_key(slice, slice_key);
                    self.node.peers_mut().set_repository(slice, None);
                    self.node.forget_slice(slice);
                }
            }
            Event::Input(input) => self.node.handle(now, input, out),
        }
        Ok(())
    }

    fn apply_peers(
        &mut self,
        now: Time,
        update: &PeerUpdate,
        out: &mut Outbox,
    ) -> Result<(), NumberTooLarge> {
        let near = |node: &Node<PeerTable, ContentTable, Generator>, peer| {
            node.peers().is_up(peer) && node.peers().nearness(peer) == Nearness::Cell
        };
        let left = matches!(*update, PeerUpdate::Met { peer, .. } if near(&self.node, peer));
        self.node.peers_mut().apply(update, self.limit)?;
        match *update {
            // The cell halved.
            PeerUpdate::Met { peer, .. } if left && !near(&self.node, peer) => self.node.check_copies(),
            PeerUpdate::Up { peer } => self.node.handle(now, Input::PeerUp { peer }, out),
            PeerUpdate::Down { peer } | PeerUpdate::Forgotten { peer } => {
                self.node.handle(now, Input::PeerDown { peer }, out);
            }
            PeerUpdate::Met { .. } | PeerUpdate::Scoped { .. } => {}
        }
        Ok(())
    }

    /// When [`Input::Tick`] is due, if nothing else happens before. Asked again after each event.
    pub fn next_deadline(&self) -> Option<Time> {
        self.node.next_deadline()
    }

    /// Whether the node's tables agree with each other and stand within their bounds: [`Node::audit`].
    ///
    /// # Errors
    /// [`AuditError`] names the first table that does not.
    pub fn audit(&self) -> Result<Usage, AuditError> {
        self.node.audit()
    }

    /// What was decided how often.
    pub fn counts(&self) -> Counts {
        self.node.counts()
    }

    /// How urgent a chunk is that is being fetched; `None` when it is not.
    pub fn class_of(&self, chunk: Chunk) -> Option<Class> {
        self.node.class_of(chunk)
    }

    /// The view of the mesh.
    pub fn peers(&self) -> &PeerTable {
        self.node.peers()
    }

    /// The interned content.
    pub fn content(&self) -> &ContentTable {
        self.node.content()
    }

    /// Claims of others that are remembered, and of how many peers.
    #[cfg(test)]
    pub(super) fn claims_for_test(&self) -> (usize, usize) {
        self.node.claims.len()
    }
}
