//! Cold starts over a long way: how many requests they cost the stratum, and how long they take.
//!
//! `cargo bench --bench cold_start -- [--files 3500] [--rtt-ms 84] [--near-ms 1] [--rounds 3] [--only ROW,...] [--root DIR]
//! [--no-traces] [--json FILE] [--keep]` as root. Two trees are made, published with their traces and without, and served by
//! `starling stratum serve` behind a proxy of this program that delays what passes by half the round-trip time each way (and new
//! connections by a whole one). An agent with an empty cache is told of the repository and mounts it, and a process reads:
//!
//! * `python`: a generated tree of Python packages; all files, one after the other, in the order of imports.
//! * `bash`: a Debian root (`debootstrap --variant=minbase`, or a copy of `--root DIR`); `chroot MOUNT /bin/bash -c 'echo hi'`.
//!
//! Requests and bytes are those of the stratum's access log from before the repository is made known: root and catalogs count. Seconds are those of the reading
//! process, and beside them with the mount. "One request a file" is measured on 40 files and multiplied. In the row with a
//! neighbour an agent of the same cell holds all of the tree, behind a relay that takes `--near-ms` there and back.
//!
//! The median of the rounds counts. Exits with 1 when a limit is missed, with 2 when it cannot be run.
#![allow(clippy::unwrap_used, reason = "a measurement may panic")]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "cold_start/proxy.rs"]
mod proxy;
#[path = "cold_start/trees.rs"]
mod trees;

use common::{Node, Stratum, at_fingerprint, ok, publish, wait_for};
use serde_json::{Value, json};
use starling::ambient::now;
use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::net::UdpSocket;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// Files that are fetched one by one to learn what one request a file takes.
const ONE_BY_ONE: usize = 40;
const CELL: &str = "here/a/1";

/// What a row must not exceed.
#[derive(Clone, Copy)]
struct Limits {
    seconds: Option<f64>,
    requests: Option<usize>,
    bytes: Option<u64>,
}

/// A row of the table.
struct Row {
    key: &'static str,
    what: &'static str,
    tree: &'static str,
    traced: bool,
    neighbour: bool,
    limits: Limits,
}

const ROWS: [Row; 5] = [
    Row {
        key: "python",
        what: "all files, the stratum alone",
        tree: "python",
        traced: false,
        neighbour: false,
        limits: Limits { seconds: Some(15.0), requests: None, bytes: None },
    },
    Row {
        key: "python-trace",
        what: "all files, the stratum alone, with a trace",
        tree: "python",
        traced: true,
        neighbour: false,
        limits: Limits { seconds: Some(4.0), requests: Some(40), bytes: None },
    },
    Row {
        key: "python-neighbour",
        what: "all files, a warm neighbour",
        tree: "python",
        traced: false,
        neighbour: true,
        limits: Limits { seconds: Some(2.0), requests: None, bytes: None },
    },
    Row {
        key: "bash",
        what: "bash -c 'echo hi'",
        tree: "bash",
        traced: false,
        neighbour: false,
        limits: Limits { seconds: None, requests: Some(24), bytes: None },
    },
    Row {
        key: "bash-trace",
        what: "bash -c 'echo hi', with a trace",
        tree: "bash",
        traced: true,
        neighbour: false,
        limits: Limits { seconds: None, requests: Some(8), bytes: Some(2_000_000) },
    },
];

struct Options {
    files: usize,
    rtt: Duration,
    near: Duration,
    rounds: usize,
    only: Vec<String>,
    root: Option<PathBuf>,
    traces: bool,
    json: Option<PathBuf>,
    keep: bool,
    lines: bool,
}

