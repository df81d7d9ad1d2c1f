//! `starling demo`: publish, serve, join, mount and read back on this machine, with real processes.
//!
//! The passes, in this order: the first node reads everything from the stratum; the second joins and
//! reads it from the first; further nodes do the same; the first node's agent is restarted and reads
//! it from its own disk; the stratum is killed, and the third node joins and reads it from the others.

pub mod compare;
mod node;
mod report;
mod select;

use super::CliError;
use crate::config::ByteSize;
use crate::lab::{Folder, Interrupt, Process, may_mount};
use compare::Manifest;
use node::{Node, Reading, Stage};
use report::{Expected, Pass, Report};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Most nodes on one machine: each is a process with a mount and a copy of the tree (a guess).
const NODES_MAX: u16 = 32;
/// Time to publish half a GiB on a small, busy machine.
const PUBLISH_PATIENCE: Duration = Duration::from_secs(1_800);
/// Time for the stratum to listen.
const SERVE_PATIENCE: Duration = Duration::from_secs(30);
/// The repository's name: `example` belongs to nobody (RFC 2606).
const REPOSITORY: &str = "demo.starling.example";

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  starling demo
  starling demo /usr/lib/python3 --nodes 5
  starling demo /etc/ssl --json | jq '.nodes[] | {name, from_peers_bytes}'

It needs root or fusermount3, takes about (nodes + 2) times the tree's size below $TMPDIR, and leaves
nothing behind. Exit code 1: something was not identical, or bytes came from elsewhere than promised.")]
pub(super) struct Args {
    /// Tree to distribute [default: /usr/share, or the part of it that fits into 512 MiB].
    tree: Option<PathBuf>,
    /// Number of nodes, 3 to 32.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(3..=i64::from(NODES_MAX)))]
    nodes: u16,
    /// Print one JSON object instead of the table.
    #[arg(long)]
    json: bool,
    /// Keep the folder with all state and logs, and tell where it is.
    #[arg(long)]
    keep: bool,
}

pub(super) fn run(args: Args) -> Result<(), CliError> {
    let interrupt = Interrupt::catch()?;
    may_mount(std::env::var_os("PATH").as_deref())?;
    let folder = Folder::make(&std::env::temp_dir(), "starling-demo", args.keep)?;
    let report = demonstrate(&args, folder.path(), &interrupt)?;
    drop(folder);
    if args.json {
        super::ask::print_json(&report)?;
    } else {
        print!("\n{}", report.table());
    }
    match report.problems.as_slice() {
        [] => Ok(()),
        problems => Err(CliError::failed(problems.join("\nerror: "))),
    }
}

/// All passes. Processes end when this returns, whatever it returns.
fn demonstrate(args: &Args, folder: &Path, interrupt: &Interrupt) -> Result<Report, CliError> {
    let choice = select::choose(args.tree.as_deref(), &folder.join("staging"), interrupt)?;
    let quiet = Reading { bar: &indicatif::ProgressBar::hidden(), interrupt };
    let original = Manifest::read(&choice.root, 4, &quiet).map_err(CliError::failed)?;
    enough_room(folder, original.bytes(), args.nodes)?;
    let stage = Stage {
        launcher: super::launcher(folder)?,
        interrupt,
        repository: REPOSITORY.parse().map_err(CliError::failed)?,
        original: &original,
        progress: !args.json,
    };
    stage.say(&format!(
        "tree: {} ({} files, {}, {} names)",
        choice.description,
        original.files(),
        ByteSize(original.bytes()),
        original.names()
    ));

    let fingerprint = publish(&stage, &choice.root)?;
    let (stratum, url) = serve(&stage)?;
    stage.say(&format!("published and served at {url}"));
    let passes = all_passes(&stage, args.nodes, stratum, &url, &fingerprint)?;

    // The source must not have changed under the demonstration, or the comparison was with something else.
    let again = Manifest::read(&choice.root, 4, &quiet).map_err(CliError::failed)?;
    if again != original {
        return Err(CliError::failed(format!("{} changed meanwhile", choice.root.display()))
            .hint("name a tree that nobody writes to"));
    }
    Ok(Report::new(choice.root, original.bytes(), original.files(), passes))
}

