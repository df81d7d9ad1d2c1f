//! The network of a run: namespaces, a switch, shaped links. Everything has a name of this run only, and goes with it.
//!
//! ```text
//!   node 0        node 1             stratum
//!   eth0          eth0               eth0      a namespace each; its egress is the uplink
//!    |             |                  |
//!   n0            n1                  s        egress of these is the downlink
//!   ==== br1 ====  ...      ======== br0 ====  bridges, all in one namespace of their own
//!          t1 -------------- c1                pairs between bridges: the link that a switch's nodes share
//! ```
//!
//! Each link is an htb class of its rate over a bfifo. Packets are single when they enter a downlink's queue
//! (`gso_max_segs 1` has the kernel split a node's bundles behind its own uplink's queue, as a network card would), so that
//! what is counted and queued there is what would be on a wire.

use super::error::LabError;
use super::process::in_path;
use super::scenario::Scenario;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};

/// What all names of namespaces of all labs begin with.
pub(super) const PREFIX: &str = "slab";
/// Where `ip netns` keeps its names.
const FOLDER: &str = "/run/netns";
/// Bytes that a class may send at once: about one bundle of ten packets, so that a link is not idle between two of the
/// kernel's timers (a guess; 6 ms at 20 Mbit/s).
const BURST_BYTES: u32 = 15_000;

/// A link's rate each way, in Mbit/s.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    pub(super) up: f64,
    pub(super) down: f64,
}

/// The network. Dropping it removes all of it.
#[derive(Debug)]
pub(super) struct Network {
    tag: String,
    queue_ms: f64,
}

impl Network {
    /// Builds the network of a scenario under `tag`.
    pub(super) fn build(tag: &str, scenario: &Scenario) -> Result<Self, LabError> {
        let network = Self { tag: tag.to_owned(), queue_ms: scenario.network.queue_ms };
        let mut names = vec![network.hub(), network.stratum()];
        names.extend((0..scenario.fleet.nodes).map(|node| network.node(node)));
        let lines: String = names.iter().map(|name| format!("netns add {name}\n")).collect();
        batch("ip", None, &lines)?;
        network.bridges(scenario)?;
        network.keep_firewall_out();
        let rates = Rates { up: scenario.stratum.up_mbit_s, down: scenario.stratum.up_mbit_s };
        network.host(&network.stratum(), "s", "br0", stratum_address(), rates, scenario)?;
        for (node, [up, down]) in (0..).zip(scenario.rates()) {
            let rates = Rates { up, down };
            let bridge = if scenario.switches() == 1 { 0 } else { scenario.switch_of(node) + 1 };
            let (name, port) = (network.node(node), port(node));
            network.host(&name, &port, &format!("br{bridge}"), address(node), rates, scenario)?;
        }
        network.introduce(scenario.fleet.nodes)?;
        Ok(network)
    }

    /// The namespace of the bridges.
    pub(super) fn hub(&self) -> String {
        format!("{}-net", self.tag)
    }

    /// The namespace of the stratum.
    pub(super) fn stratum(&self) -> String {
        format!("{}-stratum", self.tag)
    }

    /// The namespace of a node.
    pub(super) fn node(&self, node: u32) -> String {
        format!("{}-n{node}", self.tag)
    }

    fn bridges(&self, scenario: &Scenario) -> Result<(), LabError> {
        let mut lines = String::from("link set lo up\n");
        let mut shaping = String::new();
        let switches = if scenario.switches() == 1 { 0 } else { scenario.switches() };
        for bridge in 0..=switches {
            // No snooping and no addresses: a switch that says nothing itself.
            let _ = writeln!(
                lines,
                "link add br{bridge} type bridge mcast_snooping 0\nlink set br{bridge} addrgenmode none\nlink set br{bridge} up"
            );
        }
        for switch in 1..=switches {
            let _ = writeln!(
                lines,
                "link add t{switch} type veth peer name c{switch}\nlink set t{switch} addrgenmode none\n\
                 link set c{switch} addrgenmode none\nlink set t{switch} master br{switch}\n\
                 link set c{switch} master br0\nlink set t{switch} up\nlink set c{switch} up"
            );
            if let Some(rate) = scenario.network.shared_mbit_s {
                shaping += &self.shape("add", &format!("t{switch}"), rate);
                shaping += &self.shape("add", &format!("c{switch}"), rate);
            }
        }
        batch("ip", Some(&self.hub()), &lines)?;
        if shaping.is_empty() { Ok(()) } else { batch("tc", Some(&self.hub()), &shaping) }
    }

