//! Proves that runs which several processes did and one put together are what one process alone says of them, byte by byte, and that
//! the manifests in deploy/ do exactly that.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::STARLING;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use yaml_rust2::{Yaml, YamlLoader};

const SCENARIO: &str = "
seeds = [3, 9]
[fleet]
nodes = 40
regions = 2
cells_per_region = 2
up_mbit_s = 1_000
down_mbit_s = 1_000
[[fleet.class]]
name = 'slow'
nodes = 7
up_mbit_s = 200
down_mbit_s = 400
[network]
latency_us = 500
links.cell_down_mbit_s = 8_000
[content]
bytes = 16_777_216
slice_bytes = 1_048_576
class = 'Fill'
deadline_s = 60
[stratum]
up_mbit_s = 2_000
connections = 64
[sweep]
fleet.nodes = [40, 25]
content = [{}, { read_ahead_chunks = 4 }]
";
/// Runs of the scenario: two seeds, two sizes, with readers and without.
const RUNS: usize = 8;

struct Place(tempfile::TempDir);

impl Place {
    fn new(scenario: &str) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::write(place.path("fleet.toml"), scenario).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn simulate(&self, options: &[&str]) -> Output {
        let mut command = Command::new(STARLING);
        command.args(["simulate", "fleet.toml"]).args(options).current_dir(self.0.path()).output().unwrap()
    }

    /// Does it and says what it printed.
    fn done(&self, options: &[&str]) -> String {
        let out = self.simulate(options);
        assert!(out.status.success(), "{options:?}: {}", text(&out.stderr));
        text(&out.stdout)
    }

    /// What it says when it refuses.
    fn refused(&self, options: &[&str]) -> String {
        let out = self.simulate(options);
        assert!(!out.status.success() && out.stdout.is_empty(), "{options:?}: {}", text(&out.stdout));
        text(&out.stderr)
    }

    fn shards(&self, of: usize) -> Vec<String> {
        fs::create_dir(self.path("out")).unwrap();
        let folder = |number: usize| format!("out/{number}");
        for number in 0..of {
            self.done(&["--shard", &format!("{number}/{of}"), "--parquet", &folder(number)]);
        }
        (0..of).map(folder).collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The lines without what differs from time to time.
fn lines(text: &str) -> Vec<String> {
    let line = |line: &str| {
        let Ok(Value::Object(mut object)) = serde_json::from_str(line) else { return line.to_owned() };
        object.remove("wall_s").unwrap();
        Value::Object(object).to_string()
    };
    text.lines().filter(|line| !line.starts_with("wall time")).map(line).collect()
}

/// All files of a folder, by name.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entry =
        |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|found| entry(found.unwrap())).collect();
    files.sort();
    files
}

const REPORTS: [&str; 8] = ["--report", "r.html", "--csv", "t", "--parquet", "t", "--svg", "s"];

/// Does the runs of a place in one process, merges what shards left of them, and compares all that both say and write.
fn compare(place: &Place, folders: &[String]) {
    let merged = |options: &[&str]| {
        let merge = ["--merge"].into_iter().chain(folders.iter().map(String::as_str));
        let options: Vec<&str> = merge.chain(options.iter().copied()).collect();
        place.done(&options)
    };
    let left = || (fs::read(place.path("r.html")).unwrap(), files(&place.path("t")), files(&place.path("s")));
    let said = place.done(&REPORTS);
    let alone = left();
    for folder in ["t", "s"] {
        fs::remove_dir_all(place.path(folder)).unwrap();
    }
    let then = merged(&REPORTS);
    assert_eq!(lines(&then), lines(&said));
    let together = left();
    assert!(together.0 == alone.0, "the HTML reports differ");
    for (one, other) in [(together.1, alone.1), (together.2, alone.2)] {
        assert_eq!(one.len(), other.len());
        for (one, other) in one.iter().zip(&other) {
            assert!(one == other, "{} and {} differ", one.0, other.0);
        }
    }
    assert_eq!(lines(&merged(&["--json"])), lines(&place.done(&["--json"])));
}

