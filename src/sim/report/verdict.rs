//! What came out, in words: first the answer, then what it rests on.

use super::digest::{Digest, Group, group};
use super::text::{bytes, count, per_cent, rate, seconds, times};
use crate::sim::RootSpread;
use crate::sim::statistics::Spread;

/// Labels that a verdict speaks of; of others there are rows in the tables.
const LABELS_MAX: usize = 8;
/// Links that are named.
const LINKS_MAX: usize = 3;

/// What came out for the runs of one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The label.
    pub label: String,
    /// Whether all honest nodes of all runs have everything.
    pub complete: bool,
    /// The answer in a sentence.
    pub answer: String,
    /// What it rests on: what is spoken of, and what is said of it.
    pub points: Vec<(&'static str, String)>,
}

/// The verdicts of runs, label by label.
pub fn verdicts(digests: &[Digest]) -> Vec<Verdict> {
    group(digests).iter().take(LABELS_MAX).map(verdict).collect()
}

/// All of it for a terminal.
pub fn text(digests: &[Digest]) -> String {
    let verdicts = verdicts(digests);
    let mut lines = Vec::new();
    for verdict in &verdicts {
        if verdicts.len() > 1 {
            lines.push(format!("{}:", verdict.label));
        }
        lines.push(verdict.answer.clone());
        lines.extend(verdict.points.iter().map(|(name, text)| format!("  {name:<16} {text}")));
    }
    let more = group(digests).len() - verdicts.len();
    if more > 0 {
        lines.push(format!("and {more} more, which the tables have"));
    }
    lines.join("\n")
}

fn verdict(group: &Group<'_>) -> Verdict {
    let middle = group.middle;
    let complete = group.runs.iter().all(|run| run.report.rollout.completed == run.report.rollout.nodes);
    Verdict {
        label: group.label.to_owned(),
        complete,
        answer: answer(group, complete),
        points: middle
            .report
            .root
            .iter()
            .map(|_| ("new root", root(group)))
            .chain([
                ("bound", bound(group)),
                ("out of strata", strata(group)),
                ("busiest links", links(middle)),
                ("lost", lost(group)),
                ("slowest 1 %", slowest(middle)),
                ("how far to trust", format!("{}; {}", middle.report.model, middle.report.accuracy)),
            ])
            .collect(),
    }
}

/// How the new root spread.
fn root(group: &Group<'_>) -> String {
    let of = |pick: fn(&RootSpread) -> f64| {
        band_text(group, move |run| run.report.root.as_ref().map_or(f64::NAN, pick), seconds)
    };
    let [p99, max] = [of(|root| root.heard_s.p99), of(|root| root.heard_s.max)];
    let each = band_text(group, |run| run.report.root.as_ref().map_or(0.0, |root| root.messages_each), times);
    format!("99 % of the nodes heard of it within {p99}, the last after {max}; {each} messages a node")
}

fn answer(group: &Group<'_>, complete: bool) -> String {
    let middle = group.middle;
    let rollout = &middle.report.rollout;
    let honest = if middle.report.liars > 0 { "honest " } else { "" };
    let nodes = if complete {
        format!("All {} {honest}nodes have everything after", count(u64::from(rollout.nodes)))
    } else {
        let least = group.runs.iter().map(|run| run.report.rollout.completed).min().unwrap_or(0);
        let all = count(u64::from(rollout.nodes));
        format!(
            "Only {} of {all} {honest}nodes have everything; the last of them after",
            count(u64::from(least))
        )
    };
    let makespan = band_text(group, |run| run.report.rollout.makespan_s, seconds);
    let [p50, p99, p999] = [rollout.p50_s, rollout.p99_s, rollout.p999_s].map(seconds);
    format!("{nodes} {makespan}: half of them after {p50}, 99 % after {p99}, 99.9 % after {p999}.")
}

/// A figure of one run, or of several the median and the range.
fn band_text(group: &Group<'_>, of: impl Fn(&Digest) -> f64, text: impl Fn(f64) -> String) -> String {
    let Spread { median, min, max } = group.band(of);
    match group.runs.len() {
        1 => text(median),
        seeds => format!("{} (median of {seeds} seeds, {} to {})", text(median), text(min), text(max)),
    }
}

fn bound(group: &Group<'_>) -> String {
    let rollout = &group.middle.report.rollout;
    let ratio = band_text(group, |run| run.report.rollout.makespan_over_bound, times);
    let least = seconds(rollout.bound_s);
    format!("{ratio} times the least possible {least}, which {} sets", rollout.binding_term.text())
}

