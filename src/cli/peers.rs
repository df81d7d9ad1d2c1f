//! `starling peers`: show the members that the agent knows.

use super::CliError;
use super::ask::{AgentArgs, block_on, print_json, table};
use crate::agent::api::PeerStatus;
use crate::config::ByteSize;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  starling peers
  starling peers --json | jq '.peers[] | select(.up)'

ROUND TRIP is that of an open connection, else of the last one; `-`: there was none yet. SENT and RECEIVED are bytes
of chunks; SHARE is this member's part of all that this node sent to members, or took from them, since it started.")]
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
    print!("{}", peer_table(&peers.peers));
    Ok(())
}

fn peer_table(peers: &[PeerStatus]) -> String {
    let percent = |share: f64| if share > 0.0 { format!("{:.1} %", share * 100.0) } else { "-".to_owned() };
    let rows: Vec<_> = peers
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
                percent(peer.sent_share),
                ByteSize(peer.received_bytes).to_string(),
                percent(peer.received_share),
            ]
        })
        .collect();
    let head = ["NODE", "CELL", "ADDRESS", "STATE", "ROUND TRIP", "SENT", "SHARE", "RECEIVED", "SHARE"];
    table(head, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NodeId;

    #[test]
    fn a_peer_is_shown_with_its_share_of_what_was_given_and_taken() {
        let peer = PeerStatus {
            node: NodeId([0xab; 32]),
            cell: Some("eu/a/r1".parse().unwrap()),
            address: "10.0.0.1:7400".parse().unwrap(),
            up: true,
            revoked: false,
            rtt_us: Some(1_250),
            sent_bytes: 0,
            received_bytes: 1 << 20,
            sent_share: 0.0,
            received_share: 0.125,
        };
        let text = peer_table(&[peer]);
        let words: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().skip(1).collect();
        assert_eq!(words.join(" "), "eu/a/r1 10.0.0.1:7400 up 1.2 ms 0 B - 1 MiB 12.5 %");
    }
}