    /// Where a container engine had the kernel pass what bridges forward through the firewall, ours do not: it would cost each
    /// packet as much as all else that they do. Where there is no such thing, nothing is to be done.
    fn keep_firewall_out(&self) {
        let off = "for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $f ] || echo 0 > $f; done";
        let done = Command::new("ip").args(["netns", "exec", &self.hub(), "sh", "-c", off]).status();
        if !done.is_ok_and(|status| status.success()) {
            tracing::warn!("the bridges' packets may pass through this machine's firewall");
        }
    }

    /// Tells every host the link addresses of all others for good. The kernel finds 1 024 of them at most in all namespaces
    /// together, which 32 hosts exceed: then connections fail with "no route to host", as on no real network of that size.
    fn introduce(&self, nodes: u32) -> Result<(), LabError> {
        let mut hosts: Vec<(String, Ipv4Addr)> = vec![(self.stratum(), stratum_address())];
        hosts.extend((0..nodes).map(|node| (self.node(node), address(node))));
        for (name, own) in &hosts {
            let others = hosts.iter().map(|(_, address)| *address).filter(|address| address != own);
            let lines: String = others
                .map(|other| {
                    format!("neigh replace {other} lladdr {} dev eth0 nud permanent\n", link_address(other))
                })
                .collect();
            if !lines.is_empty() {
                batch("ip", Some(name), &lines)?;
            }
        }
        Ok(())
    }

    /// A host with one shaped link.
    fn host(
        &self,
        name: &str,
        port: &str,
        bridge: &str,
        address: Ipv4Addr,
        rates: Rates,
        scenario: &Scenario,
    ) -> Result<(), LabError> {
        let lines = format!(
            "link add {port} type veth peer name eth0 netns {name}\nlink set {port} addrgenmode none\n\
             link set {port} master {bridge}\nlink set {port} up\n"
        );
        batch("ip", Some(&self.hub()), &lines)?;
        let single = if scenario.network.offload { "" } else { "link set eth0 gso_max_segs 1\n" };
        let lines = format!(
            "link set lo up\nlink set eth0 addrgenmode none\nlink set eth0 address {}\n{single}addr add {address}/16 dev eth0\nlink set eth0 up\n",
            link_address(address)
        );
        batch("ip", Some(name), &lines)?;
        batch("tc", Some(name), &self.shape("add", "eth0", rates.up))?;
        batch("tc", Some(&self.hub()), &self.shape("add", port, rates.down))
    }

    /// The lines with which `tc` shapes a device's egress.
    fn shape(&self, verb: &str, device: &str, mbit_s: f64) -> String {
        let bits = mbit_s * 1e6;
        let limit = bits / 8.0 * self.queue_ms / 1e3;
        let mut lines = String::new();
        if verb == "add" {
            let _ = writeln!(lines, "qdisc add dev {device} root handle 1: htb default 1");
        }
        let _ = writeln!(
            lines,
            "class {verb} dev {device} parent 1: classid 1:1 htb rate {bits:.0}bit burst {BURST_BYTES}b \
             cburst {BURST_BYTES}b quantum 1600\n\
             qdisc {verb} dev {device} parent 1:1 handle 10: bfifo limit {limit:.0}b"
        );
        lines
    }

    /// Gives a node's link other rates.
    pub(super) fn slow(&self, node: u32, rates: Rates) -> Result<(), LabError> {
        batch("tc", Some(&self.node(node)), &self.shape("change", "eth0", rates.up))?;
        batch("tc", Some(&self.hub()), &self.shape("change", &port(node), rates.down))
    }

    /// Cuts a switch off from the rest, or heals the cut.
    pub(super) fn cut(&self, switch: u32, is_cut: bool) -> Result<(), LabError> {
        let state = if is_cut { "down" } else { "up" };
        batch("ip", Some(&self.hub()), &format!("link set t{} {state}\n", switch + 1))
    }

    /// Packets that queues dropped so far: those of uplinks, and all others.
    pub(super) fn drops(&self, nodes: u32) -> Result<(u64, u64), LabError> {
        let mut up = qdisc_drops(&self.stratum())?;
        for node in 0..nodes {
            up += qdisc_drops(&self.node(node))?;
        }
        Ok((up, qdisc_drops(&self.hub())?))
    }

