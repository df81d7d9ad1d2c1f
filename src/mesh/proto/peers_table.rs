//! A running node's view of its peers: what [`Peers`] answers from.

use super::rendezvous::{best_members, lease_cells};
use super::{Nearness, NumberTooLarge, Peer, PeerUpdate, Peers, Repository, SCOPE_MAX, Slice};
use smallvec::SmallVec;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// Ranks that are kept for a slice: all that the core asks for by default.
const RANKS: usize = 16;
/// Slices whose ranks are kept; a further one displaces another (about 600 KiB, taken as slices are asked for).
const CACHED_SLICES: usize = 4_096;
/// Other cells of the region whose home of a slice is kept: more than the core asks by default.
const ELSEWHERE: usize = 4;
/// Contacts in other cells that are offered.
const CONTACTS_MAX: usize = 64;
/// Places among them that contacts in other regions have in any case (guess).
const FAR_CONTACTS: usize = 16;

#[derive(Clone, Copy, Debug)]
struct Row {
    key: u64,
    cell_key: u64,
    cell: u32,
    region: u32,
    weight: u16,
    up: bool,
}

impl Row {
    fn can_be_home(&self) -> bool {
        self.up && self.weight > 0
    }
}

type Ranked = SmallVec<[Peer; 4]>;

#[derive(Clone, Debug)]
struct Ranks {
    slice: Slice,
    own: Ranked,
    lease: Ranked,
    elsewhere: Ranked,
}

/// Which list of a slice's ranks.
#[derive(Clone, Copy)]
enum Of {
    Own,
    Lease,
    Elsewhere,
}

/// Peers by interned number, and the ranks of slices, computed when asked for and kept until the view changes.
#[derive(Clone, Debug)]
pub struct PeerTable {
    me: Peer,
    rows: Vec<Option<Row>>,
    slice_keys: Vec<u64>,
    /// Where slices lie, as far as that is known.
    repositories: Vec<Option<Repository>>,
    /// What the peers may read that may not read all.
    scopes: BTreeMap<Peer, SmallVec<[Repository; 4]>>,
    members: Vec<Peer>,
    contacts: Vec<Peer>,
    other_regions: bool,
    ranks: RefCell<Vec<Option<Ranks>>>,
}

impl PeerTable {
    /// A view of nobody. `me` must be met and up like any other before the view is used.
    pub fn new(me: Peer) -> Self {
        Self {
            me,
            rows: Vec::new(),
            slice_keys: Vec::new(),
            repositories: Vec::new(),
            scopes: BTreeMap::new(),
            members: Vec::new(),
            contacts: Vec::new(),
            other_regions: false,
            ranks: RefCell::new(Vec::new()),
        }
    }

    /// Applies a change.
    ///
    /// # Errors
    /// [`NumberTooLarge`] when the peer's number is not below `limit`; the view is unchanged.
    pub fn apply(&mut self, update: &PeerUpdate, limit: u32) -> Result<(), NumberTooLarge> {
        let (PeerUpdate::Met { peer, .. }
        | PeerUpdate::Scoped { peer, .. }
        | PeerUpdate::Up { peer }
        | PeerUpdate::Down { peer }
        | PeerUpdate::Forgotten { peer }) = *update;
        let index = peer.0 as usize;
        if peer.0 >= limit {
            return Err(NumberTooLarge { found: peer.0, limit });
        }
        if self.rows.len() <= index {
            self.rows.resize(index + 1, None);
        }
        let row = &mut self.rows[index];
        match update {
            PeerUpdate::Met { key, cell, cell_key, region, weight, .. } => {
                let up = row.is_some_and(|row| row.up);
                let (key, cell_key, cell, region, weight) = (*key, *cell_key, *cell, *region, *weight);
                *row = Some(Row { key, cell_key, cell, region, weight, up });
            }
            PeerUpdate::Scoped { repositories: Some(scope), .. } => {
                self.scopes.insert(peer, scope.iter().copied().take(SCOPE_MAX).collect());
            }
            PeerUpdate::Scoped { repositories: None, .. } => {
                self.scopes.remove(&peer);
            }
            PeerUpdate::Up { .. } | PeerUpdate::Down { .. } => {
                if let Some(row) = row {
                    row.up = matches!(update, PeerUpdate::Up { .. });
                }
            }
            PeerUpdate::Forgotten { .. } => {
                *row = None;
                self.scopes.remove(&peer);
            }
        }
        self.look_again();
        Ok(())
    }

