//! Metrics in Prometheus' text format.
//!
//! Nothing is counted here: every figure has one owner elsewhere, is read from it at each scrape, and
//! is shown as a [`Family`].

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::time::Duration;

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
    samples: Vec<(Option<(&'static str, &'static str)>, Figure)>,
}

/// A figure as it is shown.
#[derive(Clone, Copy, Debug)]
enum Figure {
    Whole(u64),
    Seconds(f64),
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
        self.samples.push((None, Figure::Whole(value)));
        self
    }

    /// The figure under a label.
    pub(super) fn with(mut self, label: &'static str, value: &'static str, figure: u64) -> Self {
        self.samples.push((Some((label, value)), Figure::Whole(figure)));
        self
    }

    /// The time under a label, in seconds and parts of them.
    pub(super) fn with_time(mut self, label: &'static str, value: &'static str, time: Duration) -> Self {
        self.samples.push((Some((label, value)), Figure::Seconds(time.as_secs_f64())));
        self
    }
}

/// Hands the families to the encoder once.
#[derive(Debug)]
struct Shown(Vec<Family>);

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for family in &self.0 {
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
            };
            let mut metric =
                encoder.encode_descriptor(family.name, family.help, family.unit.as_ref(), kind)?;
            for (label, value) in &family.samples {
                let labels: Vec<_> = label.iter().copied().collect();
                let mut sample = metric.encode_family(&labels)?;
                match (family.kind, value) {
                    (Kind::Counter, Figure::Whole(n)) => {
                        sample.encode_counter::<NoLabelSet, _, u64>(n, None)?;
                    }
                    (Kind::Counter, Figure::Seconds(s)) => {
                        sample.encode_counter::<NoLabelSet, _, u64>(s, None)?;
                    }
                    (Kind::Gauge, Figure::Whole(n)) => sample.encode_gauge(n)?,
                    (Kind::Gauge, Figure::Seconds(s)) => sample.encode_gauge(s)?,
                }
            }
        }
        Ok(())
    }
}

/// All figures as text.
pub(super) fn encode(families: Vec<Family>) -> String {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Shown(families)));
    let mut out = String::new();
    // Writing into a string cannot fail.
    let _ = text::encode(&mut out, &registry);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_prefix_unit_and_kind() {
        let text = encode(vec![
            Family::counter("obtained", "Plain bytes.").bytes().with("source", "peers", 7),
            Family::gauge("members", "Live members.").is(3),
            Family::gauge("uptime", "Time since the start.").seconds().is(9),
            Family::counter("wait", "Time waited.").seconds().with_time(
                "class",
                "fill",
                Duration::from_millis(1_500),
            ),
        ]);
        for line in [
            "starling_obtained_bytes_total{source=\"peers\"} 7",
            "# HELP starling_obtained_bytes Plain bytes.",
            "# TYPE starling_obtained_bytes counter",
            "starling_members 3",
            "starling_uptime_seconds 9",
            "starling_wait_seconds_total{class=\"fill\"} 1.5",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }
}
