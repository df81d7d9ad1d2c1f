//! `starling demo`: publish, serve, join, mount and read back on this machine, with real processes.

pub mod compare;
mod process;
mod report;
mod select;

use super::CliError;

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: Args) -> Result<(), CliError> {
    Err(CliError::failed("not wired yet"))
}
