//! A part of the runs of a file, done by a process of its own, and all parts put together again.
//!
//! A shard leaves the tables of its runs as Parquet, and `shard.json` beside them when it is done. The tables have all that a run left, so
//! who merges makes the runs of them and goes on as if it had done them itself.

use super::{Source, Timed, each_run, json, label, swept, wanted};
use crate::cli::CliError;
use crate::cli::pending;
use crate::cli::reports::{Reports, unwritable};
use crate::cli::simulate::meter::Meter;
use crate::sim::report::parquet::Reader;
use crate::sim::report::restore::{Take, restore};
use crate::sim::report::tables::{Run, Table};
use crate::sim::{Plan, RUNS_MAX, Record, shards};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What a shard writes last.
const FILE: &str = "shard.json";
/// Its format.
const FORMAT: u32 = 1;
/// Its length at most: of 4 096 runs it has below 1 MB.
const FILE_MAX_BYTES: u64 = 4 << 20;

/// Which part of how many; counted from 0, as Kubernetes counts and Slurm can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shard {
    number: u32,
    of: u32,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts =
            text.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
        let Some((number, of)) = parts else { return Err("it is like 0/8, the first of eight".to_owned()) };
        if !(1..=RUNS_MAX).contains(&of) {
            return Err(format!("there are 1 to {RUNS_MAX} shards"));
        }
        if number >= of {
            return Err(format!("shards are counted from 0: 0/{of} to {}/{of}", of - 1));
        }
        Ok(Self { number, of })
    }
}

/// The runs of each of so many shards, by number in their order.
fn ranges(plan: &Plan, of: u32) -> Vec<Range<usize>> {
    let weights: Vec<u64> = plan.runs().iter().map(|(case, _)| case.scenario.node_chunks()).collect();
    shards(&weights, of as usize)
}

/// What `shard.json` says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Left {
    starling_shard: u32,
    /// The version of the program.
    starling: String,
    /// [`Plan::hash`].
    plan: String,
    shard: u32,
    of: u32,
    /// BLAKE3 of the file of each of [`Table::ALL`].
    tables: [String; Table::ALL.len()],
    runs: Vec<RunLeft>,
}

/// What it says of a run.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunLeft {
    wall_us: u64,
    /// How many rows it has in each of [`Table::ALL`].
    rows: [u64; Table::ALL.len()],
}

fn file_of(folder: &Path, table: Table) -> PathBuf {
    folder.join(format!("{}.parquet", table.name()))
}

fn hash_of(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Does the runs of a shard.
pub(super) fn part(
    file: &Path,
    plan: &Plan,
    shard: Shard,
    folder: &Path,
    mut reports: Reports,
    as_json: bool,
) -> Result<(), CliError> {
    let done = folder.join(FILE);
    // Of an earlier one: its tables are replaced one after the other.
    match fs::remove_file(&done) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(unwritable(&done, &error)),
        _ => {}
    }
    let Shard { number, of } = shard;
    let range = ranges(plan, of).swap_remove(number as usize);
    let (runs, count) = (plan.runs(), range.len());
    let meter = Meter::new(wanted(&runs[range.clone()]), count);
    let mut left = Vec::with_capacity(count);
    each_run(&Source::Here(range), plan, &meter, &reports.recording(), |number, timed, record| {
        let case = runs[number].0;
        let label = label(file, case);
        reports.add(&label, &case.scenario, &timed.report, &record)?;
        let run = Run { label: &label, report: &timed.report, record: &record };
        left.push(RunLeft { wall_us: timed.wall_us(), rows: Table::ALL.map(|table| table.count(&run)) });
        if as_json {
            let line = json(&timed)?;
            meter.print(|| println!("{line}"));
        }
        Ok(())
    })?;
    meter.end();
    reports.finish("")?;
    let starling = env!("CARGO_PKG_VERSION").to_owned();
    let mut tables = Table::ALL.map(|_| String::new());
    for (hash, table) in tables.iter_mut().zip(Table::ALL) {
        let path = file_of(folder, table);
        *hash = hash_of(&path).map_err(|error| unwritable(&path, &error))?;
    }
    let plan_hash = plan.hash.clone();
    let left =
        Left { starling_shard: FORMAT, starling, plan: plan_hash, shard: number, of, tables, runs: left };
    pending::write(&done, json(&left)?.as_bytes()).map_err(|error| unwritable(&done, &error))?;
    if !as_json {
        let folder = folder.display();
        println!(
            "shard {number}/{of}: {count} of {} runs, in {folder}; --merge takes all shards together",
            runs.len()
        );
    }
    Ok(())
}

/// All shards of a plan, in their order.
#[derive(Debug)]
pub(super) struct Shards(Vec<(PathBuf, Left)>);