    /// Tells which rendezvous key the slice's number stands for.
    pub fn set_slice_key(&mut self, slice: Slice, key: u64) {
        let index = slice.0 as usize;
        if self.slice_keys.len() <= index {
            self.slice_keys.resize(index + 1, 0);
        }
        if self.slice_keys[index] != key {
            self.slice_keys[index] = key;
            if let Some(entry) = self.ranks.get_mut().get_mut(index % CACHED_SLICES) {
                *entry = None;
            }
        }
    }

    /// Tells in which repository a slice lies, if that is known.
    pub fn set_repository(&mut self, slice: Slice, repository: Option<Repository>) {
        let index = slice.0 as usize;
        if self.repositories.get(index).copied().flatten() == repository {
            return;
        }
        if self.repositories.len() <= index {
            self.repositories.resize(index + 1, None);
        }
        self.repositories[index] = repository;
        if let Some(entry) = self.ranks.get_mut().get_mut(index % CACHED_SLICES) {
            *entry = None;
        }
    }

    /// Whether the number stands for somebody.
    pub fn knows(&self, peer: Peer) -> bool {
        self.row(peer).is_some()
    }

    fn row(&self, peer: Peer) -> Option<&Row> {
        self.rows.get(peer.0 as usize).and_then(Option::as_ref)
    }

    fn all(&self) -> impl Iterator<Item = (Peer, &Row)> {
        (0_u32..).map(Peer).zip(&self.rows).filter_map(|(peer, row)| Some((peer, row.as_ref()?)))
    }

    /// Derives everything anew from the view.
    fn look_again(&mut self) {
        self.ranks.get_mut().clear();
        let Some(me) = self.row(self.me).copied() else { return };
        let is_me = |peer: Peer| peer == self.me;
        let members = self
            .all()
            .filter(|(peer, row)| (row.up || is_me(*peer)) && row.cell == me.cell)
            .map(|(peer, _)| peer);
        let others = self.all().filter(|(_, row)| row.up && row.cell != me.cell);
        let (near, mut far): (Vec<_>, Vec<_>) = others.partition(|(_, row)| row.region == me.region);
        // A large region does not leave the others without a place.
        far.truncate(CONTACTS_MAX - near.len().min(CONTACTS_MAX - FAR_CONTACTS));
        let near = near.into_iter().take(CONTACTS_MAX - far.len());
        let contacts = near.chain(far).map(|(peer, _)| peer).collect();
        let members = members.collect();
        let other_regions = self.all().any(|(_, row)| row.region != me.region);
        self.other_regions = other_regions;
        self.contacts = contacts;
        self.members = members;
    }

    fn ranked(&self, slice: Slice, of: Of, rank: usize) -> Option<Peer> {
        let mut cache = self.ranks.borrow_mut();
        let index = slice.0 as usize % CACHED_SLICES;
        if cache.len() <= index {
            cache.resize(index + 1, None);
        }
        let entry = &mut cache[index];
        let ranks = match entry {
            Some(ranks) if ranks.slice == slice => ranks,
            _ => entry.insert(self.rank(slice)),
        };
        let list = match of {
            Of::Own => &ranks.own,
            Of::Lease => &ranks.lease,
            Of::Elsewhere => &ranks.elsewhere,
        };
        list.get(rank).copied()
    }

