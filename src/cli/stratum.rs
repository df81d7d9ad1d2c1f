//! `starling stratum`: serve a published repository over http.

use super::CliError;

/// Sub-commands.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {}

pub(super) fn run(command: Command) -> Result<(), CliError> {
    match command {}
}
