//! Numbers for peers, and what the driver knows of each.

use super::super::membership::{MembershipCert, Role, SEED_SHARE};
use super::super::proto::{Part, Peer, PeerUpdate};
use super::cell_book::{Cell, CellBook};
use super::repositories::RepositoryBook;
use crate::model::{CellLabel, ContentId, NodeId, RepositoryName};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

/// Most peers that have numbers at once: a full cell, and thirty like it in the region (guess).
const PEERS_MAX: usize = 1 << 16;
/// Most labels of cells and regions that are told apart (the labels come from certificates of the authority).
const LABELS_MAX: usize = 1 << 14;
/// Share of placements of an ordinary node.
const ORDINARY_WEIGHT: u16 = 100;
/// The number of cell and region of a peer whose label is not known yet.
const ELSEWHERE: u32 = u32::MAX;

/// A peer that has a number.
#[derive(Clone, Debug)]
pub(super) struct PeerEntry {
    pub(super) node: NodeId,
    pub(super) addr: SocketAddr,
    /// `None` until a certificate was seen.
    pub(super) cell: Option<CellLabel>,
    /// Which part of the label its cell is, as far as is known.
    part: Part,
    /// The newest certificate that it showed, or that a member of its cell told.
    pub(super) membership: Option<MembershipCert>,
    pub(super) up: bool,
    pub(super) bytes_down: u64,
    pub(super) bytes_up: u64,
    pub(super) rtt: Option<Duration>,
    /// Requests under way to it, and uploads to it.
    pins: u32,
}

impl PeerEntry {
    /// The repositories that it may read, when that is known and not all.
    fn scope(&self) -> Option<&[RepositoryName]> {
        self.membership.as_ref()?.scope.names()
    }

    /// Whether it may read a repository, as far as is known: of a peer that was only heard of, its first handshake
    /// will tell.
    pub(super) fn may_read(&self, repository: &RepositoryName) -> bool {
        self.membership.as_ref().is_none_or(|membership| membership.scope.covers(repository))
    }
}

/// The book of peers. Number 0 is this node.
pub(super) struct PeerBook {
    rows: Vec<Option<PeerEntry>>,
    free: Vec<u32>,
    by_node: HashMap<NodeId, Peer>,
    cells: HashMap<Cell, u32>,
    book: CellBook,
    regions: HashMap<String, u32>,
    /// Others that are up.
    up: usize,
    /// Those, and this node, that may not read everything.
    scoped: usize,
}

/// This node's own number.
pub(super) const ME: Peer = Peer(0);

impl PeerBook {
    /// A book with this node in it, and what the core has to be told.
    pub(super) fn new(node: NodeId, addr: SocketAddr, cell: &CellLabel) -> (Self, Vec<PeerUpdate>) {
        let mut book = Self {
            rows: Vec::new(),
            free: Vec::new(),
            by_node: HashMap::new(),
            cells: HashMap::new(),
            book: CellBook::new(Cell::whole(cell.clone())),
            regions: HashMap::new(),
            up: 0,
            scoped: 0,
        };
        let mut updates = Vec::new();
        let me = book.meet(node, addr, Some(cell), &mut updates);
        debug_assert_eq!(me, Some(ME));
        book.set_up(ME, true, &mut updates);
        (book, updates)
    }

    /// The number of a node; appends what the core has to be told. A cell that was unknown is filled in,
    /// the address follows the latest news. `None`: the book is full.
    pub(super) fn meet(
        &mut self,
        node: NodeId,
        addr: SocketAddr,
        cell: Option<&CellLabel>,
        updates: &mut Vec<PeerUpdate>,
    ) -> Option<Peer> {
        if let Some(peer) = self.by_node.get(&node).copied() {
            let entry = self.rows[peer.0 as usize].as_mut()?;
            entry.addr = addr;
            if cell.is_some() && entry.cell.as_ref() != cell {
                entry.cell = cell.cloned();
                updates.push(self.met(peer, node, cell));
            }
            return Some(peer);
        }
        let row = PeerEntry {
            node,
            addr,
            cell: cell.cloned(),
            part: Part::WHOLE,
            membership: None,
            up: false,
            bytes_down: 0,
            bytes_up: 0,
            rtt: None,
            pins: 0,
        };
        let peer = match self.free.pop() {
            Some(number) => {
                self.rows[number as usize] = Some(row);
                Peer(number)
            }
            None if self.rows.len() < PEERS_MAX => {
                self.rows.push(Some(row));
                Peer(u32::try_from(self.rows.len() - 1).ok()?)
            }
            None => {
                let gone = self.forget_one()?;
                updates.push(PeerUpdate::Forgotten { peer: gone });
                self.rows[gone.0 as usize] = Some(row);
                gone
            }
        };
        self.by_node.insert(node, peer);
        updates.push(self.met(peer, node, cell));
        Some(peer)
    }

