//! `starling repo`: make repositories known to this machine, or to the whole mesh.

use super::CliError;

/// Sub-commands.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {}

pub(super) fn run(command: Command) -> Result<(), CliError> {
    match command {}
}