    /// Opens a namespace of this network, for processes and threads that shall live in it.
    pub(super) fn open(name: &str) -> Result<File, LabError> {
        let path = format!("{FOLDER}/{name}");
        File::open(&path).map_err(LabError::file(path))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        remove(&self.tag);
    }
}

/// The name of a node's port at the switch.
pub(super) fn port(node: u32) -> String {
    format!("n{node}")
}

/// The address of a node.
pub(super) fn address(node: u32) -> Ipv4Addr {
    let [.., high, low] = (node + 257).to_be_bytes();
    Ipv4Addr::new(10, 77, high, low)
}

/// Which switch a host of this run lies behind.
pub(super) fn switch_of_host(scenario: &Scenario, host: IpAddr) -> Option<u32> {
    let node = (0..scenario.fleet.nodes).find(|node| host == IpAddr::V4(address(*node)))?;
    Some(scenario.switch_of(node))
}

/// The link address of a host: local and of one, by its bits.
fn link_address(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// The address of the stratum.
pub(super) fn stratum_address() -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 1)
}

/// Whether this machine can carry a lab.
pub(super) fn check_machine(path: Option<&std::ffi::OsStr>) -> Result<(), LabError> {
    if !rustix::process::geteuid().is_root() {
        return Err(LabError::NeedsRoot);
    }
    for program in ["ip", "tc"] {
        if !in_path(program, path) {
            return Err(LabError::NoProgram(program));
        }
    }
    Ok(())
}

/// Removes all namespaces of a run, with their links, and whatever processes are left in them.
pub(super) fn remove(tag: &str) {
    let names: Vec<String> = std::fs::read_dir(FOLDER)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.strip_prefix(tag).is_some_and(|rest| rest.starts_with('-')))
        .collect();
    for name in &names {
        for pid in processes(name) {
            // Nobody but the run of this tag put a process there.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    let lines: String = names.iter().map(|name| format!("netns del {name}\n")).collect();
    if !lines.is_empty()
        && let Err(error) = batch("ip", None, &lines)
    {
        eprintln!("warning: {error}");
    }
}

fn processes(namespace: &str) -> Vec<rustix::process::Pid> {
    let listed = Command::new("ip").args(["netns", "pids", namespace]).stderr(Stdio::null()).output();
    let text = listed.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text)
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .filter_map(rustix::process::Pid::from_raw)
        .collect()
}

/// Feeds lines to `ip` or `tc`, in a namespace if one is named.
fn batch(program: &str, namespace: Option<&str>, lines: &str) -> Result<(), LabError> {
    let mut arguments = Vec::new();
    if let Some(name) = namespace {
        arguments.extend(["-n", name]);
    }
    arguments.extend(["-batch", "-"]);
    let shown = || format!("{program} {}", arguments.join(" "));
    let failed = |said: String| LabError::Command { command: format!("{}: {}", shown(), lines.trim()), said };
    let mut child = Command::new(program)
        .args(&arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    if let Some(mut input) = child.stdin.take()
        && let Err(error) = input.write_all(lines.as_bytes())
    {
        tracing::debug!(%error, program, "it ended before it had read everything");
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Packets that the queues of a namespace dropped so far.
fn qdisc_drops(namespace: &str) -> Result<u64, LabError> {
    let arguments = ["-n", namespace, "-s", "-j", "qdisc", "show"];
    let command = format!("tc {}", arguments.join(" "));
    let output = Command::new("tc")
        .args(arguments)
        .output()
        .map_err(|error| LabError::Command { command: command.clone(), said: error.to_string() })?;
    let found: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| LabError::Output { command, found: error.to_string() })?;
    let queues = found.as_array().map(Vec::as_slice).unwrap_or_default();
    // The class above counts the drops of its queue again.
    Ok(queues
        .iter()
        .filter(|queue| queue["kind"] == "bfifo")
        .filter_map(|queue| queue["drops"].as_u64())
        .sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_has_an_address_of_its_own() {
        assert_eq!(address(0), Ipv4Addr::new(10, 77, 1, 1));
        assert_eq!(address(255), Ipv4Addr::new(10, 77, 2, 0));
        assert_ne!(address(0), stratum_address());
    }

    #[test]
    fn a_queue_holds_so_many_milliseconds_of_its_link() {
        let network = Network { tag: "slab-of-no-run".to_owned(), queue_ms: 50.0 };
        let lines = network.shape("add", "eth0", 20.0);
        assert!(lines.contains("rate 20000000bit") && lines.contains("bfifo limit 125000b"), "{lines}");
    }
}