    /// Notes a peer's certificate, if it is newer than the one that is known.
    pub(super) fn certify(
        &mut self,
        peer: Peer,
        membership: &MembershipCert,
        repositories: &mut RepositoryBook,
        updates: &mut Vec<PeerUpdate>,
    ) {
        let Some(entry) = self.get_mut(peer).filter(|entry| entry.node == membership.node) else { return };
        let known = entry.membership.as_ref();
        if known.is_some_and(|known| !membership.supersedes(known)) {
            return;
        }
        let before = weight(known);
        let scope_before = entry.scope().map(<[_]>::to_vec);
        entry.membership = Some(membership.clone());
        let moved = entry.cell.as_ref() != Some(&membership.cell);
        if moved || before != weight(Some(membership)) {
            entry.cell = Some(membership.cell.clone());
            updates.push(self.met(peer, membership.node, Some(&membership.cell)));
        }
        let scope = membership.scope.names();
        if scope != scope_before.as_deref() {
            self.scoped += usize::from(scope.is_some());
            self.scoped -= usize::from(scope_before.is_some());
            let numbers =
                |names: &[RepositoryName]| names.iter().map(|name| repositories.keep(name)).collect();
            updates.push(PeerUpdate::Scoped { peer, repositories: scope.map(numbers) });
        }
    }

    /// Whether somebody is known who may not read everything.
    pub(super) fn any_scoped(&self) -> bool {
        self.scoped > 0
    }

    /// Notes that a peer answers or does not.
    pub(super) fn set_up(&mut self, peer: Peer, up: bool, updates: &mut Vec<PeerUpdate>) {
        if let Some(entry) = self.get_mut(peer)
            && entry.up != up
        {
            entry.up = up;
            updates.push(if up { PeerUpdate::Up { peer } } else { PeerUpdate::Down { peer } });
            if peer != ME {
                self.up = if up { self.up + 1 } else { self.up.saturating_sub(1) };
            }
        }
    }

    /// The number of a node that is known.
    pub(super) fn number(&self, node: &NodeId) -> Option<Peer> {
        self.by_node.get(node).copied()
    }

    /// The peer behind a number.
    pub(super) fn get(&self, peer: Peer) -> Option<&PeerEntry> {
        self.rows.get(peer.0 as usize)?.as_ref()
    }

    /// The peer behind a number, to change its books.
    pub(super) fn get_mut(&mut self, peer: Peer) -> Option<&mut PeerEntry> {
        self.rows.get_mut(peer.0 as usize)?.as_mut()
    }

    /// How many others are believed to be alive.
    pub(super) fn up(&self) -> usize {
        self.up
    }

    /// All peers but this node.
    pub(super) fn others(&self) -> impl Iterator<Item = (Peer, &PeerEntry)> {
        (0u32..).map(Peer).zip(&self.rows).skip(1).filter_map(|(peer, row)| Some((peer, row.as_ref()?)))
    }

    /// Keeps a number from being given away until as many [`PeerBook::unpin`]s.
    pub(super) fn pin(&mut self, peer: Peer) {
        if let Some(entry) = self.get_mut(peer) {
            entry.pins += 1;
        }
    }

    /// The end of a [`PeerBook::pin`].
    pub(super) fn unpin(&mut self, peer: Peer) {
        if let Some(entry) = self.get_mut(peer) {
            debug_assert!(entry.pins > 0, "unpinned once too often");
            entry.pins = entry.pins.saturating_sub(1);
        }
    }

    /// This node's cell.
    pub(super) fn own_cell(&self) -> &Cell {
        self.book.own()
    }

    /// The cell of a node with this label, as far as is known.
    pub(super) fn cell_of(&self, label: &CellLabel, node: &NodeId) -> Cell {
        self.book.cell_of(label, node)
    }

    /// Whether a peer is in this cell.
    pub(super) fn is_in(&self, entry: &PeerEntry, cell: &Cell) -> bool {
        entry.cell.as_ref() == Some(&cell.label) && entry.part == cell.part
    }

    /// This node's cell is another part of its label now.
    pub(super) fn set_own_part(&mut self, part: Part, updates: &mut Vec<PeerUpdate>) {
        self.book.set_own(part);
        self.sort_label(&self.book.own().label.clone(), updates);
    }

    /// A member of another cell told which it is. `false` when that cannot be.
    pub(super) fn learn_cell(&mut self, cell: &Cell, updates: &mut Vec<PeerUpdate>) -> bool {
        let possible = self.book.learn(cell);
        if possible {
            self.sort_label(&cell.label, updates);
        }
        possible
    }

