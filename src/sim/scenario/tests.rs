//! Scenarios: what is accepted, what is refused and where, and that the table of keys says what the structs do.

use super::keys::{Kind, Preset, TABLES, markdown};
use super::*;
use proptest::prelude::*;
use proptest::strategy::Strategy;
use std::collections::BTreeSet;

/// Has every key that there is but `arrival.rolling` and `arrival.news`, which waves exclude, and `compare`, which makes several runs.
const WHOLE: &str = "seed = 7
seeds = 3
[fleet]
nodes = 120
regions = 2
cells_per_region = 3
racks_per_cell = 2
up_mbit_s = 10_000
down_mbit_s = 10_000.5
[[fleet.class]]
name = 'slow'
share = 0.25
up_mbit_s = 500
down_mbit_s = 500
[network]
model = 'exact'
loss_per_mille = 3
latency_us = 500
region_latency_us = 30_000
lookup_us = 3_000
queue_ms = 5
connect_us = 700
send_buffer_ms = 3
gossip_bytes_per_s = 900
gossip_out_bytes_per_s = 300
[network.links]
rack_up_mbit_s = 40_000
rack_down_mbit_s = 40_000
cell_up_mbit_s = 40_000
cell_down_mbit_s = 40_000
region_up_mbit_s = 40_000
region_down_mbit_s = 40_000
[[network.change]]
at_ms = 50
for_ms = 100
of = 'nodes'
per_cent = 5
factor = 0.5
[content]
bytes = 100_000_000
slice_bytes = 1_048_576
chunk_bytes = 65_536
class = 'Fill'
read_ahead_chunks = 4
read_mbit_s = 800
deadline_s = 60
[stratum]
up_mbit_s = 40_000
connections = 64
[arrival]
order = 'by-cell'
[arrival.canary]
per_cent = 5
pause_ms = 100
[arrival.waves]
per_cent = 20
every_ms = 1_000
[deaths]
per_cent = 5
at_ms = 100
noticed_after_ms = 200
noticed_within_ms = 0
replaced_after_ms = 7_000
[churn]
lifetime_s = 600
at_ms = 10
for_ms = 1_000
noticed_after_ms = 200
noticed_within_ms = 0
replaced_after_ms = 7_000
[stalls]
per_cent = 5
at_ms = 100
for_ms = 200
[liars]
per_cent = 5
how = ['corrupt', 'lie']
[strategy]
name = 'starling'
timeout_ms = 9_000
[strategy.origin]
layers = 5
streams = 2
[strategy.proxies]
per_cell = 2
mbit_s = 40_000
cache = 'warm'
streams = 5
connections = 100
[strategy.dragonfly]
piece_bytes = 1_048_576
seed_peers = 3
mbit_s = 40_000
cache = 'warm'
parents = 5
streams = 5
uploads = 20
seed_uploads = 200
[strategy.kraken]
piece_bytes = 1_048_576
origins = 5
mbit_s = 40_000
cache = 'cold'
connections = 20
pipeline = 4
announce_ms = 1_000
[strategy.spegel]
layers = 5
streams = 2
resolve_ms = 50
announce_ms = 150
tries = 2
[strategy.faasnet]
piece_bytes = 1_048_576
arity = 3
[settings]
ask_ms = 900
";

/// The same with nodes that begin one after the other.
fn rolling() -> String {
    let (before, after) = WHOLE.split_once("[arrival.waves]").unwrap();
    let after = after.split_once("[deaths]").unwrap().1;
    format!("{before}[arrival.rolling]\nnodes = 10\n[deaths]{after}")
}

/// The same with nodes that begin when they hear of the root.
fn news() -> String {
    let (before, after) = WHOLE.split_once("[arrival.canary]").unwrap();
    let after = after.split_once("[deaths]").unwrap().1;
    format!("{before}[arrival.news]\nnodes = 2\nhandshake_ms = 5\n[deaths]{after}")
}

/// The same under several strategies.
fn compared() -> String {
    format!("{WHOLE}[compare]\nstrategies = ['starling']\n")
}

fn table(text: &str) -> toml::Table {
    text.parse().unwrap()
}

