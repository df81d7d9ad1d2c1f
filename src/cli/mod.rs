//! The command line: one file a verb. The only room that reads arguments, environment and home.
#![cfg_attr(
    feature = "node",
    expect(clippy::needless_pass_by_value, reason = "each verb is handed its arguments for good")
)]

// First, so that all verbs print with its macros.
#[macro_use]
mod output;

#[cfg(feature = "node")]
mod agent;
#[cfg(feature = "node")]
mod ask;
#[cfg(feature = "node")]
mod cache;
#[cfg(feature = "node")]
mod check;
#[cfg(feature = "node")]
mod content_profile;
mod core_replay;
#[cfg(feature = "node")]
mod demo;
#[cfg(feature = "node")]
mod doctor;
mod error;
#[cfg(feature = "node")]
mod first_start;
#[cfg(feature = "node")]
mod health;
#[cfg(feature = "node")]
mod join;
#[cfg(feature = "node")]
mod keeper;
#[cfg(feature = "node")]
mod lab;
#[cfg(feature = "node")]
mod mesh;
#[cfg(feature = "node")]
mod mount;
#[cfg(feature = "node")]
mod mount_helper;
#[cfg(feature = "node")]
mod mount_options;
#[cfg(feature = "node")]
mod peers;
mod pending;
#[cfg(feature = "node")]
mod publish;
mod recordings;
#[cfg(feature = "node")]
mod repo;
mod reports;
mod simulate;
#[cfg(feature = "node")]
mod status;
#[cfg(feature = "node")]
mod stratum;
mod swarm;
#[cfg(feature = "node")]
mod trace;
#[cfg(feature = "node")]
mod umount;
#[cfg(feature = "node")]
mod why;

#[cfg(feature = "node")]
#[doc(hidden)]
pub use demo::compare;
pub use error::CliError;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Distributes software trees to fleets: publish once, mount everywhere, fetch from neighbours first.
#[derive(Debug, Parser)]
#[command(name = "starling", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[cfg(feature = "node")]
    /// Make this machine a member of a mesh.
    Join(join::Args),
    #[cfg(feature = "node")]
    /// Mount a repository.
    Mount(mount::Args),
    #[cfg(feature = "node")]
    /// Unmount a repository.
    Umount(umount::Args),
    #[cfg(feature = "node")]
    /// Publish a directory tree as a new revision of a repository.
    Publish(publish::Args),
    #[cfg(feature = "node")]
    /// Verify everything that a published repository's root names.
    Check(check::Args),
    #[cfg(feature = "node")]
    /// Run this machine's agent: mounts, cache, mesh member.
    Agent(agent::Args),
    #[cfg(feature = "node")]
    /// Show what the agent is doing.
    Status(status::Args),
    #[cfg(feature = "node")]
    /// Tell by the exit code whether an agent or a stratum is fit for work.
    Health(health::Args),
    #[cfg(feature = "node")]
    /// Look at the machine as an agent will find it, and say what to change.
    Doctor(doctor::Args),
    #[cfg(feature = "node")]
    /// Show the members that the agent knows.
    Peers(peers::Args),
    #[cfg(feature = "node")]
    /// Tell where each chunk of a file came from, and how long each step took.
    Why(why::Args),
    #[cfg(feature = "node")]
    /// Record what a command reads through a mount, to be published with the tree.
    #[command(subcommand)]
    Trace(trace::Command),
    #[cfg(feature = "node")]
    /// Look after the agent's cache: what is in it, what stays, whether it is sound.
    #[command(subcommand)]
    Cache(cache::Command),
    #[cfg(feature = "node")]
    /// Make a mesh, invite machines into it, see its members, end memberships.
    #[command(subcommand)]
    Mesh(mesh::Command),
    #[cfg(feature = "node")]
    /// Make repositories known to this machine, or to the whole mesh.
    #[command(subcommand)]
    Repo(repo::Command),
    #[cfg(feature = "node")]
    /// Serve a published repository over HTTP.
    #[command(subcommand)]
    Stratum(stratum::Command),
    #[cfg(feature = "node")]
    /// Take out of a published repository what a simulation needs to know of its content.
    ContentProfile(content_profile::Args),
    /// Predict a roll-out to a fleet with the node's own decisions.
    Simulate(Box<simulate::Args>),
    /// Test the node's decisions in seeded swarms, among everything that can go wrong.
    Swarm(swarm::Args),
    #[cfg(feature = "node")]
    /// Publish, serve, join, mount and read back on this machine, with real processes.
    Demo(demo::Args),
    #[cfg(feature = "node")]
    /// Run a scenario with real agents in network namespaces of this machine, and measure it.
    Lab(lab::Args),
    #[cfg(feature = "node")]
    /// Run an agent that lies to its peers. Only the lab starts it.
    #[command(hide = true)]
    LabLiar(lab::LiarArgs),
    #[cfg(feature = "node")]
    /// Hold an agent's mounts while no agent serves them. Agents start it.
    #[command(hide = true)]
    Keeper(keeper::Args),
    /// Replay recorded decisions of an agent and compare them byte for byte.
    CoreReplay(core_replay::Args),
}

