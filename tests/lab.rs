//! Proves that the lab runs real agents behind shaped links, among a kill and a liar, that all get what was published, and
//! that nothing is left behind.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{STARLING, can_mount, skipped};
use std::fs;
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

const SCENARIO: &str = "
seed = 3
[fleet]
nodes = 4
up_mbit_s = 200
down_mbit_s = 200
[content]
bytes = 4_000_000
files = 12
spread = 100
[stratum]
up_mbit_s = 400
[work]
how = 'read'
deadline_s = 90
[[faults]]
what = 'kill'
at_s = 0.2
nodes = 1
replace = true
[[faults]]
what = 'liar'
nodes = 1
how = 'corrupt'
";

/// One lab at a time: each takes the whole machine.
static LAB: Mutex<()> = Mutex::new(());

/// The lab, if this machine can make network namespaces with shaped links.
fn can_shape(test: &str) -> Option<MutexGuard<'static, ()>> {
    let lab = LAB.lock().unwrap_or_else(PoisonError::into_inner);
    if !can_mount(test) {
        return None;
    }
    let name = format!("slab-probe-{}", std::process::id());
    let tried = |program: &str, arguments: &[&str]| {
        Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
    };
    let ok = tried("ip", &["netns", "add", &name])
        && tried("tc", &["-n", &name, "qdisc", "add", "dev", "lo", "root", "handle", "1:", "htb"]);
    tried("ip", &["netns", "del", &name]);
    if !ok {
        skipped(test, "it needs `ip`, `tc`, network namespaces and htb");
    }
    ok.then_some(lab)
}

fn lab(scenario: &str, folder: &std::path::Path) -> Output {
    let file = folder.join("scenario.toml");
    fs::write(&file, scenario).unwrap();
    Command::new(STARLING).arg("lab").arg(&file).arg("--json").env("TMPDIR", folder).output().unwrap()
}

#[test]
fn all_get_what_was_published_although_one_is_killed_and_one_lies() {
    let Some(_lab) = can_shape("lab") else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = lab(SCENARIO, dir.path());
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{}\n{said}", out.status);
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&report["nodes"], &report["completed"]), (&3.into(), &3.into()), "{report}");
    assert_eq!(report["identical"], true, "{report}");
    let fates: Vec<_> =
        report["per_node"].as_array().unwrap().iter().map(|node| node["fate"].as_str().unwrap()).collect();
    let count = |fate: &str| fates.iter().filter(|found| **found == fate).count();
    assert_eq!((count("liar"), count("killed"), count("completed")), (1, 1, 3), "{fates:?}");
    assert!(report["makespan_s"].as_f64().unwrap() >= 0.1, "{report}");
    // Somebody took it from the stratum, and somebody from a neighbour; the stratum's link carried more than the content. (Not more
    // than `strata_bytes`: of what was meant for the killed one a part never left the stratum's buffers.)
    assert!(report["strata_copies"].as_f64().unwrap() > 0.9, "{report}");
    assert!(report["strata_wire_bytes"].as_u64() > report["content_bytes"].as_u64(), "{report}");
    let peers = |node: &serde_json::Value| node["from_peers_bytes"].as_u64().unwrap_or(0);
    assert!(report["per_node"].as_array().unwrap().iter().map(peers).sum::<u64>() > 1_000_000, "{report}");

    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["scenario.toml"]);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(dir.path().to_str().unwrap()), "{mounts}");
}

#[test]
fn a_liar_takes_the_place_of_one_that_was_killed_and_the_others_complete() {
    let Some(_lab) = can_shape("lab") else { return };
    let dir = tempfile::tempdir().unwrap();
    let (head, _) = SCENARIO.split_once("[[faults]]").unwrap();
    let fault = "[[faults]]\nwhat = 'replace'\nat_s = 0.1\nnodes = 1\nhow = 'corrupt'\n";
    let out = lab(&format!("{head}{fault}"), dir.path());
    assert!(out.status.success(), "{}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let nodes = report["per_node"].as_array().unwrap();
    let of = |fate: &str| nodes.iter().filter(|node| node["fate"] == fate).collect::<Vec<_>>();
    assert_eq!([of("liar").len(), of("killed").len(), of("completed").len()], [1, 1, 3], "{report}");
    let place = of("killed")[0]["name"].as_str().unwrap();
    assert_eq!(
        (&of("liar")[0]["name"], &of("liar")[0]["lies"]),
        (&format!("{place}-2").into(), &"corrupt".into())
    );
    assert_eq!((&report["nodes"], &report["identical"]), (&3.into(), &true.into()), "{report}");
}

#[test]
fn a_wrong_scenario_is_refused_with_the_key_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let out = lab(&SCENARIO.replace("nodes = 4", "nodes = 4\nknots = 4"), dir.path());
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("knots") && said.contains("docs/lab.md"), "{said}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