impl Shards {
    /// Finds out whether these folders have all runs of the plan, each once. What is made of them goes elsewhere.
    pub(super) fn open(folders: &[PathBuf], to: Option<&Path>, plan: &Plan) -> Result<Self, CliError> {
        let place = to.and_then(|to| to.canonicalize().ok());
        let same = |folder: &&PathBuf| place.is_some() && folder.canonicalize().ok() == place;
        if let Some(folder) = folders.iter().find(same) {
            let message = format!("--parquet {} would replace the tables of a shard", folder.display());
            return Err(CliError::usage(message).hint("give another folder"));
        }
        let mut found: Vec<(PathBuf, Left)> = Vec::with_capacity(folders.len());
        for folder in folders {
            let left = read(folder, plan)?;
            let failed = |what: String| CliError::failed(format!("{}: {what}", folder.display()));
            if let Some((first, other)) = found.first()
                && other.of != left.of
            {
                let (first, [here, there]) = (first.display(), [left.of, other.of]);
                return Err(failed(format!("it is one of {here} shards, but {first} one of {there}"))
                    .hint("give the shards of one division"));
            }
            if let Some((other, _)) = found.iter().find(|(_, other)| other.shard == left.shard) {
                let Left { shard, of, .. } = left;
                return Err(failed(format!("shard {shard}/{of} is also in {}", other.display()))
                    .hint("give each shard once"));
            }
            found.push((folder.clone(), left));
        }
        found.sort_by_key(|(_, left)| left.shard);
        let of = found.first().map_or(0, |(_, left)| left.of);
        let has = |shard: &u32| found.iter().any(|(_, left)| left.shard == *shard);
        let missing: Vec<u32> = (0..of).filter(|shard| !has(shard)).collect();
        if let Some(first) = missing.first() {
            let names: Vec<String> = missing.iter().map(|shard| format!("{shard}/{of}")).collect();
            return Err(CliError::failed(format!("no folder has the shards {}", names.join(", ")))
                .hint(format!("`starling simulate … --shard {first}/{of} --parquet DIR` does one of them")));
        }
        for ((folder, left), range) in found.iter().zip(ranges(plan, of)) {
            if left.runs.len() != range.len() {
                let (has, should) = (left.runs.len(), range.len());
                return Err(damaged(folder, &format!("{FILE} has {has} runs, not {should}")));
            }
            for (hash, table) in left.tables.iter().zip(Table::ALL) {
                let name = table.name();
                let found = hash_of(&file_of(folder, table))
                    .map_err(|error| damaged(folder, &format!("{name}.parquet: {error}")))?;
                if found != *hash {
                    return Err(damaged(folder, &format!("{name}.parquet is not what the shard wrote")));
                }
            }
        }
        Ok(Self(found))
    }

    /// Hands out all runs in their order.
    pub(super) fn each(
        &self,
        plan: &Plan,
        mut each: impl FnMut(usize, Timed, Record) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let mut runs = plan.runs().into_iter().enumerate();
        for (folder, left) in &self.0 {
            let failed = |error: String| damaged(folder, &error);
            let mut readers = Vec::with_capacity(Table::ALL.len());
            for table in Table::ALL {
                let reader = File::open(file_of(folder, table)).and_then(|file| Reader::new(table, file));
                readers.push(reader.map_err(|error| failed(format!("{}.parquet: {error}", table.name())))?);
            }
            for (run, (number, (case, seed))) in left.runs.iter().zip(&mut runs) {
                let mut rows = |table: Table, take: &mut Take<'_>| {
                    let place = Table::ALL.iter().position(|other| *other == table).unwrap_or(0);
                    for _ in 0..run.rows[place] {
                        let row = readers[place].next_row().map_err(|error| error.to_string())?;
                        take(&row.ok_or("it ends too early")?).map_err(|error| error.to_string())?;
                    }
                    Ok(())
                };
                let mut named = |table: Table, take: &mut Take<'_>| {
                    rows(table, take).map_err(|error: String| format!("{}.parquet: {error}", table.name()))
                };
                let (report, record) = restore(&case.scenario, seed, &mut named).map_err(failed)?;
                each(number, Timed::new(swept(case), report, run.wall_us), record)?;
            }
            for (reader, table) in readers.iter_mut().zip(Table::ALL) {
                let row = reader.next_row().map_err(|error| failed(error.to_string()))?;
                if row.is_some() {
                    return Err(failed(format!("{}.parquet has more rows than {FILE} says", table.name())));
                }
            }
        }
        Ok(())
    }
}

fn damaged(folder: &Path, error: &str) -> CliError {
    CliError::failed(format!("{}: {error}", folder.display()))
        .hint("do the shard again, into the same folder: what is there is replaced")
}

/// What a folder says that it has, if that is a shard of this plan.
fn read(folder: &Path, plan: &Plan) -> Result<Left, CliError> {
    let mut text = String::new();
    let opened = File::open(folder.join(FILE));
    match opened.and_then(|file| file.take(FILE_MAX_BYTES).read_to_string(&mut text)) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(damaged(folder, &format!("it has no {FILE}, which a shard writes when it is done")));
        }
        Err(error) => return Err(damaged(folder, &format!("{FILE}: {error}"))),
        Ok(_) => {}
    }
    let left: Left =
        serde_json::from_str(&text).map_err(|error| damaged(folder, &format!("{FILE}: {error}")))?;
    let (format, version) = (left.starling_shard, env!("CARGO_PKG_VERSION"));
    let failed = |what: &str| CliError::failed(format!("{}: {what}", folder.display()));
    if (format, left.starling.as_str()) != (FORMAT, version) {
        let what =
            format!("starling {} did it (format {format}), this is {version} ({FORMAT})", left.starling);
        return Err(
            failed(&what).hint("merge with the version that did all shards: another may decide otherwise")
        );
    }
    if left.plan != plan.hash {
        return Err(failed("it is a shard of other runs: the scenario, its profiles or the seeds differ")
            .hint("give the file, --seed and --seeds that the shards were done with"));
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_named_by_its_number_from_0_and_their_count() {
        assert_eq!("2/8".parse(), Ok(Shard { number: 2, of: 8 }));
        assert_eq!("0/1".parse(), Ok(Shard { number: 0, of: 1 }));
        for (text, part) in [
            ("8/8", "counted from 0: 0/8 to 7/8"),
            ("0/0", "1 to 4096"),
            ("1/5000", "1 to 4096"),
            ("3", "like 0/8"),
            ("-1/2", "like 0/8"),
            ("1/2/3", "like 0/8"),
        ] {
            let error = text.parse::<Shard>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