/// Puts a value in a document, or takes it out.
fn set(document: &mut toml::Table, path: &str, value: Option<toml::Value>) {
    let mut table = document;
    let (tables, name) = path.rsplit_once('.').unwrap_or(("", path));
    for part in tables.split('.').filter(|part| !part.is_empty()) {
        let value = table.get_mut(part).unwrap();
        let value = if value.is_array() { &mut value[0] } else { value };
        table = value.as_table_mut().unwrap();
    }
    match value {
        Some(value) => table.insert(name.to_owned(), value),
        None => table.remove(name),
    };
}

/// The whole document that has this key.
fn with_key(path: &str) -> toml::Table {
    if path.starts_with("arrival.rolling") {
        table(&rolling())
    } else if path.starts_with("arrival.news") {
        table(&news())
    } else if path.starts_with("compare") {
        table(&compared())
    } else {
        table(WHOLE)
    }
}

fn parse(document: &toml::Table) -> Result<Scenario, ScenarioError> {
    Scenario::parse(&toml::to_string(document).unwrap())
}

fn keys() -> Vec<(String, &'static super::keys::Key)> {
    TABLES.iter().flat_map(|table| table.keys.iter().map(|key| (table.path(key), key))).collect()
}

fn leaves(path: &str, value: &serde_json::Value, found: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (name, value) in map {
                let inner = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                leaves(&inner, value, found);
            }
        }
        serde_json::Value::Array(list) if list.iter().any(serde_json::Value::is_object) => {
            list.iter().for_each(|value| leaves(path, value, found));
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}

#[test]
fn the_table_of_keys_has_the_fields_of_the_structs_and_no_others() {
    let mut fields = BTreeSet::new();
    for text in [WHOLE, &rolling(), &news(), &compared()] {
        let scenario = serde_json::to_value(Scenario::parse(text).unwrap()).unwrap();
        leaves("", &scenario, &mut fields);
    }
    fields.retain(|path| !path.starts_with("settings."));
    // Of these, one or another is missing in each text.
    assert!(
        ["arrival.canary", "arrival.waves", "arrival.rolling", "arrival.news", "compare"]
            .iter()
            .all(|name| fields.remove(*name))
    );
    assert_eq!(fields, keys().into_iter().map(|(path, _)| path).collect());
}

#[test]
fn what_the_table_of_keys_says_of_defaults_is_so() {
    for (path, key) in keys() {
        let mut document = with_key(&path);
        set(&mut document, &path, None);
        let result = parse(&document);
        match key.preset {
            Preset::Required => {
                let error = result.expect_err(&path).to_string();
                assert!(error.contains(&format!("`{path}` is missing")), "{error}");
            }
            Preset::Is(value) => {
                let scenario = serde_json::to_value(result.expect(&path)).unwrap();
                // Of a list of tables, the first.
                let found = path
                    .split('.')
                    .fold(&scenario, |value, name| value.get(0).unwrap_or(value).get(name).unwrap());
                assert_eq!(found.as_str().map_or_else(|| found.to_string(), str::to_owned), value, "{path}");
            }
            // These are there because others are not.
            Preset::Nothing(_)
                if matches!(
                    path.as_str(),
                    "fleet.class.share"
                        | "network.change.per_cent"
                        | "content.bytes"
                        | "content.slice_bytes"
                        | "content.read_ahead_chunks"
                ) =>
            {
                result.expect_err(&path);
            }
            Preset::Nothing(_) => {
                result.expect(&path);
            }
        }
    }
}

