//! `starling umount`: unmount a repository.

use super::CliError;
use super::ask::{AgentArgs, block_on, print_json};
use crate::agent::api::UnmountRequest;
use std::path::PathBuf;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  starling umount /mnt/sw

A mount that is in use is taken out of sight at once and ends when its last user is done.")]
pub(super) struct Args {
    /// Where the repository is mounted.
    directory: PathBuf,
    #[command(flatten)]
    agent: AgentArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> Result<(), CliError> {
    // As it is named: touching the mount itself could wait for the network, and one whose way leads elsewhere now is known to the
    // agent by this name only.
    let directory = std::path::absolute(&args.directory)?;
    let client = args.agent.client();
    let request = UnmountRequest { directory };
    let mount = block_on(async { Ok(client.unmount(&request).await?) })?;
    if args.json {
        return print_json(&mount);
    }
    println!("{} is no longer mounted on {}", mount.repository, mount.directory.display());
    Ok(())
}
