//! The tables that CSV and Parquet files have: their columns, and the rows of a run.
//!
//! The columns stand here once, with their kinds and meanings; both writers and docs/simulation-report.md go by them. Together the
//! tables have all that a run left but its traces: `restore` makes the run of them again.

use super::Report;
use crate::sim::network::LinksOfAKind;
use crate::sim::readers::{Distribution, Readers};
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
    /// A row a figure of those who read, of each run in which somebody reads.
    Readers,
    /// A row a kind of links of each run.
    Kinds,
    /// A row a node of each run.
    Nodes,
    /// A row a link of each run.
    Links,
    /// A row a link and sample of each run.
    LinkSamples,
    /// A row a sample of each run.
    Samples,
}

const RUN: Column = ("run", Kind::Text, "the run's label");
const SEED: Column = ("seed", Kind::Whole, "the run's seed");

const RUNS: &[Column] = &[
    RUN,
    SEED,
    ("strategy", Kind::Text, "who decided"),
    ("nodes", Kind::Whole, "honest nodes"),
    ("completed", Kind::Whole, "those of them that have everything in the end"),
    ("makespan_s", Kind::Real, "when the last of those had it, s"),
    ("bound_s", Kind::Real, "the least possible time, s"),
    ("binding_term", Kind::Text, "the term of the bound that binds"),
    ("makespan_over_bound", Kind::Real, "the one divided by the other"),
    ("p50_s", Kind::Real, "when half of them had it, s"),
    ("p99_s", Kind::Real, "when 99 % had it, s"),
    ("p999_s", Kind::Real, "when 99.9 % had it, s"),
    ("own_p50_s", Kind::Real, "what half of them took at most since they began, s"),
    ("own_p99_s", Kind::Real, "what 99 % of them took at most since they began, s"),
    ("last_start_s", Kind::Real, "when the last of them began, s"),
    ("strata_bytes", Kind::Whole, "bytes that left the stratum"),
    ("strata_copies", Kind::Real, "the same in copies of the content"),
    ("most_into_a_cell_copies", Kind::Real, "most that came into a cell from outside of it, in copies"),
    ("most_given_copies", Kind::Real, "most that a node gave, in copies"),
    ("liars", Kind::Whole, "nodes that lied"),
    ("deaths", Kind::Whole, "nodes that died on the way and were replaced, each as often as it did"),
    ("doubts", Kind::Whole, "times that an honest node passed somebody over who delivered nothing"),
    ("asides", Kind::Whole, "wants that stood aside for others"),
    ("messages", Kind::Whole, "messages between nodes and to the stratum"),
    ("transfers", Kind::Whole, "chunks that moved"),
    ("events", Kind::Whole, "events that nodes reacted to"),
    ("readers", Kind::Whole, "nodes on which somebody reads"),
    ("read_all", Kind::Whole, "those of them that got everything"),
    ("stalls", Kind::Whole, "stalls of all these readers together"),
    ("without_stall", Kind::Real, "share of them who never stalled"),
    ("root_heard", Kind::Whole, "nodes that heard of the new root, if it spreads"),
    ("root_p50_s", Kind::Real, "when half of these had heard of it since the first did, s"),
    ("root_p90_s", Kind::Real, "when 90 % had, s"),
    ("root_p99_s", Kind::Real, "when 99 % had, s"),
    ("root_max_s", Kind::Real, "when all had, s"),
    ("root_messages", Kind::Whole, "messages that handed it on"),
    ("result_hash", Kind::Text, "the same for the same result"),
    ("model", Kind::Text, "the network model and its error band"),
];

const READERS: &[Column] = &[
    RUN,
    SEED,
    ("figure", Kind::Text, "which"),
    ("p50", Kind::Real, "what half of the readers had at most"),
    ("p90", Kind::Real, "what 90 % had at most"),
    ("p99", Kind::Real, "what 99 % had at most"),
    ("max", Kind::Real, "what all had at most"),
];