#[test]
fn what_the_table_of_keys_says_of_bounds_is_so_and_the_line_is_named() {
    let whole = |number: u64| i64::try_from(number).ok().map(toml::Value::Integer);
    let words = |list: &[&str]| toml::Value::Array(list.iter().map(|word| (*word).into()).collect());
    let mut refused = 0;
    for (path, key) in keys() {
        let wrong = match key.kind {
            Kind::Whole(least, most) => {
                vec![
                    least.checked_sub(1).and_then(whole),
                    most.checked_add(1).and_then(whole),
                    Some((-1).into()),
                ]
            }
            Kind::Number(least, most) => {
                let below = if least > 0.0 { least / 2.0 } else { -0.5 };
                let numbers = [below, most * 2.0, f64::NAN, -1.0, f64::INFINITY];
                numbers.map(|number| Some(number.into())).to_vec()
            }
            Kind::Text(most) => vec![Some("".into()), Some("x".repeat(most + 1).into()), Some(1.into())],
            Kind::Latencies(most) => {
                let row = toml::Value::Array(vec![whole(most + 1).unwrap()]);
                vec![
                    whole(most + 1),
                    Some("far".into()),
                    Some(words(&[])),
                    Some(toml::Value::Array(vec![row])),
                ]
            }
            Kind::Word(_) => vec![Some("no-such-word".into()), Some(1.into())],
            Kind::Words(known) => {
                vec![Some(words(&[])), Some(words(&["no-such-word"])), Some(known[0].into())]
            }
            Kind::Seeds(most) => {
                let long = toml::Value::Array(vec![1.into(); most as usize + 1]);
                vec![
                    Some(0.into()),
                    whole(u64::from(most) + 1),
                    Some(words(&[])),
                    Some(words(&["a"])),
                    Some(long),
                ]
            }
        };
        let table = toml::Value::Table(toml::Table::new());
        for value in wrong.into_iter().flatten().chain([true.into(), table]) {
            let mut document = with_key(&path);
            set(&mut document, &path, Some(value));
            let text = toml::to_string(&document).unwrap();
            let error = Scenario::parse(&text).expect_err(&text);
            assert!(error.to_string().contains(&path), "{path}: {error}");
            // A table without keys has a head of its own.
            let name = path.rsplit('.').next().unwrap();
            let line = text.lines().nth(error.line().unwrap() - 1).unwrap();
            assert!(line.contains(name), "{path}: {error}");
            refused += 1;
        }
        // What else a change needs depends on whose it is, and only Starling has liars and readers.
        if let Kind::Word(known) = key.kind
            && !matches!(path.as_str(), "network.change.of" | "strategy.name")
        {
            for word in known {
                let mut document = with_key(&path);
                set(&mut document, &path, Some((*word).into()));
                parse(&document).unwrap();
            }
        }
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn a_table_stands_for_a_list_of_one_and_of_a_list_the_line_of_the_wrong_one_is_named() {
    let one = "per_cent = 5\nat_ms = 1\nnoticed_after_ms = 2\nreplaced_after_ms = ";
    let (before, after) = WHOLE.split_once("[deaths]").unwrap();
    let rest = after.split_once("[churn]").unwrap().1;
    let with = |deaths: &str| format!("{before}{deaths}\n[churn]{rest}");
    for text in [with(&format!("[deaths]\n{one}3")), with(&format!("[[deaths]]\n{one}3"))] {
        assert_eq!(Scenario::parse(&text).unwrap().deaths.len(), 1);
    }
    let text = with(&format!("[[deaths]]\n{one}3\n[[deaths]]\n{one}2\n[[deaths]]\n{one}3"));
    let error = Scenario::parse(&text).unwrap_err();
    let first = before.lines().count();
    assert_eq!(error.line(), Some(first + 9), "{error}");
    assert!(error.to_string().contains("deaths.noticed_after_ms = 2: must be less than"), "{error}");
    let text = with("deaths = 5");
    assert!(Scenario::parse(&text).is_err());
}

#[test]
fn times_of_death_and_departures_are_bounded() {
    let error = |from: &str, to: &str| {
        assert!(WHOLE.contains(from), "{from}");
        Scenario::parse(&WHOLE.replace(from, to)).unwrap_err().to_string()
    };
    // 120 nodes that stay for a second, for a day.
    let shown = error(
        "lifetime_s = 600\nat_ms = 10\nfor_ms = 1_000",
        "lifetime_s = 1\nat_ms = 10\nfor_ms = 86_400_000",
    );
    assert!(shown.contains("churn.lifetime_s") && shown.contains("not 10368000"), "{shown}");
    let shown = error("for_ms = 1_000\nnoticed_after_ms = 200", "for_ms = 1_000\nnoticed_after_ms = 7_000");
    assert!(shown.contains("churn.noticed_after_ms") && shown.contains("line 68"), "{shown}");
    let one = "{ per_cent = 1, at_ms = 1, noticed_after_ms = 2, replaced_after_ms = 3 }";
    let (before, after) = WHOLE.split_once("[deaths]").unwrap();
    let rest = after.split_once("[churn]").unwrap().1;
    let many = vec![one; 65].join(", ");
    let head = before.replacen("seed = 7\n", &format!("seed = 7\ndeaths = [{many}]\n"), 1);
    let shown = Scenario::parse(&format!("{head}[churn]{rest}")).unwrap_err().to_string();
    assert!(shown.contains("deaths = 65 times"), "{shown}");
    for (arrival, part) in [
        (
            "[arrival.news]\nnodes = 2\n[arrival.waves]\nper_cent = 20\nevery_ms = 1\n",
            "without arrival.canary",
        ),
        ("[arrival.news]\nnodes = 121\n", "at most all 120 nodes"),
    ] {
        let text = format!("{}{arrival}[deaths]{after}", before.split_once("[arrival]").unwrap().0);
        let shown = Scenario::parse(&text).unwrap_err().to_string();
        assert!(shown.contains("arrival.news") && shown.contains(part), "{shown}");
    }
}

#[test]
fn the_documentation_lists_all_keys_as_they_are() {
    let documentation = include_str!("../../../docs/simulation.md");
    assert!(
        documentation.contains(&markdown()),
        "docs/simulation.md should have this table:\n\n{}",
        markdown()
    );
}

#[test]
fn every_key_and_every_constant_of_the_core_is_explained() {
    for (path, key) in keys() {
        let text = explain(&path).unwrap();
        assert!(text.starts_with(&path) && text.contains(&key.kind.text()), "{text}");
    }
    let serde_json::Value::Object(settings) = serde_json::to_value(Settings::default()).unwrap() else {
        panic!("settings are a table");
    };
    for (name, value) in settings {
        let text = explain(&format!("settings.{name}")).unwrap_or_else(|| panic!("{name} is not explained"));
        assert!(text.contains(&format!("Default: {value}.")) && text.lines().count() >= 3, "{text}");
    }
    let whole = explain("").unwrap();
    assert!(keys().iter().all(|(path, _)| whole.contains(&format!("  {path} "))), "{whole}");
    let arrival = explain("arrival").unwrap();
    assert!(arrival.contains("[arrival.waves]") && !arrival.contains("[fleet]"), "{arrival}");
    assert_eq!((explain("fleet.noodles"), explain("arriv"), explain("settings.x")), (None, None, None));
}

#[test]
fn who_misspells_a_key_or_puts_it_in_the_wrong_table_is_told_the_right_one() {
    for (from, to, instead) in [
        ("nodes = 120", "noodes = 120", "fleet.nodes"),
        ("[stalls]", "[stals]", "stalls"),
        ("lookup_us", "look_up_us", "network.lookup_us"),
        ("queue_ms = 5", "connections = 5", "stratum.connections"),
        ("ask_ms = 900", "ask_m = 900", "settings.ask_ms"),
    ] {
        let error = Scenario::parse(&WHOLE.replacen(from, to, 1)).unwrap_err();
        assert!(error.to_string().contains(&format!("did you mean `{instead}`?")), "{error}");
        let at = WHOLE.lines().position(|line| line.contains(from)).unwrap();
        assert_eq!(error.line(), Some(at + 1), "{error}");
    }
    assert_eq!(nearest("xyzzy"), None);
}

#[test]
fn what_no_single_key_can_be_refused_for_names_its_line_too() {
    for (from, to, line, part) in [
        ("cells_per_region = 3", "cells_per_region = 61", "cells_per_region = 61", "122 for 120"),
        ("racks_per_cell = 2", "racks_per_cell = 21", "racks_per_cell = 21", "no more racks than nodes"),
        ("share = 0.25", "nodes = 121", "[[fleet.class]]", "not 121"),
        ("chunk_bytes = 65_536", "chunk_bytes = 65_537", "chunk_bytes = 65_537", "divisor"),
        ("slice_bytes = 1_048_576", "slice_bytes = 1_048_577", "chunk_bytes = 65_536", "1048577"),
        ("bytes = 100_000_000", "bytes = 100_000_000_000", "bytes = 100_000_000_000", "wants_max"),
        ("model = 'exact'\n", "", "nodes = 170_000", "256 000 000"),
        ("noticed_after_ms = 200", "noticed_after_ms = 7_000", "noticed_after_ms = 7_000", "7_000"),
        ("every_ms = 1_000", "every_ms = 15_000", "every_ms = 15_000", "last of 5 waves"),
    ] {
        assert!(WHOLE.contains(from), "{from}");
        let mut text = WHOLE.replacen(from, to, 1);
        if part == "256 000 000" {
            text = text.replace("nodes = 120", "nodes = 170_000");
        }
        let error = Scenario::parse(&text).unwrap_err();
        let shown = text.lines().nth(error.line().unwrap() - 1).unwrap();
        assert!(shown.starts_with(line) && error.to_string().contains(part), "{error}");
    }
    let both = format!("{WHOLE}[arrival.rolling]\nnodes = 10\n");
    let error = Scenario::parse(&both).unwrap_err();
    assert!(error.to_string().contains("arrival.rolling") && error.line() > Some(40), "{error}");
    let (before, after) = WHOLE.split_once("[arrival.canary]").unwrap();
    let text = format!("{before}[deaths]{}", after.split_once("[deaths]").unwrap().1);
    let error = Scenario::parse(&text).unwrap_err();
    assert!(error.to_string().contains("canary, waves, rolling or news"), "{error}");
}

#[test]
fn content_is_said_once_and_read_by_those_who_read() {
    for (from, to, line, part) in [
        ("bytes = 100_000_000\n", "", "[content]", "`content.bytes` is missing"),
        ("slice_bytes = 1_048_576\n", "", "[content]", "`content.slice_bytes` is missing"),
        (
            "[content]\n",
            "[content]\nprofile = 'x'\n",
            "bytes = 100",
            "content.bytes = 100_000_000: must be left out",
        ),
        ("read_ahead_chunks = 4\n", "", "read_mbit_s", "nobody reads"),
        (
            "class = 'Fill'\nread_ahead_chunks = 4\nread_mbit_s = 800\n",
            "",
            "[content]",
            "`content.class` is missing",
        ),
    ] {
        assert!(WHOLE.contains(from), "{from}");
        let text = WHOLE.replacen(from, to, 1);
        let error = Scenario::parse(&text).unwrap_err();
        let shown = text.lines().nth(error.line().unwrap() - 1).unwrap();
        assert!(shown.starts_with(line) && error.to_string().contains(part), "{error}");
    }
}

const PROFILE: &str = r#"{"content_profile":1,"subject":{"repository":"a.test","revision":2,"files":1,"distinct_chunks":3,
 "plain_bytes":9},"chunks":3,"stored_bytes":1200,"segments":[[[0,1000],[2000000,150,50]]],"order":[[2,1],[0,2]]}"#;