#[test]
fn shards_put_together_are_the_runs_of_one_process_to_the_byte() {
    let place = Place::new(SCENARIO);
    let folders = place.shards(3);
    let json = place.done(&["--json"]);
    assert_eq!(json.lines().count(), RUNS + 1);
    // What a shard prints are its lines of the whole.
    let parts: Vec<String> = (0..3)
        .map(|number| {
            place.done(&["--shard", &format!("{number}/3"), "--parquet", &folders[number], "--json"])
        })
        .collect();
    let whole = lines(&json);
    assert!(parts.iter().all(|part| part.lines().count() >= 2));
    assert_eq!(lines(&parts.concat()), whole[..RUNS]);
    // In whatever order they are given.
    let folders = [&folders[2], &folders[0], &folders[1]].map(Clone::clone);
    compare(&place, &folders);
}

#[test]
fn one_run_and_more_shards_than_runs_can_be_merged_too() {
    let (scenario, _) = SCENARIO.split_once("[sweep]").unwrap();
    let place = Place::new(&scenario.replace("seeds = [3, 9]", "seed = 3"));
    let folders = place.shards(2);
    compare(&place, &folders);
}

#[test]
fn strategies_that_are_compared_and_runs_that_fail_are_merged_as_they_are() {
    let (scenario, _) = SCENARIO.split_once("[sweep]").unwrap();
    let scenario = format!("{scenario}[compare]\nstrategies = ['origin', 'kraken', 'starling']\n");
    // Nobody can have all of it in so short a time.
    let place = Place::new(&scenario.replace("deadline_s = 60", "deadline_s = 1"));
    let said = place.simulate(&["--json"]);
    assert_eq!(said.status.code(), Some(1), "{}", text(&said.stdout));
    let folders = place.shards(2);
    let merged = place.simulate(&["--json", "--merge", &folders[0], &folders[1]]);
    assert_eq!(merged.status.code(), Some(1));
    assert_eq!(lines(&text(&merged.stdout)), lines(&text(&said.stdout)));
    assert_eq!(text(&merged.stderr), text(&said.stderr));
}

#[test]
fn what_does_not_belong_together_is_refused_with_the_reason() {
    let place = Place::new(SCENARIO);
    place.shards(3);
    let check = |options: &[&str], parts: &[&str]| {
        let said = place.refused(options);
        assert!(parts.iter().all(|part| said.contains(part)), "{options:?}: {said}");
    };
    check(&["--merge", "out/0", "out/2"], &["no folder has the shards 1/3", "hint:", "--shard 1/3"]);
    check(&["--merge", "out/0", "out/1", "out/0"], &["out/0: shard 0/3 is also in out/0"]);
    check(&["--merge", "out/0", "out/1", "out/2", "--seeds", "3"], &["a shard of other runs", "--seeds"]);
    check(&["--merge", "none"], &["none: it has no shard.json", "do the shard again"]);
    check(&["--merge", "out/0", "--parquet", "out/0"], &["would replace the tables of a shard"]);
    check(&["--merge", "out/0", "--perfetto", "p.json"], &["--perfetto"]);
    check(&["--shard", "3/3", "--parquet", "out/3"], &["counted from 0: 0/3 to 2/3"]);
    check(&["--shard", "0/3"], &["--parquet"]);
    check(&["--shard", "0/3", "--parquet", "x", "--report", "r.html"], &["--report"]);

    place.done(&["--shard", "1/2", "--parquet", "other"]);
    check(&["--merge", "out/0", "other"], &["other: it is one of 2 shards, but out/0 one of 3"]);

    let manifest = fs::read_to_string(place.path("out/1/shard.json")).unwrap();
    let version = format!("\"starling\":\"{}\"", env!("CARGO_PKG_VERSION"));
    let changed = manifest.replace(&version, "\"starling\":\"0.0.9\"");
    assert_ne!(changed, manifest);
    fs::write(place.path("out/1/shard.json"), changed).unwrap();
    check(&["--merge", "out/0", "out/1", "out/2"], &["out/1: starling 0.0.9 did it"]);
    fs::write(place.path("out/1/shard.json"), &manifest).unwrap();

    // Tables that are damaged, or of another shard.
    let nodes = fs::read(place.path("out/1/nodes.parquet")).unwrap();
    fs::write(place.path("out/1/nodes.parquet"), &nodes[..nodes.len() / 2]).unwrap();
    check(
        &["--merge", "out/0", "out/1", "out/2"],
        &["out/1: nodes.parquet is not what", "do the shard again"],
    );
    fs::copy(place.path("out/0/nodes.parquet"), place.path("out/1/nodes.parquet")).unwrap();
    check(&["--merge", "out/0", "out/1", "out/2"], &["out/1: nodes.parquet is not what"]);
    fs::remove_file(place.path("out/1/nodes.parquet")).unwrap();
    check(&["--merge", "out/0", "out/1", "out/2"], &["out/1: nodes.parquet: No such file"]);
    fs::write(place.path("out/1/nodes.parquet"), nodes).unwrap();

    // A shard that cannot begin leaves what an earlier one left.
    fs::create_dir(place.path("out/1/runs.parquet.part")).unwrap();
    place.refused(&["--shard", "1/3", "--parquet", "out/1"]);
    fs::remove_dir(place.path("out/1/runs.parquet.part")).unwrap();
    place.done(&["--merge", "out/0", "out/1", "out/2"]);

    fs::write(place.path("fleet.toml"), SCENARIO.replace("= 7", "= 8")).unwrap();
    check(&["--merge", "out/0", "out/1", "out/2"], &["a shard of other runs"]);
}

