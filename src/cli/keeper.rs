//! `starling keeper`: what an agent starts to hold its mounts while no agent serves them.

use super::CliError;
use std::path::PathBuf;
use std::time::Duration;

/// Arguments. Agents start it; people need not.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where it listens for its agent.
    socket: PathBuf,
    /// How many seconds it holds a mount that no agent serves.
    patience_s: u64,
}

pub(super) fn run(args: Args) -> Result<(), CliError> {
    crate::agent::keep(&args.socket, Duration::from_secs(args.patience_s))
        .map_err(|error| CliError::failed(format!("{}: {error}", args.socket.display())))
}