/// [`WHOLE`] with a profile.
fn profiled(name: &str) -> String {
    let text = WHOLE.replace("bytes = 100_000_000\n", &format!("profile = '{name}'\n"));
    text.replace("slice_bytes = 1_048_576\n", "").replace("chunk_bytes = 65_536\n", "")
}

fn with_files(text: &str) -> Result<Plan, ScenarioError> {
    Plan::parse_with(text, None, None, &|name| match name {
        "good.json" => Ok(PROFILE.to_owned()),
        "bad.json" => Ok(PROFILE.replace("\"chunks\":3", "\"chunks\":4")),
        "other.json" => Ok(PROFILE.replace("1000]", "1001]").replace("1200", "1201")),
        _ => Err("no such file".to_owned()),
    })
}

#[test]
fn a_profile_says_what_the_content_is() {
    let plan = with_files(&profiled("good.json")).unwrap();
    let scenario = &plan.cases[0].scenario;
    assert_eq!((scenario.chunks(), scenario.slices(), scenario.content.bytes), (3, 2, 1_200));
    assert_eq!((scenario.chunk_bytes(), scenario.node_chunks()), (400, 360));
    let reads = scenario.read_plan(3).unwrap();
    assert_eq!((reads.order.as_deref(), reads.ahead, reads.nanos_per_byte), (Some(&[2, 0, 1][..]), 4, 10.0));
    // Only what is read is wanted, if nothing else is said.
    let lazy = profiled("good.json").replace("class = 'Fill'\n", "");
    assert_eq!(with_files(&lazy).unwrap().cases[0].scenario.content.class, None);
    // It can be swept like any key.
    let swept = profiled("good.json") + "[sweep]\ncontent.profile = ['good.json', 'other.json']\n";
    let bytes: Vec<u64> =
        with_files(&swept).unwrap().cases.iter().map(|case| case.scenario.content.bytes).collect();
    assert_eq!(bytes, [1_200, 1_201]);
}