    fn rank(&self, slice: Slice) -> Ranks {
        let key = self.slice_keys.get(slice.0 as usize).copied().unwrap_or(0);
        let Some(me) = self.row(self.me) else {
            return Ranks { slice, own: Ranked::new(), lease: Ranked::new(), elsewhere: Ranked::new() };
        };
        // Who may not read a repository could not verify or keep what it is the home of, and would be refused.
        let home =
            |peer: Peer, row: &Row| (row.can_be_home() || peer == self.me) && self.may_read(peer, slice);
        let of_region = || self.all().filter(|(peer, row)| row.region == me.region && home(*peer, row));
        // Parts of one label have one key, and the part of the label's best member holds the lease. So a lease stays where
        // it is when a cell halves.
        let keys: Vec<u64> =
            of_region().map(|(_, row)| row.cell_key).collect::<BTreeSet<u64>>().into_iter().collect();
        let labels: Vec<u64> =
            lease_cells(key, keys.iter().copied()).into_iter().map(|index| keys[index]).collect();
        let of_label: Vec<&Row> =
            of_region().map(|(_, row)| row).filter(|row| Some(&row.cell_key) == labels.first()).collect();
        let first = of_label.first().map_or(me.cell, |row| row.cell);
        let lease_cell = if of_label.iter().all(|row| row.cell == first) {
            first
        } else {
            let members: Vec<(u64, u16)> = of_label.iter().map(|row| (row.key, row.weight)).collect();
            best_members(key, &members, 1).first().map_or(me.cell, |best| of_label[*best].cell)
        };
        let of_cell = |cell: u32| {
            let members = self.all().filter(|(peer, row)| row.cell == cell && home(*peer, row));
            let (peers, keys): (Vec<Peer>, Vec<(u64, u16)>) =
                members.map(|(peer, row)| (peer, (row.key, row.weight))).unzip();
            let mut ranked: Ranked =
                best_members(key, &keys, RANKS).into_iter().map(|index| peers[index]).collect();
            if ranked.is_empty() && cell == me.cell {
                // Alone, or while nobody else is met, this node is the home of all.
                ranked.push(self.me);
            }
            ranked
        };
        let own = of_cell(me.cell);
        let lease = if lease_cell == me.cell { own.clone() } else { of_cell(lease_cell) };
        // Of a halved label, the part of its best member.
        let best_of = |label: &u64| {
            let members = of_region()
                .filter(|(_, row)| row.cell_key == *label && row.cell != me.cell && row.can_be_home());
            let (peers, keys): (Vec<Peer>, Vec<(u64, u16)>) =
                members.map(|(peer, row)| (peer, (row.key, row.weight))).unzip();
            best_members(key, &keys, 1).first().map(|index| peers[*index])
        };
        let elsewhere = labels.iter().filter_map(best_of).take(ELSEWHERE).collect();
        Ranks { slice, own, lease, elsewhere }
    }
}

impl Peers for PeerTable {
    fn me(&self) -> Peer {
        self.me
    }

    fn nearness(&self, peer: Peer) -> Nearness {
        match (self.row(peer), self.row(self.me)) {
            (Some(row), Some(me)) if row.cell == me.cell => Nearness::Cell,
            (Some(row), Some(me)) if row.region == me.region => Nearness::Region,
            _ => Nearness::Far,
        }
    }

    fn home(&self, slice: Slice, rank: usize) -> Option<Peer> {
        self.ranked(slice, Of::Own, rank)
    }

    fn lease_home(&self, slice: Slice, rank: usize) -> Option<Peer> {
        self.ranked(slice, Of::Lease, rank)
    }

    fn home_elsewhere(&self, slice: Slice, place: usize) -> Option<Peer> {
        self.ranked(slice, Of::Elsewhere, place)
    }

    fn is_up(&self, peer: Peer) -> bool {
        self.row(peer).is_some_and(|row| row.up)
    }

    fn may_read(&self, peer: Peer, slice: Slice) -> bool {
        let Some(scope) = self.scopes.get(&peer) else { return true };
        let repository = self.repositories.get(slice.0 as usize).copied().flatten();
        repository.is_none_or(|repository| scope.contains(&repository))
    }

    fn has_other_regions(&self) -> bool {
        self.other_regions
    }

    fn members(&self) -> usize {
        self.members.len()
    }

    fn member(&self, index: usize) -> Peer {
        self.members[index]
    }

    fn contacts(&self) -> &[Peer] {
        &self.contacts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(peer: u32, cell: u32, region: u32, weight: u16) -> PeerUpdate {
        let (key, cell_key) = (crate::model::mix(u64::from(peer)), u64::from(cell) + 500);
        PeerUpdate::Met { peer: Peer(peer), key, cell, cell_key, region, weight }
    }

    /// Peers 0-3 in cell 0, 4-5 in cell 1 of the same region, 6 in another region; `me` looks.
    fn table(me: u32) -> PeerTable {
        let mut table = PeerTable::new(Peer(me));
        for (peer, cell, region) in
            [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 1, 0), (5, 1, 0), (6, 2, 1)]
        {
            table.apply(&met(peer, cell, region, 100), 100).unwrap();
            table.apply(&PeerUpdate::Up { peer: Peer(peer) }, 100).unwrap();
        }
        for slice in 0..200 {
            table.set_slice_key(Slice(slice), crate::model::mix(u64::from(slice) << 20));
        }
        table
    }