fn options() -> Result<Options, String> {
    let ms = Duration::from_millis;
    let (rtt, near) = (ms(84), ms(1));
    let mut found = Options {
        files: 3_500,
        rtt,
        near,
        rounds: 3,
        only: Vec::new(),
        root: None,
        traces: true,
        json: None,
        keep: false,
        lines: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} takes a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("`{text}` is no number"));
        match word.as_str() {
            // Cargo's own.
            "--bench" => {}
            "--files" => found.files = usize::try_from(number(value()?)?.max(10)).unwrap(),
            "--rtt-ms" => found.rtt = ms(number(value()?)?),
            "--near-ms" => found.near = ms(number(value()?)?),
            "--rounds" => found.rounds = usize::try_from(number(value()?)?.max(1)).unwrap(),
            "--only" => found.only.extend(value()?.split(',').map(str::to_owned)),
            "--root" => found.root = Some(value()?.into()),
            "--no-traces" => found.traces = false,
            "--json" => found.json = Some(value()?.into()),
            "--keep" => found.keep = true,
            "--lines" => found.lines = true,
            other => return Err(format!("`{other}` is not known")),
        }
    }
    if let Some(bad) = found.only.iter().find(|name| ROWS.iter().all(|row| row.key != name.as_str())) {
        return Err(format!("there is no row `{bad}`"));
    }
    Ok(found)
}

/// The reading process: `--read LIST ROOT`. Prints the seconds that it took.
fn read(list: &Path, root: &Path) {
    let paths = fs::read(list).unwrap();
    let began = now();
    let mut bytes = 0;
    let mut content = Vec::new();
    for path in paths.split(|byte| *byte == b'\n').filter(|path| !path.is_empty()) {
        content.clear();
        let path = root.join(OsStr::from_bytes(path));
        fs::metadata(&path).unwrap();
        bytes += fs::File::open(&path).unwrap().read_to_end(&mut content).unwrap();
    }
    println!("{} {bytes}", now().since(began).as_secs_f64());
}

/// A published tree behind the proxy, and how it is read.
struct World {
    base: PathBuf,
    tree: &'static str,
    made_of: String,
    list: PathBuf,
    stratum: Stratum,
    url: String,
    at: String,
    repository: String,
    trace: Option<PathBuf>,
    sequence: usize,
    lines: bool,
}

impl World {
    fn new(base: &Path, tree: &'static str, options: &Options) -> Result<Self, String> {
        let base = base.join(tree);
        fs::create_dir_all(&base).unwrap();
        let (root, list) = (base.join("tree"), base.join("list"));
        let made_of = if tree == "python" {
            let (order, bytes) = trees::python(&root, options.files);
            let lines: Vec<&[u8]> = order.iter().map(|path| path.as_os_str().as_bytes()).collect();
            fs::write(&list, lines.join(&b'\n')).unwrap();
            format!("{} files, {:.1} MB", order.len(), bytes as f64 / 1e6)
        } else {
            trees::debian(&root, options.root.as_deref())?
        };
        let repository = format!("{tree}.bench");
        let revision = publish(&root, &repository, &base.join("to"), &base.join("keys"), &[]);
        let stratum = Stratum::serve(&base.join("to"), &base);
        let url = proxy::before_stratum(&stratum.url, options.rtt);
        let at = at_fingerprint(&revision);
        let lines = options.lines;
        Ok(Self { base, tree, made_of, list, stratum, url, at, repository, trace: None, sequence: 0, lines })
    }

    fn folder(&mut self, name: &str) -> PathBuf {
        self.sequence += 1;
        self.base.join(format!("{name}{}", self.sequence))
    }

    /// The command that reads the tree mounted at `mount`.
    fn reader(&self, mount: &Path) -> Command {
        let mut command;
        if self.tree == "python" {
            command = Command::new(std::env::current_exe().unwrap());
            command.arg("--read").arg(&self.list).arg(mount);
        } else {
            // Without the locale and whatever else the caller's environment has read.
            command = Command::new("env");
            command.args(["-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "chroot"]).arg(mount).args([
                "/bin/bash",
                "-c",
                "echo hi",
            ]);
        }
        command.stdin(Stdio::null());
        command
    }

    /// Reads the tree; the seconds of the reading process.
    fn run(&self, mount: &Path) -> f64 {
        let began = now();
        let output = self.reader(mount).output().unwrap();
        let took = now().since(began).as_secs_f64();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        if self.tree == "python" {
            return said.split_whitespace().next().unwrap().parse().unwrap();
        }
        assert_eq!(said, "hi\n");
        took
    }