#[test]
fn what_a_profile_is_wrong_in_is_shown_at_the_line_that_names_it() {
    for (text, parts) in [
        (profiled("bad.json"), ["chunks: 4 are said to be there and 3 are", "bad.json"]),
        (profiled("none.json"), ["no such file", "none.json"]),
        (
            profiled("good.json") + "wants_max = 2\n",
            ["at most 2 chunks (settings.wants_max), not 3", "--chunks-max"],
        ),
    ] {
        let error = with_files(&text).unwrap_err();
        let line = text.lines().nth(error.line().unwrap() - 1).unwrap();
        let shown = error.to_string();
        assert!(line.starts_with("profile = ") && parts.iter().all(|part| shown.contains(part)), "{error}");
    }
    let error = Plan::parse(&profiled("good.json"), None, None).unwrap_err().to_string();
    assert!(error.contains("it can name none"), "{error}");
}

fn plan(text: &str) -> Plan {
    Plan::parse(text, None, None).unwrap()
}

fn refusal(text: &str) -> (Option<usize>, String) {
    let error = Plan::parse(text, None, None).unwrap_err();
    (error.line(), error.to_string())
}

#[test]
fn without_a_sweep_a_plan_is_the_scenario_with_its_seeds() {
    let seeds = |text: &str, seed, seeds| Plan::parse(text, seed, seeds).unwrap().seeds;
    let list = WHOLE.replace("seeds = 3", "seeds = [9, 4]");
    let single = WHOLE.replace("seeds = 3\n", "");
    assert_eq!(seeds(WHOLE, None, None), [7, 8, 9]);
    assert_eq!(seeds(WHOLE, Some(20), None), [20]);
    assert_eq!(seeds(WHOLE, Some(20), Some(2)), [20, 21]);
    assert_eq!(seeds(WHOLE, None, Some(2)), [7, 8]);
    assert_eq!(seeds(&list, None, None), [9, 4]);
    assert_eq!(seeds(&list, Some(3), None), [3]);
    assert_eq!(seeds(&single, None, None), [7]);
    assert_eq!(seeds(single.strip_prefix("seed = 7\n").unwrap(), None, None), [1]);
    let plan = plan(WHOLE);
    assert_eq!((plan.cases.len(), plan.cases[0].values.len(), plan.runs().len()), (1, 0, 3));
}

