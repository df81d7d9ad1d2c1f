//! Weighted rendezvous hashing: which member of a cell, and which cell of a region, is responsible for a slice.
//!
//! Highest random weight (Thaler, Ravishankar: "A name-based mapping scheme for rendezvous", 1996): every node
//! scores every member for a slice and the highest scores win, so that a member's going moves only its own
//! slices. The weighted form scores with `-w / ln u` (Schindelhauer, Schomaker: "Weighted distributed hash
//! tables", 2005), which gives each member a share in proportion to its weight.
//!
//! All nodes must rank alike to the bit, so there is no floating point: `-log2 u` is computed in fixed point by
//! repeated squaring (truncating squares keep the order of their arguments), and fractions are compared by
//! multiplying crosswise.

use crate::model::mix;
use std::cmp::{Ordering, Reverse};

/// Separates the choice of the cell from the choice of the member, which hash the same kinds of keys.
const CELL_SALT: u64 = 0x6365_6c6c_2d73_616c;
/// Fraction bits of the logarithm. Ties are broken by the hash itself.
const FRACTION_BITS: u32 = 24;

/// How well a member does for a slice. Greater is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Score {
    weight: u64,
    hash: u64,
    key: u64,
}

impl Score {
    /// The score of the member `key` with `weight` for `slice_key`.
    fn of(slice_key: u64, key: u64, weight: u16) -> Self {
        Self { weight: u64::from(weight), hash: mix(slice_key ^ mix(key)), key }
    }

    /// The score of a cell; cells count alike.
    fn of_cell(slice_key: u64, cell_key: u64) -> Self {
        Self::of(slice_key ^ CELL_SALT, cell_key, 1)
    }
}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_weight = if self.weight == other.weight {
            Ordering::Equal // The logarithm keeps the order of the hashes.
        } else {
            let mine = u128::from(self.weight) * u128::from(minus_log2(other.hash));
            let theirs = u128::from(other.weight) * u128::from(minus_log2(self.hash));
            mine.cmp(&theirs)
        };
        by_weight.then(self.hash.cmp(&other.hash)).then(self.key.cmp(&other.key))
    }
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The indices of the best members for a slice, best first, at most `ranks`. Members are (key, weight); whoever has
/// weight 0 is left out.
pub fn best_members(slice_key: u64, members: &[(u64, u16)], ranks: usize) -> Vec<usize> {
    let scored = members.iter().enumerate().filter(|(_, (_, weight))| *weight > 0);
    let mut scored: Vec<(Reverse<Score>, usize)> =
        scored.map(|(index, (key, weight))| (Reverse(Score::of(slice_key, *key, *weight)), index)).collect();
    if scored.len() > ranks && ranks > 0 {
        scored.select_nth_unstable(ranks - 1);
        scored.truncate(ranks);
    }
    scored.sort_unstable();
    scored.into_iter().map(|(_, index)| index).take(ranks).collect()
}

/// The indices of the cells that would hold the lease for a slice, among cells given by their keys: the first holds it.
pub fn lease_cells(slice_key: u64, cell_keys: impl IntoIterator<Item = u64>) -> Vec<usize> {
    let scored = cell_keys.into_iter().map(|key| Reverse(Score::of_cell(slice_key, key)));
    let mut scored: Vec<(Reverse<Score>, usize)> = scored.zip(0..).collect();
    scored.sort_unstable();
    scored.into_iter().map(|(_, index)| index).collect()
}

/// `-log2((hash + 1) / 2^64)` in fixed point, at least the smallest fraction (so that no weight is divided by zero).
fn minus_log2(hash: u64) -> u64 {
    let u = hash.saturating_add(1);
    let whole = u64::from(u.leading_zeros());
    let mut mantissa = u << u.leading_zeros();
    let mut fraction = 0_u64;
    for _ in 0..FRACTION_BITS {
        let square = u128::from(mantissa) * u128::from(mantissa);
        let high = u64::try_from(square >> 64).unwrap_or(u64::MAX);
        fraction <<= 1;
        if high >> 63 == 1 {
            fraction |= 1;
            mantissa = high;
        } else {
            mantissa = u64::try_from(square >> 63).unwrap_or(u64::MAX);
        }
    }
    // u / 2^64 = mantissa / 2^64 * 2^-whole, and the mantissa lies between one half and one.
    (((whole + 1) << FRACTION_BITS) - fraction).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_is_right_and_keeps_the_order() {
        for (hash, expected) in [(u64::MAX >> 1, 1.0), ((1 << 62) - 1, 2.0), ((3 << 62) - 1, 0.415_037_499)] {
            let found = minus_log2(hash) as f64 / f64::from(1 << FRACTION_BITS);
            assert!((found - expected).abs() < 1e-6, "{hash}: {found}");
        }
        let mut hash = 1_u64;
        let mut last = u64::MAX;
        while hash < u64::MAX / 3 * 2 {
            let log = minus_log2(hash);
            assert!(log <= last, "{hash}");
            (last, hash) = (log, hash + hash / 3 + 1);
        }
    }

    #[test]
    fn shares_follow_the_weights() {
        let mut wins = [0_u32; 2];
        for slice in 0..20_000 {
            let (a, b) = (Score::of(mix(slice), 1, 100), Score::of(mix(slice), 2, 300));
            wins[usize::from(b > a)] += 1;
        }
        assert!((wins[1] as f64 / 20_000.0 - 0.75).abs() < 0.02, "{wins:?}");
    }

    #[test]
    fn scores_are_the_same_on_all_machines() {
        // Ranks are part of the protocol: a change of these values splits a mesh in two.
        assert_eq!(mix(1 ^ mix(2)), Score::of(1, 2, 5).hash);
        let mut order: Vec<u64> = (0..6).collect();
        order.sort_by_key(|key| {
            std::cmp::Reverse(Score::of(77, *key, 50 + 25 * u16::try_from(*key).unwrap()))
        });
        assert_eq!(order, PINNED);
    }

    const PINNED: [u64; 6] = [5, 4, 1, 2, 3, 0];
}
