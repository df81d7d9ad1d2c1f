//! What the demonstration found: the table, the JSON object, and whether it is as promised.

use crate::agent::api::Obtained;
use crate::config::ByteSize;
use serde::Serialize;
use std::path::PathBuf;

/// Smallest share of a later node's bytes that comes from its neighbours, in per cent.
const NEIGHBOURS_MIN_PERCENT: u64 = 95;

/// What is expected of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// Alone and empty: everything from the strata.
    Strata,
    /// With neighbours that have it: at least [`NEIGHBOURS_MIN_PERCENT`] from them.
    Neighbours,
    /// With everything in its cache: nothing from the network.
    Cache,
    /// With neighbours and without strata: nothing from the strata.
    NoStrata,
}

/// One pass: a node mounts the tree and reads all of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Pass {
    /// Which node, and in which state.
    pub(super) name: String,
    /// Plain bytes of distinct chunks and catalogs that were in the node's cache when its agent started.
    pub(super) from_cache_bytes: u64,
    /// Those that a neighbour sent.
    pub(super) from_peers_bytes: u64,
    /// Those that came from a stratum.
    pub(super) from_strata_bytes: u64,
    /// Wall time from the mount request to the last byte.
    pub(super) read_seconds: f64,
    /// Whether the mount shows the very tree that was published.
    pub(super) identical: bool,
    #[serde(skip)]
    expected: Expected,
}

/// The whole result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Report {
    /// What was published.
    pub(super) tree: PathBuf,
    /// Bytes of its regular files.
    pub(super) tree_bytes: u64,
    /// Number of its regular files.
    pub(super) tree_files: u64,
    /// Whether every pass read the very tree that was published.
    pub(super) identical: bool,
    /// All passes, in their order.
    pub(super) nodes: Vec<Pass>,
    /// What is not as promised; empty when all is well.
    pub(super) problems: Vec<String>,
}

impl Pass {
    /// What a node obtained between two readings of its own metrics.
    pub(super) fn new(
        name: &str,
        expected: Expected,
        before: Obtained,
        after: Obtained,
        read_seconds: f64,
        identical: bool,
    ) -> Self {
        Self {
            name: name.to_owned(),
            from_cache_bytes: after.cache_bytes.saturating_sub(before.cache_bytes),
            from_peers_bytes: after.peers_bytes.saturating_sub(before.peers_bytes),
            from_strata_bytes: after.strata_bytes.saturating_sub(before.strata_bytes),
            read_seconds,
            identical,
            expected,
        }
    }

    fn total(&self) -> u64 {
        self.from_cache_bytes + self.from_peers_bytes + self.from_strata_bytes
    }

    /// What is not as it should be. A pass that obtained nothing at all proves nothing.
    fn problems(&self) -> Vec<String> {
        let mut found = Vec::new();
        if !self.identical {
            found.push(format!("{} did not read the tree that was published", self.name));
        }
        let (cache, peers, strata) = (self.from_cache_bytes, self.from_peers_bytes, self.from_strata_bytes);
        let (good, should) = match self.expected {
            Expected::Strata => (strata > 0 && peers == 0 && cache == 0, "all from the strata".to_owned()),
            Expected::Neighbours => (
                peers > 0 && peers * 100 >= self.total() * NEIGHBOURS_MIN_PERCENT,
                format!("at least {NEIGHBOURS_MIN_PERCENT} % from neighbours"),
            ),
            Expected::Cache => {
                (cache > 0 && peers == 0 && strata == 0, "nothing from the network".to_owned())
            }
            Expected::NoStrata => (peers > 0 && strata == 0, "nothing from the strata".to_owned()),
        };
        if !good {
            found.push(format!(
                "{} took {cache} bytes from its cache, {peers} from neighbours and {strata} from strata; expected: {should}",
                self.name
            ));
        }
        found
    }
}