    #[test]
    fn all_members_of_a_cell_rank_alike() {
        for slice in (0..200).map(Slice) {
            for rank in 0..5 {
                assert_eq!(table(0).home(slice, rank), table(3).home(slice, rank));
                assert_eq!(
                    table(0).lease_home(slice, rank),
                    table(5).lease_home(slice, rank),
                    "and all cells"
                );
            }
        }
    }

    #[test]
    fn a_dead_home_moves_its_own_slices_to_the_next_rank_and_no_other() {
        let (before, mut after) = (table(0), table(0));
        after.apply(&PeerUpdate::Down { peer: Peer(2) }, 100).unwrap();
        let mut moved = 0;
        for slice in (0..200).map(Slice) {
            let (first, second) = (before.home(slice, 0), before.home(slice, 1));
            let expected = if first == Some(Peer(2)) { second } else { first };
            moved += u32::from(first == Some(Peer(2)));
            assert_eq!(after.home(slice, 0), expected);
        }
        assert!((25..75).contains(&moved), "{moved} of 200 slices for one of four members");
        assert_eq!((after.members(), after.is_up(Peer(2))), (3, false));
    }

    #[test]
    fn a_cell_without_live_members_holds_no_lease() {
        let mut table = table(0);
        let other = |table: &PeerTable| {
            (0..200).filter(|slice| table.lease_home(Slice(*slice), 0).is_some_and(|peer| peer.0 > 3)).count()
        };
        assert!((60..140).contains(&other(&table)));
        for peer in [4, 5] {
            table.apply(&PeerUpdate::Down { peer: Peer(peer) }, 100).unwrap();
        }
        assert_eq!(other(&table), 0);
    }

    #[test]
    fn a_lease_stays_where_it_is_when_a_cell_halves() {
        let halved = |me: u32| {
            let mut table = table(me);
            // Of cell 0 the peers 2 and 3 are another cell now, of the same label.
            for peer in [2, 3] {
                let PeerUpdate::Met { key, region, weight, .. } = met(peer, 0, 0, 100) else {
                    unreachable!()
                };
                let update =
                    PeerUpdate::Met { peer: Peer(peer), key, cell: 9, cell_key: 500, region, weight };
                table.apply(&update, 100).unwrap();
            }
            table
        };
        let (whole, views) = (table(0), [halved(0), halved(2), halved(5)]);
        let mut elsewhere = 0;
        for slice in (0..200).map(Slice) {
            let lease = whole.lease_home(slice, 0).unwrap();
            assert!(views.iter().all(|view| view.lease_home(slice, 0) == Some(lease)), "{slice:?}");
            let cell = |peer: Peer| if peer.0 < 2 { 0 } else { peer.0 / 2 };
            let second = views[0].lease_home(slice, 1).unwrap();
            assert_eq!(cell(second), cell(lease), "the next ranks are of the same cell");
            elsewhere += usize::from([2, 3].contains(&lease.0));
        }
        assert!((20..80).contains(&elsewhere), "{elsewhere}");
        assert_eq!((views[0].members(), views[0].nearness(Peer(2))), (2, Nearness::Region));
    }

    #[test]
    fn a_member_of_weight_zero_is_never_a_home_and_a_lone_node_is_all() {
        let mut weightless = table(0);
        weightless.apply(&met(1, 0, 0, 0), 100).unwrap();
        assert!((0..200).all(|slice| weightless.home(Slice(slice), 0) != Some(Peer(1))));
        let mut alone = PeerTable::new(Peer(0));
        alone.apply(&met(0, 0, 0, 0), 1).unwrap();
        assert_eq!((alone.home(Slice(5), 0), alone.lease_home(Slice(5), 0)), (Some(Peer(0)), Some(Peer(0))));
        assert_eq!((alone.home(Slice(5), 1), alone.members(), alone.has_other_regions()), (None, 1, false));
    }

