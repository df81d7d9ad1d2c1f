//! How large a fleet the simulator bears: wall time, events a second, and memory a node by part.
//!
//! `cargo bench --bench simulator -- [NODESxSLICES...] [--threads N] [--small-pages]` simulates a fill of so many slices of 1 MiB on so many nodes with
//! 10 Gbit/s, in four regions with cells of two thousand, and prints what it took. Without sizes it runs those for which
//! limits are promised, each in a process of its own, and ends with 1 when one is missed. The processes ask glibc for huge
//! pages (`GLIBC_TUNABLES=glibc.malloc.hugetlb=1`, which works for `starling simulate` as well), for a run goes all over its
//! memory. `--small-pages` leaves that out, to compare. `--network NODES` measures a step of the network alone, with eight transfers
//! under way to each node, on one thread and on all of them, without and with links that regions share.

use starling::sim::{Measured, NetworkLoad, Scenario, measure};
use std::process::{Command, ExitCode};

/// What is promised on two cores: nodes, slices, seconds, GiB.
const LIMITS: [(u32, u32, f64, Option<f64>); 2] =
    [(100_000, 1_024, 180.0, None), (1_000_000, 256, 600.0, Some(8.0))];
const REGIONS: u32 = 4;
const CELL_NODES: u32 = 2_000;
const GIB: f64 = (1_u64 << 30) as f64;

fn scenario(nodes: u32, slices: u32, links: &str) -> Result<Scenario, String> {
    let cells = (nodes / CELL_NODES / REGIONS).max(1);
    let bytes = u64::from(slices) << 20;
    let text = format!(
        "seed = 1
[fleet]
nodes = {nodes}
regions = {REGIONS}
cells_per_region = {cells}
up_mbit_s = 10_000
down_mbit_s = 10_000
[network]
latency_us = 500
{links}[content]
bytes = {bytes}
slice_bytes = 1_048_576
class = 'Fill'
deadline_s = 60
[stratum]
up_mbit_s = 160_000
connections = 256
"
    );
    Scenario::parse(&text).map_err(|error| error.to_string())
}

/// A line of `/proc/self/status`, in GiB.
fn status_gib(key: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: f64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").trim().parse().ok()?;
    Some(kib * 1024.0 / GIB)
}

fn verdict(found: f64, most: Option<f64>, unit: &str) -> (String, bool) {
    let Some(most) = most else { return (String::new(), true) };
    let good = found <= most;
    (format!("  {} (at most {most} {unit})", if good { "PASS" } else { "MISSED" }), good)
}

/// Runs one size in this process and prints what it took. `false` when a limit was missed.
fn run(nodes: u32, slices: u32, threads: usize) -> Result<bool, String> {
    let scenario = scenario(nodes, slices, "")?;
    let cells = scenario.cells();
    println!("{nodes} nodes x {slices} slices, {REGIONS} regions, {cells} cells, {threads} threads");
    #[expect(clippy::disallowed_methods, reason = "a measurement takes the real time")]
    let start = std::time::Instant::now();
    let (mut first, mut tenths) = (None, 0);
    let Measured { report, footprint, events, visits, steps } =
        measure(&scenario, None, threads, &mut |progress| {
            let now_s = start.elapsed().as_secs_f64();
            first.get_or_insert(now_s);
            // So that a long run that is broken off has said something.
            let moved = progress.transfers * 10 / progress.wanted.max(1);
            if moved > tenths && now_s > 60.0 {
                tenths = moved;
                let (events, gib) = (progress.events as f64 / 1e6, status_gib("VmRSS").unwrap_or(0.0));
                println!(
                    "  after {now_s:.0} s: {moved} tenths moved, {events:.0} million events, {gib:.2} GiB"
                );
            }
        });
    let wall_s = start.elapsed().as_secs_f64();
    let limits = LIMITS.iter().find(|limits| (limits.0, limits.1) == (nodes, slices));
    let (time, fast) = verdict(wall_s, limits.map(|limits| limits.2), "s");
    println!("  wall time       {wall_s:.1} s{time}");
    println!("  of these, until the first 64 steps were over: {:.1} s", first.unwrap_or(wall_s));
    println!("  events          {} = {:.2} million/s", report.events, report.events as f64 / wall_s / 1e6);
    println!(
        "  in              {} steps of {} us; nodes were visited {visits} times",
        steps.0,
        steps.1 / 1_000
    );
    for (kind, count) in events.iter().filter(|(_, count)| *count > 0) {
        println!("    {:9.2}  {kind}, a transfer", *count as f64 / report.transfers.max(1) as f64);
    }
    println!(
        "  transfers       {} = {:.2} million/s",
        report.transfers,
        report.transfers as f64 / wall_s / 1e6
    );
    let mut small = true;
    if let Some(peak) = status_gib("VmHWM") {
        let (memory, good) = verdict(peak, limits.and_then(|limits| limits.3), "GiB");
        small = good;
        println!(
            "  peak RSS        {peak:.2} GiB = {:.0} bytes a node{memory}",
            peak * GIB / f64::from(nodes)
        );
    }
    let rollout = &report.rollout;
    println!("  completed       {} of {}", rollout.completed, rollout.nodes);
    println!("  makespan        {:.4} s = {:.3} x bound", rollout.makespan_s, rollout.makespan_over_bound);
    println!("  left the strata {:.4} copies", rollout.strata_copies);
    println!("  result hash     {}", report.result_hash);
    println!("  counted bytes a node, at the largest of three looks:");
    for (part, bytes) in footprint.a_node() {
        println!("    {bytes:9.0}  {part}");
    }
    println!("    {:9.0}  together", footprint.bytes() as f64 / f64::from(nodes));
    Ok(fast && small && rollout.completed == rollout.nodes)
}

