//! Which pack leaves the cache: a pure decision, so that the simulator may take the same one.
//!
//! Whole packs go, by least recent use: one `unlink` frees 64 MiB without a copy, and a chunk that
//! is still wanted is fetched again from a neighbour. Packs that nobody has read since the start
//! are older than all others, and among them the one that was written first goes first.

use crate::model::Time;

/// What the policy knows of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackUse {
    /// Packs are numbered in the order in which they were begun.
    pub number: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Last read or write in this run; [`Time::ZERO`] when there was none.
    pub last_used: Time,
    /// Whether records are being appended to it. Such a pack never goes.
    pub active: bool,
}

/// The bounds that the operator sets.
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
}

/// The decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is room once these packs are gone, in this order. Often none.
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

/// Makes room for `wanted_bytes` more. `free_bytes` is what the file system has left.
pub fn make_room(packs: &[PackUse], limits: &Limits, wanted_bytes: u64, free_bytes: u64) -> Verdict {
    let mut order: Vec<&PackUse> = packs.iter().filter(|pack| !pack.active).collect();
    order.sort_by_key(|pack| (pack.last_used, pack.number));
    let mut order = order.into_iter();
    let mut used: u64 = packs.iter().map(|pack| pack.bytes).sum();
    let mut free = free_bytes;
    let mut count = packs.len();
    let mut gone = Vec::new();
    loop {
        let over_quota = used.saturating_add(wanted_bytes) > limits.quota_bytes || count > limits.max_packs;
        let under_floor = free < limits.free_floor_bytes.saturating_add(wanted_bytes);
        if !over_quota && !under_floor {
            return Verdict::Evict(gone);
        }
        let shortage = if over_quota {
            Shortage::Quota { quota_bytes: limits.quota_bytes }
        } else {
            Shortage::FreeSpace { free_bytes: free, floor_bytes: limits.free_floor_bytes }
        };
        let Some(next) = order.next() else { return Verdict::Refuse(shortage) };
        if !over_quota && used.saturating_sub(next.bytes) < limits.minimum_bytes {
            return Verdict::Refuse(shortage);
        }
        used -= next.bytes;
        free = free.saturating_add(next.bytes);
        count -= 1;
        gone.push(next.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits =
        Limits { quota_bytes: 100, free_floor_bytes: 10, minimum_bytes: 40, max_packs: 1000 };

    fn pack(number: u64, bytes: u64, used_at: u64) -> PackUse {
        PackUse { number, bytes, last_used: Time::from_nanos(used_at), active: false }
    }

    #[test]
    fn the_pack_that_was_not_used_for_longest_goes_first() {
        let packs = [pack(1, 30, 9), pack(2, 30, 0), pack(3, 30, 5)];
        assert_eq!(make_room(&packs, &LIMITS, 10, 1000), Verdict::Evict(vec![]));
        assert_eq!(make_room(&packs, &LIMITS, 20, 1000), Verdict::Evict(vec![2]));
        assert_eq!(make_room(&packs, &LIMITS, 50, 1000), Verdict::Evict(vec![2, 3]));
    }

    #[test]
    fn the_active_pack_stays_even_if_there_is_no_room() {
        let packs = [PackUse { active: true, ..pack(1, 90, 0) }];
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

    proptest! {
        #[test]
        fn what_is_promised_fits(
            sizes in proptest::collection::vec((1_u64..50, 0_u64..9), 0..12),
            wanted in 0_u64..120,
            free in 0_u64..200,
        ) {
            let packs: Vec<PackUse> =
                (0_u64..).zip(&sizes).map(|(number, (bytes, at))| pack(number, *bytes, *at)).collect();
            if let Verdict::Evict(gone) = make_room(&packs, &LIMITS, wanted, free) {
                let freed: u64 = packs.iter().filter(|p| gone.contains(&p.number)).map(|p| p.bytes).sum();
                let used: u64 = packs.iter().map(|p| p.bytes).sum();
                prop_assert!(used - freed + wanted <= LIMITS.quota_bytes);
                prop_assert!(free + freed >= LIMITS.free_floor_bytes + wanted);
            }
        }
    }
}
