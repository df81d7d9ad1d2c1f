//! What an idle mesh costs: real agents, each in a network namespace of its own, that have nothing to do.
//!
//! `cargo bench --bench idle -- [--nodes 32] [--settle 90] [--seconds 180]` as root. It counts the bytes of each
//! node's own interface (both directions, headers of Ethernet, IP and UDP included), the processor time and the context
//! switches of each agent, and compares them with the limits. Exits with 1 when one is passed.
#![allow(clippy::unwrap_used, reason = "a measurement may panic")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Process, STARLING, ok, starling, wait_for};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// Most bytes a second of a node, sent and received together.
const BYTES_MAX: f64 = 2_048.0;
/// Most of a core, in per cent.
const CPU_MAX: f64 = 0.3;
/// Clock ticks a second in /proc (`getconf CLK_TCK` on every Linux that is met).
const TICKS: f64 = 100.0;
const INTERFACE: &str = "eth0";

fn run(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).stderr(Stdio::null()).stdout(Stdio::null()).status().unwrap().success()
}

/// Namespaces of nodes around one with a bridge. They go with this.
struct Net {
    prefix: String,
    nodes: usize,
}

impl Net {
    fn build(nodes: usize) -> Self {
        let net = Self { prefix: format!("sli{}", std::process::id()), nodes };
        let hub = net.hub();
        assert!(run("ip", &["netns", "add", &hub]), "no network namespace could be made");
        for args in [&["link", "add", "br0", "type", "bridge"][..], &["link", "set", "br0", "up"]] {
            assert!(run("ip", &[&["-n", hub.as_str()][..], args].concat()));
        }
        for node in 0..nodes {
            let (name, port, address) = (net.name(node), format!("v{node}"), format!("{}/16", net.ip(node)));
            assert!(run("ip", &["netns", "add", &name]));
            let veth =
                ["-n", hub.as_str(), "link", "add", port.as_str(), "type", "veth", "peer", "name", INTERFACE];
            assert!(run("ip", &[&veth[..], &["netns", name.as_str()][..]].concat()));
            assert!(run("ip", &["-n", &hub, "link", "set", &port, "master", "br0", "up"]));
            assert!(run("ip", &["-n", &name, "addr", "add", &address, "dev", INTERFACE]));
            assert!(run("ip", &["-n", &name, "link", "set", INTERFACE, "address", &net.link_address(node)]));
            assert!(run("ip", &["-n", &name, "link", "set", INTERFACE, "up"]));
            assert!(run("ip", &["-n", &name, "link", "set", "lo", "up"]));
        }
        // For good: the kernel finds at most 1 024 link addresses in all namespaces together, and 32 nodes that know each
        // other need as many.
        for node in 0..nodes {
            for other in (0..nodes).filter(|other| *other != node) {
                let (name, ip, link) = (net.name(node), net.ip(other), net.link_address(other));
                let neighbour = ["-n", &name, "neigh", "add", &ip, "lladdr", &link, "nud", "permanent"];
                assert!(run("ip", &[&neighbour[..], &["dev", INTERFACE]].concat()));
            }
        }
        net
    }

    /// A local one, by the node's number.
    fn link_address(&self, node: usize) -> String {
        format!("02:00:00:00:{:02x}:{:02x}", node / 256, node % 256)
    }

    fn hub(&self) -> String {
        format!("{}h", self.prefix)
    }

    fn name(&self, node: usize) -> String {
        format!("{}n{node}", self.prefix)
    }

    fn ip(&self, node: usize) -> String {
        format!("10.79.{}.{}", node / 200, node % 200 + 1)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for node in 0..self.nodes {
            run("ip", &["netns", "del", &self.name(node)]);
        }
        run("ip", &["netns", "del", &self.hub()]);
    }
}

/// An agent in its namespace.
struct Agent {
    dir: PathBuf,
    process: Process,
}

