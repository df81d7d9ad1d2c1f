//! `starling agent`: run this machine's agent: mounts, cache, mesh member.

use super::CliError;

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: Args) -> Result<(), CliError> {
    Err(CliError::failed("not wired yet"))
}