    /// Records what the reader reads, and publishes that with the tree.
    fn publish_trace(&mut self) {
        let trace = self.base.join("trace");
        let mut node = Node::new(self.folder("recorder"));
        node.start();
        node.add_repository(&self.at, &self.stratum.url);
        let mount = node.mount(&self.repository, "mnt");
        let socket = node.socket();
        let mut args: Vec<&OsStr> =
            vec!["trace".as_ref(), "record".as_ref(), "--out".as_ref(), trace.as_ref()];
        args.extend(["--socket".as_ref(), socket.as_os_str(), mount.as_os_str(), "--".as_ref()]);
        let reader = self.reader(&mount);
        args.push(reader.get_program());
        args.extend(reader.get_args());
        ok(&args);
        node.umount(&mount);
        let (root, to, keys) = (self.base.join("tree"), self.base.join("to"), self.base.join("keys"));
        publish(&root, &self.repository, &to, &keys, &["--trace", trace.to_str().unwrap()]);
        self.trace = Some(trace);
    }

    /// One cold start: seconds of mounting, seconds of reading, lines of the access log.
    fn cold(&mut self, node: &mut Node, before: usize) -> Figures {
        let began = now();
        let mount = node.mount(&self.repository, "mnt");
        let mount_s = now().since(began).as_secs_f64();
        let read_s = self.run(&mount);
        // The log's line of an answer is written before its last bytes leave; what was fetched ahead counts, too.
        std::thread::sleep(Duration::from_millis(1_500));
        let log = self.stratum.access_log().split_off(before);
        node.umount(&mount);
        if self.lines {
            log.iter().for_each(|line| eprintln!("    {line}"));
        }
        let bytes = log.iter().filter_map(|line| line.split(' ').nth(6)?.parse::<u64>().ok()).sum();
        Figures { mount_s, read_s, requests: log.len(), bytes }
    }

    fn alone(&mut self) -> Figures {
        let mut node = Node::new(self.folder("node"));
        node.start();
        let before = self.stratum.access_log().len();
        node.add_repository(&self.at, &self.url);
        let figures = self.cold(&mut node, before);
        node.stop();
        figures
    }

    /// With a neighbour that holds everything. Both learn the repository's stratum behind the proxy.
    fn beside(&mut self, near: Duration) -> Figures {
        let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let relay = proxy::before_node(free, near).to_string();
        let mut warm = Node::new(self.folder("warm")).with_args(&["--advertise", &relay]);
        warm.move_to(&free.to_string());
        warm.init_mesh(CELL);
        warm.start();
        warm.add_repository(&self.at, &self.url);
        warm.mount_with(&self.repository, "mnt", &["--fill", "--wait"]);
        let mut node = Node::new(self.folder("node"));
        node.join(&warm.invite(), CELL);
        node.start();
        wait_for("the neighbour", Duration::from_secs(60), || (node.peers_up() == 1).then_some(()));
        // The first moments, in which a node looks for others, are not what is measured.
        std::thread::sleep(Duration::from_secs(2));
        let before = self.stratum.access_log().len();
        let figures = self.cold(&mut node, before);
        node.stop();
        warm.stop();
        figures
    }

    /// Seconds for one request a file, from some of them.
    fn one_by_one(&self) -> f64 {
        let paths = fs::read(&self.list).unwrap();
        let all = paths.split(|byte| *byte == b'\n').count();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("{}/{}/root", self.url, self.repository);
        let get =
            || runtime.block_on(async { client.get(&url).send().await.unwrap().bytes().await.unwrap() });
        get();
        let began = now();
        (0..ONE_BY_ONE).for_each(|_| drop(get()));
        now().since(began).as_secs_f64() / ONE_BY_ONE as f64 * all as f64
    }
}

/// What a cold start cost.
#[derive(Clone, Copy)]
struct Figures {
    mount_s: f64,
    read_s: f64,
    requests: usize,
    bytes: u64,
}

