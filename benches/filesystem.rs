//! The file system beside a local disk: one table, every figure a ratio to ext4 with the same tree in the same run.
//!
//! `cargo bench --bench filesystem -- [--only ROW,...] [--pairs 20] [--seconds 120] [--profile NAME,...] [--warm-peer]
//! [--idle 60] [--scale 1] [--json FILE] [--memory] [--list]` as root. For each tree: it is made from a seed below `$TMPDIR`
//! (which should be ext4), published, served by `starling stratum serve`, held by one agent (`mount --fill --wait`), and
//! mounted by another, which is measured. Workloads are loops of this program, the same for the native tree and the mount; only `tar` and
//! `python3` are programs. Runs alternate, and who begins changes from pair to pair; the figure of a row is the median of the
//! pairs' ratios. A row ends after `--pairs` pairs, or after `--seconds` when it has five.
//!
//! *Warm*: both trees were read before. *Dropped*: the kernel's page cache, dentries and inodes were dropped
//! before each run, for both, and with them the files of the agents' caches. *Empty cache*: the agent was started anew without
//! its cache; compared with the native tree, dropped. The peer's files are dropped as well, as its disk is the same; with
//! `--warm-peer` they are read before, as of a peer that has just given the same to others.
//!
//! A profile is a column; `auto+verify` is one whose agent runs with `verify = always`, `auto+user` one whose agent runs as `nobody` and mounts
//! through `fusermount3` (which needs `user_allow_other` in `/etc/fuse.conf`). `--only` takes names or their beginnings (`--only tar,find-warm`), `--list` shows them. `--scale 0.02`
//! makes small trees, to try this program itself. `--memory` measures the agent's resident memory instead.
//!
//! Exits with 1 when a limit is missed, with 2 when it cannot be run as asked.
#![allow(clippy::unwrap_used, reason = "a measurement may panic")]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "filesystem/memory.rs"]
mod memory;
#[path = "filesystem/rows.rs"]
mod rows;
#[path = "filesystem/table.rs"]
mod table;
#[path = "filesystem/trees.rs"]
mod trees;
#[path = "filesystem/work.rs"]
mod work;
#[path = "filesystem/world.rs"]
mod world;

use rows::{ROWS, Row};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use world::{Column, World};

/// Of ext4 (and of ext2 and ext3), in `statfs`.
const EXT4_MAGIC: u64 = 0xef53;

/// What was asked for.
pub(crate) struct Options {
    only: Vec<String>,
    pairs: usize,
    /// After so long a row ends, when it has a few pairs.
    seconds: f64,
    columns: Vec<Column>,
    json: Option<PathBuf>,
    memory: bool,
    list: bool,
    warm_peer: bool,
    idle_s: u64,
    scale: f64,
}

fn options() -> Result<Options, String> {
    let mut found = Options {
        only: Vec::new(),
        pairs: 20,
        seconds: 120.0,
        columns: Vec::new(),
        json: None,
        memory: false,
        list: false,
        warm_peer: false,
        idle_s: 60,
        scale: 1.0,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} takes a value"));
        fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
            text.parse().map_err(|_| format!("`{text}` is not such a number"))
        }
        let names = |text: String| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        match word.as_str() {
            // Cargo's own.
            "--bench" => {}
            "--only" => found.only.extend(names(value()?)),
            "--pairs" => found.pairs = number::<usize>(&value()?)?.max(1),
            "--seconds" => found.seconds = number(&value()?)?,
            "--profile" => {
                for name in names(value()?) {
                    found.columns.push(Column::of(&name)?);
                }
            }
            "--json" => found.json = Some(value()?.into()),
            "--idle" => found.idle_s = number(&value()?)?,
            "--scale" => found.scale = number(&value()?)?,
            "--memory" => found.memory = true,
            "--list" => found.list = true,
            "--warm-peer" => found.warm_peer = true,
            other => return Err(format!("`{other}` is not known")),
        }
    }
    for wanted in &found.only {
        if !ROWS.iter().any(|row| row.key.starts_with(wanted.as_str())) {
            return Err(format!("no row begins with `{wanted}`; --list shows them"));
        }
    }
    if found.columns.is_empty() {
        found.columns.push(Column::of(Column::DEFAULT)?);
    }
    let help = common::ok(&["mount", "--help"]);
    if !help.contains("--profile")
        && let Some(other) = found.columns.iter().find(|column| !column.mount_args.is_empty())
    {
        let name = &other.name;
        return Err(format!("`starling mount` knows no --profile, so that `{name}` cannot be measured"));
    }
    Ok(found)
}

/// Whether it can be measured here; if not, why.
fn check_machine() -> Result<(), &'static str> {
    if !rustix::process::geteuid().is_root() {
        return Err("it needs root, to mount and to drop the kernel's caches");
    }
    if !std::path::Path::new("/dev/fuse").exists() {
        return Err("there is no /dev/fuse");
    }
    let caches = std::fs::File::options().write(true).open("/proc/sys/vm/drop_caches");
    caches.map(drop).map_err(|_| "the kernel's caches cannot be dropped")
}

/// Whether the trees lie on ext4, with which the promise compares.
fn is_ext4() -> bool {
    let of = rustix::fs::statfs(std::env::temp_dir()).unwrap();
    u64::try_from(of.f_type).is_ok_and(|magic| magic == EXT4_MAGIC)
}

/// Measures the chosen rows, tree by tree.
fn measure(options: &Options) -> (bool, Value) {
    let chosen = |row: &&'static Row| {
        options.only.is_empty() || options.only.iter().any(|wanted| row.key.starts_with(wanted.as_str()))
    };
    let rows: Vec<&'static Row> = ROWS.iter().filter(chosen).collect();
    let mut outcomes = Vec::new();
    for of_a_tree in rows.chunk_by(|one, other| one.tree == other.tree) {
        let mut world =
            World::new(of_a_tree[0].tree, options.scale, options.columns.clone(), options.warm_peer);
        for row in of_a_tree {
            match rows::measure(row, &mut world, options) {
                Some(outcome) => {
                    // In case that a later one fails.
                    eprint!("{}", outcome.lines());
                    outcomes.push(outcome);
                }
                None => println!("skipped: {}: a program is missing", row.key),
            }
        }
    }
    println!("{}", table::head());
    outcomes.iter().for_each(|outcome| print!("{}", outcome.lines()));
    let rows: Vec<Value> = outcomes.iter().map(table::Outcome::json).collect();
    (outcomes.iter().all(table::Outcome::holds), Value::Array(rows))
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    if options.list {
        ROWS.iter().for_each(|row| println!("{:<20} {}", row.key, row.title));
        return ExitCode::SUCCESS;
    }
    if let Err(reason) = check_machine() {
        println!("skipped: filesystem: {reason}");
        return ExitCode::SUCCESS;
    }
    let is_ext4 = is_ext4();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("kernel {}, {cores} cores, {}", kernel.trim(), if is_ext4 { "ext4" } else { "NOT on ext4" });
    if (options.scale - 1.0).abs() > f64::EPSILON {
        println!("trees of {} times their size: these figures do not count", options.scale);
    }
    let (holds, figures) = if options.memory { memory::run(&options) } else { measure(&options) };
    if let Some(file) = &options.json {
        let report = json!({
            "kernel": kernel.trim(),
            "cores": cores,
            "ext4": is_ext4,
            "scale": options.scale,
            "warm_peer": options.warm_peer,
            "figures": figures,
            "holds": holds,
        });
        std::fs::write(file, format!("{report:#}\n")).unwrap();
    }
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