    #[test]
    fn homes_are_ranked_among_those_who_may_read_the_repository() {
        let all = table(0);
        let scoped = |me: u32| {
            let mut table = table(me);
            // Peers 1 and 4 may read repository 7 alone; of the even slices it is known that they lie in repository 8.
            for peer in [1, 4].map(Peer) {
                table
                    .apply(&PeerUpdate::Scoped { peer, repositories: Some(vec![Repository(7)]) }, 100)
                    .unwrap();
            }
            for slice in (0..200).step_by(2).map(Slice) {
                table.set_repository(slice, Some(Repository(8)));
            }
            table
        };
        let (one, other) = (scoped(0), scoped(5));
        for slice in (0..200).map(Slice) {
            let homes =
                |table: &PeerTable| (0..4).filter_map(|rank| table.home(slice, rank)).collect::<Vec<_>>();
            let expected: Vec<Peer> =
                homes(&all).into_iter().filter(|peer| slice.0 % 2 == 1 || *peer != Peer(1)).collect();
            assert_eq!(homes(&one), expected, "the others keep their order, {slice:?}");
            let lease = one.lease_home(slice, 0);
            assert_eq!(lease, other.lease_home(slice, 0), "all cells agree, {slice:?}");
            assert!(slice.0 % 2 == 1 || ![Some(Peer(1)), Some(Peer(4))].contains(&lease));
        }
        // A number that is used again means another slice, and a scope can be lifted.
        let mut again = scoped(0);
        again.apply(&PeerUpdate::Scoped { peer: Peer(1), repositories: None }, 100).unwrap();
        assert!((0..200).map(Slice).all(|slice| again.home(slice, 0) == all.home(slice, 0)));
    }

    #[test]
    fn a_cell_of_which_nobody_may_read_the_repository_holds_no_lease_of_it() {
        let mut table = table(0);
        for peer in [4, 5].map(Peer) {
            table.apply(&PeerUpdate::Scoped { peer, repositories: Some(vec![]) }, 100).unwrap();
        }
        for slice in (0..200).map(Slice) {
            table.set_repository(slice, Some(Repository(1)));
            assert!(table.lease_home(slice, 0).is_some_and(|peer| peer.0 < 4));
        }
    }

    /// The same with another cell of the region, of 7 and 8.
    fn three_cells(me: u32) -> PeerTable {
        let mut table = table(me);
        for peer in [7, 8] {
            table.apply(&met(peer, 3, 0, 100), 100).unwrap();
            table.apply(&PeerUpdate::Up { peer: Peer(peer) }, 100).unwrap();
        }
        table
    }

    #[test]
    fn the_homes_elsewhere_begin_with_the_one_that_had_the_lease_before_this_cell_came() {
        let (table, mut without) = (three_cells(0), three_cells(4));
        for peer in (0..4).map(Peer) {
            without.apply(&PeerUpdate::Forgotten { peer }, 100).unwrap();
        }
        let mut own = 0;
        for slice in (0..200).map(Slice) {
            let found: Vec<Peer> = (0..9).filter_map(|place| table.home_elsewhere(slice, place)).collect();
            assert_eq!(found.len(), 2, "one of each other cell of the region");
            assert!(found.iter().all(|peer| table.nearness(*peer) == Nearness::Region));
            assert_eq!(without.lease_home(slice, 0), found.first().copied());
            let lease = table.lease_home(slice, 0);
            if lease.is_some_and(|home| table.nearness(home) == Nearness::Cell) {
                own += 1;
            } else {
                assert_eq!(lease, found.first().copied(), "the best of the others has it");
            }
        }
        assert!((1..200).contains(&own));
    }

    #[test]
    fn a_large_region_leaves_places_for_contacts_in_others() {
        for (near, far, shown) in
            [(100, 40, [48, 16]), (10, 100, [10, 54]), (100, 3, [61, 3]), (5, 0, [5, 0])]
        {
            let mut table = PeerTable::new(Peer(0));
            for peer in 0..=near + far {
                let (cell, region) = if peer == 0 {
                    (0, 0)
                } else if peer <= near {
                    (1, 0)
                } else {
                    (2, 1)
                };
                table.apply(&met(peer, cell, region, 100), 200).unwrap();
                table.apply(&PeerUpdate::Up { peer: Peer(peer) }, 200).unwrap();
            }
            let of =
                |nearness| table.contacts().iter().filter(|peer| table.nearness(**peer) == nearness).count();
            assert_eq!([of(Nearness::Region), of(Nearness::Far)], shown, "{near} near, {far} far");
        }
    }

    #[test]
    fn contacts_are_nearest_first_and_nearness_is_told() {
        let table = table(0);
        assert_eq!(table.contacts(), [Peer(4), Peer(5), Peer(6)]);
        let near = |peer| table.nearness(Peer(peer));
        assert_eq!([near(1), near(4), near(6), near(50)], {
            use Nearness::{Cell, Far, Region};
            [Cell, Region, Far, Far]
        });
        assert!(table.has_other_regions());
    }
}