/// A file of deploy/.
fn deployed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

#[test]
fn the_kubernetes_job_does_all_shards() {
    let manifest = fs::read_to_string(deployed("simulation-job.yaml")).unwrap();
    let documents = YamlLoader::load_from_str(&manifest).unwrap();
    let kinds: Vec<&str> = documents.iter().map(|one| one["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["PersistentVolumeClaim", "Job"]);
    let job = &documents[1]["spec"];
    assert_eq!(job["completionMode"].as_str(), Some("Indexed"));
    let count = usize::try_from(job["completions"].as_i64().unwrap()).unwrap();
    assert_eq!(job["parallelism"].as_i64(), job["completions"].as_i64());
    let pod = &job["template"]["spec"];
    let names = |list: &Yaml| -> Vec<String> {
        list.as_vec().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
    };
    let container = &pod["containers"][0];
    assert_eq!(names(&container["volumeMounts"]), names(&pod["volumes"]));
    let claim = pod["volumes"][1]["persistentVolumeClaim"]["claimName"].as_str();
    assert_eq!(claim, documents[0]["metadata"]["name"].as_str());
    let mounts: Vec<&str> =
        (0..2).map(|at| container["volumeMounts"][at]["mountPath"].as_str().unwrap()).collect();
    assert_eq!(mounts, ["/scenario", "/out"]);

    // What the pods do, here: one after the other, with the mounts elsewhere.
    let place = Place::new(SCENARIO);
    fs::create_dir(place.path("out")).unwrap();
    let root = place.0.path().to_str().unwrap().to_owned();
    for index in 0..count {
        let argument = |argument: &Yaml| {
            let text = argument.as_str().unwrap().replace("$(JOB_COMPLETION_INDEX)", &index.to_string());
            text.replace("/scenario/", &format!("{root}/")).replace("/out/", &format!("{root}/out/"))
        };
        let arguments: Vec<String> = container["args"].as_vec().unwrap().iter().map(argument).collect();
        let out = Command::new(STARLING).args(&arguments).output().unwrap();
        assert!(out.status.success(), "{arguments:?}: {}", text(&out.stderr));
    }
    let folders: Vec<String> = (0..count).map(|index| format!("out/{index}")).collect();
    compare(&place, &folders);
}

#[test]
fn the_slurm_array_does_all_shards() {
    let script = deployed("simulation-array.sh");
    let place = Place::new(SCENARIO);
    let programs = Path::new(STARLING).parent().unwrap();
    let path = std::env::join_paths(
        [programs.to_owned()].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    )
    .unwrap();
    let task = |variables: &[(&str, &str)]| {
        let mut command = Command::new("bash");
        command.arg(&script).args(["fleet.toml", "out"]).current_dir(place.0.path()).env("PATH", &path);
        for name in ["SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SHARDS"] {
            command.env_remove(name);
        }
        command.envs(variables.iter().copied()).output().unwrap()
    };
    for (number, variables) in [
        ("0", ("SLURM_ARRAY_TASK_COUNT", "3")),
        ("1", ("SLURM_ARRAY_TASK_COUNT", "3")),
        // Done again by itself.
        ("2", ("SHARDS", "3")),
    ] {
        let out = task(&[("SLURM_ARRAY_TASK_ID", number), variables]);
        assert!(out.status.success(), "{}", text(&out.stderr));
    }
    let out = task(&[]);
    assert!(!out.status.success() && text(&out.stderr).contains("sbatch --array=0-7"), "{out:?}");
    compare(&place, &["out/0", "out/1", "out/2"].map(str::to_owned));
}
