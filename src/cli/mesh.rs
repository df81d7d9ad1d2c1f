//! `starling mesh`: make a mesh and invite machines into it.

use super::CliError;

/// Sub-commands.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {}

pub(super) fn run(command: Command) -> Result<(), CliError> {
    match command {}
}
