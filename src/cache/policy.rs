//! What leaves the cache: a pure decision, so that the simulator may take the same one.
//!
//! Packs and bodies are *units*, and go as a whole by least recent use: one `unlink` frees them without a copy, and a
//! chunk that is still wanted is fetched again from a neighbour. Units that nobody has read since the start
//! are older than all others, and among them the one that was written first goes first.

use crate::model::{Time, UnixTime};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The two kinds of units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UnitKind {
    /// Chunks one after the other, as they came.
    Pack,
    /// The chunks of one file, as they lie in it.
    Body,
}

/// What the policy knows of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitUse {
    /// Its number, which no other has.
    pub number: u64,
    /// Its kind.
    pub kind: UnitKind,
    /// Bytes on disk.
    pub bytes: u64,
    /// When it was last written before this run, or begun in it.
    pub written: UnixTime,
    /// Last read or write in this run; [`Time::ZERO`] when there was none.
    pub last_used: Time,
    /// Whether it may not go: it is being written, somebody outside has it open, or it is pinned.
    pub stays: bool,
}

/// The bounds that the operator sets, and those of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes on disk.
    pub quota_bytes: u64,
    /// Bytes that stay free on the file system, for others.
    pub free_floor_bytes: u64,
    /// Eviction for the sake of the floor never shrinks the cache below this.
    pub minimum_bytes: u64,
    /// Most packs: each one is an open file.
    pub max_packs: usize,
    /// Most bodies: each one is two files in one folder, which are all looked at when the cache is opened.
    pub max_bodies: usize,
}

/// What all units come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes on disk.
    pub bytes: u64,
    /// Number of packs.
    pub packs: usize,
    /// Number of bodies.
    pub bodies: usize,
}

/// The decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is room once these units are gone, in this order. Often none.
    Evict(Vec<u64>),
    /// There is no room, and nothing may go.
    Refuse(Shortage),
}

/// What is short when nothing may be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    /// The quota.
    #[error("the quota of {quota_bytes} bytes leaves no room")]
    Quota {
        /// The quota.
        quota_bytes: u64,
    },
    /// The file system.
    #[error("{free_bytes} bytes are free on the file system, of which {floor_bytes} stay free")]
    FreeSpace {
        /// Free bytes.
        free_bytes: u64,
        /// The floor.
        floor_bytes: u64,
    },
}

impl Totals {
    /// What is short when `wanted_bytes` more are to be stored, and the kind of which there are too many, if that is it.
    fn short(
        &self,
        limits: &Limits,
        wanted_bytes: u64,
        free_bytes: u64,
    ) -> Option<(Shortage, Option<UnitKind>)> {
        let crowd = if self.packs > limits.max_packs {
            Some(UnitKind::Pack)
        } else if self.bodies > limits.max_bodies {
            Some(UnitKind::Body)
        } else {
            None
        };
        if crowd.is_some() || self.bytes.saturating_add(wanted_bytes) > limits.quota_bytes {
            return Some((Shortage::Quota { quota_bytes: limits.quota_bytes }, crowd));
        }
        let short = free_bytes < limits.free_floor_bytes.saturating_add(wanted_bytes);
        short.then_some((Shortage::FreeSpace { free_bytes, floor_bytes: limits.free_floor_bytes }, None))
    }

    /// Whether `wanted_bytes` more fit as it is: the answer of [`make_room`] without looking at each unit.
    pub fn fit(&self, limits: &Limits, wanted_bytes: u64, free_bytes: u64) -> bool {
        self.short(limits, wanted_bytes, free_bytes).is_none()
    }
}