#[test]
fn a_sweep_is_every_combination_and_the_first_key_changes_slowest() {
    let plan =
        plan(&format!("{WHOLE}[sweep]\nstratum.up_mbit_s = [1_000, 2_000]\nfleet.nodes = [12, 24, 36]\n"));
    let values: Vec<_> =
        plan.cases.iter().map(|case| (case.scenario.stratum.up_mbit_s, case.scenario.fleet.nodes)).collect();
    let expected = [(1e3, 12), (1e3, 24), (1e3, 36), (2e3, 12), (2e3, 24), (2e3, 36)];
    assert_eq!(values, expected);
    let named = &plan.cases[4].values;
    assert_eq!(named[0], ("stratum.up_mbit_s".to_owned(), 2_000.into()));
    assert_eq!(named[1], ("fleet.nodes".to_owned(), 24.into()));
    let runs = plan.runs();
    assert_eq!(runs.iter().map(|(_, seed)| *seed).take(4).collect::<Vec<_>>(), [7, 8, 9, 7]);
    assert_eq!((runs.len(), runs[17].0.scenario.fleet.nodes), (18, 36));
}

#[test]
fn tables_in_a_sweep_are_laid_over_those_of_the_scenario() {
    let (before, after) = WHOLE.split_once("[deaths]").unwrap();
    let text = format!("{before}[stalls]{}", after.split_once("[stalls]").unwrap().1);
    let deaths = "{ per_cent = 9, at_ms = 1, noticed_after_ms = 2, replaced_after_ms = 3 }";
    let swept = plan(&format!("{text}[sweep]\ndeaths = [{{}}, {deaths}]\nliars = [{{ per_cent = 2 }}]\n"));
    let cases: Vec<_> = swept.cases.iter().map(|case| &case.scenario).collect();
    assert_eq!(
        cases.iter().map(|case| case.deaths.first().map(|d| d.at_ms)).collect::<Vec<_>>(),
        [None, Some(1)]
    );
    let liars = cases[0].liars.as_ref().unwrap();
    assert_eq!((liars.per_cent, liars.how.len()), (2, 2), "what is not named stays");
    assert_eq!(swept.cases[0].values, [("liars.per_cent".to_owned(), 2.into())]);

    let (before, after) = WHOLE.split_once("[arrival]").unwrap();
    let text = format!("{before}[stalls]{}", after.split_once("[stalls]").unwrap().1);
    let waves = "[{}, { per_cent = 50, every_ms = 9 }]";
    let swept = plan(&format!("{text}[sweep]\narrival.waves = {waves}\n"));
    assert_eq!(
        swept.cases.iter().map(|case| case.scenario.arrival.is_some()).collect::<Vec<_>>(),
        [false, true]
    );

    let listed = "[[sweep]]\nfleet.nodes = 20\nstratum.connections = 9\n[[sweep]]\nfleet.nodes = 30\n";
    let listed = plan(&format!("{WHOLE}{listed}"));
    let pairs: Vec<_> = listed
        .cases
        .iter()
        .map(|case| (case.scenario.fleet.nodes, case.scenario.stratum.connections))
        .collect();
    assert_eq!(pairs, [(20, 9), (30, 64)]);
}

