//! `starling peers`: show the members that the agent knows.

use super::CliError;
use super::ask::{AgentArgs, block_on, print_json, table};
use crate::config::ByteSize;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  starling peers
  starling peers --json | jq '.peers[] | select(.up)'")]
pub(super) struct Args {
    #[command(flatten)]
    agent: AgentArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> Result<(), CliError> {
    let client = args.agent.client();
    let peers = block_on(async { Ok(client.peers().await?) })?;
    if args.json {
        return print_json(&peers);
    }
    if peers.node.is_none() {
        println!("this agent is not a member of a mesh");
        return Ok(());
    }
    if let Some(reason) = &peers.ended {
        println!("this agent is no member of its mesh any more, and nobody speaks to it: {reason}");
    }
    let rows: Vec<_> = peers
        .peers
        .iter()
        .map(|peer| {
            let state = match (peer.revoked, peer.up) {
                (true, _) => "revoked",
                (false, true) => "up",
                (false, false) => "down",
            };
            let cell = peer.cell.as_ref().map_or("-", |cell| cell.as_str());
            let rtt = peer.rtt_us.map_or_else(|| "-".to_owned(), |us| format!("{:.1} ms", us as f64 / 1e3));
            [
                peer.node.short(),
                cell.to_owned(),
                peer.address.to_string(),
                state.to_owned(),
                rtt,
                ByteSize(peer.sent_bytes).to_string(),
                ByteSize(peer.received_bytes).to_string(),
            ]
        })
        .collect();
    print!("{}", table(["NODE", "CELL", "ADDRESS", "STATE", "ROUND TRIP", "SENT", "RECEIVED"], &rows));
    Ok(())
}
