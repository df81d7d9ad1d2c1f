//! Proves that `starling content-profile` takes out of a repository what a node that has one revision fetches for another, byte for
//! byte, from a folder or a URL, and that the simulator moves exactly that, in the order of a trace where there is one.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Dice, Node, Stratum, at_fingerprint, can_mount, fails, make_tree, ok, publish, wait_for};
use serde_json::Value;
use starling::catalog::{RecordedTrace, TracedFile, TracedRead, content_of};
use starling::model::ContentId;
use starling::sim::ContentProfile;
use starling::upstream::AccessLine;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const NAME: &str = "profiled.test";
/// Bytes between two frames that are fetched rather than asked for anew (`limits::STRATUM_MAX_GAP`).
const GAP_MAX: u64 = 16 << 10;

/// A tree that is published.
struct World {
    base: tempfile::TempDir,
    at: String,
}

impl World {
    /// The first revision.
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        make_tree(&base.path().join("tree"), 3, 60, 6 << 20);
        let made = publish(
            &base.path().join("tree"),
            NAME,
            &base.path().join("to"),
            &base.path().join("keys"),
            &["--tag", "first"],
        );
        Self { at: at_fingerprint(&made), base }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    fn publish(&self, more: &[&str]) -> Value {
        publish(&self.path("tree"), NAME, &self.path("to"), &self.path("keys"), more)
    }

    /// New files, one that grew, one that is gone.
    fn change(&self) {
        make_tree(&self.path("tree/more"), 8, 30, 3 << 20);
        let large = self.path("tree/large");
        let mut bytes = fs::read(&large).unwrap();
        bytes.extend(Dice(99).bytes(400_000));
        fs::write(&large, bytes).unwrap();
        fs::remove_file(self.path("tree/d1/f1")).unwrap();
    }

    fn arguments<'a>(&'a self, source: &'a OsStr, out: &'a Path, more: &[&'a str]) -> Vec<&'a OsStr> {
        let mut all: Vec<&OsStr> =
            vec!["content-profile".as_ref(), source, "--repo".as_ref(), self.at.as_ref()];
        all.extend(["--out".as_ref(), out.as_os_str(), "--json".as_ref()]);
        all.extend(more.iter().map(|one| OsStr::new(*one)));
        all
    }

    /// What is told of a profile, and the profile.
    fn profile(&self, source: &OsStr, name: &str, more: &[&str]) -> (Value, ContentProfile) {
        let out = self.path(name);
        let told = serde_json::from_str(&ok(&self.arguments(source, &out, more))).unwrap();
        (told, ContentProfile::from_text(&fs::read_to_string(&out).unwrap()).unwrap())
    }

    /// The report of a simulation of so many nodes that want what a profile says.
    fn simulate(&self, profile: &str, nodes: u32, content: &str) -> Value {
        let text = format!(
            "[fleet]\nnodes = {nodes}\nregions = 1\ncells_per_region = 1\nup_mbit_s = 1_000\ndown_mbit_s = 1_000\n\
             [network]\nlatency_us = 500\n[content]\nprofile = '{profile}'\n{content}\ndeadline_s = 60\n\
             [stratum]\nup_mbit_s = 4_000\nconnections = 64\n"
        );
        let file = self.path("scenario.toml");
        fs::write(&file, text).unwrap();
        let shown = ok(&[OsStr::new("simulate"), file.as_os_str(), "--json".as_ref()]);
        serde_json::from_str(&shown).unwrap()
    }
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key} of {value}"))
}

