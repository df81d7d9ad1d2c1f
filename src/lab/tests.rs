//! Scenarios: what is accepted, what is refused, who is hit by which fault.

use super::faults::Faults;
use super::*;

const WHOLE: &str = "
seed = 7
faults = [
    { what = 'kill', at_s = 5, until_s = 15, nodes = 3, replace = true },
    { what = 'replace', at_s = 6, nodes = 1, how = 'lie' },
    { what = 'cut', at_s = 10, for_s = 30, switches = [1] },
    { what = 'slow', at_s = 1, nodes = [4, 5], up_mbit_s = 2, down_mbit_s = 3 },
    { what = 'liar', nodes = 2, how = 'corrupt' },
    { what = 'liar', nodes = [9], how = 'stall' },
    { what = 'kill_stratum' },
]
[fleet]
nodes = 16
cells_per_region = 2
up_mbit_s = 20
down_mbit_s = 20
[network]
shared_mbit_s = 40
[content]
bytes = 1_000_000
files = 3
[stratum]
up_mbit_s = 80
[work]
how = 'read'
deadline_s = 60
[goals]
makespan_over_bound = 1.3
[agent]
dht = false
[settings]
ask_ms = 900
";

#[test]
fn a_whole_scenario_is_understood() {
    let scenario = Scenario::parse(WHOLE).unwrap();
    assert_eq!((scenario.network.queue_ms, scenario.settings.ask_ms), (50.0, 900));
    assert_eq!((scenario.switch_of(7), scenario.switch_of(8)), (0, 1));
    assert_eq!(scenario.cell_of(8).as_str(), "region0/zone/cell1");
    assert_eq!(scenario.faults.len(), 7);
}

#[test]
fn wrong_scenarios_are_refused_with_the_key_and_the_value() {
    for (from, to, key, value) in [
        ("nodes = 16", "nodes = 0", "fleet.nodes", "0"),
        ("up_mbit_s = 20\ndown", "up_mbit_s = 0\ndown", "fleet.up_mbit_s", "0"),
        ("bytes = 1_000_000", "bytes = 0", "content.bytes", "0"),
        ("files = 3", "fils = 3", "fils", ""),
        ("how = 'read'", "how = 'think'", "how", "think"),
        ("switches = [1]", "switches = [2]", "faults.switches", "2"),
        ("nodes = [4, 5]", "nodes = [0]", "faults.nodes", "0"),
        ("nodes = 3,", "nodes = 13,", "faults.nodes", "19"),
        ("how = 'lie'", "howl = 'lie'", "howl", ""),
        ("at_s = 6", "at_s = 62", "faults.at_s", "62"),
        ("at_s = 5,", "at_s = 61,", "faults.at_s", "61"),
        ("until_s = 15", "until_s = 4", "faults.until_s", "4"),
        ("how = 'stall'", "how = 'smile'", "smile", ""),
        ("dht = false", "listen = '0.0.0.0:1'", "agent", "listen"),
        ("deadline_s = 60", "deadline_s = 0", "work.deadline_s", "0"),
    ] {
        assert!(WHOLE.contains(from), "{from}");
        let error = Scenario::parse(&WHOLE.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(value), "{to}: {error}");
    }
}

#[test]
fn nobody_is_hit_by_two_faults_and_the_authority_by_none() {
    for seed in 0..50 {
        let scenario = Scenario { seed, ..Scenario::parse(WHOLE).unwrap() };
        let liars = Faults::liars(&scenario);
        assert_eq!(liars.len(), 3);
        assert_eq!(liars[&9], LiarKind::Stall);
        assert!([0, 4, 5].iter().all(|place| !liars.contains_key(place)), "{liars:?}");
        let killed = Faults::plan(&scenario, crate::ambient::now()).killed();
        let liars_later: Vec<_> = killed.iter().filter_map(|(_, liar)| *liar).collect();
        assert_eq!((killed.len(), liars_later), (4, vec![LiarKind::Lie]));
        assert!(killed.iter().all(|(place, _)| !liars.contains_key(place) && ![0, 4, 5].contains(place)));
        assert_eq!(killed, Faults::plan(&scenario, crate::ambient::now()).killed(), "the seed decides");
    }
}

#[test]
fn the_published_scenarios_are_well_formed() {
    let mut count = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/simulations/lab")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        Scenario::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        count += 1;
    }
    assert!(count >= 7, "{count} scenarios");
}
