//! A report as one HTML file: the verdict, charts, tables, the scenario.
//!
//! It works off line, for its own policy forbids everything that is not in it, and without a script, which only shows values on
//! hovering. The same runs give the same bytes: there is no date in it.

use super::charts::{Chart, charts};
use super::digest::{Digest, Group, group};
use super::svg::STYLE;
use super::text::{bytes, count, escape, per_cent, rate, seconds, times};
use super::verdict::{Verdict, verdicts};
use std::fmt::Write as _;
use std::io::{self, Write};

/// Rows of the table of runs; more are in the tables that CSV and Parquet have.
const RUNS_MAX: usize = 500;
/// Links that are listed of each label.
const LINKS_MAX: usize = 10;

const PAGE_STYLE: &str = "\
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}\
main{max-width:860px;margin:0 auto;padding:24px 16px 64px}h1{font-size:22px;margin:0 0 2px}h2{font-size:17px;margin:0 0 4px}\
section,figure{background:var(--panel);border:1px solid var(--rule);border-radius:8px;padding:16px;margin:16px 0}\
figcaption,.soft{color:var(--soft);font-size:13px}.answer{font-size:18px;margin:4px 0 12px}\
.bad{border-left:5px solid var(--c1)}.good{border-left:5px solid var(--c2)}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 16px;margin:0}dt{color:var(--soft)}dd{margin:0}\
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}\
th,td{padding:4px 8px;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}\
th{color:var(--soft);font-weight:600}th:first-child,td:first-child{text-align:left}\
.b0{background:var(--c0)}.b1{background:var(--c1)}.b2{background:var(--c2)}.b3{background:var(--c3)}\
.b4{background:var(--c4)}.b5{background:var(--c5)}.b6{background:var(--c6)}.b7{background:var(--c7)}\
pre{overflow-x:auto;font-size:12px;margin:8px 0 0}summary{cursor:pointer}code{overflow-wrap:anywhere}\
#tip{position:fixed;z-index:1;pointer-events:none;background:var(--panel);border:1px solid var(--soft);border-radius:6px;\
padding:6px 10px;font-size:12px;max-width:320px}#tip[hidden]{display:none}#tip div{display:flex;gap:8px}\
#tip i{width:10px;height:10px;border-radius:2px;margin-top:4px;flex:none}";

const SCRIPT: &str = include_str!("hover.js");

/// What a report is about.
#[derive(Clone, Debug)]
pub struct About<'a> {
    /// Its title, such as the name of the scenario's file.
    pub title: &'a str,
    /// The scenario's text.
    pub scenario: &'a str,
    /// The command that makes it again.
    pub command: &'a str,
}

/// Writes the report of some runs; runs of one label are seeds of the same.
///
/// # Errors
/// Those of `to`.
pub fn write(about: &About<'_>, digests: &[Digest], mut to: impl Write) -> io::Result<()> {
    let title = escape(about.title);
    writeln!(
        to,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'; img-src data:\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <link rel=\"icon\" href=\"data:,\">\n<title>{title}</title>\n<style>{STYLE}{PAGE_STYLE}</style>\n</head>\n\
         <body>\n<main>\n<h1>{title}</h1>\n<p class=\"soft\">A simulated roll-out, by starling {}.</p>",
        env!("CARGO_PKG_VERSION")
    )?;
    let verdicts = verdicts(digests);
    for verdict in &verdicts {
        to.write_all(verdict_section(verdict, verdicts.len() > 1).as_bytes())?;
    }
    let groups = group(digests);
    to.write_all(figures_table(&groups).as_bytes())?;
    for chart in charts(digests) {
        to.write_all(figure(&chart).as_bytes())?;
    }
    to.write_all(links_tables(&groups).as_bytes())?;
    to.write_all(runs_table(digests).as_bytes())?;
    writeln!(
        to,
        "<section>\n<h2>Again</h2>\n<p>The same scenario and seed give the same result hash on every machine:</p>\n\
         <pre>{}</pre>\n<details><summary>The scenario</summary><pre>{}</pre></details>\n</section>\n</main>\n\
         <div id=\"tip\" hidden></div>\n<script>\n{SCRIPT}</script>\n</body>\n</html>",
        escape(about.command),
        escape(about.scenario)
    )
}

fn verdict_section(verdict: &Verdict, named: bool) -> String {
    let kind = if verdict.complete { "good" } else { "bad" };
    let name = if named { format!("<h2>{}</h2>\n", escape(&verdict.label)) } else { String::new() };
    let mut text = format!(
        "<section class=\"verdict {kind}\">\n{name}<p class=\"answer\">{}</p>\n<dl>\n",
        escape(&verdict.answer)
    );
    for (name, point) in &verdict.points {
        let _ = writeln!(text, "<dt>{name}</dt><dd>{}</dd>", escape(point));
    }
    text.push_str("</dl>\n</section>\n");
    text
}

fn table(title: &str, note: &str, columns: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = format!("<section>\n<h2>{}</h2>\n", escape(title));
    if !note.is_empty() {
        let _ = writeln!(text, "<p class=\"soft\">{}</p>", escape(note));
    }
    text.push_str("<div class=\"scroll\"><table>\n<thead><tr>");
    for column in columns {
        let _ = write!(text, "<th>{}</th>", escape(column));
    }
    text.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        text.push_str("<tr>");
        for field in row {
            let _ = write!(text, "<td>{}</td>", escape(field));
        }
        text.push_str("</tr>\n");
    }
    text.push_str("</tbody></table></div>\n</section>\n");
    text
}