    /// Puts all peers with this label into the cells that they are in now.
    fn sort_label(&mut self, label: &CellLabel, updates: &mut Vec<PeerUpdate>) {
        let all = (0u32..).map(Peer).zip(&self.rows).filter_map(|(peer, row)| Some((peer, row.as_ref()?)));
        let of_label = all.filter(|(_, entry)| entry.cell.as_ref() == Some(label));
        let moved: Vec<(Peer, NodeId)> = of_label
            .filter(|(_, entry)| self.book.cell_of(label, &entry.node).part != entry.part)
            .map(|(peer, entry)| (peer, entry.node))
            .collect();
        for (peer, node) in moved {
            updates.push(self.met(peer, node, Some(label)));
        }
    }

    fn met(&mut self, peer: Peer, node: NodeId, cell: Option<&CellLabel>) -> PeerUpdate {
        let number = |labels: usize| u32::try_from(labels).unwrap_or(ELSEWHERE);
        let (mut cell_number, mut region, mut cell_key) = (ELSEWHERE, ELSEWHERE, 0);
        if let Some(cell) = cell {
            // All parts of a label have its key: so the leases stay where they are when a cell halves.
            cell_key = ContentId::of(cell.as_str().as_bytes()).key();
            let whole = self.book.cell_of(cell, &node);
            if let Some(entry) = self.get_mut(peer) {
                entry.part = whole.part;
            }
            let next = number(self.cells.len());
            if self.cells.len() < LABELS_MAX || self.cells.contains_key(&whole) {
                cell_number = *self.cells.entry(whole).or_insert(next);
            }
            let next = number(self.regions.len());
            if self.regions.len() < LABELS_MAX || self.regions.contains_key(cell.region()) {
                region = *self.regions.entry(cell.region().to_owned()).or_insert(next);
            }
        }
        // A node whose cell is not known is a home nowhere.
        let known = self.get(peer).and_then(|entry| entry.membership.as_ref());
        let weight = if cell_number == ELSEWHERE { 0 } else { weight(known) };
        PeerUpdate::Met { peer, key: node.key(), cell: cell_number, cell_key, region, weight }
    }

    /// Gives away the number of a peer that is down and has nothing under way.
    fn forget_one(&mut self) -> Option<Peer> {
        let gone = self.others().find(|(_, entry)| !entry.up && entry.pins == 0).map(|(peer, _)| peer)?;
        let entry = self.rows[gone.0 as usize].take()?;
        self.by_node.remove(&entry.node);
        self.scoped -= usize::from(entry.scope().is_some());
        Some(gone)
    }
}

/// A peer's share of placements: a seed has several of an ordinary member's.
fn weight(membership: Option<&MembershipCert>) -> u16 {
    match membership.map(|membership| membership.role) {
        Some(Role::Seed) => SEED_SHARE * ORDINARY_WEIGHT,
        _ => ORDINARY_WEIGHT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn label(text: &str) -> CellLabel {
        text.parse().unwrap()
    }

    #[test]
    fn this_node_is_number_zero_and_up_before_anybody_else() {
        let (_, updates) = PeerBook::new(NodeId([1; 32]), addr(1), &label("a/b/c"));
        let PeerUpdate::Met { peer, cell, region, weight, .. } = updates[0] else { unreachable!() };
        assert_eq!((peer, cell, region, weight), (ME, 0, 0, ORDINARY_WEIGHT));
        assert_eq!(updates[1..], [PeerUpdate::Up { peer: ME }]);
    }

    #[test]
    fn a_peer_without_a_label_is_elsewhere_until_its_certificate_is_seen() {
        let (mut book, _) = PeerBook::new(NodeId([1; 32]), addr(1), &label("a/b/c"));
        let mut updates = Vec::new();
        let peer = book.meet(NodeId([2; 32]), addr(2), None, &mut updates).unwrap();
        assert!(matches!(
            updates[..],
            [PeerUpdate::Met { cell: ELSEWHERE, region: ELSEWHERE, weight: 0, .. }]
        ));
        updates.clear();
        assert_eq!(book.meet(NodeId([2; 32]), addr(3), Some(&label("a/b/d")), &mut updates), Some(peer));
        assert!(matches!(updates[..], [PeerUpdate::Met { cell: 1, region: 0, weight: ORDINARY_WEIGHT, .. }]));
        assert_eq!(book.get(peer).unwrap().addr, addr(3));
        updates.clear();
        book.meet(NodeId([2; 32]), addr(3), None, &mut updates);
        assert!(updates.is_empty(), "a label that is known is not lost again");
    }

    #[test]
    fn being_up_is_told_once() {
        let (mut book, _) = PeerBook::new(NodeId([1; 32]), addr(1), &label("a/b/c"));
        let mut updates = Vec::new();
        let peer = book.meet(NodeId([2; 32]), addr(2), Some(&label("a/b/c")), &mut updates).unwrap();
        updates.clear();
        for up in [true, true, false, false] {
            book.set_up(peer, up, &mut updates);
        }
        assert_eq!(updates, [PeerUpdate::Up { peer }, PeerUpdate::Down { peer }]);
    }
}
