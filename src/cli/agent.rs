//! placeholder while wiring
use super::CliError;
#[derive(Debug, clap::Args)]
pub(super) struct Args {}
pub(super) fn run(_args: Args) -> Result<(), CliError> {
    Err(CliError::failed("not wired yet"))
}