/// Makes room for `wanted_bytes` more. `free_bytes` is what the file system has left.
pub fn make_room(units: &[UnitUse], limits: &Limits, wanted_bytes: u64, free_bytes: u64) -> Verdict {
    let of = |kind| units.iter().filter(move |unit| unit.kind == kind);
    let mut totals = Totals {
        bytes: units.iter().map(|unit| unit.bytes).sum(),
        packs: of(UnitKind::Pack).count(),
        bodies: of(UnitKind::Body).count(),
    };
    // Heaps and not a sorted list: of thousands of units a few go.
    let oldest_first = |kind| -> BinaryHeap<_> {
        let may_go = of(kind).filter(|unit| !unit.stays);
        may_go.map(|unit| Reverse((unit.last_used, unit.written, unit.number, unit.bytes))).collect()
    };
    let (mut packs, mut bodies) = (oldest_first(UnitKind::Pack), oldest_first(UnitKind::Body));
    let mut free = free_bytes;
    let mut gone = Vec::new();
    while let Some((shortage, crowd)) = totals.short(limits, wanted_bytes, free) {
        let kind =
            crowd.unwrap_or(if packs.peek() >= bodies.peek() { UnitKind::Pack } else { UnitKind::Body });
        let (heap, count) = match kind {
            UnitKind::Pack => (&mut packs, &mut totals.packs),
            UnitKind::Body => (&mut bodies, &mut totals.bodies),
        };
        let Some(Reverse((.., number, bytes))) = heap.pop() else { return Verdict::Refuse(shortage) };
        let for_the_floor = matches!(shortage, Shortage::FreeSpace { .. });
        if for_the_floor && totals.bytes.saturating_sub(bytes) < limits.minimum_bytes {
            return Verdict::Refuse(shortage);
        }
        *count -= 1;
        totals.bytes -= bytes;
        free = free.saturating_add(bytes);
        gone.push(number);
    }
    Verdict::Evict(gone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        quota_bytes: 100,
        free_floor_bytes: 10,
        minimum_bytes: 40,
        max_packs: 1000,
        max_bodies: 1000,
    };

    fn pack(number: u64, bytes: u64, used_at: u64) -> UnitUse {
        let (kind, written) = (UnitKind::Pack, UnixTime(0));
        UnitUse { number, kind, bytes, written, last_used: Time::from_nanos(used_at), stays: false }
    }

    fn body(number: u64, bytes: u64, used_at: u64) -> UnitUse {
        UnitUse { kind: UnitKind::Body, ..pack(number, bytes, used_at) }
    }

    #[test]
    fn the_pack_that_was_not_used_for_longest_goes_first() {
        let packs = [pack(1, 30, 9), pack(2, 30, 0), pack(3, 30, 5)];
        assert_eq!(make_room(&packs, &LIMITS, 10, 1000), Verdict::Evict(vec![]));
        assert_eq!(make_room(&packs, &LIMITS, 20, 1000), Verdict::Evict(vec![2]));
        assert_eq!(make_room(&packs, &LIMITS, 50, 1000), Verdict::Evict(vec![2, 3]));
    }

    #[test]
    fn what_has_to_stay_stays_even_if_there_is_no_room() {
        let packs = [UnitUse { stays: true, ..pack(1, 90, 0) }];
        let verdict = make_room(&packs, &LIMITS, 20, 1000);
        assert_eq!(verdict, Verdict::Refuse(Shortage::Quota { quota_bytes: 100 }));
    }

    #[test]
    fn a_full_file_system_shrinks_the_cache_to_its_minimum_and_not_below() {
        let packs = [pack(1, 30, 1), pack(2, 30, 2)];
        let verdict = make_room(&packs, &LIMITS, 5, 0);
        assert_eq!(verdict, Verdict::Refuse(Shortage::FreeSpace { free_bytes: 0, floor_bytes: 10 }));
        let packs = [pack(1, 30, 1), pack(2, 30, 2), pack(3, 30, 3)];
        assert_eq!(make_room(&packs, &LIMITS, 5, 0), Verdict::Evict(vec![1]));
    }

    #[test]
    fn too_many_packs_are_too_many_open_files() {
        let limits = Limits { max_packs: 2, ..LIMITS };
        let packs = [pack(1, 1, 3), pack(2, 1, 2), pack(3, 1, 1)];
        assert_eq!(make_room(&packs, &limits, 1, 1000), Verdict::Evict(vec![3]));
    }

    #[test]
    fn bodies_and_packs_go_in_one_order_and_of_unused_ones_the_first_written_goes_first() {
        let units = [pack(1, 30, 5), body(2, 30, 3), pack(3, 30, 7)];
        assert_eq!(make_room(&units, &LIMITS, 50, 1000), Verdict::Evict(vec![2, 1]));
        let written = |unit, at| UnitUse { written: UnixTime(at), ..unit };
        let units = [written(pack(1, 30, 0), 9), written(body(2, 30, 0), 3), written(pack(3, 30, 0), 7)];
        assert_eq!(make_room(&units, &LIMITS, 50, 1000), Verdict::Evict(vec![2, 3]));
        let held = [UnitUse { stays: true, ..body(2, 30, 0) }, pack(1, 30, 5), pack(3, 30, 7)];
        assert_eq!(make_room(&held, &LIMITS, 50, 1000), Verdict::Evict(vec![1, 3]));
    }

    #[test]
    fn too_many_bodies_cost_a_body_and_no_pack() {
        let limits = Limits { max_bodies: 1, ..LIMITS };
        let units = [pack(1, 1, 1), body(2, 1, 3), body(3, 1, 2)];
        assert_eq!(make_room(&units, &limits, 1, 1000), Verdict::Evict(vec![3]));
    }

    proptest! {
        #[test]
        fn what_is_promised_fits(
            sizes in proptest::collection::vec((1_u64..50, 0_u64..9), 0..12),
            wanted in 0_u64..120,
            free in 0_u64..200,
        ) {
            let make = |(number, (bytes, at)): (u64, &(u64, u64))| {
                if number % 3 == 0 { body(number, *bytes, *at) } else { pack(number, *bytes, *at) }
            };
            let packs: Vec<UnitUse> = (0_u64..).zip(&sizes).map(make).collect();
            let verdict = make_room(&packs, &LIMITS, wanted, free);
            let bodies = packs.iter().filter(|unit| unit.kind == UnitKind::Body).count();
            let bytes = packs.iter().map(|unit| unit.bytes).sum();
            let totals = Totals { bytes, packs: packs.len() - bodies, bodies };
            prop_assert_eq!(totals.fit(&LIMITS, wanted, free), verdict == Verdict::Evict(vec![]));
            if let Verdict::Evict(gone) = verdict {
                let freed: u64 = packs.iter().filter(|p| gone.contains(&p.number)).map(|p| p.bytes).sum();
                let used: u64 = packs.iter().map(|p| p.bytes).sum();
                prop_assert!(used - freed + wanted <= LIMITS.quota_bytes);
                prop_assert!(free + freed >= LIMITS.free_floor_bytes + wanted);
            }
        }
    }
}