#[test]
fn what_a_scenario_lacks_a_sweep_may_bring() {
    let text = WHOLE.replace("nodes = 120\n", "");
    let plan = plan(&format!("{text}[sweep]\nfleet.nodes = [60, 120]\n"));
    assert_eq!(plan.cases.iter().map(|case| case.scenario.fleet.nodes).collect::<Vec<_>>(), [60, 120]);
}

#[test]
fn wrong_sweeps_are_refused_with_their_line() {
    let lines = WHOLE.lines().count();
    for (sweep, line, part) in [
        ("[sweep]\nfleet.nodes = 5", 2, "list of values"),
        ("[sweep]\nfleet.nodes = []", 2, "list of values"),
        ("[sweep]\nfleet.noodles = [1]", 2, "did you mean `fleet.nodes`"),
        ("[sweep]\nflet = [{}]", 2, "did you mean `fleet`"),
        ("[sweep]\nfleet.nodes = [60, 0]", 2, "fleet.nodes = 0"),
        ("[sweep]\nfleet.nodes = [60,\n 61,\n 5]", 4, "cells_per_region"),
        ("[sweep]\nseed = [1, 2]", 2, "seeds"),
        ("[[sweep]]\nseeds = 5", 2, "sweep.seeds"),
        ("[sweep]\nliars.how = ['lie']", 2, "a list of at least one"),
        ("[sweep]\nsweep.fleet.nodes = [1]", 2, "sweep"),
    ] {
        let (found, text) = refusal(&format!("{WHOLE}{sweep}\n"));
        assert!(text.contains(part), "{sweep}: {text}");
        // What a swept value makes wrong elsewhere is shown where the other value stands.
        if part != "cells_per_region" {
            assert_eq!(found, Some(lines + line), "{text}");
        }
    }
    assert!(refusal(&format!("sweep = 5\n{WHOLE}")).1.contains("a table of keys with lists"));
    assert!(refusal(&format!("sweep = [5]\n{WHOLE}")).1.contains("laid over"));
    let many = (1..=2_000).map(|number| number.to_string()).collect::<Vec<_>>().join(", ");
    let (_, text) = refusal(&format!("{WHOLE}[sweep]\nfleet.up_mbit_s = [{many}]\n"));
    assert!(text.contains("6 000 runs") && text.contains("4 096"), "{text}");
    let (_, text) =
        refusal(&format!("{WHOLE}[sweep]\nfleet.up_mbit_s = [{many}]\nfleet.down_mbit_s = [{many}]\n"));
    assert!(text.contains("4 000 000 runs"), "{text}");
    Plan::parse(&format!("{WHOLE}[sweep]\nfleet.up_mbit_s = [{many}]\n"), None, Some(2)).unwrap();
}