#[test]
fn what_a_revision_has_beyond_another_is_what_simulated_nodes_move() {
    let world = World::new();
    let folder = world.path("to").into_os_string();
    let (told, whole) = world.profile(&folder, "first.json", &[]);
    assert_eq!((number(&told, "revision"), told["since"].is_null(), number(&told, "files")), (1, true, 63));

    world.change();
    world.publish(&[]);
    let (told, delta) = world.profile(&folder, "delta.json", &["--since", "first"]);
    assert_eq!((number(&told, "revision"), number(&told, "since")), (2, 1));
    assert_eq!(
        (number(&told, "stored_bytes"), number(&told, "chunks")),
        (delta.stored_bytes(), u64::from(delta.len()))
    );
    // Some 3 MB of new files with a copy of half of them, and 400 KB at the end of a large one.
    assert!((3 << 20..whole.stored_bytes()).contains(&delta.stored_bytes()), "{told}");
    let (_, all) = world.profile(&folder, "second.json", &["--revision", "2"]);
    assert!(all.stored_bytes() > whole.stored_bytes() && all.stored_bytes() > delta.stored_bytes());
    // The tag's revision is still there as it was.
    assert_eq!(world.profile(&folder, "again.json", &["--revision", "first"]).1, whole);

    let stratum = Stratum::serve(&world.path("to"), world.base.path());
    let url = stratum.url.clone();
    let (told_of_url, by_url) = world.profile(url.as_ref(), "url.json", &["--since", "1"]);
    assert_eq!(by_url, delta);
    assert_eq!(number(&told_of_url, "plain_bytes"), number(&told, "plain_bytes"));

    let one = world.simulate("delta.json", 1, "class = 'Fill'");
    assert_eq!(
        (number(&one, "strata_bytes"), number(&one, "transfers")),
        (delta.stored_bytes(), delta.len().into())
    );
    let many = world.simulate("delta.json", 20, "class = 'Fill'");
    assert_eq!((number(&many, "completed"), number(&many, "strata_bytes")), (20, delta.stored_bytes()));
    assert!(number(&many, "transfers") >= 20 * u64::from(delta.len()));
    let bound = delta.stored_bytes() as f64 * 8.0 / 1e9;
    assert!((many["bound_s"].as_f64().unwrap() - bound).abs() < 1e-9, "{many}");

    // Fewer chunks, the same bytes.
    let (told, fewer) = world.profile(&folder, "fewer.json", &["--since", "1", "--chunks-max", "20"]);
    assert!(fewer.len() <= 20 && number(&told, "distinct_chunks") == u64::from(delta.len()), "{told}");
    let fewer_of = world.simulate("fewer.json", 20, "class = 'Fill'");
    assert_eq!(number(&fewer_of, "strata_bytes"), delta.stored_bytes());
}

#[test]
fn a_node_fetches_the_chunks_and_bytes_that_the_profile_says() {
    if !can_mount("content_profile") {
        return;
    }
    let world = World::new();
    let stratum = Stratum::serve(&world.path("to"), world.base.path());
    let mut node = Node::new(world.path("node"));
    node.start();
    node.add_repository(&world.at, &stratum.url);
    node.mount_with(NAME, "mnt", &["--fill", "--wait"]);
    let obtained = |node: &Node, unit: &str| {
        let count = node.metric(&format!("starling_obtained_{unit}_total{{source=\"strata\"}}"));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let count = count as u64;
        count
    };
    let folder = world.path("to").into_os_string();
    let before = [obtained(&node, "bytes"), obtained(&node, "chunks")];
    let (whole, _) = world.profile(&folder, "first.json", &[]);
    assert_eq!(before, [number(&whole, "plain_bytes"), number(&whole, "distinct_chunks")]);
    let asked = stratum.access_log().len();

    world.change();
    world.publish(&["--announce", node.socket().to_str().unwrap()]);
    let status = |node: &Node| -> Value {
        let socket = node.socket();
        let text = ok(&[OsStr::new("status"), "--json".as_ref(), "--socket".as_ref(), socket.as_ref()]);
        serde_json::from_str(&text).unwrap()
    };
    wait_for("the second revision", Duration::from_secs(60), || {
        let mount = &status(&node)["mounts"][0];
        (mount["revision"] == 2 && mount["fill"]["complete"] == true).then_some(())
    });
    let (delta, profile) = world.profile(&folder, "delta.json", &["--since", "1"]);
    let fetched = [obtained(&node, "bytes") - before[0], obtained(&node, "chunks") - before[1]];
    assert_eq!(fetched, [number(&delta, "plain_bytes"), number(&delta, "distinct_chunks")]);

    // And as stored bytes, which the simulated network moves: what the stratum sent are these and what lay between them.
    let lines: Vec<AccessLine> =
        stratum.access_log()[asked..].iter().map(|line| line.parse().unwrap()).collect();
    let objects = || lines.iter().filter(|line| line.path.contains("/objects/"));
    let sent: u64 = objects().map(|line| line.body_bytes).sum();
    let most = profile.stored_bytes() + u64::from(profile.len()) * GAP_MAX;
    assert!((profile.stored_bytes()..=most).contains(&sent), "{sent} for {}", profile.stored_bytes());
    let simulated = world.simulate("delta.json", 1, "class = 'Fill'");
    assert_eq!(number(&simulated, "strata_bytes"), profile.stored_bytes());
}

