//! The tables that CSV and Parquet files have: their columns, and the rows of a run.
//!
//! The columns stand here once, with their kinds and meanings; both writers and docs/simulation-report.md go by them.

use super::Report;
use crate::sim::record::{LinkRecord, NodeRecord, Record, Sample};

/// A column: name, kind, and what it has.
pub type Column = (&'static str, Kind, &'static str);

/// What a column has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// A whole number that is not negative.
    Whole,
    /// A number; none where there is none.
    Real,
}

/// A field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Of a [`Kind::Text`] column.
    Text(&'a str),
    /// Of a [`Kind::Whole`] column.
    Whole(u64),
    /// Of a [`Kind::Real`] column; what is not finite stands for none.
    Real(f64),
}

/// A table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// A row a run.
    Runs,
    /// A row a node of each run.
    Nodes,
    /// A row a link of each run.
    Links,
    /// A row a sample of each run.
    Samples,
}

const RUN: Column = ("run", Kind::Text, "the run's label");
const SEED: Column = ("seed", Kind::Whole, "the run's seed");

const RUNS: &[Column] = &[
    RUN,
    SEED,
    ("nodes", Kind::Whole, "honest nodes"),
    ("completed", Kind::Whole, "those of them that have everything in the end"),
    ("makespan_s", Kind::Real, "when the last of those had it, s"),
    ("bound_s", Kind::Real, "the least possible time, s"),
    ("makespan_over_bound", Kind::Real, "the one divided by the other"),
    ("p50_s", Kind::Real, "when half of them had it, s"),
    ("p99_s", Kind::Real, "when 99 % had it, s"),
    ("strata_bytes", Kind::Whole, "bytes that left the stratum"),
    ("strata_copies", Kind::Real, "the same in copies of the content"),
    ("most_into_a_cell_copies", Kind::Real, "most that came into a cell from outside of it, in copies"),
    ("most_given_copies", Kind::Real, "most that a node gave, in copies"),
    ("liars", Kind::Whole, "nodes that lied"),
    ("messages", Kind::Whole, "messages between nodes and to the stratum"),
    ("transfers", Kind::Whole, "chunks that moved"),
    ("events", Kind::Whole, "events that nodes reacted to"),
    ("result_hash", Kind::Text, "the same for the same result"),
    ("model", Kind::Text, "the network model and its error band"),
];

const NODES: &[Column] = &[
    RUN,
    SEED,
    ("node", Kind::Whole, "number of the node"),
    ("class", Kind::Text, "its class"),
    ("region", Kind::Whole, "number of its region"),
    ("cell", Kind::Whole, "number of its cell, counted through all regions"),
    ("liar", Kind::Whole, "1 if it lied"),
    ("start_s", Kind::Real, "when it began to want the content, s"),
    ("end_s", Kind::Real, "when it had everything, s; empty if it never had"),
    ("given_up", Kind::Whole, "chunks that it gave up"),
    ("from_strata_bytes", Kind::Whole, "what it took from the stratum"),
    ("from_peers_bytes", Kind::Whole, "what it took from others"),
    ("given_bytes", Kind::Whole, "what it gave to others"),
    ("receiving_s", Kind::Real, "time in which something was on its way to it, s"),
    ("waiting_s", Kind::Real, "time in which nothing was, but it had asked or looked for something, s"),
    ("idle_s", Kind::Real, "other time between its start and its end, s"),
];

const LINKS: &[Column] = &[
    RUN,
    SEED,
    ("link", Kind::Text, "which"),
    ("capacity_bytes_s", Kind::Real, "what it can carry a second"),
    ("bytes", Kind::Real, "what it carried"),
    ("busy_share", Kind::Real, "share of the run in which it carried 98 % of its capacity or more"),
];

const SAMPLES: &[Column] = &[
    RUN,
    SEED,
    ("at_s", Kind::Real, "the moment, s"),
    ("completed", Kind::Whole, "honest nodes that have everything"),
    ("receiving", Kind::Whole, "others to which something is on its way"),
    ("waiting", Kind::Whole, "others that asked or look for something"),
    ("idle", Kind::Whole, "others that do neither"),
    ("strata_bytes", Kind::Whole, "bytes that left the stratum until now"),
    ("between_regions_bytes", Kind::Whole, "bytes that went from a region to another until now"),
];

impl Table {
    /// All tables.
    pub const ALL: [Self; 4] = [Self::Runs, Self::Nodes, Self::Links, Self::Samples];