impl Agent {
    fn start(net: &Net, node: usize, dir: &Path) -> Self {
        let child = Command::new("ip")
            .args(["netns", "exec", &net.name(node), STARLING, "agent", "--state"])
            .arg(dir.join("state"))
            .arg("--socket")
            .arg(dir.join("sock"))
            .args(["--listen", &format!("{}:7400", net.ip(node))])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.join("agent.log")).unwrap())
            .spawn()
            .unwrap();
        let agent = Self { dir: dir.to_owned(), process: Process(child) };
        wait_for("an agent that answers", Duration::from_secs(30), || {
            starling(&[OsStr::new("status"), "--socket".as_ref(), agent.dir.join("sock").as_ref()])
                .status
                .success()
                .then_some(())
        });
        agent
    }

    fn members_up(&self) -> usize {
        let socket = self.dir.join("sock");
        let out =
            starling(&[OsStr::new("status"), "--metrics".as_ref(), "--socket".as_ref(), socket.as_ref()]);
        let text = String::from_utf8(out.stdout).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("starling_members{state=\"up\"} "));
        line.and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.process.0.id())).unwrap()
    }

    fn read(&self) -> Reading {
        let stat = self.proc("stat");
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        let devices = self.proc("net/dev");
        let counters = devices.lines().find_map(|line| line.trim().strip_prefix("eth0:")).unwrap();
        let counters: Vec<u64> = counters.split_whitespace().map(|n| n.parse().unwrap()).collect();
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.0.id())).unwrap();
        let switches = tasks
            .filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok())
            .flat_map(|status| {
                let count =
                    |line: &str| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse::<u64>().ok();
                status.lines().filter_map(count).collect::<Vec<_>>()
            })
            .sum();
        let resident = self.proc("status").lines().find_map(|line| {
            line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
        });
        Reading {
            ticks,
            received: counters[0],
            sent: counters[8],
            switches,
            resident_kib: resident.unwrap_or(0),
        }
    }
}

struct Reading {
    ticks: u64,
    received: u64,
    sent: u64,
    switches: u64,
    resident_kib: u64,
}

fn argument(name: &str, default: usize) -> usize {
    let args: Vec<String> = std::env::args().collect();
    let at = args.iter().position(|arg| arg == name);
    at.and_then(|at| args.get(at + 1)).map_or(default, |value| value.parse().expect("a number"))
}

fn line(what: &str, unit: &str, values: &[f64], limit: Option<f64>) -> bool {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let most = values.iter().copied().fold(0.0, f64::max);
    let holds = limit.is_none_or(|limit| most <= limit);
    let limit = limit.map_or(String::new(), |limit| {
        format!("   limit {limit}: {}", if holds { "holds" } else { "MISSED" })
    });
    println!("{what:<28} mean {mean:>9.2}   most {most:>9.2} {unit}{limit}");
    holds
}

fn main() -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: it needs root, for network namespaces");
        return ExitCode::SUCCESS;
    }
    let (nodes, settle, seconds) =
        (argument("--nodes", 32), argument("--settle", 90), argument("--seconds", 180));
    let base = tempfile::tempdir().unwrap();
    let net = Net::build(nodes);
    let dir = |node: usize| {
        let dir = base.path().join(format!("n{node}"));
        fs::create_dir_all(&dir).unwrap();
        dir
    };
    let first = dir(0);
    let (state, socket) = (first.join("state"), first.join("sock"));
    ok(&[OsStr::new("mesh"), "init".as_ref(), "--state".as_ref(), state.as_ref()]);
    let mut agents = vec![Agent::start(&net, 0, &first)];
    for node in 1..nodes {
        let dir = dir(node);
        let ticket = ok(&[OsStr::new("mesh"), "invite".as_ref(), "--socket".as_ref(), socket.as_ref()]);
        let joined = Command::new("ip")
            .args(["netns", "exec", &net.name(node), STARLING, "join", ticket.trim(), "--state"])
            .arg(dir.join("state"))
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(joined.success());
        agents.push(Agent::start(&net, node, &dir));
    }
    for agent in &agents {
        wait_for("all to see all", Duration::from_secs(120), || (agent.members_up() == nodes).then_some(()));
    }
    eprintln!("{nodes} agents see each other; {settle} s to settle, {seconds} s to measure");
    std::thread::sleep(Duration::from_secs(settle as u64));
    let before: Vec<Reading> = agents.iter().map(Agent::read).collect();
    std::thread::sleep(Duration::from_secs(seconds as u64));
    let after: Vec<Reading> = agents.iter().map(Agent::read).collect();
    let rate = |figure: fn(&Reading) -> u64| -> Vec<f64> {
        before.iter().zip(&after).map(|(b, a)| (figure(a) - figure(b)) as f64 / seconds as f64).collect()
    };
    println!("idle mesh of {nodes}, {seconds} s");
    line("sent", "bytes/s", &rate(|r| r.sent), None);
    line("received", "bytes/s", &rate(|r| r.received), None);
    let traffic =
        line("traffic, both directions", "bytes/s", &rate(|r| r.sent + r.received), Some(BYTES_MAX));
    let cpu: Vec<f64> = rate(|r| r.ticks).iter().map(|ticks| 100.0 * ticks / TICKS).collect();
    let processor = line("processor", "% of a core", &cpu, Some(CPU_MAX));
    line("context switches", "/s", &rate(|r| r.switches), None);
    let resident: Vec<f64> = after.iter().map(|r| r.resident_kib as f64 / 1024.0).collect();
    line("resident", "MiB", &resident, None);
    if traffic && processor { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
