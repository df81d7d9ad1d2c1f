//! Which cells there are: labels, and the parts into which they are halved.

use super::super::proto::{HALVINGS_MAX, Part};
use crate::model::{CellLabel, NodeId};
use std::collections::BTreeMap;
use std::fmt;

/// A cell: those who share a label, or a part of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Cell {
    pub(super) label: CellLabel,
    pub(super) part: Part,
}

impl Cell {
    /// All who share a label.
    pub(super) const fn whole(label: CellLabel) -> Self {
        Self { label, part: Part::WHOLE }
    }

    /// Whether a node with this label is in it.
    pub(super) fn holds(&self, label: &CellLabel, node: &NodeId) -> bool {
        self.label == *label && self.part.holds(node.key())
    }

    /// Whether there may be nodes in both.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.label == other.label && (self.part.covers(other.part) || other.part.covers(self.part))
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.label, self.part)
    }
}

/// This node's cell, and those of which somebody told. A node knows its own cell itself, and of others what their members
/// say. Of labels that nobody spoke of nothing is kept.
pub(super) struct CellBook {
    own: Cell,
    /// No two of a label overlap, and none its own cell.
    told: BTreeMap<CellLabel, Vec<Part>>,
}

impl CellBook {
    pub(super) fn new(own: Cell) -> Self {
        Self { own, told: BTreeMap::new() }
    }

    pub(super) fn own(&self) -> &Cell {
        &self.own
    }

    /// The cell of a node: this one, one that is known, or else the largest that holds it beside those that are known.
    pub(super) fn cell_of(&self, label: &CellLabel, node: &NodeId) -> Cell {
        let key = node.key();
        let told = self.told.get(label).map_or(&[][..], Vec::as_slice);
        let own = (self.own.label == *label).then_some(self.own.part);
        let known = || own.iter().chain(told).copied();
        let free = || {
            (0..=HALVINGS_MAX)
                .map(|bits| Part::of(key, bits))
                .find(|part| !known().any(|known| part.covers(known)))
        };
        let part = known().find(|part| part.holds(key)).or_else(free).unwrap_or_default();
        Cell { label: label.clone(), part }
    }

    /// A member of a cell told which it is. `false` when that cannot be, because this node's own cell is in it.
    pub(super) fn learn(&mut self, cell: &Cell) -> bool {
        if cell.overlaps(&self.own) {
            return false;
        }
        self.forget(cell);
        self.told.entry(cell.label.clone()).or_default().push(cell.part);
        true
    }

    /// Nobody speaks for that cell any more, nor for what overlaps it.
    pub(super) fn forget(&mut self, cell: &Cell) {
        if let Some(parts) = self.told.get_mut(&cell.label) {
            parts.retain(|part| !part.covers(cell.part) && !cell.part.covers(*part));
            if parts.is_empty() {
                self.told.remove(&cell.label);
            }
        }
    }

    /// This node's cell is another part of its label now.
    pub(super) fn set_own(&mut self, part: Part) {
        self.own.part = part;
        self.forget(&self.own.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_in_the_cell_that_is_known_or_in_the_largest_that_is_free() {
        let label: CellLabel = "eu/a/r1".parse().unwrap();
        let other: CellLabel = "eu/a/r2".parse().unwrap();
        let nodes: Vec<NodeId> = (0..200).map(|n| NodeId([n; 32])).collect();
        let own = Part::of(nodes[0].key(), 2);
        let mut book = CellBook::new(Cell { label: label.clone(), part: own });
        for node in &nodes {
            let cell = book.cell_of(&label, node);
            assert!(cell.part.holds(node.key()));
            let near = own.sibling().unwrap().holds(node.key());
            assert_eq!(cell.part.bits(), if own.holds(node.key()) || near { 2 } else { 1 }, "{cell}");
            assert_eq!(book.cell_of(&other, node), Cell::whole(other.clone()));
        }
        // The other half was halved three times more.
        let far = nodes.iter().find(|node| book.cell_of(&label, node).part.bits() == 1).unwrap();
        let told = Cell { label: label.clone(), part: Part::of(far.key(), 4) };
        assert!(book.learn(&told) && book.cell_of(&label, far) == told);
        // One who says that it shares this node's cell and does not is not believed.
        assert!(!book.learn(&Cell::whole(label.clone())));
        // It joined again, and so does this node's.
        assert!(book.learn(&Cell { label: label.clone(), part: Part::of(far.key(), 1) }));
        assert_eq!(book.cell_of(&label, far).part.bits(), 1);
        book.set_own(Part::WHOLE);
        assert!(nodes.iter().all(|node| book.cell_of(&label, node).part == Part::WHOLE));
        assert!(book.told.is_empty());
    }
}
