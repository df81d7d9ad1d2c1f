//! A run for the tests of reports.

use super::{Digest, Report, simulate_recorded};
use crate::sim::record::{Record, Recording};
use crate::sim::scenario::Scenario;
use std::sync::OnceLock;

const TEXT: &str = "
seed = 1
[fleet]
nodes = 200
regions = 2
cells_per_region = 2
up_mbit_s = 1_000
down_mbit_s = 1_000
[network]
latency_us = 500
links.cell_down_mbit_s = 20_000
[content]
bytes = 20_000_000
slice_bytes = 1_048_576
class = 'Fill'
deadline_s = 60
[stratum]
up_mbit_s = 2_000
connections = 64
";

/// A run of 200 nodes in four cells of two regions, two of them traced. The first seed's is made once.
pub(super) fn run(seed: u64) -> (Scenario, Report, Record) {
    static FIRST: OnceLock<(Scenario, Report, Record)> = OnceLock::new();
    let make = || {
        let scenario = Scenario::parse(TEXT).unwrap();
        let recording = Recording { traced: vec![3, 150] };
        let (report, record) = simulate_recorded(&scenario, Some(seed), &recording, 1, &mut |_| {});
        (scenario, report, record)
    };
    if seed == 1 { FIRST.get_or_init(make).clone() } else { make() }
}

/// Its digest.
pub(super) fn digest(label: &str, seed: u64) -> Digest {
    let (scenario, report, record) = run(seed);
    Digest::new(label, &scenario, &report, &record)
}

/// The digest of a run that ended then.
pub(super) fn ends(label: &str, makespan_s: f64) -> Digest {
    let mut digest = digest(label, 1);
    digest.report.rollout.makespan_s = makespan_s;
    digest
}
