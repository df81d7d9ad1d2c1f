//! Where a tree is divided into catalogs.

/// Entries above which a catalog is divided (design).
const TARGET_ENTRIES: u64 = 2_000;
/// Entries above which even small children are sent off.
const TOLERATED_ENTRIES: u64 = 8 * TARGET_ENTRIES;
/// The largest threshold that is tried.
const LARGEST_THRESHOLD: u64 = 1024;
/// Children below this weight stay, as long as the catalog is tolerable: a catalog costs some KiB of its own.
const SMALLEST_THRESHOLD: u64 = 128;

/// Entries that a directory, and all below it that is not in a catalog of its own, would add to a catalog.
pub type Weight = u64;

/// Decides which children of a directory get catalogs of their own. Returns the least weight of
/// those (`None`: all stay) and the directory's own weight after that.
///
/// `entries` is the number of the directory's entries, `children` the weights of its subdirectories.
/// The outcome depends on nothing else, so a subtree that did not change is divided as before.
pub fn split(entries: u64, children: &[Weight]) -> (Option<Weight>, Weight) {
    let rest =
        |threshold: Weight| entries + children.iter().filter(|weight| **weight < threshold).sum::<Weight>();
    let all = rest(Weight::MAX);
    if all <= TARGET_ENTRIES {
        return (None, all);
    }
    let mut threshold = LARGEST_THRESHOLD;
    // Ends: at threshold 1 only empty directories, which weigh nothing, stay.
    while threshold > 1 {
        let left = rest(threshold);
        if left <= TARGET_ENTRIES || threshold <= SMALLEST_THRESHOLD && left <= TOLERATED_ENTRIES {
            break;
        }
        threshold /= 2;
    }
    (Some(threshold), rest(threshold))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_trees_stay_whole() {
        assert_eq!(split(10, &[5, 1985]), (None, 2000));
    }

    #[test]
    fn the_largest_children_go_first() {
        assert_eq!(split(10, &[1500, 900, 900]), (Some(1024), 1810));
        assert_eq!(split(10, &[1500, 900, 900, 900]), (Some(512), 10));
    }

    #[test]
    fn many_small_children_stay_together_up_to_a_point() {
        assert_eq!(split(1000, &[10; 1000]), (Some(128), 11_000));
        assert_eq!(split(1000, &[100; 1000]), (Some(64), 1000));
    }

    proptest! {
        #[test]
        fn no_catalog_is_intolerable_unless_one_directory_is(
            entries in 0_u64..30_000, children in proptest::collection::vec(0_u64..16_001, 0..300)) {
            let (threshold, weight) = split(entries, &children);
            prop_assert!(weight <= TOLERATED_ENTRIES.max(entries));
            let sent = threshold.map_or(0, |t| children.iter().filter(|w| **w >= t).sum());
            prop_assert_eq!(weight + sent, entries + children.iter().sum::<u64>());
        }
    }
}