/// A piece of a scenario, right or wrong.
fn piece() -> impl Strategy<Value = String> {
    let keys: Vec<String> = keys().into_iter().map(|(path, _)| path).collect();
    let key = prop_oneof![
        4 => proptest::sample::select(keys),
        1 => "[a-z]{1,8}(\\.[a-z]{1,8})?",
    ];
    let value = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        (0_u32..2_000).prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| format!("{number:?}")),
        proptest::sample::select(vec![
            "'Fill'",
            "[]",
            "{}",
            "[1, 2]",
            "[{}, 5]",
            "true",
            "nan",
            "['lie']",
            "\"",
            "1979-05-27"
        ])
        .prop_map(str::to_owned),
        "\\PC{0,12}",
    ];
    let sweep = proptest::sample::select(vec!["", "", "sweep."]);
    (sweep, key, value).prop_map(|(sweep, key, value)| format!("{sweep}{key} = {value}\n"))
}

proptest! {
    /// Whatever a file says, it is a plan within its bounds or refused; never a panic.
    #[test]
    fn any_text_is_a_plan_within_its_bounds_or_refused(
        pieces in proptest::collection::vec(piece(), 0..6),
        drop in 0_usize..60,
        noise in "\\PC{0,20}",
        at in 0_usize..1_000,
    ) {
        let kept: Vec<&str> = WHOLE.lines().enumerate().filter(|(line, _)| *line != drop).map(|(_, text)| text).collect();
        let kept = kept.join("\n");
        let mut text = format!("{}{kept}", pieces.concat());
        let place = text.char_indices().map(|(place, _)| place).nth(at).unwrap_or(0);
        for text in [text.clone(), { text.insert_str(place, &noise); text }, pieces.concat()] {
            match Plan::parse(&text, None, None) {
                Ok(plan) => {
                    prop_assert!((1..=RUNS_MAX as usize).contains(&plan.runs().len()));
                    prop_assert!(plan.cases.iter().all(|case| case.scenario.node_chunks() <= NODE_CHUNKS_MAX));
                }
                Err(error) => {
                    let lines = text.split('\n').count();
                    prop_assert!(error.line().is_none_or(|line| (1..=lines).contains(&line)), "{}", error);
                }
            }
        }
    }

    /// What is read and written again is the same.
    #[test]
    fn a_value_within_its_bounds_is_taken(nodes in 12_u32..10_000, queue in 0_u64..60_000, up in 0.001..1e7_f64) {
        let text = WHOLE
            .replace("nodes = 120", &format!("nodes = {nodes}"))
            .replace("queue_ms = 5", &format!("queue_ms = {queue}"))
            .replace("up_mbit_s = 10_000", &format!("up_mbit_s = {up:?}"));
        let scenario = Scenario::parse(&text).unwrap();
        prop_assert_eq!((scenario.fleet.nodes, scenario.network.queue_ms), (nodes, queue));
        prop_assert_eq!(scenario.fleet.up_mbit_s.to_bits(), up.to_bits());
        let again = toml::to_string(&scenario).unwrap();
        prop_assert_eq!(toml::to_string(&Scenario::parse(&again).unwrap()).unwrap(), again);
    }
}
