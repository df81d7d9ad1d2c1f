//! Metrics in Prometheus' text format, read from the node's books at each scrape.
//!
//! Nothing is counted here: every figure has one owner elsewhere, and [`Family`] is how it is shown.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::sync::Arc;

/// What the names of all metrics begin with.
const PREFIX: &str = "starling";

/// How a figure develops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It only grows while the agent runs. Its name ends in `_total`.
    Counter,
    /// It rises and falls.
    Gauge,
}

/// One metric: a figure, or several that differ in one label.
#[derive(Clone, Debug)]
pub(super) struct Family {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: Kind,
    samples: Vec<(Option<(&'static str, &'static str)>, u64)>,
}

impl Family {
    /// A counter without unit.
    pub(super) fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, help, unit: None, kind: Kind::Counter, samples: Vec::new() }
    }

    /// A gauge without unit.
    pub(super) fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { kind: Kind::Gauge, ..Self::counter(name, help) }
    }

    /// Its figures are bytes, and its name says so.
    pub(super) fn bytes(mut self) -> Self {
        self.unit = Some(Unit::Bytes);
        self
    }

    /// Its figures are seconds, and its name says so.
    pub(super) fn seconds(mut self) -> Self {
        self.unit = Some(Unit::Seconds);
        self
    }

    /// The figure.
    pub(super) fn is(mut self, value: u64) -> Self {
        self.samples.push((None, value));
        self
    }

    /// The figure under a label.
    pub(super) fn with(mut self, label: &'static str, value: &'static str, figure: u64) -> Self {
        self.samples.push((Some((label, value)), figure));
        self
    }
}

/// Reads the node's books.
type Books = Arc<dyn Fn() -> Vec<Family> + Send + Sync>;

struct Reader(Books);

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}

impl Collector for Reader {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for family in (self.0)() {
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
            };
            let mut metric =
                encoder.encode_descriptor(family.name, family.help, family.unit.as_ref(), kind)?;
            for (label, value) in family.samples {
                let labels: Vec<_> = label.into_iter().collect();
                let mut sample = metric.encode_family(&labels)?;
                match family.kind {
                    Kind::Counter => sample
                        .encode_counter::<prometheus_client::encoding::NoLabelSet, _, u64>(&value, None)?,
                    Kind::Gauge => sample.encode_gauge(&value)?,
                }
            }
        }
        Ok(())
    }
}

/// All metrics of an agent.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// Metrics that `books` are asked for at each scrape.
    pub(super) fn new(books: impl Fn() -> Vec<Family> + Send + Sync + 'static) -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(Reader(Arc::new(books))));
        Self { registry }
    }

    /// All figures as text.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        // Writing into a string cannot fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn names_carry_prefix_unit_and_kind() {
        let metrics = Metrics::new(|| {
            vec![
                Family::counter("obtained", "Plain bytes.").bytes().with("source", "peers", 7),
                Family::gauge("members", "Live members.").is(3),
                Family::gauge("uptime", "Time since the start.").seconds().is(9),
            ]
        });
        let text = metrics.text();
        for line in [
            "starling_obtained_bytes_total{source=\"peers\"} 7",
            "# HELP starling_obtained_bytes Plain bytes.",
            "# TYPE starling_obtained_bytes counter",
            "starling_members 3",
            "starling_uptime_seconds 9",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn each_scrape_reads_the_books_anew() {
        let book = Arc::new(AtomicU64::new(1));
        let owner = book.clone();
        let metrics =
            Metrics::new(move || vec![Family::counter("reads", "Reads.").is(owner.load(Ordering::Relaxed))]);
        assert!(metrics.text().contains("starling_reads_total 1\n"));
        book.store(5, Ordering::Relaxed);
        assert!(metrics.text().contains("starling_reads_total 5\n"));
    }
}
