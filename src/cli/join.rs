//! `starling join`: make this machine a member of a mesh.

use super::CliError;
use super::ask::{StateArgs, after_membership, block_on, print_json};
use crate::agent::{AgentError, StateFolder};
use crate::mesh::{IdentityError, JoinError, Ticket, TicketError, join};
use crate::model::CellLabel;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  starling join starling-ticket-… --cell eu-west/a/rack12
  starling join starling-ticket-… --force

`starling mesh invite` on the mesh's authority prints tickets. Run `starling agent` afterwards; an agent that
runs already must be restarted, and for --force be stopped before.")]
pub(super) struct Args {
    /// The ticket.
    ticket: String,
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
    let ticket: Ticket = args.ticket.parse().map_err(|error: TicketError| CliError::usage(error))?;
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
            ticket: "starling-ticket-nonsense".into(),
            cell: None,
            state: StateArgs::at(dir.path()),
            force: false,
            json: false,
        };
        let error = run(args).unwrap_err();
        assert!(error.to_string().contains("is not a ticket") && error.code() == 2, "{error}");
    }
}