const KINDS: &[Column] = &[
    RUN,
    SEED,
    ("kind", Kind::Text, "what they are"),
    ("links", Kind::Whole, "how many there are"),
    ("gigabytes", Kind::Real, "what they carried together, 10^9 bytes"),
    ("busy_share", Kind::Real, "share of the run in which one of them was busy, the mean of all"),
    ("busiest", Kind::Text, "the one that was busy for longest"),
    ("busiest_gigabytes", Kind::Real, "what it carried, 10^9 bytes"),
    ("busiest_share", Kind::Real, "share of the run in which it was busy"),
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

const LINK_SAMPLES: &[Column] = &[
    RUN,
    SEED,
    ("link", Kind::Text, "which"),
    ("at_s", Kind::Real, "the moment, s"),
    ("bytes", Kind::Real, "what it had carried until then"),
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
    pub const ALL: [Self; 7] =
        [Self::Runs, Self::Readers, Self::Kinds, Self::Nodes, Self::Links, Self::LinkSamples, Self::Samples];

    /// The name of its file, without the ending.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Runs => "runs",
            Self::Readers => "readers",
            Self::Kinds => "kinds",
            Self::Nodes => "nodes",
            Self::Links => "links",
            Self::LinkSamples => "link-samples",
            Self::Samples => "samples",
        }
    }

    /// Its columns.
    pub const fn columns(self) -> &'static [Column] {
        match self {
            Self::Runs => RUNS,
            Self::Readers => READERS,
            Self::Kinds => KINDS,
            Self::Nodes => NODES,
            Self::Links => LINKS,
            Self::LinkSamples => LINK_SAMPLES,
            Self::Samples => SAMPLES,
        }
    }

    /// How many rows a run has.
    pub fn count(self, run: &Run<'_>) -> u64 {
        let mut rows = 0;
        let counted = self.rows(run, |_| {
            rows += 1;
            Ok::<_, std::convert::Infallible>(())
        });
        match counted {
            Ok(()) => rows,
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
            Self::Readers => run.report.readers.iter().flat_map(figures).try_for_each(|(figure, values)| {
                let Distribution { p50, p90, p99, max } = values;
                let [p50, p90, p99, max] = [p50, p90, p99, max].map(Value::Real);
                take(&[label, seed, Value::Text(figure), p50, p90, p99, max])
            }),
            Self::Kinds => run.report.links.iter().try_for_each(|kind| take(&kind_row(label, seed, kind))),
            Self::Nodes => (0..).zip(&run.record.nodes).try_for_each(|(number, node)| {
                let class = run.record.classes.get(usize::from(node.class)).map_or("", String::as_str);
                take(&node_row(label, seed, number, class, node))
            }),
            Self::Links => run.record.links.iter().try_for_each(|link| take(&link_row(label, seed, link))),
            Self::LinkSamples => run.record.links.iter().try_for_each(|link| {
                run.record.samples.iter().zip(&link.over_time).try_for_each(|(sample, bytes)| {
                    let name = Value::Text(&link.name);
                    take(&[label, seed, name, Value::Real(sample.at_s), Value::Real(*bytes)])
                })
            }),
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

/// The distributions of those who read, by name.
pub(super) fn figures(readers: &Readers) -> [(&'static str, Distribution); 5] {
    [
        ("first_chunk_s", readers.first_chunk_s),
        ("read_s", readers.read_s),
        ("stalls_each", readers.stalls_each),
        ("stalled_s", readers.stalled_s),
        ("longest_stall_s", readers.longest_stall_s),
    ]
}

fn run_row<'a>(label: Value<'a>, seed: Value<'a>, report: &'a Report) -> [Value<'a>; RUNS.len()] {
    let (rollout, readers) = (&report.rollout, report.readers.as_ref());
    let root = report.root.as_ref();
    let of_root =
        |pick: fn(&Distribution) -> f64| Value::Real(root.map_or(f64::NAN, |root| pick(&root.heard_s)));
    [
        label,
        seed,
        Value::Text(report.strategy),
        Value::Whole(rollout.nodes.into()),
        Value::Whole(rollout.completed.into()),
        Value::Real(rollout.makespan_s),
        Value::Real(rollout.bound_s),
        Value::Text(rollout.binding_term.word()),
        Value::Real(rollout.makespan_over_bound),
        Value::Real(rollout.p50_s),
        Value::Real(rollout.p99_s),
        Value::Real(rollout.p999_s),
        Value::Real(report.own_p50_s),
        Value::Real(report.own_p99_s),
        Value::Real(report.last_start_s),
        Value::Whole(rollout.strata_bytes),
        Value::Real(rollout.strata_copies),
        Value::Real(rollout.most_into_a_cell_copies),
        Value::Real(rollout.most_given_copies),
        Value::Whole(report.liars.into()),
        Value::Whole(report.deaths.into()),
        Value::Whole(report.doubts),
        Value::Whole(report.asides),
        Value::Whole(report.messages),
        Value::Whole(report.transfers),
        Value::Whole(report.events),
        Value::Whole(readers.map_or(0, |readers| readers.readers.into())),
        Value::Whole(readers.map_or(0, |readers| readers.read_all.into())),
        Value::Whole(readers.map_or(0, |readers| readers.stalls)),
        Value::Real(readers.map_or(f64::NAN, |readers| readers.without_stall)),
        Value::Whole(root.map_or(0, |root| root.heard.into())),
        of_root(|heard| heard.p50),
        of_root(|heard| heard.p90),
        of_root(|heard| heard.p99),
        of_root(|heard| heard.max),
        Value::Whole(root.map_or(0, |root| root.messages)),
        Value::Text(&report.result_hash),
        Value::Text(report.model),
    ]
}

fn kind_row<'a>(label: Value<'a>, seed: Value<'a>, links: &'a LinksOfAKind) -> [Value<'a>; KINDS.len()] {
    [
        label,
        seed,
        Value::Text(&links.kind),
        Value::Whole(links.links as u64),
        Value::Real(links.gigabytes),
        Value::Real(links.busy_share),
        Value::Text(&links.busiest),
        Value::Real(links.busiest_gigabytes),
        Value::Real(links.busiest_share),
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
        let (links, samples) = (record.links.len(), record.samples.len());
        let counts = [1, 5, report.links.len(), 200, links, links * samples, samples];
        for (table, rows) in Table::ALL.into_iter().zip(counts) {
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
