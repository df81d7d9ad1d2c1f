//! Which charts a report has, and what they say of the runs.

use super::digest::{Digest, Group, group};
use super::svg::{Bars, HeatMap, Line, Lines, Quantity, TONES};
use super::text::seconds;
use crate::sim::record::{LinkRecord, Sample};
use crate::sim::statistics::{LEVELS, bands};

/// Labels that are drawn; of others there are rows in the tables.
pub(super) const LABELS_MAX: usize = TONES;
/// Spans into which a run's time is divided where rates are drawn.
const SPANS: usize = 96;

/// A picture and what is written with it.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    /// The name of its file, without the ending.
    pub(super) name: String,
    pub(super) title: String,
    /// What it shows, and how to read it.
    pub(super) caption: String,
    pub(super) svg: String,
}

/// All charts of some runs.
pub(super) fn charts(digests: &[Digest]) -> Vec<Chart> {
    let mut groups = group(digests);
    groups.truncate(LABELS_MAX);
    // A little room behind the last end.
    let end_s = digests.iter().map(Digest::end_s).fold(0.0, f64::max) * 1.02;
    let mut charts = vec![completion(&groups, end_s), strata(&groups, end_s)];
    if groups.iter().any(|group| group.middle.regions > 1) {
        charts.push(between_regions(&groups, end_s));
    }
    for (number, group) in (1..).zip(&groups) {
        let name = |what: &str| if groups.len() == 1 { what.to_owned() } else { format!("{what}-{number}") };
        let of = if groups.len() == 1 { String::new() } else { format!(": {}", group.label) };
        charts.push(states(group, name("states"), &of));
        charts.push(links(group, name("links"), &of));
    }
    charts.push(slowest(&groups));
    charts
}

fn lines(about: &str, end_s: f64, quantity: Quantity, lines: Vec<Line>) -> Lines {
    let values = lines.iter().flat_map(|line| line.points.iter().map(|point| point.1));
    let most = values.filter(|value| value.is_finite()).fold(0.0, f64::max) * 1.05;
    let (marks, bands_in_time) = (Vec::new(), false);
    Lines { about: about.to_owned(), end_s, quantity, most, lines, marks, bands_in_time }
}