fn strata(group: &Group<'_>) -> String {
    let middle = group.middle;
    let copies = band_text(group, |run| run.report.rollout.strata_copies, times);
    let out = bytes(middle.report.rollout.strata_bytes as f64);
    let least = match middle.regions {
        1 => "one is the least".to_owned(),
        regions => format!("{regions} regions, so {regions} are what Starling's design allows"),
    };
    format!("{copies} copies of {} = {out}; {least}", bytes(middle.copy as f64))
}

fn links(run: &Digest) -> String {
    let name = |link: &crate::sim::record::LinkRecord| {
        let (used, busy) = (per_cent(run.used(link)), per_cent(link.busy_share));
        format!("{} ({used} of {}, busy {busy} of the time)", link.name, rate(link.capacity))
    };
    run.busiest(LINKS_MAX).into_iter().map(name).collect::<Vec<_>>().join("; ")
}

fn lost(group: &Group<'_>) -> String {
    let most = |of: fn(&Digest) -> u64| group.runs.iter().map(|run| of(run)).max().unwrap_or(0);
    let missing = most(|run| u64::from(run.report.rollout.nodes - run.report.rollout.completed));
    let parts = [
        (missing, "nodes without everything"),
        (most(|run| run.given_up), "chunks given up"),
        (most(|run| u64::from(run.report.deaths)), "nodes that died and were replaced"),
        (most(|run| u64::from(run.report.liars)), "liars"),
        (most(|run| run.report.doubts), "times that an honest node passed somebody over"),
        (most(|run| run.report.asides), "wants that stood aside for others"),
    ];
    let said: Vec<String> = parts
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, what)| format!("{} {what}", count(*number)))
        .collect();
    if said.is_empty() { "nothing".to_owned() } else { said.join(", ") }
}

fn slowest(run: &Digest) -> String {
    let spent = &run.slowest;
    let [receiving, waiting, idle] = spent.shares().map(per_cent);
    let [usual, ..] = run.all.shares().map(per_cent);
    let nodes =
        if spent.nodes == 1 { "1 node".to_owned() } else { format!("{} nodes", count(spent.nodes as u64)) };
    let places = run.slowest_places.iter().map(|(place, share, usual)| {
        format!("; {} of them in {place}, where {} of all are", per_cent(*share), per_cent(*usual))
    });
    format!(
        "{nodes}, ended from {} on: {receiving} of the time receiving (all nodes {usual}), {waiting} waiting, {idle} neither{}",
        seconds(spent.first_end_s),
        places.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::report::testing::{digest, ends};

    #[test]
    fn one_run_is_told_with_its_figures() {
        let run = digest("plan", 1);
        let found = verdicts(std::slice::from_ref(&run));
        let text = text(std::slice::from_ref(&run));
        assert_eq!((found.len(), found[0].complete), (1, true));
        assert!(text.starts_with("All 200 nodes have everything after "), "{text}");
        let rollout = &run.report.rollout;
        for part in [
            seconds(rollout.makespan_s),
            format!(
                "{} times the least possible {}",
                times(rollout.makespan_over_bound),
                seconds(rollout.bound_s)
            ),
            format!("{} copies of 20.0 MB", times(rollout.strata_copies)),
            "2 regions".to_owned(),
            "lost             nothing".to_owned(),
            run.report.model.to_owned(),
        ] {
            assert!(text.contains(&part), "{part} is not in:\n{text}");
        }
        assert!(!text.contains("plan"), "the only label says nothing");
        assert!(links(&run).contains(&run.busiest(1)[0].name));
    }

    #[test]
    fn several_seeds_are_told_as_a_range_and_several_labels_apart() {
        let runs = [ends("ours", 2.0), ends("ours", 1.0), ends("ours", 4.0), ends("theirs", 8.0)];
        let text = text(&runs);
        assert!(text.contains("after 2.000 s (median of 3 seeds, 1.000 s to 4.000 s)"), "{text}");
        assert!(text.starts_with("ours:\n") && text.contains("\ntheirs:\n"), "{text}");
    }

    #[test]
    fn what_is_missing_is_said_first() {
        let mut run = digest("a", 1);
        run.report.rollout.completed -= 3;
        (run.given_up, run.report.liars) = (12, 5);
        let text = text(&[run]);
        assert!(text.starts_with("Only 197 of 200 honest nodes have everything"), "{text}");
        assert!(text.contains("3 nodes without everything, 12 chunks given up, 5 liars"), "{text}");
    }

    #[test]
    fn of_many_labels_the_first_are_told_and_the_others_counted() {
        let runs: Vec<Digest> = (0..11).map(|number| ends(&number.to_string(), 1.0)).collect();
        let text = text(&runs);
        assert!(text.ends_with("and 3 more, which the tables have"), "{text}");
    }
}
