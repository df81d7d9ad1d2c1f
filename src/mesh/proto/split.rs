//! Cells that grow too large split, and join again when they shrink.
//!
//! A cell is what shares a label, as the operator placed his machines; labels are never joined. When more than a cell may
//! hold share one, the label is split by the leading bits of a hash of the node's key: one bit makes two cells of half the
//! size, and each further bit splits each of them. Every node counts for itself how many share its label, so
//! counts differ for a while; the number at which cells join again lies well below the one at which they split, so that a
//! fleet near a bound does not go back and forth. A newcomer begins with what most others do.
//!
//! Homes move as little as can be: a half ranks its members as the whole did, so the half that holds a slice's home keeps
//! it, and the other half's home is whoever ranked best in it.

use crate::model::mix;

/// Most bits: 256 cells of one label, half a million nodes.
pub const SPLIT_BITS_MAX: u8 = 8;
/// Cells join again when together they have fewer than this share of the most that one may have, in percent (guess: a
/// rolling restart of a third of a fleet must not move homes).
const JOIN_PERCENT: u64 = 60;
/// Separates the hash from others of the same key.
const SALT: u64 = 0x7370_6c69_742d_6269;

/// How many bits a label is split by, for `sharing` nodes that share it, after it was split by `now`. `None`: this
/// node does not know yet, and nobody told.
pub fn split_bits(now: Option<u8>, sharing: usize, cell_max: usize) -> u8 {
    let (sharing, most) = (sharing as u64, (cell_max as u64).max(1));
    let mut bits = now.unwrap_or(0).min(SPLIT_BITS_MAX);
    while bits < SPLIT_BITS_MAX && sharing > most << bits {
        bits += 1;
    }
    while bits > 0 && sharing * 100 < (most << (bits - 1)) * JOIN_PERCENT {
        bits -= 1;
    }
    bits
}

/// What most of the others do; the finer of two as common, because a cell too large does more harm.
pub fn most_common(bits: impl IntoIterator<Item = u8>) -> Option<u8> {
    let mut counts = [0_usize; SPLIT_BITS_MAX as usize + 1];
    for bits in bits.into_iter().filter(|bits| *bits <= SPLIT_BITS_MAX) {
        counts[usize::from(bits)] += 1;
    }
    let best = (0..=SPLIT_BITS_MAX).max_by_key(|bits| counts[usize::from(*bits)])?;
    (counts[usize::from(best)] > 0).then_some(best)
}

/// Which of the `2^bits` cells of a label the node with this key is in.
pub fn part_of_label(node_key: u64, bits: u8) -> u8 {
    let bits = bits.min(SPLIT_BITS_MAX);
    let hash = mix(node_key ^ SALT);
    u8::try_from(hash.checked_shr(64 - u32::from(bits)).unwrap_or(0)).unwrap_or(0)
}

/// The rendezvous key of a part of a label. A label that is not split keeps its own.
pub fn part_key(label_key: u64, bits: u8, part: u8) -> u64 {
    if bits == 0 { label_key } else { mix(label_key ^ mix(SALT ^ u64::from(bits) << 8 ^ u64::from(part))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::proto::best_members;
    use crate::model::{Generator, Rng};
    use std::collections::BTreeMap;

    const MAX: usize = 2_000;

    #[test]
    fn a_label_that_grows_is_split_and_no_cell_is_much_larger_than_allowed() {
        let mut bits = None;
        for nodes in (100..60_000).step_by(700) {
            let now = split_bits(bits, nodes, MAX);
            assert!(bits.is_none_or(|before| now >= before), "growing never joins");
            bits = Some(now);
            let mut sizes: BTreeMap<u8, usize> = BTreeMap::new();
            for node in 0..nodes as u64 {
                *sizes.entry(part_of_label(mix(node), now)).or_default() += 1;
            }
            assert_eq!(sizes.len(), 1 << now);
            assert!(sizes.values().all(|size| *size <= MAX * 11 / 10), "{nodes} nodes: {sizes:?}");
        }
        assert_eq!(bits, Some(5));
        assert_eq!(split_bits(None, usize::MAX >> 8, MAX), SPLIT_BITS_MAX, "bounded");
        assert_eq!((split_bits(bits, 900, MAX), split_bits(bits, 1_300, MAX)), (0, 1), "and joins again");
    }

    #[test]
    fn a_fleet_near_a_bound_does_not_go_back_and_forth() {
        // Nodes see counts of their own that are late and wrong by up to a tenth, for a day of half minutes.
        for around in [1_200, 1_999, 2_400, 4_000] {
            let mut rng = Generator::new(around as u64);
            let mut bits = [None; 50];
            let mut changes = 0;
            for _ in 0..2_880 {
                for bits in &mut bits {
                    let seen = around * 9 / 10 + rng.below(around / 5);
                    let next = split_bits(*bits, seen, MAX);
                    changes += usize::from(bits.is_some_and(|before| before != next));
                    *bits = Some(next);
                }
            }
            assert!(changes <= bits.len(), "{changes} changes by 50 nodes around {around}");
            assert!(bits.iter().all(|other| *other == bits[0]), "all agree around {around}: {bits:?}");
        }
    }

    #[test]
    fn a_newcomer_does_as_most_others() {
        assert_eq!(most_common([1, 1, 2, 0]), Some(1));
        assert_eq!(most_common([1, 2]), Some(2));
        assert_eq!(most_common([200]), None);
        // Within the band, both one cell and two are right: what the others do decides.
        assert_eq!((split_bits(Some(1), 1_500, MAX), split_bits(Some(0), 1_500, MAX)), (1, 0));
    }

    #[test]
    fn when_a_cell_splits_each_half_keeps_the_order_of_its_homes() {
        let members: Vec<(u64, u16)> = (0..300).map(|node| (mix(node), 100)).collect();
        let mut kept = [0; 2];
        for slice in (0..400).map(mix) {
            let whole = best_members(slice, &members, 300);
            for half in 0..2 {
                let in_half = |index: &usize| part_of_label(members[*index].0, 1) == half;
                let indices: Vec<usize> = (0..300).filter(in_half).collect();
                let keys: Vec<(u64, u16)> = indices.iter().map(|index| members[*index]).collect();
                let ranked: Vec<usize> =
                    best_members(slice, &keys, 300).into_iter().map(|index| indices[index]).collect();
                let expected: Vec<usize> = whole.iter().copied().filter(in_half).collect();
                assert_eq!(ranked, expected);
                kept[usize::from(half)] += usize::from(ranked[0] == whole[0]);
            }
        }
        assert_eq!(kept[0] + kept[1], 400, "exactly one half keeps a slice's home");
        assert!(kept.iter().all(|kept| *kept > 150), "{kept:?}");
    }

    #[test]
    fn parts_refine_and_their_keys_differ() {
        for node in (0..500).map(mix) {
            assert_eq!(part_of_label(node, 0), 0);
            for bits in 0..SPLIT_BITS_MAX {
                assert_eq!(part_of_label(node, bits + 1) >> 1, part_of_label(node, bits));
            }
        }
        assert_eq!(part_key(77, 0, 0), 77);
        let keys: std::collections::BTreeSet<u64> =
            (1..=3).flat_map(|bits| (0..1 << bits).map(move |part| part_key(77, bits, part))).collect();
        assert_eq!(keys.len(), 2 + 4 + 8);
    }
}
