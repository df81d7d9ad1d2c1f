//! `starling swarm`: the node's decisions among everything that can go wrong, seed by seed.

use super::CliError;
use super::output::Output;
use crate::sim::swarm::{Calm, NODES_MAX, describe, swarm};
use std::io::{BufWriter, IsTerminal, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Failing seeds after which the others are not run.
const FAILURES_MAX: usize = 50;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  starling swarm --seeds 0..10000 --jobs 2     # all of them; exit code 1 when one breaks a rule
  starling swarm --seed 4711                   # one again
  starling swarm --seed 4711 --trace | less    # and everything that happened in it

A seed draws the swarm, its readers and its troubles: the same seed and build give the same hash on every machine.
Build with `--profile swarm --no-default-features`: it is optimised and keeps the core's own assertions.")]
pub(super) struct Args {
    /// The seeds, FIRST..END (END is not run).
    #[arg(long, value_parser = parse_seeds, default_value = "0..1000", conflicts_with = "seed")]
    seeds: (u64, u64),
    /// One seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Number of nodes, instead of the drawn one.
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=i64::from(NODES_MAX)))]
    nodes: Option<u32>,
    /// Swarms that run at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
    /// Print everything that happens. One seed only.
    #[arg(long, requires = "seed")]
    trace: bool,
}

fn parse_seeds(text: &str) -> Result<(u64, u64), String> {
    let wrong = || format!("`{text}` is not FIRST..END, such as 0..1000");
    let (first, end) = text.split_once("..").ok_or_else(wrong)?;
    let (first, end) = (first.parse().map_err(|_| wrong())?, end.parse().map_err(|_| wrong())?);
    if first < end { Ok((first, end)) } else { Err(wrong()) }
}

/// What all jobs share.
struct Sum {
    done: u64,
    events: u64,
    delivered: u64,
    slowest: (u64, u64),
    hash: u64,
    failures: Vec<(u64, String)>,
}

#[expect(clippy::needless_pass_by_value, reason = "every verb is called like this")]
pub(super) fn run(args: Args) -> Result<(), CliError> {
    if let Some(seed) = args.seed {
        return run_one(seed, args.nodes, args.trace);
    }
    let (first, end) = args.seeds;
    let next = AtomicU64::new(first);
    let sum =
        Mutex::new(Sum { done: 0, events: 0, delivered: 0, slowest: (0, 0), hash: 0, failures: vec![] });
    let tty = std::io::stderr().is_terminal();
    std::thread::scope(|scope| {
        for _ in 0..args.jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let result = guarded(seed, args.nodes, None);
                    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                    note(&mut sum, seed, result);
                    if tty {
                        show(&sum, end - first);
                    }
                    if sum.failures.len() >= FAILURES_MAX {
                        next.store(end, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    if tty {
        eprint!("\r\x1b[K");
    }
    let mut sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    sum.failures.sort();
    report(&sum, args.nodes)
}

/// A swarm whose core may panic: that is a failure of the seed and of nothing else.
fn guarded(seed: u64, nodes: Option<u32>, log: Option<&mut dyn Write>) -> Result<Calm, String> {
    match catch_unwind(AssertUnwindSafe(|| swarm(seed, nodes, log))) {
        Ok(Ok(calm)) => Ok(calm),
        Ok(Err(violation)) => Err(violation.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(format!("seed {seed} ({}): the core panics: {text}", describe(seed, nodes)))
        }
    }
}

fn note(sum: &mut Sum, seed: u64, result: Result<Calm, String>) {
    sum.done += 1;
    match result {
        Ok(calm) => {
            sum.events += calm.count.events;
            sum.delivered += calm.count.delivered;
            sum.slowest = sum.slowest.max((calm.healed_ms, seed));
            // The order in which jobs end does not matter.
            sum.hash = sum.hash.wrapping_add(crate::model::mix(seed ^ crate::model::mix(calm.hash)));
        }
        Err(text) => {
            eprintln!("\r\x1b[K{text}");
            sum.failures.push((seed, text));
        }
    }
}

fn show(sum: &Sum, all: u64) {
    let full = usize::try_from(30 * sum.done / all.max(1)).unwrap_or(30);
    let bar = format!("{}{}", "#".repeat(full), ".".repeat(30_usize.saturating_sub(full)));
    eprint!("\r[{bar}] {} of {all} swarms, {} failed ", sum.done, sum.failures.len());
}

fn report(sum: &Sum, nodes: Option<u32>) -> Result<(), CliError> {
    let rows = [
        ("swarms", sum.done.to_string()),
        ("failed", sum.failures.len().to_string()),
        ("events", sum.events.to_string()),
        ("delivered", sum.delivered.to_string()),
        ("slowest healing", format!("{:.1} s (seed {})", sum.slowest.0 as f64 / 1e3, sum.slowest.1)),
        ("hash of all", format!("{:016x}", sum.hash)),
    ];
    for (name, value) in rows {
        println!("{name:<17} {value}");
    }
    let Some((seed, _)) = sum.failures.first() else { return Ok(()) };
    let failing: Vec<String> = sum.failures.iter().map(|(seed, _)| seed.to_string()).collect();
    let nodes = nodes.map(|nodes| format!(" --nodes {nodes}")).unwrap_or_default();
    Err(CliError::failed(format!("seeds that break a rule: {}", failing.join(" ")))
        .hint(format!("`starling swarm --seed {seed}{nodes} --trace` shows everything that happened")))
}

fn run_one(seed: u64, nodes: Option<u32>, trace: bool) -> Result<(), CliError> {
    let mut out = BufWriter::new(Output);
    writeln!(out, "seed {seed}: {}", describe(seed, nodes))?;
    let result = guarded(seed, nodes, trace.then_some(&mut out as &mut dyn Write));
    if let Ok(calm) = &result {
        let Calm { hash, count, healed_ms } = calm;
        writeln!(out, "{count:?}")?;
        writeln!(
            out,
            "last read delivered {:.1} s after its begin; hash {hash:016x}",
            *healed_ms as f64 / 1e3
        )?;
    }
    out.flush()?;
    result.map(|_| ()).map_err(CliError::failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_a_range_that_is_not_empty() {
        assert_eq!(parse_seeds("3..10"), Ok((3, 10)));
        for wrong in ["", "3", "3..3", "9..2", "a..b", "-1..2"] {
            assert!(parse_seeds(wrong).unwrap_err().contains(wrong), "{wrong}");
        }
    }
}