impl Report {
    /// Judges the passes.
    pub(super) fn new(tree: PathBuf, tree_bytes: u64, tree_files: u64, nodes: Vec<Pass>) -> Self {
        let problems = nodes.iter().flat_map(Pass::problems).collect();
        let identical = !nodes.is_empty() && nodes.iter().all(|pass| pass.identical);
        Self { tree, tree_bytes, tree_files, identical, nodes, problems }
    }

    /// The table of where every byte came from.
    pub(super) fn table(&self) -> String {
        let rows: Vec<_> = self
            .nodes
            .iter()
            .map(|pass| {
                [
                    pass.name.clone(),
                    share(pass.from_cache_bytes, pass.total()),
                    share(pass.from_peers_bytes, pass.total()),
                    share(pass.from_strata_bytes, pass.total()),
                    format!("{:.1} s", pass.read_seconds),
                    if pass.identical { "identical" } else { "DIFFERENT" }.to_owned(),
                ]
            })
            .collect();
        super::super::ask::table(
            ["NODE", "FROM CACHE", "FROM NEIGHBOURS", "FROM STRATA", "TIME", "CONTENT"],
            &rows,
        )
    }
}

fn share(part: u64, whole: u64) -> String {
    if part == 0 {
        return "-".to_owned();
    }
    let percent = part as f64 * 100.0 / whole as f64;
    format!("{} ({percent:.1} %)", ByteSize(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(expected: Expected, cache: u64, peers: u64, strata: u64) -> Pass {
        let after = Obtained { cache_bytes: cache + 1, peers_bytes: peers + 2, strata_bytes: strata + 3 };
        let before = Obtained { cache_bytes: 1, peers_bytes: 2, strata_bytes: 3 };
        Pass::new("node-x", expected, before, after, 1.25, true)
    }

    #[test]
    fn each_pass_is_held_to_its_promise() {
        for (expected, cache, peers, strata, good) in [
            (Expected::Strata, 0, 0, 100, true),
            (Expected::Strata, 0, 1, 99, false),
            (Expected::Strata, 0, 0, 0, false),
            (Expected::Neighbours, 0, 95, 5, true),
            (Expected::Neighbours, 0, 94, 6, false),
            (Expected::Neighbours, 0, 0, 0, false),
            (Expected::Cache, 100, 0, 0, true),
            (Expected::Cache, 99, 1, 0, false),
            (Expected::Cache, 99, 0, 1, false),
            (Expected::NoStrata, 0, 100, 0, true),
            (Expected::NoStrata, 0, 99, 1, false),
            (Expected::NoStrata, 0, 0, 0, false),
        ] {
            let report = Report::new("/t".into(), 1, 1, vec![pass(expected, cache, peers, strata)]);
            assert_eq!(report.problems.is_empty(), good, "{expected:?} {cache} {peers} {strata}");
        }
    }

    #[test]
    fn one_difference_spoils_the_whole() {
        let mut bad = pass(Expected::Strata, 0, 0, 9);
        bad.identical = false;
        let report = Report::new("/t".into(), 1, 1, vec![pass(Expected::Strata, 0, 0, 9), bad]);
        assert!(!report.identical);
        assert_eq!(report.problems, ["node-x did not read the tree that was published"]);
        assert!(!Report::new("/t".into(), 1, 1, Vec::new()).identical);
    }

    #[test]
    fn the_json_object_has_the_promised_fields() {
        let report = Report::new("/t".into(), 10, 2, vec![pass(Expected::NoStrata, 1, 8, 0)]);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "tree": "/t", "tree_bytes": 10, "tree_files": 2, "identical": true, "problems": [],
                "nodes": [{
                    "name": "node-x", "from_cache_bytes": 1, "from_peers_bytes": 8, "from_strata_bytes": 0,
                    "read_seconds": 1.25, "identical": true
                }]
            })
        );
    }

    #[test]
    fn the_table_shows_sizes_and_shares() {
        let report = Report::new("/t".into(), 10, 2, vec![pass(Expected::Neighbours, 0, 3 << 20, 1 << 20)]);
        let table = report.table();
        assert!(table.contains("3 MiB (75.0 %)") && table.contains("1 MiB (25.0 %)"), "{table}");
    }
}
