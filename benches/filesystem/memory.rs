//! What the measured agent keeps in memory: with a large repository mounted, read, and read again and again.

use crate::Options;
use crate::trees::Kind;
use crate::work::Work;
use crate::world::{Column, World, drop_caches};
use serde_json::{Value, json};
use std::fs;

/// Most resident memory after mounting, and after all of it was read.
const MOUNTED_MAX_MIB: f64 = 32.0;
const READ_MAX_MIB: f64 = 128.0;
/// Passes over everything. The first is from an empty cache; growth counts from the second on.
const PASSES: usize = 10;
/// No growth: what the tenth pass leaves beyond what the second left. Guess: the allocator's noise.
const GROWTH_MAX_MIB: f64 = 4.0;

struct Reading {
    step: String,
    resident_mib: f64,
    /// Without the program's own pages and mapped files.
    anonymous_mib: f64,
    most_mib: f64,
}

fn read(pid: u32, step: &str) -> Reading {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1_024.0
    };
    let reading = Reading {
        step: step.to_owned(),
        resident_mib: field("VmRSS:"),
        anonymous_mib: field("RssAnon:"),
        most_mib: field("VmHWM:"),
    };
    println!(
        "{step:<40} {:>8.1} {:>10.1} {:>8.1}",
        reading.resident_mib, reading.anonymous_mib, reading.most_mib
    );
    reading
}

/// Measures and prints; whether all limits hold, and the figures.
pub(crate) fn run(options: &Options) -> (bool, Value) {
    // There is always one.
    let column: Vec<Column> = options.columns.iter().take(1).cloned().collect();
    let mut world = World::new(Kind::Many, options.scale, column, options.warm_peer);
    let files = Work::OpenRead(world.made.files.clone());
    println!("{:<40} {:>8} {:>10} {:>8}", "MiB", "resident", "anonymous", "most");
    world.empty(0);
    let pid = world.pid(0);
    let mut readings = vec![read(pid, "started, cache empty")];
    world.mount_bare(0);
    let mounted = read(pid, &format!("{} entries mounted", world.made.entries()));
    let mounted_mib = mounted.resident_mib;
    readings.push(mounted);
    let root = world.mount_point(0);
    let mut passes = Vec::new();
    for pass in 1..=PASSES {
        if pass > 1 {
            // What the kernel has cached would not be asked of the agent.
            drop_caches();
            world.rest();
        }
        let listed = Work::Find.run(&root);
        let read_back = files.run(&root);
        assert_eq!(listed.entries, world.made.entries() as u64);
        assert_eq!((listed.bytes, read_back.bytes), (world.made.bytes, world.made.bytes));
        let reading = read(pid, &format!("listed and read, pass {pass}"));
        passes.push(reading.resident_mib);
        readings.push(reading);
    }
    drop_caches();
    world.rest();
    readings.push(read(pid, "the kernel's caches dropped"));
    let growth_mib = passes[PASSES - 1] - passes[1];
    let mut holds = true;
    for (what, value, limit) in [
        ("after mounting", mounted_mib, MOUNTED_MAX_MIB),
        ("after reading all of it", passes[0], READ_MAX_MIB),
        ("growth from the second to the tenth pass", growth_mib, GROWTH_MAX_MIB),
    ] {
        holds &= value <= limit;
        let verdict = if value <= limit { "holds" } else { "MISSES" };
        println!("{what:<40} {value:>8.1} MiB, limit {limit}: {verdict}");
    }
    let steps: Vec<Value> = readings
        .iter()
        .map(|r| {
            json!({
                "step": r.step,
                "resident_mib": r.resident_mib,
                "anonymous_mib": r.anonymous_mib,
                "most_mib": r.most_mib,
            })
        })
        .collect();
    (
        holds,
        json!({ "profile": world.columns[0].name, "steps": steps, "growth_mib": growth_mib, "holds": holds }),
    )
}
