//! `starling core-replay`: replay recorded decisions of an agent and compare them byte for byte.

use super::CliError;

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: Args) -> Result<(), CliError> {
    Err(CliError::failed("not wired yet"))
}