/// Runs the program and tells its exit code: 0 done, 1 failed, 2 called wrongly; `trace record` passes on its command's.
pub fn main() -> ExitCode {
    #[cfg(feature = "node")]
    if mount_helper::is_called() {
        return mount_helper::run();
    }
    let result = match Cli::parse().command {
        #[cfg(feature = "node")]
        Command::Join(args) => join::run(args),
        #[cfg(feature = "node")]
        Command::Mount(args) => mount::run(args),
        #[cfg(feature = "node")]
        Command::Umount(args) => umount::run(args),
        #[cfg(feature = "node")]
        Command::Publish(args) => publish::run(args),
        #[cfg(feature = "node")]
        Command::Check(args) => check::run(&args),
        #[cfg(feature = "node")]
        Command::Agent(args) => agent::run(args),
        #[cfg(feature = "node")]
        Command::Status(args) => status::run(args),
        #[cfg(feature = "node")]
        Command::Health(args) => health::run(args),
        #[cfg(feature = "node")]
        Command::Doctor(args) => doctor::run(args),
        #[cfg(feature = "node")]
        Command::Peers(args) => peers::run(args),
        #[cfg(feature = "node")]
        Command::Why(args) => why::run(args),
        #[cfg(feature = "node")]
        Command::Trace(args) => trace::run(args),
        #[cfg(feature = "node")]
        Command::Cache(args) => cache::run(args),
        #[cfg(feature = "node")]
        Command::Mesh(args) => mesh::run(args),
        #[cfg(feature = "node")]
        Command::Repo(args) => repo::run(args),
        #[cfg(feature = "node")]
        Command::Stratum(args) => stratum::run(args),
        #[cfg(feature = "node")]
        Command::ContentProfile(args) => content_profile::run(&args),
        Command::Simulate(args) => simulate::run(*args),
        Command::Swarm(args) => swarm::run(args),
        #[cfg(feature = "node")]
        Command::Demo(args) => demo::run(args),
        #[cfg(feature = "node")]
        Command::Lab(args) => lab::run(args),
        #[cfg(feature = "node")]
        Command::LabLiar(args) => lab::run_liar(args),
        #[cfg(feature = "node")]
        Command::Keeper(args) => keeper::run(args),
        Command::CoreReplay(args) => core_replay::run(args),
    };
    let result = result.and_then(|()| match output::failure() {
        None => Ok(()),
        Some(error) => Err(CliError::failed(format!("standard output: {error}"))),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.code())
        }
    }
}

/// Environment variables that are settings of an agent of this machine, not of those that a command starts.
#[cfg(feature = "node")]
fn own_variables() -> Vec<std::ffi::OsString> {
    let ours =
        |name: &std::ffi::OsString| name.to_string_lossy().starts_with(crate::config::ENVIRONMENT_PREFIX);
    std::env::vars_os().map(|(name, _)| name).filter(ours).collect()
}

/// Starts this program again, with outputs and logs in `folder`.
#[cfg(feature = "node")]
fn launcher(folder: &std::path::Path) -> Result<crate::lab::Launcher, CliError> {
    Ok(crate::lab::Launcher {
        executable: std::env::current_exe()?,
        folder: folder.to_owned(),
        hidden: own_variables(),
    })
}
