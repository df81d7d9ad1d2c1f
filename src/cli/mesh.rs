//! `starling mesh`: make a mesh and invite machines into it.

use super::CliError;
use super::ask::{AgentArgs, StateArgs, block_on, print_json};
use crate::agent::api::InviteRequest;
use crate::mesh::{Identity, IdentityError};
use crate::model::CellLabel;
use std::io::Write as _;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest validity of a ticket: 30 days. Who holds it may join until then, so short is better.
const EXPIRES_MAX: Duration = Duration::from_secs(30 * 86_400);

/// Sub-commands.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make a mesh, with this machine as its authority and first member.
    #[command(after_help = "Examples:
  starling mesh init
  starling mesh init --cell eu-west/a/rack12

Then run `starling agent` here, and `starling mesh invite` for each further machine.")]
    Init {
        #[command(flatten)]
        state: StateArgs,
        /// Where this machine is: REGION/ZONE/RACK. Nodes with the same label know each other well.
        #[arg(long, value_name = "R/Z/R", default_value_t)]
        cell: CellLabel,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Print a ticket with which a machine may join. Asks the agent of an authority.
    #[command(after_help = "Examples:
  starling mesh invite
  starling mesh invite --expires 10m --address node-1.example.org:7400

A ticket is worth a membership until it expires: hand it over as you would a password.")]
    Invite {
        #[command(flatten)]
        agent: AgentArgs,
        /// How long the ticket counts: a number with s, m, h or d; at most 30d.
        #[arg(long, value_name = "SPAN", default_value = "1h", value_parser = parse_span)]
        expires: Duration,
        /// Address of this node in the ticket, HOST:PORT; may be repeated [default: where the agent can be reached].
        #[arg(long = "address", value_name = "ADDR")]
        addresses: Vec<String>,
        /// Write the ticket into FILE (mode 0600) instead of printing it.
        #[arg(long, value_name = "FILE", conflicts_with = "json")]
        out: Option<PathBuf>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::Init { state, cell, json } => init(&state, cell, json),
        Command::Invite { agent, expires, addresses, out, json } => {
            let request = InviteRequest { expires_s: expires.as_secs(), addresses: resolve(&addresses)? };
            let client = agent.client();
            let invitation = block_on(async { Ok(client.invite(&request).await?) })?;
            if json {
                return print_json(&invitation);
            }
            match &out {
                Some(file) => write_ticket(file, &invitation.ticket)
                    .map_err(|error| CliError::failed(format!("{}: {error}", file.display())))?,
                // Alone on standard output, so that a script can pass it on.
                None => println!("{}", invitation.ticket),
            }
            let addresses: Vec<_> = invitation.addresses.iter().map(ToString::to_string).collect();
            eprintln!(
                "good until {}, for machines that reach {}",
                invitation.expires,
                addresses.join(" or ")
            );
            Ok(())
        }
    }
}

/// Writes beside and renames, so that who waits for the file never sees a part of it.
fn write_ticket(file: &Path, ticket: &str) -> std::io::Result<()> {
    let beside = file.with_extension("new");
    let mut options = std::fs::File::options();
    let mut new = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    writeln!(new, "{ticket}")?;
    new.sync_all()?;
    std::fs::rename(&beside, file)
}

fn init(state: &StateArgs, cell: CellLabel, json: bool) -> Result<(), CliError> {
    let dir = state.dir();
    let identity = Identity::found_mesh(&dir, cell).map_err(|error| match &error {
        IdentityError::AlreadyAMember { .. } => {
            CliError::failed(&error).hint("one state folder belongs to one mesh; choose another with --state")
        }
        _ => CliError::failed(&error),
    })?;
    let membership = identity.membership();
    if json {
        return print_json(&serde_json::json!({
            "mesh": membership.mesh.to_string(),
            "node": membership.node,
            "cell": membership.cell,
            "expires": membership.expires,
        }));
    }
    println!(
        "mesh {} is made; this node is {} in cell {}",
        membership.mesh,
        membership.node.short(),
        membership.cell
    );
    eprintln!("its authority's key lies in {}: keep it, and keep it secret", dir.display());
    Ok(())
}

/// Looks host names up once, here: a ticket holds addresses.
fn resolve(texts: &[String]) -> Result<Vec<SocketAddr>, CliError> {
    let mut found = Vec::new();
    for text in texts {
        let addresses = text
            .to_socket_addrs()
            .map_err(|error| CliError::usage(format!("--address {text}: {error}")).hint("write HOST:PORT"))?;
        for address in addresses {
            if !found.contains(&address) {
                found.push(address);
            }
        }
    }
    Ok(found)
}

/// A span such as `90s`, `10m`, `1h` or `2d`, from a second to [`EXPIRES_MAX`].
pub(super) fn parse_span(text: &str) -> Result<Duration, String> {
    let refuse = || format!("`{text}` is not a span: write a number with s, m, h or d, from 1s to 30d");
    let unit = text.chars().next_back().ok_or_else(refuse)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(refuse()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| refuse())?;
    number
        .checked_mul(factor)
        .map(Duration::from_secs)
        .filter(|span| (Duration::from_secs(1)..=EXPIRES_MAX).contains(span))
        .ok_or_else(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_written_with_their_unit() {
        for (text, seconds) in [("1s", 1), ("10m", 600), ("1h", 3_600), ("30d", 2_592_000)] {
            assert_eq!(parse_span(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "0s", "31d", "h", "1", "1.5h", "-1h", "1ä", "99999999999999999999d"] {
            assert!(parse_span(bad).unwrap_err().contains("30d"), "{bad}");
        }
    }

    #[test]
    fn addresses_are_resolved_once_each() {
        let found = resolve(&["127.0.0.1:7400".into(), "127.0.0.1:7400".into()]).unwrap();
        assert_eq!(found, ["127.0.0.1:7400".parse().unwrap()]);
        let error = resolve(&["no port".into()]).unwrap_err();
        assert!(error.to_string().contains("no port") && error.code() == 2, "{error}");
    }

    #[test]
    fn a_second_mesh_in_the_same_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateArgs::at(dir.path());
        init(&state, CellLabel::default(), true).unwrap();
        let error = init(&state, CellLabel::default(), true).unwrap_err().to_string();
        assert!(error.contains("--state"), "{error}");
    }
}
