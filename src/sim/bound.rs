//! The least time in which a fleet can be served at all.
//!
//! Kumar and Ross ("Peer-assisted file distribution: the minimum distribution time", 2006): a file of F bytes cannot
//! reach all N nodes before it has left the source once (F / us), before the slowest downlink has taken it
//! (F / dmin), nor before all uplinks together have sent N copies (N F / (us + sum u)). In a fluid model the largest
//! of the three is reached.

use super::network::node_rates;
use super::scenario::Scenario;
use serde::Serialize;

/// The term that binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Term {
    /// The file leaves the stratum once.
    Stratum,
    /// The slowest downlink takes the file.
    SlowestDownlink,
    /// All uplinks together send N copies.
    AllUplinks,
}

impl Term {
    /// The term as people read it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Stratum => "F/us (the stratum's uplink)",
            Self::SlowestDownlink => "F/dmin (the slowest downlink)",
            Self::AllUplinks => "N F/(us + sum u) (all uplinks together)",
        }
    }
}

/// The bound and what it is made of, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// The largest term.
    pub seconds: f64,
    /// Which it is.
    pub term: Term,
}

/// The bound for `bytes` to `nodes` nodes, rates in bytes a second: the stratum's uplink, the mean of the nodes' uplinks, and
/// the slowest of their downlinks.
pub fn bound(bytes: f64, nodes: f64, stratum: f64, up: f64, down: f64) -> Bound {
    let terms = [
        (Term::Stratum, bytes / stratum),
        (Term::SlowestDownlink, bytes / down),
        (Term::AllUplinks, nodes * bytes / (stratum + nodes * up)),
    ];
    let largest = terms.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
    let (term, seconds) = largest.unwrap_or(terms[0]);
    Bound { seconds, term }
}

/// What servers beside the nodes add to a scenario.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Servers {
    /// All their uplinks together.
    pub(super) mbit_s: f64,
    /// Whether they have the content from the beginning, as the stratum has.
    pub(super) have_all: bool,
}

/// The bound of a scenario, with servers: as sources with the stratum if they have the content, or else their uplinks help.
pub(super) fn bound_of(scenario: &Scenario, seed: u64, servers: Servers) -> Bound {
    let bytes_s = |mbit_s: f64| mbit_s * 1e6 / 8.0;
    let rates = node_rates(scenario, seed);
    let up_mbit_s: f64 = rates.iter().map(|rates| rates[0]).sum();
    let slowest_mbit_s = rates.iter().map(|rates| rates[1]).fold(f64::INFINITY, f64::min);
    let (sources, helpers) = if servers.have_all { (servers.mbit_s, 0.0) } else { (0.0, servers.mbit_s) };
    let nodes = f64::from(scenario.fleet.nodes);
    bound(
        scenario.content.bytes as f64,
        nodes,
        bytes_s(scenario.stratum.up_mbit_s + sources),
        bytes_s((up_mbit_s + helpers) / nodes),
        bytes_s(slowest_mbit_s),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_term_binds_where_it_should() {
        assert_eq!(bound(10.0, 100.0, 1.0, 10.0, 10.0), Bound { seconds: 10.0, term: Term::Stratum });
        assert_eq!(bound(10.0, 100.0, 20.0, 10.0, 5.0), Bound { seconds: 2.0, term: Term::SlowestDownlink });
        assert_eq!(bound(10.0, 9.0, 10.0, 1.0, 10.0).term, Term::AllUplinks);
    }
}