#[test]
fn readers_of_a_profile_read_in_the_order_of_its_trace() {
    let world = World::new();
    let mut dice = Dice(5);
    // Small files of one chunk each, recorded backwards.
    let files: Vec<(String, Vec<u8>)> = (0..12)
        .map(|number| (format!("traced/f{number:02}"), dice.bytes(2_000 + 300 * number)))
        .rev()
        .collect();
    fs::create_dir_all(world.path("tree/traced")).unwrap();
    for (path, bytes) in &files {
        fs::write(world.path("tree").join(path), bytes).unwrap();
    }
    let file = |(path, bytes): &(String, Vec<u8>)| TracedFile {
        path: path.as_bytes().into(),
        content: content_of([&ContentId::of(bytes)]),
    };
    let gone = TracedFile { path: (*b"gone").into(), content: ContentId::of(b"") };
    let trace = RecordedTrace {
        name: "start".to_owned(),
        files: files.iter().map(file).chain([gone]).collect(),
        reads: (0..13).map(|file| TracedRead { file, first: 0, count: 1 }).collect(),
    };
    let recorded = world.path("start.trace");
    fs::write(&recorded, trace.to_bytes()).unwrap();
    world.publish(&["--trace", recorded.to_str().unwrap()]);

    let folder = world.path("to").into_os_string();
    let (told, by_name) = world.profile(&folder, "name.json", &["--trace", "start"]);
    assert_eq!((told["trace"].as_str(), by_name.subject().trace.as_deref()), (Some("start"), Some("start")));
    let (told, by_file) = world.profile(&folder, "file.json", &["--trace", recorded.to_str().unwrap()]);
    assert_eq!((number(&told, "files"), number(&told, "left_out")), (12, 1));
    // The index, the root catalog, and the files in the order of the trace, which is not that in which they lie.
    let lens = |profile: &ContentProfile| -> Vec<u32> {
        let order = profile.order().unwrap();
        order.iter().map(|chunk| profile.chunks()[*chunk as usize].stored_len).collect()
    };
    let read = lens(&by_file);
    assert_eq!(read.len(), 2 + 12);
    assert!(read[2..].is_sorted_by(|before, after| before > after), "{read:?}");
    // Who replays it has one document more.
    assert!(lens(&by_name).ends_with(&read[2..]), "{:?}", lens(&by_name));

    let report = world.simulate("file.json", 10, "read_ahead_chunks = 3\nread_mbit_s = 8");
    let readers = &report["readers"];
    assert_eq!((number(readers, "readers"), number(readers, "read_all")), (10, 10));
    // At 8 Mbit/s a byte takes a microsecond, however soon it comes.
    let reading = by_file.stored_bytes() as f64 / 1e6;
    assert!(readers["read_s"]["max"].as_f64().unwrap() >= reading, "{readers}");
    assert_eq!(number(&report, "strata_bytes"), by_file.stored_bytes());
}

#[test]
fn what_cannot_be_had_is_told_with_what_to_do() {
    let world = World::new();
    let (folder, out) = (world.path("to").into_os_string(), world.path("out.json"));
    let failed = |source: &OsStr, more: &[&str]| fails(&world.arguments(source, &out, more));
    for (more, part) in [
        (&["--revision", "7"][..], "the repository keeps revisions from 1 to 1, and tags first"),
        (&["--since", "none"], "--since none: there is no such revision"),
        (&["--since", "1"], "revision 1 has nothing that 1 has not"),
        (&["--trace", "none"], "neither a trace of revision 1 nor a file"),
        (&["--chunks-max", "2"], "slices of 1 MiB cannot be 2 chunks"),
        (&["--chunks-max", "0"], "--chunks-max"),
    ] {
        let said = failed(&folder, more);
        assert!(said.contains(part), "{more:?}: {said}");
    }
    let nowhere = world.path("nowhere").into_os_string();
    assert!(failed(&nowhere, &[]).contains("is not published in"));
    assert!(failed("http://".as_ref(), &[]).contains("URL"));
    let mut stranger = World::new();
    stranger.at = world.at.clone();
    let (theirs, out) = (stranger.path("to").into_os_string(), stranger.path("out.json"));
    let said = fails(&stranger.arguments(&theirs, &out, &[]));
    assert!(said.contains("the root"), "{said}");
    assert!(!out.exists() && !world.path("out.json").exists());
}