/// The figures, label by label: medians over the seeds.
fn figures_table(groups: &[Group<'_>]) -> String {
    let columns = [
        "",
        "seeds",
        "nodes",
        "makespan",
        "x bound",
        "p50",
        "p99",
        "p99.9",
        "strata copies",
        "into a cell",
        "given",
    ];
    let row = |group: &Group<'_>| {
        let median = |of: fn(&Digest) -> f64| group.band(of).median;
        let nodes = group.middle.report.rollout.nodes;
        vec![
            group.label.to_owned(),
            group.runs.len().to_string(),
            count(u64::from(nodes)),
            seconds(median(|run| run.report.rollout.makespan_s)),
            times(median(|run| run.report.rollout.makespan_over_bound)),
            seconds(median(|run| run.report.rollout.p50_s)),
            seconds(median(|run| run.report.rollout.p99_s)),
            seconds(median(|run| run.p999_s)),
            times(median(|run| run.report.rollout.strata_copies)),
            times(median(|run| run.report.rollout.most_into_a_cell_copies)),
            times(median(|run| run.report.rollout.most_given_copies)),
        ]
    };
    let note = "Medians over the seeds. \"Into a cell\" and \"given\" are the most that came into one cell from outside of \
                it and that one node gave, in copies of the content.";
    table("Figures", note, &columns, &groups.iter().map(row).collect::<Vec<_>>())
}

fn figure(chart: &Chart) -> String {
    let mut text =
        format!("<figure id=\"{}\">\n<h2>{}</h2>\n{}", escape(&chart.name), escape(&chart.title), chart.svg);
    let _ = writeln!(text, "<figcaption>{}</figcaption>\n</figure>", escape(&chart.caption));
    text
}

fn links_tables(groups: &[Group<'_>]) -> String {
    let several = groups.len() > 1;
    let of = |group: &Group<'_>| {
        let run = group.middle;
        let rows: Vec<Vec<String>> = run
            .busiest(LINKS_MAX)
            .into_iter()
            .map(|link| {
                vec![
                    link.name.clone(),
                    rate(link.capacity),
                    bytes(link.bytes),
                    per_cent(run.used(link)),
                    per_cent(link.busy_share),
                ]
            })
            .collect();
        let title =
            if several { format!("Busiest links: {}", group.label) } else { "Busiest links".to_owned() };
        let note = "A link is busy while it carries 98 % of what it can, or more.";
        table(&title, note, &["", "capacity", "carried", "of what it can", "busy"], &rows)
    };
    groups.iter().take(super::charts::LABELS_MAX).map(of).collect()
}

fn runs_table(digests: &[Digest]) -> String {
    let row = |run: &Digest| {
        let (report, rollout) = (&run.report, &run.report.rollout);
        vec![
            run.label.clone(),
            rollout.seed.to_string(),
            format!("{} of {}", count(u64::from(rollout.completed)), count(u64::from(rollout.nodes))),
            seconds(rollout.makespan_s),
            times(rollout.makespan_over_bound),
            times(rollout.strata_copies),
            count(report.messages),
            count(report.transfers),
            report.result_hash.chars().take(16).collect(),
        ]
    };
    let rows: Vec<Vec<String>> = digests.iter().take(RUNS_MAX).map(row).collect();
    let note = match digests.len() - rows.len() {
        0 => String::new(),
        more => format!("{more} more runs are in the CSV and Parquet tables."),
    };
    let columns = [
        "",
        "seed",
        "completed",
        "makespan",
        "x bound",
        "strata copies",
        "messages",
        "transfers",
        "result hash",
    ];
    table("Runs", &note, &columns, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::report::testing::{digest, ends};

    fn page(digests: &[Digest]) -> String {
        let about =
            About { title: "a & b", scenario: "seed = 1 # <script>", command: "starling simulate a.toml" };
        let mut text = Vec::new();
        write(&about, digests, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn it_asks_for_nothing_that_is_not_in_it() {
        let page = page(&[digest("a", 1)]);
        let without_names = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        for word in ["http:", "https:", "src=", "url(", "@import", "fetch(", "XMLHttpRequest"] {
            assert!(!without_names.contains(word), "{word}");
        }
        assert!(page.contains("default-src 'none'"));
    }

    #[test]
    fn the_verdict_comes_first_and_no_text_becomes_a_tag() {
        let page = page(&[digest("<i>a</i>", 1)]);
        let place = |part: &str| page.find(part).unwrap_or_else(|| panic!("{part} is not in the page"));
        assert!(place("All 200 nodes have everything") < place("<figure id=\"completion\">"));
        assert!(place("how far to trust") < place("<table>"));
        assert!(page.contains("seed = 1 # &lt;script&gt;") && page.contains("a &amp; b"));
        assert!(page.contains("&lt;i&gt;a&lt;/i&gt;") && !page.contains("<i>a</i>"));
        assert_eq!(page.matches("<script>").count(), 1);
        assert_eq!(page.matches("<figure").count(), page.matches("</figure>").count());
    }

    #[test]
    fn the_same_runs_give_the_same_bytes_and_many_of_them_a_bounded_page() {
        let runs = [digest("a", 1), digest("a", 2)];
        assert_eq!(page(&runs), page(&runs));
        let many: Vec<Digest> = (0..600).map(|number| ends(&format!("{}", number / 2), 1.0)).collect();
        let page = page(&many);
        assert!(page.len() < 4 << 20, "{} bytes", page.len());
        assert!(page.contains("100 more runs are in the CSV and Parquet tables."));
    }
}