    /// The name of its file, without the ending.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Runs => "runs",
            Self::Nodes => "nodes",
            Self::Links => "links",
            Self::Samples => "samples",
        }
    }

    /// Its columns.
    pub const fn columns(self) -> &'static [Column] {
        match self {
            Self::Runs => RUNS,
            Self::Nodes => NODES,
            Self::Links => LINKS,
            Self::Samples => SAMPLES,
        }
    }

    /// Hands the rows of a run to `take`, one after the other, until it fails.
    ///
    /// # Errors
    /// The first of `take`'s.
    pub fn rows<E>(
        self,
        run: &Run<'_>,
        mut take: impl FnMut(&[Value<'_>]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (label, seed) = (Value::Text(run.label), Value::Whole(run.report.rollout.seed));
        match self {
            Self::Runs => take(&run_row(label, seed, run.report)),
            Self::Nodes => (0..).zip(&run.record.nodes).try_for_each(|(number, node)| {
                let class = run.record.classes.get(usize::from(node.class)).map_or("", String::as_str);
                take(&node_row(label, seed, number, class, node))
            }),
            Self::Links => run.record.links.iter().try_for_each(|link| take(&link_row(label, seed, link))),
            Self::Samples => {
                run.record.samples.iter().try_for_each(|sample| take(&sample_row(label, seed, sample)))
            }
        }
    }
}

/// A run with what it left.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// What sets it apart from others.
    pub label: &'a str,
    /// Its figures.
    pub report: &'a Report,
    /// What it left.
    pub record: &'a Record,
}

fn run_row<'a>(label: Value<'a>, seed: Value<'a>, report: &'a Report) -> [Value<'a>; RUNS.len()] {
    let rollout = &report.rollout;
    [
        label,
        seed,
        Value::Whole(rollout.nodes.into()),
        Value::Whole(rollout.completed.into()),
        Value::Real(rollout.makespan_s),
        Value::Real(rollout.bound_s),
        Value::Real(rollout.makespan_over_bound),
        Value::Real(rollout.p50_s),
        Value::Real(rollout.p99_s),
        Value::Whole(rollout.strata_bytes),
        Value::Real(rollout.strata_copies),
        Value::Real(rollout.most_into_a_cell_copies),
        Value::Real(rollout.most_given_copies),
        Value::Whole(report.liars.into()),
        Value::Whole(report.messages),
        Value::Whole(report.transfers),
        Value::Whole(report.events),
        Value::Text(&report.result_hash),
        Value::Text(report.model),
    ]
}

fn node_row<'a>(
    label: Value<'a>,
    seed: Value<'a>,
    number: u64,
    class: &'a str,
    node: &NodeRecord,
) -> [Value<'a>; NODES.len()] {
    [
        label,
        seed,
        Value::Whole(number),
        Value::Text(class),
        Value::Whole(node.region.into()),
        Value::Whole(node.cell.into()),
        Value::Whole(node.liar.into()),
        Value::Real(node.start_s),
        Value::Real(node.end_s.unwrap_or(f64::NAN)),
        Value::Whole(node.given_up.into()),
        Value::Whole(node.from_strata),
        Value::Whole(node.from_peers),
        Value::Whole(node.given),
        Value::Real(node.receiving_s),
        Value::Real(node.waiting_s),
        Value::Real(node.idle_s),
    ]
}

fn link_row<'a>(label: Value<'a>, seed: Value<'a>, link: &'a LinkRecord) -> [Value<'a>; LINKS.len()] {
    [
        label,
        seed,
        Value::Text(&link.name),
        Value::Real(link.capacity),
        Value::Real(link.bytes),
        Value::Real(link.busy_share),
    ]
}

fn sample_row<'a>(label: Value<'a>, seed: Value<'a>, sample: &Sample) -> [Value<'a>; SAMPLES.len()] {
    [
        label,
        seed,
        Value::Real(sample.at_s),
        Value::Whole(sample.completed.into()),
        Value::Whole(sample.receiving.into()),
        Value::Whole(sample.waiting.into()),
        Value::Whole(sample.idle.into()),
        Value::Whole(sample.strata_bytes),
        Value::Whole(sample.between_regions_bytes),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::report::testing::run;

    #[test]
    fn every_row_has_a_value_of_the_right_kind_for_every_column() {
        let (_, report, record) = run(1);
        let run = Run { label: "a", report: &report, record: &record };
        for (table, rows) in Table::ALL.into_iter().zip([1, 200, record.links.len(), record.samples.len()]) {
            let mut found = 0;
            let check = |row: &[Value<'_>]| {
                found += 1;
                assert_eq!(row.len(), table.columns().len());
                for (value, (name, kind, _)) in row.iter().zip(table.columns()) {
                    let is = match value {
                        Value::Text(_) => Kind::Text,
                        Value::Whole(_) => Kind::Whole,
                        Value::Real(_) => Kind::Real,
                    };
                    assert_eq!(is, *kind, "{name}");
                }
                Ok::<_, ()>(())
            };
            table.rows(&run, check).unwrap();
            assert_eq!(found, rows, "{}", table.name());
        }
    }

    #[test]
    fn the_page_about_reports_names_every_column_with_its_meaning() {
        let page = include_str!("../../../docs/simulation-report.md");
        for table in Table::ALL {
            for (name, _, meaning) in table.columns() {
                assert!(
                    page.contains(&format!("| `{name}` | {meaning} |")),
                    "{} {name}: {meaning}",
                    table.name()
                );
            }
        }
    }
}
