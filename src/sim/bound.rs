//! The least time in which a fleet can be served at all.
//!
//! Kumar and Ross ("Peer-assisted file distribution: the minimum distribution time", 2006): a file of F bytes cannot
//! reach all N nodes before it has left the source once (F / us), before the slowest downlink has taken it
//! (F / dmin), nor before all uplinks together have sent N copies (N F / (us + sum u)). In a fluid model the largest
//! of the three is reached.

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