fn median<T: PartialOrd + Copy>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort_by(|a, b| a.partial_cmp(b).unwrap());
    values[values.len() / 2]
}

fn measure(options: &Options, base: &Path) -> Result<(bool, Value), String> {
    let mut report = Vec::new();
    let mut all_kept = true;
    let chosen = |row: &&Row| {
        let named = options.only.is_empty() || options.only.iter().any(|name| name == row.key);
        named && (options.traces || !row.traced)
    };
    let rows: Vec<&Row> = ROWS.iter().filter(chosen).collect();
    for of_a_tree in rows.chunk_by(|one, other| one.tree == other.tree) {
        let mut world = World::new(base, of_a_tree[0].tree, options)?;
        println!("{} ({}), {} ms to the stratum", world.tree, world.made_of, options.rtt.as_millis());
        if world.tree == "python" {
            let seconds = world.one_by_one();
            println!("  {:<46} {seconds:>8.1} s (reckoned)", "one request a file");
            report.push(json!({ "row": "one-by-one", "seconds": seconds }));
        }
        // What needs no trace comes first: one that was published cannot be taken back.
        let mut rows = of_a_tree.to_vec();
        rows.sort_by_key(|row| row.traced);
        for row in rows {
            if row.traced && world.trace.is_none() {
                world.publish_trace();
            }
            let rounds: Vec<Figures> = (0..options.rounds)
                .map(|_| if row.neighbour { world.beside(options.near) } else { world.alone() })
                .collect();
            let read_s = median(rounds.iter().map(|one| one.read_s));
            let all_s = median(rounds.iter().map(|one| one.read_s + one.mount_s));
            let requests = median(rounds.iter().map(|one| one.requests));
            let bytes = median(rounds.iter().map(|one| one.bytes));
            let Limits { seconds: s_max, requests: requests_max, bytes: bytes_max } = row.limits;
            let kept = s_max.is_none_or(|most| all_s <= most)
                && requests_max.is_none_or(|most| requests <= most)
                && bytes_max.is_none_or(|most| bytes <= most);
            all_kept &= kept;
            let most =
                |limit: Option<String>| limit.map_or(String::new(), |limit| format!(" (at most {limit})"));
            println!(
                "  {:<46} {read_s:>8.2} s, with the mount {all_s:.2} s{}; {requests} requests{}, {:.2} MB{}{}",
                row.what,
                most(s_max.map(|s| format!("{s} s"))),
                most(requests_max.map(|n| n.to_string())),
                bytes as f64 / 1e6,
                most(bytes_max.map(|n| format!("{} MB", n as f64 / 1e6))),
                if kept { "" } else { "  MISSED" },
            );
            report.push(json!({
                "row": row.key, "read_s": read_s, "with_mount_s": all_s, "requests": requests, "bytes": bytes, "kept": kept,
                "rounds": rounds.iter().map(|one| json!([one.mount_s, one.read_s, one.requests, one.bytes])).collect::<Vec<_>>(),
            }));
        }
    }
    Ok((all_kept, json!({ "rtt_ms": options.rtt.as_millis(), "files": options.files, "rows": report })))
}

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    if let [_, command, list, root] = &words[..]
        && command == "--read"
    {
        read(Path::new(list), Path::new(root));
        return ExitCode::SUCCESS;
    }
    let options = match options() {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("cold_start: {problem}");
            return ExitCode::from(2);
        }
    };
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("cold_start: it needs root and /dev/fuse");
        return ExitCode::from(2);
    }
    let base = tempfile::Builder::new().prefix("starling-cold-").tempdir().unwrap();
    let measured = measure(&options, base.path());
    if options.keep {
        eprintln!("kept: {}", base.keep().display());
    }
    match measured {
        Ok((all_kept, report)) => {
            if let Some(file) = &options.json {
                fs::write(file, serde_json::to_vec_pretty(&report).unwrap()).unwrap();
            }
            if all_kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(problem) => {
            eprintln!("cold_start: {problem}");
            ExitCode::from(2)
        }
    }
}