fn completion(groups: &[Group<'_>], end_s: f64) -> Chart {
    let line = |(tone, group): (usize, &Group<'_>)| {
        let curves: Vec<&[f64]> = group.runs.iter().map(|run| run.curve.as_slice()).collect();
        let bands = bands(&curves);
        let share = |level: usize| (level + 1) as f64 / LEVELS as f64;
        let points = bands.iter().enumerate().map(|(level, band)| (band.median, share(level)));
        let band = bands.iter().map(|band| (band.min, band.max)).collect();
        let name = match group.runs.len() {
            1 => group.label.to_owned(),
            seeds => format!("{} (median of {seeds} seeds)", group.label),
        };
        let first = points.clone().next().filter(|point| point.0.is_finite());
        let seeds = group.runs.len();
        Line {
            name,
            tone,
            // From the moment of the first end, not from the origin: before that nobody had everything.
            points: first.map(|point| (point.0, 0.0)).into_iter().chain(points).collect(),
            band: if seeds == 1 { Vec::new() } else { band_with_start(&bands, band) },
        }
    };
    let mut chart = lines(
        "Share of nodes that have everything, over time",
        end_s,
        Quantity::Share,
        groups.iter().enumerate().map(line).collect(),
    );
    (chart.most, chart.bands_in_time) = (1.0, true);
    let mut bounds: Vec<f64> = groups.iter().map(|group| group.middle.report.rollout.bound_s).collect();
    bounds.sort_by(f64::total_cmp);
    bounds.dedup();
    chart.marks = bounds.iter().map(|bound| (*bound, format!("bound {}", seconds(*bound)))).collect();
    let seeds = if groups.iter().any(|group| group.runs.len() > 1) {
        " The shade reaches from the fastest to the slowest seed at each share."
    } else {
        ""
    };
    Chart {
        name: "completion".to_owned(),
        title: "Completion".to_owned(),
        caption: format!(
            "Share of the honest nodes that have everything. No distribution can be complete before the bound (Kumar and \
             Ross, 2006).{seeds}"
        ),
        svg: chart.draw(),
    }
}

/// The line begins with a point of no share, so its band does.
fn band_with_start(bands: &[crate::sim::statistics::Spread], band: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let start = bands.first().map(|first| (first.min, first.max));
    start.into_iter().chain(band).collect()
}

/// What grew over time, as a rate in each of [`SPANS`] spans.
fn rates(samples: &[Sample], value: impl Fn(usize) -> f64, end_s: f64) -> Vec<f64> {
    let at = |seconds: f64| {
        let next = samples.partition_point(|sample| sample.at_s < seconds);
        let (before_s, before) = match next.checked_sub(1) {
            Some(place) => (samples[place].at_s, value(place)),
            None => (0.0, 0.0),
        };
        match samples.get(next) {
            Some(sample) if sample.at_s > before_s => {
                before + (value(next) - before) * (seconds - before_s) / (sample.at_s - before_s)
            }
            _ => before,
        }
    };
    let width = end_s / SPANS as f64;
    let rate = |span: usize| {
        let grown = at((span + 1) as f64 * width) - at(span as f64 * width);
        if width > 0.0 { (grown / width).max(0.0) } else { 0.0 }
    };
    (0..SPANS).map(rate).collect()
}

/// A rate as a line of steps.
fn steps(rates: &[f64], end_s: f64) -> Vec<(f64, f64)> {
    let width = end_s / rates.len().max(1) as f64;
    let step =
        |(span, rate): (usize, &f64)| [(span as f64 * width, *rate), ((span + 1) as f64 * width, *rate)];
    rates.iter().enumerate().flat_map(step).collect()
}

fn over_time(groups: &[Group<'_>], value: fn(&Sample) -> u64) -> Vec<Line> {
    let line = |(tone, group): (usize, &Group<'_>)| {
        let run = group.middle;
        let end_s = run.end_s();
        let rates = rates(&run.samples, |place| value(&run.samples[place]) as f64, end_s);
        Line { name: group.label.to_owned(), tone, points: steps(&rates, end_s), band: Vec::new() }
    };
    groups.iter().enumerate().map(line).collect()
}

const OF_SEVERAL: &str = " Of several seeds, the one with the median makespan is drawn.";

fn strata(groups: &[Group<'_>], end_s: f64) -> Chart {
    let of = over_time(groups, |sample| sample.strata_bytes);
    let chart = lines("Bytes a second that leave the stratum, over time", end_s, Quantity::Rate, of);
    Chart {
        name: "strata".to_owned(),
        title: "Out of the strata".to_owned(),
        caption: format!("What leaves the stratum.{OF_SEVERAL}"),
        svg: chart.draw(),
    }
}

fn between_regions(groups: &[Group<'_>], end_s: f64) -> Chart {
    let of = over_time(groups, |sample| sample.between_regions_bytes);
    let chart = lines("Bytes a second between regions, over time", end_s, Quantity::Rate, of);
    Chart {
        name: "regions".to_owned(),
        title: "Between regions".to_owned(),
        caption: format!(
            "What nodes send to nodes of other regions; what comes from the stratum is not in it.{OF_SEVERAL}"
        ),
        svg: chart.draw(),
    }
}

/// What nodes do, and how many of them do it in a sample.
type State = (&'static str, fn(&Sample) -> u32);

fn states(group: &Group<'_>, name: String, of: &str) -> Chart {
    let run = group.middle;
    let states: [State; 4] = [
        ("have everything", |sample| sample.completed),
        ("receive", |sample| sample.receiving),
        ("wait", |sample| sample.waiting),
        ("neither", |sample| sample.idle),
    ];
    let line = |(tone, (name, of)): (usize, State)| {
        let points = run.samples.iter().map(|sample| (sample.at_s, f64::from(of(sample)))).collect();
        Line { name: name.to_owned(), tone, points, band: Vec::new() }
    };
    let all = states.into_iter().enumerate().map(line).collect();
    let chart = lines("What nodes do, over time", run.end_s() * 1.02, Quantity::Nodes, all);
    Chart {
        name,
        title: format!("What nodes do{of}"),
        caption: format!(
            "Honest nodes that have everything, to which something is on its way, that wait for something they asked or \
             looked for, and that do neither.{OF_SEVERAL}"
        ),
        svg: chart.draw(),
    }
}

fn links(group: &Group<'_>, name: String, of: &str) -> Chart {
    let run = group.middle;
    let end_s = run.end_s();
    let drawn: Vec<&LinkRecord> = run
        .links
        .iter()
        .filter(|link| link.over_time.len() == run.samples.len() && link.capacity > 0.0)
        .collect();
    let row = |link: &&LinkRecord| {
        let rates = rates(&run.samples, |place| link.over_time[place], end_s);
        (link.name.clone(), rates.iter().map(|rate| rate / link.capacity).collect())
    };
    let rows: Vec<(String, Vec<f64>)> = drawn.iter().map(row).collect();
    let omitted = run.links_omitted + run.links.len() - rows.len();
    let more =
        if omitted > 0 { format!(" {omitted} more carried less of what they can.") } else { String::new() };
    let map =
        HeatMap { about: "How much of its capacity each link carries, over time".to_owned(), end_s, rows };
    Chart {
        name,
        title: format!("Links{of}"),
        caption: format!(
            "The share of what it can carry that each link does carry. The links of all nodes of a cell are one row \
             each way.{more}{OF_SEVERAL}"
        ),
        svg: map.draw(),
    }
}

fn slowest(groups: &[Group<'_>]) -> Chart {
    let several = groups.len() > 1;
    let rows = groups.iter().flat_map(|group| {
        let of =
            |what: &str| if several { format!("{what}, {}", short(group.label)) } else { what.to_owned() };
        [(of("all"), group.middle.all.shares()), (of("slowest 1 %"), group.middle.slowest.shares())]
    });
    let bars = Bars {
        about: "Where all nodes and the slowest hundredth of them spent their time".to_owned(),
        parts: ["receiving", "waiting", "neither"],
        rows: rows.collect(),
    };
    Chart {
        name: "slowest".to_owned(),
        title: "Where the slowest 1 % spent their time".to_owned(),
        caption: format!(
            "Between its start and its end a node receives something, waits for something that it asked or looked for, \
             or does neither.{OF_SEVERAL}"
        ),
        svg: bars.draw(),
    }
}

/// As much of a label as fits beside a bar.
fn short(label: &str) -> String {
    const LETTERS: usize = 14;
    if label.chars().count() <= LETTERS {
        return label.to_owned();
    }
    label.chars().take(LETTERS - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::report::testing::{digest, ends};

    fn sample(at_s: f64, strata_bytes: u64) -> Sample {
        Sample { at_s, strata_bytes, ..Sample::default() }
    }

    #[test]
    fn rates_of_all_spans_make_what_grew() {
        let samples = [sample(1.0, 100), sample(2.0, 100), sample(6.0, 900)];
        let rates = rates(&samples, |place| samples[place].strata_bytes as f64, 8.0);
        let width = 8.0 / SPANS as f64;
        assert_eq!(rates.len(), SPANS);
        assert!((rates.iter().sum::<f64>() * width - 900.0).abs() < 1e-6);
        // Of 96 spans in 8 s, those that begin at 0.5, 1.5, 4 and 7 s.
        let found = [6, 18, 48, 84].map(|span| rates[span]);
        for (found, expected) in found.iter().zip([100.0, 0.0, 200.0, 0.0]) {
            assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
        }
    }

    #[test]
    fn a_report_of_one_run_has_each_chart_once() {
        let charts = charts(&[digest("a", 1)]);
        let names: Vec<&str> = charts.iter().map(|chart| chart.name.as_str()).collect();
        assert_eq!(names, ["completion", "strata", "regions", "states", "links", "slowest"]);
        assert!(charts[0].svg.contains(">bound ") && charts[0].svg.contains(">a</text>"));
        let rows = charts[4].svg.matches("class=\"row\"").count();
        assert_eq!(rows, 1 + 4 + 8, "the stratum, into each cell, and each cell's nodes both ways");
        for chart in &charts {
            assert!(!chart.svg.contains("NaN") && !chart.svg.contains("inf"), "{}", chart.name);
        }
    }

    #[test]
    fn runs_are_laid_over_each_other_and_seeds_make_a_band() {
        let runs = [digest("a", 1), digest("a", 2), digest("b", 3)];
        let charts = charts(&runs);
        let completion = &charts[0];
        assert_eq!(completion.svg.matches("class=\"line s").count(), 2);
        assert_eq!(completion.svg.matches("class=\"area").count(), 1, "only one of them has seeds");
        assert!(completion.svg.contains(">a (median of 2 seeds)</text>"));
        let names: Vec<&str> = charts.iter().map(|chart| chart.name.as_str()).collect();
        assert_eq!(names[3..], ["states-1", "links-1", "states-2", "links-2", "slowest"]);
        assert_eq!(charts.last().unwrap().svg.matches("class=\"bar").count(), 2 * 2 * 3);
    }

    #[test]
    fn of_many_labels_as_many_are_drawn_as_have_colours() {
        let runs: Vec<Digest> = (0..12).map(|number| ends(&format!("{number}"), 1.0)).collect();
        assert_eq!(charts(&runs)[0].svg.matches("class=\"line s").count(), LABELS_MAX);
        assert_eq!(short("a label that is long"), "a label that …");
    }
}