/// Prints what a step of the network alone takes.
fn network(nodes: u32, threads: usize) -> Result<(), String> {
    let shared = "[network.links]\nregion_up_mbit_s = 1_000_000\nregion_down_mbit_s = 1_000_000\n";
    for (what, links) in [("nodes' own links", ""), ("regions share links", shared)] {
        let scenario = scenario(nodes, 1_024, links)?;
        for threads in [1, threads.max(2)] {
            let mut load = NetworkLoad::new(&scenario, 250_000, 8, threads);
            (0..20).for_each(|_| load.step());
            let before = load.transfers();
            #[expect(clippy::disallowed_methods, reason = "a measurement takes the real time")]
            let start = std::time::Instant::now();
            (0..100).for_each(|_| load.step());
            let took_ms = start.elapsed().as_secs_f64() * 1e3 / 100.0;
            let ended = (load.transfers() - before) / 100;
            let digest = load.digest();
            println!(
                "{nodes} nodes, {what}, {threads} threads: {took_ms:.2} ms a step, in which {ended} transfers end; digest {digest:016x}"
            );
        }
    }
    Ok(())
}

struct Arguments {
    sizes: Vec<(u32, u32)>,
    threads: usize,
    small_pages: bool,
    /// The one size is run in this process.
    here: bool,
    /// Nodes of a network that is measured alone.
    network: Option<u32>,
}

fn arguments() -> Result<Arguments, String> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut found = Arguments { sizes: Vec::new(), threads, small_pages: false, here: false, network: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            // Cargo's own.
            "--bench" => {}
            "--threads" => {
                let text = words.next().unwrap_or_default();
                found.threads =
                    text.parse().map_err(|_| format!("--threads takes a number, not `{text}`"))?;
            }
            "--network" => {
                let text = words.next().unwrap_or_default();
                let nodes =
                    text.parse().map_err(|_| format!("--network takes a number of nodes, not `{text}`"))?;
                found.network = Some(nodes);
            }
            "--small-pages" => found.small_pages = true,
            "--here" => found.here = true,
            size => {
                let both = size.split_once('x');
                let both = both.and_then(|(nodes, slices)| Some((nodes.parse().ok()?, slices.parse().ok()?)));
                found.sizes.push(both.ok_or_else(|| format!("`{size}` is no size like 100000x1024"))?);
            }
        }
    }
    if found.sizes.is_empty() {
        found.sizes = LIMITS.map(|limits| (limits.0, limits.1)).to_vec();
    }
    Ok(found)
}

fn bench() -> Result<bool, String> {
    let Arguments { sizes, threads, small_pages, here, network: alone } = arguments()?;
    if let Some(nodes) = alone {
        network(nodes, threads)?;
        return Ok(true);
    }
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut good = true;
    for (nodes, slices) in sizes {
        if here {
            good &= run(nodes, slices, threads)?;
            continue;
        }
        let mut command = Command::new(&this);
        let size = format!("{nodes}x{slices}");
        command.args([size.as_str(), "--here", "--threads", threads.to_string().as_str()]);
        if !small_pages {
            command.env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
        }
        good &= command.status().map_err(|error| error.to_string())?.success();
    }
    Ok(good)
}

fn main() -> ExitCode {
    match bench() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
