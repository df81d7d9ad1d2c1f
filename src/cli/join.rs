//! `starling join`: make this machine a member of a mesh.

use super::CliError;
use super::ask::{StateArgs, after_membership, block_on, print_json};
use super::first_start::TICKET_FILE_MAX_BYTES;
use crate::agent::{AgentError, StateFolder};
use crate::mesh::{IdentityError, JoinError, Ticket, TicketError, TrustChangeError, join};
use crate::model::CellLabel;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  starling join --ticket-file /run/secrets/ticket --cell eu-west/a/rack12
  ssh authority starling mesh invite | starling join --ticket-file -
  starling join starling-ticket-… --force

`starling mesh invite` on the mesh's authority prints tickets. One in a file, or on standard input, is seen by nobody
else; one among the arguments stands in the list of processes and in the shell's history. Run `starling agent` afterwards; an agent that
runs already must be restarted, and for --force be stopped before.")]
pub(super) struct Args {
    /// The ticket. A file is safer: see --ticket-file.
    #[arg(required_unless_present = "ticket_file")]
    ticket: Option<String>,
    /// The file with the ticket; `-` is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "ticket")]
    ticket_file: Option<PathBuf>,
    /// Where this machine is: REGION/ZONE/RACK. Nodes with the same label know each other well.
    /// [default: the ticket's, else that of the membership it has, else default/default/default]
    #[arg(long, value_name = "R/Z/R")]
    cell: Option<CellLabel>,
    #[command(flatten)]
    state: StateArgs,
    /// Replace the membership that this machine has; its key stays.
    #[arg(long)]
    force: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> Result<(), CliError> {
    let ticket = match &args.ticket_file {
        Some(file) => ticket_in(file)?,
        None => {
            args.ticket.unwrap_or_default().parse().map_err(|error: TicketError| CliError::usage(error))?
        }
    };
    let dir = args.state.dir();
    // An agent renews the membership that it read at its start, and would write that over the new one.
    let lock = args.force.then(|| StateFolder::open(&dir)).transpose().map_err(explain_lock)?;
    let joined = block_on(async { join(&ticket, args.cell, &dir, args.force).await.map_err(explain) })?;
    let membership = &joined.membership;
    if args.json {
        return print_json(&serde_json::json!({
            "mesh": membership.mesh.to_string(),
            "node": membership.node,
            "cell": membership.cell,
            "role": membership.role,
            "repositories": membership.scope.names(),
            "expires": membership.expires,
        }));
    }
    println!(
        "this node, {}, is a member of mesh {} in cell {} with the role {} until {}, and then renewed by its agent",
        membership.node.short(),
        membership.mesh,
        membership.cell,
        membership.role,
        membership.expires
    );
    drop(lock);
    eprintln!("{}", after_membership(&dir));
    Ok(())
}

/// The ticket in a file, or on standard input.
fn ticket_in(file: &Path) -> Result<Ticket, CliError> {
    let is_input = file == Path::new("-");
    let shown = if is_input { "standard input".to_owned() } else { file.display().to_string() };
    let open = || -> io::Result<Box<dyn Read>> {
        if is_input { Ok(Box::new(io::stdin())) } else { Ok(Box::new(File::open(file)?)) }
    };
    let mut text = String::new();
    open()
        .and_then(|input| input.take(TICKET_FILE_MAX_BYTES + 1).read_to_string(&mut text))
        .map_err(|error| CliError::usage(format!("{shown}: {error}")))?;
    if text.len() as u64 > TICKET_FILE_MAX_BYTES {
        return Err(CliError::usage(format!(
            "{shown}: more than {TICKET_FILE_MAX_BYTES} bytes are no ticket"
        )));
    }
    text.parse().map_err(|error: TicketError| CliError::usage(format!("{shown}: {error}")))
}

fn explain_lock(error: AgentError) -> CliError {
    let failed = CliError::failed(&error);
    match error {
        AgentError::StateInUse(_) => failed.hint("stop the agent, join, and start it again"),
        _ => failed,
    }
}

/// What a person can do about it.
pub(super) fn explain(error: JoinError) -> CliError {
    let failed = CliError::failed(&error);
    match error {
        JoinError::Identity(IdentityError::AlreadyAMember { .. }) => {
            failed.hint("one state folder belongs to one mesh: choose another with --state, or give --force")
        }
        JoinError::CellUnknown(_) => failed.hint("say where this machine is with --cell REGION/ZONE/RACK"),
        JoinError::Ticket(TicketError::Cell { .. }) => failed.hint("leave --cell away"),
        JoinError::Unreachable { .. } => {
            failed.hint("is `starling agent` running there, and is its UDP port reachable from here?")
        }
        JoinError::State(state)
        | JoinError::Identity(IdentityError::State(state))
        | JoinError::Trust(TrustChangeError::State(state)) => match state.hint() {
            Some(hint) => failed.hint(hint),
            None => failed,
        },
        _ => failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_ticket_is_wrong_use() {
        let dir = tempfile::tempdir().unwrap();
        let args = Args {
            ticket: Some("starling-ticket-nonsense".into()),
            ticket_file: None,
            cell: None,
            state: StateArgs::at(dir.path()),
            force: false,
            json: false,
        };
        let error = run(args).unwrap_err();
        assert!(error.to_string().contains("is not a ticket") && error.code() == 2, "{error}");
    }

    #[test]
    fn what_is_no_ticket_in_a_file_is_refused_with_the_file_and_without_the_secret() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ticket");
        assert!(ticket_in(&file).unwrap_err().to_string().contains("ticket: No such file"));
        std::fs::write(&file, vec![b'x'; 5_000]).unwrap();
        assert!(ticket_in(&file).unwrap_err().to_string().contains("more than 4096 bytes"));
        let secret = format!("starling-ticket-{}", "secret".repeat(20));
        std::fs::write(&file, &secret).unwrap();
        let error = ticket_in(&file).unwrap_err();
        let said = error.to_string();
        assert!(said.contains(&file.display().to_string()) && said.contains("is not a ticket"), "{said}");
        assert!(!said.contains(&secret) && error.code() == 2, "{said}");
    }
}