fn publish(stage: &Stage<'_>, tree: &Path) -> Result<String, CliError> {
    let path = |path: &Path| path.to_str().map(str::to_owned);
    let folders = (path(tree), path(&stage.folder().join("stratum")), path(&stage.folder().join("keys")));
    let (Some(tree), Some(to), Some(keys)) = folders else {
        return Err(CliError::failed("the demonstration needs paths in UTF-8"));
    };
    stage.say("publishing …");
    let arguments = ["publish", &tree, "--repo", REPOSITORY, "--to", &to, "--keys", &keys, "--json"];
    let publishing = stage.launcher.start("publish", &arguments, None)?;
    let printed = publishing.output(PUBLISH_PATIENCE, stage.interrupt)?;
    serde_json::from_str::<serde_json::Value>(&printed)
        .ok()
        .and_then(|json| json["fingerprint"].as_str().map(str::to_owned))
        .ok_or_else(|| {
            CliError::failed(format!("`starling publish --json` printed no fingerprint: {printed}"))
        })
}

/// Starts the stratum and tells its URL.
fn serve(stage: &Stage<'_>) -> Result<(Process, String), CliError> {
    let folder = stage.folder().join("stratum");
    let arguments = ["stratum", "serve", &folder.display().to_string(), "--listen", "127.0.0.1:0"];
    let mut process = stage.launcher.start("stratum-server", &arguments, None)?;
    let output = stage.folder().join("stratum-server.out");
    let url =
        process.wait_for("an address", SERVE_PATIENCE, stage.interrupt, || -> Result<_, CliError> {
            let printed = std::fs::read_to_string(&output)?;
            // A whole line only: the address may still be on its way.
            let mut lines = printed.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            Ok(lines.find_map(url_in))
        })?;
    Ok((process, url))
}

/// The first URL in a line.
fn url_in(line: &str) -> Option<String> {
    let start = line.find("http://")?;
    line[start..].split_whitespace().next().map(str::to_owned)
}

fn all_passes(
    stage: &Stage<'_>,
    nodes: u16,
    stratum: Process,
    url: &str,
    fingerprint: &str,
) -> Result<Vec<Pass>, CliError> {
    let mut passes = Vec::new();
    let mut first = Node::new(stage, "node-1")?;
    first.init_mesh(stage)?;
    first.start(stage)?;
    first.add_repository(stage, fingerprint, url)?;
    passes.push(first.pass(stage, "node-1", Expected::Strata)?);

    let mut others = Vec::new();
    for number in std::iter::once(2).chain(4..=nodes) {
        let name = format!("node-{number}");
        let node = joined(stage, &first, &name, others.len() + 1)?;
        passes.push(node.pass(stage, &name, Expected::Neighbours)?);
        others.push(node);
    }

    stage.say("restarting the agent of node-1 …");
    first.stop()?;
    first.start(stage)?;
    passes.push(first.pass(stage, "node-1-again", Expected::Cache)?);
    first.wait_for_members(stage, others.len())?;

    stage.say("stopping the stratum …");
    stratum.stop()?;
    let last = joined(stage, &first, "node-3", others.len() + 1)?;
    passes.push(last.pass(stage, "node-3-without-stratum", Expected::NoStrata)?);

    others.push(last);
    for mut node in others {
        node.stop()?;
    }
    first.stop()?;
    Ok(passes)
}

/// A new member whose agent runs, sees its neighbours and knows the repository.
fn joined(stage: &Stage<'_>, authority: &Node, name: &str, neighbours: usize) -> Result<Node, CliError> {
    stage.say(&format!("{name} joins …"));
    let mut node = Node::new(stage, name)?;
    node.join(stage, &authority.invite()?)?;
    node.start(stage)?;
    node.wait_for_members(stage, neighbours)?;
    node.wait_for_repository(stage)?;
    Ok(node)
}

/// The stratum, and a cache for each node, with some room for catalogs and packs.
fn enough_room(folder: &Path, tree_bytes: u64, nodes: u16) -> Result<(), CliError> {
    let disk = rustix::fs::statvfs(folder).map_err(std::io::Error::from)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let needed = tree_bytes.saturating_mul(u64::from(nodes) + 2);
    if free < needed {
        return Err(CliError::failed(format!(
            "{} has {} free; the demonstration takes {}",
            folder.display(),
            ByteSize(free),
            ByteSize(needed)
        ))
        .hint("name a smaller tree, or set TMPDIR to a folder with more room"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strata_address_is_found_in_what_it_prints() {
        assert_eq!(url_in("serving /x at http://127.0.0.1:81 now\n").as_deref(), Some("http://127.0.0.1:81"));
        assert_eq!(url_in("nothing here\n"), None);
    }

    #[test]
    fn a_tree_that_does_not_fit_the_disk_is_refused_with_figures() {
        let dir = tempfile::tempdir().unwrap();
        assert!(enough_room(dir.path(), 0, 3).is_ok());
        let error = enough_room(dir.path(), u64::MAX / 8, 3).unwrap_err().to_string();
        assert!(error.contains("free") && error.contains("TMPDIR"), "{error}");
    }
}
