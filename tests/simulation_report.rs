//! Proves that the reports of a simulation are written as promised, agree with each other, and open in a browser off line.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{STARLING, skipped};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const SCENARIO: &str = "
seed = 3
[fleet]
nodes = 60
regions = 2
cells_per_region = 2
up_mbit_s = 1_000
down_mbit_s = 1_000
[network]
latency_us = 500
links.cell_down_mbit_s = 8_000
[content]
bytes = 50_000_000
slice_bytes = 1_048_576
class = 'Fill'
deadline_s = 60
[stratum]
up_mbit_s = 2_000
connections = 64
";

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("plan.toml"), SCENARIO).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn simulate(&self, options: &[&str]) -> Output {
        let command = &mut Command::new(STARLING);
        command.args(["simulate", "plan.toml"]).args(options).current_dir(self.0.path()).output().unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn all_that_was_asked_for_is_written_and_agrees() {
    let place = Place::new();
    let options =
        ["--report", "r.html", "--csv", "t", "--parquet", "t", "--svg", "s", "--perfetto", "p.json"];
    let out = place.simulate(&options);
    let said = text(&out.stdout);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(said.starts_with("All 60 nodes have everything after "), "{said}");
    let plain = place.simulate(&["--json"]);
    let figures: Value = serde_json::from_slice(&plain.stdout).unwrap();
    let hash = figures["result_hash"].as_str().unwrap();
    assert!(said.contains(hash), "the record changed the run: {said}");
    let names = |dir: &str| {
        let entries = fs::read_dir(place.path(dir)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let tables = ["kinds", "link-samples", "links", "nodes", "readers", "runs", "samples"];
    let expected: Vec<String> =
        tables.iter().flat_map(|name| [format!("{name}.csv"), format!("{name}.parquet")]).collect();
    assert_eq!(names("t"), expected);
    let charts = ["completion", "links", "regions", "slowest", "states", "strata"];
    assert_eq!(names("s"), charts.map(|name| format!("{name}.svg")));

    let nodes = fs::read_to_string(place.path("t/nodes.csv")).unwrap();
    let lines: Vec<Vec<&str>> = nodes.lines().map(|line| line.split(',').collect()).collect();
    let column = |name: &str| lines[0].iter().position(|other| *other == name).unwrap();
    let values = |name: &str| -> Vec<f64> {
        lines[1..].iter().map(|line| line[column(name)].parse().unwrap()).collect()
    };
    assert_eq!(lines.len(), 61);
    let last = values("end_s").into_iter().fold(0.0, f64::max);
    assert!((last - figures["makespan_s"].as_f64().unwrap()).abs() < 1e-9, "{last}");
    let from_strata: f64 = values("from_strata_bytes").iter().sum();
    assert_eq!(Some(from_strata), figures["strata_bytes"].as_f64());
    for line in &lines[1..] {
        let value = |name: &str| line[column(name)].parse::<f64>().unwrap();
        let sum = value("receiving_s") + value("waiting_s") + value("idle_s");
        assert!((sum - value("end_s")).abs() < 1e-6, "{line:?}");
    }

    let page = fs::read_to_string(place.path("r.html")).unwrap();
    assert!(page.contains(&hash[..16]) && page.contains("cell_down_mbit_s = 8_000"));
    let trace: Value = serde_json::from_slice(&fs::read(place.path("p.json")).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    assert_eq!(events.iter().filter(|event| event["name"] == "process_name").count(), 1 + 8);

    // The same again is the same, to the byte.
    assert!(place.simulate(&["--report", "again.html", "--svg", "s2"]).status.success());
    assert_eq!(fs::read_to_string(place.path("again.html")).unwrap(), page);
}

#[test]
fn the_nodes_that_are_named_are_traced() {
    let place = Place::new();
    let out = place.simulate(&["--perfetto", "p.json", "--trace-nodes", "59,7"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let trace: Value = serde_json::from_slice(&fs::read(place.path("p.json")).unwrap()).unwrap();
    let names: Vec<&str> = trace["traceEvents"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["name"] == "process_name")
        .map(|event| event["args"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["fleet", "node 7 (region 0, cell 0)", "node 59 (region 1, cell 3)"]);
}

#[test]
fn what_cannot_be_done_is_said_before_the_run() {
    let place = Place::new();
    for (options, parts) in [
        (&["--report", "none/r.html"][..], &["none/r.html", "No such file", "hint:"][..]),
        (&["--csv", "none/deeper"], &["none/deeper", "No such file", "hint:"]),
        (&["--svg", "plan.toml"], &["plan.toml", "hint:"]),
        (&["--perfetto", "p.json", "--trace-nodes", "60"], &["--trace-nodes 60", "0 to 59"]),
        (&["--trace-nodes", "1"], &["--perfetto"]),
    ] {
        let out = place.simulate(options);
        let said = text(&out.stderr);
        assert!(!out.status.success() && out.stdout.is_empty(), "{options:?}");
        assert!(parts.iter().all(|part| said.contains(part)), "{options:?}: {said}");
    }
}

/// A browser without a window.
fn browser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found = std::env::split_paths(&path).flat_map(|dir| names.map(|name| dir.join(name)));
    found.into_iter().find(|program| program.exists())
}

/// Opens a page and returns what it is then, and what it wrote to its console.
fn open(browser: &Path, page: &Path, profile: &Path, more: &[&str]) -> (String, Vec<String>) {
    let out = Command::new(browser)
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"])
        // What the browser itself wants of the network ends at a port where nobody listens.
        .args(["--disable-background-networking", "--disable-component-update", "--proxy-server=127.0.0.1:1"])
        .args(["--virtual-time-budget=3000", "--enable-logging=stderr", "--v=0"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(more)
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    let console = said.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect();
    (String::from_utf8_lossy(&out.stdout).into_owned(), console)
}

/// Looks at the page from within: what is drawn, what hovering shows, what was asked for.
const PROBE: &str = r##"<script>
const drawn = (what) => [...document.querySelectorAll(what)].filter((shape) => {
  const box = shape.getBoundingClientRect();
  return box.width > 1 && (box.height > 1 || shape.matches("path.line"));
}).length;
const hover = (shape) => {
  const box = shape.getBoundingClientRect();
  const at = { clientX: box.left + box.width * 0.7, clientY: box.top + box.height / 2, bubbles: true };
  shape.dispatchEvent(new PointerEvent("pointermove", at));
  const tip = document.getElementById("tip");
  return tip.hidden ? "" : tip.textContent;
};
document.body.dataset.probe = JSON.stringify({
  charts: drawn("figure svg"),
  lines: drawn("path.line:not(.key)"),
  cells: drawn("rect.heat"),
  bars: drawn("rect.bar"),
  line: hover(document.querySelector("#completion svg")),
  cell: hover(document.querySelector("#links .row")),
  asked: performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !name.startsWith("data:")),
});
</script>"##;

fn probed(page: &str) -> Value {
    let (_, rest) =
        page.split_once("data-probe=\"").unwrap_or_else(|| panic!("the probe did not run: {page}"));
    let found = rest.split('"').next().unwrap().replace("&quot;", "\"").replace("&amp;", "&");
    serde_json::from_str(&found).unwrap()
}

#[test]
fn the_report_opens_off_line_in_a_browser_without_an_error_and_its_charts_are_drawn() {
    let Some(browser) = browser() else {
        return skipped("the_report_opens", "it needs Chromium (Debian's package chromium)");
    };
    let place = Place::new();
    assert!(place.simulate(&["--report", "r.html", "--svg", "s"]).status.success());
    let page = fs::read_to_string(place.path("r.html")).unwrap();
    fs::write(place.path("probe.html"), page.replace("</body>", &format!("{PROBE}</body>"))).unwrap();
    let profile = place.path("profile");
    let (dom, console) = open(&browser, &place.path("probe.html"), &profile, &["--dump-dom"]);
    assert!(console.is_empty(), "{console:?}");
    let found = probed(&dom);
    let count = |what: &str| found[what].as_u64().unwrap();
    assert_eq!(count("charts"), 6, "{found}");
    // One completion, two rates, four states.
    assert_eq!(count("lines"), 7, "{found}");
    assert!(count("cells") > 20 && count("bars") >= 2, "{found}");
    let shown = |what: &str| found[what].as_str().unwrap();
    assert!(shown("line").contains("plan.toml") && shown("line").contains('%'), "{found}");
    assert!(
        shown("cell").starts_with("uplink of the stratum") && shown("cell").contains(" % at "),
        "{found}"
    );
    assert_eq!(found["asked"], serde_json::json!([]));

    // A page that does ask for something is found out.
    let image = "<img src=\"http://report.test/x.png\">";
    fs::write(place.path("asks.html"), page.replace("</main>", &format!("{image}</main>"))).unwrap();
    let (_, console) = open(&browser, &place.path("asks.html"), &profile, &["--dump-dom"]);
    assert!(console.len() == 1 && console[0].contains("report.test"), "{console:?}");

    // A picture is made of the page and of a chart by itself.
    for (file, least) in [("r.html", 40_000), ("s/completion.svg", 8_000)] {
        let picture = place.path("picture.png");
        let to = format!("--screenshot={}", picture.display());
        let (_, console) = open(&browser, &place.path(file), &profile, &[&to, "--window-size=1000,1400"]);
        assert!(console.is_empty(), "{file}: {console:?}");
        let png = fs::read(&picture).unwrap();
        assert!(png.starts_with(b"\x89PNG") && png.len() > least, "{file}: {} bytes", png.len());
        fs::remove_file(&picture).unwrap();
    }
}
